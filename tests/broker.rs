//! Whatever a broker does or does not do, fail2ban never waits for it, and no ban is lost over it.

mod support;

use std::path::Path;

use support::{Host, Rig, eventually};

/// Points the settings of a host elsewhere.
fn set(host: Host<'_>, key: &str, value: &str) {
    host.sh(&format!("sed -i 's/^{key}=.*/{key}={value}/' /etc/fail2ban/mqtt.env"));
    host.sh("systemctl restart f2bmqttsub");
}

/// One kind of broker trouble: how it is made, what is said of it, and how it is mended.
struct Trouble {
    what: &'static str,
    make: fn(Host<'_>, Host<'_>),
    said: &'static str,
    mend: fn(Host<'_>, Host<'_>),
}

const TROUBLES: [Trouble; 6] = [
    Trouble {
        what: "packets are dropped, and the daemon does not know yet",
        make: |a, _| drop(a.sh("iptables -A OUTPUT -p tcp --dport 1883 -j DROP")),
        said: "",
        mend: |a, _| drop(a.sh("iptables -F OUTPUT")),
    },
    Trouble {
        what: "packets are dropped from the start",
        make: |a, _| {
            a.sh("iptables -A OUTPUT -p tcp --dport 1883 -j DROP; systemctl restart f2bmqttsub");
        },
        said: "no connection to the broker 10.213.77.11:1883: no answer within 5 s",
        mend: |a, _| drop(a.sh("iptables -F OUTPUT")),
    },
    Trouble {
        what: "nothing listens",
        make: |_, hub| drop(hub.sh("systemctl stop mosquitto")),
        said: "no connection to the broker 10.213.77.11:1883: nothing listens there",
        mend: |_, hub| drop(hub.sh("systemctl start mosquitto")),
    },
    Trouble {
        what: "the password is wrong",
        make: |a, _| set(a, "MQTT_PASSWORD", "wrong"),
        said: "the broker rejected the login; check MQTT_USER and MQTT_PASSWORD",
        mend: |a, _| set(a, "MQTT_PASSWORD", "fail2ban"),
    },
    Trouble {
        what: "the name does not resolve",
        make: |a, _| set(a, "MQTT_HOST", "no.such.host"),
        said: "no connection to the broker no.such.host:1883: ",
        mend: |a, _| set(a, "MQTT_HOST", "10.213.77.11"),
    },
    Trouble {
        what: "it is silent once connected",
        make: |a, hub| {
            let broker =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/silent_broker.py");
            hub.push(&broker, "/root/silent.py");
            hub.sh("systemd-run -q -u silent python3 /root/silent.py 1884
                    until ss -Hltn | grep -q :1884; do sleep 0.05; done");
            set(a, "MQTT_HOST", "10.213.77.11:1884");
        },
        said: "no connection to the broker 10.213.77.11:1884: the broker acknowledged no published message within 15 s",
        mend: |a, _| set(a, "MQTT_HOST", "10.213.77.11"),
    },
];

#[test]
fn ban_without_broker_is_not_delayed_and_not_lost() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    for (number, trouble) in TROUBLES.iter().enumerate() {
        let address = |n: usize| format!("192.0.2.{}", 10 * (number + 1) + n);
        (trouble.make)(a, hub);
        // Another's wait would keep fail2ban, which makes one ban after the other, from the next.
        a.attack("auth", &[&address(1), &address(2), &address(3)]);
        eventually(trouble.what, || (1..=3).all(|n| a.bans("sshd", &address(n))));
        a.sh(&format!("timeout 2 /etc/fail2ban/mqttnotifyban sshd {} 600 ban 0 3", address(4)));
        let spooled = a.sh("ls /var/lib/f2bmqtt/spool | wc -l");
        assert_eq!(spooled, "4", "they wait: {}", trouble.what);
        eventually(trouble.said, || a.journal().contains(trouble.said));
        (trouble.mend)(a, hub);
        eventually(&format!("b bans them after: {}", trouble.what), || {
            (1..=3).all(|n| b.bans("sshd", &address(n)))
        });
        // What fail2ban does not hold is told, and not lasting.
        let told = format!("Inbound: ban {} ", address(4));
        eventually("the notifier's own is told", || b.journal().contains(&told));
        eventually("the spool is empty", || a.sh("ls /var/lib/f2bmqtt/spool").is_empty());
    }
}

#[test]
fn lost_broker_sessions_are_resubscribed() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    hub.sh("systemctl kill -s KILL mosquitto; systemctl stop mosquitto
            rm -f /var/lib/mosquitto/mosquitto.db; systemctl start mosquitto");
    let connected = |host: Host<'_>| host.journal().matches("connected to the broker").count() == 2;
    eventually("both are back", || connected(a) && connected(b));
    a.attack("auth", &["192.0.2.1"]);
    eventually("b bans it", || b.bans("sshd", "192.0.2.1"));
}

#[test]
fn oversized_message_does_not_block_host() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    hub.sh("head -c 400000 /dev/zero | tr '\\0' x >/root/large
            mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 -t blacklist/ban -f /root/large");
    eventually("it is said", || {
        a.journal().contains("the broker sent a message of more than 256 KiB")
    });
    eventually("it is connected again", || {
        let journal = a.journal();
        let (_, after) = journal.rsplit_once("more than 256 KiB").unwrap_or_default();
        after.contains("connected to the broker")
    });
    hub.publish_event("ban", "sshd", "192.0.2.1", "other");
    eventually("the next ban works", || a.bans("sshd", "192.0.2.1"));
}
