//! The conformance kit against the providers of this crate, a module for each.

mod custom;
#[cfg(any(feature = "redis", feature = "sqlite"))]
mod kept;
mod memory;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;
