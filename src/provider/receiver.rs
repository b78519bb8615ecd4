//! The receive side of every provider: takes events from a backend, buffers them and hands them out.
//!
//! A backend implements [`Fetch`], and [`Receiver`] makes a [`Subscription`] of it. For all providers:
//!
//! - No await point loses an event.
//! - `next` acknowledges an event before it returns it.
//! - A lease that waited in the buffer is restarted.
//! - A record that is not an event is kept or terminated.
//! - A consumer that lagged behind retention receives an error.
//! - Calls that fail are followed by a pause, so that they do not spin.
//! - Events that were not handed out are released.

mod failures;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use self::failures::Failures;
use super::ack::{AckHandler, AckKind, AlreadyAcked, Settlement};
use super::group::{ConsumerConfig, Lease};
use super::support::unsupported;
use super::{Delivery, PendingEvent, Subscription, SubscriptionEnd, UndecodableRecord};
use crate::deadline::After;
use crate::error::{ErrorKind, EventError, Result};
use crate::poison::IgnorePoison;
use crate::types::{Event, ReceivedEvent};

/// Age above which a buffered lease is restarted before its event is handed out.
const FRESH: Duration = Duration::from_millis(50);

/// The operations that a backend implements for one member of a consumer. [`Receiver`] does the rest.
pub trait Fetch: Send + Sync + 'static {
    /// Waits until there are items for this member and appends them to `taken`, oldest first. At the end of the
    /// subscription, returns the reason.
    ///
    /// Must be cancel-safe: an item taken from the backend is in `taken`, or the next call appends it.
    ///
    /// # Errors
    ///
    /// The backend's error; the next call tries again.
    fn fetch(
        &mut self,
        ask: Ask,
        taken: &mut VecDeque<Item>,
    ) -> impl Future<Output = Result<Option<SubscriptionEnd>>> + Send;

    /// Takes the items that are available without waiting, as [`fetch`](Fetch::fetch) does. Returns `true` if it took
    /// any. This is a shortcut for backends that hold events locally; the default leaves everything to `fetch`.
    fn take_now(&mut self, ask: Ask, taken: &mut VecDeque<Item>) -> bool {
        let _ = (ask, taken);
        false
    }

    /// Returns the name of the stream.
    fn stream(&self) -> Arc<str>;

    /// Lets another member take further items. Called after this member took some, for backends that wake one member at
    /// a time.
    fn pass_on(&self) {}

    /// Returns `true` if a lease that was started or restarted at `since` is known to be lost. Its event is then not
    /// handed out.
    fn is_stale(&self, lease: Lease, since: Instant) -> bool {
        let _ = (lease, since);
        false
    }

    /// Leaves the consumer and releases the leases in `unused`, which were not handed out, without waiting. Called
    /// once.
    ///
    /// Does nothing by default, for backends whose members share nothing.
    fn leave(&mut self, unused: Vec<Lease>) {
        let _ = unused;
    }

    /// Leaves as [`leave`](Fetch::leave) does and waits until the backend has confirmed it. If this fails or is
    /// dropped, it or `leave` is called again.
    ///
    /// # Errors
    ///
    /// The backend's error.
    fn close(&mut self, unused: Vec<Lease>) -> impl Future<Output = Result<()>> + Send {
        self.leave(unused);
        async { Ok(()) }
    }

    /// Waits until the backend has stored every settlement made through this member. Does nothing by default, for
    /// backends that confirm each settlement.
    ///
    /// # Errors
    ///
    /// The backend's error.
    fn flush(&self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }

    /// Returns the number of matching retained events that were not yet delivered to this consumer. Requires the
    /// capability `consumer_info`.
    ///
    /// # Errors
    ///
    /// The backend's error.
    fn lag(&self) -> impl Future<Output = Result<u64>> + Send {
        async { Err(unsupported("lag", "unknown")) }
    }

    /// Returns the settings in force, if they are known.
    fn settings(&self) -> Option<ConsumerConfig> {
        None
    }
}

/// A member's request for items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ask {
    /// Maximum number of items in `taken` when the call returns.
    pub max: usize,
    /// If true, the backend should acknowledge the items that it takes where that costs nothing extra. [`Item::acked`]
    /// then tells the receiver that it did.
    pub ack: bool,
    /// If true, the backend leases records that are not events, as it leases events. If false, it terminates them.
    pub keep_undecodable: bool,
}

/// An item that a backend has for a member.
#[derive(Debug)]
#[non_exhaustive]
pub enum Item {
    /// A delivery.
    Leased(Leased),
    /// An error for the member, for instance that it [lagged](EventError::Lagged) behind retention.
    Error(EventError),
}

impl Item {
    /// Creates a delivery of an event that is settled through `handler`.
    pub fn event(lease: Lease, event: Arc<Event>, handler: Arc<dyn AckHandler>) -> Self {
        Self::Leased(Leased { lease, content: Content::Event(event), handler: Some(handler), since: None })
    }

    /// Creates a delivery of an event that was acknowledged when it was taken.
    pub fn acked(lease: Lease, event: Arc<Event>) -> Self {
        Self::Leased(Leased { lease, content: Content::Event(event), handler: None, since: None })
    }

    /// Creates a delivery of a record that is not an event, with the subject under which it is stored.
    pub fn undecodable(
        lease: Lease,
        subject: &str,
        record: UndecodableRecord,
        handler: Arc<dyn AckHandler>,
    ) -> Self {
        let content = Content::Undecodable { subject: subject.into(), record };
        Self::Leased(Leased { lease, content, handler: Some(handler), since: None })
    }

    /// Sets the time at which the lease began, if that was before the item is put into `taken`.
    pub fn leased_since(mut self, since: Instant) -> Self {
        if let Self::Leased(leased) = &mut self {
            leased.since = Some(since);
        }
        self
    }
}

/// A delivery that waits to be handed out.
pub struct Leased {
    lease: Lease,
    content: Content,
    /// `None` if it is already acknowledged.
    handler: Option<Arc<dyn AckHandler>>,
    /// Time at which the lease was started or restarted, if that is not when it was put into `taken`.
    since: Option<Instant>,
}

impl fmt::Debug for Leased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leased").field("lease", &self.lease).finish_non_exhaustive()
    }
}

enum Content {
    Event(Arc<Event>),
    Undecodable { subject: Box<str>, record: UndecodableRecord },
}

/// The next action for a caller.
enum Next {
    HandOut,
    Fetch,
    Settle(Step),
    End,
}

/// An action that the first item needs before it is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Ack,
    Extend,
}

/// A settlement in progress. The mutex is never locked; it makes the future shareable between threads.
type Settling = Mutex<Pin<Box<dyn Future<Output = Result<()>> + Send>>>;

/// A [`Subscription`] on top of a backend's [`Fetch`].
pub struct Receiver<F: Fetch> {
    fetch: F,
    stream: Arc<str>,
    /// Items leased to this member and not handed out.
    taken: VecDeque<Item>,
    /// Time at which the leases of `taken` were started or restarted.
    leased_at: Instant,
    /// The settlement in progress of the first item. It is kept here, so that the call after a dropped one continues it
    /// instead of settling twice.
    settling: Option<(Step, Settling)>,
    keeps_undecodable: bool,
    failures: Failures,
    /// Reason for the end, once the subscription has ended.
    end: Option<SubscriptionEnd>,
    has_left: bool,
}

impl<F: Fetch> Receiver<F> {
    /// Creates a subscription that receives through `fetch`.
    pub fn new(fetch: F) -> Self {
        Self {
            stream: fetch.stream(),
            fetch,
            taken: VecDeque::new(),
            leased_at: Instant::now(),
            settling: None,
            keeps_undecodable: false,
            failures: Failures::default(),
            end: None,
            has_left: false,
        }
    }

    /// Returns the first item as soon as there is one, or `None` at the end.
    async fn take(&mut self, ack: bool) -> Result<Option<Leased>> {
        loop {
            let is_ready = match self.ready_now(1, ack) {
                Some(is_ready) => is_ready?,
                // Boxed, so that the path without waiting does not carry the future that waits.
                None => Box::pin(self.ready(1, ack)).await?,
            };
            if !is_ready {
                return Ok(None);
            }
            if let Some(leased) = self.pop().transpose()? {
                return Ok(Some(leased));
            }
        }
    }

    /// Waits until the first item of `taken` is ready to be handed out. Returns `false` at the end.
    async fn ready(&mut self, max: usize, ack: bool) -> Result<bool> {
        self.failures.pause().await;
        let is_ready = self.prepare(max, ack).await;
        self.failures.note(is_ready.is_err());
        is_ready
    }

    async fn prepare(&mut self, max: usize, ack: bool) -> Result<bool> {
        let mut is_new = false;
        loop {
            match self.next_step(ack, is_new) {
                Next::HandOut => return Ok(true),
                Next::End => return Ok(false),
                Next::Fetch => {
                    self.end = self.fetch.fetch(self.ask(max, ack), &mut self.taken).await?;
                    self.note_fetched(ack);
                    is_new = true;
                }
                Next::Settle(step) => {
                    self.settle_first(step).await?;
                    is_new = false;
                }
            }
        }
    }

    /// Does the same as `ready` without waiting. Returns `None` if it would have to wait.
    fn ready_now(&mut self, max: usize, ack: bool) -> Option<Result<bool>> {
        if self.failures.is_pausing() {
            return None;
        }
        let mut is_new = false;
        loop {
            match self.next_step(ack, is_new) {
                Next::HandOut => {
                    self.failures.note(false);
                    return Some(Ok(true));
                }
                Next::End => return Some(Ok(false)),
                Next::Fetch if self.fetch.take_now(self.ask(max, ack), &mut self.taken) => {
                    self.note_fetched(ack);
                    is_new = true;
                }
                Next::Fetch => return None,
                Next::Settle(step) => {
                    if let Err(error) = self.settle_now(step)? {
                        self.failures.note(true);
                        return Some(Err(error));
                    }
                    is_new = false;
                }
            }
        }
    }

    fn ask(&self, max: usize, ack: bool) -> Ask {
        Ask { max, ack, keep_undecodable: self.keeps_undecodable }
    }

    fn note_fetched(&mut self, ack: bool) {
        self.fetch.pass_on();
        // An item that is handed out at once needs no time.
        if self.taken.len() > 1 || self.settlement_before(ack).is_some() {
            self.leased_at = Instant::now();
        }
    }

    /// Returns the next action. If `is_new` is true, `taken` has not waited here.
    fn next_step(&mut self, ack: bool, is_new: bool) -> Next {
        if !is_new {
            self.drop_stale();
        }
        if self.taken.is_empty() {
            return if self.end.is_some() { Next::End } else { Next::Fetch };
        }
        let waits_since = (!is_new).then_some(self.leased_at);
        match self.settlement_before(ack).or_else(|| self.restart_before(waits_since)) {
            Some(step) => Next::Settle(step),
            None => Next::HandOut,
        }
    }

    fn drop_stale(&mut self) {
        while self.settling.is_none()
            && let Some(Item::Leased(Leased { lease, handler: Some(_), since, .. })) = self.taken.front()
            && self.fetch.is_stale(*lease, since.unwrap_or(self.leased_at))
        {
            self.taken.pop_front();
        }
    }

    /// Returns the settlement that the first item needs regardless of how long it waited.
    fn settlement_before(&self, ack: bool) -> Option<Step> {
        if let Some((step, _)) = &self.settling {
            return Some(*step);
        }
        match self.taken.front()? {
            Item::Leased(Leased { handler: None, .. }) | Item::Error(_) => None,
            Item::Leased(Leased { content: Content::Event(_), .. }) => ack.then_some(Step::Ack),
            Item::Leased(Leased { content: Content::Undecodable { .. }, .. }) => {
                (ack || !self.keeps_undecodable).then_some(Step::Ack)
            }
        }
    }

    /// Returns [`Step::Extend`] if the lease of the first item waited too long here.
    fn restart_before(&self, taken_at: Option<Instant>) -> Option<Step> {
        match self.taken.front()? {
            Item::Leased(Leased { handler: Some(_), since, .. }) => {
                (since.or(taken_at)?.elapsed() > FRESH).then_some(Step::Extend)
            }
            Item::Leased(_) | Item::Error(_) => None,
        }
    }

    /// Starts to acknowledge the first item, or to restart its lease, unless a dropped call already did.
    fn begin_settling(&mut self, step: Step) {
        if self.settling.is_some() {
            return;
        }
        let Some(Item::Leased(Leased { lease, content, handler: Some(handler), since })) = self.taken.front()
        else {
            return;
        };
        let kind = match (step, content) {
            (Step::Extend, _) => AckKind::Extend,
            (Step::Ack, Content::Event(_)) => AckKind::Ack,
            (Step::Ack, Content::Undecodable { record, .. }) => AckKind::Term(record.reason.clone()),
        };
        // Confirmed if another member may have the lease by now, and for records, which must be reported only once.
        let is_confirmed = matches!(content, Content::Undecodable { .. })
            || (since.is_none() && self.leased_at.elapsed() > FRESH);
        let (handler, lease) = (Arc::clone(handler), *lease);
        let settling = Box::pin(async move {
            match handler.settle(Settlement { lease, kind, is_confirmed }).await {
                // A provider that cannot terminate a record acknowledges it.
                Err(EventError::Unsupported { .. }) if step == Step::Ack => {
                    handler.settle(Settlement { lease, kind: AckKind::Ack, is_confirmed }).await
                }
                // Without `extend`, the event is handed out with the rest of its lease.
                Err(EventError::Unsupported { .. }) => Ok(()),
                settled => settled,
            }
        });
        self.settling = Some((step, Mutex::new(settling)));
    }

    /// Acknowledges the first item, or restarts its lease. Returns `None` if it would have to wait.
    fn settle_now(&mut self, step: Step) -> Option<Result<()>> {
        self.begin_settling(step);
        let Some((_, settling)) = &mut self.settling else { return Some(Ok(())) };
        // A call that waits polls it again.
        let polled =
            settling.get_mut().ignore_poison().as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(outcome) = polled else { return None };
        self.settling = None;
        Some(self.note_settled(step, outcome))
    }

    /// Does the same as `settle_now`, and waits for the answer.
    async fn settle_first(&mut self, step: Step) -> Result<()> {
        self.begin_settling(step);
        let Some((_, settling)) = &mut self.settling else { return Ok(()) };
        let outcome = settling.get_mut().ignore_poison().await;
        self.settling = None;
        self.note_settled(step, outcome)
    }

    fn note_settled(&mut self, step: Step, outcome: Result<()>) -> Result<()> {
        match outcome {
            Ok(()) if step == Step::Extend => self.note_restarted(),
            Ok(()) => self.note_acked(),
            // Not confirmed, but perhaps stored: the next call asks again.
            Err(error) if error.is_retryable() => return Err(error),
            // The lease was lost while the event waited here: another delivery has the event, or will have it.
            Err(error) if matches!(error.kind(), ErrorKind::Ack | ErrorKind::Closed) => {
                self.taken.pop_front();
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn note_restarted(&mut self) {
        let now = Instant::now();
        match self.taken.front_mut() {
            Some(Item::Leased(Leased { since: Some(since), .. })) => *since = now,
            _ => self.leased_at = now,
        }
    }

    /// Notes that the first item is settled. An event is still handed out; another record becomes an error for its
    /// reader.
    fn note_acked(&mut self) {
        let Some(front) = self.taken.front_mut() else { return };
        let Item::Leased(first) = front else { return };
        match &mut first.content {
            Content::Event(_) => first.handler = None,
            Content::Undecodable { record, .. } => {
                let told = record.clone().into_error(first.lease.sequence);
                *front = Item::Error(told);
            }
        }
    }
}

impl<F: Fetch> Receiver<F> {
    /// Returns the first item, which [`ready`](Self::ready) has prepared.
    fn pop(&mut self) -> Option<Result<Leased>> {
        Some(match self.taken.pop_front()? {
            Item::Leased(leased) => Ok(leased),
            Item::Error(error) => Err(error),
        })
    }

    fn delivery(&self, leased: Leased) -> Delivery {
        let Leased { lease, content, handler, .. } = leased;
        let (handler, stream) = (handler.unwrap_or_else(|| Arc::new(AlreadyAcked)), Arc::clone(&self.stream));
        match content {
            Content::Event(event) => Delivery::new(event, lease, stream, handler),
            Content::Undecodable { subject, record } => {
                Delivery::undecodable(&subject, record, lease, stream, handler)
            }
        }
    }

    /// Returns the leases of this member that were not handed out.
    fn unused(&self) -> Vec<Lease> {
        // An item whose ack is in progress is not released: the ack may take effect.
        let is_in_doubt = matches!(&self.settling, Some((Step::Ack, _)));
        let unused = |item: &Item| match item {
            Item::Leased(Leased { lease, handler: Some(_), .. }) => Some(*lease),
            Item::Leased(_) | Item::Error(_) => None,
        };
        self.taken.iter().skip(usize::from(is_in_doubt)).filter_map(unused).collect()
    }

    fn forget(&mut self) {
        self.has_left = true;
        self.taken.clear();
        self.settling = None;
    }
}

#[async_trait]
impl<F: Fetch> Subscription for Receiver<F> {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        let Some(leased) = self.take(true).await? else { return Ok(None) };
        match leased.content {
            Content::Event(event) => Ok(Some(ReceivedEvent {
                event: Arc::unwrap_or_clone(event),
                sequence: leased.lease.sequence,
                num_delivered: leased.lease.attempt.into(),
                stream: self.stream.as_ref().to_owned(),
            })),
            Content::Undecodable { record, .. } => Err(record.into_error(leased.lease.sequence)),
        }
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        let leased = self.take(false).await?;
        Ok(leased.map(|leased| self.delivery(leased).into_pending()))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        let leased = self.take(false).await?;
        Ok(leased.map(|leased| self.delivery(leased)))
    }

    async fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Vec<Result<Delivery>>> {
        let mut batch = Vec::new();
        if max == 0 {
            return Some(batch);
        }
        let ready = async {
            match self.ready_now(max, false) {
                Some(is_ready) => is_ready,
                None => Box::pin(self.ready(max, false)).await,
            }
        };
        match tokio::time::timeout_at(Instant::now().after(wait), ready).await {
            // The first item arrived in time, and `fetch` waited for more.
            Err(_elapsed) if !self.taken.is_empty() && self.settlement_before(false).is_none() => {}
            Err(_elapsed) => return Some(batch),
            Ok(Err(error)) => return Some(vec![Err(error)]),
            Ok(Ok(false)) => return None,
            Ok(Ok(true)) => {}
        }
        // The rest arrived with the first item: nothing is awaited after that was taken.
        while batch.len() < max
            && let Some(item) = self.pop()
        {
            let is_error = item.is_err();
            batch.push(item.map(|leased| self.delivery(leased)));
            if is_error || self.settlement_before(false).is_some() {
                break;
            }
        }
        Some(batch)
    }

    fn keep_undecodable(&mut self) -> bool {
        self.keeps_undecodable = true;
        true
    }

    async fn lag(&self) -> Result<u64> {
        self.fetch.lag().await
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        self.fetch.settings()
    }

    fn end(&self) -> Option<SubscriptionEnd> {
        self.end
    }

    async fn flush(&mut self) -> Result<()> {
        self.fetch.flush().await
    }

    async fn close(&mut self) -> Result<()> {
        if self.has_left {
            return Ok(());
        }
        self.end.get_or_insert(SubscriptionEnd::Closed);
        let unused = self.unused();
        self.fetch.close(unused).await?;
        self.forget();
        Ok(())
    }
}

impl<F: Fetch> Drop for Receiver<F> {
    fn drop(&mut self) {
        if !self.has_left {
            let unused = self.unused();
            self.fetch.leave(unused);
        }
    }
}

impl<F: Fetch> fmt::Debug for Receiver<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("stream", &self.stream)
            .field("taken", &self.taken.len())
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
