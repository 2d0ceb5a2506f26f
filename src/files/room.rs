//! Free space on the file systems that the daemon, fail2ban and the reporter write to.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use crate::abuseipdb::call::{LEDGER, LOG};
use crate::paths::Paths;

/// The least free space on a disk and in memory (`/run`), in bytes.
const MIN_DISK: u64 = 16 * 1024 * 1024;
const MIN_MEMORY: u64 = 1024 * 1024;

/// The free space on a file system: bytes and inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Room {
    pub bytes: u64,
    pub files: u64,
    pub is_read_only: bool,
}

impl Room {
    /// The free space at a path; `None` if the path cannot be examined.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let room = rustix::fs::statvfs(path).ok()?;
        Some(Self {
            bytes: room.f_bavail.saturating_mul(room.f_frsize),
            // Some file systems, such as btrfs, have no inode limit and report 0.
            files: if room.f_files == 0 { u64::MAX } else { room.f_favail },
            is_read_only: room.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    }

    /// Why no file can be written to the file system of `path`, if so.
    #[must_use]
    pub fn shortage(&self, path: &Path) -> Option<String> {
        self.less_than(MIN_DISK, path)
    }

    fn less_than(&self, min: u64, path: &Path) -> Option<String> {
        let what = match self {
            Self { is_read_only: true, .. } => "cannot write".to_owned(),
            Self { files: 0, .. } => "no free inode is left".to_owned(),
            Self { bytes, .. } if *bytes < min => {
                format!("only {} KiB of at least {} KiB are free", bytes / 1024, min / 1024)
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
    let parent = |path: &Path| path.parent().map(Path::to_owned);
    let others = [parent(&paths.database), parent(Path::new(LEDGER)), parent(Path::new(LOG))];
    let own = [(paths.state.clone(), MIN_DISK), (paths.run.clone(), MIN_MEMORY)];
    let own = own.map(|(path, min)| (path, min, true));
    let others = others.into_iter().flatten().map(|path| (path, MIN_DISK, false));
    let mut seen = BTreeSet::new();
    let full = own.into_iter().chain(others).filter_map(|(path, min, is_own)| {
        if !seen.insert(fs::metadata(&path).ok()?.dev()) {
            return None;
        }
        let mut room = Room::of(&path)?;
        // The service's sandbox mounts the directories of other programs read-only.
        room.is_read_only &= is_own;
        Some(FullDisk { text: room.less_than(min, &path)?, path })
    });
    full.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_file_system_is_named_with_its_limit() {
        let room = |bytes, files, is_read_only| Room { bytes, files, is_read_only };
        let table = [
            (room(MIN_DISK, 1, false), None),
            (room(MIN_DISK - 1, 1, false), Some("only 16383 KiB of at least 16384 KiB are free")),
            (room(0, u64::MAX, false), Some("only 0 KiB of at least 16384 KiB are free")),
            (room(1 << 40, 0, false), Some("no free inode is left")),
            (room(1 << 40, 9, true), Some("cannot write")),
        ];
        for (room, what) in table {
            let expected = what.map(|what| format!("{what} on the file system of /x"));
            assert_eq!(room.shortage(Path::new("/x")), expected, "{room:?}");
        }
    }
}
