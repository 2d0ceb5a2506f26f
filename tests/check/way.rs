//! Faults on the way to the broker: the name, the port, TLS, the login, access rules.

use super::{Case, DEFAULT_CASE, REMOVE_ACL, assert_reported};
use crate::support::Rig;

/// `APPLY_ACL` stands for what brings access rules into force.
const PATH_FAULTS: [Case; 12] = [
    Case {
        host: [
            "sed -i s/^MQTT_PASSWORD=.*/MQTT_PASSWORD=x/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "sed -i s/^MQTT_PASSWORD=.*/MQTT_PASSWORD=fail2ban/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        findings: &[
            "✗ no connection to the broker 10.213.77.11:1883: the broker rejected the login; check MQTT_USER and MQTT_PASSWORD\n",
            "mosquitto_passwd -b /etc/mosquitto/passwd fail2ban PASSWORD",
            "✗ the daemon has had no connection to 10.213.77.11:1883 for ",
            "2 faults, 0 warnings",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "sed -i s/^MQTT_HOST=.*/MQTT_HOST=no.such.host/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "",
        ],
        findings: &["✗ cannot resolve the name of the broker no.such.host:1883: ", "getent hosts no.such.host"],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "sed -i s/^MQTT_HOST=.*/MQTT_HOST=hub:1884/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "",
        ],
        findings: &["✗ cannot connect to the broker hub:1884 at 10.213.77.11: no broker listens on this port\n", "systemctl status mosquitto"],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "sed -i s/^MQTT_HOST=.*/MQTT_HOST=192.168.1.10/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "sed -i s/^MQTT_HOST=.*/MQTT_HOST=10.213.77.11/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        findings: &[
            "✗ /etc/fail2ban/mqtt.env still has the sample settings\n",
            "✗ cannot connect to the broker 192.168.1.10:1883: Network is unreachable",
        ],
        // The service's status and journal name the fault, too.
        shows: &[
            ("systemctl show -P StatusText f2bmqttsub", "/etc/fail2ban/mqtt.env still has the sample settings: set MQTT_HOST"),
            ("journalctl -u f2bmqttsub -o cat --no-pager -n 50", "/etc/fail2ban/mqtt.env still has the sample settings: set MQTT_HOST"),
            ("f2bmqtt check | head -n 1", "✗ /etc/fail2ban/mqtt.env still has the sample settings"),
            ("journalctl -u f2bmqttsub -o cat --no-pager | grep 'still has the sample settings' | wc -l | sed 's/^1$/once/'", "once"),
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "cp -p /etc/fail2ban/mqtt.env /root/kept
             printf 'MQTT_HOST=a b\\nMQTT_PORT=0\\nMQTT_TOPIC=t\\n' >/etc/fail2ban/mqtt.env",
            "cp -p /root/kept /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        findings: &[
            "✗ /etc/fail2ban/mqtt.env, line 1: has text after the value",
            "✗ /etc/fail2ban/mqtt.env, line 2: MQTT_PORT must have a port from",
        ],
        code: 78,
        ..DEFAULT_CASE
    },
    Case {
        hub: [
            "nft add table inet t; nft 'add chain inet t i { type filter hook input priority 0; }'
             nft add rule inet t i tcp dport 1883 drop",
            "nft delete table inet t",
        ],
        findings: &[
            "✗ cannot connect to the broker 10.213.77.11:1883: no answer within 3 s: the packets are dropped on the way\n",
            "allow TCP port 1883 in the firewalls",
        ],
        ..DEFAULT_CASE
    },
    // mosquitto closes the connection of a client that publishes a retained message or a QoS that is not allowed.
    Case {
        hub: [
            "echo 'retain_available false' >>/etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto",
            "sed -i /retain_available/d /etc/mosquitto/conf.d/fleet.conf",
        ],
        findings: &[
            "✗ the broker 10.213.77.11:1883 refuses a client with a persistent session and a retained last will, which",
            "✗ the daemon has had no connection to 10.213.77.11:1883 for ",
        ],
        ..DEFAULT_CASE
    },
    Case {
        hub: [
            "echo 'max_qos 0' >>/etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto",
            "sed -i /max_qos/d /etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto",
        ],
        findings: &["✗ the broker 10.213.77.11:1883 grants only QoS 0", "allow QoS 1 (mosquitto: max_qos 1 or 2)\n"],
        ..DEFAULT_CASE
    },
    // mosquitto accepts messages that its access rules forbid, and drops them.
    Case {
        hub: [
            "printf 'user fail2ban\\ntopic read blacklist/#\\ntopic read f2bmqtt/blacklist/#\\ntopic write blacklist/unban\\n\
             topic write f2bmqtt/blacklist/host/a\\n' >/etc/mosquitto/acl; APPLY_ACL",
            REMOVE_ACL,
        ],
        host: [
            "echo MQTT_HA_PREFIX=homeassistant >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "sed -i /MQTT_HA_PREFIX/d /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        findings: &[
            "✗ the broker 10.213.77.11:1883 silently drops messages of this host on blacklist/ban\n",
            "✗ the broker 10.213.77.11:1883 silently drops messages of this host on f2bmqtt/blacklist/state/a\n",
            "let fail2ban write f2bmqtt/blacklist/state/a/#\n",
            "✓ messages of this host on blacklist/unban and f2bmqtt/blacklist/host/a arrive\n",
            "! the broker 10.213.77.11:1883 keeps no message for Home Assistant on \
             homeassistant/device/f2bmqtt_a/config and homeassistant/f2bmqtt/a/bans\n    the broker's access rules must let fail2ban read \
             and write homeassistant/device/f2bmqtt_a/config and homeassistant/f2bmqtt/a/bans, and read \
             homeassistant/status\n",
        ],
        ..DEFAULT_CASE
    },
    // mosquitto accepts a subscription that its access rules forbid, and delivers nothing.
    Case {
        hub: ["printf 'user fail2ban\\ntopic write blacklist/#\\ntopic write f2bmqtt/blacklist/#\\n' >/etc/mosquitto/acl; APPLY_ACL", REMOVE_ACL],
        findings: &[
            "✗ the broker 10.213.77.11:1883 delivers none of this host's messages",
            "the broker's access rules must let fail2ban read blacklist/# and f2bmqtt/blacklist/#\n",
        ],
        ..DEFAULT_CASE
    },
    // mosquitto's dynamic security plugin refuses a subscription.
    Case {
        hub: [
            "mosquitto_ctrl dynsec init /var/lib/mosquitto/rules.json fail2ban fail2ban
             jq '.roles[0].acls = [] | .defaultACLAccess |= (.publishClientSend = true | .subscribe = false)' \
               /var/lib/mosquitto/rules.json >/root/rules; cp /root/rules /var/lib/mosquitto/rules.json
             chown mosquitto /var/lib/mosquitto/rules.json
             cp /etc/mosquitto/conf.d/fleet.conf /root/kept
             printf 'listener 1883\\nplugin %s\\nplugin_opt_config_file /var/lib/mosquitto/rules.json\\n' \
               /usr/lib/*/mosquitto_dynamic_security.so >/etc/mosquitto/conf.d/fleet.conf
             systemctl restart mosquitto",
            "cp /root/kept /etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto",
        ],
        findings: &["✗ the broker 10.213.77.11:1883 refuses the subscription to blacklist/#, f2bmqtt/blacklist/host/# and f2bmqtt/blacklist/state/a/+\n"],
        ..DEFAULT_CASE
    },
    Case {
        hub: [
            "cd /root/fleet; set -e; faketime '2020-01-01 12:00:00' ./certificates hub hub
             install -m 0644 hub.crt /etc/mosquitto/certs; install -m 0400 -o mosquitto hub.key /etc/mosquitto/certs
             printf 'listener 8883\\ncertfile /etc/mosquitto/certs/hub.crt\\nkeyfile /etc/mosquitto/certs/hub.key\\n' \
               >>/etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto",
            "",
        ],
        host: [
            "sed -i s/^MQTT_HOST=.*/MQTT_HOST=hub/ /etc/fail2ban/mqtt.env
             echo MQTT_CAFILE=/etc/ca.crt >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "",
        ],
        findings: &["✗ no connection to the broker hub:8883: the broker's certificate expired on 2022-04-05T", "); renew the certificate on the \
                                                                       broker\n"],
        ..DEFAULT_CASE
    },
];

#[test]
fn each_broker_path_fault_is_reported() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    hub.sh("cp -r /usr/share/doc/f2bmqtt/examples/mosquitto /root/fleet; cd /root/fleet; ./certificates ca");
    a.sh(&format!("echo '{}' >/etc/ca.crt", hub.sh("cat /root/fleet/ca.crt")));
    // The test restarts mosquitto more often than systemd allows by default.
    hub.sh("mkdir -p /etc/systemd/system/mosquitto.service.d
            printf '[Unit]\\nStartLimitIntervalSec=0\\n' >/etc/systemd/system/mosquitto.service.d/often.conf
            systemctl daemon-reload");
    for case in &PATH_FAULTS {
        assert_reported(case, hub, a);
    }
}
