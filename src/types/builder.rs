//! Builder of events.

use serde_json::Value;

use super::Event;

/// Builds an [`Event`] field by field.
///
/// ```
/// use a3s_event::Event;
/// use serde_json::json;
///
/// let event = Event::builder("events.orders.placed")
///     .event_type("order.placed", 2)
///     .source("shop")
///     .summary("an order was placed")
///     .payload(json!({"total": 4_750}))
///     .metadata("region", "eu")
///     .build();
/// assert_eq!((event.category.as_str(), event.version), ("orders", 2));
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct EventBuilder {
    event: Event,
}

impl Event {
    /// Returns the builder of an event with this subject. The event gets a new id and the current time. Its category is
    /// the second token of the subject, its payload is `null`, and its other fields are empty.
    pub fn builder(subject: impl Into<String>) -> EventBuilder {
        let subject = subject.into();
        let category = subject.split('.').nth(1).unwrap_or_default().to_owned();
        EventBuilder { event: Self::new(subject, category, "", "", Value::Null) }
    }
}

impl EventBuilder {
    /// Sets the id, for instance an id of your own by which a repeated publish is recognized.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.event.id = id.into();
        self
    }

    /// Sets the category. Needed if the subject prefix has more than one token.
    pub fn category(mut self, category: impl Into<String>) -> Self {
        self.event.category = category.into();
        self
    }

    /// Sets the type of the event and the version of its schema.
    pub fn event_type(mut self, event_type: impl Into<String>, version: u32) -> Self {
        self.event.event_type = event_type.into();
        self.event.version = version;
        self
    }

    /// Sets the payload.
    pub fn payload(mut self, payload: impl Into<Value>) -> Self {
        self.event.payload = payload.into();
        self
    }

    /// Sets the one-line description for people.
    pub fn summary(mut self, summary: impl Into<String>) -> Self {
        self.event.summary = summary.into();
        self
    }

    /// Sets the producer.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.event.source = source.into();
        self
    }

    /// Sets the time at which the event happened, in Unix milliseconds.
    pub fn timestamp(mut self, unix_ms: u64) -> Self {
        self.event.timestamp = unix_ms;
        self
    }

    /// Sets one metadata entry, replacing an earlier one with the same key.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.event.metadata.insert(key.into(), value.into());
        self
    }

    /// Returns the event.
    #[must_use]
    pub fn build(self) -> Event {
        self.event
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn every_field_can_be_set() {
        let built = Event::builder("shop.eu.orders.placed")
            .id("order-7")
            .category("orders")
            .event_type("order.placed", 3)
            .payload(json!({"total": 1}))
            .summary("placed")
            .source("web")
            .timestamp(1_517_966_773_840)
            .metadata("a", "1")
            .metadata("a", "2")
            .build();
        let literal = Event {
            id: "order-7".to_owned(),
            subject: "shop.eu.orders.placed".to_owned(),
            category: "orders".to_owned(),
            event_type: "order.placed".to_owned(),
            version: 3,
            payload: json!({"total": 1}),
            summary: "placed".to_owned(),
            source: "web".to_owned(),
            timestamp: 1_517_966_773_840,
            metadata: HashMap::from([("a".to_owned(), "2".to_owned())]),
        };
        assert_eq!(serde_json::to_value(built).unwrap(), serde_json::to_value(literal).unwrap());
    }

    #[test]
    fn the_defaults_are_those_of_an_untyped_event() {
        let event = Event::builder("events.orders.placed").build();
        assert_eq!((event.category.as_str(), event.event_type.as_str(), event.version), ("orders", "", 1));
        assert!(event.id.starts_with("evt-") && event.timestamp > 0 && event.payload.is_null());
        assert_eq!(Event::builder("events").build().category, "");
    }
}
