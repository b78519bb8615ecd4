//! Tools for the cases: a provider with fresh names, readers with timeouts, and checks that name the promise.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::{
    Delivery, Event, EventError, EventProvider, PublishOptions, ReceivedEvent, Result, SubscribeOptions,
    Subscription,
};
use tokio::time::Instant;

use crate::{Fixture, Harness, Need, Settings, refusals};

/// Timeout for anything that must arrive, on the slowest server.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// Timeout for anything that must arrive at once: long enough for a slow server, too short for one that polls.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(2);
/// Default time in which nothing must arrive.
pub(crate) const A_WHILE: Duration = Duration::from_millis(400);
/// Tolerance for a server clock that is ahead or coarser.
const CLOCK_STEP: Duration = Duration::from_millis(20);
/// Timeout of any call.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// One provider, and the names that one case uses on it.
pub(crate) struct World<'h> {
    pub(crate) harness: &'h dyn Harness,
    pub(crate) fixture: Box<dyn Fixture>,
    pub(crate) provider: Arc<dyn EventProvider>,
    promise: &'static str,
    /// Category of all subjects of the case.
    pub(crate) category: String,
    suffix: String,
}

/// Starts a provider for a case. Returns the need as an error if the provider declares it absent and refuses it as
/// required.
pub(crate) async fn prepare<'h>(
    harness: &'h dyn Harness,
    promise: &'static str,
    needs: &[Need],
) -> std::result::Result<World<'h>, Need> {
    let world = World::new(harness, promise, harness.start().await);
    let capabilities = world.provider.capabilities();
    match needs.iter().find(|need| need.support(&capabilities).is_no()) {
        Some(need) => {
            refusals::check(&world, *need).await;
            Err(*need)
        }
        None => Ok(world),
    }
}

impl<'h> World<'h> {
    fn new(harness: &'h dyn Harness, promise: &'static str, fixture: Box<dyn Fixture>) -> Self {
        let id = Event::new("", "", "", "", serde_json::Value::Null).id;
        let suffix = id.rsplit('-').next().unwrap_or_default().to_owned();
        Self {
            harness,
            provider: fixture.provider(),
            fixture,
            promise,
            category: format!("kit{suffix}"),
            suffix,
        }
    }

    /// Starts the same on a provider with these settings.
    pub(crate) async fn with(&self, settings: Settings) -> Option<Self> {
        let fixture = self.harness.start_with(&settings).await?;
        Some(Self::new(self.harness, self.promise, fixture))
    }

    pub(crate) fn subject(&self, topic: &str) -> String {
        self.provider.build_subject(&self.category, topic)
    }

    /// Returns the filter of everything that the case publishes.
    pub(crate) fn all(&self) -> String {
        self.provider.category_subject(&self.category)
    }

    pub(crate) fn name(&self, base: &str) -> String {
        format!("{base}-{}", self.suffix)
    }

    pub(crate) fn event(&self, topic: &str) -> Event {
        let payload = serde_json::json!({ "topic": topic });
        Event::new(self.subject(topic), &self.category, topic, "testkit", payload)
    }

    pub(crate) async fn publish(&self, topic: &str) -> u64 {
        self.publish_event(&self.event(topic)).await
    }

    pub(crate) async fn publish_event(&self, event: &Event) -> u64 {
        let stored = self.call("publish", self.provider.publish(event)).await;
        self.ok("publish", stored)
    }

    pub(crate) async fn publish_with(&self, topic: &str, options: PublishOptions) -> Result<u64> {
        let event = self.event(topic);
        self.call("publish", self.provider.publish_with_options(&event, &options)).await
    }

    /// Publishes this many events and returns their sequences.
    pub(crate) async fn publish_many(&self, topic: &str, count: usize) -> Vec<u64> {
        let mut sequences = Vec::with_capacity(count);
        for _ in 0..count {
            sequences.push(self.publish(topic).await);
        }
        sequences
    }

    /// Opens an ephemeral consumer of everything that the case publishes.
    pub(crate) async fn subscribe(&self) -> Reader<'_> {
        self.subscribe_to(&self.all()).await
    }

    pub(crate) async fn subscribe_to(&self, filter: &str) -> Reader<'_> {
        let opened = self.call("subscribe", self.provider.subscribe(filter)).await;
        self.reader(opened)
    }

    pub(crate) async fn subscribe_with(&self, options: SubscribeOptions) -> Reader<'_> {
        let filter = self.all();
        let opening = self.provider.subscribe_with_options(&filter, &options);
        let opened = self.call("subscribe_with_options", opening).await;
        self.reader(opened)
    }

    /// Opens a member of the durable consumer of everything that the case publishes.
    pub(crate) async fn durable(&self, name: &str) -> Reader<'_> {
        self.durable_on(&*self.provider, name, None).await
    }

    pub(crate) async fn durable_with(&self, name: &str, options: SubscribeOptions) -> Reader<'_> {
        self.durable_on(&*self.provider, name, Some(options)).await
    }

    /// Opens such a member through another handle.
    pub(crate) async fn durable_on(
        &self,
        provider: &dyn EventProvider,
        name: &str,
        options: Option<SubscribeOptions>,
    ) -> Reader<'_> {
        let filter = self.all();
        let opening = async {
            match &options {
                None => provider.subscribe_durable(name, &filter).await,
                Some(options) => provider.subscribe_durable_with_options(name, &filter, options).await,
            }
        };
        let opened = self.call("subscribe_durable", opening).await;
        self.reader(opened)
    }

    fn reader(&self, opened: Result<Box<dyn Subscription>>) -> Reader<'_> {
        Reader { world: self, subscription: self.ok("opening a subscription", opened) }
    }

    pub(crate) async fn history(&self, filter: Option<&str>, limit: usize) -> Vec<Event> {
        let found = self.call("history", self.provider.history(filter, limit)).await;
        self.ok("history", found)
    }

    /// Returns the number of stored events of the case.
    pub(crate) async fn stored(&self) -> usize {
        self.history(Some(&self.all()), usize::MAX).await.len()
    }

    pub(crate) async fn elapse(&self, time: Duration) {
        self.harness.elapse(time).await;
    }

    /// Waits until the clock that stamps stored events has advanced, and returns a time in between.
    pub(crate) async fn storage_time_between(&self) -> u64 {
        let before = self.harness.unix_millis();
        while self.harness.unix_millis() < before + 4 {
            self.elapse(ms(1)).await;
        }
        before + 2
    }

    /// Waits until newly stored events get a later time than this.
    pub(crate) async fn storage_time_behind(&self, time: u64) {
        while self.harness.unix_millis() <= time {
            self.elapse(ms(5)).await;
            // The clock that stamps stored events may differ from the one that waits, and is then not paused.
            #[allow(
                clippy::disallowed_methods,
                reason = "runs on a thread that may block; no other wait uses real time"
            )]
            let _ = tokio::task::spawn_blocking(|| std::thread::sleep(ms(1))).await;
        }
    }

    /// Waits until `found` returns the expected value.
    pub(crate) async fn eventually<T, F>(&self, what: &str, expected: T, found: impl Fn() -> F)
    where
        T: PartialEq + Debug,
        F: Future<Output = T>,
    {
        let step = ms(20);
        let mut last = found().await;
        let mut waited = Duration::ZERO;
        while last != expected && waited < SOON {
            self.elapse(step).await;
            waited += step;
            last = found().await;
        }
        self.check_eq(what, &last, &expected);
    }

    /// Awaits a call, and fails if it hangs.
    pub(crate) async fn call<T>(&self, what: &str, call: impl Future<Output = T>) -> T {
        match tokio::time::timeout(CALL_DEADLINE, call).await {
            Ok(answer) => answer,
            Err(_) => self.fail(&format!("{what} did not return within {CALL_DEADLINE:?}")),
        }
    }

    #[track_caller]
    pub(crate) fn ok<T>(&self, what: &str, result: Result<T>) -> T {
        result.unwrap_or_else(|error| self.fail(&format!("{what} failed: {error}")))
    }

    #[track_caller]
    pub(crate) fn refused<T>(&self, what: &str, result: Result<T>) -> EventError {
        match result {
            Err(error) => error,
            Ok(_) => self.fail(&format!("{what}: expected an error, found Ok")),
        }
    }

    #[track_caller]
    pub(crate) fn check_eq<T: PartialEq + Debug>(&self, what: &str, found: &T, expected: &T) {
        if found != expected {
            self.fail(&format!("{what}: expected {expected:?}, found {found:?}"));
        }
    }

    #[track_caller]
    pub(crate) fn check(&self, what: &str, holds: bool) {
        if !holds {
            self.fail(&format!("check failed: {what}"));
        }
    }

    /// Fails if what has just arrived came earlier than `time` after `since`.
    #[track_caller]
    pub(crate) fn not_before(&self, since: Instant, time: Duration, why: &str) {
        let passed = since.elapsed();
        if passed + CLOCK_STEP < time {
            self.fail(&format!("{why}: expected nothing within {time:?}, but it arrived after {passed:?}"));
        }
    }

    #[track_caller]
    pub(crate) fn fail(&self, what: &dyn Display) -> ! {
        panic!("promise broken: {}\n  {what}", self.promise)
    }
}

/// A subscription whose calls have timeouts.
pub(crate) struct Reader<'w> {
    pub(crate) world: &'w World<'w>,
    pub(crate) subscription: Box<dyn Subscription>,
}

impl Reader<'_> {
    /// Returns the next delivery, which must arrive soon.
    pub(crate) async fn next(&mut self) -> Delivery {
        self.next_within(SOON).await
    }

    /// Returns the next delivery, which must arrive at once.
    pub(crate) async fn next_at_once(&mut self) -> Delivery {
        self.next_within(AT_ONCE).await
    }

    pub(crate) async fn next_within(&mut self, time: Duration) -> Delivery {
        match self.answer_within(time).await {
            Ok(Some(delivery)) => delivery,
            Ok(None) => self.world.fail(&"expected a delivery, found the end of the subscription"),
            Err(error) => self.world.fail(&format!("expected a delivery, found the error: {error}")),
        }
    }

    /// Returns the answer of `next_delivery`, which must arrive soon.
    pub(crate) async fn answer(&mut self) -> Result<Option<Delivery>> {
        self.answer_within(SOON).await
    }

    async fn answer_within(&mut self, time: Duration) -> Result<Option<Delivery>> {
        match tokio::time::timeout(time, self.subscription.next_delivery()).await {
            Ok(answer) => answer,
            Err(_) => self.world.fail(&format!("expected a delivery, found none within {time:?}")),
        }
    }

    /// Returns the next event through `next`, which must arrive soon.
    pub(crate) async fn next_settled(&mut self) -> ReceivedEvent {
        match tokio::time::timeout(SOON, self.subscription.next()).await {
            Ok(Ok(Some(received))) => received,
            Ok(other) => self.world.fail(&format!("expected an event from next, found {other:?}")),
            Err(_) => self.world.fail(&format!("expected an event from next, found none within {SOON:?}")),
        }
    }

    /// Takes the next delivery, acks it with a confirmation, and returns its sequence.
    pub(crate) async fn ack_next(&mut self) -> u64 {
        let delivery = self.next().await;
        let sequence = delivery.sequence();
        self.world.ok("ack_confirmed", delivery.ack_confirmed().await);
        sequence
    }

    /// Takes and acks this many deliveries and returns their sequences.
    pub(crate) async fn ack_many(&mut self, count: usize) -> Vec<u64> {
        let mut sequences = Vec::with_capacity(count);
        for _ in 0..count {
            sequences.push(self.ack_next().await);
        }
        sequences
    }

    /// Takes this many deliveries, which stay unsettled.
    pub(crate) async fn hold(&mut self, count: usize) -> Vec<Delivery> {
        let mut held = Vec::with_capacity(count);
        for _ in 0..count {
            held.push(self.next().await);
        }
        held
    }

    /// Fails if anything arrives within this time.
    pub(crate) async fn silent_for(&mut self, time: Duration, why: &str) {
        if let Ok(answer) = tokio::time::timeout(time, self.subscription.next_delivery()).await {
            self.world.fail(&format!("{why}: expected nothing within {time:?}, found {answer:?}"));
        }
    }

    /// Returns the next delivery, which must not arrive earlier than `time` after `since`.
    ///
    /// A slow machine cannot break this promise: it only makes the delivery later.
    pub(crate) async fn next_not_before(&mut self, since: Instant, time: Duration, why: &str) -> Delivery {
        let delivery = self.next_within(time + SOON).await;
        self.world.not_before(since, time, why);
        delivery
    }

    /// Fails unless the subscription has ended, and says so every time.
    pub(crate) async fn ended(&mut self) {
        for _ in 0..2 {
            let answer = self.answer().await;
            self.world.check(&format!("Ok(None), found {answer:?}"), matches!(answer, Ok(None)));
        }
    }
}
