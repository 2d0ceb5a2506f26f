//! Provides the API key: from the administrator's file, or else as fail2ban's action passes it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::report::Report;
use crate::config::{self, Secret};

/// A key file usually has one line. The rest of a larger file is ignored.
const MAX_KEY_FILE_BYTES: u64 = 64 * 1024;

/// The content of the key file.
#[derive(Debug, Default)]
pub struct KeyFile {
    /// The key, unless it is missing or a placeholder.
    pub key: Option<Secret>,
    /// Whether the file or its key cannot be read safely. The reporter then uses no other key, because the
    /// administrator meant this one.
    pub is_broken: bool,
    /// What is wrong with the file, if anything. It never quotes the file's content.
    pub warning: Option<String>,
}

impl KeyFile {
    /// Reads `APIKEY=…` as bash would source it, also with variables of earlier lines. A missing file has no key.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        match File::open(path) {
            Ok(file) => {
                Self::parse(file, path).unwrap_or_else(|error| Self::unreadable(path, &error))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => Self::unreadable(path, &error),
        }
    }

    fn unreadable(path: &Path, error: &io::Error) -> Self {
        let warning = format!("cannot read {}: {error}; reports wait", path.display());
        Self { key: None, is_broken: true, warning: Some(warning) }
    }

    fn parse(file: File, path: &Path) -> io::Result<Self> {
        let is_exposed = file.metadata()?.permissions().mode() & 0o077 != 0;
        let mut text = String::new();
        file.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text)?;
        let (mut key, mut is_broken, mut warnings) = (None, false, Vec::new());
        let mut values = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            match parse_line(line, &values) {
                Ok(Some((name, value))) => {
                    // The last line wins, also over one that cannot be read.
                    if name == "APIKEY" {
                        (key, is_broken) = (parse_key(&value), false);
                    }
                    values.insert(name, value);
                }
                Ok(None) => {}
                Err(what) => {
                    if may_set_key(line) {
                        (key, is_broken) = (None, true);
                    }
                    warnings.push(format!("{}, line {}: {what}", path.display(), number + 1));
                }
            }
        }
        if is_broken {
            warnings.push("reports wait".to_owned());
        }
        if is_exposed {
            let path = path.display();
            warnings.push(format!("{path} is readable by other users; run: chmod 600 {path}"));
        }
        Ok(Self { key, is_broken, warning: (!warnings.is_empty()).then(|| warnings.join("; ")) })
    }
}

/// Parses a line with the values of earlier lines. The key must not be built from an unset variable: bash would make
/// that empty, and the key another one.
fn parse_line(
    line: &str,
    values: &BTreeMap<String, String>,
) -> Result<Option<(String, String)>, String> {
    let unset = RefCell::new(None);
    // In bash, `;` ends the command.
    let line = line.trim_end();
    let line = line.strip_suffix(';').unwrap_or(line);
    let setting = config::read_line(line, &|name| {
        let value = values.get(name).cloned().or_else(|| std::env::var(name).ok());
        if value.is_none() {
            unset.replace(Some(name.to_owned()));
        }
        value
    })?;
    match (setting, unset.take()) {
        (Some((name, _)), Some(unset)) if name == "APIKEY" => {
            Err(format!("uses ${unset}, which is unset or cannot be read"))
        }
        (setting, _) => Ok(setting),
    }
}

/// Whether bash might set the key in a line that this program cannot read.
fn may_set_key(line: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|name| name == "APIKEY")
}

/// Chooses the key of each report: the key in the file, or else the key from the action's arguments. After AbuseIPDB
/// rejects a key, the reporter does not use that key until a pause is over or the file has another key.
#[derive(Debug)]
pub struct ApiKeys {
    path: PathBuf,
    file: KeyFile,
    /// Rejected keys, and until when each pauses, in seconds since 1970.
    rejected: Vec<(Secret, i64)>,
}

impl ApiKeys {
    /// How long a rejected key is not used.
    const REJECTED_KEY_PAUSE_SECS: i64 = 3600;

    /// Keys from the file at `path`, which [`Self::reload`] reads.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: KeyFile::default(), rejected: Vec::new() }
    }

    /// Reads the file again. Returns whether reports that wait for a key can be sent now, and a new warning about
    /// the file.
    pub fn reload(&mut self, now: i64) -> (bool, Option<String>) {
        self.rejected.retain(|(_, until)| *until > now);
        let file = KeyFile::read(&self.path);
        let warning = file.warning.clone().filter(|_| file.warning != self.file.warning);
        let is_repaired = self.file.is_broken && !file.is_broken;
        let has_new_key = file.key.is_some() && file.key != self.file.key;
        self.file = file;
        (is_repaired || has_new_key, warning)
    }

    /// The key to send a report with.
    #[must_use]
    pub fn key_for<'a>(&'a self, report: &'a Report) -> Option<&'a Secret> {
        if self.file.is_broken {
            return None;
        }
        self.file.key.as_ref().or(report.key.as_ref())
    }

    /// The error text for a report without a key.
    #[must_use]
    pub fn missing_key_error(&self) -> String {
        let path = self.path.display();
        if self.file.is_broken {
            format!("cannot read the API key in {path}")
        } else {
            format!("no API key is set in {path}")
        }
    }

    /// When a rejected key may be used again, in seconds since 1970.
    #[must_use]
    pub fn blocked_until(&self, key: &Secret) -> Option<i64> {
        self.rejected.iter().find(|(rejected, _)| rejected == key).map(|(_, until)| *until)
    }

    /// Records that the server rejected a key. Returns when it may be used again, in seconds since 1970.
    pub fn on_rejected(&mut self, key: &Secret, now: i64) -> i64 {
        let until = now + Self::REJECTED_KEY_PAUSE_SECS;
        self.rejected.retain(|(rejected, _)| rejected != key);
        self.rejected.push((key.clone(), until));
        until
    }

    /// The administrator's key file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When to try again a report without a key, in seconds since 1970.
    #[must_use]
    pub fn retry_at(now: i64) -> i64 {
        now + Self::REJECTED_KEY_PAUSE_SECS
    }
}

/// The text as a key, unless it is a placeholder or cannot be sent in an HTTP header.
#[must_use]
pub fn parse_key(text: &str) -> Option<Secret> {
    let text = text.trim();
    let is_sendable = text.chars().all(|c| c.is_ascii_graphic());
    (is_sendable && !is_placeholder(text)).then(|| Secret::new(text.to_owned()))
}

/// Whether a text stands for a key in a template, such as `YOUR_API_KEY`, `<key>` or `xxxx`; or is empty.
fn is_placeholder(text: &str) -> bool {
    let letters: String =
        text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    let first = letters.chars().next();
    letters.starts_with("your")
        || matches!(
            letters.as_str(),
            "apikey" | "myapikey" | "abuseipdbapikey" | "myabuseipdbapikey" | "changeme"
        )
        || letters.chars().all(|c| Some(c) == first)
        || text.starts_with(['<', '$', '%'])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn placeholder_is_no_key() {
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
            assert!(parse_key(text).is_none(), "{text}");
        }
        assert_eq!(parse_key(" 0123abcd ").unwrap().reveal(), "0123abcd");
    }

    #[test]
    fn key_file_is_read_as_bash_would() {
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
            // A line that sets a key but cannot be read differs from a file without a key.
            assert_eq!(file.is_broken, warns && key.is_none() && text != "abc123", "{text}");
        }
        fs::write(&path, "APIKEY=abc123").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let file = KeyFile::read(&path);
        assert!(file.key.is_some() && file.warning.unwrap().contains("chmod 600"));
    }
}
