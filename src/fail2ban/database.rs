//! fail2ban's own database: why an address is banned. Read, never written.
//!
//! Table `bips` has one row for a current or recent ban: `ip, jail, timeofban, bantime, bancount,
//! data`, times in seconds; `data` is JSON with the number of `failures` (fail2ban's
//! `server/database.py`). A ban that ends leaves its row; one that an operator lifts does not.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use serde_json::Value;

use crate::fleet::reconcile::Origin;
use crate::wire::{Address, Jail};

/// fail2ban writes for milliseconds at a time.
const PATIENCE: Duration = Duration::from_millis(250);

/// What the database says of a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// When it began, in seconds since 1970.
    pub timeofban: i64,
    /// How long it lasts, in seconds; -1 is for ever.
    pub bantime: i64,
    /// How many failures led to it; 0 where it was not detected here.
    pub failures: i64,
}

impl Row {
    /// When the ban ends, in seconds since 1970; `None`: never.
    #[must_use]
    pub fn end(&self) -> Option<i64> {
        (self.bantime >= 0).then(|| self.timeofban.saturating_add(self.bantime))
    }

    /// Whether the ban is over `now`. fail2ban rounds times to the second, so one is left in doubt.
    #[must_use]
    pub fn is_over(&self, now: i64) -> bool {
        self.end().is_some_and(|end| end <= now.saturating_add(1))
    }

    /// Where the ban came from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        if self.failures > 0 { Origin::Own } else { Origin::Told }
    }
}

/// The database of a fail2ban server, opened anew for each look, since fail2ban may replace it.
/// fail2ban may have none (`dbfile = None`): then nothing is in it.
#[derive(Clone, Debug)]
pub struct Database {
    path: Option<PathBuf>,
}

impl Database {
    /// The database at `path`.
    #[must_use]
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path }
    }

    /// Whether fail2ban keeps one.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.path.as_deref().is_some_and(Path::exists)
    }

    /// The rows of some addresses in a jail, in their order.
    ///
    /// # Errors
    /// Whatever SQLite says: that it is locked for too long, say.
    pub fn rows(&self, jail: &Jail, addresses: &[Address]) -> rusqlite::Result<Vec<Option<Row>>> {
        let Some(path) = self.path.as_deref().filter(|path| path.exists()) else {
            return Ok(vec![None; addresses.len()]);
        };
        let connection = open(path)?;
        let mut query = connection
            .prepare("SELECT timeofban, bantime, data FROM bips WHERE jail = ?1 AND ip = ?2")?;
        let mut rows = Vec::with_capacity(addresses.len());
        for address in addresses {
            let row = query.query_row((jail.as_str(), address.to_string()), |row| {
                // JSON, as a text or, where Python stored it so, as bytes.
                let data = row.get_ref(2)?.as_bytes_or_null().ok().flatten().unwrap_or(b"{}");
                let data: Value = serde_json::from_slice(data).unwrap_or_default();
                Ok(Row {
                    timeofban: row.get(0)?,
                    bantime: row.get(1)?,
                    failures: data["failures"].as_i64().unwrap_or(0),
                })
            });
            rows.push(row.optional()?);
        }
        Ok(rows)
    }
}

/// Opens a database that may lie where this process cannot write.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = if wants_log(path) {
        // To read it, SQLite would have to make the log. Without one, the file is all there is.
        let escaped =
            path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let uri = format!("file:{escaped}?immutable=1");
        Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?
    } else {
        Connection::open_with_flags(path, flags)?
    };
    connection.busy_timeout(PATIENCE)?;
    Ok(connection)
}

/// Whether a database has its changes in a write-ahead log (its bytes 18 and 19 are 2) that nobody
/// has open now.
fn wants_log(path: &Path) -> bool {
    let mut head = [0; 20];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    read.is_ok() && head[18..] == [2, 2] && !Path::new(&log).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_tell_own_bans_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fail2ban.sqlite3");
        Connection::open(&path)
            .unwrap()
            .execute_batch(
                r#"CREATE TABLE bips(ip TEXT, jail TEXT, timeofban INTEGER, bantime INTEGER,
                     bancount INTEGER, data JSON, PRIMARY KEY(ip, jail));
                   INSERT INTO bips VALUES('192.0.2.1','sshd',1000,600,1,'{"matches":[],"failures":3}');
                   INSERT INTO bips VALUES('192.0.2.2','sshd',1000,-1,1,'{"failures":0}');
                   INSERT INTO bips VALUES('192.0.2.3','other',1000,600,1,'{}');"#,
            )
            .unwrap();
        let jail = Jail::new("sshd").unwrap();
        let addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|ip| Address::new(ip).unwrap());
        let rows = Database::new(Some(path)).rows(&jail, &addresses).unwrap();
        let own = Row { timeofban: 1000, bantime: 600, failures: 3 };
        let import = Row { timeofban: 1000, bantime: -1, failures: 0 };
        assert_eq!(rows, [Some(own), Some(import), None]);
        assert_eq!((own.origin(), import.origin()), (Origin::Own, Origin::Told));
        assert!(own.is_over(1599) && !own.is_over(1598) && !import.is_over(i64::MAX));
        let none = Database::new(None);
        assert_eq!(none.rows(&jail, &addresses).unwrap(), [None; 3]);
        assert!(!none.is_kept());
    }

    #[test]
    fn a_write_ahead_log_need_not_be_there_to_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("odd %3f?#name.sqlite3");
        let writer = Connection::open(&path).unwrap();
        writer
            .execute_batch(
                "PRAGMA journal_mode = WAL;
                 CREATE TABLE bips(ip, jail, timeofban, bantime, bancount, data);
                 INSERT INTO bips VALUES('192.0.2.1', 'sshd', 1000, 600, 1, '{}')",
            )
            .unwrap();
        let (jail, address) = (Jail::new("sshd").unwrap(), Address::new("192.0.2.1").unwrap());
        let found =
            || Database::new(Some(path.clone())).rows(&jail, &[address]).unwrap()[0].is_some();
        assert!(!wants_log(&path) && found(), "it is open");
        drop(writer);
        assert!(wants_log(&path) && found(), "it is closed");
        assert!(wants_log(&path), "reading makes no log");
    }
}
