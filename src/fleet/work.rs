//! What is to be done next: one step at a time, in an order that a crash between any two of them leaves
//! well. What fail2ban is told rests on what is on disk; what is done, on what was just seen.

use super::look::Heartbeat;
use super::marks::Import;
use super::reconcile::{self, Decision};
use super::{BanKey, Controller, Record, to_secs};
use crate::ignored::IgnoreReason;
use crate::wire::{Address, HostName, Jail};

/// fail2ban makes some 130 bans a second and answers nobody meanwhile.
const BATCH: usize = 20;

/// After so many batches that there was nothing to do about, the daemon does something else: one step takes no
/// longer with 100,000 addresses that wait.
const MAX_BATCHES: usize = 50;

/// From so many addresses on it is quicker to look at all of a jail's bans.
const SPOT_CHECK_MAX: usize = 2;

/// One address to be banned or freed here, and the host whose word it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Target {
    pub address: Address,
    pub attributed_to: Option<HostName>,
}

/// What the daemon is to do, and to answer how it went.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write this down, synced; then [`Fleet::saved`].
    Persist(Vec<Record>),
    /// Look at a jail, whole or at some addresses; then [`Fleet::seen`].
    Observe(Jail, Option<Vec<Address>>),
    /// Free these addresses; then [`Fleet::done`].
    Unban(Jail, Vec<Target>),
    /// Free these addresses, whoever banned them: they were freed for the whole fleet; then [`Fleet::done`].
    ApplyTombstone(Jail, Vec<Address>),
    /// Ban these addresses; then [`Fleet::done`].
    Ban(Jail, Vec<Target>),
    /// Ban these again, which prolongs them; then [`Fleet::done`].
    Renew(Jail, Vec<Address>),
    /// Say that this one is not banned here, and why.
    LogRefused(Jail, Target, IgnoreReason),
    /// Say that this host has no such jail.
    NoSuchJail(Jail, Target),
    /// Call again soon: there is more to do, and nothing of it is the daemon's.
    Continue,
    /// Nothing now.
    Idle,
}

/// What fail2ban is to be told.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    Unban(Jail, Vec<Target>),
    /// For the whole fleet, own and manual bans included.
    ApplyTombstone(Jail, Vec<Address>),
    Ban(Jail, Vec<Target>),
    Renew(Jail, Vec<Address>),
    LogRefused(Jail, Target, IgnoreReason),
    NoSuchJail(Jail, Target),
}

impl Controller {
    /// The next step. **What is intended is on disk before fail2ban is told.**
    pub fn next_effect(&mut self, now: i64) -> Effect {
        self.gc(now);
        self.collect_tombstones(now);
        let searching = self.release_claims();
        if let Some(step) = self.persist_next(now) {
            return step;
        }
        let step = self.next_decision(now);
        let more = searching || self.collecting;
        if step == Effect::Idle && more { Effect::Continue } else { step }
    }

    fn next_decision(&mut self, now: i64) -> Effect {
        let Some(Heartbeat { server, .. }) = self.heartbeat else { return Effect::Idle };
        let names = self.known_jails.clone().unwrap_or_default();
        // One that starts is yet to make them.
        if names.is_empty() && self.is_starting(server, now) {
            return Effect::Idle;
        }
        for _ in 0..MAX_BATCHES {
            if self.pending.is_empty() {
                self.settle_tombstones(&names, now);
                if let Some(step) = self.persist_next(now) {
                    return step;
                }
                // Bans and fleet unbans take turns, so that neither waits for a flood of the other.
                let bans = !self.queue.is_empty() || !self.jails_to_observe.is_empty();
                if self.tombstones.has_unapplied() && (self.is_tombstones_turn || !bans) {
                    self.is_tombstones_turn = false;
                    self.apply_tombstones(&names, now);
                    continue;
                }
                self.is_tombstones_turn = true;
            }
            if let Some(order) = self.pending.pop_front() {
                return self.dispatch(order, now);
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
                if let Some(step) = self.persist_next(now) {
                    return step;
                }
                continue;
            }
            for address in &addresses {
                self.enqueue(&(jail.clone(), *address));
            }
            let known = self.jails.get(&jail).is_some_and(|local| local.last_observation.is_some());
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
        let (jail, addresses) = self.queue.batch(BATCH)?;
        let mut local = self.jails.get_mut(&jail);
        for address in &addresses {
            let case = local.as_mut().and_then(|local| local.entries.get_mut(address));
            if let Some(case) = case {
                case.queued = None;
            }
        }
        Some((jail, addresses))
    }

    /// Whether these were seen just now.
    fn is_fresh(&mut self, jail: &Jail, addresses: &[Address], now: i64) -> bool {
        // Of each jail for itself: two that take turns would look for ever.
        let glanced = self
            .spot_checked
            .remove(jail)
            .is_some_and(|seen| addresses.iter().all(|address| seen.contains(address)));
        let shown = self.jails.get(jail).and_then(|local| local.last_observation.as_ref());
        glanced || shown.is_some_and(|shown| shown.valid_until >= now)
    }

    /// Their jail is not there: perhaps it is only on its way down or up. What it bans is kept in mind.
    fn without_jail(&mut self, jail: &Jail, addresses: &[Address]) -> Effect {
        for &address in addresses {
            let facts = self.facts(&(jail.clone(), address), i64::MIN);
            if facts.claimed && !facts.imported {
                let order = Pending::NoSuchJail(jail.clone(), self.target(jail, address));
                self.pending.push_back(order);
            }
        }
        self.pending.pop_front().map_or(Effect::Idle, |order| self.dispatch(order, 0))
    }

    fn target(&self, jail: &Jail, address: Address) -> Target {
        let key = (jail.clone(), address);
        Target { address, attributed_to: self.attributed_to(&key).cloned() }
    }

    /// Decides on addresses that were seen just now. What is to be banned is marked as *intended*.
    fn plan(&mut self, jail: &Jail, addresses: &[Address], now: i64) {
        let (mut free, mut import) = (Vec::new(), Vec::new());
        for &address in addresses {
            let key = (jail.clone(), address);
            let facts = self.facts(&key, to_secs(now));
            match reconcile::decide(facts) {
                Decision::Import => {
                    self.drop_detection(&key);
                    let claims = self.import_sources(&key, to_secs(now));
                    let local = self.jails.entry(jail.clone()).or_default();
                    let bantime = local.bantime().unwrap_or(-1);
                    let mark = Import::intended(claims, bantime, to_secs(now));
                    let case = local.entries.entry(address).or_default();
                    case.import = Some(Box::new(mark.clone()));
                    self.persist(Record::Import(key, Some(mark)));
                    import.push(self.target(jail, address));
                }
                Decision::Refuse => {
                    self.drop_import(&key);
                    if let Some(because) = self.ignored(&key) {
                        let work = self.target(jail, address);
                        self.pending.push_back(Pending::LogRefused(jail.clone(), work, because));
                    }
                }
                Decision::Unban => free.push(self.target(jail, address)),
                Decision::Drop => self.drop_import(&key),
                Decision::Keep => {
                    // Its claims changed: with the next look, which tells whether it still is held.
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
        if !free.is_empty() {
            self.pending.push_back(Pending::Unban(jail.clone(), free));
        }
        if !import.is_empty() {
            self.pending.push_back(Pending::Ban(jail.clone(), import));
        }
    }

    /// Whom a jail is never to ban may have changed: with the next pulse all of it is looked at.
    pub fn invalidate(&mut self, jail: &Jail) {
        self.observe_again(jail);
    }

    /// With the next pulse this jail is looked at, whatever that says.
    fn observe_again(&mut self, jail: &Jail) {
        let local = self.jails.get_mut(jail);
        if let Some(shown) = local.and_then(|local| local.last_observation.as_mut()) {
            (shown.next_check_at, shown.valid_until) = (i64::MIN, i64::MIN);
        }
    }

    fn drop_import(&mut self, key: &BanKey) {
        self.last_releaser.remove(key);
        let case = self.jails.get_mut(&key.0).and_then(|local| local.entries.get_mut(&key.1));
        if case.and_then(|case| case.import.take()).is_some() {
            self.persist(Record::Import(key.clone(), None));
        }
    }

    /// Hands an order out.
    fn dispatch(&mut self, order: Pending, now: i64) -> Effect {
        self.in_flight = Some(order.clone());
        match order {
            Pending::Unban(jail, work) => {
                for Target { address, .. } in &work {
                    self.sequencer.expect_unban(&(jail.clone(), *address), now);
                }
                Effect::Unban(jail, work)
            }
            Pending::ApplyTombstone(jail, addresses) => {
                for address in &addresses {
                    self.sequencer.expect_unban(&(jail.clone(), *address), now);
                }
                Effect::ApplyTombstone(jail, addresses)
            }
            Pending::Ban(jail, work) => Effect::Ban(jail, work),
            Pending::Renew(jail, addresses) => Effect::Renew(jail, addresses),
            Pending::LogRefused(jail, work, because) => Effect::LogRefused(jail, work, because),
            Pending::NoSuchJail(jail, work) => Effect::NoSuchJail(jail, work),
        }
    }

    /// fail2ban has done what it was told, and answered with a number.
    pub fn on_done(&mut self, answer: i64, now: i64) {
        match self.in_flight.take() {
            Some(Pending::Unban(jail, work)) => {
                for Target { address, .. } in work {
                    self.mark_unbanned(&(jail.clone(), address));
                }
            }
            Some(Pending::ApplyTombstone(jail, addresses)) => {
                for address in addresses {
                    self.mark_tombstone_applied(&(jail.clone(), address), now);
                }
            }
            Some(Pending::Ban(jail, work)) => {
                self.mark_imported(&jail, &work, answer, to_secs(now));
            }
            Some(Pending::Renew(jail, addresses)) => {
                for address in addresses {
                    self.mark_held(&(jail.clone(), address), to_secs(now));
                }
            }
            Some(Pending::LogRefused(..) | Pending::NoSuchJail(..)) | None => {}
        }
    }

    /// fail2ban has not done it, or nobody knows: it is looked at again.
    pub fn on_failed(&mut self) {
        let (jail, addresses) = match self.in_flight.take() {
            Some(Pending::Unban(jail, work) | Pending::Ban(jail, work)) => {
                (jail, work.into_iter().map(|work| work.address).collect())
            }
            Some(Pending::Renew(jail, addresses)) => (jail, addresses),
            Some(Pending::ApplyTombstone(jail, _)) => {
                self.pending.retain(|order| !matches!(order, Pending::ApplyTombstone(..)));
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

    /// fail2ban goes on refusing what it is told of a jail: the words wait until there is something new
    /// of them or of the jail. `is_known`: what the jail holds was taken from fail2ban's database instead, so
    /// that it does not hold up what this host publishes of its other jails.
    pub fn abandon_jail(&mut self, jail: &Jail, is_known: bool, now: i64) {
        self.queue.forget(jail);
        for case in
            self.jails.get_mut(jail).into_iter().flat_map(|local| local.entries.values_mut())
        {
            case.queued = None;
        }
        self.jails_to_observe.remove(jail);
        if is_known {
            self.finish_scan(now);
        }
    }

    /// **What `banip` says was not new is not ours.** Of several it does not say which: the next look
    /// tells, by their rows.
    fn mark_imported(&mut self, jail: &Jail, work: &[Target], new: i64, now: i64) {
        let all = usize::try_from(new).is_ok_and(|new| new >= work.len());
        for Target { address, .. } in work {
            let key = (jail.clone(), *address);
            if !all && work.len() == 1 {
                self.drop_import(&key);
                continue;
            }
            let local = self.jails.entry(jail.clone()).or_default();
            let run = local.epoch;
            let case = local.entries.entry(*address).or_default();
            // A detection that came between took the mark away.
            if let Some(mark) = &mut case.import {
                (mark.is_applied, mark.confirmed_at, mark.jail_epoch) = (true, now, Some(run));
                let change = Record::Import(key.clone(), Some(Import::clone(mark)));
                self.persist(change);
                self.mark_held(&key, now);
            }
        }
        if !all {
            self.observe_again(jail);
        }
    }

    /// fail2ban holds an address from now on for this jail's bantime.
    fn mark_held(&mut self, key: &BanKey, now: i64) {
        let Some(local) = self.jails.get_mut(&key.0) else { return };
        let bantime = local.bantime().unwrap_or(-1);
        let end = if bantime < 0 { i64::MAX } else { now.saturating_add(bantime) };
        local.entries.entry(key.1).or_default().held_until = Some(end);
        // Not later than it ends is it looked at again.
        if let Some(shown) = &mut local.last_observation {
            let soon = end.saturating_sub(super::lease::lead(bantime));
            shown.next_check_at = shown.next_check_at.min(soon);
        }
    }

    fn mark_unbanned(&mut self, key: &BanKey) {
        self.drop_import(key);
        let case = self.jails.get_mut(&key.0).and_then(|local| local.entries.get_mut(&key.1));
        if let Some(case) = case {
            case.held_until = None;
        }
        self.enqueue(key);
    }

    /// **A fleet unban frees the address once, own and manual bans included.**
    fn mark_tombstone_applied(&mut self, key: &BanKey, now: i64) {
        self.mark_unbanned(key);
        self.drop_detection(key);
        if let Some(local) = self.jails.get_mut(&key.0) {
            local.local_bans.remove(&key.1);
        }
        self.tombstones.mark_applied(key);
        self.publisher.mark_dirty(key.1, now);
    }

    /// What is not on disk yet.
    fn persist_next(&mut self, now: i64) -> Option<Effect> {
        self.dirty.next_batch(now).map(Effect::Persist)
    }

    /// The [stamp to reserve](super::tell::Teller::stamp_to_reserve) on disk now, if any. It is apart from the
    /// other changes: it must not wait while fail2ban or a batch of them takes long.
    #[must_use]
    pub fn stamp_to_reserve(&self, now: i64) -> Option<i64> {
        self.sequencer.stamp_to_reserve(now)
    }

    /// The stamp is on disk.
    pub fn on_stamp_reserved(&mut self, stamp: i64) {
        self.sequencer.on_reserved(stamp);
    }

    /// The stamp that this host took last: with a graceful stop no other is to be reserved.
    #[must_use]
    pub fn last_own_stamp(&self) -> i64 {
        self.sequencer.last()
    }

    /// It was written down, or could not be. Then bans are made all the same, and it is tried again
    /// later.
    pub fn on_persisted(&mut self, well: bool, now: i64) {
        self.dirty.on_written(well, now);
    }
}
