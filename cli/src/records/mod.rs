//! Records from a file or stdin, read on a thread of its own and handed over a few at a time: memory does not grow with the
//! input.

mod digest;
mod layout;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use a3s_event::json::{self, StrictValue};
use clap::ValueEnum;
use serde::de::{DeserializeSeed, Deserializer as _, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokio::sync::mpsc;

pub(crate) use self::digest::Mark;
use self::digest::{Digest, Marks};
use crate::failure::{Failure, Outcome};

/// Records on their way.
const IN_FLIGHT: usize = 2_000;
/// Longest line of NDJSON; longer than any event.
const MAX_LINE: u64 = 64 << 20;

/// How records follow each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// What the content looks like: `array` for one array or one object that holds one, `ndjson` for a value per line
    #[default]
    Auto,
    /// One JSON value per line
    Ndjson,
    /// One JSON array, or an object that holds one
    Array,
}

/// A record and its number, which begins at 1.
pub(crate) struct Record {
    pub(crate) number: u64,
    pub(crate) value: Value,
    /// What was read up to its end.
    pub(crate) end: Mark,
}

/// Records that are being read.
pub(crate) struct Records {
    receiver: mpsc::Receiver<Outcome<Record>>,
    /// Size of the input in bytes, when it is known.
    pub(crate) bytes: Option<u64>,
    pub(crate) position: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

/// What an input is, and what is known of it.
pub(crate) struct Input<'a> {
    /// A file, or `-` for stdin.
    pub(crate) path: &'a str,
    pub(crate) layout: Layout,
    /// The key of the array in an object.
    pub(crate) items: &'a str,
    /// So many records an earlier run has read from it, which begin like this.
    pub(crate) beginning: Option<(u64, Mark)>,
}

impl Records {
    pub(crate) fn open(input: &Input<'_>) -> Outcome<Self> {
        let path = input.path;
        let (bytes_in, bytes): (Box<dyn Read + Send>, _) = if path == "-" {
            (Box::new(io::stdin()), None)
        } else {
            let file = File::open(path).map_err(|error| Failure::Input(format!("{path}: {error}")))?;
            let bytes =
                file.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
            (Box::new(file), bytes)
        };
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let position = std::sync::Arc::default();
        let counted = Counted { input: bytes_in, position: std::sync::Arc::clone(&position) };
        let reader = BufReader::with_capacity(1 << 16, counted);
        let mut sink = Sink { sender, number: 0, name: path.to_owned() };
        let (layout, items, beginning) = (input.layout, input.items.to_owned(), input.beginning);
        std::thread::spawn(move || {
            if let Err(failure) = read(reader, layout, &items, beginning, &mut sink) {
                // Nobody listens any more when this fails.
                let _ = sink.sender.blocking_send(Err(failure));
            }
        });
        Ok(Self { receiver, bytes, position })
    }

    /// The next record; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Outcome<Record>> {
        self.receiver.recv().await
    }
}

/// Counts what was read.
struct Counted {
    input: Box<dyn Read + Send>,
    position: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.position.fetch_add(read as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(read)
    }
}

/// Where the reading thread puts what it has read.
struct Sink {
    sender: mpsc::Sender<Outcome<Record>>,
    number: u64,
    name: String,
}

impl Sink {
    /// False when nobody wants more, or the input is another one than it was.
    fn put(&mut self, value: Value, marks: &Marks) -> bool {
        self.number += 1;
        marks.check(self.number);
        let record = Record { number: self.number, value, end: marks.get() };
        !marks.is_refused() && self.sender.blocking_send(Ok(record)).is_ok()
    }

    fn wrong(&self, place: &str, why: &dyn std::fmt::Display) -> Failure {
        Failure::Input(format!("{}: {place}: {why}", self.name))
    }
}

fn read(
    mut reader: impl BufRead,
    layout: Layout,
    items: &str,
    beginning: Option<(u64, Mark)>,
    sink: &mut Sink,
) -> Outcome {
    let first = first_byte(&mut reader).map_err(|error| sink.wrong("read", &error))?;
    let (head, is_document) = match (layout, first) {
        (_, None) => (Vec::new(), false),
        (Layout::Array, _) => (Vec::new(), true),
        (Layout::Ndjson, _) => (Vec::new(), false),
        (Layout::Auto, Some(first)) => {
            layout::recognise(&mut reader, first, items).map_err(|error| sink.wrong("read", &error))?
        }
    };
    let mut reader = Digest::new(io::Cursor::new(head).chain(reader), beginning);
    match is_document {
        true => document(&mut reader, items, sink)?,
        false => lines(&mut reader, sink)?,
    }
    match reader.refusal() {
        Some(why) if !sink.sender.is_closed() => Err(Failure::Input(format!("{}: {why}", sink.name))),
        _ => Ok(()),
    }
}

/// The first byte that is not blank, which is left in place. A byte order mark is skipped.
fn first_byte(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    if reader.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    loop {
        match reader.fill_buf()?.first() {
            Some(byte) if byte.is_ascii_whitespace() => reader.consume(1),
            first => return Ok(first.copied()),
        }
    }
}

fn lines<R: BufRead>(reader: &mut Digest<R>, sink: &mut Sink) -> Outcome {
    let mut line = Vec::new();
    for number in 1_u64.. {
        let place = format!("line {number}");
        line.clear();
        let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        match read.map_err(|error| sink.wrong(&place, &error))? as u64 {
            0 => return Ok(()),
            MAX_LINE => return Err(sink.wrong(&place, &"is longer than 64 MiB")),
            _ if line.iter().all(u8::is_ascii_whitespace) => continue,
            _ => {}
        }
        let value = json::from_slice(&line).map_err(|error| sink.wrong(&place, &error))?;
        if !sink.put(value, reader.marks()) {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads the elements of an array one by one.
fn document<R: BufRead>(reader: &mut Digest<R>, items: &str, sink: &mut Sink) -> Outcome {
    let marks = reader.marks().clone();
    let mut deserializer = serde_json::Deserializer::from_reader(&mut *reader);
    let mut found = false;
    let read = deserializer.deserialize_any(Document { items, sink, found: &mut found, marks: &marks });
    match read.and_then(|()| deserializer.end()) {
        _ if sink.sender.is_closed() || marks.is_refused() => Ok(()),
        Err(error) => {
            let why = format!("{error}; if each line is a record, --layout ndjson says so");
            Err(sink.wrong(&format!("after record {}", sink.number), &why))
        }
        Ok(()) if !found => Err(sink.wrong(
            "document",
            &format!("has no array '{items}': name it with --items, or say --layout ndjson if each line is a record"),
        )),
        Ok(()) => Ok(()),
    }
}

struct Document<'a> {
    items: &'a str,
    sink: &'a mut Sink,
    found: &'a mut bool,
    marks: &'a Marks,
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an array, or an object with the array '{}'", self.items)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        *self.found = true;
        while let Some(value) = elements.next_element::<StrictValue>()? {
            if !self.sink.put(value.into_value(), self.marks) {
                return Err(A::Error::custom("nobody wants more"));
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            if key != self.items {
                entries.next_value::<IgnoredAny>()?;
                continue;
            }
            if *self.found {
                return Err(A::Error::custom(format!("the array '{key}' is given twice")));
            }
            entries.next_value_seed(Document {
                items: self.items,
                sink: &mut *self.sink,
                found: &mut *self.found,
                marks: self.marks,
            })?;
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str, layout: Layout) -> (Vec<Value>, Option<String>) {
        let (sender, mut receiver) = mpsc::channel(100);
        let mut sink = Sink { sender, number: 0, name: "input".to_owned() };
        let ended = read(text.as_bytes(), layout, "features", None, &mut sink);
        drop(sink);
        let mut values = Vec::new();
        while let Ok(Ok(record)) = receiver.try_recv() {
            values.push(record.value);
        }
        (values, ended.err().map(|failure| failure.message()))
    }

    #[test]
    fn the_content_decides_on_the_layout() {
        let collection = r#"{"type": "C", "features": [{"a": 1}, {"a": 2}]}"#;
        let pretty = "{\n \"features\": [\n{\"a\": 1}\n]\n}";
        for (text, records) in [
            ("", 0),
            (" \n ", 0),
            ("{\"a\": 1}\n{\"a\": 2}\n", 2),
            ("{\"a\": 1}", 1),
            ("\u{feff}\n {\"a\": 1}\r\n\r\n{\"a\": 2}", 2),
            ("1\n2\n3\n", 3),
            ("\"x\"\nnull\n", 2),
            (collection, 2),
            (&format!("{collection}\n\n"), 2),
            // A collection per line is a record per line: nothing of them is taken apart.
            (&format!("{collection}\n{collection}\n"), 2),
            (&format!("{collection}\n{{\"a\": 1}}\n{{}}"), 3),
            (pretty, 1),
            ("[1, 2, 3]", 3),
            ("[1, 2, 3]\n[4]\n", 2),
            ("[\n1,\n2\n]", 2),
            ("[{\"a\": 1},\n{\"a\": 2}]\n", 2),
            ("{\"features\": {\"a\": [1]}}", 1),
        ] {
            let (values, failure) = read_all(text, Layout::Auto);
            assert_eq!((values.len(), failure), (records, None), "{text:?}");
        }
        assert_eq!(read_all(collection, Layout::Ndjson).0.len(), 1);
        assert_eq!(read_all("[1, 2]\n[3]", Layout::Array).0.len(), 2);
    }

    #[test]
    fn a_layout_that_is_wrong_names_the_other() {
        for (text, layout, why) in [
            ("{\"a\": 1}\n{\"a\": 2}\n", Layout::Array, "--layout ndjson"),
            ("[1]\n[2]\n", Layout::Array, "--layout ndjson"),
            ("{\n\"elements\": [1]}", Layout::Auto, "--items"),
            ("{\"a\": 1\n", Layout::Auto, "--layout ndjson"),
            ("{\"a\": }\n{}\n", Layout::Auto, "line 1"),
        ] {
            let (_, failure) = read_all(text, layout);
            assert!(failure.as_ref().is_some_and(|failure| failure.contains(why)), "{text:?}: {failure:?}");
        }
    }

    #[test]
    fn a_key_that_is_given_twice_is_refused() {
        for text in [
            "{\"a\": 1, \"a\": 2}\n",
            "{\"b\": 1}\n{\"a\": {\"b\": 1, \"b\": 2}}\n",
            "[{\"a\": 1, \"a\": 2}]",
            "{\n\"features\": [1], \"features\": [2]}",
        ] {
            let (values, failure) = read_all(text, Layout::Auto);
            assert!(
                failure.as_ref().is_some_and(|failure| failure.contains("twice")),
                "{text:?}: {failure:?}"
            );
            assert!(values.len() < 2, "{values:?}");
        }
    }
}
