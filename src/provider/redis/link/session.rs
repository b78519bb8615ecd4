//! A session: a connection to the primary that has the stream, with its scripts loaded and its channel subscribed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use redis::{Cmd, Value, cmd};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::Listener;
use super::config::{LinkConfig, Node};
use super::dial::{Dialer, Peer};
use super::facts::{Greeting, Info, ServerFacts, text};
use super::line::{Line, Unanswered};
use super::remedy::Remedy;
use crate::deadline::After;
use crate::provider::redis::error::{Cause, Failure, Refusal};
use crate::provider::redis::script;

/// Pause before a server that is not ready yet is asked again.
const NOT_READY: Duration = Duration::from_millis(50);
/// Number of timeouts without an answer between them after which a connection is given up.
const MAX_LATE: u32 = 2;

/// A connection that requests can use.
pub(super) struct Session {
    line: Line,
    pub(super) facts: Arc<ServerFacts>,
    patience: Duration,
    /// Set once the session must be replaced.
    leaving: watch::Sender<Option<Reason>>,
    answers: AtomicU64,
    /// Number of timeouts since the last answer.
    late: AtomicU32,
}

/// Reason why a session must be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    /// The connection has ended.
    Lost,
    /// The server does not answer.
    Silent,
    /// The server is not the primary any more.
    NotPrimary,
    /// Another server owns the slot of the stream.
    Moved(Node),
}

/// Outcome of connecting to a server.
pub(super) enum Opened {
    Ready(Session),
    /// The server is a replica of this one.
    ReplicaOf(Option<Node>),
    /// In a cluster, this server has the stream.
    OwnedBy(Node),
}

/// Connects to a server, and prepares the connection. `nodes` gets the servers of the cluster that it is in.
pub(super) async fn open(
    dialer: &Dialer,
    node: &Node,
    listener: Option<&Arc<dyn Listener>>,
    closing: watch::Receiver<bool>,
    nodes: &mut Vec<Node>,
    until: Instant,
) -> Result<Opened, Failure> {
    let wire = dialer.dial(node, Peer::Server, listener.cloned(), until).await?;
    let line = Line::new(node.clone(), wire, closing);
    let config = &dialer.config;
    let opening = Opening { line: &line, until };
    let greeting = opening.greeting().await?;
    if let Some(objection) = greeting.objection() {
        return Err(opening.unusable(objection));
    }
    let sections = cmd("INFO").arg(&["server", "memory", "persistence", "replication"]).take();
    let info = opening.ask_if_permitted(sections).await?.and_then(Info::parse);
    if greeting.is_cluster() {
        let slots = cmd("CLUSTER").arg("SLOTS").take();
        if let Some(slots) = opening.ask_if_permitted(slots).await? {
            *nodes = nodes_of(&slots, node);
        }
        if let Some(owner) = opening.owner(&config.key).await? {
            return Ok(Opened::OwnedBy(owner));
        }
    } else if greeting.is_replica() {
        return Ok(Opened::ReplicaOf(info.and_then(|info| info.primary(node))));
    }
    let settings =
        cmd("CONFIG").arg(&["GET", "appendonly", "appendfsync", "no-appendfsync-on-rewrite"]).take();
    let settings = opening.ask_if_permitted(settings).await?;
    let facts = ServerFacts::new(&greeting, info.as_ref(), settings.as_ref());
    if let Some(objection) = facts.objection(config) {
        return Err(opening.unusable(objection));
    }
    opening.introduce(config).await?;
    opening.load_scripts().await?;
    if listener.is_some() {
        opening.subscribe(&config.channel).await?;
    }
    Ok(Opened::Ready(Session::new(line, facts, config.patience)))
}

/// The steps between the greeting and the first request.
struct Opening<'a> {
    line: &'a Line,
    until: Instant,
}

impl Opening<'_> {
    async fn greeting(&self) -> Result<Greeting, Failure> {
        let answer = self.ask(cmd("HELLO")).await.map_err(|none| self.failed(none))?;
        Greeting::parse(&answer).ok_or_else(|| self.unusable("its answer to HELLO is incomplete".to_owned()))
    }

    /// Returns the server that owns the slot of the stream, if it is another one.
    async fn owner(&self, key: &str) -> Result<Option<Node>, Failure> {
        let probe = cmd("EXISTS").arg(key).take();
        match self.ask(probe).await {
            Ok(_) => Ok(None),
            Err(Unanswered::Refused(refusal)) => match Remedy::of(&refusal, &self.line.node) {
                Some(Remedy::Move(owner)) => Ok(Some(owner)),
                // Until the slot has moved, this server answers for it.
                Some(Remedy::Ask(_)) => Ok(None),
                _ => Err(self.failed(Unanswered::Refused(refusal))),
            },
            Err(none) => Err(self.failed(none)),
        }
    }

    /// Shows the name of this client in the lists of the server.
    async fn introduce(&self, config: &LinkConfig) -> Result<(), Failure> {
        if let Some(name) = &config.client_name {
            self.ask_if_permitted(cmd("CLIENT").arg("SETNAME").arg(name).take()).await?;
        }
        Ok(())
    }

    async fn load_scripts(&self) -> Result<(), Failure> {
        loop {
            let loads = script::all().into_iter().map(script::Script::load);
            let loaded = self.line.ask_all(loads, self.until).await.map_err(|none| self.failed(none))?;
            let Some(refusal) = loaded.into_iter().find_map(Result::err) else { return Ok(()) };
            self.wait_after(refusal).await.map_err(|none| self.failed(none))?;
        }
    }

    /// Without the permission, waiting consumers learn of events later, and everything else works.
    async fn subscribe(&self, channel: &str) -> Result<(), Failure> {
        match self.line.subscribe(channel, self.until).await {
            Err(Unanswered::Refused(refusal)) if is_denial(&refusal) => {
                tracing::warn!(
                    channel,
                    "the server does not permit to subscribe to this channel: waiting subscriptions receive events up \
                     to one ack wait late"
                );
                Ok(())
            }
            subscribed => subscribed.map_err(|none| self.failed(none)),
        }
    }

    /// Asks for what only some users may know. Returns `None` without the permission.
    async fn ask_if_permitted(&self, command: Cmd) -> Result<Option<Value>, Failure> {
        match self.ask(command).await {
            Ok(answer) => Ok(Some(answer)),
            Err(Unanswered::Refused(refusal)) if is_denial(&refusal) => Ok(None),
            Err(none) => Err(self.failed(none)),
        }
    }

    /// Asks until the server is ready to answer.
    async fn ask(&self, command: Cmd) -> Result<Value, Unanswered> {
        loop {
            match self.line.ask(&command, self.until).await {
                Err(Unanswered::Refused(refusal)) => self.wait_after(refusal).await?,
                answer => return answer,
            }
        }
    }

    /// Waits if the server is not ready yet. Otherwise returns the refusal.
    async fn wait_after(&self, refusal: Refusal) -> Result<(), Unanswered> {
        let again = Instant::now().after(NOT_READY);
        match Remedy::of(&refusal, &self.line.node) {
            Some(Remedy::Wait) if again < self.until => {
                sleep_until(again).await;
                Ok(())
            }
            _ => Err(Unanswered::Refused(refusal)),
        }
    }

    fn failed(&self, none: Unanswered) -> Failure {
        none.while_connecting(&self.line.node)
    }

    fn unusable(&self, objection: String) -> Failure {
        Failure::new(&self.line.node, Cause::Unusable(objection))
    }
}

/// Returns true if a command is forbidden, or unknown to the server or a service in front of it.
fn is_denial(refusal: &Refusal) -> bool {
    refusal.code() == "NOPERM" || refusal.text().starts_with("unknown ")
}

/// Returns the servers of a cluster that answer CLUSTER SLOTS.
fn nodes_of(slots: &Value, by: &Node) -> Vec<Node> {
    let mut nodes = Vec::new();
    let ranges = slots.as_sequence().unwrap_or_default().iter().filter_map(Value::as_sequence);
    // Behind the first and the last slot, the primary and its replicas.
    for server in ranges.flat_map(|range| range.get(2..).unwrap_or_default()) {
        let Some([host, Value::Int(port), ..]) = server.as_sequence() else { continue };
        let Ok(port) = u16::try_from(*port) else { continue };
        let node = Node::told_apart(&text(host).unwrap_or_default(), port, by);
        nodes.extend(node.filter(|node| !nodes.contains(node)));
    }
    nodes
}

impl Session {
    fn new(line: Line, facts: ServerFacts, patience: Duration) -> Self {
        Self {
            line,
            facts: Arc::new(facts),
            patience,
            leaving: watch::Sender::new(None),
            answers: AtomicU64::new(0),
            late: AtomicU32::new(0),
        }
    }

    pub(super) fn node(&self) -> &Node {
        &self.line.node
    }

    /// Returns true unless the connection has ended or must be replaced.
    pub(super) fn is_usable(&self) -> bool {
        self.line.works() && self.leaving.borrow().is_none()
    }

    /// Has the session replaced. Requests in flight still get their answers.
    pub(super) fn leave(&self, reason: Reason) {
        self.leaving.send_if_modified(|leaving| {
            let is_first = leaving.is_none();
            leaving.get_or_insert(reason);
            is_first
        });
    }

    /// Waits until the session must be replaced.
    pub(super) async fn over(&self) -> Reason {
        let mut leaving = self.leaving.subscribe();
        tokio::select! {
            biased;
            Ok(reason) = leaving.wait_for(Option::is_some) => reason.clone().unwrap_or(Reason::Lost),
            () = self.line.ended() => Reason::Lost,
            () = self.silent() => Reason::Silent,
        }
    }

    /// Asks for an answer whenever none has arrived for a while. Returns when the server does not answer.
    async fn silent(&self) {
        loop {
            let before = self.answers.load(Ordering::Relaxed);
            sleep(self.patience).await;
            if self.answers.load(Ordering::Relaxed) != before {
                continue;
            }
            let until = Instant::now().after(self.patience);
            let is_answered = !matches!(self.line.ask(&cmd("PING"), until).await, Err(Unanswered::Late));
            if !is_answered && self.answers.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    /// Sends a request; see [`Line::ask`].
    pub(super) async fn ask(&self, command: &Cmd, until: Instant) -> Result<Value, Unanswered> {
        self.noted(self.line.ask(command, until).await)
    }

    /// Sends several requests, and returns the last answer.
    pub(super) async fn ask_last(
        &self,
        commands: impl IntoIterator<Item = Cmd>,
        until: Instant,
    ) -> Result<Value, Unanswered> {
        self.noted(self.line.ask_last(commands, until).await)
    }

    /// Sends several requests, and returns one answer each.
    pub(super) async fn ask_all(
        &self,
        commands: impl IntoIterator<Item = Cmd>,
        until: Instant,
    ) -> Result<Vec<Result<Value, Refusal>>, Unanswered> {
        self.noted(self.line.ask_all(commands, until).await)
    }

    /// Counts answers and timeouts. Messages do not count: they arrive even if no request reaches the server.
    fn noted<T>(&self, answer: Result<T, Unanswered>) -> Result<T, Unanswered> {
        match &answer {
            Ok(_) | Err(Unanswered::Refused(_)) => {
                self.answers.fetch_add(1, Ordering::Relaxed);
                self.late.store(0, Ordering::Relaxed);
            }
            Err(Unanswered::Late) => {
                if self.late.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_LATE {
                    self.leave(Reason::Silent);
                }
            }
            Err(Unanswered::Lost(_)) => {}
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_of_a_cluster_are_read_once_each() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let server = |host: Value, port| Value::Array(vec![host, Value::Int(port), bulk("id")]);
        let range = |from, servers: Vec<Value>| {
            Value::Array([vec![Value::Int(from), Value::Int(from + 1)], servers].concat())
        };
        let slots = Value::Array(vec![
            range(0, vec![server(bulk("10.0.0.1"), 1), server(Value::Nil, 2)]),
            range(2, vec![server(bulk("10.0.0.1"), 1), server(bulk("?"), 3), Value::Nil]),
        ]);
        let expected = [Node::tcp("10.0.0.1", 1), Node::tcp("here", 2), Node::tcp("here", 3)];
        assert_eq!(nodes_of(&slots, &Node::tcp("here", 9)), expected);
        assert_eq!(nodes_of(&Value::Nil, &Node::tcp("here", 9)), []);
    }
}
