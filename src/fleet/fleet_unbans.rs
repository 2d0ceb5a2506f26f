//! Applies fleet unbans on this host (R16): learns tombstones, unbans their addresses, and drops tombstones that no ban
//! needs (R17). [`Tombstones`](super::tombstones::Tombstones) keeps them.

use std::collections::BTreeSet;

use super::claims::Claim;
use super::effects::Pending;
use super::limits::BoundedTable;
use super::overrides::Override;
use super::tombstones::Usage;
use super::{BanKey, Controller, Record, to_secs};
use crate::model::Jail;
use crate::wire::FleetUnban;

/// How many addresses of fleet unbans are applied in one turn (R22).
const TOMBSTONE_BATCH: usize = 100;

impl Controller {
    /// Persists a fleet unban that this host just learned, and releases the claims that the unban ends: claims of
    /// legacy peers, whose events cannot carry the unban's id, and claims whose bans begin in the future.
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
        let jails = self.jails.iter().filter(|(jail, jail_state)| {
            fleet_unban.scope.covers(jail) && jail_state.entries.contains_key(&fleet_unban.address)
        });
        let jails: Vec<Jail> = jails.map(|(jail, _)| jail.clone()).collect();
        for jail in jails {
            let key = (jail, fleet_unban.address);
            self.remove_claims(&key, Claim::is_legacy);
            self.suppress_future_claims(&key, now);
        }
    }

    /// Overrides claims whose ban starts more than an hour from now. A fleet unban does not void a ban that started an
    /// hour after it (R17), but it is meant to release a ban that is known already.
    fn suppress_future_claims(&mut self, key: &BanKey, now: i64) {
        let entry = self.jails.get(&key.0).and_then(|jail_state| jail_state.entries.get(&key.1));
        let latest = to_secs(now).saturating_add(self.timing.tombstone_idle);
        let mut future = Vec::new();
        for claim in entry.into_iter().flat_map(|entry| &entry.claims) {
            if let Some(ban) = claim.ban.filter(|ban| !claim.is_legacy() && ban.start > latest) {
                future.push((claim.host.clone(), claim.stamp, ban));
            }
        }
        for (host, stamp, ban) in future {
            let record = self.overrides.suppress(key, &host, Override { start: ban.start, stamp });
            self.persist(record);
        }
    }

    /// Drops some tombstones that no ban needs any more (R17).
    pub(super) fn collect_tombstones(&mut self, now: i64) {
        if !self.collecting {
            return;
        }
        let idle = self.timing.tombstone_idle * 1000;
        let connected = self.connected_since.is_some_and(|since| now.saturating_sub(since) >= idle);
        let (jails, timing) = (&self.jails, &self.timing);
        let (dropped, more) = self.tombstones.gc(now, connected, timing, |address, scope, id| {
            let in_scope = jails.iter().filter(|(jail, _)| scope.covers(jail));
            let usages = in_scope.map(|(_, jail_state)| jail_state.usage(address, id, timing));
            usages.max().unwrap_or(Usage::Unused)
        });
        self.collecting = more;
        for (address, record) in dropped {
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
                // An unban does not stop fail2ban from restoring a ban: wait until the ban is restored.
                let may_be_restored = self.jails.get(jail).is_none_or(|jail_state| {
                    jail_state.last_observation.is_none()
                        || jail_state
                            .entries
                            .get(&address)
                            .is_some_and(|entry| entry.may_be_restored)
                });
                if may_be_restored || !self.tombstones.is_due(&key, None, &self.timing) {
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

    /// The start of the local ban of an address, or of an import whose claims no known tombstone voids; in seconds
    /// since 1970.
    fn start_of_newer_ban(&self, key: &BanKey, now: i64) -> Option<i64> {
        let jail_state = self.jails.get(&key.0)?;
        let own = jail_state.local_bans.get(&key.1).map(|own| own.ban.start);
        let detection = jail_state.pending_detections.get(&key.1);
        let reported = detection.filter(|detection| detection.echo.is_none());
        let pending = reported.map(|detection| detection.ban.start);
        let entry = jail_state.entries.get(&key.1);
        let imported = entry.filter(|entry| entry.import.is_some()).and_then(|entry| {
            let claims = self.active_claims(key, jail_state, entry, to_secs(now));
            claims.filter_map(|claim| claim.ban.map(|ban| ban.start)).max()
        });
        own.max(pending).max(imported)
    }

    /// Whether fail2ban may hold an address: the last observation shows a ban, or may be out of date.
    fn may_be_held(&self, key: &BanKey, now: i64) -> bool {
        let (Some(heartbeat), Some(jail_state)) = (self.heartbeat, self.jails.get(&key.0)) else {
            return true;
        };
        jail_state.needs_observation(heartbeat, now)
            || jail_state.entries.get(&key.1).is_some_and(|entry| {
                entry.held_until.is_some()
                    || entry.import.is_some()
                    || entry.in_database
                    || entry.may_be_restored
            })
            || jail_state.local_bans.contains_key(&key.1)
            || jail_state.pending_detections.contains_key(&key.1)
    }

    /// Marks the tombstones of the finished batch as applied, except those that wait for a jail.
    pub(super) fn settle_tombstones(&mut self, names: &BTreeSet<Jail>, now: i64) {
        if !self.tombstones.is_applying() {
            return;
        }
        let (jails, expected) = (&self.jails, &self.expected_jails);
        // A ban in a missing jail comes back with the jail, and has to be unbanned then.
        let settled = self.tombstones.settle(names, |address, scope| {
            let rows = expected.iter().filter(|(_, rows)| rows.contains(&address));
            let local_bans =
                jails.iter().filter(|(_, state)| state.local_bans.contains_key(&address));
            let mut banning = rows.map(|(jail, _)| jail).chain(local_bans.map(|(jail, _)| jail));
            banning.any(|jail| scope.covers(jail) && !names.contains(jail))
        });
        for (address, record) in settled {
            self.publisher.mark_tombstone_dirty(address, now);
            self.persist(record);
        }
    }
}
