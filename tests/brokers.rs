//! Which brokers carry a fleet, and how well: every cell of the table in docs/brokers.md. Each
//! broker is set up by the commands in the docs.

mod support;

use std::time::Duration;

use support::docs::block;
use support::{Host, Rig, eventually, fleet_root, within};

/// How long a server may take to find another broker after its own lost its power: it falls silent,
/// is tried again, and the next is tried.
const FAILOVER: Duration = Duration::from_secs(90);

/// What a bridge lost, the next snapshot of each server brings.
const NEXT_SNAPSHOT: Duration = Duration::from_mins(11);

/// A broker on a hub of its own.
struct Kind {
    suite: &'static str,
    /// The name of its commands in the docs, and the examples that these use.
    commands: &'static str,
    examples: &'static str,
    service: &'static str,
    /// What a server may be called there.
    name: &'static str,
    /// It hands out what it keeps for a topic with a wildcard.
    hands_out: bool,
    /// What it keeps outlives a `kill -9`.
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

/// Boots hosts that have all brokers, of which none runs.
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

/// Makes a host a hub, by commands in the docs.
fn install(hub: Host<'_>, examples: &str, commands: &str) {
    let commands = commands.replace("choose-your-own", "fail2ban");
    hub.sh(&format!("cd /usr/share/doc/f2bmqtt/examples/{examples}; set -e; {commands}"));
}

/// Sets a key of a host's settings, and starts the service anew.
fn set(host: Host<'_>, key: &str, value: &str) {
    host.sh(&format!(
        "sed -i '/^{key}=/d' /etc/fail2ban/mqtt.env
         echo {key}={value} >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub"
    ));
}

/// What a hub keeps on a topic.
fn kept(hub: Host<'_>, topic: &str) -> String {
    hub.try_sh(&format!(
        "mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 -C 1 -W 3 -t f2bmqtt/blacklist/{topic}"
    ))
    .unwrap_or_default()
}

/// Ends the daemon at once, and it is not started again by itself.
fn kill_daemon(host: Host<'_>) {
    host.sh("mkdir -p /run/systemd/system/f2bmqttsub.service.d
             printf '[Service]\nRestart=no\n' >/run/systemd/system/f2bmqttsub.service.d/dead.conf
             systemctl daemon-reload; systemctl kill -s KILL f2bmqttsub
             until ! systemctl is-active -q f2bmqttsub; do sleep 0.05; done");
}

fn all_ban(hosts: &[Host<'_>], address: &str) {
    for host in hosts {
        let what = format!("{} bans {address}", host.name);
        within(FAILOVER, &what, || host.bans("sshd", address));
    }
}

/// Everything that is asked of a broker, in the order of the table's columns.
fn carries_a_fleet(kind: &Kind) {
    let rig = boot(kind.suite, &["hub", "a", "b"]);
    let (hub, a, b) = (rig.host("hub"), rig.host("a"), rig.host("b"));
    install(hub, kind.examples, &block(kind.commands));
    set(b, "MQTT_NODE", kind.name);
    a.ready();
    b.ready();
    // It publishes, and has the broker keep something, in its own way.
    eventually("nothing is amiss", || a.try_sh("f2bmqtt check").is_ok());
    events(a, b);
    a_host_that_was_away(hub, a, b, kind.name);
    a_broker_that_is_killed(hub, a, b, kind);
    a_host_that_joins(hub, kind);
    the_fleet_is_seen(hub, kind.name);
    a_wrong_password(a);
    if kind.service == RABBITMQ.service {
        a_topic_that_is_forbidden(hub, a);
    }
    signed(hub, a, b, kind);
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
fn events(a: Host<'_>, b: Host<'_>) {
    a.attack("auth", &["192.0.2.1", "192.0.2.2"]);
    all_ban(&[a, b], "192.0.2.1");
    all_ban(&[a, b], "192.0.2.2");
    a.sh("fail2ban-client set sshd unbanip 192.0.2.1");
    eventually("b frees it", || !b.bans("sshd", "192.0.2.1"));
    assert!(b.bans("sshd", "192.0.2.2"));
    b.attack("auth", &["192.0.2.3"]);
    all_ban(&[a, b], "192.0.2.3");
}

/// The broker speaks its last will, and keeps what comes meanwhile.
fn a_host_that_was_away(hub: Host<'_>, a: Host<'_>, b: Host<'_>, name: &str) {
    let state = || kept(hub, &format!("host/{name}"));
    eventually("b is online", || state().contains(r#""state":"online""#));
    kill_daemon(b);
    eventually("b is offline", || state().contains(r#""state":"offline""#));
    a.attack("auth", &["192.0.2.4"]);
    all_ban(&[a], "192.0.2.4");
    eventually("it is published", || a.sh("ls /var/lib/f2bmqtt/spool").is_empty());
    b.sh("systemctl start f2bmqttsub");
    all_ban(&[b], "192.0.2.4");
    eventually("b heard the event", || b.journal().contains("Inbound: ban 192.0.2.4"));
    eventually("b is online again", || state().contains(r#""state":"online""#));
}

fn a_broker_that_is_killed(hub: Host<'_>, a: Host<'_>, b: Host<'_>, kind: &Kind) {
    let service = kind.service;
    hub.sh(&format!("systemctl kill -s KILL {service}; systemctl stop {service}"));
    a.attack("auth", &["192.0.2.5"]);
    all_ban(&[a], "192.0.2.5");
    hub.sh(&format!("systemctl start {service}"));
    all_ban(&[b], "192.0.2.5");
    if kind.durable {
        let part = || kept(hub, "state/a/0");
        eventually("a's part has it", || part().contains("192.0.2.5"));
        // RabbitMQ writes it to its disk some seconds later.
        hub.sh("sleep 8");
        a.sh("systemctl stop f2bmqttsub");
        hub.sh(&format!(
            "systemctl kill -s KILL {service}; systemctl stop {service}; systemctl start {service}"
        ));
        eventually("the broker still has it", || part().contains("192.0.2.5"));
        a.sh("systemctl start f2bmqttsub");
    }
}

/// A host that the broker has never seen, and keeps nothing for.
fn a_host_that_joins(hub: Host<'_>, kind: &Kind) {
    eventually("a is back", || kept(hub, "host/a").contains(r#""state":"online""#));
    hub.sh("systemctl start fail2ban f2bmqttsub");
    if !kind.hands_out {
        // It knows of nobody before somebody speaks. This is what each says every some minutes.
        hub.ready();
        for name in ["a", kind.name] {
            hub.sh(&format!(
                "mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 -t f2bmqtt/blacklist/host/{name} \
                 -m '{{\"v\":1,\"state\":\"online\"}}'"
            ));
        }
    }
    for address in ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"] {
        all_ban(&[hub], address);
    }
    assert!(!hub.bans("sshd", "192.0.2.1"));
}

/// By a command that comes and goes, on a host that holds bans of all others.
fn the_fleet_is_seen(hub: Host<'_>, name: &str) {
    let figures = |command: &str| -> serde_json::Value {
        serde_json::from_str(&hub.sh(&format!("f2bmqtt {command} --json"))).unwrap()
    };
    let all = |list: &serde_json::Value, field: &str| -> Vec<String> {
        let of = |one: &serde_json::Value| one[field].as_str().unwrap().to_owned();
        list.as_array().unwrap().iter().map(of).collect()
    };
    let status = figures("status");
    assert_eq!(all(&status["hosts"], "host"), ["a", name, "hub"]);
    assert_eq!(all(&status["hosts"], "state"), ["online"; 3]);
    // A busy RabbitMQ may hand out a part of it within the command's four seconds.
    eventually("list has every ban", || {
        all(&figures("list")["bans"], "ip") == ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"]
    });
}

fn a_wrong_password(a: Host<'_>) {
    set(a, "MQTT_PASSWORD", "wrong");
    let said = "the broker rejected the login; check MQTT_USER and MQTT_PASSWORD";
    eventually(said, || a.journal().contains(said));
    set(a, "MQTT_PASSWORD", "fail2ban");
    eventually("it is let in", || a.journal().contains("connected to the broker"));
}

/// `RabbitMQ` hangs up on whoever publishes where he may not: `check` finds out where that was.
fn a_topic_that_is_forbidden(hub: Host<'_>, a: Host<'_>) {
    let cases =
        [("unban|state|host", "blacklist/ban"), ("ban|unban|state", "f2bmqtt/blacklist/host/a")];
    for (allowed, forbidden) in cases {
        hub.sh(&format!(
            "rabbitmqctl set_topic_permissions fail2ban amq.topic '^(f2bmqtt.)?blacklist.({allowed})' '^(f2bmqtt.)?blacklist'"
        ));
        let said = format!("closes the connection when this host publishes on {forbidden}\n");
        let text = a.try_sh("f2bmqtt check").unwrap_err();
        let next = format!("    the broker's access rules must let fail2ban write {forbidden}\n");
        assert!(text.contains(&said) && text.contains(&next), "{text}");
    }
    hub.sh("rabbitmqctl clear_topic_permissions fail2ban");
    eventually("it may again", || a.try_sh("f2bmqtt check").is_ok());
}

/// What is signed passes unchanged, and the topic, which is signed with it.
fn signed(hub: Host<'_>, a: Host<'_>, b: Host<'_>, kind: &Kind) {
    for host in [a, b] {
        set(host, "MQTT_SIGNING_KEY", "0123456789abcdef0123456789abcdef");
    }
    a.ready();
    b.ready();
    b.attack("auth", &["192.0.2.8"]);
    all_ban(&[a, b], "192.0.2.8");
    let part = || kept(hub, &format!("state/{}/0", kind.name));
    eventually("b's part is signed", || part().contains("192.0.2.8") && part().contains("sig"));
    let journal = a.journal();
    assert!(!journal.contains("the signature does not match"), "{journal}");
}

#[test]
fn rabbitmq_3_10() {
    carries_a_fleet(&RABBITMQ);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn rabbitmq_4_0() {
    carries_a_fleet(&Kind { suite: "trixie", ..RABBITMQ });
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn nats_2_9() {
    carries_a_fleet(&NATS);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn nats_2_10() {
    carries_a_fleet(&Kind { suite: "trixie", name: "b.example.org", ..NATS });
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn mosquitto_2_0() {
    carries_a_fleet(&MOSQUITTO);
}

/// Gives a host an address of the network in the docs.
fn address(host: Host<'_>, address: &str) {
    host.sh(&format!("ip addr add {address}/24 dev eth0"));
}

/// Hubs at 192.168.1.10, .20 and so on, by commands that know their names, and servers that know them all,
/// each in an order of its own.
fn hubs_and_servers(rig: &Rig, hubs: &[&str], install: impl Fn(Host<'_>), servers: &[&str]) {
    let at = |number| format!("192.168.1.{}", 10 * (number + 1));
    // A hub that still deals with a server's last connection sends it to the next hub.
    for server in rig.hosts(servers) {
        server.sh("systemctl stop f2bmqttsub");
    }
    for (number, hub) in rig.hosts(hubs).into_iter().enumerate() {
        address(hub, &at(number));
    }
    rig.hosts(hubs).into_iter().for_each(install);
    for hub in rig.hosts(hubs) {
        within(FAILOVER, "it takes messages", || {
            hub.try_sh(
                "timeout 5 mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 -t probe -m x",
            )
            .is_ok()
        });
    }
    for (number, server) in rig.hosts(servers).into_iter().enumerate() {
        address(server, &format!("192.168.1.{}", 101 + number));
        let brokers: Vec<_> = (0..hubs.len()).map(|n| at((n + number) % hubs.len())).collect();
        set(server, "MQTT_HOST", &brokers.join(","));
        let what = format!("{} is at its own hub", server.name);
        within(FAILOVER, &what, || is_connected(server, &brokers[0]));
    }
}

fn is_connected(host: Host<'_>, broker: &str) -> bool {
    host.journal()
        .lines()
        .rfind(|line| line.contains("the broker "))
        .is_some_and(|line| line.starts_with(&format!("connected to the broker {broker}:1883")))
}

/// Makes a host one of two bridged hubs.
fn bridged(hub: Host<'_>) {
    install(hub, "mosquitto", &block("hub"));
    if hub.name == "hub2" {
        install(hub, "mosquitto", &block("bridge"));
    }
}

/// Two hubs with a bridge, and two servers that each have one of them: the first hub dies.
fn one_of_two_bridged_dies(rig: &Rig) {
    let (hub1, hub2, a, b) = (rig.host("hub1"), rig.host("hub2"), rig.host("a"), rig.host("b"));
    hubs_and_servers(rig, &["hub1", "hub2"], bridged, &["a", "b"]);
    // Across the bridge, both ways, and once.
    events(a, b);
    let heard = b.journal().matches("Inbound: ban 192.0.2.2 ").count();
    assert_eq!(heard, 1, "{}", b.journal());
    for hub in [hub1, hub2] {
        eventually("both hubs keep it", || kept(hub, "state/a/0").contains("192.0.2.2"));
    }
    a_host_that_was_away(hub2, a, b, "b");

    hub1.rig("kill");
    a.attack("auth", &["192.0.2.5"]);
    all_ban(&[a, b], "192.0.2.5");
    assert!(is_connected(a, "192.168.1.20"), "{}", a.journal());
    eventually("a is online", || kept(hub2, "host/a").contains(r#""state":"online""#));
    b.attack("auth", &["192.0.2.6"]);
    all_ban(&[a, b], "192.0.2.6");
}

#[test]
fn fleet_survives_death_of_one_bridged_mosquitto() {
    one_of_two_bridged_dies(&boot("bookworm", &["hub1", "hub2", "a", "b"]));
}

#[test]
#[ignore = "takes up to ten minutes: tests/long"]
fn restarted_bridged_hub_receives_all_state_again() {
    let rig = boot("bookworm", &["hub1", "hub2", "a", "b"]);
    let (hub1, hub2, a, b) = (rig.host("hub1"), rig.host("hub2"), rig.host("a"), rig.host("b"));
    one_of_two_bridged_dies(&rig);
    // It comes back with what it knew before, or less.
    hub1.rig("boot");
    hub1.sh("systemctl stop f2bmqttsub fail2ban");
    hub1.sh("systemctl start mosquitto");
    let whole = |hub| {
        let (of_a, of_b) = (kept(hub, "state/a/0"), kept(hub, "state/b/0"));
        of_a.contains("192.0.2.2")
            && of_a.contains("192.0.2.5")
            && of_b.contains("192.0.2.3")
            && of_b.contains("192.0.2.6")
            && ["a", "b"]
                .iter()
                .all(|host| kept(hub, &format!("host/{host}")).contains(r#""state":"online""#))
    };
    let all_kept = support::becomes(NEXT_SNAPSHOT, || whole(hub1) && whole(hub2));
    let keep = |hub| ["state/a/0", "state/b/0", "host/a", "host/b"].map(|topic| kept(hub, topic));
    assert!(
        all_kept,
        "{:#?}\n{:#?}\na: {}\nb: {}",
        keep(hub1),
        keep(hub2),
        a.journal(),
        b.journal()
    );
    for address in ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"] {
        all_ban(&[a, b], address);
    }
    // Who joins there has it all, and its own words cross the bridge again.
    set(hub1, "MQTT_HOST", "192.168.1.10");
    hub1.sh("systemctl start fail2ban f2bmqttsub");
    for address in ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"] {
        all_ban(&[hub1], address);
    }
    hub1.attack("auth", &["192.0.2.7"]);
    all_ban(&[a, b], "192.0.2.7");
}

/// A server that lost its link to one hub, and not its life, is seen as online.
#[test]
#[ignore = "takes minutes: tests/long"]
fn stale_last_will_from_other_hub_is_corrected() {
    let rig = boot("bookworm", &["hub1", "hub2", "a"]);
    let (hub2, a) = (rig.host("hub2"), rig.host("a"));
    let (first, second) = ("192.168.1.10", "192.168.1.20");
    hubs_and_servers(&rig, &["hub1", "hub2"], bridged, &["a"]);
    let state = |state: &str| kept(hub2, "host/a").contains(&format!(r#""state":"{state}""#));
    eventually("a is online", || state("online"));
    a.sh(&format!("iptables -A OUTPUT -d {first} -j DROP; iptables -A INPUT -s {first} -j DROP"));
    within(FAILOVER, "it is connected to the other", || is_connected(a, second));
    // Both hubs' words on it have come by now.
    std::thread::sleep(Duration::from_secs(30));
    assert!(state("online"), "{}", kept(hub2, "host/a"));
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn fleet_survives_death_of_one_of_three_nats_servers() {
    let hubs = ["hub1", "hub2", "hub3"];
    let rig = boot("trixie", &[&hubs[..], &["a", "b"]].concat());
    let (a, b) = (rig.host("a"), rig.host("b"));
    let brokers = ["192.168.1.10", "192.168.1.20", "192.168.1.30"];
    let node = |hub: Host<'_>| {
        let name = format!("server_name: {}", hub.name);
        let commands = block("cluster").replace("server_name: hub1", &name);
        install(hub, "nats", &commands);
    };
    hubs_and_servers(&rig, &hubs, node, &["a", "b"]);
    events(a, b);
    a_host_that_was_away(rig.host("hub3"), a, b, "b");
    // Bans happen all the while.
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
        all_ban(&[a, b], address);
    }
    assert!(!is_connected(a, brokers[0]));
    // Who joins now has it all from the two that are left.
    let joins = rig.host("hub3");
    set(joins, "MQTT_HOST", brokers[2]);
    joins.sh("systemctl start fail2ban f2bmqttsub");
    for address in early.iter().chain(&late) {
        all_ban(&[joins], address);
    }
    // The one that died comes back, and the next may die.
    let first = rig.host("hub1");
    first.rig("boot");
    first.sh("systemctl stop f2bmqttsub fail2ban");
    first.sh("systemctl start nats-server");
    eventually("it listens", || first.try_sh("ss -Hltn | grep -q :1883").is_ok());
    within(FAILOVER, "it has caught up", || kept(first, "state/b/0").contains("198.51.100.40"));
    rig.host("hub2").rig("kill");
    b.attack("auth", &["203.0.113.1"]);
    all_ban(&[a, b], "203.0.113.1");
}
