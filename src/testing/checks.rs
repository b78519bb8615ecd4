//! Checks of a consumer.

use std::fmt;
use std::sync::Arc;

use super::world::{Seen, World};
use super::{Outcome, TestError};
use crate::dlq::DeadLetterStatus;
use crate::poison::IgnorePoison;

/// A consumer as the last [`settle`](super::TestBus::settle) or [`advance`](super::TestBus::advance) left it; see
/// [`TestBus::assert`](super::TestBus::assert).
pub struct Checked {
    name: String,
    /// Stored names of its durable consumers.
    consumers: Vec<String>,
    seen: Arc<Seen>,
}

impl Checked {
    pub(super) fn new(world: &World, name: &str) -> Outcome<Self> {
        let process = world.processes.lock().ignore_poison().get(name).cloned();
        let Some(process) = process else {
            return Err(wrong(name, format_args!("no such consumer was started")));
        };
        let seen = world.seen();
        if let Some(error) = &seen.error {
            return Err(wrong(name, format_args!("the provider could not be asked: {error}")));
        }
        Ok(Self { name: name.to_owned(), consumers: process.consumers(), seen })
    }
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checked").field("name", &self.name).finish_non_exhaustive()
    }
}

fn wrong(name: &str, what: fmt::Arguments<'_>) -> TestError {
    format!("consumer \"{name}\": {what}").into()
}

/// The checks, on the result of [`TestBus::assert`](super::TestBus::assert). Each one returns the consumer for the next
/// check, or the first error.
pub trait Checks: Sized {
    /// Checks that every matching event was delivered and settled: acknowledged, terminated or dead-lettered. Needs a
    /// durable consumer and a provider with the capability `consumer_info`.
    ///
    /// # Errors
    ///
    /// The number of events that were not delivered or settled.
    fn settled(self) -> Self;

    /// Checks that no event of this consumer is in the dead letters, replayed ones included.
    ///
    /// # Errors
    ///
    /// The first dead letter.
    fn no_dead_letters(self) -> Self;

    /// Checks that so many events of this consumer are in the dead letters and were not replayed or discarded.
    ///
    /// # Errors
    ///
    /// The number of those found.
    fn dead_letters(self, count: usize) -> Self;
}

impl Checks for Outcome<Checked> {
    fn settled(self) -> Self {
        let checked = self?;
        if checked.consumers.is_empty() {
            return Err(wrong(&checked.name, format_args!("it has opened no durable consumer")));
        }
        for stored in &checked.consumers {
            let Some(info) = checked.seen.consumers.iter().find(|info| info.name == *stored) else {
                return Err(wrong(
                    &checked.name,
                    format_args!("its durable consumer {stored} does not exist"),
                ));
            };
            if info.lag > 0 || info.pending > 0 {
                return Err(wrong(
                    &checked.name,
                    format_args!("{} events are not delivered and {} not settled", info.lag, info.pending),
                ));
            }
        }
        Ok(checked)
    }

    fn no_dead_letters(self) -> Self {
        let checked = self?;
        let name = Some(checked.name.as_str());
        let mut of_it =
            checked.seen.letters.iter().filter(|letter| letter.letter.subscriber.as_deref() == name);
        match of_it.next_back() {
            Some(stored) => Err(wrong(
                &checked.name,
                format_args!(
                    "event {} on {} is dead-lettered: {}",
                    stored.letter.event.sequence, stored.letter.event.event.subject, stored.letter.reason
                ),
            )),
            None => Ok(checked),
        }
    }

    fn dead_letters(self, count: usize) -> Self {
        let checked = self?;
        let name = Some(checked.name.as_str());
        let open = checked.seen.letters.iter().filter(|stored| {
            stored.letter.subscriber.as_deref() == name && stored.status == DeadLetterStatus::Open
        });
        match open.count() {
            found if found == count => Ok(checked),
            found => Err(wrong(&checked.name, format_args!("{found} open dead letters, expected {count}"))),
        }
    }
}
