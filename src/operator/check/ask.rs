//! Asks fail2ban for what is to be looked at: its server over the socket, and its files by its own
//! client, which starts nothing.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::jails::{self, Configured, JailAction, Running, RunningFail2ban};
use super::look;
use super::reports::is_reporter;
use crate::abuseipdb::{call, key};
use crate::fail2ban::{Client, Fail2banError};
use crate::files::trust::Keeps;
use crate::ignored::IgnoreListResolver;
use crate::wire::Jail;

/// A server that takes longer makes bans meanwhile, or hangs.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long the names in all `ignoreip` may take.
const NAME_PATIENCE: Duration = Duration::from_secs(3);

/// What the server says; `Err` is why it says nothing.
pub(super) async fn server(socket: &Path) -> Result<RunningFail2ban, String> {
    match timeout(PATIENCE, ask(socket)).await {
        Ok(Ok((mut server, ignored))) => {
            look_at(&mut server, &ignored).await;
            Ok(server)
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "fail2ban does not answer within {} s: one of its actions hangs, or many bans keep fail2ban busy",
            PATIENCE.as_secs()
        )),
    }
}

/// Finds out what is wrong with the `ignoreip` of each jail.
async fn look_at(server: &mut RunningFail2ban, ignored: &[Vec<String>]) {
    let mut exempt = IgnoreListResolver::patient(NAME_PATIENCE);
    // All names at once: so their waits are one.
    if let Some(first) = server.jails.first() {
        exempt.resolve(&first.name, &ignored.concat()).await;
    }
    for (jail, entries) in server.jails.iter_mut().zip(ignored) {
        (_, jail.wrong) = exempt.resolve(&jail.name, entries).await;
    }
}

/// Answers with the `ignoreip` of each jail as well.
async fn ask(socket: &Path) -> Result<(RunningFail2ban, Vec<Vec<String>>), Fail2banError> {
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
            let mut property = async |property| client.property(&name, &action, property).await;
            let ban = property("actionban").await?;
            let inline = property("abuseipdb_apikey").await?;
            let key = key::usable(&inline).is_some();
            let mut files = Vec::new();
            if is_reporter(&ban) {
                // SQLITE_DB and LOG_FILE: fail2ban keeps the names of settings in lower case.
                let of = [
                    ("sqlite_db", call::LEDGER, Keeps::Database),
                    ("log_file", call::LOG, Keeps::Log),
                ];
                for (setting, default, keeps) in of {
                    let path = property(setting).await?;
                    files.push((call::or(&path, default).into(), keeps));
                }
            }
            actions.push(JailAction { name: action, ban, key, files });
        }
        let logs = client.logs(&name).await?;
        ignored.push(client.ignored(&name).await?);
        let ignore_command = client.ignore_command(&name).await?;
        server.jails.push(Running { name, actions, logs, ignore_command, wrong: Vec::new() });
    }
    Ok((server, ignored))
}

/// The most of fail2ban's complaints that are passed on.
const MAX_WRONG: usize = 5;

/// What the files would make.
pub(super) fn configured() -> Configured {
    let output = match look::command("fail2ban-client", &["-d"]) {
        Ok(output) => output,
        Err(error) => return broken(format!("cannot run fail2ban-client: {error}")),
    };
    // `2026-11-22 19:14:40,963 fail2ban [71]: ERROR  Have not found any log file for sshd jail`
    let said = String::from_utf8_lossy(&output.stderr);
    let errors = said.lines().filter_map(|line| line.split_once(" ERROR "));
    let wrong: Vec<_> = errors.map(|(_, what)| what.trim().to_owned()).take(MAX_WRONG).collect();
    if output.status.success() {
        let jails = jails::configured(&String::from_utf8_lossy(&output.stdout));
        return Configured { jails, wrong, broken: false };
    }
    let last = said.lines().last().unwrap_or("fail2ban-client -d fails");
    broken(wrong.into_iter().next().unwrap_or_else(|| last.to_owned()))
}

fn broken(what: String) -> Configured {
    Configured { wrong: vec![what], broken: true, ..Configured::default() }
}
