//! Tests of unreadable records: every command that meets one names it, and none settles it for others.

use std::time::Duration;

use a3s_event::{NatsProvider, ProviderRegistry};
use serde_json::{Value, json};

use crate::bus::{Bus, json_lines};
use crate::on_every_bus;

on_every_bus! { listings_name_what_cannot_be_read what_is_newest_counts_although_it_cannot_be_read
a_copy_names_what_it_leaves_out_and_a_difference_is_found a_subscription_leaves_what_it_cannot_read
a_subscription_of_its_own_shows_what_it_cannot_read }

/// Stores a record that is no event under this number.
async fn store_unreadable(bus: &Bus, number: u64) {
    if let Some(redis) = &bus.redis {
        let id = format!("{number}-{}", std::time::UNIX_EPOCH.elapsed().unwrap().as_millis());
        redis.command(&["XADD", "a3s:{events}:log", &id, "s", "events.a", "e", "hello"]).await;
        return;
    }
    match &bus.server {
        None => {
            bus.prints(&["pub", "events.a", "{\"n\": 0}"]);
            let file = rusqlite::Connection::open(bus.path("bus.db")).unwrap();
            let damage = "UPDATE events SET checksum = checksum + 1 WHERE sequence = ?1";
            assert_eq!(file.execute(damage, [i64::try_from(number).unwrap()]).unwrap(), 1);
        }
        Some(_) => {
            let provider = ProviderRegistry::builtin().connect(&bus.url).await.unwrap();
            let nats = provider.as_any().unwrap().downcast_ref::<NatsProvider>().unwrap().client();
            let published = nats.jetstream_context().publish("events.a", "hello".into()).await.unwrap();
            assert_eq!(published.await.unwrap().sequence, number);
            provider.close().await.unwrap();
        }
    }
}

/// Stores two events, and a record between them that is no event.
pub(crate) async fn one_of_three(bus: &Bus) {
    bus.publish("events.a", 1);
    store_unreadable(bus, 2).await;
    bus.prints(&["pub", "events.a", "{\"n\": 3}"]);
}

/// Runs a command that meets an unreadable record, and returns its output.
#[track_caller]
fn meets(bus: &Bus, arguments: &[&str]) -> Vec<Value> {
    let ran = bus.run(&[arguments, &["--output", "ndjson"]].concat());
    assert_eq!(ran.code, 1, "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("cannot be read as events: sequence 2"), "{arguments:?}: {}", ran.stderr);
    json_lines(&ran.stdout)
}

/// Returns the numbers of the events, with `None` for the unreadable record.
fn numbers(rows: &[Value]) -> Vec<Option<u64>> {
    let is_unreadable = |row: &Value| row["sequence"] == 2 && row["unreadable"].is_string();
    let number = |row: &Value| row["event"]["payload"]["n"].as_u64();
    assert!(rows.iter().all(|row| number(row).is_some() != is_unreadable(row)), "{rows:?}");
    rows.iter().map(number).collect()
}

async fn listings_name_what_cannot_be_read(bus: &Bus) {
    one_of_three(bus).await;
    for arguments in
        [&["history"][..], &["history", "--all"], &["history", "events.>"], &["history", "--limit", "2"]]
    {
        assert_eq!(numbers(&meets(bus, arguments)), [Some(3), None, Some(1)], "{arguments:?}");
    }
    assert_eq!(numbers(&bus.rows(&["history", "--limit", "1"])), [Some(3)]);
    assert_eq!(numbers(&meets(bus, &["tail", "--no-follow"])), [Some(1), None, Some(3)]);
    let array = bus.run(&["history", "--output", "json"]);
    assert_eq!(serde_json::from_str::<Vec<Value>>(&array.stdout).unwrap().len(), 3);
    assert!(bus.run(&["history"]).stdout.contains("cannot be read: "));

    assert_eq!(numbers(&meets(bus, &["show", "2"])), [None]);
    bus.prints(&["show", "3"]);
    let ran = bus.run(&["show", "no-such-event"]);
    assert!(ran.code == 1 && ran.stderr.contains("sequence 2"), "{}", ran.stderr);

    std::fs::create_dir(bus.path("schemas")).unwrap();
    bus.file("schemas/order.placed.v1.json", "{}");
    let folder = bus.path("schemas").to_str().unwrap().to_owned();
    let ran = bus.run(&["schema", "check", &folder, "--stored", "events.>", "--output", "ndjson"]);
    let problem = &json_lines(&ran.stdout)[0];
    assert_eq!((ran.code, &problem["sequence"], &problem["eventType"]), (1, &json!(2), &Value::Null));

    // Its output is not taken for events.
    let listed = bus.run(&["history", "--output", "ndjson"]).stdout;
    let ran = Bus::sqlite().run_with_stdin(&["import", "-", "--events"], &listed);
    assert!(ran.code == 3 && ran.stderr.contains("record 2"), "{}", ran.stderr);
}

async fn what_is_newest_counts_although_it_cannot_be_read(bus: &Bus) {
    bus.publish("events.a", 1);
    store_unreadable(bus, 2).await;
    let info = bus.run(&["info", "--output", "ndjson"]);
    assert!(info.code == 0 && info.stderr.contains("sequence 2"), "{}", info.stderr);
    assert_eq!(json_lines(&info.stdout)[0]["newestSequence"], 2);
    assert!(bus.prints(&["doctor"]).contains("sequence 2"));
    assert_eq!(numbers(&meets(bus, &["history"])), [None, Some(1)]);
}

async fn a_copy_names_what_it_leaves_out_and_a_difference_is_found(bus: &Bus) {
    one_of_three(bus).await;
    let to = Bus::sqlite();
    let dry = &meets(bus, &["copy", &bus.url, &to.url, "--dry-run"])[0];
    assert_eq!((&dry["events"], &dry["unreadable"][0][0]), (&json!(2), &json!(2)));
    let copied = &meets(bus, &["copy", &bus.url, &to.url])[0];
    assert_eq!((&copied["events"], &copied["unreadable"][0][0]), (&json!(2), &json!(2)));
    assert_eq!(to.rows(&["history"]).len(), 2);
    let found = meets(bus, &["diff", &bus.url, &to.url]);
    assert_eq!((found.len(), &found[0]["what"]), (1, &json!(["unreadable"])));
    assert_eq!((&found[0]["from"]["sequence"], &found[0]["to"]), (&json!(2), &Value::Null));
    // The readable events are copied, and later events follow.
    bus.prints(&["pub", "events.a", "{\"n\": 4}"]);
    assert_eq!(bus.rows(&["copy", &bus.url, &to.url])[0]["events"], 1);
    // No event is copied after an unreadable record.
    let ran = bus.run(&["copy", &to.url, &bus.url]);
    assert!(ran.code == 1 && ran.stderr.contains("of the target"), "{}", ran.stderr);
}

async fn a_subscription_leaves_what_it_cannot_read(bus: &Bus) {
    one_of_three(bus).await;
    for ack in ["received", "term"] {
        let sub = ["sub", "events.a", "--durable", ack, "--ack", ack, "--count", "2"];
        assert_eq!(numbers(&meets(bus, &sub)), [Some(1), None, Some(3)]);
        // It stays for a program that can handle it.
        let provider = ProviderRegistry::builtin().connect(&bus.url).await.unwrap();
        let mut subscription = provider.subscribe_durable(ack, "events.a").await.unwrap();
        assert!(subscription.keep_undecodable());
        let next = tokio::time::timeout(Duration::from_secs(20), subscription.next_delivery()).await;
        let delivery = next.expect("it was settled").unwrap().unwrap();
        assert!(delivery.sequence() == 2 && delivery.undecodable_record().is_some(), "{delivery:?}");
        delivery.ack().await.unwrap();
        subscription.close().await.unwrap();
        provider.close().await.unwrap();
    }
}

async fn a_subscription_of_its_own_shows_what_it_cannot_read(bus: &Bus) {
    one_of_three(bus).await;
    assert_eq!(numbers(&meets(bus, &["sub", "--from", "all", "--count", "2"])), [Some(1), None, Some(3)]);
    let two = ["sub", "events.a", "events.b", "--from", "all", "--count", "2"];
    assert_eq!(numbers(&meets(bus, &two)), [Some(1), None, Some(3)]);
}

#[tokio::test]
async fn cloud_events_are_read_like_others() {
    let (bus, to) = (Bus::nats().await, Bus::sqlite());
    bus.publish("events.a", 1);
    let url = format!("{}?format=cloudevents", bus.url);
    bus.prints(&["pub", "events.a", "{\"n\": 2}", "--url", &url]);
    assert_eq!(crate::bus::numbers(&bus.rows(&["history"])), [2, 1]);
    assert_eq!(crate::bus::numbers(&bus.rows(&["sub", "--durable", "d", "--count", "2"])), [1, 2]);
    assert_eq!(bus.rows(&["copy", &bus.url, &to.url, "--no-positions"])[0]["events"], 2);
    bus.prints(&["diff", &bus.url, &to.url]);
}
