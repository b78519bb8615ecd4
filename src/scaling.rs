//! Scaling messages between a gateway, which sees the traffic, and the boxes, which run the instances.
//!
//! Each message is a typed payload with one event type. The event types and the camelCase JSON of the payloads are a
//! wire contract and never change.

use serde::{Deserialize, Serialize};

use crate::types::Event;

/// Event type of [`ScaleUpPayload`].
pub const SCALE_UP: &str = "a3s.gateway.scale.up";
/// Event type of [`ScaleDownPayload`].
pub const SCALE_DOWN: &str = "a3s.gateway.scale.down";
/// Event type of [`InstanceReadyPayload`].
pub const INSTANCE_READY: &str = "a3s.box.instance.ready";
/// Event type of [`InstanceStoppedPayload`].
pub const INSTANCE_STOPPED: &str = "a3s.box.instance.stopped";
/// Event type of [`InstanceHealthPayload`].
pub const INSTANCE_HEALTH: &str = "a3s.box.instance.health";

const GATEWAY: &str = "gateway";
const BOX: &str = "box";

/// Version of all scaling payloads.
const PAYLOAD_VERSION: u32 = 1;

/// A payload that can build its event.
///
/// ```
/// use a3s_event::{ScaleUpPayload, ScalingEvent};
///
/// let payload = ScaleUpPayload { service: "api".into(), desired_replicas: 3, reason: "queue depth".into() };
/// let event = payload.to_event("scale api to 3");
/// assert_eq!(event.subject, "events.gateway.scale.up");
/// assert_eq!(event.payload["desiredReplicas"], 3);
/// ```
pub trait ScalingEvent: Serialize {
    /// Returns the event type, for instance [`SCALE_UP`].
    fn event_type() -> &'static str;

    /// Returns the sender: `gateway` or `box`.
    fn event_source() -> &'static str;

    /// Returns the category of the event.
    fn category() -> &'static str;

    /// Builds the event for a stream with the default prefix `events`. Its subject is the event type with the leading
    /// `a3s.` replaced by `events.`. Its version is 1.
    fn to_event(&self, summary: impl Into<String>) -> Event {
        self.to_event_under("events", summary)
    }

    /// Builds the event for a stream with another subject prefix.
    ///
    /// If a payload cannot be serialized to JSON, it becomes `null` and an error is logged. The payloads of this module
    /// can always be serialized.
    fn to_event_under(&self, prefix: &str, summary: impl Into<String>) -> Event {
        let event_type = Self::event_type();
        let topic = event_type.strip_prefix("a3s.").unwrap_or(event_type);
        let payload = serde_json::to_value(self).unwrap_or_else(|error| {
            tracing::error!(event_type, %error, "scaling payload cannot be written as JSON");
            serde_json::Value::Null
        });
        Event::typed(
            format!("{prefix}.{topic}"),
            Self::category(),
            event_type,
            PAYLOAD_VERSION,
            summary,
            Self::event_source(),
            payload,
        )
    }
}

/// Request from the gateway for more instances of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleUpPayload {
    /// Name of the service.
    pub service: String,
    /// Desired total number of instances.
    pub desired_replicas: u32,
    /// Reason, for people.
    pub reason: String,
}

/// Request from the gateway for fewer instances of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleDownPayload {
    /// Name of the service.
    pub service: String,
    /// Desired number of remaining instances.
    pub target_replicas: u32,
    /// Time for an instance to finish its requests, in seconds.
    pub drain_timeout_secs: u64,
}

/// Report from a box that an instance accepts requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceReadyPayload {
    /// Name of the service.
    pub service: String,
    /// Id of the instance.
    pub instance_id: String,
    /// Address of the instance, for instance `http://10.0.0.5:8080`.
    pub endpoint: String,
}

/// Report from a box that an instance has stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStoppedPayload {
    /// Name of the service.
    pub service: String,
    /// Id of the instance.
    pub instance_id: String,
}

/// Report from a box on the health of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceHealthPayload {
    /// Id of the instance.
    pub instance_id: String,
    /// Processor use in percent of one core. NaN and infinity become `null`, because JSON lacks them.
    pub cpu_percent: f64,
    /// Memory use in bytes.
    pub memory_bytes: u64,
    /// Number of requests in flight.
    pub in_flight: u32,
}

/// Implements the trait for a payload with its event type and sender. The category is the sender.
macro_rules! scaling_event {
    ($payload:ty, $event_type:expr, $sender:expr) => {
        impl ScalingEvent for $payload {
            fn event_type() -> &'static str {
                $event_type
            }

            fn event_source() -> &'static str {
                $sender
            }

            fn category() -> &'static str {
                $sender
            }
        }
    };
}

scaling_event!(ScaleUpPayload, SCALE_UP, GATEWAY);
scaling_event!(ScaleDownPayload, SCALE_DOWN, GATEWAY);
scaling_event!(InstanceReadyPayload, INSTANCE_READY, BOX);
scaling_event!(InstanceStoppedPayload, INSTANCE_STOPPED, BOX);
scaling_event!(InstanceHealthPayload, INSTANCE_HEALTH, BOX);

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;
    use std::fmt::Debug;

    fn scale_up() -> ScaleUpPayload {
        ScaleUpPayload { service: "api".into(), desired_replicas: 3, reason: "load".into() }
    }

    /// Checks the serialized payload, its deserialization and the envelope.
    fn check<P>(payload: P, json: &str, event_type: &str, subject: &str, sender: &str)
    where
        P: ScalingEvent + DeserializeOwned + PartialEq + Debug,
    {
        assert_eq!(serde_json::to_string(&payload).unwrap(), json);
        assert_eq!(serde_json::from_str::<P>(json).unwrap(), payload);
        let event = payload.to_event("a summary");
        assert_eq!(event.event_type, event_type);
        assert_eq!(event.subject, subject);
        assert_eq!((event.source.as_str(), event.category.as_str()), (sender, sender));
        assert_eq!((event.version, event.summary.as_str()), (1, "a summary"));
        assert_eq!(serde_json::from_value::<P>(event.payload).unwrap(), payload);
    }

    #[test]
    fn payloads_have_their_promised_json_and_envelope() {
        check(
            scale_up(),
            r#"{"service":"api","desiredReplicas":3,"reason":"load"}"#,
            "a3s.gateway.scale.up",
            "events.gateway.scale.up",
            "gateway",
        );
        check(
            ScaleDownPayload { service: "api".into(), target_replicas: 1, drain_timeout_secs: 30 },
            r#"{"service":"api","targetReplicas":1,"drainTimeoutSecs":30}"#,
            "a3s.gateway.scale.down",
            "events.gateway.scale.down",
            "gateway",
        );
        check(
            InstanceReadyPayload {
                service: "api".into(),
                instance_id: "i-1".into(),
                endpoint: "http://10.0.0.5:8080".into(),
            },
            r#"{"service":"api","instanceId":"i-1","endpoint":"http://10.0.0.5:8080"}"#,
            "a3s.box.instance.ready",
            "events.box.instance.ready",
            "box",
        );
        check(
            InstanceStoppedPayload { service: "api".into(), instance_id: "i-1".into() },
            r#"{"service":"api","instanceId":"i-1"}"#,
            "a3s.box.instance.stopped",
            "events.box.instance.stopped",
            "box",
        );
        check(
            InstanceHealthPayload {
                instance_id: "i-1".into(),
                cpu_percent: 12.5,
                memory_bytes: u64::MAX,
                in_flight: 7,
            },
            r#"{"instanceId":"i-1","cpuPercent":12.5,"memoryBytes":18446744073709551615,"inFlight":7}"#,
            "a3s.box.instance.health",
            "events.box.instance.health",
            "box",
        );
    }

    #[test]
    fn subjects_follow_another_prefix() {
        let event = scale_up().to_event_under("acme.events", "");
        assert_eq!(event.subject, "acme.events.gateway.scale.up");
    }
}
