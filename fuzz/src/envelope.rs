//! Encrypted payloads: a sealed payload can be opened; a changed, moved or forged one cannot.
//!
//! Input: a line with the id of an event, then its payload in JSON.

use a3s_event::crypto::EncryptionKey;
use a3s_event::{Aes256GcmEncryptor, EncryptedPayload, Event, EventEncryptor};
use serde_json::{Value, from_slice, from_value, json, to_value};

use super::{check_error, first_line};

/// Key of the envelopes in the seeds.
const KEY: [u8; 32] = [7; 32];

pub fn check(data: &[u8]) {
    let (id, json) = first_line(data);
    let id = String::from_utf8_lossy(id).into_owned();
    check_key(&id);
    let Ok(payload) = from_slice::<Value>(json) else { return };
    let encryptor = Aes256GcmEncryptor::new("k1", &KEY);
    encryptor.add_key("k2", &[8; 32]).expect("another key");
    let event = Event { id, ..Event::typed("events.pay.card", "pay", "pay.card", 1, "", "", payload) };

    check_form(&encryptor, &event);
    check_sealing(&encryptor, event, data.len());
}

fn check_key(text: &str) {
    match EncryptionKey::from_text(text) {
        Ok(key) => {
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            let again = EncryptionKey::from_text(&hex).expect("64 hexadecimal digits");
            assert_eq!(*again, *key);
        }
        Err(error) => check_error(&error),
    }
}

/// Checks that the payload is recognized as an envelope exactly if it has the form of one.
fn check_form(encryptor: &Aes256GcmEncryptor, event: &Event) {
    let fields = event.payload.as_object();
    let is_text = |name: &str| event.payload.get(name).is_some_and(Value::is_string);
    let has_form = event.payload.get("encrypted") == Some(&json!(true))
        && ["keyId", "nonce", "ciphertext"].into_iter().all(is_text)
        && (fields.is_some_and(|fields| fields.len() == 4) || event.payload["v"].is_number());
    assert_eq!(encryptor.is_encrypted(&event.payload), has_form, "{}", event.payload);

    match encryptor.decrypt_event(event) {
        Ok(_) if event.payload.get("v").is_some() => {
            let moved = Event { id: format!("{}x", event.id), ..event.clone() };
            encryptor.decrypt_event(&moved).expect_err("it is bound to another event");
        }
        Ok(plain) => assert_eq!(encryptor.decrypt(&event.payload).expect("it is bound to no event"), plain),
        Err(error) => check_error(&error),
    }
    if let Ok(envelope) = from_value::<EncryptedPayload>(event.payload.clone()) {
        let written = to_value(&envelope).expect("an envelope has a JSON form");
        let again: EncryptedPayload = from_value(written.clone()).expect("what was written is read");
        assert_eq!(to_value(again).unwrap(), written);
    }
}

/// Checks that a sealed payload can be opened, and that a changed or moved one cannot.
fn check_sealing(encryptor: &Aes256GcmEncryptor, event: Event, choice: usize) {
    let plain = event.payload.clone();
    let unbound = encryptor.encrypt(&plain).expect("sealed");
    assert_eq!(encryptor.decrypt(&unbound).expect("opened"), plain);

    let payload = encryptor.encrypt_event(&event).expect("sealed");
    let sealed = Event { payload, ..event };
    assert!(encryptor.is_encrypted(&sealed.payload));
    assert_eq!(encryptor.decrypt_event(&sealed).expect("opened"), plain);

    let moved = Event { subject: format!("{}.x", sealed.subject), ..sealed.clone() };
    encryptor.decrypt_event(&moved).expect_err("it was moved to another event");
    encryptor.decrypt(&sealed.payload).expect_err("it was taken from its event");

    let mut changed = sealed.clone();
    changed.payload["keyId"] = json!("k2");
    encryptor.decrypt_event(&changed).expect_err("it names another key");
    for field in ["nonce", "ciphertext"] {
        let mut changed = sealed.clone();
        let text = changed.payload[field].as_str().expect("base64").as_bytes();
        let mut text = text.to_vec();
        let index = choice % text.len();
        text[index] = if text[index] == b'A' { b'B' } else { b'A' };
        changed.payload[field] = json!(String::from_utf8(text).expect("ASCII"));
        encryptor.decrypt_event(&changed).expect_err("a character of it was changed");
    }
    for field in ["v", "alg"] {
        let mut changed = sealed.clone();
        changed.payload.as_object_mut().expect("an object").remove(field);
        encryptor.decrypt_event(&changed).expect_err("its binding was taken away");
    }
}
