//! Whose snapshots there are, and which to ask the broker for next: one host's branch after another. A
//! default mosquitto silently drops what goes beyond 20 messages in flight and 1,000 queued, so whoever
//! asks for all at once gets a part of it. What is missing after some seconds is asked for again, then by
//! its exact topics, too: `RabbitMQ` keeps messages, and hands out none of them for a topic with a wildcard.

use std::collections::BTreeMap;

use crate::wire::Host;

/// A branch that says nothing for so long is left for the next; in milliseconds.
const SILENCE: i64 = 2_000;

/// What is missing is asked for again after so long, and then ever more seldom up to so long; in
/// milliseconds.
const AGAIN: i64 = 4_000;
const SELDOM: i64 = 300_000;

/// The most branches that are kept in mind; no honest fleet comes near.
const MAX_BRANCHES: usize = 1_000;

#[derive(Clone, Copy, Debug)]
struct Branch {
    /// All of it was heard since this host connected.
    complete: bool,
    /// When it may be asked for, and how long after that again; in milliseconds.
    next: i64,
    pause: i64,
}

/// A branch that is to be subscribed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    /// Whose.
    pub host: Host,
    /// The broker was asked before, and did not hand it out.
    pub again: bool,
}

/// The branches of all hosts that are known.
#[derive(Debug, Default)]
pub struct Branches {
    known: BTreeMap<Host, Branch>,
    /// The one that was asked for, and when it last said something.
    asked: Option<(Host, i64)>,
    connected: bool,
}

impl Branches {
    /// The link is up: everything is to be heard anew.
    pub fn connected(&mut self, now: i64) {
        for branch in self.known.values_mut() {
            *branch = Branch { complete: false, next: now, pause: AGAIN };
        }
        (self.connected, self.asked) = (true, None);
    }

    /// The link is down.
    pub fn lost(&mut self) {
        (self.connected, self.asked) = (false, None);
    }

    /// The clock was set back: nothing waits for a time that lies far ahead now.
    pub(super) fn set_back(&mut self, now: i64) {
        for branch in self.known.values_mut() {
            branch.next = branch.next.min(now + branch.pause);
        }
        if let Some((_, at)) = &mut self.asked {
            *at = now.min(*at);
        }
    }

    /// There is such a host. Answers `false` where there is no room for it.
    pub fn found(&mut self, host: &Host, now: i64) -> bool {
        if !self.known.contains_key(host) {
            if self.known.len() >= MAX_BRANCHES {
                return false;
            }
            self.known.insert(host.clone(), Branch { complete: false, next: now, pause: AGAIN });
        }
        true
    }

    /// A part of a host's snapshot came, and all of it is known now or not.
    pub fn heard(&mut self, host: &Host, complete: bool, now: i64) {
        if let Some(branch) = self.known.get_mut(host) {
            if branch.complete && !complete {
                (branch.next, branch.pause) = (now + AGAIN, AGAIN);
            }
            branch.complete = complete;
        }
        if let Some((_, at)) = self.asked.as_mut().filter(|(asked, _)| asked == host) {
            *at = now;
        }
    }

    /// The branch that is to be subscribed to now, if any.
    pub fn next(&mut self, now: i64) -> Option<Asking> {
        if !self.connected {
            return None;
        }
        if let Some((host, at)) = &self.asked {
            let complete = self.known.get(host).is_none_or(|branch| branch.complete);
            if !complete && now - at < SILENCE {
                return None;
            }
            self.asked = None;
        }
        let due = |(_, branch): &(&Host, &mut Branch)| !branch.complete && branch.next <= now;
        let (host, branch) =
            self.known.iter_mut().filter(due).min_by_key(|(_, branch)| branch.next)?;
        let again = branch.pause > AGAIN;
        branch.next = now + branch.pause;
        branch.pause = (branch.pause * 2).min(SELDOM);
        self.asked = Some((host.clone(), now));
        Some(Asking { host: host.clone(), again })
    }

    /// How many hosts there are, and of how many everything is known.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        (self.known.len(), self.known.values().filter(|branch| branch.complete).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Host {
        Host::new(name).unwrap()
    }

    fn first(name: &str) -> Asking {
        Asking { host: host(name), again: false }
    }

    fn again(name: &str) -> Asking {
        Asking { host: host(name), again: true }
    }

    #[test]
    fn one_branch_after_another_and_what_is_missing_again() {
        let mut branches = Branches::default();
        for name in ["a", "b", "c"] {
            assert!(branches.found(&host(name), 0));
        }
        assert_eq!(branches.next(0), None, "not connected");
        branches.connected(0);
        assert_eq!(branches.next(0), Some(first("a")));
        assert_eq!(branches.next(10), None, "one at a time");
        branches.heard(&host("a"), false, 500);
        assert_eq!(branches.next(2_400), None, "it still speaks");
        branches.heard(&host("a"), true, 2_450);
        assert_eq!(branches.next(2_450), Some(first("b")));
        assert_eq!(branches.next(4_449), None);
        assert_eq!(branches.next(4_450), Some(first("c")), "b says nothing");
        branches.heard(&host("c"), true, 4_500);
        assert_eq!(branches.next(4_500), None);
        assert_eq!(branches.next(6_450), Some(again("b")), "again");
        assert_eq!(branches.next(14_449), None);
        assert_eq!(branches.next(14_450), Some(again("b")), "ever more seldom");
        branches.heard(&host("b"), true, 14_460);
        branches.heard(&host("a"), false, 15_000);
        assert_eq!(branches.next(18_999), None);
        assert_eq!(branches.next(19_000), Some(first("a")), "a part of it is missing now");
        assert_eq!(branches.count(), (3, 2));
        branches.lost();
        branches.connected(20_000);
        assert_eq!(branches.count(), (3, 0), "whatever was missed meanwhile");
    }
}
