//! Conformance kit of a3s-event: every promise of [the delivery contract](a3s_event::docs::delivery) as a named case
//! that you can run against your own provider.
//!
//! # Testing a provider
//!
//! Write a [`Harness`] that starts a fresh provider for each case. [`conformance_tests!`] turns it into one `#[test]`
//! per case:
//!
//! ```
//! use std::sync::Arc;
//!
//! use a3s_event::MemoryProvider;
//! use a3s_event_testkit::{Fixture, Harness, async_trait};
//!
//! struct Memory;
//!
//! #[async_trait]
//! impl Harness for Memory {
//!     async fn start(&self) -> Box<dyn Fixture> {
//!         Box::new(Arc::new(MemoryProvider::default()))
//!     }
//! }
//!
//! a3s_event_testkit::conformance_tests!(Memory, clock = Paused);
//! # fn main() {}
//! ```
//!
//! A provider that waits only with tokio's clock runs on [`Clock::Paused`], where waiting takes no time. A provider
//! that talks to a server runs on [`Clock::Real`].
//!
//! # Absent capabilities
//!
//! A case names the capabilities that it [needs](Case::needs). If the provider declares one of them
//! [absent](a3s_event::Support::No), the case checks that the call is refused with
//! [`EventError::Unsupported`](a3s_event::EventError::Unsupported). A provider must honour or refuse every promise.
//! A capability that is [not declared](a3s_event::Support::Unknown) counts as promised.
//!
//! Some cases need something of the harness, such as a restart. Without it they end as [`Outcome::NotApplicable`],
//! which a test run shows as passed; the outcome of [`Case::run`] tells the difference.
//!
//! # Faults
//!
//! The feature `ledger` has a program that runs workers on any URL under overlapping faults of processes, files, clocks
//! and servers. It checks that no event was lost, doubled, reordered or held back: see the module `ledger`.
//!
//! # Running cases from your own tool
//!
//! [`cases()`] returns the list of all cases, for tools that choose, run and report them themselves.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a case fails by panicking: that is what the kit is for"
)]

mod case;
pub mod cases;
mod harness;
mod isolated;
#[cfg(all(feature = "ledger", unix))]
pub mod ledger;
mod refusals;
mod runner;
#[cfg(feature = "servers")]
pub mod servers;
mod world;

pub use async_trait::async_trait;
pub use case::{Case, Need, Outcome};
pub use cases::cases;
pub use harness::{Fixture, Harness, Settings};
pub use isolated::Isolated;
pub use runner::{Clock, run_case};
#[cfg(feature = "servers")]
pub use servers::fault_proxy::FaultProxy;
#[cfg(feature = "nats")]
pub use servers::nats::{NatsCluster, NatsServer};
#[cfg(all(feature = "redis", unix))]
pub use servers::redis::{RedisCluster, RedisPair, RedisSentinel, RedisServer};
