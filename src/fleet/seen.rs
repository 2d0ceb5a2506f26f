//! What fail2ban shows, and what that means for each address: whether an import still is one, what is
//! this host's own, what its operator lifted, and what is to be done next.

use std::collections::BTreeSet;

use super::claims::Said;
use super::lifts::Override;
use super::look::{Heartbeat, JailState, LocalBan, Observation, Scan};
use super::marks::{ImportObservation, ImportSource, ImportSources, ImportStatus, Mark, WRITTEN};
use super::reconcile::{self, Decision};
use super::work::Pending;
use super::{BanKey, Controller, Record, lease, own, secs};
use crate::fail2ban::database::Row;
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
    pub fn begin(&mut self, now: i64) {
        if now < self.begun {
            self.set_back(now);
        }
        self.begun = now;
        self.turn += 1;
        if self.looks.is_empty() || self.sweep.since.is_none() {
            self.round = self.teller.stamp(now);
        }
        if let Some(stamp) = self.teller.take_later(now) {
            self.forgotten = stamp;
            self.snapshots.outdated();
            self.round = self.teller.stamp(now);
        }
        if self.teller.take_was_ahead() {
            self.round = self.teller.stamp(now);
            (self.as_of, self.forgotten) = (0, 0);
            self.snapshots.republish_all();
        }
    }

    /// The clock was set back: nothing waits for a time that lies far ahead now.
    fn set_back(&mut self, now: i64) {
        self.tidied = 0;
        self.dirty.on_clock_rollback();
        (self.sweep, self.looks) = (Scan::default(), BTreeSet::new());
        self.snapshots.set_back(now);
        self.branches.set_back(now);
        self.peers.on_clock_rollback(now);
        self.connected_since = self.connected_since.map(|since| since.min(now));
        for local in self.jails.values_mut() {
            local.set_back(now, &self.pace);
        }
    }

    /// fail2ban answers, and has these jails. What is worth a look is asked for as a
    /// [`work::Step`](super::work::Step).
    pub fn pulse(&mut self, pulse: Heartbeat, names: BTreeSet<Jail>, now: i64) {
        self.glanced.clear();
        let last = self.pulse.replace(pulse).filter(|last| last.server == pulse.server);
        self.looks.retain(|jail| last.is_some() && names.contains(jail));
        let goes_on = self.sweep.since.is_some() && !self.looks.is_empty();
        let waits = last.is_some() && now < self.sweep.pause && !self.queue.is_empty();
        let sweeps = !goes_on && !waits;
        if !goes_on {
            self.sweep.since = sweeps.then_some(now);
        }
        self.tombstones.retry_deferred();
        for jail in &names {
            let local = self.jails.entry(jail.clone()).or_default();
            let new = self.names.as_ref().is_some_and(|names| !names.contains(jail));
            // One that comes restores its bans, and first obeys the fleet unbans that came before it.
            if new || local.gone.is_some() {
                let unbans = local.gone.take().map_or(0, |(_, unbans)| unbans);
                local.shown = None;
                self.tombstones.on_jail_added(jail, unbans);
            }
            if (sweeps || local.shown.is_none()) && local.is_worth_a_look(pulse, now) {
                self.looks.insert(jail.clone());
            }
        }
        if self.names.as_ref() != Some(&names) {
            (self.names, self.named) = (Some(names), now);
        }
        self.finish_sweep(now);
    }

    /// A jail was looked at: whole, or at some addresses.
    pub fn seen(&mut self, jail: &Jail, of: Option<&[Address]>, mut look: Observation, now: i64) {
        let Some(pulse) = self.pulse else { return };
        let local = self.jails.entry(jail.clone()).or_default();
        // What is not held although its row lasts may be about to be restored: only a look at the whole
        // jail tells whether it has started anew.
        let lasts = |address: &Address| {
            !look.held.has(*address)
                && look.rows.get(*address).is_some_and(|row| !row.is_over(secs(now)))
        };
        if of.is_some_and(|of| of.iter().any(lasts)) {
            self.looks.insert(jail.clone());
            return;
        }
        local.show(&mut look, pulse, of.is_none(), now, &self.pace);
        let mut scope: Vec<Address> = if let Some(addresses) = of {
            addresses.to_vec()
        } else {
            let rows = local.is_restoring(secs(now)).then_some(look.rows.addresses());
            let known = local.cases.keys().chain(local.own.keys()).chain(local.told.keys());
            known.copied().chain(look.held.addresses()).chain(rows.into_iter().flatten()).collect()
        };
        scope.sort_unstable();
        scope.dedup();
        let mut due = Due { at: i64::MAX, prolong: Vec::new() };
        for address in scope {
            self.see(&(jail.clone(), address), &look, now, &mut due);
        }
        for batch in due.prolong.chunks(PROLONG) {
            self.orders.push_back(Pending::Prolong(jail.clone(), batch.to_vec()));
        }
        let local = self.jails.entry(jail.clone()).or_default();
        if let Some(shown) = &mut local.shown {
            shown.due = shown.due.min(due.at);
        }
        match of {
            None => {
                self.looks.remove(jail);
                self.finish_sweep(now);
            }
            Some(addresses) => drop(self.glanced.insert(jail.clone(), addresses.to_vec())),
        }
    }

    pub(super) fn finish_sweep(&mut self, now: i64) {
        if self.looks.is_empty()
            && let Some(since) = self.sweep.since.take()
        {
            self.sweep.pause = now + (now - since);
            self.as_of = self.as_of.max(self.round);
        }
    }

    /// One address, as fail2ban shows it.
    fn see(&mut self, key: &BanKey, look: &Observation, now: i64, due: &mut Due) {
        let (millis, now) = (now, secs(now));
        let local = self.jails.entry(key.0.clone()).or_default();
        let (run, restoring) = (local.run, local.is_restoring(now));
        let held = look.held.get(key.1).copied();
        let row = look.rows.get(key.1).copied();
        let detection = local.told.get(&key.1).copied();
        let last = local.own.get(&key.1).copied();
        let case = local.cases.entry(key.1).or_default();
        case.rowed = row.is_some();
        case.restoring = restoring && held.is_none() && row.is_some_and(|row| !row.is_over(now));

        // What became of an import.
        let was_marked = case.mark.is_some();
        let seen = ImportObservation {
            held: held.is_some(),
            row,
            database: look.database,
            run,
            end: case.end.unwrap_or(i64::MIN),
            purge_age: look.purge_age,
            now,
        };
        let (mut changed, mut lifted) = (false, Vec::new());
        if let Some(mark) = &mut case.mark {
            match mark.judge(seen) {
                ImportStatus::Stands => {
                    changed = mark.stands(seen);
                }
                ImportStatus::NotOurs => (case.mark, changed) = (None, true),
                ImportStatus::Lifted => {
                    lifted = mark.claims.to_vec();
                    (case.mark, changed) = (None, true);
                }
                ImportStatus::Ended => {}
            }
        }

        // What is this host's own.
        let told = detection.map(|told| told.ban);
        let length = |length: Option<i64>| {
            let row = row.map_or(look.bantime, |row| row.bantime);
            length.unwrap_or_else(|| last.map_or(row, |own| own.ban.bantime))
        };
        let ban = own::ban(own::LocalBanFacts {
            held: held.map(length),
            row,
            told,
            marked: case.mark.is_some(),
            restoring,
            away: false,
            now,
        });
        case.end = held.map(|length| match length {
            Some(length) if length < 0 => i64::MAX,
            Some(length) => match began(case.mark.as_deref(), told, row) {
                Some(start) => start.saturating_add(length),
                None => case.end.unwrap_or_else(|| now.saturating_add(length)),
            },
            None => case.end.unwrap_or_else(|| now.saturating_add(1)),
        });
        let unseen = detection.is_some_and(|told| held.is_some() || told.turn == self.turn);
        let written = told.is_some_and(|told| row.is_some_and(|row| row.timeofban >= told.start));
        match ban {
            Some(ban) => {
                let before = last.is_some_and(|own| own.rowed && own.ban.start == ban.start);
                let rowed = before || row.is_some_and(|row| row.timeofban == ban.start);
                local.own.insert(key.1, LocalBan { ban, run, rowed });
            }
            None => drop(local.own.remove(&key.1)),
        }
        let mark = changed.then(|| case.mark.as_deref().cloned());
        if case.mark.is_none() {
            self.unsaid.remove(key);
        }
        if !unseen || written {
            self.forget_detection(key);
        } else {
            self.keep_detection(key, now);
        }

        if let Some(mark) = mark {
            self.change(Record::Mark(key.clone(), mark));
        }
        if last.map(|own| own.ban) != ban {
            self.snapshots.touch(key.1, millis);
        }
        for claim in lifted {
            self.lift(key, &claim);
        }
        // This fail2ban has run on, and ended an own ban; or its database had a row, which no restart takes.
        let rowed =
            |own: LocalBan| own.rowed && look.database.is_some_and(|made| made <= own.ban.start);
        let ended =
            last.filter(|own| (own.run == run || rowed(*own)) && held.is_none() && ban.is_none());
        let lifted =
            ended.is_some_and(|own| own::is_lifted(own.ban, rowed(own), row, now, look.purge_age));
        if lifted && look.database.is_some() && !unseen && !was_marked {
            for claim in self.rests_on(key, now) {
                self.lift(key, &claim);
            }
        }
        self.decide(key, now, due);
    }

    /// **A detection that is not in the database, or never will be**, has to be remembered here.
    fn keep_detection(&mut self, key: &BanKey, now: i64) {
        let local = self.jails.get_mut(&key.0);
        let told = local.and_then(|local| local.told.get_mut(&key.1));
        if let Some(told) = told.filter(|told| !told.kept && told.ban.start + WRITTEN < now) {
            told.kept = true;
            let change = Record::Detected(key.clone(), Some(told.ban));
            self.change(change);
        }
    }

    /// What is to be done about an address, now that it was seen, and when it is to be seen again.
    fn decide(&mut self, key: &BanKey, now: i64, due: &mut Due) {
        let facts = self.facts(key, now);
        if matches!(reconcile::decide(facts), Decision::Import | Decision::Free | Decision::Forget)
        {
            self.queue(key);
        }
        if facts.claimed && facts.held && facts.marked {
            self.keep_claims(key, now);
        }
        if facts.just_ended {
            due.at = due.at.min(self.again_due(key, now).unwrap_or(now + 1));
        }
        let Some(local) = self.jails.get_mut(&key.0) else { return };
        let Some(case) = local.cases.get(&key.1) else { return };
        if case.is_empty() {
            self.drop_if_empty(key);
            return;
        }
        let Some(end) = case.end.filter(|end| *end < i64::MAX) else { return };
        due.at = due.at.min(end.max(now) + 1);
        // Fresh failures prolong an own ban and write nothing: the others are told before their leases end.
        if local.own.contains_key(&key.1) && end - EARLY > now {
            due.at = due.at.min(end - EARLY);
        }
        // Of what has no row nobody knows when it began, and so when it ends.
        if !facts.marked && !local.own.contains_key(&key.1) && !case.rowed {
            due.at = due.at.min(now + UNKNOWN);
        }
        if facts.marked && facts.claimed {
            let bantime = local.bantime().unwrap_or(-1);
            let (wanted, until) = self.wanted(key, bantime, now);
            due.at = due.at.min(until.max(now).saturating_add(1));
            match lease::due(end, wanted, bantime) {
                Some(at) if at <= now => due.prolong.push(key.1),
                Some(at) => due.at = due.at.min(at),
                None => {}
            }
        }
    }

    /// Until when somebody wants an import, on the clock here (an origin's may be behind), and until when
    /// a claim lasts at most.
    fn wanted(&self, key: &BanKey, bantime: i64, now: i64) -> (i64, i64) {
        let case = self.jails.get(&key.0).and_then(|local| Some((local, local.cases.get(&key.1)?)));
        let Some((local, case)) = case else { return (i64::MIN, i64::MIN) };
        let mut latest = (i64::MIN, i64::MIN);
        for said in self.claimants(key, local, case, now) {
            let behind = self.peers.get(&said.host).map_or(0, |peer| peer.clock_lag);
            let end = said.end(Some(bantime), &self.pace).saturating_add(behind);
            let until = said.until(Some(bantime), &self.pace);
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
    pub(super) fn facts(&self, key: &BanKey, now: i64) -> reconcile::Facts {
        let local = self.jails.get(&key.0);
        let case = local.and_then(|local| Some((local, local.cases.get(&key.1)?)));
        let is_marked = case.is_some_and(|(_, case)| case.mark.is_some());
        let is_held = case.is_some_and(|(_, case)| case.end.is_some());
        reconcile::Facts {
            claimed: case.is_some_and(|(local, case)| {
                self.claimants(key, local, case, now).next().is_some()
            }),
            marked: is_marked,
            held: is_held,
            ends_soon: case.is_some_and(|(local, case)| {
                let leaves = |said: &Said, end| {
                    said.leaves_end_to_fail2ban(local.bantime(), end, &self.pace)
                };
                case.end.is_some_and(|end| {
                    end <= now.saturating_add(self.pace.soon)
                        || case.said.iter().any(|said| leaves(said, end))
                })
            }),
            ignored: self.ignored(key).is_some_and(|because| {
                because.ends_imports() || case.is_none_or(|(_, case)| case.end.is_none())
            }),
            restoring: case.is_some_and(|(_, case)| case.restoring),
            just_ended: is_marked && !is_held && self.again_due(key, now).is_some(),
        }
    }

    /// Why an address is never to be banned here, if it is not.
    pub(super) fn ignored(&self, key: &BanKey) -> Option<IgnoreReason> {
        self.jails.get(&key.0)?.shown.as_ref()?.ignored.lookup(key.1)
    }

    /// The claims that an import of an address rests on now.
    pub(super) fn rests_on(&self, key: &BanKey, now: i64) -> ImportSources {
        let local = self.jails.get(&key.0);
        let case = local.and_then(|local| Some((local, local.cases.get(&key.1)?)));
        let Some((local, case)) = case else { return ImportSources::new() };
        let claim = |said: &Said| {
            let (host, stamp, unbans) = (said.host.clone(), said.stamp, said.unbans.clone());
            said.ban.map(|ban| ImportSource { host, stamp, ban, unbans })
        };
        self.claimants(key, local, case, now).filter_map(claim).collect()
    }

    /// Brings the claims that a mark keeps up to date, if they changed.
    fn keep_claims(&mut self, key: &BanKey, now: i64) {
        if self.keeps_claims(key, now) {
            return;
        }
        let claims = self.rests_on(key, now);
        let case = self.jails.get_mut(&key.0).and_then(|local| local.cases.get_mut(&key.1));
        if let Some(mark) = case.and_then(|case| case.mark.as_mut()) {
            mark.claims = claims;
            let change = Record::Mark(key.clone(), Some(Mark::clone(mark)));
            self.change(change);
        }
    }

    /// Whether a mark keeps the claims that count now.
    pub(super) fn keeps_claims(&self, key: &BanKey, now: i64) -> bool {
        let case = self.jails.get(&key.0).and_then(|local| Some((local, local.cases.get(&key.1)?)));
        let Some((local, case)) = case else { return true };
        let Some(mark) = &case.mark else { return true };
        let now = self.claimants(key, local, case, now);
        let now = now.map(|said| (&said.host, said.ban, &said.unbans));
        now.eq(mark.claims.iter().map(|claim| (&claim.host, Some(claim.ban), &claim.unbans)))
    }

    /// **Lifted by hand** is what the import rested on, and nothing newer.
    fn lift(&mut self, key: &BanKey, claim: &ImportSource) {
        if claim.stamp == 0 {
            self.remove_claims(key, |said| said.is_script() && said.host == claim.host);
        } else {
            let lift = Override { start: claim.ban.start, stamp: claim.stamp };
            let change = self.lifts.lift(key, &claim.host, lift);
            self.change(change);
        }
    }
}

/// When what fail2ban holds began, in seconds since 1970, where that is known.
fn began(mark: Option<&Mark>, told: Option<Ban>, row: Option<Row>) -> Option<i64> {
    match (mark, told, row) {
        (None, Some(told), _) => Some(told.start),
        (Some(mark), _, Some(row)) if mark.is_of(row) => Some(row.timeofban),
        (Some(mark), ..) => Some(mark.asked),
        (None, None, row) => row.map(|row| row.timeofban),
    }
}

/// What comes next in a jail by itself.
struct Due {
    at: i64,
    prolong: Vec<Address>,
}
