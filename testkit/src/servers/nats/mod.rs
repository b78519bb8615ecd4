//! A real nats-server with JetStream for tests. It has its own port and store, and ends when dropped.

mod cluster;
pub mod protocol;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

pub use self::cluster::NatsCluster;
use super::process::{self, Process, free_port};

/// Version of the server that `scripts/fetch-nats-server` unpacks.
pub const REFERENCE: &str = "2.15.1";
/// Oldest supported version, which the script unpacks if Debian's package is available.
pub const OLDEST: &str = "2.9.10";

const KIND: &str = "nats-server";

/// A running nats-server.
#[derive(Debug)]
pub struct NatsServer {
    binary: PathBuf,
    port: u16,
    process: Process,
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
        let folder = process::new_folder("nats");
        fs::write(folder.join("nats.conf"), config).expect("the folder was just made");
        let port = free_port();
        let mut start = command(binary, &folder, port);
        let process = Process::start(KIND, folder, &mut start);
        let mut server = Self { binary: binary.to_owned(), port, process };
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
        self.process.kill();
    }

    /// Starts it again after [`kill`](NatsServer::kill), on the same port and over the same store.
    ///
    /// # Panics
    ///
    /// If it does not get ready.
    pub async fn start_again(&mut self) {
        let mut start = command(&self.binary, self.process.folder(), self.port);
        self.process.start_again(&mut start);
        self.ready().await;
    }

    /// Stops it gracefully (SIGTERM), so that it writes its data, and starts it again.
    ///
    /// # Panics
    ///
    /// If it does not end or does not get ready.
    pub async fn restart(&mut self) {
        self.process.terminate().await;
        self.start_again().await;
    }

    /// Suspends the process (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Panics
    ///
    /// If the signal cannot be sent or has no effect.
    pub async fn freeze(&self) {
        self.process.freeze().await;
    }

    /// Resumes a suspended process (SIGCONT).
    ///
    /// # Panics
    ///
    /// If the signal cannot be sent.
    pub fn thaw(&self) {
        self.process.thaw();
    }

    /// Waits for the file that the server writes once it serves.
    async fn ready(&mut self) {
        let name = self.binary.file_name().expect("a binary has a name").to_string_lossy();
        let serves = self.process.folder().join(format!("{name}_{}.ports", self.process.id()));
        self.process.ready(|| async { fs::metadata(&serves).is_ok_and(|file| file.len() > 0) }).await;
    }
}

fn command(binary: &Path, folder: &Path, port: u16) -> Command {
    let mut command = Command::new(binary);
    command
        .arg("-js")
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(folder.join("store"))
        .arg("-c")
        .arg(folder.join("nats.conf"))
        .arg("--ports_file_dir")
        .arg(folder);
    command
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
    process::unpacked(KIND, version)
}
