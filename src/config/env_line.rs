//! Reads one logical line of `mqtt.env` as bash would, so that bash scripts and this program can share the file.
//! `dotenvy` parses the line. Syntax that `dotenvy` and bash read differently is an error, whose text shows how to
//! write the value.

use super::EnvLookup;

/// The first of the characters that replace each `$NAME` of a line while `dotenvy` parses the line, because `dotenvy`
/// prefers the environment and ends a name at an underscore. These characters are from a private-use plane of Unicode.
/// The file must not contain them.
const PLACEHOLDER_BASE: u32 = 0xF_0000;

/// The name and value of a setting, `None` for a blank line or a comment, or what is wrong.
pub(crate) type Parsed = Result<Option<(String, String)>, &'static str>;

/// Reads a line. An error never quotes the line, which may have a password.
pub(crate) fn read(line: &str, lookup: EnvLookup<'_>) -> Parsed {
    let line = line.trim_matches([' ', '\t', '\r']);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    if line.chars().any(|c| c.is_control() && c != '\t' || u32::from(c) >= PLACEHOLDER_BASE) {
        return Err("has an unprintable character: remove the character");
    }
    let mut scanner = BashScanner { rest: line, out: String::new(), names: Vec::new() };
    scanner.scan_line()?;
    let entry = dotenvy::from_read_iter(scanner.out.as_bytes()).next();
    let Some(Ok((key, value))) = entry else {
        return Err("cannot be read: write NAME='value'");
    };
    let mut expanded = String::with_capacity(value.len());
    for c in value.chars() {
        match u32::from(c).checked_sub(PLACEHOLDER_BASE) {
            None => expanded.push(c),
            Some(n) => {
                let name = scanner.names.get(n as usize).map_or("", |name| name);
                expanded.push_str(&lookup(name).unwrap_or_default());
            }
        }
    }
    Ok(Some((key, expanded)))
}

/// Scans a line by bash's rules and copies to `out` what `dotenvy` may parse.
struct BashScanner<'a> {
    rest: &'a str,
    out: String,
    names: Vec<&'a str>,
}

impl<'a> BashScanner<'a> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    /// Takes a name of letters, digits and underscores, or nothing.
    fn take_name(&mut self) -> &'a str {
        let starts = self.rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let end = if starts { end.unwrap_or(self.rest.len()) } else { 0 };
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        name
    }

    fn scan_line(&mut self) -> Result<(), &'static str> {
        const NOT_A_SETTING: &str =
            "is not a setting: write NAME=value, without blanks around the =";
        let exported = match self.rest.strip_prefix("export") {
            Some(rest) if rest.starts_with([' ', '\t']) => {
                self.rest = rest.trim_start_matches([' ', '\t']);
                true
            }
            _ => false,
        };
        let key = self.take_name();
        if key.is_empty() || self.next() != Some('=') {
            return Err(NOT_A_SETTING);
        }
        self.out = format!("{key}=");
        if self.rest.starts_with('#') {
            return Err("has a value that begins with #: put the value in single quotes");
        }
        self.scan_value(exported)
    }

    fn scan_value(&mut self, exported: bool) -> Result<(), &'static str> {
        const NEEDS_QUOTES: &str =
            "has a character with a special meaning in bash: put the value in single quotes";
        let mut before = '=';
        while let Some(c) = self.next() {
            match c {
                '\'' => self.scan_single_quoted()?,
                '"' => self.scan_double_quoted()?,
                '$' => self.scan_expansion()?,
                '\\' => match self.next() {
                    Some(c @ ('\\' | '\'' | '"' | '$' | ' ')) => self.out.extend(['\\', c]),
                    _ => return Err("has a backslash: put the value in single quotes"),
                },
                ' ' | '\t' => return self.check_end(),
                '`' | ';' | '&' | '|' | '<' | '>' | '(' | ')' => return Err(NEEDS_QUOTES),
                '~' if before == '=' || before == ':' => return Err(NEEDS_QUOTES),
                '{' if exported => return Err(NEEDS_QUOTES),
                _ => self.out.push(c),
            }
            before = c;
        }
        Ok(())
    }

    /// After a value only a comment may follow: bash would run any other text as a command.
    fn check_end(&mut self) -> Result<(), &'static str> {
        let rest = self.rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() || rest.starts_with('#') {
            return Ok(());
        }
        Err(
            "has text after the value: put a value with blanks in quotes, and write one setting per line",
        )
    }

    fn scan_single_quoted(&mut self) -> Result<(), &'static str> {
        let Some((text, rest)) = self.rest.split_once('\'') else {
            return Err("has a quote that is not closed on the same line");
        };
        self.out.extend(["'", text, "'"]);
        self.rest = rest;
        Ok(())
    }

    fn scan_double_quoted(&mut self) -> Result<(), &'static str> {
        self.out.push('"');
        while let Some(c) = self.next() {
            match c {
                '"' => {
                    self.out.push('"');
                    return Ok(());
                }
                '$' => self.scan_expansion()?,
                '\\' => match self.next() {
                    Some(c @ ('\\' | '"' | '$')) => self.out.extend(['\\', c]),
                    _ => {
                        return Err(
                            "has a backslash in double quotes: put the value in single quotes",
                        );
                    }
                },
                '`' => return Err("has a ` in double quotes: put the value in single quotes"),
                _ => self.out.push(c),
            }
        }
        Err("has a quote that is not closed on the same line")
    }

    /// Scans `$NAME` or `${NAME}` after the `$`.
    fn scan_expansion(&mut self) -> Result<(), &'static str> {
        const NOT_A_VARIABLE: &str =
            "has a $ that names no variable: put the value in single quotes";
        let braced = self.rest.starts_with('{');
        if braced {
            self.next();
        }
        let name = self.take_name();
        if name.is_empty() || braced && self.next() != Some('}') {
            return Err(NOT_A_VARIABLE);
        }
        let place =
            u32::try_from(self.names.len()).ok().and_then(|n| char::from_u32(PLACEHOLDER_BASE + n));
        self.out.push(place.ok_or("names too many variables")?);
        self.names.push(name);
        Ok(())
    }
}
