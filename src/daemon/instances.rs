//! Detects machines with the same name, by the ID that each run of a daemon draws. Clones of a disk, or containers of
//! one image, have everything else in common, even machine-id and client ID. Pure.

use std::collections::BTreeMap;

use super::status::Duplicate;
use crate::clock::is_within;
use crate::wire::{HostName, HostState, Presence};

/// The most names that are kept (R21): any client that may publish can use more. Beyond that, all names are dropped.
const MAX_HOSTS: usize = 1_000;

/// How long the status file shows a name after both machines were last seen, in milliseconds.
const SHOWN: i64 = 70_000;

/// A connection that lasted this long was not ended by another client with the same ID. In milliseconds.
const STABLE: i64 = 60_000;

/// After this many short connections in a row, a machine with the same name has the same client ID.
const MIN_EVICTIONS: u32 = 2;

/// The meaning of a presence with this host's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sighting {
    /// This daemon published it, or a former run did.
    Own,
    /// Another machine has the name.
    Namesake,
    /// Another machine has the name and the client ID: each connection ends that of the other.
    Rival,
}

/// The presences with this host's own name.
#[derive(Debug)]
pub(super) struct OwnName {
    machine: String,
    instance: String,
    /// The instance in the presence that the broker had before this daemon's: a former run or another machine.
    before: Option<String>,
    /// The broker sent this daemon's presence back. A different online presence after that is another machine's.
    confirmed: bool,
    /// The broker of this state; another broker may retain an old presence.
    broker: String,
    /// Since when the connection has been up.
    connected: Option<i64>,
    /// The number of short connections in a row.
    lost: u32,
    has_moved: bool,
}

impl OwnName {
    pub(super) fn new(machine: String, instance: String) -> Self {
        let (before, confirmed, connected, lost, has_moved) = (None, false, None, 0, false);
        let broker = String::new();
        Self { machine, instance, before, confirmed, broker, connected, lost, has_moved }
    }

    pub(super) fn connected(&mut self, broker: &impl ToString, now: i64) {
        let broker = broker.to_string();
        if self.broker != broker {
            (self.broker, self.before, self.confirmed, self.lost) = (broker, None, false, 0);
        }
        self.connected = Some(now);
    }

    pub(super) fn lost(&mut self, now: i64) {
        // A failed attempt is no eviction.
        let Some(connected) = self.connected.take() else { return };
        let short = is_within(STABLE, connected, now);
        self.lost = if short { self.lost.saturating_add(1) } else { 1 };
    }

    /// Judges a presence with this host's name. A rival is reported once, so that no client can make this host draw
    /// client IDs endlessly.
    pub(super) fn observe(&mut self, there: &Presence) -> Sighting {
        if there.instance == self.instance {
            self.confirmed = true;
            return Sighting::Own;
        }
        let is_elsewhere = !there.machine.is_empty() && there.machine != self.machine;
        let seen = if is_elsewhere { Sighting::Namesake } else { Sighting::Own };
        if there.instance.is_empty() {
            return seen;
        }
        if !self.confirmed {
            self.before = Some(there.instance.clone());
            return seen;
        }
        // A broker that lost its latest data sends the presence of a former run once more.
        if self.before.take_if(|before| *before == there.instance).is_some() {
            return seen;
        }
        if there.state == HostState::Offline && self.lost == 0 {
            return seen;
        }
        if self.lost >= MIN_EVICTIONS && !self.has_moved {
            self.has_moved = true;
            return Sighting::Rival;
        }
        Sighting::Namesake
    }
}

/// The runs of a daemon with another host's name.
#[derive(Debug)]
struct Runs {
    current: String,
    previous: Option<String>,
    /// The last two times at which a former run was online again, in milliseconds. A single one may come from a broker
    /// that lost its latest data.
    returns: [Option<i64>; 2],
}

impl Runs {
    /// When two machines were last seen, if recently.
    fn doubled(&self, now: i64) -> Option<i64> {
        let is_fresh = |at: i64| is_within(SHOWN, at, now);
        let [last, before] = self.returns;
        last.filter(|at| is_fresh(*at) && before.is_some_and(is_fresh))
    }
}

/// The names that several machines use.
#[derive(Debug, Default)]
pub(super) struct Duplicates(BTreeMap<HostName, Runs>);

impl Duplicates {
    /// Records a presence of another host at `now`; returns whether two machines have its name. A restarted daemon never
    /// has the ID of an earlier run.
    pub(super) fn observe(&mut self, host: &HostName, there: &Presence, now: i64) -> bool {
        let instance = &there.instance;
        if there.state == HostState::Offline || instance.is_empty() {
            return false;
        }
        if self.0.len() >= MAX_HOSTS && !self.0.contains_key(host) {
            self.0.clear();
        }
        let first = || Runs { current: instance.clone(), previous: None, returns: [None; 2] };
        let runs = self.0.entry(host.clone()).or_insert_with(first);
        if runs.current == *instance {
            return false;
        }
        let returned = runs.previous.as_ref() == Some(instance);
        runs.previous = Some(std::mem::replace(&mut runs.current, instance.clone()));
        if returned {
            runs.returns = [Some(now), runs.returns[0]];
        }
        returned && runs.doubled(now).is_some()
    }

    /// The names for the status file.
    pub(super) fn shown(&self, now: i64) -> Vec<Duplicate> {
        let all = self.0.iter().filter_map(|(host, runs)| Some((host, runs.doubled(now)?)));
        all.map(|(host, at)| Duplicate { host: host.to_string(), at: at.div_euclid(1000) })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_342_600_000;

    fn there(state: HostState, machine: &str, instance: &str) -> Presence {
        let (machine, instance) = (machine.to_owned(), instance.to_owned());
        Presence { state, machine, instance, ..Presence::default() }
    }

    #[derive(Clone)]
    enum Step {
        Hears(HostState, &'static str, &'static str, Sighting),
        /// The link is lost, and comes back.
        Loses,
        /// The link comes back with another broker.
        Switches,
        /// A broker cannot be reached.
        Fails,
        Waits(i64),
    }

    #[test]
    fn clone_is_distinguished_from_former_run_and_eviction_from_loss() {
        use HostState::{Offline, Online};
        use Sighting::{Namesake, Own, Rival};
        use Step::{Fails, Hears, Loses, Switches, Waits};
        let start = || vec![Hears(Offline, "m1", "old", Own), Hears(Online, "m1", "new", Own)];
        let table = [
            ("a former run's presence", vec![Hears(Online, "m1", "old", Own)]),
            ("a former run's from a broker that lost data", {
                [start(), vec![Loses, Hears(Online, "m1", "old", Own)]].concat()
            }),
            (
                "a late will of a former run",
                [start(), vec![Hears(Offline, "m1", "older", Own)]].concat(),
            ),
            ("its own will", [start(), vec![Loses, Hears(Offline, "m1", "new", Own)]].concat()),
            ("a clone", [start(), vec![Hears(Online, "m1", "clone", Namesake)]].concat()),
            ("a clone that was there first", {
                let clone = |seen| Hears(Online, "m1", "clone", seen);
                let own = Hears(Online, "m1", "new", Own);
                vec![clone(Own), own, clone(Own), clone(Namesake)]
            }),
            ("another machine", vec![Hears(Offline, "m2", "", Namesake)]),
            ("another machine of this version", vec![Hears(Online, "m2", "x", Namesake)]),
            ("no machine", vec![Hears(Online, "", "", Own)]),
            ("one loss is no eviction", {
                [start(), vec![Loses, Hears(Online, "m1", "clone", Namesake)]].concat()
            }),
            ("a clone with the same client ID, reported once", {
                let clone = Hears(Offline, "m1", "clone", Namesake);
                let twice = vec![Loses, clone, Loses, Hears(Offline, "m1", "clone", Rival)];
                [start(), twice, vec![Loses, Hears(Online, "m1", "clone", Namesake)]].concat()
            }),
            ("another machine with the same client ID", {
                [start(), vec![Loses, Loses, Hears(Online, "m2", "clone", Rival)]].concat()
            }),
            ("a broker that cannot be reached", {
                let fails = vec![Loses, Fails, Fails, Hears(Online, "m1", "x", Namesake)];
                [start(), fails].concat()
            }),
            ("an old presence on another broker", {
                let there =
                    vec![Hears(Offline, "m1", "older", Own), Hears(Online, "m1", "new", Own)];
                [start(), vec![Loses, Loses, Switches], there].concat()
            }),
            ("losses far apart", {
                let far = vec![Loses, Waits(STABLE), Loses, Hears(Online, "m1", "x", Namesake)];
                [start(), far].concat()
            }),
        ];
        for (what, steps) in table {
            let (mut name, mut now) = (OwnName::new("m1".to_owned(), "new".to_owned()), NOW);
            name.connected(&"a:1", now);
            for step in steps {
                match step {
                    Hears(state, machine, instance, expected) => {
                        let seen = name.observe(&there(state, machine, instance));
                        assert_eq!(seen, expected, "{what}: {state:?} {machine} {instance}");
                    }
                    Loses => {
                        name.lost(now);
                        name.connected(&"a:1", now);
                    }
                    Switches => {
                        name.lost(now);
                        name.connected(&"b:1", now);
                    }
                    Fails => {
                        let connected = name.connected.take();
                        name.lost(now);
                        name.connected = connected;
                    }
                    Waits(millis) => now += millis,
                }
            }
        }
    }

    #[test]
    fn name_has_two_machines_when_a_former_run_is_online_again() {
        use HostState::{Offline, Online};
        let host = HostName::new("web2").unwrap();
        let table = [
            (Online, "a", false),
            (Online, "a", false),
            (Online, "b", false), // it started again, or is another machine
            (Offline, "a", false),
            (Online, "c", false),
            (Online, "b", false), // once, as from a broker that lost its latest data
            (Online, "b", false),
            (Online, "", false),
            (Online, "c", true),
            (Online, "b", true),
        ];
        let mut names = Duplicates::default();
        for (state, instance, expected) in table {
            let seen = names.observe(&host, &there(state, "m", instance), NOW);
            assert_eq!(seen, expected, "{state:?} {instance}");
        }
        let shown = Duplicate { host: "web2".to_owned(), at: NOW / 1000 };
        assert_eq!(names.shown(NOW + SHOWN - 1), [shown]);
        assert_eq!(names.shown(NOW + SHOWN), []);
        for n in 0..3 * MAX_HOSTS {
            names.observe(&HostName::new(&format!("x{n}")).unwrap(), &there(Online, "m", "a"), NOW);
        }
        assert!(names.0.len() <= MAX_HOSTS);
    }
}
