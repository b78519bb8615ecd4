//! Tests the state machine against a reference model: a plain list of events that every decision searches completely.

use std::time::Duration;

use proptest::prelude::*;

use std::collections::BTreeMap;

use super::{ConsumerConfig, ConsumerSnapshot, Fetched, GroupState, Lease, PendingState, Start, Time};
use crate::types::SubscribeOptions;

#[derive(Debug, Clone)]
enum Op {
    /// Stores an event, matching or not.
    Publish {
        matches: bool,
    },
    Fetch,
    /// These settle any lease that was ever handed out, including stale and settled ones.
    Ack(prop::sample::Index),
    Nak(prop::sample::Index, Option<u16>),
    Extend(prop::sample::Index),
    Release(prop::sample::Index),
    /// A member crashes: the leases that it holds are never settled.
    CrashMember,
    Advance(u16),
    /// Retention drops the oldest stored events.
    Retain {
        drop: u8,
    },
    /// Changes every setting that may change, while events are leased.
    Reconfigure(SubscribeOptions),
    /// The consumer is restored from its stored state.
    Restart,
    /// The clock is set back.
    SetBack(u16),
    /// The consumer is moved to after this sequence, or to the end.
    Reset(u8),
    /// Some of the above operations run in a transaction that fails.
    Fail(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => prop::bool::weighted(0.8).prop_map(|matches| Op::Publish { matches }),
        8 => Just(Op::Fetch),
        4 => index().prop_map(Op::Ack),
        3 => (index(), prop::option::of(0..3_000_u16)).prop_map(|(which, delay)| Op::Nak(which, delay)),
        1 => index().prop_map(Op::Extend),
        1 => index().prop_map(Op::Release),
        1 => Just(Op::CrashMember),
        3 => (0..2_500_u16).prop_map(Op::Advance),
        1 => (1..4_u8).prop_map(|drop| Op::Retain { drop }),
        1 => options().prop_map(Op::Reconfigure),
        1 => Just(Op::Restart),
        1 => (0..5_000_u16).prop_map(Op::SetBack),
        1 => (0..20_u8).prop_map(Op::Reset),
        1 => any::<u8>().prop_map(Op::Fail),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// Not yet delivered.
    Waiting,
    /// Before the consumer's start.
    Skipped,
    Pending {
        attempt: u32,
        leased: bool,
        due: Time,
        since: Time,
    },
    Acked,
    Exhausted,
    /// Dropped by retention before it was processed.
    Missed,
}

struct Entry {
    sequence: u64,
    matches: bool,
    retained: bool,
    fate: Fate,
}

/// The reference model: every decision looks at every event.
struct Model {
    entries: Vec<Entry>,
    config: ConsumerConfig,
    reported_missed: u64,
    highest_first_delivery: u64,
    generation: u32,
    /// Number of events given up before the last reset.
    exhausted_before: usize,
}

impl Model {
    fn entry(&mut self, sequence: u64) -> &mut Entry {
        self.entries.iter_mut().find(|entry| entry.sequence == sequence).expect("known sequence")
    }

    fn count(&self, test: impl Fn(&Fate) -> bool) -> usize {
        self.entries.iter().filter(|entry| entry.matches && test(&entry.fate)).count()
    }

    fn pending(&self) -> usize {
        self.count(|fate| matches!(fate, Fate::Pending { .. }))
    }

    fn first_retained(&self) -> u64 {
        self.entries
            .iter()
            .find(|entry| entry.retained)
            .map_or(self.entries.len() as u64 + 1, |entry| entry.sequence)
    }

    fn next_match(&self, cursor: u64) -> Option<u64> {
        self.entries
            .iter()
            .find(|entry| entry.retained && entry.matches && entry.sequence > cursor)
            .map(|entry| entry.sequence)
    }

    fn fetch(&mut self, now: Time) -> Fetched {
        // Due events are delivered in sequence order, regardless of when they became due.
        let due: Vec<(u64, u32)> = self
            .entries
            .iter()
            .filter_map(|entry| match entry.fate {
                Fate::Pending { attempt, due, .. } if due <= now => Some((entry.sequence, attempt)),
                _ => None,
            })
            .collect();
        let max_deliver = self.config.max_deliver;
        let mut redeliver = None;
        for (sequence, attempt) in due {
            let entry = self.entry(sequence);
            if !entry.retained {
                entry.fate = Fate::Missed;
            } else if max_deliver.is_some_and(|max| u64::from(attempt) >= max) {
                entry.fate = Fate::Exhausted;
            } else {
                redeliver = Some((sequence, attempt));
                break;
            }
        }
        for entry in self.entries.iter_mut().filter(|entry| entry.fate == Fate::Waiting && !entry.retained) {
            entry.fate = Fate::Missed;
        }
        let missed = self.count(|fate| *fate == Fate::Missed) as u64;
        if missed > self.reported_missed {
            return Fetched::Missed(missed - std::mem::replace(&mut self.reported_missed, missed));
        }
        if let Some((sequence, attempt)) = redeliver {
            return self.hand_out(now, sequence, attempt + 1);
        }
        if self.pending() >= self.config.max_ack_pending {
            return Fetched::Idle;
        }
        match self.entries.iter().find(|entry| entry.matches && entry.fate == Fate::Waiting) {
            Some(entry) => {
                let sequence = entry.sequence;
                assert!(sequence > self.highest_first_delivery, "first deliveries come in order");
                self.highest_first_delivery = sequence;
                self.hand_out(now, sequence, 1)
            }
            None => Fetched::Idle,
        }
    }

    fn hand_out(&mut self, now: Time, sequence: u64, attempt: u32) -> Fetched {
        let fate = pending(attempt, true, now, self.config.ack_wait);
        self.entry(sequence).fate = fate;
        Fetched::Deliver(Lease { sequence, attempt, generation: self.generation })
    }

    /// Applies a settlement. Returns `true` if it takes effect.
    fn settle(&mut self, lease: Lease, settled: impl FnOnce(&ConsumerConfig) -> Fate) -> bool {
        let config = self.config.clone();
        let generation = self.generation;
        let entry = self.entry(lease.sequence);
        let valid = generation == lease.generation
            && matches!(entry.fate, Fate::Pending { attempt, leased: true, .. } if attempt == lease.attempt);
        if valid {
            entry.fate = settled(&config);
        }
        valid
    }
}

impl Model {
    /// Limits every remaining wait to its original duration.
    fn set_back(&mut self, now: Time) {
        for entry in &mut self.entries {
            if let Fate::Pending { due, since, .. } = &mut entry.fate
                && *since > now
            {
                *due = now.after(due.saturating_since(*since));
                *since = now;
            }
        }
    }

    fn reset(&mut self, cursor: u64) {
        self.exhausted_before += self.count(|fate| *fate == Fate::Exhausted);
        for entry in &mut self.entries {
            let comes = entry.sequence > cursor && entry.matches && entry.retained;
            entry.fate = if comes { Fate::Waiting } else { Fate::Skipped };
        }
        self.reported_missed = 0;
        self.highest_first_delivery = cursor;
        self.generation += 1;
    }
}

fn pending(attempt: u32, leased: bool, now: Time, wait: Duration) -> Fate {
    Fate::Pending { attempt, leased, due: now.after(wait), since: now }
}

/// Pending events, as a provider stores them that writes only changes.
#[derive(Default)]
struct Rows(BTreeMap<u64, PendingState>);

impl Rows {
    fn write_changes(&mut self, consumer: &mut GroupState) {
        for sequence in consumer.take_changes() {
            self.0.remove(&sequence);
            self.0.extend(consumer.pending_in(sequence..=sequence).map(|pending| (sequence, pending)));
        }
    }

    fn restore(&self, consumer: &GroupState) -> GroupState {
        GroupState::restore(ConsumerSnapshot {
            pending: self.0.values().copied().collect(),
            ..consumer.snapshot()
        })
    }
}

/// Start of the consumer in a run.
#[derive(Debug, Clone)]
enum From {
    /// After this sequence, which may lie in the future.
    After(u8),
    /// With the marked stored events, and then after all stored events.
    Backlog(Vec<bool>),
}

fn from() -> impl Strategy<Value = From> {
    prop_oneof![
        2 => (0..12_u8).prop_map(From::After),
        1 => prop::collection::vec(any::<bool>(), 6).prop_map(From::Backlog),
    ]
}

/// Runs the operations on a consumer of a stream with `before` events.
fn run(options: &SubscribeOptions, before: u8, from: &From, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let config = ConsumerConfig::new("events.>", options).expect("valid options");
    let before = u64::from(before);
    let (start, mut start_cursor, mut backlog) = match from {
        From::After(cursor) => (Start::after(u64::from(*cursor)), u64::from(*cursor), Vec::new()),
        From::Backlog(marked) => {
            let marked = (1..=before).zip(marked).filter(|(_, marked)| **marked);
            let backlog: Vec<u64> = marked.map(|(sequence, _)| sequence).collect();
            (Start::backlog(backlog.iter().copied(), before), before, backlog)
        }
    };
    let first_fate = |sequence: u64, cursor: u64, backlog: &[u64]| {
        if sequence > cursor || backlog.contains(&sequence) { Fate::Waiting } else { Fate::Skipped }
    };
    let mut consumer = GroupState::new(config.clone(), start);
    consumer.track_changes();
    let mut rows = Rows::default();
    let mut model = Model {
        entries: Vec::new(),
        config,
        reported_missed: 0,
        highest_first_delivery: 0,
        generation: 0,
        exhausted_before: 0,
    };
    for sequence in 1..=before {
        model.entries.push(Entry {
            sequence,
            matches: true,
            retained: true,
            fate: first_fate(sequence, start_cursor, &backlog),
        });
    }
    let mut now = Time::from_origin(Duration::from_secs(1_000));
    let mut leases: Vec<Lease> = Vec::new();
    for op in ops {
        match op {
            Op::Publish { matches } => {
                let sequence = model.entries.len() as u64 + 1;
                let fate = if matches { first_fate(sequence, start_cursor, &backlog) } else { Fate::Skipped };
                model.entries.push(Entry { sequence, matches, retained: true, fate });
            }
            Op::Fetch => {
                // As a provider does, report the matches after the cursor that retention dropped. The machine itself
                // tracks its backlog, which lies before the cursor.
                let overtaken = model
                    .entries
                    .iter()
                    .filter(|entry| entry.matches && !entry.retained && entry.fate == Fate::Waiting)
                    .filter(|entry| !backlog.contains(&entry.sequence))
                    .count() as u64;
                consumer.note_missed(overtaken);
                let found = consumer.fetch(now, model.first_retained(), |cursor| model.next_match(cursor));
                prop_assert_eq!(found, model.fetch(now));
                if let Fetched::Deliver(lease) = found {
                    leases.push(lease);
                }
            }
            Op::Ack(which) if !leases.is_empty() => {
                let lease = *which.get(&leases);
                prop_assert_eq!(consumer.ack(lease).is_ok(), model.settle(lease, |_| Fate::Acked));
            }
            Op::Nak(which, delay) if !leases.is_empty() => {
                let lease = *which.get(&leases);
                let delay = delay.map(|millis| Duration::from_millis(millis.into()));
                let took_effect = model.settle(lease, |config| {
                    if config.max_deliver.is_some_and(|max| u64::from(lease.attempt) >= max) {
                        return Fate::Exhausted;
                    }
                    let delay = delay.unwrap_or_else(|| config.backoff_after(lease.attempt));
                    pending(lease.attempt, false, now, delay)
                });
                prop_assert_eq!(consumer.nak(lease, delay, now).is_ok(), took_effect);
            }
            Op::Extend(which) if !leases.is_empty() => {
                let lease = *which.get(&leases);
                let took_effect =
                    model.settle(lease, |config| pending(lease.attempt, true, now, config.ack_wait));
                prop_assert_eq!(consumer.extend(lease, now).is_ok(), took_effect);
            }
            Op::Release(which) if !leases.is_empty() => {
                let lease = *which.get(&leases);
                let took_effect =
                    model.settle(lease, |_| pending(lease.attempt - 1, false, now, Duration::ZERO));
                prop_assert_eq!(consumer.release(lease, now).is_ok(), took_effect);
            }
            Op::CrashMember => leases.clear(),
            Op::Advance(millis) => now = now.after(Duration::from_millis(millis.into())),
            Op::Retain { drop } => {
                let oldest = model.entries.iter_mut().filter(|entry| entry.retained);
                oldest.take(drop.into()).for_each(|entry| entry.retained = false);
            }
            Op::Reconfigure(options) => {
                let wanted = ConsumerConfig::new("events.>", &options).expect("valid options");
                consumer.reconfigure("c", wanted.clone()).expect("a legal change");
                model.config = wanted;
            }
            Op::Restart => consumer = rows.restore(&consumer),
            Op::SetBack(millis) => {
                now = Time::from_origin(
                    now.since_origin().saturating_sub(Duration::from_millis(millis.into())),
                );
                // The machine notices the change when it observes the time.
                consumer.observe(now);
                model.set_back(now);
            }
            Op::Reset(behind) => {
                let cursor = u64::from(behind).clamp(model.first_retained() - 1, model.entries.len() as u64);
                consumer.reset(Start::after(cursor));
                backlog.clear();
                model.reset(cursor);
                start_cursor = cursor;
            }
            Op::Fail(fetches) => fail(&mut consumer, &model, now, fetches, &leases)?,
            _ => {}
        }
        rows.write_changes(&mut consumer);
        check_agreement(&mut consumer, &model)?;
    }
    Ok(())
}

/// Checks that undone changes leave no trace.
fn fail(
    consumer: &mut GroupState,
    model: &Model,
    now: Time,
    what: u8,
    leases: &[Lease],
) -> Result<(), TestCaseError> {
    consumer.observe(now);
    let before = consumer.snapshot();
    let next_due = consumer.next_due();
    consumer.remember_changes();
    for lease in leases.iter().rev().take(usize::from(what % 4)) {
        let _ = if what > 99 { consumer.ack(*lease) } else { consumer.nak(*lease, None, now) };
    }
    for _ in 0..what % 5 {
        consumer.fetch(now, model.first_retained(), |cursor| model.next_match(cursor));
    }
    if what.is_multiple_of(7) {
        consumer.reset(Start::backlog([1], 2));
        consumer.fetch(now, 1, |_| None);
    }
    consumer.take_back_changes();
    prop_assert_eq!(consumer.snapshot(), before);
    prop_assert_eq!(consumer.next_due(), next_due);
    Ok(())
}

fn check_agreement(consumer: &mut GroupState, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(consumer.pending(), model.pending());
    prop_assert_eq!(
        consumer.exhausted(),
        (model.exhausted_before + model.count(|fate| *fate == Fate::Exhausted)) as u64
    );
    prop_assert_eq!(
        consumer.redelivered(),
        model.count(|fate| matches!(fate, Fate::Pending { attempt, .. } if *attempt > 1))
    );
    let earliest = model.entries.iter().filter_map(|entry| match entry.fate {
        Fate::Pending { due, .. } => Some(due),
        _ => None,
    });
    prop_assert_eq!(consumer.next_due(), earliest.min());
    prop_assert!(
        consumer.timers.len() + consumer.due.len() <= 2 * consumer.pending.len() + 64,
        "timers are bounded by what is pending"
    );
    Ok(())
}

fn options() -> impl Strategy<Value = SubscribeOptions> {
    (prop::option::of(1..4_i64), prop::collection::vec(0..3_u64, 0..3), 1..5_i64, 1..3_u64).prop_map(
        |(max_deliver, mut backoff_secs, max_ack_pending, ack_wait_secs)| {
            backoff_secs.sort_unstable();
            backoff_secs.truncate(max_deliver.map_or(usize::MAX, |max| usize::try_from(max).expect("small")));
            SubscribeOptions {
                max_deliver,
                backoff_secs,
                max_ack_pending: Some(max_ack_pending),
                ack_wait_secs: Some(ack_wait_secs),
                ..SubscribeOptions::default()
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn the_machine_does_what_the_model_does(
        options in options(),
        before in 0..6_u8,
        from in from(),
        ops in prop::collection::vec(op(), 0..80),
    ) {
        run(&options, before, &from, ops)?;
    }
}

#[test]
fn a_backlog_goes_before_the_cursor_and_is_reported_when_it_is_gone() {
    let config = ConsumerConfig::new("events.>", &SubscribeOptions::default()).unwrap();
    let mut consumer = GroupState::new(config, Start::backlog([2, 5, 7], 9));
    let mut fetch = |first_retained| consumer.fetch(Time::ZERO, first_retained, |cursor| Some(cursor + 1));
    assert_eq!(fetch(1), Fetched::Deliver(Lease::new(2, 1)));
    assert_eq!(fetch(6), Fetched::Missed(1));
    assert_eq!(fetch(6), Fetched::Deliver(Lease::new(7, 1)));
    assert_eq!(fetch(6), Fetched::Deliver(Lease::new(10, 1)));
}
