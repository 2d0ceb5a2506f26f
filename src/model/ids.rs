//! The names in messages: jails, hosts, addresses, fleet unbans. A value of these types is safe to print, to publish
//! and to pass to fail2ban.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use unicode_width::UnicodeWidthChar as _;

use crate::model::range;
use crate::model::range::STAMP_MILLIS;
use crate::model::text::is_unsafe_for_display;

/// The most combining marks on one letter: languages need two.
const MAX_MARKS: usize = 2;

/// Each character of a text, and whether it is visible. White space, hidden characters, and combining marks without a
/// letter (or too many on one) are not. Letters that look alike in two alphabets are visible.
fn seen(text: &str) -> impl Iterator<Item = (char, bool)> {
    let mut marks = MAX_MARKS;
    text.chars().map(move |c| {
        if is_unsafe_for_display(c) || c.is_whitespace() {
            return (c, false);
        }
        let is_mark = c.width().unwrap_or(0) == 0;
        marks = if is_mark { marks + 1 } else { 0 };
        (c, marks <= MAX_MARKS)
    })
}

/// Whether all characters of a text are visible.
fn is_seen(text: &str) -> bool {
    seen(text).all(|(_, is_seen)| is_seen)
}

/// The visible characters of a text; `hidden` replaces the others.
pub(crate) fn shown(text: &str, hidden: Option<char>) -> impl Iterator<Item = char> {
    seen(text).filter_map(move |(c, is_seen)| if is_seen { Some(c) } else { hidden })
}

/// The exact name of a jail, 1 to 128 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Jail(Arc<str>);

impl Jail {
    const MAX_BYTES: usize = 128;
    const ODD: [char; 11] = ['"', '\'', '\\', ',', '`', '$', '<', '>', '|', '&', ';'];

    /// Validates the name of a jail: no blank, quote, comma, backslash or invisible character. fail2ban separates
    /// jails by commas.
    ///
    /// # Errors
    /// The rule for names of jails, as the end of a sentence.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_odd = text.contains(Self::ODD);
        if text.is_empty() || text.len() > Self::MAX_BYTES || is_odd || !is_seen(text) {
            let max = Self::MAX_BYTES;
            return Err(format!(
                "must be the name of a jail: at most {max} bytes, no blank, quote or invisible character"
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

/// The name of a host in the fleet: one level of a topic, 1 to 128 bytes. Every claim has one, so this is one pointer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<String>);

impl HostName {
    const MAX_BYTES: usize = 128;

    /// Validates the name of a host. Blanks are invalid, so that a name cannot forge the end of a log line,
    /// `from HOST (Rest:=0, Fails:=9)`.
    ///
    /// # Errors
    /// The rule for names of hosts, as the end of a sentence.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_odd = text.contains(['/', '+', '#']);
        if text.is_empty() || text.len() > Self::MAX_BYTES || is_odd || !is_seen(text) {
            let max = Self::MAX_BYTES;
            return Err(format!(
                "must be a name of at most {max} bytes, without blanks, invisible characters and / + #"
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

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One address, IPv4 or IPv6. Its text is canonical (RFC 5952); an IPv4 address that is written as
/// IPv6 (`::ffff:192.0.2.1`) is the IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(IpAddr);

impl Address {
    /// Parses one address in its usual spelling: no network, name, zone, octal or hex.
    ///
    /// # Errors
    /// The rule for addresses, as the end of a sentence.
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

    /// The hash that selects the shard of a snapshot: FNV-1a, 64 bit, of the canonical text.
    #[must_use]
    pub fn hash(self) -> u64 {
        let mut hash = Fnv1a64::default();
        let _ = write!(hash, "{}", self.0);
        hash.0
    }
}

/// FNV-1a, 64 bit (draft-eastlake-fnv).
#[derive(Clone, Copy, Debug)]
pub struct Fnv1a64(u64);

impl Default for Fnv1a64 {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a64 {
    /// The hash of the text written so far.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }
}

impl fmt::Write for Fnv1a64 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

/// The id of a fleet unban: the host that created it, a `-`, and the time in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnbanId {
    text: Arc<str>,
    created: i64,
}

impl UnbanId {
    /// The id of a fleet unban that a host creates at a time.
    #[must_use]
    pub fn made_by(host: &HostName, millis: i64) -> Self {
        let made = range::into(&STAMP_MILLIS, millis);
        Self { text: format!("{host}-{made}").into(), created: made }
    }

    /// Validates an id.
    ///
    /// # Errors
    /// The rule for ids, as the end of a sentence.
    pub fn new(text: &str) -> Result<Self, String> {
        let halves = text.rsplit_once('-').filter(|(host, digits)| {
            HostName::new(host).is_ok()
                && !digits.is_empty()
                && digits.bytes().all(|b| b.is_ascii_digit())
        });
        let made = halves.and_then(|(_, digits)| digits.parse().ok());
        let made = made.filter(|made| STAMP_MILLIS.contains(made));
        made.map(|made| Self { text: text.into(), created: made }).ok_or_else(|| {
            "must be the name of a host, a hyphen, and milliseconds since 1970".to_owned()
        })
    }

    /// The text of the id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of the host that created the unban.
    #[must_use]
    pub fn maker(&self) -> &str {
        self.text.rsplit_once('-').map_or("", |(maker, _)| maker)
    }

    /// When the unban was created, in milliseconds since 1970 on its creator's clock.
    #[must_use]
    pub fn created_at(&self) -> i64 {
        self.created
    }
}

impl fmt::Display for UnbanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The jails of a fleet unban.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JailScope {
    /// All jails; `*` on the wire.
    All,
    /// This jail only.
    One(Jail),
}

impl JailScope {
    /// Parses `*` or the name of a jail.
    ///
    /// # Errors
    /// The rule for names of jails, as the end of a sentence.
    pub fn new(text: &str) -> Result<Self, String> {
        if text == "*" { Ok(Self::All) } else { Jail::new(text).map(Self::One) }
    }

    /// The scope on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::All => "*",
            Self::One(jail) => jail.as_str(),
        }
    }

    /// Whether the scope includes a jail.
    #[must_use]
    pub fn covers(&self, jail: &Jail) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one == jail,
        }
    }
}

impl fmt::Display for JailScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! serialize_as_shown {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

serialize_as_shown!(Jail HostName Address UnbanId JailScope);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_visible_characters_is_accepted() {
        let names = [
            "web1",
            "web-1.example",
            "a_b",
            "web1(2)",
            "grün",
            "gru\u{308}n",
            "ホスト",
            "हिन्दी",
            "ชื่อ",
            "Ωmega",
            "\u{430}dmin",
            "🐘",
            "é",
            "%s%n",
            "$(id)",
            "web\"1",
            "..",
        ];
        for name in names {
            assert!(HostName::new(name).is_ok(), "{name}");
        }
        for name in ["sshd", "nginx-http-auth", "j{}%", "grün", "é"] {
            assert!(Jail::new(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn shown_text_stays_as_it_is_when_shown_again() {
        let texts = [
            "a b",
            "\u{301}a",
            "e\u{301}\u{301}\u{2800}\u{301}\u{301}",
            "e\u{200b}\u{301}",
            "\u{2800}\u{301}x",
        ];
        for text in texts {
            for hidden in [None, Some('?')] {
                let once: String = shown(text, hidden).collect();
                assert_eq!(shown(&once, hidden).collect::<String>(), once, "{text:?}");
                assert!(hidden.is_none() || once.chars().count() == text.chars().count());
            }
        }
    }

    #[test]
    fn name_with_an_invisible_character_or_a_blank_is_rejected() {
        let hidden = [
            // White space.
            ' ',
            '\t',
            '\n',
            '\r',
            '\u{b}',
            '\u{c}',
            '\u{85}',
            '\u{a0}',
            '\u{1680}',
            '\u{2000}',
            '\u{200a}',
            '\u{2028}',
            '\u{2029}',
            '\u{202f}',
            '\u{205f}',
            '\u{3000}',
            // Controls and formats.
            '\0',
            '\u{1b}',
            '\u{7f}',
            '\u{9b}',
            '\u{ad}',
            '\u{61c}',
            '\u{6dd}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{206f}',
            '\u{feff}',
            '\u{fff9}',
            '\u{e0001}',
            '\u{e0041}',
            // Other characters that are ignored, blank glyphs, private characters, and no characters.
            '\u{34f}',
            '\u{115f}',
            '\u{1160}',
            '\u{17b4}',
            '\u{180b}',
            '\u{180e}',
            '\u{2065}',
            '\u{2800}',
            '\u{3164}',
            '\u{fe00}',
            '\u{fe0f}',
            '\u{ffa0}',
            '\u{fffc}',
            '\u{1d159}',
            '\u{1d173}',
            '\u{e0100}',
            '\u{e000}',
            '\u{f0000}',
            '\u{10fffd}',
            '\u{fdd0}',
            '\u{ffff}',
            '\u{1fffe}',
        ];
        for c in hidden {
            for name in [format!("{c}"), format!("web{c}1"), format!("{c}web1"), format!("web1{c}")]
            {
                assert!(HostName::new(&name).is_err(), "{name:?}");
                assert!(Jail::new(&name).is_err(), "{name:?}");
            }
        }
        let marks = ["\u{301}", "\u{301}web", "e\u{301}\u{301}\u{301}", "\u{20dd}1"];
        for name in marks {
            assert!(HostName::new(name).is_err() && Jail::new(name).is_err(), "{name:?}");
        }
        // Names that would forge a log line.
        for name in [
            "web1 (Rest:=0, Fails:=9)",
            "web1 (Rest:=0, Fails:=9)\nInbound: ban 192.0.2.1 - ipset sshd from web2",
            "sshd from web2 (Rest:=0, Fails:=9)",
            "sshd reported by web2",
        ] {
            assert!(HostName::new(name).is_err() && Jail::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn hash_is_fnv_1a() {
        // Of the reference's test vectors, and of two canonical texts.
        let mut hash = Fnv1a64::default();
        assert_eq!(hash.value(), 0xcbf2_9ce4_8422_2325);
        hash.write_str("foobar").unwrap();
        assert_eq!(hash.value(), 0x8594_4171_f739_67e8);
        let mapped = ["::ffff:192.0.2.1", "192.0.2.1", "192.0.2.2"];
        let [mapped, same, other] = mapped.map(|text| Address::new(text).unwrap().hash());
        assert!(mapped == same && mapped != other);
        let [upper, lower] =
            ["2001:DB8:0::1", "2001:db8::1"].map(|text| Address::new(text).unwrap().hash());
        assert_eq!(upper, lower);
    }

    #[test]
    fn unban_id_is_a_host_and_a_time() {
        let id = UnbanId::made_by(&HostName::new("web-2").unwrap(), 1_795_340_000_123);
        assert_eq!(id.as_str(), "web-2-1795340000123");
        assert_eq!(UnbanId::new("web-2-1795340000123"), Ok(id));
        assert!(UnbanId::new("web2-253402300799999").is_ok());
        for text in [
            "",
            "web2",
            "web2-",
            "-1",
            "web2-x",
            "web2-+1",
            "a/b-1",
            "web2-99999999999999999999",
            "web 2-1",
            "web2-253402300800000",
        ] {
            assert!(UnbanId::new(text).is_err(), "{text}");
        }
    }
}
