//! A Sentinel that watches a server and its replica.

use std::path::Path;

use super::super::process::{free_port, until};
use super::protocol::Reply;
use super::{Program, RedisPair, RedisServer, reference};

/// Name under which the Sentinel watches the pair.
const NAME: &str = "testkit";
/// How often the Sentinel looks at the servers, in milliseconds. By default it takes 20 s to see that a primary which
/// was started again must become a replica. It promotes no replica that it saw more than five `ping-period`s ago.
const PERIODS: [&str; 8] =
    ["SENTINEL", "DEBUG", "INFO-PERIOD", "500", "PING-PERIOD", "400", "PUBLISH-PERIOD", "100"];

/// A pair, and one Sentinel that promotes the replica when the primary fails. Dropping it kills the servers and removes
/// their files.
///
/// ```no_run
/// # async fn run() {
/// use a3s_event_testkit::RedisSentinel;
///
/// let mut watched = RedisSentinel::start().await;
/// println!("connect to {}", watched.url());
/// watched.kill_primary().await;
/// println!("now the primary is at {}", watched.pair.primary.url());
/// # }
/// ```
#[derive(Debug)]
pub struct RedisSentinel {
    /// What it watches, under the roles after the last call of a method here.
    pub pair: RedisPair,
    sentinel: RedisServer,
}

impl RedisSentinel {
    /// Starts three servers, and returns when the Sentinel could promote the replica.
    ///
    /// # Panics
    ///
    /// Same as [`RedisPair::start`], and if the Sentinel does not get ready.
    pub async fn start() -> Self {
        Self::start_binary(&reference(), "", "").await
    }

    /// Starts three servers of this binary, with these lines in the configuration files of the pair and of the Sentinel.
    ///
    /// The Sentinel takes a primary for failed after a second without answers.
    ///
    /// # Panics
    ///
    /// If the servers cannot be run or do not get ready.
    pub async fn start_binary(binary: &Path, pair: &str, sentinel: &str) -> Self {
        let pair = RedisPair::start_binary(binary, pair).await;
        let config = format!(
            "sentinel monitor {NAME} 127.0.0.1 {} 1\nsentinel down-after-milliseconds {NAME} 1000\n\
             sentinel failover-timeout {NAME} 5000\n{sentinel}",
            pair.primary.port()
        );
        let program =
            Program { binary: binary.to_owned(), arguments: &["--sentinel"], environment: Vec::new() };
        let mut sentinel = RedisServer::launch(program, free_port(), "redis", &config);
        sentinel.ready().await;
        let watched = Self { pair, sentinel };
        watched.watching().await;
        watched
    }

    /// Returns the URL that names the Sentinel and the name under which it watches the pair.
    pub fn url(&self) -> String {
        format!("{}?sentinel={NAME}", self.sentinel.url())
    }

    /// Returns the name under which the Sentinel watches the pair.
    pub fn name(&self) -> &'static str {
        NAME
    }

    /// Returns the Sentinel.
    pub fn sentinel(&self) -> &RedisServer {
        &self.sentinel
    }

    /// Kills the Sentinel as a crash would (SIGKILL).
    ///
    /// # Panics
    ///
    /// If waiting for the process fails.
    pub fn kill_sentinel(&mut self) {
        self.sentinel.kill();
    }

    /// Starts the killed Sentinel again, and returns when it could promote the replica.
    ///
    /// # Panics
    ///
    /// If it does not get ready.
    pub async fn start_sentinel_again(&mut self) {
        self.sentinel.start_again().await;
        self.watching().await;
    }

    async fn watching(&self) {
        self.sentinel.command(&PERIODS).await;
        self.can_promote().await;
    }

    /// Kills the primary, waits until the Sentinel has promoted the replica, and exchanges the two in [`pair`].
    ///
    /// [`pair`]: RedisSentinel::pair
    ///
    /// # Panics
    ///
    /// If the Sentinel promotes nothing within a minute.
    pub async fn kill_primary(&mut self) {
        self.pair.primary.kill();
        self.promoted().await;
    }

    /// Lets the Sentinel promote the replica of a running primary, which becomes its replica, and exchanges the two in
    /// [`pair`].
    ///
    /// [`pair`]: RedisSentinel::pair
    ///
    /// # Panics
    ///
    /// If that takes longer than a minute.
    pub async fn fail_over(&mut self) {
        self.sentinel.command(&["SENTINEL", "FAILOVER", NAME]).await;
        self.promoted().await;
        self.pair.in_sync().await;
        self.can_promote().await;
    }

    /// Waits until the Sentinel could promote the replica, for example after the previous primary was started again.
    ///
    /// # Panics
    ///
    /// If that takes longer than a minute.
    pub async fn can_promote(&self) {
        let port = self.pair.replica.port().to_string();
        until("the Sentinel knows the replica", || async {
            let replicas = self.sentinel.request(&["SENTINEL", "REPLICAS", NAME]).await.ok()?;
            let ready = replicas.list().iter().any(|replica| {
                let is = |name, value| field(replica, name) == Some(value);
                is("port", port.as_str()) && is("flags", "slave") && is("master-link-status", "ok")
            });
            ready.then_some(())
        })
        .await;
    }

    async fn promoted(&mut self) {
        let port = self.pair.replica.port().to_string();
        until("the Sentinel has promoted the replica", || async {
            let command = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME];
            let address = self.sentinel.request(&command).await.ok()?;
            let is_primary = address.list().last()?.text()? == port;
            let role = self.pair.replica.request(&["ROLE"]).await.ok()?;
            (is_primary && role.list().first()?.text()? == "master").then_some(())
        })
        .await;
        self.pair.swap();
    }
}

/// Returns a field of a list of names and values.
fn field<'a>(list: &'a Reply, name: &str) -> Option<&'a str> {
    let fields = list.list().chunks(2);
    fields.filter(|field| field[0].text() == Some(name)).find_map(|field| field.get(1)?.text())
}
