//! The NATS wire protocol as far as tests need it: frame lengths, message contents, and one request.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Timeout of a request.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
const INBOX: &str = "_INBOX.testkit";

/// Returns the length of the frame that these bytes begin with, or `None` while its end is missing. It is a framing for
/// the [fault proxy](crate::servers::fault_proxy).
///
/// ```
/// use a3s_event_testkit::servers::nats::protocol::frame_length;
///
/// assert_eq!(frame_length(b"PING\r\nPONG\r\n"), Some(6));
/// assert_eq!(frame_length(b"PUB events.a 5\r\nhel"), None);
/// assert_eq!(frame_length(b"PUB events.a 5\r\nhello\r\nPING\r\n"), Some(23));
/// ```
pub fn frame_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let end = line + 2;
    let text = String::from_utf8_lossy(&bytes[..line]);
    let mut words = text.split_ascii_whitespace();
    let has_payload = words
        .next()
        .is_some_and(|verb| ["PUB", "HPUB", "MSG", "HMSG"].contains(&verb.to_uppercase().as_str()));
    // The last word is the size of the headers and the payload together.
    let payload = words.next_back().and_then(|size| size.parse::<usize>().ok()).filter(|_| has_payload);
    let length = payload.map_or(end, |size| end + size + 2);
    (length <= bytes.len()).then_some(length)
}

/// A message on its way to the server or to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message<'a> {
    /// Destination of the message.
    pub subject: &'a str,
    /// Destination of an answer to it.
    pub reply: Option<&'a str>,
    /// Content behind the headers.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Parses the message in a frame; returns `None` if the frame is something else.
    ///
    /// ```
    /// use a3s_event_testkit::servers::nats::protocol::Message;
    ///
    /// let message = Message::parse(b"MSG events.a 7 _INBOX.1 5\r\nhello\r\n").unwrap();
    /// assert_eq!((message.subject, message.reply), ("events.a", Some("_INBOX.1")));
    /// assert_eq!(message.payload, b"hello");
    /// assert_eq!(Message::parse(b"PING\r\n"), None);
    /// ```
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let line = frame.windows(2).position(|pair| pair == b"\r\n")?;
        let body = frame.get(line + 2..frame.len().checked_sub(2)?)?;
        let words: Vec<&str> = std::str::from_utf8(&frame[..line]).ok()?.split_ascii_whitespace().collect();
        // Between verb and sizes are the subject, for a client the number of its subscription, and the reply subject.
        let (sizes, skipped) = match words.first()?.to_uppercase().as_str() {
            "PUB" => (1, 0),
            "HPUB" => (2, 0),
            "MSG" => (1, 1),
            "HMSG" => (2, 1),
            _ => return None,
        };
        let headers: usize = if sizes == 2 { words.get(words.len() - 2)?.parse().ok()? } else { 0 };
        let addresses = words.get(1..words.len().checked_sub(sizes)?)?;
        Some(Self {
            subject: addresses.first()?,
            reply: addresses.get(1 + skipped).copied(),
            payload: body.get(headers..)?,
        })
    }
}

/// Sends a request to JetStream's API on a separate connection. The answer is JSON, also if it is a refusal.
///
/// # Errors
///
/// If there is no connection, or no answer in time.
pub async fn request(server: SocketAddr, subject: &str, body: &Value) -> io::Result<Value> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer to {subject}"));
    tokio::time::timeout(ANSWER_DEADLINE, answer(server, subject, body)).await.map_err(late)?
}

async fn answer(server: SocketAddr, subject: &str, body: &Value) -> io::Result<Value> {
    let mut connection = TcpStream::connect(server).await?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let connect = r#"CONNECT {"verbose":false,"headers":true,"no_responders":true}"#;
    let (answers, size) = (format!("SUB {INBOX} 1"), body.len());
    let sent = format!("{connect}\r\n{answers}\r\nPUB {subject} {INBOX} {size}\r\n{body}\r\n");
    connection.write_all(sent.as_bytes()).await?;
    let mut received = Vec::new();
    loop {
        while let Some(length) = frame_length(&received) {
            let frame: Vec<u8> = received.drain(..length).collect();
            if let Some(message) = Message::parse(&frame) {
                return serde_json::from_slice(message.payload)
                    .map_err(|_| io::Error::other(format!("no service answers {subject}")));
            }
            if frame.starts_with(b"-ERR") {
                return Err(io::Error::other(String::from_utf8_lossy(&frame).into_owned()));
            }
        }
        if connection.read_buf(&mut received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_ends_behind_its_payload() {
        for (bytes, length) in [
            (&b""[..], None),
            (b"PING\r", None),
            (b"+OK\r\n", Some(5)),
            (b"INFO {\"a\": 1}\r\n", Some(15)),
            (b"PUB a 0\r\n\r\n", Some(11)),
            (b"PUB a 0\r\n\r", None),
            (b"pub a b 3\r\n\r\n\r\r\nPING\r\n", Some(16)),
            (b"HMSG a 1 12 17\r\nNATS/1.0\r\n\r\nhello\r\n", Some(35)),
            (b"SUB a 1\r\nPING\r\n", Some(9)),
        ] {
            assert_eq!(frame_length(bytes), length, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_message_is_taken_apart() {
        let parse = |frame: &'static str| {
            Message::parse(frame.as_bytes()).map(|message| (message.subject, message.reply, message.payload))
        };
        assert_eq!(parse("PUB a 1\r\nx\r\n"), Some(("a", None, &b"x"[..])));
        assert_eq!(parse("PUB a b 1\r\nx\r\n"), Some(("a", Some("b"), &b"x"[..])));
        assert_eq!(parse("HPUB a b 12 13\r\nNATS/1.0\r\n\r\nx\r\n"), Some(("a", Some("b"), &b"x"[..])));
        assert_eq!(parse("MSG a 7 1\r\nx\r\n"), Some(("a", None, &b"x"[..])));
        assert_eq!(parse("HMSG a 7 b 12 13\r\nNATS/1.0\r\n\r\nx\r\n"), Some(("a", Some("b"), &b"x"[..])));
        for frame in ["PONG\r\n", "MSG\r\n\r\n", "HPUB a x 1\r\nx\r\n", ""] {
            assert_eq!(parse(frame), None, "{frame}");
        }
    }
}
