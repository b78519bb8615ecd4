//! The answer to a publish.

/// Where an event is stored, and whether this publish stored it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PublishReceipt {
    /// Sequence of the event in its stream. For a duplicate, that of the event which was stored first.
    pub sequence: u64,
    /// Whether an earlier publish with the same `msg_id` stored an event within the dedup window. This publish stored
    /// nothing then; the stored event may differ from the one that was passed.
    pub duplicate: bool,
}

impl PublishReceipt {
    /// The event was stored under this sequence. For providers.
    pub const fn stored(sequence: u64) -> Self {
        Self { sequence, duplicate: false }
    }

    /// An earlier publish stored an event under this sequence. For providers.
    pub const fn duplicate(sequence: u64) -> Self {
        Self { sequence, duplicate: true }
    }
}
