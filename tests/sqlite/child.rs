//! A second process: this very program, which runs one of these roles instead of the tests.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
use a3s_event::{EventError, EventProvider, PublishOptions};

use crate::{DEADLINE, durable, event, open, publish};

const ROLE: &str = "A3S_EVENT_TEST_ROLE";
const FILE: &str = "A3S_EVENT_TEST_FILE";
const NAME: &str = "A3S_EVENT_TEST_NAME";
/// Retention takes part in the crashes.
pub(crate) const MAX_EVENTS: u64 = 300;

/// Another process. It is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a role on a file. The name tells its work from that of others.
    pub(crate) fn start(role: &str, file: &Path, name: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::role", "--ignored", "--nocapture", "--test-threads=1"])
            .envs([(ROLE, role), (NAME, name)])
            .env(FILE, file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            // What a killed process wrote last may lack its end: then it was not said.
            while stdout.read_line(&mut line).is_ok() && line.ends_with('\n') {
                // The test runner begins the first line.
                if let Some((_, said)) = line.trim_end().split_once("> ") {
                    let _ = sender.send(said.to_owned());
                }
                line.clear();
            }
        });
        Self { child, lines }
    }

    /// Waits until the process says this.
    pub(crate) fn expect(&self, wanted: &str) {
        let deadline = Instant::now() + DEADLINE;
        while let Ok(said) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if said == wanted {
                return;
            }
        }
        panic!("the other process did not say '{wanted}' within {DEADLINE:?}");
    }

    /// Collects what it says for this long, kills it, and returns everything it said until it was dead.
    pub(crate) fn kill_after(mut self, time: Duration) -> Vec<String> {
        let deadline = Instant::now() + time;
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => panic!("the other process ended by itself: {said:?}"),
            }
        }
        self.kill();
        said.extend(self.lines.iter());
        said
    }

    fn kill(&mut self) {
        // On Unix this is SIGKILL.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One line, in one write, so that a kill leaves it whole or unfinished.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("> {text}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}

#[test]
#[ignore = "what the other process runs"]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let file = PathBuf::from(std::env::var(FILE).unwrap());
    let name = std::env::var(NAME).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match role.as_str() {
            "publish" => publish_slowly(&file).await,
            "hold" => hold_one(&file).await,
            "share" => share(&file).await,
            "crash" => work_until_killed(&file, &name).await,
            other => panic!("no role is named {other}"),
        }
    });
}

/// Publishes a few events, with pauses in which a reader goes to sleep.
async fn publish_slowly(file: &Path) {
    let provider = open(file).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(120)).await;
        publish(&provider, "slow").await;
    }
    say("done");
    std::future::pending::<()>().await;
}

/// Takes an event and keeps it.
async fn hold_one(file: &Path) {
    let provider = open(file).await;
    let mut subscription = durable(&provider, "shared").await;
    let _held = subscription.next_delivery().await.unwrap().unwrap();
    say("holding");
    std::future::pending::<()>().await;
}

/// Works on the shared consumer.
async fn share(file: &Path) {
    let provider = open(file).await;
    let mut subscription = durable(&provider, "shared").await;
    say("ready");
    loop {
        let delivery = subscription.next_delivery().await.unwrap().unwrap();
        let sequence = delivery.sequence();
        delivery.ack().await.unwrap();
        say(&format!("acked {sequence}"));
    }
}

/// Publishes and consumes as fast as it can, and says what it was told.
async fn work_until_killed(file: &Path, name: &str) {
    let config = SqliteConfig::file(file).max_events(MAX_EVENTS);
    let provider = std::sync::Arc::new(SqliteProvider::open(config).await.unwrap());
    say("ready");
    for publisher in 0..4 {
        let (provider, name) = (provider.clone(), name.to_owned());
        tokio::spawn(async move {
            for number in 0.. {
                let mut event = event("crash");
                event.id = format!("{name}-{publisher}-{number}");
                let options = PublishOptions { msg_id: Some(event.id.clone()), ..Default::default() };
                let sequence = provider.publish_with_options(&event, &options).await.unwrap();
                say(&format!("stored {sequence} {}", event.id));
            }
        });
    }
    let mut subscription = durable(&provider, "worker").await;
    loop {
        match subscription.next_delivery().await {
            Ok(Some(delivery)) => {
                let sequence = delivery.sequence();
                say(&format!("delivered {sequence} {}", delivery.num_delivered()));
                delivery.ack().await.unwrap();
                say(&format!("acked {sequence}"));
            }
            Err(EventError::Lagged { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
