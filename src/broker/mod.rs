//! The connection to a broker. A link connects, tries the next broker if one fails, and never blocks its caller: it
//! reports events, and accepts messages while it is up. A message counts as sent only when the broker acknowledges it;
//! the sender repeats the others.
//!
//! Each connection has a new rumqttc client, so that no state of an old connection survives in rumqttc, and the sender
//! knows exactly which messages were acknowledged.
//!
//! A link signs what it publishes on the fleet's topics if the fleet has a key. It delivers only messages that the
//! [gate](crate::guard::gate) admits; no unchecked payload leaves this module.
//!
//! [`fleet_client`] reads what a broker retains of the fleet: [`fetch`] schedules the subscriptions, and [`fleet_view`]
//! interprets the messages; both are pure. [`retraction`] removes what a broker retains of a host.

mod backoff;
mod dial;
mod disconnect;
pub mod fetch;
pub mod fleet_client;
pub mod fleet_view;
mod purge;
pub mod retraction;
mod session;
#[cfg(test)]
mod wire_bytes;

use std::time::Duration;

use rumqttc::{LastWill, MqttOptions, QoS, TlsConfiguration, Transport};
use tokio::time::{Instant, sleep_until};

use crate::config::{self, Broker, Config, Signing, Tls, Topic};
use crate::guard::gate::{Admitted, Gate, Rejected};
use crate::sys::peer_addresses::PeerAddresses;
use backoff::Backoff;
use disconnect::TlsMode;
pub use disconnect::{ConnectStage, DisconnectReason};
pub use purge::purge;
use session::{Session, SessionEvent};

/// The largest accepted MQTT packet, in bytes. rumqttc ends the connection at a larger one.
const MAX_PACKET_BYTES: usize = 256 * 1024;

/// MQTT's keep-alive, in seconds. rumqttc ends a silent connection after twice this time.
const KEEP_ALIVE_SECS: u16 = 10;

/// A connection that lasted longer than this resets the backoff.
const MIN_STABLE_TIME: Duration = Duration::from_secs(10);

/// What happened to a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// The link is up. Subscriptions must be made again.
    Connected(Broker),
    /// The gate admitted a message.
    Message(Admitted),
    /// The gate rejected a message.
    Rejected(Rejected),
    /// The broker acknowledged the message of this name.
    Published(String),
    /// The broker rejected the subscription to these topics. The link retries.
    SubscribeRejected(Vec<String>),
    /// The broker grants only QoS 0, which may lose messages.
    QosLowered,
    /// The link went down, or did not come up. Unacknowledged messages must be sent again.
    Lost {
        /// The broker of the connection.
        broker: Broker,
        /// The cause, with a fix if one is known.
        why: DisconnectReason,
        /// Whether a message that is too large ended the connection.
        too_large: bool,
    },
}

/// How a client presents itself to the broker.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The MQTT client ID. A broker keeps one connection per client ID.
    pub id: String,
    /// Whether the broker queues messages while this client is disconnected.
    pub persistent: bool,
    /// Filters of the fleet's topics to subscribe to on each connection.
    pub topics: Vec<String>,
    /// Exact topics of other programs to subscribe to.
    pub others: Vec<String>,
    /// The last will: topic and payload, retained.
    pub will: Option<(String, String)>,
}

/// A connection that reconnects by itself.
#[derive(Debug)]
pub struct MqttLink {
    config: ConnectionConfig,
    state: LinkPhase,
    /// Counts the brokers that were tried. Modulo their number, it is the index of the current one.
    broker_index: usize,
    backoff: Backoff,
    /// The broker's session has a message that is too large, and that would end every connection. The next connection
    /// discards the session.
    purge_session: bool,
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
    /// Signs a payload for one of the fleet's topics.
    fn sign(&self, topic: &str, payload: Vec<u8>) -> Vec<u8> {
        match &self.signing {
            Some(signing) if self.topic.is_fleet_topic(topic) => signing.keys.sign(topic, payload),
            _ => payload,
        }
    }

    fn admit(&self, topic: &str, payload: Vec<u8>) -> LinkEvent {
        match self.gate.admit(topic, payload) {
            Ok(admitted) => LinkEvent::Message(admitted),
            Err(rejected) => LinkEvent::Rejected(rejected),
        }
    }
}

#[derive(Debug)]
enum LinkPhase {
    Down { until: Instant },
    Up { session: Box<Session>, since: Option<Instant> },
}

impl MqttLink {
    /// A link, which connects at the first call of [`event`](Self::event).
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
            broker_index: 0,
            backoff: Backoff::default(),
            purge_session: false,
            peers: PeerAddresses::default(),
        }
    }

    /// The addresses of the brokers that this link was connected to.
    #[must_use]
    pub fn peers(&self) -> PeerAddresses {
        self.peers.clone()
    }

    /// Uses another client ID from the next connection on.
    pub fn rename(&mut self, id: String) {
        self.config.client.id = id;
    }

    /// The next event. Cancel-safe.
    pub async fn event(&mut self) -> LinkEvent {
        loop {
            let event = match &mut self.state {
                LinkPhase::Down { until } => {
                    sleep_until(*until).await;
                    match self.connect() {
                        Ok(()) => continue,
                        Err(why) => SessionEvent::Ended { why: why.into(), too_large: false },
                    }
                }
                LinkPhase::Up { session, .. } => session.event().await,
            };
            if let Some(event) = self.on_session_event(event) {
                return event;
            }
        }
    }

    /// The next event that is already available.
    pub fn try_event(&mut self) -> Option<LinkEvent> {
        let LinkPhase::Up { session, .. } = &mut self.state else { return None };
        let event = session.try_event()?;
        self.on_session_event(event)
    }

    /// How many more messages the link accepts now.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.state {
            LinkPhase::Up { session, since: Some(_) } => session.capacity(),
            _ => 0,
        }
    }

    /// Sends a message with QoS 1. [`LinkEvent::Published`] with `name` reports the broker's acknowledgement. Without
    /// capacity, or if the link goes down before that event, the caller must send the message again.
    pub fn publish(&mut self, name: String, topic: String, payload: Vec<u8>) {
        if let LinkPhase::Up { session, since: Some(_) } = &mut self.state {
            let payload = self.config.sign(&topic, payload);
            session.publish(name, topic, payload);
        }
    }

    /// Sends a retained message. If the link goes down, the message may be lost, and the caller must send it again.
    pub fn publish_retained(&mut self, topic: String, payload: Vec<u8>) {
        if let LinkPhase::Up { session, since: Some(_) } = &mut self.state {
            let payload = self.config.sign(&topic, payload);
            session.publish_retained(topic, payload);
        }
    }

    /// Sends a message that may be lost, for current subscribers.
    pub fn publish_untracked(&mut self, topic: String, payload: Vec<u8>) {
        if let LinkPhase::Up { session, since: Some(_) } = &mut self.state {
            session.publish_untracked(topic, payload);
        }
    }

    /// Sends a retained message (an empty one clears the topic), with the acknowledgement of
    /// [`publish`](Self::publish).
    pub fn publish_retained_tracked(&mut self, name: String, topic: String, payload: Vec<u8>) {
        if let LinkPhase::Up { session, since: Some(_) } = &mut self.state {
            let payload = self.config.sign(&topic, payload);
            session.publish_retained_tracked(name, topic, payload);
        }
    }

    /// Subscribes to topics on this connection.
    pub fn subscribe(&mut self, topics: &[String]) {
        if let LinkPhase::Up { session, since: Some(_) } = &mut self.state {
            session.subscribe(topics);
        }
    }

    /// Disconnects. Events that the broker had already sent still follow; the last one is [`LinkEvent::Lost`]. Returns
    /// `false` if the link is down, and no event follows.
    pub fn close(&mut self) -> bool {
        match &mut self.state {
            LinkPhase::Up { session, since: Some(_) } => session.close(),
            _ => false,
        }
    }

    fn broker(&self) -> &Broker {
        &self.config.brokers[self.broker_index % self.config.brokers.len()]
    }

    /// Starts to connect; `Err` if the settings of this host do not allow that.
    fn connect(&mut self) -> Result<(), String> {
        let ConnectionConfig { tls, login, client, .. } = &self.config;
        let broker = self.broker();
        let (transport, tls_mode) = match tls {
            None => (Transport::Tcp, TlsMode::Off),
            Some(tls) => (
                Transport::Tls(TlsConfiguration::Rustls(tls.client()?)),
                if tls.has_identity() { TlsMode::Mutual } else { TlsMode::ServerOnly },
            ),
        };
        // Certificates and the resolver use IPv6 addresses without brackets.
        let host = config::bare(&broker.host);
        let mut options = MqttOptions::new(client.id.clone(), (host, broker.port));
        options.set_transport(transport);
        options.set_keep_alive(KEEP_ALIVE_SECS);
        options.set_clean_session(!client.persistent || self.purge_session);
        options.set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES);
        if let Some((topic, payload)) = &client.will {
            let payload = self.config.sign(topic, payload.clone().into_bytes());
            options.set_last_will(LastWill::new(topic, payload, QoS::AtLeastOnce, true));
        }
        if let Some(login) = login {
            options.set_credentials(login.user.clone(), login.password.reveal().to_owned());
        }
        let session = Box::new(Session::start(options, tls_mode, self.peers.clone()));
        self.state = LinkPhase::Up { session, since: None };
        Ok(())
    }

    fn on_session_event(&mut self, event: SessionEvent) -> Option<LinkEvent> {
        match event {
            // The clean session replaced the one with the large message. Reconnect with a persistent session.
            SessionEvent::Connected if self.purge_session => {
                self.purge_session = false;
                self.state = LinkPhase::Down { until: Instant::now() };
                None
            }
            SessionEvent::Connected => {
                let broker = self.broker().clone();
                if let LinkPhase::Up { session, since } = &mut self.state {
                    *since = Some(Instant::now());
                    let ClientOptions { topics, others, .. } = &self.config.client;
                    session.subscribe(&[&topics[..], others].concat());
                }
                Some(LinkEvent::Connected(broker))
            }
            SessionEvent::Message { topic, payload } => Some(self.config.admit(&topic, payload)),
            SessionEvent::Published(name) => Some(LinkEvent::Published(name)),
            SessionEvent::SubscribeRejected(topics) => Some(LinkEvent::SubscribeRejected(topics)),
            SessionEvent::QosLowered => Some(LinkEvent::QosLowered),
            SessionEvent::Ended { why, too_large } => {
                // An attempt to purge the session may fail, too. Only a connection that succeeds purges the session.
                self.purge_session |= too_large && self.config.client.persistent;
                let uptime = match &self.state {
                    LinkPhase::Up { since, .. } => since.map(|since| since.elapsed()),
                    LinkPhase::Down { .. } => None,
                };
                if uptime.is_some_and(|uptime| uptime > MIN_STABLE_TIME) {
                    self.backoff.reset();
                }
                let broker = self.broker().clone();
                // After a connection that was up, retry the same broker; otherwise try the next one.
                if uptime.is_none() {
                    self.broker_index = self.broker_index.wrapping_add(1);
                }
                let pause = self.backoff.next(self.config.brokers.len());
                self.state = LinkPhase::Down { until: Instant::now() + pause };
                Some(LinkEvent::Lost { broker, why, too_large })
            }
        }
    }
}
