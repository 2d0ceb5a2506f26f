//! The rules as a table, and what they make of real directories.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

#[test]
fn directory_of_other_users_is_rejected() {
    use Keeps::{Database, Directories, Log};
    const EVE: u32 = 1001;
    const SYSLOG: u32 = 104;
    let table = [
        // (user, group, mode), and whether it is safe (.), odd (!) or refused (x) for each kind.
        ((0, 0, 0o700), "..."),
        ((0, 0, 0o755), "..."),
        ((0, 0, 0o775), "..."),
        ((0, SYSLOG, 0o755), "..."),
        ((0, SYSLOG, 0o775), "x!!"), // /var/log of Ubuntu
        ((0, UNMAPPED, 0o775), "x!!"),
        ((0, USERS, 0o775), "xxx"),
        ((0, EVE, 0o775), "xxx"),
        ((0, EVE, 0o1775), "xx!"),
        ((0, EVE, 0o755), "..."),
        ((0, 0, 0o777), "xxx"),
        ((0, 0, 0o1777), "xx!"), // /tmp
        ((EVE, EVE, 0o700), "xxx"),
        ((EVE, 0, 0o1755), "xxx"),
        ((UNMAPPED, 0, 0o755), "xxx"),
    ];
    for (dir, expected) in table {
        for (keeps, expected) in [Database, Log, Directories].into_iter().zip(expected.chars()) {
            let found = match judge(dir, 0, keeps) {
                DirSafety::Safe => '.',
                DirSafety::Odd(_) => '!',
                DirSafety::Unsafe(_) => 'x',
            };
            assert_eq!(found, expected, "{dir:?} {keeps:?}");
        }
    }
    assert_eq!(judge((EVE, EVE, 0o755), EVE, Database), DirSafety::Safe, "a person's own");
}

fn with_mode(dir: &Path, mode: u32) {
    fs::create_dir_all(dir).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn each_directory_on_the_way_counts_also_behind_links() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    with_mode(&at("own"), 0o700);
    with_mode(&at("open"), 0o777);
    with_mode(&at("open/own"), 0o700);
    symlink(at("own"), at("link")).unwrap();
    symlink(at("own"), at("open/link")).unwrap();
    symlink(at("open/link"), at("to-link")).unwrap();
    symlink("../own", at("own/back")).unwrap();
    symlink("loop", at("loop")).unwrap();
    let refused = ["open/db", "open/own/db", "open/link/db", "to-link/db", "open/new/deep/db"];
    for path in refused {
        let error = check_path(&at(path), Keeps::Database).unwrap_err().to_string();
        let expected = format!("{} is writable by every user, who could", at("open").display());
        assert!(error.starts_with(&expected), "{path}: {error}");
        assert!(error.contains("chmod go-w"), "{error}");
    }
    for path in ["own/db", "link/db", "own/back/db", "own/new/deep/db", "own/../own/db"] {
        for keeps in [Keeps::Database, Keeps::Log] {
            check_path(&at(path), keeps).unwrap();
        }
    }
    assert!(check_path(&at("loop/db"), Keeps::Log).is_err());
    assert!(!at("own/new").exists(), "to look makes nothing");
    // What the sticky bit protects.
    with_mode(&at("open"), 0o1777);
    let odd = check_path(&at("open/own/db"), Keeps::Database).unwrap();
    let expected = format!("{} is writable by every user", at("open").display());
    assert!(odd.contains(&expected), "{odd:?}");
    assert!(check_path(&at("open/db"), Keeps::Log).is_err());
}

#[test]
fn only_a_regular_file_is_usable() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let fifo = |name: &str| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, at(name), rustix::fs::FileType::Fifo, mode, 0)
            .unwrap();
    };
    fifo("fifo");
    fifo("db-journal");
    fs::create_dir(at("dir")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    symlink("elsewhere", at("link")).unwrap();
    let table = [
        ("fifo", "not a regular file but a FIFO"),
        ("dir", "not a regular file but a directory"),
        ("socket", "not a regular file but a socket"),
        ("link", "Too many levels of symbolic links"),
        ("db", "not a regular file but a FIFO"),
    ];
    for (name, expected) in table {
        let error = check_path(&at(name), Keeps::Database).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    check_path(&at("db"), Keeps::Log).unwrap();
    assert!(
        check_path(Path::new("/dev/null"), Keeps::Log)
            .unwrap_err()
            .to_string()
            .contains("a device")
    );
}
