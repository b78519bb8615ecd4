//! Events, received events, and the options of a publish and a subscription.
//!
//! These types perform no I/O. Their serde form is camelCase and part of the compatibility contract.

mod builder;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

pub use self::builder::EventBuilder;
use crate::clock::unix_millis;
use crate::random;

/// One event: the envelope that every provider stores and delivers.
///
/// You can write the struct as a literal, because it never gains a field. Later versions put additional data into
/// [`metadata`](Event::metadata).
///
/// ```
/// use a3s_event::Event;
///
/// let event = Event::new("events.market.forex", "market", "USD/CNY moved", "reuters", serde_json::json!({"rate": 7.35}))
///     .with_metadata("region", "eu");
/// assert!(event.id.starts_with("evt-"));
/// assert_eq!(event.version, 1);
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Free-form id of the event. The constructors generate `evt-` followed by a UUIDv7.
    pub id: String,
    /// Subject under which the event is published, for instance `events.market.forex`.
    pub subject: String,
    /// Category: the token after the prefix, for grouping.
    pub category: String,
    /// Type of the event in the application; empty for an untyped event.
    #[serde(default)]
    pub event_type: String,
    /// Version of the schema of `event_type`; 1 by default.
    #[serde(default = "first_version")]
    pub version: u32,
    /// Content of the event.
    pub payload: serde_json::Value,
    /// One-line description for people.
    pub summary: String,
    /// Producer of the event.
    pub source: String,
    /// Time at which the event happened, in Unix milliseconds. Time-based replay uses the time of *storage* instead.
    pub timestamp: u64,
    /// Arbitrary key-value pairs that travel with the event.
    #[serde(default)]
    pub metadata: HashMap<String, String>,
}

fn first_version() -> u32 {
    1
}

impl Event {
    /// Creates an untyped event with a new id and the current time.
    pub fn new(
        subject: impl Into<String>,
        category: impl Into<String>,
        summary: impl Into<String>,
        source: impl Into<String>,
        payload: serde_json::Value,
    ) -> Self {
        Self::typed(subject, category, "", first_version(), summary, source, payload)
    }

    /// Creates an event of the given type and schema version, with a new id and the current time.
    /// [`builder`](Event::builder) does the same with named fields.
    pub fn typed(
        subject: impl Into<String>,
        category: impl Into<String>,
        event_type: impl Into<String>,
        version: u32,
        summary: impl Into<String>,
        source: impl Into<String>,
        payload: serde_json::Value,
    ) -> Self {
        Self {
            id: format!("evt-{}", random::id()),
            subject: subject.into(),
            category: category.into(),
            event_type: event_type.into(),
            version,
            payload,
            summary: summary.into(),
            source: source.into(),
            timestamp: unix_millis(),
            metadata: HashMap::new(),
        }
    }

    /// Sets a metadata entry, replacing an earlier one with the same key.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }
}

/// An event as a subscriber receives it.
#[derive(Debug, Clone)]
pub struct ReceivedEvent {
    /// The event.
    pub event: Event,
    /// Sequence of the event in the stream, as returned by `publish`.
    pub sequence: u64,
    /// Number of this delivery to this consumer, starting at 1.
    pub num_delivered: u64,
    /// Name of the stream that holds the event.
    pub stream: String,
}

/// A subscription as the bus stores it: the subscriber, its subjects and its options.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionFilter {
    /// Name of the subscriber. The names of its durable consumers begin with it.
    pub subscriber_id: String,
    /// Subject filters; each one is a separate subscription.
    pub subjects: Vec<String>,
    /// If true, the position survives a disconnect.
    pub durable: bool,
    /// Options of the consumers. If `None`, a new consumer gets the defaults of [`SubscribeOptions`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<SubscribeOptions>,
}

/// Numbers of events, per category and in total.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventCounts {
    /// Number of events per category.
    pub categories: HashMap<String, u64>,
    /// Number of events in all categories.
    pub total: u64,
}

/// Start position of a new consumer. An existing durable consumer keeps its position.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum DeliverPolicy {
    /// All retained events, then newly published ones. The default.
    #[default]
    All,
    /// The newest retained match, then newly published events.
    Last,
    /// Only newly published events.
    New,
    /// Events from this sequence on.
    ByStartSequence {
        /// First sequence to deliver, at least 1.
        sequence: u64,
    },
    /// Events from the first one that was *stored* at this time or later.
    ByStartTime {
        /// Start time in Unix milliseconds.
        timestamp: u64,
    },
    /// The newest retained event of each matching subject, then newly published events.
    LastPerSubject,
}

/// Options of a publish.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishOptions {
    /// Deduplication id. A second publish with the same id within the deduplication window (120 s unless configured)
    /// stores nothing and returns the sequence of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msg_id: Option<String>,
    /// Expected last sequence of the stream. If it differs, the publish fails with a conflict and stores nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_sequence: Option<u64>,
    /// Timeout of the call in seconds. The default is the timeout of the provider, 10 s unless configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
}

/// Options of a consumer. The defaults are the same on every provider.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscribeOptions {
    /// Maximum number of deliveries of one event; unlimited by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_deliver: Option<i64>,
    /// Delays before the redelivery of a nacked event, in seconds, one entry per attempt. The last entry repeats. If
    /// empty, a nacked event is redelivered at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backoff_secs: Vec<u64>,
    /// Maximum number of unacknowledged events; 1,000 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ack_pending: Option<i64>,
    /// Start position of a new consumer.
    #[serde(default)]
    pub deliver_policy: DeliverPolicy,
    /// Lease of a delivery in seconds; 30 by default. An event that is still unsettled when its lease expires is
    /// redelivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_wait_secs: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn event_serializes_to_the_promised_keys_in_order() {
        let event = Event {
            id: "evt-1".into(),
            subject: "events.a.b".into(),
            category: "a".into(),
            event_type: "t".into(),
            version: 2,
            payload: json!({"x": 1}),
            summary: "s".into(),
            source: "src".into(),
            timestamp: 5,
            metadata: HashMap::from([("k".into(), "v".into())]),
        };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"id":"evt-1","subject":"events.a.b","category":"a","eventType":"t","version":2,"payload":{"x":1},"summary":"s","source":"src","timestamp":5,"metadata":{"k":"v"}}"#
        );
    }

    #[test]
    fn event_fields_that_may_be_absent_have_their_defaults() {
        let event: Event = serde_json::from_value(json!({
            "id": "i", "subject": "s", "category": "c", "payload": null, "summary": "", "source": "", "timestamp": 0
        }))
        .unwrap();
        assert_eq!((event.event_type.as_str(), event.version, event.metadata.len()), ("", 1, 0));
    }

    #[test]
    fn event_ids_are_version_7_and_ordered_by_time() {
        let ids: Vec<String> =
            (0..100).map(|_| Event::new("events.a", "a", "", "", json!(null)).id).collect();
        let mut sorted = ids.clone();
        sorted.sort();
        assert_eq!(ids, sorted);
        assert_eq!(ids[0].as_bytes()["evt-".len() + 14], b'7');
    }

    #[test]
    fn deliver_policies_have_their_promised_json() {
        for (policy, expected) in [
            (DeliverPolicy::All, json!({"type": "all"})),
            (DeliverPolicy::Last, json!({"type": "last"})),
            (DeliverPolicy::New, json!({"type": "new"})),
            (
                DeliverPolicy::ByStartSequence { sequence: 100 },
                json!({"type": "byStartSequence", "sequence": 100}),
            ),
            (DeliverPolicy::ByStartTime { timestamp: 7 }, json!({"type": "byStartTime", "timestamp": 7})),
            (DeliverPolicy::LastPerSubject, json!({"type": "lastPerSubject"})),
        ] {
            assert_eq!(serde_json::to_value(&policy).unwrap(), expected);
            assert_eq!(serde_json::from_value::<DeliverPolicy>(expected).unwrap(), policy);
        }
    }

    #[test]
    fn options_skip_what_is_not_set() {
        assert_eq!(serde_json::to_value(PublishOptions::default()).unwrap(), json!({}));
        assert_eq!(
            serde_json::to_value(SubscribeOptions::default()).unwrap(),
            json!({"deliverPolicy": {"type": "all"}})
        );
        let full = SubscribeOptions {
            max_deliver: Some(3),
            backoff_secs: vec![1, 2],
            max_ack_pending: Some(4),
            deliver_policy: DeliverPolicy::New,
            ack_wait_secs: Some(5),
        };
        assert_eq!(
            serde_json::to_value(&full).unwrap(),
            json!({"maxDeliver": 3, "backoffSecs": [1, 2], "maxAckPending": 4, "deliverPolicy": {"type": "new"}, "ackWaitSecs": 5})
        );
        let publish =
            PublishOptions { msg_id: Some("m".into()), expected_sequence: Some(1), timeout_secs: Some(2) };
        assert_eq!(
            serde_json::to_value(&publish).unwrap(),
            json!({"msgId": "m", "expectedSequence": 1, "timeoutSecs": 2})
        );
    }

    #[test]
    fn subscription_filter_reads_the_form_without_options() {
        let filter: SubscriptionFilter =
            serde_json::from_value(json!({"subscriberId": "a", "subjects": ["events.>"], "durable": true}))
                .unwrap();
        assert!(filter.options.is_none());
        assert_eq!(
            serde_json::to_value(&filter).unwrap(),
            json!({"subscriberId": "a", "subjects": ["events.>"], "durable": true})
        );
    }
}
