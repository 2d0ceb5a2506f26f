//! Composes and redacts the comment of a report (R23). The comment is public permanently, and the attacker wrote
//! much of it, so this host's names and addresses, control characters and excess length are removed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use crate::abuseipdb::report::CommentSource;
use crate::model::Address;
use crate::model::text::is_unsafe_for_display;

/// `AbuseIPDB`'s limit for a comment (docs.abuseipdb.com, REPORT endpoint).
pub const MAX_COMMENT_CHARS: usize = 1024;

/// The comment of a report without any text.
const EMPTY_COMMENT: &str = "banned by fail2ban";

/// What must not become public. Names match as whole words, in upper or lower case.
#[derive(Debug, Default, Clone)]
pub struct Private {
    /// This host's names, with and without domain.
    pub names: Vec<String>,
    /// This host's addresses, IPv4-mapped ones as IPv4.
    pub addresses: Vec<IpAddr>,
    /// The names of people's accounts.
    pub accounts: Vec<String>,
}

/// Composes one comment from the texts of an address's bans, the most informative lines first. Text of the
/// administrator is published unchanged; log lines are redacted.
#[must_use]
pub fn compose<'a>(
    texts: impl IntoIterator<Item = (&'a str, CommentSource)>,
    about: Address,
    private: &Private,
) -> String {
    let (mut lines, mut seen) = (Vec::new(), BTreeSet::new());
    for (text, source) in texts {
        for line in printable(text).lines().map(str::trim) {
            if lines.len() < MAX_COMMENT_CHARS && !line.is_empty() && seen.insert(line.to_owned()) {
                let is_public = source == CommentSource::Admin;
                lines.push(if is_public { line.to_owned() } else { private.mask(line) });
            }
        }
    }
    let lines = most_informative_first(lines, &about.to_string());
    let comment: String = lines.join("\n").chars().take(MAX_COMMENT_CHARS).collect();
    if comment.is_empty() { EMPTY_COMMENT.to_owned() } else { comment }
}

/// One line of each kind, those that name the address `about` in front; then the repetitions.
fn most_informative_first(lines: Vec<String>, about: &str) -> Vec<String> {
    let mut kinds = BTreeSet::new();
    let mut ranked = Vec::new();
    for line in lines {
        let is_repetition = !kinds.insert(kind(&line));
        ranked.push(((is_repetition, !line.contains(about)), line));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, line)| line).collect()
}

/// Removes control characters, terminal escape sequences (ECMA-48: `ESC [`, parameters, a letter), and characters
/// that reverse or hide text. Line breaks and tabs still separate lines and words, so that names remain
/// recognisable.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' => out.push('\n'),
            '\t' => out.push(' '),
            '\u{1b}' if chars.next_if_eq(&'[').is_some() => {
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            '\u{fffd}' => {}
            c if is_unsafe_for_display(c) => {}
            c => out.push(c),
        }
    }
    out
}

/// The line with every number replaced by 0: lines that differ only in numbers are of one kind.
fn kind(line: &str) -> String {
    let mut kind = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            '0'..='9' if kind.ends_with('0') => {}
            '0'..='9' => kind.push('0'),
            c => kind.push(c),
        }
    }
    kind
}

impl Private {
    fn mask(&self, line: &str) -> String {
        let mut line = self.mask_v4(&self.mask_v6(&self.mask_digits(&mask_mail(line))));
        for name in longest_first(&self.names) {
            line = mask_name(&line, &name, "[host]");
        }
        for account in longest_first(&self.accounts) {
            line = mask_name(&line, &account, "[user]");
        }
        line
    }

    fn has(&self, address: impl Into<IpAddr>) -> bool {
        self.addresses.contains(&address.into().to_canonical())
    }

    /// Masks own IPv4 addresses in any context: with dots; with dashes, underscores and leading zeros, as in host
    /// names made from addresses; and reversed, as in such names and below in-addr.arpa.
    fn mask_v4(&self, line: &str) -> String {
        const SHORTEST: usize = "1.1.1.1".len();
        const LONGEST: usize = "255.255.255.255".len();
        mask_where(line, |rest, before| {
            let is_inside_number = before.is_some_and(|c| c.is_ascii_digit());
            if is_inside_number || !rest.starts_with(is_digit) {
                return None;
            }
            let length = rest.find(|c: char| !c.is_ascii_digit() && !".-_".contains(c));
            let length = length.unwrap_or(rest.len()).min(LONGEST);
            let mut ends = (SHORTEST..=length).rev().map(|end| rest.split_at(end));
            ends.find(|(text, after)| !after.starts_with(is_digit) && self.has_own_v4(text, after))
                .map(|(text, _)| text.len())
        })
    }

    /// Whether a text is an own IPv4 address; `after` is the text that follows.
    fn has_own_v4(&self, text: &str, after: &str) -> bool {
        let Some([a, b, c, d]) = octets(text) else { return false };
        // Four numbers with dots are an ordinary address: the reverse of an own one may be another machine's.
        let may_be_reversed = text.contains(['-', '_']) || starts_with(after, ".in-addr.arpa");
        self.has([a, b, c, d]) || (may_be_reversed && self.has([d, c, b, a]))
    }

    /// Masks own IPv6 addresses, also between colons, and with dashes if the text starts with a digit.
    fn mask_v6(&self, line: &str) -> String {
        const SHORTEST: usize = "::1".len();
        const LONGEST: usize = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".len();
        mask_where(line, |rest, before| {
            let is_inside_word = before.is_some_and(is_alphanumeric);
            let length = rest.find(|c: char| !c.is_ascii_hexdigit() && !":.-".contains(c));
            let length = length.unwrap_or(rest.len()).min(LONGEST);
            if is_inside_word || length < SHORTEST || !rest[..length].contains([':', '-']) {
                return None;
            }
            (SHORTEST..=length).rev().find(|end| {
                !rest[*end..].starts_with(is_alphanumeric) && self.has_own_v6(&rest[..*end])
            })
        })
    }

    fn has_own_v6(&self, text: &str) -> bool {
        let address = text.replace('-', ":").parse::<Ipv6Addr>();
        !text.starts_with('-') && address.is_ok_and(|address| self.has(address))
    }

    /// Masks own IPv6 addresses written as 32 digits: in order, or with dots in reverse, as below ip6.arpa.
    fn mask_digits(&self, line: &str) -> String {
        mask_where(line, |rest, before| {
            if before.is_some_and(is_alphanumeric) {
                return None;
            }
            let digits_end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
            let (digits, length) = match digits_end {
                V6_DIGITS => (rest[..V6_DIGITS].to_owned(), V6_DIGITS),
                _ => (reversed_digits(rest)?, 2 * V6_DIGITS - 1),
            };
            let bits = u128::from_str_radix(&digits, 16).ok()?;
            let is_whole = !rest[length..].starts_with(is_alphanumeric);
            (is_whole && self.has(Ipv6Addr::from_bits(bits))).then_some(length)
        })
    }
}

/// The hexadecimal digits of an IPv6 address.
const V6_DIGITS: usize = 32;

/// The digits of an IPv6 address at the start of a text, if dots separate the digits. Such digits are in reverse order,
/// as in names below ip6.arpa.
fn reversed_digits(text: &str) -> Option<String> {
    let dotted = text.get(..2 * V6_DIGITS - 1)?;
    let mut bytes = dotted.bytes().enumerate();
    let is_dotted =
        bytes.all(|(n, byte)| if n % 2 == 0 { byte.is_ascii_hexdigit() } else { byte == b'.' });
    is_dotted.then(|| dotted.chars().rev().step_by(2).collect())
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

fn is_alphanumeric(c: char) -> bool {
    c.is_ascii_alphanumeric()
}

/// Four numbers separated by dots, dashes or underscores, also with leading zeros.
fn octets(text: &str) -> Option<[u8; 4]> {
    let mut numbers = text.split(['.', '-', '_']).map(|number| {
        let is_number = (1..=3).contains(&number.len()) && !number.starts_with('+');
        number.parse().ok().filter(|_| is_number)
    });
    let octets = [numbers.next()??, numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(octets)
}

/// Sorts long names first, so that `web1.example.org` is masked before `web1`.
fn longest_first(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    names
}

/// As `str::starts_with`, in upper or lower case.
fn starts_with(text: &str, start: &str) -> bool {
    text.get(..start.len()).is_some_and(|text| text.eq_ignore_ascii_case(start))
}

/// Masks each match of `match_length`, which gets the rest of the line and the character before it, and returns the
/// length in bytes of a match at the start of that rest.
fn mask_where(line: &str, match_length: impl Fn(&str, Option<char>) -> Option<usize>) -> String {
    let mut masked = String::with_capacity(line.len());
    let (mut rest, mut before) = (line, None);
    while let Some(c) = rest.chars().next() {
        let length = if let Some(length) = match_length(rest, before) {
            masked.push_str("[ip]");
            length
        } else {
            masked.push(c);
            c.len_utf8()
        };
        before = rest[..length].chars().next_back();
        rest = &rest[length..];
    }
    masked
}

/// Masks anything that looks like an e-mail address, also with `%40` as in a URL.
fn mask_mail(line: &str) -> String {
    let mut masked = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((at, length)) = at_sign(rest) {
        let (before, after) = (&rest[..at], &rest[at + length..]);
        let before_user = before
            .trim_end_matches(|c: char| c.is_alphanumeric() || "._+-='!#$*^`{|}~".contains(c));
        let after_host =
            after.trim_start_matches(|c: char| c.is_alphanumeric() || ".-".contains(c));
        if before_user.len() < before.len() && after_host.len() < after.len() {
            masked.push_str(before_user);
            masked.push_str("[email]");
            rest = after_host;
        } else {
            masked.push_str(&rest[..at + length]);
            rest = after;
        }
    }
    masked + rest
}

/// Position and length in bytes of the first `@` or `%40`.
fn at_sign(text: &str) -> Option<(usize, usize)> {
    let plain = text.find('@').map(|at| (at, 1));
    let encoded = text.find("%40").map(|at| (at, 3));
    plain.into_iter().chain(encoded).min()
}

fn mask_name(line: &str, name: &str, mask: &str) -> String {
    // ASCII lower case keeps the length in bytes, so positions in `lower` are positions in `line`.
    let (lower, name) = (line.to_ascii_lowercase(), name.to_ascii_lowercase());
    if name.is_empty() || !lower.contains(&name) {
        return line.to_owned();
    }
    let mut masked = String::with_capacity(line.len());
    let mut done = 0;
    for (at, _) in lower.match_indices(&name) {
        let end = at + name.len();
        let is_whole_word = !line[..at].ends_with(char::is_alphanumeric)
            && !line[end..].starts_with(char::is_alphanumeric);
        if is_whole_word {
            masked.push_str(&line[done..at]);
            masked.push_str(mask);
            done = end;
        }
    }
    masked.push_str(&line[done..]);
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private() -> Private {
        Private {
            names: ["web1", "web1.example.org"].map(str::to_owned).into(),
            addresses: ["192.0.2.10", "2001:db8::10", "::1"].map(|ip| ip.parse().unwrap()).into(),
            accounts: ["ann", "bob.smith"].map(str::to_owned).into(),
        }
    }

    fn composed(texts: &[&str]) -> String {
        let about = Address::new("203.0.113.9").unwrap();
        compose(texts.iter().map(|text| (*text, CommentSource::Log)), about, &private())
    }

    #[test]
    fn text_of_the_administrator_is_published_unchanged() {
        let about = Address::new("203.0.113.9").unwrap();
        let texts = [
            ("web1 bans ann@example.com for 192.0.2.10", CommentSource::Admin),
            ("web1 sees ann at 192.0.2.10", CommentSource::Log),
            ("ann on web1", CommentSource::Database),
        ];
        let expected = "web1 bans ann@example.com for 192.0.2.10\n[host] sees [user] at [ip]\n[user] on [host]";
        assert_eq!(compose(texts, about, &private()), expected);
    }

    #[test]
    fn names_addresses_and_accounts_of_this_host_are_masked() {
        let table = [
            ("on web1 from 203.0.113.9", "on [host] from 203.0.113.9"),
            ("WEB1.Example.ORG: web1.example.com", "[host]: [host].example.com"),
            ("web12 myweb1 web1a", "web12 myweb1 web1a"),
            ("web1_a x_web1 _web1_", "[host]_a x_[host] _[host]_"),
            ("web1.example.org_443 (web1)/web1;web1", "[host]_443 ([host])/[host];[host]"),
            (
                "10.2.0.192.in-addr.arpa 10.2.0.192.IN-ADDR.ARPA.",
                "[ip].in-addr.arpa [ip].IN-ADDR.ARPA.",
            ),
            ("10.2.0.192 11.2.0.192.in-addr.arpa", "10.2.0.192 11.2.0.192.in-addr.arpa"),
            ("192.0.2.10.in-addr.arpa", "[ip].in-addr.arpa"),
            ("10-2-0-192.dsl.example ip-192-0-2-10", "[ip].dsl.example ip-[ip]"),
            ("host_192_0_2_10_x 192-000-002-010.example", "host_[ip]_x [ip].example"),
            ("192-0-2-100 9-2-0-192", "192-0-2-100 9-2-0-192"),
            ("ip-2001-db8--10.example 2001-db8-0-0-0-0-0-10", "ip-[ip].example [ip]"),
            ("a --1 2001-db8--11", "a --1 2001-db8--11"),
            (
                "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
                "[ip].ip6.arpa",
            ),
            (
                "x.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.B.D.0.1.0.0.2.IP6.ARPA",
                "x.[ip].IP6.ARPA",
            ),
            (
                "1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
                "1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            ),
            ("h-20010db8000000000000000000000010.example", "h-[ip].example"),
            ("to 192.0.2.10:443.", "to [ip]:443."),
            ("connect() to 192.0.2.10:443: refused", "connect() to [ip]:443: refused"),
            ("inet:192.0.2.10:8891 sip:192.0.2.10", "inet:[ip]:8891 sip:[ip]"),
            ("IPv4:192.0.2.10 IPv6:2001:db8::10", "IPv4:[ip] IPv6:[ip]"),
            ("192.0.2.10.443 > 192.0.2.109.1", "[ip].443 > 192.0.2.109.1"),
            ("ip-192-0-2-10.example", "ip-[ip].example"),
            ("2001:db8::10:22 a2001:db8::10 2001:db8::10a", "[ip]:22 a2001:db8::10 2001:db8::10a"),
            ("::ffff:192.0.2.10: ::1: ::1234", "[ip]: [ip]: ::1234"),
            ("to 192.0.2.10. 192.0.2.100", "to [ip]. 192.0.2.100"),
            ("[2001:DB8::10]:22 2001:db8:0:0::10", "[[ip]]:22 [ip]"),
            ("::ffff:192.0.2.10 ::1 x192.0.2.10", "[ip] [ip] x[ip]"),
            ("<ann@example.com>, bob.o+x@b.de!", "<[email]>, [email]!"),
            ("o'ann@example.org x!y@example.org", "[email] [email]"),
            ("/?u=joe%40example.com&x=1", "/?[email]&x=1"),
            ("a @ b, @handle, root@", "a @ b, @handle, root@"),
            (
                "user ann, Ann's /home/ann/x joann annex",
                "user [user], [user]'s /home/[user]/x joann annex",
            ),
            ("for bob.smith from", "for [user] from"),
        ];
        for (before, after) in table {
            assert_eq!(composed(&[before]), after);
        }
    }

    #[test]
    fn control_and_invisible_characters_are_removed_before_names_are_masked() {
        assert_eq!(composed(&["\u{1b}[31mwe\u{0}b1\r\n\tx\u{202e}y"]), "[host]\nxy");
        assert_eq!(composed(&["an\u{200b}n an\u{ad}n"]), "[user] [user]");
        assert_eq!(composed(&["web1\rfoo\u{c}ann\u{85}x"]), "[host]\nfoo\n[user]\nx");
        assert_eq!(composed(&["\u{7}\u{0}", " "]), EMPTY_COMMENT);
    }

    #[test]
    fn lines_with_the_address_come_first_and_repetitions_last() {
        let text = "Connection closed port 1\nFailed from 203.0.113.9 port 1\n\
                    Failed from 203.0.113.9 port 22\nFailed from 203.0.113.9 port 22\n";
        let expected = "Failed from 203.0.113.9 port 1\nConnection closed port 1\nother jail\n\
                        Failed from 203.0.113.9 port 22";
        assert_eq!(composed(&[text, "Failed from 203.0.113.9 port 1", "other jail"]), expected);
    }

    #[test]
    fn long_comment_is_cut_between_characters() {
        let long = "ü😀".repeat(800);
        let comment = composed(&[&long]);
        assert_eq!(comment.chars().count(), MAX_COMMENT_CHARS);
        assert!(long.starts_with(&comment));
    }
}
