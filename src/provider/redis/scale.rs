//! No script takes long, with many events, subjects and consumers. A part of the slow tier.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use redis::{Connection, Value, cmd, pipe};

use super::keys::Keys;
use super::script::server::{Server, cases};
use super::script::{Call, Run};
use super::stored::{Consumer, Local, Position, json};
use super::{consumers, history, streams};
use crate::error::Result;
use crate::provider::HistoryQuery;

const PREFIX: &str = "events";
const EVENTS: u64 = 200_000;
const FIRST_MS: u64 = 1_700_000_000_000;
/// Subjects in each half of the stream: the first half has those that end with `x`, the second one those with `y`.
const SUBJECTS: u64 = 10_000;
/// Every so many events are of the market.
const MARKET: u64 = 10;
const CONSUMERS: u64 = 1_000;
/// Longest time of a script.
const LONGEST: Duration = Duration::from_millis(10);
/// Other work on the machine makes a call slow in some rounds, but not in all.
const ROUNDS: usize = 5;

/// A server that measures its scripts.
struct Timed<'a> {
    local: &'a Local,
    server: Mutex<Connection>,
    /// The time of each script that ran.
    times: Mutex<Vec<Duration>>,
}

impl Timed<'_> {
    /// Returns the time of all scripts since the server was started.
    fn in_all(&self) -> Duration {
        let stats: String = cmd("INFO").arg("commandstats").query(&mut self.server.lock().unwrap()).unwrap();
        let scripts =
            stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:")).unwrap_or_default();
        let micros = scripts.split(',').find_map(|field| field.strip_prefix("usec=")).unwrap_or("0");
        Duration::from_micros(micros.parse().unwrap())
    }
}

impl Run for Timed<'_> {
    async fn run(&self, operation: &'static str, call: &Call) -> Result<Value> {
        let before = self.in_all();
        let reply = self.local.run(operation, call).await;
        self.times.lock().unwrap().push(self.in_all() - before);
        reply
    }
}

fn subject_of(sequence: u64) -> String {
    let half = if sequence <= EVENTS / 2 { 'x' } else { 'y' };
    match sequence {
        1_000 => "events.once.only".to_owned(),
        2_000 | 3_000 | 4_000 => format!("events.{sequence}.rare"),
        _ if sequence.is_multiple_of(MARKET) => format!("events.market.{}", sequence / MARKET % 10),
        _ => format!("events.{}.{half}", sequence % SUBJECTS),
    }
}

fn fill(local: &Local, keys: &Keys) {
    let mut lists: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for chunk in (1..=EVENTS).collect::<Vec<_>>().chunks(10_000) {
        let mut add = pipe();
        for sequence in chunk {
            let subject = subject_of(*sequence);
            add.cmd("XADD").arg(keys.log()).arg(format!("{sequence}-{}", FIRST_MS + sequence));
            add.arg("s").arg(&subject).arg("e").arg(json(&subject, *sequence)).ignore();
            lists.entry(subject).or_default().push(*sequence);
        }
        local.send(&add);
    }
    let mut index = pipe();
    for (subject, sequences) in lists {
        index.rpush(keys.subject(&subject), sequences).ignore().zadd(keys.subjects(), subject, 0).ignore();
    }
    index.hset_multiple(keys.meta(), &[("prefix", PREFIX.to_owned()), ("last", EVENTS.to_string())]).ignore();
    local.send(&index);
}

/// Adds consumers of some filters, each at another position.
fn add_consumers(local: &Local, keys: &Keys, first: u64, filters: &[&str]) {
    for number in first..first + CONSUMERS {
        let filter = filters[usize::try_from(number).unwrap() % filters.len()];
        let consumer = Consumer {
            name: format!("consumer-{number}"),
            filter: filter.to_owned(),
            position: Position::After(EVENTS / CONSUMERS * (number - first)),
            backlog: Vec::new(),
            pending: 2,
            redelivered: 1,
            exhausted: 0,
            progress: None,
            is_durable: true,
        };
        consumer.add(local, keys);
    }
}

/// What some work takes, told by its fastest rounds.
async fn measure(local: &Local, server: &Server, what: &str, work: impl AsyncFn(&Timed<'_>)) {
    let timed = Timed { local, server: Mutex::new(server.connect()), times: Mutex::default() };
    let (mut times, mut fastest) = (Vec::new(), Duration::MAX);
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        work(&timed).await;
        fastest = fastest.min(begin.elapsed());
        let round = std::mem::take(&mut *timed.times.lock().unwrap());
        times.resize(round.len(), Duration::MAX);
        times.iter_mut().zip(round).for_each(|(time, other)| *time = other.min(*time));
    }
    let (longest, sum) = (times.iter().max().unwrap(), times.iter().sum::<Duration>());
    println!(
        "{}  {what:35} {:>4} scripts, together {sum:>8.1?}, the longest {longest:>7.1?}, in all {fastest:.1?}",
        server.version,
        times.len()
    );
    assert!(*longest < LONGEST, "{what}: {longest:?}");
}

#[test]
#[ignore = "measures times"]
fn no_script_takes_long() {
    if cases(0, 1) == 0 {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for server in Server::all() {
        runtime.block_on(check(server));
    }
}

async fn check(server: &Server) {
    let local = Local::of(server);
    let keys = local.empty("scale");
    fill(&local, &keys);
    let half = FIRST_MS + EVENTS / 2;
    for (filter, limit, since, found) in [
        ("events.>", 50, None, 50),
        ("events.market.>", 50, None, 50),
        ("events.market.1", 50, None, 50),
        ("events.once.only", 50, None, 1),
        ("events.absent.only", 50, None, 0),
        ("events.*.rare", 50, None, 3),
        ("events.absent.>", 50, None, 0),
        ("events.*.y", 50, None, 50),
        ("events.*.x", 50, None, 50),
        ("events.*.x", 5_000, None, 5_000),
        ("events.*.x", 50, Some(half - 20), 18),
        ("events.market.>", 5_000, None, 5_000),
        ("events.>", 10_000, None, 10_000),
    ] {
        let mut query = HistoryQuery::new(limit).filter(filter);
        query.since_time = since;
        let what = format!("newest {limit} of {filter}{}", if since.is_some() { " of late" } else { "" });
        let read = async |timed: &Timed<'_>| {
            let page = history::page(timed, &keys, PREFIX, &query).await.unwrap();
            assert_eq!(page.events.len(), found, "{filter}");
        };
        measure(&local, server, &what, read).await;
    }
    for (first, filters) in [
        (0, &["events.>", "events.market.>", "events.once.only"][..]),
        (CONSUMERS, &["events.*.x", "events.*.y", "events.*.*"]),
    ] {
        add_consumers(&local, &keys, first, filters);
        let name = format!("consumer-{}", first + 1);
        let lag = async |timed: &Timed<'_>| {
            assert!(consumers::lag(timed, &keys, PREFIX, &name).await.unwrap() > 0);
        };
        measure(&local, server, &format!("lag of {}", filters[1]), lag).await;
        let list = async |timed: &Timed<'_>| {
            let infos = consumers::infos(timed, &keys, PREFIX).await.unwrap();
            assert_eq!(infos.len() as u64, first + CONSUMERS);
        };
        measure(&local, server, &format!("{} consumers", first + CONSUMERS), list).await;
    }
    let count = async |timed: &Timed<'_>| {
        assert_eq!(streams::stream(timed, &keys, "info").await.unwrap().unwrap().events, EVENTS);
    };
    measure(&local, server, "info", count).await;
    let list = async |timed: &Timed<'_>| {
        assert!(!streams::summaries(timed, "a3s", "scale").await.unwrap().is_empty());
    };
    measure(&local, server, "streams", list).await;
    local.empty("scale");
}
