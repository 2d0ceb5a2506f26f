//! What a check found, and how it is shown: a line a check, and under a fault what to do next.

use crate::text::sanitize;
use serde_json::{Value, json};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    Well,
    /// It works, and something about it is odd.
    Warning,
    Fault,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Well => "ok",
            Self::Warning => "warning",
            Self::Fault => "fault",
        }
    }

    /// Its mark, and the colour of that on a terminal (ECMA-48: green, yellow, red).
    fn mark(self) -> (&'static str, &'static str) {
        match self {
            Self::Well => ("✓", "\x1b[32m"),
            Self::Warning => ("!", "\x1b[33m"),
            Self::Fault => ("✗", "\x1b[31m"),
        }
    }
}

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// Of the check: stable, for machines.
    pub(super) id: &'static str,
    pub(super) state: Status,
    /// What was looked at, where there are several: a broker, a jail, a file.
    pub(super) about: Option<String>,
    pub(super) text: String,
    /// What to do: commands, or lines to add, one each.
    pub(super) next: Vec<String>,
}

impl Finding {
    fn new(id: &'static str, state: Status, text: impl Into<String>) -> Self {
        Self { id, state, about: None, text: text.into(), next: Vec::new() }
    }

    pub(super) fn ok(id: &'static str, text: impl Into<String>) -> Self {
        Self::new(id, Status::Well, text)
    }

    pub(super) fn warning(id: &'static str, text: impl Into<String>) -> Self {
        Self::new(id, Status::Warning, text)
    }

    pub(super) fn fault(id: &'static str, text: impl Into<String>) -> Self {
        Self::new(id, Status::Fault, text)
    }

    pub(super) fn about(mut self, what: &impl ToString) -> Self {
        self.about = Some(what.to_string());
        self
    }

    /// Adds a step, or several with a line end between.
    pub(super) fn next(mut self, steps: impl AsRef<str>) -> Self {
        self.next.extend(steps.as_ref().lines().map(str::to_owned));
        self
    }
}

/// How many there are of a state.
pub(super) fn count(findings: &[Finding], state: Status) -> usize {
    findings.iter().filter(|finding| finding.state == state).count()
}

/// For people.
pub(super) fn text(findings: &[Finding], colour: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let (mark, paint) = finding.state.mark();
        let (paint, end) = if colour { (paint, "\x1b[0m") } else { ("", "") };
        text.extend([paint, mark, end, " ", &sanitize(&finding.text), "\n"]);
        for step in &finding.next {
            text.extend(["    ", &sanitize(step), "\n"]);
        }
    }
    text.pop();
    text
}

/// For machines: one object.
pub(super) fn object(findings: &[Finding]) -> Value {
    let checks: Vec<Value> = findings
        .iter()
        .map(|Finding { id, state, about, text, next }| {
            json!({"id": id, "state": state.as_str(), "about": about, "text": text, "next": next})
        })
        .collect();
    let state = findings.iter().map(|finding| finding.state).max().unwrap_or(Status::Well);
    json!({
        "state": state.as_str(),
        "faults": count(findings, Status::Fault),
        "warnings": count(findings, Status::Warning),
        "checks": checks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("one", "one is well"),
            Finding::fault("two", "two \x1b[2Jis not").about(&"x").next("do this\nand that"),
            Finding::warning("three", "three is odd"),
        ]
    }

    #[test]
    fn a_line_a_check_and_the_next_step_below() {
        let plain = "✓ one is well\n✗ two ?[2Jis not\n    do this\n    and that\n! three is odd";
        assert_eq!(text(&findings(), false), plain);
        assert!(text(&findings(), true).starts_with("\x1b[32m✓\x1b[0m one is well\n\x1b[31m✗"));
    }

    #[test]
    fn machines_get_names_that_stay() {
        let object = object(&findings());
        assert_eq!((&object["state"], &object["faults"]), (&json!("fault"), &json!(1)));
        let second = json!({"id": "two", "state": "fault", "about": "x", "text": "two \x1b[2Jis not",
            "next": ["do this", "and that"]});
        assert_eq!(object["checks"][1], second);
    }
}
