//! Records from a file or stdin. A thread reads a few of them ahead, so that memory does not grow with the input.

mod digest;
mod layout;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use a3s_event::json::{self, StrictValue};
use clap::ValueEnum;
use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer as _, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokio::sync::mpsc;

pub(crate) use self::digest::Mark;
use self::digest::{Digest, Marks};
use crate::failure::{Failure, Outcome};
use crate::text::shorten;

/// Maximum number of records read ahead.
const IN_FLIGHT: usize = 2_000;
/// Maximum size of a line of NDJSON in bytes; larger than any event.
const MAX_LINE: u64 = 64 << 20;
/// Maximum length of a key in a message.
const MAX_KEY: usize = 60;

/// The layout of records in an input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// By content: `array` for one array or an object that holds one, `ndjson` for a value per line, else `json`
    #[default]
    Auto,
    /// One JSON value per line
    Ndjson,
    /// JSON values one after the other, each on one line or on several
    Json,
    /// One JSON array, or an object that holds one
    Array,
}

/// A record and its number, which begins at 1.
pub(crate) struct Record {
    pub(crate) number: u64,
    pub(crate) value: Value,
    /// The mark at its end.
    pub(crate) end: Mark,
}

/// Reads the records of an input.
pub(crate) struct Records {
    receiver: mpsc::Receiver<Outcome<Record>>,
    /// Size of the input in bytes, if known.
    pub(crate) bytes: Option<u64>,
    position: Arc<AtomicU64>,
}

/// An input and its layout.
pub(crate) struct Input<'a> {
    /// A file, or `-` for stdin.
    pub(crate) path: &'a str,
    pub(crate) layout: Layout,
    /// The key of the array in an object.
    pub(crate) items: &'a str,
    /// Number of records that an earlier run has read, and the mark at their end.
    pub(crate) beginning: Option<(u64, Mark)>,
}

impl Records {
    pub(crate) fn open(input: &Input<'_>) -> Outcome<Self> {
        let path = input.path;
        let (bytes_in, bytes): (Box<dyn Read + Send>, _) = if path == "-" {
            (Box::new(stdin()?), None)
        } else {
            let file = File::open(path).map_err(|error| Failure::Input(format!("{path}: {error}")))?;
            let bytes =
                file.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
            (Box::new(file), bytes)
        };
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let position = Arc::default();
        let counted = Counted { input: bytes_in, position: Arc::clone(&position) };
        let reader = BufReader::with_capacity(1 << 16, counted);
        let name = if path == "-" { "stdin" } else { path };
        let mut sink = Sink { sender, number: 0, name: name.to_owned() };
        let (layout, items, beginning) = (input.layout, input.items.to_owned(), input.beginning);
        std::thread::spawn(move || {
            if let Err(failure) = read(reader, layout, &items, beginning, &mut sink) {
                // It fails only after the receiver was dropped.
                let _ = sink.sender.blocking_send(Err(failure));
            }
        });
        Ok(Self { receiver, bytes, position })
    }

    /// Returns the number of bytes read so far.
    pub(crate) fn read(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Returns the next record; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Outcome<Record>> {
        self.receiver.recv().await
    }
}

/// Opens stdin. Fails if it is closed: the runtime replaces it by `/dev/null`, which would look empty.
pub(crate) fn stdin() -> Outcome<io::Stdin> {
    let stdin = io::stdin();
    #[cfg(unix)]
    if is_null_device(&stdin) {
        return Err(Failure::Input(
            "stdin is closed or /dev/null: pipe the input in, or name a file instead of -".to_owned(),
        ));
    }
    Ok(stdin)
}

#[cfg(unix)]
fn is_null_device(stdin: &io::Stdin) -> bool {
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let device = |metadata: std::fs::Metadata| metadata.file_type().is_char_device().then(|| metadata.rdev());
    let input = stdin.as_fd().try_clone_to_owned().and_then(|input| File::from(input).metadata());
    match (input.map(device), std::fs::metadata("/dev/null").map(device)) {
        (Ok(Some(input)), Ok(Some(null))) => input == null,
        _ => false,
    }
}

/// A reader that counts its bytes.
struct Counted {
    input: Box<dyn Read + Send>,
    position: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.position.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// The reading thread's side of the channel.
struct Sink {
    sender: mpsc::Sender<Outcome<Record>>,
    number: u64,
    name: String,
}

impl Sink {
    /// Returns `false` if no more records are wanted, or the input differs from that of the earlier run.
    fn put(&mut self, value: Value, marks: &Marks) -> bool {
        self.number += 1;
        marks.check(self.number);
        let record = Record { number: self.number, value, end: marks.get() };
        !marks.is_refused() && self.sender.blocking_send(Ok(record)).is_ok()
    }

    /// Returns the current place in a document.
    fn place(&self) -> String {
        match self.number {
            0 => "document".to_owned(),
            number => format!("after record {number}"),
        }
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
    let (head, is_lines) = match (layout, first) {
        (_, None) | (Layout::Ndjson, _) => (Vec::new(), true),
        (Layout::Array | Layout::Json, _) => (Vec::new(), false),
        (Layout::Auto, Some(first)) => {
            let recognised = layout::recognise(&mut reader, first, items);
            let (head, is_document) = recognised.map_err(|error| sink.wrong("read", &error))?;
            (head, !is_document)
        }
    };
    let mut reader = Digest::new(io::Cursor::new(head).chain(reader), beginning);
    match is_lines {
        true => lines(&mut reader, sink)?,
        false => document(&mut reader, layout, items, sink)?,
    }
    match reader.refusal() {
        Some(why) if !sink.sender.is_closed() => Err(Failure::Input(format!("{}: {why}", sink.name))),
        _ => Ok(()),
    }
}

/// Returns the first byte that is not blank, without consuming it. Skips a byte order mark.
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
        let value = json::from_slice(&line).map_err(|error| match error.to_string() {
            why if why.starts_with("trailing characters") => {
                sink.wrong(&place, &format!("{why}; --layout json reads several values per line"))
            }
            why => sink.wrong(&place, &why),
        })?;
        if !sink.put(value, reader.marks()) {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads the elements of an array one by one, or values that follow each other.
fn document<R: BufRead>(reader: &mut Digest<R>, layout: Layout, items: &str, sink: &mut Sink) -> Outcome {
    let marks = reader.marks().clone();
    let room = Rc::new(Cell::new(MAX_LINE));
    let bounded = Bounded { reader, room: Rc::clone(&room) };
    let mut deserializer = serde_json::Deserializer::from_reader(bounded);
    let mut found = false;
    let mut read = match layout {
        Layout::Json => Ok(()),
        layout => deserializer.deserialize_any(Document {
            items,
            is_record_else: layout == Layout::Auto,
            sink,
            found: &mut found,
            marks: &marks,
            room: &room,
        }),
    };
    let is_values = layout == Layout::Json || (layout == Layout::Auto && !found);
    while is_values && read.is_ok() && deserializer.end().is_err() {
        room.set(MAX_LINE);
        read = StrictValue::deserialize(&mut deserializer).and_then(|value| {
            let is_wanted = sink.put(value.into_value(), &marks);
            is_wanted.then_some(()).ok_or_else(|| serde_json::Error::custom("no more records are wanted"))
        });
    }
    match read.and_then(|()| deserializer.end()) {
        _ if sink.sender.is_closed() || marks.is_refused() => Ok(()),
        Err(error) => Err(sink.wrong(&sink.place(), &explained(&error))),
        Ok(()) if !found && !is_values => Err(sink.wrong(
            "document",
            &format!("has no array '{items}': name it with --items, or use --layout ndjson if each line is a record"),
        )),
        Ok(()) => Ok(()),
    }
}

/// Adds the possible layouts to the error of a document.
fn explained(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match (error.is_data(), text.rsplit_once(" at line ")) {
        // The position at the end of the document does not help.
        (true, Some((text, _))) if text.contains("--items") => text.to_owned(),
        (true, _) => text,
        (false, _) => format!(
            "{text}; if each line is a record, use --layout ndjson, and for values over several lines --layout json"
        ),
    }
}

/// A reader that fails at a value longer than any event, so that memory does not grow with the input.
struct Bounded<R> {
    reader: R,
    /// Remaining bytes of the value; unlimited inside an array of records.
    room: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        match self.room.get().checked_sub(read as u64) {
            Some(room) => self.room.set(room),
            None => {
                return Err(io::Error::other(
                    "a JSON value is longer than 64 MiB: name its array of records with --items",
                ));
            }
        }
        Ok(read)
    }
}

struct Document<'a> {
    items: &'a str,
    /// If true, an object without the array is a record.
    is_record_else: bool,
    sink: &'a mut Sink,
    found: &'a mut bool,
    marks: &'a Marks,
    room: &'a Cell<u64>,
}

impl Document<'_> {
    /// Takes an object as a record, unless it looks like one that holds the records.
    fn take(self, record: serde_json::Map<String, Value>) -> Result<(), String> {
        let holds_objects =
            |value: &Value| value.as_array().is_some_and(|list| list.iter().any(Value::is_object));
        if let Some((key, _)) = record.iter().find(|(_, value)| holds_objects(value)) {
            return Err(format!(
                "has no array '{}', but '{key}': --items '{key}' imports the elements of that array, and --layout json imports \
                 the document as one record",
                self.items,
                key = shorten(key, MAX_KEY)
            ));
        }
        self.sink
            .put(Value::Object(record), self.marks)
            .then_some(())
            .ok_or_else(|| "no more records are wanted".to_owned())
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an array, or an object with the array '{}'", self.items)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        *self.found = true;
        self.room.set(u64::MAX);
        while let Some(value) = elements.next_element::<StrictValue>()? {
            if !self.sink.put(value.into_value(), self.marks) {
                return Err(A::Error::custom("no more records are wanted"));
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut record = serde_json::Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key != self.items && self.is_record_else && !*self.found {
                let value = entries.next_value::<StrictValue>()?.into_value();
                if record.contains_key(&key) {
                    return Err(A::Error::custom(format!(
                        "the key '{}' is given twice",
                        shorten(&key, MAX_KEY)
                    )));
                }
                record.insert(key, value);
                continue;
            }
            if key != self.items {
                entries.next_value::<IgnoredAny>()?;
                continue;
            }
            record.clear();
            if *self.found {
                return Err(A::Error::custom(format!("the array '{key}' is given twice")));
            }
            entries.next_value_seed(Document {
                items: self.items,
                is_record_else: false,
                sink: &mut *self.sink,
                found: &mut *self.found,
                marks: self.marks,
                room: self.room,
            })?;
        }
        match self.is_record_else && !*self.found {
            true => self.take(record).map_err(A::Error::custom),
            false => Ok(()),
        }
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
            // A collection per line is a record per line and stays whole.
            (&format!("{collection}\n{collection}\n"), 2),
            (&format!("{collection}\n{{\"a\": 1}}\n{{}}"), 3),
            (pretty, 1),
            ("[1, 2, 3]", 3),
            ("[1, 2, 3]\n[4]\n", 2),
            ("[\n1,\n2\n]", 2),
            ("[{\"a\": 1},\n{\"a\": 2}]\n", 2),
            ("{\"features\": {\"a\": [1]}}", 1),
            // Values over several lines, as jq prints them.
            ("{\n\"a\": 1}", 1),
            ("{\n\"a\": 1}\n{\n\"a\": 2\n}\n3 4", 4),
            ("{\n\"tags\": [\"x\"]\n}{\"a\": [{}]}", 2),
        ] {
            let (values, failure) = read_all(text, Layout::Auto);
            assert_eq!((values.len(), failure), (records, None), "{text:?}");
        }
        assert_eq!(read_all(collection, Layout::Ndjson).0.len(), 1);
        assert_eq!(read_all("[1, 2]\n[3]", Layout::Array).0.len(), 2);
        assert_eq!(
            read_all("{\n\"data\": [{}]}[1, 2] 3", Layout::Json),
            (vec![serde_json::json!({"data": [{}]}), serde_json::json!([1, 2]), serde_json::json!(3),], None)
        );
    }

    #[test]
    fn a_layout_that_is_wrong_names_the_other() {
        for (text, layout, why) in [
            ("{\"a\": 1}\n{\"a\": 2}\n", Layout::Array, "--layout ndjson"),
            ("[1]\n[2]\n", Layout::Array, "--layout ndjson"),
            ("{\n\"elements\": [{}]}", Layout::Auto, "--items 'elements'"),
            ("{\"a\": 1}{\"a\": 2}\n", Layout::Auto, "--layout json"),
            ("{\n\"elements\": [1]}", Layout::Array, "--items"),
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
            "{\n\"a\": 1, \"a\": 2}",
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
