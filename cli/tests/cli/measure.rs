//! Tests of `bench`, `conformance`, `doctor`, `schema` and `completions`.

use a3s_event_testkit::NatsServer;
use serde_json::{Value, json};

use crate::bus::{Bus, json_lines};
use crate::on_every_bus;

on_every_bus! { bench_measures_all_three conformance_has_a_row_per_capability limits_windows_and_restarts_are_checked the_whole_kit_is_kept doctor_says_what_it_found schemas_are_checked }

async fn bench_measures_all_three(bus: &Bus) {
    let rows = bus.rows(&["bench", "--count", "500", "--per-second", "2000"]);
    assert_eq!(rows.len(), 3);
    for row in rows {
        assert_eq!(row["events"], 500);
        assert!(row["p50Us"].as_u64() > Some(0) && row["p50Us"].as_u64() <= row["p999Us"].as_u64(), "{row}");
    }
    let chart = bus.path("chart.svg");
    let table = bus.prints(&[
        "bench",
        "publish",
        "--events",
        "100",
        "--batch",
        "10",
        "--svg",
        chart.to_str().unwrap(),
    ]);
    assert!(table.contains("p99.9") && table.contains("####"), "{table}");
    let chart = std::fs::read_to_string(chart).unwrap();
    assert!(chart.contains("publish") && chart.contains("99 %") && chart.ends_with("</svg>\n"), "{chart}");
}

async fn conformance_has_a_row_per_capability(bus: &Bus) {
    let cases = bus.rows(&["conformance", "--case", "history", "--per-case"]);
    assert!(cases.len() > 3, "{cases:?}");
    assert!(cases.iter().any(|row| row["outcome"] == "honoured"));
    assert!(cases.iter().all(|row| row["outcome"] != "failed"), "{cases:?}");
    let capabilities = bus.rows(&["conformance", "--case", "msg_id"]);
    let of =
        |name: &str| capabilities.iter().find(|row| row["capability"] == name).unwrap()["outcome"].clone();
    assert_eq!((of("dedup"), of("term")), (json!("honoured"), json!("not checked")));
    assert_eq!(bus.run(&["conformance", "--case", "no-such-case"]).code, 2);
    let listed = bus.rows(&["conformance", "--list"]);
    assert!(listed.len() > 50 && listed.iter().all(|row| row["promise"].is_string()), "{listed:?}");
    let required = |case: &str| bus.run(&["conformance", "--case", case, "--require-all"]);
    assert_eq!(required("msg_id").code, 0);
    let is_fenced = |row: &&Value| row["needs"].as_array().unwrap().contains(&json!("fenced_settlement"));
    let fenced = listed.iter().find(is_fenced).unwrap()["case"].as_str().unwrap();
    let ran = required(fenced);
    let is_refused = bus.server.is_some();
    assert_eq!(
        (ran.code, ran.stderr.contains(fenced)),
        (i32::from(is_refused), is_refused),
        "{}",
        ran.stderr
    );
    assert_eq!(bus.run(&["conformance", "--case", fenced]).code, 0);
    // The cases leave nothing on the bus.
    assert_eq!(bus.run(&["info"]).code, 3);
}

#[tokio::test]
async fn a_signal_ends_the_kit_and_leaves_no_stream() {
    let bus = Bus::nats().await;
    bus.publish("events.a", 1);
    let kit = bus
        .command(&["conformance"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while bus.rows(&["streams"]).len() < 2 {}
    crate::reading::terminate(&kit);
    let ran = crate::bus::ended(kit.wait_with_output().unwrap());
    assert!(ran.code == 1 && ran.stderr.contains("ended by a signal"), "{}: {}", ran.code, ran.stderr);
    assert_eq!(bus.rows(&["streams"]).len(), 1);
}

async fn limits_windows_and_restarts_are_checked(bus: &Bus) {
    for case in ["outlives_a_restart", "retention_drops", "after_the_window"] {
        let rows = bus.rows(&["conformance", "--case", case, "--per-case"]);
        assert!(!rows.is_empty() && rows.iter().all(|row| row["outcome"] == "honoured"), "{rows:?}");
    }
}

/// Runs for about a minute, in the slow tier.
async fn the_whole_kit_is_kept(bus: &Bus) {
    if std::env::var_os("A3S_EVENT_SLOW").is_none() {
        return;
    }
    let true_reasons = [
        "the case takes more than two minutes",
        "the harness cannot store a record that is not an event",
        // The limit in bytes on NATS, whose server refuses a larger event.
        "the harness provides no stream with this limit",
        "the provider does not move consumers with this start policy",
    ];
    for row in bus.rows(&["conformance", "--per-case"]) {
        let detail = row["detail"].as_str().unwrap();
        let is_checked = row["outcome"] == "honoured" || row["outcome"] == "refused";
        assert!(
            is_checked || (row["outcome"] == "not applicable" && true_reasons.contains(&detail)),
            "{row}"
        );
    }
}

async fn doctor_says_what_it_found(bus: &Bus) {
    bus.publish("events.a", 1);
    assert!(bus.prints(&["doctor"]).contains("1 event, "));
    let rows = bus.rows(&["doctor"]);
    assert!(rows.len() == 5 && rows.iter().all(|row| row["ok"] == true), "{rows:?}");
    let ran = bus.run(&["doctor", "--url", "nats://127.0.0.1:1"]);
    assert_eq!(ran.code, 4);
    assert!(ran.stdout.contains("FAIL") && ran.stdout.contains("no program listens there"), "{}", ran.stdout);
    let ran = bus.run(&["doctor", "--url", "nats://no-such-host.invalid:4222?connect_timeout=1s"]);
    assert_eq!(ran.code, 4);
    assert!(ran.stdout.contains("the name cannot be resolved"), "{}", ran.stdout);
    let ran = bus.run(&["doctor", "--config", &bus.file("wrong.toml", "urll = 1")]);
    assert_eq!(ran.code, 3);
    assert!(ran.stdout.contains("urll"), "{}", ran.stdout);
}

#[tokio::test]
async fn doctor_says_what_to_do_about_a_server() {
    let bus = Bus::nats().await;
    bus.publish("events.a", 1);
    let accounts = "accounts { A { users: [{ user: a, password: b }] } }, no_auth_user: a";
    let without = NatsServer::start_with(accounts).await;
    let port = bus.server.as_ref().unwrap().port();
    for (url, advice) in [
        (without.url(), "`nats-server -js`"),
        (format!("{}/OTHER", bus.url), "the server has 'A3S_EVENTS'"),
        (format!("tls://127.0.0.1:{port}?connect_timeout=2s"), "use the scheme without TLS"),
    ] {
        let ran = bus.run(&["doctor", "--url", &url]);
        let said = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(ran.code != 0 && said.contains(advice), "{}{}", ran.stdout, ran.stderr);
    }
    bus.server.as_ref().unwrap().freeze().await;
    let ran = bus.run(&["doctor", "--url", &format!("{}?connect_timeout=1s", bus.url)]);
    bus.server.as_ref().unwrap().thaw();
    let said = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(ran.code == 4 && said.contains("it is suspended or overloaded"), "{}", ran.stdout);
    let ran = bus.run(&["doctor", "--url", "kafka://127.0.0.1:1"]);
    assert!(ran.code == 3 && !ran.stdout.contains("accepts connections"), "{}", ran.stdout);
}

#[test]
fn doctor_says_what_to_do_about_a_file() {
    let bus = Bus::sqlite();
    bus.publish("events.a", 1);
    let lacking = format!("sqlite://{}", bus.path("no/folder/bus.db").display());
    for (command, code) in [("doctor", 3), ("info", 3)] {
        let ran = bus.run(&[command, "--url", &lacking]);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(ran.code == code && said.contains("create") && said.contains("no/folder'"), "{said}");
        assert!(!said.contains("`a3s-event pub`"), "pub does not create a folder: {said}");
    }
    let writer = rusqlite::Connection::open(bus.path("bus.db")).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let ran = bus.run(&["doctor", "--url", &format!("{}?busy_timeout=100ms", bus.url)]);
    let said = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(ran.code != 0 && said.contains("end the program that writes to the file"), "{said}");
    assert!(said.contains("survives a loss of power") && !said.contains("PowerLoss"), "{said}");
}

async fn schemas_are_checked(bus: &Bus) {
    let folder = |name: &str, second_requires: &str| {
        std::fs::create_dir(bus.path(name)).unwrap();
        for (version, requires) in [(1, "\"total\""), (2, second_requires)] {
            let schema = format!(
                r#"{{"type": "object", "required": [{requires}], "properties": {{"total": {{"type": "number"}}}}}}"#
            );
            bus.file(&format!("{name}/order.placed.v{version}.json"), &schema);
        }
        bus.path(name).to_str().unwrap().to_owned()
    };
    let (fine, wrong) = (folder("fine", "\"total\""), folder("wrong", "\"total\", \"currency\""));
    bus.prints(&["schema", "check", &fine, "--mode", "full", "--all-versions"]);
    let ran = bus.run(&["schema", "check", &wrong]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("currency"), "{}", ran.stdout);
    bus.prints(&["schema", "check", &wrong, "--mode", "forward"]);

    for (payload, event_type) in [("1", "order.placed"), ("\"one\"", "order.placed"), ("1", "other")] {
        bus.prints(&["pub", "events.orders", &format!("{{\"total\": {payload}}}"), "--type", event_type]);
    }
    let exported = bus.file("events.ndjson", &bus.prints(&["history", "--output", "ndjson"]));
    for which in [["--stored", "events.>"], ["--events", &exported]] {
        let found = |more: &[&str]| {
            let ran =
                bus.run(&[&["schema", "check", &fine, "--output", "ndjson"], &which[..], more].concat());
            assert_eq!(ran.code, 1, "{}", ran.stderr);
            json_lines(&ran.stdout)
        };
        let problems = found(&[]);
        assert_eq!(
            (&problems[0]["sequence"], &problems[0]["eventType"]),
            (&json!(2), &json!("order.placed"))
        );
        assert!(
            problems.len() == 1 && problems[0]["problem"].as_str().unwrap().contains("/total"),
            "{problems:?}"
        );
        assert_eq!(found(&["--strict"]).len(), 2);
    }
    bus.file("wrong/order.json", "{}");
    for folder in [&wrong, "/no/such/folder"] {
        assert_eq!(bus.run(&["schema", "check", folder]).code, 3);
    }
}

#[test]
fn completions_are_a_script_of_the_shell() {
    let script = Bus::sqlite().prints(&["completions", "bash"]);
    assert!(script.contains("complete") && script.contains("A3S_EVENT_COMPLETE=\"bash\""), "{script}");
}
