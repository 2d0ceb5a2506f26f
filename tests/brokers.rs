//! The table of docs/brokers.md: what each broker does for a fleet. The commands in the docs set up each broker.

mod support;

use std::time::Duration;

use support::docs::block;
use support::{Host, Rig, eventually, fleet_root, within};

/// How long a server may take to find another broker after its own lost power: a timeout, a retry, and the next broker.
const FAILOVER_LIMIT: Duration = Duration::from_secs(90);

/// Within this time each server publishes its next snapshot, which replaces messages that a bridge lost.
const SNAPSHOT_INTERVAL_MAX: Duration = Duration::from_mins(11);

/// A broker on a hub of its own.
struct Kind {
    suite: &'static str,
    /// The name of the block in the docs, and the folder of the examples that its commands use.
    commands: &'static str,
    examples: &'static str,
    service: &'static str,
    /// The name of the server `b` in the fleet.
    name: &'static str,
    /// Whether the broker delivers retained messages for a filter with a wildcard.
    hands_out: bool,
    /// Whether retained messages survive a `kill -9`.
    durable: bool,
}

const MOSQUITTO: Kind = Kind {
    suite: "bookworm",
    commands: "hub",
    examples: "mosquitto",
    service: "mosquitto",
    name: "b.example.org",
    hands_out: true,
    durable: false,
};

const RABBITMQ: Kind = Kind {
    suite: "bookworm",
    commands: "rabbitmq",
    examples: "",
    service: "rabbitmq-server",
    name: "b.example.org",
    hands_out: false,
    durable: true,
};

const NATS: Kind = Kind {
    suite: "bookworm",
    commands: "nats",
    examples: "nats",
    service: "nats-server",
    name: "b",
    hands_out: true,
    durable: true,
};

const PACKAGES: [&str; 2] = ["rabbitmq-server", "nats-server"];

/// Boots hosts with all brokers installed and none running.
fn boot(suite: &str, hosts: &[&str]) -> Rig {
    let rig = Rig::up(&fleet_root(suite, &PACKAGES), hosts);
    for host in rig.hosts(hosts) {
        host.sh("echo 'APT::Get::Assume-Yes true;' >/etc/apt/apt.conf.d/yes
                 rm /etc/mosquitto/conf.d/fleet.conf /etc/mosquitto/passwd");
        if host.name.starts_with("hub") {
            host.sh("systemctl stop f2bmqttsub fail2ban");
        }
    }
    rig
}

/// Makes a host a hub with commands of the docs.
fn install(hub: Host<'_>, examples: &str, commands: &str) {
    let commands = commands.replace("choose-your-own", "fail2ban");
    hub.sh(&format!("cd /usr/share/doc/f2bmqtt/examples/{examples}; set -e; {commands}"));
}

/// Changes a setting of a host, and restarts the service.
fn set(host: Host<'_>, key: &str, value: &str) {
    host.sh(&format!(
        "sed -i '/^{key}=/d' /etc/fail2ban/mqtt.env
         echo {key}={value} >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub"
    ));
}

/// The retained message of a topic on a hub.
fn retained(hub: Host<'_>, topic: &str) -> String {
    hub.try_sh(&format!(
        "mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 -C 1 -W 3 -t f2bmqtt/blacklist/{topic}"
    ))
    .unwrap_or_default()
}

/// Kills the daemon, and keeps systemd from restarting it.
fn kill_daemon(host: Host<'_>) {
    host.sh("mkdir -p /run/systemd/system/f2bmqttsub.service.d
             printf '[Service]\nRestart=no\n' >/run/systemd/system/f2bmqttsub.service.d/dead.conf
             systemctl daemon-reload; systemctl kill -s KILL f2bmqttsub
             until ! systemctl is-active -q f2bmqttsub; do sleep 0.05; done");
}

fn assert_all_ban(hosts: &[Host<'_>], address: &str) {
    for host in hosts {
        let what = format!("{} bans {address}", host.name);
        within(FAILOVER_LIMIT, &what, || host.bans("sshd", address));
    }
}

/// The columns of the table in docs/brokers.md, in their order.
fn assert_carries_fleet(kind: &Kind) {
    let rig = boot(kind.suite, &["hub", "a", "b"]);
    let (hub, a, b) = (rig.host("hub"), rig.host("a"), rig.host("b"));
    install(hub, kind.examples, &block(kind.commands));
    set(b, "MQTT_NODE", kind.name);
    a.ready();
    b.ready();
    // check publishes events and a retained message.
    eventually("check finds no fault", || a.try_sh("f2bmqtt check").is_ok());
    test_events(a, b);
    test_offline_host(hub, a, b, kind.name);
    test_killed_broker(hub, a, b, kind);
    test_joining_host(hub, kind);
    test_commands(hub, kind.name);
    test_wrong_password(a);
    if kind.service == RABBITMQ.service {
        test_forbidden_topic(hub, a);
    }
    test_signing(hub, a, b, kind);
    for host in [a, b] {
        let journal = host.journal();
        for odd in
            ["rejected invalid", " shard on ", " presence on ", "rejected event on", "panicked"]
        {
            assert!(!journal.contains(odd), "{odd}\n{journal}");
        }
    }
}

/// Bans and unbans, both ways.
fn test_events(a: Host<'_>, b: Host<'_>) {
    a.attack("auth", &["192.0.2.1", "192.0.2.2"]);
    assert_all_ban(&[a, b], "192.0.2.1");
    assert_all_ban(&[a, b], "192.0.2.2");
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    eventually("b releases the ban", || !b.bans("sshd", "192.0.2.1"));
    assert!(b.bans("sshd", "192.0.2.2"));
    b.attack("auth", &["192.0.2.3"]);
    assert_all_ban(&[a, b], "192.0.2.3");
}

/// The broker publishes an offline host's last will, and queues events for the host.
fn test_offline_host(hub: Host<'_>, a: Host<'_>, b: Host<'_>, name: &str) {
    eventually("b is online", || has_state(hub, name, "online"));
    kill_daemon(b);
    eventually("b is offline", || has_state(hub, name, "offline"));
    a.attack("auth", &["192.0.2.4"]);
    assert_all_ban(&[a], "192.0.2.4");
    eventually("the event is published", || a.sh("ls /var/lib/f2bmqtt/spool").is_empty());
    b.sh("systemctl start f2bmqttsub");
    assert_all_ban(&[b], "192.0.2.4");
    eventually("b received the event", || b.journal().contains("Inbound: ban 192.0.2.4"));
    eventually("b is online again", || has_state(hub, name, "online"));
}

/// Whether a hub's retained presence of a host has this state.
fn has_state(hub: Host<'_>, name: &str, state: &str) -> bool {
    retained(hub, &format!("host/{name}")).contains(&format!(r#""state":"{state}""#))
}

fn test_killed_broker(hub: Host<'_>, a: Host<'_>, b: Host<'_>, kind: &Kind) {
    let service = kind.service;
    hub.sh(&format!("systemctl kill -s KILL {service}; systemctl stop {service}"));
    a.attack("auth", &["192.0.2.5"]);
    assert_all_ban(&[a], "192.0.2.5");
    hub.sh(&format!("systemctl start {service}"));
    assert_all_ban(&[b], "192.0.2.5");
    if kind.durable {
        eventually("a's shard lists the ban", || retained(hub, "state/a/0").contains("192.0.2.5"));
        // RabbitMQ writes the message to the disk some seconds later.
        hub.sh("sleep 8");
        a.sh("systemctl stop f2bmqttsub");
        hub.sh(&format!(
            "systemctl kill -s KILL {service}; systemctl stop {service}; systemctl start {service}"
        ));
        eventually("the broker still has the shard", || {
            retained(hub, "state/a/0").contains("192.0.2.5")
        });
        a.sh("systemctl start f2bmqttsub");
    }
}

/// A host without a session on the broker.
fn test_joining_host(hub: Host<'_>, kind: &Kind) {
    eventually("a is back", || has_state(hub, "a", "online"));
    hub.sh("systemctl start fail2ban f2bmqttsub");
    if !kind.hands_out {
        // The host learns of a peer only from the peer's next presence, which comes every few minutes.
        hub.ready();
        for name in ["a", kind.name] {
            hub.sh(&format!(
                "mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 -t f2bmqtt/blacklist/host/{name} \
                 -m '{{\"v\":1,\"state\":\"online\"}}'"
            ));
        }
    }
    for address in ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"] {
        assert_all_ban(&[hub], address);
    }
    assert!(!hub.bans("sshd", "192.0.2.1"));
}

/// The JSON that a command prints.
fn command_json(hub: Host<'_>, command: &str) -> serde_json::Value {
    serde_json::from_str(&hub.sh(&format!("f2bmqtt {command} --json"))).unwrap()
}

/// The texts of one field of all entries in a list.
fn texts<'a>(list: &'a serde_json::Value, field: &str) -> Vec<&'a str> {
    list.as_array().unwrap().iter().map(|entry| entry[field].as_str().unwrap()).collect()
}

/// `status` and `list` show the whole fleet.
fn test_commands(hub: Host<'_>, name: &str) {
    let status = command_json(hub, "status");
    assert_eq!(texts(&status["hosts"], "host"), ["a", name, "hub"]);
    assert_eq!(texts(&status["hosts"], "state"), ["online"; 3]);
    // A busy RabbitMQ may not deliver all shards within the command's four seconds.
    eventually("list has each ban", || {
        texts(&command_json(hub, "list")["bans"], "ip")
            == ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"]
    });
}

fn test_wrong_password(a: Host<'_>) {
    set(a, "MQTT_PASSWORD", "wrong");
    let line = "the broker rejected the login; check MQTT_USER and MQTT_PASSWORD";
    eventually(line, || a.journal().contains(line));
    set(a, "MQTT_PASSWORD", "fail2ban");
    eventually("a is connected", || a.journal().contains("connected to the broker"));
}

/// `RabbitMQ` closes the connection of a client that publishes without permission. `check` finds the topic.
fn test_forbidden_topic(hub: Host<'_>, a: Host<'_>) {
    let cases =
        [("unban|state|host", "blacklist/ban"), ("ban|unban|state", "f2bmqtt/blacklist/host/a")];
    for (allowed, forbidden) in cases {
        hub.sh(&format!(
            "rabbitmqctl set_topic_permissions fail2ban amq.topic '^(f2bmqtt.)?blacklist.({allowed})' '^(f2bmqtt.)?blacklist'"
        ));
        let line = format!("closes the connection when this host publishes on {forbidden}\n");
        let text = a.try_sh("f2bmqtt check").unwrap_err();
        let next = format!("    the broker's access rules must let fail2ban write {forbidden}\n");
        assert!(text.contains(&line) && text.contains(&next), "{text}");
    }
    hub.sh("rabbitmqctl clear_topic_permissions fail2ban");
    eventually("check finds no fault", || a.try_sh("f2bmqtt check").is_ok());
}

/// The broker delivers signed messages unchanged, and on the signed topic.
fn test_signing(hub: Host<'_>, a: Host<'_>, b: Host<'_>, kind: &Kind) {
    for host in [a, b] {
        set(host, "MQTT_SIGNING_KEY", "0123456789abcdef0123456789abcdef");
    }
    a.ready();
    b.ready();
    b.attack("auth", &["192.0.2.8"]);
    assert_all_ban(&[a, b], "192.0.2.8");
    eventually("b's shard is signed", || {
        let shard = retained(hub, &format!("state/{}/0", kind.name));
        shard.contains("192.0.2.8") && shard.contains("sig")
    });
    let journal = a.journal();
    assert!(!journal.contains("the signature does not match"), "{journal}");
}

#[test]
fn fleet_works_on_rabbitmq_3_10() {
    assert_carries_fleet(&RABBITMQ);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fleet_works_on_rabbitmq_4_0() {
    assert_carries_fleet(&Kind { suite: "trixie", ..RABBITMQ });
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fleet_works_on_nats_2_9() {
    assert_carries_fleet(&NATS);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fleet_works_on_nats_2_10() {
    assert_carries_fleet(&Kind { suite: "trixie", name: "b.example.org", ..NATS });
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fleet_works_on_mosquitto_2_0() {
    assert_carries_fleet(&MOSQUITTO);
}

/// The address of a hub in the docs: 192.168.1.10, .20 and so on.
fn hub_address(number: usize) -> String {
    format!("192.168.1.{}", 10 * (number + 1))
}

/// Gives a host an address of the network in the docs.
fn address(host: Host<'_>, address: &str) {
    host.sh(&format!("ip addr add {address}/24 dev eth0"));
}

/// Installs hubs, and servers that have all hubs in their settings, each in another order.
fn hubs_and_servers(rig: &Rig, hubs: &[&str], install: impl Fn(Host<'_>), servers: &[&str]) {
    // A server would go on to the next hub if its own hub still had its last connection.
    for server in rig.hosts(servers) {
        server.sh("systemctl stop f2bmqttsub");
    }
    for (number, hub) in rig.hosts(hubs).into_iter().enumerate() {
        address(hub, &hub_address(number));
    }
    rig.hosts(hubs).into_iter().for_each(install);
    for hub in rig.hosts(hubs) {
        within(FAILOVER_LIMIT, "the hub accepts messages", || {
            hub.try_sh(
                "timeout 5 mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 -t probe -m x",
            )
            .is_ok()
        });
    }
    for (number, server) in rig.hosts(servers).into_iter().enumerate() {
        address(server, &format!("192.168.1.{}", 101 + number));
        let brokers: Vec<_> =
            (0..hubs.len()).map(|n| hub_address((n + number) % hubs.len())).collect();
        set(server, "MQTT_HOST", &brokers.join(","));
        let what = format!("{} is connected to its first hub", server.name);
        within(FAILOVER_LIMIT, &what, || is_connected(server, &brokers[0]));
    }
}

fn is_connected(host: Host<'_>, broker: &str) -> bool {
    host.journal()
        .lines()
        .rfind(|line| line.contains("the broker "))
        .is_some_and(|line| line.starts_with(&format!("connected to the broker {broker}:1883")))
}

/// Makes a host one of two bridged hubs.
fn install_bridged(hub: Host<'_>) {
    install(hub, "mosquitto", &block("hub"));
    if hub.name == "hub2" {
        install(hub, "mosquitto", &block("bridge"));
    }
}

/// Kills one of two bridged hubs, to each of which one server is connected.
fn kill_one_bridged_hub(rig: &Rig) {
    let (hub1, hub2, a, b) = (rig.host("hub1"), rig.host("hub2"), rig.host("a"), rig.host("b"));
    hubs_and_servers(rig, &["hub1", "hub2"], install_bridged, &["a", "b"]);
    // Each event crosses the bridge once, in both directions.
    test_events(a, b);
    let count = b.journal().matches("Inbound: ban 192.0.2.2 ").count();
    assert_eq!(count, 1, "{}", b.journal());
    for hub in [hub1, hub2] {
        eventually("both hubs have the shard", || retained(hub, "state/a/0").contains("192.0.2.2"));
    }
    test_offline_host(hub2, a, b, "b");

    hub1.rig("kill");
    a.attack("auth", &["192.0.2.5"]);
    assert_all_ban(&[a, b], "192.0.2.5");
    assert!(is_connected(a, "192.168.1.20"), "{}", a.journal());
    eventually("a is online", || has_state(hub2, "a", "online"));
    b.attack("auth", &["192.0.2.6"]);
    assert_all_ban(&[a, b], "192.0.2.6");
}

#[test]
fn fleet_survives_death_of_one_bridged_mosquitto() {
    kill_one_bridged_hub(&boot("bookworm", &["hub1", "hub2", "a", "b"]));
}

#[test]
#[ignore = "takes up to ten minutes: tests/long"]
fn restarted_bridged_hub_receives_all_state_again() {
    let rig = boot("bookworm", &["hub1", "hub2", "a", "b"]);
    let (hub1, hub2, a, b) = (rig.host("hub1"), rig.host("hub2"), rig.host("a"), rig.host("b"));
    kill_one_bridged_hub(&rig);
    // The hub restarts with some or all of its earlier data.
    hub1.rig("boot");
    hub1.sh("systemctl stop f2bmqttsub fail2ban");
    hub1.sh("systemctl start mosquitto");
    let mut last = <[[String; 4]; 2]>::default();
    let are_complete = support::becomes(SNAPSHOT_INTERVAL_MAX, || {
        last = [hub1, hub2].map(retained_state);
        last.iter().all(is_complete)
    });
    assert!(are_complete, "{last:#?}\na: {}\nb: {}", a.journal(), b.journal());
    for address in ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"] {
        assert_all_ban(&[a, b], address);
    }
    // A host that joins at this hub has all bans, and its own bans cross the bridge.
    set(hub1, "MQTT_HOST", "192.168.1.10");
    hub1.sh("systemctl start fail2ban f2bmqttsub");
    for address in ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"] {
        assert_all_ban(&[hub1], address);
    }
    hub1.attack("auth", &["192.0.2.7"]);
    assert_all_ban(&[a, b], "192.0.2.7");
}

/// The retained shards and presences of `a` and `b` on a hub.
fn retained_state(hub: Host<'_>) -> [String; 4] {
    ["state/a/0", "state/b/0", "host/a", "host/b"].map(|topic| retained(hub, topic))
}

/// Whether a hub's state has the bans of the test that kills a hub, and both hosts online.
fn is_complete([a, b, presence_a, presence_b]: &[String; 4]) -> bool {
    let online = r#""state":"online""#;
    ["192.0.2.2", "192.0.2.5"].iter().all(|address| a.contains(address))
        && ["192.0.2.3", "192.0.2.6"].iter().all(|address| b.contains(address))
        && presence_a.contains(online)
        && presence_b.contains(online)
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn stale_last_will_from_other_hub_is_corrected() {
    let rig = boot("bookworm", &["hub1", "hub2", "a"]);
    let (hub2, a) = (rig.host("hub2"), rig.host("a"));
    let (first, second) = ("192.168.1.10", "192.168.1.20");
    hubs_and_servers(&rig, &["hub1", "hub2"], install_bridged, &["a"]);
    eventually("a is online", || has_state(hub2, "a", "online"));
    a.sh(&format!("iptables -A OUTPUT -d {first} -j DROP; iptables -A INPUT -s {first} -j DROP"));
    within(FAILOVER_LIMIT, "a is connected to the other hub", || is_connected(a, second));
    // By then the last will of the first hub has crossed the bridge.
    std::thread::sleep(Duration::from_secs(30));
    assert!(has_state(hub2, "a", "online"), "{}", retained(hub2, "host/a"));
}

/// Makes a host one of three NATS servers.
fn install_cluster_node(hub: Host<'_>) {
    let name = format!("server_name: {}", hub.name);
    let commands = block("cluster").replace("server_name: hub1", &name);
    install(hub, "nats", &commands);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fleet_survives_death_of_one_of_three_nats_servers() {
    let hubs = ["hub1", "hub2", "hub3"];
    let rig = boot("trixie", &[&hubs[..], &["a", "b"]].concat());
    let (a, b) = (rig.host("a"), rig.host("b"));
    let brokers = ["192.168.1.10", "192.168.1.20", "192.168.1.30"];
    hubs_and_servers(&rig, &hubs, install_cluster_node, &["a", "b"]);
    test_events(a, b);
    test_offline_host(rig.host("hub3"), a, b, "b");
    // A server dies while bans are published.
    let early: Vec<_> = (1..=20).map(|n| format!("198.51.100.{n}")).collect();
    let late: Vec<_> = (21..=40).map(|n| format!("198.51.100.{n}")).collect();
    for (n, address) in early.iter().enumerate() {
        if n == 10 {
            rig.host("hub1").rig("kill");
        }
        a.attack("auth", &[address]);
    }
    for address in &late {
        b.attack("auth", &[address]);
    }
    for address in early.iter().chain(&late) {
        assert_all_ban(&[a, b], address);
    }
    assert!(!is_connected(a, brokers[0]));
    // A host that joins gets all bans from the two remaining servers.
    let joining = rig.host("hub3");
    set(joining, "MQTT_HOST", brokers[2]);
    joining.sh("systemctl start fail2ban f2bmqttsub");
    for address in early.iter().chain(&late) {
        assert_all_ban(&[joining], address);
    }
    // The dead server comes back, and then another one may die.
    let first = rig.host("hub1");
    first.rig("boot");
    first.sh("systemctl stop f2bmqttsub fail2ban");
    first.sh("systemctl start nats-server");
    eventually("the server listens", || first.try_sh("ss -Hltn | grep -q :1883").is_ok());
    within(FAILOVER_LIMIT, "the server has caught up", || {
        retained(first, "state/b/0").contains("198.51.100.40")
    });
    rig.host("hub2").rig("kill");
    b.attack("auth", &["203.0.113.1"]);
    assert_all_ban(&[a, b], "203.0.113.1");
}
