//! Tests of `copy` and `diff`.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::{Event, EventProvider, HistoryQuery, ProviderRegistry, SubscribeOptions};
use serde_json::{Value, json};

use crate::bus::{Bus, week};

#[track_caller]
fn copy(from: &Bus, to: &Bus) -> Value {
    from.rows(&["copy", &from.url, &to.url])[0].clone()
}

#[track_caller]
fn are_equal(from: &Bus, to: &Bus, events: u64) {
    let same = &from.rows(&["diff", &from.url, &to.url])[0];
    assert_eq!(*same, json!({"events": events, "differences": 0}));
}

#[tokio::test]
async fn the_week_moves_from_sqlite_to_a_server_and_back() {
    for there in [Bus::nats().await, Bus::redis().await] {
        let (file, events) = week();
        let (here, back) = (Bus::sqlite(), Bus::sqlite());
        let subject = "events.quake.{properties.net}";
        let fields = ["--id", "{id}", "--time", "{properties.time}", "--summary", "M {properties.mag}"];
        here.prints(&[&["import", &file, subject], &fields[..]].concat());
        assert_eq!(copy(&here, &there)["events"], events);
        are_equal(&here, &there, events);
        // A second copy has nothing to do, and later events are added.
        assert_eq!(copy(&here, &there)["events"], 0);
        here.publish("events.later", 3);
        assert_eq!(
            copy(&here, &there),
            json!({"firstSequence": events + 1, "events": 3, "consumers": [], "notMapped": []})
        );
        assert_eq!(copy(&there, &back)["events"], events + 3);
        are_equal(&here, &back, events + 3);
    }
}

#[tokio::test]
async fn a_copy_that_was_cut_off_goes_on_without_a_gap() {
    let (from, to) = (Bus::sqlite(), Bus::nats().await);
    from.publish("events.a", 100);
    copy(&from, &to);
    from.publish("events.a", 2_500);
    assert_eq!(copy(&from, &to)["firstSequence"], 101);
    are_equal(&from, &to, 2_600);
}

#[tokio::test]
async fn an_event_that_was_published_twice_does_not_mislead_a_copy() {
    let (from, to) = (Bus::sqlite(), Bus::nats().await);
    let provider = ProviderRegistry::builtin().connect(&from.url).await.unwrap();
    let twice = Event::new("events.twice", "twice", "", "test", json!(1));
    provider.publish(&twice).await.unwrap();
    copy(&from, &to);
    from.publish("events.between", 1);
    provider.publish(&twice).await.unwrap();
    assert_eq!(copy(&from, &to)["firstSequence"], 2);
    are_equal(&from, &to, 3);
}

#[tokio::test]
async fn a_target_that_drops_what_is_copied_ends_the_copy() {
    let (from, server) = (Bus::sqlite(), Bus::nats().await);
    from.publish("events.a", 2_500);
    for small in [
        format!("sqlite://{}?max_events=100", from.path("small.db").display()),
        server.url.clone() + "?max_events=100",
    ] {
        let ran = from.run(&["copy", &from.url, &small]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
        assert!(
            ran.stderr.contains("too small") && ran.stderr.contains("max_events=0, max_bytes=0"),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains("nothing was copied"), "{}", ran.stderr);
        assert_eq!(from.run(&["info", "--url", &small]).code, 3, "it has no limits yet");
    }
    // A stream with the wrong limits is deleted first.
    let small = server.url.clone() + "?max_events=100";
    server.prints(&["sub", "--count", "0", "--url", &small]);
    let ran = from.run(&["copy", &from.url, &server.url]);
    assert!(ran.code == 1 && ran.stderr.contains("`streams rm`"), "{}", ran.stderr);
    assert_eq!(server.rows(&["info"])[0]["messages"], 0);
    server.prints(&["streams", "rm", "--yes"]);
    from.publish("events.b", 1);
    let unlimited = server.url.clone() + "?max_events=0&max_age=0";
    from.prints(&["copy", &from.url, &unlimited]);
    server.prints(&["streams", "purge", "--filter", "events.a", "--yes"]);
    let ran = from.run(&["copy", &from.url, &unlimited]);
    assert!(
        ran.code == 1 && ran.stderr.contains("dropped the oldest") && ran.stderr.contains("`streams rm`"),
        "{}",
        ran.stderr
    );
    // Events that the source has dropped since are not missing.
    let (kept, to) = (format!("{}?max_events=100", from.url), Bus::nats().await);
    copy(&from, &to);
    from.prints(&["pub", "events.a", "1", "--url", &kept]);
    assert_eq!(copy(&from, &to)["events"], 1);
}

#[tokio::test]
async fn durable_positions_are_mapped() {
    let (from, to) = (Bus::sqlite(), Bus::nats().await);
    from.publish("events.a", 10);
    from.publish("events.b", 5);
    from.prints(&["sub", "events.a", "--durable", "behind", "--count", "7"]);
    from.prints(&["sub", "events.b", "--durable", "done", "--count", "5"]);
    from.prints(&["sub", "events.b", "--durable", "busy", "--count", "1", "--ack", "none"]);
    let ran = from.run(&["copy", &from.url, &to.url, "--output", "ndjson"]);
    assert!(ran.code == 1 && ran.stderr.contains("not mapped: consumer busy"), "{}", ran.stderr);
    let copied = crate::bus::json_lines(&ran.stdout).remove(0);
    let mut consumers: Vec<_> =
        copied["consumers"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    consumers.sort_unstable();
    assert_eq!(consumers, ["behind", "done"]);
    assert_eq!(copied["notMapped"][0][0], "busy");
    to.publish("events.b", 1);
    let next = |name: &str, filter: &str| {
        crate::bus::numbers(&to.rows(&["sub", filter, "--durable", name, "--idle", "1s"]))
    };
    assert_eq!(next("behind", "events.a"), [8, 9, 10]);
    assert_eq!(next("done", "events.b"), [1]);
}

#[tokio::test]
async fn positions_move_on_and_consumers_keep_their_settings() {
    for to in [Bus::sqlite(), Bus::nats().await] {
        let from = Bus::sqlite();
        from.publish("events.a", 5);
        let read =
            |bus: &Bus, count: &str| bus.rows(&["sub", "events.a", "--durable", "reader", "--count", count]);
        read(&from, "1");
        let target = ProviderRegistry::builtin().connect(&to.url).await.unwrap();
        let options = SubscribeOptions { ack_wait_secs: Some(1), ..SubscribeOptions::default() };
        let mut subscription =
            target.subscribe_durable_with_options("reader", "events.a", &options).await.unwrap();
        subscription.close().await.unwrap();
        drop(subscription);
        // It is before all events on the target, created there or by an earlier copy.
        for read_now in [0, 2] {
            if read_now > 0 {
                from.publish("events.a", 1);
                read(&from, "2");
            }
            let dry = &from.rows(&["copy", &from.url, &to.url, "--dry-run"])[0];
            assert_eq!((&dry["consumers"], &dry["notMapped"]), (&json!(["reader"]), &json!([])), "{dry}");
            let copied = copy(&from, &to);
            assert_eq!((&copied["consumers"], &copied["notMapped"]), (&json!(["reader"]), &json!([])));
            let (here, there) = (&from.rows(&["consumers"])[0]["lag"], &to.rows(&["consumers"])[0]["lag"]);
            assert_eq!(here, there);
        }
        // A consumer that has read further on the target is not moved back.
        assert_eq!(crate::bus::numbers(&read(&to, "1")), [4]);
        for more in [&["--dry-run"][..], &[]] {
            let ran = from.run(&[&["copy", &from.url, &to.url], more].concat());
            assert!(ran.code == 1 && ran.stderr.contains("moved forward only"), "{}", ran.stderr);
        }
        // The copy has kept its ack wait.
        let mut subscription = target.subscribe_durable("reader", "events.a").await.unwrap();
        let delivery = subscription.next_delivery().await.unwrap().unwrap();
        // The copy does not disturb a program that reads there.
        read(&from, "2");
        let ran = from.run(&["copy", &from.url, &to.url]);
        assert!(ran.code == 1 && ran.stderr.contains("stop that program first"), "{}", ran.stderr);
        drop(delivery);
        let again = tokio::time::timeout(Duration::from_secs(20), subscription.next_delivery()).await;
        assert!(again.is_ok(), "the copy has taken its ack wait away");
    }
}

#[tokio::test]
async fn a_target_with_other_events_is_left_alone() {
    let (from, to) = (Bus::sqlite(), Bus::nats().await);
    from.publish("events.a", 3);
    to.publish("events.a", 1);
    let ran = from.run(&["copy", &from.url, &to.url]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(to.rows(&["history"]).len(), 1);
    let ran = from.run(&["diff", &from.url, &to.url, "--output", "ndjson"]);
    assert_eq!((ran.code, ran.stdout.lines().count()), (1, 3), "{}", ran.stdout);
}

#[tokio::test]
async fn a_dry_run_copies_nothing() {
    let (from, to) = (Bus::sqlite(), Bus::sqlite());
    from.publish("events.a", 5);
    assert_eq!(from.rows(&["copy", &from.url, &to.url, "--dry-run", "--filter", "events.a"])[0]["events"], 5);
    assert!(!to.path("bus.db").exists());
}

#[tokio::test]
async fn a_dry_run_fails_where_the_copy_would() {
    let (from, server) = (Bus::sqlite(), Bus::nats().await);
    from.publish("events.a", 300);
    from.prints(&["sub", "events.a", "--durable", "behind", "--count", "7"]);
    from.prints(&["sub", "events.a", "--durable", "busy", "--count", "1", "--ack", "none"]);
    let dry = |to: &str| from.run(&["copy", &from.url, to, "--dry-run", "--output", "ndjson"]);
    let ran = dry(&server.url);
    assert!(ran.code == 1 && ran.stderr.contains("'busy' would not be mapped"), "{}", ran.stderr);
    let planned = &crate::bus::json_lines(&ran.stdout)[0];
    assert_eq!((&planned["consumers"], &planned["notMapped"][0][0]), (&json!(["behind"]), &json!("busy")));
    assert_eq!(server.run(&["info"]).code, 3, "a dry run creates no stream");
    let ran = dry(&format!("{}/OTHER?subject_prefix=quakes", server.url));
    assert!(ran.code == 1 && ran.stderr.contains("outside the target's prefix 'quakes'"), "{}", ran.stderr);
    from.prints(&["consumers", "rm", "busy", "--yes"]);
    assert_eq!(dry(&server.url).code, 0);
    for (limits, why) in [
        ("max_events=299", "would get 300, and its limit is 299"),
        ("max_bytes=20000", "and its limit is 20.0 kB"),
        ("max_events=300", ""),
        ("max_bytes=1000000", ""),
    ] {
        for to in [Bus::sqlite(), Bus::nats().await] {
            let url = format!("{}?{limits}", to.url);
            let (ran, copied) = (dry(&url), from.run(&["copy", &from.url, &url]));
            let code = i32::from(!why.is_empty());
            assert_eq!((ran.code, copied.code), (code, code), "{url}: {}{}", ran.stderr, copied.stderr);
            assert!(ran.stderr.contains(why), "{url}: {}", ran.stderr);
        }
    }
}

#[tokio::test]
async fn a_copy_that_cannot_succeed_writes_nothing() {
    let (from, server) = (Bus::sqlite(), Bus::nats().await);
    from.publish("events.a", 3);
    from.prints(&["pub", "events.b", "--text", &"x".repeat(5_000)]);
    for (url, why) in [
        (format!("sqlite://{}?max_event_bytes=2000", from.path("small.db").display()), "refuses event 4: "),
        (format!("{}?subject_prefix=other", server.url), "outside the target's prefix 'other'"),
    ] {
        // An existing stream is refused as a new one is.
        for _ in 0..2 {
            let ran = from.run(&["copy", &from.url, &url]);
            assert!(ran.code == 1 && ran.stderr.contains(why), "{url}: {}", ran.stderr);
            from.prints(&["sub", "--count", "0", "--url", &url]);
            assert_eq!(from.rows(&["info", "--url", &url])[0]["messages"], 0);
        }
    }
    let ran = from.run(&["copy", &from.url, &server.url]);
    assert!(ran.code == 1 && ran.stderr.contains("`streams rm`"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_copied_consumer_can_be_reset_before_its_position() {
    let (from, to) = (Bus::sqlite(), Bus::nats().await);
    from.publish("events.a", 10);
    from.prints(&["sub", "events.a", "--durable", "behind", "--count", "7"]);
    from.prints(&["sub", "events.a", "--durable", "done", "--count", "10"]);
    copy(&from, &to);
    let lags = |bus: &Bus| bus.rows(&["consumers"]).iter().map(|row| row["lag"].clone()).collect::<Vec<_>>();
    assert_eq!((lags(&from), lags(&to)), (vec![json!(3), json!(0)], vec![json!(3), json!(0)]));
    for name in ["behind", "done"] {
        to.prints(&["consumers", "reset", name, "--to", "first", "--yes"]);
        assert_eq!(crate::bus::numbers(&to.rows(&["sub", "--durable", name, "--count", "2"])), [1, 2]);
    }
}

/// Starts a copy and waits until the target holds a part of the events.
async fn copying(from: &Bus, to: &Bus) -> (std::process::Child, Arc<dyn EventProvider>) {
    let target = ProviderRegistry::builtin().connect(&to.url).await.unwrap();
    let copy = from.command(&["copy", &from.url, &to.url]).stderr(Stdio::piped()).spawn().unwrap();
    while target.query(&HistoryQuery::new(1)).await.unwrap().first().map_or(0, |newest| newest.sequence)
        < 1_000
    {}
    (copy, target)
}

#[tokio::test]
async fn a_copy_that_was_killed_goes_on_without_a_gap() {
    const EVENTS: u64 = 20_000;
    let (from, to) = (Bus::sqlite(), Bus::nats().await);
    from.publish("events.a", EVENTS);
    let (mut killed, _target) = copying(&from, &to).await;
    killed.kill().unwrap();
    assert_eq!(killed.wait().unwrap().code(), None, "it has ended before it was killed");
    let rest = copy(&from, &to);
    let first = rest["firstSequence"].as_u64().unwrap();
    assert!(first > 1_000 && rest["events"] == EVENTS + 1 - first, "{rest}");
    are_equal(&from, &to, EVENTS);
}

#[tokio::test]
async fn a_second_writer_ends_a_copy() {
    let (from, to) = (Bus::sqlite(), Bus::nats().await);
    from.publish("events.a", 20_000);
    let (copy, target) = copying(&from, &to).await;
    target.publish(&Event::new("events.a", "a", "", "somebody else", json!(0))).await.unwrap();
    let ended = crate::bus::ended(copy.wait_with_output().unwrap());
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("another program writes to the target"), "{}", ended.stderr);
    // Its event has the place of an event of the source, and the copy detects that.
    let ran = from.run(&["copy", &from.url, &to.url]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let differences = from.run(&["diff", &from.url, &to.url, "--output", "ndjson", "--limit", "1"]);
    assert_eq!(differences.code, 1);
    assert_ne!(crate::bus::json_lines(&differences.stdout)[0]["to"], Value::Null);
}

#[tokio::test]
async fn a_stream_that_was_emptied_is_copied_into() {
    let (from, to) = (Bus::sqlite(), Bus::nats().await);
    from.publish("events.a", 5);
    to.publish("events.a", 3);
    let target = ProviderRegistry::builtin().connect(&to.url).await.unwrap();
    let nats = target.as_any().unwrap().downcast_ref::<a3s_event::NatsProvider>().unwrap().client();
    nats.jetstream_context().get_stream("A3S_EVENTS").await.unwrap().purge().await.unwrap();
    assert_eq!(copy(&from, &to)["events"], 5);
    are_equal(&from, &to, 5);
}

#[tokio::test]
async fn an_event_too_many_is_one_difference() {
    let (from, to) = (Bus::sqlite(), Bus::nats().await);
    let publish = |bus: &Bus, ids: &str| {
        let lines: String = ids.chars().map(|id| format!("{{\"id\": \"{id}\"}}\n")).collect();
        let arguments = ["import", "-", "events.a", "--id", "{id}", "--time", "1000"];
        assert_eq!(bus.run_with_stdin(&arguments, &lines).code, 0);
    };
    publish(&from, "abcdef");
    publish(&to, "abxcef");
    let ran = from.run(&["diff", &from.url, &to.url, "--output", "ndjson"]);
    let found: Vec<Value> = crate::bus::json_lines(&ran.stdout);
    assert_eq!(ran.code, 1);
    assert_eq!(
        found,
        [
            json!({"place": 3, "what": ["missing"], "from": null, "to": {"sequence": 3, "id": "x"}}),
            json!({"place": 5, "what": ["missing"], "from": {"sequence": 4, "id": "d"}, "to": null}),
        ]
    );
}

#[test]
fn a_difference_says_what_differs_and_how_many_there_are() {
    let (from, to) = (Bus::sqlite(), Bus::sqlite());
    let publish = |bus: &Bus, ids: &[&str], payload: &str| {
        for id in ids {
            bus.prints(&["pub", "events.a", payload, "--id", id, "--time", "1000"]);
        }
    };
    publish(&from, &["a", "b", "c"], "1");
    publish(&to, &["a"], "1");
    publish(&to, &["b", "c"], "2");
    let diff = |more: &[&str]| from.run(&[&["diff", &from.url, &to.url], more].concat());
    let ran = diff(&["--output", "ndjson"]);
    assert_eq!(crate::bus::json_lines(&ran.stdout)[0]["what"], json!(["payload"]));
    assert_eq!((ran.code, ran.stderr.as_str()), (1, "error: the buses differ: 2 differences\n"));
    let table = diff(&[]).stdout;
    assert!(table.lines().nth(1).unwrap().contains("payload"), "{table}");
    let ran = diff(&["--limit", "1"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (1, "error: the buses differ: at least 1 difference; --limit shows more\n")
    );
    assert_eq!(diff(&["--limit", "0"]).code, 2);
}
