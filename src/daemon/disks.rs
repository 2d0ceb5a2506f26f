//! Full file systems, as the journal and the status file show them. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::status::DiskFull;
use crate::sys::clock::is_within;
use crate::sys::private_files::room::FullDisk;

/// How often the file systems are checked.
const CHECK_MILLIS: i64 = 3_000;

/// Since when each file system has been full, in milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Disks {
    full_since: BTreeMap<PathBuf, i64>,
    checked_at: Option<i64>,
}

/// Changes, as log lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) warnings: Vec<String>,
    pub(super) recoveries: Vec<String>,
}

impl Disks {
    /// Whether a check of the file systems is due. The check counts as done.
    pub(super) fn is_due(&mut self, now: i64) -> bool {
        let is_due = self.checked_at.is_none_or(|at| !is_within(CHECK_MILLIS, at, now));
        if is_due {
            self.checked_at = Some(now);
        }
        is_due
    }

    /// Records the full file systems at `now`.
    pub(super) fn update(&mut self, full: &[FullDisk], now: i64) -> Changes {
        let mut changes = Changes::default();
        self.full_since.retain(|path, _| {
            let is_full = full.iter().any(|disk| disk.path == *path);
            if !is_full {
                changes.recoveries.push(format!(
                    "the file system of {} has enough free space again",
                    path.display()
                ));
            }
            is_full
        });
        for FullDisk { path, text } in full {
            if self.full_since.contains_key(path) {
                continue;
            }
            self.full_since.insert(path.clone(), now);
            let path = path.display();
            changes.warnings.push(format!(
                "{text}; a restart loses unsaved changes; free some space: df -h {path}"
            ));
        }
        changes
    }

    /// The file systems for the status file.
    pub(super) fn full(&self) -> Vec<DiskFull> {
        let disks = self.full_since.iter();
        disks
            .map(|(path, since)| DiskFull {
                path: path.display().to_string(),
                at: since.div_euclid(1000),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full_disk(free_kib: u32) -> FullDisk {
        let text = format!("{free_kib} KiB are free on the file system of /x");
        FullDisk { path: "/x".into(), text }
    }

    fn warning(free_kib: u32) -> String {
        format!(
            "{free_kib} KiB are free on the file system of /x; a restart loses unsaved changes; free some \
             space: df -h /x"
        )
    }

    #[test]
    fn full_disk_is_a_line_when_it_fills_and_one_when_it_has_room() {
        const NOW: i64 = 1_795_342_600_000;
        let recovery = "the file system of /x has enough free space again".to_owned();
        // The full disk, the lines, and the number of full disks.
        let table = [
            (None, None, None, 0),
            (Some(full_disk(7)), Some(warning(7)), None, 1),
            (Some(full_disk(5)), None, None, 1),
            (None, None, Some(recovery), 0),
            (Some(full_disk(3)), Some(warning(3)), None, 1),
        ];
        let mut disks = Disks::default();
        for (full, warning, recovery, count) in table {
            let (warnings, recoveries) = (Vec::from_iter(warning), Vec::from_iter(recovery));
            let changes = disks.update(full.as_slice(), NOW);
            assert_eq!(changes, Changes { warnings, recoveries }, "{full:?}");
            assert_eq!(disks.full().len(), count);
        }
        let due = [0, 1_000, 2_999, 3_000, -90_000, -88_000].map(|at| disks.is_due(NOW + at));
        assert_eq!(due, [true, false, false, true, true, false]);
    }
}
