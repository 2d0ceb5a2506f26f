//! Writes metrics for Prometheus to a file that its node exporter reads (`MQTT_METRICS=on`).
//!
//! The format is the text exposition format 0.0.4, with names and base units by Prometheus' rules
//! (<https://prometheus.io/docs/practices/naming/>). Each write replaces the whole file by a rename, so that a
//! reader never sees half a file.

use std::fmt::{Display, Write as _};
use std::fs;
use std::path::PathBuf;

use super::Metrics;
use crate::guard::RejectReason;
use crate::sys::clock::is_within;
use crate::sys::private_files;

/// The time between two writes of the file.
const WRITE_INTERVAL_MS: i64 = 10_000;

/// The metrics file and the time of its last write, in milliseconds since 1970.
#[derive(Debug)]
pub struct TextfileWriter {
    path: PathBuf,
    written: i64,
}

impl TextfileWriter {
    /// A writer of the file at `path`, which is not created yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, written: 0 }
    }

    /// Whether the file is due for a write; `now` is in milliseconds since 1970.
    #[must_use]
    pub fn is_due(&self, now: i64) -> bool {
        !is_within(WRITE_INTERVAL_MS, self.written, now)
    }

    /// Writes the file, readable by all users.
    ///
    /// # Errors
    /// A message with path and cause.
    pub fn write(&mut self, metrics: &Metrics, now: i64) -> Result<(), String> {
        self.written = now;
        let path = self.path.display();
        private_files::replace(&self.path, &render(metrics), 0o644)
            .map_err(|error| format!("cannot write {path}: {error}"))
    }

    /// Removes the file, so that Prometheus does not take old values for current ones.
    pub fn clear(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The content of the file.
fn render(metrics: &Metrics) -> String {
    let mut page = Exposition::default();
    page.gauge("build_info", "The running version; always 1.");
    page.labelled_sample("build_info", &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    page.gauge("start_time_seconds", "When the service started, in seconds since 1970.");
    page.sample("start_time_seconds", metrics.since);
    page.gauge("broker_connected", "Whether the broker is connected: 1 or 0.");
    page.sample("broker_connected", u8::from(metrics.connected));
    page.counter("broker_connections_total", "Connections to a broker since the start.");
    page.sample("broker_connections_total", metrics.traffic.connections);
    page.gauge("fail2ban_up", "Whether fail2ban answers: 1 or 0.");
    page.sample("fail2ban_up", u8::from(metrics.fail2ban));
    page.gauge(
        "bans",
        "Addresses banned on this host: detected here or imported from other hosts.",
    );
    for jail in &metrics.jails {
        for (kind, count) in [("detected", jail.detected), ("imported", jail.imported)] {
            page.labelled_sample("bans", &[("jail", &jail.jail), ("kind", &kind)], count);
        }
    }
    page.gauge("overrides", "Bans of other hosts that the operator of this host removed by hand.");
    for jail in &metrics.jails {
        page.labelled_sample("overrides", &[("jail", &jail.jail)], jail.overrides);
    }
    page.gauge(
        "fleet_bans",
        "Bans that other hosts announce, whether this host imported them or not.",
    );
    page.sample("fleet_bans", metrics.claims);
    page.gauge("fleet_hosts", "Other hosts that this host knows.");
    page.sample("fleet_hosts", metrics.hosts);
    page.counter("messages_received_total", "Valid messages received from the fleet.");
    let traffic = &metrics.traffic;
    let kinds =
        [("event", traffic.events), ("snapshot", traffic.shards), ("presence", traffic.presences)];
    for (kind, count) in kinds {
        page.labelled_sample("messages_received_total", &[("kind", &kind)], count);
    }
    page.counter("events_published_total", "Events of this host acknowledged by the broker.");
    page.sample("events_published_total", traffic.published);
    page.gauge("events_waiting", "Events of this host not acknowledged by the broker yet.");
    page.sample("events_waiting", metrics.waiting);
    page.counter("rejected_messages_total", "Messages rejected since the start, by reason.");
    for reason in RejectReason::ALL {
        page.labelled_sample(
            "rejected_messages_total",
            &[("reason", &reason)],
            metrics.refused.of(reason),
        );
    }
    page.gauge(
        "limit_reached_timestamp_seconds",
        "When a table of the daemon last reached its limit, if within the last day.",
    );
    for (table, at) in &metrics.limits {
        page.labelled_sample("limit_reached_timestamp_seconds", &[("table", &table.name())], at);
    }
    page.gauge(
        "certificate_expiry_timestamp_seconds",
        "When a certificate of the connection expires.",
    );
    for one in &metrics.certificates {
        page.labelled_sample(
            "certificate_expiry_timestamp_seconds",
            &[("certificate", &one.kind)],
            one.ends,
        );
    }
    if let Some(reports) = &metrics.reports {
        page.gauge("abuseipdb_reports_waiting", "Queued reports to AbuseIPDB.");
        page.sample("abuseipdb_reports_waiting", reports.waiting);
        page.gauge("abuseipdb_calls_remaining", "Calls left today, as of AbuseIPDB's last answer.");
        for call in &reports.calls {
            if let Some(remaining) = call.quota.remaining {
                page.labelled_sample(
                    "abuseipdb_calls_remaining",
                    &[("call", &call.name)],
                    remaining,
                );
            }
        }
    }
    page.0
}

/// The lines of the file; every metric's name starts with `f2bmqtt_`.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn gauge(&mut self, name: &str, help: &str) {
        self.head(name, help, "gauge");
    }

    fn counter(&mut self, name: &str, help: &str) {
        self.head(name, help, "counter");
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.0, "# HELP f2bmqtt_{name} {help}\n# TYPE f2bmqtt_{name} {kind}");
    }

    fn sample(&mut self, name: &str, value: impl Display) {
        self.labelled_sample(name, &[], value);
    }

    fn labelled_sample(
        &mut self,
        name: &str,
        labels: &[(&str, &dyn Display)],
        value: impl Display,
    ) {
        let labels: Vec<_> = labels.iter().map(|(name, value)| label(name, value)).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "f2bmqtt_{name}{labels} {value}");
    }
}

fn label(name: &str, value: &dyn Display) -> String {
    let value = value.to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!("{name}=\"{}\"", value.replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::abuseipdb::queue_status::{CallQuota, QueueStatus};
    use crate::abuseipdb::response::Quota;
    use crate::config::Certificate;
    use crate::fleet::JailCounts;
    use crate::fleet::limits::BoundedTable;
    use crate::model::Jail;

    fn figures() -> Metrics {
        let jail = Jail::new("sshd").unwrap();
        let quota = Quota { limit: Some(1000), remaining: Some(990) };
        let call = CallQuota { name: "report".to_owned(), blocked: 0, quota, seen: Some(1) };
        Metrics {
            since: 1_795_342_588,
            connected: true,
            jails: vec![JailCounts { jail, detected: 3, imported: 40, overrides: 1 }],
            limits: [(BoundedTable::Claims, 1_795_342_600)].into(),
            certificates: vec![Certificate {
                kind: "ca",
                name: String::new(),
                ends: 1_900_000_000,
            }],
            reports: Some(QueueStatus { waiting: 2, calls: vec![call], ..QueueStatus::default() }),
            ..Metrics::default()
        }
    }

    #[test]
    fn every_metric_has_a_line() {
        let text = render(&figures());
        for line in [
            "f2bmqtt_start_time_seconds 1795342588",
            "f2bmqtt_broker_connected 1",
            "f2bmqtt_fail2ban_up 0",
            "f2bmqtt_bans{jail=\"sshd\",kind=\"detected\"} 3",
            "f2bmqtt_bans{jail=\"sshd\",kind=\"imported\"} 40",
            "f2bmqtt_overrides{jail=\"sshd\"} 1",
            "f2bmqtt_rejected_messages_total{reason=\"unsigned\"} 0",
            "f2bmqtt_abuseipdb_calls_remaining{call=\"report\"} 990",
            "f2bmqtt_certificate_expiry_timestamp_seconds{certificate=\"ca\"} 1900000000",
            "f2bmqtt_limit_reached_timestamp_seconds{table=\"claims\"} 1795342600",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
        assert!(!text.contains("table=\"peers\""), "no limit of that table was reached");
        let mut page = Exposition::default();
        page.labelled_sample("x", &[("jail", &"a\"b\\c")], 1);
        assert_eq!(page.0, "f2bmqtt_x{jail=\"a\\\"b\\\\c\"} 1\n");
    }

    #[test]
    fn metrics_file_is_replaced_whole_and_readable_by_all() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f2bmqtt.prom");
        let mut metrics = TextfileWriter::new(path.clone());
        assert!(metrics.is_due(1_000_000));
        metrics.write(&figures(), 1_000_000).unwrap();
        assert!(!metrics.is_due(1_009_999) && metrics.is_due(1_010_000));
        assert!(metrics.is_due(1), "the clock was set back");
        metrics.write(&figures(), 1_010_000).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        metrics.clear();
        assert!(!path.exists());
        let refused = TextfileWriter::new(root.path().join("no/f2bmqtt.prom")).write(&figures(), 1);
        assert!(refused.unwrap_err().starts_with("cannot write "));
    }
}
