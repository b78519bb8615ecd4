//! Tests that output fits the terminal: no line is longer, so that none breaks within a word.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use crate::bus::{Bus, Ran, ended};
use crate::docs::{command_paths, programs, shell};
use crate::letters::keep;

/// Runs a line in a terminal of this width; `None` without the program `script`.
fn in_terminal(bus: &Bus, columns: u16, environment: &str, line: &str) -> Option<String> {
    if Command::new("script").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("not checked: there is no script");
        return None;
    }
    let line = format!("stty cols {columns} rows 50; {environment} {line}");
    let mut shell = shell(bus);
    shell.env("TERM", "xterm-256color").env_remove("NO_COLOR");
    let ran: Ran = ended(shell.args(["-c", "exec script -qec \"$0\" /dev/null", &line]).output().unwrap());
    Some(ran.stdout.replace('\r', ""))
}

/// Removes the escape sequences of styles.
fn unstyled(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(0, |end| end + 1);
        let (sequence, rest) = part.split_at(end);
        if sequence.ends_with('K') {
            // A bar erases the one before it.
            shown.truncate(shown.rfind('\n').map_or(0, |line| line + 1));
        }
        shown.push_str(rest);
    }
    shown
}

/// Returns `true` if a line may end around this part of a word: behind a separator, or at the ends of the word.
fn is_part(part: &str, word: &str) -> bool {
    let is_separator = |c: char| matches!(c, '.' | '/' | '_' | '-');
    word.match_indices(part).any(|(at, _)| {
        (at == 0 || word[..at].ends_with(is_separator))
            && (part.ends_with(is_separator) || word.len() == at + part.len())
    })
}

fn words(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Returns command lines that show long values: names, subjects, contents and reasons.
async fn lines(bus: &Bus) -> Vec<String> {
    let long = "placed_in_the_year_2018.by_a_customer_of_the_first_hour";
    let summary = "a summary of many words that goes on and on until no terminal has room for it on one line";
    bus.prints(&["pub", &format!("events.orders.{long}"), "{\"n\": 1}", "--summary", summary]);
    bus.prints(&["pub", "events.orders.short", &format!("{{\"content\": \"{}\"}}", "x".repeat(300))]);
    crate::members::billing(bus, 3, None).await;
    let named = format!("a_consumer_{}", "with_a_long_name_".repeat(4));
    bus.prints(&["sub", "events.orders.>", "--durable", &named, "--count", "1"]);
    keep(bus, &[&format!("events.orders.{long}"), "events.orders.b"]).await;
    let mut lines: Vec<String> = [
        "history",
        "history --all",
        "tail --no-follow",
        "sub --from all --count 2",
        "info",
        "streams",
        "consumers",
        "consumers --wide",
        "dlq list",
        "dlq replay --all --dry-run",
        "dlq discard --all --dry-run",
        "doctor",
        "bench --count 10",
        "conformance --case msg_id --per-case",
        // Messages.
        "info --url nats://127.0.0.1:1/A_STREAM_WITH_A_NAME?subject_prefix=a_prefix",
        "doctor --url nats://127.0.0.1:1/A_STREAM_WITH_A_NAME?subject_prefix=a_prefix",
        "pub orders.placed 1",
        "show no-such-event",
        "consumers rm billing",
        "streams purge",
        "sub --durable billing --ack term",
        "history --limit many",
        "history --url no-such-bus",
    ]
    .map(str::to_owned)
    .to_vec();
    lines.push(format!("diff {} memory://", bus.url));
    lines
}

async fn everything_fits(bus: &Bus) {
    let mut lines = lines(bus).await;
    // The help is the same on every bus.
    if !bus.is_on_server() {
        lines.extend(command_paths(bus).into_iter().map(|path| format!("{} --help", path.join(" "))));
        assert!(lines.len() > 50);
    }
    for line in &lines {
        // Without an answer to its question, the run ends.
        let command = format!("'{}/a3s-event' {line} < /dev/null", programs().display());
        let piped = ended(shell(bus).args(["-c", &command]).output().unwrap());
        let all = format!("{}{}", piped.stdout, piped.stderr);
        assert!(!all.contains('\u{1b}'), "{line}: {all}");
        let is_counted =
            ["bench", "conformance", "sub ", "history"].iter().any(|start| line.starts_with(start));
        for columns in [80, 120] {
            let Some(shown) = in_terminal(bus, columns, "", &command) else { return };
            let shown = unstyled(&shown);
            for wide in shown.lines().filter(|wide| wide.chars().count() > usize::from(columns)) {
                // A user's word that is longer than the terminal stays whole.
                assert!(!wide.trim().contains(' '), "{line} at {columns}: {wide}\n{shown}");
            }
            assert!(!shown.trim().is_empty(), "{line} shows nothing");
            let whole = words(&all);
            let is_broken =
                |part: &String| !part.ends_with('…') && !whole.iter().any(|word| is_part(part, word));
            let broken: Vec<_> = words(&shown).into_iter().filter(is_broken).collect();
            assert!(is_counted || broken.is_empty(), "{line} at {columns} breaks {broken:?}\n{shown}\n{all}");
        }
    }
}

/// Letters and stored names are read at 80 columns: no cell of them is broken over lines.
#[tokio::test(flavor = "multi_thread")]
async fn lists_of_an_operator_are_read_at_80_columns() {
    let bus = Bus::sqlite();
    crate::members::billing(&bus, 3, None).await;
    keep(&bus, &["events.orders.a", "events.orders.b"]).await;
    let shown = |line: &str| {
        let command = format!("'{}/a3s-event' {line}", programs().display());
        in_terminal(&bus, 80, "", &command).map(|shown| unstyled(&shown))
    };
    let Some(list) = shown("dlq list") else { return };
    assert_eq!(list.trim().lines().count(), 3, "{list}");
    assert!(list.contains("events.orders.a  billing   open"), "{list}");
    let wide = shown("consumers --wide").unwrap();
    let stored = bus.rows(&["consumers"])[0]["name"].as_str().unwrap().to_owned();
    assert!(
        wide.contains(&format!("stored name  {stored}\n")) && wide.contains("consumer     billing\n"),
        "{wide}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_fits_sqlite() {
    everything_fits(&Bus::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_fits_nats() {
    everything_fits(&Bus::nats().await).await;
}

#[test]
fn styles_are_for_terminals_that_want_them() {
    let bus = Bus::sqlite();
    bus.publish("events.a", 1);
    for line in ["history", "streams", "--help", "no-such-command"] {
        let command = format!("'{}/a3s-event' {line}", programs().display());
        let Some(styled) = in_terminal(&bus, 80, "", &command) else { return };
        assert!(styled.contains('\u{1b}'), "{line}: {styled}");
        for environment in ["NO_COLOR=1", "TERM=dumb", "CI=true TERM=dumb"] {
            let plain = in_terminal(&bus, 80, environment, &command).unwrap();
            assert!(!plain.contains('\u{1b}'), "{environment} {line}: {plain}");
        }
        let piped = ended(shell(&bus).args(["-c", &format!("{command} 2>&1 | cat")]).output().unwrap());
        assert!(!piped.stdout.contains('\u{1b}'), "{line}: {}", piped.stdout);
    }
}
