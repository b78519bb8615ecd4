//! Tests of limits, names of consumers, resets, purges and deletions.

use serde_json::{Value, json};

use crate::bus::{Bus, numbers};
use crate::docs::programs;
use crate::members::billing;
use crate::on_every_bus;
use crate::watching::Terminal;

on_every_bus! { limits_are_shown consumers_have_the_names_of_their_programs a_consumer_is_reset
a_consumer_is_deleted_by_either_name }

async fn limits_are_shown(bus: &Bus) {
    let url = format!("{}{}", bus.url, if bus.is_on_server() { "/LAB?" } else { "?" })
        + "subject_prefix=lab&max_events=10&max_age=7d";
    let on = |arguments: &[&str]| [arguments, &["--url", &url]].concat().join("\n");
    let lines = |arguments: &[&str]| on(arguments).split('\n').map(str::to_owned).collect::<Vec<_>>();
    let run = |arguments: &[&str]| {
        let arguments = lines(arguments);
        bus.prints(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for n in 0..4 {
        run(&["pub", "lab.a", &n.to_string()]);
    }
    for command in ["info", "doctor"] {
        let printed = run(&[command]).split_whitespace().collect::<Vec<_>>().join(" ");
        let wanted = "keeps 10 events and 7 days; full: the oldest are dropped; 40 % full";
        assert!(printed.contains(wanted), "{command}: {printed}");
    }
    let table = run(&["streams"]);
    assert!(table.contains("10 events and 7 days") && table.contains("40 %"), "{table}");
    let info: Value = serde_json::from_str(&run(&["info", "--output", "json"])).unwrap();
    // The limits of a file are those of the URL alone.
    let source = if bus.is_on_server() { "stream" } else { "url" };
    let limits = json!({
        "maxEvents": 10, "maxBytes": null, "maxAgeMs": 604_800_000, "discard": "old", "source": source, "fill": 0.4
    });
    assert_eq!(info["limits"], limits);
    assert_eq!(table.contains("7 days (this URL)"), !bus.is_on_server(), "{table}");
}

async fn consumers_have_the_names_of_their_programs(bus: &Bus) {
    billing(bus, 1, None).await;
    let row = &bus.rows(&["consumers"])[0];
    assert_eq!((&row["subscriber"], &row["filter"]), (&json!("billing"), &json!("events.orders.>")));
    let stored = row["name"].as_str().unwrap();
    assert!(stored.starts_with("billing-events-orders---"));
    let table = bus.prints(&["consumers"]);
    let line = table.lines().nth(1).unwrap();
    assert!(line.starts_with("billing   events.orders.>") && !line.contains("---"), "{table}");
    assert!(bus.prints(&["consumers", "--wide"]).contains(stored));
    let ran = bus.run(&["sub", "--durable", stored, "--ack", "term"]);
    assert!(ran.stderr.contains("consumer 'billing' of 'events.orders.>' exists"), "{}", ran.stderr);
}

async fn a_consumer_is_reset(bus: &Bus) {
    let program = billing(bus, 4, None).await;
    drop(program);
    let take = |count: &str| numbers(&bus.rows(&["sub", "--durable", "billing", "--count", count]));
    assert_eq!(take("4"), [1, 2, 3, 4]);
    let to_first = ["consumers", "reset", "billing", "--to", "first"];
    let ran = bus.run(&to_first);
    let said =
        "this moves consumer 'billing' of 'events.orders.>' from the end to sequence 1 (4 events to receive)";
    assert!(ran.code == 2 && ran.stderr.contains(said) && ran.stderr.contains("--yes"), "{}", ran.stderr);
    let dry = &bus.rows(&[&to_first[..], &["--dry-run"]].concat())[0];
    assert_eq!(bus.rows(&["consumers"])[0]["lag"], 0, "nothing has moved yet");
    let moved = &bus.rows(&[&to_first[..], &["--yes"]].concat())[0];
    assert_eq!((&moved["subscriber"], &moved["lag"]), (&json!("billing"), &json!(4)));
    assert_eq!((&moved["previousLag"], &moved["previousSequence"]), (&json!(0), &Value::Null));
    assert_eq!((&moved["nextSequence"], moved), (&json!(1), dry));
    assert_eq!(take("2"), [1, 2]);
    let stored = moved["name"].as_str().unwrap();
    let reset = |to: &str| bus.rows(&["consumers", "reset", stored, "--to", to, "--yes"]).remove(0);
    let lag = |to: &str| reset(to)["lag"].as_u64().unwrap();
    assert_eq!(["last", "3", "1h", "first"].map(lag), [0, 2, 4, 4]);
    let moved = reset("3");
    let of = |key: &str| moved[key].as_u64().unwrap();
    let keys = ["previousSequence", "previousLag", "nextSequence", "lag"];
    assert_eq!(keys.map(of), [1, 4, 3, 2]);
    let table = bus.prints(&["consumers", "reset", stored, "--to", "last", "--yes"]);
    assert!(table.contains("old sequence") && table.contains("end"), "{table}");
    assert_eq!(bus.run(&["consumers", "reset", "billing", "--to", "someday"]).code, 2);
    let ran = bus.run(&["consumers", "reset", "nobody", "--to", "first"]);
    assert!(ran.code == 1 && ran.stderr.contains("no consumer 'nobody'"), "{}", ran.stderr);
}

async fn a_consumer_is_deleted_by_either_name(bus: &Bus) {
    billing(bus, 2, None).await;
    bus.prints(&["sub", "events.a", "events.b", "--durable", "audit", "--idle", "100ms"]);
    let names = || bus.rows(&["consumers"]).iter().map(|row| row["name"].clone()).collect::<Vec<_>>();
    let before = names();
    assert_eq!(before.len(), 3);
    let ran = bus.run(&["consumers", "rm", "billing"]);
    let said = "this deletes consumer 'billing' of 'events.orders.>' with 2 events to handle";
    assert!(ran.code == 2 && ran.stderr.contains(said) && ran.stderr.contains("--yes"), "{}", ran.stderr);
    assert_eq!(bus.run(&["consumers", "--remove", "billing"]).code, 2);
    assert_eq!(names(), before);
    let stored = before[2].as_str().unwrap();
    assert!(stored.starts_with("billing-"));
    let printed = bus.prints(&["consumers", "rm", stored, "--yes"]);
    assert!(printed.ends_with("\ndeleted consumer 'billing' of 'events.orders.>'\n"), "{printed}");
    let ran = bus.run(&["consumers", "rm", "audit", "--filter", "events.c", "--yes"]);
    assert!(ran.code == 1 && ran.stderr.contains("events.a, events.b"), "{}", ran.stderr);
    assert_eq!(
        bus.rows(&["consumers", "rm", "audit", "--filter", "events.b", "--yes"])[0]["filter"],
        "events.b"
    );
    assert_eq!(bus.rows(&["consumers", "--remove", "audit", "--yes"])[0]["filter"], "events.a");
    assert!(names().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_purged_and_deleted() {
    let bus = Bus::nats().await;
    bus.publish("events.a", 3);
    bus.publish("events.b", 2);
    let ran = bus.run(&["streams", "purge", "events.b"]);
    let said = "this deletes 2 events of 'events.b' from stream 'A3S_EVENTS'";
    assert!(ran.code == 2 && ran.stderr.contains(said), "{}", ran.stderr);
    assert_eq!(bus.rows(&["history"]).len(), 5);
    assert_eq!(bus.rows(&["streams", "purge", "--filter", "events.b", "--yes"])[0]["purged"], 2);
    assert_eq!(numbers(&bus.rows(&["history"])), [3, 2, 1]);
    assert!(bus.run(&["stream", "purge"]).stderr.contains("all 3 events"));
    assert_eq!(bus.rows(&["stream", "purge", "--yes"])[0], json!({ "stream": "A3S_EVENTS", "purged": 3 }));

    let ran = bus.run(&["streams", "rm", "OTHER", "--yes"]);
    assert!(ran.code == 2 && ran.stderr.contains("'A3S_EVENTS', not 'OTHER'"), "{}", ran.stderr);
    assert_eq!(bus.run(&["streams", "rm"]).code, 2);
    let printed = bus.prints(&["streams", "rm", "A3S_EVENTS", "--yes"]);
    assert!(printed.ends_with("\ndeleted stream 'A3S_EVENTS'\n"), "{printed}");
    assert_eq!(bus.run(&["history"]).code, 3, "it is gone");
}

#[test]
fn an_embedded_bus_is_purged_as_a_whole() {
    let bus = Bus::sqlite();
    bus.publish("events.a", 3);
    for arguments in [&["purge", "events.a", "--yes"][..], &["rm", "--yes"]] {
        let ran = bus.run(&[&["streams"], arguments].concat());
        assert!(ran.code == 3 && ran.stderr.contains("`streams purge` deletes all events"), "{}", ran.stderr);
    }
    assert_eq!(bus.rows(&["history"]).len(), 3);
    assert_eq!(bus.rows(&["streams", "purge", "--yes"])[0]["purged"], 3);
    assert!(bus.rows(&["history"]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_asked_before_something_is_lost() {
    let bus = Bus::nats().await;
    bus.publish("events.a", 3);
    let line =
        format!("PATH='{}':$PATH; a3s-event streams purge; a3s-event streams purge", programs().display());
    let Some(terminal) = Terminal::open(&bus, &line) else { return };
    terminal.shows(&["this deletes all 3 events", "[y/N]"]).await;
    terminal.enter("");
    terminal.shows(&["nothing was changed"]).await;
    assert_eq!(bus.rows(&["history"]).len(), 3);
    terminal.enter("y");
    terminal.shows(&["ended with 0"]).await;
    assert!(bus.rows(&["history"]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_server_is_no_failure() {
    let bus = Bus::nats().await;
    let said = bus.prints(&["doctor"]);
    assert!(said.contains("note  stream: no stream yet") && !said.contains("FAIL"), "{said}");
    let checks = bus.rows(&["doctor"]);
    let check = checks.iter().find(|check| check["check"] == "stream").unwrap();
    assert_eq!((&check["ok"], &check["status"]), (&json!(true), &json!("note")));
    // A wrong name beside other streams is a failure that names the others.
    bus.publish("events.a", 1);
    let ran = bus.run(&["doctor", "--url", &format!("{}/TYPO?subject_prefix=typo", bus.url)]);
    assert!(ran.code == 3 && ran.stdout.contains("FAIL  connection"), "{}", ran.stdout);
    assert!(
        ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ").contains("the server has 'A3S_EVENTS'"),
        "{}",
        ran.stdout
    );
}

#[test]
fn doctor_says_what_to_do_and_never_names_itself() {
    let bus = Bus::sqlite();
    let ran = bus.run(&["doctor", "--url", "nats://127.0.0.1:1"]);
    assert!(ran.code == 4 && ran.stdout.contains("\n      Advice: start the server"), "{}", ran.stdout);
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(
        !said.contains("doctor")
            && said.lines().filter(|line| !line.starts_with("error")).all(|line| line.len() <= 80),
        "{said}"
    );
    assert!(bus.run(&["info", "--url", "nats://127.0.0.1:1"]).stderr.contains("`a3s-event doctor`"));
}

#[test]
fn the_prefix_of_the_stream_is_named() {
    let bus = Bus::sqlite();
    let url = format!("{}?subject_prefix=acme", bus.url);
    for arguments in [&["pub", "orders.placed", "1"][..], &["sub", "orders.placed", "--count", "1"]] {
        let ran = bus.run(&[arguments, &["--url", &url]].concat());
        assert_eq!(ran.code, 3);
        let said = &ran.stderr;
        assert!(
            said.contains("'acme.'")
                && said.contains("subject_prefix")
                && said.contains("acme.orders.placed"),
            "{said}"
        );
        assert!(!said.contains("events."), "{said}");
    }
}

#[test]
fn a_typo_in_a_path_makes_no_folder() {
    let bus = Bus::sqlite();
    let path = bus.path("typo/events.db");
    let ran = bus.run(&["pub", "events.a", "1", "--url", &format!("sqlite://{}", path.display())]);
    assert!(ran.code == 3 && ran.stderr.contains("does not exist; create it"), "{}", ran.stderr);
    assert!(!bus.path("typo").exists());
}

#[test]
fn one_word_means_one_thing_everywhere() {
    let bus = Bus::sqlite();
    bus.publish("events.a", 3);
    bus.publish("events.b", 2);
    let rows = |arguments: &[&str]| bus.rows(arguments).len();
    for filter in [&["events.b"][..], &["--filter", "events.b"]] {
        assert_eq!(rows(&[&["history"], filter].concat()), 2);
        assert_eq!(rows(&[&["tail", "--no-follow"], filter].concat()), 2);
        assert_eq!(rows(&[&["sub", "--from", "all", "--count", "2"], filter].concat()), 2);
    }
    assert_eq!(rows(&["history", "-n", "2"]), 2);
    assert_eq!(rows(&["tail", "--no-follow", "-n", "1"]), 1);
    assert_eq!(rows(&["dlq", "list", "-n", "1"]), 0);
    assert_eq!(bus.run(&["history", "events.a", "--filter", "events.b"]).code, 2);
    // The option works before and after every command.
    let letters = format!("sqlite://{}", bus.path("letters.db").display());
    bus.prints(&["pub", "events.a", "1", "--url", &letters]);
    for arguments in [["--dlq-url", &letters, "dlq", "list"], ["dlq", "list", "--dlq-url", &letters]] {
        assert_eq!(rows(&arguments), 0);
    }
    assert_eq!(bus.run(&["info", "--dlq-url", &letters]).code, 0);
}
