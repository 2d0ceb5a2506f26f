//! How the reporter stands, for people: how much waits, and how many calls are left today. It is read
//! beside the worker, and changes nothing.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, Result as SqlResult};

use super::report::Report;
use crate::paths::Paths;
use crate::spool::Spool;

/// What AbuseIPDB said last of one kind of call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// `check`, `report` or `bulk-report`.
    pub call: String,
    /// How many more the key may make today, and how many a day.
    pub remaining: i64,
    #[allow(missing_docs)]
    pub quota: Option<i64>,
    /// When that was, in seconds since 1970.
    pub seen: i64,
}

/// One reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    /// Reports that are not sent yet.
    pub waiting: usize,
    /// The calls that are left.
    pub left: Vec<Left>,
}

/// Reads it; `None` where nothing was ever to be reported.
#[must_use]
pub fn glance(paths: &Paths) -> Option<Glance> {
    let inbox = Spool::<Report>::new(paths.reports()).list().map_or(0, |names| names.len());
    match read(&paths.report_queue()) {
        Ok(glance) => Some(Glance { waiting: glance.waiting + inbox, ..glance }),
        Err(_) if inbox > 0 => Some(Glance { waiting: inbox, left: Vec::new() }),
        Err(_) => None,
    }
}

fn read(path: &Path) -> SqlResult<Glance> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    let waiting = db.query_one("SELECT count(*) FROM waiting", [], |row| row.get(0))?;
    let mut left = db.prepare(
        "SELECT name, remaining, quota, seen FROM calls \
         WHERE remaining IS NOT NULL ORDER BY name",
    )?;
    let left = left.query_map([], |row| {
        let seen = row.get::<_, Option<i64>>(3)?.unwrap_or_default();
        Ok(Left { call: row.get(0)?, remaining: row.get(1)?, quota: row.get(2)?, seen })
    })?;
    Ok(Glance { waiting, left: left.collect::<SqlResult<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abuseipdb::answer::Quota;
    use crate::abuseipdb::queue::{Call, Queue};

    #[test]
    fn what_waits_and_what_is_left_is_read_beside_the_worker() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths { state: root.path().to_owned(), ..Paths::default() };
        assert_eq!(glance(&paths), None, "it never ran");
        let mut queue = Queue::open(&paths.report_queue()).unwrap();
        assert_eq!(glance(&paths), Some(Glance::default()));
        queue.remains(Call::Report, Quota { limit: Some(1000), remaining: Some(990) }, 77).unwrap();
        queue.block(Call::Check, 99).unwrap();
        let left = Left { call: "report".to_owned(), remaining: 990, quota: Some(1000), seen: 77 };
        assert_eq!(glance(&paths), Some(Glance { waiting: 0, left: vec![left] }));
    }
}
