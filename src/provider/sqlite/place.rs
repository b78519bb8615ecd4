//! Whether the files that are open are still the ones that their names stand for.
//!
//! On Unix a file that is open can be deleted, moved away or replaced: what is written then is in no file that anybody finds.
//! Elsewhere the system does not allow it.

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

/// What is not where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Displaced {
    /// The file itself: what was stored in it is not found under its name.
    File,
    /// The log or its index: all that was stored is in the file or in what is open.
    SideFile,
}

#[derive(Debug)]
struct Named {
    path: PathBuf,
    identity: Identity,
}

/// What tells one file from another for as long as either is open.
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
            // What cannot be looked at for another reason is met by whoever reads and writes.
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }
}

impl Place {
    /// The files behind a connection that is open and in WAL mode.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        // SQLite follows links before it names them.
        let real = path.canonicalize()?;
        let side_file = |suffix| Named::new(side_file(&real, suffix));
        Ok(Self { file: Named::new(path.to_owned())?, side_files: [side_file("-wal")?, side_file("-shm")?] })
    }

    /// The write-ahead log.
    pub(super) fn log(&self) -> &Path {
        let [log, _index] = &self.side_files;
        &log.path
    }

    pub(super) fn file(&self) -> Identity {
        self.file.identity
    }

    /// What is not where it was, if anything.
    pub(super) fn displaced(&self) -> Option<Displaced> {
        if !self.file.is_there() {
            return Some(Displaced::File);
        }
        (!self.has_side_files()).then_some(Displaced::SideFile)
    }

    /// Whether the log and its index are the ones that are open.
    fn has_side_files(&self) -> bool {
        self.side_files.iter().all(Named::is_there)
    }

    /// Whether the log or its index are still there: another file must not be opened beside them.
    pub(super) fn has_left_overs(&self) -> bool {
        self.side_files
            .iter()
            .any(|named| Identity::of(&named.path).is_ok_and(|found| found == named.identity))
    }

    /// Deletes the log and its index, unless others have taken their names.
    pub(super) fn remove_side_files(&self) {
        for Named { path, identity } in &self.side_files {
            if Identity::of(path).is_ok_and(|found| found == *identity)
                && let Err(error) = std::fs::remove_file(path)
            {
                tracing::warn!(path = %path.display(), %error, "the log of a sqlite file that is gone cannot be deleted");
            }
        }
    }
}
