//! The simulation: a runtime of one thread on a paused clock, which knows when no task is ready.

use std::cell::RefCell;
use std::task::{Poll, Waker};

use tokio::runtime::{Builder, Runtime};

use crate::clock::{self, Clock};
use crate::random;

/// Wall clock at the start of a simulation: 2026-01-01T00:00:00Z.
const BEGIN_UNIX_MS: u64 = 1_767_225_600_000;

/// Tasks that wait until no other task is ready.
#[derive(Default)]
struct Idlers {
    /// Number of times that no task was ready.
    turn: u64,
    waiting: Vec<Waker>,
}

thread_local! {
    static IDLERS: RefCell<Idlers> = RefCell::default();
}

/// A runtime of this thread. While it exists, time and random numbers of this thread are its own.
pub(super) struct Simulation {
    runtime: Runtime,
}

impl Simulation {
    pub(super) fn new(seed: u64) -> std::io::Result<Self> {
        IDLERS.set(Idlers::default());
        random::ambient::set(Some(seed));
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            // A task that yields is polled again only when no other task is ready.
            .event_interval(u32::MAX)
            .on_thread_park(wake_idlers)
            .build()?;
        Ok(Self { runtime })
    }

    /// Runs a future on the simulated clock, which shows the same time at the start of every simulation.
    pub(super) fn run<F: Future>(&self, begin: impl FnOnce(Clock) -> F) -> F::Output {
        self.runtime.block_on(async {
            let clock = Clock::of_tokio(BEGIN_UNIX_MS);
            clock::ambient::set(Some(clock.clone()));
            begin(clock).await
        })
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        clock::ambient::set(None);
        random::ambient::set(None);
    }
}

/// Runs before the runtime would wait or move its clock on.
fn wake_idlers() {
    let waiting = IDLERS.with_borrow_mut(|idlers| {
        idlers.turn += 1;
        std::mem::take(&mut idlers.waiting)
    });
    waiting.into_iter().for_each(Waker::wake);
}

/// Waits until no task is ready. The clock does not move meanwhile. Only for a thread that simulates.
pub(super) async fn idle() {
    let begun = IDLERS.with_borrow(|idlers| idlers.turn);
    std::future::poll_fn(|cx| {
        IDLERS.with_borrow_mut(|idlers| {
            if idlers.turn != begun {
                return Poll::Ready(());
            }
            idlers.waiting.push(cx.waker().clone());
            Poll::Pending
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[test]
    fn a_runtime_without_a_ready_task_is_idle_and_its_clock_stands_still() {
        let simulation = Simulation::new(1).unwrap();
        simulation.run(|_| async {
            let begin = Instant::now();
            let (steps, later) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
            let (counted, counted_later) = (Arc::clone(&steps), Arc::clone(&later));
            tokio::spawn(async move {
                for _ in 0..1_000 {
                    counted.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
                sleep(Duration::from_secs(1)).await;
                counted_later.fetch_add(1, Ordering::Relaxed);
            });
            idle().await;
            assert_eq!((steps.load(Ordering::Relaxed), later.load(Ordering::Relaxed)), (1_000, 0));
            assert_eq!(begin.elapsed(), Duration::ZERO);
            sleep(Duration::from_secs(2)).await;
            idle().await;
            assert_eq!((later.load(Ordering::Relaxed), begin.elapsed()), (1, Duration::from_secs(2)));
        });
    }

    #[test]
    fn ids_and_times_come_from_the_seed() {
        let made = |seed| {
            Simulation::new(seed).unwrap().run(|_| async {
                sleep(Duration::from_secs(7)).await;
                let event = crate::Event::new("events.a", "a", "", "test", serde_json::Value::Null);
                (event.id, event.timestamp, random::fraction().to_bits())
            })
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
        assert_eq!(made(1).1, BEGIN_UNIX_MS + 7_000);
        let now = clock::unix_millis();
        assert!(now > BEGIN_UNIX_MS + 7_000, "the clock of the system is back: {now}");
    }
}
