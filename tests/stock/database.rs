//! Databases of fail2ban with `bantime.increment`, of a newer version, and with edited rows: the bans of all jails reach
//! all servers and last as long as at their origin.

use std::time::Duration;

use serde_json::Value;

use super::support::{CONDITION_LIMIT, Host, Rig, becomes, eventually, within};
use super::{Key, banned, key, listed};

/// The jails, and the names of their logs.
const JAILS: [(&str, &str); 3] = [("sshd", "auth"), ("web", "web"), ("both", "both")];

const DATABASE: &str = "/var/lib/fail2ban/fail2ban.sqlite3";

const NAMES: [&str; 3] = ["sshd", "web", "both"];

/// Settings of fail2ban for growing bans.
const INCREMENT_SETTINGS: &str =
    "bantime.increment = true\nbantime.rndtime = 300\nbantime.factor = 1.5";
/// The same with a formula from fail2ban's own jail.conf.
const FORMULA_SETTINGS: &str = "bantime.increment = true\nbantime.factor = 1.5\n\
    bantime.formula = ban.Time * math.exp(float(ban.Count+1)*banFactor)/math.exp(1*banFactor)";

/// The rows of fail2ban's database that match a SQL condition, as JSON objects: jail, ip, since, until and the type of
/// the bantime. Times are truncated to seconds, as fail2ban shows them.
fn rows(host: Host<'_>, condition: &str) -> Vec<Value> {
    let sql = format!(
        "SELECT jail, ip, CAST(timeofban AS INTEGER) AS since, typeof(bantime) AS kind, \
         CAST(timeofban AS INTEGER) + CAST(bantime AS INTEGER) AS until FROM bips WHERE ip GLOB '[0-9]*' AND {condition}"
    );
    let text =
        host.sh(&format!("sqlite3 -json -readonly -cmd '.timeout 5000' {DATABASE} \"{sql}\""));
    serde_json::from_str(if text.is_empty() { "[]" } else { &text }).unwrap()
}

/// Adds settings for all jails of a host, and restarts its fail2ban.
fn configure(host: Host<'_>, settings: &str) {
    let lines = settings.replace('\n', "\\n");
    host.sh(&format!(
        r"sed -i 's|^\[DEFAULT\]|[DEFAULT]\n{lines}|' /etc/fail2ban/jail.local; systemctl restart fail2ban"
    ));
    host.ready();
}

/// Makes each jail detect an address: NET.1 in the first, and so on.
fn attack(host: Host<'_>, net: &str) -> Vec<Key> {
    let mut bans = Vec::new();
    for (n, (jail, log)) in (1..).zip(JAILS) {
        let address = format!("{net}.{n}");
        host.attack(log, &[&address]);
        bans.push(key(jail, &address));
    }
    bans
}

/// Waits until all hosts have the bans of one of them, and until the fleet's list has the same ends as that host's
/// database. Returns the lengths of the bans in seconds, and the types of their bantimes in the database.
fn wait_for_crossing(
    rig: &Rig,
    hosts: &[&str],
    origin: Host<'_>,
    bans: &[Key],
) -> Vec<(i64, String)> {
    for host in rig.hosts(hosts) {
        eventually(&format!("{} bans what {} detected", host.name, origin.name), || {
            let banned = banned(host, &NAMES);
            bans.iter().all(|ban| banned.contains(ban))
        });
    }
    let mut state = String::new();
    let mut lasts = Vec::new();
    let same = becomes(CONDITION_LIMIT, || {
        let list = listed(rig.host(hosts[0]));
        let rows = rows(origin, "1");
        lasts = bans
            .iter()
            .filter_map(|ban| {
                let row = rows.iter().find(|row| row["jail"] == *ban.0 && row["ip"] == *ban.1)?;
                let (until, kind) = (row["until"].as_i64()?, row["kind"].as_str()?);
                let found = list.get(ban).is_some_and(|it| *it == (origin.name.to_owned(), until));
                found.then(|| (until - row["since"].as_i64().unwrap(), kind.to_owned()))
            })
            .collect();
        state = format!("{bans:?}\nlisted: {list:?}\nrows: {rows:?}");
        lasts.len() == bans.len()
    });
    assert!(same, "the ends on {} differ\n{state}", origin.name);
    lasts
}

/// Makes the database that of a newer fail2ban with one more column and without required values, and adds rows that no
/// version writes. At its next start fail2ban restores only some of these rows.
const EDIT_DATABASE: &str = r#"
systemctl stop fail2ban
sed -i 's/^\t__version__ = 4/\t__version__ = 5/' /usr/lib/python3/dist-packages/fail2ban/server/database.py
grep -q '__version__ = 5' /usr/lib/python3/dist-packages/fail2ban/server/database.py
now=$(date +%s)
sqlite3 /var/lib/fail2ban/fail2ban.sqlite3 <<S
UPDATE fail2banDb SET version = 5;
DROP TABLE bips;
CREATE TABLE bips(ip TEXT, jail TEXT, timeofban INTEGER, bantime INTEGER, bancount INTEGER, data JSON,
    family TEXT DEFAULT 'inet', PRIMARY KEY(ip, jail));
INSERT INTO bips(ip, jail, timeofban, bantime, bancount, data) VALUES
    ('203.0.113.1', 'sshd', $now.5, 412.75, 2, '{"matches":[],"failures":3}'),
    ('203.0.113.2', 'web', $now, '500', 1, '{"matches":[],"failures":"3"}'),
    ('203.0.113.3', 'both', $now.25, 599.99, 1, '{"matches":[],"failures":3.0}'),
    ('203.0.113.4', 'web', $now, -1, 1, '{"matches":[],"failures":3}'),
    ('203.0.113.11', 'sshd', $now, -600, 1, '{"matches":[],"failures":3}'),
    ('203.0.113.12', 'web', $now, NULL, 1, '{"matches":[],"failures":3}'),
    ('203.0.113.13', 'both', $now - 80000, 'ten minutes', 1, '{"matches":[],"failures":3}'),
    ('203.0.113.14', 'both', 'yesterday', 600, 1, '{"matches":[],"failures":3}'),
    ('203.0.113.15', 'sshd', NULL, 600, 1, '{"matches":[],"failures":3}'),
    ('203.0.113.21', 'web', $now, 600, 1, 'garbage'),
    ('203.0.113.22', 'sshd', $now, 600, 1, x'ff00fe');
S
: >/var/log/fail2ban.log
systemctl start fail2ban
"#;

/// Inserts rows that would break fail2ban's next start.
const INSERT_CORRUPT_ROWS: &str = r#"
sqlite3 -cmd '.timeout 5000' /var/lib/fail2ban/fail2ban.sqlite3 <<S
INSERT INTO bips(ip, jail, timeofban, bantime, bancount, data) VALUES
    ('203.0.113.31', 'sshd', $(date +%s), 'ten minutes', 1, '{"failures":3}'),
    ('203.0.113.32', 'web', $(date +%s), 600, 1, '[1,2]'),
    ('203.0.113.33', 'both', $(date +%s), x'00', 1, '{"failures":3'),
    ('no address', 'sshd', $(date +%s), 600, 1, '{"failures":3}'),
    (x'ff', 'web', $(date +%s), 600, 1, '{"failures":3}'),
    (NULL, 'both', $(date +%s), 600, 1, '{"failures":3}'),
    ('203.0.113.34', NULL, $(date +%s), 600, 1, '{"failures":3}');
S
"#;

/// The rows of an edited database that fail2ban restores reach all servers with fail2ban's length. The other rows reach
/// no server.
fn test_edited_database(rig: &Rig, hosts: &[&str], edited: Host<'_>) {
    edited.sh(EDIT_DATABASE);
    edited.ready();
    let restored = [
        (key("sshd", "203.0.113.1"), 412),
        (key("web", "203.0.113.2"), 500),
        (key("both", "203.0.113.3"), 599),
    ];
    let bans: Vec<_> = restored.iter().map(|(ban, _)| ban.clone()).collect();
    let lasts = wait_for_crossing(rig, hosts, edited, &bans);
    for ((ban, expected), (seconds, _)) in restored.iter().zip(lasts) {
        assert_eq!(seconds, *expected, "{ban:?}");
    }
    // fail2ban itself restores a permanent ban with the jail's bantime.
    let (ban, row) = (key("web", "203.0.113.4"), rows(edited, "ip = '203.0.113.4'"));
    let until = row[0]["since"].as_i64().unwrap() + 600;
    eventually("the permanent ban has the jail's bantime", || {
        listed(edited).get(&ban) == Some(&(edited.name.to_owned(), until))
    });
    edited.sh(INSERT_CORRUPT_ROWS);
    for origin in rig.hosts(hosts) {
        let net =
            format!("198.51.{}", 100 + hosts.iter().position(|host| *host == origin.name).unwrap());
        let bans = attack(origin, &net);
        let lasts = wait_for_crossing(rig, hosts, origin, &bans);
        assert!(lasts.iter().all(|(seconds, _)| *seconds == 600), "{lasts:?}");
    }
    for host in rig.hosts(hosts) {
        let log = host.sh("grep -e '] Ban ' -e 'Restore Ban ' /var/log/fail2ban.log");
        for n in [11, 12, 13, 14, 15, 31, 32, 33, 34] {
            let address = format!(" 203.0.113.{n}\n");
            assert!(!format!("{log}\n").contains(&address), "{}: {address} {log}", host.name);
        }
        // A ban without readable failures is not shared.
        for n in [21, 22] {
            let has = format!("{log}\n").contains(&format!(" 203.0.113.{n}\n"));
            assert_eq!(has, host.name == edited.name, "{}: {n} {log}", host.name);
        }
    }
    let check = edited.run("f2bmqtt check");
    let text = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(0), "{text}");
    let skipped = "! skipped the ban of 203.0.113.31 in sshd in fail2ban's database: bantime is the text \
                   \"ten minutes\", not a number";
    let warnings: Vec<_> = text.lines().filter(|line| !line.starts_with(['✓', ' '])).collect();
    assert!(warnings.contains(&skipped), "{text}");
    let only_skipped =
        warnings.iter().all(|line| line.starts_with("! skipped the ban of 203.0.113."));
    assert!(only_skipped, "{text}");
}

/// Adds earlier bans of a network's addresses to a host's fail2ban, one in each jail, and makes it detect them again.
fn ban_again(host: Host<'_>, net: &str) {
    for (n, jail) in (1..).zip(NAMES) {
        let row = format!(
            r#"('{net}.{n}', '{jail}', strftime('%s') - 1000, 10, 1, '{{"matches":[],"failures":3}}')"#
        );
        host.sh(&format!(
            "sqlite3 -cmd '.timeout 5000' {DATABASE} <<'S'\nINSERT INTO bips VALUES{row};\nS\n"
        ));
    }
    attack(host, net);
}

/// Waits until the bans of a network are extended to at least `least` seconds, and have reached all hosts.
fn wait_for_growth(
    rig: &Rig,
    hosts: &[&str],
    host: Host<'_>,
    net: &str,
    least: i64,
) -> Vec<(i64, String)> {
    let bans: Vec<_> = (1..).zip(NAMES).map(|(n, jail)| key(jail, &format!("{net}.{n}"))).collect();
    let long = format!("ip LIKE '{net}.%' AND bantime >= {least}");
    eventually("the bans are extended", || rows(host, &long).len() == bans.len());
    wait_for_crossing(rig, hosts, host, &bans)
}

#[test]
fn bans_of_all_jails_cross_with_any_database_rows() {
    const HOSTS: [&str; 3] = ["grow", "formula", "edited"];
    let rig = Rig::fleet(&HOSTS);
    let (grow, formula, edited) = (rig.host("grow"), rig.host("formula"), rig.host("edited"));
    configure(grow, INCREMENT_SETTINGS);
    configure(formula, FORMULA_SETTINGS);
    ban_again(grow, "192.0.2");
    ban_again(formula, "198.51.99");
    for (host, net, least, most) in
        [(grow, "192.0.2", 1800, 2100), (formula, "198.51.99", 2689, 2689)]
    {
        for (seconds, kind) in wait_for_growth(&rig, &HOSTS, host, net, least) {
            assert!((least..=most).contains(&seconds), "{}: {seconds}", host.name);
            assert_eq!(kind, "real", "{}", host.name);
        }
    }
    test_edited_database(&rig, &HOSTS, edited);
}

/// When fail2ban logged an action (`Ban` or `Unban`) on an address, in seconds since 1970.
fn logged(host: Host<'_>, action: &str, address: &str) -> Vec<i64> {
    let text = host.sh(&format!(
        r"sed -n 's/,.*\] {action} {address}$//p' /var/log/fail2ban.log | date -f - +%s"
    ));
    text.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
#[ignore = "takes minutes: tests/long"]
fn extended_bans_end_everywhere_when_they_end_at_origin() {
    const HOSTS: [&str; 3] = ["grow", "formula", "plain"];
    let rig = Rig::fleet(&HOSTS);
    let (grow, formula) = (rig.host("grow"), rig.host("formula"));
    configure(grow, &INCREMENT_SETTINGS.replace("300", "20"));
    configure(formula, FORMULA_SETTINGS);
    for host in rig.hosts(&HOSTS) {
        for name in NAMES {
            host.sh(&format!("fail2ban-client set {name} bantime 25"));
        }
    }
    ban_again(grow, "192.0.2");
    ban_again(formula, "198.51.99");
    for (host, net, least) in [(grow, "192.0.2", 75), (formula, "198.51.99", 112)] {
        for (seconds, _) in wait_for_growth(&rig, &HOSTS, host, net, least) {
            println!("{}: {seconds} s", host.name);
        }
    }
    for (host, net) in [(grow, "192.0.2"), (formula, "198.51.99")] {
        let ends = rows(host, &format!("ip LIKE '{net}.%'"));
        assert_eq!(ends.len(), NAMES.len());
        for each in rig.hosts(&HOSTS) {
            within(Duration::from_mins(4), "the bans end", || {
                banned(each, &NAMES).iter().all(|(_, address)| !address.starts_with(net))
            });
            for row in &ends {
                let (address, until) =
                    (row["ip"].as_str().unwrap(), row["until"].as_i64().unwrap());
                let [bans, unbans] = ["Ban", "Unban"].map(|action| logged(each, action, address));
                assert_eq!((bans.len(), unbans.len()), (1, 1), "{} {address}", each.name);
                // fail2ban rounds to the second.
                let delay = unbans[0] - until;
                println!("{}: {address} released {delay} s after its end", each.name);
                assert!(delay >= -1, "{} {address}: {delay} s", each.name);
            }
        }
    }
}
