//! Checks of a broker: name, port, TLS, login, topics, retained messages. Pure; [`probe`](super::probe) collects the facts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::finding::Finding;
use super::probe::CONNECT_TIMEOUT;
use crate::broker::{ConnectStage, DisconnectReason};
use crate::config::{Broker, Config};
use crate::figures::homeassistant;
use crate::fleet::snapshot::SHARD_BYTES;
use crate::guard::RejectReason;
use crate::text::list;
use crate::wire::{HostName, Presence};

/// One broker, and how far the probe came.
#[derive(Debug)]
pub(super) struct BrokerProbe {
    pub(super) broker: Broker,
    pub(super) reach: BrokerReach,
}

#[derive(Debug)]
pub(super) enum BrokerReach {
    /// Its name does not resolve: why.
    NoName(String),
    /// None of its addresses answers.
    NoPort(Vec<(IpAddr, Port)>),
    /// A port is open, but the broker rejects the connection.
    Rejected { ports: Vec<(IpAddr, Port)>, why: DisconnectReason },
    /// The broker accepts the connection.
    Connected { ports: Vec<(IpAddr, Port)>, result: Box<ProbeResult> },
}

/// The result of a TCP connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Open,
    /// The machine answers, but nothing listens.
    Refused,
    /// No answer within the timeout.
    Dropped,
    /// Another error of the system.
    Other(String),
}

/// The fate of a message that the probe published to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProbeEvent {
    /// The topic that the message tests; it may have been published below that topic.
    pub(super) topic: String,
    /// The broker acknowledged the message.
    pub(super) acknowledged: bool,
    /// The message came back.
    pub(super) back: bool,
}

/// The fate of a retained message as large as a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ShardProbe {
    /// The broker acknowledged the message.
    pub(super) acknowledged: bool,
    /// How often the message came back: once after its publication, and again after the subscription to its topic.
    pub(super) arrivals: usize,
}

/// The facts from a connection.
#[derive(Debug, Default)]
pub(super) struct ProbeResult {
    /// Why the broker refuses a persistent session with a retained last will, although it accepts a plain client.
    pub(super) refused_as_daemon: Option<DisconnectReason>,
    /// The broker grants QoS 0 only.
    pub(super) qos_lowered: bool,
    /// `None` if the probe did not publish it.
    pub(super) shard: Option<ShardProbe>,
    /// Topics that the broker does not let this host subscribe to.
    pub(super) refused: Vec<String>,
    pub(super) probes: Vec<ProbeEvent>,
    /// A message arrived that the probe did not publish.
    pub(super) others: bool,
    /// The topics of other fleets with presences that the broker delivers.
    pub(super) other_topics: BTreeSet<String>,
    /// The topics for Home Assistant on which the broker keeps a message of this host.
    pub(super) home: BTreeSet<String>,
    /// The broker ended the connection.
    pub(super) cut: bool,
    /// All presences, in the order of arrival.
    pub(super) presences: Vec<(HostName, Presence)>,
    /// Other hosts whose messages lack a valid signature.
    pub(super) refusals: BTreeMap<HostName, RejectReason>,
    /// Other hosts that sign their messages, if this host has no key.
    pub(super) signed: BTreeSet<HostName>,
    /// The newest stamp of other online hosts, in milliseconds since 1970 by their clocks, and the local time of its
    /// arrival.
    pub(super) stamps: BTreeMap<HostName, (i64, i64)>,
}

impl BrokerProbe {
    /// The facts from the connection, if there was one.
    pub(super) fn result(&self) -> Option<&ProbeResult> {
        match &self.reach {
            BrokerReach::Connected { result, .. } => Some(result),
            _ => None,
        }
    }

    pub(super) fn findings(&self, config: &Config) -> Vec<Finding> {
        let broker = &self.broker;
        let mut found = Vec::new();
        let (ports, why) = match &self.reach {
            BrokerReach::NoName(why) => {
                let text = format!("cannot resolve the name of the broker {broker}: {why}");
                found.push(Finding::fault("broker_name", text).next(format!(
                    "getent hosts {host}\ncheck MQTT_HOST, /etc/resolv.conf and /etc/hosts",
                    host = broker.host
                )));
                return about(broker, found);
            }
            BrokerReach::NoPort(ports) => {
                found.extend(ports.iter().map(|(address, port)| closed(broker, *address, port)));
                return about(broker, found);
            }
            BrokerReach::Rejected { ports, why } => (ports, Some(why)),
            BrokerReach::Connected { ports, .. } => (ports, None),
        };
        let (open, shut): (Vec<_>, Vec<_>) =
            ports.iter().partition(|(_, port)| *port == Port::Open);
        let open: Vec<String> = open.iter().map(|(address, _)| address.to_string()).collect();
        found.push(Finding::ok(
            "broker_port",
            format!("the broker {broker} answers at {}", list(&open)),
        ));
        for (address, port) in shut {
            // The daemon tries the other addresses, too, but each attempt takes time.
            let Finding { id, text, next, .. } = closed(broker, *address, port);
            found.push(Finding { next, ..Finding::warning(id, text) });
        }
        found.extend(entry(broker, config, why));
        if let Some(result) = self.result() {
            found.extend(result.topics(broker, config));
        }
        about(broker, found)
    }
}

fn about(broker: &Broker, found: Vec<Finding>) -> Vec<Finding> {
    found.into_iter().map(|finding| finding.about(broker)).collect()
}

fn closed(broker: &Broker, address: IpAddr, port: &Port) -> Finding {
    let Broker { host, port: number } = broker;
    let at =
        if host.contains(&address.to_string()) { String::new() } else { format!(" at {address}") };
    let (what, next) = match port {
        Port::Open => {
            return Finding::ok("broker_port", format!("the broker {broker} answers{at}"));
        }
        Port::Refused => (
            "no broker listens on this port".to_owned(),
            format!(
                "on the hub: systemctl status mosquitto; ss -tln 'sport = {number}'\n\
                 (without a line \"listener {number}\", mosquitto accepts only local connections)\n\
                 on this host: check MQTT_HOST and MQTT_PORT"
            ),
        ),
        Port::Dropped => (
            format!(
                "no answer within {} s: the packets are dropped on the way",
                CONNECT_TIMEOUT.as_secs()
            ),
            format!(
                "allow TCP port {number} in the firewalls of the hub and of this host\n\
                 check that the hub is up and has this address: ping {address}"
            ),
        ),
        Port::Other(what) => (what.clone(), format!("check the route: ip route get {address}")),
    };
    Finding::fault("broker_port", format!("cannot connect to the broker {broker}{at}: {what}"))
        .next(next)
}

/// The findings about TLS and the login.
fn entry(broker: &Broker, config: &Config, why: Option<&DisconnectReason>) -> Vec<Finding> {
    let user = config.user();
    let protected =
        || Finding::ok("broker_tls", format!("the broker {broker} has a valid certificate"));
    let mut found = Vec::new();
    let stage = why.map(|why| why.stage);
    if config.tls.is_some() && matches!(stage, None | Some(ConnectStage::Login)) {
        found.push(protected());
    }
    let Some(why) = why else {
        let text = match &user {
            Some(user) => format!("the broker {broker} accepts the login {user}"),
            None => format!("the broker {broker} accepts this host without a login"),
        };
        found.push(Finding::ok("broker_login", text));
        return found;
    };
    let again = "then: systemctl restart f2bmqttsub";
    let text = format!("no connection to the broker {broker}: {why}");
    found.push(match why.stage {
        ConnectStage::Login => Finding::fault("broker_login", text).next(format!(
            "on the hub: mosquitto_passwd -b /etc/mosquitto/passwd {} PASSWORD; \
             systemctl reload mosquitto\n\
             on this host: set the same login in mqtt.env, {again}\n\
             if the hub restricts client IDs (mosquitto: clientid_prefixes): allow f2bmqtt-",
            user.as_deref().unwrap_or("USER")
        )),
        ConnectStage::Tls => Finding::fault("broker_tls", text).next(format!(
            "check MQTT_TLS, MQTT_CAFILE, MQTT_CERT and MQTT_KEY in mqtt.env, {again}"
        )),
        ConnectStage::Other => Finding::fault("broker_login", text)
            .next("read the log of the hub: journalctl -u mosquitto -n 20"),
    });
    found
}

impl ProbeResult {
    /// The findings about permissions, QoS and retained messages.
    fn topics(&self, broker: &Broker, config: &Config) -> Vec<Finding> {
        let user = config.user().unwrap_or_else(|| "this host".to_owned());
        let all = config.topic.branches();
        let rules = "example rules for mosquitto: \
                     /usr/share/doc/f2bmqtt/examples/mosquitto/fleet.acl";
        let mut found = Vec::new();
        let written = |topic: &str| {
            if topic.contains("/state/") { format!("{topic}/#") } else { topic.to_owned() }
        };
        let mosquitto =
            "mosquitto's settings: /etc/mosquitto/mosquitto.conf and /etc/mosquitto/conf.d";
        if self.qos_lowered {
            let text = format!("the broker {broker} grants only QoS 0, and may lose messages");
            let next = format!("on the hub: allow QoS 1 (mosquitto: max_qos 1 or 2)\n{mosquitto}");
            found.push(Finding::fault("broker_qos", text).next(next));
            return found;
        }
        if let Some(why) = &self.refused_as_daemon {
            let text = format!(
                "the broker {broker} refuses a client with a persistent session and a retained last will, which the daemon \
                 needs: {why}"
            );
            let next = format!(
                "on the hub: allow retained messages (mosquitto: no \"retain_available false\") and persistent \
                 sessions\n{mosquitto}"
            );
            found.push(Finding::fault("broker_retain", text).next(next));
            return found;
        }
        if self.cut && self.shard.as_ref().is_none_or(|shard| shard.acknowledged) {
            let (what, may) = match self.probes.iter().find(|probe| !probe.acknowledged) {
                None => ("subscribes".to_owned(), format!("read {all}")),
                Some(ProbeEvent { topic, .. }) => {
                    (format!("publishes on {topic}"), format!("write {}", written(topic)))
                }
            };
            let text = format!("the broker {broker} closes the connection when this host {what}");
            let next = format!("the broker's access rules must let {user} {may}\n{rules}");
            found.push(Finding::fault("broker_publish", text).next(next));
            return found;
        }
        if self.refused.is_empty() {
            let text = format!("the broker {broker} accepts this host's subscriptions");
            found.push(Finding::ok("broker_subscribe", text));
        } else {
            let refused = list(&self.refused);
            let text = format!("the broker {broker} refuses the subscription to {refused}");
            let next = format!("the broker's access rules must let {user} read {all}\n{rules}");
            found.push(Finding::fault("broker_subscribe", text).next(next));
        }
        let (back, gone): (Vec<_>, Vec<_>) = self.probes.iter().partition(|probe| probe.back);
        if !back.is_empty() {
            let topics: Vec<&str> = back.iter().map(|probe| probe.topic.as_str()).collect();
            let text = format!("messages of this host on {} arrive", list(&topics));
            found.push(Finding::ok("broker_publish", text));
        }
        if back.is_empty() && !gone.is_empty() && !self.others && self.refused.is_empty() {
            let text = format!(
                "the broker {broker} delivers none of this host's messages: it silently drops them, or {user} may not \
                 read them"
            );
            let next = format!("the broker's access rules must let {user} read {all}\n{rules}");
            found.push(Finding::fault("broker_read", text).next(next));
            return found;
        }
        for ProbeEvent { topic, acknowledged, .. } in gone {
            let how = if *acknowledged { "silently drops" } else { "does not acknowledge" };
            let text = format!("the broker {broker} {how} messages of this host on {topic}");
            let topic = written(topic);
            let next = format!("the broker's access rules must let {user} write {topic}\n{rules}");
            found.push(Finding::fault("broker_publish", text).next(next));
        }
        found.extend(self.shard.as_ref().map(|shard| shard.finding(broker)));
        found.extend(self.home_assistant(broker, config, &user));
        found
    }

    /// Whether the broker keeps the daemon's messages for Home Assistant. The probe publishes nothing there, because Home
    /// Assistant would take the message for a device.
    fn home_assistant(&self, broker: &Broker, config: &Config, user: &str) -> Option<Finding> {
        let prefix = config.ha_prefix.as_ref()?;
        let topics = homeassistant::topics(prefix, &config.node);
        let missing: Vec<&String> =
            topics.iter().filter(|topic| !self.home.contains(*topic)).collect();
        if missing.is_empty() {
            let text = format!("the broker {broker} keeps this host's messages for Home Assistant");
            return Some(Finding::ok("home_assistant", text));
        }
        let text = format!(
            "the broker {broker} keeps no message for Home Assistant on {}",
            list(&missing)
        );
        Some(Finding::warning("home_assistant", text).next(format!(
            "the broker's access rules must let {user} read and write {}, and read {}\n\
             example rules for mosquitto: /usr/share/doc/f2bmqtt/examples/mosquitto/fleet.acl",
            list(&topics),
            prefix.below("status")
        )))
    }
}

impl ShardProbe {
    fn finding(&self, broker: &Broker) -> Finding {
        let size = SHARD_BYTES / 1024;
        match (self.acknowledged, self.arrivals) {
            (true, 2..) => {
                let text = format!("the broker {broker} keeps retained messages of {size} KiB");
                Finding::ok("broker_retain", text)
            }
            (true, 1) => {
                let text = format!(
                    "the broker {broker} does not keep retained messages, which snapshots need"
                );
                Finding::fault("broker_retain", text)
                    .next("on the hub: allow retained messages (mosquitto: retain_available)")
            }
            _ => {
                let text = format!(
                    "the broker {broker} drops retained messages of {size} KiB, the size of a snapshot part"
                );
                Finding::fault("broker_retain", text).next(format!(
                    "on the hub: allow retained messages, and messages of {} KiB (mosquitto: message_size_limit and \
                     max_packet_size)",
                    2 * size
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::finding::Status;
    use super::*;

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
        let probe = |(topic, (acknowledged, back)): (&str, _)| ProbeEvent {
            topic: topic.to_owned(),
            acknowledged,
            back,
        };
        topics.into_iter().zip(table).map(probe).collect()
    }

    #[test]
    fn last_finding_is_the_step_that_failed() {
        let open = || vec![(ADDRESS, Port::Open)];
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
        let faults = |result: ProbeResult| {
            let ports = vec![(ADDRESS, Port::Open)];
            let found = shown(BrokerReach::Connected { ports, result: result.into() }).into_iter();
            found
                .filter(|(_, state, _)| *state != Status::Ok)
                .map(|(id, _, text)| (id, text))
                .collect::<Vec<_>>()
        };
        let all = [(true, true); 4];
        assert_eq!(faults(ProbeResult { probes: probes(all), ..ProbeResult::default() }), []);
        let mut one = all;
        one[0] = (true, false);
        let text = "the broker hub:1883 silently drops messages of this host on t/ban".to_owned();
        let result = ProbeResult { probes: probes(one), ..ProbeResult::default() };
        assert_eq!(faults(result), [("broker_publish", text)]);
        let none = || probes([(true, false); 4]);
        let silent = faults(ProbeResult { probes: none(), ..ProbeResult::default() });
        assert_eq!((silent.len(), silent[0].0), (1, "broker_read"));
        assert_eq!(
            faults(ProbeResult { probes: none(), others: true, ..ProbeResult::default() }).len(),
            4
        );
        let refused = vec!["t/+".to_owned()];
        let refused =
            faults(ProbeResult { refused, probes: probes(all), ..ProbeResult::default() });
        let text = "the broker hub:1883 refuses the subscription to t/+".to_owned();
        assert_eq!(refused, [("broker_subscribe", text)]);
        let mut probes = probes([(false, false); 4]);
        probes[0].acknowledged = true;
        let cut = faults(ProbeResult { probes, cut: true, ..ProbeResult::default() });
        assert!(cut[0].1.contains("when this host publishes on t/unban"), "{cut:?}");
    }

    #[test]
    fn missing_home_assistant_message_is_a_warning() {
        let text =
            "MQTT_HOST=hub\nMQTT_USER=web1\nMQTT_PASSWORD=x\nMQTT_TOPIC=t\nMQTT_HA_PREFIX=ha\n";
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
        for (kept, state, text) in table {
            let home = kept.iter().map(|topic| (*topic).to_owned()).collect();
            let result = ProbeResult { home, ..ProbeResult::default() };
            let found = result.home_assistant(&config.brokers[0], &config, "web1").unwrap();
            assert!(found.state == state && found.text.starts_with(text), "{found:?}");
        }
    }

    #[test]
    fn broker_that_keeps_less_than_the_daemon_needs_is_a_fault() {
        let shard = |acknowledged, arrivals| ProbeResult {
            probes: probes([(true, true); 4]),
            shard: Some(ShardProbe { acknowledged, arrivals }),
            ..ProbeResult::default()
        };
        let refused = Some(why(ConnectStage::Tls, "it hangs up"));
        let table = [
            (shard(true, 2), Status::Ok, "the broker hub:1883 keeps retained messages of 16 KiB"),
            (shard(true, 1), Status::Fault, "the broker hub:1883 does not keep retained messages"),
            (
                shard(true, 0),
                Status::Fault,
                "the broker hub:1883 drops retained messages of 16 KiB",
            ),
            (
                ProbeResult { cut: true, ..shard(false, 0) },
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
            let found = shown(BrokerReach::Connected {
                ports: vec![(ADDRESS, Port::Open)],
                result: result.into(),
            });
            let (_, last, shown) = found.last().unwrap();
            assert!(*last == state && shown.starts_with(text), "{text}: {found:?}");
            let odd = found.iter().filter(|(_, state, _)| *state != Status::Ok).count();
            assert_eq!(odd, usize::from(state != Status::Ok), "{found:?}");
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
}
