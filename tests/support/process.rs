//! A second process: this very test program, which plays a role instead of running the tests.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const ROLE: &str = "A3S_EVENT_TEST_ROLE";
const TARGET: &str = "A3S_EVENT_TEST_TARGET";
const NAME: &str = "A3S_EVENT_TEST_NAME";
/// No wait for another process is longer.
const DEADLINE: Duration = Duration::from_secs(20);

/// What this process is to do instead of running the tests.
pub(crate) struct Role {
    pub(crate) role: String,
    /// The file or the URL to work on.
    pub(crate) target: String,
    /// Tells its work from that of others.
    pub(crate) name: String,
}

/// The role of this process, if it is not the first one.
pub(crate) fn role_to_play() -> Option<Role> {
    let [role, target, name] = [ROLE, TARGET, NAME].map(std::env::var);
    Some(Role { role: role.ok()?, target: target.ok()?, name: name.ok()? })
}

/// Another process. It is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a role on a file or a URL, in the test of this path. The name tells its work from that of others.
    pub(crate) fn start(test: &str, role: &str, target: impl AsRef<OsStr>, name: &str) -> Self {
        Self::run(Command::new(std::env::current_exe().unwrap()), test, role, target.as_ref(), name)
    }

    /// The same under another program, which ends with the process that it starts.
    #[allow(dead_code, reason = "not every test binary has a program to start it under")]
    pub(crate) fn start_under(
        program: &[&str],
        test: &str,
        role: &str,
        target: impl AsRef<OsStr>,
        name: &str,
    ) -> Self {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(std::env::current_exe().unwrap());
        Self::run(command, test, role, target.as_ref(), name)
    }

    fn run(mut command: Command, test: &str, role: &str, target: &OsStr, name: &str) -> Self {
        let mut child = command
            .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
            .envs([(ROLE, role), (NAME, name)])
            .env(TARGET, target)
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

    /// Its id.
    #[allow(dead_code, reason = "not every user of this file asks")]
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
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
    pub(crate) fn kill_after(self, time: Duration) -> Vec<String> {
        let deadline = Instant::now() + time;
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => panic!("the other process ended by itself: {said:?}"),
            }
        }
        self.killed(said)
    }

    /// Collects what it says until it says this, kills it, and returns everything it said until it was dead.
    #[allow(dead_code, reason = "not every test program says when")]
    pub(crate) fn kill_when(self, wanted: &str) -> Vec<String> {
        let deadline = Instant::now() + DEADLINE;
        let mut said: Vec<String> = Vec::new();
        while said.last().is_none_or(|line| line != wanted) {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            said.push(line.unwrap_or_else(|_| panic!("it did not say '{wanted}': {said:?}")));
        }
        self.killed(said)
    }

    /// Kills it, and returns what it had said with what it said until it was dead.
    fn killed(mut self, mut said: Vec<String>) -> Vec<String> {
        self.kill();
        said.extend(self.lines.iter());
        said
    }

    /// Everything it says until it ends by itself, if it does within the deadline.
    #[allow(dead_code, reason = "not every test binary has a process that ends")]
    pub(crate) fn until_it_ends(mut self) -> Option<Vec<String>> {
        let deadline = Instant::now() + DEADLINE;
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let _ = self.child.wait();
        Some(said)
    }

    /// Waits until it has said this many lines that begin like this, asks it to end, and returns everything it said and
    /// whether it ended well.
    #[cfg(unix)]
    #[allow(dead_code, reason = "not every test program asks")]
    pub(crate) fn terminate_after(mut self, beginning: &str, count: usize) -> (Vec<String>, bool) {
        let deadline = Instant::now() + DEADLINE;
        let mut said = Vec::new();
        while said.iter().filter(|line: &&String| line.starts_with(beginning)).count() < count {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            said.push(line.unwrap_or_else(|_| panic!("it said only: {said:?}")));
        }
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        // Its output ends when it does.
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            said.push(line);
        }
        let ended_well = self.child.try_wait().unwrap().is_some_and(|status| status.success())
            || self.child.wait().unwrap().success();
        (said, ended_well)
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
pub(crate) fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("> {text}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}
