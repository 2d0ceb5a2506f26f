//! Malformed messages and floods over real MQTT: none of them reaches fail2ban, the daemon stays small, and honest bans
//! are imported meanwhile.

mod support;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{Host, Rig, becomes, eventually, within};

fn push_script(host: Host<'_>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/hostile.py");
    host.push(&file, "/root/hostile.py");
}

/// Publishes messages with any bytes.
fn send(rig: &Rig, messages: &[(bool, String, Vec<u8>)]) {
    let mut lines = String::new();
    for (retain, topic, payload) in messages {
        let _ = write!(lines, "{} {topic} ", u8::from(*retain));
        for byte in payload {
            let _ = write!(lines, "{byte:02x}");
        }
        lines.push('\n');
    }
    let mut command = rig.command(&["sh", "hub", "python3 /root/hostile.py send 127.0.0.1"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// The memory of the daemon, in KiB.
fn memory(host: Host<'_>) -> u64 {
    let show = "awk '/VmRSS/ { print $2 }' /proc/$(systemctl show -P MainPID f2bmqttsub)/status";
    host.sh(show).parse().unwrap()
}

fn processor(host: Host<'_>) -> Duration {
    let spent = host.sh("systemctl show -P CPUUsageNSec f2bmqttsub");
    Duration::from_nanos(spent.parse().unwrap())
}

/// Texts that replace an address or a name in a message.
const TEXTS: [&str; 30] = [
    "0.0.0.0/0",
    "198.18.0.0/28",
    "198.18.0.1-198.18.0.9",
    "198.18.0.1,198.18.0.2",
    "198.18.0.1 198.18.0.2",
    "localhost",
    "web1.example.org",
    "fe80::1%eth0",
    "::ffff:127.0.0.1",
    "::ffff:10.213.77.12",
    "10.213.77.12",
    "10.213.77.11",
    "127.0.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "169.254.0.1",
    "ff02::1",
    "0306.0022.0.1",
    "0xc6120001",
    "3323068417",
    "198.18.1",
    "198.018.0.1",
    "\\u0661\\u0669\\u0668.18.0.1",
    "198\\u2024 18.0.1",
    "198.18.0.1\\u0000",
    "198.18.0.1\\n",
    "198.18.0.1; reboot",
    "$(reboot)",
    "198.18.0.1' OR '1'='1",
    "",
];

/// JSON values that replace a value in a message.
const VALUES: [&str; 8] = ["null", "true", "7", "-1", "1e400", "[]", "{}", "[\"198.18.0.1\"]"];

const EVENT: &str = r#"{"action":"ban","ipmset":"sshd","ip":"198.18.0.1","bantime":600000000,"host":"evil","restored":0,"failures":3,"time":1795342588,"stamp":1795342588123}"#;
const SHARD: &str = r#"{"v":1,"host":"evil","stamp":1795342588123,"part":0,"parts":1,"bans":[["sshd","198.18.0.1",1795342588,600000000]],"unbans":[]}"#;
const PRESENCE: &str = r#"{"v":1,"state":"online","version":"1","jails":["sshd"],"bans":1,"machine":"x","since":1,"imported":1,"rejected":{"old":1}}"#;

/// A valid message: its topic, its payload, a name or address in the payload, the required fields, and other values.
type Honest =
    (&'static str, &'static str, &'static str, &'static [&'static str], &'static [&'static str]);

/// The malformations of one valid message.
fn malformations((_, message, address, needed, values): Honest) -> Vec<Vec<u8>> {
    let mut payloads: Vec<Vec<u8>> = Vec::new();
    for field in needed {
        payloads.push(message.replacen(&format!("\"{field}\":"), "\"other\":", 1).into());
    }
    for text in TEXTS {
        payloads.push(message.replacen(address, &format!("\"{text}\""), 1).into());
    }
    for place in [address].iter().chain(values) {
        for value in VALUES {
            payloads.push(message.replacen(place, value, 1).into());
        }
        payloads.push(message.replacen(place, &format!("\"{}\"", "x".repeat(2_000)), 1).into());
        payloads.push(message.replacen(place, "\"\u{202e}\u{200b}dhss\"", 1).into());
    }
    let first = message.split_once(',').unwrap().0.trim_start_matches('{');
    payloads.push(format!("{{{first},{}", &message[1..]).into());
    payloads.push(format!("{message}{message}").into());
    payloads.push([message.as_bytes(), b"\0"].concat());
    payloads.push(message.as_bytes()[..message.len() - 1].to_vec());
    payloads.push([&[0xef, 0xbb, 0xbf], message.as_bytes()].concat());
    payloads.push(message.replacen("sshd", "\u{fffd}", 1).replace('\u{fffd}', "\u{0}").into());
    payloads.push(message.bytes().map(|b| if b == b'd' { 0xff } else { b }).collect());
    payloads.push(message.encode_utf16().flat_map(u16::to_be_bytes).collect());
    payloads.push(format!("{}{}", "[".repeat(50_000), "]".repeat(50_000)).into());
    payloads.push(format!("{{\"x\":{}1{}}}", "{\"x\":".repeat(5_000), "}".repeat(5_000)).into());
    payloads
        .push(message.replacen('{', &format!("{{\"x\":\"{}\",", "x".repeat(200_000)), 1).into());
    payloads.push(b"{}".to_vec());
    payloads.push(b"null".to_vec());
    payloads
}

/// The three kinds of messages, with each malformation. Stamps grow from `stamp` on, so that none is ignored as old.
fn malformed_messages(stamp: u64) -> Vec<(bool, String, Vec<u8>)> {
    let places: [Honest; 3] = [
        (
            "blacklist/ban",
            EVENT,
            r#""198.18.0.1""#,
            &["action", "ipmset", "ip", "host"],
            &[r#""ban""#, r#""sshd""#, r#""evil""#],
        ),
        (
            "f2bmqtt/blacklist/state/evil/0",
            SHARD,
            r#""198.18.0.1""#,
            &["v", "host", "stamp", "parts"],
            &[r#"["sshd","198.18.0.1",1795342588,600000000]"#, r#""evil""#, "1795342588123"],
        ),
        (
            "f2bmqtt/blacklist/host/evil",
            PRESENCE,
            r#""sshd""#,
            &["v", "state"],
            &[r#""online""#, r#"{"old":1}"#],
        ),
    ];
    let mut table = Vec::new();
    for honest in places {
        let topic = honest.0;
        for payload in malformations(honest) {
            table.push((topic.contains("/e"), topic.to_owned(), payload));
        }
    }
    // Valid messages on wrong topics.
    let of_another = SHARD.replacen("\"evil\"", "\"other\"", 1);
    table.push((false, "f2bmqtt/blacklist/state/evil/0".to_owned(), of_another.into()));
    for topic in [
        "f2bmqtt/blacklist/state/other/0",
        "f2bmqtt/blacklist/state/evil/1",
        "f2bmqtt/blacklist/state/evil/-1",
    ] {
        table.push((false, topic.to_owned(), SHARD.into()));
    }
    for topic in [
        "f2bmqtt/blacklist/state/evil",
        "f2bmqtt/blacklist/state/evil/0/0",
        "f2bmqtt/blacklist/host/evil/more",
    ] {
        table.push((false, topic.to_owned(), EVENT.into()));
    }
    for ((_, _, payload), stamp) in table.iter_mut().zip(stamp..) {
        const STAMP: &[u8] = b"1795342588123";
        if let Some(at) = payload.windows(STAMP.len()).position(|window| window == STAMP) {
            payload[at..at + STAMP.len()].copy_from_slice(format!("{stamp:013}").as_bytes());
        }
    }
    table
}

#[test]
fn malformed_messages_never_reach_fail2ban() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    push_script(hub);
    hub.publish_event("ban", "sshd", "192.0.2.1", "old1");
    eventually("a bans it", || a.bans("sshd", "192.0.2.1"));
    // The first round grows the daemon's buffers. The memory of later rounds is compared with that.
    let count = malformed_messages(0).len();
    println!("{count} messages");
    send(&rig, &malformed_messages(1_795_342_588_000));
    let (before, started) = (memory(a), processor(a));
    for round in 1..5 {
        send(&rig, &malformed_messages(1_795_342_588_000 + round * 1_000));
    }
    hub.publish_event("ban", "sshd", "192.0.2.2", "old1");
    eventually("a imports an honest ban", || a.bans("sshd", "192.0.2.2"));
    assert_eq!(a.sh("fail2ban-client get sshd banip"), "192.0.2.1 192.0.2.2");
    assert_eq!(a.sh("fail2ban-client get web banip"), "");
    let grown = memory(a).saturating_sub(before);
    assert!(grown < 4 * 1024, "{grown} KiB more");
    let spent = processor(a).checked_sub(started).unwrap();
    println!("{spent:?} for {} messages, {grown} KiB more", count * 4);
    assert!(spent < Duration::from_secs(10), "{spent:?}");
    // After the messages the daemon is idle.
    let started = processor(a);
    std::thread::sleep(Duration::from_secs(4));
    let spent = processor(a).checked_sub(started).unwrap();
    assert!(spent < Duration::from_millis(800), "{spent:?} in 4 s");
    let journal = a.journal();
    assert!(journal.len() < 60_000, "{} bytes", journal.len());
    let is_printable =
        journal.lines().all(|line| !line.contains(f2bmqtt::model::text::is_unsafe_for_display));
    assert!(is_printable && !journal.contains("panicked"), "{journal}");
    assert!(journal.contains("rejected invalid event on blacklist/ban: missing field `ip`"));
    assert_eq!(a.sh("systemctl show -P NRestarts f2bmqttsub"), "0");
    // The presence counts the rejected messages, within a minute.
    let mut presence = String::new();
    within(Duration::from_mins(2), "the presence counts the rejections", || {
        let sub = "mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -C 1 -W 5 -t f2bmqtt/blacklist/host/a";
        presence = hub.try_sh(sub).unwrap_or_default();
        let malformed = presence.split_once(r#""malformed":"#);
        let malformed = malformed.and_then(|(_, rest)| rest.split(['}', ',']).next());
        malformed
            .and_then(|number| number.parse::<usize>().ok())
            .is_some_and(|malformed| malformed > count * 3)
    });
    for reason in ["wrong_topic", "unbannable", "ignored", "unknown_action"] {
        assert!(presence.contains(&format!("\"{reason}\":")), "{reason}: {presence}");
    }
}

#[test]
fn non_mqtt_broker_costs_only_the_connection() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    push_script(hub);
    hub.sh("systemd-run -q -u evil -p StandardOutput=append:/root/evil python3 -u /root/hostile.py serve 1999");
    eventually("the broker listens", || hub.try_sh("ss -Hltn | grep -q :1999").is_ok());
    a.sh(
        "sed -i 's/^MQTT_HOST=.*/MQTT_HOST=10.213.77.11:1999,10.213.77.11/' /etc/fail2ban/mqtt.env
          systemctl restart f2bmqttsub",
    );
    within(Duration::from_mins(5), "the broker has tried all tricks", || {
        hub.sh("cat /root/evil").contains("all tried")
    });
    let connected = "connected to the broker 10.213.77.11:1883";
    within(Duration::from_mins(1), connected, || a.journal().contains(connected));
    hub.publish_event("ban", "sshd", "192.0.2.2", "old1");
    eventually("a imports an honest ban", || a.bans("sshd", "192.0.2.2"));
    assert_eq!(a.sh("systemctl show -P NRestarts f2bmqttsub"), "0", "{}", a.journal());
    assert!(memory(a) < 20 * 1024);
}

/// A client publishes `what` as fast as possible. Returns how many messages per second it sent.
fn flood(what: &str, seconds: u32, rate: u32) -> u64 {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    push_script(hub);
    b.attack("auth", &["192.0.2.1"]);
    let rate = assert_survives(
        a,
        hub,
        &format!("flood 127.0.0.1 {what} {seconds} {rate}"),
        "192.0.2.1",
        || {},
    );
    b.attack("auth", &["192.0.2.2"]);
    within(Duration::from_mins(1), "192.0.2.2 is banned", || a.bans("sshd", "192.0.2.2"));
    rate
}

/// While the hub floods `a`, fail2ban on `a` answers and `a` imports an honest ban. Runs `begin` when the flood has
/// started. Returns how many messages per second the flood has.
fn assert_survives(
    a: Host<'_>,
    hub: Host<'_>,
    how: &str,
    honest: &str,
    begin: impl FnOnce(),
) -> u64 {
    hub.sh(&format!(
        "systemd-run -q -u flood -p StandardOutput=append:/root/flood python3 -u /root/hostile.py {how}"
    ));
    begin();
    let (mut result, mut most, mut slowest) = (String::new(), 0, Duration::ZERO);
    within(Duration::from_mins(3), "the flood has ended", || {
        most = most.max(memory(a));
        let asked = Instant::now();
        a.sh("fail2ban-client ping");
        slowest = slowest.max(asked.elapsed());
        result = hub.sh("cat /root/flood");
        !result.is_empty()
    });
    // fail2ban is still busy with accepted messages of the flood, but other hosts' bans have their turn.
    within(Duration::from_mins(1), &format!("{honest} is banned"), || a.bans("sshd", honest));
    most = most.max(memory(a));
    println!("{result}: sent, per second; a: {most} KiB at most, ping in {slowest:?} at most");
    assert!(most < 120 * 1024, "{most} KiB");
    assert!(slowest < Duration::from_secs(30), "{slowest:?}");
    let journal = a.journal();
    assert!(!journal.contains("panicked") && journal.lines().count() < 20_000);
    assert_eq!(a.sh("systemctl show -P NRestarts f2bmqttsub"), "0");
    result.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn flooding_client_stops_no_host() {
    flood("networks", 3, 50_000);
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn client_with_50_000_bans_per_second_stops_no_host() {
    let rate = flood("addresses", 10, 50_000);
    println!("{rate} messages a second");
}

/// A broker sends prepared messages, which is faster than a client that publishes them through mosquitto.
fn pour(what: &str) {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    push_script(hub);
    let how = format!("pour 1999 {what} 10 50000");
    let rate = assert_survives(a, hub, &how, "192.0.2.3", || {
        eventually("the broker listens", || hub.try_sh("ss -Hltn | grep -q :1999").is_ok());
        a.sh("sed -i 's/^MQTT_HOST=.*/MQTT_HOST=10.213.77.11:1999,10.213.77.11/' /etc/fail2ban/mqtt.env
              systemctl restart f2bmqttsub");
    });
    println!("{rate} messages a second");
    let connected = "connected to the broker 10.213.77.11:1883";
    within(Duration::from_mins(1), connected, || a.journal().contains(connected));
    b.attack("auth", &["192.0.2.2"]);
    within(Duration::from_mins(1), "192.0.2.2 is banned", || a.bans("sshd", "192.0.2.2"));
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn broker_with_50_000_bans_per_second_stops_no_host() {
    pour("addresses");
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn broker_with_50_000_networks_per_second_stops_no_host() {
    pour("networks");
}

#[test]
fn oversized_message_costs_connection_but_no_ban() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    let large = "head -c 900000 /dev/zero | mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban -q 1 \
                 -t blacklist/ban -s";
    hub.sh(large);
    let presence = "the broker sent a message of more than 256 KiB";
    eventually(presence, || a.journal().contains(presence));
    assert!(becomes(Duration::from_mins(1), || {
        a.journal().matches("connected to the broker").count() == 2
    }));
    hub.publish_event("ban", "sshd", "192.0.2.2", "old1");
    eventually("a imports an honest ban", || a.bans("sshd", "192.0.2.2"));
}

#[test]
fn excluded_jails_and_addresses_are_neither_sent_nor_imported() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    b.sh("printf 'MQTT_NOT_JAILS=web\\nMQTT_NEVER_BAN=198.18.5.0/24\\n' >>/etc/fail2ban/mqtt.env
          systemctl restart f2bmqttsub");
    b.ready();
    // b does not publish detections in a jail that is not shared.
    b.attack("web", &["192.0.2.1"]);
    eventually("b bans it", || b.bans("web", "192.0.2.1"));
    b.attack("auth", &["192.0.2.2"]);
    eventually("a imports b's ban in a shared jail", || a.bans("sshd", "192.0.2.2"));
    // b does not import bans in that jail either.
    a.attack("web", &["192.0.2.3"]);
    a.attack("auth", &["198.18.5.5", "192.0.2.4", "192.0.2.9"]);
    eventually("b imports the other bans", || {
        b.bans("sshd", "192.0.2.4") && b.bans("sshd", "192.0.2.9")
    });
    for line in [
        "rejected ban of 192.0.2.3 in web from a: the jail is not shared on this host",
        "rejected ban of 198.18.5.5 in sshd from a: the address is in MQTT_NEVER_BAN",
    ] {
        eventually(line, || b.journal().contains(line));
    }
    hub.publish(
        "blacklist/unban",
        &format!(
            r#"{{"action":"unban","ipmset":"sshd","ip":"192.0.2.1","host":"c","reason":"fleet","id":"c-{}","jails":"*"}}"#,
            f2bmqtt::sys::clock::now_millis()
        ),
    );
    // The operator exempts an address for a while. Another address becomes the server's own.
    b.sh("fail2ban-client set sshd addignoreip 192.0.2.4; ip addr add 192.0.2.9/32 dev eth0");
    let minutes = Duration::from_mins(3);
    within(minutes, "b releases both", || {
        !b.bans("sshd", "192.0.2.4") && !b.bans("sshd", "192.0.2.9")
    });
    b.sh("fail2ban-client set sshd delignoreip 192.0.2.4");
    within(minutes, "b imports the ban again", || b.bans("sshd", "192.0.2.4"));
    assert_eq!(
        b.sh("fail2ban-client get sshd banip | tr ' ' '\\n' | sort"),
        "192.0.2.2\n192.0.2.4"
    );
    assert_eq!(b.sh("fail2ban-client get web banip"), "192.0.2.1");
    assert_eq!(a.sh("fail2ban-client get web banip"), "192.0.2.3");
    assert!(b.journal().contains("connected to fail2ban; jails: both, sshd; not shared: web"));
}
