//! After each fault all servers have the same bans, for as long as the origin of each ban: on real servers, with real
//! fail2ban and mosquitto.

mod support;

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::{Host, Rig, eventually};

/// The addresses that a jail bans.
fn banned(host: Host<'_>) -> BTreeSet<String> {
    let list = host.ask("get sshd banip").unwrap_or_default();
    list.split_whitespace().map(str::to_owned).collect()
}

fn set(addresses: &[&str]) -> BTreeSet<String> {
    addresses.iter().map(|&address| address.to_owned()).collect()
}

/// Deletes all retained messages and sessions of the broker.
fn lose_broker_data(hub: Host<'_>) {
    hub.sh("systemctl kill -s KILL mosquitto; systemctl stop mosquitto
            rm -f /var/lib/mosquitto/mosquitto.db; systemctl start mosquitto");
}

#[test]
fn emptied_broker_and_new_host_receive_all_bans() {
    let rig = Rig::fleet(&["a", "b", "c"]);
    let (a, b, c, hub) = (rig.host("a"), rig.host("b"), rig.host("c"), rig.host("hub"));
    c.sh("systemctl stop f2bmqttsub");
    a.attack("auth", &["192.0.2.1", "192.0.2.2"]);
    b.attack("auth", &["192.0.2.3"]);
    let all = set(&["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    eventually("a and b ban all", || banned(a) == all && banned(b) == all);
    lose_broker_data(hub);
    // c was offline when the bans were published, and has no session on the broker.
    c.sh("rm -rf /var/lib/f2bmqtt/*; systemctl start f2bmqttsub || { journalctl -u f2bmqttsub -n 20; exit 1; }");
    eventually("c bans all", || banned(c) == all);
    assert!(banned(a) == all && banned(b) == all);
    // A host keeps bans that the broker lost, but not a ban that was released meanwhile.
    rig.host("b").rig("cut");
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    eventually("c releases the ban", || !c.bans("sshd", "192.0.2.1"));
    lose_broker_data(hub);
    b.rig("join");
    eventually("b releases the ban", || banned(b) == set(&["192.0.2.2", "192.0.2.3"]));
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fail2ban_stop_releases_no_bans_but_unban_all_does() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    // Both hosts detect one address before they receive each other's events.
    a.sh("systemctl stop f2bmqttsub");
    b.sh("systemctl stop f2bmqttsub");
    for (host, addresses) in [(a, ["192.0.2.1", "192.0.2.2"]), (b, ["192.0.2.2", "192.0.2.3"])] {
        host.attack("auth", &addresses);
        eventually("the host detects them", || banned(host) == set(&addresses));
    }
    a.sh("systemctl start f2bmqttsub");
    b.sh("systemctl start f2bmqttsub");
    let all = set(&["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    eventually("both ban all", || banned(a) == all && banned(b) == all);
    a.sh("systemctl stop fail2ban");
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_mins(1) {
        assert_eq!(banned(b), all, "after {:?}", stopped.elapsed());
        sleep(Duration::from_secs(1));
    }
    a.sh("systemctl start fail2ban");
    eventually("a restores its bans", || banned(a) == all);
    assert_eq!(banned(b), all);
    // The operator lifts the shared ban on a. b keeps its local ban.
    a.sh("fail2ban-client unban --all");
    eventually("b releases the bans that only a held", || {
        banned(b) == set(&["192.0.2.2", "192.0.2.3"])
    });
    sleep(Duration::from_secs(6));
    assert_eq!(banned(a), set(&[]), "a lifted ban does not come back");
    assert_eq!(banned(b), set(&["192.0.2.2", "192.0.2.3"]), "no peer releases a local ban");
}

#[test]
fn manual_unban_survives_all_restarts() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    b.sh("fail2ban-client set sshd banip 192.0.2.9");
    a.attack("auth", &["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.9"]);
    eventually("b bans them", || banned(b).len() == 4);
    // The operator lifts one ban while the daemon runs, and one while it does not.
    eventually("fail2ban has written the bans", || {
        b.sh("sqlite3 /var/lib/fail2ban/fail2ban.sqlite3 \"SELECT count(*) FROM bips\"") == "4"
    });
    sleep(Duration::from_secs(4));
    b.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    sleep(Duration::from_secs(4));
    b.sh("systemctl stop f2bmqttsub; fail2ban-client set sshd unbanip 192.0.2.2; systemctl start f2bmqttsub");
    let left = set(&["192.0.2.3", "192.0.2.9"]);
    sleep(Duration::from_secs(6));
    assert_eq!(banned(b), left);
    for host in [a, b] {
        host.sh("systemctl restart fail2ban f2bmqttsub");
        host.ready();
    }
    lose_broker_data(hub);
    eventually("both are connected", || {
        [a, b].iter().all(|host| host.journal().matches("connected to the broker").count() >= 2)
    });
    sleep(Duration::from_secs(8));
    assert_eq!(banned(b), left, "the lifted bans survive all restarts");
    // A new detection at the origin counts. No peer releases the operator's own ban.
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1 192.0.2.9");
    sleep(Duration::from_secs(5));
    a.attack("auth", &["192.0.2.1"]);
    eventually("a bans the address again", || a.bans("sshd", "192.0.2.1"));
    eventually("b imports the ban again", || {
        banned(b) == set(&["192.0.2.1", "192.0.2.3", "192.0.2.9"])
    });
}

#[test]
fn fail2ban_with_lost_database_reimports_bans() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    let all = set(&["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    a.attack("auth", &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    eventually("b bans them", || banned(b) == all);
    let database = "/var/lib/fail2ban/fail2ban.sqlite3";
    for lose in ["rm", "echo no database >"] {
        eventually("fail2ban has written the bans", || {
            b.sh(&format!("sqlite3 {database} 'SELECT count(*) FROM bips'")) == "3"
        });
        sleep(Duration::from_secs(4));
        b.sh(&format!("systemctl stop fail2ban; {lose} {database}; systemctl start fail2ban"));
        eventually("b bans them again", || banned(b) == all);
    }
    sleep(Duration::from_secs(4));
    assert_eq!(banned(b), all);
    // A manual unban still counts after the loss.
    b.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    sleep(Duration::from_secs(4));
    b.sh("systemctl restart fail2ban f2bmqttsub");
    b.ready();
    sleep(Duration::from_secs(4));
    assert_eq!(banned(b), set(&["192.0.2.2", "192.0.2.3"]));
}

#[test]
fn fail2ban_without_jails_releases_bans_and_confirms_unban() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    a.attack("auth", &["192.0.2.1", "192.0.2.2"]);
    eventually("b bans them", || banned(b).len() == 2);
    a.sh("systemctl stop f2bmqttsub
          printf '[both]\nenabled = false\n[sshd]\nenabled = false\n[web]\nenabled = false\n' \
            >/etc/fail2ban/jail.d/none.local
          systemctl restart fail2ban; until fail2ban-client ping; do sleep 0.1; done >/dev/null 2>&1");
    // fail2ban started two minutes ago, so the daemon expects no more jails.
    a.sh("touch -d '-2 minutes' /run/fail2ban/fail2ban.sock; systemctl start f2bmqttsub");
    eventually("b releases them", || banned(b).is_empty());
    let out = b.run("f2bmqtt unban 192.0.2.1");
    assert!(out.status.success(), "{out:?}");
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn removed_jail_releases_bans_after_a_minute() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    a.attack("auth", &["192.0.2.1", "192.0.2.2"]);
    eventually("b bans them", || banned(b).len() == 2);
    sleep(Duration::from_mins(1)); // after that, fail2ban no longer counts as starting
    a.sh("fail2ban-client stop sshd");
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(50) {
        assert_eq!(banned(b).len(), 2, "after {:?}: the jail may still start", stopped.elapsed());
        sleep(Duration::from_secs(1));
    }
    eventually("b releases them", || banned(b).is_empty());
    let out = b.run("f2bmqtt unban 192.0.2.1");
    assert!(out.status.success(), "{out:?}");
    a.sh("fail2ban-client reload");
    let left = set(&["192.0.2.2"]);
    eventually("a restores its jail, except the fleet unban", || banned(a) == left);
    eventually("b imports the ban again", || banned(b) == left);
    sleep(Duration::from_secs(6));
    assert!(banned(a) == left && banned(b) == left);
}

#[test]
fn late_jail_releases_no_bans() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    a.attack("auth", &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    eventually("b bans them", || banned(b).len() == 3);
    sleep(Duration::from_secs(4));
    b.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    sleep(Duration::from_secs(4));
    // fail2ban has only some of its jails, as for a moment after a restart of both.
    let record = rig.record();
    a.sh("systemctl stop f2bmqttsub; systemctl restart fail2ban");
    eventually("fail2ban restores its bans", || banned(a).len() == 3);
    a.sh("fail2ban-client stop sshd; systemctl start f2bmqttsub");
    sleep(Duration::from_secs(6));
    assert_eq!(banned(b), set(&["192.0.2.2", "192.0.2.3"]));
    fleet_unban(hub, "192.0.2.3");
    let left = set(&["192.0.2.2"]);
    eventually("b applies the fleet unban", || banned(b) == left);
    sleep(Duration::from_secs(3));
    a.sh("fail2ban-client reload");
    eventually("a applies the fleet unban when its jail starts", || {
        banned(a) == set(&["192.0.2.1", "192.0.2.2"])
    });
    sleep(Duration::from_secs(6));
    assert_eq!(banned(b), left);
    let mut shards = record.messages();
    shards.retain(|line| line.starts_with("f2bmqtt/blacklist/state/a/0"));
    assert!(shards.len() >= 2, "{shards:?}");
    assert!(shards.iter().all(|shard| shard.contains("192.0.2.1") && shard.contains("192.0.2.2")));
}

/// Publishes the event of `f2bmqtt unban`.
fn fleet_unban(hub: Host<'_>, address: &str) {
    let millis = hub.sh("date +%s%3N");
    hub.publish(
        "blacklist/unban",
        &format!(
            r#"{{"action":"unban","ipmset":"sshd","ip":"{address}","bantime":0,"host":"hub","restored":0,"failures":0,"time":0,"stamp":{millis},"reason":"fleet","id":"hub-{millis}","jails":"*"}}"#
        ),
    );
}

#[test]
fn fleet_unban_reaches_disconnected_host() {
    let rig = Rig::fleet(&["a", "b", "c"]);
    let (a, b, c, hub) = (rig.host("a"), rig.host("b"), rig.host("c"), rig.host("hub"));
    a.attack("auth", &["192.0.2.1", "192.0.2.2"]);
    b.sh("fail2ban-client set sshd banip 192.0.2.1");
    eventually("all ban them", || [a, b, c].iter().all(|host| banned(*host).len() == 2));
    a.rig("cut");
    fleet_unban(hub, "192.0.2.1");
    let left = set(&["192.0.2.2"]);
    eventually("b and c release the ban, also b's manual one", || {
        banned(b) == left && banned(c) == left
    });
    lose_broker_data(hub);
    c.sh("systemctl restart f2bmqttsub");
    a.rig("join");
    eventually("the origin releases the ban after its reconnection", || banned(a) == left);
    sleep(Duration::from_secs(8));
    for host in [a, b, c] {
        assert_eq!(banned(host), left, "the ban does not come back");
    }
    a.attack("auth", &["192.0.2.1"]);
    eventually("a new detection counts", || [a, b, c].iter().all(|host| banned(*host).len() == 2));
}

#[test]
fn five_bans_of_address_cause_at_most_one_recidive_ban_per_host() {
    let rig = Rig::fleet(&["a", "b", "c"]);
    let hosts = rig.hosts(&["a", "b", "c"]);
    for host in &hosts {
        host.sh("printf '[recidive]\\nenabled = true\\nbackend = polling\\nlogpath = /var/log/fail2ban.log\\nmaxretry = 5\\nfindtime = 600\\nbantime = 600\\nbanaction = iptables-ipset\\n' >>/etc/fail2ban/jail.local
                 sed -i 's/^filter = sshd$//; /^\\[sshd\\]/a filter = sshd' /etc/fail2ban/jail.local
                 sed -i 's/^\\[web\\]/&\\nfilter = sshd/; s/^\\[both\\]/&\\nfilter = sshd/' /etc/fail2ban/jail.local
                 systemctl restart fail2ban; until fail2ban-client get recidive banip; do sleep 0.1; done 2>&1");
        host.ready();
    }
    let record = rig.record();
    let a = hosts[0];
    for _ in 0..5 {
        a.attack("auth", &["192.0.2.1"]);
        eventually("all ban it", || hosts.iter().all(|host| host.bans("sshd", "192.0.2.1")));
        a.sh("fail2ban-client set sshd unbanip 192.0.2.1");
        eventually("all release it", || hosts.iter().all(|host| !host.bans("sshd", "192.0.2.1")));
    }
    eventually("all ban it for longer", || {
        hosts.iter().all(|host| host.bans("recidive", "192.0.2.1"))
    });
    sleep(Duration::from_secs(10));
    for host in ["a", "b", "c"] {
        let count = record.count(&["blacklist/ban", "recidive", &format!(r#""host":"{host}""#)]);
        assert!(count <= 1, "{host} published {count} times: {:#?}", record.events());
    }
}
