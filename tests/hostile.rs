//! What a host is told that nobody honest would say, over real MQTT: it tells fail2ban nothing of it, stays as
//! small as it was, and goes on banning what is honest.

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

/// Publishes messages, whatever bytes they have, in one go.
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

/// The memory that the daemon has now, in KiB.
fn memory(host: Host<'_>) -> u64 {
    let show = "awk '/VmRSS/ { print $2 }' /proc/$(systemctl show -P MainPID f2bmqttsub)/status";
    host.sh(show).parse().unwrap()
}

fn processor(host: Host<'_>) -> Duration {
    let spent = host.sh("systemctl show -P CPUUsageNSec f2bmqttsub");
    Duration::from_nanos(spent.parse().unwrap())
}

/// Texts that take the place of one in a message.
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

/// What is put in the place of a value.
const VALUES: [&str; 8] = ["null", "true", "7", "-1", "1e400", "[]", "{}", "[\"198.18.0.1\"]"];

const EVENT: &str = r#"{"action":"ban","ipmset":"sshd","ip":"198.18.0.1","bantime":600000000,"host":"evil","restored":0,"failures":3,"time":1795342588,"stamp":1795342588123}"#;
const SHARD: &str = r#"{"v":1,"host":"evil","stamp":1795342588123,"part":0,"parts":1,"bans":[["sshd","198.18.0.1",1795342588,600000000]],"unbans":[]}"#;
const PRESENCE: &str = r#"{"v":1,"state":"online","version":"1","jails":["sshd"],"bans":1,"machine":"x","since":1,"imported":1,"rejected":{"old":1}}"#;

/// A message: its topic, its text, the address in it, the fields that it needs, and other values of it.
type Honest =
    (&'static str, &'static str, &'static str, &'static [&'static str], &'static [&'static str]);

/// Each of the three messages, spoilt in each way in which it bans nothing. Stamps grow from `stamp` on: none
/// is ignored because it is old.
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
    let mut malformed_messages = Vec::new();
    for (topic, message, address, needed, values) in places {
        let mut add = |payload: Vec<u8>| {
            malformed_messages.push((topic.contains("/e"), topic.to_owned(), payload))
        };
        for field in needed {
            add(message.replacen(&format!("\"{field}\":"), "\"other\":", 1).into());
        }
        for text in TEXTS {
            add(message.replacen(address, &format!("\"{text}\""), 1).into());
        }
        for place in [address].iter().chain(values) {
            for value in VALUES {
                add(message.replacen(place, value, 1).into());
            }
            add(message.replacen(place, &format!("\"{}\"", "x".repeat(2_000)), 1).into());
            add(message.replacen(place, "\"\u{202e}\u{200b}dhss\"", 1).into());
        }
        let first = message.split_once(',').unwrap().0.trim_start_matches('{');
        add(format!("{{{first},{}", &message[1..]).into());
        add(format!("{message}{message}").into());
        add([message.as_bytes(), b"\0"].concat());
        add(message.as_bytes()[..message.len() - 1].to_vec());
        add([&[0xef, 0xbb, 0xbf], message.as_bytes()].concat());
        add(message.replacen("sshd", "\u{fffd}", 1).replace('\u{fffd}', "\u{0}").into());
        add(message.bytes().map(|b| if b == b'd' { 0xff } else { b }).collect());
        add(message.encode_utf16().flat_map(u16::to_be_bytes).collect());
        add(format!("{}{}", "[".repeat(50_000), "]".repeat(50_000)).into());
        add(format!("{{\"x\":{}1{}}}", "{\"x\":".repeat(5_000), "}".repeat(5_000)).into());
        add(message.replacen('{', &format!("{{\"x\":\"{}\",", "x".repeat(200_000)), 1).into());
        add(b"{}".to_vec());
        add(b"null".to_vec());
    }
    // Topics that lie, with messages that would do elsewhere.
    let of_another = SHARD.replacen("\"evil\"", "\"other\"", 1);
    malformed_messages.push((
        false,
        "f2bmqtt/blacklist/state/evil/0".to_owned(),
        of_another.into(),
    ));
    for topic in [
        "f2bmqtt/blacklist/state/other/0",
        "f2bmqtt/blacklist/state/evil/1",
        "f2bmqtt/blacklist/state/evil/-1",
    ] {
        malformed_messages.push((false, topic.to_owned(), SHARD.into()));
    }
    for topic in [
        "f2bmqtt/blacklist/state/evil",
        "f2bmqtt/blacklist/state/evil/0/0",
        "f2bmqtt/blacklist/host/evil/more",
    ] {
        malformed_messages.push((false, topic.to_owned(), EVENT.into()));
    }
    for ((_, _, payload), stamp) in malformed_messages.iter_mut().zip(stamp..) {
        const STAMP: &[u8] = b"1795342588123";
        if let Some(at) = payload.windows(STAMP.len()).position(|window| window == STAMP) {
            payload[at..at + STAMP.len()].copy_from_slice(format!("{stamp:013}").as_bytes());
        }
    }
    malformed_messages
}

#[test]
fn malformed_messages_never_reach_fail2ban() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    push_script(hub);
    hub.publish_event("ban", "sshd", "192.0.2.1", "old1");
    eventually("a bans it", || a.bans("sshd", "192.0.2.1"));
    // Once, so that whatever it needs for such things it has; and then again.
    let count = malformed_messages(0).len();
    println!("{count} messages");
    send(&rig, &malformed_messages(1_795_342_588_000));
    let (before, started) = (memory(a), processor(a));
    for round in 1..5 {
        send(&rig, &malformed_messages(1_795_342_588_000 + round * 1_000));
    }
    hub.publish_event("ban", "sshd", "192.0.2.2", "old1");
    eventually("an honest ban comes through", || a.bans("sshd", "192.0.2.2"));
    assert_eq!(a.sh("fail2ban-client get sshd banip"), "192.0.2.1 192.0.2.2");
    assert_eq!(a.sh("fail2ban-client get web banip"), "");
    let grown = memory(a).saturating_sub(before);
    assert!(grown < 4 * 1024, "{grown} KiB more");
    let spent = processor(a).checked_sub(started).unwrap();
    println!("{spent:?} for {} messages, {grown} KiB more", count * 4);
    assert!(spent < Duration::from_secs(10), "{spent:?}");
    // Then it is idle, whatever there was.
    let started = processor(a);
    std::thread::sleep(Duration::from_secs(4));
    let spent = processor(a).checked_sub(started).unwrap();
    assert!(spent < Duration::from_millis(800), "{spent:?} in 4 s");
    let journal = a.journal();
    assert!(journal.len() < 60_000, "{} bytes", journal.len());
    let hidden = |c: char| c != '\n' && f2bmqtt::text::is_unsafe_for_display(c);
    assert!(!journal.contains(hidden) && !journal.contains("panicked"), "{journal}");
    assert!(journal.contains("rejected invalid event on blacklist/ban: missing field `ip`"));
    assert_eq!(a.sh("systemctl show -P NRestarts f2bmqttsub"), "0");
    // It tells of it, within a minute.
    let mut presence = String::new();
    within(Duration::from_mins(2), "the refusals are told", || {
        let sub = "mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -C 1 -W 5 -t f2bmqtt/blacklist/host/a";
        presence = hub.try_sh(sub).unwrap_or_default();
        let count_text = presence.split_once(r#""malformed":"#);
        let count_text = count_text.and_then(|(_, rest)| rest.split(['}', ',']).next());
        count_text
            .and_then(|count_text| count_text.parse().ok())
            .is_some_and(|count_text: usize| count_text > count * 3)
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
    eventually("it listens", || hub.try_sh("ss -Hltn | grep -q :1999").is_ok());
    a.sh(
        "sed -i 's/^MQTT_HOST=.*/MQTT_HOST=10.213.77.11:1999,10.213.77.11/' /etc/fail2ban/mqtt.env
          systemctl restart f2bmqttsub",
    );
    let all = || hub.sh("cat /root/evil").contains("all tried");
    within(Duration::from_mins(5), "all is tried", all);
    let connected = "connected to the broker 10.213.77.11:1883";
    within(Duration::from_mins(1), connected, || a.journal().contains(connected));
    hub.publish_event("ban", "sshd", "192.0.2.2", "old1");
    eventually("an honest ban comes through", || a.bans("sshd", "192.0.2.2"));
    assert_eq!(a.sh("systemctl show -P NRestarts f2bmqttsub"), "0", "{}", a.journal());
    assert!(memory(a) < 20 * 1024);
}

/// One client publishes `what` as fast as it can; answers how many messages a second it got rid of.
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

/// While the hub floods it, a's fail2ban answers, and an honest ban comes through; answers how many messages a
/// second there were. `begin` is done once the flood is there.
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
    let over = || hub.sh("cat /root/flood");
    let (mut most, mut slowest) = (0, Duration::ZERO);
    within(Duration::from_mins(3), "the flood is over", || {
        most = most.max(memory(a));
        let asked = Instant::now();
        a.sh("fail2ban-client ping");
        slowest = slowest.max(asked.elapsed());
        !over().is_empty()
    });
    // fail2ban is still busy with what it was let in of the flood; others have their turn.
    within(Duration::from_mins(1), &format!("{honest} is banned"), || a.bans("sshd", honest));
    most = most.max(memory(a));
    println!("{}: sent, a second; a: {most} KiB at most, ping in {slowest:?} at most", over());
    assert!(most < 120 * 1024, "{most} KiB");
    assert!(slowest < Duration::from_secs(30), "{slowest:?}");
    let journal = a.journal();
    assert!(!journal.contains("panicked") && journal.lines().count() < 20_000);
    assert_eq!(a.sh("systemctl show -P NRestarts f2bmqttsub"), "0");
    over().split(' ').nth(1).unwrap().parse().unwrap()
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

/// A broker takes its time for each message of a client; this one has them ready.
fn pour(what: &str) {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    push_script(hub);
    let how = format!("pour 1999 {what} 10 50000");
    let rate = assert_survives(a, hub, &how, "192.0.2.3", || {
        eventually("it listens", || hub.try_sh("ss -Hltn | grep -q :1999").is_ok());
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
    eventually("an honest ban comes through", || a.bans("sshd", "192.0.2.2"));
}

#[test]
fn excluded_jails_and_addresses_are_neither_sent_nor_imported() {
    let rig = Rig::fleet(&["a", "b"]);
    let (a, b, hub) = (rig.host("a"), rig.host("b"), rig.host("hub"));
    b.sh("printf 'MQTT_NOT_JAILS=web\\nMQTT_NEVER_BAN=198.18.5.0/24\\n' >>/etc/fail2ban/mqtt.env
          systemctl restart f2bmqttsub");
    b.ready();
    // What b detects in a jail that does not take part stays there.
    b.attack("web", &["192.0.2.1"]);
    eventually("b bans it", || b.bans("web", "192.0.2.1"));
    b.attack("auth", &["192.0.2.2"]);
    eventually("a bans what b detects elsewhere", || a.bans("sshd", "192.0.2.2"));
    // And what others say of it is not heard.
    a.attack("web", &["192.0.2.3"]);
    a.attack("auth", &["198.18.5.5", "192.0.2.4", "192.0.2.9"]);
    eventually("b bans the rest", || b.bans("sshd", "192.0.2.4") && b.bans("sshd", "192.0.2.9"));
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
            f2bmqtt::clock::now_millis()
        ),
    );
    // Its operator exempts an address, and takes that back; another becomes the server's own.
    b.sh("fail2ban-client set sshd addignoreip 192.0.2.4; ip addr add 192.0.2.9/32 dev eth0");
    let minutes = Duration::from_mins(3);
    within(minutes, "both are free", || {
        !b.bans("sshd", "192.0.2.4") && !b.bans("sshd", "192.0.2.9")
    });
    b.sh("fail2ban-client set sshd delignoreip 192.0.2.4");
    within(minutes, "it is banned again", || b.bans("sshd", "192.0.2.4"));
    assert_eq!(
        b.sh("fail2ban-client get sshd banip | tr ' ' '\\n' | sort"),
        "192.0.2.2\n192.0.2.4"
    );
    assert_eq!(b.sh("fail2ban-client get web banip"), "192.0.2.1");
    assert_eq!(a.sh("fail2ban-client get web banip"), "192.0.2.3");
    assert!(b.journal().contains("connected to fail2ban; jails: both, sshd; not shared: web"));
}
