//! Broker outages: fail2ban never waits for the broker, and an outage loses no ban.

mod support;

use std::path::Path;
use std::time::Duration;

use support::{Host, Rig, becomes, eventually};

/// Changes a setting of a host, and restarts the service.
fn set(host: Host<'_>, key: &str, value: &str) {
    host.sh(&format!("sed -i 's/^{key}=.*/{key}={value}/' /etc/fail2ban/mqtt.env"));
    host.sh("systemctl restart f2bmqttsub");
}

/// A broker fault: how the test makes it, what the journal says, and how the test ends it.
struct Fault {
    what: &'static str,
    make: fn(Host<'_>, Host<'_>),
    logged: &'static str,
    mend: fn(Host<'_>, Host<'_>),
}

const FAULTS: [Fault; 6] = [
    Fault {
        what: "packets are dropped during a connection",
        make: |a, _| drop(a.sh("iptables -A OUTPUT -p tcp --dport 1883 -j DROP")),
        logged: "",
        mend: |a, _| drop(a.sh("iptables -F OUTPUT")),
    },
    Fault {
        what: "packets are dropped from the start",
        make: |a, _| {
            a.sh("iptables -A OUTPUT -p tcp --dport 1883 -j DROP; systemctl restart f2bmqttsub");
        },
        logged: "no connection to the broker 10.213.77.11:1883: no answer within 5 s",
        mend: |a, _| drop(a.sh("iptables -F OUTPUT")),
    },
    Fault {
        what: "nothing listens",
        make: |_, hub| drop(hub.sh("systemctl stop mosquitto")),
        logged: "no connection to the broker 10.213.77.11:1883: no broker listens on this port",
        mend: |_, hub| drop(hub.sh("systemctl start mosquitto")),
    },
    Fault {
        what: "the password is wrong",
        make: |a, _| set(a, "MQTT_PASSWORD", "wrong"),
        logged: "the broker rejected the login; check MQTT_USER and MQTT_PASSWORD",
        mend: |a, _| set(a, "MQTT_PASSWORD", "fail2ban"),
    },
    Fault {
        what: "the name does not resolve",
        make: |a, _| set(a, "MQTT_HOST", "no.such.host"),
        logged: "no connection to the broker no.such.host:1883: ",
        mend: |a, _| set(a, "MQTT_HOST", "10.213.77.11"),
    },
    Fault {
        what: "it is silent once connected",
        make: |a, hub| {
            let broker =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/silent_broker.py");
            hub.push(&broker, "/root/silent.py");
            hub.sh("systemd-run -q -u silent python3 /root/silent.py 1884
                    until ss -Hltn | grep -q :1884; do sleep 0.05; done");
            set(a, "MQTT_HOST", "10.213.77.11:1884");
        },
        logged: "no connection to the broker 10.213.77.11:1884: the broker acknowledged no published message within 15 s",
        mend: |a, _| set(a, "MQTT_HOST", "10.213.77.11"),
    },
];

#[test]
fn ban_without_broker_is_not_delayed_and_not_lost() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    for (number, fault) in FAULTS.iter().enumerate() {
        let addresses: [String; 4] =
            std::array::from_fn(|n| format!("192.0.2.{}", 10 * (number + 1) + n + 1));
        let (detected, reported) = (&addresses[..3], &addresses[3]);
        (fault.make)(a, hub);
        // fail2ban makes one ban after the other, so an action that waits would block the next ban.
        a.attack("auth", &detected.iter().map(String::as_str).collect::<Vec<_>>());
        eventually(fault.what, || detected.iter().all(|address| a.bans("sshd", address)));
        a.sh(&format!("timeout 2 /etc/fail2ban/mqttnotifyban sshd {reported} 600 ban 0 3"));
        let spooled = a.sh("ls /var/lib/f2bmqtt/spool | wc -l");
        assert_eq!(spooled, "4", "events in the spool: {}", fault.what);
        eventually(fault.logged, || a.journal().contains(fault.logged));
        (fault.mend)(a, hub);
        eventually(&format!("b bans them after: {}", fault.what), || {
            detected.iter().all(|address| b.bans("sshd", address))
        });
        // The event of a ban that fail2ban does not hold is published, but the ban does not last.
        let line = format!("Inbound: ban {reported} ");
        eventually("b receives the notifier's event", || b.journal().contains(&line));
        eventually("the spool is empty", || a.sh("ls /var/lib/f2bmqtt/spool").is_empty());
    }
}

#[test]
fn lost_broker_sessions_are_resubscribed() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    hub.sh("systemctl kill -s KILL mosquitto; systemctl stop mosquitto
            rm -f /var/lib/mosquitto/mosquitto.db; systemctl start mosquitto");
    eventually("both are connected again", || {
        [a, b].iter().all(|host| host.journal().matches("connected to the broker").count() == 2)
    });
    a.attack("auth", &["192.0.2.1"]);
    eventually("b bans it", || b.bans("sshd", "192.0.2.1"));
}

#[test]
fn oversized_message_does_not_block_host() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    hub.sh("head -c 400000 /dev/zero | tr '\\0' x >/root/large
            mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 -t blacklist/ban -f /root/large");
    eventually("the journal names the message", || {
        a.journal().contains("the broker sent a message of more than 256 KiB")
    });
    // The purge of the session discards events of that moment, so publish until one arrives.
    eventually("a imports the next ban", || {
        hub.publish_event("ban", "sshd", "192.0.2.1", "other");
        becomes(Duration::from_secs(5), || a.bans("sshd", "192.0.2.1"))
    });
}
