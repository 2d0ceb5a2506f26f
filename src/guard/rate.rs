//! Rate limits per host (R21), far above what an honest host sends. A message beyond the limit is dropped before it
//! costs anything; the host's snapshot, which has its own limit, replaces it.

use std::collections::HashMap;

use crate::model::HostName;
use crate::sys::clock::is_within;

const WINDOW_MS: i64 = 60_000;

/// The most hosts that are counted separately; the others share one count.
const MAX_HOSTS: usize = 2_000;

/// The kinds of messages that are limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// A ban or unban. An honest host may send thousands within seconds.
    Event,
    /// A fleet unban, which an operator sends.
    FleetUnban,
    /// A shard of a snapshot; a host has at most 512.
    Shard,
}

impl MessageKind {
    /// The most messages of this kind that one host may send per minute.
    #[must_use]
    pub fn per_minute(self) -> usize {
        match self {
            Self::Event => 20_000,
            Self::FleetUnban => 2_000,
            Self::Shard => 2_000,
        }
    }
}

/// The number of messages of each host in the current minute, by [`MessageKind`].
#[derive(Debug, Default)]
pub struct RateLimiter {
    counts: HashMap<Option<HostName>, [u32; 3]>,
    /// When the minute started, in milliseconds.
    since: i64,
}

impl RateLimiter {
    /// Counts a message of a host; returns whether it exceeds the limit. A `peer`, a host with claims here, always has
    /// its own count. `now` is in milliseconds.
    pub fn exceeds_limit(
        &mut self,
        host: &HostName,
        peer: bool,
        kind: MessageKind,
        now: i64,
    ) -> bool {
        if !is_within(WINDOW_MS, self.since, now) {
            self.counts.clear();
            self.since = now;
        }
        let key = Some(host.clone());
        let has_own_count = peer || self.counts.len() < MAX_HOSTS || self.counts.contains_key(&key);
        let counts = self.counts.entry(key.filter(|_| has_own_count)).or_default();
        let count = &mut counts[kind as usize];
        *count = count.saturating_add(1);
        usize::try_from(*count).is_ok_and(|count| count > kind.per_minute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_host_beyond_its_limit_are_rejected_until_the_next_minute() {
        let (web1, web2) = (HostName::new("web1").unwrap(), HostName::new("web2").unwrap());
        let mut limits = RateLimiter::default();
        let now = 1_795_342_588_000;
        let (next_minute, event) = (now + 60_000, MessageKind::Event);
        assert!((0..20_000).all(|_| !limits.exceeds_limit(&web1, false, event, now)));
        // The host, the kind and the time of another message, and whether it exceeds the limit.
        let table = [
            (&web1, event, now + 59_000, true),
            (&web1, MessageKind::Shard, now + 59_000, false),
            (&web2, event, now + 59_000, false),
            (&web1, event, next_minute, false),
        ];
        for (host, kind, time, exceeds) in table {
            let found = limits.exceeds_limit(host, false, kind, time);
            assert_eq!(found, exceeds, "{host} {kind:?} {time}");
        }
        assert!((1..20_000).all(|_| !limits.exceeds_limit(&web1, false, event, next_minute)));
        assert!(limits.exceeds_limit(&web1, false, event, next_minute));
        assert!(!limits.exceeds_limit(&web1, false, event, now), "the clock was set back");
    }

    #[test]
    fn number_of_counted_hosts_is_limited() {
        let mut limits = RateLimiter::default();
        let hosts: Vec<_> =
            (0..9_999).map(|n| HostName::new(&format!("host{n}")).unwrap()).collect();
        let (peer, kind) = (HostName::new("peer").unwrap(), MessageKind::FleetUnban);
        let rejected = hosts.iter().filter(|host| limits.exceeds_limit(host, false, kind, 0));
        assert_eq!(rejected.count(), 9_999 - 4_000);
        assert!(!limits.exceeds_limit(&hosts[7], false, kind, 0), "it has its own count");
        assert!(!limits.exceeds_limit(&peer, true, kind, 0), "a peer");
        assert_eq!(limits.counts.len(), MAX_HOSTS + 2);
    }
}
