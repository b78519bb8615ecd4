//! Tests of `sub`, `history`, `tail`, `show`, `info` and `consumers`.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::bus::{Bus, ended, numbers};
use crate::on_every_bus;

on_every_bus! { history_is_filtered_and_paged history_begins_with_the_oldest times_select_by_storage subscriptions_start_where_they_are_told a_durable_keeps_its_position
unsettled_events_are_seen_in_the_table several_filters_share_a_subscription streams_are_listed logs_are_told_on_stderr tail_follows show_finds_by_sequence_and_id a_wrong_name_is_found_and_makes_nothing a_signal_ends_a_subscription }

async fn history_is_filtered_and_paged(bus: &Bus) {
    bus.publish("events.a", 5);
    bus.publish("events.b", 5);
    assert_eq!(numbers(&bus.rows(&["history", "events.a"])), [5, 4, 3, 2, 1]);
    assert_eq!(numbers(&bus.rows(&["history", "--limit", "2"])), [5, 4]);
    assert_eq!(numbers(&bus.rows(&["history", "--limit", "2", "--before-seq", "9"])), [3, 2]);
    assert_eq!(numbers(&bus.rows(&["history", "--from", "4", "--before-seq", "7"])), [1, 5, 4]);
    assert_eq!(bus.rows(&["history", "--since", "1h"]).len(), 10);
    assert_eq!(bus.rows(&["history", "--until", "1h"]).len(), 0);
    let table = bus.prints(&["history", "--limit", "3"]);
    assert!(table.contains("next page: --before-seq 8"), "{table}");
    let array: Value = serde_json::from_str(&bus.prints(&["history", "--output", "json"])).unwrap();
    assert_eq!(array.as_array().unwrap().len(), 10);
    let info = &bus.rows(&["info"])[0];
    assert_eq!((&info["messages"], &info["newestSequence"]), (&json!(10), &json!(10)));
}

async fn history_begins_with_the_oldest(bus: &Bus) {
    bus.publish("events.a", 5);
    bus.publish("events.b", 1_500);
    let oldest =
        |arguments: &[&str]| numbers(&bus.rows(&[&["history", "--oldest-first"], arguments].concat()));
    assert_eq!(oldest(&["-n", "3"]), [1, 2, 3]);
    assert_eq!(oldest(&["events.a", "--from", "2", "--before-seq", "5"]), [2, 3, 4]);
    assert_eq!(oldest(&["events.b", "--all"]), (1..=1_500).collect::<Vec<_>>());
    assert_eq!(oldest(&["--all", "--since", "1h", "events.a"]), [1, 2, 3, 4, 5]);
    assert_eq!(oldest(&["--all", "--until", "1h"]), [0; 0]);
    let table = bus.prints(&["history", "--oldest-first", "-n", "3"]);
    assert!(table.contains("next page: --from 4"), "{table}");
    assert_eq!(oldest(&["-n", "2", "--from", "4"]), [4, 5]);
}

async fn times_select_by_storage(bus: &Bus) {
    bus.prints(&["pub", "events.a", "{\"n\": 1}", "--time", "2018-02-07 13:00"]);
    for since in ["today", "2 hours ago", "2018-02-08", "1517966773840"] {
        let table = bus.prints(&["history", "--since", since]);
        let shows_storage = table.contains("stored") && !table.contains("2018-02-07");
        // Just after midnight, today has no events yet.
        assert!(shows_storage && (since == "today" || table.contains("events.a")), "{since}: {table}");
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    }
    let table = bus.prints(&["history"]);
    assert!(table.contains("time") && table.contains("2018-02-07T13:00:00.000Z"), "{table}");
    assert!(bus.rows(&["history", "--until", "yesterday"]).is_empty());
    assert_eq!(bus.rows(&["sub", "--from", "yesterday", "--count", "1"]).len(), 1);
    let ran = bus.run_with_stdin(&["import", "-", "events.a", "--time", "{t}"], "{\"t\": 1517966773}\n");
    assert!(ran.code == 3 && ran.stderr.contains("milliseconds: 1517966773000"), "{}", ran.stderr);
}

async fn subscriptions_start_where_they_are_told(bus: &Bus) {
    bus.publish("events.a", 5);
    bus.publish("events.b", 2);
    let from =
        |start: &str, filter: &str| numbers(&bus.rows(&["sub", filter, "--from", start, "--idle", "300ms"]));
    assert_eq!(from("all", "events.a"), [1, 2, 3, 4, 5]);
    assert_eq!(from("4", "events.>"), [4, 5, 1, 2]);
    assert_eq!(from("last", "events.a"), [5]);
    assert_eq!(from("last-per-subject", "events.>"), [5, 2]);
    assert_eq!(from("1h", "events.b"), [1, 2]);
    assert_eq!(from("now", "events.a"), [0; 0]);
    assert_eq!(numbers(&bus.rows(&["sub", "--from", "all", "--count", "3", "--ack", "received"])), [1, 2, 3]);
}

async fn a_durable_keeps_its_position(bus: &Bus) {
    bus.publish("events.a", 5);
    let next = |count: &str| {
        numbers(&bus.rows(&["sub", "events.a", "--durable", "d", "--count", count, "--idle", "5s"]))
    };
    assert_eq!(next("2"), [1, 2]);
    assert_eq!(next("2"), [3, 4]);
    let consumers = bus.rows(&["consumers"]);
    assert_eq!((&consumers[0]["name"], &consumers[0]["lag"]), (&json!("d"), &json!(1)), "{consumers:?}");
    let ran = bus.run(&["sub", "events.b", "--durable", "d", "--count", "1"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("conflict"), "{}", ran.stderr);
    let removed = &bus.rows(&["consumers", "rm", "d", "--yes"])[0];
    assert_eq!((&removed["name"], &removed["lag"]), (&json!("d"), &json!(1)));
    let again = bus.run(&["consumers", "rm", "d", "--yes"]);
    assert!(again.code == 1 && again.stderr.contains("no consumer 'd'"), "{}", again.stderr);
    assert!(bus.rows(&["consumers"]).is_empty());
}

async fn unsettled_events_are_seen_in_the_table(bus: &Bus) {
    bus.publish("events.a", 3);
    let take = |ack: &str| {
        let sub = ["sub", "events.a", "--durable", "d", "--count", "1", "--ack", ack, "--force"];
        bus.rows(&sub)
    };
    assert_eq!(numbers(&take("none")), [1]);
    let consumer = &bus.rows(&["consumers"])[0];
    assert_eq!((&consumer["pending"], &consumer["redelivered"]), (&json!(1), &json!(0)), "{consumer}");
    assert_eq!(numbers(&take("nak")), [2]);
    let again = take("term");
    assert_eq!((numbers(&again), &again[0]["numDelivered"]), (vec![2], &json!(2)));
    let table = bus.prints(&["consumers"]);
    assert!(table.contains("redelivered") && table.contains("events.a"), "{table}");
}

async fn several_filters_share_a_subscription(bus: &Bus) {
    bus.publish("events.a", 3);
    bus.publish("events.b", 2);
    bus.publish("events.c.d", 4);
    let mut all = numbers(&bus.rows(&["sub", "events.b", "events.c.*", "--from", "all", "--idle", "2s"]));
    all.sort_unstable();
    assert_eq!(all, [1, 1, 2, 2, 3, 4]);
    let durable = ["sub", "events.a", "events.b", "--durable", "d", "--idle", "2s"];
    assert_eq!(bus.rows(&durable).len(), 5);
    bus.publish("events.b", 1);
    assert_eq!(numbers(&bus.rows(&durable)), [1]);
    let names: Vec<_> = bus.rows(&["consumers"]).iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, ["d-events-a", "d-events-b"]);
    let ran = bus.run(&["sub", "events.a", "events.*"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("overlap"), "{}", ran.stderr);
}

async fn streams_are_listed(bus: &Bus) {
    bus.publish("events.a", 3);
    let streams = bus.rows(&["streams"]);
    let this = streams.iter().find(|row| row["isThis"] == true).unwrap();
    assert_eq!((&this["messages"], &this["subjects"]), (&json!(3), &json!(["events.>"])));
    if bus.is_on_server() {
        let other = format!("{}/OTHER?subject_prefix=other", bus.url);
        bus.prints(&["pub", "other.a", "1", "--url", &other]);
        assert_eq!(bus.rows(&["streams"]).len(), 2);
    }
    assert!(bus.prints(&["streams"]).contains("events.>"));
}

async fn logs_are_told_on_stderr(bus: &Bus) {
    bus.publish("events.a", 3);
    let quiet = bus.run(&["info"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
    let told = bus.run(&["info", "-v"]);
    assert!(told.stderr.contains("connecting") && told.stdout == quiet.stdout, "{}", told.stderr);
    assert!(bus.run(&["info", "-vvv"]).stderr.contains("capabilities"));
    let off = ended(bus.command(&["info", "-vvv"]).env("A3S_EVENT_LOG", "off").output().unwrap());
    assert_eq!(off.stderr, "");
    assert_eq!(bus.run(&["info", "--log", "a3s_event=loud"]).code, 2);
}

async fn tail_follows(bus: &Bus) {
    bus.publish("events.a", 5);
    assert_eq!(numbers(&bus.rows(&["tail", "-n", "2", "--no-follow"])), [4, 5]);
    let mut tail = bus
        .command(&["tail", "-n", "1", "events.a", "--output", "ndjson"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut next = || numbers(&[serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()])[0];
    assert_eq!(next(), 5);
    bus.prints(&["pub", "events.b", "{\"n\": 0}"]);
    bus.prints(&["pub", "events.a", "{\"n\": 6}"]);
    assert_eq!(next(), 6);
    terminate(&tail);
    assert!(tail.wait().unwrap().success());
}

async fn a_wrong_name_is_found_and_makes_nothing(bus: &Bus) {
    bus.publish("events.a", 1);
    let (wrong, made) = match bus.is_on_server() {
        true => (format!("{}/TYPO?subject_prefix=typo", bus.url), "stream 'TYPO'"),
        false => (format!("sqlite://{}", bus.path("typo.db").display()), "typo.db"),
    };
    for command in [
        &["history"][..],
        &["show", "1"],
        &["info"],
        &["consumers"],
        &["consumers", "rm", "billing", "--yes"],
        &["streams"],
        &["streams", "purge", "--yes"],
        &["tail"],
        &["dump"],
        &["dlq", "list"],
        &["dlq", "show", "1"],
        &["dlq", "replay", "--all", "--dry-run"],
        &["dlq", "discard", "--all"],
        &["doctor"],
        &["diff", &wrong, &bus.url],
        &["diff", &bus.url, &wrong],
        &["copy", &wrong, &bus.url],
    ] {
        let ran = bus.run(&[command, &["--url", &wrong]].concat());
        let (code, said) = (ran.code, &ran.stderr);
        assert!(
            code == 3 && said.contains(made) && said.contains("does not exist"),
            "{command:?} {code} {said}"
        );
        assert!(said.contains("`a3s-event pub`") && !said.contains("create_if_missing"), "{said}");
    }
    bus.prints(&["copy", &bus.url, &wrong.replace("subject_prefix=typo", ""), "--dry-run"]);
    bus.prints(&["conformance", "--case", "msg_id", "--url", &wrong]);
    // The setting is for programs: a look does not create either.
    let creating = format!("{wrong}{}create_if_missing=true", if bus.is_on_server() { "&" } else { "?" });
    assert_eq!(bus.run(&["info", "--url", &creating]).code, 3);
    // A created stream would exist now.
    assert_eq!(bus.run(&["info", "--url", &wrong]).code, 3);
    assert!(!bus.path("typo.db").exists());
    bus.prints(&["pub", "typo.a", "1", "--url", &wrong.replace("typo.db", "typo.db?subject_prefix=typo")]);
    assert_eq!(
        bus.rows(&["history", "--url", &wrong.replace("typo.db", "typo.db?subject_prefix=typo")]).len(),
        1
    );
}

async fn show_finds_by_sequence_and_id(bus: &Bus) {
    bus.publish("events.a", 3);
    bus.prints(&["pub", "events.a", "{\"n\": 4}", "--id", "2"]);
    let shown = |arguments: &[&str]| serde_json::from_str::<Value>(&bus.prints(arguments)).unwrap();
    assert_eq!(shown(&["show", "2"])["event"]["payload"]["n"], 2);
    assert_eq!(shown(&["show", "--id", "2"])["event"]["payload"]["n"], 4);
    bus.prints(&[
        "pub",
        "events.a",
        "{\"timestamp\": 1}",
        "--time",
        "2018-02-07T01:26:13.840Z",
        "--id",
        "timed",
    ]);
    let for_people = shown(&["show", "timed"]);
    assert_eq!(for_people["event"]["timestamp"], "2018-02-07T01:26:13.840Z");
    assert_eq!(for_people["event"]["payload"]["timestamp"], 1);
    assert!(for_people["storedAt"].as_str().unwrap().ends_with('Z'), "{for_people}");
    assert_eq!(bus.rows(&["show", "timed"])[0]["event"]["timestamp"], 1_517_966_773_840_u64);
    let ran = bus.run(&["show", "no-such-event"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
}

async fn a_signal_ends_a_subscription(bus: &Bus) {
    bus.publish("events.a", 2);
    let mut child = bus
        .command(&["sub", "events.a", "--durable", "d", "--output", "ndjson"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        lines.next().unwrap().unwrap();
    }
    terminate(&child);
    assert!(child.wait().unwrap().success());
    // Only the last printed event may be unsettled: the signal may have preceded its ack.
    let consumer = &bus.rows(&["consumers"])[0];
    assert!(consumer["lag"] == 0 && consumer["pending"].as_u64() <= Some(1), "{consumer}");
}

/// Maximum duration of a run, far below the timeout for the server.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_server_that_is_gone_keeps_nobody_from_leaving() {
    let bus = Bus::nats().await;
    bus.publish("events.a", 1);
    let url = format!("{}?request_timeout=30s", bus.url);
    for command in [&["sub", "events.a", "--from", "all"][..], &["tail", "events.a"]] {
        let mut child =
            bus.command(command).env("A3S_EVENT_URL", &url).stdout(Stdio::piped()).spawn().unwrap();
        BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
        let server = bus.server.as_ref().unwrap();
        server.freeze().await;
        terminate(&child);
        let left = tokio::time::timeout(SOON, tokio::task::spawn_blocking(move || child.wait())).await;
        server.thaw();
        assert!(left.is_ok(), "{command:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_back_is_told_like_its_loss() {
    let mut bus = Bus::nats().await;
    bus.publish("events.a", 1);
    let mut tail = bus.command(&["tail"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let server = bus.server.as_mut().unwrap();
    server.kill();
    server.start_again().await;
    bus.prints(&["pub", "events.a", "\"after the loss\""]);
    assert!(lines.next().unwrap().unwrap().contains("after the loss"));
    terminate(&tail);
    let said = ended(tail.wait_with_output().unwrap()).stderr;
    let count = |text: &str| said.matches(text).count();
    assert_eq!((count("lost the connection"), count("reconnected to nats-server")), (1, 1), "{said}");
}

/// A server that is suspended ends a command like one that cannot be reached.
#[tokio::test]
async fn a_server_that_freezes_ends_a_subscription_with_4() {
    let bus = Bus::nats().await;
    bus.publish("events.a", 1);
    let mut running = Vec::new();
    for command in [&["sub", "--from", "all"][..], &["sub", "--durable", "d"], &["tail"]] {
        let mut child = bus.command(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        BufReader::new(child.stdout.as_mut().unwrap()).lines().next().unwrap().unwrap();
        running.push((command, child));
    }
    bus.server.as_ref().unwrap().freeze().await;
    for (command, child) in running {
        let waiting = tokio::task::spawn_blocking(|| ended(child.wait_with_output().unwrap()));
        let ran = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        let Ok(Ok(ran)) = ran else { panic!("{command:?} does not end") };
        assert_eq!(ran.code, 4, "{command:?}: {}", ran.stderr);
    }
    bus.server.as_ref().unwrap().thaw();
}

pub(crate) fn terminate(child: &Child) {
    let killed = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(killed.success());
}
