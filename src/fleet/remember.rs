//! What a host itself has to remember, because nobody else could tell it: marks, lifts and fleet unbans;
//! what hosts that run the scripts said; and own bans that fail2ban's database has not. All else is on the broker, or in fail2ban's database.

use std::collections::BTreeMap;

use super::Key;
use super::lifts::Lift;
use super::marks::Mark;
use crate::wire::{Ban, Host, Pardon};

/// One change of it; `None` is to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An import.
    Mark(Key, Option<Mark>),
    /// A lift of one host's ban.
    Lift(Key, Host, Option<Lift>),
    /// A fleet unban, and whether it was obeyed here.
    Unban(Pardon, Option<bool>),
    /// A host that runs the scripts claims an address, since so many seconds after 1970 began.
    Script(Key, Host, Option<i64>),
    /// A detection that is not in fail2ban's database.
    Detected(Key, Option<Ban>),
    /// The last stamp that this host took.
    Stamp(i64),
}

/// What a change is of: a later one takes its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    Mark(Key),
    Lift(Key, Host),
    Unban(Pardon),
    Script(Key, Host),
    Detected(Key),
    Stamp,
}

impl Change {
    pub(super) fn slot(&self) -> Slot {
        match self {
            Self::Mark(key, _) => Slot::Mark(key.clone()),
            Self::Lift(key, host, _) => Slot::Lift(key.clone(), host.clone()),
            Self::Unban(pardon, _) => Slot::Unban(pardon.clone()),
            Self::Script(key, host, _) => Slot::Script(key.clone(), host.clone()),
            Self::Detected(key, _) => Slot::Detected(key.clone()),
            Self::Stamp(_) => Slot::Stamp,
        }
    }
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Remembered {
    pub marks: BTreeMap<Key, Mark>,
    pub lifts: BTreeMap<(Key, Host), Lift>,
    pub unbans: BTreeMap<Pardon, bool>,
    pub scripts: BTreeMap<(Key, Host), i64>,
    pub detected: BTreeMap<Key, Ban>,
    pub stamp: i64,
}

impl Remembered {
    /// Takes up a change.
    pub fn apply(&mut self, change: Change) {
        fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        match change {
            Change::Mark(key, mark) => put(&mut self.marks, key, mark),
            Change::Lift(key, host, lift) => put(&mut self.lifts, (key, host), lift),
            Change::Unban(pardon, obeyed) => put(&mut self.unbans, pardon, obeyed),
            Change::Script(key, host, since) => put(&mut self.scripts, (key, host), since),
            Change::Detected(key, ban) => put(&mut self.detected, key, ban),
            Change::Stamp(stamp) => self.stamp = stamp,
        }
    }
}
