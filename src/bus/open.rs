//! Opening the subscriptions of a provider, with what the bus adds to them.

use std::sync::Arc;
use std::time::Duration;

use super::answer_within;
use super::dead_letter::{DeadLetters, LetterBox};
use super::in_force::InForce;
use super::records::WithoutRecords;
use super::registry::{Registry, distinct_name};
use super::subscription::BusSubscription;
use crate::crypto::EventEncryptor;
use crate::dlq::DlqHandler;
use crate::error::{EventError, Result};
use crate::metrics::BusMetrics;
use crate::provider::group::ConsumerConfig;
use crate::provider::{ConsumerPosition, EventProvider, Subscription};
use crate::schema::SchemaRegistry;
use crate::types::{SubscribeOptions, SubscriptionFilter};

/// What of a bus it takes to open subscriptions. Cheap to clone, so that a task can have it and open them again.
#[derive(Clone)]
pub(super) struct Opener {
    pub(super) provider: Arc<dyn EventProvider>,
    pub(super) encryptor: Option<Arc<dyn EventEncryptor>>,
    /// What events are validated against on consume.
    pub(super) schemas: Option<Arc<dyn SchemaRegistry>>,
    pub(super) dlq_handler: Option<Arc<dyn DlqHandler>>,
    pub(super) registry: Arc<Registry>,
    pub(super) metrics: Arc<BusMetrics>,
    pub(super) timeout: Duration,
}

impl Opener {
    /// Opens one subject of a subscription.
    pub(super) async fn open(
        &self,
        filter: &SubscriptionFilter,
        subject: &str,
    ) -> Result<Box<dyn Subscription>> {
        let max_deliver = filter.options.as_ref().and_then(|options| options.max_deliver);
        let max_deliver = max_deliver.and_then(|max| u64::try_from(max).ok());
        let adds_nothing = self.encryptor.is_none() && self.schemas.is_none() && self.dlq_handler.is_none();
        if adds_nothing && max_deliver.is_none() {
            return Ok(self.open_inner(filter, subject, filter.options.as_ref()).await?.0);
        }
        let in_force = Arc::new(InForce::new(filter.options.as_ref(), Arc::default()));
        Ok(Box::new(self.open_incoming(filter, subject, max_deliver, in_force).await?))
    }

    /// The same in the form that shows what cannot be processed; this many attempts of an event are allowed.
    pub(super) async fn open_incoming(
        &self,
        filter: &SubscriptionFilter,
        subject: &str,
        max_deliver: Option<u64>,
        in_force: Arc<InForce>,
    ) -> Result<BusSubscription> {
        let mut options = filter.options.clone();
        if let Some(options) = &mut options {
            // The bus counts: a provider that has a limit drops what reaches it, for all who share the consumer.
            options.max_deliver = None;
        }
        let (mut inner, consumer) = self.open_inner(filter, subject, options.as_ref()).await?;
        let limited = |inner: &dyn Subscription| inner.settings().filter(|set| set.max_deliver.is_some());
        if self.dlq_handler.is_some()
            && let Some(settings) = limited(&*inner)
        {
            inner = self.take_limit_off(filter, subject, &consumer, inner, &settings).await?;
            if let Some(settings) = limited(&*inner) {
                return Err(limit_conflict(&consumer, &settings));
            }
        }
        if let Some(settings) = inner.settings() {
            in_force.set(&settings);
        }
        let letters = DeadLetters {
            letter_box: self.letter_box(),
            consumer,
            subscriber: filter.subscriber_id.clone(),
            counters: self.metrics.consumer(&filter.subscriber_id, subject),
            max_deliver,
            in_force,
        };
        Ok(BusSubscription::new(inner, self.encryptor.clone(), self.schemas.clone(), letters))
    }

    /// Opens a consumer again on which somebody else has set a limit of deliveries, without that limit and with everything
    /// else as it is: the provider would drop what reaches it, and the bus has dead letters for that.
    async fn take_limit_off(
        &self,
        filter: &SubscriptionFilter,
        subject: &str,
        consumer: &str,
        mut limited: Box<dyn Subscription>,
        settings: &ConsumerConfig,
    ) -> Result<Box<dyn Subscription>> {
        let unlimited = ConsumerConfig { max_deliver: None, ..settings.clone() };
        let options = unlimited.to_options();
        // Options have whole seconds: what they cannot say must not be changed.
        if !ConsumerConfig::new(subject, &options).is_ok_and(|restated| restated == unlimited) {
            return Err(limit_conflict(consumer, settings));
        }
        tracing::warn!(
            consumer,
            max_deliver = settings.max_deliver,
            "somebody limited the deliveries of a consumer whose bus has dead letters; the limit is taken off, and the \
             bus counts"
        );
        limited.close().await?;
        drop(limited);
        Ok(self.open_inner(filter, subject, Some(&options)).await?.0)
    }

    /// Whether there is a durable consumer of this name; `None` when the provider cannot tell.
    pub(super) async fn exists(&self, consumer: &str) -> Result<Option<bool>> {
        let asked = answer_within(self.timeout, "consumers", self.provider.name(), self.provider.consumers());
        match asked.await {
            Ok(known) => Ok(Some(known.iter().any(|known| known.durable && known.name == consumer))),
            Err(EventError::Unsupported { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Moves a durable consumer.
    pub(super) async fn reset(&self, consumer: &str, position: ConsumerPosition) -> Result<()> {
        let resetting = self.provider.reset_consumer(consumer, position);
        answer_within(self.timeout, "reset_consumer", self.provider.name(), resetting).await
    }

    /// The way into the dead letters.
    pub(super) fn letter_box(&self) -> LetterBox {
        LetterBox {
            handler: self.dlq_handler.clone(),
            timeout: self.timeout,
            prefix: self.provider.subject_prefix().into(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// The provider's subscription, and the name of its consumer. The library's own records come to nobody who has not asked
    /// for them.
    async fn open_inner(
        &self,
        filter: &SubscriptionFilter,
        subject: &str,
        options: Option<&SubscribeOptions>,
    ) -> Result<(Box<dyn Subscription>, String)> {
        let (inner, consumer) = self.open_with_records(filter, subject, options).await?;
        Ok((WithoutRecords::around(inner, subject, self.provider.subject_prefix()), consumer))
    }

    /// An ephemeral consumer has the name that it would have if it were durable.
    async fn open_with_records(
        &self,
        filter: &SubscriptionFilter,
        subject: &str,
        options: Option<&SubscribeOptions>,
    ) -> Result<(Box<dyn Subscription>, String)> {
        if filter.durable {
            return self.open_durable(&filter.subscriber_id, subject, options).await;
        }
        let call = async {
            match options {
                Some(options) => self.provider.subscribe_with_options(subject, options).await,
                None => self.provider.subscribe(subject).await,
            }
        };
        let opened = self.within_deadline(call).await?;
        Ok((opened, self.registry.consumer_name(&filter.subscriber_id, subject)))
    }

    async fn open_durable(
        &self,
        subscriber_id: &str,
        subject: &str,
        options: Option<&SubscribeOptions>,
    ) -> Result<(Box<dyn Subscription>, String)> {
        let mut name = self.registry.consumer_name(subscriber_id, subject);
        let mut opened = self.open_named(&name, subject, options).await;
        if matches!(&opened, Err(EventError::Conflict { field, .. }) if field == "filter") {
            // The plain name belongs to another subject, opened by another bus.
            name = distinct_name(subscriber_id, subject);
            opened = self.open_named(&name, subject, options).await;
        }
        let opened = opened?;
        self.registry.remember_consumer(&name, subscriber_id, subject);
        Ok((opened, name))
    }

    async fn open_named(
        &self,
        name: &str,
        subject: &str,
        options: Option<&SubscribeOptions>,
    ) -> Result<Box<dyn Subscription>> {
        let call = async {
            match options {
                Some(options) => self.provider.subscribe_durable_with_options(name, subject, options).await,
                None => self.provider.subscribe_durable(name, subject).await,
            }
        };
        self.within_deadline(call).await
    }

    async fn within_deadline<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        answer_within(self.timeout, "subscribe", self.provider.name(), call).await
    }
}

fn limit_conflict(consumer: &str, settings: &ConsumerConfig) -> EventError {
    EventError::Conflict {
        resource: format!("consumer '{consumer}'"),
        field: "max_deliver".to_owned(),
        existing: settings.max_deliver.map_or_else(|| "none".to_owned(), |max| max.to_string()),
        requested: "none, because the bus has dead letters and counts by itself".to_owned(),
    }
}
