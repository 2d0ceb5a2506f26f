//! This host as a device of Home Assistant (`MQTT_HA_PREFIX`), by its MQTT device discovery
//! (<https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload>).
//!
//! Retained at `<prefix>/device/f2bmqtt_<host>/config` is what there is to see, and at
//! `<prefix>/f2bmqtt/<host>/bans` the numbers: `{"bans":42,"jails":{"sshd":40,"web":2}}`. Whether the host
//! is connected, and its version, Home Assistant takes from its presence. Each ban that is detected here
//! is an event at `<prefix>/f2bmqtt/<host>/ban`, not retained. None of this is for the fleet.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::Metrics;
use crate::clock::is_within;
use crate::config::Topic;
use crate::guard::gate::{Admitted, Source};
use crate::wire::{Action, Event, Fnv1a64, HostName, Reason};

/// How often numbers may change, in milliseconds.
const EVERY: i64 = 5_000;

/// What Home Assistant says when it has started.
const STARTED: &[u8] = b"online";

/// What is to be kept on a topic.
pub type Kept = (String, String);

/// What Home Assistant was told of this host.
#[derive(Debug)]
pub struct HomeAssistant {
    prefix: Topic,
    topic: Topic,
    host: HostName,
    /// The device and its numbers, as told on this connection.
    device: Option<String>,
    numbers: Option<String>,
    told: i64,
}

impl HomeAssistant {
    /// A host of the fleet below `topic`, for the Home Assistant that discovers below `prefix`.
    #[must_use]
    pub fn new(prefix: Topic, topic: Topic, host: HostName) -> Self {
        Self { prefix, topic, host, device: None, numbers: None, told: 0 }
    }

    /// Where Home Assistant says that it has started.
    #[must_use]
    pub fn birth_topic(&self) -> String {
        self.prefix.below("status")
    }

    /// Takes a message; answers whether it was meant for this.
    pub fn hear(&mut self, message: &Admitted) -> bool {
        let ours = *message.source() == Source::Other(self.birth_topic());
        if ours && message.payload() == STARTED {
            self.connected();
        }
        ours
    }

    /// All is to be told again: on a new connection, or to a Home Assistant that has just started.
    pub fn connected(&mut self) {
        (self.device, self.numbers, self.told) = (None, None, 0);
    }

    /// Whether it is time to tell of what has changed, in milliseconds since 1970.
    #[must_use]
    pub fn is_due(&self, now: i64) -> bool {
        !is_within(EVERY, self.told, now)
    }

    /// What of a reading is news.
    pub fn news(&mut self, figures: &Metrics, now: i64) -> Vec<Kept> {
        self.told = now;
        let [config, state] = topics(&self.prefix, &self.host);
        let mut news = Vec::new();
        for (last, topic, text) in [
            (&mut self.device, config, device(&self.prefix, &self.topic, &self.host, figures)),
            (&mut self.numbers, state, numbers(figures)),
        ] {
            if last.as_ref() != Some(&text) {
                *last = Some(text.clone());
                news.push((topic, text));
            }
        }
        news
    }

    /// The word of a ban that this host detected.
    #[must_use]
    pub fn ban(&self, event: &Event) -> Option<(String, String)> {
        if event.action != Action::Ban || event.reason != Some(Reason::Detected) {
            return None;
        }
        let told = json!({
            "event_type": "ban",
            "jail": event.jail.as_str(),
            "ip": event.address.to_string(),
            "bantime": event.bantime,
            "time": event.time,
        });
        Some((own(&self.prefix, &self.host, "ban"), told.to_string()))
    }
}

/// The topics on which something is kept of a host: cleared, Home Assistant forgets it.
#[must_use]
pub fn topics(prefix: &Topic, host: &HostName) -> [String; 2] {
    [prefix.below(&format!("device/{}/config", device_id(host))), own(prefix, host, "bans")]
}

fn own(prefix: &Topic, host: &HostName, name: &str) -> String {
    prefix.below(&format!("f2bmqtt/{}/{name}", slug(host.as_str())))
}

fn device_id(host: &HostName) -> String {
    format!("f2bmqtt_{}", slug(host.as_str()))
}

/// A name of letters, digits, `_` and `-`, which is all that Home Assistant takes in an id. Two names
/// never become the same.
fn slug(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut slug: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    if slug != name {
        let mut hash = Fnv1a64::default();
        let _ = hash.write_str(name);
        let _ = write!(slug, "_{:08x}", hash.value() & 0xffff_ffff);
    }
    slug
}

fn numbers(figures: &Metrics) -> String {
    let count = |jail: &super::JailCounts| jail.detected + jail.imported;
    let jails: Map<_, _> = figures
        .jails
        .iter()
        .map(|jail| (jail.jail.as_str().to_owned(), Value::from(count(jail))))
        .collect();
    let bans: usize = figures.jails.iter().map(count).sum();
    json!({ "bans": bans, "jails": jails }).to_string()
}

/// The device and what there is to see of it.
fn device(prefix: &Topic, topic: &Topic, host: &HostName, figures: &Metrics) -> String {
    let id = device_id(host);
    let version = env!("CARGO_PKG_VERSION");
    let presence = topic.presence(host);
    let state = own(prefix, host, "bans");
    let bans = |name: String, part: &str, template: String| {
        json!({
            "platform": "sensor",
            "unique_id": format!("{id}_{part}"),
            "name": name,
            "state_topic": state,
            "value_template": template,
            "unit_of_measurement": "bans",
            "state_class": "measurement",
            "icon": "mdi:shield-lock",
        })
    };
    let mut parts = Map::new();
    let mut part = |name: &str, value| drop(parts.insert(name.to_owned(), value));
    part(
        "connection",
        json!({
            "platform": "binary_sensor",
            "unique_id": format!("{id}_connection"),
            "name": "Connection",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "state_topic": presence,
            "value_template": "{{ value_json.state }}",
            "payload_on": "online",
            "payload_off": "offline",
            // It is there to be seen when the host is not.
            "availability": [],
        }),
    );
    part("bans", bans("Bans".to_owned(), "bans", "{{ value_json.bans }}".to_owned()));
    for jail in &figures.jails {
        let key = format!("bans_{}", slug(jail.jail.as_str()));
        let name = Value::from(jail.jail.as_str());
        let template = format!("{{{{ value_json.jails[{name}] | default(0) }}}}");
        part(&key, bans(format!("Bans in {}", jail.jail), &key, template));
    }
    part(
        "last_ban",
        json!({
            "platform": "event",
            "unique_id": format!("{id}_last_ban"),
            "name": "Last ban",
            "state_topic": own(prefix, host, "ban"),
            "event_types": ["ban"],
            "icon": "mdi:shield-alert",
        }),
    );
    part(
        "version",
        json!({
            "platform": "sensor",
            "unique_id": format!("{id}_version"),
            "name": "Version",
            "entity_category": "diagnostic",
            "state_topic": presence,
            "value_template": "{{ value_json.version }}",
        }),
    );
    json!({
        "device": {
            "identifiers": [id],
            "name": format!("fail2ban on {host}"),
            "manufacturer": "f2bmqtt",
            "model": "fail2ban server",
            "sw_version": version,
        },
        "origin": {
            "name": "f2bmqtt",
            "sw_version": version,
        },
        "availability": [{
            "topic": presence,
            "value_template": "{{ value_json.state }}",
            "payload_available": "online",
            "payload_not_available": "offline",
        }],
        "qos": 1,
        "components": parts,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::JailCounts;
    use crate::guard::gate::tests::admit;
    use crate::wire::Jail;

    fn home(host: &str) -> HomeAssistant {
        let topic = |name| Topic::new(name).unwrap();
        HomeAssistant::new(topic("homeassistant"), topic("blacklist"), HostName::new(host).unwrap())
    }

    fn figures(detected: usize) -> Metrics {
        let jail = Jail::new("sshd").unwrap();
        let jails = vec![JailCounts { jail, detected, imported: 40, lifted: 0 }];
        Metrics { jails, ..Metrics::default() }
    }

    #[test]
    fn only_news_are_told_and_all_of_it_to_one_who_has_just_started() {
        let mut home = home("web1");
        let told = home.news(&figures(2), 1_000_000);
        let [config, state] =
            ["homeassistant/device/f2bmqtt_web1/config", "homeassistant/f2bmqtt/web1/bans"];
        assert_eq!(
            told.iter().map(|(topic, _)| topic.as_str()).collect::<Vec<_>>(),
            [config, state]
        );
        assert_eq!(told[1].1, r#"{"bans":42,"jails":{"sshd":42}}"#);
        assert!(!home.is_due(1_004_999) && home.is_due(1_005_000) && home.is_due(1));
        assert!(home.news(&figures(2), 1_005_000).is_empty());
        assert_eq!(home.news(&figures(3), 1_010_000).len(), 1);
        assert!(!home.hear(&admit("ban", b"online").unwrap()));
        assert!(home.hear(&admit("homeassistant/status", b"offline").unwrap()));
        assert!(home.news(&figures(3), 1_015_000).is_empty());
        assert!(
            home.hear(&admit("homeassistant/status", b"online").unwrap()) && home.is_due(1_015_001)
        );
        assert_eq!(home.news(&figures(3), 1_020_000).len(), 2);
    }

    #[test]
    fn a_device_has_what_there_is_to_see_of_its_host() {
        let HomeAssistant { prefix, topic, host, .. } = home("web1.example.org");
        let text = device(&prefix, &topic, &host, &figures(1));
        let device: Value = serde_json::from_str(&text).unwrap();
        let id = device["device"]["identifiers"][0].as_str().unwrap();
        assert_eq!(id, format!("f2bmqtt_{}", slug("web1.example.org")));
        assert!(
            id.starts_with("f2bmqtt_web1_example_org_"),
            "no other host becomes the same: {id}"
        );
        assert_ne!(slug("web1.example.org"), slug("web1_example_org"));
        let parts = device["components"].as_object().unwrap();
        let names = ["bans", "bans_sshd", "connection", "last_ban", "version"];
        assert_eq!(parts.keys().collect::<Vec<_>>(), names);
        for part in parts.values() {
            assert!(part["unique_id"].as_str().unwrap().starts_with(id), "{part}");
        }
        assert_eq!(
            parts["bans_sshd"]["value_template"],
            r#"{{ value_json.jails["sshd"] | default(0) }}"#
        );
    }

    #[test]
    fn a_ban_that_was_detected_here_is_an_event() {
        let json = r#"{"action":"ban","ipmset":"sshd","ip":"203.0.113.9","bantime":600,"host":"web1",
            "time":7,"reason":"detected"}"#;
        let mut event = Event::parse(json.as_bytes()).unwrap();
        let (topic, told) = home("web1").ban(&event).unwrap();
        assert_eq!(topic, "homeassistant/f2bmqtt/web1/ban");
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["event_type"], &told["ip"]), (&json!("ban"), &json!("203.0.113.9")));
        event.action = Action::Unban;
        assert_eq!(home("web1").ban(&event), None);
    }
}
