//! Messages without the fleet's key change no state of a host that has the key. The test changes the peers' messages,
//! moves them to other topics, signs them with another key or strips the signature, in any order.

use std::collections::BTreeSet;

use f2bmqtt::fleet::effects::Effect;
use f2bmqtt::fleet::jails::{Heartbeat, Observation, ServerInstance};
use f2bmqtt::fleet::{Controller, PersistedState, Timing};
use f2bmqtt::model::{HostName, Jail};
use f2bmqtt::wire::signature::SigningKeys;

use crate::chance::Chance;
use crate::inbound::{Inbound, whole};

const NOW: i64 = 1_795_342_588_000;

const MESSAGES: [(&str, &str); 8] = [
    (
        "ban",
        r#"{"action":"ban","ipmset":"sshd","ip":"203.0.113.9","bantime":600,"host":"web2","failures":3,"time":1795342500,"stamp":1795342588000,"reason":"detected"}"#,
    ),
    (
        "unban",
        r#"{"action":"unban","ipmset":"sshd","ip":"203.0.113.8","host":"web2","time":1795342500,"stamp":1795342588001,"reason":"lifted"}"#,
    ),
    (
        "unban",
        r#"{"action":"unban","ipmset":"sshd","ip":"203.0.113.7","host":"web3","reason":"fleet","id":"web3-1795342588000","jails":"*"}"#,
    ),
    (
        "state/web3/0",
        r#"{"v":1,"host":"web3","stamp":1795342588000,"part":0,"parts":1,"bans":[["sshd","2001:db8::1",1795342500,-1]],"unbans":[["sshd","2001:db8::1","web3-1795342400000"]]}"#,
    ),
    (
        "state/web2/1",
        r#"{"v":1,"host":"web2","stamp":1795342588000,"part":1,"parts":2,"bans":[],"unbans":[]}"#,
    ),
    ("host/web2", r#"{"v":1,"state":"online","version":"1","jails":["sshd"],"bans":1}"#),
    (
        "ban",
        r#"{"action":"ban","ipmset":"sshd","ip":"203.0.113.5","host":"web1","time":1795342587,"stamp":1795342587000,"reason":"detected"}"#,
    ),
    ("host/web1", r#"{"v":1,"state":"offline"}"#),
];

const TOPICS: [&str; 12] = [
    "ban",
    "unban",
    "any/deeper",
    "host/web1",
    "host/web2",
    "host/new",
    "state/web2/0",
    "state/web2/1",
    "state/web3/0",
    "state/web3/7",
    "state/new/0",
    "state/web2/x",
];

/// Runs a cycle on a fail2ban without bans.
fn work(fleet: &mut Controller) {
    let server = ServerInstance { pid: 1, started: NOW / 1000 - 900 };
    fleet.start_cycle(NOW);
    let jails = BTreeSet::from([Jail::new("sshd").unwrap()]);
    fleet.on_heartbeat(Heartbeat { server, data_version: Some(1) }, jails, NOW);
    loop {
        match fleet.next_effect(NOW) {
            Effect::Idle => return,
            Effect::Continue => {}
            Effect::Persist(_) => fleet.on_persisted(true, NOW),
            Effect::Observe(jail, of) => {
                let observation =
                    Observation { database: Some(0), bantime: 600, ..Observation::default() };
                fleet.on_observation(&jail, of.as_deref(), observation, NOW);
            }
            Effect::Ban(_, work) => fleet.on_done(i64::try_from(work.len()).unwrap(), NOW),
            _ => fleet.on_done(1, NOW),
        }
    }
}

/// A payload with some bytes changed, removed, duplicated or taken from another payload.
fn change(chance: &mut Chance, payload: &str, other: &str) -> Vec<u8> {
    let mut bytes = payload.as_bytes().to_vec();
    for _ in 0..chance.within(1, 3) {
        if bytes.is_empty() {
            break;
        }
        let at = chance.index(bytes.len());
        match chance.within(0, 4) {
            0 => bytes[at] = *chance.pick(b"0123456789abcdef\"{}[],:\\-"),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, bytes[at]),
            3 => bytes.truncate(at),
            _ => bytes.splice(at.., other.bytes().skip(at)).for_each(drop),
        }
    }
    bytes
}

fn sign(keys: &SigningKeys, topic: &str, payload: &str) -> String {
    String::from_utf8(keys.sign(&whole(topic), payload.into())).unwrap()
}

#[test]
fn messages_without_key_change_nothing() {
    let (keys, others) =
        (SigningKeys::new(["the fleet's own secret"]), SigningKeys::new(["another secret!!"]));
    let me = HostName::new("web1").unwrap();
    let inbound = Inbound::new(&me, Some(keys.clone()), false);
    let mut fleet = Controller::new(me, Timing::default(), PersistedState::default());
    fleet.on_connected(NOW);
    let signed: Vec<(String, String)> = MESSAGES
        .iter()
        .map(|(topic, payload)| (whole(topic), sign(&keys, topic, payload)))
        .collect();
    for (topic, payload) in &signed {
        assert_eq!(inbound.take(&mut fleet, topic, payload.as_bytes(), NOW), Ok(()), "{payload}");
        work(&mut fleet);
    }
    let before = format!("{fleet:?}");
    assert!(before.contains("2001:db8::1") && before.contains("203.0.113.9"));
    let (mut chance, mut rejected) = (Chance::new(7), 0);
    for _ in 0..20_000 {
        let (name, plain) = *chance.pick(&MESSAGES);
        let ((topic, payload), (_, other)) = (chance.pick(&signed), chance.pick(&signed));
        let to = *chance.pick(&TOPICS);
        let (topic, payload) = match chance.within(0, 6) {
            0 => (whole(to), plain.as_bytes().to_vec()),
            1 => (whole(name), plain.as_bytes().to_vec()),
            2 => (whole(to), payload.as_bytes().to_vec()),
            3 => (whole(to), sign(&others, to, plain).into_bytes()),
            4 => (whole(to), change(&mut chance, plain, other)),
            5 => (topic.clone(), change(&mut chance, payload, other)),
            _ => (format!("x/{topic}"), payload.as_bytes().to_vec()),
        };
        let is_original =
            signed.iter().any(|(on, text)| *on == topic && text.as_bytes() == payload);
        if is_original {
            continue;
        }
        let result = inbound.take(&mut fleet, &topic, &payload, NOW + chance.within(0, 5_000));
        assert!(result.is_err() || payload.is_empty(), "{topic} {}", payload.escape_ascii());
        rejected += usize::from(result.is_err());
        assert_eq!(format!("{fleet:?}"), before, "{topic} {}", payload.escape_ascii());
    }
    assert!(rejected > 15_000, "{rejected}");
}
