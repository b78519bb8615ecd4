//! Position of a delivery, read from the subject on which it is acknowledged.

use async_nats::{Message, Subject};

/// Position of a delivery in its stream and in its consumer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) sequence: u64,
    /// Number of the delivery among all deliveries of the consumer, to all members.
    pub(super) delivery: u64,
    pub(super) num_delivered: u64,
    /// Storage time of the record, in Unix milliseconds.
    pub(super) stored_at: u64,
}

impl Position {
    /// Reads the subject on which a delivery is acknowledged:
    /// `$JS.ACK.stream.consumer.attempt.sequence.delivery.time.pending`. Newer servers put domain and account before
    /// the stream, and may append tokens.
    pub(super) fn of(message: &Message) -> Option<(Self, Subject)> {
        let reply = message.reply.clone()?;
        Some((Self::parse(&reply)?, reply))
    }

    fn parse(reply: &str) -> Option<Self> {
        // Runs for every delivery, so it does not allocate.
        let mut tokens = [""; 9];
        let mut count = 0;
        for token in reply.strip_prefix("$JS.ACK.")?.split('.').take(tokens.len()) {
            *tokens.get_mut(count)? = token;
            count += 1;
        }
        let [num_delivered, sequence, delivery, stored_at] = match (count, tokens) {
            (7, [_, _, attempt, sequence, delivery, time, ..])
            | (9, [_, _, _, _, attempt, sequence, delivery, time, _]) => [attempt, sequence, delivery, time],
            _ => return None,
        };
        Some(Self {
            sequence: sequence.parse().ok()?,
            delivery: delivery.parse().ok()?,
            num_delivered: num_delivered.parse().ok()?,
            stored_at: stored_at.parse::<u64>().ok()? / 1_000_000,
        })
    }
}

/// The last known new event, and the last delivery. Events between this one and the next that were never delivered were
/// dropped.
///
/// This is valid for consumers of the whole stream. For others, it is unknown if a dropped event matched the filter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) sequence: u64,
    pub(super) delivery: u64,
}

impl Seen {
    /// Returns the number of events before this one that were never delivered.
    pub(super) fn missing_before(self, position: Position) -> u64 {
        if position.num_delivered > 1 || position.delivery == 0 || position.sequence <= self.sequence {
            return 0;
        }
        let skipped = position.sequence - self.sequence - 1;
        skipped.saturating_sub(position.delivery.saturating_sub(self.delivery.saturating_add(1)))
    }

    /// Returns the state after a delivery. A redelivery is no new event.
    pub(super) fn then(self, position: Position) -> Self {
        let sequence = if position.num_delivered > 1 { self.sequence } else { position.sequence };
        Self { sequence: sequence.max(self.sequence), delivery: position.delivery.max(self.delivery) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(reply: &str) -> Option<(u64, u64, u64)> {
        let message = Message {
            subject: "events.a".into(),
            reply: Some(reply.into()),
            payload: Vec::new().into(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        };
        let (position, _) = Position::of(&message)?;
        assert_eq!(position.stored_at, 1_790_230_470_084);
        Some((position.num_delivered, position.sequence, position.delivery))
    }

    #[test]
    fn positions_are_read_from_the_reply_subjects_of_old_and_new_servers() {
        assert_eq!(position("$JS.ACK.EVENTS.name.3.100.7.1790230470084404000.42"), Some((3, 100, 7)));
        assert_eq!(
            position("$JS.ACK._.szMpdrwD.EVENTS.name.3.100.7.1790230470084404000.42"),
            Some((3, 100, 7))
        );
        assert_eq!(
            position("$JS.ACK.hub.sz.EVENTS.name.3.100.7.1790230470084404000.42.rand"),
            Some((3, 100, 7))
        );
        assert_eq!(position("$JS.ACK.EVENTS.name.3.100.7"), None);
        assert_eq!(position("$JS.ACK.EVENTS.name.x.100.7.1790230470084404000.42"), None);
        assert_eq!(position("_INBOX.abc"), None);
    }
}
