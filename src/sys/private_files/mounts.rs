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
    let mounts = mounts.lines().filter_map(parse_mount);
    let above = mounts.filter(|(point, _)| path.starts_with(point));
    above.max_by_key(|(point, _)| point.len()).is_some_and(|(_, is_read_only)| is_read_only)
}

/// The mount point in a line of mountinfo, and whether the mount or its file system is read-only.
fn parse_mount(line: &str) -> Option<(String, bool)> {
    let mut fields = line.split(' ');
    let point = fields.nth(4)?.replace("\\040", " ");
    let (mount_options, file_system_options) = (fields.next()?, line.rsplit(' ').next()?);
    let mut options = mount_options.split(',').chain(file_system_options.split(','));
    Some((point, options.any(|option| option == "ro")))
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
