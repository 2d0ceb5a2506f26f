//! The others' words: events, parts of snapshots, presence; and what notify tells of this host.

use std::collections::BTreeMap;

use super::branches::MAX_BRANCHES;
use super::claims::{Carried, Said, carried};
use super::limits::BoundedTable;
use super::look::{JailState, PendingDetection};
use super::remember::RecordKey;
use super::{BanKey, Controller, Record, TIDY, secs};
use crate::fail2ban::database::Row;
use crate::wire::{
    Action, Address, Ban, Event, FleetUnban, HostName, HostState, JailScope, Presence, Reason,
    Shard, ShardEntry, ShardId, SpooledEvent,
};

/// An own event that comes back later than this is an old one; in milliseconds.
const FRESH: i64 = 60_000;

/// The most detections of this host that only its own events on the broker tell of.
pub(super) const MAX_ECHOES: usize = 1_000;

/// The most fleet unbans that a claim carries: as many as are kept of an address.
const MAX_CARRIED: usize = 16;

/// A claim by a host that runs the scripts: it begins when it is heard.
pub(super) fn legacy_claim(host: HostName, since: i64) -> Said {
    Said { host, stamp: 0, ban: Some(Ban { start: since, bantime: 0 }), unbans: None }
}

/// What is wrong with a part of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardError {
    /// There is no room for all of it.
    NoRoom,
    /// It is this host's own, and not what this host said last.
    OwnAndOld,
}

impl Controller {
    /// Takes an event that the guard let in. Answers `false` where there is no room for it.
    pub fn hear(&mut self, event: &Event, now: i64) -> bool {
        let key = (event.jail.clone(), event.address);
        if let (Some(Reason::Fleet), Some(id)) = (event.reason, &event.id) {
            let scope =
                if event.all_jails { JailScope::All } else { JailScope::One(event.jail.clone()) };
            let pardon = FleetUnban { scope, address: event.address, id: id.clone() };
            let changes = self.tombstones.learn(&pardon, now, &self.pace);
            self.take_tombstone(&pardon, changes, now);
            return true;
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
        self.discover(&event.host, now);
        let news = ban.is_some() || self.said(&key, &event.host).is_some();
        self.admit_peer(&event.host, now);
        let (host, stamp) = (self.peers.intern(&event.host), event.stamp);
        let unbans = carried(event.unbans.clone());
        if !self.upsert_claim(&key, Said { host, stamp, ban, unbans }, now) {
            return false;
        }
        if let Some(peer) = self.peers.get_mut(&event.host) {
            peer.record_stamp(event.stamp, now);
        }
        self.end_lift(&key, &event.host);
        if news {
            self.queue(&key);
        }
        true
    }

    /// Whether an unban of a host that runs the scripts, or of some other program, frees nothing: the address is
    /// banned here, and not by that host.
    #[must_use]
    pub fn is_unban_of_another_s_ban(&self, event: &Event) -> bool {
        let key = (event.jail.clone(), event.address);
        let claims = |said: &Said| said.host == event.host && said.ban.is_some();
        let is_banned_by_others = |local: &JailState| {
            let case = local.cases.get(&key.1);
            !case.is_some_and(|case| case.said.iter().any(claims))
                && (local.own.contains_key(&key.1) || case.is_some_and(|case| case.mark.is_some()))
        };
        event.action == Action::Unban
            && event.stamp <= 0
            && event.id.is_none()
            && self.jails.get(&key.0).is_some_and(is_banned_by_others)
    }

    /// **Scripts**: their words have no stamp, and count in the order in which they come.
    fn hear_script(&mut self, event: &Event, key: &BanKey, now: i64) -> bool {
        match event.action {
            Action::Ban => {
                let since = secs(now);
                if !self.upsert_claim(key, legacy_claim(event.host.clone(), since), now) {
                    return false;
                }
                self.change(Record::Script(key.clone(), event.host.clone(), Some(since)));
                self.queue(key);
            }
            Action::Unban => {
                if self.remove_claims(key, |said| said.is_script() && said.host == event.host) {
                    self.queue(key);
                }
            }
            Action::Other(_) => {}
        }
        true
    }

    /// Takes a part of another host's snapshot, or of this host's own, which came back. Answers what is
    /// wrong with it, if anything.
    pub fn hear_part(&mut self, part: &Shard, now: i64) -> Option<ShardError> {
        if part.host == self.me {
            self.hear_own_stamp(part.stamp, now);
            let heard = Some((part.id, part.stamp));
            let old = self.snapshots.heard(part.id.index(), heard, now, &self.pace);
            for ban in &part.bans {
                self.correct(&(ban.jail.clone(), ban.address), true, now);
            }
            self.branches.heard(&part.host, true, now);
            return old.then_some(ShardError::OwnAndOld);
        }
        self.discover(&part.host, now);
        let peer = self.admit_peer(&part.host, now);
        peer.record_clock(part.stamp, part.time, now);
        peer.record_stamp(part.stamp, now);
        // A newer part of another size may cover some of it.
        let current = |ban: &&ShardEntry| {
            peer.covering_stamp(ban.address).is_none_or(|covering| covering <= part.stamp)
        };
        let bans: Vec<&ShardEntry> = part.bans.iter().filter(current).collect();
        let news = peer.record_shard(part.id, part.stamp);
        let complete = peer.is_complete();
        self.branches.heard(&part.host, complete, now);
        let mut room = true;
        if news {
            room = self.apply_listed(part, &bans, now);
            // What it does not list is released, in steps.
            self.peers.search(&part.host);
        }
        for pardon in &part.unbans {
            let changes = self.tombstones.learn_repeated(pardon, now, &self.pace);
            self.take_tombstone(pardon, changes, now);
        }
        (!room).then_some(ShardError::NoRoom)
    }

    /// What a part lists, its host holds. Answers whether there is room for all of it.
    fn apply_listed(&mut self, part: &Shard, bans: &[&ShardEntry], now: i64) -> bool {
        let mut pardons: BTreeMap<Address, Vec<&FleetUnban>> = BTreeMap::new();
        for pardon in &part.unbans {
            pardons.entry(pardon.address).or_default().push(pardon);
        }
        // Claims share what they carry, as long as it is not for one jail alone.
        let mut shared: BTreeMap<Address, Carried> = BTreeMap::new();
        for (address, of) in &mut pardons {
            of.sort_by_key(|pardon| std::cmp::Reverse(pardon.id.created_at()));
            of.truncate(MAX_CARRIED);
            if of.iter().all(|pardon| pardon.scope == JailScope::All) {
                shared.insert(*address, carried(of.iter().map(|one| one.id.clone()).collect()));
            }
        }
        let mut room = true;
        for ban in bans {
            let unbans = match (shared.get(&ban.address), pardons.get(&ban.address)) {
                (Some(shared), _) => shared.clone(),
                (None, None) => None,
                (None, Some(of)) => {
                    let of = of.iter().filter(|pardon| pardon.scope.covers(&ban.jail));
                    carried(of.map(|pardon| pardon.id.clone()).collect())
                }
            };
            room &= self.hear_listed(part, ban, unbans, now);
        }
        room
    }

    fn hear_listed(
        &mut self,
        part: &Shard,
        listed: &ShardEntry,
        unbans: Carried,
        now: i64,
    ) -> bool {
        let key = (listed.jail.clone(), listed.address);
        let ban = Ban { start: listed.start, bantime: listed.bantime };
        let last = self.said(&key, &part.host);
        if last.is_some_and(|last| last.stamp >= part.stamp) {
            return true;
        }
        let same = last.is_some_and(|last| last.ban == Some(ban) && last.unbans == unbans);
        let (host, stamp) = (self.peers.intern(&part.host), part.stamp);
        if !self.upsert_claim(&key, Said { host, stamp, ban: Some(ban), unbans }, now) {
            return false;
        }
        if !same {
            self.queue(&key);
        }
        true
    }

    /// A branch was cleared: an empty part 0 means that the host was forgotten.
    pub fn hear_cleared(&mut self, host: &HostName, number: u32, now: i64) {
        if *host == self.me {
            self.snapshots.heard(number, None, now, &self.pace);
            return;
        }
        if number > 0 {
            return;
        }
        if let Some(peer) = self.peers.get_mut(host) {
            peer.forget();
            self.peers.search(host);
        }
    }

    /// An event of this host's own came back. Where the spool cannot be written, notify's child sends it
    /// from memory, and this is how the daemon learns of a detection.
    pub fn hear_own(&mut self, event: &Event, now: i64) {
        self.hear_own_stamp(event.stamp, now);
        // By its time: stamps may be ahead of the clock.
        let fresh = (now - event.time.saturating_mul(1000)).abs() < FRESH;
        let detected = event.action == Action::Ban && event.reason == Some(Reason::Detected);
        let key = (event.jail.clone(), event.address);
        if matches!(event.action, Action::Ban | Action::Unban) {
            self.correct(&key, event.action == Action::Ban, now);
        }
        if detected && fresh && event.time > 0 {
            self.record_echo(&key, Ban { start: event.time, bantime: event.bantime }, now);
        }
    }

    /// A message in this host's name claims that it bans an address, or that it does not. Where that is wrong, the
    /// part that corrects it is published before others.
    fn correct(&mut self, key: &BanKey, claimed: bool, now: i64) {
        let bans = |local: &JailState| {
            let told = local.told.get(&key.1).is_some_and(|told| told.echo.is_none());
            told || local.own.contains_key(&key.1)
        };
        if self.jails.get(&key.0).is_some_and(bans) != claimed {
            self.snapshots.touch(key.1, now);
        }
    }

    /// **Anybody who may publish can make such an event.** It counts only for a jail that fail2ban has, and if
    /// fail2ban bans the address, as no import; otherwise the next look at the jail drops it, or a minute.
    fn record_echo(&mut self, key: &BanKey, ban: Ban, now: i64) {
        let absent = self.names.as_ref().is_some_and(|names| !names.contains(&key.0));
        if absent || !self.has_room_for_jail(&key.0) || self.mark(key).is_some() {
            return;
        }
        if self.echoes.len() >= MAX_ECHOES {
            let told = |key: &BanKey| self.jails.get(&key.0)?.told.get(&key.1)?.echo;
            self.echoes.retain(|key| told(key).is_some());
        }
        if self.echoes.len() >= MAX_ECHOES {
            self.limits.reached(BoundedTable::Echoes, MAX_ECHOES, None, now);
            return;
        }
        let local = self.jails.entry(key.0.clone()).or_default();
        if local.told.contains_key(&key.1) {
            return; // notify told of it
        }
        self.echoes.insert(key.clone());
        let detection = PendingDetection { ban, turn: self.turn, kept: false, echo: Some(now) };
        local.told.insert(key.1, detection);
    }

    /// **A host that hears a greater stamp of its own goes on from there**, and says all anew.
    fn hear_own_stamp(&mut self, stamp: i64, now: i64) {
        if self.teller.said_before(stamp, now) {
            self.forgotten = stamp;
            self.snapshots.outdated();
        }
    }

    /// There is such a host: its snapshot is to be asked for.
    fn discover(&mut self, host: &HostName, now: i64) {
        if self.branches.is_full_for(host) {
            self.limits.reached(BoundedTable::Peers, MAX_BRANCHES, None, now);
        }
        // A host that is new may not have this host's presence: a broker hands out only so many.
        // Republishing is paced; a new host must not miss it because another one appeared just before.
        let new = !self.branches.knows(host) && !self.snapshots.just_connected(now, &self.pace);
        self.presence_lost |= new;
        self.branches.found(host, now);
    }

    /// A host's presence was heard of. Another broker's last will of this host, which is no longer connected
    /// there, is answered; what was kept before this connection came up has been.
    pub fn hear_presence(&mut self, host: &HostName, state: HostState, now: i64) {
        self.discover(host, now);
        if *host == self.me
            && state == HostState::Offline
            && !self.snapshots.just_connected(now, &self.pace)
        {
            self.presence = None;
        }
    }

    /// What the broker has as this host's presence now; `None` where that is none, or none of this host's.
    pub fn hear_own_presence(&mut self, there: Option<&Presence>) {
        let same =
            |(last, _): &(Presence, i64)| there.is_some_and(|there| there.jails == last.jails);
        self.presence_lost |= self.presence.as_ref().is_some_and(|last| !same(last));
    }

    /// Takes what notify told, and answers the event that is to be sent of it. `row` is fail2ban's row of
    /// the ban: `None` where fail2ban keeps none at all.
    ///
    /// # Errors
    /// Whatever `row` fails with: then it is to be told again.
    pub fn tell<E>(
        &mut self,
        told: &SpooledEvent,
        row: impl FnOnce() -> Result<Option<Option<Row>>, E>,
        now: i64,
    ) -> Result<Option<Event>, E> {
        let key = (told.jail.clone(), told.address);
        let start = if told.time > 0 { told.time } else { secs(now) };
        if told.action == Action::Ban {
            self.detected(&key, Ban { start, bantime: told.bantime });
        }
        let unbans = self.tombstones.carried(&key);
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
    fn detected(&mut self, key: &BanKey, ban: Ban) {
        let turn = self.turn;
        let local = self.jails.entry(key.0.clone()).or_default();
        let case = local.cases.entry(key.1).or_default();
        if case.mark.as_ref().is_some_and(|mark| ban.start < mark.asked) {
            return;
        }
        if local.told.get(&key.1).is_some_and(|told| told.ban.start > ban.start) {
            return; // an old one, come back
        }
        local.told.insert(key.1, PendingDetection { ban, turn, kept: false, echo: None });
        if case.mark.take().is_some() {
            self.unsaid.remove(key);
            self.change(Record::Mark(key.clone(), None));
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
            let slot = RecordKey::Detected((event.jail.clone(), event.address));
            let saved = told.kept && !self.dirty.contains(&slot);
            told.ban.start == event.time && !saved
        })
    }

    /// A detection is over, or in fail2ban's database.
    pub(super) fn forget_detection(&mut self, key: &BanKey) {
        let local = self.jails.get_mut(&key.0);
        if local.and_then(|local| local.told.remove(&key.1)).is_some_and(|told| told.kept) {
            self.change(Record::Detected(key.clone(), None));
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
            let bantime = self.jails.get(&key.0).and_then(JailState::bantime);
            let pace = self.pace.clone();
            self.remove_claims(&key, |said| match said.ban {
                Some(_) => !said.lasts(bantime, secs(now), &pace),
                None => said.stamp < now - pace.end_slack * 1000,
            });
            self.queue(&key);
        }
        for local in self.jails.values_mut() {
            let own = &local.own;
            local.told.retain(|address, told| {
                let old = told.echo.is_some_and(|at| !(0..FRESH).contains(&now.saturating_sub(at)));
                !old || told.kept || own.contains_key(address)
            });
        }
        // Of jails that are not here nothing is left with their last claim, nor of hosts that are gone.
        self.jails.retain(|_, local| !local.is_empty());
        self.peers.gc(now);
        self.collecting = true;
    }

    fn end_lift(&mut self, key: &BanKey, host: &HostName) {
        let word = self.word(key, host);
        let over = self
            .lifts
            .of(host)
            .any(|(lifted, lift)| lifted == key && lift.is_over(word, &self.pace));
        if over && let Some(change) = self.lifts.end(key, host) {
            self.change(change);
        }
    }

    pub(super) fn end_lifts(&mut self, host: &HostName, slice: ShardId) {
        let keys = self.lifts.of(host).map(|(key, _)| key).filter(|key| slice.covers(key.1));
        let keys: Vec<BanKey> = keys.cloned().collect();
        for key in keys {
            self.end_lift(&key, host);
        }
    }
}
