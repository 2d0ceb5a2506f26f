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
    kinds: HashMap<&'static str, (Instant, u32)>,
}

impl Limited {
    const WINDOW: Duration = Duration::from_mins(1);
    const LINES: u32 = 5;

    /// The line to print now, if there is one; says so where it is the last of its kind for a while.
    pub fn line(&mut self, kind: &'static str, text: &str, now: Instant) -> Option<String> {
        let (since, count) = self.kinds.entry(kind).or_insert((now, 0));
        let mut held_back = 0;
        if now.duration_since(*since) >= Self::WINDOW {
            held_back = count.saturating_sub(Self::LINES);
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        match *count {
            1 if held_back > 0 => Some(format!("{text} ({held_back} more like it before)")),
            n if n < Self::LINES => Some(text.to_owned()),
            Self::LINES => {
                Some(format!("{text} (more like it are counted, not shown, for a while)"))
            }
            _ => None,
        }
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
        let later = limited.line("odd", "odd message", start + Duration::from_secs(61)).unwrap();
        assert_eq!(later, "odd message (95 more like it before)");
    }
}
