//! The names that messages carry: of a jail, a host, an address. A value of one of these types is
//! safe to print, to publish and to hand to fail2ban.

use std::fmt;
use std::net::IpAddr;

/// A jail's name, as fail2ban has it: exact, 1 to 128 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Jail(String);

impl Jail {
    const MAX: usize = 128;

    /// Takes what may be the name of a jail: no blank, quote, comma, backslash or control
    /// character (fail2ban lists its jails with commas between).
    ///
    /// # Errors
    /// A sentence's end that says what a jail's name must be.
    pub fn new(text: &str) -> Result<Self, String> {
        let odd = |c: char| c.is_control() || c.is_whitespace() || "\"'\\,`$<>|&;".contains(c);
        if text.is_empty() || text.len() > Self::MAX || text.contains(odd) {
            let max = Self::MAX;
            return Err(format!(
                "must be the name of a jail: at most {max} bytes, no blank or quote"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Jail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host's name in the fleet: one level of a topic, 1 to 128 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(String);

impl Host {
    const MAX: usize = 128;

    /// Takes what may be a host's name.
    ///
    /// # Errors
    /// A sentence's end that says what a host's name must be.
    pub fn new(text: &str) -> Result<Self, String> {
        let odd = |c: char| c.is_control() || "/+#".contains(c);
        if text.is_empty() || text.len() > Self::MAX || text.contains(odd) {
            let max = Self::MAX;
            return Err(format!(
                "must be a name of at most {max} bytes without / + # or control characters"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One address, IPv4 or IPv6. Its text is canonical (RFC 5952); an IPv4 address that is written as
/// IPv6 (`::ffff:192.0.2.1`) is the IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(IpAddr);

impl Address {
    /// Takes exactly one address in its usual spelling: no network, name, zone, octal or hex.
    ///
    /// # Errors
    /// A sentence's end that says what an address must be.
    pub fn new(text: &str) -> Result<Self, String> {
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self(address.to_canonical())),
            Err(_) => Err("must be one IPv4 or IPv6 address".to_owned()),
        }
    }

    /// The address.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
