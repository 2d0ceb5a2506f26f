//! `f2bmqtt check` on real hosts: a sound one has nothing but ticks, and each fault that it knows is made
//! and named, with what to do.

mod support;

use std::path::Path;

use support::{Host, Rig, SOON, becomes, eventually};

/// What `check` printed, and its exit code.
fn check(host: Host<'_>) -> (String, i32) {
    let out = host.run("f2bmqtt check");
    let text = [out.stdout, out.stderr].concat();
    (String::from_utf8(text).unwrap(), out.status.code().unwrap())
}

fn is_sound(host: Host<'_>) {
    let mut last = (String::new(), 0);
    let sound = becomes(SOON, || {
        last = check(host);
        last.1 == 0 && last.0.lines().all(|line| line.starts_with("✓ "))
    });
    assert!(sound, "{}\nexit code {}", last.0, last.1);
}

/// A fault: how it is made on the hub and on the host, what is said of it, and how it is mended.
struct Case {
    hub: [&'static str; 2],
    host: [&'static str; 2],
    said: &'static [&'static str],
    code: i32,
}

const FAULT: Case = Case { hub: ["", ""], host: ["", ""], said: &[], code: 1 };

fn is_named(case: &Case, hub: Host<'_>, host: Host<'_>) {
    hub.sh(&case.hub[0].replace("RULES", RULES));
    host.sh(case.host[0]);
    let mut last = (String::new(), 0);
    let named = becomes(SOON, || {
        last = check(host);
        last.1 == case.code && case.said.iter().all(|words| last.0.contains(words))
    });
    assert!(named, "{:?}\n{}\nexit code {}", case.said, last.0, last.1);
    hub.sh(case.hub[1]);
    host.sh(case.host[1]);
}

#[test]
fn a_sound_host_has_ticks_alone_and_looking_leaves_nothing_behind() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    // A host that runs the scripts hears it, too.
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/scripts/mqttsubscribebans");
    b.push(&script, "/srv/subscriber");
    b.sh("systemd-run -q -u script -p StandardOutput=append:/root/lines bash /srv/subscriber");
    eventually("the script subscribes", || {
        hub.publish("blacklist/probe", r#"{"action":"probe"}"#);
        b.sh("cat /root/lines").contains("probe")
    });
    let retained = || {
        let kept = hub.try_sh(
            "mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -t 'blacklist/#' -F '%t %p' \
             --retained-only -W 1 | sort",
        );
        kept.unwrap_or_else(|kept| kept) // it ends by its time-out
    };
    is_sound(a);
    eventually("both are online", || check(a).0.contains("✓ online, too: b"));
    let (text, _) = check(a);
    for line in [
        "✓ the settings in /etc/fail2ban/mqtt.env can be used",
        "✓ 10.213.77.11:1883 lets this host in as fail2ban",
        "✓ what this host publishes on blacklist/ban, blacklist/unban, blacklist/state/a and \
         blacklist/host/a arrives",
        "✓ the service f2bmqttsub runs",
        "✓ both, sshd and web share their bans",
        "✓ fail2ban can write to /var/lib/f2bmqtt/spool",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\n{text}");
    }
    let kept = retained();
    assert!(kept.contains("blacklist/host/a ") && !kept.contains("check"), "{kept}");
    // The daemons take no notice; the script prints a line, and bans nobody.
    eventually("the script has heard it", || {
        b.sh("cat /root/lines").contains("Inbound: check 192.0.2.0 - ipset f2bmqtt-check from a")
    });
    for host in [a, b] {
        assert!(!host.journal().contains("192.0.2.0"), "{}", host.journal());
        assert_eq!(host.sh("fail2ban-client banned 192.0.2.0"), "[[]]");
    }
    let object: serde_json::Value = serde_json::from_str(&a.sh("f2bmqtt check --json")).unwrap();
    assert_eq!((&object["state"], &object["faults"]), (&"ok".into(), &0.into()));
    let checks = object["checks"].as_array().unwrap();
    let ids: Vec<_> = checks.iter().map(|check| check["id"].as_str().unwrap()).collect();
    let expected = [
        "settings",
        "broker_port",
        "broker_login",
        "broker_subscribe",
        "broker_publish",
        "fleet_name",
        "fleet_hosts",
        "clock",
        "service",
        "links",
        "disk",
        "fail2ban",
        "jail_shares",
        "fail2ban_sandbox",
    ];
    assert_eq!(ids, expected);
    // It is for root alone.
    let out = a.run("setpriv --reuid nobody f2bmqtt check");
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("check must be run by root"));
}

const RULES: &str = "chown mosquitto /etc/mosquitto/acl
    echo 'acl_file /etc/mosquitto/acl' >>/etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto";
const NO_RULES: &str =
    "sed -i '/acl_file/d' /etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto";

/// Faults on the way to the broker. `RULES` stands for what brings access rules into force.
const WAYS: [Case; 10] = [
    Case {
        host: [
            "sed -i s/^MQTT_PASSWORD=.*/MQTT_PASSWORD=x/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "sed -i s/^MQTT_PASSWORD=.*/MQTT_PASSWORD=fail2ban/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        said: &[
            "✗ 10.213.77.11:1883: it refuses the login: check MQTT_USER and MQTT_PASSWORD\n",
            "mosquitto_passwd -b /etc/mosquitto/passwd fail2ban PASSWORD",
            "1 fault, 0 warnings",
        ],
        ..FAULT
    },
    Case {
        host: [
            "sed -i s/^MQTT_HOST=.*/MQTT_HOST=no.such.host/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "",
        ],
        said: &["✗ no.such.host:1883: the name cannot be resolved: ", "getent hosts no.such.host"],
        ..FAULT
    },
    Case {
        host: [
            "sed -i s/^MQTT_HOST=.*/MQTT_HOST=hub:1884/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "",
        ],
        said: &["✗ hub:1884 at 10.213.77.11: nothing listens there\n", "systemctl status mosquitto"],
        ..FAULT
    },
    Case {
        host: [
            "sed -i s/^MQTT_HOST=.*/MQTT_HOST=192.168.1.10/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "sed -i s/^MQTT_HOST=.*/MQTT_HOST=10.213.77.11/ /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        said: &[
            "✗ /etc/fail2ban/mqtt.env is as it was shipped: it names no broker of yours\n",
            "✗ 192.168.1.10:1883: Network is unreachable",
        ],
        ..FAULT
    },
    Case {
        host: [
            "cp -p /etc/fail2ban/mqtt.env /root/kept
             printf 'MQTT_HOST=a b\\nMQTT_PORT=0\\nMQTT_TOPIC=t\\n' >/etc/fail2ban/mqtt.env",
            "cp -p /root/kept /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        said: &[
            "✗ /etc/fail2ban/mqtt.env, line 1: has more after the value",
            "✗ /etc/fail2ban/mqtt.env, line 2: MQTT_PORT has a port that is no number",
        ],
        code: 78,
        ..FAULT
    },
    Case {
        hub: [
            "nft add table inet t; nft 'add chain inet t i { type filter hook input priority 0; }'
             nft add rule inet t i tcp dport 1883 drop",
            "nft delete table inet t",
        ],
        said: &[
            "✗ 10.213.77.11:1883: no answer within 3 s: the packets are dropped on the way\n",
            "let TCP port 1883 through the firewalls",
        ],
        ..FAULT
    },
    // mosquitto takes what its rules forbid, and drops it.
    Case {
        hub: [
            "printf 'user fail2ban\\ntopic read blacklist/#\\ntopic write blacklist/unban\\n\
             topic write blacklist/host/a\\n' >/etc/mosquitto/acl; RULES",
            NO_RULES,
        ],
        said: &[
            "✗ 10.213.77.11:1883 drops what this host publishes on blacklist/ban, without a word\n",
            "✗ 10.213.77.11:1883 drops what this host publishes on blacklist/state/a, without a word\n",
            "let fail2ban write blacklist/state/a/#\n",
            "✓ what this host publishes on blacklist/unban and blacklist/host/a arrives\n",
        ],
        ..FAULT
    },
    // It also takes a subscription that they forbid, and hands out nothing.
    Case {
        hub: ["printf 'user fail2ban\\ntopic write blacklist/#\\n' >/etc/mosquitto/acl; RULES", NO_RULES],
        said: &[
            "✗ 10.213.77.11:1883 hands out nothing of what this host publishes",
            "the broker's access rules must let fail2ban read blacklist/#\n",
        ],
        ..FAULT
    },
    // Its plugin for such rules says no.
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
        said: &["✗ 10.213.77.11:1883 refuses the subscription to blacklist/+, blacklist/+/+ and blacklist/state/a/+\n"],
        ..FAULT
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
        said: &["✗ hub:8883: its certificate expired on 2022-04-05T", ": renew it there\n"],
        ..FAULT
    },
];

#[test]
fn each_fault_on_the_way_to_the_broker_is_named() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    hub.sh("cp -r /usr/share/doc/f2bmqtt/examples/mosquitto /root/fleet; cd /root/fleet; ./certificates ca");
    a.sh(&format!("echo '{}' >/etc/ca.crt", hub.sh("cat /root/fleet/ca.crt")));
    for case in &WAYS {
        is_named(case, hub, a);
    }
}

/// Adds jails to a host's fail2ban, and takes them away.
const NO_JAILS: &str = "rm /etc/fail2ban/jail.d/more.local; fail2ban-client reload";

/// Faults of the host itself.
const HOSTS: [Case; 21] = [
    Case {
        host: [
            "printf '[quiet]\nenabled = true\nlogpath = /var/log/auth.log\naction = nftables[type=allports]\n' \
               >/etc/fail2ban/jail.d/more.local; fail2ban-client reload",
            "",
        ],
        said: &[
            "✗ the jail quiet does not share its bans: its action is nftables\n",
            "        [quiet]\n        action = %(action_)s\n                 f2bmqtt\n    \
             then: fail2ban-client reload --restart quiet\n",
        ],
        ..FAULT
    },
    // A reload without --restart does not bring a new action.
    Case {
        host: [
            "printf '         f2bmqtt\n' >>/etc/fail2ban/jail.d/more.local; fail2ban-client reload",
            "fail2ban-client reload --restart quiet",
        ],
        said: &[
            "✗ the jail quiet does not share its bans yet: fail2ban has not loaded the action",
            "    fail2ban-client reload --restart quiet\n",
        ],
        ..FAULT
    },
    // The step that was named has helped.
    Case { said: &["✓ both, quiet, sshd and web share their bans\n"], code: 0, ..FAULT },
    Case {
        host: [
            "sed -i '/f2bmqtt/d' /etc/fail2ban/jail.d/more.local; fail2ban-client reload --restart quiet
             echo MQTT_NOT_JAILS=quiet >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "sed -i '/MQTT_NOT_JAILS/d' /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        said: &["✓ quiet takes no part, as the settings say\n"],
        code: 0,
        ..FAULT
    },
    Case {
        host: [
            "printf '[late]\nenabled = true\nlogpath = /var/log/auth.log\n' >/etc/fail2ban/jail.d/more.local",
            "fail2ban-client reload",
        ],
        said: &["! the jail late is configured, and fail2ban does not run it\n"],
        ..FAULT
    },
    Case {
        host: [
            "printf '[late]\nenabled = true\nfilter = none\n' >/etc/fail2ban/jail.d/more.local
             fail2ban-client reload",
            "",
        ],
        said: &["! of its configuration, fail2ban says: "],
        code: 0,
        ..FAULT
    },
    Case {
        host: [
            "echo 'enabled = true' >/etc/fail2ban/jail.d/more.local; systemctl stop fail2ban",
            "rm /etc/fail2ban/jail.d/more.local; systemctl start fail2ban",
        ],
        said: &[
            "✗ fail2ban does not answer at /run/fail2ban/fail2ban.sock: No such file or directory",
            "✗ fail2ban's configuration cannot be used: ",
            "    systemctl restart fail2ban\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "mkdir -p /etc/systemd/system/fail2ban.service.d
             printf '[Service]\nProtectSystem=strict\nReadWritePaths=/var/run/fail2ban /var/lib/fail2ban /var/log\n' \
               >/etc/systemd/system/fail2ban.service.d/x.conf; systemctl daemon-reload; systemctl restart fail2ban",
            "",
        ],
        said: &[
            "✗ fail2ban cannot write to /var/lib/f2bmqtt/spool: its unit makes that read-only for it",
            "        ReadWritePaths=/var/lib/f2bmqtt\n    then: systemctl restart fail2ban\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "printf '[Service]\nInaccessiblePaths=/var/lib/f2bmqtt\n' \
               >/etc/systemd/system/fail2ban.service.d/x.conf; systemctl daemon-reload; systemctl restart fail2ban",
            "rm /etc/systemd/system/fail2ban.service.d/x.conf; systemctl daemon-reload; systemctl restart fail2ban",
        ],
        said: &["✗ fail2ban cannot write to /var/lib/f2bmqtt/spool: its unit shows it something else there"],
        ..FAULT
    },
    Case {
        host: [
            "systemctl disable -q --now f2bmqttsub; touch -d '5 minutes ago' /var/lib/f2bmqtt/spool/1.waits",
            "rm /var/lib/f2bmqtt/spool/1.waits; systemctl enable -q --now f2bmqttsub",
        ],
        said: &[
            "✗ the service f2bmqttsub does not run: nothing is banned here for others\n    \
             systemctl enable --now f2bmqttsub\n",
            "! the service f2bmqttsub does not start with this host: it is disabled\n",
            "! 1 event waits to be published, the first for 5 min\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "cp /usr/lib/systemd/system/f2bmqttsub.service /etc/systemd/system/; systemctl daemon-reload",
            "mv /etc/systemd/system/f2bmqttsub.service /etc/systemd/system/f2bmqttsub.service.old
             systemctl daemon-reload; systemctl -q reenable f2bmqttsub; systemctl restart f2bmqttsub",
        ],
        said: &[
            "✗ systemd runs /etc/systemd/system/f2bmqttsub.service in the place of the package's unit\n",
            "    systemctl reenable f2bmqttsub; systemctl restart f2bmqttsub\n",
        ],
        ..FAULT
    },
    Case {
        host: ["sleep 1; touch /etc/fail2ban/mqtt.env", "systemctl restart f2bmqttsub"],
        said: &["✗ the service runs with older settings: /etc/fail2ban/mqtt.env was changed "],
        ..FAULT
    },
    Case {
        host: [
            "cp -p /usr/bin/f2bmqtt /usr/bin/f2bmqtt.new; mv /usr/bin/f2bmqtt.new /usr/bin/f2bmqtt",
            "systemctl restart f2bmqttsub",
        ],
        said: &["! the service still runs the version before the one that is installed\n"],
        code: 0,
        ..FAULT
    },
    Case {
        host: [
            "printf '#!/bin/bash\nsleep 1000\n:\n' >/opt/mqttsubscribebans; chmod 755 /opt/mqttsubscribebans
             systemd-run -q -u old /opt/mqttsubscribebans",
            "systemctl stop old",
        ],
        said: &[
            "✗ a script mqttsubscribebans still runs, as process ",
            "    systemctl disable --now old.service\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "rm /etc/fail2ban/mqttnotifyban; echo '#!/bin/sh' >/etc/fail2ban/mqttnotifyban",
            "dpkg-reconfigure f2bmqtt; systemctl enable -q --now f2bmqttsub",
        ],
        said: &[
            "✗ /etc/fail2ban/mqttnotifyban is no link to /usr/bin/f2bmqtt: what calls it runs something else\n",
            "    dpkg-reconfigure f2bmqtt; systemctl enable --now f2bmqttsub\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "echo '# mine' >/etc/fail2ban/action.d/iptables-ipset.local.ucf-dist
             mv /etc/fail2ban/action.d/abuseipdb.local /root/",
            "rm /etc/fail2ban/action.d/iptables-ipset.local.ucf-dist
             mv /root/abuseipdb.local /etc/fail2ban/action.d/",
        ],
        said: &[
            "! /etc/fail2ban/action.d/iptables-ipset.local is your own, and the package's waits beside it\n",
            "! /etc/fail2ban/action.d/abuseipdb.local is missing\n",
        ],
        code: 0,
        ..FAULT
    },
    Case {
        host: [
            "chmod 755 /var/lib/f2bmqtt; chmod 644 /etc/fail2ban/mqtt.env",
            "chmod 700 /var/lib/f2bmqtt; chmod 600 /etc/fail2ban/mqtt.env",
        ],
        said: &[
            "✗ others than root can get at /var/lib/f2bmqtt (its mode is 0755)\n",
            "! /etc/fail2ban/mqtt.env can be read by others, and holds a password: chmod 600",
        ],
        ..FAULT
    },
    Case {
        host: ["mount -t tmpfs -o size=64k,mode=700 none /var/lib/f2bmqtt", "umount /var/lib/f2bmqtt"],
        said: &["✗ 64 KiB more fits where /var/lib/f2bmqtt is: what cannot be written there, a restart forgets\n"],
        ..FAULT
    },
    Case {
        host: [
            "printf '[old]\nenabled = true\nlogpath = /var/log/fail2ban.log\naction = %%(action_)s\n         \
             %%(action_abuseipdb)s[abuseipdb_category=18]\n' >/etc/fail2ban/jail.d/more.local
             fail2ban-client reload",
            "",
        ],
        said: &[
            "✗ old reports to AbuseIPDB, and there is no key: /etc/fail2ban/abuseipdb.apikey is missing\n",
            "✗ the jail old counts bans, those of other servers too, and reports them to AbuseIPDB",
        ],
        ..FAULT
    },
    Case {
        host: ["echo APIKEY=YOUR_API_KEY >/etc/fail2ban/abuseipdb.apikey", ""],
        said: &[
            "! /etc/fail2ban/abuseipdb.apikey can be read by others: chmod 600",
            "✗ old reports to AbuseIPDB, and /etc/fail2ban/abuseipdb.apikey holds no key, at most the place",
        ],
        ..FAULT
    },
    Case {
        host: ["echo 'APIKEY=a b' >/etc/fail2ban/abuseipdb.apikey", NO_JAILS],
        said: &["! /etc/fail2ban/abuseipdb.apikey, line 1: has more after the value"],
        ..FAULT
    },
];

#[test]
fn each_fault_of_the_host_is_named() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    for case in &HOSTS {
        is_named(case, hub, a);
    }
    is_sound(a);
}

/// Faults that show in what other hosts say.
const OTHERS: [Case; 3] = [
    Case {
        hub: [
            "now=$(date +%s)
             pub() { mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -r -t \"$1\" -m \"$2\"; }
             pub blacklist/host/far '{\"v\":1,\"state\":\"online\"}'
             pub blacklist/state/far/0 \"{\\\"v\\\":1,\\\"host\\\":\\\"far\\\",\\\"stamp\\\":$((now + 600))000,\\\"part\\\":0,\\\"parts\\\":1,\\\"bans\\\":[],\\\"unbans\\\":[]}\"",
            "for topic in host/far state/far/0; do
               mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -r -t blacklist/$topic -n
             done",
        ],
        said: &["✗ the clock of far is at least ", "timedatectl"],
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
        said: &["✗ another machine is called b, too: each drives the other off the broker\n", "set MQTT_NODE"],
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
    // Whichever of the two is connected at the moment.
    for host in [a, b, a, b] {
        let (text, code) = check(host);
        assert!(code == 1 && text.contains("✗ another machine is called b, too"), "{text}");
    }
}
