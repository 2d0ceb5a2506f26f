//! What the others' words tell of this host: whether its name is its own, who else is there, and
//! whether the clocks agree. Pure.

use std::collections::BTreeSet;

use super::broker::ProbeResult;
use super::finding::Finding;
use super::host::HostFacts as SpoolVisibility;
use crate::config::Topic;
use crate::guard::RejectReason;
use crate::text::{format_duration, list};
use crate::wire::{HostName, HostState};

/// Clocks that differ by less, in seconds, are as good as one: messages take their time.
const SLACK: i64 = 5;

/// From here on, in seconds, bans of others end too early or too late by it.
const HARM: i64 = 300;

/// A host that is online publishes its snapshot anew at least so often, in seconds; with some more
/// for one that has much to publish.
const OLDEST: i64 = 900;

/// From here on, in seconds, nobody wants to know by how much.
const MANY_YEARS: i64 = 3650 * 86_400;

/// What is to be said of this host among the others.
pub(super) fn findings(
    (me, topic): (&HostName, &Topic),
    machine: &str,
    heard: &ProbeResult,
    seen: &SpoolVisibility,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let others = |there: &str| !there.is_empty() && there != machine;
    let mut own = heard.presences.iter().filter(|(host, _)| host == me);
    let twice = |name: &str| {
        let text = format!("two machines have the name {name} and overwrite each other's snapshot");
        Finding::fault("fleet_name", text).next(
            "on one of them: set MQTT_NODE in /etc/fail2ban/mqtt.env\n\
             then: systemctl restart f2bmqttsub",
        )
    };
    found.extend(seen.duplicates.iter().map(|name| twice(name).about(name)));
    if seen.namesake || own.any(|(_, there)| others(&there.machine)) {
        found.push(twice(me.as_str()));
    } else {
        found.push(Finding::ok(
            "fleet_name",
            format!("this host's name {me} is unique in the fleet"),
        ));
    }
    let mut online = BTreeSet::new();
    for (host, there) in heard.presences.iter().filter(|(host, _)| host != me) {
        match there.state {
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
    if heard.presences.iter().all(|(host, _)| host == me) {
        found.push(alone(topic, &heard.other_topics));
    } else {
        found.push(Finding::ok("fleet_hosts", text));
    }
    found.extend(keys(heard));
    found.extend(clocks(heard, seen.clock_is_set));
    found
}

/// No other host is on this topic. The first host of a fleet is, too, and one among hosts with the scripts.
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

/// Whether all sign alike: who has another key is heard by nobody here, or hears nobody from here.
fn keys(heard: &ProbeResult) -> Vec<Finding> {
    const NEXT: &str = "set the same MQTT_SIGNING_KEY in mqtt.env on every server, then: \
                        systemctl restart f2bmqttsub";
    let refused = heard.refusals.iter().map(|(host, refusal)| {
        let how = match refusal {
            RejectReason::Unsigned => "does not sign its messages",
            _ => "signs its messages with another key",
        };
        (host, format!("{host} {how}: this host rejects them"))
    });
    let signed = heard.signed.iter().map(|host| {
        let text = format!(
            "{host} signs its messages, but this host does not: {host} rejects the messages of this host"
        );
        (host, text)
    });
    let all = refused.chain(signed);
    all.map(|(host, text)| Finding::fault("fleet_key", text).about(host).next(NEXT)).collect()
}

/// By how many seconds a host's clock is ahead of the one here, as far as that can be known: a stamp
/// may be minutes old, but is never of the future.
fn ahead((stamp, read): (i64, i64)) -> i64 {
    match (stamp - read) / 1000 {
        ahead if ahead > SLACK => ahead,
        behind if behind < -OLDEST => behind,
        _ => 0,
    }
}

/// How long: a clock is not off by more than years, but a forged stamp may be.
fn length(seconds: i64) -> String {
    if seconds > MANY_YEARS { "10 years".to_owned() } else { format_duration(seconds) }
}

fn clocks(heard: &ProbeResult, set: bool) -> Vec<Finding> {
    if heard.stamps.is_empty() {
        return Vec::new();
    }
    let ahead = heard.stamps.iter().map(|(host, times)| (host.as_str(), ahead(*times)));
    let off: Vec<(&str, i64)> = ahead.filter(|(_, ahead)| *ahead != 0).collect();
    if off.is_empty() {
        let text = "the clocks of all other hosts agree with this one";
        return vec![Finding::ok("clock", text)];
    }
    let finding = |seconds: i64, text: String| {
        let look = if set {
            "systemd-timesyncd sets the clock of this host; check the other host: timedatectl"
        } else {
            "check both hosts: timedatectl (systemd-timesyncd or chrony keeps a clock right)"
        };
        let make = if seconds > HARM { Finding::fault } else { Finding::warning };
        make("clock", text).next(look)
    };
    let odd = off.iter().map(|(host, ahead)| {
        let text = if *ahead > 0 {
            format!("the clock of {host} is at least {} ahead of this host's", length(*ahead))
        } else {
            format!(
                "{host} is online, but its newest snapshot is {} old: its clock is behind, or the clock of this \
                 host is ahead",
                length(-ahead)
            )
        };
        finding(ahead.abs(), text).about(host)
    });
    odd.collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status as How;
    use super::*;
    use crate::wire::Presence;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    fn heard(presences: &[(&str, HostState, &str)], stamps: &[(&str, i64)]) -> ProbeResult {
        let presence = |(name, state, machine): &(&str, HostState, &str)| {
            let machine = (*machine).to_owned();
            (host(name), Presence { state: *state, machine, ..Presence::default() })
        };
        ProbeResult {
            presences: presences.iter().map(presence).collect(),
            stamps: stamps.iter().map(|(name, ahead)| (host(name), (ahead * 1000, 0))).collect(),
            ..ProbeResult::default()
        }
    }

    fn found(heard: &ProbeResult, machine: &str) -> Vec<Finding> {
        let topic = Topic::of_fleet("blacklist").unwrap();
        findings((&host("web1"), &topic), machine, heard, &SpoolVisibility::default())
    }

    fn odd(heard: &ProbeResult) -> Vec<(How, String)> {
        let found = found(heard, "m1").into_iter().filter(|finding| finding.id != "fleet_hosts");
        found
            .filter(|finding| finding.state != How::Well)
            .map(|finding| (finding.state, finding.text))
            .collect()
    }

    #[test]
    fn a_name_is_one_machine_s() {
        use HostState::{Offline, Online};
        assert_eq!(odd(&heard(&[("web1", Online, "m1"), ("web2", Online, "m2")], &[])), []);
        let two = heard(&[("web1", Online, "m1"), ("web1", Offline, "m3")], &[]);
        assert!(odd(&two)[0].1.starts_with("two machines have the name web1 and overwrite"));
        let both = SpoolVisibility {
            namesake: true,
            duplicates: vec!["web2".to_owned()],
            ..SpoolVisibility::default()
        };
        let topic = Topic::of_fleet("blacklist").unwrap();
        let mut faults = findings((&host("web1"), &topic), "m1", &ProbeResult::default(), &both);
        faults.retain(|finding| finding.id == "fleet_name");
        let texts: Vec<_> = faults.iter().map(|finding| (finding.state, &*finding.text)).collect();
        let expected = ["web2", "web1"].map(|name| {
            format!("two machines have the name {name} and overwrite each other's snapshot")
        });
        assert_eq!(texts, expected.each_ref().map(|text| (How::Fault, text.as_str())));
        assert_eq!(odd(&heard(&[("web1", Online, "")], &[])), [], "it does not say which it is");
    }

    #[test]
    fn all_have_to_sign_alike() {
        let texts =
            |heard: ProbeResult| odd(&heard).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        let refusals =
            [(host("a"), RejectReason::Unsigned), (host("b"), RejectReason::WrongSignature)].into();
        let expected = [
            "a does not sign its messages: this host rejects them",
            "b signs its messages with another key: this host rejects them",
        ];
        assert_eq!(texts(ProbeResult { refusals, ..ProbeResult::default() }), expected);
        let signed = [host("c")].into();
        let told =
            "c signs its messages, but this host does not: c rejects the messages of this host";
        assert_eq!(texts(ProbeResult { signed, ..ProbeResult::default() }), [told]);
    }

    #[test]
    fn who_is_online_is_told() {
        use HostState::{Offline, Online};
        let there = heard(&[("a", Online, "x"), ("b", Online, "y"), ("a", Offline, "x")], &[]);
        assert_eq!(found(&there, "m1")[1].text, "other hosts online: b");
        let away = heard(&[("a", Offline, "x")], &[]);
        assert_eq!(found(&away, "m1")[1].text, "all other hosts are offline");
    }

    #[test]
    fn host_that_is_alone_on_its_topic_is_warned_with_the_topics_of_others() {
        let mut own = heard(&[("web1", HostState::Online, "m1")], &[]);
        let hosts = &found(&own, "m1")[1];
        let text = "no other host with f2bmqtt is on the topic blacklist";
        assert_eq!(
            (hosts.id, hosts.state, hosts.text.as_str()),
            ("fleet_hosts", How::Warning, text)
        );
        assert!(hosts.next[0].starts_with("MQTT_TOPIC and MQTT_HOST must be the same"));
        own.other_topics = ["black", "mail"].map(str::to_owned).into();
        let next = &found(&own, "m1")[1].next[0];
        assert!(next.starts_with("other hosts are on black and mail: set MQTT_TOPIC"), "{next}");
    }

    #[test]
    fn only_what_a_stamp_can_show_of_a_clock_is_said() {
        type Case = (&'static [(&'static str, i64)], Option<(How, &'static str)>);
        let table: [Case; 7] = [
            (&[("a", 0), ("b", -600)], None),
            (&[("a", 4)], None),
            (&[("a", 60), ("b", 0)], Some((How::Warning, "the clock of a is at least 1m ahead"))),
            (&[("a", 600)], Some((How::Fault, "the clock of a is at least 10m ahead"))),
            (
                &[("a", -4000), ("b", 0)],
                Some((How::Fault, "a is online, but its newest snapshot is 1h 6m old")),
            ),
            (
                &[("a", 250_000_000_000), ("b", 0)],
                Some((How::Fault, "the clock of a is at least 10 years ahead")),
            ),
            (
                &[("a", -1_800_000_000), ("b", 0)],
                Some((How::Fault, "a is online, but its newest snapshot is 10 years old")),
            ),
        ];
        for (stamps, expected) in table {
            let found = odd(&heard(&[], stamps));
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
