//! Tests of `watch` in a terminal of tmux.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::bus::Bus;
use crate::on_every_bus;

on_every_bus! { watch_shows_rate_lag_and_events_and_ends }

/// A private tmux server for the test, which leaves the user's sessions alone.
pub(crate) struct Terminal(String);

impl Terminal {
    /// Opens a session that runs a line and shows its exit; `None` without tmux.
    pub(crate) fn open(bus: &Bus, line: &str) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            eprintln!("not checked: there is no tmux");
            return None;
        }
        static OPENED: AtomicU32 = AtomicU32::new(0);
        let socket = bus.path(&format!("tmux-{}", OPENED.fetch_add(1, Ordering::Relaxed)));
        let terminal = Self(socket.to_str().unwrap().to_owned());
        let line = format!("export A3S_EVENT_URL='{}'; {line}; echo ended with $?; cat", bus.url);
        terminal.tmux(&["new-session", "-d", "-x", "120", "-y", "40", &line]).expect("a session");
        Some(terminal)
    }

    pub(crate) fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]).unwrap();
    }

    /// Types text.
    pub(crate) fn write(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]).unwrap();
    }

    /// Types a line.
    pub(crate) fn enter(&self, line: &str) {
        if !line.is_empty() {
            self.write(line);
        }
        self.press("Enter");
    }

    fn tmux(&self, arguments: &[&str]) -> Option<String> {
        let output = Command::new("tmux").args(["-S", &self.0]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until the screen shows all of this.
    pub(crate) async fn shows(&self, wanted: &[&str]) {
        let started = Instant::now();
        loop {
            let screen = self.tmux(&["capture-pane", "-p"]).unwrap_or_default();
            if wanted.iter().all(|wanted| screen.contains(wanted)) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{wanted:?} is not shown:\n{screen}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

async fn watch_shows_rate_lag_and_events_and_ends(bus: &Bus) {
    bus.publish("events.a", 20);
    bus.prints(&["sub", "events.a", "--durable", "slow", "--count", "3"]);
    let line = format!("{} watch --every 200ms", env!("CARGO_BIN_EXE_a3s-event"));
    let Some(terminal) = Terminal::open(bus, &line) else { return };
    terminal.shows(&["20 events", "slow", "17", "published: 0/s", "{\"n\":20}"]).await;
    bus.prints(&["pub", "events.a", "{\"n\":21}", "--summary", "the newest one"]);
    terminal.shows(&["21 events", "18", "the newest one"]).await;
    terminal.press("q");
    terminal.shows(&["ended with 0"]).await;
}

#[tokio::test]
async fn watch_says_that_the_server_does_not_answer_and_ends() {
    let bus = Bus::nats().await;
    bus.publish("events.a", 1);
    // The request timeout is longer than the test's timeout for the end.
    let line = format!(
        "export A3S_EVENT_URL='{}?request_timeout=120s'; {} watch --every 100ms",
        bus.url,
        env!("CARGO_BIN_EXE_a3s-event")
    );
    let Some(terminal) = Terminal::open(&bus, &line) else { return };
    terminal.shows(&["1 event "]).await;
    bus.server.as_ref().unwrap().freeze().await;
    terminal.shows(&["no answer for"]).await;
    terminal.press("q");
    terminal.shows(&["ended with 0"]).await;
    bus.server.as_ref().unwrap().thaw();
}
