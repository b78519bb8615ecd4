//! The swarm: whole lives of a bus, each drawn from one seed, with faults that overlap.
//!
//! A life publishes while consumers start, stop, crash and freeze and events fail by key; triggers of a broker come and
//! go; the provider has outages, loses answers and drops old events, and the clock jumps. After each step the [record](record::Record) of the handlers
//! must be *safe*: nothing settled comes again, keys are handled in order, a given-up event has one letter. When the
//! faults have stopped, the bus must be *live*: everything is handled or dead-lettered, and states, health and reports
//! agree with what works.

mod life;
mod record;
mod routing;
mod worker;

use a3s_event::testing::{Ledger, TestBus};

use self::life::Life;

/// Number of seeds; the slow tier asks for more.
const SEEDS: &str = "A3S_EVENT_SWARM_SEEDS";
const DEFAULT_SEEDS: u64 = 10_000;
/// The first seed; the slow tier begins behind those of the normal one.
const FIRST: &str = "A3S_EVENT_SWARM_FIRST";
/// File to which a process writes the steps of its lives.
const STEPS: &str = "A3S_EVENT_SWARM_STEPS";
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
fn traces() -> String {
    let traces = Ledger::default();
    let written = traces.clone();
    TestBus::explorer(0..60).provider(Life::provider).run(move |t| {
        let traces = written.clone();
        async move {
            let lived = Life::begin(t.clone()).await?.live().await;
            traces.record(format!("seed {}\n{}", t.seed(), t.trace()));
            lived
        }
    });
    traces.entries().concat()
}

fn assert_same(here: &str, there: &str) {
    let differs = here.lines().zip(there.lines()).find(|(here, there)| here != there);
    assert_eq!(differs, None);
    assert_eq!(here.lines().count(), there.lines().count());
}

#[test]
fn the_same_seed_gives_the_same_life_on_another_thread() {
    let elsewhere = std::thread::spawn(traces);
    assert_same(&traces(), &elsewhere.join().unwrap());
}

/// Another process has other addresses, another seed of its hash maps and another time.
#[test]
fn the_same_seed_gives_the_same_life_in_another_process() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let program = std::env::current_exe().unwrap();
    let mut elsewhere = std::process::Command::new(program);
    elsewhere.args(["--ignored", "--exact", "swarm::writes_the_steps_of_some_lives"]);
    let ended = elsewhere.env(STEPS, file.path()).output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    assert_same(&traces(), &std::fs::read_to_string(file.path()).unwrap());
}

#[test]
#[ignore = "runs in the process of another test"]
fn writes_the_steps_of_some_lives() {
    let file = std::env::var_os(STEPS).expect("the file to write");
    std::fs::write(file, traces()).unwrap();
}

/// Seeds that found a fault of the bus, or of a check in these lives.
#[test]
fn lives_that_found_a_fault() {
    // Slow handlers in an outage, and a consumer that is deleted while it holds events.
    const SEEDS: [u64; 4] = [352_700, 386_809, 396_874, 667_937];
    TestBus::explorer(SEEDS)
        .provider(Life::provider)
        .run(|t| async move { Life::begin(t).await?.live().await });
}
