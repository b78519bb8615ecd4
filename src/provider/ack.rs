//! Settlement of deliveries: the request, and the handler that carries it out.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use super::group::Lease;
use super::support::unsupported;
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;

/// A way to settle, extend or release a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AckKind {
    /// Acknowledges the event: it was processed and is not redelivered to this consumer.
    Ack,
    /// Requests redelivery after this delay, or after the consumer's backoff for this attempt if `None`.
    Nak(Option<Duration>),
    /// Terminates the event for this reason: it cannot be processed and is not redelivered to this consumer. Requires
    /// the capability `term`.
    Term(String),
    /// Restarts the lease: the ack wait counts from now. Requires the capability `extend`.
    Extend,
    /// Requests redelivery at once, without counting an attempt if the backend supports that. A backend that does not
    /// support it uses a nak without a delay.
    Release,
}

impl AckKind {
    /// Returns the verb for errors and logs: `ack`, `nak`, `term`, `extend` or `release`.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Nak(_) => "nak",
            Self::Term(_) => "term",
            Self::Extend => "extend",
            Self::Release => "release",
        }
    }
}

/// A request to an [`AckHandler`]: a delivery, and how to settle it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settlement {
    /// Lease of the delivery.
    pub lease: Lease,
    /// Kind of the settlement.
    pub kind: AckKind,
    /// If true, the caller waits until the backend has stored the settlement. If false, the handler may answer while
    /// the settlement is in flight. It must then confirm it later, at the latest in
    /// [`Subscription::flush`](super::Subscription::flush).
    pub is_confirmed: bool,
}

impl Settlement {
    /// Creates an unconfirmed settlement of the delivery that `lease` names: the handler may answer while it is in
    /// flight.
    pub const fn new(lease: Lease, kind: AckKind) -> Self {
        Self { lease, kind, is_confirmed: false }
    }
}

/// Settles deliveries. Providers implement it, for one delivery or for all deliveries of a subscription. Users call it
/// through [`Delivery`](super::Delivery) and [`PendingEvent`](super::PendingEvent).
///
/// A settlement that cannot take effect, because another delivery has the lease, must fail with an
/// [`Ack`](EventError::Ack) error. A kind that the provider declares absent fails with
/// [`Unsupported`](EventError::Unsupported).
///
/// ```
/// use a3s_event::provider::{AckFuture, AckHandler, AckKind, Settlement};
/// use a3s_event::EventError;
///
/// /// Handler of a backend without redelivery: an ack has nothing to do.
/// struct DeliversOnce;
///
/// impl AckHandler for DeliversOnce {
///     fn settle(&self, asked: Settlement) -> AckFuture<'_> {
///         AckFuture::ready(match asked.kind {
///             AckKind::Ack => Ok(()),
///             other => Err(EventError::Unsupported { option: other.verb().into(), provider: "once".into() }),
///         })
///     }
/// }
/// ```
pub trait AckHandler: Send + Sync {
    /// Settles a delivery and returns when the backend has confirmed it.
    ///
    /// Without [`is_confirmed`](Settlement::is_confirmed) it may return while the settlement is in flight. From then
    /// on, only the end of this process, of the connection or of the backend may prevent it from taking effect.
    fn settle(&self, asked: Settlement) -> AckFuture<'_>;
}

/// The result of a settlement. It needs no allocation if the result is available at once.
#[must_use = "nothing is settled before this is awaited"]
pub struct AckFuture<'a>(Answer<'a>);

enum Answer<'a> {
    Ready(Option<Result<()>>),
    Waits(Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>),
}

impl<'a> AckFuture<'a> {
    /// Creates an answer that completes with this future.
    pub fn new(settling: impl Future<Output = Result<()>> + Send + 'a) -> Self {
        Self(Answer::Waits(Box::pin(settling)))
    }

    /// Creates an answer that is available at once.
    pub fn ready(settled: Result<()>) -> Self {
        Self(Answer::Ready(Some(settled)))
    }
}

impl Future for AckFuture<'_> {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.0 {
            Answer::Ready(settled) => match settled.take() {
                Some(settled) => Poll::Ready(settled),
                // Polled after completion, which no caller does.
                None => Poll::Pending,
            },
            Answer::Waits(settling) => settling.as_mut().poll(cx),
        }
    }
}

impl fmt::Debug for AckFuture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AckFuture").field("is_ready", &matches!(self.0, Answer::Ready(_))).finish()
    }
}

/// Settles an event that a dropped call of `next` has already acknowledged.
pub(crate) struct AlreadyAcked;

impl AckHandler for AlreadyAcked {
    fn settle(&self, asked: Settlement) -> AckFuture<'_> {
        AckFuture::ready(match asked.kind {
            AckKind::Nak(_) | AckKind::Release => {
                Err(EventError::Ack("the event was acknowledged by an earlier call of next".to_owned()))
            }
            AckKind::Ack | AckKind::Term(_) | AckKind::Extend => Ok(()),
        })
    }
}

/// Observes deliveries and their settlements.
pub(crate) trait SettlementObserver: Send + Sync {
    /// Called when a delivery was handed out.
    fn begun(&self);

    /// Called when a settlement was requested, with or without effect.
    fn settled(&self, kind: &AckKind, took_effect: bool);

    /// Called when the delivery was settled or dropped.
    fn ended(&self);
}

/// Reports one delivery to an observer.
pub(super) struct Observed(Arc<dyn SettlementObserver>);

impl Observed {
    pub(super) fn begin(observer: Arc<dyn SettlementObserver>) -> Self {
        observer.begun();
        Self(observer)
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.0.ended();
    }
}

/// The right to settle one delivery.
#[derive(Clone)]
pub(crate) struct Acker {
    pub(super) handler: Arc<dyn AckHandler>,
    pub(crate) lease: Lease,
}

impl Acker {
    /// Settles without waiting for the backend to store it.
    pub(crate) async fn settle(&self, kind: AckKind) -> Result<()> {
        self.handler.settle(Settlement::new(self.lease, kind)).await
    }

    pub(super) async fn settle_observed(&self, asked: Settlement, observed: Option<&Observed>) -> Result<()> {
        let Some(Observed(observer)) = observed else { return self.handler.settle(asked).await };
        let kind = asked.kind.clone();
        let settled = self.handler.settle(asked).await;
        observer.settled(&kind, settled.is_ok());
        settled
    }
}

pub(super) type SettleFuture = Pin<Box<dyn Future<Output = Result<()>> + Send>>;
type Closure = Box<dyn FnOnce() -> SettleFuture + Send>;

/// Settles through the two closures of [`PendingEvent::new`](super::PendingEvent::new), one of which can be called
/// once.
pub(super) struct ClosureHandler(Mutex<Option<(Closure, Closure)>>);

impl ClosureHandler {
    pub(super) fn new(ack: Closure, nak: Closure) -> Self {
        Self(Mutex::new(Some((ack, nak))))
    }

    fn call(&self, choose: impl FnOnce((Closure, Closure)) -> Closure) -> AckFuture<'_> {
        match self.0.lock().ignore_poison().take() {
            Some(closures) => AckFuture(Answer::Waits(choose(closures)())),
            None => AckFuture::ready(Err(EventError::Ack("the delivery was already settled".to_owned()))),
        }
    }
}

impl AckHandler for ClosureHandler {
    fn settle(&self, asked: Settlement) -> AckFuture<'_> {
        match asked.kind {
            AckKind::Ack => self.call(|(ack, _nak)| ack),
            AckKind::Nak(None | Some(Duration::ZERO)) | AckKind::Release => self.call(|(_ack, nak)| nak),
            AckKind::Nak(Some(_)) => AckFuture::ready(Err(unsupported("nak_with_delay", "unknown"))),
            kind @ (AckKind::Term(_) | AckKind::Extend) => {
                AckFuture::ready(Err(unsupported(kind.verb(), "unknown")))
            }
        }
    }
}
