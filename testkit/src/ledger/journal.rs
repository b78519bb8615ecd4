//! Journals: what a process did and learned, one line per fact.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use a3s_event::provider::support::unix_millis;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::nemesis::Nemesis;

/// Extension of the files in a folder of journals.
const EXTENSION: &str = "journal";

/// One line of a journal: a fact, and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// Microseconds on the monotonic clock of the machine, which all its processes share.
    pub at: u64,
    /// Wall clock of the process in Unix milliseconds, which a fault may have set wrong.
    pub wall: u64,
    /// The fact.
    #[serde(flatten)]
    pub fact: Fact,
}

impl Entry {
    /// Creates a line with the same time on both clocks, for journals that a test writes.
    pub fn at(time: Duration, fact: Fact) -> Self {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self { at: micros, wall: micros / 1_000, fact }
    }
}

/// A fact that a process notes when it learns it, or before it acts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fact {
    /// The driver states the terms of the round.
    Terms(Terms),
    /// The driver begins a nemesis, on one member or on the backend.
    NemesisBegun {
        /// The nemesis.
        nemesis: Nemesis,
        /// Member that it strikes; the backend if absent.
        target: Option<String>,
    },
    /// The nemesis is over.
    NemesisEnded {
        /// The nemesis.
        nemesis: Nemesis,
        /// Member that it struck; the backend if absent.
        target: Option<String>,
    },
    /// A worker process ended.
    Exited {
        /// Name of the member.
        member: String,
        /// Number of its process.
        life: u32,
        /// Cause of the end.
        cause: Exit,
        /// Status of the process.
        status: String,
    },
    /// The last nemesis is over, and every member works.
    Quiet,
    /// A worker process begins.
    Began {
        /// Name of the member, the same for all its processes.
        member: String,
        /// Number of this process of the member.
        life: u32,
        /// Process id.
        process: u32,
    },
    /// A durable consumer is open.
    Opened {
        /// Name of the consumer.
        consumer: String,
        /// True if its handler takes one event per key at a time, and only this member reads it.
        ordered: bool,
    },
    /// A publish begins, and is repeated under the same id until it is answered.
    PublishBegun {
        /// Id of the event and of its publish.
        id: String,
        /// Key of the event.
        key: String,
    },
    /// A publish was acknowledged.
    Published {
        /// Id of the event.
        id: String,
        /// Its sequence.
        sequence: u64,
        /// True if an earlier try had stored it.
        duplicate: bool,
    },
    /// A publish failed.
    PublishFailed {
        /// Id of the event.
        id: String,
        /// True if the event may be stored all the same.
        may_be_stored: bool,
        /// Error message.
        error: String,
    },
    /// A handler received an event.
    Delivered {
        /// Name of the consumer.
        consumer: String,
        /// Sequence of the event.
        sequence: u64,
        /// Number of the attempt.
        attempt: u64,
        /// Id of the event.
        id: String,
        /// Key of the event.
        key: String,
    },
    /// An ack is about to be sent.
    AckBegun {
        /// Name of the consumer.
        consumer: String,
        /// Sequence of the event.
        sequence: u64,
    },
    /// An ack is in flight.
    AckSent {
        /// Name of the consumer.
        consumer: String,
        /// Sequence of the event.
        sequence: u64,
    },
    /// An ack is stored.
    AckConfirmed {
        /// Name of the consumer.
        consumer: String,
        /// Sequence of the event.
        sequence: u64,
    },
    /// An ack failed.
    AckFailed {
        /// Name of the consumer.
        consumer: String,
        /// Sequence of the event.
        sequence: u64,
        /// Error message.
        error: String,
    },
    /// The handler failed, and the event is to be retried.
    Nak {
        /// Name of the consumer.
        consumer: String,
        /// Sequence of the event.
        sequence: u64,
        /// Number of the attempt.
        attempt: u64,
    },
    /// The handler failed for good, and the event is to be dead-lettered.
    Term {
        /// Name of the consumer.
        consumer: String,
        /// Sequence of the event.
        sequence: u64,
    },
    /// A dead letter is stored.
    DeadLettered {
        /// Name of the consumer.
        consumer: String,
        /// Sequence of the event.
        sequence: u64,
        /// Id of the event. The process may have received another one under its sequence meanwhile.
        id: String,
    },
    /// The bus answered a health check.
    Health {
        /// The answer.
        healthy: bool,
    },
    /// A consumer ended by itself.
    ConsumerEnded {
        /// Name of the consumer.
        consumer: String,
        /// Error message.
        error: String,
    },
    /// The publishers of this process have ended, each after the answer to its last event.
    Rested,
    /// An orderly stop begins.
    StopBegun,
    /// The orderly stop is over, and every ack is stored if there is no error.
    Stopped {
        /// Error of the stop.
        error: Option<String>,
    },
}

/// Cause of the end of a worker process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Exit {
    /// The driver killed it.
    Killed,
    /// The driver asked it to stop.
    Stopped,
    /// It ended by itself.
    ByItself,
}

/// Terms of a round, which decide what the checker allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Terms {
    /// Time for which the provider remembers a `msg_id`, in milliseconds.
    pub dedup_window: u64,
    /// Number of attempts after which an event is given up.
    pub attempts: u64,
    /// Ack wait of the consumers, in milliseconds.
    pub lease: u64,
    /// True if a late settlement is refused (capability `fenced_settlement`).
    pub fenced: bool,
    /// True if sequences increase across subjects (capability `total_order`).
    pub total_order: bool,
    /// True if attempts of an unordered consumer are the deliveries that the provider counts.
    pub counts_deliveries: bool,
    /// Time in which a killed backend may forget a settlement, in milliseconds.
    pub forgets_settlements: u64,
    /// True if a backend that loses events, none of which was acknowledged, gives their sequences to others.
    pub reuses_sequences: bool,
    /// Maximum time between the end of the faults and the first delivery of every event, in milliseconds.
    pub recovery: u64,
    /// Maximum time of `health` being true while every publish fails, in milliseconds.
    pub health: u64,
}

impl Default for Terms {
    /// Returns the terms of a provider with every capability.
    fn default() -> Self {
        Self {
            dedup_window: 120_000,
            attempts: 6,
            lease: 3_000,
            fenced: true,
            total_order: true,
            counts_deliveries: true,
            forgets_settlements: 0,
            reuses_sequences: false,
            recovery: 60_000,
            health: 15_000,
        }
    }
}

/// A journal that is being written. Each fact is one line in one write, so that a kill leaves at most one torn line.
#[derive(Debug)]
pub struct Journal {
    file: Mutex<File>,
}

impl Journal {
    /// Creates the journal of this name in a folder, or appends to it.
    ///
    /// # Errors
    ///
    /// If the file cannot be created.
    pub fn open(folder: &Path, name: &str) -> io::Result<Self> {
        let path = folder.join(format!("{name}.{EXTENSION}"));
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file: Mutex::new(file) })
    }

    /// Appends a fact.
    ///
    /// # Panics
    ///
    /// If it cannot be written: a process that acts without noting it would be accused of what it did not do.
    pub fn note(&self, fact: Fact) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that the times of a journal never decrease.
        let entry = Entry { at: monotonic_micros(), wall: unix_millis(), fact };
        let mut line = serde_json::to_string(&entry).expect("a fact is JSON");
        line.push('\n');
        file.write_all(line.as_bytes()).expect("the journal can be written");
    }
}

/// Returns the microseconds of the machine's monotonic clock, which outlive a process. The call goes to the kernel, so
/// that a fault of the process's own clock does not change it.
fn monotonic_micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000
}

/// The lines of one journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lines {
    /// Name of the journal.
    pub name: String,
    /// Its lines, from the first.
    pub entries: Vec<Entry>,
}

impl Lines {
    /// Creates a journal from its lines.
    pub fn new(name: impl Into<String>, entries: Vec<Entry>) -> Self {
        Self { name: name.into(), entries }
    }

    /// Reads a journal. A last line without an end is left out, because its writer was killed.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or another line is no fact.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = std::fs::read(path)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines = text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let parsed = lines.enumerate().map(|(index, line)| {
            let bad = |error| io::Error::other(format!("{}:{}: {error}", path.display(), index + 1));
            serde_json::from_slice(line).map_err(bad)
        });
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, entries: parsed.collect::<io::Result<_>>()? })
    }

    /// Reads all journals in a folder, sorted by name.
    ///
    /// # Errors
    ///
    /// If the folder or one of them cannot be read.
    pub fn read_all(folder: &Path) -> io::Result<Vec<Self>> {
        let files = std::fs::read_dir(folder)?.map(|file| file.map(|file| file.path()));
        let mut paths = files.collect::<io::Result<Vec<PathBuf>>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_as_they_were_noted() {
        let folder = tempfile::tempdir().unwrap();
        let facts = [
            Fact::Terms(Terms::default()),
            Fact::Began { member: "a".into(), life: 2, process: 7 },
            Fact::Published { id: "a.2.0-1".into(), sequence: 9, duplicate: true },
            Fact::NemesisBegun { nemesis: Nemesis::Kill, target: Some("a".into()) },
            Fact::Stopped { error: None },
            Fact::Quiet,
        ];
        let journal = Journal::open(folder.path(), "a-2").unwrap();
        for fact in &facts {
            journal.note(fact.clone());
        }
        let [read] = Lines::read_all(folder.path()).unwrap().try_into().unwrap();
        assert_eq!(read.name, "a-2");
        assert!(read.entries.is_sorted_by_key(|entry| entry.at));
        assert!(read.entries.iter().map(|entry| &entry.fact).eq(&facts));
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_another_bad_line_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        Journal::open(folder.path(), "a").unwrap().note(Fact::Rested);
        let path = folder.path().join("a.journal");
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{}", whole.trim_end())).unwrap();
        assert_eq!(Lines::read(&path).unwrap().entries.len(), 1);
        std::fs::write(&path, format!("{}\n{whole}", &whole[..9])).unwrap();
        let error = Lines::read(&path).unwrap_err().to_string();
        assert!(error.contains("a.journal:1: "), "{error}");
    }
}
