//! What each host said last of each address: kept, found, and kept within bounds.

use super::claims::{Said, Word};
use super::{Change, Fleet, Key, MAX_HOSTS, MAX_JAILS, MAX_OF_HOST, MAX_WORDS};
use crate::wire::{Address, Host, Jail};

impl Fleet {
    /// Puts a word in the place of its host's last. Answers `false` where there is no room for it.
    pub(super) fn say(&mut self, key: &Key, said: Said) -> bool {
        let same =
            |other: &&mut Said| other.host == said.host && other.is_script() == said.is_script();
        let case = self.jails.get_mut(&key.0).and_then(|local| local.cases.get_mut(&key.1));
        let others = case.as_ref().map_or(0, |case| case.said.len());
        if let Some(last) = case.and_then(|case| case.said.iter_mut().find(same)) {
            *last = said;
            return true;
        }
        if self.words >= MAX_WORDS || others >= MAX_HOSTS || !self.has_room_in(&key.0) {
            return false;
        }
        if !said.is_script() {
            if !self.has_room_for(&said.host) {
                return false;
            }
            let origin = self.origins.entry(said.host.clone()).or_default();
            if origin.addresses.len() >= MAX_OF_HOST && !origin.addresses.contains(&key.1) {
                return false;
            }
            origin.addresses.insert(key.1);
        }
        let case = self.jails.entry(key.0.clone()).or_default().cases.entry(key.1).or_default();
        case.said.push(said);
        self.words += 1;
        true
    }

    /// Forgets words on an address. Answers whether there were any.
    pub(super) fn unsay(&mut self, key: &Key, which: impl Fn(&Said) -> bool) -> bool {
        let Some(local) = self.jails.get_mut(&key.0) else { return false };
        let Some(case) = local.cases.get_mut(&key.1) else { return false };
        let gone: Vec<Said> = case.said.iter().filter(|said| which(said)).cloned().collect();
        case.said.retain(|said| !which(said));
        self.words -= gone.len();
        if let (true, Some(last)) = (case.said.is_empty() && case.mark.is_some(), gone.last()) {
            self.unsaid.insert(key.clone(), last.host.clone());
        }
        if case.is_empty() {
            local.cases.remove(&key.1);
        }
        for said in &gone {
            if said.is_script() {
                self.change(Change::Script(key.clone(), said.host.clone(), None));
            } else if !self.says(&said.host, key.1)
                && let Some(origin) = self.origins.get_mut(&said.host)
            {
                origin.addresses.remove(&key.1);
            }
        }
        !gone.is_empty()
    }

    /// Whether some word of a host on an address is kept, in whatever jail.
    fn says(&self, host: &Host, address: Address) -> bool {
        let mut cases = self.jails.values().filter_map(|local| local.cases.get(&address));
        cases.any(|case| case.said.iter().any(|said| !said.is_script() && said.host == *host))
    }

    pub(super) fn has_room_in(&self, jail: &Jail) -> bool {
        let known = self.jails.contains_key(jail) || self.jails.len() < MAX_JAILS;
        known || self.names.as_ref().is_some_and(|names| names.contains(jail))
    }

    /// A host's name as it is kept already: many claims share one.
    pub(super) fn known(&self, host: &Host) -> Host {
        self.origins.get_key_value(host).map_or(host, |(known, _)| known).clone()
    }

    pub(super) fn has_room_for(&self, host: &Host) -> bool {
        self.origins.contains_key(host) || self.origins.len() < MAX_HOSTS
    }

    pub(super) fn said(&self, key: &Key, host: &Host) -> Option<&Said> {
        let case = self.jails.get(&key.0)?.cases.get(&key.1)?;
        case.said.iter().find(|said| !said.is_script() && said.host == *host)
    }

    pub(super) fn last_stamp(&self, key: &Key, host: &Host) -> i64 {
        let said = self.said(key, host).map_or(i64::MIN, |said| said.stamp);
        let covered = self.origins.get(host).and_then(|origin| origin.covered(key.1));
        said.max(covered.unwrap_or(i64::MIN))
    }

    /// **The last word of a host on an address**: its newest event or covering part.
    #[must_use]
    pub fn word(&self, key: &Key, host: &Host) -> Word {
        if let Some(said) = self.said(key, host) {
            return said.ban.map_or(Word::Free(said.stamp), |ban| Word::Held(said.stamp, ban));
        }
        let covered = self.origins.get(host).and_then(|origin| origin.covered(key.1));
        covered.map_or(Word::Unknown, Word::Free)
    }
}
