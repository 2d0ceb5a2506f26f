//! Log lines. Events go to standard output as the scripts printed them, warnings to standard error; systemd puts both
//! into the journal. A closed output never ends the program. Lines that the network can cause are rate-limited (R21).

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::model::{Address, Jail};

/// Prints an informational line.
pub fn info(line: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Prints a warning. Under systemd it has the priority of a warning (sd-daemon(3): the number of syslog(3) in angle
/// brackets).
pub fn warn(line: impl fmt::Display) {
    let priority = if std::env::var_os("JOURNAL_STREAM").is_some() { "<4>" } else { "" };
    let _ = writeln!(io::stderr(), "{priority}{line}");
}

/// The scripts' line for a jail that this host does not have. Log watchers parse it.
#[must_use]
pub fn no_such_jail(
    jail: &Jail,
    address: Address,
    host: impl fmt::Display,
    restored: i64,
) -> String {
    format!("Jail {jail} not found for IP {address} reported by {host} (Restored={restored})")
}

/// The line for an unban, sent by another program, that releases nothing because the sender does not hold the ban (R5).
#[must_use]
pub fn ignored_unban(jail: &Jail, address: Address, host: impl fmt::Display) -> String {
    format!(
        "ignored unban of {address} in {jail} from {host}: {host} does not hold this ban; to unban the address \
         on all hosts: f2bmqtt unban {address}"
    )
}

/// Sends a warning to syslog, for processes whose standard error is discarded. `<28>` is daemon.warning (syslog(3)).
pub fn syslog(line: impl fmt::Display) {
    let message = format!("<28>f2bmqtt[{}]: {line}", std::process::id());
    if let Ok(socket) = UnixDatagram::unbound() {
        let _ = socket.send_to(message.as_bytes(), "/dev/log");
    }
}

/// Passes the first few lines of each kind per minute, per peer and in total, and counts the rest. Any client that may
/// publish can cause such lines, and a flooded journal drops other lines.
#[derive(Debug, Default)]
pub struct RateLimitedLog {
    /// By kind and peer; the peer is empty for all of a kind together.
    kinds: HashMap<(&'static str, String), LogKind>,
}

/// The lines of a kind since `since`: their number, and the last one that was suppressed.
#[derive(Debug)]
struct LogKind {
    since: Instant,
    count: u64,
    last: String,
}

impl RateLimitedLog {
    const WINDOW: Duration = Duration::from_mins(1);
    /// The most lines of a kind per minute: of one peer, and in total.
    const MAX_PEER_LINES: u64 = 5;
    const MAX_TOTAL_LINES: u64 = 25;
    /// The most pairs of a kind and a peer. Peers beyond that count together.
    const MAX_KINDS: usize = 500;

    /// The line to print now, if any. The last line before the limit announces that similar lines are suppressed. `peer`
    /// is the sender of the message that caused the line, or empty.
    pub fn line(
        &mut self,
        kind: &'static str,
        peer: &str,
        text: &str,
        now: Instant,
    ) -> Option<String> {
        let is_full = self.kinds.len() >= Self::MAX_KINDS;
        let is_counted = self.kinds.contains_key(&(kind, peer.to_owned()));
        let peer = if is_full && !is_counted { "" } else { peer };
        let peer_count = self.count(kind, peer, now);
        // Lines of a peer beyond its own limit do not count towards the total, so that a flood of one peer leaves lines
        // for the others.
        let total_count = if peer.is_empty() || peer_count > Self::MAX_PEER_LINES {
            0
        } else {
            self.count(kind, "", now)
        };
        if peer_count > Self::MAX_PEER_LINES || total_count > Self::MAX_TOTAL_LINES {
            if let Some(kind) = self.kinds.get_mut(&(kind, peer.to_owned())) {
                text.clone_into(&mut kind.last);
            }
            return None;
        }
        let is_last = peer_count == Self::MAX_PEER_LINES || total_count == Self::MAX_TOTAL_LINES;
        let notice = if is_last { " (suppressing similar lines for a minute)" } else { "" };
        Some(format!("{text}{notice}"))
    }

    fn count(&mut self, kind: &'static str, peer: &str, now: Instant) -> u64 {
        let kind = self.kinds.entry((kind, peer.to_owned())).or_insert_with(|| LogKind {
            since: now,
            count: 0,
            last: String::new(),
        });
        kind.count = kind.count.saturating_add(1);
        kind.count
    }

    /// The summaries of suppressed lines whose minute is over: the number and the last line; at most `MAX_TOTAL_LINES`,
    /// most lines first.
    pub fn take_suppressed(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        self.kinds.retain(|_, kind| {
            let is_over = now.duration_since(kind.since) >= Self::WINDOW;
            if is_over && !kind.last.is_empty() {
                let LogKind { last, count, .. } = kind;
                lines.push((*count, format!("{last} ({count} similar lines within a minute)")));
            }
            !is_over
        });
        lines.sort_unstable_by(|one, other| other.cmp(one));
        let max_lines = usize::try_from(Self::MAX_TOTAL_LINES).unwrap_or(usize::MAX);
        lines.into_iter().take(max_lines).map(|(_, line)| line).collect()
    }
}

/// Prints the scripts' lines about messages and their effects, at most `MAX_LINES` in ten seconds, and at most
/// `MAX_PEER_LINES` of one peer.
#[derive(Debug, Default)]
pub struct InboundLog {
    since: Option<Instant>,
    printed: u32,
    /// The number of lines about each peer, printed or suppressed.
    lines_by_peer: HashMap<String, u32>,
    suppressed: u32,
}

impl InboundLog {
    const WINDOW: Duration = Duration::from_secs(10);
    const MAX_LINES: u32 = 3_000;
    const MAX_PEER_LINES: u32 = 2_500;
    /// The most peers that are counted separately; the others count together.
    const MAX_PEERS: usize = 500;

    /// Prints a line about a peer's message, or counts it as suppressed.
    pub fn info(&mut self, peer: &str, line: impl FnOnce() -> String) {
        if self.admits(peer, Instant::now()) {
            info(line());
        }
    }

    fn admits(&mut self, peer: &str, now: Instant) -> bool {
        self.since.get_or_insert(now);
        let is_separate =
            self.lines_by_peer.len() < Self::MAX_PEERS || self.lines_by_peer.contains_key(peer);
        let peer = if is_separate { peer } else { "" };
        let peer_lines = self.lines_by_peer.entry(peer.to_owned()).or_default();
        *peer_lines = peer_lines.saturating_add(1);
        let is_admitted = *peer_lines <= Self::MAX_PEER_LINES && self.printed < Self::MAX_LINES;
        if is_admitted {
            self.printed += 1;
        } else {
            self.suppressed = self.suppressed.saturating_add(1);
        }
        is_admitted
    }

    /// Warns about suppressed lines, and names the peer that caused most lines.
    pub fn flush(&mut self) {
        if let Some(line) = self.summary(Instant::now()) {
            warn(line);
        }
    }

    fn summary(&mut self, now: Instant) -> Option<String> {
        let since = self.since?;
        if now.duration_since(since) < Self::WINDOW {
            return None;
        }
        let Self { lines_by_peer, suppressed, .. } = std::mem::take(self);
        if suppressed == 0 {
            return None;
        }
        let seconds = Self::WINDOW.as_secs();
        let mut summary =
            format!("suppressed {suppressed} log lines about messages within {seconds} s");
        let peers = lines_by_peer.into_iter().filter(|(peer, _)| !peer.is_empty());
        if let Some((peer, lines)) = peers.max_by_key(|(_, lines)| *lines) {
            let _ = write!(summary, "; {peer} caused most lines ({lines}, printed or suppressed)");
        }
        Some(summary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line about one message of a peer.
    fn line(log: &mut RateLimitedLog, peer: &str, now: Instant) -> Option<String> {
        log.line("invalid", peer, "invalid message", now)
    }

    #[test]
    fn flood_of_one_kind_is_a_few_lines_a_minute() {
        let (mut log, start) = (RateLimitedLog::default(), Instant::now());
        let lines: Vec<_> = (0..100).filter_map(|_| line(&mut log, "web1", start)).collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[4].ends_with("for a minute)"));
        assert!(line(&mut log, "web2", start).is_some(), "each peer has a limit of its own");
        let names: Vec<_> = (0..2_000).map(|n| format!("fake{n}")).collect();
        let lines = names.iter().filter_map(|peer| line(&mut log, peer, start)).count();
        assert!(lines < 25, "{lines}: 25 in total");
        assert!(log.kinds.len() <= 501);
        assert!(log.line("other", "", "other", start).is_some());
        assert!(log.take_suppressed(start + Duration::from_secs(59)).is_empty());
        let end = start + Duration::from_secs(61);
        let summary = log.take_suppressed(end);
        assert!(
            summary.contains(&"invalid message (100 similar lines within a minute)".to_owned()),
            "{summary:?}"
        );
        assert!(summary.len() <= 25);
        assert!(log.take_suppressed(end).is_empty());
        assert_eq!(line(&mut log, "", end).unwrap(), "invalid message");
    }

    /// How many of `count` lines about a peer are printed.
    fn admit(log: &mut InboundLog, peer: &str, count: u32, now: Instant) -> usize {
        (0..count).filter(|_| log.admits(peer, now)).count()
    }

    #[test]
    fn flood_of_one_peer_leaves_lines_for_the_others() {
        let (mut log, start) = (InboundLog::default(), Instant::now());
        assert_eq!(admit(&mut log, "flood", 9_000, start), 2_500);
        assert_eq!(admit(&mut log, "web2", 300, start), 300);
        assert_eq!(admit(&mut log, "web3", 300, start), 200);
        assert_eq!(log.summary(start), None);
        let summary = log.summary(start + Duration::from_secs(10)).unwrap();
        let expected = "suppressed 6600 log lines about messages within 10 s; flood caused most lines \
                        (9000, printed or suppressed)";
        assert_eq!(summary, expected);
        assert_eq!(admit(&mut log, "web3", 1, start), 1, "another ten seconds");
        for n in 0..2_000 {
            log.admits(&format!("fake{n}"), start);
        }
        assert!(log.lines_by_peer.len() <= 501);
    }
}
