//! Schedules the subscriptions to the snapshots of peers. Mosquitto's defaults (20 messages in flight, 1,000 queued)
//! silently drop retained messages beyond that, so a client that subscribes to everything at once gets only a part.
//!
//! The first shard of every host comes first, many hosts at once: most hosts have one shard. Then follow, one host at a
//! time, the hosts whose first shard announces more. A shard that is missing after some seconds is requested again,
//! also by its exact topic: `RabbitMQ` retains messages, and delivers none of them for a filter with a wildcard.
//!
//! Anyone who may publish can invent hosts. Invented hosts come after hosts that answered before, and are dropped
//! first at the limit (R21, R22).

use std::collections::{BTreeMap, BTreeSet};

use crate::model::HostName;

/// A broker that delivers nothing for this long has no more retained messages, in milliseconds.
const IDLE_TIMEOUT: i64 = 2_000;

/// The delay before a missing shard is requested again, in milliseconds; it doubles up to the maximum.
const RETRY_MIN: i64 = 4_000;
const RETRY_MAX: i64 = 300_000;

/// The most hosts that are kept (R21). Real fleets are far smaller.
pub(super) const MAX_SUBSCRIPTIONS: usize = 1_000;

/// How many hosts that never answered are dropped at once at the limit.
const DROPPED_HOSTS: usize = 50;

/// The most first shards that are requested at once, each of about 16 KiB.
const MAX_FIRST_SHARDS: usize = 200;

#[derive(Clone, Copy, Debug)]
struct PeerSubscription {
    /// A shard of the host arrived, on this connection or before.
    answered: bool,
    /// All shards arrived on this connection.
    complete: bool,
    /// The first shard was requested on this connection.
    first: bool,
    /// When the next request is due, in milliseconds.
    retry_at: i64,
    /// The delay after that request, in milliseconds.
    retry_delay: i64,
    /// When a message of the host arrived last, in milliseconds.
    last_shard_at: i64,
}

impl PeerSubscription {
    fn new(now: i64) -> Self {
        let (answered, complete, first) = (false, false, false);
        Self {
            answered,
            complete,
            first,
            retry_at: now,
            retry_delay: RETRY_MIN,
            last_shard_at: now,
        }
    }
}

/// The next subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first shards of these hosts.
    First(Vec<HostName>),
    /// All shards of one host.
    All {
        /// The host.
        host: HostName,
        /// Whether an earlier request had no answer, so that exact topics are needed, too.
        again: bool,
    },
}

/// The subscriptions of all known hosts.
#[derive(Debug, Default)]
pub struct SubscriptionScheduler {
    known: BTreeMap<HostName, PeerSubscription>,
    /// Hosts whose request is not complete yet.
    requested: BTreeSet<HostName>,
    /// Whether the request was for first shards only.
    requested_first: bool,
    /// When the request was made or answered last, in milliseconds.
    last: i64,
    connected: bool,
}

impl SubscriptionScheduler {
    /// Starts over on a new connection. This host's own shards come first: if it lost its state, the broker has its
    /// last stamp only until it publishes again.
    pub fn on_connected(&mut self, me: &HostName, now: i64) {
        for branch in self.known.values_mut() {
            *branch = PeerSubscription { answered: branch.answered, ..PeerSubscription::new(now) };
        }
        let mine = PeerSubscription {
            first: true,
            answered: true,
            retry_at: i64::MIN,
            ..PeerSubscription::new(now)
        };
        self.known.insert(me.clone(), mine);
        self.connected = true;
        self.requested.clear();
    }

    /// Stops requests until the next connection.
    pub fn on_disconnected(&mut self) {
        self.connected = false;
        self.requested.clear();
    }

    /// Moves deadlines closer after the clock was set back, so that nothing waits for a time far ahead.
    pub(super) fn on_clock_rollback(&mut self, now: i64) {
        for branch in self.known.values_mut() {
            branch.retry_at = branch.retry_at.min(now + branch.retry_delay);
            branch.last_shard_at = branch.last_shard_at.min(now);
        }
        self.last = self.last.min(now);
    }

    /// Adds a host. Returns `false` if the limit leaves no room.
    pub fn add_peer(&mut self, host: &HostName, now: i64) -> bool {
        if let Some(branch) = self.known.get_mut(host) {
            branch.last_shard_at = now;
            return true;
        }
        if self.known.len() >= MAX_SUBSCRIPTIONS {
            let silent = self.known.iter().filter(|(_, branch)| !branch.answered);
            let mut silent: Vec<_> =
                silent.map(|(host, branch)| (branch.last_shard_at, host.clone())).collect();
            silent.sort_unstable();
            if silent.is_empty() {
                return false;
            }
            for (_, host) in silent.into_iter().take(DROPPED_HOSTS) {
                self.known.remove(&host);
                self.requested.remove(&host);
            }
        }
        self.known.insert(host.clone(), PeerSubscription::new(now));
        true
    }

    pub(super) fn knows(&self, host: &HostName) -> bool {
        self.known.contains_key(host)
    }

    /// Whether a host is new and the limit is reached.
    pub(super) fn is_full_for(&self, host: &HostName) -> bool {
        self.known.len() >= MAX_SUBSCRIPTIONS && !self.known.contains_key(host)
    }

    /// A shard of a host arrived, after which its snapshot is complete or not.
    pub fn on_shard(&mut self, host: &HostName, complete: bool, now: i64) {
        if let Some(branch) = self.known.get_mut(host) {
            if branch.complete && !complete {
                (branch.retry_at, branch.retry_delay) = (now + RETRY_MIN, RETRY_MIN);
            } else if !branch.answered && !complete {
                branch.retry_at = branch.retry_at.min(now);
            }
            (branch.complete, branch.answered, branch.last_shard_at) = (complete, true, now);
        }
        if self.requested.contains(host) {
            self.last = now;
            if complete || self.requested_first {
                self.requested.remove(host);
            }
        }
    }

    /// The next subscription, unless the answers to the last one are still arriving.
    pub fn next_request(&mut self, now: i64) -> Option<Request> {
        let is_busy = !self.requested.is_empty() && now - self.last < IDLE_TIMEOUT;
        if !self.connected || is_busy {
            return None;
        }
        self.requested.clear();
        let own = self.own_shards(now);
        let request = own.or_else(|| self.first_shards(now)).or_else(|| self.all_shards(now))?;
        self.last = now;
        Some(request)
    }

    fn own_shards(&mut self, now: i64) -> Option<Request> {
        let mut own = self.known.iter().filter(|(_, branch)| branch.retry_at == i64::MIN);
        let host = own.next().filter(|(_, branch)| !branch.complete)?.0.clone();
        Some(self.request_all(host, now))
    }

    /// First shards that were not requested yet, of hosts that answered before first.
    fn first_shards(&mut self, now: i64) -> Option<Request> {
        let open = self.known.iter().filter(|(_, branch)| !branch.first && !branch.complete);
        let mut hosts: Vec<_> =
            open.map(|(host, branch)| (!branch.answered, host.clone())).collect();
        hosts.sort_unstable();
        hosts.truncate(MAX_FIRST_SHARDS);
        let hosts: Vec<HostName> = hosts.into_iter().map(|(_, host)| host).collect();
        for host in &hosts {
            if let Some(branch) = self.known.get_mut(host) {
                (branch.first, branch.retry_at) = (true, now + branch.retry_delay);
            }
        }
        self.requested.extend(hosts.iter().cloned());
        self.requested_first = true;
        (!hosts.is_empty()).then_some(Request::First(hosts))
    }

    /// A host with missing shards, one that answered before first.
    fn all_shards(&mut self, now: i64) -> Option<Request> {
        let missing = self.known.iter().filter(|(_, branch)| !branch.complete);
        let due = missing.filter(|(_, branch)| branch.retry_at <= now);
        let (host, _) = due.min_by_key(|(_, branch)| (!branch.answered, branch.retry_at))?;
        let host = host.clone();
        Some(self.request_all(host, now))
    }

    fn request_all(&mut self, host: HostName, now: i64) -> Request {
        let mut again = false;
        if let Some(branch) = self.known.get_mut(&host) {
            again = branch.retry_delay > RETRY_MIN;
            branch.retry_at = now + branch.retry_delay;
            branch.retry_delay = (branch.retry_delay * 2).min(RETRY_MAX);
        }
        self.requested.insert(host.clone());
        self.requested_first = false;
        Request::All { host, again }
    }

    /// How many hosts are known, and how many snapshots are complete.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        (self.known.len(), self.known.values().filter(|branch| branch.complete).count())
    }

    /// The same without this host.
    #[must_use]
    pub fn count_others(&self, me: &HostName) -> (usize, usize) {
        let (all, complete) = self.count();
        let own = self.known.get(me);
        let own_complete = own.is_some_and(|branch| branch.complete);
        (all - usize::from(own.is_some()), complete - usize::from(own_complete))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    fn all(name: &str, again: bool) -> Request {
        Request::All { host: host(name), again }
    }

    fn first(names: &[&str]) -> Request {
        Request::First(names.iter().map(|name| host(name)).collect())
    }

    #[test]
    fn first_shards_are_requested_together_and_the_rest_one_host_at_a_time() {
        let mut branches = SubscriptionScheduler::default();
        for name in ["a", "b", "c"] {
            assert!(branches.add_peer(&host(name), 0));
        }
        assert_eq!(branches.next_request(0), None, "not connected");
        branches.on_connected(&host("me"), 0);
        assert_eq!(
            branches.next_request(0),
            Some(all("me", false)),
            "this host's own shards first"
        );
        branches.on_shard(&host("me"), true, 0);
        assert_eq!(branches.next_request(0), Some(first(&["a", "b", "c"])));
        assert_eq!(branches.next_request(10), None);
        branches.on_shard(&host("a"), true, 500);
        branches.on_shard(&host("b"), false, 600);
        assert_eq!(branches.next_request(2_500), None, "c may still answer");
        assert_eq!(branches.next_request(2_600), Some(all("b", false)), "it has more shards");
        assert_eq!(branches.next_request(4_500), None, "one at a time");
        branches.on_shard(&host("b"), true, 4_550);
        assert_eq!(branches.next_request(4_550), Some(all("c", false)), "c did not answer");
        assert_eq!(branches.next_request(8_549), None);
        assert_eq!(branches.next_request(8_550), Some(all("c", true)), "again");
        assert_eq!(branches.next_request(16_549), None);
        assert_eq!(branches.next_request(16_550), Some(all("c", true)), "the delay doubles");
        branches.on_shard(&host("c"), true, 16_560);
        branches.on_shard(&host("a"), false, 17_000);
        assert_eq!(branches.next_request(20_999), None);
        assert_eq!(
            branches.next_request(21_000),
            Some(all("a", false)),
            "one of its shards is missing now"
        );
        assert_eq!(branches.count(), (4, 3));
        branches.on_disconnected();
        branches.on_connected(&host("me"), 30_000);
        assert_eq!(branches.count(), (4, 0), "a new connection starts over");
    }

    #[test]
    fn hosts_that_never_answer_delay_no_other() {
        let mut branches = SubscriptionScheduler::default();
        branches.add_peer(&host("zz"), 0);
        branches.on_shard(&host("zz"), true, 0);
        for n in 0..1_500 {
            assert!(branches.add_peer(&host(&format!("fake{n:04}")), n));
        }
        assert!(branches.add_peer(&host("new"), 1_500));
        assert!(
            branches.known.len() <= MAX_SUBSCRIPTIONS && branches.known.contains_key(&host("zz"))
        );
        branches.on_connected(&host("me"), 2_000);
        branches.next_request(2_000);
        branches.on_shard(&host("me"), true, 2_000);
        let (mut requested, mut now) = (Vec::new(), 2_000);
        while now < 14_000 {
            if let Some(Request::First(hosts)) = branches.next_request(now) {
                requested.push(hosts);
            }
            now += 100;
        }
        assert_eq!(requested[0][0], host("zz"), "one that answered before comes first");
        let position = requested.iter().position(|hosts| hosts.contains(&host("new")));
        assert!(position.is_some_and(|batch| batch < 5), "{position:?}: within ten seconds");
    }
}
