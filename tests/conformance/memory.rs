//! The memory provider: the executable specification.

use std::sync::{Arc, Mutex};

use a3s_event::MemoryProvider;
use a3s_event_testkit::{Clock, Fixture, Harness, Outcome, Settings, async_trait, cases, run_case};

struct Memory(Clock);

#[async_trait]
impl Harness for Memory {
    async fn start(&self) -> Box<dyn Fixture> {
        Box::new(Arc::new(MemoryProvider::default()))
    }

    fn waiting_is_free(&self) -> bool {
        self.0 == Clock::Paused
    }

    async fn start_with(&self, settings: &Settings) -> Option<Box<dyn Fixture>> {
        let mut builder = MemoryProvider::builder();
        if let Some(max) = settings.max_events {
            builder = builder.max_events(max);
        }
        if let Some(max) = settings.max_bytes {
            builder = builder.max_bytes(max);
        }
        if let Some(window) = settings.dedup_window {
            builder = builder.dedup_window(window);
        }
        Some(Box::new(Arc::new(builder.build().ok()?)))
    }
}

mod contract {
    a3s_event_testkit::conformance_tests!(super::Memory(super::Clock::Paused), clock = Paused);
}

/// The same with time that passes and more than one thread. Most cases wait most of the time, hence many at once: one
/// test, not one per case.
#[test]
fn every_promise_is_kept_on_the_real_clock() {
    const AT_ONCE: usize = 16;
    let queue = Mutex::new(cases().iter());
    let next = || queue.lock().expect("no case holds the lock").next();
    let work = || {
        while let Some(case) = next() {
            run_case(case.name, &Memory(Clock::Real), Clock::Real);
        }
    };
    // The scope ends with a panic when a case fails; the output names the promise.
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(work);
        }
    });
}

#[test]
fn only_what_memory_cannot_have_is_not_checked() {
    let unchecked: Vec<_> = cases()
        .iter()
        .filter(|case| run_case(case.name, &Memory(Clock::Paused), Clock::Paused) != Outcome::Kept)
        .map(|case| case.name)
        .collect();
    assert_eq!(
        unchecked,
        [
            // Nothing of it outlives a restart.
            "stored_events_outlive_a_restart",
            "a_position_outlives_a_restart",
            "attempts_outlive_a_restart",
            "a_reset_outlives_a_restart",
            // It stores events, not bytes.
            "an_undecodable_record_surfaces_once",
            "an_undecodable_record_blocks_nothing",
            "a_page_names_what_cannot_be_read",
        ]
    );
}
