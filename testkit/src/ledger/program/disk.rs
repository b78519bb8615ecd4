//! The disk of a round's files: small, so that it can be filled.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const MEGABYTE: usize = 1 << 20;
const SIZE: usize = 64 * MEGABYTE;

/// A folder for the files of a round, on a file system of its own where the driver may mount one.
pub(super) struct Disk {
    folder: PathBuf,
    is_mounted: bool,
}

impl Disk {
    /// Creates the folder, and mounts a small file system if it is to be filled.
    pub(super) fn new(folder: PathBuf, is_small: bool) -> std::io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let is_mounted = is_small && mount(&folder);
        Ok(Self { folder, is_mounted })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns true if this process may mount a file system.
    pub(super) fn can_be_small(scratch: &Path) -> bool {
        Self::new(scratch.join("probe"), true).is_ok_and(|disk| disk.is_mounted)
    }

    /// Fills the disk to the last block.
    pub(super) fn fill(&self) -> std::io::Result<()> {
        let mut ballast = File::create(self.ballast())?;
        let mut block = vec![0; MEGABYTE];
        while !block.is_empty() {
            match ballast.write(&block) {
                Ok(written) if written == block.len() => {}
                // What is left is less than this.
                _ => block.truncate(block.len() / 2),
            }
        }
        Ok(())
    }

    /// Makes room again.
    pub(super) fn free(&self) -> std::io::Result<()> {
        fs::remove_file(self.ballast())
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg("--lazy").arg(&self.folder).output();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn mount(folder: &Path) -> bool {
    let size = format!("size={SIZE}");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).output();
    mount.is_ok_and(|done| done.status.success())
}
