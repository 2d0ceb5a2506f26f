//! Schedules the subscriptions of a command, and decides when the data is complete. Pure: messages go in with the time,
//! topics come out.
//!
//! The first subscriptions cover the presence of every host and shard 0 of every snapshot, which contains the number of
//! shards. Hosts with more shards follow, a few at a time, because Mosquitto by default silently drops messages beyond
//! 1,000. MQTT marks no last retained message, so the data counts as complete when no shard is missing and the broker
//! has been silent for the idle timeout.
//!
//! `RabbitMQ` keeps retained messages, but delivers none for a wildcard. The second attempt therefore subscribes to the
//! exact topics as well.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fleet_view::{FleetView, Update};
use crate::guard::gate::Admitted;
use crate::model::HostName;

/// The most time that a fetch takes, in milliseconds.
const FETCH_LIMIT_MS: i64 = 4_000;

/// The most branches that are requested at once, and the most shards that they may have.
const MAX_BRANCHES: usize = 32;
const MAX_SHARDS: u32 = 256;

/// How often a branch is requested: the second time with exact topics.
const MAX_ATTEMPTS: u32 = 2;

/// The next step of the driver.
#[derive(Debug, PartialEq, Eq)]
pub enum FetchStep {
    /// Subscribe to the branches of these hosts.
    Request(Vec<HostName>),
    /// Listen until this time, in milliseconds.
    Listen(i64),
    /// The data is complete, or the time is up.
    Done,
}

/// The state of a fetch. Times are in milliseconds since any moment, the same for all calls.
#[derive(Debug)]
pub struct SnapshotFetch {
    /// The retained messages so far.
    pub view: FleetView,
    /// How long a broker that has more to deliver may be silent, in milliseconds.
    idle_timeout_ms: i64,
    started_at: i64,
    /// When a message arrived or a request was made last.
    last_activity_at: i64,
    attempts: BTreeMap<HostName, u32>,
}

impl SnapshotFetch {
    /// The first subscriptions, below the fleet's retained branch.
    pub const INITIAL_TOPICS: [&str; 2] = ["host/+", "state/+/0"];

    /// Starts a fetch. `signed`: the fleet has a signing key; `latency`: how long the broker takes to answer, in
    /// milliseconds.
    #[must_use]
    pub fn new(signed: bool, latency: i64, now: i64) -> Self {
        let idle_timeout_ms = (100 + 2 * latency).min(FETCH_LIMIT_MS / 4);
        Self {
            view: FleetView::new(signed),
            idle_timeout_ms,
            started_at: now,
            last_activity_at: now,
            attempts: BTreeMap::new(),
        }
    }

    /// Takes a message; `time` is the time of day, in milliseconds since 1970.
    pub fn apply(&mut self, message: &Admitted, now: i64, time: i64) -> Update {
        let update = self.view.apply(message, time);
        if update != Update::Nothing {
            self.last_activity_at = now;
        }
        update
    }

    /// Decides the next step.
    pub fn next(&mut self, now: i64) -> FetchStep {
        if now - self.started_at >= FETCH_LIMIT_MS {
            return FetchStep::Done;
        }
        let is_quiet = now - self.last_activity_at >= self.idle_timeout_ms;
        let branches_to_fetch = self.branches_to_fetch(is_quiet);
        if !branches_to_fetch.is_empty() {
            for host in &branches_to_fetch {
                *self.attempts.entry(host.clone()).or_default() += 1;
            }
            self.last_activity_at = now;
            return FetchStep::Request(branches_to_fetch);
        }
        if is_quiet {
            return FetchStep::Done;
        }
        FetchStep::Listen(
            (self.last_activity_at + self.idle_timeout_ms).min(self.started_at + FETCH_LIMIT_MS),
        )
    }

    /// The topics to subscribe to for a host, below the fleet's retained branch.
    #[must_use]
    pub fn topics(&self, host: &HostName) -> Vec<String> {
        let mut topics = vec![format!("state/{host}/+")];
        match self.view.hosts().get(host) {
            None => topics.extend([format!("host/{host}"), format!("state/{host}/0")]),
            Some(host_view) if self.attempts.get(host).is_some_and(|attempts| *attempts > 1) => {
                let arrived: Vec<u32> = host_view.shard_indices().collect();
                let missing =
                    (0..host_view.count().max(1)).filter(|index| !arrived.contains(index));
                topics.extend(missing.map(|index| format!("state/{host}/{index}")));
            }
            Some(_) => {}
        }
        topics
    }

    /// Records a request that the caller made itself, which restarts the idle timeout.
    pub fn requested(&mut self, now: i64) {
        self.last_activity_at = now;
    }

    /// How long a broker that has more to deliver may be silent.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms.cast_unsigned())
    }

    /// The branches of snapshots that grew after the fetch was complete.
    pub fn new_shards(&mut self) -> Vec<HostName> {
        let branches_to_fetch = self.branches_to_fetch(false);
        for host in &branches_to_fetch {
            *self.attempts.entry(host.clone()).or_default() += 1;
        }
        branches_to_fetch
    }

    /// The branches to request: those with shards that were not requested, and, if the broker is silent, those with
    /// missing shards or no shard at all.
    fn branches_to_fetch(&self, is_quiet: bool) -> Vec<HostName> {
        let (mut branches, mut shards, mut branches_to_fetch) = (0, 0, Vec::new());
        for (host, host_view) in self.view.hosts() {
            let attempts = self.attempts.get(host).copied().unwrap_or(0);
            let should_fetch = match (host_view.missing_shards(), host_view.count()) {
                (0, 0) => is_quiet && attempts == 0,
                (0, _) => false,
                _ => attempts == 0 || is_quiet && attempts < MAX_ATTEMPTS,
            };
            if should_fetch {
                branches_to_fetch.push((host, host_view.missing_shards()));
            } else if attempts > 0 && host_view.missing_shards() > 0 && !is_quiet {
                (branches, shards) = (branches + 1, shards + host_view.missing_shards());
            }
        }
        let mut fitting = Vec::new();
        for (host, missing) in branches_to_fetch {
            (branches, shards) = (branches + 1, shards + missing);
            // A branch larger than the limit is requested alone.
            if branches > 1 && (branches > MAX_BRANCHES || shards > MAX_SHARDS) {
                break;
            }
            fitting.push(host.clone());
        }
        fitting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::gate::tests::admit;

    const TIME: i64 = 1_795_342_600_000;

    fn shard(host: &str, index: u32, count: u32) -> Admitted {
        let json = format!(
            r#"{{"v":1,"host":"{host}","stamp":5,"part":{index},"parts":{count},"bans":[]}}"#
        );
        admit(&format!("state/{host}/{index}"), json.as_bytes()).unwrap()
    }

    fn topics(fetch: &SnapshotFetch, host: &str) -> Vec<String> {
        fetch.topics(&HostName::new(host).unwrap())
    }

    /// Fetches from a broker that keeps, for each host, a number of shards, and delivers a smaller number of them.
    fn fetch_from(hosts: &[(&str, u32, u32)]) -> (Vec<Vec<String>>, SnapshotFetch) {
        let (mut fetch, mut requests, mut now) = (SnapshotFetch::new(false, 5, 0), Vec::new(), 0);
        for (host, shards, _) in hosts {
            let online = br#"{"v":1,"state":"online"}"#;
            fetch.apply(&admit(&format!("host/{host}"), online).unwrap(), now, TIME);
            if *shards > 0 {
                fetch.apply(&shard(host, 0, *shards), now, TIME);
            }
        }
        loop {
            match fetch.next(now) {
                FetchStep::Done => return (requests, fetch),
                FetchStep::Listen(until) => {
                    assert!(until > now);
                    now = until;
                }
                FetchStep::Request(branches) => {
                    let names: Vec<_> =
                        branches.iter().map(|host| host.as_str().to_owned()).collect();
                    for name in &names {
                        let (_, shards, delivered) =
                            hosts.iter().find(|(host, ..)| host == name).unwrap();
                        for n in 0..*delivered {
                            fetch.apply(&shard(name, n, *shards), now + 1, TIME);
                        }
                    }
                    requests.push(names);
                    now += 1;
                }
            }
        }
    }

    #[test]
    fn snapshots_of_one_shard_need_no_further_request() {
        let (requests, fetch) = fetch_from(&[("a", 1, 1), ("b", 1, 1)]);
        assert!(requests.is_empty());
        assert_eq!(fetch.view.hosts().len(), 2);
        assert!(fetch.view.missing().is_empty() && fetch.last_activity_at == 0);
    }

    #[test]
    fn branches_with_more_shards_are_requested_in_batches() {
        let (requests, fetch) = fetch_from(&[("a", 1, 1), ("b", 4, 4), ("c", 2, 2)]);
        assert_eq!(requests, [["b", "c"]]);
        assert!(fetch.view.missing().is_empty());
        let (requests, fetch) = fetch_from(&[("a", 512, 512), ("b", 128, 128), ("c", 128, 128)]);
        assert_eq!(requests, [vec!["a"], vec!["b", "c"]]);
        assert!(fetch.view.missing().is_empty());
    }

    #[test]
    fn missing_shards_are_requested_again_and_then_reported() {
        let (requests, fetch) = fetch_from(&[("a", 4, 3), ("b", 0, 0), ("c", 1, 1)]);
        assert_eq!(requests, [vec!["a"], vec!["a", "b"]]);
        assert_eq!(fetch.view.missing(), ["1 of 4 parts of a's snapshot"]);
        assert_eq!(topics(&fetch, "a"), ["state/a/+", "state/a/3"]);
        assert_eq!(topics(&fetch, "c"), ["state/c/+"]);
        assert_eq!(topics(&fetch, "d"), ["state/d/+", "host/d", "state/d/0"], "d is unknown");
    }
}
