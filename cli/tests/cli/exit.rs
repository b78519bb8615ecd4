//! Tests of failed runs: their exit codes, and the secrets that the output must hide.

use std::process::Stdio;

use a3s_event_testkit::servers::fault_proxy::{Direction, FaultProxy, Verdict};
use a3s_event_testkit::servers::nats::protocol::{Message, frame_length};

use crate::bus::{Bus, ended, program};

#[test]
fn earlier_spellings_are_understood() {
    let bus = Bus::sqlite();
    bus.publish("events.a", 3);
    let is_the_same = |old: &[&str], new: &[&str]| assert_eq!(bus.rows(old), bus.rows(new), "{old:?}");
    is_the_same(&["history", "--before", "3"], &["history", "--before-seq", "3"]);
    is_the_same(&["tail", "--no-follow", "--lines", "2"], &["tail", "--no-follow", "--limit", "2"]);
    is_the_same(&["dlq", "list", "--subject", "events.>"], &["dlq", "list", "--filter", "events.>"]);
    is_the_same(&["dlq", "list", "--before", "1h"], &["dlq", "list", "--until", "1h"]);
    let records = bus.file("old.ndjson", "1\n2\n");
    for old in
        [&["pub", "--many", &records, "events.b"][..], &["publish", "events.b", &format!("--many={records}")]]
    {
        assert_eq!(bus.rows(old)[0]["events"], 2, "{old:?}");
    }
    for old in
        [&["bench", "publish", "--events", "1"][..], &["conformance", "--case", "ack_settles", "--cases"]]
    {
        assert_eq!(bus.run(old).code, 0, "{old:?}");
    }
    assert!(bus.run(&["consumers", "--remove", "nobody"]).stderr.contains("there is no consumer 'nobody'"));
}

#[test]
fn usage_is_2_and_on_stderr() {
    let bus = Bus::sqlite();
    let wrong: [&[&str]; 15] = [
        &[],
        &["no-such-command"],
        &["history", "--limit", "abc"],
        &["history", "--limit", "-1"],
        &["pub"],
        &["pub", "events.a"],
        &["sub", "--from", "someday"],
        &["history", "--since", "someday"],
        &["pub", "events.a", "1", "--time", "someday"],
        &["import", "-", "events.a", "--time", "1517966773"],
        &["pub", "events.a", "1", "--key-file", "="],
        &["watch"],
        &["bench", "--size", "99999999999", "--count", "1"],
        &["bench", "latency", "--per-second", "4294967295"],
        &["dlq", "replay", "--all", "--per-second", "0"],
    ];
    for arguments in wrong {
        let ran = bus.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments:?}: {}", ran.stderr);
        assert!(!ran.stderr.is_empty());
    }
    assert_eq!(bus.run(&["--help"]).code, 0);
    assert_eq!(bus.run(&["--version"]).code, 0);
}

#[test]
fn options_of_every_command_stand_apart_in_the_help() {
    let bus = Bus::sqlite();
    let help = bus.prints(&["dlq", "list", "--help"]);
    let (own, global) = help.split_once("Global options:").unwrap();
    assert!(own.contains("--filter") && !own.contains("--verbose"), "{help}");
    assert!(
        global.contains("--verbose") && global.contains("--url") && !global.contains("--filter"),
        "{help}"
    );
}

#[test]
fn wrong_input_is_3() {
    let bus = Bus::sqlite();
    let (empty, folder) = (bus.file("empty.toml", ""), bus.folder.path().to_str().unwrap());
    assert_eq!(bus.run(&["pub", "events.a", "1", "--config", &empty]).code, 0);
    let wrong: [&[&str]; 20] = [
        &["pub", "events.a", "not JSON"],
        &["pub", "events.a", "@/no/such/file"],
        &["pub", "events..a", "1"],
        &["history", "--url", "ftp://host"],
        &["history", "--url", "no-such-bus"],
        &["history", "--config", "/no/such/config"],
        &["history", "--config", folder],
        &["history", "--config", &bus.file("list.toml", "url = [1]")],
        &["history", "--url", "memory://?max_event=1"],
        &["history", "--url", "memory://?max_events=many"],
        &["history", "--url", "memory://?max_events=-1"],
        &["history", "--url", "memory://?max_events=1180591620717411303424"],
        &["history", "--url", "memory://?subject_prefix=events."],
        &["history", "--url", "memory://?subject_prefix="],
        &["history", "--url", "no-such\nbus"],
        &["history", "--url", "nats://127.0.0.1:1?max_bytes=255"],
        &["history", "--url", "nats://127.0.0.1:1?subject_prefix=events."],
        &["history", "--url", "memory://?max_bytes=255"],
        &["sub", "--ack-wait", "0", "--count", "1"],
        &["sub", "events.>.a", "--count", "1"],
    ];
    for arguments in wrong {
        let ran = bus.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.lines().count() == 1, "{}", ran.stderr);
    }
    let two_ways = "nats://127.0.0.1:1?token=a&nkey=b";
    let ran = ended(bus.command(&["history"]).env("A3S_EVENT_URL", two_ways).output().unwrap());
    assert!(ran.code == 3 && ran.stderr.contains("only one can be given"), "{}", ran.stderr);
}

#[test]
fn an_unreachable_server_is_4() {
    let ran = Bus::sqlite().run(&["info", "--url", "nats://127.0.0.1:1?connect_timeout=1s"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
}

/// A proxy to a server that stops answering at a certain publish, which the server stores.
struct CutOff {
    url: String,
    _proxy: FaultProxy,
}

impl CutOff {
    async fn at_publish(number: u64, bus: &Bus) -> Self {
        let address = bus.server.as_ref().unwrap().address();
        let proxy = FaultProxy::start(address, frame_length, 1).await;
        let mut published = 0;
        proxy.filter(move |frame| match frame.direction {
            Direction::ToServer => {
                let message = Message::parse(frame.bytes);
                published += u64::from(message.is_some_and(|message| message.subject.starts_with("events.")));
                Verdict::Forward
            }
            Direction::ToClient if published >= number => Verdict::Drop,
            Direction::ToClient => Verdict::Forward,
        });
        Self { url: format!("nats://{}?request_timeout=3s", proxy.address()), _proxy: proxy }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_5_and_names_the_event() {
    let bus = Bus::nats().await;
    let to = CutOff::at_publish(2, &bus).await;
    let arguments = ["import", "-", "events.a", "--id", "{id}", "--batch", "1", "--url", &to.url];
    let ran = bus.run_with_stdin(&arguments, "{\"id\": \"order-16\"}\n{\"id\": \"order-17\"}\n");
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert!(ran.stderr.contains("may have been stored") && ran.stderr.contains("order-17"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("order-16"), "{}", ran.stderr);
    bus.prints(&["pub", "events.a", "{}", "--id", "order-17"]);
    assert_eq!(bus.rows(&["history"]).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_without_an_answer_is_5_and_can_be_repeated() {
    let bus = Bus::nats().await;
    bus.publish("events.other", 1);
    let letters = Bus::sqlite();
    crate::letters::keep(&letters, &["events.a", "events.b"]).await;
    let to = CutOff::at_publish(2, &bus).await;
    let replay = ["dlq", "replay", "--all", "--dlq-url", &letters.url];
    let ran = bus.run(&[&replay[..], &["--url", &to.url]].concat());
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("was not replayed; replayed before it: 1") && ran.stderr.contains("evt-"),
        "{}",
        ran.stderr
    );
    bus.prints(&replay);
    assert_eq!(bus.rows(&["history", "events.a"]).len(), 1);
    assert_eq!(bus.rows(&["history", "events.b"]).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_an_answer_is_5_and_goes_on() {
    let (from, to) = (Bus::sqlite(), Bus::nats().await);
    from.publish("events.a", 2_000);
    let cut_off = CutOff::at_publish(700, &to).await;
    let ran = from.run(&["copy", &from.url, &cut_off.url]);
    assert!(
        ran.code == 5 && ran.stderr.contains("Run the same copy again to continue"),
        "{}: {}",
        ran.code,
        ran.stderr
    );
    from.prints(&["copy", &from.url, &to.url]);
    from.prints(&["diff", &from.url, &to.url]);
}

#[test]
fn a_warning_of_credentials_is_for_those_on_the_command_line() {
    let bus = Bus::sqlite();
    let secret = "nats://u:s3cret@127.0.0.1:1?connect_timeout=1s";
    let list = |variable: &str, more: &[&str]| {
        let mut command = bus.command(&[&["dlq", "list"], more].concat());
        let ran = ended(command.env(variable, secret).output().unwrap());
        assert!(ran.code == 4 && !ran.stderr.contains("s3cret"), "{}", ran.stderr);
        ran.stderr.contains("warning")
    };
    assert!(!list("A3S_EVENT_DLQ_URL", &[]) && !list("A3S_EVENT_URL", &[]));
    assert!(list("NOT_A_URL", &["--log", "off", "--dlq-url", secret]));
    assert!(list("A3S_EVENT_URL", &["--url", &secret.replace("u:", "v:")]));
}

#[cfg(unix)]
#[test]
fn a_config_that_may_not_be_read_is_3() {
    use std::os::unix::fs::PermissionsExt as _;
    let bus = Bus::sqlite();
    let file = bus.file("config.toml", "url = \"memory://\"");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(&file).is_ok() {
        // Root may read everything, so that the case does not apply.
        return;
    }
    let ran = bus.run(&["info", "--config", &file]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("config.toml: Permission denied"), "{}", ran.stderr);
}

#[test]
fn the_default_bus_is_a_file_of_the_user() {
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        ended(program(home.path()).args(arguments).stdin(Stdio::null()).output().unwrap())
    };
    let ran = run(&["history"]);
    assert!(ran.code == 3 && ran.stderr.contains("`a3s-event pub`"), "{}", ran.stderr);
    let ran = run(&["doctor"]);
    assert!(ran.code == 0 && ran.stdout.contains("note  file: no file yet"), "{}", ran.stdout);
    assert!(!home.path().join("data").exists(), "a look creates no folder");
    assert_eq!(run(&["pub", "events.greetings.first", "{\"text\": \"hello\"}"]).code, 0);
    assert!(run(&["history"]).stdout.contains("hello"));
    assert!(home.path().join("data/a3s-event/events.db").exists());

    std::fs::create_dir_all(home.path().join("config/a3s-event")).unwrap();
    let config = "url = \"mine\"\n[buses]\nmine = \"memory://\"\n";
    std::fs::write(home.path().join("config/a3s-event/config.toml"), config).unwrap();
    assert!(run(&["info"]).stdout.contains("memory"));
}

#[test]
fn a_closed_stdout_ends_quietly() {
    let bus = Bus::sqlite();
    bus.publish("events.a", 3_000);
    let printing: [&[&str]; 17] = [
        &["history"],
        &["history", "--all"],
        &["history", "--all", "--oldest-first"],
        &["dump"],
        &["pub", "events.a", "1"],
        &["sub", "--from", "all", "--count", "1"],
        &["tail"],
        &["show", "1"],
        &["info"],
        &["streams"],
        &["consumers"],
        &["dlq", "list"],
        &["diff", &bus.url, &bus.url],
        &["bench", "publish", "--count", "10"],
        &["conformance", "--case", "history"],
        &["doctor"],
        &["completions", "bash"],
    ];
    for arguments in printing {
        let mut child = bus.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ran = ended(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments:?}");
    }
}

#[test]
fn control_characters_are_escaped_in_every_form() {
    let bus = Bus::sqlite();
    let hostile = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}";
    bus.prints(&["pub", "events.a", "--text", hostile, "--summary", hostile]);
    for form in ["table", "json", "ndjson"] {
        for command in [
            &["history"][..],
            &["tail", "--no-follow"],
            &["show", "1"],
            &["dump"],
            &["sub", "--from", "all", "--count", "1"],
        ] {
            let printed = bus.prints(&[command, &["--output", form]].concat());
            let acts = |c: char| c != '\n' && c.is_control() || c == '\u{202e}';
            assert!(!printed.chars().any(acts), "{command:?} {form}: {printed:?}");
            assert!(printed.contains("owned"), "{printed}");
        }
    }
}

#[tokio::test]
async fn secrets_are_never_echoed() {
    let bus = Bus::nats().await;
    bus.publish("events.a", 1);
    let url = bus.url.replace("nats://", "nats://user:s3cret@");
    for arguments in [&["info"][..], &["doctor"]] {
        let ran = ended(bus.command(arguments).env("A3S_EVENT_URL", &url).output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(!format!("{}{}", ran.stdout, ran.stderr).contains("s3cret"), "{}", ran.stdout);
    }
    let wrong = [
        "nats://user:s3cret@host:port",
        "nats://user:s3cret@@host",
        "nats://user:s3/cret@host",
        "nats://user:s3cret@127.0.0.1:1?max_event=1",
        "nats://127.0.0.1:1?token=s3cret&token=s3cret",
        "ftp://user:s3cret@host",
        "sqlite://user:s3cret@/dev/null/events.db",
    ];
    for wrong in wrong {
        for arguments in
            [&["-vvv", "info"][..], &["doctor"], &["copy", wrong, "memory://"], &["diff", "memory://", wrong]]
        {
            let ran = ended(bus.command(arguments).env("A3S_EVENT_URL", wrong).output().unwrap());
            let said = format!("{}{}", ran.stdout, ran.stderr);
            assert!(
                ran.code != 0 && !said.contains("s3cret") && !said.contains("cret@"),
                "{arguments:?}: {said}"
            );
        }
    }
    let refused = url.replace(&bus.server.as_ref().unwrap().port().to_string(), "1");
    let mut command = program(bus.folder.path());
    let ran = ended(command.args(["info", "--url", &refused]).output().unwrap());
    assert_eq!(ran.code, 4);
    assert!(
        ran.stderr.contains("other users can see credentials") && !ran.stderr.contains("s3cret"),
        "{}",
        ran.stderr
    );
    assert!(!bus.prints(&["--help"]).contains(&bus.url));
}

#[tokio::test]
async fn a_stream_with_other_settings_is_a_conflict() {
    let bus = Bus::nats().await;
    bus.publish("events.a", 1);
    let ran = bus.run(&["info", "--url", &format!("{}?subject_prefix=other", bus.url)]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let said = "conflict: stream 'A3S_EVENTS' has subjects 'events.>', and the command asks for 'other.>'";
    assert!(ran.stderr.contains(said) && ran.stderr.contains("`streams rm`"), "{}", ran.stderr);
    let ran = bus.run(&["pub", "events.a", "1", "--url", &format!("{}/OTHER", bus.url)]);
    let said =
        "stream 'OTHER' has subjects taken by stream 'A3S_EVENTS', and the command asks for 'events.>'";
    assert!(ran.code == 1 && ran.stderr.contains(said), "{}", ran.stderr);
    bus.prints(&["sub", "events.a", "--durable", "late", "--from", "2", "--idle", "100ms"]);
    let ran = bus.run(&["sub", "events.a", "--durable", "late", "--from", "1"]);
    let said = "consumer 'late' has start sequence 2, and the command asks for sequence 1; a start is for a new consumer";
    assert!(ran.code == 1 && ran.stderr.contains(said), "{}", ran.stderr);
    let ran = bus.run(&["consumers", "reset", "late", "--to", "first", "--yes"]);
    let said =
        "the server moves no consumer before its start, and consumer 'late' of 'events.a' starts later";
    assert!(ran.code == 3 && ran.stderr.contains(said), "{}", ran.stderr);
}
