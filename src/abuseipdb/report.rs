//! A ban that waits to be reported, with the action's arguments after validation.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Secret;
use crate::model::Address;
use crate::spool::Item;

/// The rest of a longer text is ignored.
const MAX_TEXT_BYTES: usize = 4 * 1024;

/// The kinds of attack, as `AbuseIPDB`'s numbers (abuseipdb.com/categories), each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories(Vec<u8>);

impl Categories {
    /// Parses a list such as `18,22`.
    ///
    /// # Errors
    /// The end of a sentence that starts with the setting's name.
    pub fn new(text: &str) -> Result<Self, String> {
        let mut categories = Self::default();
        for number in text.split(',') {
            let Ok(number @ 1..=99) = number.trim().parse::<u8>() else {
                let what =
                    "must be numbers of AbuseIPDB's categories, separated by commas, such as 18,22";
                return Err(what.to_owned());
            };
            categories.add(number);
        }
        Ok(categories)
    }

    /// Adds the categories of another report.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|number| self.add(*number));
    }

    /// Whether these include all of the other report's categories.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
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

/// The source of a report's comment, which decides about redaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommentSource {
    /// Log lines that the action passed.
    #[default]
    Log,
    /// Log lines that the worker reads from fail2ban's database, if it has any.
    Database,
    /// Text of the administrator, published unchanged.
    Admin,
}

/// A ban to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The banned address.
    pub address: Address,
    /// The kinds of attack.
    pub categories: Categories,
    /// The text before redaction.
    pub comment: String,
    /// The source of the comment.
    pub source: CommentSource,
    /// Bantime in seconds; below 0: permanent.
    pub bantime: i64,
    /// The number of failures that led to the ban.
    pub failures: i64,
    /// The time of the ban, in seconds since 1970.
    pub time: i64,
    /// The API key that the action passed, unless it was a placeholder.
    pub key: Option<Secret>,
    /// The path of the script's database.
    pub ledger: PathBuf,
    /// The path of the reporter's log.
    pub log: PathBuf,
}

#[cfg(test)]
impl Report {
    /// A report for tests.
    pub(super) fn sample(ip: &str) -> Self {
        Self {
            address: Address::new(ip).unwrap(),
            categories: Categories::new("18").unwrap(),
            comment: "x".to_owned(),
            source: CommentSource::Log,
            bantime: 600,
            failures: 3,
            time: 1,
            key: None,
            ledger: "l".into(),
            log: "l".into(),
        }
    }
}

/// A report as JSON in the inbox and the queue.
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

/// The start of a text, cut at a line break or else at a blank: redaction would not recognise half a name.
#[must_use]
pub fn bounded(text: &str) -> &str {
    if text.len() <= MAX_TEXT_BYTES {
        return text;
    }
    let kept = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
    let whole = kept.rfind('\n').or_else(|| kept.rfind(char::is_whitespace));
    &kept[..whole.unwrap_or(0)]
}

impl Item for Report {
    const MAX_BYTES: u64 = 64 * 1024;

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
        // Only a path that is not Unicode cannot be encoded, and these paths come from text.
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
    fn repeated_category_is_kept_once() {
        let mut categories = Categories::new(" 18, 22,18").unwrap();
        assert_eq!(categories.to_string(), "18,22");
        let other = Categories::new("22,15").unwrap();
        assert!(!categories.covers(&other));
        categories.merge(&other);
        assert_eq!(categories.to_string(), "18,22,15");
        assert!(categories.covers(&other));
        for text in ["", "18;22", "ssh", "0", "100", "18,", "-1", "$(id)"] {
            assert!(Categories::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn encoded_report_is_parsed_to_the_same_report() {
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
        let longest = "\u{1}".repeat(MAX_TEXT_BYTES);
        assert_eq!(bounded(&longest), longest);
        assert!(MAX_TEXT_BYTES as u64 * 6 < Report::MAX_BYTES / 2);
        let lines = "one line of it\n".repeat(MAX_TEXT_BYTES);
        assert!(
            bounded(&lines).ends_with("one line of it") && bounded(&lines).len() <= MAX_TEXT_BYTES
        );
        assert!(bounded(&"ü and ".repeat(MAX_TEXT_BYTES)).ends_with(['ü', 'd']));
    }
}
