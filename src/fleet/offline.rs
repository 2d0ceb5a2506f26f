//! Which bans count while fail2ban is down or has not created a jail (R7, R8): rows of its database that have not
//! expired count as held, so that a stop, a start or a late jail releases nothing.

use std::collections::BTreeSet;

use super::imports::Import;
use super::jails::{LocalBan, Scan, ServerInstance};
use super::{Controller, Record, local_bans, to_secs};
use crate::model::address_map::AddressMap;
use crate::model::{Address, BipsRow, Jail};

impl Controller {
    /// Whether fail2ban started less than a minute ago, and may still create jails (R7). `now` is in milliseconds.
    #[must_use]
    pub fn is_starting(&self, server: ServerInstance, now: i64) -> bool {
        to_secs(now) < server.started.saturating_add(self.timing.restore_grace)
    }

    /// Returns the jails that fail2ban lacks, but whose rows still count (R7, R8). `these` are the jails that fail2ban
    /// has, `written` those with rows in its database. A missing jail counts for a minute if this host holds bans in
    /// the jail, and during fail2ban's start if the database has rows of the jail. After that time, the jail holds
    /// nothing.
    pub fn classify_missing_jails(
        &mut self,
        these: &BTreeSet<Jail>,
        written: &BTreeSet<Jail>,
        server: ServerInstance,
        now: i64,
    ) -> BTreeSet<Jail> {
        let starting = self.is_starting(server, now);
        self.expected_jails.clear();
        if starting {
            let missing = written.difference(these).map(|jail| (jail.clone(), BTreeSet::new()));
            self.expected_jails.extend(missing);
        }
        let (mut kept, mut gone) = (BTreeSet::new(), Vec::new());
        for (jail, jail_state) in &mut self.jails {
            if these.contains(jail) {
                continue;
            }
            if jail_state.last_observation.is_some() {
                jail_state
                    .missing_since
                    .get_or_insert_with(|| (to_secs(now), self.tombstones.applied_watermark()));
            }
            let lately = jail_state.missing_since.is_some_and(|(since, _)| {
                to_secs(now) < since.saturating_add(self.timing.restore_grace)
            });
            let bans =
                !jail_state.local_bans.is_empty() || !jail_state.pending_detections.is_empty();
            if bans && (starting || lately) {
                kept.insert(jail.clone());
            } else if bans {
                gone.push(jail.clone());
            }
        }
        for jail in &gone {
            self.drop_jail(jail, now);
        }
        kept.extend(self.expected_jails.keys().cloned());
        kept
    }

    /// Ends all bans of a jail that fail2ban does not have any more (R8).
    fn drop_jail(&mut self, jail: &Jail, now: i64) {
        let detected = self
            .jails
            .get(jail)
            .map(|jail_state| jail_state.pending_detections.keys().copied().collect());
        let detected: Vec<Address> = detected.unwrap_or_default();
        for address in detected {
            self.drop_detection(&(jail.clone(), address));
        }
        self.observe_offline_jail(jail, &AddressMap::default(), now);
    }

    /// Applies the rows of a jail that fail2ban lacks, or of any jail while fail2ban is down (R7).
    pub fn observe_offline_jail(&mut self, jail: &Jail, rows: &AddressMap<BipsRow>, now: i64) {
        if let Some(expected) = self.expected_jails.get_mut(jail) {
            let current = rows.iter().filter(|(_, row)| !row.is_over(to_secs(now)));
            *expected = current.map(|(address, _)| address).collect();
        }
        let jail_state = self.jails.entry(jail.clone()).or_default();
        let scope: BTreeSet<Address> = rows
            .addresses()
            .chain(jail_state.local_bans.keys().copied())
            .chain(jail_state.pending_detections.keys().copied())
            .collect();
        let (mut touched, mut written) = (Vec::new(), Vec::new());
        for address in scope {
            // A detection that is known only from an echo counts once an observation had the ban.
            let seen = jail_state.local_bans.contains_key(&address);
            let detection = jail_state
                .pending_detections
                .get(&address)
                .filter(|one| one.echo.is_none() || seen);
            let pending = detection.map(|one| one.ban);
            let row = rows.get(address).copied();
            if pending.is_some_and(|ban| row.is_some_and(|row| row.timeofban >= ban.start)) {
                written.push(address);
            }
            let facts = local_bans::LocalBanFacts {
                row,
                pending,
                away: true,
                now: to_secs(now),
                ..local_bans::LocalBanFacts::default()
            };
            let ban = local_bans::effective_ban(facts);
            let last = jail_state.local_bans.get(&address).copied();
            if ban != last.map(|own| own.ban) {
                touched.push(address);
            }
            match ban {
                Some(ban) => {
                    let (epoch, in_database) = (jail_state.epoch, row.is_some());
                    jail_state
                        .local_bans
                        .insert(address, LocalBan { ban, jail_epoch: epoch, in_database });
                }
                None => drop(jail_state.local_bans.remove(&address)),
            }
        }
        // Note the rows of imports now: fail2ban may be back only for a moment.
        let mut changed = Vec::new();
        for (address, row) in rows.iter() {
            let import =
                jail_state.entries.get_mut(&address).and_then(|entry| entry.import.as_mut());
            if let Some(import) = import.filter(|import| !import.row_seen && import.owns_row(*row))
            {
                import.row_seen = true;
                changed.push(Record::Import((jail.clone(), address), Some(Import::clone(import))));
            }
        }
        for record in changed {
            self.persist(record);
        }
        for address in written {
            self.drop_detection(&(jail.clone(), address));
        }
        for address in touched {
            self.publisher.mark_dirty(address, now);
        }
    }

    /// Records that all jails except `these` have no rows.
    pub fn clear_other_jails<'a>(&mut self, these: impl Iterator<Item = &'a Jail>, now: i64) {
        let these: BTreeSet<&Jail> = these.collect();
        let others = self.jails.keys().filter(|jail| !these.contains(jail)).cloned();
        for jail in others.collect::<Vec<_>>() {
            self.observe_offline_jail(&jail, &AddressMap::default(), now);
        }
    }

    /// Notes that fail2ban is down. `database`: the rows of every jail were passed to
    /// [`observe_offline_jail`](Self::observe_offline_jail), so the snapshot may be published.
    pub fn on_fail2ban_down(&mut self, database: bool) {
        self.pending.clear();
        self.in_flight = None;
        self.tombstones.retry();
        self.heartbeat = None;
        self.jails_to_observe.clear();
        self.scan = Scan::default();
        if database {
            self.observed_stamp = self.scan_stamp;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::effects::Effect;
    use crate::fleet::jails::{Heartbeat, Observation, PendingDetection};
    use crate::fleet::{PersistedState, Timing};
    use crate::model::{HostName, UnbanId};
    use crate::wire::{Action, Ban, Event, Reason};

    const NOW: i64 = 1_000_000_000;

    fn jails(names: &[&str]) -> BTreeSet<Jail> {
        names.iter().map(|name| Jail::new(name).unwrap()).collect()
    }

    fn rows() -> AddressMap<BipsRow> {
        let address = Address::new("192.0.2.1").unwrap();
        std::iter::once((address, BipsRow { timeofban: NOW / 1000, bantime: -1, failures: 3 }))
            .collect()
    }

    #[test]
    fn missing_jail_counts_until_it_is_created_and_for_a_minute_after_it_is_gone() {
        let [sshd, web] = ["sshd", "web"].map(|name| Jail::new(name).unwrap());
        // An observation had the jail; seconds since the start of fail2ban; seconds without the jail -> its rows count.
        let table = [
            (false, 0, 0, true),
            (false, 59, 0, true),
            (false, 60, 0, false),
            (true, 60, 0, true),
            (true, 600, 59, true),
            (true, 600, 60, false),
        ];
        for (shown, age, lacks, counts) in table {
            let host = HostName::new("web1").unwrap();
            let mut fleet = Controller::new(host, Timing::default(), PersistedState::default());
            let server = ServerInstance { pid: 7, started: NOW / 1000 - age };
            let heartbeat = Heartbeat { server, data_version: Some(1) };
            if shown {
                fleet.on_heartbeat(heartbeat, jails(&["sshd", "web"]), NOW);
                let held = rows().iter().map(|(address, _)| (address, Some(-1))).collect();
                let observation =
                    Observation { held, rows: rows(), database: Some(0), ..Observation::default() };
                fleet.on_observation(&sshd, None, observation, NOW);
            } else {
                fleet.observe_offline_jail(&sshd, &rows(), NOW);
            }
            let address = Address::new("192.0.2.2").unwrap();
            let ban = Ban { start: NOW / 1000, bantime: -1 };
            let pending = &mut fleet.jails.get_mut(&sshd).unwrap().pending_detections;
            pending
                .insert(address, PendingDetection { ban, cycle: 0, persisted: true, echo: None });
            let starts = fleet.is_starting(server, NOW);
            let written = if starts { jails(&["sshd", "web"]) } else { jails(&[]) };
            let mut missing = fleet.classify_missing_jails(&jails(&["web"]), &written, server, NOW);
            if lacks > 0 {
                assert!(missing.contains(&sshd));
                missing = fleet.classify_missing_jails(
                    &jails(&["web"]),
                    &written,
                    server,
                    NOW + lacks * 1_000,
                );
            }
            let expected = if counts { jails(&["sshd"]) } else { jails(&[]) };
            assert_eq!(missing, expected, "{shown} {age} {lacks}");
            if counts {
                fleet.observe_offline_jail(&sshd, &rows(), NOW);
            }
            let bans = fleet.jails[&sshd].local_bans.len();
            assert_eq!(bans, if counts { 2 } else { 0 }, "{shown} {age} {lacks}");
            assert!(!missing.contains(&web));
        }
    }

    fn unban(address: Address) -> Event {
        let host = HostName::new("web2").unwrap();
        Event {
            action: Action::Unban,
            jail: Jail::new("web").unwrap(),
            address,
            bantime: 0,
            id: Some(UnbanId::made_by(&host, NOW)),
            host,
            restored: 0,
            failures: 0,
            time: 0,
            stamp: NOW,
            reason: Some(Reason::Fleet),
            all_jails: true,
            unbans: Vec::new(),
        }
    }

    #[test]
    fn fleet_unban_waits_for_a_missing_jail_only_if_that_bans_the_address() {
        let [sshd, web] = ["sshd", "web"].map(|name| Jail::new(name).unwrap());
        for (address, waits) in [("192.0.2.1", true), ("192.0.2.2", false)] {
            let host = HostName::new("web1").unwrap();
            let mut fleet = Controller::new(host, Timing::default(), PersistedState::default());
            let server = ServerInstance { pid: 7, started: NOW / 1000 };
            let heartbeat = Heartbeat { server, data_version: Some(1) };
            for jail in fleet.classify_missing_jails(
                &jails(&["web"]),
                &jails(&["sshd", "web"]),
                server,
                NOW,
            ) {
                assert_eq!(jail, sshd);
                fleet.observe_offline_jail(&jail, &rows(), NOW);
            }
            fleet.start_cycle(NOW);
            fleet.on_heartbeat(heartbeat, jails(&["web"]), NOW);
            fleet.on_observation(
                &web,
                None,
                Observation { database: Some(0), ..Observation::default() },
                NOW,
            );
            let address = Address::new(address).unwrap();
            fleet.apply_event(&unban(address), NOW);
            assert!(matches!(fleet.next_effect(NOW), Effect::Persist(_)));
            fleet.on_persisted(true, NOW);
            assert_eq!(fleet.next_effect(NOW), Effect::ApplyTombstone(web.clone(), vec![address]));
            fleet.on_done(0, NOW);
            let _ = fleet.next_effect(NOW);
            assert_eq!(fleet.tombstones.ids_of(&(sshd.clone(), address)).is_empty(), waits);
        }
    }

    #[test]
    fn jail_that_refuses_calls_does_not_delay_the_snapshot() {
        let [bad, sshd] = ["bad", "sshd"].map(|name| Jail::new(name).unwrap());
        let mut fleet = Controller::new(
            HostName::new("web1").unwrap(),
            Timing::default(),
            PersistedState::default(),
        );
        fleet.on_connected(NOW);
        let server = ServerInstance { pid: 7, started: NOW / 1000 - 600 };
        let mut seen = Vec::new();
        for round in 1..9 {
            let now = NOW + round * 2_000;
            fleet.start_cycle(now);
            fleet.on_heartbeat(
                Heartbeat { server, data_version: Some(round) },
                jails(&["bad", "sshd"]),
                now,
            );
            while let Effect::Observe(jail, None) = fleet.next_effect(now) {
                if jail == bad {
                    fleet.on_failed();
                    fleet.observe_offline_jail(&bad, &rows(), now);
                    fleet.abandon_jail(&bad, true, now);
                    continue;
                }
                assert_eq!(jail, sshd);
                let held = rows().iter().map(|(address, _)| (address, Some(-1))).collect();
                let observation =
                    Observation { held, rows: rows(), database: Some(0), ..Observation::default() };
                fleet.on_observation(&sshd, None, observation, now);
            }
            let shards = fleet.publications(now).into_iter().filter_map(|one| one.content);
            seen.extend(shards.flat_map(|shard| shard.bans).map(|ban| ban.jail.to_string()));
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, ["bad", "sshd"]);
    }

    #[test]
    fn unknown_own_database_publishes_nothing() {
        let mut fleet = Controller::new(
            HostName::new("web1").unwrap(),
            Timing::default(),
            PersistedState::default(),
        );
        fleet.on_connected(NOW);
        for known in [false, true] {
            fleet.start_cycle(NOW + 1_000);
            fleet.on_fail2ban_down(known);
            assert_eq!(fleet.publications(NOW + 10_000).is_empty(), !known);
        }
    }
}
