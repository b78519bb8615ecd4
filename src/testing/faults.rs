//! Faults: what goes wrong, how often and when.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::world::World;
use crate::deadline::After;

/// How often a fault happens: the next so many times, or each time with a probability that the seed draws.
///
/// A number of times converts from an integer and a probability from a float: `crash_before_ack("billing", 1)`,
/// `duplicate_publish(0.2)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Occurrence {
    /// The next so many times.
    Times(u32),
    /// Each time with this probability, between 0 and 1.
    Chance(f64),
}

impl From<u32> for Occurrence {
    fn from(times: u32) -> Self {
        Self::Times(times)
    }
}

impl From<f64> for Occurrence {
    fn from(probability: f64) -> Self {
        Self::Chance(probability)
    }
}

impl Occurrence {
    fn happens(&mut self, random: &mut fastrand::Rng) -> bool {
        match self {
            Self::Times(0) => false,
            Self::Times(times) => {
                *times -= 1;
                true
            }
            Self::Chance(probability) => random.f64() < *probability,
        }
    }
}

/// Places at which a consumer can crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CrashPoint {
    BeforeHandling,
    BeforeAck,
    AfterAck,
}

/// Faults of single calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CallFault {
    /// A publish fails before the event is stored.
    PublishRefused,
    /// The event is stored, and the answer is lost.
    AnswerLost,
    /// The event is published twice.
    Duplicate,
    /// The dead-letter queue refuses a letter.
    LetterRefused,
    /// A consumer's call for events fails.
    FetchRefused,
}

/// The faults to come.
#[derive(Default)]
pub(super) struct Plan {
    crashes: BTreeMap<(CrashPoint, String), Occurrence>,
    calls: BTreeMap<CallFault, Occurrence>,
    answer_delay: Range<u64>,
    delivery_delay: Range<u64>,
    unavailable_until: Option<Instant>,
    frozen_until: BTreeMap<String, Instant>,
    clock_error_ms: i64,
}

impl Plan {
    pub(super) fn crashes(&mut self, point: CrashPoint, consumer: &str, random: &mut fastrand::Rng) -> bool {
        let planned = self.crashes.get_mut(&(point, consumer.to_owned()));
        planned.is_some_and(|occurrence| occurrence.happens(random))
    }

    pub(super) fn fails(&mut self, fault: CallFault, random: &mut fastrand::Rng) -> bool {
        self.calls.get_mut(&fault).is_some_and(|occurrence| occurrence.happens(random))
    }

    pub(super) fn answer_delay(&self, random: &mut fastrand::Rng) -> Duration {
        drawn(&self.answer_delay, random)
    }

    pub(super) fn delivery_delay(&self, random: &mut fastrand::Rng) -> Duration {
        drawn(&self.delivery_delay, random)
    }

    pub(super) fn is_unavailable(&self) -> bool {
        self.unavailable_until.is_some_and(|until| Instant::now() < until)
    }

    /// Returns the time until which this process does nothing.
    pub(super) fn frozen_until(&self, consumer: &str) -> Option<Instant> {
        self.frozen_until.get(consumer).copied().filter(|until| Instant::now() < *until)
    }
}

fn drawn(range: &Range<u64>, random: &mut fastrand::Rng) -> Duration {
    if range.is_empty() { Duration::ZERO } else { Duration::from_millis(random.u64(range.clone())) }
}

/// Plans faults. Each method replaces what it planned before, and returns the plan for the next one.
///
/// Numbers of times count down as the faults happen; probabilities and ranges hold until they are replaced. A range is
/// in milliseconds, and the seed draws from it.
pub struct Faults {
    pub(super) world: Arc<World>,
}

impl Faults {
    /// Crashes the consumer when it has received an event, before its handler is called. It loses what it holds: its
    /// leases end after the ack wait. It [starts again](super::TestConsumer) a second later.
    pub fn crash_before_handling(&self, consumer: &str, how_often: impl Into<Occurrence>) -> &Self {
        self.crash_at(CrashPoint::BeforeHandling, consumer, how_often.into())
    }

    /// Crashes the consumer after its handler has succeeded, before it has acknowledged the event.
    pub fn crash_before_ack(&self, consumer: &str, how_often: impl Into<Occurrence>) -> &Self {
        self.crash_at(CrashPoint::BeforeAck, consumer, how_often.into())
    }

    /// Crashes the consumer right after the provider has taken its ack.
    pub fn crash_after_ack(&self, consumer: &str, how_often: impl Into<Occurrence>) -> &Self {
        self.crash_at(CrashPoint::AfterAck, consumer, how_often.into())
    }

    /// Crashes the consumer now.
    pub fn crash(&self, consumer: &str) -> &Self {
        self.world.crash(consumer);
        self
    }

    /// Stops everything that the consumer does with the provider for this time, from now on: it fetches, settles and
    /// extends nothing, so its leases end. Its handlers continue. Of two freezes, the later end counts.
    pub fn freeze(&self, consumer: &str, time: Duration) -> &Self {
        self.world.note("test", format_args!("freeze {consumer} for {time:?}"));
        let until = Instant::now().after(time);
        let mut plan = self.plan();
        let frozen = plan.frozen_until.entry(consumer.to_owned()).or_insert(until);
        *frozen = (*frozen).max(until);
        drop(plan);
        self
    }

    /// Lets a publish fail before it stores its event. A retry helps.
    pub fn fail_publish(&self, how_often: impl Into<Occurrence>) -> &Self {
        self.call_fault(CallFault::PublishRefused, how_often.into())
    }

    /// Loses the answer of a publish that has stored its event: the publisher gets an error with
    /// [`may_be_stored`](crate::EventError::may_be_stored).
    pub fn lose_publish_answer(&self, how_often: impl Into<Occurrence>) -> &Self {
        self.call_fault(CallFault::AnswerLost, how_often.into())
    }

    /// Publishes an event a second time with the same id and options, as a publisher does that did not get its answer.
    pub fn duplicate_publish(&self, how_often: impl Into<Occurrence>) -> &Self {
        self.call_fault(CallFault::Duplicate, how_often.into())
    }

    /// Delays the answer of each publish, after the event is stored.
    pub fn delay_publish_answer(&self, milliseconds: Range<u64>) -> &Self {
        self.plan().answer_delay = milliseconds;
        self
    }

    /// Lets the dead-letter queue refuse a letter. A retry helps.
    pub fn fail_dead_letter(&self, how_often: impl Into<Occurrence>) -> &Self {
        self.call_fault(CallFault::LetterRefused, how_often.into())
    }

    /// Lets a consumer's call for events fail, while other calls work. A retry helps.
    pub fn fail_fetch(&self, how_often: impl Into<Occurrence>) -> &Self {
        self.call_fault(CallFault::FetchRefused, how_often.into())
    }

    /// Delays each delivery to a consumer. The lease runs meanwhile.
    pub fn delay(&self, milliseconds: Range<u64>) -> &Self {
        self.plan().delivery_delay = milliseconds;
        self
    }

    /// Makes the provider unavailable for this time, from now on: every call fails, and a retry helps.
    pub fn unavailable(&self, time: Duration) -> &Self {
        self.world.note("test", format_args!("the provider is unavailable for {time:?}"));
        self.plan().unavailable_until = Some(Instant::now().after(time));
        self.world.outage.notify_waiters();
        self
    }

    /// Moves the wall clock forwards. Timers are not affected. No effect outside of a simulation.
    pub fn clock_forward(&self, by: Duration) -> &Self {
        self.move_clock(i64::try_from(by.as_millis()).unwrap_or(i64::MAX))
    }

    /// Moves the wall clock back. Timers are not affected. No effect outside of a simulation.
    pub fn clock_back(&self, by: Duration) -> &Self {
        self.move_clock(i64::try_from(by.as_millis()).map_or(i64::MIN, i64::wrapping_neg))
    }

    /// Ends the faults of this consumer: it is not frozen, and no planned crash happens. A crash that has happened is not
    /// undone.
    pub fn spare(&self, consumer: &str) -> &Self {
        let mut plan = self.plan();
        plan.frozen_until.remove(consumer);
        plan.crashes.retain(|(_, crashes), _| crashes != consumer);
        drop(plan);
        self
    }

    /// Ends all faults: nothing that was planned happens any more, the provider is available and no consumer frozen.
    /// The wall clock keeps its error, and crashed consumers start again as planned.
    pub fn stop(&self) -> &Self {
        self.world.note("test", format_args!("the faults stop"));
        let clock_error_ms = self.plan().clock_error_ms;
        *self.plan() = Plan { clock_error_ms, ..Plan::default() };
        self
    }

    fn crash_at(&self, point: CrashPoint, consumer: &str, occurrence: Occurrence) -> &Self {
        self.plan().crashes.insert((point, consumer.to_owned()), occurrence);
        self
    }

    fn call_fault(&self, fault: CallFault, occurrence: Occurrence) -> &Self {
        self.plan().calls.insert(fault, occurrence);
        self
    }

    fn move_clock(&self, by_ms: i64) -> &Self {
        self.world.note("test", format_args!("the clock jumps by {by_ms} ms"));
        let mut plan = self.plan();
        plan.clock_error_ms = plan.clock_error_ms.saturating_add(by_ms);
        self.world.clock.set_error(plan.clock_error_ms);
        drop(plan);
        self
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.world.plan()
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").finish_non_exhaustive()
    }
}
