//! Goes the way to each broker, and listens there for a moment. What it publishes, nobody acts upon
//! and no broker keeps: it only has to come back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};

use super::broker::{Heard, Port, Probe, Reached, Way};
use crate::broker::{Client, Event, Link};
use crate::config::{self, Broker, Config};
use crate::daemon;
use crate::guard::gate::{Admitted, Source};
use crate::outbox::millis;
use crate::random;
use crate::wire::{self, Action, Address, Host, Jail, Presence, State};

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

/// Goes to all brokers at once.
pub(super) async fn brokers(config: &Config) -> Vec<Reached> {
    let ways = config
        .brokers
        .iter()
        .map(|broker| async { Reached { broker: broker.clone(), way: go(config, broker).await } });
    join_all(ways).await
}

async fn go(config: &Config, broker: &Broker) -> Way {
    let addresses = match resolve(broker).await {
        Ok(addresses) => addresses,
        Err(why) => return Way::NoName(why),
    };
    let knocks = addresses.into_iter().map(|at| async move { (at.ip(), knock(at).await) });
    let ports: Vec<(IpAddr, Port)> = join_all(knocks).await;
    if !ports.iter().any(|(_, port)| *port == Port::Open) {
        return Way::NoPort(ports);
    }
    // A name of its own: the service's connection stays as it is. Its mark is no number, as parts have.
    let mark = format!("m{:x}", random::chance().to_bits() >> 28);
    let id = format!("f2bmqtt-{}-check-{mark}", config.node);
    let own = config.topic.retained(&format!("state/{}/check/{mark}", config.node));
    let client =
        Client { id, persistent: false, topics: Vec::new(), others: vec![own.clone()], will: None };
    let only = Config { brokers: vec![broker.clone()], ..config.clone() };
    let mut ear =
        Ear { link: Link::new(&only, client), config, mark, own, heard: Heard::default() };
    match ear.link.event().await {
        Event::Lost { why, .. } => Way::NoEntry { ports, why },
        _ => Way::In { ports, heard: ear.listen().await },
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
            if addresses.is_empty() { Err("it has no address".to_owned()) } else { Ok(addresses) }
        }
    }
}

async fn knock(at: SocketAddr) -> Port {
    match timeout(PATIENCE, TcpStream::connect(at)).await {
        Err(_) => Port::Dropped,
        Ok(Ok(_)) => Port::Open,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Port::Refused,
        Ok(Err(error)) => Port::Other(error.to_string()),
    }
}

/// Listens on a connection.
struct Ear<'a> {
    link: Link,
    config: &'a Config,
    /// In each message that it publishes itself.
    mark: String,
    /// Where it publishes in its own snapshot's branch; no host listens so deep.
    own: String,
    heard: Heard,
}

impl Ear<'_> {
    async fn listen(mut self) -> Heard {
        let Config { topic, node, .. } = self.config;
        // What the daemon subscribes to, as it does. Where a message of ours comes back, the link does.
        for filter in [topic.events(), topic.presences(), topic.shards(node)] {
            self.link.subscribe(&[filter]);
        }
        self.hear(GATHER, |_| false).await;
        for host in self.others_online() {
            self.link.subscribe(&[topic.shard(&host, 0)]);
        }
        let (event, presence) = (self.event().encode(), self.presence().encode());
        let (ban, unban, host) = (topic.event("ban"), topic.event("unban"), topic.presence(node));
        let (state, own) = (topic.retained(&format!("state/{node}")), self.own.clone());
        let messages = [
            (&ban, &ban, &*event),
            (&unban, &unban, &event),
            (&state, &own, "{}"),
            // What this host says of itself, said again.
            (&host, &host, &presence),
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
        if self.link.close() {
            let _ = timeout(QUIET, self.link.event()).await;
        }
        self.heard
    }

    /// Publishes an object with the mark in it.
    fn publish(&mut self, stands_for: &str, topic: &str, object: &str) {
        let fields = object.trim_end_matches('}');
        let comma = if fields == "{" { "" } else { "," };
        let payload = format!("{fields}{comma}{}}}", self.field(self.heard.probes.len()));
        self.link.publish(stands_for.to_owned(), topic.to_owned(), payload.into_bytes());
        let topic = stands_for.to_owned();
        self.heard.probes.push(Probe { topic, taken: false, back: false });
    }

    /// Listens until it is quiet and `enough` is there, but no longer than `limit`.
    async fn hear(&mut self, limit: Duration, enough: impl Fn(&Heard) -> bool) {
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

    fn take(&mut self, event: Event) {
        match event {
            Event::Message(message) => self.message(&message),
            Event::Published(stands_for) => {
                let mut probes = self.heard.probes.iter_mut();
                if let Some(probe) = probes.find(|probe| probe.topic == stands_for) {
                    probe.taken = true;
                }
            }
            Event::SubscribeRefused(topics) => {
                let known = &mut self.heard.refused;
                for topic in topics {
                    // It is asked for again, and refused again.
                    if !topic.contains("/check/") && !known.contains(&topic) {
                        known.push(topic);
                    }
                }
            }
            Event::Lost { .. } => self.heard.cut = true,
            Event::Refused(rejected) => {
                self.heard.others = true;
                let host = self.other(rejected.host());
                self.heard.refusals.extend(host.map(|host| (host, rejected.reason())));
            }
            Event::Connected(_) => {}
        }
    }

    fn message(&mut self, message: &Admitted) {
        let text = String::from_utf8_lossy(message.payload());
        let fields = (0..self.heard.probes.len()).map(|number| self.field(number));
        if let Some(number) = fields.into_iter().position(|field| text.contains(&field)) {
            self.heard.probes[number].back = true;
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
            (Source::Shard { index: 0, .. }, Some(host)) => {
                if let Ok(part) = message.shard(|_| false) {
                    let now = millis(SystemTime::now());
                    let stamp = self.heard.stamps.entry(host).or_insert((part.stamp, now));
                    *stamp = (*stamp).max((part.stamp, now));
                }
            }
            _ => {}
        }
    }

    /// A host, if it is not this one.
    fn other(&self, host: Option<&Host>) -> Option<Host> {
        host.filter(|host| **host != self.config.node).cloned()
    }

    fn others_online(&self) -> Vec<Host> {
        let presences = self.heard.presences.iter();
        let online = presences
            .filter(|(host, there)| *host != self.config.node && there.state == State::Online);
        online.map(|(host, _)| host.clone()).take(MAX_CLOCKS).collect()
    }

    /// An event that nobody acts upon: its action is none, its jail nobody's, and it is no news.
    fn event(&self) -> wire::Event {
        wire::Event {
            action: Action::Other(wire::CHECK.to_owned()),
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
            every_jail: false,
            unbans: Vec::new(),
            asked: false,
        }
    }

    /// What the broker keeps of this host, or else that it is offline.
    fn presence(&self) -> Presence {
        let machine = daemon::machine();
        let own = self
            .heard
            .presences
            .iter()
            .rev()
            .find(|(host, there)| *host == self.config.node && there.machine == machine);
        own.map_or_else(|| daemon::presence(&machine), |(_, own)| own.clone())
    }

    /// What a message of this check is known by.
    fn field(&self, number: usize) -> String {
        format!(r#""check":"{}.{number}""#, self.mark)
    }
}
