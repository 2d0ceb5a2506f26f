//! The fields of a JSON object. A key that appears twice is an error, because two parsers could read two different
//! messages.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use crate::model::range;

const MISSING: &str = "is missing";

/// Why a payload is malformed. The text shows nothing of the payload, which may be hostile.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Larger than the limit of its kind of message.
    #[error("{0} bytes exceed the limit of {1} bytes")]
    TooLarge(usize, usize),
    /// Not one JSON object with each key once.
    #[error("not one JSON object with unique keys")]
    NotJson,
    /// A field is missing or invalid.
    #[error("{}", about_field(.0, .1))]
    Field(&'static str, String),
}

fn about_field(name: &str, what: &str) -> String {
    match what {
        MISSING => format!("missing field `{name}`"),
        what => format!("field `{name}` {what}"),
    }
}

/// A message as one line of JSON.
pub(super) fn write(message: &impl Serialize) -> String {
    // JSON has no value only for a map with keys that are no strings.
    serde_json::to_string(message).expect("a message is JSON")
}

/// Whether a number is 0, which means unknown and is omitted.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference.
pub(super) fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// One parsed object. Nested values are parsed by the caller.
pub(super) struct StrictObject(BTreeMap<String, Value>);

impl StrictObject {
    /// Parses an object of at most `max` bytes.
    pub(super) fn parse(json: &[u8], max: usize) -> Result<Self, Malformed> {
        if json.len() > max {
            return Err(Malformed::TooLarge(json.len(), max));
        }
        serde_json::from_slice(json).map_err(|_| Malformed::NotJson)
    }

    /// A string, or `None` if the field is missing or has another type.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// A required string, converted by `make`.
    pub(super) fn required<T>(
        &self,
        name: &'static str,
        make: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, Malformed> {
        let what = match self.0.get(name) {
            Some(Value::String(text)) => match make(text) {
                Ok(value) => return Ok(value),
                Err(what) => what,
            },
            Some(_) => "must be a string".to_owned(),
            None => MISSING.to_owned(),
        };
        Err(Malformed::Field(name, what))
    }

    /// A list of strings, each converted by `make`; empty if the field is missing.
    pub(super) fn strings<T>(
        &self,
        name: &'static str,
        max: usize,
        make: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, Malformed> {
        self.list(name, max)?
            .iter()
            .map(|value| match value {
                Value::String(text) => make(text).map_err(|what| Malformed::Field(name, what)),
                _ => Err(Malformed::Field(name, "must be a list of strings".to_owned())),
            })
            .collect()
    }

    /// A list of at most `max` values; empty if the field is missing.
    pub(super) fn list(&self, name: &'static str, max: usize) -> Result<&[Value], Malformed> {
        match self.0.get(name) {
            None => Ok(&[]),
            Some(Value::Array(values)) if values.len() <= max => Ok(values),
            Some(_) => {
                Err(Malformed::Field(name, format!("must be a list of at most {max} values")))
            }
        }
    }

    /// Names and their counts; empty if the field is missing.
    pub(super) fn counters(&self, name: &'static str) -> Result<Vec<(&str, u64)>, Malformed> {
        let counts = match self.0.get(name) {
            None => Some(Vec::new()),
            Some(Value::Object(counts)) => {
                counts.iter().map(|(name, count)| Some((name.as_str(), count.as_u64()?))).collect()
            }
            Some(_) => None,
        };
        counts.ok_or_else(|| {
            Malformed::Field(name, "must be an object of names and counts".to_owned())
        })
    }

    /// A number of a range; 0 if the field is missing.
    pub(super) fn within(
        &self,
        name: &'static str,
        range: &RangeInclusive<i64>,
    ) -> Result<i64, Malformed> {
        range::within(range, self.number(name)?).map_err(|what| Malformed::Field(name, what))
    }

    /// A number of a range, also as `false` or `true`; 0 if the field is missing.
    pub(super) fn flag_or_count(
        &self,
        name: &'static str,
        range: &RangeInclusive<i64>,
    ) -> Result<i64, Malformed> {
        match self.0.get(name) {
            Some(Value::Bool(flag)) => Ok((*flag).into()),
            _ => self.within(name, range),
        }
    }

    /// Seconds, or a number with a unit such as `10m`; 0 if the field is missing.
    pub(super) fn duration(&self, name: &'static str) -> Result<i64, Malformed> {
        match self.text(name).and_then(range::duration) {
            Some(seconds) => Ok(seconds),
            None => self.number(name),
        }
    }

    /// A number of a range; 0 if the field is missing or is a string without a number, such as a date.
    pub(super) fn number_or_text(
        &self,
        name: &'static str,
        range: &RangeInclusive<i64>,
    ) -> Result<i64, Malformed> {
        match self.text(name) {
            Some(text) if text.parse::<i64>().is_err() => Ok(0),
            _ => self.within(name, range),
        }
    }

    /// A whole number, or its digits in a string; 0 if the field is missing.
    pub(super) fn number(&self, name: &'static str) -> Result<i64, Malformed> {
        let number = match self.0.get(name) {
            None | Some(Value::Null) => Some(0),
            Some(Value::Number(number)) => number.as_i64(),
            Some(Value::String(text)) => text.parse().ok(),
            Some(_) => None,
        };
        number.ok_or_else(|| Malformed::Field(name, "must be a whole number".to_owned()))
    }
}

impl<'de> Deserialize<'de> for StrictObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EachKeyOnce)
    }
}

struct EachKeyOnce;

impl<'de> Visitor<'de> for EachKeyOnce {
    type Value = StrictObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<StrictObject, M::Error> {
        let mut fields = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            if fields.insert(key, value).is_some() {
                return Err(Error::custom("a key appears twice"));
            }
        }
        Ok(StrictObject(fields))
    }
}
