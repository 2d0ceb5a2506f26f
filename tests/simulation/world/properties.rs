//! What must hold in a world once it is quiet.

use f2bmqtt::wire::Address;

use super::World;
use super::attack::Attack;

impl World {
    /// **P1**: every host bans the union, minus what its operator lifted and what was freed for all.
    pub(super) fn check(&mut self) -> Result<(), String> {
        for n in 0..self.hosts.len() {
            if self.hosts[n].gone {
                continue;
            }
            for address in self
                .addresses
                .iter()
                .copied()
                .chain(self.attacker.addresses.iter().copied())
                .collect::<Vec<_>>()
            {
                let (must, may) = self.expected(n, address);
                let ticket = self.hosts[n].fail2ban.tickets.get(&address).copied();
                let (held, name) = (ticket.is_some(), self.hosts[n].name.clone());
                // **P3**: what is imported lasts as long as at its origin, with no gap.
                let by_hand = self.hosts[n].is_manual(address);
                let imported = ticket.filter(|ticket| must && ticket.failures == 0 && !by_hand);
                let began = imported.map_or(0, |ticket| ticket.time);
                let before = self.wrong.insert((n, address, "imported"), began).unwrap_or(0);
                // How far a clock is behind is known by its host's stamps, which an attacker may have spoilt.
                let spoilt = self.attacker.attack == Attack::Open;
                if must
                    && !spoilt
                    && before != 0
                    && ticket.is_none_or(|ticket| ticket.time != before)
                {
                    return Err(self.breaks("P3: a gap in a ban", &name, address));
                }
                if self.is_long(n, address, "missing", must && !held, 8) {
                    return Err(self.breaks("P1: a ban is missing", &name, address));
                }
                if self.is_long(n, address, "extra", held && !may, 8) {
                    let mut origins =
                        self.unbanned.iter().filter(|(_, unbanned, _)| *unbanned == address);
                    let back = origins.any(|(other, _, start)| {
                        self.hosts[*other].fail2ban.own().get(&address) == Some(start)
                    });
                    let rule = if back {
                        "P5: what was freed for all lives"
                    } else {
                        "P1: a ban too many"
                    };
                    return Err(self.breaks(rule, &name, address));
                }
            }
        }
        Ok(())
    }

    fn is_long(
        &mut self,
        n: usize,
        address: Address,
        what: &'static str,
        wrong: bool,
        limit: i64,
    ) -> bool {
        let count = self.wrong.entry((n, address, what)).or_default();
        *count = if wrong { *count + 1 } else { 0 };
        *count > limit
    }

    /// Whether a host must ban an address, and whether it may.
    fn expected(&self, n: usize, address: Address) -> (bool, bool) {
        let (mut must, mut may) = (false, false);
        let open = self.attacker.attack == Attack::Open;
        for (other, host) in self.hosts.iter().enumerate() {
            if host.gone {
                let end = self.left_behind.get(&(other, address)).copied().unwrap_or(i64::MIN);
                may |= end.saturating_add(140) >= self.now;
                continue;
            }
            let Some(start) = host.fail2ban.own().get(&address).copied() else { continue };
            let origin = (other, address, start);
            // What is freed twice in the life of a ban looks like its operator's doing: documented.
            // An attacker can make it look freed, too, where there is no key.
            let twice = self.returned.contains(&other) || open;
            let torn = twice && self.hosts[n].torn.contains(&address);
            // In a fleet without a key an attacker can take back a ban that was lifted, and make it again.
            let forged_lift = open && self.lifted.contains(&(n, origin));
            if self.unbanned.contains(&origin) {
                may |= host.forgetful;
            } else if self.lifted.contains(&(n, origin)) && !open {
            } else if self.perhaps_lifted.contains(&(n, origin)) || torn || forged_lift {
                may = true;
            } else {
                must = true;
            }
        }
        let host = &self.hosts[n];
        may |= host.is_manual(address);
        // A fleet unban that a crash made it forget, of what its operator had banned.
        let ticket = host.fail2ban.tickets.get(&address);
        may |=
            host.forgetful && ticket.is_some_and(|ticket| ticket.restored && ticket.failures == 0);
        let heard = self.scripts_heard.get(&(n, address));
        may |= heard.is_some_and(|heard| {
            // An import of it that came late is left to fail2ban for up to a minute.
            host.fail2ban.bantime < 0 || heard + host.fail2ban.bantime >= self.now - 68
        });
        may |= self.script.as_ref().is_some_and(|script| script.tickets.contains_key(&address));
        (must, may || must)
    }

    /// **P2**: nothing echoes. In the quiet nobody bans anew, and nobody talks more than it must.
    pub(super) fn check_chatter(&mut self) -> Result<(), String> {
        let late: Vec<_> = self.broker.seen.iter().filter(|(at, _)| *at > self.now - 40).collect();
        let events = late.iter().filter(|(_, (topic, payload))| {
            ["ban", "unban"].contains(&topic.as_str()) && payload.contains("stamp")
        });
        let bans = events.clone().filter(|(_, (topic, _))| topic == "ban").count();
        if bans > 0 {
            return Err("P2: a ban was told in the quiet".to_owned());
        }
        if late.len() > events.count() * 24 + 36 {
            return Err("P2: chatter".to_owned());
        }
        Ok(())
    }
}
