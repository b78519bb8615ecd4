//! What a subscription hands out: an event together with the right to settle it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::consumer::Lease;
use super::support::{stand_in, unsupported};
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::types::{Event, ReceivedEvent};

/// Settles one delivery. Providers implement it; users call it through [`Delivery`] and [`PendingEvent`].
///
/// A settlement that cannot take effect, because the lease has gone to another delivery, is an error, never a silent
/// success.
#[async_trait]
pub trait AckHandler: Send + Sync {
    /// Settles the event: it is not delivered to this consumer again.
    async fn ack(&self) -> Result<()>;

    /// Asks for redelivery after `delay`, or after the consumer's backoff for this attempt when it is `None`.
    async fn nak(&self, delay: Option<Duration>) -> Result<()>;

    /// Settles the event without redelivery because it cannot be processed. Needs the capability `term`.
    async fn term(&self, reason: &str) -> Result<()> {
        let _ = reason;
        Err(unsupported("term", "unknown"))
    }

    /// Restarts the lease from now. Needs the capability `extend`.
    async fn extend(&self) -> Result<()> {
        Err(unsupported("extend", "unknown"))
    }

    /// Gives the event back for another delivery at once, as far as the backend can without counting an attempt.
    async fn release(&self) -> Result<()> {
        self.nak(Some(Duration::ZERO)).await
    }
}

/// Settles deliveries at once: the form for providers that keep their consumers in memory, where one holder serves all
/// deliveries and nothing waits. The promises are those of [`AckHandler`].
pub trait LeaseHolder: Send + Sync {
    /// Name of the stream that the leased events come from.
    fn stream(&self) -> &str;

    /// As [`AckHandler::ack`].
    ///
    /// # Errors
    ///
    /// [`EventError::Ack`] for a stale lease, as all methods here.
    fn ack(&self, lease: Lease) -> Result<()>;

    /// As [`AckHandler::nak`].
    ///
    /// # Errors
    ///
    /// As [`ack`](LeaseHolder::ack), and [`EventError::Closed`] when the consumer is gone.
    fn nak(&self, lease: Lease, delay: Option<Duration>) -> Result<()>;

    /// As [`AckHandler::term`].
    ///
    /// # Errors
    ///
    /// As [`ack`](LeaseHolder::ack).
    fn term(&self, lease: Lease, reason: &str) -> Result<()>;

    /// As [`AckHandler::extend`].
    ///
    /// # Errors
    ///
    /// As [`ack`](LeaseHolder::ack).
    fn extend(&self, lease: Lease) -> Result<()>;

    /// As [`AckHandler::release`].
    ///
    /// # Errors
    ///
    /// As [`ack`](LeaseHolder::ack).
    fn release(&self, lease: Lease) -> Result<()>;
}

/// The ways to settle a delivery, and the one to give it back.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Settle {
    Ack,
    Nak,
    Term,
    Release,
}

/// Learns what becomes of deliveries.
pub(crate) trait SettlementObserver: Send + Sync {
    /// A delivery was handed out.
    fn begun(&self);

    /// It was asked to be settled, with or without effect.
    fn settled(&self, how: Settle, took_effect: bool);

    /// It was settled or dropped: nobody holds it any more.
    fn ended(&self);
}

/// Tells an observer about one delivery.
struct Observed(Arc<dyn SettlementObserver>);

impl Drop for Observed {
    fn drop(&mut self) {
        self.0.ended();
    }
}

/// Who settles a delivery, and who learns about it.
pub(crate) struct Settlement {
    route: Route,
    observed: Option<Observed>,
}

#[derive(Clone)]
enum Route {
    Handler { handler: Arc<dyn AckHandler>, stream: Arc<str> },
    Holder { holder: Arc<dyn LeaseHolder>, lease: Lease },
}

impl Route {
    async fn extend(&self) -> Result<()> {
        match self {
            Self::Handler { handler, .. } => handler.extend().await,
            Self::Holder { holder, lease } => holder.extend(*lease),
        }
    }
}

/// The lease of a delivery, apart from it.
pub(crate) struct LeaseRef(Route);

impl LeaseRef {
    pub(crate) async fn extend(&self) -> Result<()> {
        self.0.extend().await
    }
}

impl Settlement {
    fn handler(handler: Arc<dyn AckHandler>, stream: Arc<str>) -> Self {
        Self { route: Route::Handler { handler, stream }, observed: None }
    }

    fn observe(&mut self, observer: Arc<dyn SettlementObserver>) {
        observer.begun();
        self.observed = Some(Observed(observer));
    }

    fn tell(&self, how: Settle, settled: Result<()>) -> Result<()> {
        if let Some(Observed(observer)) = &self.observed {
            observer.settled(how, settled.is_ok());
        }
        settled
    }

    fn stream(&self) -> &str {
        match &self.route {
            Route::Handler { stream, .. } => stream,
            Route::Holder { holder, .. } => holder.stream(),
        }
    }

    pub(crate) async fn ack(&self) -> Result<()> {
        let settled = match &self.route {
            Route::Handler { handler, .. } => handler.ack().await,
            Route::Holder { holder, lease } => holder.ack(*lease),
        };
        self.tell(Settle::Ack, settled)
    }

    pub(crate) async fn nak(&self, delay: Option<Duration>) -> Result<()> {
        let settled = match &self.route {
            Route::Handler { handler, .. } => handler.nak(delay).await,
            Route::Holder { holder, lease } => holder.nak(*lease, delay),
        };
        self.tell(Settle::Nak, settled)
    }

    pub(crate) async fn term(&self, reason: &str) -> Result<()> {
        let settled = match &self.route {
            Route::Handler { handler, .. } => handler.term(reason).await,
            Route::Holder { holder, lease } => holder.term(*lease, reason),
        };
        self.tell(Settle::Term, settled)
    }

    pub(crate) async fn extend(&self) -> Result<()> {
        self.route.extend().await
    }

    pub(crate) fn lease(&self) -> LeaseRef {
        LeaseRef(self.route.clone())
    }

    pub(crate) async fn release(&self) -> Result<()> {
        let settled = match &self.route {
            Route::Handler { handler, .. } => handler.release().await,
            Route::Holder { holder, lease } => holder.release(*lease),
        };
        self.tell(Settle::Release, settled)
    }
}

/// One delivery of a shared event: the cheapest view, because the payload is never copied.
///
/// Dropping it is neither an ack nor a nak: the lease decides, and the event is delivered again after the ack wait.
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
    sequence: u64,
    num_delivered: u64,
    settlement: Settlement,
    undecodable: Option<Arc<UndecodableRecord>>,
}

/// A stored record that is not an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UndecodableRecord {
    /// The record as stored.
    pub raw: Vec<u8>,
    /// Why it cannot be decoded.
    pub reason: String,
}

impl UndecodableRecord {
    /// Puts a record together. For providers.
    pub fn new(raw: Vec<u8>, reason: impl Into<String>) -> Self {
        Self { raw, reason: reason.into() }
    }
}

impl Delivery {
    /// Puts a delivery together. For providers.
    pub fn new(
        event: Arc<Event>,
        sequence: u64,
        num_delivered: u64,
        stream: Arc<str>,
        handler: impl AckHandler + 'static,
    ) -> Self {
        Self::with_shared_handler(event, sequence, num_delivered, stream, Arc::new(handler))
    }

    /// As [`new`](Delivery::new), settled through a handler that others hold too.
    pub(crate) fn with_shared_handler(
        event: Arc<Event>,
        sequence: u64,
        num_delivered: u64,
        stream: Arc<str>,
        handler: Arc<dyn AckHandler>,
    ) -> Self {
        let settlement = Settlement::handler(handler, stream);
        Self { event, sequence, num_delivered, settlement, undecodable: None }
    }

    /// The delivery of a record that is not an event. For providers, once they were asked to
    /// [keep](super::Subscription::keep_undecodable) such records.
    pub fn undecodable(
        subject: &str,
        record: UndecodableRecord,
        sequence: u64,
        num_delivered: u64,
        stream: Arc<str>,
        handler: impl AckHandler + 'static,
    ) -> Self {
        let event = Arc::new(stand_in(&record, subject, sequence));
        let delivery = Self::new(event, sequence, num_delivered, stream, handler);
        Self { undecodable: Some(Arc::new(record)), ..delivery }
    }

    /// Puts a delivery together that is settled through its consumer's holder. For providers.
    pub fn with_lease(event: Arc<Event>, lease: Lease, holder: Arc<dyn LeaseHolder>) -> Self {
        let settlement = Settlement { route: Route::Holder { holder, lease }, observed: None };
        Self {
            event,
            sequence: lease.sequence,
            num_delivered: lease.attempt.into(),
            settlement,
            undecodable: None,
        }
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The event, shared with the provider and every other delivery of it.
    pub fn shared_event(&self) -> Arc<Event> {
        Arc::clone(&self.event)
    }

    /// Sequence of the event in its stream.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Which delivery this is to this consumer, starting at 1.
    pub fn num_delivered(&self) -> u64 {
        self.num_delivered
    }

    /// Name of the stream that holds the event.
    pub fn stream(&self) -> &str {
        self.settlement.stream()
    }

    /// The record itself, when it is not an event: [`event`](Delivery::event) is then only a stand-in for it.
    pub fn undecodable_record(&self) -> Option<&UndecodableRecord> {
        self.undecodable.as_deref()
    }

    /// The owned view; copies the event when it is still shared.
    pub fn into_pending(self) -> PendingEvent {
        let received = ReceivedEvent {
            event: Arc::unwrap_or_clone(self.event),
            sequence: self.sequence,
            num_delivered: self.num_delivered,
            stream: self.settlement.stream().to_owned(),
        };
        PendingEvent { received, settlement: self.settlement }
    }

    /// The owned event, leaving the settlement behind: the lease decides. Copies the event when it is still shared.
    pub fn into_received(self) -> ReceivedEvent {
        self.into_pending().received
    }

    /// Acknowledges the event and keeps its owned view: what [`Subscription::next`](super::Subscription::next) hands out.
    ///
    /// # Errors
    ///
    /// As [`ack`](Delivery::ack).
    ///
    /// # Cancel safety
    ///
    /// Once the ack was sent, an event whose future is dropped does not come again. A [`LeaseHolder`] acks without waiting.
    pub async fn ack_into_received(self) -> Result<ReceivedEvent> {
        self.settlement.ack().await?;
        Ok(self.into_received())
    }

    /// Ends an event for good: providers that cannot terminate can acknowledge.
    pub(crate) async fn term_or_ack(&self, reason: &str) -> Result<()> {
        match self.settlement.term(reason).await {
            Err(EventError::Unsupported { .. }) => self.settlement.ack().await,
            settled => settled,
        }
    }

    pub(crate) fn settlement(&self) -> &Settlement {
        &self.settlement
    }

    /// Lets an observer learn what becomes of this delivery.
    pub(crate) fn observed_by(mut self, observer: Arc<dyn SettlementObserver>) -> Self {
        self.settlement.observe(observer);
        self
    }

    /// The same delivery of another form of the event, for instance its decrypted one.
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
            .field("sequence", &self.sequence)
            .field("num_delivered", &self.num_delivered)
            .field("stream", &self.stream())
            .finish_non_exhaustive()
    }
}

impl From<PendingEvent> for Delivery {
    fn from(pending: PendingEvent) -> Self {
        let ReceivedEvent { event, sequence, num_delivered, .. } = pending.received;
        Self {
            event: Arc::new(event),
            sequence,
            num_delivered,
            settlement: pending.settlement,
            undecodable: None,
        }
    }
}

/// An owned event together with the right to settle it.
///
/// Dropping it is neither an ack nor a nak: the lease decides, and the event is delivered again after the ack wait.
/// The field `received` can be moved out.
pub struct PendingEvent {
    /// The event as it arrived.
    pub received: ReceivedEvent,
    settlement: Settlement,
}

type SettleFuture = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

impl PendingEvent {
    /// Makes a pending event from two closures, one of which is called at most once. It can be acked and naked, and
    /// refuses the rest with [`EventError::Unsupported`]; [`with_handler`](PendingEvent::with_handler) is the full form.
    pub fn new(
        received: ReceivedEvent,
        ack_fn: impl FnOnce() -> SettleFuture + Send + 'static,
        nak_fn: impl FnOnce() -> SettleFuture + Send + 'static,
    ) -> Self {
        let closures = Closures { ack: Box::new(ack_fn), nak: Box::new(nak_fn) };
        Self::with_handler(received, ClosureHandler { closures: Mutex::new(Some(closures)) })
    }

    /// Makes a pending event that is settled through `handler`.
    pub fn with_handler(received: ReceivedEvent, handler: impl AckHandler + 'static) -> Self {
        let stream = received.stream.as_str().into();
        Self { received, settlement: Settlement::handler(Arc::new(handler), stream) }
    }
}

impl PendingEvent {
    /// As [`Delivery::observed_by`].
    pub(crate) fn observed_by(mut self, observer: Arc<dyn SettlementObserver>) -> Self {
        self.settlement.observe(observer);
        self
    }
}

impl fmt::Debug for PendingEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingEvent").field("received", &self.received).finish_non_exhaustive()
    }
}

/// The verbs that deliveries and pending events share.
macro_rules! settling {
    ($owner:ident) => {
        impl $owner {
            /// Settles the event: it is not delivered to this consumer again.
            ///
            /// # Errors
            ///
            /// [`EventError::Ack`] when the lease was lost to another delivery (that delivery stays in force), or the backend's
            /// error. The event is then delivered again.
            pub async fn ack(self) -> Result<()> {
                self.settlement.ack().await
            }

            /// Asks for redelivery after the consumer's backoff for this attempt; at once when it has none.
            ///
            /// # Errors
            ///
            /// As [`ack`](Self::ack).
            pub async fn nak(self) -> Result<()> {
                self.settlement.nak(None).await
            }

            /// Asks for redelivery after `delay`.
            ///
            /// # Errors
            ///
            /// As [`ack`](Self::ack); [`EventError::Unsupported`] without the capability `nak_with_delay`.
            pub async fn nak_after(self, delay: Duration) -> Result<()> {
                self.settlement.nak(Some(delay)).await
            }

            /// Settles the event without redelivery because it cannot be processed.
            ///
            /// # Errors
            ///
            /// As [`ack`](Self::ack); [`EventError::Unsupported`] without the capability `term`.
            pub async fn term(self, reason: &str) -> Result<()> {
                self.settlement.term(reason).await
            }

            /// Restarts the lease: the ack wait counts from now.
            ///
            /// # Errors
            ///
            /// As [`ack`](Self::ack); [`EventError::Unsupported`] without the capability `extend`.
            pub async fn extend(&self) -> Result<()> {
                self.settlement.extend().await
            }

            /// Gives the event back for another delivery at once, as far as the backend can without counting an attempt.
            ///
            /// # Errors
            ///
            /// As [`ack`](Self::ack).
            pub async fn release(self) -> Result<()> {
                self.settlement.release().await
            }
        }
    };
}

settling!(Delivery);
settling!(PendingEvent);

struct Closures {
    ack: Box<dyn FnOnce() -> SettleFuture + Send>,
    nak: Box<dyn FnOnce() -> SettleFuture + Send>,
}

/// Settles through the two closures of [`PendingEvent::new`], of which one can be called once.
struct ClosureHandler {
    closures: Mutex<Option<Closures>>,
}

impl ClosureHandler {
    fn take(&self) -> Result<Closures> {
        let taken = self.closures.lock().ignore_poison().take();
        taken.ok_or_else(|| EventError::Ack("the delivery was already settled".to_owned()))
    }
}

#[async_trait]
impl AckHandler for ClosureHandler {
    async fn ack(&self) -> Result<()> {
        let settle = (self.take()?.ack)();
        settle.await
    }

    async fn nak(&self, delay: Option<Duration>) -> Result<()> {
        if delay.is_some_and(|delay| !delay.is_zero()) {
            return Err(unsupported("nak_with_delay", "unknown"));
        }
        let settle = (self.take()?.nak)();
        settle.await
    }
}

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
