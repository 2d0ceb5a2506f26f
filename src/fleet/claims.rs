//! **Claims**: what each other host said last of an address: that it holds it, or that it does not.
//!
//! A host says it by events, one address each, and by the parts of its snapshot, each of which stands
//! alone. Of two words of one host on one address the greater stamp counts, so for any address the
//! newest of its host's event and covering parts is right. No word is not "not held": nothing is freed
//! because nothing was heard.
//!
//! Hosts that run the scripts make claims by events alone. These have no stamp and count in the order in
//! which they come; the jail's bantime here ends them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Pace;
use crate::wire::{Address, Ban, Host, Slice, UnbanId};

/// What one host said last of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Who.
    pub host: Host,
    /// Orders what the host says, in milliseconds since 1970; 0 from a script.
    pub stamp: i64,
    /// It holds this ban, or none. A script's begins when it was heard here.
    pub ban: Option<Ban>,
    /// The fleet unbans of the address that the claim carries.
    pub unbans: Carried,
}

/// The fleet unbans that a claim carries: hardly ever any, so it is as small as a pointer.
pub type Carried = Option<Arc<Vec<UnbanId>>>;

/// Puts fleet unbans together.
#[must_use]
pub fn carried(unbans: Vec<UnbanId>) -> Carried {
    (!unbans.is_empty()).then(|| unbans.into())
}

impl Said {
    /// Whether a host that runs the scripts said it.
    #[must_use]
    pub fn is_script(&self) -> bool {
        self.stamp == 0
    }

    /// Whether it carries a fleet unban.
    #[must_use]
    pub fn carries(&self, id: &UnbanId) -> bool {
        self.unbans.as_deref().into_iter().flatten().any(|carried| carried == id)
    }

    /// When the ban ends, in seconds since 1970; `i64::MAX`: never, or nobody knows. `bantime` is the
    /// jail's here, where that is known.
    #[must_use]
    pub fn end(&self, bantime: Option<i64>, pace: &Pace) -> i64 {
        match self.ban {
            None => i64::MIN,
            Some(ban) if self.is_script() => match bantime {
                Some(length) if length >= 0 => ban.start.saturating_add(length),
                _ => i64::MAX,
            },
            Some(ban) if ban.bantime == 0 => ban.start.saturating_add(pace.unknown),
            Some(ban) => ban.end(),
        }
    }

    /// **A claim ends on its origin's word; without one, a while after its end by the clock here.** That
    /// of a script ends with this jail's bantime.
    #[must_use]
    pub fn lasts(&self, bantime: Option<i64>, now: i64, pace: &Pace) -> bool {
        self.until(bantime, pace) >= now
    }

    /// Until when the claim lasts at most, in seconds since 1970.
    #[must_use]
    pub fn until(&self, bantime: Option<i64>, pace: &Pace) -> i64 {
        let slack = if self.is_script() { 0 } else { pace.end_slack };
        self.end(bantime, pace).saturating_add(slack)
    }
}

/// The last word of a host on an address, with its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It has not said anything.
    Unknown,
    /// It does not hold it.
    Free(i64),
    /// It holds it.
    Held(i64, Ban),
}

/// What is known of one other host.
#[derive(Debug, Default)]
pub(super) struct Origin {
    /// The newest part heard for each slice, by its stamp.
    slices: BTreeMap<Slice, i64>,
    /// Addresses that words of it are kept on.
    pub(super) addresses: BTreeSet<Address>,
    /// How far its clock is behind the one here at most, in seconds; 0 where it is ahead.
    pub(super) behind: Option<i64>,
}

impl Origin {
    /// The stamp of the newest part that covers an address.
    pub(super) fn covered(&self, address: Address) -> Option<i64> {
        if self.slices.is_empty() {
            return None;
        }
        let hash = address.hash();
        let covers = |slice: &Slice| hash % u64::from(slice.parts()) == u64::from(slice.part());
        self.slices.iter().filter(|(slice, _)| covers(slice)).map(|(_, stamp)| *stamp).max()
    }

    /// Takes up a part's stamp; `false` where the part is old.
    pub(super) fn cover(&mut self, slice: Slice, stamp: i64) -> bool {
        if self.slices.get(&slice).is_some_and(|last| *last >= stamp) {
            return false;
        }
        self.slices.insert(slice, stamp);
        // What newer parts cover wholly says nothing any more.
        self.slices
            .retain(|other, last| *last >= stamp || *other == slice || !slice.contains(*other));
        if self.is_complete() {
            let (parts, oldest) = self.newest();
            self.slices.retain(|other, last| other.parts() == parts || *last > oldest);
        }
        true
    }

    /// Whether every part of its newest snapshot is known.
    pub(super) fn is_complete(&self) -> bool {
        let (parts, _) = self.newest();
        parts > 0 && self.of(parts).count() == parts as usize
    }

    /// The numbers of the parts that are not known of its newest snapshot; of one that is known, or of
    /// which nothing is, all that may be there.
    pub(super) fn wanted(&self) -> Vec<u32> {
        let (parts, _) = self.newest();
        let known = |part: u32| {
            self.slices.keys().any(|slice| (slice.part(), slice.parts()) == (part, parts))
        };
        let all = 0..parts.max(1);
        if self.is_complete() { all.collect() } else { all.filter(|part| !known(*part)).collect() }
    }

    /// How many parts its newest snapshot has, and the stamp of the oldest of these.
    fn newest(&self) -> (u32, i64) {
        let newest = self.slices.iter().max_by_key(|(_, stamp)| **stamp);
        let parts = newest.map_or(0, |(slice, _)| slice.parts());
        (parts, self.of(parts).min().unwrap_or_default())
    }

    fn of(&self, parts: u32) -> impl Iterator<Item = i64> {
        self.slices.iter().filter(move |(slice, _)| slice.parts() == parts).map(|(_, stamp)| *stamp)
    }

    /// A word with this stamp came at `now` (both in milliseconds): its clock is behind by no more.
    pub(super) fn heard(&mut self, stamp: i64, now: i64) {
        let behind = (now.saturating_sub(stamp) / 1000).max(0);
        self.behind = Some(self.behind.map_or(behind, |least| least.min(behind)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(stamp: i64, ban: Option<Ban>) -> Said {
        Said { host: Host::new("web1").unwrap(), stamp, ban, unbans: None }
    }

    #[test]
    fn a_claim_lasts_until_a_while_after_its_end() {
        let pace = Pace::default();
        let ban = |bantime| Some(Ban { start: 1000, bantime });
        let table = [
            // stamp, ban, the jail's bantime, now -> it lasts
            (5, ban(600), Some(60), 2200, true),
            (5, ban(600), Some(60), 2201, false),
            (5, ban(600), None, 2200, true),
            (5, ban(-1), Some(60), i64::MAX, true),
            (5, ban(0), Some(60), 1000 + 86_400 + 600, true),
            (5, ban(0), Some(60), 1000 + 86_400 + 601, false),
            (5, None, Some(60), 0, false),
            (0, ban(0), Some(60), 1060, true),
            (0, ban(0), Some(60), 1061, false),
            (0, ban(0), Some(-1), i64::MAX, true),
            (0, ban(0), None, i64::MAX, true),
        ];
        for (stamp, ban, bantime, now, lasts) in table {
            assert_eq!(said(stamp, ban).lasts(bantime, now, &pace), lasts, "{stamp} {ban:?} {now}");
        }
    }

    #[test]
    fn each_part_stands_alone_and_the_newest_that_covers_an_address_counts() {
        let mut origin = Origin::default();
        let slice = |part, parts| Slice::new(part, parts).unwrap();
        let address = Address::new("192.0.2.1").unwrap();
        let mine = Slice::of(address, 2);
        let other = slice(1 - mine.part(), 2);
        assert_eq!(origin.covered(address), None);
        assert!(!origin.is_complete());
        assert_eq!(origin.wanted(), [0], "the first says how many there are");
        assert!(origin.cover(slice(0, 1), 10));
        assert!(!origin.cover(slice(0, 1), 10), "the same again");
        assert_eq!(origin.covered(address), Some(10));
        assert!(origin.cover(other, 20));
        assert_eq!(origin.covered(address), Some(10), "the other part says nothing of it");
        assert!(!origin.is_complete(), "the other half is missing");
        assert_eq!(origin.wanted(), [mine.part()]);
        assert!(origin.cover(mine, 21));
        assert_eq!(origin.covered(address), Some(21));
        assert!(origin.is_complete());
        assert_eq!(origin.wanted(), [0, 1], "they may have changed");
        assert_eq!(origin.slices.len(), 2, "what newer parts cover is gone");
        assert!(origin.cover(slice(0, 1), 30));
        assert_eq!(origin.slices.len(), 1);
    }

    #[test]
    fn how_far_a_clock_is_behind_is_known_from_the_quickest_word() {
        let mut origin = Origin::default();
        origin.heard(100_000, 160_500);
        assert_eq!(origin.behind, Some(60));
        origin.heard(200_000, 999_000);
        assert_eq!(origin.behind, Some(60), "that one was retained");
        origin.heard(300_000, 290_000);
        assert_eq!(origin.behind, Some(0));
    }
}
