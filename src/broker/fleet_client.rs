//! A command's connection to the broker, with a client ID and a clean session that do not disturb the daemon's.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::fetch::{FetchStep, SnapshotFetch};
use super::fleet_view::{FleetView, Update};
use crate::broker::{ClientOptions, LinkEvent, MqttLink};
use crate::config::{Broker, Config, Topic};
use crate::error::Error;
use crate::model::HostName;
use crate::sys::clock::now_millis;
use crate::sys::jitter;

/// How long a broker may take to acknowledge all messages.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the disconnect may take.
const DISCONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// A message to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// An event: its topic below the fleet's, and its payload.
    Event(&'static str, String),
    /// A retained message: its topic below the fleet's retained branch, and its payload. An empty one clears the topic.
    Keep(String, String),
    /// Clears a topic outside the fleet's.
    Clear(String),
}

/// A connection, and the fleet's state as it arrives.
#[derive(Debug)]
pub struct FleetClient {
    topic: Topic,
    link: MqttLink,
    connected_at: Instant,
    fetch: SnapshotFetch,
    /// The broker of the connection.
    pub broker: Broker,
}

impl FleetClient {
    /// Connects, and fetches the state of the fleet. `known_hosts` reads the names of hosts that this host knows.
    ///
    /// # Errors
    /// [`Error::Failed`]: why there is no connection.
    pub async fn connect(
        config: &Config,
        known_hosts: impl FnOnce() -> BTreeSet<HostName>,
    ) -> Result<Self, Error> {
        let mut link = MqttLink::new(config, client_options(config, initial_topics(&config.topic)));
        let connected_at = Instant::now();
        let broker = connect_to_any(&mut link, config).await?;
        let fetch = SnapshotFetch::new(
            config.signing.is_some(),
            elapsed_millis(connected_at),
            elapsed_millis(connected_at),
        );
        let topic = config.topic.clone();
        let mut client = Self { topic, link, connected_at, fetch, broker };
        client.fetch_all().await?;
        if !client.view().hosts().contains_key(&config.node) {
            // The broker keeps at least this host's presence. It may deliver nothing for a wildcard, so request the exact
            // topics of all hosts known here.
            let mut hosts = known_hosts();
            hosts.insert(config.node.clone());
            client.request(&hosts);
            client.fetch.requested(elapsed_millis(connected_at));
            client.fetch_all().await?;
        }
        Ok(client)
    }

    async fn fetch_all(&mut self) -> Result<(), Error> {
        loop {
            match self.fetch.next(elapsed_millis(self.connected_at)) {
                FetchStep::Done => return Ok(()),
                FetchStep::Request(hosts) => self.request(&hosts),
                FetchStep::Listen(until) => {
                    let until = Duration::from_millis(until.cast_unsigned());
                    self.next_update(self.connected_at + until).await?;
                }
            }
        }
    }

    /// Fetches all topics of one host, until the broker is silent.
    ///
    /// # Errors
    /// [`Error::Failed`]: why the connection broke.
    pub async fn fetch_host(&mut self, host: &HostName) -> Result<(), Error> {
        self.request([host]);
        while self.next_update(Instant::now() + self.fetch.idle_timeout()).await?.is_some() {}
        Ok(())
    }

    fn request<'a>(&mut self, hosts: impl IntoIterator<Item = &'a HostName>) {
        let topics = hosts.into_iter().flat_map(|host| self.fetch.topics(host));
        let topics: Vec<_> = topics.map(|topic| self.topic.retained(&topic)).collect();
        if !topics.is_empty() {
            self.link.subscribe(&topics);
        }
    }

    /// The state of the fleet that has arrived so far.
    #[must_use]
    pub fn view(&self) -> &FleetView {
        &self.fetch.view
    }

    /// Moves the view out; the client keeps an empty view.
    #[must_use]
    pub fn take_view(&mut self) -> FleetView {
        std::mem::take(&mut self.fetch.view)
    }

    /// Waits for the next message; `None` if none arrives until `until`.
    ///
    /// # Errors
    /// [`Error::Failed`]: why the connection broke.
    pub async fn next_update(&mut self, until: Instant) -> Result<Option<Update>, Error> {
        let remaining = until.saturating_duration_since(Instant::now());
        let Ok(event) = timeout(remaining, self.link.event()).await else { return Ok(None) };
        let update = self.handle(event)?;
        // A snapshot that grew has shards that were not requested yet.
        if let Update::Shard(_) = update {
            let new_shards = self.fetch.new_shards();
            self.request(&new_shards);
        }
        Ok(Some(update))
    }

    fn handle(&mut self, event: LinkEvent) -> Result<Update, Error> {
        match event {
            LinkEvent::Message(message) => {
                let time = now_millis();
                Ok(self.fetch.apply(&message, elapsed_millis(self.connected_at), time))
            }
            LinkEvent::SubscribeRejected(_) => Err(subscription_error(&self.topic)),
            LinkEvent::Lost { broker, why, .. } => Err(connection_error(&broker, &why)),
            // The view still knows that the broker keeps a message there, so that `forget` clears the topic.
            LinkEvent::Rejected(rejected) => {
                if let (Some(host), Some(number)) = (rejected.host(), rejected.shard()) {
                    self.fetch.view.reject(host, number);
                }
                Ok(Update::Nothing)
            }
            LinkEvent::Connected(_) | LinkEvent::Published(_) | LinkEvent::QosLowered => {
                Ok(Update::Nothing)
            }
        }
    }

    /// Publishes, and waits until the broker acknowledges all messages.
    ///
    /// # Errors
    /// [`Error::Failed`], also after a timeout.
    pub async fn publish(&mut self, messages: &[Message]) -> Result<(), Error> {
        let until = Instant::now() + PUBLISH_TIMEOUT;
        let mut unacknowledged: BTreeSet<String> = BTreeSet::new();
        let mut unsent = messages.iter().enumerate();
        loop {
            while self.link.capacity() > 0 {
                let Some((number, message)) = unsent.next() else { break };
                self.send(number.to_string(), message);
                unacknowledged.insert(number.to_string());
            }
            if unacknowledged.is_empty() {
                return Ok(());
            }
            let remaining = until.saturating_duration_since(Instant::now());
            match timeout(remaining, self.link.event()).await {
                Ok(LinkEvent::Published(name)) => drop(unacknowledged.remove(&name)),
                Ok(event) => drop(self.handle(event)?),
                Err(_) => {
                    let limit = PUBLISH_TIMEOUT.as_secs();
                    let why = format!("no acknowledgement within {limit} s");
                    return Err(connection_error(&self.broker, why));
                }
            }
        }
    }

    /// Hands one message to the link, under a name that its acknowledgement repeats.
    fn send(&mut self, name: String, message: &Message) {
        match message {
            Message::Event(topic, text) => {
                self.link.publish(name, self.topic.event(topic), text.clone().into_bytes());
            }
            Message::Keep(topic, text) => {
                self.link.publish_retained_tracked(
                    name,
                    self.topic.retained(topic),
                    text.clone().into_bytes(),
                );
            }
            Message::Clear(topic) => {
                self.link.publish_retained_tracked(name, topic.clone(), Vec::new());
            }
        }
    }

    /// Disconnects.
    pub async fn end(mut self) {
        if self.link.close() {
            let lost =
                async { while !matches!(self.link.event().await, LinkEvent::Lost { .. }) {} };
            let _ = timeout(DISCONNECT_TIMEOUT, lost).await;
        }
    }
}

/// The options of a command's connection. The client ID is random, so that it takes over no other connection.
#[must_use]
pub fn client_options(config: &Config, topics: Vec<String>) -> ClientOptions {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "any number will do"
    )]
    let number = (jitter::chance() * f64::from(u32::MAX)) as u32;
    let id = format!("f2bmqtt-{}-{number:08x}", config.node);
    ClientOptions { id, persistent: false, topics, others: Vec::new(), will: None }
}

/// The first subscriptions of a fetch.
#[must_use]
pub fn initial_topics(topic: &Topic) -> Vec<String> {
    SnapshotFetch::INITIAL_TOPICS.map(|name| topic.retained(name)).into()
}

/// Tries each broker once.
async fn connect_to_any(link: &mut MqttLink, config: &Config) -> Result<Broker, Error> {
    let mut tried = 0;
    loop {
        match link.event().await {
            LinkEvent::Connected(broker) => return Ok(broker),
            LinkEvent::Lost { broker, why, .. } => {
                tried += 1;
                if tried >= config.brokers.len() {
                    return Err(connection_error(&broker, &why));
                }
            }
            _ => {}
        }
    }
}

fn connection_error(broker: &Broker, why: impl std::fmt::Display) -> Error {
    Error::Failed(format!("no connection to the broker {broker}: {why}"))
}

fn subscription_error(topic: &Topic) -> Error {
    let topic = topic.retained("#");
    Error::Failed(format!(
        "the broker refuses the subscription to {topic}. Check the broker's access rules"
    ))
}

fn elapsed_millis(since: Instant) -> i64 {
    i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX)
}
