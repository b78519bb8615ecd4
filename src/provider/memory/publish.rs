//! Publishing: checks, then one short exclusive section, then waking the readers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::log::SubjectId;
use super::stream::{Dropped, Lifecycle, Stream};
use crate::error::Result;
use crate::provider::PublishReceipt;
use crate::provider::driver::Checked;
use crate::provider::group::Time;
use crate::provider::support::{answered_without_storing, closed};
use crate::types::Event;

/// The `msg_id`s of the dedup window, with the sequences of their events.
#[derive(Debug)]
pub(super) struct Dedup {
    window: Duration,
    sequences: HashMap<Arc<str>, u64>,
    by_age: VecDeque<(Time, Arc<str>)>,
}

impl Dedup {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, sequences: HashMap::new(), by_age: VecDeque::new() }
    }

    fn find(&mut self, msg_id: &str, now: Time) -> Option<u64> {
        while self.by_age.front().is_some_and(|(expires, _)| *expires <= now) {
            if let Some((_, expired)) = self.by_age.pop_front() {
                self.sequences.remove(&expired);
            }
        }
        self.sequences.get(msg_id).copied()
    }

    fn remember(&mut self, msg_id: &str, sequence: u64, now: Time) {
        if self.window.is_zero() {
            return;
        }
        let msg_id: Arc<str> = msg_id.into();
        self.sequences.insert(Arc::clone(&msg_id), sequence);
        self.by_age.push_back((now.after(self.window), msg_id));
    }
}

/// Maximum number of events of a batch that are stored under one lock.
const EVENTS_PER_SECTION: usize = 16;

/// An event to store, copied outside the lock.
struct Prepared<'a> {
    event: Arc<Event>,
    checked: Checked<'a>,
}

impl<'a> From<Checked<'a>> for Prepared<'a> {
    fn from(checked: Checked<'a>) -> Self {
        Self { event: Arc::new(checked.event().clone()), checked }
    }
}

enum Stored {
    New { sequence: u64, subject: SubjectId, has_readers: bool },
    Duplicate(PublishReceipt),
}

impl Shared {
    pub(super) fn publish(&self, event: Checked<'_>) -> Result<PublishReceipt> {
        let prepared = Prepared::from(event);
        let mut dropped = Dropped::default();
        let stored = self.store(&mut self.write(), prepared, &mut dropped)?;
        if let Stored::New { subject, has_readers: true, .. } = stored {
            self.read().wake_readers(subject, &event.event().subject);
        }
        Ok(stored.receipt())
    }

    /// Stores a batch in few exclusive sections, each short enough that other callers wait only briefly.
    pub(super) fn publish_batch(&self, batch: &[Checked<'_>]) -> Vec<Result<PublishReceipt>> {
        batch.chunks(EVENTS_PER_SECTION).flat_map(|section| self.publish_section(section)).collect()
    }

    fn publish_section(&self, batch: &[Checked<'_>]) -> Vec<Result<PublishReceipt>> {
        let prepared: Vec<_> = batch.iter().copied().map(Prepared::from).collect();
        let mut dropped = Dropped::default();
        let stored: Vec<Result<Stored>> = {
            let mut stream = self.write();
            prepared.into_iter().map(|prepared| self.store(&mut stream, prepared, &mut dropped)).collect()
        };
        let stream = self.read();
        for (entry, stored) in batch.iter().zip(&stored) {
            if let Ok(Stored::New { subject, has_readers: true, .. }) = stored {
                stream.wake_readers(*subject, &entry.event().subject);
            }
        }
        drop(stream);
        stored.into_iter().map(|stored| stored.map(|stored| stored.receipt())).collect()
    }

    fn store(&self, stream: &mut Stream, prepared: Prepared<'_>, dropped: &mut Dropped) -> Result<Stored> {
        let Prepared { event, checked } = prepared;
        let options = checked.options();
        if stream.lifecycle == Lifecycle::Closed {
            return Err(closed(super::NAME));
        }
        let msg_id = options.msg_id.as_deref();
        let first = msg_id.and_then(|msg_id| stream.dedup.find(msg_id, self.clock.now()));
        let (name, last) = (&self.settings.stream_name, stream.log.last());
        if let Some(duplicate) = answered_without_storing(name, last, options.expected_sequence, first)? {
            return Ok(Stored::Duplicate(duplicate));
        }
        let (sequence, subject, has_readers) =
            stream.append(event, checked.size(), self.unix_millis(), dropped);
        if let Some(msg_id) = &options.msg_id {
            stream.dedup.remember(msg_id, sequence, self.clock.now());
        }
        Ok(Stored::New { sequence, subject, has_readers })
    }
}

impl Stored {
    fn receipt(&self) -> PublishReceipt {
        match self {
            Self::New { sequence, .. } => PublishReceipt::stored(*sequence),
            Self::Duplicate(receipt) => *receipt,
        }
    }
}
