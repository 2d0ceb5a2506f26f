//! The reporter's log, in the script's form: `2026-11-22 15:04:05 - LEVEL: text`, one line each.

use std::io::{self, Write as _};
use std::path::PathBuf;

use super::times::Calendar;
use crate::clock::now_secs;
use crate::error::Error;
use crate::files;
use crate::journal;
use crate::text::is_unsafe_for_display;

/// Longer lines are cut: what a server answers is in some of them.
const MAX: usize = 1000;

/// A log file. It is opened for each line, so that it can be rotated at any time.
#[derive(Clone, Debug)]
pub struct Log(PathBuf);

impl Log {
    /// The log at `path`, which need not exist.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Makes the file and its directory, for root alone, if they are not there.
    ///
    /// # Errors
    /// Why root may keep no file there, or whatever the system says.
    pub fn create(&self) -> io::Result<()> {
        self.open().map(drop)
    }

    /// Adds a line; characters that are unsafe to display become blanks. Where the file cannot be written, the line
    /// goes to the system's log.
    pub fn line(&self, text: impl std::fmt::Display) {
        let blank = |c| if is_unsafe_for_display(c) { ' ' } else { c };
        let text: String = text.to_string().chars().map(blank).take(MAX).collect();
        let time = Calendar::new().map(|times| times.local(now_secs())).unwrap_or_default();
        let written = self
            .open()
            .and_then(|mut file| file.write_all(format!("{time} - {text}\n").as_bytes()));
        if let Err(error) = written {
            let why = Error::file("write", &self.0)(error);
            journal::syslog(format_args!("{text} ({why})"));
        }
    }

    fn open(&self) -> io::Result<std::fs::File> {
        files::log(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_with_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log/abuseipdb.log");
        let log = Log::new(path.clone());
        log.line("INFO: one\ntwo\u{1b}[0m");
        log.line(format_args!("ERROR: {}", "x".repeat(5000)));
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with(" - INFO: one two [0m"), "{}", lines[0]);
        assert_eq!(lines[0].find(" - "), Some("2026-11-22 15:04:05".len()));
        assert!(lines[1].len() < 1100);
    }
}
