//! Files that are not as they should be, and what keeps a file in good order.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
use a3s_event::{ErrorKind, EventError, EventProvider};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{durable, event, open, publish};

pub(crate) fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    (folder, path)
}

async fn refused(path: &Path) -> EventError {
    SqliteProvider::connect(SqliteConfig::file(path)).await.unwrap_err()
}

/// The text of an error with its causes.
pub(crate) fn chain(error: &EventError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}

fn assert_refused(error: &EventError, kind: ErrorKind, path: &Path, why: &str) {
    let text = chain(error);
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.contains(&path.display().to_string()) && text.contains(why), "{text}");
}

#[tokio::test]
async fn a_directory_is_refused() {
    let (folder, _) = folder();
    let error = refused(folder.path()).await;
    assert_refused(&error, ErrorKind::Config, folder.path(), "is a directory");
}

#[tokio::test]
async fn a_database_of_another_program_is_refused_and_left_alone() {
    let (_folder, path) = folder();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = fs::read(&path).unwrap();
    assert_refused(&refused(&path).await, ErrorKind::Config, &path, "another program");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_newer_version_is_refused_and_left_alone() {
    let (_folder, path) = folder();
    open(&path).await.close().await.unwrap();
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 999).unwrap();
    let before = fs::read(&path).unwrap();
    assert_refused(&refused(&path).await, ErrorKind::Config, &path, "version 999");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_left_alone() {
    let (_folder, path) = folder();
    let text = "not a database at all, but long enough to have a header of one\n".repeat(40);
    fs::write(&path, &text).unwrap();
    assert_refused(&refused(&path).await, ErrorKind::Storage, &path, "not a database");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn another_prefix_is_a_conflict() {
    let (_folder, path) = folder();
    open(&path).await.close().await.unwrap();
    let error = SqliteProvider::connect(SqliteConfig::file(&path).subject_prefix("acme")).await.unwrap_err();
    assert!(matches!(&error, EventError::Conflict { field, .. } if field == "subject_prefix"), "{error}");
}

#[tokio::test]
async fn a_path_with_a_typo_makes_no_folder() {
    let (folder, _) = folder();
    let path = folder.path().join("typo").join("events.db");
    let error = SqliteProvider::connect(SqliteConfig::file(&path)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let (said, missing) = (error.to_string(), folder.path().join("typo"));
    assert!(said.contains(&format!("the folder '{}' does not exist", missing.display())), "{said}");
    assert!(!missing.exists());
}

#[tokio::test]
async fn files_are_made_for_their_owner_alone() {
    let (folder, path) = folder();
    let inner = folder.path();
    let provider = open(&path).await;
    publish(&provider, "a").await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for name in ["events.db", "events.db-wal", "events.db-shm"] {
        assert_eq!(mode(&inner.join(name)), 0o600, "{name}");
    }
    let backup = inner.join("backup.db");
    provider.backup(&backup).await.unwrap();
    assert_eq!(mode(&backup), 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_locked_by_another_writer_is_a_timeout_and_reading_goes_on() {
    let (_folder, path) = folder();
    let config = SqliteConfig::file(&path).busy_timeout(Duration::from_millis(100));
    let provider = SqliteProvider::connect(config).await.unwrap();
    publish(&provider, "before").await;
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = provider.publish(&event("locked")).await.unwrap_err();
    assert_refused(&error, ErrorKind::Timeout, &path, "locked");
    assert!(error.is_retryable() && !error.may_be_stored());
    assert!(!provider.health().await.unwrap());
    assert_eq!(provider.history(None, 9).await.unwrap().len(), 1);
    other.execute_batch("ROLLBACK").unwrap();
    assert!(provider.health().await.unwrap());
    assert_eq!(publish(&provider, "after").await, 2);
}

/// A file system of two megabytes. `None` where this program may not mount one.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(disk.0.path());
        mount.output().is_ok_and(|done| done.status.success()).then_some(disk)
    }
}

impl SmallDisk {
    /// Busy it can be for a moment: a process that another test is about to start has the same files open until it runs.
    async fn remount(&self, how: &str) {
        let started = Instant::now();
        loop {
            let mut mount = Command::new("mount");
            let done = mount.args(["-o", &format!("remount,{how}")]).arg(self.0.path()).output().unwrap();
            if done.status.success() {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(10), "{done:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_a_storage_error_and_recovers() {
    let Some(disk) = SmallDisk::mount() else {
        println!("not checked: a small file system cannot be mounted here");
        return;
    };
    let (path, ballast) = (disk.0.path().join("events.db"), disk.0.path().join("ballast"));
    let provider = open(&path).await;
    let mut subscription = provider.subscribe_durable("worker", crate::FILTER).await.unwrap();
    fs::write(&ballast, vec![0; 1_000_000]).unwrap();
    let mut big = event("big");
    big.payload = serde_json::Value::String("x".repeat(50_000));
    let mut stored = 0;
    let error = loop {
        match provider.publish(&big).await {
            Ok(sequence) => stored = sequence,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Storage, "{}", chain(&error));
    assert!(error.is_retryable(), "{}", chain(&error));
    assert!(stored > 0);
    assert!(!provider.health().await.unwrap(), "there is no room for what was refused");
    assert_eq!(provider.history(None, 99).await.unwrap().len() as u64, stored);
    fs::remove_file(&ballast).unwrap();
    assert!(provider.health().await.unwrap());
    assert_eq!(publish(&provider, "again").await, stored + 1);
    for sequence in 1..=stored + 1 {
        let delivery = subscription.next_delivery().await.unwrap().unwrap();
        assert_eq!((delivery.sequence(), delivery.num_delivered()), (sequence, 1));
        delivery.ack().await.unwrap();
    }
    assert_eq!(provider.integrity_check().await.unwrap(), Vec::<String>::new());
    provider.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_is_a_storage_error_and_recovers() {
    let Some(disk) = SmallDisk::mount() else {
        println!("not checked: a small file system cannot be mounted here");
        return;
    };
    let path = disk.0.path().join("events.db");
    disk.remount("ro").await;
    assert_eq!(refused(&path).await.kind(), ErrorKind::Storage);
    disk.remount("rw").await;
    let provider = open(&path).await;
    publish(&provider, "a").await;
    provider.close().await.unwrap();
    disk.remount("ro").await;
    let error = refused(&path).await;
    assert_refused(&error, ErrorKind::Storage, &path, "");
    disk.remount("rw").await;
    assert_eq!(publish(&open(&path).await, "a").await, 2);
}

/// Takes the right to change a file or folder away, also from the superuser. `None` where that is not possible.
struct ReadOnly<'a> {
    path: &'a Path,
    immutable: bool,
}

impl<'a> ReadOnly<'a> {
    fn new(path: &'a Path) -> Option<Self> {
        let mode = if path.is_dir() { 0o500 } else { 0o400 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let mut taken = Self { path, immutable: false };
        if taken.can_change() {
            taken.immutable = chattr("+i", path);
        }
        if taken.can_change() {
            println!("not checked: nothing is read-only for this user here");
            return None;
        }
        Some(taken)
    }

    fn can_change(&self) -> bool {
        if !self.path.is_dir() {
            return fs::OpenOptions::new().write(true).open(self.path).is_ok();
        }
        let probe = self.path.join("probe");
        fs::write(&probe, "").is_ok() && fs::remove_file(&probe).is_ok()
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        if self.immutable {
            chattr("-i", self.path);
        }
        let mode = if self.path.is_dir() { 0o700 } else { 0o600 };
        let _ = fs::set_permissions(self.path, fs::Permissions::from_mode(mode));
    }
}

fn chattr(change: &str, path: &Path) -> bool {
    Command::new("chattr").arg(change).arg(path).output().is_ok_and(|done| done.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_file_is_a_storage_error_and_recovers() {
    let (_folder, path) = folder();
    let provider = open(&path).await;
    publish(&provider, "a").await;
    provider.close().await.unwrap();
    let Some(read_only) = ReadOnly::new(&path) else { return };
    assert_refused(&refused(&path).await, ErrorKind::Storage, &path, "read-only");
    drop(read_only);
    assert_eq!(publish(&open(&path).await, "a").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_folder_is_a_storage_error_and_recovers() {
    let (folder, path) = folder();
    let new = folder.path().join("new.db");
    let provider = open(&path).await;
    publish(&provider, "a").await;
    let Some(read_only) = ReadOnly::new(folder.path()) else { return };
    // Whoever has the file open goes on.
    publish(&provider, "a").await;
    assert_eq!(provider.history(None, 9).await.unwrap().len(), 2);
    assert_refused(&refused(&new).await, ErrorKind::Storage, &new, "");
    drop(read_only);
    provider.close().await.unwrap();
    let read_only = ReadOnly::new(folder.path()).unwrap();
    // There is no place for the log any more.
    assert_refused(&refused(&path).await, ErrorKind::Storage, &path, "");
    drop(read_only);
    assert_eq!(publish(&open(&path).await, "a").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_is_found_and_what_is_beside_it_can_be_read() {
    let (_folder, path) = folder();
    let provider = open(&path).await;
    for _ in 0..500 {
        publish(&provider, "a").await;
    }
    provider.close().await.unwrap();
    let sound = fs::read(&path).unwrap();
    let page_of = |sequence: u64| {
        // A part of the record that no other has.
        let id = format!("\"id\":\"{}\"", id_of(&path, sequence));
        sound.windows(id.len()).position(|window| window == id.as_bytes()).unwrap() / 4_096 * 4_096
    };
    let damaged = page_of(250);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xA5; 2_000], damaged as u64).unwrap();

    let provider = open(&path).await;
    assert_ne!(provider.integrity_check().await.unwrap(), Vec::<String>::new());
    let error = provider.history(None, 1_000).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Storage, false), "{}", chain(&error));
    assert_eq!(provider.history(None, 9).await.unwrap().len(), 9);
    assert_eq!(publish(&provider, "a").await, 501);
    provider.close().await.unwrap();

    // The page from a copy mends it.
    file.write_all_at(&sound[damaged..damaged + 4_096], damaged as u64).unwrap();
    let provider = open(&path).await;
    assert_eq!(provider.integrity_check().await.unwrap(), Vec::<String>::new());
    assert_eq!(provider.history(None, 1_000).await.unwrap().len(), 501);
}

fn id_of(path: &Path, sequence: u64) -> String {
    let connection = Connection::open(path).unwrap();
    let id = "SELECT json_extract(CAST(record AS TEXT), '$.id') FROM events WHERE sequence = ?1";
    connection.query_row(id, [sequence as i64], |row| row.get(0)).unwrap()
}

/// Changes rows behind the back of the provider.
fn tamper(path: &Path, sql: &str) {
    assert_eq!(Connection::open(path).unwrap().execute(sql, []).unwrap(), 1, "{sql}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_surfaces_once_and_is_never_taken_for_right() {
    for damage in [
        // One bit of the payload, which leaves it an event.
        "record = CAST(replace(CAST(record AS TEXT), '\"summary\":\"a\"', '\"summary\":\"c\"') AS BLOB)",
        "record = x'7b7d'",
        "stored_at = stored_at + 1",
        "subject = subject + 1",
        "checksum = checksum + 1",
    ] {
        let (_folder, path) = folder();
        let provider = open(&path).await;
        for topic in ["a", "a", "b"] {
            publish(&provider, topic).await;
        }
        tamper(&path, &format!("UPDATE events SET {damage} WHERE sequence = 2"));
        let mut worker = provider.subscribe_durable("worker", crate::FILTER).await.unwrap();
        assert_eq!(worker.next().await.unwrap().unwrap().sequence, 1, "{damage}");
        match worker.next_delivery().await {
            Err(EventError::Undecodable { sequence, raw, reason }) => {
                assert_eq!(sequence, 2);
                assert!(!raw.is_empty() && reason.contains("checksum"), "{damage}: {reason}");
            }
            other => panic!("{damage}: {other:?}"),
        }
        assert_eq!(worker.next().await.unwrap().unwrap().sequence, 3, "{damage}");
        let kept: Vec<String> =
            provider.history(None, 9).await.unwrap().into_iter().map(|event| event.summary).collect();
        assert_eq!(kept, ["b", "a"], "{damage}");
        let found = provider.integrity_check().await.unwrap();
        assert_eq!(found, ["event 2 does not match its checksum"], "{damage}");
        provider.close().await.unwrap();
        // It is settled for good.
        let provider = open(&path).await;
        let mut worker = durable(&provider, "worker").await;
        assert_eq!(worker.next_batch(9, Duration::from_millis(50)).await.unwrap().len(), 0, "{damage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_consumer_is_an_error_of_its_own_readers_and_can_be_forgotten() {
    for (table, damage) in
        [("consumers", "cursor = cursor + 1"), ("pending", "state = zeroblob(length(state))")]
    {
        let (_folder, path) = folder();
        let provider = open(&path).await;
        let mut worker = durable(&provider, "worker").await;
        publish(&provider, "a").await;
        let held = worker.next_delivery().await.unwrap().unwrap();
        tamper(&path, &format!("UPDATE {table} SET {damage}"));
        if table == "pending" {
            // A version of its own makes it read again what is pending.
            provider.close().await.unwrap();
            drop(held);
            drop(worker);
        } else {
            for error in [worker.next_delivery().await.unwrap_err(), held.ack_confirmed().await.unwrap_err()]
            {
                assert_eq!(
                    (error.kind(), error.is_retryable()),
                    (ErrorKind::Storage, false),
                    "{}",
                    chain(&error)
                );
                assert!(chain(&error).contains("does not match its checksum"), "{}", chain(&error));
            }
            provider.close().await.unwrap();
        }
        let provider = open(&path).await;
        let error = provider.subscribe_durable("worker", crate::FILTER).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Storage, "{}", chain(&error));
        assert_eq!(publish(&provider, "b").await, 2);
        assert_eq!(durable(&provider, "other").await.next().await.unwrap().unwrap().sequence, 1);
        assert_eq!(provider.integrity_check().await.unwrap().len(), 1);
        provider.unsubscribe("worker").await.unwrap();
        assert_eq!(provider.integrity_check().await.unwrap(), Vec::<String>::new());
        assert_eq!(durable(&provider, "worker").await.next().await.unwrap().unwrap().sequence, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_log_loses_its_end_and_nothing_else() {
    let (folder, path) = folder();
    let provider = open(&path).await;
    for _ in 0..20 {
        publish(&provider, "a").await;
    }
    // A copy of the files as they are, with a log that ends in the middle of a transaction.
    let copy = folder.path().join("copy.db");
    fs::copy(&path, &copy).unwrap();
    let log = fs::read(folder.path().join("events.db-wal")).unwrap();
    fs::write(folder.path().join("copy.db-wal"), &log[..log.len() * 2 / 3]).unwrap();
    let copied = open(&copy).await;
    assert_eq!(copied.integrity_check().await.unwrap(), Vec::<String>::new());
    let left = copied.history(None, 99).await.unwrap().len();
    assert!((1..20).contains(&left), "{left} events");
    assert_eq!(publish(&copied, "a").await, left as u64 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_the_stream_as_it_was() {
    let (folder, path) = folder();
    let provider = open(&path).await;
    for _ in 0..10 {
        publish(&provider, "a").await;
    }
    let backup = folder.path().join("backup.db");
    provider.backup(&backup).await.unwrap();
    publish(&provider, "later").await;
    let error = provider.backup(&backup).await.unwrap_err();
    assert_refused(&error, ErrorKind::Storage, &backup, "exists");
    let copy = open(&backup).await;
    assert_eq!(copy.info().await.unwrap().messages, 10);
    assert_eq!(copy.integrity_check().await.unwrap(), Vec::<String>::new());
    assert_eq!(publish(&copy, "later").await, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_empties_the_log() {
    let (_folder, path) = folder();
    let provider = open(&path).await;
    for _ in 0..50 {
        publish(&provider, "a").await;
    }
    let before = provider.file_info().await.unwrap();
    assert!(before.wal_bytes > 0);
    provider.checkpoint().await.unwrap();
    let after = provider.file_info().await.unwrap();
    assert_eq!(after.wal_bytes, 0);
    assert!(after.file_bytes > before.file_bytes);
}
