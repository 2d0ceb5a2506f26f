//! The random events of a world: attacks, operators' commands, faults.

use f2bmqtt::fleet::claims::ClaimState;
use f2bmqtt::model::{Address, HostName, UnbanId};
use f2bmqtt::wire::{Action, Event, Reason};

use super::World;
use crate::fail2ban::Fail2ban;
use crate::host::{jail, key};

impl World {
    /// Makes one random event happen.
    pub(super) fn inject_event(&mut self) {
        const EVENT_WEIGHTS: [(&str, i64); 17] = [
            ("detect", 120),
            ("lift", 30),
            ("manual", 10),
            ("fleet", 20),
            ("stop", 20),
            ("database lost", 5),
            ("unban all", 4),
            ("restart jail", 7),
            ("jail removed", 5),
            ("kill", 25),
            ("cut", 20),
            ("broker", 6),
            ("retained lost", 6),
            ("queue lost", 10),
            ("script detects", 20),
            ("full", 6),
            ("replay", 5),
        ];
        let sum = EVENT_WEIGHTS.iter().map(|(_, weight)| weight).sum::<i64>();
        let mut left = self.chance.within(0, sum - 1);
        let (what, _) = EVENT_WEIGHTS
            .iter()
            .find(|(_, weight)| {
                left -= weight;
                left < 0
            })
            .unwrap();
        let n = self.chance.index(self.hosts.len());
        let address = *self.chance.pick(&self.addresses);
        let name = self.hosts[n].name.clone();
        self.log_line(format_args!("{what} {name} {address}"));
        match *what {
            "detect" => self.detect(n, address),
            "lift" => self.lift(n, &[address], |fail2ban| fail2ban.unbanip(address)),
            "unban all" => {
                let all = self.addresses.clone();
                self.lift(n, &all, Fail2ban::unban_all);
            }
            "manual" => self.ban_by_hand(n, address),
            "fleet" => self.fleet_unban(n, address),
            // fail2ban loses bans at a restart that a full disk kept out of its database: a documented limit.
            "stop" | "database lost" if self.was_full(n) => {}
            "stop" | "database lost" => {
                self.hosts[n].fail2ban.stop();
                if *what == "database lost" {
                    self.hosts[n].fail2ban.database_lost = true;
                    // The daemon may or may not have observed a lift before its trace was lost.
                    for address in self.addresses.clone() {
                        self.mark_uncertain(n, address);
                    }
                }
                let away = self.now + self.chance.within(2, 15);
                self.fail2ban_down_until.insert(n, away);
            }
            "restart jail" => {
                // fail2ban loses bans at a restart that a full disk kept out of its database: a documented limit.
                if self.hosts[n].fail2ban.up && !self.was_full(n) {
                    self.hosts[n].fail2ban.restart_jail(&mut self.chance);
                }
            }
            "jail removed" if self.hosts[n].fail2ban.up && !self.was_full(n) => self.remove_jail(n),
            "jail removed" => {}
            "kill" => {
                if !self.hosts[n].has_unpersisted {
                    self.hosts[n].kill(&mut self.broker);
                    self.attacker.forget_deliveries(&name);
                }
            }
            "cut" => {
                let away = self.now + self.chance.within(3, 60);
                self.links_down_until.insert(n, away);
            }
            "broker" => {
                self.broker_down_until = self.now + self.chance.within(2, 10);
                let with_data = self.chance.often(500);
                self.broker.restart(with_data);
                for host in &mut self.hosts {
                    host.cut(&mut self.broker);
                }
            }
            "retained lost" => self.broker.lose_retained(),
            "queue lost" => {
                let name = self.hosts[n].name.clone();
                self.broker.lose_queue(&name);
            }
            "script detects" => {
                if let Some(script) = &mut self.script {
                    script.detect(address, &mut self.chance);
                }
            }
            "full" => {
                let until = self.now + self.chance.within(3, 20);
                self.full.insert(n, until);
            }
            _ => self.replay("state/"),
        }
    }

    /// Removes a jail for up to 40 seconds.
    fn remove_jail(&mut self, n: usize) {
        self.hosts[n].fail2ban.remove_jail();
        let away = self.now + self.chance.within(2, 40);
        self.fail2ban_down_until.insert(n, away);
        self.returned.insert(n);
        // Its bans may end meanwhile, and with them the peers' overrides: a documented limit.
        let uncertain: Vec<_> =
            self.lifted.extract_if(.., |(_, (origin, ..))| *origin == n).collect();
        self.maybe_lifted.extend(uncertain);
    }

    /// Whether a host's disk was full within the last ten seconds.
    fn was_full(&self, n: usize) -> bool {
        self.full.get(&n).is_some_and(|until| until + 10 > self.now)
    }

    fn detect(&mut self, n: usize, address: Address) {
        let fail2ban = &mut self.hosts[n].fail2ban;
        let before = fail2ban.tickets.get(&address).map(|ticket| ticket.time);
        fail2ban.detect(address, &mut self.chance);
        let after = fail2ban.tickets.get(&address).map(|ticket| ticket.time);
        if before != after {
            self.mark_uncertain(n, address);
        }
    }

    /// A host's lifts of an address may not count: the daemon cannot see a lift and a new ban between two observations,
    /// which is a documented limit.
    fn mark_uncertain(&mut self, n: usize, address: Address) {
        let uncertain: Vec<_> = self
            .lifted
            .extract_if(.., |(host, (_, lifted, _))| *host == n && *lifted == address)
            .collect();
        self.maybe_lifted.extend(uncertain);
    }

    /// An operator lifts bans. A lift certainly counts if the daemon had observed the import.
    fn lift(&mut self, n: usize, addresses: &[Address], unban: impl FnOnce(&mut Fail2ban)) {
        if !self.hosts[n].fail2ban.up {
            return;
        }
        for &address in addresses {
            let host = &self.hosts[n];
            let fail2ban = &host.fail2ban;
            if !fail2ban.tickets.contains_key(&address) && !fail2ban.rows.contains_key(&address) {
                continue;
            }
            for other in (0..self.hosts.len()).filter(|other| *other != n) {
                let Some(start) = self.hosts[other].fail2ban.local_bans().get(&address).copied()
                else {
                    continue;
                };
                let lift = (n, (other, address, start));
                // A fleet unban a moment after a lift hides the lift: a documented limit.
                let freed = self.freed.get(&address).is_some_and(|at| at + 60 > self.now);
                if !freed
                    && !self.returned.contains(&other)
                    && self.is_known_import(n, other, address, start)
                {
                    self.lifted.insert(lift);
                } else {
                    self.maybe_lifted.insert(lift);
                }
            }
        }
        unban(&mut self.hosts[n].fail2ban);
    }

    /// Whether a host holds an import of another's ban, and its daemon has observed the import.
    fn is_known_import(&self, n: usize, other: usize, address: Address, start: i64) -> bool {
        let host = &self.hosts[n];
        let fail2ban = &host.fail2ban;
        let (Some(ticket), Some(row)) =
            (fail2ban.tickets.get(&address), fail2ban.rows.get(&address))
        else {
            return false;
        };
        if ticket.failures > 0
            || host.is_manual(address)
            || fail2ban.pending.iter().any(|(_, pending, _)| *pending == address)
        {
            return false;
        }
        let origin = HostName::new(&self.hosts[other].name).unwrap();
        let import = match &host.fleet {
            Some(fleet) => fleet.import(&key(address)).cloned(),
            None => host.disk.imports.get(&key(address)).cloned(),
        };
        let Some(import) = import.filter(|import| import.is_applied() && import.row_seen) else {
            return false;
        };
        let claimed =
            import.sources.iter().any(|claim| claim.host == origin && claim.ban.start == start);
        match &host.fleet {
            Some(fleet) => {
                claimed
                    && matches!(fleet.claim_state(&key(address), &origin), ClaimState::Held(_, ban) if ban.start == start)
            }
            // fail2ban must not purge the row before the next daemon observes it.
            None => {
                claimed && row.bantime >= 0 && row.timeofban + row.bantime > fail2ban.clock() - 15
            }
        }
    }

    fn ban_by_hand(&mut self, n: usize, address: Address) {
        // A manual ban that a full disk kept out of the database looks like an earlier detection: a documented limit.
        if self.was_full(n) {
            return;
        }
        let host = &mut self.hosts[n];
        if !host.fail2ban.up
            || host.fail2ban.tickets.contains_key(&address)
            || host.fail2ban.restore.contains(&address)
        {
            return;
        }
        let has_import = match &host.fleet {
            Some(fleet) => fleet.import(&key(address)).is_some(),
            None => host.disk.imports.contains_key(&key(address)),
        };
        host.fail2ban.banip(address, &mut self.chance);
        host.manual.insert(address, host.fail2ban.clock());
        // A lift and a ban between two observations: a documented limit.
        if has_import {
            host.manual_after_lift.insert(address);
            self.mark_uncertain(n, address);
        } else {
            host.manual_after_lift.remove(&address);
        }
    }

    /// `f2bmqtt unban`, which waits for the local daemon's confirmation.
    fn fleet_unban(&mut self, n: usize, address: Address) {
        if !self.hosts[n].connected || self.hosts[n].fleet.is_none() {
            return;
        }
        for (other, host) in self.hosts.iter_mut().enumerate() {
            if let Some(start) = host.fail2ban.local_bans().get(&address) {
                self.unbanned.insert((other, address, *start));
            }
            host.manual.remove(&address);
        }
        self.script_bans_seen.retain(|(_, banned), _| *banned != address);
        let host = HostName::new(&self.hosts[n].name).unwrap();
        let millis = self.hosts[n].fail2ban.clock() * 1000 + self.now % 1000;
        let event = Event {
            action: Action::Unban,
            jail: jail(),
            address,
            bantime: 0,
            id: Some(UnbanId::made_by(&host, millis)),
            host,
            restored: 0,
            failures: 0,
            time: 0,
            stamp: millis,
            reason: Some(Reason::Fleet),
            all_jails: self.chance.often(500),
            unbans: Vec::new(),
        };
        self.last_unbanner = Some(n);
        self.freed.insert(address, self.now);
        let payload = self.hosts[n].sign_message("unban", event.encode());
        self.broker.publish(self.now, "unban", &payload, false);
        let result = self.hosts[n].deliver(("unban".to_owned(), payload));
        assert_eq!(result, Ok(()));
    }

    /// Publishes an old message of a daemon again, as a backup or a bridge could.
    pub(super) fn replay(&mut self, kind: &str) {
        let old = self.broker.seen.iter().map(|(_, message)| message);
        let old =
            old.filter(|(topic, payload)| topic.starts_with(kind) && payload.contains("stamp"));
        // A forged message again would be another attack.
        let old: Vec<_> = old.filter(|old| !self.attacker.forged.contains(*old)).cloned().collect();
        if !old.is_empty() {
            let (topic, payload) = self.chance.pick(&old).clone();
            self.broker.publish(self.now, &topic, &payload, topic.starts_with("state/"));
        }
    }
}
