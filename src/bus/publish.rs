//! Publishing through the bus.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use tracing::Instrument;

use super::EventBus;
use crate::crypto::sealed_error;
use crate::error::{EncryptionFailure, EventError, Result};
use crate::provider::validate::{validate_payload, validate_publish_options};
use crate::provider::{PublishReceipt, PublishRequest};
use crate::subject::{validate_category, validate_subject};
use crate::task::in_time;
use crate::trace;
use crate::types::{Event, PublishOptions};

impl EventBus {
    /// Publishes under `{prefix}.{category}.{topic}` and returns the event as stored. With an encryptor, its payload is
    /// the encrypted envelope.
    ///
    /// # Errors
    ///
    /// [`EventError::InvalidName`] for a category that is not one token; otherwise same as
    /// [`publish_event`](EventBus::publish_event).
    pub async fn publish(
        &self,
        category: &str,
        topic: &str,
        summary: &str,
        source: &str,
        payload: serde_json::Value,
    ) -> Result<Event> {
        validate_category(category).inspect_err(|error| self.count_failure(error))?;
        let subject = self.provider.build_subject(category, topic);
        let event = Event::new(subject, category, summary, source, payload);
        let (_, stored) = self.publish_traced(&event, &PublishOptions::default()).await?;
        let encrypted = match stored {
            Cow::Owned(encrypted) => Some(encrypted),
            Cow::Borrowed(_) => None,
        };
        Ok(encrypted.unwrap_or(event))
    }

    /// Publishes an event and returns its sequence.
    ///
    /// The bus checks the subject and validates the payload against its schema. It then encrypts a copy, adds the
    /// current [trace context](crate::trace), stores the event, and routes it through the broker.
    ///
    /// If the call fails, [`may_be_stored`](EventError::may_be_stored) tells whether the event may have been stored. A
    /// retry with a `msg_id` is then safe.
    ///
    /// # Errors
    ///
    /// [`EventError::SchemaValidation`], the encryptor's error, [`EventError::Timeout`], and the errors of
    /// [`EventProvider::publish`](crate::EventProvider::publish). A payload that is encrypted already, on a bus without
    /// an encryptor, fails as [`EventError::Encryption`] if its type has a schema that refuses the envelope.
    pub async fn publish_event(&self, event: &Event) -> Result<u64> {
        Ok(self.publish_traced(event, &PublishOptions::default()).await?.0.sequence)
    }

    /// Publishes an event with options and returns its sequence. For a duplicate `msg_id`, returns the first event's
    /// sequence.
    ///
    /// # Errors
    ///
    /// Same as [`publish_event`](EventBus::publish_event), and:
    ///
    /// - [`EventError::Unsupported`], before any I/O, for an option that the provider declares absent
    /// - [`EventError::Conflict`] if `expected_sequence` is not the stream's last sequence
    pub async fn publish_event_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        Ok(self.publish_event_with_receipt(event, opts).await?.sequence)
    }

    /// Publishes an event with options and returns a receipt that tells a duplicate from a first publish. A duplicate
    /// is neither stored nor routed to triggers, because the first publish already was.
    ///
    /// ```
    /// use a3s_event::{Event, EventBus, PublishOptions};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> a3s_event::Result<()> {
    /// let bus = EventBus::connect("memory://").await?;
    /// let order = Event::new("events.orders.placed", "orders", "", "shop", serde_json::json!({ "id": 7 }));
    /// let options = PublishOptions { msg_id: Some("order-7".to_owned()), ..PublishOptions::default() };
    /// let first = bus.publish_event_with_receipt(&order, &options).await?;
    /// let again = bus.publish_event_with_receipt(&order, &options).await?;
    /// assert!(!first.duplicate && again.duplicate);
    /// assert_eq!(first.sequence, again.sequence);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Same as [`publish_event_with_options`](EventBus::publish_event_with_options).
    pub async fn publish_event_with_receipt(
        &self,
        event: &Event,
        opts: &PublishOptions,
    ) -> Result<PublishReceipt> {
        Ok(self.publish_traced(event, opts).await?.0)
    }

    /// Publishes many events and returns one result per event, in order. A failed event does not stop the events after
    /// it.
    pub async fn publish_batch(&self, events: &[Event]) -> Vec<Result<PublishReceipt>> {
        let requests: Vec<_> = events.iter().map(PublishRequest::from).collect();
        self.publish_batch_with_options(&requests).await
    }

    /// Publishes many events with their own options and returns one result per event, in order.
    pub async fn publish_batch_with_options(
        &self,
        batch: &[PublishRequest<'_>],
    ) -> Vec<Result<PublishReceipt>> {
        let span = trace::batch_span(self.provider.name(), batch.len());
        self.store_batch(batch).instrument(span).await
    }

    /// Publishes in a span that covers the whole call.
    async fn publish_traced<'a>(
        &self,
        event: &'a Event,
        options: &PublishOptions,
    ) -> Result<(PublishReceipt, Cow<'a, Event>)> {
        let start = Instant::now();
        let span = trace::publish_span(self.provider.name(), event);
        let result = self.store_and_route(event, options, start).instrument(span.clone()).await;
        if let Err(error) = &result {
            self.count_failure(error);
            trace::record_error(&span, error);
        }
        result
    }

    async fn store_and_route<'a>(
        &self,
        event: &'a Event,
        options: &PublishOptions,
        start: Instant,
    ) -> Result<(PublishReceipt, Cow<'a, Event>)> {
        self.check_publish(event, options)?;
        let mut stored = self.sealed(event)?;
        trace::inject(&mut stored);
        let deadline = self.publish_timeout(options);
        let call = self.provider.publish_with_receipt(&stored, options);
        let answered = in_time(deadline, call).await;
        let receipt = answered.unwrap_or_else(|| Err(self.no_answer(&stored.id, deadline)))?;
        self.metrics.record_publish(start);
        #[cfg(feature = "routing")]
        if let Some(router) = self.router().filter(|_| !receipt.duplicate) {
            router.route_published(&[(event, &*stored)]).await;
        }
        Ok((receipt, stored))
    }

    /// Runs all checks that need no I/O, cheapest first.
    fn check_publish(&self, event: &Event, options: &PublishOptions) -> Result<()> {
        validate_subject(&event.subject)?;
        validate_publish_options(options)?;
        self.provider.capabilities().check_publish(self.provider.name(), options)?;
        self.warn_of_undeclared(Some(options), None);
        let Some(registry) = &self.schema_registry else { return Ok(()) };
        registry.validate(event).map_err(|error| {
            // An envelope that another bus sealed says nothing about its payload.
            let sealed = if self.encryptor.is_none() { sealed_error(&event.payload) } else { None };
            sealed.unwrap_or(error)
        })
    }

    /// Counts a failed publish once. A schema violation, or a payload that cannot be validated, counts as a validation
    /// error, because the provider did not fail.
    fn count_failure(&self, error: &EventError) {
        match error {
            EventError::SchemaValidation { .. }
            | EventError::Encryption { failure: EncryptionFailure::NoEncryptor, .. } => {
                self.metrics.record_validation_error();
            }
            _ => self.metrics.record_publish_error(),
        }
    }

    /// Returns the event to store: with an encryptor, a copy with an encrypted payload.
    fn sealed<'a>(&self, event: &'a Event) -> Result<Cow<'a, Event>> {
        let Some(encryptor) = &self.encryptor else { return Ok(Cow::Borrowed(event)) };
        validate_payload(&event.payload)?;
        let payload = encryptor.encrypt_event(event)?;
        self.metrics.record_encrypt();
        Ok(Cow::Owned(Event {
            id: event.id.clone(),
            subject: event.subject.clone(),
            category: event.category.clone(),
            event_type: event.event_type.clone(),
            version: event.version,
            payload,
            summary: event.summary.clone(),
            source: event.source.clone(),
            timestamp: event.timestamp,
            metadata: event.metadata.clone(),
        }))
    }

    async fn store_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<PublishReceipt>> {
        let start = Instant::now();
        let sealed: Vec<Result<Cow<'_, Event>>> = batch
            .iter()
            .map(|entry| {
                self.check_publish(entry.event, &entry.options)?;
                let mut stored = self.sealed(entry.event)?;
                trace::inject(&mut stored);
                Ok(stored)
            })
            .collect();
        let ready: Vec<PublishRequest<'_>> = batch
            .iter()
            .zip(&sealed)
            .filter_map(|(entry, sealed)| {
                Some(PublishRequest::new(sealed.as_ref().ok()?, entry.options.clone()))
            })
            .collect();
        let answers = self.send_batch(&ready).await;
        self.route_stored(batch, &sealed, &answers).await;
        drop(ready);
        let results = merge(sealed, answers);
        for result in &results {
            match result {
                Ok(_) => self.metrics.record_publish(start),
                Err(error) => self.count_failure(error),
            }
        }
        results
    }

    async fn send_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<PublishReceipt>> {
        let Some(deadline) = batch.iter().map(|entry| self.publish_timeout(&entry.options)).max() else {
            return Vec::new();
        };
        match in_time(deadline, self.provider.publish_batch(batch)).await {
            Some(answers) => answers,
            None => batch.iter().map(|entry| Err(self.no_answer(&entry.event.id, deadline))).collect(),
        }
    }

    #[cfg_attr(
        not(feature = "routing"),
        allow(clippy::unused_async, reason = "without routing, nothing is awaited")
    )]
    async fn route_stored(
        &self,
        batch: &[PublishRequest<'_>],
        sealed: &[Result<Cow<'_, Event>>],
        answers: &[Result<PublishReceipt>],
    ) {
        #[cfg(feature = "routing")]
        if let Some(router) = self.router() {
            let sent = batch.iter().zip(sealed).filter_map(|(entry, sealed)| {
                let stored: &Event = sealed.as_ref().ok()?;
                Some((entry.event, stored))
            });
            let is_new =
                |answer: &Result<PublishReceipt>| answer.as_ref().is_ok_and(|receipt| !receipt.duplicate);
            let stored = sent.zip(answers).filter(|(_, answer)| is_new(answer)).map(|(sent, _)| sent);
            router.route_published(&stored.collect::<Vec<_>>()).await;
        }
        #[cfg(not(feature = "routing"))]
        let _ = (batch, sealed, answers);
    }

    fn publish_timeout(&self, options: &PublishOptions) -> Duration {
        options.timeout_secs.map_or(self.operation_timeout, Duration::from_secs)
    }

    fn no_answer(&self, id: &str, deadline: Duration) -> EventError {
        EventError::Timeout(format!(
            "publish of event '{}' on provider '{}' did not complete within {deadline:?}; it may have been stored",
            crate::text::shorten(id),
            self.provider.name()
        ))
    }
}

/// Merges the provider's answers with the errors of the entries that were not sent.
fn merge(
    sealed: Vec<Result<Cow<'_, Event>>>,
    answers: Vec<Result<PublishReceipt>>,
) -> Vec<Result<PublishReceipt>> {
    let mut answers = answers.into_iter();
    sealed
        .into_iter()
        .map(|sealed| {
            sealed?;
            answers.next().unwrap_or_else(|| {
                Err(EventError::Provider("publish_batch returned fewer results than events".to_owned()))
            })
        })
        .collect()
}
