//! Whatever fails, every server ends with the same bans, and for as long as their origin: on real servers,
//! with real fail2ban and mosquitto.

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

/// Loses the broker's whole memory.
fn forget_all(hub: Host<'_>) {
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
    forget_all(hub);
    // c was not there when these were told, and no session kept them for it.
    c.sh("rm -rf /var/lib/f2bmqtt/*; systemctl start f2bmqttsub || { journalctl -u f2bmqttsub -n 20; exit 1; }");
    eventually("c bans all", || banned(c) == all);
    assert!(banned(a) == all && banned(b) == all);
    // What a host hears of no more because the broker lost it, it keeps; what was freed meanwhile, not.
    rig.host("b").rig("cut");
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    eventually("c frees it", || !c.bans("sshd", "192.0.2.1"));
    forget_all(hub);
    b.rig("join");
    eventually("b frees it, too", || banned(b) == set(&["192.0.2.2", "192.0.2.3"]));
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fail2ban_stop_releases_no_bans_but_unban_all_does() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    // Both detect one of them, before they hear of each other.
    a.sh("systemctl stop f2bmqttsub");
    b.sh("systemctl stop f2bmqttsub");
    for (host, addresses) in [(a, ["192.0.2.1", "192.0.2.2"]), (b, ["192.0.2.2", "192.0.2.3"])] {
        host.attack("auth", &addresses);
        eventually("it detects them", || banned(host) == set(&addresses));
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
    eventually("it restores its bans", || banned(a) == all);
    assert_eq!(banned(b), all);
    // What b detected, too, is lifted on a, and stays with b.
    a.sh("fail2ban-client unban --all");
    eventually("b frees what only a held", || banned(b) == set(&["192.0.2.2", "192.0.2.3"]));
    sleep(Duration::from_secs(6));
    assert_eq!(banned(a), set(&[]), "what its operator lifted does not come back");
    assert_eq!(banned(b), set(&["192.0.2.2", "192.0.2.3"]), "what b detected no other frees");
}

#[test]
fn manual_unban_survives_all_restarts() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    b.sh("fail2ban-client set sshd banip 192.0.2.9");
    a.attack("auth", &["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.9"]);
    eventually("b bans them", || banned(b).len() == 4);
    // One while the daemon runs, one while it does not.
    eventually("fail2ban has written it down", || {
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
    forget_all(hub);
    eventually("both are connected", || {
        [a, b].iter().all(|host| host.journal().matches("connected to the broker").count() >= 2)
    });
    sleep(Duration::from_secs(8));
    assert_eq!(banned(b), left, "over restarts of everything");
    // A new ban of its origin counts again; the operator's own no other frees.
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1 192.0.2.9");
    sleep(Duration::from_secs(5));
    a.attack("auth", &["192.0.2.1"]);
    eventually("a bans it anew", || a.bans("sshd", "192.0.2.1"));
    eventually("and b", || banned(b) == set(&["192.0.2.1", "192.0.2.3", "192.0.2.9"]));
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
        eventually("fail2ban has written it down", || {
            b.sh(&format!("sqlite3 {database} 'SELECT count(*) FROM bips'")) == "3"
        });
        sleep(Duration::from_secs(4));
        b.sh(&format!("systemctl stop fail2ban; {lose} {database}; systemctl start fail2ban"));
        eventually("b bans them again", || banned(b) == all);
    }
    sleep(Duration::from_secs(4));
    assert_eq!(banned(b), all);
    // What its operator lifts is lifted still.
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
    // It started a while ago, and will make no more jails.
    a.sh("touch -d '-2 minutes' /run/fail2ban/fail2ban.sock; systemctl start f2bmqttsub");
    eventually("b frees them", || banned(b).is_empty());
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
    sleep(Duration::from_mins(1)); // fail2ban starts no more
    a.sh("fail2ban-client stop sshd");
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(50) {
        assert_eq!(banned(b).len(), 2, "after {:?}: it may be on its way up", stopped.elapsed());
        sleep(Duration::from_secs(1));
    }
    eventually("b frees them", || banned(b).is_empty());
    let out = b.run("f2bmqtt unban 192.0.2.1");
    assert!(out.status.success(), "{out:?}");
    a.sh("fail2ban-client reload");
    let left = set(&["192.0.2.2"]);
    eventually("it is back, without what was freed for all", || banned(a) == left);
    eventually("and b bans for it again", || banned(b) == left);
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
    // As it is for a moment when both are restarted: fail2ban has some of its jails.
    let record = rig.record();
    a.sh("systemctl stop f2bmqttsub; systemctl restart fail2ban");
    eventually("fail2ban restores its bans", || banned(a).len() == 3);
    a.sh("fail2ban-client stop sshd; systemctl start f2bmqttsub");
    sleep(Duration::from_secs(6));
    assert_eq!(banned(b), set(&["192.0.2.2", "192.0.2.3"]));
    fleet_unban(hub, "192.0.2.3");
    let left = set(&["192.0.2.2"]);
    eventually("b frees what is freed for all", || banned(b) == left);
    sleep(Duration::from_secs(3));
    a.sh("fail2ban-client reload");
    eventually("a frees it, too, once its jail is there", || {
        banned(a) == set(&["192.0.2.1", "192.0.2.2"])
    });
    sleep(Duration::from_secs(6));
    assert_eq!(banned(b), left);
    let messages = record.messages();
    let parts = || messages.iter().filter(|line| line.starts_with("f2bmqtt/blacklist/state/a/0"));
    assert!(parts().count() >= 2, "{messages:?}");
    assert!(parts().all(|part| part.contains("192.0.2.1") && part.contains("192.0.2.2")));
}

/// Publishes what `f2bmqtt unban` does.
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
    eventually("it is free, also where it was banned by hand", || {
        banned(b) == left && banned(c) == left
    });
    forget_all(hub);
    c.sh("systemctl restart f2bmqttsub");
    a.rig("join");
    eventually("and at its origin, once that is back", || banned(a) == left);
    sleep(Duration::from_secs(8));
    for host in [a, b, c] {
        assert_eq!(banned(host), left, "it stays free");
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
        eventually("all free it", || hosts.iter().all(|host| !host.bans("sshd", "192.0.2.1")));
    }
    eventually("all ban it for longer", || {
        hosts.iter().all(|host| host.bans("recidive", "192.0.2.1"))
    });
    sleep(Duration::from_secs(10));
    for host in ["a", "b", "c"] {
        let told = record.count(&["blacklist/ban", "recidive", &format!(r#""host":"{host}""#)]);
        assert!(told <= 1, "{host} told {told} times: {:#?}", record.events());
    }
}
