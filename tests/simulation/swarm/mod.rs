//! The swarm: whole lives of a bus, each drawn from one seed, with faults that overlap.
//!
//! A life publishes while consumers start, stop, crash and freeze and events fail by key; the provider has outages,
//! loses answers and drops old events, and the clock jumps. After each step the [record](record::Record) of the handlers
//! must be *safe*: nothing settled comes again, keys are handled in order, a given-up event has one letter. When the
//! faults have stopped, the bus must be *live*: everything is handled or dead-lettered, and states, health and reports
//! agree with what works.

mod life;
mod record;
mod worker;

use a3s_event::testing::{Ledger, TestBus};

use self::life::Life;

/// Number of seeds; the slow tier asks for more.
const SEEDS: &str = "A3S_EVENT_SWARM_SEEDS";
const DEFAULT_SEEDS: u64 = 10_000;
/// The first seed; the slow tier begins behind those of the normal one.
const FIRST: &str = "A3S_EVENT_SWARM_FIRST";
/// The parts run side by side.
const PARTS: u64 = 2;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |number| number.parse().expect("a number"))
}

/// Runs every `PARTS`th seed, from this one on.
fn lives(part: u64) {
    let first = number(FIRST, 0);
    let seeds = (first..first + number(SEEDS, DEFAULT_SEEDS)).filter(|seed| seed % PARTS == part);
    TestBus::explorer(seeds)
        .provider(Life::provider)
        .run(|t| async move { Life::begin(t).await?.live().await });
}

#[test]
fn lives_of_even_seeds() {
    lives(0);
}

#[test]
fn lives_of_odd_seeds() {
    lives(1);
}

/// Returns the steps of some lives.
fn traces() -> Vec<String> {
    let traces = Ledger::default();
    let written = traces.clone();
    TestBus::explorer(0..60).provider(Life::provider).run(move |t| {
        let traces = written.clone();
        async move {
            Life::begin(t.clone()).await?.live().await?;
            traces.record(t.trace());
            Ok(())
        }
    });
    traces.entries()
}

#[test]
fn the_same_seed_gives_the_same_life() {
    let elsewhere = std::thread::spawn(traces);
    for (seed, (here, there)) in traces().into_iter().zip(elsewhere.join().unwrap()).enumerate() {
        let differs = here.lines().zip(there.lines()).find(|(here, there)| here != there);
        assert_eq!(differs, None, "seed {seed}");
    }
}

/// Seeds that found a fault.
#[test]
fn lives_that_found_a_fault() {
    const SEEDS: [u64; 0] = [];
    TestBus::explorer(SEEDS)
        .provider(Life::provider)
        .run(|t| async move { Life::begin(t).await?.live().await });
}
