//! Detects the layout of records from the beginning of the input.
//!
//! The name of a file is no evidence: an hour of an archive is called `.json` and holds a record per line.

use std::io::{self, BufRead};

use serde_json::Value;

/// Maximum size in bytes of a first line that is a record: no event is longer.
const MAX_FIRST: u64 = 1 << 20;

/// Returns the bytes it read, and `true` if the input is one document.
///
/// It reads as little as possible, because the rest of a pipe may arrive late: the first line, and the byte behind it
/// only if that line is a whole document.
pub(super) fn recognise(reader: &mut impl BufRead, first: u8, items: &str) -> io::Result<(Vec<u8>, bool)> {
    let mut head = Vec::new();
    if !matches!(first, b'{' | b'[') {
        return Ok((head, false));
    }
    let read = io::Read::take(&mut *reader, MAX_FIRST).read_until(b'\n', &mut head)? as u64;
    if read == MAX_FIRST && !head.ends_with(b"\n") {
        return Ok((head, true));
    }
    match serde_json::from_slice::<Value>(&head) {
        // Its first value continues on the next line.
        Err(error) if error.is_eof() => Ok((head, true)),
        // The reader of lines refuses it, with its number.
        Err(_) => Ok((head, false)),
        Ok(Value::Object(fields)) if !fields.get(items).is_some_and(Value::is_array) => Ok((head, false)),
        Ok(_) => {
            let is_all = skip_blank(reader, &mut head)?;
            Ok((head, is_all))
        }
    }
}

/// Moves blank bytes into the head. Returns `true` at the end of the input.
fn skip_blank(reader: &mut impl BufRead, head: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(true);
        }
        let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let is_at_record = blank < buffer.len();
        head.extend_from_slice(buffer.get(..blank).unwrap_or_default());
        reader.consume(blank);
        if is_at_record {
            return Ok(false);
        }
    }
}
