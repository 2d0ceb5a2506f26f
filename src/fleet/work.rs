//! What is to be done next: one step at a time, in an order that a crash between any two of them leaves
//! well. What fail2ban is told rests on what is on disk; what is done, on what was just seen.

use super::look::Heartbeat;
use super::marks::Mark;
use super::reconcile::{self, Decision};
use super::{BanKey, Controller, Record, secs};
use crate::ignored::IgnoreReason;
use crate::wire::{Address, HostName, Jail};

/// fail2ban makes some 130 bans a second and answers nobody meanwhile.
const BATCH: usize = 20;

/// After so many batches that there was nothing to do about, the daemon does something else: one step takes no
/// longer with 100,000 addresses that wait.
const MAX_BATCHES: usize = 50;

/// From so many addresses on it is quicker to look at all of a jail's bans.
const FEW: usize = 2;

/// One address to be banned or freed here, and the host whose word it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Target {
    pub address: Address,
    pub host: Option<HostName>,
}

/// What the daemon is to do, and to answer how it went.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write this down, synced; then [`Fleet::saved`].
    Save(Vec<Record>),
    /// Look at a jail, whole or at some addresses; then [`Fleet::seen`].
    Look(Jail, Option<Vec<Address>>),
    /// Free these addresses; then [`Fleet::done`].
    Free(Jail, Vec<Target>),
    /// Free these addresses, whoever banned them: they were freed for the whole fleet; then [`Fleet::done`].
    Obey(Jail, Vec<Address>),
    /// Ban these addresses; then [`Fleet::done`].
    Import(Jail, Vec<Target>),
    /// Ban these again, which prolongs them; then [`Fleet::done`].
    Prolong(Jail, Vec<Address>),
    /// Say that this one is not banned here, and why.
    Refuse(Jail, Target, IgnoreReason),
    /// Say that this host has no such jail.
    NoSuchJail(Jail, Target),
    /// Call again soon: there is more to do, and nothing of it is the daemon's.
    Continue,
    /// Nothing now.
    Rest,
}

/// What fail2ban is to be told.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    Free(Jail, Vec<Target>),
    /// For the whole fleet, own and manual bans included.
    Obey(Jail, Vec<Address>),
    Import(Jail, Vec<Target>),
    Prolong(Jail, Vec<Address>),
    Refuse(Jail, Target, IgnoreReason),
    NoSuchJail(Jail, Target),
}

impl Controller {
    /// The next step. **What is intended is on disk before fail2ban is told.**
    pub fn next(&mut self, now: i64) -> Effect {
        self.tidy(now);
        self.collect_tombstones(now);
        let searching = self.release_claims();
        if let Some(step) = self.save(now) {
            return step;
        }
        let step = self.next_effect(now);
        let more = searching || self.collecting;
        if step == Effect::Rest && more { Effect::Continue } else { step }
    }

    fn next_effect(&mut self, now: i64) -> Effect {
        let Some(Heartbeat { server, .. }) = self.pulse else { return Effect::Rest };
        let names = self.names.clone().unwrap_or_default();
        // One that starts is yet to make them.
        if names.is_empty() && self.is_starting(server, now) {
            return Effect::Rest;
        }
        for _ in 0..MAX_BATCHES {
            if self.orders.is_empty() {
                self.settle_tombstones(&names, now);
                if let Some(step) = self.save(now) {
                    return step;
                }
                // Bans and fleet unbans take turns, so that neither waits for a flood of the other.
                let bans = !self.queue.is_empty() || !self.looks.is_empty();
                if self.tombstones.has_unapplied() && (self.tombstones_turn || !bans) {
                    self.tombstones_turn = false;
                    self.apply_tombstones(&names, now);
                    continue;
                }
                self.tombstones_turn = true;
            }
            if let Some(order) = self.orders.pop_front() {
                return self.give(order, now);
            }
            if let Some(jail) = self.looks.first() {
                return Effect::Look(jail.clone(), None);
            }
            let Some((jail, addresses)) = self.batch() else { return Effect::Rest };
            if !names.contains(&jail) {
                return self.without_jail(&jail, &addresses);
            }
            if self.is_fresh(&jail, &addresses, now) {
                self.plan(&jail, &addresses, now);
                if let Some(step) = self.save(now) {
                    return step;
                }
                continue;
            }
            for address in &addresses {
                self.queue(&(jail.clone(), *address));
            }
            let known = self.jails.get(&jail).is_some_and(|local| local.shown.is_some());
            if known && addresses.len() <= FEW {
                return Effect::Look(jail, Some(addresses));
            }
            self.looks.insert(jail.clone());
            return Effect::Look(jail, None);
        }
        Effect::Continue
    }

    /// The next addresses of one jail.
    fn batch(&mut self) -> Option<(Jail, Vec<Address>)> {
        let (jail, addresses) = self.queue.batch(BATCH)?;
        let mut local = self.jails.get_mut(&jail);
        for address in &addresses {
            let case = local.as_mut().and_then(|local| local.cases.get_mut(address));
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
            .glanced
            .remove(jail)
            .is_some_and(|seen| addresses.iter().all(|address| seen.contains(address)));
        let shown = self.jails.get(jail).and_then(|local| local.shown.as_ref());
        glanced || shown.is_some_and(|shown| shown.fresh >= now)
    }

    /// Their jail is not there: perhaps it is only on its way down or up. What it bans is kept in mind.
    fn without_jail(&mut self, jail: &Jail, addresses: &[Address]) -> Effect {
        for &address in addresses {
            let facts = self.facts(&(jail.clone(), address), i64::MIN);
            if facts.claimed && !facts.marked {
                let order = Pending::NoSuchJail(jail.clone(), self.work(jail, address));
                self.orders.push_back(order);
            }
        }
        self.orders.pop_front().map_or(Effect::Rest, |order| self.give(order, 0))
    }

    fn work(&self, jail: &Jail, address: Address) -> Target {
        let key = (jail.clone(), address);
        Target { address, host: self.reporter(&key).cloned() }
    }

    /// Decides on addresses that were seen just now. What is to be banned is marked as *intended*.
    fn plan(&mut self, jail: &Jail, addresses: &[Address], now: i64) {
        let (mut free, mut import) = (Vec::new(), Vec::new());
        for &address in addresses {
            let key = (jail.clone(), address);
            let facts = self.facts(&key, secs(now));
            match reconcile::decide(facts) {
                Decision::Import => {
                    self.forget_detection(&key);
                    let claims = self.rests_on(&key, secs(now));
                    let local = self.jails.entry(jail.clone()).or_default();
                    let bantime = local.bantime().unwrap_or(-1);
                    let mark = Mark::intended(claims, bantime, secs(now));
                    let case = local.cases.entry(address).or_default();
                    case.mark = Some(Box::new(mark.clone()));
                    self.change(Record::Mark(key, Some(mark)));
                    import.push(self.work(jail, address));
                }
                Decision::Refuse => {
                    self.unmark(&key);
                    if let Some(because) = self.ignored(&key) {
                        let work = self.work(jail, address);
                        self.orders.push_back(Pending::Refuse(jail.clone(), work, because));
                    }
                }
                Decision::Free => free.push(self.work(jail, address)),
                Decision::Forget => self.unmark(&key),
                Decision::Leave => {
                    // Its claims changed: with the next look, which tells whether it still is held.
                    if facts.marked
                        && facts.held
                        && facts.claimed
                        && !self.keeps_claims(&key, secs(now))
                    {
                        self.look_again(jail);
                    }
                }
            }
        }
        if !free.is_empty() {
            self.orders.push_back(Pending::Free(jail.clone(), free));
        }
        if !import.is_empty() {
            self.orders.push_back(Pending::Import(jail.clone(), import));
        }
    }

    /// Whom a jail is never to ban may have changed: with the next pulse all of it is looked at.
    pub fn mistrust(&mut self, jail: &Jail) {
        self.look_again(jail);
    }

    /// With the next pulse this jail is looked at, whatever that says.
    fn look_again(&mut self, jail: &Jail) {
        let local = self.jails.get_mut(jail);
        if let Some(shown) = local.and_then(|local| local.shown.as_mut()) {
            (shown.due, shown.fresh) = (i64::MIN, i64::MIN);
        }
    }

    fn unmark(&mut self, key: &BanKey) {
        self.unsaid.remove(key);
        let case = self.jails.get_mut(&key.0).and_then(|local| local.cases.get_mut(&key.1));
        if case.and_then(|case| case.mark.take()).is_some() {
            self.change(Record::Mark(key.clone(), None));
        }
    }

    /// Hands an order out.
    fn give(&mut self, order: Pending, now: i64) -> Effect {
        self.doing = Some(order.clone());
        match order {
            Pending::Free(jail, work) => {
                for Target { address, .. } in &work {
                    self.teller.frees(&(jail.clone(), *address), now);
                }
                Effect::Free(jail, work)
            }
            Pending::Obey(jail, addresses) => {
                for address in &addresses {
                    self.teller.frees(&(jail.clone(), *address), now);
                }
                Effect::Obey(jail, addresses)
            }
            Pending::Import(jail, work) => Effect::Import(jail, work),
            Pending::Prolong(jail, addresses) => Effect::Prolong(jail, addresses),
            Pending::Refuse(jail, work, because) => Effect::Refuse(jail, work, because),
            Pending::NoSuchJail(jail, work) => Effect::NoSuchJail(jail, work),
        }
    }

    /// fail2ban has done what it was told, and answered with a number.
    pub fn done(&mut self, answer: i64, now: i64) {
        match self.doing.take() {
            Some(Pending::Free(jail, work)) => {
                for Target { address, .. } in work {
                    self.freed(&(jail.clone(), address));
                }
            }
            Some(Pending::Obey(jail, addresses)) => {
                for address in addresses {
                    self.obeyed(&(jail.clone(), address), now);
                }
            }
            Some(Pending::Import(jail, work)) => self.imported(&jail, &work, answer, secs(now)),
            Some(Pending::Prolong(jail, addresses)) => {
                for address in addresses {
                    self.held(&(jail.clone(), address), secs(now));
                }
            }
            Some(Pending::Refuse(..) | Pending::NoSuchJail(..)) | None => {}
        }
    }

    /// fail2ban has not done it, or nobody knows: it is looked at again.
    pub fn failed(&mut self) {
        let (jail, addresses) = match self.doing.take() {
            Some(Pending::Free(jail, work) | Pending::Import(jail, work)) => {
                (jail, work.into_iter().map(|work| work.address).collect())
            }
            Some(Pending::Prolong(jail, addresses)) => (jail, addresses),
            Some(Pending::Obey(jail, _)) => {
                self.orders.retain(|order| !matches!(order, Pending::Obey(..)));
                self.tombstones.retry();
                (jail, Vec::new())
            }
            Some(Pending::Refuse(..) | Pending::NoSuchJail(..)) | None => return,
        };
        for address in addresses {
            self.queue(&(jail.clone(), address));
        }
        self.look_again(&jail);
    }

    /// fail2ban goes on refusing what it is told of a jail: the words wait until there is something new
    /// of them or of the jail. `is_known`: what the jail holds was taken from fail2ban's database instead, so
    /// that it does not hold up what this host publishes of its other jails.
    pub fn give_up(&mut self, jail: &Jail, is_known: bool, now: i64) {
        self.queue.forget(jail);
        for case in self.jails.get_mut(jail).into_iter().flat_map(|local| local.cases.values_mut())
        {
            case.queued = None;
        }
        self.looks.remove(jail);
        if is_known {
            self.finish_sweep(now);
        }
    }

    /// **What `banip` says was not new is not ours.** Of several it does not say which: the next look
    /// tells, by their rows.
    fn imported(&mut self, jail: &Jail, work: &[Target], new: i64, now: i64) {
        let all = usize::try_from(new).is_ok_and(|new| new >= work.len());
        for Target { address, .. } in work {
            let key = (jail.clone(), *address);
            if !all && work.len() == 1 {
                self.unmark(&key);
                continue;
            }
            let local = self.jails.entry(jail.clone()).or_default();
            let run = local.run;
            let case = local.cases.entry(*address).or_default();
            // A detection that came between took the mark away.
            if let Some(mark) = &mut case.mark {
                (mark.done, mark.answered, mark.run) = (true, now, Some(run));
                let change = Record::Mark(key.clone(), Some(Mark::clone(mark)));
                self.change(change);
                self.held(&key, now);
            }
        }
        if !all {
            self.look_again(jail);
        }
    }

    /// fail2ban holds an address from now on for this jail's bantime.
    fn held(&mut self, key: &BanKey, now: i64) {
        let Some(local) = self.jails.get_mut(&key.0) else { return };
        let bantime = local.bantime().unwrap_or(-1);
        let end = if bantime < 0 { i64::MAX } else { now.saturating_add(bantime) };
        local.cases.entry(key.1).or_default().end = Some(end);
        // Not later than it ends is it looked at again.
        if let Some(shown) = &mut local.shown {
            let soon = end.saturating_sub(super::lease::lead(bantime));
            shown.due = shown.due.min(soon);
        }
    }

    fn freed(&mut self, key: &BanKey) {
        self.unmark(key);
        let case = self.jails.get_mut(&key.0).and_then(|local| local.cases.get_mut(&key.1));
        if let Some(case) = case {
            case.end = None;
        }
        self.queue(key);
    }

    /// **A fleet unban frees the address once, own and manual bans included.**
    fn obeyed(&mut self, key: &BanKey, now: i64) {
        self.freed(key);
        self.forget_detection(key);
        if let Some(local) = self.jails.get_mut(&key.0) {
            local.own.remove(&key.1);
        }
        self.tombstones.mark_applied(key);
        self.snapshots.touch(key.1, now);
    }

    /// What is not on disk yet.
    fn save(&mut self, now: i64) -> Option<Effect> {
        self.dirty.next_batch(now).map(Effect::Save)
    }

    /// The [stamp to reserve](super::tell::Teller::stamp_to_reserve) on disk now, if any. It is apart from the
    /// other changes: it must not wait while fail2ban or a batch of them takes long.
    #[must_use]
    pub fn stamp_to_reserve(&self, now: i64) -> Option<i64> {
        self.teller.stamp_to_reserve(now)
    }

    /// The stamp is on disk.
    pub fn on_stamp_reserved(&mut self, stamp: i64) {
        self.teller.on_reserved(stamp);
    }

    /// The stamp that this host took last: with a graceful stop no other is to be reserved.
    #[must_use]
    pub fn last_own_stamp(&self) -> i64 {
        self.teller.last()
    }

    /// It was written down, or could not be. Then bans are made all the same, and it is tried again
    /// later.
    pub fn saved(&mut self, well: bool, now: i64) {
        self.dirty.on_written(well, now);
    }
}
