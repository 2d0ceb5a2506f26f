//! Which bans an operator made: `f2bmqtt ban` makes fail2ban detect an address, and what nobody detected is
//! not to be reported. A note is on disk before fail2ban hears of the address, names the time in which the
//! ban begins, and lasts as long as fail2ban may restore the ban.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};

use crate::error::Error;
use crate::files;
use crate::wire::Address;

/// fail2ban may have many bans to make before this one, in seconds.
const BEGINS: i64 = 600;

/// fail2ban forgets a ban a day after its end; in seconds.
const RESTORED: i64 = 2 * 86_400;

/// Times are rounded, each its own way.
const SLACK: i64 = 2;

/// Another process may be at it.
const PATIENCE: Duration = Duration::from_secs(2);

// No write-ahead log: fail2ban's actions may run where nothing can be written.
const SCHEMA: &str = "PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS bans(
        ip TEXT NOT NULL, since INTEGER NOT NULL, until INTEGER NOT NULL, keep INTEGER NOT NULL);";

/// The notes.
#[derive(Debug)]
pub struct Notes {
    path: PathBuf,
    db: Connection,
}

impl Notes {
    /// Opens them, or makes them: for root alone.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Queue`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Queue { path: path.to_owned(), source };
        let db = files::database(path, failed)?;
        db.busy_timeout(PATIENCE).map_err(failed)?;
        db.execute_batch(SCHEMA).map_err(failed)?;
        Ok(Self { path: path.to_owned(), db })
    }

    /// Notes that an address is about to be banned by hand, and forgets what no longer matters.
    ///
    /// # Errors
    /// [`Error::Queue`]; then it is not to be banned.
    pub fn note(&mut self, address: Address, now: i64) -> Result<(), Error> {
        self.run("DELETE FROM bans WHERE keep < ?1", &[&now])?;
        let (ip, until) = (address.to_string(), now + BEGINS);
        let keep = until + RESTORED;
        let sql = "INSERT INTO bans VALUES(?1, ?2, ?3, ?4)";
        self.run(sql, &[&ip, &now, &until, &keep])
    }

    /// The ban that was noted at `since` was seen at `seen`, and lasts so many seconds; below 0 is for
    /// ever.
    ///
    /// # Errors
    /// [`Error::Queue`]
    pub fn seen(
        &mut self,
        address: Address,
        since: i64,
        seen: i64,
        bantime: i64,
    ) -> Result<(), Error> {
        let keep = if bantime < 0 { i64::MAX } else { seen + bantime + RESTORED };
        let sql = "UPDATE bans SET until = ?3, keep = ?4 WHERE ip = ?1 AND since = ?2";
        self.run(sql, &[&address.to_string(), &since, &seen, &keep])
    }

    fn run(&self, sql: &str, params: &[&dyn rusqlite::ToSql]) -> Result<(), Error> {
        let failed = |source| Error::Queue { path: self.path.clone(), source };
        self.db.execute(sql, params).map(drop).map_err(failed)
    }
}

/// Whether a ban that began at a time was made by hand; 0 is not known, and then it has just begun. All
/// times are in seconds since 1970.
///
/// # Errors
/// Whatever SQLite says.
pub fn is_noted(path: &Path, address: Address, began: i64, now: i64) -> rusqlite::Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(PATIENCE)?;
    let began = if began > 0 { began } else { now };
    let sql = "SELECT count(*) FROM bans WHERE ip = ?1 AND ?2 BETWEEN since - ?3 AND until + ?3";
    let count =
        db.query_row(sql, params![address.to_string(), began, SLACK], |row| row.get::<_, i64>(0))?;
    Ok(count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_342_588;

    #[test]
    fn a_note_is_of_one_ban_and_lasts_as_long_as_it_may_be_restored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/by-hand.sqlite3");
        let address = |n| Address::new(&format!("203.0.113.{n}")).unwrap();
        let is = |n, began, now| is_noted(&path, address(n), began, now).unwrap();
        assert!(!is(1, NOW, NOW), "no notes at all");
        let mut notes = Notes::open(&path).unwrap();
        notes.note(address(1), NOW).unwrap();
        let table = [
            (1, NOW - 3, false),
            (1, NOW - 2, true),
            (1, NOW + 602, true),
            (1, NOW + 603, false),
            (1, 0, true),
            (2, NOW, false),
        ];
        for (n, began, noted) in table {
            assert_eq!(is(n, began, NOW), noted, "{n} {began}");
        }
        assert!(!is(1, 0, NOW + 603), "who knows no time tells of it at once");
        notes.seen(address(1), NOW, NOW + 5, 600).unwrap();
        assert!(is(1, NOW + 7, NOW + 7) && !is(1, NOW + 8, NOW + 8), "a later ban is another");
        // Restored after a start of fail2ban.
        assert!(is(1, NOW + 1, NOW + 500));
        notes.note(address(2), NOW + 605 + RESTORED).unwrap();
        assert!(is(1, NOW + 1, NOW));
        notes.note(address(2), NOW + 606 + RESTORED).unwrap();
        assert!(!is(1, NOW + 1, NOW), "over");
        notes.note(address(3), NOW).unwrap();
        notes.seen(address(3), NOW, NOW, -1).unwrap();
        notes.note(address(4), NOW * 2).unwrap();
        assert!(is(3, NOW, NOW * 2), "a ban for ever");
    }
}
