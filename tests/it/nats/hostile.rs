//! Records that end the connection of whoever receives them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use a3s_event::Delivery;

use super::*;

/// Publishes past all clients.
pub(super) fn publish_malformed(server: &NatsServer, header: &[u8]) {
    use std::io::{BufRead, BufReader, Write};
    let body = serde_json::to_string(&event("a", 666)).unwrap();
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let (headers, total) = (header.len(), header.len() + body.len());
    let connect = r#"CONNECT {"verbose":false,"headers":true}"#;
    write!(stream, "{connect}\r\nHPUB events.a {headers} {total}\r\n").unwrap();
    stream.write_all(header).unwrap();
    write!(stream, "{body}\r\nPING\r\n").unwrap();
    let mut answers = BufReader::new(stream).lines().map(|line| line.unwrap());
    assert!(answers.any(|line| line == "PONG"), "the server hung up");
}

/// This header, with a carriage return in its value, breaks clients of other peers.
fn publish_malformed_header(server: &NatsServer) {
    publish_malformed(server, b"NATS/1.0\r\nkey: a\rb\r\n\r\n");
}

/// async-nats 0.51 panics in its connection task when such a message arrives.
#[tokio::test]
async fn a_malformed_header_of_another_publisher_is_told_once_and_ends_nothing() {
    for server in servers().await {
        told_once_and_ends_nothing(&server).await;
    }
}

async fn told_once_and_ends_nothing(server: &NatsServer) {
    let provider = connect(server).await;
    let options = SubscribeOptions { ack_wait_secs: Some(2), ..SubscribeOptions::default() };
    let mut subscription = provider.subscribe_durable_with_options("a", "events.>", &options).await.unwrap();
    let mut other = provider.subscribe_durable_with_options("b", "events.b", &options).await.unwrap();
    provider.publish(&event("a", 1)).await.unwrap();
    publish_malformed_header(server);
    publish_again(&provider, &event("b", 2)).await;
    assert_eq!(ack_next(&mut *subscription).await, 1);
    match tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap() {
        Err(EventError::Undecodable { sequence, raw, reason }) => {
            assert_eq!((sequence, reason.as_str()), (2, "its headers contain a bare carriage return"));
            assert!(serde_json::from_slice::<Event>(&raw).is_ok());
        }
        // Not reached with a client that copes with it.
        found => panic!("expected Undecodable, found {found:?}"),
    }
    assert_eq!(ack_next(&mut *subscription).await, 2);
    assert_eq!(ack_next(&mut *other).await, 2);
    assert!(provider.health().await.unwrap());
    assert_eq!(publish_again(&provider, &event("b", 3)).await, 4);
    assert_eq!(ack_next(&mut *subscription).await, 3);
    // The record does not come again.
    tokio::time::sleep(Duration::from_secs(3)).await;
    publish_again(&provider, &event("b", 4)).await;
    assert_eq!(ack_next(&mut *subscription).await, 4);
    assert_eq!(ack_next(&mut *other).await, 3);
}

/// Whatever its headers break: the record is told once and the connection ends once for it.
#[tokio::test]
async fn headers_that_are_none_are_told_once() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    let options = SubscribeOptions { ack_wait_secs: Some(1), ..SubscribeOptions::default() };
    let mut subscription = provider.subscribe_durable_with_options("a", "events.>", &options).await.unwrap();
    for (number, header) in [
        (2, &b"NATS/1.0\r\nkey: \xff\r\n\r\n"[..]),
        (4, b"NATS/1.0\r\nno colon\r\n\r\n"),
        (6, b"NATS/1.0\r\nn\xc3\xa4me: a\r\n\r\n"),
    ] {
        publish_malformed(&server, header);
        publish_again(&provider, &event("a", number)).await;
        let (mut told, mut received) = (0, 0);
        while told + received < 2 {
            match tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap() {
                Err(EventError::Undecodable { sequence, .. }) => {
                    assert_eq!(sequence, number - 1);
                    told += 1;
                }
                Ok(Some(delivery)) => {
                    assert_eq!(delivery.sequence(), number);
                    delivery.ack().await.unwrap();
                    received += 1;
                }
                // A lost connection.
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
                Ok(None) => panic!("closed"),
            }
        }
        assert_eq!((told, received), (1, 1));
    }
}

/// Whoever keeps such a record may fail to do so, again and again. It comes again to this member alone, after the delay that
/// was asked for, and no connection ends for it.
#[tokio::test]
async fn a_hostile_record_that_is_refused_again_and_again_ends_no_other_connection() {
    let server = NatsServer::start().await;
    let provider = Arc::new(connect(&server).await);
    let options = SubscribeOptions { ack_wait_secs: Some(2), ..SubscribeOptions::default() };
    let mut keeper = provider.subscribe_durable_with_options("a", "events.a", &options).await.unwrap();
    assert!(keeper.keep_undecodable());
    publish_malformed_header(&server);
    let errors = AtomicUsize::new(0);
    let take = async |keeper: &mut dyn Subscription| -> Delivery {
        loop {
            match tokio::time::timeout(SOON, keeper.next_delivery()).await.unwrap() {
                Ok(Some(delivery)) => return delivery,
                Err(error) => {
                    assert!(error.is_retryable(), "{error:?}");
                    errors.fetch_add(1, Ordering::Relaxed);
                }
                Ok(None) => panic!("closed"),
            }
        }
    };
    let first = take(&mut *keeper).await;
    // Whoever calls again at once after an error does not spin.
    assert!(errors.load(Ordering::Relaxed) < 30, "{errors:?} errors");
    assert_eq!(first.undecodable_record().unwrap().reason, "its headers contain a bare carriage return");
    let connection = provider.client().nats_client() as *const async_nats::Client;
    first.nak().await.unwrap();
    for attempt in 2..=20 {
        let again = take(&mut *keeper).await;
        assert_eq!((again.sequence(), again.num_delivered()), (1, attempt));
        if attempt % 5 == 0 {
            // Nobody settles it: its lease decides.
            drop(again);
        } else {
            again.nak_after(Duration::from_millis(1)).await.unwrap();
        }
        // Other work goes on.
        provider.publish(&event("b", attempt)).await.unwrap();
    }
    take(&mut *keeper).await.ack().await.unwrap();
    assert_eq!(
        provider.client().nats_client() as *const async_nats::Client,
        connection,
        "the client has ended"
    );
    provider.publish(&event("a", 99)).await.unwrap();
    assert_eq!(ack_next(&mut *keeper).await, 99);
    assert_eq!(provider.consumers().await.unwrap()[0].pending, 0);
}
