use super::guard::tests::FORBIDDEN;
use super::resolver::Lookup;
use super::*;
use crate::error::EventError;
use serde_json::json;
use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn event() -> Event {
    Event::typed("events.orders.new", "orders", "order.created", 1, "", "shop", json!({"total": 7}))
}

/// A server that answers each request with the next of these texts, and keeps the requests.
struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (seen, count) = (Arc::clone(&requests), Arc::clone(&connections));
        let task = tokio::spawn(async move {
            let mut answers = answers.into_iter();
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let mut request = Vec::new();
                let mut buffer = [0; 4_096];
                while !is_whole(&request) {
                    match stream.read(&mut buffer).await {
                        Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
                        _ => break,
                    }
                }
                seen.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
                let answer = answers.next().unwrap_or_default();
                let _ = stream.write_all(answer.as_bytes()).await;
                if answer.contains("endless") {
                    while stream.write_all(&[b'x'; 8_192]).await.is_ok() {}
                }
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
            }
        });
        Self { port, requests, connections, task }
    }

    fn sink(&self) -> HttpSinkBuilder {
        HttpSink::builder("hook", format!("http://127.0.0.1:{}/hook", self.port))
            .allow_http()
            .allow_port(self.port)
            .allow_network("127.0.0.0/8")
    }

    fn request(&self, number: usize) -> String {
        self.requests.lock().unwrap()[number].clone()
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}", body.len())
}

fn failure(result: Result<()>) -> SinkFailure {
    SinkFailure::of(&result.unwrap_err())
}

#[tokio::test]
async fn events_are_sent_as_cloud_events_in_both_modes_and_signed() {
    let server = Server::start(vec![answer("202 Accepted", "", ""), answer("200 OK", "", "ok")]).await;
    let binary = server
        .sink()
        .header("authorization", "Bearer canary")
        .sign_with("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        .build()
        .unwrap();
    let event = event();
    binary.deliver(&event).await.unwrap();
    let request = server.request(0);
    for line in [
        "POST /hook HTTP/1.1",
        "ce-type: order.created",
        "ce-specversion: 1.0",
        "content-type: application/json",
        "authorization: Bearer canary",
        &format!("webhook-id: {}", event.id),
        "\r\n\r\n{\"total\":7}",
    ] {
        assert!(request.contains(line), "{line} in {request}");
    }
    let header = |name: &str| request.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    let mut signer = Signer::default();
    signer.add("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let timestamp = header("webhook-timestamp: ");
    assert_eq!(header("webhook-signature: "), signer.sign(&event.id, &timestamp, b"{\"total\":7}"));
    assert!(!format!("{binary:?}").contains("canary"));

    server.sink().structured().build().unwrap().deliver(&event).await.unwrap();
    let request = server.request(1);
    assert!(request.contains("content-type: application/cloudevents+json"), "{request}");
    let (_, body) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(Event::try_from(CloudEvent::from_json(body.as_bytes()).unwrap()).unwrap().id, event.id);
}

#[tokio::test]
async fn a_receiver_is_asked_for_its_permission_once_it_gives_it() {
    let allows = |origin: &str| answer("200 OK", &format!("webhook-allowed-origin: {origin}\r\n"), "");
    for allowed in ["*", "Sender.example"] {
        let ok = || answer("202 Accepted", "", "");
        let no = answer("200 OK", "allow: POST, OPTIONS\r\n", "");
        let server = Server::start(vec![no, allows("other.example"), allows(allowed), ok(), ok()]).await;
        let sink = server
            .sink()
            .ask_permission_as("sender.example")
            .header("authorization", "Bearer canary")
            .build()
            .unwrap();
        for _ in 0..2 {
            let refused = failure(sink.deliver(&event()).await);
            assert!(refused.is_retryable() && refused.to_string().contains("not permitted"), "{refused}");
        }
        for _ in 0..2 {
            sink.deliver(&event()).await.unwrap();
        }
        for (number, method) in ["OPTIONS", "OPTIONS", "OPTIONS", "POST", "POST"].iter().enumerate() {
            let request = server.request(number);
            assert!(request.starts_with(method), "{request}");
            assert!(request.contains("webhook-request-origin: sender.example"), "{request}");
            assert!(request.contains("authorization: Bearer canary"), "{request}");
        }
    }
    for origin in ["", "https://sender.example", "a b", "*", &"a".repeat(254)] {
        let error = HttpSink::builder("hook", "https://example.com/").ask_permission_as(origin).build();
        assert!(error.unwrap_err().to_string().contains("origin"), "{origin}");
    }
}

#[tokio::test]
async fn each_status_has_its_class() {
    for (status, headers, retried, after) in [
        ("400 Bad Request", "", false, None),
        ("401 Unauthorized", "", false, None),
        ("404 Not Found", "", true, None),
        ("408 Request Timeout", "", true, None),
        ("413 Content Too Large", "", false, None),
        ("415 Unsupported Media Type", "", false, None),
        ("429 Too Many Requests", "retry-after: 7\r\n", true, Some(7)),
        ("429 Too Many Requests", "retry-after: soon\r\n", true, None),
        ("429 Too Many Requests", "retry-after: +5\r\n", true, None),
        ("429 Too Many Requests", "retry-after: -5\r\n", true, None),
        ("429 Too Many Requests", "retry-after: 1.5\r\n", true, None),
        ("429 Too Many Requests", "retry-after:\r\n", true, None),
        ("429 Too Many Requests", "retry-after: 7\r\nretry-after: 8\r\n", true, None),
        ("429 Too Many Requests", "retry-after: 99999999999999999999\r\n", true, Some(3_600)),
        ("503 Service Unavailable", "retry-after: Sunday, 06-Nov-94 08:49:37 GMT\r\n", true, Some(0)),
        // 1999-12-01 was a Wednesday, so a Tuesday means 2099.
        ("503 Service Unavailable", "retry-after: Tuesday, 01-Dec-99 10:00:00 GMT\r\n", true, Some(3_600)),
        ("503 Service Unavailable", "retry-after: Friday, 01-Dec-99 10:00:00 GMT\r\n", true, None),
        ("503 Service Unavailable", "retry-after: Tue Dec  1 10:00:00 2099\r\n", true, Some(3_600)),
        ("429 Too Many Requests", "retry-after: 99999999\r\n", true, Some(3_600)),
        ("503 Service Unavailable", "retry-after: Wed, 21 Oct 2015 07:28:00 GMT\r\n", true, Some(0)),
        ("503 Service Unavailable", "retry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\n", true, Some(3_600)),
        ("500 Internal Server Error", "", true, None),
        ("400 Bad Request", "retry-after: 7\r\n", false, None),
    ] {
        let server = Server::start(vec![answer(status, headers, "line\r\nend")]).await;
        let failure = failure(server.sink().build().unwrap().deliver(&event()).await);
        assert_eq!(failure.is_retryable(), retried, "{status}");
        assert_eq!(failure.after().map(|after| after.as_secs()), after, "{status} {headers}");
        assert!(
            failure.to_string().contains(&status[..3]) && !failure.to_string().contains('\n'),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn a_receiver_that_is_gone_disables_the_sink() {
    let server = Server::start(vec![answer("410 Gone", "", ""), answer("200 OK", "", "")]).await;
    let sink = server.sink().build().unwrap();
    for _ in 0..3 {
        assert!(!failure(sink.deliver(&event()).await).is_retryable());
    }
    assert!(sink.is_disabled());
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    sink.enable();
    sink.deliver(&event()).await.unwrap();
}

#[tokio::test]
async fn redirects_are_not_followed_and_bodies_not_read_to_an_end_they_do_not_have() {
    let target = Server::start(vec![]).await;
    let location = format!("location: http://127.0.0.1:{}/\r\n", target.port);
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let server = Server::start(vec![answer(status, &location, "")]).await;
        let sink = server.sink().allow_port(target.port).build().unwrap();
        assert!(!failure(sink.deliver(&event()).await).is_retryable(), "{status}");
    }
    assert_eq!(target.connections.load(Ordering::SeqCst), 0);

    let endless = "HTTP/1.1 200 OK\r\nx: endless\r\n\r\n".to_owned();
    let server = Server::start(vec![endless.clone(), endless.replace("200 OK", "500 No")]).await;
    let sink = server.sink().build().unwrap();
    sink.deliver(&event()).await.unwrap();
    let sink = server.sink().build().unwrap();
    assert!(failure(sink.deliver(&event()).await).is_retryable());
}

#[tokio::test]
async fn silence_and_refusal_are_tried_again() {
    let server = Server::start(vec![]).await;
    let sink = server.sink().timeout(Duration::from_millis(50)).build().unwrap();
    let silence = failure(sink.deliver(&event()).await);
    assert!(silence.is_retryable() && silence.to_string().contains("no answer within"), "{silence}");
    let sink = server.sink().build().unwrap();
    drop(server);
    tokio::task::yield_now().await;
    assert!(failure(sink.deliver(&event()).await).is_retryable());
}

/// A lookup that returns these lists of addresses in order; the last one repeats.
fn lookup(answers: &[&[&str]]) -> Lookup {
    let parse = |list: &&[&str]| list.iter().map(|address| address.parse().unwrap()).collect();
    let answers: Vec<Vec<IpAddr>> = answers.iter().map(parse).collect();
    let asked = AtomicUsize::new(0);
    Arc::new(move |_| {
        let asked = asked.fetch_add(1, Ordering::SeqCst);
        let found = answers[asked.min(answers.len() - 1)].clone();
        Box::pin(async move { Ok(found) })
    })
}

#[tokio::test]
async fn a_name_that_resolves_to_something_forbidden_is_not_connected_to() {
    let server = Server::start(vec![answer("200 OK", "", "")]).await;
    let sink = |addresses: &[&[&str]]| {
        HttpSink::builder("hook", format!("http://public.example:{}/", server.port))
            .allow_http()
            .allow_port(server.port)
            .timeout(Duration::from_millis(300))
            .lookup(lookup(addresses))
    };
    for addresses in
        [&["127.0.0.1"][..], &["1.1.1.1", "127.0.0.1"], &["::ffff:127.0.0.1"], &["169.254.169.254"], &[]]
    {
        let failure = failure(sink(&[addresses]).build().unwrap().deliver(&event()).await);
        assert!(
            failure.to_string().contains("blocked: ") && !failure.is_retryable(),
            "{addresses:?}: {failure}"
        );
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
    // The client connects to the checked address: a second lookup before the connection would be blocked.
    let changing = sink(&[&["127.0.0.1"], &["10.0.0.1"]]).allow_network("127.0.0.1").build().unwrap();
    changing.deliver(&event()).await.unwrap();
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    // The next attempt looks the name up again.
    assert!(failure(changing.deliver(&event()).await).to_string().contains("blocked: 10.0.0.1"));
}

#[tokio::test]
async fn no_encoding_of_a_forbidden_address_makes_a_connection() {
    let server = Server::start(vec![]).await;
    for host in FORBIDDEN {
        let url = format!("http://{host}:{}/", server.port);
        let built = HttpSink::builder("hook", url).allow_http().allow_port(server.port).build();
        assert!(built.is_err(), "{host}");
    }
    // The guard also blocks a URL that passed the check of the builder.
    let mut sink = server.sink().build().unwrap();
    sink.allowed = Allowed { http: true, ..Allowed::default() };
    assert!(failure(sink.deliver(&event()).await).to_string().contains("blocked: 127.0.0.1"));
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn headers_of_the_connection_and_of_the_event_are_refused() {
    let build = |name: &str, value: &str| {
        HttpSink::builder("hook", "https://example.com/").header(name, value).build()
    };
    for (name, value) in [
        ("Host", "evil.example"),
        ("Content-Length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close"),
        ("content-type", "text/plain"),
        ("ce-id", "1"),
        ("Webhook-Signature", "v1,x"),
        ("X-A", "canary\r\nX-B: 2"),
        ("X-A", "canary\0"),
        ("X A", "1"),
        ("X-A\r\n", "1"),
        ("", "1"),
    ] {
        let error = build(name, value).unwrap_err();
        assert!(matches!(error, EventError::Config(_)), "{name}: {error}");
        assert!(
            error.to_string().contains("sink header") && !error.to_string().contains("canary"),
            "{error}"
        );
    }
    build("X-Api-Key", "1").unwrap();
    assert!(HttpSink::builder("hook", "https://example.com/").allow_network("x").build().is_err());
}
