//! Tests that each ban is reported once although links flap, processes die, and clocks and disks are wrong.

use super::server::{Whim, daily, says};
use super::{Bed, IP, START};
use crate::abuseipdb::api::Failure;
use crate::abuseipdb::plan::REPORT_INTERVAL_SECS;

/// The server is unreachable for an hour, in which 500 addresses are banned; then the process dies at the n-th moment.
fn an_hour_away(dies: Option<usize>) -> (Bed, usize) {
    let mut bed = Bed::new();
    bed.server().away = START + 3600;
    for n in 0..500 {
        bed.ban(&format!("203.0.{}.{}", 113 + n / 250, n % 250 + 1), "18,22", "x \"y\"");
        if n % 5 == 0 {
            bed.advance(30);
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
fn hour_without_network_loses_no_report_whenever_the_process_dies() {
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
fn process_that_dies_at_any_moment_reports_each_ban_once() {
    for dies in 0..30 {
        let mut bed = Bed::new();
        bed.server().dies = Some(dies);
        for n in 0..8 {
            bed.ban(&format!("203.0.113.{}", n % 6 + 1), "18", &format!("ban {n}"));
        }
        bed.finish();
        let taken = bed.taken();
        // Two of the six addresses were banned twice, which may be one report or two.
        for n in 0..8 {
            let matching =
                taken.iter().filter(|(_, comment)| comment.contains(&format!("ban {n}")));
            assert_eq!(matching.count(), 1, "dies {dies}: ban {n}: {taken:?}");
        }
    }
}

fn not_sent() -> Whim {
    Whim::Away(Failure::NotSent("no route to host".to_owned()))
}

/// The response to an accepted call is lost, the next call is not sent, and then the server is unreachable for longer
/// than the report interval.
#[test]
fn flapping_link_causes_no_duplicate_report() {
    for count in [1, 30] {
        for checks_spent in [false, true] {
            let mut bed = Bed::new();
            bed.server().away = START + 1;
            for n in 0..count {
                bed.ban(&format!("203.0.113.{}", n + 1), "18", &format!("ban {n}"));
            }
            bed.work();
            bed.advance(60);
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
                bed.advance(REPORT_INTERVAL_SECS / 2);
                bed.work();
            }
            bed.finish();
            assert_eq!(bed.taken().len(), count, "{count}, {checks_spent}: {:#?}", bed.log());
            assert_eq!(bed.waiting(), 0);
        }
    }
}

#[test]
fn report_that_is_too_old_is_dropped_with_a_log_line() {
    let mut bed = Bed::new();
    bed.server().away = START + 61 * 86_400;
    bed.ban(IP, "18", "x");
    bed.work();
    assert!(bed.in_ledger(IP));
    bed.advance(60 * 86_400);
    bed.work();
    let log = bed.log();
    assert!(log.contains(
        &"ERROR: Dropped the report of IP 203.0.113.9: not sent within 60 days.".to_owned()
    ));
    assert_eq!((bed.waiting(), bed.in_ledger(IP)), (0, false));
}

#[test]
fn clock_that_was_ahead_delays_no_report() {
    let mut bed = Bed::new();
    bed.advance(365 * 86_400);
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
fn unusable_ledger_delays_a_report_only_briefly() {
    let mut bed = Bed::new();
    std::fs::create_dir(bed.path("ledger")).unwrap();
    bed.ban(IP, "18", "x");
    let waited = bed.finish();
    assert!(waited < 600, "{waited}");
    assert_eq!(bed.taken().len(), 1, "{:#?}", bed.log());
}
