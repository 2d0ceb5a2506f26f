//! Faults of the host itself: its jails, the service, files, the reporter.

use super::{Case, FAULT, is_named, is_sound};
use crate::support::Rig;

/// Adds jails to a host's fail2ban, and takes them away.
const NO_JAILS: &str = "rm /etc/fail2ban/jail.d/more.local; fail2ban-client reload";

/// Faults of the host itself.
const HOSTS: [Case; 33] = [
    Case {
        host: [
            "printf '[quiet]\nenabled = true\nlogpath = /var/log/auth.log\naction = nftables[type=allports]\n' \
               >/etc/fail2ban/jail.d/more.local; fail2ban-client reload",
            "",
        ],
        said: &[
            "✓ quiet shares its bans by snapshot, within seconds: its action is nftables\n",
            "        [quiet]\n        action = %(action_)s\n                 f2bmqtt\n    \
             then: fail2ban-client reload --restart quiet\n",
        ],
        code: 0,
        ..FAULT
    },
    // A reload without --restart leaves a jail whose actions changed without any.
    Case {
        host: [
            "sed -i 's/^action = .*/action = iptables-allports/' /etc/fail2ban/jail.d/more.local; fail2ban-client reload",
            "",
        ],
        said: &[
            "✗ the jail quiet has no action: it blocks nothing\n    fail2ban-client reload --restart quiet\n",
        ],
        ..FAULT
    },
    // Nor does it bring a new action.
    Case {
        host: [
            "fail2ban-client reload --restart quiet
             printf '         f2bmqtt\n' >>/etc/fail2ban/jail.d/more.local; fail2ban-client reload",
            "fail2ban-client reload --restart quiet",
        ],
        said: &[
            "! quiet shares its bans by snapshot, within seconds: fail2ban has not loaded the configured action",
            "    fail2ban-client reload --restart quiet\n",
        ],
        code: 0,
        ..FAULT
    },
    // The step that was named has helped.
    Case { said: &["✓ both, quiet, sshd and web share their bans\n"], code: 0, ..FAULT },
    Case {
        host: [
            "sed -i '/f2bmqtt/d' /etc/fail2ban/jail.d/more.local; fail2ban-client reload --restart quiet
             echo MQTT_NOT_JAILS=quiet >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
            "sed -i '/MQTT_NOT_JAILS/d' /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub",
        ],
        said: &["✓ quiet does not share bans: excluded by the settings\n"],
        code: 0,
        ..FAULT
    },
    Case {
        host: [
            "printf '[late]\nenabled = true\nlogpath = /var/log/auth.log\n' >/etc/fail2ban/jail.d/more.local",
            "fail2ban-client reload",
        ],
        said: &["! the jail late is configured, but fail2ban does not run it\n"],
        code: 0,
        ..FAULT
    },
    Case {
        host: [
            "printf '[late]\nenabled = true\nfilter = none\n' >/etc/fail2ban/jail.d/more.local
             fail2ban-client reload",
            "",
        ],
        said: &["! fail2ban reports an error in its configuration: "],
        code: 0,
        ..FAULT
    },
    Case {
        host: [
            "echo 'enabled = true' >/etc/fail2ban/jail.d/more.local; systemctl stop fail2ban",
            "rm /etc/fail2ban/jail.d/more.local; systemctl start fail2ban",
        ],
        said: &[
            "✗ fail2ban does not answer at /var/run/fail2ban/fail2ban.sock: No such file or directory",
            "✗ fail2ban's configuration is invalid: ",
            "    systemctl restart fail2ban\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "printf '[both]\nenabled = false\n[sshd]\nenabled = false\n[web]\nenabled = false\n' \
               >/etc/fail2ban/jail.d/more.local; fail2ban-client reload",
            NO_JAILS,
        ],
        said: &[
            "✗ fail2ban has no jails: this host detects and imports no bans\n",
            "        [sshd]\n        enabled = true\n    then: fail2ban-client reload\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "sqlite3 -cmd '.timeout 5000' /var/lib/fail2ban/fail2ban.sqlite3 \"
                INSERT INTO bips VALUES('203.0.113.250', 'sshd', 1795342588, 'odd', 1, '{}')\"",
            "sqlite3 -cmd '.timeout 5000' /var/lib/fail2ban/fail2ban.sqlite3 \"
                DELETE FROM bips WHERE ip = '203.0.113.250'\"",
        ],
        said: &["! skipped the ban of 203.0.113.250 in sshd in fail2ban's database: bantime is the text"],
        code: 0,
        ..FAULT
    },
    // A socket elsewhere is found, and the sandbox of the service hides it.
    Case {
        host: [
            "mkdir -p /run/elsewhere; systemctl stop fail2ban
             printf '[Definition]\nsocket = /run/elsewhere/f2b.sock\n' >/etc/fail2ban/fail2ban.local
             systemctl start fail2ban; systemctl restart f2bmqttsub",
            "systemctl stop fail2ban; rm /etc/fail2ban/fail2ban.local
             systemctl start fail2ban; systemctl restart f2bmqttsub",
        ],
        said: &[
            "✓ fail2ban 1.0.2 answers\n",
            "✗ the service f2bmqttsub cannot see fail2ban's socket /run/elsewhere/f2b.sock: its sandbox hides",
            "        BindReadOnlyPaths=/run/elsewhere\n    then: systemctl restart f2bmqttsub\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "echo MQTT_JAILS=both,shsd,sshd,web >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub
             fail2ban-client set web ignorecommand '/bin/false <ip>'",
            "sed -i '/MQTT_JAILS/d' /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub
             fail2ban-client set web ignorecommand ''",
        ],
        said: &[
            "! MQTT_JAILS names shsd, but fail2ban has no such jail\n",
            "! the jail web has an ignorecommand, which f2bmqtt does not run: imports ban addresses that",
        ],
        code: 0,
        ..FAULT
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
        said: &[
            "✗ fail2ban cannot write to /var/lib/f2bmqtt/spool: it runs as user ",
            "    remove User= from fail2ban's unit: systemctl edit --full fail2ban\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "mkdir -p /etc/systemd/system/fail2ban.service.d
             printf '[Service]\nProtectSystem=strict\nReadWritePaths=/var/run/fail2ban /var/lib/fail2ban /var/log\n' \
               >/etc/systemd/system/fail2ban.service.d/x.conf; systemctl daemon-reload; systemctl restart fail2ban",
            "",
        ],
        said: &[
            "✗ fail2ban cannot write to /var/lib/f2bmqtt/spool: its unit makes the path read-only",
            "        ReadWritePaths=/var/lib/f2bmqtt\n    then: systemctl restart fail2ban\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "printf '[Service]\nInaccessiblePaths=/var/lib/f2bmqtt\n' \
               >/etc/systemd/system/fail2ban.service.d/x.conf; systemctl daemon-reload; systemctl restart fail2ban",
            "rm /etc/systemd/system/fail2ban.service.d/x.conf; systemctl daemon-reload; systemctl restart fail2ban",
        ],
        said: &["✗ fail2ban cannot write to /var/lib/f2bmqtt/spool: its unit hides or replaces the path"],
        ..FAULT
    },
    Case {
        host: [
            "sed -i.kept 's/^version = .*/version = \"0.11.1\"/' /usr/lib/python3/dist-packages/fail2ban/version.py
             systemctl restart fail2ban",
            "mv /usr/lib/python3/dist-packages/fail2ban/version.py.kept \
                /usr/lib/python3/dist-packages/fail2ban/version.py; systemctl restart fail2ban",
        ],
        said: &["✗ fail2ban 0.11.1 is too old: f2bmqtt requires 0.11.2 or later\n    apt install fail2ban\n"],
        ..FAULT
    },
    Case {
        host: [
            "systemctl disable -q --now f2bmqttsub; touch -d '5 minutes ago' /var/lib/f2bmqtt/spool/1.waits",
            "rm /var/lib/f2bmqtt/spool/1.waits; systemctl enable -q --now f2bmqttsub",
        ],
        said: &[
            "✗ the service f2bmqttsub is not running: this host imports no bans\n    \
             systemctl enable --now f2bmqttsub\n",
            "! the service f2bmqttsub does not start at boot: it is disabled\n",
            "! 1 event waits to be published, the oldest for 5m",
        ],
        ..FAULT
    },
    Case {
        host: [
            "systemctl mask -q --now f2bmqttsub",
            "systemctl unmask -q f2bmqttsub; systemctl enable -q --now f2bmqttsub",
        ],
        said: &[
            "✗ the service f2bmqttsub is masked: it cannot be started\n    \
             systemctl unmask f2bmqttsub; systemctl enable --now f2bmqttsub\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "mv /usr/lib/systemd/system/f2bmqttsub.service /root/; systemctl daemon-reload",
            "mv /root/f2bmqttsub.service /usr/lib/systemd/system/; systemctl daemon-reload",
        ],
        said: &[
            "✗ the service f2bmqttsub is not installed\n    \
             apt install --reinstall ./f2bmqtt.deb; systemctl daemon-reload\n",
            "✓ the service f2bmqttsub runs\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "cp /usr/lib/systemd/system/f2bmqttsub.service /etc/systemd/system/; systemctl daemon-reload",
            "mv /etc/systemd/system/f2bmqttsub.service /etc/systemd/system/f2bmqttsub.service.old
             systemctl daemon-reload; systemctl -q reenable f2bmqttsub; systemctl restart f2bmqttsub",
        ],
        said: &[
            "✗ systemd runs /etc/systemd/system/f2bmqttsub.service instead of the package's unit\n",
            "    systemctl reenable f2bmqttsub; systemctl restart f2bmqttsub\n",
        ],
        ..FAULT
    },
    Case {
        host: ["sleep 1; touch /etc/fail2ban/mqtt.env", "systemctl restart f2bmqttsub"],
        said: &["✗ the service runs with old settings: /etc/fail2ban/mqtt.env changed "],
        ..FAULT
    },
    Case {
        host: [
            "cp -p /usr/bin/f2bmqtt /usr/bin/f2bmqtt.new; mv /usr/bin/f2bmqtt.new /usr/bin/f2bmqtt",
            "systemctl restart f2bmqttsub",
        ],
        said: &["! the service still runs the previously installed version\n"],
        code: 0,
        ..FAULT
    },
    Case {
        host: [
            "printf '#!/bin/bash\nsleep 1000\n:\n' >/opt/mqttsubscribebans; chmod 755 /opt/mqttsubscribebans
             systemd-run -q -u old /opt/mqttsubscribebans",
            "systemctl stop old",
        ],
        said: &[
            "✗ a script mqttsubscribebans still runs (PID ",
            "    systemctl disable --now old.service\n",
        ],
        ..FAULT
    },
    Case {
        host: ["setsid /opt/mqttsubscribebans >/dev/null 2>&1 &", "pkill -f '^/bin/bash /opt/mqtt'"],
        said: &[
            "✗ a script mqttsubscribebans still runs (PID ",
            "\n    remove what starts the script: crontab -l, /etc/rc.local\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "rm /etc/fail2ban/mqttnotifyban; echo '#!/bin/sh' >/etc/fail2ban/mqttnotifyban",
            "dpkg-reconfigure f2bmqtt; systemctl enable -q --now f2bmqttsub",
        ],
        said: &[
            "✗ /etc/fail2ban/mqttnotifyban is not a link to /usr/bin/f2bmqtt: its callers run another program\n",
            "    dpkg-reconfigure f2bmqtt; systemctl enable --now f2bmqttsub\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "echo '# mine' >/etc/fail2ban/action.d/iptables-ipset.local.ucf-dist
             mv /etc/fail2ban/action.d/abuseipdb.local /root/",
            "rm /etc/fail2ban/action.d/iptables-ipset.local.ucf-dist
             mv /root/abuseipdb.local /etc/fail2ban/action.d/",
        ],
        said: &[
            "! /etc/fail2ban/action.d/iptables-ipset.local is locally modified; the packaged version is in \
             /etc/fail2ban/action.d/iptables-ipset.local.ucf-dist\n",
            "! /etc/fail2ban/action.d/abuseipdb.local is missing\n",
        ],
        code: 0,
        ..FAULT
    },
    Case {
        host: [
            "chmod 755 /var/lib/f2bmqtt; chmod 644 /etc/fail2ban/mqtt.env",
            "chmod 700 /var/lib/f2bmqtt; chmod 600 /etc/fail2ban/mqtt.env",
        ],
        said: &[
            "✗ users other than root can access /var/lib/f2bmqtt (mode 0755)\n",
            "! /etc/fail2ban/mqtt.env holds a password and is readable by other users; run: chmod 600",
        ],
        ..FAULT
    },
    Case {
        host: ["mount -t tmpfs -o size=64k,mode=700 none /var/lib/f2bmqtt", "umount /var/lib/f2bmqtt"],
        said: &["✗ only 64 KiB of at least 16384 KiB are free on the file system of /var/lib/f2bmqtt: a restart loses state that cannot be written\n"],
        ..FAULT
    },
    // fail2ban's own action, where ours does not take its place.
    Case {
        host: [
            "mv /etc/fail2ban/action.d/abuseipdb.local /root/
             printf '[old]\nenabled = true\nlogpath = /var/log/fail2ban.log\naction = %%(action_)s\n         \
             %%(action_abuseipdb)s[abuseipdb_category=18]\n' >/etc/fail2ban/jail.d/more.local
             fail2ban-client reload",
            "",
        ],
        said: &[
            "! /etc/fail2ban/action.d/abuseipdb.local is missing\n",
            "✗ the jail old reports to AbuseIPDB with fail2ban's own action, which also reports bans that other \
             servers detected\n    \
             cp -b /usr/share/f2bmqtt/action.d/abuseipdb.local /etc/fail2ban/action.d/\n    \
             then: fail2ban-client reload --restart old\n",
        ],
        ..FAULT
    },
    Case {
        host: [
            "cp -b /usr/share/f2bmqtt/action.d/abuseipdb.local /etc/fail2ban/action.d/
             fail2ban-client reload --restart old",
            "",
        ],
        said: &[
            "✗ old reports to AbuseIPDB, but the key file /etc/fail2ban/abuseipdb.apikey is missing\n",
            "✗ the jail old counts bans, also those of other servers, and reports them to AbuseIPDB",
        ],
        ..FAULT
    },
    Case {
        host: ["echo APIKEY=YOUR_API_KEY >/etc/fail2ban/abuseipdb.apikey", ""],
        said: &[
            "! /etc/fail2ban/abuseipdb.apikey is readable by other users; run: chmod 600",
            "✗ old reports to AbuseIPDB, but /etc/fail2ban/abuseipdb.apikey contains no key",
        ],
        ..FAULT
    },
    Case {
        host: ["echo 'APIKEY=a b' >/etc/fail2ban/abuseipdb.apikey", ""],
        said: &["! /etc/fail2ban/abuseipdb.apikey, line 1: has text after the value"],
        ..FAULT
    },
    Case {
        host: [
            "rm /etc/fail2ban/abuseipdb.apikey
             sed -i 's/fail2ban.log/auth.log/; s/category=18/category=18, abuseipdb_apikey=k3y/' \
               /etc/fail2ban/jail.d/more.local; fail2ban-client reload --restart old",
            NO_JAILS,
        ],
        said: &["! old reports to AbuseIPDB, with a key in the jail's configuration, which every user can see in the process list\n"],
        code: 0,
        ..FAULT
    },
];

#[test]
fn each_host_fault_is_reported() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    for case in &HOSTS {
        is_named(case, hub, a);
    }
    is_sound(a);
}
