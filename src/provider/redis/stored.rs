//! Streams of tests, filled by plain commands as the scripts leave them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use redis::{Connection, Pipeline, Value, cmd, pipe};

use super::keys::Keys;
use super::script::server::{self, Server};
use super::script::{Call, Run};
use crate::error::{BackendError, ErrorKind, Result};
use crate::poison::IgnorePoison;
use crate::provider::support::unix_millis;
use crate::types::Event;

/// Time between two storage times, longer than any test runs.
const STEP_MS: u64 = 100_000;

/// A stored record.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    /// Storage time. Another program may have put anything there.
    pub(super) ms: u64,
    pub(super) subject: String,
    pub(super) kind: Kind,
    /// Subject of another list that has its sequence by mistake.
    pub(super) also_in: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Event,
    /// Its JSON is not that of an event.
    NoEvent,
    /// Another program wrote it, with other fields.
    Foreign,
    /// It was purged, and so is its entry.
    Purged,
    /// It was purged or never written, but its entry remains.
    OnlyEntry,
}

fn subject() -> impl Strategy<Value = String> {
    prop_oneof![4 => "events\\.a", 3 => "events\\.[abc]\\.[xyz]", 1 => "events\\.c"]
}

/// Returns streams of records of these kinds, whose storage times rise after some of them.
pub(super) fn content_of(kind: impl Strategy<Value = Kind>) -> impl Strategy<Value = Content> {
    let record = (subject(), kind, prop::bool::weighted(0.1), prop::option::weighted(0.1, subject()));
    let start = prop_oneof![3 => Just(0_u64), 1 => Just(1 << 52), 1 => Just(1_000_000_000_000_000)];
    (
        start,
        prop::collection::vec(record, 1..160),
        prop::option::weighted(0.3, 0..20_u64),
        prop::option::weighted(0.5, 0..160_usize),
        any::<bool>(),
    )
        .prop_map(|(start, drawn, max_age, dropped, keeps_entries)| {
            let mut content = Content { keeps_entries, ..Content::default() };
            let (mut sequence, mut steps) = (start, 20_u64);
            for (subject, kind, rises, also_in) in drawn {
                steps = steps.saturating_sub(rises.into());
                let is_foreign = kind == Kind::Foreign;
                sequence += if is_foreign { 1_000 } else { 1 };
                let ms = if is_foreign { sequence % 7 } else { Content::steps_ago(steps) };
                content.records.push(Stored { sequence, ms, subject, kind, also_in });
            }
            if let Some(steps) = max_age {
                content.limit_age(steps);
            }
            content.dropped = dropped.unwrap_or_default().min(content.records.len());
            content
        })
}

/// The content of a stream, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub(super) records: Vec<Stored>,
    /// Age in milliseconds of the oldest event that counts as retained; 0 is unlimited.
    pub(super) max_age: u64,
    /// Number of records that retention dropped.
    pub(super) dropped: usize,
    /// If true, entries of dropped records remain.
    pub(super) keeps_entries: bool,
}

impl Content {
    /// Returns a storage time of this test: so many steps ago.
    pub(super) fn steps_ago(steps: u64) -> u64 {
        (unix_millis() / STEP_MS - steps) * STEP_MS
    }

    /// Sets the limit of the age so that records of the last so many steps are retained.
    pub(super) fn limit_age(&mut self, steps: u64) {
        self.max_age = steps * STEP_MS + STEP_MS / 2 + unix_millis() % STEP_MS;
    }

    /// Returns the retained records of any age.
    fn kept(&self) -> impl DoubleEndedIterator<Item = &Stored> {
        let kept = self.records.iter().skip(self.dropped);
        kept.filter(|record| !matches!(record.kind, Kind::Purged | Kind::OnlyEntry))
    }

    /// Returns the first sequence of a range that was stored at this time or later, or the end of the range. The times
    /// of foreign records do not count.
    pub(super) fn first_since(&self, from: u64, before: u64, ms: u64) -> u64 {
        let in_range = |record: &&Stored| (from..before).contains(&record.sequence);
        let mut own = self.kept().filter(in_range).filter(|record| record.kind != Kind::Foreign).peekable();
        match own.peek() {
            Some(oldest) if oldest.ms < ms => {
                own.find(|record| record.ms >= ms).map_or(before, |record| record.sequence)
            }
            _ => from,
        }
    }

    /// Returns the first retained sequence.
    pub(super) fn first(&self) -> u64 {
        let (oldest, behind) = (self.kept().next().map_or(0, |oldest| oldest.sequence), self.behind());
        match self.max_age {
            0 => oldest,
            max_age => self.first_since(oldest, behind, unix_millis() - max_age + 1),
        }
    }

    /// Returns the sequence behind the last retained record.
    pub(super) fn behind(&self) -> u64 {
        self.kept().next_back().map_or(0, |last| last.sequence + 1)
    }

    /// Returns the retained records.
    pub(super) fn retained(&self) -> Vec<&Stored> {
        let first = self.first();
        self.kept().filter(|record| record.sequence >= first).collect()
    }

    /// Returns true if every number between the retained records is the sequence of one.
    pub(super) fn is_gapless(&self) -> bool {
        let first = self.kept().next().map_or(0, |first| first.sequence);
        self.behind() - first == self.kept().count() as u64
    }

    /// Returns the number of subjects that have lists.
    pub(super) fn subjects(&self) -> u64 {
        self.lists().len() as u64
    }

    fn lists(&self) -> BTreeMap<&str, Vec<u64>> {
        let mut lists: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (place, record) in self.records.iter().enumerate() {
            let has_entry = match record.kind {
                Kind::Event | Kind::NoEvent => place >= self.dropped || self.keeps_entries,
                Kind::OnlyEntry => true,
                Kind::Foreign | Kind::Purged => false,
            };
            let own = has_entry.then_some(&record.subject);
            for subject in own.into_iter().chain(&record.also_in) {
                lists.entry(subject).or_default().push(record.sequence);
            }
        }
        lists
    }

    /// Stores the content in an empty server.
    pub(super) fn fill(&self, server: &Local, keys: &Keys) {
        let mut commands = pipe();
        for record in self.records.iter().skip(self.dropped) {
            add_record(&mut commands, keys, record);
        }
        for (subject, sequences) in self.lists() {
            commands.cmd("RPUSH").arg(keys.subject(subject)).arg(sequences).ignore();
            commands.cmd("ZADD").arg(keys.subjects()).arg(0).arg(subject).ignore();
        }
        let last = self.records.last().map_or(0, |last| last.sequence);
        // A publish takes over a record of another program, and notes it.
        let gap = self.records.iter().rev().find(|record| record.kind == Kind::Foreign);
        commands.cmd("HSET").arg(keys.meta()).arg(&[("prefix", "events")]);
        commands.arg("last").arg(last).arg("max_age").arg(self.max_age);
        if let Some(foreign) = gap {
            commands.arg("gap").arg(foreign.sequence);
        }
        commands.ignore();
        server.send(&commands);
    }
}

fn add_record(commands: &mut Pipeline, keys: &Keys, record: &Stored) {
    let Stored { sequence, ms, subject, kind, .. } = record;
    let id = format!("{sequence}-{ms}");
    let mut add = |fields: &[(&str, &[u8])]| {
        commands.cmd("XADD").arg(keys.log()).arg(&id).arg(fields).ignore();
    };
    match kind {
        Kind::Event => add(&[("s", subject.as_bytes()), ("e", &json(subject, *sequence))]),
        Kind::NoEvent => add(&[("s", subject.as_bytes()), ("e", b"{\"id\": 1}")]),
        Kind::Foreign => add(&[("name", b"someone"), ("e", b"{}")]),
        Kind::Purged | Kind::OnlyEntry => {}
    }
}

/// Returns the JSON of an event whose payload is its sequence.
pub(super) fn json(subject: &str, sequence: u64) -> Vec<u8> {
    serde_json::to_vec(&Event::new(subject, "a", "", "", sequence.into())).unwrap()
}

/// A consumer.
#[derive(Debug, Clone)]
pub(super) struct Consumer {
    pub(super) name: String,
    pub(super) filter: String,
    pub(super) position: Position,
    pub(super) backlog: Vec<u64>,
    pub(super) pending: u64,
    pub(super) redelivered: u64,
    pub(super) exhausted: u64,
    pub(super) progress: Option<u64>,
    pub(super) is_durable: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Position {
    After(u64),
    /// Its start time has not come.
    NotStarted,
    /// Retention dropped records that it has not received.
    Overtaken,
}

impl Consumer {
    /// Adds the consumer to a stream.
    pub(super) fn add(&self, server: &Local, keys: &Keys) {
        let Self { name, filter, position, backlog, pending, redelivered, exhausted, progress, is_durable } =
            self;
        let mut commands = pipe();
        commands.cmd("HSET").arg(keys.consumers()).arg(name).arg("generation ^pattern$").ignore();
        let settings = [("gen", "generation"), ("filter", filter), ("cursor", "0"), ("missed", "0")];
        commands.cmd("HSET").arg(keys.consumer(name)).arg(&settings);
        commands.arg("redelivered").arg(redelivered).arg("exhausted").arg(exhausted);
        if let Some(progress) = progress {
            commands.arg("progress").arg(progress);
        }
        commands.ignore();
        match position {
            Position::After(sequence) => {
                commands.cmd("ZADD").arg(keys.cursors()).arg(sequence).arg(name).ignore()
            }
            Position::NotStarted => {
                let start = unix_millis() + 1_000_000;
                commands.cmd("HSET").arg(keys.consumer(name)).arg("start").arg(start).ignore();
                commands.cmd("ZADD").arg(keys.cursors()).arg(format!("-{start}")).arg(name).ignore()
            }
            Position::Overtaken => &mut commands,
        };
        if !backlog.is_empty() {
            commands.cmd("RPUSH").arg(keys.backlog(name)).arg(backlog).ignore();
        }
        for sequence in 1..=*pending {
            commands.cmd("ZADD").arg(keys.due(name)).arg(sequence).arg(sequence).ignore();
        }
        if !is_durable {
            commands.cmd("ZADD").arg(keys.ephemerals()).arg(1).arg(name).ignore();
        }
        server.send(&commands);
    }
}

/// A server for one test at a time.
pub(super) struct Local {
    connection: Mutex<Connection>,
    calls: AtomicUsize,
}

impl Local {
    pub(super) fn of(server: &Server) -> Self {
        Self { connection: Mutex::new(server.connect()), calls: AtomicUsize::new(0) }
    }

    /// Returns the number of calls of scripts so far.
    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    pub(super) fn send(&self, commands: &Pipeline) {
        commands.exec(&mut self.connection.lock().ignore_poison()).unwrap();
    }

    /// Returns an empty stream of this name.
    pub(super) fn empty(&self, stream: &str) -> Keys {
        let keys = Keys::new("a3s", stream);
        let connection = &mut *self.connection.lock().ignore_poison();
        let found: Vec<String> = cmd("KEYS").arg(format!("{}*", keys.base())).query(connection).unwrap();
        if !found.is_empty() {
            cmd("UNLINK").arg(found).exec(connection).unwrap();
        }
        keys
    }
}

impl Run for Local {
    async fn run(&self, operation: &'static str, call: &Call) -> Result<Value> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let connection = &mut *self.connection.lock().ignore_poison();
        server::run(connection, call)
            .map_err(|error| BackendError::new("redis", operation, ErrorKind::Backend, error).into())
    }
}
