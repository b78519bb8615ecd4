//! Tests of `dump` and `restore`.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::bus::{Bus, ended, json_lines, numbers};
use crate::on_every_bus;
use crate::watching::Terminal;

on_every_bus! { a_dump_brings_a_bus_back a_restore_goes_on_where_it_stopped unreadable_records_are_not_restored_and_named }

/// Reads the events of a bus, oldest first.
fn events(bus: &Bus) -> Vec<Value> {
    let rows = bus.rows(&["history", "--all", "--oldest-first"]);
    rows.into_iter().map(|row| row["event"].clone()).collect()
}

async fn a_dump_brings_a_bus_back(bus: &Bus) {
    bus.publish("events.a", 1_200);
    let typed = ["--type", "t", "--meta", "k=v", "--time", "2018-02-07", "--summary", "s"];
    bus.prints(&[&["pub", "events.b", "{\"n\": 0}"], &typed[..]].concat());
    // The library's own records belong to the bus.
    crate::letters::keep(bus, &["events.c"]).await;
    let dump = bus.prints(&["dump"]);
    let lines = json_lines(&dump);
    assert_eq!(lines.last().unwrap(), &json!({"end": {"records": 1_202, "lastSequence": 1_202}}));
    assert_eq!(lines[..1_202], bus.rows(&["history", "--all", "--oldest-first"]));

    let (back, server) = (Bus::sqlite(), Bus::nats().await);
    let file = back.file("dump.ndjson", &dump);
    for to in [&back, &server] {
        let row = &to.rows(&["restore", &file])[0];
        assert_eq!((&row["events"], &row["duplicates"]), (&json!(1_202), &json!(0)));
        assert_eq!(events(to), events(bus));
        bus.prints(&["diff", &bus.url, &to.url]);
        assert_eq!(to.rows(&["dlq", "list"]).len(), 1);
    }
    let again = back.run(&["restore", &file]);
    assert!(again.code == 0 && again.stderr.contains("1,202 records with an id"), "{}", again.stderr);
    assert!(again.stderr.contains("the stream holds 1,202 events already"), "{}", again.stderr);

    let part = json_lines(&bus.prints(&["dump", "events.b"]));
    assert_eq!((numbers(&part[..1]), &part[1]["end"]["records"]), (vec![0], &json!(1)));
    let empty = json_lines(&bus.prints(&["dump", "events.none"]));
    assert_eq!(empty, [json!({"end": {"records": 0, "lastSequence": null}})]);
}

async fn a_restore_goes_on_where_it_stopped(bus: &Bus) {
    let from = Bus::sqlite();
    from.publish("events.a", 30);
    let dump = from.prints(&["dump"]);
    let state = bus.path("state").to_str().unwrap().to_owned();
    let restore = ["restore", "-", "--batch", "10", "--resume", &state];
    let cut: String = dump.lines().take(20).map(|line| format!("{line}\n")).collect();
    let ran = bus.run_with_stdin(&restore, &cut);
    assert!(ran.code == 3 && ran.stderr.contains("it was cut"), "{}", ran.stderr);
    assert!(ran.stderr.contains("resumes after record 20"), "{}", ran.stderr);
    let ran = bus.run_with_stdin(&[&restore[..], &["--output", "ndjson"]].concat(), &dump);
    let row = &json_lines(&ran.stdout)[0];
    assert_eq!((&row["events"], &row["skipped"]), (&json!(10), &json!(20)), "{}", ran.stderr);
    assert_eq!(events(bus), events(&from));
}

async fn unreadable_records_are_not_restored_and_named(bus: &Bus) {
    crate::unreadable::one_of_three(bus).await;
    let dump = bus.run(&["dump"]);
    assert!(dump.code == 1 && dump.stderr.contains("sequence 2"), "{}", dump.stderr);
    let to = Bus::sqlite();
    let ran = to.run_with_stdin(&["restore", "-"], &dump.stdout);
    assert!(ran.code == 1 && ran.stderr.contains("not restored: 1 stored record"), "{}", ran.stderr);
    assert_eq!(numbers(&to.rows(&["history"])), [3, 1]);
}

#[test]
fn a_file_that_is_no_whole_dump_is_refused_before_anything_is_stored() {
    let bus = Bus::sqlite();
    bus.publish("events.a", 5);
    let dump = bus.prints(&["dump"]);
    let lines: Vec<_> = dump.lines().collect();
    let newest_first = bus.prints(&["history", "--output", "ndjson"]);
    for (text, why) in [
        (lines[..3].join("\n"), "does not end with the last line"),
        (dump[..dump.len() - 20].to_owned(), "does not end with the last line"),
        ([&lines[1..5], &lines[5..]].concat().join("\n"), "part of it is missing"),
        (format!("{newest_first}{}", lines[5]), "not oldest first"),
        (dump.repeat(2), "one dump at a time"),
    ] {
        for is_file in [true, false] {
            let to = Bus::sqlite();
            let ran = match is_file {
                true => to.run(&["restore", &to.file("wrong.ndjson", &text)]),
                false => to.run_with_stdin(&["restore", "-"], &text),
            };
            assert_eq!(ran.code, 3, "{why}: {}", ran.stderr);
            let is_at_the_end = why.contains("line") && !is_file;
            assert!(ran.stderr.contains(why) || is_at_the_end, "{why}: {}", ran.stderr);
            let stored = if to.path("bus.db").exists() {
                to.rows(&["info"])[0]["messages"].as_u64().unwrap()
            } else {
                0
            };
            // The rest of a pipe is unknown before its end.
            assert!(stored == 0 || is_at_the_end, "{why}: {stored}");
        }
    }
}

#[test]
fn a_stream_that_is_too_small_for_a_dump_is_named() {
    let (bus, to) = (Bus::sqlite(), Bus::sqlite());
    bus.publish("events.a", 600);
    let dump = bus.prints(&["dump"]);
    let small = format!("{}?max_events=500", to.url);
    let ran = to.run(&["restore", &to.file("dump.ndjson", &dump), "--url", &small]);
    assert!(ran.code == 1 && ran.stderr.contains("the dump has 600, and the limit is 500"), "{}", ran.stderr);
    assert!(!to.path("bus.db").exists(), "a new one has no limits yet");
    // The size of a pipe is unknown before its end.
    let ran = to.run_with_stdin(&["restore", "-", "--url", &small], &dump);
    assert!(ran.code == 1 && ran.stderr.contains("has dropped events"), "{}", ran.stderr);
}

#[test]
fn events_in_another_order_are_imported_with_a_warning() {
    let (bus, to) = (Bus::sqlite(), Bus::sqlite());
    bus.publish("events.a", 5);
    let ran =
        to.run_with_stdin(&["import", "-", "--events"], &bus.prints(&["history", "--output", "ndjson"]));
    assert!(ran.code == 0 && ran.stderr.contains("warning: record 2 has sequence 4"), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("warning").count(), 1, "{}", ran.stderr);
    let ran = Bus::sqlite().run_with_stdin(&["import", "-", "--events"], &bus.prints(&["dump"]));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "a dump is a file of events");
}

/// Progress appears only on terminals that can draw it, and stdout holds only the dump.
#[tokio::test]
async fn progress_is_seen_on_a_terminal_only() {
    let bus = Bus::sqlite();
    bus.publish("events.a", 2_500);
    let dump = bus.run(&["dump"]);
    assert_eq!(dump.stderr, "");
    let file = bus.file("dump.ndjson", &dump.stdout);
    let mut child =
        bus.command(&["restore", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(dump.stdout.as_bytes()).unwrap();
    assert!(!ended(child.wait_with_output().unwrap()).stderr.contains('\u{1b}'));
    let program = env!("CARGO_BIN_EXE_a3s-event");
    let slow = format!(
        "(head -n 1000 {file}; sleep 2; tail -n +1001 {file}) | {program} --url sqlite:{file}.db restore -"
    );
    let Some(terminal) = Terminal::open(&bus, &slow) else { return };
    terminal.shows(&["events", "/s"]).await;
    terminal.shows(&["2,500", "ended with 0"]).await;
    let bench = format!(
        "{program} bench publish --count 20000 --batch 10; TERM=dumb {program} bench publish --count 500"
    );
    let Some(terminal) = Terminal::open(&bus, &bench) else { return };
    terminal.shows(&["of 20,000 events", "left"]).await;
    terminal.shows(&["ended with 0"]).await;
}
