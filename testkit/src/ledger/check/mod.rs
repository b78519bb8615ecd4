//! The checker: a pure function from the journals of a round and its end to verdicts.

mod account;
mod delivery;
mod health;
mod letters;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use self::account::Account;
use super::finale::Finale;
use super::journal::{Fact, Lines};
use super::verdict::{Kind, Verdict};

/// Checks the journals of a round against its end. The verdicts are sorted by [`Kind`], each with the earliest first.
pub fn check(journals: &[Lines], finale: &Finale) -> Vec<Verdict> {
    let account = Account::new(journals, finale);
    let mut verdicts = Vec::new();
    stream::check(&account, &mut verdicts);
    delivery::check(&account, &mut verdicts);
    letters::check(&account, &mut verdicts);
    health::check(&account, &mut verdicts);
    verdicts.sort_by_key(|verdict| (verdict.kind, verdict.evidence.last().map(|evidence| evidence.at)));
    verdicts
}

/// Counts of a round, or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Figures {
    /// Acknowledged publishes.
    pub published: usize,
    /// Stored events.
    pub stored: usize,
    /// Publishes that failed and may have stored their event.
    pub unknown: usize,
    /// Deliveries to handlers.
    pub deliveries: usize,
    /// Deliveries of an event that its consumer had received before.
    pub redeliveries: usize,
    /// Confirmed acks.
    pub confirmed: usize,
    /// Dead letters.
    pub letters: usize,
    /// Nemeses.
    pub nemeses: usize,
    /// Time from the end of the last nemesis to the last first delivery of an event published before.
    pub recovery: Duration,
}

impl Figures {
    /// Counts what the journals say.
    pub fn of(journals: &[Lines], finale: &Finale) -> Self {
        let mut figures =
            Self { stored: finale.stored.len(), letters: finale.letters.len(), ..Self::default() };
        let mut received = BTreeSet::new();
        let mut entries: Vec<_> = journals.iter().flat_map(|journal| &journal.entries).collect();
        entries.sort_by_key(|entry| entry.at);
        let quiet = entries.iter().find(|entry| entry.fact == Fact::Quiet).map(|entry| entry.at);
        let mut open = BTreeSet::new();
        for entry in entries {
            let is_before = quiet.is_none_or(|quiet| entry.at < quiet);
            match &entry.fact {
                Fact::PublishBegun { id, .. } if is_before => drop(open.insert(id)),
                Fact::Published { .. } => figures.published += 1,
                Fact::PublishFailed { may_be_stored: true, .. } => figures.unknown += 1,
                Fact::NemesisBegun { .. } => figures.nemeses += 1,
                Fact::AckConfirmed { .. } => figures.confirmed += 1,
                Fact::Delivered { consumer, sequence, id, .. } => {
                    figures.deliveries += 1;
                    if !received.insert((consumer, sequence)) {
                        figures.redeliveries += 1;
                    } else if let Some(quiet) = quiet.filter(|quiet| entry.at > *quiet && open.contains(id)) {
                        figures.recovery = Duration::from_micros(entry.at - quiet);
                    }
                }
                _ => {}
            }
        }
        figures
    }

    /// Adds the counts of another round, and keeps the longer recovery.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.published, other.published),
            (&mut self.stored, other.stored),
            (&mut self.unknown, other.unknown),
            (&mut self.deliveries, other.deliveries),
            (&mut self.redeliveries, other.redeliveries),
            (&mut self.confirmed, other.confirmed),
            (&mut self.letters, other.letters),
            (&mut self.nemeses, other.nemeses),
        ] {
            *sum += more;
        }
        self.recovery = self.recovery.max(other.recovery);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} published, {} unknown, {} stored, {} delivered, {} redelivered, {} confirmed, {} dead letters, \
             {} nemeses, recovered in {:.1} s",
            self.published,
            self.unknown,
            self.stored,
            self.deliveries,
            self.redeliveries,
            self.confirmed,
            self.letters,
            self.nemeses,
            self.recovery.as_secs_f64()
        )
    }
}

/// Returns the number of verdicts of each kind, for instance `2 lost, 1 late`.
pub fn summary(verdicts: &[Verdict]) -> String {
    let kinds: BTreeSet<Kind> = verdicts.iter().map(|verdict| verdict.kind).collect();
    let count = |kind: &Kind| verdicts.iter().filter(|verdict| verdict.kind == *kind).count();
    let counted: Vec<_> = kinds.iter().map(|kind| format!("{} {kind}", count(kind))).collect();
    if counted.is_empty() { "no verdict".to_owned() } else { counted.join(", ") }
}
