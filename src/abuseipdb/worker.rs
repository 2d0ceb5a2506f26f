//! Processes the queue of reports step by step, and persists each step before the next.

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::api::Api;
use super::key::ApiKeys;
use super::log::Log;
use super::plan::{self, Id, Next, RecentReport, Stage};
use super::queue::{MAX_QUEUED, ReportQueue};
use super::redact::text;
use super::redact::text::Private;
use super::report::{CommentSource, Report, bounded};
use super::reported_db::Ledger;
use crate::error::Error;
use crate::model::Address;
use crate::spool::{Name, Spool};
use crate::sys::calendar::Calendar;
use crate::sys::jitter;

/// The pause after a first failure of the server; it doubles with each further one.
const MIN_PAUSE_SECS: i64 = 30;
const MAX_PAUSE_SECS: i64 = 15 * 60;

/// After this many failures, the worker sends reports without the database of reported addresses.
const MAX_LEDGER_TRIES: u32 = 3;

/// How often a report waits a second for fail2ban's database to have the ban.
const MAX_DATABASE_TRIES: u32 = 10;

/// The most reports that one step moves from the inbox to the queue.
const MAX_REPORTS_PER_STEP: usize = 500;

/// When the next step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// At once.
    Now,
    /// At this time, in seconds since 1970, or when the inbox gets a report.
    At(i64),
    /// When the inbox gets a report.
    OnReport,
}

/// Moves reports from the inbox to the queue and sends them.
pub struct Worker<A> {
    pub(super) inbox: Spool<Report>,
    pub(super) queue: ReportQueue,
    pub(super) api: A,
    pub(super) keys: ApiKeys,
    pub(super) calendar: Calendar,
    pub(super) env: ReporterEnv,
    pub(super) ledgers: HashMap<PathBuf, Ledger>,
    /// The number of failed calls since the last success.
    pub(super) failures: u32,
    /// What must not become public, as of `private_read_at`.
    pub(super) private: Private,
    private_read_at: i64,
    last_step_at: i64,
    /// Files of the inbox that cannot be read and that a warning has named already.
    unreadable: BTreeSet<Name>,
}

/// Returns the log lines that fail2ban's database has for a ban; `None` if it does not have the ban.
pub type FindLogLines = Box<dyn Fn(&Report) -> rusqlite::Result<Option<Vec<String>>> + Send>;

/// The worker's view of the host; tests simulate it.
pub struct ReporterEnv {
    /// Reads what must not become public.
    pub private: Box<dyn Fn() -> Private + Send>,
    /// The time, in seconds since 1970.
    pub clock: Box<dyn Fn() -> i64 + Send>,
    /// Reads log lines from fail2ban's database.
    pub log_lines: FindLogLines,
    /// Logs a warning.
    pub warn: fn(&str),
}

/// The pause after the n-th failure in seconds, with jitter, so that the hosts of a fleet do not retry together.
pub(super) fn retry_pause_secs(failures: u32) -> i64 {
    let pause = MIN_PAUSE_SECS << failures.saturating_sub(1).min(10);
    #[expect(clippy::cast_possible_truncation, reason = "a fifth of some minutes")]
    let jitter = (f64::from(i32::try_from(MIN_PAUSE_SECS).unwrap_or(0)) * jitter::chance()) as i64;
    pause.min(MAX_PAUSE_SECS) + jitter
}

impl<A: Api> Worker<A> {
    /// A worker for an inbox and a queue.
    ///
    /// # Errors
    /// [`Error::Start`] if memory is too small.
    pub fn new(
        inbox: Spool<Report>,
        queue: ReportQueue,
        key_file: &Path,
        api: A,
        env: ReporterEnv,
    ) -> Result<Self, Error> {
        Ok(Self {
            inbox,
            queue,
            api,
            keys: ApiKeys::new(key_file),
            calendar: Calendar::new()
                .map_err(|error| Error::Start(std::io::Error::other(error)))?,
            env,
            ledgers: HashMap::new(),
            failures: 0,
            private: Private::default(),
            private_read_at: i64::MIN,
            last_step_at: i64::MAX,
            unreadable: BTreeSet::new(),
        })
    }

    /// Closes ledgers and connections while the queue is idle.
    pub fn release(&mut self) {
        self.ledgers.clear();
        self.api.release();
    }

    pub(super) fn now(&self) -> i64 {
        (self.env.clock)()
    }

    /// Moves new reports from the inbox to the queue and makes the next step of the plan.
    ///
    /// # Errors
    /// [`Error::Queue`] or [`Error::File`]: a report that cannot be persisted is not sent.
    pub async fn step(&mut self) -> Result<Wake, Error> {
        self.ingest()?;
        let now = self.now();
        // True on the first step, too, as the last process may have had a wrong clock.
        if now < self.last_step_at {
            self.queue.on_clock_rollback(now);
            self.private_read_at = i64::MIN;
        }
        self.last_step_at = now;
        // There may be many steps per second; read the files at most once per second.
        if now > self.private_read_at {
            (self.private, self.private_read_at) = ((self.env.private)(), now);
        }
        self.queue.gc(now)?;
        let (has_usable_key, warning) = self.keys.reload(now);
        if let Some(warning) = warning {
            (self.env.warn)(&warning);
        }
        if has_usable_key {
            let all: Vec<Id> = self.queue.waiting().keys().copied().collect();
            self.queue.update(&all, |waiting| waiting.next = 0)?;
        }
        let (waiting, recent) = (self.queue.waiting(), self.queue.recent());
        match plan::next(waiting, recent, self.queue.limits(), now) {
            Next::Idle => return Ok(Wake::OnReport),
            Next::Sleep(until) => return Ok(Wake::At(until)),
            Next::DropExpired(id) => self.drop_expired(id)?,
            Next::Admit(id) => self.admit(id, now)?,
            Next::Single(ids) => self.report_alone(&ids).await?,
            Next::Bulk(groups) => self.report_in_bulk(&groups).await?,
        }
        Ok(Wake::Now)
    }

    fn ingest(&mut self) -> Result<(), Error> {
        let names = self.inbox.list().map_err(Error::file("read", self.inbox.dir()))?;
        let free_slots = MAX_QUEUED.saturating_sub(self.queue.waiting().len());
        let (mut reports, mut processed) = (Vec::new(), Vec::new());
        for name in names.into_iter().take(free_slots.min(MAX_REPORTS_PER_STEP)) {
            match self.inbox.read(&name) {
                Ok(report) => reports.push((name.clone(), report)),
                // The file may be readable later, so keep it.
                Err(error) if error.kind() != ErrorKind::InvalidData => {
                    if self.unreadable.insert(name.clone()) {
                        let dir = self.inbox.dir().display().to_string();
                        (self.env.warn)(&format!("cannot read {dir}/{name}: {error}"));
                    }
                    continue;
                }
                Err(error) => {
                    (self.env.warn)(&format!("dropped the queued report {name}: {error}"));
                }
            }
            processed.push(name);
        }
        if !processed.is_empty() {
            self.queue.add(reports)?;
            for name in processed {
                let _ = self.inbox.remove(&name);
            }
        }
        Ok(())
    }

    /// Decides about a new report: the first of its address is due, one that repeats a recent report is dropped, one
    /// whose address is in the ledger needs a check, and others follow the reports of the address in the queue.
    fn admit(&mut self, id: Id, now: i64) -> Result<(), Error> {
        let Some(waiting) = self.queue.waiting().get(&id) else { return Ok(()) };
        let report = waiting.report.clone();
        let (address, log) = (report.address, Log::new(report.log.clone()));
        if self.private.addresses.contains(&address.ip()) {
            log.line(format_args!(
                "INFO: IP {address} is not reported: the address is this host's own."
            ));
            return self.queue.complete(&[id], Vec::new());
        }
        if report.source == CommentSource::Database && report.comment.is_empty() {
            return self.read_log_lines(id, &report, now);
        }
        if let Some(recent) = self.queue.recent().get(&address) {
            if recent.categories.covers(&report.categories) && self.is_same_text(&report, recent) {
                log.line(already_reported(address));
                return self.queue.complete(&[id], Vec::new());
            }
            return self.queue.update(&[id], |waiting| waiting.stage = Stage::Due);
        }
        let mut others = self.queue.waiting().values().filter(|one| one.report.address == address);
        if let Some(other) = others.find(|one| one.stage != Stage::New) {
            let stage = if other.stage == Stage::Check { Stage::Check } else { Stage::Due };
            return self.queue.update(&[id], |waiting| waiting.stage = stage);
        }
        self.admit_by_ledger(id, &report, now)
    }

    /// Sets the comment of a report from the log lines that fail2ban's database has for the ban.
    fn read_log_lines(&mut self, id: Id, report: &Report, now: i64) -> Result<(), Error> {
        let lines = (self.env.log_lines)(report);
        self.queue.update(&[id], |waiting| match &lines {
            Ok(Some(lines)) if !lines.is_empty() => {
                bounded(&lines.join("\n")).clone_into(&mut waiting.report.comment);
                waiting.tries = 0;
            }
            // fail2ban writes a ban a moment after its actions ran.
            Ok(None) | Err(_) if waiting.tries < MAX_DATABASE_TRIES => {
                waiting.tries += 1;
                waiting.next = now + 1;
            }
            // fail2ban keeps no log lines or no database: send the report without them.
            _ => {
                waiting.report.source = CommentSource::Log;
                waiting.tries = 0;
            }
        })
    }

    /// Decides about the first report of an address in the queue: an address in the ledger needs a check, any other is
    /// due.
    fn admit_by_ledger(&mut self, id: Id, report: &Report, now: i64) -> Result<(), Error> {
        let (address, log) = (report.address, Log::new(report.log.clone()));
        let tries = self.queue.waiting().get(&id).map_or(0, |waiting| waiting.tries);
        match self.with_ledger(report, |ledger| ledger.has(address)) {
            Ok(true) => self.queue.update(&[id], |waiting| waiting.stage = Stage::Check),
            // The ledger cannot be used: ask the server instead.
            Err(error) if tries >= MAX_LEDGER_TRIES => {
                log.line(format_args!(
                    "ERROR: {error}; checking at AbuseIPDB whether IP {address} is listed"
                ));
                self.queue.update(&[id], |waiting| waiting.stage = Stage::Check)
            }
            Ok(false) => {
                // Persist that the report is due before the ledger has the address: an address in the ledger
                // counts as reported.
                self.queue.update(&[id], |waiting| waiting.stage = Stage::Due)?;
                self.add_to_ledger(report);
                Ok(())
            }
            Err(error) => {
                log.line(format_args!("ERROR: The report of IP {address} waits: {error}"));
                self.queue.update(&[id], |waiting| {
                    waiting.tries += 1;
                    waiting.next = now + retry_pause_secs(waiting.tries);
                })
            }
        }
    }

    /// Whether a report would have the same text as the accepted one.
    fn is_same_text(&self, report: &Report, recent: &RecentReport) -> bool {
        let text = (report.comment.as_str(), report.source);
        let comment = text::compose([text], report.address, &self.private);
        recent.comment == comment
    }

    fn drop_expired(&mut self, id: Id) -> Result<(), Error> {
        let Some(waiting) = self.queue.waiting().get(&id) else { return Ok(()) };
        let report = waiting.report.clone();
        Log::new(report.log.clone()).line(format_args!(
            "ERROR: Dropped the report of IP {}: not sent within 60 days.",
            report.address
        ));
        self.remove_from_ledger(&report);
        self.queue.complete(&[id], Vec::new())
    }

    fn with_ledger<T>(
        &mut self,
        report: &Report,
        query: impl FnOnce(&Ledger) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let path = &report.ledger;
        if !self.ledgers.contains_key(path) {
            self.ledgers.insert(path.clone(), Ledger::open(path)?);
        }
        query(&self.ledgers[path]).map_err(Error::ledger(path))
    }

    /// Inserts the report's address into the ledger.
    pub(super) fn add_to_ledger(&mut self, report: &Report) {
        let inserted =
            self.with_ledger(report, |ledger| ledger.insert(report.address, report.bantime));
        if let Err(error) = inserted {
            Log::new(report.log.clone()).line(format_args!("ERROR: {error}"));
        }
    }

    /// Removes the address of a report that was not sent from the ledger.
    pub(super) fn remove_from_ledger(&mut self, report: &Report) {
        let address = report.address;
        let log = Log::new(report.log.clone());
        match self.with_ledger(report, |ledger| ledger.delete(address)) {
            Ok(()) => log.line(format_args!(
                "INFO: IP {address} deleted from the AbuseIPDB SQLite database."
            )),
            Err(error) => log.line(format_args!("ERROR: {error}")),
        }
    }
}

/// The script's log line for an address that `AbuseIPDB` still lists.
pub(super) fn already_reported(address: Address) -> String {
    format!("INFO: IP {address} has already been reported and remains on AbuseIPDB.")
}
