//! What each other host said last of an address: that it bans it, or that it does not.
//!
//! Of two words of one host on one address the greater stamp counts. Hosts that run the scripts
//! send no stamp: their words count in the order in which they come.

use std::collections::BTreeMap;

use super::Key;
use crate::wire::Host;

/// After a ban's end its origin has this long, in seconds, to say so, and a word that came late can
/// still be told to be old.
const GRACE: i64 = 600;

/// A claim of unknown length is kept this long, in seconds, where nothing was imported for it.
const UNKNOWN: i64 = 86_400;

/// The most words that are kept, and on one address; no honest fleet comes near.
const MAX_WORDS: usize = 500_000;
const MAX_HOSTS: usize = 1_000;

/// A ban, as the host that made it tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// When it began, in seconds since 1970 on that host's clock; 0 is not known.
    pub start: i64,
    /// How long it lasts, in seconds; -1 is for ever, 0 is not known.
    pub bantime: i64,
}

/// The last word of one host on one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Orders what one host says, in milliseconds since 1970; 0 from a script.
    pub stamp: i64,
    /// A claim: it bans the address. `None`: it does not.
    pub ban: Option<Ban>,
    /// When it was heard, in seconds since 1970 on the clock here: clocks may differ, so this is what
    /// its length is counted from.
    pub heard: i64,
}

impl Word {
    /// Until when it wants the address banned, on the clock here; `None` where that is not known.
    fn wants(&self) -> Option<i64> {
        match self.ban?.bantime {
            0 => None,
            length if length < 0 => Some(i64::MAX),
            length => Some(self.heard.saturating_add(length)),
        }
    }

    /// When it no longer matters, on the clock here.
    fn end(&self) -> i64 {
        match (self.ban, self.wants()) {
            (None, _) => self.heard.saturating_add(GRACE),
            (Some(_), None) => self.heard.saturating_add(UNKNOWN),
            (Some(_), Some(end)) => end.saturating_add(GRACE),
        }
    }
}

/// A word, and after which other words it came.
#[derive(Clone, Copy, Debug)]
struct Heard {
    word: Word,
    turn: u64,
}

#[derive(Debug, Default)]
pub(super) struct Claims {
    words: BTreeMap<Key, BTreeMap<Host, Heard>>,
    count: usize,
    turn: u64,
}

impl Claims {
    /// Whether a word of this host on this address can be kept.
    pub(super) fn has_room(&self, key: &Key, host: &Host) -> bool {
        let words = self.words.get(key);
        words.is_some_and(|words| words.contains_key(host))
            || self.count < MAX_WORDS && words.is_none_or(|words| words.len() < MAX_HOSTS)
    }

    /// Takes a word. Answers `false` where it is old.
    pub(super) fn hear(&mut self, key: &Key, host: &Host, word: Word) -> bool {
        let words = self.words.entry(key.clone()).or_default();
        let old = |last: &Heard| word.stamp > 0 && word.stamp <= last.word.stamp;
        if words.get(host).is_some_and(old) {
            return false;
        }
        self.turn += 1;
        let heard = Heard { word, turn: self.turn };
        if words.insert(host.clone(), heard).is_none() {
            self.count += 1;
        }
        true
    }

    /// Whether anybody claims the address.
    pub(super) fn any(&self, key: &Key) -> bool {
        let claims =
            |words: &BTreeMap<_, Heard>| words.values().any(|heard| heard.word.ban.is_some());
        self.words.get(key).is_some_and(claims)
    }

    /// Everybody's last word on the address.
    pub(super) fn of(&self, key: &Key) -> BTreeMap<Host, Word> {
        let words = self.words.get(key).into_iter().flatten();
        words.map(|(host, heard)| (host.clone(), heard.word)).collect()
    }

    /// Whose word it is that the address is to be banned, or else to be freed: the last one's.
    pub(super) fn speaker(&self, key: &Key) -> Option<&Host> {
        let words = self.words.get(key)?;
        let last = words.iter().max_by_key(|(_, heard)| (heard.word.ban.is_some(), heard.turn));
        last.map(|(host, _)| host)
    }

    /// Until when somebody wants the address banned, on the clock here.
    pub(super) fn wants(&self, key: &Key) -> Option<i64> {
        self.words.get(key)?.values().filter_map(|heard| heard.word.wants()).max()
    }

    /// Forgets words that no longer matter. A claim that a ban here rests on (`imported`) becomes
    /// "not held" when it is over, and its address is answered; one of unknown length stays: this
    /// jail's bantime ends that ban.
    pub(super) fn tidy(&mut self, now: i64, imported: impl Fn(&Key) -> bool) -> Vec<Key> {
        let mut ended = Vec::new();
        self.words.retain(|key, words| {
            let imported = imported(key);
            words.retain(|_, Heard { word, .. }| {
                let over = word.end() <= now;
                let rests = imported && word.ban.is_some();
                if rests && over && word.wants().is_some() {
                    (word.ban, word.heard) = (None, now);
                    ended.push(key.clone());
                }
                rests || !over
            });
            !words.is_empty()
        });
        self.count = self.words.values().map(BTreeMap::len).sum();
        ended
    }
}
