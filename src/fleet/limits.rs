//! Which tables of the controller are at a limit, or were within the last day (R21). The operator sees which limit was
//! reached, and which peer has the most.

use std::collections::BTreeMap;

use super::claims::{MAX_CLAIMS_PER_KEY, MAX_CLAIMS_PER_PEER, MAX_LEGACY_CLAIMS};
use crate::sys::clock::is_within;

/// For how long a reached limit is shown, in milliseconds.
const DISPLAY_TIME: i64 = 86_400_000;

/// The longest name of a peer that is shown, in characters.
const MAX_NAME_LENGTH: usize = 64;

/// A table with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BoundedTable {
    /// The other hosts.
    Peers,
    /// Bans of other hosts.
    Claims,
    /// Fleet unbans.
    Tombstones,
    /// Detections that this host knows only from its own events on the broker.
    Echoes,
    /// Messages of one host in a minute.
    Messages,
}

impl BoundedTable {
    /// The name of the table in the status file and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Claims => "claims",
            Self::Tombstones => "tombstones",
            Self::Echoes => "echoes",
            Self::Messages => "messages",
        }
    }
}

/// A limit that was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The table that is full.
    pub table: BoundedTable,
    /// The largest number of entries.
    pub max: usize,
    /// The host with the most entries, if known.
    pub peer: Option<String>,
    /// When the limit was reached last, in milliseconds since 1970.
    pub at: i64,
}

impl Limit {
    /// The limit as text for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let of = match (self.table, self.max) {
            (BoundedTable::Peers, _) => "other hosts",
            (BoundedTable::Claims, MAX_CLAIMS_PER_KEY) => "hosts per ban",
            (BoundedTable::Claims, MAX_CLAIMS_PER_PEER) => "bans per host",
            (BoundedTable::Claims, MAX_LEGACY_CLAIMS) => "bans of hosts with the scripts",
            (BoundedTable::Claims, _) => "bans of other hosts",
            (BoundedTable::Tombstones, _) => "fleet unbans",
            (BoundedTable::Echoes, _) => "detections that only the broker knows",
            (BoundedTable::Messages, _) => "messages per minute and host",
        };
        format!("limit of {} {of}", self.max)
    }
}

/// The last time that each limit was reached.
#[derive(Debug, Default)]
pub struct ReachedLimits(BTreeMap<(BoundedTable, usize), Limit>);

impl ReachedLimits {
    /// Notes that a limit was reached at `now`, in milliseconds.
    pub fn reached(&mut self, table: BoundedTable, max: usize, peer: Option<&str>, now: i64) {
        let last = self.0.get_mut(&(table, max));
        // A flood reaches a limit with each message: copy the name of the peer at most once a second.
        if let Some(last) = last.filter(|last| is_within(1_000, last.at, now)) {
            last.at = now;
            return;
        }
        let peer = peer.map(|peer| peer.chars().take(MAX_NAME_LENGTH).collect());
        self.0.insert((table, max), Limit { table, max, peer, at: now });
    }

    /// The limits that were reached within a day.
    pub fn shown(&self, now: i64) -> impl Iterator<Item = &Limit> {
        self.0.values().filter(move |limit| now.saturating_sub(limit.at) < DISPLAY_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_shown_for_a_day_after_it_was_reached_last() {
        let mut limits = ReachedLimits::default();
        limits.reached(BoundedTable::Peers, 1_000, None, 5_000);
        limits.reached(BoundedTable::Claims, 200_000, Some(&"x".repeat(99)), 5_000);
        limits.reached(BoundedTable::Peers, 1_000, None, 5_500);
        let table = [
            (6_000, &["peers", "claims"][..]),
            (5_000 + DISPLAY_TIME, &["peers"]),
            (5_500 + DISPLAY_TIME, &[]),
        ];
        for (now, expected) in table {
            let shown: Vec<_> = limits.shown(now).map(|limit| limit.table.name()).collect();
            assert_eq!(shown, expected, "{now}");
        }
        let longest = limits.shown(6_000).filter_map(|limit| limit.peer.as_ref()).map(String::len);
        assert_eq!(longest.collect::<Vec<_>>(), [MAX_NAME_LENGTH]);
    }
}
