//! The script's database of reported addresses, which administrators and their scripts read: one row per address,
//! `banned_ips(ip, bantime)`, with the bantime in seconds.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::error::Error;
use crate::model::Address;
use crate::sys::private_files;

const SCHEMA: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS banned_ips(ip TEXT PRIMARY KEY, bantime INTEGER);";

/// The open database. Every address in it was reported, or has a queued report (R23).
#[derive(Debug)]
pub struct Ledger(Connection);

impl Ledger {
    /// Opens or creates the database, readable by root only.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Ledger`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = Error::ledger(path);
        let connection = private_files::database(path, failed)?;
        connection.execute_batch(SCHEMA).map_err(failed)?;
        Ok(Self(connection))
    }

    /// Whether the database has the address.
    ///
    /// # Errors
    /// Any error of `SQLite`.
    pub fn has(&self, address: Address) -> rusqlite::Result<bool> {
        let mut query = self.0.prepare_cached("SELECT 1 FROM banned_ips WHERE ip = ?1")?;
        Ok(query.query_row([address.to_string()], |_| Ok(())).optional()?.is_some())
    }

    /// Inserts an address, or updates its bantime.
    ///
    /// # Errors
    /// Any error of `SQLite`.
    pub fn insert(&self, address: Address, bantime: i64) -> rusqlite::Result<()> {
        let mut insert = self.0.prepare_cached(
            "INSERT INTO banned_ips(ip, bantime) VALUES(?1, ?2)
             ON CONFLICT(ip) DO UPDATE SET bantime = ?2",
        )?;
        insert.execute(params![address.to_string(), bantime]).map(drop)
    }

    /// Deletes an address.
    ///
    /// # Errors
    /// Any error of `SQLite`.
    pub fn delete(&self, address: Address) -> rusqlite::Result<()> {
        let mut delete = self.0.prepare_cached("DELETE FROM banned_ips WHERE ip = ?1")?;
        delete.execute([address.to_string()]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Writes a rollback journal beside a database. A SQLite that rolls it back deletes the super-journal that it
    /// names, here the victim (sqlite.org/fileformat2.html, "The Rollback Journal").
    fn plant_hot_journal(db: &Path, victim: &Path) {
        const PAGE: usize = 4096;
        let magic = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
        Connection::open(db).unwrap().execute_batch(SCHEMA_OF_THE_SCRIPT).unwrap();
        let content = fs::read(db).unwrap();
        let (first, pages) = (&content[..PAGE], u32::try_from(content.len() / PAGE).unwrap());
        let mut journal = magic.to_vec();
        for number in [1, 0, pages, 512, 4096_u32] {
            journal.extend(number.to_be_bytes());
        }
        journal.resize(512, 0);
        let checked = (1..=(PAGE - 1) / 200).map(|n| u32::from(first[PAGE - n * 200]));
        journal.extend(1_u32.to_be_bytes());
        journal.extend(first);
        journal.extend(checked.sum::<u32>().to_be_bytes());
        let name = victim.as_os_str().as_encoded_bytes();
        let sum: u32 = name.iter().map(|byte| u32::from(*byte)).sum();
        journal.extend((0x4000_0000_u32 / 4096 + 1).to_be_bytes());
        journal.extend(name);
        journal.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
        journal.extend(sum.to_be_bytes());
        journal.extend(magic);
        fs::write(db.with_file_name("db-journal"), journal).unwrap();
    }

    const SCHEMA_OF_THE_SCRIPT: &str =
        "CREATE TABLE IF NOT EXISTS banned_ips(ip TEXT PRIMARY KEY, bantime INTEGER)";

    #[test]
    fn planted_hot_journal_deletes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (dir, victim) = (root.path().join("eve"), root.path().join("victim"));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(&victim, "root's").unwrap();
        let db = dir.join("db");
        plant_hot_journal(&db, &victim);
        let refused = Ledger::open(&db).unwrap_err().to_string();
        assert!(
            refused.contains("is writable by every user, who could replace files in the directory")
        );
        assert!(victim.exists());
        // Without the check, opening the database does delete the victim.
        let read = Connection::open(&db).unwrap().execute_batch("SELECT * FROM banned_ips");
        assert!(!victim.exists(), "the attack does not work any more: {read:?}");
    }

    #[test]
    fn ledger_has_the_scripts_table() {
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
        let found: (String, i64) = theirs
            .query_row("SELECT ip, bantime FROM banned_ips", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(found, ("192.0.2.1".to_owned(), -1));
    }
}
