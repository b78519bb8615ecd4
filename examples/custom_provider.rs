//! A minimal custom provider, used through the bus like any other.
//!
//! It stores events in a `Vec` and delivers them in order. It declares every other capability absent, so that the
//! library refuses requests for it instead of ignoring them. The guide `docs::writing_a_provider` explains each step.
//! Run it with `cargo run --example custom_provider`.

#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::collections::VecDeque;
use std::sync::Arc;

use a3s_event::provider::driver::{Checked, ConsumerSpec, Driver};
use a3s_event::provider::group::Lease;
use a3s_event::provider::receiver::{Ask, Fetch, Item};
use a3s_event::provider::support::{closed, unsupported};
use a3s_event::provider::{AckFuture, Settlement};
use a3s_event::subject::subject_matches;
use a3s_event::{
    AckHandler, AckKind, Capabilities, Durability, Event, EventBus, HistoryPage, HistoryQuery, ProviderInfo,
    PublishOptions, PublishReceipt, Result, StoredEvent, SubscriptionEnd, Support,
};
use tokio::sync::watch;

const NAME: &str = "vec";

/// Stores every event in a `Vec` until the provider is dropped. The channel holds the `Vec` and wakes waiting readers.
#[derive(Debug, Default)]
pub struct VecProvider {
    log: watch::Sender<Log>,
}

#[derive(Debug, Default)]
struct Log {
    /// Events in order; the first one has sequence 1.
    events: Vec<Arc<Event>>,
    bytes: usize,
    closed: bool,
}

impl Driver for VecProvider {
    type Fetch = Reader;

    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::none(Durability::None);
        capabilities.total_order = Support::Yes;
        capabilities
    }

    async fn store(&self, checked: Checked<'_>) -> Result<PublishReceipt> {
        let mut stored = Err(closed(NAME));
        self.log.send_if_modified(|log| {
            if !log.closed {
                log.events.push(Arc::new(checked.event().clone()));
                log.bytes += checked.size();
                stored = Ok(PublishReceipt::stored(log.events.len() as u64));
            }
            stored.is_ok()
        });
        stored
    }

    async fn open(&self, consumer: ConsumerSpec) -> Result<Reader> {
        if self.log.borrow().closed {
            return Err(closed(NAME));
        }
        Ok(Reader { log: self.log.subscribe(), filter: consumer.config.filter, position: 0 })
    }

    async fn page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        let log = self.log.borrow();
        let matches = |event: &Event| {
            query.filter.as_ref().is_none_or(|filter| subject_matches(&event.subject, filter))
        };
        let newest_first = log.events.iter().enumerate().rev().filter(|(_, event)| matches(event));
        let stored = |(index, event): (usize, &Arc<Event>)| {
            StoredEvent::new(Arc::clone(event), index as u64 + 1, event.timestamp)
        };
        let events = newest_first.take(query.limit).map(stored).collect();
        Ok(HistoryPage::new(events, Vec::new(), Some(1), 1))
    }

    async fn count(&self) -> Result<ProviderInfo> {
        let log = self.log.borrow();
        if log.closed {
            return Err(closed(NAME));
        }
        Ok(ProviderInfo {
            provider: NAME.to_owned(),
            messages: log.events.len() as u64,
            bytes: log.bytes as u64,
            consumers: self.log.receiver_count(),
        })
    }

    async fn shut(&self) -> Result<()> {
        self.log.send_modify(|log| log.closed = true);
        Ok(())
    }
}

/// Reads the `Vec` in order and waits at its end.
#[derive(Debug)]
pub struct Reader {
    log: watch::Receiver<Log>,
    filter: String,
    /// Number of events already read.
    position: usize,
}

impl Fetch for Reader {
    async fn fetch(&mut self, ask: Ask, taken: &mut VecDeque<Item>) -> Result<Option<SubscriptionEnd>> {
        loop {
            {
                let log = self.log.borrow_and_update();
                if log.closed {
                    return Ok(Some(SubscriptionEnd::Closed));
                }
                while taken.len() < ask.max
                    && let Some(event) = log.events.get(self.position)
                {
                    self.position += 1;
                    if subject_matches(&event.subject, &self.filter) {
                        let lease = Lease::new(self.position as u64, 1);
                        taken.push_back(Item::event(lease, Arc::clone(event), Arc::new(InOrderOnly)));
                    }
                }
            }
            if !taken.is_empty() {
                return Ok(None);
            }
            // The only await. Dropping the future here loses no event, because `taken` is empty.
            if self.log.changed().await.is_err() {
                return Ok(Some(SubscriptionEnd::Closed)); // the provider was dropped
            }
        }
    }

    fn stream(&self) -> Arc<str> {
        NAME.into()
    }
}

/// Settles events. This provider keeps no leases, so an ack does nothing and no event is redelivered.
struct InOrderOnly;

impl AckHandler for InOrderOnly {
    fn settle(&self, asked: Settlement) -> AckFuture<'_> {
        AckFuture::ready(match asked.kind {
            AckKind::Ack => Ok(()),
            other => Err(unsupported(other.verb(), NAME)),
        })
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let bus = EventBus::new(VecProvider::default());
    let mut market = bus.provider().subscribe("events.market.>").await?;

    let rate = serde_json::json!({"rate": 7.3521});
    let event = bus.publish("market", "forex.usd_cny", "USD/CNY broke through 7.35", "reuters", rate).await?;
    if let Some(received) = market.next().await? {
        println!("{}: {}", received.sequence, received.event.summary);
    }

    // The bus refuses an option that the provider does not support.
    let once = PublishOptions { msg_id: Some(event.id.clone()), ..Default::default() };
    if let Err(error) = bus.publish_event_with_options(&event, &once).await {
        println!("refused: {error}");
    }
    Ok(())
}
