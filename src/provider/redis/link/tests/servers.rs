//! A small launcher of real servers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value, cmd};
use tempfile::TempDir;

use super::Node;

fn server_binary(version: &str) -> PathBuf {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/redis-server/{version}/redis-server"));
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// Returns a free port. The bus of a cluster uses the port 10,000 above it.
fn free_port() -> u16 {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::iter::repeat_with(free).find(|port| *port < 55_000).unwrap()
}

/// Waits until something holds.
pub(super) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let seen = tokio::time::timeout(Duration::from_secs(30), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(seen.await.is_ok(), "not seen in time: {what}");
}

/// Waits until a replica has everything.
///
/// WAIT does not tell: it returns at once on a connection that has written nothing.
pub(super) async fn in_step(primary: &Server, replica: &Server) {
    let offset = async |server: &Server| {
        let info = server.text("INFO replication").await;
        let is_online = info.contains("state=online") || info.contains("master_link_status:up");
        let offset =
            info.lines().find_map(|line| line.strip_prefix("master_repl_offset:").map(str::to_owned));
        offset.filter(|_| is_online)
    };
    let is_in_step = async || {
        let there = offset(primary).await;
        there.is_some() && offset(replica).await == there
    };
    eventually("the replica has everything", is_in_step).await;
}

/// A running server.
pub(super) struct Server {
    binary: PathBuf,
    folder: TempDir,
    pub(super) port: u16,
    child: Child,
}

impl Server {
    /// Starts a server with these lines in its configuration file.
    pub(super) async fn start(version: &str, config: &str) -> Self {
        let server = Self::start_unready(version, config, &[]);
        server.ready().await;
        server
    }

    pub(super) async fn start_sentinel(version: &str, config: &str) -> Self {
        let server = Self::start_unready(version, config, &["--sentinel"]);
        server.ready().await;
        server
    }

    fn start_unready(version: &str, config: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let common = match arguments {
            [] => format!(
                "port {port}\nsave \"\"\nrepl-diskless-sync-delay 0\nunixsocket {}/s\n",
                folder.path().display()
            ),
            _ => format!("port {port}\n"),
        };
        let lines = format!("{common}bind 127.0.0.1\ndir {}\n{config}\n", folder.path().display());
        std::fs::write(folder.path().join("redis.conf"), lines).unwrap();
        let binary = server_binary(version);
        let child = spawn(&binary, folder.path(), arguments);
        Self { binary, folder, port, child }
    }

    async fn ready(&self) {
        eventually("the server is ready", async || match self.try_admin().await {
            // Also with an error, such as for a password.
            Some(mut admin) => admin.send_packed_command(&cmd("PING")).await.is_ok(),
            None => false,
        })
        .await;
    }

    pub(super) fn node(&self) -> Node {
        Node::tcp("127.0.0.1", self.port)
    }

    pub(super) fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn try_admin(&self) -> Option<MultiplexedConnection> {
        self.open(redis::RedisConnectionInfo::default()).await
    }

    /// Connects with a password.
    pub(super) async fn login(&self, password: &str) -> MultiplexedConnection {
        let info = redis::RedisConnectionInfo::default().set_password(password);
        self.open(info).await.expect("the server accepts the password")
    }

    async fn open(&self, info: redis::RedisConnectionInfo) -> Option<MultiplexedConnection> {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let stream = tokio::net::TcpStream::connect(self.address()).await.ok()?;
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&info, stream, config).await.ok()?;
        tokio::spawn(driver);
        Some(connection)
    }

    /// Sends a command on a new connection, and returns the answer, an error included. Sends it again if the server drops
    /// the connection, as one does when its role changes.
    pub(super) async fn try_command(&self, command: &Cmd) -> Value {
        for _ in 0..100 {
            if let Some(mut admin) = self.try_admin().await
                && let Ok(answer) = admin.send_packed_command(command).await
            {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the server does not answer");
    }

    /// Sends these words as a command, which must succeed.
    pub(super) async fn command(&self, words: &str) -> Value {
        let mut words = words.split(' ');
        let mut command = cmd(words.next().unwrap());
        words.for_each(|word| _ = command.arg(word));
        let answer = self.try_command(&command).await;
        assert!(!matches!(answer, Value::ServerError(_)), "{command:?}: {answer:?}");
        answer
    }

    pub(super) async fn text(&self, words: &str) -> String {
        redis::from_redis_value(self.command(words).await).unwrap()
    }

    /// Returns the number of connections of links, which have a name.
    pub(super) async fn links(&self) -> usize {
        self.text("CLIENT LIST").await.matches("name=link-test").count()
    }

    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    pub(super) async fn start_again(&mut self) {
        self.spawn_again();
        self.ready().await;
    }

    /// Does the same without waiting until it is ready.
    pub(super) fn spawn_again(&mut self) {
        self.child = spawn(&self.binary, self.folder.path(), &[]);
    }

    /// Adds lines to the configuration file, for the next start.
    pub(super) fn configure(&self, lines: &str) {
        let path = self.path("redis.conf");
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{before}{lines}\n")).unwrap();
    }

    /// Stops the process, as a machine that stalls does.
    pub(super) fn freeze(&self) {
        self.signal("STOP");
    }

    pub(super) fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(binary: &Path, folder: &Path, arguments: &[&str]) -> Child {
    Command::new(binary)
        .arg(folder.join("redis.conf"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(folder.join("log")).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Returns the length of the request or answer at the beginning of these bytes, for the fault proxy.
pub(super) fn frame_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|end| end == b"\r\n")? + 2;
    let count = || std::str::from_utf8(&bytes[1..line - 2]).ok()?.parse::<i64>().ok();
    match bytes[0] {
        b'$' | b'=' | b'!' => {
            let length = usize::try_from(count()?).map_or(line, |content| line + content + 2);
            (bytes.len() >= length).then_some(length)
        }
        b'*' | b'>' | b'~' | b'%' => {
            let parts = count()?.max(0) * if bytes[0] == b'%' { 2 } else { 1 };
            let mut length = line;
            for _ in 0..parts {
                length += frame_length(&bytes[length..])?;
            }
            Some(length)
        }
        _ => Some(line),
    }
}
