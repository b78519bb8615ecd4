//! The handler runtime.

mod chaos;
mod failing;
mod handling;
pub(crate) mod killed;
mod shutdown;
mod support;
