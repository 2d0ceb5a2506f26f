//! How this host stands, in numbers: one reading of what the daemon knows, for those who show it:
//! Prometheus and Home Assistant.

pub mod homeassistant;
pub mod metrics;

use std::collections::BTreeMap;

use self::homeassistant::{HomeAssistant, Kept};
use self::metrics::TextfileWriter;
use crate::abuseipdb::glance::QueueStatus;
use crate::config::{Certificate, Config, Tls};
use crate::fleet::limits::{BoundedTable, ReachedLimits};
use crate::guard::RejectCounters;
use crate::guard::gate::Admitted;
use crate::memory::DaemonState;
use crate::paths::Paths;
use crate::wire::{Event, Jail};

/// What one jail of this host holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailCounts {
    /// Its name.
    pub jail: Jail,
    /// Bans that this host detected.
    pub detected: usize,
    /// Bans that it holds for other hosts.
    pub imported: usize,
    /// Bans of other hosts that its operator lifted.
    pub lifted: usize,
}

/// What went over the link since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// How often a connection came up.
    pub connections: u64,
    /// Events, parts of snapshots and presences that came in and could be read, this host's own included.
    pub events: u64,
    #[allow(missing_docs)]
    pub parts: u64,
    #[allow(missing_docs)]
    pub presences: u64,
    /// Events of this host that the broker has acknowledged.
    pub published: u64,
}

/// One reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// When the daemon started, in seconds since 1970.
    pub since: i64,
    /// The link to the broker is up.
    pub connected: bool,
    /// fail2ban answers.
    pub fail2ban: bool,
    /// The jails that take part, by name.
    pub jails: Vec<JailCounts>,
    /// Bans of other hosts that are known, whether they are held here or not.
    pub claims: usize,
    /// Other hosts that are known.
    pub hosts: usize,
    /// Events that wait for the broker.
    pub waiting: usize,
    /// What went over the link.
    pub traffic: LinkCounters,
    /// What was refused.
    pub refused: RejectCounters,
    /// When each table reached a limit last within a day, in seconds since 1970.
    pub limits: BTreeMap<BoundedTable, i64>,
    /// The certificates of this host's connection.
    pub certificates: Vec<Certificate>,
    /// What the reporter has; `None` where it never ran.
    pub reports: Option<QueueStatus>,
}

/// Those who are shown it, as the settings say.
#[derive(Debug)]
pub struct Exporters {
    paths: Paths,
    since: i64,
    /// The link to the broker is up.
    pub connected: bool,
    /// What went over it.
    pub traffic: LinkCounters,
    metrics: Option<TextfileWriter>,
    home: Option<HomeAssistant>,
    tls: Option<Tls>,
}

impl Exporters {
    /// Nothing is shown yet. `since` is when the daemon started, in seconds since 1970.
    #[must_use]
    pub fn new(config: &Config, paths: &Paths, since: i64) -> Self {
        let metrics = TextfileWriter::new(paths.metrics());
        metrics.clear();
        let home = config.ha_prefix.clone();
        Self {
            paths: paths.clone(),
            since,
            connected: false,
            traffic: LinkCounters::default(),
            metrics: config.metrics.then_some(metrics),
            home: home.map(|at| HomeAssistant::new(at, config.topic.clone(), config.node.clone())),
            tls: config.tls.clone(),
        }
    }

    /// The topic that is to be listened to for Home Assistant.
    #[must_use]
    pub fn topic(&self) -> Option<String> {
        self.home.as_ref().map(HomeAssistant::birth_topic)
    }

    /// A connection came up.
    pub fn connected(&mut self) {
        self.connected = true;
        self.traffic.connections += 1;
        if let Some(home) = &mut self.home {
            home.connected();
        }
    }

    /// Takes a message; answers whether it was meant for this.
    pub fn hear(&mut self, message: &Admitted) -> bool {
        self.home.as_mut().is_some_and(|home| home.hear(message))
    }

    /// The broker has an event of this host: what else is to be said of it.
    pub fn published(&mut self, event: &Event) -> Option<(String, String)> {
        self.traffic.published += 1;
        self.home.as_ref().and_then(|home| home.ban(event))
    }

    /// Shows what has changed: writes the file, and answers what the broker is to keep. `now` is in
    /// milliseconds since 1970.
    pub fn show(&mut self, known: &mut DaemonState, now: i64) -> Vec<Kept> {
        let to_home = self.connected && self.home.as_ref().is_some_and(|home| home.is_due(now));
        let to_file = self.metrics.as_ref().is_some_and(|metrics| metrics.is_due(now));
        if !to_home && !to_file {
            return Vec::new();
        }
        let figures = self.read(known, now);
        if let Some(metrics) = self.metrics.as_mut().filter(|_| to_file)
            && let Err(what) = metrics.write(&figures, now)
        {
            known.warn("metrics", &what);
        }
        // Before fail2ban has said which jails there are, there is nothing to show of them.
        let home = self.home.as_mut().filter(|_| to_home && known.fleet.known_jails().is_some());
        home.map(|home| home.news(&figures, now)).unwrap_or_default()
    }

    /// The certificates of this host's connection.
    #[must_use]
    pub fn certificates(&self) -> Vec<Certificate> {
        self.tls.as_ref().map(Tls::certificates).unwrap_or_default()
    }

    fn read(&self, known: &DaemonState, now: i64) -> Metrics {
        Metrics {
            since: self.since,
            connected: self.connected,
            fail2ban: known.fleet.is_served(),
            jails: known.fleet.jail_counts(),
            claims: known.fleet.claims(),
            hosts: known.fleet.hosts().0,
            waiting: known.outbox.queued(),
            traffic: self.traffic,
            refused: known.rejections.clone(),
            limits: last_reached(known.fleet.limits(), now),
            certificates: self.certificates(),
            reports: self
                .metrics
                .as_ref()
                .and_then(|_| QueueStatus::of(&self.paths.report_queue()).ok()),
        }
    }

    /// It ends here.
    pub fn end(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.clear();
        }
    }
}

/// The last time of each table: it may have several limits.
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
