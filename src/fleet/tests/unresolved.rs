//! A name in a jail's `ignoreip` that was never resolved holds imports back, and ends none.

use super::*;
use crate::guard::ignorelist::{IgnoreList, IgnoreReason};

/// When the import is made, in seconds since 1970.
const IMPORT_TIME: i64 = NOW / 1000 + 4;

/// Runs one cycle; returns its effects, without observations and writes. fail2ban bans `held` before the cycle.
fn run_cycle(fleet: &mut Controller, now: i64, ignored: &IgnoreList, held: &[&str]) -> Vec<Effect> {
    let end = Some(IMPORT_TIME + 600);
    fleet.start_cycle(now);
    fleet.on_heartbeat(
        Heartbeat { server: ServerInstance { pid: 1, started: 0 }, data_version: None },
        BTreeSet::from([jail()]),
        now,
    );
    let mut effects = Vec::new();
    loop {
        match fleet.next_effect(now) {
            Effect::Idle => return effects,
            Effect::Persist(_) => fleet.on_persisted(true, now),
            Effect::Observe(jail, of) => {
                let row = BipsRow { timeofban: IMPORT_TIME, bantime: 600, failures: 0 };
                let observation = Observation {
                    held: held.iter().map(|ip| (address(ip), end)).collect(),
                    rows: held.iter().map(|ip| (address(ip), row)).collect(),
                    total: Some(i64::try_from(held.len()).unwrap()),
                    bantime: 600,
                    database: Some(0),
                    ignored: ignored.clone(),
                    ..Observation::default()
                };
                fleet.on_observation(&jail, of.as_deref(), observation, now);
            }
            effect => {
                effects.push(effect);
                fleet.on_done(1, now);
            }
        }
    }
}

#[test]
fn unresolved_name_refuses_imports_and_keeps_those_that_stand() {
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    let mut unresolved = IgnoreList::default();
    unresolved.set_incomplete();
    let resolved = IgnoreList::default();
    assert!(fleet.apply_event(&event(Action::Ban, "web2", NOW), NOW));
    let effects = run_cycle(&mut fleet, NOW + 2_000, &unresolved, &[]);
    assert!(
        matches!(effects[..], [Effect::LogRefused(_, _, IgnoreReason::Unresolved)]),
        "{effects:?}"
    );
    // The name resolves: the refused ban is imported.
    fleet.invalidate(&jail());
    let effects = run_cycle(&mut fleet, NOW + 4_000, &resolved, &[]);
    assert!(matches!(effects[..], [Effect::Ban(..)]), "{effects:?}");
    // The name does not resolve again: the ban stays.
    for now in [NOW + 6_000, NOW + 8_000] {
        fleet.invalidate(&jail());
        assert_eq!(run_cycle(&mut fleet, now, &unresolved, &[IP]), []);
    }
    assert_eq!(outcomes(&mut fleet, "web1", NOW + 8_000), ["banned"]);
    // The name resolves to the banned address.
    let mut friend = IgnoreList::default();
    friend.add(crate::model::network(IP).unwrap(), IgnoreReason::Jail);
    fleet.invalidate(&jail());
    let effects = run_cycle(&mut fleet, NOW + 10_000, &friend, &[IP]);
    assert!(
        matches!(effects[..], [Effect::Unban(..), Effect::LogRefused(_, _, IgnoreReason::Jail)]),
        "{effects:?}"
    );
    assert_eq!(outcomes(&mut fleet, "web3", NOW + 10_000), ["banned", "ignored"]);
    // fail2ban has released the ban: nothing is left to do, and the acknowledgements stay.
    fleet.invalidate(&jail());
    assert_eq!(run_cycle(&mut fleet, NOW + 12_000, &friend, &[]), []);
    assert_eq!(outcomes(&mut fleet, "web3", NOW + 12_000), ["banned", "ignored"]);
}

/// Requests an acknowledgement in the name of a host. Returns the outcomes of all requests.
fn outcomes(fleet: &mut Controller, origin: &str, now: i64) -> Vec<String> {
    fleet.request_ack(&event(Action::Ban, origin, NOW), None, now);
    fleet.update_acks(now).into_iter().map(|ack| ack.outcome).collect()
}
