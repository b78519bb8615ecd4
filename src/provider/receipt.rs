//! The answer to a publish.

use crate::error::{EventError, Result};

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

/// The answer to a publish for which nothing has to be stored: a duplicate, or a conflict with the expected sequence.
///
/// `first` is the sequence of an event with the same `msg_id` within the dedup window. Only the retry of a publish is a
/// duplicate: one that expects what the first one expected, or the stream's present end. With any other expectation it is
/// another publish, as on JetStream, which compares the expected sequence before it looks for the id.
///
/// # Errors
///
/// [`EventError::Conflict`] when another sequence was expected.
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
