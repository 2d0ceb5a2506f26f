//! The queue of reports on disk, which survives a reboot. Each change is synced before the worker acts on it, so
//! that no report is lost or sent twice, whenever the process dies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Result as SqlResult, Row, Transaction, params};

use super::plan::{CallLimits, Id, QueuedReport, RecentReport, Stage};
use super::report::{Categories, Report};
use super::response::{MAX_QUOTA_WAIT_SECS, Quota};
use crate::error::Error;
use crate::model::Address;
use crate::spool::{Item as _, Name};
use crate::store;
use crate::sys::private_files;

/// The most reports in the queue, which is also `AbuseIPDB`'s limit for one bulk call.
pub const MAX_QUEUED: usize = 10_000;

/// The database's `user_version`.
const SCHEMA_VERSION: i32 = 1;

const SCHEMA: &str = "
    CREATE TABLE queued_reports(
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, report TEXT NOT NULL,
        stage TEXT NOT NULL, tries INTEGER NOT NULL, next INTEGER NOT NULL, sent INTEGER NOT NULL);
    CREATE TABLE recent_reports(
        ip TEXT PRIMARY KEY, at INTEGER NOT NULL, categories TEXT NOT NULL, comment TEXT NOT NULL);
    CREATE TABLE calls(
        name TEXT PRIMARY KEY, blocked INTEGER NOT NULL DEFAULT 0, quota INTEGER, remaining INTEGER,
        seen INTEGER);
    CREATE TABLE last_call(at INTEGER NOT NULL, error TEXT);";

/// The longest plausible delay of a report. A longer delay means that the clock was wrong.
const MAX_DELAY_SECS: i64 = 2 * 3600;

/// The endpoints of the API that have separate limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Every endpoint.
    All,
    /// The endpoint `check`.
    Check,
    /// The endpoint `report`.
    Report,
    /// The endpoint `bulk-report`.
    Bulk,
}

impl Endpoint {
    /// The API's name of the endpoint.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Check => "check",
            Self::Report => "report",
            Self::Bulk => "bulk-report",
        }
    }
}

/// The queue, with a copy in memory that always equals the disk's.
#[derive(Debug)]
pub struct ReportQueue {
    path: PathBuf,
    db: Connection,
    waiting: BTreeMap<Id, QueuedReport>,
    recent: BTreeMap<Address, RecentReport>,
    limits: CallLimits,
}

impl ReportQueue {
    /// Opens or creates the queue, readable by root only. A corrupt file is moved aside.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Queue`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = Error::queue(path);
        match Self::with(private_files::database(path, failed)?, path) {
            Err(Error::Queue { source, .. }) if store::is_broken(&source) => {
                store::move_aside(path, &source)?;
                Self::with(private_files::database(path, failed)?, path)
            }
            other => other,
        }
    }

    /// A queue without a file, for a disk that cannot be written.
    ///
    /// # Errors
    /// [`Error::Queue`].
    pub fn in_memory() -> Result<Self, Error> {
        let path = Path::new("memory");
        Self::with(Connection::open_in_memory().map_err(Error::queue(path))?, path)
    }

    fn with(db: Connection, path: &Path) -> Result<Self, Error> {
        let failed = Error::queue(path);
        store::prepare_schema(&db, SCHEMA_VERSION, SCHEMA).map_err(failed)?;
        let mut queue = Self {
            path: path.to_owned(),
            db,
            waiting: BTreeMap::new(),
            recent: BTreeMap::new(),
            limits: CallLimits::default(),
        };
        queue.load().map_err(failed)?;
        Ok(queue)
    }

    fn load(&mut self) -> SqlResult<()> {
        let mut all =
            self.db.prepare("SELECT id, report, stage, tries, next, sent FROM queued_reports")?;
        let waiting = all.query_map([], |row| Ok((row.get(0)?, read_queued(row)?)))?;
        for one in waiting {
            if let Some((id, Some(waiting))) = readable(one)? {
                self.waiting.insert(id, waiting);
            }
        }
        let mut all = self.db.prepare("SELECT ip, at, categories, comment FROM recent_reports")?;
        let all_recent =
            all.query_map([], |row| Ok((row.get::<_, String>(0)?, read_recent(row)?)))?;
        for one in all_recent {
            if let Some((ip, Some(recent))) = readable(one)?
                && let Ok(address) = Address::new(&ip)
            {
                self.recent.insert(address, recent);
            }
        }
        let mut all = self.db.prepare("SELECT name, blocked FROM calls")?;
        let calls =
            all.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
        for one in calls {
            let Some((name, until)) = readable(one)? else { continue };
            for call in [Endpoint::All, Endpoint::Check, Endpoint::Report, Endpoint::Bulk] {
                if call.name() == name {
                    *endpoint_limit(&mut self.limits, call) = until;
                }
            }
        }
        Ok(())
    }

    /// All queued reports.
    #[must_use]
    pub fn waiting(&self) -> &BTreeMap<Id, QueuedReport> {
        &self.waiting
    }

    /// The recently accepted report of each address.
    #[must_use]
    pub fn recent(&self) -> &BTreeMap<Address, RecentReport> {
        &self.recent
    }

    /// When the next call of each endpoint is allowed.
    #[must_use]
    pub fn limits(&self) -> &CallLimits {
        &self.limits
    }

    /// Adds reports. A name that the queue has already is not added again.
    ///
    /// # Errors
    /// [`Error::Queue`]; then no report was added.
    pub fn add(&mut self, reports: Vec<(Name, Report)>) -> Result<(), Error> {
        let added = self.in_transaction(|transaction| {
            let mut added = Vec::new();
            for (name, report) in reports {
                let mut insert = transaction.prepare_cached(
                    "INSERT OR IGNORE INTO queued_reports(name, report, stage, tries, next, sent)
                     VALUES(?1, ?2, 'new', 0, 0, 0)",
                )?;
                if insert.execute(params![name, report.encode()])? == 1 {
                    let stage = Stage::New;
                    let waiting = QueuedReport { report, stage, tries: 0, next: 0, sent: 0 };
                    added.push((transaction.last_insert_rowid(), waiting));
                }
            }
            Ok(added)
        })?;
        self.waiting.extend(added);
        Ok(())
    }

    /// Changes the state of some reports.
    ///
    /// # Errors
    /// [`Error::Queue`]; then nothing has changed.
    pub fn update(&mut self, ids: &[Id], how: impl Fn(&mut QueuedReport)) -> Result<(), Error> {
        let mut changed = self.copies(ids);
        for (_, waiting) in &mut changed {
            how(waiting);
        }
        self.set(changed)
    }

    /// Copies of some reports with their state, for [`Self::set`] to restore.
    #[must_use]
    pub fn copies(&self, ids: &[Id]) -> Vec<(Id, QueuedReport)> {
        ids.iter().filter_map(|id| Some((*id, self.waiting.get(id)?.clone()))).collect()
    }

    /// Overwrites the state of some reports, as far as they are still queued.
    ///
    /// # Errors
    /// [`Error::Queue`]; then nothing has changed.
    pub fn set(&mut self, mut changed: Vec<(Id, QueuedReport)>) -> Result<(), Error> {
        changed.retain(|(id, _)| self.waiting.contains_key(id));
        self.in_transaction(|transaction| {
            for (id, waiting) in &changed {
                let QueuedReport { report, stage, tries, next, sent } = waiting;
                transaction
                    .prepare_cached(
                        "UPDATE queued_reports SET stage = ?2, tries = ?3, next = ?4, sent = ?5, report = ?6
                         WHERE id = ?1",
                    )?
                    .execute(params![id, stage_name(*stage), tries, next, sent, report.encode()])?;
            }
            Ok(())
        })?;
        self.waiting.extend(changed);
        Ok(())
    }

    /// Removes reports; `taken` is what the server accepted, by address.
    ///
    /// # Errors
    /// [`Error::Queue`]; then nothing has changed.
    pub fn complete(
        &mut self,
        ids: &[Id],
        taken: Vec<(Address, RecentReport)>,
    ) -> Result<(), Error> {
        self.in_transaction(|transaction| {
            for id in ids {
                transaction
                    .prepare_cached("DELETE FROM queued_reports WHERE id = ?1")?
                    .execute([id])?;
            }
            for (address, recent) in &taken {
                let (ip, categories) = (address.to_string(), recent.categories.to_string());
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO recent_reports VALUES(?1, ?2, ?3, ?4)")?
                    .execute(params![ip, recent.at, categories, recent.comment])?;
            }
            Ok(())
        })?;
        for id in ids {
            self.waiting.remove(id);
        }
        self.recent.extend(taken);
        Ok(())
    }

    /// Blocks an endpoint until a time in seconds since 1970.
    ///
    /// # Errors
    /// [`Error::Queue`]; the block then lasts only as long as this process.
    pub fn block(&mut self, call: Endpoint, until: i64) -> Result<(), Error> {
        *endpoint_limit(&mut self.limits, call) = until;
        self.in_transaction(|transaction| {
            let sql = "INSERT INTO calls(name, blocked) VALUES(?1, ?2)
                       ON CONFLICT(name) DO UPDATE SET blocked = ?2";
            transaction.prepare_cached(sql)?.execute(params![call.name(), until]).map(drop)
        })
    }

    /// Stores an endpoint's quota, for operators to see.
    ///
    /// # Errors
    /// [`Error::Queue`].
    pub fn record_quota(&mut self, call: Endpoint, quota: Quota, now: i64) -> Result<(), Error> {
        self.in_transaction(|transaction| {
            let sql = "INSERT INTO calls(name, quota, remaining, seen) VALUES(?1, ?2, ?3, ?4)
                       ON CONFLICT(name) DO UPDATE SET quota = ?2, remaining = ?3, seen = ?4";
            let Quota { limit, remaining } = quota;
            transaction
                .prepare_cached(sql)?
                .execute(params![call.name(), limit, remaining, now])
                .map(drop)
        })
    }

    /// Stores the result of the last call, for operators to see; `error` makes reports wait.
    ///
    /// # Errors
    /// [`Error::Queue`].
    pub fn record_call(&mut self, now: i64, error: Option<&str>) -> Result<(), Error> {
        self.in_transaction(|transaction| {
            transaction.execute("DELETE FROM last_call", [])?;
            transaction
                .execute("INSERT INTO last_call VALUES(?1, ?2)", params![now, error])
                .map(drop)
        })
    }

    /// Corrects times that are too far in the future, which a clock that was wrong for a while has left.
    pub fn on_clock_rollback(&mut self, now: i64) {
        let limits = &mut self.limits;
        for limit in [&mut limits.all, &mut limits.check, &mut limits.report, &mut limits.bulk] {
            *limit = (*limit).min(now + MAX_QUOTA_WAIT_SECS);
        }
        for waiting in self.waiting.values_mut() {
            waiting.next = waiting.next.min(now + MAX_DELAY_SECS);
            waiting.sent = waiting.sent.min(now);
            waiting.report.time = waiting.report.time.min(now);
        }
        for recent in self.recent.values_mut() {
            recent.at = recent.at.min(now);
        }
    }

    /// Deletes accepted reports that no longer limit new ones.
    ///
    /// # Errors
    /// [`Error::Queue`].
    pub fn gc(&mut self, now: i64) -> Result<(), Error> {
        let old: Vec<_> = self
            .recent
            .iter()
            .filter(|(_, recent)| recent.end() <= now)
            .map(|(ip, _)| *ip)
            .collect();
        if old.is_empty() {
            return Ok(());
        }
        self.in_transaction(|transaction| {
            for address in &old {
                let mut delete =
                    transaction.prepare_cached("DELETE FROM recent_reports WHERE ip = ?1")?;
                delete.execute([address.to_string()])?;
            }
            Ok(())
        })?;
        for address in &old {
            self.recent.remove(address);
        }
        Ok(())
    }

    fn in_transaction<T>(
        &mut self,
        change: impl FnOnce(&Transaction<'_>) -> SqlResult<T>,
    ) -> Result<T, Error> {
        let failed = Error::queue(&self.path);
        let transaction = self.db.transaction().map_err(failed)?;
        let result = change(&transaction).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(result)
    }
}

/// The row, or `None` if a value in it has another type than its column.
fn readable<T>(row: SqlResult<T>) -> SqlResult<Option<T>> {
    match row {
        Err(error) if store::is_wrong_type(&error) => Ok(None),
        other => other.map(Some),
    }
}

fn endpoint_limit(limits: &mut CallLimits, call: Endpoint) -> &mut i64 {
    match call {
        Endpoint::All => &mut limits.all,
        Endpoint::Check => &mut limits.check,
        Endpoint::Report => &mut limits.report,
        Endpoint::Bulk => &mut limits.bulk,
    }
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::New => "new",
        Stage::Check => "check",
        Stage::Due => "due",
        Stage::Sent => "sent",
        Stage::SentInBulk => "sent in bulk",
    }
}

/// The report in a row; `None` if the row cannot be read.
fn read_queued(row: &Row<'_>) -> SqlResult<Option<QueuedReport>> {
    use Stage::{Check, Due, New, Sent, SentInBulk};
    let (report, stage): (String, String) = (row.get(1)?, row.get(2)?);
    let report = Report::parse(report.as_bytes()).ok();
    let mut stages = [New, Check, Due, Sent, SentInBulk].into_iter();
    let stage = stages.find(|one| stage_name(*one) == stage);
    let (tries, next, sent) = (row.get(3)?, row.get(4)?, row.get(5)?);
    Ok(report.zip(stage).map(|(report, stage)| QueuedReport { report, stage, tries, next, sent }))
}

fn read_recent(row: &Row<'_>) -> SqlResult<Option<RecentReport>> {
    let (at, categories): (i64, String) = (row.get(1)?, row.get(2)?);
    let comment = row.get(3)?;
    Ok(Categories::new(&categories).ok().map(|categories| RecentReport { at, categories, comment }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn named<const N: usize>(reports: [(&str, &str); N]) -> Vec<(Name, Report)> {
        reports.map(|(name, ip)| (name.to_owned(), Report::sample(ip))).into()
    }

    #[test]
    fn queue_opened_again_has_the_same_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/reports.sqlite3");
        let mut queue = ReportQueue::open(&path).unwrap();
        queue.add(named([("1", "192.0.2.1"), ("2", "192.0.2.2"), ("1", "192.0.2.1")])).unwrap();
        queue.add(named([("3", "192.0.2.3"), ("2", "192.0.2.2")])).unwrap();
        assert_eq!(queue.waiting().len(), 3);
        let ids: Vec<_> = queue.waiting().keys().copied().collect();
        queue
            .update(&ids[1..2], |queued| {
                (queued.stage, queued.tries, queued.next, queued.sent) = (Stage::Sent, 2, 7, 8);
            })
            .unwrap();
        let categories = Categories::new("18,22").unwrap();
        let recent = RecentReport { at: 100, categories, comment: "y".to_owned() };
        let address = Address::new("192.0.2.1").unwrap();
        queue.complete(&ids[..1], vec![(address, recent.clone())]).unwrap();
        queue.block(Endpoint::Report, 99).unwrap();
        queue
            .record_quota(Endpoint::Report, Quota { limit: Some(1000), remaining: Some(7) }, 5)
            .unwrap();
        let (waiting, limits) = (queue.waiting().clone(), *queue.limits());
        let odd = "INSERT INTO recent_reports VALUES('192.0.2.9', 'x', 'x', x'ff');
                   INSERT INTO calls(name, blocked) VALUES('odd', 1.5);
                   INSERT INTO queued_reports VALUES(99, 'odd', x'ff', 'new', 0, 0, 0)";
        queue.db.execute_batch(odd).unwrap();
        drop(queue);
        let mut queue = ReportQueue::open(&path).unwrap();
        assert_eq!((queue.waiting(), *queue.limits()), (&waiting, limits));
        assert_eq!(limits.report, 99);
        assert_eq!(queue.recent().get(&address), Some(&recent));
        queue.gc(recent.end() - 1).unwrap();
        assert_eq!(queue.recent().len(), 1);
        queue.gc(recent.end()).unwrap();
        assert_eq!(queue.recent().len(), 0);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
