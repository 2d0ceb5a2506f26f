//! An unmodified Debian: its own jails, logs and ban actions, and the package with the documented settings.

use super::support::{
    CONDITION_LIMIT, Host, Rig, becomes, eventually, layer, package, server_root,
};
use super::{banned, key, listed};

const JAILS: [&str; 4] = ["asterisk", "nsd", "recidive", "sshd"];

/// The differences between the releases.
struct Release {
    suite: &'static str,
    fail2ban: &'static str,
    /// The actions of the jails, as `check` names them.
    actions: [&'static str; 4],
}

const BOOKWORM: Release = Release {
    suite: "bookworm",
    fail2ban: "1.0.2",
    actions: [
        "actions are iptables-multiport-tcp and iptables-multiport-udp",
        "actions are iptables-multiport-tcp and iptables-multiport-udp",
        "action is iptables-allports",
        "action is iptables-multiport",
    ],
};

const TRIXIE: Release = Release {
    suite: "trixie",
    fail2ban: "1.1.0",
    actions: [
        "actions are nftables-tcp and nftables-udp",
        "actions are nftables-tcp and nftables-udp",
        "action is nftables",
        "action is nftables",
    ],
};

/// A hub and two servers, with only the changes of the README.
fn fleet(release: &Release) -> Rig {
    let base = server_root(release.suite);
    let root = layer(&base, include_str!("../support/stock.sh"), &[package()]);
    let rig = Rig::up(&root, &["hub", "a", "b"]);
    rig.host("hub").sh("systemctl stop f2bmqttsub fail2ban && systemctl start mosquitto");
    for host in rig.hosts(&["a", "b"]) {
        eventually("the daemon knows fail2ban's jails and the broker", || {
            let journal = host.journal();
            journal.contains("connected to fail2ban; jails: asterisk, nsd, recidive, sshd")
                && journal.contains("connected to the broker")
        });
    }
    rig
}

/// Makes each jail's own filter detect an address: NET.1 in the first jail, and so on.
fn attack(host: Host<'_>, net: &str) {
    // sshd's filter reads the journal's entries of a process with this name. The process keeps running, so that
    // journald can look up its name.
    host.sh(&format!(
        r#"now=$(date '+%Y-%m-%d %H:%M:%S')
           for n in $(seq 10); do
               echo "[$now] NOTICE[1] chan_sip.c: Registration from 'x' failed for '{net}.1:5060' - Wrong password"
           done >>/var/log/asterisk/messages
           for n in $(seq 5); do
               echo "[$(date +%s)] nsd[1]: info: ratelimit block x. type any target x query {net}.2 TYPE255"
           done >>/var/log/nsd.log
           for n in $(seq 5); do
               echo "$now,000 fail2ban.actions [30]: NOTICE  [mail] Ban {net}.3"
           done >>/var/log/fail2ban.log
           mkdir -p /root/as; cp -u /usr/bin/logger /root/as/sshd
           for n in $(seq 5); do
               echo "echo 'Failed password for root from {net}.4 port 4711 ssh2'"
           done >/run/logins
           systemd-run -q sh -c '{{ sh /run/logins; sleep infinity; }} | /root/as/sshd -t sshd'"#
    ));
}

/// Waits until both hosts have the bans of one of them, each in the jail that detected the address.
fn assert_crosses(rig: &Rig, net: &str, origin: &str) {
    let expected: Vec<_> =
        (1..).zip(JAILS).map(|(n, jail)| key(jail, &format!("{net}.{n}"))).collect();
    for host in rig.hosts(&["a", "b"]) {
        eventually(&format!("{} bans what {origin} detected in {net}", host.name), || {
            let banned = banned(host, &JAILS);
            expected.iter().all(|ban| banned.contains(ban))
        });
    }
    eventually(&format!("the fleet has them from {origin}"), || {
        let list = listed(rig.host("a"));
        expected.iter().all(|ban| list.get(ban).is_some_and(|(host, _)| host == origin))
    });
}

/// The lines of `check` on a healthy host, without those about free space.
fn lines(host: &str, other: &str, release: &Release, jails: &[String]) -> Vec<String> {
    let broker = "10.213.77.11:1883";
    let mut lines = vec![
        "✓ the settings in /etc/fail2ban/mqtt.env are valid".to_owned(),
        format!("✓ the broker {broker} answers at 10.213.77.11"),
        format!("✓ the broker {broker} accepts the login fail2ban"),
        format!("✓ the broker {broker} accepts this host's subscriptions"),
        format!(
            "✓ messages of this host on blacklist/ban, blacklist/unban, f2bmqtt/blacklist/state/{host} and \
             f2bmqtt/blacklist/host/{host} arrive"
        ),
        format!("✓ the broker {broker} keeps retained messages of 16 KiB"),
        format!("✓ this host's name {host} is unique in the fleet"),
        format!("✓ other hosts online: {other}"),
        "✓ the clocks of all other hosts agree with this one".to_owned(),
        "✓ the service f2bmqttsub runs".to_owned(),
        "✓ fail2ban's actions call f2bmqtt".to_owned(),
        format!("✓ the daemon is connected to {broker}"),
        "✓ all tables of the daemon are below their limits".to_owned(),
        format!("✓ fail2ban {} answers", release.fail2ban),
    ];
    lines.extend_from_slice(jails);
    lines.push("✓ fail2ban's database /var/lib/fail2ban/fail2ban.sqlite3 is readable".to_owned());
    lines.push("✓ fail2ban can write to /var/lib/f2bmqtt/spool".to_owned());
    lines
}

/// Asserts that `check` prints exactly the expected lines, and that some of them are true by other means.
fn assert_check_is_accurate(host: Host<'_>, other: &str, release: &Release, jails: &[String]) {
    let expected = lines(host.name, other, release, jails);
    let mut text = String::new();
    let matches = becomes(CONDITION_LIMIT, || {
        text = host.try_sh("f2bmqtt check").unwrap_or_else(|text| text);
        let findings = text.lines().filter(|line| !line.starts_with("    "));
        let (free, found): (Vec<_>, Vec<_>) = findings.partition(|line| {
            line.contains(" MiB are free on the file system of /var/lib/f2bmqtt")
        });
        free.len() == 1 && free[0].starts_with("✓ ") && found == expected
    });
    assert!(matches, "{text}\nexpected:\n{}", expected.join("\n"));
    assert_eq!(host.sh("fail2ban-client version"), release.fail2ban);
    assert_eq!(host.sh("readlink /etc/fail2ban/mqttnotifyban"), "/usr/bin/f2bmqtt");
    assert_eq!(host.sh("systemctl is-active f2bmqttsub"), "active");
}

/// Applies the suggested fix of `check` for each jail: adds the lines to jail.local, and runs the command.
fn apply_check_steps(host: Host<'_>) {
    host.sh(r"f2bmqtt check >/root/check
          sed -n 's/^        //p' /root/check >>/etc/fail2ban/jail.local
          sed -n 's/^    then: //p' /root/check >/root/steps; [ $(wc -l </root/steps) = 4 ]
          sh -e /root/steps");
}

fn test_stock_fleet(release: &Release) {
    let rig = fleet(release);
    let (a, b) = (rig.host("a"), rig.host("b"));
    let jails = JAILS.iter().zip(release.actions);
    let by_snapshot: Vec<_> = jails
        .map(|(jail, its)| {
            format!("✓ jail `{jail}` shares its bans by snapshot, within seconds: its {its}")
        })
        .collect();
    assert_check_is_accurate(a, "b", release, &by_snapshot);
    assert_check_is_accurate(b, "a", release, &by_snapshot);
    attack(a, "192.0.2");
    attack(b, "198.51.100");
    assert_crosses(&rig, "192.0.2", "a");
    assert_crosses(&rig, "198.51.100", "b");
    // After the suggested fixes, bans are shared at once by events with the jails' own names.
    for host in [a, b] {
        apply_check_steps(host);
    }
    let at_once = ["✓ jails `asterisk`, `nsd`, `recidive` and `sshd` share their bans".to_owned()];
    assert_check_is_accurate(a, "b", release, &at_once);
    assert_check_is_accurate(b, "a", release, &at_once);
    attack(b, "203.0.113");
    assert_crosses(&rig, "203.0.113", "b");
    eventually("a receives one event of each ban", || {
        let journal = a.journal();
        (1..).zip(JAILS).all(|(n, jail)| {
            let event = format!("Inbound: ban 203.0.113.{n} - ipset {jail} from b (");
            journal.matches(&event).count() == 1
        })
    });
    for host in [a, b] {
        let journal = host.journal();
        for odd in ["-tcp", "-udp", "not found"] {
            assert!(!journal.contains(odd), "{odd}: {journal}");
        }
        let log = host.sh("cat /var/log/fail2ban.log");
        assert!(!log.contains(" ERROR "), "{log}");
    }
}

#[test]
fn bans_cross_between_stock_bookworm_servers_and_check_is_accurate() {
    test_stock_fleet(&BOOKWORM);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn bans_cross_between_stock_trixie_servers_and_check_is_accurate() {
    test_stock_fleet(&TRIXIE);
}
