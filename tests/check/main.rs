//! `f2bmqtt check` on real hosts: a healthy host passes all checks. The tests make each fault that `check` knows, and
//! expect the finding and the suggested fix.

mod host;
mod others;
mod readme;
#[path = "../support/mod.rs"]
mod support;
mod way;

use std::path::Path;

use support::{CONDITION_LIMIT, Host, Rig, becomes, eventually};

/// The output of `check`, and its exit code.
fn check(host: Host<'_>) -> (String, i32) {
    let out = host.run("f2bmqtt check");
    let text = [out.stdout, out.stderr].concat();
    (String::from_utf8(text).unwrap(), out.status.code().unwrap())
}

fn assert_sound(host: Host<'_>) {
    let mut last = (String::new(), 0);
    let sound = becomes(CONDITION_LIMIT, || {
        last = check(host);
        // A rig with one host has no other host on the topic.
        let expected = ["✓ ", "! no other host with f2bmqtt is on", "    MQTT_TOPIC and"];
        last.1 == 0
            && last.0.lines().all(|line| expected.iter().any(|start| line.starts_with(start)))
    });
    assert!(sound, "{}\nexit code {}", last.0, last.1);
}

/// A fault, and the findings about it.
struct Case {
    /// Scripts that make and repair the fault on the hub.
    hub: [&'static str; 2],
    /// Scripts that make and repair the fault on the host.
    host: [&'static str; 2],
    findings: &'static [&'static str],
    /// Commands, and a text in the output of each.
    shows: &'static [(&'static str, &'static str)],
    code: i32,
}

const DEFAULT_CASE: Case =
    Case { hub: ["", ""], host: ["", ""], findings: &[], shows: &[], code: 1 };

const APPLY_ACL: &str = "chown mosquitto /etc/mosquitto/acl
    echo 'acl_file /etc/mosquitto/acl' >>/etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto";
const REMOVE_ACL: &str =
    "sed -i '/acl_file/d' /etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto";

fn assert_reported(case: &Case, hub: Host<'_>, host: Host<'_>) {
    // The repair of the previous fault may have restarted fail2ban a moment ago.
    eventually("fail2ban answers", || host.ask("ping").is_ok());
    hub.sh(&case.hub[0].replace("APPLY_ACL", APPLY_ACL));
    host.sh(case.host[0]);
    let mut last = (String::new(), 0);
    let named = becomes(CONDITION_LIMIT, || {
        last = check(host);
        last.1 == case.code && case.findings.iter().all(|text| last.0.contains(text))
    });
    assert!(named, "{:?}\n{}\nexit code {}", case.findings, last.0, last.1);
    for (command, text) in case.shows {
        eventually(command, || host.sh(command).contains(text));
    }
    hub.sh(case.hub[1]);
    host.sh(case.host[1]);
}

#[test]
fn healthy_host_passes_all_checks_and_check_leaves_no_trace() {
    let rig = Rig::fleet(&["web1", "web2"]);
    let (web1, web2, hub) = (rig.host("web1"), rig.host("web2"), rig.host("hub"));
    // A host that runs the scripts receives the messages of check, too.
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/scripts/mqttsubscribebans");
    web2.push(&script, "/srv/subscriber");
    web2.sh("systemd-run -q -u script -p StandardOutput=append:/root/lines bash /srv/subscriber");
    eventually("the script subscribes", || {
        hub.publish("blacklist/probe", r#"{"action":"probe"}"#);
        web2.sh("cat /root/lines").contains("probe")
    });
    assert_sound(web1);
    eventually("both are online", || check(web1).0.contains("✓ other hosts online: web2"));
    let (text, _) = check(web1);
    for line in [
        "✓ the settings in /etc/fail2ban/mqtt.env are valid",
        "✓ the broker 10.213.77.11:1883 accepts the login fail2ban",
        "✓ messages of this host on blacklist/ban, blacklist/unban, f2bmqtt/blacklist/state/web1 and \
         f2bmqtt/blacklist/host/web1 arrive",
        "✓ the service f2bmqttsub runs",
        "✓ jails `both`, `sshd` and `web` share their bans",
        "✓ fail2ban can write to /var/lib/f2bmqtt/spool",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let retained = hub.try_sh(
        "mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -t 'f2bmqtt/blacklist/#' -F '%t %p' \
         --retained-only -W 1 | sort",
    );
    let retained = retained.unwrap_or_else(|text| text); // mosquitto_sub ends by its time limit
    assert!(
        retained.contains("f2bmqtt/blacklist/host/web1 ") && !retained.contains("check"),
        "{retained}"
    );
    // The daemons ignore the probe. The script prints a line and makes no ban.
    eventually("the script prints the probe", || {
        web2.sh("cat /root/lines")
            .contains("Inbound: check 192.0.2.0 - ipset f2bmqtt-check from web1")
    });
    for host in [web1, web2] {
        let journal = host.journal();
        assert!(!journal.contains("192.0.2.0") && !journal.contains(" presence on "), "{journal}");
        assert_eq!(host.sh("fail2ban-client banned 192.0.2.0"), "[[]]");
    }
    let object: serde_json::Value = serde_json::from_str(&web1.sh("f2bmqtt check --json")).unwrap();
    assert_eq!((&object["state"], &object["faults"]), (&"ok".into(), &0.into()));
    let checks = object["checks"].as_array().unwrap();
    let ids: Vec<_> = checks.iter().map(|check| check["id"].as_str().unwrap()).collect();
    let expected = [
        "settings",
        "broker_port",
        "broker_login",
        "broker_subscribe",
        "broker_publish",
        "broker_retain",
        "fleet_name",
        "fleet_hosts",
        "clock",
        "service",
        "links",
        "disk",
        "link",
        "tables",
        "fail2ban",
        "jail_shares",
        "fail2ban_database",
        "fail2ban_sandbox",
    ];
    assert_eq!(ids, expected);
    let log = web1.sh("cat /var/log/fail2ban.log");
    assert!(!log.contains(" ERROR "), "{log}");
    // Only root may run check.
    let out = web1.run("setpriv --reuid games f2bmqtt check");
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("check must run as root"));
    readme::assert_docs_match(&rig);
}
