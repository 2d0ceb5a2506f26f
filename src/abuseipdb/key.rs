//! The API key: from the admin's own file, or as fail2ban passes it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::report::Report;
use crate::config::{self, Secret};

/// A key file is one line; beyond this many bytes it is something else.
const MAX_BYTES: u64 = 64 * 1024;

/// What the key file says.
#[derive(Debug, Default)]
pub struct KeyFile {
    /// The key, if there is a real one in it.
    pub key: Option<Secret>,
    /// It sets a key that cannot be read safely, or it cannot be read at all: then no other key is used in place of
    /// the one that the administrator meant.
    pub is_broken: bool,
    /// What is wrong with the file, if anything: never a word of what is in it.
    pub warning: Option<String>,
}

impl KeyFile {
    /// Reads it: `APIKEY=…`, as bash would source it, also with variables of lines before. A file that is not there has
    /// no key.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        match File::open(path) {
            Ok(file) => Self::take(file, path).unwrap_or_else(|error| Self::wrong(path, &error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => Self::wrong(path, &error),
        }
    }

    fn wrong(path: &Path, what: impl std::fmt::Display) -> Self {
        let warning = format!("cannot read {}: {what}; reports wait", path.display());
        Self { key: None, is_broken: true, warning: Some(warning) }
    }

    fn take(file: File, path: &Path) -> io::Result<Self> {
        let exposed = file.metadata()?.permissions().mode() & 0o077 != 0;
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text)?;
        let (mut key, mut is_broken, mut wrong) = (None, false, Vec::new());
        let mut values = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let unset = RefCell::new(None);
            let known = |name: &str| {
                let value = values.get(name).cloned().or_else(|| std::env::var(name).ok());
                if value.is_none() {
                    unset.replace(Some(name.to_owned()));
                }
                value
            };
            // bash ends a command there.
            let ended = line.trim_end();
            let read = config::read_line(ended.strip_suffix(';').unwrap_or(ended), &known);
            let what = match (read, unset.take()) {
                (Ok(Some((name, _))), Some(unset)) if name == "APIKEY" => {
                    format!("uses ${unset}, which is unset or cannot be read")
                }
                (Ok(Some((name, value))), _) => {
                    if name == "APIKEY" {
                        (key, is_broken) = (usable(&value), false);
                    }
                    values.insert(name, value);
                    continue;
                }
                (Ok(None), _) => continue,
                (Err(what), _) => what.to_owned(),
            };
            if sets_key(line) {
                (key, is_broken) = (None, true);
            }
            wrong.push(format!("{}, line {}: {what}", path.display(), number + 1));
        }
        if is_broken {
            wrong.push("reports wait".to_owned());
        }
        if exposed {
            let path = path.display();
            wrong.push(format!("{path} is readable by other users; run: chmod 600 {path}"));
        }
        Ok(Self { key, is_broken, warning: (!wrong.is_empty()).then(|| wrong.join("; ")) })
    }
}

/// Whether bash might take a key from a line.
fn sets_key(line: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == "APIKEY")
}

/// The keys that reports go with: the file's, or else the one that the action passed. One that the
/// server refused rests a while, or until the file has another.
#[derive(Debug)]
pub struct ApiKeys {
    path: PathBuf,
    file: KeyFile,
    refused: Vec<(Secret, i64)>,
}

impl ApiKeys {
    /// A key that is refused is tried again after this long, in seconds.
    const PAUSE: i64 = 3600;

    /// With the admin's file.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: KeyFile::default(), refused: Vec::new() }
    }

    /// Reads the file anew. Answers whether reports that wait for a key can go on, and what is newly
    /// wrong with the file.
    pub fn changed(&mut self, now: i64) -> (bool, Option<String>) {
        self.refused.retain(|(_, until)| *until > now);
        let file = KeyFile::read(&self.path);
        let warning = file.warning.clone().filter(|_| file.warning != self.file.warning);
        let mended = self.file.is_broken && !file.is_broken;
        let changed = mended || file.key != self.file.key && file.key.is_some();
        self.file = file;
        (changed, warning)
    }

    /// The key of a report.
    #[must_use]
    pub fn of<'a>(&'a self, report: &'a Report) -> Option<&'a Secret> {
        if self.file.is_broken {
            return None;
        }
        self.file.key.as_ref().or(report.key.as_ref())
    }

    /// Why a report has no key.
    #[must_use]
    pub fn fault(&self) -> String {
        match &self.file {
            KeyFile { is_broken: true, .. } => {
                format!("cannot read the API key in {}", self.path.display())
            }
            _ => format!("no API key is set in {}", self.path.display()),
        }
    }

    /// Until when a key rests, in seconds since 1970.
    #[must_use]
    pub fn rests(&self, key: &Secret) -> Option<i64> {
        self.refused.iter().find(|(refused, _)| refused == key).map(|(_, until)| *until)
    }

    /// The server refused it. Answers until when it rests.
    pub fn refused(&mut self, key: &Secret, now: i64) -> i64 {
        self.refused.retain(|(refused, _)| refused != key);
        self.refused.push((key.clone(), now + Self::PAUSE));
        now + Self::PAUSE
    }

    /// The admin's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Until when to wait where there is none.
    #[must_use]
    pub fn missing(now: i64) -> i64 {
        now + Self::PAUSE
    }
}

/// A text as a key, unless it only stands where a key should be.
#[must_use]
pub fn usable(text: &str) -> Option<Secret> {
    let text = text.trim();
    let letters: String =
        text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    let one = letters.chars().next();
    let placeholder = letters.starts_with("your")
        || matches!(
            letters.as_str(),
            "apikey" | "myapikey" | "abuseipdbapikey" | "myabuseipdbapikey" | "changeme"
        )
        || letters.chars().all(|c| Some(c) == one)
        || text.starts_with(['<', '$', '%']);
    let sendable = text.chars().all(|c| c.is_ascii_graphic());
    (!placeholder && sendable).then(|| Secret::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_placeholder_is_no_key() {
        for text in [
            "",
            "  ",
            "my-api-key",
            "YOUR_API_KEY",
            "your_abuseipdb_key_here",
            "xxxxxxxx",
            "<abuseipdb_apikey>",
            "$APIKEY",
            "0",
            "two words",
            "schlüssel",
        ] {
            assert!(usable(text).is_none(), "{text}");
        }
        assert_eq!(usable(" 0123abcd ").unwrap().reveal(), "0123abcd");
    }

    #[test]
    fn the_file_is_read_as_bash_would() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abuseipdb.apikey");
        assert!(KeyFile::read(&path).key.is_none() && KeyFile::read(&path).warning.is_none());
        let table = [
            ("APIKEY=abc123", Some("abc123"), false),
            ("# mine\nexport APIKEY='abc 123'", None, false),
            ("APIKEY=\"abc123\"\r\nOTHER=x\n", Some("abc123"), false),
            ("APIKEY=first\nAPIKEY=second", Some("second"), false),
            ("APIKEY=YOUR_API_KEY", None, false),
            ("A=abc123\nAPIKEY=$A", Some("abc123"), false),
            ("A=abc; B=x\nAPIKEY=abc123", Some("abc123"), true),
            ("export A=\"abc\"\nexport APIKEY=\"${A}123\"", Some("abc123"), false),
            ("APIKEY=abc123;", Some("abc123"), false),
            ("APIKEY='abc123' ; # mine", None, true),
            ("APIKEY=$(pass abuseipdb)", None, true),
            ("A=$(pass abuseipdb)\nAPIKEY=$A", None, true),
            ("APIKEY=$NONE_SUCH", None, true),
            ("APIKEY=$(pass abuseipdb)\nAPIKEY=abc123", Some("abc123"), true),
            ("APIKEY=abc123\nif true; then APIKEY=other; fi", None, true),
            ("APIKEY = abc123", None, true),
            ("abc123", None, true),
        ];
        for (text, key, warns) in table {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let file = KeyFile::read(&path);
            assert_eq!(file.key.as_ref().map(Secret::reveal), key, "{text}");
            assert_eq!(file.warning.is_some(), warns, "{text}: {:?}", file.warning);
            assert!(!file.warning.unwrap_or_default().contains("abc123"));
            // What sets a key and cannot be read is no file without one.
            assert_eq!(file.is_broken, warns && key.is_none() && text != "abc123", "{text}");
        }
        fs::write(&path, "APIKEY=abc123").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let file = KeyFile::read(&path);
        assert!(file.key.is_some() && file.warning.unwrap().contains("chmod 600"));
    }
}
