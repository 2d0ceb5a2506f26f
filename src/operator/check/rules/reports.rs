//! Checks of the reports to AbuseIPDB (R23). Pure. No check shows or sends the API key.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use super::jails::{JailAction, RunningJail, jail_list};
use crate::abuseipdb::queue_status::{LastCall, QueueStatus};
use crate::model::text::format_duration;
use crate::operator::check::finding::Finding;
use crate::sys::private_files::trust::{DirContent, Fault};

/// The age in seconds from which a pending report is a warning. AbuseIPDB accepts a second report of an address only
/// after 15 minutes, so a report may wait that long without a fault.
const MAX_REPORT_AGE_SECS: i64 = 3600;

/// The state of the key file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::operator::check) enum KeyState {
    Missing,
    /// The file contains no key.
    None,
    /// The file has an invalid key. The reporter then uses no key at all, not even that of the jail.
    Broken,
    Usable,
}

/// Whether an `actionban` calls the reporter.
pub(in crate::operator::check) fn is_reporter(ban: &str) -> bool {
    ban.contains("fail2ban-abuseipdb") || ban.contains("f2bmqtt report")
}

fn reports(action: &JailAction) -> bool {
    is_reporter(&action.ban)
}

/// The findings about the reporter's database and log; `inspect` returns the warnings about a path.
pub(in crate::operator::check) fn files(
    jails: &[RunningJail],
    inspect: impl Fn(&Path, DirContent) -> io::Result<Vec<String>>,
) -> Vec<Finding> {
    let mut places: Vec<_> = jails
        .iter()
        .flat_map(|jail| &jail.actions)
        .flat_map(|action| &action.files)
        .map(|(path, keeps)| (path.as_path(), *keeps))
        .collect();
    places.sort_by_key(|(path, _)| *path);
    places.dedup();
    places.into_iter().flat_map(|(path, keeps)| place(path, keeps, inspect(path, keeps))).collect()
}

fn place(path: &Path, keeps: DirContent, inspection: io::Result<Vec<String>>) -> Vec<Finding> {
    let shown = path.display();
    let setting = if keeps == DirContent::Database { "SQLITE_DB" } else { "LOG_FILE" };
    let error = match inspection {
        Err(error) => error,
        Ok(warnings) => {
            let findings = warnings.into_iter().map(|what| {
                let text = format!("{what}; the reporter keeps {shown} there");
                Finding::warning("report_place", text).about(&shown).next(format!(
                    "set {setting} of the jail's action to a path where only root can write"
                ))
            });
            return findings.collect();
        }
    };
    let fault = error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>());
    let (what, cure) = match fault {
        Some(Fault { what, cure }) => (what.clone(), cure.clone()),
        None if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => (
            "the path is a symbolic link, which f2bmqtt does not follow".to_owned(),
            format!("set {setting} of the jail's action to the target of the link"),
        ),
        None => (error.to_string(), format!("set {setting} of the jail's action to a file")),
    };
    let text = format!("the reporter cannot use {shown}: {what}");
    vec![Finding::fault("report_file", text).about(&shown).next(cure)]
}

/// The finding about pending reports, if a jail reports.
pub(in crate::operator::check) fn queue(
    jails: &[RunningJail],
    reports_queue: &rusqlite::Result<QueueStatus>,
    key: &Path,
    now: i64,
) -> Option<Finding> {
    const LOG_COMMAND: &str = "tail /var/log/abuseipdb/abuseipdb.log";
    if !jails.iter().any(|jail| jail.actions.iter().any(reports)) {
        return None;
    }
    let QueueStatus { waiting, oldest, last_call, .. } = match reports_queue {
        Ok(reports_queue) => reports_queue,
        Err(why) => {
            let text = format!("cannot read the queue of reports to AbuseIPDB: {why}");
            return Some(
                Finding::warning("report_queue", text).next("systemctl restart f2bmqttsub"),
            );
        }
    };
    let age = oldest.map(|at| format_age(at, now));
    let queue = match (waiting, age) {
        (0, _) => "no report is pending".to_owned(),
        (1, None) => "1 report is pending".to_owned(),
        (1, Some(age)) => format!("1 report is pending for {age}"),
        (n, None) => format!("{n} reports are pending"),
        (n, Some(age)) => format!("{n} reports are pending, the oldest for {age}"),
    };
    Some(match last_call {
        Some(LastCall { at, error: Some(why) }) if *waiting > 0 => {
            let text =
                format!("reports to AbuseIPDB fail: {why} ({} ago); {queue}", format_age(*at, now));
            if why.contains("API key") {
                let next = format!("write your key into {}: APIKEY=...", key.display());
                Finding::fault("report_queue", text).next(next)
            } else if why.contains("daily limit") {
                Finding::warning("report_queue", text)
                    .next("nothing to do: the reporter continues when AbuseIPDB resets the limit")
            } else {
                Finding::fault("report_queue", text).next(LOG_COMMAND)
            }
        }
        _ if oldest.is_some_and(|at| now.saturating_sub(at) > MAX_REPORT_AGE_SECS) => {
            Finding::warning("report_queue", format!("reports to AbuseIPDB are delayed: {queue}"))
                .next(LOG_COMMAND)
        }
        Some(LastCall { at, .. }) => {
            let ago = format_age(*at, now);
            let text = format!("the last call to AbuseIPDB was {ago} ago; {queue}");
            Finding::ok("report_queue", text)
        }
        None => Finding::ok("report_queue", format!("no call to AbuseIPDB so far; {queue}")),
    })
}

fn format_age(at: i64, now: i64) -> String {
    format_duration(now.saturating_sub(at).max(0))
}

fn jails_with(jails: &[RunningJail], is_wanted: fn(&JailAction) -> bool) -> Vec<&RunningJail> {
    jails.iter().filter(|jail| jail.actions.iter().any(is_wanted)).collect()
}

/// The findings about the jails that report; `warning` is a fault of the key file.
pub(in crate::operator::check) fn findings(
    jails: &[RunningJail],
    path: &Path,
    key: &KeyState,
    warning: Option<&str>,
) -> Vec<Finding> {
    let path = path.display();
    let mut found = Vec::new();
    for jail in jails_with(jails, |action| action.ban.contains("api.abuseipdb.com")) {
        let text = format!(
            "jail `{}` reports to AbuseIPDB with fail2ban's own action, which also reports bans that other \
             servers detected",
            jail.name
        );
        found.push(Finding::fault("report_action", text).about(&jail.name).next(format!(
            "cp -b /usr/share/f2bmqtt/action.d/abuseipdb.local /etc/fail2ban/action.d/\n\
             then: fail2ban-client reload --restart {}",
            jail.name
        )));
    }
    let reporting = jails_with(jails, reports);
    if reporting.is_empty() {
        return found;
    }
    let have_own_keys = reporting
        .iter()
        .all(|jail| jail.actions.iter().any(|action| reports(action) && action.key));
    let create = format!("install -m 0600 /dev/null {path}\necho 'APIKEY=...' >>{path}");
    let verb = if reporting.len() == 1 { "reports" } else { "report" };
    let who = format!("{} {verb} to AbuseIPDB", jail_list(&reporting));
    if let Some(what) = warning {
        let next = format!("chmod 600 {path}; the file must contain one line: APIKEY=...");
        found.push(Finding::warning("report_key_file", what).next(next));
    }
    found.push(match key {
        KeyState::Usable => Finding::ok("report_key", format!("{who}, with the key in {path}")),
        KeyState::Broken => {
            let text = format!("{who}, but the key in {path} is invalid: reports stay in the queue");
            let next = format!("write your key into {path}: APIKEY=...");
            Finding::fault("report_key", text).next(next)
        }
        _ if have_own_keys => {
            let text = format!(
                "{who}, with a key in the jail's configuration, which every user can see in the process list"
            );
            Finding::warning("report_key", text).next(create)
        }
        KeyState::Missing => {
            let text = format!("{who}, but the key file {path} is missing");
            Finding::fault("report_key", text).next(create)
        }
        KeyState::None => {
            let text = format!("{who}, but {path} contains no key");
            let next = format!("write your key into {path}: APIKEY=...");
            Finding::fault("report_key", text).next(next)
        }
    });
    for jail in reporting {
        if jail.logs.iter().any(|path| path.rsplit('/').next() == Some("fail2ban.log")) {
            let text = format!(
                "jail `{}` counts bans, also those of other servers, and reports them to AbuseIPDB, \
                 which accepts only what a reporter detected itself",
                jail.name
            );
            found.push(Finding::fault("report_recidive", text).about(&jail.name).next(format!(
                "remove the action abuseipdb from [{name}] in /etc/fail2ban/jail.local\n\
                 then: fail2ban-client reload --restart {name}",
                name = jail.name
            )));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Jail;
    use crate::operator::check::finding::Status;

    const NOW: i64 = 1_795_342_600;

    /// A call this many seconds ago. The error may be empty.
    fn call(age: i64, error: &str) -> LastCall {
        let error = (!error.is_empty()).then(|| error.to_owned());
        LastCall { at: NOW - age, error }
    }

    fn jail(name: &str, ban: &str, key: bool, log: &str) -> RunningJail {
        RunningJail {
            name: Jail::new(name).unwrap(),
            actions: vec![JailAction {
                name: "abuseipdb".to_owned(),
                ban: ban.to_owned(),
                key,
                files: vec![
                    ("/srv/db".into(), DirContent::Database),
                    ("/srv/log".into(), DirContent::Log),
                ],
            }],
            logs: vec![log.to_owned()],
            ignore_command: String::new(),
            ignoreip_faults: Vec::new(),
        }
    }

    #[test]
    fn unsafe_place_is_named_once_with_its_fix() {
        let jails = [jail("a", "", false, ""), jail("b", "", false, "")];
        let found = files(&jails, |_, keeps| match keeps {
            DirContent::Log => Ok(vec!["/srv is writable by every user".to_owned()]),
            _ => Err(Fault { what: "a".to_owned(), cure: "b".to_owned() }.into()),
        });
        let found: Vec<_> =
            found.iter().map(|finding| (finding.state, finding.text.as_str())).collect();
        let expected = [
            (Status::Fault, "the reporter cannot use /srv/db: a"),
            (Status::Warning, "/srv is writable by every user; the reporter keeps /srv/log there"),
        ];
        assert_eq!(found, expected);
        let found = files(&jails, |_, _| Err(Errno::LOOP.into()));
        assert_eq!(found[1].next, ["set LOG_FILE of the jail's action to the target of the link"]);
        assert!(
            found[1].text.ends_with("the path is a symbolic link, which f2bmqtt does not follow")
        );
        assert!(files(&jails, |_, _| Ok(Vec::new())).is_empty());
    }

    #[test]
    fn queue_shows_the_last_result_and_how_old_the_oldest_report_is() {
        let jails = [jail("a", "/etc/fail2ban/action.d/fail2ban-abuseipdb.sh", false, "")];
        let refused = "AbuseIPDB refuses the API key (HTTP 401)";
        let table = [
            (0, None, None, Status::Ok, "no call to AbuseIPDB so far; no report is pending"),
            (
                1,
                Some(60),
                Some(call(5, "")),
                Status::Ok,
                "the last call to AbuseIPDB was 5s ago; 1 report is pending for 1m",
            ),
            (
                0,
                None,
                Some(call(300, refused)),
                Status::Ok,
                "the last call to AbuseIPDB was 5m ago; no report is pending",
            ),
            (
                2,
                Some(300),
                Some(call(60, refused)),
                Status::Fault,
                "reports to AbuseIPDB fail: AbuseIPDB refuses the API key (HTTP 401) (1m ago); \
                 2 reports are pending, the oldest for 5m",
            ),
            (
                1,
                Some(60),
                Some(call(5, "no connection to x: y")),
                Status::Fault,
                "reports to AbuseIPDB fail: no connection to x: y",
            ),
            (
                1,
                Some(60),
                Some(call(5, "the daily limit is reached")),
                Status::Warning,
                "the daily limit is reached",
            ),
            (
                1,
                Some(7200),
                Some(call(5, "")),
                Status::Warning,
                "are delayed: 1 report is pending for 2h",
            ),
        ];
        for (waiting, age, last_call, state, text) in table {
            let oldest = age.map(|age: i64| NOW - age);
            let reports_queue = Ok(QueueStatus { waiting, oldest, last_call, calls: Vec::new() });
            let found = queue(&jails, &reports_queue, Path::new("/k"), NOW).unwrap();
            assert_eq!(found.state, state, "{found:?}");
            assert!(found.text.contains(text), "{found:?}");
            assert_eq!(found.next.is_empty(), state == Status::Ok);
        }
        assert_eq!(queue(&[], &Ok(QueueStatus::default()), Path::new("/k"), NOW), None);
        let unreadable =
            queue(&jails, &Err(rusqlite::Error::InvalidQuery), Path::new("/k"), NOW).unwrap();
        assert_eq!(unreadable.state, Status::Warning);
    }

    #[test]
    fn reporting_jail_needs_a_key_and_must_not_count_bans() {
        const REPORTER_ACTION: &str =
            "/etc/fail2ban/action.d/fail2ban-abuseipdb.sh '' \"<matches>\"";
        const AUTH_LOG: &str = "/var/log/auth.log";
        let table = [
            (jail("a", "true", false, AUTH_LOG), KeyState::Missing, None, vec![]),
            (
                jail("a", REPORTER_ACTION, false, AUTH_LOG),
                KeyState::Usable,
                None,
                vec![("report_key", Status::Ok)],
            ),
            (
                jail("a", REPORTER_ACTION, false, AUTH_LOG),
                KeyState::Missing,
                None,
                vec![("report_key", Status::Fault)],
            ),
            (
                jail("a", REPORTER_ACTION, false, AUTH_LOG),
                KeyState::None,
                None,
                vec![("report_key", Status::Fault)],
            ),
            (
                jail("a", REPORTER_ACTION, true, AUTH_LOG),
                KeyState::Missing,
                None,
                vec![("report_key", Status::Warning)],
            ),
            (
                jail("a", REPORTER_ACTION, true, AUTH_LOG),
                KeyState::Broken,
                None,
                vec![("report_key", Status::Fault)],
            ),
            (
                jail("a", REPORTER_ACTION, false, AUTH_LOG),
                KeyState::Usable,
                Some("0644"),
                vec![("report_key_file", Status::Warning), ("report_key", Status::Ok)],
            ),
            (
                jail("a", REPORTER_ACTION, false, AUTH_LOG),
                KeyState::None,
                Some("a warning"),
                vec![("report_key_file", Status::Warning), ("report_key", Status::Fault)],
            ),
            (
                jail("recidive", REPORTER_ACTION, false, "/var/log/fail2ban.log"),
                KeyState::Usable,
                None,
                vec![("report_key", Status::Ok), ("report_recidive", Status::Fault)],
            ),
            (
                jail("a", "curl https://api.abuseipdb.com/api/v2/report", true, AUTH_LOG),
                KeyState::Missing,
                None,
                vec![("report_action", Status::Fault)],
            ),
        ];
        for (jail, key, warning, expected) in table {
            let found = findings(&[jail], Path::new("/k"), &key, warning).into_iter();
            let found: Vec<_> = found.map(|finding| (finding.id, finding.state)).collect();
            assert_eq!(found, expected);
        }
        let two = [
            jail("a", REPORTER_ACTION, false, AUTH_LOG),
            jail("b", REPORTER_ACTION, false, AUTH_LOG),
        ];
        let found = findings(&two, Path::new("/k"), &KeyState::Missing, None);
        assert_eq!(
            found[0].text,
            "jails `a` and `b` report to AbuseIPDB, but the key file /k is missing"
        );
    }
}
