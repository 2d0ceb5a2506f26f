//! The presence of a host, retained at `f2bmqtt/<topic>/host/<host>`; a last will replaces it when the host
//! disconnects. No ban depends on a presence. It informs people, and its topic names a host that has a snapshot.
//!
//! ```json
//! {"v":1,"state":"online","version":"1.0.0","jails":["sshd"],"bans":12,"machine":"8f1d…",
//!  "instance":"0b9e…","since":1795342588,"imported":30,"rejected":{"malformed":2},
//!  "acks":[["sshd","203.0.113.9","web2",1795342588123,"banned"]]}
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize as _, Serialize};
use serde_json::{Value, json};

use super::json::{Malformed, StrictObject, is_zero, write};
use crate::model::ids::shown;
use crate::model::range::{COUNT, STAMP_MILLIS, TIME_SECS};
use crate::model::{Address, HostName, Jail, range};

/// The largest presence that is accepted, in bytes, and the most jails and reasons in it.
pub(crate) const MAX_PRESENCE_BYTES: usize = 32 * 1024;
const MAX_JAILS: usize = 500;
const MAX_REASONS: usize = 30;

/// The longest text for people and the longest outcome, in characters.
const MAX_TEXT: usize = 32;

/// The greatest count of rejected messages per reason.
const MAX_REJECTED: u64 = COUNT.end().unsigned_abs();

/// The most acknowledgements in a presence.
pub const MAX_ACKS: usize = 16;

/// Whether a host's daemon is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostState {
    /// The daemon published this presence itself.
    #[default]
    Online,
    /// The daemon disconnected, or the broker published its last will.
    Offline,
}

impl HostState {
    /// The state as the message has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
        }
    }
}

/// What a host did with a ban of another host's operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The jail of the ban.
    pub jail: Jail,
    /// The banned address.
    pub address: Address,
    /// The host that requested the acknowledgement.
    pub origin: HostName,
    /// The stamp of that request.
    pub stamp: i64,
    /// `banned`, `pending`, or the reason of the rejection; later versions may have more: printable, 1 to 32
    /// characters.
    pub outcome: String,
}

/// The presence of a host, by its own account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// Whether the daemon is connected; a last will has `Offline`.
    pub state: HostState,
    /// The version of the daemon; printable, at most 32 characters.
    pub version: String,
    /// The shared jails of the host's fail2ban.
    pub jails: BTreeSet<Jail>,
    /// The number of bans that the host detected and holds.
    pub bans: usize,
    /// A hash of the machine id, which distinguishes two machines with one name.
    pub machine: String,
    /// A random ID of this run of the daemon, which distinguishes clones of one machine.
    pub instance: String,
    /// When the daemon started, in seconds since 1970; 0 is unknown.
    pub since: i64,
    /// The number of bans that the host imported and holds.
    pub imported: usize,
    /// The number of rejected messages since the start, by the name of the reason (of any version); printable, at most
    /// 32 characters.
    pub rejected: BTreeMap<String, u64>,
    /// The latest requested acknowledgements.
    pub acks: Vec<Ack>,
}

impl Presence {
    /// Parses a presence.
    ///
    /// # Errors
    /// [`Malformed`], with nothing of the payload in its text.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let fields = StrictObject::parse(payload, MAX_PRESENCE_BYTES)?;
        if fields.number("v")? != 1 {
            return Err(Malformed::Field(
                "v",
                "must be 1: the sender has a newer f2bmqtt; update this host".to_owned(),
            ));
        }
        let state = fields.required("state", |text| {
            let state =
                [HostState::Online, HostState::Offline].into_iter().find(|s| s.as_str() == text);
            state.ok_or_else(|| "must be online or offline".to_owned())
        })?;
        Ok(Self {
            state,
            version: fields.printable("version"),
            jails: fields.strings("jails", MAX_JAILS, Jail::new)?.into_iter().collect(),
            bans: fields.count("bans")?,
            machine: fields.printable("machine"),
            instance: fields.printable("instance"),
            since: fields.within("since", &TIME_SECS)?,
            imported: fields.count("imported")?,
            rejected: rejected(fields.counters("rejected")?),
            acks: fields
                .list("acks", MAX_ACKS)?
                .iter()
                .map(Ack::parse)
                .collect::<Result<_, _>>()
                .map_err(|what| Malformed::Field("acks", what))?,
        })
    }

    /// The presence as one line of JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        write(&PresenceJson {
            v: 1,
            state: self.state.as_str(),
            version: &self.version,
            jails: &self.jails,
            bans: self.bans,
            machine: &self.machine,
            instance: &self.instance,
            since: range::into(&TIME_SECS, self.since),
            imported: i64::try_from(self.imported).unwrap_or(i64::MAX),
            rejected: &self.rejected,
            acks: self.acks.iter().map(Ack::to_value).collect(),
        })
    }
}

#[derive(Serialize)]
struct PresenceJson<'a> {
    v: u8,
    state: &'static str,
    version: &'a str,
    jails: &'a BTreeSet<Jail>,
    bans: usize,
    machine: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    instance: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    since: i64,
    #[serde(skip_serializing_if = "is_zero")]
    imported: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rejected: &'a BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    acks: Vec<Value>,
}

impl Ack {
    fn parse(value: &Value) -> Result<Self, String> {
        let fields = <(String, String, String, i64, String)>::deserialize(value);
        let (jail, address, origin, stamp, outcome) =
            fields.map_err(|_| "must be [jail, address, host, stamp, outcome]".to_owned())?;
        if stamp < 1 || !STAMP_MILLIS.contains(&stamp) {
            return Err("must have stamps above 0, before the year 10000".to_owned());
        }
        if outcome.is_empty() || outcome != printable(&outcome) {
            return Err("must have printable outcomes of 1 to 32 characters".to_owned());
        }
        let (jail, address) = (Jail::new(&jail)?, Address::new(&address)?);
        Ok(Self { jail, address, origin: HostName::new(&origin)?, stamp, outcome })
    }

    fn to_value(&self) -> Value {
        let Self { jail, address, origin, stamp, outcome } = self;
        json!([jail.as_str(), address.to_string(), origin.as_str(), stamp, outcome])
    }
}

impl StrictObject {
    /// A text for people; empty if the field is missing.
    fn printable(&self, name: &str) -> String {
        printable(self.text(name).unwrap_or_default())
    }

    /// A count of bans; 0 if the field is missing.
    fn count(&self, name: &'static str) -> Result<usize, Malformed> {
        Ok(usize::try_from(self.within(name, &COUNT)?).unwrap_or_default())
    }
}

/// The visible characters of a text for people, shortened.
fn printable(text: &str) -> String {
    shown(text, None).take(MAX_TEXT).collect()
}

/// Counts by printable reason. Another version may have other reasons. Counts of reasons with the same printable form
/// are added.
fn rejected(counts: Vec<(&str, u64)>) -> BTreeMap<String, u64> {
    let mut rejected = BTreeMap::new();
    for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        let name = printable(name);
        if rejected.len() < MAX_REASONS || rejected.contains_key(&name) {
            let sum: &mut u64 = rejected.entry(name).or_default();
            // An attack may exceed the maximum within days; the maximum stands for "or more".
            *sum = sum.saturating_add(count).min(MAX_REJECTED);
        }
    }
    rejected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(outcome: &str) -> Ack {
        Ack {
            jail: Jail::new("web").unwrap(),
            address: Address::new("203.0.113.30").unwrap(),
            origin: HostName::new("web\"1").unwrap(),
            stamp: 1_795_342_588_123,
            outcome: outcome.to_owned(),
        }
    }

    #[test]
    fn encoded_presence_is_parsed_unchanged() {
        let presence = Presence {
            state: HostState::Online,
            version: "1.0.0".to_owned(),
            jails: ["sshd", "web"].map(|jail| Jail::new(jail).unwrap()).into(),
            bans: 12,
            machine: "8f1d".to_owned(),
            instance: "0b9e".to_owned(),
            since: 1_795_342_588,
            imported: 30,
            rejected: [("malformed", 2), ("old", 1)].map(|(name, n)| (name.to_owned(), n)).into(),
            acks: vec![ack("banned"), ack("never_ban")],
        };
        let json = r#"{"v":1,"state":"online","version":"1.0.0","jails":["sshd","web"],"bans":12,"machine":"8f1d","instance":"0b9e","since":1795342588,"imported":30,"rejected":{"malformed":2,"old":1},"acks":[["web","203.0.113.30","web\"1",1795342588123,"banned"],["web","203.0.113.30","web\"1",1795342588123,"never_ban"]]}"#;
        assert_eq!(presence.encode(), json);
        assert_eq!(Presence::parse(json.as_bytes()), Ok(presence));
        let least = Presence::parse(br#"{"v":1,"state":"offline"}"#).unwrap();
        assert_eq!((least.state, least.bans, least.jails.len()), (HostState::Offline, 0, 0));
        let json = r#"{"v":1,"state":"offline","version":"","jails":[],"bans":0,"machine":""}"#;
        assert_eq!(least.encode(), json, "unknown fields are omitted");
        let rejected = [
            "",
            "{}",
            r#"{"v":2,"state":"online"}"#,
            r#"{"v":1,"state":"asleep"}"#,
            r#"{"v":1,"state":"online","jails":["a b"]}"#,
            r#"{"v":1,"state":"online","since":-1}"#,
            r#"{"v":1,"state":"online","since":7258118400}"#,
            r#"{"v":1,"state":"online","bans":-1}"#,
            r#"{"v":1,"state":"online","bans":10000001}"#,
            r#"{"v":1,"state":"online","imported":9223372036854775807}"#,
            r#"{"v":1,"state":"online","state":"online"}"#,
            r#"{"v":1,"state":"online","rejected":["malformed"]}"#,
            r#"{"v":1,"state":"online","rejected":{"malformed":-1}}"#,
            r#"{"v":1,"state":"online","rejected":{"malformed":"1"}}"#,
        ];
        for payload in rejected {
            assert!(Presence::parse(payload.as_bytes()).is_err(), "{payload}");
        }
    }

    const GOOD_ACK: &str = r#"["web","203.0.113.30","web1",7,"banned"]"#;

    /// So many acknowledgements, as JSON.
    fn acks(count: usize) -> String {
        format!("[{}]", vec![GOOD_ACK; count].join(","))
    }

    /// How many acknowledgements a presence has.
    fn count_acks(acks: &str) -> Result<usize, Malformed> {
        let json = format!(r#"{{"v":1,"state":"online","acks":{acks}}}"#);
        Presence::parse(json.as_bytes()).map(|presence| presence.acks.len())
    }

    #[test]
    fn acks_beyond_the_limit_or_malformed_are_rejected() {
        let good = GOOD_ACK;
        assert_eq!(count_acks("[]"), Ok(0));
        assert_eq!(count_acks(&acks(MAX_ACKS)), Ok(MAX_ACKS));
        let later = good.replace("banned", &"w".repeat(32));
        assert_eq!(count_acks(&format!("[{later}]")), Ok(1), "an outcome of a later version");
        let odd = [
            acks(MAX_ACKS + 1),
            "{}".to_owned(),
            "null".to_owned(),
            "[[]]".to_owned(),
            format!("[{}]", good.replace("banned", "")),
            format!("[{}]", good.replace("banned", &"w".repeat(33))),
            format!("[{}]", good.replace("banned", "\\u202e")),
            format!("[{}]", good.replace("\"banned\"", "7")),
            format!("[{}]", good.replace(']', ",1]")),
            format!("[{}]", good.replace(",7,", ",0,")),
            format!("[{}]", good.replace(",7,", ",7.5,")),
            format!("[{}]", good.replace(",7,", ",253402300800000,")),
            format!("[{}]", good.replace("banned", "ban ned")),
            format!("[{}]", good.replace(",7,", ",\"7\",")),
            format!("[{}]", good.replace("203.0.113.30", "203.0.113.0/24")),
            format!("[{}]", good.replace("web1", "a/b")),
            format!("[{}]", good.replace("\"web\"", "\"a b\"")),
        ];
        for acks in odd {
            assert!(count_acks(&acks).is_err(), "{acks}");
        }
    }

    #[test]
    fn unknown_reasons_are_shortened_and_limited() {
        let reasons: Vec<_> = (0..99).map(|n| format!(r#""later{n:02}":{}"#, n + 1)).collect();
        let long = "x".repeat(99);
        let json = format!(
            r#"{{"v":1,"state":"online","rejected":{{"\u001b[0m":1,"[0m":2,"{long}":7,"zero":0,{}}}}}"#,
            reasons.join(",")
        );
        let rejected = Presence::parse(json.as_bytes()).unwrap().rejected;
        assert_eq!((rejected.len(), rejected["[0m"]), (MAX_REASONS, 3));
        assert!(rejected.keys().all(|name| name.len() <= 32 && !name.contains(char::is_control)));
        assert!(!rejected.contains_key("zero"));
        let json =
            format!(r#"{{"v":1,"state":"online","rejected":{{"a b":{},"ab":9}}}}"#, u64::MAX);
        let rejected = Presence::parse(json.as_bytes()).unwrap().rejected;
        assert_eq!(rejected, [("ab".to_owned(), 10_000_000)].into());
    }
}
