//! Consumers: opening, fetching, settling, moving and closing.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::ops::{Place, Policy};
use super::world::{Consumer, EPOCH, World};
use super::{NAMES, SUBJECTS};
use crate::provider::group::{ConsumerConfig, Fetched, GroupState, Lease, StaleLease, Start};
use crate::provider::redis::script::fetch::{self, Events};
use crate::provider::redis::script::open_consumer::{self, Backlog, OpenedConsumer, Wanted};
use crate::provider::redis::script::server::run;
use crate::provider::redis::script::settle::{self, Settled, Settling};
use crate::provider::redis::script::{close_consumer, newest, reset};
use crate::provider::{AckKind, ConsumerPosition};
use crate::subject::subject_matches;
use crate::types::{DeliverPolicy, SubscribeOptions};

impl World<'_> {
    pub(super) fn fetch(&mut self, who: usize, max: usize, max_bytes: usize) -> Result<(), TestCaseError> {
        let (now, first, consumer) = (self.time(), self.first, &mut self.consumers[who]);
        let name = consumer.name;
        let request = fetch::Request {
            name,
            generation: &consumer.generation,
            max,
            max_bytes,
            is_ephemeral: name == NAMES[3],
        };
        let call = fetch::fetch(&self.keys, EPOCH, request).at(self.now);
        let answer = fetch::read(run(self.connection, &call).unwrap()).unwrap();
        if !consumer.is_open {
            prop_assert_eq!(answer, fetch::Fetched::Gone);
            return Ok(());
        }
        if consumer.starts_at.is_none() {
            consumer.machine.skip_to(first - 1, std::mem::take(&mut consumer.owed));
        }
        let (mut leases, mut room, mut vanished, mut missed, mut is_idle) =
            (Vec::new(), max_bytes, 0, None, false);
        while leases.len() < max && room > 0 {
            let is_waiting = consumer.starts_at.is_some();
            let filter = consumer.machine.config().filter.clone();
            let fetched = consumer.machine.fetch(now, first, |cursor| {
                let mut behind = self.events.range(cursor + 1..);
                let next =
                    behind.find(|(_, event)| event.is_retained && subject_matches(event.subject, &filter));
                next.filter(|_| !is_waiting).map(|(sequence, _)| *sequence)
            });
            match fetched {
                Fetched::Deliver(lease) => match self.events.get(&lease.sequence).unwrap() {
                    event if event.is_retained => {
                        room = room.saturating_sub(event.subject.len());
                        leases.push(lease);
                    }
                    _purged => {
                        consumer.machine.ack(lease).unwrap();
                        vanished += 1;
                    }
                },
                Fetched::Missed(count) => {
                    missed = Some(count);
                    break;
                }
                Fetched::Idle => {
                    is_idle = true;
                    break;
                }
            }
        }
        consumer.machine.note_missed(vanished);
        if let Some(missed) = missed {
            prop_assert!(leases.is_empty());
            prop_assert_eq!(answer, fetch::Fetched::Missed(missed), "{}", name);
            return Ok(());
        }
        let fetch::Fetched::Events(Events { deliveries, due, has_more, .. }) = answer else {
            return Err(TestCaseError::fail(format!(
                "{name}: {answer:?}, but {leases:?} are to be delivered"
            )));
        };
        let delivered: Vec<Lease> = deliveries.iter().map(|delivery| delivery.lease).collect();
        prop_assert_eq!(&delivered, &leases, "{}", name);
        for delivery in deliveries {
            let event = &self.events[&delivery.lease.sequence];
            prop_assert_eq!(&delivery.id, &format!("{}-{}", delivery.lease.sequence, event.stored_at));
            prop_assert_eq!(
                (delivery.subject.as_str(), &*delivery.json),
                (event.subject, event.subject.as_bytes())
            );
            consumer.leases.push((delivery.lease, delivery.id));
        }
        if is_idle {
            prop_assert_eq!(has_more, vanished > 0);
        }
        let next_due = consumer.machine.next_due().map(|due| due.saturating_since(now));
        prop_assert_eq!(due, next_due, "{}", name);
        Ok(())
    }

    pub(super) fn settle(&mut self, who: usize, settlings: &[(Index, AckKind)]) -> Result<(), TestCaseError> {
        let now = self.time();
        let consumer = &mut self.consumers[who];
        if consumer.leases.is_empty() {
            return Ok(());
        }
        let drawn: Vec<_> =
            settlings.iter().map(|(which, kind)| (which.get(&consumer.leases).clone(), kind)).collect();
        for part in drawn.chunk_by(|(a, _), (b, _)| a.0.generation == b.0.generation) {
            let settlings: Vec<_> =
                part.iter().map(|((lease, id), kind)| Settling { lease: *lease, kind, id }).collect();
            let request = settle::Request {
                name: consumer.name,
                generation: &consumer.generation,
                moves: part[0].0.0.generation,
                checks_ids: part.len() % 2 == 0,
                settlings: &settlings,
            };
            let call = settle::settle(&self.keys, EPOCH, request).at(self.now);
            let answers = settle::read(run(self.connection, &call).unwrap()).unwrap();
            let mut expected = Vec::new();
            for ((lease, _), kind) in part {
                expected.push(match consumer.machine.settle(*lease, kind, || now) {
                    _ if !consumer.is_open => match kind {
                        AckKind::Ack | AckKind::Term(_) => Settled::Done,
                        _ => Settled::Closed,
                    },
                    Ok(()) => Settled::Done,
                    Err(StaleLease::Redelivered { .. }) => Settled::Redelivered,
                    Err(StaleLease::Reset { .. }) => Settled::Reset,
                    Err(StaleLease::Settled { .. }) => Settled::Already,
                });
            }
            prop_assert_eq!(answers, expected, "{} {:?}", consumer.name, part);
        }
        Ok(())
    }

    pub(super) fn open(
        &mut self,
        name: &'static str,
        filter: &str,
        start: Policy,
        mut options: SubscribeOptions,
        applies: bool,
    ) -> Result<(), TestCaseError> {
        options.deliver_policy = match start {
            Policy::All => DeliverPolicy::All,
            Policy::New => DeliverPolicy::New,
            Policy::Last => DeliverPolicy::Last,
            Policy::LastPerSubject => DeliverPolicy::LastPerSubject,
            Policy::Sequence(offset) => {
                DeliverPolicy::ByStartSequence { sequence: self.beginning + u64::from(offset) + 1 }
            }
            Policy::Time(offset) => DeliverPolicy::ByStartTime { timestamp: self.near(offset) },
        };
        let existing = self.consumers.iter().position(|consumer| consumer.is_open && consumer.name == name);
        if let Some(existing) = existing {
            let config = self.consumers[existing].machine.config();
            if !self.changes_ack_wait {
                options.ack_wait_secs = Some(config.ack_wait.as_secs());
            }
            if options.max_deliver == Some(2) {
                // Else nearly every second opening is a conflict.
                options.deliver_policy = config.deliver_policy.clone();
            }
        }
        let wanted = ConsumerConfig::new(filter, &options).unwrap();
        let generation = format!("generation-{}", self.consumers.len());
        let opened = self.open_at_server(name, &generation, &wanted, applies, None);
        if let Some(existing) = existing {
            let consumer = &mut self.consumers[existing];
            let before = consumer.machine.config().clone();
            let changed = match applies {
                true => consumer.machine.reconfigure(name, wanted),
                false => consumer.machine.config().check_filter(name, filter),
            };
            match opened {
                OpenedConsumer::Conflict(config) => prop_assert!(changed.is_err() && config == before),
                OpenedConsumer::Opened { generation, is_new: false, config, .. } => {
                    prop_assert!(changed.is_ok() && generation == consumer.generation);
                    prop_assert_eq!(&config, consumer.machine.config());
                }
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
            return Ok(());
        }
        let (start, starts_at) = self.start(&wanted);
        let opened = match opened {
            OpenedConsumer::StartsAtNewest(last) => {
                let call = newest::newest(&self.keys, EPOCH, &SUBJECTS, last);
                let mut sequences = newest::read(self.call(call)).unwrap().unwrap();
                sequences.retain(|sequence| subject_matches(self.events[sequence].subject, filter));
                sequences.sort_unstable();
                if wanted.deliver_policy == DeliverPolicy::Last {
                    sequences.drain(..sequences.len().saturating_sub(1));
                }
                let backlog = Backlog { sequences, cursor: last };
                self.open_at_server(name, &generation, &wanted, applies, Some(&backlog))
            }
            opened => opened,
        };
        let is_new =
            matches!(&opened, OpenedConsumer::Opened { is_new: true, config, .. } if *config == wanted);
        prop_assert!(is_new, "{:?}", opened);
        let machine = GroupState::new(wanted, start);
        let leases = Vec::new();
        self.consumers.push(Consumer {
            name,
            generation,
            machine,
            starts_at,
            owed: 0,
            leases,
            is_open: true,
        });
        Ok(())
    }

    pub(super) fn open_at_server(
        &mut self,
        name: &str,
        generation: &str,
        config: &ConsumerConfig,
        applies: bool,
        start: Option<&Backlog>,
    ) -> OpenedConsumer {
        let is_ephemeral = name == NAMES[3];
        let wanted = Wanted {
            name,
            generation,
            config,
            prefix: "events",
            applies,
            is_ephemeral,
            mirrors: false,
            start,
        };
        let call = open_consumer::open_consumer(&self.keys, EPOCH, &wanted).unwrap().at(self.now);
        open_consumer::read(self.call(call), &config.filter).unwrap()
    }

    /// Returns the start of a new consumer, as the other providers choose it.
    pub(super) fn start(&self, config: &ConsumerConfig) -> (Start, Option<u64>) {
        let (dropped, last) = (self.first - 1, self.last());
        let matches = || self.retained().filter(|(_, event)| subject_matches(event.subject, &config.filter));
        let start = match config.deliver_policy {
            DeliverPolicy::All => Start::after(dropped),
            DeliverPolicy::New => Start::after(last),
            DeliverPolicy::ByStartSequence { sequence } => Start::after((sequence - 1).max(dropped)),
            DeliverPolicy::ByStartTime { timestamp } => match self.first_stored_since(timestamp) {
                Some(first) => Start::after(first - 1),
                None => return (Start::after(last), Some(timestamp)),
            },
            DeliverPolicy::Last => Start::backlog(matches().map(|(sequence, _)| sequence).next_back(), last),
            DeliverPolicy::LastPerSubject => {
                let newest: BTreeMap<_, _> =
                    matches().map(|(sequence, event)| (event.subject, sequence)).collect();
                let mut sequences: Vec<u64> = newest.into_values().collect();
                sequences.sort_unstable();
                Start::backlog(sequences, last)
            }
        };
        (start, None)
    }

    pub(super) fn reset(&mut self, who: usize, place: Place) -> Result<(), TestCaseError> {
        let (dropped, last) = (self.first - 1, self.last());
        let (position, cursor) = match place {
            Place::First => (ConsumerPosition::First, dropped),
            Place::Last => (ConsumerPosition::Last, last),
            Place::Sequence(offset) => {
                let sequence = self.beginning + u64::from(offset);
                (ConsumerPosition::Sequence(sequence), sequence.saturating_sub(1).clamp(dropped, last))
            }
            Place::Time(offset) => {
                let time = self.near(offset);
                (ConsumerPosition::Time(time), self.first_stored_since(time).map_or(last, |first| first - 1))
            }
        };
        let consumer = &mut self.consumers[who];
        if !consumer.is_open {
            return Ok(());
        }
        consumer.machine.reset(Start::after(cursor));
        (consumer.owed, consumer.starts_at) = (0, None);
        let call = reset::reset(&self.keys, EPOCH, consumer.name, position).at(self.now);
        prop_assert_eq!(reset::read(self.call(call)).unwrap(), reset::Moved::Done);
        Ok(())
    }

    pub(super) fn close(&mut self, who: usize) -> Result<(), TestCaseError> {
        let consumer = &mut self.consumers[who];
        let was_open = std::mem::replace(&mut consumer.is_open, false);
        let call = close_consumer::close_consumer(&self.keys, consumer.name, Some(&consumer.generation));
        prop_assert_eq!(close_consumer::read(self.call(call)).unwrap(), was_open);
        Ok(())
    }
}
