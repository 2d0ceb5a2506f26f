//! Reads the paths of fail2ban's socket and database from fail2ban's own settings, as `fail2ban-client` does.
//!
//! Later files win: `fail2ban.conf`, `fail2ban.d/*.conf`, `fail2ban.local`, `fail2ban.d/*.local` (fail2ban's
//! `client/configparserinc.py`), and `[Definition]` wins over `[DEFAULT]`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::sys::paths::Paths;

/// fail2ban's directory on Debian.
pub const SETTINGS_DIR: &str = "/etc/fail2ban";

/// A settings file has a few KiB; only this much of a larger file is read.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// The paths in the settings; `None` if a setting is missing or not an absolute path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The server's socket.
    pub socket: Option<PathBuf>,
    /// The database. Once the server answers, its own answer takes precedence.
    pub database: Option<PathBuf>,
}

impl Settings {
    /// Reads the settings below a directory. A file that cannot be read counts as empty.
    #[must_use]
    pub fn read(dir: &Path) -> Self {
        let mut keys = BTreeMap::new();
        for path in files(dir) {
            collect(&text(&path), &mut keys);
        }
        Self { socket: absolute_path(&keys, "socket"), database: absolute_path(&keys, "dbfile") }
    }
}

/// Values by section and name.
type Keys = BTreeMap<(String, String), String>;

fn absolute_path(keys: &Keys, name: &str) -> Option<PathBuf> {
    let mut sections = ["Definition", "DEFAULT"].into_iter();
    let value = sections.find_map(|section| keys.get(&(section.to_owned(), name.to_owned())))?;
    Path::new(value).is_absolute().then(|| PathBuf::from(value))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for extension in ["conf", "local"] {
        files.push(dir.join("fail2ban").with_extension(extension));
        let entries = fs::read_dir(dir.join("fail2ban.d")).into_iter().flatten().flatten();
        let mut overrides: Vec<_> = entries.map(|entry| entry.path()).collect();
        overrides.retain(|path| path.extension().is_some_and(|found| found == extension));
        overrides.sort_unstable();
        files.append(&mut overrides);
    }
    files
}

fn text(path: &Path) -> String {
    use std::io::Read as _;
    let mut text = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(MAX_FILE_BYTES).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Adds the keys of a file, by section and name (Python's `configparser`: `key = value` or `key: value`, names in upper
/// or lower case; `#` and `;` start a comment, ` ;` also after a value).
fn collect(text: &str, keys: &mut Keys) {
    let mut section = String::new();
    for line in text.lines().filter(|line| !line.starts_with([' ', '\t', '#', ';'])) {
        if let Some((name, _)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            name.clone_into(&mut section);
        } else if let Some((name, value)) = line.split_once(['=', ':']) {
            let value = value.split(" ;").next().unwrap_or_default().trim();
            keys.insert((section.clone(), name.trim().to_lowercase()), value.to_owned());
        }
    }
}

impl Paths {
    /// These paths with the socket and the database that fail2ban's settings name. `socket` overrides fail2ban's
    /// setting, for a fail2ban whose settings are elsewhere (in a container, or from pip).
    #[must_use]
    pub fn located(&self, socket: Option<&Path>) -> Self {
        self.located_by(&Settings::read(Path::new(SETTINGS_DIR)), socket)
    }

    fn located_by(&self, settings: &Settings, socket: Option<&Path>) -> Self {
        let mut paths = self.clone();
        if let Some(socket) = socket.or(settings.socket.as_deref()) {
            socket.clone_into(&mut paths.fail2ban);
        }
        if let Some(database) = &settings.database {
            database.clone_into(&mut paths.database);
        }
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The socket and the database; empty if the settings do not have them.
    fn read_paths(dir: &Path) -> [String; 2] {
        let Settings { socket, database } = Settings::read(dir);
        [socket, database].map(|path| path.unwrap_or_default().display().to_string())
    }

    #[test]
    fn paths_are_those_that_fail2ban_client_uses() {
        let root = tempfile::tempdir().unwrap();
        let (dir, more) = (root.path(), root.path().join("fail2ban.d"));
        assert_eq!(read_paths(dir), ["", ""]);
        fs::create_dir(&more).unwrap();
        // Each step adds a file to the earlier ones.
        let table = [
            (
                "fail2ban.conf",
                "[DEFAULT]\n# socket = /x\n[Definition]\nsocket = /run/a.sock\ndbfile = /var/a\n loglevel = /no\n",
                ["/run/a.sock", "/var/a"],
            ),
            (
                "fail2ban.d/b.conf",
                "[Definition]\nSocket: /run/b.sock ; here\n",
                ["/run/b.sock", "/var/a"],
            ),
            (
                "fail2ban.local",
                "[Definition]\r\nsocket=/run/c.sock\r\ndbfile = None\r\n",
                ["/run/c.sock", ""],
            ),
            (
                "fail2ban.d/d.local",
                "[DEFAULT]\nsocket = /run/default.sock\n[Thread]\nsocket = /run/x\n",
                ["/run/c.sock", ""],
            ),
            ("fail2ban.d/a.local", "[Definition]\nsocket = /run/e.sock\n", ["/run/e.sock", ""]),
            ("fail2ban.d/z.local", "[Definition]\nsocket = %(odd)s\n", ["", ""]),
            ("fail2ban.d/zz.txt", "[Definition]\nsocket = /run/f.sock\n", ["", ""]),
        ];
        for (name, text, expected) in table {
            fs::write(dir.join(name), text).unwrap();
            assert_eq!(read_paths(dir), expected, "{name}");
        }
    }

    /// fail2ban's settings with this socket; empty: without any.
    fn settings(socket: &str) -> Settings {
        Settings {
            socket: (!socket.is_empty()).then(|| socket.into()),
            database: (!socket.is_empty()).then(|| "/srv/db".into()),
        }
    }

    #[test]
    fn own_setting_overrides_fail2ban_s_which_overrides_the_default() {
        let table = [
            (
                settings(""),
                None,
                "/run/fail2ban/fail2ban.sock",
                "/var/lib/fail2ban/fail2ban.sqlite3",
            ),
            (settings("/srv/a"), None, "/srv/a", "/srv/db"),
            (settings("/srv/a"), Some("/srv/b"), "/srv/b", "/srv/db"),
        ];
        for (settings, own, socket, database) in table {
            let paths = Paths::default().located_by(&settings, own.map(Path::new));
            assert_eq!((paths.fail2ban, paths.database), (socket.into(), database.into()));
        }
    }
}
