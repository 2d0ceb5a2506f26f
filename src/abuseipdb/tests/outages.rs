//! Tests that each ban is reported once although links flap, processes die, and clocks and disks are wrong.

use super::server::{ServerFault, quota_exhausted, response};
use super::{IP, ReporterHarness, START};
use crate::abuseipdb::api::Failure;
use crate::abuseipdb::plan::REPORT_INTERVAL_SECS;

/// The server is unreachable for an hour, in which 500 addresses are banned; then the process dies at the n-th moment.
fn hour_without_server(dies_after: Option<usize>) -> (ReporterHarness, usize) {
    let mut harness = ReporterHarness::new();
    harness.server().unreachable_until = START + 3600;
    for n in 0..500 {
        harness.ban(&format!("203.0.{}.{}", 113 + n / 250, n % 250 + 1), "18,22", "x \"y\"");
        if n % 5 == 0 {
            harness.advance(30);
            harness.work();
        }
    }
    harness.server().now = START + 3600;
    harness.server().dies_after = dies_after;
    harness.finish();
    let bulk = harness.server().calls.iter().filter(|call| **call == "bulk").count();
    (harness, bulk)
}

#[test]
fn hour_without_network_loses_no_report_whenever_the_process_dies() {
    for dies_after in std::iter::once(None).chain((0..6).map(Some)) {
        let (harness, bulk) = hour_without_server(dies_after);
        let mut accepted: Vec<_> = harness.accepted().into_iter().map(|(ip, _)| ip).collect();
        accepted.sort_unstable();
        accepted.dedup();
        assert_eq!((accepted.len(), harness.accepted().len()), (500, 500), "dies {dies_after:?}");
        assert!((1..=2).contains(&bulk), "dies {dies_after:?}: {bulk} bulk calls");
        assert_eq!(harness.waiting(), 0);
        let reported = harness.log().iter().filter(|line| line.starts_with("SUCCESS")).count();
        assert_eq!(reported, 500);
    }
}

#[test]
fn process_that_dies_at_any_moment_reports_each_ban_once() {
    for dies_after in 0..30 {
        let mut harness = ReporterHarness::new();
        harness.server().dies_after = Some(dies_after);
        for n in 0..8 {
            harness.ban(&format!("203.0.113.{}", n % 6 + 1), "18", &format!("ban {n}"));
        }
        harness.finish();
        let accepted = harness.accepted();
        // Two of the six addresses were banned twice, which may be one report or two.
        for n in 0..8 {
            let matching =
                accepted.iter().filter(|(_, comment)| comment.contains(&format!("ban {n}")));
            assert_eq!(matching.count(), 1, "dies {dies_after}: ban {n}: {accepted:?}");
        }
    }
}

fn not_sent() -> ServerFault {
    ServerFault::Unreachable(Failure::NotSent("no route to host".to_owned()))
}

/// The response to an accepted call is lost, the next call is not sent, and then the server is unreachable for longer
/// than the report interval.
#[test]
fn flapping_link_causes_no_duplicate_report() {
    for count in [1, 30] {
        for checks_spent in [false, true] {
            let mut harness = ReporterHarness::new();
            harness.server().unreachable_until = START + 1;
            for n in 0..count {
                harness.ban(&format!("203.0.113.{}", n + 1), "18", &format!("ban {n}"));
            }
            harness.work();
            harness.advance(60);
            if checks_spent && count == 1 {
                harness.server().faults.push_back(ServerFault::Response(quota_exhausted(7200)));
            } else if count == 1 {
                harness.server().faults.push_back(ServerFault::Response(response(
                    200,
                    r#"{"data":{"totalReports":0}}"#,
                )));
            }
            harness.server().faults.extend([ServerFault::LostResponse, not_sent(), not_sent()]);
            harness.work();
            assert_eq!(harness.accepted().len(), count, "{:#?}", harness.log());
            for _ in 0..3 {
                harness.advance(REPORT_INTERVAL_SECS / 2);
                harness.work();
            }
            harness.finish();
            assert_eq!(
                harness.accepted().len(),
                count,
                "{count}, {checks_spent}: {:#?}",
                harness.log()
            );
            assert_eq!(harness.waiting(), 0);
        }
    }
}

#[test]
fn report_that_is_too_old_is_dropped_with_a_log_line() {
    let mut harness = ReporterHarness::new();
    harness.server().unreachable_until = START + 61 * 86_400;
    harness.ban(IP, "18", "x");
    harness.work();
    assert!(harness.in_ledger(IP));
    harness.advance(60 * 86_400);
    harness.work();
    let log = harness.log();
    assert!(log.contains(
        &"ERROR: Dropped the report of IP 203.0.113.9: not sent within 60 days.".to_owned()
    ));
    assert_eq!((harness.waiting(), harness.in_ledger(IP)), (0, false));
}

#[test]
fn clock_that_was_ahead_delays_no_report() {
    let mut harness = ReporterHarness::new();
    harness.advance(365 * 86_400);
    harness.server().faults.extend([
        ServerFault::Response(quota_exhausted(5000)),
        ServerFault::Response(quota_exhausted(5000)),
    ]);
    harness.ban(IP, "18", "x");
    harness.work();
    harness.server().now = START;
    harness.work();
    let waited = harness.finish();
    assert!(waited < 26 * 3600, "{waited}");
    assert_eq!((harness.accepted().len(), harness.waiting()), (1, 0));
}

#[test]
fn unusable_ledger_delays_a_report_only_briefly() {
    let mut harness = ReporterHarness::new();
    std::fs::create_dir(harness.path("ledger")).unwrap();
    harness.ban(IP, "18", "x");
    let waited = harness.finish();
    assert!(waited < 600, "{waited}");
    assert_eq!(harness.accepted().len(), 1, "{:#?}", harness.log());
}
