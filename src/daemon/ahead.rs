//! Hosts whose messages are stamped more than a day ahead. If several hosts are, this host's own clock is probably
//! wrong, and it rejects the bans of the whole fleet.

use std::collections::BTreeMap;

use super::status::AheadHost;
use crate::clock::is_within;
use crate::wire::HostName;

/// The most hosts that are kept (R21): any client that may publish can use more names.
const MAX_HOSTS: usize = 100;

/// A warning names the hosts of this time, and follows the last warning after at least this time. In milliseconds.
const WINDOW: i64 = 600_000;

/// How long the status file shows a host, in milliseconds. A host publishes its snapshot every 5 to 10 minutes.
const SHOWN: i64 = 1_200_000;

/// The most hosts that a warning names.
const MAX_NAMES: usize = 5;

/// When the latest message of each host was rejected, in milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct AheadHosts {
    last: BTreeMap<HostName, i64>,
    warned: Option<i64>,
}

impl AheadHosts {
    /// Records a rejection at `now`. Returns a warning if one is due.
    pub(super) fn record(&mut self, host: &HostName, now: i64) -> Option<String> {
        self.last.retain(|_, at| is_within(SHOWN, *at, now));
        if self.last.len() < MAX_HOSTS || self.last.contains_key(host) {
            self.last.insert(host.clone(), now);
        }
        let hosts = self.last.iter().filter(|(_, at)| is_within(WINDOW, **at, now));
        let hosts: Vec<&str> = hosts.map(|(host, _)| host.as_str()).collect();
        if hosts.len() < 2 || self.warned.is_some_and(|at| is_within(WINDOW, at, now)) {
            return None;
        }
        self.warned = Some(now);
        let more = hosts.len().saturating_sub(MAX_NAMES);
        let named = hosts[..hosts.len() - more].join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Some(format!(
            "this host's clock is probably more than a day behind: the daemon rejects the messages of {named}\
             {more}, which are stamped more than a day ahead; set the clock (timedatectl)"
        ))
    }

    /// The hosts for the status file.
    pub(super) fn shown(&self, now: i64) -> Vec<AheadHost> {
        let shown = self.last.iter().filter(|(_, at)| is_within(SHOWN, **at, now));
        shown
            .map(|(host, at)| AheadHost { host: host.to_string(), at: at.div_euclid(1000) })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_342_600_000;

    #[test]
    fn two_hosts_ahead_within_ten_minutes_are_one_warning() {
        let mut ahead = AheadHosts::default();
        let mut hosts = |name: &str, minutes: i64| {
            let line = ahead.record(&HostName::new(name).unwrap(), NOW + minutes * 60_000)?;
            let named = line.split_once("messages of ")?.1.split(", which").next()?;
            Some(named.to_owned())
        };
        let table = [
            ("web2", 0, None),
            ("web2", 5, None),
            ("web3", 16, None),
            ("web2", 17, Some("web2, web3")),
            ("web2", 20, None),
            ("web4", 27, Some("web2, web4")),
            ("web4", -9_000, None), // the clock was set back
            ("web2", -9_000, Some("web2, web4")),
        ];
        for (host, minutes, expected) in table {
            assert_eq!(hosts(host, minutes).as_deref(), expected, "{host} {minutes}");
        }
        let lines = (0..200).filter_map(|n| hosts(&format!("x{n}"), 1_000)).count();
        assert_eq!(lines, 1, "one warning is enough");
        assert_eq!(hosts("y", 1_020), None, "alone within ten minutes");
        assert_eq!(hosts("x1", 1_020).as_deref(), Some("x1, y"));
        let six: Vec<_> = (0..6).filter_map(|n| hosts(&format!("z{n}"), 1_025)).collect();
        assert_eq!(six, [""; 0], "within ten minutes after the last");
        assert_eq!(hosts("z6", 1_030).as_deref(), Some("z0, z1, z2, z3, z4 and 2 more"));
    }

    #[test]
    fn status_has_hosts_for_twenty_minutes_and_a_hundred_of_them() {
        let mut ahead = AheadHosts::default();
        for n in 0..200 {
            ahead.record(&HostName::new(&format!("web{n:03}")).unwrap(), NOW);
        }
        let shown = ahead.shown(NOW + SHOWN - 1);
        assert_eq!((shown.len(), shown[0].host.as_str(), shown[0].at), (100, "web000", NOW / 1000));
        assert!(ahead.shown(NOW + SHOWN).is_empty());
        let line = ahead.record(&HostName::new("web000").unwrap(), NOW + WINDOW);
        assert_eq!(line, None, "it is the only one within ten minutes");
    }
}
