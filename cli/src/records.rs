//! Records from a file or stdin, read on a thread of its own and handed over a few at a time: memory does not grow with the
//! input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use clap::ValueEnum;
use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::failure::{Failure, Outcome};

/// Records on their way.
const IN_FLIGHT: usize = 2_000;
/// Longest line of NDJSON; longer than any event.
const MAX_LINE: u64 = 64 << 20;

/// How records follow each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// `array` when the input begins with `[` or the file is named .geojson or .json, else `ndjson`
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
}

/// Records that are being read.
pub(crate) struct Records {
    receiver: mpsc::Receiver<Outcome<Record>>,
    /// Size of the input in bytes, when it is known.
    pub(crate) bytes: Option<u64>,
    pub(crate) position: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Records {
    /// Opens a file, or stdin for `-`. `items` is the key of the array in an object.
    pub(crate) fn open(path: &str, layout: Layout, items: &str) -> Outcome<Self> {
        let (input, bytes): (Box<dyn Read + Send>, _) = if path == "-" {
            (Box::new(io::stdin()), None)
        } else {
            let file = File::open(path).map_err(|error| Failure::Input(format!("{path}: {error}")))?;
            let bytes =
                file.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
            (Box::new(file), bytes)
        };
        let is_document = layout == Layout::Array
            || layout == Layout::Auto
                && Path::new(path).extension().is_some_and(|kind| kind == "geojson" || kind == "json");
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let position = std::sync::Arc::default();
        let reader =
            BufReader::with_capacity(1 << 16, Counted { input, position: std::sync::Arc::clone(&position) });
        let mut sink = Sink { sender, number: 0, name: path.to_owned() };
        let items = items.to_owned();
        std::thread::spawn(move || {
            if let Err(failure) = read(reader, layout, is_document, &items, &mut sink) {
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
    /// False when nobody wants more.
    fn put(&mut self, value: Value) -> bool {
        self.number += 1;
        self.sender.blocking_send(Ok(Record { number: self.number, value })).is_ok()
    }

    fn wrong(&self, place: &str, why: &dyn std::fmt::Display) -> Failure {
        Failure::Input(format!("{}: {place}: {why}", self.name))
    }
}

fn read(
    mut reader: impl BufRead,
    layout: Layout,
    is_document: bool,
    items: &str,
    sink: &mut Sink,
) -> Outcome {
    let first = first_byte(&mut reader).map_err(|error| sink.wrong("read", &error))?;
    match (layout, first) {
        (_, None) => Ok(()),
        (Layout::Auto, Some(b'[')) => document(reader, items, sink),
        _ if is_document => document(reader, items, sink),
        _ => lines(reader, sink),
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

fn lines(mut reader: impl BufRead, sink: &mut Sink) -> Outcome {
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
        let value = serde_json::from_slice(&line).map_err(|error| sink.wrong(&place, &error))?;
        if !sink.put(value) {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads the elements of an array one by one.
fn document(reader: impl BufRead, items: &str, sink: &mut Sink) -> Outcome {
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let mut found = false;
    let read = deserializer.deserialize_any(Document { items, sink, found: &mut found });
    match read.and_then(|()| deserializer.end()) {
        _ if sink.sender.is_closed() => Ok(()),
        Err(error) => Err(sink.wrong(&format!("after record {}", sink.number), &error)),
        Ok(()) if !found => {
            Err(sink.wrong("document", &format!("has no array '{items}': name it with --items")))
        }
        Ok(()) => Ok(()),
    }
}

struct Document<'a> {
    items: &'a str,
    sink: &'a mut Sink,
    found: &'a mut bool,
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an array, or an object with the array '{}'", self.items)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        *self.found = true;
        while let Some(value) = elements.next_element()? {
            if !self.sink.put(value) {
                return Err(serde::de::Error::custom("nobody wants more"));
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            if key == self.items {
                entries.next_value_seed(Document {
                    items: self.items,
                    sink: &mut *self.sink,
                    found: &mut *self.found,
                })?;
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
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
