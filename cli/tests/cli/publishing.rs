//! `pub`.

use serde_json::json;

use crate::bus::{Bus, numbers};
use crate::on_every_bus;

on_every_bus! { one_event_in_every_form many_from_a_pipe many_from_a_document whole_events_keep_what_they_are
a_resumed_run_goes_on_where_it_stopped a_wrong_record_is_named }

async fn one_event_in_every_form(bus: &Bus) {
    let file = bus.file("payload.json", r#"{"n": 3}"#);
    bus.prints(&["pub", "events.a.one", r#"{"n": 1}"#, "--summary", "first", "--type", "t", "--meta", "k=v"]);
    let ran = bus.run_with_stdin(&["pub", "--category", "a", "--topic", "two", "-"], r#"{"n": 2}"#);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    bus.prints(&[
        "pub",
        "events.a.three",
        &format!("@{file}"),
        "--time",
        "2018-02-07T01:26:13Z",
        "--id",
        "three",
    ]);
    // The id is known: nothing is stored twice.
    bus.prints(&["pub", "events.a.three", r#"{"n": 3}"#, "--id", "three"]);
    bus.prints(&["pub", "events.b.text", "--text", "not JSON"]);

    let rows = bus.rows(&["history"]);
    assert_eq!(rows.len(), 4, "{rows:?}");
    assert_eq!(numbers(&rows[1..]), [3, 2, 1]);
    let [text, three, two, one] = [0, 1, 2, 3].map(|place: usize| &rows[place]["event"]);
    assert_eq!((&text["payload"], &text["category"]), (&json!("not JSON"), &json!("b")));
    assert_eq!((&three["id"], &three["timestamp"]), (&json!("three"), &json!(1_517_966_773_000_u64)));
    assert_eq!((&two["subject"], &two["category"]), (&json!("events.a.two"), &json!("a")));
    assert_eq!(
        (&one["summary"], &one["eventType"], &one["metadata"]),
        (&json!("first"), &json!("t"), &json!({"k": "v"}))
    );
}

async fn many_from_a_pipe(bus: &Bus) {
    bus.publish("events.many", 1_234);
    let rows = bus.rows(&["history", "--all"]);
    assert_eq!(numbers(&rows), (1..=1_234).rev().collect::<Vec<_>>());
}

async fn many_from_a_document(bus: &Bus) {
    let document = r#"{"about": [1], "features": [
        {"id": "x1", "at": 1517966773840, "properties": {"net": "us", "kind": "quarry blast"}},
        {"id": "x2", "at": 1517966773841, "properties": {"net": "ci", "kind": "quake.small"}}], "more": {}}"#;
    let file = bus.file("two.geojson", document);
    let fields = [
        "--id",
        "{id}",
        "--time",
        "{at}",
        "--summary",
        "{properties.kind} of {properties.net}",
        "--payload",
        "{properties}",
    ];
    let target = ["pub", "--many", &file, "--category", "q", "--topic", "{properties.net}.{properties.kind}"];
    bus.prints(&[&target[..], &fields].concat());

    let rows = bus.rows(&["history"]);
    let event = &rows[1]["event"];
    assert_eq!(rows.len(), 2);
    assert_eq!(event["subject"], "events.q.us.quarry_blast");
    assert_eq!((&event["id"], &event["timestamp"]), (&json!("x1"), &json!(1_517_966_773_840_u64)));
    assert_eq!(event["summary"], "quarry blast of us");
    assert_eq!(event["payload"], json!({"net": "us", "kind": "quarry blast"}));
    assert_eq!(rows[0]["event"]["subject"], "events.q.ci.quake_small");

    let ran = bus.run(&["pub", "--many", &file, "events.q", "--items", "elements"]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("no array 'elements'"), "{}", ran.stderr);
}

async fn whole_events_keep_what_they_are(bus: &Bus) {
    bus.publish("events.first", 3);
    let exported = bus.prints(&["history", "--output", "ndjson"]);
    let other = Bus::sqlite();
    let ran = other.run_with_stdin(&["pub", "--many", "-", "--events"], &exported);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let events =
        |rows: Vec<serde_json::Value>| rows.into_iter().map(|row| row["event"].clone()).collect::<Vec<_>>();
    let mut copied = events(other.rows(&["history"]));
    copied.reverse();
    assert_eq!(copied, events(bus.rows(&["history"])));
}

async fn a_resumed_run_goes_on_where_it_stopped(bus: &Bus) {
    let resume = bus.path("state").to_str().unwrap().to_owned();
    let arguments = ["pub", "--many", "-", "events.r", "--batch", "10", "--resume", &resume];
    let lines = |to: u64| (1..=to).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>();

    let ran = bus.run_with_stdin(&arguments, &format!("{}nonsense\n", lines(25)));
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("line 26"), "{}", ran.stderr);
    // The file says how far it came. A crash before it was written repeats a batch with the same ids.
    let state = std::fs::read_to_string(bus.path("state")).unwrap();
    let before_crash = state.replace("\"records\":25", "\"records\":20");
    assert_ne!(state, before_crash);
    std::fs::write(bus.path("state"), before_crash).unwrap();

    let ran = bus.run_with_stdin(&arguments, &lines(40));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(numbers(&bus.rows(&["history"])), (1..=40).rev().collect::<Vec<_>>());
}

async fn a_wrong_record_is_named(bus: &Bus) {
    let ran =
        bus.run_with_stdin(&["pub", "--many", "-", "events.{kind}"], "{\"kind\":\"a\"}\n{\"kin\":\"b\"}\n");
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("record 2") && ran.stderr.contains("{kind}"), "{}", ran.stderr);
    let ran = bus.run_with_stdin(&["pub", "--many", "-", "elsewhere.{kind}"], "{\"kind\":\"a\"}\n");
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("record 1"), "{}", ran.stderr);
    assert_eq!(bus.rows(&["history"]).len(), 1);
}
