//! Returns the effects that the daemon must execute, one at a time, in an order that is safe if the daemon crashes
//! between any two of them: a record is persisted before fail2ban acts on it (R20), and each decision uses a recent
//! observation (R9, R19).

use super::imports::{Import, ImportState};
use super::jails::Heartbeat;
use super::reconcile::{self, Decision};
use super::{BanKey, Controller, Record, to_secs};
use crate::guard::ignorelist::IgnoreReason;
use crate::model::{Address, HostName, Jail};

/// How many addresses one call bans. fail2ban makes about 130 bans a second, and answers no other call meanwhile.
const BAN_BATCH: usize = 20;

/// After this many batches without an effect, a call returns to the daemon's loop, so that a call takes no longer with
/// 100,000 queued addresses.
const MAX_BATCHES: usize = 50;

/// For more addresses than this, observing the whole jail is quicker than observing each address.
const SPOT_CHECK_MAX: usize = 2;

/// An address to ban or unban, and the peer that caused it, for the log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address, for fail2ban.
    pub address: Address,
    /// The peer that claims the address, or that released it last; `None` if no peer is known.
    pub attributed_to: Option<HostName>,
}

/// What the daemon must execute. It reports the result with the method that each effect names.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Persist these records, synced; then [`Controller::on_persisted`].
    Persist(Vec<Record>),
    /// Observe a jail, or these addresses of the jail; then [`Controller::on_observation`].
    Observe(Jail, Option<Vec<Address>>),
    /// Unban these addresses; then [`Controller::on_done`].
    Unban(Jail, Vec<Target>),
    /// Unban these addresses for the whole fleet, local and manual bans included (R16); then
    /// [`Controller::on_done`].
    ApplyTombstone(Jail, Vec<Address>),
    /// Ban these addresses; then [`Controller::on_done`].
    Ban(Jail, Vec<Target>),
    /// Ban these addresses again, which renews their leases (R12); then [`Controller::on_done`].
    Renew(Jail, Vec<Address>),
    /// Log that this host does not ban the address, and why.
    LogRefused(Jail, Target, IgnoreReason),
    /// Log that this host has no such jail.
    NoSuchJail(Jail, Target),
    /// Call again soon: the controller has more internal work.
    Continue,
    /// Nothing to do now.
    Idle,
}

/// A decided call of fail2ban.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    Unban(Jail, Vec<Target>),
    /// For the whole fleet, local and manual bans included (R16).
    ApplyTombstone(Jail, Vec<Address>),
    Ban(Jail, Vec<Target>),
    Renew(Jail, Vec<Address>),
    LogRefused(Jail, Target, IgnoreReason),
    NoSuchJail(Jail, Target),
}

impl Controller {
    /// The next effect. Intentions are persisted before fail2ban acts on them (R20).
    pub fn next_effect(&mut self, now: i64) -> Effect {
        self.gc(now);
        self.collect_tombstones(now);
        let searching = self.release_claims();
        if let Some(effect) = self.persist_next(now) {
            return effect;
        }
        let effect = self.next_decision(now);
        let more = searching || self.collecting;
        if effect == Effect::Idle && more { Effect::Continue } else { effect }
    }

    fn next_decision(&mut self, now: i64) -> Effect {
        let Some(Heartbeat { server, .. }) = self.heartbeat else { return Effect::Idle };
        let names = self.known_jails.clone().unwrap_or_default();
        // A starting fail2ban has not created its jails yet (R7).
        if names.is_empty() && self.is_starting(server, now) {
            return Effect::Idle;
        }
        for _ in 0..MAX_BATCHES {
            if self.pending.is_empty() {
                self.settle_tombstones(&names, now);
                if let Some(effect) = self.persist_next(now) {
                    return effect;
                }
                // Bans and tombstones take turns, so that neither waits for a flood of the other (R22).
                let bans = !self.queue.is_empty() || !self.jails_to_observe.is_empty();
                if self.tombstones.has_unapplied() && (self.is_tombstones_turn || !bans) {
                    self.is_tombstones_turn = false;
                    self.apply_tombstones(&names, now);
                    continue;
                }
                self.is_tombstones_turn = true;
            }
            if let Some(pending) = self.pending.pop_front() {
                return self.dispatch(pending, now);
            }
            if let Some(jail) = self.jails_to_observe.first() {
                return Effect::Observe(jail.clone(), None);
            }
            let Some((jail, addresses)) = self.batch() else { return Effect::Idle };
            if !names.contains(&jail) {
                return self.without_jail(&jail, &addresses);
            }
            if self.is_fresh(&jail, &addresses, now) {
                self.plan(&jail, &addresses, now);
                if let Some(effect) = self.persist_next(now) {
                    return effect;
                }
                continue;
            }
            for address in &addresses {
                self.enqueue(&(jail.clone(), *address));
            }
            let known = self
                .jails
                .get(&jail)
                .is_some_and(|jail_state| jail_state.last_observation.is_some());
            if known && addresses.len() <= SPOT_CHECK_MAX {
                return Effect::Observe(jail, Some(addresses));
            }
            self.jails_to_observe.insert(jail.clone());
            return Effect::Observe(jail, None);
        }
        Effect::Continue
    }

    /// The next addresses of one jail.
    fn batch(&mut self) -> Option<(Jail, Vec<Address>)> {
        let (jail, addresses) = self.queue.batch(BAN_BATCH)?;
        let mut jail_state = self.jails.get_mut(&jail);
        for address in &addresses {
            let entry =
                jail_state.as_mut().and_then(|jail_state| jail_state.entries.get_mut(address));
            if let Some(entry) = entry {
                entry.queued = None;
            }
        }
        Some((jail, addresses))
    }

    /// Whether the observation of these addresses is recent enough to act on.
    fn is_fresh(&mut self, jail: &Jail, addresses: &[Address], now: i64) -> bool {
        // Each jail keeps its own observation. With a single slot, two jails that alternate would be observed
        // endlessly.
        let spot_checked = self
            .spot_checked
            .remove(jail)
            .is_some_and(|seen| addresses.iter().all(|address| seen.contains(address)));
        let shown =
            self.jails.get(jail).and_then(|jail_state| jail_state.last_observation.as_ref());
        spot_checked || shown.is_some_and(|shown| shown.valid_until >= now)
    }

    /// Handles addresses whose jail fail2ban lacks, perhaps only during a restart. Imports are kept.
    fn without_jail(&mut self, jail: &Jail, addresses: &[Address]) -> Effect {
        for &address in addresses {
            let facts = self.facts(&(jail.clone(), address), i64::MIN);
            if facts.claimed && !facts.imported {
                let pending = Pending::NoSuchJail(jail.clone(), self.target(jail, address));
                self.pending.push_back(pending);
            }
        }
        self.pending.pop_front().map_or(Effect::Idle, |pending| self.dispatch(pending, 0))
    }

    fn target(&self, jail: &Jail, address: Address) -> Target {
        let key = (jail.clone(), address);
        Target { address, attributed_to: self.attributed_to(&key).cloned() }
    }

    /// Decides on addresses that were just observed. Bans get an import record in the state *intended* (R9).
    fn plan(&mut self, jail: &Jail, addresses: &[Address], now: i64) {
        let (mut unbans, mut bans) = (Vec::new(), Vec::new());
        for &address in addresses {
            let key = (jail.clone(), address);
            let facts = self.facts(&key, to_secs(now));
            match reconcile::decide(facts) {
                Decision::Import => {
                    self.drop_detection(&key);
                    let claims = self.import_sources(&key, to_secs(now));
                    let jail_state = self.jails.entry(jail.clone()).or_default();
                    let bantime = jail_state.bantime().unwrap_or(-1);
                    let import = Import::intended(claims, bantime, to_secs(now));
                    let entry = jail_state.entries.entry(address).or_default();
                    entry.import = Some(Box::new(import.clone()));
                    self.persist(Record::Import(key, Some(import)));
                    bans.push(self.target(jail, address));
                }
                Decision::Refuse => {
                    self.drop_import(&key);
                    if let Some(reason) = self.ignored(&key) {
                        let target = self.target(jail, address);
                        self.pending.push_back(Pending::LogRefused(jail.clone(), target, reason));
                    }
                }
                Decision::Unban => unbans.push(self.target(jail, address)),
                Decision::Drop => self.drop_import(&key),
                Decision::Keep => {
                    // The claims changed. Observe again before updating the record: the ban may be gone.
                    if facts.imported
                        && facts.held
                        && facts.claimed
                        && !self.is_import_current(&key, to_secs(now))
                    {
                        self.observe_again(jail);
                    }
                }
            }
        }
        if !unbans.is_empty() {
            self.pending.push_back(Pending::Unban(jail.clone(), unbans));
        }
        if !bans.is_empty() {
            self.pending.push_back(Pending::Ban(jail.clone(), bans));
        }
    }

    /// Observes the whole jail with the next heartbeat, because its `ignoreip` may have changed.
    pub fn invalidate(&mut self, jail: &Jail) {
        self.observe_again(jail);
    }

    /// Makes the last observation of a jail out of date.
    fn observe_again(&mut self, jail: &Jail) {
        let jail_state = self.jails.get_mut(jail);
        if let Some(shown) = jail_state.and_then(|jail_state| jail_state.last_observation.as_mut())
        {
            (shown.next_check_at, shown.valid_until) = (i64::MIN, i64::MIN);
        }
    }

    fn drop_import(&mut self, key: &BanKey) {
        self.last_releaser.remove(key);
        let entry =
            self.jails.get_mut(&key.0).and_then(|jail_state| jail_state.entries.get_mut(&key.1));
        if entry.and_then(|entry| entry.import.take()).is_some() {
            self.persist(Record::Import(key.clone(), None));
        }
    }

    /// Turns a decided call into an effect. Notes bans and unbans by this daemon, so that the daemon does not publish
    /// them when fail2ban reports them (R18).
    fn dispatch(&mut self, pending: Pending, now: i64) -> Effect {
        self.in_flight = Some(pending.clone());
        match pending {
            Pending::Unban(jail, targets) => {
                for Target { address, .. } in &targets {
                    self.event_filter.expect_unban(&(jail.clone(), *address), now);
                }
                Effect::Unban(jail, targets)
            }
            Pending::ApplyTombstone(jail, addresses) => {
                for address in &addresses {
                    self.event_filter.expect_unban(&(jail.clone(), *address), now);
                }
                Effect::ApplyTombstone(jail, addresses)
            }
            Pending::Ban(jail, targets) => {
                for Target { address, .. } in &targets {
                    self.event_filter.expect_extension(&(jail.clone(), *address), now);
                }
                Effect::Ban(jail, targets)
            }
            Pending::Renew(jail, addresses) => Effect::Renew(jail, addresses),
            Pending::LogRefused(jail, target, reason) => Effect::LogRefused(jail, target, reason),
            Pending::NoSuchJail(jail, target) => Effect::NoSuchJail(jail, target),
        }
    }

    /// fail2ban executed the effect in flight, and answered with a number.
    pub fn on_done(&mut self, answer: i64, now: i64) {
        match self.in_flight.take() {
            Some(Pending::Unban(jail, targets)) => {
                for Target { address, .. } in targets {
                    self.mark_unbanned(&(jail.clone(), address));
                }
            }
            Some(Pending::ApplyTombstone(jail, addresses)) => {
                for address in addresses {
                    self.mark_tombstone_applied(&(jail.clone(), address), now);
                }
            }
            Some(Pending::Ban(jail, targets)) => {
                self.mark_imported(&jail, &targets, answer, to_secs(now));
            }
            Some(Pending::Renew(jail, addresses)) => {
                for address in addresses {
                    self.mark_held(&(jail.clone(), address), to_secs(now));
                }
            }
            Some(Pending::LogRefused(..) | Pending::NoSuchJail(..)) | None => {}
        }
    }

    /// The effect in flight failed, or its result is unknown: observe again before deciding.
    pub fn on_failed(&mut self) {
        let (jail, addresses) = match self.in_flight.take() {
            Some(Pending::Unban(jail, targets) | Pending::Ban(jail, targets)) => {
                (jail, targets.into_iter().map(|target| target.address).collect())
            }
            Some(Pending::Renew(jail, addresses)) => (jail, addresses),
            Some(Pending::ApplyTombstone(jail, _)) => {
                self.pending.retain(|pending| !matches!(pending, Pending::ApplyTombstone(..)));
                self.tombstones.retry();
                (jail, Vec::new())
            }
            Some(Pending::LogRefused(..) | Pending::NoSuchJail(..)) | None => return,
        };
        for address in addresses {
            self.enqueue(&(jail.clone(), address));
        }
        self.observe_again(&jail);
    }

    /// fail2ban keeps refusing calls for a jail. Its queued addresses are dropped until a message or an observation
    /// queues them again. `is_known`: the bans of the jail were read from fail2ban's database instead, so that the
    /// jail does not hold up the snapshot.
    pub fn abandon_jail(&mut self, jail: &Jail, is_known: bool, now: i64) {
        self.queue.forget(jail);
        for entry in self
            .jails
            .get_mut(jail)
            .into_iter()
            .flat_map(|jail_state| jail_state.entries.values_mut())
        {
            entry.queued = None;
        }
        self.jails_to_observe.remove(jail);
        if is_known {
            self.finish_scan(now);
        }
    }

    /// `banip` counts new bans. An address that `banip` does not count is not an import (R9). If only some of several
    /// addresses were new, the rows in the next observation show which.
    fn mark_imported(&mut self, jail: &Jail, targets: &[Target], new: i64, now: i64) {
        let all = usize::try_from(new).is_ok_and(|new| new >= targets.len());
        for Target { address, .. } in targets {
            let key = (jail.clone(), *address);
            if !all && targets.len() == 1 {
                self.drop_import(&key);
                continue;
            }
            let jail_state = self.jails.entry(jail.clone()).or_default();
            let epoch = jail_state.epoch;
            let entry = jail_state.entries.entry(*address).or_default();
            // A detection that arrived meanwhile removed the record (R10).
            if let Some(import) = &mut entry.import {
                (import.state, import.confirmed_at) = (ImportState::Applied, now);
                import.jail_epoch = Some(epoch);
                let record = Record::Import(key.clone(), Some(Import::clone(import)));
                self.persist(record);
                self.mark_held(&key, now);
            }
        }
        if !all {
            self.observe_again(jail);
        }
    }

    /// fail2ban holds an address from now on for the bantime of the jail.
    fn mark_held(&mut self, key: &BanKey, now: i64) {
        let Some(jail_state) = self.jails.get_mut(&key.0) else { return };
        let bantime = jail_state.bantime().unwrap_or(-1);
        let end = if bantime < 0 { i64::MAX } else { now.saturating_add(bantime) };
        jail_state.entries.entry(key.1).or_default().held_until = Some(end);
        // Observe the address again before the lease ends.
        if let Some(shown) = &mut jail_state.last_observation {
            let soon = end.saturating_sub(super::lease::lead(bantime));
            shown.next_check_at = shown.next_check_at.min(soon);
        }
    }

    fn mark_unbanned(&mut self, key: &BanKey) {
        self.drop_import(key);
        let entry =
            self.jails.get_mut(&key.0).and_then(|jail_state| jail_state.entries.get_mut(&key.1));
        if let Some(entry) = entry {
            entry.held_until = None;
        }
        self.enqueue(key);
    }

    /// A tombstone unbans the address once, local and manual bans included (R16).
    fn mark_tombstone_applied(&mut self, key: &BanKey, now: i64) {
        self.mark_unbanned(key);
        self.drop_detection(key);
        if let Some(jail_state) = self.jails.get_mut(&key.0) {
            jail_state.local_bans.remove(&key.1);
        }
        self.tombstones.mark_applied(key);
        self.publisher.mark_dirty(key.1, now);
    }

    fn persist_next(&mut self, now: i64) -> Option<Effect> {
        self.dirty.next_batch(now).map(Effect::Persist)
    }

    /// The [stamp to reserve](super::sequence::Sequencer::stamp_to_reserve) on disk now, if any. A reservation is
    /// no effect, because it must not wait for fail2ban or for a batch of records.
    #[must_use]
    pub fn stamp_to_reserve(&self, now: i64) -> Option<i64> {
        self.sequencer.stamp_to_reserve(now)
    }

    /// The reserved stamp is on disk.
    pub fn on_stamp_reserved(&mut self, stamp: i64) {
        self.sequencer.on_reserved(stamp);
    }

    /// The last stamp that this host used. A graceful stop reserves this one, and none ahead.
    #[must_use]
    pub fn last_own_stamp(&self) -> i64 {
        self.sequencer.last()
    }

    /// Notes whether the records were written. If not, the controller bans from memory and retries the write (R20).
    pub fn on_persisted(&mut self, is_written: bool, now: i64) {
        self.dirty.on_written(is_written, now);
    }
}
