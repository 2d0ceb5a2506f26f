//! `f2bmqtt check` on real hosts: a sound one has nothing but ticks, and each fault that it knows is made
//! and named, with what to do.

mod host;
mod others;
mod readme;
#[path = "../support/mod.rs"]
mod support;
mod way;

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
        // The only host of a rig is alone.
        let alone = |line: &str| {
            line.starts_with("! no other host with f2bmqtt is on")
                || line.starts_with("    MQTT_TOPIC and")
        };
        last.1 == 0 && last.0.lines().all(|line| line.starts_with("✓ ") || alone(line))
    });
    assert!(sound, "{}\nexit code {}", last.0, last.1);
}

/// A fault: how it is made on the hub and on the host, what is said of it, and how it is mended.
struct Case {
    hub: [&'static str; 2],
    host: [&'static str; 2],
    said: &'static [&'static str],
    /// Commands, and what each prints.
    shows: &'static [(&'static str, &'static str)],
    code: i32,
}

const FAULT: Case = Case { hub: ["", ""], host: ["", ""], said: &[], shows: &[], code: 1 };

const RULES: &str = "chown mosquitto /etc/mosquitto/acl
    echo 'acl_file /etc/mosquitto/acl' >>/etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto";
const NO_RULES: &str =
    "sed -i '/acl_file/d' /etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto";

fn is_named(case: &Case, hub: Host<'_>, host: Host<'_>) {
    // What mended the fault before may have started it this moment.
    eventually("fail2ban answers", || host.ask("ping").is_ok());
    hub.sh(&case.hub[0].replace("RULES", RULES));
    host.sh(case.host[0]);
    let mut last = (String::new(), 0);
    let named = becomes(SOON, || {
        last = check(host);
        last.1 == case.code && case.said.iter().all(|words| last.0.contains(words))
    });
    assert!(named, "{:?}\n{}\nexit code {}", case.said, last.0, last.1);
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
    // A host that runs the scripts hears it, too.
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/scripts/mqttsubscribebans");
    web2.push(&script, "/srv/subscriber");
    web2.sh("systemd-run -q -u script -p StandardOutput=append:/root/lines bash /srv/subscriber");
    eventually("the script subscribes", || {
        hub.publish("blacklist/probe", r#"{"action":"probe"}"#);
        web2.sh("cat /root/lines").contains("probe")
    });
    let retained = || {
        let kept = hub.try_sh(
            "mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -t 'f2bmqtt/blacklist/#' -F '%t %p' \
             --retained-only -W 1 | sort",
        );
        kept.unwrap_or_else(|kept| kept) // it ends by its time-out
    };
    is_sound(web1);
    eventually("both are online", || check(web1).0.contains("✓ other hosts online: web2"));
    let (text, _) = check(web1);
    for line in [
        "✓ the settings in /etc/fail2ban/mqtt.env are valid",
        "✓ the broker 10.213.77.11:1883 accepts the login fail2ban",
        "✓ messages of this host on blacklist/ban, blacklist/unban, f2bmqtt/blacklist/state/web1 and \
         f2bmqtt/blacklist/host/web1 arrive",
        "✓ the service f2bmqttsub runs",
        "✓ both, sshd and web share their bans",
        "✓ fail2ban can write to /var/lib/f2bmqtt/spool",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\n{text}");
    }
    let kept = retained();
    assert!(kept.contains("f2bmqtt/blacklist/host/web1 ") && !kept.contains("check"), "{kept}");
    // The daemons take no notice; the script prints a line, and bans nobody.
    eventually("the script has heard it", || {
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
    // It is for root alone.
    let out = web1.run("setpriv --reuid nobody f2bmqtt check");
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("check must run as root"));
    readme::is_what_it_prints(&rig);
}
