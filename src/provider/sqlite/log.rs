//! The write-ahead log as a file: verifies it and writes it to the disk again.
//!
//! After a failed sync, the operating system may discard what it could not write, and treat it as written. The next
//! sync then succeeds without reporting the loss. The verified log is therefore written once more, which makes its
//! content new for the system.
//!
//! The format is that of <https://sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use rusqlite::Connection;

use super::error::Sql;
use crate::private_file;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// Magic number of a log. Its last bit gives the byte order in which checksums read the log.
const MAGIC: u32 = 0x377F_0682;

/// Reason why the log could not be written again.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotRenewed {
    #[error("{0}")]
    Sql(#[from] rusqlite::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Part of the log that the connections use is no longer in it.
    #[error("the write-ahead log has {sound} valid frames, but {expected} are in use")]
    Damaged { sound: u64, expected: u64 },
}

/// Part of the log that is in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogState {
    pub(super) frames: u64,
    /// Number of frames that are already copied into the file.
    pub(super) copied: u64,
}

impl LogState {
    /// Runs a checkpoint in this mode and returns the state of the log. `NOOP` copies nothing. Without a log, all
    /// numbers are 0.
    pub(super) fn after(connection: &Connection, mode: &str) -> Sql<Self> {
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        connection
            .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?
            .query_row([], |row| Ok(Self { frames: number(row.get(1)?), copied: number(row.get(2)?) }))
    }
}

/// Writes the log once more and syncs it, if the part in use is sound. Blocks other writers meanwhile.
pub(super) fn renew(connection: &Connection, path: &Path) -> Result<(), NotRenewed> {
    // A transaction cannot run a checkpoint, so the state is read first. If another process empties the log in between,
    // the next attempt succeeds.
    let LogState { frames, .. } = LogState::after(connection, "NOOP")?;
    // An empty write transaction keeps others from writing and from emptying the log.
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let renewed = write_again(path, frames);
    let ended = connection.execute_batch("ROLLBACK");
    renewed?;
    Ok(ended?)
}

fn write_again(path: &Path, expected: u64) -> Result<(), NotRenewed> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut log = Vec::new();
    file.read_to_end(&mut log)?;
    let sound = committed_frames(&log);
    if sound < expected {
        return Err(NotRenewed::Damaged { sound, expected });
    }
    file.rewind()?;
    file.write_all(&log)?;
    file.sync_all()?;
    // Its directory entry must be on the disk too.
    Ok(private_file::sync_parent(path)?)
}

/// Returns the number of frames that belong to complete transactions.
fn committed_frames(log: &[u8]) -> u64 {
    let Some((header, frames)) = log.split_at_checked(HEADER) else { return 0 };
    let (Some(magic), Some(page_size)) = (number(header, 0), number(header, 8)) else { return 0 };
    if magic & !1 != MAGIC {
        return 0;
    }
    let mut sum = Checksum { big_endian: magic & 1 == 1, s0: 0, s1: 0 };
    sum.add(header.get(..24).unwrap_or_default());
    let Ok(page_size) = usize::try_from(page_size) else { return 0 };
    let salts = header.get(16..24);
    let mut committed = 0;
    for (frame, place) in frames.chunks_exact(FRAME_HEADER + page_size).zip(1..) {
        if frame.get(8..16) != salts {
            break;
        }
        sum.add(frame.get(..8).unwrap_or_default());
        sum.add(frame.get(FRAME_HEADER..).unwrap_or_default());
        if (number(frame, 16), number(frame, 20)) != (Some(sum.s0), Some(sum.s1)) {
            break;
        }
        // Only the last frame of a transaction contains the size of the file.
        if number(frame, 4).is_some_and(|pages| pages != 0) {
            committed = place;
        }
    }
    committed
}

/// Reads a number of four bytes, most significant first.
fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Checksum that continues from frame to frame.
struct Checksum {
    big_endian: bool,
    s0: u32,
    s1: u32,
}

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        let read = |word: &[u8; 4]| {
            if self.big_endian { u32::from_be_bytes(*word) } else { u32::from_le_bytes(*word) }
        };
        for [a, b, c, d, e, f, g, h] in bytes.as_chunks::<8>().0 {
            self.s0 = self.s0.wrapping_add(read(&[*a, *b, *c, *d])).wrapping_add(self.s1);
            self.s1 = self.s1.wrapping_add(read(&[*e, *f, *g, *h])).wrapping_add(self.s0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a log with three transactions.
    fn logged() -> (tempfile::TempDir, Connection) {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(folder.path().join("e.db")).unwrap();
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
        for statement in
            ["CREATE TABLE t (x)", "INSERT INTO t VALUES (zeroblob(9000))", "INSERT INTO t VALUES (2)"]
        {
            connection.execute_batch(statement).unwrap();
        }
        (folder, connection)
    }

    #[test]
    fn a_sound_log_is_written_again_as_it_was() {
        let (folder, connection) = logged();
        let path = folder.path().join("e.db-wal");
        let before = std::fs::read(&path).unwrap();
        let state = LogState::after(&connection, "NOOP").unwrap();
        assert_eq!(committed_frames(&before), state.frames);
        assert!(state.frames > 3 && state.copied == 0, "{state:?}");
        renew(&connection, &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert!(connection.is_autocommit());
        let copied = LogState::after(&connection, "TRUNCATE").unwrap();
        assert_eq!((copied.frames, std::fs::read(&path).unwrap().len()), (0, 0));
        renew(&connection, &path).unwrap();
    }

    #[test]
    fn what_is_not_in_the_log_any_more_is_noticed() {
        let (folder, connection) = logged();
        let path = folder.path().join("e.db-wal");
        let sound = std::fs::read(&path).unwrap();
        let frame = FRAME_HEADER + 4_096;
        for damaged in [HEADER + 30, HEADER + frame + 17, sound.len() - 1, 1, 20] {
            let mut log = sound.clone();
            log[damaged] ^= 1;
            std::fs::write(&path, &log).unwrap();
            let error = renew(&connection, &path).unwrap_err();
            assert!(matches!(error, NotRenewed::Damaged { .. }), "byte {damaged}: {error}");
            assert_eq!(std::fs::read(&path).unwrap(), log, "it was left alone");
        }
        std::fs::write(&path, &sound[..sound.len() - 1]).unwrap();
        assert!(matches!(renew(&connection, &path), Err(NotRenewed::Damaged { .. })));
        std::fs::write(&path, &sound).unwrap();
        renew(&connection, &path).unwrap();
    }
}
