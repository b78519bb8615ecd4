//! One connection, and the requests on it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::config::Node;
use super::dial::Wire;
use crate::provider::redis::error::{Cause, Failure, Refusal, Shared, cause_of};
use crate::provider::support::OwnedTask;

/// A connection with the task that drives it. Ends with its last owner: a request in flight is one.
pub(super) struct Line {
    pub(super) node: Node,
    connection: MultiplexedConnection,
    /// Closed when the task ends, because it holds the sender.
    alive: watch::Receiver<()>,
    _driver: OwnedTask<()>,
}

/// Reason why a request was not carried out, or why that is unknown.
pub(super) enum Unanswered {
    /// The server answered with an error.
    Refused(Refusal),
    /// It was sent, and no answer arrived in time.
    Late,
    /// It was sent, and the connection ended.
    Lost(Shared),
}

impl Line {
    /// Starts to drive a connection. It ends when `closing` says so.
    pub(super) fn new(node: Node, wire: Wire, mut closing: watch::Receiver<bool>) -> Self {
        let Wire { connection, driver } = wire;
        let (running, alive) = watch::channel(());
        let driver = OwnedTask::spawn(async move {
            let _running = running;
            tokio::select! {
                biased;
                _ = closing.wait_for(|is_closing| *is_closing) => {}
                () = driver => {}
            }
        });
        Self { node, connection, alive, _driver: driver }
    }

    /// Returns true unless the connection has ended.
    pub(super) fn works(&self) -> bool {
        self.alive.has_changed().is_ok()
    }

    /// Waits for the end of the connection.
    pub(super) async fn ended(&self) {
        let mut alive = self.alive.clone();
        while alive.changed().await.is_ok() {}
    }

    /// Sends a request, and waits for its answer until a point in time.
    ///
    /// Cancel-safe: the answer to a request that was dropped is dropped. The server may carry it out.
    pub(super) async fn ask(&self, command: &Cmd, until: Instant) -> Result<Value, Unanswered> {
        let mut connection = self.connection.clone();
        match in_time(until, connection.send_packed_command(command)).await? {
            Value::ServerError(error) => Err(Unanswered::Refused(Refusal::of(&error))),
            answer => Ok(answer),
        }
    }

    /// Sends several requests, and returns one answer each.
    pub(super) async fn ask_all(
        &self,
        commands: impl IntoIterator<Item = Cmd>,
        until: Instant,
    ) -> Result<Vec<Result<Value, Refusal>>, Unanswered> {
        let mut requests = redis::pipe();
        commands.into_iter().for_each(|command| _ = requests.add_command(command));
        let count = requests.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut connection = self.connection.clone();
        let answers = in_time(until, connection.send_packed_commands(&requests, 0, count)).await?;
        let answers = answers.into_iter().map(|answer| match answer {
            Value::ServerError(error) => Err(Refusal::of(&error)),
            answer => Ok(answer),
        });
        Ok(answers.collect())
    }

    /// Does the same as [`ask_all`](Self::ask_all), and returns the last answer.
    pub(super) async fn ask_last(
        &self,
        commands: impl IntoIterator<Item = Cmd>,
        until: Instant,
    ) -> Result<Value, Unanswered> {
        let answers = self.ask_all(commands, until).await?;
        let missing = || Unanswered::Lost(Arc::new(io::Error::from(io::ErrorKind::UnexpectedEof)));
        answers.into_iter().next_back().ok_or_else(missing)?.map_err(Unanswered::Refused)
    }

    pub(super) async fn subscribe(&self, channel: &str, until: Instant) -> Result<(), Unanswered> {
        let mut connection = self.connection.clone();
        in_time(until, connection.subscribe(channel)).await
    }
}

async fn in_time<T>(until: Instant, answer: impl Future<Output = RedisResult<T>>) -> Result<T, Unanswered> {
    match timeout_at(until, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Unanswered::of(error)),
        Err(_) => Err(Unanswered::Late),
    }
}

impl Unanswered {
    fn of(error: RedisError) -> Self {
        match error.code() {
            Some(code) => Self::Refused(Refusal::new(code, error.detail().unwrap_or_default())),
            None => Self::Lost(cause_of(&error)),
        }
    }

    /// Returns the failure of a step of connecting.
    pub(super) fn while_connecting(self, node: &Node) -> Failure {
        let unreachable = |source| Cause::Unreachable { source, advice: "", retryable: true };
        let cause = match self {
            Self::Refused(refusal) => Cause::Refused(refusal),
            Self::Lost(source) => unreachable(source),
            Self::Late => {
                unreachable(Arc::new(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")))
            }
        };
        Failure::new(node, cause)
    }

    /// Returns the failure of a call with this timeout.
    pub(super) fn into_failure(self, node: &Node, limit: Duration) -> Failure {
        let cause = match self {
            Self::Refused(refusal) => Cause::Refused(refusal),
            Self::Late => Cause::Late(limit),
            Self::Lost(cause) => Cause::Lost(cause),
        };
        Failure::new(node, cause)
    }
}
