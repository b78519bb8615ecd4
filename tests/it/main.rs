//! What the conformance kit does not cover: defects of earlier versions, and faults of real servers.

#[cfg(feature = "nats")]
mod nats;
