//! One ban to be reported, as it waits: what the action was called with, checked.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Secret;
use crate::spool::Item;
use crate::wire::Address;

/// Of a longer text, the rest is not even looked at.
const MAX_TEXT: usize = 4 * 1024;

/// What happened to the server, in `AbuseIPDB`'s numbers (abuseipdb.com/categories).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories(Vec<u8>);

impl Categories {
    /// Takes a list such as `18,22`.
    ///
    /// # Errors
    /// A sentence's end that says what it must be.
    pub fn new(text: &str) -> Result<Self, String> {
        const HOW: &str =
            "must be numbers of AbuseIPDB's categories, separated by commas, such as 18,22";
        let number = |text: &str| match text.trim().parse::<u8>() {
            Ok(number @ 1..=99) => Ok(number),
            _ => Err(HOW.to_owned()),
        };
        let mut categories = Self::default();
        for one in text.split(',') {
            categories.add(number(one)?);
        }
        Ok(categories)
    }

    /// Adds another report's.
    pub fn join(&mut self, other: &Self) {
        other.0.iter().for_each(|number| self.add(*number));
    }

    /// Whether the other report's are all among these.
    #[must_use]
    pub fn cover(&self, other: &Self) -> bool {
        other.0.iter().all(|number| self.0.contains(number))
    }

    fn add(&mut self, number: u8) {
        if !self.0.contains(&number) {
            self.0.push(number);
        }
    }
}

impl std::fmt::Display for Categories {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let texts: Vec<_> = self.0.iter().map(u8::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

/// Who wrote a report's comment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommentSource {
    /// Log lines, which the action passed.
    #[default]
    Log,
    /// Log lines to read from fail2ban's database, where it has any.
    Database,
    /// The administrator: it is published as it is.
    Admin,
}

/// A ban to be reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whom fail2ban banned.
    pub address: Address,
    /// For what.
    pub categories: Categories,
    /// What the jail says of it; not yet fit to be published.
    pub comment: String,
    /// Who wrote that.
    pub source: CommentSource,
    /// How long, in seconds; below 0 is for ever.
    pub bantime: i64,
    /// How many failures led to it.
    pub failures: i64,
    /// When, in seconds since 1970.
    pub time: i64,
    /// The API key that the action passed, if it was one.
    pub key: Option<Secret>,
    /// The database of what was reported.
    pub ledger: PathBuf,
    /// The reporter's log.
    pub log: PathBuf,
}

/// As it is written.
#[derive(Serialize, Deserialize)]
struct WrittenReport {
    ip: String,
    categories: String,
    comment: String,
    #[serde(default)]
    source: CommentSource,
    bantime: i64,
    failures: i64,
    time: i64,
    key: Option<String>,
    ledger: PathBuf,
    log: PathBuf,
}

/// What of a text is kept: its beginning. A line that does not fit is left out, or else its last word:
/// half a name would not be recognised as one.
#[must_use]
pub fn bounded(text: &str) -> &str {
    if text.len() <= MAX_TEXT {
        return text;
    }
    let kept = &text[..text.floor_char_boundary(MAX_TEXT)];
    let whole = kept.rfind('\n').or_else(|| kept.rfind(char::is_whitespace));
    &kept[..whole.unwrap_or(0)]
}

impl Item for Report {
    const MAX: u64 = 64 * 1024;

    fn encode(&self) -> String {
        let written = WrittenReport {
            ip: self.address.to_string(),
            categories: self.categories.to_string(),
            comment: self.comment.clone(),
            source: self.source,
            bantime: self.bantime,
            failures: self.failures,
            time: self.time,
            key: self.key.as_ref().map(|key| key.reveal().to_owned()),
            ledger: self.ledger.clone(),
            log: self.log.clone(),
        };
        // Only a path that is no Unicode cannot be written as JSON; they come from text.
        serde_json::to_string(&written).unwrap_or_default()
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let written: WrittenReport =
            serde_json::from_slice(text).map_err(|_| "not a report".to_owned())?;
        Ok(Self {
            address: Address::new(&written.ip)?,
            categories: Categories::new(&written.categories)?,
            comment: written.comment,
            source: written.source,
            bantime: written.bantime,
            failures: written.failures,
            time: written.time,
            key: written.key.map(Secret::new),
            ledger: written.ledger,
            log: written.log,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_are_numbers_each_once() {
        let mut categories = Categories::new(" 18, 22,18").unwrap();
        assert_eq!(categories.to_string(), "18,22");
        let other = Categories::new("22,15").unwrap();
        assert!(!categories.cover(&other));
        categories.join(&other);
        assert_eq!(categories.to_string(), "18,22,15");
        assert!(categories.cover(&other));
        for text in ["", "18;22", "ssh", "0", "100", "18,", "-1", "$(id)"] {
            assert!(Categories::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let report = Report {
            address: Address::new("2001:db8::1").unwrap(),
            categories: Categories::new("18,22").unwrap(),
            comment: "a \"line\"\nand another".to_owned(),
            source: CommentSource::Admin,
            bantime: 600,
            failures: 3,
            time: 1_795_342_588,
            key: Some(Secret::new("abc".to_owned())),
            ledger: "/var/lib/x".into(),
            log: "/var/log/x".into(),
        };
        assert_eq!(Report::parse(report.encode().as_bytes()), Ok(report));
        for text in ["", "{}", r#"{"ip":"10.0.0.0/8"}"#] {
            assert!(Report::parse(text.as_bytes()).is_err());
        }
        // The longest text, written in the longest way, can be read again.
        let longest = "\u{1}".repeat(MAX_TEXT);
        assert_eq!(bounded(&longest), longest);
        assert!(MAX_TEXT as u64 * 6 < Report::MAX / 2);
        let lines = "one line of it\n".repeat(MAX_TEXT);
        assert!(bounded(&lines).ends_with("one line of it") && bounded(&lines).len() <= MAX_TEXT);
        assert!(bounded(&"ü and ".repeat(MAX_TEXT)).ends_with(['ü', 'd']));
    }
}
