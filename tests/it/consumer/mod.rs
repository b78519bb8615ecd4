//! The handler runtime.

mod chaos;
mod durations;
mod failing;
mod gone;
mod handling;
pub(crate) mod killed;
mod lanes;
mod scripted;
mod settings;
mod shutdown;
mod support;
mod told;
