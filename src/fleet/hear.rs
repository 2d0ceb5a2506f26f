//! The others' words: events, parts of snapshots, presence; and what notify tells of this host.

use std::collections::BTreeMap;

use super::branches::MAX_SUBSCRIPTIONS;
use super::claims::{Claim, SeenTombstones, seen_tombstones};
use super::limits::BoundedTable;
use super::look::{JailState, PendingDetection};
use super::remember::RecordKey;
use super::{BanKey, Controller, GC_INTERVAL, Record, to_secs};
use crate::clock::is_within;
use crate::fail2ban::database::BipsRow;
use crate::wire::{
    Action, Address, Ban, Event, FleetUnban, HostName, HostState, JailScope, Presence, Reason,
    Shard, ShardEntry, ShardId, SpooledEvent,
};

/// An own event that comes back later than this is an old one; in milliseconds.
const FRESH: i64 = 60_000;

/// The most detections of this host that only its own events on the broker tell of.
pub(super) const MAX_ECHOES: usize = 1_000;

/// The most fleet unbans that a claim carries: as many as are kept of an address.
const MAX_EVENT_TOMBSTONES: usize = 16;

/// A claim by a host that runs the scripts: it begins when it is heard.
pub(super) fn legacy_claim(host: HostName, since: i64) -> Claim {
    Claim { host, stamp: 0, ban: Some(Ban { start: since, bantime: 0 }), unbans: None }
}

/// What is wrong with a part of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardError {
    /// There is no room for all of it.
    OverCapacity,
    /// It is this host's own, and not what this host said last.
    StaleEcho,
}

impl Controller {
    /// Takes an event that the guard let in. Answers `false` where there is no room for it.
    pub fn apply_event(&mut self, event: &Event, now: i64) -> bool {
        let key = (event.jail.clone(), event.address);
        if let (Some(Reason::Fleet), Some(id)) = (event.reason, &event.id) {
            let scope =
                if event.all_jails { JailScope::All } else { JailScope::One(event.jail.clone()) };
            let pardon = FleetUnban { scope, address: event.address, id: id.clone() };
            let changes = self.tombstones.learn(&pardon, now, &self.timing);
            self.take_tombstone(&pardon, changes, now);
            return true;
        }
        if event.stamp <= 0 {
            return self.apply_legacy_event(event, &key, now);
        }
        if self.last_stamp(&key, &event.host) >= event.stamp {
            return true; // **stamps**: equal or older words are ignored
        }
        let ban = match event.action {
            Action::Ban => {
                let start = if event.time > 0 { event.time } else { to_secs(now) };
                Some(Ban { start, bantime: event.bantime })
            }
            Action::Unban => None,
            Action::Other(_) => return true,
        };
        self.discover(&event.host, now);
        let news = ban.is_some() || self.claim(&key, &event.host).is_some();
        self.admit_peer(&event.host, now);
        let (host, stamp) = (self.peers.intern(&event.host), event.stamp);
        let unbans = seen_tombstones(event.unbans.clone());
        if !self.upsert_claim(&key, Claim { host, stamp, ban, unbans }, now) {
            return false;
        }
        if let Some(peer) = self.peers.get_mut(&event.host) {
            peer.record_stamp(event.stamp, now);
        }
        self.end_override(&key, &event.host);
        if news {
            self.enqueue(&key);
        }
        true
    }

    /// Whether an unban of a host that runs the scripts, or of some other program, frees nothing: the address is
    /// banned here, and not by that host.
    #[must_use]
    pub fn is_unban_of_another_s_ban(&self, event: &Event) -> bool {
        let key = (event.jail.clone(), event.address);
        let claims = |said: &Claim| said.host == event.host && said.ban.is_some();
        let is_banned_by_others = |local: &JailState| {
            let case = local.entries.get(&key.1);
            !case.is_some_and(|case| case.claims.iter().any(claims))
                && (local.local_bans.contains_key(&key.1)
                    || case.is_some_and(|case| case.import.is_some()))
        };
        event.action == Action::Unban
            && event.stamp <= 0
            && event.id.is_none()
            && self.jails.get(&key.0).is_some_and(is_banned_by_others)
    }

    /// **Scripts**: their words have no stamp, and count in the order in which they come.
    fn apply_legacy_event(&mut self, event: &Event, key: &BanKey, now: i64) -> bool {
        match event.action {
            Action::Ban => {
                let since = to_secs(now);
                if !self.upsert_claim(key, legacy_claim(event.host.clone(), since), now) {
                    return false;
                }
                self.persist(Record::LegacyClaim(key.clone(), event.host.clone(), Some(since)));
                self.enqueue(key);
            }
            Action::Unban => {
                if self.remove_claims(key, |said| said.is_legacy() && said.host == event.host) {
                    self.enqueue(key);
                }
            }
            Action::Other(_) => {}
        }
        true
    }

    /// Takes a part of another host's snapshot, or of this host's own, which came back. Answers what is
    /// wrong with it, if anything.
    pub fn apply_shard(&mut self, part: &Shard, now: i64) -> Option<ShardError> {
        if part.host == self.me {
            self.adopt_stamp(part.stamp, now);
            let heard = Some((part.id, part.stamp));
            let old = self.publisher.on_echo(part.id.index(), heard, now, &self.timing);
            for ban in &part.bans {
                self.correct(&(ban.jail.clone(), ban.address), true, now);
            }
            self.peer_sync.on_shard(&part.host, true, now);
            return old.then_some(ShardError::StaleEcho);
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
        self.peer_sync.on_shard(&part.host, complete, now);
        let mut room = true;
        if news {
            room = self.apply_listed(part, &bans, now);
            // What it does not list is released, in steps.
            self.peers.search(&part.host);
        }
        for pardon in &part.unbans {
            let changes = self.tombstones.learn_repeated(pardon, now, &self.timing);
            self.take_tombstone(pardon, changes, now);
        }
        (!room).then_some(ShardError::OverCapacity)
    }

    /// What a part lists, its host holds. Answers whether there is room for all of it.
    fn apply_listed(&mut self, part: &Shard, bans: &[&ShardEntry], now: i64) -> bool {
        let mut pardons: BTreeMap<Address, Vec<&FleetUnban>> = BTreeMap::new();
        for pardon in &part.unbans {
            pardons.entry(pardon.address).or_default().push(pardon);
        }
        // Claims share what they carry, as long as it is not for one jail alone.
        let mut shared: BTreeMap<Address, SeenTombstones> = BTreeMap::new();
        for (address, of) in &mut pardons {
            of.sort_by_key(|pardon| std::cmp::Reverse(pardon.id.created_at()));
            of.truncate(MAX_EVENT_TOMBSTONES);
            if of.iter().all(|pardon| pardon.scope == JailScope::All) {
                shared.insert(
                    *address,
                    seen_tombstones(of.iter().map(|one| one.id.clone()).collect()),
                );
            }
        }
        let mut room = true;
        for ban in bans {
            let unbans = match (shared.get(&ban.address), pardons.get(&ban.address)) {
                (Some(shared), _) => shared.clone(),
                (None, None) => None,
                (None, Some(of)) => {
                    let of = of.iter().filter(|pardon| pardon.scope.covers(&ban.jail));
                    seen_tombstones(of.map(|pardon| pardon.id.clone()).collect())
                }
            };
            room &= self.apply_entry(part, ban, unbans, now);
        }
        room
    }

    fn apply_entry(
        &mut self,
        part: &Shard,
        listed: &ShardEntry,
        unbans: SeenTombstones,
        now: i64,
    ) -> bool {
        let key = (listed.jail.clone(), listed.address);
        let ban = Ban { start: listed.start, bantime: listed.bantime };
        let last = self.claim(&key, &part.host);
        if last.is_some_and(|last| last.stamp >= part.stamp) {
            return true;
        }
        let same = last.is_some_and(|last| last.ban == Some(ban) && last.unbans == unbans);
        let (host, stamp) = (self.peers.intern(&part.host), part.stamp);
        if !self.upsert_claim(&key, Claim { host, stamp, ban: Some(ban), unbans }, now) {
            return false;
        }
        if !same {
            self.enqueue(&key);
        }
        true
    }

    /// A branch was cleared: an empty part 0 means that the host was forgotten.
    pub fn apply_cleared(&mut self, host: &HostName, number: u32, now: i64) {
        if *host == self.me {
            self.publisher.on_echo(number, None, now, &self.timing);
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
    pub fn apply_echo(&mut self, event: &Event, now: i64) {
        self.adopt_stamp(event.stamp, now);
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
            let told = local.pending_detections.get(&key.1).is_some_and(|told| told.echo.is_none());
            told || local.local_bans.contains_key(&key.1)
        };
        if self.jails.get(&key.0).is_some_and(bans) != claimed {
            self.publisher.mark_dirty(key.1, now);
        }
    }

    /// **Anybody who may publish can make such an event.** It counts only for a jail that fail2ban has, and if
    /// fail2ban bans the address, as no import; otherwise the next look at the jail drops it, or a minute.
    fn record_echo(&mut self, key: &BanKey, ban: Ban, now: i64) {
        let absent = self.known_jails.as_ref().is_some_and(|names| !names.contains(&key.0));
        if absent || !self.has_capacity_for_jail(&key.0) || self.import(key).is_some() {
            return;
        }
        if self.echoes.len() >= MAX_ECHOES {
            let told = |key: &BanKey| self.jails.get(&key.0)?.pending_detections.get(&key.1)?.echo;
            self.echoes.retain(|key| told(key).is_some());
        }
        if self.echoes.len() >= MAX_ECHOES {
            self.limits.reached(BoundedTable::Echoes, MAX_ECHOES, None, now);
            return;
        }
        let local = self.jails.entry(key.0.clone()).or_default();
        if local.pending_detections.contains_key(&key.1) {
            return; // notify told of it
        }
        self.echoes.insert(key.clone());
        let detection =
            PendingDetection { ban, cycle: self.cycle, persisted: false, echo: Some(now) };
        local.pending_detections.insert(key.1, detection);
    }

    /// **A host that hears a greater stamp of its own goes on from there**, and says all anew.
    fn adopt_stamp(&mut self, stamp: i64, now: i64) {
        if self.sequencer.adopt(stamp, now) {
            self.publish_floor = stamp;
            self.publisher.invalidate_all();
        }
    }

    /// There is such a host: its snapshot is to be asked for.
    fn discover(&mut self, host: &HostName, now: i64) {
        if self.peer_sync.is_full_for(host) {
            self.limits.reached(BoundedTable::Peers, MAX_SUBSCRIPTIONS, None, now);
        }
        // A host that is new may not have this host's presence: a broker hands out only so many.
        // Republishing is paced; a new host must not miss it because another one appeared just before.
        let new =
            !self.peer_sync.knows(host) && !self.publisher.is_in_replay_window(now, &self.timing);
        self.presence_lost |= new;
        self.peer_sync.add_peer(host, now);
    }

    /// A host's presence was heard of. Another broker's last will of this host, which is no longer connected
    /// there, is answered; what was kept before this connection came up has been.
    pub fn apply_presence(&mut self, host: &HostName, state: HostState, now: i64) {
        self.discover(host, now);
        if *host == self.me
            && state == HostState::Offline
            && !self.publisher.is_in_replay_window(now, &self.timing)
        {
            self.presence = None;
        }
    }

    /// What the broker has as this host's presence now; `None` where that is none, or none of this host's.
    pub fn apply_own_presence(&mut self, there: Option<&Presence>) {
        let same =
            |(last, _): &(Presence, i64)| there.is_some_and(|there| there.jails == last.jails);
        self.presence_lost |= self.presence.as_ref().is_some_and(|last| !same(last));
    }

    /// Takes what notify told, and answers the event that is to be sent of it. `row` is fail2ban's row of
    /// the ban: `None` where fail2ban keeps none at all.
    ///
    /// # Errors
    /// Whatever `row` fails with: then it is to be told again.
    pub fn on_local_event<E>(
        &mut self,
        told: &SpooledEvent,
        row: impl FnOnce() -> Result<Option<Option<BipsRow>>, E>,
        now: i64,
    ) -> Result<Option<Event>, E> {
        let key = (told.jail.clone(), told.address);
        let start = if told.time > 0 { told.time } else { to_secs(now) };
        if told.action == Action::Ban {
            self.record_detection(&key, Ban { start, bantime: told.bantime });
        }
        let unbans = self.tombstones.ids_of(&key);
        let mut event = self.sequencer.event(told, row, unbans, now)?;
        if let Some(event) = &mut event {
            event.time = start;
            self.publisher.mark_dirty(key.1, now);
            let local = self.jails.entry(key.0.clone()).or_default();
            if let Some(shown) = &mut local.last_observation {
                shown.next_check_at = i64::MIN;
            }
            if told.action == Action::Unban {
                self.drop_detection(&key);
            }
        }
        Ok(event)
    }

    /// **A detection told by notify removes the mark**, unless the import came after it.
    fn record_detection(&mut self, key: &BanKey, ban: Ban) {
        let turn = self.cycle;
        let local = self.jails.entry(key.0.clone()).or_default();
        let case = local.entries.entry(key.1).or_default();
        if case.import.as_ref().is_some_and(|mark| ban.start < mark.requested_at) {
            return;
        }
        if local.pending_detections.get(&key.1).is_some_and(|told| told.ban.start > ban.start) {
            return; // an old one, come back
        }
        local
            .pending_detections
            .insert(key.1, PendingDetection { ban, cycle: turn, persisted: false, echo: None });
        if case.import.take().is_some() {
            self.last_releaser.remove(key);
            self.persist(Record::Import(key.clone(), None));
        }
    }

    /// Whether nothing but what notify told knows of a detection yet: fail2ban's database does not, and
    /// neither does this host's own memory on disk.
    #[must_use]
    pub fn is_unpersisted(&self, event: &Event) -> bool {
        if self.known_jails.as_ref().is_some_and(|names| !names.contains(&event.jail)) {
            return false; // fail2ban never looks for it
        }
        let told = self
            .jails
            .get(&event.jail)
            .and_then(|local| local.pending_detections.get(&event.address));
        told.is_some_and(|told| {
            let slot = RecordKey::PendingDetection((event.jail.clone(), event.address));
            let saved = told.persisted && !self.dirty.contains(&slot);
            told.ban.start == event.time && !saved
        })
    }

    /// A detection is over, or in fail2ban's database.
    pub(super) fn drop_detection(&mut self, key: &BanKey) {
        let local = self.jails.get_mut(&key.0);
        if local
            .and_then(|local| local.pending_detections.remove(&key.1))
            .is_some_and(|told| told.persisted)
        {
            self.persist(Record::PendingDetection(key.clone(), None));
        }
    }

    /// Forgets words that no longer matter.
    pub(super) fn gc(&mut self, now: i64) {
        if now - self.last_gc < GC_INTERVAL {
            return;
        }
        self.last_gc = now;
        let mut over = Vec::new();
        for (jail, local) in &self.jails {
            let bantime = local.bantime();
            for (address, case) in &local.entries {
                let old = |said: &Claim| match said.ban {
                    Some(_) => !said.is_active(bantime, to_secs(now), &self.timing),
                    None => said.stamp < now - self.timing.expiry_slack * 1000,
                };
                if case.claims.iter().any(old) {
                    over.push((jail.clone(), *address));
                }
            }
        }
        for key in over {
            let bantime = self.jails.get(&key.0).and_then(JailState::bantime);
            let pace = self.timing.clone();
            self.remove_claims(&key, |said| match said.ban {
                Some(_) => !said.is_active(bantime, to_secs(now), &pace),
                None => said.stamp < now - pace.expiry_slack * 1000,
            });
            self.enqueue(&key);
        }
        for local in self.jails.values_mut() {
            let own = &local.local_bans;
            local.pending_detections.retain(|address, told| {
                let old = told.echo.is_some_and(|at| !is_within(FRESH, at, now));
                !old || told.persisted || own.contains_key(address)
            });
        }
        // Of jails that are not here nothing is left with their last claim, nor of hosts that are gone.
        self.jails.retain(|_, local| !local.is_empty());
        self.peers.gc(now);
        self.collecting = true;
    }

    fn end_override(&mut self, key: &BanKey, host: &HostName) {
        let word = self.claim_state(key, host);
        let over = self
            .overrides
            .of_peer(host)
            .any(|(lifted, lift)| lifted == key && lift.is_superseded(word, &self.timing));
        if over && let Some(change) = self.overrides.clear(key, host) {
            self.persist(change);
        }
    }

    pub(super) fn end_overrides(&mut self, host: &HostName, slice: ShardId) {
        let keys =
            self.overrides.of_peer(host).map(|(key, _)| key).filter(|key| slice.covers(key.1));
        let keys: Vec<BanKey> = keys.cloned().collect();
        for key in keys {
            self.end_override(&key, host);
        }
    }
}
