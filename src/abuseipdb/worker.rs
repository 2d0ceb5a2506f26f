//! Works the queue off: one step after another, each written down before the next.

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::api::Api;
use super::comment::{self, Private};
use super::key::ApiKeys;
use super::ledger::Ledger;
use super::log::Log;
use super::plan::{self, Id, Next, RecentReport, Stage};
use super::queue::{MAX, ReportQueue};
use super::report::{CommentSource, Report, bounded};
use super::times::Calendar;
use crate::error::Error;
use crate::random;
use crate::spool::{Name, Spool};
use crate::wire::Address;

/// After a failure, the server is left alone for so long, in seconds; longer with each more.
const PAUSE: i64 = 30;
const LONGEST_PAUSE: i64 = 15 * 60;

/// After so many tries, a ledger that cannot be used is done without.
const LEDGER_TRIES: u32 = 3;

/// How many seconds a report waits for fail2ban's database to have the ban.
const DATABASE_TRIES: u32 = 10;

/// The most reports that are taken in at once.
const AT_ONCE: usize = 500;

/// When the next step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Now.
    Now,
    /// Then, in seconds since 1970, or when something comes in.
    At(i64),
    /// When something comes in.
    Called,
}

/// What the work is done with.
pub struct Worker<A> {
    pub(super) inbox: Spool<Report>,
    pub(super) queue: ReportQueue,
    pub(super) api: A,
    pub(super) keys: ApiKeys,
    pub(super) times: Calendar,
    pub(super) surroundings: ReporterEnv,
    pub(super) ledgers: HashMap<PathBuf, Ledger>,
    /// How often in a row the server could not be asked.
    pub(super) failures: u32,
    /// What must not become public, as it was when it was last looked up.
    pub(super) private: Private,
    /// When that was, and when the last step was, in seconds since 1970.
    looked: i64,
    last: i64,
    /// Files of the inbox that cannot be read, of which was told.
    unreadable: BTreeSet<Name>,
}

/// Answers what fail2ban's database has of the log lines of a ban; `None` where it does not have the ban.
pub type FindLogLines = Box<dyn Fn(&Report) -> rusqlite::Result<Option<Vec<String>>> + Send>;

/// What the worker asks the host for.
pub struct ReporterEnv {
    /// What must not become public.
    pub private: Box<dyn Fn() -> Private + Send>,
    /// The time, in seconds since 1970.
    pub clock: Box<dyn Fn() -> i64 + Send>,
    #[allow(missing_docs)]
    pub log_lines: FindLogLines,
    /// Where warnings go.
    pub warn: fn(&str),
}

/// How long to wait after the n-th failure, in seconds: each host a little differently.
pub(super) fn pause(failures: u32) -> i64 {
    let pause = PAUSE << failures.saturating_sub(1).min(10);
    #[expect(clippy::cast_possible_truncation, reason = "a fifth of some minutes")]
    let more = (f64::from(i32::try_from(PAUSE).unwrap_or(0)) * random::chance()) as i64;
    pause.min(LONGEST_PAUSE) + more
}

impl<A: Api> Worker<A> {
    /// A worker on a queue and the inbox before it, with the admin's key file and somebody to ask.
    ///
    /// # Errors
    /// [`Error::Start`], without memory.
    pub fn new(
        inbox: Spool<Report>,
        queue: ReportQueue,
        key_file: &Path,
        api: A,
        surroundings: ReporterEnv,
    ) -> Result<Self, Error> {
        Ok(Self {
            inbox,
            queue,
            api,
            keys: ApiKeys::new(key_file),
            times: Calendar::new().map_err(|error| Error::Start(std::io::Error::other(error)))?,
            surroundings,
            ledgers: HashMap::new(),
            failures: 0,
            private: Private::default(),
            looked: i64::MIN,
            last: i64::MAX,
            unreadable: BTreeSet::new(),
        })
    }

    /// Lets go of what is only needed at work.
    pub fn rest(&mut self) {
        self.ledgers.clear();
        self.api.rest();
    }

    pub(super) fn now(&self) -> i64 {
        (self.surroundings.clock)()
    }

    /// Takes in what has come, and does the next thing.
    ///
    /// # Errors
    /// [`Error::Queue`] or [`Error::File`]: nothing is sent that could not be written down.
    pub async fn step(&mut self) -> Result<Wake, Error> {
        self.take_in()?;
        let now = self.now();
        // The first step, or the clock was put back.
        if now < self.last {
            self.queue.on_clock_rollback(now);
            self.looked = i64::MIN;
        }
        self.last = now;
        // At most once a second: there may be many steps.
        if now > self.looked {
            (self.private, self.looked) = ((self.surroundings.private)(), now);
        }
        self.queue.tidy(now)?;
        let (changed, warning) = self.keys.changed(now);
        if let Some(warning) = warning {
            (self.surroundings.warn)(&warning);
        }
        if changed {
            let all: Vec<Id> = self.queue.waiting().keys().copied().collect();
            self.queue.update(&all, |waiting| waiting.next = 0)?;
        }
        let (waiting, told) = (self.queue.waiting(), self.queue.recent());
        match plan::next(waiting, told, self.queue.limits(), now) {
            Next::Nothing => return Ok(Wake::Called),
            Next::Sleep(until) => return Ok(Wake::At(until)),
            Next::GiveUp(id) => self.give_up(id)?,
            Next::Admit(id) => self.admit(id, now)?,
            Next::Alone(ids) => self.alone(&ids).await?,
            Next::Bulk(groups) => self.bulk(&groups).await?,
        }
        Ok(Wake::Now)
    }

    fn take_in(&mut self) -> Result<(), Error> {
        let failed = || Error::file("read", self.inbox.dir());
        let names = self.inbox.list().map_err(failed())?;
        let room = MAX.saturating_sub(self.queue.waiting().len());
        let (mut taken, mut read) = (Vec::new(), Vec::new());
        for name in names.into_iter().take(room.min(AT_ONCE)) {
            match self.inbox.read(&name) {
                Ok(report) => taken.push((name.clone(), report)),
                // Perhaps it can be read later.
                Err(error) if error.kind() != ErrorKind::InvalidData => {
                    if self.unreadable.insert(name.clone()) {
                        let dir = self.inbox.dir().display().to_string();
                        (self.surroundings.warn)(&format!("cannot read {dir}/{name}: {error}"));
                    }
                    continue;
                }
                Err(error) => {
                    (self.surroundings.warn)(&format!("dropped the queued report {name}: {error}"));
                }
            }
            read.push(name);
        }
        if !read.is_empty() {
            self.queue.add(taken)?;
            for name in read {
                let _ = self.inbox.remove(&name);
            }
        }
        Ok(())
    }

    /// Finds out what a report is: the first of its address, one that goes along with another, or
    /// one that was told before.
    fn admit(&mut self, id: Id, now: i64) -> Result<(), Error> {
        let Some(waiting) = self.queue.waiting().get(&id) else { return Ok(()) };
        let (report, tries) = (waiting.report.clone(), waiting.tries);
        let (address, log) = (report.address, Log::new(report.log.clone()));
        if self.private.addresses.contains(&address.ip()) {
            log.line(format_args!(
                "INFO: IP {address} is not reported: the address is this host's own."
            ));
            return self.queue.done(&[id], Vec::new());
        }
        if report.source == CommentSource::Database && report.comment.is_empty() {
            match (self.surroundings.log_lines)(&report) {
                Ok(Some(lines)) if !lines.is_empty() => {
                    let lines = lines.join("\n");
                    return self.queue.update(&[id], |waiting| {
                        bounded(&lines).clone_into(&mut waiting.report.comment);
                        waiting.tries = 0;
                    });
                }
                // fail2ban writes a ban a moment after its actions ran.
                Ok(None) | Err(_) if tries < DATABASE_TRIES => {
                    return self.queue.update(&[id], |waiting| {
                        waiting.tries += 1;
                        waiting.next = now + 1;
                    });
                }
                // It keeps no log lines, or no database: the report goes without.
                _ => {
                    return self.queue.update(&[id], |waiting| {
                        waiting.report.source = CommentSource::Log;
                        waiting.tries = 0;
                    });
                }
            }
        }
        if let Some(told) = self.queue.recent().get(&address) {
            if told.categories.cover(&report.categories) && self.adds_nothing(&report, told) {
                log.line(already_reported(address));
                return self.queue.done(&[id], Vec::new());
            }
            return self.queue.update(&[id], |waiting| waiting.stage = Stage::Due);
        }
        let mut others = self.queue.waiting().values().filter(|one| one.report.address == address);
        let with = others.find(|one| one.stage != Stage::New).map(|one| one.stage);
        if let Some(stage) = with {
            let stage = if stage == Stage::Check { Stage::Check } else { Stage::Due };
            return self.queue.update(&[id], |waiting| waiting.stage = stage);
        }
        match self.in_ledger(&report, |ledger| ledger.has(address)) {
            Ok(true) => self.queue.update(&[id], |waiting| waiting.stage = Stage::Check),
            // A check at the server tells the same.
            Err(error) if tries >= LEDGER_TRIES => {
                log.line(format_args!(
                    "ERROR: {error}; checking at AbuseIPDB whether IP {address} is listed"
                ));
                self.queue.update(&[id], |waiting| waiting.stage = Stage::Check)
            }
            Ok(false) => {
                // First that it is to be told: the address in the ledger says that it was.
                self.queue.update(&[id], |waiting| waiting.stage = Stage::Due)?;
                self.note(&report);
                Ok(())
            }
            Err(error) => {
                log.line(format_args!("ERROR: The report of IP {address} waits: {error}"));
                self.queue.update(&[id], |waiting| {
                    waiting.tries += 1;
                    waiting.next = now + pause(waiting.tries);
                })
            }
        }
    }

    /// Whether a report would say no more than the one that was taken.
    fn adds_nothing(&self, report: &Report, told: &RecentReport) -> bool {
        let text = (report.comment.as_str(), report.source);
        let comment = comment::compose([text], report.address, &self.private);
        told.comment == comment
    }

    fn give_up(&mut self, id: Id) -> Result<(), Error> {
        let Some(waiting) = self.queue.waiting().get(&id) else { return Ok(()) };
        let report = waiting.report.clone();
        Log::new(report.log.clone()).line(format_args!(
            "ERROR: Dropped the report of IP {}: not sent within 60 days.",
            report.address
        ));
        self.forget(&report);
        self.queue.done(&[id], Vec::new())
    }

    fn in_ledger<T>(
        &mut self,
        report: &Report,
        ask: impl FnOnce(&Ledger) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let path = &report.ledger;
        if !self.ledgers.contains_key(path) {
            self.ledgers.insert(path.clone(), Ledger::open(path)?);
        }
        let failed = |source| Error::Ledger { path: path.clone(), source };
        ask(&self.ledgers[path]).map_err(failed)
    }

    /// Puts an address into the ledger.
    pub(super) fn note(&mut self, report: &Report) {
        let noted = self.in_ledger(report, |ledger| ledger.insert(report.address, report.bantime));
        if let Err(error) = noted {
            Log::new(report.log.clone()).line(format_args!("ERROR: {error}"));
        }
    }

    /// What was not reported after all leaves the ledger.
    pub(super) fn forget(&mut self, report: &Report) {
        let address = report.address;
        let log = Log::new(report.log.clone());
        match self.in_ledger(report, |ledger| ledger.delete(address)) {
            Ok(()) => log.line(format_args!(
                "INFO: IP {address} deleted from the AbuseIPDB SQLite database."
            )),
            Err(error) => log.line(format_args!("ERROR: {error}")),
        }
    }
}

/// What the log says of an address that need not be told.
pub(super) fn already_reported(address: Address) -> String {
    format!("INFO: IP {address} has already been reported and remains on AbuseIPDB.")
}
