//! The reporter against a server that keeps `AbuseIPDB`'s rules, with a clock that is turned by hand,
//! and with a process that dies whenever it hurts.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::answer::{Answer, CutOff};
use super::api::{Api, Failure, Request};
use super::comment::Private;
use super::ledger::Ledger;
use super::plan::WINDOW;
use super::queue::Queue;
use super::report::{Categories, Report};
use super::times::Times;
use super::worker::{Surroundings, Wake, Worker};
use crate::config::Secret;
use crate::spool::Spool;
use crate::wire::Address;

const START: i64 = 1_795_342_588;

/// What the server does with the next call, instead of what it should.
#[derive(Clone)]
enum Whim {
    /// Answers this.
    Says(Answer),
    /// Is not there.
    Away(Failure),
    /// Does it, and the answer is lost.
    Mute,
}

/// `AbuseIPDB`, as far as its rules go.
#[derive(Default)]
struct Server {
    now: i64,
    /// Address, when it was taken, timestamp, categories, comment.
    taken: Vec<(Address, i64, String, String, String)>,
    listed: BTreeMap<Address, i64>,
    calls: Vec<&'static str>,
    keys: Vec<String>,
    whims: VecDeque<Whim>,
    /// Away until then.
    away: i64,
    /// A firewall before it does not like this word.
    firewall: Option<&'static str>,
    /// The process dies at the n-th moment from now; each call has two: before and after it.
    dies: Option<usize>,
}

impl Server {
    fn take(&mut self, ip: &str, timestamp: &str, categories: &str, comment: &str) -> bool {
        let (address, now) = (Address::new(ip).unwrap(), self.now);
        let soon = |(one, at, ..): &&(Address, i64, String, String, String)| {
            *one == address && now < at + WINDOW
        };
        if self.taken.iter().any(|one| soon(&one)) {
            return false;
        }
        let text = |text: &str| text.to_owned();
        self.taken.push((address, now, text(timestamp), text(categories), text(comment)));
        true
    }

    fn answer(&mut self, request: &Request) -> Answer {
        match request {
            Request::Check { address, verbose } => {
                self.calls.push("check");
                let ours: Vec<_> = self.taken.iter().filter(|one| one.0 == *address).collect();
                let others = self.listed.get(address).copied().unwrap_or(0);
                let count = others + i64::try_from(ours.len()).unwrap();
                let listed = |one: &&(Address, i64, String, String, String)| json!({"reportedAt": one.2, "comment": one.4, "categories": [18]});
                let reports: Vec<_> = ours.iter().filter(|_| *verbose).map(listed).collect();
                data(&json!({
                    "ipAddress": address.to_string(), "abuseConfidenceScore": 7,
                    "totalReports": count, "reports": reports
                }))
            }
            Request::Report(form) => {
                self.calls.push("report");
                let (ip, time) = (form.address.to_string(), form.timestamp.clone());
                let time = time.unwrap_or_default();
                if self.take(&ip, &time, &form.categories, &form.comment) {
                    data(&json!({"ipAddress": ip, "abuseConfidenceScore": 52}))
                } else {
                    too_soon()
                }
            }
            Request::Bulk(csv) => {
                self.calls.push("bulk");
                let (mut saved, mut invalid) = (0, Vec::new());
                for line in csv.lines().skip(1) {
                    let mut fields = line.split('"');
                    let ip = fields.next().unwrap().trim_end_matches(',');
                    let categories = fields.next().unwrap();
                    let time = fields.next().unwrap().trim_matches(',');
                    if self.take(ip, time, categories, fields.next().unwrap()) {
                        saved += 1;
                    } else {
                        invalid.push(json!({"error": "once in 15 minutes", "input": ip}));
                    }
                }
                data(&json!({"savedReports": saved, "invalidReports": invalid}))
            }
        }
    }

    /// Whether the process dies now.
    fn moment(&mut self) -> bool {
        match &mut self.dies {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

fn says(status: u16, body: &str) -> Answer {
    Answer { status, body: body.into(), ..Answer::default() }
}

fn too_soon() -> Answer {
    says(
        429,
        r#"{"errors":[{"detail":"You can only report the same IP address (`x`) once in 15 minutes.","status":429,"source":{"parameter":"ip"}}]}"#,
    )
}

fn data(data: &Value) -> Answer {
    says(200, &json!({ "data": data }).to_string())
}

fn daily(retry_after: i64) -> Answer {
    let body = r#"{"errors":[{"detail":"Daily rate limit of 1000 requests exceeded for this endpoint.","status":429}]}"#;
    Answer { retry_after: Some(retry_after), ..says(429, body) }
}

#[derive(Clone)]
struct Line(Arc<Mutex<Server>>);

impl Api for Line {
    async fn ask(&mut self, key: &Secret, request: &Request) -> Result<Answer, Failure> {
        let (answer, dies) = {
            let mut server = self.0.lock().unwrap();
            server.keys.push(key.reveal().to_owned());
            if server.moment() {
                (None, true)
            } else if server.firewall.is_some_and(|word| format!("{request:?}").contains(word)) {
                server.calls.push("firewall");
                (Some(Ok(says(403, "<html>forbidden</html>"))), false)
            } else if server.now < server.away {
                server.calls.push("away");
                (Some(Err(Failure::NotSent("no route to host".to_owned()))), false)
            } else {
                let answer = match server.whims.pop_front() {
                    None => Ok(server.answer(request)),
                    Some(Whim::Says(answer)) => Ok(answer),
                    Some(Whim::Away(failure)) => Err(failure),
                    Some(Whim::Mute) => {
                        server.answer(request);
                        Err(Failure::Unknown("timed out".to_owned()))
                    }
                };
                let dies = server.moment();
                (Some(answer), dies)
            }
        };
        match answer {
            Some(answer) if !dies => answer,
            _ => std::future::pending().await,
        }
    }

    fn rest(&mut self) {}
}

/// A host, and the server.
struct Bed {
    dir: TempDir,
    server: Arc<Mutex<Server>>,
    worker: Option<Worker<Line>>,
    reports: u64,
}

impl Bed {
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

    fn passes(&self, seconds: i64) {
        self.server().now += seconds;
    }

    fn ban(&mut self, ip: &str, categories: &str, comment: &str) {
        let report = Report {
            address: Address::new(ip).unwrap(),
            categories: Categories::new(categories).unwrap(),
            comment: comment.to_owned(),
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

    fn start(dir: &Path, server: &Arc<Mutex<Server>>) -> Worker<Line> {
        let clock = Arc::clone(server);
        let surroundings = Surroundings {
            private: Box::new(|| Private {
                addresses: vec!["198.51.100.1".parse().unwrap()],
                ..Private::default()
            }),
            clock: Box::new(move || clock.lock().unwrap().now),
            warn: |_| {},
        };
        let queue = Queue::open(&dir.join("queue")).unwrap();
        let (inbox, line) = (Spool::new(dir.join("inbox")), Line(Arc::clone(server)));
        Worker::new(inbox, queue, &dir.join("key"), line, surroundings).unwrap()
    }

    /// Works until there is nothing to do now. A process that died is started anew.
    fn work(&mut self) -> Wake {
        for _ in 0..10_000 {
            let worker =
                self.worker.get_or_insert_with(|| Self::start(self.dir.path(), &self.server));
            match worker.step().now_or_never() {
                Some(Ok(Wake::Now)) => {}
                Some(wake) => return wake.unwrap(),
                None => {
                    self.worker = None;
                    self.server().dies = None;
                }
            }
        }
        panic!("it works without end");
    }

    /// Works until nothing waits any more, and answers how long that took, in seconds.
    fn finish(&mut self) -> i64 {
        let start = self.server().now;
        for _ in 0..1000 {
            match self.work() {
                Wake::At(time) => self.server().now = time,
                Wake::Called | Wake::Now => return self.server().now - start,
            }
        }
        panic!("something waits without end: {}", self.log().join("\n"));
    }

    fn waiting(&self) -> usize {
        Queue::open(&self.path("queue")).unwrap().waiting().len()
    }

    fn in_ledger(&self, ip: &str) -> bool {
        Ledger::open(&self.path("ledger")).unwrap().has(Address::new(ip).unwrap()).unwrap()
    }

    /// The lines of the log, without their times.
    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(|line| line.split_once(" - ").unwrap().1.to_owned()).collect()
    }

    fn taken(&self) -> Vec<(String, String)> {
        let server = self.server();
        server.taken.iter().map(|one| (one.0.to_string(), one.4.clone())).collect()
    }
}

const IP: &str = "203.0.113.9";

#[test]
fn the_first_report_goes_at_once_and_further_jails_in_one_after_the_window() {
    let mut bed = Bed::new();
    bed.ban(IP, "18,22", "sshd: three failures");
    assert_eq!(bed.work(), Wake::Called);
    assert_eq!(bed.server().calls, ["check", "report"]);
    bed.passes(60);
    bed.ban(IP, "21", "web: probing");
    bed.ban(IP, "18,22", "sshd: three failures");
    bed.passes(60);
    bed.ban(IP, "15", "ftp: probing");
    let Wake::At(later) = bed.work() else { panic!("it waits for the window") };
    assert!((START + WINDOW..START + WINDOW + 60).contains(&later), "{}", later - START);
    assert_eq!(bed.server().calls, ["check", "report"]);
    bed.finish();
    let server = bed.server();
    assert_eq!(server.calls, ["check", "report", "check", "report"]);
    let (_, _, time, categories, comment) = &server.taken[1];
    assert_eq!((categories.as_str(), comment.as_str()), ("21,15", "web: probing\nftp: probing"));
    assert_eq!(Times::new().unwrap().read(time), Some(START + 60));
    drop(server);
    let reported = "SUCCESS: Reported 203.0.113.9 - Score: 7%, Reports: 0, \
                    Oldest Report: Not Reported yet, Failures:3.";
    assert_eq!(bed.log()[0], reported);
    let known = "INFO: IP 203.0.113.9 has already been reported and remains on AbuseIPDB.";
    assert_eq!(bed.log()[1], known);
    assert!(bed.log()[2].contains("Reports: 1, Oldest Report: 20"), "{:?}", bed.log());
    assert!(bed.log()[2].ends_with("Failures:6."), "{:?}", bed.log());
}

#[test]
fn an_address_in_the_ledger_is_reported_again_when_it_is_listed_no_longer() {
    let mut bed = Bed::new();
    let (ledger, address) = (Ledger::open(&bed.path("ledger")), Address::new(IP).unwrap());
    ledger.unwrap().insert(address, 600).unwrap();
    bed.server().listed.insert(address, 5);
    bed.ban(IP, "18", "x");
    assert_eq!(bed.work(), Wake::Called);
    assert_eq!(bed.server().calls, ["check"]);
    bed.server().listed.clear();
    bed.ban(IP, "18", "x");
    assert_eq!(bed.work(), Wake::Called);
    assert_eq!(bed.taken().len(), 1);
    let again = "INFO: IP 203.0.113.9 has already been reported but is no longer listed on \
                 AbuseIPDB. Resubmitting...";
    assert_eq!(bed.log()[1], again);
}

#[test]
fn this_host_s_own_address_is_not_reported() {
    let mut bed = Bed::new();
    bed.ban("198.51.100.1", "18", "x");
    assert_eq!(bed.work(), Wake::Called);
    assert!(bed.server().calls.is_empty());
    assert!(!bed.in_ledger("198.51.100.1"));
}

/// After a report met with an answer: what the log says last, whether the report waits, whether the
/// ledger has the address, and how many seconds until the next try (at least, at most).
struct Case {
    whim: Whim,
    logged: &'static str,
    waits: bool,
    ledger: bool,
    next: (i64, i64),
}

fn cases() -> Vec<Case> {
    let kept = |whim, logged, next| Case { whim, logged, waits: true, ledger: true, next };
    let said =
        |status, body: &str, logged, next| kept(Whim::Says(says(status, body)), logged, next);
    let gone = |answer, logged, ledger| Case {
        whim: Whim::Says(answer),
        logged,
        waits: false,
        ledger,
        next: (0, 0),
    };
    let error = |status| format!(r#"{{"errors":[{{"detail":"because","status":{status}}}]}}"#);
    let (soon, hour) = ((30, 120), (3590, 3610));
    let taken = r#"{"data":{"ipAddress":"203.0.113.9","abuseConfidenceScore":52}}"#;
    let endless = Answer { cut_off: Some(CutOff::TooLong), ..says(200, taken) };
    let stalled = CutOff::Lost("operation timed out".to_owned());
    let stalled = Answer { cut_off: Some(stalled), ..says(200, &taken[..20]) };
    let away = |why: &str| Whim::Away(Failure::NotSent(why.to_owned()));
    vec![
        gone(says(200, taken), "SUCCESS: Reported 203.0.113.9 - Score: 7%", true),
        gone(too_soon(), "INFO: IP 203.0.113.9 has been reported with this key within 15", true),
        kept(
            Whim::Says(daily(29_000)),
            "INFO: The daily limit of AbuseIPDB is reached for report",
            (29_000, 29_000),
        ),
        said(401, &error(401), "ERROR: HTTP 401. Response: {\"errors\"", hour),
        said(402, &error(402), "ERROR: HTTP 402. Response: {\"errors\"", soon),
        said(403, &error(403), "ERROR: HTTP 403. Response: {\"errors\"", soon),
        said(404, &error(404), "ERROR: HTTP 404. Response: {\"errors\"", soon),
        gone(
            says(422, &error(422)),
            "INFO: IP 203.0.113.9 deleted from the AbuseIPDB SQLite",
            false,
        ),
        said(500, &error(500), "ERROR: HTTP 500. Response: {\"errors\"", soon),
        said(503, "", "ERROR: HTTP 503. Response: (nothing)", soon),
        said(200, "<html>a portal</html>", "ERROR: HTTP 200. Response: <html>a portal", soon),
        said(422, "<html>a portal</html>", "ERROR: HTTP 422. Response: <html>a portal", soon),
        said(200, "", "ERROR: HTTP 200. Response: (nothing)", soon),
        said(200, &taken[..20], "ERROR: HTTP 200. Response: {\"data\":{\"ipAddress\"", soon),
        kept(Whim::Says(endless), "ERROR: HTTP 200. Response: {\"data\":{\"ipAddress\"", soon),
        kept(
            Whim::Says(stalled),
            "ERROR: HTTP 200. Response: {\"data\":{\"ipAddress\"... (broken",
            soon,
        ),
        kept(
            away("certificate expired"),
            "ERROR: No connection to api.abuseipdb.com: certificate expired",
            soon,
        ),
        kept(away("refused"), "ERROR: No connection to api.abuseipdb.com: refused", soon),
        kept(
            away("name not found"),
            "ERROR: No connection to api.abuseipdb.com: name not found",
            soon,
        ),
        kept(Whim::Mute, "ERROR: No answer from api.abuseipdb.com: timed out", soon),
    ]
}

#[test]
fn each_answer_to_a_report_is_handled_for_what_it_is() {
    for Case { whim, logged, waits, ledger, next } in cases() {
        let mut bed = Bed::new();
        let listing = says(200, r#"{"data":{"abuseConfidenceScore":7,"totalReports":0}}"#);
        bed.server().whims.extend([Whim::Says(listing), whim.clone()]);
        bed.ban(IP, "18", "x");
        let wake = bed.work();
        let log = bed.log();
        assert!(log.last().unwrap().starts_with(logged), "{logged}: {log:#?}");
        assert_eq!(bed.waiting() == 1, waits, "{logged}: {log:#?}");
        assert_eq!(bed.in_ledger(IP), ledger, "{logged}");
        if waits {
            let Wake::At(time) = wake else { panic!("{logged}: {wake:?}") };
            assert!((next.0..=next.1).contains(&(time - START)), "{logged}: {}", time - START);
            bed.finish();
            assert_eq!(bed.taken().len(), 1, "{logged}: {:#?}", bed.log());
            assert_eq!(bed.waiting(), 0);
        }
    }
}

#[test]
fn each_answer_to_a_check_is_handled_for_what_it_is() {
    for known in [false, true] {
        for Case { whim, logged, .. } in cases() {
            let mut bed = Bed::new();
            if known {
                let ledger = Ledger::open(&bed.path("ledger")).unwrap();
                ledger.insert(Address::new(IP).unwrap(), 600).unwrap();
            }
            bed.server().whims.push_back(whim);
            bed.ban(IP, "18", "x");
            bed.finish();
            let log = bed.log();
            // Only what the API says will never do is given up, and only if it is not to be told anyway.
            let refused = log.iter().any(|line| line.starts_with("ERROR: HTTP 422. Response: {"));
            let taken = usize::from(!(known && refused));
            assert_eq!(bed.taken().len(), taken, "{logged}: {log:#?}");
            let failed = log.iter().any(|line| line.starts_with("ERROR: Failed to check IP"));
            assert!(!failed || known, "{logged}: {log:#?}");
        }
    }
}

#[test]
fn what_was_perhaps_taken_is_not_told_twice() {
    for away in [0, 2 * WINDOW] {
        let mut bed = Bed::new();
        let listing = says(200, r#"{"data":{"abuseConfidenceScore":7,"totalReports":0}}"#);
        bed.server().whims.extend([Whim::Says(listing), Whim::Mute]);
        bed.ban(IP, "18", "line one\nline two");
        bed.work();
        assert_eq!((bed.taken().len(), bed.waiting()), (1, 1));
        let now = bed.server().now;
        bed.server().away = now + away;
        bed.finish();
        assert_eq!(bed.taken().len(), 1, "{:#?}", bed.log());
        assert!(bed.log().last().unwrap().starts_with("SUCCESS"), "{:#?}", bed.log());
    }
}

#[test]
fn a_time_that_the_server_does_not_like_is_left_out() {
    let mut bed = Bed::new();
    let listing = says(200, r#"{"data":{"totalReports":0}}"#);
    let body = r#"{"errors":[{"detail":"The timestamp","status":422,"source":{"parameter":"timestamp"}}]}"#;
    bed.server().whims.extend([Whim::Says(listing), Whim::Says(says(422, body))]);
    bed.ban(IP, "18", "x");
    bed.finish();
    assert_eq!(bed.server().taken[0].2, "");
}

#[test]
fn a_refused_key_rests_and_another_goes_at_once() {
    let mut bed = Bed::new();
    let refused = says(401, r#"{"errors":[{"detail":"Authentication failed","status":401}]}"#);
    bed.server().whims.push_back(Whim::Says(refused));
    for n in 1..5 {
        bed.ban(&format!("203.0.113.{n}"), "18", "x");
    }
    assert_eq!(bed.work(), Wake::At(START + 3600));
    assert_eq!(bed.server().keys, ["k3y"]);
    std::fs::write(bed.path("key"), "APIKEY=0ther\n").unwrap();
    assert_eq!(bed.work(), Wake::Called);
    assert_eq!(bed.taken().len(), 4);
    assert_eq!(bed.server().keys[1..], ["0ther"; 8]);
    assert!(!bed.log().join("\n").contains("k3y"));
}

#[test]
fn what_is_too_old_is_given_up_aloud() {
    let mut bed = Bed::new();
    bed.server().away = START + 61 * 86_400;
    bed.ban(IP, "18", "x");
    bed.work();
    assert!(bed.in_ledger(IP));
    bed.passes(60 * 86_400);
    bed.work();
    let log = bed.log();
    assert!(log.contains(
        &"ERROR: IP 203.0.113.9 could not be reported for 60 days: given up.".to_owned()
    ));
    assert_eq!((bed.waiting(), bed.in_ledger(IP)), (0, false));
}

/// Away for an hour, meanwhile 500 addresses are banned; the process dies at the n-th moment after.
fn an_hour_away(dies: Option<usize>) -> (Bed, usize) {
    let mut bed = Bed::new();
    bed.server().away = START + 3600;
    for n in 0..500 {
        bed.ban(&format!("203.0.{}.{}", 113 + n / 250, n % 250 + 1), "18,22", "x \"y\"");
        if n % 5 == 0 {
            bed.passes(30);
            bed.work();
        }
    }
    let away = bed.server().away;
    bed.server().now = away;
    bed.server().dies = dies;
    bed.finish();
    let bulk = bed.server().calls.iter().filter(|call| **call == "bulk").count();
    (bed, bulk)
}

#[test]
fn an_hour_without_network_loses_nothing_whenever_the_process_dies() {
    for dies in std::iter::once(None).chain((0..6).map(Some)) {
        let (bed, bulk) = an_hour_away(dies);
        let mut taken: Vec<_> = bed.taken().into_iter().map(|(ip, _)| ip).collect();
        taken.sort_unstable();
        taken.dedup();
        assert_eq!((taken.len(), bed.taken().len()), (500, 500), "dies {dies:?}");
        assert!((1..=2).contains(&bulk), "dies {dies:?}: {bulk} bulk calls");
        assert_eq!(bed.waiting(), 0);
        let reported = bed.log().iter().filter(|line| line.starts_with("SUCCESS")).count();
        assert_eq!(reported, 500);
    }
}

#[test]
fn a_process_that_dies_at_any_moment_reports_each_address_once() {
    for dies in 0..30 {
        let mut bed = Bed::new();
        bed.server().dies = Some(dies);
        for n in 0..8 {
            bed.ban(&format!("203.0.113.{}", n % 6 + 1), "18", &format!("ban {n}"));
        }
        bed.finish();
        let taken = bed.taken();
        // Six addresses, of which two were banned twice: in one report, or in two.
        for n in 0..8 {
            let told = taken.iter().filter(|(_, comment)| comment.contains(&format!("ban {n}")));
            assert_eq!(told.count(), 1, "dies {dies}: ban {n}: {taken:?}");
        }
    }
}

#[test]
fn a_spent_quota_of_checks_does_not_hold_back_reports() {
    let mut bed = Bed::new();
    bed.server().whims.push_back(Whim::Says(daily(5000)));
    bed.ban(IP, "18", "x");
    bed.ban("203.0.113.10", "18", "x");
    assert_eq!(bed.work(), Wake::Called);
    assert_eq!(bed.server().calls, ["report", "report"]);
    assert!(bed.log().last().unwrap().contains("Score: 52%, Reports: not known"));
}

fn not_sent() -> Whim {
    Whim::Away(Failure::NotSent("no route to host".to_owned()))
}

/// A link that flaps: a call is taken and its answer lost, the next one is not sent, and then it is
/// away for longer than the window.
#[test]
fn a_flapping_link_tells_nothing_twice() {
    for count in [1, 30] {
        for checks_spent in [false, true] {
            let mut bed = Bed::new();
            bed.server().away = START + 1;
            for n in 0..count {
                bed.ban(&format!("203.0.113.{}", n + 1), "18", &format!("ban {n}"));
            }
            bed.work();
            bed.passes(60);
            if checks_spent && count == 1 {
                bed.server().whims.push_back(Whim::Says(daily(7200)));
            } else if count == 1 {
                bed.server()
                    .whims
                    .push_back(Whim::Says(says(200, r#"{"data":{"totalReports":0}}"#)));
            }
            bed.server().whims.extend([Whim::Mute, not_sent(), not_sent()]);
            bed.work();
            assert_eq!(bed.taken().len(), count, "{:#?}", bed.log());
            for _ in 0..3 {
                bed.passes(WINDOW / 2);
                bed.work();
            }
            bed.finish();
            assert_eq!(bed.taken().len(), count, "{count}, {checks_spent}: {:#?}", bed.log());
            assert_eq!(bed.waiting(), 0);
        }
    }
}

#[test]
fn one_report_that_a_firewall_refuses_holds_back_no_other() {
    let mut bed = Bed::new();
    bed.server().firewall = Some("OR 1=1");
    bed.ban(IP, "16", "GET /?id=' OR 1=1 --");
    for n in 0..4 {
        bed.ban(&format!("203.0.113.{}", n + 20), "18", "x");
    }
    for _ in 0..20 {
        bed.work();
        bed.passes(300);
    }
    assert_eq!((bed.taken().len(), bed.waiting()), (4, 1), "{:#?}", bed.log());
    bed.server().firewall = None;
    bed.finish();
    assert_eq!(bed.taken().len(), 5);
}

#[test]
fn a_plan_without_bulk_reports_sends_singly() {
    let mut bed = Bed::new();
    bed.server().away = START + 1;
    for n in 0..30 {
        bed.ban(&format!("203.0.113.{}", n + 1), "18", "x");
    }
    bed.work();
    bed.passes(60);
    let no = says(402, r#"{"errors":[{"detail":"Payment required","status":402}]}"#);
    bed.server().whims.push_back(Whim::Says(no));
    bed.work();
    assert_eq!((bed.taken().len(), bed.waiting()), (30, 0), "{:#?}", bed.log());
}

#[test]
fn a_bulk_answer_is_believed_no_further_than_it_goes() {
    for invalid in [json!([]), json!([{"error": "Invalid Report Date", "input": "203.0.113.5"}])] {
        let mut bed = Bed::new();
        bed.server().away = START + 1;
        for n in 0..30 {
            bed.ban(&format!("203.0.113.{}", n + 1), "18", &format!("ban {n}"));
        }
        bed.work();
        bed.passes(60);
        // It took none, and says that it took some, or all but one.
        let saved = if invalid == json!([]) { 3 } else { 29 };
        let answer = data(&json!({"savedReports": saved, "invalidReports": invalid}));
        bed.server().whims.push_back(Whim::Says(answer));
        bed.finish();
        let taken = bed.taken();
        if saved == 3 {
            assert_eq!(taken.len(), 30, "{:#?}", bed.log());
        } else {
            assert_eq!(taken, [("203.0.113.5".to_owned(), "ban 4".to_owned())]);
        }
        assert_eq!(bed.waiting(), 0);
    }
}

#[test]
fn what_is_in_doubt_waits_when_a_check_is_refused() {
    let mut bed = Bed::new();
    let listing = says(200, r#"{"data":{"totalReports":0}}"#);
    let refused = says(422, r#"{"errors":[{"detail":"no","status":422}]}"#);
    bed.server().whims.extend([Whim::Says(listing), Whim::Mute, Whim::Says(refused)]);
    bed.ban(IP, "18", "x");
    bed.work();
    bed.passes(WINDOW);
    assert!(matches!(bed.work(), Wake::At(_)), "{:#?}", bed.log());
    bed.finish();
    assert_eq!((bed.taken().len(), bed.waiting()), (1, 0));
}

#[test]
fn a_server_in_trouble_is_left_alone_for_as_long_as_it_asks() {
    let mut bed = Bed::new();
    let trouble = Answer { retry_after: Some(3600), ..says(503, "") };
    bed.server().whims.push_back(Whim::Says(trouble));
    bed.ban(IP, "18", "x");
    assert_eq!(bed.work(), Wake::At(START + 3600));
}

#[test]
fn a_clock_that_was_ahead_holds_nothing_back() {
    let mut bed = Bed::new();
    bed.passes(365 * 86_400);
    bed.server().whims.extend([Whim::Says(daily(5000)), Whim::Says(daily(5000))]);
    bed.ban(IP, "18", "x");
    bed.work();
    bed.server().now = START;
    bed.work();
    let waited = bed.finish();
    assert!(waited < 26 * 3600, "{waited}");
    assert_eq!((bed.taken().len(), bed.waiting()), (1, 0));
}

#[test]
fn a_ledger_that_cannot_be_used_holds_nothing_back_for_long() {
    let mut bed = Bed::new();
    std::fs::create_dir(bed.path("ledger")).unwrap();
    bed.ban(IP, "18", "x");
    let waited = bed.finish();
    assert!(waited < 600, "{waited}");
    assert_eq!(bed.taken().len(), 1, "{:#?}", bed.log());
}
