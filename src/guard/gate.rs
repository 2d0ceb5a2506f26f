//! The one way in. Topic, size and signature of each message are decided here, before a parser sees it, and
//! nothing else makes an [`Admitted`]: so the compiler keeps any code from acting on a message that was not
//! checked. Pure.

use std::fmt;

use super::RejectReason;
use crate::config::{Signing, Topic};
use crate::text::is_unsafe_for_display;
use crate::wire::seal::SignatureStatus;
use crate::wire::{
    Event, FleetUnban, HostName, MAX_EVENT_BYTES, MAX_PRESENCE_BYTES, MAX_SHARD_BYTES, MAX_SHARDS,
    Malformed, Presence, Shard,
};

/// The longest topic that is printed, in characters.
const MAX_SHOWN: usize = 100;

/// Decides which messages a client takes.
#[derive(Clone, Debug)]
pub struct Gate {
    topic: Topic,
    me: HostName,
    signing: Option<Signing>,
    /// What this client subscribes to besides the fleet's topics, exact.
    others: Vec<String>,
}

/// Where in the fleet a message belongs, by its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An event.
    Event,
    /// One shard of a host's snapshot.
    Shard {
        /// Whose.
        host: HostName,
        /// The last level of its topic.
        index: u32,
    },
    /// The presence of a host.
    Presence {
        /// Whose.
        host: HostName,
    },
    /// Another topic that this client subscribed to.
    Other(String),
}

/// A message that passed the [`Gate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    source: Source,
    payload: Vec<u8>,
    trusted: bool,
    /// Fit to be printed.
    topic: String,
    me: HostName,
}

/// A message that did not pass, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    reason: RejectReason,
    topic: String,
    what: &'static str,
    why: String,
    host: Option<HostName>,
    shard: Option<u32>,
    own_shard: Option<u32>,
}

impl Gate {
    /// The gate of a client of the host `me`, which also subscribes to the topics `others`.
    #[must_use]
    pub fn new(topic: Topic, me: HostName, signing: Option<Signing>, others: Vec<String>) -> Self {
        Self { topic, me, signing, others }
    }

    /// Decides on a message that came on a topic.
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn admit(&self, topic: &str, payload: Vec<u8>) -> Result<Admitted, Rejected> {
        let shown = shown(topic);
        let (source, topic) = self.classify(topic).map_err(|why| Rejected {
            reason: RejectReason::WrongTopic,
            topic: shown.clone(),
            what: "message",
            why,
            host: None,
            shard: None,
            own_shard: None,
        })?;
        match self.verify(&source, &topic, &payload) {
            Ok(trusted) => {
                Ok(Admitted { source, payload, trusted, topic: shown, me: self.me.clone() })
            }
            Err((reason, why)) => Err(Rejected {
                reason,
                topic: shown,
                what: "message",
                why,
                own_shard: source.own_shard(&self.me),
                shard: source.shard(),
                host: source.host().cloned(),
            }),
        }
    }

    /// Where a topic belongs, and the one that the message was published and signed on.
    fn classify(&self, came: &str) -> Result<(Source, String), String> {
        // RabbitMQ makes a slash of each dot.
        let same = |other: &&String| other.replace('.', "/") == came.replace('.', "/");
        if let Some(other) = self.others.iter().find(same) {
            return Ok((Source::Other(other.clone()), other.clone()));
        }
        if let Some(topic) = self.topic.of_event(came) {
            return Ok((Source::Event, topic));
        }
        let Some(below) = self.topic.retained_below(came) else {
            return Err("the topic is not below MQTT_TOPIC".to_owned());
        };
        // A host name is one level, whatever became of its dots.
        let named = |host: &str| {
            HostName::new(&host.replace('/', "."))
                .map_err(|why| format!("the host in the topic {why}"))
        };
        match below.split_once('/') {
            Some(("host", host)) => {
                let host = named(host)?;
                let topic = self.topic.presence(&host);
                Ok((Source::Presence { host }, topic))
            }
            Some(("state", rest)) => {
                let (host, digits) = rest.rsplit_once('/').unwrap_or((rest, ""));
                let index = index(digits).ok_or("the topic has no shard number")?;
                let host = named(host)?;
                let topic = self.topic.shard(&host, index);
                Ok((Source::Shard { host, index }, topic))
            }
            _ => Err("the topic is neither for presence nor for snapshots".to_owned()),
        }
    }

    /// Whether a message is verified, or the fleet has no key; or why it is not taken at all.
    fn verify(
        &self,
        source: &Source,
        topic: &str,
        payload: &[u8],
    ) -> Result<bool, (RejectReason, String)> {
        let max = match source {
            Source::Event => MAX_EVENT_BYTES,
            Source::Shard { .. } => MAX_SHARD_BYTES,
            // `check` has a message as large as a shard come back.
            Source::Presence { .. } | Source::Other(_) => MAX_PRESENCE_BYTES,
        };
        if payload.len() > max {
            let why = format!("{} bytes exceed the limit of {max} bytes", payload.len());
            return Err((RejectReason::TooLarge, why));
        }
        let Some(signing) = &self.signing else { return Ok(true) };
        // An empty payload clears a topic, and cannot be signed.
        if payload.is_empty() || matches!(source, Source::Other(_)) {
            return Ok(false);
        }
        let own = source.host() == Some(&self.me);
        match signing.keys.check(topic, payload) {
            SignatureStatus::Valid => Ok(true),
            SignatureStatus::Missing if !signing.accept_unsigned => {
                let why = "the message is not signed, and this host has MQTT_SIGNING_KEY";
                Err((RejectReason::Unsigned, why.to_owned()))
            }
            SignatureStatus::Missing if own => Err((RejectReason::Unsigned, OWN.to_owned())),
            SignatureStatus::Missing => Ok(false),
            SignatureStatus::Invalid => {
                let why = "the signature does not match: another key, another topic, or a changed message";
                Err((RejectReason::WrongSignature, why.to_owned()))
            }
        }
    }
}

/// Why a message is rejected although unsigned ones are accepted.
const OWN: &str =
    "the message has this host's name but no signature, and this host signs all its messages";
const UNBAN: &str = "the fleet unban is not signed";

/// The number of a shard, in its one spelling.
fn index(digits: &str) -> Option<u32> {
    let index = digits.parse::<u32>().ok().filter(|index| *index < MAX_SHARDS)?;
    (index.to_string() == digits).then_some(index)
}

fn shown(topic: &str) -> String {
    let mut text = String::new();
    for c in topic.chars().take(MAX_SHOWN) {
        if is_unsafe_for_display(c) {
            text.extend(c.escape_unicode());
        } else {
            text.extend(c.escape_debug());
        }
    }
    text.chars().take(MAX_SHOWN).collect()
}

impl Source {
    /// The host in whose branch it is.
    #[must_use]
    pub fn host(&self) -> Option<&HostName> {
        match self {
            Self::Shard { host, .. } | Self::Presence { host } => Some(host),
            Self::Event | Self::Other(_) => None,
        }
    }

    fn shard(&self) -> Option<u32> {
        match self {
            Self::Shard { index, .. } => Some(*index),
            _ => None,
        }
    }

    fn own_shard(&self, me: &HostName) -> Option<u32> {
        self.shard().filter(|_| self.host() == Some(me))
    }
}

impl Admitted {
    /// Where it belongs.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Its bytes.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Whether its signature is good, or the fleet has no key. **Nothing that was learned from any other
    /// message may appear in a signed one.**
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// The event that it is. A fleet unban and what is in this host's own name have to be trusted.
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn event(&self) -> Result<Event, Rejected> {
        const WHAT: &str = "event";
        if self.source != Source::Event {
            return Err(self.misplaced(WHAT));
        }
        let event = Event::parse(&self.payload).map_err(|why| self.malformed(WHAT, &why))?;
        let why = match &event {
            _ if self.trusted => return Ok(event),
            event if event.id.is_some() => UNBAN,
            event if event.host == self.me => OWN,
            _ => return Ok(event),
        };
        Err(self.reject(RejectReason::Unsigned, WHAT, why.to_owned()))
    }

    /// The shard that it is. Of an unsigned one only those fleet unbans are left that `is_known` knows.
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn shard(&self, is_known: impl Fn(&FleetUnban) -> bool) -> Result<Shard, Rejected> {
        const WHAT: &str = "shard";
        let mut part = Shard::parse(&self.payload).map_err(|why| self.malformed(WHAT, &why))?;
        let (host, index) = (part.host.clone(), part.id.index());
        if self.source != (Source::Shard { host, index }) {
            let why = "host or shard number differ from the topic".to_owned();
            return Err(self.reject(RejectReason::WrongTopic, WHAT, why));
        }
        if !self.trusted {
            part.unbans.retain(is_known);
        }
        Ok(part)
    }

    /// The presence that it is.
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn presence(&self) -> Result<Presence, Rejected> {
        const WHAT: &str = "presence";
        if !matches!(self.source, Source::Presence { .. }) {
            return Err(self.misplaced(WHAT));
        }
        Presence::parse(&self.payload).map_err(|why| self.malformed(WHAT, &why))
    }

    /// Rejects it for what is in it.
    #[must_use]
    pub fn reject(&self, reason: RejectReason, what: &'static str, why: String) -> Rejected {
        let (host, shard) = (self.source.host().cloned(), self.source.shard());
        let own_shard = self.source.own_shard(&self.me);
        Rejected { reason, topic: self.topic.clone(), what, why, host, shard, own_shard }
    }

    fn misplaced(&self, what: &'static str) -> Rejected {
        self.reject(
            RejectReason::WrongTopic,
            what,
            "wrong kind of message for the topic".to_owned(),
        )
    }

    fn malformed(&self, what: &'static str, why: &Malformed) -> Rejected {
        self.reject(RejectReason::Malformed, what, why.to_string())
    }
}

impl Rejected {
    /// The reason.
    #[must_use]
    pub fn reason(&self) -> RejectReason {
        self.reason
    }

    /// Its topic, fit to be printed.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The host in whose branch it is.
    #[must_use]
    pub fn host(&self) -> Option<&HostName> {
        self.host.as_ref()
    }

    /// The shard in that branch on whose topic it is.
    #[must_use]
    pub fn shard(&self) -> Option<u32> {
        self.shard
    }

    /// Which of this host's own shards it took the place of.
    #[must_use]
    pub fn own_shard(&self) -> Option<u32> {
        self.own_shard
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let invalid = if self.reason == RejectReason::Malformed { "invalid " } else { "" };
        write!(f, "rejected {invalid}{} on {}: {}", self.what, self.topic, self.why)
    }
}

#[cfg(test)]
pub(crate) mod tests;
