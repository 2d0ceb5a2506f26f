//! A ban lasts everywhere as long as at its origin, with any local bantime: attempts to connect each second are refused
//! until the ban ends.

#[path = "support/attacker.rs"]
mod attacker;
mod support;

use std::thread::sleep;
use std::time::{Duration, Instant};

use attacker::{Attacker, listen};
use support::{Host, Rig, eventually, within};

const PORT: u16 = 22;
const ADDRESS: &str = "10.213.77.200";

/// Sets a jail's bantime, also for later restarts of fail2ban.
fn set_bantime(host: Host<'_>, jail: &str, seconds: i64) {
    host.sh(&format!(
        "sed -i '/^\\[{jail}\\]/a bantime = {seconds}' /etc/fail2ban/jail.local
         systemctl restart fail2ban; until fail2ban-client get {jail} bantime; do sleep 0.1; done 2>&1"
    ));
    host.ready();
}

fn bans(host: Host<'_>) -> bool {
    host.bans("sshd", ADDRESS)
}

/// Connects to each server each second while `origin` bans the address, which must last for `least`. Runs `meanwhile`
/// after half of that time. All servers accept connections soon after the ban has ended.
fn assert_refused_until_released(
    attacker: &mut Attacker,
    origin: Host<'_>,
    servers: &[&str],
    least: Duration,
    mut meanwhile: impl FnMut(),
) {
    let started = Instant::now();
    let mut done = false;
    while bans(origin) {
        for server in servers {
            let answer = attacker.send(&format!("connect {server} {PORT}"));
            // A server may release the ban a moment before the origin is checked again.
            assert!(
                answer == "refused" || !bans(origin),
                "{server}: {answer} {:?}",
                started.elapsed()
            );
        }
        if !done && started.elapsed() > least / 2 {
            meanwhile();
            done = true;
        }
        assert!(started.elapsed() < 2 * least, "the ban does not end");
        sleep(Duration::from_millis(800));
    }
    assert!(started.elapsed() > least && done, "{:?}", started.elapsed());
    for server in servers {
        eventually("the server accepts connections", || {
            attacker.send(&format!("connect {server} {PORT}")) == "connected"
        });
    }
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn ban_of_300_seconds_lasts_as_long_with_any_local_bantime() {
    let rig = Rig::fleet(&["a", "b", "c"]);
    let (a, b, c) = (rig.host("a"), rig.host("b"), rig.host("c"));
    set_bantime(a, "sshd", 300);
    set_bantime(b, "sshd", 60);
    set_bantime(c, "sshd", -1);
    let mut attacker = Attacker::from(&rig, ADDRESS);
    for host in [b, c] {
        listen(host, PORT);
    }
    a.attack("auth", &[ADDRESS]);
    for host in [a, b, c] {
        eventually("all ban it", || host.in_ipset("f2b-sshd", ADDRESS));
    }
    let least = Duration::from_secs(290);
    assert_refused_until_released(
        &mut attacker,
        a,
        &["10.213.77.13", "10.213.77.14"],
        least,
        || {
            let log = b.sh("grep -e '] Ban ' -e '] Unban ' /var/log/fail2ban.log");
            let (bans, unbans) = (log.matches("] Ban ").count(), log.matches("] Unban ").count());
            assert_eq!((bans, unbans), (1, 0), "no gap: {log}");
            // According to b's own database, the ban has expired.
            b.sh("systemctl restart fail2ban");
            b.ready();
            eventually("b bans it again", || b.in_ipset("f2b-sshd", ADDRESS));
        },
    );
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn extended_and_permanent_bans_hold_on_peer_and_over_restart() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    set_bantime(b, "both", 20);
    set_bantime(b, "sshd", 30);
    let mut attacker = Attacker::from(&rig, ADDRESS);
    listen(b, PORT);
    // A change of a jail's bantime changes its bans, so the permanent ban is in another jail.
    a.sh("fail2ban-client set both bantime -1");
    a.attack("both", &["192.0.2.1"]);
    eventually("b bans it", || b.bans("both", "192.0.2.1"));
    // The second ban of an address is twice as long, and much longer than b's own bantime.
    a.sh("fail2ban-client set sshd bantime 15; fail2ban-client set sshd bantime.increment true");
    a.attack("auth", &[ADDRESS]);
    eventually("b bans it, too", || bans(b));
    within(Duration::from_mins(1), "the ban ends", || !bans(a) && !bans(b));
    a.sh("fail2ban-client set sshd bantime 60");
    a.attack("auth", &[ADDRESS]);
    eventually("b bans it again", || b.in_ipset("f2b-sshd", ADDRESS));
    let least = Duration::from_secs(110);
    assert_refused_until_released(&mut attacker, a, &["10.213.77.13"], least, || {
        b.sh("systemctl restart fail2ban");
        b.ready();
        eventually("after its restart b bans both", || {
            b.bans("both", "192.0.2.1") && b.in_ipset("f2b-sshd", ADDRESS)
        });
    });
    assert!(b.bans("both", "192.0.2.1"), "the permanent ban lasts");
}
