//! Subscriptions and deliveries that break one promise.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use a3s_event::provider::group::{ConsumerConfig, Lease};
use a3s_event::provider::{AckFuture, Settlement, SubscriptionEnd};
use a3s_event::subject::subject_matches;
use a3s_event::{
    AckHandler, AckKind, Capabilities, DeliverPolicy, Delivery, ErrorKind, Event, EventError, PendingEvent,
    ReceivedEvent, Result, SubscribeOptions, Subscription,
};
use async_trait::async_trait;
use tokio::time::Instant;

use crate::defect::Defect;
use crate::provider::{State, unsupported};

/// Marks an event that stands for a record which cannot be decoded; the payload holds its bytes.
pub(crate) const UNDECODABLE: &str = "undecodable";

/// Soon enough for what may take its time, too late for what must not.
const LATE: Duration = Duration::from_secs(9);

/// What the subscriptions of a provider share.
#[derive(Default)]
pub(crate) struct Kept {
    /// Subscriptions that should have been closed.
    pub(crate) subscriptions: Mutex<Vec<Box<dyn Subscription>>>,
    pub(crate) settled_up_to: AtomicU64,
    blocked_until: Mutex<Option<Instant>>,
    /// The newest delivery of each sequence.
    newest: Mutex<HashMap<u64, Arc<Slot>>>,
    someone_waits: AtomicBool,
    someone_ended: AtomicBool,
}

/// A delivery of the inner provider until it is settled.
type Slot = tokio::sync::Mutex<Option<Delivery>>;

pub(crate) struct FaultySubscription {
    inner: Option<Box<dyn Subscription>>,
    defect: Option<Defect>,
    capabilities: Capabilities,
    state: Arc<State>,
    durable: Option<String>,
    /// A further member of a durable, for the defect that serves one only.
    standby: bool,
    filter: String,
    start_time: Option<u64>,
    max_ack_pending: usize,
    handed_out: usize,
    prefetched: VecDeque<Delivery>,
    closed: Arc<AtomicBool>,
    said_end: bool,
    stuck: bool,
    /// Whether the delivery to hand out next was waited for.
    waited: bool,
}

/// Polls a future once; it is dropped when it is not ready.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

async fn never<T>() -> T {
    std::future::pending().await
}

impl FaultySubscription {
    pub(crate) fn new(
        inner: Box<dyn Subscription>,
        defect: Option<Defect>,
        capabilities: Capabilities,
        state: Arc<State>,
        durable: Option<String>,
        filter: &str,
        options: &SubscribeOptions,
    ) -> Self {
        let mut standby = false;
        if let Some(name) = &durable {
            let mut open = state.open.lock().unwrap();
            let members = open.entry(name.clone()).or_default();
            standby = *members > 0 && defect == Some(Defect::ServesOneMemberOnly);
            *members += 1;
        }
        let start_time = match options.deliver_policy {
            DeliverPolicy::ByStartTime { timestamp } if defect == Some(Defect::StartsByEventTimestamp) => {
                Some(timestamp)
            }
            _ => None,
        };
        Self {
            inner: Some(inner),
            defect,
            capabilities,
            state,
            durable,
            standby,
            filter: filter.to_owned(),
            start_time,
            max_ack_pending: options
                .max_ack_pending
                .and_then(|max| usize::try_from(max).ok())
                .unwrap_or(1_000),
            handed_out: 0,
            prefetched: VecDeque::new(),
            closed: Arc::default(),
            said_end: false,
            stuck: false,
            waited: false,
        }
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn inner(&mut self) -> &mut dyn Subscription {
        &mut **self.inner.as_mut().expect("it is there until the drop")
    }

    /// The next delivery of the inner provider, with the defects of fetching and waiting.
    async fn take(&mut self) -> Result<Option<Delivery>> {
        if let Some(delivery) = self.prefetched.pop_front() {
            return Ok(Some(delivery));
        }
        match self.defect {
            Some(Defect::Reorders | Defect::LeaseRunsFromPrefetch) => self.take_two().await,
            Some(Defect::LosesWakeups) => match now(self.inner().next_delivery()) {
                Some(answer) => answer,
                None => never().await,
            },
            Some(Defect::Polls) => loop {
                if let Some(answer) = now(self.inner().next_delivery()) {
                    return answer;
                }
                tokio::time::sleep(LATE).await;
            },
            Some(Defect::StrandsWaiters) => self.wait_in_turn().await,
            _ => self.inner().next_delivery().await,
        }
    }

    async fn take_two(&mut self) -> Result<Option<Delivery>> {
        let first = self.inner().next_delivery().await?;
        let Some(Ok(Some(second))) = now(self.inner().next_delivery()) else {
            return Ok(first);
        };
        if self.has(Defect::Reorders) {
            self.prefetched.extend(first);
            return Ok(Some(second));
        }
        self.prefetched.push_back(second);
        Ok(first)
    }

    /// Only one member waits at a time, and one that gives up waiting does not say so.
    async fn wait_in_turn(&mut self) -> Result<Option<Delivery>> {
        if self.state.kept.someone_waits.swap(true, Ordering::SeqCst) {
            return never().await;
        }
        let answer = self.inner().next_delivery().await;
        self.state.kept.someone_waits.store(false, Ordering::SeqCst);
        answer
    }

    /// Only the first subscription to learn of the end returns.
    async fn end_if_first(&self) {
        if self.state.kept.someone_ended.swap(true, Ordering::SeqCst) {
            never::<()>().await;
        }
    }

    /// Whether the consumer wants the event at all.
    fn wants(&self, delivery: &Delivery) -> bool {
        let event = delivery.event();
        let below = self.filter.strip_suffix(".>");
        match self.defect {
            Some(Defect::RestMatchesNone) => {
                subject_matches(&event.subject, &self.filter) || below == Some(event.subject.as_str())
            }
            Some(Defect::LiteralMatchesBelow) => {
                subject_matches(&event.subject, &self.filter)
                    || event.subject.strip_prefix(&self.filter).is_some_and(|rest| rest.starts_with('.'))
            }
            Some(Defect::StartsByEventTimestamp) => {
                self.start_time.is_none_or(|start| event.timestamp >= start)
            }
            Some(Defect::HistoryMovesConsumers) => {
                delivery.sequence() > self.state.kept.settled_up_to.load(Ordering::SeqCst)
            }
            _ => true,
        }
    }

    async fn wait_where_the_defect_says(&self) {
        let blocked = *self.state.kept.blocked_until.lock().unwrap();
        if let Some(until) = blocked {
            tokio::time::sleep_until(until).await;
        }
        let full = self.has(Defect::NeverResumes) && self.handed_out >= self.max_ack_pending;
        if self.standby || self.stuck || full {
            never::<()>().await;
        }
    }

    /// Returns the error for a record that cannot be decoded; `None` if it can be decoded, or is skipped.
    async fn undecodable(&mut self, delivery: Delivery) -> Result<Option<EventError>> {
        let (sequence, payload) = (delivery.sequence(), delivery.event().payload.clone());
        if !self.has(Defect::UndecodableComesAgain) {
            delivery.ack().await?;
        }
        self.stuck = self.has(Defect::UndecodableBlocks);
        if self.has(Defect::SkipsUndecodableSilently) {
            return Ok(None);
        }
        Ok(Some(EventError::Undecodable {
            sequence,
            raw: serde_json::from_value(payload)?,
            reason: "not JSON".to_owned(),
        }))
    }

    /// The answer to every `next*` that leaves the settlement to the caller.
    async fn fetch(&mut self) -> Result<Option<Delivery>> {
        let settling_takes = self.state.settling_takes;
        self.fetch_with(settling_takes).await
    }

    async fn fetch_with(&mut self, settling_takes: Duration) -> Result<Option<Delivery>> {
        if self.said_end && self.has(Defect::EndsOnlyOnce) {
            return Err(EventError::Subscribe {
                subject: self.filter.clone(),
                reason: "no such consumer".to_owned(),
            });
        }
        if self.said_end && self.has(Defect::EndsAfterAnError) {
            return Ok(None);
        }
        loop {
            self.wait_where_the_defect_says().await;
            if self.has(Defect::DropsForSlowSubscriber) {
                while self.inner().lag().await? > 64 {
                    self.inner().next().await?;
                }
            }
            let delivery = match self.take().await {
                Ok(Some(delivery)) => delivery,
                Ok(None) => {
                    if self.has(Defect::EndsOneWaiterOnly) && !self.said_end {
                        self.end_if_first().await;
                    }
                    self.said_end = true;
                    return Ok(None);
                }
                Err(EventError::Lagged { consumer, missed }) if self.has(Defect::MissesBeforeTheStart) => {
                    let missed = missed + 9;
                    return Err(EventError::Lagged { consumer, missed });
                }
                Err(EventError::Lagged { missed: 1, .. }) if self.has(Defect::SkipsOneMissedSilently) => {
                    continue;
                }
                Err(EventError::Lagged { .. }) if self.has(Defect::SkipsMissedSilently) => continue,
                Err(EventError::Lagged { consumer, missed }) if self.has(Defect::MiscountsMissed) => {
                    let missed = missed * 2;
                    return Err(EventError::Lagged { consumer, missed });
                }
                Err(error) => {
                    self.said_end = self.has(Defect::EndsAfterAnError);
                    return Err(error);
                }
            };
            if self.has(Defect::NotCancelSafe) {
                tokio::task::yield_now().await;
            }
            if self.has(Defect::NotCancelSafeLate) && !self.waited {
                // Safe while it waits; lost when the call is dropped behind that.
                self.prefetched.push_front(delivery);
                tokio::time::sleep(Duration::from_millis(30)).await;
                self.waited = true;
                continue;
            }
            if std::mem::take(&mut self.waited) {
                tokio::task::yield_now().await;
            }
            if !self.wants(&delivery) {
                delivery.ack().await?;
                continue;
            }
            if delivery.event().metadata.contains_key(UNDECODABLE) {
                match self.undecodable(delivery).await? {
                    Some(error) => return Err(error),
                    None => continue,
                }
            }
            self.handed_out += 1;
            return Ok(Some(self.hand_out(delivery, settling_takes)));
        }
    }

    fn hand_out(&self, delivery: Delivery, settling_takes: Duration) -> Delivery {
        let event = delivery.shared_event();
        let mut sequence = delivery.sequence();
        let mut attempt = u32::try_from(delivery.num_delivered()).unwrap();
        let stream = delivery.stream().into();
        if self.has(Defect::ResetsNumDelivered) {
            attempt = 1;
        }
        let slot = Arc::new(Slot::new(Some(delivery)));
        self.state.kept.newest.lock().unwrap().insert(sequence, Arc::clone(&slot));
        let handler = FaultyAck {
            slot,
            sequence,
            defect: self.defect,
            capabilities: self.capabilities,
            state: Arc::clone(&self.state),
            closed: Arc::clone(&self.closed),
            settling_takes,
        };
        if self.has(Defect::DeliversOtherSequence) {
            sequence += 1;
        }
        Delivery::new(event, Lease::new(sequence, attempt), stream, Arc::new(handler))
    }

    fn leave(&mut self) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        if self.defect.is_none() {
            // What a cancelled `next` left. The memory provider settles without waiting.
            self.prefetched.drain(..).for_each(|delivery| drop(now(delivery.release())));
        }
        let Some(name) = &self.durable else { return };
        if let Some(members) = self.state.open.lock().unwrap().get_mut(name) {
            *members -= 1;
        }
    }
}

impl Drop for FaultySubscription {
    fn drop(&mut self) {
        self.leave();
        if self.has(Defect::EphemeralLingers) && self.durable.is_none() {
            self.state.kept.subscriptions.lock().unwrap().extend(self.inner.take());
        }
    }
}

#[async_trait]
impl Subscription for FaultySubscription {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        let settling_takes = self.state.settling_takes;
        if !settling_takes.is_zero()
            && let Some(delivery) = self.take().await?
        {
            // A call that is dropped while it settles leaves the event to the next one.
            self.prefetched.push_front(delivery);
            tokio::time::sleep(settling_takes).await;
        }
        let Some(delivery) = self.fetch_with(Duration::ZERO).await? else {
            return Ok(None);
        };
        let received = ReceivedEvent {
            event: delivery.event().clone(),
            sequence: delivery.sequence(),
            num_delivered: delivery.num_delivered(),
            stream: delivery.stream().to_owned(),
        };
        if !self.has(Defect::NextLeavesUnsettled) {
            delivery.ack().await?;
        }
        Ok(Some(received))
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        let Some(mut delivery) = self.fetch().await? else {
            return Ok(None);
        };
        if self.has(Defect::OwnedViewDiffers) {
            let event = Event { summary: String::new(), ..delivery.event().clone() };
            delivery = delivery.map_event(Arc::new(event));
        }
        Ok(Some(delivery.into_pending()))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        self.fetch().await
    }

    async fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Vec<Result<Delivery>>> {
        let max = if self.has(Defect::OverfillsBatches) { max + 1 } else { max };
        let mut batch = Vec::new();
        let wait =
            if self.has(Defect::LongWaitsOverflow) && wait == Duration::MAX { Duration::ZERO } else { wait };
        let now = Instant::now();
        let until = now.checked_add(wait).unwrap_or(now + Duration::from_secs(1_000_000));
        while batch.len() < max {
            let first = batch.is_empty() || self.has(Defect::WaitsForFullBatches);
            let deadline = if first { until } else { Instant::now() };
            match tokio::time::timeout_at(deadline, self.fetch()).await {
                Ok(Ok(None)) if batch.is_empty() => return None,
                Ok(answer) => batch.extend(answer.transpose()),
                Err(_) => break,
            }
        }
        Some(batch)
    }

    async fn lag(&self) -> Result<u64> {
        if self.capabilities.consumer_info.is_no() && !self.has(Defect::IgnoresDeclarations) {
            return Err(unsupported("lag"));
        }
        match &self.inner {
            Some(inner) if !self.has(Defect::LagIsZero) => inner.lag().await,
            _ => Ok(0),
        }
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        let settings = self.inner.as_ref()?.settings()?;
        if self.has(Defect::TellsDefaultSettings) {
            return ConsumerConfig::new(&settings.filter, &SubscribeOptions::default()).ok();
        }
        Some(settings)
    }

    fn end(&self) -> Option<SubscriptionEnd> {
        match self.inner.as_ref()?.end()? {
            SubscriptionEnd::Deleted if self.has(Defect::SaysClosedWhenDeleted) => {
                Some(SubscriptionEnd::Closed)
            }
            SubscriptionEnd::Closed if self.has(Defect::SaysDeletedWhenClosed) => {
                Some(SubscriptionEnd::Deleted)
            }
            end => Some(end),
        }
    }

    async fn close(&mut self) -> Result<()> {
        if self.has(Defect::CloseDoesNothing) {
            return Ok(());
        }
        self.leave();
        self.inner().close().await
    }
}

struct FaultyAck {
    slot: Arc<Slot>,
    sequence: u64,
    defect: Option<Defect>,
    capabilities: Capabilities,
    state: Arc<State>,
    closed: Arc<AtomicBool>,
    settling_takes: Duration,
}

impl FaultyAck {
    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    async fn delivery(&self) -> Result<Delivery> {
        self.wait_for_the_server().await;
        if self.has(Defect::CannotSettleAfterClose) && self.closed.load(Ordering::SeqCst) {
            return Err(EventError::Closed("the subscription".to_owned()));
        }
        let taken = self.slot.lock().await.take();
        taken.ok_or_else(|| EventError::Ack("already settled".to_owned()))
    }

    async fn wait_for_the_server(&self) {
        if !self.settling_takes.is_zero() {
            tokio::time::sleep(self.settling_takes).await;
        }
    }

    /// Takes the delivery that took the place of this one.
    async fn newer(&self) -> Option<Delivery> {
        let newer = self.state.kept.newest.lock().unwrap().get(&self.sequence).cloned();
        newer?.lock().await.take()
    }

    fn refuse(&self, absent: bool, what: &str) -> Result<()> {
        if absent && !self.has(Defect::IgnoresDeclarations) {
            return Err(unsupported(what));
        }
        Ok(())
    }

    /// Hides the errors that the defect keeps silent about.
    fn hide(&self, answer: Result<()>) -> Result<()> {
        match answer {
            Err(error) if error.kind() == ErrorKind::Ack && self.has(Defect::LateSettlementIsSilent) => {
                Ok(())
            }
            Err(error) if error.is_closed() && self.has(Defect::NakSucceedsAfterUnsubscribe) => Ok(()),
            answer => answer,
        }
    }
}

impl AckHandler for FaultyAck {
    fn settle(&self, asked: Settlement) -> AckFuture<'_> {
        AckFuture::new(async move {
            match asked.kind {
                AckKind::Nak(delay) => self.nak(delay).await,
                AckKind::Term(reason) => self.term(&reason).await,
                AckKind::Extend => self.extend().await,
                AckKind::Release => self.release().await,
                _ => self.ack().await,
            }
        })
    }
}

impl FaultyAck {
    async fn ack(&self) -> Result<()> {
        let delivery = self.delivery().await?;
        if self.has(Defect::AckDoesNothing) {
            return Ok(());
        }
        let answer = delivery.ack().await;
        if answer.is_err()
            && self.has(Defect::LateAckSettlesNewer)
            && let Some(newer) = self.newer().await
        {
            return newer.ack().await;
        }
        self.hide(answer)
    }

    async fn nak(&self, delay: Option<Duration>) -> Result<()> {
        let delayed = delay.is_some_and(|delay| !delay.is_zero());
        if !self.has(Defect::IgnoresDeclarationsInNak) {
            self.refuse(self.capabilities.redelivery.is_no(), "nak")?;
        }
        self.refuse(delayed && self.capabilities.nak_with_delay.is_no(), "nak_after")?;
        let delivery = self.delivery().await?;
        let answer = match (self.defect, delay) {
            (Some(Defect::IgnoresNak), _) => return Ok(()),
            (Some(Defect::NaksLate), None) => delivery.nak_after(LATE).await,
            (Some(Defect::NakHasNoDelay), _) => delivery.nak_after(Duration::ZERO).await,
            (Some(Defect::NakAfterUsesBackoff), _) | (_, None) => delivery.nak().await,
            (Some(Defect::LongDelaysOverflow), Some(Duration::MAX)) => {
                delivery.nak_after(Duration::ZERO).await
            }
            (_, Some(delay)) => {
                if self.has(Defect::DelayHoldsUpOthers) {
                    *self.state.kept.blocked_until.lock().unwrap() = Some(Instant::now() + delay);
                }
                delivery.nak_after(delay).await
            }
        };
        if answer.is_err()
            && self.has(Defect::LateNakEndsNewerLease)
            && let Some(newer) = self.newer().await
        {
            newer.nak().await?;
        }
        self.hide(answer)
    }

    async fn term(&self, reason: &str) -> Result<()> {
        self.refuse(self.capabilities.term.is_no(), "term")?;
        let delivery = self.delivery().await?;
        if self.has(Defect::TermRefuses) {
            return delivery.nak().await;
        }
        delivery.term(reason).await
    }

    async fn extend(&self) -> Result<()> {
        self.refuse(self.capabilities.extend.is_no(), "extend")?;
        if self.has(Defect::ExtendDoesNothing) {
            return Ok(());
        }
        self.wait_for_the_server().await;
        match &*self.slot.lock().await {
            Some(delivery) => self.hide(delivery.extend().await),
            None => Err(EventError::Ack("already settled".to_owned())),
        }
    }

    async fn release(&self) -> Result<()> {
        let delivery = self.delivery().await?;
        if self.has(Defect::ReleaseCounts) {
            return delivery.nak().await;
        }
        if self.has(Defect::ReleasesLate) {
            tokio::spawn(async move {
                tokio::time::sleep(LATE).await;
                delivery.release().await
            });
            return Ok(());
        }
        delivery.release().await
    }
}

impl Drop for FaultyAck {
    fn drop(&mut self) {
        let Some(delivery) = self.slot.try_lock().ok().and_then(|mut slot| slot.take()) else {
            return;
        };
        // The memory provider settles without waiting.
        match self.defect {
            Some(Defect::AcksOnDrop) => drop(now(delivery.ack())),
            Some(Defect::NaksOnDrop) => drop(now(delivery.nak())),
            _ => {}
        }
    }
}
