//! Opens a connection to one server: TCP, TLS or a Unix socket, and the greeting.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError, Value,
};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::Listener;
use super::config::{Credentials, LinkConfig, Node};
use crate::error::EventError;
use crate::poison::IgnorePoison;
use crate::provider::redis::error::{Cause, Failure, Refusal, cause_of};
use crate::tls::TlsFiles;

/// Idle time after which the operating system probes a connection, and the interval of its probes.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
/// Shortest time for which sent bytes may stay without a sign of the other side.
const SHORTEST_USER_TIMEOUT: Duration = Duration::from_secs(10);

const TLS_ADVICE: &str = "; a retry helps only after the certificates or the TLS settings were corrected";
const GREETING_ADVICE: &str = "; a retry helps only if it is a Redis or Valkey server, and if the URL says as the server does whether TLS is used";

/// Opens connections with the settings of a link.
pub(super) struct Dialer {
    pub(super) config: Arc<LinkConfig>,
    tls: Mutex<Option<TlsConnector>>,
}

/// A connection that was greeted. It works while the driver is polled.
pub(super) struct Wire {
    pub(super) connection: MultiplexedConnection,
    pub(super) driver: Driver,
}

pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

enum Socket {
    /// With the host, for the name in its certificate.
    Tcp(TcpStream, String),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// Kind of the other side.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Server,
    Sentinel,
}

impl Dialer {
    /// Reads the certificates for all connections.
    pub(super) async fn new(config: Arc<LinkConfig>) -> crate::error::Result<Self> {
        let tls = match &config.tls {
            Some(files) => Some(connector(files, config.connect_timeout).await?),
            None => None,
        };
        Ok(Self { config, tls: Mutex::new(tls) })
    }

    /// Reads the files again, because certificates are renewed. Keeps the earlier ones if it fails, as it does between
    /// the writes of two files.
    pub(super) async fn renew_certificates(&self) {
        let Some(files) = self.config.tls.as_ref().filter(|files| files.are_named()) else { return };
        match connector(files, self.config.connect_timeout).await {
            Ok(renewed) => *self.tls.lock().ignore_poison() = Some(renewed),
            Err(error) => tracing::warn!(%error, "the certificates cannot be read again"),
        }
    }

    /// Connects to a server, greets it and logs in.
    pub(super) async fn dial(
        &self,
        node: &Node,
        peer: Peer,
        listener: Option<Arc<dyn Listener>>,
        until: Instant,
    ) -> Result<Wire, Failure> {
        let failed = |cause| Failure::new(node, cause);
        let socket = in_time(until, "", self.connect(node)).await.map_err(failed)?;
        in_time(until, GREETING_ADVICE, self.talk(socket, peer, listener)).await.map_err(failed)
    }

    async fn connect(&self, node: &Node) -> Result<Socket, Cause> {
        let opened = match node {
            Node::Tcp { host, port } => match self.connect_tcp(host, *port).await {
                Ok(stream) => Ok(Socket::Tcp(stream, host.clone())),
                Err(error) => Err(error),
            },
            #[cfg(unix)]
            Node::Unix(path) => UnixStream::connect(path).await.map(Socket::Unix),
            #[cfg(not(unix))]
            Node::Unix(_) => return Err(Cause::Unusable("this system has no Unix sockets".to_owned())),
        };
        opened.map_err(|error| unreachable(error, ""))
    }

    async fn talk(
        &self,
        socket: Socket,
        peer: Peer,
        listener: Option<Arc<dyn Listener>>,
    ) -> Result<Wire, Cause> {
        let (stream, host) = match socket {
            Socket::Tcp(stream, host) => (stream, host),
            #[cfg(unix)]
            Socket::Unix(stream) => return self.greet(stream, peer, listener).await,
        };
        let tls = self.tls.lock().ignore_poison().clone();
        let Some(tls) = tls else { return self.greet(stream, peer, listener).await };
        let name = ServerName::try_from(host).map_err(failed_tls)?;
        let stream = tls.connect(name, stream).await.map_err(|error| match error.get_ref() {
            Some(inner) if inner.is::<rustls::Error>() => failed_tls(error),
            _ => unreachable(error, GREETING_ADVICE),
        })?;
        self.greet(stream, peer, listener).await
    }

    async fn connect_tcp(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&KEEPALIVE)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(self.config.timeout.max(SHORTEST_USER_TIMEOUT)))?;
        Ok(stream)
    }

    /// Sends HELLO with the credentials, and selects the database.
    async fn greet<S>(
        &self,
        stream: S,
        peer: Peer,
        listener: Option<Arc<dyn Listener>>,
    ) -> Result<Wire, Cause>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (credentials, database) = self.identity(peer);
        let mut info = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("a3s-event", env!("CARGO_PKG_VERSION"))
            .set_db(database);
        if let Some(user) = &credentials.user {
            info = info.set_username(user);
        }
        if let Some(password) = &credentials.password {
            info = info.set_password(password);
        }
        let mut config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        if let Some(listener) = listener {
            config = config.set_push_sender(move |push: PushInfo| -> Result<(), Infallible> {
                // Behind the channel.
                if let (PushKind::Message, Some(Value::BulkString(message))) = (&push.kind, push.data.get(1))
                {
                    listener.on_message(message);
                }
                Ok(())
            });
        }
        let greeted = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (connection, driver) = greeted.map_err(|error| self.not_greeted(error, peer))?;
        Ok(Wire { connection, driver: Box::pin(driver) })
    }

    fn identity(&self, peer: Peer) -> (&Credentials, i64) {
        match (&self.config.sentinel, peer) {
            (Some(sentinel), Peer::Sentinel) => (&sentinel.credentials, 0),
            _ => (&self.config.credentials, self.config.database),
        }
    }

    fn not_greeted(&self, error: RedisError, peer: Peer) -> Cause {
        if error.kind() == redis::ErrorKind::RESP3NotSupported {
            return Cause::Unusable(format!("does not know HELLO; {}", super::facts::SUPPORTED));
        }
        let Some(code) = error.code() else {
            return match error.kind() {
                redis::ErrorKind::Io | redis::ErrorKind::Parse => not_understood(&error, GREETING_ADVICE),
                _ => not_understood(&error, ""),
            };
        };
        let (credentials, database) = self.identity(peer);
        let text = error.detail().unwrap_or_default();
        if database != 0 && text.contains("SELECT is not allowed in cluster mode") {
            return Cause::Unusable(format!("db {database}: a cluster has only the database 0"));
        }
        Cause::Refused(Refusal::hiding(credentials.password.as_deref(), code, text))
    }
}

async fn connector(files: &TlsFiles, limit: Duration) -> crate::error::Result<TlsConnector> {
    let certificates = files.read(limit).await?;
    let building = tokio::task::spawn_blocking(|| certificates.client_config());
    let built = building.await.map_err(|ended| EventError::Config(format!("tls: {ended}")))?;
    Ok(TlsConnector::from(Arc::new(built?)))
}

/// Waits for a step, at most until a point in time.
async fn in_time<T>(
    until: Instant,
    advice: &'static str,
    step: impl Future<Output = Result<T, Cause>>,
) -> Result<T, Cause> {
    let since = Instant::now();
    timeout_at(until, step).await.unwrap_or_else(|_| {
        let text = format!("no answer within {} ms", since.elapsed().as_millis());
        Err(unreachable(io::Error::new(io::ErrorKind::TimedOut, text), advice))
    })
}

fn unreachable(source: impl Error + Send + Sync + 'static, advice: &'static str) -> Cause {
    Cause::Unreachable { source: Arc::new(source), advice, retryable: true }
}

fn not_understood(error: &RedisError, advice: &'static str) -> Cause {
    Cause::Unreachable { source: cause_of(error), advice, retryable: true }
}

fn failed_tls(source: impl Error + Send + Sync + 'static) -> Cause {
    Cause::Unreachable { source: Arc::new(source), advice: TLS_ADVICE, retryable: false }
}
