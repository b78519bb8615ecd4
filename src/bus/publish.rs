//! Publishing through the bus.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use tracing::Instrument;

use super::{EventBus, within};
use crate::error::{EventError, Result};
use crate::provider::PublishRequest;
use crate::provider::validate::{validate_payload, validate_publish_options};
use crate::subject::{validate_category, validate_subject};
use crate::trace;
use crate::types::{Event, PublishOptions};

impl EventBus {
    /// Publishes under `{prefix}.{category}.{topic}` and returns the event as it was stored: with an encryptor its
    /// payload is the encrypted envelope.
    ///
    /// # Errors
    ///
    /// [`EventError::InvalidName`] for a category that is not one token; otherwise as
    /// [`publish_event`](EventBus::publish_event).
    pub async fn publish(
        &self,
        category: &str,
        topic: &str,
        summary: &str,
        source: &str,
        payload: serde_json::Value,
    ) -> Result<Event> {
        validate_category(category).inspect_err(|_| self.metrics.record_publish_error())?;
        let subject = self.provider.build_subject(category, topic);
        let event = Event::new(subject, category, summary, source, payload);
        let (_, stored) = self.publish_traced(&event, None).await?;
        let encrypted = match stored {
            Cow::Owned(encrypted) => Some(encrypted),
            Cow::Borrowed(_) => None,
        };
        Ok(encrypted.unwrap_or(event))
    }

    /// Publishes an event and returns its sequence.
    ///
    /// The order is: check the subject, validate the payload against its schema, encrypt a copy, add the current
    /// [trace context](crate::trace), store, route through the broker. When the call fails, [`may_be_stored`](EventError::may_be_stored) says whether the event may have
    /// been stored; a retry with a `msg_id` is then safe.
    ///
    /// # Errors
    ///
    /// [`EventError::SchemaValidation`], the encryptor's error, [`EventError::Timeout`], and as
    /// [`EventProvider::publish`](crate::EventProvider::publish).
    pub async fn publish_event(&self, event: &Event) -> Result<u64> {
        Ok(self.publish_traced(event, None).await?.0)
    }

    /// Publishes an event with options and returns its sequence, or for a duplicate `msg_id` the first one's.
    ///
    /// # Errors
    ///
    /// As [`publish_event`](EventBus::publish_event); [`EventError::Unsupported`] before any I/O for an option that the
    /// provider declares absent; [`EventError::Conflict`] when `expected_sequence` is not the stream's last sequence.
    pub async fn publish_event_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        Ok(self.publish_traced(event, Some(opts)).await?.0)
    }

    /// Publishes many events and returns one result per event, in order. An event that fails does not stop the ones
    /// behind it.
    pub async fn publish_batch(&self, events: &[Event]) -> Vec<Result<u64>> {
        let requests: Vec<_> = events.iter().map(PublishRequest::from).collect();
        self.publish_batch_with_options(&requests).await
    }

    /// Publishes many events with options each and returns one result per event, in order.
    pub async fn publish_batch_with_options(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<u64>> {
        let span = trace::batch_span(self.provider.name(), batch.len());
        self.store_batch(batch).instrument(span).await
    }

    /// Publishes under a span that covers the whole work.
    async fn publish_traced<'a>(
        &self,
        event: &'a Event,
        options: Option<&PublishOptions>,
    ) -> Result<(u64, Cow<'a, Event>)> {
        let start = Instant::now();
        let span = trace::publish_span(self.provider.name(), event);
        let result = self.store_and_route(event, options, start).instrument(span.clone()).await;
        if let Err(error) = &result {
            self.metrics.record_publish_error();
            trace::record_error(&span, error);
        }
        result
    }

    async fn store_and_route<'a>(
        &self,
        event: &'a Event,
        options: Option<&PublishOptions>,
        start: Instant,
    ) -> Result<(u64, Cow<'a, Event>)> {
        self.check_publish(event, options)?;
        let mut stored = self.sealed(event)?;
        trace::inject(&mut stored);
        let deadline = self.publish_deadline(options);
        let sequence = self.store(&stored, options, deadline).await?;
        self.metrics.record_publish(start);
        #[cfg(feature = "routing")]
        if let Some(broker) = &self.broker {
            broker.route_published(event, &stored).await;
        }
        Ok((sequence, stored))
    }

    /// Everything that can be refused without I/O, from the cheapest to the dearest.
    fn check_publish(&self, event: &Event, options: Option<&PublishOptions>) -> Result<()> {
        validate_subject(&event.subject)?;
        if let Some(options) = options {
            validate_publish_options(options)?;
            self.provider.capabilities().check_publish(self.provider.name(), options)?;
            self.warn_of_undeclared(Some(options), None);
        }
        match &self.schema_registry {
            Some(registry) => {
                registry.validate(event).inspect_err(|_| self.metrics.record_validation_error())
            }
            None => Ok(()),
        }
    }

    /// The event as it is to be stored: with an encryptor, a copy with an encrypted payload.
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

    async fn store(
        &self,
        event: &Event,
        options: Option<&PublishOptions>,
        deadline: Duration,
    ) -> Result<u64> {
        let call = match options {
            Some(options) => self.provider.publish_with_options(event, options),
            None => self.provider.publish(event),
        };
        within(deadline, call).await.unwrap_or_else(|| Err(self.no_answer(&event.id, deadline)))
    }

    async fn store_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<u64>> {
        let start = Instant::now();
        let sealed: Vec<Result<Cow<'_, Event>>> = batch
            .iter()
            .map(|entry| {
                self.check_publish(entry.event, Some(&entry.options))?;
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
                Err(_) => self.metrics.record_publish_error(),
            }
        }
        results
    }

    async fn send_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<u64>> {
        let Some(deadline) = batch.iter().map(|entry| self.publish_deadline(Some(&entry.options))).max()
        else {
            return Vec::new();
        };
        match within(deadline, self.provider.publish_batch(batch)).await {
            Some(answers) => answers,
            None => batch.iter().map(|entry| Err(self.no_answer(&entry.event.id, deadline))).collect(),
        }
    }

    #[cfg_attr(
        not(feature = "routing"),
        allow(clippy::unused_async, reason = "there is nothing to route to")
    )]
    async fn route_stored(
        &self,
        batch: &[PublishRequest<'_>],
        sealed: &[Result<Cow<'_, Event>>],
        answers: &[Result<u64>],
    ) {
        #[cfg(feature = "routing")]
        if let Some(broker) = &self.broker {
            let sent = batch.iter().zip(sealed).filter_map(|(entry, sealed)| {
                let stored: &Event = sealed.as_ref().ok()?;
                Some((entry.event, stored))
            });
            let stored = sent.zip(answers).filter(|(_, answer)| answer.is_ok()).map(|(sent, _)| sent);
            broker.route_batch(stored).await;
        }
        #[cfg(not(feature = "routing"))]
        let _ = (batch, sealed, answers);
    }

    fn publish_deadline(&self, options: Option<&PublishOptions>) -> Duration {
        options.and_then(|options| options.timeout_secs).map_or(self.operation_timeout, Duration::from_secs)
    }

    fn no_answer(&self, id: &str, deadline: Duration) -> EventError {
        EventError::Timeout(format!(
            "publish of event '{}' on provider '{}' gave no answer within {deadline:?}; it may have been stored",
            crate::error::shorten(id),
            self.provider.name()
        ))
    }
}

/// Puts the provider's answers back among the entries that never got there.
fn merge(sealed: Vec<Result<Cow<'_, Event>>>, answers: Vec<Result<u64>>) -> Vec<Result<u64>> {
    let mut answers = answers.into_iter();
    sealed
        .into_iter()
        .map(|sealed| {
            sealed?;
            answers
                .next()
                .unwrap_or_else(|| Err(EventError::Provider("publish_batch gave too few answers".to_owned())))
        })
        .collect()
}
