//! Tests of encrypted payloads: `--key-file`.

use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use crate::bus::{Bus, ended, json_lines};
use crate::on_every_bus;

on_every_bus! { a_key_encrypts_what_is_published_and_shows_it }

const KEYS: [&str; 2] =
    ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh0="];

/// Writes a key to a file that only its owner can read.
fn key_file(bus: &Bus, name: &str, key: &str) -> String {
    let path = bus.file(name, key);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(Path::new(&path), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    path
}

async fn a_key_encrypts_what_is_published_and_shows_it(bus: &Bus) {
    let file = key_file(bus, "key", KEYS[0]);
    let (with_id, other) = (format!("2026-01={file}"), key_file(bus, "other", KEYS[1]));
    bus.prints(&["pub", "events.pay", "{\"card\": \"4111\"}", "--key-file", &with_id]);
    let ran = bus.run_with_stdin(
        &["import", "-", "events.pay", "--key-file", &with_id, "--key-file", &other],
        "{\"card\": \"4222\"}\n",
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);

    let reading: [&[&str]; 5] = [
        &["history"],
        &["tail", "--no-follow"],
        &["show", "1"],
        &["dump"],
        &["sub", "--from", "all", "--count", "2"],
    ];
    for arguments in reading {
        let ran = bus.run(arguments);
        assert!(ran.code == 0 && !ran.stdout.contains("4111"), "{arguments:?}: {}", ran.stdout);
        for key in [&with_id, &file] {
            let ran = bus.run(&[arguments, &["--key-file", key]].concat());
            // A dump says that it is not encrypted any more.
            let is_quiet = ran.stderr.is_empty() || arguments == ["dump"];
            assert!(ran.stdout.contains("4111") && is_quiet, "{arguments:?}: {}{}", ran.stdout, ran.stderr);
            assert!(!ran.stdout.contains("ciphertext"), "{}", ran.stdout);
        }
        let of_environment = ended(bus.command(arguments).env("A3S_EVENT_KEY_FILE", &file).output().unwrap());
        assert!(of_environment.stdout.contains("4111"), "{arguments:?}: {}", of_environment.stdout);
        let wrong = bus.run(&[arguments, &["--key-file", &other]].concat());
        assert!(
            wrong.code == 0 && !wrong.stdout.contains("4111") && wrong.stderr.contains("were not decrypted"),
            "{arguments:?}: {}",
            wrong.stderr
        );
        for key in KEYS {
            assert!(!format!("{}{}", wrong.stdout, wrong.stderr).contains(key));
        }
    }
    assert!(bus.prints(&["history"]).contains("encrypted with key 2026-01"));

    // A program of the library reads it with the same key. A dump restores encrypted or in the clear.
    let sealed = bus.prints(&["dump"]);
    let to = Bus::sqlite();
    let mut restore = to.command(&["restore", &to.file("sealed.ndjson", &sealed), "--key-file", &with_id]);
    assert_eq!(ended(restore.stdin(Stdio::null()).output().unwrap()).code, 0);
    assert_eq!(
        to.rows(&["history"])[1]["event"],
        json_lines(&sealed)[0]["event"],
        "it is not encrypted twice"
    );
    let decrypted = bus.run(&["dump", "--key-file", &file]);
    assert!(
        decrypted.code == 0 && decrypted.stderr.contains("the dump holds them in clear"),
        "{}",
        decrypted.stderr
    );
    let clear = decrypted.stdout;
    let to = Bus::sqlite();
    to.prints(&["restore", &to.file("clear.ndjson", &clear), "--key-file", &with_id]);
    assert_eq!(to.rows(&["history"])[0]["event"]["payload"]["keyId"], json!("2026-01"));
}

#[test]
fn a_key_file_that_cannot_be_used_is_named() {
    let bus = Bus::sqlite();
    let file = key_file(&bus, "key", KEYS[0]);
    let wrong = key_file(&bus, "wrong", "canary");
    let twice = format!("k={file}");
    for (arguments, code, why) in [
        (&["--key-file", &file][..], 2, "ID=FILE"),
        (&["--key-file", "k=/no/such/key"], 3, "/no/such/key"),
        (&["--key-file", &wrong], 3, "32 bytes"),
        (&["--key-file", &twice, "--key-file", &twice], 2, "two keys with the id 'k'"),
    ] {
        let ran = bus.run(&[&["pub", "events.a", "1"], arguments].concat());
        assert!(ran.code == code && ran.stderr.contains(why), "{arguments:?}: {}", ran.stderr);
        assert!(!ran.stderr.contains("canary") && !ran.stderr.contains(KEYS[0]), "{}", ran.stderr);
    }
    assert_eq!(bus.rows(&["streams"])[0]["messages"], 0);
}
