//! What fail2ban shows, and what that means for each address: whether an import still is one, what is
//! this host's own, what its operator lifted, and what is to be done next.

use std::collections::BTreeSet;

use super::claims::Claim;
use super::lifts::Override;
use super::look::{Heartbeat, JailState, LocalBan, Observation, Scan};
use super::marks::{Import, ImportObservation, ImportSource, ImportSources, ImportStatus, WRITTEN};
use super::reconcile::{self, Decision};
use super::work::Pending;
use super::{BanKey, Controller, Record, lease, own, to_secs};
use crate::fail2ban::database::BipsRow;
use crate::ignored::IgnoreReason;
use crate::wire::{Address, Ban, Jail};

/// How long before its end an own ban is looked at once more, in seconds.
const EARLY: i64 = 10;

/// How often what ends at an unknown time is looked at, in seconds.
const UNKNOWN: i64 = 5;

/// How late an origin's word may be that its ban is over, in seconds: an import that ended then is made again.
const LATE_WORD: i64 = 15;

/// How many leases are renewed at once: that is quick.
const PROLONG: usize = 100;

impl Controller {
    /// A round begins. **The stamp of a sweep is taken before the spool and fail2ban are read.**
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

    /// The clock was set back: nothing waits for a time that lies far ahead now.
    fn on_clock_rollback(&mut self, now: i64) {
        self.last_gc = 0;
        self.dirty.on_clock_rollback();
        (self.scan, self.jails_to_observe) = (Scan::default(), BTreeSet::new());
        self.publisher.on_clock_rollback(now);
        self.peer_sync.on_clock_rollback(now);
        self.peers.on_clock_rollback(now);
        self.connected_since = self.connected_since.map(|since| since.min(now));
        for local in self.jails.values_mut() {
            local.on_clock_rollback(now, &self.timing);
        }
    }

    /// fail2ban answers, and has these jails. What is worth a look is asked for as a
    /// [`work::Step`](super::work::Step).
    pub fn on_heartbeat(&mut self, pulse: Heartbeat, names: BTreeSet<Jail>, now: i64) {
        self.spot_checked.clear();
        let last = self.heartbeat.replace(pulse).filter(|last| last.server == pulse.server);
        self.jails_to_observe.retain(|jail| last.is_some() && names.contains(jail));
        let goes_on = self.scan.since.is_some() && !self.jails_to_observe.is_empty();
        let waits = last.is_some() && now < self.scan.pause && !self.queue.is_empty();
        let sweeps = !goes_on && !waits;
        if !goes_on {
            self.scan.since = sweeps.then_some(now);
        }
        self.tombstones.retry_deferred();
        for jail in &names {
            let local = self.jails.entry(jail.clone()).or_default();
            let new = self.known_jails.as_ref().is_some_and(|names| !names.contains(jail));
            // One that comes restores its bans, and first obeys the fleet unbans that came before it.
            if new || local.missing_since.is_some() {
                let unbans = local.missing_since.take().map_or(0, |(_, unbans)| unbans);
                local.last_observation = None;
                self.tombstones.on_jail_added(jail, unbans);
            }
            if (sweeps || local.last_observation.is_none()) && local.needs_observation(pulse, now) {
                self.jails_to_observe.insert(jail.clone());
            }
        }
        if self.known_jails.as_ref() != Some(&names) {
            (self.known_jails, self.jails_changed_at) = (Some(names), now);
        }
        self.finish_scan(now);
    }

    /// A jail was looked at: whole, or at some addresses.
    pub fn on_observation(
        &mut self,
        jail: &Jail,
        of: Option<&[Address]>,
        mut look: Observation,
        now: i64,
    ) {
        let Some(pulse) = self.heartbeat else { return };
        let local = self.jails.entry(jail.clone()).or_default();
        // What is not held although its row lasts may be about to be restored: only a look at the whole
        // jail tells whether it has started anew.
        let lasts = |address: &Address| {
            !look.held.has(*address)
                && look.rows.get(*address).is_some_and(|row| !row.is_over(to_secs(now)))
        };
        if of.is_some_and(|of| of.iter().any(lasts)) {
            self.jails_to_observe.insert(jail.clone());
            return;
        }
        local.record_observation(&mut look, pulse, of.is_none(), now, &self.timing);
        let mut scope: Vec<Address> = if let Some(addresses) = of {
            addresses.to_vec()
        } else {
            let rows = local.is_restoring(to_secs(now)).then_some(look.rows.addresses());
            let known = local
                .entries
                .keys()
                .chain(local.local_bans.keys())
                .chain(local.pending_detections.keys());
            known.copied().chain(look.held.addresses()).chain(rows.into_iter().flatten()).collect()
        };
        scope.sort_unstable();
        scope.dedup();
        let mut due = Due { at: i64::MAX, renew: Vec::new() };
        for address in scope {
            self.observe_address(&(jail.clone(), address), &look, now, &mut due);
        }
        for batch in due.renew.chunks(PROLONG) {
            self.pending.push_back(Pending::Renew(jail.clone(), batch.to_vec()));
        }
        let local = self.jails.entry(jail.clone()).or_default();
        if let Some(shown) = &mut local.last_observation {
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

    /// One address, as fail2ban shows it.
    fn observe_address(&mut self, key: &BanKey, look: &Observation, now: i64, due: &mut Due) {
        let (millis, now) = (now, to_secs(now));
        let local = self.jails.entry(key.0.clone()).or_default();
        let (run, restoring) = (local.epoch, local.is_restoring(now));
        let held = look.held.get(key.1).copied();
        let row = look.rows.get(key.1).copied();
        let detection = local.pending_detections.get(&key.1).copied();
        let last = local.local_bans.get(&key.1).copied();
        let case = local.entries.entry(key.1).or_default();
        case.in_database = row.is_some();
        case.may_be_restored =
            restoring && held.is_none() && row.is_some_and(|row| !row.is_over(now));

        // What became of an import.
        let was_marked = case.import.is_some();
        let seen = ImportObservation {
            held: held.is_some(),
            row,
            database: look.database,
            jail_epoch: run,
            end: case.held_until.unwrap_or(i64::MIN),
            purge_age: look.purge_age,
            now,
        };
        let (mut changed, mut lifted) = (false, Vec::new());
        if let Some(mark) = &mut case.import {
            match mark.classify(seen) {
                ImportStatus::Active => {
                    changed = mark.confirm(seen);
                }
                ImportStatus::Superseded => (case.import, changed) = (None, true),
                ImportStatus::RemovedByOperator => {
                    lifted = mark.sources.to_vec();
                    (case.import, changed) = (None, true);
                }
                ImportStatus::Expired => {}
            }
        }

        // What is this host's own.
        let told = detection.map(|told| told.ban);
        let length = |length: Option<i64>| {
            let row = row.map_or(look.bantime, |row| row.bantime);
            length.unwrap_or_else(|| last.map_or(row, |own| own.ban.bantime))
        };
        let ban = own::effective_ban(own::LocalBanFacts {
            held: held.map(length),
            row,
            pending: told,
            imported: case.import.is_some(),
            restoring,
            away: false,
            now,
        });
        let start = began_at(case.import.as_deref(), told, row);
        case.held_until = held.map(|length| held_until(length, start, case.held_until, now));
        let unseen = detection.is_some_and(|told| held.is_some() || told.cycle == self.cycle);
        let written = told.is_some_and(|told| row.is_some_and(|row| row.timeofban >= told.start));
        match ban {
            Some(ban) => {
                let before = last.is_some_and(|own| own.in_database && own.ban.start == ban.start);
                let rowed = before || row.is_some_and(|row| row.timeofban == ban.start);
                local
                    .local_bans
                    .insert(key.1, LocalBan { ban, jail_epoch: run, in_database: rowed });
            }
            None => drop(local.local_bans.remove(&key.1)),
        }
        let mark = changed.then(|| case.import.as_deref().cloned());
        if case.import.is_none() {
            self.last_releaser.remove(key);
        }
        if !unseen || written {
            self.drop_detection(key);
        } else {
            self.keep_detection(key, now);
        }

        if let Some(mark) = mark {
            self.persist(Record::Import(key.clone(), mark));
        }
        if last.map(|own| own.ban) != ban {
            self.publisher.mark_dirty(key.1, millis);
        }
        for claim in lifted {
            self.record_override(key, &claim);
        }
        // This fail2ban has run on, and ended an own ban; or its database had a row, which no restart takes.
        let rowed = |own: LocalBan| {
            own.in_database && look.database.is_some_and(|made| made <= own.ban.start)
        };
        let ended = last.filter(|own| {
            (own.jail_epoch == run || rowed(*own)) && held.is_none() && ban.is_none()
        });
        let lifted = ended.is_some_and(|own| {
            own::was_removed_by_operator(own.ban, rowed(own), row, now, look.purge_age)
        });
        if lifted && look.database.is_some() && !unseen && !was_marked {
            for claim in self.import_sources(key, now) {
                self.record_override(key, &claim);
            }
        }
        self.schedule(key, now, due);
    }

    /// **A detection that is not in the database, or never will be**, has to be remembered here.
    fn keep_detection(&mut self, key: &BanKey, now: i64) {
        let local = self.jails.get_mut(&key.0);
        let told = local.and_then(|local| local.pending_detections.get_mut(&key.1));
        if let Some(told) = told.filter(|told| !told.persisted && told.ban.start + WRITTEN < now) {
            told.persisted = true;
            let change = Record::PendingDetection(key.clone(), Some(told.ban));
            self.persist(change);
        }
    }

    /// What is to be done about an address, now that it was seen, and when it is to be seen again.
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
        let Some(local) = self.jails.get_mut(&key.0) else { return };
        let Some(case) = local.entries.get(&key.1) else { return };
        if case.is_empty() {
            self.drop_if_empty(key);
            return;
        }
        let Some(end) = case.held_until.filter(|end| *end < i64::MAX) else { return };
        due.at = due.at.min(end.max(now) + 1);
        // Fresh failures prolong an own ban and write nothing: the others are told before their leases end.
        if local.local_bans.contains_key(&key.1) && end - EARLY > now {
            due.at = due.at.min(end - EARLY);
        }
        // Of what has no row nobody knows when it began, and so when it ends.
        if !facts.imported && !local.local_bans.contains_key(&key.1) && !case.in_database {
            due.at = due.at.min(now + UNKNOWN);
        }
        if facts.imported && facts.claimed {
            let bantime = local.bantime().unwrap_or(-1);
            let (wanted, until) = self.wanted(key, bantime, now);
            due.at = due.at.min(until.max(now).saturating_add(1));
            match lease::due(end, wanted, bantime) {
                Some(at) if at <= now => due.renew.push(key.1),
                Some(at) => due.at = due.at.min(at),
                None => {}
            }
        }
    }

    /// Until when somebody wants an import, on the clock here (an origin's may be behind), and until when
    /// a claim lasts at most.
    fn wanted(&self, key: &BanKey, bantime: i64, now: i64) -> (i64, i64) {
        let case =
            self.jails.get(&key.0).and_then(|local| Some((local, local.entries.get(&key.1)?)));
        let Some((local, case)) = case else { return (i64::MIN, i64::MIN) };
        let mut latest = (i64::MIN, i64::MIN);
        for said in self.active_claims(key, local, case, now) {
            let behind = self.peers.get(&said.host).map_or(0, |peer| peer.clock_lag);
            let end = said.ends_at(Some(bantime), &self.timing).saturating_add(behind);
            let until = said.expires_at(Some(bantime), &self.timing);
            latest = (latest.0.max(end), latest.1.max(until));
        }
        latest
    }

    /// When an import that ended as its origin's ban does is made again, unless the origin's word comes before:
    /// in seconds since 1970; `None` where that is now.
    fn again_due(&self, key: &BanKey, now: i64) -> Option<i64> {
        let bantime = self.jails.get(&key.0).and_then(JailState::bantime).unwrap_or(-1);
        let (wanted, _) = self.wanted(key, bantime, now);
        let due = wanted.saturating_add(LATE_WORD);
        (wanted <= now && now < due).then_some(due)
    }

    /// All that counts for the decision on an address.
    pub(super) fn facts(&self, key: &BanKey, now: i64) -> reconcile::ReconcileFacts {
        let local = self.jails.get(&key.0);
        let case = local.and_then(|local| Some((local, local.entries.get(&key.1)?)));
        let is_marked = case.is_some_and(|(_, case)| case.import.is_some());
        let is_held = case.is_some_and(|(_, case)| case.held_until.is_some());
        reconcile::ReconcileFacts {
            claimed: case.is_some_and(|(local, case)| {
                self.active_claims(key, local, case, now).next().is_some()
            }),
            imported: is_marked,
            held: is_held,
            ends_soon: case.is_some_and(|(local, case)| {
                let leaves = |said: &Claim, end| {
                    said.leaves_end_to_fail2ban(local.bantime(), end, &self.timing)
                };
                case.held_until.is_some_and(|end| {
                    end <= now.saturating_add(self.timing.expiry_guard)
                        || case.claims.iter().any(|said| leaves(said, end))
                })
            }),
            ignored: self.ignored(key).is_some_and(|because| {
                because.ends_imports() || case.is_none_or(|(_, case)| case.held_until.is_none())
            }),
            restoring: case.is_some_and(|(_, case)| case.may_be_restored),
            just_ended: is_marked && !is_held && self.again_due(key, now).is_some(),
        }
    }

    /// Why an address is never to be banned here, if it is not.
    pub(super) fn ignored(&self, key: &BanKey) -> Option<IgnoreReason> {
        self.jails.get(&key.0)?.last_observation.as_ref()?.ignored.lookup(key.1)
    }

    /// The claims that an import of an address rests on now.
    pub(super) fn import_sources(&self, key: &BanKey, now: i64) -> ImportSources {
        let local = self.jails.get(&key.0);
        let case = local.and_then(|local| Some((local, local.entries.get(&key.1)?)));
        let Some((local, case)) = case else { return ImportSources::new() };
        let claim = |said: &Claim| {
            let (host, stamp, unbans) = (said.host.clone(), said.stamp, said.unbans.clone());
            said.ban.map(|ban| ImportSource { host, stamp, ban, unbans })
        };
        self.active_claims(key, local, case, now).filter_map(claim).collect()
    }

    /// Brings the claims that a mark keeps up to date, if they changed.
    fn refresh_import(&mut self, key: &BanKey, now: i64) {
        if self.is_import_current(key, now) {
            return;
        }
        let claims = self.import_sources(key, now);
        let case = self.jails.get_mut(&key.0).and_then(|local| local.entries.get_mut(&key.1));
        if let Some(mark) = case.and_then(|case| case.import.as_mut()) {
            mark.sources = claims;
            let change = Record::Import(key.clone(), Some(Import::clone(mark)));
            self.persist(change);
        }
    }

    /// Whether a mark keeps the claims that count now.
    pub(super) fn is_import_current(&self, key: &BanKey, now: i64) -> bool {
        let case =
            self.jails.get(&key.0).and_then(|local| Some((local, local.entries.get(&key.1)?)));
        let Some((local, case)) = case else { return true };
        let Some(mark) = &case.import else { return true };
        let now = self.active_claims(key, local, case, now);
        let now = now.map(|said| (&said.host, said.ban, &said.unbans));
        now.eq(mark.sources.iter().map(|claim| (&claim.host, Some(claim.ban), &claim.unbans)))
    }

    /// **Lifted by hand** is what the import rested on, and nothing newer.
    fn record_override(&mut self, key: &BanKey, claim: &ImportSource) {
        if claim.stamp == 0 {
            self.remove_claims(key, |said| said.is_legacy() && said.host == claim.host);
        } else {
            let lift = Override { start: claim.ban.start, stamp: claim.stamp };
            let change = self.overrides.suppress(key, &claim.host, lift);
            self.persist(change);
        }
    }
}

/// When a ban that fail2ban holds ends there. Without a known start or length, the time found before stays.
fn held_until(length: Option<i64>, start: Option<i64>, before: Option<i64>, now: i64) -> i64 {
    match (length, start) {
        (Some(length), _) if length < 0 => i64::MAX,
        (Some(length), Some(start)) => start.saturating_add(length),
        (length, _) => before.unwrap_or_else(|| now.saturating_add(length.unwrap_or(1))),
    }
}

/// When what fail2ban holds began, in seconds since 1970, where that is known.
fn began_at(mark: Option<&Import>, told: Option<Ban>, row: Option<BipsRow>) -> Option<i64> {
    match (mark, told, row) {
        (None, Some(told), _) => Some(told.start),
        (Some(mark), _, Some(row)) if mark.owns_row(row) => Some(row.timeofban),
        (Some(mark), ..) => Some(mark.requested_at),
        (None, None, row) => row.map(|row| row.timeofban),
    }
}

/// What comes next in a jail by itself.
struct Due {
    at: i64,
    renew: Vec<Address>,
}
