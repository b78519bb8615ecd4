//! Checks that the open files are still the ones at their paths.
//!
//! On Unix, an open file can be deleted, moved or replaced. Later writes then go to a file that may be unreachable.
//! Other systems do not allow this.

use std::io;
use std::path::{Path, PathBuf};

use super::schema::side_file;

/// The files that SQLite works on.
#[derive(Debug)]
pub(super) struct Place {
    file: Named,
    /// The log and its index.
    side_files: [Named; 2],
}

/// The file that is no longer at its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Displaced {
    /// The database itself. Its path no longer leads to the stored events.
    File,
    /// The log or its index. All stored events are in the database or in the open files.
    SideFile,
}

#[derive(Debug)]
struct Named {
    path: PathBuf,
    identity: Identity,
}

/// Identity of a file, unique while the file is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    #[cfg(unix)]
    device: u64,
    #[cfg(unix)]
    inode: u64,
}

impl Identity {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            Ok(Self { device: metadata.dev(), inode: metadata.ino() })
        }
        #[cfg(not(unix))]
        {
            let _ = metadata;
            Ok(Self {})
        }
    }
}

impl Named {
    fn new(path: PathBuf) -> io::Result<Self> {
        let identity = Identity::of(&path)?;
        Ok(Self { path, identity })
    }

    fn is_there(&self) -> bool {
        match Identity::of(&self.path) {
            Ok(found) => found == self.identity,
            // The next read or write reports any other error.
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }
}

impl Place {
    /// Returns the files of an open connection in WAL mode.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        // SQLite resolves links before it names the side files.
        let real = path.canonicalize()?;
        let side_file = |suffix| Named::new(side_file(&real, suffix));
        Ok(Self { file: Named::new(path.to_owned())?, side_files: [side_file("-wal")?, side_file("-shm")?] })
    }

    /// Returns the path of the write-ahead log.
    pub(super) fn log(&self) -> &Path {
        let [log, _index] = &self.side_files;
        &log.path
    }

    pub(super) fn file(&self) -> Identity {
        self.file.identity
    }

    /// Returns the file that is no longer at its path, if any.
    pub(super) fn displaced(&self) -> Option<Displaced> {
        if !self.file.is_there() {
            return Some(Displaced::File);
        }
        (!self.has_side_files()).then_some(Displaced::SideFile)
    }

    /// Returns true if the log and its index are still the open ones.
    fn has_side_files(&self) -> bool {
        self.side_files.iter().all(Named::is_there)
    }

    /// Returns true if the open log or its index still exists. Another file must not be opened beside them.
    pub(super) fn has_left_overs(&self) -> bool {
        self.side_files
            .iter()
            .any(|named| Identity::of(&named.path).is_ok_and(|found| found == named.identity))
    }

    /// Deletes the log and its index, unless other files have taken their names.
    pub(super) fn remove_side_files(&self) {
        for Named { path, identity } in &self.side_files {
            if Identity::of(path).is_ok_and(|found| found == *identity)
                && let Err(error) = std::fs::remove_file(path)
            {
                tracing::warn!(path = %path.display(), %error, "deleting the log of a removed sqlite file failed");
            }
        }
    }
}
