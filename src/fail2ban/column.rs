//! Reads numbers whose type is not guaranteed. A column's type in SQLite is only a preference, and fail2ban
//! stores what Python computed: a `bantime` that `bantime.rndtime` or a formula made is REAL.

use rusqlite::types::ValueRef;
use serde_json::Value;

/// The whole number in a column, rounded towards 0 as fail2ban shows it. NULL counts as 0.
///
/// # Errors
/// What the column has instead.
pub(super) fn number(column: ValueRef<'_>) -> Result<i64, String> {
    let number = match column {
        ValueRef::Null => Some(0),
        ValueRef::Integer(number) => Some(number),
        ValueRef::Real(number) => whole(number),
        ValueRef::Text(text) => std::str::from_utf8(text).ok().and_then(digits),
        ValueRef::Blob(_) => None,
    };
    number.ok_or_else(|| match column {
        ValueRef::Text(text) => {
            let text: String = String::from_utf8_lossy(text).chars().take(20).collect();
            format!("the text {text:?}")
        }
        _ => column.data_type().to_string(),
    })
}

/// The text in a column, whatever its encoding.
pub(super) fn text(column: ValueRef<'_>) -> Option<String> {
    let bytes = column.as_bytes_or_null().ok().flatten()?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

/// The whole number of a JSON value; 0 where it is something else.
pub(super) fn of_json(value: &Value) -> i64 {
    let number = match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => digits(text),
        _ => None,
    };
    number.unwrap_or(0)
}

/// The whole number of a float, rounded towards 0 and clamped to the range of `i64`; `None` for NaN.
pub(super) fn whole(number: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates")]
    (!number.is_nan()).then_some(number as i64)
}

/// Parses a number, rounded towards 0.
pub(super) fn digits(text: &str) -> Option<i64> {
    let text = text.trim();
    text.parse().ok().or_else(|| text.parse().ok().and_then(whole))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn number_of_any_sqlite_type_is_read() {
        let table = [
            (ValueRef::Integer(600), Ok(600)),
            (ValueRef::Real(612.75), Ok(612)),
            (ValueRef::Real(-1.0), Ok(-1)),
            (ValueRef::Real(1e300), Ok(i64::MAX)),
            (ValueRef::Text(b"600"), Ok(600)),
            (ValueRef::Text(b" 612.75 "), Ok(612)),
            (ValueRef::Null, Ok(0)),
            (ValueRef::Real(f64::NAN), Err("Real".to_owned())),
            (ValueRef::Text(b"10m"), Err("the text \"10m\"".to_owned())),
            (ValueRef::Text(b"\xff"), Err("the text \"\u{fffd}\"".to_owned())),
            (ValueRef::Blob(b"600"), Err("Blob".to_owned())),
        ];
        for (column, expected) in table {
            assert_eq!(number(column), expected, "{column:?}");
        }
        assert_eq!(text(ValueRef::Blob(b"sshd")).as_deref(), Some("sshd"));
        assert_eq!((text(ValueRef::Null), text(ValueRef::Integer(1))), (None, None));
    }

    #[test]
    fn failures_of_any_json_type_are_read() {
        let table =
            [(json!(3), 3), (json!(3.0), 3), (json!("3"), 3), (json!(null), 0), (json!([3]), 0)];
        for (value, expected) in table {
            assert_eq!(of_json(&value), expected, "{value}");
        }
    }
}
