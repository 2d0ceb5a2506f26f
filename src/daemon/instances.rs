//! Detects machines with the same name, by the ID that each run of a daemon draws. Clones of a disk, or containers of
//! one image, have everything else in common, even machine-id and client ID. Pure.

use std::collections::BTreeMap;

use super::status::Duplicate;
use crate::model::HostName;
use crate::sys::clock::is_within;
use crate::wire::{HostState, Presence};

/// The most names that are kept (R21): any client that may publish can use more. Beyond that, all names are dropped.
const MAX_HOSTS: usize = 1_000;

/// How long the status file shows a name after both machines were last seen.
const DISPLAY_MILLIS: i64 = 70_000;

/// A connection that lasted this long was not ended by another client with the same ID.
const STABLE_MILLIS: i64 = 60_000;

/// After this many short connections in a row, a machine with the same name has the same client ID.
const MIN_EVICTIONS: u32 = 2;

/// The meaning of a presence with this host's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sighting {
    /// This daemon published it, or a former run did.
    Own,
    /// Another machine has the name.
    Namesake,
    /// Another machine has the name and the client ID: each new connection of one machine ends the connection of the
    /// other.
    Rival,
}

/// The presences with this host's own name.
#[derive(Debug)]
pub(super) struct OwnName {
    machine: String,
    instance: String,
    /// The instance in the presence that the broker had before this daemon's: a former run or another machine.
    former_instance: Option<String>,
    /// The broker sent this daemon's presence back. A different online presence after that is another machine's.
    confirmed: bool,
    /// The broker of this state; another broker may retain an old presence.
    broker: String,
    /// Since when the connection has been up.
    connected_at: Option<i64>,
    /// The number of short connections in a row.
    evictions: u32,
    /// Whether a rival was reported.
    has_moved: bool,
}

impl OwnName {
    pub(super) fn new(machine: String, instance: String) -> Self {
        Self {
            machine,
            instance,
            former_instance: None,
            confirmed: false,
            broker: String::new(),
            connected_at: None,
            evictions: 0,
            has_moved: false,
        }
    }

    pub(super) fn on_connected(&mut self, broker: &impl ToString, now: i64) {
        let broker = broker.to_string();
        if self.broker != broker {
            self.broker = broker;
            (self.former_instance, self.confirmed, self.evictions) = (None, false, 0);
        }
        self.connected_at = Some(now);
    }

    pub(super) fn on_lost(&mut self, now: i64) {
        // A failed attempt is no eviction.
        let Some(connected_at) = self.connected_at.take() else { return };
        let is_short = is_within(STABLE_MILLIS, connected_at, now);
        self.evictions = if is_short { self.evictions.saturating_add(1) } else { 1 };
    }

    /// Judges a presence with this host's name. A rival is reported once, so that no client can make this host draw
    /// client IDs endlessly.
    pub(super) fn observe(&mut self, presence: &Presence) -> Sighting {
        if presence.instance == self.instance {
            self.confirmed = true;
            return Sighting::Own;
        }
        let is_other_machine = !presence.machine.is_empty() && presence.machine != self.machine;
        let sighting = if is_other_machine { Sighting::Namesake } else { Sighting::Own };
        if presence.instance.is_empty() {
            return sighting;
        }
        if !self.confirmed {
            self.former_instance = Some(presence.instance.clone());
            return sighting;
        }
        // A broker that lost its latest data sends the presence of a former run once more.
        if self.former_instance.take_if(|former| *former == presence.instance).is_some() {
            return sighting;
        }
        // Without an eviction, an offline presence may be the late last will of a former run.
        if presence.state == HostState::Offline && self.evictions == 0 {
            return sighting;
        }
        if self.evictions >= MIN_EVICTIONS && !self.has_moved {
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
    fn last_seen_twice(&self, now: i64) -> Option<i64> {
        let [last, second_last] = self.returns;
        let is_repeated = second_last.is_some_and(|at| is_within(DISPLAY_MILLIS, at, now));
        last.filter(|at| is_within(DISPLAY_MILLIS, *at, now) && is_repeated)
    }
}

/// The names that several machines use.
#[derive(Debug, Default)]
pub(super) struct Duplicates(BTreeMap<HostName, Runs>);

impl Duplicates {
    /// Records a presence of another host at `now`; returns whether two machines have its name. A restarted daemon
    /// never has the ID of an earlier run.
    pub(super) fn observe(&mut self, host: &HostName, presence: &Presence, now: i64) -> bool {
        let instance = &presence.instance;
        if presence.state == HostState::Offline || instance.is_empty() {
            return false;
        }
        if self.0.len() >= MAX_HOSTS && !self.0.contains_key(host) {
            self.0.clear();
        }
        let runs = self.0.entry(host.clone()).or_insert_with(|| Runs {
            current: instance.clone(),
            previous: None,
            returns: [None; 2],
        });
        if runs.current == *instance {
            return false;
        }
        let has_returned = runs.previous.as_ref() == Some(instance);
        runs.previous = Some(std::mem::replace(&mut runs.current, instance.clone()));
        if has_returned {
            runs.returns = [Some(now), runs.returns[0]];
        }
        has_returned && runs.last_seen_twice(now).is_some()
    }

    /// The names for the status file.
    pub(super) fn recent(&self, now: i64) -> Vec<Duplicate> {
        let duplicates = self.0.iter().filter_map(|(host, runs)| {
            let at = runs.last_seen_twice(now)?.div_euclid(1000);
            Some(Duplicate { host: host.to_string(), at })
        });
        duplicates.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_342_600_000;

    fn presence(state: HostState, machine: &str, instance: &str) -> Presence {
        let (machine, instance) = (machine.to_owned(), instance.to_owned());
        Presence { state, machine, instance, ..Presence::default() }
    }

    #[derive(Clone)]
    enum Step {
        /// A presence arrives: its state, machine and instance, and the expected meaning.
        Receives(HostState, &'static str, &'static str, Sighting),
        /// The link is lost, and comes back.
        Reconnects,
        /// The link comes back with another broker.
        SwitchesBroker,
        /// A broker cannot be reached.
        FailsToConnect,
        /// In milliseconds.
        Waits(i64),
    }

    /// The steps after a start: the broker has the presence of the former run, and sends this run's back.
    fn after_start(steps: &[Step]) -> Vec<Step> {
        let former = Step::Receives(HostState::Offline, "m1", "old", Sighting::Own);
        let own = Step::Receives(HostState::Online, "m1", "new", Sighting::Own);
        [&[former, own], steps].concat()
    }

    #[test]
    fn clone_is_distinguished_from_former_run_and_eviction_from_loss() {
        use HostState::{Offline, Online};
        use Sighting::{Namesake, Own, Rival};
        use Step::{FailsToConnect, Receives, Reconnects, SwitchesBroker, Waits};
        let table = [
            ("a former run's presence", vec![Receives(Online, "m1", "old", Own)]),
            (
                "a former run's from a broker that lost data",
                after_start(&[Reconnects, Receives(Online, "m1", "old", Own)]),
            ),
            ("a late will of a former run", after_start(&[Receives(Offline, "m1", "older", Own)])),
            ("its own will", after_start(&[Reconnects, Receives(Offline, "m1", "new", Own)])),
            ("a clone", after_start(&[Receives(Online, "m1", "clone", Namesake)])),
            (
                "a clone that was there first",
                vec![
                    Receives(Online, "m1", "clone", Own),
                    Receives(Online, "m1", "new", Own),
                    Receives(Online, "m1", "clone", Own),
                    Receives(Online, "m1", "clone", Namesake),
                ],
            ),
            ("another machine", vec![Receives(Offline, "m2", "", Namesake)]),
            ("another machine of this version", vec![Receives(Online, "m2", "x", Namesake)]),
            ("no machine", vec![Receives(Online, "", "", Own)]),
            (
                "one loss is no eviction",
                after_start(&[Reconnects, Receives(Online, "m1", "clone", Namesake)]),
            ),
            (
                "a clone with the same client ID, reported once",
                after_start(&[
                    Reconnects,
                    Receives(Offline, "m1", "clone", Namesake),
                    Reconnects,
                    Receives(Offline, "m1", "clone", Rival),
                    Reconnects,
                    Receives(Online, "m1", "clone", Namesake),
                ]),
            ),
            (
                "another machine with the same client ID",
                after_start(&[Reconnects, Reconnects, Receives(Online, "m2", "clone", Rival)]),
            ),
            (
                "a broker that cannot be reached",
                after_start(&[
                    Reconnects,
                    FailsToConnect,
                    FailsToConnect,
                    Receives(Online, "m1", "x", Namesake),
                ]),
            ),
            (
                "an old presence on another broker",
                after_start(&[
                    Reconnects,
                    Reconnects,
                    SwitchesBroker,
                    Receives(Offline, "m1", "older", Own),
                    Receives(Online, "m1", "new", Own),
                ]),
            ),
            (
                "losses far apart",
                after_start(&[
                    Reconnects,
                    Waits(STABLE_MILLIS),
                    Reconnects,
                    Receives(Online, "m1", "x", Namesake),
                ]),
            ),
        ];
        for (what, steps) in table {
            let (mut name, mut now) = (OwnName::new("m1".to_owned(), "new".to_owned()), NOW);
            name.on_connected(&"a:1", now);
            for step in steps {
                match step {
                    Receives(state, machine, instance, expected) => {
                        let sighting = name.observe(&presence(state, machine, instance));
                        assert_eq!(sighting, expected, "{what}: {state:?} {machine} {instance}");
                    }
                    Reconnects => {
                        name.on_lost(now);
                        name.on_connected(&"a:1", now);
                    }
                    SwitchesBroker => {
                        name.on_lost(now);
                        name.on_connected(&"b:1", now);
                    }
                    FailsToConnect => {
                        let connected_at = name.connected_at.take();
                        name.on_lost(now);
                        name.connected_at = connected_at;
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
            let is_duplicate = names.observe(&host, &presence(state, "m", instance), NOW);
            assert_eq!(is_duplicate, expected, "{state:?} {instance}");
        }
        let expected = Duplicate { host: "web2".to_owned(), at: NOW / 1000 };
        assert_eq!(names.recent(NOW + DISPLAY_MILLIS - 1), [expected]);
        assert_eq!(names.recent(NOW + DISPLAY_MILLIS), []);
        for n in 0..3 * MAX_HOSTS {
            names.observe(
                &HostName::new(&format!("x{n}")).unwrap(),
                &presence(Online, "m", "a"),
                NOW,
            );
        }
        assert!(names.0.len() <= MAX_HOSTS);
    }
}
