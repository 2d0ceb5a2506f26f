//! Chance, so that the hosts of a fleet do not all do the same thing at the same moment.

use std::hash::{BuildHasher as _, RandomState};

/// Some number from 0 to 1. The standard library's hasher is seeded anew each time.
#[must_use]
pub fn chance() -> f64 {
    let bits = RandomState::new().hash_one(0u8) >> 40;
    f64::from(u32::try_from(bits).unwrap_or(0)) / f64::from(1u32 << 24)
}
