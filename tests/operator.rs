//! The operator's commands on a fleet of real servers. Their output matches the blocks in the docs.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::docs::block;
use support::reports::{jail_reports, reports_to_hub, taken};
use support::{Host, Rig, eventually};

/// The output of a command in the docs, in the block of this name.
fn shown(name: &str, command: &str) -> String {
    let text = block(name);
    let begin = format!("$ {command}\n");
    mask_varying(text.strip_prefix(&begin).unwrap_or_else(|| panic!("{name} is not of {command}")))
}

/// Whether a word is a duration such as `5m`.
fn is_duration(word: &str) -> bool {
    let digits = word.trim_end_matches(['d', 'h', 'm', 's']);
    !digits.is_empty() && digits.len() < word.len() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// Whether a word is a date, a time, a duration or a larger number.
fn is_varying(word: &str) -> bool {
    let word = word.trim_end_matches([',', '.']);
    word.starts_with("20") && word.matches('-').count() == 2
        || word.matches(':').count() == 2 && word.len() == 8
        || is_duration(word)
        || word.len() < 8 && word.parse::<u32>().is_ok_and(|number| number > 10)
}

/// Replaces times, durations and PIDs, which differ in each run, by one asterisk, and gaps by one blank.
fn mask_varying(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.trim().lines() {
        let mut fields: Vec<&str> = line.split_whitespace().collect();
        for field in &mut fields {
            if is_varying(field) {
                *field = "*";
            }
        }
        fields.dedup_by(|a, b| *a == "*" && *b == "*");
        lines.push(fields.join(" "));
    }
    lines.join("\n")
}

/// A status without the counts that hosts publish at most once a minute: imported bans and rejected messages.
fn mask_counts(status: &str) -> String {
    let status = mask_varying(status);
    let mut lines = Vec::new();
    for line in status.split("\n\nREJECTED BY").next().unwrap().lines() {
        let mut fields: Vec<&str> = line.split(' ').collect();
        if fields.get(1) == Some(&"online") {
            fields[5] = "*";
        }
        lines.push(fields.join(" "));
    }
    lines.join("\n")
}

/// The output of a command on a terminal.
fn on_terminal(host: Host<'_>, command: &str) -> String {
    host.sh(&format!("script -qec 'NO_COLOR=1 {command}' /dev/null")).replace('\r', "")
}

/// A command's JSON, without the values that differ in each run.
fn masked_json(host: Host<'_>, command: &str) -> Value {
    fn mask(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let times =
                        ["time", "since", "until", "snapshot", "pid", "id", "imported_bans"];
                    if times.contains(&name.as_str()) && !value.is_null() {
                        *value = "*".into();
                    }
                    mask(value);
                }
            }
            Value::Array(values) => values.iter_mut().for_each(mask),
            _ => {}
        }
    }
    let mut value = serde_json::from_str(&host.sh(command)).unwrap();
    mask(&mut value);
    value
}

/// Boots web1, web2 and db1; db1 has no jail `web`.
fn fleet() -> Rig {
    let rig = Rig::fleet(&["web1", "web2", "db1"]);
    let db1 = rig.host("db1");
    db1.sh("printf '[web]\\nenabled = false\\n' >/etc/fail2ban/jail.d/no-web.local; fail2ban-client reload");
    eventually("db1 has no jail web", || {
        masked_json(db1, "f2bmqtt status --json")["hosts"][0]["jails"] == json!(["both", "sshd"])
    });
    rig
}

/// web1 detects one address. web2 detects the same and another one.
fn attack_hosts(rig: &Rig) {
    let (web1, web2, db1) = (rig.host("web1"), rig.host("web2"), rig.host("db1"));
    web1.attack("auth", &["203.0.113.9"]);
    eventually("web2 imports the ban", || web2.bans("sshd", "203.0.113.9"));
    web2.sh("fail2ban-client set sshd unbanip 203.0.113.9");
    web2.attack("auth", &["203.0.113.9"]);
    web2.attack("web", &["203.0.113.20"]);
    eventually("the snapshots list all bans", || {
        let list = masked_json(db1, "f2bmqtt list --json");
        list["bans"].as_array().is_some_and(|bans| bans.len() == 2)
            && list["bans"][0]["also"] == json!(["web2"])
    });
    eventually("all hosts ban the addresses", || {
        db1.bans("sshd", "203.0.113.9") && web1.bans("web", "203.0.113.20")
    });
}

/// The entry of a host in `status --json`.
fn status_entry(name: &str, jails: &[&str], bans: usize) -> Value {
    json!({
        "host": name, "state": "online", "since": "*", "version": env!("CARGO_PKG_VERSION"), "jails": jails, "bans": bans,
        "imported_bans": "*", "snapshot": "*", "parts": 1, "incomplete": 0, "rejected": {},
    })
}

/// The entry of a ban in `list --json`.
fn list_entry(ip: &str, jail: &str, host: &str, also: &[&str]) -> Value {
    json!({ "ip": ip, "jail": jail, "host": host, "since": "*", "until": "*", "forever": false,
        "also": also })
}

#[test]
fn each_host_shows_whole_fleet() {
    let rig = fleet();
    attack_hosts(&rig);
    let (web1, web2, db1) = (rig.host("web1"), rig.host("web2"), rig.host("db1"));
    assert_eq!(
        mask_counts(&on_terminal(web1, "f2bmqtt status")),
        mask_counts(&shown("status", "f2bmqtt status"))
    );
    let mut status = masked_json(db1, "f2bmqtt status --json");
    // db1 rejected a ban in a jail that it does not have.
    status["hosts"][0]["rejected"] = json!({});
    assert_eq!(
        status,
        json!({
            "host": "db1", "version": env!("CARGO_PKG_VERSION"), "time": "*",
            "service": { "running": true, "pid": "*", "since": "*" },
            "broker": { "address": "10.213.77.11:1883", "user": "fail2ban", "error": null },
            "fail2ban": { "jails": ["both", "sshd"], "error": null },
            "pending": { "events": 0, "reports": 0 }, "disks_full": [],
            "abuseipdb": {},
            "reporter": { "oldest": null, "last_call": null },
            "hosts": [
                status_entry("db1", &["both", "sshd"], 0),
                status_entry("web1", &["both", "sshd", "web"], 1),
                status_entry("web2", &["both", "sshd", "web"], 2),
            ],
            "jails": { "sshd": 1, "web": 1 },
            "bans": 2, "incomplete": [],
        })
    );

    assert_eq!(mask_varying(&on_terminal(web1, "f2bmqtt list")), shown("list", "f2bmqtt list"));
    let piped = web1.sh("f2bmqtt list --host web2 --jail sshd");
    let row: Vec<&str> = piped.lines().nth(1).unwrap().split('\t').collect();
    assert_eq!((&row[..3], row[6], row.len()), (&["203.0.113.9", "sshd", "web1"][..], "web2", 7));
    assert_eq!(
        masked_json(web1, "f2bmqtt list 203.0.113.0/28 --json"),
        json!({
            "time": "*", "voided": [], "incomplete": [],
            "bans": [list_entry("203.0.113.9", "sshd", "web1", &["web2"])],
        })
    );
    assert_eq!(
        masked_json(web1, "f2bmqtt list --jail web --json")["bans"],
        json!([list_entry("203.0.113.20", "web", "web2", &[])])
    );

    // An unknown jail or host is an error, not an empty list.
    for (command, error) in [
        ("list --jail nope", "no such jail: nope; the fleet has both, sshd and web"),
        ("list --host nope", "no such host: nope; the fleet has db1, web1 and web2"),
        (
            "unban --yes --jail nope 203.0.113.9",
            "no such jail: nope; the fleet has both, sshd and web",
        ),
    ] {
        let out = web1.run(&format!("f2bmqtt {command}"));
        assert_eq!(out.status.code(), Some(1), "{command}");
        let output = String::from_utf8_lossy(&out.stderr);
        assert!(output.contains(error) && out.stdout.is_empty(), "{command}: {output}");
    }

    // `list IP` explains the ban and this host's decision.
    assert_eq!(
        mask_varying(&db1.sh("f2bmqtt list 203.0.113.9")),
        shown("list-address", "f2bmqtt list 203.0.113.9")
    );
    let explanation = db1.sh("f2bmqtt list 203.0.113.20");
    assert!(explanation.contains("This host (db1): not banned (no jail `web`)."), "{explanation}");
    db1.sh("fail2ban-client set sshd unbanip 203.0.113.9");
    eventually("list shows that db1's operator lifted the ban", || {
        db1.sh("f2bmqtt list 203.0.113.9")
            .contains("not banned (bans of web1, web2 lifted by hand here)")
    });
    web2.sh("fail2ban-client set sshd banip 203.0.113.77");
    let explanation = web2.sh("f2bmqtt list 203.0.113.77");
    let expected = "No host's snapshot lists 203.0.113.77.\nThis host (web2): banned in jail `sshd` by a local ban";
    assert!(explanation.contains(expected), "{explanation}");
    // A ban by fail2ban-client can be shared later.
    let output = web2.sh("f2bmqtt ban sshd 203.0.113.77");
    assert!(output.starts_with("203.0.113.77 is banned in jail `sshd` for "), "{output}");
    for host in [web1, db1] {
        eventually("the peers import the ban", || host.bans("sshd", "203.0.113.77"));
    }

    // Unreadable settings are an error. Without a broker, the other parts of the status still work.
    let denied = web1.try_sh("su games -s /bin/sh -c 'f2bmqtt status'").unwrap_err();
    assert!(
        denied.contains("Permission denied") && denied.contains("Run the command as root"),
        "{denied}"
    );
    rig.host("hub").sh("systemctl stop mosquitto");
    let alone = web1.try_sh("f2bmqtt status").unwrap_err();
    assert!(
        alone.contains(
            "no connection to the broker 10.213.77.11:1883: no broker listens on this port"
        ),
        "{alone}"
    );
    assert!(alone.contains("fail2ban   running, jails: both, sshd, web"), "{alone}");
}

fn sorted_lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn operator_commands_take_effect_on_whole_fleet() {
    let rig = fleet();
    attack_hosts(&rig);
    let (web1, web2, db1) = (rig.host("web1"), rig.host("web2"), rig.host("db1"));
    let all = [web1, web2, db1];

    let ban = "f2bmqtt ban web 203.0.113.30";
    assert_eq!(mask_varying(&web1.sh(ban)), shown("ban", ban));
    eventually("web2 bans it", || web2.bans("web", "203.0.113.30"));
    assert!(!db1.bans("sshd", "203.0.113.30"));
    assert_eq!(
        masked_json(web1, &format!("{ban} --json")),
        json!({
            "jail": "web", "host": "web1", "published": true,
            "bans": [{
                "ip": "203.0.113.30", "already_banned": true, "seconds": 600,
                "acks": { "db1": "unknown_jail", "web2": "banned" },
            }],
            "hosts": ["web2"], "without_jail": ["db1"], "rejected": {}, "pending": [], "no_reply": [],
            "offline": [],
        })
    );
    let refused = [
        ("ban web 203.0.113.0/24", "not 203.0.113.0/24"),
        ("ban web 127.0.0.1", "is not an address of another machine"),
        ("ban web 10.213.77.12", "the address is this host's own"),
        ("ban web 10.213.77.11", "the address is the broker's"),
        ("ban nope 203.0.113.31", "has no jail `nope`"),
        ("ban web 198.51.100.{1..11}", "Ban 11 addresses on every host? Nothing was done"),
        ("unban 198.51.100.{1..11}", "Unban 11 addresses on every host? Nothing was done"),
    ];
    for (arguments, what) in refused {
        let output = web1.try_sh(&format!("bash -c 'f2bmqtt {arguments}'")).unwrap_err();
        assert!(output.contains(what), "{arguments}: {output}");
    }
    let lockout = "SSH_CONNECTION='203.0.113.31 4711 10.213.77.12 22' f2bmqtt ban web 203.0.113.31";
    assert!(web1.try_sh(lockout).unwrap_err().contains("would lock yourself out"));

    // sudo removes the variable from the command's environment, but not from that of the parent shell.
    let behind = "SSH_CONNECTION='203.0.113.31 4711 10.213.77.12 22' sh -c \
                  'env -u SSH_CONNECTION f2bmqtt ban web 203.0.113.31; exit $?'";
    assert!(web1.try_sh(behind).unwrap_err().contains("would lock yourself out"));

    // Local bans of two hosts, and a manual ban.
    db1.sh("fail2ban-client set both banip 203.0.113.9");
    let unban = "f2bmqtt unban 203.0.113.9";
    // The hosts confirm in any order.
    let output = mask_varying(&db1.sh(unban));
    assert_eq!(sorted_lines(&output), sorted_lines(&shown("unban", unban)));
    for host in all {
        assert!(
            !host.bans("sshd", "203.0.113.9") && !host.bans("both", "203.0.113.9"),
            "{}",
            host.name
        );
        assert!(!host.in_ipset("f2b-sshd", "203.0.113.9"), "{}", host.name);
    }
    assert_eq!(
        masked_json(web1, "f2bmqtt unban --jail web --json 203.0.113.30"),
        json!({
            "id": "*", "ips": ["203.0.113.30"], "jail": "web", "unbanned": ["db1", "web1", "web2"],
            "no_reply": [], "offline": [], "jails_left_out": 0,
        })
    );
    assert!(!web1.bans("web", "203.0.113.30") && !web2.bans("web", "203.0.113.30"));

    // web2 is gone for good, and has a local ban.
    web2.sh("systemctl disable --now f2bmqttsub 2>&1");
    eventually("status shows that web2 is offline", || {
        masked_json(web1, "f2bmqtt status --json")["hosts"][2]["state"] == "offline"
    });
    let error = web1.try_sh("f2bmqtt unban 203.0.113.40").unwrap_err();
    assert!(error.contains("web2: offline; applies the unban when it reconnects"), "{error}");
    assert!(
        web1.try_sh("f2bmqtt forget web3").unwrap_err().contains("The fleet has db1, web1, web2")
    );
    assert!(web1.try_sh("f2bmqtt forget db1").unwrap_err().contains("db1 is online"));
    assert!(web1.bans("web", "203.0.113.20"));
    assert_eq!(web1.sh("f2bmqtt forget web2"), shown("forget", "f2bmqtt forget web2"));
    eventually("web1 releases the ban that only web2 held", || !web1.bans("web", "203.0.113.20"));
    let left = rig
        .host("hub")
        .sh("mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -t 'f2bmqtt/blacklist/#' -W 1 -F %t; true");
    assert!(left.contains("f2bmqtt/blacklist/host/web1") && !left.contains("web2"), "{left}");

    test_invented_hosts(&rig);
    test_renamed_host(&rig);
}

fn test_renamed_host(rig: &Rig) {
    let (web1, db1) = (rig.host("web1"), rig.host("db1"));
    web1.attack("auth", &["203.0.113.60"]);
    eventually("db1 imports the ban", || db1.bans("sshd", "203.0.113.60"));
    web1.sh("echo MQTT_NODE=renamed >>/etc/fail2ban/mqtt.env; systemctl restart f2bmqttsub");
    eventually("the former branch is cleared", || {
        let line = "removed the snapshot of this host's former name, web1 on the topic blacklist";
        web1.journal().contains(line)
    });
    assert!(db1.bans("sshd", "203.0.113.60"), "the ban continues under the new name");
    web1.sh("fail2ban-client set sshd unbanip 203.0.113.60");
    eventually("db1 releases the ban", || !db1.bans("sshd", "203.0.113.60"));
}

/// The effects of invented hosts can be removed, and block no command.
fn test_invented_hosts(rig: &Rig) {
    let (hub, web1) = (rig.host("hub"), rig.host("web1"));
    // The broker has no retained message of the first host, and one that daemons reject of the second.
    hub.sh(r#"pub() { mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban "$@"; }
        pub -t blacklist/ban -m "{\"action\":\"ban\",\"ipmset\":\"web\",\"ip\":\"203.0.113.50\",\"bantime\":6000,\"host\":\"ghost1\",\"restored\":0,\"failures\":3,\"time\":$(date +%s),\"stamp\":$(date +%s)000}"
        pub -r -t f2bmqtt/blacklist/state/ghost2/3 -m "{\"v\":1,\"host\":\"ghost2\",\"stamp\":$(($(date +%s) + 200000))000,\"part\":3,\"parts\":4,\"bans\":[],\"unbans\":[]}""#);
    eventually("an event is enough for a ban", || web1.bans("web", "203.0.113.50"));
    assert!(!web1.sh("f2bmqtt status").contains("ghost"), "daemons reject its snapshot");
    let error = web1.try_sh("f2bmqtt forget ghost1 ghost2").unwrap_err();
    assert!(error.contains("the broker keeps nothing of ghost1. The fleet has "), "{error}");
    assert!(error.contains("Use --yes to confirm"), "{error}");
    let forgotten = masked_json(web1, "f2bmqtt forget --yes --json ghost1 ghost2");
    let expected = json!({"hosts": ["ghost1", "ghost2"], "unknown": ["ghost1"], "bans": 0});
    assert_eq!(forgotten, expected);
    eventually("the ban of ghost1 ends", || !web1.bans("web", "203.0.113.50"));
    let left = hub
        .sh("mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -t 'f2bmqtt/#' -W 1 -F %t; true");
    assert!(!left.contains("ghost"), "{left}");

    // Hosts that list hundreds of jails each, and publish with stamps in the future.
    hub.sh(r#"pub() { mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban "$@"; }
        for n in 1 2 3; do
          pub -r -t f2bmqtt/blacklist/host/ghost$n -m "{\"v\":1,\"state\":\"offline\",\"jails\":[$(seq -s, -f "\"j$n-%.0f\"" 500)]}"
          pub -t blacklist/ban -m "{\"action\":\"ban\",\"ipmset\":\"web\",\"ip\":\"203.0.113.51\",\"bantime\":6000,\"host\":\"ghost$n\",\"restored\":0,\"failures\":3,\"time\":5,\"stamp\":$(($(date +%s) + 200000))000}"
        done"#);
    web1.attack("web", &["203.0.113.52"]);
    eventually("db1 has no such jail, web1 bans it", || web1.bans("web", "203.0.113.52"));
    let unban = web1.run("f2bmqtt unban 203.0.113.52");
    let (out, error) =
        (String::from_utf8_lossy(&unban.stdout), String::from_utf8_lossy(&unban.stderr));
    assert!(
        out.contains("hosts that run the scripts get no unban for 503 jails: limit of 1000"),
        "{out}"
    );
    assert!(
        out.contains("web1: unbanned") && error.contains("3 hosts have not confirmed the unban"),
        "{out} {error}"
    );
    assert!(!web1.bans("web", "203.0.113.52") && !web1.bans("web", "203.0.113.51"));
    let check = web1.run("f2bmqtt check");
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    let mut lines = text.lines();
    let clock = lines
        .find(|line| line.starts_with("✗ this host's clock is probably more than a day behind: "));
    let hosts = "other hosts (ghost1, ghost2 and ghost3), which are stamped more than a day ahead";
    assert!(
        check.status.code() == Some(1) && clock.is_some_and(|line| line.ends_with(hosts)),
        "{text}"
    );
    let warned = "this host's clock is probably more than a day behind: the daemon rejects the messages of ghost";
    assert_eq!(web1.journal().matches(warned).count(), 1, "{}", web1.journal());
    let status: Value = serde_json::from_str(&web1.sh("cat /run/f2bmqtt/status.json")).unwrap();
    assert_eq!((&status["link"]["state"], &status["tables_full"]), (&json!("up"), &json!([])));
    assert_eq!(web1.sh("stat -c %a /run/f2bmqtt/status.json").trim(), "600");
    web1.sh("systemctl stop f2bmqttsub; test ! -e /run/f2bmqtt/status.json");
}

/// The entry of a new ban in `ban --json`, with the acknowledgements of two hosts.
fn ban_entry(ip: &str, web2: &str, db1: &str) -> Value {
    json!({
        "ip": ip, "already_banned": false, "seconds": 600, "acks": { "db1": db1, "web2": web2 },
    })
}

#[test]
fn each_host_acknowledges_manual_ban_with_outcome() {
    let rig = fleet();
    let (web1, web2, db1) = (rig.host("web1"), rig.host("web2"), rig.host("db1"));
    // Requests and acknowledgements are signed like all messages.
    for host in [web1, web2, db1] {
        host.sh("echo MQTT_SIGNING_KEY=7c7f0a5be0d5a2ffe8a2c5b1f0e4d3c2 >>/etc/fail2ban/mqtt.env");
    }
    web2.sh("echo MQTT_NEVER_BAN=198.51.100.0/28 >>/etc/fail2ban/mqtt.env
        echo MQTT_NOT_JAILS=both >>/etc/fail2ban/mqtt.env
        fail2ban-client set web addignoreip 203.0.113.41");
    for host in [web1, web2, db1] {
        host.sh("systemctl restart f2bmqttsub");
        host.ready();
    }

    let ignored = "web2: not banned (in its ignoreip, or an address of that host or of the broker)";
    let no_jail = "db1: not banned (no jail `web`)";
    let shown = web1.sh("f2bmqtt ban web 203.0.113.41");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines, ["203.0.113.41 is banned in jail `web` for 10m", no_jail, ignored]);
    assert!(!web2.bans("web", "203.0.113.41"));
    assert_eq!(
        web1.sh("f2bmqtt ban web 198.51.100.1 203.0.113.42").lines().skip(2).collect::<Vec<_>>(),
        [
            "db1: not banned (no jail `web`)",
            "web2: banned: 203.0.113.42",
            "web2: not banned (in its MQTT_NEVER_BAN): 198.51.100.1",
        ]
    );
    assert!(web2.bans("web", "203.0.113.42") && !web2.bans("web", "198.51.100.1"));
    assert_eq!(
        masked_json(web1, "f2bmqtt ban --json sshd 198.51.100.2"),
        json!({
            "jail": "sshd", "host": "web1", "published": true,
            "bans": [ban_entry("198.51.100.2", "never_ban", "banned")],
            "hosts": ["db1"], "without_jail": [], "rejected": { "web2": "never_ban" }, "pending": [],
            "no_reply": [], "offline": [],
        })
    );
    assert_eq!(
        masked_json(web1, "f2bmqtt ban --json both 203.0.113.43")["bans"],
        json!([ban_entry("203.0.113.43", "not_shared", "banned")])
    );
    // In a jail without our action, the command publishes the ban itself.
    web1.sh("fail2ban-client set both delaction f2bmqtt");
    assert_eq!(
        masked_json(web1, "f2bmqtt ban --json both 203.0.113.48")["bans"],
        json!([ban_entry("203.0.113.48", "not_shared", "banned")])
    );

    // A ban that the operator made with fail2ban-client, which the fleet does not know.
    web1.sh("fail2ban-client set sshd banip 203.0.113.49");
    assert_eq!(
        masked_json(web1, "f2bmqtt ban --json sshd 203.0.113.49")["bans"],
        json!([ban_entry("203.0.113.49", "banned", "banned")])
    );
    assert!(db1.bans("sshd", "203.0.113.49"));

    // More bans than a host acknowledges in one message. Without a local daemon, a child process publishes the ban.
    let many = "bash -c 'f2bmqtt ban --yes --json sshd 203.0.113.{101..140}'";
    assert_eq!(masked_json(web1, many)["hosts"], json!(["db1", "web2"]));
    web1.sh("systemctl stop f2bmqttsub");
    let output = web1.sh("f2bmqtt ban sshd 203.0.113.44");
    assert!(output.ends_with("\ndb1: banned\nweb2: banned"), "{output}");
    web1.sh("systemctl start f2bmqttsub");
    web1.ready();

    // One host's fail2ban is down, and another one's daemon does not reply.
    web2.sh("systemctl stop fail2ban");
    db1.sh("systemctl kill -s STOP f2bmqttsub");
    let shown = web1.try_sh("f2bmqtt ban sshd 203.0.113.45").unwrap_err();
    db1.sh("systemctl kill -s CONT f2bmqttsub");
    let lines: Vec<&str> = shown.lines().skip(1).collect();
    // The broker's time limit for a stopped client is about that of the command.
    let no_reply = ["db1: no reply yet", "db1: offline; applies the ban when it reconnects"];
    assert!(lines.len() == 3 && no_reply.contains(&lines[0]), "{shown}");
    assert_eq!(
        lines[1..],
        [
            "web2: not banned yet (fail2ban is busy or down)",
            "f2bmqtt: 2 hosts have not confirmed the ban. An offline host applies the ban when it reconnects. Show the state: f2bmqtt status",
        ]
    );
    web2.sh("systemctl start fail2ban; systemctl stop f2bmqttsub");
    let output = web1.try_sh("f2bmqtt ban --json sshd 203.0.113.46").unwrap_err();
    let output: Value = serde_json::from_str(output.rsplit_once("\nf2bmqtt: ").unwrap().0).unwrap();
    assert_eq!((&output["hosts"], &output["offline"]), (&json!(["db1"]), &json!(["web2"])));
    web2.sh("systemctl start f2bmqttsub");
    eventually("web2 imports both bans after its reconnection", || {
        web2.bans("sshd", "203.0.113.45") && web2.bans("sshd", "203.0.113.46")
    });
}

#[test]
fn twenty_thousand_bans_are_listed_in_bounded_memory() {
    let rig = Rig::fleet(&["web1"]);
    let (web1, hub) = (rig.host("web1"), rig.host("hub"));
    web1.sh("systemctl stop f2bmqttsub");
    hub.push(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/far.py"), "/root/far.py");
    println!("{}", hub.sh("python3 /root/far.py leave 127.0.0.1 40 500"));
    let run = "import resource, subprocess, sys, time
started = time.monotonic()
ended = subprocess.run([\"f2bmqtt\", *sys.argv[1:]], stdout=subprocess.PIPE)
print(round(time.monotonic() - started, 2), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, len(ended.stdout))";
    for command in ["status --json", "list", "list --json", "list 10.0.5.9"] {
        let measured = web1.sh(&format!("python3 -c '{run}' {command}"));
        println!("{command}: seconds, KiB, bytes: {measured}");
        let numbers: Vec<f64> = measured.split(' ').map(|number| number.parse().unwrap()).collect();
        assert!(numbers[1] < 20.0 * 1024.0, "{command}: {measured}");
    }
    assert_eq!(web1.sh("f2bmqtt list | wc -l"), "20001");
}

#[test]
fn manual_ban_is_not_reported() {
    let rig = Rig::fleet(&["web1", "web2"]);
    let web1 = rig.host("web1");
    reports_to_hub(&rig, web1);
    jail_reports(web1, "abuseipdb_category=\"18,22\"");
    eventually("fail2ban has the jail again", || web1.ask("get sshd banip").is_ok());
    web1.sh("f2bmqtt ban sshd 192.31.196.50");
    let show_log = "cat /var/log/abuseipdb/abuseipdb.log";
    eventually("the reporter was called", || {
        web1.sh(show_log).contains(
            "IP 192.31.196.50 is not reported: the address was banned by hand (f2bmqtt ban).",
        )
    });
    // A report of the manual ban would come before that of this detection.
    web1.attack("auth", &["192.31.196.51"]);
    eventually("a detection is reported", || !taken(&rig).is_empty());
    // The same after a restart of fail2ban that reports restored bans.
    web1.sh("sed -i 's/^BYPASS_FAIL2BAN = 0/BYPASS_FAIL2BAN = 1/' /etc/fail2ban/action.d/abuseipdb.local
             systemctl restart fail2ban");
    eventually("the restored ban is not reported", || {
        web1.sh(show_log).matches("192.31.196.50 is not reported: the address was banned").count()
            == 2
    });
    web1.attack("auth", &["192.31.196.52"]);
    eventually("a detection is reported", || {
        taken(&rig).iter().any(|report| report[0] == "192.31.196.52")
    });
    assert!(taken(&rig).iter().all(|report| report[0] != "192.31.196.50"), "{:?}", taken(&rig));
    assert!(rig.host("web2").bans("sshd", "192.31.196.50"), "the fleet shares the manual ban");
}
