//! What is asked of the broker, and when there is all of it. Pure: messages go in with the time, topics
//! to ask for come out.
//!
//! First the presence of every host and part 0 of every snapshot, which says how many parts there are;
//! then the branches that have more, a few at a time: a default mosquitto silently drops what goes beyond
//! 1,000 messages. No message says that it is the last one, so what is there is all when nothing is
//! missing and nothing has come for a moment.
//!
//! `RabbitMQ` keeps messages, and hands out none of them for a topic with a wildcard: what is still missing is
//! asked for by its exact topics, too.

use std::collections::BTreeMap;
use std::time::Duration;

use super::view::{FleetView, Update};
use crate::guard::gate::Admitted;
use crate::wire::HostName;

/// Longer it does not take, in milliseconds.
const LIMIT: i64 = 4_000;

/// The most branches that are asked for at once, and the most parts that may come of them.
const BRANCHES: usize = 32;
const PARTS: u32 = 256;

/// How often a branch is asked for.
const MAX_ATTEMPTS: u32 = 2;

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum FetchStep {
    /// Ask for the branches of these hosts.
    Ask(Vec<HostName>),
    /// Listen until then, in milliseconds.
    Listen(i64),
    /// There is no more to come.
    Done,
}

/// What is gathered.
#[derive(Debug)]
pub struct SnapshotFetch {
    /// What was heard so far.
    pub view: FleetView,
    /// How long a broker that has more may be silent, in milliseconds.
    quiet: i64,
    began: i64,
    /// When something came or was asked for last.
    last: i64,
    asked: BTreeMap<HostName, u32>,
}

impl SnapshotFetch {
    /// What is to be asked for first, below the fleet's retained branch.
    pub const FIRST: [&str; 2] = ["host/+", "state/+/0"];

    /// Begins now, in a fleet whose messages are signed or not; the broker takes so long to answer, in
    /// milliseconds.
    #[must_use]
    pub fn new(signed: bool, answers: i64, now: i64) -> Self {
        let quiet = (100 + 2 * answers).min(LIMIT / 4);
        Self { view: FleetView::new(signed), quiet, began: now, last: now, asked: BTreeMap::new() }
    }

    /// Takes a message; `time` is the time of day, in milliseconds since 1970.
    pub fn hear(&mut self, message: &Admitted, now: i64, time: i64) -> Update {
        let heard = self.view.hear(message, time);
        if heard != Update::Nothing {
            self.last = now;
        }
        heard
    }

    /// Says what is next.
    pub fn next(&mut self, now: i64) -> FetchStep {
        if now - self.began >= LIMIT {
            return FetchStep::Done;
        }
        let is_quiet = now - self.last >= self.quiet;
        let wanted = self.wanted(is_quiet);
        if !wanted.is_empty() {
            for host in &wanted {
                *self.asked.entry(host.clone()).or_default() += 1;
            }
            self.last = now;
            return FetchStep::Ask(wanted);
        }
        if is_quiet {
            return FetchStep::Done;
        }
        FetchStep::Listen((self.last + self.quiet).min(self.began + LIMIT))
    }

    /// What is to be asked for of a host, below the fleet's retained branch.
    #[must_use]
    pub fn topics(&self, host: &HostName) -> Vec<String> {
        let mut topics = vec![format!("state/{host}/+")];
        match self.view.hosts().get(host) {
            None => topics.extend([format!("host/{host}"), format!("state/{host}/0")]),
            Some(member) if self.asked.get(host).is_some_and(|asked| *asked > 1) => {
                let there: Vec<u32> = member.numbers().collect();
                let missing = (0..member.count().max(1)).filter(|number| !there.contains(number));
                topics.extend(missing.map(|number| format!("state/{host}/{number}")));
            }
            Some(_) => {}
        }
        topics
    }

    /// More was asked for: the broker may take its time again.
    pub fn requested(&mut self, now: i64) {
        self.last = now;
    }

    /// How long a broker that has more may be silent.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.quiet.cast_unsigned())
    }

    /// The branches that have more parts than they had, since all was there.
    pub fn new_shards(&mut self) -> Vec<HostName> {
        let wanted = self.wanted(false);
        for host in &wanted {
            *self.asked.entry(host.clone()).or_default() += 1;
        }
        wanted
    }

    /// The branches to ask for: those that have more parts, and, if nobody says anything any more, those
    /// of which parts or all are still missing.
    fn wanted(&self, is_quiet: bool) -> Vec<HostName> {
        let (mut branches, mut parts, mut wanted) = (0, 0, Vec::new());
        for (host, member) in self.view.hosts() {
            let asked = self.asked.get(host).copied().unwrap_or(0);
            let more = match (member.missing(), member.count()) {
                (0, 0) => is_quiet && asked == 0,
                (0, _) => false,
                _ => asked == 0 || is_quiet && asked < MAX_ATTEMPTS,
            };
            if more {
                wanted.push((host, member.missing()));
            } else if asked > 0 && member.missing() > 0 && !is_quiet {
                (branches, parts) = (branches + 1, parts + member.missing());
            }
        }
        let fits = |(host, missing): (&HostName, u32)| {
            (branches, parts) = (branches + 1, parts + missing);
            let alone = branches == 1;
            (alone || branches <= BRANCHES && parts <= PARTS).then(|| host.clone())
        };
        wanted.into_iter().map_while(fits).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::gate::tests::admit;

    const TIME: i64 = 1_795_342_600_000;

    /// What a broker keeps: for each host how many parts, of which it hands out so many.
    fn gathered(hosts: &[(&str, u32, u32)]) -> (Vec<Vec<String>>, SnapshotFetch) {
        let (mut gathering, mut asked, mut now) = (SnapshotFetch::new(false, 5, 0), Vec::new(), 0);
        let part = |host: &str, n: u32, parts: u32| {
            format!(r#"{{"v":1,"host":"{host}","stamp":5,"part":{n},"parts":{parts},"bans":[]}}"#)
        };
        for (host, parts, _) in hosts {
            let online = br#"{"v":1,"state":"online"}"#;
            gathering.hear(&admit(&format!("host/{host}"), online).unwrap(), now, TIME);
            if *parts > 0 {
                let part = part(host, 0, *parts);
                let part = admit(&format!("state/{host}/0"), part.as_bytes()).unwrap();
                gathering.hear(&part, now, TIME);
            }
        }
        loop {
            match gathering.next(now) {
                FetchStep::Done => return (asked, gathering),
                FetchStep::Listen(until) => {
                    assert!(until > now);
                    now = until;
                }
                FetchStep::Ask(branches) => {
                    let names: Vec<_> =
                        branches.iter().map(|host| host.as_str().to_owned()).collect();
                    for name in &names {
                        let (_, parts, there) =
                            hosts.iter().find(|(host, ..)| host == name).unwrap();
                        for n in 0..*there {
                            let topic = format!("state/{name}/{n}");
                            let part = part(name, n, *parts);
                            gathering.hear(&admit(&topic, part.as_bytes()).unwrap(), now + 1, TIME);
                        }
                    }
                    asked.push(names);
                    now += 1;
                }
            }
        }
    }

    #[test]
    fn snapshots_of_one_part_are_there_at_once() {
        let (asked, gathering) = gathered(&[("a", 1, 1), ("b", 1, 1)]);
        assert!(asked.is_empty());
        assert_eq!(gathering.view.hosts().len(), 2);
        assert!(gathering.view.missing().is_empty() && gathering.last == 0);
    }

    #[test]
    fn branches_with_more_parts_are_asked_for_and_only_so_many_at_once() {
        let (asked, gathering) = gathered(&[("a", 1, 1), ("b", 4, 4), ("c", 2, 2)]);
        assert_eq!(asked, [["b", "c"]]);
        assert!(gathering.view.missing().is_empty());
        let (asked, gathering) = gathered(&[("a", 512, 512), ("b", 128, 128), ("c", 128, 128)]);
        assert_eq!(asked, [vec!["a"], vec!["b", "c"]]);
        assert!(gathering.view.missing().is_empty());
    }

    #[test]
    fn what_is_missing_is_asked_for_again_and_then_said() {
        let (asked, gathering) = gathered(&[("a", 4, 3), ("b", 0, 0), ("c", 1, 1)]);
        assert_eq!(asked, [vec!["a"], vec!["a", "b"]]);
        assert_eq!(gathering.view.missing(), ["1 of 4 parts of a's snapshot"]);
        let topics = |name: &str| gathering.topics(&HostName::new(name).unwrap());
        assert_eq!(topics("a"), ["state/a/+", "state/a/3"]);
        assert_eq!(topics("c"), ["state/c/+"]);
        assert_eq!(topics("d"), ["state/d/+", "host/d", "state/d/0"], "nothing was handed out");
    }
}
