//! The comparison behind `docs/benchmarks.md`. It measures this library, published versions of a3s-event, and the
//! crates that a program would use without it. They are measured in one run on one machine, turn by turn.
//!
//! `scripts/benchmarks` runs it.

mod board;
mod chart;
mod earlier;
mod goals;
mod memory;
mod nats;
mod ours;
mod page;
mod parts;
#[path = "../../support/raw_sqlite.rs"]
mod raw_sqlite;
mod redis;
mod sqlite;
#[path = "../../support/mod.rs"]
#[allow(dead_code, reason = "shared with benchmarks that need more of it")]
mod support;

use std::path::Path;

use a3s_event::Event;
use board::Board;

/// Subject of the published events.
const SUBJECT: &str = "events.market.forex.usd_cny";
const FILTER: &str = "events.>";
const BATCH: usize = 1_000;
const CALLERS: usize = 64;
const READERS: usize = 100;
/// Number of events published before waiting for the fan-out.
const BURST: usize = 10;
const STORED: usize = 100_000;
const NEWEST: usize = 100;

const OURS: &str = "a3s-event";
const PUBLISHED: &str = "a3s-event 0.3.0";

/// Names of the scenarios on the page.
const ONE_CALLER: &str = "publish, one caller";
const IN_BATCHES: &str = "publish in batches of 1,000";
const IN_BATCHES_WITH_IDS: &str = "publish in batches of 1,000, with a msg_id";
const MANY_CALLERS: &str = "publish, 64 callers at once";
const ONE_TO_ONE: &str = "publish, deliver, ack, one after the other";
const FAN_OUT: &str = "deliveries, 1 publisher to 100 subscribers";
const HISTORY: &str = "read the newest 100 of 100,000";
const CONSUME: &str = "durable consumer: receive and ack what is stored";
const CONSUME_IN_BATCHES: &str = "durable consumer: receive and ack in batches of 500";
const NEXT: &str = "durable consumer: `next` of what is stored";
const NEXT_IN_MEMORY: &str = "publish, `next`: an event of one's own";
/// Prefix of the scenarios that count only the time in which a server computes.
const SERVER_CPU: &str = "per second of the server's CPU";
const AT_LIMIT: &str = "publish, one caller, 10,000 events kept";
const RARE: &str = "read the newest 100 of a rare category";
const BUS: &str = "bus: publish with schema and AES-256-GCM";
const CLOUD_EVENT: &str = "event to CloudEvents JSON and back";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["measure", backend, rounds, file] => {
            let rounds = rounds.parse().expect("a number of rounds");
            let mut board = Board::new(backend, rounds);
            match *backend {
                "memory" => memory::measure(&mut board),
                "nats" => nats::measure(&mut board),
                "redis" => redis::measure(&mut board),
                "sqlite" => sqlite::measure(&mut board),
                other => panic!("no backend is called {other}"),
            }
            board.save(Path::new(file));
        }
        ["page", folder] => page::write(Path::new(folder)),
        ["goals", folder] => {
            let missed = goals::print(Path::new(folder));
            if missed > 0 {
                eprintln!("{missed} goals missed");
                std::process::exit(1);
            }
        }
        _ => {
            eprintln!(
                "usage: a3s-event-comparison measure memory|nats|redis|sqlite ROUNDS FILE, page FOLDER, or goals FOLDER"
            );
            std::process::exit(2);
        }
    }
}

/// Returns the event of every figure, and the same event for the published crate.
fn events() -> (Event, published::Event) {
    let event = support::event(SUBJECT);
    let theirs = serde_json::to_value(&event).and_then(serde_json::from_value).expect("the same JSON");
    (event, theirs)
}
