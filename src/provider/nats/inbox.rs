//! What answers a request for events: the inbox that it names, and the deliveries that come there.

use std::future::Future;

use async_nats::{Message, Subject, Subscriber};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::client::Shared;
use super::position::Position;
use super::settle::Settling;

/// A delivery that was received.
pub(super) struct Fetched {
    pub(super) message: Message,
    pub(super) position: Position,
    /// Where it is settled.
    pub(super) reply: Subject,
    /// Its lease has begun at this time or later.
    pub(super) since: Instant,
    /// When it came.
    pub(super) received: Instant,
    /// The connection that it came on.
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

/// Where the answers of the requests of one member come.
pub(super) struct Inbox {
    pub(super) subject: Subject,
    pub(super) messages: Subscriber,
    /// How many messages were taken out of it.
    pub(super) taken: u64,
    /// The connection that it was made on.
    pub(super) connection: u64,
}

/// Asks for another delivery of an event, without waiting for an answer.
pub(super) fn give_back(shared: &Shared, reply: Option<Subject>) {
    if let Some(reply) = reply {
        let _ = now(shared.link.client().publish(reply, b"-NAK".as_slice().into()));
    }
}

/// The output of a future that is ready at its first poll. It must not be stopped by the budget of the task it runs in.
pub(super) fn now<F: Future>(future: F) -> Option<F::Output> {
    tokio::task::unconstrained(future).now_or_never()
}
