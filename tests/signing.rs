//! A fleet with a signing key, on a hub with certificates and access rules: without the key, no message that the broker
//! delivers makes or releases a ban.

mod support;

use std::path::Path;
use std::time::Duration;

use f2bmqtt::wire::signature::SigningKeys;
use support::{Host, Rig, eventually, within};

const KEY: &str = "7c7f0a5be0d5a2ffe8a2c5b1f0e4d3c2";
const NEW_KEY: &str = "19d04b3a9c8e7f6051423324150617f8";

/// Changes a setting of a host; an empty value removes it.
fn set(host: Host<'_>, key: &str, value: &str) {
    host.sh(&format!("sed -i '/^{key}=/d' /etc/fail2ban/mqtt.env"));
    if !value.is_empty() {
        host.sh(&format!("echo {key}={value} >>/etc/fail2ban/mqtt.env"));
    }
}

fn restart(host: Host<'_>) {
    host.sh("systemctl restart f2bmqttsub");
    host.ready();
}

fn sign(host: Host<'_>, key: &str) {
    set(host, "MQTT_SIGNING_KEY", key);
    restart(host);
}

/// A hub with TLS and the example's access rules, and servers with certificates and a key.
fn signed_fleet(names: &[&'static str]) -> Rig {
    let rig = Rig::fleet(names);
    let hub = rig.host("hub");
    let hosts = [names, &["evil"]].concat().join(" ");
    hub.sh(&format!(
        "set -e; cp -r /usr/share/doc/f2bmqtt/examples/mosquitto /root/fleet; cd /root/fleet
         ./certificates ca; ./certificates hub hub 10.213.77.11
         for host in {hosts}; do ./certificates host $host; done
         install -m 0644 ca.crt ca.crl hub.crt /etc/mosquitto/certs
         install -m 0400 -o mosquitto hub.key /etc/mosquitto/certs
         install -m 0400 -o mosquitto fleet.acl /etc/mosquitto
         install -m 0644 fleet.conf /etc/mosquitto/conf.d; systemctl restart mosquitto"
    ));
    for name in names {
        let host = rig.host(name);
        for file in ["ca.crt", &format!("{name}.crt"), &format!("{name}.key")] {
            let text = hub.sh(&format!("cat /root/fleet/{file}"));
            host.sh(&format!("umask 077; mkdir -p /etc/tls; echo '{text}' >/etc/tls/{file}"));
        }
        set(host, "MQTT_CAFILE", "/etc/tls/ca.crt");
        set(host, "MQTT_CERT", &format!("/etc/tls/{name}.crt"));
        set(host, "MQTT_KEY", &format!("/etc/tls/{name}.key"));
        sign(host, KEY);
    }
    rig
}

/// Publishes with the certificate of a compromised host that has no signing key.
fn publish_as(hub: Host<'_>, name: &str, topic: &str, payload: &str, more: &str) {
    let file =
        Path::new("/tmp").join(format!("i{}-{}", std::process::id(), topic.replace('/', "-")));
    std::fs::write(&file, payload).unwrap();
    hub.push(&file, "/root/payload");
    std::fs::remove_file(&file).unwrap();
    hub.sh(&format!(
        "cd /root/fleet; mosquitto_pub -h hub -p 8883 --cafile ca.crt --cert {name}.crt --key {name}.key \
         -q 1 {more} -t {topic} -f /root/payload"
    ));
}

/// The retained message of a topic, or the next message.
fn read(hub: Host<'_>, topic: &str) -> String {
    hub.sh(&format!(
        "cd /root/fleet; mosquitto_sub -h hub -p 8883 --cafile ca.crt --cert evil.crt --key evil.key \
         -C 1 -W 20 -t {topic}"
    ))
}

fn event(action: &str, address: &str, host: &str, stamp: i64) -> String {
    let time = stamp / 1000;
    format!(
        r#"{{"action":"{action}","ipmset":"sshd","ip":"{address}","bantime":-1,"host":"{host}","restored":0,"failures":3,"time":{time},"stamp":{stamp}}}"#
    )
}

fn shard(host: &str, bans: &str, stamp: i64) -> String {
    format!(
        r#"{{"v":1,"host":"{host}","stamp":{stamp},"part":0,"parts":1,"bans":[{bans}],"unbans":[]}}"#
    )
}

/// A shard with a stamp newer than those of the fleet's shards.
fn new_shard(host: &str, bans: &str) -> String {
    shard(host, bans, now() + 5_000)
}

fn now() -> i64 {
    f2bmqtt::sys::clock::now_millis()
}

fn signed(key: &str, topic: &str, payload: &str) -> String {
    String::from_utf8(SigningKeys::new([key]).sign(topic, payload.into())).unwrap()
}

#[test]
fn message_without_key_is_rejected_by_every_host() {
    let rig = signed_fleet(&["web1", "web2"]);
    let (hub, web1, web2) = (rig.host("hub"), rig.host("web1"), rig.host("web2"));
    hub.sh("systemd-run -q -u record -p StandardOutput=append:/root/seen --working-directory=/root/fleet \
            mosquitto_sub -h hub -p 8883 --cafile ca.crt --cert evil.crt --key evil.key -q 1 -t 'blacklist/#' -t 'f2bmqtt/blacklist/#' -v");
    web1.attack("auth", &["192.0.2.1"]);
    eventually("web2 bans it", || web2.bans("sshd", "192.0.2.1"));
    web1.attack("auth", &["192.0.2.2"]);
    eventually("web2 bans it, too", || web2.bans("sshd", "192.0.2.2"));
    web1.sh("fail2ban-client set sshd unbanip 192.0.2.2");
    eventually("web2 releases it", || !web2.bans("sshd", "192.0.2.2"));
    let recorded = hub.sh("cat /root/seen");
    let ban = recorded
        .lines()
        .find(|line| line.contains("blacklist/ban") && line.contains("192.0.2.2"))
        .and_then(|line| line.split_once(' '))
        .map(|(_, payload)| payload.to_owned())
        .unwrap();
    assert!(ban.contains(r#","sig":""#), "{ban}");
    eventually("web1's shard lists only the other ban", || {
        let shard = read(hub, "f2bmqtt/blacklist/state/web1/0");
        shard.contains("192.0.2.1") && !shard.contains("192.0.2.2")
    });
    assert!(read(hub, "f2bmqtt/blacklist/host/web1").contains(r#","sig":""#));

    // The access rules let evil publish events of other hosts and its own shards. Without them, the test also covers
    // what an attacker's own broker could send.
    hub.sh(
        "sed -i 's/^acl_file/#&/' /etc/mosquitto/conf.d/fleet.conf; systemctl restart mosquitto",
    );
    // The log's rate limit of rejections may be used up since the fleet changed its key. A restart resets it.
    for host in [web1, web2] {
        host.sh("systemctl restart f2bmqttsub");
    }
    for host in [web1, web2] {
        eventually("the host is connected again", || {
            host.journal().contains("connected to the broker 10.213.77.11:8883")
        });
    }
    let listed = format!(r#"["sshd","192.0.2.8",{},-1]"#, now() / 1000);
    let other = "0123456789abcdef of somebody else";
    let old = now() - 3 * 86_400_000;
    let older = now() - 31 * 86_400_000;
    let table = [
        // Not signed.
        ("blacklist/ban", event("ban", "192.0.2.8", "evil", now()), ""),
        ("blacklist/ban", event("ban", "192.0.2.8", "evil", 0), ""),
        ("blacklist/unban", event("unban", "192.0.2.1", "web1", now() + 5_000), ""),
        ("f2bmqtt/blacklist/state/evil/0", new_shard("evil", &listed), "-r"),
        ("f2bmqtt/blacklist/state/web1/0", new_shard("web1", ""), "-r"),
        ("f2bmqtt/blacklist/host/evil", r#"{"v":1,"state":"online"}"#.to_owned(), "-r"),
        // Signed with another key.
        (
            "blacklist/ban",
            signed(other, "blacklist/ban", &event("ban", "192.0.2.8", "web1", now())),
            "",
        ),
        // The fleet's own messages, on another topic, and changed.
        ("blacklist/unban", ban.clone(), ""),
        ("blacklist/ban", ban.replace("192.0.2.2", "192.0.2.8"), ""),
        ("f2bmqtt/blacklist/state/web1/1", read(hub, "f2bmqtt/blacklist/state/web1/0"), "-r"),
        // Correctly signed, but old, and of a host that the fleet does not know.
        (
            "blacklist/ban",
            signed(KEY, "blacklist/ban", &event("ban", "192.0.2.8", "gone", old)),
            "",
        ),
        (
            "f2bmqtt/blacklist/host/gone",
            signed(KEY, "f2bmqtt/blacklist/host/gone", r#"{"v":1,"state":"online"}"#),
            "-r",
        ),
        (
            "f2bmqtt/blacklist/state/gone/0",
            signed(KEY, "f2bmqtt/blacklist/state/gone/0", &shard("gone", &listed, older)),
            "-r",
        ),
        // Correctly signed, but older than another message of its host.
        ("blacklist/ban", ban.clone(), ""),
        // An empty message has no signature.
        ("f2bmqtt/blacklist/state/web1/0", String::new(), "-r"),
    ];
    for (topic, payload, more) in &table {
        publish_as(hub, "evil", topic, payload, more);
    }
    // All earlier messages arrive before this ban.
    web1.attack("auth", &["192.0.2.3"]);
    eventually("web2 bans what was sent last", || web2.bans("sshd", "192.0.2.3"));
    assert_eq!(web2.sh("fail2ban-client get sshd banip"), "192.0.2.1 192.0.2.3");
    assert_eq!(web1.sh("fail2ban-client get sshd banip"), "192.0.2.1 192.0.2.3");
    for message in [
        "rejected message on blacklist/ban: the message is not signed, and this host has MQTT_SIGNING_KEY",
        "rejected message on blacklist/ban: the signature does not match: another key, another topic, or a changed message",
        "rejected ban of 192.0.2.8 in sshd from gone: the message is too old",
        "rejected shard on f2bmqtt/blacklist/state/gone/0: the message is too old",
    ] {
        eventually(message, || web2.journal().contains(message));
    }
    for host in [web1, web2] {
        assert!(!host.sh("journalctl --no-pager").contains(KEY));
    }
    // A host publishes its own shard again after another client has cleared or replaced it.
    eventually("web1 publishes its shard again", || {
        read(hub, "f2bmqtt/blacklist/state/web1/0").contains("192.0.2.3")
    });
    publish_as(hub, "evil", "f2bmqtt/blacklist/state/web1/0", &new_shard("web1", ""), "-r");
    eventually("web1 publishes its shard once more", || {
        read(hub, "f2bmqtt/blacklist/state/web1/0").contains("192.0.2.3")
    });
    test_forget(hub, web2, &new_shard("gone2", ""));
}

/// A signed empty shard removes a host's bans; an empty message does not.
fn test_forget(hub: Host<'_>, web2: Host<'_>, empty: &str) {
    let empty = signed(KEY, "f2bmqtt/blacklist/state/gone2/0", empty);
    let banned = signed(KEY, "blacklist/ban", &event("ban", "192.0.2.9", "gone2", now()));
    publish_as(hub, "evil", "blacklist/ban", &banned, "");
    eventually("web2 imports the ban", || web2.bans("sshd", "192.0.2.9"));
    publish_as(hub, "evil", "f2bmqtt/blacklist/state/gone2/0", "", "-r");
    publish_as(hub, "evil", "f2bmqtt/blacklist/state/gone2/0", &empty, "-r");
    eventually("web2 releases the ban", || !web2.bans("sshd", "192.0.2.9"));
}

#[test]
fn key_change_in_running_fleet_loses_no_ban() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b) = (rig.host("a"), rig.host("b"));
    let both = format!("{NEW_KEY},{KEY}");
    assert_crosses(a, b, 1, "no host signs");
    // First key: a host that signs still accepts unsigned messages.
    set(a, "MQTT_ACCEPT_UNSIGNED", "yes");
    sign(a, KEY);
    assert_crosses(a, b, 2, "a signs");
    sign(b, KEY);
    set(a, "MQTT_ACCEPT_UNSIGNED", "");
    restart(a);
    assert_crosses(a, b, 3, "both sign");
    // Change of the key.
    sign(a, &format!("{KEY},{NEW_KEY}"));
    sign(b, &format!("{KEY},{NEW_KEY}"));
    assert_crosses(a, b, 4, "both accept the new key");
    sign(a, &both);
    assert_crosses(a, b, 5, "a signs with the new key");
    sign(b, &both);
    assert_crosses(a, b, 6, "both sign with the new key");
    let honest = banned(a);
    forge_with(KEY, &rig);
    sign(a, NEW_KEY);
    sign(b, NEW_KEY);
    within(Duration::from_mins(3), "bans that are signed with the old key end", || {
        [a, b].into_iter().all(|host| banned(host) == honest)
    });
    assert_crosses(a, b, 7, "the old key is removed");
}

/// Each host detects an address, and both ban all addresses of this and earlier rounds.
fn assert_crosses(a: Host<'_>, b: Host<'_>, round: usize, when: &str) {
    for (from, to, n) in [(a, b, 2 * round - 1), (b, a, 2 * round)] {
        let address = format!("192.0.2.{n}");
        from.attack("auth", &[&address]);
        eventually(&format!("{address} crosses: {when}"), || to.bans("sshd", &address));
    }
    for host in [a, b] {
        assert_eq!(banned(host).len(), 2 * round, "{} lost a ban: {when}", host.name);
    }
}

/// The bans of a host's jail.
fn banned(host: Host<'_>) -> Vec<String> {
    let mut banned: Vec<_> =
        host.sh("fail2ban-client get sshd banip").split_whitespace().map(str::to_owned).collect();
    banned.sort_unstable();
    banned
}

/// A client with a stolen key publishes permanent bans in the name of `b` and of an invented host.
fn forge_with(key: &str, rig: &Rig) {
    let hub = rig.host("hub");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
    for file in ["attacks.py", "hostile.py"] {
        hub.push(&scripts.join(file), &format!("/root/{file}"));
    }
    hub.sh(&format!("python3 -S /root/attacks.py stolen key={key}"));
    for host in rig.hosts(&["a", "b"]) {
        eventually("the forgery has an effect", || host.bans("sshd", "198.18.5.79"));
    }
}

#[test]
fn script_hosts_take_part_where_unsigned_is_accepted() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    set(a, "MQTT_ACCEPT_UNSIGNED", "yes");
    sign(a, KEY);
    hub.publish_event("ban", "sshd", "192.0.2.1", "old1");
    eventually("a bans it", || a.bans("sshd", "192.0.2.1"));
    let wrong = signed(NEW_KEY, "blacklist/ban", &event("ban", "192.0.2.8", "old1", now()));
    hub.publish("blacklist/ban", &wrong);
    hub.publish_event("unban", "sshd", "192.0.2.1", "old1");
    eventually("a releases the ban", || !a.bans("sshd", "192.0.2.1"));
    assert_eq!(a.sh("fail2ban-client get sshd banip"), "");
    // The scripts can parse signed messages.
    let sub = "mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -C 1 -W 30 -t blacklist/ban";
    hub.sh(&format!("systemd-run -q -u one -p StandardOutput=append:/root/one {sub}; sleep 1"));
    a.attack("auth", &["192.0.2.2"]);
    eventually("a script parses the message", || {
        hub.try_sh(r#"jq -r '"\(.action) \(.ip) \(.ipmset) \(.host)"' /root/one"#)
            .is_ok_and(|read| read == "ban 192.0.2.2 sshd a")
    });
    assert!(hub.sh("cat /root/one").contains(r#","sig":""#));
}

/// The client ID of a host's daemon.
fn client_id(host: Host<'_>) -> String {
    host.sh("python3 -c \"import sqlite3
row = sqlite3.connect('/var/lib/f2bmqtt/fleet.sqlite3').execute('SELECT node, secret FROM identity').fetchone()
print('f2bmqtt-%s-%s' % row)\"")
}

/// Publishes a ban by `a` that is signed for a topic.
fn publish_signed_ban(hub: Host<'_>, topic: &str, address: &str) {
    hub.publish(topic, &signed(KEY, topic, &event("ban", address, "a", now())));
}

#[test]
fn unsigned_and_former_fleet_state_has_no_effect() {
    const TWO_MINUTES: Duration = Duration::from_mins(2);
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    a.attack("auth", &["192.0.2.1"]);
    hub.publish("blacklist/ban", &event("ban", "192.0.2.2", "evil", now()));
    for address in ["192.0.2.1", "192.0.2.2"] {
        eventually("b bans it without a key", || b.bans("sshd", address));
    }
    let unsigned = client_id(b);
    sign(a, KEY);
    sign(b, KEY);
    within(TWO_MINUTES, "the unsigned ban ends", || {
        assert!(b.bans("sshd", "192.0.2.1"), "its origin signs");
        !b.bans("sshd", "192.0.2.2")
    });
    eventually("on a, too", || !a.bans("sshd", "192.0.2.2"));
    assert!(b.bans("sshd", "192.0.2.1"));
    let former = client_id(b);
    assert_eq!(unsigned, former, "the session goes on");
    // After a change of the topic, signed messages of the former fleet have no effect, queued or live.
    b.sh("systemctl stop f2bmqttsub");
    publish_signed_ban(hub, "blacklist/ban", "192.0.2.3");
    set(b, "MQTT_TOPIC", "other");
    restart(b);
    publish_signed_ban(hub, "blacklist/ban", "192.0.2.4");
    publish_signed_ban(hub, "other/ban", "192.0.2.5");
    eventually("b imports a ban of its new fleet", || b.bans("sshd", "192.0.2.5"));
    assert!(!b.bans("sshd", "192.0.2.3") && !b.bans("sshd", "192.0.2.4"), "{}", b.journal());
    assert_ne!(client_id(b), former);
    eventually("its former session is gone", || {
        let session = format!(
            "mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -i {former} -c -q 1 -t none/of/it -W 2; true"
        );
        hub.sh(&session).is_empty()
    });
    within(TWO_MINUTES, "b releases the former fleet's bans", || !b.bans("sshd", "192.0.2.1"));
    assert!(b.bans("sshd", "192.0.2.5") && a.bans("sshd", "192.0.2.1"));
    // A subscription that a client adds to the session of a guessed client ID has no effect.
    hub.sh(
        "mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -i f2bmqtt-b -c -q 1 -t '#' -E; true",
    );
    restart(b);
    hub.publish("ban", &event("ban", "192.0.2.6", "evil", now()));
    hub.publish("x/ban", &event("ban", "192.0.2.6", "evil", now()));
    publish_signed_ban(hub, "other/ban", "192.0.2.7");
    eventually("b imports the next ban", || b.bans("sshd", "192.0.2.7"));
    assert!(!b.bans("sshd", "192.0.2.6"));
}
