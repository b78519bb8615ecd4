//! The state file: its subscriptions are loaded, kept and saved, or the file is refused and left unchanged.
//!
//! Input: the content of the file.

use std::path::Path;
use std::sync::Arc;

use a3s_event::{EventBus, FileStateStore, MemoryProvider, StateStore};
use serde_json::to_value;
use tempfile::TempDir;

use super::check_error;

thread_local! {
    /// Folder of the file, in memory if possible, because the store's disk flush is not under test.
    static FOLDER: TempDir = {
        let in_memory = Path::new("/dev/shm");
        let folder = if in_memory.is_dir() { tempfile::tempdir_in(in_memory) } else { tempfile::tempdir() };
        folder.expect("a folder for the file")
    };
}

pub fn check(data: &[u8]) {
    FOLDER.with(|folder| check_in(folder.path(), data));
}

fn check_in(folder: &Path, data: &[u8]) {
    let store = FileStateStore::new(folder.join("subscriptions.json"));
    std::fs::write(store.path(), data).expect("a file");
    let subscriptions = match store.load() {
        Ok(subscriptions) => subscriptions,
        Err(error) => {
            check_error(&error);
            store.save(&Default::default()).expect_err("what cannot be read is never overwritten");
            assert_eq!(std::fs::read(store.path()).expect("the file"), data);
            return;
        }
    };
    let loaded = to_value(&subscriptions).unwrap();

    // A bus loses no subscription: each one is in force, or set aside with a reason.
    let mut bus = EventBus::new(MemoryProvider::default());
    bus.set_state_store(Arc::new(store.clone())).expect("it was loaded before");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let in_force = runtime.block_on(bus.list_subscriptions()).len();
    assert_eq!(in_force + bus.invalid_subscriptions().len(), subscriptions.len());

    for store in [store.clone(), store.with_checksum()] {
        store.save(&subscriptions).expect("saved");
        assert_eq!(to_value(store.load().expect("loaded")).unwrap(), loaded);
    }
}
