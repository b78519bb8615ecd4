//! Settling a delivery: what is asked for, and who does it.

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

/// A way to settle a delivery, to keep it, or to give it back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AckKind {
    /// The event was processed: it is not delivered to this consumer again.
    Ack,
    /// The event is to be delivered again after this delay, or after the consumer's backoff for this attempt.
    Nak(Option<Duration>),
    /// The event cannot be processed, for this reason: it is not delivered to this consumer again. Needs the capability
    /// `term`.
    Term(String),
    /// The lease starts anew: the ack wait counts from now. Needs the capability `extend`.
    Extend,
    /// The event is to be delivered again at once, as far as the backend can without counting an attempt. A backend that
    /// cannot treats it as a nak without a delay.
    Release,
}

impl AckKind {
    /// The verb, for errors and logs: `ack`, `nak`, `term`, `extend` or `release`.
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

/// What an [`AckHandler`] is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settlement {
    /// The delivery that it is about.
    pub lease: Lease,
    /// What becomes of that delivery.
    pub kind: AckKind,
    /// Whether the caller waits until the backend has stored it. Otherwise it is enough that it is on its way: a handler may
    /// answer before, and proves it later, at the latest in [`Subscription::flush`](super::Subscription::flush).
    pub is_confirmed: bool,
}

impl Settlement {
    /// Asks for `kind` of the delivery that `lease` names, to be on its way when it is answered.
    pub const fn new(lease: Lease, kind: AckKind) -> Self {
        Self { lease, kind, is_confirmed: false }
    }
}

/// Settles deliveries. Providers implement it, for one delivery or for all of a subscription; users call it through
/// [`Delivery`](super::Delivery) and [`PendingEvent`](super::PendingEvent).
///
/// A settlement that cannot take effect, because the lease has gone to another delivery, is an
/// [`Ack`](EventError::Ack) error, never a silent success. A kind that the provider declares absent is
/// [`Unsupported`](EventError::Unsupported).
///
/// ```
/// use a3s_event::provider::{AckFuture, AckHandler, AckKind, Settlement};
/// use a3s_event::EventError;
///
/// /// For a backend that delivers once: nothing comes again, so that an ack has nothing to do.
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
    /// Does what is asked for. It answers when the backend has confirmed it, or, unless the caller
    /// [waits for that](Settlement::is_confirmed), when nothing but the end of this process, of the connection or of the
    /// backend can keep it from taking effect.
    fn settle(&self, asked: Settlement) -> AckFuture<'_>;
}

/// The answer to a settlement: there already where nothing has to be waited for, which costs no allocation.
#[must_use = "nothing is settled before this is awaited"]
pub struct AckFuture<'a>(Answer<'a>);

enum Answer<'a> {
    Ready(Option<Result<()>>),
    Waits(Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>),
}

impl<'a> AckFuture<'a> {
    /// An answer that has to be waited for.
    pub fn new(settling: impl Future<Output = Result<()>> + Send + 'a) -> Self {
        Self(Answer::Waits(Box::pin(settling)))
    }

    /// An answer that is there.
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
                // Polled again behind its end, which no caller does.
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

/// Settles an event that was acknowledged before it was handed out, by a call of `next` that was dropped.
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

/// Learns what becomes of deliveries.
pub(crate) trait SettlementObserver: Send + Sync {
    /// A delivery was handed out.
    fn begun(&self);

    /// It was asked to be settled, with or without effect.
    fn settled(&self, kind: &AckKind, took_effect: bool);

    /// It was settled or dropped: nobody holds it any more.
    fn ended(&self);
}

/// Tells an observer about one delivery.
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
    /// Settles without waiting for the backend.
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

/// Settles through the two closures of [`PendingEvent::new`](super::PendingEvent::new), of which one can be called once.
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
