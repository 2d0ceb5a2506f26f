//! The AbuseIPDB reporter on the installed package: real fail2ban, and a server that plays
//! api.abuseipdb.com behind the unchanged name, with a CA of its own in the host's trust store.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Host, Rig, eventually};

const CALL: &str = "/etc/fail2ban/action.d/fail2ban-abuseipdb.sh";
const LOG: &str = "/var/log/abuseipdb/abuseipdb.log";

/// What the server takes for a key.
fn key() -> String {
    "a1".repeat(40)
}

/// Makes the hub the server, and lets a host know and trust it.
fn reports_to_hub(rig: &Rig, host: Host<'_>) {
    let support = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
    let hub = rig.host("hub");
    for file in ["abuseipdb.py", "abuseipdb.sh"] {
        hub.push(&support.join(file), &format!("/root/{file}"));
    }
    hub.sh("sh /root/abuseipdb.sh");
    let ca = hub.sh("cat /root/ca.pem");
    host.sh(&format!(
        "echo '{ca}' >/usr/local/share/ca-certificates/tests.crt
         update-ca-certificates >/dev/null 2>&1
         echo '10.213.77.11 api.abuseipdb.com' >>/etc/hosts
         umask 077; echo APIKEY={} >/etc/fail2ban/abuseipdb.apikey",
        key()
    ));
    eventually("the server listens", || hub.try_sh("ss -ltn | grep -q :443").is_ok());
}

/// Lets the jail sshd report, with these settings of the action.
fn jail_reports(host: Host<'_>, settings: &str) {
    host.sh(&format!(
        "cat >/etc/fail2ban/jail.d/report.local <<'E'\n[sshd]\naction = %(action_)s\n         \
         %(action_abuseipdb)s[{settings}]\nE\nfail2ban-client reload --restart sshd"
    ));
}

/// The requests that the server got.
fn calls(rig: &Rig) -> Vec<Value> {
    let calls = rig.host("hub").sh("cat /root/api/calls 2>/dev/null; true");
    calls.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The reports that it took: address, categories, comment, time.
fn taken(rig: &Rig) -> Vec<[String; 4]> {
    let taken = rig.host("hub").sh("cat /root/api/taken 2>/dev/null; true");
    taken.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn addresses(taken: &[[String; 4]]) -> BTreeSet<&str> {
    taken.iter().map(|report| report[0].as_str()).collect()
}

/// Waits for something that the reporter's own pauses hold up.
fn at_last(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < Duration::from_secs(150), "not seen: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn what_is_detected_here_is_reported_once_and_nothing_private_with_it() {
    let rig = Rig::fleet(&["a"]);
    let a = rig.host("a");
    a.sh("useradd -m ann");
    reports_to_hub(&rig, a);
    jail_reports(a, r#"abuseipdb_category="18,22""#);
    // Another host's ban, and the operator's: they are no business of AbuseIPDB's.
    rig.host("hub").publish_event("ban", "sshd", "203.0.113.5", "other");
    a.sh("fail2ban-client set sshd banip 203.0.113.6");
    a.sh("t=$(date '+%b %e %H:%M:%S')
          printf '%s a sshd[9]: Failed password for ann from 203.0.113.9 port 1 ssh2\\n' \
             \"$t\" \"$t\" \"$t\" >>/var/log/auth.log");
    eventually("the ban is reported", || taken(&rig).len() == 1);
    eventually("and noted", || {
        a.sh(&format!("cat {LOG}")).contains("SUCCESS: Reported 203.0.113.9")
    });
    eventually("the import is banned", || a.bans("sshd", "203.0.113.5"));

    let calls = calls(&rig);
    assert_eq!(calls.len(), 2, "{calls:#?}");
    let check = "GET /api/v2/check?ipAddress=203.0.113.9&maxAgeInDays=90&verbose=";
    assert_eq!(calls[0]["call"], check);
    assert_eq!(calls[1]["call"], "POST /api/v2/report");
    for call in &calls {
        assert_eq!(call["headers"]["key"], key());
        assert_eq!(call["headers"]["accept"], "application/json");
    }
    assert_eq!(calls[1]["headers"]["content-type"], "application/x-www-form-urlencoded");
    let body = calls[1]["body"].as_str().unwrap();
    let names: Vec<_> = body.split('&').map(|field| field.split('=').next().unwrap()).collect();
    assert_eq!(names, ["comment", "ip", "categories", "timestamp"]);
    let [ip, categories, comment, time] = &taken(&rig)[0];
    assert_eq!((ip.as_str(), categories.as_str()), ("203.0.113.9", "18,22"));
    let line = comment
        .strip_suffix(" [host] sshd[9]: Failed password for [user] from 203.0.113.9 port 1 ssh2");
    assert_eq!(line.map(str::len), Some("Nov 22 15:04:05".len()), "{comment}");
    let row = "sqlite3 /var/lib/fail2ban/fail2ban.sqlite3 \
               \"SELECT strftime('%Y-%m-%dT%H:%M:%S+00:00', timeofban, 'unixepoch') FROM bips WHERE ip='203.0.113.9'\"";
    eventually("the report has the time of the ban", || {
        let banned = a.sh(row);
        !banned.is_empty() && banned[..17] == time[..17]
    });
    let ledger =
        "sqlite3 /var/lib/fail2ban/abuseipdb/fail2ban_abuseipdb 'SELECT * FROM banned_ips'";
    assert_eq!(a.sh(ledger), "203.0.113.9|600");
    assert_eq!(a.sh("stat -c %a /var/lib/fail2ban/abuseipdb/fail2ban_abuseipdb"), "600");
    let quota = "sqlite3 /var/lib/f2bmqtt/reports.sqlite3 \
                 \"SELECT quota, remaining FROM calls WHERE name='report'\"";
    assert_eq!(a.sh(quota), "1000|777");
    // A restart restores the bans, and tells nobody anew.
    a.sh("systemctl restart f2bmqttsub fail2ban");
    a.ready();
    eventually("restored bans are passed over", || {
        a.sh(&format!("cat {LOG}")).contains("INFO: (RESTART) IP 203.0.113.9")
    });
    assert_eq!(taken(&rig).len(), 1);
    let secret = key();
    let found = a.try_sh(&format!(
        "grep -rIl {secret} /var/log /run /etc /tmp /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null \
           | grep -v -e abuseipdb.apikey -e /proc/self -e /proc/$$; journalctl --no-pager | grep {secret}"
    ));
    // The very search is a process, too.
    let found = found.unwrap_or_else(|text| text);
    assert!(!found.lines().any(|line| !line.contains("/proc/")), "the key is in {found}");
}

#[test]
fn without_a_daemon_an_edited_action_goes_on_with_the_key_that_it_passes() {
    let rig = Rig::fleet(&["a"]);
    let a = rig.host("a");
    reports_to_hub(&rig, a);
    a.sh("systemctl stop f2bmqttsub; rm /etc/fail2ban/abuseipdb.apikey");
    // As people have it from the scripts: the call in the background, quotes and all.
    a.sh(&format!(
        r#"cat >/etc/fail2ban/action.d/abuseipdb.local <<'E'
[Definition]
norestored = 0
actionstart = nohup {CALL} "--actionstart" "<sqlite_db>" "<log_file>" >/dev/null 2>&1 &
actionban = {CALL} "<abuseipdb_apikey>" "<matches>" "<ip>" "<abuseipdb_category>" "<bantime>" "<restored>" "<bypass_fail2ban>" "<sqlite_db>" "<log_file>" "<failures>"
[Init]
BYPASS_FAIL2BAN = 0
SQLITE_DB = /var/lib/own/reported
LOG_FILE = /var/log/own.log
E"#
    ));
    jail_reports(
        a,
        &format!(
            r#"abuseipdb_apikey="{}", abuseipdb_category="22", matches="SSH brute force""#,
            key()
        ),
    );
    a.attack("auth", &["203.0.113.9"]);
    eventually("the ban is reported", || taken(&rig).len() == 1);
    assert_eq!(taken(&rig)[0][1..3], ["22", "SSH brute force"]);
    eventually("and noted", || {
        a.sh("cat /var/log/own.log").contains("SUCCESS: Reported 203.0.113.9")
    });
    assert_eq!(a.sh("sqlite3 /var/lib/own/reported 'SELECT * FROM banned_ips'"), "203.0.113.9|600");
    eventually("the child is gone", || a.try_sh("pgrep -f '[f]2bmqtt work'").is_err());
    // Two jails at once become one report, and one after the window.
    a.sh(&format!(
        "{CALL} {} 'web: probing' 203.0.113.9 21 600 0 0 /var/lib/own/reported /var/log/own.log 1",
        key()
    ));
    eventually("a child waits for the window", || a.try_sh("pgrep -f '[f]2bmqtt work'").is_ok());
    // The daemon takes over.
    a.sh("systemctl start f2bmqttsub");
    at_last("the child leaves it to the daemon", || a.try_sh("pgrep -f '[f]2bmqtt work'").is_err());
    let waiting = "sqlite3 /var/lib/f2bmqtt/reports.sqlite3 'SELECT stage FROM waiting'";
    assert_eq!(a.sh(waiting), "due");
    assert_eq!(taken(&rig).len(), 1);
}

#[test]
fn nothing_is_lost_or_told_twice_when_the_server_is_away_and_the_daemon_is_killed() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    reports_to_hub(&rig, a);
    hub.sh("systemctl stop api");
    // All at once, as a burst of bans in many jails is.
    let codes = a.sh(&format!(
        "for i in $(seq 200); do ({CALL} '' x 203.0.113.$i 18 600 0 0 '' '' 3; echo $?) & done; wait"
    ));
    assert_eq!(codes.lines().filter(|code| *code == "0").count(), 200, "{codes}");
    eventually("the server is missed", || {
        a.sh(&format!("cat {LOG}")).contains("ERROR: No connection to api.abuseipdb.com")
    });
    hub.sh("systemctl reset-failed api 2>/dev/null; sh /root/abuseipdb.sh");
    at_last("all are reported", || {
        a.sh("systemctl kill -s KILL f2bmqttsub; true");
        std::thread::sleep(Duration::from_millis(700));
        addresses(&taken(&rig)).len() == 200
    });
    assert_eq!(taken(&rig).len(), 200);
    let waiting = "sqlite3 /var/lib/f2bmqtt/reports.sqlite3 'SELECT count(*) FROM waiting'";
    at_last("nothing waits", || a.sh(waiting) == "0");
    assert_eq!(taken(&rig).len(), 200);
    let bulk = calls(&rig).iter().filter(|call| call["call"] == "POST /api/v2/bulk-report").count();
    assert!((1..=2).contains(&bulk), "{bulk} bulk calls");
}

#[test]
fn what_is_wrong_with_the_connection_or_the_answer_is_said() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    reports_to_hub(&rig, a);
    a.sh("systemctl stop f2bmqttsub");
    let trust = "update-ca-certificates --fresh >/dev/null 2>&1";
    let ca = "/usr/local/share/ca-certificates/tests.crt";
    let to = |address: &str| format!("sed -i 's/^.* api.abuse/{address} api.abuse/' /etc/hosts");
    // What is done, how it is undone, and what the log says of it.
    let answers = |text: &str| {
        hub.sh(&format!("printf '{text}' >/root/api/answer"));
        String::new()
    };
    let table: [(&dyn Fn() -> String, String, &str); 9] = [
        (
            &|| format!("mv {ca} /root/; {trust}"),
            format!("mv /root/tests.crt {ca}; {trust}"),
            "ERROR: No connection to api.abuseipdb.com: * UnknownIssuer",
        ),
        (
            &|| to("10.213.77.12"),
            to("10.213.77.11"),
            "ERROR: No connection to api.abuseipdb.com: * refused",
        ),
        (
            &|| "sed -i 's/api.abuse/not.abuse/' /etc/hosts".to_owned(),
            "sed -i 's/not.abuse/api.abuse/' /etc/hosts".to_owned(),
            "ERROR: No connection to api.abuseipdb.com: * lookup",
        ),
        (
            &|| answers("500 <html>trouble</html>"),
            String::new(),
            "ERROR: HTTP 500. Response: <html>trouble",
        ),
        (&|| answers("200 "), String::new(), "ERROR: HTTP 200. Response: (nothing)"),
        (
            &|| answers("200 truncated"),
            String::new(),
            "ERROR: HTTP 200. Response: truncated... (broken off",
        ),
        (&|| answers("200 endless"), String::new(), "ERROR: HTTP 200. Response: * (too long)"),
        (
            &|| answers("200 stalled"),
            String::new(),
            "ERROR: HTTP 200. Response: ... (broken off: * timed out",
        ),
        (&|| answers("401 {}"), String::new(), "ERROR: HTTP 401. Response: {}"),
    ];
    for (make, undo, said) in table {
        a.sh(&format!(
            "pkill -f '[f]2bmqtt work'; rm -f /var/lib/f2bmqtt/reports.sqlite3* {LOG}; true"
        ));
        let make = make();
        a.sh(&make);
        a.sh(&format!("{CALL} '' x 203.0.113.9 18 600 0 0 '' '' 3"));
        let (first, last) = said.split_once(" * ").unwrap_or((said, ""));
        let mut log = String::new();
        at_last(said, || {
            log = a.sh(&format!("cat {LOG} 2>/dev/null; true"));
            log.lines().any(|line| line.contains(first) && line.contains(last))
        });
        assert!(log.len() < 4000, "{log}");
        hub.sh("rm -f /root/api/answer");
        a.sh(&undo);
    }
    assert_eq!(taken(&rig).len(), 0);
    // And then, all is well.
    a.sh("pkill -f '[f]2bmqtt work'; rm -f /var/lib/f2bmqtt/reports.sqlite3*");
    a.sh(&format!("{CALL} '' x 203.0.113.9 18 600 0 0 '' '' 3"));
    eventually("the ban is reported", || taken(&rig).len() == 1);
    assert_eq!(json!(taken(&rig)[0][0]), "203.0.113.9");
}
