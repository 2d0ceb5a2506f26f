//! Bans between servers, with the installed package, real fail2ban, real mosquitto and real firewalls.

#[path = "support/attacker.rs"]
mod attacker;
mod support;

use attacker::{Attacker, listen};
use support::{Host, Rig, eventually, install_scripts};

/// Follows one address: after three log lines on `a`, all hosts ban the address, and the ban also blocks an open
/// connection. After an unban on `a`, all hosts release the ban. Each change causes one message.
fn assert_crosses(
    suite: &str,
    jail: &str,
    log: &str,
    port: u16,
    address: &str,
    server: &str,
    shown: impl Fn(Host<'_>) -> bool,
) {
    let rig = Rig::fleet_of(suite, &["a", "b", "c"]);
    let (a, b, c) = (rig.host("a"), rig.host("b"), rig.host("c"));
    let record = rig.record();
    listen(b, port);
    // This firewall accepts established connections before it checks bans.
    let iptables = if address.contains(':') { "ip6tables" } else { "iptables" };
    b.sh(&format!("{iptables} -I INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT"));
    let mut attacker = Attacker::from(&rig, address);
    assert_eq!(attacker.send(&format!("open {server} {port}")), "open");
    assert_eq!(attacker.send("echo"), "answered");

    a.attack(log, &[address]);
    for host in [a, b, c] {
        eventually("all ban it", || host.bans(jail, address));
        eventually("the firewall has it", || shown(host));
    }
    assert_eq!(attacker.send(&format!("connect {server} {port}")), "refused");
    eventually("the open connection is blocked", || attacker.send("echo") == "silence");

    a.sh(&format!("fail2ban-client set {jail} unbanip {address}"));
    for host in [a, b, c] {
        eventually("the ban is released", || !host.bans(jail, address) && !shown(host));
    }
    assert_eq!(attacker.send(&format!("connect {server} {port}")), "connected");

    // An echo would arrive before this last message.
    b.sh("/etc/fail2ban/mqttnotifyban last 192.0.2.99 600 ban 0 1");
    eventually("the last message is seen", || record.count(&["192.0.2.99"]) == 1);
    let events = record.events();
    assert_eq!(events.len(), 3, "{events:#?}");
    let host = r#""host":"a""#;
    assert_eq!(record.count(&["blacklist/ban", address, host, r#""reason":"detected""#]), 1);
    assert_eq!(record.count(&["blacklist/unban", address, host, r#""reason":"lifted""#]), 1);
    if jail == "web" {
        test_jail_name(a, b);
        let mut events = record.events();
        events.retain(|event| event.contains("voip"));
        assert_eq!(events.len(), 2, "{events:#?}");
        assert!(events.iter().all(|event| event.contains(r#""ipmset":"voip""#)), "{events:#?}");
    }
}

/// Events of a jail like Debian's asterisk have the name of the jail, not those of its actions.
fn test_jail_name(a: Host<'_>, b: Host<'_>) {
    for host in [a, b] {
        host.sh("touch /var/log/voip.log; cat >/etc/fail2ban/jail.d/voip.local <<'E'
[voip]
enabled = true
logpath = /var/log/voip.log
action = iptables-ipset[actname=voip-tcp, name=voip-tcp, type=multiport, port=5060, protocol=tcp]
         iptables-ipset[actname=voip-udp, name=voip-udp, type=multiport, port=5060, protocol=udp]
E
             fail2ban-client reload");
        // A row with a fractional bantime (bantime.rndtime), and an invalid row, which must not block the jail.
        host.sh("sqlite3 -cmd '.timeout 5000' /var/lib/fail2ban/fail2ban.sqlite3 \"
                 INSERT INTO bips VALUES('203.0.113.7', 'voip', 1795342588.5, 612.75, 1, '{}');
                 INSERT INTO bips VALUES('203.0.113.8', 'voip', 1795342588, 'odd', 1, '{}')\"");
    }
    a.attack("voip", &["10.213.77.202"]);
    eventually("b imports the ban in the jail", || b.bans("voip", "10.213.77.202"));
    let event = "Inbound: ban 10.213.77.202 - ipset voip from a (";
    eventually("b received the event", || b.journal().contains(event));
    // Without a daemon, the publishing child process gets the jail from fail2ban.
    eventually("the spool is empty", || a.sh("ls /var/lib/f2bmqtt/spool").is_empty());
    a.sh("systemctl stop f2bmqttsub");
    a.attack("voip", &["10.213.77.203"]);
    eventually("b imports that ban in the jail", || b.bans("voip", "10.213.77.203"));
}

#[test]
fn ipv4_ban_reaches_peer_and_is_removed() {
    assert_crosses("bookworm", "sshd", "auth", 22, "10.213.77.200", "10.213.77.13", |host| {
        host.in_ipset("f2b-sshd", "10.213.77.200")
    });
}

#[test]
fn ipv6_ban_reaches_peer_and_is_removed() {
    assert_crosses("bookworm", "sshd", "auth", 22, "fd77::200", "fd77::13", |host| {
        host.in_ipset("f2b-sshd6", "fd77::200")
    });
}

#[test]
fn nftables_ban_reaches_peer_and_is_removed() {
    assert_crosses("bookworm", "web", "web", 80, "10.213.77.201", "10.213.77.13", |host| {
        host.try_sh("nft list table inet f2b-table")
            .is_ok_and(|rules| rules.contains("10.213.77.201"))
    });
}

#[test]
fn debian_13_ban_reaches_peer_and_is_removed() {
    assert_crosses("trixie", "sshd", "auth", 22, "10.213.77.200", "10.213.77.13", |host| {
        host.in_ipset("f2b-sshd", "10.213.77.200")
    });
}

#[test]
fn jail_with_two_f2bmqtt_actions_publishes_once() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    let record = rig.record();
    a.attack("both", &["192.0.2.1"]);
    eventually("b bans it", || b.bans("both", "192.0.2.1"));
    a.sh("fail2ban-client set both unbanip 192.0.2.1");
    eventually("b releases the ban", || !b.bans("both", "192.0.2.1"));
    assert_eq!(record.count(&["blacklist/ban", "192.0.2.1"]), 1);
    assert_eq!(record.count(&["blacklist/unban", "192.0.2.1"]), 1);
}

#[test]
fn peer_unban_keeps_local_and_manual_bans() {
    let rig = Rig::fleet(&["a", "b", "c"]);
    let (a, b, c) = (rig.host("a"), rig.host("b"), rig.host("c"));
    a.attack("auth", &["192.0.2.1", "192.0.2.2"]);
    eventually("b and c ban it", || b.bans("sshd", "192.0.2.1") && c.bans("sshd", "192.0.2.2"));
    // c detects one of the addresses itself. b's operator bans a third address, which a then detects.
    c.sh("fail2ban-client set sshd unbanip 192.0.2.2");
    c.attack("auth", &["192.0.2.2"]);
    b.sh("fail2ban-client set sshd banip 192.0.2.3");
    a.attack("auth", &["192.0.2.3"]);
    eventually("c bans all", || {
        ["1", "2", "3"].iter().all(|n| c.bans("sshd", &format!("192.0.2.{n}")))
    });
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1 192.0.2.2 192.0.2.3");
    eventually("b releases a's ban", || !b.bans("sshd", "192.0.2.1"));
    eventually("c releases a's bans", || {
        !c.bans("sshd", "192.0.2.1") && !c.bans("sshd", "192.0.2.3")
    });
    assert!(b.bans("sshd", "192.0.2.3"), "b's operator banned it");
    assert!(c.bans("sshd", "192.0.2.2"), "c detected it");
    assert!(b.bans("sshd", "192.0.2.2"), "c still bans it");
    c.sh("fail2ban-client set sshd unbanip 192.0.2.2");
    eventually("b releases the ban that c held last", || !b.bans("sshd", "192.0.2.2"));
}

#[test]
fn script_host_takes_part_in_fleet() {
    let rig = Rig::fleet(&["a", "b", "old"]);
    let (a, b, old) = (rig.host("a"), rig.host("b"), rig.host("old"));
    install_scripts(old);
    let record = rig.record();
    old.attack("auth", &["192.0.2.1"]);
    eventually("a and b import its ban", || {
        a.bans("sshd", "192.0.2.1") && b.bans("sshd", "192.0.2.1")
    });
    old.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    eventually("a and b release its ban", || {
        !a.bans("sshd", "192.0.2.1") && !b.bans("sshd", "192.0.2.1")
    });
    a.attack("auth", &["192.0.2.2"]);
    eventually("old imports a's ban", || {
        old.bans("sshd", "192.0.2.2") && b.bans("sshd", "192.0.2.2")
    });
    eventually("its fail2ban has written the ban", || {
        let row = "SELECT 1 FROM bips WHERE ip = '\"'\"'192.0.2.2'\"'\"'";
        old.sh(&format!("sqlite3 /var/lib/fail2ban/fail2ban.sqlite3 '{row}'")) == "1"
    });
    a.sh("fail2ban-client set sshd unbanip 192.0.2.2");
    eventually("old releases a's ban", || {
        !old.bans("sshd", "192.0.2.2") && !b.bans("sshd", "192.0.2.2")
    });
    b.sh("/etc/fail2ban/mqttnotifyban last 192.0.2.99 600 ban 0 1");
    eventually("the last message is seen", || record.count(&["192.0.2.99"]) == 1);
    // A script's message has several lines. Only the first one has the topic.
    let sent = record.events().into_iter().filter(|line| line.starts_with("blacklist/"));
    let topics: Vec<_> = sent.map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    let expected =
        ["blacklist/ban", "blacklist/unban", "blacklist/ban", "blacklist/unban", "blacklist/ban"];
    assert_eq!(topics, expected, "no echo: {:#?}", record.events());
}

#[test]
fn messages_and_log_lines_match_scripts() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    hub.publish_event("ban", "sshd", "192.0.2.1", "old1");
    eventually("a bans it", || a.bans("sshd", "192.0.2.1"));
    hub.publish_event("unban", "sshd", "192.0.2.1", "old1");
    eventually("a releases the ban", || !a.bans("sshd", "192.0.2.1"));
    hub.publish_event("ban", "ssh", "192.0.2.2", "old1");
    hub.publish_event("ban", "sshd", "10.99.0.0/28", "old1");
    hub.publish(
        "blacklist/from-nodered",
        r#"{"ip":"192.0.2.4","action":"ban","host":"red","ipmset":"sshd"}"#,
    );
    eventually("a message on any topic counts", || a.bans("sshd", "192.0.2.4"));
    // Until fail2ban has been running for a while, the daemon does not report unknown jails.
    eventually("the journal names the unknown jail", || a.journal().contains("Jail ssh not found"));
    let journal = a.journal();
    for line in [
        "Inbound: ban 192.0.2.1 - ipset sshd from old1 (Rest:=0, Fails:=3)",
        "Ban 192.0.2.1 for ipset sshd reported by old1",
        "UnBan 192.0.2.1 for ipset sshd reported by old1",
        "Jail ssh not found for IP 192.0.2.2 reported by old1 (Restored=0)",
        "rejected invalid event on blacklist/ban: field `ip` must be one IPv4 or IPv6 address",
    ] {
        assert!(journal.lines().any(|found| found == line), "{line}\n{journal}");
    }
    assert_eq!(a.sh("fail2ban-client get sshd banip"), "192.0.2.4");
}
