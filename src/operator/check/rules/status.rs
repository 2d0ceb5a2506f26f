//! Checks of the daemon's status file: its link to the broker, full tables, and hosts with stamps in the future. Pure.

use std::path::Path;

use crate::daemon::status::{AheadHost, DaemonStatus, FullTable, LinkState, LinkStatus};
use crate::model::text::{format_duration, list};
use crate::operator::check::finding::Finding;

/// The most hosts that a finding names.
const MAX_NAMES: usize = 8;

/// The reconnects within an hour from which a link is a warning, and from which it is a fault: two clients with one ID
/// cause hundreds.
const RECONNECTS_WARNING_LIMIT: usize = 6;
const RECONNECTS_FAULT_LIMIT: usize = 60;

/// How to keep strangers from filling tables.
const STRANGERS_HELP: &str = "to keep strangers out: set MQTT_SIGNING_KEY in mqtt.env on every server, and use the broker's access \
                        rules (/usr/share/doc/f2bmqtt/examples/mosquitto/fleet.acl)";

/// The findings about the status file of a running daemon at `now`, in seconds since 1970.
pub(in crate::operator::check) fn findings(
    status: &Result<DaemonStatus, String>,
    path: &Path,
    now: i64,
) -> Vec<Finding> {
    let status = match status {
        Ok(status) => status,
        Err(why) => {
            let text = format!("cannot read the daemon's state in {}: {why}", path.display());
            return vec![
                Finding::warning("tables", text)
                    .next("systemctl restart f2bmqttsub\nthen: journalctl -u f2bmqttsub -n 20"),
            ];
        }
    };
    let mut found = vec![link(&status.link, now)];
    let tables = found.len();
    found.extend(status.tables_full.iter().map(|full| table(full, now)));
    if found.len() == tables {
        found.push(Finding::ok("tables", "all tables of the daemon are below their limits"));
    }
    found.extend(ahead(&status.ahead, status.peers));
    found
}

/// The finding about the daemon's own link, which the probe of `check` does not use.
fn link(link: &LinkStatus, now: i64) -> Finding {
    const JOURNAL_COMMAND: &str = "journalctl -u f2bmqttsub -n 20";
    let LinkStatus { state, broker, error, since, reconnects } = link;
    let error = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    if *state == LinkState::Down {
        let since = format_duration(now.saturating_sub(*since));
        let text = format!("the daemon has had no connection to {broker} for {since}{error}");
        return Finding::fault("link", text).next(JOURNAL_COMMAND);
    }
    if *reconnects < RECONNECTS_WARNING_LIMIT {
        return Finding::ok("link", format!("the daemon is connected to {broker}"));
    }
    let make = if *reconnects < RECONNECTS_FAULT_LIMIT { Finding::warning } else { Finding::fault };
    let text = format!(
        "the daemon had to reconnect to {broker} {reconnects} times within the last hour{error}"
    );
    make("link", text).next(format!(
        "{JOURNAL_COMMAND}\n\
         if another client has this host's client ID (mosquitto: use_username_as_clientid): give each host a separate login"
    ))
}

fn table(full: &FullTable, now: i64) -> Finding {
    let FullTable { table, limit, peer, at } = full;
    let ago = format_duration(now.saturating_sub(*at));
    let forget = "f2bmqtt forget HOST, for each host that does not exist";
    // What is full, what the peer with the most entries did, and the fix.
    let (what, share, next) = match table.as_str() {
        "peers" => (
            format!("the daemon's table of other hosts is full: limit of {limit} hosts"),
            "has the most",
            format!("f2bmqtt status lists the hosts\n{forget}\n{STRANGERS_HELP}"),
        ),
        "claims" => (
            format!("the daemon's table of other hosts' bans is full: limit of {limit} bans"),
            "has the most",
            format!(
                "f2bmqtt list --host {} lists them\n{forget}\n{STRANGERS_HELP}",
                peer.as_deref().unwrap_or("HOST")
            ),
        ),
        "tombstones" => (
            format!("the daemon's table of fleet unbans is full: limit of {limit} fleet unbans"),
            "made the most",
            "nothing to do: the daemon drops a fleet unban after an hour, unless a host still bans the address"
                .to_owned(),
        ),
        "echoes" => (
            format!(
                "the daemon's table of detections that only the broker knows is full: limit of {limit} \
                 detections"
            ),
            "",
            "nothing to do: the daemon drops such a detection within a minute, unless fail2ban bans the address".to_owned(),
        ),
        "messages" => (
            format!("a host sends too many messages: limit of {limit} a minute"),
            "sends the most",
            format!(
                "nothing to do: the daemon ignores further messages of that minute, and the host's snapshot \
                 replaces them\nif this continues: check that host\n{STRANGERS_HELP}"
            ),
        ),
        other => (
            format!("the daemon's table {other} is full: limit of {limit}"),
            "has the most",
            STRANGERS_HELP.to_owned(),
        ),
    };
    let most = peer.as_ref().map(|peer| format!("; {peer} {share}")).unwrap_or_default();
    Finding::warning("tables", format!("{what} reached {ago} ago{most}")).about(table).next(next)
}

/// The finding about clocks that differ by more than a day. The daemon knows only the difference: the more hosts are
/// ahead, the likelier this host is behind.
fn ahead(hosts: &[AheadHost], peers: usize) -> Option<Finding> {
    const CLOCK_FIX: &str = "check the clocks of this host and of the other hosts: timedatectl (systemd-timesyncd or chrony keeps a clock right)";
    let first = hosts.first()?;
    let finding = if hosts.len() >= 2 || hosts.len() >= peers {
        let names: Vec<&str> =
            hosts.iter().take(MAX_NAMES).map(|host| host.host.as_str()).collect();
        let more = if hosts.len() > MAX_NAMES { ", …" } else { "" };
        let affected = match hosts.len() {
            1 => "the only other host".to_owned(),
            all if all >= peers => format!("all {all} other hosts"),
            some => format!("{some} of {peers} other hosts"),
        };
        let text = format!(
            "this host's clock is probably more than a day behind: the daemon rejects the messages of \
             {affected} ({}{more}), which are stamped more than a day ahead",
            list(&names)
        );
        Finding::fault("clock_ahead", text)
    } else {
        let text = format!(
            "the clock of {} is more than a day ahead of this host's: the daemon rejects its messages",
            first.host
        );
        Finding::warning("clock_ahead", text)
    };
    Some(finding.next(CLOCK_FIX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::check::finding::Status;

    const NOW: i64 = 1_795_342_600;

    /// All findings except that about the link.
    fn shown(status: &Result<DaemonStatus, String>) -> Vec<Finding> {
        let mut found = findings(status, Path::new("/run/x.json"), NOW);
        found.retain(|finding| finding.id != "link");
        found
    }

    #[test]
    fn link_that_is_down_or_reconnects_often_is_found() {
        use Status::{Fault, Warning};
        let up = LinkStatus {
            state: LinkState::Up,
            broker: "hub:1883".to_owned(),
            ..LinkStatus::default()
        };
        let error = Some("it fell silent".to_owned());
        let table = [
            (up.clone(), Status::Ok, "the daemon is connected to hub:1883"),
            (
                LinkStatus { reconnects: 5, error: error.clone(), ..up.clone() },
                Status::Ok,
                "the daemon is connected to hub:1883",
            ),
            (
                LinkStatus { reconnects: 6, error: error.clone(), ..up.clone() },
                Warning,
                "the daemon had to reconnect to hub:1883 6 times within the last hour: it fell silent",
            ),
            (
                LinkStatus { reconnects: 60, ..up.clone() },
                Fault,
                "the daemon had to reconnect to hub:1883 60 times within the last hour",
            ),
            (
                LinkStatus { state: LinkState::Down, error, since: NOW - 183, ..up },
                Fault,
                "the daemon has had no connection to hub:1883 for 3m 3s: it fell silent",
            ),
        ];
        for (link, state, text) in table {
            let status = DaemonStatus { link, ..DaemonStatus::default() };
            let found = findings(&Ok(status), Path::new("/run/x.json"), NOW);
            assert_eq!(
                (found[0].id, found[0].state, found[0].text.as_str()),
                ("link", state, text)
            );
        }
    }

    fn full(table: &str, limit: usize, peer: Option<&str>) -> FullTable {
        FullTable { table: table.to_owned(), limit, peer: peer.map(str::to_owned), at: NOW - 183 }
    }

    #[test]
    fn each_full_table_has_its_limit_its_largest_peer_and_what_to_do() {
        type FullTableCase = (FullTable, &'static str, &'static str);
        let table: [FullTableCase; 7] = [
            (
                full("peers", 1_000, None),
                "the daemon's table of other hosts is full: limit of 1000 hosts reached 3m 3s ago",
                "f2bmqtt forget HOST",
            ),
            (
                full("claims", 100_000, Some("web2")),
                "the daemon's table of other hosts' bans is full: limit of 100000 bans reached 3m 3s ago; \
                 web2 has the most",
                "f2bmqtt list --host web2",
            ),
            (
                full("claims", 50_000, None),
                "the daemon's table of other hosts' bans is full: limit of 50000 bans reached 3m 3s ago",
                "MQTT_SIGNING_KEY",
            ),
            (
                full("tombstones", 5_000, Some("web2")),
                "the daemon's table of fleet unbans is full: limit of 5000 fleet unbans reached 3m 3s \
                 ago; web2 made the most",
                "nothing to do: the daemon drops a fleet unban after an hour",
            ),
            (
                full("echoes", 1_000, None),
                "the daemon's table of detections that only the broker knows is full: limit of 1000 \
                 detections reached 3m 3s ago",
                "nothing to do: ",
            ),
            (
                full("messages", 20_000, Some("web2")),
                "a host sends too many messages: limit of 20000 a minute reached 3m 3s ago; web2 sends \
                 the most",
                "nothing to do: ",
            ),
            (
                full("later", 7, None),
                "the daemon's table later is full: limit of 7 reached 3m 3s ago",
                "MQTT_SIGNING_KEY",
            ),
        ];
        for (full, text, next) in table {
            let about = Some(full.table.clone());
            let status = DaemonStatus { tables_full: vec![full], ..DaemonStatus::default() };
            let found = shown(&Ok(status));
            assert_eq!((found.len(), found[0].state), (1, Status::Warning), "{found:?}");
            assert_eq!((found[0].text.as_str(), &found[0].about), (text, &about));
            assert!(found[0].next.iter().any(|line| line.contains(next)), "{found:?}");
        }
    }

    #[test]
    fn no_full_tables_is_ok_and_a_missing_file_a_warning() {
        let ok = Finding::ok("tables", "all tables of the daemon are below their limits");
        assert_eq!(shown(&Ok(DaemonStatus::default())), [ok]);
        let found = shown(&Err("No such file".to_owned()));
        assert_eq!(found[0].state, Status::Warning);
        assert!(found[0].text.ends_with("in /run/x.json: No such file"), "{found:?}");
    }

    #[test]
    fn hosts_that_are_ahead_are_this_hosts_fault_if_they_are_several_or_all() {
        use Status::{Fault, Warning};
        let table = [
            (1, 1, Fault, "the messages of the only other host (web0), which"),
            (1, 3, Warning, "the clock of web0 is more than a day ahead of this host's"),
            (2, 3, Fault, "the messages of 2 of 3 other hosts (web0 and web1), which"),
            (3, 3, Fault, "the messages of all 3 other hosts (web0, web1 and web2), which"),
            (9, 30, Fault, "web6 and web7, …), which"),
        ];
        for (count, peers, state, text) in table {
            let ahead =
                (0..count).map(|n| AheadHost { host: format!("web{n}"), at: NOW }).collect();
            let status = DaemonStatus { peers, ahead, ..DaemonStatus::default() };
            let found = shown(&Ok(status));
            let clock: Vec<_> =
                found.iter().filter(|finding| finding.id == "clock_ahead").collect();
            assert_eq!((clock.len(), clock[0].state), (1, state), "{count} of {peers}");
            assert!(clock[0].text.contains(text), "{text}: {}", clock[0].text);
            assert!(clock[0].next[0].contains("timedatectl"));
        }
    }
}
