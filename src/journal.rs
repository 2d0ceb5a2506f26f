//! Log lines. Events go to standard output as the scripts printed them, warnings to standard error; systemd puts both
//! into the journal. A closed output never ends the program. Lines that the network can cause are rate-limited (R21).

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::wire::{Address, Jail};

/// Prints an informational line.
pub fn say(line: impl fmt::Display) {
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
pub fn unban_of_another_s_ban(jail: &Jail, address: Address, host: impl fmt::Display) -> String {
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
    const LINES: u64 = 5;
    const LINES_IN_ALL: u64 = 25;
    /// The most pairs of a kind and a peer. Peers beyond that count together.
    const MAX_KINDS: usize = 500;

    /// The line to print now, if there is one; says so where it is the last of its kind for a while. `peer` is
    /// whose message it is about, or empty.
    pub fn line(
        &mut self,
        kind: &'static str,
        peer: &str,
        text: &str,
        now: Instant,
    ) -> Option<String> {
        let full = self.kinds.len() >= Self::MAX_KINDS;
        let known = self.kinds.contains_key(&(kind, peer.to_owned()));
        let peer = if full && !known { "" } else { peer };
        let of_peer = self.count(kind, peer, now);
        // Lines of a peer beyond its own limit do not count towards the total, so that a flood of one peer leaves lines
        // for the others.
        let in_all =
            if peer.is_empty() || of_peer > Self::LINES { 0 } else { self.count(kind, "", now) };
        if of_peer > Self::LINES || in_all > Self::LINES_IN_ALL {
            if let Some(kind) = self.kinds.get_mut(&(kind, peer.to_owned())) {
                text.clone_into(&mut kind.last);
            }
            return None;
        }
        let last = of_peer == Self::LINES || in_all == Self::LINES_IN_ALL;
        let more = if last { " (suppressing similar lines for a minute)" } else { "" };
        Some(format!("{text}{more}"))
    }

    fn count(&mut self, kind: &'static str, peer: &str, now: Instant) -> u64 {
        let fresh = || LogKind { since: now, count: 0, last: String::new() };
        let kind = self.kinds.entry((kind, peer.to_owned())).or_insert_with(fresh);
        kind.count = kind.count.saturating_add(1);
        kind.count
    }

    /// The summaries of suppressed lines whose minute is over: the number and the last line; at most `LINES_IN_ALL`,
    /// most lines first.
    pub fn held_back(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        self.kinds.retain(|_, kind| {
            let over = now.duration_since(kind.since) >= Self::WINDOW;
            if over && !kind.last.is_empty() {
                let LogKind { last, count, .. } = kind;
                lines.push((*count, format!("{last} ({count} similar lines within a minute)")));
            }
            !over
        });
        lines.sort_unstable_by(|one, other| other.cmp(one));
        let most = usize::try_from(Self::LINES_IN_ALL).unwrap_or(usize::MAX);
        lines.into_iter().take(most).map(|(_, line)| line).collect()
    }
}

/// Prints the scripts' lines about messages and their effects, at most `LINES` in ten seconds, and at most
/// `LINES_OF_PEER` of one peer.
#[derive(Debug, Default)]
pub struct InboundLog {
    since: Option<Instant>,
    lines: u32,
    of_peer: HashMap<String, u32>,
    suppressed: u32,
}

impl InboundLog {
    const WINDOW: Duration = Duration::from_secs(10);
    const LINES: u32 = 3_000;
    const LINES_OF_PEER: u32 = 2_500;
    /// The most peers that are counted separately; the others count together.
    const MAX_PEERS: usize = 500;

    /// Prints a line about a peer's message, or counts it as suppressed.
    pub fn say(&mut self, peer: &str, line: impl FnOnce() -> String) {
        if self.admits(peer, Instant::now()) {
            say(line());
        }
    }

    fn admits(&mut self, peer: &str, now: Instant) -> bool {
        self.since.get_or_insert(now);
        let apart = self.of_peer.len() < Self::MAX_PEERS || self.of_peer.contains_key(peer);
        let of_peer = self.of_peer.entry(if apart { peer } else { "" }.to_owned()).or_default();
        *of_peer = of_peer.saturating_add(1);
        let admitted = *of_peer <= Self::LINES_OF_PEER && self.lines < Self::LINES;
        if admitted {
            self.lines += 1;
        } else {
            self.suppressed = self.suppressed.saturating_add(1);
        }
        admitted
    }

    /// Warns about suppressed lines, and names the peer that caused most lines.
    pub fn settle(&mut self) {
        if let Some(line) = self.summary(Instant::now()) {
            warn(line);
        }
    }

    fn summary(&mut self, now: Instant) -> Option<String> {
        let since = self.since?;
        if now.duration_since(since) < Self::WINDOW {
            return None;
        }
        let Self { of_peer, suppressed, .. } = std::mem::take(self);
        let peers = of_peer.into_iter().filter(|(peer, _)| !peer.is_empty());
        let most = peers.max_by_key(|(_, lines)| *lines);
        let most = most.map(|(peer, lines)| {
            format!("; most lines ({lines}, printed or not) were about {peer}")
        });
        let seconds = Self::WINDOW.as_secs();
        let most = most.unwrap_or_default();
        (suppressed > 0).then(|| {
            format!("suppressed {suppressed} of the lines about messages within {seconds} s{most}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_of_one_kind_is_a_few_lines_a_minute() {
        let (mut limited, start) = (RateLimitedLog::default(), Instant::now());
        let mut odd = |peer, now| limited.line("odd", peer, "odd message", now);
        let lines: Vec<_> = (0..100).filter_map(|_| odd("web1", start)).collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[4].ends_with("for a minute)"));
        assert!(odd("web2", start).is_some(), "each peer has its own");
        let many: Vec<_> = (0..2_000).map(|n| format!("fake{n}")).collect();
        let lines = many.iter().filter_map(|peer| odd(peer, start)).count();
        assert!(lines < 25, "{lines}: 25 in all");
        assert!(limited.kinds.len() <= 501);
        assert!(limited.line("other", "", "other", start).is_some());
        assert!(limited.held_back(start + Duration::from_secs(59)).is_empty());
        let later = start + Duration::from_secs(61);
        let summary = limited.held_back(later);
        assert!(
            summary.contains(&"odd message (100 similar lines within a minute)".to_owned()),
            "{summary:?}"
        );
        assert!(summary.len() <= 25);
        assert!(limited.held_back(later).is_empty());
        assert_eq!(limited.line("odd", "", "odd message", later).unwrap(), "odd message");
    }

    #[test]
    fn flood_of_one_peer_leaves_lines_for_the_others() {
        let (mut inbound, start) = (InboundLog::default(), Instant::now());
        let count = |inbound: &mut InboundLog, peer: &str, n| {
            (0..n).filter(|_| inbound.admits(peer, start)).count()
        };
        assert_eq!(count(&mut inbound, "flood", 9_000), 2_500);
        assert_eq!(count(&mut inbound, "web2", 300), 300);
        assert_eq!(count(&mut inbound, "web3", 300), 200);
        assert_eq!(inbound.summary(start), None);
        let summary = inbound.summary(start + Duration::from_secs(10)).unwrap();
        let expected = "suppressed 6600 of the lines about messages within 10 s; most lines (9000, printed or not) were about flood";
        assert_eq!(summary, expected);
        assert_eq!(count(&mut inbound, "web3", 1), 1, "another ten seconds");
        let names: Vec<_> = (0..2_000).map(|n| format!("fake{n}")).collect();
        for name in &names {
            inbound.admits(name, start);
        }
        assert!(inbound.of_peer.len() <= 501);
    }
}
