//! Tests settings files with tables: values as bash reads them, and errors with their messages.

use std::path::Path;
use std::process::Command;

use super::*;

const GOOD: &str = "MQTT_HOST=broker\nMQTT_TOPIC=blacklist\n";

fn nothing(_: &str) -> Option<String> {
    None
}

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(Path::new("mqtt.env"), text.as_bytes(), &nothing, "web1")
}

fn own_variable(name: &str) -> Option<String> {
    match name {
        "OTHER" => Some("o th'er".to_owned()),
        "MY_VAR" => Some("mine".to_owned()),
        _ => None,
    }
}

fn value(line: &str) -> Result<String, &'static str> {
    env_line::read(line, &own_variable)
        .map(|entry| entry.map_or_else(String::new, |(_, value)| value))
}

/// The value of `K` in bash after sourcing the line.
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
fn valid_line_is_read_as_bash_reads_it() {
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
fn line_that_dotenvy_reads_unlike_bash_is_an_error() {
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
fn settings_of_the_scripts_are_accepted_unchanged() {
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

fn environment(name: &str) -> Option<String> {
    match name {
        "MQTT_HOST" | "BASE" => Some("from-environment".to_owned()),
        "MQTT_NODE" => Some("node1".to_owned()),
        _ => None,
    }
}

#[test]
fn value_of_the_file_takes_precedence_over_the_environment() {
    let text = "BASE=file\nMQTT_HOST=$BASE\nMQTT_TOPIC=t\n";
    let config = Config::parse(Path::new("f"), text.as_bytes(), &environment, "h").unwrap();
    assert_eq!(config.brokers[0].host, "file");
    assert_eq!(config.node.as_str(), "node1");
    assert_eq!(config.warnings, [""; 0], "BASE is used, so it is no stray key");
}

#[test]
fn several_brokers_stay_in_order() {
    let text = "MQTT_HOST='a,b:1884, [fd00::1]:1885,fd00::2'\nMQTT_PORT=1900\nMQTT_TOPIC=t\n";
    let shown: Vec<_> = parse(text).unwrap().brokers.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["a:1900", "b:1884", "[fd00::1]:1885", "[fd00::2]:1900"]);
}

#[test]
fn unknown_keys_are_a_warning() {
    let config = parse(&format!("{GOOD}MQTT_PASSWROD=x\nMQTT_THING=y\nMINE=z\n")).unwrap();
    let expected = [
        "line 3: unknown key MQTT_PASSWROD; did you mean MQTT_PASSWORD?",
        "line 4: unknown key MQTT_THING",
    ];
    assert_eq!(config.warnings, expected);
}

#[test]
fn misspelt_key_is_listed_with_the_missing_one() {
    let shown =
        parse("MQTT_HOST=hub\nMQTT_USER=u\nMQTT_PASSWORD=p\nMQTT_TOPIK=blacklist\n").unwrap_err();
    let expected = "the settings in mqtt.env cannot be used:
  line 4: unknown key MQTT_TOPIK; did you mean MQTT_TOPIC?
  MQTT_TOPIC is not set";
    assert_eq!(shown.to_string(), expected);
}

#[test]
fn lines_of_the_administrators_own_scripts_are_skipped_with_one_warning() {
    let own = "notify() {\n  logger -t ban \"$1\"\n}\nif [ -r /etc/default/x ]; then\n  . /etc/default/x\nfi\n\
               LIST=(a b)\nHERE=$(hostname)\nBASE=~/x\nexport LONG=one\\\n  two\nset -u\nMINE=7\n";
    let config = parse(&format!("{own}{GOOD}MQTT_NODE=n$MINE\n")).unwrap();
    assert_eq!((config.brokers[0].host.as_str(), config.node.as_str()), ("broker", "n7"));
    let expected = "skipped lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …, which only bash can read and which set no MQTT_ key";
    assert_eq!(config.warnings, [expected]);
}

#[test]
fn setting_that_only_bash_can_read_is_a_fault() {
    let table = [
        ("MQTT_HOST=$(cat /etc/hub)", 1, "has a $ that names no variable"),
        ("MQTT_HOST = hub", 1, "is not a setting: write NAME=value"),
        ("if true; then\n  MQTT_HOST=a\nfi", 2, "is inside a condition, a loop or a function"),
        ("[ -e /x ] && MQTT_HOST=a", 1, "is not a setting"),
        (": ${MQTT_NODE:=x}", 1, "is not a setting"),
        ("unset MQTT_TOPIC", 1, "is not a setting"),
        (
            "HUB=$(cat /etc/hub)\nMQTT_HOST=$HUB",
            2,
            "uses $HUB, which is set by a line that only bash can read",
        ),
        ("HUB=`x`\nTHERE=$HUB:1883\nMQTT_HOST=$THERE", 3, "uses $THERE, which is set by a line"),
        ("MQTT_PASSWORD='two\nlines'", 1, "has a quote that is not closed on the same line"),
    ];
    for (text, line, what) in table {
        // A valid line elsewhere does not replace the unreadable one.
        let faults = parse(&format!("{text}\n{GOOD}")).map(|config| config.brokers);
        let faults = faults.expect_err(text);
        assert_eq!((faults.list().len(), faults.list()[0].0), (1, line), "{text}: {faults}");
        assert!(faults.list()[0].1.starts_with(what), "{text}: {faults}");
    }
    let faults = parse("MQTT_HOST='h -p 1884'\nMQTT_TOPIC=t\n").unwrap_err().to_string();
    let lines = "line 1: MQTT_HOST has options of mosquitto_pub; write these lines instead: MQTT_HOST=h and MQTT_PORT=1884";
    assert!(faults.contains(lines), "{faults}");
    // The last line wins, also over an unreadable one.
    let config = parse(&format!("HUB=$(x)\nHUB=hub\nMQTT_NODE=$HUB\n{GOOD}")).unwrap();
    assert_eq!(config.node.as_str(), "hub");
}

#[test]
fn all_errors_are_listed_without_the_text_of_a_line() {
    let text = "MQTT_USER=fail2ban\nMQTT_PASSWORD=hunter2 hunter2\nMQTT_HOST=mqtt://broker\n\
                MQTT_PORT=0\nMQTT_NODE=a/b\nMQTT_TOPIC=a/#\nMQTT_JAILS='ss hd; id'\nMQTT_TLS=insecure\n\
                MQTT_NEVER_BAN=192.0.2.0/24,web.example\n";
    let shown = parse(text).unwrap_err().to_string();
    let expected = "the settings in mqtt.env cannot be used:
  line 2: has text after the value: put a value with blanks in quotes, and write one setting per line
  line 3: MQTT_HOST must be host, host:port or [IPv6 address]:port; separate several by commas
  line 4: MQTT_PORT must have a port from 1 to 65535
  line 5: MQTT_NODE must be a name of at most 128 bytes, without blanks, invisible characters and / + #
  line 6: MQTT_TOPIC must not have + or #, which are wildcards
  line 7: MQTT_JAILS must be names of jails, separated by commas or blanks
  line 8: MQTT_TLS must be on or off
  line 9: MQTT_NEVER_BAN must be addresses and networks such as 192.0.2.0/24, separated by commas or blanks";
    assert_eq!(shown, expected);
}

/// Valid settings with one line more.
fn parse_with(line: &str) -> Result<Config, ConfigErrors> {
    parse(&format!("{GOOD}{line}\n"))
}

#[test]
fn fail2ban_socket_is_an_absolute_path() {
    for (line, expected) in [
        ("", None),
        ("MQTT_FAIL2BAN_SOCKET=", None),
        ("MQTT_FAIL2BAN_SOCKET=/srv/f2b.sock", Some(PathBuf::from("/srv/f2b.sock"))),
    ] {
        assert_eq!(parse_with(line).unwrap().fail2ban_socket, expected, "{line}");
    }
    let fault = parse_with("MQTT_FAIL2BAN_SOCKET=f2b.sock").unwrap_err().to_string();
    assert!(fault.ends_with("MQTT_FAIL2BAN_SOCKET must be a path that begins with /"), "{fault}");
}

#[test]
fn invalid_proxy_is_an_error_that_does_not_show_the_url() {
    for url in ["http://proxy:3128", "http://ann:s3cret@[2001:db8::1]:3128/"] {
        let config = parse_with(&format!("MQTT_HTTPS_PROXY={url}")).unwrap();
        assert_eq!(config.https_proxy.unwrap().reveal(), url);
    }
    for url in ["s3cret:3128", "https://s3cret", "http://", "http://s3cret@", "'http://s3 cret'"] {
        let fault = parse_with(&format!("MQTT_HTTPS_PROXY={url}")).unwrap_err().to_string();
        assert!(fault.ends_with("must be the URL of a proxy: http://host:port"), "{fault}");
        assert!(!fault.contains("s3"), "{fault}");
    }
    assert!(parse(GOOD).unwrap().https_proxy.is_none());
}

#[test]
fn jails_and_networks_are_lists() {
    let [mail, ftp] = ["mail", "ftp"].map(|name| crate::model::Jail::new(name).unwrap());
    let all = parse(GOOD).unwrap();
    assert!(all.sharing.includes(&mail) && all.sharing.includes(&ftp) && all.never_ban.is_empty());
    let text = "MQTT_JAILS='sshd, web mail'\nMQTT_NEVER_BAN='192.0.2.1 2001:db8::/32,10.0.0.0/8'";
    let some = parse_with(text).unwrap();
    assert!(some.sharing.includes(&mail) && !some.sharing.includes(&ftp));
    let shown: Vec<_> = some.never_ban.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["192.0.2.1/32", "2001:db8::/32", "10.0.0.0/8"]);
    let all_but_one = parse_with("MQTT_NOT_JAILS=ftp").unwrap();
    assert!(all_but_one.sharing.includes(&mail) && !all_but_one.sharing.includes(&ftp));
    let both = format!("{GOOD}MQTT_JAILS=sshd,web\nMQTT_NOT_JAILS=web\n");
    let shown = parse(&both).unwrap_err().to_string();
    assert!(shown.ends_with("line 4: MQTT_NOT_JAILS and MQTT_JAILS both name web"), "{shown}");
    for text in ["MQTT_JAILS=,", "MQTT_NOT_JAILS='a\"b'", "MQTT_NEVER_BAN=', '"] {
        assert!(parse(&format!("{GOOD}{text}\n")).is_err(), "{text}");
    }
}

#[test]
fn short_signing_key_is_an_error_that_does_not_show_the_key() {
    assert!(parse(GOOD).unwrap().signing.is_none());
    let long = "0123456789abcdef";
    let config = parse(&format!("{GOOD}MQTT_SIGNING_KEY={long}\n")).unwrap();
    assert!(!format!("{config:?}").contains(long));
    assert!(!config.signing.unwrap().accept_unsigned);
    let text = format!("{GOOD}MQTT_SIGNING_KEY='{long}, x{long}'\nMQTT_ACCEPT_UNSIGNED=yes\n");
    assert!(parse(&text).unwrap().signing.unwrap().accept_unsigned);
    let (short, three) = (format!("hunter2,{long}"), format!("{long},{long},{long}"));
    for value in [&short, &three, "off", "hunter2hunter2,"] {
        let shown = parse(&format!("{GOOD}MQTT_SIGNING_KEY={value}\n")).unwrap_err().to_string();
        assert!(shown.ends_with("make a secret with: openssl rand -hex 32"), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains(long), "{shown}");
    }
    let shown = parse(&format!("{GOOD}MQTT_ACCEPT_UNSIGNED=no\n")).unwrap_err().to_string();
    assert!(shown.ends_with("line 3: MQTT_ACCEPT_UNSIGNED is no, but MQTT_SIGNING_KEY is not set"));
    assert!(parse(&format!("{GOOD}MQTT_ACCEPT_UNSIGNED=off\n")).is_err());
}

#[test]
fn missing_setting_is_listed() {
    let shown = parse("MQTT_HOST=\nMQTT_PASSWORD=x\n").unwrap_err().to_string();
    let expected = "the settings in mqtt.env cannot be used:
  line 1: MQTT_HOST is not set
  MQTT_TOPIC is not set
  MQTT_PASSWORD is set but MQTT_USER is not";
    assert_eq!(shown, expected);
}

#[test]
fn invalid_broker_is_an_error() {
    for text in ["", "a,", "a:b", "a:0", "a:70000", "[::1", "[::1]x", "::g", "a b", "mqtt://a"] {
        assert!(values::brokers(text).is_err(), "{text:?}");
    }
}

/// A directory with a CA, certificates and keys of hosts, and invalid files, made by the example's commands.
fn certificates() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mosquitto/certificates");
    let commands = format!(
        "{0} ca; {0} host web1; {0} host web2; echo nothing >empty
         openssl pkey -in web1.key -aes128 -passout pass:x -out locked.key
         openssl ec -in web1.key -aes128 -passout pass:x -out older.key 2>/dev/null",
        script.display()
    );
    let out = Command::new("sh").args(["-ec", &commands]).current_dir(dir.path()).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    dir
}

fn with_dir(text: &str, dir: &tempfile::TempDir) -> String {
    text.replace("DIR", &dir.path().display().to_string())
}

#[test]
fn tls_is_on_with_a_ca_or_a_switch_and_has_its_default_port() {
    let dir = certificates();
    let table = [
        ("", Some(1883)),
        ("MQTT_TLS=off\n", Some(1883)),
        ("MQTT_CAFILE=\nMQTT_CERT=\n", Some(1883)),
        ("MQTT_CAFILE=DIR/ca.crt\n", Some(8883)),
        ("MQTT_TLS=on\nMQTT_CAFILE=DIR/ca.crt\n", Some(8883)),
        ("MQTT_CAFILE=DIR/ca.crt\nMQTT_PORT=1234\n", Some(1234)),
        ("MQTT_CAFILE=DIR/ca.crt\nMQTT_CERT=DIR/web1.crt\nMQTT_KEY=DIR/web1.key\n", Some(8883)),
        // Settings that ask for TLS but leave it off are errors.
        ("MQTT_TLS=off\nMQTT_CAFILE=DIR/ca.crt\n", None),
        ("MQTT_CERT=DIR/web1.crt\nMQTT_KEY=DIR/web1.key\n", None),
        ("MQTT_CAFILE=DIR/missing\n", None),
    ];
    for (text, port) in table {
        let config = parse_with(&with_dir(text, &dir));
        let found = config.as_ref().ok().map(|config| config.brokers[0].port);
        assert_eq!(found, port, "{text}: {config:?}");
        if let Ok(config) = config {
            assert_eq!(config.tls.is_some(), port != Some(1883), "{text}");
            assert_eq!(config.warnings, [""; 0]);
        }
    }
}

#[test]
fn certificates_have_a_name_and_an_expiry() {
    let dir = certificates();
    let dir = dir.path().display();
    let tls =
        format!("MQTT_CAFILE={dir}/ca.crt\nMQTT_CERT={dir}/web1.crt\nMQTT_KEY={dir}/web1.key\n");
    let config = parse(&format!("{GOOD}MQTT_USER=fail2ban\nMQTT_PASSWORD=x\n{tls}")).unwrap();
    assert_eq!(config.user().as_deref(), Some("web1"), "the certificate's name, not the login's");
    let all = config.tls.unwrap().certificates();
    let kinds: Vec<_> = all.iter().map(|certificate| certificate.kind).collect();
    assert_eq!(kinds, ["client", "ca"]);
    for (certificate, file) in all.iter().zip(["web1.crt", "ca.crt"]) {
        let command = format!(
            "date -d \"$(openssl x509 -in {dir}/{file} -noout -enddate | cut -d= -f2)\" +%s"
        );
        let out = Command::new("sh").args(["-c", &command]).output().unwrap();
        let end: i64 = String::from_utf8(out.stdout).unwrap().trim().parse().unwrap();
        assert_eq!(certificate.ends, end, "{file}");
    }
    assert_eq!(all[0].title(), "this host's certificate, MQTT_CERT (web1)");
    let day = 86_400;
    let table = [(31, false), (30, false), (29, true), (0, true), (-5, true)];
    for (days, soon) in table {
        assert_eq!(all[0].ends_soon(all[0].ends - days * day), soon, "{days}");
    }
    assert_eq!(parse(&format!("{GOOD}MQTT_USER=u\n")).unwrap().user().as_deref(), Some("u"));
}

#[test]
fn error_in_a_tls_file_names_the_line_of_the_setting() {
    let dir = certificates();
    let table = [
        (
            "MQTT_CAFILE=DIR/missing\nMQTT_CERT=DIR/empty\nMQTT_KEY=DIR/locked.key\n",
            "line 3: MQTT_CAFILE cannot be read: DIR/missing: No such file or directory (os error 2)
  line 4: MQTT_CERT has no certificate in PEM form: DIR/empty
  line 5: MQTT_KEY is encrypted with a passphrase; use a key without a passphrase: DIR/locked.key",
        ),
        (
            "MQTT_CAFILE=DIR/ca.crt\nMQTT_CERT=DIR/web1.crt\nMQTT_KEY=DIR/older.key\n",
            "line 5: MQTT_KEY is encrypted with a passphrase; use a key without a passphrase: DIR/older.key",
        ),
        (
            "MQTT_CAFILE=ca.crt\nMQTT_KEY=DIR/empty\n",
            "line 3: MQTT_CAFILE must be a path that begins with /
  line 4: MQTT_KEY has no private key in PEM form: DIR/empty
  line 4: MQTT_KEY is set but MQTT_CERT is not",
        ),
        (
            "MQTT_KEY=DIR/web2.key\nMQTT_CERT=DIR/web1.crt\nMQTT_CAFILE=DIR/ca.crt\n",
            "line 3: MQTT_KEY is not the key of the certificate in MQTT_CERT",
        ),
        (
            "MQTT_TLS=off\nMQTT_CAFILE=DIR/ca.crt\n",
            "line 4: MQTT_CAFILE is set, but MQTT_TLS is off: remove one of them",
        ),
        (
            "MQTT_CERT=DIR/web1.crt\nMQTT_KEY=DIR/web1.key\n",
            "line 3: MQTT_CERT is set, but no CA to verify the broker: set MQTT_CAFILE, or MQTT_TLS=on for \
             the system's CAs",
        ),
        ("MQTT_CAFILE=DIR/ca.crt\nMQTT_HOST=a..b\n", "line 4: MQTT_HOST has a host name that no TLS \
          certificate can contain"),
    ];
    for (text, expected) in table {
        let shown = parse_with(&with_dir(text, &dir)).unwrap_err().to_string();
        let shown = shown.strip_prefix("the settings in mqtt.env cannot be used:\n  ").unwrap();
        assert_eq!(shown, with_dir(expected, &dir), "{text}");
    }
}

#[test]
fn key_that_others_can_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = certificates();
    let key = dir.path().join("web1.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let dir = dir.path().display();
    let text = format!(
        "{GOOD}MQTT_CAFILE={dir}/ca.crt\nMQTT_CERT={dir}/web1.crt\nMQTT_KEY={dir}/web1.key\n"
    );
    let key = key.display();
    let expected =
        format!("{key} is a private key and is readable by other users; run: chmod 600 {key}");
    assert_eq!(parse(&text).unwrap().warnings, [expected]);
}

#[test]
fn fleet_topic_below_f2bmqtt_is_an_error() {
    for topic in ["f2bmqtt", "f2bmqtt/blacklist"] {
        let text = format!("MQTT_HOST=hub\nMQTT_TOPIC={topic}\n");
        let faults = Config::parse(Path::new("f"), text.as_bytes(), &|_| None, "web1").unwrap_err();
        assert!(faults.to_string().contains("line 2: MQTT_TOPIC must not be f2bmqtt"), "{faults}");
    }
}
