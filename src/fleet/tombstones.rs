//! Tombstones of fleet unbans (R16, R17). A fleet unban releases an address on every host, and the address stays
//! released until a host detects it again.
//!
//! Each host persists the id, unbans the address once, and then repeats the id in every message about the address. A
//! claim that does not carry every known tombstone of its address is void, so neither a host that was offline nor an
//! old snapshot revives the ban. Only a ban that began more than an hour after the tombstone counts without it: no
//! clock is so far off that this ban could be the old one.
//!
//! Anyone who may publish can make tombstones, so their number is bounded in total, per maker and per address (R21). At
//! a limit, a new tombstone replaces the oldest one of the maker with the most. Tombstones are applied in batches, in
//! turns between makers (R22). A tombstone that no host's ban needs is dropped after an hour.

mod invariants;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use super::claims::Claim;
use super::{BanKey, Record, Timing};
use crate::guard::HORIZON;
use crate::model::{Address, Jail, JailScope, UnbanId};
use crate::wire::FleetUnban;

/// The most tombstones that are kept: in total, of one maker, and of one address.
pub(super) const MAX_TOMBSTONES: usize = 20_000;
pub(super) const MAX_PER_MAKER: usize = 5_000;
const MAX_PER_ADDRESS: usize = 16;

/// How many addresses one step of the garbage collection checks.
const GC_STEP: usize = 500;

/// One fleet unban.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tombstone {
    scope: JailScope,
    id: UnbanId,
    /// Whether fail2ban on this host has unbanned the address since the tombstone arrived.
    applied: bool,
    /// Jails in which the tombstone was applied, until it is applied in all jails.
    applied_jails: BTreeSet<Jail>,
    /// Jails that were missing when the tombstone arrived, and in which it has yet to be applied.
    pending_jails: BTreeSet<Jail>,
    /// The number of the arrival since this process started; 0 for a tombstone restored from disk.
    arrival: u64,
}

impl Tombstone {
    fn fleet_unban(&self, address: Address) -> FleetUnban {
        FleetUnban { scope: self.scope.clone(), address, id: self.id.clone() }
    }

    /// The order by age, the same on every host.
    fn rank(&self) -> (i64, &UnbanId, &JailScope) {
        (self.id.created_at(), &self.id, &self.scope)
    }

    fn is_due_in(&self, jail: &Jail) -> bool {
        let waits = !self.applied && !self.applied_jails.contains(jail);
        self.scope.covers(jail) && (waits || self.pending_jails.contains(jail))
    }

    fn is_outlived_by(&self, start: i64, timing: &Timing) -> bool {
        is_outlived(&self.id, start, timing)
    }
}

/// Whether a ban began so long after a fleet unban that it cannot be the one that was released (R17). `start` is in
/// seconds since 1970.
#[must_use]
pub fn is_outlived(id: &UnbanId, start: i64, timing: &Timing) -> bool {
    start > id.created_at().div_euclid(1000).saturating_add(timing.tombstone_idle)
}

/// Whether bans of an address need its tombstone; the greatest value of all bans counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Usage {
    /// No host bans the address.
    Unused,
    /// A host bans the address, and its claim carries the tombstone.
    Referenced,
    /// A claim on the address does not carry the tombstone.
    Missing,
}

/// All known tombstones.
///
/// Invariants: `count` is the number in `known`; each tombstone is in `by_maker` once, and each maker with the
/// number of its tombstones in `by_size`; the caps hold. An address with a tombstone that is not applied is in
/// `waiting`, `in_flight` or `deferred`.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    known: BTreeMap<Address, Vec<Tombstone>>,
    /// The tombstones of each maker, the oldest first.
    by_maker: BTreeMap<Arc<str>, BTreeSet<(i64, Address, JailScope)>>,
    by_size: BTreeSet<(usize, Arc<str>)>,
    count: usize,
    /// How many arrived since this process started.
    arrivals: u64,
    /// Addresses with unapplied tombstones, by maker; and the maker whose turn was last.
    waiting: BTreeMap<Arc<str>, VecDeque<Address>>,
    last_turn: Option<Arc<str>>,
    /// Addresses that fail2ban is unbanning now.
    in_flight: Vec<Address>,
    /// Addresses that wait for a jail that fail2ban has yet to create.
    deferred: Vec<Address>,
    /// The last address that the garbage collection checked.
    collected: Option<Address>,
}

impl Tombstones {
    /// Inserts a tombstone that an earlier process persisted.
    pub(super) fn restore(&mut self, fleet_unban: FleetUnban, applied: bool) {
        self.insert(fleet_unban, applied);
    }

    fn insert(&mut self, fleet_unban: FleetUnban, applied: bool) {
        let FleetUnban { scope, address, id } = fleet_unban;
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

    fn remove(&mut self, fleet_unban: &FleetUnban) {
        let Some(of_address) = self.known.get_mut(&fleet_unban.address) else { return };
        let before = of_address.len();
        of_address.retain(|one| one.id != fleet_unban.id || one.scope != fleet_unban.scope);
        self.count -= before - of_address.len();
        if of_address.is_empty() {
            self.known.remove(&fleet_unban.address);
        }
        let maker: Arc<str> = fleet_unban.id.maker().into();
        if let Some(of_maker) = self.by_maker.get_mut(&maker) {
            self.by_size.remove(&(of_maker.len(), Arc::clone(&maker)));
            of_maker.remove(&(
                fleet_unban.id.created_at(),
                fleet_unban.address,
                fleet_unban.scope.clone(),
            ));
            if of_maker.is_empty() {
                self.by_maker.remove(&maker);
            } else {
                self.by_size.insert((of_maker.len(), maker));
            }
        }
    }

    /// Learns a tombstone that a snapshot repeats. At the limit of an address the newest are kept, so that all hosts
    /// keep the same set in whatever order messages arrive. With another set, claims would be void.
    pub(super) fn learn_repeated(
        &mut self,
        fleet_unban: &FleetUnban,
        now: i64,
        timing: &Timing,
    ) -> Vec<Record> {
        let of_address = self
            .known
            .get(&fleet_unban.address)
            .filter(|of_address| of_address.len() >= MAX_PER_ADDRESS);
        let rank = (fleet_unban.id.created_at(), &fleet_unban.id, &fleet_unban.scope);
        if of_address
            .and_then(|of_address| of_address.iter().map(Tombstone::rank).min())
            .is_some_and(|oldest| rank < oldest)
        {
            return Vec::new();
        }
        self.learn(fleet_unban, now, timing)
    }

    /// Learns a tombstone and returns the records to persist: none if it is known, too old, or from the future. `now`
    /// is in milliseconds.
    pub(super) fn learn(
        &mut self,
        fleet_unban: &FleetUnban,
        now: i64,
        timing: &Timing,
    ) -> Vec<Record> {
        let age = now.saturating_sub(fleet_unban.id.created_at());
        if self.knows(fleet_unban) || age > timing.tombstone_ttl * 1000 || age < -HORIZON {
            return Vec::new();
        }
        let mut records = Vec::new();
        while let Some(victim) = self.victim(fleet_unban) {
            self.remove(&victim);
            records.push(Record::Tombstone(victim, None));
        }
        self.arrivals += 1;
        self.insert(fleet_unban.clone(), false);
        records.push(Record::Tombstone(fleet_unban.clone(), Some(false)));
        records
    }

    /// The tombstone to drop for a new one, if a limit is reached (R21).
    fn victim(&self, fleet_unban: &FleetUnban) -> Option<FleetUnban> {
        let of_address = self
            .known
            .get(&fleet_unban.address)
            .filter(|of_address| of_address.len() >= MAX_PER_ADDRESS);
        if let Some(oldest) =
            of_address.and_then(|of_address| of_address.iter().min_by_key(|one| one.rank()))
        {
            return Some(oldest.fleet_unban(fleet_unban.address));
        }
        let of_maker = self.by_maker.get(fleet_unban.id.maker()).map_or(0, BTreeSet::len);
        let maker = if of_maker >= MAX_PER_MAKER {
            fleet_unban.id.maker()
        } else if self.count >= MAX_TOMBSTONES {
            &self.by_size.last()?.1
        } else {
            return None;
        };
        let (made, address, scope) = self.by_maker.get(maker)?.first()?;
        let of_address = self.known.get(address)?;
        let oldest = of_address.iter().find(|one| {
            one.id.created_at() == *made && one.scope == *scope && one.id.maker() == maker
        });
        oldest.map(|one| one.fleet_unban(*address))
    }

    /// The limit that the table has reached, if any, and the maker with the most tombstones.
    pub(super) fn limit(&self) -> Option<(usize, &str)> {
        let (size, maker) = self.by_size.last()?;
        if self.count >= MAX_TOMBSTONES {
            Some((MAX_TOMBSTONES, maker))
        } else {
            (*size >= MAX_PER_MAKER).then_some((MAX_PER_MAKER, maker))
        }
    }

    /// Whether a claim is void: it does not carry every known tombstone of its address (R17).
    pub(super) fn voids(&self, key: &BanKey, claim: &Claim, timing: &Timing) -> bool {
        let start = claim.ban.map_or(i64::MIN, |ban| ban.start);
        !claim.is_legacy()
            && self
                .of_key(key)
                .any(|one| !claim.carries(&one.id) && !one.is_outlived_by(start, timing))
    }

    /// The ids that this host repeats in ban events of an address: those that it has applied (R16).
    pub(super) fn ids_of(&self, key: &BanKey) -> Vec<UnbanId> {
        let applied =
            self.of_key(key).filter(|one| one.applied && !one.pending_jails.contains(&key.0));
        applied.map(|one| one.id.clone()).collect()
    }

    pub(super) fn knows(&self, fleet_unban: &FleetUnban) -> bool {
        let of_address = self.known.get(&fleet_unban.address);
        of_address
            .into_iter()
            .flatten()
            .any(|one| one.id == fleet_unban.id && one.scope == fleet_unban.scope)
    }

    /// The tombstones that this host repeats in its snapshot (R16).
    pub(super) fn applied(&self) -> impl Iterator<Item = FleetUnban> {
        self.known.iter().flat_map(|(address, of_address)| {
            of_address.iter().filter(|one| one.applied).map(|one| one.fleet_unban(*address))
        })
    }

    /// Whether an address waits for its unban.
    pub(super) fn has_unapplied(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next addresses to unban, at most `max`, in turns between makers (R22). They are in flight until
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

    /// Whether an address has an unapplied tombstone in a jail that bans it since `start`, in seconds since 1970, if
    /// known.
    pub(super) fn is_due(&self, key: &BanKey, start: Option<i64>, timing: &Timing) -> bool {
        let of_address = self.known.get(&key.1).into_iter().flatten();
        let mut due = of_address.filter(|one| one.is_due_in(&key.0));
        due.any(|one| start.is_none_or(|start| !one.is_outlived_by(start, timing)))
    }

    /// An address was unbanned in a jail, or was not banned there.
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

    /// Ends the batch in flight. A tombstone is applied if neither one of `jails` nor a jail that fail2ban has yet to
    /// create needs it. Other tombstones wait for [`retry_deferred`](Self::retry_deferred).
    pub(super) fn settle(
        &mut self,
        jails: &BTreeSet<Jail>,
        expected: impl Fn(Address, &JailScope) -> bool,
    ) -> Vec<(Address, Record)> {
        let mut settled = Vec::new();
        for address in std::mem::take(&mut self.in_flight) {
            let mut deferred = false;
            for one in self.known.get_mut(&address).into_iter().flatten() {
                // A jail that the tombstone waits for may be missing again.
                let due =
                    jails.iter().any(|jail| one.is_due_in(jail)) || !one.pending_jails.is_empty();
                if due || !one.applied && expected(address, &one.scope) {
                    deferred = true;
                } else if !one.applied {
                    one.applied = true;
                    one.applied_jails.clear();
                    settled
                        .push((address, Record::Tombstone(one.fleet_unban(address), Some(true))));
                }
            }
            if deferred {
                self.deferred.push(address);
            }
        }
        settled
    }

    /// Queues an address again.
    fn requeue(&mut self, address: Address) {
        if let Some(one) = self.known.get(&address).and_then(|of_address| of_address.last()) {
            self.waiting.entry(one.id.maker().into()).or_default().push_back(address);
        }
    }

    /// The batch in flight did not reach fail2ban.
    pub(super) fn retry(&mut self) {
        for address in std::mem::take(&mut self.in_flight) {
            self.requeue(address);
        }
    }

    /// Queues the deferred addresses again: fail2ban may have created the jails that they wait for, or restored their
    /// bans.
    pub(super) fn retry_deferred(&mut self) {
        for address in std::mem::take(&mut self.deferred) {
            self.requeue(address);
        }
    }

    /// Whether a batch is in flight.
    pub(super) fn is_applying(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// The last arrival up to which every tombstone is applied.
    pub(super) fn applied_watermark(&self) -> u64 {
        let waits = self.known.values().flatten().filter(|one| !one.applied);
        waits.map(|one| one.arrival.saturating_sub(1)).min().unwrap_or(self.arrivals)
    }

    /// Queues the tombstones with a later arrival than `after`, because this jail was missing when they were applied,
    /// and may restore bans that they release.
    pub(super) fn on_jail_added(&mut self, jail: &Jail, after: u64) {
        for (address, of_address) in &mut self.known {
            for one in of_address {
                if one.applied && one.arrival > after && one.scope.covers(jail) {
                    one.pending_jails.insert(jail.clone());
                    self.waiting.entry(one.id.maker().into()).or_default().push_back(*address);
                }
            }
        }
    }

    /// Drops some tombstones that no ban needs. Returns their records, and whether more remain to be checked; after the
    /// end of the table the next call starts over. A tombstone is kept 30 days, longer while a claim lacks the
    /// tombstone, and only an hour if no host bans the address (R17). `idle`: this host has been connected for that
    /// hour, and so knows the snapshots.
    pub(super) fn gc(
        &mut self,
        now: i64,
        idle: bool,
        timing: &Timing,
        usage: impl Fn(Address, &JailScope, &UnbanId) -> Usage,
    ) -> (Vec<(Address, Record)>, bool) {
        let begin = self.collected.take().map_or(Unbounded, Excluded);
        let mut gone = Vec::new();
        let mut last = None;
        for (address, of_address) in self.known.range((begin, Unbounded)).take(GC_STEP) {
            last = Some(*address);
            for one in of_address {
                let age = now.saturating_sub(one.id.created_at());
                let old = age > timing.tombstone_ttl * 1000;
                let done = one.applied && one.pending_jails.is_empty();
                let unused = idle && done && age > timing.tombstone_idle * 1000;
                if !old && !unused {
                    continue;
                }
                let drop = match usage(*address, &one.scope, &one.id) {
                    Usage::Missing => false,
                    Usage::Referenced => old,
                    Usage::Unused => true,
                };
                if drop {
                    gone.push(one.fleet_unban(*address));
                }
            }
        }
        self.collected = last;
        let records = gone.into_iter().map(|fleet_unban| {
            self.remove(&fleet_unban);
            (fleet_unban.address, Record::Tombstone(fleet_unban, None))
        });
        (records.collect(), last.is_some())
    }

    fn of_key(&self, key: &BanKey) -> impl Iterator<Item = &Tombstone> {
        let of_address = self.known.get(&key.1).into_iter().flatten();
        of_address.filter(|one| one.scope.covers(&key.0))
    }
}

#[cfg(test)]
mod tests;
