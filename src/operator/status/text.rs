//! Renders the status as lines and tables for people.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};

use super::FleetStatus;
use crate::abuseipdb::queue_status::{CallQuota, LastCall};
use crate::broker::fleet_view::HostView;
use crate::model::text::{count, format_duration};
use crate::model::{HostName, Jail};
use crate::operator::local_host::LocalService;
use crate::operator::render::{Cell, Out, Row, Style};
use crate::wire::HostState;

impl FleetStatus {
    pub(super) fn text(&self, out: Out) -> String {
        let mut text = String::new();
        for (name, (style, value)) in self.local_lines() {
            let _ = writeln!(
                text,
                "{} {}",
                out.paint(Style::Head, &format!("{name:10}")),
                out.paint(style, &value)
            );
        }
        if self.broker_error.is_none() {
            text.push_str(&self.fleet(out));
        }
        text
    }

    /// The lines about this host: a name, and its value.
    fn local_lines(&self) -> Vec<(&'static str, Cell)> {
        let host = format!("{}, f2bmqtt {}", self.me, env!("CARGO_PKG_VERSION"));
        let fail2ban = match &self.jails {
            Ok(jails) => (Style::Good, format!("running, jails: {}", list(jails))),
            Err(why) => (Style::Bad, why.clone()),
        };
        let mut lines = vec![
            ("this host", plain(&host)),
            ("service", self.service()),
            ("broker", self.broker()),
            ("fail2ban", fail2ban),
        ];
        let LocalService { reports, disks_full, .. } = &self.service;
        lines.extend(disks_full.iter().map(|disk| ("disk", (Style::Bad, disk.text.clone()))));
        lines.push(("pending", plain(&self.pending())));
        lines.extend(self.quotas().iter().map(|quota| ("AbuseIPDB", plain(quota))));
        if let Some(LastCall { at, error: Some(why) }) = &reports.last_call {
            let ago = format_duration(self.clock.now - at);
            lines.push(("AbuseIPDB", (Style::Bad, format!("last call failed {ago} ago: {why}"))));
        }
        lines
    }

    /// The unpublished events and the unsent reports.
    fn pending(&self) -> String {
        let LocalService { events, reports, .. } = &self.service;
        let (events, waiting) = (count(*events, "event"), count(reports.waiting, "report"));
        match reports.oldest {
            Some(at) => {
                let age = format_duration(self.clock.now - at);
                format!("{events}, {waiting} (oldest: {age} ago)")
            }
            None => format!("{events}, {waiting}"),
        }
    }

    fn service(&self) -> Cell {
        let since = self.service.since.map(|since| format!(", since {}", self.clock.local(since)));
        match self.service.pid {
            Some(pid) => (Style::Good, format!("running{}, PID {pid}", since.unwrap_or_default())),
            None => (Style::Bad, "not running. Start it: systemctl start f2bmqttsub".to_owned()),
        }
    }

    fn broker(&self) -> Cell {
        let user = self.user.as_ref().map(|user| format!(" as {user}")).unwrap_or_default();
        match &self.broker_error {
            None => (Style::Good, format!("connected to {}{user}", self.broker)),
            Some(why) => (Style::Bad, why.clone()),
        }
    }

    /// The calls that AbuseIPDB still accepts today.
    fn quotas(&self) -> Vec<String> {
        self.service.reports.calls.iter().filter_map(|call| self.quota(call)).collect()
    }

    fn quota(&self, call: &CallQuota) -> Option<String> {
        let (kind, now) = (kind(&call.name), self.clock.now);
        let blocked = (call.blocked > now)
            .then(|| format!("no {kind} until {}", self.clock.local(call.blocked)));
        let left = call.quota.remaining.map(|left| match (call.quota.limit, call.seen) {
            (Some(limit), Some(seen)) => {
                let age = format_duration(now - seen);
                format!("{left} of {limit} {kind} left today, as of {age} ago")
            }
            _ => format!("{left} {kind} left today"),
        });
        let value: Vec<String> = left.into_iter().chain(blocked).collect();
        (!value.is_empty()).then(|| value.join("; "))
    }

    fn fleet(&self, out: Out) -> String {
        let mut text = String::new();
        let hosts = self.view.hosts();
        let online = hosts.values().filter(|host_view| host_view.is_online()).count();
        let (hosts, bans) = (count(hosts.len(), "host"), count(self.banned.len(), "ban"));
        let _ = writeln!(text, "\n{hosts}, {online} online; {bans} in the fleet\n");
        let rows = self.view.hosts().iter().map(|host| self.host(host));
        let heads =
            ["HOST", "STATE", "SINCE", "VERSION", "DETECTED", "IMPORTED", "SNAPSHOT", "JAILS"];
        out.table(&mut text, &heads, rows);
        let jails = self.by_jail();
        if !jails.is_empty() {
            let rows = jails.iter().map(|(jail, bans)| plain_row(&[jail, bans]));
            text.push('\n');
            out.table(&mut text, &["JAIL", "BANS"], rows);
        }
        let rejected = self.rejected();
        if !rejected.is_empty() {
            let rows =
                rejected.iter().map(|(host, reason, count)| plain_row(&[host, reason, count]));
            text.push('\n');
            out.table(&mut text, &["REJECTED BY", "REASON", "MESSAGES"], rows);
        }
        text
    }

    fn host(&self, (host, host_view): (&HostName, &HostView)) -> Row {
        let presence = host_view.presence();
        let (style, state) = match presence.map(|presence| presence.state) {
            Some(HostState::Online) => (Style::Good, "online"),
            Some(HostState::Offline) => (Style::Bad, "offline"),
            None => (Style::Dim, "unknown"),
        };
        let since = presence.map_or(0, |presence| presence.since);
        let since = if since > 0 { self.clock.local(since) } else { "-".to_owned() };
        let snapshot = match (self.age(host_view), host_view.missing_shards()) {
            (None, _) => "none".to_owned(),
            (Some(age), 0) => format!("{} ago", format_duration(age)),
            (Some(age), missing) => {
                let (age, count) = (format_duration(age), host_view.count());
                format!("{age} ago, {missing} of {count} parts missing")
            }
        };
        let version = presence.map_or("", |presence| presence.version.as_str());
        vec![
            plain(host.as_str()),
            (style, state.to_owned()),
            plain(&since),
            plain(if version.is_empty() { "-" } else { version }),
            plain(&host_view.bans().to_string()),
            plain(&presence.map_or(0, |presence| presence.imported).to_string()),
            plain(&snapshot),
            plain(&list(host_view.jails())),
        ]
    }

    /// The age of a host's snapshot in seconds, provided that its clock agrees with this one.
    fn age(&self, host_view: &HostView) -> Option<i64> {
        host_view.stamp().map(|stamp| (self.clock.now - stamp / 1000).max(0))
    }

    fn rejected(&self) -> Vec<(&HostName, &str, u64)> {
        let hosts = self.view.hosts().iter();
        let presences = hosts.filter_map(|(host, host_view)| Some((host, host_view.presence()?)));
        let counts = presences.flat_map(|(host, presence)| {
            presence.rejected.iter().map(move |(reason, count)| (host, reason.as_str(), *count))
        });
        counts.collect()
    }
}

fn plain(text: &str) -> Cell {
    (Style::Plain, text.to_owned())
}

fn plain_row(cells: &[&dyn Display]) -> Row {
    cells.iter().map(|cell| plain(&cell.to_string())).collect()
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
