//! Can what jails report to AbuseIPDB go out, and ought it to? Pure. The key is never shown, nor sent
//! anywhere.

use std::path::Path;

use super::finding::{Finding, list};
use super::jails::{Action, Running};

/// What is known of the file with the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Missing,
    /// It is there, and no key in it.
    None,
    Usable,
}

fn reports(action: &Action) -> bool {
    action.ban.contains("fail2ban-abuseipdb") || action.ban.contains("f2bmqtt report")
}

/// What is to be said of the jails that report; `warning` is what is odd about the file of the key.
pub(super) fn findings(
    jails: &[Running],
    path: &Path,
    key: &Key,
    warning: Option<&str>,
) -> Vec<Finding> {
    let path = path.display();
    let mut found = Vec::new();
    let with = |wanted: fn(&Action) -> bool| {
        let jails = jails.iter().filter(move |jail| jail.actions.iter().any(wanted));
        jails.collect::<Vec<_>>()
    };
    for jail in with(|action| action.ban.contains("api.abuseipdb.com")) {
        let text = format!(
            "the jail {} reports to AbuseIPDB by fail2ban's own action, which also reports what other \
             servers detected",
            jail.name
        );
        found.push(Finding::fault("report_action", text).about(&jail.name).next(format!(
            "cp -b /usr/share/f2bmqtt/action.d/abuseipdb.local /etc/fail2ban/action.d/\n\
             then: fail2ban-client reload --restart {}",
            jail.name
        )));
    }
    let reporting = with(reports);
    if reporting.is_empty() {
        return found;
    }
    let names: Vec<&str> = reporting.iter().map(|jail| jail.name.as_str()).collect();
    let own_key = |jail: &&Running| jail.actions.iter().any(|action| reports(action) && action.key);
    let make = format!("install -m 0600 /dev/null {path}\necho 'APIKEY=...' >>{path}");
    let who = format!("{} to AbuseIPDB", list(&names));
    let verb = if names.len() == 1 { "reports" } else { "report" };
    let who = who.replacen(" to ", &format!(" {verb} to "), 1);
    if let Some(what) = warning {
        let next = format!("it is for root alone, and one line: chmod 600 {path}; APIKEY=...");
        found.push(Finding::warning("report_key_file", what).next(next));
    }
    found.push(match key {
        Key::Usable => Finding::well("report_key", format!("{who}, with the key in {path}")),
        _ if reporting.iter().all(own_key) => {
            let text = format!(
                "{who}, with a key of the jail, which can be seen in the list of processes"
            );
            Finding::warning("report_key", text).next(make)
        }
        Key::Missing => {
            let text = format!("{who}, and there is no key: {path} is missing");
            Finding::fault("report_key", text).next(make)
        }
        Key::None => {
            let text = format!("{who}, and {path} holds no key, at most the place for one");
            let next = format!("write your key into {path}: APIKEY=...");
            Finding::fault("report_key", text).next(next)
        }
    });
    for jail in reporting {
        let log = |path: &String| path.rsplit('/').next() == Some("fail2ban.log");
        if jail.logs.iter().any(log) {
            let text = format!(
                "the jail {} counts bans, those of other servers too, and reports them to AbuseIPDB, \
                 which takes no report that rests on somebody else's",
                jail.name
            );
            found.push(Finding::fault("report_recidive", text).about(&jail.name).next(format!(
                "take the action abuseipdb from [{name}] in /etc/fail2ban/jail.local\n\
                 then: fail2ban-client reload --restart {name}",
                name = jail.name
            )));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use crate::wire::Jail;

    fn jail(name: &str, ban: &str, key: bool, log: &str) -> Running {
        Running {
            name: Jail::new(name).unwrap(),
            actions: vec![Action { name: "abuseipdb".to_owned(), ban: ban.to_owned(), key }],
            logs: vec![log.to_owned()],
            wrong: Vec::new(),
        }
    }

    #[test]
    fn a_jail_that_reports_needs_a_key_and_may_not_count_bans() {
        const OURS: &str = "/etc/fail2ban/action.d/fail2ban-abuseipdb.sh '' \"<matches>\"";
        const AUTH: &str = "/var/log/auth.log";
        let table = [
            (jail("a", "true", false, AUTH), Key::Missing, None, vec![]),
            (jail("a", OURS, false, AUTH), Key::Usable, None, vec![("report_key", State::Well)]),
            (jail("a", OURS, false, AUTH), Key::Missing, None, vec![("report_key", State::Fault)]),
            (jail("a", OURS, false, AUTH), Key::None, None, vec![("report_key", State::Fault)]),
            (jail("a", OURS, true, AUTH), Key::Missing, None, vec![("report_key", State::Warning)]),
            (
                jail("a", OURS, false, AUTH),
                Key::Usable,
                Some("0644"),
                vec![("report_key_file", State::Warning), ("report_key", State::Well)],
            ),
            (
                jail("a", OURS, false, AUTH),
                Key::None,
                Some("odd"),
                vec![("report_key_file", State::Warning), ("report_key", State::Fault)],
            ),
            (
                jail("recidive", OURS, false, "/var/log/fail2ban.log"),
                Key::Usable,
                None,
                vec![("report_key", State::Well), ("report_recidive", State::Fault)],
            ),
            (
                jail("a", "curl https://api.abuseipdb.com/api/v2/report", true, AUTH),
                Key::Missing,
                None,
                vec![("report_action", State::Fault)],
            ),
        ];
        for (jail, key, warning, expected) in table {
            let found = findings(&[jail], Path::new("/k"), &key, warning).into_iter();
            let found: Vec<_> = found.map(|finding| (finding.id, finding.state)).collect();
            assert_eq!(found, expected);
        }
        let two = [jail("a", OURS, false, AUTH), jail("b", OURS, false, AUTH)];
        let found = findings(&two, Path::new("/k"), &Key::Missing, None);
        assert_eq!(
            found[0].text,
            "a and b report to AbuseIPDB, and there is no key: /k is missing"
        );
    }
}
