//! Two servers with the scripts and two with the package: each ban that expires causes one Ban and one Unban on each
//! server.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::support::{CONDITION_LIMIT, Host, Rig, eventually, install_scripts, within};

const SERVERS: [&str; 4] = ["a", "b", "old1", "old2"];

/// Four servers with this bantime, in seconds.
fn fleet(bantime: u64) -> Rig {
    let rig = Rig::fleet(&SERVERS);
    for host in rig.hosts(&SERVERS) {
        host.sh(&format!("sed -i 's/^bantime = .*/bantime = {bantime}/' /etc/fail2ban/jail.local"));
    }
    for host in rig.hosts(&["a", "b"]) {
        host.sh("systemctl restart fail2ban");
        host.ready();
    }
    for host in rig.hosts(&["old1", "old2"]) {
        install_scripts(host);
    }
    rig
}

/// The bans and unbans in fail2ban's log: action and address.
fn log(host: Host<'_>) -> Vec<(String, String)> {
    let text = host
        .sh(r"sed -nE 's/.*\] (Ban|Unban|Restore Ban) ([0-9.]+)$/\1 \2/p' /var/log/fail2ban.log");
    let parts = text.lines().filter_map(|line| line.rsplit_once(' '));
    parts.map(|(action, address)| (action.to_owned(), address.to_owned())).collect()
}

fn count(log: &[(String, String)], action: &str, address: &str) -> usize {
    log.iter().filter(|entry| entry.0 == action && entry.1 == address).count()
}

/// Waits until all servers have logged an action on some addresses.
fn wait_for_log(rig: &Rig, limit: Duration, action: &str, addresses: &[String]) {
    for host in rig.hosts(&SERVERS) {
        within(limit, &format!("{} logs {action} of {addresses:?}", host.name), || {
            let log = log(host);
            addresses.iter().all(|address| count(&log, action, address) > 0)
        });
    }
}

/// Each server detects addresses of its own for `time`; then all bans expire.
fn count_bans(time: Duration, bantime: u64, pause: Duration) {
    let rig = fleet(bantime);
    let mut addresses: Vec<String> = Vec::new();
    let started = Instant::now();
    while addresses.is_empty() || started.elapsed() < time {
        let batch: Vec<_> = (1..=SERVERS.len())
            .map(|n| {
                format!("198.51.{}.{}", 100 + addresses.len() / 200, addresses.len() % 200 + n)
            })
            .collect();
        for (host, address) in rig.hosts(&SERVERS).iter().zip(&batch) {
            // These failures always have the current time. On a busy machine, log lines could be too old for a ban.
            host.sh(&format!("fail2ban-client set sshd attempt {address} one two three"));
        }
        wait_for_log(&rig, CONDITION_LIMIT, "Ban", &batch);
        addresses.extend(batch);
        sleep(pause);
    }
    // The scripts print no lines about these commands either, except for the probe of check.
    rig.host("a").sh("f2bmqtt check && f2bmqtt list && f2bmqtt status");
    wait_for_log(&rig, CONDITION_LIMIT + Duration::from_secs(bantime), "Unban", &addresses);
    // All earlier messages arrive before this one.
    rig.host("b").sh("/etc/fail2ban/mqttnotifyban last 192.0.2.99 600 ban 0 1");
    for host in rig.hosts(&["old1", "old2"]) {
        let mut text = String::new();
        eventually("the script prints the last message", || {
            text = host.sh("journalctl -u scripts -o cat --no-pager | grep -v ^Started");
            text.contains("ban 192.0.2.99 ")
        });
        let prefixes =
            ["Inbound: ban ", "Inbound: unban ", "Inbound: check ", "Ban ", "UnBan ", "Jail "];
        for line in text.lines() {
            assert!(!line.contains("null"), "{}: {line}", host.name);
            let is_expected = prefixes.iter().any(|prefix| line.starts_with(prefix));
            assert!(is_expected, "{}: {line}", host.name);
        }
    }
    sleep(pause);
    for host in rig.hosts(&SERVERS) {
        let log = log(host);
        for address in &addresses {
            let counts = ["Ban", "Unban", "Restore Ban"].map(|action| count(&log, action, address));
            assert_eq!(counts, [1, 1, 0], "{} {address}: {log:?}", host.name);
        }
    }
    println!("{} bans on {} servers: one Ban and one Unban each", addresses.len(), SERVERS.len());
}

#[test]
fn each_ban_in_mixed_fleet_causes_one_ban_and_one_unban() {
    count_bans(Duration::ZERO, 8, Duration::ZERO);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn each_ban_in_mixed_fleet_causes_one_ban_and_one_unban_for_ten_minutes() {
    count_bans(Duration::from_mins(10), 45, Duration::from_secs(10));
}
