//! Records which bans an operator made. `f2bmqtt ban` makes fail2ban detect an address, but only real detections
//! may be reported (R23). The record is on disk before fail2ban gets the address, names the time range in which the
//! ban starts, and lasts as long as fail2ban may restore the ban.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};

use crate::error::Error;
use crate::model::Address;
use crate::sys::private_files;

/// How long after the command the ban may start: fail2ban may have many bans to make first.
const START_WINDOW_SECS: i64 = 600;

/// How long after its end fail2ban may restore a ban: it purges rows a day after their end.
const RESTORE_WINDOW_SECS: i64 = 2 * 86_400;

/// The times that are compared are rounded in different ways.
const TIME_TOLERANCE_SECS: i64 = 2;

/// How long to wait for another process that has the database locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

// No write-ahead log: fail2ban's actions may run where nothing can be written.
const SCHEMA: &str = "PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS bans(
        ip TEXT NOT NULL, since INTEGER NOT NULL, until INTEGER NOT NULL, keep INTEGER NOT NULL);";

/// The database of manual bans, open for writing.
#[derive(Debug)]
pub struct ManualBanLog {
    path: PathBuf,
    db: Connection,
}

impl ManualBanLog {
    /// Opens or creates the database, readable by root only.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Queue`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = Error::queue(path);
        let db = private_files::database(path, failed)?;
        db.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        db.execute_batch(SCHEMA).map_err(failed)?;
        Ok(Self { path: path.to_owned(), db })
    }

    /// Records that the operator is about to ban an address, and deletes expired records.
    ///
    /// # Errors
    /// [`Error::Queue`]; the caller must not ban the address then.
    pub fn record(&mut self, address: Address, now: i64) -> Result<(), Error> {
        self.run("DELETE FROM bans WHERE keep < ?1", &[&now])?;
        let (ip, until) = (address.to_string(), now + START_WINDOW_SECS);
        let keep = until + RESTORE_WINDOW_SECS;
        let sql = "INSERT INTO bans VALUES(?1, ?2, ?3, ?4)";
        self.run(sql, &[&ip, &now, &until, &keep])
    }

    /// Narrows the record made at `since` once fail2ban has the ban: `confirmed_at` is the time of that observation,
    /// and the bantime is in seconds (below 0: permanent).
    ///
    /// # Errors
    /// [`Error::Queue`].
    pub fn confirm(
        &mut self,
        address: Address,
        since: i64,
        confirmed_at: i64,
        bantime: i64,
    ) -> Result<(), Error> {
        let keep =
            if bantime < 0 { i64::MAX } else { confirmed_at + bantime + RESTORE_WINDOW_SECS };
        let sql = "UPDATE bans SET until = ?3, keep = ?4 WHERE ip = ?1 AND since = ?2";
        self.run(sql, &[&address.to_string(), &since, &confirmed_at, &keep])
    }

    fn run(&self, sql: &str, params: &[&dyn rusqlite::ToSql]) -> Result<(), Error> {
        self.db.execute(sql, params).map(drop).map_err(Error::queue(&self.path))
    }
}

/// Whether an operator made the ban that started at `start` (0: unknown, taken as `now`). Times are in seconds
/// since 1970.
///
/// # Errors
/// Any error of SQLite.
pub fn is_recorded(path: &Path, address: Address, start: i64, now: i64) -> rusqlite::Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    let start = if start > 0 { start } else { now };
    let sql = "SELECT count(*) FROM bans WHERE ip = ?1 AND ?2 BETWEEN since - ?3 AND until + ?3";
    let count =
        db.query_row(sql, params![address.to_string(), start, TIME_TOLERANCE_SECS], |row| {
            row.get::<_, i64>(0)
        })?;
    Ok(count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_342_588;

    fn address(n: u8) -> Address {
        Address::new(&format!("203.0.113.{n}")).unwrap()
    }

    #[test]
    fn record_of_a_manual_ban_lasts_while_fail2ban_may_restore_the_ban() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/by-hand.sqlite3");
        assert!(!is_recorded(&path, address(1), NOW, NOW).unwrap(), "no records at all");
        let mut log = ManualBanLog::open(&path).unwrap();
        log.record(address(1), NOW).unwrap();
        let table = [
            (1, NOW - 3, false),
            (1, NOW - 2, true),
            (1, NOW + 602, true),
            (1, NOW + 603, false),
            (1, 0, true),
            (2, NOW, false),
        ];
        for (n, start, expected) in table {
            let found = is_recorded(&path, address(n), start, NOW).unwrap();
            assert_eq!(found, expected, "{n} {start}");
        }
        let without_time = is_recorded(&path, address(1), 0, NOW + 603).unwrap();
        assert!(!without_time, "a ban without a time has just started");
        log.confirm(address(1), NOW, NOW + 5, 600).unwrap();
        // A ban that starts later is another ban. The third one is restored after a start of fail2ban.
        for (start, now, expected) in
            [(NOW + 7, NOW + 7, true), (NOW + 8, NOW + 8, false), (NOW + 1, NOW + 500, true)]
        {
            assert_eq!(is_recorded(&path, address(1), start, now).unwrap(), expected, "{start}");
        }
        log.record(address(2), NOW + 605 + RESTORE_WINDOW_SECS).unwrap();
        assert!(is_recorded(&path, address(1), NOW + 1, NOW).unwrap());
        log.record(address(2), NOW + 606 + RESTORE_WINDOW_SECS).unwrap();
        assert!(!is_recorded(&path, address(1), NOW + 1, NOW).unwrap(), "expired");
        log.record(address(3), NOW).unwrap();
        log.confirm(address(3), NOW, NOW, -1).unwrap();
        log.record(address(4), NOW * 2).unwrap();
        assert!(is_recorded(&path, address(3), NOW, NOW * 2).unwrap(), "a permanent ban");
    }
}
