//! The exporters: Prometheus' own tools and Home Assistant's own code, with the installed package.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use support::{Host, Rig, becomes, eventually, home_root};

const EXAMPLES: &str = "/usr/share/doc/f2bmqtt/examples";

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Starts Home Assistant's code on the hub. It writes its devices and states to a file.
fn start_home(hub: Host<'_>) {
    hub.push(&repository("tests/support/home.py"), "/root/home.py");
    hub.sh("systemd-run -q -u home -p Restart=no -E PYTHONPATH=/opt/homeassistant \
            python3 /root/home.py /root/seen.json /root/home");
}

/// Home Assistant's devices, states and errors.
fn home(hub: Host<'_>) -> Value {
    let text = hub.try_sh("cat /root/seen.json").unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The state of one entity.
fn state(hub: Host<'_>, entity: &str) -> String {
    home(hub)["states"][entity]["state"].as_str().unwrap_or_default().to_owned()
}

fn shows(hub: Host<'_>, entity: &str, expected: &str) {
    eventually(&format!("{entity} is {expected}"), || state(hub, entity) == expected);
}

fn set(host: Host<'_>, settings: &str) {
    host.sh(&format!("printf '{settings}' >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub"));
    host.ready();
}

#[test]
fn home_assistant_and_prometheus_accept_exports() {
    let rig = Rig::fleet_from(&home_root(), &["a", "b.example"]);
    let (hub, a, b) = (rig.host("hub"), rig.host("a"), rig.host("b.example"));
    start_home(hub);
    set(a, "MQTT_HA_PREFIX=homeassistant\\nMQTT_METRICS=on\\n");
    set(b, "MQTT_HA_PREFIX=homeassistant\\n");
    shows(hub, "binary_sensor.fail2ban_on_a_connection", "on");
    shows(hub, "sensor.fail2ban_on_a_bans", "0");

    a.attack("auth", &["203.0.113.9"]);
    eventually("both hosts ban the address", || {
        a.bans("sshd", "203.0.113.9") && b.bans("sshd", "203.0.113.9")
    });
    for host in ["a", "b_example"] {
        shows(hub, &format!("sensor.fail2ban_on_{host}_bans"), "1");
        shows(hub, &format!("sensor.fail2ban_on_{host}_bans_in_sshd"), "1");
        shows(hub, &format!("sensor.fail2ban_on_{host}_bans_in_web"), "0");
        let version = format!("sensor.fail2ban_on_{host}_version");
        shows(hub, &version, env!("CARGO_PKG_VERSION"));
    }
    eventually("the origin has an event of the ban", || last_ban(hub, "a")["ip"] == "203.0.113.9");
    let last = last_ban(hub, "a");
    assert_eq!((&last["event_type"], &last["jail"]), (&"ban".into(), &"sshd".into()));
    assert_eq!(last_ban(hub, "b_example")["ip"], Value::Null, "only the origin has the event");

    // Home Assistant restarts on a broker that has lost its retained messages.
    let lose =
        "mosquitto_pub -u fail2ban -P fail2ban -r -n -t homeassistant/device/f2bmqtt_a/config";
    // If a publishes its configuration at the same moment, the device comes back.
    let gone = (0..3).any(|_| {
        hub.sh(lose);
        becomes(Duration::from_secs(10), || !has_device(hub, "a"))
    });
    assert!(gone, "without its topic the device is gone");
    hub.publish("homeassistant/status", "online");
    shows(hub, "sensor.fail2ban_on_a_bans", "1");

    b.sh("systemctl kill -s KILL f2bmqttsub; systemctl stop f2bmqttsub");
    shows(hub, "binary_sensor.fail2ban_on_b_example_connection", "off");
    shows(hub, "sensor.fail2ban_on_b_example_bans", "unavailable");
    a.sh("f2bmqtt forget b.example");
    eventually("a removed host has no device", || !has_device(hub, "b.example"));
    assert!(has_device(hub, "a"));
    assert_eq!(home(hub)["errors"], Value::Array(Vec::new()));

    prometheus(a);
}

/// The last ban event of a host.
fn last_ban(hub: Host<'_>, host: &str) -> Value {
    home(hub)["states"][format!("event.fail2ban_on_{host}_last_ban")].clone()
}

fn has_device(hub: Host<'_>, host: &str) -> bool {
    let name = format!("fail2ban on {host}");
    home(hub)["devices"].as_array().is_some_and(|all| all.iter().any(|d| d["name"] == *name))
}

/// promtool accepts the metrics and the rules, and the node exporter exports the file.
fn prometheus(a: Host<'_>) {
    let file = "/run/f2bmqtt/f2bmqtt.prom";
    eventually("the ban is counted", || {
        a.sh(&format!("cat {file}")).contains("f2bmqtt_bans{jail=\"sshd\",kind=\"detected\"} 1\n")
    });
    assert!(
        a.sh(&format!("cat {file}")).contains("\nf2bmqtt_fleet_hosts 1\n"),
        "b is the only other host"
    );
    assert_eq!(a.sh(&format!("stat -c %a:%U {file}")), "644:root");
    assert_eq!(a.sh(&format!("promtool check metrics <{file} 2>&1")), "");
    a.sh(&format!("promtool check rules {EXAMPLES}/prometheus/f2bmqtt.rules.yml"));
    a.push(&repository("tests/support/f2bmqtt.rules.test.yml"), "/root/test.yml");
    a.sh(&format!("cd /root; cp {EXAMPLES}/prometheus/f2bmqtt.rules.yml . && promtool test rules test.yml 2>&1"));
    a.sh(&format!("ln -s {file} /var/lib/prometheus/node-exporter/"));
    a.sh("systemctl start prometheus-node-exporter");
    let mut scraped = String::new();
    eventually("the node exporter exports the file", || {
        scraped = a
            .try_sh(
                "python3 -c 'import urllib.request as u
print(u.urlopen(\"http://127.0.0.1:9100/metrics\").read().decode())'",
            )
            .unwrap_or_default();
        scraped.contains("\nf2bmqtt_broker_connected 1\n")
    });
    assert!(scraped.contains("node_textfile_scrape_error 0"), "{scraped}");
    a.sh("systemctl stop f2bmqttsub");
    assert!(a.try_sh(&format!("cat {file}")).is_err(), "a stopped daemon leaves no old metrics");
}

#[test]
fn dashboard_and_alerts_use_existing_metrics() {
    let source = std::fs::read_to_string(repository("src/daemon/exporters/prometheus.rs")).unwrap();
    let dashboard = std::fs::read_to_string(repository("examples/grafana/f2bmqtt.json")).unwrap();
    let parsed: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().len() > 5);
    // A stat panel without thresholds turns red at 80. A sum over hosts counts a ban of two servers twice.
    for panel in parsed["panels"].as_array().unwrap() {
        let (title, query) = (&panel["title"], panel["targets"][0]["expr"].as_str().unwrap());
        if panel["type"] == "stat" {
            let steps = &panel["fieldConfig"]["defaults"]["thresholds"]["steps"];
            assert!(steps.as_array().is_some_and(|steps| !steps.is_empty()), "{title}");
            assert!(!query.starts_with("sum(f2bmqtt_bans"), "{title}: {query}");
        }
    }
    let rules = repository("examples/prometheus/f2bmqtt.rules.yml");
    let rules = std::fs::read_to_string(rules).unwrap();
    let mut names = BTreeSet::new();
    for text in [&dashboard, &rules] {
        for after in text.split("f2bmqtt_").skip(1) {
            let name = after
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_' || c.is_ascii_digit());
            names.insert(name.collect::<String>());
        }
    }
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        assert!(source.contains(&format!("\"{name}\"")), "no metric f2bmqtt_{name}");
    }
}
