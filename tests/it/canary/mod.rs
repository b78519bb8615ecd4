//! Every secret of every configuration is a canary: a text that nothing else contains. A process of its own runs the bus on
//! every provider at trace level and shows all that can be shown: logs, Debug and Display of values and errors, metrics,
//! dead letters. No canary may be in its output.

mod buses;
mod endpoints;
mod payloads;
mod show;

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use self::show::{ShowAll, line};

const IN_CHILD: &str = "A3S_EVENT_TEST_CANARY";
const CHILD_TEST: &str = "canary::in_the_other_process";
/// What the other process says when it came to its end.
const COMPLETE: &str = "the whole run was shown";
/// No wait in the other process is longer.
const DEADLINE: Duration = Duration::from_secs(60);

const TOKEN: &str = "canary-token-8d1f";
const WRONG_TOKEN: &str = "canary-wrong-token-55aa";
const USER: &str = "canary-user-31c7";
const PASSWORD: &str = "canary-password-b0e4";
const WRONG_PASSWORD: &str = "canary-wrong-password-77f2";
const NKEY: &str = "UB67ACTFJXVELBMVZ4NQEVYRMEGV7H356D75HFKBFLR4EBY7P4EUSC4Z";
const NKEY_SEED: &str = "SUAIIWQIQF5F2EEX4JGHECALPFSVLTQLUZKMOZR2NNRDVUVS6EH4WK5QAU";
const WRONG_NKEY_SEED: &str = "SUAJZQGYPECLSUCD3AP3VAEHEQTHBQ5JNFQMOY3YUYRUUTDTOIP26BHRHY";
const NO_NKEY_SEED: &str = "SUCANARYNOSEED4711";
/// Not signed by anybody: a server without accounts does not look at it.
const JWT: &str = "eyJjYW5hcnkiOiJqd3QifQ.Y2FuYXJ5LWp3dC02YjE5.Y2FuYXJ5LXNpZ25hdHVyZQ";
const CREDS_SEED: &str = "SUAITK55P3KDRVYFN7NOGPXQ22WNFD5HNNPULK6HQY3GVXCOHZKGKNKN7U";
const WEBHOOK_TOKEN: &str = "canary-webhook-token-90a1";
const WEBHOOK_SECRET: &str = "Y2FuYXJ5LXdlYmhvb2stc2VjcmV0LTc3YzQ=";
const SHORT_WEBHOOK_SECRET: &str = "Y2FuYXJ5LXNob3J0LTEyMzQ=";
const CLIENT_KEY: &str = "canaryClientKey9Q2m";
const ENCRYPTION_KEY: &[u8; 32] = b"canary-encryption-key-1234567890";
const NEXT_ENCRYPTION_KEY: &[u8; 32] = b"canary-next-encryption-key-99999";
const FILE_KEY: &[u8; 32] = b"canary-key-from-a-file-000000042";
const NO_KEY: &str = "canary-no-key-5fe1";
/// Variables of the environment that hold a key and what is none.
const KEY_VARIABLE: &str = "A3S_EVENT_TEST_CANARY_KEY";
const NO_KEY_VARIABLE: &str = "A3S_EVENT_TEST_CANARY_NO_KEY";
const SINK_HEADER: &str = "canary-sink-header-c4a8";
const SINK_SECRET: &[u8; 28] = b"canary-sink-secret-0000d3b70";
const SHORT_SINK_SECRET: &[u8; 18] = b"canary-sink-s-19e5";
const SINK_PATH: &str = "canary-sink-path-2b6f";
const SINK_QUERY: &str = "canary-sink-query-f053";
/// Of events that are encrypted.
const PAYLOAD: &str = "canary-payload-4111111111111111";
/// Of records that others have stored in clear, and that are no events.
const RECORD: &str = "canary-record-in-clear-e21d";

/// Every form in which a secret could be shown.
fn canaries() -> Vec<String> {
    let texts = [
        TOKEN,
        WRONG_TOKEN,
        USER,
        PASSWORD,
        WRONG_PASSWORD,
        NKEY_SEED,
        WRONG_NKEY_SEED,
        NO_NKEY_SEED,
        JWT,
        CREDS_SEED,
        WEBHOOK_TOKEN,
        WEBHOOK_SECRET,
        "canary-webhook-secret-77c4",
        SHORT_WEBHOOK_SECRET,
        CLIENT_KEY,
        NO_KEY,
        SINK_HEADER,
        SINK_PATH,
        SINK_QUERY,
        PAYLOAD,
        RECORD,
    ];
    let keys: [&[u8]; 5] = [ENCRYPTION_KEY, NEXT_ENCRYPTION_KEY, FILE_KEY, SINK_SECRET, SHORT_SINK_SECRET];
    let texts = texts.iter().map(|text| text.as_bytes()).chain(keys);
    texts.flat_map(|secret| [raw(secret), hex(secret), base64(secret), list(secret)]).collect()
}

fn raw(secret: &[u8]) -> String {
    String::from_utf8(secret.to_vec()).unwrap()
}

fn hex(secret: &[u8]) -> String {
    secret.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// As Debug shows bytes, without the brackets.
fn list(secret: &[u8]) -> String {
    secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")
}

/// What the base64 of a longer text has in common with this one's: all but the last incomplete group.
fn base64(secret: &[u8]) -> String {
    STANDARD.encode(&secret[..secret.len() / 3 * 3])
}

#[test]
fn no_secret_is_ever_shown() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD_TEST, "--ignored", "--nocapture", "--test-threads=1"])
        .env(IN_CHILD, "1")
        .env(KEY_VARIABLE, STANDARD.encode(FILE_KEY))
        .env(NO_KEY_VARIABLE, NO_KEY)
        .env("RUST_BACKTRACE", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned();
    assert!(child.status.success() && shown.contains(COMPLETE), "the run failed:\n{}", tail(&shown));
    // What the client of NATS writes at the level trace holds every message as it goes over the wire: the user's name, which is no
    // secret there, and what is stored in clear.
    let of_client = |line: &str| line.starts_with("TRACE async_nats::connection");
    let shown: Vec<_> = shown
        .lines()
        .map(|line| match of_client(line) {
            true if line.contains("CONNECT") => line.replace(USER, ""),
            true => line.replace(RECORD, ""),
            false => line.to_owned(),
        })
        .collect();
    let lines: Vec<_> = canaries()
        .into_iter()
        .flat_map(|canary| shown.iter().filter(move |line| line.contains(&canary)))
        .map(|line| line.chars().take(400).collect::<String>())
        .collect();
    assert!(lines.is_empty(), "{} lines show a secret:\n{}", lines.len(), lines.join("\n"));
    // What is known to be shown: a run that shows nothing proves nothing.
    for evidence in [
        "TRACE async_nats",
        "INFO a3s_event",
        "NatsConfig {",
        "dead letter",
        "a3s_event_published_total",
        "a3s_event_consumer_dead_lettered_total{messaging_system=\"nats\"",
        "DEBUG a3s_event::source::webhook",
        "http sink failed: delivery failed",
        "status 400: POST /***?***",
        "disabled: the receiver answered 410",
        "key file",
        "environment variable",
        "value is not of type",
        "SchemaInvalid",
        "invalid type: string, expected u64",
        "unreadable record in the dead-letter queue",
        "cannot be decoded: invalid type: string, expected u32",
        "is not a state file",
    ] {
        assert!(
            shown.iter().any(|line| line.contains(evidence)),
            "{evidence} is not in {} lines",
            shown.len()
        );
    }
}

#[test]
fn canaries_are_found_in_each_form() {
    let all = canaries();
    assert!(all.contains(&"canary-token-8d1f".to_owned()));
    assert!(all.contains(&"63616e6172792d746f6b656e2d38643166".to_owned()));
    assert!(all.contains(&"Y2FuYXJ5LXRva2VuLThk".to_owned()));
    assert!(all.contains(
        &"99, 97, 110, 97, 114, 121, 45, 116, 111, 107, 101, 110, 45, 56, 100, 49, 102".to_owned()
    ));
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(4_000);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[test]
#[ignore = "what the other process runs"]
fn in_the_other_process() {
    if std::env::var_os(IN_CHILD).is_none() {
        return;
    }
    tracing::subscriber::set_global_default(ShowAll).unwrap();
    log::set_logger(&ShowAll).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, run()).await.expect("the run ended in time") });
    line(COMPLETE);
}

async fn run() {
    let folder = tempfile::tempdir().unwrap();
    buses::shown(folder.path()).await;
    endpoints::shown().await;
    payloads::shown(folder.path()).await;
}
