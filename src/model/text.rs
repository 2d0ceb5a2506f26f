//! Text for people: characters that are safe for a terminal, and the format of counts, lists and durations.

use std::borrow::Cow;

/// Whether a character is unsafe in a name or a log line: Unicode's control and format characters, line ends,
/// `Default_Ignorable_Code_Point`, blank glyphs, private-use characters, and noncharacters.
#[must_use]
pub fn is_unsafe_for_display(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{e000}'..='\u{f8ff}'
            | '\u{fdd0}'..='\u{fdef}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffc}' | '\u{fffe}'..='\u{ffff}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{16fe4}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d159}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{10ffff}')
        // The last two code points of each plane are noncharacters.
        || u32::from(c) & 0xfffe == 0xfffe
}

/// A text with `?` in place of each character that is unsafe to display.
#[must_use]
pub fn sanitize(text: &str) -> Cow<'_, str> {
    if text.contains(is_unsafe_for_display) {
        text.replace(is_unsafe_for_display, "?").into()
    } else {
        text.into()
    }
}

/// `1 ban`, `2 bans`.
#[must_use]
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Joins names: `a, b and c`.
#[must_use]
pub fn list(names: &[impl AsRef<str>]) -> String {
    match names {
        [] => String::new(),
        [one] => one.as_ref().to_owned(),
        [many @ .., last] => {
            let many: Vec<&str> = many.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", many.join(", "), last.as_ref())
        }
    }
}

/// A duration in its two largest units: `8m 3s`.
#[must_use]
pub fn format_duration(seconds: i64) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let seconds = seconds.max(0);
    let first = UNITS.iter().position(|(length, _)| seconds >= *length).unwrap_or(3);
    let (length, unit) = UNITS[first];
    let (count, rest) = (seconds / length, seconds % length);
    match UNITS.get(first + 1) {
        Some((length, smaller)) if rest >= *length => {
            format!("{count}{unit} {}{smaller}", rest / length)
        }
        _ => format!("{count}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_format_characters_are_replaced() {
        assert_eq!(sanitize("web-1 日本"), "web-1 日本");
        assert_eq!(sanitize("a\r\u{9b}2J\u{202e}b\u{200b}\u{e0041}\n"), "a??2J?b???");
    }

    #[test]
    fn lists_end_with_and() {
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
    }

    #[test]
    fn duration_has_two_units() {
        let table = [
            (-5, "0s"),
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (483, "8m 3s"),
            (3600, "1h"),
            (3659, "1h"),
            (7500, "2h 5m"),
            (86_400 * 400 + 3600, "400d 1h"),
        ];
        for (seconds, text) in table {
            assert_eq!(format_duration(seconds), text, "{seconds}");
        }
    }
}
