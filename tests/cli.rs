//! The command line: names, help, exit codes, messages.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

/// Runs the binary under one of its names.
fn run(name: &str, arguments: &[&str], settings: Option<&Path>) -> Output {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("f2bmqtt"));
    command.arg0(name).args(arguments);
    if let Some(settings) = settings {
        command.env("F2BMQTT_ENV", settings);
    }
    Command::from_std(command).output().unwrap()
}

fn shown(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(text).unwrap()
}

#[test]
fn each_program_name_has_its_help() {
    let table = [
        ("f2bmqtt", &["--help"] as &[&str], "Makes a fleet of fail2ban servers ban as one"),
        ("f2bmqtt", &["notify", "--help"], "mqttnotifyban.sh <name> <ip> <bantime> ban"),
        ("f2bmqtt", &["subscribe", "--help"], "Share bans with the fleet until stopped"),
        ("f2bmqtt", &["check", "--help"], "Exit codes: 0 no faults, 1 faults, 78"),
        ("f2bmqtt", &["notify", "--help"], "The command leaves the event in the spool"),
        ("f2bmqtt", &["cut", "--help"], "End the open connections of a banned address"),
        ("f2bmqtt", &["status", "--help"], "hosts[].host, .state (online, offline, unknown)"),
        (
            "f2bmqtt",
            &["list", "--help"],
            "bans[].ip, .jail, .host, .since, .until, .forever, .also",
        ),
        ("f2bmqtt", &["ban", "--help"], "bans[].already_banned"),
        (
            "f2bmqtt",
            &["unban", "--help"],
            "Exit codes: 0 every host confirmed, 1 at least one host did not",
        ),
        ("f2bmqtt", &["forget", "--help"], "Remove a host that is gone for good from the fleet"),
        ("f2bmqtt", &["watch", "--help"], "separated by tabs"),
        ("/etc/fail2ban/mqttnotifyban", &["--help"], "Usage: mqttnotifyban <NAME> <IP> <BANTIME>"),
        ("mqttnotifyban.sh", &["--help"], "Usage: mqttnotifyban.sh <NAME> <IP> <BANTIME> <ACTION>"),
        ("/usr/local/bin/mqttsubscribebans", &["--help"], "Usage: mqttsubscribebans"),
    ];
    for (name, arguments, text) in table {
        let output = run(name, arguments, None);
        assert!(output.status.success(), "{name}");
        assert!(shown(&output).contains(text), "{name} {arguments:?}: {}", shown(&output));
    }
}

#[test]
fn help_is_wrapped_to_the_width_of_the_terminal() {
    let commands = [
        "",
        "notify",
        "subscribe",
        "check",
        "status",
        "list",
        "watch",
        "ban",
        "unban",
        "forget",
        "leave",
        "report",
        "cut",
        "settings",
    ];
    for command in commands {
        let mut help = std::process::Command::new(assert_cmd::cargo::cargo_bin!("f2bmqtt"));
        help.args(command.split_whitespace()).arg("--help").env("COLUMNS", "80");
        let output = Command::from_std(help).output().unwrap();
        assert!(output.status.success(), "{command}");
        // The line of usage is one line, however long.
        for line in shown(&output).lines().filter(|line| !line.starts_with("Usage: ")) {
            assert!(line.chars().count() <= 80, "{command}: {line}");
        }
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let table = [
        ("f2bmqtt", &[] as &[&str], "Usage: f2bmqtt <COMMAND>"),
        ("f2bmqtt", &["nonsense"], "unrecognized subcommand 'nonsense'"),
        ("mqttnotifyban", &["sshd", "192.0.2.1"], "required arguments were not provided"),
        (
            "mqttnotifyban",
            &["ss\"hd", "192.0.2.1", "600", "ban", "0", "3"],
            "f2bmqtt: NAME must be the name of a jail",
        ),
        (
            "mqttnotifyban",
            &["sshd", "192.0.2.1", "600", "ban", "0", "x[$(touch /tmp/x)]"],
            "f2bmqtt: FAILURES must be a number, 0 or more\n",
        ),
        (
            "mqttnotifyban",
            &["sshd", "192.0.2.0/24", "600", "ban", "0", "3"],
            "f2bmqtt: IP must be one",
        ),
        ("f2bmqtt", &["ban", "sshd"], "required arguments were not provided"),
        (
            "f2bmqtt",
            &["ban", "sshd", "192.0.2.0/24"],
            "IP must be one IPv4 or IPv6 address, not 192.0.2.0/24",
        ),
        (
            "f2bmqtt",
            &["ban", "sshd", "127.0.0.1"],
            "IP 127.0.0.1 is not an address of another machine",
        ),
        ("f2bmqtt", &["unban", "\u{1b}[2J"], "IP must be one IPv4 or IPv6 address, not \\u{1b}[2J"),
        ("f2bmqtt", &["unban", "192.0.2.1", "--jail", "a b"], "--jail must be the name of a jail"),
        ("f2bmqtt", &["forget", "a/b"], "HOST must be a name"),
        (
            "f2bmqtt",
            &["list", "nonsense"],
            "IP must be an address or a network, such as 203.0.113.0/24",
        ),
        ("f2bmqtt", &["cut", "nonsense"], "f2bmqtt: IP must be one IPv4 or IPv6 address\n"),
    ];
    for (name, arguments, text) in table {
        let output = run(name, arguments, None);
        assert_eq!(output.status.code(), Some(2), "{name} {arguments:?}");
        assert!(shown(&output).contains(text), "{name} {arguments:?}: {}", shown(&output));
    }
}

#[test]
fn events_that_need_no_message_exit_silently_with_0() {
    for arguments in [
        &["sshd", "192.0.2.1", "600", "ban", "1", "3"] as &[&str],
        &["sshd", "192.0.2.1", "600", "ban", "0", "0", "1795342588.5"],
        &["sshd", "192.0.2.1", "-1", "unban", "0", "0"],
        &["sshd", "192.0.2.1", "600", "ban", "0", ""],
        &["sshd", "192.0.2.1", "600", "ban", "0"],
    ] {
        let output = run("mqttnotifyban.sh", arguments, None);
        assert!(output.status.success() && shown(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn unusable_settings_exit_with_78() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mqtt.env");
    let output = run("mqttsubscribebans", &[], Some(&file));
    assert_eq!(output.status.code(), Some(78));
    let text = shown(&output);
    assert!(text.contains("cannot read the settings ") && text.contains("No such file"), "{text}");

    for arguments in
        [&["status"][..], &["list"], &["watch"], &["unban", "192.0.2.1"], &["forget", "a"]]
    {
        assert_eq!(run("f2bmqtt", arguments, Some(&file)).status.code(), Some(78), "{arguments:?}");
    }

    fs::write(&file, "MQTT_HOST=a b\nMQTT_PASSWORD=hun ter2\nMQTT_PORT=99999\n").unwrap();
    let output = run("f2bmqtt", &["subscribe"], Some(&file));
    assert_eq!(output.status.code(), Some(78));
    let text = shown(&output);
    for line in [
        "line 1: has text after",
        "line 2: has text after",
        "line 3: MQTT_PORT",
        "MQTT_TOPIC is not set",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("hun") && !text.contains("ter2"), "no password in an error: {text}");
}

#[test]
fn check_json_lists_each_settings_fault() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mqtt.env");
    fs::write(&file, "MQTT_PORT=0\nMQTT_PASSWORD=hun ter2\n").unwrap();
    let output = run("f2bmqtt", &["check", "--json"], Some(&file));
    assert_eq!(output.status.code(), Some(78), "{}", shown(&output));
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["state"], "fault");
    let checks = object["checks"].as_array().unwrap().iter();
    let found = checks.filter(|check| check["id"] == "settings").count();
    assert_eq!(found, 4, "lines 1 and 2, MQTT_HOST, MQTT_TOPIC: {object:#}");
    assert!(!shown(&output).contains("hun"), "no password in an error");
}

#[test]
fn shipped_settings_are_valid() {
    let text = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/mqtt.env")).unwrap();
    let config = f2bmqtt::config::Config::parse(Path::new("f"), &text, &|_| None, "web1").unwrap();
    assert_eq!(config.brokers[0].to_string(), "192.168.1.10:1883");
    assert_eq!(config.topic.below("ban"), "blacklist/ban");
    assert!(config.warnings.is_empty());
}
