//! Publishes this host as a device of Home Assistant (`MQTT_HA_PREFIX`), by MQTT device discovery
//! (<https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload>).
//!
//! The device's configuration is retained at `<prefix>/device/f2bmqtt_<host>/config`, and the ban counts
//! (`{"bans":42,"jails":{"sshd":40,"web":2}}`) at `<prefix>/f2bmqtt/<host>/bans`. Home Assistant reads connection
//! state and version from the host's presence. Each ban that this host detects is published at
//! `<prefix>/f2bmqtt/<host>/ban`, not retained. Fleet members ignore all of these messages.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::Metrics;
use crate::config::Topic;
use crate::guard::gate::{Admitted, Source};
use crate::model::{Fnv1a64, HostName};
use crate::sys::clock::is_within;
use crate::wire::{Action, Event, Reason};

/// The shortest time between two updates, in milliseconds.
const PUBLISH_INTERVAL_MS: i64 = 5_000;

/// Home Assistant's birth message, which it publishes when it has started.
const BIRTH_PAYLOAD: &[u8] = b"online";

/// Topic and payload of a retained message.
pub type RetainedMessage = (String, String);

/// The device of this host and the state that Home Assistant has of it.
#[derive(Debug)]
pub struct HomeAssistant {
    prefix: Topic,
    topic: Topic,
    host: HostName,
    /// Configuration and ban counts as last published on this connection.
    device: Option<String>,
    numbers: Option<String>,
    /// Milliseconds since 1970.
    published_at: i64,
}

impl HomeAssistant {
    /// A host of the fleet below `topic`, for the Home Assistant that discovers below `prefix`.
    #[must_use]
    pub fn new(prefix: Topic, topic: Topic, host: HostName) -> Self {
        Self { prefix, topic, host, device: None, numbers: None, published_at: 0 }
    }

    /// The topic of Home Assistant's birth message.
    #[must_use]
    pub fn birth_topic(&self) -> String {
        self.prefix.below("status")
    }

    /// Handles a message of Home Assistant; returns whether the message was one.
    pub fn on_message(&mut self, message: &Admitted) -> bool {
        let is_birth_topic = *message.source() == Source::Other(self.birth_topic());
        if is_birth_topic && message.payload() == BIRTH_PAYLOAD {
            self.connected();
        }
        is_birth_topic
    }

    /// Publishes everything again at the next update: after a connection, or once Home Assistant has started.
    pub fn connected(&mut self) {
        (self.device, self.numbers, self.published_at) = (None, None, 0);
    }

    /// Whether the next update is due; `now` is in milliseconds since 1970.
    #[must_use]
    pub fn is_due(&self, now: i64) -> bool {
        !is_within(PUBLISH_INTERVAL_MS, self.published_at, now)
    }

    /// The retained messages that changed since the last update.
    pub fn changed(&mut self, metrics: &Metrics, now: i64) -> Vec<RetainedMessage> {
        self.published_at = now;
        let [config, state] = topics(&self.prefix, &self.host);
        let mut changed = Vec::new();
        for (last, topic, text) in [
            (&mut self.device, config, device(&self.prefix, &self.topic, &self.host, metrics)),
            (&mut self.numbers, state, numbers(metrics)),
        ] {
            if last.as_ref() != Some(&text) {
                *last = Some(text.clone());
                changed.push((topic, text));
            }
        }
        changed
    }

    /// Topic and payload of Home Assistant's event for a ban that this host detected.
    #[must_use]
    pub fn ban(&self, event: &Event) -> Option<(String, String)> {
        if event.action != Action::Ban || event.reason != Some(Reason::Detected) {
            return None;
        }
        let payload = json!({
            "event_type": "ban",
            "jail": event.jail.as_str(),
            "ip": event.address.to_string(),
            "bantime": event.bantime,
            "time": event.time,
        });
        Some((own(&self.prefix, &self.host, "ban"), payload.to_string()))
    }
}

/// The topics of a host's retained messages. An empty message on each removes the device from Home Assistant.
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

/// The name with `_` for any character that Home Assistant does not allow in an id. A hash keeps different names
/// different.
fn slug(name: &str) -> String {
    let mut slug =
        name.replace(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'), "_");
    if slug != name {
        let mut hash = Fnv1a64::default();
        let _ = hash.write_str(name);
        let _ = write!(slug, "_{:08x}", hash.value() & 0xffff_ffff);
    }
    slug
}

fn numbers(metrics: &Metrics) -> String {
    let counts = metrics.jails.iter().map(|jail| (&jail.jail, jail.detected + jail.imported));
    let bans: usize = counts.clone().map(|(_, count)| count).sum();
    let jails: Map<_, _> =
        counts.map(|(jail, count)| (jail.as_str().to_owned(), Value::from(count))).collect();
    json!({ "bans": bans, "jails": jails }).to_string()
}

/// A sensor that shows a number of bans.
fn ban_sensor(id: &str, name: &str, topic: &str, template: &str) -> Value {
    json!({
        "platform": "sensor",
        "unique_id": id,
        "name": name,
        "state_topic": topic,
        "value_template": template,
        "unit_of_measurement": "bans",
        "state_class": "measurement",
        "icon": "mdi:shield-lock",
    })
}

/// The device's configuration.
fn device(prefix: &Topic, topic: &Topic, host: &HostName, metrics: &Metrics) -> String {
    let id = device_id(host);
    let version = env!("CARGO_PKG_VERSION");
    let presence = topic.presence(host);
    let bans_topic = own(prefix, host, "bans");
    let mut components = Map::new();
    components.insert(
        "connection".to_owned(),
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
            // This sensor shows that the host is offline, so it must stay available then.
            "availability": [],
        }),
    );
    let all = ban_sensor(&format!("{id}_bans"), "Bans", &bans_topic, "{{ value_json.bans }}");
    components.insert("bans".to_owned(), all);
    for jail in &metrics.jails {
        let key = format!("bans_{}", slug(jail.jail.as_str()));
        let quoted = Value::from(jail.jail.as_str());
        let template = format!("{{{{ value_json.jails[{quoted}] | default(0) }}}}");
        let name = format!("Bans in {}", jail.jail);
        let sensor = ban_sensor(&format!("{id}_{key}"), &name, &bans_topic, &template);
        components.insert(key, sensor);
    }
    components.insert(
        "last_ban".to_owned(),
        json!({
            "platform": "event",
            "unique_id": format!("{id}_last_ban"),
            "name": "Last ban",
            "state_topic": own(prefix, host, "ban"),
            "event_types": ["ban"],
            "icon": "mdi:shield-alert",
        }),
    );
    components.insert(
        "version".to_owned(),
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
        "components": components,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::JailCounts;
    use crate::guard::gate::tests::admit;
    use crate::model::Jail;

    fn home(host: &str) -> HomeAssistant {
        let [prefix, topic] = ["homeassistant", "blacklist"].map(|name| Topic::new(name).unwrap());
        HomeAssistant::new(prefix, topic, HostName::new(host).unwrap())
    }

    fn metrics(detected: usize) -> Metrics {
        let jail = Jail::new("sshd").unwrap();
        let jails = vec![JailCounts { jail, detected, imported: 40, overrides: 0 }];
        Metrics { jails, ..Metrics::default() }
    }

    #[test]
    fn unchanged_state_is_published_again_only_after_home_assistant_started() {
        let mut home = home("web1");
        let published = home.changed(&metrics(2), 1_000_000);
        let [config, state] =
            ["homeassistant/device/f2bmqtt_web1/config", "homeassistant/f2bmqtt/web1/bans"];
        assert_eq!(
            published.iter().map(|(topic, _)| topic.as_str()).collect::<Vec<_>>(),
            [config, state]
        );
        assert_eq!(published[1].1, r#"{"bans":42,"jails":{"sshd":42}}"#);
        assert!(!home.is_due(1_004_999) && home.is_due(1_005_000) && home.is_due(1));
        assert!(home.changed(&metrics(2), 1_005_000).is_empty());
        assert_eq!(home.changed(&metrics(3), 1_010_000).len(), 1);
        assert!(!home.on_message(&admit("ban", b"online").unwrap()));
        assert!(home.on_message(&admit("homeassistant/status", b"offline").unwrap()));
        assert!(home.changed(&metrics(3), 1_015_000).is_empty());
        assert!(
            home.on_message(&admit("homeassistant/status", b"online").unwrap())
                && home.is_due(1_015_001)
        );
        assert_eq!(home.changed(&metrics(3), 1_020_000).len(), 2);
    }

    #[test]
    fn device_has_a_component_per_jail_and_unique_ids() {
        let HomeAssistant { prefix, topic, host, .. } = home("web1.example.org");
        let text = device(&prefix, &topic, &host, &metrics(1));
        let device: Value = serde_json::from_str(&text).unwrap();
        let id = device["device"]["identifiers"][0].as_str().unwrap();
        assert_eq!(id, format!("f2bmqtt_{}", slug("web1.example.org")));
        assert!(
            id.starts_with("f2bmqtt_web1_example_org_"),
            "no other host becomes the same: {id}"
        );
        assert_ne!(slug("web1.example.org"), slug("web1_example_org"));
        let components = device["components"].as_object().unwrap();
        let names = ["bans", "bans_sshd", "connection", "last_ban", "version"];
        assert_eq!(components.keys().collect::<Vec<_>>(), names);
        for component in components.values() {
            assert!(component["unique_id"].as_str().unwrap().starts_with(id), "{component}");
        }
        assert_eq!(
            components["bans_sshd"]["value_template"],
            r#"{{ value_json.jails["sshd"] | default(0) }}"#
        );
    }

    #[test]
    fn detected_ban_is_published_as_an_event() {
        let json = r#"{"action":"ban","ipmset":"sshd","ip":"203.0.113.9","bantime":600,"host":"web1",
            "time":7,"reason":"detected"}"#;
        let mut event = Event::parse(json.as_bytes()).unwrap();
        let (topic, payload) = home("web1").ban(&event).unwrap();
        assert_eq!(topic, "homeassistant/f2bmqtt/web1/ban");
        let payload: Value = serde_json::from_str(&payload).unwrap();
        assert_eq!(
            (&payload["event_type"], &payload["ip"]),
            (&json!("ban"), &json!("203.0.113.9"))
        );
        event.action = Action::Unban;
        assert_eq!(home("web1").ban(&event), None);
    }
}
