//! What may happen in a world: attacks, operators, faults.

use f2bmqtt::fleet::claims::ClaimState;
use f2bmqtt::wire::{Action, Address, Event, HostName as Name, Reason, UnbanId};

use super::{Origin, World};
use crate::fail2ban::Fail2ban;
use crate::host::{jail, key};

impl World {
    /// Something happens.
    pub(super) fn happen(&mut self) {
        const HAPPENINGS: [(&str, i64); 17] = [
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
        let sum = HAPPENINGS.iter().map(|(_, weight)| weight).sum::<i64>();
        let mut left = self.chance.within(0, sum - 1);
        let (what, _) = HAPPENINGS
            .iter()
            .find(|(_, weight)| {
                left -= weight;
                left < 0
            })
            .unwrap();
        let n = self.chance.index(self.hosts.len());
        let address = *self.chance.pick(&self.addresses);
        let name = self.hosts[n].name.clone();
        self.say(format_args!("{what} {name} {address}"));
        match *what {
            "detect" => self.detect(n, address),
            "lift" => self.lift(n, &[address], |fail2ban| fail2ban.unbanip(address)),
            "unban all" => {
                let all = self.addresses.clone();
                self.lift(n, &all, Fail2ban::unban_all);
            }
            "manual" => self.ban_by_hand(n, address),
            "fleet" => self.fleet_unban(n, address),
            // What a full disk kept out of the database a restart forgets: documented.
            "stop" | "database lost" if self.was_full(n) => {}
            "stop" | "database lost" => {
                self.hosts[n].fail2ban.stop();
                if *what == "database lost" {
                    self.hosts[n].fail2ban.lost = true;
                    // Whether the daemon saw a lift before its trace was lost, nobody knows.
                    for address in self.addresses.clone() {
                        self.doubt(n, address);
                    }
                }
                let away = self.now + self.chance.within(2, 15);
                self.fail2ban_away.insert(n, away);
            }
            "restart jail" => {
                // What a full disk kept out of the database a restart forgets: documented.
                if self.hosts[n].fail2ban.up && !self.was_full(n) {
                    self.hosts[n].fail2ban.restart_jail(&mut self.chance);
                }
            }
            "jail removed" if self.hosts[n].fail2ban.up && !self.was_full(n) => self.remove_jail(n),
            "jail removed" => {}
            "kill" => {
                if !self.hosts[n].unsaved {
                    self.hosts[n].kill(&mut self.broker);
                    self.attacker.forgets(&name);
                }
            }
            "cut" => {
                let away = self.now + self.chance.within(3, 60);
                self.links_away.insert(n, away);
            }
            "broker" => {
                self.broker_away = self.now + self.chance.within(2, 10);
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

    /// A jail is removed for a while.
    fn remove_jail(&mut self, n: usize) {
        self.hosts[n].fail2ban.remove_jail();
        let away = self.now + self.chance.within(2, 40);
        self.fail2ban_away.insert(n, away);
        self.returned.insert(n);
        // What it bans may end meanwhile, and with it the others' lifts: documented.
        let of = |(_, (origin, ..)): &(usize, Origin)| *origin == n;
        let unsure: Vec<_> = self.lifted.extract_if(.., of).collect();
        self.perhaps_lifted.extend(unsure);
    }

    /// Whether a host's disk was full a moment ago.
    fn was_full(&self, n: usize) -> bool {
        self.full.get(&n).is_some_and(|until| until + 10 > self.now)
    }

    fn detect(&mut self, n: usize, address: Address) {
        let fail2ban = &mut self.hosts[n].fail2ban;
        let before = fail2ban.tickets.get(&address).map(|ticket| ticket.time);
        fail2ban.detect(address, &mut self.chance);
        let after = fail2ban.tickets.get(&address).map(|ticket| ticket.time);
        if before != after {
            self.doubt(n, address);
        }
    }

    /// A lift and a new ban between two looks are like nothing: documented.
    fn doubt(&mut self, n: usize, address: Address) {
        let lifted = |(host, (_, lifted, _)): &(usize, Origin)| *host == n && *lifted == address;
        let unsure: Vec<_> = self.lifted.extract_if(.., |lift| lifted(lift)).collect();
        self.perhaps_lifted.extend(unsure);
    }

    /// An operator lifts bans. It counts for sure where this host had seen what it lifts.
    fn lift(&mut self, n: usize, addresses: &[Address], how: impl FnOnce(&mut Fail2ban)) {
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
                let Some(start) = self.hosts[other].fail2ban.own().get(&address).copied() else {
                    continue;
                };
                let lift = (n, (other, address, start));
                // A fleet unban that comes a moment after a lift hides it: documented.
                let freed = self.freed.get(&address).is_some_and(|at| at + 60 > self.now);
                if !freed
                    && !self.returned.contains(&other)
                    && self.is_seen_through(n, other, address, start)
                {
                    self.lifted.insert(lift);
                } else {
                    self.perhaps_lifted.insert(lift);
                }
            }
        }
        how(&mut self.hosts[n].fail2ban);
    }

    /// Whether a host holds an import of another's ban, and knows so.
    fn is_seen_through(&self, n: usize, other: usize, address: Address, start: i64) -> bool {
        let host = &self.hosts[n];
        let fail2ban = &host.fail2ban;
        let (Some(ticket), Some(row)) =
            (fail2ban.tickets.get(&address), fail2ban.rows.get(&address))
        else {
            return false;
        };
        if ticket.failures > 0
            || host.is_manual(address)
            || fail2ban.pending.iter().any(|p| p.1 == address)
        {
            return false;
        }
        let origin = Name::new(&self.hosts[other].name).unwrap();
        let mark = match &host.fleet {
            Some(fleet) => fleet.import(&key(address)).cloned(),
            None => host.disk.imports.get(&key(address)).cloned(),
        };
        let Some(mark) = mark.filter(|mark| mark.is_applied() && mark.row_seen) else {
            return false;
        };
        let claimed =
            mark.sources.iter().any(|claim| claim.host == origin && claim.ban.start == start);
        match &host.fleet {
            Some(fleet) => {
                claimed
                    && matches!(fleet.claim_state(&key(address), &origin), ClaimState::Held(_, ban) if ban.start == start)
            }
            // Its row must not be purged before somebody looks.
            None => {
                claimed && row.bantime >= 0 && row.timeofban + row.bantime > fail2ban.clock() - 15
            }
        }
    }

    fn ban_by_hand(&mut self, n: usize, address: Address) {
        // What a full disk kept out of the database looks like what was detected before: documented.
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
        let marked = match &host.fleet {
            Some(fleet) => fleet.import(&key(address)).is_some(),
            None => host.disk.imports.contains_key(&key(address)),
        };
        host.fail2ban.banip(address, &mut self.chance);
        host.manual.insert(address, host.fail2ban.clock());
        // Lifted and banned between two looks: documented.
        if marked {
            host.muddled.insert(address);
            self.doubt(n, address);
        } else {
            host.muddled.remove(&address);
        }
    }

    /// `f2bmqtt unban`, which waits until its own daemon has heard.
    fn fleet_unban(&mut self, n: usize, address: Address) {
        if !self.hosts[n].connected || self.hosts[n].fleet.is_none() {
            return;
        }
        for (other, host) in self.hosts.iter_mut().enumerate() {
            if let Some(start) = host.fail2ban.own().get(&address) {
                self.unbanned.insert((other, address, *start));
            }
            host.manual.remove(&address);
        }
        self.scripts_heard.retain(|(_, heard), _| *heard != address);
        let host = Name::new(&self.hosts[n].name).unwrap();
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
        self.unbanner = Some(n);
        self.freed.insert(address, self.now);
        let payload = self.hosts[n].signs("unban", event.encode());
        self.broker.publish(self.now, "unban", &payload, false);
        let heard = self.hosts[n].hear(("unban".to_owned(), payload));
        assert_eq!(heard, Ok(()));
    }

    /// An old message of a daemon comes back from somewhere: a backup, a bridge.
    pub(super) fn replay(&mut self, kind: &str) {
        let old = self.broker.seen.iter().map(|(_, message)| message);
        let old =
            old.filter(|(topic, payload)| topic.starts_with(kind) && payload.contains("stamp"));
        // Forged again would be another attack.
        let old: Vec<_> = old.filter(|old| !self.attacker.forged.contains(*old)).cloned().collect();
        if !old.is_empty() {
            let (topic, payload) = self.chance.pick(&old).clone();
            self.broker.publish(self.now, &topic, &payload, topic.starts_with("state/"));
        }
    }
}
