//! **Fleet unbans**: an address is freed on every host, whoever banned it, and stays free until somebody
//! detects it again. Each is a tombstone, by its id.
//!
//! Each host persists the id, frees the address once, and from then on repeats the id wherever it publishes
//! something of the address. A claim that does not carry every tombstone of its address that is known here is
//! void, so a host that was away, or an old snapshot, brings nothing back. Only a ban that began more than an
//! hour after the tombstone was made counts without it: no clock is so far off that it could be the old ban.
//!
//! Anybody who may publish can make tombstones, so they are bounded: in total, of each maker, and of each
//! address. One more than that takes the place of the oldest of the maker that has most. They are applied in
//! batches, in turns between makers. One that no host's ban needs is dropped after an hour.

mod invariants;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use super::claims::Said;
use super::{BanKey, Record, Timing};
use crate::guard::HORIZON;
use crate::wire::{Address, FleetUnban, Jail, JailScope, UnbanId};

/// The most tombstones that are kept: in total, of one maker, and of one address.
pub(super) const MAX_TOMBSTONES: usize = 20_000;
pub(super) const MAX_PER_MAKER: usize = 5_000;
const MAX_PER_ADDRESS: usize = 16;

/// How many tombstones are looked at in one step of the garbage collection.
const GC_STEP: usize = 500;

/// One fleet unban.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tombstone {
    scope: JailScope,
    id: UnbanId,
    /// fail2ban here was told to free the address since.
    applied: bool,
    /// On the way there, it was told so in these jails.
    applied_jails: BTreeSet<Jail>,
    /// In these it is still to be told: they were not there when the tombstone came.
    pending_jails: BTreeSet<Jail>,
    /// How many had come by then since this process began; 0: before.
    arrival: u64,
}

impl Tombstone {
    fn pardon(&self, address: Address) -> FleetUnban {
        FleetUnban { scope: self.scope.clone(), address, id: self.id.clone() }
    }

    /// Which is the oldest, on every host the same.
    fn rank(&self) -> (i64, &UnbanId, &JailScope) {
        (self.id.created_at(), &self.id, &self.scope)
    }

    fn is_due_in(&self, jail: &Jail) -> bool {
        let waits = !self.applied && !self.applied_jails.contains(jail);
        self.scope.covers(jail) && (waits || self.pending_jails.contains(jail))
    }

    fn is_outlived_by(&self, start: i64, pace: &Timing) -> bool {
        is_outlived(&self.id, start, pace)
    }
}

/// Whether a ban began so long after a fleet unban that it cannot be the one that was freed. `start` is in
/// seconds since 1970.
#[must_use]
pub fn is_outlived(id: &UnbanId, start: i64, pace: &Timing) -> bool {
    start > id.created_at().div_euclid(1000).saturating_add(pace.tombstone_idle)
}

/// How a tombstone's address stands in the snapshots and on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Usage {
    /// No host bans it.
    Unused,
    /// Some host does, and its claim carries the tombstone.
    Carried,
    /// Some host's claim does not carry it.
    Missing,
}

/// All that are known here.
///
/// Invariants: `count` is the number in `known`; each of them is in `by_maker` once, and each maker with the
/// number of its own in `by_size`; the caps hold. An address with a tombstone that is not applied is in
/// `waiting`, `in_flight` or `deferred`.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    known: BTreeMap<Address, Vec<Tombstone>>,
    /// The oldest of each maker first.
    by_maker: BTreeMap<Arc<str>, BTreeSet<(i64, Address, JailScope)>>,
    by_size: BTreeSet<(usize, Arc<str>)>,
    count: usize,
    /// How many came since this process began.
    arrivals: u64,
    /// Addresses that have something to be applied, by maker; and whose turn it was last.
    waiting: BTreeMap<Arc<str>, VecDeque<Address>>,
    last_turn: Option<Arc<str>>,
    /// Addresses that fail2ban is being told to free.
    in_flight: Vec<Address>,
    /// Addresses that wait for a jail that fail2ban is yet to make.
    deferred: Vec<Address>,
    /// Up to where the garbage collection is.
    collected: Option<Address>,
}

impl Tombstones {
    /// Takes one that an earlier process persisted.
    pub(super) fn restore(&mut self, pardon: FleetUnban, applied: bool) {
        self.insert(pardon, applied);
    }

    fn insert(&mut self, pardon: FleetUnban, applied: bool) {
        let FleetUnban { scope, address, id } = pardon;
        let maker: Arc<str> = id.maker().into();
        let of_maker = self.by_maker.entry(Arc::clone(&maker)).or_default();
        self.by_size.remove(&(of_maker.len(), Arc::clone(&maker)));
        of_maker.insert((id.created_at(), address, scope.clone()));
        self.by_size.insert((of_maker.len(), Arc::clone(&maker)));
        if !applied {
            self.waiting.entry(maker).or_default().push_back(address);
        }
        let (applied_jails, pending_jails) = (BTreeSet::new(), BTreeSet::new());
        let arrival = self.arrivals;
        let tombstone = Tombstone { scope, id, applied, applied_jails, pending_jails, arrival };
        self.known.entry(address).or_default().push(tombstone);
        self.count += 1;
    }

    fn remove(&mut self, pardon: &FleetUnban) {
        let Some(of) = self.known.get_mut(&pardon.address) else { return };
        let before = of.len();
        of.retain(|one| one.id != pardon.id || one.scope != pardon.scope);
        self.count -= before - of.len();
        if of.is_empty() {
            self.known.remove(&pardon.address);
        }
        let maker: Arc<str> = pardon.id.maker().into();
        if let Some(of) = self.by_maker.get_mut(&maker) {
            self.by_size.remove(&(of.len(), Arc::clone(&maker)));
            of.remove(&(pardon.id.created_at(), pardon.address, pardon.scope.clone()));
            if of.is_empty() {
                self.by_maker.remove(&maker);
            } else {
                self.by_size.insert((of.len(), maker));
            }
        }
    }

    /// Learns of one that a snapshot repeats. Of an address with too many the newest are kept: so all hosts keep the
    /// same ones, whatever they heard in which order. A claim would be void where another set is known.
    pub(super) fn learn_repeated(
        &mut self,
        pardon: &FleetUnban,
        now: i64,
        pace: &Timing,
    ) -> Vec<Record> {
        let of = self.known.get(&pardon.address).filter(|of| of.len() >= MAX_PER_ADDRESS);
        let rank = (pardon.id.created_at(), &pardon.id, &pardon.scope);
        if of
            .and_then(|of| of.iter().map(Tombstone::rank).min())
            .is_some_and(|oldest| rank < oldest)
        {
            return Vec::new();
        }
        self.learn(pardon, now, pace)
    }

    /// Learns of one; answers what is to be persisted: nothing if it is known already, or of another time.
    /// `now` is in milliseconds.
    pub(super) fn learn(&mut self, pardon: &FleetUnban, now: i64, pace: &Timing) -> Vec<Record> {
        let age = now.saturating_sub(pardon.id.created_at());
        let of = self.known.get(&pardon.address);
        let known = of.into_iter().flatten().any(|u| u.id == pardon.id && u.scope == pardon.scope);
        if known || age > pace.keep_unbans * 1000 || age < -HORIZON {
            return Vec::new();
        }
        let mut changes = Vec::new();
        while let Some(victim) = self.victim(pardon) {
            self.remove(&victim);
            changes.push(Record::Unban(victim, None));
        }
        self.arrivals += 1;
        self.insert(pardon.clone(), false);
        changes.push(Record::Unban(pardon.clone(), Some(false)));
        changes
    }

    /// The one that has to go before there is room for another, if any.
    fn victim(&self, pardon: &FleetUnban) -> Option<FleetUnban> {
        let of_address = self.known.get(&pardon.address).filter(|of| of.len() >= MAX_PER_ADDRESS);
        if let Some(oldest) = of_address.and_then(|of| of.iter().min_by_key(|one| one.rank())) {
            return Some(oldest.pardon(pardon.address));
        }
        let of_maker = self.by_maker.get(pardon.id.maker()).map_or(0, BTreeSet::len);
        let maker = if of_maker >= MAX_PER_MAKER {
            pardon.id.maker()
        } else if self.count >= MAX_TOMBSTONES {
            &self.by_size.last()?.1
        } else {
            return None;
        };
        let (made, address, scope) = self.by_maker.get(maker)?.first()?;
        let of = self.known.get(address)?;
        let same = |one: &&Tombstone| {
            one.id.created_at() == *made && one.scope == *scope && one.id.maker() == maker
        };
        of.iter().find(same).map(|one| one.pardon(*address))
    }

    /// Whether the table is at one of its limits: which, and the maker that has most.
    pub(super) fn limit(&self) -> Option<(usize, &str)> {
        let (size, maker) = self.by_size.last()?;
        if self.count >= MAX_TOMBSTONES {
            Some((MAX_TOMBSTONES, maker))
        } else {
            (*size >= MAX_PER_MAKER).then_some((MAX_PER_MAKER, maker))
        }
    }

    /// **A claim that does not carry every tombstone of its address that is known here is void.**
    pub(super) fn voids(&self, key: &BanKey, said: &Said, pace: &Timing) -> bool {
        let start = said.ban.map_or(i64::MIN, |ban| ban.start);
        let voids = |one: &Tombstone| !said.carries(&one.id) && !one.is_outlived_by(start, pace);
        !said.is_script() && self.of(key).any(voids)
    }

    /// The ids that this host repeats with what it publishes of an address: those that it has applied.
    pub(super) fn carried(&self, key: &BanKey) -> Vec<UnbanId> {
        let applied = |one: &&Tombstone| one.applied && !one.pending_jails.contains(&key.0);
        self.of(key).filter(applied).map(|one| one.id.clone()).collect()
    }

    /// Whether it is known here.
    pub(super) fn knows(&self, pardon: &FleetUnban) -> bool {
        let of = self.known.get(&pardon.address);
        of.into_iter().flatten().any(|one| one.id == pardon.id && one.scope == pardon.scope)
    }

    /// Everything that this host repeats in its snapshot.
    pub(super) fn applied(&self) -> impl Iterator<Item = FleetUnban> {
        self.known.iter().flat_map(|(address, of)| {
            of.iter().filter(|one| one.applied).map(|one| one.pardon(*address))
        })
    }

    /// Whether fail2ban is to be told something.
    pub(super) fn has_unapplied(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next addresses to be freed, at most `max`, those of each maker in turn. They are in flight until
    /// [`settle`](Self::settle) or [`retry`](Self::retry).
    pub(super) fn next_batch(&mut self, max: usize) -> Vec<Address> {
        let mut batch = BTreeSet::new();
        while batch.len() < max {
            let turn = self.last_turn.take().map_or(Unbounded, Excluded);
            let after = self.waiting.range((turn, Unbounded)).next();
            let Some((maker, _)) = after.or_else(|| self.waiting.iter().next()) else { break };
            let maker = Arc::clone(maker);
            if let Some(line) = self.waiting.get_mut(&maker) {
                batch.extend(line.pop_front());
                if line.is_empty() {
                    self.waiting.remove(&maker);
                }
            }
            self.last_turn = Some(maker);
        }
        batch.retain(|address| self.known.contains_key(address));
        self.in_flight.extend(batch.iter().copied());
        batch.into_iter().collect()
    }

    /// Whether an address is still to be freed in a jail, where it is banned since `start` (in seconds since
    /// 1970) if that is known.
    pub(super) fn is_due(&self, key: &BanKey, start: Option<i64>, pace: &Timing) -> bool {
        let outlived = |one: &Tombstone| start.is_some_and(|start| one.is_outlived_by(start, pace));
        let of = self.known.get(&key.1).into_iter().flatten();
        of.filter(|one| one.is_due_in(&key.0)).any(|one| !outlived(one))
    }

    /// An address was freed in a jail, or there was nothing to free.
    pub(super) fn mark_applied(&mut self, key: &BanKey) {
        for one in self.known.get_mut(&key.1).into_iter().flatten() {
            if one.scope.covers(&key.0) {
                if !one.applied {
                    one.applied_jails.insert(key.0.clone());
                }
                one.pending_jails.remove(&key.0);
            }
        }
    }

    /// Nothing is in flight any more. Notes which are applied: nothing of them is left to be freed in these
    /// jails, nor awaited in another that fail2ban has yet to make. The others wait for
    /// [`retry_deferred`](Self::retry_deferred).
    pub(super) fn settle(
        &mut self,
        jails: &BTreeSet<Jail>,
        awaited: impl Fn(Address, &JailScope) -> bool,
    ) -> Vec<(Address, Record)> {
        let mut settled = Vec::new();
        for address in std::mem::take(&mut self.in_flight) {
            let mut deferred = false;
            for one in self.known.get_mut(&address).into_iter().flatten() {
                // A jail that it waits for may be away again.
                let due =
                    jails.iter().any(|jail| one.is_due_in(jail)) || !one.pending_jails.is_empty();
                if due || !one.applied && awaited(address, &one.scope) {
                    deferred = true;
                } else if !one.applied {
                    one.applied = true;
                    one.applied_jails.clear();
                    settled.push((address, Record::Unban(one.pardon(address), Some(true))));
                }
            }
            if deferred {
                self.deferred.push(address);
            }
        }
        settled
    }

    fn wait(&mut self, address: Address) {
        if let Some(one) = self.known.get(&address).and_then(|of| of.last()) {
            self.waiting.entry(one.id.maker().into()).or_default().push_back(address);
        }
    }

    /// What was in flight did not reach fail2ban.
    pub(super) fn retry(&mut self) {
        for address in std::mem::take(&mut self.in_flight) {
            self.wait(address);
        }
    }

    /// fail2ban may have made the jails that some wait for, or restored their bans.
    pub(super) fn retry_deferred(&mut self) {
        for address in std::mem::take(&mut self.deferred) {
            self.wait(address);
        }
    }

    /// Whether something is in flight.
    pub(super) fn is_applying(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// How many of those that came since this process began are applied, up to the first that is not.
    pub(super) fn applied_watermark(&self) -> u64 {
        let waits = self.known.values().flatten().filter(|one| !one.applied);
        waits.map(|one| one.arrival.saturating_sub(1)).min().unwrap_or(self.arrivals)
    }

    /// A jail is there, and was not for those that came after so many others: what it restores of them is
    /// freed.
    pub(super) fn on_jail_added(&mut self, jail: &Jail, after: u64) {
        for (address, of) in &mut self.known {
            for one in of {
                if one.applied && one.arrival > after && one.scope.covers(jail) {
                    one.pending_jails.insert(jail.clone());
                    self.waiting.entry(one.id.maker().into()).or_default().push_back(*address);
                }
            }
        }
    }

    /// Drops what is no longer needed, some at a time, and answers it, and whether there is more to look at;
    /// after the end of the table it begins again. Kept for 30 days, and longer while a snapshot lists the address without it; but not where no
    /// host bans the address, an hour after it was made. `idle` says that this host has been connected for as
    /// long, and so knows the snapshots.
    pub(super) fn gc(
        &mut self,
        now: i64,
        idle: bool,
        pace: &Timing,
        usage: impl Fn(Address, &JailScope, &UnbanId) -> Usage,
    ) -> (Vec<(Address, Record)>, bool) {
        let begin = self.collected.take().map_or(Unbounded, Excluded);
        let mut gone = Vec::new();
        let mut last = None;
        for (address, of) in self.known.range((begin, Unbounded)).take(GC_STEP) {
            last = Some(*address);
            for one in of {
                let age = now.saturating_sub(one.id.created_at());
                let old = age > pace.keep_unbans * 1000;
                let done = one.applied && one.pending_jails.is_empty();
                let unused = idle && done && age > pace.tombstone_idle * 1000;
                if !old && !unused {
                    continue;
                }
                let drop = match usage(*address, &one.scope, &one.id) {
                    Usage::Missing => false,
                    Usage::Carried => old,
                    Usage::Unused => true,
                };
                if drop {
                    gone.push(one.pardon(*address));
                }
            }
        }
        self.collected = last;
        let changes = gone.into_iter().map(|pardon| {
            self.remove(&pardon);
            (pardon.address, Record::Unban(pardon, None))
        });
        (changes.collect(), last.is_some())
    }

    fn of(&self, key: &BanKey) -> impl Iterator<Item = &Tombstone> {
        let of = self.known.get(&key.1).into_iter().flatten();
        of.filter(|one| one.scope.covers(&key.0))
    }
}

#[cfg(test)]
mod tests;
