//! The state database (SQLite): imports, overrides, tombstones and a few other records that only this host has, and
//! that must survive a restart (R11, R20). Each transaction is synced before the daemon relies on it.

mod identity;
pub mod reader;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, Row, ToSql, Transaction, TransactionBehavior, params};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::fleet::claims::seen_tombstones;
use crate::fleet::imports::{Import, ImportSource, ImportSources, ImportState};
use crate::fleet::overrides::Override;
use crate::fleet::{BanKey, PersistedState, Record};
use crate::model::{Address, HostName, Jail, JailScope, UnbanId};
use crate::sys::{log, private_files};
use crate::wire::{Ban, FleetUnban};
pub use identity::{Former, Identity};
use identity::{SELECT_FORMER, SELECT_IDENTITY};

/// The version of [`SCHEMA`], stored as `user_version`. A change of the schema increments it, and migrates released
/// versions.
const SCHEMA_VERSION: i32 = 1;

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

const SELECT_IMPORTS: &str =
    "SELECT jail, ip, applied, requested_at, confirmed_at, bantime, row_seen, claims FROM imports";
const SELECT_OVERRIDES: &str = "SELECT jail, ip, host, start, stamp FROM overrides";
const SELECT_TOMBSTONES: &str = "SELECT scope, ip, id, applied FROM tombstones";
const SELECT_LEGACY_CLAIMS: &str = "SELECT jail, ip, host, since FROM legacy_claims";
const SELECT_PENDING_DETECTIONS: &str = "SELECT jail, ip, start, bantime FROM pending_detections";
const SELECT_STAMP: &str = "SELECT coalesce(max(last), 0) FROM stamp";

/// The open state database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
}

impl Store {
    /// Opens or creates the database. A database that is broken or has an unknown schema is moved aside, so that the
    /// daemon can start; the imports in that database then end with the bantimes of this host.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::File`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        match Self::try_open(path) {
            Err(Error::Store { source, .. }) if is_broken(&source) => {
                move_aside(path, &source)?;
                Self::try_open(path)
            }
            other => other,
        }
    }

    fn try_open(path: &Path) -> Result<Self, Error> {
        let failed = Error::store("open", path);
        let connection = private_files::database(path, failed)?;
        prepare_schema(&connection, SCHEMA_VERSION, SCHEMA).map_err(failed)?;
        let queries = [
            SELECT_IMPORTS,
            SELECT_OVERRIDES,
            SELECT_TOMBSTONES,
            SELECT_LEGACY_CLAIMS,
            SELECT_PENDING_DETECTIONS,
            SELECT_STAMP,
            SELECT_IDENTITY,
            SELECT_FORMER,
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
        self.read_all().map_err(Error::store("read", &self.path))
    }

    fn read_all(&self) -> rusqlite::Result<PersistedState> {
        Ok(PersistedState {
            imports: self.read_rows(SELECT_IMPORTS, read_import)?,
            overrides: self.read_rows(SELECT_OVERRIDES, read_override)?,
            tombstones: self.read_rows(SELECT_TOMBSTONES, read_tombstone)?,
            legacy_claims: self.read_rows(SELECT_LEGACY_CLAIMS, read_legacy_claim)?,
            pending_detections: self.read_rows(SELECT_PENDING_DETECTIONS, read_detection)?,
            stamp: self.connection.query_row(SELECT_STAMP, [], |row| row.get(0))?,
        })
    }

    /// Reads all rows that `read` accepts, and skips bad rows.
    fn read_rows<T, C: Default + Extend<T>>(
        &self,
        query: &str,
        read: fn(&Row<'_>) -> rusqlite::Result<Option<T>>,
    ) -> rusqlite::Result<C> {
        let mut query = self.connection.prepare(query)?;
        let mut rows = query.query([])?;
        let mut records = C::default();
        while let Some(row) = rows.next()? {
            match read(row) {
                Ok(record) => records.extend(record),
                Err(error) if is_wrong_type(&error) => {
                    let path = self.path.display();
                    log::warn(format_args!("skipped a row of {path}: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// The greatest stamp that this host may have used; 0 if none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn stamp(&self) -> Result<i64, Error> {
        let stamp = self.connection.query_row(SELECT_STAMP, [], |row| row.get(0));
        stamp.map_err(Error::store("read", &self.path))
    }

    /// Saves records in one transaction.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn save(&mut self, changes: &[Record]) -> Result<(), Error> {
        let failed = Error::store("write", &self.path);
        let transaction = self.connection.transaction().map_err(failed)?;
        for change in changes {
            write(&transaction, change).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }
}

/// Prepares a database: an empty one gets the tables of `schema`, and `version` as its `user_version`.
///
/// # Errors
/// An error of SQLite; `NotADatabase` if the database has another version.
pub fn prepare_schema(database: &Connection, version: i32, schema: &str) -> rusqlite::Result<()> {
    // With WAL, FULL syncs the log at each commit.
    database.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")?;
    // Another process may create the tables at the same time.
    let transaction = Transaction::new_unchecked(database, TransactionBehavior::Immediate)?;
    let found: i32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found == version {
        return Ok(());
    }
    if found == 0 && !transaction.prepare("SELECT 1 FROM sqlite_master")?.exists([])? {
        transaction.execute_batch(schema)?;
        transaction.pragma_update(None, "user_version", version)?;
        return transaction.commit();
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOTADB);
    let why = format!(
        "the database has schema version {found}, but this f2bmqtt reads only version {version}"
    );
    Err(rusqlite::Error::SqliteFailure(code, Some(why)))
}

/// Moves an unusable database aside, so that a new one can be created.
///
/// # Errors
/// [`Error::File`].
pub fn move_aside(path: &Path, why: &rusqlite::Error) -> Result<(), Error> {
    let aside = path.with_extension("broken");
    std::fs::rename(path, &aside).map_err(Error::file("rename", path))?;
    // The log of the old database must not be replayed into the new one.
    for journal in ["sqlite3-wal", "sqlite3-shm"] {
        let _ = std::fs::remove_file(path.with_extension(journal));
    }
    let (path, aside) = (path.display(), aside.display());
    log::warn(format_args!("cannot use {path}: {why}. Moved it to {aside} and created a new one"));
    Ok(())
}

fn execute(
    transaction: &Transaction<'_>,
    sql: &str,
    params: &[&dyn ToSql],
) -> rusqlite::Result<usize> {
    transaction.prepare_cached(sql)?.execute(params)
}

/// Inserts, replaces or deletes the row of one record.
fn write(transaction: &Transaction<'_>, record: &Record) -> rusqlite::Result<usize> {
    match record {
        Record::Import(key, import) => write_import(transaction, key, import.as_ref()),
        Record::Override((jail, address), host, local_override) => {
            let (jail, ip, host) = (jail.as_str(), address.to_string(), host.as_str());
            match local_override {
                Some(Override { start, stamp }) => execute(
                    transaction,
                    "INSERT OR REPLACE INTO overrides VALUES(?1, ?2, ?3, ?4, ?5)",
                    params![jail, ip, host, start, stamp],
                ),
                None => execute(
                    transaction,
                    "DELETE FROM overrides WHERE jail = ?1 AND ip = ?2 AND host = ?3",
                    params![jail, ip, host],
                ),
            }
        }
        Record::Tombstone(FleetUnban { scope, address, id }, applied) => {
            let (scope, ip, id) = (scope.as_str(), address.to_string(), id.as_str());
            match applied {
                Some(applied) => execute(
                    transaction,
                    "INSERT OR REPLACE INTO tombstones VALUES(?1, ?2, ?3, ?4)",
                    params![scope, ip, id, applied],
                ),
                None => execute(
                    transaction,
                    "DELETE FROM tombstones WHERE scope = ?1 AND ip = ?2 AND id = ?3",
                    params![scope, ip, id],
                ),
            }
        }
        Record::LegacyClaim((jail, address), host, since) => {
            let (jail, ip, host) = (jail.as_str(), address.to_string(), host.as_str());
            match since {
                Some(since) => execute(
                    transaction,
                    "INSERT OR REPLACE INTO legacy_claims VALUES(?1, ?2, ?3, ?4)",
                    params![jail, ip, host, since],
                ),
                None => execute(
                    transaction,
                    "DELETE FROM legacy_claims WHERE jail = ?1 AND ip = ?2 AND host = ?3",
                    params![jail, ip, host],
                ),
            }
        }
        Record::PendingDetection((jail, address), ban) => {
            let (jail, ip) = (jail.as_str(), address.to_string());
            match ban {
                Some(Ban { start, bantime }) => execute(
                    transaction,
                    "INSERT OR REPLACE INTO pending_detections VALUES(?1, ?2, ?3, ?4)",
                    params![jail, ip, start, bantime],
                ),
                None => execute(
                    transaction,
                    "DELETE FROM pending_detections WHERE jail = ?1 AND ip = ?2",
                    params![jail, ip],
                ),
            }
        }
        Record::Stamp(last) => {
            execute(transaction, "DELETE FROM stamp", &[])?;
            execute(transaction, "INSERT INTO stamp VALUES(?1)", params![last])
        }
    }
}

fn write_import(
    transaction: &Transaction<'_>,
    (jail, address): &BanKey,
    import: Option<&Import>,
) -> rusqlite::Result<usize> {
    let (jail, ip) = (jail.as_str(), address.to_string());
    let Some(import) = import else {
        let sql = "DELETE FROM imports WHERE jail = ?1 AND ip = ?2";
        return execute(transaction, sql, params![jail, ip]);
    };
    execute(
        transaction,
        "INSERT OR REPLACE INTO imports VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            jail,
            ip,
            import.is_applied(),
            import.requested_at,
            import.confirmed_at,
            import.bantime,
            import.row_seen,
            encode_sources(&import.sources)
        ],
    )
}

/// The jail and address in a row's first two columns.
fn read_key(row: &Row<'_>) -> rusqlite::Result<Option<BanKey>> {
    let (jail, ip): (String, String) = (row.get(0)?, row.get(1)?);
    Ok(Jail::new(&jail).ok().zip(Address::new(&ip).ok()))
}

/// The jail, address and host in a row's first three columns.
fn read_claim_key(row: &Row<'_>) -> rusqlite::Result<Option<(BanKey, HostName)>> {
    let host: String = row.get(2)?;
    Ok(read_key(row)?.zip(HostName::new(&host).ok()))
}

fn read_import(row: &Row<'_>) -> rusqlite::Result<Option<(BanKey, Import)>> {
    let sources: String = row.get(7)?;
    let Some((key, sources)) = read_key(row)?.zip(decode_sources(&sources)) else {
        return Ok(None);
    };
    let import = Import {
        state: if row.get(2)? { ImportState::Applied } else { ImportState::Intended },
        requested_at: row.get(3)?,
        confirmed_at: row.get(4)?,
        bantime: row.get(5)?,
        row_seen: row.get(6)?,
        sources,
        // The next look at fail2ban shows in which run of the jail the ban is.
        jail_epoch: None,
    };
    Ok(Some((key, import)))
}

fn read_override(row: &Row<'_>) -> rusqlite::Result<Option<((BanKey, HostName), Override)>> {
    let local_override = Override { start: row.get(3)?, stamp: row.get(4)? };
    Ok(read_claim_key(row)?.map(|key| (key, local_override)))
}

fn read_tombstone(row: &Row<'_>) -> rusqlite::Result<Option<(FleetUnban, bool)>> {
    let (scope, ip, id): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let parsed = (JailScope::new(&scope), Address::new(&ip), UnbanId::new(&id));
    let (Ok(scope), Ok(address), Ok(id)) = parsed else { return Ok(None) };
    Ok(Some((FleetUnban { scope, address, id }, row.get(3)?)))
}

fn read_legacy_claim(row: &Row<'_>) -> rusqlite::Result<Option<((BanKey, HostName), i64)>> {
    let since = row.get(3)?;
    Ok(read_claim_key(row)?.map(|key| (key, since)))
}

fn read_detection(row: &Row<'_>) -> rusqlite::Result<Option<(BanKey, Ban)>> {
    let ban = Ban { start: row.get(2)?, bantime: row.get(3)? };
    Ok(read_key(row)?.map(|key| (key, ban)))
}

/// Whether a file is no database, or a database with other columns.
#[must_use]
pub fn is_broken(error: &rusqlite::Error) -> bool {
    use ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error, rusqlite::Error::SqlInputError { .. })
        || matches!(error.sqlite_error_code(), Some(NotADatabase | DatabaseCorrupt))
}

/// Whether a value has the wrong type. Such an error concerns one row, and not the whole database.
#[must_use]
pub fn is_wrong_type(error: &rusqlite::Error) -> bool {
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

/// The value of the column `claims`; see [`SCHEMA`].
fn encode_sources(sources: &[ImportSource]) -> String {
    let mut object = Map::new();
    for ImportSource { host, stamp, ban, unbans } in sources {
        let mut list = vec![json!(stamp), json!(ban.start), json!(ban.bantime)];
        let unbans = unbans.as_deref().into_iter().flatten();
        list.extend(unbans.map(|id| json!(id.as_str())));
        object.insert(host.as_str().to_owned(), Value::Array(list));
    }
    Value::Object(object).to_string()
}

/// Parses the sources of an import, the column `claims`; `None` if they are malformed.
pub(crate) fn decode_sources(text: &str) -> Option<ImportSources> {
    let object: Map<String, Value> = serde_json::from_str(text).ok()?;
    object.iter().map(|(host, value)| decode_source(host, value)).collect()
}

fn decode_source(host: &str, value: &Value) -> Option<ImportSource> {
    let (numbers, ids) = value.as_array()?.split_at_checked(3)?;
    let ids: Option<Vec<_>> = ids.iter().map(|id| UnbanId::new(id.as_str()?).ok()).collect();
    Some(ImportSource {
        host: HostName::new(host).ok()?,
        stamp: numbers[0].as_i64()?,
        ban: Ban { start: numbers[1].as_i64()?, bantime: numbers[2].as_i64()? },
        unbans: seen_tombstones(ids?),
    })
}

#[cfg(test)]
mod tests;
