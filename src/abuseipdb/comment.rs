//! What a report says. It is public for ever, and much of it was written by the attacker: so it is
//! freed of what is this host's own, of control characters, and of length.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::wire::Address;

/// The most characters that `AbuseIPDB` takes (docs.abuseipdb.com, REPORT endpoint).
pub const MAX: usize = 1024;

/// What stands in a comment that has nothing left.
const NOTHING: &str = "banned by fail2ban";

/// What must not become public. All names are compared as whole words, in any case.
#[derive(Debug, Default, Clone)]
pub struct Private {
    /// This host's names.
    pub names: Vec<String>,
    /// This host's addresses.
    pub addresses: Vec<IpAddr>,
    /// Names of accounts of people.
    pub accounts: Vec<String>,
}

/// Makes one comment of what the bans of an address said: the most telling lines first.
#[must_use]
pub fn compose<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    about: Address,
    private: &Private,
) -> String {
    let mut lines = Vec::new();
    for text in texts {
        for line in printable(text).lines() {
            let line = private.mask(line.trim());
            if !line.is_empty() && !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    let mut kinds = BTreeSet::new();
    let about = about.to_string();
    // One line of each kind, those that name the address first; then what only repeats.
    let mut rank = |line: &String| (!kinds.insert(kind(line)), !line.contains(&about));
    let mut ranked: Vec<_> = lines.into_iter().map(|line| (rank(&line), line)).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let lines: Vec<_> = ranked.into_iter().map(|(_, line)| line).collect();
    let comment: String = lines.join("\n").chars().take(MAX).collect();
    if comment.is_empty() { NOTHING.to_owned() } else { comment }
}

/// A text as it may be published: control characters go, with what else an escape sequence for a
/// terminal has (ECMA-48: `ESC [`, parameters, a letter), and so do characters that only turn or hide
/// text (Unicode's bidirectional and zero-width ones). What ends a line or a word still does.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => out.push('\n'),
            '\t' => out.push(' '),
            '\u{1b}' if chars.next_if_eq(&'[').is_some() => {
                while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => {}
            '\u{feff}' | '\u{fffd}' => {}
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// Lines that differ only in their numbers are of one kind.
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
        let mut line = self.mask_addresses(&mask_mail(line));
        let longest_first = |words: &[String]| {
            let mut words = words.to_vec();
            words.sort_by_key(|word| std::cmp::Reverse(word.len()));
            words
        };
        for name in longest_first(&self.names) {
            line = mask_word(&line, &name, "[host]");
        }
        for account in longest_first(&self.accounts) {
            line = mask_word(&line, &account, "[user]");
        }
        line
    }

    fn mask_addresses(&self, line: &str) -> String {
        let part = |c: char| c.is_ascii_hexdigit() || c == '.' || c == ':';
        let mut masked = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(start) = rest.find(part) {
            let (before, token) = rest.split_at(start);
            let (token, after) = token.split_at(token.find(|c| !part(c)).unwrap_or(token.len()));
            let inside = before.ends_with(|c: char| c.is_alphanumeric());
            masked.push_str(before);
            match self.own_address(token).filter(|_| !inside) {
                Some(own) => {
                    masked.push_str("[ip]");
                    masked.push_str(&token[own..]);
                }
                None => masked.push_str(token),
            }
            rest = after;
        }
        masked + rest
    }

    /// How long the address of this host is that a token begins with: a port or a full stop may
    /// follow.
    fn own_address(&self, token: &str) -> Option<usize> {
        let trimmed = token.trim_end_matches(['.', ':']);
        let before_port = token.rsplit_once(':').map_or("", |(address, _)| address);
        let own = |text: &&str| {
            let address = text.parse::<IpAddr>().map(|address| address.to_canonical());
            address.is_ok_and(|address| self.addresses.contains(&address))
        };
        [token, trimmed, before_port].into_iter().find(own).map(str::len)
    }
}

/// Masks whatever looks like an e-mail address, also as it stands in a URL.
fn mask_mail(line: &str) -> String {
    let local = |c: char| c.is_alphanumeric() || "._+-=".contains(c);
    let domain = |c: char| c.is_alphanumeric() || ".-".contains(c);
    let mut masked = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((at, length)) = at_sign(rest) {
        let (before, after) = (&rest[..at], &rest[at + length..]);
        let user = before.trim_end_matches(local);
        let host = after.trim_start_matches(domain);
        if user.len() < before.len() && host.len() < after.len() {
            masked.push_str(user);
            masked.push_str("[email]");
            rest = host;
        } else {
            masked.push_str(&rest[..at + length]);
            rest = after;
        }
    }
    masked + rest
}

/// The first `@`, or `%40`: where it is, and how long.
fn at_sign(text: &str) -> Option<(usize, usize)> {
    let plain = text.find('@').map(|at| (at, 1));
    let encoded = text.find("%40").map(|at| (at, 3));
    plain.into_iter().chain(encoded).min()
}

fn mask_word(line: &str, word: &str, mask: &str) -> String {
    // Both keep their length in bytes.
    let (lower, word) = (line.to_ascii_lowercase(), word.to_ascii_lowercase());
    if word.is_empty() || !lower.contains(&word) {
        return line.to_owned();
    }
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let mut masked = String::with_capacity(line.len());
    let mut done = 0;
    for (at, _) in lower.match_indices(&word) {
        let end = at + word.len();
        let whole = !line[..at].ends_with(part) && !line[end..].starts_with(part);
        if whole {
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
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Private {
            names: words(&["web1", "web1.example.org"]),
            addresses: ["192.0.2.10", "2001:db8::10", "::1"].map(|ip| ip.parse().unwrap()).into(),
            accounts: words(&["ann", "bob.smith"]),
        }
    }

    fn composed(texts: &[&str]) -> String {
        let about = Address::new("203.0.113.9").unwrap();
        compose(texts.iter().copied(), about, &private())
    }

    #[test]
    fn what_is_this_host_s_own_is_masked() {
        let table = [
            ("on web1 from 203.0.113.9", "on [host] from 203.0.113.9"),
            ("WEB1.Example.ORG: web1.example.com", "[host]: [host].example.com"),
            ("web12 myweb1 web1_a", "web12 myweb1 web1_a"),
            ("to 192.0.2.10:443.", "to [ip]:443."),
            ("to 192.0.2.10. 192.0.2.100", "to [ip]. 192.0.2.100"),
            ("[2001:DB8::10]:22 2001:db8:0:0::10", "[[ip]]:22 [ip]"),
            ("::ffff:192.0.2.10 ::1 x192.0.2.10", "[ip] [ip] x192.0.2.10"),
            ("<ann@example.com>, bob.o+x@b.de!", "<[email]>, [email]!"),
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
    fn what_controls_a_terminal_or_hides_text_goes_before_names_are_looked_for() {
        assert_eq!(composed(&["\u{1b}[31mwe\u{0}b1\r\n\tx\u{202e}y"]), "[host]\nxy");
        assert_eq!(composed(&["an\u{200b}n"]), "[user]");
        assert_eq!(composed(&["\u{7}\u{0}", " "]), NOTHING);
    }

    #[test]
    fn one_line_of_each_kind_comes_first_and_the_address_before_all() {
        let text = "Connection closed port 1\nFailed from 203.0.113.9 port 1\n\
                    Failed from 203.0.113.9 port 22\nFailed from 203.0.113.9 port 22\n";
        let expected = "Failed from 203.0.113.9 port 1\nConnection closed port 1\nother jail\n\
                        Failed from 203.0.113.9 port 22";
        assert_eq!(composed(&[text, "Failed from 203.0.113.9 port 1", "other jail"]), expected);
    }

    #[test]
    fn it_is_cut_between_characters() {
        let long = "ü😀".repeat(800);
        let comment = composed(&[&long]);
        assert_eq!(comment.chars().count(), MAX);
        assert!(long.starts_with(&comment));
    }
}
