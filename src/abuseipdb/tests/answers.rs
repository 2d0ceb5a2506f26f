//! Tests the effect of each possible response on the queue.

use serde_json::json;

use super::server::{ServerFault, data, quota_exhausted, response, too_soon};
use super::{IP, ReporterHarness, START};
use crate::abuseipdb::api::Failure;
use crate::abuseipdb::plan::REPORT_INTERVAL_SECS;
use crate::abuseipdb::queue_status::QueueStatus;
use crate::abuseipdb::reported_db::Ledger;
use crate::abuseipdb::response::{ApiResponse, CutOff};
use crate::abuseipdb::worker::Wake;
use crate::model::Address;

/// The effect of one response to a report.
struct AnswerCase {
    fault: ServerFault,
    /// The start of the last log line.
    logged: &'static str,
    waits: bool,
    /// Whether the ledger has the address afterwards.
    ledger: bool,
    /// The shortest and longest wait until the next attempt, in seconds.
    next: (i64, i64),
}

/// The report stays queued.
fn queued(fault: ServerFault, logged: &'static str, next: (i64, i64)) -> AnswerCase {
    AnswerCase { fault, logged, waits: true, ledger: true, next }
}

/// The report stays queued after this response.
fn queued_after(status: u16, body: &str, logged: &'static str, next: (i64, i64)) -> AnswerCase {
    queued(ServerFault::Response(response(status, body)), logged, next)
}

/// The report leaves the queue.
fn settled(response: ApiResponse, logged: &'static str, ledger: bool) -> AnswerCase {
    let fault = ServerFault::Response(response);
    AnswerCase { fault, logged, waits: false, ledger, next: (0, 0) }
}

fn not_sent(why: &str) -> ServerFault {
    ServerFault::Unreachable(Failure::NotSent(why.to_owned()))
}

fn error(status: u16) -> String {
    format!(r#"{{"errors":[{{"detail":"because","status":{status}}}]}}"#)
}

fn cases() -> Vec<AnswerCase> {
    let (soon, hour) = ((30, 120), (3590, 3610));
    let accepted = r#"{"data":{"ipAddress":"203.0.113.9","abuseConfidenceScore":52}}"#;
    let endless = ApiResponse { cut_off: Some(CutOff::TooLong), ..response(200, accepted) };
    let stalled = CutOff::Lost("operation timed out".to_owned());
    let stalled = ApiResponse { cut_off: Some(stalled), ..response(200, &accepted[..20]) };
    vec![
        settled(response(200, accepted), "SUCCESS: Reported 203.0.113.9 - Score: 52%", true),
        settled(too_soon(), "INFO: IP 203.0.113.9 has already been reported with this key", true),
        queued(
            ServerFault::Response(quota_exhausted(29_000)),
            "INFO: The daily limit of AbuseIPDB is reached for report",
            (29_000, 29_000),
        ),
        queued_after(401, &error(401), "ERROR: HTTP 401. Response: {\"errors\"", hour),
        queued_after(402, &error(402), "ERROR: HTTP 402. Response: {\"errors\"", soon),
        queued_after(403, &error(403), "ERROR: HTTP 403. Response: {\"errors\"", soon),
        queued_after(404, &error(404), "ERROR: HTTP 404. Response: {\"errors\"", soon),
        settled(
            response(422, &error(422)),
            "INFO: IP 203.0.113.9 deleted from the AbuseIPDB SQLite",
            false,
        ),
        queued_after(500, &error(500), "ERROR: HTTP 500. Response: {\"errors\"", soon),
        queued_after(503, "", "ERROR: HTTP 503. Response: (nothing)", soon),
        queued_after(
            200,
            "<html>a portal</html>",
            "ERROR: HTTP 200. Response: <html>a portal",
            soon,
        ),
        queued_after(
            422,
            "<html>a portal</html>",
            "ERROR: HTTP 422. Response: <html>a portal",
            soon,
        ),
        queued_after(200, "", "ERROR: HTTP 200. Response: (nothing)", soon),
        queued_after(
            200,
            &accepted[..20],
            "ERROR: HTTP 200. Response: {\"data\":{\"ipAddress\"",
            soon,
        ),
        queued(
            ServerFault::Response(endless),
            "ERROR: HTTP 200. Response: {\"data\":{\"ipAddress\"",
            soon,
        ),
        queued(
            ServerFault::Response(stalled),
            "ERROR: HTTP 200. Response: {\"data\":{\"ipAddress\"... (cut off",
            soon,
        ),
        queued(
            not_sent("certificate expired"),
            "ERROR: No connection to api.abuseipdb.com: certificate expired",
            soon,
        ),
        queued(not_sent("refused"), "ERROR: No connection to api.abuseipdb.com: refused", soon),
        queued(
            not_sent("name not found"),
            "ERROR: No connection to api.abuseipdb.com: name not found",
            soon,
        ),
        queued(
            ServerFault::LostResponse,
            "ERROR: No answer from api.abuseipdb.com: timed out",
            soon,
        ),
    ]
}

#[test]
fn response_to_a_report_settles_or_delays_it() {
    for AnswerCase { fault, logged, waits, ledger, next } in cases() {
        let mut harness = ReporterHarness::new();
        let listing = response(200, r#"{"data":{"abuseConfidenceScore":7,"totalReports":0}}"#);
        harness.server().faults.extend([ServerFault::Response(listing), fault.clone()]);
        harness.ban(IP, "18", "x");
        let wake = harness.work();
        let log = harness.log();
        assert!(log.last().unwrap().starts_with(logged), "{logged}: {log:#?}");
        assert_eq!(harness.waiting() == 1, waits, "{logged}: {log:#?}");
        assert_eq!(harness.in_ledger(IP), ledger, "{logged}");
        if waits {
            let Wake::At(time) = wake else { panic!("{logged}: {wake:?}") };
            assert!((next.0..=next.1).contains(&(time - START)), "{logged}: {}", time - START);
            harness.finish();
            assert_eq!(harness.accepted().len(), 1, "{logged}: {:#?}", harness.log());
            assert_eq!(harness.waiting(), 0);
        }
    }
}

#[test]
fn response_to_a_check_delays_no_first_report() {
    for known in [false, true] {
        for AnswerCase { fault, logged, .. } in cases() {
            let mut harness = ReporterHarness::new();
            if known {
                let ledger = Ledger::open(&harness.path("ledger")).unwrap();
                ledger.insert(Address::new(IP).unwrap(), 600).unwrap();
            }
            // Without a connection, or with a rejected key, all reports wait.
            let all_wait =
                matches!(fault, ServerFault::Unreachable(_)) || known && logged.contains("401");
            harness.server().faults.push_back(fault);
            harness.ban(IP, "18", "x");
            harness.ban("203.0.113.10", "18", "x");
            harness.work();
            let least = if all_wait { 0 } else { 2 - usize::from(known) };
            assert!(harness.accepted().len() >= least, "{logged}: {:#?}", harness.log());
            harness.finish();
            let log = harness.log();
            let nameless = log
                .iter()
                .find(|line| line.starts_with("ERROR") && !line.contains("IP 203.0.113."));
            assert_eq!(nameless, None, "{logged}");
            // Only a report that the API rejects is dropped, and only if it needs the check.
            let refused = log.iter().any(|line| line.starts_with("ERROR: HTTP 422. Response: {"));
            let accepted = if known && refused { 1 } else { 2 };
            assert_eq!(harness.accepted().len(), accepted, "{logged}: {log:#?}");
            let failed = log.iter().any(|line| line.starts_with("ERROR: Failed to check IP"));
            assert!(!failed || known, "{logged}: {log:#?}");
        }
    }
}

#[test]
fn report_in_doubt_is_not_sent_twice() {
    for outage_secs in [0, 2 * REPORT_INTERVAL_SECS] {
        let mut harness = ReporterHarness::new();
        let listing = response(200, r#"{"data":{"abuseConfidenceScore":7,"totalReports":0}}"#);
        harness.server().faults.extend([ServerFault::Response(listing), ServerFault::LostResponse]);
        harness.ban(IP, "18", "line one\nline two");
        harness.work();
        assert_eq!((harness.accepted().len(), harness.waiting()), (1, 1));
        let now = harness.server().now;
        harness.server().unreachable_until = now + outage_secs;
        harness.finish();
        assert_eq!(harness.accepted().len(), 1, "{:#?}", harness.log());
        assert!(harness.log().last().unwrap().starts_with("SUCCESS"), "{:#?}", harness.log());
    }
}

#[test]
fn report_whose_time_is_rejected_is_sent_without_time() {
    let mut harness = ReporterHarness::new();
    let listing = response(200, r#"{"data":{"totalReports":0}}"#);
    let body = r#"{"errors":[{"detail":"The timestamp","status":422,"source":{"parameter":"timestamp"}}]}"#;
    harness
        .server()
        .faults
        .extend([ServerFault::Response(listing), ServerFault::Response(response(422, body))]);
    harness.ban(IP, "18", "x");
    harness.finish();
    assert_eq!(harness.server().accepted[0].timestamp, "");
}

#[test]
fn rejected_key_pauses_and_a_new_key_is_used_at_once() {
    let mut harness = ReporterHarness::new();
    let refused = response(401, r#"{"errors":[{"detail":"Authentication failed","status":401}]}"#);
    harness
        .server()
        .faults
        .extend([ServerFault::Response(refused.clone()), ServerFault::Response(refused)]);
    for n in 1..5 {
        harness.ban(&format!("203.0.113.{n}"), "18", "x");
    }
    assert_eq!(harness.work(), Wake::At(START + 3600));
    assert_eq!(harness.server().calls.len(), 0, "both calls were refused");
    assert_eq!(harness.server().keys, ["k3y"; 2]);
    let last = QueueStatus::of(&harness.path("queue")).unwrap().last_call.unwrap();
    assert_eq!(last.error.as_deref(), Some("AbuseIPDB rejected the API key (HTTP 401)"));
    std::fs::write(harness.path("key"), "APIKEY=0ther\n").unwrap();
    assert_eq!(harness.work(), Wake::OnReport);
    assert_eq!(harness.accepted().len(), 4);
    assert_eq!(harness.server().keys[2..], ["0ther"; 8]);
    assert_eq!(QueueStatus::of(&harness.path("queue")).unwrap().last_call.unwrap().error, None);
    assert!(!harness.log().join("\n").contains("k3y"));
}

#[test]
fn exhausted_quota_of_checks_delays_no_reports() {
    let mut harness = ReporterHarness::new();
    harness.server().faults.push_back(ServerFault::Response(quota_exhausted(5000)));
    harness.ban(IP, "18", "x");
    harness.ban("203.0.113.10", "18", "x");
    assert_eq!(harness.work(), Wake::OnReport);
    assert_eq!(harness.server().calls, ["report", "report"]);
    assert!(harness.log().last().unwrap().contains("Score: 52%, Reports: not known"));
}

#[test]
fn report_that_a_firewall_rejects_delays_no_other() {
    let mut harness = ReporterHarness::new();
    harness.server().firewall = Some("OR 1=1");
    harness.ban(IP, "16", "GET /?id=' OR 1=1 --");
    for n in 0..4 {
        harness.ban(&format!("203.0.113.{}", n + 20), "18", "x");
    }
    for _ in 0..20 {
        harness.work();
        harness.advance(300);
    }
    assert_eq!((harness.accepted().len(), harness.waiting()), (4, 1), "{:#?}", harness.log());
    harness.server().firewall = None;
    harness.finish();
    assert_eq!(harness.accepted().len(), 5);
}

#[test]
fn account_without_bulk_reports_sends_single_reports() {
    let mut harness = ReporterHarness::new();
    harness.server().unreachable_until = START + 1;
    for n in 0..30 {
        harness.ban(&format!("203.0.113.{}", n + 1), "18", "x");
    }
    harness.work();
    harness.advance(60);
    let no = response(402, r#"{"errors":[{"detail":"Payment required","status":402}]}"#);
    harness.server().faults.push_back(ServerFault::Response(no));
    harness.work();
    assert_eq!((harness.accepted().len(), harness.waiting()), (30, 0), "{:#?}", harness.log());
}

#[test]
fn bulk_response_settles_only_the_reports_it_accounts_for() {
    for invalid in [json!([]), json!([{"error": "Invalid Report Date", "input": "203.0.113.5"}])] {
        let mut harness = ReporterHarness::new();
        harness.server().unreachable_until = START + 1;
        for n in 0..30 {
            harness.ban(&format!("203.0.113.{}", n + 1), "18", &format!("ban {n}"));
        }
        harness.work();
        harness.advance(60);
        // The server accepts none, and claims to have accepted three, or all but one.
        let saved = if invalid == json!([]) { 3 } else { 29 };
        let answer = data(&json!({"savedReports": saved, "invalidReports": invalid}));
        harness.server().faults.push_back(ServerFault::Response(answer));
        harness.finish();
        let accepted = harness.accepted();
        if saved == 3 {
            assert_eq!(accepted.len(), 30, "{:#?}", harness.log());
        } else {
            assert_eq!(accepted, [("203.0.113.5".to_owned(), "ban 4".to_owned())]);
        }
        assert_eq!(harness.waiting(), 0);
    }
}

#[test]
fn report_in_doubt_waits_if_its_check_is_rejected() {
    let mut harness = ReporterHarness::new();
    let listing = response(200, r#"{"data":{"totalReports":0}}"#);
    let refused = response(422, r#"{"errors":[{"detail":"no","status":422}]}"#);
    harness.server().faults.extend([
        ServerFault::Response(listing),
        ServerFault::LostResponse,
        ServerFault::Response(refused),
    ]);
    harness.ban(IP, "18", "x");
    harness.work();
    harness.advance(REPORT_INTERVAL_SECS);
    assert!(matches!(harness.work(), Wake::At(_)), "{:#?}", harness.log());
    harness.finish();
    assert_eq!((harness.accepted().len(), harness.waiting()), (1, 0));
}

#[test]
fn failing_server_is_called_again_after_the_delay_it_asks_for() {
    let mut harness = ReporterHarness::new();
    let trouble = ApiResponse { retry_after: Some(3600), ..response(503, "") };
    let listing = response(200, r#"{"data":{"totalReports":0}}"#);
    harness
        .server()
        .faults
        .extend([ServerFault::Response(listing), ServerFault::Response(trouble.clone())]);
    harness.ban(IP, "18", "x");
    assert_eq!(harness.work(), Wake::At(START + 3600));
    // The same response to a check delays only checks.
    let mut harness = ReporterHarness::new();
    harness.server().faults.push_back(ServerFault::Response(trouble));
    harness.ban(IP, "18", "x");
    harness.ban("203.0.113.10", "18", "x");
    assert_eq!(harness.work(), Wake::OnReport);
    assert_eq!(harness.server().calls, ["report", "report"]);
    assert!(harness.log().last().unwrap().contains("Reports: not known"), "{:#?}", harness.log());
}

#[test]
fn unreadable_key_is_not_replaced_by_another() {
    let mut harness = ReporterHarness::new();
    std::fs::write(harness.path("key"), "APIKEY=$(pass abuseipdb)\n").unwrap();
    harness.ban(IP, "18", "x");
    assert_eq!(harness.work(), Wake::At(START + 3600));
    assert!(harness.server().keys.is_empty());
    let expected = format!(
        "ERROR: The report of IP {IP} waits: cannot read the API key in {}.",
        harness.path("key").display()
    );
    assert_eq!(harness.log(), [expected]);
    std::fs::write(harness.path("key"), "A=0ther\nAPIKEY=$A\n").unwrap();
    assert_eq!(harness.work(), Wake::OnReport);
    assert_eq!(harness.server().keys, ["0ther"; 2]);
}
