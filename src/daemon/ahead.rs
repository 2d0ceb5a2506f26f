//! Hosts whose messages are stamped more than a day ahead. If several hosts are, this host's own clock is probably
//! wrong, and it rejects the bans of the whole fleet.

use std::collections::BTreeMap;

use super::status::AheadHost;
use crate::model::HostName;
use crate::sys::clock::is_within;

/// The most hosts that are kept (R21): any client that may publish can use more names.
const MAX_HOSTS: usize = 100;

/// A warning names the hosts of this time, and follows the last warning after at least this time.
const WARNING_WINDOW_MILLIS: i64 = 600_000;

/// How long the status file shows a host. A host publishes its snapshot every 5 to 10 minutes.
const DISPLAY_MILLIS: i64 = 1_200_000;

/// The most hosts that a warning names.
const MAX_NAMES: usize = 5;

/// When the latest message of each host was rejected, in milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct AheadHosts {
    last_rejections: BTreeMap<HostName, i64>,
    last_warning: Option<i64>,
}

impl AheadHosts {
    /// Records a rejection at `now`. Returns a warning if one is due.
    pub(super) fn record(&mut self, host: &HostName, now: i64) -> Option<String> {
        self.last_rejections.retain(|_, at| is_within(DISPLAY_MILLIS, *at, now));
        if self.last_rejections.len() < MAX_HOSTS || self.last_rejections.contains_key(host) {
            self.last_rejections.insert(host.clone(), now);
        }
        let recent = self.last_rejections.iter();
        let recent = recent.filter(|(_, at)| is_within(WARNING_WINDOW_MILLIS, **at, now));
        let hosts: Vec<&str> = recent.map(|(host, _)| host.as_str()).collect();
        // One host that is ahead probably has a wrong clock itself.
        if hosts.len() < 2
            || self.last_warning.is_some_and(|at| is_within(WARNING_WINDOW_MILLIS, at, now))
        {
            return None;
        }
        self.last_warning = Some(now);
        let more = hosts.len().saturating_sub(MAX_NAMES);
        let named = hosts[..hosts.len() - more].join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Some(format!(
            "this host's clock is probably more than a day behind: the daemon rejects the messages of {named}\
             {more}, which are stamped more than a day ahead; set the clock (timedatectl)"
        ))
    }

    /// The hosts for the status file.
    pub(super) fn recent(&self, now: i64) -> Vec<AheadHost> {
        let recent = self.last_rejections.iter();
        recent
            .filter(|(_, at)| is_within(DISPLAY_MILLIS, **at, now))
            .map(|(host, at)| AheadHost { host: host.to_string(), at: at.div_euclid(1000) })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_342_600_000;

    /// The hosts that the warning names, if a message of a host causes one.
    fn warned_hosts(ahead: &mut AheadHosts, host: &str, minutes: i64) -> Option<String> {
        let host = HostName::new(host).unwrap();
        let warning = ahead.record(&host, NOW + minutes * 60_000)?;
        let hosts = warning.split_once("messages of ")?.1.split(", which").next()?;
        Some(hosts.to_owned())
    }

    #[test]
    fn two_hosts_ahead_within_ten_minutes_are_one_warning() {
        let mut ahead = AheadHosts::default();
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
            let hosts = warned_hosts(&mut ahead, host, minutes);
            assert_eq!(hosts.as_deref(), expected, "{host} {minutes}");
        }
        let warnings = (0..200).filter_map(|n| warned_hosts(&mut ahead, &format!("x{n}"), 1_000));
        assert_eq!(warnings.count(), 1, "one warning is enough");
        assert_eq!(warned_hosts(&mut ahead, "y", 1_020), None, "alone within ten minutes");
        assert_eq!(warned_hosts(&mut ahead, "x1", 1_020).as_deref(), Some("x1, y"));
        for n in 0..6 {
            let hosts = warned_hosts(&mut ahead, &format!("z{n}"), 1_025);
            assert_eq!(hosts, None, "within ten minutes after the last");
        }
        let hosts = warned_hosts(&mut ahead, "z6", 1_030);
        assert_eq!(hosts.as_deref(), Some("z0, z1, z2, z3, z4 and 2 more"));
    }

    #[test]
    fn status_has_hosts_for_twenty_minutes_and_a_hundred_of_them() {
        let mut ahead = AheadHosts::default();
        for n in 0..200 {
            ahead.record(&HostName::new(&format!("web{n:03}")).unwrap(), NOW);
        }
        let recent = ahead.recent(NOW + DISPLAY_MILLIS - 1);
        assert_eq!(
            (recent.len(), recent[0].host.as_str(), recent[0].at),
            (100, "web000", NOW / 1000)
        );
        assert!(ahead.recent(NOW + DISPLAY_MILLIS).is_empty());
        let host = HostName::new("web000").unwrap();
        let warning = ahead.record(&host, NOW + WARNING_WINDOW_MILLIS);
        assert_eq!(warning, None, "the only host within ten minutes");
    }
}
