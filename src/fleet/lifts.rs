//! **Lifts**: what this host's operator freed although others claim it stays free here, whatever its
//! origins repeat. A lift names the origins' bans; a new ban of theirs counts again.

use std::collections::BTreeMap;

use super::claims::Word;
use super::{BanKey, Record, Timing};
use crate::wire::{Ban, HostName, Jail};

/// One origin's ban that was lifted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Override {
    /// When it began, in seconds since 1970 on its origin's clock.
    pub start: i64,
    /// The stamp of the word that told of it.
    pub stamp: i64,
}

impl Override {
    /// **A lift ends when an origin's later word has no such ban or a newer start.**
    #[must_use]
    pub fn is_over(self, word: Word, pace: &Timing) -> bool {
        match word {
            Word::Unknown => false,
            Word::Free(stamp) => stamp > self.stamp,
            Word::Held(stamp, ban) => stamp > self.stamp && !self.names(ban, pace),
        }
    }

    /// Whether it is this ban that was lifted. Starts are rounded, each its own way.
    #[must_use]
    pub fn names(self, ban: Ban, pace: &Timing) -> bool {
        ban.start <= self.start.saturating_add(pace.start_slack)
    }
}

/// All lifts of this host.
#[derive(Debug, Default)]
pub(super) struct Overrides(BTreeMap<HostName, BTreeMap<BanKey, Override>>);

impl Overrides {
    /// Lifts an origin's ban.
    pub(super) fn lift(&mut self, key: &BanKey, host: &HostName, lift: Override) -> Record {
        let lifts = self.0.entry(host.clone()).or_default();
        let lift = lifts.get(key).map_or(lift, |before| lift.max(*before));
        lifts.insert(key.clone(), lift);
        Record::Lift(key.clone(), host.clone(), Some(lift))
    }

    /// Whether a host's ban of an address was lifted here.
    pub(super) fn covers(&self, key: &BanKey, host: &HostName, ban: Ban, pace: &Timing) -> bool {
        let lift = self.0.get(host).and_then(|lifts| lifts.get(key));
        lift.is_some_and(|lift| lift.names(ban, pace))
    }

    /// What of one host's bans was lifted.
    pub(super) fn of(&self, host: &HostName) -> impl Iterator<Item = (&BanKey, Override)> {
        self.0.get(host).into_iter().flatten().map(|(key, lift)| (key, *lift))
    }

    /// How many bans of a jail were lifted.
    pub(super) fn count(&self, jail: &Jail) -> usize {
        self.0.values().flat_map(BTreeMap::keys).filter(|key| key.0 == *jail).count()
    }

    /// A lift is over.
    pub(super) fn end(&mut self, key: &BanKey, host: &HostName) -> Option<Record> {
        let lifts = self.0.get_mut(host)?;
        lifts.remove(key)?;
        if lifts.is_empty() {
            self.0.remove(host);
        }
        Some(Record::Lift(key.clone(), host.clone(), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lift_ends_with_a_later_word_that_has_another_ban_or_none() {
        let lift = Override { start: 1000, stamp: 50 };
        let held = |stamp, start| Word::Held(stamp, Ban { start, bantime: 600 });
        let table = [
            (Word::Unknown, false),
            (Word::Free(50), false),
            (Word::Free(51), true),
            (held(51, 1000), false),
            (held(51, 1002), false),
            (held(51, 1003), true),
            (held(50, 1003), false),
            (held(49, 900), false),
        ];
        for (word, over) in table {
            assert_eq!(lift.is_over(word, &Timing::default()), over, "{word:?}");
        }
    }
}
