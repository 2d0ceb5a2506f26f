//! `f2bmqtt status`: is it working, on every host?

mod figures;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use super::clock::Clock;
use super::local::{self, LocalService};
use super::out::{self, Out};
use super::view::{BanSummary, FleetView};
use super::visit::FleetClient;
use crate::clock::now_secs;
use crate::config::Config;
use crate::error::Error;
use crate::paths::Paths;
use crate::runtime;
use crate::wire::{HostName, Jail};

/// Shows it.
///
/// # Errors
/// Any [`Error`]; [`Error::Undone`] where this host does not take part as it should.
pub fn run(json: bool, paths: &Paths) -> Result<(), Error> {
    let config = Config::load()?;
    let status = runtime::run(async {
        let (visit, jails) = tokio::join!(FleetClient::begin(&config, paths), local::jails(paths));
        let (broker, view, fault) = match visit {
            Ok(mut visit) => {
                let view = visit.take_view();
                let broker = visit.broker.to_string();
                visit.end().await;
                (broker, view, None)
            }
            Err(error) => {
                let broker = config.brokers[0].to_string();
                (broker, FleetView::default(), Some(error.to_string()))
            }
        };
        let user = config.user();
        let (service, me) = (LocalService::look(paths), config.node.clone());
        let (banned, clock) = (view.banned(now_secs()), Clock::new(now_secs())?);
        Ok(Status { me, service, broker, user, fault, jails, view, banned, clock })
    })?;
    if json {
        out::print_json(&status.json());
    } else {
        out::print(&status.text(Out::stdout()));
    }
    let faults = status.faults();
    if faults.is_empty() { Ok(()) } else { Err(Error::Undone(faults.join("; "))) }
}

/// What there is to show.
struct Status {
    me: HostName,
    service: LocalService,
    /// The broker, as whom this host logs in, and why that fails.
    broker: String,
    user: Option<String>,
    fault: Option<String>,
    /// fail2ban's jails here.
    jails: Result<BTreeSet<Jail>, String>,
    view: FleetView,
    banned: Vec<BanSummary>,
    clock: Clock,
}

impl Status {
    /// Why this host does not take part, if so.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.service.pid.is_none() {
            faults.push("the service is not running".to_owned());
        }
        faults.extend(self.fault.iter().map(|_| "no connection to the broker".to_owned()));
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
