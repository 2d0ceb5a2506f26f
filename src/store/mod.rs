//! The state database (SQLite): imports, overrides, tombstones and a few other records that only this host has, and
//! that must survive a restart (R11, R20). Each transaction is synced before the daemon relies on it.

mod identity;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::files;
use crate::fleet::claims::seen_tombstones;
use crate::fleet::lifts::Override;
use crate::fleet::marks::{Import, ImportSource, ImportSources, ImportState};
use crate::fleet::{BanKey, PersistedState, Record};
use crate::journal;
use crate::wire::{Address, Ban, FleetUnban, HostName, Jail, JailScope, UnbanId};
pub use identity::Identity;
use identity::{FORMER, IDENTITY};

/// The version of [`SCHEMA`], stored as `user_version`. A change of the schema increments it, and migrates released
/// versions.
const LAYOUT: i32 = 1;

/// `claims` is `{"web1":[stamp,start,bantime,"id of a fleet unban",…]}`.
const SCHEMA: &str = "
    CREATE TABLE imports(
        jail TEXT NOT NULL, ip TEXT NOT NULL, applied INTEGER NOT NULL, requested_at INTEGER NOT NULL,
        confirmed_at INTEGER NOT NULL, bantime INTEGER NOT NULL, row_seen INTEGER NOT NULL,
        claims TEXT NOT NULL, PRIMARY KEY(jail, ip)) WITHOUT ROWID;
    CREATE TABLE overrides(
        jail TEXT NOT NULL, ip TEXT NOT NULL, host TEXT NOT NULL, start INTEGER NOT NULL,
        stamp INTEGER NOT NULL, PRIMARY KEY(jail, ip, host)) WITHOUT ROWID;
    CREATE TABLE tombstones(
        scope TEXT NOT NULL, ip TEXT NOT NULL, id TEXT NOT NULL, applied INTEGER NOT NULL,
        PRIMARY KEY(scope, ip, id)) WITHOUT ROWID;
    CREATE TABLE legacy_claims(
        jail TEXT NOT NULL, ip TEXT NOT NULL, host TEXT NOT NULL, since INTEGER NOT NULL,
        PRIMARY KEY(jail, ip, host)) WITHOUT ROWID;
    CREATE TABLE pending_detections(
        jail TEXT NOT NULL, ip TEXT NOT NULL, start INTEGER NOT NULL, bantime INTEGER NOT NULL,
        PRIMARY KEY(jail, ip)) WITHOUT ROWID;
    CREATE TABLE stamp(last INTEGER NOT NULL);
    CREATE TABLE identity(
        secret TEXT NOT NULL, topic TEXT NOT NULL, brokers TEXT NOT NULL, node TEXT NOT NULL,
        trust INTEGER NOT NULL, keys TEXT NOT NULL);
    CREATE TABLE former(
        node TEXT NOT NULL, topic TEXT NOT NULL, PRIMARY KEY(node, topic)) WITHOUT ROWID;";

const IMPORTS: &str =
    "SELECT jail, ip, applied, requested_at, confirmed_at, bantime, row_seen, claims FROM imports";
const OVERRIDES: &str = "SELECT jail, ip, host, start, stamp FROM overrides";
const TOMBSTONES: &str = "SELECT scope, ip, id, applied FROM tombstones";
const LEGACY_CLAIMS: &str = "SELECT jail, ip, host, since FROM legacy_claims";
const PENDING_DETECTIONS: &str = "SELECT jail, ip, start, bantime FROM pending_detections";
const STAMP: &str = "SELECT coalesce(max(last), 0) FROM stamp";

/// The open state database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
}

impl Store {
    /// Opens or creates the database. One that is broken, or has an unknown layout, is moved aside so that the daemon can
    /// start; its imports then end with the bantimes of this host.
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
        lay_out(&connection, LAYOUT, SCHEMA).map_err(failed)?;
        let queries = [
            IMPORTS,
            OVERRIDES,
            TOMBSTONES,
            LEGACY_CLAIMS,
            PENDING_DETECTIONS,
            STAMP,
            IDENTITY,
            FORMER,
        ];
        for query in queries {
            drop(connection.prepare(query).map_err(failed)?);
        }
        Ok(Self { path: path.to_owned(), connection })
    }

    /// Loads all records. An unreadable row is skipped.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn load(&self) -> Result<PersistedState, Error> {
        let failed = |source| Error::Store { doing: "read", path: self.path.clone(), source };
        self.read().map_err(failed)
    }

    fn read(&self) -> rusqlite::Result<PersistedState> {
        let mut remembered = PersistedState::default();
        self.each(IMPORTS, |row| {
            let (key, claims) = (key(row)?, row.get::<_, String>(7)?);
            if let (Some(key), Some(claims)) = (key, read_claims(&claims)) {
                let (done, asked, answered) = (row.get(2)?, row.get(3)?, row.get(4)?);
                let (bantime, rowed) = (row.get(5)?, row.get(6)?);
                let import = Import {
                    state: if done { ImportState::Applied } else { ImportState::Intended },
                    requested_at: asked,
                    confirmed_at: answered,
                    bantime,
                    row_seen: rowed,
                    sources: claims,
                    jail_epoch: None,
                };
                remembered.imports.insert(key, import);
            }
            Ok(())
        })?;
        self.each(OVERRIDES, |row| {
            let (key, host) = (key(row)?, HostName::new(&row.get::<_, String>(2)?));
            if let (Some(key), Ok(host)) = (key, host) {
                let local_override = Override { start: row.get(3)?, stamp: row.get(4)? };
                remembered.overrides.insert((key, host), local_override);
            }
            Ok(())
        })?;
        self.each(TOMBSTONES, |row| {
            let texts: [String; 3] = [row.get(0)?, row.get(1)?, row.get(2)?];
            let [scope, ip, id] = &texts;
            if let (Ok(scope), Ok(address), Ok(id)) =
                (JailScope::new(scope), Address::new(ip), UnbanId::new(id))
            {
                remembered.tombstones.insert(FleetUnban { scope, address, id }, row.get(3)?);
            }
            Ok(())
        })?;
        self.each(LEGACY_CLAIMS, |row| {
            let (key, host) = (key(row)?, HostName::new(&row.get::<_, String>(2)?));
            if let (Some(key), Ok(host)) = (key, host) {
                remembered.legacy_claims.insert((key, host), row.get(3)?);
            }
            Ok(())
        })?;
        self.each(PENDING_DETECTIONS, |row| {
            if let Some(key) = key(row)? {
                remembered
                    .pending_detections
                    .insert(key, Ban { start: row.get(2)?, bantime: row.get(3)? });
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

    /// The greatest stamp that this host may have used; 0 if none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn stamp(&self) -> Result<i64, Error> {
        let failed = |source| Error::Store { doing: "read", path: self.path.clone(), source };
        self.connection.query_row(STAMP, [], |row| row.get(0)).map_err(failed)
    }

    /// Saves records in one transaction.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn save(&mut self, changes: &[Record]) -> Result<(), Error> {
        let path = &self.path;
        let failed = |source| Error::Store { doing: "write", path: path.clone(), source };
        let transaction = self.connection.transaction().map_err(failed)?;
        for change in changes {
            write(&transaction, change).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }
}

/// Prepares a database: an empty one gets the tables of `schema`, and `layout` as its `user_version`.
///
/// # Errors
/// An error of SQLite; `NotADatabase` if the database has another layout.
pub fn lay_out(database: &Connection, layout: i32, schema: &str) -> rusqlite::Result<()> {
    // With WAL, FULL syncs the log at each commit.
    database.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")?;
    // Another process may create the tables at the same time.
    let transaction = Transaction::new_unchecked(database, TransactionBehavior::Immediate)?;
    let number = |sql| transaction.query_row(sql, [], |row| row.get::<_, i32>(0));
    let found = number("PRAGMA user_version")?;
    if found == layout {
        return Ok(());
    }
    if found == 0 && number("SELECT count(*) FROM sqlite_master")? == 0 {
        transaction.execute_batch(schema)?;
        transaction.pragma_update(None, "user_version", layout)?;
        return transaction.commit();
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOTADB);
    let why = format!(
        "the database has layout version {found}, but this f2bmqtt reads only version {layout}"
    );
    Err(rusqlite::Error::SqliteFailure(code, Some(why)))
}

/// Moves an unusable database aside, so that a new one can be created.
///
/// # Errors
/// [`Error::File`].
pub fn put_aside(path: &Path, why: &rusqlite::Error) -> Result<(), Error> {
    let aside = path.with_extension("broken");
    std::fs::rename(path, &aside).map_err(Error::file("rename", path))?;
    // The log of the old database must not be replayed into the new one.
    for journal in ["sqlite3-wal", "sqlite3-shm"] {
        let _ = std::fs::remove_file(path.with_extension(journal));
    }
    let (path, aside) = (path.display(), aside.display());
    journal::warn(format_args!(
        "cannot use {path}: {why}. Moved it to {aside} and created a new one"
    ));
    Ok(())
}

fn write(transaction: &Transaction<'_>, change: &Record) -> rusqlite::Result<usize> {
    let run = |sql, params: &[&dyn rusqlite::ToSql]| {
        transaction.prepare_cached(sql).and_then(|mut statement| statement.execute(params))
    };
    match change {
        Record::Import((jail, address), import) => {
            let (jail, ip) = (jail.as_str(), address.to_string());
            match import {
                Some(import) => run(
                    "INSERT OR REPLACE INTO imports VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![
                        jail,
                        ip,
                        import.is_applied(),
                        import.requested_at,
                        import.confirmed_at,
                        import.bantime,
                        import.row_seen,
                        write_claims(&import.sources)
                    ],
                ),
                None => run("DELETE FROM imports WHERE jail = ?1 AND ip = ?2", params![jail, ip]),
            }
        }
        Record::Override((jail, address), host, local_override) => {
            let (jail, ip, host) = (jail.as_str(), address.to_string(), host.as_str());
            match local_override {
                Some(Override { start, stamp }) => run(
                    "INSERT OR REPLACE INTO overrides VALUES(?1, ?2, ?3, ?4, ?5)",
                    params![jail, ip, host, start, stamp],
                ),
                None => run(
                    "DELETE FROM overrides WHERE jail = ?1 AND ip = ?2 AND host = ?3",
                    params![jail, ip, host],
                ),
            }
        }
        Record::Tombstone(FleetUnban { scope, address, id }, applied) => {
            let (scope, ip, id) = (scope.as_str(), address.to_string(), id.as_str());
            match applied {
                Some(applied) => run(
                    "INSERT OR REPLACE INTO tombstones VALUES(?1, ?2, ?3, ?4)",
                    params![scope, ip, id, applied],
                ),
                None => run(
                    "DELETE FROM tombstones WHERE scope = ?1 AND ip = ?2 AND id = ?3",
                    params![scope, ip, id],
                ),
            }
        }
        Record::LegacyClaim((jail, address), host, since) => {
            let (jail, ip, host) = (jail.as_str(), address.to_string(), host.as_str());
            match since {
                Some(since) => run(
                    "INSERT OR REPLACE INTO legacy_claims VALUES(?1, ?2, ?3, ?4)",
                    params![jail, ip, host, since],
                ),
                None => run(
                    "DELETE FROM legacy_claims WHERE jail = ?1 AND ip = ?2 AND host = ?3",
                    params![jail, ip, host],
                ),
            }
        }
        Record::PendingDetection((jail, address), ban) => {
            let (jail, ip) = (jail.as_str(), address.to_string());
            match ban {
                Some(Ban { start, bantime }) => run(
                    "INSERT OR REPLACE INTO pending_detections VALUES(?1, ?2, ?3, ?4)",
                    params![jail, ip, start, bantime],
                ),
                None => run(
                    "DELETE FROM pending_detections WHERE jail = ?1 AND ip = ?2",
                    params![jail, ip],
                ),
            }
        }
        Record::Stamp(last) => {
            run("DELETE FROM stamp", &[])?;
            run("INSERT INTO stamp VALUES(?1)", params![last])
        }
    }
}

/// The jail and address in a row's first two columns.
fn key(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<BanKey>> {
    let (jail, ip): (String, String) = (row.get(0)?, row.get(1)?);
    Ok(Jail::new(&jail).ok().zip(Address::new(&ip).ok()))
}

/// Whether a file is no database, or a database with other columns.
#[must_use]
pub fn is_broken(error: &rusqlite::Error) -> bool {
    use ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error, rusqlite::Error::SqlInputError { .. })
        || matches!(error.sqlite_error_code(), Some(NotADatabase | DatabaseCorrupt))
}

/// Whether a value has the wrong type. Then one row is bad, not the database.
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

fn write_claims(claims: &[ImportSource]) -> String {
    let mut object = Map::new();
    for ImportSource { host, stamp, ban, unbans } in claims {
        let mut list = vec![json!(stamp), json!(ban.start), json!(ban.bantime)];
        let unbans = unbans.as_deref().into_iter().flatten();
        list.extend(unbans.map(|id| json!(id.as_str())));
        object.insert(host.as_str().to_owned(), Value::Array(list));
    }
    Value::Object(object).to_string()
}

/// Parses the sources of an import, the column `claims`; `None` if they are malformed.
pub(crate) fn read_claims(text: &str) -> Option<ImportSources> {
    let object: Map<String, Value> = serde_json::from_str(text).ok()?;
    let claim = |(host, value): (String, Value)| {
        let (numbers, ids) = value.as_array()?.split_at_checked(3)?;
        let number = |n: usize| numbers[n].as_i64();
        let ids: Option<Vec<_>> = ids.iter().map(|id| UnbanId::new(id.as_str()?).ok()).collect();
        Some(ImportSource {
            host: HostName::new(&host).ok()?,
            stamp: number(0)?,
            ban: Ban { start: number(1)?, bantime: number(2)? },
            unbans: seen_tombstones(ids?),
        })
    };
    object.into_iter().map(claim).collect()
}

#[cfg(test)]
mod tests;
