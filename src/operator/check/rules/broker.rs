//! Checks of a broker: name, port, TLS, login, topics, retained messages. Pure; `gather::broker`
//! collects the facts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::broker::{ConnectStage, DisconnectReason};
use crate::config::{Broker, Config};
use crate::daemon::exporters::homeassistant;
use crate::fleet::publisher::SHARD_BYTES;
use crate::guard::RejectReason;
use crate::model::HostName;
use crate::model::text::list;
use crate::operator::check::finding::Finding;
use crate::operator::check::gather::broker::CONNECT_TIMEOUT;
use crate::wire::Presence;

/// One broker, and how far the probe came.
#[derive(Debug)]
pub(in crate::operator::check) struct BrokerProbe {
    pub(in crate::operator::check) broker: Broker,
    pub(in crate::operator::check) reach: BrokerReach,
}

#[derive(Debug)]
pub(in crate::operator::check) enum BrokerReach {
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
pub(in crate::operator::check) enum Port {
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
pub(in crate::operator::check) struct ProbeEvent {
    /// The topic that the message tests; it may have been published below that topic.
    pub(in crate::operator::check) topic: String,
    /// The broker acknowledged the message.
    pub(in crate::operator::check) acknowledged: bool,
    /// The message came back.
    pub(in crate::operator::check) back: bool,
}

/// The fate of a retained message as large as a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::operator::check) struct ShardProbe {
    /// The broker acknowledged the message.
    pub(in crate::operator::check) acknowledged: bool,
    /// How often the message came back: once after its publication, and again after the subscription to its topic.
    pub(in crate::operator::check) arrivals: usize,
}

/// The facts from a connection.
#[derive(Debug, Default)]
pub(in crate::operator::check) struct ProbeResult {
    /// Why the broker refuses a persistent session with a retained last will, although it accepts a plain client.
    pub(in crate::operator::check) refused_as_daemon: Option<DisconnectReason>,
    /// The broker grants QoS 0 only.
    pub(in crate::operator::check) qos_lowered: bool,
    /// `None` if the probe did not publish it.
    pub(in crate::operator::check) shard: Option<ShardProbe>,
    /// Topics that the broker does not let this host subscribe to.
    pub(in crate::operator::check) refused: Vec<String>,
    pub(in crate::operator::check) probes: Vec<ProbeEvent>,
    /// A message arrived that the probe did not publish.
    pub(in crate::operator::check) others: bool,
    /// The topics of other fleets with presences that the broker delivers.
    pub(in crate::operator::check) other_topics: BTreeSet<String>,
    /// The topics for Home Assistant on which the broker keeps a message of this host.
    pub(in crate::operator::check) home: BTreeSet<String>,
    /// The broker ended the connection.
    pub(in crate::operator::check) cut: bool,
    /// All presences, in the order of arrival.
    pub(in crate::operator::check) presences: Vec<(HostName, Presence)>,
    /// Other hosts whose messages lack a valid signature.
    pub(in crate::operator::check) refusals: BTreeMap<HostName, RejectReason>,
    /// Other hosts that sign their messages, if this host has no key.
    pub(in crate::operator::check) signed: BTreeSet<HostName>,
    /// The newest stamp of other online hosts, in milliseconds since 1970 by their clocks, and the local time of its
    /// arrival.
    pub(in crate::operator::check) stamps: BTreeMap<HostName, (i64, i64)>,
}

impl BrokerProbe {
    /// The facts from the connection, if there was one.
    pub(in crate::operator::check) fn result(&self) -> Option<&ProbeResult> {
        match &self.reach {
            BrokerReach::Connected { result, .. } => Some(result),
            _ => None,
        }
    }

    pub(in crate::operator::check) fn findings(&self, config: &Config) -> Vec<Finding> {
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
                found.extend(
                    ports.iter().map(|(address, port)| closed_port(broker, *address, port)),
                );
                return about(broker, found);
            }
            BrokerReach::Rejected { ports, why } => (ports, Some(why)),
            BrokerReach::Connected { ports, .. } => (ports, None),
        };
        let (open, closed): (Vec<_>, Vec<_>) =
            ports.iter().partition(|(_, port)| *port == Port::Open);
        let open: Vec<String> = open.iter().map(|(address, _)| address.to_string()).collect();
        found.push(Finding::ok(
            "broker_port",
            format!("the broker {broker} answers at {}", list(&open)),
        ));
        for (address, port) in closed {
            // The daemon tries the other addresses, too, but each attempt takes time.
            let Finding { id, text, next, .. } = closed_port(broker, *address, port);
            found.push(Finding { next, ..Finding::warning(id, text) });
        }
        found.extend(access(broker, config, why));
        if let Some(result) = self.result() {
            found.extend(result.topics(broker, config));
        }
        about(broker, found)
    }
}

fn about(broker: &Broker, found: Vec<Finding>) -> Vec<Finding> {
    found.into_iter().map(|finding| finding.about(broker)).collect()
}

fn closed_port(broker: &Broker, address: IpAddr, port: &Port) -> Finding {
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
fn access(broker: &Broker, config: &Config, why: Option<&DisconnectReason>) -> Vec<Finding> {
    let user = config.user();
    let mut found = Vec::new();
    let stage = why.map(|why| why.stage);
    if config.tls.is_some() && matches!(stage, None | Some(ConnectStage::Login)) {
        let text = format!("the broker {broker} has a valid certificate");
        found.push(Finding::ok("broker_tls", text));
    }
    let Some(why) = why else {
        let text = match &user {
            Some(user) => format!("the broker {broker} accepts the login {user}"),
            None => format!("the broker {broker} accepts this host without a login"),
        };
        found.push(Finding::ok("broker_login", text));
        return found;
    };
    let restart = "then: systemctl restart f2bmqttsub";
    let text = format!("no connection to the broker {broker}: {why}");
    found.push(match why.stage {
        ConnectStage::Login => Finding::fault("broker_login", text).next(format!(
            "on the hub: mosquitto_passwd -b /etc/mosquitto/passwd {} PASSWORD; \
             systemctl reload mosquitto\n\
             on this host: set the same login in mqtt.env, {restart}\n\
             if the hub restricts client IDs (mosquitto: clientid_prefixes): allow f2bmqtt-",
            user.as_deref().unwrap_or("USER")
        )),
        ConnectStage::Tls => Finding::fault("broker_tls", text).next(format!(
            "check MQTT_TLS, MQTT_CAFILE, MQTT_CERT and MQTT_KEY in mqtt.env, {restart}"
        )),
        ConnectStage::Other => Finding::fault("broker_login", text)
            .next("read the log of the hub: journalctl -u mosquitto -n 20"),
    });
    found
}

/// Where to find rules that let a host read and write its topics.
const EXAMPLE_RULES: &str =
    "example rules for mosquitto: /usr/share/doc/f2bmqtt/examples/mosquitto/fleet.acl";

/// Where to find the settings that the fixes name.
const MOSQUITTO_FILES: &str =
    "mosquitto's settings: /etc/mosquitto/mosquitto.conf and /etc/mosquitto/conf.d";

/// The topics that a host must be able to write, for a topic that the probe tests: the snapshot has a topic per shard.
fn writable(topic: &str) -> String {
    if topic.contains("/state/") { format!("{topic}/#") } else { topic.to_owned() }
}

impl ProbeResult {
    /// The findings about permissions, QoS and retained messages.
    fn topics(&self, broker: &Broker, config: &Config) -> Vec<Finding> {
        let user = config.user().unwrap_or_else(|| "this host".to_owned());
        let all = config.topic.branches();
        let may_read =
            format!("the broker's access rules must let {user} read {all}\n{EXAMPLE_RULES}");
        // Each of these faults makes the other tests meaningless.
        let fatal = self.unsuitable(broker).or_else(|| self.cut_off(broker, &user, &all));
        if let Some(fault) = fatal {
            return vec![fault];
        }
        let mut found = Vec::new();
        if self.refused.is_empty() {
            let text = format!("the broker {broker} accepts this host's subscriptions");
            found.push(Finding::ok("broker_subscribe", text));
        } else {
            let refused = list(&self.refused);
            let text = format!("the broker {broker} refuses the subscription to {refused}");
            found.push(Finding::fault("broker_subscribe", text).next(&may_read));
        }
        let (back, missing): (Vec<_>, Vec<_>) = self.probes.iter().partition(|probe| probe.back);
        if !back.is_empty() {
            let topics: Vec<&str> = back.iter().map(|probe| probe.topic.as_str()).collect();
            let text = format!("messages of this host on {} arrive", list(&topics));
            found.push(Finding::ok("broker_publish", text));
        }
        if back.is_empty() && !missing.is_empty() && !self.others && self.refused.is_empty() {
            let text = format!(
                "the broker {broker} delivers none of this host's messages: it silently drops them, or {user} may not \
                 read them"
            );
            found.push(Finding::fault("broker_read", text).next(may_read));
            return found;
        }
        for ProbeEvent { topic, acknowledged, .. } in missing {
            let how = if *acknowledged { "silently drops" } else { "does not acknowledge" };
            let text = format!("the broker {broker} {how} messages of this host on {topic}");
            let topic = writable(topic);
            found.push(Finding::fault("broker_publish", text).next(format!(
                "the broker's access rules must let {user} write {topic}\n{EXAMPLE_RULES}"
            )));
        }
        found.extend(self.shard.as_ref().map(|shard| shard.finding(broker)));
        found.extend(self.home_assistant(broker, config, &user));
        found
    }

    /// The fault of a broker that lacks what the daemon needs: QoS 1, persistent sessions, retained messages.
    fn unsuitable(&self, broker: &Broker) -> Option<Finding> {
        if self.qos_lowered {
            let text = format!("the broker {broker} grants only QoS 0, and may lose messages");
            return Some(Finding::fault("broker_qos", text).next(format!(
                "on the hub: allow QoS 1 (mosquitto: max_qos 1 or 2)\n{MOSQUITTO_FILES}"
            )));
        }
        let why = self.refused_as_daemon.as_ref()?;
        let text = format!(
            "the broker {broker} refuses a client with a persistent session and a retained last will, which the daemon \
             needs: {why}"
        );
        Some(Finding::fault("broker_retain", text).next(format!(
            "on the hub: allow retained messages (mosquitto: no \"retain_available false\") and persistent sessions\n\
             {MOSQUITTO_FILES}"
        )))
    }

    /// The fault of a broker that closes the connection at a forbidden operation. A connection that it closes at the
    /// large retained message is a matter of [`ShardProbe`].
    fn cut_off(&self, broker: &Broker, user: &str, all: &str) -> Option<Finding> {
        if !self.cut || self.shard.as_ref().is_some_and(|shard| !shard.acknowledged) {
            return None;
        }
        let (what, may) = match self.probes.iter().find(|probe| !probe.acknowledged) {
            None => ("subscribes".to_owned(), format!("read {all}")),
            Some(ProbeEvent { topic, .. }) => {
                (format!("publishes on {topic}"), format!("write {}", writable(topic)))
            }
        };
        let text = format!("the broker {broker} closes the connection when this host {what}");
        Some(
            Finding::fault("broker_publish", text)
                .next(format!("the broker's access rules must let {user} {may}\n{EXAMPLE_RULES}")),
        )
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
            "the broker's access rules must let {user} read and write {}, and read {}\n{EXAMPLE_RULES}",
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
mod tests;
