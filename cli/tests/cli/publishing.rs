//! Tests of `pub`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::bus::{Bus, ended, numbers};
use crate::on_every_bus;

on_every_bus! { one_event_in_every_form many_from_a_pipe many_from_a_document whole_events_keep_what_they_are
a_resumed_run_goes_on_where_it_stopped a_wrong_record_is_named
a_resume_file_belongs_to_one_input_and_one_bus a_duplicate_is_not_a_first_publish
a_value_that_was_not_read_exactly_is_no_name the_content_decides_and_not_the_name
what_is_stored_is_said_when_a_record_is_wrong what_is_stored_behind_a_refusal_is_said equal_keys_are_refused
a_signal_ends_an_import_that_says_how_to_go_on }

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
    // The id is known: the event is stored once.
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
    let target = ["import", &file, "--category", "q", "--topic", "{properties.net}.{properties.kind}"];
    bus.prints(&[&target[..], &fields].concat());

    let rows = bus.rows(&["history"]);
    let event = &rows[1]["event"];
    assert_eq!(rows.len(), 2);
    assert_eq!(event["subject"], "events.q.us.quarry_blast");
    assert_eq!((&event["id"], &event["timestamp"]), (&json!("x1"), &json!(1_517_966_773_840_u64)));
    assert_eq!(event["summary"], "quarry blast of us");
    assert_eq!(event["payload"], json!({"net": "us", "kind": "quarry blast"}));
    assert_eq!(rows[0]["event"]["subject"], "events.q.ci.quake_small");

    // The same from stdin, with a default for a value that one record lacks.
    let piped = ["import", "-", "events.p.{properties.alert|none}", "--time", "{when|2018-02-07}"];
    let ran = bus.run_with_stdin(&piped, document);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let event = &bus.rows(&["history", "--limit", "1"])[0]["event"];
    assert_eq!(
        (&event["subject"], &event["timestamp"]),
        (&json!("events.p.none"), &json!(1_517_961_600_000_u64))
    );

    let ran = bus.run(&["import", &file, "events.q", "--items", "elements"]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("no array 'elements'"), "{}", ran.stderr);
}

async fn whole_events_keep_what_they_are(bus: &Bus) {
    bus.publish("events.first", 3);
    let exported = bus.prints(&["history", "--output", "ndjson"]);
    let other = Bus::sqlite();
    let ran = other.run_with_stdin(&["import", "-", "--events"], &exported);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let events =
        |rows: Vec<serde_json::Value>| rows.into_iter().map(|row| row["event"].clone()).collect::<Vec<_>>();
    let mut copied = events(other.rows(&["history"]));
    copied.reverse();
    assert_eq!(copied, events(bus.rows(&["history"])));
}

async fn a_resumed_run_goes_on_where_it_stopped(bus: &Bus) {
    let resume = bus.path("state").to_str().unwrap().to_owned();
    let arguments = ["import", "-", "events.r", "--batch", "10", "--resume", &resume];
    let lines = |to: u64| (1..=to).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>();

    assert_eq!(bus.run_with_stdin(&arguments, &lines(20)).code, 0);
    let before_crash = std::fs::read(bus.path("state")).unwrap();
    let ran = bus.run_with_stdin(&arguments, &format!("{}nonsense\n", lines(25)));
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("line 26") && ran.stderr.contains("after record 25"), "{}", ran.stderr);
    // The file holds the progress. A crash before its write repeats a batch with the same ids.
    assert_ne!(std::fs::read(bus.path("state")).unwrap(), before_crash);
    std::fs::write(bus.path("state"), before_crash).unwrap();

    let ran = bus.run_with_stdin(&arguments, &lines(40));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("duplicates") && ran.stderr.contains("5 records with an id"),
        "{}",
        ran.stderr
    );
    assert_eq!(numbers(&bus.rows(&["history"])), (1..=40).rev().collect::<Vec<_>>());
}

async fn a_signal_ends_an_import_that_says_how_to_go_on(bus: &Bus) {
    let state = bus.path("state").to_str().unwrap().to_owned();
    let ways = [
        (&[][..], "records 1 to 2 of the input are stored and none after them; --skip 2 resumes there"),
        (
            &["--resume", &state],
            "records 1 to 2 of the input are stored; the same command resumes after record 2",
        ),
    ];
    for (run, (more, way)) in ways.into_iter().enumerate() {
        let mut import = bus.command(&[&["import", "-", "events.s"], more].concat());
        let import = import.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut import = import.spawn().unwrap();
        let mut records = import.stdin.take().unwrap();
        records.write_all(b"1\n2\n").unwrap();
        while bus.run(&["history", "--output", "ndjson"]).stdout.lines().count() < 2 * (run + 1) {}
        let killed = Command::new("kill").args(["-s", "INT", &import.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let ran = ended(import.wait_with_output().unwrap());
        assert!(ran.code == 1 && ran.stderr.contains("ended by a signal"), "{}: {}", ran.code, ran.stderr);
        assert!(ran.stderr.contains(way) && ran.stdout.contains("events"), "{}{}", ran.stderr, ran.stdout);
        drop(records);
    }
}

async fn a_resume_file_belongs_to_one_input_and_one_bus(bus: &Bus) {
    let state = bus.path("state").to_str().unwrap().to_owned();
    let lines =
        |numbers: std::ops::RangeInclusive<u64>| numbers.map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let resume = |bus: &Bus, text: String| {
        bus.run(&["import", &bus.file("n.ndjson", &text), "events.r", "--resume", &state])
    };
    assert_eq!(resume(bus, lines(1..=8)).code, 0);
    let others: [String; 5] = [
        // Rotated inputs: shorter, as long, longer, with shorter lines, and empty.
        lines(11..=13),
        lines(2..=9),
        lines(11..=30),
        "1\n".repeat(200),
        String::new(),
    ];
    for other in others {
        let ran = resume(bus, other);
        assert!(ran.code == 3 && ran.stderr.contains("another resume file"), "{}{}", ran.stdout, ran.stderr);
        assert_eq!(numbers(&bus.rows(&["history"])), (1..=8).rev().collect::<Vec<_>>());
    }
    let elsewhere = Bus::sqlite();
    let ran = resume(&elsewhere, lines(1..=8));
    assert!(ran.code == 3 && ran.stderr.contains("for another bus"), "{}", ran.stderr);
    // A resumed input may grow and move.
    assert_eq!(resume(bus, lines(1..=10)).code, 0);
    let moved = bus.file("moved.ndjson", &lines(1..=11));
    let row = &bus.rows(&["import", &moved, "events.r", "--resume", &state])[0];
    assert_eq!((&row["events"], &row["skipped"]), (&json!(1), &json!(10)));
    assert_eq!(numbers(&bus.rows(&["history"])), (1..=11).rev().collect::<Vec<_>>());
    // The resume file also binds a document.
    let document = |text: &str| {
        let file = bus.file("d.json", text);
        bus.run(&["import", &file, "events.d", "--resume", bus.path("d").to_str().unwrap()]).code
    };
    assert_eq!(document("[1, 2, 3]"), 0);
    assert_eq!(document("[1, 2, 4]"), 3);
    assert_eq!(document("[1, 2]"), 3);
    // Resume files of earlier versions name no input.
    std::fs::write(&state, "{\"run\":\"evt-1\",\"records\":8}").unwrap();
    let ran = resume(bus, lines(1..=12));
    assert!(ran.code == 3 && ran.stderr.contains("--skip 8"), "{}", ran.stderr);
}

async fn a_duplicate_is_not_a_first_publish(bus: &Bus) {
    let publish = |payload: &str| bus.run(&["pub", "events.a", payload, "--id", "one", "--output", "ndjson"]);
    let (first, again) = (publish("{\"n\": 1}"), publish("{\"n\": 2}"));
    let row = |ran: &crate::bus::Ran| crate::bus::json_lines(&ran.stdout)[0].clone();
    assert_eq!((&row(&first)["duplicate"], first.stderr.as_str()), (&json!(false), ""));
    assert_eq!((&row(&again)["duplicate"], &row(&again)["sequence"]), (&json!(true), &json!(1)));
    assert!(again.code == 0 && again.stderr.contains("nothing was stored"), "{}", again.stderr);
    let table = bus.prints(&["pub", "events.a", "3", "--id", "one"]);
    assert!(table.contains("duplicate  true"), "{table}");
    let many = ["import", "-", "events.a", "--id", "{id}", "--output", "ndjson"];
    let lines = "{\"id\":\"one\"}\n{\"id\":\"two\"}\n{\"id\":\"two\"}\n";
    let ran = bus.run_with_stdin(&many, lines);
    assert_eq!((&row(&ran)["events"], &row(&ran)["duplicates"]), (&json!(1), &json!(2)));
    assert!(ran.code == 0 && ran.stderr.contains("2 records with an id"), "{}", ran.stderr);
    assert_eq!(bus.rows(&["history"]).len(), 2);
}

async fn a_value_that_was_not_read_exactly_is_no_name(bus: &Bus) {
    let wrong =
        ["null", "true", "{}", "[1]", "0.5", "1e3", "18446744073709551616", "123456789012345678901234567890"];
    for value in wrong {
        let line = format!("{{\"v\":{value}}}\n");
        for fields in [
            &["events.a", "--id", "{v}"][..],
            &["events.{v}"],
            &["events.a", "--time", "{v}"],
            &["events.a", "--type", "{v}"],
            &["--category", "a", "--topic", "x.{v}"],
        ] {
            let ran = bus.run_with_stdin(&[&["import", "-"], fields].concat(), &line);
            let is_named = ran.stderr.contains("record 1") && ran.stderr.contains("{v}");
            assert!(ran.code == 3 && is_named, "{value} {fields:?}: {}{}", ran.stdout, ran.stderr);
        }
    }
    assert_eq!(bus.rows(&["info"])[0]["messages"], 0);
    let line = "{\"v\":18446744073709551615}\n{\"v\":\"0.5\"}\n";
    assert_eq!(bus.run_with_stdin(&["import", "-", "events.a", "--id", "{v}"], line).code, 0);
    let rows = bus.rows(&["history"]);
    assert_eq!(
        (&rows[1]["event"]["id"], &rows[0]["event"]["id"]),
        (&json!("18446744073709551615"), &json!("0.5"))
    );
}

async fn the_content_decides_and_not_the_name(bus: &Bus) {
    let lines = "{\"id\":\"1\",\"kind\":\"net\\u200b\"}\n{\"id\":\"2\",\"kind\":\"x y\"}\n";
    let file = bus.file("2015-01-01-15.json", lines);
    bus.prints(&["import", &file, "events.gh.{kind}", "--id", "{id}"]);
    let subjects: Vec<_> = bus.rows(&["history"]).iter().map(|row| row["event"]["subject"].clone()).collect();
    assert_eq!(subjects, ["events.gh.x_y", "events.gh.net_"]);
    let collection = "{\"type\":\"FeatureCollection\",\"features\":[{\"id\":\"a\"},{\"id\":\"b\"}]}";
    let events = |name: &str, text: &str, more: &[&str]| {
        let file = bus.file(name, text);
        bus.rows(&[&["import", &file, "events.c"], more].concat())[0]["events"].as_u64().unwrap()
    };
    assert_eq!(events("one.ndjson", collection, &[]), 2, "a document, however it is called");
    assert_eq!(events("two.geojson", &format!("{collection}\n{collection}\n"), &[]), 2, "two records");
    assert_eq!(events("one.json", collection, &["--layout", "ndjson"]), 1);
    let piped = ["import", "-", "events.c", "--output", "ndjson"];
    assert_eq!(crate::bus::json_lines(&bus.run_with_stdin(&piped, collection).stdout)[0]["events"], 2);
    // An option that names the array implies one.
    let file = bus.file("no.json", "{\"features\": [1]}");
    let ran = bus.run(&["import", &file, "events.c", "--items", "elements"]);
    assert!(ran.code == 3 && ran.stderr.contains("elements"), "{}", ran.stderr);
}

async fn what_is_stored_is_said_when_a_record_is_wrong(bus: &Bus) {
    let many = ["import", "-", "events.a", "--id", "{id}", "--output", "ndjson"];
    let lines = "{\"id\":\"1\"}\n{\"id\":\"2\"}\n{\"id\":null}\n{\"id\":\"4\"}\n";
    let ran = bus.run_with_stdin(&many, lines);
    assert_eq!(ran.code, 3);
    for said in ["record 3", "records 1 to 2 of the input are stored and none after them", "--skip 2"] {
        assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr);
    }
    let row = &crate::bus::json_lines(&ran.stdout)[0];
    assert_eq!((&row["events"], &row["lastSequence"]), (&json!(2), &json!(2)));
    let mended = lines.replace("null", "\"3\"");
    let ran = bus.run_with_stdin(&[&many[..], &["--skip", "2"]].concat(), &mended);
    let row = &crate::bus::json_lines(&ran.stdout)[0];
    assert_eq!((&row["events"], &row["skipped"]), (&json!(2), &json!(2)), "{}", ran.stderr);
    // An event that the bus would refuse is found before any later one is sent.
    let long = format!("{{\"id\":\"5\"}}\n{{\"id\":\"{}\"}}\n{{\"id\":\"7\"}}\n", "x".repeat(1_000));
    let ran = bus.run_with_stdin(&many, &long);
    assert!(ran.code == 3 && ran.stderr.contains("record 1 of the input is stored"), "{}", ran.stderr);
    let ran = bus.run_with_stdin(&many, "{\"id\":null}\n");
    assert!(
        ran.code == 3 && ran.stderr.contains("nothing was stored") && ran.stdout.is_empty(),
        "{}",
        ran.stderr
    );
    let ran = bus.run_with_stdin(&[&many[..], &["--skip", "9"]].concat(), lines);
    assert!(ran.code == 3 && ran.stderr.contains("has 4 records"), "{}", ran.stderr);
    assert_eq!(bus.rows(&["history"]).len(), 5);
}

async fn what_is_stored_behind_a_refusal_is_said(bus: &Bus) {
    let large = "x".repeat(2 << 20);
    let lines = format!("1\n2\n\"{large}\"\n4\n5\n");
    let ran = bus.run_with_stdin(&["import", "-", "events.a"], &lines);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("record 3")
            && ran.stderr.contains("records 1 to 2, 4 to 5 of the input are stored"),
        "{}",
        ran.stderr
    );
    assert_eq!(bus.rows(&["history"]).len(), 4);
}

async fn equal_keys_are_refused(bus: &Bus) {
    let twice = "{\"a\": 1, \"b\": {\"c\": 1, \"c\": 2}}";
    let file = bus.file("twice.json", twice);
    let from_file = format!("@{file}");
    for arguments in [
        &["pub", "events.a", twice][..],
        &["pub", "events.a", &from_file],
        &["import", &file, "events.a"],
        &["import", &file, "--events"],
    ] {
        let ran = bus.run(arguments);
        assert!(ran.code == 3 && ran.stderr.contains("given twice"), "{arguments:?}: {}", ran.stderr);
    }
    assert_eq!(bus.run_with_stdin(&["pub", "events.a", "-"], twice).code, 3);
    let ran = bus.run(&["pub", "events.a", "1", "--meta", "k=v", "--meta", "k=w"]);
    assert!(ran.code == 2 && ran.stderr.contains("twice"), "{}", ran.stderr);
    assert_eq!(bus.rows(&["info"])[0]["messages"], 0);
}

async fn a_wrong_record_is_named(bus: &Bus) {
    let ran = bus.run_with_stdin(&["import", "-", "events.{kind}"], "{\"kind\":\"a\"}\n{\"kin\":\"b\"}\n");
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("record 2") && ran.stderr.contains("{kind}"), "{}", ran.stderr);
    let ran = bus.run_with_stdin(&["import", "-", "elsewhere.{kind}"], "{\"kind\":\"a\"}\n");
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("record 1"), "{}", ran.stderr);
    assert_eq!(bus.rows(&["history"]).len(), 1);
}

#[test]
fn documents_on_stdin_are_recognised() {
    let bus = Bus::sqlite();
    let import = |text: &str| bus.run_with_stdin(&["import", "-", "events.a", "--output", "ndjson"], text);
    for (text, events) in [
        ("{\n  \"n\": 1,\n  \"tags\": [\"x\"]\n}\n", 1),
        ("{\n  \"n\": 1\n}\n{\n  \"n\": 2\n}\n", 2),
        ("{\n  \"type\": \"FeatureCollection\",\n  \"features\": [\n    {\"n\": 1}\n  ]\n}\n", 1),
    ] {
        let ran = import(text);
        assert_eq!(ran.code, 0, "{text}{}", ran.stderr);
        assert_eq!(crate::bus::json_lines(&ran.stdout)[0]["events"], events, "{text}");
    }
    let ran = import("{\n  \"data\": [{\"n\": 1}]\n}\n");
    assert!(ran.code == 3 && ran.stderr.contains("--items 'data'"), "{}", ran.stderr);
    // The runs of the tests have no stdin, which a program sees as a closed one.
    for arguments in
        [&["import", "-", "events.a"][..], &["pub", "events.a", "--text", "-"], &["restore", "-"]]
    {
        let ran = bus.run(arguments);
        assert!(ran.code == 3 && ran.stderr.contains("stdin is closed"), "{arguments:?}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn the_size_of_an_event_is_that_which_the_server_counts() {
    let limit = 65_536;
    let server =
        a3s_event_testkit::NatsServer::start_with(&format!("max_payload: {limit}, jetstream {{}}")).await;
    let bus = Bus::on(server);
    let line = |length: usize| format!("{{\"id\":\"one\",\"x\":\"{}\"}}\n", "x".repeat(length));
    let publish = |length| bus.run_with_stdin(&["import", "-", "events.a", "--id", "{id}"], &line(length));
    // The size of an event without its text.
    let ran = publish(limit);
    let size = |stderr: &str| -> usize {
        let (before, _) = stderr.split_once(" bytes is over").unwrap();
        before.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let beside = size(&ran.stderr) - limit;
    // The event fits, and its headers do not.
    let ran = publish(limit - beside);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("event with its headers of ") && size(&ran.stderr) > limit, "{}", ran.stderr);
}
