//! Faults that show in what other hosts say.

use super::{Case, FAULT, check, is_named};
use crate::support::Rig;

/// Faults that show in what other hosts say.
const OTHERS: [Case; 4] = [
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
        said: &["✗ the clock of far is at least ", "timedatectl"],
        ..FAULT
    },
    Case {
        host: [
            "sed -i s/^MQTT_TOPIC=.*/MQTT_TOPIC=blakclist/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "sed -i s/^MQTT_TOPIC=.*/MQTT_TOPIC=blacklist/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        said: &[
            "! no other host with f2bmqtt is on the topic blakclist\n    hosts are on blacklist: set MQTT_TOPIC in mqtt.env",
        ],
        code: 0,
        ..FAULT
    },
    Case {
        host: [
            "echo MQTT_SIGNING_KEY=0123456789abcdef0123456789abcdef >>/etc/fail2ban/mqtt.env
             systemctl restart f2bmqttsub",
            "sed -i '/MQTT_SIGNING_KEY/d' /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        said: &["✗ b does not sign its messages: what it tells is refused here\n", "the same MQTT_SIGNING_KEY"],
        ..FAULT
    },
    Case {
        host: ["echo MQTT_NODE=b >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub", ""],
        said: &["✗ another machine is called b, too: each overwrites the other's snapshot\n", "set MQTT_NODE"],
        ..FAULT
    },
];

#[test]
fn each_fault_that_others_show_is_named() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    for case in &OTHERS {
        is_named(case, hub, a);
    }
    // Both are connected.
    for host in [a, b, a, b] {
        let (text, code) = check(host);
        assert!(code == 1 && text.contains("✗ another machine is called b, too"), "{text}");
    }
}
