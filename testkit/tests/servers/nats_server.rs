//! The launcher of the real server.

use std::net::TcpStream;

use a3s_event_testkit::NatsServer;

fn accepts(server: &NatsServer) -> bool {
    TcpStream::connect(("127.0.0.1", server.port())).is_ok()
}

#[tokio::test]
async fn servers_are_separate_ready_and_gone_when_dropped() {
    let (first, second) = (NatsServer::start().await, NatsServer::start().await);
    assert_ne!(first.port(), second.port());
    assert!(accepts(&first) && accepts(&second));
    let port = first.port();
    drop(first);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(accepts(&second));
}

#[tokio::test]
async fn a_restarted_server_keeps_its_port() {
    let mut server = NatsServer::start().await;
    let port = server.port();
    server.kill();
    assert!(!accepts(&server));
    server.start_again().await;
    assert_eq!(server.port(), port);
    assert!(accepts(&server));
    server.freeze().await;
    server.thaw();
    server.restart().await;
    assert!(accepts(&server));
}
