//! A ban lasts everywhere as long as at its origin, whatever a jail's own bantime: somebody who tries to connect
//! every second is refused until then.

#[path = "support/attacker.rs"]
mod attacker;
mod support;

use std::thread::sleep;
use std::time::{Duration, Instant};

use attacker::{Attacker, listen};
use support::{Host, Rig, eventually, within};

const PORT: u16 = 22;
const ADDRESS: &str = "10.213.77.200";

/// Has a jail ban so long, also over restarts of fail2ban.
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

/// Tries each server every second while `origin` bans the address, and does `meanwhile` after half of
/// `least`, the time that it must ban at least. All servers let it in within five seconds after that.
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
            // Some free a moment before the origin is asked again.
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
        assert!(started.elapsed() < 2 * least, "it is never freed");
        sleep(Duration::from_millis(800));
    }
    assert!(started.elapsed() > least && done, "{:?}", started.elapsed());
    for server in servers {
        eventually("it is let in", || {
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
            // By its own database the ban is long over.
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
    // A jail's bantime is that of its bans, too: the one for ever is another jail's.
    a.sh("fail2ban-client set both bantime -1");
    a.attack("both", &["192.0.2.1"]);
    eventually("b bans it", || b.bans("both", "192.0.2.1"));
    // The second ban of an address is twice as long: longer than b's own by far.
    a.sh("fail2ban-client set sshd bantime 15; fail2ban-client set sshd bantime.increment true");
    a.attack("auth", &[ADDRESS]);
    eventually("b bans it, too", || bans(b));
    within(Duration::from_mins(1), "its time is over", || !bans(a) && !bans(b));
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
    assert!(b.bans("both", "192.0.2.1"), "that one is for ever");
}
