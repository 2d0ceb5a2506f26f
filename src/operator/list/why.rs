//! Why one address is banned, in words: who detected it, who obeys, and what this host does with it.

use std::fmt::Write as _;

use crate::operator::clock::Clock;
use crate::operator::local::Here;
use crate::operator::out;
use crate::operator::view::{Banned, Member, Until, View, Void};
use crate::wire::{Address, Host, Jail};

/// Why one address is banned, or is not.
pub(super) struct Case<'a> {
    pub(super) me: Host,
    pub(super) address: Address,
    pub(super) banned: Vec<&'a Banned>,
    pub(super) view: View,
    /// What this host does with it.
    pub(super) here: Result<Here, String>,
}

impl Case<'_> {
    pub(super) fn text(&self, clock: &Clock) -> String {
        let mut lines = Vec::new();
        let (address, me) = (self.address, &self.me);
        if self.banned.is_empty() {
            lines.push(format!("{address} is banned by no host of the fleet."));
        }
        for banned in &self.banned {
            self.of_jail(banned, clock, &mut lines);
        }
        for Void { jail, host, id, .. } in self.view.voids(address) {
            lines.push(format!(
                "{host} still lists it in {jail}, from before the fleet unban {id}: that counts for \
                 nobody, and ends when {host} is back."
            ));
        }
        match &self.here {
            Err(why) => {
                lines.push(format!("What {me}, this host, does with it is not known: {why}"));
            }
            Ok(here) => {
                let by_hand = |jail: &&Jail| self.banned.iter().all(|ban| ban.jail != **jail);
                for jail in here.banned.iter().filter(by_hand) {
                    lines.push(format!(
                        "{me}, this host, bans it in {jail} for itself: by hand, or the jail does not \
                         share its bans. To free it: fail2ban-client set {jail} unbanip {address}"
                    ));
                }
            }
        }
        if !self.banned.is_empty() {
            lines.push(format!("To free it everywhere: f2bmqtt unban {address}"));
        }
        let mut text = String::new();
        for line in lines {
            let _ = writeln!(text, "{}", out::shown(&line));
        }
        text
    }

    /// One jail's ban: by whom, how long, and who obeys.
    fn of_jail(&self, banned: &Banned, clock: &Clock, lines: &mut Vec<String>) {
        let Banned { address, jail, origin, since, also, .. } = banned;
        let (until, left) = clock.until(banned.until);
        let until = match (banned.until, left.as_str()) {
            (Until::Never, _) => "for ever".to_owned(),
            (Until::Unknown, _) => "nobody knows for how long".to_owned(),
            (Until::Time(_), "over") => format!("until {until}, which is over: it ends soon"),
            (Until::Time(_), left) => format!("until {until}, {left} still"),
        };
        lines.push(format!("{address} is banned in {jail}, because {origin} detected it."));
        lines.push(format!("  Since {}, {until}.", clock.local(*since)));
        if !also.is_empty() {
            lines.push(format!("  Detected and held, too, by {}.", names(also)));
        }
        let detected = |host: &Host| host == origin || also.contains(host);
        let others =
            || self.view.hosts().iter().filter(|(host, _)| !detected(host) && **host != self.me);
        let takes = |online: bool| {
            let of = move |(host, member): (&Host, &Member)| {
                let takes = member.is_online() == online && member.jails().contains(jail);
                takes.then(|| host.clone())
            };
            others().filter_map(of).collect::<Vec<_>>()
        };
        let (on, off) = (takes(true), takes(false));
        if !on.is_empty() {
            lines.push(format!(
                "  Banned for it on {}, by what they say of their jails.",
                names(&on)
            ));
        }
        if !off.is_empty() {
            lines.push(format!("  Not connected now: {}.", names(&off)));
        }
        if let Ok(here) = &self.here {
            lines.push(format!("  This host, {}, {}.", self.me, self.of_here(here, banned)));
        }
    }

    fn of_here(&self, here: &Here, banned: &Banned) -> String {
        let Banned { jail, origin, also, .. } = banned;
        let by = |host: &Host| *host == self.me;
        if here.banned.contains(jail) {
            return if by(origin) || also.iter().any(by) {
                "bans it".to_owned()
            } else {
                "bans it, too".to_owned()
            };
        }
        let lifted: Vec<_> =
            here.lifted.iter().filter(|(of, _)| of == jail).map(|(_, host)| host.clone()).collect();
        if !lifted.is_empty() {
            let hosts = names(&lifted);
            return format!("does not: its operator lifted the ban of {hosts} here");
        }
        if !here.jails.contains(jail) {
            return format!("does not: its fail2ban has no jail {jail}");
        }
        if here.apart.contains(jail) {
            return format!("does not: by its settings {jail} does not take part");
        }
        if let Some(because) = here.exempt.get(jail) {
            return format!("does not: {because}");
        }
        "does not ban it now".to_owned()
    }
}

fn names(hosts: &[Host]) -> String {
    hosts.iter().map(Host::as_str).collect::<Vec<_>>().join(", ")
}
