//! The examples that need a client, a server or a signal, run as programs. `scripts/test` runs the others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests panic")]
#![allow(clippy::disallowed_methods, reason = "what waits for a program blocks no runtime")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use a3s_event_testkit::servers::nats::NatsServer;
use a3s_event_testkit::servers::redis::RedisServer;

/// Timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The program of an example, which `cargo test` builds beside the tests.
fn example(name: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(
        program.exists(),
        "{} is not built: run cargo build --examples --all-features",
        program.display()
    );
    Command::new(program)
}

/// A running service. It is killed when this is dropped.
struct Service {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Service {
    fn start(folder: &Path, key: &Path) -> Self {
        let mut child = example("service")
            .env("ORDERS_BUS", format!("sqlite:{}", folder.join("orders.db").display()))
            .env("ORDERS_LISTEN", "127.0.0.1:0")
            .env("ORDERS_KEY_FILE", key)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line}"));
        Self { child, stdout, address: address.to_owned() }
    }

    /// Sends a request and returns the status and the body of the response.
    fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
            .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.request("GET", "/metrics", "");
        let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Sends SIGTERM, waits for the end, and returns the rest of what the service printed.
    fn terminate(mut self) -> String {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let mut said = String::new();
        self.stdout.read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}");
        said
    }
}

fn key_file(folder: &Path) -> PathBuf {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = folder.join("orders.key");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
    file.write_all(b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
    path
}

#[test]
fn the_service_publishes_handles_measures_and_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let key = key_file(folder.path());
    let service = Service::start(folder.path(), &key);
    assert_eq!(service.request("GET", "/health", "").0, 200);
    let placed = service.request("POST", "/orders", r#"{"id": 7, "total": 4750}"#);
    assert_eq!(placed.0, 202);
    assert_eq!(
        service.request("POST", "/orders", r#"{"id": 7, "total": 4750}"#),
        placed,
        "a repeated request"
    );
    assert_eq!(service.request("POST", "/orders", "no JSON").0, 400);
    let (status, why) = service.request("POST", "/orders", r#"{"id": 8, "total": -1}"#);
    assert!(status == 422 && why.contains("/total"), "{status}: {why}");

    let deadline = Instant::now() + TIMEOUT;
    while service.metric("a3s_event_consumer_acked_total") != Some(1.0) {
        assert!(Instant::now() < deadline, "{}", service.request("GET", "/metrics", "").1);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(service.metric("a3s_event_published_total"), Some(2.0), "a repeated publish is one, too");
    let said = service.terminate();
    assert!(said.contains("order 7 over 4750 is billed at attempt 1") && said.contains("stopped"), "{said}");

    // The ack is stored, and the payload is not readable in the file.
    let stored = std::fs::read(folder.path().join("orders.db")).unwrap();
    assert!(!stored.windows(4).any(|bytes| bytes == b"4750"));
    let said = Service::start(folder.path(), &key).terminate();
    assert!(!said.contains("billed"), "{said}");
}

#[tokio::test]
async fn the_quickstart_continues_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let server = RedisServer::start().await;
    let file = format!("sqlite:{}", folder.path().join("quakes.db").display());
    for (url, left, handled) in
        [(&file, 0, 362), (&file, 10, 372), (&server.url(), 0, 362), (&server.url(), 10, 372)]
    {
        let ran = example("quickstart").arg(url).output().unwrap();
        let said = String::from_utf8(ran.stdout).unwrap();
        assert!(ran.status.success(), "{said}");
        assert!(said.contains(&format!("continues with {left} events that earlier runs left")), "{said}");
        assert!(
            said.contains(&format!("handled {handled} events; 2 attempts failed, 1 event was dead-lettered")),
            "{said}"
        );
        assert!(said.contains("a report without a magnitude   fatal"), "{said}");
    }
}

#[tokio::test]
async fn one_program_says_the_same_on_every_backend() {
    let (nats, redis) = tokio::join!(NatsServer::start(), RedisServer::start());
    let (nats_url, redis_url) = (format!("{}/EXAMPLE", nats.url()), format!("{}/example", redis.url()));
    let ran = example("every_backend").args(["memory://", "sqlite::memory:", &nats_url, &redis_url]).output();
    let ran = ran.unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    for promise in ["a repeated publish is a duplicate: true", "a nacked event is redelivered: true"] {
        assert_eq!(said.matches(promise).count(), 4, "{said}");
    }
}

/// The guide shows the program that this file runs.
#[test]
fn the_guide_has_the_service() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = std::fs::read_to_string(root.join("src/docs/building_a_service.md")).unwrap();
    let source = std::fs::read_to_string(root.join("examples/service.rs")).unwrap();
    let shown = &source[source.find("\nuse ").unwrap()..];
    assert!(guide.contains(shown), "copy examples/service.rs, from its first `use` on, into the guide");
}
