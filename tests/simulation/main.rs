//! Tests on the simulated bus of `a3s_event::testing`: its faults, and the swarm.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by a panic"
)]

mod faults;
mod swarm;
