//! The operator's commands, on a fleet of real servers. What the docs show of them is what they print.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::docs::block;
use support::reports::{jail_reports, reports_to_hub, taken};
use support::{Host, Rig, eventually};

/// What the docs show of a command, in the block of this name.
fn shown(name: &str, command: &str) -> String {
    let text = block(name);
    let begin = format!("$ {command}\n");
    mask_varying(text.strip_prefix(&begin).unwrap_or_else(|| panic!("{name} is not of {command}")))
}

/// Times, spans and processes differ each time: they become one word, and gaps one blank.
fn mask_varying(text: &str) -> String {
    let is_span = |field: &str| {
        let digits = field.trim_end_matches(['d', 'h', 'm', 's']);
        !digits.is_empty()
            && digits.len() < field.len()
            && digits.bytes().all(|b| b.is_ascii_digit())
    };
    let mask = |field: &str| {
        let bare = field.trim_end_matches([',', '.']);
        let odd = bare.starts_with("20") && bare.matches('-').count() == 2
            || bare.matches(':').count() == 2 && bare.len() == 8
            || is_span(bare)
            || bare.len() < 8 && bare.parse::<u32>().is_ok_and(|number| number > 10);
        if odd { "*".to_owned() } else { field.to_owned() }
    };
    let line = |line: &str| {
        let mut fields: Vec<String> = line.split_whitespace().map(mask).collect();
        fields.dedup_by(|a, b| a == "*" && b == "*");
        fields.join(" ")
    };
    text.trim().lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A status without the counts that hosts publish at most once a minute: imported bans and rejected messages.
fn mask_counts(status: &str) -> String {
    let status = mask_varying(status);
    let known = status.split("\n\nREJECTED BY").next().unwrap();
    let line = |line: &str| {
        let mut fields: Vec<&str> = line.split(' ').collect();
        if fields.get(1) == Some(&"online") {
            fields[5] = "*";
        }
        fields.join(" ")
    };
    known.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// What a command prints on a terminal.
fn on_terminal(host: Host<'_>, command: &str) -> String {
    host.sh(&format!("script -qec 'NO_COLOR=1 {command}' /dev/null")).replace('\r', "")
}

/// A command's JSON, without what differs each time.
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

/// web1 and web2 have the same jails, db1 has no `web`.
fn fleet() -> Rig {
    let rig = Rig::fleet(&["web1", "web2", "db1"]);
    let db1 = rig.host("db1");
    db1.sh("printf '[web]\\nenabled = false\\n' >/etc/fail2ban/jail.d/no-web.local; fail2ban-client reload");
    eventually("db1 has no jail web", || {
        masked_json(db1, "f2bmqtt status --json")["hosts"][0]["jails"] == json!(["both", "sshd"])
    });
    rig
}

/// web1 detects one address, and web2 it and another.
fn attack_hosts(rig: &Rig) {
    let (web1, web2, db1) = (rig.host("web1"), rig.host("web2"), rig.host("db1"));
    web1.attack("auth", &["203.0.113.9"]);
    eventually("web2 bans it for web1", || web2.bans("sshd", "203.0.113.9"));
    web2.sh("fail2ban-client set sshd unbanip 203.0.113.9");
    web2.attack("auth", &["203.0.113.9"]);
    web2.attack("web", &["203.0.113.20"]);
    eventually("all is told of", || {
        let list = masked_json(db1, "f2bmqtt list --json");
        list["bans"].as_array().is_some_and(|bans| bans.len() == 2)
            && list["bans"][0]["also"] == json!(["web2"])
    });
    eventually("it is banned everywhere", || {
        db1.bans("sshd", "203.0.113.9") && web1.bans("web", "203.0.113.20")
    });
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
    let host = |name: &str, jails: &[&str], bans: usize| {
        json!({
            "host": name, "state": "online", "since": "*", "version": env!("CARGO_PKG_VERSION"), "jails": jails, "bans": bans,
            "imported_bans": "*", "snapshot": "*", "parts": 1, "incomplete": 0, "rejected": {},
        })
    };
    let mut status = masked_json(db1, "f2bmqtt status --json");
    // db1 has heard of a ban in a jail that it has not.
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
                host("db1", &["both", "sshd"], 0),
                host("web1", &["both", "sshd", "web"], 1),
                host("web2", &["both", "sshd", "web"], 2),
            ],
            "jails": { "sshd": 1, "web": 1 },
            "bans": 2, "incomplete": [],
        })
    );

    assert_eq!(mask_varying(&on_terminal(web1, "f2bmqtt list")), shown("list", "f2bmqtt list"));
    let piped = web1.sh("f2bmqtt list --host web2 --jail sshd");
    let row: Vec<&str> = piped.lines().nth(1).unwrap().split('\t').collect();
    assert_eq!((&row[..3], row[6], row.len()), (&["203.0.113.9", "sshd", "web1"][..], "web2", 7));
    let ban = |ip: &str, jail: &str, host: &str, also: &[&str]| {
        json!({ "ip": ip, "jail": jail, "host": host, "since": "*", "until": "*", "forever": false,
            "also": also })
    };
    assert_eq!(
        masked_json(web1, "f2bmqtt list 203.0.113.0/28 --json"),
        json!({
            "time": "*", "voided": [], "incomplete": [],
            "bans": [ban("203.0.113.9", "sshd", "web1", &["web2"])],
        })
    );
    assert_eq!(
        masked_json(web1, "f2bmqtt list --jail web --json")["bans"],
        json!([ban("203.0.113.20", "web", "web2", &[])])
    );

    // What does not exist is no empty list.
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

    // Why, and what this host does with it.
    assert_eq!(
        mask_varying(&db1.sh("f2bmqtt list 203.0.113.9")),
        shown("list-address", "f2bmqtt list 203.0.113.9")
    );
    let why = |host: Host<'_>, ip: &str| host.sh(&format!("f2bmqtt list {ip}"));
    assert!(why(db1, "203.0.113.20").contains("This host (db1): not banned (no jail `web`)."));
    db1.sh("fail2ban-client set sshd unbanip 203.0.113.9");
    eventually("db1's operator has lifted it", || {
        why(db1, "203.0.113.9").contains("not banned (bans of web1, web2 lifted by hand here)")
    });
    web2.sh("fail2ban-client set sshd banip 203.0.113.77");
    assert!(why(web2, "203.0.113.77").contains(
        "No host's snapshot lists 203.0.113.77.\nThis host (web2): banned in jail sshd by a local ban"
    ));
    // What was banned by fail2ban alone the fleet can be told of later.
    let output = web2.sh("f2bmqtt ban sshd 203.0.113.77");
    assert!(output.starts_with("203.0.113.77 is banned in sshd, for "), "{output}");
    for host in [web1, db1] {
        eventually("the fleet bans it", || host.bans("sshd", "203.0.113.77"));
    }

    // Who may not read the settings is told so; a broker that is away ends nothing else.
    let denied = web1.try_sh("su nobody -s /bin/sh -c 'f2bmqtt status'").unwrap_err();
    assert!(
        denied.contains("Permission denied") && denied.contains("Run the command as root"),
        "{denied}"
    );
    rig.host("hub").sh("systemctl stop mosquitto");
    let alone = web1.try_sh("f2bmqtt status").unwrap_err();
    assert!(
        alone.contains("no connection to the broker 10.213.77.11:1883: nothing listens there"),
        "{alone}"
    );
    assert!(alone.contains("fail2ban   running, jails: both, sshd, web"), "{alone}");
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
        ("ban web 127.0.0.1", "is no address of another machine"),
        ("ban web 10.213.77.12", "the address is this host's own"),
        ("ban web 10.213.77.11", "the address is the broker's"),
        ("ban nope 203.0.113.31", "has no jail nope"),
        ("ban web 198.51.100.{1..11}", "Ban 11 addresses on every host? Nothing was done"),
        ("unban 198.51.100.{1..11}", "Unban 11 addresses on every host? Nothing was done"),
    ];
    for (arguments, what) in refused {
        let output = web1.try_sh(&format!("bash -c 'f2bmqtt {arguments}'")).unwrap_err();
        assert!(output.contains(what), "{arguments}: {output}");
    }
    let lockout = "SSH_CONNECTION='203.0.113.31 4711 10.213.77.12 22' f2bmqtt ban web 203.0.113.31";
    assert!(web1.try_sh(lockout).unwrap_err().contains("would lock yourself out"));

    // sudo takes it from the command's environment, and not from its shell's.
    let behind = "SSH_CONNECTION='203.0.113.31 4711 10.213.77.12 22' sh -c \
                  'env -u SSH_CONNECTION f2bmqtt ban web 203.0.113.31; exit $?'";
    assert!(web1.try_sh(behind).unwrap_err().contains("would lock yourself out"));

    // Own bans of two hosts, and an operator's.
    db1.sh("fail2ban-client set both banip 203.0.113.9");
    let unban = "f2bmqtt unban 203.0.113.9";
    let (output, expected) = (mask_varying(&db1.sh(unban)), shown("unban", unban));
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&output), sorted(&expected));
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

    // web2 goes for good, with a ban of its own.
    web2.sh("systemctl disable --now f2bmqttsub 2>&1");
    eventually("web2 is seen to be away", || {
        masked_json(web1, "f2bmqtt status --json")["hosts"][2]["state"] == "offline"
    });
    let away = web1.try_sh("f2bmqtt unban 203.0.113.40").unwrap_err();
    assert!(away.contains("web2: offline; applies the unban when it reconnects"), "{away}");
    assert!(web1.try_sh("f2bmqtt forget web3").unwrap_err().contains("it knows: db1, web1, web2"));
    assert!(web1.try_sh("f2bmqtt forget db1").unwrap_err().contains("db1 is connected"));
    assert!(web1.bans("web", "203.0.113.20"));
    assert_eq!(web1.sh("f2bmqtt forget web2"), shown("forget", "f2bmqtt forget web2"));
    eventually("what it alone had banned ends", || !web1.bans("web", "203.0.113.20"));
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
    assert!(db1.bans("sshd", "203.0.113.60"), "the ban goes on under the new name");
    web1.sh("fail2ban-client set sshd unbanip 203.0.113.60");
    eventually("db1 frees it", || !db1.bans("sshd", "203.0.113.60"));
}

/// What invented hosts bring can be removed, and keeps nothing from working.
fn test_invented_hosts(rig: &Rig) {
    let (hub, web1) = (rig.host("hub"), rig.host("web1"));
    // Hosts that do not exist: the broker keeps nothing of the first, and of the second what daemons reject.
    hub.sh(r#"pub() { mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban "$@"; }
        pub -t blacklist/ban -m "{\"action\":\"ban\",\"ipmset\":\"web\",\"ip\":\"203.0.113.50\",\"bantime\":6000,\"host\":\"ghost1\",\"restored\":0,\"failures\":3,\"time\":$(date +%s),\"stamp\":$(date +%s)000}"
        pub -r -t f2bmqtt/blacklist/state/ghost2/3 -m "{\"v\":1,\"host\":\"ghost2\",\"stamp\":$(($(date +%s) + 200000))000,\"part\":3,\"parts\":4,\"bans\":[],\"unbans\":[]}""#);
    eventually("an event is enough for a ban", || web1.bans("web", "203.0.113.50"));
    assert!(!web1.sh("f2bmqtt status").contains("ghost"), "daemons reject its snapshot");
    let asked = web1.try_sh("f2bmqtt forget ghost1 ghost2").unwrap_err();
    assert!(asked.contains("the broker keeps nothing of ghost1; it knows: "), "{asked}");
    assert!(asked.contains("Use --yes to confirm"), "{asked}");
    let forgotten = masked_json(web1, "f2bmqtt forget --yes --json ghost1 ghost2");
    let expected = json!({"hosts": ["ghost1", "ghost2"], "unknown": ["ghost1"], "bans": 0});
    assert_eq!(forgotten, expected);
    eventually("the ban of ghost1 ends", || !web1.bans("web", "203.0.113.50"));
    let left = hub
        .sh("mosquitto_sub -h 127.0.0.1 -u fail2ban -P fail2ban -t 'f2bmqtt/#' -W 1 -F %t; true");
    assert!(!left.contains("ghost"), "{left}");

    // Hosts that claim to have thousands of jails, and publish of the future.
    hub.sh(r#"pub() { mosquitto_pub -h 127.0.0.1 -u fail2ban -P fail2ban "$@"; }
        for n in 1 2 3; do
          pub -r -t f2bmqtt/blacklist/host/ghost$n -m "{\"v\":1,\"state\":\"offline\",\"jails\":[$(seq -s, -f "\"j$n-%.0f\"" 500)]}"
          pub -t blacklist/ban -m "{\"action\":\"ban\",\"ipmset\":\"web\",\"ip\":\"203.0.113.51\",\"bantime\":6000,\"host\":\"ghost$n\",\"restored\":0,\"failures\":3,\"time\":5,\"stamp\":$(($(date +%s) + 200000))000}"
        done"#);
    web1.attack("web", &["203.0.113.52"]);
    eventually("db1 has no such jail, web1 bans it", || web1.bans("web", "203.0.113.52"));
    let freed = web1.run("f2bmqtt unban 203.0.113.52");
    let (out, why) =
        (String::from_utf8_lossy(&freed.stdout), String::from_utf8_lossy(&freed.stderr));
    assert!(
        out.contains("hosts that run the scripts get no unban for 503 jails: limit of 1000"),
        "{out}"
    );
    assert!(
        out.contains("web1: unbanned") && why.contains("3 hosts have not confirmed the unban"),
        "{out} {why}"
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

#[test]
fn each_host_acknowledges_manual_ban_with_outcome() {
    let rig = fleet();
    let (web1, web2, db1) = (rig.host("web1"), rig.host("web2"), rig.host("db1"));
    // Requests and acknowledgements are signed, as all else.
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

    let ignored = "web2: not banned (in its ignoreip, or its own address, or the broker's)";
    let no_jail = "db1: not banned (no jail web)";
    let shown = web1.sh("f2bmqtt ban web 203.0.113.41");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines, ["203.0.113.41 is banned in web, for 10m", no_jail, ignored]);
    assert!(!web2.bans("web", "203.0.113.41"));
    assert_eq!(
        web1.sh("f2bmqtt ban web 198.51.100.1 203.0.113.42").lines().skip(2).collect::<Vec<_>>(),
        [
            "db1: not banned (no jail web)",
            "web2: banned: 203.0.113.42",
            "web2: not banned (in its MQTT_NEVER_BAN): 198.51.100.1",
        ]
    );
    assert!(web2.bans("web", "203.0.113.42") && !web2.bans("web", "198.51.100.1"));
    let ban = |ip: &str, web2: &str, db1: &str| json!({ "ip": ip, "already_banned": false, "seconds": 600, "acks": { "db1": db1, "web2": web2 } });
    assert_eq!(
        masked_json(web1, "f2bmqtt ban --json sshd 198.51.100.2"),
        json!({
            "jail": "sshd", "host": "web1", "published": true,
            "bans": [ban("198.51.100.2", "never_ban", "banned")],
            "hosts": ["db1"], "without_jail": [], "rejected": { "web2": "never_ban" }, "pending": [],
            "no_reply": [], "offline": [],
        })
    );
    assert_eq!(
        masked_json(web1, "f2bmqtt ban --json both 203.0.113.43")["bans"],
        json!([ban("203.0.113.43", "not_shared", "banned")])
    );
    // In a jail whose actions tell nobody, the command does.
    web1.sh("fail2ban-client set both delaction f2bmqtt");
    assert_eq!(
        masked_json(web1, "f2bmqtt ban --json both 203.0.113.48")["bans"],
        json!([ban("203.0.113.48", "not_shared", "banned")])
    );

    // More than a host acknowledges at once; without a daemon here, a child process publishes the ban.
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
    // The broker gives up a client that stopped about when the command gives up waiting.
    let no_reply = ["db1: no reply yet", "db1: offline; bans when it is back"];
    assert!(lines.len() == 3 && no_reply.contains(&lines[0]), "{shown}");
    assert_eq!(
        lines[1..],
        [
            "web2: not banned yet (fail2ban is busy or down)",
            "f2bmqtt: 2 hosts did not confirm the ban yet; this host's snapshot repeats it",
        ]
    );
    web2.sh("systemctl start fail2ban; systemctl stop f2bmqttsub");
    let output = web1.try_sh("f2bmqtt ban --json sshd 203.0.113.46").unwrap_err();
    let output: Value = serde_json::from_str(output.rsplit_once("\nf2bmqtt: ").unwrap().0).unwrap();
    assert_eq!((&output["hosts"], &output["offline"]), (&json!(["db1"]), &json!(["web2"])));
    web2.sh("systemctl start f2bmqttsub");
    eventually("web2 bans both, now that it is back", || {
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
    let log = || web1.sh("cat /var/log/abuseipdb/abuseipdb.log");
    eventually("the reporter was called", || {
        log().contains(
            "IP 192.31.196.50 is not reported: the address was banned by hand (f2bmqtt ban).",
        )
    });
    // What is detected is reported; by then the other would have been.
    web1.attack("auth", &["192.31.196.51"]);
    eventually("a detection is reported", || !taken(&rig).is_empty());
    // Banned again, after a start of fail2ban that passes on what it restores.
    web1.sh("sed -i 's/^BYPASS_FAIL2BAN = 0/BYPASS_FAIL2BAN = 1/' /etc/fail2ban/action.d/abuseipdb.local
             systemctl restart fail2ban");
    eventually("it was restored", || {
        log().matches("192.31.196.50 is not reported: the address was banned").count() == 2
    });
    web1.attack("auth", &["192.31.196.52"]);
    eventually("a detection is reported", || {
        taken(&rig).iter().any(|report| report[0] == "192.31.196.52")
    });
    assert!(taken(&rig).iter().all(|report| report[0] != "192.31.196.50"), "{:?}", taken(&rig));
    assert!(rig.host("web2").bans("sshd", "192.31.196.50"), "the fleet bans it all the same");
}
