//! The ratios that this library must reach, row by row.

use std::path::Path;

use crate::board::Board;
use crate::{
    AT_LIMIT, BUS, CLOUD_EVENT, CONSUME, CONSUME_IN_BATCHES, FAN_OUT, HISTORY, IN_BATCHES, MANY_CALLERS,
    NEXT, NEXT_IN_MEMORY, ONE_CALLER, ONE_TO_ONE, OURS, RARE,
};

const RAW_NATS: &str = "async-nats";
const RAW_REDIS: &str = "redis";
const UNCONFIRMED: &str = "async-nats, ack unconfirmed";

/// Backend, scenario, contender, and the minimum speed of this library divided by that of the contender.
const GOALS: &[(&str, &str, &str, f64)] = &[
    ("memory", ONE_CALLER, "tokio broadcast", 0.95),
    ("memory", AT_LIMIT, "a3s-event 0.3.0", 1.0),
    ("memory", ONE_TO_ONE, "tokio broadcast", 0.9),
    ("memory", NEXT_IN_MEMORY, "tokio mpsc, cloned at both ends", 0.8),
    ("memory", FAN_OUT, "tokio broadcast", 0.8),
    ("memory", RARE, "a3s-event 0.3.0", 1.0),
    ("memory", BUS, "a3s-event 0.2.0", 1.1),
    ("memory", CLOUD_EVENT, "a3s-event 0.2.0", 0.9),
    ("nats", ONE_CALLER, RAW_NATS, 0.95),
    ("nats", IN_BATCHES, RAW_NATS, 0.95),
    ("nats", MANY_CALLERS, RAW_NATS, 0.95),
    ("nats", ONE_TO_ONE, UNCONFIRMED, 0.95),
    ("nats", ONE_TO_ONE, "a3s-event 0.3.0", 0.95),
    ("nats", FAN_OUT, UNCONFIRMED, 0.8),
    ("nats", NEXT, UNCONFIRMED, 0.9),
    ("nats", NEXT, "a3s-event 0.2.0", 1.0),
    ("nats", CONSUME, UNCONFIRMED, 0.9),
    ("nats", CONSUME, "a3s-event 0.2.0", 1.0),
    ("nats", HISTORY, RAW_NATS, 1.0),
    ("redis", ONE_CALLER, RAW_REDIS, 0.45),
    ("redis", IN_BATCHES, RAW_REDIS, 0.5),
    ("redis", MANY_CALLERS, RAW_REDIS, 0.6),
    ("redis", CONSUME_IN_BATCHES, RAW_REDIS, 0.55),
    ("redis", "per second of the server's CPU: publish in batches of 1,000", RAW_REDIS, 1.0 / 2.5),
    (
        "redis",
        "per second of the server's CPU: publish in batches of 1,000, with a msg_id",
        RAW_REDIS,
        1.0 / 3.5,
    ),
    (
        "redis",
        "per second of the server's CPU: durable consumer: receive and ack what is stored",
        RAW_REDIS,
        1.0 / 3.5,
    ),
    (
        "redis",
        "per second of the server's CPU: durable consumer: receive and ack in batches of 500",
        RAW_REDIS,
        1.0 / 2.2,
    ),
    ("sqlite", HISTORY, "rusqlite", 1.0),
    ("sqlite", HISTORY, "rusqlite, in spawn_blocking", 1.0),
    ("sqlite", CONSUME, "rusqlite", 0.8),
];

/// Prints the measurements in a folder beside their goals, and returns the number of missed goals.
pub(crate) fn print(folder: &Path) -> usize {
    let mut missed = 0;
    for (backend, scenario, contender, least) in GOALS {
        let file = folder.join(format!("{backend}.json"));
        if !file.exists() {
            continue;
        }
        let board = Board::load(&file);
        let figure = |name: &str| board.of(scenario).find(|figure| figure.contender == name);
        let (Some(ours), Some(theirs)) = (figure(OURS), figure(contender)) else {
            panic!("{backend}: {scenario}: {contender} was not measured");
        };
        let ratio = ours.times_as_fast_as(theirs);
        let is_missed = ratio.median < *least;
        missed += usize::from(is_missed);
        println!(
            "{backend:<7} {scenario:<48} {contender:<32} {:>6.2} ({:.2} to {:.2}), goal {least:.2}{}",
            ratio.median,
            ratio.lowest,
            ratio.highest,
            if is_missed { "  MISSED" } else { "" }
        );
    }
    missed
}
