//! The inbox that a request for events names, and the deliveries that arrive there.

use std::future::Future;

use async_nats::{Message, Subject, Subscriber};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::client::Shared;
use super::position::Position;
use super::settle::Settling;

/// A received delivery.
pub(super) struct Fetched {
    pub(super) message: Message,
    pub(super) position: Position,
    /// Subject on which it is settled.
    pub(super) reply: Subject,
    /// Earliest time at which its lease can have begun.
    pub(super) since: Instant,
    /// Time at which it arrived.
    pub(super) received: Instant,
    /// Connection on which it arrived.
    pub(super) connection: u64,
}

impl Fetched {
    pub(super) fn settling(&self) -> Settling {
        let Self { position, reply, connection, received, .. } = self;
        Settling {
            reply: reply.clone(),
            delivery: position.delivery,
            connection: *connection,
            received: *received,
        }
    }
}

/// The inbox for the answers to the requests of one member.
pub(super) struct Inbox {
    pub(super) subject: Subject,
    pub(super) messages: Subscriber,
    /// Number of messages received from it.
    pub(super) taken: u64,
    /// Connection on which it was created.
    pub(super) connection: u64,
}

/// Naks a delivery without waiting for an answer.
pub(super) fn give_back(shared: &Shared, reply: Option<Subject>) {
    if let Some(reply) = reply {
        let _ = now(shared.link.client().publish(reply, b"-NAK".as_slice().into()));
    }
}

/// Returns the output of a future if it is ready at its first poll. The budget of the current task does not stop it.
pub(super) fn now<F: Future>(future: F) -> Option<F::Output> {
    tokio::task::unconstrained(future).now_or_never()
}
