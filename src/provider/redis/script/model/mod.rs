//! Tests the scripts against the state machine of the other providers: every answer and every number must be the same.

mod consumers;
mod ops;
mod stream;
mod world;

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis::Connection;

use self::ops::{Op, Policy, Publish, op, options, policy};
use self::world::World;
use super::server::{Server, cases};
use crate::provider::redis::keys::Keys;
use crate::types::SubscribeOptions;

const SUBJECTS: [&str; 4] = ["events.a", "events.b.x", "events.b.y", "events.c-d"];
const FILTERS: [&str; 6] = ["events.>", ">", "events.a", "events.*.x", "events.b.>", "events.c-d"];
const NAMES: [&str; 4] = ["c0", "c1", "c2", "c3"];
const MSG_IDS: [&str; 5] = ["a", "b", "c", "d", "e"];
const DEDUP_WINDOW: u64 = 4_000;
/// Sequences after which the streams begin: where doubles, and what Lua prints of them, could go wrong.
const BEGINNINGS: [u64; 3] = [0, 1_000_000_000_000_000, 1 << 52];

fn life(
    connection: &mut Connection,
    steps: &mut usize,
    beginning: u64,
    changes_ack_wait: bool,
    starts: Vec<(Policy, SubscribeOptions)>,
    ops: Vec<Op>,
) -> Result<(), TestCaseError> {
    let keys = Keys::new("model", "stream");
    let left: Vec<String> = redis::cmd("KEYS").arg(format!("{}*", keys.base())).query(connection).unwrap();
    redis::cmd("DEL").arg("nothing").arg(left).exec(connection).unwrap();
    let mut world = World {
        connection,
        keys,
        beginning,
        changes_ack_wait,
        now: 1_000_000_000,
        ms: 0,
        first: beginning + 1,
        events: BTreeMap::new(),
        limits: (0, 0, 0),
        msg_ids: BTreeMap::new(),
        msg_id_queue: VecDeque::new(),
        behind_since: None,
        consumers: Vec::new(),
        steps,
    };
    world.limit((0, 0, 0));
    let first = [("last", beginning), ("first", beginning + 1)];
    redis::cmd("HSET").arg(world.keys.meta()).arg(&first).exec(world.connection).unwrap();
    for number in 0..4 {
        world.step(Op::Publish(vec![Publish {
            subject: number % SUBJECTS.len(),
            msg_id: None,
            expects: None,
        }]))?;
    }
    for ((name, filter), (start, options)) in NAMES.into_iter().zip(FILTERS).zip(starts) {
        world.open(name, filter, start, options, true)?;
    }
    ops.into_iter().try_for_each(|op| world.step(op))
}

/// Runs lives of streams against every server until one differs. Returns the steps that each one took.
fn compare(cases: u32) -> Result<Vec<usize>, String> {
    let mut taken = Vec::new();
    for server in Server::all() {
        let mut runner =
            TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..Default::default() });
        let drawn = (
            prop::sample::select(&BEGINNINGS[..]),
            any::<bool>(),
            prop::collection::vec((policy(), options()), NAMES.len()),
            prop::collection::vec(op(), 20..100),
        );
        let connection = std::cell::RefCell::new(server.connect());
        let steps = std::cell::Cell::new(0);
        let lived = runner.run(&drawn, |(beginning, changes_ack_wait, starts, ops)| {
            let mut counted = steps.get();
            let lived =
                life(&mut connection.borrow_mut(), &mut counted, beginning, changes_ack_wait, starts, ops);
            steps.set(counted);
            lived
        });
        lived.map_err(|error| format!("{} after {} steps: {error}", server.version, steps.get()))?;
        println!("{}: {} steps", server.version, steps.get());
        taken.push(steps.get());
    }
    Ok(taken)
}

#[test]
fn the_scripts_do_what_the_state_machine_does() {
    compare(cases(60, 600)).unwrap_or_else(|difference| panic!("{difference}"));
}
