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
