//! Full file systems, as the journal and the status file show them. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::status::DiskFull;
use crate::clock::is_within;
use crate::files::room::FullDisk;

/// How often the file systems are checked, in milliseconds.
const INTERVAL: i64 = 3_000;

/// Since when each file system has been full, in milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Disks {
    full: BTreeMap<PathBuf, i64>,
    checked: Option<i64>,
}

/// Changes, as log lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) warnings: Vec<String>,
    pub(super) cured: Vec<String>,
}

impl Disks {
    /// Whether it is time to check the file systems.
    pub(super) fn is_due(&mut self, now: i64) -> bool {
        let fresh = self.checked.is_some_and(|at| is_within(INTERVAL, at, now));
        if !fresh {
            self.checked = Some(now);
        }
        !fresh
    }

    /// Records the full file systems at `now`.
    pub(super) fn update(&mut self, seen: &[FullDisk], now: i64) -> Changes {
        let mut changes = Changes::default();
        self.full.retain(|path, _| {
            let full = seen.iter().any(|disk| disk.path == *path);
            if !full {
                changes.cured.push(format!(
                    "the file system of {} has enough free space again",
                    path.display()
                ));
            }
            full
        });
        for FullDisk { path, text } in seen {
            if self.full.contains_key(path) {
                continue;
            }
            self.full.insert(path.clone(), now);
            let path = path.display();
            changes.warnings.push(format!(
                "{text}; a restart loses unsaved changes; free some space: df -h {path}"
            ));
        }
        changes
    }

    /// The file systems for the status file.
    pub(super) fn shown(&self) -> Vec<DiskFull> {
        let shown = |(path, at): (&PathBuf, &i64)| DiskFull {
            path: path.display().to_string(),
            at: at.div_euclid(1000),
        };
        self.full.iter().map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_is_a_line_when_it_fills_and_one_when_it_has_room() {
        const NOW: i64 = 1_795_342_600_000;
        let full = |path: &str, free: u32| FullDisk {
            path: path.into(),
            text: format!("{free} KiB are free on the file system of {path}"),
        };
        let after = "; a restart loses unsaved changes; free some space: df -h ";
        let warning = |free: u32| format!("{free} KiB are free on the file system of /x{after}/x");
        let cured = |path: &str| format!("the file system of {path} has enough free space again");
        // What is full, the lines, and how many are shown.
        let table = [
            (None, None, None, 0),
            (Some(full("/x", 7)), Some(warning(7)), None, 1),
            (Some(full("/x", 5)), None, None, 1),
            (None, None, Some(cured("/x")), 0),
            (Some(full("/x", 3)), Some(warning(3)), None, 1),
        ];
        let mut disks = Disks::default();
        for (seen, warnings, cured, shown) in table {
            let (warnings, cured) = (warnings.into_iter().collect(), cured.into_iter().collect());
            let changes = disks.update(seen.as_slice(), NOW);
            assert_eq!(changes, Changes { warnings, cured }, "{seen:?}");
            assert_eq!(disks.shown().len(), shown);
        }
        let due = [0, 1_000, 2_999, 3_000, -90_000, -88_000].map(|at| disks.is_due(NOW + at));
        assert_eq!(due, [true, false, false, true, true, false]);
    }
}
