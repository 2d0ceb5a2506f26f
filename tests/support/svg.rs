//! Draws a terminal's screen as an SVG for the README: text as text, frames as lines, bars as rectangles.

use std::fmt::Write as _;

/// The size of a cell, and the margin around the screen, in pixels.
const CELL_WIDTH: usize = 8;
const CELL_HEIGHT: usize = 17;
const MARGIN: usize = 12;

/// The characters of bars, from an eighth of a cell to a whole one.
const BAR_CHARACTERS: &str = "▁▂▃▄▅▆▇█";

#[derive(Clone, Copy, PartialEq, Eq)]
struct Style {
    /// A number of the terminal's 16 colours.
    colour: Option<usize>,
    bold: bool,
}

/// The picture of a screen that `tmux capture-pane -p -e` prints.
pub(crate) fn picture(capture: &str) -> String {
    let rows = rows(capture.trim_end());
    let width = rows.iter().map(Vec::len).max().unwrap_or_default() * CELL_WIDTH + 2 * MARGIN;
    let height = rows.len() * CELL_HEIGHT + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"ui-monospace, monospace\" font-size=\"13\" shape-rendering=\"crispEdges\" fill=\"{}\">\n\
         <title>the screen of f2bmqtt watch</title>\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#1b1f24\"/>\n",
        colour(None)
    );
    for (number, row) in rows.iter().enumerate() {
        let top = MARGIN + number * CELL_HEIGHT;
        writeln!(svg, "<g transform=\"translate({MARGIN} {top})\">").unwrap();
        svg += &drawn(row);
        svg += &written(row);
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

/// A picture without the parts that differ in each run: times, bars, and the row with the peak rate, whose frame depends
/// on the number of digits.
pub(crate) fn timeless(svg: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for row in svg.split("</g>").filter(|row| !row.contains(" a second<")) {
        for line in row.lines().filter(|line| !line.contains("class=\"bar\"")) {
            lines.push(line.split(' ').map(timeless_word).collect::<Vec<_>>().join(" "));
        }
    }
    lines
}

/// Whether a text has digits where the pattern has zeros, and is otherwise the pattern.
fn matches_pattern(text: &str, pattern: &str) -> bool {
    text.len() == pattern.len()
        && text
            .chars()
            .zip(pattern.chars())
            .all(|(a, b)| if b == '0' { a.is_ascii_digit() } else { a == b })
}

/// Replaces the digits of a time or a date by zeros. A tag may precede or follow it.
fn timeless_word(word: &str) -> String {
    let text = word.rsplit('>').find(|text| !text.is_empty()).unwrap_or_default();
    let text = text.split('<').next().unwrap_or_default();
    match ["00:00:00", "0000-00-00"].into_iter().find(|pattern| matches_pattern(text, pattern)) {
        Some(pattern) => word.replace(text, pattern),
        None => word.to_owned(),
    }
}

/// The cells of each row.
fn rows(capture: &str) -> Vec<Vec<(char, Style)>> {
    let mut style = Style { colour: None, bold: false };
    let mut rows = vec![Vec::new()];
    let mut rest = capture.chars();
    while let Some(c) = rest.next() {
        match c {
            '\n' => rows.push(Vec::new()),
            '\x1b' => {
                let sequence: String =
                    rest.by_ref().take_while(|c| !c.is_ascii_alphabetic()).collect();
                style = styled(style, sequence.trim_start_matches('['));
            }
            c => rows.last_mut().unwrap().push((c, style)),
        }
    }
    rows
}

/// A style after an SGR sequence of numbers; `38;5;N` and `3N` are colours.
fn styled(mut style: Style, sequence: &str) -> Style {
    let mut numbers = sequence.split(';').map(|number| number.parse::<usize>().unwrap_or_default());
    while let Some(number) = numbers.next() {
        match number {
            0 => style = Style { colour: None, bold: false },
            1 => style.bold = true,
            22 => style.bold = false,
            38 => style.colour = numbers.nth(1),
            39 => style.colour = None,
            30..=37 => style.colour = Some(number - 30),
            90..=97 => style.colour = Some(number - 90 + 8),
            _ => {}
        }
    }
    style
}

fn colour(number: Option<usize>) -> &'static str {
    match number {
        Some(1 | 9) => "#f47067",
        Some(2 | 10) => "#57ab5a",
        Some(3 | 11) => "#daaa3f",
        Some(8) => "#768390",
        _ => "#cdd9e5",
    }
}

/// The frames of a row as one path through the middles of its cells, and its bars.
fn drawn(row: &[(char, Style)]) -> String {
    let (middle, half) = (CELL_HEIGHT / 2, CELL_WIDTH / 2);
    let (mut frame, mut bars) = (String::new(), String::new());
    for (column, &(c, style)) in row.iter().enumerate() {
        let left = column * CELL_WIDTH;
        let x = left + half;
        match c {
            '─' if column > 0 && row[column - 1].0 == '─' => {}
            '─' => {
                let cells = row[column..].iter().take_while(|(c, _)| *c == '─').count();
                write!(frame, "M{left} {middle}h{}", cells * CELL_WIDTH).unwrap();
            }
            '│' => write!(frame, "M{x} 0v{CELL_HEIGHT}").unwrap(),
            '┌' => write!(frame, "M{x} {CELL_HEIGHT}V{middle}h{half}").unwrap(),
            '┐' => write!(frame, "M{left} {middle}h{half}V{CELL_HEIGHT}").unwrap(),
            '└' => write!(frame, "M{x} 0V{middle}h{half}").unwrap(),
            '┘' => write!(frame, "M{left} {middle}h{half}V0").unwrap(),
            c => {
                if let Some(eighths) = BAR_CHARACTERS.chars().position(|bar| bar == c) {
                    let height = CELL_HEIGHT * (eighths + 1) / 8;
                    let (top, fill) = (CELL_HEIGHT - height, colour(style.colour));
                    writeln!(
                        bars,
                        "<rect class=\"bar\" x=\"{left}\" y=\"{top}\" width=\"{CELL_WIDTH}\" height=\"{height}\" fill=\"{fill}\"/>"
                    )
                    .unwrap();
                }
            }
        }
    }
    if !frame.is_empty() {
        frame = format!("<path fill=\"none\" stroke=\"#545d68\" d=\"{frame}\"/>\n");
    }
    frame + &bars
}

/// Whether a character belongs to neither a frame nor a bar.
fn is_text(c: char) -> bool {
    !"─│┌┐└┘".contains(c) && !BAR_CHARACTERS.contains(c)
}

/// The text of a row, in pieces of one style without two blanks in a row.
fn written(row: &[(char, Style)]) -> String {
    let mut svg = String::new();
    let mut column = 0;
    while column < row.len() {
        let (first, style) = row[column];
        if first == ' ' || !is_text(first) {
            column += 1;
            continue;
        }
        let piece = row[column..].iter().take_while(|(c, other)| is_text(*c) && *other == style);
        let piece: String = piece.map(|(c, _)| c).collect();
        let piece = piece.split("  ").next().unwrap().trim_end();
        let length = piece.chars().count();
        let (x, y, width) = (column * CELL_WIDTH, CELL_HEIGHT * 3 / 4, length * CELL_WIDTH);
        let fill = style.colour.map(|number| format!(" fill=\"{}\"", colour(Some(number))));
        let weight = if style.bold { " font-weight=\"bold\"" } else { "" };
        let text = piece.replace('&', "&amp;").replace('<', "&lt;");
        writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" textLength=\"{width}\"{}{weight}>{text}</text>",
            fill.unwrap_or_default()
        )
        .unwrap();
        column += length;
    }
    svg
}

#[test]
fn screen_is_drawn_with_frames_bars_and_colours() {
    let svg = picture("\x1b[1m┌ a  b\x1b[0m─┐\n\x1b[38;5;2mon\x1b[39m <█ 20:11:09\n");
    for drawn in [
        "<path fill=\"none\" stroke=\"#545d68\" d=\"M4 17V8h4M48 8h8M56 8h4V17\"/>",
        "<text x=\"16\" y=\"12\" textLength=\"8\" font-weight=\"bold\">a</text>",
        "<text x=\"40\" y=\"12\" textLength=\"8\" font-weight=\"bold\">b</text>",
        "<text x=\"0\" y=\"12\" textLength=\"16\" fill=\"#57ab5a\">on</text>",
        "<rect class=\"bar\" x=\"32\" y=\"0\" width=\"8\" height=\"17\" fill=\"#cdd9e5\"/>",
        ">&lt;</text>",
        ">20:11:09</text>",
    ] {
        assert!(svg.contains(drawn), "{drawn}: {svg}");
    }
    let timeless = timeless(&svg).join("\n");
    assert!(timeless.contains(">00:00:00</text>") && !timeless.contains("bar"), "{timeless}");
}
