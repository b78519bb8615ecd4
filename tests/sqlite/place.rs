//! Files that are deleted, moved or replaced while they are open, and the way to and from a file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use a3s_event::provider::sqlite::SqliteProvider;
use a3s_event::{ErrorKind, EventProvider, PublishOptions, Subscription, SubscriptionEnd};

use crate::files::{chain, folder};
use crate::{durable, event, open, publish};

/// Waits until the provider says so.
async fn until_healthy(provider: &SqliteProvider, wanted: bool) {
    let found = async {
        while provider.health().await.unwrap() != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::DEADLINE, found).await.unwrap();
}

/// Waits until a subscription ends, and says why it did.
async fn end_of(subscription: &mut dyn Subscription) -> Option<SubscriptionEnd> {
    let next = async {
        loop {
            match subscription.next_delivery().await {
                Ok(None) => break,
                Ok(Some(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(crate::DEADLINE, next).await.unwrap();
    assert!(subscription.next_batch(9, Duration::ZERO).await.is_none());
    subscription.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_to_a_deleted_file_is_an_error_and_a_restored_one_is_taken_up() {
    let (folder, path) = folder();
    let provider = open(&path).await;
    assert_eq!(publish(&provider, "kept").await, 1);
    let backup = folder.path().join("backup.db");
    provider.backup(&backup).await.unwrap();
    assert_eq!(publish(&provider, "lost").await, 2);
    let mut worker = durable(&provider, "worker").await;
    let held = worker.next_delivery().await.unwrap().unwrap();
    let mut ephemeral = provider.subscribe(crate::FILTER).await.unwrap();
    for name in ["events.db", "events.db-wal", "events.db-shm"] {
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    let error = provider.publish(&event("nowhere")).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Storage, false), "{}", chain(&error));
    assert!(chain(&error).contains("deleted"), "{}", chain(&error));
    let read = provider.history(None, 9).await.unwrap_err();
    for error in [&error, &read] {
        assert!(chain(error).contains(&path.display().to_string()), "{}", chain(error));
    }
    assert!(!provider.health().await.unwrap());
    for subscription in [&mut worker, &mut ephemeral] {
        assert_eq!(end_of(&mut **subscription).await, Some(SubscriptionEnd::StreamReplaced));
    }
    assert_eq!(provider.history(None, 9).await.unwrap_err().kind(), ErrorKind::Storage);
    assert!(provider.subscribe_durable("late", crate::FILTER).await.is_err());
    assert!(held.ack().await.is_err());
    // A program that runs does not make the file anew: whoever deleted it may be about to restore it.
    assert!(!path.exists());
    fs::rename(&backup, &path).unwrap();
    until_healthy(&provider, true).await;
    assert_eq!(provider.history(None, 9).await.unwrap().len(), 1);
    assert_eq!(publish(&provider, "again").await, 2);
    let mut worker = durable(&provider, "worker").await;
    assert_eq!(worker.next().await.unwrap().unwrap().sequence, 1);
    assert_eq!(provider.integrity_check().await.unwrap(), Vec::<String>::new());
    provider.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_moved_away_is_whole_and_can_come_back() {
    let (folder, path) = folder();
    let provider = open(&path).await;
    let mut waiting = provider.subscribe(crate::FILTER).await.unwrap();
    for sequence in 1..=20 {
        assert_eq!(publish(&provider, "a").await, sequence);
        waiting.next().await.unwrap();
    }
    let away = folder.path().join("away.db");
    fs::rename(&path, &away).unwrap();
    // Nobody publishes: who waits is told all the same.
    assert_eq!(end_of(&mut *waiting).await, Some(SubscriptionEnd::StreamReplaced));
    assert!(!provider.health().await.unwrap());
    let elsewhere = open(&away).await;
    assert_eq!(elsewhere.history(None, 99).await.unwrap().len(), 20);
    elsewhere.close().await.unwrap();
    fs::rename(&away, &path).unwrap();
    until_healthy(&provider, true).await;
    assert_eq!(publish(&provider, "b").await, 21);
    provider.close().await.unwrap();
    assert_eq!(open(&path).await.history(None, 99).await.unwrap().len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_one_replaced_is_not_written_any_more() {
    let (folder, path) = folder();
    let other = folder.path().join("other.db");
    let made = open(&other).await;
    for _ in 0..3 {
        publish(&made, "theirs").await;
    }
    made.close().await.unwrap();
    let provider = open(&path).await;
    publish(&provider, "ours").await;
    fs::rename(&other, &path).unwrap();
    // Reading notices it as well as writing, and neither takes one for the other.
    assert_eq!(provider.history(None, 9).await.unwrap_err().kind(), ErrorKind::Storage);
    let reading = async {
        while provider.history(None, 9).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::DEADLINE, reading).await.unwrap();
    assert_eq!(provider.history(Some("events.test.theirs"), 9).await.unwrap().len(), 3);
    assert_eq!(provider.history(None, 9).await.unwrap().len(), 3);
    assert_eq!(publish(&provider, "ours").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_deleted_takes_nothing_with_it() {
    for deleted in [["events.db-wal"].as_slice(), &["events.db-shm"], &["events.db-wal", "events.db-shm"]] {
        let (folder, path) = folder();
        let provider = open(&path).await;
        let mut worker = durable(&provider, "worker").await;
        for sequence in 1..=5 {
            assert_eq!(publish(&provider, "a").await, sequence);
        }
        for name in deleted {
            fs::remove_file(folder.path().join(name)).unwrap();
        }
        let options = PublishOptions { msg_id: Some("x".to_owned()), ..Default::default() };
        let error = provider.publish_with_options(&event("b"), &options).await.unwrap_err();
        assert!(error.is_retryable(), "{}", chain(&error));
        until_healthy(&provider, true).await;
        assert_eq!(provider.publish_with_options(&event("b"), &options).await.unwrap(), 6);
        for sequence in 1..=6 {
            assert_eq!(worker.next().await.unwrap().unwrap().sequence, sequence);
        }
        provider.close().await.unwrap();
        let provider = open(&path).await;
        assert_eq!(provider.history(None, 99).await.unwrap().len(), 6);
        assert_eq!(provider.integrity_check().await.unwrap(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_stays_with_its_file_when_it_is_reached_by_a_link() {
    let (folder, path) = folder();
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink("events.db", &link).unwrap();
    // It leads nowhere yet: the file is made where it leads, for its owner only.
    let provider = open(&link).await;
    publish(&provider, "a").await;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(provider.health().await.unwrap());
    assert!(provider.file_info().await.unwrap().wal_bytes > 0);
    provider.close().await.unwrap();
    assert_eq!(open(&path).await.history(None, 9).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn close_leaves_no_log_behind_whoever_reads() {
    let (folder, path) = folder();
    for _ in 0..20 {
        let provider = std::sync::Arc::new(open(&path).await);
        let batch: Vec<_> = (0..200).map(|_| event("a")).collect();
        let batch: Vec<_> = batch.iter().map(a3s_event::PublishRequest::from).collect();
        provider.publish_batch(&batch).await.into_iter().for_each(|stored| assert!(stored.is_ok()));
        let reading: Vec<_> = (0..4)
            .map(|_| {
                let provider = std::sync::Arc::clone(&provider);
                tokio::spawn(async move { provider.integrity_check().await })
            })
            .collect();
        tokio::task::yield_now().await;
        provider.close().await.unwrap();
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["events.db"]);
        for read in reading {
            match read.await.unwrap() {
                Ok(findings) => assert_eq!(findings, Vec::<String>::new()),
                Err(error) => assert!(error.is_closed(), "{}", chain(&error)),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_to_any_name_that_a_file_can_have() {
    use std::os::unix::ffi::OsStrExt;
    let (folder, path) = folder();
    let provider = open(&path).await;
    publish(&provider, "a").await;
    for name in [b"not-utf8-\xff.db".as_slice(), b"file:odd?mode=memory.db", "\u{1f4be}.db".as_bytes()] {
        let backup = folder.path().join(std::ffi::OsStr::from_bytes(name));
        provider.backup(&backup).await.unwrap();
        assert_eq!(open(&backup).await.history(None, 9).await.unwrap().len(), 1, "{}", backup.display());
    }
    assert_eq!(publish(&provider, "a").await, 2);
}
