//! Whatever a client of the broker publishes, or a broker sends: each attack of `tests/support/attacks.py` on a
//! fleet without a signing key and on one with a key that the attacker does not have, and one with a stolen key.
//! The short forms fill no table; `tests/long` makes the full ones.

use std::time::Duration;

use crate::siege::{FORGED, KEY, STAYS, Siege};
use crate::support::{Host, eventually, within};

/// What a daemon queues of its broker's messages at most, with the memory that goes with it; in KiB.
const MAX_QUEUE: u64 = 48 * 1024;

const MINUTE: Duration = Duration::from_mins(1);

const NEW_KEY: &str = "19d04b3a9c8e7f6051423324150617f8";

/// One fleet withstands all attacks, one after another.
fn withstand(is_signed: bool, full: bool) {
    let mut siege = Siege::lay(is_signed, full);
    siege.make("names", "");
    siege.host("a").sh("python3 -S /root/attacks.py show");
    siege.make("names_clear", "");
    let attacks = "takeover outside spellings crowd cpu jail_flood own unbans hosts";
    siege.rounds(&attacks.split(' ').collect::<Vec<_>>());
    if full && !is_signed {
        shows_limits(&siege);
    }
    replayed(&mut siege);
    others_join(&mut siege);
    presence(&mut siege);
    siege.rounds(&["stamp"]);
    siege.check();
    if is_signed && full {
        stolen(&mut siege);
    }
    hostile_broker(&mut siege);
    siege.check();
}

#[test]
fn fleet_without_key_withstands_each_attack() {
    withstand(false, false);
}

#[test]
fn fleet_with_key_is_unchanged_by_each_attack() {
    withstand(true, false);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fleet_without_key_withstands_each_table_filling_attack() {
    withstand(false, true);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fleet_with_key_is_unchanged_by_each_large_attack() {
    withstand(true, true);
}

/// An operator learns which tables are full, and of whom.
fn shows_limits(siege: &Siege) {
    let check = siege.host("a").run("f2bmqtt check").stdout;
    let check = String::from_utf8_lossy(&check).into_owned();
    for full in [
        ["of other hosts is full: limit of 1000 hosts reached", ""],
        ["of fleet unbans is full: limit of 20000 fleet unbans reached", "made the most"],
    ] {
        let shows = |line: &str| full.iter().all(|words| line.contains(words));
        assert!(check.lines().any(shows), "{full:?}: {check}");
    }
}

/// What was heard is published again: on its topic and others, live and retained.
fn replayed(siege: &mut Siege) {
    siege.begin();
    let next = siege.draw();
    let hub = siege.host("hub");
    std::thread::scope(|scope| {
        let it = &*siege;
        hub.sh("rm -f /root/out");
        let attack = scope.spawn(|| it.make("replay", &next));
        let heard = |what: &str| {
            eventually(what, || hub.try_sh(&format!("grep -q '{what}' /root/out")).is_ok());
        };
        heard("listens");
        it.host("b").attack("auth", &[&next]);
        it.crosses("a", &next);
        heard("state/b/");
        it.host("b").sh(&format!("fail2ban-client set sshd unbanip {next}"));
        attack.join().unwrap();
    });
    siege.withstands("replay", &[&next]);
}

/// More presences are retained than a broker hands out; a host joins nevertheless, and one comes back.
fn others_join(siege: &mut Siege) {
    siege.begin();
    let (next, missed) = (siege.draw(), siege.draw());
    siege.make("retain", &next);
    siege.host("b").sh("systemctl stop f2bmqttsub");
    siege.host("a").attack("auth", &[&missed]);
    siege.host("c").sh("systemctl start f2bmqttsub");
    siege.host("b").sh("systemctl start f2bmqttsub");
    siege.host("b").ready();
    siege.host("b").attack("auth", &[&next]);
    siege.crosses("b", &missed);
    for name in ["a", "c"] {
        siege.crosses(name, &next);
    }
    // The broker may not hand out the presence of a and b to c: they publish it again for a host that is new.
    for address in [&missed, STAYS] {
        siege.crosses("c", address);
    }
    siege.make("retain_clear", "");
    siege.host("c").sh("systemctl stop f2bmqttsub; f2bmqtt forget --yes newcomer");
    siege.remember("b");
    siege.withstands("retain", &[&next, &missed]);
}

/// Hosts that do not exist name more jails than an unban may have events.
fn presence(siege: &mut Siege) {
    siege.begin();
    let next = siege.draw();
    siege.make("presence", &next);
    siege.host("b").attack("auth", &[&next]);
    siege.crosses("a", &next);
    std::thread::scope(|scope| {
        let it = &*siege;
        // It waits for hosts that do not exist, until they are gone.
        scope.spawn(|| it.host("a").run(&format!("f2bmqtt unban --yes {next}")));
        for host in it.rig.hosts(&["a", "b"]) {
            it.soon("it is free", || !host.bans("sshd", &next));
        }
        it.make("presence_clear", "");
    });
    siege.withstands("presence", &[&next]);
}

/// Somebody has the key; with another one, nothing is left of what was signed with it.
fn stolen(siege: &mut Siege) {
    siege.make_with("stolen", "", &format!("key={KEY}"));
    eventually("it has an effect", || siege.host("a").bans("sshd", &format!("{FORGED}79")));
    for keys in [&format!("{NEW_KEY},{KEY}"), NEW_KEY] {
        for host in siege.rig.hosts(&["a", "b"]) {
            host.sh(&format!(
                "sed -i 's/^MQTT_SIGNING_KEY=.*/MQTT_SIGNING_KEY={keys}/' /etc/fail2ban/mqtt.env
                 systemctl restart f2bmqttsub"
            ));
        }
        siege.rig.hosts(&["a", "b"]).iter().for_each(Host::ready);
    }
    within(Duration::from_mins(2), "nothing is left of the forgeries", || {
        // A fleet unban of what nobody bans frees nothing, and is dropped an hour later.
        let over = |line: &String| line.starts_with("ever ") || line.starts_with("store unbans ");
        let left = |line: &String| !over(line) && line.contains(FORGED);
        !siege.states().iter().flatten().any(left)
    });
    for name in ["a", "b"] {
        siege.remember(name);
    }
    siege.begin();
    siege.withstands("stolen", &[]);
}

/// One host's broker is hostile for a while; then it is at an honest one again.
fn hostile_broker(siege: &mut Siege) {
    let connected = |siege: &Siege, port: u16| {
        let connected = format!("connected to the broker 10.213.77.11:{port}");
        within(MINUTE, &connected, || siege.host("a").journal().contains(&connected));
    };
    let hub = siege.host("hub");
    let attack = "systemd-run -q -u hostile python3 -S /root/attacks.py as_broker";
    hub.sh(&format!("{attack} full={}", if siege.full { "1" } else { "" }));
    eventually("it listens", || hub.try_sh("ss -Hltn | grep -q :1999").is_ok());
    let hosts = "10.213.77.11:1999,10.213.77.11";
    siege.host("a").sh(&format!(
        "sed -i 's/^MQTT_HOST=.*/MQTT_HOST={hosts}/' /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub"
    ));
    connected(siege, 1999);
    siege.remember("a");
    // Its identity is another one, by its settings.
    siege.begin();
    while siege.host("hub").try_sh("systemctl is-active hostile").is_ok() {
        siege.is_small("a", MAX_QUEUE);
    }
    connected(siege, 1883);
    siege.reconnected("a");
    siege.withstands("a hostile broker", &[]);
}
