//! The AbuseIPDB reporter with the installed package and real fail2ban. A local server simulates api.abuseipdb.com under
//! the real name, with a test CA in the host's trust store.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::reports::{jail_reports, key, reports_to_hub, taken};
use support::{Host, Rig, eventually};

const CALL: &str = "/etc/fail2ban/action.d/fail2ban-abuseipdb.sh";
/// Ends a child process that sends queued reports, and waits until its lock is released.
const NO_CHILD: &str = "pkill -f '[f]2bmqtt work'; \
    while pgrep -f '[f]2bmqtt work' >/dev/null; do sleep 0.1; done";
const LOG: &str = "/var/log/abuseipdb/abuseipdb.log";

/// The requests that the server received.
fn calls(rig: &Rig) -> Vec<Value> {
    let calls = rig.host("hub").sh("cat /root/api/calls 2>/dev/null; true");
    calls.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn addresses(taken: &[[String; 4]]) -> BTreeSet<&str> {
    taken.iter().map(|report| report[0].as_str()).collect()
}

/// Waits for a condition that the reporter's own pauses delay.
fn within_reporter_delay(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < Duration::from_secs(150), "not seen: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn local_detection_is_reported_once_without_private_data() {
    let rig = Rig::fleet(&["a"]);
    let a = rig.host("a");
    a.sh("useradd -m ann");
    reports_to_hub(&rig, a);
    jail_reports(
        a,
        r#"abuseipdb_category="18,22", BYPASS_FAIL2BAN=0, LOG_FILE="/var/log/abuseipdb/abuseipdb.log""#,
    );
    // An imported and a manual ban, which must not be reported.
    rig.host("hub").publish_event("ban", "sshd", "192.31.196.5", "other");
    a.sh("fail2ban-client set sshd banip 192.31.196.6");
    a.sh("t=$(date '+%b %e %H:%M:%S')
          printf '%s a sshd[9]: Failed password for ann from 192.31.196.9 port 1 ssh2\\n' \
             \"$t\" \"$t\" \"$t\" >>/var/log/auth.log");
    eventually("the ban is reported", || taken(&rig).len() == 1);
    eventually("the report is logged", || {
        a.sh(&format!("cat {LOG} 2>/dev/null; true")).contains("SUCCESS: Reported 192.31.196.9")
    });
    eventually("a imports the ban", || a.bans("sshd", "192.31.196.5"));

    let calls = calls(&rig);
    assert_eq!(calls.len(), 2, "{calls:#?}");
    let check = "GET /api/v2/check?ipAddress=192.31.196.9&maxAgeInDays=90&verbose=";
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
    assert_eq!((ip.as_str(), categories.as_str()), ("192.31.196.9", "18,22"));
    let line = comment
        .strip_suffix(" [host] sshd[9]: Failed password for [user] from 192.31.196.9 port 1 ssh2");
    assert_eq!(line.map(str::len), Some("Nov 22 15:04:05".len()), "{comment}");
    let row = "sqlite3 /var/lib/fail2ban/fail2ban.sqlite3 \
        \"SELECT strftime('%Y-%m-%dT%H:%M:%S+00:00', timeofban, 'unixepoch') FROM bips \
        WHERE ip = '192.31.196.9'\"";
    eventually("the report has the time of the ban", || a.sh(row) == *time);
    let ledger =
        "sqlite3 /var/lib/fail2ban/abuseipdb/fail2ban_abuseipdb 'SELECT * FROM banned_ips'";
    assert_eq!(a.sh(ledger), "192.31.196.9|600");
    assert_eq!(a.sh("stat -c %a /var/lib/fail2ban/abuseipdb/fail2ban_abuseipdb"), "600");
    let quota = "sqlite3 /var/lib/f2bmqtt/reports.sqlite3 \
                 \"SELECT quota, remaining FROM calls WHERE name='report'\"";
    assert_eq!(a.sh(quota), "1000|777");
    // A restart restores the bans without new reports: fail2ban does not call the action.
    a.sh("systemctl restart f2bmqttsub fail2ban");
    a.ready();
    eventually("the bans are restored", || {
        ["192.31.196.5", "192.31.196.6", "192.31.196.9"].iter().all(|ip| a.bans("sshd", ip))
    });
    // Log lines beyond the kernel's limit of an argument.
    a.sh("t=$(date '+%b %e %H:%M:%S'); long=$(head -c 60000 /dev/zero | tr '\\0' x)
          for n in 1 2 3; do
              echo \"$t a sshd[9]: Failed password for invalid user $long from 192.31.196.8 port $n ssh2\"
          done >>/var/log/auth.log");
    eventually("the ban with long lines is reported", || taken(&rig).len() == 2);
    let log = a.sh(&format!("cat {LOG}"));
    assert!(!log.contains("ERROR") && !log.contains("RESTART"), "{log}");
    for imported in ["192.31.196.5", "192.31.196.6"] {
        let line = format!("INFO: (BAN) IP {imported} has 0 failures so no action required");
        assert_eq!(log.lines().filter(|logged| logged.ends_with(&line)).count(), 1, "{log}");
    }
    let secret = key();
    let found = a.try_sh(&format!(
        "grep -rIl {secret} /var/log /run /etc /tmp /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null \
           | grep -v -e abuseipdb.apikey -e /proc/self -e /proc/$$; journalctl --no-pager | grep {secret}"
    ));
    // The search itself is a process with the key in its arguments.
    let found = found.unwrap_or_else(|text| text);
    assert!(!found.lines().any(|line| !line.contains("/proc/")), "the key is in {found}");
    key_in_the_stock_action_is_used(&rig);
}

/// AbuseIPDB's tutorial puts the key into fail2ban's own action file, which the package's file must not override.
fn key_in_the_stock_action_is_used(rig: &Rig) {
    let a = rig.host("a");
    let key = key();
    a.sh(&format!(
        "set -e; rm /etc/fail2ban/abuseipdb.apikey
         sed -i 's/^abuseipdb_apikey *=.*/abuseipdb_apikey = {key}/' /etc/fail2ban/action.d/abuseipdb.conf
         grep -q {key} /etc/fail2ban/action.d/abuseipdb.conf; fail2ban-client reload --restart sshd"
    ));
    a.attack("auth", &["192.31.196.7"]);
    eventually("the ban is reported with the key in abuseipdb.conf", || taken(rig).len() == 3);
}

/// A call of the script: commands before it, its arguments, its exit code, and the lines that it logs, at once or after
/// the server's response. An asterisk stands for any rest of a line.
struct Case {
    before: &'static str,
    arguments: &'static str,
    code: i32,
    logged: &'static [&'static str],
}

const fn case(
    before: &'static str,
    arguments: &'static str,
    code: i32,
    logged: &'static [&'static str],
) -> Case {
    Case { before, arguments, code, logged }
}

const NO_FILES: &str = "rm -f /var/lib/fail2ban/abuseipdb/* /var/log/abuseipdb/*";
const IN_LEDGER: &str = "sqlite3 /var/lib/fail2ban/abuseipdb/fail2ban_abuseipdb \
    \"INSERT INTO banned_ips VALUES('192.175.48.7', 600), ('192.31.196.7', 600)\"";
const NO_KEY: &str = "mv /etc/fail2ban/abuseipdb.apikey /root/";
const KEY_AGAIN: &str = "mv /root/abuseipdb.apikey /etc/fail2ban/";

const CASES: [Case; 19] = [
    case(
        NO_FILES,
        "--actionstart",
        0,
        &[
            "INFO: AbuseIPDB database not found. Initializing...",
            "INFO: AbuseIPDB database is initialized!",
            "SUCCESS: All (actionstart) checks completed!",
        ],
    ),
    case(
        "",
        "--actionstart '' ''",
        0,
        &["INFO: Initialization already completed. Skipping further checks."],
    ),
    // A path that cannot be created is an error. The next ban tries again.
    case(
        "",
        "--actionstart /dev/null/db",
        1,
        &["INFO: *", "ERROR: Initialization failed! (actionstart). cannot create /dev/null: *"],
    ),
    case(
        "touch /var/lib/fail2ban/abuseipdb/file",
        "'' x 192.31.196.3 18 600 0 0 /var/lib/fail2ban/abuseipdb/file/db '' 3",
        0,
        &[
            "ERROR: The report of IP 192.31.196.3 waits: cannot create /var/lib/fail2ban/abuseipdb/file: *",
        ],
    ),
    case(
        "",
        "'' x 192.31.196.4 18 600 1 0 '' '' 3",
        0,
        &["INFO: (RESTART) IP 192.31.196.4 was already reported in the previous Fail2Ban session."],
    ),
    case(
        "",
        "'' '' 192.31.196.4 18 600 0 0 '' '' 3",
        1,
        &["ERROR: Missing core argument(s). Missing: COMMENT."],
    ),
    case(
        "",
        "'' x '' '' '' 0 0 '' '' 3",
        1,
        &["ERROR: Missing core argument(s). Missing: IP, CATEGORIES, BANTIME."],
    ),
    case(
        NO_KEY,
        "'' x 192.31.196.4 18 600 0 0 '' '' 3",
        0,
        &[
            "ERROR: The report of IP 192.31.196.4 waits: no API key is set in /etc/fail2ban/abuseipdb.apikey.",
        ],
    ),
    case(
        "",
        "YOUR_API_KEY x 192.31.196.4 18 600 0 0 '' '' 3",
        0,
        &[
            "ERROR: The report of IP 192.31.196.4 waits: no API key is set in /etc/fail2ban/abuseipdb.apikey.",
        ],
    ),
    case(
        KEY_AGAIN,
        "'' x 192.31.196.4 18 600 0 0 '' '' 0",
        0,
        &["INFO: (BAN) IP 192.31.196.4 has 0 failures so no action required"],
    ),
    case(
        "",
        "'' x 10.1.2.3 18 600 0 0 '' '' 3",
        0,
        &["INFO: IP 10.1.2.3 is not reported: the address is private or reserved."],
    ),
    case(
        "",
        "'' x 192.31.196.4 18 600 0 0 '' '' 'a[$(touch /root/ran)]'",
        2,
        &["ERROR: FAILURES must be a number, 0 or more"],
    ),
    // A comment may look like an option.
    case(
        "",
        "'' --help 192.31.196.4 18 600 1 0 '' '' 3",
        0,
        &["INFO: (RESTART) IP 192.31.196.4 was *"],
    ),
    // A restored ban with bypass_fail2ban = 1.
    case(
        "",
        "'' x 192.31.196.5 18 10m 1 1 '' '' 3",
        0,
        &[
            "SUCCESS: Reported 192.31.196.5 - Score: 52%, Reports: 0, Oldest Report: Not Reported yet, Failures:3.",
        ],
    ),
    case(
        IN_LEDGER,
        "'' x 192.175.48.7 18 600 0 0 '' '' 3",
        0,
        &["INFO: IP 192.175.48.7 has already been reported and remains on AbuseIPDB."],
    ),
    case(
        "",
        "'' x 192.31.196.7 18 600 0 0 '' '' 3",
        0,
        &[
            "INFO: IP 192.31.196.7 has already been reported but is no longer listed on AbuseIPDB. Resubmitting...",
            "SUCCESS: Reported 192.31.196.7 - Score: 52%, Reports: 0, Oldest Report: Not Reported yet, Failures:3.",
        ],
    ),
    case(
        r#"hub: echo '422 {"errors":[{"detail":"no","status":422}]}' >/root/api/answer"#,
        "'' x 192.31.196.8 18 600 0 0 '' '' 3",
        0,
        &[
            "ERROR: HTTP 422. Response: {*",
            "ERROR: HTTP 422. Response: {*",
            "INFO: IP 192.31.196.8 deleted from the AbuseIPDB SQLite database.",
        ],
    ),
    case(
        r#"hub: echo '429 {"errors":[{"detail":"Daily rate limit of 1000 requests exceeded","status":429}]}' >/root/api/answer"#,
        "'' x 192.31.196.9 18 600 0 0 '' '' 3",
        0,
        &[
            "ERROR: Rate limited (HTTP 429). Response: {*",
            "INFO: The daily limit of AbuseIPDB is reached for check calls. *",
            "ERROR: Rate limited (HTTP 429). Response: {*",
            "INFO: The daily limit of AbuseIPDB is reached for report calls. *",
        ],
    ),
    case(
        "hub: echo '500 trouble' >/root/api/answer",
        "'' x 192.175.48.7 18 600 0 0 '' '' 3",
        0,
        &[
            "ERROR: HTTP 500. Response: trouble*",
            "ERROR: Failed to check IP 192.175.48.7 in the AbuseIPDB API. *",
        ],
    ),
];

/// The lines of the reporter's log.
fn log_lines(host: Host<'_>) -> Vec<String> {
    let text = host.sh(&format!("cat {LOG} 2>/dev/null; true"));
    text.lines().map(str::to_owned).collect()
}

#[test]
fn reporter_calls_log_and_exit_like_script() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    reports_to_hub(&rig, a);
    for Case { before, arguments, code, logged } in &CASES {
        // Each case starts with an empty queue and without rate limits.
        a.sh("systemctl stop f2bmqttsub; rm -f /var/lib/f2bmqtt/reports.sqlite3*; systemctl start f2bmqttsub");
        match before.strip_prefix("hub: ") {
            Some(script) => hub.sh(script),
            None => a.sh(&format!("{before}\ntrue")),
        };
        let known = log_lines(a).len();
        let run = a.run(&format!("{CALL} {arguments}"));
        assert_eq!(run.status.code(), Some(*code), "{arguments}");
        assert!(run.stdout.is_empty() && run.stderr.is_empty() == (*code == 0), "{arguments}");
        let mut lines = Vec::new();
        eventually(arguments, || {
            lines = log_lines(a).split_off(known);
            lines.len() >= logged.len()
        });
        for (line, expected) in lines.iter().zip(*logged) {
            let (time, text) = line.split_once(" - ").unwrap();
            assert_eq!(time.len(), "2026-11-22 15:04:05".len());
            match expected.strip_suffix('*') {
                Some(start) => assert!(text.starts_with(start), "{arguments}: {text}"),
                None => assert_eq!(text, *expected, "{arguments}"),
            }
        }
        let lines = log_lines(a).split_off(known);
        assert_eq!(lines.len(), logged.len(), "{arguments}: {lines:#?}");
        hub.sh("rm -f /root/api/answer");
    }
    assert!(a.try_sh("test -e /root/ran").is_err(), "an argument ran as a command");
    let ledger = a.sh("sqlite3 /var/lib/fail2ban/abuseipdb/fail2ban_abuseipdb \
                       'SELECT ip, bantime FROM banned_ips ORDER BY ip'");
    let expected =
        "192.175.48.7|600\n192.31.196.4|600\n192.31.196.5|600\n192.31.196.7|600\n192.31.196.9|600";
    assert_eq!(ledger, expected);
    // The failed check and the report beyond the limit are queued.
    let waiting = "sqlite3 /var/lib/f2bmqtt/reports.sqlite3 'SELECT stage FROM queued_reports'";
    assert_eq!(a.sh(waiting), "check");
    // End the retry delay.
    a.sh("systemctl stop f2bmqttsub; sqlite3 /var/lib/f2bmqtt/reports.sqlite3 \
          'DELETE FROM calls; UPDATE queued_reports SET next = 0'; systemctl start f2bmqttsub");
    eventually("the failed check is repeated", || {
        let expected = "192.175.48.7 has already been reported and remains";
        log_lines(a).iter().any(|line| line.contains(expected)) && a.sh(waiting).is_empty()
    });
    a.sh("rm /var/lib/fail2ban/abuseipdb/file");
    a.sh(&format!("{CALL} '' x 192.31.196.3 18 600 0 0 /var/lib/fail2ban/abuseipdb/file/db '' 3"));
    eventually("the report with the earlier invalid path is made", || {
        addresses(&taken(&rig)).contains("192.31.196.3")
    });
}

#[test]
fn edited_action_without_daemon_reports_with_passed_key() {
    let rig = Rig::fleet(&["a"]);
    let a = rig.host("a");
    reports_to_hub(&rig, a);
    a.sh("systemctl stop f2bmqttsub; rm /etc/fail2ban/abuseipdb.apikey");
    // The action of the scripts: the call in the background, with quotes.
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
    a.attack("auth", &["192.31.196.9"]);
    eventually("the ban is reported", || taken(&rig).len() == 1);
    assert_eq!(taken(&rig)[0][1..3], ["22", "SSH brute force"]);
    eventually("the report is logged", || {
        a.sh("cat /var/log/own.log 2>/dev/null; true").contains("SUCCESS: Reported 192.31.196.9")
    });
    assert_eq!(
        a.sh("sqlite3 /var/lib/own/reported 'SELECT * FROM banned_ips'"),
        "192.31.196.9|600"
    );
    eventually("the child process has ended", || a.try_sh("pgrep -f '[f]2bmqtt work'").is_err());
    // A second report within 15 minutes waits until the end of that window.
    a.sh(&format!(
        "{CALL} {} 'web: probing' 192.31.196.9 21 600 0 0 /var/lib/own/reported /var/log/own.log 1",
        key()
    ));
    eventually("a child process waits for the window", || {
        a.try_sh("pgrep -f '[f]2bmqtt work'").is_ok()
    });
    // The daemon takes over.
    a.sh("systemctl start f2bmqttsub");
    within_reporter_delay("the child process hands the report over to the daemon", || {
        a.try_sh("pgrep -f '[f]2bmqtt work'").is_err()
    });
    let waiting = "sqlite3 /var/lib/f2bmqtt/reports.sqlite3 'SELECT stage FROM queued_reports'";
    assert_eq!(a.sh(waiting), "due");
    assert_eq!(taken(&rig).len(), 1);
}

#[test]
fn api_outage_and_daemon_kill_lose_and_repeat_no_report() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    reports_to_hub(&rig, a);
    hub.sh("systemctl stop api");
    // Many calls at once, as in a burst of bans.
    let codes = a.sh(&format!(
        "for i in $(seq 200); do ({CALL} '' x 192.31.196.$i 18 600 0 0 '' '' 3; echo $?) & done; wait"
    ));
    assert_eq!(codes.lines().filter(|code| *code == "0").count(), 200, "{codes}");
    eventually("the outage is logged", || {
        a.sh(&format!("cat {LOG} 2>/dev/null; true"))
            .contains("ERROR: No connection to api.abuseipdb.com")
    });
    hub.sh("systemctl reset-failed api 2>/dev/null; sh /root/abuseipdb.sh");
    within_reporter_delay("all are reported", || {
        a.sh("systemctl kill -s KILL f2bmqttsub; true");
        std::thread::sleep(Duration::from_millis(700));
        addresses(&taken(&rig)).len() == 200
    });
    assert_eq!(taken(&rig).len(), 200);
    let waiting = "sqlite3 /var/lib/f2bmqtt/reports.sqlite3 'SELECT count(*) FROM queued_reports'";
    within_reporter_delay("the queue is empty", || a.sh(waiting) == "0");
    assert_eq!(taken(&rig).len(), 200);
    let bulk = calls(&rig).iter().filter(|call| call["call"] == "POST /api/v2/bulk-report").count();
    assert!((1..=2).contains(&bulk), "{bulk} bulk calls");
}

#[test]
fn queued_report_survives_reboot_and_keeps_ban_time() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    reports_to_hub(&rig, a);
    hub.sh("systemctl stop api");
    let time = a.sh("echo $(($(date +%s) - 60))");
    a.sh(&format!("{CALL} '' x 192.31.196.9 18 600 0 0 '' '' 3 {time}.4"));
    eventually("the outage is logged", || {
        a.sh(&format!("cat {LOG} 2>/dev/null; true")).contains("ERROR: No connection to")
    });
    a.rig("kill");
    hub.sh("systemctl reset-failed api 2>/dev/null; sh /root/abuseipdb.sh");
    a.rig("boot");
    within_reporter_delay("the ban is reported", || taken(&rig).len() == 1);
    assert_eq!(taken(&rig)[0][3], a.sh(&format!("date -u -d @{time} +%Y-%m-%dT%H:%M:%S+00:00")));
}

/// The server's response, commands that make a fault and undo it, and the logged error. In the error, ` * ` stands for
/// any text.
const CONNECTION_FAULTS: [(&str, &str, &str, &str); 9] = [
    (
        "",
        "mv /usr/local/share/ca-certificates/tests.crt /root/; update-ca-certificates --fresh >/dev/null 2>&1",
        "mv /root/tests.crt /usr/local/share/ca-certificates/; update-ca-certificates --fresh >/dev/null 2>&1",
        "ERROR: No connection to api.abuseipdb.com: * UnknownIssuer",
    ),
    (
        "",
        "sed -i 's/^.* api.abuse/10.213.77.12 api.abuse/' /etc/hosts",
        "sed -i 's/^.* api.abuse/10.213.77.11 api.abuse/' /etc/hosts",
        "ERROR: No connection to api.abuseipdb.com: * refused",
    ),
    (
        "",
        "sed -i 's/api.abuse/not.abuse/' /etc/hosts",
        "sed -i 's/not.abuse/api.abuse/' /etc/hosts",
        "ERROR: No connection to api.abuseipdb.com: * lookup",
    ),
    ("500 <html>trouble</html>", "", "", "ERROR: HTTP 500. Response: <html>trouble"),
    ("200 ", "", "", "ERROR: HTTP 200. Response: (nothing)"),
    ("200 truncated", "", "", "ERROR: HTTP 200. Response: truncated... (cut off"),
    ("200 endless", "", "", "ERROR: HTTP 200. Response: * (too long)"),
    ("200 stalled", "", "", "ERROR: HTTP 200. Response: ... (cut off: * timed out"),
    ("401 {}", "", "", "ERROR: HTTP 401. Response: {}"),
];

#[test]
fn connection_and_response_errors_are_logged() {
    let rig = Rig::fleet(&["a"]);
    let (a, hub) = (rig.host("a"), rig.host("hub"));
    reports_to_hub(&rig, a);
    a.sh("systemctl stop f2bmqttsub");
    for (answer, make, undo, logged) in CONNECTION_FAULTS {
        a.sh(&format!("{NO_CHILD}; rm -f /var/lib/f2bmqtt/reports.sqlite3* {LOG}; true"));
        if !answer.is_empty() {
            hub.sh(&format!("printf '{answer}' >/root/api/answer"));
        }
        a.sh(make);
        a.sh(&format!("{CALL} '' x 192.31.196.9 18 600 0 0 '' '' 3"));
        let (first, last) = logged.split_once(" * ").unwrap_or((logged, ""));
        let mut log = String::new();
        within_reporter_delay(logged, || {
            log = a.sh(&format!("cat {LOG} 2>/dev/null; true"));
            log.lines().any(|line| line.contains(first) && line.contains(last))
        });
        assert!(log.len() < 4000, "{log}");
        hub.sh("rm -f /root/api/answer");
        a.sh(undo);
    }
    assert_eq!(taken(&rig).len(), 0);
    // Without a fault, the ban is reported.
    a.sh(&format!("{NO_CHILD}; rm -f /var/lib/f2bmqtt/reports.sqlite3*"));
    a.sh(&format!("{CALL} '' x 192.31.196.9 18 600 0 0 '' '' 3"));
    eventually("the ban is reported", || taken(&rig).len() == 1);
    assert_eq!(json!(taken(&rig)[0][0]), "192.31.196.9");
}
