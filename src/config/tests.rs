//! Tables of settings files: what bash makes of them, what is a fault, and what it says.

use std::path::Path;
use std::process::Command;

use super::*;

const GOOD: &str = "MQTT_HOST=broker\nMQTT_TOPIC=blacklist\n";

fn nothing(_: &str) -> Option<String> {
    None
}

fn parse(text: &str) -> Result<Config, Faults> {
    Config::parse(Path::new("mqtt.env"), text.as_bytes(), &nothing, "web1")
}

fn value(line: &str) -> Result<String, &'static str> {
    let known = |name: &str| match name {
        "OTHER" => Some("o th'er".to_owned()),
        "MY_VAR" => Some("mine".to_owned()),
        _ => None,
    };
    line::read(line, &known).map(|entry| entry.map_or_else(String::new, |(_, value)| value))
}

/// What bash itself has in `K` after sourcing the line, and whether that was all it did.
fn bash(line: &str) -> String {
    let script = r#"OTHER="o th'er" MY_VAR=mine; . "$1"; printf %s "$K""#;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("line.env");
    std::fs::write(&file, line).unwrap();
    let mut bash = Command::new("bash");
    let out = bash.args(["-c", script, "bash"]).arg(&file).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn a_line_is_read_as_bash_reads_it() {
    let lines = [
        "K=value",
        "export K=value",
        "  K=value   ",
        "K='two words'",
        "K=\"two words\"  # and a comment",
        "K=plain # comment",
        "K=a#b",
        "K=\"a # b\"",
        "K='a \\n $OTHER `x`'",
        "K=\"$OTHER\"",
        "K=\"${OTHER}s\"",
        "K=$OTHER",
        "K=$MY_VAR",
        "K=\"x$MY_VAR/$OTHER\"",
        "K=$NOT_SET",
        "K=a\"b c\"'d e'f",
        "K=\"a\"#b",
        "K=pa\\ ss",
        "K=\"q\\\"uote\\\\ \\$5\"",
        "K=",
        "K= # nothing",
        "K=''",
        "K=a=b",
        "K=*?[x]!%^",
        "K=p{a}ss",
        "K=h~x",
        "K=\"tick' s\"",
        "K=grün",
    ];
    for line in lines {
        assert_eq!(value(line), Ok(bash(line)), "{line}");
    }
}

#[test]
fn what_dotenvy_reads_unlike_bash_is_a_fault() {
    let lines = [
        "K = v",
        "K= v",
        "K =v",
        "K.A=v",
        "K+=v",
        "export K",
        "just words",
        "K=a b",
        "K=a; B=c",
        "K=\"a\\nb\"",
        "K=\"C:\\pass\"",
        "K=\"don\\'t\"",
        "K=a\\nb",
        "K=a\\",
        "K=`id`",
        "K=$(id)",
        "K=a$",
        "K=\"5$ \"",
        "K=$1",
        "K=$$",
        "K=${A:-b}",
        "K=~/x",
        "K=a:~/x",
        "K=(a b)",
        "K=a&b",
        "K=a|b",
        "K=a>b",
        "K='open",
        "K=\"open",
        "K=#x",
        "export K={a,b}",
        "K=a\u{1}b",
        "=v",
        "9K=v",
        "K=\"`id`\"",
        "K=x\u{f0000}y",
    ];
    for line in lines {
        let fault = value(line).expect_err(line);
        assert!(!fault.contains("pass") && !fault.contains("\\n"), "{line}: {fault}");
    }
}

#[test]
fn settings_of_the_scripts_are_taken_as_they_are() {
    let text = "# broker\r\nMQTT_USER=fail2ban\r\nexport MQTT_PASSWORD='p a$$'\r\n\
                MQTT_HOST=192.168.1.10\r\nMQTT_TOPIC=old\r\nMQTT_TOPIC=blacklist";
    let config = parse(text).unwrap();
    assert_eq!(config.brokers, [Broker { host: "192.168.1.10".to_owned(), port: 1883 }]);
    let login = config.login.unwrap();
    assert_eq!((login.user.as_str(), login.password.reveal()), ("fail2ban", "p a$$"));
    assert_eq!(config.topic.below("ban"), "blacklist/ban");
    assert_eq!(config.node.as_str(), "web1");
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn the_file_beats_the_environment_and_the_environment_fills_gaps() {
    let environment = |name: &str| match name {
        "MQTT_HOST" | "BASE" => Some("from-environment".to_owned()),
        "MQTT_NODE" => Some("node1".to_owned()),
        _ => None,
    };
    let text = "BASE=file\nMQTT_HOST=$BASE\nMQTT_TOPIC=t\n";
    let config = Config::parse(Path::new("f"), text.as_bytes(), &environment, "h").unwrap();
    assert_eq!(config.brokers[0].host, "file");
    assert_eq!(config.node.as_str(), "node1");
    assert_eq!(config.warnings, [""; 0], "BASE is used, so it is no stray key");
}

#[test]
fn several_brokers_are_kept_in_order() {
    let text = "MQTT_HOST='a,b:1884, [fd00::1]:1885,fd00::2'\nMQTT_PORT=1900\nMQTT_TOPIC=t\n";
    let shown: Vec<_> = parse(text).unwrap().brokers.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["a:1900", "b:1884", "[fd00::1]:1885", "[fd00::2]:1900"]);
}

#[test]
fn unknown_keys_are_a_warning() {
    let config = parse(&format!("{GOOD}MQTT_PASSWROD=x\n")).unwrap();
    assert_eq!(config.warnings, ["line 3: MQTT_PASSWROD is no setting of f2bmqtt: ignored"]);
}

#[test]
fn all_faults_are_told_at_once_without_the_text_of_a_line() {
    let text = "MQTT_USER=fail2ban\nMQTT_PASSWORD=hunter2 hunter2\nMQTT_HOST=mqtt://broker\n\
                MQTT_PORT=0\nMQTT_NODE=a/b\nMQTT_TOPIC=a/#\nMQTT_TLS=on\n";
    let shown = parse(text).unwrap_err().to_string();
    let expected = "the settings in mqtt.env cannot be used:
  line 2: has more after the value: put a value with blanks in quotes, one setting on a line
  line 3: MQTT_HOST must be host, host:port or [IPv6 address]:port, several with commas between
  line 4: MQTT_PORT has a port that is no number from 1 to 65535
  line 5: MQTT_NODE must be a name of at most 128 bytes without / + # or control characters
  line 6: MQTT_TOPIC has a + or #, which stand for other topics
  line 7: MQTT_TLS is not known to this version";
    assert_eq!(shown, expected);
}

#[test]
fn what_is_missing_is_named() {
    let shown = parse("MQTT_HOST=\nMQTT_PASSWORD=x\n").unwrap_err().to_string();
    let expected = "the settings in mqtt.env cannot be used:
  line 1: MQTT_HOST is not set
  MQTT_TOPIC is not set
  MQTT_PASSWORD is set and MQTT_USER is not";
    assert_eq!(shown, expected);
}

#[test]
fn brokers_that_cannot_be_are_refused() {
    for text in ["", "a,", "a:b", "a:0", "a:70000", "[::1", "[::1]x", "::g", "a b", "mqtt://a"] {
        assert!(values::brokers(text).is_err(), "{text:?}");
    }
}
