//! The others' words: events, parts of snapshots, presence; and what notify tells of this host.

use std::collections::{BTreeMap, BTreeSet};

use super::claims::{Carried, Said, carried};
use super::look::Detection;
use super::remember::Slot;
use super::{Change, Fleet, Key, TIDY, secs};
use crate::fail2ban::database::Row;
use crate::wire::{
    Action, Address, Ban, Event, Host, Jail, Pardon, Part, Reason, Scope, Slice, State, Told,
    UnbanId,
};

/// An own event that comes back later than this is an old one; in milliseconds.
const FRESH: i64 = 60_000;

/// A claim by a host that runs the scripts: it begins when it is heard.
pub(super) fn script(host: Host, since: i64) -> Said {
    Said { host, stamp: 0, ban: Some(Ban { start: since, bantime: 0 }), unbans: None }
}

/// What is wrong with a part of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no room for all of it.
    NoRoom,
    /// It is this host's own, and not what this host said last.
    OwnAndOld,
}

impl Fleet {
    /// Takes an event that the guard let in. Answers `false` where there is no room for it.
    pub fn hear(&mut self, event: &Event, now: i64) -> bool {
        let key = (event.jail.clone(), event.address);
        if let (Some(Reason::Fleet), Some(id)) = (event.reason, &event.id) {
            let scope =
                if event.every_jail { Scope::Every } else { Scope::One(event.jail.clone()) };
            let room = self.unbans.has_room(event.address);
            self.pardon(&Pardon { scope, address: event.address, id: id.clone() }, now);
            return room;
        }
        if event.stamp <= 0 {
            return self.hear_script(event, &key, now);
        }
        if self.last_stamp(&key, &event.host) >= event.stamp {
            return true; // **stamps**: equal or older words are ignored
        }
        let ban = match event.action {
            Action::Ban => {
                let start = if event.time > 0 { event.time } else { secs(now) };
                Some(Ban { start, bantime: event.bantime })
            }
            Action::Unban => None,
            Action::Other(_) => return true,
        };
        self.branches.found(&event.host, now);
        let news = ban.is_some() || self.said(&key, &event.host).is_some();
        let (host, stamp) = (self.known(&event.host), event.stamp);
        let unbans = carried(event.unbans.clone());
        if !self.say(&key, Said { host, stamp, ban, unbans }) {
            return false;
        }
        if let Some(origin) = self.origins.get_mut(&event.host) {
            origin.heard(event.stamp, now);
        }
        self.end_lift(&key, &event.host);
        if news {
            self.queue(&key);
        }
        true
    }

    /// **Scripts**: their words have no stamp, and count in the order in which they come.
    fn hear_script(&mut self, event: &Event, key: &Key, now: i64) -> bool {
        match event.action {
            Action::Ban => {
                let since = secs(now);
                if !self.say(key, script(event.host.clone(), since)) {
                    return false;
                }
                self.change(Change::Script(key.clone(), event.host.clone(), Some(since)));
                self.queue(key);
            }
            Action::Unban => {
                if self.unsay(key, |said| said.is_script() && said.host == event.host) {
                    self.queue(key);
                }
            }
            Action::Other(_) => {}
        }
        true
    }

    /// Takes a part of another host's snapshot, or of this host's own, which came back. Answers what is
    /// wrong with it, if anything.
    pub fn hear_part(&mut self, part: &Part, now: i64) -> Option<Trouble> {
        if part.host == self.me {
            self.hear_own_stamp(part.stamp, now);
            let heard = Some((part.slice, part.stamp));
            let old = self.snapshots.heard(part.slice.part(), heard, now, &self.pace);
            self.branches.heard(&part.host, true, now);
            return old.then_some(Trouble::OwnAndOld);
        }
        if !self.branches.found(&part.host, now) || !self.has_room_for(&part.host) {
            return Some(Trouble::NoRoom);
        }
        let origin = self.origins.entry(part.host.clone()).or_default();
        origin.heard(part.stamp, now);
        // A newer part of another size may cover some of it.
        let newer =
            |address: Address| origin.covered(address).is_some_and(|last| last > part.stamp);
        let bans: Vec<_> = part.bans.iter().filter(|ban| !newer(ban.address)).collect();
        let covered: Vec<_> = origin
            .addresses
            .iter()
            .copied()
            .filter(|address| part.slice.covers(*address) && !newer(*address))
            .collect();
        let news = origin.cover(part.slice, part.stamp);
        let complete = origin.is_complete();
        self.branches.heard(&part.host, complete, now);
        let mut room = true;
        if news {
            let mut pardons: BTreeMap<Address, Vec<&Pardon>> = BTreeMap::new();
            for pardon in &part.unbans {
                pardons.entry(pardon.address).or_default().push(pardon);
            }
            let mut listed = BTreeSet::new();
            for ban in bans {
                let key = (ban.jail.clone(), ban.address);
                let of = pardons.get(&ban.address).into_iter().flatten();
                let unbans: Vec<_> = of
                    .filter(|pardon| pardon.scope.covers(&ban.jail))
                    .map(|pardon| pardon.id.clone())
                    .collect();
                listed.insert((&ban.jail, ban.address));
                room &= self.hear_listed(
                    &key,
                    part,
                    Ban { start: ban.start, bantime: ban.bantime },
                    carried(unbans),
                );
            }
            self.hear_absent(part, &covered, &listed);
            self.end_lifts(&part.host, part.slice);
        }
        for pardon in &part.unbans {
            self.pardon(pardon, now);
        }
        (!room).then_some(Trouble::NoRoom)
    }

    fn hear_listed(&mut self, key: &Key, part: &Part, ban: Ban, unbans: Carried) -> bool {
        let last = self.said(key, &part.host);
        if last.is_some_and(|last| last.stamp >= part.stamp) {
            return true;
        }
        let same = last.is_some_and(|last| last.ban == Some(ban) && last.unbans == unbans);
        let (host, stamp) = (self.known(&part.host), part.stamp);
        let said = Said { host, stamp, ban: Some(ban), unbans };
        if !self.say(key, said) {
            return false;
        }
        if !same {
            self.queue(key);
        }
        true
    }

    /// What a part covers and does not list, its host does not hold.
    fn hear_absent(
        &mut self,
        part: &Part,
        covered: &[Address],
        listed: &BTreeSet<(&Jail, Address)>,
    ) {
        let jails: Vec<_> = self.jails.keys().cloned().collect();
        for &address in covered {
            for jail in &jails {
                if !listed.contains(&(jail, address)) {
                    let key = (jail.clone(), address);
                    let old = |said: &Said| {
                        !said.is_script() && said.host == part.host && said.stamp <= part.stamp
                    };
                    if self.unsay(&key, old) {
                        self.queue(&key);
                    }
                }
            }
        }
    }

    /// A branch was cleared: an empty part 0 means that the host was forgotten.
    pub fn hear_cleared(&mut self, host: &Host, number: u32, now: i64) {
        if *host == self.me {
            self.snapshots.heard(number, None, now, &self.pace);
            return;
        }
        if number > 0 {
            return;
        }
        let Some(origin) = self.origins.remove(host) else { return };
        let jails: Vec<_> = self.jails.keys().cloned().collect();
        for address in origin.addresses {
            for jail in &jails {
                let key = (jail.clone(), address);
                if self.unsay(&key, |said| !said.is_script() && said.host == *host) {
                    self.queue(&key);
                }
            }
        }
    }

    /// An event of this host's own came back. Where the spool cannot be written, notify's child sends it
    /// from memory, and this is how the daemon learns of a detection.
    pub fn hear_own(&mut self, event: &Event, now: i64) {
        self.hear_own_stamp(event.stamp, now);
        let fresh = (now - event.stamp).abs() < FRESH;
        let detected = event.action == Action::Ban && event.reason == Some(Reason::Detected);
        if detected && fresh && event.time > 0 {
            let key = (event.jail.clone(), event.address);
            self.detected(&key, Ban { start: event.time, bantime: event.bantime });
        }
    }

    /// **A host that hears a greater stamp of its own goes on from there**, and says all anew.
    fn hear_own_stamp(&mut self, stamp: i64, now: i64) {
        if self.teller.said_before(stamp, now) {
            self.forgotten = stamp;
            self.snapshots.outdated();
        }
    }

    /// A host's presence was heard of. Another broker's last will of this host, which is no longer connected
    /// there, is answered; what was kept before this connection came up has been.
    pub fn hear_presence(&mut self, host: &Host, state: State, now: i64) {
        self.branches.found(host, now);
        if *host == self.me
            && state == State::Offline
            && !self.snapshots.just_connected(now, &self.pace)
        {
            self.presence = None;
        }
    }

    /// A fleet unban is known from now on: scripts cannot carry it, so their claims end with it.
    fn pardon(&mut self, pardon: &Pardon, now: i64) {
        let Some(change) = self.unbans.hear(pardon, now, &self.pace) else { return };
        self.change(change);
        self.pardoning = true;
        let jails: Vec<_> =
            self.jails.keys().filter(|jail| pardon.scope.covers(jail)).cloned().collect();
        for jail in jails {
            let key = (jail, pardon.address);
            self.unsay(&key, Said::is_script);
            self.queue(&key);
        }
    }

    /// Takes what notify told, and answers the event that is to be sent of it. `row` is fail2ban's row of
    /// the ban: `None` where fail2ban keeps none at all.
    ///
    /// # Errors
    /// Whatever `row` fails with: then it is to be told again.
    pub fn tell<E>(
        &mut self,
        told: &Told,
        row: impl FnOnce() -> Result<Option<Option<Row>>, E>,
        now: i64,
    ) -> Result<Option<Event>, E> {
        let key = (told.jail.clone(), told.address);
        let start = if told.time > 0 { told.time } else { secs(now) };
        if told.action == Action::Ban {
            self.detected(&key, Ban { start, bantime: told.bantime });
        }
        let unbans = self.unbans.carried(&key);
        let mut event = self.teller.event(told, row, unbans, now)?;
        if let Some(event) = &mut event {
            event.time = start;
            self.snapshots.touch(key.1, now);
            let local = self.jails.entry(key.0.clone()).or_default();
            if let Some(shown) = &mut local.shown {
                shown.due = i64::MIN;
            }
            if told.action == Action::Unban {
                self.forget_detection(&key);
            }
        }
        Ok(event)
    }

    /// **A detection told by notify removes the mark**, unless the import came after it.
    fn detected(&mut self, key: &Key, ban: Ban) {
        let turn = self.turn;
        let local = self.jails.entry(key.0.clone()).or_default();
        let case = local.cases.entry(key.1).or_default();
        if case.mark.as_ref().is_some_and(|mark| ban.start < mark.asked) {
            return;
        }
        if local.told.get(&key.1).is_some_and(|told| told.ban.start > ban.start) {
            return; // an old one, come back
        }
        local.told.insert(key.1, Detection { ban, turn, kept: false });
        if case.mark.take().is_some() {
            self.change(Change::Mark(key.clone(), None));
        }
    }

    /// Whether nothing but what notify told knows of a detection yet: fail2ban's database does not, and
    /// neither does this host's own memory on disk.
    #[must_use]
    pub fn is_unwritten(&self, event: &Event) -> bool {
        if self.names.as_ref().is_some_and(|names| !names.contains(&event.jail)) {
            return false; // fail2ban never looks for it
        }
        let told = self.jails.get(&event.jail).and_then(|local| local.told.get(&event.address));
        told.is_some_and(|told| {
            let slot = Slot::Detected((event.jail.clone(), event.address));
            let saved = told.kept && !self.changes.contains_key(&slot);
            told.ban.start == event.time && !saved
        })
    }

    /// A detection is over, or in fail2ban's database.
    pub(super) fn forget_detection(&mut self, key: &Key) {
        let local = self.jails.get_mut(&key.0);
        if local.and_then(|local| local.told.remove(&key.1)).is_some_and(|told| told.kept) {
            self.change(Change::Detected(key.clone(), None));
        }
    }

    /// Forgets words that no longer matter.
    pub(super) fn tidy(&mut self, now: i64) {
        if now - self.tidied < TIDY {
            return;
        }
        self.tidied = now;
        let mut over = Vec::new();
        for (jail, local) in &self.jails {
            let bantime = local.bantime();
            for (address, case) in &local.cases {
                let old = |said: &Said| match said.ban {
                    Some(_) => !said.lasts(bantime, secs(now), &self.pace),
                    None => said.stamp < now - self.pace.end_slack * 1000,
                };
                if case.said.iter().any(old) {
                    over.push((jail.clone(), *address));
                }
            }
        }
        for key in over {
            let bantime = self.jails.get(&key.0).and_then(super::Local::bantime);
            let pace = self.pace.clone();
            self.unsay(&key, |said| match said.ban {
                Some(_) => !said.lasts(bantime, secs(now), &pace),
                None => said.stamp < now - pace.end_slack * 1000,
            });
            self.queue(&key);
        }
        // Of jails that are not here nothing is left with their last claim.
        self.jails.retain(|_, local| !local.is_empty());
        let (jails, pace) = (&self.jails, &self.pace);
        let listed = |address: Address, scope: &Scope, id: &UnbanId| {
            jails.iter().filter(|(jail, _)| scope.covers(jail)).any(|(_, local)| {
                let said = local.cases.get(&address).into_iter().flat_map(|case| &case.said);
                said.into_iter()
                    .any(|said| said.ban.is_some() && !said.is_script() && !said.carries(id))
            })
        };
        for (address, change) in self.unbans.tidy(now, pace, listed) {
            self.snapshots.touch(address, now);
            self.change(change);
        }
    }

    fn end_lift(&mut self, key: &Key, host: &Host) {
        let word = self.word(key, host);
        let over = self
            .lifts
            .of(host)
            .any(|(lifted, lift)| lifted == key && lift.is_over(word, &self.pace));
        if over && let Some(change) = self.lifts.end(key, host) {
            self.change(change);
        }
    }

    fn end_lifts(&mut self, host: &Host, slice: Slice) {
        let keys = self.lifts.of(host).map(|(key, _)| key).filter(|key| slice.covers(key.1));
        let keys: Vec<Key> = keys.cloned().collect();
        for key in keys {
            self.end_lift(&key, host);
        }
    }
}
