//! Tables of probes, and the findings about them.

use std::path::Path;

use super::*;
use crate::operator::check::finding::Status;

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

fn config() -> Config {
    let text = "MQTT_HOST=hub\nMQTT_USER=web1\nMQTT_PASSWORD=x\nMQTT_TOPIC=t\n";
    Config::parse(Path::new("f"), text.as_bytes(), &|_| None, "web1").unwrap()
}

fn shown(reach: BrokerReach) -> Vec<(&'static str, Status, String)> {
    let config = config();
    let reached = BrokerProbe { broker: config.brokers[0].clone(), reach };
    let found = reached.findings(&config).into_iter();
    found.map(|finding| (finding.id, finding.state, finding.text)).collect()
}

fn why(stage: ConnectStage, text: &str) -> DisconnectReason {
    DisconnectReason { stage, text: text.to_owned() }
}

fn probes(table: [(bool, bool); 4]) -> Vec<ProbeEvent> {
    let topics = ["t/ban", "t/unban", "f2bmqtt/t/state/web1", "f2bmqtt/t/host/web1"];
    let mut probes = Vec::new();
    for (topic, (acknowledged, back)) in topics.into_iter().zip(table) {
        probes.push(ProbeEvent { topic: topic.to_owned(), acknowledged, back });
    }
    probes
}

fn open() -> Vec<(IpAddr, Port)> {
    vec![(ADDRESS, Port::Open)]
}

/// The findings that are not ok, about the result of a probe.
fn faults(result: ProbeResult) -> Vec<(&'static str, String)> {
    let found = shown(BrokerReach::Connected { ports: open(), result: result.into() });
    let faults = found.into_iter().filter(|(_, state, _)| *state != Status::Ok);
    faults.map(|(id, _, text)| (id, text)).collect()
}

/// All messages come back, and the one as large as a shard has this fate.
fn shard_result(acknowledged: bool, arrivals: usize) -> ProbeResult {
    ProbeResult {
        probes: probes([(true, true); 4]),
        shard: Some(ShardProbe { acknowledged, arrivals }),
        ..ProbeResult::default()
    }
}

#[test]
fn last_finding_is_the_step_that_failed() {
    let table = [
        (
            BrokerReach::NoName("unknown".to_owned()),
            "broker_name",
            "cannot resolve the name of the broker hub:1883: unknown",
        ),
        (
            BrokerReach::NoPort(vec![(ADDRESS, Port::Refused)]),
            "broker_port",
            "cannot connect to the broker hub:1883 at 192.0.2.1: no broker listens on this port",
        ),
        (
            BrokerReach::NoPort(vec![(ADDRESS, Port::Dropped)]),
            "broker_port",
            "cannot connect to the broker hub:1883 at 192.0.2.1: no answer within 3 s: the packets are dropped on the way",
        ),
        (
            BrokerReach::Rejected { ports: open(), why: why(ConnectStage::Login, "no") },
            "broker_login",
            "no connection to the broker hub:1883: no",
        ),
        (
            BrokerReach::Rejected { ports: open(), why: why(ConnectStage::Tls, "no") },
            "broker_tls",
            "no connection to the broker hub:1883: no",
        ),
    ];
    for (reach, id, text) in table {
        let found = shown(reach);
        assert_eq!(found.last().unwrap(), &(id, Status::Fault, text.to_owned()));
        assert!(found[..found.len() - 1].iter().all(|(_, state, _)| *state == Status::Ok));
    }
}

#[test]
fn each_topic_without_a_returning_message_is_a_fault() {
    let all = [(true, true); 4];
    assert_eq!(faults(ProbeResult { probes: probes(all), ..ProbeResult::default() }), []);
    let mut one = all;
    one[0] = (true, false);
    let text = "the broker hub:1883 silently drops messages of this host on t/ban".to_owned();
    let result = ProbeResult { probes: probes(one), ..ProbeResult::default() };
    assert_eq!(faults(result), [("broker_publish", text)]);
    let none = probes([(true, false); 4]);
    let found = faults(ProbeResult { probes: none.clone(), ..ProbeResult::default() });
    assert_eq!((found.len(), found[0].0), (1, "broker_read"));
    assert_eq!(
        faults(ProbeResult { probes: none, others: true, ..ProbeResult::default() }).len(),
        4
    );
    let refused = vec!["t/+".to_owned()];
    let refused = faults(ProbeResult { refused, probes: probes(all), ..ProbeResult::default() });
    let text = "the broker hub:1883 refuses the subscription to t/+".to_owned();
    assert_eq!(refused, [("broker_subscribe", text)]);
    let mut probes = probes([(false, false); 4]);
    probes[0].acknowledged = true;
    let cut = faults(ProbeResult { probes, cut: true, ..ProbeResult::default() });
    assert!(cut[0].1.contains("when this host publishes on t/unban"), "{cut:?}");
}

#[test]
fn missing_home_assistant_message_is_a_warning() {
    let text = "MQTT_HOST=hub\nMQTT_USER=web1\nMQTT_PASSWORD=x\nMQTT_TOPIC=t\nMQTT_HA_PREFIX=ha\n";
    let config = Config::parse(Path::new("f"), text.as_bytes(), &|_| None, "web1").unwrap();
    let (device, bans) = ("ha/device/f2bmqtt_web1/config", "ha/f2bmqtt/web1/bans");
    let table: [(&[&str], Status, &str); 3] = [
        (
            &[device, bans],
            Status::Ok,
            "the broker hub:1883 keeps this host's messages for Home Assistant",
        ),
        (
            &[device],
            Status::Warning,
            "the broker hub:1883 keeps no message for Home Assistant on ha/f2bmqtt/web1/bans",
        ),
        (
            &[],
            Status::Warning,
            "the broker hub:1883 keeps no message for Home Assistant on ha/device/f2bmqtt_web1/config and ha/f2b",
        ),
    ];
    for (retained, state, text) in table {
        let home = retained.iter().map(|topic| (*topic).to_owned()).collect();
        let result = ProbeResult { home, ..ProbeResult::default() };
        let found = result.home_assistant(&config.brokers[0], &config, "web1").unwrap();
        assert!(found.state == state && found.text.starts_with(text), "{found:?}");
    }
}

#[test]
fn broker_that_keeps_less_than_the_daemon_needs_is_a_fault() {
    let refused = Some(why(ConnectStage::Tls, "it hangs up"));
    let table = [
        (
            shard_result(true, 2),
            Status::Ok,
            "the broker hub:1883 keeps retained messages of 16 KiB",
        ),
        (
            shard_result(true, 1),
            Status::Fault,
            "the broker hub:1883 does not keep retained messages",
        ),
        (
            shard_result(true, 0),
            Status::Fault,
            "the broker hub:1883 drops retained messages of 16 KiB",
        ),
        (
            ProbeResult { cut: true, ..shard_result(false, 0) },
            Status::Fault,
            "the broker hub:1883 drops retained messages",
        ),
        (
            ProbeResult { refused_as_daemon: refused, cut: true, ..ProbeResult::default() },
            Status::Fault,
            "the broker hub:1883 refuses a client with a persistent session and a retained last will, which the daemon needs: it hangs up",
        ),
        (
            ProbeResult { qos_lowered: true, cut: true, ..ProbeResult::default() },
            Status::Fault,
            "the broker hub:1883 grants only QoS 0",
        ),
    ];
    for (result, state, text) in table {
        let found = shown(BrokerReach::Connected { ports: open(), result: result.into() });
        let (_, last, shown) = found.last().unwrap();
        assert!(*last == state && shown.starts_with(text), "{text}: {found:?}");
        let problems = found.iter().filter(|(_, state, _)| *state != Status::Ok).count();
        assert_eq!(problems, usize::from(state != Status::Ok), "{found:?}");
    }
}

#[test]
fn dead_address_beside_an_open_one_is_a_warning() {
    let other = "2001:db8::1".parse().unwrap();
    let ports = vec![(ADDRESS, Port::Open), (other, Port::Dropped)];
    let found = shown(BrokerReach::Connected { ports, result: Box::default() });
    assert_eq!(found[0].2, "the broker hub:1883 answers at 192.0.2.1");
    assert_eq!((found[1].0, found[1].1), ("broker_port", Status::Warning));
}
