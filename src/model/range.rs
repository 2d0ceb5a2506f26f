//! The valid ranges of the numbers in messages. A message with a number outside of its range is rejected. This host's
//! own numbers are clamped before they are published, because a jail may have a longer bantime.
//!
//! This module uses no clock. `crate::guard` limits how far a stamp may be ahead of the clock.

use std::ops::RangeInclusive;

/// A point in time: from 1970 to the end of 2199, in seconds since 1970; 0 is unknown.
pub const TIME_SECS: RangeInclusive<i64> = 0..=7_258_118_399;

/// The stamp of a message or the time in the id of a fleet unban: from 1970 to the end of 9999, in
/// milliseconds since 1970. Its upper end has 15 digits.
pub const STAMP_MILLIS: RangeInclusive<i64> = 0..=253_402_300_799_999;

/// A bantime: at most 100 years of 365.25 days, in seconds; -1 is permanent, 0 unknown.
pub const BANTIME_SECS: RangeInclusive<i64> = -1..=3_155_760_000;

/// A count of failures, bans or rejected messages.
pub const COUNT: RangeInclusive<i64> = 0..=10_000_000;

/// Parses a duration to seconds: a number, or one with a unit (`10m`, `2h`, `1d`, `1w`, `1y`). Negative is permanent.
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

/// Clamps a number to a range.
pub(crate) fn into(range: &RangeInclusive<i64>, number: i64) -> i64 {
    number.clamp(*range.start(), *range.end())
}

/// Checks that a number is in a range.
///
/// # Errors
/// The range, as the end of a sentence.
pub(crate) fn within(range: &RangeInclusive<i64>, number: i64) -> Result<i64, String> {
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
