//! Explains why an address is banned: the hosts that detected it, the hosts that import the ban, and the state here.

use std::fmt::Write as _;

use crate::broker::fleet_view::{BanSummary, Expiry, FleetView, VoidedBan};
use crate::model::text::sanitize;
use crate::model::{Address, HostName, Jail};
use crate::operator::local_host::LocalDecision;
use crate::operator::time_format::Clock;

/// The data of the explanation.
pub(super) struct Explanation<'a> {
    pub(super) me: HostName,
    pub(super) address: Address,
    pub(super) banned: Vec<&'a BanSummary>,
    pub(super) view: FleetView,
    /// The decision of this host, or why it is unknown.
    pub(super) decision: Result<LocalDecision, String>,
}

impl Explanation<'_> {
    pub(super) fn text(&self, clock: &Clock) -> String {
        let mut lines = Vec::new();
        let (address, me) = (self.address, &self.me);
        if self.banned.is_empty() {
            lines.push(format!("No host's snapshot lists {address}."));
        }
        for banned in &self.banned {
            self.describe_ban(banned, clock, &mut lines);
        }
        for VoidedBan { jail, host, id, .. } in self.view.voids(address) {
            lines.push(format!(
                "{host} still lists {address} in jail `{jail}`, but the fleet unban {id} released that ban: \
                 other hosts ignore the ban, and {host} removes it when {host} reconnects."
            ));
        }
        match &self.decision {
            Err(why) => {
                lines.push(format!("The state on this host ({me}) is unknown: {why}."));
            }
            Ok(decision) => {
                for jail in &decision.banned {
                    if self.banned.iter().all(|banned| banned.jail != *jail) {
                        lines.push(self.describe_unlisted(decision, jail));
                    }
                }
                if self.banned.is_empty() && decision.banned.is_empty() {
                    lines.push(format!("This host ({me}): not banned."));
                }
            }
        }
        if !self.banned.is_empty() {
            lines.push(format!("To unban the address everywhere: f2bmqtt unban {address}"));
        }
        let mut text = String::new();
        for line in lines {
            let _ = writeln!(text, "{}", sanitize(&line));
        }
        text
    }

    /// Why this host bans the address in a jail in which no snapshot lists the address.
    fn describe_unlisted(&self, decision: &LocalDecision, jail: &Jail) -> String {
        let Self { me, address, .. } = self;
        let origins = decision.imported.iter().filter(|(imported, _)| imported == jail);
        let origins: Vec<HostName> = origins.map(|(_, host)| host.clone()).collect();
        if !origins.is_empty() {
            let hosts = names(&origins);
            return format!(
                "This host ({me}): banned in jail `{jail}`, imported from {hosts}. No snapshot lists the ban, because hosts \
                 that run the scripts publish no snapshot. To unban the address everywhere: f2bmqtt unban {address}"
            );
        }
        let why = if decision.excluded.contains(jail) {
            format!("the settings exclude jail `{jail}`")
        } else {
            "made by hand, or detected within the last seconds".to_owned()
        };
        format!(
            "This host ({me}): banned in jail `{jail}` by a local ban ({why}). To unban the address here: fail2ban-client \
             set {jail} unbanip {address}"
        )
    }

    /// The ban of one jail: origins, times, and the state on the other hosts.
    fn describe_ban(&self, banned: &BanSummary, clock: &Clock, lines: &mut Vec<String>) {
        let BanSummary { address, jail, origin, since, also, .. } = banned;
        let (until, left) = clock.until(banned.until);
        let until = match (banned.until, left.as_str()) {
            (Expiry::Never, _) => "permanent".to_owned(),
            (Expiry::Unknown, _) => "duration unknown".to_owned(),
            (Expiry::Time(_), "expired") => format!("until {until}, expired"),
            (Expiry::Time(_), left) => format!("until {until}, {left} left"),
        };
        lines.push(format!("{address} is banned in jail `{jail}`, detected by {origin}."));
        lines.push(format!("  Since {}, {until}.", clock.local(*since)));
        if !also.is_empty() {
            lines.push(format!("  Also detected by {}.", names(also)));
        }
        let (online, offline) = (self.importers(banned, true), self.importers(banned, false));
        if !online.is_empty() {
            lines.push(format!(
                "  Other online hosts with this jail: {}. They ban the address, unless their settings exempt it.",
                names(&online)
            ));
        }
        if !offline.is_empty() {
            lines.push(format!("  Offline hosts with this jail: {}.", names(&offline)));
        }
        if let Ok(decision) = &self.decision {
            lines.push(format!(
                "  This host ({}): {}.",
                self.me,
                self.describe_decision(decision, banned)
            ));
        }
    }

    /// The other hosts that are online, or offline, that did not detect the ban, and that have its jail.
    fn importers(&self, banned: &BanSummary, online: bool) -> Vec<HostName> {
        let hosts = self.view.hosts().iter().filter(|(host, host_view)| {
            **host != self.me
                && !banned.is_detected_by(host)
                && host_view.is_online() == online
                && host_view.jails().contains(&banned.jail)
        });
        hosts.map(|(host, _)| host.clone()).collect()
    }

    fn describe_decision(&self, decision: &LocalDecision, banned: &BanSummary) -> String {
        let jail = &banned.jail;
        if decision.banned.contains(jail) {
            return if banned.is_detected_by(&self.me) {
                "banned, and detected here".to_owned()
            } else {
                "banned".to_owned()
            };
        }
        let lifted = decision.lifted.iter().filter(|(lifted, _)| lifted == jail);
        let lifted: Vec<_> = lifted.map(|(_, host)| host.clone()).collect();
        if !lifted.is_empty() {
            let hosts = names(&lifted);
            return format!("not banned (bans of {hosts} lifted by hand here)");
        }
        if !decision.jails.contains(jail) {
            return format!("not banned (no jail `{jail}`)");
        }
        if decision.excluded.contains(jail) {
            return format!("not banned (the settings exclude jail `{jail}`)");
        }
        if let Some(reason) = decision.exempt.get(jail) {
            return format!("not banned ({reason})");
        }
        "not banned at the moment".to_owned()
    }
}

fn names(hosts: &[HostName]) -> String {
    hosts.iter().map(HostName::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::ignorelist::IgnoreReason;

    const NOW: i64 = 1_795_342_600;

    fn jail(name: &str) -> Jail {
        Jail::new(name).unwrap()
    }

    /// A host with the jail `sshd`, which bans nothing.
    fn sshd() -> LocalDecision {
        LocalDecision { jails: [jail("sshd")].into(), ..LocalDecision::default() }
    }

    /// The explanation on web1 for an address that web2 and db1 detected, or no host.
    fn explain(decision: Result<LocalDecision, String>, detected: bool) -> String {
        let mut view = FleetView::default();
        for (host, state) in [("web1", "online"), ("web3", "online"), ("web4", "offline")] {
            let json = format!(r#"{{"v":1,"state":"{state}","jails":["sshd"]}}"#);
            view.apply_raw(&format!("host/{host}"), json.as_bytes());
        }
        for (host, start) in [("web2", NOW - 60), ("db1", NOW - 5)] {
            let bans = if detected {
                format!(r#"["sshd","192.0.2.1",{start},600]"#)
            } else {
                String::new()
            };
            let json = format!(
                r#"{{"v":1,"host":"{host}","stamp":5,"part":0,"parts":1,"bans":[{bans}]}}"#
            );
            view.apply_raw(&format!("state/{host}/0"), json.as_bytes());
        }
        let all = view.banned(NOW);
        let (me, address) = (HostName::new("web1").unwrap(), Address::new("192.0.2.1").unwrap());
        Explanation { me, address, banned: all.iter().collect(), view, decision }
            .text(&Clock::new(NOW).unwrap())
    }

    #[test]
    fn list_shows_a_time_for_each_number_that_the_wire_accepts() {
        let table = [
            ("0,600", None),
            ("0,-1", Some("Since unknown, permanent.")),
            ("1795342540,0", Some("duration unknown.")),
            ("7258118399,3155760000", Some("left.")),
            ("7258118400,600", None),
            ("9223372036854775807,9223372036854775807", None),
            ("-1,600", None),
            ("1795342540,9223372036854775807", None),
        ];
        for (numbers, expected) in table {
            let mut view = FleetView::default();
            let json = format!(
                r#"{{"v":1,"host":"web2","stamp":5,"part":0,"parts":1,"bans":[["sshd","192.0.2.1",{numbers}]]}}"#
            );
            view.apply_raw("state/web2/0", json.as_bytes());
            let all = view.banned(NOW);
            let (me, address) =
                (HostName::new("web1").unwrap(), Address::new("192.0.2.1").unwrap());
            let decision = Ok(LocalDecision::default());
            let text = Explanation { me, address, banned: all.iter().collect(), view, decision }
                .text(&Clock::new(NOW).unwrap());
            let since = text.lines().find(|line| line.starts_with("  Since "));
            match (since, expected) {
                (Some(line), Some(end)) => assert!(line.ends_with(end), "{numbers}: {line}"),
                (found, expected) => assert_eq!(found, expected, "{numbers}"),
            }
            assert!(!text.contains("until ,") && !text.contains("Since ,"), "{text}");
        }
    }

    #[test]
    fn explanation_names_detecting_hosts_and_the_state_here() {
        let held = LocalDecision { banned: [jail("sshd")].into(), ..sshd() };
        let text = explain(Ok(held.clone()), true);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "192.0.2.1 is banned in jail `sshd`, detected by web2.");
        assert!(lines[1].starts_with("  Since ") && lines[1].ends_with(", 9m 55s left."), "{text}");
        assert_eq!(
            lines[2..],
            [
                "  Also detected by db1.",
                "  Other online hosts with this jail: web3. They ban the address, unless their settings exempt it.",
                "  Offline hosts with this jail: web4.",
                "  This host (web1): banned.",
                "To unban the address everywhere: f2bmqtt unban 192.0.2.1",
            ]
        );
        let table = [
            (sshd(), "not banned at the moment."),
            (LocalDecision::default(), "not banned (no jail `sshd`)."),
            (
                LocalDecision { exempt: [(jail("sshd"), IgnoreReason::Jail)].into(), ..sshd() },
                "not banned (the address is in ignoreip).",
            ),
            (
                LocalDecision { excluded: [jail("sshd")].into(), ..sshd() },
                "not banned (the settings exclude jail `sshd`).",
            ),
            (
                LocalDecision {
                    lifted: [(jail("sshd"), HostName::new("web2").unwrap())].into(),
                    ..sshd()
                },
                "not banned (bans of web2 lifted by hand here).",
            ),
        ];
        for (decision, what) in table {
            let text = explain(Ok(decision), true);
            assert!(text.contains(&format!("  This host (web1): {what}\n")), "{what}: {text}");
        }
        let text = explain(Err("fail2ban is busy".to_owned()), true);
        assert!(text.contains("The state on this host (web1) is unknown: fail2ban is busy.\n"));
        let expected = "No host's snapshot lists 192.0.2.1.\nThis host (web1): not banned.\n";
        assert_eq!(explain(Ok(sshd()), false), expected);
        let script = [(jail("sshd"), HostName::new("old").unwrap())].into();
        let table = [
            (
                held.clone(),
                " by a local ban (made by hand, or detected within the last seconds). To unban the address here: fail2ban-client set",
            ),
            (
                LocalDecision { imported: script, ..held.clone() },
                ", imported from old. No snapshot lists the ban, because hosts that run the scripts",
            ),
            (
                LocalDecision { excluded: [jail("sshd")].into(), ..held },
                " by a local ban (the settings exclude jail `sshd`).",
            ),
        ];
        for (decision, what) in table {
            let text = explain(Ok(decision), false);
            let start =
                "No host's snapshot lists 192.0.2.1.\nThis host (web1): banned in jail `sshd`";
            assert!(text.starts_with(&format!("{start}{what}")), "{what}: {text}");
        }
    }
}
