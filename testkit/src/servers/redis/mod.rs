//! Real Redis and Valkey servers for tests. Each has its own port and store, and ends when dropped.

mod cluster;
mod pair;
pub mod protocol;
mod sentinel;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::net::UnixStream;

pub use self::cluster::{RedisCluster, SlotMigration};
pub use self::pair::RedisPair;
use self::protocol::{Reply, exchange, in_time};
pub use self::sentinel::RedisSentinel;
use super::process::{self, Process, free_port};
use super::tls::Certificates;

/// Version that `scripts/fetch-redis-server` unpacks, and most tests run on.
pub const REFERENCE: &str = "redis-8.2.3";
/// Version of Valkey that the script unpacks.
pub const VALKEY: &str = "valkey-9.1.2";
/// Oldest supported version, which the script unpacks if Debian's packages are available. The others lack TLS.
pub const OLDEST: &str = "redis-7.0.15";

const KIND: &str = "redis-server";
/// User with all permissions, so that the launcher reaches a server whose default user has a password, or none of them.
const USER: &str = "testkit";
/// Acknowledged writes survive a killed server, without the cost of a sync for each. Replicas copy at once.
const STORE: &str = "save \"\"
appendonly yes
appendfsync no
repl-diskless-sync-delay 0
repl-diskless-load swapdb
enable-debug-command local
";

/// A running server.
#[derive(Debug)]
pub struct RedisServer {
    program: Program,
    port: u16,
    scheme: &'static str,
    process: Process,
}

/// What is run.
#[derive(Debug)]
struct Program {
    binary: PathBuf,
    arguments: &'static [&'static str],
    environment: Vec<(String, String)>,
}

/// A command that the server found slow.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowCommand {
    /// Time that it took.
    pub took: Duration,
    /// Command with its arguments, shortened by the server.
    pub words: Vec<String>,
}

impl RedisServer {
    /// Starts the server that `A3S_EVENT_REDIS_SERVER` names, or else the reference, on a free loopback port.
    ///
    /// It appends each write to a file before it answers, and keeps it when it is killed.
    ///
    /// # Panics
    ///
    /// If there is no such server (the message says what to do), or if it does not get ready.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts the same server with these lines in its configuration file. They win over the defaults.
    ///
    /// The launcher adds a user for itself. With a line `aclfile`, that file must have the line
    /// `user testkit on nopass ~* &* +@all` instead.
    ///
    /// # Panics
    ///
    /// Same as [`start`](RedisServer::start).
    pub async fn start_with(config: &str) -> Self {
        Self::start_binary(&reference(), config).await
    }

    /// Starts this binary.
    ///
    /// # Panics
    ///
    /// If it cannot be run or does not get ready.
    pub async fn start_binary(binary: &Path, config: &str) -> Self {
        Self::start_in(binary, config, &[]).await
    }

    /// Starts this binary with more variables in its environment, such as `LD_PRELOAD`.
    ///
    /// # Panics
    ///
    /// If it cannot be run or does not get ready.
    pub async fn start_in(binary: &Path, config: &str, environment: &[(&str, &str)]) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment = environment.iter().map(own).collect();
        let program = Program { binary: binary.to_owned(), arguments: &[], environment };
        let mut server = Self::launch(program, free_port(), "redis", &format!("{STORE}{config}"));
        server.ready().await;
        server
    }

    /// Starts this binary, which must support TLS, without a port for connections in plain text. See [`OLDEST`] and
    /// [`TlsProxy`](crate::servers::tls::TlsProxy). If `is_mutual`, clients must show a certificate.
    ///
    /// # Panics
    ///
    /// If it cannot be run or does not get ready, for example because it was built without TLS.
    pub async fn start_tls(
        binary: &Path,
        certificates: &Certificates,
        is_mutual: bool,
        config: &str,
    ) -> Self {
        let port = free_port();
        let path = |file: &str| certificates.path(file).display().to_string();
        let tls = format!(
            "port 0\ntls-port {port}\ntls-auth-clients {}\n\
             tls-cert-file \"{}\"\ntls-key-file \"{}\"\ntls-ca-cert-file \"{}\"\n",
            if is_mutual { "yes" } else { "no" },
            path("server.pem"),
            path("server.key"),
            path("ca.pem"),
        );
        let program = Program { binary: binary.to_owned(), arguments: &[], environment: Vec::new() };
        let mut server = Self::launch(program, port, "rediss", &format!("{STORE}{tls}{config}"));
        server.ready().await;
        server
    }

    /// Starts a process without waiting until it serves.
    fn launch(program: Program, port: u16, scheme: &'static str, config: &str) -> Self {
        let folder = process::new_folder("redis");
        write_config(&folder, port, config);
        let mut start = program.command(&folder);
        let process = Process::start(KIND, folder, &mut start);
        Self { program, port, scheme, process }
    }

    /// Returns the URL to connect to.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Returns the address that it listens on, the same across restarts.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Returns the port that it listens on, the same across restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the path of the Unix socket that it listens on, the same across restarts.
    pub fn socket(&self) -> PathBuf {
        self.folder().join("socket")
    }

    /// Returns the folder with its files.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// Returns the id of its process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Returns what it has logged, across restarts.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Returns the reply to a command, as a user with all permissions. A refusal of the server is a reply.
    ///
    /// # Errors
    ///
    /// If there is no connection, or no reply in time.
    pub async fn request(&self, words: &[&str]) -> io::Result<Reply> {
        let commands = [&["AUTH", USER, USER], words];
        let exchanged = in_time(&commands, async {
            exchange(&mut UnixStream::connect(self.socket()).await?, &commands).await
        });
        exchanged.await?.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Returns the reply to a command that must succeed, as a user with all permissions.
    ///
    /// # Panics
    ///
    /// If the server refuses it, or does not reply in time.
    pub async fn command(&self, words: &[&str]) -> Reply {
        match self.request(words).await {
            Ok(Reply::Error(refusal)) => panic!("{words:?} was refused: {refusal}"),
            Ok(reply) => reply,
            Err(error) => panic!("{words:?} failed: {error}\n{}", self.log()),
        }
    }

    /// Returns a field of `INFO`, such as `aof_delayed_fsync`.
    ///
    /// # Panics
    ///
    /// If there is no such field, or no reply in time.
    pub async fn info(&self, field: &str) -> String {
        let info = self.command(&["INFO", "everything"]).await;
        let value = info.text().and_then(|text| {
            text.lines().find_map(|line| line.split_once(':').filter(|(name, _)| *name == field))
        });
        value.unwrap_or_else(|| panic!("INFO has no field {field}")).1.to_owned()
    }

    /// Returns the CPU time that the server has used, in all its threads.
    ///
    /// # Panics
    ///
    /// If there is no reply in time.
    pub async fn used_cpu(&self) -> Duration {
        let mut used = Duration::ZERO;
        for field in ["used_cpu_user", "used_cpu_sys"] {
            let seconds = self.info(field).await.parse().expect("CPU time is a number");
            used += Duration::from_secs_f64(seconds);
        }
        used
    }

    /// Returns the slow commands, the newest first. `slowlog-log-slower-than` decides which are slow.
    ///
    /// # Panics
    ///
    /// If there is no reply in time.
    pub async fn slowlog(&self) -> Vec<SlowCommand> {
        let log = self.command(&["SLOWLOG", "GET", "-1"]).await;
        let entry = |entry: &Reply| {
            let [_, _, micros, words, ..] = entry.list() else { return None };
            let took = Duration::from_micros(micros.integer()?.try_into().ok()?);
            let words = words.list().iter().filter_map(Reply::text).map(str::to_owned).collect();
            Some(SlowCommand { took, words })
        };
        log.list().iter().filter_map(entry).collect()
    }

    /// Kills the server as a crash would (SIGKILL).
    ///
    /// # Panics
    ///
    /// If waiting for the process fails.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after [`kill`](RedisServer::kill), on the same port and over the same store.
    ///
    /// # Panics
    ///
    /// If it does not get ready.
    pub async fn start_again(&mut self) {
        self.start_loading();
        self.ready().await;
    }

    /// Starts it again after [`kill`](RedisServer::kill), without waiting until it has loaded its data.
    ///
    /// # Panics
    ///
    /// If it cannot be run.
    pub fn start_loading(&mut self) {
        let mut start = self.program.command(self.process.folder());
        self.process.start_again(&mut start);
    }

    /// Replaces its configuration file, for the next start: the defaults, and these lines.
    ///
    /// # Panics
    ///
    /// If the file cannot be written.
    pub fn configure(&self, config: &str) {
        write_config(self.folder(), self.port, &format!("{STORE}{config}"));
    }

    /// Waits until it serves.
    ///
    /// # Panics
    ///
    /// If it ends or does not get ready.
    pub async fn ready(&mut self) {
        let socket = self.socket();
        let serves = || async {
            let ping: [&[&str]; 2] = [&["AUTH", USER, USER], &["PING"]];
            let pong =
                in_time(&ping, async { exchange(&mut UnixStream::connect(&socket).await?, &ping).await });
            pong.await.is_ok_and(|replies| replies.last().and_then(Reply::text) == Some("PONG"))
        };
        self.process.ready(serves).await;
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

    /// Returns true while it writes all its data to a new file.
    async fn is_rewriting(&self) -> bool {
        match self.request(&["INFO", "persistence"]).await {
            Ok(info) => info.text().is_some_and(|info| {
                info.contains("aof_rewrite_in_progress:1") || info.contains("aof_rewrite_scheduled:1")
            }),
            Err(_) => false,
        }
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
}

impl Program {
    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg(folder.join("redis.conf")).args(self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

fn write_config(folder: &Path, port: u16, config: &str) {
    let text = format!(
        "bind 127.0.0.1\nport {port}\nunixsocket \"{folder}/socket\"\ndir \"{folder}\"\n\
         user {USER} on nopass ~* &* +@all\n{config}\n",
        folder = folder.display()
    );
    fs::write(folder.join("redis.conf"), text).expect("the server's folder can be written to");
}

/// Returns the server that `A3S_EVENT_REDIS_SERVER` names, or else the reference.
///
/// # Panics
///
/// If there is no such server; the message says what to do.
pub fn reference() -> PathBuf {
    if let Some(binary) = std::env::var_os("A3S_EVENT_REDIS_SERVER") {
        return binary.into();
    }
    unpacked(REFERENCE).unwrap_or_else(|| {
        panic!(
            "there is no {REFERENCE}: run scripts/fetch-redis-server, or set A3S_EVENT_REDIS_SERVER to the path of a \
             redis-server"
        )
    })
}

/// Returns the server of this version, if `scripts/fetch-redis-server` has unpacked it.
pub fn unpacked(version: &str) -> Option<PathBuf> {
    process::unpacked(KIND, version)
}

/// Returns the reference, and the other versions that `scripts/fetch-redis-server` has unpacked.
///
/// # Panics
///
/// If there is no reference; the message says what to do.
pub fn versions() -> Vec<(&'static str, PathBuf)> {
    let others = [VALKEY, OLDEST].into_iter().filter_map(|version| Some((version, unpacked(version)?)));
    [(REFERENCE, reference())].into_iter().chain(others).collect()
}

/// Returns the operators' tool, if `scripts/fetch-redis-server` has unpacked it. It comes with the [oldest](OLDEST)
/// version.
pub fn redis_cli() -> Option<PathBuf> {
    unpacked(OLDEST).map(|server| server.with_file_name("redis-cli")).filter(|tool| tool.is_file())
}
