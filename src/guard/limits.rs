//! How much one host may say in a minute: far more than any honest one has to. What is beyond costs next to
//! nothing, and the snapshot of its host, which is read all the same, makes up for it.

use std::collections::HashMap;

use crate::wire::Host;

const MINUTE: i64 = 60_000;

/// How many hosts are told apart; the others count as one.
const HOSTS: usize = 2_000;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A ban or unban. A burst of thousands in seconds is honest.
    Event,
    /// A fleet unban: each is an operator's.
    FleetUnban,
    /// A part of a snapshot, of which a host has 512 at most.
    Part,
}

impl Kind {
    /// The most of them of one host in a minute.
    #[must_use]
    pub fn most(self) -> usize {
        match self {
            Self::Event => 20_000,
            Self::FleetUnban => 2_000,
            Self::Part => 2_000,
        }
    }
}

/// What each host said in the last minute.
#[derive(Debug, Default)]
pub struct Limits {
    said: HashMap<Option<Host>, [u32; 3]>,
    /// When the minute began, in milliseconds.
    since: i64,
}

impl Limits {
    /// Counts a message of a host; answers whether it is one too many. A `peer`, of which the fleet keeps
    /// something, is always told apart. `now` is in milliseconds.
    pub fn is_too_fast(&mut self, host: &Host, peer: bool, kind: Kind, now: i64) -> bool {
        if !(0..MINUTE).contains(&now.saturating_sub(self.since)) {
            self.said.clear();
            self.since = now;
        }
        let own = peer || self.said.len() < HOSTS || self.said.contains_key(&Some(host.clone()));
        let said = self.said.entry(own.then(|| host.clone())).or_default();
        let count = &mut said[kind as usize];
        *count = count.saturating_add(1);
        usize::try_from(*count).is_ok_and(|count| count > kind.most())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_so_many_words_a_minute() {
        let (web1, web2) = (Host::new("web1").unwrap(), Host::new("web2").unwrap());
        let mut limits = Limits::default();
        let now = 1_795_342_588_000;
        let mut says = |host: &Host, kind, now| limits.is_too_fast(host, false, kind, now);
        assert!((0..20_000).all(|_| !says(&web1, Kind::Event, now)));
        assert!(says(&web1, Kind::Event, now + 59_000));
        assert!(!says(&web1, Kind::Part, now + 59_000) && !says(&web2, Kind::Event, now + 59_000));
        assert!(!says(&web1, Kind::Event, now + 60_000), "another minute");
        assert!((1..20_000).all(|_| !says(&web1, Kind::Event, now + 60_000)));
        assert!(says(&web1, Kind::Event, now + 60_000));
        assert!(!says(&web1, Kind::Event, now), "the clock was set back");
    }

    #[test]
    fn names_without_end_take_no_room_without_end() {
        let mut limits = Limits::default();
        let host = |n: u32| Host::new(&format!("host{n}")).unwrap();
        let mut says = |n| limits.is_too_fast(&host(n), n == 9_999, Kind::FleetUnban, 0);
        assert_eq!((0..9_999).filter(|n| says(*n)).count(), 9_999 - 4_000);
        assert!(!says(7), "one that was known before");
        assert!(!says(9_999), "a peer");
        assert_eq!(limits.said.len(), HOSTS + 2);
    }
}
