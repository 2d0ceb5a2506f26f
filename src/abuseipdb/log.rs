//! Writes the reporter's log in the script's format: lines of `2026-11-22 15:04:05 - LEVEL: text`.

use std::io::{self, Write as _};
use std::path::PathBuf;

use crate::error::Error;
use crate::model::text::is_unsafe_for_display;
use crate::sys::calendar::Calendar;
use crate::sys::clock::now_secs;
use crate::sys::{log, private_files};

/// Longer lines are cut: some quote a server's response.
const MAX_LINE_CHARS: usize = 1000;

/// A log file. Each line opens the file again, so that logrotate can replace it at any time.
#[derive(Clone, Debug)]
pub struct Log(PathBuf);

impl Log {
    /// The log at `path`, which need not exist.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Creates the file and its directory if they are missing, accessible by root only.
    ///
    /// # Errors
    /// The directory is unsafe for a file of root, or any error of the system.
    pub fn create(&self) -> io::Result<()> {
        self.open().map(drop)
    }

    /// Appends a line; characters that are unsafe to display become blanks. If the file cannot be written, the line
    /// goes to the journal.
    pub fn line(&self, text: impl std::fmt::Display) {
        let text = text.to_string().replace(is_unsafe_for_display, " ");
        let text: String = text.chars().take(MAX_LINE_CHARS).collect();
        let time = Calendar::new().map(|times| times.local(now_secs())).unwrap_or_default();
        let written = self
            .open()
            .and_then(|mut file| file.write_all(format!("{time} - {text}\n").as_bytes()));
        if let Err(error) = written {
            let error = Error::file("write", &self.0)(error);
            log::syslog(format_args!("{text} ({error})"));
        }
    }

    fn open(&self) -> io::Result<std::fs::File> {
        private_files::log(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_with_line_breaks_is_logged_as_one_line_with_its_time() {
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
