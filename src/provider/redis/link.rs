//! The link to the server: one connection for requests and messages, made again when it is lost, and calls with a
//! deadline.
//!
//! A call is sent again only if the server answered that it did not carry it out. If the answer is lost or late, the
//! outcome is unknown, and the caller decides.

mod config;
mod confirm;
mod dial;
mod facts;
mod foreign;
mod keeper;
mod line;
mod remedy;
mod seek;
mod session;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::{Cmd, Value, cmd};
use tokio::time::{Instant, sleep_until};

pub(super) use self::config::{Confirmation, Credentials, LinkConfig, Node, PATIENCE, Sentinel};
use self::dial::{Dialer, Peer};
use self::facts::Info;
pub(super) use self::facts::ServerFacts;
use self::keeper::Lane;
use self::line::{Line, Unanswered};
use self::remedy::Remedy;
use self::session::{Reason, Session};
use super::error::{Cause, Failure};
use super::script::Call;
use crate::deadline::After;
use crate::error::{ErrorKind, Result};
use crate::poison::IgnorePoison;
use crate::provider::support::Backoff;

/// Pauses before a request is sent again that the server did not carry out.
const AGAIN: Backoff = Backoff::exponential(Duration::from_millis(20), Duration::from_millis(500));
/// Time before the deadline in which nothing is sent again, because its answer could be late: the earlier one is certain.
const TOO_LATE: Duration = Duration::from_millis(50);
/// Maximum number of times that a call loads its script.
const MAX_LOADS: u32 = 3;

/// Receives the messages of the channel.
///
/// The connection waits for both methods, so they must not block and must not wait.
pub(super) trait Listener: Send + Sync + 'static {
    /// Called for each message of the channel.
    fn on_message(&self, message: &[u8]);

    /// Called whenever the channel was subscribed on a new connection: earlier messages may be lost.
    fn on_connected(&self);
}

/// Result of a call, with a failure that can be given to many callers.
pub(super) type Carried<T> = std::result::Result<T, Failure>;

/// Connections to the server. They end with this.
///
/// The listener must not own the link, or both stay for ever.
pub(super) struct Link {
    config: Arc<LinkConfig>,
    dialer: Arc<Dialer>,
    main: Lane,
    /// The connection for writes that are confirmed, because the confirmation blocks it.
    confirmed: Option<Lane>,
    /// The properties of the server in use, or of the last one.
    facts: Mutex<Arc<ServerFacts>>,
    /// Number of delayed syncs that is known.
    delayed_fsyncs: AtomicU64,
}

/// An answer, with the server that gave it.
pub(super) struct Answer {
    pub(super) value: Value,
    pub(super) server: Arc<ServerFacts>,
}

/// A request of a caller.
#[derive(Clone, Copy)]
enum Request<'a> {
    Script(&'a Call),
    Command(&'a Cmd),
}

impl Request<'_> {
    fn command(&self) -> Cow<'_, Cmd> {
        match self {
            Self::Script(call) => Cow::Owned(call.command()),
            Self::Command(command) => Cow::Borrowed(command),
        }
    }

    /// Returns the command that loads the script.
    fn load(&self) -> Option<Cmd> {
        match self {
            Self::Script(call) => Some(call.script.load()),
            Self::Command(_) => None,
        }
    }
}

/// Limits of a call.
#[derive(Clone, Copy)]
struct Limits<'a> {
    timeout: Duration,
    until: Instant,
    /// Only the server with this replication id may carry it out.
    only: Option<&'a str>,
}

impl<'a> Limits<'a> {
    fn new(timeout: Duration, only: Option<&'a str>) -> Self {
        Self { timeout, until: Instant::now().after(timeout), only }
    }

    /// Returns true if another server may carry it out, and not this one.
    fn excludes(&self, session: &Session) -> bool {
        self.only.is_some_and(|only| only != session.facts.replication_id)
    }
}

impl Link {
    /// Connects, and checks that the server can be used.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`](crate::EventError::Config) if a file or the server cannot be used; otherwise the server's
    /// error.
    pub(super) async fn connect(config: LinkConfig, listener: Arc<dyn Listener>) -> Result<Self> {
        let config = Arc::new(config);
        let dialer = Arc::new(Dialer::new(Arc::clone(&config)).await?);
        let opened = Self::open(&dialer, listener).await;
        let (main, confirmed, session) = opened.map_err(|failure| failure.to_error("connect"))?;
        let facts = Arc::clone(&session.facts);
        let delayed_fsyncs = AtomicU64::new(facts.delayed_fsyncs);
        Ok(Self { config, dialer, main, confirmed, facts: facts.into(), delayed_fsyncs })
    }

    async fn open(
        dialer: &Arc<Dialer>,
        listener: Arc<dyn Listener>,
    ) -> Carried<(Lane, Option<Lane>, Arc<Session>)> {
        let until = Instant::now().after(dialer.config.connect_timeout);
        let main = Lane::open(Arc::clone(dialer), Some(listener)).await?;
        let session = main.session(until).await?;
        if !dialer.config.confirmation.is_needed() {
            return Ok((main, None, session));
        }
        let confirmed = Lane::open(Arc::clone(dialer), None).await?;
        confirm::check(&*confirmed.session(until).await?, &dialer.config, until).await?;
        Ok((main, Some(confirmed), session))
    }

    /// Calls a script, and returns its answer.
    ///
    /// # Errors
    ///
    /// Classified as `error.rs` says. Only if the answer was lost or late, or if a script failed while it ran, a
    /// publish may be stored.
    pub(super) async fn call(&self, operation: &'static str, call: &Call) -> Result<Value> {
        let answer = self.ask(call, self.config.timeout).await;
        answer.map(|answer| answer.value).map_err(|failure| failure.to_error(operation))
    }

    /// Calls a script with a timeout of its own. The failure can be given to many callers.
    pub(super) async fn ask(&self, call: &Call, timeout: Duration) -> Carried<Answer> {
        let limits = Limits::new(timeout, None);
        Ok(self.carry_out(&self.main, Request::Script(call), limits).await?.0)
    }

    /// Calls a script only while the server has this replication id, that is before another one was promoted. Returns
    /// `None` if it has another one: nothing was carried out.
    pub(super) async fn ask_only(
        &self,
        replication_id: &str,
        call: &Call,
        timeout: Duration,
    ) -> Carried<Option<Answer>> {
        let limits = Limits::new(timeout, Some(replication_id));
        match self.carry_out(&self.main, Request::Script(call), limits).await {
            Ok((answer, _)) => Ok(Some(answer)),
            Err(failure) if matches!(failure.cause(), Cause::Promoted) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Calls a script that writes, and waits until the write is confirmed as the settings demand.
    pub(super) async fn ask_confirmed(&self, call: &Call, timeout: Duration) -> Carried<Answer> {
        let Some(lane) = &self.confirmed else { return self.ask(call, timeout).await };
        let limits = Limits::new(timeout, None);
        let (answer, session) = self.carry_out(lane, Request::Script(call), limits).await?;
        confirm::confirm(&session, &self.config, limits).await?;
        Ok(answer)
    }

    /// Waits until all that this server has carried out so far is confirmed as the settings demand.
    ///
    /// # Errors
    ///
    /// A retryable error if it is not confirmed in time, or if another server was promoted meanwhile.
    pub(super) async fn confirm(&self, operation: &'static str, server: &ServerFacts) -> Result<()> {
        let Some(lane) = &self.confirmed else { return Ok(()) };
        let limits = Limits::new(self.config.timeout, Some(&server.replication_id));
        let confirmed = async {
            let session = lane.session(limits.until).await?;
            if limits.excludes(&session) {
                // A connection that was silent during two promotions does not know that its server is another one now.
                for session in [Some(Arc::clone(&session)), self.main.current()].into_iter().flatten() {
                    session.leave(Reason::NotPrimary);
                }
                return Err(Failure::new(session.node(), Cause::Promoted));
            }
            confirm::confirm(&session, &self.config, limits).await
        };
        confirmed.await.map_err(|failure| failure.to_error(operation))
    }

    /// Sends a command that the server may carry out twice.
    pub(super) async fn command(&self, operation: &'static str, command: &Cmd) -> Result<Value> {
        let limits = Limits::new(self.config.timeout, None);
        let answered = self.carry_out(&self.main, Request::Command(command), limits).await;
        answered.map(|(answer, _)| answer.value).map_err(|failure| failure.to_error(operation))
    }

    /// Returns the properties of the server in use, or of the last one.
    pub(super) fn server(&self) -> Arc<ServerFacts> {
        let mut facts = self.facts.lock().ignore_poison();
        if let Some(session) = self.main.current() {
            *facts = Arc::clone(&session.facts);
        }
        Arc::clone(&facts)
    }

    #[cfg(test)]
    pub(super) fn is_connected(&self) -> bool {
        self.main.current().is_some()
    }

    /// Asks the server whether it answers, and warns if it has answered writes before it wrote them.
    pub(super) async fn check(&self, operation: &'static str) -> Result<()> {
        match self.command(operation, &cmd("INFO").arg("persistence").take()).await {
            Ok(answer) => {
                let now = Info::parse(answer).map(|info| info.delayed_fsyncs()).unwrap_or_default();
                if now > self.delayed_fsyncs.swap(now, Ordering::Relaxed) {
                    tracing::warn!(
                        aof_delayed_fsync = now,
                        "the disk of the server is slow: a crash of the server can lose acknowledged events"
                    );
                }
                Ok(())
            }
            // It answers.
            Err(error) if error.kind() == ErrorKind::Unauthorized => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends the connections. Calls in flight fail as if the connection was lost, and later ones are refused.
    pub(super) async fn close(&self) {
        self.main.close().await;
        if let Some(confirmed) = &self.confirmed {
            confirmed.close().await;
        }
    }

    /// Sends a request until the server carries it out, at most until its deadline.
    async fn carry_out(
        &self,
        lane: &Lane,
        request: Request<'_>,
        limits: Limits<'_>,
    ) -> Carried<(Answer, Arc<Session>)> {
        let command = request.command();
        let (mut refused, mut attempts, mut loads) = (None, 0, 0);
        loop {
            let session = match lane.session(limits.until).await {
                Ok(session) => session,
                // The earlier answer says more.
                Err(failure) => return Err(refused.filter(|_| !failure.is_fatal()).unwrap_or(failure)),
            };
            let server = Arc::clone(&session.facts);
            if limits.excludes(&session) {
                return Err(Failure::new(session.node(), Cause::Promoted));
            }
            let load = if loads > 0 { request.load() } else { None };
            let answer = match load {
                // Sent as one, so that the script is still there when it is called.
                Some(load) => session.ask_last([load, command.as_ref().clone()], limits.until).await,
                None => session.ask(&command, limits.until).await,
            };
            let refusal = match answer {
                Ok(value) => return Ok((Answer { value, server }, session)),
                Err(Unanswered::Refused(refusal)) => refusal,
                Err(none) => return Err(none.into_failure(session.node(), limits.timeout)),
            };
            let failure = Failure::new(session.node(), Cause::Refused(refusal.clone()));
            match Remedy::of(&refusal, session.node()) {
                Some(Remedy::Load) if loads < MAX_LOADS => {
                    loads += 1;
                    continue;
                }
                None | Some(Remedy::Load) => {
                    return Err(self.explained(&session, request, failure, limits).await);
                }
                Some(Remedy::Wait) => {}
                Some(Remedy::Seek) => session.leave(Reason::NotPrimary),
                Some(Remedy::Move(owner)) => session.leave(Reason::Moved(owner)),
                Some(Remedy::Ask(node)) => match self.ask_once(&node, request, limits).await {
                    Ok(Some(value)) => return Ok((Answer { value, server }, session)),
                    Ok(None) => {}
                    Err(failure) => return Err(failure),
                },
            }
            attempts += 1;
            let again = Instant::now().after(AGAIN.delay(attempts));
            if again.after(TOO_LATE) >= limits.until {
                return Err(failure);
            }
            refused = Some(failure);
            if session.is_usable() || attempts > 1 {
                sleep_until(again).await;
            }
        }
    }

    /// Sends a request once to the server that a slot moves to. Returns `None` if it did not carry it out.
    async fn ask_once(
        &self,
        node: &Node,
        request: Request<'_>,
        limits: Limits<'_>,
    ) -> Carried<Option<Value>> {
        let until = limits.until.min(Instant::now().after(self.config.connect_timeout));
        let Ok(wire) = self.dialer.dial(node, Peer::Server, None, until).await else { return Ok(None) };
        let line = Line::new(node.clone(), wire, self.main.closing());
        let commands = request.load().into_iter().chain([cmd("ASKING"), request.command().into_owned()]);
        match line.ask_last(commands, limits.until).await {
            Ok(value) => Ok(Some(value)),
            Err(Unanswered::Refused(refusal)) if Remedy::of(&refusal, node).is_some() => Ok(None),
            Err(none) => Err(none.into_failure(node, limits.timeout)),
        }
    }

    /// Names the key if a script met a value of a foreign type.
    async fn explained(
        &self,
        session: &Session,
        request: Request<'_>,
        failure: Failure,
        limits: Limits<'_>,
    ) -> Failure {
        match (failure.cause(), request) {
            (Cause::Refused(refusal), Request::Script(call)) if refusal.code() == "WRONGTYPE" => {
                let found = foreign::find(session, call, limits.until).await;
                found.map_or(failure, |cause| Failure::new(session.node(), cause))
            }
            _ => failure,
        }
    }
}
