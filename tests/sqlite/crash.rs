//! A process is killed at random moments while it publishes, consumes and drops old events; the file is held against what
//! it said.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use a3s_event::provider::sqlite::SqliteProvider;
use a3s_event::{EventError, EventProvider, HistoryQuery};

use crate::child;
use crate::{durable, open};

/// How often the process is killed; the slow tier asks for more.
const KILLS: &str = "A3S_EVENT_CRASHES";
const DEFAULT_KILLS: u64 = 10;

/// What the process was told, over all its lives.
#[derive(Default)]
struct Ledger {
    stored: HashMap<u64, String>,
    /// Sequence and latest attempt.
    delivered: HashMap<u64, u64>,
    acked: HashSet<u64>,
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
                _ => {}
            }
        }
    }

    fn deliver(&mut self, sequence: u64, attempt: u64) {
        assert!(!self.acked.contains(&sequence), "{sequence} was settled and came again");
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

async fn reopen(path: &Path) -> SqliteProvider {
    let begin = Instant::now();
    let provider = open(path).await;
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(2), "reopening took {took:?}");
    assert_eq!(provider.integrity_check().await.unwrap(), Vec::<String>::new());
    provider
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_and_nothing_settled_comes_again() {
    let kills = std::env::var(KILLS).map_or(DEFAULT_KILLS, |kills| kills.parse().expect("a number of kills"));
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
    println!("{kills} kills, {} events stored, {} acked", ledger.stored.len(), ledger.acked.len());
    drain(&path, ledger, kills).await;
}

/// What is left comes to whoever asks: nothing is stranded.
async fn drain(path: &Path, mut ledger: Ledger, kills: u64) {
    let provider = open(path).await;
    let mut worker = durable(&provider, "worker").await;
    while let Ok(answer) = tokio::time::timeout(Duration::from_millis(2_500), worker.next_delivery()).await {
        match answer {
            Ok(Some(delivery)) => {
                ledger.deliver(delivery.sequence(), delivery.num_delivered());
                ledger.acked.insert(delivery.sequence());
                delivery.ack().await.unwrap();
            }
            Err(EventError::Lagged { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let found = provider.query(&HistoryQuery::new(usize::MAX)).await.unwrap();
    let unreported = found.iter().filter(|stored| !ledger.acked.contains(&stored.sequence)).count() as u64;
    // A process may be killed after its ack was committed and before it could say so: one ack at a time.
    assert!(unreported <= kills, "{unreported} events were neither acked nor delivered, after {kills} kills");
}
