//! Tests the rules with a table, and with real directories.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

#[test]
fn directory_of_other_users_is_rejected() {
    use DirContent::{Database, Directories, Log};
    const EVE: u32 = 1001;
    const SYSLOG: u32 = 104;
    let table = [
        // (user, group, mode), and whether it is safe (.), questionable (!) or rejected (x) for each content.
        ((0, 0, 0o700), "..."),
        ((0, 0, 0o755), "..."),
        ((0, 0, 0o775), "..."),
        ((0, SYSLOG, 0o755), "..."),
        ((0, SYSLOG, 0o775), "x!!"), // /var/log of Ubuntu
        ((0, UNMAPPED_ID, 0o775), "x!!"),
        ((0, USERS_GID, 0o775), "xxx"),
        ((0, EVE, 0o775), "xxx"),
        ((0, EVE, 0o1775), "xx!"),
        ((0, EVE, 0o755), "..."),
        ((0, 0, 0o777), "xxx"),
        ((0, 0, 0o1777), "xx!"), // /tmp
        ((EVE, EVE, 0o700), "xxx"),
        ((EVE, 0, 0o1755), "xxx"),
        ((UNMAPPED_ID, 0, 0o755), "xxx"),
    ];
    for (dir, expected) in table {
        for (content, expected) in [Database, Log, Directories].into_iter().zip(expected.chars()) {
            let found = match judge(dir, 0, content) {
                DirSafety::Safe => '.',
                DirSafety::Questionable(_) => '!',
                DirSafety::Unsafe(_) => 'x',
            };
            assert_eq!(found, expected, "{dir:?} {content:?}");
        }
    }
    assert_eq!(judge((EVE, EVE, 0o755), EVE, Database), DirSafety::Safe, "a person's own");
}

fn with_mode(dir: &Path, mode: u32) {
    fs::create_dir_all(dir).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn unsafe_directory_of_a_path_is_rejected_also_behind_links() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path();
    with_mode(&root.join("own"), 0o700);
    with_mode(&root.join("open"), 0o777);
    with_mode(&root.join("open/own"), 0o700);
    symlink(root.join("own"), root.join("link")).unwrap();
    symlink(root.join("own"), root.join("open/link")).unwrap();
    symlink(root.join("open/link"), root.join("to-link")).unwrap();
    symlink("../own", root.join("own/back")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    let rejected = ["open/db", "open/own/db", "open/link/db", "to-link/db", "open/new/deep/db"];
    for path in rejected {
        let error = check_path(&root.join(path), DirContent::Database).unwrap_err().to_string();
        let expected =
            format!("{} is writable by every user, who could", root.join("open").display());
        assert!(error.starts_with(&expected), "{path}: {error}");
        assert!(error.contains("chmod go-w"), "{error}");
    }
    for path in ["own/db", "link/db", "own/back/db", "own/new/deep/db", "own/../own/db"] {
        for content in [DirContent::Database, DirContent::Log] {
            check_path(&root.join(path), content).unwrap();
        }
    }
    assert!(check_path(&root.join("loop/db"), DirContent::Log).is_err());
    assert!(!root.join("own/new").exists(), "the check creates nothing");
    // The sticky bit protects what root owns in the directory.
    with_mode(&root.join("open"), 0o1777);
    let warnings = check_path(&root.join("open/own/db"), DirContent::Database).unwrap();
    let expected = format!("{} is writable by every user", root.join("open").display());
    assert!(warnings.contains(&expected), "{warnings:?}");
    assert!(check_path(&root.join("open/db"), DirContent::Log).is_err());
}

#[test]
fn only_a_regular_file_is_usable() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for fifo in ["fifo", "db-journal"] {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, root.join(fifo), kind, mode, 0).unwrap();
    }
    fs::create_dir(root.join("dir")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    symlink("elsewhere", root.join("link")).unwrap();
    let table = [
        ("fifo", "not a regular file but a FIFO"),
        ("dir", "not a regular file but a directory"),
        ("socket", "not a regular file but a socket"),
        ("link", "Too many levels of symbolic links"),
        ("db", "not a regular file but a FIFO"),
    ];
    for (name, expected) in table {
        let error = check_path(&root.join(name), DirContent::Database).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    check_path(&root.join("db"), DirContent::Log).unwrap();
    assert!(
        check_path(Path::new("/dev/null"), DirContent::Log)
            .unwrap_err()
            .to_string()
            .contains("a device")
    );
}
