//! Taking an event out of circulation: written to the dead letters first, settled only when that succeeded.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::panics::caught;
use crate::dlq::{DeadLetter, DlqHandler, FailureClass, LetterReceipt};
use crate::error::{EventError, Result};
use crate::metrics::{BusMetrics, ConsumerMetrics};
use crate::provider::{AckHandler, Delivery, Settlement};
use crate::types::{Event, ReceivedEvent, unix_millis};

/// Wait before an event is tried again that the dead-letter handler did not take.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// The one way into the dead letters, for whatever cannot be processed.
#[derive(Clone)]
pub(super) struct LetterBox {
    /// Without a handler, a letter is an error in the log.
    pub(super) handler: Option<Arc<dyn DlqHandler>>,
    /// How long the handler may take.
    pub(super) timeout: Duration,
    /// What the subjects of the stream begin with in which events fail.
    pub(super) prefix: Arc<str>,
    pub(super) metrics: Arc<BusMetrics>,
}

impl LetterBox {
    /// Hands a letter to the handler. `Ok` means that its source may be settled: the letter is kept, where the receipt
    /// says, or nobody is there to keep it.
    pub(super) async fn put(&self, letter: DeadLetter) -> Result<Option<LetterReceipt>> {
        let Some(handler) = &self.handler else {
            log_lost(&letter, "event given up; there is no dead-letter handler to keep it");
            return Ok(None);
        };
        if handler.is_letter(&letter.event.event, &self.prefix) {
            // It would go round for ever, and it is kept where it is.
            log_lost(&letter, "a dead letter that cannot be processed is not dead-lettered again");
            return Ok(None);
        }
        let handling = tokio::time::timeout(self.timeout, caught(handler.keep_letter(letter)));
        let receipt = match handling.await {
            Ok(Ok(handled)) => handled?,
            Ok(Err(panic)) => {
                return Err(EventError::Provider(format!("the dead-letter handler panicked: {panic}")));
            }
            Err(_elapsed) => {
                let timeout = self.timeout;
                return Err(EventError::Timeout(format!(
                    "the dead-letter handler did not end within {timeout:?}"
                )));
            }
        };
        self.metrics.record_dlq();
        Ok(Some(receipt))
    }
}

fn log_lost(letter: &DeadLetter, what: &str) {
    tracing::error!(
        stream = letter.event.stream,
        sequence = letter.event.sequence,
        event = letter.event.event.id,
        class = %letter.class,
        reason = letter.reason,
        "{what}"
    );
}

/// Why an event is given up.
pub(super) struct Failure {
    pub(super) class: FailureClass,
    pub(super) reason: String,
    pub(super) attempts: u64,
    pub(super) first_failure_at: Option<u64>,
    pub(super) last_failure_at: Option<u64>,
}

impl Failure {
    /// Something that just failed for the first time.
    pub(super) fn now(class: FailureClass, reason: impl Into<String>, attempts: u64) -> Self {
        let now = Some(unix_millis());
        Self { class, reason: reason.into(), attempts, first_failure_at: now, last_failure_at: now }
    }

    /// All allowed deliveries are used up.
    pub(super) fn exhausted(attempts: u64) -> Self {
        Self {
            class: FailureClass::Exhausted,
            reason: format!("not processed in {attempts} deliveries"),
            attempts,
            first_failure_at: None,
            last_failure_at: None,
        }
    }
}

/// Where one subscription's failures go.
pub(super) struct DeadLetters {
    pub(super) letter_box: LetterBox,
    /// Name of the consumer.
    pub(super) consumer: String,
    /// The name by which the program called it.
    pub(super) subscriber: String,
    pub(super) counters: Arc<ConsumerMetrics>,
    /// Deliveries after which an event is given up. The bus counts them, not the provider, which would drop the event.
    pub(super) max_deliver: Option<u64>,
    /// How long a delivery is leased; the lease is kept alive while the handler works.
    pub(super) ack_wait: Duration,
}

impl DeadLetters {
    /// Whether all allowed deliveries happened before this one.
    pub(super) fn is_exhausted(&self, delivery: &Delivery) -> bool {
        self.max_deliver.is_some_and(|max| delivery.num_delivered() > max)
    }

    /// The delivery of `event`, from which what cannot be processed goes to the dead letters: when it is terminated, or
    /// refused for the last time.
    pub(super) fn guard(self: &Arc<Self>, delivery: Delivery, event: Arc<Event>) -> Delivery {
        if !self.is_last(&delivery) && self.letter_box.handler.is_none() {
            return delivery.map_event(event);
        }
        let (sequence, attempt) = (delivery.sequence(), delivery.num_delivered());
        let stream = delivery.stream().into();
        let guarded = Guarded::new(delivery, Arc::clone(self));
        Delivery::new(event, sequence, attempt, stream, guarded)
    }

    /// Whether no delivery is allowed behind this one.
    fn is_last(&self, delivery: &Delivery) -> bool {
        self.max_deliver.is_some_and(|max| delivery.num_delivered() >= max)
    }

    /// Takes an event out after all its deliveries.
    pub(super) async fn give_up(&self, delivery: &Delivery) -> Result<()> {
        let attempts = self.max_deliver.unwrap_or_else(|| delivery.num_delivered());
        self.take_out(delivery, Failure::exhausted(attempts)).await.map(drop)
    }

    /// Takes an event out; `false` when the dead-letter handler did not take it and it comes again. Dropped half-way, the
    /// delivery keeps its lease and comes again too.
    pub(super) async fn take_out(&self, delivery: &Delivery, failure: Failure) -> Result<bool> {
        let letter = self.letter(delivery, failure);
        match self.write(delivery, &letter).await {
            Ok(_receipt) => delivery.term_or_ack(&letter.reason).await.map(|()| true),
            Err(error) => {
                let sequence = delivery.sequence();
                tracing::error!(sequence, %error, "event not dead-lettered; it will be tried again");
                match delivery.settlement().nak(Some(RETRY_DELAY)).await {
                    // Without delayed refusals the lease brings it back.
                    Err(EventError::Unsupported { .. }) => Ok(false),
                    refused => refused.map(|()| false),
                }
            }
        }
    }

    /// Writes an event to the dead letters, says where it is kept, and settles nothing. The lease is kept alive meanwhile, or
    /// a second member would write it again.
    pub(super) async fn write(
        &self,
        delivery: &Delivery,
        letter: &DeadLetter,
    ) -> Result<Option<LetterReceipt>> {
        let mut writing = pin!(self.letter_box.put(letter.clone()));
        loop {
            tokio::select! {
                biased;
                done = &mut writing => return done.inspect(|_| self.counters.record_dead_letter()),
                () = tokio::time::sleep(self.ack_wait / 2) => {
                    if let Err(error) = delivery.extend().await {
                        tracing::debug!(sequence = delivery.sequence(), %error, "lease not extended");
                    }
                }
            }
        }
    }

    /// Writes a record that is settled already, and tries again until it is taken. Always `true`.
    pub(super) async fn insist(&self, delivery: &Delivery, failure: Failure) -> bool {
        let letter = self.letter(delivery, failure);
        while let Err(error) = self.letter_box.put(letter.clone()).await {
            tracing::error!(sequence = delivery.sequence(), %error, "record not dead-lettered; trying again");
            tokio::time::sleep(RETRY_DELAY).await;
        }
        self.counters.record_dead_letter();
        true
    }

    pub(super) fn letter(&self, delivery: &Delivery, failure: Failure) -> DeadLetter {
        let received = ReceivedEvent {
            event: delivery.event().clone(),
            sequence: delivery.sequence(),
            num_delivered: failure.attempts,
            stream: delivery.stream().to_owned(),
        };
        let mut letter = DeadLetter::new(received, failure.class, failure.reason);
        letter.consumer = Some(self.consumer.clone());
        letter.subscriber = Some(self.subscriber.clone());
        letter.attempts = Some(failure.attempts);
        letter.first_failure_at = failure.first_failure_at;
        letter.last_failure_at = failure.last_failure_at;
        letter.raw = delivery.undecodable_record().map(|record| record.raw.clone());
        letter
    }
}

/// Settles a delivery of an event that may end in the dead letters.
pub(super) struct Guarded {
    /// The delivery with the event as it is stored: dead letters of encrypted events stay encrypted.
    pub(super) stored: Delivery,
    pub(super) letters: Arc<DeadLetters>,
    /// Whether its subscriber settled it.
    settled: AtomicBool,
}

impl Guarded {
    pub(super) fn new(stored: Delivery, letters: Arc<DeadLetters>) -> Self {
        Self { stored, letters, settled: AtomicBool::new(false) }
    }

    /// Whether its subscriber settled it.
    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    fn settling(&self) -> &Settlement {
        self.settled.store(true, Ordering::Relaxed);
        self.stored.settlement()
    }
}

#[async_trait]
impl AckHandler for Guarded {
    async fn ack(&self) -> Result<()> {
        self.settling().ack().await
    }

    async fn nak(&self, delay: Option<Duration>) -> Result<()> {
        let settlement = self.settling();
        match self.letters.is_last(&self.stored) {
            true => self.letters.give_up(&self.stored).await,
            false => settlement.nak(delay).await,
        }
    }

    async fn term(&self, reason: &str) -> Result<()> {
        self.settling();
        let failure = Failure::now(FailureClass::Fatal, reason, self.stored.num_delivered());
        self.letters.take_out(&self.stored, failure).await.map(drop)
    }

    async fn extend(&self) -> Result<()> {
        self.stored.extend().await
    }

    async fn release(&self) -> Result<()> {
        self.settling().release().await
    }
}
