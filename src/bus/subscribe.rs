//! Subscribing through the bus.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use super::EventBus;
use super::metered::Metered;
use super::registry::{distinct_name, is_name_of, subscriber_in_name};
use crate::error::{EventError, Result};
use crate::provider::group::ConsumerConfig;
use crate::provider::support::unsupported;
use crate::provider::{ConsumerInfo, Subscription};
use crate::state::InvalidSubscription;
use crate::text::shorten;
use crate::trace;
use crate::types::SubscriptionFilter;

/// Maximum number of subjects in one subscription.
const MAX_SUBJECTS: usize = 256;

/// Maximum time that opening a subscription waits for the list of the subscriber's other consumers.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

impl EventBus {
    /// Registers a subscription, or replaces the one of the same subscriber. It neither opens nor removes consumers.
    ///
    /// Durable consumers of subjects that the new subscription lacks keep their positions and fall behind.
    /// [`unused_consumers`](EventBus::unused_consumers) lists them, and
    /// [`remove_unused_consumers`](EventBus::remove_unused_consumers) removes them.
    ///
    /// # Errors
    ///
    /// - [`EventError::InvalidName`] for an empty subscriber id
    /// - [`EventError::InvalidSubject`] for an invalid subject filter, no subjects, or more than 256 subjects
    /// - [`EventError::Config`] for an option out of range
    /// - [`EventError::Unsupported`] for an option that the provider declares absent
    ///
    /// On an error, nothing is registered.
    pub async fn update_subscription(&self, filter: SubscriptionFilter) -> Result<()> {
        self.check_subscription(&filter)?;
        let wanted = if filter.durable { filter.subjects.clone() } else { Vec::new() };
        if let Some(before) = self.registry.insert(filter).filter(|before| before.durable) {
            log_no_longer_wanted(&before, &wanted);
        }
        self.metrics.record_subscribe();
        self.save_subscriptions().await;
        Ok(())
    }

    /// Opens a registered subscription and returns exactly one [`Subscription`] per subject, in order. Each receives
    /// every matching event that is published after this call returned. If subjects overlap, each subscription receives
    /// the event.
    ///
    /// Durable consumers are named `{subscriber}-{subject with '.' as '-'}`. If that name is not legal, as with
    /// wildcards, or belongs to another subject, the consumer's name ends in a hash of both. All programs that open the
    /// same subscriber and subject share the work. The first call for a subscriber warns in the log of its durable
    /// consumers of other subjects, whose lag grows.
    ///
    /// # Errors
    ///
    /// [`EventError::NotFound`] for a subscriber that is not registered; [`EventError::Config`] for validation on consume
    /// without a schema registry; otherwise same as [`update_subscription`](EventBus::update_subscription) and
    /// [`EventProvider::subscribe_durable_with_options`](crate::EventProvider::subscribe_durable_with_options).
    pub async fn create_subscriber(&self, subscriber_id: &str) -> Result<Vec<Box<dyn Subscription>>> {
        self.check_validation()?;
        let filter = self
            .registry
            .get(subscriber_id)
            .ok_or_else(|| EventError::NotFound(format!("subscription '{}'", shorten(subscriber_id))))?;
        self.check_subscription(&filter)?;
        let mut subscriptions = Vec::with_capacity(filter.subjects.len());
        for subject in &filter.subjects {
            let span = trace::subscribe_span(self.provider.name(), subscriber_id, subject);
            let subscription = self.opener().open(&filter, subject).instrument(span).await?;
            let metrics = self.metrics.consumer(subscriber_id, subject);
            subscriptions.push(Box::new(Metered::new(subscription, metrics)) as Box<dyn Subscription>);
        }
        if self.registry.is_first_look(subscriber_id) {
            // A warning is not worth a long wait.
            let _ = tokio::time::timeout(LOOK_TIMEOUT, self.opener().warn_of_others(&filter)).await;
        }
        Ok(subscriptions)
    }

    /// Removes a subscription and its durable consumers, and returns `Ok` if there is none. If the provider fails to
    /// remove a consumer, the bus logs the error.
    ///
    /// # Errors
    ///
    /// None at present.
    pub async fn remove_subscription(&self, subscriber_id: &str) -> Result<()> {
        self.metrics.record_unsubscribe();
        let Some(filter) = self.registry.remove(subscriber_id) else { return Ok(()) };
        if filter.durable {
            self.forget_consumers(subscriber_id, &filter.subjects).await;
        }
        self.metrics.forget(subscriber_id);
        self.save_subscriptions().await;
        Ok(())
    }

    /// Returns the durable consumers of a subscriber whose subjects it no longer has. They keep their positions and
    /// fall behind without end. The subscriber's subjects are those of its registered subscription, or else those that
    /// this bus has opened for it.
    ///
    /// # Errors
    ///
    /// [`EventError::NotFound`] for a subscriber that this bus does not know; otherwise same as
    /// [`consumers`](EventBus::consumers).
    pub async fn unused_consumers(&self, subscriber_id: &str) -> Result<Vec<ConsumerInfo>> {
        let wanted = self
            .registry
            .durable_subjects(subscriber_id)
            .ok_or_else(|| EventError::NotFound(format!("subscriber '{}'", shorten(subscriber_id))))?;
        let mut consumers = self.consumers_of(subscriber_id).await?;
        consumers.retain(|consumer| !wanted.contains(&consumer.filter));
        Ok(consumers)
    }

    /// Removes the [unused consumers](EventBus::unused_consumers) of a subscriber with their positions, and returns
    /// them. A running member that still has an old subject ends with an error.
    ///
    /// # Errors
    ///
    /// Same as [`unused_consumers`](EventBus::unused_consumers) and
    /// [`EventProvider::unsubscribe`](crate::EventProvider::unsubscribe). The consumers before the failed one are
    /// removed.
    pub async fn remove_unused_consumers(&self, subscriber_id: &str) -> Result<Vec<ConsumerInfo>> {
        let unused = self.unused_consumers(subscriber_id).await?;
        for consumer in &unused {
            self.within_deadline("unsubscribe", self.provider.unsubscribe(&consumer.name)).await?;
            self.registry.forget_consumer(&consumer.name);
        }
        Ok(unused)
    }

    /// Returns all registered subscriptions, in no particular order.
    pub async fn list_subscriptions(&self) -> Vec<SubscriptionFilter> {
        self.registry.all()
    }

    /// Returns the subscription of this subscriber.
    pub async fn get_subscription(&self, subscriber_id: &str) -> Option<SubscriptionFilter> {
        self.registry.get(subscriber_id)
    }

    /// Returns the stored subscriptions that were set aside as invalid, sorted by id. They stay in the store until
    /// [`update_subscription`](EventBus::update_subscription) replaces them or
    /// [`remove_subscription`](EventBus::remove_subscription) removes them.
    pub fn invalid_subscriptions(&self) -> Vec<InvalidSubscription> {
        self.registry.set_aside()
    }

    /// Returns the durable consumers of a subscriber, including those that another bus opened. Their filters are its
    /// subjects.
    ///
    /// # Errors
    ///
    /// Same as [`consumers`](EventBus::consumers).
    pub async fn consumers_of(&self, subscriber_id: &str) -> Result<Vec<ConsumerInfo>> {
        let mut consumers = self.consumers().await?;
        consumers.retain(|consumer| {
            consumer.durable && is_name_of(&consumer.name, subscriber_id, &consumer.filter)
        });
        Ok(consumers)
    }

    /// Returns the id of the subscriber that a bus opened this durable consumer for: the reverse of
    /// [`consumers_of`](EventBus::consumers_of), which also finds the consumers that other buses opened.
    ///
    /// The id is verified: the bus gives exactly this name to a consumer of that subscriber and the filter. Returns
    /// `None` for an ephemeral consumer, for one that was named by hand, and for an id that mixes several special
    /// characters, because the name does not contain them.
    ///
    /// ```
    /// use a3s_event::{EventBus, EventProvider, MemoryProvider, SubscriptionFilter};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> a3s_event::Result<()> {
    /// let bus = EventBus::new(MemoryProvider::default());
    /// let subscription = SubscriptionFilter {
    ///     subscriber_id: "billing".to_owned(),
    ///     subjects: vec!["events.orders.>".to_owned()],
    ///     durable: true,
    ///     options: None,
    /// };
    /// bus.update_subscription(subscription).await?;
    /// let _open = bus.create_subscriber("billing").await?;
    /// let consumer = &bus.consumers().await?[0];
    /// assert!(consumer.name.starts_with("billing-events-orders---"));
    /// assert_eq!(EventBus::subscriber_of(consumer).as_deref(), Some("billing"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn subscriber_of(consumer: &ConsumerInfo) -> Option<String> {
        if !consumer.durable {
            return None;
        }
        subscriber_in_name(&consumer.name, &consumer.filter)
    }

    async fn save_subscriptions(&self) {
        if let Some(store) = &self.state_store {
            self.registry.save(Arc::clone(store)).await;
        }
    }

    pub(super) fn check_subscription(&self, filter: &SubscriptionFilter) -> Result<()> {
        if filter.subscriber_id.is_empty() {
            let rule = "must not be empty".to_owned();
            return Err(EventError::InvalidName { field: "subscriber_id", value: String::new(), rule });
        }
        if !(1..=MAX_SUBJECTS).contains(&filter.subjects.len()) {
            let rule = format!("a subscription must have between 1 and {MAX_SUBJECTS} subjects");
            let value = format!("{} subjects", filter.subjects.len());
            return Err(EventError::InvalidSubject { field: "filter", value, rule });
        }
        let capabilities = self.provider.capabilities();
        let options = filter.options.clone().unwrap_or_default();
        if filter.durable && capabilities.durable.is_no() {
            return Err(unsupported("durable", self.provider.name()));
        }
        capabilities.check_subscribe(self.provider.name(), &options)?;
        for subject in &filter.subjects {
            ConsumerConfig::new(subject, &options)?;
        }
        self.warn_of_undeclared(None, Some(&options));
        Ok(())
    }

    /// Removes the durable consumers of a subscriber, but not another subscriber's consumer with the same plain name.
    pub(crate) async fn forget_consumers(&self, subscriber_id: &str, subjects: &[String]) {
        let known = match self.consumers().await {
            Ok(consumers) => Some(consumers),
            Err(EventError::Unsupported { .. }) => None,
            Err(error) => {
                tracing::warn!(subscriber = subscriber_id, %error, "listing consumers failed; those of the subscriber remain");
                return;
            }
        };
        for subject in subjects {
            let distinct = distinct_name(subscriber_id, subject);
            let name = self.registry.consumer_name(subscriber_id, subject);
            let is_another_s = |consumer: &ConsumerInfo| consumer.name == name && consumer.filter != *subject;
            if name != distinct && known.as_ref().is_none_or(|known| !known.iter().any(is_another_s)) {
                self.unsubscribe(subscriber_id, &name).await;
            }
            // Another bus may have used the distinct name because the plain one was taken.
            let may_exist =
                |known: &Vec<ConsumerInfo>| known.iter().any(|consumer| consumer.name == distinct);
            if name == distinct || known.as_ref().is_some_and(may_exist) {
                self.unsubscribe(subscriber_id, &distinct).await;
            }
            self.registry.forget_consumer(&name);
        }
    }

    async fn unsubscribe(&self, subscriber: &str, consumer: &str) {
        if let Err(error) = self.within_deadline("unsubscribe", self.provider.unsubscribe(consumer)).await {
            tracing::warn!(subscriber, consumer, %error, "deleting the consumer failed");
        }
    }
}

/// Logs the subjects that a replaced subscription had and its replacement lacks.
fn log_no_longer_wanted(before: &SubscriptionFilter, wanted: &[String]) {
    let unused: Vec<_> = before.subjects.iter().filter(|subject| !wanted.contains(subject)).collect();
    if !unused.is_empty() {
        tracing::warn!(
            subscriber = shorten(&before.subscriber_id),
            subjects = ?unused,
            "subjects were removed from a subscription; their durable consumers remain and fall behind until \
             remove_unused_consumers deletes them"
        );
    }
}
