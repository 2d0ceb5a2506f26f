//! One shard of a host's snapshot: the bans that the host detected and holds, for the addresses whose hash selects
//! this shard. Retained at `f2bmqtt/<topic>/state/<host>/<part>`.
//!
//! ```json
//! {"v":1,"host":"web1","stamp":1795342588123,"time":1795342588,"part":0,"parts":4,
//!  "bans":[["sshd","203.0.113.9",1795342588,600]],"unbans":[["*","198.51.100.7","web2-1795340000123"]]}
//! ```

use serde::Serialize;
use serde_json::Value;

use super::json::{Malformed, StrictObject, is_zero, write};
use crate::model::range::{BANTIME_SECS, STAMP_MILLIS, TIME_SECS, within};
use crate::model::{Address, HostName, Jail, JailScope, UnbanId, range};

/// The largest shard that is accepted, in bytes. This program publishes shards of about 16 KiB.
pub(crate) const MAX_SHARD_BYTES: usize = 192 * 1024;

/// The most bans and fleet unbans in a shard.
const MAX_ENTRIES: usize = 8_000;
const MAX_UNBANS: usize = 1_000;

/// The most shards of a snapshot: Mosquitto by default sends at most 1,000 retained messages for a subscription, and
/// drops the rest.
pub const MAX_SHARDS: u32 = 512;

/// A ban as its origin describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// When the ban started, in seconds since 1970 on the origin's clock; 0 is unknown.
    pub start: i64,
    /// The bantime in seconds; -1 is permanent, 0 unknown.
    pub bantime: i64,
}

impl Ban {
    /// When the ban ends, in seconds since 1970 on the origin's clock; `i64::MAX` if it is permanent.
    #[must_use]
    pub fn end(self) -> i64 {
        if self.bantime < 0 { i64::MAX } else { self.start.saturating_add(self.bantime) }
    }
}

/// The addresses of a shard: those whose hash modulo `count` is `index`. Invariant: `count` is a power of two, so that
/// a resharded snapshot splits or merges whole shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardId {
    index: u32,
    count: u32,
}

impl ShardId {
    /// The shard `index` of `count`.
    ///
    /// # Errors
    /// The rule for both numbers, as the end of a sentence.
    pub fn new(index: u32, count: u32) -> Result<Self, String> {
        if count.is_power_of_two() && count <= MAX_SHARDS && index < count {
            Ok(Self { index, count })
        } else {
            Err(format!("must be a power of two, at most {MAX_SHARDS} and greater than `part`"))
        }
    }

    /// The shard of an address among `count`.
    ///
    /// # Panics
    /// If `count` is 0.
    #[must_use]
    pub fn of(address: Address, count: u32) -> Self {
        let index = address.hash() % u64::from(count);
        Self { index: u32::try_from(index).unwrap_or_default(), count }
    }

    /// The shards of an address, one for each valid count.
    pub fn all_of(address: Address) -> impl Iterator<Item = Self> {
        let hash = address.hash();
        let sizes = (0..=MAX_SHARDS.trailing_zeros()).map(|bits| 1 << bits);
        sizes.map(move |count: u32| {
            let index = u32::try_from(hash % u64::from(count)).unwrap_or_default();
            Self { index, count }
        })
    }

    /// The number of the shard, which is the last level of its topic.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    /// The number of shards in the snapshot.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// Whether an address belongs to this shard.
    #[must_use]
    pub fn covers(self, address: Address) -> bool {
        Self::of(address, self.count) == self
    }

    /// Whether every address of `other` belongs to this shard.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        other.count.is_multiple_of(self.count) && other.index % self.count == self.index
    }
}

/// One ban in a shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardEntry {
    /// The jail of the ban, by its name on the origin.
    pub jail: Jail,
    /// The banned address.
    pub address: Address,
    /// As in [`Ban`].
    pub start: i64,
    /// As in [`Ban`].
    pub bantime: i64,
}

/// One fleet unban that the host of the shard has applied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FleetUnban {
    /// The jails in which the address is released.
    pub scope: JailScope,
    /// The released address.
    pub address: Address,
    /// Distinguishes this fleet unban from others of the address.
    pub id: UnbanId,
}

/// A shard of a host's snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The host whose snapshot this is.
    pub host: HostName,
    /// The host's sequence number of events and shards, in milliseconds since 1970.
    pub stamp: i64,
    /// The host's clock at publication, in seconds since 1970; 0 is unknown. The stamp may be ahead of it.
    pub time: i64,
    /// The addresses of the shard.
    pub id: ShardId,
    /// The bans that the host detected and holds.
    pub bans: Vec<ShardEntry>,
    /// The fleet unbans of these addresses that the host has applied.
    pub unbans: Vec<FleetUnban>,
}

impl Shard {
    /// Parses a shard. All its addresses must belong to it.
    ///
    /// # Errors
    /// [`Malformed`], with nothing of the payload in its text.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let fields = StrictObject::parse(payload, MAX_SHARD_BYTES)?;
        if fields.number("v")? != 1 {
            return Err(Malformed::Field(
                "v",
                "must be 1: the sender has a newer f2bmqtt; update this host".to_owned(),
            ));
        }
        let id = ShardId::new(fields.index("part")?, fields.index("parts")?);
        let id = id.map_err(|what| Malformed::Field("parts", what))?;
        let stamp = fields.within("stamp", &STAMP_MILLIS)?;
        if stamp == 0 {
            return Err(Malformed::Field("stamp", "must be greater than 0".to_owned()));
        }
        let time = fields.within("time", &TIME_SECS)?;
        let bans = fields.list("bans", MAX_ENTRIES)?.iter().map(|value| entry(value, id));
        let bans = bans.collect::<Result<_, _>>().map_err(|what| Malformed::Field("bans", what))?;
        let unbans = fields.list("unbans", MAX_UNBANS)?.iter().map(|value| fleet_unban(value, id));
        let unbans =
            unbans.collect::<Result<_, _>>().map_err(|what| Malformed::Field("unbans", what))?;
        Ok(Self { host: fields.required("host", HostName::new)?, stamp, time, id, bans, unbans })
    }

    /// The shard as one line of JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let bans = self.bans.iter().map(|ban| {
            let start = range::into(&TIME_SECS, ban.start);
            let bantime = range::into(&BANTIME_SECS, ban.bantime);
            (&ban.jail, ban.address, start, bantime)
        });
        let unbans = self.unbans.iter().map(|unban| (&unban.scope, unban.address, &unban.id));
        write(&Json {
            v: 1,
            host: &self.host,
            stamp: range::into(&STAMP_MILLIS, self.stamp),
            time: range::into(&TIME_SECS, self.time),
            part: self.id.index,
            parts: self.id.count,
            bans: bans.collect(),
            unbans: unbans.collect(),
        })
    }
}

/// The JSON of a shard. Its fields have the order of this declaration.
#[derive(Serialize)]
struct Json<'a> {
    v: u8,
    host: &'a HostName,
    stamp: i64,
    #[serde(skip_serializing_if = "is_zero")]
    time: i64,
    part: u32,
    parts: u32,
    bans: Vec<(&'a Jail, Address, i64, i64)>,
    unbans: Vec<(&'a JailScope, Address, &'a UnbanId)>,
}

impl StrictObject {
    /// A number of shards; one that is too large or negative is invalid in any case.
    fn index(&self, name: &'static str) -> Result<u32, Malformed> {
        Ok(u32::try_from(self.number(name)?).unwrap_or(u32::MAX))
    }
}

const ENTRY_RULE: &str = "must be [jail, address, start, bantime]";

fn entry(value: &Value, shard: ShardId) -> Result<ShardEntry, String> {
    let [Value::String(jail), Value::String(address), Value::Number(start), Value::Number(bantime)] =
        value.as_array().map(Vec::as_slice).unwrap_or_default()
    else {
        return Err(ENTRY_RULE.to_owned());
    };
    Ok(ShardEntry {
        jail: Jail::new(jail)?,
        address: belonging(address, shard)?,
        start: within(&TIME_SECS, start.as_i64().ok_or(ENTRY_RULE)?)?,
        bantime: within(&BANTIME_SECS, bantime.as_i64().ok_or(ENTRY_RULE)?)?,
    })
}

fn fleet_unban(value: &Value, shard: ShardId) -> Result<FleetUnban, String> {
    let [Value::String(scope), Value::String(address), Value::String(id)] =
        value.as_array().map(Vec::as_slice).unwrap_or_default()
    else {
        return Err("must be [jail, address, id]".to_owned());
    };
    Ok(FleetUnban {
        scope: JailScope::new(scope)?,
        address: belonging(address, shard)?,
        id: UnbanId::new(id)?,
    })
}

fn belonging(address: &str, shard: ShardId) -> Result<Address, String> {
    let address = Address::new(address)?;
    if shard.covers(address) {
        Ok(address)
    } else {
        Err("must list only addresses of this shard".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::new(text).unwrap()
    }

    fn shard() -> Shard {
        let id = ShardId::of(address("203.0.113.9"), 4);
        let jail = Jail::new("sshd").unwrap();
        let mut bans: Vec<_> = (0..=255)
            .map(|n| address(&format!("203.0.113.{n}")))
            .filter(|address| id.covers(*address))
            .map(|address| ShardEntry {
                jail: jail.clone(),
                address,
                start: 1_795_342_588,
                bantime: 600,
            })
            .collect();
        bans[0].bantime = -1;
        let unbans = [("*", "web2-1795340000123"), ("sshd", "web-3-1795340000124")];
        let unbans = unbans.map(|(scope, id)| FleetUnban {
            scope: JailScope::new(scope).unwrap(),
            address: address("203.0.113.9"),
            id: UnbanId::new(id).unwrap(),
        });
        Shard {
            host: HostName::new("we\"b1").unwrap(),
            stamp: 1_795_342_588_123,
            time: 0,
            id,
            bans,
            unbans: unbans.into(),
        }
    }

    #[test]
    fn encoded_shard_is_parsed_unchanged() {
        assert_eq!(Shard::parse(shard().encode().as_bytes()), Ok(shard()));
        let empty = Shard {
            host: HostName::new("web1").unwrap(),
            stamp: 5,
            time: 4,
            id: ShardId::new(0, 1).unwrap(),
            bans: Vec::new(),
            unbans: Vec::new(),
        };
        let json =
            r#"{"v":1,"host":"web1","stamp":5,"time":4,"part":0,"parts":1,"bans":[],"unbans":[]}"#;
        assert_eq!(empty.encode(), json);
        assert_eq!(Shard::parse(json.as_bytes()), Ok(empty.clone()));
        let later = json.replace("]}", r#"],"sig":"later"}"#);
        assert_eq!(Shard::parse(later.as_bytes()), Ok(empty));
    }

    #[test]
    fn own_number_out_of_range_is_clamped() {
        let mut shard = shard();
        shard.bans[0].bantime = i64::MAX;
        shard.bans[1].bantime = i64::MIN;
        shard.bans[1].start = i64::MAX;
        let read = Shard::parse(shard.encode().as_bytes()).unwrap();
        assert_eq!((read.bans[0].bantime, read.bans[1].bantime), (3_155_760_000, -1));
        assert_eq!(read.bans[1].start, 7_258_118_399);
    }

    #[test]
    fn malformed_shard_is_rejected() {
        let json = shard().encode();
        let other = (0..=255)
            .map(|n| format!("203.0.113.{n}"))
            .find(|text| !shard().id.covers(Address::new(text).unwrap()))
            .unwrap();
        let invalid = [
            String::new(),
            "[]".to_owned(),
            json.replace(r#""v":1"#, r#""v":2"#),
            json.replace(r#""v":1"#, r#""stamp":1"#),
            json.replace(r#""parts":4"#, r#""parts":3"#),
            json.replace(r#""parts":4"#, r#""parts":1024"#),
            json.replace(r#""parts":4"#, r#""parts":0"#),
            json.replace(r#""parts":4"#, r#""parts":-4"#),
            json.replace("1795342588123", "0"),
            json.replace("1795342588123", "1e9"),
            json.replace("203.0.113.9", &other),
            json.replace("203.0.113.9", "203.0.113.9/32"),
            json.replacen("\"sshd\"", "\"ss hd\"", 1),
            json.replacen(",600]", ",-2]", 1),
            json.replacen(",600]", ",3155760001]", 1),
            json.replacen("1795342588,600]", "-1,600]", 1),
            json.replacen("1795342588,600]", "7258118400,600]", 1),
            json.replacen("1795342588,600]", "9223372036854775807,600]", 1),
            json.replace("1795342588123", "253402300800000"),
            json.replace("web-3-1795340000124", "web-3-253402300800000"),
            json.replacen(",600]", ",600,1]", 1),
            json.replacen(",600]", "]", 1),
            json.replacen(",600]", ",\"600\"]", 1),
            json.replace("web-3-1795340000124", "web3"),
            json.replace(r#""bans":["#, r#""bans":[7,"#),
            json.replace(r#""bans":["#, r#""bans":{},"b":["#),
            json.replace("1795342588123", &format!("7{}", " ".repeat(MAX_SHARD_BYTES))),
        ];
        for payload in invalid {
            assert_ne!(payload, json);
            assert!(Shard::parse(payload.as_bytes()).is_err(), "{payload}");
        }
    }

    #[test]
    fn each_address_belongs_to_one_shard_of_each_count() {
        for n in 0..=255 {
            let address = Address::new(&format!("198.51.100.{n}")).unwrap();
            for count in [1, 2, 64, MAX_SHARDS] {
                let covering =
                    (0..count).filter(|&n| ShardId::new(n, count).unwrap().covers(address));
                assert_eq!(covering.count(), 1);
            }
            assert!(ShardId::of(address, 4).contains(ShardId::of(address, 8)));
            assert!(!ShardId::of(address, 8).contains(ShardId::of(address, 4)));
        }
    }
}
