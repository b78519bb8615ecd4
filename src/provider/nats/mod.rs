#![doc = include_str!("docs.md")]

mod batch;
mod client;
mod config;
mod consumer;
mod error;
mod history;
mod life;
mod link;
mod parked;
mod position;
mod publish;
mod pull;
mod records;
mod reset;
mod settings;
mod settle;
mod strays;
mod stream;
mod subscription;
mod tls;
mod unreadable;
mod wire;

use std::any::Any;

use async_trait::async_trait;

pub use client::{NatsClient, StreamInfo};
pub(super) use config::connect;
pub use config::{DEFAULT_MAX_IN_FLIGHT, NatsConfig, NatsProviderBuilder, StorageType};
pub(super) use settings::SETTINGS;
pub use subscription::NatsSubscription;
pub use wire::EventFormat;

use super::{
    Capabilities, ConsumerInfo, ConsumerPosition, EventProvider, HistoryPage, HistoryQuery, ProviderInfo,
    PublishReceipt, PublishRequest, Subscription, Support,
};
use crate::error::Result;
use crate::types::{Event, PublishOptions, SubscribeOptions};

/// The provider that keeps events in a stream of NATS JetStream.
#[derive(Debug)]
pub struct NatsProvider {
    client: NatsClient,
}

impl NatsProvider {
    /// Connects, and makes the stream when it does not exist.
    ///
    /// # Errors
    ///
    /// As [`NatsProviderBuilder::connect`].
    pub async fn connect(config: NatsConfig) -> Result<Self> {
        Self::builder(config).connect().await
    }

    /// Settings that [`NatsConfig`] lacks.
    pub fn builder(config: NatsConfig) -> NatsProviderBuilder {
        NatsProviderBuilder::new(config)
    }

    async fn from_builder(settings: NatsProviderBuilder) -> Result<Self> {
        Ok(Self { client: NatsClient::from_builder(settings).await? })
    }

    /// The connection, with its native handles.
    pub fn client(&self) -> &NatsClient {
        &self.client
    }

    fn into_client(self) -> NatsClient {
        self.client
    }
}

#[async_trait]
impl EventProvider for NatsProvider {
    async fn publish(&self, event: &Event) -> Result<u64> {
        self.client.publish(event).await
    }

    async fn publish_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        self.client.publish_with_options(event, opts).await
    }

    async fn publish_with_receipt(&self, event: &Event, opts: &PublishOptions) -> Result<PublishReceipt> {
        self.client.shared.publish(event, opts).await
    }

    async fn publish_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<PublishReceipt>> {
        self.client.shared.publish_batch(batch).await
    }

    async fn subscribe_durable(
        &self,
        consumer_name: &str,
        filter_subject: &str,
    ) -> Result<Box<dyn Subscription>> {
        Ok(Box::new(self.client.subscribe_durable(consumer_name, filter_subject).await?))
    }

    async fn subscribe_durable_with_options(
        &self,
        consumer_name: &str,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        let opened = self.client.subscribe_durable_with_options(consumer_name, filter_subject, opts).await?;
        Ok(Box::new(opened))
    }

    async fn subscribe(&self, filter_subject: &str) -> Result<Box<dyn Subscription>> {
        Ok(Box::new(self.client.subscribe(filter_subject).await?))
    }

    async fn subscribe_with_options(
        &self,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        Ok(Box::new(self.client.subscribe_with_options(filter_subject, opts).await?))
    }

    async fn history(&self, filter_subject: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        self.client.history(filter_subject, limit).await
    }

    async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        self.client.shared.page(query).await
    }

    async fn reset_consumer(&self, consumer_name: &str, position: ConsumerPosition) -> Result<()> {
        self.client.shared.reset_consumer(consumer_name, position).await
    }

    async fn unsubscribe(&self, consumer_name: &str) -> Result<()> {
        self.client.unsubscribe(consumer_name).await
    }

    async fn info(&self) -> Result<ProviderInfo> {
        let stream = self.client.stream_info().await?;
        Ok(ProviderInfo {
            provider: self.name().to_owned(),
            messages: stream.messages,
            bytes: stream.bytes,
            consumers: stream.consumer_count,
        })
    }

    async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        let shared = &self.client.shared;
        let listed = shared.consumers().await?.into_iter().map(|native| {
            let filter = shared.filter_of(&native.config);
            let mut info = ConsumerInfo::new(native.name, filter, native.config.durable_name.is_some());
            info.lag = native.num_pending;
            info.pending = native.num_ack_pending as u64;
            info.redelivered = native.num_redelivered as u64;
            info
        });
        Ok(listed.collect())
    }

    async fn health(&self) -> Result<bool> {
        Ok(self.client.shared.is_healthy().await)
    }

    fn name(&self) -> &str {
        error::PROVIDER
    }

    fn subject_prefix(&self) -> &str {
        &self.client.config().subject_prefix
    }

    fn capabilities(&self) -> Capabilities {
        let shared = &self.client.shared;
        let mut capabilities = Capabilities::all(shared.durability);
        // The server knows events, not deliveries: it takes a settlement whoever holds the lease now, counts every
        // delivery as an attempt, and does not say what it dropped.
        capabilities.fenced_settlement = Support::No;
        capabilities.uncounted_release = Support::No;
        capabilities.counted_loss = Support::No;
        if !shared.resets_consumers() {
            capabilities.reset_consumer = Support::No;
        }
        capabilities.max_event_bytes = Some(shared.max_event_bytes);
        capabilities.dedup_window = Some(shared.dedup_window);
        capabilities
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    async fn close(&self) -> Result<()> {
        let shared = &self.client.shared;
        shared.closed.send_replace(true);
        if let Some(strays) = shared.strays.get() {
            strays.ended().await;
        }
        Ok(())
    }
}
