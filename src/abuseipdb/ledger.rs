//! What was reported: the script's database, which people and their scripts read. One row an
//! address, `banned_ips(ip, bantime)`, the bantime in seconds.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::error::Error;
use crate::files;
use crate::wire::Address;

const SCHEMA: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS banned_ips(ip TEXT PRIMARY KEY, bantime INTEGER);";

/// The database.
#[derive(Debug)]
pub struct Ledger(Connection);

impl Ledger {
    /// Opens it, and makes it if it is not there: for root alone.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Ledger`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Ledger { path: path.to_owned(), source };
        let connection = files::database(path, failed)?;
        connection.execute_batch(SCHEMA).map_err(failed)?;
        Ok(Self(connection))
    }

    /// Whether the address is in it.
    ///
    /// # Errors
    /// Whatever `SQLite` says.
    pub fn has(&self, address: Address) -> rusqlite::Result<bool> {
        let mut query = self.0.prepare_cached("SELECT 1 FROM banned_ips WHERE ip = ?1")?;
        Ok(query.query_row([address.to_string()], |_| Ok(())).optional()?.is_some())
    }

    /// Puts the address in, or its new bantime.
    ///
    /// # Errors
    /// Whatever `SQLite` says.
    pub fn insert(&self, address: Address, bantime: i64) -> rusqlite::Result<()> {
        let mut insert = self.0.prepare_cached(
            "INSERT INTO banned_ips(ip, bantime) VALUES(?1, ?2)
             ON CONFLICT(ip) DO UPDATE SET bantime = ?2",
        )?;
        insert.execute(params![address.to_string(), bantime]).map(drop)
    }

    /// Takes the address out.
    ///
    /// # Errors
    /// Whatever `SQLite` says.
    pub fn delete(&self, address: Address) -> rusqlite::Result<()> {
        let mut delete = self.0.prepare_cached("DELETE FROM banned_ips WHERE ip = ?1")?;
        delete.execute([address.to_string()]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_script_s_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abuseipdb/fail2ban_abuseipdb");
        let ledger = Ledger::open(&path).unwrap();
        let (one, two) = (Address::new("192.0.2.1").unwrap(), Address::new("192.0.2.2").unwrap());
        ledger.insert(one, 600).unwrap();
        ledger.insert(one, -1).unwrap();
        ledger.insert(two, 60).unwrap();
        ledger.delete(two).unwrap();
        assert!(ledger.has(one).unwrap() && !ledger.has(two).unwrap());
        drop(ledger);
        let theirs = Connection::open(&path).unwrap();
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?));
        let rows = theirs.query_row("SELECT ip, bantime FROM banned_ips", [], row).unwrap();
        assert_eq!(rows, ("192.0.2.1".to_owned(), -1));
    }
}
