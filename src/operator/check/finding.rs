//! The result of a check, and its rendering: one line per check, followed by the suggested fix.

use crate::model::text::sanitize;
use serde_json::{Value, json};

/// The outcome of a check, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    Ok,
    /// It works, but something is unusual.
    Warning,
    Fault,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault => "fault",
        }
    }

    /// The mark, and its colour on a terminal (ECMA-48: green, yellow, red).
    fn mark(self) -> (&'static str, &'static str) {
        match self {
            Self::Ok => ("✓", "\x1b[32m"),
            Self::Warning => ("!", "\x1b[33m"),
            Self::Fault => ("✗", "\x1b[31m"),
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The stable name of the check, for programs.
    pub(super) id: &'static str,
    pub(super) state: Status,
    /// The checked object, if a check has several: a broker, a jail, a file.
    pub(super) about: Option<String>,
    pub(super) text: String,
    /// The suggested fix: commands, or lines to add.
    pub(super) next: Vec<String>,
}

impl Finding {
    fn new(id: &'static str, state: Status, text: impl Into<String>) -> Self {
        Self { id, state, about: None, text: text.into(), next: Vec::new() }
    }

    pub(super) fn ok(id: &'static str, text: impl Into<String>) -> Self {
        Self::new(id, Status::Ok, text)
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

    /// Adds lines to the suggested fix.
    pub(super) fn next(mut self, steps: impl AsRef<str>) -> Self {
        self.next.extend(steps.as_ref().lines().map(str::to_owned));
        self
    }
}

/// The number of findings with a state.
pub(super) fn count(findings: &[Finding], state: Status) -> usize {
    findings.iter().filter(|finding| finding.state == state).count()
}

/// Renders findings for people.
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

/// Renders findings as one JSON object.
pub(super) fn object(findings: &[Finding]) -> Value {
    let checks: Vec<Value> = findings
        .iter()
        .map(|Finding { id, state, about, text, next }| {
            json!({"id": id, "state": state.as_str(), "about": about, "text": text, "next": next})
        })
        .collect();
    let state = findings.iter().map(|finding| finding.state).max().unwrap_or(Status::Ok);
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
            Finding::ok("one", "one is fine"),
            Finding::fault("two", "two \x1b[2Jis not").about(&"x").next("do this\nand that"),
            Finding::warning("three", "three is unusual"),
        ]
    }

    #[test]
    fn text_has_one_line_per_check_and_the_fix_below() {
        let plain =
            "✓ one is fine\n✗ two ?[2Jis not\n    do this\n    and that\n! three is unusual";
        assert_eq!(text(&findings(), false), plain);
        assert!(text(&findings(), true).starts_with("\x1b[32m✓\x1b[0m one is fine\n\x1b[31m✗"));
    }

    #[test]
    fn json_has_stable_ids() {
        let object = object(&findings());
        assert_eq!((&object["state"], &object["faults"]), (&json!("fault"), &json!(1)));
        let second = json!({"id": "two", "state": "fault", "about": "x", "text": "two \x1b[2Jis not",
            "next": ["do this", "and that"]});
        assert_eq!(object["checks"][1], second);
    }
}
