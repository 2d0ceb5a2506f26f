//! Where fail2ban's own settings put its socket and its database, as `fail2ban-client` reads them.
//!
//! Later files win: `fail2ban.conf`, `fail2ban.d/*.conf`, `fail2ban.local`, `fail2ban.d/*.local` (fail2ban's
//! `client/configparserinc.py`), and `[Definition]` wins over `[DEFAULT]`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// fail2ban's directory on Debian.
pub const DIR: &str = "/etc/fail2ban";

/// A settings file is a few KiB; more than so many bytes of it are not read.
const MAX_BYTES: u64 = 256 * 1024;

/// What the settings say; `None` where they say nothing that can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    #[allow(missing_docs)]
    pub socket: Option<PathBuf>,
    /// The server itself knows better, once it answers.
    pub database: Option<PathBuf>,
}

impl Settings {
    /// Reads the settings below a directory. What cannot be read says nothing.
    #[must_use]
    pub fn read(dir: &Path) -> Self {
        let mut keys = BTreeMap::new();
        for path in files(dir) {
            collect(&text(&path), &mut keys);
        }
        let path = |name: &str| {
            let of = |section: &str| keys.get(&(section.to_owned(), name.to_owned()));
            let value = of("Definition").or_else(|| of("DEFAULT"))?;
            Path::new(value).is_absolute().then(|| PathBuf::from(value))
        };
        Self { socket: path("socket"), database: path("dbfile") }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for extension in ["conf", "local"] {
        files.push(dir.join("fail2ban").with_extension(extension));
        let entries = fs::read_dir(dir.join("fail2ban.d")).into_iter().flatten().flatten();
        let mut more: Vec<_> = entries.map(|entry| entry.path()).collect();
        more.retain(|path| path.extension().is_some_and(|found| found == extension));
        more.sort_unstable();
        files.append(&mut more);
    }
    files
}

fn text(path: &Path) -> String {
    use std::io::Read as _;
    let mut text = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(MAX_BYTES).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Adds the keys of a file, by section and name (Python's `configparser`: `key = value` or `key: value`, names in any
/// case; `#` and `;` begin a comment, ` ;` also behind a value).
fn collect(text: &str, keys: &mut BTreeMap<(String, String), String>) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_is_where_fail2ban_client_looks_for_it() {
        let root = tempfile::tempdir().unwrap();
        let (dir, more) = (root.path(), root.path().join("fail2ban.d"));
        let read = || {
            let Settings { socket, database } = Settings::read(dir);
            let shown = |path: Option<PathBuf>| {
                path.map_or(String::new(), |path| path.display().to_string())
            };
            (shown(socket), shown(database))
        };
        let pair = |socket: &str, database: &str| (socket.to_owned(), database.to_owned());
        assert_eq!(read(), pair("", ""));
        fs::create_dir(&more).unwrap();
        // Each file is added to those before it.
        let table = [
            (
                "fail2ban.conf",
                "[DEFAULT]\n# socket = /x\n[Definition]\nsocket = /run/a.sock\ndbfile = /var/a\n loglevel = /no\n",
                pair("/run/a.sock", "/var/a"),
            ),
            (
                "fail2ban.d/b.conf",
                "[Definition]\nSocket: /run/b.sock ; here\n",
                pair("/run/b.sock", "/var/a"),
            ),
            (
                "fail2ban.local",
                "[Definition]\r\nsocket=/run/c.sock\r\ndbfile = None\r\n",
                pair("/run/c.sock", ""),
            ),
            (
                "fail2ban.d/d.local",
                "[DEFAULT]\nsocket = /run/default.sock\n[Thread]\nsocket = /run/x\n",
                pair("/run/c.sock", ""),
            ),
            ("fail2ban.d/a.local", "[Definition]\nsocket = /run/e.sock\n", pair("/run/e.sock", "")),
            ("fail2ban.d/z.local", "[Definition]\nsocket = %(odd)s\n", pair("", "")),
            ("fail2ban.d/zz.txt", "[Definition]\nsocket = /run/f.sock\n", pair("", "")),
        ];
        for (name, text, expected) in table {
            fs::write(dir.join(name), text).unwrap();
            assert_eq!(read(), expected, "{name}");
        }
    }
}
