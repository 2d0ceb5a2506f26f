//! `f2bmqtt status`: the state of this host, the broker and every host of the fleet.

mod json;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use super::local_host;
use super::local_host::LocalService;
use super::render;
use super::render::Out;
use super::time_format::Clock;
use crate::broker::fleet_client::FleetClient;
use crate::broker::fleet_view::{BanSummary, FleetView};
use crate::config::Config;
use crate::error::Error;
use crate::model::{HostName, Jail};
use crate::store::reader;
use crate::sys::clock::now_secs;
use crate::sys::paths::Paths;
use crate::sys::runtime;

/// Collects the state, and prints it.
///
/// # Errors
/// Any [`Error`]; [`Error::Failed`] if this host has a problem, or the broker's data is incomplete.
pub fn run(json: bool, paths: &Paths) -> Result<(), Error> {
    let config = Config::load()?;
    let status = runtime::run(async {
        let (client, jails) = tokio::join!(
            FleetClient::connect(&config, || reader::origins(paths)),
            local_host::query_jails(paths)
        );
        let (broker, view, broker_error) = match client {
            Ok(mut client) => {
                let view = client.take_view();
                let broker = client.broker.to_string();
                client.end().await;
                (broker, view, None)
            }
            Err(error) => {
                let broker = config.brokers[0].to_string();
                (broker, FleetView::default(), Some(error.to_string()))
            }
        };
        let user = config.user();
        let (service, me) = (LocalService::read(paths), config.node.clone());
        let (banned, clock) = (view.banned(now_secs()), Clock::new(now_secs())?);
        Ok(FleetStatus { me, service, broker, user, broker_error, jails, view, banned, clock })
    })?;
    if json {
        render::print_json(&status.json());
    } else {
        render::print(&status.text(Out::stdout()));
    }
    let faults = status.faults();
    if faults.is_empty() { Ok(()) } else { Err(Error::Failed(faults.join("; "))) }
}

/// The collected state.
struct FleetStatus {
    me: HostName,
    service: LocalService,
    /// The broker, the user of the login, and why the connection failed.
    broker: String,
    user: Option<String>,
    broker_error: Option<String>,
    /// fail2ban's jails on this host.
    jails: Result<BTreeSet<Jail>, String>,
    view: FleetView,
    banned: Vec<BanSummary>,
    clock: Clock,
}

impl FleetStatus {
    /// The problems that make the command fail.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.service.pid.is_none() {
            faults.push("the service is not running".to_owned());
        }
        faults.extend(self.broker_error.iter().map(|_| "no connection to the broker".to_owned()));
        if self.jails.is_err() {
            faults.push("fail2ban does not answer".to_owned());
        }
        if !self.service.disks_full.is_empty() {
            faults.push("a file system is full".to_owned());
        }
        let missing = self.view.missing();
        if !missing.is_empty() {
            faults.push(format!("incomplete data from the broker: missing {}", missing.join(", ")));
        }
        faults
    }

    fn by_jail(&self) -> BTreeMap<Jail, usize> {
        let mut jails = BTreeMap::new();
        for banned in &self.banned {
            *jails.entry(banned.jail.clone()).or_default() += 1;
        }
        jails
    }
}
