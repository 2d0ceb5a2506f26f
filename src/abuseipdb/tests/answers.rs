//! What the server may answer, and what becomes of the reports then.

use serde_json::json;

use super::server::{Whim, daily, data, says, too_soon};
use super::{Bed, IP, START};
use crate::abuseipdb::answer::{Answer, CutOff};
use crate::abuseipdb::api::Failure;
use crate::abuseipdb::glance::Glance;
use crate::abuseipdb::ledger::Ledger;
use crate::abuseipdb::plan::WINDOW;
use crate::abuseipdb::worker::Wake;
use crate::wire::Address;

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
        gone(says(200, taken), "SUCCESS: Reported 203.0.113.9 - Score: 52%", true),
        gone(too_soon(), "INFO: IP 203.0.113.9 has already been reported with this key", true),
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
            // A call that was not even sent is no answer, and a key that is refused is no report's matter.
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
            // Only what the API says will never do is given up, and only if it is not to be told anyway.
            let refused = log.iter().any(|line| line.starts_with("ERROR: HTTP 422. Response: {"));
            let taken = if known && refused { 1 } else { 2 };
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
    bed.server().whims.extend([Whim::Says(refused.clone()), Whim::Says(refused)]);
    for n in 1..5 {
        bed.ban(&format!("203.0.113.{n}"), "18", "x");
    }
    assert_eq!(bed.work(), Wake::At(START + 3600));
    assert_eq!(bed.server().calls.len(), 0, "both calls were refused");
    assert_eq!(bed.server().keys, ["k3y"; 2]);
    let last = Glance::of(&bed.path("queue")).unwrap().last_call.unwrap();
    assert_eq!(last.error.as_deref(), Some("AbuseIPDB rejected the API key (HTTP 401)"));
    std::fs::write(bed.path("key"), "APIKEY=0ther\n").unwrap();
    assert_eq!(bed.work(), Wake::Called);
    assert_eq!(bed.taken().len(), 4);
    assert_eq!(bed.server().keys[2..], ["0ther"; 8]);
    assert_eq!(Glance::of(&bed.path("queue")).unwrap().last_call.unwrap().error, None);
    assert!(!bed.log().join("\n").contains("k3y"));
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
    let listing = says(200, r#"{"data":{"totalReports":0}}"#);
    bed.server().whims.extend([Whim::Says(listing), Whim::Says(trouble.clone())]);
    bed.ban(IP, "18", "x");
    assert_eq!(bed.work(), Wake::At(START + 3600));
    // Of checks it asks the same; reports go.
    let mut bed = Bed::new();
    bed.server().whims.push_back(Whim::Says(trouble));
    bed.ban(IP, "18", "x");
    bed.ban("203.0.113.10", "18", "x");
    assert_eq!(bed.work(), Wake::Called);
    assert_eq!(bed.server().calls, ["report", "report"]);
    assert!(bed.log().last().unwrap().contains("Reports: not known"), "{:#?}", bed.log());
}

#[test]
fn key_that_cannot_be_read_is_replaced_by_no_other() {
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
