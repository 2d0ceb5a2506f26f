//! One part of a host's snapshot: what the host detected and holds now, as far as a hash of the
//! addresses says that it belongs here. Retained at `f2bmqtt/<topic>/state/<host>/<part>`.
//!
//! ```json
//! {"v":1,"host":"web1","stamp":1795342588123,"time":1795342588,"part":0,"parts":4,
//!  "bans":[["sshd","203.0.113.9",1795342588,600]],"unbans":[["*","198.51.100.7","web2-1795340000123"]]}
//! ```

use serde::Serialize;
use serde_json::Value;

use super::fields::{Malformed, StrictObject, is_zero, write};
use super::range::{self, BANTIME_SECS, STAMP_MILLIS, TIME_SECS, within};
use super::{Address, HostName, Jail, JailScope, UnbanId};

/// The largest part that is read, in bytes. Ours are about 16 KiB.
pub(crate) const MAX_SHARD_BYTES: usize = 192 * 1024;

/// The most bans and fleet unbans in a part.
const MAX_ENTRIES: usize = 8_000;
const MAX_UNBANS: usize = 1_000;

/// The most parts of a snapshot: a default mosquitto hands out 1,000 retained messages at once and
/// drops the rest.
pub const MAX_SHARDS: u32 = 512;

/// A ban, as the host that made it tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// When it began, in seconds since 1970 on that host's clock; 0 is not known.
    pub start: i64,
    /// How long it lasts, in seconds; -1 is for ever, 0 is not known.
    pub bantime: i64,
}

impl Ban {
    /// When it ends, in seconds since 1970 on its host's clock; `i64::MAX` for ever.
    #[must_use]
    pub fn end(self) -> i64 {
        if self.bantime < 0 { i64::MAX } else { self.start.saturating_add(self.bantime) }
    }
}

/// Which addresses a part is for: those whose hash, modulo `parts`, is `part`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardId {
    index: u32,
    count: u32,
}

impl ShardId {
    /// A part of so many.
    ///
    /// # Errors
    /// A sentence's end that says what they must be.
    pub fn new(part: u32, parts: u32) -> Result<Self, String> {
        if parts.is_power_of_two() && parts <= MAX_SHARDS && part < parts {
            Ok(Self { index: part, count: parts })
        } else {
            Err(format!("must be a power of two, at most {MAX_SHARDS} and greater than `part`"))
        }
    }

    /// The part that an address belongs to.
    ///
    /// # Panics
    /// If `parts` is 0.
    #[must_use]
    pub fn of(address: Address, parts: u32) -> Self {
        let part = address.hash() % u64::from(parts);
        Self { index: u32::try_from(part).unwrap_or_default(), count: parts }
    }

    /// The parts that an address belongs to, one for each number of parts.
    pub fn all_of(address: Address) -> impl Iterator<Item = Self> {
        let hash = address.hash();
        let sizes = (0..=MAX_SHARDS.trailing_zeros()).map(|bits| 1 << bits);
        sizes.map(move |parts: u32| {
            let part = u32::try_from(hash % u64::from(parts)).unwrap_or_default();
            Self { index: part, count: parts }
        })
    }

    /// Its number, which is the last level of its topic.
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// Whether an address belongs here.
    #[must_use]
    pub fn covers(self, address: Address) -> bool {
        Self::of(address, self.count) == self
    }

    /// Whether every address of `other` belongs here.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        other.count.is_multiple_of(self.count) && other.index % self.count == self.index
    }
}

/// One ban of a part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct ShardEntry {
    pub jail: Jail,
    pub address: Address,
    pub start: i64,
    pub bantime: i64,
}

/// One fleet unban that the part's host knows and has obeyed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct FleetUnban {
    pub scope: JailScope,
    pub address: Address,
    pub id: UnbanId,
}

/// A part of a host's snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Whose.
    pub host: HostName,
    /// Orders what the host says, events and parts, in milliseconds since 1970.
    pub stamp: i64,
    /// The host's clock when it was published, in seconds since 1970; 0 is not known. The stamp may be ahead of it.
    pub time: i64,
    /// Which addresses it is for.
    pub id: ShardId,
    /// What the host detected and holds.
    pub bans: Vec<ShardEntry>,
    /// What was freed for the whole fleet.
    pub unbans: Vec<FleetUnban>,
}

impl Shard {
    /// Reads a part. Every address has to belong to it.
    ///
    /// # Errors
    /// [`Malformed`], with nothing of the payload in its text.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let fields = StrictObject::parse(payload, MAX_SHARD_BYTES)?;
        if fields.number("v")? != 1 {
            return Err(Malformed::Field(
                "v",
                "must be 1: this host needs a newer version".to_owned(),
            ));
        }
        let number = |name| Ok(u32::try_from(fields.number(name)?).unwrap_or(u32::MAX));
        let slice = ShardId::new(number("part")?, number("parts")?);
        let slice = slice.map_err(|what| Malformed::Field("parts", what))?;
        let stamp = fields.within("stamp", &STAMP_MILLIS)?;
        if stamp == 0 {
            return Err(Malformed::Field("stamp", "must be greater than 0".to_owned()));
        }
        let time = fields.within("time", &TIME_SECS)?;
        let bans = fields.list("bans", MAX_ENTRIES)?.iter().map(|value| entry(value, slice));
        let bans = bans.collect::<Result<_, _>>().map_err(|what| Malformed::Field("bans", what))?;
        let unbans =
            fields.list("unbans", MAX_UNBANS)?.iter().map(|value| fleet_unban(value, slice));
        let unbans =
            unbans.collect::<Result<_, _>>().map_err(|what| Malformed::Field("unbans", what))?;
        Ok(Self {
            host: fields.required("host", HostName::new)?,
            stamp,
            time,
            id: slice,
            bans,
            unbans,
        })
    }

    /// Writes the part as one line of JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let ban = |ShardEntry { jail, address, start, bantime }: &ShardEntry| {
            let start = range::into(&TIME_SECS, *start);
            (jail.clone(), *address, start, range::into(&BANTIME_SECS, *bantime))
        };
        let unban = |unban: &FleetUnban| (unban.scope.clone(), unban.address, unban.id.clone());
        write(&Json {
            v: 1,
            host: &self.host,
            stamp: range::into(&STAMP_MILLIS, self.stamp),
            time: range::into(&TIME_SECS, self.time),
            part: self.id.index,
            parts: self.id.count,
            bans: self.bans.iter().map(ban).collect(),
            unbans: self.unbans.iter().map(unban).collect(),
        })
    }
}

/// A part as it is written. The order of the fields is the order of the declaration.
#[derive(Serialize)]
struct Json<'a> {
    v: u8,
    host: &'a HostName,
    stamp: i64,
    #[serde(skip_serializing_if = "is_zero")]
    time: i64,
    part: u32,
    parts: u32,
    bans: Vec<(Jail, Address, i64, i64)>,
    unbans: Vec<(JailScope, Address, UnbanId)>,
}

fn entry(value: &Value, slice: ShardId) -> Result<ShardEntry, String> {
    let what = || "must be [jail, address, start, bantime]".to_owned();
    let [Value::String(jail), Value::String(address), Value::Number(start), Value::Number(bantime)] =
        value.as_array().map(Vec::as_slice).unwrap_or_default()
    else {
        return Err(what());
    };
    let number = |number: &serde_json::Number, range| {
        number.as_i64().ok_or_else(what).and_then(|number| within(range, number))
    };
    Ok(ShardEntry {
        jail: Jail::new(jail)?,
        address: belonging(address, slice)?,
        start: number(start, &TIME_SECS)?,
        bantime: number(bantime, &BANTIME_SECS)?,
    })
}

fn fleet_unban(value: &Value, slice: ShardId) -> Result<FleetUnban, String> {
    let [Value::String(scope), Value::String(address), Value::String(id)] =
        value.as_array().map(Vec::as_slice).unwrap_or_default()
    else {
        return Err("must be [jail, address, id]".to_owned());
    };
    Ok(FleetUnban {
        scope: JailScope::new(scope)?,
        address: belonging(address, slice)?,
        id: UnbanId::new(id)?,
    })
}

fn belonging(address: &str, slice: ShardId) -> Result<Address, String> {
    let address = Address::new(address)?;
    if slice.covers(address) {
        Ok(address)
    } else {
        Err("must list only addresses of this shard".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part() -> Shard {
        let address = |text: &str| Address::new(text).unwrap();
        let slice = ShardId::of(address("203.0.113.9"), 4);
        let jail = Jail::new("sshd").unwrap();
        let mut bans: Vec<_> = (0..=255)
            .map(|n| address(&format!("203.0.113.{n}")))
            .filter(|address| slice.covers(*address))
            .map(|address| ShardEntry {
                jail: jail.clone(),
                address,
                start: 1_795_342_588,
                bantime: 600,
            })
            .collect();
        bans[0].bantime = -1;
        let one = |scope: &str, id: &str| FleetUnban {
            scope: JailScope::new(scope).unwrap(),
            address: address("203.0.113.9"),
            id: UnbanId::new(id).unwrap(),
        };
        let unbans = vec![one("*", "web2-1795340000123"), one("sshd", "web-3-1795340000124")];
        Shard {
            host: HostName::new("we\"b1").unwrap(),
            stamp: 1_795_342_588_123,
            time: 0,
            id: slice,
            bans,
            unbans,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(Shard::parse(part().encode().as_bytes()), Ok(part()));
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
    fn own_number_out_of_its_range_is_published_within() {
        let mut part = part();
        part.bans[0].bantime = i64::MAX;
        part.bans[1].bantime = i64::MIN;
        part.bans[1].start = i64::MAX;
        let read = Shard::parse(part.encode().as_bytes()).unwrap();
        assert_eq!((read.bans[0].bantime, read.bans[1].bantime), (3_155_760_000, -1));
        assert_eq!(read.bans[1].start, 7_258_118_399);
    }

    #[test]
    fn what_is_no_part_is_refused() {
        let json = part().encode();
        let other = (0..=255)
            .map(|n| format!("203.0.113.{n}"))
            .find(|text| !part().id.covers(Address::new(text).unwrap()))
            .unwrap();
        let refused = [
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
        for payload in refused {
            assert_ne!(payload, json);
            assert!(Shard::parse(payload.as_bytes()).is_err(), "{payload}");
        }
    }

    #[test]
    fn each_address_belongs_to_one_part_and_to_one_of_twice_as_many() {
        for n in 0..=255 {
            let address = Address::new(&format!("198.51.100.{n}")).unwrap();
            for parts in [1, 2, 64, MAX_SHARDS] {
                let covering =
                    (0..parts).filter(|&n| ShardId::new(n, parts).unwrap().covers(address));
                assert_eq!(covering.count(), 1);
            }
            assert!(ShardId::of(address, 4).contains(ShardId::of(address, 8)));
            assert!(!ShardId::of(address, 8).contains(ShardId::of(address, 4)));
        }
    }
}
