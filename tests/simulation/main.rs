//! Tests on the simulated bus of `a3s_event::testing`: its faults, and the swarm.

mod faults;
mod swarm;
