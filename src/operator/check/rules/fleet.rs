//! Checks of this host among the others, from their messages: a unique name, other hosts, signing keys, clocks. Pure.

use std::collections::BTreeSet;

use super::broker::ProbeResult;
use super::host::HostFacts;
use crate::config::Topic;
use crate::guard::RejectReason;
use crate::model::HostName;
use crate::model::text::{format_duration, list};
use crate::operator::check::finding::Finding;
use crate::wire::HostState;

/// Clocks that differ by less agree, because messages take time; in seconds.
const CLOCK_TOLERANCE_SECS: i64 = 5;

/// A difference of clocks from which bans of other hosts end noticeably early or late, in seconds.
const HARMFUL_SKEW_SECS: i64 = 300;

/// The greatest age of an online host's snapshot, in seconds: hosts publish it at least every 10 minutes. The margin
/// is for a host with many shards.
const MAX_SNAPSHOT_AGE_SECS: i64 = 900;

/// The longest difference that is shown exactly, in seconds.
const MAX_SHOWN_SKEW_SECS: i64 = 3650 * 86_400;

/// The findings about this host among the others.
pub(in crate::operator::check) fn findings(
    (me, topic): (&HostName, &Topic),
    machine: &str,
    result: &ProbeResult,
    seen: &HostFacts,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut own = result.presences.iter().filter(|(host, _)| host == me);
    let is_duplicate = own
        .any(|(_, presence)| !presence.machine.is_empty() && presence.machine != machine)
        || seen.namesake;
    found.extend(seen.duplicates.iter().map(|name| duplicate_name(name).about(name)));
    if is_duplicate {
        found.push(duplicate_name(me.as_str()));
    } else {
        found.push(Finding::ok(
            "fleet_name",
            format!("this host's name {me} is unique in the fleet"),
        ));
    }
    let mut online = BTreeSet::new();
    for (host, presence) in result.presences.iter().filter(|(host, _)| host != me) {
        match presence.state {
            HostState::Online => online.insert(host.as_str()),
            HostState::Offline => online.remove(host.as_str()),
        };
    }
    let online: Vec<&str> = online.into_iter().collect();
    let text = match online.len() {
        0 => "all other hosts are offline".to_owned(),
        1..=8 => format!("other hosts online: {}", list(&online)),
        n => format!("{n} other hosts are online"),
    };
    if result.presences.iter().all(|(host, _)| host == me) {
        found.push(alone(topic, &result.other_topics));
    } else {
        found.push(Finding::ok("fleet_hosts", text));
    }
    found.extend(keys(result));
    found.extend(clocks(result, seen.clock_is_set));
    found
}

fn duplicate_name(name: &str) -> Finding {
    let text = format!("two machines have the name {name} and overwrite each other's snapshot");
    Finding::fault("fleet_name", text).next(
        "on one of them: set MQTT_NODE in /etc/fail2ban/mqtt.env\n\
         then: systemctl restart f2bmqttsub",
    )
}

/// The warning that no other host is on this topic. This state is normal for the first host of a fleet, and for a host
/// whose peers all run the scripts.
fn alone(topic: &Topic, others: &BTreeSet<String>) -> Finding {
    let others: Vec<String> = others.iter().cloned().collect();
    let topic = topic.as_str();
    let text = format!("no other host with f2bmqtt is on the topic {topic}");
    Finding::warning("fleet_hosts", text).next(if others.is_empty() {
        "MQTT_TOPIC and MQTT_HOST must be the same on every server of a fleet (this warning is normal on the first \
         server, and if all other servers run the scripts)"
            .to_owned()
    } else {
        format!("other hosts are on {}: set MQTT_TOPIC in mqtt.env, then: systemctl restart f2bmqttsub", list(&others))
    })
}

/// The hosts with another signing key, or with a key that only one side has: one side rejects the messages of the
/// other.
fn keys(result: &ProbeResult) -> Vec<Finding> {
    const KEY_FIX: &str = "set the same MQTT_SIGNING_KEY in mqtt.env on every server, then: \
                        systemctl restart f2bmqttsub";
    let refused = result.refusals.iter().map(|(host, refusal)| {
        let how = match refusal {
            RejectReason::Unsigned => "does not sign its messages",
            _ => "signs its messages with another key",
        };
        (host, format!("{host} {how}: this host rejects them"))
    });
    let signed = result.signed.iter().map(|host| {
        let text = format!(
            "{host} signs its messages, but this host does not: {host} rejects the messages of this host"
        );
        (host, text)
    });
    let all = refused.chain(signed);
    all.map(|(host, text)| Finding::fault("fleet_key", text).about(host).next(KEY_FIX)).collect()
}

/// By how many seconds a host's clock is ahead of the local clock (negative: behind), as far as a stamp proves a
/// difference. A stamp may be minutes old, but is never in the future.
fn ahead((stamp, read): (i64, i64)) -> i64 {
    match (stamp - read) / 1000 {
        ahead if ahead > CLOCK_TOLERANCE_SECS => ahead,
        behind if behind < -MAX_SNAPSHOT_AGE_SECS => behind,
        _ => 0,
    }
}

/// The text of a difference between clocks, with an upper limit: a forged stamp may be centuries away.
fn skew_text(seconds: i64) -> String {
    if seconds > MAX_SHOWN_SKEW_SECS { "10 years".to_owned() } else { format_duration(seconds) }
}

fn clocks(result: &ProbeResult, is_set: bool) -> Vec<Finding> {
    if result.stamps.is_empty() {
        return Vec::new();
    }
    let ahead = result.stamps.iter().map(|(host, times)| (host.as_str(), ahead(*times)));
    let off: Vec<(&str, i64)> = ahead.filter(|(_, ahead)| *ahead != 0).collect();
    if off.is_empty() {
        let text = "the clocks of all other hosts agree with this one";
        return vec![Finding::ok("clock", text)];
    }
    off.into_iter().map(|(host, ahead)| skewed_clock(host, ahead, is_set)).collect()
}

/// The finding about a host whose clock is this many seconds ahead; `is_set`: systemd-timesyncd has set the local
/// clock.
fn skewed_clock(host: &str, ahead: i64, is_set: bool) -> Finding {
    let text = if ahead > 0 {
        format!("the clock of {host} is at least {} ahead of this host's", skew_text(ahead))
    } else {
        format!(
            "{host} is online, but its newest snapshot is {} old: its clock is behind, or the clock of this \
             host is ahead",
            skew_text(-ahead)
        )
    };
    let severity = if ahead.abs() > HARMFUL_SKEW_SECS { Finding::fault } else { Finding::warning };
    severity("clock", text).about(&host).next(if is_set {
        "systemd-timesyncd sets the clock of this host; check the other host: timedatectl"
    } else {
        "check both hosts: timedatectl (systemd-timesyncd or chrony keeps a clock right)"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::check::finding::Status;
    use crate::wire::Presence;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    fn probe_result(presences: &[(&str, HostState, &str)], stamps: &[(&str, i64)]) -> ProbeResult {
        let mut result = ProbeResult::default();
        for (name, state, machine) in presences {
            let machine = (*machine).to_owned();
            let presence = Presence { state: *state, machine, ..Presence::default() };
            result.presences.push((host(name), presence));
        }
        result.stamps.extend(stamps.iter().map(|(name, ahead)| (host(name), (ahead * 1000, 0))));
        result
    }

    fn found(result: &ProbeResult, machine: &str) -> Vec<Finding> {
        let topic = Topic::of_fleet("blacklist").unwrap();
        findings((&host("web1"), &topic), machine, result, &HostFacts::default())
    }

    fn problem_texts(result: &ProbeResult) -> Vec<String> {
        problems(result).into_iter().map(|(_, text)| text).collect()
    }

    fn problems(result: &ProbeResult) -> Vec<(Status, String)> {
        let found = found(result, "m1").into_iter().filter(|finding| finding.id != "fleet_hosts");
        found
            .filter(|finding| finding.state != Status::Ok)
            .map(|finding| (finding.state, finding.text))
            .collect()
    }

    #[test]
    fn name_on_two_machines_is_a_fault() {
        use HostState::{Offline, Online};
        assert_eq!(
            problems(&probe_result(&[("web1", Online, "m1"), ("web2", Online, "m2")], &[])),
            []
        );
        let two = probe_result(&[("web1", Online, "m1"), ("web1", Offline, "m3")], &[]);
        assert!(problems(&two)[0].1.starts_with("two machines have the name web1 and overwrite"));
        let both = HostFacts {
            namesake: true,
            duplicates: vec!["web2".to_owned()],
            ..HostFacts::default()
        };
        let topic = Topic::of_fleet("blacklist").unwrap();
        let mut faults = findings((&host("web1"), &topic), "m1", &ProbeResult::default(), &both);
        faults.retain(|finding| finding.id == "fleet_name");
        let texts: Vec<_> = faults.iter().map(|finding| (finding.state, &*finding.text)).collect();
        let expected = ["web2", "web1"].map(|name| {
            format!("two machines have the name {name} and overwrite each other's snapshot")
        });
        assert_eq!(texts, expected.each_ref().map(|text| (Status::Fault, text.as_str())));
        assert_eq!(
            problems(&probe_result(&[("web1", Online, "")], &[])),
            [],
            "the presence has no machine"
        );
    }

    #[test]
    fn different_signing_keys_are_faults() {
        let refusals =
            [(host("a"), RejectReason::Unsigned), (host("b"), RejectReason::WrongSignature)].into();
        let expected = [
            "a does not sign its messages: this host rejects them",
            "b signs its messages with another key: this host rejects them",
        ];
        assert_eq!(problem_texts(&ProbeResult { refusals, ..ProbeResult::default() }), expected);
        let signed = [host("c")].into();
        let expected =
            "c signs its messages, but this host does not: c rejects the messages of this host";
        assert_eq!(problem_texts(&ProbeResult { signed, ..ProbeResult::default() }), [expected]);
    }

    #[test]
    fn online_hosts_are_listed() {
        use HostState::{Offline, Online};
        let result =
            probe_result(&[("a", Online, "x"), ("b", Online, "y"), ("a", Offline, "x")], &[]);
        assert_eq!(found(&result, "m1")[1].text, "other hosts online: b");
        let offline = probe_result(&[("a", Offline, "x")], &[]);
        assert_eq!(found(&offline, "m1")[1].text, "all other hosts are offline");
    }

    #[test]
    fn host_that_is_alone_on_its_topic_is_warned_with_the_topics_of_others() {
        let mut own = probe_result(&[("web1", HostState::Online, "m1")], &[]);
        let hosts = &found(&own, "m1")[1];
        let text = "no other host with f2bmqtt is on the topic blacklist";
        assert_eq!(
            (hosts.id, hosts.state, hosts.text.as_str()),
            ("fleet_hosts", Status::Warning, text)
        );
        assert!(hosts.next[0].starts_with("MQTT_TOPIC and MQTT_HOST must be the same"));
        own.other_topics = ["black", "mail"].map(str::to_owned).into();
        let next = &found(&own, "m1")[1].next[0];
        assert!(next.starts_with("other hosts are on black and mail: set MQTT_TOPIC"), "{next}");
    }

    #[test]
    fn clock_is_reported_only_as_far_as_stamps_prove() {
        type ClockCase = (&'static [(&'static str, i64)], Option<(Status, &'static str)>);
        let table: [ClockCase; 7] = [
            (&[("a", 0), ("b", -600)], None),
            (&[("a", 4)], None),
            (
                &[("a", 60), ("b", 0)],
                Some((Status::Warning, "the clock of a is at least 1m ahead")),
            ),
            (&[("a", 600)], Some((Status::Fault, "the clock of a is at least 10m ahead"))),
            (
                &[("a", -4000), ("b", 0)],
                Some((Status::Fault, "a is online, but its newest snapshot is 1h 6m old")),
            ),
            (
                &[("a", 250_000_000_000), ("b", 0)],
                Some((Status::Fault, "the clock of a is at least 10 years ahead")),
            ),
            (
                &[("a", -1_800_000_000), ("b", 0)],
                Some((Status::Fault, "a is online, but its newest snapshot is 10 years old")),
            ),
        ];
        for (stamps, expected) in table {
            let found = problems(&probe_result(&[], stamps));
            match expected {
                None => assert_eq!(found, [], "{stamps:?}"),
                Some((state, text)) => {
                    assert_eq!(found.len(), 1, "{found:?}");
                    assert!(found[0].0 == state && found[0].1.starts_with(text), "{found:?}");
                }
            }
        }
    }
}
