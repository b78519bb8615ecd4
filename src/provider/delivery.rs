//! Deliveries: an event together with the right to settle it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::ack::{
    AckHandler, AckKind, Acker, ClosureHandler, Observed, SettleFuture, Settlement, SettlementObserver,
};
use super::group::Lease;
use super::support::stand_in;
use crate::error::{EventError, Result};
use crate::types::{Event, ReceivedEvent};

/// One delivery of a shared event. This is the cheapest view, because the payload is never copied.
///
/// Dropping it neither acks nor naks the event: when the lease expires after the ack wait, the event is redelivered.
///
/// ```
/// use a3s_event::{Event, EventProvider, MemoryProvider, Subscription};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let provider = MemoryProvider::default();
/// let mut subscription = provider.subscribe("events.>").await?;
/// provider.publish(&Event::new("events.a", "a", "", "doc", serde_json::json!(1))).await?;
///
/// if let Some(delivery) = subscription.next_delivery().await? {
///     assert_eq!((delivery.sequence(), delivery.num_delivered()), (1, 1));
///     delivery.ack().await?;
/// }
/// # Ok(())
/// # }
/// ```
pub struct Delivery {
    event: Arc<Event>,
    stream: Arc<str>,
    acker: Acker,
    undecodable: Option<Arc<UndecodableRecord>>,
    observed: Option<Observed>,
}

/// A stored record that is not an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UndecodableRecord {
    /// The record as stored.
    pub raw: Vec<u8>,
    /// Reason why it cannot be decoded.
    pub reason: String,
}

impl UndecodableRecord {
    /// Creates a record. For providers.
    pub fn new(raw: Vec<u8>, reason: impl Into<String>) -> Self {
        Self { raw, reason: reason.into() }
    }

    /// Converts the record into an [`Undecodable`](EventError::Undecodable) error with this sequence, for readers that
    /// do not keep such records.
    pub fn into_error(self, sequence: u64) -> EventError {
        EventError::Undecodable { sequence, raw: self.raw, reason: self.reason }
    }
}

impl Delivery {
    /// Creates a delivery. For providers.
    ///
    /// `handler` settles `lease`. One handler can serve all deliveries of a subscription.
    pub fn new(event: Arc<Event>, lease: Lease, stream: Arc<str>, handler: Arc<dyn AckHandler>) -> Self {
        Self { event, stream, acker: Acker { handler, lease }, undecodable: None, observed: None }
    }

    /// Creates the delivery of a record that is not an event. For providers that were asked to
    /// [keep](super::Subscription::keep_undecodable) such records.
    pub fn undecodable(
        subject: &str,
        record: UndecodableRecord,
        lease: Lease,
        stream: Arc<str>,
        handler: Arc<dyn AckHandler>,
    ) -> Self {
        let event = Arc::new(stand_in(&record, subject, lease.sequence));
        Self { undecodable: Some(Arc::new(record)), ..Self::new(event, lease, stream, handler) }
    }

    /// Returns the event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Returns the event, shared with the provider and every other delivery of it.
    pub fn shared_event(&self) -> Arc<Event> {
        Arc::clone(&self.event)
    }

    /// Returns the sequence of the event in its stream.
    pub fn sequence(&self) -> u64 {
        self.acker.lease.sequence
    }

    /// Returns the number of this delivery of the event to this consumer, starting at 1.
    pub fn num_delivered(&self) -> u64 {
        self.acker.lease.attempt.into()
    }

    /// Returns the name of the stream that holds the event.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Returns the stored record if it is not an event. [`event`](Delivery::event) is then a placeholder.
    pub fn undecodable_record(&self) -> Option<&UndecodableRecord> {
        self.undecodable.as_deref()
    }

    /// Converts the delivery into the owned view. Copies the event if it is still shared.
    pub fn into_pending(self) -> PendingEvent {
        let received = ReceivedEvent {
            sequence: self.sequence(),
            num_delivered: self.num_delivered(),
            stream: self.stream.as_ref().to_owned(),
            event: Arc::unwrap_or_clone(self.event),
        };
        PendingEvent { received, acker: self.acker, observed: self.observed }
    }

    /// Converts the delivery into the owned event without settling it, as if it were dropped. Copies the event if it is
    /// still shared.
    pub fn into_received(self) -> ReceivedEvent {
        self.into_pending().received
    }

    /// Acknowledges the event and returns its owned view, as [`Subscription::next`](super::Subscription::next) does.
    ///
    /// # Errors
    ///
    /// As [`ack`](Delivery::ack).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped after the ack was sent, the event is not redelivered.
    pub async fn ack_into_received(self) -> Result<ReceivedEvent> {
        self.settle(AckKind::Ack).await?;
        Ok(self.into_received())
    }

    /// Terminates the event, or acknowledges it if the provider cannot terminate.
    pub(crate) async fn term_or_ack(&self, reason: &str, is_confirmed: bool) -> Result<()> {
        match self.settle_as(AckKind::Term(reason.to_owned()), is_confirmed).await {
            Err(EventError::Unsupported { .. }) => self.settle_as(AckKind::Ack, is_confirmed).await,
            settled => settled,
        }
    }

    /// Replaces the handler of settlements by one around it.
    #[cfg(feature = "testing")]
    pub(crate) fn settled_by(
        mut self,
        around: impl FnOnce(Arc<dyn AckHandler>) -> Arc<dyn AckHandler>,
    ) -> Self {
        self.acker.handler = around(self.acker.handler);
        self
    }

    /// Returns the right to settle this delivery.
    pub(crate) fn acker(&self) -> &Acker {
        &self.acker
    }

    /// Reports the settlement of this delivery to an observer.
    pub(crate) fn observed_by(self, observer: Arc<dyn SettlementObserver>) -> Self {
        Self { observed: Some(Observed::begin(observer)), ..self }
    }

    /// Replaces the event by another form of it, for instance the decrypted one. The delivery stays the same.
    #[must_use]
    pub fn map_event(mut self, event: Arc<Event>) -> Self {
        self.event = event;
        self
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("id", &self.event.id)
            .field("subject", &self.event.subject)
            .field("sequence", &self.sequence())
            .field("num_delivered", &self.num_delivered())
            .field("stream", &self.stream())
            .finish_non_exhaustive()
    }
}

impl From<PendingEvent> for Delivery {
    fn from(pending: PendingEvent) -> Self {
        let ReceivedEvent { event, stream, .. } = pending.received;
        Self {
            event: Arc::new(event),
            stream: stream.into(),
            acker: pending.acker,
            undecodable: None,
            observed: pending.observed,
        }
    }
}

/// An owned event together with the right to settle it.
///
/// Dropping it neither acks nor naks the event: when the lease expires after the ack wait, the event is redelivered.
/// The field `received` can be moved out.
pub struct PendingEvent {
    /// The received event.
    pub received: ReceivedEvent,
    acker: Acker,
    observed: Option<Observed>,
}

impl PendingEvent {
    /// Creates a pending event from two closures, one of which is called at most once. It can be acked and naked, and
    /// refuses other settlements with [`EventError::Unsupported`]. [`with_handler`](PendingEvent::with_handler)
    /// supports all of them.
    pub fn new(
        received: ReceivedEvent,
        ack_fn: impl FnOnce() -> SettleFuture + Send + 'static,
        nak_fn: impl FnOnce() -> SettleFuture + Send + 'static,
    ) -> Self {
        Self::with_handler(received, ClosureHandler::new(Box::new(ack_fn), Box::new(nak_fn)))
    }

    /// Creates a pending event that is settled through `handler`.
    pub fn with_handler(received: ReceivedEvent, handler: impl AckHandler + 'static) -> Self {
        let attempt = u32::try_from(received.num_delivered).unwrap_or(u32::MAX);
        let lease = Lease::new(received.sequence, attempt);
        Self { received, acker: Acker { handler: Arc::new(handler), lease }, observed: None }
    }

    /// Reports the settlement of this event to an observer.
    pub(crate) fn observed_by(self, observer: Arc<dyn SettlementObserver>) -> Self {
        Self { observed: Some(Observed::begin(observer)), ..self }
    }
}

impl fmt::Debug for PendingEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingEvent").field("received", &self.received).finish_non_exhaustive()
    }
}

/// Implements the settlement methods that deliveries and pending events share.
macro_rules! settling {
    ($owner:ident) => {
        impl $owner {
            /// Settles the event by reference.
            pub(crate) async fn settle(&self, kind: AckKind) -> Result<()> {
                self.settle_as(kind, false).await
            }

            /// Settles the event by reference. If `is_confirmed` is true, waits until the backend has stored the
            /// settlement.
            pub(crate) async fn settle_as(&self, kind: AckKind, is_confirmed: bool) -> Result<()> {
                let asked = Settlement { lease: self.acker.lease, kind, is_confirmed };
                self.acker.settle_observed(asked, self.observed.as_ref()).await
            }

            /// Acknowledges the event: it is not redelivered to this consumer.
            ///
            /// Returns while the ack is in flight, before the backend has stored it. This process does not hand the
            /// event out again. If the process, the connection or the backend ends before the ack is stored, the event
            /// is redelivered. [`ack_confirmed`](Self::ack_confirmed) waits until it is stored, and
            /// [`Subscription::flush`](super::Subscription::flush) waits for all acks in flight.
            ///
            /// # Errors
            ///
            /// [`EventError::Ack`] if the lease is known to be lost to another delivery, which stays in force, or the
            /// backend's error. The event is then redelivered.
            pub async fn ack(self) -> Result<()> {
                self.settle(AckKind::Ack).await
            }

            /// Acknowledges the event and waits until the backend has stored the ack. After `Ok` the event is not
            /// redelivered to this consumer, even if the process, the connection or the backend ends.
            ///
            /// # Errors
            ///
            /// As [`ack`](Self::ack); also if the backend does not confirm in time that the ack is stored.
            pub async fn ack_confirmed(self) -> Result<()> {
                self.settle_as(AckKind::Ack, true).await
            }

            /// Requests redelivery after the consumer's backoff for this attempt, or at once if it has none.
            ///
            /// # Errors
            ///
            /// As [`ack`](Self::ack).
            pub async fn nak(self) -> Result<()> {
                self.settle(AckKind::Nak(None)).await
            }

            /// Requests redelivery after `delay`.
            ///
            /// # Errors
            ///
            /// As [`ack`](Self::ack); [`EventError::Unsupported`] without the capability `nak_with_delay`.
            pub async fn nak_after(self, delay: Duration) -> Result<()> {
                self.settle(AckKind::Nak(Some(delay))).await
            }

            /// Terminates the event: it cannot be processed and is not redelivered.
            ///
            /// # Errors
            ///
            /// As [`ack`](Self::ack); [`EventError::Unsupported`] without the capability `term`.
            pub async fn term(self, reason: &str) -> Result<()> {
                self.settle(AckKind::Term(reason.to_owned())).await
            }

            /// Restarts the lease: the ack wait counts from now.
            ///
            /// # Errors
            ///
            /// As [`ack`](Self::ack); [`EventError::Unsupported`] without the capability `extend`.
            pub async fn extend(&self) -> Result<()> {
                self.settle(AckKind::Extend).await
            }

            /// Requests redelivery at once, without counting an attempt if the backend supports that.
            ///
            /// # Errors
            ///
            /// As [`ack`](Self::ack).
            pub async fn release(self) -> Result<()> {
                self.settle(AckKind::Release).await
            }
        }
    };
}

settling!(Delivery);
settling!(PendingEvent);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn received() -> ReceivedEvent {
        ReceivedEvent {
            event: Event::new("events.a", "a", "", "", serde_json::json!(null)),
            sequence: 3,
            num_delivered: 1,
            stream: "s".into(),
        }
    }

    fn counting(acks: &Arc<AtomicU32>, naks: &Arc<AtomicU32>) -> PendingEvent {
        let (acks, naks) = (Arc::clone(acks), Arc::clone(naks));
        PendingEvent::new(
            received(),
            move || {
                Box::pin(async move {
                    acks.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
            },
            move || {
                Box::pin(async move {
                    naks.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
            },
        )
    }

    #[tokio::test]
    async fn closures_are_called_for_their_verb_only_and_dropping_calls_none() {
        let (acks, naks) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        drop(counting(&acks, &naks));
        counting(&acks, &naks).ack().await.unwrap();
        counting(&acks, &naks).nak().await.unwrap();
        Delivery::from(counting(&acks, &naks)).ack().await.unwrap();
        assert_eq!((acks.load(Ordering::SeqCst), naks.load(Ordering::SeqCst)), (2, 1));
    }

    #[tokio::test]
    async fn a_failing_ack_closure_surfaces() {
        let pending = PendingEvent::new(
            received(),
            || Box::pin(async { Err(EventError::Ack("no".into())) }),
            || Box::pin(async { Ok(()) }),
        );
        assert!(matches!(pending.ack().await, Err(EventError::Ack(_))));
    }

    #[tokio::test]
    async fn closures_refuse_what_they_cannot_do() {
        let counts = Arc::new(AtomicU32::new(0));
        let pending = counting(&counts, &counts);
        assert!(matches!(pending.extend().await, Err(EventError::Unsupported { .. })));
        assert!(matches!(
            pending.nak_after(Duration::from_secs(1)).await,
            Err(EventError::Unsupported { .. })
        ));
        assert!(matches!(counting(&counts, &counts).term("x").await, Err(EventError::Unsupported { .. })));
        assert_eq!(counts.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn received_can_be_moved_out() {
        let counts = Arc::new(AtomicU32::new(0));
        let event: ReceivedEvent = counting(&counts, &counts).received;
        assert_eq!(event.sequence, 3);
    }
}
