//! `bench`, `conformance`, `doctor`, `schema` and `completions`.

use serde_json::json;

use crate::bus::Bus;
use crate::on_every_bus;

on_every_bus! { bench_measures_all_three conformance_has_a_row_per_case doctor_says_what_it_found schemas_are_checked }

async fn bench_measures_all_three(bus: &Bus) {
    let rows = bus.rows(&["bench", "--events", "500", "--per-second", "2000"]);
    assert_eq!(rows.len(), 3);
    for row in rows {
        assert_eq!(row["events"], 500);
        assert!(row["p50Us"].as_u64() > Some(0) && row["p50Us"].as_u64() <= row["p999Us"].as_u64(), "{row}");
    }
    let table = bus.prints(&["bench", "publish", "--events", "100", "--batch", "10"]);
    assert!(table.contains("p99.9") && table.contains("####"), "{table}");
}

async fn conformance_has_a_row_per_case(bus: &Bus) {
    let rows = bus.rows(&["conformance", "--case", "history"]);
    assert!(rows.len() > 3, "{rows:?}");
    assert!(rows.iter().any(|row| row["outcome"] == "honoured"));
    assert!(rows.iter().all(|row| row["outcome"] != "failed"), "{rows:?}");
    // The cases have left nothing on the bus.
    assert_eq!(bus.rows(&["info"])[0]["messages"], 0);
}

async fn doctor_says_what_it_found(bus: &Bus) {
    let rows = bus.rows(&["doctor"]);
    assert!(rows.len() == 5 && rows.iter().all(|row| row["ok"] == true), "{rows:?}");
    let ran = bus.run(&["doctor", "--url", "nats://127.0.0.1:1"]);
    assert_eq!(ran.code, 4);
    assert!(ran.stdout.contains("FAIL") && ran.stdout.contains("is the server running"), "{}", ran.stdout);
    let ran = bus.run(&["doctor", "--config", &bus.file("wrong.toml", "urll = 1")]);
    assert_eq!(ran.code, 3);
    assert!(ran.stdout.contains("urll"), "{}", ran.stdout);
}

async fn schemas_are_checked(bus: &Bus) {
    let schema = |version: u32, fields: &str| {
        format!(r#"{{"eventType": "order", "version": {version}, "requiredFields": [{fields}]}}"#)
    };
    let fine = bus.file("fine.json", &format!("[{}, {}]", schema(1, "\"total\""), schema(2, "\"total\"")));
    let wrong = bus.file("wrong.json", &format!("[{}, {}]", schema(1, ""), schema(2, "\"total\"")));
    bus.prints(&["schema", "check", &fine]);
    assert_eq!(bus.run(&["schema", "check", &wrong]).code, 1);
    bus.prints(&["schema", "check", &wrong, "--mode", "forward"]);

    bus.prints(&["pub", "events.orders", r#"{"total": 1}"#, "--type", "order"]);
    bus.prints(&["pub", "events.orders", r#"{"sum": 1}"#, "--type", "order"]);
    let ran = bus.run(&["schema", "check", &fine, "--stored", "events.>", "--output", "ndjson"]);
    assert_eq!(ran.code, 1);
    let problem: serde_json::Value = serde_json::from_str(ran.stdout.trim()).unwrap();
    assert_eq!((&problem["sequence"], &problem["eventType"]), (&json!(2), &json!("order")));
    assert_eq!(bus.run(&["schema", "check", &bus.file("nonsense.json", "{}")]).code, 3);
}

#[test]
fn completions_are_a_script_of_the_shell() {
    let script = Bus::sqlite().prints(&["completions", "bash"]);
    assert!(script.contains("complete") && script.contains("dlq"), "{script}");
}
