//! `f2bmqtt ban`: makes fail2ban on this host detect an address, so that every host bans it as it bans what
//! was attacked for, and says what each did. It is never reported to AbuseIPDB: nobody detected anything.

mod said;
mod share;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use said::{Made, Said};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::ask;
use super::local;
use super::out;
use super::view::View;
use super::visit::Visit;
use crate::abuseipdb::by_hand::Notes;
use crate::cli::operator::BanArgs;
use crate::clock::now_secs;
use crate::config::Config;
use crate::daemon;
use crate::error::Error;
use crate::fail2ban::Client;
use crate::guard::is_bannable;
use crate::journal::say;
use crate::paths::Paths;
use crate::runtime;
use crate::text::{format_duration, sanitize};
use crate::wire::{Address, HostName, Jail, MAX_ANSWERS};

/// fail2ban makes a ban within a second or two; longer where it has many to make.
const BANS: Duration = Duration::from_secs(30);

/// A snapshot tells of a ban two seconds later, and every host says what it did with it meanwhile.
const TELLS: Duration = Duration::from_secs(15);

/// What the jail's log says of it.
const FAILURE: &str = "banned by hand with f2bmqtt ban";

/// Bans, and says who does.
///
/// # Errors
/// Any [`Error`]
pub fn run(args: &BanArgs, paths: &Paths) -> Result<(), Error> {
    let jail = Jail::new(&args.jail).map_err(|what| Error::Usage(format!("JAIL {what}")))?;
    let addresses = ask::addresses(&args.addresses)?;
    if let Some(address) = addresses.iter().find(|address| !is_bannable(address.ip())) {
        return Err(Error::Usage(format!("IP {address} is no address of another machine")));
    }
    let config = Config::load()?;
    runtime::run(async {
        let mut fail2ban = Client::connect(&paths.fail2ban).await?;
        let jails = fail2ban.jails().await?;
        if !jails.contains(&jail) {
            let names: Vec<&str> = jails.iter().map(Jail::as_str).collect();
            let names = names.join(", ");
            return Err(Error::Undone(format!(
                "fail2ban here has no jail {jail}; it has: {names}"
            )));
        }
        if !config.sharing.includes(&jail) {
            return Err(Error::Undone(format!("{jail} does not take part here: see MQTT_JAILS")));
        }
        if !args.yes {
            refuse(&config, &mut fail2ban, &jail, &addresses).await?;
        }
        ask::about_many("Ban", &addresses, args.yes)?;
        let mut ban = Ban {
            said: Said::new(config.node.clone(), jail.clone(), now_secs() * 1000),
            jail,
            me: config.node.clone(),
            made: Vec::new(),
            told: false,
            slow: BTreeSet::new(),
        };
        // Without the service, a child of notify tells of it, and no snapshot will.
        let alone = local::Service::look(paths).pid.is_none();
        // A host answers for so many, and who is there first hears it at once.
        let mut batches = addresses.chunks(MAX_ANSWERS);
        let first = ban.make(&mut fail2ban, batches.next().unwrap_or_default(), paths);
        let (mut visit, mut made) = tokio::join!(Visit::begin(&config, paths), first);
        loop {
            if let (Ok(there), Ok(())) = (&mut visit, &made)
                && let Err(lost) = ban.hear(there, alone).await
            {
                visit = Err(lost);
            }
            let Some(batch) = batches.next().filter(|_| made.is_ok()) else { break };
            made = ban.make(&mut fail2ban, batch, paths).await;
        }
        let view = visit.as_mut().map(Visit::take_view).unwrap_or_default();
        if !ban.made.is_empty() {
            ban.conclude(&view, args.json);
        }
        made?;
        visit?.end().await;
        ban.result(&view)
    })
}

/// Refuses whom to ban would do more harm than good.
async fn refuse(
    config: &Config,
    fail2ban: &mut Client,
    jail: &Jail,
    addresses: &[Address],
) -> Result<(), Error> {
    let (exempt, _) = daemon::exempt(config).resolve(jail, &fail2ban.ignored(jail).await?).await;
    let clients = ask::clients();
    for address in addresses {
        let why = if clients.contains(&address.ip()) {
            Some("you are connected from it, and would lock yourself out".to_owned())
        } else {
            exempt.lookup(*address).map(|because| because.to_string())
        };
        if let Some(why) = why {
            return Err(Error::Undone(format!(
                "{address} is not to be banned: {why}. Nothing was done: say so with --yes"
            )));
        }
    }
    Ok(())
}

struct Ban {
    jail: Jail,
    me: HostName,
    made: Vec<Made>,
    said: Said,
    /// This host's snapshot lists what was made.
    told: bool,
    /// Connected hosts that did not say in time what they do, and are not waited for again.
    slow: BTreeSet<HostName>,
}

impl Ban {
    /// Lets fail2ban detect the addresses, and waits until it bans them.
    async fn make(
        &mut self,
        fail2ban: &mut Client,
        addresses: &[Address],
        paths: &Paths,
    ) -> Result<(), Error> {
        let jail = &self.jail;
        let failures = fail2ban.max_retry(jail).await?.clamp(1, 100);
        let failures = vec![FAILURE; usize::try_from(failures).unwrap_or(1)];
        let shared = share::is_done(fail2ban, jail).await?;
        let before = fail2ban.bans(jail).await?;
        let (mut notes, since) = (Notes::open(&paths.by_hand())?, now_secs());
        let (there, new): (BTreeSet<Address>, BTreeSet<Address>) =
            addresses.iter().partition(|address| before.has(**address));
        // What fail2ban alone banned by hand is no other host's ban: now the fleet is told of it.
        let local = share::banned_by_hand(fail2ban, jail, &there, paths).await?;
        // All of them first: the notes are read when the first is banned.
        for address in new.iter().chain(&local) {
            notes.note(*address, since)?;
        }
        for address in &new {
            fail2ban.attempt(jail, *address, &failures).await?;
        }
        let until = Instant::now() + BANS;
        let held = loop {
            let held = fail2ban.bans(jail).await?;
            if new.iter().all(|address| held.has(*address)) {
                break held;
            }
            if Instant::now() > until {
                return Err(Error::Undone(format!(
                    "fail2ban was told of {FAILURE:?}, and does not ban it in {jail}: \
                     its log says why (/var/log/fail2ban.log)"
                )));
            }
            sleep(Duration::from_millis(100)).await;
        };
        let seen = now_secs();
        for address in addresses {
            let seconds = held.get(*address).copied().flatten().unwrap_or(0);
            let already = !new.contains(address) && !local.contains(address);
            if !already {
                notes.seen(*address, since, seen, seconds)?;
            }
            self.made.push(Made { address: *address, already, seconds });
        }
        share::tell_now(jail, &local, &held, failures.len(), paths)?;
        if !shared {
            share::tell(fail2ban, jail, &new, &held, (since, failures.len()), paths).await?;
        }
        Ok(())
    }

    /// Waits until this host's snapshot tells of what was made, where a daemon is there to tell, and until
    /// every host that is connected has said what it does with it.
    async fn hear(&mut self, visit: &mut Visit, alone: bool) -> Result<(), Error> {
        let until = Instant::now() + TELLS;
        loop {
            let view = visit.view();
            self.said.hear(view, &self.made);
            self.told = alone || self.is_told(view);
            let mut waits = self.said.waits_for(view, &self.made);
            waits.retain(|host| !self.slow.contains(host));
            if self.told && waits.is_empty() {
                return Ok(());
            }
            if visit.listen(until).await?.is_none() {
                self.slow.extend(waits);
                return Ok(());
            }
        }
    }

    fn is_told(&self, view: &View) -> bool {
        let me = view.hosts().get(&self.me);
        let mut new = self.made.iter().filter(|one| !one.already);
        new.all(|one| me.is_some_and(|me| me.lists(&self.jail, one.address)))
    }

    fn conclude(&self, view: &View, json: bool) {
        let Self { jail, me, made, .. } = self;
        if json {
            let bans = made.iter().map(|one| {
                json!({
                    "ip": one.address.to_string(),
                    "already": one.already,
                    "seconds": (one.seconds >= 0).then_some(one.seconds),
                    "answers": self.said.answers(one.address),
                })
            });
            let mut all = json!({
                "jail": jail.as_str(), "host": me.as_str(), "bans": bans.collect::<Vec<_>>(),
                "told": self.told,
            });
            if let (Some(all), Value::Object(hosts)) =
                (all.as_object_mut(), self.said.hosts(view, made))
            {
                all.extend(hosts);
            }
            out::print_json(&all);
            return;
        }
        for Made { address, already, seconds } in made {
            let length = match *seconds {
                ..0 => "for ever".to_owned(),
                seconds => format!("for {}", format_duration(seconds)),
            };
            let words = if *already {
                format!("{address} was banned in {jail} here before: nothing was done")
            } else {
                format!("{address} is banned in {jail}, {length}")
            };
            say(sanitize(&words));
        }
        for line in self.said.lines(view, made) {
            say(sanitize(&line));
        }
    }

    /// Whether this host has told of it, and everybody done it, or said why not.
    fn result(&self, view: &View) -> Result<(), Error> {
        if !self.told {
            let me = &self.me;
            return Err(Error::Undone(format!(
                "{me} has not told the fleet yet: journalctl -u f2bmqttsub says why"
            )));
        }
        let new = self.made.iter().any(|one| !one.already);
        let offline = if new { self.said.offline(view).count() } else { 0 };
        match self.said.waits_for(view, &self.made).len() + offline {
            0 => Ok(()),
            silent => Err(Error::Undone(format!(
                "{} not answered yet; what a host missed, the snapshot of this one tells it",
                if silent == 1 { "a host has".to_owned() } else { format!("{silent} hosts have") }
            ))),
        }
    }
}
