//! Real servers for tests (one feature each), and a proxy that damages what goes to them.

pub mod fault_proxy;
#[cfg(feature = "nats")]
pub mod nats;
