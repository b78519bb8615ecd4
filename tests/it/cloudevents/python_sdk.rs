//! Events exchanged with the official Python SDK, which runs as a program of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use a3s_event::CloudEvent;
use a3s_event::cloudevents::{AcceptedFormats, BoundMessage, from_json_batch, http, to_json_batch};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{cloud_events, comparable};

fn packages() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/cloudevents-2.2.0");
    assert!(folder.is_dir(), "the Python SDK is not there: run scripts/fetch-python-packages");
    folder
}

fn packed(form: &str, message: BoundMessage) -> Value {
    let headers: Map<String, Value> =
        message.headers.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
    json!({"form": form, "headers": headers, "body": STANDARD.encode(message.body.unwrap_or_default())})
}

fn ask(messages: &[Value]) -> Value {
    let python = std::env::var_os("A3S_EVENT_PYTHON").unwrap_or_else(|| "python3".into());
    let mut child = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/cloudevents_peer.py"))
        .env("PYTHONPATH", packages())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    let request = json!({ "messages": messages }).to_string();
    child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the peer failed: {}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn body(message: &Value) -> Vec<u8> {
    STANDARD.decode(message["body"].as_str().unwrap()).unwrap()
}

fn read(message: &Value) -> CloudEvent {
    if message["form"] == "json" {
        return CloudEvent::from_json(&body(message)).unwrap();
    }
    let headers = message["headers"].as_object().unwrap();
    let headers = headers.iter().map(|(name, value)| (name, value.as_str().unwrap()));
    http::from_message(headers, &body(message), AcceptedFormats::Conformant).unwrap()
}

/// What the SDK understood is what we meant. In binary mode every value is a string to it.
fn assert_understood(understood: &Value, event: &CloudEvent) {
    let meant: Value = serde_json::from_slice(&event.to_json().unwrap()).unwrap();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let attributes = understood["attributes"].as_object().unwrap();
    for (name, value) in meant.as_object().unwrap() {
        match name.as_str() {
            "data" => assert_eq!(&understood["data"], value),
            "data_base64" => assert_eq!(&understood["binary"], value),
            "time" => assert_eq!(&text(&attributes["time"])[..19], &text(value)[..19]),
            name => assert_eq!(text(&attributes[name]), text(value), "{name}"),
        }
    }
    let ours = |name: &&String| *name != "a3stypes";
    let is_attribute = |name: &&String| !["data", "data_base64"].contains(&name.as_str());
    let count = meant.as_object().unwrap().keys().filter(is_attribute).count();
    assert_eq!(attributes.keys().filter(ours).count(), count, "{attributes:?}");
}

fn forget_types(event: &mut Value) {
    let metadata = event["metadata"].as_object_mut().unwrap();
    metadata.remove("ce-extension-types");
    if let Some(value) = metadata.get_mut("ce-final") {
        // The SDK writes a boolean as Python does.
        *value = value.as_str().unwrap().to_lowercase().into();
    }
}

#[test]
fn json_binary_structured_and_batch_are_understood_both_ways() {
    let events = cloud_events();
    let forms = |event: &CloudEvent| {
        let mut json = http::to_structured(event).unwrap();
        json.headers.clear();
        [
            packed("json", json),
            packed("binary", http::to_binary(event).unwrap()),
            packed("structured", http::to_structured(event).unwrap()),
        ]
    };
    let sent: Vec<Value> = events.iter().flat_map(forms).collect();
    let answer = ask(&sent);
    let answers = answer["answers"].as_array().unwrap();
    assert_eq!(answers.len(), sent.len());
    for (number, answer) in answers.iter().enumerate() {
        let event = &events[number / 3];
        assert_understood(&answer["understood"], event);
        for written in answer["written"].as_array().unwrap() {
            let (sent_as, came_as) = (&sent[number]["form"], &written["form"]);
            let (mut back, mut event) = (comparable(read(written)), comparable(event.clone()));
            // Headers have no types, and only what we write carries them beside.
            if came_as == "binary" && sent_as != "binary" {
                forget_types(&mut back);
                forget_types(&mut event);
            }
            assert_eq!(back, event, "sent as {sent_as}, came as {came_as}");
        }
    }
}

#[test]
fn a_batch_is_understood_both_ways() {
    let events = cloud_events();
    let batch: Vec<Value> = serde_json::from_slice(&to_json_batch(&events).unwrap()).unwrap();
    let entry =
        |entry: &Value| json!({"form": "json", "headers": {}, "body": STANDARD.encode(entry.to_string())});
    let answer = ask(&batch.iter().map(entry).collect::<Vec<_>>());
    let back = STANDARD.decode(answer["batch"].as_str().unwrap()).unwrap();
    let back = from_json_batch(&back, AcceptedFormats::Conformant).unwrap();
    assert_eq!(back.len(), events.len());
    for (back, event) in back.into_iter().zip(events) {
        assert_eq!(comparable(back), comparable(event));
    }
}
