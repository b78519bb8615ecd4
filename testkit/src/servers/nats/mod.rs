//! A real nats-server with JetStream for tests. It has its own port and store, and ends when dropped.

mod cluster;
pub mod protocol;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

pub use self::cluster::NatsCluster;

/// Version of the server that `scripts/fetch-nats-server` unpacks.
pub const REFERENCE: &str = "2.15.1";
/// Oldest supported version, which the script unpacks if Debian's package is available.
pub const OLDEST: &str = "2.9.10";

/// Timeout for a server to start.
const START_DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);

/// A running nats-server.
#[derive(Debug)]
pub struct NatsServer {
    binary: PathBuf,
    folder: PathBuf,
    port: u16,
    child: Child,
}

impl NatsServer {
    /// Starts the server that `A3S_EVENT_NATS_SERVER` names, or else the reference, on a free loopback port.
    ///
    /// # Panics
    ///
    /// If there is no such server (the message says what to do), or if it does not get ready.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts the same server with these lines in its configuration file.
    ///
    /// # Panics
    ///
    /// Same as [`start`](NatsServer::start).
    pub async fn start_with(config: &str) -> Self {
        Self::start_binary(&reference(), config).await
    }

    /// Starts this binary.
    ///
    /// # Panics
    ///
    /// If it cannot be run or does not get ready.
    pub async fn start_binary(binary: &Path, config: &str) -> Self {
        let folder = new_folder();
        fs::write(folder.join("nats.conf"), config).expect("the folder was just made");
        let port = free_port();
        let child = spawn(binary, &folder, port);
        let mut server = Self { binary: binary.to_owned(), folder, port, child };
        server.ready().await;
        server
    }

    /// Returns the URL to connect to.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns the address that it listens on, the same across restarts.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Returns the port that it listens on, the same across restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills the server as a crash would (SIGKILL).
    ///
    /// # Panics
    ///
    /// If waiting for the process fails.
    pub fn kill(&mut self) {
        // An error means that it has already ended.
        let _ = self.child.kill();
        self.child.wait().expect("a child process can be waited for");
    }

    /// Starts it again after [`kill`](NatsServer::kill), on the same port and over the same store.
    ///
    /// # Panics
    ///
    /// If it does not get ready.
    pub async fn start_again(&mut self) {
        self.child = spawn(&self.binary, &self.folder, self.port);
        self.ready().await;
    }

    /// Stops it gracefully (SIGTERM), so that it writes its data, and starts it again.
    ///
    /// # Panics
    ///
    /// If it does not end or does not get ready.
    pub async fn restart(&mut self) {
        self.signal("TERM");
        let mut waited = Duration::ZERO;
        while self.child.try_wait().expect("a child process can be waited for").is_none() {
            assert!(waited < START_DEADLINE, "nats-server did not stop:\n{}", self.log());
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
        self.start_again().await;
    }

    /// Suspends the process (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Panics
    ///
    /// If the signal cannot be sent or has no effect.
    pub async fn freeze(&self) {
        self.signal("STOP");
        let mut waited = Duration::ZERO;
        // The signal was sent, but each thread runs on until it receives it.
        while !self.is_stopped() {
            assert!(waited < START_DEADLINE, "nats-server did not stop");
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
    }

    fn is_stopped(&self) -> bool {
        let threads =
            Command::new("ps").args(["-L", "-o", "state=", "-p", &self.child.id().to_string()]).output();
        let threads = threads.expect("ps can be run");
        String::from_utf8_lossy(&threads.stdout).lines().all(|state| state.starts_with('T'))
    }

    /// Resumes a suspended process (SIGCONT).
    ///
    /// # Panics
    ///
    /// If the signal cannot be sent.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -s {signal} failed");
    }

    /// Waits for the file that the server writes once it serves.
    async fn ready(&mut self) {
        let name = self.binary.file_name().expect("a binary has a name").to_string_lossy();
        let serves = self.folder.join(format!("{name}_{}.ports", self.child.id()));
        let mut waited = Duration::ZERO;
        while waited < START_DEADLINE {
            if fs::metadata(&serves).is_ok_and(|file| file.len() > 0) {
                return;
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("nats-server ended with {status}:\n{}", self.log());
            }
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
        panic!("nats-server was not ready after {START_DEADLINE:?}:\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn spawn(binary: &Path, folder: &Path, port: u16) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
    let log = log.expect("the server's folder can be written to");
    let spawned = Command::new(binary)
        .arg("-js")
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(folder.join("store"))
        .arg("-c")
        .arg(folder.join("nats.conf"))
        .arg("--ports_file_dir")
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    spawned.unwrap_or_else(|error| panic!("running {} failed: {error}", binary.display()))
}

/// Returns a port that no program listens on. It is below the range of ephemeral ports. The system could give one of
/// those to another program before a server listens on it, or while that server restarts.
pub(crate) fn free_port() -> u16 {
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

fn new_folder() -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("a3s-event-nats-{}-{number}", std::process::id()));
        match fs::create_dir(&folder) {
            Ok(()) => return folder,
            // Left behind by a killed run that had the same process id.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => panic!("creating {} failed: {error}", folder.display()),
        }
    }
}

/// Returns the server that `A3S_EVENT_NATS_SERVER` names, or else the reference.
///
/// # Panics
///
/// If there is no such server; the message says what to do.
pub fn reference() -> PathBuf {
    if let Some(binary) = std::env::var_os("A3S_EVENT_NATS_SERVER") {
        return binary.into();
    }
    unpacked(REFERENCE).unwrap_or_else(|| {
        panic!(
            "there is no nats-server {REFERENCE}: run scripts/fetch-nats-server, or set A3S_EVENT_NATS_SERVER to the \
             path of one"
        )
    })
}

/// Returns the server of this version, if `scripts/fetch-nats-server` has unpacked it.
pub fn unpacked(version: &str) -> Option<PathBuf> {
    let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nats-server");
    let binary = servers.join(version).join("nats-server");
    binary.is_file().then_some(binary)
}
