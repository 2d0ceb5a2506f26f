//! Which paths another process may write to, by its mounts (`mountinfo` in proc(5)).

use std::fs;
use std::path::Path;

/// Whether a path is mounted read-only for a process; `None` if the process has ended.
#[must_use]
pub fn is_read_only_for(pid: i32, path: &Path) -> Option<bool> {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
    Some(is_read_only(&mounts, path))
}

/// Whether a path is mounted read-only. The deepest mount above the path decides; of several, the last.
fn is_read_only(mounts: &str, path: &Path) -> bool {
    let mount = |line: &str| {
        let mut fields = line.split(' ');
        let point = fields.nth(4)?.replace("\\040", " ");
        let options = fields.next()?.to_owned();
        let file_system = line.rsplit(' ').next()?;
        let read_only = |options: &str| options.split(',').any(|option| option == "ro");
        path.starts_with(&point)
            .then(|| (point.len(), read_only(&options) || read_only(file_system)))
    };
    let deepest = mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth);
    deepest.is_some_and(|(_, read_only)| read_only)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
823 796 0:110 / / rw,relatime shared:116 - overlay overlay rw,lowerdir=/x
830 823 0:117 / /var/lib ro,nosuid shared:122 - tmpfs tmpfs rw,size=1k
831 830 0:118 / /var/lib/f2bmqtt ro - tmpfs tmpfs rw
832 831 0:118 / /var/lib/f2bmqtt rw - tmpfs tmpfs rw
833 823 0:119 / /srv rw - ext4 /dev/x ro
834 823 0:119 / /with\\040blank ro - ext4 /dev/x rw";

    #[test]
    fn last_of_the_deepest_mounts_decides() {
        let table = [
            ("/var/lib/f2bmqtt/spool", false),
            ("/var/lib/f2bmqtt2", true),
            ("/var/lib/x", true),
            ("/var/x", false),
            ("/srv/x", true),
            ("/with blank/x", true),
        ];
        for (path, expected) in table {
            assert_eq!(is_read_only(MOUNTS, Path::new(path)), expected, "{path}");
        }
        assert!(!is_read_only("", Path::new("/")));
    }
}
