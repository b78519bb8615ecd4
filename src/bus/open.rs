//! Opens a provider's subscriptions with the additions of the bus.

use std::sync::Arc;
use std::time::Duration;

use super::answer_within;
use super::dead_letter::{DeadLetters, LetterBox};
use super::in_force::InForce;
use super::records::WithoutRecords;
use super::registry::{Registry, distinct_name, is_name_of};
use super::subscription::BusSubscription;
use crate::crypto::EventEncryptor;
use crate::dlq::DlqHandler;
use crate::error::{EventError, Result};
use crate::metrics::BusMetrics;
use crate::provider::group::ConsumerConfig;
use crate::provider::{ConsumerPosition, EventProvider, Subscription};
use crate::schema::SchemaRegistry;
use crate::types::{SubscribeOptions, SubscriptionFilter};

/// Parts of a bus that opening a subscription needs. Cheap to clone, so that a task can own it and reopen
/// subscriptions.
#[derive(Clone)]
pub(super) struct Opener {
    pub(super) provider: Arc<dyn EventProvider>,
    pub(super) encryptor: Option<Arc<dyn EventEncryptor>>,
    /// Schemas for validation on consume; `None` if it is off.
    pub(super) schemas: Option<Arc<dyn SchemaRegistry>>,
    /// If true, encrypted events are handed out encrypted.
    pub(super) as_stored: bool,
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

    /// Opens one subject in the form that shows unprocessable records. Allows `max_deliver` attempts of an event.
    pub(super) async fn open_incoming(
        &self,
        filter: &SubscriptionFilter,
        subject: &str,
        max_deliver: Option<u64>,
        in_force: Arc<InForce>,
    ) -> Result<BusSubscription> {
        let mut options = filter.options.clone();
        if let Some(options) = &mut options {
            // The bus counts: a provider with a limit drops an event that reaches it, for all members of the consumer.
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
        let (encryptor, schemas) = (self.encryptor.clone(), self.schemas.clone());
        Ok(BusSubscription::new(inner, encryptor, schemas, self.as_stored, letters))
    }

    /// Reopens a consumer without the delivery limit that another program has set, and keeps all other settings. The
    /// provider would drop an event that reaches the limit; the bus dead-letters it.
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
        // Options have whole seconds: a setting that they cannot express must stay unchanged.
        if !ConsumerConfig::new(subject, &options).is_ok_and(|restated| restated == unlimited) {
            return Err(limit_conflict(consumer, settings));
        }
        tracing::warn!(
            subscriber = filter.subscriber_id,
            consumer,
            max_deliver = settings.max_deliver,
            "another program limited the deliveries of this consumer; the limit is removed, because the bus counts the \
             deliveries for its dead letters"
        );
        limited.close().await?;
        drop(limited);
        Ok(self.open_inner(filter, subject, Some(&options)).await?.0)
    }

    /// Warns of the durable consumers that are stored for this subscriber with other subjects, and that no member reads.
    /// The stored name of a consumer contains its subject, so that a changed subject makes a second consumer.
    pub(super) async fn warn_of_others(&self, filter: &SubscriptionFilter) {
        if !filter.durable {
            return;
        }
        let asked = answer_within(self.timeout, "consumers", self.provider.name(), self.provider.consumers());
        let known = match asked.await {
            Ok(known) => known,
            Err(error) => {
                tracing::debug!(subscriber = filter.subscriber_id, %error, "listing the consumers failed");
                return;
            }
        };
        let registered =
            self.registry.get(&filter.subscriber_id).map_or_else(Vec::new, |filter| filter.subjects);
        for other in known {
            let is_wanted = filter.subjects.contains(&other.filter) || registered.contains(&other.filter);
            let is_read = other.members.is_some_and(|members| members > 0);
            if !other.durable
                || is_wanted
                || is_read
                || !is_name_of(&other.name, &filter.subscriber_id, &other.filter)
            {
                continue;
            }
            tracing::warn!(
                subscriber = filter.subscriber_id,
                consumer = other.name,
                subject = other.filter,
                lag = other.lag,
                remove_with = format!("a3s-event consumers rm {}", other.name),
                "another consumer of this subscriber is stored, with a subject that is not handled here; its lag grows \
                 unless another program reads it"
            );
        }
    }

    /// Returns true if a durable consumer of this name exists, or `None` if the provider cannot tell.
    pub(super) async fn exists(&self, consumer: &str) -> Result<Option<bool>> {
        let asked = answer_within(self.timeout, "consumers", self.provider.name(), self.provider.consumers());
        match asked.await {
            Ok(known) => Ok(Some(known.iter().any(|known| known.durable && known.name == consumer))),
            Err(EventError::Unsupported { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Moves a durable consumer to a position.
    pub(super) async fn reset(&self, consumer: &str, position: ConsumerPosition) -> Result<()> {
        let resetting = self.provider.reset_consumer(consumer, position);
        answer_within(self.timeout, "reset_consumer", self.provider.name(), resetting).await
    }

    /// Creates the access to the dead letters.
    pub(super) fn letter_box(&self) -> LetterBox {
        LetterBox {
            handler: self.dlq_handler.clone(),
            timeout: self.timeout,
            prefix: self.provider.subject_prefix().into(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Opens the provider's subscription and returns it with the name of its consumer. It hides the library's own
    /// records unless the subject asks for them.
    async fn open_inner(
        &self,
        filter: &SubscriptionFilter,
        subject: &str,
        options: Option<&SubscribeOptions>,
    ) -> Result<(Box<dyn Subscription>, String)> {
        let (inner, consumer) = self.open_with_records(filter, subject, options).await?;
        Ok((WithoutRecords::around(inner, subject, self.provider.subject_prefix()), consumer))
    }

    /// Opens the subscription with the library's own records. An ephemeral consumer gets the name that it would have if
    /// it were durable.
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
            // The plain name belongs to a consumer of another subject, opened by another bus.
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
        requested: "none, because the bus counts the deliveries for its dead letters".to_owned(),
    }
}
