//! What an operator sees of the queue, while somebody else works on it.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::answer::Quota;

/// The queue, at a glance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    /// How many reports wait.
    pub waiting: usize,
    /// What is known of each kind of call that was made.
    pub calls: Vec<Call>,
}

/// What is known of a kind of call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// As the API names it; `all` for every kind.
    pub name: String,
    /// Not before, in seconds since 1970.
    pub blocked: i64,
    /// What was left of a day's calls,
    pub quota: Quota,
    /// and when, in seconds since 1970.
    pub seen: Option<i64>,
}

impl Glance {
    /// Looks at the queue there. One that is not there is empty.
    ///
    /// # Errors
    /// Whatever SQLite says.
    pub fn of(path: &Path) -> rusqlite::Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        let waiting = db.query_row("SELECT count(*) FROM waiting", [], |row| row.get(0))?;
        let mut all =
            db.prepare("SELECT name, blocked, quota, remaining, seen FROM calls ORDER BY name")?;
        let calls = all.query_map([], |row| {
            let quota = Quota { limit: row.get(2)?, remaining: row.get(3)? };
            Ok(Call { name: row.get(0)?, blocked: row.get(1)?, quota, seen: row.get(4)? })
        })?;
        let calls = calls.collect::<rusqlite::Result<_>>()?;
        Ok(Self { waiting, calls })
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::{self, Queue};
    use super::*;

    #[test]
    fn it_is_what_the_worker_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reports.sqlite3");
        assert_eq!(Glance::of(&path).unwrap(), Glance::default());
        let mut queue = Queue::open(&path).unwrap();
        let quota = Quota { limit: Some(1000), remaining: Some(7) };
        queue.remains(queue::Call::Report, quota, 5).unwrap();
        queue.block(queue::Call::Check, 99).unwrap();
        let call =
            |name: &str, blocked, quota, seen| Call { name: name.to_owned(), blocked, quota, seen };
        let calls =
            vec![call("check", 99, Quota::default(), None), call("report", 0, quota, Some(5))];
        assert_eq!(Glance::of(&path).unwrap(), Glance { waiting: 0, calls });
    }
}
