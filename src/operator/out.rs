//! What a person sees: lines and tables on a terminal, plain text in a pipe, or JSON. Whatever came from
//! the network loses what could move a cursor or turn a text around.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _, Write as _};

use crate::text::{is_unsafe_for_display, sanitize};
use serde_json::Value;
use unicode_width::UnicodeWidthStr as _;

/// Where the text goes.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// A person reads it.
    pub terminal: bool,
    /// It may have colours (no-color.org).
    pub colour: bool,
}

/// How a cell looks on a terminal with colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Style {
    #[default]
    Plain,
    Head,
    Good,
    Bad,
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
    /// Standard output.
    #[must_use]
    pub fn stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { terminal, colour }
    }

    /// A text, as it looks.
    #[must_use]
    pub fn paint<'a>(&self, look: Style, text: &'a str) -> Cow<'a, str> {
        let text = sanitize(text);
        if !self.colour || look == Style::Plain {
            return text;
        }
        format!("{}{text}\x1b[0m", look.code()).into()
    }

    /// Rows below their heads: in columns on a terminal, with tabs between in a pipe.
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
        for (n, (look, cell)) in row.iter().enumerate().take(last) {
            let gap = (widths[n] + 2).saturating_sub(sanitize(cell).width());
            write!(to, "{}{:gap$}", self.paint(*look, cell), "")?;
        }
        let (look, cell) = &row[last];
        writeln!(to, "{}", self.paint(*look, cell))
    }
}

/// The cells of a row.
pub type Row = Vec<(Style, String)>;

/// Standard output, for what may be long. Whoever stops reading it ends nothing.
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

/// JSON that is as harmless on a terminal as any other text.
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

    fn table(terminal: bool, colour: bool) -> String {
        let row = |look, a: &str, b: &str| vec![(look, a.to_owned()), (Style::Plain, b.to_owned())];
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
    fn a_table_has_columns_on_a_terminal_and_tabs_in_a_pipe() {
        let lines = ["NAME     B", "日本     x", "a?[2J?b", "         y", ""];
        assert_eq!(table(true, false), lines.join("\n"));
        assert_eq!(table(false, false), "NAME\tB\n日本\tx\na?[2J?b\t\n\ty\n");
        let coloured = table(true, true);
        let heads = "\x1b[1mNAME\x1b[0m     \x1b[1mB\x1b[0m\n\x1b[32m日本\x1b[0m     x\n";
        assert!(coloured.starts_with(heads), "{coloured:?}");
        assert!(!coloured.contains("\x1b[2J"));
    }

    #[test]
    fn json_is_as_harmless_on_a_terminal() {
        let json = json(&serde_json::json!({ "a": "\u{1b}\u{7f}\u{9b}\u{202e}\u{e0041}" }));
        assert_eq!(json, "{\"a\":\"\\u001b\\u007f\\u009b\\u202e\\udb40\\udc41\"}");
    }
}
