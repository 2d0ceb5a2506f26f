//! The gate: the only way in for a message. It checks topic, size and signature before any parser runs. Only the gate
//! creates an [`Admitted`], so the compiler prevents code from acting on an unchecked message. Pure.

use std::fmt;

use super::RejectReason;
use crate::config::{Signing, Topic};
use crate::model::HostName;
use crate::model::text::is_unsafe_for_display;
use crate::wire::signature::SignatureStatus;
use crate::wire::{
    Event, FleetUnban, MAX_EVENT_BYTES, MAX_PRESENCE_BYTES, MAX_SHARD_BYTES, MAX_SHARDS, Malformed,
    Presence, Shard,
};

/// The longest topic that is printed.
const MAX_SHOWN_CHARS: usize = 100;

/// Decides which messages a client accepts.
#[derive(Clone, Debug)]
pub struct Gate {
    topic: Topic,
    me: HostName,
    signing: Option<Signing>,
    /// Topics besides the fleet's that this client subscribes to, without wildcards.
    others: Vec<String>,
}

/// The kind and the origin of a message, by its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An event, which any host may publish; its payload names the host.
    Event,
    /// One shard of a host's snapshot.
    Shard {
        /// The host of the branch, which the payload must match.
        host: HostName,
        /// The last level of its topic.
        index: u32,
    },
    /// The presence of a host.
    Presence {
        /// The host of the topic.
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
    /// Safe to print.
    topic: String,
    me: HostName,
}

/// A message that was rejected, and why.
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

    /// Checks a message that was received on a topic.
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn admit(&self, topic: &str, payload: Vec<u8>) -> Result<Admitted, Rejected> {
        let shown = printable_topic(topic);
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

    /// Classifies a topic; also returns the topic that the sender published on and signed.
    fn classify(&self, received: &str) -> Result<(Source, String), String> {
        // RabbitMQ replaces each dot in a topic by a slash.
        let with_slashes = received.replace('.', "/");
        let mut others = self.others.iter();
        if let Some(other) = others.find(|other| other.replace('.', "/") == with_slashes) {
            return Ok((Source::Other(other.clone()), other.clone()));
        }
        if let Some(topic) = self.topic.of_event(received) {
            return Ok((Source::Event, topic));
        }
        let Some(below) = self.topic.retained_below(received) else {
            return Err("the topic is not below MQTT_TOPIC".to_owned());
        };
        match below.split_once('/') {
            Some(("host", host)) => {
                let host = parse_host(host)?;
                let topic = self.topic.presence(&host);
                Ok((Source::Presence { host }, topic))
            }
            Some(("state", rest)) => {
                let (host, digits) = rest.rsplit_once('/').unwrap_or((rest, ""));
                let index = parse_index(digits).ok_or("the topic has no shard number")?;
                let host = parse_host(host)?;
                let topic = self.topic.shard(&host, index);
                Ok((Source::Shard { host, index }, topic))
            }
            _ => Err("the topic is neither for presence nor for snapshots".to_owned()),
        }
    }

    /// Whether a message is trusted: its signature is valid, or the fleet has no key. `Err`: why it is rejected.
    fn verify(
        &self,
        source: &Source,
        topic: &str,
        payload: &[u8],
    ) -> Result<bool, (RejectReason, String)> {
        let max = match source {
            Source::Event => MAX_EVENT_BYTES,
            Source::Shard { .. } => MAX_SHARD_BYTES,
            // `check` publishes a message as large as a shard to itself.
            Source::Presence { .. } | Source::Other(_) => MAX_PRESENCE_BYTES,
        };
        if payload.len() > max {
            let why = format!("{} bytes exceed the limit of {max} bytes", payload.len());
            return Err((RejectReason::TooLarge, why));
        }
        let Some(signing) = &self.signing else { return Ok(true) };
        // An empty payload clears a retained topic, and cannot be signed.
        if payload.is_empty() || matches!(source, Source::Other(_)) {
            return Ok(false);
        }
        let has_own_name = source.host() == Some(&self.me);
        match signing.keys.check(topic, payload) {
            SignatureStatus::Valid => Ok(true),
            SignatureStatus::Missing if !signing.accept_unsigned => {
                let why = "the message is not signed, and this host has MQTT_SIGNING_KEY";
                Err((RejectReason::Unsigned, why.to_owned()))
            }
            SignatureStatus::Missing if has_own_name => {
                Err((RejectReason::Unsigned, UNSIGNED_OWN_MESSAGE.to_owned()))
            }
            SignatureStatus::Missing => Ok(false),
            SignatureStatus::Invalid => {
                let why = "the signature does not match: another key, another topic, or a changed message";
                Err((RejectReason::WrongSignature, why.to_owned()))
            }
        }
    }
}

/// Why the gate rejects an unsigned message although the settings accept unsigned messages.
const UNSIGNED_OWN_MESSAGE: &str =
    "the message has this host's name but no signature, and this host signs all its messages";
const UNSIGNED_FLEET_UNBAN: &str = "the fleet unban is not signed";

/// Parses the host in a topic. A host name is one level of the topic, so a slash in it was a dot.
fn parse_host(text: &str) -> Result<HostName, String> {
    HostName::new(&text.replace('/', ".")).map_err(|why| format!("the host in the topic {why}"))
}

/// Parses the number of a shard; only its canonical spelling is valid.
fn parse_index(digits: &str) -> Option<u32> {
    let index = digits.parse::<u32>().ok().filter(|index| *index < MAX_SHARDS)?;
    (index.to_string() == digits).then_some(index)
}

/// A topic as it is printed: escaped, and cut.
fn printable_topic(topic: &str) -> String {
    let mut text = String::new();
    for c in topic.chars().take(MAX_SHOWN_CHARS) {
        if is_unsafe_for_display(c) {
            text.extend(c.escape_unicode());
        } else {
            text.extend(c.escape_debug());
        }
    }
    text.chars().take(MAX_SHOWN_CHARS).collect()
}

impl Source {
    /// The host in whose branch the topic is.
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
    /// The kind and the origin of the message.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The bytes of the message.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Whether the signature is valid, or the fleet has no key. Invariant: this host puts nothing into a signed message
    /// that it learned from an untrusted one.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// Parses an event. A fleet unban, or an event with this host's name, must be trusted.
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
            event if event.id.is_some() => UNSIGNED_FLEET_UNBAN,
            event if event.host == self.me => UNSIGNED_OWN_MESSAGE,
            _ => return Ok(event),
        };
        Err(self.reject(RejectReason::Unsigned, WHAT, why.to_owned()))
    }

    /// Parses a shard. If the shard is untrusted, only the fleet unbans that `is_known` accepts stay in it.
    ///
    /// # Errors
    /// [`Rejected`]
    pub fn shard(&self, is_known: impl Fn(&FleetUnban) -> bool) -> Result<Shard, Rejected> {
        const WHAT: &str = "shard";
        let mut shard = Shard::parse(&self.payload).map_err(|why| self.malformed(WHAT, &why))?;
        let (host, index) = (shard.host.clone(), shard.id.index());
        if self.source != (Source::Shard { host, index }) {
            let why = "host or shard number differ from the topic".to_owned();
            return Err(self.reject(RejectReason::WrongTopic, WHAT, why));
        }
        if !self.trusted {
            shard.unbans.retain(is_known);
        }
        Ok(shard)
    }

    /// Parses a presence.
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

    /// Rejects the message because of its content.
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
    /// The reason that is counted.
    #[must_use]
    pub fn reason(&self) -> RejectReason {
        self.reason
    }

    /// The topic, safe to print.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The host in whose branch the topic is.
    #[must_use]
    pub fn host(&self) -> Option<&HostName> {
        self.host.as_ref()
    }

    /// The shard of that host, by the topic.
    #[must_use]
    pub fn shard(&self) -> Option<u32> {
        self.shard
    }

    /// Which own shard of this host the message replaced on the broker.
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
