//! `f2bmqtt unban`: releases addresses on every host, and waits for the confirmation of each host (R16).
//!
//! A fleet unban is an event with an ID. For daemons, one event per address covers all jails. Hosts that run the scripts
//! need one event per jail, up to `MAX_EVENTS`. Each host confirms by repeating the ID in its snapshot.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;

use super::confirm;
use super::known;
use super::local_host;
use super::render;
use crate::broker::fleet_client::{FleetClient, Message};
use crate::broker::fleet_view::{FleetView, Update};
use crate::cli::operator::UnbanArgs;
use crate::config::Config;
use crate::error::Error;
use crate::model::text::sanitize;
use crate::model::{Address, HostName, Jail, UnbanId};
use crate::store::reader;
use crate::sys::clock::now_millis;
use crate::sys::log::info;
use crate::sys::paths::Paths;
use crate::sys::runtime;
use crate::wire::{Action, Event, Reason};

/// How long the command waits for confirmations. A host needs a second for the unban, and publishes its snapshot two
/// seconds later; a busy fail2ban takes longer.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// The most events of one call: the number that Mosquitto by default queues for an offline host.
const MAX_EVENTS: usize = 1_000;

/// The jail that an event names if no jail is known: most servers have `sshd`. Daemons apply the event in all jails.
const FALLBACK_JAIL: &str = "sshd";

/// Publishes the fleet unban, and waits.
///
/// # Errors
/// Any [`Error`]; [`Error::Failed`] if a host has not confirmed.
pub fn run(args: &UnbanArgs, paths: &Paths) -> Result<(), Error> {
    let addresses = confirm::parse_addresses(&args.addresses)?;
    let jail = args.jail.as_deref().map(Jail::new).transpose();
    let jail = jail.map_err(|what| Error::Usage(format!("--jail {what}")))?;
    let config = Config::load()?;
    if addresses.len() > MAX_EVENTS {
        let count = addresses.len();
        return Err(Error::Usage(format!(
            "{count} addresses exceed the limit of {MAX_EVENTS} per call"
        )));
    }
    confirm::confirm_bulk("Unban", &addresses, args.yes)?;
    let millis = now_millis();
    let unban = Unban {
        me: config.node.clone(),
        jail,
        id: UnbanId::made_by(&config.node, millis),
        addresses,
    };
    runtime::run(async {
        let (client, local_jails) = tokio::join!(
            FleetClient::connect(&config, || reader::origins(paths)),
            local_host::query_jails(paths)
        );
        let mut client = client?;
        let local_jails = local_jails.unwrap_or_default();
        if let Some(jail) = &unban.jail {
            known::check_jail(jail, client.view(), &local_jails)?;
        }
        let jails = unban.jails(client.view(), &local_jails);
        let (jails, left_out) = unban.split(&jails);
        client.publish(&unban.events(jails, millis)).await?;
        if left_out > 0 && !args.json {
            info(sanitize(&left_out_line(left_out)));
        }
        let confirmed = unban.wait(&mut client, args.json).await?;
        let result = unban.print_result(client.view(), &confirmed, left_out, args.json);
        client.end().await;
        result
    })
}

/// A fleet unban.
struct Unban {
    me: HostName,
    /// `None` for all jails.
    jail: Option<Jail>,
    id: UnbanId,
    addresses: Vec<Address>,
}

impl Unban {
    /// The jails of the events, the most relevant first: jails of this host's fail2ban, jails in which a host lists one of
    /// the addresses, jails in which hosts list other bans, and jails that hosts only announce; within each group, those
    /// of the most hosts. Never empty.
    fn jails(&self, view: &FleetView, local_jails: &BTreeSet<Jail>) -> Vec<Jail> {
        if let Some(jail) = &self.jail {
            return vec![jail.clone()];
        }
        let addresses: BTreeSet<Address> = self.addresses.iter().copied().collect();
        let mut hosts: BTreeMap<Jail, [usize; 4]> = BTreeMap::new();
        for jail in local_jails {
            hosts.entry(jail.clone()).or_default()[0] = 1;
        }
        for host_view in view.hosts().values() {
            let (of_these, of_others) = host_view.jails_of_bans(&addresses);
            for (rank, jails) in [(1, &of_these), (2, &of_others), (3, host_view.jails())] {
                for jail in jails {
                    hosts.entry(jail.clone()).or_default()[rank] += 1;
                }
            }
        }
        let mut jails: Vec<(Jail, [usize; 4])> = hosts.into_iter().collect();
        jails.sort_by_key(|(_, hosts)| Reverse(*hosts));
        let jails: Vec<Jail> = jails.into_iter().map(|(jail, _)| jail).collect();
        if jails.is_empty() { Jail::new(FALLBACK_JAIL).into_iter().collect() } else { jails }
    }

    /// Splits the jails at `MAX_EVENTS`: the jails with events, and the number of jails without. Each address has at least
    /// one event.
    fn split<'a>(&self, jails: &'a [Jail]) -> (&'a [Jail], usize) {
        let max_jails = (MAX_EVENTS / self.addresses.len().max(1)).max(1);
        let first = &jails[..jails.len().min(max_jails)];
        (first, jails.len() - first.len())
    }

    /// One event per jail and address, jail by jail. For daemons, all events of an address are the same unban.
    fn events(&self, jails: &[Jail], millis: i64) -> Vec<Message> {
        let mut events = Vec::with_capacity(jails.len() * self.addresses.len());
        for jail in jails {
            for address in &self.addresses {
                let event = self.event(jail, *address, millis);
                events.push(Message::Event("unban", event.encode()));
            }
        }
        events
    }

    fn event(&self, jail: &Jail, address: Address, millis: i64) -> Event {
        Event {
            action: Action::Unban,
            jail: jail.clone(),
            address,
            bantime: 0,
            host: self.me.clone(),
            restored: 0,
            failures: 0,
            time: millis / 1000,
            stamp: millis,
            reason: Some(Reason::Fleet),
            id: Some(self.id.clone()),
            all_jails: self.jail.is_none(),
            unbans: Vec::new(),
        }
    }

    /// Waits until every online host has confirmed. Returns the hosts that have, and prints each one unless `quiet`.
    async fn wait(
        &self,
        client: &mut FleetClient,
        quiet: bool,
    ) -> Result<BTreeSet<HostName>, Error> {
        let until = Instant::now() + CONFIRM_TIMEOUT;
        let mut confirmed = BTreeSet::new();
        loop {
            for (host, host_view) in client.view().hosts() {
                let is_done =
                    self.addresses.iter().all(|address| host_view.repeats(*address, &self.id));
                if is_done && confirmed.insert(host.clone()) && !quiet {
                    info(sanitize(&format!("{host}: unbanned")));
                }
            }
            while !is_confirmed_by_all(client.view(), &confirmed) {
                match client.next_update(until).await? {
                    None => return Ok(confirmed),
                    Some(Update::Shard(_)) => break,
                    Some(_) => {}
                }
            }
            if is_confirmed_by_all(client.view(), &confirmed) {
                return Ok(confirmed);
            }
        }
    }

    fn print_result(
        &self,
        view: &FleetView,
        confirmed: &BTreeSet<HostName>,
        left_out: usize,
        json: bool,
    ) -> Result<(), Error> {
        let (mut online, mut offline) = (Vec::new(), Vec::new());
        for (host, host_view) in view.hosts().iter().filter(|(host, _)| !confirmed.contains(*host))
        {
            let list = if host_view.is_online() { &mut online } else { &mut offline };
            list.push(host.as_str());
        }
        if json {
            render::print_json(&json!({
                "id": self.id.as_str(),
                "ips": self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "jail": self.jail.as_ref().map(Jail::as_str),
                "unbanned": confirmed.iter().map(HostName::as_str).collect::<Vec<_>>(),
                "no_reply": online,
                "offline": offline,
                "jails_left_out": left_out,
            }));
        } else {
            for host in &online {
                let seconds = CONFIRM_TIMEOUT.as_secs();
                info(sanitize(&format!("{host}: no reply within {seconds} s")));
            }
            for host in &offline {
                info(sanitize(&format!("{host}: offline; applies the unban when it reconnects")));
            }
        }
        match online.len() + offline.len() {
            0 => Ok(()),
            unconfirmed => Err(Error::Failed(format!(
                "{} not confirmed the unban. Show the remaining bans: f2bmqtt list",
                if unconfirmed == 1 {
                    "1 host has".to_owned()
                } else {
                    format!("{unconfirmed} hosts have")
                }
            ))),
        }
    }
}

/// Whether every online host has confirmed.
fn is_confirmed_by_all(view: &FleetView, confirmed: &BTreeSet<HostName>) -> bool {
    view.hosts().iter().all(|(host, host_view)| !host_view.is_online() || confirmed.contains(host))
}

/// The note about jails without an event, which matter only to hosts that run the scripts.
fn left_out_line(jails: usize) -> String {
    let jails = if jails == 1 { "1 jail".to_owned() } else { format!("{jails} jails") };
    format!(
        "hosts that run the scripts get no unban for {jails}: limit of {MAX_EVENTS} events reached; use --jail to \
         unban in such a jail"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_342_588_123;

    fn address(n: usize) -> Address {
        Address::new(&format!("198.51.{}.{}", n / 250, n % 250)).unwrap()
    }

    fn unban_message(payload: &str) -> Message {
        Message::Event("unban", payload.to_owned())
    }

    fn unban(addresses: usize) -> Unban {
        let host = HostName::new("web1").unwrap();
        let (id, addresses) = (UnbanId::made_by(&host, NOW), (0..addresses).map(address).collect());
        Unban { me: host, jail: None, id, addresses }
    }

    fn jails(names: &[&str]) -> BTreeSet<Jail> {
        names.iter().map(|name| Jail::new(name).unwrap()).collect()
    }

    fn names(jails: &[Jail]) -> Vec<&str> {
        jails.iter().map(Jail::as_str).collect()
    }

    #[test]
    fn unban_of_all_jails_has_one_event_per_jail_and_of_one_jail_one_event() {
        let mut unban = unban(1);
        let mut view = FleetView::default();
        view.apply_raw("host/web2", br#"{"v":1,"state":"offline","jails":["web"]}"#);
        let found = unban.jails(&view, &jails(&["sshd"]));
        let events = unban.events(&found, NOW);
        let expected = r#"{"action":"unban","ipmset":"sshd","ip":"198.51.0.0","bantime":0,"host":"web1","restored":0,"failures":0,"time":1795342588,"stamp":1795342588123,"reason":"fleet","id":"web1-1795342588123","jails":"*"}"#;
        let web = expected.replace("sshd", "web");
        assert_eq!(events, [unban_message(expected), unban_message(&web)]);
        unban.jail = Some(Jail::new("web").unwrap());
        let found = unban.jails(&view, &jails(&["sshd"]));
        assert_eq!(unban.events(&found, NOW), [unban_message(&web.replace(r#","jails":"*""#, ""))]);
    }

    #[test]
    fn jails_that_matter_come_first_however_many_others_claim() {
        let mut view = FleetView::default();
        let start = NOW / 1000;
        for n in 0..5 {
            let many: Vec<_> = (0..500).map(|m| format!(r#""a{n}-{m}""#)).collect();
            let presence = format!(r#"{{"v":1,"state":"online","jails":[{}]}}"#, many.join(","));
            view.apply_raw(&format!("host/ghost{n}"), presence.as_bytes());
        }
        for (host, jail, ip) in [
            ("web2", "listed", "198.51.0.0"),
            ("web3", "z-often", "192.0.2.1"),
            ("web4", "z-often", "192.0.2.2"),
            ("web3", "rare", "192.0.2.3"),
        ] {
            let part = format!(
                r#"{{"v":1,"host":"{host}","stamp":{NOW},"part":{},"parts":4,"bans":[["{jail}","{ip}",{start},600]]}}"#,
                Address::new(ip).unwrap().hash() % 4
            );
            view.apply_raw(
                &format!("state/{host}/{}", Address::new(ip).unwrap().hash() % 4),
                part.as_bytes(),
            );
        }
        let found = unban(1).jails(&view, &jails(&["sshd", "web"]));
        assert_eq!(names(&found[..5]), ["sshd", "web", "listed", "z-often", "rare"]);
        assert_eq!(found.len(), 2_505);
        assert_eq!(names(&unban(1).jails(&FleetView::default(), &BTreeSet::new())), ["sshd"]);
    }

    #[test]
    fn every_address_has_an_event_and_the_events_stay_within_the_limit() {
        // How many jails and addresses, how many events, and how many jails are left out.
        let table = [
            (1, 1, 1, 0),
            (1_000, 1, 1_000, 0),
            (2_505, 1, 1_000, 1_505),
            (3, 333, 999, 0),
            (3, 334, 668, 1),
            (500, 1_000, 1_000, 499),
        ];
        for (jails, addresses, events, left_out) in table {
            let all: Vec<_> = (0..jails).map(|n| Jail::new(&format!("jail{n}")).unwrap()).collect();
            let unban = unban(addresses);
            let (first, rest) = unban.split(&all);
            assert_eq!((unban.events(first, NOW).len(), rest), (events, left_out), "{jails}");
        }
        assert!(
            left_out_line(505)
                .starts_with("hosts that run the scripts get no unban for 505 jails: ")
        );
    }
}
