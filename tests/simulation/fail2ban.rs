//! A model of fail2ban 1.0.2, from its source and from measurements: one jail, its tickets, its database, and the
//! calls of its actions.

use std::collections::BTreeMap;

use f2bmqtt::model::{Address, BipsRow};

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

/// One call of the jail's actions: `ban` or `unban`.
pub(crate) type ActionCall = (&'static str, Address, Ticket);

#[expect(clippy::struct_excessive_bools, reason = "each is a thing of its own")]
pub(crate) struct Fail2ban {
    pub(crate) bantime: i64,
    pub(crate) increment: bool,
    /// `dbpurgeage`, in seconds.
    pub(crate) purge_age: i64,
    /// How many seconds after a ban the observer thread writes the row, at most.
    pub(crate) row_delay_max: i64,
    /// Whether the action has an `actionflush`: a stop then calls no `actionunban`.
    pub(crate) flushes: bool,
    /// The host's clock minus the world's, in seconds.
    pub(crate) skew: i64,
    /// The disk is full: fail2ban writes no rows.
    pub(crate) full: bool,
    pub(crate) up: bool,
    /// The server answers, but does not have the jail.
    pub(crate) without_jail: bool,
    /// An operator stopped the jail.
    pub(crate) jail_removed: bool,
    /// When the jail last came back after a removal.
    jail_back_at: i64,
    pub(crate) pid: i32,
    pub(crate) started: i64,
    pub(crate) total: i64,
    /// SQLite's `data_version`: changes with each write.
    pub(crate) version: i64,
    pub(crate) tickets: BTreeMap<Address, Ticket>,
    pub(crate) rows: BTreeMap<Address, BipsRow>,
    /// When the database was created.
    pub(crate) created_at: i64,
    /// The database is lost at the next start.
    pub(crate) database_lost: bool,
    counts: BTreeMap<Address, i64>,
    /// Rows that the observer thread has not written: when it will, the address, and the time of the ticket.
    pub(crate) pending: Vec<(i64, Address, i64)>,
    /// Addresses that a start restores, one per second, from the last.
    pub(crate) restore: Vec<Address>,
    pub(crate) action_calls: Vec<ActionCall>,
    now: i64,
}

impl Fail2ban {
    pub(crate) fn new(chance: &mut Chance, now: i64) -> Self {
        Self {
            bantime: *chance.pick(&[25, 60, 60, 60, 150, FOREVER]),
            increment: chance.often(300),
            purge_age: *chance.pick(&[20, 1_000_000_000]),
            row_delay_max: *chance.pick(&[0, 2]),
            flushes: chance.often(600),
            skew: chance.within(-20, 20),
            full: false,
            up: true,
            without_jail: false,
            jail_removed: false,
            jail_back_at: i64::MIN,
            pid: 1,
            started: now - 100,
            total: 0,
            version: 0,
            tickets: BTreeMap::new(),
            rows: BTreeMap::new(),
            created_at: now - 1000,
            database_lost: false,
            counts: BTreeMap::new(),
            pending: Vec::new(),
            restore: Vec::new(),
            action_calls: Vec::new(),
            now,
        }
    }

    /// The time of this host's clock.
    pub(crate) fn clock(&self) -> i64 {
        self.now + self.skew
    }

    pub(crate) fn has_active_row(&self, address: Address) -> bool {
        self.rows.get(&address).is_some_and(|row| row.end().is_none_or(|end| end > self.clock()))
    }

    fn ban(&mut self, address: Address, ticket: Ticket, chance: &mut Chance) {
        self.tickets.insert(address, ticket);
        self.total += 1;
        if !ticket.restored {
            let at = self.now + chance.within(0, self.row_delay_max);
            self.pending.push((at, address, ticket.time));
        }
        self.action_calls.push(("ban", address, ticket));
    }

    /// Bans an address that is already banned, which only ever makes the ban longer. Returns false if it is not banned.
    fn extend_ban(&mut self, address: Address) -> bool {
        let (now, bantime) = (self.clock(), self.bantime);
        let Some(ticket) = self.tickets.get_mut(&address) else { return false };
        let end = if bantime == FOREVER { i64::MAX } else { now + bantime };
        if end > ticket.end() {
            ticket.bantime = if bantime == FOREVER { FOREVER } else { end - ticket.time };
        }
        true
    }

    /// The jail has found `maxretry` failures of an address.
    pub(crate) fn detect(&mut self, address: Address, chance: &mut Chance) {
        if self.up && !self.extend_ban(address) {
            let (time, bantime) = (self.clock(), self.bantime);
            self.ban(address, Ticket { time, bantime, failures: 3, restored: false }, chance);
        }
    }

    /// `set JAIL banip`: returns how many bans are new.
    pub(crate) fn banip(&mut self, address: Address, chance: &mut Chance) -> i64 {
        if self.extend_ban(address) {
            return 0;
        }
        let (time, bantime) = (self.clock(), self.bantime);
        self.ban(address, Ticket { time, bantime, failures: 0, restored: false }, chance);
        1
    }

    /// `set JAIL unbanip`: deletes the address's history, too.
    pub(crate) fn unbanip(&mut self, address: Address) {
        self.rows.remove(&address);
        self.counts.remove(&address);
        self.pending.retain(|(_, pending, _)| *pending != address);
        self.version += 1;
        if let Some(ticket) = self.tickets.remove(&address) {
            self.action_calls.push(("unban", address, ticket));
        }
    }

    pub(crate) fn unban_all(&mut self) {
        let tickets = std::mem::take(&mut self.tickets);
        self.rows.clear();
        self.counts.clear();
        self.pending.clear();
        self.version += 1;
        self.call_unban_actions(tickets);
    }

    fn call_unban_actions(&mut self, tickets: BTreeMap<Address, Ticket>) {
        if !self.flushes {
            self.action_calls
                .extend(tickets.into_iter().map(|(address, ticket)| ("unban", address, ticket)));
        }
    }

    pub(crate) fn stop(&mut self) {
        self.write_due_rows(true);
        let tickets = std::mem::take(&mut self.tickets);
        (self.up, self.without_jail, self.jail_removed) = (false, false, false);
        self.restore.clear();
        self.call_unban_actions(tickets);
    }

    pub(crate) fn start_server(&mut self) {
        self.without_jail = true;
        self.pid += 1;
        self.started = self.clock();
        if std::mem::take(&mut self.database_lost) {
            self.rows.clear();
            self.counts.clear();
            self.version += 1;
            self.created_at = self.clock();
        }
    }

    /// Whether the jail is removed, or has been back for less than the daemon's poll interval.
    pub(crate) fn may_lack_jail(&self) -> bool {
        self.jail_removed || self.now.saturating_sub(self.jail_back_at) < 4
    }

    /// Starts the jail.
    pub(crate) fn start(&mut self, chance: &mut Chance) {
        if self.jail_removed {
            self.jail_back_at = self.now;
        }
        (self.without_jail, self.jail_removed, self.up) = (false, false, true);
        self.restore_bans(chance);
    }

    /// `restart JAIL`: the server keeps running.
    pub(crate) fn restart_jail(&mut self, chance: &mut Chance) {
        self.stop();
        self.up = true;
        self.version += 1; // its table of jails
        self.restore_bans(chance);
    }

    /// `stop JAIL`: the server keeps running without the jail.
    pub(crate) fn remove_jail(&mut self) {
        self.stop();
        (self.without_jail, self.jail_removed) = (true, true);
        self.version += 1;
    }

    fn restore_bans(&mut self, chance: &mut Chance) {
        self.total = 0;
        self.purge_rows();
        self.restore =
            self.rows.keys().copied().filter(|address| self.has_active_row(*address)).collect();
        chance.shuffle(&mut self.restore);
    }

    fn purge_rows(&mut self) {
        let old = self.clock() - self.purge_age;
        let before = self.rows.len();
        self.rows.retain(|_, row| row.bantime < 0 || row.timeofban + 3 * row.bantime >= old);
        let rows = &self.rows;
        self.counts.retain(|address, _| rows.contains_key(address));
        self.version += i64::from(self.rows.len() != before);
    }

    /// The observer thread: writes due rows, or `all`, and extends bans of known addresses (`bantime.increment`).
    fn write_due_rows(&mut self, all: bool) {
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
        self.write_due_rows(false);
        if !self.up {
            return;
        }
        if now % 20 == 0 {
            self.purge_rows();
        }
        if let Some(address) = self.restore.pop()
            && !self.tickets.contains_key(&address)
            && self.has_active_row(address)
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
        let expired: Vec<_> =
            self.tickets.extract_if(.., |_, ticket| ticket.end() < clock).collect();
        self.action_calls
            .extend(expired.into_iter().map(|(address, ticket)| ("unban", address, ticket)));
    }

    /// The bans that this host detected and still holds, with their starts. The whole fleet has to hold them.
    pub(crate) fn local_bans(&self) -> BTreeMap<Address, i64> {
        let rows = self
            .rows
            .iter()
            .filter(|(address, row)| row.failures > 0 && self.has_active_row(**address));
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
