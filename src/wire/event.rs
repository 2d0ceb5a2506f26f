//! One event: a host banned or unbanned an address.

use std::fmt;

use serde::Serialize;

use super::json::{Malformed, StrictObject, write};
use crate::model::ids::shown;
use crate::model::range::{BANTIME_SECS, COUNT, STAMP_MILLIS, TIME_SECS};
use crate::model::{Address, HostName, Jail, UnbanId, range};

/// The largest event that is accepted, in bytes. An event of this program without fleet unbans has less than 400
/// bytes, an event of a script less than 300 bytes.
pub(crate) const MAX_EVENT_BYTES: usize = 4096;

/// The most fleet unbans in an event, newest first. The snapshot has the others.
const MAX_UNBANS: usize = 10;

/// The action of an event that tests whether the broker delivers events to their sender; hosts ignore it.
pub const PROBE_ACTION: &str = "check";

/// The action of an event that requests an acknowledgement: each host publishes in its presence what it did with a
/// ban.
pub const ACK_REQUEST: &str = "ack_request";

/// The action of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The sender bans the address.
    Ban,
    /// The sender releases the address.
    Unban,
    /// An action that this version does not know; printable, at most 32 characters.
    Other(String),
}

impl Action {
    /// Parses an action; blanks and invisible characters become `?`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        match text {
            "ban" => Self::Ban,
            "unban" => Self::Unban,
            other => Self::Other(shown(other, Some('?')).take(32).collect()),
        }
    }

    /// The action as the message has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Ban => "ban",
            Self::Unban => "unban",
            Self::Other(other) => other,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an event was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A ban: the sender's fail2ban detected an attack.
    Detected,
    /// An unban: the ban expired.
    Expired,
    /// An unban: the operator of the origin unbanned the address.
    Lifted,
    /// A fleet unban, which has an id (R16).
    Fleet,
}

impl Reason {
    fn known(text: &str) -> Option<Self> {
        let all = [Self::Detected, Self::Expired, Self::Lifted, Self::Fleet];
        all.into_iter().find(|reason| reason.as_str() == text)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Detected => "detected",
            Self::Expired => "expired",
            Self::Lifted => "lifted",
            Self::Fleet => "fleet",
        }
    }
}

/// An event on `<topic>/ban` or `<topic>/unban`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What the sender did; receivers ignore unknown actions.
    pub action: Action,
    /// The jail; field `ipmset`, because the scripts named the jail's ipset.
    pub jail: Jail,
    /// The address; field `ip`.
    pub address: Address,
    /// The bantime in seconds; -1 is permanent, 0 unknown.
    pub bantime: i64,
    /// The host that sent the event, by its own account.
    pub host: HostName,
    /// Not 0 if fail2ban restored the ban after a start.
    pub restored: i64,
    /// The failures that led to the ban; 0 for an import or a ban by hand.
    pub failures: i64,
    /// When the ban started, in seconds since 1970 on the sender's clock; 0 is unknown.
    pub time: i64,
    /// The sender's sequence number, in milliseconds since 1970; 0 from a script.
    pub stamp: i64,
    /// The cause of the event, if known.
    pub reason: Option<Reason>,
    /// The id of a fleet unban.
    pub id: Option<UnbanId>,
    /// Whether a fleet unban is for all jails (`"jails":"*"`).
    pub all_jails: bool,
    /// The fleet unbans of the address that the sender of a ban applied before it (R17).
    pub unbans: Vec<UnbanId>,
}

impl Event {
    /// Parses an event of f2bmqtt or of a script: fields in any order, unknown fields ignored, numbers also as digits
    /// in a string.
    ///
    /// # Errors
    /// [`Malformed`], with nothing of the payload in its text.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let fields = StrictObject::parse(payload, MAX_EVENT_BYTES)?;
        let reason = fields.text("reason").and_then(Reason::known);
        let id = match reason {
            Some(Reason::Fleet) => Some(fields.required("id", UnbanId::new)?),
            _ => None,
        };
        Ok(Self {
            action: fields.required("action", |text| Ok(Action::new(text)))?,
            jail: fields.required("ipmset", Jail::new)?,
            address: fields.required("ip", Address::new)?,
            // A script publishes its jail's bantime unchecked.
            bantime: range::into(&BANTIME_SECS, fields.duration("bantime")?),
            host: fields.required("host", HostName::new)?,
            restored: fields.flag_or_count("restored", &COUNT)?,
            failures: fields.within("failures", &COUNT)?,
            // Some automations write a date: treat the time as unknown.
            time: fields.number_or_text("time", &TIME_SECS)?,
            stamp: fields.within("stamp", &STAMP_MILLIS)?,
            reason,
            id,
            all_jails: fields.text("jails") == Some("*"),
            unbans: fields.strings("unbans", MAX_UNBANS, UnbanId::new)?,
        })
    }

    /// Whether this is a new ban or unban, not a restored one.
    #[must_use]
    pub fn is_new(&self) -> bool {
        matches!(self.action, Action::Ban | Action::Unban) && self.restored == 0
    }

    /// The event as one line of JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut unbans: Vec<&UnbanId> = self.unbans.iter().collect();
        unbans.sort_by_key(|id| std::cmp::Reverse(id.created_at()));
        unbans.truncate(MAX_UNBANS);
        write(&EventJson {
            action: self.action.as_str(),
            ipmset: &self.jail,
            ip: self.address,
            bantime: range::into(&BANTIME_SECS, self.bantime),
            host: &self.host,
            restored: range::into(&COUNT, self.restored),
            failures: range::into(&COUNT, self.failures),
            time: range::into(&TIME_SECS, self.time),
            stamp: range::into(&STAMP_MILLIS, self.stamp),
            reason: self.reason.map(Reason::as_str),
            id: self.id.as_ref(),
            jails: self.all_jails.then_some("*"),
            unbans,
        })
    }
}

/// The order of the fields is part of the contract with the scripts.
#[derive(Serialize)]
struct EventJson<'a> {
    action: &'a str,
    ipmset: &'a Jail,
    ip: Address,
    bantime: i64,
    host: &'a HostName,
    restored: i64,
    failures: i64,
    time: i64,
    stamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a UnbanId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jails: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unbans: Vec<&'a UnbanId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = r#"{
  "action":"ban",
  "ipmset":"sshd",
  "ip":"203.0.113.9",
  "bantime":600,
  "host":"web1",
  "restored":0,
  "failures":3
}"#;

    fn event() -> Event {
        Event {
            action: Action::Ban,
            jail: Jail::new("sshd").unwrap(),
            address: Address::new("203.0.113.9").unwrap(),
            bantime: 600,
            host: HostName::new("web1").unwrap(),
            restored: 0,
            failures: 3,
            time: 0,
            stamp: 0,
            reason: None,
            id: None,
            all_jails: false,
            unbans: Vec::new(),
        }
    }

    /// Parses an event with one more field, whose value is JSON.
    fn parse_with(field: &str, value: impl fmt::Display) -> Result<Event, Malformed> {
        let json = format!(
            r#"{{"action":"ban","ipmset":"sshd","ip":"203.0.113.9","host":"web1","{field}":{value}}}"#
        );
        Event::parse(json.as_bytes())
    }

    fn with_ip(ip: &str) -> String {
        SCRIPT.replace("203.0.113.9", ip)
    }

    #[test]
    fn fleet_unban_has_an_id_and_a_later_ban_repeats_it() {
        let id = UnbanId::new("web2-1795340000123").unwrap();
        let unban = Event {
            action: Action::Unban,
            stamp: 7,
            reason: Some(Reason::Fleet),
            id: Some(id.clone()),
            all_jails: true,
            ..event()
        };
        let end = r#""reason":"fleet","id":"web2-1795340000123","jails":"*"}"#;
        assert!(unban.encode().ends_with(end), "{}", unban.encode());
        assert_eq!(Event::parse(unban.encode().as_bytes()), Ok(unban.clone()));
        let without = unban.encode().replace("\"id\"", "\"x\"");
        let missing = Malformed::Field("id", "is missing".to_owned());
        assert_eq!(Event::parse(without.as_bytes()), Err(missing));
        let ban = Event { stamp: 8, reason: Some(Reason::Detected), unbans: vec![id], ..event() };
        assert!(ban.encode().ends_with(r#""reason":"detected","unbans":["web2-1795340000123"]}"#));
        assert_eq!(Event::parse(ban.encode().as_bytes()), Ok(ban.clone()));
        let many = ban.encode().replace('[', &format!("[{}", r#""a-1","#.repeat(10)));
        for odd in
            [many, ban.encode().replace("web2-1", "web2/1"), ban.encode().replace("[\"", "[7,\"")]
        {
            assert!(Event::parse(odd.as_bytes()).is_err(), "{odd}");
        }
    }

    #[test]
    fn event_of_a_script_is_parsed() {
        assert_eq!(Event::parse(SCRIPT.as_bytes()), Ok(event()));
    }

    #[test]
    fn encoded_event_is_one_line_with_the_fields_of_the_scripts_first() {
        let (time, stamp) = (1_795_342_588, 1_795_342_588_123);
        let ours = Event { time, stamp, reason: Some(Reason::Detected), ..event() };
        let json = r#"{"action":"ban","ipmset":"sshd","ip":"203.0.113.9","bantime":600,"host":"web1","restored":0,"failures":3,"time":1795342588,"stamp":1795342588123,"reason":"detected"}"#;
        assert_eq!(ours.encode(), json);
        assert_eq!(Event::parse(json.as_bytes()), Ok(ours));
    }

    #[test]
    fn order_extra_fields_and_digits_in_strings_do_not_matter() {
        let json = r#"{"host":"web1","x":{"ip":1},"ip":"203.0.113.9","ipmset":"sshd","failures":"3",
            "restored":"0","bantime":"600","action":"ban","reason":"from a later version"}"#;
        assert_eq!(Event::parse(json.as_bytes()), Ok(event()));
    }

    #[test]
    fn spellings_of_other_programs_are_parsed() {
        let table = [
            ("restored", "false", Some((0, 0, 0))),
            ("restored", "true", Some((1, 0, 0))),
            ("restored", r#""1""#, Some((1, 0, 0))),
            ("restored", r#""yes""#, None),
            ("restored", "-1", None),
            ("bantime", r#""10m""#, Some((0, 600, 0))),
            ("bantime", r#""1d""#, Some((0, 86_400, 0))),
            ("bantime", r#""-1""#, Some((0, -1, 0))),
            ("bantime", r#""600s""#, Some((0, 600, 0))),
            ("bantime", r#""10 minutes""#, None),
            ("bantime", "true", None),
            ("time", r#""2026-11-22T10:16:28+01:00""#, Some((0, 0, 0))),
            ("time", r#""1795342588""#, Some((0, 0, 1_795_342_588))),
            ("time", r#""-1""#, None),
            ("time", "1.5", None),
            ("failures", "true", None),
        ];
        for (field, value, expected) in table {
            let event = parse_with(field, value).ok();
            let numbers = event.map(|event| (event.restored, event.bantime, event.time));
            assert_eq!(numbers, expected, "{field}: {value}");
        }
    }

    #[test]
    fn only_four_fields_are_required() {
        let json = r#"{"action":"unban","ipmset":"sshd","ip":"2001:DB8:0::1","host":"web1"}"#;
        let event = Event::parse(json.as_bytes()).unwrap();
        assert_eq!(event.address.to_string(), "2001:db8::1");
        assert_eq!((event.bantime, event.failures, event.stamp), (0, 0, 0));
        for field in ["action", "ipmset", "ip", "host"] {
            let without = json.replace(&format!("\"{field}\""), "\"other\"");
            let missing = Malformed::Field(field, "is missing".to_owned());
            assert_eq!(Event::parse(without.as_bytes()), Err(missing));
        }
    }

    #[test]
    fn malformed_event_is_rejected() {
        let invalid = [
            String::new(),
            "null".to_owned(),
            "[]".to_owned(),
            format!("{SCRIPT}x"),
            SCRIPT.replace("failures", "ip"),
            SCRIPT.replace("failures", "action"),
            SCRIPT.replace("600", "600.5"),
            SCRIPT.replace("600", "\"10 minutes\""),
            SCRIPT.replace("600", "1e400"),
            SCRIPT.replace("\"web1\"", "7"),
            SCRIPT.replace("web1", "a/b"),
            SCRIPT.replace("sshd", ""),
            SCRIPT.replace("sshd", "a\\nb"),
            SCRIPT.replace("sshd", "a b"),
            SCRIPT.replace("sshd", &"a".repeat(129)),
            SCRIPT.replace("web1", &"a".repeat(5000)),
            with_ip("10.99.0.0/28"),
            with_ip("203.0.113.9,203.0.113.10"),
            with_ip("203.0.113.009"),
            with_ip("0xcb007109"),
            with_ip("fe80::1%eth0"),
            with_ip("localhost"),
            with_ip(" 203.0.113.9"),
            with_ip("２03.0.113.9"),
        ];
        for payload in invalid {
            assert!(Event::parse(payload.as_bytes()).is_err(), "{payload}");
        }
        assert!(Event::parse(b"{\"action\":\"b\xffn\"}").is_err());
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(2000), "]".repeat(2000));
        assert_eq!(Event::parse(deep.as_bytes()), Err(Malformed::NotJson));
    }

    #[test]
    fn ipv4_mapped_address_is_the_ipv4_address() {
        let mapped = SCRIPT.replace("203.0.113.9", "::ffff:203.0.113.9");
        assert_eq!(Event::parse(mapped.as_bytes()), Ok(event()));
    }

    #[test]
    fn number_out_of_its_range_is_rejected() {
        let table = [
            ("restored", 0, 10_000_000),
            ("failures", 0, 10_000_000),
            ("time", 0, 7_258_118_399),
            ("stamp", 0, 253_402_300_799_999),
        ];
        for (field, least, most) in table {
            for number in [least, most] {
                assert!(parse_with(field, number).is_ok(), "{field} {number}");
            }
            for number in [least - 1, most + 1, i64::MIN, i64::MAX, 1 << 53] {
                let error = Malformed::Field("", format!("must be from {least} to {most}"));
                let found = parse_with(field, number).unwrap_err();
                assert_eq!(found.to_string().replace(field, ""), error.to_string(), "{number}");
            }
        }
        let bantimes = [(i64::MIN, -1), (-2, -1), (0, 0), (3_155_760_000, 3_155_760_000)];
        for (published, read) in bantimes.into_iter().chain([(i64::MAX, 3_155_760_000)]) {
            assert_eq!(parse_with("bantime", published).unwrap().bantime, read);
        }
    }

    #[test]
    fn own_number_out_of_its_range_is_clamped() {
        let absurd = Event {
            bantime: i64::MAX,
            restored: -1,
            failures: i64::MAX,
            time: i64::MAX,
            stamp: i64::MAX,
            ..event()
        };
        let read = Event::parse(absurd.encode().as_bytes()).unwrap();
        assert_eq!((read.bantime, read.restored, read.time), (3_155_760_000, 0, 7_258_118_399));
    }

    #[test]
    fn unknown_action_is_shortened_and_printable() {
        let json = SCRIPT.replace("\"ban\"", &format!("\"x\\u001b{}\"", "y".repeat(99)));
        let action = Event::parse(json.as_bytes()).unwrap().action;
        assert_eq!(action, Action::Other(format!("x?{}", "y".repeat(30))));
        let forged = "ban 192.0.2.1\u{3000}-\u{2800}ipset\nsshd";
        assert_eq!(Action::new(forged).as_str(), "ban?192.0.2.1?-?ipset?sshd");
    }
}
