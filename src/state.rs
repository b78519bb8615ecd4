//! State: the subscriptions of a bus, kept across restarts.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::error::Category;

use crate::error::{EventError, Result};
use crate::types::SubscriptionFilter;

/// Largest state file in bytes: some hundred thousand subscriptions.
const MAX_FILE_LEN: u64 = 64 * 1024 * 1024;

/// Keeps the subscriptions of a bus. Both methods may block: async code calls them on a thread for blocking work.
pub trait StateStore: Send + Sync {
    /// Replaces what is stored by these subscriptions, by subscriber id.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] when they cannot be stored. What is stored then is whole: the state from before, or this one
    /// when only making it safe against a power loss failed.
    fn save(&self, subscriptions: &HashMap<String, SubscriptionFilter>) -> Result<()>;

    /// The stored subscriptions, by subscriber id; none when nothing was ever stored.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] when what is stored cannot be read.
    fn load(&self) -> Result<HashMap<String, SubscriptionFilter>>;
}

/// Keeps subscriptions in a JSON file: an object from subscriber id to filter, indented, sorted by id.
///
/// Saving writes a temporary file beside the target, flushes it to the disk and renames it, so that a crash leaves
/// either the old or the new content. On Unix the file is readable by its owner only. A file that cannot be read as
/// state, because it is damaged or belongs to something else, is an error and is never overwritten: move it away to start
/// anew. A file larger than 64 MiB is refused. Two processes must not share a file: the last one to save wins.
///
/// ```
/// use std::collections::HashMap;
/// use a3s_event::{FileStateStore, StateStore, SubscriptionFilter};
///
/// # fn main() -> a3s_event::Result<()> {
/// # let folder = std::env::temp_dir().join(format!("a3s-event-doc-{}", std::process::id()));
/// let store = FileStateStore::new(folder.join("subscriptions.json"));
/// assert!(store.load()?.is_empty());
///
/// let filter = SubscriptionFilter {
///     subscriber_id: "analyst".into(),
///     subjects: vec!["events.market.>".into()],
///     durable: true,
///     options: None,
/// };
/// store.save(&HashMap::from([("analyst".to_owned(), filter)]))?;
/// assert_eq!(store.load()?["analyst"].subjects, ["events.market.>"]);
/// # std::fs::remove_dir_all(folder).unwrap();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct FileStateStore {
    path: PathBuf,
}

impl FileStateStore {
    /// A store in this file. The file and its parent folders are created by the first save.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of the file; `None` when there is no file.
    fn read(&self) -> Result<Option<Vec<u8>>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error("cannot be opened", error)),
        };
        let mut content = Vec::new();
        // One byte more than allowed is enough to know that there is too much, whatever the metadata say.
        file.take(MAX_FILE_LEN + 1)
            .read_to_end(&mut content)
            .map_err(|error| self.error("cannot be read", error))?;
        self.check_len(content.len())?;
        Ok(Some(content))
    }

    fn check_len(&self, len: usize) -> Result<()> {
        if u64::try_from(len).is_ok_and(|len| len <= MAX_FILE_LEN) {
            return Ok(());
        }
        Err(self.error("is refused", format!("larger than {MAX_FILE_LEN} bytes")))
    }

    /// Replaces the file so that after a crash either the old or the new content is there.
    fn replace(&self, content: &[u8]) -> io::Result<()> {
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        create_private_folder(folder)?;
        let file_name = self.path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        // The standard library's hash keys are its only source of randomness, and enough for a name that nobody has.
        let mut temporary_name = file_name.to_owned();
        temporary_name.push(format!(".{:016x}.tmp", RandomState::new().hash_one(())));
        let temporary = folder.join(temporary_name);

        let written =
            write_private_file(&temporary, content).and_then(|()| fs::rename(&temporary, &self.path));
        if let Err(error) = written {
            // Not ours when it was there before; the name is random, so that nothing is lost by leaving it.
            if error.kind() != io::ErrorKind::AlreadyExists {
                let _ = fs::remove_file(&temporary);
            }
            return Err(error);
        }
        sync_folder(folder)
    }

    fn error(&self, what: &str, cause: impl std::fmt::Display) -> EventError {
        EventError::Config(format!("state file {:?} {what}: {cause}", self.path))
    }
}

impl StateStore for FileStateStore {
    fn save(&self, subscriptions: &HashMap<String, SubscriptionFilter>) -> Result<()> {
        // Whoever mistyped the path must not lose the file that is there.
        self.load()?;
        let sorted: BTreeMap<&String, &SubscriptionFilter> = subscriptions.iter().collect();
        let content =
            serde_json::to_vec_pretty(&sorted).map_err(|error| self.error("cannot be written", error))?;
        self.check_len(content.len())?;
        self.replace(&content).map_err(|error| self.error("cannot be written", error))
    }

    fn load(&self) -> Result<HashMap<String, SubscriptionFilter>> {
        match self.read()? {
            None => Ok(HashMap::new()),
            Some(content) => serde_json::from_slice(&content)
                .map_err(|error| self.error("is not a state file", problem_of(&error))),
        }
    }
}

/// Where and how JSON fails, without the parser's own text: it quotes the content, and the file may be somebody else's.
fn problem_of(error: &serde_json::Error) -> String {
    let problem = match error.classify() {
        Category::Eof => "it ends too early",
        Category::Data => "it does not hold subscriptions",
        Category::Syntax | Category::Io => "it is not JSON",
    };
    format!("{problem} (line {}, column {})", error.line(), error.column())
}

/// Creates a folder and its parents; on Unix, those that are new belong to their owner only.
fn create_private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Writes a file that must not exist yet and flushes it to the disk; on Unix only its owner can read it.
fn write_private_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes a rename inside the folder survive a power loss. Elsewhere than on Unix a folder cannot be flushed.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Keeps subscriptions in memory, for tests.
///
/// ```
/// use a3s_event::{MemoryStateStore, StateStore};
///
/// assert!(MemoryStateStore::default().load().unwrap().is_empty());
/// ```
#[derive(Debug, Default)]
pub struct MemoryStateStore {
    subscriptions: Mutex<HashMap<String, SubscriptionFilter>>,
}

impl StateStore for MemoryStateStore {
    fn save(&self, subscriptions: &HashMap<String, SubscriptionFilter>) -> Result<()> {
        let copy = subscriptions.clone();
        // One assignment is the only change, so that poison means nothing.
        *self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner) = copy;
        Ok(())
    }

    fn load(&self) -> Result<HashMap<String, SubscriptionFilter>> {
        Ok(self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DeliverPolicy, SubscribeOptions};

    /// A folder of its own for each test, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("a3s-event-state-{:016x}", RandomState::new().hash_one(()));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn store(&self) -> FileStateStore {
            FileStateStore::new(self.0.join("state.json"))
        }

        fn file_names(&self) -> Vec<String> {
            fs::read_dir(&self.0)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn subscriptions(ids: &[&str]) -> HashMap<String, SubscriptionFilter> {
        let filter = |id: &str| SubscriptionFilter {
            subscriber_id: id.to_owned(),
            subjects: vec!["events.market.>".to_owned()],
            durable: true,
            options: Some(SubscribeOptions {
                max_deliver: Some(5),
                deliver_policy: DeliverPolicy::ByStartSequence { sequence: 7 },
                ..SubscribeOptions::default()
            }),
        };
        ids.iter().map(|id| ((*id).to_owned(), filter(id))).collect()
    }

    fn config_error<T: std::fmt::Debug>(result: Result<T>) -> String {
        match result.unwrap_err() {
            EventError::Config(text) => text,
            other => panic!("unexpected error {other}"),
        }
    }

    #[test]
    fn what_was_saved_is_loaded_by_another_store() {
        let folder = Folder::new();
        let store = folder.store();
        assert!(store.load().unwrap().is_empty());
        store.save(&subscriptions(&["a", "b"])).unwrap();
        store.save(&subscriptions(&["b", "c"])).unwrap();

        let loaded = folder.store().load().unwrap();
        assert_eq!(
            serde_json::to_value(&loaded).unwrap(),
            serde_json::to_value(subscriptions(&["b", "c"])).unwrap()
        );
        assert_eq!(folder.file_names(), ["state.json"]);
        assert_eq!(store.path(), folder.0.join("state.json"));
    }

    #[test]
    fn the_file_is_indented_json_sorted_by_id() {
        let folder = Folder::new();
        let mut plain = subscriptions(&["b", "a"]);
        for filter in plain.values_mut() {
            filter.options = None;
        }
        folder.store().save(&plain).unwrap();
        let entry = |id: &str| {
            format!(
                "  \"{id}\": {{\n    \"subscriberId\": \"{id}\",\n    \"subjects\": [\n      \"events.market.>\"\n    ],\n    \"durable\": true\n  }}"
            )
        };
        assert_eq!(
            fs::read_to_string(folder.store().path()).unwrap(),
            format!("{{\n{},\n{}\n}}", entry("a"), entry("b"))
        );
    }

    #[test]
    fn a_file_of_the_earlier_crate_loads() {
        let folder = Folder::new();
        let json = r#"{ "old": { "subscriberId": "old", "subjects": ["events.a"], "durable": false,
            "options": { "maxDeliver": 3, "backoffSecs": [1, 5], "deliverPolicy": { "type": "new" } } } }"#;
        fs::write(folder.store().path(), json).unwrap();
        let loaded = folder.store().load().unwrap();
        let options = loaded["old"].options.as_ref().unwrap();
        assert_eq!((options.max_deliver, options.backoff_secs.as_slice()), (Some(3), [1, 5].as_slice()));
        assert_eq!(options.deliver_policy, DeliverPolicy::New);
    }

    #[test]
    fn a_file_that_is_not_state_is_an_error_and_stays_as_it_is() {
        let folder = Folder::new();
        let store = folder.store();
        store.save(&subscriptions(&["a"])).unwrap();
        let good = fs::read(store.path()).unwrap();
        let truncated = &good[..good.len() / 2];
        let foreign = br#"{"password": "hunter2"}"#.as_slice();
        for content in [b"".as_slice(), truncated, b"[]", foreign, b"\xff\xfe", b"{} x"] {
            fs::write(store.path(), content).unwrap();
            for text in [config_error(store.load()), config_error(store.save(&subscriptions(&["b"])))] {
                assert!(text.contains("state.json") && text.contains("is not a state file"), "{text}");
                assert!(!text.contains("hunter2"), "{text}");
            }
            assert_eq!(fs::read(store.path()).unwrap(), content);
        }
        assert_eq!(folder.file_names(), ["state.json"]);
    }

    #[test]
    fn a_folder_in_place_of_the_file_is_an_error() {
        let folder = Folder::new();
        fs::create_dir(folder.store().path()).unwrap();
        assert!(config_error(folder.store().load()).contains("state.json"));
        config_error(folder.store().save(&HashMap::new()));
    }

    #[test]
    fn a_file_that_is_too_large_is_refused() {
        let folder = Folder::new();
        let file = File::create(folder.store().path()).unwrap();
        file.set_len(MAX_FILE_LEN + 1).unwrap();
        assert!(config_error(folder.store().load()).contains("larger than"));
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let folder = Folder::new();
        let blocked = FileStateStore::new(folder.0.join("file").join("state.json"));
        fs::write(folder.0.join("file"), "not a folder").unwrap();
        assert!(config_error(blocked.save(&subscriptions(&["a"]))).contains("state.json"));
        assert_eq!(folder.file_names(), ["file"]);
    }

    #[cfg(unix)]
    #[test]
    fn the_file_and_new_folders_belong_to_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new();
        let store = FileStateStore::new(folder.0.join("new").join("deep").join("state.json"));
        store.save(&subscriptions(&["a"])).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(store.path()), 0o600);
        assert_eq!(mode(&folder.0.join("new")), 0o700);
        assert_eq!(mode(&folder.0.join("new").join("deep")), 0o700);
    }

    #[test]
    fn saves_from_many_threads_leave_one_whole_file() {
        let folder = Folder::new();
        let store = folder.store();
        std::thread::scope(|scope| {
            for id in ["a", "b", "c", "d"] {
                let store = &store;
                scope.spawn(move || {
                    for _ in 0..10 {
                        store.save(&subscriptions(&[id])).unwrap();
                    }
                });
            }
        });
        assert_eq!(store.load().unwrap().len(), 1);
        assert_eq!(folder.file_names(), ["state.json"]);
    }

    #[test]
    fn memory_keeps_what_was_saved_last() {
        let store = MemoryStateStore::default();
        store.save(&subscriptions(&["a", "b"])).unwrap();
        store.save(&subscriptions(&["c"])).unwrap();
        assert_eq!(store.load().unwrap().into_keys().collect::<Vec<_>>(), ["c"]);
    }
}
