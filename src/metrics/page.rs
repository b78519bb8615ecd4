//! Generates the tables of metrics in the guide about observability, from the text that Prometheus scrapes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use super::BusMetrics;
use crate::trace::semconv;

const PAGE: &str = "src/docs/observability.md";
/// Environment variable: if set, the test writes the page instead of comparing it.
const WRITE: &str = "A3S_EVENT_WRITE_DOCS";
const BEGIN: &str = "<!-- metrics -->\n";
const END: &str = "<!-- end of metrics -->";

const HEAD: &str =
    "| metric | type | unit | meaning | alert if it | name in the facade |\n|---|---|---|---|---|---|\n";

/// The parts of a row that the text for Prometheus does not have.
struct Note {
    metric: &'static str,
    unit: &'static str,
    /// Name in the `metrics` facade.
    facade: &'static str,
    /// Condition of an alert and what it means; empty if the metric needs none.
    alert: &'static str,
}

const fn note(metric: &'static str, unit: &'static str, facade: &'static str, alert: &'static str) -> Note {
    Note { metric, unit, facade, alert }
}

const NOTES: [Note; 28] = [
    note("a3s_event_published_total", "events", semconv::MESSAGING_CLIENT_SENT_MESSAGES, ""),
    note(
        "a3s_event_publish_errors_total",
        "calls",
        "a3s_event.publish_errors",
        "grows: the backend refuses publishes or is unreachable",
    ),
    note("a3s_event_subscribes_total", "calls", "a3s_event.subscribes", ""),
    note("a3s_event_unsubscribes_total", "calls", "a3s_event.unsubscribes", ""),
    note(
        "a3s_event_dead_letters_total",
        "events",
        "a3s_event.dead_letters",
        "grows: look at the dead letters",
    ),
    note(
        "a3s_event_validation_errors_total",
        "events",
        "a3s_event.validation_errors",
        "grows: a publisher and a schema disagree",
    ),
    note("a3s_event_encrypts_total", "payloads", "a3s_event.encrypts", ""),
    note("a3s_event_decrypts_total", "payloads", "a3s_event.decrypts", ""),
    note(
        "a3s_event_acks_lost_total",
        "acks",
        "a3s_event.acks_lost",
        "grows: acks were lost with a connection, a server or a transaction",
    ),
    note(
        "a3s_event_stale_acks_total",
        "acks",
        "a3s_event.stale_acks",
        "grows: handlers outlive their leases; SQLite and Redis detect and count this",
    ),
    note(
        "a3s_event_connected",
        "0 or 1",
        "a3s_event.connected",
        "is 0 for a minute: the provider is unreachable or cannot store",
    ),
    note(
        "a3s_event_observed_at_seconds",
        "Unix time in seconds",
        "a3s_event.observed_at",
        "is more than four observation periods ago: the lag is out of date",
    ),
    note(
        "a3s_event_publish_duration_seconds",
        "seconds",
        semconv::MESSAGING_CLIENT_OPERATION_DURATION,
        "has a 0.99 quantile above the time that your callers accept",
    ),
    note("a3s_event_consumer_delivered_total", "events", semconv::MESSAGING_CLIENT_CONSUMED_MESSAGES, ""),
    note(
        "a3s_event_consumer_redelivered_total",
        "events",
        "a3s_event.consumer.redelivered",
        "grows as fast as the deliveries: handlers fail or outlive their leases",
    ),
    note("a3s_event_consumer_acked_total", "events", "a3s_event.consumer.acked", ""),
    note("a3s_event_consumer_nacked_total", "events", "a3s_event.consumer.nacked", ""),
    note("a3s_event_consumer_terminated_total", "events", "a3s_event.consumer.terminated", ""),
    note("a3s_event_consumer_released_total", "events", "a3s_event.consumer.released", ""),
    note(
        "a3s_event_consumer_settle_errors_total",
        "calls",
        "a3s_event.consumer.settle_errors",
        "grows: leases are lost, or the backend is unreachable",
    ),
    note("a3s_event_consumer_dead_lettered_total", "events", "a3s_event.consumer.dead_lettered", ""),
    note(
        "a3s_event_consumer_given_up_total",
        "events",
        "a3s_event.consumer.given_up",
        "grows: look at the dead letters; if it grows faster than the dead-lettered events, the rest is only in the log",
    ),
    note(
        "a3s_event_consumer_receive_errors_total",
        "calls",
        "a3s_event.consumer.receive_errors",
        "grows: the backend is unreachable, or records cannot be read",
    ),
    note(
        "a3s_event_consumer_lagged_events_total",
        "events",
        "a3s_event.consumer.lagged_events",
        "grows at all: events are lost to this consumer, so keep more",
    ),
    note(
        "a3s_event_consumer_in_flight",
        "events",
        "a3s_event.consumer.in_flight",
        "does not fall for longer than `ack_wait_secs`: deliveries are not settled",
    ),
    note("a3s_event_consumer_processing", "events", "a3s_event.consumer.processing", ""),
    note(
        "a3s_event_consumer_lag",
        "events",
        "a3s_event.consumer.lag",
        "grows for minutes: workers are too few, too slow, or none is running",
    ),
    note(
        "a3s_event_process_duration_seconds",
        "seconds",
        semconv::MESSAGING_PROCESS_DURATION,
        "has a 0.99 quantile near `ack_wait_secs`: leases will end during processing",
    ),
];

/// One metric as it is exported.
struct Family {
    name: String,
    kind: String,
    help: String,
    labels: String,
}

/// Metrics of which every family has a sample.
fn full() -> BusMetrics {
    let metrics = BusMetrics::new("memory");
    metrics.record_publish(Instant::now());
    metrics.record_connected(true);
    metrics.record_observation();
    metrics.consumer("worker", "events.>").record_delivery(1);
    metrics
}

fn families() -> Vec<Family> {
    let text = full().snapshot().to_prometheus();
    let mut families: Vec<Family> = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            let (kind, labels) = (String::new(), String::new());
            families.push(Family { name: name.to_owned(), kind, help: help.to_owned(), labels });
            continue;
        }
        let family = families.last_mut().expect("HELP comes first");
        if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            family.kind = kind.to_owned();
        } else if family.labels.is_empty() {
            // The values in `full` have no comma and no brace.
            let (_, labels) = line.split_once('{').expect("every sample has labels");
            let (labels, _) = labels.split_once('}').expect("labels end");
            let names = labels.split(',').filter_map(|label| label.split('=').next());
            let names = names.filter(|name| *name != "le").map(|name| format!("`{name}`"));
            family.labels = names.collect::<Vec<_>>().join(", ");
        }
    }
    families
}

/// Returns one table for each set of labels.
fn tables() -> String {
    let (mut text, mut labels) = (String::new(), String::new());
    for Family { name, kind, help, labels: own } in families() {
        let note = NOTES.iter().find(|note| note.metric == name);
        let Note { unit, facade, alert, .. } = note.unwrap_or_else(|| panic!("{name} has no note"));
        if own != labels {
            text.push_str(&format!("\nLabels: {own}\n\n{HEAD}"));
        }
        labels = own;
        let row = format!("| `{name}` | {kind} | {unit} | {help} | {alert} | `{facade}` |\n");
        text.push_str(&row.replace("|  |", "| |"));
    }
    text
}

#[test]
fn the_page_about_observability_has_every_metric() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap_or_else(|| panic!("{PAGE} has no {BEGIN}"));
    let (_, after) = rest.split_once(END).unwrap_or_else(|| panic!("{PAGE} has no {END}"));
    let expected = format!("{before}{BEGIN}{}\n{END}{after}", tables());
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, expected).unwrap();
        return;
    }
    assert!(page == expected, "{PAGE} is out of date: run this test with {WRITE}=1 to write its tables");
}

#[test]
fn every_note_is_of_a_metric() {
    let exported: BTreeSet<String> = families().into_iter().map(|family| family.name).collect();
    let noted: BTreeSet<String> = NOTES.iter().map(|note| note.metric.to_owned()).collect();
    assert_eq!(exported, noted);
}

/// Alerts in other guides name metrics that exist.
#[test]
fn metrics_that_guides_name_exist() {
    let exported: BTreeSet<String> = families().into_iter().map(|family| family.name).collect();
    for page in ["src/docs/deployment.md", PAGE] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
        for (start, _) in text.match_indices("`a3s_event_") {
            let name: String =
                text[start + 1..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            assert!(exported.contains(&name), "{page} names {name}");
        }
    }
}

#[cfg(feature = "metrics")]
mod facade {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

    /// Keeps the names of all instruments.
    #[derive(Default)]
    struct Names(Mutex<BTreeSet<String>>);

    impl Names {
        fn add(&self, key: &Key) {
            self.0.lock().unwrap().insert(key.name().to_owned());
        }
    }

    impl Recorder for Names {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            self.add(key);
            Counter::noop()
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            self.add(key);
            Gauge::noop()
        }
        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            self.add(key);
            Histogram::noop()
        }
    }

    #[test]
    fn the_facade_has_the_names_of_the_notes() {
        let names = Names::default();
        metrics::with_local_recorder(&names, || drop(super::full()));
        let noted: BTreeSet<String> = super::NOTES.iter().map(|note| note.facade.to_owned()).collect();
        assert_eq!(*names.0.lock().unwrap(), noted);
    }
}
