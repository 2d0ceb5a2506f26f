//! `f2bmqtt check`: diagnoses problems, and suggests fixes.
//!
//! First, the three collectors in `gather` get facts at the same time, each within some seconds: from this host, from
//! fail2ban and from the brokers. Then the rules in `rules`, which are pure, turn the facts into findings (`finding`).

mod finding;
mod gather;
mod rules;

use std::io::{self, IsTerminal as _};

use rustix::process::geteuid;

use self::finding::{Finding, Status};
use crate::abuseipdb::queue_status::QueueStatus;
use crate::config::{self, Config};
use crate::daemon;
use crate::daemon::status::DaemonStatus;
use crate::error::Error;
use crate::model::text::count;
use crate::sys::clock::now_secs;
use crate::sys::log::info;
use crate::sys::paths::Paths;
use crate::sys::private_files::trust;
use crate::sys::runtime;

/// Runs all checks, and prints the findings.
///
/// # Errors
/// [`Error::ChecksFailed`] if a check failed.
pub fn run(json: bool, paths: &Paths) -> Result<(), Error> {
    if !geteuid().is_root() {
        let what = "check must run as root: it reads the settings and queries fail2ban";
        return Err(Error::Failed(what.to_owned()));
    }
    let config = Config::load();
    let findings = findings(&config, paths)?;
    if json {
        info(finding::object(&findings));
    } else {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        info(finding::text(&findings, colour));
    }
    if finding::count(&findings, Status::Fault) == 0 {
        return Ok(());
    }
    let faults = count(finding::count(&findings, Status::Fault), "fault");
    let warnings = count(finding::count(&findings, Status::Warning), "warning");
    let summary = format!("{faults}, {warnings}");
    Err(Error::ChecksFailed { summary, settings: config.is_err() })
}

fn findings(config: &Result<Config, Error>, paths: &Paths) -> Result<Vec<Finding>, Error> {
    let path = config::path();
    let files = {
        let (paths, path) = (paths.clone(), path.clone());
        std::thread::spawn(move || {
            (gather::host::host(&paths, &path), gather::fail2ban::configured())
        })
    };
    let file = paths.status();
    let status = DaemonStatus::read(&file);
    let instance = status.as_ref().map(|status| status.instance.clone()).unwrap_or_default();
    let (brokers, server) = runtime::run(async {
        let brokers = async {
            match config {
                Ok(config) => gather::broker::brokers(config, &instance).await,
                Err(_) => Vec::new(),
            }
        };
        Ok(tokio::join!(brokers, gather::fail2ban::server(&paths.fail2ban)))
    })?;
    let (mut host, configured) =
        files.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    if config.is_err() {
        host.settings_newer = None; // a restart with invalid settings would stop the service
    }
    // Read the file again: the daemon may have noticed more during the probes.
    let status = DaemonStatus::read(&file);
    // Two hosts of one name disconnect each other every few seconds, and the broker keeps only the presence of one.
    host.namesake =
        host.is_running() && status.as_ref().is_ok_and(|status| status.own_duplicate.is_some());
    if let (true, Ok(status)) = (host.is_running(), &status) {
        host.duplicates =
            status.duplicates.iter().map(|duplicate| duplicate.host.clone()).collect();
    }
    let mut found = rules::settings::findings(config, &path);
    if let Ok(config) = config {
        let works = brokers.iter().any(|reached| reached.result().is_some());
        // First, because it is the state right after the installation.
        found.splice(0..0, rules::settings::sample(config, works, &path));
        found.extend(brokers.iter().flat_map(|reached| reached.findings(config)));
        let certificates = config.tls.as_ref().map(config::Tls::certificates).unwrap_or_default();
        found.extend(rules::settings::certificates(&certificates, now_secs()));
        let result = brokers.iter().find_map(rules::broker::BrokerProbe::result);
        if let Some(result) = result {
            found.extend(rules::fleet::findings(
                (&config.node, &config.topic),
                &daemon::machine(),
                result,
                &host,
            ));
        }
    }
    found.extend(host.findings(&paths.state, &path));
    if let Some(owner) = host.owner {
        let database = server.as_ref().ok().and_then(|server| server.database.clone());
        let socket = Some(("fail2ban's socket", paths.fail2ban.clone()));
        let seen = socket.into_iter().chain(database.map(|path| ("fail2ban's database", path)));
        let hidden = seen.filter(|(_, path)| gather::host::is_hidden_from(owner.pid, path));
        found.extend(hidden.map(|(what, path)| rules::host::hidden(what, &path)));
    }
    if host.is_running() {
        found.extend(rules::status::findings(&status, &file, now_secs()));
    }
    let sharing = config.as_ref().map(|config| config.sharing.clone()).unwrap_or_default();
    found.extend(rules::jails::findings(&server, &configured, &sharing));
    if let Ok(server) = &server {
        found.extend(rules::database::findings(
            server.database.as_deref(),
            &rules::database::read(server),
        ));
        let spool = paths.spool();
        let seen = gather::host::spool_visibility(server.pid, spool.dir());
        found.extend(seen.map(|seen| seen.finding(spool.dir())));
        let (key, warning) = gather::host::key(&paths.api_key);
        found.extend(rules::reports::findings(
            &server.jails,
            &paths.api_key,
            &key,
            warning.as_deref(),
        ));
        let reports_queue = QueueStatus::of(&paths.report_queue());
        found.extend(rules::reports::queue(
            &server.jails,
            &reports_queue,
            &paths.api_key,
            now_secs(),
        ));
        found.extend(rules::reports::files(&server.jails, trust::inspect));
    }
    Ok(found)
}
