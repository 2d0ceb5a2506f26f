//! The package on a clean machine: a bare Debian, booted, with apt and nothing else.

mod support;

use support::{Host, Rig, eventually, package, root};

/// Installs the package as the README says, without a terminal.
fn install(host: Host<'_>) -> String {
    host.push(&package(), "/root/f2bmqtt.deb");
    host.sh("apt-get install -y /root/f2bmqtt.deb 2>&1")
}

/// What lies on the host, with owner, mode and the target of links, but for what changes by itself.
fn files(host: Host<'_>) -> Vec<String> {
    let list = host.sh(
        "find /etc /usr /var/lib/f2bmqtt /run/f2bmqtt -xdev \\( -type f -o -type l -o -type d \\) \
         -not -path '/usr/share/man/*' -printf '%M %u %p %l\\n' 2>/dev/null | sort -k3; true",
    );
    let own = |line: &&str| {
        line.contains("f2bmqtt") || line.contains("mqtt") || line.contains("local/bin")
    };
    list.lines().filter(own).map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn install_reinstall_remove_and_purge_on_a_clean_machine() {
    let rig = Rig::up(&root("bookworm", &[]), &["a"]);
    let a = rig.host("a");
    let clean = files(a);
    let said = install(a);
    assert!(said.contains("set the broker in /etc/fail2ban/mqtt.env"), "{said}");
    assert_eq!(a.sh("systemctl is-enabled f2bmqttsub"), "enabled");
    assert_eq!(a.sh("systemctl is-active f2bmqttsub"), "active");
    assert_eq!(a.sh("stat -c %a:%U /etc/fail2ban/mqtt.env /var/lib/f2bmqtt"), "600:root\n700:root");
    let links = [
        "/usr/local/bin/mqttsubscribebans",
        "/etc/fail2ban/mqttnotifyban.sh",
        "/etc/fail2ban/mqttnotifyban",
        "/etc/fail2ban/mqttsubscribebans",
    ];
    for link in links {
        assert_eq!(a.sh(&format!("readlink {link}")), "/usr/bin/f2bmqtt");
        assert!(a.sh(&format!("{link} --version")).ends_with(env!("CARGO_PKG_VERSION")));
    }
    for file in ["iptables-ipset.local", "f2bmqtt.conf"] {
        let shipped =
            format!("cmp /usr/share/f2bmqtt/action.d/{file} /etc/fail2ban/action.d/{file}");
        a.sh(&shipped);
    }
    let installed = files(a);

    // Settings and an edited action are the admin's, and stay.
    a.sh("echo '# mine' >>/etc/fail2ban/action.d/f2bmqtt.conf
          echo '# mine' >>/etc/fail2ban/mqtt.env");
    a.sh("apt-get install -y --reinstall /root/f2bmqtt.deb 2>&1");
    assert_eq!(files(a), installed);
    for file in ["action.d/f2bmqtt.conf", "mqtt.env"] {
        assert_eq!(a.sh(&format!("tail -n 1 /etc/fail2ban/{file}")), "# mine");
    }
    assert_eq!(a.sh("systemctl is-active f2bmqttsub"), "active");

    // Removed: no binary, no links, no service; and the actions that stay do nothing, quietly.
    a.sh("apt-get remove -y f2bmqtt 2>&1");
    assert_eq!(a.try_sh("systemctl is-active f2bmqttsub"), Err("inactive".to_owned()));
    for path in links.iter().chain(&["/usr/bin/f2bmqtt"]) {
        assert!(a.try_sh(&format!("test -e {path} -o -L {path}")).is_err(), "{path}");
    }
    a.sh("touch /var/log/auth.log
          printf '[DEFAULT]\\nbackend = polling\\nbanaction = iptables-ipset\\n[sshd]\\nenabled = true\\n' \
            >/etc/fail2ban/jail.local; systemctl restart fail2ban");
    eventually("fail2ban answers", || a.try_sh("fail2ban-client get sshd banip").is_ok());
    a.sh("fail2ban-client set sshd banip 192.0.2.1 && fail2ban-client set sshd unbanip 192.0.2.1");
    let log = a.sh("cat /var/log/fail2ban.log");
    assert!(log.contains("Ban 192.0.2.1") && !log.contains("ERROR"), "{log}");

    // Purged: as if it had never been there.
    a.sh("apt-get purge -y f2bmqtt 2>&1");
    assert_eq!(files(a), clean);
}

#[test]
fn purge_leaves_what_the_package_did_not_make() {
    let rig = Rig::up(&root("bookworm", &[]), &["a"]);
    let a = rig.host("a");
    a.sh("mkdir -p /etc/fail2ban; echo MQTT_HOST=broker >/etc/fail2ban/mqtt.env
          echo 'echo script' >/etc/fail2ban/mqttnotifyban; chmod 755 /etc/fail2ban/mqttnotifyban");
    let said = install(a);
    assert!(said.contains("/etc/fail2ban/mqtt.env holds a password: others may no longer read it"));
    assert!(said.contains(
        "/etc/fail2ban/mqttnotifyban is kept as /etc/fail2ban/mqttnotifyban.pre-f2bmqtt"
    ));
    a.sh("apt-get purge -y f2bmqtt 2>&1");
    assert_eq!(a.sh("cat /etc/fail2ban/mqtt.env"), "MQTT_HOST=broker");
    assert_eq!(a.sh("cat /etc/fail2ban/mqttnotifyban"), "echo script");
}
