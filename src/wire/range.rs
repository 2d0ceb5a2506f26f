//! The numbers that a message may contain. A message with others is rejected, so that no time, length or
//! count of another host is absurd on this one. This host's own numbers are brought into their range before
//! they are published: a jail may have a longer bantime.
//!
//! This module knows no clock: how far a stamp may be ahead of it, is decided where stamps are compared.

use std::ops::RangeInclusive;

/// A point in time: from 1970 to the end of 2199, in seconds since 1970; 0 is not known.
pub const TIME_SECS: RangeInclusive<i64> = 0..=7_258_118_399;

/// The stamp of a message or the time in the name of a fleet unban: from 1970 to the end of 9999, in
/// milliseconds since 1970. Its upper end has 15 digits.
pub const STAMP_MILLIS: RangeInclusive<i64> = 0..=253_402_300_799_999;

/// A bantime: at most 100 years of 365.25 days, in seconds; -1 is for ever, 0 is not known.
pub const BANTIME_SECS: RangeInclusive<i64> = -1..=3_155_760_000;

/// How many: failures, bans, refused messages.
pub const COUNT: RangeInclusive<i64> = 0..=10_000_000;

/// A length of time in seconds: a number, or one with a unit (`10m`, `2h`, `1d`, `1w`, `1y`). Below 0 is for ever.
pub(crate) fn duration(text: &str) -> Option<i64> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
    let unit = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        "y" => 365 * 86_400,
        _ => return None,
    };
    number.trim().parse::<i64>().ok()?.checked_mul(unit)
}

/// The number of a range that is nearest.
pub(crate) fn into(range: &RangeInclusive<i64>, number: i64) -> i64 {
    number.clamp(*range.start(), *range.end())
}

/// A number of a range.
///
/// # Errors
/// A sentence's end that says what it must be.
pub(super) fn within(range: &RangeInclusive<i64>, number: i64) -> Result<i64, String> {
    if range.contains(&number) {
        Ok(number)
    } else {
        Err(format!("must be from {} to {}", range.start(), range.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let table = [
            ("600", Some(600)),
            ("10m", Some(600)),
            ("2h", Some(7200)),
            ("1d", Some(86_400)),
            ("1w", Some(604_800)),
            ("1y", Some(31_536_000)),
            ("-1", Some(-1)),
            ("", None),
            ("m", None),
            ("1x", None),
            ("9999999999999999y", None),
        ];
        for (text, expected) in table {
            assert_eq!(duration(text), expected, "{text}");
        }
    }
}
