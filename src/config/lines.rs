//! Splits `mqtt.env` into lines as bash would: joins continued lines, and marks lines that bash may skip or repeat. The
//! file may also have commands, for scripts of the administrator that source the file. The daemon runs no command.

/// A logical line of bash: physical lines that an open quote or a backslash joins form one logical line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EnvLine {
    /// The number of the first physical line.
    pub(super) number: usize,
    pub(super) text: String,
    /// Whether the line is inside a condition, a loop, a function or a list.
    pub(super) nested: bool,
}

/// Splits a file into logical lines, and leaves out the texts of here-documents.
pub(super) fn split(text: &str) -> Vec<EnvLine> {
    let lines: Vec<&str> = text.split('\n').map(|line| line.trim_end_matches('\r')).collect();
    let (mut split, mut depth, mut next) = (Vec::new(), Depth::default(), 0);
    while next < lines.len() {
        let first = next;
        let (text, read) = join(&lines[first..]);
        next += read;
        let scan = LineScan::of(&text, depth);
        split.push(EnvLine {
            number: first + 1,
            nested: depth.blocks + depth.parentheses > 0,
            text,
        });
        depth = scan.depth;
        if let Some(end) = scan.document {
            let at = lines[next..].iter().position(|line| line.trim_start_matches('\t') == end);
            next += at.map_or(0, |at| at + 1);
        }
    }
    split
}

/// Joins the first line with the lines that continue it. Returns the text, and the number of joined lines. A quote that
/// is never closed joins no lines.
fn join(lines: &[&str]) -> (String, usize) {
    let mut text = lines[0].to_owned();
    for read in 1..=lines.len() {
        match end(&text) {
            End::Complete => return (text, read),
            _ if read == lines.len() => break,
            End::Quote => text.push('\n'),
            End::Backslash => drop(text.pop()),
        }
        text.push_str(lines[read]);
    }
    (lines[0].to_owned(), 1)
}

enum End {
    Complete,
    Quote,
    Backslash,
}

fn end(text: &str) -> End {
    let (mut quote, mut before) = (None, ' ');
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '#') if is_blank(before) => return End::Complete,
            (None | Some('"'), '\\') if chars.next().is_none() => return End::Backslash,
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            _ => {}
        }
        before = c;
    }
    if quote.is_some() { End::Quote } else { End::Complete }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | ';' | '&' | '|' | '(' | ')')
}

/// The number of open blocks and parentheses. The count of parentheses never falls below 0, because a pattern of `case`
/// has a closing parenthesis only.
#[derive(Clone, Copy, Default)]
struct Depth {
    blocks: usize,
    parentheses: usize,
}

/// The blocks and here-documents that a line opens for the following lines.
struct LineScan {
    /// The depth after the line.
    depth: Depth,
    /// The line that ends a here-document which starts on this line.
    document: Option<String>,
}

impl LineScan {
    fn of(text: &str, depth: Depth) -> Self {
        let mut scan = Self { depth, document: None };
        let (mut token, mut quote, mut before) = (String::new(), None, ' ');
        let mut starts = true;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match (quote, c) {
                (Some('"') | None, '\\') => {
                    chars.next();
                    token.push('x');
                }
                (Some(open), _) if open == c => quote = None,
                (Some(_), _) => token.push('x'),
                (None, '\'' | '"') => {
                    quote = Some(c);
                    token.push('x');
                }
                (None, '#') if is_blank(before) => break,
                (None, '<') if chars.peek() == Some(&'<') => {
                    chars.next();
                    let rest: String = chars.clone().collect();
                    scan.document = document(&rest);
                }
                (None, c) if is_blank(c) => {
                    scan.end_token(&std::mem::take(&mut token), &mut starts);
                    let open = &mut scan.depth.parentheses;
                    match c {
                        '(' => *open += 1,
                        ')' => *open = open.saturating_sub(1),
                        _ => {}
                    }
                    starts |= !matches!(c, ' ' | '\t');
                }
                (None, c) => token.push(c),
            }
            before = c;
        }
        scan.end_token(&token, &mut starts);
        scan
    }

    /// Counts a token; `starts` is true where bash expects a command.
    fn end_token(&mut self, token: &str, starts: &mut bool) {
        if token.is_empty() {
            return;
        }
        let command = std::mem::replace(starts, false);
        match token {
            _ if !command => {}
            "if" | "while" | "until" | "{" => {
                self.depth.blocks += 1;
                *starts = true;
            }
            "case" | "for" | "select" => self.depth.blocks += 1,
            "then" | "else" | "elif" | "do" | "!" => *starts = true,
            "fi" | "done" | "esac" | "}" => self.depth.blocks = self.depth.blocks.saturating_sub(1),
            _ => {}
        }
    }
}

/// The line that ends a here-document whose `<<` is followed by `rest`; `None` for a here-string (`<<<`).
fn document(rest: &str) -> Option<String> {
    let rest = rest.strip_prefix('-').unwrap_or(rest).trim_start();
    if rest.starts_with('<') {
        return None;
    }
    let end: String = rest.chars().take_while(|c| !is_blank(*c)).collect();
    Some(end.replace(['\'', '"', '\\'], "")).filter(|end| !end.is_empty())
}

/// The variables that a line may set when bash runs it: those before a `=`, and the arguments of commands that set or
/// remove variables.
pub(super) fn assigned_variables(text: &str) -> Vec<&str> {
    const SETTERS: [&str; 3] = ["unset", "read", "-v"];
    let mut found = Vec::new();
    let mut at = 0;
    let mut setter = false;
    while let Some(start) = text[at..].find(is_name_char) {
        let start = at + start;
        let end = text[start..].find(|c| !is_name_char(c)).map_or(text.len(), |end| start + end);
        let (name, before, after) = (&text[start..end], &text[..start], &text[end..]);
        let assigned = ["=", "+=", "["].iter().any(|sign| after.starts_with(sign));
        let by_default =
            before.ends_with("${") && (after.starts_with(":=") || after.starts_with('='));
        let named = !name.starts_with(|c: char| c.is_ascii_digit());
        if named && (by_default || assigned && !before.ends_with(['$', '{']) || setter) {
            found.push(name);
        }
        setter |= SETTERS.contains(&name) || before.ends_with('-') && name == "v";
        at = end;
    }
    found
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number and text of the lines that are read.
    fn flat(text: &str) -> Vec<(usize, String)> {
        let lines = split(text).into_iter().filter(|line| !line.nested && !line.text.is_empty());
        lines.map(|line| (line.number, line.text)).collect()
    }

    fn is_nested(text: &str) -> bool {
        split(text).iter().any(|line| line.nested && line.text.trim() == "MQTT_HOST=a")
    }

    #[test]
    fn lines_of_a_condition_loop_function_or_list_are_nested() {
        for text in [
            "if true; then\nMQTT_HOST=a\nfi",
            "if true\nthen\n  MQTT_HOST=a\nelse\nfi",
            "f() {\nMQTT_HOST=a\n}",
            "function f\n{\nMQTT_HOST=a\n}",
            "case x in\nx)\nMQTT_HOST=a\n;;\nesac",
            "for x in a b; do\nMQTT_HOST=a\ndone",
            "x=1; while read y; do\nMQTT_HOST=a\ndone <f",
            "A=(\nMQTT_HOST=a\n)",
            "(\nMQTT_HOST=a\n)",
            "if a; then if b; then\nc\nfi\nMQTT_HOST=a\nfi",
        ] {
            assert!(is_nested(text), "{text}");
        }
        for text in [
            "if true; then x; fi\nMQTT_HOST=a",
            "f() { x; }\nMQTT_HOST=a",
            "A=(x y)\nMQTT_HOST=a",
            "echo if\nMQTT_HOST=a",
            "# if\nMQTT_HOST=a",
            "X='if ('\nMQTT_HOST=a",
            "X=\"$(if true; then x; fi)\"\nMQTT_HOST=a",
            "case x in\nx) y;;\nesac\nMQTT_HOST=a",
            "P='a{b('\nMQTT_HOST=a",
        ] {
            assert!(
                !is_nested(text) && flat(text).iter().any(|(_, line)| line == "MQTT_HOST=a"),
                "{text}"
            );
        }
    }

    #[test]
    fn continued_lines_are_one() {
        let table = [
            ("A=a\\\nb\nB=1", [(1, "A=ab"), (3, "B=1")]),
            ("A='x\nMQTT_HOST=a'\nB=1", [(1, "A='x\nMQTT_HOST=a'"), (3, "B=1")]),
            ("A=don't\nB=1", [(1, "A=don't"), (2, "B=1")]),
            ("# don't\nB=1\\", [(1, "# don't"), (2, "B=1\\")]),
            ("cat <<E >x\nMQTT_HOST=a\nE\nB=1", [(1, "cat <<E >x"), (4, "B=1")]),
            ("cat <<-'E'\nMQTT_HOST=a\n\tE\nB=1", [(1, "cat <<-'E'"), (4, "B=1")]),
            ("cat <<<E\nB=1\r", [(1, "cat <<<E"), (2, "B=1")]),
        ];
        for (text, lines) in table {
            let expected = lines.map(|(number, line)| (number, line.to_owned()));
            assert_eq!(flat(text), expected, "{text}");
        }
    }

    #[test]
    fn variables_that_a_line_may_set_are_found() {
        let table: [(&str, &[&str]); 9] = [
            ("export A=$(cmd)", &["A"]),
            ("if x; then MQTT_HOST=b; fi", &["MQTT_HOST"]),
            (": ${MQTT_HOST:=x}", &["MQTT_HOST"]),
            ("MQTT_HOST+=x", &["MQTT_HOST"]),
            ("LIST=(a b)", &["LIST"]),
            ("[ \"$MQTT_HOST\" = x ] && echo ${MQTT_HOST} $MQTT_TOPIC", &[]),
            ("unset MQTT_HOST", &["MQTT_HOST"]),
            ("read -r MQTT_HOST <f", &["r", "MQTT_HOST", "f"]),
            ("printf -v MQTT_HOST x", &["MQTT_HOST", "x"]),
        ];
        for (text, expected) in table {
            assert_eq!(assigned_variables(text), expected, "{text}");
        }
    }
}
