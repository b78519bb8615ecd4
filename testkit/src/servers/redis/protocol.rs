//! The protocol of Redis (RESP) as far as tests need it: frame lengths, the words of a command, and one request.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Timeout of a request.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Returns the length of the command or reply that these bytes begin with, or `None` while its end is missing. It is a
/// framing for the [fault proxy](crate::servers::fault_proxy).
///
/// ```
/// use a3s_event_testkit::servers::redis::protocol::frame_length;
///
/// assert_eq!(frame_length(b"+OK\r\n:1\r\n"), Some(5));
/// assert_eq!(frame_length(b"*1\r\n$4\r\nPI"), None);
/// assert_eq!(frame_length(b"*1\r\n$4\r\nPING\r\n*1\r\n"), Some(14));
/// ```
pub fn frame_length(bytes: &[u8]) -> Option<usize> {
    end(bytes, 0)
}

/// Returns `true` if the frame is a push: a message that the server sends without a request.
pub fn is_push(frame: &[u8]) -> bool {
    frame.first() == Some(&b'>')
}

/// Returns the words of the command in a frame; empty if the frame is something else.
///
/// ```
/// use a3s_event_testkit::servers::redis::protocol::words;
///
/// assert_eq!(words(b"*2\r\n$4\r\nLLEN\r\n$1\r\na\r\n"), ["LLEN", "a"]);
/// assert!(words(b"+OK\r\n").is_empty());
/// ```
pub fn words(frame: &[u8]) -> Vec<String> {
    match Reply::parse(frame) {
        Some(Reply::List(words)) => {
            words.into_iter().filter_map(|word| word.text().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    }
}

/// A reply. What is not UTF-8 in it is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// No value.
    Nil,
    /// A number.
    Integer(i64),
    /// A text, or a value of a type that only a client with RESP3 receives.
    Text(String),
    /// A refusal.
    Error(String),
    /// A list, a set, or the keys and values of a map.
    List(Vec<Reply>),
}

impl Reply {
    /// Parses the reply in a frame; returns `None` if the frame has none.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        parse(frame, &mut 0)
    }

    /// Returns the text, or `None` if the reply is something else.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// Returns the number, or `None` if the reply is something else.
    pub fn integer(&self) -> Option<i64> {
        if let Self::Integer(number) = self { Some(*number) } else { None }
    }

    /// Returns the parts of a list; none if the reply is something else.
    pub fn list(&self) -> &[Self] {
        if let Self::List(parts) = self { parts } else { &[] }
    }
}

/// Sends a command on a separate connection. A refusal of the server is a reply.
///
/// # Errors
///
/// If there is no connection, or no reply in time.
pub async fn request(server: SocketAddr, words: &[&str]) -> io::Result<Reply> {
    let mut replies = requests(server, &[words]).await?;
    replies.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Sends commands on a separate connection, without waiting in between, and returns their replies.
///
/// # Errors
///
/// If there is no connection, or a reply is missing after the timeout.
pub async fn requests(server: SocketAddr, commands: &[&[&str]]) -> io::Result<Vec<Reply>> {
    in_time(commands, async { exchange(&mut TcpStream::connect(server).await?, commands).await }).await
}

/// Limits a request to the timeout.
pub(super) async fn in_time<T>(
    commands: &[&[&str]],
    request: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no reply to {commands:?}"));
    tokio::time::timeout(ANSWER_DEADLINE, request).await.map_err(late)?
}

/// Sends commands on a connection and reads their replies.
pub(super) async fn exchange(
    connection: &mut (impl AsyncRead + AsyncWrite + Unpin),
    commands: &[&[&str]],
) -> io::Result<Vec<Reply>> {
    let mut sent = Vec::new();
    for words in commands {
        sent.extend(format!("*{}\r\n", words.len()).bytes());
        words.iter().for_each(|word| sent.extend(format!("${}\r\n{word}\r\n", word.len()).bytes()));
    }
    connection.write_all(&sent).await?;
    let (mut received, mut replies) = (Vec::new(), Vec::new());
    while replies.len() < commands.len() {
        let Some(length) = frame_length(&received) else {
            if connection.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            continue;
        };
        let frame: Vec<u8> = received.drain(..length).collect();
        replies.extend(Reply::parse(&frame));
    }
    Ok(replies)
}

/// A line without its end, and the position behind it.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..)?;
    let length = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&rest[..length], at + length + 2))
}

/// Returns the number of parts of a reply of this type: the count of its header stands for that many.
fn parts(kind: u8, count: usize) -> Option<usize> {
    match kind {
        b'*' | b'~' | b'>' => Some(count),
        b'%' => Some(2 * count),
        // Attributes, and the reply that they are about.
        b'|' => Some(2 * count + 1),
        _ => None,
    }
}

fn count(line: &[u8]) -> Option<usize> {
    std::str::from_utf8(line.get(1..)?).ok()?.parse().ok()
}

/// Returns the end of what begins here.
fn end(bytes: &[u8], at: usize) -> Option<usize> {
    let (line, behind) = line(bytes, at)?;
    let kind = line.first().copied().unwrap_or_default();
    // No count, or -1, is a reply without parts.
    let Some(count) = count(line) else { return Some(behind) };
    if matches!(kind, b'$' | b'!' | b'=') {
        return Some(behind + count + 2).filter(|end| *end <= bytes.len());
    }
    (0..parts(kind, count).unwrap_or_default()).try_fold(behind, |at, _| end(bytes, at))
}

fn parse(bytes: &[u8], at: &mut usize) -> Option<Reply> {
    let (line, behind) = line(bytes, *at)?;
    *at = behind;
    let (kind, text) = (*line.first()?, String::from_utf8_lossy(line.get(1..)?).into_owned());
    let count = count(line);
    let whole = match (kind, count) {
        (b'_', _) | (b'$' | b'*', None) => return Some(Reply::Nil),
        (b':', _) => return text.parse().ok().map(Reply::Integer),
        (b'-', _) => return Some(Reply::Error(text)),
        (b'$' | b'!' | b'=', Some(count)) => {
            let content = bytes.get(behind..behind + count)?;
            *at = behind + count + 2;
            String::from_utf8_lossy(content).into_owned()
        }
        (b'*' | b'~' | b'>' | b'%' | b'|', Some(count)) => {
            let list = (0..parts(kind, count)?).map(|_| parse(bytes, at)).collect::<Option<Vec<_>>>()?;
            return Some(Reply::List(list));
        }
        _ => text,
    };
    Some(if kind == b'!' { Reply::Error(whole) } else { Reply::Text(whole) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_ends_behind_its_last_part() {
        for (bytes, length) in [
            (&b""[..], None),
            (b"+OK\r", None),
            (b"+OK\r\n", Some(5)),
            (b"-ERR no\r\n+OK\r\n", Some(9)),
            (b":-7\r\n", Some(5)),
            (b"$-1\r\n", Some(5)),
            (b"$5\r\nhel", None),
            (b"$5\r\nhello\r", None),
            (b"$5\r\nh\r\nlo\r\n$", Some(11)),
            (b"*-1\r\n", Some(5)),
            (b"*0\r\n", Some(4)),
            (b"*2\r\n:1\r\n", None),
            (b"*2\r\n:1\r\n*1\r\n$1\r\na\r\n", Some(19)),
            (b"%1\r\n+a\r\n:1\r\n:2\r\n", Some(12)),
            (b"|1\r\n+a\r\n:1\r\n:2\r\n", Some(16)),
            (b">2\r\n+a\r\n_\r\n", Some(11)),
            (b",1.5\r\n#t\r\n", Some(6)),
            (b"=7\r\ntxt:abc\r\n", Some(13)),
            (b"PING\r\nPING\r\n", Some(6)),
        ] {
            assert_eq!(frame_length(bytes), length, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_reply_is_taken_apart() {
        let text = |text: &str| Reply::Text(text.to_owned());
        for (frame, reply) in [
            (&b"+OK\r\n"[..], text("OK")),
            (b"$2\r\n\r\n\r\n", text("\r\n")),
            (b"=7\r\ntxt:abc\r\n", text("txt:abc")),
            (b",1.5\r\n", text("1.5")),
            (b":-7\r\n", Reply::Integer(-7)),
            (b"$-1\r\n", Reply::Nil),
            (b"_\r\n", Reply::Nil),
            (b"-ERR no\r\n", Reply::Error("ERR no".to_owned())),
            (b"!6\r\nERR no\r\n", Reply::Error("ERR no".to_owned())),
            (b"*-1\r\n", Reply::Nil),
            (b"%1\r\n+a\r\n*1\r\n:1\r\n", Reply::List(vec![text("a"), Reply::List(vec![Reply::Integer(1)])])),
        ] {
            assert_eq!(Reply::parse(frame), Some(reply), "{}", String::from_utf8_lossy(frame));
        }
        assert_eq!(Reply::parse(b"*2\r\n:1\r\n"), None);
    }

    #[test]
    fn pushes_and_commands_are_told_from_replies() {
        assert!(is_push(b">2\r\n+a\r\n+b\r\n") && !is_push(b"*0\r\n"));
        assert_eq!(words(b"*2\r\n$4\r\nPING\r\n$1\r\na\r\n"), ["PING", "a"]);
        assert!(words(b"$4\r\nPING\r\n").is_empty());
    }
}
