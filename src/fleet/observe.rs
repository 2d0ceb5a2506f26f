//! Applies observations of fail2ban to the state of each address: classifies imports (R10), finds local bans (R6) and
//! operator overrides (R14, R15), and schedules the next decision and observation (R19).

use std::collections::BTreeSet;

use super::effects::Pending;
use super::imports::{
    Import, ImportObservation, ImportSource, ImportSources, ImportStatus, MAX_WRITE_DELAY,
};
use super::jails::{Entry, Heartbeat, JailState, LocalBan, Observation, Scan};
use super::overrides::Override;
use super::reconcile::{self, Decision};
use super::{BanKey, Controller, Record, lease, local_bans, to_secs};
use crate::guard::ignorelist::IgnoreReason;
use crate::model::{Address, BipsRow, Jail};
use crate::wire::Ban;

/// How long before its end the daemon observes a local ban again, in seconds.
const LAST_CHECK_LEAD: i64 = 10;

/// How often a ban with an unknown end is observed, in seconds.
const UNKNOWN_END_CHECK_INTERVAL: i64 = 5;

/// How late an origin's unban may arrive (R13), in seconds. After that, the import is made again.
const MAX_UNBAN_DELAY: i64 = 15;

/// How many leases are renewed in one batch. fail2ban runs no action for them, so they take little time.
const RENEWAL_BATCH: usize = 100;

impl Controller {
    /// Starts a cycle. The stamp of a scan is taken before the spool and fail2ban are read, so that the stamp never
    /// claims to be newer than the data.
    pub fn start_cycle(&mut self, now: i64) {
        if now < self.cycle_started_at {
            self.on_clock_rollback(now);
        }
        self.cycle_started_at = now;
        self.cycle += 1;
        if self.jails_to_observe.is_empty() || self.scan.since.is_none() {
            self.scan_stamp = self.sequencer.stamp(now);
        }
        if let Some(stamp) = self.sequencer.take_later(now) {
            self.publish_floor = stamp;
            self.publisher.invalidate_all();
            self.scan_stamp = self.sequencer.stamp(now);
        }
        if self.sequencer.take_was_ahead() {
            self.scan_stamp = self.sequencer.stamp(now);
            (self.observed_stamp, self.publish_floor) = (0, 0);
            self.publisher.republish_all();
        }
    }

    /// Moves deadlines closer after the clock was set back, so that nothing waits for a time far ahead.
    fn on_clock_rollback(&mut self, now: i64) {
        self.last_gc = 0;
        self.dirty.on_clock_rollback();
        (self.scan, self.jails_to_observe) = (Scan::default(), BTreeSet::new());
        self.publisher.on_clock_rollback(now);
        self.peer_sync.on_clock_rollback(now);
        self.peers.on_clock_rollback(now);
        self.connected_since = self.connected_since.map(|since| since.min(now));
        for jail_state in self.jails.values_mut() {
            jail_state.on_clock_rollback(now, &self.timing);
        }
    }

    /// Handles a heartbeat: fail2ban answers, and has these jails. An [`Effect`](super::effects::Effect) requests the
    /// observation of each jail that needs one.
    pub fn on_heartbeat(&mut self, heartbeat: Heartbeat, names: BTreeSet<Jail>, now: i64) {
        self.spot_checked.clear();
        let last = self.heartbeat.replace(heartbeat).filter(|last| last.server == heartbeat.server);
        self.jails_to_observe.retain(|jail| last.is_some() && names.contains(jail));
        let goes_on = self.scan.since.is_some() && !self.jails_to_observe.is_empty();
        let waits = last.is_some() && now < self.scan.pause && !self.queue.is_empty();
        let sweeps = !goes_on && !waits;
        if !goes_on {
            self.scan.since = sweeps.then_some(now);
        }
        self.tombstones.retry_deferred();
        for jail in &names {
            let jail_state = self.jails.entry(jail.clone()).or_default();
            let new = self.known_jails.as_ref().is_some_and(|names| !names.contains(jail));
            // A jail that appears restores its bans, and first applies the tombstones that it missed.
            if new || jail_state.missing_since.is_some() {
                let unbans = jail_state.missing_since.take().map_or(0, |(_, unbans)| unbans);
                jail_state.last_observation = None;
                self.tombstones.on_jail_added(jail, unbans);
            }
            if (sweeps || jail_state.last_observation.is_none())
                && jail_state.needs_observation(heartbeat, now)
            {
                self.jails_to_observe.insert(jail.clone());
            }
        }
        if self.known_jails.as_ref() != Some(&names) {
            (self.known_jails, self.jails_changed_at) = (Some(names), now);
        }
        self.finish_scan(now);
    }

    /// Handles an observation of a jail, or of the addresses `of` of the jail.
    pub fn on_observation(
        &mut self,
        jail: &Jail,
        of: Option<&[Address]>,
        mut observation: Observation,
        now: i64,
    ) {
        let Some(heartbeat) = self.heartbeat else { return };
        let jail_state = self.jails.entry(jail.clone()).or_default();
        // An address that is not held although its row has not expired may be about to be restored. Only an
        // observation of the whole jail shows whether the jail restarted.
        if of.is_some_and(|of| of.iter().any(|address| observation.lacks(*address, to_secs(now)))) {
            self.jails_to_observe.insert(jail.clone());
            return;
        }
        jail_state.record_observation(&mut observation, heartbeat, of.is_none(), now, &self.timing);
        let mut scope: Vec<Address> = if let Some(addresses) = of {
            addresses.to_vec()
        } else {
            let rows =
                jail_state.is_restoring(to_secs(now)).then_some(observation.rows.addresses());
            let known = jail_state
                .entries
                .keys()
                .chain(jail_state.local_bans.keys())
                .chain(jail_state.pending_detections.keys());
            known
                .copied()
                .chain(observation.held.addresses())
                .chain(rows.into_iter().flatten())
                .collect()
        };
        scope.sort_unstable();
        scope.dedup();
        let mut due = Due { at: i64::MAX, renew: Vec::new() };
        for address in scope {
            self.observe_address(&(jail.clone(), address), &observation, now, &mut due);
        }
        for batch in due.renew.chunks(RENEWAL_BATCH) {
            self.pending.push_back(Pending::Renew(jail.clone(), batch.to_vec()));
        }
        let jail_state = self.jails.entry(jail.clone()).or_default();
        if let Some(shown) = &mut jail_state.last_observation {
            shown.next_check_at = shown.next_check_at.min(due.at);
        }
        match of {
            None => {
                self.jails_to_observe.remove(jail);
                self.finish_scan(now);
            }
            Some(addresses) => drop(self.spot_checked.insert(jail.clone(), addresses.to_vec())),
        }
    }

    pub(super) fn finish_scan(&mut self, now: i64) {
        if self.jails_to_observe.is_empty()
            && let Some(since) = self.scan.since.take()
        {
            self.scan.pause = now + (now - since);
            self.observed_stamp = self.observed_stamp.max(self.scan_stamp);
        }
    }

    /// Applies an observation to one address.
    fn observe_address(
        &mut self,
        key: &BanKey,
        observation: &Observation,
        now: i64,
        due: &mut Due,
    ) {
        let (millis, now) = (now, to_secs(now));
        let jail_state = self.jails.entry(key.0.clone()).or_default();
        let (epoch, restoring) = (jail_state.epoch, jail_state.is_restoring(now));
        let held = observation.held.get(key.1).copied();
        let row = observation.rows.get(key.1).copied();
        let detection = jail_state.pending_detections.get(&key.1).copied();
        let detection = detection.filter(|detection| !detection.is_refuted_by(row));
        let last = jail_state.local_bans.get(&key.1).copied();
        let entry = jail_state.entries.entry(key.1).or_default();
        entry.in_database = row.is_some();
        entry.may_be_restored =
            restoring && held.is_none() && row.is_some_and(|row| !row.is_over(now));

        // Classify the import (R10, R14).
        let was_imported = entry.import.is_some();
        let seen = ImportObservation {
            held: held.is_some(),
            row,
            database: observation.database,
            jail_epoch: epoch,
            end: entry.held_until.unwrap_or(i64::MIN),
            purge_age: observation.purge_age,
            now,
        };
        let (changed, overridden) = entry.observe_import(seen);

        // Find the local ban (R6).
        let pending = detection.map(|detection| detection.ban);
        let known_length = last.map(|own| own.ban.bantime).or(row.map(|row| row.bantime));
        let default_length = known_length.unwrap_or(observation.bantime);
        let ban = local_bans::effective_ban(local_bans::LocalBanFacts {
            held: held.map(|length| length.unwrap_or(default_length)),
            row,
            pending,
            imported: entry.import.is_some(),
            restoring,
            away: false,
            now,
        });
        let start = began_at(entry.import.as_deref(), pending, row);
        entry.held_until = held.map(|length| held_until(length, start, entry.held_until, now));
        let unseen =
            detection.is_some_and(|detection| held.is_some() || detection.cycle == self.cycle);
        let written = pending.is_some_and(|ban| row.is_some_and(|row| row.timeofban >= ban.start));
        match ban {
            Some(ban) => {
                let before = last.is_some_and(|own| own.in_database && own.ban.start == ban.start);
                let in_database = before || row.is_some_and(|row| row.timeofban == ban.start);
                jail_state
                    .local_bans
                    .insert(key.1, LocalBan { ban, jail_epoch: epoch, in_database });
            }
            None => drop(jail_state.local_bans.remove(&key.1)),
        }
        let import = changed.then(|| entry.import.as_deref().cloned());
        if entry.import.is_none() {
            self.last_releaser.remove(key);
        }
        if !unseen || written {
            self.drop_detection(key);
        } else {
            self.keep_detection(key, now);
        }

        if let Some(import) = import {
            self.persist(Record::Import(key.clone(), import));
        }
        if last.map(|own| own.ban) != ban {
            self.publisher.mark_dirty(key.1, millis);
        }
        for source in overridden {
            self.record_override(key, &source);
        }
        // A local ban ended while this fail2ban kept running, or its row was seen, which survives a restart (R15).
        let ended = last.filter(|own| {
            let is_certain = own.jail_epoch == epoch || own.had_row_in(observation.database);
            is_certain && held.is_none() && ban.is_none()
        });
        let is_removed = ended.is_some_and(|own| {
            let had_row = own.had_row_in(observation.database);
            local_bans::was_removed_by_operator(own.ban, had_row, row, now, observation.purge_age)
        });
        if is_removed && observation.database.is_some() && !unseen && !was_imported {
            for source in self.import_sources(key, now) {
                self.record_override(key, &source);
            }
        }
        self.schedule(key, now, due);
    }

    /// Persists a detection that is missing in fail2ban's database after the time in which fail2ban writes a ban,
    /// because of a full disk, or because fail2ban has no database.
    fn keep_detection(&mut self, key: &BanKey, now: i64) {
        let jail_state = self.jails.get_mut(&key.0);
        let detection =
            jail_state.and_then(|jail_state| jail_state.pending_detections.get_mut(&key.1));
        if let Some(detection) = detection
            .filter(|detection| !detection.persisted && detection.ban.start + MAX_WRITE_DELAY < now)
        {
            detection.persisted = true;
            let record = Record::PendingDetection(key.clone(), Some(detection.ban));
            self.persist(record);
        }
    }

    /// Queues the observed address if its decision is not `Keep`, and computes when to observe it again.
    fn schedule(&mut self, key: &BanKey, now: i64, due: &mut Due) {
        let facts = self.facts(key, now);
        if matches!(reconcile::decide(facts), Decision::Import | Decision::Unban | Decision::Drop) {
            self.enqueue(key);
        }
        if facts.claimed && facts.held && facts.imported {
            self.refresh_import(key, now);
        }
        if facts.just_ended {
            due.at = due.at.min(self.again_due(key, now).unwrap_or(now + 1));
        }
        let Some(jail_state) = self.jails.get_mut(&key.0) else { return };
        let Some(entry) = jail_state.entries.get(&key.1) else { return };
        if entry.is_empty() {
            self.drop_if_empty(key);
            return;
        }
        let Some(end) = entry.held_until.filter(|end| *end < i64::MAX) else { return };
        due.at = due.at.min(end.max(now) + 1);
        // Further failures extend a local ban without a database write: observe it before the leases of peers end.
        if jail_state.local_bans.contains_key(&key.1) && end - LAST_CHECK_LEAD > now {
            due.at = due.at.min(end - LAST_CHECK_LEAD);
        }
        // Without a row, neither the start nor the end of the ban is known.
        if !facts.imported && !jail_state.local_bans.contains_key(&key.1) && !entry.in_database {
            due.at = due.at.min(now + UNKNOWN_END_CHECK_INTERVAL);
        }
        if facts.imported && facts.claimed {
            let bantime = jail_state.bantime().unwrap_or(-1);
            let (wanted, until) = self.wanted(key, bantime, now);
            due.at = due.at.min(until.max(now).saturating_add(1));
            match lease::due(end, wanted, bantime) {
                Some(at) if at <= now => due.renew.push(key.1),
                Some(at) => due.at = due.at.min(at),
                None => {}
            }
        }
    }

    /// The latest end of the active claims, corrected by their origins' clock lag, and the latest time at which one
    /// of them expires; in seconds since 1970.
    fn wanted(&self, key: &BanKey, bantime: i64, now: i64) -> (i64, i64) {
        let entry = self
            .jails
            .get(&key.0)
            .and_then(|jail_state| Some((jail_state, jail_state.entries.get(&key.1)?)));
        let Some((jail_state, entry)) = entry else { return (i64::MIN, i64::MIN) };
        let mut latest = (i64::MIN, i64::MIN);
        for claim in self.active_claims(key, jail_state, entry, now) {
            let clock_lag = self.peers.get(&claim.host).map_or(0, |peer| peer.clock_lag);
            let end = claim.ends_at(Some(bantime), &self.timing).saturating_add(clock_lag);
            let until = claim.expires_at(Some(bantime), &self.timing);
            latest = (latest.0.max(end), latest.1.max(until));
        }
        latest
    }

    /// When to import an address again whose import expired with its origin's ban, unless the origin's unban arrives
    /// first (R13): in seconds since 1970; `None` means now.
    fn again_due(&self, key: &BanKey, now: i64) -> Option<i64> {
        let bantime = self.jails.get(&key.0).and_then(JailState::bantime).unwrap_or(-1);
        let (wanted, _) = self.wanted(key, bantime, now);
        let due = wanted.saturating_add(MAX_UNBAN_DELAY);
        (wanted <= now && now < due).then_some(due)
    }

    /// The facts that the decision on an address depends on (R19).
    pub(super) fn facts(&self, key: &BanKey, now: i64) -> reconcile::ReconcileFacts {
        let jail_state = self.jails.get(&key.0);
        let entry =
            jail_state.and_then(|jail_state| Some((jail_state, jail_state.entries.get(&key.1)?)));
        let is_imported = entry.is_some_and(|(_, entry)| entry.import.is_some());
        let is_held = entry.is_some_and(|(_, entry)| entry.held_until.is_some());
        reconcile::ReconcileFacts {
            claimed: entry.is_some_and(|(jail_state, entry)| {
                self.active_claims(key, jail_state, entry, now).next().is_some()
            }),
            imported: is_imported,
            held: is_held,
            ends_soon: entry.is_some_and(|(jail_state, entry)| {
                entry.held_until.is_some_and(|end| {
                    end <= now.saturating_add(self.timing.expiry_guard)
                        || entry.claims.iter().any(|claim| {
                            claim.leaves_end_to_fail2ban(jail_state.bantime(), end, &self.timing)
                        })
                })
            }),
            ignored: self.ignored(key).is_some_and(|reason| {
                reason.ends_imports() || entry.is_none_or(|(_, entry)| entry.held_until.is_none())
            }),
            restoring: entry.is_some_and(|(_, entry)| entry.may_be_restored),
            just_ended: is_imported && !is_held && self.again_due(key, now).is_some(),
        }
    }

    /// The reason why this host must not ban an address, if any (R1).
    pub(super) fn ignored(&self, key: &BanKey) -> Option<IgnoreReason> {
        self.jails.get(&key.0)?.last_observation.as_ref()?.ignored.lookup(key.1)
    }

    /// The active claims on an address, as sources of its import.
    pub(super) fn import_sources(&self, key: &BanKey, now: i64) -> ImportSources {
        let jail_state = self.jails.get(&key.0);
        let entry =
            jail_state.and_then(|jail_state| Some((jail_state, jail_state.entries.get(&key.1)?)));
        let Some((jail_state, entry)) = entry else { return ImportSources::new() };
        let sources = self.active_claims(key, jail_state, entry, now).filter_map(|claim| {
            let (host, stamp, unbans) = (claim.host.clone(), claim.stamp, claim.unbans.clone());
            claim.ban.map(|ban| ImportSource { host, stamp, ban, unbans })
        });
        sources.collect()
    }

    /// Updates the sources in an import record, if the claims changed (R11).
    fn refresh_import(&mut self, key: &BanKey, now: i64) {
        if self.is_import_current(key, now) {
            return;
        }
        let claims = self.import_sources(key, now);
        let entry =
            self.jails.get_mut(&key.0).and_then(|jail_state| jail_state.entries.get_mut(&key.1));
        if let Some(import) = entry.and_then(|entry| entry.import.as_mut()) {
            import.sources = claims;
            let record = Record::Import(key.clone(), Some(Import::clone(import)));
            self.persist(record);
        }
    }

    /// Whether the sources in an import record are the active claims.
    pub(super) fn is_import_current(&self, key: &BanKey, now: i64) -> bool {
        let entry = self
            .jails
            .get(&key.0)
            .and_then(|jail_state| Some((jail_state, jail_state.entries.get(&key.1)?)));
        let Some((jail_state, entry)) = entry else { return true };
        let Some(import) = &entry.import else { return true };
        let now = self.active_claims(key, jail_state, entry, now);
        let now = now.map(|claim| (&claim.host, claim.ban, &claim.unbans));
        now.eq(import.sources.iter().map(|claim| (&claim.host, Some(claim.ban), &claim.unbans)))
    }

    /// Overrides the ban that the import rested on, and no newer ban (R14). A legacy claim is removed instead, because
    /// such a claim is never imported again (R4).
    fn record_override(&mut self, key: &BanKey, source: &ImportSource) {
        if source.stamp == 0 {
            self.remove_claims(key, |claim| claim.is_legacy() && claim.host == source.host);
        } else {
            let override_ = Override { start: source.ban.start, stamp: source.stamp };
            let record = self.overrides.suppress(key, &source.host, override_);
            self.persist(record);
        }
    }
}

impl Entry {
    /// Updates the import record by an observation (R10, R14). Returns whether the record changed, and the sources of
    /// an import that the operator removed.
    fn observe_import(&mut self, seen: ImportObservation) -> (bool, Vec<ImportSource>) {
        let Some(import) = &mut self.import else { return (false, Vec::new()) };
        match import.classify(seen) {
            ImportStatus::Active => (import.confirm(seen), Vec::new()),
            ImportStatus::Superseded => {
                self.import = None;
                (true, Vec::new())
            }
            ImportStatus::RemovedByOperator => {
                let sources = import.sources.to_vec();
                self.import = None;
                (true, sources)
            }
            // The decision drops the record, or imports again (R19).
            ImportStatus::Expired => (false, Vec::new()),
        }
    }
}

/// When fail2ban ends a ban, in seconds since 1970. If its start or length is unknown, the earlier result stays.
fn held_until(length: Option<i64>, start: Option<i64>, before: Option<i64>, now: i64) -> i64 {
    match (length, start) {
        (Some(length), _) if length < 0 => i64::MAX,
        (Some(length), Some(start)) => start.saturating_add(length),
        (length, _) => before.unwrap_or_else(|| now.saturating_add(length.unwrap_or(1))),
    }
}

/// When a held ban began, in seconds since 1970, if known.
fn began_at(import: Option<&Import>, pending: Option<Ban>, row: Option<BipsRow>) -> Option<i64> {
    match (import, pending, row) {
        (None, Some(ban), _) => Some(ban.start),
        (Some(import), _, Some(row)) if import.owns_row(row) => Some(row.timeofban),
        (Some(import), ..) => Some(import.requested_at),
        (None, None, row) => row.map(|row| row.timeofban),
    }
}

/// The next deadline of a jail, in seconds since 1970, and the leases to renew now.
struct Due {
    at: i64,
    renew: Vec<Address>,
}
