//! Where a consumer goes on, and why a subscription ends.

/// The position to which [`reset_consumer`](super::EventProvider::reset_consumer) moves a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConsumerPosition {
    /// The first retained event.
    First,
    /// Behind the newest stored event: only what is published from now on is delivered.
    Last,
    /// The first event with this sequence or a higher one.
    Sequence(u64),
    /// The first event stored at this time or later, in Unix milliseconds.
    Time(u64),
}

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubscriptionEnd {
    /// The subscription or its provider was closed.
    Closed,
    /// Someone deleted the consumer: [`unsubscribe`](super::EventProvider::unsubscribe), or an operator at the server.
    /// Opening it again would handle the stream from its start policy.
    Deleted,
    /// The backend lost the consumer, and the stream is the same: a new consumer can go on behind what was handled.
    Lost,
    /// The stream was deleted or replaced by another one of the same name, whose sequences start again.
    StreamReplaced,
}
