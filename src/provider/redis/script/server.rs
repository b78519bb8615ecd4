//! Real servers for the tests of the scripts: one of each version, started once per test binary.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use redis::{Client, Connection, Value};

use super::Call;

/// Versions that the provider supports, as `scripts/fetch-redis-server` names them.
const VERSIONS: [&str; 3] = ["redis-7.0.15", "redis-8.2.3", "valkey-9.1.2"];

/// Runs a server until its own standard input ends, which happens when the test binary ends, however it ends.
const WATCH: &str = r#"
"$1" --save '' --port 0 --unixsocket "$2/socket" --dir "$2" >"$2/log" 2>&1 &
server=$!
until [ -S "$2/socket" ] || ! kill -0 $server 2>/dev/null; do sleep 0.05; done
echo started
read -r _
kill -9 $server
rm -rf "$2"
"#;

/// A server that runs until the test binary ends.
#[derive(Debug)]
pub(in crate::provider::redis) struct Server {
    pub(in crate::provider::redis) version: &'static str,
    client: Client,
    /// Holds the standard input of the server's watch open.
    _watch: Child,
}

impl Server {
    /// Returns one server of each version that was fetched.
    pub(in crate::provider::redis) fn all() -> &'static [Self] {
        static SERVERS: LazyLock<Vec<Server>> = LazyLock::new(|| {
            let servers: Vec<_> = VERSIONS.into_iter().filter_map(Server::start).collect();
            assert!(!servers.is_empty(), "no server in target/redis-server: run scripts/fetch-redis-server");
            servers
        });
        &SERVERS
    }

    fn start(version: &'static str) -> Option<Self> {
        let binary = server_binary(version)?;
        let folder = tempfile::tempdir().unwrap().keep();
        let watch = Command::new("sh")
            .args(["-c", WATCH, "watch"])
            .args([&binary, &folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut watch = watch.unwrap();
        let mut line = String::new();
        BufReader::new(watch.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let client = Client::open(format!("redis+unix://{}/socket", folder.display())).unwrap();
        Some(Self { version, client, _watch: watch })
    }

    /// Returns a new connection.
    pub(in crate::provider::redis) fn connect(&self) -> Connection {
        let connection = self.client.get_connection_with_timeout(Duration::from_secs(10)).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        connection
    }
}

fn server_binary(version: &str) -> Option<PathBuf> {
    let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/redis-server");
    Some(servers.join(version).join("redis-server")).filter(|binary| binary.exists())
}

/// Runs a call, and loads its script first if the server does not know it.
///
/// It loads it again if the test of the model made the server forget all scripts before the call.
pub(in crate::provider::redis) fn run(connection: &mut Connection, call: &Call) -> redis::RedisResult<Value> {
    const LOADS: usize = 20;
    for _ in 0..LOADS {
        match call.command().query(connection) {
            Err(error) if error.code() == Some("NOSCRIPT") => call.script.load().exec(connection)?,
            answered => return answered,
        }
    }
    call.command().query(connection)
}

/// Returns the number of cases of a property: the first one, or the second one in the slow tier.
pub(in crate::provider::redis) fn cases(usually: u32, slowly: u32) -> u32 {
    if std::env::var_os("A3S_EVENT_SLOW").is_some() { slowly } else { usually }
}
