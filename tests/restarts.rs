//! Outages of a daemon, a fail2ban or the broker: the bans of that time are shared afterwards, and no event is published
//! twice.

mod support;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use support::{Host, Rig, eventually};

/// How long a start or a stop of the daemon may take on a busy machine. systemd aborts a hanging start after 90 s and a
/// hanging stop after 10 s, with another result.
const MAX_STOP_TIME: Duration = Duration::from_secs(20);

fn addresses(count: u8) -> Vec<String> {
    (1..=count).map(|n| format!("192.0.2.{n}")).collect()
}

fn attack(host: Host<'_>, addresses: &[String]) {
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    host.attack("auth", &addresses);
}

fn banned(host: Host<'_>) -> Vec<String> {
    let list = host.ask("get sshd banip").unwrap_or_default();
    let mut list: Vec<_> = list.split_whitespace().map(str::to_owned).collect();
    list.sort_by_key(|address| address.rsplit('.').next().unwrap().parse::<u8>().unwrap());
    list
}

/// Publishes one more ban and waits for it. Returns the events before that ban.
fn last_message(rig: &Rig, host: Host<'_>) -> Vec<String> {
    let seen = rig.host("hub");
    host.sh("/etc/fail2ban/mqttnotifyban last 198.51.100.99 600 ban 0 1");
    eventually("the last message is seen", || seen.sh("cat /root/seen").contains("198.51.100.99"));
    let events = seen.sh("grep -v -e probe -e 198.51.100.99 -e ^f2bmqtt/ /root/seen || true");
    events.lines().map(str::to_owned).collect()
}

#[test]
fn events_during_daemon_stop_arrive_after_start() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    attack(a, &["192.0.2.100".to_owned()]);
    eventually("b bans the first", || b.bans("sshd", "192.0.2.100"));
    b.sh("systemctl stop f2bmqttsub");
    attack(a, &addresses(20));
    eventually("a bans them", || banned(a).len() == 21);
    a.sh("fail2ban-client set sshd unbanip 192.0.2.100");
    assert_eq!(banned(b), ["192.0.2.100"]);
    b.sh("systemctl start f2bmqttsub");
    eventually("b imports a's bans", || banned(b) == addresses(20));
    // A restarted daemon still knows its imports.
    b.sh("systemctl restart f2bmqttsub");
    a.sh("fail2ban-client set sshd unbanip 192.0.2.7");
    eventually("b releases the ban", || !b.bans("sshd", "192.0.2.7"));
}

#[test]
fn imported_ban_lasts_as_long_as_at_origin() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    // The bans last ten minutes at the origin. b's jail bans for 20 seconds.
    b.sh("fail2ban-client set sshd bantime 20");
    attack(a, &addresses(3));
    eventually("b bans them", || banned(b) == addresses(3));
    // A ban that b's operator lifts stays lifted.
    b.sh("fail2ban-client set sshd unbanip 192.0.2.3");
    let count_renewals =
        "grep -c 'WARNING.*already banned\\|NOTICE.*already banned' /var/log/fail2ban.log || true";
    eventually("b has renewed them twice", || b.sh(count_renewals).parse::<u32>().unwrap() >= 4);
    assert_eq!(banned(b), addresses(2));
    let log = b.sh("grep -e '] Ban ' -e '] Unban ' /var/log/fail2ban.log");
    assert_eq!(log.matches("] Ban ").count(), 3, "no gap: {log}");
    assert_eq!(log.matches("] Unban ").count(), 1, "only the operator's unban: {log}");
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    eventually("b releases the ban with its origin", || banned(b) == ["192.0.2.2"]);
}

#[test]
fn imported_ban_survives_fail2ban_restart_and_end_of_local_ban() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    b.sh("fail2ban-client set sshd bantime 15");
    attack(a, &addresses(1));
    eventually("b bans it", || banned(b) == addresses(1));
    // Both hosts detect the same address without a connection. After b's 15 seconds, b holds only a's ban.
    a.rig("cut");
    a.attack("auth", &["192.0.2.2"]);
    eventually("a bans it", || a.bans("sshd", "192.0.2.2"));
    b.attack("auth", &["192.0.2.2"]);
    eventually("b bans it", || b.bans("sshd", "192.0.2.2"));
    a.rig("join");
    eventually("b's local ban has expired, and a's ban is imported", || {
        b.journal().contains("Ban 192.0.2.2 for ipset sshd reported by a")
    });
    eventually("b renews the first ban", || {
        b.sh("cat /var/log/fail2ban.log").contains("already banned")
    });
    // The row in fail2ban's database does not have the renewed end, so a restart may not restore the ban.
    b.sh("systemctl restart fail2ban; until fail2ban-client set sshd bantime 15; do sleep 0.1; done 2>&1");
    eventually("both are banned again", || banned(b) == addresses(2));
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1 192.0.2.2");
    eventually("b releases both", || banned(b).is_empty());
}

#[test]
fn unban_during_fail2ban_start_is_applied_after_restore() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    attack(a, &addresses(20));
    eventually("b bans them", || banned(b) == addresses(20));
    b.sh("systemctl stop fail2ban");
    a.sh("fail2ban-client set sshd unbanip 192.0.2.19 192.0.2.20");
    eventually("b received the unban", || b.journal().contains("Inbound: unban 192.0.2.20"));
    b.sh("systemctl start fail2ban");
    eventually("b has a's bans", || banned(b) == addresses(18));
}

#[test]
fn extended_ban_is_published_with_new_length() {
    let rig = Rig::fleet(&["a", "b"]);
    let a = rig.host("a");
    let record = rig.record();
    a.sh("fail2ban-client set sshd bantime 5; fail2ban-client set sshd bantime.increment true");
    attack(a, &addresses(1));
    eventually("the first ban has expired", || {
        record.count(&["/unban", r#""reason":"expired""#, "192.0.2.1\""]) == 1
    });
    attack(a, &addresses(1));
    eventually("the extended ban is published", || {
        record.count(&["/ban", r#""bantime":10"#, "192.0.2.1\""]) == 1
    });
}

#[test]
fn fail2ban_restart_publishes_and_releases_nothing() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    rig.record();
    attack(a, &addresses(3));
    a.attack("web", &["192.0.2.4"]);
    a.attack("both", &["192.0.2.5"]);
    eventually("b bans them", || bans_in_all_jails(b));
    for host in [a, b] {
        host.sh("systemctl restart fail2ban");
        eventually("its bans are restored", || bans_in_all_jails(host));
        host.sh("fail2ban-client reload");
        eventually("its bans survive a reload", || bans_in_all_jails(host));
    }
    let events = last_message(&rig, a);
    assert_eq!(events.len(), 5, "one message per ban: {events:#?}");
    assert!(bans_in_all_jails(a) && bans_in_all_jails(b));
}

/// Whether a host bans 192.0.2.1 to .3 in sshd, .4 in web and .5 in both.
fn bans_in_all_jails(host: Host<'_>) -> bool {
    banned(host) == addresses(3) && host.bans("web", "192.0.2.4") && host.bans("both", "192.0.2.5")
}

#[test]
fn broker_restart_loses_no_ban() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    hub.sh("systemctl stop mosquitto");
    attack(a, &addresses(20));
    eventually("a bans them", || banned(a).len() == 20);
    assert_eq!(banned(b).len(), 0);
    hub.sh("systemctl start mosquitto");
    eventually("b bans them", || banned(b) == addresses(20));
    eventually("the spool is empty", || a.sh("ls /var/lib/f2bmqtt/spool").is_empty());
}

#[test]
fn events_are_applied_after_fail2ban_outage() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    b.sh("systemctl stop fail2ban");
    attack(a, &addresses(20));
    eventually("b received them", || b.journal().contains("Inbound: ban 192.0.2.20"));
    // The daemon has acknowledged the events, so it must not lose them.
    b.sh("systemctl restart f2bmqttsub");
    b.sh("systemctl start fail2ban");
    eventually("b bans them", || banned(b) == addresses(20));
}

#[test]
fn burst_is_ingested_while_fail2ban_hangs() {
    // mosquitto queues 1,000 messages for a slow client, and drops further ones.
    const COUNT: usize = 1500;
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    a.sh("pkill -STOP -x fail2ban-server");
    let mut events = String::new();
    for n in 0..COUNT {
        let address = format!("198.18.{}.{}", n / 250, n % 250);
        writeln!(
            events,
            r#"{{"action":"ban","ipmset":"sshd","ip":"{address}","bantime":600,"host":"far"}}"#
        )
        .unwrap();
    }
    hub.sh(&format!(
        "cat >/root/events <<E\n{events}E\n
        mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 -t blacklist/ban -l </root/events"
    ));
    let count_received =
        "journalctl -u f2bmqttsub -o cat --no-pager | grep -c 'Inbound: ban 198.18'";
    eventually("all are received", || a.sh(count_received) == COUNT.to_string());
    a.sh("pkill -CONT -x fail2ban-server");
    // fail2ban makes some hundred bans per second. The test waits as long as the number grows.
    let mut before = 0;
    while before < COUNT {
        eventually("more are banned", || {
            a.sh("fail2ban-client get sshd banip | wc -w").parse::<usize>().unwrap() > before
        });
        before = a.sh("fail2ban-client get sshd banip | wc -w").parse().unwrap();
    }
    assert_eq!(before, COUNT);
    eventually("the firewall has them", || {
        a.sh("ipset list f2b-sshd | grep -c ^198.18") == COUNT.to_string()
    });
}

#[test]
fn notify_without_daemon_publishes_directly() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    let record = rig.record();
    a.sh("systemctl stop f2bmqttsub");
    attack(a, &addresses(2));
    eventually("b bans them", || banned(b) == addresses(2));
    a.attack("both", &["192.0.2.3"]);
    eventually("b bans it", || b.bans("both", "192.0.2.3"));
    a.sh("fail2ban-client set both unbanip 192.0.2.3");
    eventually("b releases the ban", || !b.bans("both", "192.0.2.3"));
    eventually("the spool is empty", || a.sh("ls /var/lib/f2bmqtt/spool").is_empty());
    assert_eq!(record.count(&["blacklist/ban"]), 3, "{:#?}", record.events());
    assert_eq!(record.count(&["blacklist/unban"]), 1);

    // A daemon that starts takes over at once.
    a.sh("/etc/fail2ban/mqttnotifyban sshd 192.0.2.10 600 ban 0 1");
    let started = Instant::now();
    a.sh("systemctl start f2bmqttsub");
    assert!(started.elapsed() < MAX_STOP_TIME, "{:?}", started.elapsed());
    eventually("b receives the event", || b.journal().contains("Inbound: ban 192.0.2.10 "));
    eventually("no child process publishes any more", || {
        a.try_sh("pgrep -f '^f2bmqtt publish'").is_err()
    });
}

#[test]
fn ban_is_published_with_unwritable_spool() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    for (paths, address, what) in [
        ("/var/lib/f2bmqtt", "192.0.2.1", "in the second spool, which a reboot deletes"),
        ("/var/lib/f2bmqtt /run/f2bmqtt", "192.0.2.2", "publishing 192.0.2.2 now, without retry"),
    ] {
        a.sh(&format!(
            "mkdir -p /etc/systemd/system/fail2ban.service.d
             printf '[Service]\nReadOnlyPaths={paths}\n' >/etc/systemd/system/fail2ban.service.d/ro.conf
             systemctl daemon-reload; systemctl restart fail2ban"
        ));
        a.ready();
        a.attack("auth", &[address]);
        eventually("b bans it", || b.bans("sshd", address));
        let error = "cannot write to the spool /var/lib/f2bmqtt/spool: ";
        let journal = a.sh("journalctl -t f2bmqtt -o cat --no-pager");
        let is_logged = journal.lines().any(|line| line.starts_with(error) && line.contains(what));
        assert!(is_logged, "{journal}");
    }
}

/// How many events the spool on disk and the one in memory have.
fn spooled(host: Host<'_>) -> [usize; 2] {
    ["/var/lib/f2bmqtt/spool", "/run/f2bmqtt/spool"]
        .map(|dir| host.sh(&format!("ls {dir}")).lines().count())
}

#[test]
fn ban_without_disk_space_survives_daemon_and_broker_loss() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    a.sh("systemctl stop f2bmqttsub fail2ban
          for d in f2bmqtt fail2ban; do
              cp -a /var/lib/$d /root/; mount -t tmpfs -o size=32m,mode=0700 tmpfs /var/lib/$d
              cp -a /root/$d/. /var/lib/$d/
          done; systemctl start fail2ban f2bmqttsub");
    a.ready();
    a.sh("for d in f2bmqtt fail2ban; do
              dd if=/dev/zero of=/var/lib/$d/filler bs=64k; dd if=/dev/zero of=/var/lib/$d/filler2 bs=512
          done 2>&1; true");
    for dir in ["/var/lib/f2bmqtt", "/var/lib/fail2ban"] {
        let line =
            format!("KiB are free (at least 16384 KiB are needed) on the file system of {dir}");
        eventually("the journal names the full disk", || a.journal().contains(&line));
        for command in ["f2bmqtt status", "f2bmqtt check"] {
            let output = a.run(command).stdout;
            assert!(String::from_utf8_lossy(&output).contains(&line), "{command}: {line}");
        }
        let file = a.sh("cat /run/f2bmqtt/status.json");
        assert!(file.contains(&format!(r#"{{"path":"{dir}","at":"#)), "{file}");
    }
    attack(a, &addresses(2));
    eventually("b bans them", || banned(b) == addresses(2));
    let journal = a.sh("journalctl -t f2bmqtt -o cat --no-pager");
    assert_eq!(
        journal.matches("in the second spool, which a reboot deletes").count(),
        2,
        "{journal}"
    );
    // From here on only the memory of a's fail2ban and the spool in /run have the bans.
    a.sh("systemctl kill -s KILL f2bmqttsub");
    hub.sh("systemctl kill -s KILL mosquitto; systemctl stop mosquitto
            rm -f /var/lib/mosquitto/mosquitto.db; systemctl start mosquitto");
    b.sh("systemctl restart f2bmqttsub");
    for host in [a, b] {
        host.ready();
    }
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!((banned(a), banned(b)), (addresses(2), addresses(2)));
    a.sh("fail2ban-client set sshd unbanip 192.0.2.2");
    eventually("b releases the ban", || banned(b) == addresses(1));
    a.sh("rm /var/lib/f2bmqtt/filler* /var/lib/fail2ban/filler*");
    eventually("the journal names the free space", || {
        a.journal().contains("the file system of /var/lib/fail2ban has enough free space again")
    });
    eventually("the other ban is written", || spooled(a) == [0, 0]);
    a.sh("systemctl kill -s KILL f2bmqttsub");
    hub.sh("systemctl restart mosquitto");
    a.ready();
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!((banned(a), banned(b)), (addresses(1), addresses(1)));
}

#[test]
fn daemon_stops_promptly_with_any_broker_fault() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    assert_stops(a);
    a.ready();
    hub.rig("cut");
    a.sh("/etc/fail2ban/mqttnotifyban sshd 192.0.2.1 600 ban 0 1");
    assert_stops(a);
    a.sh("sed -i s/^MQTT_HOST=.*/MQTT_HOST=no.such.host/ /etc/fail2ban/mqtt.env");
    assert_stops(a);
    hub.rig("join");
}

/// Asserts that the daemon stops in time, and starts it again.
fn assert_stops(host: Host<'_>) {
    let started = Instant::now();
    host.sh("systemctl stop f2bmqttsub");
    assert!(started.elapsed() < MAX_STOP_TIME, "{:?}", started.elapsed());
    assert_eq!(host.sh("systemctl show -P Result f2bmqttsub"), "success");
    host.sh("systemctl start f2bmqttsub");
}

#[test]
fn hung_daemon_is_restarted() {
    let rig = Rig::fleet(&["a"]);
    let a = rig.host("a");
    a.sh("mkdir -p /etc/systemd/system/f2bmqttsub.service.d
          printf '[Service]\nWatchdogSec=2\n' >/etc/systemd/system/f2bmqttsub.service.d/soon.conf
          systemctl daemon-reload; systemctl restart f2bmqttsub");
    let watchdog = "systemctl show -P WatchdogTimestampMonotonic f2bmqttsub";
    let first = a.sh(watchdog);
    eventually("the daemon notifies the watchdog", || a.sh(watchdog) != first);
    assert_eq!(a.sh("systemctl show -P NRestarts f2bmqttsub"), "0");
    a.sh("pkill -STOP -x f2bmqtt");
    eventually("systemd restarts the daemon", || {
        a.sh("systemctl show -P NRestarts f2bmqttsub") == "1"
    });
    a.ready();
}

/// Changes a setting of a host, and restarts the service.
fn set(host: Host<'_>, line: &str) {
    let key = line.split('=').next().unwrap();
    host.sh(&format!(
        "sed -i 's/^{key}=.*/{line}/' /etc/fail2ban/mqtt.env; systemctl restart --no-block f2bmqttsub"
    ));
}

fn assert_logged(host: Host<'_>, line: &str) {
    eventually(line, || host.journal().contains(line));
}

#[test]
fn failing_broker_is_logged_and_next_one_tried() {
    let rig = Rig::fleet(&["a"]);
    let a = rig.host("a");
    set(a, "MQTT_PASSWORD=hunter2");
    assert_logged(
        a,
        "no connection to the broker 10.213.77.11:1883: the broker rejected the login; check MQTT_USER and \
         MQTT_PASSWORD",
    );
    set(a, "MQTT_HOST=10.213.77.11:1884,10.213.77.11");
    set(a, "MQTT_PASSWORD=fail2ban");
    assert_logged(
        a,
        "no connection to the broker 10.213.77.11:1884: no broker listens on this port",
    );
    assert_logged(a, "connected to the broker 10.213.77.11:1883 as a");
    set(a, "MQTT_PASSWORD=\"hunter2");
    eventually("the service fails", || a.try_sh("systemctl is-failed f2bmqttsub").is_ok());
    assert_logged(a, ": has a quote that is not closed on the same line");
    assert_eq!(a.sh("systemctl show -P ExecMainStatus f2bmqttsub"), "78");
    let all = a.sh(
        "journalctl --no-pager; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'",
    );
    assert!(!all.contains("hunter2"), "no password in the journal, an argument or an environment");
}
