//! Whatever stops for a while, a daemon, a fail2ban, the broker: the bans of that time are shared
//! when it is back, and nothing is told twice.

mod support;

use std::time::{Duration, Instant};

use support::{Host, Rig, eventually};

/// How long a start or a stop of the daemon may take on a busy machine. systemd ends one that hangs after 90 s
/// or 10 s, with another result.
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

/// Tells of one more ban, and waits for it: whatever was sent before has come by then.
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
    eventually("b bans what a bans", || banned(b) == addresses(20));
    // A daemon that was restarted still knows whose bans it made.
    b.sh("systemctl restart f2bmqttsub");
    a.sh("fail2ban-client set sshd unbanip 192.0.2.7");
    eventually("b frees it", || !b.bans("sshd", "192.0.2.7"));
}

#[test]
fn imported_ban_lasts_as_long_as_at_origin() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    // Each address is told to last for minutes; here the jail bans for 20 seconds.
    b.sh("fail2ban-client set sshd bantime 20");
    attack(a, &addresses(3));
    eventually("b bans them", || banned(b) == addresses(3));
    // b's operator lifts one: it stays lifted, whatever its origin claims.
    b.sh("fail2ban-client set sshd unbanip 192.0.2.3");
    let prolonged =
        "grep -c 'WARNING.*already banned\\|NOTICE.*already banned' /var/log/fail2ban.log || true";
    eventually("b has prolonged them twice", || b.sh(prolonged).parse::<u32>().unwrap() >= 4);
    assert_eq!(banned(b), addresses(2));
    let log = b.sh("grep -e '] Ban ' -e '] Unban ' /var/log/fail2ban.log");
    assert_eq!(log.matches("] Ban ").count(), 3, "no gap: {log}");
    assert_eq!(log.matches("] Unban ").count(), 1, "but the operator's: {log}");
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    eventually("b frees it with its origin", || banned(b) == ["192.0.2.2"]);
}

#[test]
fn imported_ban_survives_fail2ban_restart_and_end_of_local_ban() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    b.sh("fail2ban-client set sshd bantime 15");
    attack(a, &addresses(1));
    eventually("b bans it", || banned(b) == addresses(1));
    // b detects another, and a the same: for b's own 15 seconds it is b's, then it is a's.
    // Neither hears of the other's before it has its own.
    a.rig("cut");
    a.attack("auth", &["192.0.2.2"]);
    eventually("a bans it", || a.bans("sshd", "192.0.2.2"));
    b.attack("auth", &["192.0.2.2"]);
    eventually("b bans it", || b.bans("sshd", "192.0.2.2"));
    a.rig("join");
    eventually("b's own is over, and a's is imported", || {
        b.journal().contains("Ban 192.0.2.2 for ipset sshd reported by a")
    });
    eventually("the first is prolonged", || {
        b.sh("cat /var/log/fail2ban.log").contains("already banned")
    });
    // A restart forgets that: the row says that the ban is over, or soon will be.
    b.sh("systemctl restart fail2ban; until fail2ban-client set sshd bantime 15; do sleep 0.1; done 2>&1");
    eventually("both are banned again", || banned(b) == addresses(2));
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1 192.0.2.2");
    eventually("both are free", || banned(b).is_empty());
}

#[test]
fn unban_during_fail2ban_start_is_applied_after_restore() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    attack(a, &addresses(20));
    eventually("b bans them", || banned(b) == addresses(20));
    b.sh("systemctl stop fail2ban");
    a.sh("fail2ban-client set sshd unbanip 192.0.2.19 192.0.2.20");
    eventually("b has heard", || b.journal().contains("Inbound: unban 192.0.2.20"));
    b.sh("systemctl start fail2ban");
    eventually("b bans what a bans", || banned(b) == addresses(18));
}

#[test]
fn extended_ban_is_published_with_new_length() {
    let rig = Rig::fleet(&["a", "b"]);
    let a = rig.host("a");
    let record = rig.record();
    a.sh("fail2ban-client set sshd bantime 5; fail2ban-client set sshd bantime.increment true");
    attack(a, &addresses(1));
    let told = |words: &[&str]| record.count(&[words, &["192.0.2.1\""]].concat());
    eventually("its first ban is over", || told(&["/unban", r#""reason":"expired""#]) == 1);
    attack(a, &addresses(1));
    eventually("the second is told as longer", || told(&["/ban", r#""bantime":10"#]) == 1);
}

#[test]
fn fail2ban_restart_publishes_and_releases_nothing() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    rig.record();
    attack(a, &addresses(3));
    a.attack("web", &["192.0.2.4"]);
    a.attack("both", &["192.0.2.5"]);
    let all = |host: Host<'_>| {
        banned(host) == addresses(3)
            && host.bans("web", "192.0.2.4")
            && host.bans("both", "192.0.2.5")
    };
    eventually("b bans them", || all(b));
    for host in [a, b] {
        host.sh("systemctl restart fail2ban");
        eventually("its bans are restored", || all(host));
        host.sh("fail2ban-client reload");
        eventually("they outlive a reload", || all(host));
    }
    let events = last_message(&rig, a);
    assert_eq!(events.len(), 5, "one message a ban: {events:#?}");
    assert!(all(a) && all(b));
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
    eventually("b has heard of them", || b.journal().contains("Inbound: ban 192.0.2.20"));
    // The daemon has them, and has acknowledged them: it must not forget them either.
    b.sh("systemctl restart f2bmqttsub");
    b.sh("systemctl start fail2ban");
    eventually("b bans them", || banned(b) == addresses(20));
}

#[test]
fn burst_is_ingested_while_fail2ban_hangs() {
    // mosquitto keeps 1,000 messages for a client that does not take them, and drops the rest.
    const COUNT: usize = 1500;
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    a.sh("pkill -STOP -x fail2ban-server");
    let event = |n: usize| {
        let address = format!("198.18.{}.{}", n / 250, n % 250);
        format!(r#"{{"action":"ban","ipmset":"sshd","ip":"{address}","bantime":600,"host":"far"}}"#)
    };
    let events = (0..COUNT).map(event).collect::<Vec<_>>().join("\n");
    hub.sh(&format!(
        "cat >/root/events <<E\n{events}
E\n
        mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 -t blacklist/ban -l </root/events"
    ));
    let count = "journalctl -u f2bmqttsub -o cat --no-pager | grep -c 'Inbound: ban 198.18'";
    eventually("all are heard", || a.sh(count) == COUNT.to_string());
    a.sh("pkill -CONT -x fail2ban-server");
    // fail2ban makes some hundred a second: as long as it goes on, it is waited for.
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
    eventually("b frees it", || !b.bans("both", "192.0.2.3"));
    eventually("the spool is empty", || a.sh("ls /var/lib/f2bmqtt/spool").is_empty());
    assert_eq!(record.count(&["blacklist/ban"]), 3, "{:#?}", record.events());
    assert_eq!(record.count(&["blacklist/unban"]), 1);

    // A daemon that starts takes over at once.
    a.sh("/etc/fail2ban/mqttnotifyban sshd 192.0.2.10 600 ban 0 1");
    let started = Instant::now();
    a.sh("systemctl start f2bmqttsub");
    assert!(started.elapsed() < MAX_STOP_TIME, "{:?}", started.elapsed());
    eventually("b is told", || b.journal().contains("Inbound: ban 192.0.2.10 "));
    eventually("nobody publishes beside it", || a.try_sh("pgrep -f '^f2bmqtt publish'").is_err());
}

#[test]
fn ban_is_published_with_unwritable_spool() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    let journal = || a.sh("journalctl -t f2bmqtt -o cat --no-pager");
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
        let text = "cannot write to the spool /var/lib/f2bmqtt/spool: ";
        let is_logged = journal().lines().any(|line| line.starts_with(text) && line.contains(what));
        assert!(is_logged, "{}", journal());
    }
}

/// How many events wait on disk and in memory.
fn spooled(host: Host<'_>) -> (usize, usize) {
    let count = |dir: &str| host.sh(&format!("ls {dir}")).lines().count();
    (count("/var/lib/f2bmqtt/spool"), count("/run/f2bmqtt/spool"))
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
        let line = format!("KiB of at least 16384 KiB are free on the file system of {dir}");
        eventually("the journal names the full disk", || a.journal().contains(&line));
        let shown = |command: &str| String::from_utf8_lossy(&a.run(command).stdout).contains(&line);
        assert!(shown("f2bmqtt status") && shown("f2bmqtt check"), "{line}");
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
    // Nobody but this fail2ban's memory and the spare spool knows of them from here on.
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
    eventually("b frees it", || banned(b) == addresses(1));
    a.sh("rm /var/lib/f2bmqtt/filler* /var/lib/fail2ban/filler*");
    eventually("the journal names the room", || {
        a.journal().contains("the file system of /var/lib/fail2ban has enough free space again")
    });
    eventually("the other is written down", || spooled(a) == (0, 0));
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
    let stop = || {
        let started = Instant::now();
        a.sh("systemctl stop f2bmqttsub");
        assert!(started.elapsed() < MAX_STOP_TIME, "{:?}", started.elapsed());
        assert_eq!(a.sh("systemctl show -P Result f2bmqttsub"), "success");
        a.sh("systemctl start f2bmqttsub");
    };
    stop();
    a.ready();
    hub.rig("cut");
    a.sh("/etc/fail2ban/mqttnotifyban sshd 192.0.2.1 600 ban 0 1");
    stop();
    a.sh("sed -i s/^MQTT_HOST=.*/MQTT_HOST=no.such.host/ /etc/fail2ban/mqtt.env");
    stop();
    hub.rig("join");
}

#[test]
fn hung_daemon_is_restarted() {
    let rig = Rig::fleet(&["a"]);
    let a = rig.host("a");
    a.sh("mkdir -p /etc/systemd/system/f2bmqttsub.service.d
          printf '[Service]\nWatchdogSec=2\n' >/etc/systemd/system/f2bmqttsub.service.d/soon.conf
          systemctl daemon-reload; systemctl restart f2bmqttsub");
    let alive = || a.sh("systemctl show -P WatchdogTimestampMonotonic f2bmqttsub");
    let first = alive();
    eventually("it says that it is alive", || alive() != first);
    assert_eq!(a.sh("systemctl show -P NRestarts f2bmqttsub"), "0");
    a.sh("pkill -STOP -x f2bmqtt");
    eventually("it is started anew", || a.sh("systemctl show -P NRestarts f2bmqttsub") == "1");
    a.ready();
}

#[test]
fn failing_broker_is_logged_and_next_one_tried() {
    let rig = Rig::fleet(&["a"]);
    let a = rig.host("a");
    let set = |line: &str| {
        let key = line.split('=').next().unwrap();
        a.sh(&format!(
            "sed -i 's/^{key}=.*/{line}/' /etc/fail2ban/mqtt.env; systemctl restart --no-block f2bmqttsub"
        ));
    };
    let says = |what: &str| eventually(what, || a.journal().contains(what));
    set("MQTT_PASSWORD=hunter2");
    says(
        "no connection to the broker 10.213.77.11:1883: the broker rejected the login; check MQTT_USER and \
         MQTT_PASSWORD",
    );
    set("MQTT_HOST=10.213.77.11:1884,10.213.77.11");
    set("MQTT_PASSWORD=fail2ban");
    says("no connection to the broker 10.213.77.11:1884: nothing listens there");
    says("connected to the broker 10.213.77.11:1883 as a");
    set("MQTT_PASSWORD=\"hunter2");
    eventually("the service gives up", || a.try_sh("systemctl is-failed f2bmqttsub").is_ok());
    says(": has a quote that is not closed on the same line");
    assert_eq!(a.sh("systemctl show -P ExecMainStatus f2bmqttsub"), "78");
    let all = a.sh(
        "journalctl --no-pager; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'",
    );
    assert!(!all.contains("hunter2"), "no password in the journal, an argument or an environment");
}
