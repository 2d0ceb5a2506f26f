//! How much one host may say in a minute: far more than any honest one has to. What is beyond costs next to
//! nothing, and the snapshot of its host, which is read all the same, makes up for it.

use std::collections::HashMap;

use crate::clock::is_within;
use crate::wire::HostName;

const MINUTE: i64 = 60_000;

/// How many hosts are told apart; the others count as one.
const MAX_HOSTS: usize = 2_000;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// A ban or unban. A burst of thousands in seconds is honest.
    Event,
    /// A fleet unban: each is an operator's.
    FleetUnban,
    /// A part of a snapshot, of which a host has 512 at most.
    Shard,
}

impl MessageKind {
    /// The most of them of one host in a minute.
    #[must_use]
    pub fn per_minute(self) -> usize {
        match self {
            Self::Event => 20_000,
            Self::FleetUnban => 2_000,
            Self::Shard => 2_000,
        }
    }
}

/// What each host said in the last minute.
#[derive(Debug, Default)]
pub struct RateLimiter {
    counts: HashMap<Option<HostName>, [u32; 3]>,
    /// When the minute began, in milliseconds.
    since: i64,
}

impl RateLimiter {
    /// Counts a message of a host; answers whether it is one too many. A `peer`, of which the fleet keeps
    /// something, is always told apart. `now` is in milliseconds.
    pub fn exceeds_limit(
        &mut self,
        host: &HostName,
        peer: bool,
        kind: MessageKind,
        now: i64,
    ) -> bool {
        if !is_within(MINUTE, self.since, now) {
            self.counts.clear();
            self.since = now;
        }
        let own =
            peer || self.counts.len() < MAX_HOSTS || self.counts.contains_key(&Some(host.clone()));
        let said = self.counts.entry(own.then(|| host.clone())).or_default();
        let count = &mut said[kind as usize];
        *count = count.saturating_add(1);
        usize::try_from(*count).is_ok_and(|count| count > kind.per_minute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_so_many_words_a_minute() {
        let (web1, web2) = (HostName::new("web1").unwrap(), HostName::new("web2").unwrap());
        let mut limits = RateLimiter::default();
        let now = 1_795_342_588_000;
        let mut says = |host: &HostName, kind, now| limits.exceeds_limit(host, false, kind, now);
        assert!((0..20_000).all(|_| !says(&web1, MessageKind::Event, now)));
        assert!(says(&web1, MessageKind::Event, now + 59_000));
        assert!(
            !says(&web1, MessageKind::Shard, now + 59_000)
                && !says(&web2, MessageKind::Event, now + 59_000)
        );
        assert!(!says(&web1, MessageKind::Event, now + 60_000), "another minute");
        assert!((1..20_000).all(|_| !says(&web1, MessageKind::Event, now + 60_000)));
        assert!(says(&web1, MessageKind::Event, now + 60_000));
        assert!(!says(&web1, MessageKind::Event, now), "the clock was set back");
    }

    #[test]
    fn names_without_end_take_no_room_without_end() {
        let mut limits = RateLimiter::default();
        let host = |n: u32| HostName::new(&format!("host{n}")).unwrap();
        let mut says = |n| limits.exceeds_limit(&host(n), n == 9_999, MessageKind::FleetUnban, 0);
        assert_eq!((0..9_999).filter(|n| says(*n)).count(), 9_999 - 4_000);
        assert!(!says(7), "one that was known before");
        assert!(!says(9_999), "a peer");
        assert_eq!(limits.counts.len(), MAX_HOSTS + 2);
    }
}
