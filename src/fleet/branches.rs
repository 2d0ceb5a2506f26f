//! Whose snapshots there are, and which to ask the broker for next. A default mosquitto silently drops what goes
//! beyond 20 messages in flight and 1,000 queued, so a client that asks for all at once gets a part of it.
//!
//! First the first shard of every host is asked for, many hosts at once: for most it is all. Then, one host
//! after another, the branches of those whose first shard says that there is more. What is missing after some
//! seconds is asked for again, also by its exact topics: `RabbitMQ` keeps messages, and hands out none of them
//! for a topic with a wildcard.
//!
//! Anybody who may publish can name hosts that are not there. They are asked for after those that answered
//! before, and give way to others where there are too many.

use std::collections::{BTreeMap, BTreeSet};

use crate::wire::HostName;

/// A broker that hands out nothing more for so long has no more; in milliseconds.
const SILENCE: i64 = 2_000;

/// What is missing is asked for again after so long, and then ever more seldom up to so long; in
/// milliseconds.
const AGAIN: i64 = 4_000;
const SELDOM: i64 = 300_000;

/// The most branches that are kept in mind; no honest fleet comes near.
pub(super) const MAX_BRANCHES: usize = 1_000;

/// How many of those that never answered give way at once where there are too many.
const GIVE_WAY: usize = 50;

/// The most first shards that are asked for at once, each of about 16 KiB.
const MAX_FIRST: usize = 200;

#[derive(Clone, Copy, Debug)]
struct PeerSubscription {
    /// A shard of it was heard, on this connection or before.
    answered: bool,
    /// All of it was heard since this host connected.
    complete: bool,
    /// Its first shard was asked for since this host connected.
    first: bool,
    /// When it may be asked for, and how long after that again; in milliseconds.
    next: i64,
    pause: i64,
    /// When it was heard of last, in milliseconds.
    heard: i64,
}

impl PeerSubscription {
    fn new(now: i64) -> Self {
        let (answered, complete, first) = (false, false, false);
        Self { answered, complete, first, next: now, pause: AGAIN, heard: now }
    }
}

/// What is to be subscribed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first shards of these hosts.
    First(Vec<HostName>),
    /// All of a host's branch. `again`: the broker was asked before, and did not hand it out.
    All {
        /// Whose.
        host: HostName,
        #[allow(missing_docs)]
        again: bool,
    },
}

/// The branches of all hosts that are known.
#[derive(Debug, Default)]
pub struct SubscriptionScheduler {
    known: BTreeMap<HostName, PeerSubscription>,
    /// Those that were asked for and have not said all, and when one of them last said something.
    asked: BTreeSet<HostName>,
    /// Only their first shards were asked for.
    asked_first: bool,
    last: i64,
    connected: bool,
}

impl SubscriptionScheduler {
    /// The link is up: everything is to be heard again. **This host's own branch first**: what it said
    /// before and has forgotten is there only until it publishes again.
    pub fn connected(&mut self, me: &HostName, now: i64) {
        for branch in self.known.values_mut() {
            *branch = PeerSubscription { answered: branch.answered, ..PeerSubscription::new(now) };
        }
        let mine = PeerSubscription {
            first: true,
            answered: true,
            next: i64::MIN,
            ..PeerSubscription::new(now)
        };
        self.known.insert(me.clone(), mine);
        self.connected = true;
        self.asked.clear();
    }

    /// The link is down.
    pub fn lost(&mut self) {
        self.connected = false;
        self.asked.clear();
    }

    /// The clock was set back: nothing waits for a time that lies far ahead now.
    pub(super) fn set_back(&mut self, now: i64) {
        for branch in self.known.values_mut() {
            branch.next = branch.next.min(now + branch.pause);
            branch.heard = branch.heard.min(now);
        }
        self.last = self.last.min(now);
    }

    /// There is such a host. Answers `false` where there is no room for it.
    pub fn found(&mut self, host: &HostName, now: i64) -> bool {
        if let Some(branch) = self.known.get_mut(host) {
            branch.heard = now;
            return true;
        }
        if self.known.len() >= MAX_BRANCHES {
            let silent = self.known.iter().filter(|(_, branch)| !branch.answered);
            let mut silent: Vec<_> =
                silent.map(|(host, branch)| (branch.heard, host.clone())).collect();
            silent.sort_unstable();
            if silent.is_empty() {
                return false;
            }
            for (_, host) in silent.into_iter().take(GIVE_WAY) {
                self.known.remove(&host);
                self.asked.remove(&host);
            }
        }
        self.known.insert(host.clone(), PeerSubscription::new(now));
        true
    }

    pub(super) fn knows(&self, host: &HostName) -> bool {
        self.known.contains_key(host)
    }

    /// Whether a host is new, and has to take the place of others.
    pub(super) fn is_full_for(&self, host: &HostName) -> bool {
        self.known.len() >= MAX_BRANCHES && !self.known.contains_key(host)
    }

    /// A part of a host's snapshot came, and all of it is known now or not.
    pub fn heard(&mut self, host: &HostName, complete: bool, now: i64) {
        if let Some(branch) = self.known.get_mut(host) {
            if branch.complete && !complete {
                (branch.next, branch.pause) = (now + AGAIN, AGAIN);
            } else if !branch.answered && !complete {
                branch.next = branch.next.min(now);
            }
            (branch.complete, branch.answered, branch.heard) = (complete, true, now);
        }
        if self.asked.contains(host) {
            self.last = now;
            if complete || self.asked_first {
                self.asked.remove(host);
            }
        }
    }

    /// What is to be subscribed to now, if anything.
    pub fn next(&mut self, now: i64) -> Option<Request> {
        let waits = !self.asked.is_empty() && now - self.last < SILENCE;
        if !self.connected || waits {
            return None;
        }
        self.asked.clear();
        let asking = self.own_branch(now).or_else(|| self.first(now)).or_else(|| self.all(now))?;
        self.last = now;
        Some(asking)
    }

    fn own_branch(&mut self, now: i64) -> Option<Request> {
        let mut own = self.known.iter().filter(|(_, branch)| branch.next == i64::MIN);
        let host = own.next().filter(|(_, branch)| !branch.complete)?.0.clone();
        Some(self.ask_all(host, now))
    }

    /// The first shards that were not asked for yet, those first that answered before.
    fn first(&mut self, now: i64) -> Option<Request> {
        let of = self.known.iter().filter(|(_, branch)| !branch.first && !branch.complete);
        let mut hosts: Vec<_> = of.map(|(host, branch)| (!branch.answered, host.clone())).collect();
        hosts.sort_unstable();
        hosts.truncate(MAX_FIRST);
        let hosts: Vec<HostName> = hosts.into_iter().map(|(_, host)| host).collect();
        for host in &hosts {
            if let Some(branch) = self.known.get_mut(host) {
                (branch.first, branch.next) = (true, now + branch.pause);
            }
        }
        self.asked.extend(hosts.iter().cloned());
        self.asked_first = true;
        (!hosts.is_empty()).then_some(Request::First(hosts))
    }

    /// The branch of which something is missing, of those first that answered before.
    fn all(&mut self, now: i64) -> Option<Request> {
        let due =
            |(_, branch): &(&HostName, &PeerSubscription)| !branch.complete && branch.next <= now;
        let due = self.known.iter().filter(due);
        let (host, _) = due.min_by_key(|(_, branch)| (!branch.answered, branch.next))?;
        let host = host.clone();
        Some(self.ask_all(host, now))
    }

    fn ask_all(&mut self, host: HostName, now: i64) -> Request {
        let mut again = false;
        if let Some(branch) = self.known.get_mut(&host) {
            again = branch.pause > AGAIN;
            branch.next = now + branch.pause;
            branch.pause = (branch.pause * 2).min(SELDOM);
        }
        self.asked.insert(host.clone());
        self.asked_first = false;
        Request::All { host, again }
    }

    /// How many hosts there are, and of how many everything is known.
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
    fn first_shards_are_asked_for_together_and_the_rest_one_branch_at_a_time() {
        let mut branches = SubscriptionScheduler::default();
        for name in ["a", "b", "c"] {
            assert!(branches.found(&host(name), 0));
        }
        assert_eq!(branches.next(0), None, "not connected");
        branches.connected(&host("me"), 0);
        assert_eq!(branches.next(0), Some(all("me", false)), "its own first");
        branches.heard(&host("me"), true, 0);
        assert_eq!(branches.next(0), Some(first(&["a", "b", "c"])));
        assert_eq!(branches.next(10), None);
        branches.heard(&host("a"), true, 500);
        branches.heard(&host("b"), false, 600);
        assert_eq!(branches.next(2_500), None, "c may still answer");
        assert_eq!(branches.next(2_600), Some(all("b", false)), "there is more of it");
        assert_eq!(branches.next(4_500), None, "one at a time");
        branches.heard(&host("b"), true, 4_550);
        assert_eq!(branches.next(4_550), Some(all("c", false)), "c says nothing");
        assert_eq!(branches.next(8_549), None);
        assert_eq!(branches.next(8_550), Some(all("c", true)), "again");
        assert_eq!(branches.next(16_549), None);
        assert_eq!(branches.next(16_550), Some(all("c", true)), "ever more seldom");
        branches.heard(&host("c"), true, 16_560);
        branches.heard(&host("a"), false, 17_000);
        assert_eq!(branches.next(20_999), None);
        assert_eq!(branches.next(21_000), Some(all("a", false)), "a part of it is missing now");
        assert_eq!(branches.count(), (4, 3));
        branches.lost();
        branches.connected(&host("me"), 30_000);
        assert_eq!(branches.count(), (4, 0), "whatever was missed meanwhile");
    }

    #[test]
    fn hosts_that_never_answer_keep_no_other_waiting() {
        let mut branches = SubscriptionScheduler::default();
        branches.found(&host("zz"), 0);
        branches.heard(&host("zz"), true, 0);
        for n in 0..1_500 {
            assert!(branches.found(&host(&format!("fake{n:04}")), n));
        }
        assert!(branches.found(&host("new"), 1_500));
        assert!(branches.known.len() <= MAX_BRANCHES && branches.known.contains_key(&host("zz")));
        branches.connected(&host("me"), 2_000);
        branches.next(2_000);
        branches.heard(&host("me"), true, 2_000);
        let (mut asked, mut now) = (Vec::new(), 2_000);
        while now < 14_000 {
            if let Some(Request::First(hosts)) = branches.next(now) {
                asked.push(hosts);
            }
            now += 100;
        }
        assert_eq!(asked[0][0], host("zz"), "one that answered before comes first");
        let position = asked.iter().position(|hosts| hosts.contains(&host("new")));
        assert!(position.is_some_and(|batch| batch < 5), "{position:?}: within ten seconds");
    }
}
