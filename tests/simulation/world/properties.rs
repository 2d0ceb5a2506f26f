//! The rules that hold in a world without faults.

use f2bmqtt::model::Address;

use super::World;
use super::attack::Attack;

impl World {
    /// P1: each host bans the union of all local bans, minus its operator's overrides and fleet unbans.
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
                // P3: an import lasts as long as the ban at its origin, without a gap.
                let by_hand = self.hosts[n].is_manual(address);
                let imported = ticket.filter(|ticket| must && ticket.failures == 0 && !by_hand);
                let began = imported.map_or(0, |ticket| ticket.time);
                let before = self.wrong.insert((n, address, "imported"), began).unwrap_or(0);
                // A host's clock lag is known from its stamps, which an attacker without a key can forge.
                let has_forged_stamps = self.attacker.attack == Attack::Open;
                if must
                    && !has_forged_stamps
                    && before != 0
                    && ticket.is_none_or(|ticket| ticket.time != before)
                {
                    return Err(self.report_violation("P3: a gap in a ban", &name, address));
                }
                if self.is_long(n, address, "missing", must && !held, 8) {
                    return Err(self.report_violation("P1: a ban is missing", &name, address));
                }
                if self.is_long(n, address, "extra", held && !may, 8) {
                    let mut origins =
                        self.unbanned.iter().filter(|(_, unbanned, _)| *unbanned == address);
                    let survives = origins.any(|(other, _, start)| {
                        self.hosts[*other].fail2ban.local_bans().get(&address) == Some(start)
                    });
                    let rule = if survives {
                        "P5: a ban survived a fleet unban"
                    } else {
                        "P1: an unexpected ban"
                    };
                    return Err(self.report_violation(rule, &name, address));
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
                let end = self.held_until.get(&(other, address)).copied().unwrap_or(i64::MIN);
                may |= end.saturating_add(140) >= self.now;
                continue;
            }
            let Some(start) = host.fail2ban.local_bans().get(&address).copied() else { continue };
            let origin = (other, address, start);
            // A second release during a ban's life looks like its operator's: a documented limit. Without a key, an
            // attacker can forge the release.
            let twice = self.returned.contains(&other) || open;
            let crashed_mid_unban = twice && self.hosts[n].crashed_mid_unban.contains(&address);
            // Without a key, an attacker can release and repeat a ban that was lifted.
            let forged_lift = open && self.lifted.contains(&(n, origin));
            if self.unbanned.contains(&origin) {
                may |= host.lost_deferred_tombstones;
            } else if self.lifted.contains(&(n, origin)) && !open {
            } else if self.maybe_lifted.contains(&(n, origin)) || crashed_mid_unban || forged_lift {
                may = true;
            } else {
                must = true;
            }
        }
        let host = &self.hosts[n];
        may |= host.is_manual(address);
        // The host's operator had banned the address, and a crash lost the fleet unban of it.
        let ticket = host.fail2ban.tickets.get(&address);
        may |= host.lost_deferred_tombstones
            && ticket.is_some_and(|ticket| ticket.restored && ticket.failures == 0);
        let seen_at = self.script_bans_seen.get(&(n, address));
        may |= seen_at.is_some_and(|seen_at| {
            // fail2ban keeps a late import of a script's ban for up to a minute after its end.
            host.fail2ban.bantime < 0 || seen_at + host.fail2ban.bantime >= self.now - 68
        });
        may |= self.script.as_ref().is_some_and(|script| script.tickets.contains_key(&address));
        (must, may || must)
    }

    /// P2: no message causes an echo. Without faults, no host publishes new bans or more messages than it must.
    pub(super) fn check_chatter(&mut self) -> Result<(), String> {
        let late: Vec<_> = self.broker.seen.iter().filter(|(at, _)| *at > self.now - 40).collect();
        let events = late.iter().filter(|(_, (topic, payload))| {
            ["ban", "unban"].contains(&topic.as_str()) && payload.contains("stamp")
        });
        let bans = events.clone().filter(|(_, (topic, _))| topic == "ban").count();
        if bans > 0 {
            return Err("P2: a ban was published without a detection".to_owned());
        }
        if late.len() > events.count() * 24 + 36 {
            return Err("P2: too many messages".to_owned());
        }
        Ok(())
    }
}
