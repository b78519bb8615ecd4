//! Runs a test with many seeds.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use super::bus::TestBus;
use super::simulation::Simulation;
use super::world::World;
use super::{Clock, Outcome};
use crate::provider::memory::MemoryProvider;
use crate::provider::{EventProvider, IntoProvider};
use crate::task::message_of;

/// Environment variable of the only seed to run.
const SEED: &str = "A3S_EVENT_SEED";

type MakeProvider = dyn Fn(Clock) -> Arc<dyn EventProvider>;

/// Runs a test with many seeds; see [`TestBus::explore`].
#[must_use]
pub struct Explorer {
    seeds: Box<dyn Iterator<Item = u64>>,
    provider: Box<MakeProvider>,
}

impl Explorer {
    pub(super) fn new(seeds: impl IntoIterator<Item = u64>) -> Self {
        let seeds: Vec<u64> = seeds.into_iter().collect();
        Self { seeds: Box::new(seeds.into_iter()), provider: Box::new(|clock| in_memory(clock)) }
    }

    /// Sets the provider of each run, which must follow the given clock and tokio's clock and use no thread of its own.
    /// The default is a [`MemoryProvider`] with default settings.
    ///
    /// ```
    /// use a3s_event::testing::TestBus;
    /// use a3s_event::MemoryProvider;
    ///
    /// TestBus::explorer(0..10)
    ///     .provider(|clock| MemoryProvider::builder().max_events(2).clock(clock).build().expect("valid settings"))
    ///     .run(|t| async move {
    ///         for number in 1..=3 {
    ///             t.publish("events.a", number).await?;
    ///         }
    ///         assert_eq!(t.provider().info().await?.messages, 2);
    ///         Ok(())
    ///     });
    /// ```
    pub fn provider<P: IntoProvider>(mut self, make: impl Fn(Clock) -> P + 'static) -> Self {
        self.provider = Box::new(move |clock| make(clock).into_provider());
        self
    }

    /// Runs the test.
    ///
    /// # Panics
    ///
    /// As [`TestBus::explore`].
    #[allow(clippy::panic, reason = "a test fails by a panic")]
    pub fn run<T, F, Fut>(self, test: F)
    where
        F: Fn(TestBus) -> Fut,
        Fut: Future<Output = Outcome<T>>,
    {
        let only = std::env::var(SEED).ok().map(|seed| match seed.parse() {
            Ok(seed) => seed,
            Err(_) => panic!("{SEED} is \"{seed}\": write a number"),
        });
        let seeds = only.map_or(self.seeds, |seed: u64| Box::new(std::iter::once(seed)));
        for seed in seeds {
            if let Err(failure) = run_one(seed, &*self.provider, &test) {
                panic!("{failure}");
            }
        }
    }
}

impl fmt::Debug for Explorer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Explorer").finish_non_exhaustive()
    }
}

fn in_memory(clock: Clock) -> Arc<dyn EventProvider> {
    match MemoryProvider::builder().clock(clock).build() {
        Ok(provider) => Arc::new(provider),
        // The default settings are valid.
        Err(_) => Arc::new(MemoryProvider::default()),
    }
}

/// Runs the test with one seed. Returns the message of its failure.
fn run_one<T, F, Fut>(seed: u64, provider: &MakeProvider, test: &F) -> Result<(), String>
where
    F: Fn(TestBus) -> Fut,
    Fut: Future<Output = Outcome<T>>,
{
    let simulation = Simulation::new(seed).map_err(|error| format!("tokio runtime: {error}"))?;
    let world = OnceLock::new();
    let run = || {
        simulation.run(|clock| {
            let letters = in_memory(clock.clone());
            let world = world.get_or_init(|| World::new(seed, clock.clone(), true, provider(clock), letters));
            let bus = TestBus::from_world(Arc::clone(world));
            async move {
                tokio::select! {
                    biased;
                    outcome = test(bus) => outcome.map(drop),
                    () = world.impatience() => Err("the test waited for an hour without advancing the clock".into()),
                }
            }
        })
    };
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(message_of(&*panic).into()));
    let Some(world) = world.get() else { return outcome.map_err(|error| error.to_string()) };
    let failure = world.failure().or(outcome.err().map(|error| error.to_string()));
    // Who repeats a seed looks for the reason, which may lie far back.
    let is_repeated = std::env::var_os(SEED).is_some();
    let steps = || if is_repeated { world.trace().all() } else { world.trace().end() };
    let told = failure.map(|why| report(seed, &why, &steps()));
    // Tasks are dropped before what they use.
    drop(simulation);
    world.close();
    told.map_or(Ok(()), Err)
}

fn report(seed: u64, why: &str, trace: &str) -> String {
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main").unwrap_or("TEST");
    format!("seed {seed}: {why}\n\nsteps:\n{trace}\nto repeat it: {SEED}={seed} cargo test {test}\n")
}
