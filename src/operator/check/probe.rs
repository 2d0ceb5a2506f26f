//! Goes the way to each broker, and listens there for a moment. What it publishes, nobody acts upon
//! and no broker keeps: it only has to come back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};

use super::broker::{BrokerProbe, BrokerReach, Port, ProbeEvent, ProbeResult, Shard};
use crate::broker::{self, ClientOptions, ConnectStage, DisconnectReason, LinkEvent, MqttLink};
use crate::clock::now_millis;
use crate::config::{self, Broker, Config, Topic};
use crate::daemon;
use crate::figures::homeassistant;
use crate::fleet::snapshot::SHARD_BYTES;
use crate::guard::RejectReason;
use crate::guard::gate::{Admitted, Source};
use crate::random;
use crate::wire::{self, Action, Address, HostName, HostState, Jail, Presence};

/// How long a name, and then a port, may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// A broker that answers at all has said all that it keeps after such a silence, or so long.
const QUIET: Duration = Duration::from_millis(250);
const GATHER: Duration = Duration::from_secs(1);

/// How long a message may take to come back.
const BACK: Duration = Duration::from_secs(2);

/// The most addresses of a name that are tried, and the most hosts whose clocks are looked at.
const MAX_ADDRESSES: usize = 8;
const MAX_CLOCKS: usize = 40;

/// The most topics of other fleets that are kept.
const MAX_TOPICS: usize = 8;

/// The field that a message of this check is known by, and the name of the one that is as large as a shard.
const MARK: &str = "check";
const SHARD: &str = "shard";

/// Goes to all brokers at once.
pub(super) async fn brokers(config: &Config, instance: &str) -> Vec<BrokerProbe> {
    let ways = config.brokers.iter().map(|broker| async {
        BrokerProbe { broker: broker.clone(), way: go(config, broker, instance).await }
    });
    join_all(ways).await
}

async fn go(config: &Config, broker: &Broker, instance: &str) -> BrokerReach {
    let addresses = match resolve(broker).await {
        Ok(addresses) => addresses,
        Err(why) => return BrokerReach::NoName(why),
    };
    let knocks = addresses.into_iter().map(|at| async move { (at.ip(), tcp_probe(at).await) });
    let ports: Vec<(IpAddr, Port)> = join_all(knocks).await;
    if !ports.iter().any(|(_, port)| *port == Port::Open) {
        return BrokerReach::NoPort(ports);
    }
    // A name of its own: the service's connection stays as it is. Its mark is no number, as parts have.
    let mark = format!("m{:x}", random::chance().to_bits() >> 28);
    let id = format!("f2bmqtt-{}-check-{mark}", config.node);
    let own = config.topic.retained(&format!("state/{}/check/{mark}", config.node));
    let only = Config { brokers: vec![broker.clone()], ..config.clone() };
    let refused = enter_as_daemon(&only, &id, &own).await;
    if let Some(why) = refused.as_ref().filter(|why| why.stage == ConnectStage::Login) {
        return BrokerReach::Rejected { ports, why: why.clone() };
    }
    let home = config.ha_prefix.as_ref().map(|prefix| homeassistant::topics(prefix, &config.node));
    let others = home.iter().flatten().cloned().chain([own.clone()]).collect();
    let client = ClientOptions { id, persistent: false, topics: Vec::new(), others, will: None };
    let heard = ProbeResult { refused_as_daemon: refused.clone(), ..ProbeResult::default() };
    let mut ear =
        ProbeListener { link: MqttLink::new(&only, client), config, instance, mark, own, heard };
    match ear.link.event().await {
        LinkEvent::Lost { why, .. } => BrokerReach::Rejected { ports, why: refused.unwrap_or(why) },
        _ => BrokerReach::Connected { ports, heard: Box::new(ear.listen().await) },
    }
}

/// Connects with a persistent session and a retained last will, as the daemon does; answers why the broker
/// refuses that. The will is empty, so the broker keeps nothing even if this process is killed. The session
/// has no subscriptions, and is removed.
async fn enter_as_daemon(only: &Config, id: &str, own: &str) -> Option<DisconnectReason> {
    let (topics, others) = (Vec::new(), Vec::new());
    let will = Some((own.to_owned(), String::new()));
    let client = ClientOptions { id: id.to_owned(), persistent: true, topics, others, will };
    let mut link = MqttLink::new(only, client);
    if let LinkEvent::Lost { why, .. } = link.event().await {
        return Some(why);
    }
    disconnect(&mut link).await;
    let _ = timeout(PATIENCE, broker::purge(only.clone(), id.to_owned())).await;
    None
}

/// Ends a connection, once the broker has acknowledged what it was sent.
async fn disconnect(link: &mut MqttLink) {
    if link.close() {
        let lost = async { while !matches!(link.event().await, LinkEvent::Lost { .. }) {} };
        let _ = timeout(BACK, lost).await;
    }
}

async fn resolve(broker: &Broker) -> Result<Vec<SocketAddr>, String> {
    match timeout(PATIENCE, lookup_host((config::bare(&broker.host), broker.port))).await {
        Err(_) => Err(format!("no name server answers within {} s", PATIENCE.as_secs())),
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
    match timeout(PATIENCE, TcpStream::connect(at)).await {
        Err(_) => Port::Dropped,
        Ok(Ok(_)) => Port::Open,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Port::Refused,
        Ok(Err(error)) => Port::Other(error.to_string()),
    }
}

/// Listens on a connection.
struct ProbeListener<'a> {
    link: MqttLink,
    config: &'a Config,
    /// The ID of the daemon's run, if a daemon runs.
    instance: &'a str,
    /// In each message that it publishes itself.
    mark: String,
    /// Where it publishes in its own snapshot's branch; no host listens so deep.
    own: String,
    heard: ProbeResult,
}

impl ProbeListener<'_> {
    async fn listen(mut self) -> ProbeResult {
        let Config { topic, node, .. } = self.config;
        // What the daemon subscribes to, as it does. Where a message of ours comes back, the link does.
        for filter in [topic.events(), topic.presences(), topic.shards(node)] {
            self.link.subscribe(&[filter]);
        }
        self.hear(GATHER, |_| false).await;
        for host in self.others_online() {
            self.link.subscribe(&[topic.shard(&host, 0)]);
        }
        let event = object(&self.event().encode());
        let presence = object(&self.presence().encode());
        let (ban, unban, host) = (topic.event("ban"), topic.event("unban"), topic.presence(node));
        let (state, own) = (topic.retained(&format!("state/{node}")), self.own.clone());
        let messages = [
            (&ban, &ban, event.clone()),
            (&unban, &unban, event),
            (&state, &own, Map::new()),
            // What this host says of itself, said again.
            (&host, &host, presence),
        ];
        let until = Instant::now() + BACK;
        for (stands_for, topic, object) in messages {
            // One after another: a broker may hang up at the first that it forbids.
            if !self.heard.cut {
                self.publish(stands_for, topic, object);
                self.taken(until).await;
            }
        }
        self.hear(BACK, |heard| heard.probes.iter().all(|probe| probe.back)).await;
        let is_back = |probe: &ProbeEvent| probe.back && probe.topic == state;
        if !self.heard.cut && self.heard.probes.iter().any(is_back) {
            self.keep_shard(&own).await;
        }
        let alone = self.heard.presences.iter().all(|(host, _)| host == node);
        if alone && !self.heard.cut {
            // Last, and only for advice: the broker may hang up on whoever asks for other fleets.
            self.link.subscribe(&Topic::any_presences());
            self.hear(GATHER, |_| true).await;
            self.heard.cut = false;
        }
        disconnect(&mut self.link).await;
        self.heard
    }

    /// Publishes an object with the mark in it.
    fn publish(&mut self, stands_for: &str, topic: &str, mut object: Map<String, Value>) {
        let number = self.heard.probes.len();
        object.insert(MARK.to_owned(), self.mark(number).into());
        let payload = Value::from(object).to_string();
        self.link.publish(stands_for.to_owned(), topic.to_owned(), payload.into_bytes());
        let topic = stands_for.to_owned();
        self.heard.probes.push(ProbeEvent { topic, taken: false, back: false });
    }

    /// Has the broker keep a message as large as a shard, asks for that, and clears it.
    async fn keep_shard(&mut self, own: &str) {
        let shard =
            json!({ MARK: self.mark(self.heard.probes.len()), "fill": "x".repeat(SHARD_BYTES) });
        self.heard.shard = Some(Shard::default());
        let until = Instant::now() + BACK;
        let shard = shard.to_string().into_bytes();
        self.link.publish_retained_tracked(SHARD.to_owned(), own.to_owned(), shard);
        self.shard_is(until, |shard| shard.taken && shard.arrivals > 0).await;
        if !self.heard.cut {
            self.link.subscribe(&[own.to_owned()]);
            self.shard_is(until, |shard| shard.arrivals > 1).await;
        }
        if !self.heard.cut {
            self.link.publish_retained_tracked(String::new(), own.to_owned(), Vec::new());
            // The good-bye waits until the broker has this.
        }
    }

    async fn shard_is(&mut self, until: Instant, so: impl Fn(&Shard) -> bool) {
        while !self.heard.cut && !self.heard.shard.as_ref().is_some_and(&so) {
            match timeout_at(until, self.link.event()).await {
                Ok(event) => self.take(event),
                Err(_) => return,
            }
        }
    }

    /// Listens until it is quiet and `enough` is there, but no longer than `limit`.
    async fn hear(&mut self, limit: Duration, enough: impl Fn(&ProbeResult) -> bool) {
        let started = Instant::now();
        while !self.heard.cut && started.elapsed() < limit {
            match timeout(QUIET, self.link.event()).await {
                Err(_) if self.heard.probes.is_empty() || enough(&self.heard) => return,
                Err(_) => {}
                Ok(event) => self.take(event),
            }
        }
    }

    /// Listens until the broker has what was published last, but no longer than `until`.
    async fn taken(&mut self, until: Instant) {
        while !self.heard.cut && self.heard.probes.last().is_some_and(|probe| !probe.taken) {
            match timeout_at(until, self.link.event()).await {
                Ok(event) => self.take(event),
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Message(message) => self.message(&message),
            LinkEvent::Published(name) if name == SHARD => {
                self.heard.shard.iter_mut().for_each(|shard| shard.taken = true);
            }
            LinkEvent::Published(stands_for) => {
                let mut probes = self.heard.probes.iter_mut();
                if let Some(probe) = probes.find(|probe| probe.topic == stands_for) {
                    probe.taken = true;
                }
            }
            LinkEvent::SubscribeRefused(topics) => {
                let known = &mut self.heard.refused;
                for topic in topics {
                    // It is asked for again, and refused again.
                    let asked_for_advice = Topic::any_presences().contains(&topic);
                    if !asked_for_advice && !topic.contains("/check/") && !known.contains(&topic) {
                        known.push(topic);
                    }
                }
            }
            LinkEvent::Lost { .. } => self.heard.cut = true,
            LinkEvent::Refused(rejected) if rejected.reason() == RejectReason::WrongTopic => {
                let topic = Topic::of_presence(rejected.topic());
                if self.heard.other_topics.len() < MAX_TOPICS {
                    self.heard.other_topics.extend(topic.map(str::to_owned));
                }
            }
            LinkEvent::Refused(rejected) => {
                self.heard.others = true;
                let host = self.other(rejected.host());
                self.heard.refusals.extend(host.map(|host| (host, rejected.reason())));
            }
            LinkEvent::QosLowered => self.heard.qos_lowered = true,
            LinkEvent::Connected(_) => {}
        }
    }

    fn message(&mut self, message: &Admitted) {
        if let Some(number) = self.number(message.payload()) {
            match self.heard.probes.get_mut(number) {
                Some(probe) => probe.back = true,
                None => self.heard.shard.iter_mut().for_each(|shard| shard.arrivals += 1),
            }
            return;
        }
        self.heard.others = true;
        let host = self.other(message.source().host());
        if self.config.signing.is_none() && wire::seal::split(message.payload()).is_some() {
            self.heard.signed.extend(host.clone());
        }
        match (message.source(), host) {
            (Source::Presence { host }, _) => {
                if let Ok(presence) = message.presence() {
                    self.heard.presences.push((host.clone(), presence));
                }
            }
            (Source::Other(topic), _) => drop(self.heard.home.insert(topic.clone())),
            (Source::Shard { index: 0, .. }, Some(host)) => {
                if let Ok(part) = message.shard(|_| false) {
                    let now = now_millis();
                    let stamp = self.heard.stamps.entry(host).or_insert((part.stamp, now));
                    *stamp = (*stamp).max((part.stamp, now));
                }
            }
            _ => {}
        }
    }

    /// A host, if it is not this one.
    fn other(&self, host: Option<&HostName>) -> Option<HostName> {
        host.filter(|host| **host != self.config.node).cloned()
    }

    fn others_online(&self) -> Vec<HostName> {
        let presences = self.heard.presences.iter();
        let online = presences
            .filter(|(host, there)| *host != self.config.node && there.state == HostState::Online);
        online.map(|(host, _)| host.clone()).take(MAX_CLOCKS).collect()
    }

    /// An event that nobody acts upon: its action is none, its jail nobody's, and it is no news.
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

    /// What the broker keeps of this host's daemon, or what is known without that.
    fn presence(&self) -> Presence {
        let machine = daemon::machine();
        let own = self.heard.presences.iter().rev().find(|(host, there)| {
            *host == self.config.node
                && there.machine == machine
                && (self.instance.is_empty() || there.instance == self.instance)
        });
        own.map_or_else(|| daemon::presence(&machine, self.instance), |(_, own)| own.clone())
    }

    /// What a message of this check is known by.
    fn mark(&self, number: usize) -> String {
        format!("{}.{number}", self.mark)
    }

    /// The number of a message of this check.
    fn number(&self, payload: &[u8]) -> Option<usize> {
        let object: Value = serde_json::from_slice(payload).ok()?;
        object.get(MARK)?.as_str()?.strip_prefix(&self.mark)?.strip_prefix('.')?.parse().ok()
    }
}

/// The fields of what an encoder wrote.
fn object(encoded: &str) -> Map<String, Value> {
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
        let mut marked = object(&presence.encode());
        marked.insert(MARK.to_owned(), "m1.3".into());
        let payload = Value::from(marked).to_string();
        assert_eq!(Presence::parse(payload.as_bytes()), Ok(presence), "{payload}");
    }
}
