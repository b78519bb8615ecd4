//! The launchers of real servers, and the proxy that damages what goes to them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "tests panic"
)]

mod fault_proxy;
mod nats_cluster;
mod nats_server;
#[cfg(unix)]
mod redis_cluster;
#[cfg(unix)]
mod redis_pair;
#[cfg(unix)]
mod redis_server;
#[cfg(unix)]
mod tls;

/// The launchers work in tasks of any runtime.
fn in_task<F: Future + Send>(future: F) -> F {
    future
}
