//! A consumer of a life: its settings and its handler.

use std::time::Duration;

use a3s_event::consumer::{Backoff, HandlerError, HandlerResult, RetryPolicy};
use a3s_event::testing::{Outcome, TestBus, TestConsumer};
use a3s_event::{Delivery, SubscribeOptions};
use tokio::time::Instant;

use super::record::{Consumed, Fate, Record, Seen};

const SECOND: Duration = Duration::from_secs(1);

/// A running consumer.
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) consumer: TestConsumer,
    /// True if no fault may crash it.
    pub(super) is_sheltered: bool,
    pub(super) frozen_until: Instant,
    /// True if a shutdown waits for nothing.
    pub(super) is_hasty: bool,
}

/// What all consumers of a life have in common.
#[derive(Clone, Copy)]
pub(super) struct Draft {
    pub(super) keys: u64,
    /// True if a key fails until the end. Its consumers never give up, and must go on with the other keys.
    pub(super) is_stubborn: bool,
}

/// Draws one of these.
pub(super) fn one_of<T: Copy>(t: &TestBus, choices: &[T]) -> T {
    let index = usize::try_from(t.draw(choices.len() as u64)).unwrap();
    choices[index]
}

impl Worker {
    /// Draws and starts a consumer.
    pub(super) async fn start(t: &TestBus, record: &Record, name: &str, draft: Draft) -> Outcome<Self> {
        let Draft { keys, is_stubborn } = draft;
        let only = (t.draw(4) == 0).then(|| format!("k{}", t.draw(keys)));
        let subject =
            only.as_ref().map_or_else(|| "events.life.*".to_owned(), |key| format!("events.life.{key}"));
        let attempts = if is_stubborn { 1_000_000 } else { one_of(t, &[1, 2, 3, 5]) };
        let is_ordered = is_stubborn || t.draw(3) > 0;
        let acks_itself = t.draw(2) == 0;
        record.lock().consumers.insert(name.to_owned(), Consumed::new(is_ordered, only));

        // Without a pause, a stubborn event would be tried for ever at one time.
        let backoff = match t.draw(3) {
            0 if !is_stubborn => Backoff::none(),
            1 => Backoff::list([SECOND, 5 * SECOND]),
            _ => Backoff::exponential(SECOND, 10 * SECOND),
        };
        // What never gives up must be able to succeed.
        let timeouts: &[Duration] =
            if is_stubborn { &[Duration::MAX] } else { &[Duration::MAX, 45 * SECOND, 5 * SECOND] };
        let timeout = one_of(t, timeouts);
        let policy = RetryPolicy::default().attempts(attempts).backoff(backoff).timeout(timeout);
        let options = SubscribeOptions {
            ack_wait_secs: one_of(t, &[None, Some(4), Some(10), Some(30)]),
            max_ack_pending: if is_stubborn { None } else { one_of(t, &[None, None, Some(1), Some(4)]) },
            ..SubscribeOptions::default()
        };
        let drain_timeout = one_of(t, &[Duration::MAX, Duration::ZERO, 30 * SECOND]);
        let mut builder = t
            .consumer(name)
            .subject(subject)
            .policy(policy)
            .options(options)
            .concurrency(if is_stubborn { 2 } else { one_of(t, &[1, 1, 2, 4]) })
            .drain_timeout(drain_timeout);
        if is_ordered {
            builder = builder.ordered_by_subject();
        }
        if !is_stubborn && t.draw(3) == 0 {
            builder = builder.prefetch(one_of(t, &[1, 4, 16]));
        }
        let handler =
            Handler { t: t.clone(), record: record.clone(), consumer: name.to_owned(), acks_itself };
        let consumer = builder.handle(move |delivery| handler.clone().handle(delivery)).await?;
        record.lock().consumers.get_mut(name).unwrap().consumer = Some(consumer.clone());
        let (is_sheltered, frozen_until) = (false, Instant::now());
        let is_hasty = drain_timeout.is_zero();
        Ok(Self { name: name.to_owned(), consumer, is_sheltered, frozen_until, is_hasty })
    }
}

#[derive(Clone)]
struct Handler {
    t: TestBus,
    record: Record,
    consumer: String,
    acks_itself: bool,
}

impl Handler {
    async fn handle(self, delivery: Delivery) -> HandlerResult {
        let seen = Seen::of(delivery.event(), delivery.sequence());
        let running = Running::begin(&self.t, &self.record, &self.consumer, &seen).await;
        match running.attempt().await {
            Ok(()) => {}
            Err(Refusal::NotNow) => return Err("not now".into()),
            Err(Refusal::Never) => return Err(HandlerError::fatal("never")),
        }
        if self.acks_itself && delivery.ack_confirmed().await.is_ok() {
            self.record.settled(&self.consumer, seen.sequence);
        }
        Ok(())
    }
}

/// Why an attempt has failed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refusal {
    NotNow,
    Never,
}

/// An attempt at an event. It ends when it is dropped, also by a timeout or a crash.
pub(super) struct Running<'a> {
    record: &'a Record,
    consumer: &'a str,
    seen: &'a Seen,
    attempt: u64,
}

impl<'a> Running<'a> {
    pub(super) async fn begin(
        t: &TestBus,
        record: &'a Record,
        consumer: &'a str,
        seen: &'a Seen,
    ) -> Running<'a> {
        let attempt = record.begin(t, consumer, seen).await;
        Self { record, consumer, seen, attempt }
    }

    /// Does what the fate of the event says.
    pub(super) async fn attempt(&self) -> Result<(), Refusal> {
        let fate = self.record.lock().published[&self.seen.number].fate;
        match fate {
            Fate::Handled => {}
            Fate::Fails(times) if self.attempt > times => {}
            Fate::Stubborn if self.record.lock().is_relieved => {}
            Fate::Fails(_) | Fate::Stubborn | Fate::Poison => return Err(Refusal::NotNow),
            Fate::Fatal => return Err(Refusal::Never),
            Fate::Slow(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            Fate::Panics if self.attempt == 1 => panic_quietly(),
            Fate::Panics => {}
        }
        self.record.handled(self.consumer, self.seen);
        Ok(())
    }
}

/// Panics as `panic!` does, without the message of the hook.
pub(super) fn panic_quietly() -> ! {
    std::panic::resume_unwind(Box::new("at first"))
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.record.end(self.consumer, self.seen);
    }
}
