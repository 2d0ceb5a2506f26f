//! The time of this host's clock, which may be set back at any moment.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 before.
#[must_use]
pub fn millis(time: SystemTime) -> i64 {
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    i64::try_from(millis).unwrap_or(i64::MAX)
}

/// The time, in milliseconds since 1970.
#[must_use]
pub fn now_millis() -> i64 {
    millis(SystemTime::now())
}

/// The time, in seconds since 1970.
#[must_use]
pub fn now_secs() -> i64 {
    now_millis() / 1000
}

/// Whether `at` lies within the last `window`. A time ahead of `now` does not: the clock was set back, and
/// what happened then may be long ago.
#[must_use]
pub fn is_within(window: i64, at: i64, now: i64) -> bool {
    (0..window).contains(&now.saturating_sub(at))
}
