//! Reads the state database for the operator's commands, while the daemon may write to it.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::decode_sources;
use crate::model::{Address, HostName, Jail};
use crate::sys::paths::Paths;

/// All imported addresses.
///
/// # Errors
/// Any error of SQLite.
pub fn imported_addresses(store: &Path) -> rusqlite::Result<BTreeSet<Address>> {
    select_addresses(store, "SELECT DISTINCT ip FROM imports")
}

/// The valid addresses in the first column of a query.
///
/// # Errors
/// Any error of SQLite.
pub fn select_addresses(database: &Path, query: &str) -> rusqlite::Result<BTreeSet<Address>> {
    let db = open(database)?;
    let mut query = db.prepare(query)?;
    let rows = query.query_map([], |row| row.get::<_, String>(0))?;
    Ok(rows.flatten().filter_map(|ip| Address::new(&ip).ok()).collect())
}

/// The origins of all imports; none if the database cannot be read.
#[must_use]
pub fn origins(paths: &Paths) -> BTreeSet<HostName> {
    read_origins(&paths.store()).unwrap_or_default()
}

fn read_origins(store: &Path) -> rusqlite::Result<BTreeSet<HostName>> {
    let db = open(store)?;
    let mut hosts = BTreeSet::new();
    let mut query = db.prepare("SELECT claims FROM imports")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let claims = decode_sources(&row.get::<_, String>(0)?).unwrap_or_default();
        hosts.extend(claims.into_iter().map(|claim| claim.host));
    }
    Ok(hosts)
}

fn open(store: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(store, flags)
}

/// The jails in which an address is imported, with the origins of the claims.
///
/// # Errors
/// Any error of SQLite.
pub fn imported(store: &Path, address: Address) -> rusqlite::Result<BTreeSet<(Jail, HostName)>> {
    let db = open(store)?;
    let mut query = db.prepare("SELECT jail, claims FROM imports WHERE ip = ?1")?;
    let mut rows = query.query([address.to_string()])?;
    let mut imported = BTreeSet::new();
    while let Some(row) = rows.next()? {
        let Ok(jail) = Jail::new(&row.get::<_, String>(0)?) else { continue };
        let claims = decode_sources(&row.get::<_, String>(1)?).unwrap_or_default();
        imported.extend(claims.into_iter().map(|claim| (jail.clone(), claim.host)));
    }
    Ok(imported)
}

/// The addresses among these that are imports in a jail. None is, if the daemon has never run.
///
/// # Errors
/// Any error of SQLite.
pub fn imports(
    store: &Path,
    jail: &Jail,
    addresses: &BTreeSet<Address>,
) -> rusqlite::Result<BTreeSet<Address>> {
    if !store.exists() {
        return Ok(BTreeSet::new());
    }
    let db = open(store)?;
    let mut query = db.prepare("SELECT 1 FROM imports WHERE jail = ?1 AND ip = ?2")?;
    let mut imports = BTreeSet::new();
    for address in addresses {
        if query.exists((jail.as_str(), address.to_string()))? {
            imports.insert(*address);
        }
    }
    Ok(imports)
}

/// The overrides of an address (R14): jail and origin.
///
/// # Errors
/// Any error of SQLite.
pub fn overridden(store: &Path, address: Address) -> rusqlite::Result<BTreeSet<(Jail, HostName)>> {
    let db = open(store)?;
    let mut query = db.prepare("SELECT jail, host FROM overrides WHERE ip = ?1")?;
    let rows = query.query_map([address.to_string()], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
    })?;
    let mut overridden = BTreeSet::new();
    for row in rows {
        let (jail, host) = row?;
        overridden.extend(Jail::new(&jail).ok().zip(HostName::new(&host).ok()));
    }
    Ok(overridden)
}
