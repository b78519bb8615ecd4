//! The result of a publish.

use crate::error::{EventError, Result};

/// Result of a publish: the sequence of the event, and whether this publish stored it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PublishReceipt {
    /// Sequence of the event in its stream. For a duplicate, the sequence of the event that was stored first.
    pub sequence: u64,
    /// If true, an earlier publish with the same `msg_id` within the dedup window stored an event, and this publish
    /// stored nothing. The stored event may differ from the one passed.
    pub duplicate: bool,
}

impl PublishReceipt {
    /// Creates the receipt of an event that was stored under this sequence. For providers.
    pub const fn stored(sequence: u64) -> Self {
        Self { sequence, duplicate: false }
    }

    /// Creates the receipt of a duplicate: an earlier publish stored an event under this sequence. For providers.
    pub const fn duplicate(sequence: u64) -> Self {
        Self { sequence, duplicate: true }
    }
}

/// Returns the receipt of a duplicate, for which nothing is stored. Returns `None` if the event must be stored.
///
/// `first` is the sequence of an event with the same `msg_id` within the dedup window. Only the retry of a publish is a
/// duplicate: it expects the same sequence as the first publish, or the stream's present last sequence. With any other
/// expectation it is a different publish and conflicts. JetStream does the same, because it compares the expected
/// sequence before it looks up the id.
///
/// # Errors
///
/// [`EventError::Conflict`] if another sequence was expected.
pub fn answered_without_storing(
    stream: &str,
    last: u64,
    expected: Option<u64>,
    first: Option<u64>,
) -> Result<Option<PublishReceipt>> {
    match (expected, first) {
        (Some(expected), first)
            if expected != last && first.and_then(|first| first.checked_sub(1)) != Some(expected) =>
        {
            Err(EventError::Conflict {
                resource: format!("stream '{stream}'"),
                field: "expected_sequence".to_owned(),
                existing: last.to_string(),
                requested: expected.to_string(),
            })
        }
        (_, first) => Ok(first.map(PublishReceipt::duplicate)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_retry_is_a_duplicate() {
        let answer = |expected, first| answered_without_storing("s", 9, expected, first);
        assert_eq!(answer(None, None).unwrap(), None);
        assert_eq!(answer(Some(9), None).unwrap(), None);
        assert_eq!(answer(None, Some(4)).unwrap(), Some(PublishReceipt::duplicate(4)));
        assert_eq!(
            answer(Some(3), Some(4)).unwrap(),
            Some(PublishReceipt::duplicate(4)),
            "the first one expected 3"
        );
        assert_eq!(answer(Some(9), Some(4)).unwrap(), Some(PublishReceipt::duplicate(4)));
        for (expected, first) in [(8, None), (0, None), (4, Some(4)), (u64::MAX, Some(0)), (10, Some(4))] {
            assert!(answer(Some(expected), first).is_err(), "{expected} {first:?}");
        }
    }
}
