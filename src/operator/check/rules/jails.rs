//! Checks of fail2ban and of its jails: whether they run and share their bans. Pure;
//! `gather::fail2ban` collects the facts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::model::text::list;
use crate::model::{Jail, JailFilter};
use crate::operator::check::finding::Finding;
use crate::spool::notify::is_called_by;
use crate::sys::private_files::trust::DirContent;

/// The first version whose socket answers all queries of f2bmqtt.
const MIN_VERSION: [u32; 3] = [0, 11, 2];

/// The facts from a fail2ban server that answers.
#[derive(Debug, Default)]
pub(in crate::operator::check) struct RunningFail2ban {
    pub(in crate::operator::check) version: String,
    pub(in crate::operator::check) pid: i32,
    pub(in crate::operator::check) jails: Vec<RunningJail>,
    /// Names of jails that a message must not contain.
    pub(in crate::operator::check) unusable: Vec<String>,
    /// The path of its database; `None` if fail2ban keeps none.
    pub(in crate::operator::check) database: Option<PathBuf>,
}

/// A running jail.
#[derive(Debug)]
pub(in crate::operator::check) struct RunningJail {
    pub(in crate::operator::check) name: Jail,
    pub(in crate::operator::check) actions: Vec<JailAction>,
    /// The log files that it reads.
    pub(in crate::operator::check) logs: Vec<String>,
    /// Its `ignorecommand`, if it has one.
    pub(in crate::operator::check) ignore_command: String,
    /// The faults in its `ignoreip`.
    pub(in crate::operator::check) ignoreip_faults: Vec<String>,
}

/// An action of a jail.
#[derive(Debug)]
pub(in crate::operator::check) struct JailAction {
    pub(in crate::operator::check) name: String,
    /// Its `actionban`; empty for an action that is written in Python.
    pub(in crate::operator::check) ban: String,
    /// Whether the jail gives it a usable key for AbuseIPDB.
    pub(in crate::operator::check) key: bool,
    /// The database and the log of an action that reports to AbuseIPDB; empty for others.
    pub(in crate::operator::check) files: Vec<(PathBuf, DirContent)>,
}

/// The configuration on disk, which the server may not have loaded yet.
#[derive(Debug, Default)]
pub(in crate::operator::check) struct Configured {
    /// Each jail, and whether an action of the jail calls notify.
    pub(in crate::operator::check) jails: BTreeMap<Jail, bool>,
    /// The errors that fail2ban reports.
    pub(in crate::operator::check) errors: Vec<String>,
    /// fail2ban rejects the whole configuration.
    pub(in crate::operator::check) broken: bool,
}

/// Reads the output of `fail2ban-client -d`: the commands that start a server, one Python list per line.
pub(in crate::operator::check) fn configured(dump: &str) -> BTreeMap<Jail, bool> {
    let mut jails = BTreeMap::new();
    for line in dump.lines() {
        let Some(line) = line.strip_prefix("['") else { continue };
        let mut fields = line.splitn(4, "', '");
        let (verb, jail) = (fields.next(), fields.next().unwrap_or_default());
        let Ok(jail) = Jail::new(jail.trim_end_matches("']")) else { continue };
        match (verb, fields.next(), fields.next()) {
            (Some("add" | "start"), _, _) => {
                jails.entry(jail).or_insert(false);
            }
            (Some("set" | "multi-set"), Some("action"), Some(text))
                if action_ban(text).is_some_and(is_called_by) =>
            {
                jails.insert(jail, true);
            }
            _ => {}
        }
    }
    jails
}

/// The `actionban` of an action, as a Python string. Only `actionban` counts, because other commands may call notify, too.
fn action_ban(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("'actionban', ")?;
    let quote = rest.chars().next()?;
    let rest = &rest[quote.len_utf8()..];
    let mut escaped = false;
    let end = rest.find(|c| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    Some(&rest[..end])
}

/// The findings about fail2ban and its jails.
pub(in crate::operator::check) fn findings(
    server: &Result<RunningFail2ban, String>,
    configured: &Configured,
    sharing: &JailFilter,
) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(configured.errors.iter().map(|what| {
        let finding = if configured.broken {
            let text = format!("fail2ban's configuration is invalid: {what}");
            Finding::fault("fail2ban_config", text)
        } else {
            Finding::warning(
                "fail2ban_config",
                format!("fail2ban reports an error in its configuration: {what}"),
            )
        };
        // Without rsyslog, Debian 12 has no /var/log/auth.log, and fail2ban stops at the first jail without a log.
        match what.strip_prefix("Have not found any log file for ").and_then(|rest| rest.strip_suffix(" jail")) {
            Some(jail) => finding.next(format!(
                "if its service logs only to the journal, add to /etc/fail2ban/jail.local:\n    [{jail}]\n    \
                 backend = systemd\nthen: apt install python3-systemd; systemctl restart fail2ban"
            )),
            None => finding.next("fail2ban-client -t"),
        }
    }));
    let server = match server {
        Ok(server) => server,
        Err(why) => {
            found.push(Finding::fault("fail2ban", why.as_str()).next(
                "systemctl restart fail2ban\nif fail2ban stops again: journalctl -u fail2ban -n 20\n\
                 if its socket has another path: MQTT_FAIL2BAN_SOCKET=/path in mqtt.env",
            ));
            return found;
        }
    };
    let version = &server.version;
    if numbers(version) < MIN_VERSION {
        let text = format!("fail2ban {version} is too old: f2bmqtt requires 0.11.2 or later");
        found.push(Finding::fault("fail2ban", text).next("apt install fail2ban"));
    } else {
        found.push(Finding::ok("fail2ban", format!("fail2ban {version} answers")));
    }
    found.extend(of_jails(server, &configured.jails, sharing));
    found
}

fn of_jails(
    server: &RunningFail2ban,
    configured: &BTreeMap<Jail, bool>,
    sharing: &JailFilter,
) -> Vec<Finding> {
    let mut found = Vec::new();
    if server.jails.is_empty() {
        let text = "fail2ban has no jails: this host detects and imports no bans";
        found.push(Finding::fault("jail_none", text).next(
            "add to /etc/fail2ban/jail.local, for example:\n    [sshd]\n    enabled = true\n\
             then: fail2ban-client reload",
        ));
    }
    found.extend(server.unusable.iter().map(|name| {
        let text = format!(
            "jail `{name}` does not share its bans: a jail's name must not contain blanks or invisible characters"
        );
        Finding::warning("jail_name", text).about(name).next(
            "rename it in /etc/fail2ban/jail.local, then: fail2ban-client reload; existing bans stay under the \
             old name",
        )
    }));
    let (acting, idle): (Vec<_>, Vec<_>) =
        server.jails.iter().partition(|jail| !jail.actions.is_empty());
    found.extend(idle.into_iter().map(|jail| {
        let name = &jail.name;
        let text = format!("jail `{name}` has no action: it blocks nothing");
        Finding::fault("jail_no_action", text).about(name).next(format!(
            "fail2ban-client reload --restart {name}\n\
             (after a change of actions, a reload without --restart leaves the jail without actions)\n\
             if that does not help: set the jail's banaction in /etc/fail2ban/jail.local"
        ))
    }));
    let (shared, excluded): (Vec<_>, Vec<_>) =
        acting.into_iter().partition(|jail| sharing.includes(&jail.name));
    let (wired, unwired): (Vec<_>, Vec<_>) = shared
        .into_iter()
        .partition(|jail| jail.actions.iter().any(|action| is_called_by(&action.ban)));
    if !wired.is_empty() {
        let verb = if wired.len() == 1 { "shares its" } else { "share their" };
        found.push(Finding::ok("jail_shares", format!("{} {verb} bans", jail_list(&wired))));
    }
    if !excluded.is_empty() {
        let verb = if excluded.len() == 1 { "does" } else { "do" };
        let text =
            format!("{} {verb} not share bans: excluded by the settings", jail_list(&excluded));
        found.push(Finding::ok("jail_left_out", text));
    }
    let jails: BTreeSet<Jail> = server.jails.iter().map(|jail| jail.name.clone()).collect();
    found.extend(sharing.unmatched(&jails).into_iter().map(|name| {
        let text = format!("MQTT_JAILS names `{name}`, but fail2ban has no such jail");
        let next = "fix the name in /etc/fail2ban/mqtt.env, or add the jail to jail.local";
        Finding::warning("jail_missing", text).next(next).about(name)
    }));
    found.extend(unwired.iter().map(|jail| {
        let written = configured.get(&jail.name).copied().unwrap_or(false);
        by_snapshot(jail, written).about(&jail.name)
    }));
    for jail in server.jails.iter().filter(|jail| sharing.includes(&jail.name)) {
        found.extend(jail.ignoreip_faults.iter().map(|what| {
            let next = format!(
                "getent ahosts NAME\nif the name is wrong: fix ignoreip in jail.local, then: \
                 fail2ban-client reload {}",
                jail.name
            );
            Finding::warning("jail_ignoreip", what.as_str()).next(next).about(&jail.name)
        }));
    }
    let commands = server.jails.iter().filter(|jail| !jail.ignore_command.is_empty());
    found.extend(commands.filter(|jail| sharing.includes(&jail.name)).map(ignore_command));
    found.extend(configured.keys().filter(|name| !jails.contains(*name)).map(|name| {
        let text = format!("jail `{name}` is configured, but fail2ban does not run it");
        let next = "fail2ban-client reload\nif the jail does not start: tail /var/log/fail2ban.log";
        Finding::warning("jail_not_running", text).next(next).about(name)
    }));
    found
}

/// The jails as the subject of a sentence: "jail `sshd`", "jails `sshd` and `web`".
pub(in crate::operator::check) fn jail_list(jails: &[&RunningJail]) -> String {
    let names: Vec<String> = jails.iter().map(|jail| format!("`{}`", jail.name)).collect();
    format!("jail{} {}", if names.len() == 1 { "" } else { "s" }, list(&names))
}

/// The warning about an `ignorecommand`: the daemon never runs it, because it is another program's code.
fn ignore_command(jail: &RunningJail) -> Finding {
    let name = &jail.name;
    let text = format!(
        "jail `{name}` has an ignorecommand, which f2bmqtt does not run: imports ban addresses that the command exempts"
    );
    Finding::warning("jail_ignorecommand", text).about(name).next(format!(
        "exempt the addresses in ignoreip in /etc/fail2ban/jail.local, too, then: fail2ban-client reload {name}\n\
         or in MQTT_NEVER_BAN in mqtt.env, then: systemctl restart f2bmqttsub"
    ))
}

/// The finding about a jail without an action that calls notify; `written`: the configuration on disk has one. Its bans
/// reach the other hosts with the next snapshot.
fn by_snapshot(jail: &RunningJail, written: bool) -> Finding {
    let RunningJail { name, actions, .. } = jail;
    let text = format!("jail `{name}` shares its bans by snapshot, within seconds");
    if written {
        let text = format!("{text}: fail2ban has not loaded the configured action");
        return Finding::warning("jail_not_loaded", text)
            .next(format!("fail2ban-client reload --restart {name}"));
    }
    let names: Vec<&str> = actions.iter().map(|action| action.name.as_str()).collect();
    let actions = match names.len() {
        1 => format!("its action is {}", names[0]),
        _ => format!("its actions are {}", list(&names)),
    };
    Finding::ok("jail_not_wired", format!("{text}: {actions}")).next(format!(
        "to share them at once, add f2bmqtt to the jail's action in /etc/fail2ban/jail.local:\n\
         \x20   [{name}]\n\
         \x20   action = %(action_)s\n\
         \x20            f2bmqtt\n\
         then: fail2ban-client reload --restart {name}\n\
         to keep them private: MQTT_NOT_JAILS={name} in mqtt.env"
    ))
}

/// The numbers of a version; `1.1.0.dev1` is 1.1.0.
fn numbers(version: &str) -> [u32; 3] {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    [(); 3].map(|()| numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::check::finding::Status;

    fn jail(name: &str) -> Jail {
        Jail::new(name).unwrap()
    }

    fn running(name: &str, actions: &[(&str, &str)]) -> RunningJail {
        let actions = actions.iter().map(|(name, ban)| JailAction {
            name: (*name).to_owned(),
            ban: (*ban).to_owned(),
            key: false,
            files: Vec::new(),
        });
        let actions = actions.collect();
        let (logs, ignore_command) = (Vec::new(), String::new());
        RunningJail { name: jail(name), actions, logs, ignore_command, ignoreip_faults: Vec::new() }
    }

    fn server(jails: Vec<RunningJail>) -> RunningFail2ban {
        RunningFail2ban { version: "1.0.2".to_owned(), pid: 1, jails, ..RunningFail2ban::default() }
    }

    fn problems(
        server: &Result<RunningFail2ban, String>,
        configured: &Configured,
    ) -> Vec<(&'static str, String)> {
        let out = BTreeSet::from([jail("recidive")]);
        let found = findings(server, configured, &JailFilter::new(None, out)).into_iter();
        found
            .filter(|finding| finding.state != Status::Ok)
            .map(|finding| (finding.id, finding.text))
            .collect()
    }

    const NOTIFY_ACTION: &str = "[ '<failures>' = 0 ] || /etc/fail2ban/mqttnotifyban 'web' '<ip>'";

    #[test]
    fn configured_jails_are_read_from_the_dump() {
        let dump = "['set', 'syslogsocket', 'auto']\n['add', 'sshd', 'polling']\n\
                    ['set', 'sshd', 'addaction', 'f2bmqtt']\n\
                    ['multi-set', 'sshd', 'action', 'f2bmqtt', [['actionban', \"/etc/fail2ban/mqttnotifyban 'sshd'\"]]]\n\
                    ['multi-set', 'sshd', 'action', 'mail', [['actionban', 'true']]]\n\
                    ['add', 'late', 'polling']\n\
                    ['multi-set', 'late', 'action', 'own', [['actionban', 'echo \'it\\\'s\''], ['actionunban', '/etc/fail2ban/mqttnotifyban x']]]\n\
                    ['add', 'web', 'polling']\n['set', 'web', 'action', 'x', 'actionban', 'true']\n\
                    ['start', 'web']\n['start', 'odd one']\n2026 WARNING\n";
        let expected =
            BTreeMap::from([(jail("sshd"), true), (jail("late"), false), (jail("web"), false)]);
        assert_eq!(configured(dump), expected);
    }

    #[test]
    fn jail_that_does_not_share_at_once_is_listed_with_the_fix() {
        let mut running_server = server(vec![
            running("sshd", &[("iptables-ipset", NOTIFY_ACTION)]),
            running("web", &[("nftables", "nft add"), ("mail", "")]),
            running("ftp", &[("nftables", "nft add")]),
            running("recidive", &[("nftables", "nft add")]),
            running("idle", &[]),
        ]);
        running_server.unusable = vec!["my jail".to_owned()];
        let running_server = Ok(running_server);
        let files = BTreeMap::from([
            (jail("sshd"), true),
            (jail("web"), false),
            (jail("ftp"), true),
            (jail("mail"), true),
        ]);
        let expected = [
            (
                "jail_name",
                "jail `my jail` does not share its bans: a jail's name must not contain blanks or invisible characters",
            ),
            ("jail_no_action", "jail `idle` has no action: it blocks nothing"),
            (
                "jail_not_loaded",
                "jail `ftp` shares its bans by snapshot, within seconds: fail2ban has not loaded the configured action",
            ),
            ("jail_not_running", "jail `mail` is configured, but fail2ban does not run it"),
        ];
        let expected = expected.map(|(id, text)| (id, text.to_owned()));
        let configured = Configured { jails: files, ..Configured::default() };
        assert_eq!(problems(&running_server, &configured), expected);
        let all = findings(&running_server, &configured, &JailFilter::default());
        let web = all.iter().find(|finding| finding.id == "jail_not_wired").unwrap();
        let text = "jail `web` shares its bans by snapshot, within seconds: its actions are nftables and mail";
        assert_eq!((web.state, web.text.as_str()), (Status::Ok, text));
        assert_eq!(
            web.next[3..5],
            ["             f2bmqtt", "then: fail2ban-client reload --restart web"]
        );
        let none = problems(
            &Ok(RunningFail2ban { version: "1.1.0.dev1".to_owned(), ..RunningFail2ban::default() }),
            &Configured::default(),
        );
        assert_eq!((none.len(), none[0].0), (1, "jail_none"));
        let broken = problems(
            &Err("fail2ban does not answer".to_owned()),
            &Configured {
                errors: vec!["no log".to_owned()],
                broken: true,
                ..Configured::default()
            },
        );
        assert_eq!(
            broken.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            ["fail2ban_config", "fail2ban"]
        );
    }

    #[test]
    fn missing_log_file_suggests_the_journal() {
        let error = "Have not found any log file for sshd jail".to_owned();
        let configured = Configured { errors: vec![error], broken: true, ..Configured::default() };
        let server = Err("fail2ban does not answer".to_owned());
        let found = findings(&server, &configured, &JailFilter::default());
        assert_eq!(found[0].next[1..3], ["    [sshd]", "    backend = systemd"], "{found:?}");
    }

    #[test]
    fn faulty_ignoreip_of_a_jail_that_shares_is_a_warning() {
        let jails = ["sshd", "recidive"].map(|name| RunningJail {
            ignoreip_faults: vec![format!("ignoreip of {name}: cannot resolve x.example: why")],
            ..running(name, &[("f2bmqtt", NOTIFY_ACTION)])
        });
        let server = server(jails.into());
        let text = "ignoreip of sshd: cannot resolve x.example: why".to_owned();
        assert_eq!(problems(&Ok(server), &Configured::default()), [("jail_ignoreip", text)]);
    }

    #[test]
    fn ignorecommand_of_a_jail_that_shares_is_a_warning() {
        let jails = [("sshd", "/srv/x <ip>"), ("web", ""), ("recidive", "/srv/x")];
        let jails = jails.map(|(name, command)| RunningJail {
            ignore_command: command.to_owned(),
            ..running(name, &[("f2bmqtt", NOTIFY_ACTION)])
        });
        let server = server(jails.into());
        let text = "jail `sshd` has an ignorecommand, which f2bmqtt does not run: imports ban addresses that the \
                    command exempts";
        let expected = [("jail_ignorecommand", text.to_owned())];
        assert_eq!(problems(&Ok(server), &Configured::default()), expected);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, old) in
            [("0.11.1", true), ("0.9.99", true), ("0.11.2", false), ("1.1.0.dev1", false)]
        {
            assert_eq!(numbers(version) < MIN_VERSION, old, "{version}");
        }
    }
}
