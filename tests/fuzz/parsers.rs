//! What must hold of each parser that reads what it does not control, whatever it is given. libFuzzer drives
//! these in `targets/`, and `tests/mutations.rs` in every run of the tests.

#![allow(dead_code, reason = "each target uses one of them")]

#[path = "controller.rs"]
mod controller;
#[path = "../simulation/inbound.rs"]
mod inbound;

use std::path::Path;
use std::sync::LazyLock;

use f2bmqtt::abuseipdb::answer::{Accepted, ApiError, ApiResponse, BulkAccepted, Listing};
use f2bmqtt::abuseipdb::call::{self, ReportDecision};
use f2bmqtt::abuseipdb::comment::{MAX_COMMENT_CHARS, Private, compose};
use f2bmqtt::abuseipdb::report::CommentSource;
use f2bmqtt::abuseipdb::report::Report;
use f2bmqtt::config::Config;
use f2bmqtt::fail2ban::pickle::{PickleValue, read};
use f2bmqtt::guard::gate::Source;
use f2bmqtt::notify;
use f2bmqtt::spool::Item;
use f2bmqtt::text::is_unsafe_for_display;
use f2bmqtt::wire::seal::{SignatureStatus, SigningKeys, split};
use f2bmqtt::wire::{Address, Event, HostName, Presence, Shard, SpooledEvent};

use inbound::Inbound;

/// An event, as it comes from the broker: what is taken is bounded, and means the same when it is sent on.
pub(crate) fn event(payload: &[u8]) {
    sealed(payload);
    if let Ok(event) = Event::parse(payload) {
        assert!(payload.len() <= 4096);
        let again = event.encode();
        assert!(!again.contains(is_unsafe_for_display), "{again}");
        assert_eq!(Event::parse(again.as_bytes()).as_ref(), Ok(&event));
    }
}

/// A part of a snapshot: the same, and it lists only what belongs to it.
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

/// What a host says of itself: the same.
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

/// Hosts without a key, and with one: whether those accept what is unsigned.
static HOSTS: LazyLock<[(Option<bool>, Inbound); 3]> = LazyLock::new(|| {
    [None, Some(true), Some(false)].map(|accepts| {
        let me = HostName::new("web1").expect("it is a name");
        let keys = accepts.map(|_| SigningKeys::new(["a secret that no input has"]));
        (accepts, Inbound::new(&me, keys, accepts == Some(true)))
    })
});

/// A message as it comes, topic and payload with a line end between: nobody without the key gets past the gate
/// of a fleet that has one, except with an empty payload; nothing in it is printed as it is; and what passes goes
/// on into the tables of a small fleet, whose invariants hold.
pub(crate) fn gate(message: &[u8]) {
    let at = message.iter().position(|byte| *byte == b'\n').unwrap_or(message.len());
    let topic = String::from_utf8_lossy(&message[..at]);
    let payload = message.get(at + 1..).unwrap_or_default();
    let me = HostName::new("web1").expect("it is a name");
    for (accepts, inbound) in &*HOSTS {
        let accepts = *accepts;
        match inbound.gate.admit(&topic, payload.to_vec()) {
            // A subscription beside the fleet's: whatever is said there is nothing of the fleet's.
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
                let event = admitted.event();
                let is_ours = |event: &Event| event.host == me || event.id.is_some();
                assert!(accepts.is_none() || !event.as_ref().is_ok_and(is_ours));
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

/// A signature: nothing that was not signed is taken for it, and what is signed is.
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

/// A reply of fail2ban's socket: a pickle, of which nothing but plain values is ever made.
pub(crate) fn reply(reply: &[u8]) {
    fn count(value: &PickleValue) -> usize {
        1 + value.list().map_or(0, |list| list.iter().map(count).sum())
    }
    if let Ok(value) = read(reply) {
        // A few bytes make no heap of values.
        assert!(count(&value) <= 64 * 1024 + 16 * reply.len());
        let _ = (value.text(), value.int());
    }
}

/// A settings file: read whole or refused with all its faults, which never show a password.
pub(crate) fn settings(text: &[u8]) {
    let nothing = |_: &str| None;
    let secret = [b"MQTT_PASSWORD=pass4711word\nMQTT_SIGNING_KEY=pass4711word\n", text].concat();
    let shown = match Config::parse(Path::new("mqtt.env"), &secret, &nothing, "node") {
        Err(faults) => faults.to_string(),
        Ok(config) => format!("{config:?}"),
    };
    // Whoever writes `$MQTT_PASSWORD` into another setting wants it there.
    assert!(text.contains(&b'$') || !shown.contains("pass4711word"));
    let _ = Config::parse(Path::new("mqtt.env"), text, &nothing, "node");
}

/// The arguments of notifier and reporter, between NUL bytes: whatever is taken can be written and read
/// again.
pub(crate) fn arguments(arguments: &[u8]) {
    let text = String::from_utf8_lossy(arguments);
    let arguments_list: Vec<&str> = text.split('\0').collect();
    let argument = |n: usize| arguments_list.get(n).copied().unwrap_or("");
    let call = notify::NotifyCall {
        jail: argument(0),
        address: argument(1),
        bantime: argument(2),
        action: argument(3),
        restored: argument(4),
        failures: argument(5),
        time: argument(6),
    };
    if let Ok((Some(told), _)) = call.to_event() {
        assert_eq!(SpooledEvent::parse(told.encode().as_bytes()), Ok(told));
    }
    let arguments_list: Vec<String> =
        arguments_list.iter().map(|&argument| argument.to_owned()).collect();
    let call = call::ReportCall::from_args(&arguments_list);
    if let Ok(ReportDecision::Report(report)) = call.decide(1) {
        let written = report.encode();
        let paths = call.ledger.len() + call.log.len();
        assert!(written.len() as u64 <= Report::MAX || paths > 4096);
        assert_eq!(Report::parse(written.as_bytes()), Ok(*report));
    }
}

/// An answer of AbuseIPDB, or of whoever is between: a wait is bounded, and what is logged, too.
pub(crate) fn answer(bytes: &[u8]) {
    let Some((head, body)) = bytes.split_first_chunk::<18>() else { return };
    let number = |at: usize| {
        let eight: [u8; 8] = std::array::from_fn(|n| head[at + n]);
        Some(i64::from_le_bytes(eight))
    };
    let answer = ApiResponse {
        status: [200, 400, 401, 422, 429, 500][usize::from(head[0]) % 6],
        retry_after: number(2).filter(|_| head[1] & 1 == 0),
        reset: number(10).filter(|_| head[1] & 2 == 0),
        body: body.to_vec(),
        ..ApiResponse::default()
    };
    let now = 1_795_342_588;
    let _ = answer.read::<Listing>(now);
    let _ = answer.read::<BulkAccepted>(now);
    if let Err(ApiError::Spent(wait)) = answer.read::<Accepted>(now) {
        assert!((1..=25 * 3600).contains(&wait));
    }
    assert!(answer.log_text("secret").chars().count() < 400);
    assert!(!answer.log_text("secret").contains("secret"));
}

/// A report's comment, of whatever an attacker writes into a log, in two texts with a NUL between: short,
/// and with nothing private.
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
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let arguments_list = comment.to_ascii_lowercase();
    let cut_off = comment.chars().count() == MAX_COMMENT_CHARS;
    for argument in arguments_list.split(|c| !part(c)) {
        // What is cut at the end may become a name that was part of another word.
        assert!(cut_off || !["web1", "ann"].contains(&argument), "{comment}");
    }
}
