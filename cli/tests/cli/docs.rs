//! Every command of the guide runs, in its order, in one shell.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::bus::{Bus, ended};

#[tokio::test]
async fn the_commands_of_the_guide_run() {
    let server = Bus::nats().await;
    let guide = include_str!("../../README.md");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let mut script = "set -euo pipefail\n".to_owned();
    for block in guide.split("```sh\n").skip(1) {
        script.push_str(block.split("```").next().unwrap());
    }
    let script = script
        .replace("nats://127.0.0.1:4222", &server.url)
        .replace("examples/", &format!("{}/examples/", root.display()));
    let folder = Path::new(env!("CARGO_BIN_EXE_a3s-event")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    for variable in ["A3S_EVENT_URL", "A3S_EVENT_CONFIG", "A3S_EVENT_DLQ_URL"] {
        shell.env_remove(variable);
    }
    shell.env("PATH", path).env("HOME", server.folder.path()).current_dir(server.folder.path());
    shell.env("XDG_DATA_HOME", server.path("data")).env("XDG_CONFIG_HOME", server.path("config"));
    let ran = ended(shell.args(["-xc", &script]).stdin(Stdio::null()).output().unwrap());
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
    assert!(script.matches("a3s-event ").count() > 20);
}
