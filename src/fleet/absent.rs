//! What counts of a fail2ban that is away, or that has not made a jail: its database's **rows whose end is to
//! come count as held**, so that nobody is freed by a stop, a start, or a jail that comes late.

use std::collections::BTreeSet;

use super::look::{Own, Server, Sweep};
use super::marks::Mark;
use super::{Change, Fleet, own, secs};
use crate::fail2ban::database::Row;
use crate::fail2ban::table::Table;
use crate::wire::{Address, Jail};

impl Fleet {
    /// **For a minute after its start fail2ban may still have to make its jails.** `now` is in milliseconds.
    #[must_use]
    pub fn is_starting(&self, server: Server, now: i64) -> bool {
        secs(now) < server.started.saturating_add(self.pace.grace)
    }

    /// Jails that are not among these, which fail2ban has, and whose rows count all the same: this host bans
    /// in them, and they were there within a minute; or fail2ban is starting, and they are `written` in its
    /// database. What is not there by then is no jail of its any more, and nothing is banned in it.
    pub fn missing(
        &mut self,
        these: &BTreeSet<Jail>,
        written: &BTreeSet<Jail>,
        server: Server,
        now: i64,
    ) -> BTreeSet<Jail> {
        let starting = self.is_starting(server, now);
        self.awaited.clear();
        if starting {
            let missing = written.difference(these).map(|jail| (jail.clone(), BTreeSet::new()));
            self.awaited.extend(missing);
        }
        let (mut kept, mut gone) = (BTreeSet::new(), Vec::new());
        for (jail, local) in &mut self.jails {
            if these.contains(jail) {
                continue;
            }
            if local.shown.is_some() {
                local.gone.get_or_insert_with(|| (secs(now), self.tombstones.applied_watermark()));
            }
            let lasts = |(since, _): (i64, _)| secs(now) < since.saturating_add(self.pace.grace);
            let lately = local.gone.is_some_and(lasts);
            let bans = !local.own.is_empty() || !local.told.is_empty();
            if bans && (starting || lately) {
                kept.insert(jail.clone());
            } else if bans {
                gone.push(jail.clone());
            }
        }
        for jail in &gone {
            self.no_more(jail, now);
        }
        kept.extend(self.awaited.keys().cloned());
        kept
    }

    /// A jail is gone for good.
    fn no_more(&mut self, jail: &Jail, now: i64) {
        let told = self.jails.get(jail).map(|local| local.told.keys().copied().collect());
        let told: Vec<Address> = told.unwrap_or_default();
        for address in told {
            self.forget_detection(&(jail.clone(), address));
        }
        self.absent(jail, &Table::default(), now);
    }

    /// A jail that fail2ban does not have now, or fail2ban is away, and the rows of it.
    pub fn absent(&mut self, jail: &Jail, rows: &Table<Row>, now: i64) {
        if let Some(awaited) = self.awaited.get_mut(jail) {
            let lasts = |(_, row): &(Address, &Row)| !row.is_over(secs(now));
            *awaited = rows.iter().filter(lasts).map(|(address, _)| address).collect();
        }
        let local = self.jails.entry(jail.clone()).or_default();
        let scope: BTreeSet<Address> = rows
            .addresses()
            .chain(local.own.keys().copied())
            .chain(local.told.keys().copied())
            .collect();
        let (mut touched, mut written) = (Vec::new(), Vec::new());
        for address in scope {
            // What only an event on the broker tells of counts once fail2ban was seen to ban it.
            let seen = local.own.contains_key(&address);
            let told = local.told.get(&address).filter(|told| told.echo.is_none() || seen);
            let told = told.map(|told| told.ban);
            let row = rows.get(address).copied();
            if told.is_some_and(|told| row.is_some_and(|row| row.timeofban >= told.start)) {
                written.push(address);
            }
            let facts =
                own::Facts { row, told, away: true, now: secs(now), ..own::Facts::default() };
            let ban = own::ban(facts);
            let last = local.own.get(&address).copied();
            if ban != last.map(|own| own.ban) {
                touched.push(address);
            }
            match ban {
                Some(ban) => {
                    let (run, rowed) = (local.run, row.is_some());
                    local.own.insert(address, Own { ban, run, rowed });
                }
                None => drop(local.own.remove(&address)),
            }
        }
        // The rows of imports are seen now, too, however short fail2ban will be there.
        let mut changed = Vec::new();
        for (address, row) in rows.iter() {
            let mark = local.cases.get_mut(&address).and_then(|case| case.mark.as_mut());
            if let Some(mark) = mark.filter(|mark| !mark.rowed && mark.is_of(*row)) {
                mark.rowed = true;
                changed.push(Change::Mark((jail.clone(), address), Some(Mark::clone(mark))));
            }
        }
        for change in changed {
            self.change(change);
        }
        for address in written {
            self.forget_detection(&(jail.clone(), address));
        }
        for address in touched {
            self.snapshots.touch(address, now);
        }
    }

    /// Jails other than these have no rows at all.
    pub fn absent_but<'a>(&mut self, these: impl Iterator<Item = &'a Jail>, now: i64) {
        let these: BTreeSet<&Jail> = these.collect();
        let others = self.jails.keys().filter(|jail| !these.contains(jail)).cloned();
        for jail in others.collect::<Vec<_>>() {
            self.absent(&jail, &Table::default(), now);
        }
    }

    /// fail2ban is away. Where it is known which database is its own, what that has of every jail was told
    /// to [`absent`](Self::absent), and is told to the fleet.
    pub fn away(&mut self, database: bool) {
        self.orders.clear();
        self.doing = None;
        self.tombstones.retry();
        self.pulse = None;
        self.looks.clear();
        self.sweep = Sweep::default();
        if database {
            self.as_of = self.round;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::look::{Detection, Look, Pulse};
    use crate::fleet::work::Step;
    use crate::fleet::{Pace, Remembered};
    use crate::wire::{Action, Ban, Event, Host, Reason, UnbanId};

    const NOW: i64 = 1_000_000_000;

    fn jails(names: &[&str]) -> BTreeSet<Jail> {
        names.iter().map(|name| Jail::new(name).unwrap()).collect()
    }

    fn rows() -> Table<Row> {
        let address = Address::new("192.0.2.1").unwrap();
        std::iter::once((address, Row { timeofban: NOW / 1000, bantime: -1, failures: 3 }))
            .collect()
    }

    #[test]
    fn a_jail_counts_before_it_is_made_and_after_it_was_there() {
        let [sshd, web] = ["sshd", "web"].map(|name| Jail::new(name).unwrap());
        // It was looked at before; fail2ban started so many seconds ago, and lacks it for so many -> it
        // counts, and bans.
        let table = [
            (false, 0, 0, true),
            (false, 59, 0, true),
            (false, 60, 0, false),
            (true, 60, 0, true),
            (true, 600, 59, true),
            (true, 600, 60, false),
        ];
        for (shown, age, lacks, counts) in table {
            let host = Host::new("web1").unwrap();
            let mut fleet = Fleet::new(host, Pace::default(), Remembered::default());
            let server = Server { pid: 7, started: NOW / 1000 - age };
            let pulse = Pulse { server, data_version: Some(1) };
            if shown {
                fleet.pulse(pulse, jails(&["sshd", "web"]), NOW);
                let held = rows().iter().map(|(address, _)| (address, Some(-1))).collect();
                let look = Look { held, rows: rows(), database: Some(0), ..Look::default() };
                fleet.seen(&sshd, None, look, NOW);
            } else {
                fleet.absent(&sshd, &rows(), NOW);
            }
            let address = Address::new("192.0.2.2").unwrap();
            let ban = Ban { start: NOW / 1000, bantime: -1 };
            let told = &mut fleet.jails.get_mut(&sshd).unwrap().told;
            told.insert(address, Detection { ban, turn: 0, kept: true, echo: None });
            let starts = fleet.is_starting(server, NOW);
            let written = if starts { jails(&["sshd", "web"]) } else { jails(&[]) };
            let mut missing = fleet.missing(&jails(&["web"]), &written, server, NOW);
            if lacks > 0 {
                assert!(missing.contains(&sshd));
                missing = fleet.missing(&jails(&["web"]), &written, server, NOW + lacks * 1_000);
            }
            let expected = if counts { jails(&["sshd"]) } else { jails(&[]) };
            assert_eq!(missing, expected, "{shown} {age} {lacks}");
            if counts {
                fleet.absent(&sshd, &rows(), NOW);
            }
            let bans = fleet.jails[&sshd].own.len();
            assert_eq!(bans, if counts { 2 } else { 0 }, "{shown} {age} {lacks}");
            assert!(!missing.contains(&web));
        }
    }

    fn unban(address: Address) -> Event {
        let host = Host::new("web2").unwrap();
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
            every_jail: true,
            unbans: Vec::new(),
        }
    }

    #[test]
    fn a_fleet_unban_waits_for_a_jail_to_come_only_where_that_bans_the_address() {
        let [sshd, web] = ["sshd", "web"].map(|name| Jail::new(name).unwrap());
        for (address, waits) in [("192.0.2.1", true), ("192.0.2.2", false)] {
            let host = Host::new("web1").unwrap();
            let mut fleet = Fleet::new(host, Pace::default(), Remembered::default());
            let server = Server { pid: 7, started: NOW / 1000 };
            let pulse = Pulse { server, data_version: Some(1) };
            for jail in fleet.missing(&jails(&["web"]), &jails(&["sshd", "web"]), server, NOW) {
                assert_eq!(jail, sshd);
                fleet.absent(&jail, &rows(), NOW);
            }
            fleet.begin(NOW);
            fleet.pulse(pulse, jails(&["web"]), NOW);
            fleet.seen(&web, None, Look { database: Some(0), ..Look::default() }, NOW);
            let address = Address::new(address).unwrap();
            fleet.hear(&unban(address), NOW);
            assert!(matches!(fleet.next(NOW), Step::Save(_)));
            fleet.saved(true, NOW);
            assert_eq!(fleet.next(NOW), Step::Obey(web.clone(), vec![address]));
            fleet.done(0, NOW);
            let _ = fleet.next(NOW);
            assert_eq!(fleet.tombstones.carried(&(sshd.clone(), address)).is_empty(), waits);
        }
    }

    #[test]
    fn jail_that_refuses_holds_up_no_snapshot() {
        let [bad, sshd] = ["bad", "sshd"].map(|name| Jail::new(name).unwrap());
        let mut fleet =
            Fleet::new(Host::new("web1").unwrap(), Pace::default(), Remembered::default());
        fleet.connected(NOW);
        let server = Server { pid: 7, started: NOW / 1000 - 600 };
        let published = |fleet: &mut Fleet, now: i64| {
            let parts = fleet.publications(now).into_iter().filter_map(|one| one.part);
            parts.flat_map(|part| part.bans).map(|ban| ban.jail.to_string()).collect::<Vec<_>>()
        };
        let mut seen = Vec::new();
        for round in 1..9 {
            let now = NOW + round * 2_000;
            fleet.begin(now);
            fleet.pulse(Pulse { server, data_version: Some(round) }, jails(&["bad", "sshd"]), now);
            while let Step::Look(jail, None) = fleet.next(now) {
                if jail == bad {
                    fleet.failed();
                    fleet.absent(&bad, &rows(), now);
                    fleet.give_up(&bad, true, now);
                    continue;
                }
                assert_eq!(jail, sshd);
                let held = rows().iter().map(|(address, _)| (address, Some(-1))).collect();
                let look = Look { held, rows: rows(), database: Some(0), ..Look::default() };
                fleet.seen(&sshd, None, look, now);
            }
            seen.extend(published(&mut fleet, now));
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, ["bad", "sshd"]);
    }

    #[test]
    fn nothing_is_told_before_it_is_known_which_database_is_its_own() {
        let mut fleet =
            Fleet::new(Host::new("web1").unwrap(), Pace::default(), Remembered::default());
        fleet.connected(NOW);
        for known in [false, true] {
            fleet.begin(NOW + 1_000);
            fleet.away(known);
            assert_eq!(fleet.publications(NOW + 10_000).is_empty(), !known);
        }
    }
}
