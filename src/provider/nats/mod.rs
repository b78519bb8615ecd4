#![doc = include_str!("../../docs/links.txt")]
#![doc = ""]
#![doc = include_str!("docs.md")]

mod batch;
mod client;
mod config;
mod confirm;
mod consumer;
mod error;
mod fetch;
mod history;
mod inbox;
mod life;
mod link;
mod parked;
mod position;
mod publish;
mod pull;
mod records;
mod request;
mod reset;
mod settings;
mod settle;
mod shelf;
mod strays;
mod stream;
mod unconfirmed;
mod unreadable;
mod wire;

pub use client::{NatsClient, StreamInfo};
pub use config::{DEFAULT_MAX_IN_FLIGHT, NatsConfig, NatsProviderBuilder, StorageType};
pub(super) use config::{connect, default_limits, isolate};
pub use fetch::NatsFetch;
pub(super) use settings::SETTINGS;
pub use wire::EventFormat;

use std::sync::Arc;

use super::driver::{Checked, ConsumerSpec, Driver};
use super::receiver::Receiver;
use super::{
    AckFailures, Capabilities, ConsumerInfo, ConsumerPosition, HistoryPage, HistoryQuery, ProviderInfo,
    PublishReceipt, StreamSummary, SubscriptionEnd, Support,
};
use crate::error::Result;

/// Port of a server whose URL names none.
pub(super) const DEFAULT_PORT: u16 = 4_222;

/// A member of a consumer on NATS.
pub type NatsSubscription = Receiver<NatsFetch>;

/// A provider that stores events in a NATS JetStream stream.
#[derive(Debug)]
pub struct NatsProvider {
    client: NatsClient,
}

impl NatsProvider {
    /// Connects, and creates the stream if it does not exist.
    ///
    /// # Errors
    ///
    /// Same as [`NatsProviderBuilder::connect`].
    pub async fn connect(config: NatsConfig) -> Result<Self> {
        Self::builder(config).connect().await
    }

    /// Returns a builder for the settings that [`NatsConfig`] lacks.
    pub fn builder(config: NatsConfig) -> NatsProviderBuilder {
        NatsProviderBuilder::new(config)
    }

    async fn from_builder(settings: NatsProviderBuilder) -> Result<Self> {
        Ok(Self { client: NatsClient::from_builder(settings).await? })
    }

    /// Returns the connection, with its native handles.
    pub fn client(&self) -> &NatsClient {
        &self.client
    }

    fn into_client(self) -> NatsClient {
        self.client
    }
}

impl Driver for NatsProvider {
    type Fetch = NatsFetch;

    fn name(&self) -> &str {
        error::PROVIDER
    }

    fn subject_prefix(&self) -> &str {
        &self.client.config().subject_prefix
    }

    fn capabilities(&self) -> Capabilities {
        let shared = &self.client.shared;
        let mut capabilities = Capabilities::all(shared.durability);
        // The server accepts a settlement regardless of the present lease, counts every delivery as an attempt, and does
        // not report what it dropped.
        capabilities.fenced_settlement = Support::No;
        capabilities.release_keeps_attempt = Support::No;
        capabilities.reports_gaps = Support::No;
        if !shared.resets_consumers() {
            capabilities.reset_consumer = Support::No;
        }
        capabilities.max_event_bytes = Some(shared.max_event_bytes);
        capabilities.dedup_window = Some(shared.dedup_window);
        capabilities
    }

    fn max_event_bytes(&self) -> usize {
        self.client.shared.max_event_bytes
    }

    async fn store(&self, event: Checked<'_>) -> Result<PublishReceipt> {
        self.client.shared.publish(event).await
    }

    async fn store_batch(&self, batch: Vec<Checked<'_>>) -> Vec<Result<PublishReceipt>> {
        self.client.shared.publish_batch(&batch).await
    }

    async fn open(&self, consumer: ConsumerSpec) -> Result<NatsFetch> {
        self.client.shared.open(consumer).await
    }

    async fn delete_consumer(&self, name: &str) -> Result<()> {
        let shared = &self.client.shared;
        // Taken before the request: a program that learns of the deletion may open a new consumer before the answer
        // arrives.
        let life = shared.lives.get(name);
        shared.delete_consumer(name).await?;
        if let Some(life) = life {
            life.end_as(SubscriptionEnd::Deleted);
        }
        Ok(())
    }

    async fn page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        self.client.shared.page(query).await
    }

    async fn move_consumer(&self, name: &str, position: ConsumerPosition) -> Result<()> {
        self.client.shared.reset_consumer(name, position).await
    }

    async fn list_consumers(&self) -> Result<Vec<ConsumerInfo>> {
        let shared = &self.client.shared;
        let listed = shared.consumers().await?.into_iter().map(|native| {
            let filter = shared.filter_of(&native.config);
            let mut info = ConsumerInfo::new(native.name, filter, native.config.durable_name.is_some());
            info.lag = native.num_pending;
            info.pending = native.num_ack_pending as u64;
            info.redelivered = native.num_redelivered as u64;
            info.last_progress = native.ack_floor.last_active.and_then(records::unix_ms);
            info
        });
        Ok(listed.collect())
    }

    async fn list_streams(&self) -> Result<Vec<StreamSummary>> {
        self.client.shared.streams().await
    }

    async fn drop_stream(&self) -> Result<()> {
        self.client.shared.delete_stream().await
    }

    async fn purge_events(&self, filter: Option<&str>) -> Result<u64> {
        self.client.shared.purge(filter).await
    }

    async fn count(&self) -> Result<ProviderInfo> {
        let stream = self.client.stream_info().await?;
        Ok(ProviderInfo {
            provider: error::PROVIDER.to_owned(),
            messages: stream.messages,
            bytes: stream.bytes,
            consumers: stream.consumer_count,
        })
    }

    fn failed_acks(&self) -> Option<Arc<AckFailures>> {
        Some(Arc::clone(&self.client.shared.ack_failures))
    }

    async fn is_healthy(&self) -> bool {
        self.client.shared.is_healthy().await
    }

    async fn shut(&self) -> Result<()> {
        let shared = &self.client.shared;
        shared.closed.send_replace(true);
        if let Some(strays) = shared.strays.get() {
            strays.ended().await;
        }
        if let Some(confirmer) = shared.confirmer.get() {
            confirmer.ended().await?;
        }
        Ok(())
    }
}
