//! Tests of event handlers with faults: a bus on a clock that the test advances, and every choice from a seed.
//!
//! [`TestBus::explore`] runs a test once per seed. The seed draws ids, the order of ready work, and the faults that the
//! test [plans](TestBus::faults): crashes, lost answers, repeated publishes, delays, outages, jumps of the clock. A
//! failure prints the seed, each step before it, and the command that repeats it. The guide
//! [Testing handlers](crate::docs::testing_handlers) has worked examples.
//!
//! ```
//! use std::time::Duration;
//!
//! use a3s_event::consumer::HandlerResult;
//! use a3s_event::testing::{Checks as _, Ledger, TestBus};
//! use a3s_event::Delivery;
//! use serde_json::json;
//!
//! // Bills an order once, whatever happens.
//! fn bill(billed: Ledger<u64>) -> impl Fn(Delivery) -> std::future::Ready<HandlerResult> {
//!     move |delivery| {
//!         let id = delivery.event().payload["id"].as_u64().unwrap_or_default();
//!         if billed.count(id) == 0 {
//!             billed.record(id);
//!         }
//!         std::future::ready(Ok(()))
//!     }
//! }
//!
//! TestBus::explore(0..50, |t| async move {
//!     let billed = Ledger::default();
//!     t.consumer("billing").subject("events.orders.>").handle(bill(billed.clone())).await?;
//!     t.faults().crash_before_ack("billing", 1).duplicate_publish(0.2).delay(0..5_000);
//!     t.publish("events.orders.placed", json!({"id": 7, "total": 42})).await?;
//!     t.advance(Duration::from_secs(120)).await;
//!     assert_eq!(billed.count(7), 1);
//!     t.assert("billing").settled().no_dead_letters()
//! });
//! ```
//!
//! # What the seed decides
//!
//! Calls to the provider are the points at which other work may run first: publish, fetch, settle, open. The seed
//! decides there. It does not decide inside of foreign tasks: code that you await in a handler runs in the order in
//! which tokio wakes it.
//!
//! # Time
//!
//! The clock stands still until the test calls [`advance`](TestBus::advance), or waits for something that takes time.
//! Timers, leases, retries, storage times, ages, deduplication, timestamps of events and schedules follow it. The
//! system's clock, as in `std::time::Instant`, does not.
//!
//! # Real providers
//!
//! [`TestBus::on`] runs the same test over a real provider. There, time passes by itself and the order of work is
//! the provider's.

mod bus;
mod checks;
mod connection;
mod consumer;
mod explore;
mod faults;
mod ledger;
mod simulation;
mod trace;
mod world;

pub use bus::TestBus;
pub use checks::{Checked, Checks};
pub use consumer::{TestConsumer, TestConsumerBuilder};
pub use explore::Explorer;
pub use faults::{Faults, Occurrence};
pub use ledger::Ledger;

pub use crate::provider::support::Clock;

/// The error of a test: any error, or a text.
pub type TestError = Box<dyn std::error::Error + Send + Sync>;

/// The result of a test.
pub type Outcome<T = ()> = Result<T, TestError>;
