//! What a fleet unban does on this host: it is learned, applied in fail2ban, and dropped when no ban needs it any
//! more. [`Tombstones`](super::tombstones::Tombstones) keeps them.

use std::collections::BTreeSet;

use super::claims::Said;
use super::lifts::Override;
use super::limits::BoundedTable;
use super::look::JailState;
use super::tombstones::Usage;
use super::work::Pending;
use super::{BanKey, Controller, Record, secs};
use crate::wire::{Address, FleetUnban, Jail, JailScope, UnbanId};

/// How many addresses of fleet unbans are worked off at once, before it is the turn of bans.
const TOMBSTONES: usize = 100;

impl Controller {
    /// A fleet unban is known from now on: scripts cannot carry it, so their claims end with it.
    pub(super) fn take_tombstone(&mut self, pardon: &FleetUnban, changes: Vec<Record>, now: i64) {
        if changes.is_empty() {
            return;
        }
        for change in changes {
            if let Record::Unban(gone, None) = &change {
                self.snapshots.touch_unban(gone.address, now);
            }
            self.change(change);
        }
        if let Some((max, maker)) = self.tombstones.limit() {
            self.limits.reached(BoundedTable::Tombstones, max, Some(maker), now);
        }
        let here = |(jail, local): &(&Jail, &JailState)| {
            pardon.scope.covers(jail) && local.cases.contains_key(&pardon.address)
        };
        let jails = self.jails.iter().filter(here).map(|(jail, _)| jail.clone());
        for jail in jails.collect::<Vec<_>>() {
            let key = (jail, pardon.address);
            self.remove_claims(&key, Said::is_script);
            self.suppress_future_claims(&key, now);
        }
    }

    /// A fleet unban does not void a ban that began an hour after it. One that is known already and begins in
    /// the future is meant all the same: it is lifted here, as an operator would.
    fn suppress_future_claims(&mut self, key: &BanKey, now: i64) {
        let case = self.jails.get(&key.0).and_then(|local| local.cases.get(&key.1));
        let latest = secs(now).saturating_add(self.pace.tombstone_idle);
        let future =
            |said: &&Said| !said.is_script() && said.ban.is_some_and(|ban| ban.start > latest);
        let claims: Vec<Said> =
            case.into_iter().flat_map(|case| &case.said).filter(future).cloned().collect();
        for Said { host, stamp, ban, .. } in claims {
            let Some(ban) = ban else { continue };
            let change = self.lifts.lift(key, &host, Override { start: ban.start, stamp });
            self.change(change);
        }
    }

    /// Drops fleet unbans that are no longer needed, some at a time.
    pub(super) fn collect_tombstones(&mut self, now: i64) {
        if !self.collecting {
            return;
        }
        let idle = self.pace.tombstone_idle * 1000;
        let connected = self.connected_since.is_some_and(|since| now.saturating_sub(since) >= idle);
        let (jails, pace) = (&self.jails, &self.pace);
        let usage = |address: Address, scope: &JailScope, id: &UnbanId| {
            let of = jails.iter().filter(|(jail, _)| scope.covers(jail));
            of.map(|(_, local)| local.usage(address, id, pace)).max().unwrap_or(Usage::Unused)
        };
        let (gone, more) = self.tombstones.gc(now, connected, pace, usage);
        self.collecting = more;
        for (address, change) in gone {
            self.snapshots.touch_unban(address, now);
            self.change(change);
        }
    }

    /// The next fleet unbans are applied: fail2ban is told where there may be something to free.
    pub(super) fn apply_tombstones(&mut self, names: &BTreeSet<Jail>, now: i64) {
        let batch = self.tombstones.next_batch(TOMBSTONES);
        for jail in names {
            let mut addresses = Vec::new();
            for &address in &batch {
                let key = (jail.clone(), address);
                // What fail2ban is about to restore it would restore all the same: that is freed once it is back.
                let comes_back = self.jails.get(jail).is_none_or(|local| {
                    local.shown.is_none()
                        || local.cases.get(&address).is_some_and(|case| case.restoring)
                });
                if comes_back || !self.tombstones.is_due(&key, None, &self.pace) {
                    continue;
                }
                let start = self.start_of_newer_ban(&key, now);
                if self.tombstones.is_due(&key, start, &self.pace) && self.may_be_held(&key, now) {
                    addresses.push(address);
                } else {
                    self.tombstones.mark_applied(&key);
                }
            }
            if !addresses.is_empty() {
                self.orders.push_back(Pending::Obey(jail.clone(), addresses));
            }
        }
    }

    /// When the ban of an address began that is this host's own, or whose claims count in spite of every fleet
    /// unban that is known; in seconds since 1970.
    fn start_of_newer_ban(&self, key: &BanKey, now: i64) -> Option<i64> {
        let local = self.jails.get(&key.0)?;
        let own = local.own.get(&key.1).map(|own| own.ban.start);
        let told = local.told.get(&key.1).filter(|told| told.echo.is_none());
        let told = told.map(|told| told.ban.start);
        let case = local.cases.get(&key.1);
        let imported = case.filter(|case| case.mark.is_some()).and_then(|case| {
            let claims = self.claimants(key, local, case, secs(now));
            claims.filter_map(|said| said.ban.map(|ban| ban.start)).max()
        });
        own.max(told).max(imported)
    }

    /// Whether fail2ban may ban an address, as far as what it showed last still holds.
    fn may_be_held(&self, key: &BanKey, now: i64) -> bool {
        let (Some(pulse), Some(local)) = (self.pulse, self.jails.get(&key.0)) else { return true };
        local.is_worth_a_look(pulse, now)
            || local.cases.get(&key.1).is_some_and(|case| {
                case.end.is_some() || case.mark.is_some() || case.rowed || case.restoring
            })
            || local.own.contains_key(&key.1)
            || local.told.contains_key(&key.1)
    }

    /// Fleet unbans that fail2ban was told of are applied, but for those that wait for a jail.
    pub(super) fn settle_tombstones(&mut self, names: &BTreeSet<Jail>, now: i64) {
        if !self.tombstones.is_applying() {
            return;
        }
        let (jails, awaited) = (&self.jails, &self.awaited);
        // A ban in a jail that is not there yet comes back with it, and is to be freed then.
        let waits = |address: Address, scope: &JailScope| {
            let owns = |(_, local): &(&Jail, &JailState)| local.own.contains_key(&address);
            let there = |jail: &Jail| names.contains(jail) || !scope.covers(jail);
            let comes = |(_, rows): &(&Jail, &BTreeSet<Address>)| rows.contains(&address);
            awaited.iter().filter(comes).any(|(jail, _)| !there(jail))
                || jails.iter().filter(owns).any(|(jail, _)| !there(jail))
        };
        for (address, change) in self.tombstones.settle(names, waits) {
            self.snapshots.touch_unban(address, now);
            self.change(change);
        }
    }
}
