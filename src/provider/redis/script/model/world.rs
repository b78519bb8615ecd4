//! A stream twice: at a server, and as the reference, which looks at every event for every decision.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use redis::Connection;

use super::ops::Op;
use super::{FILTERS, NAMES};
use crate::provider::group::{GroupState, Lease, Time};
use crate::provider::redis::keys::Keys;
use crate::provider::redis::script::Call;
use crate::provider::redis::script::server::run;
use crate::subject::subject_matches;

/// A stored event, as the reference knows it.
pub(super) struct Stored {
    pub(super) subject: &'static str,
    pub(super) stored_at: u64,
    pub(super) size: u64,
    pub(super) is_retained: bool,
}

/// A consumer, as the reference knows it.
pub(super) struct Consumer {
    pub(super) name: &'static str,
    pub(super) generation: String,
    pub(super) machine: GroupState,
    /// Start time that has not come.
    pub(super) starts_at: Option<u64>,
    /// Dropped matches after the cursor, which the next fetch reports.
    pub(super) owed: u64,
    pub(super) leases: Vec<(Lease, String)>,
    pub(super) is_open: bool,
}

impl Consumer {
    pub(super) fn takes(&self, subject: &str) -> bool {
        subject_matches(subject, &self.machine.config().filter)
    }
}

/// The stream twice: at the server and as the reference.
pub(super) struct World<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) keys: Keys,
    pub(super) beginning: u64,
    /// If false, the lease of a consumer never changes, so that its waits are known when the clock is set back.
    pub(super) changes_ack_wait: bool,
    pub(super) now: u64,
    pub(super) ms: u64,
    pub(super) first: u64,
    pub(super) events: BTreeMap<u64, Stored>,
    pub(super) limits: (u64, u64, u64),
    /// Sequence and time of the first event with each `msg_id`.
    pub(super) msg_ids: BTreeMap<&'static str, (u64, u64)>,
    pub(super) msg_id_queue: VecDeque<&'static str>,
    pub(super) behind_since: Option<u64>,
    pub(super) consumers: Vec<Consumer>,
    pub(super) steps: &'a mut usize,
}

pub(super) const EPOCH: &str = "epoch";

impl World<'_> {
    pub(super) fn call(&mut self, call: Call) -> redis::Value {
        let name = call.script.name;
        run(self.connection, &call).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(super) fn time(&self) -> Time {
        Time::from_origin(Duration::from_millis(self.now))
    }

    pub(super) fn last(&self) -> u64 {
        self.events.last_key_value().map_or(self.beginning, |(sequence, _)| *sequence)
    }

    pub(super) fn retained(&self) -> impl DoubleEndedIterator<Item = (u64, &Stored)> {
        let retained = self.events.iter().filter(|(_, event)| event.is_retained);
        retained.map(|(sequence, event)| (*sequence, event))
    }

    pub(super) fn first_stored_since(&self, time: u64) -> Option<u64> {
        self.retained().find(|(_, event)| event.stored_at >= time).map(|(sequence, _)| sequence)
    }

    pub(super) fn near(&self, offset: i16) -> u64 {
        self.now.saturating_add_signed(offset.into())
    }

    pub(super) fn step(&mut self, op: Op) -> Result<(), TestCaseError> {
        *self.steps += 1;
        let count = self.consumers.len();
        match op {
            Op::Publish(subjects) => self.publish(&subjects)?,
            Op::Fetch { who, max, max_bytes } if count > 0 => self.fetch(who.index(count), max, max_bytes)?,
            Op::Settle { who, settlings } if count > 0 => self.settle(who.index(count), &settlings)?,
            Op::Crash(who) if count > 0 => self.consumers[who.index(count)].leases.clear(),
            Op::Advance(millis) => self.now = self.now.saturating_add(millis.into()),
            Op::SetBack(millis) if !self.changes_ack_wait => {
                self.now -= u64::from(millis);
            }
            Op::Limit(events, bytes, age) => {
                self.limit((events, bytes, age));
                self.retain()?;
            }
            Op::Retain(drop) => {
                let limits = self.limits;
                let left = self.retained().count().saturating_sub(drop);
                if left > 0 {
                    self.limit((left as u64, 0, 0));
                    self.retain()?;
                    self.limit(limits);
                }
            }
            Op::Purge(filter) => self.purge(FILTERS[filter])?,
            Op::Open { name, filter, start, options, applies } => {
                self.open(NAMES[name], FILTERS[filter], start, options, applies)?;
            }
            Op::Close(who) if count > 0 => self.close(who.index(count))?,
            Op::Reset(who, place) if count > 0 => self.reset(who.index(count), place)?,
            Op::Flush => redis::cmd("SCRIPT").arg("FLUSH").exec(self.connection).unwrap(),
            _ => {}
        }
        self.check()
    }

    /// Compares the numbers of every consumer, and of the stream.
    pub(super) fn check(&mut self) -> Result<(), TestCaseError> {
        let mut pipe = redis::pipe();
        let open: Vec<_> = self.consumers.iter().filter(|consumer| consumer.is_open).collect();
        for consumer in &open {
            let key = self.keys.consumer(consumer.name);
            pipe.cmd("HMGET").arg(key).arg(&["exhausted", "redelivered", "moves"]);
            pipe.cmd("ZCARD").arg(self.keys.due(consumer.name));
        }
        pipe.cmd("XLEN").arg(self.keys.log()).cmd("HGET").arg(self.keys.meta()).arg("bytes");
        pipe.cmd("HLEN").arg(self.keys.consumers());
        let mut values: Vec<redis::Value> = pipe.query(self.connection).unwrap();
        let stream = values.split_off(2 * open.len());
        let (count, bytes, consumers): (usize, Option<u64>, usize) = (
            redis::from_redis_value(stream[0].clone()).unwrap(),
            redis::from_redis_value(stream[1].clone()).unwrap(),
            redis::from_redis_value(stream[2].clone()).unwrap(),
        );
        let expected: u64 = self.retained().map(|(_, event)| event.size).sum();
        prop_assert_eq!((count, bytes.unwrap_or(0)), (self.retained().count(), expected));
        prop_assert_eq!(consumers, open.len());
        for (consumer, values) in open.iter().zip(values.chunks(2)) {
            let numbers: (u64, usize, u32) = redis::from_redis_value(values[0].clone()).unwrap();
            let pending: usize = redis::from_redis_value(values[1].clone()).unwrap();
            let machine = &consumer.machine;
            let expected = (machine.exhausted(), machine.redelivered(), machine.generation());
            prop_assert_eq!(numbers, expected, "{}", consumer.name);
            prop_assert_eq!(pending, machine.pending(), "{}", consumer.name);
        }
        Ok(())
    }
}
