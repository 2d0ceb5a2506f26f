//! Connects to each broker, and publishes test messages to itself. Hosts ignore these messages, and brokers do not keep
//! them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};

use crate::broker::{self, ClientOptions, ConnectStage, DisconnectReason, LinkEvent, MqttLink};
use crate::config::{self, Broker, Config, Topic};
use crate::daemon;
use crate::daemon::exporters::homeassistant;
use crate::fleet::publisher::SHARD_BYTES;
use crate::guard::RejectReason;
use crate::guard::gate::{Admitted, Source};
use crate::model::{Address, HostName, Jail};
use crate::operator::check::rules::broker::{
    BrokerProbe, BrokerReach, Port, ProbeEvent, ProbeResult, ShardProbe,
};
use crate::sys::clock::now_millis;
use crate::sys::jitter;
use crate::wire;
use crate::wire::{Action, HostState, Presence};

/// The time limit of a name lookup, and of a TCP connect.
pub(in crate::operator::check) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The retained messages count as complete after this silence, or after the gather timeout.
const IDLE_TIMEOUT: Duration = Duration::from_millis(250);
const GATHER_TIMEOUT: Duration = Duration::from_secs(1);

/// The time limit for a test message to come back.
const RETURN_TIMEOUT: Duration = Duration::from_secs(2);

/// The most addresses of a name that the probe connects to, and the most hosts whose clocks it checks.
const MAX_ADDRESSES: usize = 8;
const MAX_CLOCKS: usize = 40;

/// The most topics of other fleets that are stored.
const MAX_TOPICS: usize = 8;

/// The field that marks the probe's messages, and the name of the message that is as large as a shard.
const MARK_FIELD: &str = "check";
const SHARD_PROBE: &str = "shard";

/// Probes all brokers at once.
pub(in crate::operator::check) async fn brokers(
    config: &Config,
    instance: &str,
) -> Vec<BrokerProbe> {
    let probes = config.brokers.iter().map(|broker| async {
        BrokerProbe { broker: broker.clone(), reach: probe_broker(config, broker, instance).await }
    });
    join_all(probes).await
}

async fn probe_broker(config: &Config, broker: &Broker, instance: &str) -> BrokerReach {
    let addresses = match resolve(broker).await {
        Ok(addresses) => addresses,
        Err(why) => return BrokerReach::NoName(why),
    };
    let tcp_probes = addresses.into_iter().map(|at| async move { (at.ip(), tcp_probe(at).await) });
    let ports: Vec<(IpAddr, Port)> = join_all(tcp_probes).await;
    if !ports.iter().any(|(_, port)| *port == Port::Open) {
        return BrokerReach::NoPort(ports);
    }
    // A separate client ID leaves the daemon's connection alone. The mark is not a number, unlike shard indices.
    let mark = format!("m{:x}", jitter::chance().to_bits() >> 28);
    let id = format!("f2bmqtt-{}-check-{mark}", config.node);
    let test_topic = config.topic.retained(&format!("state/{}/check/{mark}", config.node));
    let only = Config { brokers: vec![broker.clone()], ..config.clone() };
    let refused = connect_as_daemon(&only, &id, &test_topic).await;
    if let Some(why) = refused.as_ref().filter(|why| why.stage == ConnectStage::Login) {
        return BrokerReach::Rejected { ports, why: why.clone() };
    }
    let home = config.ha_prefix.as_ref().map(|prefix| homeassistant::topics(prefix, &config.node));
    let others = home.iter().flatten().cloned().chain([test_topic.clone()]).collect();
    let client = ClientOptions { id, persistent: false, topics: Vec::new(), others, will: None };
    let result = ProbeResult { refused_as_daemon: refused.clone(), ..ProbeResult::default() };
    let mut listener = ProbeListener {
        link: MqttLink::new(&only, client),
        config,
        instance,
        mark,
        test_topic,
        result,
    };
    match listener.link.event().await {
        LinkEvent::Lost { why, .. } => BrokerReach::Rejected { ports, why: refused.unwrap_or(why) },
        _ => BrokerReach::Connected { ports, result: Box::new(listener.listen().await) },
    }
}

/// Connects with a persistent session and a retained last will, as the daemon does. Returns why the broker refuses, if so.
/// The will is empty, so that the broker keeps nothing even if this process is killed. The session has no subscriptions,
/// and is removed.
async fn connect_as_daemon(only: &Config, id: &str, test_topic: &str) -> Option<DisconnectReason> {
    let (topics, others) = (Vec::new(), Vec::new());
    let will = Some((test_topic.to_owned(), String::new()));
    let client = ClientOptions { id: id.to_owned(), persistent: true, topics, others, will };
    let mut link = MqttLink::new(only, client);
    if let LinkEvent::Lost { why, .. } = link.event().await {
        return Some(why);
    }
    disconnect(&mut link).await;
    let _ = timeout(CONNECT_TIMEOUT, broker::purge(only.clone(), id.to_owned())).await;
    None
}

/// Disconnects after the broker has acknowledged all messages.
async fn disconnect(link: &mut MqttLink) {
    if link.close() {
        let lost = async { while !matches!(link.event().await, LinkEvent::Lost { .. }) {} };
        let _ = timeout(RETURN_TIMEOUT, lost).await;
    }
}

async fn resolve(broker: &Broker) -> Result<Vec<SocketAddr>, String> {
    match timeout(CONNECT_TIMEOUT, lookup_host((config::bare(&broker.host), broker.port))).await {
        Err(_) => Err(format!("no name server answers within {} s", CONNECT_TIMEOUT.as_secs())),
        Ok(Err(error)) => {
            // `failed to lookup address information: Name or service not known`
            let text = error.to_string();
            Err(text.rsplit(": ").next().unwrap_or_default().to_owned())
        }
        Ok(Ok(addresses)) => {
            let mut addresses: Vec<_> = addresses.collect();
            addresses.dedup();
            addresses.truncate(MAX_ADDRESSES);
            if addresses.is_empty() {
                Err("the name has no address".to_owned())
            } else {
                Ok(addresses)
            }
        }
    }
}

async fn tcp_probe(at: SocketAddr) -> Port {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(at)).await {
        Err(_) => Port::Dropped,
        Ok(Ok(_)) => Port::Open,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Port::Refused,
        Ok(Err(error)) => Port::Other(error.to_string()),
    }
}

/// A connection, and the facts that it delivers.
struct ProbeListener<'a> {
    link: MqttLink,
    config: &'a Config,
    /// The ID of the daemon's run, if a daemon runs.
    instance: &'a str,
    /// The mark in each message of this probe.
    mark: String,
    /// The test topic below this host's snapshot. No host subscribes that deep.
    test_topic: String,
    result: ProbeResult,
}

impl ProbeListener<'_> {
    async fn listen(mut self) -> ProbeResult {
        let Config { topic, node, .. } = self.config;
        // The same subscriptions as the daemon's. The link itself subscribes to the topics of the returning messages.
        for filter in [topic.events(), topic.presences(), topic.shards(node)] {
            self.link.subscribe(&[filter]);
        }
        self.listen_until(GATHER_TIMEOUT, |_| false).await;
        for host in self.others_online() {
            self.link.subscribe(&[topic.shard(&host, 0)]);
        }
        let event = parse_object(&self.event().encode());
        let presence = parse_object(&self.presence().encode());
        let (ban, unban, host) = (topic.event("ban"), topic.event("unban"), topic.presence(node));
        let (state, test_topic) =
            (topic.retained(&format!("state/{node}")), self.test_topic.clone());
        let messages = [
            (&ban, &ban, event.clone()),
            (&unban, &unban, event),
            (&state, &test_topic, Map::new()),
            // This host's presence, unchanged except for the mark.
            (&host, &host, presence),
        ];
        let until = Instant::now() + RETURN_TIMEOUT;
        for (stands_for, topic, object) in messages {
            // One message after another, because a broker may disconnect at the first forbidden one.
            if !self.result.cut {
                self.publish(stands_for, topic, object);
                self.wait_for_acknowledgement(until).await;
            }
        }
        self.listen_until(RETURN_TIMEOUT, |result| result.probes.iter().all(|probe| probe.back))
            .await;
        let is_writable = self.result.probes.iter().any(|probe| probe.back && probe.topic == state);
        if is_writable && !self.result.cut {
            self.probe_retained(&test_topic).await;
        }
        let is_alone = self.result.presences.iter().all(|(host, _)| host == node);
        if is_alone && !self.result.cut {
            // Last, and only for advice: the broker may disconnect a client that subscribes to other fleets.
            self.link.subscribe(&Topic::any_presences());
            self.listen_until(GATHER_TIMEOUT, |_| true).await;
            self.result.cut = false;
        }
        disconnect(&mut self.link).await;
        self.result
    }

    /// Publishes an object with the mark.
    fn publish(&mut self, stands_for: &str, topic: &str, mut object: Map<String, Value>) {
        let number = self.result.probes.len();
        object.insert(MARK_FIELD.to_owned(), self.numbered_mark(number).into());
        let payload = Value::from(object).to_string();
        self.link.publish(stands_for.to_owned(), topic.to_owned(), payload.into_bytes());
        let topic = stands_for.to_owned();
        self.result.probes.push(ProbeEvent { topic, acknowledged: false, back: false });
    }

    /// Publishes a retained message as large as a shard, subscribes to its topic, and clears it.
    async fn probe_retained(&mut self, topic: &str) {
        let shard = json!({ MARK_FIELD: self.numbered_mark(self.result.probes.len()), "fill": "x".repeat(SHARD_BYTES) });
        self.result.shard = Some(ShardProbe::default());
        let until = Instant::now() + RETURN_TIMEOUT;
        let shard = shard.to_string().into_bytes();
        self.link.publish_retained_tracked(SHARD_PROBE.to_owned(), topic.to_owned(), shard);
        self.wait_for_shard(until, |shard| shard.acknowledged && shard.arrivals > 0).await;
        if !self.result.cut {
            self.link.subscribe(&[topic.to_owned()]);
            self.wait_for_shard(until, |shard| shard.arrivals > 1).await;
        }
        if !self.result.cut {
            self.link.publish_retained_tracked(String::new(), topic.to_owned(), Vec::new());
            // The disconnect waits until the broker acknowledges this.
        }
    }

    async fn wait_for_shard(&mut self, until: Instant, is_enough: impl Fn(&ShardProbe) -> bool) {
        while !self.result.cut && !self.result.shard.as_ref().is_some_and(&is_enough) {
            match timeout_at(until, self.link.event()).await {
                Ok(event) => self.on_event(event),
                Err(_) => return,
            }
        }
    }

    /// Listens until the broker is silent and `is_enough` holds, but no longer than `limit`.
    async fn listen_until(&mut self, limit: Duration, is_enough: impl Fn(&ProbeResult) -> bool) {
        let started = Instant::now();
        while !self.result.cut && started.elapsed() < limit {
            match timeout(IDLE_TIMEOUT, self.link.event()).await {
                Err(_) if self.result.probes.is_empty() || is_enough(&self.result) => return,
                Err(_) => {}
                Ok(event) => self.on_event(event),
            }
        }
    }

    /// Listens until the broker acknowledges the last message, but no longer than `until`.
    async fn wait_for_acknowledgement(&mut self, until: Instant) {
        while !self.result.cut && self.result.probes.last().is_some_and(|probe| !probe.acknowledged)
        {
            match timeout_at(until, self.link.event()).await {
                Ok(event) => self.on_event(event),
                Err(_) => return,
            }
        }
    }

    fn on_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Message(message) => self.on_message(&message),
            LinkEvent::Published(name) if name == SHARD_PROBE => {
                self.result.shard.iter_mut().for_each(|shard| shard.acknowledged = true);
            }
            LinkEvent::Published(stands_for) => {
                let mut probes = self.result.probes.iter_mut();
                if let Some(probe) = probes.find(|probe| probe.topic == stands_for) {
                    probe.acknowledged = true;
                }
            }
            LinkEvent::SubscribeRejected(topics) => {
                let refused = &mut self.result.refused;
                for topic in topics {
                    // The link subscribes again, so each refusal arrives repeatedly.
                    let is_for_advice = Topic::any_presences().contains(&topic);
                    if !is_for_advice && !topic.contains("/check/") && !refused.contains(&topic) {
                        refused.push(topic);
                    }
                }
            }
            LinkEvent::Lost { .. } => self.result.cut = true,
            LinkEvent::Rejected(rejected) if rejected.reason() == RejectReason::WrongTopic => {
                let topic = Topic::of_presence(rejected.topic());
                if self.result.other_topics.len() < MAX_TOPICS {
                    self.result.other_topics.extend(topic.map(str::to_owned));
                }
            }
            LinkEvent::Rejected(rejected) => {
                self.result.others = true;
                let host = self.unless_own(rejected.host());
                self.result.refusals.extend(host.map(|host| (host, rejected.reason())));
            }
            LinkEvent::QosLowered => self.result.qos_lowered = true,
            LinkEvent::Connected(_) => {}
        }
    }

    fn on_message(&mut self, message: &Admitted) {
        if let Some(number) = self.probe_number(message.payload()) {
            match self.result.probes.get_mut(number) {
                Some(probe) => probe.back = true,
                None => self.result.shard.iter_mut().for_each(|shard| shard.arrivals += 1),
            }
            return;
        }
        self.result.others = true;
        let host = self.unless_own(message.source().host());
        if self.config.signing.is_none() && wire::signature::split(message.payload()).is_some() {
            self.result.signed.extend(host.clone());
        }
        match (message.source(), host) {
            (Source::Presence { host }, _) => {
                if let Ok(presence) = message.presence() {
                    self.result.presences.push((host.clone(), presence));
                }
            }
            (Source::Other(topic), _) => drop(self.result.home.insert(topic.clone())),
            (Source::Shard { index: 0, .. }, Some(host)) => {
                if let Ok(shard) = message.shard(|_| false) {
                    let now = now_millis();
                    let stamp = self.result.stamps.entry(host).or_insert((shard.stamp, now));
                    *stamp = (*stamp).max((shard.stamp, now));
                }
            }
            _ => {}
        }
    }

    /// The host, unless it is this host.
    fn unless_own(&self, host: Option<&HostName>) -> Option<HostName> {
        host.filter(|host| **host != self.config.node).cloned()
    }

    fn others_online(&self) -> Vec<HostName> {
        let presences = self.result.presences.iter();
        let online = presences.filter(|(host, presence)| {
            *host != self.config.node && presence.state == HostState::Online
        });
        online.map(|(host, _)| host.clone()).take(MAX_CLOCKS).collect()
    }

    /// An event that all hosts ignore: it has an unknown action, an unlikely jail, and is marked as restored.
    fn event(&self) -> wire::Event {
        wire::Event {
            action: Action::Other(wire::PROBE_ACTION.to_owned()),
            jail: Jail::new("f2bmqtt-check").expect("it may be a jail's name"),
            address: Address::new("192.0.2.0").expect("it is an address"), // for documentation
            bantime: 0,
            host: self.config.node.clone(),
            restored: 1,
            failures: 0,
            time: 0,
            stamp: 0,
            reason: None,
            id: None,
            all_jails: false,
            unbans: Vec::new(),
        }
    }

    /// This daemon's presence on the broker, or a minimal one.
    fn presence(&self) -> Presence {
        let machine = daemon::machine();
        let own = self.result.presences.iter().rev().find(|(host, presence)| {
            *host == self.config.node
                && presence.machine == machine
                && (self.instance.is_empty() || presence.instance == self.instance)
        });
        own.map_or_else(|| daemon::presence(&machine, self.instance), |(_, own)| own.clone())
    }

    /// The mark of a message of this probe.
    fn numbered_mark(&self, number: usize) -> String {
        format!("{}.{number}", self.mark)
    }

    /// The number of a message of this probe; `None` for any other message.
    fn probe_number(&self, payload: &[u8]) -> Option<usize> {
        let object: Value = serde_json::from_slice(payload).ok()?;
        object.get(MARK_FIELD)?.as_str()?.strip_prefix(&self.mark)?.strip_prefix('.')?.parse().ok()
    }
}

/// Parses an encoded message, to add the mark.
fn parse_object(encoded: &str) -> Map<String, Value> {
    serde_json::from_str(encoded).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_presence_of_a_host_that_rejected_messages_can_be_read() {
        let rejected = [("malformed".to_owned(), 2)].into();
        let presence = Presence {
            rejected,
            jails: [Jail::new("sshd").unwrap()].into(),
            ..Presence::default()
        };
        let mut marked = parse_object(&presence.encode());
        marked.insert(MARK_FIELD.to_owned(), "m1.3".into());
        let payload = Value::from(marked).to_string();
        assert_eq!(Presence::parse(payload.as_bytes()), Ok(presence), "{payload}");
    }
}
