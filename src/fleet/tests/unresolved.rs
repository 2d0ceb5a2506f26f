//! A name in a jail's `ignoreip` that was never resolved holds imports back, and ends none.

use super::*;
use crate::ignored::{Because, Ignored};

/// When the import is made, in seconds since 1970.
const MADE: i64 = NOW / 1000 + 4;

/// One round: what fail2ban is told and what is refused. It bans `held` before the round.
fn round(fleet: &mut Fleet, now: i64, ignored: &Ignored, held: &[&str]) -> Vec<Step> {
    let end = Some(MADE + 600);
    fleet.begin(now);
    fleet.pulse(
        Pulse { server: Server { pid: 1, started: 0 }, data_version: None },
        BTreeSet::from([jail()]),
        now,
    );
    let mut steps = Vec::new();
    loop {
        match fleet.next(now) {
            Step::Rest => return steps,
            Step::Save(_) => fleet.saved(true, now),
            Step::Look(jail, of) => {
                let row = Row { timeofban: MADE, bantime: 600, failures: 0 };
                let look = Look {
                    held: held.iter().map(|ip| (address(ip), end)).collect(),
                    rows: held.iter().map(|ip| (address(ip), row)).collect(),
                    total: Some(i64::try_from(held.len()).unwrap()),
                    bantime: 600,
                    database: Some(0),
                    ignored: ignored.clone(),
                    ..Look::default()
                };
                fleet.seen(&jail, of.as_deref(), look, now);
            }
            step => {
                steps.push(step);
                fleet.done(1, now);
            }
        }
    }
}

#[test]
fn unresolved_name_refuses_imports_and_keeps_those_that_stand() {
    let mut fleet = Fleet::new(host("me"), Pace::default(), Remembered::default());
    let mut unresolved = Ignored::default();
    unresolved.set_incomplete();
    let resolved = Ignored::default();
    assert!(fleet.hear(&event(Action::Ban, "web2", NOW), NOW));
    let steps = round(&mut fleet, NOW + 2_000, &unresolved, &[]);
    assert!(matches!(steps[..], [Step::Refuse(_, _, Because::Unresolved)]), "{steps:?}");
    // It resolves: what was refused is imported.
    fleet.mistrust(&jail());
    let steps = round(&mut fleet, NOW + 4_000, &resolved, &[]);
    assert!(matches!(steps[..], [Step::Import(..)]), "{steps:?}");
    // The daemon starts again while the name server is away: the ban stays.
    for now in [NOW + 6_000, NOW + 8_000] {
        fleet.mistrust(&jail());
        assert_eq!(round(&mut fleet, now, &unresolved, &[IP]), []);
    }
    // It resolves to the banned address.
    let mut friend = Ignored::default();
    friend.add(crate::ignored::network(IP).unwrap(), Because::Jail);
    fleet.mistrust(&jail());
    let steps = round(&mut fleet, NOW + 10_000, &friend, &[IP]);
    assert!(matches!(steps[..], [Step::Free(..), Step::Refuse(_, _, Because::Jail)]), "{steps:?}");
    fleet.request_ack(&event(Action::Ban, "web1", NOW), None, NOW + 10_000);
    assert!(fleet.update_acks(NOW + 10_000).is_empty(), "fail2ban may not have released it yet");
    assert!(round(&mut fleet, NOW + 12_000, &friend, &[]).is_empty());
    let acks = fleet.update_acks(NOW + 12_000);
    assert_eq!(acks.iter().map(|ack| ack.outcome.as_str()).collect::<Vec<_>>(), ["ignored"]);
}
