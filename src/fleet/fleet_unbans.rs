//! Applies fleet unbans on this host (R16): learns tombstones, unbans their addresses, and drops tombstones that no ban
//! needs (R17). [`Tombstones`](super::tombstones::Tombstones) keeps them.

use std::collections::BTreeSet;

use super::claims::Claim;
use super::lifts::Override;
use super::limits::BoundedTable;
use super::look::JailState;
use super::tombstones::Usage;
use super::work::Pending;
use super::{BanKey, Controller, Record, to_secs};
use crate::wire::{Address, FleetUnban, Jail, JailScope, UnbanId};

/// How many addresses of fleet unbans are applied in one turn (R22).
const TOMBSTONE_BATCH: usize = 100;

impl Controller {
    /// A fleet unban is known from now on: scripts cannot carry it, so their claims end with it.
    pub(super) fn take_tombstone(
        &mut self,
        fleet_unban: &FleetUnban,
        records: Vec<Record>,
        now: i64,
    ) {
        if records.is_empty() {
            return;
        }
        for record in records {
            if let Record::Tombstone(gone, None) = &record {
                self.publisher.mark_tombstone_dirty(gone.address, now);
            }
            self.persist(record);
        }
        if let Some((max, maker)) = self.tombstones.limit() {
            self.limits.reached(BoundedTable::Tombstones, max, Some(maker), now);
        }
        let here = |(jail, local): &(&Jail, &JailState)| {
            fleet_unban.scope.covers(jail) && local.entries.contains_key(&fleet_unban.address)
        };
        let jails = self.jails.iter().filter(here).map(|(jail, _)| jail.clone());
        for jail in jails.collect::<Vec<_>>() {
            let key = (jail, fleet_unban.address);
            self.remove_claims(&key, Claim::is_legacy);
            self.suppress_future_claims(&key, now);
        }
    }

    /// A fleet unban does not void a ban that began an hour after it. One that is known already and begins in
    /// the future is meant all the same: it is lifted here, as an operator would.
    fn suppress_future_claims(&mut self, key: &BanKey, now: i64) {
        let entry = self.jails.get(&key.0).and_then(|local| local.entries.get(&key.1));
        let latest = to_secs(now).saturating_add(self.timing.tombstone_idle);
        let future =
            |claim: &&Claim| !claim.is_legacy() && claim.ban.is_some_and(|ban| ban.start > latest);
        let claims: Vec<Claim> =
            entry.into_iter().flat_map(|entry| &entry.claims).filter(future).cloned().collect();
        for Claim { host, stamp, ban, .. } in claims {
            let Some(ban) = ban else { continue };
            let record = self.overrides.suppress(key, &host, Override { start: ban.start, stamp });
            self.persist(record);
        }
    }

    /// Drops fleet unbans that are no longer needed, some at a time.
    pub(super) fn collect_tombstones(&mut self, now: i64) {
        if !self.collecting {
            return;
        }
        let idle = self.timing.tombstone_idle * 1000;
        let connected = self.connected_since.is_some_and(|since| now.saturating_sub(since) >= idle);
        let (jails, timing) = (&self.jails, &self.timing);
        let usage = |address: Address, scope: &JailScope, id: &UnbanId| {
            let of = jails.iter().filter(|(jail, _)| scope.covers(jail));
            of.map(|(_, local)| local.usage(address, id, timing)).max().unwrap_or(Usage::Unused)
        };
        let (gone, more) = self.tombstones.gc(now, connected, timing, usage);
        self.collecting = more;
        for (address, record) in gone {
            self.publisher.mark_tombstone_dirty(address, now);
            self.persist(record);
        }
    }

    /// Applies the next tombstones: fail2ban unbans the addresses that it may hold.
    pub(super) fn apply_tombstones(&mut self, names: &BTreeSet<Jail>, now: i64) {
        let batch = self.tombstones.next_batch(TOMBSTONE_BATCH);
        for jail in names {
            let mut addresses = Vec::new();
            for &address in &batch {
                let key = (jail.clone(), address);
                // What fail2ban is about to restore it would restore all the same: that is freed once it is back.
                let comes_back = self.jails.get(jail).is_none_or(|local| {
                    local.last_observation.is_none()
                        || local.entries.get(&address).is_some_and(|entry| entry.may_be_restored)
                });
                if comes_back || !self.tombstones.is_due(&key, None, &self.timing) {
                    continue;
                }
                let start = self.start_of_newer_ban(&key, now);
                if self.tombstones.is_due(&key, start, &self.timing) && self.may_be_held(&key, now)
                {
                    addresses.push(address);
                } else {
                    self.tombstones.mark_applied(&key);
                }
            }
            if !addresses.is_empty() {
                self.pending.push_back(Pending::ApplyTombstone(jail.clone(), addresses));
            }
        }
    }

    /// When the ban of an address began that is this host's own, or whose claims count in spite of every fleet
    /// unban that is known; in seconds since 1970.
    fn start_of_newer_ban(&self, key: &BanKey, now: i64) -> Option<i64> {
        let local = self.jails.get(&key.0)?;
        let own = local.local_bans.get(&key.1).map(|own| own.ban.start);
        let detection = local.pending_detections.get(&key.1).filter(|one| one.echo.is_none());
        let pending = detection.map(|one| one.ban.start);
        let entry = local.entries.get(&key.1);
        let imported = entry.filter(|entry| entry.import.is_some()).and_then(|entry| {
            let claims = self.active_claims(key, local, entry, to_secs(now));
            claims.filter_map(|claim| claim.ban.map(|ban| ban.start)).max()
        });
        own.max(pending).max(imported)
    }

    /// Whether fail2ban may ban an address, as far as what it showed last still holds.
    fn may_be_held(&self, key: &BanKey, now: i64) -> bool {
        let (Some(heartbeat), Some(local)) = (self.heartbeat, self.jails.get(&key.0)) else {
            return true;
        };
        local.needs_observation(heartbeat, now)
            || local.entries.get(&key.1).is_some_and(|entry| {
                entry.held_until.is_some()
                    || entry.import.is_some()
                    || entry.in_database
                    || entry.may_be_restored
            })
            || local.local_bans.contains_key(&key.1)
            || local.pending_detections.contains_key(&key.1)
    }

    /// Marks the tombstones of the finished batch as applied, except those that wait for a jail.
    pub(super) fn settle_tombstones(&mut self, names: &BTreeSet<Jail>, now: i64) {
        if !self.tombstones.is_applying() {
            return;
        }
        let (jails, expected) = (&self.jails, &self.expected_jails);
        // A ban in a missing jail comes back with the jail, and has to be unbanned then.
        let waits = |address: Address, scope: &JailScope| {
            let owns = |(_, local): &(&Jail, &JailState)| local.local_bans.contains_key(&address);
            let there = |jail: &Jail| names.contains(jail) || !scope.covers(jail);
            let comes = |(_, rows): &(&Jail, &BTreeSet<Address>)| rows.contains(&address);
            expected.iter().filter(comes).any(|(jail, _)| !there(jail))
                || jails.iter().filter(owns).any(|(jail, _)| !there(jail))
        };
        for (address, record) in self.tombstones.settle(names, waits) {
            self.publisher.mark_tombstone_dirty(address, now);
            self.persist(record);
        }
    }
}
