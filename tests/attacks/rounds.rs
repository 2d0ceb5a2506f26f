//! The attacks of `tests/support/attacks.py`, by a client or a broker: on a fleet without a signing key, on a fleet with a
//! key that the attacker does not have, and with a stolen key. The short forms fill no table; `tests/long` runs the full
//! ones.

use std::time::Duration;

use crate::siege::{FORGED_PREFIX, KEY, LASTING_BAN, Siege};
use crate::support::{Host, eventually, within};

/// How much a daemon's queue of inbound messages may add to its memory.
const MAX_QUEUE_KIB: u64 = 48 * 1024;

const MINUTE: Duration = Duration::from_mins(1);

const NEW_KEY: &str = "19d04b3a9c8e7f6051423324150617f8";

/// Runs all attacks on one fleet.
fn withstand_all(is_signed: bool, full: bool) {
    let mut siege = Siege::set_up(is_signed, full);
    siege.run_attack("names", "");
    siege.host("a").sh("python3 -S /root/attacks.py show");
    siege.run_attack("names_clear", "");
    let attacks = "takeover outside spellings crowd cpu jail_flood own unbans hosts";
    siege.run_attacks(&attacks.split(' ').collect::<Vec<_>>());
    if full && !is_signed {
        assert_full_tables_reported(&siege);
    }
    replay_messages(&mut siege);
    join_hosts(&mut siege);
    invent_hosts(&mut siege);
    siege.run_attacks(&["stamp"]);
    siege.check();
    if is_signed && full {
        use_stolen_key(&mut siege);
    }
    attack_as_broker(&mut siege);
    siege.check();
}

#[test]
fn fleet_without_key_withstands_each_attack() {
    withstand_all(false, false);
}

#[test]
fn fleet_with_key_is_unchanged_by_each_attack() {
    withstand_all(true, false);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fleet_without_key_withstands_each_table_filling_attack() {
    withstand_all(false, true);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fleet_with_key_is_unchanged_by_each_large_attack() {
    withstand_all(true, true);
}

/// `check` names the full tables, and the host with the most entries.
fn assert_full_tables_reported(siege: &Siege) {
    let check = siege.host("a").run("f2bmqtt check").stdout;
    let check = String::from_utf8_lossy(&check).into_owned();
    for full in [
        ["of other hosts is full: limit of 1000 hosts reached", ""],
        ["of fleet unbans is full: limit of 20000 fleet unbans reached", "made the most"],
    ] {
        let is_reported = check.lines().any(|line| full.iter().all(|part| line.contains(part)));
        assert!(is_reported, "{full:?}: {check}");
    }
}

/// Waits until the attack on the hub has printed a line with this text.
fn wait_for_output(hub: Host<'_>, text: &str) {
    eventually(text, || hub.try_sh(&format!("grep -q '{text}' /root/out")).is_ok());
}

/// The attacker publishes received messages again: on their topics and on others, live and retained.
fn replay_messages(siege: &mut Siege) {
    siege.start_attack();
    let next = siege.next_address();
    let hub = siege.host("hub");
    std::thread::scope(|scope| {
        let it = &*siege;
        hub.sh("rm -f /root/out");
        let attack = scope.spawn(|| it.run_attack("replay", &next));
        wait_for_output(hub, "listens");
        it.host("b").attack("auth", &[&next]);
        it.assert_crosses("a", &next);
        wait_for_output(hub, "state/b/");
        it.host("b").sh(&format!("fail2ban-client set sshd unbanip {next}"));
        attack.join().unwrap();
    });
    siege.finish_attack("replay", &[&next]);
}

/// The broker has more retained presences than it delivers. A host still joins, and another one reconnects.
fn join_hosts(siege: &mut Siege) {
    siege.start_attack();
    let (next, missed) = (siege.next_address(), siege.next_address());
    siege.run_attack("retain", &next);
    siege.host("b").sh("systemctl stop f2bmqttsub");
    siege.host("a").attack("auth", &[&missed]);
    siege.host("c").sh("systemctl start f2bmqttsub");
    siege.host("b").sh("systemctl start f2bmqttsub");
    siege.host("b").ready();
    siege.host("b").attack("auth", &[&next]);
    siege.assert_crosses("b", &missed);
    for name in ["a", "c"] {
        siege.assert_crosses(name, &next);
    }
    // The broker may not deliver the presences of a and b to c. Both publish them again for a new host.
    for address in [&missed, LASTING_BAN] {
        siege.assert_crosses("c", address);
    }
    siege.run_attack("retain_clear", "");
    siege.host("c").sh("systemctl stop f2bmqttsub; f2bmqtt forget --yes newcomer");
    siege.record_state("b");
    siege.finish_attack("retain", &[&next, &missed]);
}

/// Presences of invented hosts list more jails than an unban may have events.
fn invent_hosts(siege: &mut Siege) {
    siege.start_attack();
    let next = siege.next_address();
    siege.run_attack("presence", &next);
    siege.host("b").attack("auth", &[&next]);
    siege.assert_crosses("a", &next);
    std::thread::scope(|scope| {
        let it = &*siege;
        // The command waits for the invented hosts until these are offline.
        scope.spawn(|| it.host("a").run(&format!("f2bmqtt unban --yes {next}")));
        for host in it.rig.hosts(&["a", "b"]) {
            it.assert_soon("the address is released", || !host.bans("sshd", &next));
        }
        it.run_attack("presence_clear", "");
    });
    siege.finish_attack("presence", &[&next]);
}

/// The attacker has the key. After a key change, nothing signed with the old key has an effect.
fn use_stolen_key(siege: &mut Siege) {
    siege.run_attack_with_key("stolen", "", &format!("key={KEY}"));
    eventually("the forgery has an effect", || {
        siege.host("a").bans("sshd", &format!("{FORGED_PREFIX}79"))
    });
    for keys in [&format!("{NEW_KEY},{KEY}"), NEW_KEY] {
        for host in siege.rig.hosts(&["a", "b"]) {
            host.sh(&format!(
                "sed -i 's/^MQTT_SIGNING_KEY=.*/MQTT_SIGNING_KEY={keys}/' /etc/fail2ban/mqtt.env
                 systemctl restart f2bmqttsub"
            ));
        }
        siege.rig.hosts(&["a", "b"]).iter().for_each(Host::ready);
    }
    within(Duration::from_mins(2), "the forgeries have no effect any more", || {
        // A fleet unban of an address without a ban has no effect, and expires after an hour.
        !siege.states().iter().flatten().any(|line| {
            line.contains(FORGED_PREFIX)
                && !line.starts_with("ever ")
                && !line.starts_with("store unbans ")
        })
    });
    for name in ["a", "b"] {
        siege.record_state(name);
    }
    siege.start_attack();
    siege.finish_attack("stolen", &[]);
}

/// Waits until host `a` is connected to the hub on this port.
fn wait_for_connection(siege: &Siege, port: u16) {
    let connected = format!("connected to the broker 10.213.77.11:{port}");
    within(MINUTE, &connected, || siege.host("a").journal().contains(&connected));
}

/// One host connects to a hostile broker, and then to an honest one again.
fn attack_as_broker(siege: &mut Siege) {
    let hub = siege.host("hub");
    let attack = "systemd-run -q -u hostile python3 -S /root/attacks.py as_broker";
    hub.sh(&format!("{attack} full={}", if siege.full { "1" } else { "" }));
    eventually("the hostile broker listens", || hub.try_sh("ss -Hltn | grep -q :1999").is_ok());
    let hosts = "10.213.77.11:1999,10.213.77.11";
    siege.host("a").sh(&format!(
        "sed -i 's/^MQTT_HOST=.*/MQTT_HOST={hosts}/' /etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub"
    ));
    wait_for_connection(siege, 1999);
    siege.record_state("a");
    // The record starts after the restart, which changed the settings and so the daemon's client ID.
    siege.start_attack();
    while siege.host("hub").try_sh("systemctl is-active hostile").is_ok() {
        siege.assert_memory_growth("a", MAX_QUEUE_KIB);
    }
    wait_for_connection(siege, 1883);
    siege.accept_reconnect("a");
    siege.finish_attack("a hostile broker", &[]);
}
