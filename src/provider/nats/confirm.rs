//! Sends acks without waiting, has them confirmed in the background, and sends them again on a new connection.
//!
//! A server processes the settlements of a consumer in the order in which a connection sends them. The newest ack is
//! sent once more as a request. Its confirmation proves all acks that were sent before it on the same connection. In a
//! cluster the consumer may move to another server meanwhile, so each ack is confirmed separately there.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::{RequestErrorKind, Subject};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::client::Shared;
use super::inbox::now;
use super::life::Life;
use super::link::NoAnswer;
use super::settle::unconfirmed;
use super::unconfirmed::{Fate, Place, Sent};
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::provider::support::{Backoff, OwnedTask, flushed};

/// Body of an ack.
pub(super) const ACK: &[u8] = b"+ACK";
/// Delay of a confirmation, so that it covers all acks sent meanwhile: a confirmation costs the server as much as an
/// event. No caller waits for it: a flush ends it, and so do acks once half of those allowed are in flight.
const COLLECT: Duration = Duration::from_millis(500);
/// Pauses after consecutive failures.
const RETRY: Backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(2)).jitter(0.0);
/// Maximum number of consumers whose acks are confirmed at once. Acks of a further consumer are confirmed with its next
/// ack or flush.
const MAX_CONSUMERS: usize = 4_096;
/// Number of acks of one consumer that are confirmed separately at a time.
const AT_ONCE: usize = 64;

/// A settlement to send.
#[derive(Clone)]
pub(super) struct Settled<'a> {
    pub(super) reply: &'a Subject,
    pub(super) body: Bytes,
    pub(super) sequence: u64,
    /// Number of the delivery among all deliveries of the consumer.
    pub(super) delivery: u64,
    /// Time at which the delivery arrived.
    pub(super) received: Instant,
}

/// The task that has acks confirmed.
pub(super) struct Confirmer {
    consumers: mpsc::Sender<Arc<Life>>,
    task: OwnedTask<bool>,
}

impl Confirmer {
    /// Starts the task. It ends when the provider is dropped, or at most one request timeout after it is closed.
    pub(super) fn start(shared: Weak<Shared>, closed: watch::Receiver<bool>) -> Self {
        let (consumers, received) = mpsc::channel(MAX_CONSUMERS);
        Self { consumers, task: OwnedTask::spawn(confirm_all(shared, received, closed)) }
    }

    /// Schedules the confirmation of a consumer's acks.
    fn look_after(&self, life: &Arc<Life>) {
        let flag = &life.unconfirmed.is_looked_after;
        if !flag.swap(true, Ordering::AcqRel) && self.consumers.try_send(Arc::clone(life)).is_err() {
            flag.store(false, Ordering::Release);
        }
    }

    /// Waits until the task has ended, after the provider was closed.
    pub(super) async fn ended(&self) -> Result<()> {
        // The task has its own timeout.
        match self.task.ended().await {
            Some(false) => Err(EventError::Timeout(
                "close: acks were not confirmed in time; their events may be redelivered".to_owned(),
            )),
            Some(true) | None => Ok(()),
        }
    }
}

/// Runs the task. Returns true if it left no ack unconfirmed.
async fn confirm_all(
    shared: Weak<Shared>,
    mut received: mpsc::Receiver<Arc<Life>>,
    mut closed: watch::Receiver<bool>,
) -> bool {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = open.next() => {}
            life = received.recv(), if open.len() < MAX_CONSUMERS => match life {
                Some(life) => open.push(confirm(shared.clone(), life)),
                None => return true,
            },
            _ = closed.wait_for(|closed| *closed) => break,
        }
    }
    received.close();
    let Some(deadline) = shared.upgrade().map(|shared| shared.settings.config.request_timeout()) else {
        return true;
    };
    let ending = async {
        while let Some(life) = received.recv().await {
            open.push(confirm(shared.clone(), life));
        }
        while open.next().await.is_some() {}
    };
    tokio::time::timeout(deadline, ending).await.is_ok()
}

/// Has the acks of one consumer confirmed, until none is left.
async fn confirm(shared: Weak<Shared>, life: Arc<Life>) {
    let acks = &life.unconfirmed;
    let mut failures = 0;
    loop {
        let pause = if failures == 0 { COLLECT } else { RETRY.delay(failures) };
        let _ = tokio::time::timeout(pause, acks.urgent.notified()).await;
        let Some(shared) = shared.upgrade() else { return };
        match shared.confirm_acks(&life).await {
            Ok(()) => failures = 0,
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(consumer = life.name, %error, "acks are not confirmed yet; retrying");
                }
                failures += 1;
            }
        }
        if acks.is_empty() {
            acks.is_looked_after.store(false, Ordering::Release);
            // Another ack may have been sent before the flag was cleared.
            if acks.is_empty() || acks.is_looked_after.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }
}

impl Shared {
    /// Sends an ack or term without waiting for its confirmation. Waits only while too many acks are in flight.
    pub(super) async fn send_ack(&self, life: &Arc<Life>, settled: Settled<'_>) -> Result<()> {
        let deadline = self.settings.config.request_timeout();
        let late = |_| unconfirmed("ack", format!("not sent within {} s", deadline.as_secs()));
        let until = Instant::now().after(deadline);
        let placing = life.unconfirmed.place(self.settings.max_unconfirmed_acks);
        let place = tokio::time::timeout_at(until, placing).await.map_err(late)?;
        let client = tokio::time::timeout_at(until, self.link.working()).await.map_err(late)??;
        // The consumer may have been reset, or ended, during the wait.
        if !life.takes(settled.received) {
            return Err(EventError::Ack(
                "ack: the consumer was reset, or ended, before the ack was sent".to_owned(),
            ));
        }
        let connection = self.link.connection_exactly();
        let sending = client.publish(settled.reply.clone(), settled.body.clone());
        let sent = tokio::time::timeout_at(until, sending).await.map_err(late)?;
        sent.map_err(|error| unconfirmed("ack", error))?;
        self.note_sent(life, place, &settled, connection);
        Ok(())
    }

    /// Sends an ack or term if that is possible without waiting, and returns true then.
    pub(super) fn try_send_ack(&self, life: &Arc<Life>, settled: &Settled<'_>) -> bool {
        let Some(place) = life.unconfirmed.place_now(self.settings.max_unconfirmed_acks) else {
            return false;
        };
        let Some(client) = self.link.client_if_working() else { return false };
        let connection = self.link.connection_exactly();
        let sent = now(client.publish(settled.reply.clone(), settled.body.clone()));
        if !matches!(sent, Some(Ok(()))) {
            return false;
        }
        self.note_sent(life, place, settled, connection);
        true
    }

    fn note_sent(&self, life: &Arc<Life>, place: Place<'_>, settled: &Settled<'_>, connection: u64) {
        let Settled { reply, sequence, delivery, received, .. } = settled;
        let sent =
            Sent { number: 0, reply: (*reply).clone(), sequence: *sequence, delivery: *delivery, connection };
        life.unconfirmed.push(place, sent, || life.takes(*received));
        self.look_after_acks(life);
    }

    fn look_after_acks(&self, life: &Arc<Life>) {
        if let Some(confirmer) = self.confirmer.get() {
            confirmer.look_after(life);
        }
    }

    /// Waits until the acks sent before this call are confirmed.
    pub(super) async fn flush_acks(&self, life: &Arc<Life>) -> Result<()> {
        if !life.unconfirmed.is_empty() {
            self.look_after_acks(life);
        }
        let deadline = self.settings.config.request_timeout();
        let late = |_| unconfirmed("flush", format!("acks not confirmed within {} s", deadline.as_secs()));
        flushed(tokio::time::timeout(deadline, life.unconfirmed.flush()).await.map_err(late)?)
    }

    /// Has the present acks confirmed.
    async fn confirm_acks(&self, life: &Life) -> Result<()> {
        let acks = &life.unconfirmed;
        if life.end().is_some() {
            acks.clear();
            return Ok(());
        }
        let resets = life.resets();
        let connection = self.link.connection_exactly();
        let Some((newest, is_one_connection)) = acks.newest(connection) else { return Ok(()) };
        if !is_one_connection {
            return self.send_acks_again(life, connection, resets).await;
        }
        if self.link.client().server_info().cluster.is_some() {
            return self.confirm_each(life, resets).await;
        }
        if self.confirm_ack(life, &newest, resets).await? && self.link.connection_exactly() == connection {
            acks.end(Fate::Confirmed, |sent| sent.number <= newest.number && sent.connection == connection);
        }
        Ok(())
    }

    async fn confirm_each(&self, life: &Life, resets: u64) -> Result<()> {
        let confirming = life.unconfirmed.all().into_iter().map(async |sent| {
            if self.confirm_ack(life, &sent, resets).await? {
                life.unconfirmed.end(Fate::Confirmed, |other| other.number == sent.number);
            }
            Ok(())
        });
        let confirmed: Vec<Result<()>> = stream::iter(confirming).buffer_unordered(AT_ONCE).collect().await;
        confirmed.into_iter().collect()
    }

    /// Returns true if the server confirms an ack, and false if the consumer was reset, has ended or is gone.
    async fn confirm_ack(&self, life: &Life, sent: &Sent, resets: u64) -> Result<bool> {
        // After a reset it would settle a redelivery.
        if life.resets() != resets || life.end().is_some() {
            return Ok(false);
        }
        let deadline = self.settings.config.request_timeout();
        match self.link.request(&sent.reply, ACK, deadline).await {
            Ok(_) => Ok(true),
            Err(none) => {
                let is_missed = matches!(&none, NoAnswer::Late)
                    || matches!(&none, NoAnswer::Failed(error) if error.kind() == RequestErrorKind::NoResponders);
                if is_missed && !self.consumer(&life.name).await?.is_some_and(|info| life.is_of(&info)) {
                    life.unconfirmed.clear();
                    return Ok(false);
                }
                Err(none.into_error(self.link.server(), "ack", deadline))
            }
        }
    }

    /// Sends the acks of an ended connection again, unless the server has forgotten their deliveries.
    async fn send_acks_again(&self, life: &Life, connection: u64, resets: u64) -> Result<()> {
        let acks = &life.unconfirmed;
        let Some(info) = self.consumer(&life.name).await?.filter(|info| life.is_of(info)) else {
            acks.clear();
            return Ok(());
        };
        // A server that has crashed does not know of deliveries after its last one. Neither does a consumer that was
        // reset.
        let last = info.delivered.consumer_sequence;
        let forgotten = acks.end(Fate::Lost, |sent| sent.connection != connection && sent.delivery > last);
        if forgotten > 0 {
            self.ack_failures.add_lost(forgotten);
            tracing::warn!(
                consumer = life.name,
                forgotten,
                "the server lost acks; their events will be redelivered"
            );
        }
        let deadline = self.settings.config.request_timeout();
        let late = |_| unconfirmed("ack", "not resent in time");
        let client = tokio::time::timeout(deadline, self.link.working()).await.map_err(late)??;
        for sent in acks.all().into_iter().filter(|sent| sent.connection != connection) {
            if life.resets() != resets || life.end().is_some() {
                return Ok(());
            }
            let sending = client.publish(sent.reply, Bytes::from_static(ACK));
            let done = tokio::time::timeout(deadline, sending).await.map_err(late)?;
            done.map_err(|error| unconfirmed("ack", error))?;
            acks.sent_again(sent.number, connection);
        }
        Ok(())
    }
}
