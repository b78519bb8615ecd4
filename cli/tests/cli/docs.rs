//! Runs every command of the pages, page by page, in order and in one shell, and every example of the program's help.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bus::{Bus, ended, isolate};
use crate::on_every_bus;
use crate::reading::terminate;
use crate::watching::Terminal;

on_every_bus! { every_example_of_the_help_runs }

/// Replacements for the programs that run this test and cannot run within it. They check their arguments.
const STAND_INS: &str = r#"
set -euo pipefail
cargo() {
    case "$*" in
        "install --path cli") grep -q '^name = "a3s-event"' "$ROOT/cli/Cargo.toml" ;;
        "run --example "*" --features "*) [ -f "$ROOT/examples/$3.rs" ] && grep -q "^$5 = " "$ROOT/Cargo.toml" ;;
        "add a3s-event --path ../a3s-event --features "*) grep -q "^$6 = " "$ROOT/Cargo.toml" ;;
        "add serde_json" | "add serde --features derive" | "add tokio --features "*) true ;;
        *) false ;;
    esac
}
scripts_test() {
    [ -x "$ROOT/scripts/test" ]
}
just() {
    grep -Eq "^$1( .*)?:" "$ROOT/justfile"
}
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Returns the code blocks of a page in this language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    page.split(&format!("```{language}\n")).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// Runs the commands of a page in their own folder, and returns them.
async fn run(page: &str) -> String {
    let server = Bus::nats().await;
    let root = root();
    let commands = blocks(page, "sh")
        .concat()
        .replace("nats://127.0.0.1:4222", &server.url)
        .replace("scripts/test ", "scripts_test ")
        .replace("examples/", &format!("{}/examples/", root.display()));
    let script = STAND_INS.to_owned() + &commands;
    let mut shell = shell(&server);
    let ran =
        ended(shell.env_remove("A3S_EVENT_URL").env("ROOT", &root).args(["-xc", &script]).output().unwrap());
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
    script
}

#[tokio::test]
async fn the_commands_of_the_guide_run() {
    let script = run(include_str!("../../README.md")).await;
    assert!(script.matches("a3s-event ").count() > 20);
}

#[tokio::test]
async fn the_commands_of_the_front_page_run() {
    let script = run(include_str!("../../../README.md")).await;
    assert!(script.matches("a3s-event ").count() > 6);
}

#[tokio::test]
async fn the_commands_of_the_other_pages_run() {
    run(include_str!("../../../docs/benchmarks.md")).await;
    run(include_str!("../../../src/docs/encryption.md")).await;
}

#[tokio::test]
async fn the_config_file_of_the_guide_is_read() {
    let bus = Bus::sqlite();
    let config = blocks(include_str!("../../README.md"), "toml")[0];
    bus.publish("events.a", 1);
    let printed = bus.prints(&["--config", &bus.file("config.toml", config), "info"]);
    assert!(printed.contains("sqlite"), "{printed}");
}

/// Returns the words of every command, as the help lists them; the tool itself has none.
pub(crate) fn command_paths(bus: &Bus) -> Vec<Vec<String>> {
    let mut paths: Vec<Vec<String>> = vec![Vec::new()];
    let mut next = 0;
    while let Some(path) = paths.get(next).cloned() {
        next += 1;
        let arguments: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let help = bus.prints(&arguments);
        let commands = help.split("Commands:\n").nth(1).unwrap_or_default();
        let is_first = |line: &&str| line.chars().nth(2) != Some(' ');
        for line in commands.lines().take_while(|line| line.starts_with("  ")).filter(is_first) {
            let name = line.split_whitespace().next().unwrap();
            if name != "help" {
                paths.push([path.clone(), vec![name.to_owned()]].concat());
            }
        }
    }
    assert!(paths.len() > 20, "{paths:?}");
    paths
}

/// Returns the examples in the program's help, in the order of its commands.
fn examples(bus: &Bus) -> Vec<String> {
    let mut examples = Vec::new();
    for path in command_paths(bus) {
        let arguments: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let help = bus.prints(&arguments);
        let shown = help.split("Example:\n").nth(1).expect("an example");
        let lines = shown.lines().take_while(|line| line.starts_with("  "));
        examples.extend(lines.map(|line| line.trim().to_owned()));
    }
    examples
}

/// Creates a shell in the test's folder, with the program in its path.
pub(crate) fn shell(bus: &Bus) -> Command {
    let mut shell = Command::new("bash");
    isolate(&mut shell, bus.folder.path());
    let path = format!("{}:{}", programs().display(), std::env::var("PATH").unwrap());
    shell
        .env("A3S_EVENT_URL", &bus.url)
        .env("PATH", path)
        .current_dir(bus.folder.path())
        .stdin(Stdio::null());
    shell
}

async fn every_example_of_the_help_runs(bus: &Bus) {
    let there = Bus::nats().await;
    let file = format!("sqlite://{}", bus.path("here.db").display());
    std::fs::create_dir_all(bus.path("schemas")).unwrap();
    let of_test = format!("{}/TEST?subject_prefix=test", there.url);
    std::fs::create_dir_all(bus.path("config/a3s-event")).unwrap();
    bus.file("config/a3s-event/config.toml", &format!("[buses]\ntest = \"{of_test}\"\n"));
    std::fs::copy(crate::bus::week().0, bus.path("week.geojson")).unwrap();
    bus.file("schemas/order.placed.v1.json", r#"{"type": "object", "required": ["total"]}"#);
    bus.publish("events.market.forex", 14);
    for url in [&there.url, &of_test] {
        // Creates the stream.
        there.prints(&["sub", "--count", "0", "--url", url]);
    }
    bus.prints(&["pub", "events.orders.one", "{}", "--id", "evt-0197f6f2-7c61-7a42-9d5e-0c8c0f9d1b11"]);
    bus.prints(&["sub", "events.orders.>", "--durable", "billing", "--count", "1"]);
    bus.prints(&["pub", "events.orders.two", "{}"]);
    crate::letters::keep(bus, &["events.orders.a", "events.orders.b"]).await;
    bus.prints(&["pub", "events.orders.one", "{}", "--url", &file]);
    for example in examples(bus) {
        let mut line = example
            .replace("sqlite:///var/lib/events.db", &file)
            .replace("sqlite:///var/lib/letters.db", &file)
            .replace("nats://127.0.0.1:4222", &there.url);
        if line.ends_with(" conformance") {
            // A full run takes a minute.
            line.push_str(" --case history");
        }
        let is_endless = ["a3s-event watch", " watch ", "tail -n", "--durable"];
        if is_endless.iter().any(|part| line.contains(part)) {
            run_endless(bus, &line).await;
            continue;
        }
        let ran = ended(shell(bus).args(["-euo", "pipefail", "-c", &line]).output().unwrap());
        assert_eq!(ran.code, 0, "{line}\n{}{}", ran.stdout, ran.stderr);
    }
}

/// Runs an endless line until its first output, and then ends it.
async fn run_endless(bus: &Bus, line: &str) {
    if line.contains(" watch") {
        if let Some(terminal) = Terminal::open(bus, &format!("PATH='{}':$PATH {line}", programs().display()))
        {
            terminal.shows(&["last events"]).await;
            terminal.press("q");
            terminal.shows(&["ended with 0"]).await;
        }
        return;
    }
    let mut child = shell(bus).args(["-c", &format!("exec {line}")]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    assert!(!first.is_empty(), "{line}");
    terminate(&child);
    assert!(child.wait().unwrap().success(), "{line}");
}

/// Returns the folder of the program.
pub(crate) fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_a3s-event")).parent().unwrap()
}
