//! Tests of completion in real shells: a person types and presses the tab key.

use std::process::Command;

use crate::bus::{Bus, ended};
use crate::docs::{programs, shell};
use crate::watching::Terminal;

/// Creates a bus with a consumer of a program, and a config file with two names.
async fn prepared() -> Bus {
    let bus = Bus::nats().await;
    bus.publish("events.orders.placed", 1);
    crate::members::billing(&bus, 1, None).await;
    std::fs::create_dir_all(bus.path("config/a3s-event")).unwrap();
    bus.file("week.ndjson", "1\n");
    bus.file("config/a3s-event/config.toml", "[buses]\nstaging = \"memory://\"\nother = \"memory://\"\n");
    bus
}

/// Completes words with the function that the script registers.
fn completed(bus: &Bus, words: &[&str]) -> Vec<String> {
    let current = words.len();
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "source <(a3s-event completions bash)
         COMP_WORDS=(a3s-event {}) COMP_CWORD={current} COMP_TYPE=9
         $(complete -p a3s-event | sed 's/.*-F \\([^ ]*\\) .*/\\1/') a3s-event '{}' '{}'
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted.join(" "),
        words[current - 1],
        words.get(current.wrapping_sub(2)).unwrap_or(&"a3s-event"),
    );
    let ran = ended(shell(bus).args(["-c", &script]).output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{script}");
    ran.stdout.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bash_completes_commands_options_and_names() {
    let bus = prepared().await;
    for (words, expected) in [
        (&["cons"][..], &["consumers"][..]),
        (&["consumers", "re"], &["reset"]),
        (&["history", "--before"], &["--before-seq"]),
        (&["--output", "nd"], &["ndjson"]),
        (&["--url", ""], &["other", "staging"]),
        (&["bus", "use", "s"], &["staging"]),
        (&["sub", "--durable", ""], &["billing"]),
        (&["consumers", "rm", "b"], &["billing"]),
        (&["dlq", "list", "--consumer", ""], &["billing"]),
        (&["streams", "rm", ""], &["A3S_EVENTS"]),
        (&["copy", "o"], &["other"]),
        (&["import", "wee"], &["week.ndjson"]),
        (&["restore", "wee"], &["week.ndjson"]),
        (&["import", "-", "events.a", "--resume", "wee"], &["week.ndjson"]),
        (&["--config", "wee"], &["week.ndjson"]),
        (&["--key-file", "wee"], &["week.ndjson"]),
        (&["schema", "check", ".", "--events", "wee"], &["week.ndjson"]),
        (&["bench", "--svg", "wee"], &["week.ndjson"]),
    ] {
        let found = completed(&bus, words);
        let names: Vec<_> =
            found.iter().filter(|word| !word.starts_with('-') || words.last() != Some(&"")).collect();
        assert_eq!(names, expected, "{words:?}: {found:?}");
    }
    // The line names the bus.
    assert!(completed(&bus, &["--url", "memory://", "consumers", "rm", "b"]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_does_not_answer_completes_nothing_and_says_nothing() {
    let mut bus = prepared().await;
    bus.server.as_ref().unwrap().freeze().await;
    let started = std::time::Instant::now();
    assert!(completed(&bus, &["consumers", "rm", "b"]).is_empty());
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
    bus.server.as_ref().unwrap().thaw();
    bus.url = "nats://127.0.0.1:1".to_owned();
    assert!(completed(&bus, &["consumers", "rm", "b"]).is_empty());
    bus.url = format!("sqlite://{}", bus.path("typo.db").display());
    assert!(completed(&bus, &["consumers", "rm", "b"]).is_empty());
    assert!(!bus.path("typo.db").exists(), "a tab makes no file");
}

/// Types in an interactive shell of tmux.
async fn typed_in(shell: &str, setup: &str) {
    let name = shell.split(' ').next().unwrap();
    if Command::new(name).arg("--version").output().is_err() {
        eprintln!("not checked: there is no {name}");
        return;
    }
    let bus = prepared().await;
    let home = bus.folder.path().display();
    let line = format!(
        "export HOME='{home}' XDG_CONFIG_HOME='{home}/config' PATH=\"{}:$PATH\"; unset A3S_EVENT_CONFIG; {shell}",
        programs().display()
    );
    let Some(terminal) = Terminal::open(&bus, &line) else { return };
    terminal.enter(&format!("cd '{home}'; {setup}; echo is \"\"ready"));
    terminal.shows(&["is ready"]).await;
    for (typed, shown) in [
        ("a3s-event comple", "a3s-event completions"),
        ("a3s-event consumers rm bil", "rm billing"),
        ("a3s-event --url stag", "--url staging"),
        ("a3s-event streams rm A3", "rm A3S_EVENTS"),
        ("a3s-event import wee", "import week.ndjson"),
        ("a3s-event --key-file wee", "--key-file week.ndjson"),
    ] {
        terminal.write(typed);
        terminal.press("Tab");
        terminal.shows(&[shown]).await;
        terminal.press("C-u");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_works_in_bash() {
    typed_in("bash --norc --noprofile -i", "source <(a3s-event completions bash)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_works_in_zsh() {
    typed_in("zsh -f -i", "autoload -U compinit; compinit -u; source <(a3s-event completions zsh)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_works_in_fish() {
    typed_in("fish --no-config", "a3s-event completions fish | source").await;
}
