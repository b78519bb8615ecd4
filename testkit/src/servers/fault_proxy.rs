//! TCP proxy that damages traffic, for tests of any provider that talks to a server.
//!
//! It listens on a free loopback port and forwards to the server. There are three ways to inject faults:
//!
//! - [`filter`](FaultProxy::filter) decides about each frame: forward, drop or delay it, or [cut](Verdict::Cut) the
//!   connection in the middle of it.
//! - [`hold`](FaultProxy::hold) creates a black hole: connections stay, new ones are accepted, and nothing passes in
//!   the chosen directions until [`release`](FaultProxy::release). Held bytes then arrive, as after a network partition
//!   in which TCP kept trying.
//! - [`reset`](FaultProxy::reset) resets all connections at once.
//!
//! The proxy only knows bytes. A [`Framing`] returns the end of a frame, for NATS
//! `servers::nats::protocol::frame_length`. With [`unframed`], a frame is the result of one read, for example of an
//! encrypted connection.
//!
//! All randomness comes from the seed. [`Frame::one_in`] and the place of a cut depend only on the seed, the number of
//! the connection, the direction and the number of the frame.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! use a3s_event_testkit::servers::fault_proxy::{Direction, FaultProxy, Verdict};
//! use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
//! use tokio::net::{TcpListener, TcpStream};
//!
//! // A server that gets lines, and a proxy that loses the second one.
//! let server = TcpListener::bind("127.0.0.1:0").await?;
//! let line = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
//! let proxy = FaultProxy::start(server.local_addr()?, line, 7).await;
//! proxy.filter(|frame| match (frame.direction, frame.number) {
//!     (Direction::ToServer, 1) => Verdict::Drop,
//!     _ => Verdict::Forward,
//! });
//!
//! let mut client = TcpStream::connect(proxy.address()).await?;
//! client.write_all(b"one\ntwo\nthree\n").await?;
//! let (accepted, _) = server.accept().await?;
//! let mut lines = BufStream::new(accepted).lines();
//! assert_eq!(lines.next_line().await?.as_deref(), Some("one"));
//! assert_eq!(lines.next_line().await?.as_deref(), Some("three"));
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Function that returns the length of the frame at the beginning of these bytes, or `None` while its end has not
/// arrived.
pub type Framing = fn(&[u8]) -> Option<usize>;

type Filter = Box<dyn FnMut(&Frame<'_>) -> Verdict + Send>;

/// Returns everything that has arrived as one frame.
pub fn unframed(bytes: &[u8]) -> Option<usize> {
    (!bytes.is_empty()).then_some(bytes.len())
}

/// Direction of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// Decision about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Forward the frame.
    Forward,
    /// Drop the frame.
    Drop,
    /// Forward the frame after this delay, and what follows in its direction after it.
    Delay(Duration),
    /// Forward a part of the frame, and then reset the connections of both sides.
    Cut,
}

/// A frame on its way.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Frame<'a> {
    /// Number of the connection, from 0, in the order of acceptance.
    pub connection: u64,
    /// Direction of the frame.
    pub direction: Direction,
    /// Number of the frame in its connection and direction, from 0.
    pub number: u64,
    /// The whole frame.
    pub bytes: &'a [u8],
    seed: u64,
}

impl Frame<'_> {
    /// Returns true for about one of `n` frames, chosen by the seed; never if `n` is 0.
    pub fn one_in(&self, n: u64) -> bool {
        n > 0 && self.rng(0).u64(0..n) == 0
    }

    /// Returns the number of bytes sent before a cut: at least one, and not all unless there is only one.
    fn cut_length(&self) -> usize {
        self.rng(1).usize(1..self.bytes.len().max(2))
    }

    /// Returns a generator for this frame, so that no choice depends on the order of the tasks.
    fn rng(&self, purpose: u64) -> fastrand::Rng {
        let mut seed = self.seed;
        for part in [self.connection, self.direction as u64, self.number, purpose] {
            seed = fastrand::Rng::with_seed(seed ^ part).u64(..);
        }
        fastrand::Rng::with_seed(seed)
    }
}

/// A running proxy. Dropping it closes its port and its connections.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    upstream: SocketAddr,
    framing: Framing,
    seed: u64,
    filter: Mutex<Filter>,
    /// True for each direction that is held.
    held: watch::Sender<[bool; 2]>,
    resets: watch::Sender<u64>,
    accepted: watch::Sender<u64>,
}

impl FaultProxy {
    /// Starts a proxy to a server. It forwards everything until you inject a fault.
    ///
    /// # Panics
    ///
    /// If loopback has no free port.
    pub async fn start(upstream: SocketAddr, framing: Framing, seed: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            upstream,
            framing,
            seed,
            filter: Mutex::new(Box::new(|_| Verdict::Forward)),
            held: watch::Sender::new([false; 2]),
            resets: watch::Sender::new(0),
            accepted: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, accepting }
    }

    /// Returns the address to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the function that decides about every frame from now on, one frame at a time. It replaces the previous one.
    pub fn filter(&self, filter: impl FnMut(&Frame<'_>) -> Verdict + Send + 'static) {
        *self.shared.filter.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(filter);
    }

    /// Forwards every frame again.
    pub fn forward_all(&self) {
        self.filter(|_| Verdict::Forward);
    }

    /// Holds this direction on all connections: nothing passes any more.
    pub fn hold(&self, direction: Direction) {
        self.shared.held.send_modify(|held| held[direction as usize] = true);
    }

    /// Releases both directions; held bytes go first.
    pub fn release(&self) {
        self.shared.held.send_replace([false; 2]);
    }

    /// Resets all current connections.
    pub fn reset(&self) {
        self.shared.resets.send_modify(|count| *count += 1);
    }

    /// Returns the number of connections accepted so far.
    pub fn connections(&self) -> u64 {
        *self.shared.accepted.borrow()
    }
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { upstream, seed, .. } = &*self.shared;
        f.debug_struct("FaultProxy")
            .field("address", &self.address)
            .field("upstream", upstream)
            .field("seed", seed)
            .finish_non_exhaustive()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts connections forever. It owns them, and they end with it.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        // The error belongs to the connection that was about to be accepted.
        let Ok((client, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        let number = *shared.accepted.borrow();
        let resets = shared.resets.subscribe();
        shared.accepted.send_modify(|count| *count += 1);
        connections.spawn(connection(client, number, resets, Arc::clone(&shared)));
    }
}

async fn connection(
    mut client: TcpStream,
    number: u64,
    mut resets: watch::Receiver<u64>,
    shared: Arc<Shared>,
) {
    let Ok(mut server) = TcpStream::connect(shared.upstream).await else {
        let _ = client.set_zero_linger();
        return;
    };
    for stream in [&client, &server] {
        // Frames must arrive in the pieces in which they are sent.
        let _ = stream.set_nodelay(true);
    }
    let ended = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let lane = |direction| Lane { shared: &shared, connection: number, direction };
        let both = async {
            tokio::try_join!(
                lane(Direction::ToServer).pump(from_client, to_server),
                lane(Direction::ToClient).pump(from_server, to_client),
            )
        };
        tokio::select! {
            ended = both => ended.map(drop),
            _ = resets.changed() => Err(Broken),
        }
    };
    if ended.is_err() {
        for stream in [&client, &server] {
            // With nothing to linger for, closing is a reset.
            let _ = stream.set_zero_linger();
        }
    }
}

/// The connection must be reset, or was.
struct Broken;

/// One direction of one connection.
struct Lane<'a> {
    shared: &'a Shared,
    connection: u64,
    direction: Direction,
}

impl Lane<'_> {
    /// Forwards until the sender has closed its direction.
    async fn pump(self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), Broken> {
        let mut received = Vec::new();
        let mut number = 0;
        while from.read_buf(&mut received).await.map_err(|_| Broken)? > 0 {
            let mut taken = 0;
            while let Some(length) = (self.shared.framing)(&received[taken..]).filter(|length| *length > 0) {
                let bytes = &received[taken..taken + length];
                self.released().await;
                self.forward(number, bytes, &mut to).await?;
                (taken, number) = (taken + length, number + 1);
            }
            received.drain(..taken);
        }
        self.released().await;
        send(&mut to, &received).await?;
        to.shutdown().await.map_err(|_| Broken)
    }

    async fn forward(&self, number: u64, bytes: &[u8], to: &mut WriteHalf<'_>) -> Result<(), Broken> {
        let Self { shared, connection, direction } = *self;
        let frame = Frame { connection, direction, number, bytes, seed: shared.seed };
        let verdict = {
            let mut filter = shared.filter.lock().unwrap_or_else(PoisonError::into_inner);
            (*filter)(&frame)
        };
        match verdict {
            Verdict::Forward => send(to, bytes).await,
            Verdict::Drop => Ok(()),
            Verdict::Delay(time) => {
                tokio::time::sleep(time).await;
                send(to, bytes).await
            }
            Verdict::Cut => {
                send(to, &bytes[..frame.cut_length()]).await?;
                Err(Broken)
            }
        }
    }

    /// Waits until this direction is not held.
    async fn released(&self) {
        let mut held = self.shared.held.subscribe();
        // The sender lives as long as the proxy.
        let _ = held.wait_for(|held| !held[self.direction as usize]).await;
    }
}

async fn send(to: &mut WriteHalf<'_>, bytes: &[u8]) -> Result<(), Broken> {
    to.write_all(bytes).await.map_err(|_| Broken)
}
