//! The status as lines and tables for people.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::FleetStatus;
use crate::abuseipdb::glance::{CallQuota, LastCall};
use crate::operator::local::LocalService;
use crate::operator::out::{Out, Style};
use crate::operator::view::HostView;
use crate::text::{count, format_duration};
use crate::wire::{HostName, HostState, Jail};

impl FleetStatus {
    pub(super) fn text(&self, out: Out) -> String {
        let mut text = String::new();
        let mut line = |name: &str, style, value: &str| {
            let _ = writeln!(
                text,
                "{} {}",
                out.paint(Style::Head, &format!("{name:10}")),
                out.paint(style, value)
            );
        };
        line(
            "this host",
            Style::Plain,
            &format!("{}, f2bmqtt {}", self.me, env!("CARGO_PKG_VERSION")),
        );
        let (style, value) = self.service();
        line("service", style, &value);
        let (style, value) = self.broker();
        line("broker", style, &value);
        match &self.jails {
            Ok(jails) => line("fail2ban", Style::Good, &format!("running, jails: {}", list(jails))),
            Err(why) => line("fail2ban", Style::Bad, why),
        }
        let LocalService { events, reports, disks_full, .. } = &self.service;
        for disk in disks_full {
            line("disk", Style::Bad, &disk.text);
        }
        let age = reports
            .oldest
            .map(|at| format!(" (oldest: {} ago)", format_duration(self.clock.now - at)));
        let waiting = count(reports.waiting, "report");
        let value = format!("{}, {waiting}{}", count(*events, "event"), age.unwrap_or_default());
        line("pending", Style::Plain, &value);
        for value in self.quotas() {
            line("AbuseIPDB", Style::Plain, &value);
        }
        if let Some(LastCall { at, error: Some(why) }) = &reports.last_call {
            let value =
                format!("last call failed {} ago: {why}", format_duration(self.clock.now - at));
            line("AbuseIPDB", Style::Bad, &value);
        }
        if self.broker_error.is_none() {
            text.push_str(&self.fleet(out));
        }
        text
    }

    fn service(&self) -> (Style, String) {
        let since = self.service.since.map(|since| format!(", since {}", self.clock.local(since)));
        match self.service.pid {
            Some(pid) => (Style::Good, format!("running{}, PID {pid}", since.unwrap_or_default())),
            None => (Style::Bad, "not running. Start it: systemctl start f2bmqttsub".to_owned()),
        }
    }

    fn broker(&self) -> (Style, String) {
        let user = self.user.as_ref().map(|user| format!(" as {user}")).unwrap_or_default();
        match &self.broker_error {
            None => (Style::Good, format!("connected to {}{user}", self.broker)),
            Some(why) => (Style::Bad, why.clone()),
        }
    }

    /// The calls that AbuseIPDB still accepts today.
    fn quotas(&self) -> Vec<String> {
        let quota = |call: &CallQuota| {
            let (kind, now) = (kind(&call.name), self.clock.now);
            let blocked = (call.blocked > now)
                .then(|| format!("no {kind} until {}", self.clock.local(call.blocked)));
            let left = call.quota.remaining.map(|left| match (call.quota.limit, call.seen) {
                (Some(limit), Some(seen)) => {
                    format!(
                        "{left} of {limit} {kind} left today, as of {} ago",
                        format_duration(now - seen)
                    )
                }
                _ => format!("{left} {kind} left today"),
            });
            let value: Vec<String> = left.into_iter().chain(blocked).collect();
            (!value.is_empty()).then(|| value.join("; "))
        };
        self.service.reports.calls.iter().filter_map(quota).collect()
    }

    fn fleet(&self, out: Out) -> String {
        let mut text = String::new();
        let hosts = self.view.hosts();
        let online = hosts.values().filter(|member| member.is_online()).count();
        let (hosts, bans) = (count(hosts.len(), "host"), count(self.banned.len(), "ban"));
        let _ = writeln!(text, "\n{hosts}, {online} online; {bans} in the fleet\n");
        let rows = self.view.hosts().iter().map(|host| self.host(host));
        let heads =
            ["HOST", "STATE", "SINCE", "VERSION", "DETECTED", "IMPORTED", "SNAPSHOT", "JAILS"];
        out.table(&mut text, &heads, rows);
        let jails = self.by_jail();
        if !jails.is_empty() {
            let row = |(jail, bans): (&Jail, &usize)| {
                vec![(Style::Plain, jail.to_string()), (Style::Plain, bans.to_string())]
            };
            text.push('\n');
            out.table(&mut text, &["JAIL", "BANS"], jails.iter().map(row));
        }
        let rejected: Vec<_> = self.rejected();
        if !rejected.is_empty() {
            let row = |(host, reason, count): &(&HostName, &str, u64)| {
                vec![
                    (Style::Plain, host.to_string()),
                    (Style::Plain, (*reason).to_owned()),
                    (Style::Plain, count.to_string()),
                ]
            };
            text.push('\n');
            out.table(&mut text, &["REJECTED BY", "REASON", "MESSAGES"], rejected.iter().map(row));
        }
        text
    }

    fn host(&self, (host, member): (&HostName, &HostView)) -> Vec<(Style, String)> {
        let presence = member.presence();
        let (style, state) = match presence.map(|presence| presence.state) {
            Some(HostState::Online) => (Style::Good, "online"),
            Some(HostState::Offline) => (Style::Bad, "offline"),
            None => (Style::Dim, "unknown"),
        };
        let since = presence.map_or(0, |presence| presence.since);
        let since = if since > 0 { self.clock.local(since) } else { "-".to_owned() };
        let snapshot = match (self.age(member), member.missing_shards()) {
            (None, _) => "none".to_owned(),
            (Some(age), 0) => format!("{} ago", format_duration(age)),
            (Some(age), missing) => {
                format!(
                    "{} ago, {missing} of {} parts missing",
                    format_duration(age),
                    member.count()
                )
            }
        };
        let text = |text: &str| (Style::Plain, text.to_owned());
        let version = presence.map_or("", |presence| presence.version.as_str());
        vec![
            text(host.as_str()),
            (style, state.to_owned()),
            text(&since),
            text(if version.is_empty() { "-" } else { version }),
            text(&member.bans().to_string()),
            text(&presence.map_or(0, |presence| presence.imported).to_string()),
            text(&snapshot),
            text(&list(member.jails())),
        ]
    }

    /// The age of a host's snapshot in seconds, provided that its clock agrees with this one.
    fn age(&self, member: &HostView) -> Option<i64> {
        member.stamp().map(|stamp| (self.clock.now - stamp / 1000).max(0))
    }

    fn rejected(&self) -> Vec<(&HostName, &str, u64)> {
        let hosts = self.view.hosts().iter();
        let presences = hosts.filter_map(|(host, member)| Some((host, member.presence()?)));
        let counts = presences.flat_map(|(host, presence)| {
            presence.rejected.iter().map(move |(reason, count)| (host, reason.as_str(), *count))
        });
        counts.collect()
    }
}

/// The plural noun of a kind of call.
fn kind(name: &str) -> &str {
    match name {
        "report" => "reports",
        "check" => "checks",
        "bulk-report" => "bulk reports",
        _ => "calls",
    }
}

fn list(jails: &BTreeSet<Jail>) -> String {
    if jails.is_empty() {
        return "-".to_owned();
    }
    jails.iter().map(Jail::as_str).collect::<Vec<_>>().join(", ")
}
