//! Code that the benchmarks share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use a3s_event::{Event, MemoryProvider};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

/// Returns the event of every figure, with about 300 bytes of JSON payload and two metadata entries.
pub(crate) fn event(subject: &str) -> Event {
    let payload = json!({
        "order": "7b0c3c1e-3a1f-4a55-9a30-5a5f4c4f0f11",
        "customer": {"id": 48_213, "name": "Grete Hermann", "city": "Bremen"},
        "lines": [
            {"sku": "A-1001", "quantity": 3, "cents": 1_250},
            {"sku": "B-2002", "quantity": 1, "cents": 9_900},
        ],
        "cents": 13_650,
        "currency": "EUR",
        "discount": 0.05,
        "placed": "2026-02-03T10:11:12Z",
        "express": false,
        "note": "leave at the door, please",
    });
    Event::new(subject, "market", "an order was placed", "bench", payload)
        .with_metadata("region", "eu-central")
        .with_metadata("tenant", "acme")
}

/// Returns a memory provider that keeps at most `max_events` events.
#[allow(dead_code, reason = "not every benchmark stores")]
pub(crate) fn provider(max_events: usize) -> MemoryProvider {
    MemoryProvider::builder().max_events(max_events).build().expect("valid settings")
}

/// Returns the runtime that `#[tokio::main]` makes on two cores. `A3S_BENCH_THREADS` sets the number of threads.
pub(crate) fn runtime() -> Runtime {
    let threads: usize = std::env::var("A3S_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).enable_all().build().expect("a runtime")
}

/// Times `iters` repetitions in chunks, each with fresh state, so that a growing store stays small. Does not time the
/// creation and the drop of the state.
#[allow(dead_code, reason = "not every benchmark needs fresh state")]
pub(crate) fn in_chunks<S>(
    iters: u64,
    chunk: u64,
    make: impl Fn() -> S,
    mut run: impl FnMut(&mut S, u64),
) -> Duration {
    let mut total = Duration::ZERO;
    let mut left = iters;
    while left > 0 {
        let count = left.min(chunk);
        let mut state = make();
        let start = Instant::now();
        run(&mut state, count);
        total += start.elapsed();
        left -= count;
    }
    total
}

/// Counts receipts, so that the publisher can wait for all of them.
#[derive(Default)]
#[allow(dead_code, reason = "not every benchmark fans out")]
pub(crate) struct Receipts {
    count: AtomicUsize,
    expected: AtomicUsize,
    complete: Notify,
}

#[allow(dead_code, reason = "not every benchmark fans out")]
impl Receipts {
    /// Counts one receipt.
    pub(crate) fn one(&self) {
        if self.count.fetch_add(1, Ordering::AcqRel) + 1 == self.expected.load(Ordering::Acquire) {
            self.complete.notify_one();
        }
    }

    /// Publishes, and waits until `more` additional receipts are counted.
    pub(crate) async fn wait_for(&self, more: usize, publish: impl AsyncFnOnce()) {
        let expected = self.expected.fetch_add(more, Ordering::AcqRel) + more;
        publish().await;
        while self.count.load(Ordering::Acquire) < expected {
            self.complete.notified().await;
        }
    }
}
