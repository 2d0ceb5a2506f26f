//! Properties of each parser of untrusted input. libFuzzer checks them in `targets/`, and `tests/mutations.rs` in each run
//! of the tests.

#![allow(dead_code, reason = "each target uses one of them")]

#[path = "controller.rs"]
mod controller;
#[path = "../simulation/inbound.rs"]
mod inbound;

use std::path::Path;
use std::sync::LazyLock;

use f2bmqtt::abuseipdb::enqueue;
use f2bmqtt::abuseipdb::enqueue::ReportDecision;
use f2bmqtt::abuseipdb::redact::text::{MAX_COMMENT_CHARS, Private, compose};
use f2bmqtt::abuseipdb::report::{CommentSource, Report};
use f2bmqtt::abuseipdb::response::{Accepted, ApiError, ApiResponse, BulkAccepted, Listing};
use f2bmqtt::config::Config;
use f2bmqtt::fail2ban::pickle::{PickleValue, read};
use f2bmqtt::guard::gate::Source;
use f2bmqtt::model::text::is_unsafe_for_display;
use f2bmqtt::model::{Address, HostName};
use f2bmqtt::spool::{Item, notify};
use f2bmqtt::wire::signature::{SignatureStatus, SigningKeys, split};
use f2bmqtt::wire::{Event, Presence, Shard, SpooledEvent};

use inbound::Inbound;

/// An event from the broker: an accepted one is bounded, and encodes to an equal one.
pub(crate) fn event(payload: &[u8]) {
    sealed(payload);
    if let Ok(event) = Event::parse(payload) {
        assert!(payload.len() <= 4096);
        let again = event.encode();
        assert!(!again.contains(is_unsafe_for_display), "{again}");
        assert_eq!(Event::parse(again.as_bytes()).as_ref(), Ok(&event));
    }
}

/// A shard: the same, and it lists only its own addresses.
pub(crate) fn part(payload: &[u8]) {
    sealed(payload);
    if let Ok(part) = Shard::parse(payload) {
        assert!(payload.len() <= 192 * 1024);
        assert!(part.bans.iter().all(|ban| part.id.covers(ban.address)));
        assert!(part.unbans.iter().all(|unban| part.id.covers(unban.address)));
        let again = part.encode();
        assert!(!again.contains(is_unsafe_for_display), "{again}");
        assert_eq!(Shard::parse(again.as_bytes()).as_ref(), Ok(&part));
    }
}

/// A presence: the same.
pub(crate) fn presence(payload: &[u8]) {
    sealed(payload);
    if let Ok(presence) = Presence::parse(payload) {
        assert!(presence.jails.len() <= 500 && presence.rejected.len() <= 30);
        assert!(presence.acks.len() <= 16);
        let again = presence.encode();
        assert!(!again.contains(is_unsafe_for_display), "{again}");
        assert_eq!(Presence::parse(again.as_bytes()).as_ref(), Ok(&presence));
    }
}

/// Hosts without a key (`None`), and with one: whether they accept unsigned messages.
static HOSTS: LazyLock<[(Option<bool>, Inbound); 3]> = LazyLock::new(|| {
    [None, Some(true), Some(false)].map(|accepts| {
        let me = HostName::new("web1").expect("it is a name");
        let keys = accepts.map(|_| SigningKeys::new(["a secret that no input has"]));
        (accepts, Inbound::new(&me, keys, accepts == Some(true)))
    })
});

/// A message: topic and payload with a line end between. The gate of a host with a key admits only empty payloads from
/// clients without the key. No error prints unsafe characters. Admitted messages keep the controller's invariants.
pub(crate) fn gate(message: &[u8]) {
    let at = message.iter().position(|byte| *byte == b'\n').unwrap_or(message.len());
    let topic = String::from_utf8_lossy(&message[..at]);
    let payload = message.get(at + 1..).unwrap_or_default();
    let me = HostName::new("web1").expect("it is a name");
    for (accepts, inbound) in &*HOSTS {
        let accepts = *accepts;
        match inbound.gate.admit(&topic, payload.to_vec()) {
            // A message of a subscription outside the fleet's topics is no message of the fleet.
            Ok(admitted) if matches!(admitted.source(), Source::Other(_)) => {
                assert_eq!(topic.replace('.', "/"), inbound::OTHER);
                assert!(admitted.event().is_err() && admitted.presence().is_err());
                assert!(admitted.shard(|_| true).is_err());
            }
            Ok(admitted) => {
                assert!(topic.starts_with("blacklist") || topic.starts_with("f2bmqtt/blacklist/"));
                assert_eq!(admitted.is_trusted(), accepts.is_none());
                assert!(accepts != Some(false) || payload.is_empty());
                let own = admitted.source().host() == Some(&me);
                assert!(accepts.is_none() || payload.is_empty() || !own);
                if let Ok(event) = admitted.event() {
                    assert!(accepts.is_none() || event.host != me && event.id.is_none());
                }
                if let Ok(part) = admitted.shard(|_| false) {
                    assert!(accepts.is_none() || part.unbans.is_empty());
                    assert_eq!(admitted.source().host(), Some(&part.host));
                }
            }
            Err(rejected) => {
                assert!(!rejected.to_string().contains(is_unsafe_for_display), "{rejected}");
                assert!(rejected.own_shard().is_none() || rejected.host() == Some(&me));
            }
        }
        controller::take(inbound, accepts == Some(false), &topic, payload);
    }
}

/// A signature: the key's owner accepts a signed message, and no other one.
fn sealed(message: &[u8]) {
    const TOPIC: &str = "blacklist/ban";
    let keys = SigningKeys::new(["a secret that no input has"]);
    assert_ne!(keys.check(TOPIC, message), SignatureStatus::Valid);
    if let Some((text, _)) = split(message) {
        assert_eq!(text.len() + 74, message.len());
    }
    let signed = keys.sign(TOPIC, message.to_vec());
    if message.len() > 2 && message.ends_with(b"}") {
        assert_eq!(keys.check(TOPIC, &signed), SignatureStatus::Valid);
        assert_ne!(keys.check("blacklist/unban", &signed), SignatureStatus::Valid);
    } else {
        assert_eq!(signed, message);
    }
}

/// A reply of fail2ban's socket: the pickle only creates plain values.
pub(crate) fn reply(reply: &[u8]) {
    fn count(value: &PickleValue) -> usize {
        1 + value.list().map_or(0, |list| list.iter().map(count).sum())
    }
    if let Ok(value) = read(reply) {
        // A short pickle does not create many values.
        assert!(count(&value) <= 64 * 1024 + 16 * reply.len());
        let _ = (value.text(), value.int());
    }
}

/// A settings file: errors never show a password.
pub(crate) fn settings(text: &[u8]) {
    let secret = [b"MQTT_PASSWORD=pass4711word\nMQTT_SIGNING_KEY=pass4711word\n", text].concat();
    let shown = match Config::parse(Path::new("mqtt.env"), &secret, &|_| None, "node") {
        Err(faults) => faults.to_string(),
        Ok(config) => format!("{config:?}"),
    };
    // A file may expand `$MQTT_PASSWORD` in another setting.
    assert!(text.contains(&b'$') || !shown.contains("pass4711word"));
    let _ = Config::parse(Path::new("mqtt.env"), text, &|_| None, "node");
}

/// The arguments of notifier and reporter, separated by NUL bytes: accepted calls encode to equal ones.
pub(crate) fn arguments(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut rest = text.split('\0');
    let [jail, address, bantime, action, restored, failures, time] =
        std::array::from_fn(|_| rest.next().unwrap_or_default());
    let call = notify::NotifyCall { jail, address, bantime, action, restored, failures, time };
    if let Ok((Some(event), _)) = call.to_event() {
        assert_eq!(SpooledEvent::parse(event.encode().as_bytes()), Ok(event));
    }
    let arguments: Vec<String> = text.split('\0').map(str::to_owned).collect();
    let call = enqueue::ReportCall::from_args(&arguments);
    if let Ok(ReportDecision::Report(report)) = call.decide(1) {
        let written = report.encode();
        let paths = call.ledger.len() + call.log.len();
        assert!(written.len() as u64 <= Report::MAX_BYTES || paths > 4096);
        assert_eq!(Report::parse(written.as_bytes()), Ok(*report));
    }
}

/// A response of AbuseIPDB or of a proxy: its delay and its log text are bounded.
pub(crate) fn answer(bytes: &[u8]) {
    let Some((head, body)) = bytes.split_first_chunk::<18>() else { return };
    let [retry_after, reset] = [2, 10].map(|at| {
        let eight: [u8; 8] = std::array::from_fn(|n| head[at + n]);
        i64::from_le_bytes(eight)
    });
    let answer = ApiResponse {
        status: [200, 400, 401, 422, 429, 500][usize::from(head[0]) % 6],
        retry_after: (head[1] & 1 == 0).then_some(retry_after),
        reset: (head[1] & 2 == 0).then_some(reset),
        body: body.to_vec(),
        ..ApiResponse::default()
    };
    let now = 1_795_342_588;
    let _ = answer.read::<Listing>(now);
    let _ = answer.read::<BulkAccepted>(now);
    if let Err(ApiError::QuotaExhausted(wait)) = answer.read::<Accepted>(now) {
        assert!((1..=25 * 3600).contains(&wait));
    }
    assert!(answer.log_text("secret").chars().count() < 400);
    assert!(!answer.log_text("secret").contains("secret"));
}

/// A report's comment from two log texts with a NUL between: bounded, and without private data.
pub(crate) fn comment(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (first, second) = text.split_once('\0').unwrap_or((&text, ""));
    let private = Private {
        names: vec!["web1".to_owned(), "web1.example.org".to_owned()],
        addresses: vec!["192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap()],
        accounts: vec!["ann".to_owned()],
    };
    let about = Address::new("203.0.113.9").unwrap();
    let comment = compose([first, second].map(|text| (text, CommentSource::Log)), about, &private);
    assert!(comment.chars().count() <= MAX_COMMENT_CHARS);
    assert!(!comment.contains(|c: char| c.is_control() && c != '\n'));
    let lower = comment.to_ascii_lowercase();
    let cut_off = comment.chars().count() == MAX_COMMENT_CHARS;
    for word in lower.split(|c: char| !c.is_alphanumeric() && c != '_') {
        // A cut at the end may leave a name that was the start of another word.
        assert!(cut_off || !["web1", "ann"].contains(&word), "{comment}");
    }
}
