//! Tests the reporter against a simulated `AbuseIPDB`, with a simulated clock and a process that dies at any moment.

mod answers;
mod outages;
mod server;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use futures_util::FutureExt as _;
use tempfile::TempDir;

use super::plan::REPORT_INTERVAL_SECS;
use super::queue::ReportQueue;
use super::redact::text::Private;
use super::report::{Categories, CommentSource, Report};
use super::reported_db::Ledger;
use super::worker::{ReporterEnv, Wake, Worker};
use crate::config::Secret;
use crate::model::Address;
use crate::spool::Spool;
use crate::sys::calendar::Calendar;
use server::{Server, SimulatedApi};

const START: i64 = 1_795_342_588;

/// A host with its reporter, and the server.
struct ReporterHarness {
    dir: TempDir,
    server: Arc<Mutex<Server>>,
    worker: Option<Worker<SimulatedApi>>,
    reports: u64,
}

impl ReporterHarness {
    fn new() -> Self {
        let server = Server { now: START, ..Server::default() };
        let dir = tempfile::tempdir().unwrap();
        Self { dir, server: Arc::new(Mutex::new(server)), worker: None, reports: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Server> {
        self.server.lock().unwrap()
    }

    fn advance(&self, seconds: i64) {
        self.server().now += seconds;
    }

    fn ban(&mut self, ip: &str, categories: &str, comment: &str) {
        self.ban_by(ip, categories, comment, CommentSource::Log);
    }

    fn ban_by(&mut self, ip: &str, categories: &str, comment: &str, source: CommentSource) {
        let report = Report {
            address: Address::new(ip).unwrap(),
            categories: Categories::new(categories).unwrap(),
            comment: comment.to_owned(),
            source,
            bantime: 600,
            failures: 3,
            time: self.server().now,
            key: Some(Secret::new("k3y".to_owned())),
            ledger: self.path("ledger"),
            log: self.path("log"),
        };
        self.reports += 1;
        let at = UNIX_EPOCH + Duration::from_secs(self.reports);
        Spool::new(self.path("inbox")).write(&report, at).unwrap();
    }

    fn start(dir: &Path, server: &Arc<Mutex<Server>>) -> Worker<SimulatedApi> {
        let (clock, lines) = (Arc::clone(server), Arc::clone(server));
        let env = ReporterEnv {
            private: Box::new(|| Private {
                addresses: vec!["198.51.100.1".parse().unwrap()],
                ..Private::default()
            }),
            clock: Box::new(move || clock.lock().unwrap().now),
            log_lines: Box::new(move |_| Ok(lines.lock().unwrap().log_lines.clone())),
            warn: |_| {},
        };
        let queue = ReportQueue::open(&dir.join("queue")).unwrap();
        let (inbox, line) = (Spool::new(dir.join("inbox")), SimulatedApi(Arc::clone(server)));
        Worker::new(inbox, queue, &dir.join("key"), line, env).unwrap()
    }

    /// Runs steps until the worker sleeps. A process that died is started again.
    fn work(&mut self) -> Wake {
        for _ in 0..10_000 {
            let worker =
                self.worker.get_or_insert_with(|| Self::start(self.dir.path(), &self.server));
            match worker.step().now_or_never() {
                Some(Ok(Wake::Now)) => {}
                Some(wake) => return wake.unwrap(),
                None => {
                    self.worker = None;
                    self.server().dies_after = None;
                }
            }
        }
        panic!("the worker never sleeps");
    }

    /// Runs until the queue is empty, and returns how long that took, in seconds.
    fn finish(&mut self) -> i64 {
        let start = self.server().now;
        for _ in 0..1000 {
            match self.work() {
                Wake::At(time) => self.server().now = time,
                Wake::OnReport | Wake::Now => return self.server().now - start,
            }
        }
        panic!("a report waits without end: {}", self.log().join("\n"));
    }

    fn waiting(&self) -> usize {
        ReportQueue::open(&self.path("queue")).unwrap().waiting().len()
    }

    fn in_ledger(&self, ip: &str) -> bool {
        Ledger::open(&self.path("ledger")).unwrap().has(Address::new(ip).unwrap()).unwrap()
    }

    /// The log lines without their times.
    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(|line| line.split_once(" - ").unwrap().1.to_owned()).collect()
    }

    fn accepted(&self) -> Vec<(String, String)> {
        let server = self.server();
        server
            .accepted
            .iter()
            .map(|report| (report.address.to_string(), report.comment.clone()))
            .collect()
    }
}

const IP: &str = "203.0.113.9";

#[test]
fn first_report_is_sent_at_once_and_later_jails_in_one_after_15_minutes() {
    let mut harness = ReporterHarness::new();
    harness.ban(IP, "18,22", "sshd: three failures");
    assert_eq!(harness.work(), Wake::OnReport);
    assert_eq!(harness.server().calls, ["check", "report"]);
    harness.advance(60);
    harness.ban(IP, "21", "web: probing");
    harness.ban(IP, "18,22", "sshd: three failures");
    harness.advance(60);
    harness.ban(IP, "15", "ftp: probing");
    let Wake::At(later) = harness.work() else {
        panic!("the second report waits for the interval")
    };
    assert!(
        (START + REPORT_INTERVAL_SECS..START + REPORT_INTERVAL_SECS + 60).contains(&later),
        "{}",
        later - START
    );
    assert_eq!(harness.server().calls, ["check", "report"]);
    harness.finish();
    let server = harness.server();
    assert_eq!(server.calls, ["check", "report", "check", "report"]);
    let second = &server.accepted[1];
    assert_eq!(second.categories, "21,15");
    assert_eq!(second.comment, "web: probing\nftp: probing");
    assert_eq!(Calendar::new().unwrap().read(&second.timestamp), Some(START + 60));
    drop(server);
    let reported = "SUCCESS: Reported 203.0.113.9 - Score: 52%, Reports: 0, \
                    Oldest Report: Not Reported yet, Failures:3.";
    assert_eq!(harness.log()[0], reported);
    let known = "INFO: IP 203.0.113.9 has already been reported and remains on AbuseIPDB.";
    assert_eq!(harness.log()[1], known);
    assert!(harness.log()[2].contains("Reports: 1, Oldest Report: 20"), "{:?}", harness.log());
    assert!(harness.log()[2].ends_with("Failures:6."), "{:?}", harness.log());
}

#[test]
fn address_in_the_ledger_is_reported_again_once_it_is_no_longer_listed() {
    let mut harness = ReporterHarness::new();
    let (ledger, address) = (Ledger::open(&harness.path("ledger")), Address::new(IP).unwrap());
    ledger.unwrap().insert(address, 600).unwrap();
    harness.server().listed.insert(address, 5);
    harness.ban(IP, "18", "x");
    assert_eq!(harness.work(), Wake::OnReport);
    assert_eq!(harness.server().calls, ["check"]);
    harness.server().listed.clear();
    harness.ban(IP, "18", "x");
    assert_eq!(harness.work(), Wake::OnReport);
    assert_eq!(harness.accepted().len(), 1);
    let again = "INFO: IP 203.0.113.9 has already been reported but is no longer listed on \
                 AbuseIPDB. Resubmitting...";
    assert_eq!(harness.log()[1], again);
}

#[test]
fn own_address_of_this_host_is_not_reported() {
    let mut harness = ReporterHarness::new();
    harness.ban("198.51.100.1", "18", "x");
    assert_eq!(harness.work(), Wake::OnReport);
    assert!(harness.server().calls.is_empty());
    assert!(!harness.in_ledger("198.51.100.1"));
}

#[test]
fn log_lines_are_read_once_the_database_has_the_ban() {
    // The database's log lines from the third second on, the comment, and how long the report waits.
    let lines = ["one from 198.51.100.1", "two"].map(str::to_owned).to_vec();
    let table = [
        (Some(lines), "one from [ip]\ntwo", 3..4),
        (Some(Vec::new()), "banned by fail2ban", 3..4),
        (None, "banned by fail2ban", 9..13),
    ];
    for (rows, comment, waited) in table {
        let mut harness = ReporterHarness::new();
        harness.ban_by(IP, "18", "", CommentSource::Database);
        let first = harness.work();
        assert_eq!(first, Wake::At(START + 1));
        harness.advance(3);
        harness.server().log_lines.clone_from(&rows);
        harness.finish();
        let server = harness.server();
        assert_eq!(server.accepted[0].comment, comment, "{rows:?}");
        assert!(
            waited.contains(&(server.accepted[0].at - START)),
            "{}",
            server.accepted[0].at - START
        );
    }
}
