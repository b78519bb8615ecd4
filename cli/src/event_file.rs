//! Files of events, as `history --output ndjson` and `dump` write them: one JSON object per stored record.
//!
//! A dump ends with an object that holds the number of records.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use a3s_event::Event;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::{Failure, Outcome};

/// Maximum size of the last line of a file in bytes.
const MAX_END: u64 = 4_096;
/// The error for a file without the last line of a dump.
pub(crate) const CUT: &str = "the file does not end with the last line of a dump: it was cut, or it is not a dump. \
                              `import FILE --events` publishes events from any such file";

/// A line of a file of events.
pub(crate) enum Line {
    Event(Box<Event>),
    /// A record that was unreadable when the file was written.
    Unreadable {
        sequence: u64,
        reason: String,
    },
    End(End),
}

/// The last line of a dump. A file without it is truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct End {
    /// Number of lines before this one.
    pub(crate) records: u64,
    /// Sequence of the last record.
    pub(crate) last_sequence: Option<u64>,
}

/// The JSON form of the last line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndLine {
    pub(crate) end: End,
}

/// Reads a line: an event, alone or in the row of a listing, an unreadable record, or the end.
pub(crate) fn read(mut record: Value) -> Outcome<Line> {
    if let (Some(sequence), Some(reason)) =
        (record.get("sequence").and_then(Value::as_u64), record.get("unreadable").and_then(Value::as_str))
    {
        return Ok(Line::Unreadable { sequence, reason: reason.to_owned() });
    }
    if is_end(&record) {
        let end: EndLine = serde_json::from_value(record)
            .map_err(|error| Failure::Input(format!("is not the last line of a dump: {error}")))?;
        return Ok(Line::End(end.end));
    }
    let event = match record.get_mut("event") {
        Some(event) if event.is_object() => event.take(),
        _ => record,
    };
    let event = serde_json::from_value(event).map(Box::new);
    event.map(Line::Event).map_err(|error| Failure::Input(format!("is not an event: {error}")))
}

/// Returns `true` for the last line of a dump.
pub(crate) fn is_end(record: &Value) -> bool {
    record.get("end").is_some_and(Value::is_object) && record.get("event").is_none()
}

/// Reads the last line of a dump before the rest; `None` for a pipe. Fails if the file ends with another line.
pub(crate) fn end_of(path: &str) -> Outcome<Option<End>> {
    let unreadable = |error: io::Error| Failure::Input(format!("{path}: {error}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(MAX_END))).map_err(unreadable)?;
    let mut end = Vec::new();
    file.read_to_end(&mut end).map_err(unreadable)?;
    let last = end.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    match serde_json::from_slice::<EndLine>(last) {
        Ok(line) => Ok(Some(line.end)),
        Err(_) => Err(Failure::Input(format!("{path}: {CUT}. Nothing was restored"))),
    }
}

/// Checks that sequences rise. In a file that is newest first they fall.
#[derive(Debug, Default)]
pub(crate) struct Order {
    last: Option<u64>,
}

impl Order {
    /// Returns why the record is out of order, if it is.
    pub(crate) fn check(&mut self, number: u64, record: &Value) -> Result<(), String> {
        let Some(sequence) = record.get("sequence").and_then(Value::as_u64) else { return Ok(()) };
        match self.last.replace(sequence) {
            Some(last) if sequence <= last => Err(format!(
                "record {number} has sequence {sequence} and the one before it {last}, so the file is not oldest first"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sequences_rise() {
        let falls = |sequences: &[u64]| {
            let mut order = Order::default();
            let fallen = |sequence| order.check(1, &json!({"sequence": sequence})).is_err();
            sequences.iter().copied().map(fallen).filter(|fallen| *fallen).count()
        };
        assert_eq!(
            (falls(&[1, 2, 5]), falls(&[3, 2, 1]), falls(&[1, 2, 1, 2]), falls(&[2, 2])),
            (0, 2, 1, 1)
        );
        assert!(Order::default().check(1, &json!({"id": "x"})).is_ok());
    }

    #[test]
    fn lines_are_told_apart() {
        let event = serde_json::to_value(Event::new("events.a", "a", "", "", json!({"end": {}}))).unwrap();
        assert!(matches!(read(event.clone()), Ok(Line::Event(_))));
        assert!(matches!(read(json!({"sequence": 1, "event": event})), Ok(Line::Event(_))));
        assert!(matches!(
            read(json!({"sequence": 2, "unreadable": "damaged"})),
            Ok(Line::Unreadable { sequence: 2, .. })
        ));
        let end = serde_json::to_value(EndLine { end: End { records: 7, last_sequence: Some(9) } }).unwrap();
        assert_eq!(end, json!({"end": {"records": 7, "lastSequence": 9}}));
        assert!(matches!(read(end), Ok(Line::End(End { records: 7, last_sequence: Some(9) }))));
        for wrong in [json!(1), json!({}), json!({"end": {}}), json!({"end": {"records": -1}})] {
            assert_eq!(read(wrong).err().map(|failure| failure.code()), Some(3));
        }
    }
}
