//! The README's commands, run as they stand there, on bare machines.

mod support;

use std::path::{Path, PathBuf};

use support::docs::{block, documents, named_blocks, repository};
use support::{Rig, eventually, package, root};

#[test]
fn a_hub_and_two_servers_are_installed_and_a_ban_crosses() {
    let [hub, server, attack, look, report] =
        ["hub", "server", "attack", "look", "report"].map(block);
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
    rig.host("web1").sh(&attack);
    let expected = block("look-output");
    eventually("web2 bans it", || rig.host("web2").bans("sshd", "203.0.113.9"));
    assert_eq!(rig.host("web2").sh(&look).trim(), expected.trim());
    let web1 = rig.host("web1");
    web1.sh("useradd ann; ip addr add 192.0.2.10/24 dev eth0");
    let expected = block("report-output");
    let timeless = |text: &str| text.trim().rsplit_once("\ntimestamp=2026-").unwrap().0.to_owned();
    assert_eq!(timeless(&web1.sh(&report)), timeless(&expected));
    rig.host("web1").sh("fail2ban-client set sshd unbanip 203.0.113.9");
    eventually("it is free on web2", || {
        rig.host("web2").sh("fail2ban-client get sshd banip").is_empty()
    });
}

/// A test that runs a block, or compares it, has its name as a string.
#[test]
fn every_name_of_a_block_is_unique_and_used_by_a_test() {
    let mut names: Vec<_> =
        documents().iter().flat_map(named_blocks).map(|block| block.name).collect();
    names.sort();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    let tests = tests_text(&repository().join("tests"));
    for name in names {
        assert!(tests.contains(&format!("\"{name}\"")), "no test uses the block {name}");
    }
}

fn tests_text(dir: &Path) -> String {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let text = |path: PathBuf| match path.extension() {
        _ if path.is_dir() => tests_text(&path),
        Some(extension) if extension == "rs" => std::fs::read_to_string(&path).unwrap(),
        _ => String::new(),
    };
    entries.map(text).collect()
}
