//! A small fleet that receives each message of the fuzzer on the daemon's path: host `web1` with two peers, an import and
//! a fleet unban. After each message the controller's invariants hold, and its effects end.

#![allow(dead_code, reason = "each target uses a part of it")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::LazyLock;

use f2bmqtt::fleet::effects::Effect;
use f2bmqtt::fleet::jails::{Heartbeat, Observation, ServerInstance};
use f2bmqtt::fleet::{Controller, PersistedState, Timing};
use f2bmqtt::model::{Address, HostName, Jail};
use f2bmqtt::wire::{Event, Shard};

use super::inbound::Inbound;

/// The time on the host's clock, in milliseconds since 1970.
const NOW: i64 = 1_795_342_588_000;

const ADDRESSES: [&str; 3] = ["203.0.113.7", "203.0.113.9", "2001:db8::1"];

/// The initial state of `web1`: a ban by event, an imported ban by shard, and a fleet unban.
fn fleet() -> (Controller, PersistedState) {
    let me = HostName::new("web1").unwrap();
    let mut fleet = Controller::new(me, Timing::default(), PersistedState::default());
    fleet.on_connected(NOW);
    let event = r#"{"action":"ban","ipmset":"sshd","ip":"203.0.113.9","bantime":600,"host":"web2","time":1795342500,"stamp":1795342588000,"reason":"detected"}"#;
    let unban = r#"{"action":"unban","ipmset":"sshd","ip":"203.0.113.7","host":"web3","reason":"fleet","id":"web3-1795342588000","jails":"*"}"#;
    let part = r#"{"v":1,"host":"web3","stamp":1795342588000,"part":0,"parts":1,"bans":[["sshd","2001:db8::1",1795342500,-1],["web","203.0.113.7",1795342500,600]],"unbans":[["sshd","2001:db8::1","web3-1795342400000"]]}"#;
    for event in [event, unban] {
        assert!(fleet.apply_event(&Event::parse(event.as_bytes()).unwrap(), NOW));
    }
    assert_eq!(fleet.apply_shard(&Shard::parse(part.as_bytes()).unwrap(), NOW), None);
    let mut disk = PersistedState::default();
    work(&mut fleet, &mut disk);
    (fleet, disk)
}

/// Runs a cycle on a fail2ban without bans, until no effect is left.
fn work(fleet: &mut Controller, disk: &mut PersistedState) {
    let server = ServerInstance { pid: 1, started: NOW / 1000 - 900 };
    fleet.start_cycle(NOW);
    let jails = BTreeSet::from([Jail::new("sshd").unwrap()]);
    fleet.on_heartbeat(Heartbeat { server, data_version: Some(1) }, jails, NOW);
    for _ in 0..1_000 {
        match fleet.next_effect(NOW) {
            Effect::Idle => return,
            Effect::Continue => {}
            Effect::Persist(changes) => {
                for change in changes {
                    disk.apply(change);
                }
                fleet.on_persisted(true, NOW);
            }
            Effect::Observe(jail, of) => {
                let observation = Observation {
                    database: Some(0),
                    bantime: 600,
                    total: Some(0),
                    ..Observation::default()
                };
                fleet.on_observation(&jail, of.as_deref(), observation, NOW);
            }
            Effect::Ban(_, work) => fleet.on_done(i64::try_from(work.len()).unwrap(), NOW),
            _ => fleet.on_done(1, NOW),
        }
    }
    panic!("the effects do not end");
}

/// The relevant state of a host: its stored records, and the claims of each peer.
fn known(fleet: &Controller, disk: &PersistedState) -> String {
    // The stamp grows with each cycle.
    let disk = PersistedState { stamp: 0, ..disk.clone() };
    let mut text = format!("{disk:?} {}", fleet.claims());
    for host in ["web1", "web2", "web3"] {
        for (jail, address) in
            ["sshd", "web"].iter().flat_map(|jail| ADDRESSES.map(|ip| (jail, ip)))
        {
            let key = (Jail::new(jail).unwrap(), Address::new(address).unwrap());
            let state = fleet.claim_state(&key, &HostName::new(host).unwrap());
            let _ = write!(text, " {state:?}");
        }
    }
    text
}

/// The state of the host without any message.
static UNTOUCHED: LazyLock<String> = LazyLock::new(|| {
    let (mut fleet, mut disk) = fleet();
    work(&mut fleet, &mut disk);
    known(&fleet, &disk)
});

/// Processes a message. With `needs_key`, a message without the key must not change the state.
pub(crate) fn take(inbound: &Inbound, needs_key: bool, topic: &str, payload: &[u8]) {
    // The gate or the parser rejects most inputs. To save time, only one in 64 of these is processed.
    if !inbound.reaches_fleet(topic, payload) && !payload.len().is_multiple_of(64) {
        return;
    }
    let (mut fleet, mut disk) = fleet();
    let _ = inbound.take(&mut fleet, topic, payload, NOW);
    fleet.check_invariants().unwrap();
    work(&mut fleet, &mut disk);
    fleet.check_invariants().unwrap();
    assert!(fleet.publications(NOW + 60_000).len() <= 1);
    if needs_key {
        assert_eq!(known(&fleet, &disk), *UNTOUCHED, "a message without the key changed the state");
    }
}
