//! Tests the gate with every form of topic, signed and unsigned messages, with and without a key.

use super::*;
use crate::wire::signature::SigningKeys;

const KEY: &str = "a secret of the whole fleet";

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

fn gate(topic: &str, signing: Option<Signing>) -> Gate {
    let others = vec!["homeassistant/status".to_owned(), "f2bmqtt/b/state/a.b/check/m7".to_owned()];
    Gate::new(Topic::of_fleet(topic).unwrap(), host("web1"), signing, others)
}

#[expect(clippy::unnecessary_wraps, reason = "a gate may have none")]
fn signing(accept_unsigned: bool) -> Option<Signing> {
    Some(Signing { keys: SigningKeys::new([KEY]), accept_unsigned })
}

/// The decisions of a gate without a key, of one that also accepts unsigned messages, and of one that does not.
type Decisions = [Result<bool, RejectReason>; 3];

/// A message of the fleet `blacklist` whose topic is `host/…`, `state/…`, or an event's.
pub(crate) fn admit(name: &str, payload: &[u8]) -> Result<Admitted, Rejected> {
    let topic = Topic::of_fleet("blacklist").unwrap();
    let home = "homeassistant/status".to_owned();
    let below = if name == home {
        home.clone()
    } else if name.starts_with("host") || name.starts_with("state") {
        topic.retained(name)
    } else {
        topic.below(name)
    };
    Gate::new(topic, host("web1"), None, vec![home]).admit(&below, payload.to_vec())
}

fn shard(name: &str, index: u32) -> Source {
    Source::Shard { host: host(name), index }
}

fn presence(name: &str) -> Source {
    Source::Presence { host: host(name) }
}

#[test]
fn each_topic_has_one_kind_or_is_rejected() {
    let table: &[(&str, Option<Source>)] = &[
        ("b", Some(Source::Event)),
        ("b/ban", Some(Source::Event)),
        ("b/a/deep//topic", Some(Source::Event)),
        ("b/", Some(Source::Event)),
        ("b/state/web2/0", Some(Source::Event)),
        ("b/$SYS/x", Some(Source::Event)),
        ("f2bmqtt/b/state/web2/0", Some(shard("web2", 0))),
        ("f2bmqtt/b/state/web2/511", Some(shard("web2", 511))),
        ("f2bmqtt/b/state/web2/example/org/7", Some(shard("web2.example.org", 7))),
        ("f2bmqtt/b/state/web2/check/0", Some(shard("web2.check", 0))),
        ("f2bmqtt/b/host/web2", Some(presence("web2"))),
        ("f2bmqtt/b/host/web2/example/org", Some(presence("web2.example.org"))),
        ("homeassistant/status", Some(Source::Other("homeassistant/status".to_owned()))),
        (
            "f2bmqtt/b/state/a/b/check/m7",
            Some(Source::Other("f2bmqtt/b/state/a.b/check/m7".into())),
        ),
        ("f2bmqtt/b/state/a.b/check/m8", None),
        ("f2bmqtt/b/state/web2/512", None),
        ("f2bmqtt/b/state/web2/07", None),
        ("f2bmqtt/b/state/web2/+7", None),
        ("f2bmqtt/b/state/web2/x", None),
        ("f2bmqtt/b/state/web2/", None),
        ("f2bmqtt/b/state/web2", None),
        ("f2bmqtt/b/state/0", None),
        ("f2bmqtt/b/state//0", None),
        ("f2bmqtt/b/state/we\u{202e}b/0", None),
        ("f2bmqtt/b/host/", None),
        ("f2bmqtt/b/host", None),
        ("f2bmqtt/b/other/web2", None),
        ("f2bmqtt/b/", None),
        ("f2bmqtt/b", None),
        ("f2bmqtt/other/state/web2/0", None),
        ("f2bmqtt/bx/host/web2", None),
        ("f2bmqttx/b/host/web2", None),
        ("/f2bmqtt/b/host/web2", None),
        ("bx/ban", None),
        ("/b/ban", None),
        ("x/b/ban", None),
        ("ban", None),
        ("x/ban", None),
        ("state/web2/0", None),
        ("host/web2", None),
        ("$SYS/broker/version", None),
        ("homeassistant/status/x", None),
        ("homeassistant/x", None),
        ("", None),
        ("/", None),
    ];
    for (topic, source) in table {
        for key in [None, signing(true), signing(false)] {
            let has_key = key.is_some();
            let decided = gate("b", key).admit(topic, Vec::new());
            match (decided, source) {
                (Ok(admitted), Some(source)) => {
                    assert_eq!((&admitted.source, admitted.trusted), (source, !has_key), "{topic}");
                }
                (Err(rejected), None) => {
                    assert_eq!(rejected.reason, RejectReason::WrongTopic, "{topic}");
                    assert_eq!((rejected.host, rejected.own_shard), (None, None));
                }
                (decided, _) => panic!("{topic}: {decided:?}"),
            }
        }
    }
}

#[test]
fn message_is_parsed_only_as_the_kind_of_its_topic() {
    let event = r#"{"action":"ban","ipmset":"sshd","ip":"192.0.2.1","host":"web2"}"#;
    let shard = r#"{"v":1,"host":"web2","stamp":1,"part":0,"parts":1,"bans":[],"unbans":[]}"#;
    let presence = r#"{"v":1,"state":"online","jails":["sshd"]}"#;
    for (name, only) in
        [("ban", 0), ("state/web2/0", 1), ("host/web2", 2), ("homeassistant/status", 3)]
    {
        for (kind, payload) in [event, shard, presence].into_iter().enumerate() {
            let message = admit(name, payload.as_bytes()).unwrap();
            let is_shard = message.shard(|_| true).is_ok();
            let parsed = [message.event().is_ok(), is_shard, message.presence().is_ok()];
            let mut expected = [false; 3];
            expected[kind] = kind == only;
            assert_eq!(parsed, expected, "{payload} on {name}");
        }
    }
}

#[test]
fn unsigned_message_is_accepted_only_without_a_key_or_with_the_setting() {
    use RejectReason::{Unsigned, WrongSignature, WrongTopic};
    let object = br#"{"v":1}"#;
    let moved = SigningKeys::new([KEY]).sign("b/other", object.to_vec());
    let foreign_keys = SigningKeys::new(["the key of another fleet"]);
    // Whether the message is trusted, or why it is rejected.
    let table: [(&str, &str, Decisions); 20] = [
        ("b/ban", "signed", [Ok(true), Ok(true), Ok(true)]),
        ("b/ban", "unsigned", [Ok(true), Ok(false), Err(Unsigned)]),
        ("b/ban", "foreign", [Ok(true), Err(WrongSignature), Err(WrongSignature)]),
        ("b/ban", "moved", [Ok(true), Err(WrongSignature), Err(WrongSignature)]),
        ("b/any/deeper", "unsigned", [Ok(true), Ok(false), Err(Unsigned)]),
        ("f2bmqtt/b/state/web2/3", "signed", [Ok(true), Ok(true), Ok(true)]),
        ("f2bmqtt/b/state/web2/3", "unsigned", [Ok(true), Ok(false), Err(Unsigned)]),
        ("f2bmqtt/b/state/web2/3", "foreign", [Ok(true), Err(WrongSignature), Err(WrongSignature)]),
        ("f2bmqtt/b/state/web1/3", "signed", [Ok(true), Ok(true), Ok(true)]),
        ("f2bmqtt/b/state/web1/3", "unsigned", [Ok(true), Err(Unsigned), Err(Unsigned)]),
        ("f2bmqtt/b/state/web1/3", "moved", [Ok(true), Err(WrongSignature), Err(WrongSignature)]),
        ("f2bmqtt/b/state/web1/3", "empty", [Ok(true), Ok(false), Ok(false)]),
        ("f2bmqtt/b/state/web2/3", "empty", [Ok(true), Ok(false), Ok(false)]),
        ("f2bmqtt/b/host/web2", "unsigned", [Ok(true), Ok(false), Err(Unsigned)]),
        ("f2bmqtt/b/host/web2", "empty", [Ok(true), Ok(false), Ok(false)]),
        ("f2bmqtt/b/host/web1", "unsigned", [Ok(true), Err(Unsigned), Err(Unsigned)]),
        ("f2bmqtt/b/host/web1", "signed", [Ok(true), Ok(true), Ok(true)]),
        ("homeassistant/status", "unsigned", [Ok(true), Ok(false), Ok(false)]),
        ("x/ban", "signed", [Err(WrongTopic), Err(WrongTopic), Err(WrongTopic)]),
        ("x/ban", "unsigned", [Err(WrongTopic), Err(WrongTopic), Err(WrongTopic)]),
    ];
    for (topic, form, expected) in table {
        let payload = match form {
            "signed" => SigningKeys::new([KEY]).sign(topic, object.to_vec()),
            "foreign" => foreign_keys.sign(topic, object.to_vec()),
            "moved" => moved.clone(),
            "empty" => Vec::new(),
            _ => object.to_vec(),
        };
        let gates = [None, signing(true), signing(false)].map(|signing| gate("b", signing));
        for (gate, expected) in gates.into_iter().zip(expected) {
            let decided = gate.admit(topic, payload.clone());
            let own = topic.contains("/state/web1/").then_some(3);
            let own_shard = decided.as_ref().err().map(|rejected| rejected.own_shard);
            assert!(own_shard.is_none_or(|shard| shard == own), "{topic}");
            let decided = decided.map(|admitted| admitted.trusted).map_err(|it| it.reason);
            assert_eq!(decided, expected, "{topic} {form} {gate:?}");
        }
    }
}

#[test]
fn message_above_the_size_limit_is_rejected() {
    let table = [
        ("b/ban", 4_096),
        ("f2bmqtt/b/state/web1/2", 192 * 1024),
        ("f2bmqtt/b/host/web2", 32 * 1024),
        ("homeassistant/status", 32 * 1024),
    ];
    for (topic, max) in table {
        let gate = gate("b", None);
        assert!(gate.admit(topic, vec![b'x'; max]).is_ok(), "{topic}");
        let rejected = gate.admit(topic, vec![b'x'; max + 1]).unwrap_err();
        assert_eq!(rejected.reason, RejectReason::TooLarge);
        assert_eq!(rejected.own_shard, topic.contains("web1").then_some(2));
        let shard =
            rejected.host().zip(rejected.shard()).map(|(host, index)| format!("{host}/{index}"));
        assert_eq!(
            shard.as_deref(),
            topic.split_once("/state/").map(|(_, shard)| shard),
            "{topic}"
        );
    }
}

#[test]
fn printed_topic_is_cut_and_escaped() {
    let long = format!("x/\u{1b}[2J\n{}", "y".repeat(1_000));
    let rejected = gate("b", None).admit(&long, Vec::new()).unwrap_err();
    assert_eq!(rejected.topic().chars().count(), MAX_SHOWN_CHARS);
    assert!(!rejected.to_string().contains(char::is_control));
    assert!(rejected.to_string().ends_with("yyy: the topic is not below MQTT_TOPIC"), "{rejected}");
}

#[test]
fn signature_is_valid_if_rabbitmq_replaced_dots_by_slashes() {
    let table = [
        ("b.c", "b/c/ban", "b.c/ban"),
        ("b.c", "b.c/ban", "b.c/ban"),
        ("b", "f2bmqtt/b/state/a/org/12", "f2bmqtt/b/state/a.org/12"),
        ("b.c", "f2bmqtt/b/c/state/a/org/12", "f2bmqtt/b.c/state/a.org/12"),
        ("b.c", "f2bmqtt/b/c/host/a/x/org", "f2bmqtt/b.c/host/a.x.org"),
    ];
    for (fleet, received, published) in table {
        let payload = SigningKeys::new([KEY]).sign(published, br#"{"v":1}"#.to_vec());
        let admitted = gate(fleet, signing(false)).admit(received, payload).unwrap();
        assert!(admitted.is_trusted(), "{received}");
    }
}

#[test]
fn unsigned_fleet_unban_or_event_with_own_name_is_rejected() {
    let fleet = r#","reason":"fleet","id":"web2-5""#;
    let table = [
        ("ban", "web2", "", true),
        ("unban", "web2", "", true),
        ("unban", "web2", fleet, false),
        ("ban", "web1", "", false),
        ("unban", "web1", fleet, false),
    ];
    for (action, host, more, is_accepted) in table {
        let event = format!(
            r#"{{"action":"{action}","ipmset":"sshd","ip":"192.0.2.1","host":"{host}"{more}}}"#
        );
        let open = gate("b", signing(true));
        let unsigned = open.admit("b/ban", event.clone().into_bytes()).unwrap();
        assert!(!unsigned.is_trusted());
        let reason = unsigned.event().map_err(|rejected| rejected.reason).err();
        assert_eq!(reason, (!is_accepted).then_some(RejectReason::Unsigned), "{event}");
        let signed = SigningKeys::new([KEY]).sign("b/ban", event.clone().into_bytes());
        assert!(open.admit("b/ban", signed).unwrap().event().is_ok());
        assert!(gate("b", None).admit("b/ban", event.into_bytes()).unwrap().event().is_ok());
    }
}

#[test]
fn unsigned_shard_keeps_only_known_fleet_unbans() {
    let json = r#"{"v":1,"host":"web2","stamp":5,"part":0,"parts":1,"bans":[["sshd","192.0.2.1",9,600]],
        "unbans":[["*","192.0.2.1","web2-5"],["*","192.0.2.2","web2-6"]]}"#;
    let topic = "f2bmqtt/b/state/web2/0";
    let signed = SigningKeys::new([KEY]).sign(topic, json.as_bytes().to_vec());
    let table = [
        (None, json.as_bytes().to_vec(), 2),
        (signing(true), json.as_bytes().to_vec(), 1),
        (signing(true), signed, 2),
    ];
    for (signing, payload, unbans) in table {
        let admitted = gate("b", signing).admit(topic, payload).unwrap();
        let shard = admitted.shard(is_known).unwrap();
        assert_eq!((shard.bans.len(), shard.unbans.len()), (1, unbans));
    }
    let elsewhere = gate("b", None).admit("f2bmqtt/b/state/web3/0", json.into()).unwrap();
    assert_eq!(elsewhere.shard(is_known).unwrap_err().reason, RejectReason::WrongTopic);
}

fn is_known(fleet_unban: &FleetUnban) -> bool {
    fleet_unban.id.as_str() == "web2-5"
}
