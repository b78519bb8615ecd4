//! Taking an event out of circulation: written to the dead letters first, settled only when that succeeded.

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
    /// Hands a letter to the handler. `Ok` means that its source may be settled: the letter is kept, or nobody is there to
    /// keep it. Either way the log says that the event was given up, and where its letter is.
    pub(super) async fn put(&self, letter: &DeadLetter) -> Result<Fate> {
        let Some(handler) = &self.handler else {
            log_given_up(letter, None, "event given up and lost: there is no dead-letter handler to keep it");
            return Ok(Fate::Lost);
        };
        if handler.is_letter(&letter.event.event, &self.prefix) {
            // It would go round for ever, and it is kept where it is.
            log_given_up(letter, None, "event given up: a dead letter is not dead-lettered again");
            return Ok(Fate::Lost);
        }
        let keeping = async {
            caught(handler.keep_letter(letter.clone())).await.unwrap_or_else(|panic| {
                Err(EventError::Provider(format!("the dead-letter handler panicked: {panic}")))
            })
        };
        let receipt = within(self.timeout, || "the dead-letter handler".to_owned(), keeping).await?;
        log_given_up(letter, Some(&receipt), "event given up; its dead letter is kept");
        self.metrics.record_dlq();
        Ok(Fate::Kept)
    }
}

/// What became of an event that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its dead letter is kept.
    Kept,
    /// Only the log knows of it.
    Lost,
}

fn log_given_up(letter: &DeadLetter, kept: Option<&DeadLetterReceipt>, what: &str) {
    tracing::error!(
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

/// Where one subscription's failures go.
pub(super) struct DeadLetters {
    pub(super) letter_box: LetterBox,
    /// Name of the consumer.
    pub(super) consumer: String,
    /// The name by which the program called it.
    pub(super) subscriber: String,
    pub(super) counters: Arc<ConsumerMetrics>,
    /// Attempts after which an event is given up. The bus counts them, not the provider, which would drop the event.
    pub(super) max_deliver: Option<u64>,
    /// What the consumer's settings are now, whoever set them.
    pub(super) in_force: Arc<InForce>,
}

impl DeadLetters {
    /// A lease this old is to be restarted.
    pub(super) fn extend_after(&self) -> Duration {
        self.in_force.extend_after()
    }

    /// The delivery of `event`, from which what cannot be processed goes to the dead letters: when it is terminated, or
    /// refused for the last time.
    pub(super) fn guard(self: &Arc<Self>, delivery: Delivery, event: Arc<Event>) -> Delivery {
        let attempt = delivery.num_delivered();
        if !self.is_last(attempt, attempt) && self.letter_box.handler.is_none() {
            return delivery.map_event(event);
        }
        let (lease, stream) = (delivery.acker().lease, delivery.stream().into());
        let guarded = Guarded::new(delivery, Arc::clone(self));
        Delivery::new(event, lease, stream, Arc::new(guarded))
    }

    /// Whether no other attempt is allowed behind this one: the bus's own limit counts attempts, and one that somebody else
    /// set at the provider counts deliveries. The smaller one decides, because the provider drops what reaches its limit.
    pub(super) fn is_last(&self, attempt: u64, delivery: u64) -> bool {
        let has_reached = |reached: u64, limit: Option<u64>| limit.is_some_and(|limit| reached >= limit);
        has_reached(attempt, self.max_deliver) || has_reached(delivery, self.in_force.max_deliver())
    }

    /// Takes an event out; `false` when the dead-letter handler did not take it and it comes again. Dropped half-way, the
    /// delivery keeps its lease and comes again too.
    pub(super) async fn take_out(&self, delivery: &Delivery, letter: &DeadLetter) -> Result<bool> {
        match self.write(delivery, letter).await {
            Ok(_receipt) => {
                delivery.term_or_ack(&letter.reason, self.in_force.confirms()).await.map(|()| true)
            }
            Err(error) => {
                let sequence = delivery.sequence();
                tracing::error!(sequence, %error, "event not dead-lettered; it will be tried again");
                match delivery.settle(AckKind::Nak(Some(RETRY_DELAY))).await {
                    // Without delayed refusals the lease brings it back.
                    Err(EventError::Unsupported { .. }) => Ok(false),
                    refused => refused.map(|()| false),
                }
            }
        }
    }

    /// Writes an event to the dead letters and settles nothing. The lease is kept alive meanwhile, or a second member would
    /// write it again.
    pub(super) async fn write(&self, delivery: &Delivery, letter: &DeadLetter) -> Result<()> {
        let mut writing = pin!(self.letter_box.put(letter));
        loop {
            tokio::select! {
                biased;
                done = &mut writing => return done.map(|fate| self.count(fate)),
                () = tokio::time::sleep(self.extend_after()) => {
                    if let Err(error) = delivery.extend().await {
                        tracing::debug!(sequence = delivery.sequence(), %error, "lease not extended");
                    }
                }
            }
        }
    }

    /// Writes a record that is settled already, and tries again until it is taken. Always `true`.
    pub(super) async fn retry_until_stored(&self, delivery: &Delivery, letter: &DeadLetter) -> bool {
        loop {
            match self.letter_box.put(letter).await {
                Ok(fate) => break self.count(fate),
                Err(error) => {
                    tracing::error!(sequence = delivery.sequence(), %error, "record not dead-lettered; trying again");
                }
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
        true
    }

    fn count(&self, fate: Fate) {
        self.counters.record_given_up();
        if fate == Fate::Kept {
            self.counters.record_dead_letter();
        }
    }

    /// The letter about something that has just failed for the first time.
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

    /// The letter about an event whose allowed deliveries are used up.
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

/// Settles a delivery of an event that may end in the dead letters.
pub(super) struct Guarded {
    /// The delivery with the event as it is stored: dead letters of encrypted events stay encrypted.
    pub(super) stored: Delivery,
    pub(super) letters: Arc<DeadLetters>,
    /// Whether its subscriber settled it.
    settled: AtomicBool,
    /// Attempts of this delivery that have failed, where it is tried again without another one.
    tries: AtomicU64,
}

impl Guarded {
    pub(super) fn new(stored: Delivery, letters: Arc<DeadLetters>) -> Self {
        Self { stored, letters, settled: AtomicBool::new(false), tries: AtomicU64::new(0) }
    }

    /// Which attempt this is: the deliveries so far, and the failed attempts of this one.
    pub(super) fn attempt(&self) -> u64 {
        self.stored.num_delivered().saturating_add(self.tries())
    }

    /// Failed attempts of this delivery.
    pub(super) fn tries(&self) -> u64 {
        self.tries.load(Ordering::Relaxed)
    }

    pub(super) fn note_try(&self) {
        self.tries.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether no other attempt is allowed behind this one.
    pub(super) fn is_last(&self) -> bool {
        self.letters.is_last(self.attempt(), self.stored.num_delivered())
    }

    /// Whether its subscriber settled it.
    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    async fn settle_stored(&self, asked: Settlement) -> Result<()> {
        let Settlement { kind, is_confirmed, .. } = asked;
        if kind != AckKind::Extend {
            self.settled.store(true, Ordering::Relaxed);
        }
        let verdict = match &kind {
            AckKind::Nak(_) => self.on_failure(None, None),
            AckKind::Term(reason) => self.on_failure(Some(FailureClass::Fatal), Some(reason)),
            _ => Verdict::Deliver(()),
        };
        match verdict {
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
