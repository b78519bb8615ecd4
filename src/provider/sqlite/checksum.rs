//! Checksums of rows, which detect damage to stored data.
//!
//! CRC-32 (ISO-HDLC, as in gzip and PNG) over the fields in order. Numbers count as eight bytes, least significant
//! first.

use crc32fast::Hasher;
use rusqlite::ffi;

/// Returns the checksum of an event's row.
pub(super) fn of_event(sequence: i64, subject: i64, stored_at: i64, record: &[u8]) -> i64 {
    of(record, &[sequence, subject, stored_at])
}

/// Returns the checksum of some bytes and numbers.
pub(super) fn of(bytes: &[u8], numbers: &[i64]) -> i64 {
    let mut hasher = Hasher::new();
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(bytes);
    i64::from(hasher.finalize())
}

/// Returns the error for a row that does not match its checksum. Other damage to the file has the same error code.
pub(super) fn mismatch(row: &str) -> rusqlite::Error {
    let damaged = ffi::Error::new(ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(damaged, Some(format!("{row} does not match its checksum")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_published_crc_and_covers_every_field() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(of(b"123456789", &[]), 0xCBF4_3926);
        let right = of_event(1, 2, 3, b"record");
        for wrong in
            [of_event(0, 2, 3, b"record"), of_event(1, 0, 3, b"record"), of_event(1, 2, 0, b"record")]
        {
            assert_ne!(right, wrong);
        }
        assert_ne!(right, of_event(1, 2, 3, b"recorD"));
    }
}
