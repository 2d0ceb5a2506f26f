//! A model of fail2ban 1.0.2, as its source has it and as it was measured: one jail, its tickets, its
//! database, and what its actions call.

use std::collections::BTreeMap;

use f2bmqtt::fail2ban::database::BipsRow;
use f2bmqtt::wire::Address;

use crate::chance::Chance;

pub(crate) const FOREVER: i64 = -1;

/// A ban in the server's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) time: i64,
    pub(crate) bantime: i64,
    pub(crate) failures: i64,
    pub(crate) restored: bool,
}

impl Ticket {
    pub(crate) fn end(&self) -> i64 {
        if self.bantime == FOREVER { i64::MAX } else { self.time + self.bantime }
    }
}

/// What an action tells: it bans or unbans this.
pub(crate) type Action = (&'static str, Address, Ticket);

#[expect(clippy::struct_excessive_bools, reason = "each is a thing of its own")]
pub(crate) struct Fail2ban {
    pub(crate) bantime: i64,
    pub(crate) increment: bool,
    /// Old rows are purged after so many seconds.
    pub(crate) purge: i64,
    /// How late at most its observer writes a row.
    pub(crate) lag: i64,
    /// Its actions flush: a stop calls no action for each ban.
    pub(crate) flush: bool,
    /// How far its clock is off, in seconds.
    pub(crate) skew: i64,
    /// Its disk is full: it writes no rows.
    pub(crate) full: bool,
    pub(crate) up: bool,
    /// It answers, and has not made the jail yet, or has it no more.
    pub(crate) coming: bool,
    /// It was told to stop the jail.
    pub(crate) removed: bool,
    /// When it was last there again.
    back: i64,
    pub(crate) pid: i32,
    pub(crate) started: i64,
    pub(crate) total: i64,
    /// Changes with each write.
    pub(crate) version: i64,
    pub(crate) tickets: BTreeMap<Address, Ticket>,
    pub(crate) rows: BTreeMap<Address, BipsRow>,
    /// When its database was made; it is lost before the next start.
    pub(crate) made: i64,
    pub(crate) lost: bool,
    counts: BTreeMap<Address, i64>,
    /// What the observer is to write, and when.
    pub(crate) pending: Vec<(i64, Address, i64)>,
    /// What is to be restored, one by one.
    pub(crate) restore: Vec<Address>,
    pub(crate) told: Vec<Action>,
    now: i64,
}

impl Fail2ban {
    pub(crate) fn new(chance: &mut Chance, now: i64) -> Self {
        Self {
            bantime: *chance.pick(&[25, 60, 60, 60, 150, FOREVER]),
            increment: chance.often(300),
            purge: *chance.pick(&[20, 1_000_000_000]),
            lag: *chance.pick(&[0, 2]),
            flush: chance.often(600),
            skew: chance.within(-20, 20),
            full: false,
            up: true,
            coming: false,
            removed: false,
            back: i64::MIN,
            pid: 1,
            started: now - 100,
            total: 0,
            version: 0,
            tickets: BTreeMap::new(),
            rows: BTreeMap::new(),
            made: now - 1000,
            lost: false,
            counts: BTreeMap::new(),
            pending: Vec::new(),
            restore: Vec::new(),
            told: Vec::new(),
            now,
        }
    }

    /// The time by this host's clock.
    pub(crate) fn clock(&self) -> i64 {
        self.now + self.skew
    }

    pub(crate) fn row_lasts(&self, address: Address) -> bool {
        self.rows.get(&address).is_some_and(|row| row.end().is_none_or(|end| end > self.clock()))
    }

    fn ban(&mut self, address: Address, ticket: Ticket, chance: &mut Chance) {
        self.tickets.insert(address, ticket);
        self.total += 1;
        if !ticket.restored {
            let at = self.now + chance.within(0, self.lag);
            self.pending.push((at, address, ticket.time));
        }
        self.told.push(("ban", address, ticket));
    }

    /// A ban of one that is banned already: it only ever makes it longer.
    fn prolong(&mut self, address: Address) -> bool {
        let (now, bantime) = (self.clock(), self.bantime);
        let Some(ticket) = self.tickets.get_mut(&address) else { return false };
        let end = if bantime == FOREVER { i64::MAX } else { now + bantime };
        if end > ticket.end() {
            ticket.bantime = if bantime == FOREVER { FOREVER } else { end - ticket.time };
        }
        true
    }

    /// Enough failures came from an address.
    pub(crate) fn detect(&mut self, address: Address, chance: &mut Chance) {
        if self.up && !self.prolong(address) {
            let (time, bantime) = (self.clock(), self.bantime);
            self.ban(address, Ticket { time, bantime, failures: 3, restored: false }, chance);
        }
    }

    /// `set JAIL banip`: answers how many were new.
    pub(crate) fn banip(&mut self, address: Address, chance: &mut Chance) -> i64 {
        if self.prolong(address) {
            return 0;
        }
        let (time, bantime) = (self.clock(), self.bantime);
        self.ban(address, Ticket { time, bantime, failures: 0, restored: false }, chance);
        1
    }

    /// `set JAIL unbanip`: takes the address's history with it.
    pub(crate) fn unbanip(&mut self, address: Address) {
        self.rows.remove(&address);
        self.counts.remove(&address);
        self.pending.retain(|(_, pending, _)| *pending != address);
        self.version += 1;
        if let Some(ticket) = self.tickets.remove(&address) {
            self.told.push(("unban", address, ticket));
        }
    }

    pub(crate) fn unban_all(&mut self) {
        let tickets = std::mem::take(&mut self.tickets);
        self.rows.clear();
        self.counts.clear();
        self.pending.clear();
        self.version += 1;
        self.tell_all(tickets);
    }

    fn tell_all(&mut self, tickets: BTreeMap<Address, Ticket>) {
        if !self.flush {
            self.told
                .extend(tickets.into_iter().map(|(address, ticket)| ("unban", address, ticket)));
        }
    }

    pub(crate) fn stop(&mut self) {
        self.observe(true);
        let tickets = std::mem::take(&mut self.tickets);
        (self.up, self.coming, self.removed) = (false, false, false);
        self.restore.clear();
        self.tell_all(tickets);
    }

    pub(crate) fn come(&mut self) {
        self.coming = true;
        self.pid += 1;
        self.started = self.clock();
        if std::mem::take(&mut self.lost) {
            self.rows.clear();
            self.counts.clear();
            self.version += 1;
            self.made = self.clock();
        }
    }

    /// The jail was removed, and may not have been found again.
    pub(crate) fn lacks_jail(&self) -> bool {
        self.removed || self.now.saturating_sub(self.back) < 4
    }

    /// The jail is there.
    pub(crate) fn start(&mut self, chance: &mut Chance) {
        if self.removed {
            self.back = self.now;
        }
        (self.coming, self.removed, self.up) = (false, false, true);
        self.begin(chance);
    }

    /// `restart JAIL`: the server stays.
    pub(crate) fn restart_jail(&mut self, chance: &mut Chance) {
        self.stop();
        self.up = true;
        self.version += 1; // its table of jails
        self.begin(chance);
    }

    /// `stop JAIL`: the server stays, without it.
    pub(crate) fn remove_jail(&mut self) {
        self.stop();
        (self.coming, self.removed) = (true, true);
        self.version += 1;
    }

    fn begin(&mut self, chance: &mut Chance) {
        self.total = 0;
        self.purge_rows();
        self.restore =
            self.rows.keys().copied().filter(|address| self.row_lasts(*address)).collect();
        chance.shuffle(&mut self.restore);
    }

    fn purge_rows(&mut self) {
        let old = self.clock() - self.purge;
        let before = self.rows.len();
        self.rows.retain(|_, row| row.bantime < 0 || row.timeofban + 3 * row.bantime >= old);
        let rows = &self.rows;
        self.counts.retain(|address, _| rows.contains_key(address));
        self.version += i64::from(self.rows.len() != before);
    }

    /// The observer writes what is due, and makes bans of known addresses longer.
    fn observe(&mut self, all: bool) {
        let now = self.now;
        let due: Vec<_> = self.pending.extract_if(.., |(at, ..)| all || *at <= now).collect();
        for (_, address, time) in due {
            if self.full {
                continue;
            }
            let count = self.counts.entry(address).or_default();
            let Some(ticket) = self.tickets.get_mut(&address).filter(|ticket| ticket.time == time)
            else {
                continue;
            };
            if self.increment && ticket.bantime != FOREVER && *count > 0 {
                ticket.bantime = ticket.bantime.max((self.bantime << (*count).min(4)).min(400));
            }
            *count += 1;
            let Ticket { time, bantime, failures, .. } = *ticket;
            self.rows.insert(address, BipsRow { timeofban: time, bantime, failures });
            self.version += 1;
        }
    }

    /// A second passes.
    pub(crate) fn tick(&mut self, now: i64, chance: &mut Chance) {
        self.now = now;
        self.observe(false);
        if !self.up {
            return;
        }
        if now % 20 == 0 {
            self.purge_rows();
        }
        if let Some(address) = self.restore.pop()
            && !self.tickets.contains_key(&address)
            && self.row_lasts(address)
        {
            let row = self.rows[&address];
            let mut bantime = row.bantime;
            if !self.increment
                && self.bantime != FOREVER
                && (bantime == FOREVER || bantime > self.bantime)
            {
                bantime = self.bantime;
            }
            let ticket =
                Ticket { time: row.timeofban, bantime, failures: row.failures, restored: true };
            if ticket.end() > self.clock() {
                self.ban(address, ticket, chance);
            }
        }
        let clock = self.clock();
        let over: Vec<_> = self.tickets.extract_if(.., |_, ticket| ticket.end() < clock).collect();
        self.told.extend(over.into_iter().map(|(address, ticket)| ("unban", address, ticket)));
    }

    /// What the host detected and holds, with its start: what the fleet has to hold.
    pub(crate) fn own(&self) -> BTreeMap<Address, i64> {
        let rows =
            self.rows.iter().filter(|(address, row)| row.failures > 0 && self.row_lasts(**address));
        let rows = rows.map(|(address, row)| (*address, row.timeofban));
        if !self.up {
            return rows.collect();
        }
        let restoring = rows.filter(|(address, _)| self.restore.contains(address));
        let held = self.tickets.iter().filter(|(_, ticket)| ticket.failures > 0);
        let held = held.map(|(address, ticket)| (*address, ticket.time));
        restoring.chain(held).collect()
    }
}
