//! Events at the times of a schedule, each time at most once.

use std::time::Duration;

use tokio::sync::mpsc;

use super::schedule::Schedule;
use crate::clock::unix_millis;
use crate::error::{EventError, Result};
use crate::types::Event;

/// Maximum length of a sleep, so that a change of the clock is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Age in milliseconds above which a time counts as missed.
const LATE_MS: u64 = 1_000;
/// Maximum number of missed times that are counted.
const MOST_MISSED: usize = 1_000;

/// One time of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tick {
    /// Scheduled time in Unix milliseconds, the same on all machines.
    pub scheduled_ms: u64,
    /// Number of times right before this one that passed without an event; 1,000 means that many or more.
    pub missed: u64,
}

/// Behavior for missed times of a schedule. Times are missed if the receiver was slow, the machine slept, or the clock
/// was set forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissedTickBehavior {
    /// One event for all missed times, with the latest time. The default.
    #[default]
    Coalesce,
    /// No event for missed times.
    Skip,
    /// One event for each missed time, in order. If there are more than this number or than 1,000, the latest ones are
    /// used.
    Each(usize),
}

pub(super) struct Scheduled {
    pub(super) schedule: Schedule,
    pub(super) missed: MissedTickBehavior,
    pub(super) resume_after: Option<u64>,
    factory: Box<dyn Fn(Tick) -> Event + Send + Sync>,
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Scheduled {
    pub(super) fn new(schedule: Schedule, factory: Box<dyn Fn(Tick) -> Event + Send + Sync>) -> Self {
        let missed = MissedTickBehavior::default();
        Self { schedule, missed, resume_after: None, factory, clock: Box::new(unix_millis) }
    }

    /// Sends events until the receiver is dropped.
    pub(super) async fn produce(&self, name: &str, sender: mpsc::Sender<Event>) -> Result<()> {
        let mut done_until = self.resume_after.unwrap_or_else(|| (self.clock)());
        loop {
            let Some(next) = self.schedule.next_after(done_until) else {
                return Err(EventError::Source(format!(
                    "'{name}' has a schedule that matches no future time"
                )));
            };
            tokio::select! {
                biased;
                () = sender.closed() => return Ok(()),
                () = self.wait_until(next) => {}
            }
            // Reserves a place first: times that passed while there was none are missed, too.
            let Ok(place) = sender.reserve().await else { return Ok(()) };
            let ticks = self.due(done_until);
            let Some(latest) = ticks.last() else { continue };
            done_until = latest.scheduled_ms;
            let mut wanted = self.wanted(ticks).into_iter();
            if let Some(first) = wanted.next() {
                place.send((self.factory)(first));
            }
            for tick in wanted {
                let Ok(place) = sender.reserve().await else { return Ok(()) };
                place.send((self.factory)(tick));
            }
        }
    }

    async fn wait_until(&self, unix_ms: u64) {
        loop {
            match unix_ms.saturating_sub((self.clock)()) {
                0 => return,
                left => tokio::time::sleep(Duration::from_millis(left).min(LONGEST_SLEEP)).await,
            }
        }
    }

    /// Returns the times after `done_until` that have come, in order, but no more than are counted. After the clock was
    /// set back, none of them is repeated.
    fn due(&self, done_until: u64) -> Vec<Tick> {
        let mut times = Vec::new();
        let mut until = (self.clock)();
        while let Some(time) = self.schedule.last_until(until).filter(|time| *time > done_until)
            && times.len() <= MOST_MISSED
        {
            times.push(time);
            let Some(before) = time.checked_sub(1) else { break };
            until = before;
        }
        let ticks = times.into_iter().rev().zip(0..);
        ticks.map(|(scheduled_ms, missed)| Tick { scheduled_ms, missed }).collect()
    }

    /// Returns the ticks that get an event.
    fn wanted(&self, mut ticks: Vec<Tick>) -> Vec<Tick> {
        let now = (self.clock)();
        match self.missed {
            MissedTickBehavior::Coalesce => ticks.split_off(ticks.len().saturating_sub(1)),
            MissedTickBehavior::Skip => {
                let mut last = ticks.split_off(ticks.len().saturating_sub(1));
                last.retain(|tick| now.saturating_sub(tick.scheduled_ms) <= LATE_MS);
                last
            }
            MissedTickBehavior::Each(most) => {
                let first = ticks.len().saturating_sub(most.clamp(1, MOST_MISSED));
                let mut wanted = ticks.split_off(first);
                // A time with its own event was not missed.
                wanted.iter_mut().skip(1).for_each(|tick| tick.missed = 0);
                wanted
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use tokio::time::Instant;

    use super::*;
    use crate::source::{CronSource, EventSource};

    /// 2026-06-01T12:00:00Z.
    const NOON: u64 = 1_780_315_200_000;
    const MINUTE: u64 = 60_000;

    /// Fires every minute on a clock that starts at noon, follows tokio's clock and can be set.
    struct Bench {
        set_by: Arc<AtomicI64>,
        events: mpsc::Receiver<Event>,
        source: Arc<CronSource>,
    }

    fn start(policy: MissedTickBehavior, capacity: usize) -> Bench {
        let begin = Instant::now();
        let set_by = Arc::new(AtomicI64::new(0));
        let set = Arc::clone(&set_by);
        let schedule = Schedule::new("* * * * *", "UTC").unwrap();
        let factory = |tick: Tick| {
            let payload =
                serde_json::json!([tick.scheduled_ms.checked_sub(NOON).unwrap() / MINUTE, tick.missed]);
            Event::new("events.a", "a", "", "", payload)
        };
        let mut scheduled = Scheduled::new(schedule, Box::new(factory));
        scheduled.missed = policy;
        scheduled.clock = Box::new(move || {
            let passed = u64::try_from(begin.elapsed().as_millis()).unwrap();
            (NOON + passed).saturating_add_signed(set.load(Ordering::SeqCst))
        });
        let source = Arc::new(CronSource::on(scheduled));
        let (sender, events) = mpsc::channel(capacity);
        let running = Arc::clone(&source);
        tokio::spawn(async move { running.start(sender).await });
        Bench { set_by, events, source }
    }

    impl Bench {
        async fn next(&mut self) -> (u64, u64) {
            let payload = self.events.recv().await.unwrap().payload;
            (payload[0].as_u64().unwrap(), payload[1].as_u64().unwrap())
        }

        fn set_clock(&self, by_minutes: i64) {
            self.set_by.fetch_add(by_minutes * 60_000, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_time_comes_once_and_on_time() {
        let begin = Instant::now();
        let mut bench = start(MissedTickBehavior::Coalesce, 1);
        for minute in 1..=3 {
            assert_eq!(bench.next().await, (minute, 0));
            assert_eq!(begin.elapsed().as_secs(), minute * 60);
        }
        bench.source.stop().await.unwrap();
        assert!(bench.events.recv().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_back_repeats_no_time() {
        let mut bench = start(MissedTickBehavior::Coalesce, 1);
        assert_eq!(bench.next().await, (1, 0));
        bench.set_clock(-60);
        let begin = Instant::now();
        assert_eq!(bench.next().await, (2, 0));
        assert_eq!(begin.elapsed().as_secs() / 60, 61);
    }

    #[tokio::test(start_paused = true)]
    async fn times_that_a_clock_set_forward_passed_follow_the_policy() {
        let mut bench = start(MissedTickBehavior::Coalesce, 1);
        assert_eq!(bench.next().await, (1, 0));
        bench.set_clock(10);
        assert_eq!(bench.next().await, (11, 9), "one for all of them");
        assert_eq!(bench.next().await, (12, 0));

        let mut bench = start(MissedTickBehavior::Skip, 1);
        assert_eq!(bench.next().await, (1, 0));
        bench.set_clock(10);
        assert_eq!(bench.next().await, (12, 0), "none for them");

        let mut bench = start(MissedTickBehavior::Each(3), 1);
        assert_eq!(bench.next().await, (1, 0));
        bench.set_clock(10);
        for expected in [(9, 7), (10, 0), (11, 0), (12, 0)] {
            assert_eq!(bench.next().await, expected);
        }
        bench.set_clock(60 * 24 * 30);
        assert_eq!(bench.next().await.1, 998, "no more than 1,000 are looked at");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_receiver_misses_times_and_not_the_latest() {
        let mut bench = start(MissedTickBehavior::Coalesce, 1);
        tokio::time::sleep(Duration::from_millis(10 * MINUTE + 1)).await;
        assert_eq!(bench.next().await, (1, 0), "it had a place");
        assert_eq!(bench.next().await, (10, 8));
        assert_eq!(bench.next().await, (11, 0));
    }
}
