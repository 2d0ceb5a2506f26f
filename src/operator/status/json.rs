//! Renders the status as one JSON object. Its field names are a contract, described in the help.

use serde_json::{Value, json};

use super::FleetStatus;
use crate::abuseipdb::queue_status::{CallQuota, QueueStatus};
use crate::broker::fleet_view::HostView;
use crate::model::{HostName, Jail};
use crate::operator::local_host::LocalService;

impl FleetStatus {
    pub(super) fn json(&self) -> Value {
        let LocalService { pid, since, events, reports, disks_full } = &self.service;
        json!({
            "host": self.me.as_str(),
            "version": env!("CARGO_PKG_VERSION"),
            "time": self.clock.now,
            "service": { "running": pid.is_some(), "pid": pid, "since": since },
            "broker": { "address": self.broker, "user": self.user, "error": self.broker_error },
            "fail2ban": {
                "jails": self.jails.iter().flatten().map(Jail::as_str).collect::<Vec<_>>(),
                "error": self.jails.as_ref().err(),
            },
            "disks_full": disks_full.iter()
                .map(|disk| json!({ "path": disk.path.display().to_string(), "text": disk.text }))
                .collect::<Vec<_>>(),
            "pending": { "events": events, "reports": reports.waiting },
            "abuseipdb": quotas(reports),
            "reporter": {
                "oldest": reports.oldest,
                "last_call": reports.last_call.as_ref()
                    .map(|call| json!({ "at": call.at, "error": call.error })),
            },
            "hosts": self.view.hosts().iter().map(host_json).collect::<Vec<_>>(),
            "jails": self.by_jail().iter().map(|(jail, bans)| (jail.to_string(), json!(bans)))
                .collect::<serde_json::Map<_, _>>(),
            "bans": self.banned.len(),
            "incomplete": self.view.missing(),
        })
    }
}

fn host_json((host, host_view): (&HostName, &HostView)) -> Value {
    let presence = host_view.presence();
    json!({
        "host": host.as_str(),
        "state": presence.map_or("unknown", |presence| presence.state.as_str()),
        "since": presence.map(|presence| presence.since).filter(|since| *since > 0),
        "version": presence.map(|presence| presence.version.as_str()),
        "jails": host_view.jails().iter().map(Jail::as_str).collect::<Vec<_>>(),
        "bans": host_view.bans(),
        "imported_bans": presence.map(|presence| presence.imported),
        "snapshot": host_view.stamp().map(|stamp| stamp / 1000),
        "parts": host_view.count(),
        "incomplete": host_view.missing_shards(),
        "rejected": presence.map(|presence| &presence.rejected),
    })
}

/// The calls left today, by kind.
fn quotas(reports: &QueueStatus) -> Value {
    let quotas = reports.calls.iter().map(|CallQuota { name, quota, seen, blocked }| {
        let quota = json!({
            "limit": quota.limit, "remaining": quota.remaining, "seen": seen,
            "blocked": (*blocked > 0).then_some(blocked),
        });
        (name.clone(), quota)
    });
    Value::Object(quotas.collect())
}
