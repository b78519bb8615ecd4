//! The comparison behind `docs/benchmarks.md`: this library beside the published a3s-event 0.3.0 and beside what a
//! program would use without either, in one run on one machine, turn by turn.
//!
//! `scripts/benchmarks` runs it.

mod board;
mod chart;
mod memory;
mod nats;
mod page;
#[path = "../../support/raw_sqlite.rs"]
mod raw_sqlite;
mod sqlite;
#[path = "../../support/mod.rs"]
#[allow(dead_code, reason = "shared with benchmarks that need more of it")]
mod support;

use std::path::Path;

use a3s_event::Event;
use board::Board;

/// The subject of what is published.
const SUBJECT: &str = "events.market.forex.usd_cny";
const FILTER: &str = "events.>";
const BATCH: usize = 1_000;
const CALLERS: usize = 64;
const READERS: usize = 100;
/// Events that are published before the fan-out is waited for.
const BURST: usize = 10;
const STORED: usize = 100_000;
const NEWEST: usize = 100;

const OURS: &str = "a3s-event";
const PUBLISHED: &str = "a3s-event 0.3.0";

/// The scenarios, as the page names them.
const ONE_CALLER: &str = "publish, one caller";
const IN_BATCHES: &str = "publish in batches of 1,000";
const MANY_CALLERS: &str = "publish, 64 callers at once";
const ONE_TO_ONE: &str = "publish, deliver, ack, one after the other";
const FAN_OUT: &str = "deliveries, 1 publisher to 100 subscribers";
const HISTORY: &str = "read the newest 100 of 100,000";
const CONSUME: &str = "durable consumer: receive and ack what is stored";

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
                "sqlite" => sqlite::measure(&mut board),
                other => panic!("no backend is called {other}"),
            }
            board.save(Path::new(file));
        }
        ["page", folder] => page::write(Path::new(folder)),
        _ => {
            eprintln!("usage: a3s-event-comparison measure memory|nats|sqlite ROUNDS FILE, or page FOLDER");
            std::process::exit(2);
        }
    }
}

/// The event of every figure, and the same for the published crate.
fn events() -> (Event, published::Event) {
    let event = support::event(SUBJECT);
    let theirs = serde_json::to_value(&event).and_then(serde_json::from_value).expect("the same JSON");
    (event, theirs)
}
