//! Lines for people: what happened goes to standard output as the scripts printed it, what is
//! wrong to standard error, and both into the journal under systemd. A closed output never ends
//! the program.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::wire::{Address, Jail};

/// Prints a line of what happened.
pub fn say(line: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Prints a line of what is wrong. Under systemd it has the priority of a warning
/// (sd-daemon(3): the number of syslog(3) in angle brackets).
pub fn warn(line: impl fmt::Display) {
    let priority = if std::env::var_os("JOURNAL_STREAM").is_some() { "<4>" } else { "" };
    let _ = writeln!(io::stderr(), "{priority}{line}");
}

/// The line that log watchers know for a jail that this host has not.
#[must_use]
pub fn no_such_jail(
    jail: &Jail,
    address: Address,
    host: impl fmt::Display,
    restored: i64,
) -> String {
    format!("Jail {jail} not found for IP {address} reported by {host} (Restored={restored})")
}

/// Sends a warning to the system's log, for a process whose standard error nobody reads. The form
/// is that of syslog(3), as every system logger takes it; 28 is daemon.warning.
pub fn syslog(line: impl fmt::Display) {
    let message = format!("<28>f2bmqtt[{}]: {line}", std::process::id());
    if let Ok(socket) = UnixDatagram::unbound() {
        let _ = socket.send_to(message.as_bytes(), "/dev/log");
    }
}

/// Lets through the first few lines of a kind in a minute and counts the rest.
#[derive(Debug, Default)]
pub struct Limited {
    kinds: HashMap<&'static str, Kind>,
}

/// What was said of a kind since its minute began, and the last that was not.
#[derive(Debug)]
struct Kind {
    since: Instant,
    count: u64,
    last: String,
}

impl Limited {
    const WINDOW: Duration = Duration::from_mins(1);
    const LINES: u64 = 5;

    /// The line to print now, if there is one; says so where it is the last of its kind for a while.
    pub fn line(&mut self, kind: &'static str, text: &str, now: Instant) -> Option<String> {
        let fresh = || Kind { since: now, count: 0, last: String::new() };
        let kind = self.kinds.entry(kind).or_insert_with(fresh);
        kind.count = kind.count.saturating_add(1);
        match kind.count {
            n if n < Self::LINES => Some(text.to_owned()),
            Self::LINES => {
                Some(format!("{text} (more like it are counted, not shown, for a while)"))
            }
            _ => {
                text.clone_into(&mut kind.last);
                None
            }
        }
    }

    /// What is to be said of those that were held back, once their minute is over: how many, and the
    /// last.
    pub fn held_back(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        self.kinds.retain(|_, kind| {
            let over = now.duration_since(kind.since) >= Self::WINDOW;
            if over && kind.count > Self::LINES {
                let Kind { last, count, .. } = kind;
                lines.push(format!("{last} ({count} like it in a minute)"));
            }
            !over
        });
        lines
    }
}

/// Prints a line for each message that comes, as log watchers know it, but not without end: the journal
/// would drop other lines for it.
#[derive(Debug, Default)]
pub struct Inbound {
    since: Option<Instant>,
    lines: u32,
}

impl Inbound {
    const WINDOW: Duration = Duration::from_secs(10);
    const LINES: u32 = 3_000;

    /// Prints a line, or counts it.
    pub fn say(&mut self, line: impl FnOnce() -> String) {
        self.since.get_or_insert_with(Instant::now);
        self.lines = self.lines.saturating_add(1);
        if self.lines <= Self::LINES {
            say(line());
        }
    }

    /// Says how many lines were not printed.
    pub fn settle(&mut self) {
        if self.since.is_none_or(|since| since.elapsed() < Self::WINDOW) {
            return;
        }
        let more = self.lines.saturating_sub(Self::LINES);
        if more > 0 {
            warn(format_args!("{more} more lines on what came were not printed"));
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_is_a_few_lines_a_minute() {
        let (mut limited, start) = (Limited::default(), Instant::now());
        let lines = (0..100).filter_map(|_| limited.line("odd", "odd message", start));
        let lines: Vec<_> = lines.collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[4].ends_with("for a while)"));
        assert!(limited.line("other", "other", start).is_some());
        assert!(limited.held_back(start + Duration::from_secs(59)).is_empty());
        let later = start + Duration::from_secs(61);
        assert_eq!(limited.held_back(later), ["odd message (100 like it in a minute)"]);
        assert!(limited.held_back(later).is_empty());
        assert_eq!(limited.line("odd", "odd message", later).unwrap(), "odd message");
    }
}
