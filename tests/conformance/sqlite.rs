//! The SQLite provider, on a file of its own for each case and in memory.

#![allow(clippy::expect_used, reason = "a provider that cannot be set up fails the test, as it should")]

use std::path::PathBuf;
use std::sync::Arc;

use a3s_event::EventProvider;
use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
use a3s_event_testkit::{Clock, Fixture, Harness, Outcome, Settings, async_trait, run_case};
use tempfile::TempDir;

use crate::kept::{ON_A_STORE_OF_ITS_OWN, TOO_LONG, every_case_is_kept};

#[path = "../support/sqlite.rs"]
mod sqlite_file;

async fn open(config: SqliteConfig) -> Arc<SqliteProvider> {
    Arc::new(SqliteProvider::connect(config).await.expect("a provider"))
}

fn with(settings: &Settings, mut config: SqliteConfig) -> SqliteConfig {
    if let Some(max) = settings.max_events {
        config = config.max_events(max as u64);
    }
    if let Some(window) = settings.dedup_window {
        config = config.dedup_window(window);
    }
    if let Some(max) = settings.max_bytes {
        config = config.max_bytes(max);
    }
    config
}

/// A file in a folder that is removed with the fixture.
struct File {
    provider: Arc<SqliteProvider>,
    path: PathBuf,
    _folder: TempDir,
}

impl File {
    async fn new(settings: &Settings) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events.db");
        let provider = open(with(settings, SqliteConfig::file(&path))).await;
        Self { provider, path, _folder: folder }
    }
}

#[async_trait]
impl Fixture for File {
    fn provider(&self) -> Arc<dyn EventProvider> {
        Arc::<SqliteProvider>::clone(&self.provider)
    }

    async fn connect(&self) -> Arc<dyn EventProvider> {
        open(SqliteConfig::file(&self.path)).await
    }

    async fn restart(&self) -> Option<Arc<dyn EventProvider>> {
        self.provider.close().await.expect("close");
        Some(self.connect().await)
    }

    async fn store_undecodable(&self, subject: &str, raw: &[u8]) -> Option<u64> {
        Some(sqlite_file::store_raw(&self.path, subject, raw).expect("a raw record"))
    }
}

struct OnFile;

#[async_trait]
impl Harness for OnFile {
    async fn start(&self) -> Box<dyn Fixture> {
        Box::new(File::new(&Settings::default()).await)
    }

    async fn start_with(&self, settings: &Settings) -> Option<Box<dyn Fixture>> {
        Some(Box::new(File::new(settings).await))
    }
}

struct InMemory;

#[async_trait]
impl Harness for InMemory {
    async fn start(&self) -> Box<dyn Fixture> {
        Box::new(open(SqliteConfig::in_memory()).await)
    }

    async fn start_with(&self, settings: &Settings) -> Option<Box<dyn Fixture>> {
        Some(Box::new(open(with(settings, SqliteConfig::in_memory())).await))
    }
}

mod file {
    use super::*;

    a3s_event_testkit::for_each_case! { [every_case_is_kept] OnFile, [TOO_LONG] }
}

mod memory {
    use super::*;

    a3s_event_testkit::for_each_case! { [every_case_is_kept] InMemory, ON_A_STORE_OF_ITS_OWN }
}
