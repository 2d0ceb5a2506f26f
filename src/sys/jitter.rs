//! Random numbers: jitter, so that the hosts of a fleet do not act at the same moment, and secret tokens.

use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};
use std::io;

use ring::rand::{SystemRandom, generate};

/// A random number in `0.0..1.0`, not for secrets. Each `RandomState` of the standard library has new keys.
#[must_use]
pub fn chance() -> f64 {
    let bits = RandomState::new().hash_one(0u8) >> 40;
    f64::from(u32::try_from(bits).unwrap_or(0)) / f64::from(1u32 << 24)
}

/// 16 hexadecimal digits from the system's secure random generator.
///
/// # Errors
/// The system provides no random numbers.
pub fn token() -> io::Result<String> {
    let bytes: [u8; 8] = generate(&SystemRandom::new())
        .map_err(|_| io::Error::other("the system provides no random numbers"))?
        .expose();
    let mut digits = String::new();
    for byte in bytes {
        let _ = write!(digits, "{byte:02x}");
    }
    Ok(digits)
}
