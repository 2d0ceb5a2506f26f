//! What this host must remember over a restart, in a SQLite database of its own: what it banned for
//! others, what its operator lifted, what was freed for the whole fleet. Each write is synced before it is
//! relied on.

mod before;
mod identity;

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
pub use identity::Identity;
use identity::{FORMER, IDENTITY};

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
    CREATE TABLE IF NOT EXISTS identity(
        secret TEXT NOT NULL, topic TEXT NOT NULL, brokers TEXT NOT NULL, node TEXT NOT NULL,
        trust INTEGER NOT NULL, keys TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS former(
        node TEXT NOT NULL, topic TEXT NOT NULL, PRIMARY KEY(node, topic)) WITHOUT ROWID;
    COMMIT;";

const MARKS: &str = "SELECT jail, ip, done, asked, answered, bantime, rowed, claims FROM marks";
const LIFTS: &str = "SELECT jail, ip, host, start, stamp FROM lifts";
const UNBANS: &str = "SELECT scope, ip, id, obeyed FROM unbans";
const SCRIPTS: &str = "SELECT jail, ip, host, since FROM scripts";
const DETECTED: &str = "SELECT jail, ip, start, bantime FROM detected";
const STAMP: &str = "SELECT coalesce(max(last), 0) FROM stamp";

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
        for query in [MARKS, LIFTS, UNBANS, SCRIPTS, DETECTED, STAMP, IDENTITY, FORMER] {
            drop(connection.prepare(query).map_err(failed)?);
        }
        let mut store = Self { path: path.to_owned(), connection };
        before::migrate(&mut store.connection).map_err(failed)?;
        Ok(store)
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
            match take(row) {
                Err(error) if is_odd_value(&error) => {
                    journal::warn(format_args!(
                        "skipped a row of {}: {error}",
                        self.path.display()
                    ));
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// The greatest stamp that this host may have taken; 0 for none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn stamp(&self) -> Result<i64, Error> {
        let failed = |source| Error::Store { doing: "read", path: self.path.clone(), source };
        self.connection.query_row(STAMP, [], |row| row.get(0)).map_err(failed)
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
    std::fs::rename(path, &aside).map_err(Error::file("rename", path))?;
    // What was not yet in it is of no use to another.
    for journal in ["sqlite3-wal", "sqlite3-shm"] {
        let _ = std::fs::remove_file(path.with_extension(journal));
    }
    let (path, aside) = (path.display(), aside.display());
    journal::warn(format_args!(
        "{path} is corrupt ({why}); renamed to {aside}, and replaced by a new \
                                database"
    ));
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

/// A value that has another type than its column should have: one row is at fault, not the database.
#[must_use]
pub fn is_odd_value(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{
        FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error,
    };
    matches!(
        error,
        FromSqlConversionFailure(..)
            | IntegralValueOutOfRange(..)
            | InvalidColumnType(..)
            | Utf8Error(..)
    )
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

#[cfg(test)]
mod tests;
