//! How records follow each other, from the beginning of the input. A name says nothing certain: an hour of an archive is
//! called `.json` and holds a record per line.

use std::io::{self, BufRead};

use serde_json::Value;

/// Longest first line that may be a record of its own: an event is not longer.
const MAX_FIRST: u64 = 1 << 20;

/// What was read to find out, and whether the input is one document. Reads no further than it must, because the rest of a
/// pipe may come late: the first line, and the byte behind it only where that line is a whole document.
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
        // Its first value goes on in the next line.
        Err(error) if error.is_eof() => Ok((head, true)),
        // To be refused as a line, with its number.
        Err(_) => Ok((head, false)),
        Ok(Value::Object(fields)) if !fields.get(items).is_some_and(Value::is_array) => Ok((head, false)),
        Ok(_) => {
            let is_all = skip_blank(reader, &mut head)?;
            Ok((head, is_all))
        }
    }
}

/// Moves blank bytes into the head; true when nothing else follows.
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
