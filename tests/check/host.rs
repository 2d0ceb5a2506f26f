//! Faults of the host itself: its jails, the service, files, the reporter.

use super::{Case, DEFAULT_CASE, assert_reported, assert_sound};
use crate::support::Rig;

/// Removes the jails that a case added.
const NO_JAILS: &str = "rm /etc/fail2ban/jail.d/more.local; fail2ban-client reload";

const HOST_FAULTS: [Case; 33] = [
    Case {
        host: [
            "printf '[quiet]\nenabled = true\nlogpath = /var/log/auth.log\naction = nftables[type=allports]\n' \
               >/etc/fail2ban/jail.d/more.local; fail2ban-client reload",
            "",
        ],
        findings: &[
            "✓ jail `quiet` shares its bans by snapshot, within seconds: its action is nftables\n",
            "        [quiet]\n        action = %(action_)s\n                 f2bmqtt\n    \
             then: fail2ban-client reload --restart quiet\n",
        ],
        code: 0,
        ..DEFAULT_CASE
    },
    // A reload without --restart leaves a jail with changed actions without any action.
    Case {
        host: [
            "sed -i 's/^action = .*/action = iptables-allports/' /etc/fail2ban/jail.d/more.local; fail2ban-client reload",
            "",
        ],
        findings: &[
            "✗ jail `quiet` has no action: it blocks nothing\n    fail2ban-client reload --restart quiet\n",
        ],
        ..DEFAULT_CASE
    },
    // Such a reload does not add a new action either.
    Case {
        host: [
            "fail2ban-client reload --restart quiet
             printf '         f2bmqtt\n' >>/etc/fail2ban/jail.d/more.local; fail2ban-client reload",
            "fail2ban-client reload --restart quiet",
        ],
        findings: &[
            "! jail `quiet` shares its bans by snapshot, within seconds: fail2ban has not loaded the configured action",
            "    fail2ban-client reload --restart quiet\n",
        ],
        code: 0,
        ..DEFAULT_CASE
    },
    // The suggested fix of the last case works.
    Case { findings: &["✓ jails `both`, `quiet`, `sshd` and `web` share their bans\n"], code: 0, ..DEFAULT_CASE },
    Case {
        host: [
            "sed -i '/f2bmqtt/d' /etc/fail2ban/jail.d/more.local; fail2ban-client reload --restart quiet
             echo MQTT_NOT_JAILS=quiet >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "sed -i '/MQTT_NOT_JAILS/d' /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        findings: &["✓ jail `quiet` does not share bans: excluded by the settings\n"],
        code: 0,
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "printf '[late]\nenabled = true\nlogpath = /var/log/auth.log\n' >/etc/fail2ban/jail.d/more.local",
            "fail2ban-client reload",
        ],
        findings: &["! jail `late` is configured, but fail2ban does not run it\n"],
        code: 0,
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "printf '[late]\nenabled = true\nfilter = none\n' >/etc/fail2ban/jail.d/more.local
             fail2ban-client reload",
            "",
        ],
        findings: &["! fail2ban reports an error in its configuration: "],
        code: 0,
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "echo 'enabled = true' >/etc/fail2ban/jail.d/more.local; systemctl stop fail2ban",
            "rm /etc/fail2ban/jail.d/more.local; systemctl start fail2ban",
        ],
        findings: &[
            "✗ fail2ban does not answer at /var/run/fail2ban/fail2ban.sock: No such file or directory",
            "✗ fail2ban's configuration is invalid: ",
            "    systemctl restart fail2ban\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "printf '[both]\nenabled = false\n[sshd]\nenabled = false\n[web]\nenabled = false\n' \
               >/etc/fail2ban/jail.d/more.local; fail2ban-client reload",
            NO_JAILS,
        ],
        findings: &[
            "✗ fail2ban has no jails: this host detects and imports no bans\n",
            "        [sshd]\n        enabled = true\n    then: fail2ban-client reload\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "sqlite3 -cmd '.timeout 5000' /var/lib/fail2ban/fail2ban.sqlite3 \"
                INSERT INTO bips VALUES('203.0.113.250', 'sshd', 1795342588, 'odd', 1, '{}')\"",
            "sqlite3 -cmd '.timeout 5000' /var/lib/fail2ban/fail2ban.sqlite3 \"
                DELETE FROM bips WHERE ip = '203.0.113.250'\"",
        ],
        findings: &["! skipped the ban of 203.0.113.250 in sshd in fail2ban's database: bantime is the text"],
        code: 0,
        ..DEFAULT_CASE
    },
    // check finds a socket at another path, which the sandbox of the service hides.
    Case {
        host: [
            "mkdir -p /run/elsewhere; systemctl stop fail2ban
             printf '[Definition]\nsocket = /run/elsewhere/f2b.sock\n' >/etc/fail2ban/fail2ban.local
             systemctl start fail2ban; systemctl restart f2bmqttsub",
            "systemctl stop fail2ban; rm /etc/fail2ban/fail2ban.local
             systemctl start fail2ban; systemctl restart f2bmqttsub",
        ],
        findings: &[
            "✓ fail2ban 1.0.2 answers\n",
            "✗ the service f2bmqttsub cannot see fail2ban's socket /run/elsewhere/f2b.sock: its sandbox hides",
            "        BindReadOnlyPaths=/run/elsewhere\n    then: systemctl restart f2bmqttsub\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "echo MQTT_JAILS=both,shsd,sshd,web >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub
             fail2ban-client set web ignorecommand '/bin/false <ip>'",
            "sed -i '/MQTT_JAILS/d' /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub
             fail2ban-client set web ignorecommand ''",
        ],
        findings: &[
            "! MQTT_JAILS names `shsd`, but fail2ban has no such jail\n",
            "! jail `web` has an ignorecommand, which f2bmqtt does not run: imports ban addresses that",
        ],
        code: 0,
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "mkdir -p /etc/systemd/system/fail2ban.service.d
             useradd -r f2b; chown -R f2b /var/lib/fail2ban /var/log/fail2ban.log
             printf '[Service]\nUser=f2b\n' >/etc/systemd/system/fail2ban.service.d/x.conf
             systemctl daemon-reload; systemctl restart fail2ban",
            "rm /etc/systemd/system/fail2ban.service.d/x.conf; systemctl daemon-reload
             chown -R root /var/lib/fail2ban /var/log/fail2ban.log; systemctl restart fail2ban",
        ],
        findings: &[
            "✗ fail2ban cannot write to /var/lib/f2bmqtt/spool: it runs as user ",
            "    remove User= from fail2ban's unit: systemctl edit --full fail2ban\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "mkdir -p /etc/systemd/system/fail2ban.service.d
             printf '[Service]\nProtectSystem=strict\nReadWritePaths=/var/run/fail2ban /var/lib/fail2ban /var/log\n' \
               >/etc/systemd/system/fail2ban.service.d/x.conf; systemctl daemon-reload; systemctl restart fail2ban",
            "",
        ],
        findings: &[
            "✗ fail2ban cannot write to /var/lib/f2bmqtt/spool: its unit makes the path read-only",
            "        ReadWritePaths=/var/lib/f2bmqtt\n    then: systemctl restart fail2ban\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "printf '[Service]\nInaccessiblePaths=/var/lib/f2bmqtt\n' \
               >/etc/systemd/system/fail2ban.service.d/x.conf; systemctl daemon-reload; systemctl restart fail2ban",
            "rm /etc/systemd/system/fail2ban.service.d/x.conf; systemctl daemon-reload; systemctl restart fail2ban",
        ],
        findings: &["✗ fail2ban cannot write to /var/lib/f2bmqtt/spool: its unit hides or replaces the path"],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "sed -i.kept 's/^version = .*/version = \"0.11.1\"/' /usr/lib/python3/dist-packages/fail2ban/version.py
             systemctl restart fail2ban",
            "mv /usr/lib/python3/dist-packages/fail2ban/version.py.kept \
                /usr/lib/python3/dist-packages/fail2ban/version.py; systemctl restart fail2ban",
        ],
        findings: &["✗ fail2ban 0.11.1 is too old: f2bmqtt requires 0.11.2 or later\n    apt install fail2ban\n"],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "systemctl disable -q --now f2bmqttsub; touch -d '5 minutes ago' /var/lib/f2bmqtt/spool/1.waits",
            "rm /var/lib/f2bmqtt/spool/1.waits; systemctl enable -q --now f2bmqttsub",
        ],
        findings: &[
            "✗ the service f2bmqttsub is not running: this host imports no bans\n    \
             systemctl enable --now f2bmqttsub\n",
            "! the service f2bmqttsub does not start at boot: it is disabled\n",
            "! 1 event waits to be published, the oldest for 5m",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "systemctl mask -q --now f2bmqttsub",
            "systemctl unmask -q f2bmqttsub; systemctl enable -q --now f2bmqttsub",
        ],
        findings: &[
            "✗ the service f2bmqttsub is masked: it cannot be started\n    \
             systemctl unmask f2bmqttsub; systemctl enable --now f2bmqttsub\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "mv /usr/lib/systemd/system/f2bmqttsub.service /root/; systemctl daemon-reload",
            "mv /root/f2bmqttsub.service /usr/lib/systemd/system/; systemctl daemon-reload",
        ],
        findings: &[
            "✗ the service f2bmqttsub is not installed\n    \
             apt install --reinstall ./f2bmqtt.deb; systemctl daemon-reload\n",
            "✓ the service f2bmqttsub runs\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "cp /usr/lib/systemd/system/f2bmqttsub.service /etc/systemd/system/; systemctl daemon-reload",
            "mv /etc/systemd/system/f2bmqttsub.service /etc/systemd/system/f2bmqttsub.service.old
             systemctl daemon-reload; systemctl -q reenable f2bmqttsub; systemctl restart f2bmqttsub",
        ],
        findings: &[
            "✗ systemd runs /etc/systemd/system/f2bmqttsub.service instead of the package's unit\n",
            "    systemctl reenable f2bmqttsub; systemctl restart f2bmqttsub\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: ["sleep 1; touch /etc/fail2ban/mqtt.env", "systemctl restart f2bmqttsub"],
        findings: &["✗ the service runs with old settings: /etc/fail2ban/mqtt.env changed "],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "cp -p /usr/bin/f2bmqtt /usr/bin/f2bmqtt.new; mv /usr/bin/f2bmqtt.new /usr/bin/f2bmqtt",
            "systemctl restart f2bmqttsub",
        ],
        findings: &["! the service still runs the previously installed version\n"],
        code: 0,
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "printf '#!/bin/bash\nsleep 1000\n:\n' >/opt/mqttsubscribebans; chmod 755 /opt/mqttsubscribebans
             systemd-run -q -u old /opt/mqttsubscribebans",
            "systemctl stop old",
        ],
        findings: &[
            "✗ a script mqttsubscribebans still runs (PID ",
            "    systemctl disable --now old.service\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: ["setsid /opt/mqttsubscribebans >/dev/null 2>&1 &", "pkill -f '^/bin/bash /opt/mqtt'"],
        findings: &[
            "✗ a script mqttsubscribebans still runs (PID ",
            "\n    remove the line that starts the script from crontab -l or /etc/rc.local\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "rm /etc/fail2ban/mqttnotifyban; echo '#!/bin/sh' >/etc/fail2ban/mqttnotifyban",
            "dpkg-reconfigure f2bmqtt; systemctl enable -q --now f2bmqttsub",
        ],
        findings: &[
            "✗ /etc/fail2ban/mqttnotifyban is not a link to /usr/bin/f2bmqtt: its callers run another program\n",
            "    dpkg-reconfigure f2bmqtt; systemctl enable --now f2bmqttsub\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "echo '# mine' >/etc/fail2ban/action.d/iptables-ipset.local.ucf-dist
             mv /etc/fail2ban/action.d/abuseipdb.local /root/",
            "rm /etc/fail2ban/action.d/iptables-ipset.local.ucf-dist
             mv /root/abuseipdb.local /etc/fail2ban/action.d/",
        ],
        findings: &[
            "! /etc/fail2ban/action.d/iptables-ipset.local is locally modified; the packaged version is in \
             /etc/fail2ban/action.d/iptables-ipset.local.ucf-dist\n",
            "! /etc/fail2ban/action.d/abuseipdb.local is missing\n",
        ],
        code: 0,
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "chmod 755 /var/lib/f2bmqtt; chmod 644 /etc/fail2ban/mqtt.env",
            "chmod 700 /var/lib/f2bmqtt; chmod 600 /etc/fail2ban/mqtt.env",
        ],
        findings: &[
            "✗ users other than root can access /var/lib/f2bmqtt (mode 0755)\n",
            "! /etc/fail2ban/mqtt.env holds a password and is readable by other users; run: chmod 600",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: ["mount -t tmpfs -o size=64k,mode=700 none /var/lib/f2bmqtt", "umount /var/lib/f2bmqtt"],
        findings: &["✗ only 64 KiB are free (at least 16384 KiB are needed) on the file system of /var/lib/f2bmqtt: a restart loses state that cannot be written\n"],
        ..DEFAULT_CASE
    },
    // fail2ban's own action, without the package's action.
    Case {
        host: [
            "mv /etc/fail2ban/action.d/abuseipdb.local /root/
             printf '[old]\nenabled = true\nlogpath = /var/log/fail2ban.log\naction = %%(action_)s\n         \
             %%(action_abuseipdb)s[abuseipdb_category=18]\n' >/etc/fail2ban/jail.d/more.local
             fail2ban-client reload",
            "",
        ],
        findings: &[
            "! /etc/fail2ban/action.d/abuseipdb.local is missing\n",
            "✗ jail `old` reports to AbuseIPDB with fail2ban's own action, which also reports bans that other \
             servers detected\n    \
             cp -b /usr/share/f2bmqtt/action.d/abuseipdb.local /etc/fail2ban/action.d/\n    \
             then: fail2ban-client reload --restart old\n",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "cp -b /usr/share/f2bmqtt/action.d/abuseipdb.local /etc/fail2ban/action.d/
             fail2ban-client reload --restart old",
            "",
        ],
        findings: &[
            "✗ jail `old` reports to AbuseIPDB, but the key file /etc/fail2ban/abuseipdb.apikey is missing\n",
            "✗ jail `old` counts bans, also those of other servers, and reports them to AbuseIPDB",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: ["echo APIKEY=YOUR_API_KEY >/etc/fail2ban/abuseipdb.apikey", ""],
        findings: &[
            "! /etc/fail2ban/abuseipdb.apikey is readable by other users; run: chmod 600",
            "✗ jail `old` reports to AbuseIPDB, but /etc/fail2ban/abuseipdb.apikey contains no key",
        ],
        ..DEFAULT_CASE
    },
    Case {
        host: ["echo 'APIKEY=a b' >/etc/fail2ban/abuseipdb.apikey", ""],
        findings: &["! /etc/fail2ban/abuseipdb.apikey, line 1: has text after the value"],
        ..DEFAULT_CASE
    },
    Case {
        host: [
            "rm /etc/fail2ban/abuseipdb.apikey
             sed -i 's/fail2ban.log/auth.log/; s/category=18/category=18, abuseipdb_apikey=k3y/' \
               /etc/fail2ban/jail.d/more.local; fail2ban-client reload --restart old",
            NO_JAILS,
        ],
        findings: &["! jail `old` reports to AbuseIPDB, with a key in the jail's configuration, which every user can see in the process list\n"],
        code: 0,
        ..DEFAULT_CASE
    },
];

#[test]
fn each_host_fault_is_reported() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    for case in &HOST_FAULTS {
        assert_reported(case, hub, a);
    }
    assert_sound(a);
}
