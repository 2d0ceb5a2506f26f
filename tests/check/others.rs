//! Faults of peers, and faults that only the peers' messages show.

use std::time::Duration;

use super::{Case, DEFAULT_CASE, assert_reported, check};
use crate::support::{Host, Rig, becomes, eventually};

const PEER_FAULTS: [Case; 4] = [
    Case {
        hub: [
            "now=$(date +%s)
             pub() { mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -r -t \"$1\" -m \"$2\"; }
             pub f2bmqtt/blacklist/host/far '{\"v\":1,\"state\":\"online\"}'
             pub f2bmqtt/blacklist/state/far/0 \"{\\\"v\\\":1,\\\"host\\\":\\\"far\\\",\\\"stamp\\\":$((now + 600))000,\\\"part\\\":0,\\\"parts\\\":1,\\\"bans\\\":[],\\\"unbans\\\":[]}\"",
            "for topic in host/far state/far/0; do
               mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -r -t f2bmqtt/blacklist/$topic -n
             done",
        ],
        findings: &["✗ the clock of far is at least ", "timedatectl"],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "sed -i s/^MQTT_TOPIC=.*/MQTT_TOPIC=blakclist/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "sed -i s/^MQTT_TOPIC=.*/MQTT_TOPIC=blacklist/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        findings: &[
            "! no other host with f2bmqtt is on the topic blakclist\n    other hosts are on blacklist: set MQTT_TOPIC in mqtt.env",
        ],
        code: 0,
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "echo MQTT_SIGNING_KEY=0123456789abcdef0123456789abcdef >>/etc/fail2ban/mqtt.env
             systemctl restart f2bmqttsub",
            "sed -i '/MQTT_SIGNING_KEY/d' /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        findings: &["✗ b does not sign its messages: this host rejects them\n", "the same MQTT_SIGNING_KEY"],
        ..DEFAULT_CASE
    },
    Case {
        host: ["echo MQTT_NODE=b >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub", ""],
        findings: &["✗ two machines have the name b and overwrite each other's snapshot\n", "set MQTT_NODE"],
        ..DEFAULT_CASE
    },
];

#[test]
fn each_peer_fault_is_reported() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    for case in &PEER_FAULTS {
        assert_reported(case, hub, a);
    }
    // Both hosts stay connected and see the fault.
    for host in [a, b, a, b] {
        let (text, code) = check(host);
        assert!(code == 1 && text.contains("✗ two machines have the name b "), "{text}");
    }
    test_clone(hub, a, b);
}

/// A clone has the name, the machine ID and the client ID of its original.
fn test_clone(hub: Host<'_>, a: Host<'_>, b: Host<'_>) {
    b.sh("systemctl stop f2bmqttsub");
    let original = a.sh("cd /; tar -cz etc/machine-id var/lib/f2bmqtt/fleet.sqlite3* | base64 -w0");
    b.sh(&format!(
        "echo {original} | base64 -d >/root/original.tar
         rm /var/lib/f2bmqtt/fleet.sqlite3*; tar -C / -xzf /root/original.tar var
         mkdir -p /root/etc /run/systemd/system/f2bmqttsub.service.d
         tar -C /root -xzf /root/original.tar etc
         printf '[Service]\\nBindReadOnlyPaths=/root/etc/machine-id:/etc/machine-id\\n' \
           >/run/systemd/system/f2bmqttsub.service.d/clone.conf
         systemctl daemon-reload; systemctl start f2bmqttsub"
    ));
    for host in [a, b] {
        eventually("the journal names the clone", || {
            host.journal().contains("two machines have the name b and overwrite")
        });
    }
    eventually("one of them takes a new client ID", || {
        [a, b].iter().any(|host| host.journal().contains("switching to a new client ID"))
    });
    // With the same client ID, only one of the two hosts would receive each message.
    let mut round = 0;
    eventually("both receive the same message", || {
        round += 1;
        let line = format!("Inbound: ban 198.51.100.{round} ");
        hub.publish_event("ban", "sshd", &format!("198.51.100.{round}"), "far");
        [a, b].iter().all(|host| becomes(Duration::from_secs(5), || host.journal().contains(&line)))
    });
    // A third host sees the fault, too.
    hub.sh("systemctl start f2bmqttsub");
    for host in [a, b, hub] {
        eventually("check names the clone", || {
            check(host).0.contains("✗ two machines have the name b ")
        });
    }
}
