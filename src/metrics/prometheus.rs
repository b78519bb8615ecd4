//! The text format that Prometheus scrapes, version 0.0.4.
//!
//! The module writes the text by hand, because an exporter crate would bring a global recorder and a web server.

use std::fmt::{self, Display, Write};

use super::bus::BusMetricsSnapshot;
use super::consumer::ConsumerMetricsSnapshot;
use super::histogram::LatencySnapshot;

/// Content type of the text that [`to_prometheus`](BusMetricsSnapshot::to_prometheus) returns.
pub const PROMETHEUS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn exposition(snapshot: &BusMetricsSnapshot) -> String {
    let mut text = String::new();
    // Writing to a string never fails.
    let _ = write_bus(&mut text, snapshot);
    let _ = write_consumers(&mut text, snapshot);
    text
}

fn write_bus(text: &mut String, snapshot: &BusMetricsSnapshot) -> fmt::Result {
    let events = &snapshot.events;
    let labels = Labels(&[("messaging_system", &snapshot.system)]);
    for (name, help, value) in [
        ("published", "Events published.", events.publish_count),
        (
            "publish_errors",
            "Publishes that failed for a reason other than schema validation.",
            events.publish_errors,
        ),
        ("subscribes", "Subscriptions registered or replaced.", events.subscribe_count),
        ("unsubscribes", "Subscriptions removed.", events.unsubscribe_count),
        ("dead_letters", "Events dead-lettered.", events.dlq_count),
        ("validation_errors", "Payloads that violate their schema.", events.validation_errors),
        ("encrypts", "Payloads encrypted.", events.encrypt_count),
        ("decrypts", "Payloads decrypted.", events.decrypt_count),
        ("acks_lost", "Acks that were sent and lost; their events are redelivered.", snapshot.acks_lost),
        ("stale_acks", "Acks that were sent and arrived too late.", snapshot.stale_acks),
    ] {
        writeln!(text, "# HELP a3s_event_{name}_total {help}\n# TYPE a3s_event_{name}_total counter")?;
        writeln!(text, "a3s_event_{name}_total{{{labels}}} {value}")?;
    }
    for (name, help, value) in [
        (
            "connected",
            "1 if the provider was healthy at the last check, otherwise 0.",
            snapshot.connected.map(u64::from),
        ),
        ("observed_at_seconds", "Unix time at which the lag was last read.", snapshot.observed_at),
    ] {
        let Some(value) = value else { continue };
        writeln!(text, "# HELP a3s_event_{name} {help}\n# TYPE a3s_event_{name} gauge")?;
        writeln!(text, "a3s_event_{name}{{{labels}}} {value}")?;
    }
    let name = "a3s_event_publish_duration_seconds";
    writeln!(text, "# HELP {name} Duration of successful publishes.\n# TYPE {name} histogram")?;
    write_histogram(text, name, &labels, &snapshot.publish_latency)
}

type Read = fn(&ConsumerMetricsSnapshot) -> u64;

fn write_consumers(text: &mut String, snapshot: &BusMetricsSnapshot) -> fmt::Result {
    let families: [(&str, &str, &str, Read); 14] = [
        ("delivered_total", "counter", "Deliveries.", |c| c.delivered),
        ("redelivered_total", "counter", "Deliveries of events that were delivered before.", |c| {
            c.redelivered
        }),
        ("acked_total", "counter", "Events acknowledged.", |c| c.acked),
        ("nacked_total", "counter", "Events nacked.", |c| c.nacked),
        ("terminated_total", "counter", "Events terminated as not processable.", |c| c.terminated),
        ("released_total", "counter", "Events released without counting an attempt.", |c| c.released),
        ("settle_errors_total", "counter", "Settlements that failed.", |c| c.settle_errors),
        ("dead_lettered_total", "counter", "Events dead-lettered.", |c| c.dead_lettered),
        ("given_up_total", "counter", "Events given up, with or without a dead letter.", |c| c.given_up),
        ("receive_errors_total", "counter", "Failed calls for the next event.", |c| c.receive_errors),
        ("lagged_events_total", "counter", "Events dropped by retention before delivery.", |c| {
            c.lagged_events
        }),
        ("in_flight", "gauge", "Unsettled deliveries.", |c| c.in_flight),
        ("processing", "gauge", "Events in handlers.", |c| c.processing),
        ("lag", "gauge", "Events waiting for delivery when the lag was last read.", |c| c.lag),
    ];
    if snapshot.consumers.is_empty() {
        return Ok(());
    }
    for (name, kind, help, value) in families {
        let name = format!("a3s_event_consumer_{name}");
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
        for consumer in &snapshot.consumers {
            let labels = consumer_labels(snapshot, consumer);
            writeln!(text, "{name}{{{}}} {}", Labels(&labels), value(consumer))?;
        }
    }
    let name = "a3s_event_process_duration_seconds";
    writeln!(text, "# HELP {name} Duration of handler calls.\n# TYPE {name} histogram")?;
    for consumer in &snapshot.consumers {
        let labels = consumer_labels(snapshot, consumer);
        write_histogram(text, name, &Labels(&labels), &consumer.process_latency)?;
    }
    Ok(())
}

fn consumer_labels<'a>(
    snapshot: &'a BusMetricsSnapshot,
    consumer: &'a ConsumerMetricsSnapshot,
) -> [(&'static str, &'a str); 3] {
    [("messaging_system", &snapshot.system), ("group", &consumer.group), ("filter", &consumer.filter)]
}

/// Writes one bucket per doubling of the time; a scrape needs no finer ones.
fn write_histogram(
    text: &mut String,
    name: &str,
    labels: &Labels<'_>,
    latency: &LatencySnapshot,
) -> fmt::Result {
    for (below_ns, count) in latency.cumulative() {
        writeln!(text, "{name}_bucket{{{labels},le=\"{}\"}} {count}", Seconds(below_ns))?;
    }
    writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", latency.count)?;
    writeln!(text, "{name}_sum{{{labels}}} {}", Seconds(latency.sum_ns))?;
    writeln!(text, "{name}_count{{{labels}}} {}", latency.count)
}

/// Nanoseconds that are written as seconds without rounding.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PER_SECOND: u64 = 1_000_000_000;
        write!(f, "{}.{:09}", self.0 / PER_SECOND, self.0 % PER_SECOND)
    }
}

/// `name="value"` pairs, escaped as the format requires.
struct Labels<'a>(&'a [(&'a str, &'a str)]);

impl Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{name}=\"")?;
            for character in value.chars() {
                match character {
                    '\\' => f.write_str("\\\\")?,
                    '"' => f.write_str("\\\"")?,
                    '\n' => f.write_str("\\n")?,
                    other => f.write_char(other)?,
                }
            }
            f.write_char('"')?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::{Duration, Instant};

    use crate::metrics::BusMetrics;
    use crate::provider::{AckKind, SettlementObserver};

    fn sample() -> String {
        let metrics = BusMetrics::new("memory");
        metrics.record_publish(Instant::now().checked_sub(Duration::from_millis(1_500)).unwrap());
        metrics.record_publish_error();
        let consumer = metrics.consumer("an \"odd\\one\"\n", "events.>");
        consumer.record_delivery(2);
        consumer.settled(&AckKind::Ack, true);
        consumer.begun();
        consumer.record_given_up();
        metrics.record_connected(false);
        metrics.record_observation();
        metrics.snapshot().to_prometheus()
    }

    #[test]
    fn numbers_stand_under_their_names_and_labels() {
        let text = sample();
        let labels = r#"{messaging_system="memory",group="an \"odd\\one\"\n",filter="events.>"}"#;
        for line in [
            "a3s_event_published_total{messaging_system=\"memory\"} 1".to_owned(),
            "a3s_event_publish_errors_total{messaging_system=\"memory\"} 1".to_owned(),
            "a3s_event_publish_duration_seconds_bucket{messaging_system=\"memory\",le=\"1.073741824\"} 0"
                .to_owned(),
            "a3s_event_publish_duration_seconds_bucket{messaging_system=\"memory\",le=\"2.147483648\"} 1"
                .to_owned(),
            format!("a3s_event_consumer_redelivered_total{labels} 1"),
            format!("a3s_event_consumer_acked_total{labels} 1"),
            format!("a3s_event_consumer_in_flight{labels} 1"),
            format!("a3s_event_consumer_given_up_total{labels} 1"),
            "a3s_event_connected{messaging_system=\"memory\"} 0".to_owned(),
            format!("a3s_event_process_duration_seconds_count{labels} 0"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    /// Checks the rules of the format:
    /// - each family has one HELP and one TYPE line, followed by all its samples;
    /// - no sample occurs twice;
    /// - bucket counts grow up to the count of all.
    #[test]
    fn the_text_follows_the_format() {
        let text = sample();
        assert!(text.ends_with('\n'));
        let mut kinds: HashMap<&str, &str> = HashMap::new();
        let mut current = "";
        let mut samples = std::collections::HashSet::new();
        let mut last_bucket = 0;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind));
                assert_eq!(name, current, "HELP comes first");
                assert!(kinds.insert(name, kind).is_none(), "{name} twice");
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                current = rest.split_once(' ').unwrap().0;
            } else {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                assert!(samples.insert(sample), "{sample} twice");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(sample.starts_with(current), "{sample} stands with {current}");
                assert_eq!(kinds[current] == "counter", current.ends_with("_total"));
                if sample.contains("_bucket{") {
                    let count: u64 = value.parse().unwrap();
                    let begins = sample.contains("le=\"0.000000128\"");
                    assert!(begins || count >= last_bucket, "{line}");
                    last_bucket = count;
                }
            }
        }
        assert!(kinds.len() > 20);
    }
}
