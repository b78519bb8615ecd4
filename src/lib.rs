// Markdown uses the first definition of a link, so these point the links of the README at this documentation.
#![doc = concat!("[watch picture]: ", include_str!("../docs/watch.uri"))]
#![cfg_attr(feature = "cloudevents", doc = "[cloudevents]: docs::cloudevents")]
#![cfg_attr(feature = "nats", doc = "[NATS]: provider::nats")]
#![cfg_attr(feature = "redis", doc = "[Redis]: provider::redis")]
#![cfg_attr(feature = "routing", doc = "[routing]: docs::routing")]
#![cfg_attr(feature = "sqlite", doc = "[SQLite]: provider::sqlite")]
#![cfg_attr(feature = "testing", doc = "[testing]: docs::testing_handlers")]
//! [delivery]: docs::delivery
//! [choosing]: docs::choosing_a_provider
//! [memory]: provider::memory
//! [service]: docs::building_a_service
//! [consumer]: docs::writing_a_consumer
//! [shutting down]: docs::graceful_shutdown
//! [errors]: error
//! [dead letters]: docs::dead_letters
//! [sinks]: docs::sinks
//! [sources]: docs::sources
//! [encryption]: docs::encryption
//! [schemas]: docs::schema_evolution
//! [deployment]: docs::deployment
//! [configuration]: docs::configuration
//! [observability]: docs::observability
//! [provider]: docs::writing_a_provider
//! [upgrading]: docs::upgrading
//!
#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
#[cfg(feature = "routing")]
#[cfg_attr(docsrs, doc(cfg(feature = "routing")))]
pub mod broker;
pub mod bus;
mod clock;
#[cfg(feature = "cloudevents")]
#[cfg_attr(docsrs, doc(cfg(feature = "cloudevents")))]
pub mod cloudevents;
pub mod crypto;
mod deadline;
pub mod dlq;
pub mod duration;
pub mod error;
mod hash;
#[cfg(feature = "cloudevents")]
mod headers;
pub mod json;
pub mod metrics;
mod poison;
mod private_file;
pub mod provider;
mod random;
mod reserved;
pub mod scaling;
pub mod schema;
#[cfg(feature = "signal")]
#[cfg_attr(docsrs, doc(cfg(feature = "signal")))]
pub mod shutdown;
pub mod sink;
pub mod source;
pub mod state;
pub mod subject;
mod task;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
mod text;
pub mod timestamp;
#[cfg(any(feature = "nats", feature = "redis"))]
mod tls;
pub mod trace;
pub mod types;
#[cfg(any(feature = "http", feature = "webhook"))]
mod webhooks;

pub mod docs;

pub use bus::consumer;

/// The bus, under its path of earlier versions.
pub mod store {
    pub use crate::bus::EventBus;
}

#[cfg(feature = "routing")]
#[cfg_attr(docsrs, doc(cfg(feature = "routing")))]
pub use broker::{Broker, RouteResult, Trigger, TriggerFilter};
pub use bus::{EventBus, EventBusBuilder, Observer};
#[cfg(feature = "cloudevents")]
#[cfg_attr(docsrs, doc(cfg(feature = "cloudevents")))]
pub use cloudevents::CloudEvent;
#[cfg(feature = "encryption")]
#[cfg_attr(docsrs, doc(cfg(feature = "encryption")))]
pub use crypto::{Aes256GcmEncryptor, EncryptionKey, KeyState};
pub use crypto::{EncryptedPayload, EventEncryptor};
pub use dlq::{
    DeadLetter, DeadLetterEvent, DlqHandler, FailureClass, MemoryDlqHandler, ProviderDlqHandler,
    SinkDlqHandler,
};
pub use error::{BackendError, EncryptionFailure, ErrorKind, EventError, Result};
pub use metrics::{BusMetrics, ConsumerMetrics, EventMetrics, MetricsSnapshot};
pub use provider::memory::{MemoryConfig, MemoryProvider};
#[cfg(feature = "nats")]
#[cfg_attr(docsrs, doc(cfg(feature = "nats")))]
pub use provider::nats::{NatsClient, NatsConfig, NatsProvider, NatsSubscription, StorageType};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use provider::redis::{RedisConfig, RedisProvider};
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use provider::sqlite::{SqliteConfig, SqliteProvider};
pub use provider::{
    AckHandler, AckKind, Capabilities, ConsumerInfo, ConsumerPosition, Delivery, Durability, EventProvider,
    HistoryPage, HistoryQuery, IntoProvider, PendingEvent, ProviderInfo, ProviderRegistry, PublishReceipt,
    PublishRequest, StoredEvent, Subscription, SubscriptionEnd, Support, UnreadableRecord,
};
pub use scaling::{
    InstanceHealthPayload, InstanceReadyPayload, InstanceStoppedPayload, ScaleDownPayload, ScaleUpPayload,
    ScalingEvent,
};
#[cfg(feature = "json-schema")]
#[cfg_attr(docsrs, doc(cfg(feature = "json-schema")))]
pub use schema::JsonSchemaRegistry;
pub use schema::{Compatibility, EventSchema, MemorySchemaRegistry, SchemaRegistry, SchemaRules};
pub use sink::{CollectorSink, EventSink, FailingSink, InProcessSink, LogSink, TopicSink};
pub use source::{CronSource, EventSource, SourceRunner, ThresholdSource};
pub use state::{FileStateStore, InvalidSubscription, MemoryStateStore, StateStore};
pub use trace::TraceContext;
pub use types::{
    DeliverPolicy, Event, EventBuilder, EventCounts, PublishOptions, ReceivedEvent, SubscribeOptions,
    SubscriptionFilter,
};
