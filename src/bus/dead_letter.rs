//! Dead-letters events: writes the dead letter first, and settles the event only if that succeeded.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::in_force::InForce;
use super::verdict::Verdict;
use crate::dlq::{DeadLetter, DeadLetterReceipt, DlqHandler, FailureClass};
use crate::error::{EventError, Result};
use crate::metrics::{BusMetrics, ConsumerMetrics};
use crate::provider::{AckFuture, AckHandler, AckKind, Delivery, Settlement};
use crate::task::{caught, within};
use crate::types::{Event, ReceivedEvent};

/// Delay before an event is redelivered after the dead-letter handler failed.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// The only access to the dead letters, for all events that cannot be processed.
#[derive(Clone)]
pub(super) struct LetterBox {
    /// Without a handler, a dead letter is an error in the log.
    pub(super) handler: Option<Arc<dyn DlqHandler>>,
    /// Timeout of the handler.
    pub(super) timeout: Duration,
    /// Subject prefix of the stream whose events fail.
    pub(super) prefix: Arc<str>,
    pub(super) metrics: Arc<BusMetrics>,
}

impl LetterBox {
    /// Passes a dead letter to the handler. `Ok` means that the caller may settle the event: the letter is stored, or
    /// cannot be stored anywhere. In both cases the log says that the event was given up and where its dead letter is.
    pub(super) async fn put(&self, letter: &DeadLetter) -> Result<Fate> {
        let Some(handler) = &self.handler else {
            log_given_up(letter, None, "event given up and lost: no dead-letter handler is set");
            return Ok(Fate::Lost);
        };
        if handler.is_letter(&letter.event.event, &self.prefix) {
            // Dead-lettering it again would loop forever, and it is already stored.
            log_given_up(letter, None, "event given up: dead letters are not dead-lettered again");
            return Ok(Fate::Lost);
        }
        let keeping = async {
            caught(handler.keep_letter(letter.clone())).await.unwrap_or_else(|panic| {
                Err(EventError::Provider(format!("the dead-letter handler panicked: {panic}")))
            })
        };
        let receipt = within(self.timeout, || "the dead-letter handler".to_owned(), keeping).await?;
        log_given_up(letter, Some(&receipt), "event given up; its dead letter is stored");
        self.metrics.record_dlq();
        Ok(Fate::Kept)
    }
}

/// Outcome for an event that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its dead letter is stored.
    Kept,
    /// Only the log mentions it.
    Lost,
}

fn log_given_up(letter: &DeadLetter, kept: Option<&DeadLetterReceipt>, what: &str) {
    tracing::error!(
        subscriber = letter.subscriber,
        consumer = letter.consumer,
        stream = letter.event.stream,
        sequence = letter.event.sequence,
        event = letter.event.event.id,
        class = %letter.class,
        attempts = letter.attempts,
        letter = kept.and_then(|kept| kept.id),
        place = kept.and_then(|kept| kept.subject.as_deref()),
        reason = letter.reason,
        "{what}"
    );
}

/// Dead-letter settings and counters of one subscription.
pub(super) struct DeadLetters {
    pub(super) letter_box: LetterBox,
    /// Name of the consumer.
    pub(super) consumer: String,
    /// Name that the program gave it.
    pub(super) subscriber: String,
    pub(super) counters: Arc<ConsumerMetrics>,
    /// Maximum number of attempts of an event. The bus counts them, because the provider would drop the event.
    pub(super) max_deliver: Option<u64>,
    /// Current settings of the consumer, set by any program.
    pub(super) in_force: Arc<InForce>,
}

impl DeadLetters {
    /// Returns the age at which a lease should be extended.
    pub(super) fn extend_after(&self) -> Duration {
        self.in_force.extend_after()
    }

    /// Wraps a delivery of `event` so that the event is dead-lettered when it is terminated, or nacked on its last
    /// attempt.
    pub(super) fn guard(self: &Arc<Self>, delivery: Delivery, event: Arc<Event>) -> Delivery {
        let attempt = delivery.num_delivered();
        if !self.is_last(attempt, attempt) && self.letter_box.handler.is_none() {
            return delivery.map_event(event);
        }
        let (lease, stream) = (delivery.acker().lease, delivery.stream().into());
        let guarded = Guarded::new(delivery, Arc::clone(self));
        Delivery::new(event, lease, stream, Arc::new(guarded))
    }

    /// Returns true if no attempt is allowed after this one. The bus's own limit counts attempts; a limit that another
    /// program set at the provider counts deliveries. The smaller one decides, because the provider drops an event that
    /// reaches its limit.
    pub(super) fn is_last(&self, attempt: u64, delivery: u64) -> bool {
        let has_reached = |reached: u64, limit: Option<u64>| limit.is_some_and(|limit| reached >= limit);
        has_reached(attempt, self.max_deliver) || has_reached(delivery, self.in_force.max_deliver())
    }

    /// Dead-letters and settles an event. Returns `false` if the dead-letter handler failed and the event will be
    /// redelivered. If the future is dropped, the delivery keeps its lease and the event is redelivered as well.
    pub(super) async fn take_out(&self, delivery: &Delivery, letter: &DeadLetter) -> Result<bool> {
        match self.write(delivery, letter).await {
            Ok(_fate) => delivery.term_or_ack(&letter.reason, self.in_force.confirms()).await.map(|()| true),
            Err(error) => {
                let (Self { subscriber, consumer, .. }, sequence) = (self, delivery.sequence());
                tracing::error!(subscriber, consumer, sequence, %error, "dead-lettering the event failed; it will be retried");
                match delivery.settle(AckKind::Nak(Some(RETRY_DELAY))).await {
                    // Without delayed naks, the event is redelivered when its lease expires.
                    Err(EventError::Unsupported { .. }) => Ok(false),
                    refused => refused.map(|()| false),
                }
            }
        }
    }

    /// Writes an event to the dead letters without settling it. Extends the lease meanwhile; otherwise a second member
    /// would write it too.
    pub(super) async fn write(&self, delivery: &Delivery, letter: &DeadLetter) -> Result<Fate> {
        let mut writing = pin!(self.letter_box.put(letter));
        loop {
            tokio::select! {
                biased;
                done = &mut writing => return done.inspect(|fate| self.count(*fate)),
                () = tokio::time::sleep(self.extend_after()) => {
                    if let Err(error) = delivery.extend().await {
                        let (Self { subscriber, consumer, .. }, sequence) = (self, delivery.sequence());
                        tracing::debug!(subscriber, consumer, sequence, %error, "extending the lease failed");
                    }
                }
            }
        }
    }

    /// Writes a record that is already settled, and retries until the handler accepts it. Always returns `true`.
    pub(super) async fn retry_until_stored(&self, delivery: &Delivery, letter: &DeadLetter) -> bool {
        loop {
            match self.letter_box.put(letter).await {
                Ok(fate) => break self.count(fate),
                Err(error) => {
                    let (Self { subscriber, consumer, .. }, sequence) = (self, delivery.sequence());
                    tracing::error!(subscriber, consumer, sequence, %error, "dead-lettering the record failed; retrying");
                }
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
        true
    }

    /// Counts an event that was given up.
    pub(super) fn count(&self, fate: Fate) {
        self.counters.record_given_up();
        if fate == Fate::Kept {
            self.counters.record_dead_letter();
        }
    }

    /// Creates the dead letter of an event that has just failed for the first time.
    pub(super) fn failed(
        &self,
        delivery: &Delivery,
        class: FailureClass,
        reason: &str,
        attempts: u64,
    ) -> Box<DeadLetter> {
        let mut letter = self.letter(delivery, class, reason, attempts);
        letter.first_failure_at = Some(letter.dead_lettered_at);
        letter.last_failure_at = letter.first_failure_at;
        letter
    }

    /// Creates the dead letter of an event that has used up its allowed deliveries.
    pub(super) fn exhausted(&self, delivery: &Delivery, attempts: u64) -> Box<DeadLetter> {
        let reason = format!("not processed in {attempts} deliveries");
        self.letter(delivery, FailureClass::Exhausted, &reason, attempts)
    }

    fn letter(
        &self,
        delivery: &Delivery,
        class: FailureClass,
        reason: &str,
        attempts: u64,
    ) -> Box<DeadLetter> {
        let received = ReceivedEvent {
            event: delivery.event().clone(),
            sequence: delivery.sequence(),
            num_delivered: attempts,
            stream: delivery.stream().to_owned(),
        };
        let mut letter = DeadLetter::new(received, class, reason);
        letter.consumer = Some(self.consumer.clone());
        letter.subscriber = Some(self.subscriber.clone());
        letter.attempts = Some(attempts);
        letter.raw = delivery.undecodable_record().map(|record| record.raw.clone());
        Box::new(letter)
    }
}

/// Settles a delivery whose event may be dead-lettered.
pub(super) struct Guarded {
    /// The delivery with the event as stored: dead letters of encrypted events stay encrypted.
    pub(super) stored: Delivery,
    pub(super) letters: Arc<DeadLetters>,
    /// True if the subscriber settled it. An ack that failed does not count: the runtime repeats it.
    settled: AtomicBool,
    /// True if the subscriber acked it.
    acked: AtomicBool,
    /// Failed attempts of this delivery, if it is retried without redelivery.
    tries: AtomicU64,
}

impl Guarded {
    pub(super) fn new(stored: Delivery, letters: Arc<DeadLetters>) -> Self {
        Self {
            stored,
            letters,
            settled: AtomicBool::new(false),
            acked: AtomicBool::new(false),
            tries: AtomicU64::new(0),
        }
    }

    /// Returns the number of this attempt: the deliveries so far plus the failed attempts of this one.
    pub(super) fn attempt(&self) -> u64 {
        self.stored.num_delivered().saturating_add(self.tries())
    }

    /// Returns the number of failed attempts of this delivery.
    pub(super) fn tries(&self) -> u64 {
        self.tries.load(Ordering::Relaxed)
    }

    pub(super) fn note_try(&self) {
        self.tries.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns true if no attempt is allowed after this one.
    pub(super) fn is_last(&self) -> bool {
        self.letters.is_last(self.attempt(), self.stored.num_delivered())
    }

    /// Returns true if the subscriber settled it.
    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// Returns true if the subscriber acked it.
    pub(super) fn is_acked(&self) -> bool {
        self.acked.load(Ordering::Relaxed)
    }

    /// Acks the delivery, and waits for the confirmation if asked to or if the consumer drains.
    pub(super) async fn acknowledge(&self, is_confirmed: bool) -> Result<()> {
        let in_force = &self.letters.in_force;
        let is_confirmed = is_confirmed || in_force.confirms();
        self.stored.settle_as(AckKind::Ack, is_confirmed).await?;
        if !is_confirmed && in_force.confirms() {
            // The consumer began to drain meanwhile, and may have flushed before this ack was sent. A provider that has
            // stored it already reports a lost lease, which does not matter.
            let _ = self.stored.settle_as(AckKind::Ack, true).await;
        }
        Ok(())
    }

    async fn settle_stored(&self, asked: Settlement) -> Result<()> {
        let Settlement { kind, is_confirmed, .. } = asked;
        let is_ack = kind == AckKind::Ack;
        if !is_ack && kind != AckKind::Extend {
            self.settled.store(true, Ordering::Relaxed);
        }
        let verdict = match &kind {
            AckKind::Nak(_) => self.on_failure(None, None),
            AckKind::Term(reason) => self.on_failure(Some(FailureClass::Fatal), Some(reason)),
            _ => Verdict::Deliver(()),
        };
        match verdict {
            Verdict::Deliver(()) if is_ack => {
                self.acknowledge(is_confirmed).await?;
                self.settled.store(true, Ordering::Relaxed);
                self.acked.store(true, Ordering::Relaxed);
                Ok(())
            }
            Verdict::Deliver(()) => {
                self.stored.settle_as(kind, is_confirmed || self.letters.in_force.confirms()).await
            }
            Verdict::DeadLetter(letter) => self.letters.take_out(&self.stored, &letter).await.map(drop),
        }
    }
}

impl AckHandler for Guarded {
    fn settle(&self, asked: Settlement) -> AckFuture<'_> {
        AckFuture::new(self.settle_stored(asked))
    }
}
