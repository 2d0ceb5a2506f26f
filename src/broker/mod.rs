//! The connection to a broker: one after another is tried, and what is lost on the way is sent
//! again by whoever asked for it. It is never awaited for: a link says what happened to it, and
//! takes what there is to send while it is up.
//!
//! Each connection has a client of its own. So nothing that rumqttc keeps from one connection to
//! the next can get in the way: what was sent counts only once the broker has acknowledged it, and
//! the sender knows what was not.
//!
//! A link signs what it publishes on the fleet's topics, where the fleet has a key, and hands over only what
//! the [gate](crate::guard::gate) admits: no raw topic or payload leaves this module.

mod backoff;
mod dial;
mod peers;
mod purge;
mod session;
mod why;
#[cfg(test)]
mod wire_bytes;

use std::time::Duration;

use rumqttc::{LastWill, MqttOptions, QoS, TlsConfiguration, Transport};
use tokio::time::{Instant, sleep_until};

use crate::config::{self, Broker, Config, Signing, Tls, Topic};
use crate::guard::gate::{Admitted, Gate, Rejected};
use backoff::Backoff;
pub use peers::PeerAddresses;
pub use purge::purge;
use session::Session;
use why::TlsMode;
pub use why::{ConnectStage, DisconnectReason};

/// The largest message that is taken, in bytes. rumqttc ends a connection over a larger one.
const MAX_PACKET: usize = 256 * 1024;

/// A silent connection is found dead after twice this long. In seconds.
const KEEP_ALIVE: u16 = 10;

/// A connection that lasted this long was good: the next try comes soon.
const STABLE: Duration = Duration::from_secs(10);

/// What happened to a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// It is up; whatever is to be subscribed to is asked for again.
    Connected(Broker),
    /// A message came that the gate admitted.
    Message(Admitted),
    /// A message came that the gate rejected.
    Refused(Rejected),
    /// The broker has what was published under this name.
    Published(String),
    /// The broker does not let this host subscribe to these topics; it is asked again.
    SubscribeRefused(Vec<String>),
    /// The broker delivers with QoS 0 only, which loses messages.
    QosLowered,
    /// It is down, or did not come up: why. What was not acknowledged is to be sent again.
    Lost {
        /// Which broker.
        broker: Broker,
        /// Why, with what to do about it where that is known.
        why: DisconnectReason,
    },
}

/// How a client presents itself to the broker.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// MQTT's client identifier; a broker lets one in at a time.
    pub id: String,
    /// Whether the broker keeps what comes while this client is away.
    pub persistent: bool,
    /// Filters of the fleet's topics that it subscribes to on each connection.
    pub topics: Vec<String>,
    /// Topics of others that it subscribes to, too, exact.
    pub others: Vec<String>,
    /// What the broker is to keep on a topic once this client is gone without a good-bye.
    pub will: Option<(String, String)>,
}

/// A connection that comes back by itself.
#[derive(Debug)]
pub struct MqttLink {
    config: ConnectionConfig,
    state: LinkPhase,
    turn: usize,
    backoff: Backoff,
    /// The broker holds a message for us that is too large to read: it is thrown away with the rest
    /// of the session, or it would end every connection from now on.
    discard: bool,
    peers: PeerAddresses,
}

#[derive(Debug)]
struct ConnectionConfig {
    brokers: Vec<Broker>,
    tls: Option<Tls>,
    login: Option<config::Login>,
    topic: Topic,
    signing: Option<Signing>,
    gate: Gate,
    client: ClientOptions,
}

impl ConnectionConfig {
    /// Signs what is published on the fleet's topics.
    fn sign(&self, topic: &str, payload: Vec<u8>) -> Vec<u8> {
        match &self.signing {
            Some(signing) if self.topic.is_fleet_topic(topic) => signing.keys.sign(topic, payload),
            _ => payload,
        }
    }

    fn open(&self, topic: &str, payload: Vec<u8>) -> LinkEvent {
        match self.gate.admit(topic, payload) {
            Ok(admitted) => LinkEvent::Message(admitted),
            Err(rejected) => LinkEvent::Refused(rejected),
        }
    }
}

#[derive(Debug)]
enum LinkPhase {
    Down { until: Instant },
    Up { session: Box<Session>, since: Option<Instant> },
}

impl MqttLink {
    /// A link that connects when it is first asked for an event.
    #[must_use]
    pub fn new(config: &Config, client: ClientOptions) -> Self {
        let brokers = config.brokers.clone();
        let (tls, login) = (config.tls.clone(), config.login.clone());
        let (topic, signing) = (config.topic.clone(), config.signing.clone());
        let others = client.others.clone();
        let gate = Gate::new(topic.clone(), config.node.clone(), signing.clone(), others);
        Self {
            config: ConnectionConfig { brokers, tls, login, topic, signing, gate, client },
            state: LinkPhase::Down { until: Instant::now() },
            turn: 0,
            backoff: Backoff::default(),
            discard: false,
            peers: PeerAddresses::default(),
        }
    }

    /// The addresses of the brokers that this link was connected to.
    #[must_use]
    pub fn peers(&self) -> PeerAddresses {
        self.peers.clone()
    }

    /// Connects by another client ID from the next connection on.
    pub fn rename(&mut self, id: String) {
        self.config.client.id = id;
    }

    /// The next thing that happens. May be dropped at any time without losing one.
    pub async fn event(&mut self) -> LinkEvent {
        loop {
            let ended = match &mut self.state {
                LinkPhase::Down { until } => {
                    sleep_until(*until).await;
                    match self.connect() {
                        Ok(()) => continue,
                        Err(why) => {
                            session::SessionEvent::Ended { why: why.into(), too_large: false }
                        }
                    }
                }
                LinkPhase::Up { session, .. } => session.event().await,
            };
            if let Some(event) = self.pass_on(ended) {
                return event;
            }
        }
    }

    /// The next thing that has happened already, if any.
    pub fn try_event(&mut self) -> Option<LinkEvent> {
        let LinkPhase::Up { session, .. } = &mut self.state else { return None };
        let ready = session.try_event()?;
        self.pass_on(ready)
    }

    /// How many more messages can be handed over now.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.state {
            LinkPhase::Up { session, since: Some(_) } => session.capacity(),
            _ => 0,
        }
    }

    /// Whether the connection ended over a message that is too large.
    #[must_use]
    pub fn was_too_large(&self) -> bool {
        self.discard
    }

    /// Hands a message over, to be sent with QoS 1. It counts once [`Event::Published`] names it;
    /// where there is no room, or the link goes down first, it is to be handed over again.
    pub fn publish(&mut self, name: String, topic: String, payload: Vec<u8>) {
        if let LinkPhase::Up { session, since: Some(_) } = &mut self.state {
            let payload = self.config.sign(&topic, payload);
            session.publish(name, topic, payload);
        }
    }

    /// Hands over what the broker is to keep on a topic, for whoever asks for it later; nothing clears it.
    /// It goes out if the link stays up: after that it is to be handed over anew.
    pub fn publish_retained(&mut self, topic: String, payload: Vec<u8>) {
        if let LinkPhase::Up { session, since: Some(_) } = &mut self.state {
            let payload = self.config.sign(&topic, payload);
            session.publish_retained(topic, payload);
        }
    }

    /// Hands over what is for those who listen now, and not missed if it is lost.
    pub fn publish_qos0(&mut self, topic: String, payload: Vec<u8>) {
        if let LinkPhase::Up { session, since: Some(_) } = &mut self.state {
            session.publish_qos0(topic, payload);
        }
    }

    /// Hands over what the broker is to keep on a topic, or nothing where it is to keep nothing any more.
    /// It counts as [`publish`](Self::publish) does.
    pub fn publish_retained_tracked(&mut self, name: String, topic: String, payload: Vec<u8>) {
        if let LinkPhase::Up { session, since: Some(_) } = &mut self.state {
            let payload = self.config.sign(&topic, payload);
            session.publish_retained_tracked(name, topic, payload);
        }
    }

    /// Asks for topics, and for what the broker keeps there, on this connection.
    pub fn subscribe(&mut self, topics: &[String]) {
        if let LinkPhase::Up { session, since: Some(_) } = &mut self.state {
            session.subscribe(topics);
        }
    }

    /// Says good-bye to the broker. What it had sent by then still comes as events; the last is
    /// [`Event::Lost`]. Answers `false` where the link is not up, and nothing comes.
    pub fn close(&mut self) -> bool {
        match &mut self.state {
            LinkPhase::Up { session, since: Some(_) } => session.close(),
            _ => false,
        }
    }

    fn broker(&self) -> &Broker {
        &self.config.brokers[self.turn % self.config.brokers.len()]
    }

    /// Begins to connect; `Err` is what this host lacks for it.
    fn connect(&mut self) -> Result<(), String> {
        let ConnectionConfig { tls, login, client, .. } = &self.config;
        let broker = self.broker();
        let (transport, protection) = match tls {
            None => (Transport::Tcp, TlsMode::Off),
            Some(tls) => (
                Transport::Tls(TlsConfiguration::Rustls(tls.client()?)),
                if tls.has_identity() { TlsMode::Mutual } else { TlsMode::ServerOnly },
            ),
        };
        // Certificates name an IPv6 address without brackets; the resolver takes it so, too.
        let host = config::bare(&broker.host);
        let mut options = MqttOptions::new(client.id.clone(), (host, broker.port));
        options.set_transport(transport);
        options.set_keep_alive(KEEP_ALIVE);
        options.set_clean_session(!client.persistent || self.discard);
        options.set_max_packet_size(MAX_PACKET, MAX_PACKET);
        if let Some((topic, payload)) = &client.will {
            let payload = self.config.sign(topic, payload.clone().into_bytes());
            options.set_last_will(LastWill::new(topic, payload, QoS::AtLeastOnce, true));
        }
        if let Some(login) = login {
            options.set_credentials(login.user.clone(), login.password.reveal().to_owned());
        }
        let session = Box::new(Session::start(options, protection, self.peers.clone()));
        self.state = LinkPhase::Up { session, since: None };
        Ok(())
    }

    fn pass_on(&mut self, event: session::SessionEvent) -> Option<LinkEvent> {
        match event {
            session::SessionEvent::Connected if self.discard => {
                self.discard = false;
                self.state = LinkPhase::Down { until: Instant::now() };
                None
            }
            session::SessionEvent::Connected => {
                let broker = self.broker().clone();
                if let LinkPhase::Up { session, since } = &mut self.state {
                    *since = Some(Instant::now());
                    let ClientOptions { topics, others, .. } = &self.config.client;
                    session.subscribe(&[&topics[..], others].concat());
                }
                Some(LinkEvent::Connected(broker))
            }
            session::SessionEvent::Message { topic, payload } => {
                Some(self.config.open(&topic, payload))
            }
            session::SessionEvent::Published(name) => Some(LinkEvent::Published(name)),
            session::SessionEvent::SubscribeRefused(topics) => {
                Some(LinkEvent::SubscribeRefused(topics))
            }
            session::SessionEvent::QosLowered => Some(LinkEvent::QosLowered),
            session::SessionEvent::Ended { why, too_large } => {
                self.discard = too_large && self.config.client.persistent;
                let up = match &self.state {
                    LinkPhase::Up { since, .. } => since.map(|since| since.elapsed()),
                    LinkPhase::Down { .. } => None,
                };
                if up.is_some_and(|up| up > STABLE) {
                    self.backoff.reset();
                }
                let broker = self.broker().clone();
                // A connection that was up is tried again where it was; a broker that is down
                // gives the next its turn.
                if up.is_none() {
                    self.turn = self.turn.wrapping_add(1);
                }
                let rounds = self.config.brokers.len();
                self.state = LinkPhase::Down { until: Instant::now() + self.backoff.next(rounds) };
                Some(LinkEvent::Lost { broker, why })
            }
        }
    }
}
