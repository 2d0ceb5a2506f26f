//! Builds the requests for acknowledgements, collects what each host acknowledges, and renders the result as one line per
//! host and outcome, or as JSON. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::broker::fleet_client::Message;
use crate::broker::fleet_view::{FleetView, HostView};
use crate::model::{Address, HostName, Jail};
use crate::wire::{ACK_REQUEST, Ack, Action, Event};

/// The state of a ban on another host, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AckOutcome<'a> {
    Banned,
    Rejected(&'a str),
    NoJail,
    Pending,
    NoReply,
    Offline,
}

impl AckOutcome<'_> {
    /// Whether the host has decided about the ban.
    fn is_final(self) -> bool {
        self < Self::Pending
    }

    fn text(self, jail: &Jail) -> String {
        match self {
            Self::Banned => "banned".to_owned(),
            Self::NoJail => format!("not banned (no jail `{jail}`)"),
            Self::Rejected("not_shared") => {
                format!("not banned (its MQTT_JAILS or MQTT_NOT_JAILS excludes jail `{jail}`)")
            }
            Self::Rejected("never_ban") => "not banned (in its MQTT_NEVER_BAN)".to_owned(),
            Self::Rejected("ignored") => {
                "not banned (in its ignoreip, or an address of that host or of the broker)"
                    .to_owned()
            }
            Self::Rejected(reason) => format!("not banned (rejected: {reason})"),
            Self::Pending => "not banned yet (fail2ban is busy or down)".to_owned(),
            Self::NoReply => "no reply yet".to_owned(),
            Self::Offline => "offline; applies the ban when it reconnects".to_owned(),
        }
    }
}

/// The outcomes on each other host, the worst last.
type AckResults<'a> = BTreeMap<&'a HostName, BTreeMap<AckOutcome<'a>, Vec<Address>>>;

#[derive(Debug)]
pub(super) struct AckCollector {
    me: HostName,
    jail: Jail,
    /// The stamp of all requests of this run: acknowledgements of earlier runs do not count.
    stamp: i64,
    outcomes: BTreeMap<HostName, BTreeMap<Address, String>>,
}

impl AckCollector {
    pub(super) fn new(me: HostName, jail: Jail, stamp: i64) -> Self {
        Self { me, jail, stamp, outcomes: BTreeMap::new() }
    }

    /// A request is an event without a ban. Hosts that do not know its action ignore the event, because its `restored` is 1.
    pub(super) fn request(&self, address: Address) -> Message {
        let event = Event {
            action: Action::Other(ACK_REQUEST.to_owned()),
            jail: self.jail.clone(),
            address,
            bantime: 0,
            host: self.me.clone(),
            restored: 1,
            failures: 0,
            time: 0,
            stamp: self.stamp,
            reason: None,
            id: None,
            all_jails: false,
            unbans: Vec::new(),
        };
        Message::Event("ban", event.encode())
    }

    /// Stores the acknowledgements of these addresses that presences list now. A presence lists only the last
    /// acknowledgements, so the collector keeps the earlier ones.
    pub(super) fn collect(&mut self, view: &FleetView, addresses: &[Address]) {
        for (host, host_view) in view.hosts() {
            let acks = host_view.presence().into_iter().flat_map(|presence| &presence.acks);
            for ack in acks {
                let Ack { origin, stamp, address, .. } = ack;
                if *origin != self.me || *stamp != self.stamp || !addresses.contains(address) {
                    continue;
                }
                let outcomes = self.outcomes.entry(host.clone()).or_default();
                outcomes.insert(ack.address, ack.outcome.clone());
            }
        }
    }

    fn outcome(&self, host: &HostName, host_view: &HostView, address: Address) -> AckOutcome<'_> {
        let outcome = self.outcomes.get(host).and_then(|outcomes| outcomes.get(&address));
        match outcome.map(String::as_str) {
            _ if !host_view.is_online() => AckOutcome::Offline,
            Some("banned") => AckOutcome::Banned,
            Some("pending") => AckOutcome::Pending,
            Some("unknown_jail") => AckOutcome::NoJail,
            Some(reason) => AckOutcome::Rejected(reason),
            None => AckOutcome::NoReply,
        }
    }

    pub(super) fn results<'a>(
        &'a self,
        view: &'a FleetView,
        addresses: &[Address],
    ) -> AckResults<'a> {
        let mut results = AckResults::new();
        for (host, host_view) in view.hosts().iter().filter(|(host, _)| **host != self.me) {
            for address in addresses {
                let outcome = self.outcome(host, host_view, *address);
                results.entry(host).or_default().entry(outcome).or_default().push(*address);
            }
        }
        results
    }

    /// The hosts with an outcome that is not final.
    pub(super) fn unanswered<'a>(results: &AckResults<'a>) -> Vec<&'a HostName> {
        let unanswered = results
            .iter()
            .filter(|(_, outcomes)| outcomes.keys().any(|outcome| !outcome.is_final()));
        unanswered.map(|(host, _)| *host).collect()
    }

    pub(super) fn lines(&self, results: &AckResults<'_>) -> Vec<String> {
        let mut lines = Vec::new();
        for (host, outcomes) in results {
            for (outcome, addresses) in outcomes {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                let which = match outcomes.len() {
                    1 => String::new(),
                    _ => format!(": {}", addresses.join(", ")),
                };
                lines.push(format!("{host}: {}{which}", outcome.text(&self.jail)));
            }
        }
        lines
    }

    /// The acknowledgements of one address.
    pub(super) fn acks(&self, address: Address) -> Value {
        let acks = self.outcomes.iter();
        acks.filter_map(|(host, outcomes)| {
            Some((host.to_string(), outcomes.get(&address)?.clone()))
        })
        .collect()
    }

    /// Each host in one list, by its worst outcome.
    pub(super) fn to_json(results: &AckResults<'_>) -> Value {
        let mut lists = json!({
            "hosts": [], "without_jail": [], "rejected": {}, "pending": [], "no_reply": [],
            "offline": [],
        });
        for (host, outcomes) in results {
            let list = match outcomes.keys().last() {
                Some(AckOutcome::Rejected(reason)) => {
                    lists["rejected"][host.as_str()] = Value::from(*reason);
                    continue;
                }
                Some(AckOutcome::Banned) => "hosts",
                Some(AckOutcome::NoJail) => "without_jail",
                Some(AckOutcome::Pending) => "pending",
                Some(AckOutcome::NoReply) | None => "no_reply",
                Some(AckOutcome::Offline) => "offline",
            };
            lists[list].as_array_mut().into_iter().for_each(|list| list.push(host.as_str().into()));
        }
        lists
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host, the origin and stamp of its acknowledgements (without a stamp it is offline), addresses and outcomes.
    type AckingHost<'a> = (&'a str, &'a str, i64, &'a [(usize, &'a str)]);

    const STAMP: i64 = 1_795_342_588_123;

    fn address(n: usize) -> Address {
        Address::new(&format!("203.0.113.{n}")).unwrap()
    }

    /// A view in which these hosts acknowledge these addresses, and the lines and lists about all addresses.
    fn shown(hosts: &[AckingHost<'_>], addresses: &[usize]) -> (Vec<String>, Value) {
        let mut acks =
            AckCollector::new(HostName::new("web1").unwrap(), Jail::new("web").unwrap(), STAMP);
        let mut view = FleetView::default();
        let addresses: Vec<_> = addresses.iter().map(|n| address(*n)).collect();
        for (host, origin, stamp, outcomes) in hosts {
            let mut listed = Vec::new();
            for (n, outcome) in *outcomes {
                listed.push(json!(["web", address(*n).to_string(), origin, stamp, outcome]));
            }
            let state = if *stamp == 0 { "offline" } else { "online" };
            let presence = json!({ "v": 1, "state": state, "acks": listed });
            view.apply_raw(&format!("host/{host}"), presence.to_string().as_bytes());
            acks.collect(&view, &addresses);
        }
        let results = acks.results(&view, &addresses);
        let mut lists = AckCollector::to_json(&results);
        let unanswered = AckCollector::unanswered(&results);
        lists["unanswered"] = unanswered.into_iter().map(HostName::as_str).collect();
        lists["acks"] = acks.acks(addresses[0]);
        (acks.lines(&results), lists)
    }

    #[test]
    fn each_outcome_has_its_line_and_its_list() {
        let hosts: &[AckingHost<'_>] = &[
            ("a1", "web1", STAMP, &[(9, "never_ban")]),
            ("a2", "web1", STAMP, &[(9, "unknown_jail")]),
            ("a3", "web1", STAMP, &[(9, "banned")]),
            // The presence no longer lists the acknowledgement.
            ("a3", "web1", STAMP, &[]),
            ("a4", "web1", STAMP, &[(9, "banned")]),
            ("a4", "web1", STAMP, &[(9, "pending")]),
            ("a5", "web1", STAMP, &[(9, "ignored")]),
            ("a6", "web1", STAMP, &[(9, "not_shared")]),
            ("a7", "web1", STAMP, &[(9, "later")]),
            // Acknowledgements of an earlier run, of another host's request, and of another address.
            ("b1", "web1", STAMP - 1, &[(9, "banned")]),
            ("b2", "web2", STAMP, &[(9, "banned")]),
            ("b3", "web1", STAMP, &[(8, "banned")]),
            ("c1", "web1", 0, &[]),
            ("web1", "web2", STAMP, &[]),
        ];
        let (lines, lists) = shown(hosts, &[9]);
        assert_eq!(
            lines,
            [
                "a1: not banned (in its MQTT_NEVER_BAN)",
                "a2: not banned (no jail `web`)",
                "a3: banned",
                "a4: not banned yet (fail2ban is busy or down)",
                "a5: not banned (in its ignoreip, or an address of that host or of the broker)",
                "a6: not banned (its MQTT_JAILS or MQTT_NOT_JAILS excludes jail `web`)",
                "a7: not banned (rejected: later)",
                "b1: no reply yet",
                "b2: no reply yet",
                "b3: no reply yet",
                "c1: offline; applies the ban when it reconnects",
            ]
        );
        assert_eq!(
            lists,
            json!({
                "hosts": ["a3"], "without_jail": ["a2"], "pending": ["a4"],
                "no_reply": ["b1", "b2", "b3"], "offline": ["c1"],
                "rejected": {
                    "a1": "never_ban", "a5": "ignored", "a6": "not_shared", "a7": "later",
                },
                "acks": {
                    "a1": "never_ban", "a2": "unknown_jail", "a3": "banned", "a4": "pending",
                    "a5": "ignored", "a6": "not_shared", "a7": "later",
                },
                "unanswered": ["a4", "b1", "b2", "b3", "c1"],
            })
        );
    }

    #[test]
    fn host_with_several_outcomes_has_a_line_for_each_and_counts_by_the_worst() {
        let hosts: &[AckingHost<'_>] = &[
            ("a1", "web1", STAMP, &[(1, "banned"), (2, "banned"), (3, "banned")]),
            ("a2", "web1", STAMP, &[(1, "banned"), (2, "ignored"), (3, "banned")]),
            ("a3", "web1", STAMP, &[(1, "banned")]),
        ];
        let (lines, lists) = shown(hosts, &[1, 2, 3]);
        assert_eq!(
            lines,
            [
                "a1: banned",
                "a2: banned: 203.0.113.1, 203.0.113.3",
                "a2: not banned (in its ignoreip, or an address of that host or of the broker): 203.0.113.2",
                "a3: banned: 203.0.113.1",
                "a3: no reply yet: 203.0.113.2, 203.0.113.3",
            ]
        );
        assert_eq!(
            (&lists["hosts"], &lists["rejected"], &lists["no_reply"]),
            (&json!(["a1"]), &json!({ "a2": "ignored" }), &json!(["a3"]))
        );
    }
}
