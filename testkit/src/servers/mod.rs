//! Real servers for tests (one feature each), and a proxy that damages their traffic.

pub mod fault_proxy;
#[cfg(feature = "nats")]
pub mod nats;
