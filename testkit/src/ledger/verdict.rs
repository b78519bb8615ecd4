//! Verdicts: the promises that a run broke.

use std::fmt;
use std::time::Duration;

/// A promise that the ledger checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// An acknowledged event is not stored.
    ///
    /// `Ok` means that the event is stored. Every event of the history counts, because the ledger's streams have no
    /// limits. The ledger stops no more servers at once than the declared durability survives.
    Lost,
    /// An event is stored under another sequence than the acknowledged one.
    ///
    /// An event has the same sequence wherever it appears, and a duplicate returns that of the first. A copy that the
    /// dedup window allows is compared as well: one of the copies must have the sequence.
    SequenceChanged,
    /// A publish was acknowledged with a sequence below that of one acknowledged before it began.
    ///
    /// Only the first try of an event counts: a later one may return the sequence of an earlier one. Without the
    /// capability `total_order`, this is not checked.
    SequenceWentBack,
    /// An event is stored twice for one `msg_id`.
    ///
    /// Allowed are copies whose storage times are apart by the dedup window or more, and any copies if a clock jumped
    /// between the tries. Without a server, the wall clock decides how long an id is remembered.
    StoredTwice,
    /// A durable consumer never received a stored event.
    ///
    /// Every consumer starts with everything that is retained. An event counts as received if a handler began, or if
    /// its dead letter is stored: an event that kills its process may never reach a handler.
    Undelivered,
    /// An event was delivered again after a confirmed ack.
    ///
    /// After `Ok`, the event is never redelivered to this consumer. Allowed is:
    ///
    /// - a delivery that was handed out before the ack, whose handler begins late. Its attempt is an earlier one, and
    ///   its process began before the ack;
    /// - the ack of a lost lease. Without the capability `fenced_settlement`, it
    ///   succeeds. A lease can be lost if its process was suspended or a fault of the backend lasted between the
    ///   publish and the ack;
    /// - any delivery after a server was killed, if the provider documents that it writes settlements later, and the
    ///   kill came within that time.
    RedeliveredAfterAck,
    /// An event whose ack was sent was delivered again after its process stopped in order.
    ///
    /// `shutdown` waits until all earlier acks are stored. Allowed is what is allowed after a confirmed ack, and an ack
    /// whose lease was lost: only `ack_confirmed` reports that.
    RedeliveredAfterStop,
    /// A handler received an event before an earlier event of its key was settled.
    ///
    /// Lanes keep the order within a process, and across a shutdown and a new start. Allowed is a
    /// redelivery of the earlier event after its lease, if that event was published before
    ///
    /// - a process of this consumer ended without an orderly stop, or stopped during a fault that prevents writes, so
    ///   that it could not release the event, or
    /// - the end of a fault that cuts connections to a server. What was on its way to a process is lost with them.
    OutOfOrder,
    /// The attempts of an event did not increase from one delivery to the next.
    ///
    /// `num_delivered` counts up. The runtime counts the retries in an ordered lane in memory only, so there the
    /// attempts of one process are compared. Allowed is the same after a server was killed that had not yet written
    /// the delivery.
    AttemptWentBack,
    /// An event that was given up has no dead letter.
    ///
    /// An event is given up by a fatal error, and by a failure at the last attempt. An event that a later attempt
    /// acked needs none, and neither does one that was lost with a server before it was acknowledged. A letter that was
    /// acknowledged must be stored.
    LetterMissing,
    /// An event has two dead letters of one consumer.
    ///
    /// The key of a letter is its `msg_id`. Allowed is what is allowed for an event that is stored twice.
    LetterTwice,
    /// An event has a dead letter, although no handler gave it up.
    ///
    /// Allowed is an exhausted event: deliveries to killed processes and lost leases are attempts, too.
    LetterWithoutCause,
    /// `health` was true while every publish failed.
    ///
    /// Health means progress. Only answers of a process that was not suspended count, and only while it publishes.
    UnnoticedOutage,
    /// Something was not delivered, settled or answered in time after the last nemesis.
    ///
    /// Every event must be delivered within the recovery bound, counted from the end of the last nemesis or from its
    /// publish, whichever is later. At the end, no consumer has lag or pending events, and no publish is open.
    Late,
    /// A worker ended by itself, or its orderly stop failed.
    ///
    /// Consumers and publishers survive every fault of the list. A stop may fail while a nemesis strikes the backend
    /// or the worker, and if an ack without an answer was sent during an earlier one: the stop tells that it was lost.
    Ended,
}

impl Kind {
    /// Returns the name that reports show.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::SequenceChanged => "sequence-changed",
            Self::SequenceWentBack => "sequence-went-back",
            Self::StoredTwice => "stored-twice",
            Self::Undelivered => "undelivered",
            Self::RedeliveredAfterAck => "redelivered-after-ack",
            Self::RedeliveredAfterStop => "redelivered-after-stop",
            Self::OutOfOrder => "out-of-order",
            Self::AttemptWentBack => "attempt-went-back",
            Self::LetterMissing => "letter-missing",
            Self::LetterTwice => "letter-twice",
            Self::LetterWithoutCause => "letter-without-cause",
            Self::UnnoticedOutage => "unnoticed-outage",
            Self::Late => "late",
            Self::Ended => "ended",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A broken promise, with the lines that prove it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// The promise.
    pub kind: Kind,
    /// What happened to which event.
    pub what: String,
    /// The lines of the journals that show it, in the order of time.
    pub evidence: Vec<Evidence>,
}

/// A line of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Evidence {
    /// Name of the journal.
    pub journal: String,
    /// Number of the line, from 1.
    pub line: usize,
    /// Time since the first line of all journals.
    pub at: Duration,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.what)?;
        for Evidence { journal, line, at } in &self.evidence {
            write!(f, "\n    {journal}.journal:{line} at {:.3} s", at.as_secs_f64())?;
        }
        Ok(())
    }
}
