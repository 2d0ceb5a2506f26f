//! Collects facts from fail2ban: from the running server over its socket, and from the configuration with
//! `fail2ban-client -d`, which starts nothing.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::host;
use crate::abuseipdb::{enqueue, key};
use crate::error::Fail2banError;
use crate::fail2ban::Client;
use crate::guard::IgnoreListResolver;
use crate::model::Jail;
use crate::operator::check::rules::jails;
use crate::operator::check::rules::jails::{Configured, JailAction, RunningFail2ban, RunningJail};
use crate::operator::check::rules::reports::is_reporter;
use crate::sys::private_files::trust::DirContent;

/// How long the server may take. A slower one hangs, or makes many bans.
const SERVER_TIMEOUT: Duration = Duration::from_secs(4);

/// How long the name lookups of all `ignoreip` may take.
const NAME_TIMEOUT: Duration = Duration::from_secs(3);

/// The facts from the server; `Err` is why it does not answer.
pub(in crate::operator::check) async fn server(socket: &Path) -> Result<RunningFail2ban, String> {
    match timeout(SERVER_TIMEOUT, query(socket)).await {
        Ok(Ok((mut server, ignored))) => {
            check_ignoreip(&mut server, &ignored).await;
            Ok(server)
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "fail2ban does not answer within {} s: one of its actions hangs, or many bans keep fail2ban busy",
            SERVER_TIMEOUT.as_secs()
        )),
    }
}

/// Finds the faults in the `ignoreip` of each jail.
async fn check_ignoreip(server: &mut RunningFail2ban, ignored: &[Vec<String>]) {
    let mut exempt = IgnoreListResolver::patient(NAME_TIMEOUT);
    // Resolve the names of all jails at once, so that their timeouts overlap.
    if let Some(first) = server.jails.first() {
        exempt.resolve(&first.name, &ignored.concat()).await;
    }
    for (jail, entries) in server.jails.iter_mut().zip(ignored) {
        (_, jail.ignoreip_faults) = exempt.resolve(&jail.name, entries).await;
    }
}

/// Queries the server. Also returns the `ignoreip` of each jail.
async fn query(socket: &Path) -> Result<(RunningFail2ban, Vec<Vec<String>>), Fail2banError> {
    let mut client = Client::connect(socket).await?;
    let version = client.version().await?;
    let database = client.database().await?;
    let mut server =
        RunningFail2ban { version, pid: client.pid(), database, ..RunningFail2ban::default() };
    let mut ignored = Vec::new();
    for name in client.jail_names().await? {
        let Ok(name) = Jail::new(&name) else {
            server.unusable.push(name);
            continue;
        };
        let mut actions = Vec::new();
        for action in client.actions(&name).await? {
            let ban = client.property(&name, &action, "actionban").await?;
            let inline = client.property(&name, &action, "abuseipdb_apikey").await?;
            let key = key::parse_key(&inline).is_some();
            let mut files = Vec::new();
            if is_reporter(&ban) {
                // SQLITE_DB and LOG_FILE: fail2ban keeps the names of settings in lower case.
                let settings = [
                    ("sqlite_db", crate::sys::paths::DEFAULT_LEDGER, DirContent::Database),
                    ("log_file", crate::sys::paths::DEFAULT_LOG, DirContent::Log),
                ];
                for (setting, default, keeps) in settings {
                    let path = client.property(&name, &action, setting).await?;
                    files.push((enqueue::path_or_default(&path, default).into(), keeps));
                }
            }
            actions.push(JailAction { name: action, ban, key, files });
        }
        let logs = client.logs(&name).await?;
        ignored.push(client.ignored(&name).await?);
        let ignore_command = client.ignore_command(&name).await?;
        server.jails.push(RunningJail {
            name,
            actions,
            logs,
            ignore_command,
            ignoreip_faults: Vec::new(),
        });
    }
    Ok((server, ignored))
}

/// The most errors of fail2ban that become findings.
const MAX_CONFIG_ERRORS: usize = 5;

/// The configuration on disk.
pub(in crate::operator::check) fn configured() -> Configured {
    let output = match host::command("fail2ban-client", &["-d"]) {
        Ok(output) => output,
        Err(error) => return broken_configuration(format!("cannot run fail2ban-client: {error}")),
    };
    // `2026-11-22 19:14:40,963 fail2ban [71]: ERROR  Have not found any log file for sshd jail`
    let log = String::from_utf8_lossy(&output.stderr);
    let errors = log.lines().filter_map(|line| line.split_once(" ERROR "));
    let errors: Vec<_> =
        errors.map(|(_, what)| what.trim().to_owned()).take(MAX_CONFIG_ERRORS).collect();
    if output.status.success() {
        let jails = jails::configured(&String::from_utf8_lossy(&output.stdout));
        return Configured { jails, errors, broken: false };
    }
    let last = log.lines().last().unwrap_or("fail2ban-client -d fails");
    broken_configuration(errors.into_iter().next().unwrap_or_else(|| last.to_owned()))
}

fn broken_configuration(what: String) -> Configured {
    Configured { errors: vec![what], broken: true, ..Configured::default() }
}
