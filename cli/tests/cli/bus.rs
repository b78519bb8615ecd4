//! A private bus for a test, and runs of the program against it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use a3s_event_testkit::{NatsServer, RedisServer};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) struct Bus {
    pub(crate) url: String,
    pub(crate) folder: TempDir,
    /// Its nats-server.
    pub(crate) server: Option<NatsServer>,
    /// Its Redis server.
    pub(crate) redis: Option<RedisServer>,
}

/// The result of a run.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Bus {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("bus.db").display());
        Self { url, folder, server: None, redis: None }
    }

    pub(crate) async fn nats() -> Self {
        Self::on(NatsServer::start().await)
    }

    pub(crate) fn on(server: NatsServer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { url: server.url(), folder, server: Some(server), redis: None }
    }

    pub(crate) async fn redis() -> Self {
        let redis = RedisServer::start().await;
        let folder = tempfile::tempdir().unwrap();
        Self { url: redis.url(), folder, server: None, redis: Some(redis) }
    }

    /// Returns `true` for a server, which can hold several streams.
    pub(crate) fn is_on_server(&self) -> bool {
        self.server.is_some() || self.redis.is_some()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the test's folder and returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Creates a command of the program with this bus, without the user's settings and files.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program(self.folder.path());
        command.env("A3S_EVENT_URL", &self.url).args(arguments);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        ended(self.command(arguments).stdin(Stdio::null()).output().unwrap())
    }

    pub(crate) fn run_with_stdin(&self, arguments: &[&str], stdin: &str) -> Ran {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that refuses its arguments does not read stdin.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        ended(child.wait_with_output().unwrap())
    }

    /// Runs the program, which must succeed, and returns its output.
    #[track_caller]
    pub(crate) fn prints(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {}{}", ran.stderr, ran.stdout);
        ran.stdout
    }

    /// Runs the program and returns its lines of JSON.
    #[track_caller]
    pub(crate) fn rows(&self, arguments: &[&str]) -> Vec<Value> {
        json_lines(&self.prints(&[arguments, &["--output", "ndjson"]].concat()))
    }

    /// Publishes numbered events under one subject.
    pub(crate) fn publish(&self, subject: &str, events: u64) {
        let lines: String = (1..=events).map(|n| format!("{{\"n\":{n}}}\n")).collect();
        let ran = self.run_with_stdin(&["import", "-", subject], &lines);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
}

pub(crate) fn program(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_a3s-event"));
    isolate(&mut command, home);
    command
}

/// Hides the user's own settings and files from a command.
pub(crate) fn isolate(command: &mut Command, home: &Path) {
    for variable in
        ["A3S_EVENT_URL", "A3S_EVENT_CONFIG", "A3S_EVENT_DLQ_URL", "A3S_EVENT_KEY_FILE", "A3S_EVENT_LOG"]
    {
        command.env_remove(variable);
    }
    command
        .env("HOME", home)
        .env("XDG_DATA_HOME", home.join("data"))
        .env("XDG_CONFIG_HOME", home.join("config"));
}

pub(crate) fn ended(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the numbers of events that `publish` has published.
pub(crate) fn numbers(rows: &[Value]) -> Vec<u64> {
    rows.iter().map(|row| row["event"]["payload"]["n"].as_u64().unwrap()).collect()
}

/// Returns the file of the week of earthquakes, or the part in the examples if the whole week is absent.
pub(crate) fn week() -> (String, u64) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let whole = root.join("../shared/data/usgs-earthquakes-2018-02.geojson");
    if whole.exists() {
        return (whole.to_str().unwrap().to_owned(), 1_707);
    }
    (root.join("examples/data/usgs-earthquakes.geojson").to_str().unwrap().to_owned(), 400)
}
