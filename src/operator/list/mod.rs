//! `f2bmqtt list`: all bans of the fleet, or the explanation for one address.

mod explain;

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;
use serde_json::json;

use super::known;
use super::local_host;
use super::local_host::LocalDecision;
use super::render;
use super::render::{BufferedStdout, Out, Row, Style};
use super::time_format::Clock;
use crate::broker::fleet_client::FleetClient;
use crate::broker::fleet_view::{BanSummary, Expiry, FleetView, VoidedBan};
use crate::cli::operator::ListArgs;
use crate::config::Config;
use crate::error::Error;
use crate::model::text::count;
use crate::model::{Address, HostName, Jail};
use crate::store::reader;
use crate::sys::clock::now_secs;
use crate::sys::paths::Paths;
use crate::sys::runtime;
use explain::Explanation;

/// The bans that the command lists.
#[derive(Debug, Default)]
struct ListFilter {
    jail: Option<Jail>,
    host: Option<HostName>,
    network: Option<IpNet>,
    address: Option<Address>,
}

impl ListFilter {
    fn read(args: &ListArgs) -> Result<Self, Error> {
        let mut filter = Self::default();
        if let Some(jail) = &args.jail {
            filter.jail = Some(Jail::new(jail).map_err(|what| usage("--jail", &what))?);
        }
        if let Some(host) = &args.host {
            filter.host = Some(HostName::new(host).map_err(|what| usage("--host", &what))?);
        }
        if let Some(text) = &args.address {
            filter.address = Address::new(text).ok();
            filter.network = match filter.address {
                Some(address) => Some(IpNet::from(address.ip())),
                None => Some(text.parse::<IpNet>().map_err(|_| {
                    usage("IP", "must be an address or a network, such as 203.0.113.0/24")
                })?),
            };
        }
        Ok(filter)
    }

    /// Checks that the jail and the host exist.
    fn check_names(&self, view: &FleetView, local_jails: &BTreeSet<Jail>) -> Result<(), Error> {
        self.jail.as_ref().map_or(Ok(()), |jail| known::check_jail(jail, view, local_jails))?;
        self.host.as_ref().map_or(Ok(()), |host| known::check_host(host, view))
    }

    fn matches(&self, banned: &BanSummary) -> bool {
        self.jail.as_ref().is_none_or(|jail| banned.jail == *jail)
            && self.host.as_ref().is_none_or(|host| banned.is_detected_by(host))
            && self.network.is_none_or(|network| network.contains(&banned.address.ip()))
    }
}

fn usage(name: &str, what: &str) -> Error {
    Error::Usage(format!("{name} {what}"))
}

/// Fetches the bans, and prints them.
///
/// # Errors
/// Any [`Error`]; [`Error::Failed`] if the broker's data is incomplete.
pub fn run(args: &ListArgs, paths: &Paths) -> Result<(), Error> {
    let filter = ListFilter::read(args)?;
    let config = Config::load()?;
    let (view, decision) = runtime::run(async {
        let decision = async {
            match filter.address {
                Some(address) => Some(LocalDecision::query(&config, paths, address).await),
                None => None,
            }
        };
        let local_jails = async {
            match filter.jail {
                Some(_) => local_host::query_jails(paths).await.unwrap_or_default(),
                None => BTreeSet::new(),
            }
        };
        let (client, decision, local_jails) = tokio::join!(
            FleetClient::connect(&config, || reader::origins(paths)),
            decision,
            local_jails
        );
        let mut client = client?;
        filter.check_names(client.view(), &local_jails)?;
        let view = client.take_view();
        client.end().await;
        Ok((view, decision))
    })?;
    let clock = Clock::new(now_secs())?;
    let banned = view.banned(clock.now);
    let banned: Vec<&BanSummary> = banned.iter().filter(|banned| filter.matches(banned)).collect();
    let missing = view.missing();
    match (filter.address, decision) {
        _ if args.json => {
            let voids = filter.address.map(|address| view.voids(address)).unwrap_or_default();
            let _ =
                write_json(&mut BufferedStdout::default(), &banned, &voids, &missing, clock.now);
        }
        (Some(address), Some(decision)) => {
            let explanation = Explanation { me: config.node, address, banned, view, decision };
            render::print(&explanation.text(&clock));
        }
        _ => table(
            &mut BufferedStdout::default(),
            Out::stdout(),
            &banned,
            view.hosts().len(),
            &clock,
        ),
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Failed(format!("incomplete data from the broker: missing {}", missing.join(", "))))
}

/// Writes one JSON object ban by ban, because a fleet may have 500,000 bans.
fn write_json(
    to: &mut dyn fmt::Write,
    banned: &[&BanSummary],
    voids: &[VoidedBan],
    missing: &[String],
    now: i64,
) -> fmt::Result {
    let voided = voids.iter().map(|VoidedBan { jail, host, id, .. }| {
        json!({ "jail": jail.as_str(), "host": host.as_str(), "id": id.as_str() })
    });
    let (voided, missing) = (render::json(&voided.collect()), render::json(&json!(missing)));
    write!(to, "{{\"voided\":{voided},\"incomplete\":{missing},\"time\":{now},\"bans\":[")?;
    for (n, banned) in banned.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        let ban = json!({
            "ip": banned.address.to_string(),
            "jail": banned.jail.as_str(),
            "host": banned.origin.as_str(),
            "since": (banned.since > 0).then_some(banned.since),
            "until": match banned.until { Expiry::Time(end) => Some(end), _ => None },
            "forever": banned.until == Expiry::Never,
            "also": banned.also.iter().map(HostName::as_str).collect::<Vec<_>>(),
        });
        write!(to, "{comma}{}", render::json(&ban))?;
    }
    writeln!(to, "]}}")
}

fn table(to: &mut dyn fmt::Write, out: Out, banned: &[&BanSummary], hosts: usize, clock: &Clock) {
    let heads = ["ADDRESS", "JAIL", "DETECTED BY", "SINCE", "UNTIL", "LEFT", "ALSO BY"];
    out.table(to, &heads, banned.iter().map(|banned| row(banned, clock)));
    if out.terminal {
        let (bans, hosts) = (count(banned.len(), "ban"), count(hosts, "host"));
        let _ = writeln!(to, "\n{bans} in a fleet of {hosts}");
    }
}

fn row(banned: &BanSummary, clock: &Clock) -> Row {
    let (until, left) = clock.until(banned.until);
    let also: Vec<&str> = banned.also.iter().map(HostName::as_str).collect();
    let cells = [
        banned.address.to_string(),
        banned.jail.to_string(),
        banned.origin.to_string(),
        clock.local(banned.since),
        until,
        left,
        also.join(", "),
    ];
    cells.map(|cell| (Style::Plain, cell)).to_vec()
}
