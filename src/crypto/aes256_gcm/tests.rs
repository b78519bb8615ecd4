//! Envelopes that can be decrypted, and the failures of those that cannot.

use super::super::EncryptedPayload;
use super::*;
use crate::dlq::SinkDlqHandler;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::json;

fn encryptor() -> Aes256GcmEncryptor {
    Aes256GcmEncryptor::new("k1", &[1; 32])
}

fn config_error<T: fmt::Debug>(result: Result<T>) -> String {
    match result.unwrap_err() {
        EventError::Config(text) => text,
        other => panic!("unexpected error {other}"),
    }
}

#[test]
fn every_kind_of_payload_comes_back() {
    let encryptor = encryptor();
    for payload in [
        json!(null),
        json!(false),
        json!(u64::MAX),
        json!(-0.5),
        json!(""),
        json!("市场"),
        json!([]),
        json!({"a": {"b": [1, 2, 3]}, "encrypted": true}),
        json!("x".repeat(1 << 20)),
    ] {
        let sealed = encryptor.encrypt(&payload).unwrap();
        assert!(EncryptedPayload::is_encrypted(&sealed));
        assert_eq!(encryptor.decrypt(&sealed).unwrap(), payload);
    }
}

#[test]
fn an_envelope_shows_no_plaintext_and_is_never_the_same() {
    let encryptor = encryptor();
    let [a, b] = [(); 2].map(|()| encryptor.encrypt(&json!({"card": "4111"})).unwrap());
    assert_ne!(a["nonce"], b["nonce"]);
    assert_ne!(a["ciphertext"], b["ciphertext"]);

    assert!(!a.to_string().contains("4111"));
    assert_eq!(a.as_object().unwrap().len(), 4);
    let envelope: EncryptedPayload = serde_json::from_value(a).unwrap();
    assert_eq!((envelope.key_id.as_str(), envelope.encrypted), ("k1", true));
    assert_eq!(STANDARD.decode(&envelope.nonce).unwrap().len(), 12);
    // 15 bytes of JSON and the tag.
    assert_eq!(STANDARD.decode(&envelope.ciphertext).unwrap().len(), 15 + 16);
}

/// Encrypted with OpenSSL: key 00 01 … 1f, nonce 00 01 … 0b, no associated data.
#[test]
fn an_envelope_from_elsewhere_opens() {
    let key: Vec<u8> = (0..32).collect();
    let encryptor = Aes256GcmEncryptor::new("known", key.as_slice().try_into().unwrap());
    let envelope = json!({
        "keyId": "known",
        "nonce": "AAECAwQFBgcICQoL",
        "ciphertext": "PCCmeqyX4CGvFMTP8qchT6/09VWEHn1GD0nWsGCY0+oUR7rHxsskaTq5G94h",
        "encrypted": true,
    });
    assert_eq!(encryptor.decrypt(&envelope).unwrap(), json!({"rate": 7.35, "pair": "USDCNY"}));
}

#[test]
fn a_change_anywhere_is_found_out() {
    let encryptor = encryptor();
    let sealed = encryptor.encrypt(&json!({"a": 1})).unwrap();
    for field in ["nonce", "ciphertext"] {
        let bytes = STANDARD.decode(sealed[field].as_str().unwrap()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let mut envelope = sealed.clone();
            envelope[field] = json!(STANDARD.encode(changed));
            let text = config_error(encryptor.decrypt(&envelope));
            assert!(text.contains("'k1'") && text.contains("cannot be decrypted"), "{text}");
        }
    }
}

#[test]
fn what_is_not_an_envelope_is_a_typed_error() {
    let encryptor = encryptor();
    let sealed = encryptor.encrypt(&json!(1)).unwrap();
    let short = |len: usize| json!(STANDARD.encode(vec![0; len]));
    for (field, value, expected) in [
        ("nonce", json!("?"), "nonce is not base64"),
        ("nonce", short(0), "96 bits"),
        ("nonce", short(11), "96 bits"),
        ("nonce", short(13), "96 bits"),
        ("nonce", json!(1), "its field 'nonce'"),
        ("ciphertext", json!("a b"), "ciphertext is not base64"),
        ("ciphertext", short(0), "cannot be decrypted"),
        ("ciphertext", short(15), "cannot be decrypted"),
        ("ciphertext", short(16), "cannot be decrypted"),
        ("ciphertext", json!(null), "its field 'ciphertext'"),
        ("keyId", json!("k2"), "'k2': no key has this id"),
        ("keyId", json!(""), "'': no key has this id"),
        ("keyId", json!(["k1"]), "its field 'keyId'"),
        ("encrypted", json!(false), "its field 'encrypted'"),
    ] {
        let mut envelope = sealed.clone();
        envelope[field] = value;
        let text = config_error(encryptor.decrypt(&envelope));
        assert!(text.contains(expected), "{envelope}: {text}");
    }
    for value in [json!(null), json!("text"), json!([]), json!({})] {
        config_error(encryptor.decrypt(&value));
    }
    let mut unmarked = sealed;
    unmarked.as_object_mut().unwrap().remove("encrypted");
    assert_eq!(encryptor.decrypt(&unmarked).unwrap(), json!(1));
}

#[test]
fn every_key_opens_and_the_active_one_seals() {
    let mut encryptor = encryptor();
    let old = encryptor.encrypt(&json!("old")).unwrap();
    encryptor.add_key("k2", &[2; 32]).unwrap();
    assert_eq!(encryptor.encrypt(&json!(1)).unwrap()["keyId"], "k1");
    encryptor.rotate_to("k2").unwrap();
    let new = encryptor.encrypt(&json!("new")).unwrap();
    assert_eq!(new["keyId"], "k2");
    assert_eq!(encryptor.decrypt(&old).unwrap(), "old");
    assert_eq!(encryptor.decrypt(&new).unwrap(), "new");

    assert!(config_error(encryptor.rotate_to("k3")).contains("'k3'"));
    assert_eq!(encryptor.active_key_id(), "k2");
    let mut ids = encryptor.key_ids();
    ids.sort();
    assert_eq!(ids, ["k1", "k2"]);
}

#[test]
fn a_key_is_never_replaced_by_another() {
    let encryptor = encryptor();
    let sealed = encryptor.encrypt(&json!(1)).unwrap();
    encryptor.add_key("k1", &[1; 32]).unwrap();
    let mut other = [1; 32];
    other[31] = 2;
    assert!(config_error(encryptor.add_key("k1", &other)).contains("'k1'"));
    assert_eq!(encryptor.decrypt(&sealed).unwrap(), 1);
}

#[test]
fn debug_and_errors_show_ids_only() {
    let encryptor = Aes256GcmEncryptor::new("k1", b"canary-canary-canary-canary-1234");
    let shown = format!("{encryptor:?} {:#?}", encryptor.add_key("k1", &[0; 32]));
    assert!(shown.contains("k1"));
    assert!(!shown.contains("canary") && !shown.contains("99, 97, 110"), "{shown}");
}

fn event(payload: Value) -> Event {
    let mut event = Event::typed("events.market.fx", "market", "market.quote", 3, "", "test", payload);
    event.id = "evt-1".to_owned();
    event
}

/// Returns the event with its payload encrypted.
fn sealed(encryptor: &Aes256GcmEncryptor, payload: Value) -> Event {
    let mut event = event(payload);
    event.payload = encryptor.encrypt_event(&event).unwrap();
    assert!(encryptor.is_encrypted(&event.payload));
    event
}

fn failure<T: fmt::Debug>(result: Result<T>) -> (String, EncryptionFailure) {
    match result.unwrap_err() {
        EventError::Encryption { key_id, failure } => (key_id, failure),
        other => panic!("unexpected error {other}"),
    }
}

#[test]
fn a_bound_envelope_says_how_it_is_sealed() {
    let encryptor = encryptor();
    let event = sealed(&encryptor, json!({"card": "4111"}));
    let fields: Vec<&String> = event.payload.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["alg", "ciphertext", "encrypted", "keyId", "nonce", "v"]);
    assert_eq!((&event.payload["v"], &event.payload["alg"]), (&json!(2), &json!("A256GCM")));
    assert!(EncryptedPayload::is_encrypted(&event.payload));
    assert!(!event.payload.to_string().contains("4111"));
    assert_eq!(encryptor.decrypt_event(&event).unwrap(), json!({"card": "4111"}));
    serde_json::from_value::<EncryptedPayload>(event.payload).unwrap();
}

/// Encrypted with OpenSSL through Python: key 00 01 … 1f, nonce 00 01 … 0b, associated data as documented.
#[test]
fn a_bound_envelope_from_elsewhere_opens() {
    let key: Vec<u8> = (0..32).collect();
    let encryptor = Aes256GcmEncryptor::new("known", key.as_slice().try_into().unwrap()).require_bound();
    let event = event(json!({
        "v": 2, "alg": "A256GCM", "keyId": "known", "nonce": "AAECAwQFBgcICQoL", "encrypted": true,
        "ciphertext": "PCCmeqyX4CGvFMTP8qchT6/09VWEHn1GD0nWsGA7KjDFsFW0Io+S1P9cv6l8",
    }));
    assert_eq!(encryptor.decrypt_event(&event).unwrap(), json!({"rate": 7.35, "pair": "USDCNY"}));
}

#[test]
fn a_bound_envelope_opens_in_its_event_only() {
    let encryptor = encryptor();
    let original = sealed(&encryptor, json!(1));
    let moves: [fn(&mut Event); 6] = [
        |event| event.id.push('0'),
        |event| event.subject = "events.market.f".into(),
        |event| event.event_type.clear(),
        |event| event.version = 4,
        // The concatenation of the parts is the same text.
        |event| (event.id, event.subject) = ("evt-1events.market".into(), ".fx".into()),
        |event| event.payload["keyId"] = json!("k2"),
    ];
    encryptor.add_key("k2", &[1; 32]).unwrap();
    for change in moves {
        let mut moved = original.clone();
        change(&mut moved);
        assert_eq!(failure(encryptor.decrypt_event(&moved)).1, EncryptionFailure::Authentication);
    }
    // Fields outside the binding may change in transit.
    let mut traced = original.with_metadata("traceparent", "00");
    traced.summary.push('!');
    assert_eq!(encryptor.decrypt_event(&traced).unwrap(), 1);
}

#[test]
fn every_row_of_bad_envelopes_is_a_typed_failure_that_names_the_key() {
    use EncryptionFailure::*;
    let encryptor = encryptor();
    let good = sealed(&encryptor, json!("payload"));
    let ciphertext = STANDARD.decode(good.payload["ciphertext"].as_str().unwrap()).unwrap();
    let short = |len: usize| json!(STANDARD.encode(&ciphertext[..len]));
    for (field, value, expected) in [
        ("keyId", json!("k9"), UnknownKey),
        ("keyId", json!(9), NotAnEnvelope("keyId")),
        ("nonce", json!(STANDARD.encode([0; 11])), NonceLength),
        ("nonce", json!(STANDARD.encode([0; 13])), NonceLength),
        ("nonce", json!(""), NonceLength),
        ("nonce", json!("AAEC AwQFBgcICQoL"), NotBase64("nonce")),
        ("ciphertext", json!("*"), NotBase64("ciphertext")),
        ("ciphertext", short(0), Authentication),
        ("ciphertext", short(15), Authentication),
        ("ciphertext", short(ciphertext.len() - 1), Authentication),
        ("alg", json!("none"), UnknownAlgorithm),
        ("alg", json!("A128GCM"), UnknownAlgorithm),
        ("alg", json!(null), UnknownAlgorithm),
        ("v", json!(1), UnknownVersion),
        ("v", json!(3), UnknownVersion),
        ("v", json!(-2), UnknownVersion),
        ("v", json!(2.5), UnknownVersion),
        ("v", json!("2"), UnknownVersion),
        ("encrypted", json!(false), NotAnEnvelope("encrypted")),
    ] {
        let mut event = good.clone();
        event.payload[field] = value;
        let (key_id, found) = failure(encryptor.decrypt_event(&event));
        assert_eq!(found, expected, "{}", event.payload);
        assert_eq!(key_id, event.payload["keyId"].as_str().unwrap_or_default());
    }
    for field in ["v", "alg", "encrypted", "keyId", "nonce", "ciphertext"] {
        let mut event = good.clone();
        event.payload.as_object_mut().unwrap().remove(field);
        failure(encryptor.decrypt_event(&event));
    }
    // A bound envelope without `v` and `alg` does not pass as an unbound one.
    let mut downgraded = good.clone();
    downgraded.payload.as_object_mut().unwrap().retain(|field, _| field != "v" && field != "alg");
    assert_eq!(failure(encryptor.decrypt_event(&downgraded)).1, Authentication);

    let text = config_error(encryptor.decrypt(&good.payload));
    assert!(text.contains("'k1'") && text.contains("decrypt_event"), "{text}");
}

#[test]
fn what_was_sealed_but_is_no_json_is_a_typed_failure_and_is_not_shown() {
    let encryptor = encryptor();
    let key = encryptor.keys.primary();
    let deep = "[".repeat(200) + &"]".repeat(200);
    for text in [
        "",
        "canary",
        "{\"a\":1} x",
        "{\"a\":1}{}",
        "1e400",
        "NaN",
        "\"\\ud800\"",
        "\u{feff}1",
        "/**/1",
        &deep,
    ] {
        let mut event = event(json!(null));
        let nonce = Nonce::<Aes256Gcm>::generate();
        let mut buffer = text.as_bytes().to_vec();
        let data = associated_data("k1", &event);
        key.cipher.encrypt_in_place(&nonce, &data, &mut buffer).unwrap();
        event.payload = json!({
            "v": 2, "alg": "A256GCM", "keyId": "k1", "encrypted": true,
            "nonce": STANDARD.encode(nonce), "ciphertext": STANDARD.encode(buffer),
        });
        let error = encryptor.decrypt_event(&event).unwrap_err();
        assert!(!error.to_string().contains("canary"));
        assert_eq!(failure::<()>(Err(error)), ("k1".to_owned(), EncryptionFailure::NotJson), "{text}");
    }
}

#[test]
fn unbound_envelopes_open_unless_binding_is_required() {
    let old = encryptor();
    let strict = encryptor().require_bound();
    let event = event(old.encrypt(&json!("old")).unwrap());
    assert_eq!(old.decrypt_event(&event).unwrap(), "old");
    assert_eq!(failure(strict.decrypt_event(&event)), ("k1".to_owned(), EncryptionFailure::Unbound));
    assert!(config_error(strict.decrypt(&event.payload)).contains("'k1'"));
    assert!(config_error(strict.encrypt(&json!(1))).contains("not bound"));
    let bound = sealed(&strict, json!("new"));
    assert_eq!(old.decrypt_event(&bound).unwrap(), "new");

    // For readers of earlier versions.
    let compatible = encryptor().seal_unbound();
    let unbound = compatible.encrypt_event(&Event { payload: json!("compatible"), ..event }).unwrap();
    assert_eq!(unbound.as_object().unwrap().len(), 4);
    assert_eq!(old.decrypt(&unbound).unwrap(), "compatible");
    assert_eq!(compatible.decrypt_event(&bound).unwrap(), "new");
}

#[test]
fn only_what_has_the_form_of_an_envelope_is_taken_for_one() {
    let encryptor = encryptor();
    let unbound = encryptor.encrypt(&json!(1)).unwrap();
    let bound = sealed(&encryptor, json!(1)).payload;
    let with = |envelope: &Value, field: &str, value: Value| {
        let mut changed = envelope.clone();
        changed[field] = value;
        changed
    };
    for envelope in [
        unbound.clone(),
        bound.clone(),
        // Envelopes that are damaged or of a later version are errors, not payloads.
        with(&unbound, "nonce", json!("?")),
        with(&bound, "ciphertext", json!("")),
        with(&bound, "alg", json!("none")),
        with(&with(&bound, "v", json!(3)), "wrappedKey", json!("x")),
    ] {
        assert!(encryptor.is_encrypted(&envelope), "{envelope}");
    }
    for clear in [
        json!({"encrypted": true}),
        json!({"encrypted": true, "keyId": "k1", "nonce": "n"}),
        json!({"encrypted": true, "document": {"keyId": "k1", "nonce": "n", "ciphertext": "c"}}),
        with(&unbound, "encrypted", json!(false)),
        with(&unbound, "encrypted", json!("true")),
        with(&unbound, "nonce", json!([])),
        with(&unbound, "owner", json!("me")),
        with(&unbound, "v", json!("text")),
        json!([unbound]),
        json!(null),
        json!("encrypted"),
    ] {
        assert!(!encryptor.is_encrypted(&clear), "{clear}");
    }
}

#[test]
fn what_is_sealed_twice_opens_once_each_time() {
    let encryptor = encryptor();
    let once = sealed(&encryptor, json!({"encrypted": true, "note": "mine"}));
    let mut twice = once.clone();
    twice.payload = encryptor.encrypt_event(&once).unwrap();
    let mut opened = twice.clone();
    opened.payload = encryptor.decrypt_event(&twice).unwrap();
    assert_eq!(opened.payload, once.payload);
    assert_eq!(encryptor.decrypt_event(&opened).unwrap(), json!({"encrypted": true, "note": "mine"}));
}

#[test]
fn keys_have_states_and_rotate_while_shared() {
    let encryptor = std::sync::Arc::new(encryptor());
    assert_eq!(encryptor.key_state("k1"), Some(KeyState::Primary));
    let old = sealed(&encryptor, json!("old"));
    encryptor.add_key("k2", &[2; 32]).unwrap();
    assert_eq!(encryptor.key_state("k2"), Some(KeyState::DecryptOnly));
    let before = encryptor.active_key_id();
    encryptor.promote("k2").unwrap();
    assert_eq!((before, encryptor.active_key_id()), ("k1", "k2"));
    assert_eq!(sealed(&encryptor, json!(1)).payload["keyId"], "k2");
    assert_eq!(encryptor.decrypt_event(&old).unwrap(), "old");

    encryptor.disable_key("k1").unwrap();
    assert_eq!(encryptor.key_state("k1"), Some(KeyState::Disabled));
    assert_eq!(failure(encryptor.decrypt_event(&old)), ("k1".to_owned(), EncryptionFailure::KeyDisabled));
    for (refused, rule) in [
        (encryptor.promote("k1"), "'k1': is disabled"),
        (encryptor.disable_key("k2"), "'k2': is the primary key"),
        (encryptor.promote("k3"), "'k3': no key has this id"),
        (encryptor.disable_key("k3"), "'k3': no key has this id"),
        (encryptor.enable_key("k3"), "'k3': no key has this id"),
        (encryptor.restore_sealed_count("k3", 1), "'k3': no key has this id"),
    ] {
        let text = config_error(refused);
        assert!(text.contains(rule), "{text}");
    }
    assert_eq!((encryptor.key_state("k3"), encryptor.sealed_count("k3")), (None, None));
    assert_eq!(encryptor.active_key_id(), "k2");
    encryptor.enable_key("k1").unwrap();
    assert_eq!(encryptor.decrypt_event(&old).unwrap(), "old");
}

#[test]
fn a_key_ends_at_its_limit_and_another_one_goes_on() {
    let encryptor = encryptor();
    sealed(&encryptor, json!(1));
    encryptor.encrypt(&json!(1)).unwrap();
    assert_eq!(encryptor.sealed_count("k1"), Some(2));
    encryptor.restore_sealed_count("k1", (1 << 32) - 2).unwrap();
    let last = sealed(&encryptor, json!("last"));
    let refused = encryptor.encrypt_event(&event(json!(1)));
    assert_eq!(failure(refused), ("k1".to_owned(), EncryptionFailure::KeyExhausted));
    assert!(config_error(encryptor.encrypt(&json!(1))).contains("'k1'"));
    assert_eq!(encryptor.decrypt_event(&last).unwrap(), "last", "it opens for ever");
    encryptor.add_key("k2", &[2; 32]).unwrap();
    encryptor.promote("k2").unwrap();
    sealed(&encryptor, json!(1));
}

#[test]
fn an_event_that_says_to_stand_for_another_one_is_not_believed() {
    let encryptor = encryptor();
    let original = sealed(&encryptor, json!("dead"));
    let mut letter = Event::typed("events.dlq.x", "dlq", "a3s.dlq.dead_letter", 1, "", "", original.payload);
    failure(encryptor.decrypt_event(&letter));
    for (key, value) in [
        ("dlq_original_id", "evt-1"),
        ("dlq_original_subject", "events.market.fx"),
        ("dlq_original_event_type", "market.quote"),
        ("dlq_original_version", "3"),
    ] {
        letter = letter.with_metadata(key, value);
    }
    assert_eq!(failure(encryptor.decrypt_event(&letter)).1, EncryptionFailure::Authentication);
    // A caller that trusts the letter passes its original.
    let original = SinkDlqHandler::original(&letter).unwrap();
    assert_eq!(encryptor.decrypt_event(&original).unwrap(), "dead");
    let other = letter.clone().with_metadata("dlq_original_id", "evt-2");
    let other = SinkDlqHandler::original(&other).unwrap();
    assert_eq!(failure(encryptor.decrypt_event(&other)).1, EncryptionFailure::Authentication);
    letter.event_type = "market.quote".to_owned();
    assert!(SinkDlqHandler::original(&letter).is_none());
}

/// Every single-bit change of the envelope's JSON is an error.
#[test]
fn one_flipped_bit_anywhere_never_makes_another_payload() {
    let encryptor = encryptor();
    let clear = json!({"card": "4111"});
    let original = sealed(&encryptor, clear.clone());
    let json = serde_json::to_vec(&original.payload).unwrap();
    let mut refused = 0;
    for bit in 0..json.len() * 8 {
        let mut changed = json.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let Ok(payload) = serde_json::from_slice::<Value>(&changed) else { continue };
        let event = Event { payload, ..original.clone() };
        match encryptor.decrypt_event(&event) {
            Ok(opened) => panic!("opened as {opened}: {}", event.payload),
            Err(EventError::Encryption { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > json.len(), "{refused} of {} bytes", json.len());
}

fn any_payload() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("encrypted|keyId|v|.*", inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_payload_comes_back_from_its_event_and_from_no_other(
        payload in any_payload(),
        (id, subject, event_type) in (".{0,20}", ".{0,20}", ".{0,20}"),
        version: u32,
        (other_id, other_subject, other_type) in (".{0,20}", ".{0,20}", ".{0,20}"),
    ) {
        let encryptor = encryptor();
        let mut event = event(payload.clone());
        (event.id, event.subject, event.event_type, event.version) = (id, subject, event_type, version);
        event.payload = encryptor.encrypt_event(&event).unwrap();
        prop_assert!(encryptor.is_encrypted(&event.payload));
        prop_assert_eq!(encryptor.decrypt_event(&event).unwrap(), payload);
        let mut moved = event.clone();
        (moved.id, moved.subject, moved.event_type) = (other_id, other_subject, other_type);
        let same = (&moved.id, &moved.subject, &moved.event_type) == (&event.id, &event.subject, &event.event_type);
        prop_assert_eq!(encryptor.decrypt_event(&moved).is_ok(), same);
    }

    #[test]
    fn anything_that_is_no_envelope_is_an_error(payload in any_payload()) {
        let _ = encryptor().is_encrypted(&payload);
        prop_assert!(encryptor().decrypt_event(&event(payload.clone())).is_err());
        prop_assert!(encryptor().decrypt(&payload).is_err());
    }
}
