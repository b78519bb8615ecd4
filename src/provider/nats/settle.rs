//! Settling deliveries: on the server, or locally if the server would settle another delivery.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{RequestErrorKind, Subject};
use bytes::Bytes;
use tokio::time::Instant;

use super::client::Shared;
use super::confirm::{ACK, Settled};
use super::error::PROVIDER;
use super::life::Life;
use super::link::NoAnswer;
use super::wire::nanos;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::provider::support::shorten;
use crate::provider::{AckFuture, AckHandler, AckKind, Settlement};

/// Time after which a settlement is investigated: the server may have crashed and forgotten the delivery.
const PATIENCE: Duration = Duration::from_millis(50);
/// Maximum time to wait for the confirmation of a settlement.
const CONFIRMATION: Duration = Duration::from_secs(3);
/// Pause between two requests for the state of a consumer whose server is not ready.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The consumer as its deliveries need it.
pub(super) struct ConsumerHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) life: Arc<Life>,
    pub(super) stream: Arc<str>,
}

/// Data needed to settle a delivery.
#[derive(Clone)]
pub(super) struct Settling {
    pub(super) reply: Subject,
    /// Number of the delivery among all deliveries of the consumer, to all members.
    pub(super) delivery: u64,
    /// Connection on which the delivery arrived.
    pub(super) connection: u64,
    /// Time at which the delivery arrived.
    pub(super) received: Instant,
}

impl Settling {
    /// Creates the data of a delivery that the client cannot receive. Its number is unknown.
    pub(super) fn parked(reply: Subject) -> Self {
        Self { reply, delivery: 0, connection: 0, received: Instant::now() }
    }
}

impl ConsumerHandle {
    /// Sends a settlement and waits until the server confirms it.
    pub(super) async fn settle(&self, settling: &Settling, verb: &'static str, body: &[u8]) -> Result<()> {
        if let Some(answer) = self.check_life(settling, verb) {
            return answer;
        }
        let deadline = CONFIRMATION.min(self.shared.settings.config.request_timeout());
        let late = || unconfirmed(verb, format!("no confirmation within {} s", deadline.as_secs()));
        let asking = async {
            match self.shared.link.request(&settling.reply, body, deadline).await {
                Ok(_confirmation) => Ok(()),
                Err(NoAnswer::Failed(error)) if error.kind() == RequestErrorKind::NoResponders => {
                    self.nobody_settles(verb).await
                }
                Err(NoAnswer::Late) => Err(late()),
                Err(none) => {
                    Err(unconfirmed(verb, none.into_error(self.shared.link.server(), "settle", deadline)))
                }
            }
        };
        let mut asking = pin!(tokio::time::timeout(deadline, asking));
        if let Ok(settled) = tokio::time::timeout(PATIENCE, &mut asking).await {
            return settled.unwrap_or_else(|_| Err(late()));
        }
        tokio::select! {
            biased;
            settled = &mut asking => settled.unwrap_or_else(|_| Err(late())),
            () = self.forgets(settling) => {
                Err(EventError::Ack(format!("{verb}: the server crashed and has lost the delivery")))
            }
        }
    }

    /// Waits until a new connection shows that the server has forgotten a delivery. Such a server never confirms the
    /// settlement, and redelivers the event.
    async fn forgets(&self, settling: &Settling) {
        let mut connection = settling.connection;
        loop {
            connection = self.shared.link.connection_after(connection).await;
            match self.shared.consumer(&self.life.name).await {
                Ok(Some(info)) if info.delivered.consumer_sequence < settling.delivery => return,
                Ok(_) => {}
                Err(_) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    connection = settling.connection;
                }
            }
        }
    }

    /// Handles a settlement without a responder: the consumer is gone, or its server is starting.
    async fn nobody_settles(&self, verb: &'static str) -> Result<()> {
        let name = &self.life.name;
        if self.shared.consumer(name).await?.is_some_and(|info| self.life.is_of(&info)) {
            return Err(unconfirmed(verb, format!("consumer '{name}' is not ready")));
        }
        self.settle_for_the_gone(verb)
    }

    fn settle_for_the_gone(&self, verb: &'static str) -> Result<()> {
        match verb {
            // Nothing is redelivered, as the caller wants.
            "ack" | "term" => Ok(()),
            _ => {
                let name = &self.life.name;
                Err(EventError::Closed(format!("consumer '{name}' no longer exists and redelivers nothing")))
            }
        }
    }

    pub(super) async fn apply(&self, settling: &Settling, num_delivered: u64, kind: &AckKind) -> Result<()> {
        self.settle(settling, kind.verb(), &self.body(num_delivered, kind)).await
    }

    /// Returns the body of a settlement.
    fn body(&self, num_delivered: u64, kind: &AckKind) -> Bytes {
        match kind {
            AckKind::Ack => Bytes::from_static(ACK),
            AckKind::Extend => Bytes::from_static(b"+WPI"),
            AckKind::Release | AckKind::Nak(_) => match self.delay(kind, num_delivered) {
                Duration::ZERO => Bytes::from_static(b"-NAK"),
                delay => format!(r#"-NAK {{"delay":{}}}"#, nanos(delay)).into(),
            },
            AckKind::Term(reason) => {
                tracing::debug!(consumer = self.life.name, reason = shorten(reason), "event terminated");
                // Older servers know the bare word only.
                match self.shared.link.client().is_server_compatible(2, 10, 4) {
                    true => format!("+TERM {}", shorten(reason)).into(),
                    false => Bytes::from_static(b"+TERM"),
                }
            }
        }
    }

    /// Returns the answer to a settlement that can no longer take effect, or `None` if it can.
    fn check_life(&self, settling: &Settling, verb: &'static str) -> Option<Result<()>> {
        // The server knows only the name. It would settle a delivery of a successor, or one after a reset.
        if self.life.end().is_some() {
            return Some(self.settle_for_the_gone(verb));
        }
        let is_in_force = self.life.is_in_force(settling.received);
        (!is_in_force).then(|| {
            Err(EventError::Ack(format!("{verb}: the consumer was reset after the event was delivered")))
        })
    }

    /// Sends an ack or term without waiting for its confirmation. After the provider was closed it waits, because the
    /// confirming task ends.
    pub(super) fn send<'a>(
        &'a self,
        settling: &'a Settling,
        sequence: u64,
        kind: &AckKind,
        num_delivered: u64,
    ) -> AckFuture<'a> {
        if let Some(answer) = self.check_life(settling, kind.verb()) {
            return AckFuture::ready(answer);
        }
        let body = self.body(num_delivered, kind);
        if *self.shared.closed.borrow() {
            let verb = kind.verb();
            return AckFuture::new(async move { self.settle(settling, verb, &body).await });
        }
        let Settling { reply, delivery, received, .. } = settling;
        let settled = Settled { reply, body, sequence, delivery: *delivery, received: *received };
        if self.shared.try_send_ack(&self.life, &settled) {
            return AckFuture::ready(Ok(()));
        }
        AckFuture::new(self.shared.send_ack(&self.life, settled))
    }

    /// Returns the delay before the event is redelivered.
    fn delay(&self, kind: &AckKind, num_delivered: u64) -> Duration {
        match kind {
            AckKind::Nak(Some(delay)) => *delay,
            AckKind::Nak(None) => {
                self.life.config().backoff_after(u32::try_from(num_delivered).unwrap_or(u32::MAX))
            }
            AckKind::Extend => self.life.config().ack_wait,
            AckKind::Ack | AckKind::Term(_) | AckKind::Release => Duration::ZERO,
        }
    }
}

/// Returns the error of a settlement that may have taken effect. It can be repeated safely.
pub(super) fn unconfirmed(
    verb: &'static str,
    reason: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> EventError {
    BackendError::new(PROVIDER, verb, ErrorKind::Ack, reason).retryable().into()
}

/// Settles one delivery.
pub(super) struct Handler {
    pub(super) consumer: Arc<ConsumerHandle>,
    pub(super) settling: Settling,
    /// Sequence of a parked record, which the client cannot receive and the server holds. Only its ack or term goes to
    /// the server.
    pub(super) parked: Option<u64>,
}

impl AckHandler for Handler {
    fn settle(&self, Settlement { lease, kind, is_confirmed }: Settlement) -> AckFuture<'_> {
        let Self { consumer, settling, parked } = self;
        let num_delivered = lease.attempt.into();
        if parked.is_none() && !is_confirmed && matches!(kind, AckKind::Ack | AckKind::Term(_)) {
            return consumer.send(settling, lease.sequence, &kind, num_delivered);
        }
        AckFuture::new(async move {
            let Some(sequence) = *parked else {
                return consumer.apply(settling, num_delivered, &kind).await;
            };
            let parked = &consumer.life.parked;
            match kind {
                AckKind::Ack | AckKind::Term(_) => {
                    consumer.apply(settling, num_delivered, &kind).await?;
                    parked.settled(sequence);
                }
                _ => parked.delay(sequence, consumer.delay(&kind, num_delivered)),
            }
            Ok(())
        })
    }
}
