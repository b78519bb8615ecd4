//! Replaces a file at once, so that no reader sees half of it.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Replaces the content of a file or creates it. Keeps the permissions, and the link that leads to the file.
///
/// Only the user can read a new file.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let path = target(path);
    let mut file = tempfile::NamedTempFile::new_in(folder(&path))?;
    file.write_all(content)?;
    if let Ok(existing) = fs::metadata(&path) {
        file.as_file().set_permissions(existing.permissions())?;
    }
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}

/// Returns the file at the end of links, which may not exist yet.
fn target(path: &Path) -> PathBuf {
    fs::canonicalize(path)
        .or_else(|_| fs::read_link(path).map(|target| folder(path).join(target)))
        .unwrap_or_else(|_| path.to_path_buf())
}

/// Returns the folder of a file.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn permissions_and_links_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        symlink("file", &link).unwrap();
        let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        replace(&link, b"1").unwrap();
        assert_eq!((fs::read(&file).unwrap(), mode()), (b"1".to_vec(), 0o600));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&link, b"2").unwrap();
        assert_eq!((fs::read(&file).unwrap(), mode()), (b"2".to_vec(), 0o640));
        assert!(link.is_symlink() && fs::read_dir(&folder).unwrap().count() == 2);
    }
}
