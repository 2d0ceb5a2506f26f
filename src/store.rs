//! What this host must remember over a restart, in a SQLite database of its own: the addresses that
//! it banned for others, and for whom. Each write is synced before it is relied on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, params};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::files;
use crate::fleet::reconcile::Mark;
use crate::fleet::{Ban, Import, Key, Word};
use crate::journal;
use crate::wire::{Address, Host, Jail};

/// One row an import; `words` is `{"web1":[stamp,heard,start,bantime],"web2":[stamp,heard]}`.
const SCHEMA: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS imports(
        jail TEXT NOT NULL, ip TEXT NOT NULL, mark TEXT NOT NULL, until INTEGER, words TEXT NOT NULL,
        PRIMARY KEY(jail, ip)) WITHOUT ROWID;";

const ALL: &str = "SELECT jail, ip, mark, words, until FROM imports ORDER BY jail, ip";

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
        drop(connection.prepare(ALL).map_err(failed)?);
        Ok(Self { path: path.to_owned(), connection })
    }

    /// Everything that is remembered. A row that cannot be read is left out.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn load(&self) -> Result<Vec<(Key, Import)>, Error> {
        let failed = |source| Error::Store { doing: "read", path: self.path.clone(), source };
        let mut query = self.connection.prepare(ALL).map_err(failed)?;
        let text = |row: &rusqlite::Row<'_>, column| row.get::<_, String>(column);
        let rows = query
            .query_map([], |row| {
                let texts = (text(row, 0)?, text(row, 1)?, text(row, 2)?, text(row, 3)?);
                Ok((texts, row.get(4)?))
            })
            .map_err(failed)?;
        let mut imports = Vec::new();
        for row in rows {
            let ((jail, ip, mark, words), until) = row.map_err(failed)?;
            if let (Ok(jail), Ok(address), Some(mark), Some(words)) =
                (Jail::new(&jail), Address::new(&ip), read_mark(&mark), read_words(&words))
            {
                imports.push(((jail, address), Import { mark, until, words }));
            }
        }
        Ok(imports)
    }

    /// Remembers changes, all or none; `None` is forgotten.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn save(&mut self, changes: &[(Key, Option<Import>)]) -> Result<(), Error> {
        let path = &self.path;
        let failed = |source| Error::Store { doing: "write", path: path.clone(), source };
        let transaction = self.connection.transaction().map_err(failed)?;
        for ((jail, address), import) in changes {
            let (jail, ip) = (jail.as_str(), address.to_string());
            let written = match import {
                Some(import) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO imports VALUES(?1, ?2, ?3, ?4, ?5)")
                    .and_then(|mut insert| {
                        let words = write_words(&import.words);
                        insert.execute(params![
                            jail,
                            ip,
                            write_mark(import.mark),
                            import.until,
                            words
                        ])
                    }),
                None => transaction
                    .prepare_cached("DELETE FROM imports WHERE jail = ?1 AND ip = ?2")
                    .and_then(|mut delete| delete.execute(params![jail, ip])),
            };
            written.map_err(failed)?;
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

/// No database, or one with other columns: of another version, or somebody else's.
#[must_use]
pub fn is_broken(error: &rusqlite::Error) -> bool {
    use ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error, rusqlite::Error::SqlInputError { .. })
        || matches!(error.sqlite_error_code(), Some(NotADatabase | DatabaseCorrupt))
}

fn write_mark(mark: Mark) -> &'static str {
    match mark {
        Mark::Heard => "heard",
        Mark::Intended => "intended",
        Mark::Done => "done",
    }
}

fn read_mark(text: &str) -> Option<Mark> {
    [Mark::Heard, Mark::Intended, Mark::Done].into_iter().find(|mark| write_mark(*mark) == text)
}

fn write_words(words: &BTreeMap<Host, Word>) -> String {
    let mut object = Map::new();
    for (host, word) in words {
        let word = match word.ban {
            Some(ban) => json!([word.stamp, word.heard, ban.start, ban.bantime]),
            None => json!([word.stamp, word.heard]),
        };
        object.insert(host.as_str().to_owned(), word);
    }
    Value::Object(object).to_string()
}

fn read_words(text: &str) -> Option<BTreeMap<Host, Word>> {
    let object: Map<String, Value> = serde_json::from_str(text).ok()?;
    let word = |(host, value): (String, Value)| {
        let numbers: Option<Vec<i64>> = value.as_array()?.iter().map(Value::as_i64).collect();
        let word = match *numbers?.as_slice() {
            [stamp, heard] => Word { stamp, heard, ban: None },
            [stamp, heard, start, bantime] => {
                Word { stamp, heard, ban: Some(Ban { start, bantime }) }
            }
            _ => return None,
        };
        Some((Host::new(&host).ok()?, word))
    };
    object.into_iter().map(word).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn import(mark: Mark) -> Import {
        let claim = Word { stamp: 5, heard: 7, ban: Some(Ban { start: 4, bantime: -1 }) };
        let word = |name, word| (Host::new(name).unwrap(), word);
        let words = [word("web1", claim), word("w\"eb 2", Word { stamp: 6, heard: 8, ban: None })];
        Import { mark, until: Some(9), words: BTreeMap::from(words) }
    }

    fn key(ip: &str) -> Key {
        (Jail::new("sshd").unwrap(), Address::new(ip).unwrap())
    }

    #[test]
    fn what_was_saved_is_loaded_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/fleet.sqlite3");
        let mut store = Store::open(&path).unwrap();
        let (one, two) = (key("192.0.2.1"), key("2001:db8::1"));
        store.save(&[(one.clone(), Some(import(Mark::Intended))), (two.clone(), None)]).unwrap();
        store.save(&[(two.clone(), Some(import(Mark::Heard)))]).unwrap();
        store.save(&[(one.clone(), Some(import(Mark::Done)))]).unwrap();
        drop(store);
        let mut store = Store::open(&path).unwrap();
        let expected = [(one.clone(), import(Mark::Done)), (two, import(Mark::Heard))];
        assert_eq!(store.load().unwrap(), expected);
        store.save(&[(one, None)]).unwrap();
        assert_eq!(store.load().unwrap(), expected[1..]);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_broken_database_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet.sqlite3");
        std::fs::write(&path, "this is no database, and long enough to be looked at").unwrap();
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), []);
        assert!(dir.path().join("fleet.broken").exists());
        drop(store);
        std::fs::remove_file(&path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE imports(jail TEXT, ip TEXT)").unwrap();
        drop(other);
        assert_eq!(Store::open(&path).unwrap().load().unwrap(), []);
    }
}
