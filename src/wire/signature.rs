//! The signature of a message, by a secret that all hosts share. It protects the fleet from other clients that may
//! write to the broker. It is the HMAC-SHA256 (RFC 2104) of the topic, a line feed, and the message up to the
//! signature, which is the last field:
//!
//! ```json
//! {"action":"ban", … ,"reason":"detected","sig":"9c56cc51b374c3ba…"}
//! ```
//!
//! The signature covers the topic, so that no client can copy a message to the branch of another host.

use std::fmt::{self, Write as _};

use ring::hmac;

/// The bytes before and after the hexadecimal digits of the signature, and the number of digits.
const BEFORE_DIGITS: &[u8] = br#","sig":""#;
const AFTER_DIGITS: &[u8] = br#""}"#;
const DIGIT_COUNT: usize = 64;

/// The result of checking a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureStatus {
    /// Made with one of the keys, for this topic and this text.
    Valid,
    /// The message has no signature.
    Missing,
    /// Made with another key, for another topic or for another text.
    Invalid,
}

/// The keys: the first one signs; a signature of any of them is valid, so that keys can be changed one host at a time.
#[derive(Clone)]
pub struct SigningKeys(Vec<hmac::Key>);

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl SigningKeys {
    /// Keys from secrets, of which there must be at least one.
    #[must_use]
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let keys =
            secrets.into_iter().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()));
        Self(keys.collect())
    }

    /// A fingerprint of each key, 16 hexadecimal digits, which reveals nothing else of the key.
    pub fn fingerprints(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|key| {
            let tag = hmac::sign(key, b"f2bmqtt: fingerprint of a signing key");
            tag.as_ref().iter().take(8).fold(String::new(), |mut digits, byte| {
                let _ = write!(digits, "{byte:02x}");
                digits
            })
        })
    }

    /// Signs a JSON object for a topic; other messages stay unchanged.
    #[must_use]
    pub fn sign(&self, topic: &str, mut message: Vec<u8>) -> Vec<u8> {
        if message.len() > 2
            && let (Some(key), Some(b'}')) = (self.0.first(), message.pop_if(|last| *last == b'}'))
        {
            let signature = hmac::sign(key, &signed(topic, &message));
            let mut digits = String::with_capacity(DIGIT_COUNT);
            for byte in signature.as_ref() {
                let _ = write!(digits, "{byte:02x}");
            }
            message.extend([BEFORE_DIGITS, digits.as_bytes(), AFTER_DIGITS].concat());
        }
        message
    }

    /// Checks the signature of a message that was received on a topic.
    #[must_use]
    pub fn check(&self, topic: &str, message: &[u8]) -> SignatureStatus {
        let Some((text, signature)) = split(message) else {
            let name = &BEFORE_DIGITS[1..BEFORE_DIGITS.len() - 1];
            let named = message.windows(name.len()).any(|window| window == name);
            return if named { SignatureStatus::Invalid } else { SignatureStatus::Missing };
        };
        let text = signed(topic, text);
        if self.0.iter().any(|key| hmac::verify(key, &text, &signature).is_ok()) {
            SignatureStatus::Valid
        } else {
            SignatureStatus::Invalid
        }
    }
}

/// Splits a signed message into the signed text and the signature.
#[must_use]
pub fn split(message: &[u8]) -> Option<(&[u8], [u8; DIGIT_COUNT / 2])> {
    let rest = message.strip_suffix(AFTER_DIGITS)?;
    let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(DIGIT_COUNT)?)?;
    let text = rest.strip_suffix(BEFORE_DIGITS)?;
    let mut signature = [0; DIGIT_COUNT / 2];
    for (byte, pair) in signature.iter_mut().zip(digits.chunks(2)) {
        *byte = hex_value(pair[0])? << 4 | hex_value(pair[1])?;
    }
    Some((text, signature))
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// The signed bytes. A topic contains no line feed, so they are unambiguous.
fn signed(topic: &str, text: &[u8]) -> Vec<u8> {
    [topic.as_bytes(), b"\n", text].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Event;

    const TOPIC: &str = "blacklist/ban";
    const BAN: &str = r#"{"action":"ban","ipmset":"sshd","ip":"203.0.113.9","host":"web1"}"#;

    const DIGEST: &str = "83abf8c7882e57b2c50d73898fc5b38197699144103d4a1037b4766769fea1b7";

    fn sign(secrets: &[&str], topic: &str) -> Vec<u8> {
        SigningKeys::new(secrets.iter().copied()).sign(topic, BAN.into())
    }

    #[test]
    fn signature_is_the_hmac_of_topic_and_text() {
        // printf 'blacklist/ban\n{…"host":"web1"' | openssl dgst -sha256 -hmac 0123456789abcdef
        let message = String::from_utf8(sign(&["0123456789abcdef"], TOPIC)).unwrap();
        assert_eq!(message, format!(r#"{},"sig":"{DIGEST}"}}"#, &BAN[..BAN.len() - 1]));
        assert_eq!(Event::parse(message.as_bytes()), Event::parse(BAN.as_bytes()));
        let keys = SigningKeys::new(["0123456789abcdef"]);
        assert_eq!(keys.sign(TOPIC, Vec::new()), b"", "nothing to be signed");
        assert_eq!(format!("{keys:?}"), "(secret)");
    }

    #[test]
    fn keys_have_different_fingerprints() {
        let first = SigningKeys::new(["0123456789abcdef"]);
        let both = SigningKeys::new(["0123456789abcdef", "fedcba9876543210"]);
        let both: Vec<String> = both.fingerprints().collect();
        assert_eq!(both[..1], first.fingerprints().collect::<Vec<_>>());
        assert!(both[0] != both[1] && both.iter().all(|digits| digits.len() == 16));
    }

    #[test]
    fn only_signature_of_a_known_key_for_this_topic_is_valid() {
        let (old, new) = ("an old secret of the fleet", "a new secret of the fleet");
        let good = sign(&[old], TOPIC);
        let text = std::str::from_utf8(&good).unwrap();
        let end = text.len() - 10;
        let table: [(&[&str], &[u8], SignatureStatus); 14] = [
            (&[old], &good, SignatureStatus::Valid),
            (&[new, old], &good, SignatureStatus::Valid),
            (&[new, old], &sign(&[new, old], TOPIC), SignatureStatus::Valid),
            (&[old], &sign(&[new, old], TOPIC), SignatureStatus::Invalid),
            (&[new], &good, SignatureStatus::Invalid),
            (&[old], &sign(&[old], "blacklist/unban"), SignatureStatus::Invalid),
            (
                &[old],
                &text.replace("203.0.113.9", "203.0.113.8").into_bytes(),
                SignatureStatus::Invalid,
            ),
            (&[old], &text.replace('{', "{ ").into_bytes(), SignatureStatus::Invalid),
            (&[old], &text.replace("\"}", "\" }").into_bytes(), SignatureStatus::Invalid),
            (&[old], &[&good[..], b"\n"].concat(), SignatureStatus::Invalid),
            (
                &[old],
                &[&text[..end], "G", &text[end + 1..]].concat().into_bytes(),
                SignatureStatus::Invalid,
            ),
            (
                &[old],
                &[&good[..good.len() - 1], br#","ip":"1.2.3.4"}"#].concat(),
                SignatureStatus::Invalid,
            ),
            (&[old], BAN.as_bytes(), SignatureStatus::Missing),
            (&[old], b"", SignatureStatus::Missing),
        ];
        for (secrets, message, status) in table {
            let keys = SigningKeys::new(secrets.iter().copied());
            assert_eq!(keys.check(TOPIC, message), status, "{}", String::from_utf8_lossy(message));
        }
    }
}
