//! Applies messages to the state: events, shards and presence of peers, echoes of this host's own messages, and
//! events from the local spool (R2 to R5, R16).

use std::collections::BTreeMap;

use super::claims::{Claim, SeenTombstones, seen_tombstones};
use super::jails::{JailState, PendingDetection};
use super::limits::BoundedTable;
use super::peer_sync::MAX_SUBSCRIPTIONS;
use super::persist::RecordKey;
use super::{BanKey, Controller, GC_INTERVAL, Record, to_secs};
use crate::model::{Address, BipsRow, HostName, JailScope};
use crate::sys::clock::is_within;
use crate::wire::{
    Action, Ban, Event, FleetUnban, HostState, Presence, Reason, Shard, ShardEntry, ShardId,
    SpooledEvent,
};

/// An echo of an own event counts as a detection only within this time, in milliseconds.
const MAX_ECHO_AGE: i64 = 60_000;

/// The most detections that are known only from echoes of this host's own events (R21).
pub(super) const MAX_ECHOES: usize = 1_000;

/// The most tombstones that a claim from a shard carries: as many as are kept for an address.
const MAX_EVENT_TOMBSTONES: usize = 16;

/// The claim of a legacy peer (R4). It starts at its arrival, because the event has no start.
pub(super) fn legacy_claim(host: HostName, since: i64) -> Claim {
    Claim { host, stamp: 0, ban: Some(Ban { start: since, bantime: 0 }), unbans: None }
}

/// Why a shard was not applied in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardError {
    /// The controller ignored some bans of the shard because of a limit (R21).
    OverCapacity,
    /// The shard has this host's name, and is older than the shard that this host published last.
    StaleEcho,
}

impl Controller {
    /// Applies an event that the guard accepted. Returns `false` if a limit is reached and the event is ignored.
    pub fn apply_event(&mut self, event: &Event, now: i64) -> bool {
        let key = (event.jail.clone(), event.address);
        if let (Some(Reason::Fleet), Some(id)) = (event.reason, &event.id) {
            let scope =
                if event.all_jails { JailScope::All } else { JailScope::One(event.jail.clone()) };
            let fleet_unban = FleetUnban { scope, address: event.address, id: id.clone() };
            let records = self.tombstones.learn(&fleet_unban, now, &self.timing);
            self.take_tombstone(&fleet_unban, records, now);
            return true;
        }
        if event.stamp <= 0 {
            return self.apply_legacy_event(event, &key, now);
        }
        if self.last_stamp(&key, &event.host) >= event.stamp {
            return true; // per origin and address, only a greater stamp counts
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
        let is_new = ban.is_some() || self.claim(&key, &event.host).is_some();
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
        if is_new {
            self.enqueue(&key);
        }
        true
    }

    /// Whether an unban without a stamp, from the scripts or another program, has no effect because only other
    /// hosts ban the address (R5).
    #[must_use]
    pub fn is_unban_of_another_s_ban(&self, event: &Event) -> bool {
        if event.action != Action::Unban || event.stamp > 0 || event.id.is_some() {
            return false;
        }
        let Some(jail_state) = self.jails.get(&event.jail) else { return false };
        let entry = jail_state.entries.get(&event.address);
        let mut claims = entry.into_iter().flat_map(|entry| &entry.claims);
        !claims.any(|claim| claim.host == event.host && claim.ban.is_some())
            && (jail_state.local_bans.contains_key(&event.address)
                || entry.is_some_and(|entry| entry.import.is_some()))
    }

    /// Applies an event of a legacy peer (R4). Its events have no stamp and count in the order of arrival.
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
                if self.remove_claims(key, |claim| claim.is_legacy() && claim.host == event.host) {
                    self.enqueue(key);
                }
            }
            Action::Other(_) => {}
        }
        true
    }

    /// Applies a shard of a peer's snapshot, or an echo of this host's own shard. Returns why it was not applied
    /// in full, if so.
    pub fn apply_shard(&mut self, shard: &Shard, now: i64) -> Option<ShardError> {
        if shard.host == self.me {
            self.adopt_stamp(shard.stamp, now);
            let echo = Some((shard.id, shard.stamp));
            let old = self.publisher.on_echo(shard.id.index(), echo, now, &self.timing);
            for ban in &shard.bans {
                self.correct(&(ban.jail.clone(), ban.address), true, now);
            }
            self.peer_sync.on_shard(&shard.host, true, now);
            return old.then_some(ShardError::StaleEcho);
        }
        self.discover(&shard.host, now);
        let peer = self.admit_peer(&shard.host, now);
        peer.record_clock(shard.stamp, shard.time, now);
        peer.record_stamp(shard.stamp, now);
        // A newer shard of another layout may cover some of the addresses.
        let current = shard.bans.iter().filter(|ban| {
            peer.covering_stamp(ban.address).is_none_or(|covering| covering <= shard.stamp)
        });
        let bans: Vec<&ShardEntry> = current.collect();
        let is_new = peer.record_shard(shard.id, shard.stamp);
        let complete = peer.is_complete();
        self.peer_sync.on_shard(&shard.host, complete, now);
        let mut has_capacity = true;
        if is_new {
            has_capacity = self.apply_listed(shard, &bans, now);
            // Claims that the shard does not list are released later, in small steps (R21).
            self.peers.search(&shard.host);
        }
        for fleet_unban in &shard.unbans {
            let records = self.tombstones.learn_repeated(fleet_unban, now, &self.timing);
            self.take_tombstone(fleet_unban, records, now);
        }
        (!has_capacity).then_some(ShardError::OverCapacity)
    }

    /// Turns the bans that a shard lists into claims. Returns whether all of them fit.
    fn apply_listed(&mut self, shard: &Shard, bans: &[&ShardEntry], now: i64) -> bool {
        let mut fleet_unbans: BTreeMap<Address, Vec<&FleetUnban>> = BTreeMap::new();
        for fleet_unban in &shard.unbans {
            fleet_unbans.entry(fleet_unban.address).or_default().push(fleet_unban);
        }
        // Claims on one address share their list of tombstones, unless a tombstone is for one jail only.
        let mut of_address: BTreeMap<Address, SeenTombstones> = BTreeMap::new();
        for (address, of) in &mut fleet_unbans {
            of.sort_by_key(|fleet_unban| std::cmp::Reverse(fleet_unban.id.created_at()));
            of.truncate(MAX_EVENT_TOMBSTONES);
            if of.iter().all(|fleet_unban| fleet_unban.scope == JailScope::All) {
                of_address.insert(
                    *address,
                    seen_tombstones(of.iter().map(|one| one.id.clone()).collect()),
                );
            }
        }
        let mut has_capacity = true;
        for ban in bans {
            let unbans = match (of_address.get(&ban.address), fleet_unbans.get(&ban.address)) {
                (Some(same), _) => same.clone(),
                (None, None) => None,
                (None, Some(of)) => {
                    let of = of.iter().filter(|fleet_unban| fleet_unban.scope.covers(&ban.jail));
                    seen_tombstones(of.map(|fleet_unban| fleet_unban.id.clone()).collect())
                }
            };
            has_capacity &= self.apply_entry(shard, ban, unbans, now);
        }
        has_capacity
    }

    fn apply_entry(
        &mut self,
        shard: &Shard,
        listed: &ShardEntry,
        unbans: SeenTombstones,
        now: i64,
    ) -> bool {
        let key = (listed.jail.clone(), listed.address);
        let ban = Ban { start: listed.start, bantime: listed.bantime };
        let last = self.claim(&key, &shard.host);
        if last.is_some_and(|last| last.stamp >= shard.stamp) {
            return true;
        }
        let same = last.is_some_and(|last| last.ban == Some(ban) && last.unbans == unbans);
        let (host, stamp) = (self.peers.intern(&shard.host), shard.stamp);
        if !self.upsert_claim(&key, Claim { host, stamp, ban: Some(ban), unbans }, now) {
            return false;
        }
        if !same {
            self.enqueue(&key);
        }
        true
    }

    /// Handles a cleared shard. An empty shard 0 means that an operator removed the host from the fleet.
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

    /// Handles an echo of this host's own event. If the spool is not writable, notify's detached process publishes
    /// from memory, and the echo is how the daemon learns of the detection.
    pub fn apply_echo(&mut self, event: &Event, now: i64) {
        self.adopt_stamp(event.stamp, now);
        // Compare the event's time, not its stamp: stamps may run ahead of the clock.
        let is_recent = (now - event.time.saturating_mul(1000)).abs() < MAX_ECHO_AGE;
        let detected = event.action == Action::Ban && event.reason == Some(Reason::Detected);
        let key = (event.jail.clone(), event.address);
        if matches!(event.action, Action::Ban | Action::Unban) {
            self.correct(&key, event.action == Action::Ban, now);
        }
        if detected && is_recent && event.time > 0 {
            self.record_echo(&key, Ban { start: event.time, bantime: event.bantime }, now);
        }
    }

    /// Compares a message in this host's name with the bans of this host. If they differ, the host publishes the shard
    /// that corrects the message before other shards.
    fn correct(&mut self, key: &BanKey, claimed: bool, now: i64) {
        let is_banned = self.jails.get(&key.0).is_some_and(|jail_state| {
            let detection = jail_state.pending_detections.get(&key.1);
            let is_reported = detection.is_some_and(|detection| detection.echo.is_none());
            is_reported || jail_state.local_bans.contains_key(&key.1)
        });
        if is_banned != claimed {
            self.publisher.mark_dirty(key.1, now);
        }
    }

    /// Records a detection from an echo. Anyone who may publish can forge such an event, so it counts only for a
    /// known jail whose fail2ban bans the address, and not as an import. Otherwise the next observation of the jail
    /// drops it, or the garbage collection after a minute.
    fn record_echo(&mut self, key: &BanKey, ban: Ban, now: i64) {
        let absent = self.known_jails.as_ref().is_some_and(|names| !names.contains(&key.0));
        if absent || !self.has_capacity_for_jail(&key.0) || self.import(key).is_some() {
            return;
        }
        if self.echoes.len() >= MAX_ECHOES {
            self.echoes.retain(|(jail, address)| {
                let jail_state = self.jails.get(jail);
                let detection = jail_state.and_then(|state| state.pending_detections.get(address));
                detection.is_some_and(|detection| detection.echo.is_some())
            });
        }
        if self.echoes.len() >= MAX_ECHOES {
            self.limits.reached(BoundedTable::Echoes, MAX_ECHOES, None, now);
            return;
        }
        let jail_state = self.jails.entry(key.0.clone()).or_default();
        if jail_state.pending_detections.contains_key(&key.1) {
            return; // reported by notify, which is reliable
        }
        self.echoes.insert(key.clone());
        let detection =
            PendingDetection { ban, cycle: self.cycle, persisted: false, echo: Some(now) };
        jail_state.pending_detections.insert(key.1, detection);
    }

    /// Continues above a greater own stamp that the broker has, and publishes all shards again with greater stamps.
    fn adopt_stamp(&mut self, stamp: i64, now: i64) {
        if self.sequencer.adopt(stamp, now) {
            self.publish_floor = stamp;
            self.publisher.invalidate_all();
        }
    }

    /// Schedules the subscription to the snapshot of a host.
    fn discover(&mut self, host: &HostName, now: i64) {
        if self.peer_sync.is_full_for(host) {
            self.limits.reached(BoundedTable::Peers, MAX_SUBSCRIPTIONS, None, now);
        }
        // A new host may lack this host's presence, because brokers drop retained messages beyond their queue.
        // Republishing is rate-limited: keep the flag, so that a host that appears just after another one gets the
        // presence.
        let new =
            !self.peer_sync.knows(host) && !self.publisher.is_in_replay_window(now, &self.timing);
        self.presence_lost |= new;
        self.peer_sync.add_peer(host, now);
    }

    /// Handles a peer's presence. If another broker published this host's last will, this host publishes its
    /// presence again, but not for retained messages from before this connection.
    pub fn apply_presence(&mut self, host: &HostName, state: HostState, now: i64) {
        self.discover(host, now);
        if *host == self.me
            && state == HostState::Offline
            && !self.publisher.is_in_replay_window(now, &self.timing)
        {
            self.presence = None;
        }
    }

    /// Handles an echo of this host's presence; `None` if the broker has none or a forged one.
    pub fn apply_own_presence(&mut self, retained: Option<&Presence>) {
        if let Some((last, _)) = &self.presence {
            self.presence_lost |= retained.is_none_or(|retained| retained.jails != last.jails);
        }
    }

    /// Handles an event from the spool, and returns the event to publish, if any (R18). `row` reads fail2ban's row
    /// of the ban: the outer `None` means that fail2ban has no database.
    ///
    /// # Errors
    /// The error of `row`. The caller retries with the same event.
    pub fn on_local_event<E>(
        &mut self,
        spooled: &SpooledEvent,
        row: impl FnOnce() -> Result<Option<Option<BipsRow>>, E>,
        now: i64,
    ) -> Result<Option<Event>, E> {
        let key = (spooled.jail.clone(), spooled.address);
        let start = if spooled.time > 0 { spooled.time } else { to_secs(now) };
        if spooled.action == Action::Ban {
            self.record_detection(&key, Ban { start, bantime: spooled.bantime });
        }
        let unbans = self.tombstones.ids_of(&key);
        let stamp = self.sequencer.stamp(now);
        let mut event = self.event_filter.event(spooled, stamp, row, unbans, now)?;
        if let Some(event) = &mut event {
            event.time = start;
            self.publisher.mark_dirty(key.1, now);
            let jail_state = self.jails.entry(key.0.clone()).or_default();
            if let Some(shown) = &mut jail_state.last_observation {
                shown.next_check_at = i64::MIN;
            }
            if spooled.action == Action::Unban {
                self.drop_detection(&key);
            }
        }
        Ok(event)
    }

    /// Records a detection that notify reported. It removes the import record (R10), unless the import is newer.
    fn record_detection(&mut self, key: &BanKey, ban: Ban) {
        let cycle = self.cycle;
        let jail_state = self.jails.entry(key.0.clone()).or_default();
        let entry = jail_state.entries.entry(key.1).or_default();
        if entry.import.as_ref().is_some_and(|import| ban.start < import.requested_at) {
            return;
        }
        if jail_state
            .pending_detections
            .get(&key.1)
            .is_some_and(|detection| detection.ban.start > ban.start)
        {
            return; // older than the recorded one: a retry from the spool
        }
        jail_state
            .pending_detections
            .insert(key.1, PendingDetection { ban, cycle, persisted: false, echo: None });
        if entry.import.take().is_some() {
            self.last_releaser.remove(key);
            self.persist(Record::Import(key.clone(), None));
        }
    }

    /// Whether the spool file is the only record of a detection: neither fail2ban's database nor the state database
    /// has it.
    #[must_use]
    pub fn is_unpersisted(&self, event: &Event) -> bool {
        if self.known_jails.as_ref().is_some_and(|names| !names.contains(&event.jail)) {
            return false; // fail2ban will never hold it
        }
        let detection = self
            .jails
            .get(&event.jail)
            .and_then(|jail_state| jail_state.pending_detections.get(&event.address));
        detection.is_some_and(|detection| {
            let key = RecordKey::PendingDetection((event.jail.clone(), event.address));
            let saved = detection.persisted && !self.dirty.contains(&key);
            detection.ban.start == event.time && !saved
        })
    }

    /// Drops a detection that is over or in fail2ban's database.
    pub(super) fn drop_detection(&mut self, key: &BanKey) {
        let jail_state = self.jails.get_mut(&key.0);
        if jail_state
            .and_then(|jail_state| jail_state.pending_detections.remove(&key.1))
            .is_some_and(|detection| detection.persisted)
        {
            self.persist(Record::PendingDetection(key.clone(), None));
        }
    }

    /// Drops claims that have ended, stale echoes, and jails and peers without state.
    pub(super) fn gc(&mut self, now: i64) {
        if now - self.last_gc < GC_INTERVAL {
            return;
        }
        self.last_gc = now;
        let mut ended = Vec::new();
        for (jail, jail_state) in &self.jails {
            let bantime = jail_state.bantime();
            for (address, entry) in &jail_state.entries {
                if entry.claims.iter().any(|claim| claim.is_over(bantime, now, &self.timing)) {
                    ended.push((jail.clone(), *address));
                }
            }
        }
        for key in ended {
            let bantime = self.jails.get(&key.0).and_then(JailState::bantime);
            let timing = self.timing.clone();
            self.remove_claims(&key, |claim| claim.is_over(bantime, now, &timing));
            self.enqueue(&key);
        }
        for jail_state in self.jails.values_mut() {
            let own = &jail_state.local_bans;
            jail_state.pending_detections.retain(|address, detection| {
                let is_old = detection.echo.is_some_and(|at| !is_within(MAX_ECHO_AGE, at, now));
                !is_old || detection.persisted || own.contains_key(address)
            });
        }
        // Jails that fail2ban lacks and peers that are gone have no state left after their last claim.
        self.jails.retain(|_, jail_state| !jail_state.is_empty());
        self.peers.gc(now);
        self.collecting = true;
    }

    /// Removes the override of a peer's ban if a later claim of the peer ends it (R14).
    fn end_override(&mut self, key: &BanKey, host: &HostName) {
        let state = self.claim_state(key, host);
        let is_superseded = self
            .overrides
            .of_peer(host)
            .any(|(other, override_)| other == key && override_.is_superseded(state, &self.timing));
        if is_superseded && let Some(record) = self.overrides.clear(key, host) {
            self.persist(record);
        }
    }

    /// Removes, for all addresses of a shard, the overrides that a later claim of the peer ends (R14).
    pub(super) fn end_overrides(&mut self, host: &HostName, id: ShardId) {
        let keys = self.overrides.of_peer(host).map(|(key, _)| key).filter(|key| id.covers(key.1));
        let keys: Vec<BanKey> = keys.cloned().collect();
        for key in keys {
            self.end_override(&key, host);
        }
    }
}
