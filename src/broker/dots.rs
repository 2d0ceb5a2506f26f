//! `RabbitMQ` knows no slash in a topic: it makes a dot of it, and of every dot a slash when the message goes
//! out. What was published as `blacklist/state/web1.example.org/0` comes as `blacklist/state/web1/example/org/0`,
//! and is put right here, where it can have been nothing else.

use crate::config::Topic;

/// The topic that a message was published on, by the one that it came on.
pub(super) fn restored(fleet: &Topic, came: String) -> String {
    let all = fleet.below("");
    let Some(below) = came.strip_prefix(&all).or_else(|| came.strip_prefix(&all.replace('.', "/")))
    else {
        return came;
    };
    // A host's name is one level.
    let whole = match below.split_once('/') {
        Some(("state", branch)) => {
            branch_of(branch).map(|(host, what)| format!("state/{}/{what}", host.replace('/', ".")))
        }
        Some(("host", host)) => Some(format!("host/{}", host.replace('/', "."))),
        _ => None,
    };
    fleet.below(whole.as_deref().unwrap_or(below))
}

/// Whose branch it is, and what of it: a part, which has a number, or what `f2bmqtt check` says to itself.
fn branch_of(branch: &str) -> Option<(&str, &str)> {
    let (host, number) = branch.rsplit_once('/')?;
    if number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some((host, number));
    }
    let host = host.strip_suffix("/check")?;
    Some((host, &branch[host.len() + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_s_name_is_one_level_again() {
        let table = [
            ("blacklist", "blacklist/ban", "blacklist/ban"),
            ("blacklist", "blacklist/any/other", "blacklist/any/other"),
            ("blacklist", "blacklist/state", "blacklist/state"),
            ("blacklist", "blacklist/state/web1", "blacklist/state/web1"),
            ("blacklist", "blacklist/state/web1/0", "blacklist/state/web1/0"),
            ("blacklist", "blacklist/state/web1.org/12", "blacklist/state/web1.org/12"),
            ("blacklist", "blacklist/state/web1/org/12", "blacklist/state/web1.org/12"),
            ("blacklist", "blacklist/state/web1/check/0", "blacklist/state/web1.check/0"),
            ("blacklist", "blacklist/state/web1/check/m7", "blacklist/state/web1/check/m7"),
            ("blacklist", "blacklist/state/web1/org/check/m7", "blacklist/state/web1.org/check/m7"),
            ("blacklist", "blacklist/state/web1/any/other", "blacklist/state/web1/any/other"),
            ("blacklist", "blacklist/host/web1", "blacklist/host/web1"),
            ("blacklist", "blacklist/host/web1/x/org", "blacklist/host/web1.x.org"),
            ("black.list", "black.list/host/web1", "black.list/host/web1"),
            ("black.list", "black/list/host/web1/org", "black.list/host/web1.org"),
            ("black.list", "black/list/ban", "black.list/ban"),
            ("blacklist", "homeassistant/status/a", "homeassistant/status/a"),
        ];
        for (fleet, came, published) in table {
            let fleet = Topic::new(fleet).unwrap();
            assert_eq!(restored(&fleet, came.to_owned()), published);
        }
    }
}
