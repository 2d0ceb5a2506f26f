//! The service's sandbox: what it denies the daemon, and that all functions work in it. No secret is exposed on a host.

mod support;

use std::path::Path;
use std::time::Duration;

use support::reports::{jail_reports, key, reports_to_hub, taken};
use support::{CONDITION_LIMIT, Host, Rig, becomes, eventually, within};

const LOG: &str = "/var/log/abuseipdb/abuseipdb.log";

/// Runs `cage.py` in the sandbox of the installed unit. Only the command differs.
fn run_in_sandbox(host: Host<'_>) -> String {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/cage.py");
    host.push(&program, "/usr/lib/cage.py");
    host.sh("sed -e 's|^ExecStart=.*|ExecStart=/usr/bin/python3 /usr/lib/cage.py|' \
                 -e 's/^Type=.*/Type=oneshot/' \
                 -e '/^Restart=/d; /^WatchdogSec=/d' /usr/lib/systemd/system/f2bmqttsub.service \
               >/etc/systemd/system/cage.service
             systemctl daemon-reload; systemctl start cage");
    host.sh("journalctl -u cage -o cat --no-pager")
}

fn assert_sandbox(suite: &str) {
    let rig = Rig::fleet_of(suite, &["a"]);
    let a = rig.host("a");
    let score = a.sh("systemd-analyze security --no-pager f2bmqttsub | tail -n 1");
    let number = score.split(": ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(number.parse::<f64>().unwrap() <= 1.5, "{score}");
    // Another service with a socket for root.
    a.sh("systemd-run -q -u own python3 -c \"import socket, time
s = socket.socket(socket.AF_UNIX); s.bind('/run/own.sock'); s.listen(); time.sleep(999)\"
          until [ -S /run/own.sock ]; do sleep 0.1; done");
    let tried = run_in_sandbox(a);
    let mut can: Vec<_> = tried.lines().filter_map(|line| line.strip_prefix("can ")).collect();
    can.sort_unstable();
    let expected = [
        "connect to /run/systemd/journal/dev-log",
        "connect to /run/systemd/notify",
        "connect to fail2ban",
        "reach the broker",
        "read /etc/fail2ban/mqtt.env",
        "read /var/lib/fail2ban/fail2ban.sqlite3",
        "write /run/f2bmqtt/x",
        "write /tmp/x",
        "write /var/lib/f2bmqtt/x",
        "write /var/lib/fail2ban/abuseipdb/x",
        "write /var/log/abuseipdb/x",
        "write /var/tmp/x",
    ];
    assert_eq!(can, expected, "{tried}");
    assert!(tried.contains("capabilities none none none none none"), "{tried}");
    assert!(tried.contains("core 0 0"), "{tried}");
    let run = tried.lines().find_map(|line| line.strip_prefix("run ")).unwrap();
    let seen: Vec<_> = run.split(' ').collect();
    // systemd's own directories hold only what the unit itself was given.
    let allowed = [
        "f2bmqtt",
        "fail2ban",
        "systemd",
        "systemd/notify",
        "systemd/journal",
        "systemd/resolve",
        "systemd/incoming",
        "credentials",
        "host",
        "resolvconf",
        "nscd",
        "avahi-daemon",
    ];
    assert!(seen.iter().all(|name| allowed.contains(name)), "{run}");
    assert!(a.try_sh("test -e /tmp/x").is_err(), "the service has its own /tmp");
}

#[test]
fn sandbox_restricts_service_on_debian_12() {
    assert_sandbox("bookworm");
}

#[test]
fn sandbox_restricts_service_on_debian_13() {
    assert_sandbox("trixie");
}

#[test]
fn changes_outside_sandbox_are_visible_inside() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    // A name that a replaced /etc/hosts adds later.
    b.sh("sed -i 's/^MQTT_HOST=.*/MQTT_HOST=broker.example/' /etc/fail2ban/mqtt.env
          systemctl restart f2bmqttsub");
    eventually("the name is unknown", || b.journal().contains("broker broker.example:1883: "));
    b.sh("sed -i '1i 10.213.77.11 broker.example' /etc/hosts");
    eventually("b is connected", || b.journal().contains("connected to the broker broker.example"));
    // fail2ban's database with a write-ahead log, and a restart of fail2ban.
    b.sh("sqlite3 /var/lib/fail2ban/fail2ban.sqlite3 'PRAGMA journal_mode = wal'");
    a.attack("auth", &["192.0.2.1"]);
    b.attack("web", &["192.0.2.2"]);
    eventually("each imports the other's ban", || {
        b.bans("sshd", "192.0.2.1") && a.bans("web", "192.0.2.2")
    });
    let mode = b.sh("sqlite3 /var/lib/fail2ban/fail2ban.sqlite3 'PRAGMA journal_mode'");
    assert_eq!(mode, "wal");
    b.sh("systemctl restart fail2ban");
    eventually("its bans are restored", || b.bans("sshd", "192.0.2.1"));
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    eventually("b releases the ban", || !b.bans("sshd", "192.0.2.1"));
    assert!(!b.journal().contains("database"), "{}", b.journal());
}

/// Host `a` detects an address, and `b` imports the ban.
fn assert_crosses(a: Host<'_>, b: Host<'_>, address: &str) {
    a.attack("auth", &[address]);
    eventually("b imports the ban", || b.bans("sshd", address));
}

/// The PID of the daemon.
fn main_pid(host: Host<'_>) -> String {
    host.sh("systemctl show -P MainPID f2bmqttsub")
}

#[test]
fn fail2ban_is_found_in_any_start_order() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    // fail2ban starts for the first time after the daemon.
    b.sh("systemctl stop f2bmqttsub fail2ban; rm -rf /run/fail2ban; systemctl start f2bmqttsub");
    let first = main_pid(b);
    b.sh("systemctl start fail2ban");
    assert_crosses(a, b, "192.0.2.1");
    b.sh("systemctl restart fail2ban");
    assert_crosses(a, b, "192.0.2.2");
    b.sh("systemctl stop fail2ban; sleep 1; systemctl start fail2ban");
    assert_crosses(a, b, "192.0.2.3");
    assert_eq!(main_pid(b), first, "the daemon did not restart");
    // A unit of fail2ban that creates its directory again at each start.
    b.sh("mkdir -p /etc/systemd/system/fail2ban.service.d
          printf '[Service]\nRuntimeDirectoryPreserve=no\n' \
            >/etc/systemd/system/fail2ban.service.d/zz.conf
          systemctl daemon-reload; systemctl restart fail2ban");
    assert_crosses(a, b, "192.0.2.4");
    assert_ne!(main_pid(b), first);
    let logged = "fail2ban replaced its directory in /run, and this process cannot see the new one";
    let journal = b.sh("journalctl -u f2bmqttsub -o cat --no-pager");
    assert!(journal.contains(logged), "{journal}");
}

#[test]
fn unwritable_reporter_path_is_logged_with_fix() {
    let rig = Rig::fleet(&["a"]);
    let a = rig.host("a");
    reports_to_hub(&rig, a);
    jail_reports(a, r#"sqlite_db="/srv/reports/db", log_file="/srv/log/reports.log""#);
    a.attack("auth", &["192.31.196.9"]);
    // fail2ban's call creates both files and writes to the log. The service may not.
    for line in [
        "192.31.196.9 waits: cannot open /srv/reports/db: Read-only file system",
        "the lines [Service] and ReadWritePaths=/srv/reports, then",
        "the lines [Service] and ReadWritePaths=/srv/log, then",
    ] {
        eventually(line, || a.sh("journalctl -t f2bmqtt -o cat --no-pager").contains(line));
    }
    assert_eq!(taken(&rig).len(), 0);
    a.sh("mkdir -p /etc/systemd/system/f2bmqttsub.service.d
          printf '[Service]\nReadWritePaths=/srv/reports\nReadWritePaths=/srv/log\n' \
            >/etc/systemd/system/f2bmqttsub.service.d/override.conf
          systemctl daemon-reload; systemctl restart f2bmqttsub");
    // The queued report is retried within a minute and a half.
    within(Duration::from_mins(2), "the ban is reported", || taken(&rig).len() == 1);
    eventually("the reporter writes the log", || {
        a.sh("cat /srv/log/reports.log").contains("SUCCESS: Reported 192.31.196.9")
    });
}

#[test]
fn state_files_are_root_only_and_symlinks_are_not_followed() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    reports_to_hub(&rig, a);
    jail_reports(a, "");
    a.attack("auth", &["192.31.196.9"]);
    b.attack("auth", &["192.31.196.8"]);
    eventually("a reports its ban and imports the other one", || {
        taken(&rig).len() == 1 && a.bans("sshd", "192.31.196.8")
    });
    a.sh("/etc/fail2ban/mqttnotifyban sshd 192.0.2.1 600 ban 0 3");
    let exposed = "find /var/lib/f2bmqtt /var/lib/fail2ban/abuseipdb /var/log/abuseipdb \
                     /run/f2bmqtt -perm /077 ! -path /run/f2bmqtt";
    assert_eq!(a.sh(exposed), "");
    // A child process reports instead of the daemon while symbolic links replace its files.
    a.sh("systemctl stop f2bmqttsub");
    a.attack("auth", &["192.31.196.7"]);
    eventually("a child reports the ban", || taken(&rig).len() == 2);
    a.sh("touch /srv/target
          for file in /var/lib/f2bmqtt/fleet.sqlite3 /var/lib/f2bmqtt/reports.sqlite3 /run/f2bmqtt/lock; do
              rm -f $file*; ln -s /srv/target $file; done");
    a.sh("systemctl start --no-block f2bmqttsub");
    let refused = "cannot lock /run/f2bmqtt/lock: Too many levels of symbolic links (os error 40); \
                   the path is a symbolic link, which f2bmqtt does not follow";
    eventually(refused, || a.sh("journalctl -u f2bmqttsub -o cat").contains(refused));
    a.sh("rm /run/f2bmqtt/lock");
    let refused = "cannot open /var/lib/f2bmqtt/fleet.sqlite3: Too many levels of symbolic links";
    eventually(refused, || a.sh("journalctl -u f2bmqttsub -o cat").contains(refused));
    a.sh("rm /var/lib/f2bmqtt/fleet.sqlite3");
    let refused = "cannot open /var/lib/f2bmqtt/reports.sqlite3: Too many levels of symbolic links";
    let logged =
        becomes(CONDITION_LIMIT, || a.sh("journalctl -u f2bmqttsub -o cat").contains(refused));
    assert!(
        logged,
        "{}",
        a.sh("journalctl -o short-precise; ls -la /var/lib/f2bmqtt /run/f2bmqtt; ps ax")
    );
    assert_eq!(a.sh("stat -c %s /srv/target"), "0");
}

/// The command lines and the environments of all processes.
fn processes(host: Host<'_>) -> String {
    host.sh(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; tr '\\0' '\\n' <$p/environ; done 2>&1",
    )
}

/// The paths of all files that contain a secret.
fn files_with(host: Host<'_>, secret: &str) -> String {
    host.sh(&format!(
        "grep -rl --devices=skip {secret} /etc /var /run /srv /tmp /root /home /usr/share/f2bmqtt 2>&1; true"
    ))
}

/// The owner of the `/proc` files of a command that the user `games` runs.
fn proc_owner(host: Host<'_>, command: &str, name: &str) -> String {
    let stat = format!("stat -c %U /proc/$(pgrep -u games -x {name} | head -n 1)/status");
    host.sh(&format!("sleep 5 | setpriv --reuid games {command} & sleep 1; {stat}; wait; true"))
}

#[test]
fn secrets_are_not_exposed_on_host() {
    const PASSWORD: &str = "hunter2-of-the-fleet";
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    hub.sh(&format!(
        "mosquitto_passwd -b /etc/mosquitto/passwd a {PASSWORD}; systemctl reload mosquitto"
    ));
    a.sh(&format!(
        "sed -i 's/^MQTT_USER=.*/MQTT_USER=a/; s/^MQTT_PASSWORD=.*/MQTT_PASSWORD={PASSWORD}/' \
           /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub"
    ));
    a.ready();
    reports_to_hub(&rig, a);
    jail_reports(a, "");
    a.attack("auth", &["192.31.196.9"]);
    eventually("the ban is reported and imported", || {
        taken(&rig).len() == 1 && b.bans("sshd", "192.31.196.9")
    });
    // Errors of the service, and of the child processes without a service.
    hub.sh("systemctl stop mosquitto; echo '401 no' >/root/api/answer");
    a.attack("auth", &["192.31.196.10"]);
    eventually("the key is refused", || {
        a.sh(&format!("cat {LOG}; journalctl -u f2bmqttsub -o cat")).contains("401")
    });
    a.sh("systemctl stop f2bmqttsub");
    a.attack("auth", &["192.31.196.11"]);
    eventually("the publisher runs", || a.try_sh("pgrep -f '^f2bmqtt publish'").is_ok());
    let with_children = processes(a);
    a.sh("systemctl start f2bmqttsub");
    eventually("the daemon runs", || a.try_sh("pgrep -f '^/usr/bin/f2bmqtt subscribe'").is_ok());
    let seen = [with_children, processes(a)].concat();
    assert!(seen.contains("f2bmqtt publish") && seen.contains("NOTIFY_SOCKET="), "{seen}");
    // Only the administrator's own files contain the secrets.
    assert_eq!(files_with(a, PASSWORD), "/etc/fail2ban/mqtt.env");
    assert_eq!(files_with(a, &key()), "/etc/fail2ban/abuseipdb.apikey");
    let journal = a.sh("journalctl --no-pager");
    for secret in [PASSWORD, &key()] {
        assert!(!seen.contains(secret) && !journal.contains(secret), "{secret}");
    }
    // The kernel gives the /proc files of a process that cannot dump core to root.
    assert_eq!(proc_owner(a, "cat", "cat"), "games");
    assert_eq!(proc_owner(a, "f2bmqtt publish", "f2bmqtt"), "root");
    let limits = a.sh("cat /proc/$(systemctl show -P MainPID f2bmqttsub)/limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}
