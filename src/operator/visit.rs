//! One command's visit to the broker: a connection of its own, which leaves nothing behind, beside the
//! daemon's, which it does not disturb.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::gather::{FetchStep, SnapshotFetch};
use super::local;
use super::view::{FleetView, Update};
use crate::broker::{ClientOptions, LinkEvent, MqttLink};
use crate::clock::now_millis;
use crate::config::{Broker, Config, Topic};
use crate::error::Error;
use crate::paths::Paths;
use crate::random;
use crate::wire::HostName;

/// The longest that a broker may take to acknowledge what it was sent.
const ACKNOWLEDGE: Duration = Duration::from_secs(10);

/// How long a good-bye may take.
const GOODBYE: Duration = Duration::from_millis(300);

/// What is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// An event: below the fleet's topic, and its text.
    Event(&'static str, String),
    /// What is to be kept on a topic of the fleet's retained branch from now on: nothing any more, if it is empty.
    Keep(String, String),
    /// Nothing is to be kept any more on a topic that is not the fleet's.
    Clear(String),
}

/// A visit.
#[derive(Debug)]
pub struct FleetClient {
    topic: Topic,
    link: MqttLink,
    began: Instant,
    gathering: SnapshotFetch,
    /// Which broker it is.
    pub broker: Broker,
}

impl FleetClient {
    /// Connects and gathers what the broker has of the fleet.
    ///
    /// # Errors
    /// [`Error::Undone`]: why there is no connection.
    pub async fn begin(config: &Config, paths: &Paths) -> Result<Self, Error> {
        let mut link = MqttLink::new(config, client(config, first(&config.topic)));
        let began = Instant::now();
        let broker = connect(&mut link, config).await?;
        let gathering = SnapshotFetch::new(config.signing.is_some(), millis(began), millis(began));
        let topic = config.topic.clone();
        let mut visit = Self { topic, link, began, gathering, broker };
        visit.gather().await?;
        if !visit.view().hosts().contains_key(&config.node) {
            // It keeps at least what this host says of itself: it may hand out nothing for a wildcard.
            visit.ask(&local::hosts(config, paths));
            visit.gathering.requested(millis(began));
            visit.gather().await?;
        }
        Ok(visit)
    }

    async fn gather(&mut self) -> Result<(), Error> {
        loop {
            match self.gathering.next(millis(self.began)) {
                FetchStep::Done => return Ok(()),
                FetchStep::Ask(hosts) => self.ask(&hosts),
                FetchStep::Listen(until) => {
                    let until = Duration::from_millis(until.cast_unsigned());
                    self.next_update(self.began + until).await?;
                }
            }
        }
    }

    /// Asks for all that the broker has of one host, and listens until it falls silent.
    ///
    /// # Errors
    /// [`Error::Undone`]: why the connection broke.
    pub async fn fetch_host(&mut self, host: &HostName) -> Result<(), Error> {
        self.ask([host]);
        while self.next_update(Instant::now() + self.gathering.idle_timeout()).await?.is_some() {}
        Ok(())
    }

    fn ask<'a>(&mut self, hosts: impl IntoIterator<Item = &'a HostName>) {
        let topics = hosts.into_iter().flat_map(|host| self.gathering.topics(host));
        let topics: Vec<_> = topics.map(|topic| self.topic.retained(&topic)).collect();
        if !topics.is_empty() {
            self.link.subscribe(&topics);
        }
    }

    /// The fleet, as far as it was heard.
    #[must_use]
    pub fn view(&self) -> &FleetView {
        &self.gathering.view
    }

    /// The same, for good: nothing is heard after it.
    #[must_use]
    pub fn take_view(&mut self) -> FleetView {
        std::mem::take(&mut self.gathering.view)
    }

    /// Waits for the next message; `None` where none came until then.
    ///
    /// # Errors
    /// [`Error::Undone`]: why the connection broke.
    pub async fn next_update(&mut self, until: Instant) -> Result<Option<Update>, Error> {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(event) = timeout(left, self.link.event()).await else { return Ok(None) };
        let heard = self.take(event)?;
        // A snapshot may grow meanwhile.
        if let Update::Shard(_) = heard {
            let grown = self.gathering.new_shards();
            self.ask(&grown);
        }
        Ok(Some(heard))
    }

    fn take(&mut self, event: LinkEvent) -> Result<Update, Error> {
        match event {
            LinkEvent::Message(message) => {
                let time = now_millis();
                Ok(self.gathering.hear(&message, millis(self.began), time))
            }
            LinkEvent::SubscribeRefused(_) => Err(refused(&self.topic)),
            LinkEvent::Lost { broker, why } => Err(lost(&broker, &why)),
            // The gate's counters are the daemon's.
            LinkEvent::Refused(rejected) => {
                if let (Some(host), Some(number)) = (rejected.host(), rejected.shard()) {
                    self.gathering.view.reject(host, number);
                }
                Ok(Update::Nothing)
            }
            LinkEvent::Connected(_) | LinkEvent::Published(_) | LinkEvent::QosLowered => {
                Ok(Update::Nothing)
            }
        }
    }

    /// Publishes, and waits until the broker has all of it.
    ///
    /// # Errors
    /// [`Error::Undone`], also where it takes too long.
    pub async fn publish(&mut self, messages: &[Message]) -> Result<(), Error> {
        let until = Instant::now() + ACKNOWLEDGE;
        let mut waiting: BTreeSet<String> = BTreeSet::new();
        let mut left = messages.iter().enumerate();
        loop {
            while self.link.capacity() > 0 {
                let Some((number, message)) = left.next() else { break };
                self.hand_over(number.to_string(), message);
                waiting.insert(number.to_string());
            }
            if waiting.is_empty() {
                return Ok(());
            }
            let rest = until.saturating_duration_since(Instant::now());
            match timeout(rest, self.link.event()).await {
                Ok(LinkEvent::Published(name)) => drop(waiting.remove(&name)),
                Ok(event) => drop(self.take(event)?),
                Err(_) => {
                    let limit = ACKNOWLEDGE.as_secs();
                    let why = format!("no acknowledgement within {limit} s");
                    return Err(lost(&self.broker, why));
                }
            }
        }
    }

    /// All that the operator's commands publish goes out here.
    fn hand_over(&mut self, name: String, message: &Message) {
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

    /// Says good-bye.
    pub async fn end(mut self) {
        if self.link.close() {
            let gone =
                async { while !matches!(self.link.event().await, LinkEvent::Lost { .. }) {} };
            let _ = timeout(GOODBYE, gone).await;
        }
    }
}

/// How a command presents itself: under a name of its own each time, so that it takes no other's place.
#[must_use]
pub fn client(config: &Config, topics: Vec<String>) -> ClientOptions {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "any number will do"
    )]
    let number = (random::chance() * f64::from(u32::MAX)) as u32;
    let id = format!("f2bmqtt-{}-{number:08x}", config.node);
    ClientOptions { id, persistent: false, topics, others: Vec::new(), will: None }
}

/// What is subscribed to first.
#[must_use]
pub fn first(topic: &Topic) -> Vec<String> {
    SnapshotFetch::FIRST.map(|name| topic.retained(name)).into()
}

/// Tries each broker once.
async fn connect(link: &mut MqttLink, config: &Config) -> Result<Broker, Error> {
    let mut tried = 0;
    loop {
        match link.event().await {
            LinkEvent::Connected(broker) => return Ok(broker),
            LinkEvent::Lost { broker, why } => {
                tried += 1;
                if tried >= config.brokers.len() {
                    return Err(lost(&broker, &why));
                }
            }
            _ => {}
        }
    }
}

fn lost(broker: &Broker, why: impl std::fmt::Display) -> Error {
    Error::Undone(format!("no connection to the broker {broker}: {why}"))
}

/// The broker lets nobody of this login look.
fn refused(topic: &Topic) -> Error {
    let topic = topic.retained("#");
    Error::Undone(format!(
        "the broker refuses the subscription to {topic}. Check the broker's access rules"
    ))
}

fn millis(since: Instant) -> i64 {
    i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX)
}
