//! Real servers for tests (one feature each), and proxies that damage or encrypt their traffic.

pub mod fault_proxy;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(any(feature = "nats", all(feature = "redis", unix)))]
mod process;
#[cfg(all(feature = "redis", unix))]
pub mod redis;
#[cfg(feature = "tls")]
pub mod tls;
