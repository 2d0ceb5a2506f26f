//! The observed state of each jail, and whether the jail needs another observation (R19). An observation of a large
//! jail costs fail2ban seconds, so it happens only after a change or at a deadline.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::Timing;
use super::claims::Claim;
use super::fair_queue::Ticket;
use super::imports::Import;
use super::tombstones::{self, Usage};
use crate::guard::ignorelist::IgnoreList;
use crate::model::address_map::AddressMap;
use crate::model::{Address, BipsRow, UnbanId};
use crate::wire::Ban;

/// The identity of one run of fail2ban's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerInstance {
    /// The process id.
    pub pid: i32,
    /// When the server created its socket, in seconds since 1970. The process ID alone does not identify a run, because
    /// the kernel reuses process IDs.
    pub started: i64,
}

/// One observation of a jail: of all its bans, or of some addresses.
#[derive(Debug, Default)]
pub struct Observation {
    /// The held addresses, with the length of each ban in seconds, below 0 for a permanent ban; `None` if unknown.
    pub held: AddressMap<Option<i64>>,
    /// Rows of fail2ban's database.
    pub rows: AddressMap<BipsRow>,
    /// When the database was created, in seconds since 1970; `None`: fail2ban has none.
    pub database: Option<i64>,
    /// How many bans the jail made since it started, if known.
    pub total: Option<i64>,
    /// The bantime of the jail, in seconds; below 0 for permanent bans.
    pub bantime: i64,
    /// How long the database keeps expired rows, in seconds.
    pub purge_age: i64,
    /// The addresses that the jail must not ban (R1).
    pub ignored: IgnoreList,
    /// How long the observation took, in milliseconds.
    pub took: i64,
}

impl Observation {
    /// Whether fail2ban lacks a ban whose row has not expired: it may be about to restore the ban. `now` is in seconds.
    pub(super) fn lacks(&self, address: Address, now: i64) -> bool {
        !self.held.has(address) && self.rows.get(address).is_some_and(|row| !row.is_over(now))
    }
}

/// The facts that every poll reads, at almost no cost. A change of these facts requires observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The server that answered.
    pub server: ServerInstance,
    /// SQLite's `data_version`, which changes with every write to fail2ban's database; `None` without a database.
    pub data_version: Option<i64>,
}

/// The current scan over all jails that need an observation. A long scan continues over several cycles. After a scan,
/// the daemon handles queued claims for the same time, so that neither starves the other (R22).
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// When the current scan started, in milliseconds.
    pub(super) since: Option<i64>,
    /// Until when the next scan waits for queued claims, in milliseconds.
    pub(super) pause: i64,
}

/// The state of one address in one jail. There are up to hundreds of thousands, most with one claim, which is stored
/// inline.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The latest claim of each peer (R2).
    pub(super) claims: SmallVec<[Claim; 1]>,
    /// The import record, which the daemon makes before the ban (R9).
    pub(super) import: Option<Box<Import>>,
    /// When fail2ban ends its ban, in seconds since 1970; `i64::MAX` for a permanent ban.
    pub(super) held_until: Option<i64>,
    /// Whether fail2ban's database has a row of the address.
    pub(super) in_database: bool,
    /// Whether fail2ban may be about to restore the ban from a row that has not expired (R7).
    pub(super) may_be_restored: bool,
    /// The place in the queue of addresses that wait for a decision.
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

/// A ban that this host detected (R6).
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalBan {
    pub(super) ban: Ban,
    /// The run of the jail that held the ban last.
    pub(super) jail_epoch: u32,
    /// Whether an observation had fail2ban's row of the ban.
    pub(super) in_database: bool,
}

impl LocalBan {
    /// Whether fail2ban's database, which was created at `database`, had the row of the ban. A new database lost it.
    pub(super) fn had_row_in(&self, database: Option<i64>) -> bool {
        self.in_database && database.is_some_and(|created| created <= self.ban.start)
    }
}

/// A detection that fail2ban's database does not have yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingDetection {
    pub(super) ban: Ban,
    /// The cycle in which the detection arrived. An observation of that cycle may be older than the ban.
    pub(super) cycle: u64,
    /// Whether the state database has the detection.
    pub(super) persisted: bool,
    /// When the echo of this host's own event arrived, in milliseconds; `None` if notify reported the detection.
    pub(super) echo: Option<i64>,
}

impl PendingDetection {
    /// Whether fail2ban's row shows that an echo is forged: fail2ban makes no ban of an address that it still bans.
    pub(super) fn is_refuted_by(&self, row: Option<BipsRow>) -> bool {
        let start = self.ban.start;
        self.echo.is_some() && row.is_some_and(|row| row.timeofban < start && !row.is_over(start))
    }
}

/// The state of one jail.
#[derive(Debug, Default)]
pub(super) struct JailState {
    pub(super) entries: BTreeMap<Address, Box<Entry>>,
    pub(super) local_bans: BTreeMap<Address, LocalBan>,
    pub(super) pending_detections: BTreeMap<Address, PendingDetection>,
    pub(super) last_observation: Option<LastObservation>,
    /// The time since which fail2ban lacks the jail, in seconds since 1970 (R8), and the last tombstone applied by that
    /// time.
    pub(super) missing_since: Option<(i64, u64)>,
    /// Counts the starts of the jail.
    pub(super) epoch: u32,
    /// Until when the jail may be restoring bans (R7), in seconds since 1970, and how many were missing last.
    restoring: (i64, usize),
}

/// The last observation of the jail, without its addresses.
#[derive(Debug)]
pub(super) struct LastObservation {
    server: ServerInstance,
    data_version: Option<i64>,
    total: i64,
    pub(super) bantime: i64,
    pub(super) ignored: IgnoreList,
    /// Until when the observation is recent enough to act on, in milliseconds.
    pub(super) valid_until: i64,
    /// Until when a jail that may be restoring bans is not observed again, in milliseconds: ten times the duration of
    /// the last full observation, so that observing takes at most a tenth of fail2ban's time.
    rest_until: i64,
    /// The next deadline of the jail, such as the end of a ban, in seconds since 1970.
    pub(super) next_check_at: i64,
}

impl JailState {
    /// Whether the jail has no state: no observation and no claims.
    pub(super) fn is_empty(&self) -> bool {
        let known = self.last_observation.is_some() || self.missing_since.is_some();
        !known
            && self.entries.is_empty()
            && self.local_bans.is_empty()
            && self.pending_detections.is_empty()
    }

    /// Whether the state comes from messages of peers alone, and so counts against their limits (R21).
    pub(super) fn is_of_others(&self) -> bool {
        let known = self.last_observation.is_some()
            || self.missing_since.is_some()
            || !self.local_bans.is_empty();
        !known && self.entries.values().all(|entry| entry.import.is_none())
    }

    /// Whether bans of an address in this jail need a tombstone (R17).
    pub(super) fn usage(&self, address: Address, id: &UnbanId, timing: &Timing) -> Usage {
        if self.local_bans.contains_key(&address) || self.pending_detections.contains_key(&address)
        {
            return Usage::Referenced;
        }
        let Some(entry) = self.entries.get(&address) else { return Usage::Unused };
        let usages = entry.claims.iter().filter_map(|claim| {
            let is_newer = tombstones::is_outlived(id, claim.ban?.start, timing);
            let needs_none = claim.is_legacy() || claim.carries(id) || is_newer;
            Some(if needs_none { Usage::Referenced } else { Usage::Missing })
        });
        let without_claims = if entry.import.is_some() { Usage::Referenced } else { Usage::Unused };
        usages.max().unwrap_or(without_claims)
    }

    /// How many imports the jail has.
    pub(super) fn import_count(&self) -> usize {
        self.entries.values().filter(|entry| entry.import.is_some()).count()
    }

    /// The bantime of the jail, once observed.
    pub(super) fn bantime(&self) -> Option<i64> {
        self.last_observation.as_ref().map(|shown| shown.bantime)
    }

    /// Moves deadlines closer after the clock was set back, so that nothing waits for a time far ahead.
    pub(super) fn on_clock_rollback(&mut self, now: i64, timing: &Timing) {
        self.restoring.0 = self.restoring.0.min(now.div_euclid(1000) + timing.restore_grace);
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

    /// Records the facts of an observation that concern the whole jail. The jail has restarted if another server
    /// answers, if its count of bans fell, or if a ban is missing whose row and lease have not expired.
    pub(super) fn record_observation(
        &mut self,
        observation: &mut Observation,
        heartbeat: Heartbeat,
        whole: bool,
        now: i64,
        timing: &Timing,
    ) {
        let secs = now.div_euclid(1000);
        let last = self.last_observation.as_ref();
        let other = last.is_none_or(|last| last.server != heartbeat.server);
        let fewer =
            last.is_some_and(|last| observation.total.is_some_and(|total| total < last.total));
        let restarted = fewer || whole && self.has_lost_a_ban(observation, secs);
        if other || restarted {
            // The start of a jail is noticed within seconds. Whether it started before this process is unknown.
            self.epoch += 1;
            self.restoring = (secs + timing.restore_grace, usize::MAX);
        }
        // A jail restores its bans one by one: for a minute after its start, and as long as bans come back (R7).
        if whole && self.is_restoring(secs) {
            let addresses = observation.rows.addresses();
            let missing = addresses.filter(|address| observation.lacks(*address, secs)).count();
            if missing < self.restoring.1 {
                let longer =
                    if self.restoring.1 == usize::MAX { 0 } else { secs + timing.restore_grace };
                self.restoring = (self.restoring.0.max(longer), missing);
            }
        }
        let last = self.last_observation.as_ref();
        let valid_until = if whole {
            now + timing.observation_ttl.max(10 * observation.took)
        } else {
            last.map_or(0, |l| l.valid_until)
        };
        let rest_until = if whole {
            now + 10 * observation.took
        } else {
            last.map_or(0, |last| last.rest_until)
        };
        let total = observation.total.or(last.map(|last| last.total)).unwrap_or(0);
        let total = if other { observation.total.unwrap_or(0) } else { total };
        let next_check_at =
            if whole { i64::MAX } else { last.map_or(i64::MIN, |last| last.next_check_at) };
        let data_version =
            if whole { heartbeat.data_version } else { last.and_then(|l| l.data_version) };
        let ignored = std::mem::take(&mut observation.ignored);
        let (server, bantime) = (heartbeat.server, observation.bantime);
        self.last_observation = Some(LastObservation {
            server,
            data_version,
            total,
            bantime,
            ignored,
            valid_until,
            rest_until,
            next_check_at,
        });
    }

    /// Whether fail2ban lost a ban whose row and lease have not expired. Only a restart of the jail does that.
    fn has_lost_a_ban(&self, observation: &Observation, now: i64) -> bool {
        observation.rows.addresses().any(|address| {
            let end = self.entries.get(&address).and_then(|entry| entry.held_until);
            observation.lacks(address, now) && end.is_some_and(|end| end > now + 1)
        })
    }

    /// Whether the jail needs an observation: another server, a write to the database, or a deadline.
    pub(super) fn needs_observation(&self, heartbeat: Heartbeat, now: i64) -> bool {
        let Some(shown) = &self.last_observation else { return true };
        let secs = now.div_euclid(1000);
        shown.server != heartbeat.server
            || heartbeat.data_version.is_none() && shown.valid_until <= now
            || shown.data_version != heartbeat.data_version
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

    fn heartbeat(pid: i32, data_version: i64) -> Heartbeat {
        Heartbeat {
            server: ServerInstance { pid, started: SECS - 500 },
            data_version: Some(data_version),
        }
    }

    fn observation(total: i64) -> Observation {
        Observation {
            total: Some(total),
            bantime: 600,
            database: Some(0),
            ..Observation::default()
        }
    }

    #[test]
    fn jail_is_observed_only_after_a_change_or_at_a_deadline() {
        let (mut jail_state, timing) = (JailState::default(), Timing::default());
        assert!(jail_state.needs_observation(heartbeat(1, 1), NOW));
        jail_state.record_observation(&mut observation(5), heartbeat(1, 1), true, NOW, &timing);
        let is_needed = jail_state.needs_observation(heartbeat(1, 1), NOW + 1000);
        assert!(is_needed, "the jail may be restoring bans");
        jail_state.record_observation(
            &mut Observation { took: 500, ..observation(5) },
            heartbeat(1, 1),
            true,
            NOW,
            &timing,
        );
        // An observation that took half a second is repeated after five seconds, even if the jail restores bans.
        assert!(!jail_state.needs_observation(heartbeat(1, 1), NOW + 4_999));
        assert!(jail_state.needs_observation(heartbeat(1, 1), NOW + 5_000));
        jail_state.last_observation.as_mut().unwrap().next_check_at = SECS + 65;
        let without_database = Heartbeat { data_version: None, ..heartbeat(1, 1) };
        // Milliseconds after the first observation, the heartbeat -> an observation is needed.
        let table = [
            (61_000, heartbeat(1, 1), false),
            (61_000, heartbeat(1, 2), true), // a write
            (61_000, heartbeat(2, 1), true), // another server
            (61_000, without_database, true),
            (64_000, heartbeat(1, 1), false),
            (65_000, heartbeat(1, 1), true), // a deadline
        ];
        for (after, heartbeat, expected) in table {
            let is_needed = jail_state.needs_observation(heartbeat, NOW + after);
            assert_eq!(is_needed, expected, "{after} {heartbeat:?}");
        }
    }

    /// An observation in which fail2ban holds some of the addresses of its rows.
    fn restored(rows: &AddressMap<BipsRow>, count: usize) -> Observation {
        let held = rows.addresses().take(count).map(|address| (address, Some(600))).collect();
        Observation { held, rows: rows.clone(), ..observation(i64::try_from(count).unwrap()) }
    }

    #[test]
    fn jail_restores_for_a_minute_and_as_long_as_bans_come_back() {
        let (mut jail_state, timing) = (JailState::default(), Timing::default());
        jail_state.record_observation(
            &mut observation(0),
            heartbeat(6, 1),
            true,
            NOW - 900_000,
            &timing,
        );
        let rows: AddressMap<_> = (1..=9)
            .map(|n| Address::new(&format!("192.0.2.{n}")).unwrap())
            .map(|address| (address, BipsRow { timeofban: SECS, bantime: 6000, failures: 3 }))
            .collect();
        let server = ServerInstance { pid: 7, started: SECS };
        let heartbeat = Heartbeat { server, data_version: Some(1) };
        // Seconds after the start, how many are held -> the run of the jail, until when it may restore.
        let table = [
            (0, 0, (2, 60)),
            (40, 1, (2, 100)),
            (90, 2, (2, 150)),
            (120, 2, (2, 150)), // no ban came back
            (151, 3, (2, 150)), // a new ban
            (200, 1, (3, 260)), // the jail has restarted
        ];
        for (after, count, expected) in table {
            let mut observation = restored(&rows, count);
            let now = NOW + after * 1000;
            jail_state.record_observation(&mut observation, heartbeat, true, now, &timing);
            assert_eq!((jail_state.epoch, jail_state.restoring.0 - SECS), expected, "{after}");
        }
    }
}
