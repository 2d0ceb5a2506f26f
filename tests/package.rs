//! The package on fresh, booted machines, on each install path: clean, over the scripts, as an upgrade, after remove,
//! after purge. Each path ends in the same state, and none asks a question.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Host, Rig, eventually, package, root};

const LINKS: [&str; 5] = [
    "/usr/local/bin/mqttsubscribebans",
    "/etc/fail2ban/mqttnotifyban.sh",
    "/etc/fail2ban/mqttnotifyban",
    "/etc/fail2ban/mqttsubscribebans",
    "/etc/fail2ban/action.d/fail2ban-abuseipdb.sh",
];

/// The path of a stand-in for a script that the package replaces.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/scripts").join(name)
}

/// Installs the package as in the README, without standard input.
fn install(host: Host<'_>) -> String {
    host.push(&package(), "/root/f2bmqtt.deb");
    host.sh(
        "env -u DEBIAN_FRONTEND apt-get install -y --reinstall /root/f2bmqtt.deb </dev/null 2>&1",
    )
}

/// Installs the package with a standard input that stays open and empty, so that a question would block.
fn install_without_answers(host: Host<'_>, deb: &Path) {
    host.push(deb, "/root/f2bmqtt.deb");
    host.sh("tail -f /dev/null | env -u DEBIAN_FRONTEND timeout 300 \
             apt-get install -y /root/f2bmqtt.deb 2>&1");
}

/// The package's files on a host, with owner, mode and the target of links, without the administrator's files that the
/// package keeps.
fn files(host: Host<'_>) -> Vec<String> {
    let list = host.sh(
        "find /etc /usr /var/lib/f2bmqtt /run/f2bmqtt -xdev \\( -type f -o -type l -o -type d \\) \
         -printf '%M %u %p %l\\n' 2>/dev/null | sort -k3; true",
    );
    let of_package = [
        "f2bmqtt",
        "fail2ban/mqtt",
        "/usr/local/bin",
        "iptables-ipset.local",
        "/abuseipdb.local",
        "-abuseipdb",
    ];
    let kept = [".pre-f2bmqtt", ".ucf-dist", ".ucf-old", ".scripts-enabled", "/.made-"];
    let mut files: Vec<_> = list.lines().map(|line| line.trim_end().to_owned()).collect();
    files.retain(|line| {
        of_package.iter().any(|part| line.contains(part))
            && !kept.iter().any(|part| line.contains(part))
    });
    files
}

/// Asserts the state after each install path: links, modes and a running service. Returns the package's files.
fn assert_installed(host: Host<'_>) -> Vec<String> {
    assert_eq!(host.sh("systemctl is-enabled f2bmqttsub"), "enabled");
    assert_eq!(host.sh("systemctl is-active f2bmqttsub"), "active");
    let unit = "/usr/lib/systemd/system/f2bmqttsub.service";
    assert_eq!(host.sh(&format!("systemd-analyze verify {unit} 2>&1")), "");
    let shown = host.sh("systemctl show -P ExecStart f2bmqttsub");
    assert!(shown.contains("path=/usr/bin/f2bmqtt"), "{shown}");
    let modes = host.sh("stat -c %a:%U /etc/fail2ban/mqtt.env /var/lib/f2bmqtt");
    assert_eq!(modes, "600:root\n700:root");
    for link in LINKS {
        assert_eq!(host.sh(&format!("readlink {link}")), "/usr/bin/f2bmqtt");
        assert!(host.sh(&format!("{link} --version")).ends_with(env!("CARGO_PKG_VERSION")));
    }
    // The package's name is an alias of the service.
    assert_eq!(host.sh("systemctl show -P Id f2bmqtt"), "f2bmqttsub.service");
    eventually("the daemon tries to connect", || host.journal().contains("to the broker"));
    for log in ["journalctl -u f2bmqtt -o cat", "journalctl -t mqttsubscribebans -o cat"] {
        let output = host.sh(&format!("{log} --no-pager"));
        assert!(output.contains("to the broker"), "{log}: {output}");
    }
    files(host)
}

/// Installs the scripts as administrators have them: running, at their usual paths, with settings.
fn install_scripts(host: Host<'_>) {
    host.sh("printf 'MQTT_USER=fail2ban\\nMQTT_PASSWORD=fail2ban\\nMQTT_HOST=10.213.77.11\\nMQTT_TOPIC=mine\\n' \
             >/etc/fail2ban/mqtt.env; chmod 644 /etc/fail2ban/mqtt.env");
    for name in ["mqttnotifyban", "mqttsubscribebans"] {
        host.push(&script(name), &format!("/etc/fail2ban/{name}"));
    }
    host.push(&script("iptables-ipset.local"), "/etc/fail2ban/action.d/iptables-ipset.local");
    host.push(&script("f2bmqttsub.service"), "/etc/systemd/system/f2bmqttsub.service");
    host.sh(
        "chmod 755 /etc/fail2ban/mqtt*bans /etc/fail2ban/mqttnotifyban
             systemctl daemon-reload; systemctl -q enable --now f2bmqttsub
             echo '#!/bin/sh' >/usr/local/bin/mqttsubscribebans
             echo 'echo reported' >/etc/fail2ban/action.d/fail2ban-abuseipdb.sh
             chmod 755 /etc/fail2ban/action.d/fail2ban-abuseipdb.sh
             echo '# with my key' >/etc/fail2ban/action.d/abuseipdb.local
             mkdir -p /var/log/abuseipdb /var/lib/fail2ban/abuseipdb
             touch /var/log/abuseipdb/abuseipdb.log /var/lib/fail2ban/abuseipdb/fail2ban_abuseipdb",
    );
}

fn assert_scripts_run(host: Host<'_>) {
    for name in ["mqttnotifyban", "mqttsubscribebans"] {
        host.sh(&format!(
            "grep -q '^# Stands in for' /etc/fail2ban/{name} && test -x /etc/fail2ban/{name}"
        ));
    }
    assert_eq!(host.sh("cat /usr/local/bin/mqttsubscribebans"), "#!/bin/sh");
    assert_eq!(host.sh("sh /etc/fail2ban/action.d/fail2ban-abuseipdb.sh"), "reported");
    assert_eq!(host.sh("cat /etc/fail2ban/action.d/abuseipdb.local"), "# with my key");
    host.sh("ls /var/log/abuseipdb/abuseipdb.log /var/lib/fail2ban/abuseipdb/fail2ban_abuseipdb");
    assert_eq!(host.sh("systemctl is-enabled f2bmqttsub"), "enabled");
    let shown = host.sh("systemctl show -P ExecStart f2bmqttsub");
    assert!(shown.contains("path=/etc/fail2ban/mqttsubscribebans"), "{shown}");
    eventually("the scripts run", || {
        host.try_sh("pgrep -f '^/bin/bash /etc/fail2ban/mqttsubscribebans'").is_ok()
    });
    host.sh("/etc/fail2ban/mqttnotifyban sshd 192.0.2.9 600 ban 0 3");
    eventually("the subscriber receives the notifier's message", || {
        let journal = host.sh("journalctl -u f2bmqttsub -o cat --no-pager | tail -n 20");
        journal.contains("Inbound: ban 192.0.2.9 - ipset sshd from")
    });
}

/// The package with a later version number.
fn next_version(dir: &Path) -> PathBuf {
    let deb = dir.join("next.deb");
    let script = "dpkg-deb -R \"$1\" \"$2/tree\" && sed -i 's/^Version: .*/&.1/' \"$2/tree/DEBIAN/control\" \
                  && dpkg-deb -b --root-owner-group \"$2/tree\" \"$3\"";
    let mut shell = Command::new("sh");
    let out = shell.args(["-ec", script, "sh"]).arg(package()).arg(dir).arg(&deb).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    deb
}

/// The package's dependencies, so that only the first install path has to download them.
const DEPENDENCIES: [&str; 12] = [
    "fail2ban",
    "ucf",
    "ipset",
    "iptables",
    "conntrack",
    "ca-certificates",
    "python3",
    "jq",
    "mosquitto",
    "mosquitto-clients",
    "sqlite3",
    "logrotate",
];

/// Tests all install paths on one release.
fn test_install_paths(suite: &str) {
    let bare = Rig::up(&root(suite, &[]), &["bare"]);
    let bare = bare.host("bare");
    let clean = files(bare);
    let output = install(bare);
    assert!(output.contains("set the broker in /etc/fail2ban/mqtt.env"), "{output}");
    let expected = assert_installed(bare);
    if suite == "bookworm" {
        // On a bare bookworm fail2ban does not start: there is no log for its sshd jail.
        assert!(
            bare.journal().contains("fail2ban does not answer at /var/run/fail2ban/fail2ban.sock")
        );
    }

    let hosts = ["hub", "over", "edited", "known", "upgrade", "again"];
    let rig = Rig::up(&root(suite, &DEPENDENCIES), &hosts);
    rig.host("hub")
        .sh("printf 'listener 1883\\nallow_anonymous true\\n' >/etc/mosquitto/conf.d/a.conf
                        systemctl restart mosquitto");
    install_over_scripts(rig.host("over"), &expected);
    install_over_edited_action(rig.host("edited"), &expected);
    install_over_script_action(rig.host("known"), &expected);
    upgrade(rig.host("upgrade"), &expected);
    reinstall_after_remove_and_purge(rig.host("again"), &expected);

    bare.sh("apt-get purge -y f2bmqtt 2>&1");
    assert_eq!(files(bare), clean, "a purge removes all files of the package");
}

fn install_over_scripts(host: Host<'_>, expected: &[String]) {
    install_scripts(host);
    let output = install(host);
    for kept in ["/etc/fail2ban/mqttnotifyban", "/etc/systemd/system/f2bmqttsub.service"] {
        assert!(
            output.contains(&format!("f2bmqtt: moved existing {kept} to {kept}.pre-f2bmqtt")),
            "{output}"
        );
    }
    assert!(
        output.contains("mqtt.env contains a password: removed access for other users"),
        "{output}"
    );
    assert_eq!(assert_installed(host), expected);
    assert_eq!(host.sh("grep TOPIC /etc/fail2ban/mqtt.env"), "MQTT_TOPIC=mine");
    assert!(
        host.try_sh("pgrep -f '^/bin/bash /etc/fail2ban/mqttsubscribebans'").is_err(),
        "the script was stopped"
    );
    host.sh("apt-get remove -y f2bmqtt 2>&1");
    assert_scripts_run(host);
    // Install again and purge: the scripts belong to the administrator.
    install(host);
    assert_eq!(assert_installed(host), expected);
    host.sh("apt-get purge -y f2bmqtt 2>&1");
    assert_scripts_run(host);
    assert_eq!(host.sh("grep TOPIC /etc/fail2ban/mqtt.env"), "MQTT_TOPIC=mine");
}

fn install_over_edited_action(host: Host<'_>, expected: &[String]) {
    install_scripts(host);
    let before = host.sh("cat /etc/fail2ban/action.d/iptables-ipset.local");
    install_without_answers(host, &package());
    assert_eq!(assert_installed(host), expected);
    assert_eq!(host.sh("cat /etc/fail2ban/action.d/iptables-ipset.local"), before);
    host.sh("cmp /etc/fail2ban/action.d/iptables-ipset.local.ucf-dist \
                 /usr/share/f2bmqtt/action.d/iptables-ipset.local");
}

fn install_over_script_action(host: Host<'_>, expected: &[String]) {
    install_scripts(host);
    let before = host.sh("cat /etc/fail2ban/action.d/iptables-ipset.local");
    host.push(&package(), "/root/f2bmqtt.deb");
    // The package recognises the real scripts' actions by their checksums. Add those of the stand-ins.
    host.sh("set -e; dpkg --unpack /root/f2bmqtt.deb 2>&1
             for file in iptables-ipset.local abuseipdb.local; do
                 md5sum </etc/fail2ban/action.d/$file >>/usr/share/f2bmqtt/action.d/$file.md5sum
             done
             dpkg --configure f2bmqtt </dev/null 2>&1");
    assert_eq!(assert_installed(host), expected);
    host.sh("set -e; for file in iptables-ipset.local abuseipdb.local; do
                 cmp /etc/fail2ban/action.d/$file /usr/share/f2bmqtt/action.d/$file
             done");
    host.sh("apt-get remove -y f2bmqtt 2>&1");
    assert_eq!(
        host.sh("cat /etc/fail2ban/action.d/iptables-ipset.local"),
        before,
        "the scripts' own action is restored"
    );
    assert_scripts_run(host);
}

fn upgrade(host: Host<'_>, expected: &[String]) {
    install(host);
    let before = host.sh("systemctl show -P MainPID f2bmqttsub");
    host.sh("echo '# mine' >>/etc/fail2ban/mqtt.env; echo '# mine' >>/etc/fail2ban/action.d/f2bmqtt.conf");
    let dir = tempfile::tempdir().unwrap();
    install_without_answers(host, &next_version(dir.path()));
    assert!(host.sh("dpkg-query -W -f '${Version}' f2bmqtt").ends_with(".1"));
    assert_eq!(assert_installed(host), expected);
    assert_ne!(host.sh("systemctl show -P MainPID f2bmqttsub"), before, "the new version runs");
    host.sh("mkdir -p /var/log/abuseipdb; echo line >/var/log/abuseipdb/abuseipdb.log
             logrotate -f /etc/logrotate.d/f2bmqtt");
    assert_eq!(host.sh("cat /var/log/abuseipdb/abuseipdb.log.1"), "line");
    for file in ["mqtt.env", "action.d/f2bmqtt.conf"] {
        assert_eq!(host.sh(&format!("tail -n 1 /etc/fail2ban/{file}")), "# mine");
    }
}

fn reinstall_after_remove_and_purge(host: Host<'_>, expected: &[String]) {
    install(host);
    host.sh("apt-get remove -y f2bmqtt 2>&1");
    assert_eq!(host.try_sh("systemctl is-active f2bmqttsub"), Err("inactive".to_owned()));
    for path in LINKS.iter().chain(&["/usr/bin/f2bmqtt"]) {
        assert!(host.try_sh(&format!("test -e {path} -o -L {path}")).is_err(), "{path}");
    }
    // The remaining actions do nothing, without an error.
    host.sh("touch /var/log/auth.log
             printf '[DEFAULT]\\nbanaction = iptables-ipset\\n[sshd]\\nenabled = true\\nbackend = polling\\n\
                     logpath = /var/log/auth.log\\naction = %%(action_)s\\n  f2bmqtt\\n  abuseipdb\\n' \
               >/etc/fail2ban/jail.local
             systemctl stop fail2ban; : >/var/log/fail2ban.log; systemctl start fail2ban");
    let show_log = "cat /var/log/fail2ban.log";
    // A command before the jail's start would cause an error in the log.
    eventually("the jail has started", || host.sh(show_log).contains("Jail 'sshd' started"));
    host.sh(
        "fail2ban-client set sshd banip 192.0.2.1 && fail2ban-client set sshd unbanip 192.0.2.1",
    );
    eventually("fail2ban logs the unban", || host.sh(show_log).contains("Unban 192.0.2.1"));
    let log = host.sh(show_log);
    assert!(!log.contains("ERROR"), "{log}");
    install(host);
    assert_eq!(assert_installed(host), expected);
    host.sh("/etc/fail2ban/action.d/fail2ban-abuseipdb.sh --actionstart");
    host.sh("ls /var/log/abuseipdb/abuseipdb.log /var/lib/fail2ban/abuseipdb/fail2ban_abuseipdb");
    let output = host.sh("apt-get purge -y f2bmqtt 2>&1");
    assert!(
        output.contains(
            "f2bmqtt: kept an empty /etc/fail2ban/action.d/f2bmqtt.conf, because these files name the action: \
             /etc/fail2ban/jail.local"
        ),
        "{output}"
    );
    host.sh("systemctl restart fail2ban; fail2ban-client -t");
    eventually("fail2ban starts", || host.try_sh("fail2ban-client status sshd").is_ok());
    let left = host.sh("ls -d /var/log/abuseipdb /var/lib/fail2ban/abuseipdb 2>/dev/null; true");
    assert_eq!(left, "", "a purge removes the reporter's files");
    install(host);
    assert_eq!(assert_installed(host), expected);
}

#[test]
fn each_install_path_ends_in_same_state_on_debian_12() {
    test_install_paths("bookworm");
}

#[test]
fn each_install_path_ends_in_same_state_on_debian_13() {
    test_install_paths("trixie");
}

#[test]
fn package_lists_its_dependencies() {
    for (field, expected) in [
        ("Depends", "fail2ban (>= 0.11.2), libc6 (>= 2.35), ucf"),
        ("Recommends", "ca-certificates, conntrack, ipset, iptables"),
        ("Suggests", "mosquitto"),
    ] {
        let mut show = Command::new("dpkg-deb");
        let out = show.arg("-f").arg(package()).arg(field).output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap().trim(), expected, "{field}");
    }
}

#[test]
fn manual_page_is_found_by_the_service_s_name_too() {
    let script =
        "dpkg-deb --fsys-tarfile \"$1\" | tar -xO ./usr/share/man/man8/f2bmqttsub.8.gz | gzip -d";
    let mut shell = Command::new("sh");
    let out = shell.args(["-ec", script, "sh"]).arg(package()).output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), ".so man8/f2bmqtt.8\n");
}

#[test]
fn purge_keeps_foreign_files() {
    let rig = Rig::up(&root("bookworm", &DEPENDENCIES), &["a"]);
    let a = rig.host("a");
    let stanza = "/var/log/abuseipdb/*.log {\nmissingok\n}";
    a.sh(&format!("echo '{stanza}' >/etc/logrotate.d/mine"));
    a.sh("echo '# mine' >/etc/fail2ban/action.d/iptables-ipset.local
          echo MQTT_HOST=broker >/etc/fail2ban/mqtt.env
          echo 'echo script' >/etc/fail2ban/mqttnotifyban; chmod 755 /etc/fail2ban/mqttnotifyban
          mount -t tmpfs -o ro none /usr/local");
    // Neither an impossible link nor invalid settings make the installation fail.
    let output = install(a);
    assert_eq!(a.sh("dpkg-query -W -f '${Status}' f2bmqtt"), "install ok installed");
    a.sh("logrotate -d /etc/logrotate.conf 2>&1");
    for line in [
        "f2bmqtt: not installing /etc/logrotate.d/f2bmqtt: /etc/logrotate.d/mine rotates /var/log/abuseipdb",
        "f2bmqtt: cannot create the link /usr/local/bin/mqttsubscribebans to /usr/bin/f2bmqtt",
        "f2bmqtt: the settings in /etc/fail2ban/mqtt.env cannot be used:",
        "  MQTT_TOPIC is not set",
    ] {
        assert!(output.contains(line), "{line}\n{output}");
    }
    let text = a.try_sh("f2bmqtt check").unwrap_err();
    assert!(
        text.contains("! the link /usr/local/bin/mqttsubscribebans to /usr/bin/f2bmqtt is missing"),
        "{text}"
    );
    a.sh("apt-get purge -y f2bmqtt 2>&1");
    assert_eq!(a.sh("cat /etc/fail2ban/action.d/iptables-ipset.local"), "# mine");
    assert_eq!(a.sh("cat /etc/fail2ban/mqtt.env"), "MQTT_HOST=broker");
    assert_eq!(a.sh("cat /etc/fail2ban/mqttnotifyban"), "echo script");
    a.sh("umount /usr/local");
}
