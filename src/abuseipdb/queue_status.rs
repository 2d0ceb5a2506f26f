//! Reads the status of the queue for operators, while a worker may be using it.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::report::Report;
use super::response::Quota;
use crate::spool::Item as _;

/// A summary of the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueStatus {
    /// The number of queued reports.
    pub waiting: usize,
    /// The time of the ban that was queued first, in seconds since 1970.
    pub oldest: Option<i64>,
    /// The result of the last call of any endpoint.
    pub last_call: Option<LastCall>,
    /// The quotas of all endpoints that were called, by name.
    pub calls: Vec<CallQuota>,
}

/// The last call of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastCall {
    /// Seconds since 1970.
    pub at: i64,
    /// The error that makes reports wait; `None` after a success.
    pub error: Option<String>,
}

/// Quota and block of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallQuota {
    /// The API's name of the endpoint; `all` for a block of every endpoint.
    pub name: String,
    /// When the next call is allowed, in seconds since 1970.
    pub blocked: i64,
    /// The quota as of the last response with one.
    pub quota: Quota,
    /// The time of that response, in seconds since 1970.
    pub seen: Option<i64>,
}

impl QueueStatus {
    /// Reads the queue's database. A missing file is an empty queue.
    ///
    /// # Errors
    /// Any error of SQLite.
    pub fn of(path: &Path) -> rusqlite::Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        let waiting = db.query_row("SELECT count(*) FROM queued_reports", [], |row| row.get(0))?;
        let sql = "SELECT report FROM queued_reports ORDER BY id LIMIT 1";
        let first: Option<String> = db.query_row(sql, [], |row| row.get(0)).optional()?;
        let first = first.and_then(|first| Report::parse(first.as_bytes()).ok());
        let oldest = first.map(|report| report.time);
        let last_call = db.query_row("SELECT at, error FROM last_call", [], |row| {
            Ok(LastCall { at: row.get(0)?, error: row.get(1)? })
        });
        let last_call = last_call.optional()?;
        let mut all =
            db.prepare("SELECT name, blocked, quota, remaining, seen FROM calls ORDER BY name")?;
        let calls = all.query_map([], |row| {
            let quota = Quota { limit: row.get(2)?, remaining: row.get(3)? };
            Ok(CallQuota { name: row.get(0)?, blocked: row.get(1)?, quota, seen: row.get(4)? })
        })?;
        let calls = calls.collect::<rusqlite::Result<_>>()?;
        Ok(Self { waiting, oldest, last_call, calls })
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::{self, ReportQueue};
    use super::*;

    #[test]
    fn status_shows_what_the_worker_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reports.sqlite3");
        assert_eq!(QueueStatus::of(&path).unwrap(), QueueStatus::default());
        let mut queue = ReportQueue::open(&path).unwrap();
        let quota = Quota { limit: Some(1000), remaining: Some(7) };
        queue.record_quota(queue::Endpoint::Report, quota, 5).unwrap();
        queue.block(queue::Endpoint::Check, 99).unwrap();
        let check = CallQuota {
            name: "check".to_owned(),
            blocked: 99,
            quota: Quota::default(),
            seen: None,
        };
        let report = CallQuota { name: "report".to_owned(), blocked: 0, quota, seen: Some(5) };
        let empty = QueueStatus { calls: vec![check, report], ..QueueStatus::default() };
        assert_eq!(QueueStatus::of(&path).unwrap(), empty);
        let [first, second] = [60, 70].map(|time| Report { time, ..Report::sample("192.0.2.1") });
        queue.add(vec![("1".to_owned(), first), ("2".to_owned(), second)]).unwrap();
        for error in [Some("no network"), None] {
            queue.record_call(99, error).unwrap();
            let last_call = Some(LastCall { at: 99, error: error.map(str::to_owned) });
            let expected = QueueStatus { waiting: 2, oldest: Some(60), last_call, ..empty.clone() };
            assert_eq!(QueueStatus::of(&path).unwrap(), expected);
        }
    }
}
