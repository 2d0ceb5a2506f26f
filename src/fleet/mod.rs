//! What a ban means across the fleet. Pure: words go in, steps for fail2ban come out, the time is
//! passed in.
//!
//! - `claims`: what each other host said last of an address.
//! - [`reconcile`]: what is to be done with one address, given all that is known of it.
//! - [`lease`]: what is to be done so that a ban lasts here as long as at its origin.
//! - [`Fleet`], here: keeps both, says what waits for fail2ban and what has to be remembered.

mod claims;
pub mod lease;
pub mod reconcile;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use claims::Claims;
pub use claims::{Ban, Word};
use reconcile::{Facts, Mark, Origin, Step};

use crate::wire::{Action, Address, Event, Host, Jail};

/// The most addresses of other hosts that are kept in mind; no honest fleet comes near.
const MAX_IMPORTS: usize = 200_000;

/// An address in a jail.
pub type Key = (Jail, Address);

/// What has to outlive a restart: an address that is, or is about to be, banned here for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// How far it came.
    pub mark: Mark,
    /// When fail2ban will end it, in seconds since 1970; `None`: never, or not banned yet.
    pub until: Option<i64>,
    /// What each host said last of it.
    pub words: BTreeMap<Host, Word>,
}

/// One address to be banned or freed here, and the host whose word it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// The address.
    pub address: Address,
    /// Who reported it.
    pub host: Host,
}

/// How some addresses of one jail stand on this host.
#[derive(Debug, Default)]
pub struct Here {
    /// fail2ban bans them now.
    pub held: BTreeSet<Address>,
    /// They are never to be banned here.
    pub ignored: BTreeSet<Address>,
    /// fail2ban's database has a ban of them that lasts.
    pub rows: BTreeMap<Address, Origin>,
}

/// What fail2ban is to be told about one jail.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be banned.
    pub import: Vec<Work>,
    /// To be freed.
    pub free: Vec<Work>,
    /// Not to be banned here, which is to be said.
    pub refuse: Vec<Work>,
    /// To be asked about again, soon.
    pub wait: Vec<Address>,
}

/// Everything that is known of the other hosts' bans, and what was made of it here.
#[derive(Debug, Default)]
pub struct Fleet {
    claims: Claims,
    marks: BTreeMap<Key, Mark>,
    /// When fail2ban will end what is banned here for others, in seconds since 1970.
    leases: BTreeMap<Key, i64>,
    /// Addresses that a word has come for and fail2ban has not been asked about since.
    waiting: VecDeque<Key>,
    queued: BTreeSet<Key>,
    changed: BTreeSet<Key>,
}

impl Fleet {
    /// Takes up what an earlier process remembered. Whatever that one had not finished waits.
    #[must_use]
    pub fn remembering(imports: impl IntoIterator<Item = (Key, Import)>) -> Self {
        let mut fleet = Self::default();
        for (key, import) in imports {
            for (host, word) in import.words {
                fleet.claims.hear(&key, &host, word);
            }
            if import.mark != Mark::Done || !fleet.claims.any(&key) {
                fleet.queue(key.clone());
            }
            fleet.leases.extend(import.until.map(|until| (key.clone(), until)));
            fleet.marks.insert(key, import.mark);
        }
        fleet
    }

    /// Takes another host's word. Answers `false` where there is no room for it.
    pub fn hear(&mut self, event: &Event, now: i64) -> bool {
        let key = (event.jail.clone(), event.address);
        let known = self.marks.contains_key(&key);
        let ban = match event.action {
            Action::Ban => Some(Ban { start: event.time, bantime: event.bantime }),
            Action::Unban => None,
            Action::Other(_) => return true,
        };
        if ban.is_some() && !known && self.marks.len() >= MAX_IMPORTS {
            return false;
        }
        let word = Word { stamp: event.stamp, ban, heard: now };
        // Words of scripts are in no order but the one in which they come: one that frees what
        // nobody banned says nothing.
        if ban.is_none() && word.stamp == 0 && !self.claims.any(&key) {
            return true;
        }
        if !self.claims.has_room(&key, &event.host) {
            return false;
        }
        if self.claims.hear(&key, &event.host, word) && (known || ban.is_some()) {
            self.marks.entry(key.clone()).or_insert(Mark::Heard);
            self.changed.insert(key.clone());
            // An unban counts when it was the last claim's: another's word undoes no lift of ours.
            if ban.is_some() || !self.claims.any(&key) {
                self.queue(key);
            }
        }
        true
    }

    /// This host's fail2ban detected the address itself: whatever was imported is its own now.
    pub fn detected(&mut self, key: &Key) {
        self.forget(key);
    }

    /// This host's own ban of the address is over: if others claim it, it is imported now.
    pub fn expired(&mut self, key: &Key) {
        if self.claims.any(key) {
            self.marks.entry(key.clone()).or_insert(Mark::Heard);
            self.changed.insert(key.clone());
            self.queue(key.clone());
        }
    }

    /// How many addresses wait for fail2ban.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The next addresses to ask fail2ban about: up to `max` of one jail, in the order in which
    /// their words came.
    pub fn next(&mut self, max: usize) -> Option<(Jail, Vec<Address>)> {
        let (jail, _) = self.waiting.front()?.clone();
        let mut addresses = Vec::new();
        while addresses.len() < max {
            match self.waiting.pop_front_if(|key| key.0 == jail) {
                Some(key) => {
                    self.queued.remove(&key);
                    addresses.push(key.1);
                }
                None => break,
            }
        }
        Some((jail, addresses))
    }

    /// Puts addresses back that nothing was done about: fail2ban went away.
    pub fn again(&mut self, jail: &Jail, addresses: &[Address]) {
        for address in addresses {
            let key = (jail.clone(), *address);
            if self.marks.contains_key(&key) {
                self.queue(key);
            }
        }
    }

    /// Decides on addresses, now that it is known how they stand here. Bans are marked as intended:
    /// that is to be [remembered](Self::changes) before fail2ban is told.
    pub fn plan(&mut self, jail: &Jail, addresses: &[Address], here: &Here) -> Plan {
        let mut plan = Plan::default();
        for &address in addresses {
            let key = (jail.clone(), address);
            let facts = Facts {
                claimed: self.claims.any(&key),
                mark: self.marks.get(&key).copied(),
                held: here.held.contains(&address),
                ignored: here.ignored.contains(&address),
                row: here.rows.get(&address).copied(),
            };
            let speaker = self.claims.speaker(&key).cloned();
            match (reconcile::step(facts), speaker) {
                (Step::Import, Some(host)) => {
                    self.mark(&key, Mark::Intended);
                    plan.import.push(Work { address, host });
                }
                (Step::Refuse, Some(host)) => {
                    self.forget(&key);
                    plan.refuse.push(Work { address, host });
                }
                (Step::Free, Some(host)) => plan.free.push(Work { address, host }),
                (Step::Keep, _) => self.mark(&key, Mark::Done),
                (Step::Wait, _) => plan.wait.push(address),
                _ => self.forget(&key),
            }
        }
        plan
    }

    /// A plan was carried out; fail2ban will end these bans at `until`, or never.
    pub fn done(&mut self, jail: &Jail, plan: &Plan, until: Option<i64>) {
        for work in &plan.import {
            let key = (jail.clone(), work.address);
            // A detection that came between took the mark away.
            if self.marks.contains_key(&key) {
                self.mark(&key, Mark::Done);
                self.lease(&key, until);
                if !self.claims.any(&key) {
                    self.queue(key);
                }
            }
        }
        for work in &plan.free {
            let key = (jail.clone(), work.address);
            if self.claims.any(&key) { self.queue(key) } else { self.forget(&key) }
        }
    }

    /// The jails in which addresses are banned for others, and which: all, or those whose lease ends
    /// before `end`.
    #[must_use]
    pub fn imported(&self, end: i64) -> BTreeMap<Jail, Vec<Address>> {
        let mut jails: BTreeMap<Jail, Vec<Address>> = BTreeMap::new();
        for (key, mark) in &self.marks {
            let ends = self.leases.get(key).copied().unwrap_or(i64::MAX);
            if *mark == Mark::Done && ends <= end {
                jails.entry(key.0.clone()).or_default().push(key.1);
            }
        }
        jails
    }

    /// When fail2ban will end an import, and until when somebody wants it: in seconds since 1970,
    /// `None` for never and not known.
    #[must_use]
    pub fn times(&self, jail: &Jail, address: Address) -> (Option<i64>, Option<i64>) {
        let key = (jail.clone(), address);
        (self.leases.get(&key).copied(), self.claims.wants(&key))
    }

    /// Imports were prolonged: fail2ban will end them at `until`, or never.
    pub fn prolonged(&mut self, jail: &Jail, addresses: &[Address], until: Option<i64>) {
        for address in addresses {
            let key = (jail.clone(), *address);
            if self.marks.contains_key(&key) {
                self.lease(&key, until);
            }
        }
    }

    /// Forgets an import that fail2ban no longer bans: its time here is over.
    pub fn over(&mut self, jail: &Jail, address: Address) {
        let key = (jail.clone(), address);
        if !self.queued.contains(&key) {
            self.forget(&key);
        }
    }

    /// Looks again at imports that nobody claims any more: their unban may have come while their jail
    /// was away.
    pub fn look_again(&mut self, jail: &Jail, addresses: &[Address]) {
        for address in addresses {
            let key = (jail.clone(), *address);
            if self.marks.contains_key(&key) && !self.claims.any(&key) {
                self.queue(key);
            }
        }
    }

    /// Whose word on an address counts now.
    #[must_use]
    pub fn reporter(&self, jail: &Jail, address: Address) -> String {
        let speaker = self.claims.speaker(&(jail.clone(), address));
        speaker.map_or_else(|| "nobody".to_owned(), ToString::to_string)
    }

    /// Forgets words that no longer matter. What nobody claims any more waits to be freed.
    pub fn tidy(&mut self, now: i64) {
        let marks = &self.marks;
        for key in self.claims.tidy(now, |key| marks.contains_key(key)) {
            if self.marks.contains_key(&key) {
                self.changed.insert(key.clone());
                if !self.claims.any(&key) {
                    self.queue(key);
                }
            }
        }
    }

    /// What has changed since the last call and is to be remembered; `None` is to be forgotten.
    pub fn changes(&mut self) -> Vec<(Key, Option<Import>)> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .map(|key| {
                let mark = self.marks.get(&key);
                let import = mark.map(|&mark| {
                    let until = self.leases.get(&key).copied();
                    Import { mark, until, words: self.claims.of(&key) }
                });
                (key, import)
            })
            .collect()
    }

    /// These changes could not be remembered: they stay changes.
    pub fn unsaved(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.changed.extend(keys);
    }

    fn queue(&mut self, key: Key) {
        if self.queued.insert(key.clone()) {
            self.waiting.push_back(key);
        }
    }

    fn mark(&mut self, key: &Key, mark: Mark) {
        if self.marks.insert(key.clone(), mark) != Some(mark) {
            self.changed.insert(key.clone());
        }
    }

    fn lease(&mut self, key: &Key, until: Option<i64>) {
        match until {
            Some(until) => self.leases.insert(key.clone(), until),
            None => self.leases.remove(key),
        };
        self.changed.insert(key.clone());
    }

    fn forget(&mut self, key: &Key) {
        self.leases.remove(key);
        if self.marks.remove(key).is_some() {
            self.changed.insert(key.clone());
        }
    }
}

#[cfg(test)]
mod tests;
