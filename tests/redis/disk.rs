//! A disk whose syncs take long, under the configuration that does not wait for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use a3s_event::provider::redis::RedisConfig;
use a3s_event::{Durability, EventProvider, PublishOptions};
use a3s_event_testkit::RedisServer;
use tempfile::TempDir;
use tracing_subscriber::layer::SubscriberExt;

use crate::load::Events;
use crate::stored::intact;
use crate::traced::{Log, traced};
use crate::{event, eventually, on_each, open};

/// Compiles the library that holds the syncs of a server. Returns `None` without a compiler.
fn library(folder: &Path) -> Option<PathBuf> {
    let (source, library) =
        (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/redis/slow_sync.c"), folder.join("slow_sync.so"));
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).output();
    let Ok(compiled) = compiled else {
        println!("not checked: there is no C compiler");
        return None;
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Some(library)
}

/// A server whose syncs can be held.
struct Slow {
    server: RedisServer,
    /// It exists while they are held.
    held: PathBuf,
    _folder: TempDir,
}

impl Slow {
    async fn start(binary: &Path, library: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let held = folder.path().join("held");
        let environment =
            [("LD_PRELOAD", library.to_str().unwrap()), ("A3S_EVENT_TEST_SLOW_SYNC", held.to_str().unwrap())];
        let server = RedisServer::start_in(binary, "appendfsync everysec", &environment).await;
        Self { server, held, _folder: folder }
    }

    fn hold(&self) {
        fs::write(&self.held, "").unwrap();
    }

    fn release(&self) {
        fs::remove_file(&self.held).unwrap();
    }

    async fn number(&self, field: &str) -> u64 {
        self.server.info(field).await.parse().unwrap()
    }
}

#[tokio::test]
async fn a_server_that_does_not_wait_for_a_slow_disk_loses_what_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let Some(library) = library(folder.path()) else { return };
    on_each(async |version, binary| {
        let mut slow = Slow::start(&binary, &library).await;
        let provider = open(RedisConfig::at(slow.server.address().to_string())).await;
        assert_eq!(provider.capabilities().durability, Durability::Deferred);
        let publish = async || {
            let event = event("slow");
            let options = PublishOptions { msg_id: Some(event.id.clone()), ..PublishOptions::default() };
            // The first call after a restart can meet the end of the connection.
            loop {
                match provider.publish_with_receipt(&event, &options).await {
                    Ok(receipt) => break (receipt.sequence, event.id.clone()),
                    Err(error) => assert!(error.is_retryable(), "{error}"),
                }
            }
        };
        let mut acknowledged = Events::new();
        let mut lost = 0;
        // It puts the write off for two seconds at most. Should they pass before the kill, the next round tries again.
        for _ in 0..5 {
            slow.hold();
            eventually("a held sync", async || {
                acknowledged.extend([publish().await]);
                slow.number("aof_pending_bio_fsync").await > 0
            })
            .await;
            eventually("an event that is not written", async || {
                acknowledged.extend([publish().await]);
                slow.number("aof_buffer_length").await > 0
            })
            .await;
            slow.server.kill();
            slow.release();
            slow.server.start_again().await;
            let stored = intact(&slow.server).await;
            lost = acknowledged.iter().filter(|(sequence, id)| stored.get(sequence) != Some(id)).count();
            if lost > 0 {
                break;
            }
        }
        assert!(lost > 0, "{version}: the server waits, and the provider declares less than it keeps");
        println!("{version}: {lost} of {} acknowledged events are lost", acknowledged.len());
        let (sequence, _) = publish().await;
        assert_eq!(intact(&slow.server).await.keys().last(), Some(&sequence));
    })
    .await;
}

#[tokio::test]
async fn health_warns_of_a_slow_disk_once() {
    let folder = tempfile::tempdir().unwrap();
    let Some(library) = library(folder.path()) else { return };
    let log = Log::default();
    let _guard = traced(tracing_subscriber::registry().with(log.clone()));
    let warnings = |count: u64| {
        let name = format!("aof_delayed_fsync={count}");
        log.lines().iter().filter(|line| line.starts_with("WARN") && line.contains(&name)).count()
    };
    // One version after the other, because the log is that of all.
    for (version, binary) in a3s_event_testkit::servers::redis::versions() {
        let slow = Slow::start(&binary, &library).await;
        let provider = open(RedisConfig::at(slow.server.address().to_string())).await;
        assert!(provider.health().await.unwrap());
        let before = log.lines().len();
        slow.hold();
        eventually("a delayed sync", async || {
            provider.publish(&event("slow")).await.unwrap();
            slow.number("aof_delayed_fsync").await > 0
        })
        .await;
        slow.release();
        let count = slow.number("aof_delayed_fsync").await;
        let earlier = warnings(count);
        assert!(provider.health().await.unwrap());
        assert_eq!(warnings(count), earlier + 1, "{version}: {:?}", &log.lines()[before..]);
        assert!(provider.health().await.unwrap());
        assert_eq!(warnings(count), earlier + 1, "{version}");
    }
}
