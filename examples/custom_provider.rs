//! A provider of your own: the smallest one that keeps its promises, used through the bus like any other.
//!
//! ```text
//! cargo run --example custom_provider
//! ```
//!
//! It stores events in a `Vec` and hands them out in order. What it cannot do it declares absent, so that asking for it
//! is refused instead of ignored. The guide `docs::writing_a_provider` explains each step.

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::sync::Arc;

use a3s_event::provider::consumer::Lease;
use a3s_event::provider::validate::{DEFAULT_MAX_EVENT_BYTES, validate_event};
use a3s_event::provider::{AckFuture, Settlement};
use a3s_event::subject::{subject_matches, validate_consumer_name, validate_filter_under};
use a3s_event::{
    AckHandler, AckKind, Capabilities, Delivery, Durability, Event, EventBus, EventError, EventProvider,
    PendingEvent, ProviderInfo, PublishOptions, ReceivedEvent, Result, Subscription,
};
use async_trait::async_trait;
use tokio::sync::watch;

const NAME: &str = "vec";
const PREFIX: &str = "events";

/// Keeps every event in a `Vec` until it is dropped. The channel holds the `Vec` and wakes whoever waits for a change.
#[derive(Debug)]
pub struct VecProvider {
    log: watch::Sender<Log>,
}

#[derive(Debug, Default)]
struct Log {
    /// The event with sequence 1 is the first.
    events: Vec<Arc<Event>>,
    bytes: usize,
    closed: bool,
}

impl VecProvider {
    /// An empty provider.
    pub fn new() -> Self {
        Self { log: watch::Sender::new(Log::default()) }
    }
}

impl Default for VecProvider {
    fn default() -> Self {
        Self::new()
    }
}

fn unsupported(option: &str) -> EventError {
    EventError::Unsupported { option: option.to_owned(), provider: NAME.to_owned() }
}

fn closed() -> EventError {
    EventError::Closed(format!("the {NAME} provider was closed"))
}

#[async_trait]
impl EventProvider for VecProvider {
    async fn publish(&self, event: &Event) -> Result<u64> {
        let size = validate_event(event, PREFIX, DEFAULT_MAX_EVENT_BYTES)?;
        let mut stored = Err(closed());
        self.log.send_if_modified(|log| {
            if !log.closed {
                log.events.push(Arc::new(event.clone()));
                log.bytes += size;
                stored = Ok(log.events.len() as u64);
            }
            stored.is_ok()
        });
        stored
    }

    async fn subscribe(&self, filter_subject: &str) -> Result<Box<dyn Subscription>> {
        validate_filter_under(filter_subject, PREFIX)?;
        if self.log.borrow().closed {
            return Err(closed());
        }
        Ok(Box::new(VecSubscription {
            log: self.log.subscribe(),
            filter: filter_subject.to_owned(),
            position: 0,
            closed: false,
        }))
    }

    async fn subscribe_durable(
        &self,
        consumer_name: &str,
        filter_subject: &str,
    ) -> Result<Box<dyn Subscription>> {
        validate_consumer_name(consumer_name)?;
        validate_filter_under(filter_subject, PREFIX)?;
        Err(unsupported("durable"))
    }

    async fn history(&self, filter_subject: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        if let Some(filter) = filter_subject {
            validate_filter_under(filter, PREFIX)?;
        }
        let log = self.log.borrow();
        let newest_first = log.events.iter().rev();
        let matching = newest_first
            .filter(|event| filter_subject.is_none_or(|filter| subject_matches(&event.subject, filter)));
        Ok(matching.take(limit).map(|event| Event::clone(event)).collect())
    }

    async fn unsubscribe(&self, _consumer_name: &str) -> Result<()> {
        Ok(()) // there are no durable consumers to forget
    }

    async fn info(&self) -> Result<ProviderInfo> {
        let log = self.log.borrow();
        Ok(ProviderInfo {
            provider: NAME.to_owned(),
            messages: log.events.len() as u64,
            bytes: log.bytes as u64,
            consumers: self.log.receiver_count(),
        })
    }

    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::none(Durability::Process);
        capabilities.max_event_bytes = Some(DEFAULT_MAX_EVENT_BYTES);
        capabilities
    }

    async fn health(&self) -> Result<bool> {
        Ok(!self.log.borrow().closed)
    }

    async fn close(&self) -> Result<()> {
        self.log.send_modify(|log| log.closed = true);
        Ok(())
    }
}

/// Walks through the `Vec`, and waits at its end.
#[derive(Debug)]
struct VecSubscription {
    log: watch::Receiver<Log>,
    filter: String,
    /// How many events lie behind us.
    position: usize,
    closed: bool,
}

#[async_trait]
impl Subscription for VecSubscription {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        Ok(self.next_delivery().await?.map(Delivery::into_received))
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        Ok(self.next_delivery().await?.map(Delivery::into_pending))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        loop {
            {
                let log = self.log.borrow_and_update();
                if self.closed || log.closed {
                    return Ok(None);
                }
                while let Some(event) = log.events.get(self.position) {
                    self.position += 1;
                    if subject_matches(&event.subject, &self.filter) {
                        let sequence = self.position as u64;
                        let delivery = Delivery::new(
                            Arc::clone(event),
                            Lease::new(sequence, 1),
                            NAME.into(),
                            Arc::new(InOrderOnly),
                        );
                        return Ok(Some(delivery));
                    }
                }
            }
            // The only await: whoever drops the future here has not taken anything.
            if self.log.changed().await.is_err() {
                return Ok(None); // the provider is gone, and everything it held was delivered
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.closed = true;
        Ok(())
    }
}

/// Settling an event: there is no lease, so an ack has nothing to do and nothing can come again.
struct InOrderOnly;

impl AckHandler for InOrderOnly {
    fn settle(&self, asked: Settlement) -> AckFuture<'_> {
        AckFuture::ready(match asked.kind {
            AckKind::Ack => Ok(()),
            other => Err(unsupported(other.verb())),
        })
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let bus = EventBus::new(VecProvider::new());
    let mut market = bus.provider().subscribe("events.market.>").await?;

    bus.publish(
        "market",
        "forex.usd_cny",
        "USD/CNY broke through 7.35",
        "reuters",
        serde_json::json!({"rate": 7.3521}),
    )
    .await?;
    let event = bus
        .publish("market", "forex.eur_usd", "EUR/USD fell", "reuters", serde_json::json!({"rate": 1.04}))
        .await?;

    for _ in 0..2 {
        if let Some(received) = market.next().await? {
            println!("{}: {}", received.sequence, received.event.summary);
        }
    }

    // What the provider does not do is refused, never ignored.
    let once = PublishOptions { msg_id: Some(event.id.clone()), ..Default::default() };
    if let Err(error) = bus.publish_event_with_options(&event, &once).await {
        println!("refused: {error}");
    }
    Ok(())
}
