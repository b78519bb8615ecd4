//! One life of a bus.

use std::time::Duration;

use a3s_event::consumer::ConsumerState;
use a3s_event::provider::support::CLOCK_TOLERANCE_MS;
use a3s_event::testing::{Checks as _, Clock, Outcome, TestBus};
use a3s_event::{Event, HistoryQuery, MemoryProvider, PublishOptions};
use tokio::time::Instant;

use super::record::{Fate, Published, Record};
use super::routing::{self, Routing};
use super::worker::{Draft, Worker, one_of};

const SECOND: Duration = Duration::from_secs(1);
/// Time within which everything must be handled after the faults have stopped: the slowest handler at its last attempt,
/// its lease, and the longest pauses of the runtime.
const LIVELY: Duration = Duration::from_secs(900);

/// Time within which a consumer extends a lease that it has got: half of the longest lease, and the retries of the
/// settlement before it.
const EXTENDS: Duration = Duration::from_secs(20);
/// Time within which a consumer calls the provider: it waits for a delivery that is on its way, and then extends it.
const CALLS: Duration = Duration::from_secs(45);

/// The bus, the consumers and the record of one seed.
pub(super) struct Life {
    t: TestBus,
    record: Record,
    workers: Vec<Worker>,
    /// The broker, in a part of the lives.
    routing: Option<Routing>,
    draft: Draft,
    next: u64,
}

impl Life {
    /// Returns the provider of a life.
    pub(super) fn provider(clock: Clock) -> MemoryProvider {
        MemoryProvider::builder().clock(clock).build().unwrap()
    }

    pub(super) async fn begin(t: TestBus) -> Outcome<Self> {
        let record = Record::default();
        let keys = 1 + t.draw(4);
        let is_stubborn = t.draw(4) == 0;
        let draft = Draft { keys, is_stubborn };
        // The bus takes its broker before its first consumer.
        let routing = match t.draw(3) {
            0 => Some(Routing::start(&t, &record, draft).await?),
            _ => None,
        };
        let mut workers = Vec::new();
        for name in ["a", "b", "c"].iter().take(usize::try_from(1 + t.draw(3)).unwrap()) {
            workers.push(Worker::start(&t, &record, name, draft).await?);
        }
        Ok(Self { t, record, workers, routing, draft, next: 0 })
    }

    pub(super) async fn live(mut self) -> Outcome {
        self.plan_faults();
        for _ in 0..5 + self.t.draw(25) {
            self.step().await?;
            self.look().await?;
        }
        self.t.faults().stop();
        self.end().await
    }

    /// Plans faults that last: each kind in a part of the lives.
    fn plan_faults(&mut self) {
        let faults = self.t.faults();
        for worker in &self.workers {
            if self.t.draw(2) == 0 {
                continue;
            }
            let chance = one_of(&self.t, &[0.0, 0.02, 0.1]);
            faults.crash_before_handling(&worker.name, chance);
            faults.crash_before_ack(&worker.name, chance);
            faults.crash_after_ack(&worker.name, chance);
        }
        if self.t.draw(3) == 0 {
            faults.lose_publish_answer(0.2).fail_publish(0.1).duplicate_publish(0.1);
        }
        if self.t.draw(4) == 0 {
            self.record.disturb(|_| true);
            faults.delay(0..one_of(&self.t, &[10, 2_000, 20_000]));
        }
        if self.t.draw(3) == 0 {
            faults.fail_dead_letter(0.3);
        }
        if self.t.draw(5) == 0 {
            faults.fail_fetch(0.3);
        }
    }

    async fn step(&mut self) -> Outcome {
        match self.t.draw(22) {
            0..=7 => self.publish().await,
            8..=12 => self.t.advance(self.drawn_time()).await,
            13 => self.crash(),
            14 => self.freeze(),
            15 | 16 => return self.restart().await,
            17 => return self.outage().await,
            18 => self.jump(),
            19 | 20 => {
                if let Some(routing) = &mut self.routing {
                    return routing.step().await;
                }
            }
            _ => {
                return match self.t.draw(3) {
                    0 => self.purge().await,
                    1 => self.hang().await,
                    _ => self.delete().await,
                };
            }
        }
        Ok(())
    }

    fn drawn_time(&self) -> Duration {
        Duration::from_millis(one_of(&self.t, &[0, 1, 300, 1_000, 5_000, 31_000, 70_000]))
    }

    fn drawn_fate(&self) -> Fate {
        match self.t.draw(20) {
            0..=11 => Fate::Handled,
            12 | 13 => Fate::Fails(1 + self.t.draw(2)),
            14 if !self.draft.is_stubborn => Fate::Poison,
            14 | 15 => Fate::Fatal,
            16..=18 => Fate::Slow(one_of(&self.t, &[1, 4, 40])),
            _ => Fate::Panics,
        }
    }

    /// Publishes a few events, each as often as it takes, as a publisher does that may lose nothing.
    async fn publish(&mut self) {
        for _ in 0..1 + self.t.draw(6) {
            let key = format!("k{}", self.t.draw(self.draft.keys));
            let fate = if self.draft.is_stubborn && key == "k0" { Fate::Stubborn } else { self.drawn_fate() };
            self.publish_one(key, fate).await;
        }
    }

    async fn publish_one(&mut self, key: String, fate: Fate) {
        let number = self.next;
        self.next += 1;
        let published = Published { key: key.clone(), fate, is_acknowledged: false };
        self.record.lock().published.insert(number, published);
        let event = Event::builder(format!("events.life.{key}")).payload(number).build();
        let options = PublishOptions { msg_id: Some(number.to_string()), ..PublishOptions::default() };
        for _ in 0..5 {
            let bus = self.t.bus().unwrap();
            let begun = self.t.clock().unix_millis();
            match bus.publish_event_with_receipt(&event, &options).await {
                Ok(receipt) => {
                    if let Some(routing) = &self.routing {
                        routing.note_published(number, &receipt);
                    }
                    self.record.lock().published.get_mut(&number).unwrap().is_acknowledged = true;
                    if !receipt.duplicate {
                        self.check_storage_time(receipt.sequence, begun).await;
                    }
                    break;
                }
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    self.t.advance(SECOND).await;
                }
            }
        }
        self.note_stored().await;
    }

    /// Notes which events are stored.
    async fn note_stored(&self) {
        let stored = self.t.provider().query(&HistoryQuery::new(usize::MAX)).await.unwrap();
        let mut state = self.record.lock();
        if let Some(oldest) = stored.last() {
            state.first = oldest.sequence;
        }
        for stored in stored {
            state.stored.insert(stored.sequence, stored.event.payload.as_u64().unwrap());
        }
    }

    /// Checks that an event that was stored since `begun` has the time of the clock. A publish takes as long as its
    /// triggers.
    async fn check_storage_time(&self, sequence: u64, begun: u64) {
        let stored = self.t.provider().query(&HistoryQuery::new(1).since_sequence(sequence)).await.unwrap();
        let now = self.t.clock().unix_millis();
        let possible = begun.saturating_sub(CLOCK_TOLERANCE_MS)..=now + CLOCK_TOLERANCE_MS;
        for stored in stored.iter().filter(|stored| !possible.contains(&stored.stored_at)) {
            let at = stored.stored_at;
            self.record.lock().violate(format!(
                "event {sequence} was stored at {at}, and the clock showed {begun} to {now}"
            ));
        }
    }

    fn any_index(&self) -> usize {
        usize::try_from(self.t.draw(self.workers.len() as u64)).unwrap()
    }

    fn any_worker(&self) -> Option<&Worker> {
        self.workers.get(self.any_index()).filter(|worker| !worker.is_sheltered)
    }

    fn crash(&self) {
        if let Some(worker) = self.any_worker() {
            self.t.faults().crash(&worker.name);
        }
    }

    fn freeze(&mut self) {
        let index = self.any_index();
        if let Some(worker) = self.workers.get_mut(index).filter(|worker| !worker.is_sheltered) {
            let time = one_of(&self.t, &[SECOND, 20 * SECOND, 50 * SECOND]);
            worker.frozen_until = worker.frozen_until.max(Instant::now() + time);
            self.record.disturb(|name| name == worker.name);
            self.t.faults().freeze(&worker.name, time);
        }
    }

    /// Restarts a consumer in order.
    async fn restart(&self) -> Outcome {
        let Some(worker) = self.any_worker() else { return Ok(()) };
        // It may be down, and it may crash on the way.
        if worker.consumer.state().is_none() {
            return Ok(());
        }
        // It fails if handlers had to be interrupted, or if the consumer crashes on the way.
        let is_frozen = Instant::now() < worker.frozen_until;
        let ended = worker.consumer.shutdown().await;
        self.record.restarted(&worker.name, is_frozen || worker.is_hasty || ended.is_err());
        self.t.advance(one_of(&self.t, &[Duration::ZERO, SECOND, 40 * SECOND])).await;
        while let Err(error) = worker.consumer.start().await {
            assert!(error.is_retryable(), "{error:?}");
            self.t.advance(5 * SECOND).await;
        }
        Ok(())
    }

    /// Makes the provider unavailable. Health and states must say so.
    async fn outage(&self) -> Outcome {
        let (t, time) = (&self.t, one_of(&self.t, &[SECOND, 60 * SECOND]));
        self.record.disturb(|_| true);
        t.faults().unavailable(time);
        if t.bus()?.health().await? {
            return Err("healthy without a provider".into());
        }
        if time > CALLS {
            t.advance(CALLS).await;
            // A frozen one hangs, and cannot tell that from waiting for an event.
            let is_awake =
                |worker: &&Worker| !worker.is_sheltered && worker.frozen_until + EXTENDS <= Instant::now();
            for worker in self.workers.iter().filter(is_awake) {
                if worker.consumer.state() == Some(ConsumerState::Running) {
                    return Err(format!("{} runs without a provider", worker.name).into());
                }
            }
        }
        t.advance(time).await;
        Ok(())
    }

    /// Drops all events before they are handled, as retention does.
    async fn purge(&self) -> Outcome {
        self.t.note("purge");
        self.note_stored().await;
        self.t.provider().purge(None).await?;
        let mut state = self.record.lock();
        state.first = state.stored.keys().next_back().map_or(1, |last| last + 1);
        Ok(())
    }

    /// Lets the provider hang. Health must say so within its timeout.
    async fn hang(&self) -> Outcome {
        // The durable trigger runs in the process that hangs.
        self.record.disturb(|name| name == routing::CONSUMER);
        self.t.faults().freeze("test", 60 * SECOND);
        let is_healthy = self.t.bus()?.health().await?;
        self.t.faults().spare("test");
        if is_healthy { Err("healthy with a provider that hangs".into()) } else { Ok(()) }
    }

    fn jump(&self) {
        let by = one_of(&self.t, &[SECOND, 60 * SECOND, 3_600 * SECOND]);
        let faults = self.t.faults();
        if self.t.draw(2) == 0 {
            faults.clock_forward(by)
        } else {
            faults.clock_back(by)
        };
    }

    /// Deletes a consumer behind its back. It must fail and not come back.
    async fn delete(&mut self) -> Outcome {
        if self.t.draw(2) == 0 {
            // Beside calls that fail, which make consumers open their subscriptions again.
            self.record.disturb(|_| true);
            let times = u32::try_from(1 + self.t.draw(20)).unwrap();
            self.t.faults().fail_fetch(times).unavailable(Duration::from_millis(1 + self.t.draw(2_000)));
            self.t.advance(Duration::from_millis(self.t.draw(30_000))).await;
        }
        let index = self.any_index();
        let Some(worker) = self.workers.get_mut(index).filter(|worker| !worker.is_sheltered) else {
            return Ok(());
        };
        if worker.consumer.state().is_none() {
            return Ok(());
        }
        // A crash would start it again, which makes it anew.
        worker.is_sheltered = true;
        self.t.faults().spare(&worker.name);
        worker.consumer.delete_behind_its_back().await?;
        self.record.lock().consumers.get_mut(&worker.name).unwrap().is_deleted = true;
        Ok(())
    }

    /// Checks safety.
    async fn look(&self) -> Outcome {
        self.record.read_letters(&self.t).await;
        if let Some(routing) = &self.routing {
            routing.look()?;
        }
        let mut state = self.record.lock();
        let names: Vec<String> = state.consumers.keys().cloned().collect();
        for name in names {
            state.note_crashes(&name, 0);
            if let Some(wrong) = state.wrong_letters(&name) {
                return Err(format!("{name}: {wrong}").into());
            }
        }
        drop(state);
        self.record.check()
    }

    /// Lets time pass until everything is handled, at most so much as that may take.
    async fn until_handled(&self) {
        let mut left = LIVELY;
        while !left.is_zero() {
            let time = left.min(30 * SECOND);
            left -= time;
            self.t.advance(time).await;
            self.record.read_letters(&self.t).await;
            let is_routing_settled = match &self.routing {
                Some(routing) => routing.is_deleted || routing.is_settled().await,
                None => true,
            };
            let state = self.record.lock();
            // What was handled before a crash may be handled again.
            let is_held_up = self.draft.is_stubborn && !state.is_relieved;
            let is_routed = self.routing.as_ref().is_none_or(|routing| {
                routing.is_deleted
                    || (state.open(routing::CONSUMER).is_empty() && (is_held_up || is_routing_settled))
            });
            let is_settled = |name: &str| is_held_up || self.t.assert(name).settled().is_ok();
            let is_done = |worker: &Worker| {
                let Worker { name, consumer, .. } = worker;
                if state.consumers[name].is_deleted {
                    // It learns of that when it fetches, which it does once it has handled what it holds.
                    return consumer.state() == Some(ConsumerState::Failed);
                }
                let runs = consumer.state() == Some(ConsumerState::Running);
                runs && state.open(name).is_empty() && is_settled(name)
            };
            if is_routed && self.workers.iter().all(is_done) {
                return;
            }
        }
    }

    fn none_is_open(&self) -> Outcome {
        let state = self.record.lock();
        for (name, _) in state.consumers.iter().filter(|(_, consumed)| !consumed.is_deleted) {
            let open = state.open(name);
            if !open.is_empty() {
                return Err(format!("{name} has not handled {open:?}").into());
            }
        }
        Ok(())
    }

    /// Checks that the bus lives without faults.
    async fn end(mut self) -> Outcome {
        self.until_handled().await;
        // A failure of a part shows until the part has worked again, so that each consumer needs something to do.
        for key in 0..self.draft.keys {
            self.publish_one(format!("k{key}"), Fate::Handled).await;
        }
        self.until_handled().await;
        self.none_is_open()?;
        self.record.lock().is_relieved = true;
        self.until_handled().await;
        self.none_is_open()?;
        self.look().await?;
        if let Some(routing) = &mut self.routing {
            routing.end().await?;
        }
        let bus = self.t.bus()?;
        if !bus.health().await? {
            return Err("not healthy at the end".into());
        }
        let consumers = bus.consumers().await?;
        for worker in &self.workers {
            let (name, state) = (&worker.name, worker.consumer.state());
            let is_deleted = self.record.lock().consumers[name].is_deleted;
            if is_deleted {
                if consumers.iter().any(|consumer| consumer.name.starts_with(name.as_str())) {
                    return Err(format!("{name} was deleted and came back").into());
                }
                if state != Some(ConsumerState::Failed) {
                    return Err(format!("{name} was deleted and is {state:?}").into());
                }
                continue;
            }
            if state != Some(ConsumerState::Running) || worker.consumer.last_error().is_some() {
                return Err(
                    format!("{name} is {state:?} at the end: {:?}", worker.consumer.last_error()).into()
                );
            }
            self.t.assert(name).settled()?;
        }
        let lost: Vec<u64> = {
            let state = self.record.lock();
            let stored: std::collections::BTreeSet<_> = state.stored.values().collect();
            let acknowledged = state.published.iter().filter(|(_, published)| published.is_acknowledged);
            acknowledged.map(|(number, _)| *number).filter(|number| !stored.contains(number)).collect()
        };
        if !lost.is_empty() {
            return Err(format!("acknowledged and not stored: {lost:?}").into());
        }
        Ok(())
    }
}
