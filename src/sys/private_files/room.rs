//! Free space on the file systems that the daemon, fail2ban and the reporter write to.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use crate::sys::paths::{DEFAULT_LEDGER, DEFAULT_LOG, Paths};

/// The least free space on a disk and in memory (`/run`).
const MIN_DISK_BYTES: u64 = 16 * 1024 * 1024;
const MIN_MEMORY_BYTES: u64 = 1024 * 1024;

/// How much can be written to a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Free bytes for a user without privileges.
    pub bytes: u64,
    /// Free inodes; `u64::MAX` if the file system has no limit.
    pub files: u64,
    /// Whether the file system is mounted read-only for this process.
    pub is_read_only: bool,
}

impl Room {
    /// The free space at a path; `None` if the path cannot be examined.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let status = rustix::fs::statvfs(path).ok()?;
        Some(Self {
            bytes: status.f_bavail.saturating_mul(status.f_frsize),
            // Some file systems, such as btrfs, have no inode limit and report 0.
            files: if status.f_files == 0 { u64::MAX } else { status.f_favail },
            is_read_only: status.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    }

    /// Why no file can be written to the file system of `path`, if so.
    #[must_use]
    pub fn shortage(&self, path: &Path) -> Option<String> {
        self.shortage_below(MIN_DISK_BYTES, path)
    }

    fn shortage_below(&self, min: u64, path: &Path) -> Option<String> {
        let what = match self {
            Self { is_read_only: true, .. } => "cannot write".to_owned(),
            Self { files: 0, .. } => "no free inode is left".to_owned(),
            Self { bytes, .. } if *bytes < min => {
                format!(
                    "only {} KiB are free (at least {} KiB are needed)",
                    bytes / 1024,
                    min / 1024
                )
            }
            _ => return None,
        };
        Some(format!("{what} on the file system of {}", path.display()))
    }
}

/// A file system without enough free space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullDisk {
    /// A directory on the file system.
    pub path: PathBuf,
    /// The cause, for the log.
    pub text: String,
}

/// The full file systems among those that the daemon, fail2ban and the reporter write to, each once.
#[must_use]
pub fn full_disks(paths: &Paths) -> Vec<FullDisk> {
    let own = [(paths.state.clone(), MIN_DISK_BYTES), (paths.run.clone(), MIN_MEMORY_BYTES)];
    let own = own.map(|(dir, min)| (dir, min, true));
    let files = [paths.database.as_path(), Path::new(DEFAULT_LEDGER), Path::new(DEFAULT_LOG)];
    let others = files.into_iter().filter_map(Path::parent);
    let others = others.map(|dir| (dir.to_owned(), MIN_DISK_BYTES, false));
    let mut devices = BTreeSet::new();
    let full = own.into_iter().chain(others).filter_map(|(path, min, is_own)| {
        if !devices.insert(fs::metadata(&path).ok()?.dev()) {
            return None;
        }
        let mut room = Room::of(&path)?;
        // The service's sandbox mounts the directories of other programs read-only.
        room.is_read_only &= is_own;
        Some(FullDisk { text: room.shortage_below(min, &path)?, path })
    });
    full.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_file_system_is_named_with_its_limit() {
        let table = [
            ((MIN_DISK_BYTES, 1, false), None),
            (
                (MIN_DISK_BYTES - 1, 1, false),
                Some("only 16383 KiB are free (at least 16384 KiB are needed)"),
            ),
            ((0, u64::MAX, false), Some("only 0 KiB are free (at least 16384 KiB are needed)")),
            ((1 << 40, 0, false), Some("no free inode is left")),
            ((1 << 40, 9, true), Some("cannot write")),
        ];
        for ((bytes, files, is_read_only), what) in table {
            let room = Room { bytes, files, is_read_only };
            let expected = what.map(|what| format!("{what} on the file system of /x"));
            assert_eq!(room.shortage(Path::new("/x")), expected, "{room:?}");
        }
    }
}
