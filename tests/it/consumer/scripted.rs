//! Memory whose consumers end, and whose settings are, as a test says.

use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use a3s_event::provider::group::ConsumerConfig;
use a3s_event::{
    Capabilities, ConsumerInfo, ConsumerPosition, DeliverPolicy, Delivery, Event, EventError, EventProvider,
    HistoryPage, HistoryQuery, MemoryProvider, PendingEvent, ProviderInfo, ReceivedEvent, Result,
    SubscribeOptions, Subscription, SubscriptionEnd,
};
use async_trait::async_trait;
use tokio::sync::watch;

/// What a test says.
pub(super) struct Script {
    pub(super) memory: RwLock<Arc<MemoryProvider>>,
    pub(super) end: Mutex<Option<SubscriptionEnd>>,
    pub(super) settings: Mutex<Option<ConsumerConfig>>,
    /// The options of each opening with options.
    pub(super) opened: Mutex<Vec<SubscribeOptions>>,
    pub(super) fails: watch::Sender<bool>,
    pub(super) lists: bool,
    pub(super) moves: bool,
    /// How often a consumer was moved; its subscriptions follow.
    pub(super) moved: Mutex<u64>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            memory: RwLock::default(),
            end: Mutex::default(),
            settings: Mutex::default(),
            opened: Mutex::default(),
            fails: watch::Sender::new(false),
            lists: true,
            moves: true,
            moved: Mutex::default(),
        }
    }
}

impl Script {
    pub(super) fn memory(&self) -> Arc<MemoryProvider> {
        Arc::clone(&self.memory.read().unwrap())
    }

    /// Ends every durable consumer, for this reason.
    pub(super) async fn end(&self, reason: Option<SubscriptionEnd>) {
        *self.end.lock().unwrap() = reason;
        let memory = self.memory();
        for consumer in memory.consumers().await.unwrap() {
            memory.unsubscribe(&consumer.name).await.unwrap();
        }
    }

    /// Replaces the stream by another one, which has these events.
    pub(super) async fn replace_stream(&self, events: &[Event]) {
        let new = Arc::new(MemoryProvider::default());
        for event in events {
            new.publish(event).await.unwrap();
        }
        *self.end.lock().unwrap() = Some(SubscriptionEnd::StreamReplaced);
        let old = std::mem::replace(&mut *self.memory.write().unwrap(), new);
        for consumer in old.consumers().await.unwrap() {
            old.unsubscribe(&consumer.name).await.unwrap();
        }
        old.close().await.unwrap();
    }

    /// Says that these settings are in force.
    pub(super) fn set(&self, filter: &str, options: &SubscribeOptions) {
        self.set_config(ConsumerConfig::new(filter, options).unwrap());
    }

    pub(super) fn set_config(&self, settings: ConsumerConfig) {
        *self.settings.lock().unwrap() = Some(settings);
    }

    pub(super) fn last_opened(&self) -> SubscribeOptions {
        self.opened.lock().unwrap().last().cloned().expect("it was opened with options")
    }
}

/// A provider that does as its script says.
pub(super) struct Scripted(pub(super) Arc<Script>);

impl Scripted {
    fn member(&self, inner: Box<dyn Subscription>, durable: Option<(&str, &str)>) -> Box<dyn Subscription> {
        let durable = durable.map(|(name, filter)| (name.to_owned(), filter.to_owned()));
        let moved = *self.0.moved.lock().unwrap();
        Box::new(Member { inner, script: Arc::clone(&self.0), durable, moved })
    }
}

#[async_trait]
impl EventProvider for Scripted {
    async fn publish(&self, event: &Event) -> Result<u64> {
        self.0.memory().publish(event).await
    }
    async fn subscribe_durable(&self, name: &str, filter: &str) -> Result<Box<dyn Subscription>> {
        let inner = self.0.memory().subscribe_durable(name, filter).await?;
        Ok(self.member(inner, Some((name, filter))))
    }
    async fn subscribe(&self, filter: &str) -> Result<Box<dyn Subscription>> {
        let inner = self.0.memory().subscribe(filter).await?;
        Ok(self.member(inner, None))
    }
    async fn subscribe_durable_with_options(
        &self,
        name: &str,
        filter: &str,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        let inner = self.0.memory().subscribe_durable_with_options(name, filter, options).await?;
        self.0.opened.lock().unwrap().push(options.clone());
        if self.0.settings.lock().unwrap().is_some() {
            self.0.set(filter, options);
        }
        Ok(self.member(inner, Some((name, filter))))
    }
    async fn subscribe_with_options(
        &self,
        filter: &str,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        let inner = self.0.memory().subscribe_with_options(filter, options).await?;
        self.0.opened.lock().unwrap().push(options.clone());
        Ok(self.member(inner, None))
    }
    async fn history(&self, filter: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        self.0.memory().history(filter, limit).await
    }
    async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        self.0.memory().query_page(query).await
    }
    async fn unsubscribe(&self, name: &str) -> Result<()> {
        self.0.memory().unsubscribe(name).await
    }
    async fn reset_consumer(&self, name: &str, position: ConsumerPosition) -> Result<()> {
        let unsupported =
            || EventError::Unsupported { option: "reset_consumer".into(), provider: "it".into() };
        if !self.0.moves {
            return Err(unsupported());
        }
        let memory = self.0.memory();
        let consumers = memory.consumers().await?;
        let consumer = consumers.into_iter().find(|consumer| consumer.name == name);
        let consumer = consumer.ok_or_else(|| EventError::NotFound(format!("consumer '{name}'")))?;
        let sequence = match position {
            ConsumerPosition::First => 1,
            ConsumerPosition::Sequence(sequence) => sequence,
            _ => return Err(unsupported()),
        };
        memory.unsubscribe(name).await?;
        let deliver_policy = DeliverPolicy::ByStartSequence { sequence };
        let options = SubscribeOptions { deliver_policy, ..SubscribeOptions::default() };
        memory.subscribe_durable_with_options(name, &consumer.filter, &options).await?;
        *self.0.moved.lock().unwrap() += 1;
        Ok(())
    }
    async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        if *self.0.fails.borrow() {
            return Err(EventError::Connection("no server".into()));
        }
        if !self.0.lists {
            return Err(EventError::Unsupported { option: "consumers".into(), provider: "it".into() });
        }
        self.0.memory().consumers().await
    }
    async fn info(&self) -> Result<ProviderInfo> {
        self.0.memory().info().await
    }
    fn capabilities(&self) -> Capabilities {
        self.0.memory().capabilities()
    }
    fn name(&self) -> &str {
        "scripted"
    }
}

struct Member {
    inner: Box<dyn Subscription>,
    script: Arc<Script>,
    durable: Option<(String, String)>,
    moved: u64,
}

impl Member {
    async fn follow(&mut self) -> Result<()> {
        let moved = *self.script.moved.lock().unwrap();
        if let Some((name, filter)) = &self.durable
            && self.moved < moved
        {
            self.inner = self.script.memory().subscribe_durable(name, filter).await?;
            self.moved = moved;
        }
        Ok(())
    }
}

#[async_trait]
impl Subscription for Member {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        self.inner.next().await
    }
    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        self.inner.next_manual_ack().await
    }
    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        self.inner.next_delivery().await
    }
    async fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Vec<Result<Delivery>>> {
        if let Err(error) = self.follow().await {
            return Some(vec![Err(error)]);
        }
        let mut fails = self.script.fails.subscribe();
        tokio::select! {
            biased;
            _ = fails.wait_for(|fails| *fails) => Some(vec![Err(EventError::Connection("no server".into()))]),
            batch = self.inner.next_batch(max, wait) => batch,
        }
    }
    fn settings(&self) -> Option<ConsumerConfig> {
        self.script.settings.lock().unwrap().clone()
    }
    fn end(&self) -> Option<SubscriptionEnd> {
        *self.script.end.lock().unwrap()
    }
    async fn close(&mut self) -> Result<()> {
        self.inner.close().await
    }
}
