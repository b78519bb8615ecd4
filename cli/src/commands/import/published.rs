//! The result of an import, and the numbers of the stored records.

use std::time::Instant;

use a3s_event::PublishReceipt;
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::stored::Unreadable;
use crate::text::count;

/// The result of a run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Published {
    /// Number of events that were stored.
    pub(crate) events: u64,
    /// Number of records for which nothing was stored, because the bus has an event with their id.
    pub(crate) duplicates: u64,
    /// Number of records that were skipped, for example because an earlier run has published them.
    skipped: u64,
    last_sequence: u64,
    seconds: f64,
    #[serde(skip)]
    started: Instant,
    /// Number of the last record that was read.
    #[serde(skip)]
    pub(super) read: u64,
    /// Numbers of the stored records, in ranges from the first to the last.
    #[serde(skip)]
    stored: Vec<(u64, u64)>,
    /// Records of a dump that were unreadable when it was written.
    #[serde(skip)]
    pub(crate) unreadable: Unreadable,
}

impl Published {
    pub(super) fn new(skipped: u64) -> Self {
        Self {
            events: 0,
            duplicates: 0,
            skipped,
            last_sequence: 0,
            seconds: 0.0,
            started: Instant::now(),
            read: 0,
            stored: Vec::new(),
            unreadable: Unreadable::default(),
        }
    }

    pub(super) fn add(&mut self, number: u64, receipt: &PublishReceipt) {
        if receipt.duplicate {
            self.duplicates += 1;
        } else {
            self.events += 1;
        }
        self.last_sequence = self.last_sequence.max(receipt.sequence);
        match self.stored.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => self.stored.push((number, number)),
        }
    }

    pub(super) fn stop_clock(&mut self) {
        self.seconds = self.started.elapsed().as_secs_f64();
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.stored.is_empty()
    }

    /// Fails if the input has fewer records than the number to skip.
    pub(super) fn check_skipped(&self, path: &str, skip: u64) -> Outcome {
        if self.read >= skip {
            return Ok(());
        }
        Err(Failure::Input(format!("{path} has {}, fewer than --skip skips", count(self.read, "record"))))
    }

    /// Returns the last record before the first that is not stored.
    fn last_in_a_row(&self) -> u64 {
        match self.stored.first() {
            Some((first, last)) if *first == self.skipped + 1 => *last,
            _ => self.skipped,
        }
    }

    fn stored(&self) -> String {
        let ranges = self.stored.iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first} to {last}"),
        });
        let ranges: Vec<_> = ranges.collect();
        match self.stored.as_slice() {
            [(first, last)] if first == last => format!("record {first} of the input is stored"),
            _ => format!("records {} of the input are stored", ranges.join(", ")),
        }
    }

    /// Describes the stored records after a failed run, and how to publish the rest.
    pub(super) fn how_to_go_on(&self, has_resume_file: bool, has_ids: bool) -> String {
        let (stored, last) = (self.stored(), self.last_in_a_row());
        if has_resume_file {
            return format!("{stored}; the same command resumes after record {last}");
        }
        let is_gapless = matches!(self.stored.as_slice(), [(_, end)] if *end == last);
        match (is_gapless, has_ids) {
            (true, _) => format!("{stored} and none after them; --skip {last} resumes there"),
            (false, true) => {
                format!("{stored}; --skip {last} resumes there, and the bus knows the others by their ids")
            }
            (false, false) => format!(
                "{stored}; --skip {last} resumes there and would store the others again, because they have no ids of the \
                 input (--id): remove them from the input first"
            ),
        }
    }
}
