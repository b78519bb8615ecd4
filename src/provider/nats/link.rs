//! The link to the server: an async-nats client, replaced when its connection task has ended, and requests with a
//! timeout.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{
    Client, ConnectOptions, Event as ConnectionEvent, Message, Request, RequestError, ServerAddr,
    ServerError, Subject, jetstream,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::config::NatsProviderBuilder;
use super::error::{denied, not_connected, not_connected_in_time, timeout, unanswered};
use super::settings::without_credentials;
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::poison::IgnorePoison;
use crate::provider::support::Backoff;

/// Interval of pings. A connection is dead after three unanswered ones.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Pauses between attempts to reconnect. The longest take a random time of 1 to 1.5 s, so that programs do not all
/// reconnect at once.
const RECONNECT: Backoff =
    Backoff::exponential(Duration::from_micros(1_500), Duration::from_millis(1_500)).jitter(1.0 / 3.0);
/// Pauses between clients that did not last.
const REBUILD: Backoff =
    Backoff::exponential(Duration::from_millis(100), Duration::from_secs(30)).jitter(0.0);
/// Time for which a client must have worked to count as lasting.
const LASTED: Duration = Duration::from_secs(60);
/// Time after which a missing answer is investigated. It may be lost, or never come.
const PATIENCE: Duration = Duration::from_millis(50);
/// Pauses before a request is sent again.
const ASK_AGAIN: Backoff =
    Backoff::exponential(Duration::from_millis(250), Duration::from_secs(1)).jitter(0.0);
/// Maximum time until a new connection is counted. After it, the client has dropped the event.
const UNCOUNTED: Duration = Duration::from_secs(1);
/// Pause before another look at a connection that is not counted.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Maximum number of denials that are remembered for waiting requests.
const MAX_DENIALS: usize = 64;

/// The clients of a provider: the newest works, those before it have ended.
pub(super) struct Link {
    /// The URLs of the servers, without credentials.
    server: String,
    settings: NatsProviderBuilder,
    first: Connection,
    events: Arc<Events>,
    /// Held while the next client is created. Contains the creation time of the last one, and the number of those that
    /// did not last.
    rebuilding: tokio::sync::Mutex<(Option<Instant>, u64)>,
}

/// A client and the handles made from it. They form a chain, because the native handles are returned as references.
struct Connection {
    client: Client,
    jetstream: jetstream::Context,
    /// Closed when the connection task of the client ends, because that task holds the sender.
    task: watch::Receiver<()>,
    /// Number of this client's connections that are counted.
    counted: Arc<AtomicU64>,
    next: OnceLock<Box<Connection>>,
}

/// Connection events that the clients report.
struct Events {
    /// Number of connections made, so that requests can wait for a new one.
    connections: watch::Sender<u64>,
    /// True while the server is away. The log reports this once, not at every attempt to connect.
    is_away: AtomicBool,
    denials: Denials,
}

/// Publishes that the server refused for lack of permission. It reports them to the connection, and does not answer the
/// request.
struct Denials {
    recent: Mutex<VecDeque<(Instant, String)>>,
    count: watch::Sender<u64>,
}

/// The result of a request.
type Answer = std::result::Result<Message, NoAnswer>;

/// The reason why a request got no answer.
pub(super) enum NoAnswer {
    /// No answer in time. The server may have carried out the request.
    Late,
    /// The server does not permit the subject.
    Denied,
    Failed(RequestError),
    /// There is no client, and none could be created.
    NoClient(EventError),
}

impl NoAnswer {
    pub(super) fn into_error(self, server: &str, operation: &'static str, deadline: Duration) -> EventError {
        match self {
            Self::Late => timeout(server, operation, deadline),
            Self::Denied => denied(operation),
            Self::Failed(error) => unanswered(server, operation, error, deadline),
            Self::NoClient(error) => error,
        }
    }
}

impl Link {
    pub(super) async fn connect(settings: &NatsProviderBuilder) -> Result<Self> {
        let events = Arc::new(Events {
            connections: watch::Sender::new(0),
            is_away: AtomicBool::new(false),
            denials: Denials::new(),
        });
        let first = Connection::new(settings, &events).await?;
        let server = without_credentials(&settings.config.url);
        Ok(Self {
            server,
            settings: settings.clone(),
            first,
            events,
            rebuilding: tokio::sync::Mutex::new((None, 0)),
        })
    }

    /// Returns the URLs of the servers without credentials, for errors.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Returns the newest client, which may have ended.
    pub(super) fn client(&self) -> &Client {
        &self.newest().client
    }

    pub(super) fn jetstream(&self) -> &jetstream::Context {
        &self.newest().jetstream
    }

    pub(super) fn is_connected(&self) -> bool {
        let newest = self.newest();
        newest.works() && newest.client.connection_state() == State::Connected
    }

    /// Returns the number of the connection in use.
    pub(super) fn connection(&self) -> u64 {
        *self.events.connections.borrow()
    }

    /// Returns the number of the connection in use, exact even while it is made. It is unrelated to
    /// [`connection`](Self::connection), which counts later.
    pub(super) fn connection_exactly(&self) -> u64 {
        let (mut newest, mut clients) = (&self.first, 0);
        while let Some(next) = newest.next.get() {
            (newest, clients) = (next, clients + 1);
        }
        (clients << 32) + newest.connects()
    }

    /// Returns true if the client is connected and [`connection`](Self::connection) counts its connection.
    fn is_counted(&self) -> bool {
        let newest = self.newest();
        self.is_connected() && newest.counted.load(Ordering::Acquire) >= newest.connects()
    }

    /// Waits until the client is connected and its connection is counted, at most for `limit`. Returns false if there
    /// is no connection then.
    ///
    /// What is sent before that reaches the server on a connection that is counted only later. It then looks as if it
    /// was lost with the connection before.
    pub(super) async fn counted(&self, limit: Duration) -> bool {
        let until = Instant::now().after(limit);
        let mut uncounted_since = None;
        while !self.is_counted() {
            let now = Instant::now();
            if !self.is_connected() {
                uncounted_since = None;
            } else if now.duration_since(*uncounted_since.get_or_insert(now)) > UNCOUNTED {
                // The client drops events if too many wait.
                let newest = self.newest();
                let connects = newest.connects();
                // Of all that wait, one counts it.
                if newest.counted.fetch_max(connects, Ordering::AcqRel) < connects {
                    self.events.connections.send_modify(|count| *count += 1);
                }
            }
            if now >= until {
                return self.is_connected();
            }
            let _ = timeout_at(now.after(LOOK_AGAIN), self.connection_after(self.connection())).await;
        }
        true
    }

    /// Returns the newest client, unless it has ended.
    pub(super) fn client_if_working(&self) -> Option<&Client> {
        let newest = self.newest();
        newest.works().then_some(&newest.client)
    }

    /// Waits for a connection other than this one, and returns its number.
    pub(super) async fn connection_after(&self, connection: u64) -> u64 {
        let mut connections = self.events.connections.subscribe();
        let newer = connections.wait_for(|now| *now != connection).await.map(|now| *now);
        match newer {
            Ok(newer) => newer,
            // This link owns the sender.
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns a client whose connection task works, and creates one if there is none.
    pub(super) async fn working(&self) -> Result<&Client> {
        let newest = self.newest();
        if newest.works() {
            return Ok(&newest.client);
        }
        let mut rebuilding = self.rebuilding.lock().await;
        let newest = self.newest();
        if newest.works() {
            return Ok(&newest.client);
        }
        let (last, short_lived) = &mut *rebuilding;
        if let Some(last) = *last {
            if last.elapsed() > LASTED {
                *short_lived = 0;
            }
            tokio::time::sleep_until(last.after(REBUILD.delay(*short_lived + 1))).await;
            *short_lived += 1;
        }
        *last = Some(Instant::now());
        tracing::warn!("the connection task of the nats client has ended; reconnecting");
        let made = Connection::new(&self.settings, &self.events).await?;
        Ok(&newest.next.get_or_init(|| Box::new(made)).client)
    }

    /// Resets the pause before the next client to the shortest one. Called when the reason for the last end is
    /// known and does not recur.
    pub(super) fn forgive(&self) {
        // The holder of the lock is already creating a client.
        if let Ok(mut rebuilding) = self.rebuilding.try_lock() {
            rebuilding.1 = 0;
        }
    }

    fn newest(&self) -> &Connection {
        let mut newest = &self.first;
        while let Some(next) = newest.next.get() {
            newest = next;
        }
        newest
    }

    /// Sends an idempotent request, and repeats it while there is no answer. A group of a cluster that is electing its
    /// leader drops requests.
    pub(super) async fn ask(&self, subject: &Subject, body: &[u8], deadline: Duration) -> Answer {
        let until = Instant::now().after(deadline);
        let mut asked = FuturesUnordered::new();
        let mut attempt = 0;
        loop {
            attempt += 1;
            asked.push(self.request(subject, body, until.duration_since(Instant::now())));
            // Each request ends by the deadline, and so does this loop.
            tokio::select! {
                biased;
                Some(answer) = asked.next() => return answer,
                () = tokio::time::sleep(ASK_AGAIN.delay(attempt)) => {}
            }
        }
    }

    /// Sends a request that may be carried out twice. It is sent again on a new connection, where the first answer
    /// would never arrive.
    pub(super) async fn request(&self, subject: &Subject, body: &[u8], deadline: Duration) -> Answer {
        let until = Instant::now().after(deadline);
        loop {
            let connection = self.connection();
            let request = Request::new().payload(body.to_vec().into());
            let mut asking = pin!(self.answer(subject, request, until));
            // Most answers arrive before it is worth watching for a new connection.
            let answer = match timeout_at(until.min(Instant::now().after(PATIENCE)), &mut asking).await {
                Ok(answer) => answer,
                Err(_) => tokio::select! {
                    biased;
                    answer = &mut asking => answer,
                    _ = self.connection_after(connection) => continue,
                },
            };
            match answer {
                Err(NoAnswer::Failed(_)) if !self.newest().works() => {}
                answer => return answer,
            }
        }
    }

    /// Sends a request once.
    pub(super) async fn request_once(
        &self,
        subject: &Subject,
        request: Request,
        deadline: Duration,
    ) -> Answer {
        self.answer(subject, request, Instant::now().after(deadline)).await
    }

    async fn answer(&self, subject: &Subject, request: Request, until: Instant) -> Answer {
        let since = Instant::now();
        let client = timeout_at(until, self.working()).await.map_err(|_| NoAnswer::Late)?;
        let client = client.map_err(NoAnswer::NoClient)?;
        // The client's own timeout would cover only the wait for the answer.
        let mut asking = pin!(client.send_request(subject.clone(), request.timeout(None)));
        if let Ok(answer) = timeout_at(until.min(since.after(PATIENCE)), &mut asking).await {
            return answer.map_err(NoAnswer::Failed);
        }
        tokio::select! {
            biased;
            answer = &mut asking => answer.map_err(NoAnswer::Failed),
            () = self.events.denials.of(subject, since) => Err(NoAnswer::Denied),
            () = tokio::time::sleep_until(until) => Err(NoAnswer::Late),
        }
    }
}

impl Connection {
    async fn new(settings: &NatsProviderBuilder, events: &Arc<Events>) -> Result<Self> {
        let (alive, task) = watch::channel(());
        let mut counted = events.connections.subscribe();
        let events = Arc::clone(events);
        let connections = Arc::new(AtomicU64::new(0));
        let noted = Arc::clone(&connections);
        let options = connect_options(settings).await?.event_callback(move |event| {
            let _lives_as_long_as_the_task = &alive;
            events.note(&event);
            if matches!(event, ConnectionEvent::Connected) {
                // Behind the count, so that who reads this reads the count, too.
                noted.fetch_add(1, Ordering::Release);
            }
            async {}
        });
        let config = &settings.config;
        let deadline = config.connect_timeout();
        let servers = servers(&config.url)?;
        let server = without_credentials(&config.url);
        let connecting = async {
            let client = options.connect(servers).await.map_err(|error| not_connected(&server, error))?;
            // A separate task counts it. From here on, another number means another connection.
            let _ = counted.changed().await;
            Ok(client)
        };
        let connected = tokio::time::timeout(deadline, connecting).await;
        let client = connected.unwrap_or_else(|_| Err(not_connected_in_time(&server, deadline)))?;
        let jetstream =
            jetstream::ContextBuilder::new().timeout(config.request_timeout()).build(client.clone());
        Ok(Self { client, jetstream, task, counted: connections, next: OnceLock::new() })
    }

    fn works(&self) -> bool {
        self.task.has_changed().is_ok()
    }

    /// Returns the number of connections that this client has made.
    fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Acquire)
    }
}

impl Events {
    fn note(&self, event: &ConnectionEvent) {
        match event {
            ConnectionEvent::Connected => {
                if self.is_away.swap(false, Ordering::Relaxed) {
                    tracing::info!("reconnected to nats-server");
                }
                self.connections.send_modify(|count| *count += 1);
            }
            ConnectionEvent::Disconnected => {
                self.is_away.store(true, Ordering::Relaxed);
                tracing::warn!("lost the connection to nats-server");
            }
            ConnectionEvent::ServerError(error) => {
                tracing::warn!(%error, "nats-server reported an error");
                if let ServerError::Other(text) = error {
                    self.denials.note(text);
                }
            }
            ConnectionEvent::ClientError(error) if self.is_away.load(Ordering::Relaxed) => {
                tracing::debug!(%error, "connecting to nats-server failed");
            }
            ConnectionEvent::ClientError(error) => {
                tracing::warn!(%error, "the nats client reported an error");
            }
            other => tracing::debug!(event = %other, "nats connection event"),
        }
    }
}

impl Denials {
    fn new() -> Self {
        Self { recent: Mutex::default(), count: watch::Sender::new(0) }
    }

    fn note(&self, error: &str) {
        let Some(subject) = denied_subject(error) else { return };
        let mut recent = self.recent.lock().ignore_poison();
        if recent.len() == MAX_DENIALS {
            recent.pop_front();
        }
        recent.push_back((Instant::now(), subject.to_owned()));
        drop(recent);
        self.count.send_modify(|count| *count += 1);
    }

    /// Waits until the server denies a publish to this subject.
    async fn of(&self, subject: &str, since: Instant) {
        let mut count = self.count.subscribe();
        let is_denied = |_: &u64| {
            let recent = self.recent.lock().ignore_poison();
            recent.iter().any(|(at, denied)| *at >= since && denied == subject)
        };
        // The sender lives as long as `self`.
        let _ = count.wait_for(is_denied).await;
    }
}

/// Returns the subject in `Permissions Violation for Publish to "events.a"`.
fn denied_subject(error: &str) -> Option<&str> {
    let rest = error.split_once("Permissions Violation for Publish to \"")?.1;
    Some(rest.split_once('"')?.0)
}

fn servers(urls: &str) -> Result<Vec<ServerAddr>> {
    let parsed: std::result::Result<Vec<_>, _> = urls.split(',').map(|url| url.trim().parse()).collect();
    parsed.map_err(|_| EventError::Config("url: is not the URL of a NATS server".to_owned()))
}

async fn connect_options(settings: &NatsProviderBuilder) -> Result<ConnectOptions> {
    let config = &settings.config;
    let mut options = ConnectOptions::new()
        .connection_timeout(config.connect_timeout())
        .request_timeout(Some(config.request_timeout()))
        .ping_interval(PING_INTERVAL)
        .reconnect_delay_callback(reconnect_delay)
        .require_tls(settings.require_tls)
        .name(settings.client_name.as_deref().unwrap_or("a3s-event"));
    if let Some(token) = &config.token {
        options = options.token(token.clone());
    }
    if let Some((user, password)) = &settings.user_and_password {
        options = options.user_and_password(user.clone(), password.clone());
    }
    if let Some(seed) = &settings.nkey {
        options = options.nkey(seed.clone());
    }
    if let Some(path) = &config.credentials_path {
        let read = options.credentials_file(path).await;
        options =
            read.map_err(|error| EventError::Config(format!("credentials_path: cannot be read: {error}")))?;
    }
    if let Some(path) = &settings.root_certificates {
        options = options.add_root_certificates(path.clone());
    }
    if let (Some(certificate), Some(key)) = (&settings.client_certificate, &settings.client_key) {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if settings.tls_first {
        options = options.tls_first();
    }
    Ok(options)
}

/// Returns the pause before an attempt. The first attempt is made at once.
fn reconnect_delay(attempts: usize) -> Duration {
    if attempts == 0 { Duration::ZERO } else { RECONNECT.delay(attempts as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_denied_subject_is_read_where_the_server_tells_it() {
        let error = r#"Permissions Violation for Publish to "events.a""#;
        assert_eq!(denied_subject(error), Some("events.a"));
        assert_eq!(denied_subject(r#"Permissions Violation for Subscription to "events.a""#), None);
        assert_eq!(denied_subject("Stale Connection"), None);
    }

    #[tokio::test]
    async fn a_denial_concerns_its_subject_from_then_on() {
        let denials = Denials::new();
        let before = Instant::now();
        for number in 0..2 * MAX_DENIALS {
            denials.note(&format!(r#"Permissions Violation for Publish to "events.{number}""#));
        }
        denials.of("events.127", before).await;
        let is_denied = async |subject: &str, since| {
            tokio::time::timeout(Duration::from_millis(1), denials.of(subject, since)).await.is_ok()
        };
        assert!(!is_denied("events.0", before).await, "only so many are remembered");
        assert!(!is_denied("events.127", Instant::now() + Duration::from_secs(1)).await);
    }

    #[test]
    fn the_pause_before_a_reconnect_grows_up_to_a_limit() {
        assert_eq!(reconnect_delay(0), Duration::ZERO);
        let third = reconnect_delay(3);
        assert!(third >= Duration::from_millis(4) && third <= Duration::from_millis(6), "{third:?}");
        for attempts in [12, 1_000, usize::MAX] {
            let delay = reconnect_delay(attempts);
            assert!(delay >= Duration::from_secs(1) && delay < Duration::from_secs(2), "{delay:?}");
        }
    }
}
