//! Tests the effect of each possible response on the queue.

use serde_json::json;

use super::server::{Whim, daily, data, says, too_soon};
use super::{Bed, IP, START};
use crate::abuseipdb::answer::{ApiResponse, CutOff};
use crate::abuseipdb::api::Failure;
use crate::abuseipdb::glance::QueueStatus;
use crate::abuseipdb::ledger::Ledger;
use crate::abuseipdb::plan::REPORT_INTERVAL_SECS;
use crate::abuseipdb::worker::Wake;
use crate::wire::Address;

/// The effect of one response to a report.
struct AnswerCase {
    whim: Whim,
    /// The start of the last log line.
    logged: &'static str,
    waits: bool,
    /// Whether the ledger has the address afterwards.
    ledger: bool,
    /// The shortest and longest wait until the next attempt, in seconds.
    next: (i64, i64),
}

fn cases() -> Vec<AnswerCase> {
    let kept = |whim, logged, next| AnswerCase { whim, logged, waits: true, ledger: true, next };
    let answered =
        |status, body: &str, logged, next| kept(Whim::Says(says(status, body)), logged, next);
    let gone = |answer, logged, ledger| AnswerCase {
        whim: Whim::Says(answer),
        logged,
        waits: false,
        ledger,
        next: (0, 0),
    };
    let error = |status| format!(r#"{{"errors":[{{"detail":"because","status":{status}}}]}}"#);
    let (soon, hour) = ((30, 120), (3590, 3610));
    let taken = r#"{"data":{"ipAddress":"203.0.113.9","abuseConfidenceScore":52}}"#;
    let endless = ApiResponse { cut_off: Some(CutOff::TooLong), ..says(200, taken) };
    let stalled = CutOff::Lost("operation timed out".to_owned());
    let stalled = ApiResponse { cut_off: Some(stalled), ..says(200, &taken[..20]) };
    let away = |why: &str| Whim::Away(Failure::NotSent(why.to_owned()));
    vec![
        gone(says(200, taken), "SUCCESS: Reported 203.0.113.9 - Score: 52%", true),
        gone(too_soon(), "INFO: IP 203.0.113.9 has already been reported with this key", true),
        kept(
            Whim::Says(daily(29_000)),
            "INFO: The daily limit of AbuseIPDB is reached for report",
            (29_000, 29_000),
        ),
        answered(401, &error(401), "ERROR: HTTP 401. Response: {\"errors\"", hour),
        answered(402, &error(402), "ERROR: HTTP 402. Response: {\"errors\"", soon),
        answered(403, &error(403), "ERROR: HTTP 403. Response: {\"errors\"", soon),
        answered(404, &error(404), "ERROR: HTTP 404. Response: {\"errors\"", soon),
        gone(
            says(422, &error(422)),
            "INFO: IP 203.0.113.9 deleted from the AbuseIPDB SQLite",
            false,
        ),
        answered(500, &error(500), "ERROR: HTTP 500. Response: {\"errors\"", soon),
        answered(503, "", "ERROR: HTTP 503. Response: (nothing)", soon),
        answered(200, "<html>a portal</html>", "ERROR: HTTP 200. Response: <html>a portal", soon),
        answered(422, "<html>a portal</html>", "ERROR: HTTP 422. Response: <html>a portal", soon),
        answered(200, "", "ERROR: HTTP 200. Response: (nothing)", soon),
        answered(200, &taken[..20], "ERROR: HTTP 200. Response: {\"data\":{\"ipAddress\"", soon),
        kept(Whim::Says(endless), "ERROR: HTTP 200. Response: {\"data\":{\"ipAddress\"", soon),
        kept(
            Whim::Says(stalled),
            "ERROR: HTTP 200. Response: {\"data\":{\"ipAddress\"... (cut off",
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
fn response_to_a_report_settles_or_delays_it() {
    for AnswerCase { whim, logged, waits, ledger, next } in cases() {
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
fn response_to_a_check_delays_no_first_report() {
    for known in [false, true] {
        for AnswerCase { whim, logged, .. } in cases() {
            let mut bed = Bed::new();
            if known {
                let ledger = Ledger::open(&bed.path("ledger")).unwrap();
                ledger.insert(Address::new(IP).unwrap(), 600).unwrap();
            }
            // Without a connection, or with a rejected key, all reports wait.
            let all_wait = matches!(whim, Whim::Away(_)) || known && logged.contains("401");
            bed.server().whims.push_back(whim);
            bed.ban(IP, "18", "x");
            bed.ban("203.0.113.10", "18", "x");
            bed.work();
            let least = if all_wait { 0 } else { 2 - usize::from(known) };
            assert!(bed.taken().len() >= least, "{logged}: {:#?}", bed.log());
            bed.finish();
            let log = bed.log();
            let nameless = log
                .iter()
                .find(|line| line.starts_with("ERROR") && !line.contains("IP 203.0.113."));
            assert_eq!(nameless, None, "{logged}");
            // Only a report that the API rejects is dropped, and only if it needs the check.
            let refused = log.iter().any(|line| line.starts_with("ERROR: HTTP 422. Response: {"));
            let taken = if known && refused { 1 } else { 2 };
            assert_eq!(bed.taken().len(), taken, "{logged}: {log:#?}");
            let failed = log.iter().any(|line| line.starts_with("ERROR: Failed to check IP"));
            assert!(!failed || known, "{logged}: {log:#?}");
        }
    }
}

#[test]
fn report_in_doubt_is_not_sent_twice() {
    for away in [0, 2 * REPORT_INTERVAL_SECS] {
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
fn report_whose_time_is_rejected_is_sent_without_time() {
    let mut bed = Bed::new();
    let listing = says(200, r#"{"data":{"totalReports":0}}"#);
    let body = r#"{"errors":[{"detail":"The timestamp","status":422,"source":{"parameter":"timestamp"}}]}"#;
    bed.server().whims.extend([Whim::Says(listing), Whim::Says(says(422, body))]);
    bed.ban(IP, "18", "x");
    bed.finish();
    assert_eq!(bed.server().taken[0].2, "");
}

#[test]
fn rejected_key_pauses_and_a_new_key_is_used_at_once() {
    let mut bed = Bed::new();
    let refused = says(401, r#"{"errors":[{"detail":"Authentication failed","status":401}]}"#);
    bed.server().whims.extend([Whim::Says(refused.clone()), Whim::Says(refused)]);
    for n in 1..5 {
        bed.ban(&format!("203.0.113.{n}"), "18", "x");
    }
    assert_eq!(bed.work(), Wake::At(START + 3600));
    assert_eq!(bed.server().calls.len(), 0, "both calls were refused");
    assert_eq!(bed.server().keys, ["k3y"; 2]);
    let last = QueueStatus::of(&bed.path("queue")).unwrap().last_call.unwrap();
    assert_eq!(last.error.as_deref(), Some("AbuseIPDB rejected the API key (HTTP 401)"));
    std::fs::write(bed.path("key"), "APIKEY=0ther\n").unwrap();
    assert_eq!(bed.work(), Wake::Called);
    assert_eq!(bed.taken().len(), 4);
    assert_eq!(bed.server().keys[2..], ["0ther"; 8]);
    assert_eq!(QueueStatus::of(&bed.path("queue")).unwrap().last_call.unwrap().error, None);
    assert!(!bed.log().join("\n").contains("k3y"));
}

#[test]
fn exhausted_quota_of_checks_delays_no_reports() {
    let mut bed = Bed::new();
    bed.server().whims.push_back(Whim::Says(daily(5000)));
    bed.ban(IP, "18", "x");
    bed.ban("203.0.113.10", "18", "x");
    assert_eq!(bed.work(), Wake::Called);
    assert_eq!(bed.server().calls, ["report", "report"]);
    assert!(bed.log().last().unwrap().contains("Score: 52%, Reports: not known"));
}

#[test]
fn report_that_a_firewall_rejects_delays_no_other() {
    let mut bed = Bed::new();
    bed.server().firewall = Some("OR 1=1");
    bed.ban(IP, "16", "GET /?id=' OR 1=1 --");
    for n in 0..4 {
        bed.ban(&format!("203.0.113.{}", n + 20), "18", "x");
    }
    for _ in 0..20 {
        bed.work();
        bed.advance(300);
    }
    assert_eq!((bed.taken().len(), bed.waiting()), (4, 1), "{:#?}", bed.log());
    bed.server().firewall = None;
    bed.finish();
    assert_eq!(bed.taken().len(), 5);
}

#[test]
fn account_without_bulk_reports_sends_single_reports() {
    let mut bed = Bed::new();
    bed.server().away = START + 1;
    for n in 0..30 {
        bed.ban(&format!("203.0.113.{}", n + 1), "18", "x");
    }
    bed.work();
    bed.advance(60);
    let no = says(402, r#"{"errors":[{"detail":"Payment required","status":402}]}"#);
    bed.server().whims.push_back(Whim::Says(no));
    bed.work();
    assert_eq!((bed.taken().len(), bed.waiting()), (30, 0), "{:#?}", bed.log());
}

#[test]
fn bulk_response_settles_only_the_reports_it_accounts_for() {
    for invalid in [json!([]), json!([{"error": "Invalid Report Date", "input": "203.0.113.5"}])] {
        let mut bed = Bed::new();
        bed.server().away = START + 1;
        for n in 0..30 {
            bed.ban(&format!("203.0.113.{}", n + 1), "18", &format!("ban {n}"));
        }
        bed.work();
        bed.advance(60);
        // The server accepts none, and claims to have accepted three, or all but one.
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
fn report_in_doubt_waits_if_its_check_is_rejected() {
    let mut bed = Bed::new();
    let listing = says(200, r#"{"data":{"totalReports":0}}"#);
    let refused = says(422, r#"{"errors":[{"detail":"no","status":422}]}"#);
    bed.server().whims.extend([Whim::Says(listing), Whim::Mute, Whim::Says(refused)]);
    bed.ban(IP, "18", "x");
    bed.work();
    bed.advance(REPORT_INTERVAL_SECS);
    assert!(matches!(bed.work(), Wake::At(_)), "{:#?}", bed.log());
    bed.finish();
    assert_eq!((bed.taken().len(), bed.waiting()), (1, 0));
}

#[test]
fn failing_server_is_called_again_after_the_delay_it_asks_for() {
    let mut bed = Bed::new();
    let trouble = ApiResponse { retry_after: Some(3600), ..says(503, "") };
    let listing = says(200, r#"{"data":{"totalReports":0}}"#);
    bed.server().whims.extend([Whim::Says(listing), Whim::Says(trouble.clone())]);
    bed.ban(IP, "18", "x");
    assert_eq!(bed.work(), Wake::At(START + 3600));
    // The same response to a check delays only checks.
    let mut bed = Bed::new();
    bed.server().whims.push_back(Whim::Says(trouble));
    bed.ban(IP, "18", "x");
    bed.ban("203.0.113.10", "18", "x");
    assert_eq!(bed.work(), Wake::Called);
    assert_eq!(bed.server().calls, ["report", "report"]);
    assert!(bed.log().last().unwrap().contains("Reports: not known"), "{:#?}", bed.log());
}

#[test]
fn unreadable_key_is_not_replaced_by_another() {
    let mut bed = Bed::new();
    std::fs::write(bed.path("key"), "APIKEY=$(pass abuseipdb)\n").unwrap();
    bed.ban(IP, "18", "x");
    assert_eq!(bed.work(), Wake::At(START + 3600));
    assert!(bed.server().keys.is_empty());
    let expected = format!(
        "ERROR: The report of IP {IP} waits: cannot read the API key in {}.",
        bed.path("key").display()
    );
    assert_eq!(bed.log(), [expected]);
    std::fs::write(bed.path("key"), "A=0ther\nAPIKEY=$A\n").unwrap();
    assert_eq!(bed.work(), Wake::Called);
    assert_eq!(bed.server().keys, ["0ther"; 2]);
}
