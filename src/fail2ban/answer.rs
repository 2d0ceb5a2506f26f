//! Reads the answers of fail2ban's server: the values in them, and its error messages.

use super::column;
use super::pickle::PickleValue;
use crate::model::range::BANTIME_SECS;
use crate::model::{Address, range};

pub(super) fn read_number(answer: &PickleValue<'_>) -> Option<i64> {
    answer.int()
}

/// The text of an answer; empty for Python's None.
pub(super) fn text_or_empty(answer: &PickleValue<'_>) -> String {
    answer.text().unwrap_or_default().to_owned()
}

/// The texts in a list.
pub(super) fn read_texts(answer: &PickleValue<'_>) -> Option<Vec<String>> {
    Some(answer.list()?.iter().filter_map(PickleValue::text).map(str::to_owned).collect())
}

/// Parses `ADDRESS \tSTART + SECONDS = END` (fail2ban's `server/banmanager.py`). START and END are local times, so only
/// SECONDS is used. If that cannot be read, the address still counts as banned.
pub(super) fn parse_ticket(text: &str) -> Option<(Address, Option<i64>)> {
    let (address, times) = text.split_once('\t').unwrap_or((text, ""));
    let seconds = times.split_once(" + ").and_then(|(_, rest)| rest.split_once(" = "));
    let seconds = seconds.and_then(|(seconds, _)| column::digits(seconds));
    Some((Address::new(address.trim()).ok()?, seconds.map(clamp_bantime)))
}

/// Clamps a bantime to the range of messages, so that later sums cannot overflow.
pub(super) fn clamp_bantime(seconds: i64) -> i64 {
    range::into(&BANTIME_SECS, seconds)
}

/// The entries that one value of `ignoreip` stands for. A file of addresses (since fail2ban 1.1.1) is an object with
/// the file's name and the addresses that it last read.
pub(super) fn ignoreip_entries(value: &PickleValue<'_>) -> Vec<String> {
    let PickleValue::Object(_, parts) = value else {
        return value.text().map(str::to_owned).into_iter().collect();
    };
    let mut entries = Vec::new();
    for item in parts {
        match item {
            PickleValue::Text(text) => entries.push(text.to_string()),
            PickleValue::List(values) => {
                entries.extend(values.iter().filter_map(|one| one.text().map(str::to_owned)));
            }
            PickleValue::Dict(state) => {
                let name = state.iter().find(|(key, _)| key.text() == Some("fileName"));
                entries.extend(name.and_then(|(_, name)| Some(format!("file:{}", name.text()?))));
            }
            _ => {}
        }
    }
    entries
}

/// The value of a name in a list of pairs.
pub(super) fn field<'v, 'a>(pairs: &'v PickleValue<'a>, name: &str) -> Option<&'v PickleValue<'a>> {
    pairs.list()?.iter().find_map(|pair| match pair.list()? {
        [key, value] if key.text() == Some(name) => Some(value),
        _ => None,
    })
}

/// fail2ban's error message on one line.
pub(super) fn explain(value: &PickleValue<'_>) -> String {
    let text = match value {
        PickleValue::Object(class, arguments) => {
            let texts: Vec<&str> = arguments.iter().filter_map(PickleValue::text).collect();
            let class = class.rsplit('.').next().unwrap_or(class);
            if texts.is_empty() {
                class.to_owned()
            } else {
                format!("{class}: {}", texts.join(" "))
            }
        }
        other => other.text().unwrap_or("no reason given").to_owned(),
    };
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
