//! Positions of consumers, and reasons for the end of a subscription.

/// The position to which [`reset_consumer`](super::EventProvider::reset_consumer) moves a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConsumerPosition {
    /// The first retained event.
    First,
    /// The end of the stream: only events published from now on are delivered.
    Last,
    /// The first event with this sequence or a higher one.
    Sequence(u64),
    /// The first event stored at this time or later, in Unix milliseconds.
    Time(u64),
}

/// Reason for the end of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubscriptionEnd {
    /// The subscription or its provider was closed.
    Closed,
    /// The consumer was deleted by [`unsubscribe`](super::EventProvider::unsubscribe) or by an operator at the server.
    /// A new consumer of this name would process the stream from its start policy.
    Deleted,
    /// The backend lost the consumer, and the stream is unchanged: a new consumer can continue after the events
    /// handled.
    Lost,
    /// The stream was deleted, or replaced by another stream of the same name whose sequences start over.
    StreamReplaced,
}
