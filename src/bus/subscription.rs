//! Additions of the bus to a provider's subscription: decryption, validation and dead letters.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::dead_letter::DeadLetters;
use super::verdict::Verdict;
use crate::crypto::{EventEncryptor, sealed_error};
use crate::dlq::{FailureClass, forwarded_original};
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::group::{ConsumerConfig, Lease};
use crate::provider::{
    AlreadyAcked, Delivery, PendingEvent, SettlementObserver, Subscription, SubscriptionEnd,
    UndecodableRecord,
};
use crate::schema::SchemaRegistry;
use crate::types::{Event, ReceivedEvent};

/// Timeout of one batch fetch; the next fetch follows it.
const BATCH_WAIT: Duration = Duration::from_secs(30);

type Work<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// A provider's subscription with decrypted events, which dead-letters unprocessable ones.
pub(super) struct BusSubscription {
    inner: Box<dyn Subscription>,
    encryptor: Option<Arc<dyn EventEncryptor>>,
    /// Schemas for validation on consume; `None` if it is off.
    schemas: Option<Arc<dyn SchemaRegistry>>,
    /// If true, encrypted events are handed out encrypted.
    as_stored: bool,
    letters: Arc<DeadLetters>,
    /// Work that a cancelled call had begun; the next call completes it. The lock is never taken: it makes the
    /// subscription `Sync`.
    unfinished: Mutex<Option<Unfinished>>,
}

enum Unfinished {
    /// An acknowledgement; once it is done, the event is returned.
    Ack(Work<ReceivedEvent>),
    /// An event that is being dead-lettered, and the error that the caller gets afterwards.
    TakeOut(Work<bool>, Option<EventError>),
}

/// A delivery of the provider, before the bus has acted on it.
pub(super) struct Incoming {
    /// The delivery of the event as stored.
    pub(super) stored: Delivery,
    /// The event in clear, or the reason why it cannot be processed.
    pub(super) content: std::result::Result<Arc<Event>, Box<Poison>>,
    /// True if the provider settled the delivery before the bus could store it.
    pub(super) is_settled: bool,
}

/// Reason why no consumer can process an event.
pub(super) struct Poison {
    pub(super) class: FailureClass,
    pub(super) reason: String,
    /// The error that a subscriber receives.
    error: EventError,
}

impl Poison {
    fn undecodable(sequence: u64, record: &UndecodableRecord) -> Self {
        let error =
            EventError::Undecodable { sequence, raw: record.raw.clone(), reason: record.reason.clone() };
        Self { class: FailureClass::Undecodable, reason: error.to_string(), error }
    }

    /// Describes an event that [`open`](BusSubscription::open) rejected.
    fn closed(stored: &Delivery, error: &EventError) -> Self {
        let (class, reason) = match error {
            EventError::SchemaValidation { .. } => (FailureClass::SchemaInvalid, error.to_string()),
            _ => (FailureClass::Undecryptable, cannot_be_decrypted(error)),
        };
        let raw = serde_json::to_vec(stored.event()).unwrap_or_default();
        let error = EventError::Undecodable { sequence: stored.sequence(), raw, reason: reason.clone() };
        Self { class, reason, error }
    }
}

/// Returns the reason of an undecryptable event.
pub(super) fn cannot_be_decrypted(error: &EventError) -> String {
    format!("cannot be decrypted: {error}")
}

impl BusSubscription {
    /// With `as_stored`, events are decrypted for validation only, and handed out encrypted.
    pub(super) fn new(
        mut inner: Box<dyn Subscription>,
        encryptor: Option<Arc<dyn EventEncryptor>>,
        schemas: Option<Arc<dyn SchemaRegistry>>,
        as_stored: bool,
        letters: DeadLetters,
    ) -> Self {
        if letters.letter_box.handler.is_some() {
            inner.keep_undecodable();
        }
        let letters = Arc::new(letters);
        Self { inner, encryptor, schemas, as_stored, letters, unfinished: Mutex::new(None) }
    }

    /// Returns the dead letters of this subscription.
    pub(super) fn letters(&self) -> &Arc<DeadLetters> {
        &self.letters
    }

    /// Fetches a batch as [`next_batch`](Subscription::next_batch) does, and leaves unprocessable records to the
    /// caller.
    pub(super) async fn next_incoming(
        &mut self,
        max: usize,
        wait: Duration,
    ) -> Option<Vec<Result<Incoming>>> {
        let batch = self.inner.next_batch(max, wait).await?;
        self.look_at_settings();
        let counters = &self.letters.counters;
        let incoming = |delivered: Result<Delivery>| {
            let counted =
                delivered.inspect_err(|error| counters.record_failed_delivery(error)).map(|delivery| {
                    counters.record_delivery(delivery.num_delivered());
                    delivery.observed_by(Arc::clone(counters) as Arc<dyn SettlementObserver>)
                });
            self.incoming(counted)
        };
        Some(batch.into_iter().map(incoming).collect())
    }

    fn incoming(&self, delivered: Result<Delivery>) -> Result<Incoming> {
        let mut is_settled = false;
        let stored = match delivered {
            // This provider cannot keep such a record: it is already settled, and the bus stores it.
            Err(EventError::Undecodable { sequence, raw, reason }) if self.keeps_undecodable() => {
                is_settled = true;
                let record = UndecodableRecord::new(raw, reason);
                Delivery::undecodable(
                    "unknown",
                    record,
                    Lease::new(sequence, 1),
                    "unknown".into(),
                    Arc::new(AlreadyAcked),
                )
            }
            delivered => delivered?,
        };
        let content = match stored.undecodable_record() {
            Some(record) => Err(Box::new(Poison::undecodable(stored.sequence(), record))),
            None => match self.open(stored.event()) {
                Ok(clear) => Ok(clear.unwrap_or_else(|| stored.shared_event())),
                Err(error) => Err(Box::new(Poison::closed(&stored, &error))),
            },
        };
        Ok(Incoming { stored, content, is_settled })
    }

    /// Adopts settings that another program has changed.
    fn look_at_settings(&self) {
        if let Some(settings) = self.inner.settings() {
            self.letters.in_force.set(&settings);
        }
    }

    fn keeps_undecodable(&self) -> bool {
        self.letters.letter_box.handler.is_some()
    }

    fn unfinished(&mut self) -> &mut Option<Unfinished> {
        self.unfinished.get_mut().ignore_poison()
    }

    /// Completes the work that a cancelled call had begun. Returns an event if that work was an acknowledgement.
    async fn finish(&mut self) -> Result<Option<ReceivedEvent>> {
        let done = match self.unfinished() {
            None => return Ok(None),
            Some(Unfinished::Ack(work)) => work.as_mut().await.map(|event| (Some(event), true)),
            Some(Unfinished::TakeOut(work, _)) => work.as_mut().await.map(|is_out| (None, is_out)),
        };
        let was = self.unfinished().take();
        match (done?, was) {
            ((_, true), Some(Unfinished::TakeOut(_, Some(reason)))) => Err(reason),
            ((event, _), _) => Ok(event),
        }
    }

    /// Returns the next event for the caller, in clear. Cancel-safe: a delivery from the provider is either returned at
    /// once or kept in `unfinished`.
    async fn fetch(&mut self) -> Result<Option<Delivery>> {
        loop {
            let Some(delivered) = self.next_from_provider().await else { return Ok(None) };
            let Incoming { stored, content, is_settled } = self.incoming(delivered)?;
            self.look_at_settings();
            let letters = Arc::clone(&self.letters);
            let letter = match letters.on_arrival(&stored, &content) {
                Verdict::Deliver(event) => return Ok(Some(letters.guard(stored, event))),
                Verdict::DeadLetter(letter) => letter,
            };
            let error = content.err().map(|poison| poison.error);
            let work = async move {
                match is_settled {
                    true => Ok(letters.retry_until_stored(&stored, &letter).await),
                    false => letters.take_out(&stored, &letter).await,
                }
            };
            *self.unfinished() = Some(Unfinished::TakeOut(Box::pin(work), error));
            self.finish().await?;
        }
    }

    async fn next_from_provider(&mut self) -> Option<Result<Delivery>> {
        if self.letters.max_deliver.is_none() {
            return self.inner.next_delivery().await.transpose();
        }
        // Fetches one event at a time: releasing a prefetched one may count as its only allowed delivery.
        loop {
            if let Some(delivered) = self.inner.next_batch(1, BATCH_WAIT).await?.pop() {
                return Some(delivered);
            }
        }
    }

    /// Returns the event in clear, or `None` if it is handed out as it is stored. With validation on consume, an invalid
    /// event is an error.
    fn open(&self, event: &Event) -> Result<Option<Arc<Event>>> {
        let Some(schemas) = &self.schemas else {
            return if self.as_stored { Ok(None) } else { self.decrypt(event) };
        };
        let clear = match self.decrypt(event) {
            // The receiver may have the key. Without a schema for the event, there is nothing to judge.
            Err(error) if self.as_stored => return schemas.validate(event).map(|()| None).map_err(|_| error),
            clear => clear?,
        };
        schemas.validate(clear.as_deref().unwrap_or(event)).map_err(|error| {
            // An envelope that was not decrypted says nothing about the payload.
            let sealed = if clear.is_none() { sealed_error(&event.payload) } else { None };
            sealed.unwrap_or_else(|| {
                self.letters.letter_box.metrics.record_validation_error();
                error
            })
        })?;
        Ok(clear.filter(|_| !self.as_stored))
    }

    fn decrypt(&self, event: &Event) -> Result<Option<Arc<Event>>> {
        let Some(encryptor) =
            self.encryptor.as_ref().filter(|encryptor| encryptor.is_encrypted(&event.payload))
        else {
            return Ok(None);
        };
        let payload = decrypt(&**encryptor, event, &self.letters.letter_box.prefix)?;
        self.letters.letter_box.metrics.record_decrypt();
        Ok(Some(Arc::new(Event { payload, ..event.clone() })))
    }
}

/// Decrypts the payload of an event in a stream with this prefix. A forwarded dead letter at its own subject decrypts
/// as its original. Any other event decrypts as itself, even if its metadata names an original.
pub(super) fn decrypt(
    encryptor: &dyn EventEncryptor,
    event: &Event,
    prefix: &str,
) -> Result<serde_json::Value> {
    match forwarded_original(event, prefix) {
        Some(original) => encryptor.decrypt_event(&original),
        None => encryptor.decrypt_event(event),
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
                let lease = Lease::new(sequence, u32::try_from(num_delivered).unwrap_or(u32::MAX));
                Ok(Some(Delivery::new(Arc::new(event), lease, stream.into(), Arc::new(AlreadyAcked))))
            }
            None => self.fetch().await,
        }
    }

    async fn lag(&self) -> Result<u64> {
        self.inner.lag().await
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        self.inner.settings()
    }

    fn end(&self) -> Option<SubscriptionEnd> {
        self.inner.end()
    }

    async fn flush(&mut self) -> Result<()> {
        self.inner.flush().await
    }

    async fn close(&mut self) -> Result<()> {
        let finished = self.finish().await;
        self.inner.close().await?;
        finished.map(drop)
    }
}
