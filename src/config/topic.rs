//! Makes all topics of a fleet: events are below `MQTT_TOPIC`, and retained messages below
//! `f2bmqtt/MQTT_TOPIC`. Hosts that run the scripts subscribe to the first and never get the second.

use crate::model::HostName;

/// With this limit, `f2bmqtt/<topic>/state/<host>/<index>` stays far below MQTT's 65,535 bytes.
const MAX_TOPIC_BYTES: usize = 200;

/// The first level of all retained topics.
const RETAINED_ROOT: &str = "f2bmqtt";

/// A topic that can be published to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic(String);

impl Topic {
    /// Checks that a topic can be published to (MQTT 3.1.1, §4.7: no wildcards, no NUL).
    ///
    /// # Errors
    /// The end of a sentence that starts with the setting's name.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.contains(['+', '#']) {
            return Err("must not have + or #, which are wildcards".to_owned());
        }
        if text.len() > MAX_TOPIC_BYTES || text.contains(char::is_control) || text.starts_with('$')
        {
            return Err(format!(
                "must be a topic of at most {MAX_TOPIC_BYTES} bytes without control characters, and must not \
                 begin with $"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// Checks the topic of a fleet. Below `f2bmqtt/` it could be the retained branch of another fleet.
    ///
    /// # Errors
    /// As [`Topic::new`].
    pub fn of_fleet(text: &str) -> Result<Self, String> {
        let topic = Self::new(text)?;
        if text == RETAINED_ROOT || text.starts_with("f2bmqtt/") {
            return Err(format!(
                "must not be {RETAINED_ROOT} or begin with {RETAINED_ROOT}/, which holds the snapshots and presence \
                 of all fleets"
            ));
        }
        Ok(topic)
    }

    /// The topic as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The topic `name` below this one.
    #[must_use]
    pub fn below(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    /// The topic of an action's events.
    #[must_use]
    pub fn event(&self, action: &str) -> String {
        self.below(action)
    }

    /// The filter for all events: the scripts publish on any topic below the fleet's.
    #[must_use]
    pub fn events(&self) -> String {
        self.below("#")
    }

    /// The topic of a host's presence.
    #[must_use]
    pub fn presence(&self, host: &HostName) -> String {
        self.retained(&format!("host/{host}"))
    }

    /// The filter for all presences. It ends with `#`, not `+`, because `RabbitMQ` turns dots in a host's name into
    /// levels.
    #[must_use]
    pub fn presences(&self) -> String {
        self.retained("host/#")
    }

    /// Filters for the presences of any fleet whose topic has one or two levels.
    #[must_use]
    pub fn any_presences() -> [String; 2] {
        ["+", "+/+"].map(|topic| format!("{RETAINED_ROOT}/{topic}/host/+"))
    }

    /// The topic of the fleet that a presence's topic belongs to.
    #[must_use]
    pub fn of_presence(presence: &str) -> Option<&str> {
        let (topic, host) =
            presence.strip_prefix(RETAINED_ROOT)?.strip_prefix('/')?.rsplit_once("/host/")?;
        (!topic.is_empty() && !host.is_empty() && !host.contains('/')).then_some(topic)
    }

    /// The topic of one shard of a host's snapshot.
    #[must_use]
    pub fn shard(&self, host: &HostName, index: u32) -> String {
        self.retained(&format!("state/{host}/{index}"))
    }

    /// The filter for a host's whole snapshot.
    #[must_use]
    pub fn shards(&self, host: &HostName) -> String {
        self.retained(&format!("state/{host}/+"))
    }

    /// The topic or filter `name` in the retained branch: `host/web1`, `state/web1/+`.
    #[must_use]
    pub fn retained(&self, name: &str) -> String {
        format!("{RETAINED_ROOT}/{}/{name}", self.0)
    }

    /// Both branches, for messages about access rules.
    #[must_use]
    pub fn branches(&self) -> String {
        format!("{} and {}", self.events(), self.retained("#"))
    }

    /// Whether a topic is in one of the two branches.
    #[must_use]
    pub fn is_fleet_topic(&self, topic: &str) -> bool {
        self.of_event(topic).is_some() || self.retained_below(topic).is_some()
    }

    /// The topic on which an event was published, derived from the topic on which it arrived.
    pub(crate) fn of_event(&self, received: &str) -> Option<String> {
        let rest = strip(received, &self.0)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{}{rest}", self.0))
    }

    /// The rest of a topic below the retained branch.
    pub(crate) fn retained_below<'a>(&self, topic: &'a str) -> Option<&'a str> {
        let rest = topic.strip_prefix(RETAINED_ROOT)?.strip_prefix('/')?;
        strip(rest, &self.0)?.strip_prefix('/')
    }
}

/// The rest of a topic after a prefix. `RabbitMQ` replaces slashes by dots when a message comes in, and every dot by a
/// slash when the message goes out.
fn strip<'a>(topic: &'a str, prefix: &str) -> Option<&'a str> {
    topic.strip_prefix(prefix).or_else(|| topic.strip_prefix(&prefix.replace('.', "/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_of_another_fleet_is_in_neither_branch() {
        let (topic, host) = (Topic::of_fleet("blacklist").unwrap(), HostName::new("web1").unwrap());
        assert_eq!(topic.event("ban"), "blacklist/ban");
        assert_eq!(topic.events(), "blacklist/#");
        assert_eq!(topic.presence(&host), "f2bmqtt/blacklist/host/web1");
        assert_eq!(topic.presences(), "f2bmqtt/blacklist/host/#");
        assert_eq!(topic.shard(&host, 3), "f2bmqtt/blacklist/state/web1/3");
        assert_eq!(topic.shards(&host), "f2bmqtt/blacklist/state/web1/+");
        assert_eq!(topic.branches(), "blacklist/# and f2bmqtt/blacklist/#");
        let table = [
            ("blacklist", true, None),
            ("blacklist/", true, None),
            ("blacklist/ban", true, None),
            ("blacklist/a//b", true, None),
            ("blacklistx/ban", false, None),
            ("f2bmqtt/blacklist/host/web1", false, Some("host/web1")),
            ("f2bmqtt/blacklist", false, None),
            ("f2bmqtt/blacklistx/host/web1", false, None),
            ("f2bmqttx/blacklist/host/web1", false, None),
            ("blacklist/f2bmqtt/host/web1", true, None),
        ];
        for (text, is_event, retained) in table {
            assert_eq!(topic.of_event(text), is_event.then(|| text.to_owned()));
            assert_eq!(topic.retained_below(text), retained, "{text}");
        }
        let table = [
            ("f2bmqtt/black/host/web1", Some("black")),
            ("f2bmqtt/a/b/host/web1", Some("a/b")),
            ("f2bmqtt/host/web1", None),
            ("f2bmqtt/a/state/web1/0", None),
            ("a/host/web1", None),
        ];
        for (text, fleet) in table {
            assert_eq!(Topic::of_presence(text), fleet, "{text}");
        }
        let dotted = Topic::of_fleet("black.list").unwrap();
        assert_eq!(dotted.of_event("black/list/ban").unwrap(), "black.list/ban");
        assert_eq!(dotted.retained_below("f2bmqtt/black/list/host/a"), Some("host/a"));
    }

    #[test]
    fn topic_in_the_retained_branch_is_rejected() {
        for text in ["f2bmqtt", "f2bmqtt/", "f2bmqtt/blacklist"] {
            assert!(Topic::of_fleet(text).unwrap_err().contains("begin with f2bmqtt/"), "{text}");
            assert!(Topic::new(text).is_ok(), "Home Assistant's prefix may be anything");
        }
        for text in ["f2bmqttx", "x/f2bmqtt", "f2b"] {
            assert!(Topic::of_fleet(text).is_ok(), "{text}");
        }
    }
}
