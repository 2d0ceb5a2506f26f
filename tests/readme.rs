//! The README's commands, run as they stand there, on bare machines.

mod support;

use support::{Rig, eventually, package, root};

const README: &str = include_str!("../README.md");

/// The README's blocks of shell, in order.
fn blocks() -> Vec<&'static str> {
    let parts = README.split("```sh\n").skip(1);
    parts.map(|part| part.split("```").next().unwrap()).collect()
}

#[test]
fn a_hub_and_two_servers_are_installed_and_a_ban_crosses() {
    let [hub, server, attack, look, report, ..] = blocks()[..] else { panic!("{:#?}", blocks()) };
    let rig = Rig::up(&root("bookworm", &[]), &["hub", "web1", "web2"]);
    for host in rig.hosts(&["hub", "web1", "web2"]) {
        // Nobody is there to say yes to apt.
        host.sh("echo 'APT::Get::Assume-Yes true;' >/etc/apt/apt.conf.d/yes; apt-get update");
    }
    rig.host("hub").sh("ip addr add 192.168.1.10/24 dev eth0");
    rig.host("hub").sh(&format!("set -e; {hub}"));
    // On a hub that is in use, the same commands keep its users and its listeners.
    rig.host("hub").sh(&format!(
        "set -e; mosquitto_passwd -b /etc/mosquitto/passwd other secret; {hub}
         grep -q ^other: /etc/mosquitto/passwd; [ \"$(cat /etc/mosquitto/conf.d/*.conf | grep -c ^listener)\" = 1 ]"
    ));
    for (number, host) in rig.hosts(&["web1", "web2"]).into_iter().enumerate() {
        host.sh(&format!("ip addr add 192.168.1.{}/24 dev eth0", 11 + number));
        // What a server with a jail has before: on a bare Debian fail2ban has no log to read.
        host.sh("apt-get install fail2ban ipset iptables
            printf '[DEFAULT]\\nbackend = polling\\nbanaction = iptables-ipset\\n' >/etc/fail2ban/jail.local
            touch /var/log/auth.log; systemctl restart fail2ban");
        host.push(&package(), "/root/f2bmqtt.deb");
        eventually("fail2ban runs", || host.ask("ping").is_ok());
        host.sh(&format!("set -e; {server}"));
        eventually("it is connected", || {
            host.journal().contains("connected to the broker 192.168.1.10")
        });
    }
    rig.host("web1").sh(attack);
    let expected = README.split(look).nth(1).unwrap().split("```\n").nth(2).unwrap();
    eventually("web2 bans it", || rig.host("web2").bans("sshd", "203.0.113.9"));
    assert_eq!(rig.host("web2").sh(look).trim(), expected.trim());
    let web1 = rig.host("web1");
    web1.sh("useradd ann; ip addr add 192.0.2.10/24 dev eth0");
    let expected = README.split(report).nth(1).unwrap().split("```\n").nth(2).unwrap();
    let timeless = |text: &str| text.trim().rsplit_once("\ntimestamp=2026-").unwrap().0.to_owned();
    assert_eq!(timeless(&web1.sh(report)), timeless(expected));
    rig.host("web1").sh("fail2ban-client set sshd unbanip 203.0.113.9");
    eventually("it is free on web2", || {
        rig.host("web2").sh("fail2ban-client get sshd banip").is_empty()
    });
}
