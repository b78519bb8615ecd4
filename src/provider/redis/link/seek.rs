//! Finds the server to use: the primary, and in a cluster the owner of the stream's slot.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use redis::cmd;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Listener;
use super::config::{Node, Sentinel};
use super::dial::{Dialer, Peer};
use super::facts::text;
use super::line::Line;
use super::session::{Opened, Session, open};
use crate::deadline::After;
use crate::poison::IgnorePoison;
use crate::provider::redis::error::{Cause, Failure};

/// Looks for the server whenever a connection is made.
pub(super) struct Seeker {
    pub(super) dialer: Arc<Dialer>,
    /// Gets the messages of the channel. Without it, the channel is not subscribed.
    pub(super) listener: Option<Arc<dyn Listener>>,
    /// Ends the connections.
    pub(super) closing: watch::Sender<bool>,
    known: Mutex<Known>,
}

/// Servers that others have told.
#[derive(Default)]
struct Known {
    /// The server used last.
    last: Option<Node>,
    /// The servers of the cluster.
    nodes: Vec<Node>,
}

impl Seeker {
    pub(super) fn new(dialer: Arc<Dialer>, listener: Option<Arc<dyn Listener>>) -> Self {
        Self { dialer, listener, closing: watch::Sender::new(false), known: Mutex::default() }
    }

    /// Returns the addresses of the settings, for errors.
    pub(super) fn seeds(&self) -> String {
        let seeds: Vec<_> = self.dialer.config.seeds.iter().map(ToString::to_string).collect();
        seeds.join(",")
    }

    /// Connects to the server to use, at most until a point in time. Begins with `hint`.
    ///
    /// Each server that remains to be tried gets an equal part of the time.
    pub(super) async fn find(&self, hint: Option<Node>, until: Instant) -> Result<Session, Failure> {
        let mut queue = self.candidates(hint, until).await?;
        let (mut tried, mut failures) = (Vec::new(), Vec::new());
        while let Some(node) = queue.pop_front() {
            if tried.contains(&node) {
                continue;
            }
            let mut nodes = Vec::new();
            let closing = self.closing.subscribe();
            let until = part(until, queue.len());
            match open(&self.dialer, &node, self.listener.as_ref(), closing, &mut nodes, until).await {
                Ok(Opened::Ready(session)) => {
                    let mut known = self.known.lock().ignore_poison();
                    known.last = Some(node);
                    if !nodes.is_empty() {
                        known.nodes = nodes;
                    }
                    return Ok(session);
                }
                Ok(Opened::OwnedBy(owner)) => queue.push_front(owner),
                Ok(Opened::ReplicaOf(primary)) => {
                    let of = primary.as_ref().map(|primary| format!(" of {primary}")).unwrap_or_default();
                    failures.push(Failure::new(&node, Cause::Replica(of)));
                    // Last, because the address can be one that works only among the servers.
                    queue.extend(primary);
                }
                Err(failure) => failures.push(failure),
            }
            tried.push(node);
        }
        Err(self.none_usable(failures))
    }

    async fn candidates(&self, hint: Option<Node>, until: Instant) -> Result<VecDeque<Node>, Failure> {
        let config = &self.dialer.config;
        if let Some(sentinel) = &config.sentinel {
            return Ok([self.ask_sentinels(sentinel, until).await?].into());
        }
        let known = self.known.lock().ignore_poison();
        let seeds = config.seeds.iter().cloned();
        Ok(hint
            .into_iter()
            .chain(known.last.clone())
            .chain(seeds)
            .chain(known.nodes.iter().cloned())
            .collect())
    }

    /// Asks one Sentinel after the other for the address of the primary.
    async fn ask_sentinels(&self, sentinel: &Sentinel, until: Instant) -> Result<Node, Failure> {
        let seeds = &self.dialer.config.seeds;
        let mut failures = Vec::new();
        for (index, seed) in seeds.iter().enumerate() {
            // One more part for the primary itself.
            let until = part(until, seeds.len() - index);
            match self.ask_sentinel(seed, &sentinel.name, until).await {
                Ok(Some(primary)) => return Ok(primary),
                Ok(None) => {
                    let objection = format!("sentinel {:?}: it does not know this name", sentinel.name);
                    failures.push(Failure::new(seed, Cause::Unusable(objection)));
                }
                Err(failure) => failures.push(failure),
            }
        }
        Err(self.none_usable(failures))
    }

    async fn ask_sentinel(&self, seed: &Node, name: &str, until: Instant) -> Result<Option<Node>, Failure> {
        let wire = self.dialer.dial(seed, Peer::Sentinel, None, until).await?;
        let line = Line::new(seed.clone(), wire, self.closing.subscribe());
        let question = cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name).take();
        let answer = line.ask(&question, until).await.map_err(|none| none.while_connecting(seed))?;
        let Some([host, port]) = answer.as_sequence() else { return Ok(None) };
        let port = text(port).and_then(|port| port.parse().ok());
        Ok(port.and_then(|port| Node::told_apart(&text(host)?, port, seed)))
    }

    /// Returns the only failure, the one that tells that waiting is in vain, or a list of all.
    fn none_usable(&self, mut failures: Vec<Failure>) -> Failure {
        if let Some(fatal) = failures.iter().position(Failure::is_fatal) {
            return failures.swap_remove(fatal);
        }
        if failures.len() > 1 {
            let reasons: Vec<_> = failures.iter().map(Failure::summary).collect();
            return Failure::new(self.seeds(), Cause::NoneUsable(reasons.join("; ")));
        }
        failures.pop().unwrap_or_else(|| Failure::not_connected(&self.seeds(), None))
    }
}

/// Returns the end of this part of the time, if this many others follow.
fn part(until: Instant, others: usize) -> Instant {
    let now = Instant::now();
    let parts = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
    now.after(until.saturating_duration_since(now) / parts)
}
