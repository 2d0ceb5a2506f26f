//! The names that messages carry: of a jail, a host, an address. A value of one of these types is
//! safe to print, to publish and to hand to fail2ban.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::Arc;

/// Whether a character has no place in a name or a log: it does something instead of being seen (Unicode's
/// control and format characters, line ends, and what is invisible or turns the text around).
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{10ffff}')
}

/// A jail's name, as fail2ban has it: exact, 1 to 128 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Jail(Arc<str>);

impl Jail {
    const MAX: usize = 128;

    /// Takes what may be the name of a jail: no blank, quote, comma, backslash or control
    /// character (fail2ban lists its jails with commas between).
    ///
    /// # Errors
    /// A sentence's end that says what a jail's name must be.
    pub fn new(text: &str) -> Result<Self, String> {
        let odd = |c: char| is_hidden(c) || c.is_whitespace() || "\"'\\,`$<>|&;".contains(c);
        if text.is_empty() || text.len() > Self::MAX || text.contains(odd) {
            let max = Self::MAX;
            return Err(format!(
                "must be the name of a jail: at most {max} bytes, no blank or quote"
            ));
        }
        Ok(Self(text.into()))
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

/// A host's name in the fleet: one level of a topic, 1 to 128 bytes. Each of many claims has one, so it
/// is as small as a pointer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(Arc<String>);

impl Host {
    const MAX: usize = 128;

    /// Takes what may be a host's name.
    ///
    /// # Errors
    /// A sentence's end that says what a host's name must be.
    pub fn new(text: &str) -> Result<Self, String> {
        let odd = |c: char| is_hidden(c) || "/+#".contains(c);
        if text.is_empty() || text.len() > Self::MAX || text.contains(odd) {
            let max = Self::MAX;
            return Err(format!(
                "must be a name of at most {max} bytes without / + # or control characters"
            ));
        }
        Ok(Self(Arc::new(text.to_owned())))
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

    /// Which part of a snapshot it belongs to: FNV-1a, 64 bit, of its canonical text.
    #[must_use]
    pub fn hash(self) -> u64 {
        let mut hash = Fnv::default();
        let _ = write!(hash, "{}", self.0);
        hash.0
    }
}

/// FNV-1a, 64 bit (draft-eastlake-fnv).
#[derive(Clone, Copy, Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// The hash of what was written so far.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }
}

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

/// The name of one fleet unban: the host that made it, a `-`, and when, in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnbanId {
    text: Arc<str>,
    made: i64,
}

impl UnbanId {
    /// The name of an unban that a host makes now.
    #[must_use]
    pub fn made_by(host: &Host, millis: i64) -> Self {
        let made = millis.max(0);
        Self { text: format!("{host}-{made}").into(), made }
    }

    /// Takes what may be such a name.
    ///
    /// # Errors
    /// A sentence's end that says what it must be.
    pub fn new(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once('-').filter(|(host, digits)| {
            Host::new(host).is_ok()
                && !digits.is_empty()
                && digits.bytes().all(|b| b.is_ascii_digit())
        });
        let made = parts.and_then(|(_, digits)| digits.parse().ok());
        made.map(|made| Self { text: text.into(), made })
            .ok_or_else(|| "must be a host's name, - and milliseconds since 1970".to_owned())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of the host that made it.
    #[must_use]
    pub fn maker(&self) -> &str {
        self.text.rsplit_once('-').map_or("", |(maker, _)| maker)
    }

    /// When it was made, in milliseconds since 1970 on the clock of the host that made it.
    #[must_use]
    pub fn made(&self) -> i64 {
        self.made
    }
}

impl fmt::Display for UnbanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a fleet unban is for: one jail, or every one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Every jail; `*` on the wire.
    Every,
    /// This one.
    One(Jail),
}

impl Scope {
    /// Takes `*` or the name of a jail.
    ///
    /// # Errors
    /// A sentence's end that says what it must be.
    pub fn new(text: &str) -> Result<Self, String> {
        if text == "*" { Ok(Self::Every) } else { Jail::new(text).map(Self::One) }
    }

    /// How it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Every => "*",
            Self::One(jail) => jail.as_str(),
        }
    }

    /// Whether it is for this jail.
    #[must_use]
    pub fn covers(&self, jail: &Jail) -> bool {
        match self {
            Self::Every => true,
            Self::One(one) => one == jail,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_only_what_is_seen() {
        for name in ["web1", "grün", "ホスト", "a b", "🐘", "Ωmega"] {
            assert!(Host::new(name).is_ok(), "{name}");
        }
        for hidden in ['\u{202e}', '\u{200b}', '\u{feff}', '\u{2028}', '\u{85}', '\0', '\u{e0041}']
        {
            assert!(Host::new(&format!("web{hidden}1")).is_err(), "{hidden:?}");
            assert!(Jail::new(&format!("ss{hidden}hd")).is_err(), "{hidden:?}");
        }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // Of the reference's test vectors, and of two canonical texts.
        let mut hash = Fnv::default();
        assert_eq!(hash.value(), 0xcbf2_9ce4_8422_2325);
        hash.write_str("foobar").unwrap();
        assert_eq!(hash.value(), 0x8594_4171_f739_67e8);
        let of = |text: &str| Address::new(text).unwrap().hash();
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_eq!(of("2001:DB8:0::1"), of("2001:db8::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn an_unban_s_name_is_a_host_and_a_time() {
        let id = UnbanId::made_by(&Host::new("web-2").unwrap(), 1_795_340_000_123);
        assert_eq!(id.as_str(), "web-2-1795340000123");
        assert_eq!(UnbanId::new("web-2-1795340000123"), Ok(id));
        for text in
            ["", "web2", "web2-", "-1", "web2-x", "web2-+1", "a/b-1", "web2-99999999999999999999"]
        {
            assert!(UnbanId::new(text).is_err(), "{text}");
        }
    }
}
