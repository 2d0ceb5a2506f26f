//! Renders tables: with colours on a terminal, tab-separated in a pipe, or as JSON. Text from the network loses all
//! characters that could move the cursor or change the direction of writing.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _, Write as _};

use crate::model::text::{is_unsafe_for_display, sanitize};
use serde_json::Value;
use unicode_width::UnicodeWidthStr as _;

/// The properties of standard output.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// Standard output is a terminal, so tables have aligned columns.
    pub terminal: bool,
    /// Colours are allowed: a terminal, and no `NO_COLOR` in the environment (<https://no-color.org>).
    pub colour: bool,
}

/// The style of a cell on a terminal with colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// The terminal's own style, without escape sequences.
    #[default]
    Plain,
    /// Bold: the heads of columns and lines.
    Head,
    /// Green: works.
    Good,
    /// Red: needs the operator's attention.
    Bad,
    /// Faint: unknown.
    Dim,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Head => "\x1b[1m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
            Self::Dim => "\x1b[2m",
        }
    }
}

impl Out {
    /// Inspects standard output.
    #[must_use]
    pub fn stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { terminal, colour }
    }

    /// Sanitizes a text, and adds its colour.
    #[must_use]
    pub fn paint<'a>(&self, style: Style, text: &'a str) -> Cow<'a, str> {
        let text = sanitize(text);
        if !self.colour || style == Style::Plain {
            return text;
        }
        format!("{}{text}\x1b[0m", style.code()).into()
    }

    /// Writes a table: with aligned columns on a terminal, separated by tabs in a pipe.
    pub fn table<'a>(
        &self,
        to: &mut dyn fmt::Write,
        heads: &[&str],
        rows: impl Iterator<Item = Row> + Clone + 'a,
    ) {
        let heads: Row = heads.iter().map(|head| (Style::Head, (*head).to_owned())).collect();
        let mut widths = vec![0; heads.len()];
        if self.terminal {
            for row in [heads.clone()].into_iter().chain(rows.clone()) {
                for (width, (_, cell)) in widths.iter_mut().zip(&row) {
                    *width = sanitize(cell).width().max(*width);
                }
            }
        }
        for row in [heads].into_iter().chain(rows) {
            let _ = self.row(to, &row, &widths);
        }
    }

    fn row(self, to: &mut dyn fmt::Write, row: &Row, widths: &[usize]) -> fmt::Result {
        if !self.terminal {
            let cells: Vec<_> = row.iter().map(|(_, cell)| sanitize(cell)).collect();
            return writeln!(to, "{}", cells.join("\t"));
        }
        let last = row.iter().rposition(|(_, cell)| !cell.is_empty()).unwrap_or(0);
        for (n, (style, cell)) in row.iter().enumerate().take(last) {
            let gap = (widths[n] + 2).saturating_sub(sanitize(cell).width());
            write!(to, "{}{:gap$}", self.paint(*style, cell), "")?;
        }
        let (style, cell) = &row[last];
        writeln!(to, "{}", self.paint(*style, cell))
    }
}

/// One cell of a table: its style on a terminal, and its text.
pub type Cell = (Style, String);

/// One row of a table.
pub type Row = Vec<Cell>;

/// Buffered standard output. A reader that closes the pipe causes no error.
#[derive(Debug)]
pub struct BufferedStdout(io::BufWriter<io::StdoutLock<'static>>);

impl Default for BufferedStdout {
    fn default() -> Self {
        Self(io::BufWriter::new(io::stdout().lock()))
    }
}

impl fmt::Write for BufferedStdout {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_all(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// Prints a text.
pub fn print(text: &str) {
    let _ = BufferedStdout::default().write_str(text);
}

/// Prints an object, on one line.
pub fn print_json(value: &Value) {
    let _ = writeln!(BufferedStdout::default(), "{}", json(value));
}

/// Encodes JSON, with escapes for characters that are unsafe on a terminal.
#[must_use]
pub fn json(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        if is_unsafe_for_display(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(style: Style, first: &str, second: &str) -> Row {
        vec![(style, first.to_owned()), (Style::Plain, second.to_owned())]
    }

    fn table(terminal: bool, colour: bool) -> String {
        let rows = [
            row(Style::Good, "日本", "x"),
            row(Style::Bad, "a\u{1b}[2J\tb", ""),
            row(Style::Plain, "", "y"),
        ];
        let mut text = String::new();
        Out { terminal, colour }.table(&mut text, &["NAME", "B"], rows.iter().cloned());
        text
    }

    #[test]
    fn table_has_columns_on_a_terminal_and_tabs_in_a_pipe() {
        let lines = ["NAME     B", "日本     x", "a?[2J?b", "         y", ""];
        assert_eq!(table(true, false), lines.join("\n"));
        assert_eq!(table(false, false), "NAME\tB\n日本\tx\na?[2J?b\t\n\ty\n");
        let coloured = table(true, true);
        let heads = "\x1b[1mNAME\x1b[0m     \x1b[1mB\x1b[0m\n\x1b[32m日本\x1b[0m     x\n";
        assert!(coloured.starts_with(heads), "{coloured:?}");
        assert!(!coloured.contains("\x1b[2J"));
    }

    #[test]
    fn json_escapes_characters_that_are_unsafe_on_a_terminal() {
        let json = json(&serde_json::json!({ "a": "\u{1b}\u{7f}\u{9b}\u{202e}\u{e0041}" }));
        assert_eq!(json, "{\"a\":\"\\u001b\\u007f\\u009b\\u202e\\udb40\\udc41\"}");
    }
}
