//! Every command of the pages runs, page by page in its order, in one shell.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::bus::{Bus, ended};

/// What stands in for programs that a test cannot run again, because it is run by them: they check what they are told.
const STAND_INS: &str = r#"
set -euo pipefail
cargo() {
    [ "$*" = "install --path cli" ] && grep -q '^name = "a3s-event"' "$ROOT/cli/Cargo.toml"
}
just() {
    grep -Eq "^$1( .*)?:" "$ROOT/justfile"
}
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The blocks of a page in this language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    page.split(&format!("```{language}\n")).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// Runs the commands of a page in a folder of its own, and returns them.
async fn run(page: &str) -> String {
    let server = Bus::nats().await;
    let root = root();
    let script = (STAND_INS.to_owned() + &blocks(page, "sh").concat())
        .replace("nats://127.0.0.1:4222", &server.url)
        .replace("examples/", &format!("{}/examples/", root.display()));
    let folder = Path::new(env!("CARGO_BIN_EXE_a3s-event")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    for variable in ["A3S_EVENT_URL", "A3S_EVENT_CONFIG", "A3S_EVENT_DLQ_URL"] {
        shell.env_remove(variable);
    }
    shell
        .env("ROOT", &root)
        .env("PATH", path)
        .env("HOME", server.folder.path())
        .current_dir(server.folder.path());
    shell.env("XDG_DATA_HOME", server.path("data")).env("XDG_CONFIG_HOME", server.path("config"));
    let ran = ended(shell.args(["-xc", &script]).stdin(Stdio::null()).output().unwrap());
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
    let printed = bus.prints(&["--config", &bus.file("config.toml", config), "info"]);
    assert!(printed.contains("sqlite"), "{printed}");
}
