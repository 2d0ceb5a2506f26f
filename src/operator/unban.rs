//! `f2bmqtt unban`: frees an address on every host, whoever banned it, and waits until each host says so.
//!
//! The unban is an event with an id. One event per address covers every jail for the daemons. Hosts that run the
//! scripts need one event per jail: these go out for as many jails as there is room for. Each host repeats the id
//! in its snapshot once it has freed the address.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;

use super::ask;
use super::known;
use super::local;
use super::out;
use super::view::{FleetView, Update};
use super::visit::{FleetClient, Message};
use crate::cli::operator::UnbanArgs;
use crate::clock::now_millis;
use crate::config::Config;
use crate::error::Error;
use crate::journal::say;
use crate::paths::Paths;
use crate::runtime;
use crate::text::sanitize;
use crate::wire::{Action, Address, Event, HostName, Jail, Reason, UnbanId};

/// A host frees within a second, and tells of it two seconds later; longer where its fail2ban is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most events: what a default mosquitto queues for a host that is away.
const MAX_EVENTS: usize = 1_000;

/// The jail of an event for every jail where no jail is known: fail2ban's first, which most servers have.
const FIRST_JAIL: &str = "sshd";

/// Frees, and waits.
///
/// # Errors
/// Any [`Error`]; [`Error::Undone`] where a host has not answered.
pub fn run(args: &UnbanArgs, paths: &Paths) -> Result<(), Error> {
    let addresses = ask::addresses(&args.addresses)?;
    let jail = args.jail.as_deref().map(Jail::new).transpose();
    let jail = jail.map_err(|what| Error::Usage(format!("--jail {what}")))?;
    let config = Config::load()?;
    if addresses.len() > MAX_EVENTS {
        let count = addresses.len();
        return Err(Error::Usage(format!(
            "{count} addresses exceed the limit of {MAX_EVENTS} per call"
        )));
    }
    ask::confirm_bulk("Unban", &addresses, args.yes)?;
    let millis = now_millis();
    let unban = Unban {
        me: config.node.clone(),
        jail,
        id: UnbanId::made_by(&config.node, millis),
        addresses,
    };
    runtime::run(async {
        let (visit, here) = tokio::join!(FleetClient::begin(&config, paths), local::jails(paths));
        let mut visit = visit?;
        let here = here.unwrap_or_default();
        if let Some(jail) = &unban.jail {
            known::jail(jail, visit.view(), &here)?;
        }
        let jails = unban.jails(visit.view(), &here);
        let (jails, left_out) = unban.split(&jails);
        visit.publish(&unban.events(jails, millis)).await?;
        if left_out > 0 && !args.json {
            say(sanitize(&left_out_line(left_out)));
        }
        let freed = unban.wait(&mut visit, args.json).await?;
        let result = unban.conclude(visit.view(), &freed, left_out, args.json);
        visit.end().await;
        result
    })
}

/// What is freed.
struct Unban {
    me: HostName,
    /// In this jail, or in every one.
    jail: Option<Jail>,
    id: UnbanId,
    addresses: Vec<Address>,
}

impl Unban {
    /// The jails that events are for, the ones that matter most first: those of this host's fail2ban, those in
    /// which a host lists one of the addresses, those in which hosts list other bans, and those that hosts only
    /// claim to have; among these the ones of the most hosts. Never empty.
    fn jails(&self, view: &FleetView, here: &BTreeSet<Jail>) -> Vec<Jail> {
        if let Some(jail) = &self.jail {
            return vec![jail.clone()];
        }
        let addresses: BTreeSet<Address> = self.addresses.iter().copied().collect();
        let mut hosts: BTreeMap<Jail, [usize; 4]> = BTreeMap::new();
        for jail in here {
            hosts.entry(jail.clone()).or_default()[0] = 1;
        }
        for member in view.hosts().values() {
            let (of_these, of_others) = member.jails_of_bans(&addresses);
            for (rank, jails) in [(1, &of_these), (2, &of_others), (3, member.jails())] {
                for jail in jails {
                    hosts.entry(jail.clone()).or_default()[rank] += 1;
                }
            }
        }
        let mut jails: Vec<(Jail, [usize; 4])> = hosts.into_iter().collect();
        jails.sort_by_key(|(_, hosts)| Reverse(*hosts));
        let jails: Vec<Jail> = jails.into_iter().map(|(jail, _)| jail).collect();
        if jails.is_empty() { Jail::new(FIRST_JAIL).into_iter().collect() } else { jails }
    }

    /// The jails that there is room for, and how many there is none for. Each address has one event at least.
    fn split<'a>(&self, jails: &'a [Jail]) -> (&'a [Jail], usize) {
        let most = (MAX_EVENTS / self.addresses.len().max(1)).max(1);
        let first = &jails[..jails.len().min(most)];
        (first, jails.len() - first.len())
    }

    /// One event per jail and address, those of the first jail first. To a daemon each of them is the same unban.
    fn events(&self, jails: &[Jail], millis: i64) -> Vec<Message> {
        let event = |jail: &Jail, address: &Address| Event {
            action: Action::Unban,
            jail: jail.clone(),
            address: *address,
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
        };
        let of_jail = |jail| self.addresses.iter().map(move |address| event(jail, address));
        let all = jails.iter().flat_map(of_jail);
        all.map(|event| Message::Event("unban", event.encode())).collect()
    }

    /// Waits until every host that is connected has answered; answers who has. Says so as it comes.
    async fn wait(
        &self,
        visit: &mut FleetClient,
        quiet: bool,
    ) -> Result<BTreeSet<HostName>, Error> {
        let until = Instant::now() + PATIENCE;
        let mut freed = BTreeSet::new();
        loop {
            for (host, member) in visit.view().hosts() {
                let done = self.addresses.iter().all(|address| member.repeats(*address, &self.id));
                if done && freed.insert(host.clone()) && !quiet {
                    say(sanitize(&format!("{host}: unbanned")));
                }
            }
            let waits = |view: &FleetView| {
                view.hosts()
                    .iter()
                    .any(|(host, member)| member.is_online() && !freed.contains(host))
            };
            while waits(visit.view()) {
                match visit.next_update(until).await? {
                    None => return Ok(freed),
                    Some(Update::Shard(_)) => break,
                    Some(_) => {}
                }
            }
            if !waits(visit.view()) {
                return Ok(freed);
            }
        }
    }

    fn conclude(
        &self,
        view: &FleetView,
        freed: &BTreeSet<HostName>,
        left_out: usize,
        json: bool,
    ) -> Result<(), Error> {
        let silent = view.hosts().iter().filter(|(host, _)| !freed.contains(*host));
        let (online, offline): (Vec<_>, Vec<_>) =
            silent.partition(|(_, member)| member.is_online());
        let names = |of: &[(&HostName, &super::view::HostView)]| {
            of.iter().map(|(host, _)| host.as_str().to_owned()).collect::<Vec<_>>()
        };
        let (online, offline) = (names(&online), names(&offline));
        if json {
            out::print_json(&json!({
                "id": self.id.as_str(),
                "ips": self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "jail": self.jail.as_ref().map(Jail::as_str),
                "unbanned": freed.iter().map(HostName::as_str).collect::<Vec<_>>(),
                "no_reply": online,
                "offline": offline,
                "jails_left_out": left_out,
            }));
        } else {
            for host in &online {
                let seconds = PATIENCE.as_secs();
                say(sanitize(&format!("{host}: no reply within {seconds} s")));
            }
            for host in &offline {
                say(sanitize(&format!("{host}: offline; applies the unban when it reconnects")));
            }
        }
        match online.len() + offline.len() {
            0 => Ok(()),
            silent => Err(Error::Undone(format!(
                "{} not confirmed the unban. Show the remaining bans: f2bmqtt list",
                if silent == 1 { "1 host has".to_owned() } else { format!("{silent} hosts have") }
            ))),
        }
    }
}

/// What hosts that run the scripts miss.
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

    fn unban(addresses: usize) -> Unban {
        let host = HostName::new("web1").unwrap();
        let address = |n| Address::new(&format!("198.51.{}.{}", n / 250, n % 250)).unwrap();
        let (id, addresses) = (UnbanId::made_by(&host, NOW), (0..addresses).map(address).collect());
        Unban { me: host, jail: None, id, addresses }
    }

    fn jails(of: &[&str]) -> BTreeSet<Jail> {
        of.iter().map(|name| Jail::new(name).unwrap()).collect()
    }

    fn names(jails: &[Jail]) -> Vec<&str> {
        jails.iter().map(Jail::as_str).collect()
    }

    #[test]
    fn each_jail_has_an_event_that_covers_every_jail_and_one_jail_has_one_for_itself() {
        let mut unban = unban(1);
        let mut view = FleetView::default();
        view.hear_on("host/web2", br#"{"v":1,"state":"offline","jails":["web"]}"#);
        let found = unban.jails(&view, &jails(&["sshd"]));
        let events = unban.events(&found, NOW);
        let expected = r#"{"action":"unban","ipmset":"sshd","ip":"198.51.0.0","bantime":0,"host":"web1","restored":0,"failures":0,"time":1795342588,"stamp":1795342588123,"reason":"fleet","id":"web1-1795342588123","jails":"*"}"#;
        let web = expected.replace("sshd", "web");
        let message = |text: &str| Message::Event("unban", text.to_owned());
        assert_eq!(events, [message(expected), message(&web)]);
        unban.jail = Some(Jail::new("web").unwrap());
        let found = unban.jails(&view, &jails(&["sshd"]));
        assert_eq!(unban.events(&found, NOW), [message(&web.replace(r#","jails":"*""#, ""))]);
    }

    #[test]
    fn jails_that_matter_come_first_however_many_others_claim() {
        let mut view = FleetView::default();
        let start = NOW / 1000;
        for n in 0..5 {
            let many: Vec<_> = (0..500).map(|m| format!(r#""a{n}-{m}""#)).collect();
            let presence = format!(r#"{{"v":1,"state":"online","jails":[{}]}}"#, many.join(","));
            view.hear_on(&format!("host/ghost{n}"), presence.as_bytes());
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
            view.hear_on(
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
