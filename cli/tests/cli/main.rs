//! Tests the program as its users run it, on a SQLite file and on real servers.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "what cannot be set up or is not there fails the test, as it should"
)]

mod backup;
mod bus;
mod buses;
mod docs;
mod encryption;
mod exit;
mod letters;
mod man;
mod measure;
mod members;
mod moving;
mod operating;
mod publishing;
mod reading;
mod shells;
mod tls;
mod unreadable;
mod watching;
mod widths;

/// Creates one test per bus from each `async fn name(bus: &Bus)`.
macro_rules! on_every_bus {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&crate::bus::Bus::sqlite()).await;
            })*
        }
        mod nats {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&crate::bus::Bus::nats().await).await;
            })*
        }
        mod redis {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&crate::bus::Bus::redis().await).await;
            })*
        }
    };
}
pub(crate) use on_every_bus;
