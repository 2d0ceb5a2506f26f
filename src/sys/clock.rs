//! The wall clock. It may be set back at any moment, so code that compares times must handle future ones.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 for earlier times.
#[must_use]
pub fn millis(time: SystemTime) -> i64 {
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    i64::try_from(millis).unwrap_or(i64::MAX)
}

/// The current time in milliseconds since 1970.
#[must_use]
pub fn now_millis() -> i64 {
    millis(SystemTime::now())
}

/// The current time in seconds since 1970.
#[must_use]
pub fn now_secs() -> i64 {
    now_millis() / 1000
}

/// Whether `at` lies within the last `window`. A time after `now` does not: the clock was set back, and `at` may be
/// long ago.
#[must_use]
pub fn is_within(window: i64, at: i64, now: i64) -> bool {
    (0..window).contains(&now.saturating_sub(at))
}
