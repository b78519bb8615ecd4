//! Files that only the user of this process can access.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// Reason why a file is not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is not a file")]
    NotAFile,
    #[error("larger than {0} bytes")]
    TooLarge(u64),
}

/// Reads a regular file of at most `max_len` bytes, and returns it with its metadata.
pub(crate) fn read(path: &Path, max_len: u64) -> Result<(Vec<u8>, File, Metadata), Refusal> {
    // Checked before opening, because opening a pipe waits for its other end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Refusal::NotAFile);
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Refusal::NotAFile);
    }
    let expected = usize::try_from(metadata.len().min(max_len)).unwrap_or_default();
    let mut content = Vec::with_capacity(expected.saturating_add(1));
    // One byte over the limit shows that the file is too large, regardless of the metadata.
    (&file).take(max_len.saturating_add(1)).read_to_end(&mut content)?;
    if u64::try_from(content.len()).is_ok_and(|len| len <= max_len) {
        return Ok((content, file, metadata));
    }
    Err(Refusal::TooLarge(max_len))
}

/// Creates a folder and its parents, and flushes their names to the disk. On Unix, only their owner can access the new
/// ones.
pub(crate) fn create_folder(folder: &Path) -> io::Result<()> {
    let is_missing = |ancestor: &&Path| !ancestor.as_os_str().is_empty() && !ancestor.exists();
    let missing: Vec<_> = folder.ancestors().take_while(is_missing).collect();
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)?;
    missing.into_iter().rev().try_for_each(sync_parent)
}

/// Returns options that create files which, on Unix, only their owner can read.
pub(crate) fn create_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Opens a file that may exist. Refuses a symbolic link, because another user may have created it.
pub(crate) fn open_unlinked(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let refuse_link = || match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a symbolic link"))
        }
        _ => Ok(()),
    };
    refuse_link()?;
    let file = options.open(path)?;
    // The link may have been created meanwhile; nothing was written yet.
    refuse_link()?;
    Ok(file)
}

/// Writes a new file and flushes it to the disk. Fails if the file exists.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = create_options().create_new(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Restricts a file to its owner.
pub(crate) fn make_private(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    return file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600));
    #[cfg(not(unix))]
    {
        let _ = file;
        Ok(())
    }
}

/// Makes a rename inside the folder survive a power loss. Only Unix can flush a folder.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Makes the name of a file or folder survive a power loss.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_folder(parent.unwrap_or(Path::new(".")))
}

/// Returns the permission bits of a file if the system has them.
pub(crate) fn mode(metadata: &Metadata) -> Option<u32> {
    #[cfg(unix)]
    return Some(std::os::unix::fs::MetadataExt::mode(metadata) & 0o777);
    #[cfg(not(unix))]
    {
        let _ = metadata;
        None
    }
}

/// Owner of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "other systems do not report it"))]
pub(crate) enum Owner {
    /// The user of this process, or the administrator.
    Trusted,
    /// Another user.
    Other {
        /// If true, this process runs as the administrator.
        we_are_root: bool,
    },
    /// The system does not report the owner.
    Unknown,
}

/// Returns the owner of a file on Linux, and `Unknown` elsewhere.
pub(crate) fn owner(metadata: &Metadata) -> Owner {
    #[cfg(target_os = "linux")]
    if let Some(user) = effective_user() {
        return owner_for(std::os::unix::fs::MetadataExt::uid(metadata), user);
    }
    let _ = metadata;
    Owner::Unknown
}

#[cfg(target_os = "linux")]
fn owner_for(owner: u32, user: u32) -> Owner {
    if owner == user || owner == 0 { Owner::Trusted } else { Owner::Other { we_are_root: user == 0 } }
}

/// Returns the effective user of this process from the kernel (proc_pid_status(5)), because the standard library lacks
/// it.
#[cfg(target_os = "linux")]
fn effective_user() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_not_a_file() {
        assert!(matches!(read(&std::env::temp_dir(), 10), Err(Refusal::NotAFile)));
    }

    #[test]
    fn a_new_folder_has_its_parents() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("a/b/c");
        create_folder(&inner).unwrap();
        create_folder(&inner).unwrap();
        assert!(inner.is_dir());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let mut options = create_options();
        options.create(true).truncate(false);
        for _ in 0..2 {
            let error = open_unlinked(&options, &link).unwrap_err();
            assert_eq!(error.to_string(), "it is a symbolic link");
            if target.exists() {
                assert_eq!(std::fs::read(&target).unwrap(), b"theirs");
            }
            std::fs::write(&target, b"theirs").unwrap();
        }
        open_unlinked(&options, &target).unwrap();
        open_unlinked(&options, &folder.path().join("new")).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn our_own_files_and_those_of_the_administrator_are_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own");
        write_new(&path, b"x").unwrap();
        let (content, _, metadata) = read(&path, 1).unwrap();
        assert_eq!((content.as_slice(), mode(&metadata)), (b"x".as_slice(), Some(0o600)));
        assert_eq!(owner(&metadata), Owner::Trusted);
        assert!(matches!(read(&path, 0), Err(Refusal::TooLarge(0))));
        assert!(write_new(&path, b"y").is_err(), "it exists");

        assert_eq!(owner_for(0, 1000), Owner::Trusted);
        assert_eq!(owner_for(1001, 1000), Owner::Other { we_are_root: false });
        assert_eq!(owner_for(1001, 0), Owner::Other { we_are_root: true });
    }
}
