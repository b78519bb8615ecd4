//! The fault proxy, between a client and a server that are both in the test.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use a3s_event_testkit::servers::fault_proxy::{Direction, FaultProxy, Verdict, unframed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SOON: Duration = Duration::from_secs(10);
const A_WHILE: Duration = Duration::from_millis(100);

fn lines(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n').map(|end| end + 1)
}

struct Link {
    proxy: FaultProxy,
    server: TcpListener,
}

impl Link {
    async fn new(framing: fn(&[u8]) -> Option<usize>, seed: u64) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = FaultProxy::start(server.local_addr().unwrap(), framing, seed).await;
        Self { proxy, server }
    }

    /// Both ends of a new connection.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.proxy.address()).await.unwrap();
        let (server, _) = tokio::time::timeout(SOON, self.server.accept()).await.unwrap().unwrap();
        (client, server)
    }
}

/// Everything until the end, and how it ended.
async fn drain(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut received = Vec::new();
    let ended = tokio::time::timeout(SOON, async {
        loop {
            match stream.read_buf(&mut received).await {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(error.kind()),
            }
        }
    });
    let ended = ended.await.unwrap();
    (received, ended)
}

async fn expect(stream: &mut TcpStream, wanted: &[u8]) {
    let mut received = vec![0; wanted.len()];
    tokio::time::timeout(SOON, stream.read_exact(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, wanted);
}

async fn assert_silent(stream: &mut TcpStream) {
    let mut byte = [0];
    let read = tokio::time::timeout(A_WHILE, stream.read(&mut byte)).await;
    assert!(read.is_err(), "unexpected: {read:?}");
}

#[tokio::test]
async fn it_forwards_both_ways_and_ends_as_its_sides_do() {
    let link = Link::new(unframed, 1).await;
    let (mut client, mut server) = link.connect().await;
    let much = vec![7; 3_000_000];
    let sending = tokio::spawn(async move {
        client.write_all(&much).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    let (received, ended) = drain(&mut server).await;
    assert_eq!((received.len(), ended), (3_000_000, None));
    // The other direction is still open.
    let mut client = sending.await.unwrap();
    server.write_all(b"answer").await.unwrap();
    drop(server);
    assert_eq!(drain(&mut client).await, (b"answer".to_vec(), None));
    assert_eq!(link.proxy.connections(), 1);
}

#[tokio::test]
async fn frames_are_seen_whole_and_can_be_dropped_or_delayed() {
    let link = Link::new(lines, 1).await;
    link.proxy.filter(|frame| match (frame.direction, frame.bytes) {
        (Direction::ToServer, b"lost\n") => Verdict::Drop,
        (Direction::ToServer, b"late\n") => Verdict::Delay(A_WHILE),
        _ => Verdict::Forward,
    });
    let (mut client, mut server) = link.connect().await;
    client.write_all(b"one\nlo").await.unwrap();
    expect(&mut server, b"one\n").await;
    client.write_all(b"st\ntwo\n").await.unwrap();
    expect(&mut server, b"two\n").await;
    let started = Instant::now();
    client.write_all(b"late\nthree\n").await.unwrap();
    expect(&mut server, b"late\nthree\n").await;
    assert!(started.elapsed() >= A_WHILE);
    server.write_all(b"lost\n").await.unwrap();
    expect(&mut client, b"lost\n").await;
    link.proxy.forward_all();
    client.write_all(b"lost\nend").await.unwrap();
    // The end has no end of its own: it comes when the connection does.
    expect(&mut server, b"lost\n").await;
    client.shutdown().await.unwrap();
    expect(&mut server, b"end").await;
}

#[tokio::test]
async fn a_black_hole_keeps_connections_and_forwards_nothing() {
    let link = Link::new(unframed, 1).await;
    let (mut client, mut server) = link.connect().await;
    link.proxy.hold(Direction::ToClient);
    client.write_all(b"ping").await.unwrap();
    expect(&mut server, b"ping").await;
    server.write_all(b"pong").await.unwrap();
    assert_silent(&mut client).await;
    link.proxy.hold(Direction::ToServer);
    let (mut other_client, mut other_server) = link.connect().await;
    other_client.write_all(b"hello").await.unwrap();
    assert_silent(&mut other_server).await;
    link.proxy.release();
    expect(&mut client, b"pong").await;
    expect(&mut other_server, b"hello").await;
}

#[tokio::test]
async fn a_reset_reaches_both_sides_and_new_connections_work() {
    let link = Link::new(unframed, 1).await;
    let (mut client, mut server) = link.connect().await;
    link.proxy.reset();
    let reset = Some(ErrorKind::ConnectionReset);
    assert_eq!((drain(&mut client).await.1, drain(&mut server).await.1), (reset, reset));
    let (mut client, mut server) = link.connect().await;
    client.write_all(b"again").await.unwrap();
    expect(&mut server, b"again").await;
}

/// What arrives of a hundred equal frames when one in ten is cut.
async fn cut_with(seed: u64) -> Vec<u8> {
    let link = Link::new(lines, seed).await;
    link.proxy.filter(|frame| if frame.one_in(10) { Verdict::Cut } else { Verdict::Forward });
    let (mut client, mut server) = link.connect().await;
    client.write_all(&b"0123456789abcdef\n".repeat(100)).await.unwrap();
    let (received, ended) = drain(&mut server).await;
    assert_eq!(ended, Some(ErrorKind::ConnectionReset), "seed {seed}");
    assert_eq!(drain(&mut client).await.1, Some(ErrorKind::ConnectionReset));
    received
}

#[tokio::test]
async fn a_cut_is_inside_a_frame_and_the_seed_says_where() {
    let mut lengths = Vec::new();
    for seed in 0..20 {
        let received = cut_with(seed).await;
        assert_eq!(received, cut_with(seed).await, "seed {seed}");
        assert_ne!(received.len() % 17, 0, "seed {seed}: cut between frames");
        lengths.push(received.len());
    }
    lengths.sort_unstable();
    lengths.dedup();
    assert!(lengths.len() > 10, "other seeds cut elsewhere: {lengths:?}");
}

#[tokio::test]
async fn a_server_that_is_gone_is_a_reset_and_a_dropped_proxy_is_gone() {
    let link = Link::new(unframed, 1).await;
    let address: SocketAddr = link.proxy.address();
    drop(link.server);
    let mut client = TcpStream::connect(address).await.unwrap();
    assert_eq!(drain(&mut client).await.1, Some(ErrorKind::ConnectionReset));
    drop(link.proxy);
    let started = Instant::now();
    while TcpStream::connect(address).await.is_ok() {
        assert!(started.elapsed() < SOON, "the port is still open");
        tokio::task::yield_now().await;
    }
}
