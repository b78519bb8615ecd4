//! What the bus adds to a provider's subscription: decryption, validation and dead letters.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::dead_letter::DeadLetters;
use crate::crypto::EventEncryptor;
use crate::error::{EventError, Result};
use crate::provider::{AckHandler, Delivery, PendingEvent, Subscription};
use crate::schema::SchemaRegistry;
use crate::types::{Event, ReceivedEvent};

type Work<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// A provider's subscription whose events come decrypted and whose failures end in the dead letters.
pub(super) struct BusSubscription {
    inner: Box<dyn Subscription>,
    encryptor: Option<Arc<dyn EventEncryptor>>,
    /// Set where events are validated when they are consumed.
    schemas: Option<Arc<dyn SchemaRegistry>>,
    letters: Arc<DeadLetters>,
    /// What a cancelled call had begun; the next call goes on with it. The lock is never taken: it makes the
    /// subscription `Sync`.
    unfinished: Mutex<Option<Unfinished>>,
}

enum Unfinished {
    /// An acknowledgement, behind which the event is handed over.
    Ack(Work<ReceivedEvent>),
    /// An event on its way out, and the error that tells the caller why.
    TakeOut(Work<()>, Option<EventError>),
}

impl BusSubscription {
    pub(super) fn new(
        inner: Box<dyn Subscription>,
        encryptor: Option<Arc<dyn EventEncryptor>>,
        schemas: Option<Arc<dyn SchemaRegistry>>,
        letters: DeadLetters,
    ) -> Self {
        Self { inner, encryptor, schemas, letters: Arc::new(letters), unfinished: Mutex::new(None) }
    }

    fn unfinished(&mut self) -> &mut Option<Unfinished> {
        self.unfinished.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what a cancelled call had begun. An event is left over when that was an acknowledgement.
    async fn finish(&mut self) -> Result<Option<ReceivedEvent>> {
        let done = match self.unfinished() {
            None => return Ok(None),
            Some(Unfinished::Ack(work)) => work.as_mut().await.map(Some),
            Some(Unfinished::TakeOut(work, _)) => work.as_mut().await.map(|()| None),
        };
        match self.unfinished().take() {
            Some(Unfinished::TakeOut(_, Some(reason))) => done.and(Err(reason)),
            _ => done,
        }
    }

    /// The next event that is to be handed out, in clear. Cancel-safe: what is taken from the provider is either
    /// returned at once or kept in `unfinished`.
    async fn fetch(&mut self) -> Result<Option<Delivery>> {
        loop {
            let Some(delivery) = self.inner.next_delivery().await? else { return Ok(None) };
            let letters = Arc::clone(&self.letters);
            let unfinished = if letters.is_exhausted(&delivery) {
                Unfinished::TakeOut(Box::pin(async move { letters.give_up(&delivery).await }), None)
            } else {
                match self.open(delivery.event()) {
                    Ok(clear) => return Ok(Some(letters.guard(delivery, clear))),
                    Err(error) => {
                        let reason = match &error {
                            EventError::SchemaValidation { .. } => error.to_string(),
                            _ => format!("cannot be decrypted: {error}"),
                        };
                        let error = undecodable(&delivery, &reason);
                        let work = async move {
                            letters.take_out(&delivery, delivery.num_delivered(), &reason).await
                        };
                        Unfinished::TakeOut(Box::pin(work), Some(error))
                    }
                }
            };
            *self.unfinished() = Some(unfinished);
            self.finish().await?;
        }
    }

    /// The event in clear, or `None` when it is not encrypted. Where events are validated on consume, one that fails is an
    /// error as well.
    fn open(&self, event: &Event) -> Result<Option<Arc<Event>>> {
        let clear = self.decrypt(event)?;
        if let Some(schemas) = &self.schemas {
            schemas
                .validate(clear.as_deref().unwrap_or(event))
                .inspect_err(|_| self.letters.metrics.record_validation_error())?;
        }
        Ok(clear)
    }

    fn decrypt(&self, event: &Event) -> Result<Option<Arc<Event>>> {
        let Some(encryptor) =
            self.encryptor.as_ref().filter(|encryptor| encryptor.is_encrypted(&event.payload))
        else {
            return Ok(None);
        };
        let payload = encryptor.decrypt_event(event)?;
        self.letters.metrics.record_decrypt();
        Ok(Some(Arc::new(Event { payload, ..event.clone() })))
    }
}

fn undecodable(delivery: &Delivery, reason: &str) -> EventError {
    EventError::Undecodable {
        sequence: delivery.sequence(),
        raw: serde_json::to_vec(delivery.event()).unwrap_or_default(),
        reason: reason.to_owned(),
    }
}

#[async_trait]
impl Subscription for BusSubscription {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        loop {
            if let Some(received) = self.finish().await? {
                return Ok(Some(received));
            }
            let Some(delivery) = self.fetch().await? else { return Ok(None) };
            *self.unfinished() = Some(Unfinished::Ack(Box::pin(delivery.ack_into_received())));
        }
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        Ok(self.next_delivery().await?.map(Delivery::into_pending))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        match self.finish().await? {
            Some(ReceivedEvent { event, sequence, num_delivered, stream }) => {
                Ok(Some(Delivery::new(Arc::new(event), sequence, num_delivered, stream.into(), Settled)))
            }
            None => self.fetch().await,
        }
    }

    async fn lag(&self) -> Result<u64> {
        self.inner.lag().await
    }

    async fn close(&mut self) -> Result<()> {
        let finished = self.finish().await;
        self.inner.close().await?;
        finished.map(drop)
    }
}

/// Settles an event that a cancelled `next` has acknowledged already.
struct Settled;

#[async_trait]
impl AckHandler for Settled {
    async fn ack(&self) -> Result<()> {
        Ok(())
    }

    async fn nak(&self, _delay: Option<Duration>) -> Result<()> {
        Err(EventError::Ack("the event was acknowledged by an earlier call of next".to_owned()))
    }

    async fn term(&self, _reason: &str) -> Result<()> {
        Ok(())
    }

    async fn extend(&self) -> Result<()> {
        Ok(())
    }
}
