//! Reads fail2ban's database, which tells detections from imports (R6). This program never writes it.
//!
//! Table `bips` has one row for each current or recent ban: `ip, jail, timeofban, bantime, bancount,
//! data`, times in seconds; `data` is JSON with the number of `failures` (fail2ban's
//! `server/database.py`). The row stays when a ban expires, and goes when an operator unbans the address.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use super::column;
use crate::model::address_map::AddressMap;
use crate::model::range::{BANTIME_SECS, TIME_SECS};
use crate::model::{Address, BipsRow, Jail, range};
use crate::wire::SpooledEvent;

/// How long to wait while fail2ban has the database locked, which takes milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);

/// The most unreadable rows that one warning reports.
const MAX_UNREADABLE: usize = 5;

/// The database of a fail2ban server. It is empty if fail2ban keeps none (`dbfile = None`).
#[derive(Debug)]
pub struct Database {
    path: Option<PathBuf>,
    /// Whether fail2ban itself named the path.
    confirmed: bool,
    /// The connection, with device and inode of its file: fail2ban may replace the file.
    open: Option<((u64, u64), Connection)>,
    /// Messages about rows that were skipped since the last report.
    unreadable: Vec<String>,
}

impl Database {
    /// The database at `path`.
    #[must_use]
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path, confirmed: false, open: None, unreadable: Vec::new() }
    }

    /// The path; `None` if fail2ban keeps no database.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Takes the messages about rows that were skipped because of an unreadable value. One such row must not hide
    /// the others.
    pub fn take_unreadable(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unreadable)
    }

    /// Sets the path that fail2ban named.
    pub fn set_path(&mut self, path: Option<PathBuf>) {
        if path != self.path {
            *self = Self::new(path);
        }
        self.confirmed = true;
    }

    /// Whether fail2ban itself named the path, so that it is not just a default.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Whether the file exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.as_deref().is_some_and(Path::exists)
    }

    /// When the file was created, in seconds since 1970: older rows come from another file. `None` without a file;
    /// `i64::MIN` if the file system does not know.
    #[must_use]
    pub fn created_at(&self) -> Option<i64> {
        let meta = std::fs::metadata(self.path.as_deref()?).ok()?;
        Some(meta.created().map_or(i64::MIN, unix_seconds))
    }

    /// A number that changes when fail2ban writes the database; `None` without a file.
    ///
    /// # Errors
    /// Any error of SQLite.
    pub fn data_version(&mut self) -> rusqlite::Result<Option<i64>> {
        let Some((file, connection)) = self.connect()? else { return Ok(None) };
        let version: i64 = connection.query_row("PRAGMA data_version", [], |row| row.get(0))?;
        // SQLite counts per file, so mix in the inode.
        Ok(Some(version ^ file.1.cast_signed().rotate_left(32)))
    }

    /// The rows of some addresses in a jail.
    ///
    /// # Errors
    /// Any error of SQLite, such as a lock that lasts too long.
    pub fn rows(
        &mut self,
        jail: &Jail,
        addresses: &[Address],
    ) -> rusqlite::Result<AddressMap<BipsRow>> {
        let (mut rows, mut unreadable) = (Vec::new(), Vec::new());
        let Some((_, connection)) = self.connect()? else { return Ok(AddressMap::default()) };
        let mut query = connection.prepare_cached(
            "SELECT timeofban, bantime, data FROM bips WHERE jail = ?1 AND ip = ?2",
        )?;
        for address in addresses {
            let mut found = query.query((jail.as_str(), super::format_address(*address)))?;
            if let Some(row) = found.next()? {
                match read(row, 0)? {
                    Ok(row) => rows.push((*address, row)),
                    Err(fault) => unreadable.push(skipped(jail, address, &fault)),
                }
            }
        }
        drop(query);
        self.record_unreadable(unreadable);
        Ok(rows.into_iter().collect())
    }

    /// The row of the ban that notify reported; the outer `None` means that the file does not exist.
    ///
    /// # Errors
    /// Any error of SQLite, such as a lock that lasts too long.
    pub fn row_of(&mut self, spooled: &SpooledEvent) -> rusqlite::Result<Option<Option<BipsRow>>> {
        let rows = self.rows(&spooled.jail, &[spooled.address])?;
        Ok(self.exists().then(|| rows.get(spooled.address).copied()))
    }

    /// Whether a jail has the row of the ban that notify reported. The start of the ban may differ by a second, because
    /// fail2ban and notify round it separately. A database that cannot be read has no row.
    pub fn has_ban(&mut self, jail: &Jail, spooled: &SpooledEvent) -> bool {
        let rows = self.rows(jail, &[spooled.address]).unwrap_or_default();
        let start = spooled.time - 1..=spooled.time + 1;
        rows.get(spooled.address).is_some_and(|row| start.contains(&row.timeofban))
    }

    /// All rows of a jail.
    ///
    /// # Errors
    /// Any error of SQLite, such as a lock that lasts too long.
    pub fn all(&mut self, jail: &Jail) -> rusqlite::Result<AddressMap<BipsRow>> {
        let (mut rows, mut unreadable) = (Vec::new(), Vec::new());
        let Some((_, connection)) = self.connect()? else { return Ok(AddressMap::default()) };
        let mut query = connection
            .prepare_cached("SELECT ip, timeofban, bantime, data FROM bips WHERE jail = ?1")?;
        let mut found = query.query([jail.as_str()])?;
        while let Some(row) = found.next()? {
            // A jail may ban networks or user names, which are not shared.
            let ip = column::text(row.get_ref(0)?);
            let Some(Ok(address)) = ip.map(|ip| Address::new(&ip)) else { continue };
            match read(row, 1)? {
                Ok(row) => rows.push((address, row)),
                Err(fault) if unreadable.len() < MAX_UNREADABLE => {
                    unreadable.push(skipped(jail, address, &fault));
                }
                Err(_) => {}
            }
        }
        drop(found);
        drop(query);
        self.record_unreadable(unreadable);
        Ok(rows.into_iter().collect())
    }

    fn record_unreadable(&mut self, unreadable: Vec<String>) {
        let capacity = MAX_UNREADABLE.saturating_sub(self.unreadable.len());
        self.unreadable.extend(unreadable.into_iter().take(capacity));
    }

    /// The log lines of an address's bans that started at `time`, in seconds since 1970, as far as fail2ban keeps
    /// them (`dbmaxmatches`, 10 by default); `None` if no such ban has a row.
    ///
    /// # Errors
    /// Any error of SQLite, such as a lock that lasts too long.
    pub fn log_lines(
        &mut self,
        address: Address,
        time: i64,
    ) -> rusqlite::Result<Option<Vec<String>>> {
        let Some((_, connection)) = self.connect()? else { return Ok(None) };
        let mut query = connection.prepare_cached(
            "SELECT data FROM bips WHERE ip = ?1 AND timeofban BETWEEN ?2 - 1 AND ?2 + 1",
        )?;
        let mut found = query.query((super::format_address(address), time))?;
        let mut lines = None;
        while let Some(row) = found.next()? {
            let data = row.get_ref(0)?.as_bytes_or_null().ok().flatten().unwrap_or(b"{}");
            let data: Value = serde_json::from_slice(data).unwrap_or_default();
            let matches = data["matches"].as_array().map(Vec::as_slice).unwrap_or_default();
            lines.get_or_insert_with(Vec::new).extend(matches.iter().map(log_line));
        }
        Ok(lines)
    }

    /// The jails that have rows.
    ///
    /// # Errors
    /// Any error of SQLite, such as a lock that lasts too long.
    pub fn jails(&mut self) -> rusqlite::Result<BTreeSet<Jail>> {
        let Some((_, connection)) = self.connect()? else { return Ok(BTreeSet::new()) };
        let mut query = connection.prepare_cached("SELECT DISTINCT jail FROM bips")?;
        let names = query.query_map([], |row| Ok(column::text(row.get_ref(0)?)))?;
        let names: Vec<Option<String>> = names.collect::<rusqlite::Result<_>>()?;
        Ok(names.iter().flatten().filter_map(|name| Jail::new(name).ok()).collect())
    }

    fn connect(&mut self) -> rusqlite::Result<Option<&((u64, u64), Connection)>> {
        let file =
            self.path.as_deref().and_then(|path| Some((path, std::fs::metadata(path).ok()?)));
        let Some((path, meta)) = file else {
            self.open = None;
            return Ok(None);
        };
        let file = (meta.dev(), meta.ino());
        // An immutable connection does not see later changes, so open it again for each use.
        let is_immutable = lacks_log(path);
        if is_immutable || self.open.as_ref().is_none_or(|(open, _)| *open != file) {
            // A key that differs from the file's own makes the next use open the file again.
            let file = if is_immutable { (file.0, !file.1) } else { file };
            self.open = Some((file, open(path, is_immutable)?));
        }
        Ok(self.open.as_ref())
    }
}

/// The warning about a database that cannot be read, which usually is a lock that lasts too long.
#[must_use]
pub fn unreadable(error: &rusqlite::Error) -> String {
    format!("cannot read fail2ban's database: {error}; bans wait until the database can be read")
}

/// Reads a row whose `timeofban` is column `first`; the inner error names the unreadable value. Numbers are clamped to
/// the range of messages, so that later sums cannot overflow.
fn read(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Result<BipsRow, String>> {
    // JSON; Python may have stored it as bytes.
    let data = row.get_ref(first + 2)?.as_bytes_or_null().ok().flatten().unwrap_or(b"{}");
    let data: Value = serde_json::from_slice(data).unwrap_or_default();
    let timeofban = number("timeofban", row.get_ref(first)?);
    let bantime = number("bantime", row.get_ref(first + 1)?);
    Ok(timeofban.and_then(|timeofban| {
        Ok(BipsRow {
            timeofban: range::into(&TIME_SECS, timeofban),
            bantime: restored_bantime(bantime?),
            failures: column::of_json(&data["failures"]),
        })
    }))
}

/// The whole number in a column; the error names the column.
fn number(name: &str, column: ValueRef<'_>) -> Result<i64, String> {
    column::number(column).map_err(|found| format!("{name} is {found}, not a number"))
}

/// The bantime of a row in seconds, as fail2ban restores the ban (`server/database.py`, `getCurrentBans`): -1 is
/// permanent, -2 is unknown (rows of versions before 0.11), and any other negative bantime is over.
fn restored_bantime(bantime: i64) -> i64 {
    match bantime {
        // Count the ban as permanent until fail2ban has restored it and reports its bantime.
        -2 => -1,
        ..-2 => 0,
        _ => range::into(&BANTIME_SECS, bantime),
    }
}

/// A log line, which is stored as a text or as the texts before, of and after its time (fail2ban's
/// `server/ticket.py`).
fn log_line(value: &Value) -> String {
    match value {
        Value::Array(texts) => texts.iter().filter_map(Value::as_str).collect(),
        line => line.as_str().unwrap_or_default().to_owned(),
    }
}

fn skipped(jail: &Jail, address: impl std::fmt::Display, fault: &str) -> String {
    format!("skipped the ban of {address} in {jail} in fail2ban's database: {fault}")
}

/// Opens a database that may be in a directory where this process cannot write.
fn open(path: &Path, is_immutable: bool) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = if is_immutable {
        // To read the file otherwise, SQLite would have to create the log. Without a log, the file has all data.
        let escaped =
            path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let uri = format!("file:{escaped}?immutable=1");
        Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?
    } else {
        Connection::open_with_flags(path, flags)?
    };
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Seconds since 1970; 0 for earlier times.
fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs().cast_signed())
}

/// Whether a database uses a write-ahead log (its bytes 18 and 19 are 2) that does not exist now, because no process
/// has the database open.
fn lacks_log(path: &Path) -> bool {
    let mut head = [0; 20];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    read.is_ok() && head[18..] == [2, 2] && !Path::new(&log).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"CREATE TABLE bips(ip TEXT, jail TEXT, timeofban INTEGER, bantime INTEGER,
            bancount INTEGER, data JSON, PRIMARY KEY(ip, jail));
        INSERT INTO bips VALUES('192.0.2.1','sshd',1000,600,1,'{"matches":[],"failures":3}');
        INSERT INTO bips VALUES('192.0.2.2','sshd',1000,-1,1,'{"failures":0}');
        INSERT INTO bips VALUES('192.0.2.3','other',1000,600,1,'{}');"#;

    #[test]
    fn failures_of_a_row_tell_detections_from_imports() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fail2ban.sqlite3");
        Connection::open(&path).unwrap().execute_batch(TABLE).unwrap();
        let jail = Jail::new("sshd").unwrap();
        let addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|ip| Address::new(ip).unwrap());
        let mut database = Database::new(Some(path));
        let own = BipsRow { timeofban: 1000, bantime: 600, failures: 3 };
        let import = BipsRow { timeofban: 1000, bantime: -1, failures: 0 };
        let expected: AddressMap<_> =
            [(addresses[0], own), (addresses[1], import)].into_iter().collect();
        assert_eq!(database.rows(&jail, &addresses).unwrap(), expected);
        assert_eq!(database.all(&jail).unwrap(), expected);
        let jails = ["other", "sshd"].map(|jail| Jail::new(jail).unwrap());
        assert_eq!(database.jails().unwrap(), jails.into());
        assert!(own.is_over(1599) && !own.is_over(1598) && !import.is_over(i64::MAX));
        let mut none = Database::new(None);
        assert_eq!(none.rows(&jail, &addresses).unwrap(), AddressMap::default());
        assert_eq!(none.data_version().unwrap(), None);
        assert!(!none.exists());
    }

    /// A row of a ban that started at 1000.
    fn row(bantime: i64, failures: i64) -> BipsRow {
        BipsRow { timeofban: 1000, bantime, failures }
    }

    #[test]
    fn negative_bantime_is_read_as_fail2ban_restores_it() {
        let table = [(600, 600), (0, 0), (-1, -1), (-2, -1), (-3, 0), (-600, 0), (i64::MIN, 0)];
        for (bantime, expected) in table {
            let row = row(restored_bantime(bantime), 3);
            assert_eq!(row.bantime, expected, "{bantime}");
            assert_eq!(row.is_over(1100), expected == 0, "{bantime}");
        }
    }

    fn insert(writer: &Connection, ip: &str, jail: &str, time: f64, data: &str) {
        let sql = "INSERT OR REPLACE INTO bips VALUES(?1, ?2, ?3, 600, 1, ?4)";
        writer.execute(sql, (ip, jail, time, data)).unwrap();
    }

    /// The log lines of an address's bans that started at 1000.
    fn log_lines(database: &mut Database, ip: &str) -> Option<Vec<String>> {
        database.log_lines(Address::new(ip).unwrap(), 1000).unwrap()
    }

    #[test]
    fn log_lines_are_those_of_bans_at_the_given_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fail2ban.sqlite3");
        let writer = Connection::open(&path).unwrap();
        writer.execute_batch(TABLE).unwrap();
        let matches = r#"{"matches":[["","Nov 27"," one"],"two",7]}"#;
        insert(&writer, "192.0.2.1", "sshd", 1000.4, matches);
        insert(&writer, "192.0.2.1", "web", 1001.0, r#"{"matches":["three"]}"#);
        insert(&writer, "192.0.2.1", "old", 900.0, r#"{"matches":["four"]}"#);
        insert(&writer, "192.0.2.2", "sshd", 1000.0, r#"{"matches":null}"#);
        let mut database = Database::new(Some(path));
        let expected = ["Nov 27 one", "two", "", "three"].map(str::to_owned).to_vec();
        assert_eq!(log_lines(&mut database, "192.0.2.1"), Some(expected));
        assert_eq!(log_lines(&mut database, "192.0.2.2"), Some(Vec::new()));
        assert_eq!(log_lines(&mut database, "192.0.2.4"), None);
    }

    #[test]
    fn unreadable_row_is_reported_and_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fail2ban.sqlite3");
        let writer = Connection::open(&path).unwrap();
        // fail2ban declares INTEGER, but SQLite stores a number with a fraction as REAL.
        writer.execute_batch(TABLE).unwrap();
        writer
            .execute_batch(
                r#"DELETE FROM bips;
                INSERT INTO bips VALUES('192.0.2.1','sshd',1000.5,612.75,1,'{"failures":3.0}');
                INSERT INTO bips VALUES('192.0.2.2','sshd',1000,NULL,1,'{"failures":"3"}');
                INSERT INTO bips VALUES('192.0.2.3','sshd',1000,'ten minutes',1,'{}');
                INSERT INTO bips VALUES('192.0.2.4','sshd','1000',1e300,1,'{}');
                INSERT INTO bips VALUES(X'ff','sshd',1000,600,1,'{}');
                INSERT INTO bips VALUES(NULL,NULL,1000,600,1,'{}');
                INSERT INTO bips VALUES('10.0.0.0/8','sshd',1000,600,1,'{}');
                INSERT INTO bips VALUES('192.0.2.5','sshd',x'00',600,1,x'ff');"#,
            )
            .unwrap();
        let jail = Jail::new("sshd").unwrap();
        let [one, two, three, four] = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]
            .map(|ip| Address::new(ip).unwrap());
        let expected: AddressMap<_> =
            [(one, row(612, 3)), (two, row(0, 3)), (four, row(*BANTIME_SECS.end(), 0))]
                .into_iter()
                .collect();
        let mut database = Database::new(Some(path));
        assert_eq!(database.all(&jail).unwrap(), expected);
        let skipped = [
            "skipped the ban of 192.0.2.3 in sshd in fail2ban's database: bantime is the text \
             \"ten minutes\", not a number",
            "skipped the ban of 192.0.2.5 in sshd in fail2ban's database: timeofban is Blob, not a number",
        ];
        assert_eq!(database.take_unreadable(), skipped);
        assert_eq!(database.rows(&jail, &[one, two, three, four]).unwrap(), expected);
        assert_eq!(database.take_unreadable(), skipped[..1]);
        assert_eq!(database.jails().unwrap(), [jail].into());
    }

    /// The number of rows of sshd, as a reader that starts has it.
    fn count_rows(path: &Path) -> usize {
        Database::new(Some(path.to_owned())).all(&Jail::new("sshd").unwrap()).unwrap().count()
    }

    #[test]
    fn database_without_its_write_ahead_log_is_read() {
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
        assert!(!lacks_log(&path));
        assert_eq!(count_rows(&path), 1, "the writer is open");
        drop(writer);
        assert!(lacks_log(&path));
        assert_eq!(count_rows(&path), 1, "the writer is closed");
        assert!(lacks_log(&path), "reading creates no log");
    }

    #[test]
    fn data_version_changes_with_a_write_or_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fail2ban.sqlite3");
        let fail2ban = Connection::open(&path).unwrap();
        fail2ban.execute_batch(TABLE).unwrap();
        let mut database = Database::new(Some(path.clone()));
        let first = database.data_version().unwrap();
        assert_eq!(database.data_version().unwrap(), first);
        fail2ban.execute_batch("DELETE FROM bips WHERE ip = '192.0.2.1'").unwrap();
        let second = database.data_version().unwrap();
        assert_ne!(second, first);
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        Connection::open(&path).unwrap().execute_batch(TABLE).unwrap();
        assert_ne!(database.data_version().unwrap(), second);
        assert_eq!(database.all(&Jail::new("sshd").unwrap()).unwrap().count(), 2);
    }
}
