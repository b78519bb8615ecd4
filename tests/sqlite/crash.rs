//! A process is killed at random moments, or at a chosen system call, while it publishes, consumes and drops old events;
//! the file is held against what it said.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use a3s_event::provider::sqlite::SqliteProvider;
use a3s_event::{EventError, EventProvider, HistoryQuery};

use crate::child;
use crate::{DEADLINE, durable, next_unless_settled, open, publish};

/// How often the process is killed; the slow tier asks for more.
const KILLS: &str = "A3S_EVENT_CRASHES";
const DEFAULT_KILLS: u64 = 10;
/// Up to which write it is killed at each; the slow tier asks for more.
const POINTS: &str = "A3S_EVENT_CRASH_POINTS";
const DEFAULT_POINTS: u64 = 5;

/// What the process was told, over all its lives.
#[derive(Default)]
struct Ledger {
    stored: HashMap<u64, String>,
    /// Sequence and latest attempt.
    delivered: HashMap<u64, u64>,
    /// Acked and confirmed.
    acked: HashSet<u64>,
    /// Acked without waiting for that.
    sent: HashSet<u64>,
    /// How many of those came again.
    lost: u64,
}

impl Ledger {
    fn record(&mut self, said: &[String]) {
        for line in said {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |word: usize| words[word].parse::<u64>().unwrap();
            match words[0] {
                "stored" => {
                    let earlier = self.stored.insert(number(1), words[2].to_owned());
                    assert_eq!(earlier, None, "sequence {} was given twice", words[1]);
                }
                "delivered" => self.deliver(number(1), number(2)),
                "acked" => drop(self.acked.insert(number(1))),
                "sent" => drop(self.sent.insert(number(1))),
                _ => {}
            }
        }
    }

    fn deliver(&mut self, sequence: u64, attempt: u64) {
        assert!(!self.acked.contains(&sequence), "{sequence} was settled and came again");
        self.lost += u64::from(self.sent.remove(&sequence));
        let before = self.delivered.insert(sequence, attempt).unwrap_or(0);
        assert!(attempt > before, "{sequence} came with attempt {attempt} after {before}");
    }

    /// Every acknowledged event is stored under its sequence, unless retention dropped it, and nothing is stored twice.
    async fn check_stored(&self, provider: &SqliteProvider) {
        let found = provider.query(&HistoryQuery::new(usize::MAX)).await.unwrap();
        let stored: HashMap<u64, &str> =
            found.iter().map(|stored| (stored.sequence, stored.event.id.as_str())).collect();
        let ids: HashSet<&str> = stored.values().copied().collect();
        assert_eq!(ids.len(), stored.len(), "an event is stored twice");
        let first = stored.keys().min().copied().unwrap_or(1);
        for (sequence, id) in self.stored.iter().filter(|(sequence, _)| **sequence >= first) {
            assert_eq!(stored.get(sequence), Some(&id.as_str()), "sequence {sequence} was acknowledged");
        }
        assert_eq!(provider.info().await.unwrap().messages, stored.len() as u64);
    }
}

/// Numbers that look random and are the same every time (Knuth's MMIX generator).
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn how_many(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |count| count.parse().expect("a number"))
}

async fn reopen(path: &Path) -> SqliteProvider {
    let begin = Instant::now();
    let provider = tokio::time::timeout(DEADLINE, open(path)).await.expect("a crashed file opens");
    println!("reopening took {:?}", begin.elapsed());
    assert_eq!(provider.integrity_check().await.unwrap(), Vec::<String>::new());
    provider
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_and_nothing_settled_comes_again() {
    let kills = how_many(KILLS, DEFAULT_KILLS);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let mut ledger = Ledger::default();
    let mut random = 1;
    for kill in 0..kills {
        let alive = Duration::from_millis(next_random(&mut random) % 150);
        let file = path.clone();
        let said = tokio::task::spawn_blocking(move || {
            let process = child::start("crash", &file, &format!("life{kill}"));
            process.expect("ready");
            process.kill_after(alive)
        });
        ledger.record(&said.await.unwrap());
        let provider = reopen(&path).await;
        ledger.check_stored(&provider).await;
        provider.close().await.unwrap();
    }
    assert!(!ledger.stored.is_empty() && !ledger.acked.is_empty(), "the processes did nothing");
    println!(
        "{kills} kills, {} events stored, {} acked, {} and {} sent acks",
        ledger.stored.len(),
        ledger.acked.len(),
        ledger.sent.len(),
        ledger.lost
    );
    drain(&path, ledger, kills).await;
}

/// Kills a process that works on the file at the `n`th of these system calls, and returns what it said.
async fn killed_at(call: &'static str, n: u64, path: &Path) -> Option<Vec<String>> {
    let file = path.to_owned();
    let died = tokio::task::spawn_blocking(move || {
        let inject = format!("{call}:signal=KILL:when={n}");
        let process = child::start_with_faults(&inject, "crash", &file, &format!("{call}{n}"))?;
        Some(process.until_it_ends().expect("it was not killed"))
    });
    died.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_write_loses_nothing() {
    let mut stored = 0;
    for n in 1..=how_many(POINTS, DEFAULT_POINTS) {
        // A new file each time, so that the writes that make it are among them.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.db");
        let Some(said) = killed_at("pwrite64", n, &path).await else { return };
        let mut ledger = Ledger::default();
        ledger.record(&said);
        stored += ledger.stored.len();
        let provider = reopen(&path).await;
        ledger.check_stored(&provider).await;
        let mut worker = durable(&provider, "worker").await;
        // What is leased is not here yet: it is enough that nothing settled is.
        while let Some(batch) = worker.next_batch(1_000, Duration::from_millis(1)).await
            && !batch.is_empty()
        {
            for delivery in batch {
                let delivery = delivery.unwrap();
                ledger.deliver(delivery.sequence(), delivery.num_delivered());
            }
        }
        publish(&provider, "after").await;
    }
    println!("killed at each write, {stored} events stored before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_sync_or_truncation_loses_nothing() {
    // One file for all, so that retention and checkpoints are among what is interrupted.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let mut ledger = Ledger::default();
    let points = how_many(POINTS, DEFAULT_POINTS);
    for n in 1..=points {
        // fdatasync where SQLite is built with it.
        let Some(said) = killed_at("fsync,fdatasync,ftruncate,unlink", n, &path).await else { return };
        ledger.record(&said);
        let provider = reopen(&path).await;
        ledger.check_stored(&provider).await;
        // A provider that is not closed leaves its log, so that the next one begins with it.
        if n % 2 == 0 {
            provider.close().await.unwrap();
        }
    }
    println!("killed at each sync, {} events stored, {} acked", ledger.stored.len(), ledger.acked.len());
    drain(&path, ledger, points).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_to_sync_is_written_no_more() {
    let folder = tempfile::tempdir().unwrap();
    for (first, opened) in [(1, false), (20, true), (50, true)] {
        let path = folder.path().join(format!("events-{first}.db"));
        let file = path.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let inject = format!("fsync,fdatasync:error=EIO:when={first}+");
            Some(child::start_with_faults(&inject, "fail", &file, "")?.until_it_ends().expect("it goes on"))
        });
        let Some(said) = ended.await.unwrap() else { return };
        let stored = said.iter().filter(|line| line.starts_with("stored")).count();
        if opened {
            let readable = format!("readable {stored}");
            let expected = ["failed storage true", "refused storage false", readable.as_str()];
            assert!(said.ends_with(&expected.map(str::to_owned)), "{said:?}");
            assert!(stored > 0, "{said:?}");
        } else {
            assert_eq!(said.last().map(String::as_str), Some("not opened storage"), "{said:?}");
        }
        // The one whose outcome was unknown may be there.
        let provider = reopen(&path).await;
        let found = usize::try_from(provider.info().await.unwrap().messages).unwrap();
        assert!(
            found == stored || found == stored + 1,
            "{found} events are stored, {stored} were acknowledged"
        );
        publish(&provider, "after").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_syncs_again_is_written_again() {
    // The first failure is in a commit; the others meet the attempts to put the log on the disk.
    for failures in ["30", "31..33"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.db");
        let file = path.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let inject = format!("fsync,fdatasync:error=EIO:when={failures}");
            Some(
                child::start_with_faults(&inject, "recover", &file, "")?.until_it_ends().expect("it goes on"),
            )
        });
        let Some(said) = ended.await.unwrap() else { return };
        let about = |who: &str| -> HashMap<u64, String> {
            let lines = said.iter().filter_map(|line| line.strip_prefix(who)?.strip_prefix(' '));
            lines
                .filter_map(|line| line.split_once(' '))
                .map(|(n, id)| (n.parse().unwrap(), id.to_owned()))
                .collect()
        };
        let position = |line: &str| {
            said.iter().position(|said| said == line).unwrap_or_else(|| panic!("{line}: {said:?}"))
        };
        assert_eq!(position("failed true") + 1, position("healthy false"), "{said:?}");
        position("readable true");
        position("healthy true");
        let stored = about("stored");
        let provider = reopen(&path).await;
        let found = provider.query(&HistoryQuery::new(usize::MAX)).await.unwrap();
        let found: HashMap<u64, String> =
            found.into_iter().map(|stored| (stored.sequence, stored.event.id.clone())).collect();
        for (sequence, id) in &stored {
            assert_eq!(found.get(sequence), Some(id), "sequence {sequence} was acknowledged");
        }
        assert!(found.len() <= stored.len() + 1, "only the one whose outcome was unknown may be there");
        // Both consumers went on, and missed nothing.
        assert_eq!(about("worker"), found, "{said:?}");
        assert_eq!(about("ephemeral"), found, "{said:?}");
    }
}

/// What is left comes to whoever asks: nothing is stranded.
async fn drain(path: &Path, mut ledger: Ledger, kills: u64) {
    let provider = open(path).await;
    let mut worker = durable(&provider, "worker").await;
    while let Some(answer) = next_unless_settled(&provider, true, &mut *worker).await {
        match answer {
            Ok(Some(delivery)) => {
                ledger.deliver(delivery.sequence(), delivery.num_delivered());
                ledger.acked.insert(delivery.sequence());
                delivery.ack_confirmed().await.unwrap();
            }
            Err(EventError::Lagged { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let found = provider.query(&HistoryQuery::new(usize::MAX)).await.unwrap();
    let is_settled = |sequence| ledger.acked.contains(sequence) || ledger.sent.contains(sequence);
    let unreported = found.iter().filter(|stored| !is_settled(&stored.sequence)).count() as u64;
    // A process may be killed after its ack was committed and before it could say so: one ack at a time.
    assert!(unreported <= kills, "{unreported} events were neither acked nor delivered, after {kills} kills");
    // And when the one ack that it had sent was not stored yet: the next call waits for that.
    assert!(ledger.lost <= kills, "{} sent acks were lost, after {kills} kills", ledger.lost);
}
