//! The launchers of real servers, and the proxy that damages what goes to them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests panic"
)]

mod fault_proxy;
mod nats_cluster;
mod nats_server;
