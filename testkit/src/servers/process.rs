//! The process of a server: its folder, its log, and the signals that it receives.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Timeout for a server to start, to end and to stop.
const DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);
const SIGNAL_AGAIN: Duration = Duration::from_millis(250);
/// Timeout for several servers to agree, on a slow machine.
const AGREE_DEADLINE: Duration = Duration::from_secs(60);
const AGREE_POLL: Duration = Duration::from_millis(20);

/// A process with a folder of its own. Dropping it kills the process and removes the folder.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    folder: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a program over a folder of [`new_folder`]. Its output goes into the log there.
    pub(super) fn start(name: &'static str, folder: PathBuf, command: &mut Command) -> Self {
        let child = spawn(&folder, command);
        Self { name, folder, child }
    }

    /// Starts a program after the previous one has ended.
    pub(super) fn start_again(&mut self, command: &mut Command) {
        self.child = spawn(&self.folder, command);
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns what the process has written to its output, across restarts.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits until the server serves.
    pub(super) async fn ready<F: Future<Output = bool>>(&mut self, serves: impl Fn() -> F) {
        let started = Instant::now();
        while !serves().await {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            assert!(
                started.elapsed() < DEADLINE,
                "{} is not ready after {DEADLINE:?}:\n{}",
                self.name,
                self.log()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills the process as a crash would (SIGKILL).
    pub(super) fn kill(&mut self) {
        // An error means that it has already ended.
        let _ = self.child.kill();
        self.child.wait().expect("a child process can be waited for");
    }

    /// Ends the process gracefully (SIGTERM), so that it writes its data.
    pub(super) async fn terminate(&mut self) {
        let started = Instant::now();
        let mut next_signal = started;
        while self.child.try_wait().expect("a child process can be waited for").is_none() {
            assert!(started.elapsed() < DEADLINE, "{} did not end:\n{}", self.name, self.log());
            // A replica that writes what it has just copied ignores the signal.
            if Instant::now() >= next_signal {
                self.signal("TERM");
                next_signal += SIGNAL_AGAIN;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Suspends the process (SIGSTOP): connections stay open and nothing answers.
    pub(super) async fn freeze(&self) {
        self.signal("STOP");
        let started = Instant::now();
        // The signal was sent, but each thread runs on until it receives it.
        while !self.is_stopped() {
            assert!(started.elapsed() < DEADLINE, "{} did not stop", self.name);
            tokio::time::sleep(POLL).await;
        }
    }

    /// Resumes a suspended process (SIGCONT).
    pub(super) fn thaw(&self) {
        self.signal("CONT");
    }

    fn is_stopped(&self) -> bool {
        let threads = Command::new("ps").args(["-L", "-o", "state=", "-p", &self.id().to_string()]).output();
        let threads = threads.expect("ps can be run");
        String::from_utf8_lossy(&threads.stdout).lines().all(|state| state.starts_with('T'))
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -s {signal} failed");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Waits until servers have come to this state, which `look` observes.
pub(super) async fn until<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < AGREE_DEADLINE, "timed out after {AGREE_DEADLINE:?}: {what}");
        tokio::time::sleep(AGREE_POLL).await;
    }
}

fn spawn(folder: &Path, command: &mut Command) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
    let log = log.expect("the server's folder can be written to");
    let errors = log.try_clone().expect("an open file can be shared");
    let spawned = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
    spawned.unwrap_or_else(|error| panic!("running {} failed: {error}", command.get_program().display()))
}

/// Returns a port that no program listens on. It is below the range of ephemeral ports. The system could give one of
/// those to another program before a server listens on it, or while that server restarts.
pub(super) fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    // Programs that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(7_919);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + begin.wrapping_add(number) % COUNT;
        let port = u16::try_from(port).expect("the range ends below the highest port");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Creates a folder for a server of this kind.
pub(super) fn new_folder(kind: &str) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("a3s-event-{kind}-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        match fs::create_dir(&folder) {
            Ok(()) => return folder,
            // Left behind by a killed run that had the same process id.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => panic!("creating {} failed: {error}", folder.display()),
        }
    }
}

/// Returns the binary of this version, if the script that fetches servers of this kind has unpacked it.
pub(super) fn unpacked(kind: &str, version: &str) -> Option<PathBuf> {
    let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(kind);
    let binary = servers.join(version).join(kind);
    binary.is_file().then_some(binary)
}
