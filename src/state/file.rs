//! State store in a file.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::StateStore;
use super::lock::{NotLocked, ProcessLock};
use crate::error::{EventError, Result};
use crate::hash::fnv1a_128;
use crate::json;
use crate::private_file::{self, Owner, Refusal};
use crate::text::without_values;
use crate::types::SubscriptionFilter;

/// Maximum size of a state file in bytes: some hundred thousand subscriptions.
const MAX_FILE_LEN: u64 = 64 * 1024 * 1024;
/// Version of the format with a checksum.
const VERSION: u64 = 1;
/// Suffix of the copy of the state before the last save.
const BACKUP: &str = ".bak";

/// State store in a JSON file: an object from subscriber id to filter, indented, sorted by id.
///
/// **Crashes.** Saving writes a temporary file beside the target, flushes it to the disk, renames it, and flushes the
/// folder. After a crash or a power loss, the file has either the old or the new content.
///
/// **Damage.** A file that is not valid state is an error that names it, and is never overwritten: restore it or move
/// it away. It is not valid if it is damaged, is larger than 64 MiB, has a key twice, or belongs to another program.
/// [`with_checksum`](FileStateStore::with_checksum) also detects a changed character inside an otherwise good file. The
/// state before the last save is kept beside the file with the suffix `.bak`. Restore from it; the store never reads
/// it.
///
/// **Access.** On Unix, only the owner has access to the file and the folders that are created for it, modes 0600 and
/// 0700. If others can write the file, the store removes their access and logs a warning. On Linux, a file of another
/// user is rejected; root may read it.
///
/// **Processes.** The first load or save claims the file for this process. Another process gets an error with the id of
/// the process that has it. The claim is a lock on a file beside it with the suffix `.lock`. It ends with the last
/// clone of the store or with the process. Stores of one process share the claim.
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
    checksum: bool,
    lock: Arc<OnceLock<ProcessLock>>,
}

/// Content of a state file.
struct State {
    subscriptions: HashMap<String, SubscriptionFilter>,
    /// True if it is in the format with a checksum.
    checksum: bool,
}

/// Format with a checksum.
#[derive(Serialize, Deserialize)]
struct Checksummed {
    version: u64,
    /// FNV-1a, 128 bit, in hexadecimal, of the subscriptions as compact JSON with sorted keys.
    checksum: String,
    subscriptions: Value,
}

impl FileStateStore {
    /// Creates a store in this file. The first save creates the file and its parent folders.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), checksum: false, lock: Arc::default() }
    }

    /// Saves with a version and a checksum around the subscriptions, so that loading detects any damage:
    /// `{"version": 1, "checksum": …, "subscriptions": {…}}`.
    ///
    /// The default is off, because earlier versions of this crate, and tools that read their file, do not know this
    /// format. Both formats are loaded, and a file in this format keeps it, with or without this setting.
    #[must_use]
    pub fn with_checksum(mut self) -> Self {
        self.checksum = true;
        self
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file, or returns `None` if there is none.
    fn read(&self) -> Result<Option<State>> {
        let (content, file, metadata) = match private_file::read(&self.path, MAX_FILE_LEN) {
            Ok(read) => read,
            Err(Refusal::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(refusal) => return Err(self.error("cannot be read", refusal)),
        };
        self.check_access(&file, &metadata)?;
        self.decode(&content).map(Some)
    }

    fn check_access(&self, file: &File, metadata: &fs::Metadata) -> Result<()> {
        match private_file::owner(metadata) {
            Owner::Other { we_are_root: false } => {
                return Err(self.error("is refused", "it belongs to another user"));
            }
            Owner::Other { we_are_root: true } => {
                tracing::warn!(path = %self.path.display(), "the state file belongs to another user");
            }
            Owner::Trusted | Owner::Unknown => {}
        }
        if let Some(mode) = private_file::mode(metadata).filter(|mode| mode & 0o022 != 0) {
            let tightened = private_file::make_private(file);
            let mode = format!("{mode:04o}");
            tracing::warn!(
                path = %self.path.display(),
                mode,
                tightened = tightened.is_ok(),
                "other users could write the state file"
            );
        }
        Ok(())
    }

    fn decode(&self, content: &[u8]) -> Result<State> {
        let not_state =
            |error: &serde_json::Error| self.unusable("is not a state file", without_values(error));
        // Of equal keys, the last would win, and the next save would lose the other one.
        if let Err(error) = json::from_slice(content)
            && error.is_data()
        {
            return Err(not_state(&error));
        }
        let plain = match serde_json::from_slice(content) {
            Ok(subscriptions) => return Ok(State { subscriptions, checksum: false }),
            Err(error) => error,
        };
        // Only its version tells a later format from damage.
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let Ok(Versioned { version }) = serde_json::from_slice(content) else {
            // Content that is not JSON reports its syntax error, not its first difference from a map of filters.
            let syntax = serde_json::from_slice::<serde::de::IgnoredAny>(content).err();
            return Err(not_state(&syntax.unwrap_or(plain)));
        };
        if version != VERSION {
            let found = format!("version {version}, but only version {VERSION} is supported");
            return Err(self.unusable("is of another version", found));
        }
        let file: Checksummed = serde_json::from_slice(content).map_err(|error| not_state(&error))?;
        if checksum(&file.subscriptions) != file.checksum {
            return Err(self.unusable("is damaged", "its content does not match its checksum"));
        }
        let subscriptions = serde_json::from_value(file.subscriptions).map_err(|error| not_state(&error))?;
        Ok(State { subscriptions, checksum: true })
    }

    fn encode(
        &self,
        subscriptions: &HashMap<String, SubscriptionFilter>,
        with_checksum: bool,
    ) -> serde_json::Result<Vec<u8>> {
        let sorted: BTreeMap<&String, &SubscriptionFilter> = subscriptions.iter().collect();
        if !with_checksum {
            return serde_json::to_vec_pretty(&sorted);
        }
        let subscriptions = serde_json::to_value(&sorted)?;
        let checksum = checksum(&subscriptions);
        serde_json::to_vec_pretty(&Checksummed { version: VERSION, checksum, subscriptions })
    }

    /// Claims the file for this process.
    fn claim(&self) -> std::result::Result<(), NotLocked> {
        if self.lock.get().is_none() {
            // If another thread made the claim at the same time, that one stays and this one is dropped.
            let _ = self.lock.set(ProcessLock::acquire(&self.beside(".lock"))?);
        }
        Ok(())
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
    }

    /// Returns the path with a suffix.
    fn beside(&self, end: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(end);
        path.into()
    }

    /// Returns an unused name beside this file. The standard library's hash keys are its only source of randomness, and
    /// enough for that.
    fn temporary(&self) -> PathBuf {
        self.beside(&format!(".{:016x}.tmp", RandomState::new().hash_one(())))
    }

    /// Replaces the file. After a crash, either the old or the new content is there.
    fn replace(&self, content: &[u8], is_stored: bool) -> io::Result<()> {
        if self.path.file_name().is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        put_in_place(&self.path, &self.temporary(), |temporary| {
            private_file::write_new(temporary, content)?;
            // Only now, so that a failed write does not cost the previous copy.
            if is_stored && let Err(error) = self.keep_stored() {
                tracing::warn!(path = %self.path.display(), %error, "keeping a copy of the previous state failed");
            }
            Ok(())
        })?;
        private_file::sync_folder(self.folder())
    }

    /// Keeps the stored state as the copy to restore from. The file itself stays in place at every moment.
    fn keep_stored(&self) -> io::Result<()> {
        put_in_place(&self.beside(BACKUP), &self.temporary(), |temporary| {
            // A hard link costs nothing, and its content is on the disk. Some file systems have none.
            fs::hard_link(&self.path, temporary)
                .or_else(|_| private_file::write_new(temporary, &fs::read(&self.path)?))
        })
    }

    fn error(&self, what: &str, cause: impl std::fmt::Display) -> EventError {
        EventError::Config(format!("state file {:?} {what}: {cause}", self.path))
    }

    /// Creates the error for content that is not valid state, with the remedy.
    fn unusable(&self, what: &str, cause: impl std::fmt::Display) -> EventError {
        let backup = self.beside(BACKUP);
        let remedy = match backup.exists() {
            true => {
                format!("restore it from {backup:?}, the state before the last save, or move it away")
            }
            false => "restore it, or move it away".to_owned(),
        };
        self.error(what, format!("{cause}; {remedy}"))
    }
}

impl StateStore for FileStateStore {
    fn save(&self, subscriptions: &HashMap<String, SubscriptionFilter>) -> Result<()> {
        let not_written = |cause: &dyn std::fmt::Display| self.error("cannot be written", cause);
        private_file::create_folder(self.folder()).map_err(|error| not_written(&error))?;
        self.claim().map_err(|error| not_written(&error))?;
        // A mistyped path must not overwrite another file.
        let stored = self.read()?;
        let with_checksum = self.checksum || stored.as_ref().is_some_and(|state| state.checksum);
        let content = self.encode(subscriptions, with_checksum).map_err(|error| not_written(&error))?;
        if u64::try_from(content.len()).is_ok_and(|len| len > MAX_FILE_LEN) {
            return Err(not_written(&Refusal::TooLarge(MAX_FILE_LEN)));
        }
        self.replace(&content, stored.is_some()).map_err(|error| not_written(&error))
    }

    fn load(&self) -> Result<HashMap<String, SubscriptionFilter>> {
        // A file that cannot be claimed because the folder is not writable can still be read; saving returns the error.
        if let Err(error @ NotLocked::ByOther(_)) = self.claim() {
            return Err(self.error("cannot be used", error));
        }
        Ok(self.read()?.map(|state| state.subscriptions).unwrap_or_default())
    }
}

/// Creates a file under a temporary name and renames it. Removes the temporary name if that fails, and if both are
/// names of one file, which renaming leaves as it is.
fn put_in_place(path: &Path, temporary: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let done = make(temporary).and_then(|()| fs::rename(temporary, path));
    // A file that existed before is not ours. The name is random, so leaving it loses nothing.
    if !done.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
        let _ = fs::remove_file(temporary);
    }
    done
}

fn checksum(subscriptions: &Value) -> String {
    format!("{:032x}", fnv1a_128(&[&subscriptions.to_string()]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DeliverPolicy, SubscribeOptions};

    /// A separate folder for each test, removed at the end.
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
            let entries = fs::read_dir(&self.0).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.filter(|name| !name.ends_with(".lock")).collect();
            names.sort();
            names
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
        assert_eq!(folder.file_names(), ["state.json", "state.json.bak"]);
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
    fn a_key_given_twice_is_refused_and_named() {
        let folder = Folder::new();
        let store = folder.store();
        let filter =
            |subject: &str| format!(r#"{{"subscriberId": "a", "subjects": ["{subject}"], "durable": true}}"#);
        let plain = format!(r#"{{"a": {}, "a": {}}}"#, filter("events.a"), filter("events.b"));
        let state = serde_json::json!({"a": serde_json::from_str::<Value>(&filter("events.b")).unwrap()});
        let within =
            format!(r#"{{"version": 1, "checksum": "{}", "subscriptions": {plain}}}"#, checksum(&state));
        let options = r#"{"a": {"subscriberId": "a", "subjects": [], "durable": true,
            "options": {"deliverPolicy": {"type": "all", "x": 1, "x": 2}}}}"#;
        for (content, key) in [(plain.as_str(), "a"), (&within, "a"), (options, "x")] {
            fs::write(store.path(), content).unwrap();
            for text in [config_error(store.load()), config_error(store.save(&subscriptions(&["b"])))] {
                assert!(text.contains("is not a state file") && text.contains("is given twice"), "{text}");
                assert!(text.contains(&format!("key \"{key}\"")), "{text}");
            }
            assert_eq!(fs::read_to_string(store.path()).unwrap(), content);
        }
    }

    #[test]
    fn a_file_of_another_version_is_refused_and_stays_as_it_is() {
        let folder = Folder::new();
        for store in [folder.store(), folder.store().with_checksum()] {
            for version in ["0", "2", "999", "18446744073709551615"] {
                let content = format!(r#"{{"version": {version}, "anything": []}}"#);
                fs::write(store.path(), &content).unwrap();
                for text in [config_error(store.load()), config_error(store.save(&HashMap::new()))] {
                    assert!(
                        text.contains("state.json") && text.contains(&format!("version {version},")),
                        "{text}"
                    );
                }
                assert_eq!(fs::read_to_string(store.path()).unwrap(), content);
            }
        }
    }

    /// Flips each bit of a file with a checksum. Loading fails, unless the bit is in insignificant white space.
    #[test]
    fn one_flipped_bit_anywhere_is_found() {
        let folder = Folder::new();
        let store = folder.store().with_checksum();
        let saved = subscriptions(&["a", "b"]);
        store.save(&saved).unwrap();
        let good = fs::read(store.path()).unwrap();
        let mut found = 0;
        for bit in 0..good.len() * 8 {
            let mut changed = good.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            match store.decode(&changed) {
                Err(EventError::Config(_)) => found += 1,
                Err(other) => panic!("{other}"),
                Ok(state) => {
                    assert!(good[bit / 8].is_ascii_whitespace(), "byte {}: {changed:?}", bit / 8);
                    assert_eq!(
                        serde_json::to_value(state.subscriptions).unwrap(),
                        serde_json::to_value(&saved).unwrap()
                    );
                }
            }
        }
        assert!(found > good.len() * 6, "{found}");
    }

    #[test]
    fn a_file_with_a_checksum_keeps_it_and_one_without_gets_it_on_demand() {
        let folder = Folder::new();
        let plain = folder.store();
        plain.save(&subscriptions(&["a"])).unwrap();
        let checksummed = folder.store().with_checksum();
        assert_eq!(checksummed.load().unwrap().len(), 1, "a plain file loads");
        checksummed.save(&subscriptions(&["a", "b"])).unwrap();
        plain.save(&subscriptions(&["a", "b", "c"])).unwrap();
        let file: Value = serde_json::from_slice(&fs::read(plain.path()).unwrap()).unwrap();
        assert_eq!(file["version"], 1);
        assert_eq!(file["checksum"], checksum(&file["subscriptions"]));
        assert_eq!(plain.load().unwrap().len(), 3);
    }

    #[test]
    fn stores_of_one_process_share_the_file_and_leave_the_lock_when_the_last_one_goes() {
        let folder = Folder::new();
        let [first, second] = [(); 2].map(|()| folder.store());
        first.save(&subscriptions(&["a"])).unwrap();
        second.save(&subscriptions(&["b"])).unwrap();
        let clone = second.clone();
        drop((first, second));
        let lock_path = folder.0.join("state.json.lock");
        assert_eq!(fs::read_to_string(&lock_path).unwrap(), std::process::id().to_string());
        let other = File::open(&lock_path).unwrap();
        assert!(other.try_lock().is_err(), "the clone still holds it");
        drop(clone);
        other.try_lock().unwrap();
        let text = config_error(folder.store().load());
        assert!(text.contains("state.json") && text.contains("cannot be used: process"), "{text}");
        assert!(config_error(folder.store().save(&HashMap::new())).contains("cannot be written: process"));
    }

    #[test]
    fn an_absent_folder_is_not_made_by_loading() {
        let folder = Folder::new();
        let store = FileStateStore::new(folder.0.join("absent").join("state.json"));
        assert!(store.load().unwrap().is_empty());
        assert!(!folder.0.join("absent").exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_write_is_taken_back() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new();
        let store = folder.store();
        store.save(&subscriptions(&["a"])).unwrap();
        for (mode, expected) in [(0o666, 0o600), (0o620, 0o600), (0o644, 0o644)] {
            fs::set_permissions(store.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(store.load().unwrap().len(), 1);
            assert_eq!(fs::metadata(store.path()).unwrap().permissions().mode() & 0o777, expected);
        }
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

        fs::remove_file(folder.store().path()).unwrap();
        folder.store().save(&subscriptions(&["a"])).unwrap();
        let mut large = subscriptions(&["b"]);
        large.values_mut().for_each(|filter| filter.subjects = vec!["x".repeat(64 << 20)]);
        assert!(config_error(folder.store().save(&large)).contains("cannot be written: larger than"));
        assert!(folder.store().load().unwrap().contains_key("a"));
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
        assert_eq!(folder.file_names(), ["state.json", "state.json.bak"]);
        assert_eq!(FileStateStore::new(folder.0.join("state.json.bak")).load().unwrap().len(), 1);
    }

    /// A torn write, as on a file system that does not keep the requested order.
    #[test]
    fn a_file_that_was_cut_off_anywhere_names_what_to_restore_it_from() {
        let folder = Folder::new();
        for store in [folder.store(), folder.store().with_checksum()] {
            store.save(&subscriptions(&["a"])).unwrap();
            store.save(&subscriptions(&["a", "b"])).unwrap();
            let good = fs::read(store.path()).unwrap();
            for len in 0..good.len() {
                fs::write(store.path(), &good[..len]).unwrap();
                for text in [config_error(store.load()), config_error(store.save(&HashMap::new()))] {
                    assert!(text.contains("restore it from") && text.contains("state.json.bak"), "{text}");
                }
            }
            fs::copy(folder.0.join("state.json.bak"), store.path()).unwrap();
            assert_eq!(store.load().unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
        }
    }

    /// The state after a crash between the two renames of a save.
    #[test]
    fn a_copy_that_is_the_file_itself_is_replaced() {
        let folder = Folder::new();
        let store = folder.store();
        store.save(&subscriptions(&["a"])).unwrap();
        fs::hard_link(store.path(), folder.0.join("state.json.bak")).unwrap();
        store.save(&subscriptions(&["b"])).unwrap();
        assert_eq!(folder.file_names(), ["state.json", "state.json.bak"]);
        let copy = FileStateStore::new(folder.0.join("state.json.bak"));
        assert!(store.load().unwrap().contains_key("b") && copy.load().unwrap().contains_key("a"));
    }

    #[test]
    fn what_cannot_be_copied_is_saved_all_the_same() {
        let folder = Folder::new();
        fs::create_dir(folder.0.join("state.json.bak")).unwrap();
        for ids in [["a"].as_slice(), &["b"], &["c"]] {
            folder.store().save(&subscriptions(ids)).unwrap();
        }
        assert!(folder.store().load().unwrap().contains_key("c"));
        assert_eq!(folder.file_names(), ["state.json", "state.json.bak"], "and nothing is left behind");
    }
}
