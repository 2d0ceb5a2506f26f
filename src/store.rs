//! What this host must remember over a restart, in a SQLite database of its own: what it banned for
//! others, what its operator lifted, what was freed for the whole fleet. Each write is synced before it is
//! relied on.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, Transaction, params};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::files;
use crate::fleet::claims::carried;
use crate::fleet::lifts::Lift;
use crate::fleet::marks::{Claim, Claims, Mark};
use crate::fleet::{Change, Key, Remembered};
use crate::journal;
use crate::wire::{Address, Ban, Host, Jail, Pardon, Scope, UnbanId};

/// `claims` is `{"web1":[stamp,start,bantime,"id of a fleet unban",…]}`.
const SCHEMA: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; BEGIN;
    CREATE TABLE IF NOT EXISTS marks(
        jail TEXT NOT NULL, ip TEXT NOT NULL, done INTEGER NOT NULL, asked INTEGER NOT NULL,
        answered INTEGER NOT NULL, bantime INTEGER NOT NULL, rowed INTEGER NOT NULL, claims TEXT NOT NULL,
        PRIMARY KEY(jail, ip)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS lifts(
        jail TEXT NOT NULL, ip TEXT NOT NULL, host TEXT NOT NULL, start INTEGER NOT NULL,
        stamp INTEGER NOT NULL, PRIMARY KEY(jail, ip, host)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS unbans(
        scope TEXT NOT NULL, ip TEXT NOT NULL, id TEXT NOT NULL, obeyed INTEGER NOT NULL,
        PRIMARY KEY(scope, ip, id)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS scripts(
        jail TEXT NOT NULL, ip TEXT NOT NULL, host TEXT NOT NULL, since INTEGER NOT NULL,
        PRIMARY KEY(jail, ip, host)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS detected(
        jail TEXT NOT NULL, ip TEXT NOT NULL, start INTEGER NOT NULL, bantime INTEGER NOT NULL,
        PRIMARY KEY(jail, ip)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS stamp(last INTEGER NOT NULL);
    COMMIT;";

const MARKS: &str = "SELECT jail, ip, done, asked, answered, bantime, rowed, claims FROM marks";
const LIFTS: &str = "SELECT jail, ip, host, start, stamp FROM lifts";
const UNBANS: &str = "SELECT scope, ip, id, obeyed FROM unbans";
const SCRIPTS: &str = "SELECT jail, ip, host, since FROM scripts";
const DETECTED: &str = "SELECT jail, ip, start, bantime FROM detected";
const STAMP: &str = "SELECT coalesce(max(last), 0) FROM stamp";

/// What version 1.0.0 kept: `words` is `{"web1":[stamp,heard,start,bantime],"web2":[stamp,heard]}`.
const BEFORE: &str = "SELECT jail, ip, mark, words FROM imports";

/// The database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
}

impl Store {
    /// Opens the database, or makes it. One that is broken is put aside, so that the host goes on;
    /// what it banned for others then ends by this host's own bantime.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::File`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        match Self::try_open(path) {
            Err(Error::Store { source, .. }) if is_broken(&source) => {
                put_aside(path, &source)?;
                Self::try_open(path)
            }
            other => other,
        }
    }

    fn try_open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Store { doing: "open", path: path.to_owned(), source };
        let connection = files::database(path, failed)?;
        connection.execute_batch(SCHEMA).map_err(failed)?;
        for query in [MARKS, LIFTS, UNBANS, SCRIPTS, DETECTED, STAMP] {
            drop(connection.prepare(query).map_err(failed)?);
        }
        let mut store = Self { path: path.to_owned(), connection };
        store.migrate().map_err(failed)?;
        Ok(store)
    }

    /// Takes over what version 1.0.0 kept. When its imports were made is not known: they fit any row.
    fn migrate(&mut self) -> rusqlite::Result<()> {
        let tables = "SELECT count(*) FROM sqlite_master WHERE name = 'imports'";
        if self.connection.query_row(tables, [], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(());
        }
        let transaction = self.connection.transaction()?;
        {
            let mut query = transaction.prepare(BEFORE)?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                let (mark, words): (String, String) = (row.get(2)?, row.get(3)?);
                let Some(key) = key(row)? else { continue };
                for (host, start) in scripts_before(&words) {
                    write(&transaction, &Change::Script(key.clone(), host, Some(start)))?;
                }
                if mark != "heard" {
                    let claims = claims_before(&words);
                    let (asked, answered, bantime) = (0, i64::MAX - 1, -1);
                    let done = mark == "done";
                    let mark =
                        Mark { done, asked, answered, bantime, rowed: false, claims, run: None };
                    write(&transaction, &Change::Mark(key, Some(mark)))?;
                }
            }
        }
        transaction.execute_batch("DROP TABLE imports")?;
        transaction.commit()
    }

    /// Everything that is remembered. A row that cannot be read is left out.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn load(&self) -> Result<Remembered, Error> {
        let failed = |source| Error::Store { doing: "read", path: self.path.clone(), source };
        self.read().map_err(failed)
    }

    fn read(&self) -> rusqlite::Result<Remembered> {
        let mut remembered = Remembered::default();
        self.each(MARKS, |row| {
            let (key, claims) = (key(row)?, row.get::<_, String>(7)?);
            if let (Some(key), Some(claims)) = (key, read_claims(&claims)) {
                let (done, asked, answered) = (row.get(2)?, row.get(3)?, row.get(4)?);
                let (bantime, rowed) = (row.get(5)?, row.get(6)?);
                let mark = Mark { done, asked, answered, bantime, rowed, claims, run: None };
                remembered.marks.insert(key, mark);
            }
            Ok(())
        })?;
        self.each(LIFTS, |row| {
            let (key, host) = (key(row)?, Host::new(&row.get::<_, String>(2)?));
            if let (Some(key), Ok(host)) = (key, host) {
                let lift = Lift { start: row.get(3)?, stamp: row.get(4)? };
                remembered.lifts.insert((key, host), lift);
            }
            Ok(())
        })?;
        self.each(UNBANS, |row| {
            let texts: [String; 3] = [row.get(0)?, row.get(1)?, row.get(2)?];
            let [scope, ip, id] = &texts;
            if let (Ok(scope), Ok(address), Ok(id)) =
                (Scope::new(scope), Address::new(ip), UnbanId::new(id))
            {
                remembered.unbans.insert(Pardon { scope, address, id }, row.get(3)?);
            }
            Ok(())
        })?;
        self.each(SCRIPTS, |row| {
            let (key, host) = (key(row)?, Host::new(&row.get::<_, String>(2)?));
            if let (Some(key), Ok(host)) = (key, host) {
                remembered.scripts.insert((key, host), row.get(3)?);
            }
            Ok(())
        })?;
        self.each(DETECTED, |row| {
            if let Some(key) = key(row)? {
                remembered.detected.insert(key, Ban { start: row.get(2)?, bantime: row.get(3)? });
            }
            Ok(())
        })?;
        remembered.stamp = self.connection.query_row(STAMP, [], |row| row.get(0))?;
        Ok(remembered)
    }

    fn each(
        &self,
        query: &str,
        mut take: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let mut query = self.connection.prepare(query)?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            take(row)?;
        }
        Ok(())
    }

    /// Remembers changes, all or none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn save(&mut self, changes: &[Change]) -> Result<(), Error> {
        let path = &self.path;
        let failed = |source| Error::Store { doing: "write", path: path.clone(), source };
        let transaction = self.connection.transaction().map_err(failed)?;
        for change in changes {
            write(&transaction, change).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }
}

/// Makes room for a new database where a broken one is, which is kept beside it.
///
/// # Errors
/// [`Error::File`].
pub fn put_aside(path: &Path, why: &rusqlite::Error) -> Result<(), Error> {
    let aside = path.with_extension("broken");
    std::fs::rename(path, &aside).map_err(Error::file("put aside", path))?;
    // What was not yet in it is of no use to another.
    for journal in ["sqlite3-wal", "sqlite3-shm"] {
        let _ = std::fs::remove_file(path.with_extension(journal));
    }
    let (path, aside) = (path.display(), aside.display());
    journal::warn(format_args!("{path} is broken ({why}): kept as {aside}, and begun anew"));
    Ok(())
}

fn write(transaction: &Transaction<'_>, change: &Change) -> rusqlite::Result<usize> {
    let run = |sql, params: &[&dyn rusqlite::ToSql]| {
        transaction.prepare_cached(sql).and_then(|mut statement| statement.execute(params))
    };
    match change {
        Change::Mark((jail, address), mark) => {
            let (jail, ip) = (jail.as_str(), address.to_string());
            match mark {
                Some(mark) => run(
                    "INSERT OR REPLACE INTO marks VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![
                        jail,
                        ip,
                        mark.done,
                        mark.asked,
                        mark.answered,
                        mark.bantime,
                        mark.rowed,
                        write_claims(&mark.claims)
                    ],
                ),
                None => run("DELETE FROM marks WHERE jail = ?1 AND ip = ?2", params![jail, ip]),
            }
        }
        Change::Lift((jail, address), host, lift) => {
            let (jail, ip, host) = (jail.as_str(), address.to_string(), host.as_str());
            match lift {
                Some(Lift { start, stamp }) => run(
                    "INSERT OR REPLACE INTO lifts VALUES(?1, ?2, ?3, ?4, ?5)",
                    params![jail, ip, host, start, stamp],
                ),
                None => run(
                    "DELETE FROM lifts WHERE jail = ?1 AND ip = ?2 AND host = ?3",
                    params![jail, ip, host],
                ),
            }
        }
        Change::Unban(Pardon { scope, address, id }, obeyed) => {
            let (scope, ip, id) = (scope.as_str(), address.to_string(), id.as_str());
            match obeyed {
                Some(obeyed) => run(
                    "INSERT OR REPLACE INTO unbans VALUES(?1, ?2, ?3, ?4)",
                    params![scope, ip, id, obeyed],
                ),
                None => run(
                    "DELETE FROM unbans WHERE scope = ?1 AND ip = ?2 AND id = ?3",
                    params![scope, ip, id],
                ),
            }
        }
        Change::Script((jail, address), host, since) => {
            let (jail, ip, host) = (jail.as_str(), address.to_string(), host.as_str());
            match since {
                Some(since) => run(
                    "INSERT OR REPLACE INTO scripts VALUES(?1, ?2, ?3, ?4)",
                    params![jail, ip, host, since],
                ),
                None => run(
                    "DELETE FROM scripts WHERE jail = ?1 AND ip = ?2 AND host = ?3",
                    params![jail, ip, host],
                ),
            }
        }
        Change::Detected((jail, address), ban) => {
            let (jail, ip) = (jail.as_str(), address.to_string());
            match ban {
                Some(Ban { start, bantime }) => run(
                    "INSERT OR REPLACE INTO detected VALUES(?1, ?2, ?3, ?4)",
                    params![jail, ip, start, bantime],
                ),
                None => run("DELETE FROM detected WHERE jail = ?1 AND ip = ?2", params![jail, ip]),
            }
        }
        Change::Stamp(last) => {
            run("DELETE FROM stamp", &[])?;
            run("INSERT INTO stamp VALUES(?1)", params![last])
        }
    }
}

/// The jail and address in a row's first two columns.
fn key(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Key>> {
    let (jail, ip): (String, String) = (row.get(0)?, row.get(1)?);
    Ok(Jail::new(&jail).ok().zip(Address::new(&ip).ok()))
}

/// No database, or one with other columns: somebody else's.
#[must_use]
pub fn is_broken(error: &rusqlite::Error) -> bool {
    use ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error, rusqlite::Error::SqlInputError { .. })
        || matches!(error.sqlite_error_code(), Some(NotADatabase | DatabaseCorrupt))
}

fn write_claims(claims: &[Claim]) -> String {
    let mut object = Map::new();
    for Claim { host, stamp, ban, unbans } in claims {
        let mut list = vec![json!(stamp), json!(ban.start), json!(ban.bantime)];
        let unbans = unbans.as_deref().into_iter().flatten();
        list.extend(unbans.map(|id| json!(id.as_str())));
        object.insert(host.as_str().to_owned(), Value::Array(list));
    }
    Value::Object(object).to_string()
}

/// The claims of a mark, as they are kept; `None` where they cannot be read.
pub(crate) fn read_claims(text: &str) -> Option<Claims> {
    let object: Map<String, Value> = serde_json::from_str(text).ok()?;
    let claim = |(host, value): (String, Value)| {
        let (numbers, ids) = value.as_array()?.split_at_checked(3)?;
        let number = |n: usize| numbers[n].as_i64();
        let ids: Option<Vec<_>> = ids.iter().map(|id| UnbanId::new(id.as_str()?).ok()).collect();
        Some(Claim {
            host: Host::new(&host).ok()?,
            stamp: number(0)?,
            ban: Ban { start: number(1)?, bantime: number(2)? },
            unbans: carried(ids?),
        })
    };
    object.into_iter().map(claim).collect()
}

/// The claims in what version 1.0.0 kept: host, stamp, when it was heard, and the ban.
fn words_before(text: &str) -> Vec<(Host, i64, i64, Ban)> {
    let object: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let word = |(host, value): (String, Value)| {
        let numbers: Option<Vec<i64>> = value.as_array()?.iter().map(Value::as_i64).collect();
        match *numbers?.as_slice() {
            [stamp, heard, start, bantime] => {
                Some((Host::new(&host).ok()?, stamp, heard, Ban { start, bantime }))
            }
            _ => None,
        }
    };
    object.into_iter().filter_map(word).collect()
}

fn claims_before(text: &str) -> Claims {
    let stamped = words_before(text).into_iter().filter(|(_, stamp, ..)| *stamp > 0);
    let claim = |(host, stamp, _, ban)| Claim { host, stamp, ban, unbans: None };
    stamped.map(claim).collect()
}

fn scripts_before(text: &str) -> impl Iterator<Item = (Host, i64)> {
    let scripts = words_before(text).into_iter().filter(|(_, stamp, ..)| *stamp == 0);
    scripts.map(|(host, _, heard, _)| (host, heard))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn host(name: &str) -> Host {
        Host::new(name).unwrap()
    }

    fn mark(done: bool) -> Mark {
        let id = UnbanId::new("web2-5").unwrap();
        let claim = |name, stamp, unbans: &[UnbanId]| {
            let ban = Ban { start: 4, bantime: -1 };
            let unbans = carried(unbans.to_vec());
            Claim { host: host(name), stamp, ban, unbans }
        };
        let claims = [claim("w\"eb 2", 6, &[]), claim("web1", 5, &[id])].into_iter().collect();
        Mark { done, asked: 1, answered: 2, bantime: 600, rowed: done, claims, run: None }
    }

    fn key(ip: &str) -> Key {
        (Jail::new("sshd").unwrap(), Address::new(ip).unwrap())
    }

    #[test]
    fn what_was_saved_is_loaded_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/fleet.sqlite3");
        let (one, two) = (key("192.0.2.1"), key("2001:db8::1"));
        let id = UnbanId::new("web2-5").unwrap();
        let pardon = |scope: &str| Pardon {
            scope: Scope::new(scope).unwrap(),
            address: one.1,
            id: id.clone(),
        };
        let changes = [
            Change::Mark(one.clone(), Some(mark(false))),
            Change::Mark(two.clone(), Some(mark(true))),
            Change::Mark(one.clone(), Some(mark(true))),
            Change::Lift(one.clone(), host("web1"), Some(Lift { start: 1, stamp: 2 })),
            Change::Lift(two.clone(), host("web1"), Some(Lift { start: 3, stamp: 4 })),
            Change::Unban(pardon("*"), Some(false)),
            Change::Unban(pardon("sshd"), Some(false)),
            Change::Unban(pardon("*"), Some(true)),
            Change::Script(one.clone(), host("old"), Some(7)),
            Change::Script(two.clone(), host("old"), Some(8)),
            Change::Detected(one.clone(), Some(Ban { start: 5, bantime: -1 })),
            Change::Detected(two.clone(), Some(Ban { start: 5, bantime: 600 })),
            Change::Stamp(9),
            Change::Stamp(10),
        ];
        let gone = [
            Change::Mark(two.clone(), None),
            Change::Lift(two.clone(), host("web1"), None),
            Change::Unban(pardon("sshd"), None),
            Change::Script(two.clone(), host("old"), None),
            Change::Detected(two, None),
        ];
        let mut expected = Remembered::default();
        let mut store = Store::open(&path).unwrap();
        for changes in [&changes[..], &gone] {
            store.save(changes).unwrap();
            changes.iter().cloned().for_each(|change| expected.apply(change));
            drop(store);
            store = Store::open(&path).unwrap();
            assert_eq!(store.load().unwrap(), expected);
        }
        assert_eq!((expected.marks.len(), expected.detected.len(), expected.stamp), (1, 1, 10));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn each_write_is_on_disk_before_it_is_relied_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("fleet.sqlite3")).unwrap();
        let asked = |pragma: &str| -> String {
            let value = |row: &rusqlite::Row<'_>| row.get::<_, rusqlite::types::Value>(0);
            format!("{:?}", store.connection.pragma_query_value(None, pragma, value).unwrap())
        };
        // With a log, FULL syncs it at each commit.
        assert_eq!(asked("synchronous"), "Integer(2)");
        assert_eq!(asked("journal_mode"), r#"Text("wal")"#);
    }

    #[test]
    fn a_broken_database_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet.sqlite3");
        std::fs::write(&path, "this is no database, and long enough to be looked at").unwrap();
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), Remembered::default());
        assert!(dir.path().join("fleet.broken").exists());
        drop(store);
        std::fs::remove_file(&path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE marks(jail TEXT, ip TEXT)").unwrap();
        drop(other);
        assert_eq!(Store::open(&path).unwrap().load().unwrap(), Remembered::default());
    }

    #[test]
    fn what_the_first_version_kept_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet.sqlite3");
        let before = Connection::open(&path).unwrap();
        before
            .execute_batch(
                r#"CREATE TABLE imports(jail TEXT NOT NULL, ip TEXT NOT NULL, mark TEXT NOT NULL,
                    until INTEGER, words TEXT NOT NULL, PRIMARY KEY(jail, ip)) WITHOUT ROWID;
                INSERT INTO imports VALUES
                    ('sshd', '192.0.2.1', 'done', 9, '{"web1":[5,7,4,-1],"web2":[6,8]}'),
                    ('sshd', '192.0.2.2', 'intended', NULL, '{"web1":[5,7,4,600]}'),
                    ('sshd', '192.0.2.3', 'heard', NULL, '{"old":[0,7,0,600]}');"#,
            )
            .unwrap();
        drop(before);
        for _ in 0..2 {
            let remembered = Store::open(&path).unwrap().load().unwrap();
            let done = &remembered.marks[&key("192.0.2.1")];
            assert!(done.done && !remembered.marks[&key("192.0.2.2")].done);
            assert_eq!(done.claims.len(), 1);
            assert_eq!((done.claims[0].host.as_str(), done.claims[0].stamp), ("web1", 5));
            assert_eq!(done.claims[0].ban, Ban { start: 4, bantime: -1 });
            assert_eq!(remembered.marks.len(), 2);
            assert_eq!(remembered.scripts[&(key("192.0.2.3"), host("old"))], 7);
        }
    }
}
