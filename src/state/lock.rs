//! A lock that reserves a file for one process.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::poison::IgnorePoison;
use crate::private_file;

/// Locks that this process holds. The system's lock is between processes; the stores of one process share it.
static HELD: Mutex<BTreeMap<PathBuf, Held>> = Mutex::new(BTreeMap::new());

struct Held {
    /// Locked as long as it is open.
    _file: File,
    users: usize,
}

/// Reason why a file could not be locked.
pub(super) enum NotLocked {
    /// Another process holds the lock; its id, if it can be read.
    ByOther(Option<u32>),
    /// The lock cannot be created, for instance because the folder does not exist or is not writable.
    Io(io::Error),
}

impl fmt::Display for NotLocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByOther(Some(pid)) => write!(f, "process {pid} uses it"),
            Self::ByOther(None) => f.write_str("another process uses it"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

/// Lock of this process on a file. It ends when the last of its stores is dropped, or with the process.
#[derive(Debug)]
pub(super) struct ProcessLock {
    path: PathBuf,
}

impl ProcessLock {
    /// Locks `path`, which contains only the id of the process. The file stays when the lock ends: removing it would
    /// break the lock of a process that waits for it.
    pub(super) fn acquire(path: &Path) -> Result<Self, NotLocked> {
        let path = canonical(path).map_err(NotLocked::Io)?;
        let mut held = held();
        if let Some(held) = held.get_mut(&path) {
            held.users += 1;
        } else {
            held.insert(path.clone(), Held { _file: lock(&path)?, users: 1 });
        }
        Ok(Self { path })
    }
}

impl Drop for ProcessLock {
    fn drop(&mut self) {
        let mut held = held();
        if let Some(lock) = held.get_mut(&self.path) {
            lock.users -= 1;
            if lock.users == 0 {
                held.remove(&self.path);
            }
        }
    }
}

fn held() -> MutexGuard<'static, BTreeMap<PathBuf, Held>> {
    // Counting cannot panic, so that poison can be ignored.
    HELD.lock().ignore_poison()
}

/// Returns the canonical path of a file that may not exist yet, in a folder that does.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(folder.canonicalize()?.join(name))
}

/// Locks a file. It may wait for a lock that this process itself has ended: a child process that is just starting holds
/// a copy of the open file for a moment.
fn lock(path: &Path) -> Result<File, NotLocked> {
    const MOMENT: Duration = Duration::from_millis(5);
    for _ in 0..100 {
        match try_lock(path) {
            Err(NotLocked::ByOther(Some(owner))) if owner == std::process::id() => {
                std::thread::park_timeout(MOMENT);
            }
            done => return done,
        }
    }
    try_lock(path)
}

/// Returns the process id in a lock file.
fn owner(file: &mut File) -> Option<u32> {
    const LONGEST_ID: u64 = 10;
    let mut text = String::new();
    file.take(LONGEST_ID).read_to_string(&mut text).ok()?;
    text.parse().ok()
}

fn try_lock(path: &Path) -> Result<File, NotLocked> {
    let mut options = private_file::create_options();
    options.read(true).create(true).truncate(false);
    let mut file = private_file::open_unlinked(&options, path).map_err(NotLocked::Io)?;
    match file.try_lock() {
        Ok(()) => {
            // For people only; the lock works without it.
            let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => Err(NotLocked::ByOther(owner(&mut file))),
        Err(TryLockError::Error(error)) => Err(NotLocked::Io(error)),
    }
}
