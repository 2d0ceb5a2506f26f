//! Compatibility with the scripts: the calls, log lines and messages on which jails, log watchers and other hosts depend.
//! docs/migrating-from-scripts.md lists the intended differences.

mod support;

use support::{Host, Rig, eventually, package};

/// A call of the notifier, and the message that it publishes, if any.
struct Call {
    arguments: &'static str,
    published: Option<&'static str>,
    code: i32,
}

const fn publishes(arguments: &'static str, published: &'static str) -> Call {
    Call { arguments, published: Some(published), code: 0 }
}

const fn publishes_nothing(arguments: &'static str, code: i32) -> Call {
    Call { arguments, published: None, code }
}

/// Each address appears once, so that each message belongs to one call.
const CALLS: [Call; 17] = [
    publishes(
        "sshd 203.0.113.1 600 ban 0 3",
        r#"blacklist/ban {"action":"ban","ipmset":"sshd","ip":"203.0.113.1","bantime":600,"host":"a","restored":0,"failures":3,"#,
    ),
    publishes(
        "sshd 203.0.113.2 600 unban 0 3",
        r#"blacklist/unban {"action":"unban","ipmset":"sshd","ip":"203.0.113.2","bantime":600,"host":"a","restored":0,"failures":3,"#,
    ),
    publishes_nothing("sshd 203.0.113.3 600 ban 1 3", 0),
    publishes(
        "sshd 203.0.113.4 600 unban 1 3",
        r#"blacklist/unban {"action":"unban","ipmset":"sshd","ip":"203.0.113.4","bantime":600,"host":"a","restored":1,"failures":3,"#,
    ),
    publishes_nothing("sshd 203.0.113.5 600 ban 0 0", 0),
    publishes_nothing("sshd 203.0.113.6 600 unban 0 0", 0),
    publishes_nothing("sshd 203.0.113.7 600 ban 0 ''", 0),
    publishes_nothing("sshd 203.0.113.8 600 ban 0", 0),
    publishes_nothing("sshd 203.0.113.9 600 ban 0 'a[$(touch /root/ran)]'", 2),
    publishes(
        "sshd 203.0.113.10 0 ban 0 3",
        r#"blacklist/ban {"action":"ban","ipmset":"sshd","ip":"203.0.113.10","bantime":0,"host":"a","restored":0,"failures":3,"#,
    ),
    publishes(
        "sshd 203.0.113.11 '' ban 0 3",
        r#"blacklist/ban {"action":"ban","ipmset":"sshd","ip":"203.0.113.11","bantime":0,"host":"a","restored":0,"failures":3,"#,
    ),
    publishes(
        "sshd 203.0.113.12 10m ban 0 3",
        r#"blacklist/ban {"action":"ban","ipmset":"sshd","ip":"203.0.113.12","bantime":0,"host":"a","restored":0,"failures":3,"#,
    ),
    publishes_nothing("'ss\"hd' 203.0.113.13 600 ban 0 3", 2),
    publishes_nothing("sshd '203.0.113.14\"' 600 ban 0 3", 2),
    publishes(
        "sshd 2001:DB8:0::1 600 ban 0 3",
        r#"blacklist/ban {"action":"ban","ipmset":"sshd","ip":"2001:db8::1","bantime":600,"host":"a","restored":0,"failures":3,"#,
    ),
    publishes(
        "sshd 203.0.113.15 600 ban 0 3 1795342588.4",
        r#"blacklist/ban {"action":"ban","ipmset":"sshd","ip":"203.0.113.15","bantime":600,"host":"a","restored":0,"failures":3,"time":1795342588,"#,
    ),
    publishes(
        "sshd 203.0.113.16 -1 ban 0 3",
        r#"blacklist/ban {"action":"ban","ipmset":"sshd","ip":"203.0.113.16","bantime":-1,"host":"a","restored":0,"failures":3,"#,
    ),
];

#[test]
fn notify_publishes_same_messages_as_script() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    let record = rig.record();
    for name in ["mqttnotifyban", "mqttnotifyban.sh"] {
        for call in &CALLS {
            let run = a.run(&format!("/etc/fail2ban/{name} {}", call.arguments));
            assert_eq!(run.status.code(), Some(call.code), "{name} {}", call.arguments);
            assert!(run.stdout.is_empty(), "{name} {}", call.arguments);
            assert_eq!(run.stderr.is_empty(), call.code == 0, "{name} {}", call.arguments);
        }
        let expected: Vec<_> = CALLS.iter().filter_map(|call| call.published).collect();
        eventually("all events are published", || record.events().len() >= expected.len());
        for (event, expected) in record.events().iter().zip(&expected) {
            assert!(event.starts_with(expected) && event.ends_with('}'), "{event}\n{expected}");
        }
        a.sh("/etc/fail2ban/mqttnotifyban last 198.51.100.99 600 ban 0 1");
        eventually("the last event is published", || record.count(&["198.51.100.99"]) == 1);
        assert_eq!(record.events().len(), expected.len() + 1);
        // The same calls again under the other name, later than the time within which the daemon drops repeated events.
        eventually("the spool is empty", || a.sh("ls /var/lib/f2bmqtt/spool").is_empty());
        hub.sh("systemctl stop record; rm /root/seen");
        a.sh("systemctl restart f2bmqttsub");
        a.ready();
        rig.record();
    }
    assert!(a.try_sh("test -e /root/ran").is_err(), "an argument ran as a command");
    // Calls that failed silently with the scripts: as another user, and while the service runs.
    let table = [
        (
            "runuser -u games -- /etc/fail2ban/mqttnotifyban sshd 203.0.113.17 600 ban 0 3",
            "cannot write to the spool /var/lib/f2bmqtt/spool: Permission denied (os error 13). Run the command as root",
        ),
        ("/etc/fail2ban/mqttsubscribebans", "another f2bmqtt daemon is already running (PID "),
    ];
    for (call, reason) in table {
        let run = a.run(call);
        let stderr = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{call}: {stderr}");
        assert!(stderr.contains(reason), "{call}: {stderr}");
    }
}

#[test]
fn notify_without_broker_returns_at_once_and_loses_nothing() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    hub.sh("systemctl stop mosquitto");
    a.sh("/etc/fail2ban/mqttnotifyban sshd 203.0.113.1 600 ban 0 3");
    assert_eq!(a.sh("ls /var/lib/f2bmqtt/spool | wc -l"), "1");
    hub.sh("systemctl start mosquitto");
    eventually("b receives the event", || b.journal().contains("Inbound: ban 203.0.113.1 "));
    test_removal(hub, a, b);
}

/// All retained messages of the fleet.
fn retained(hub: Host<'_>) -> String {
    hub.sh("mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -t 'f2bmqtt/blacklist/#' \
            --retained-only -W 2 -F %t || true")
}

/// Removing the package removes the host from the fleet, because its later unbans are not published.
fn test_removal(hub: Host<'_>, a: Host<'_>, b: Host<'_>) {
    a.attack("auth", &["203.0.113.2"]);
    eventually("b bans it, too", || b.bans("sshd", "203.0.113.2"));
    eventually("the broker has the snapshot", || retained(hub).contains("/state/a/"));
    a.push(&package(), "/root/f2bmqtt.deb");
    let output = a.sh("apt-get install -y --reinstall /root/f2bmqtt.deb </dev/null 2>&1");
    assert!(!output.contains("from the fleet"), "{output}");
    a.ready();
    assert!(b.bans("sshd", "203.0.113.2"), "an upgrade releases no ban");
    let output = a.sh("apt-get remove -y f2bmqtt </dev/null 2>&1");
    assert!(output.contains("removed a from the fleet: other hosts release its bans"), "{output}");
    eventually("b releases the ban", || !b.bans("sshd", "203.0.113.2"));
    assert!(a.bans("sshd", "203.0.113.2"), "fail2ban keeps its bans");
    let left = retained(hub);
    assert!(!left.contains("/a") && left.contains("/host/b"), "{left}");
    // The removal also ends if the broker does not answer.
    hub.rig("cut");
    let output = b.sh("timeout 300 apt-get remove -y f2bmqtt </dev/null 2>&1");
    assert!(output.contains("cannot remove b from the fleet: "), "{output}");
    assert!(output.contains("on one of them: f2bmqtt forget b"), "{output}");
    b.sh("! dpkg -s f2bmqtt | grep -q '^Status: install ok installed'");
}

/// A message, and the lines that the subscriber prints about it.
struct Message {
    topic: &'static str,
    payload: &'static str,
    printed: &'static [&'static str],
}

/// A message as the script publishes it, with its line breaks.
macro_rules! script {
    ($action:literal, $jail:literal, $ip:literal, $host:literal, $restored:literal) => {
        concat!(
            "{\n \"action\":\"",
            $action,
            "\",\n \"ipmset\":\"",
            $jail,
            "\",\n \"ip\":\"",
            $ip,
            "\",\n \"bantime\":0,\n \"host\":\"",
            $host,
            "\",\n \"restored\":",
            $restored,
            ",\n \"failures\":3\n}"
        )
    };
}

const MESSAGES: &[Message] = &[
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "sshd", "203.0.113.1", "old", "0"),
        printed: &[
            "Inbound: ban 203.0.113.1 - ipset sshd from old (Rest:=0, Fails:=3)",
            "Ban 203.0.113.1 for ipset sshd reported by old",
        ],
    },
    // Banned already.
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "sshd", "203.0.113.1", "old2", "0"),
        printed: &["Inbound: ban 203.0.113.1 - ipset sshd from old2 (Rest:=0, Fails:=3)"],
    },
    // Another host still holds the ban.
    Message {
        topic: "blacklist/unban",
        payload: script!("unban", "sshd", "203.0.113.1", "old", "0"),
        printed: &["Inbound: unban 203.0.113.1 - ipset sshd from old (Rest:=0, Fails:=3)"],
    },
    Message {
        topic: "blacklist/unban",
        payload: script!("unban", "sshd", "203.0.113.1", "old2", "1"),
        printed: &[
            "Inbound: unban 203.0.113.1 - ipset sshd from old2 (Rest:=1, Fails:=3)",
            "UnBan 203.0.113.1 for ipset sshd reported by old2",
        ],
    },
    // Not banned.
    Message {
        topic: "blacklist/unban",
        payload: script!("unban", "sshd", "203.0.113.2", "old", "0"),
        printed: &["Inbound: unban 203.0.113.2 - ipset sshd from old (Rest:=0, Fails:=3)"],
    },
    // Restored.
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "sshd", "203.0.113.3", "old", "1"),
        printed: &["Inbound: ban 203.0.113.3 - ipset sshd from old (Rest:=1, Fails:=3)"],
    },
    // From this host.
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "sshd", "203.0.113.4", "a", "0"),
        printed: &["Inbound: ban 203.0.113.4 - ipset sshd from a (Rest:=0, Fails:=3)"],
    },
    // Unknown jails; the name of one is part of a known jail's name.
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "nginx", "203.0.113.5", "old", "1"),
        printed: &["Inbound: ban 203.0.113.5 - ipset nginx from old (Rest:=1, Fails:=3)"],
    },
    Message {
        topic: "blacklist/unban",
        payload: script!("unban", "nginx", "203.0.113.5", "old", "0"),
        printed: &[
            "Inbound: unban 203.0.113.5 - ipset nginx from old (Rest:=0, Fails:=3)",
            "Jail nginx not found for IP 203.0.113.5 reported by old (Restored=0)",
        ],
    },
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "nginx", "203.0.113.5", "a", "0"),
        printed: &[
            "Inbound: ban 203.0.113.5 - ipset nginx from a (Rest:=0, Fails:=3)",
            "Jail nginx not found for IP 203.0.113.5 reported by a (Restored=0)",
        ],
    },
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "ssh", "203.0.113.5", "old", "0"),
        printed: &[
            "Inbound: ban 203.0.113.5 - ipset ssh from old (Rest:=0, Fails:=3)",
            "Jail ssh not found for IP 203.0.113.5 reported by old (Restored=0)",
        ],
    },
    Message {
        topic: "blacklist/other",
        payload: script!("reban", "sshd", "203.0.113.6", "old", "0"),
        printed: &[
            "Inbound: reban 203.0.113.6 - ipset sshd from old (Rest:=0, Fails:=3)",
            "Unrecognised action reban",
        ],
    },
    // Another order of the fields, extra fields, no failures, another topic: the payload's action decides.
    Message {
        topic: "blacklist/from-nodered",
        payload: r#"{"x":[1,{"y":2}],"host":"red","ip":"203.0.113.7","ipmset":"sshd","action":"ban"}"#,
        printed: &[
            "Inbound: ban 203.0.113.7 - ipset sshd from red (Rest:=0, Fails:=0)",
            "Ban 203.0.113.7 for ipset sshd reported by red",
        ],
    },
    Message {
        topic: "blacklist/ban",
        payload: r#"{"host":"red","ip":"203.0.113.7","ipmset":"sshd","action":"unban"}"#,
        printed: &[
            "Inbound: unban 203.0.113.7 - ipset sshd from red (Rest:=0, Fails:=0)",
            "UnBan 203.0.113.7 for ipset sshd reported by red",
        ],
    },
    // Numbers as strings.
    Message {
        topic: "blacklist/ban",
        payload: r#"{"action":"ban","ipmset":"sshd","ip":"203.0.113.8","bantime":"600","host":"red","restored":"0","failures":"3"}"#,
        printed: &[
            "Inbound: ban 203.0.113.8 - ipset sshd from red (Rest:=0, Fails:=3)",
            "Ban 203.0.113.8 for ipset sshd reported by red",
        ],
    },
    // Invalid messages, and messages that would ban more than one address.
    Message {
        topic: "blacklist/ban",
        payload: "not JSON",
        printed: &["rejected invalid event on blacklist/ban: not one JSON object with unique keys"],
    },
    Message {
        topic: "blacklist/ban",
        payload: r#"{"action":"ban","ipmset":"sshd","host":"red"}"#,
        printed: &["rejected invalid event on blacklist/ban: missing field `ip`"],
    },
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "sshd", "10.99.0.0/28", "old", "0"),
        printed: &[
            "rejected invalid event on blacklist/ban: field `ip` must be one IPv4 or IPv6 address",
        ],
    },
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "sshd", "203.0.113.9 203.0.113.10", "old", "0"),
        printed: &[
            "rejected invalid event on blacklist/ban: field `ip` must be one IPv4 or IPv6 address",
        ],
    },
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "sshd", "localhost", "old", "0"),
        printed: &[
            "rejected invalid event on blacklist/ban: field `ip` must be one IPv4 or IPv6 address \
             (suppressing similar lines for a minute)",
        ],
    },
    // In ignoreip, and an address of this host.
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "sshd", "192.0.2.70", "old", "0"),
        printed: &[
            "Inbound: ban 192.0.2.70 - ipset sshd from old (Rest:=0, Fails:=3)",
            "rejected ban of 192.0.2.70 in sshd from old: the address is in ignoreip",
        ],
    },
    Message {
        topic: "blacklist/ban",
        payload: script!("ban", "sshd", "10.213.77.12", "old", "0"),
        printed: &[
            "Inbound: ban 10.213.77.12 - ipset sshd from old (Rest:=0, Fails:=3)",
            "rejected ban of 10.213.77.12 in sshd from old: the address is this host's own",
        ],
    },
    // Messages of other programs; and an unban by a host that does not hold the ban.
    Message {
        topic: "blacklist",
        payload: r#"{"action":"ban","ipmset":"sshd","ip":"203.0.113.14","bantime":"10m","host":"red","restored":false,"time":"2026-11-22T10:16:28+01:00"}"#,
        printed: &[
            "Inbound: ban 203.0.113.14 - ipset sshd from red (Rest:=0, Fails:=0)",
            "Ban 203.0.113.14 for ipset sshd reported by red",
        ],
    },
    Message {
        topic: "blacklist/unban",
        payload: r#"{"action":"unban","ipmset":"sshd","ip":"203.0.113.14","host":"button"}"#,
        printed: &[
            "Inbound: unban 203.0.113.14 - ipset sshd from button (Rest:=0, Fails:=0)",
            "ignored unban of 203.0.113.14 in sshd from button: button does not hold this ban; to unban the address on all hosts: f2bmqtt unban 203.0.113.14",
        ],
    },
    Message {
        topic: "blacklist/unban",
        payload: r#"{"action":"unban","ipmset":"sshd","ip":"203.0.113.14","restored":true,"host":"red"}"#,
        printed: &[
            "Inbound: unban 203.0.113.14 - ipset sshd from red (Rest:=1, Fails:=0)",
            "UnBan 203.0.113.14 for ipset sshd reported by red",
        ],
    },
    // A topic of f2bmqtt, which the scripts do not read.
    Message {
        topic: "f2bmqtt/blacklist/host/old",
        payload: script!("ban", "sshd", "203.0.113.11", "old", "0"),
        printed: &[],
    },
    // An address whose ban has expired and still has a row.
    Message {
        topic: "blacklist/deeper/still",
        payload: script!("ban", "sshd", "203.0.113.12", "old", "0"),
        printed: &[
            "Inbound: ban 203.0.113.12 - ipset sshd from old (Rest:=0, Fails:=3)",
            "Ban 203.0.113.12 for ipset sshd reported by old",
        ],
    },
];

#[test]
fn subscriber_prints_and_acts_like_script() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    // Until fail2ban has been running for a while, the daemon does not report unknown jails.
    wait_for_jails(a);
    // Ban the last address of the table for two seconds.
    a.sh("fail2ban-client set sshd bantime 2; fail2ban-client set sshd banip 203.0.113.12");
    eventually("the ban has expired", || !a.bans("sshd", "203.0.113.12"));
    a.sh("fail2ban-client set sshd bantime 600");
    a.sh("fail2ban-client set sshd addignoreip 192.0.2.64/26");
    let mut expected: Vec<&str> = Vec::new();
    for message in MESSAGES {
        hub.publish(message.topic, message.payload);
        // The script handles one message after the other, so wait for each.
        expected.extend(message.printed);
        eventually(&format!("{} is printed: {:?}", message.payload, message.printed), || {
            printed(a).len() >= expected.len()
        });
    }
    assert_eq!(printed(a), expected);
    assert_eq!(a.sh("fail2ban-client get sshd banip"), "203.0.113.8 203.0.113.12");
}

/// Waits until the daemon reports unknown jails, because fail2ban no longer counts as starting.
fn wait_for_jails(host: Host<'_>) {
    host.publish(
        "blacklist/ban",
        &script!("ban", "none", "198.51.100.1", "probe", "0").replace('\n', ""),
    );
    eventually("jails are known", || host.journal().contains("Jail none not found"));
}

/// The daemon's lines about messages, except about the probe.
fn printed(host: Host<'_>) -> Vec<String> {
    let prefixes =
        ["Inbound:", "Ban ", "UnBan ", "Jail ", "Unrecognised ", "rejected ", "ignored "];
    let mut lines: Vec<_> = host.journal().lines().map(str::to_owned).collect();
    lines.retain(|line| {
        prefixes.iter().any(|prefix| line.starts_with(prefix)) && !line.contains("198.51.100.1")
    });
    lines
}

/// Settings files from which bash reads the broker's password.
const SETTINGS: [&str; 10] = [
    "MQTT_PASSWORD='pa ss$1'",
    "export MQTT_PASSWORD='pa ss$1'",
    "MQTT_PASSWORD=\"pa ss\\$1\"",
    "MQTT_PASSWORD='wrong'\nMQTT_PASSWORD='pa ss$1'",
    "  MQTT_PASSWORD='pa ss$1'   \n# a comment\n\n",
    "MQTT_PASSWORD='pa ss$1' # a comment",
    "MQTT_PASSWORD=pa\\ ss\\$1",
    "FIRST='pa ss'\nMQTT_PASSWORD=\"$FIRST\\$1\"",
    "FIRST=pa\nLAST_ONE='ss$1'\nMQTT_PASSWORD=\"${FIRST} $LAST_ONE\"",
    // For the administrator's own scripts.
    "notify() {\n  MINE=\"$1\"\n}\nif [ -r /etc/none ]; then\n  . /etc/none\nfi\nLIST=(a b)\nHERE=$(hostname)\nBASE=~/x\n\
     LONG=one\\\ntwo\nMQTT_PASSWORD='pa ss$1'",
];

#[test]
fn settings_are_parsed_like_bash() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    hub.sh(
        "mosquitto_passwd -b /etc/mosquitto/passwd fleet 'pa ss$1'; systemctl restart mosquitto",
    );
    a.sh("mkdir -p /etc/systemd/system/f2bmqttsub.service.d
          printf '[Service]\nEnvironment=MQTT_PASSWORD=wrong MQTT_HOST=10.213.77.99\n' \
            >/etc/systemd/system/f2bmqttsub.service.d/env.conf; systemctl daemon-reload");
    for settings in SETTINGS {
        for (between, end) in [("\n", "\n"), ("\n", ""), ("\r\n", "\r\n")] {
            let text = format!("MQTT_HOST=10.213.77.11\nMQTT_USER=fleet\nMQTT_TOPIC=t\n{settings}");
            let text = text.trim_end_matches('\n').replace('\n', between) + end;
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &text).unwrap();
            a.push(file.path(), "/etc/fail2ban/mqtt.env");
            if between == "\n" {
                let bash = a.sh("bash -c '. /etc/fail2ban/mqtt.env; printf %s \"$MQTT_PASSWORD\"'");
                assert_eq!(bash, "pa ss$1", "{text}");
            }
            a.sh("systemctl restart f2bmqttsub");
            eventually("the daemon is connected", || {
                a.journal().contains("connected to the broker 10.213.77.11:1883 as a")
            });
        }
    }
}
