//! `f2bmqtt unban`: frees an address on every host, whoever banned it, and waits until each host says so.
//!
//! It is an event with an id, one for each jail that somebody has, so that hosts that run the scripts obey
//! it, too. Each host repeats the id in its snapshot once it has freed the address.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::ask;
use super::local;
use super::out;
use super::view::{Heard, View};
use super::visit::{Message, Visit};
use crate::cli::operator::UnbanArgs;
use crate::config::Config;
use crate::error::Error;
use crate::journal::say;
use crate::outbox::millis;
use crate::paths::Paths;
use crate::runtime;
use crate::wire::{Action, Address, Event, Host, Jail, Reason, UnbanId};

/// A host frees within a second, and tells of it two seconds later; longer where its fail2ban is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most events: what a default mosquitto queues for a host that is away.
const MOST: usize = 1_000;

/// Frees, and waits.
///
/// # Errors
/// Any [`Error`]; [`Error::Undone`] where a host has not answered.
pub fn run(args: &UnbanArgs, paths: &Paths) -> Result<(), Error> {
    let addresses = ask::addresses(&args.addresses)?;
    let jail = args.jail.as_deref().map(Jail::new).transpose();
    let jail = jail.map_err(|what| Error::Usage(format!("--jail {what}")))?;
    let config = Config::load()?;
    ask::about_many("Free", &addresses, args.yes)?;
    let millis = millis(SystemTime::now());
    let unban = Unban {
        me: config.node.clone(),
        jail,
        id: UnbanId::made_by(&config.node, millis),
        addresses,
    };
    runtime::run(async {
        let (visit, here) = tokio::join!(Visit::begin(&config, paths), local::jails(paths));
        let mut visit = visit?;
        let events = unban.events(visit.view(), here.unwrap_or_default(), millis);
        if events.is_empty() {
            return Err(Error::Undone("no host of the fleet says that it has a jail".to_owned()));
        }
        if events.len() > MOST {
            let what = format!("that is {} events, more than {MOST} at once", events.len());
            return Err(Error::Undone(format!("{what}: name fewer addresses, or one --jail")));
        }
        visit.publish(&events).await?;
        let freed = unban.wait(&mut visit, args.json).await?;
        let result = unban.conclude(visit.view(), &freed, args.json);
        visit.end().await;
        result
    })
}

/// What is freed.
struct Unban {
    me: Host,
    /// In this jail, or in every one.
    jail: Option<Jail>,
    id: UnbanId,
    addresses: Vec<Address>,
}

impl Unban {
    /// One event a jail: of those that hosts, scripts' ones included, may know.
    fn events(&self, view: &View, here: BTreeSet<Jail>, millis: i64) -> Vec<Message> {
        let jails: BTreeSet<Jail> = match &self.jail {
            Some(jail) => [jail.clone()].into(),
            None => view.jails().into_iter().chain(here).collect(),
        };
        let event = |(address, jail): (&Address, &Jail)| Event {
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
            every_jail: self.jail.is_none(),
            unbans: Vec::new(),
            asked: false,
        };
        let all =
            self.addresses.iter().flat_map(|address| jails.iter().map(move |jail| (address, jail)));
        all.map(|pair| Message::Event("unban", event(pair).encode())).collect()
    }

    /// Waits until every host that is connected has answered; answers who has. Says so as it comes.
    async fn wait(&self, visit: &mut Visit, quiet: bool) -> Result<BTreeSet<Host>, Error> {
        let until = Instant::now() + PATIENCE;
        let mut freed = BTreeSet::new();
        loop {
            for (host, member) in visit.view().hosts() {
                let done = self.addresses.iter().all(|address| member.repeats(*address, &self.id));
                if done && freed.insert(host.clone()) && !quiet {
                    say(out::shown(&format!("{host}: free")));
                }
            }
            let waits = |view: &View| {
                view.hosts()
                    .iter()
                    .any(|(host, member)| member.is_online() && !freed.contains(host))
            };
            while waits(visit.view()) {
                match visit.listen(until).await? {
                    None => return Ok(freed),
                    Some(Heard::Part(_)) => break,
                    Some(_) => {}
                }
            }
            if !waits(visit.view()) {
                return Ok(freed);
            }
        }
    }

    fn conclude(&self, view: &View, freed: &BTreeSet<Host>, json: bool) -> Result<(), Error> {
        let silent = view.hosts().iter().filter(|(host, _)| !freed.contains(*host));
        let (online, offline): (Vec<_>, Vec<_>) =
            silent.partition(|(_, member)| member.is_online());
        let names = |of: &[(&Host, &super::view::Member)]| {
            of.iter().map(|(host, _)| host.as_str().to_owned()).collect::<Vec<_>>()
        };
        let (online, offline) = (names(&online), names(&offline));
        if json {
            out::print_json(&json!({
                "id": self.id.as_str(),
                "ips": self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "jail": self.jail.as_ref().map(Jail::as_str),
                "freed": freed.iter().map(Host::as_str).collect::<Vec<_>>(),
                "silent": online,
                "offline": offline,
            }));
        } else {
            for host in &online {
                say(out::shown(&format!("{host}: has not answered yet")));
            }
            for host in &offline {
                say(out::shown(&format!("{host}: not connected; it frees when it is back")));
            }
        }
        match online.len() + offline.len() {
            0 => Ok(()),
            silent => Err(Error::Undone(format!(
                "{} not answered yet; f2bmqtt list says what is still banned",
                if silent == 1 { "a host has".to_owned() } else { format!("{silent} hosts have") }
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_event_for_each_jail_that_anybody_has() {
        let jails = |of: &[&str]| of.iter().map(|name| Jail::new(name).unwrap()).collect();
        let host = Host::new("web1").unwrap();
        let addresses = vec![Address::new("203.0.113.9").unwrap()];
        let id = UnbanId::made_by(&host, 1_795_342_588_123);
        let mut unban = Unban { me: host, jail: None, id, addresses };
        let mut view = View::default();
        view.hear_on("host/web2", br#"{"v":1,"state":"offline","jails":["web"]}"#);
        let events = unban.events(&view, jails(&["sshd"]), 1_795_342_588_123);
        let expected = r#"{"action":"unban","ipmset":"sshd","ip":"203.0.113.9","bantime":0,"host":"web1","restored":0,"failures":0,"time":1795342588,"stamp":1795342588123,"reason":"fleet","id":"web1-1795342588123","jails":"*"}"#;
        assert_eq!(events.len(), 2);
        assert_eq!(events[0], Message::Event("unban", expected.to_owned()));
        unban.jail = Some(Jail::new("web").unwrap());
        let events = unban.events(&view, jails(&["sshd"]), 1_795_342_588_123);
        let expected = expected.replace("sshd", "web").replace(r#","jails":"*""#, "");
        assert_eq!(events, [Message::Event("unban", expected)]);
    }
}
