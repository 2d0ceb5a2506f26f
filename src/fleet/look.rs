//! What fail2ban on this host is asked, what it showed last, and when it is worth asking again.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::Timing;
use super::claims::Claim;
use super::marks::Import;
use super::queue::Ticket;
use super::tombstones::{self, Usage};
use crate::fail2ban::database::BipsRow;
use crate::fail2ban::table::AddressMap;
use crate::ignored::IgnoreList;
use crate::wire::{Address, Ban, UnbanId};

/// One process of fail2ban's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerInstance {
    /// Its process.
    pub pid: i32,
    /// When it made its socket, in seconds since 1970: processes' numbers are used again.
    pub started: i64,
}

/// One look at a jail, at all of its bans or at those of some addresses.
#[derive(Debug, Default)]
pub struct Observation {
    /// What it bans: for so many seconds from its start on, below 0 for ever; `None` where only that it
    /// does was asked.
    pub held: AddressMap<Option<i64>>,
    /// Rows of fail2ban's database.
    pub rows: AddressMap<BipsRow>,
    /// When its database was made, in seconds since 1970; `None`: it keeps none.
    pub database: Option<i64>,
    /// How many bans the jail made since it started, where that was asked.
    pub total: Option<i64>,
    /// How long the jail bans, in seconds; below 0 for ever.
    pub bantime: i64,
    /// For how long its database keeps old rows, in seconds.
    pub purge_age: i64,
    /// Whom the jail is never to ban.
    pub ignored: IgnoreList,
    /// How long it took, in milliseconds.
    pub took: i64,
}

/// What can be asked at no cost, every two seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The server that answers.
    pub server: ServerInstance,
    /// Changes with every write to fail2ban's database (SQLite's `data_version`); `None` where it has
    /// none, and there is no telling.
    pub data_version: Option<i64>,
}

/// A sweep over all jails that are worth a look. **One that takes long goes on over several rounds, and for
/// as long as it took the others' words have their turn**, so that neither waits for ever.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// It is under way, and when it began, in milliseconds.
    pub(super) since: Option<i64>,
    /// Until when the next one waits for what is to be done, in milliseconds.
    pub(super) pause: i64,
}

/// Everything that is known of one address in one jail. There are many, and of most one host said
/// something: that takes no memory of its own.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// What other hosts said of it last.
    pub(super) claims: SmallVec<[Claim; 1]>,
    /// It was imported, or is about to be.
    pub(super) import: Option<Box<Import>>,
    /// fail2ban bans it until then, in seconds since 1970; `i64::MAX` for ever.
    pub(super) held_until: Option<i64>,
    /// fail2ban has a row of it.
    pub(super) in_database: bool,
    /// fail2ban has a row of it that lasts, and may still be about to restore it.
    pub(super) may_be_restored: bool,
    /// It waits for a decision: where.
    pub(super) queued: Option<Ticket>,
}

impl Entry {
    pub(super) fn is_empty(&self) -> bool {
        self.claims.is_empty()
            && self.import.is_none()
            && self.held_until.is_none()
            && !self.may_be_restored
    }
}

/// A ban of this host's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalBan {
    pub(super) ban: Ban,
    /// In which run of the jail it was seen.
    pub(super) jail_epoch: u32,
    /// fail2ban's row of it was seen.
    pub(super) in_database: bool,
}

/// A detection that notify told of.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingDetection {
    pub(super) ban: Ban,
    /// How many looks had begun by then: an earlier one cannot have seen it.
    pub(super) cycle: u64,
    /// It is remembered over a restart.
    pub(super) persisted: bool,
    /// Only this host's own event on the broker tells of it, which came then; in milliseconds.
    pub(super) echo: Option<i64>,
}

/// How one jail stands on this host.
#[derive(Debug, Default)]
pub(super) struct JailState {
    pub(super) entries: BTreeMap<Address, Box<Entry>>,
    pub(super) local_bans: BTreeMap<Address, LocalBan>,
    pub(super) pending_detections: BTreeMap<Address, PendingDetection>,
    pub(super) last_observation: Option<LastObservation>,
    /// Since when a fail2ban that had it does not, in seconds since 1970, and how many fleet unbans it had
    /// obeyed by then.
    pub(super) missing_since: Option<(i64, u64)>,
    /// Counts the times that the jail started.
    pub(super) epoch: u32,
    /// Until when the jail may still be restoring its bans, and how many it lacked; seconds.
    restoring: (i64, usize),
}

/// What the jail showed last.
#[derive(Debug)]
pub(super) struct LastObservation {
    server: ServerInstance,
    data_version: Option<i64>,
    total: i64,
    pub(super) bantime: i64,
    pub(super) ignored: IgnoreList,
    /// Until when that is good enough to act upon; in milliseconds.
    pub(super) valid_until: i64,
    /// Until when a jail that may be restoring bans is left alone: ten times as long as the last whole look took; in
    /// milliseconds.
    rest_until: i64,
    /// When something is due by itself, in seconds since 1970.
    pub(super) next_check_at: i64,
}

impl JailState {
    /// Whether nothing is known of it: it was not looked at, and nobody says anything of it.
    pub(super) fn is_empty(&self) -> bool {
        let known = self.last_observation.is_some() || self.missing_since.is_some();
        !known
            && self.entries.is_empty()
            && self.local_bans.is_empty()
            && self.pending_detections.is_empty()
    }

    /// Whether nothing but other hosts' messages is known of it.
    pub(super) fn is_of_others(&self) -> bool {
        let known = self.last_observation.is_some()
            || self.missing_since.is_some()
            || !self.local_bans.is_empty();
        !known && self.entries.values().all(|case| case.import.is_none())
    }

    /// How an address's bans in this jail need a fleet unban.
    pub(super) fn usage(&self, address: Address, id: &UnbanId, pace: &Timing) -> Usage {
        if self.local_bans.contains_key(&address) || self.pending_detections.contains_key(&address)
        {
            return Usage::Referenced;
        }
        let Some(case) = self.entries.get(&address) else { return Usage::Unused };
        let claims = case.claims.iter().filter(|said| said.ban.is_some());
        let of = |said: &Claim| {
            let later = said.ban.is_some_and(|ban| tombstones::is_outlived(id, ban.start, pace));
            let carried = said.is_legacy() || said.carries(id) || later;
            if carried { Usage::Referenced } else { Usage::Missing }
        };
        let held = if case.import.is_some() { Usage::Referenced } else { Usage::Unused };
        claims.map(of).max().unwrap_or(held)
    }

    /// How long the jail bans, once that is known.
    pub(super) fn bantime(&self) -> Option<i64> {
        self.last_observation.as_ref().map(|shown| shown.bantime)
    }

    /// The clock was set back: nothing waits for a time that lies far ahead now.
    pub(super) fn on_clock_rollback(&mut self, now: i64, pace: &Timing) {
        self.restoring.0 = self.restoring.0.min(now.div_euclid(1000) + pace.restore_grace);
        self.missing_since =
            self.missing_since.map(|(since, unbans)| (since.min(now.div_euclid(1000)), unbans));
        if let Some(shown) = &mut self.last_observation {
            (shown.valid_until, shown.rest_until, shown.next_check_at) =
                (i64::MIN, i64::MIN, i64::MIN);
        }
    }

    /// Whether the jail may still be restoring bans.
    pub(super) fn is_restoring(&self, now: i64) -> bool {
        now < self.restoring.0
    }

    /// Takes up what does not concern one address. The jail has started anew if another server answers,
    /// if it made fewer bans than before, or if it lacks one whose row and time last.
    pub(super) fn record_observation(
        &mut self,
        look: &mut Observation,
        pulse: Heartbeat,
        whole: bool,
        now: i64,
        pace: &Timing,
    ) {
        let secs = now.div_euclid(1000);
        let last = self.last_observation.as_ref();
        let other = last.is_none_or(|last| last.server != pulse.server);
        let fewer = last.is_some_and(|last| look.total.is_some_and(|total| total < last.total));
        let lacks = |(address, row): (Address, &BipsRow)| {
            let end = self.entries.get(&address).and_then(|case| case.held_until);
            !row.is_over(secs) && !look.held.has(address) && end.is_some_and(|end| end > secs + 1)
        };
        let restarted = fewer || whole && look.rows.iter().any(lacks);
        if other || restarted {
            // It is noticed within seconds; of what was before this process nobody knows.
            self.epoch += 1;
            self.restoring = (secs + pace.restore_grace, usize::MAX);
        }
        // **For a minute after its start, longer while it still restores, one by one.**
        if whole && self.is_restoring(secs) {
            let lasts = |(address, row): &(Address, &BipsRow)| {
                !row.is_over(secs) && !look.held.has(*address)
            };
            let missing = look.rows.iter().filter(lasts).count();
            if missing < self.restoring.1 {
                let longer =
                    if self.restoring.1 == usize::MAX { 0 } else { secs + pace.restore_grace };
                self.restoring = (self.restoring.0.max(longer), missing);
            }
        }
        let last = self.last_observation.as_ref();
        let fresh = if whole {
            now + pace.observation_ttl.max(10 * look.took)
        } else {
            last.map_or(0, |l| l.valid_until)
        };
        let rest_until =
            if whole { now + 10 * look.took } else { last.map_or(0, |last| last.rest_until) };
        let total = look.total.or(last.map(|last| last.total)).unwrap_or(0);
        let total = if other { look.total.unwrap_or(0) } else { total };
        let due = if whole { i64::MAX } else { last.map_or(i64::MIN, |last| last.next_check_at) };
        let data_version =
            if whole { pulse.data_version } else { last.and_then(|l| l.data_version) };
        let ignored = std::mem::take(&mut look.ignored);
        let (server, bantime) = (pulse.server, look.bantime);
        self.last_observation = Some(LastObservation {
            server,
            data_version,
            total,
            bantime,
            ignored,
            valid_until: fresh,
            rest_until,
            next_check_at: due,
        });
    }

    /// **Whether there is anything to ask**: another server, a write to its database, or something due.
    pub(super) fn needs_observation(&self, pulse: Heartbeat, now: i64) -> bool {
        let Some(shown) = &self.last_observation else { return true };
        let secs = now.div_euclid(1000);
        shown.server != pulse.server
            || pulse.data_version.is_none() && shown.valid_until <= now
            || shown.data_version != pulse.data_version
            || shown.next_check_at <= secs
            || self.is_restoring(secs) && shown.rest_until <= now
            || !self.pending_detections.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000_000;
    const SECS: i64 = NOW / 1000;

    fn pulse(pid: i32, data_version: i64) -> Heartbeat {
        Heartbeat {
            server: ServerInstance { pid, started: SECS - 500 },
            data_version: Some(data_version),
        }
    }

    fn look(total: i64) -> Observation {
        Observation {
            total: Some(total),
            bantime: 600,
            database: Some(0),
            ..Observation::default()
        }
    }

    #[test]
    fn fail2ban_is_asked_only_when_there_is_something_to_ask() {
        let (mut local, pace) = (JailState::default(), Timing::default());
        assert!(local.needs_observation(pulse(1, 1), NOW));
        local.record_observation(&mut look(5), pulse(1, 1), true, NOW, &pace);
        let worth = |local: &JailState, pulse, now| local.needs_observation(pulse, now);
        assert!(worth(&local, pulse(1, 1), NOW + 1000), "it may be restoring bans");
        local.record_observation(
            &mut Observation { took: 500, ..look(5) },
            pulse(1, 1),
            true,
            NOW,
            &pace,
        );
        assert!(
            !worth(&local, pulse(1, 1), NOW + 4_999),
            "so many that a look takes half a second"
        );
        assert!(worth(&local, pulse(1, 1), NOW + 5_000));
        let now = NOW + 61_000;
        assert!(!worth(&local, pulse(1, 1), now));
        assert!(worth(&local, pulse(1, 2), now), "a write");
        assert!(worth(&local, pulse(2, 1), now), "another server");
        assert!(worth(&local, Heartbeat { data_version: None, ..pulse(1, 1) }, now), "no telling");
        local.last_observation.as_mut().unwrap().next_check_at = SECS + 65;
        assert!(!worth(&local, pulse(1, 1), now + 3_000));
        assert!(worth(&local, pulse(1, 1), now + 4_000), "something ends");
    }

    #[test]
    fn a_jail_restores_for_a_minute_and_as_long_as_bans_come_back() {
        let (mut local, pace) = (JailState::default(), Timing::default());
        local.record_observation(&mut look(0), pulse(6, 1), true, NOW - 900_000, &pace);
        let rows: AddressMap<_> = (1..=9)
            .map(|n| Address::new(&format!("192.0.2.{n}")).unwrap())
            .map(|address| (address, BipsRow { timeofban: SECS, bantime: 6000, failures: 3 }))
            .collect();
        let restored = |count: usize| {
            let held = rows.addresses().take(count).map(|address| (address, Some(600))).collect();
            Observation { held, rows: rows.clone(), ..look(i64::try_from(count).unwrap()) }
        };
        let server = ServerInstance { pid: 7, started: SECS };
        let pulse = Heartbeat { server, data_version: Some(1) };
        let mut show = |at: i64, look: &mut Observation| {
            local.record_observation(look, pulse, true, NOW + at * 1000, &pace);
            (local.epoch, local.restoring.0 - SECS)
        };
        assert_eq!(show(0, &mut restored(0)), (2, 60));
        assert_eq!(show(40, &mut restored(1)), (2, 100));
        assert_eq!(show(90, &mut restored(2)), (2, 150));
        assert_eq!(show(120, &mut restored(2)), (2, 150), "nothing came back");
        assert_eq!(show(151, &mut restored(3)), (2, 150), "that was new");
        assert_eq!(show(200, &mut restored(1)), (3, 260), "the jail has started anew");
    }
}
