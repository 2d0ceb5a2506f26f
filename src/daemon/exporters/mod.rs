//! Exports the daemon's metrics to Prometheus and Home Assistant, both from one reading of its state.

pub mod homeassistant;
pub mod prometheus;

use std::collections::BTreeMap;

use self::homeassistant::{HomeAssistant, RetainedMessage};
use self::prometheus::TextfileWriter;
use crate::abuseipdb::queue_status::QueueStatus;
use crate::config::{Certificate, Config, Tls};
use crate::daemon::state::DaemonState;
use crate::fleet::JailCounts;
use crate::fleet::limits::{BoundedTable, ReachedLimits};
use crate::guard::RejectCounters;
use crate::guard::gate::Admitted;
use crate::sys::paths::Paths;
use crate::wire::Event;

/// Traffic with the broker since the daemon started. Received messages count if they are valid, including this
/// host's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Successful connections to a broker.
    pub connections: u64,
    /// Received events.
    pub events: u64,
    /// Received shards of snapshots.
    pub shards: u64,
    /// Received presences.
    pub presences: u64,
    /// Events of this host that the broker acknowledged.
    pub published: u64,
}

/// One reading of all metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// When the daemon started, in seconds since 1970.
    pub since: i64,
    /// Whether the broker is connected.
    pub connected: bool,
    /// Whether fail2ban answers.
    pub fail2ban: bool,
    /// The participating jails, by name.
    pub jails: Vec<JailCounts>,
    /// Active claims of other hosts, imported or not.
    pub claims: usize,
    /// Other hosts that this host knows.
    pub hosts: usize,
    /// Events that the broker has not acknowledged yet.
    pub waiting: usize,
    /// Traffic with the broker.
    pub traffic: LinkCounters,
    /// Rejected messages, by reason.
    pub refused: RejectCounters,
    /// When each table last reached a limit within a day, in seconds since 1970.
    pub limits: BTreeMap<BoundedTable, i64>,
    /// The certificates of the connection.
    pub certificates: Vec<Certificate>,
    /// The queue of reports to `AbuseIPDB`; `None` without `MQTT_METRICS`, or if its file cannot be read.
    pub reports: Option<QueueStatus>,
}

/// The exporters that the settings enable.
#[derive(Debug)]
pub struct Exporters {
    paths: Paths,
    since: i64,
    /// Whether the broker is connected.
    pub connected: bool,
    /// Traffic with the broker.
    pub traffic: LinkCounters,
    file: Option<TextfileWriter>,
    home: Option<HomeAssistant>,
    tls: Option<Tls>,
}

impl Exporters {
    /// Exporters without an export yet; removes the metrics file of an earlier run. `since` is when the daemon
    /// started, in seconds since 1970.
    #[must_use]
    pub fn new(config: &Config, paths: &Paths, since: i64) -> Self {
        let file = TextfileWriter::new(paths.metrics());
        file.clear();
        let home = config.ha_prefix.clone();
        Self {
            paths: paths.clone(),
            since,
            connected: false,
            traffic: LinkCounters::default(),
            file: config.metrics.then_some(file),
            home: home.map(|at| HomeAssistant::new(at, config.topic.clone(), config.node.clone())),
            tls: config.tls.clone(),
        }
    }

    /// The topic to subscribe to for Home Assistant, if that is enabled.
    #[must_use]
    pub fn topic(&self) -> Option<String> {
        self.home.as_ref().map(HomeAssistant::birth_topic)
    }

    /// Counts a connection, after which Home Assistant gets everything again.
    pub fn connected(&mut self) {
        self.connected = true;
        self.traffic.connections += 1;
        if let Some(home) = &mut self.home {
            home.connected();
        }
    }

    /// Handles a message of Home Assistant; returns whether the message was one.
    pub fn on_message(&mut self, message: &Admitted) -> bool {
        self.home.as_mut().is_some_and(|home| home.on_message(message))
    }

    /// Counts an event that the broker acknowledged; returns topic and payload of Home Assistant's message about it.
    pub fn published(&mut self, event: &Event) -> Option<(String, String)> {
        self.traffic.published += 1;
        self.home.as_ref().and_then(|home| home.ban(event))
    }

    /// Exports the metrics that are due: writes the file, and returns the retained messages to publish. `now` is in
    /// milliseconds since 1970.
    pub fn export(&mut self, state: &mut DaemonState, now: i64) -> Vec<RetainedMessage> {
        let to_home = self.connected && self.home.as_ref().is_some_and(|home| home.is_due(now));
        let to_file = self.file.as_ref().is_some_and(|file| file.is_due(now));
        if !to_home && !to_file {
            return Vec::new();
        }
        let metrics = self.read(state, now);
        if let Some(file) = self.file.as_mut().filter(|_| to_file)
            && let Err(what) = file.write(&metrics, now)
        {
            state.warn("metrics", &what);
        }
        // Until fail2ban has listed its jails, Home Assistant would lose the sensors of all jails.
        let home = self.home.as_mut().filter(|_| to_home && state.fleet.known_jails().is_some());
        home.map(|home| home.changed(&metrics, now)).unwrap_or_default()
    }

    /// The certificates of the connection to the broker.
    #[must_use]
    pub fn certificates(&self) -> Vec<Certificate> {
        self.tls.as_ref().map(Tls::certificates).unwrap_or_default()
    }

    fn read(&self, state: &DaemonState, now: i64) -> Metrics {
        Metrics {
            since: self.since,
            connected: self.connected,
            fail2ban: state.fleet.is_served(),
            jails: state.fleet.jail_counts(),
            claims: state.fleet.claims(),
            hosts: state.fleet.hosts().0,
            waiting: state.outbox.queued(),
            traffic: self.traffic,
            refused: state.rejections.clone(),
            limits: last_reached(state.fleet.limits(), now),
            certificates: self.certificates(),
            reports: self
                .file
                .as_ref()
                .and_then(|_| QueueStatus::of(&self.paths.report_queue()).ok()),
        }
    }

    /// Removes the metrics file when the daemon ends.
    pub fn end(&self) {
        if let Some(file) = &self.file {
            file.clear();
        }
    }
}

/// When each table last reached any of its limits, in seconds since 1970.
fn last_reached(limits: &ReachedLimits, now: i64) -> BTreeMap<BoundedTable, i64> {
    let mut last = BTreeMap::new();
    for limit in limits.shown(now) {
        let at: &mut i64 = last.entry(limit.table).or_default();
        *at = (*at).max(limit.at.div_euclid(1000));
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_with_several_limits_has_the_last_time() {
        let mut limits = ReachedLimits::default();
        limits.reached(BoundedTable::Claims, 200_000, None, 7_000);
        limits.reached(BoundedTable::Claims, 100_000, None, 5_000);
        limits.reached(BoundedTable::Peers, 1_000, None, 1_000);
        let expected = [(BoundedTable::Peers, 1), (BoundedTable::Claims, 7)].into();
        assert_eq!(last_reached(&limits, 8_000), expected);
        assert!(last_reached(&limits, 90_000_000).is_empty(), "a day later");
    }
}
