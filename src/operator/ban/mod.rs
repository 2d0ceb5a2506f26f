//! `f2bmqtt ban`: makes fail2ban on this host detect an address, so that every host bans it as it bans what
//! was attacked for, and shows what each did. It is never reported to AbuseIPDB: nobody detected anything.

mod acks;
mod share;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use acks::AckCollector;
use serde_json::json;
use tokio::time::sleep;

use super::ask;
use super::local;
use super::out;
use super::view::FleetView;
use super::visit::FleetClient;
use crate::abuseipdb::by_hand::ManualBanLog;
use crate::cli::operator::BanArgs;
use crate::clock::{now_millis, now_secs};
use crate::config::Config;
use crate::daemon;
use crate::error::Error;
use crate::fail2ban::Client;
use crate::guard::is_bannable;
use crate::journal::say;
use crate::paths::Paths;
use crate::runtime;
use crate::text::{format_duration, sanitize};
use crate::wire::{Address, HostName, Jail, MAX_ACKS};

/// fail2ban makes a ban within a second or two; longer where it has many to make.
const BANS: Duration = Duration::from_secs(30);

/// A snapshot lists a ban two seconds later; until then every host that is not busy has acknowledged it.
const ACKS: Duration = Duration::from_secs(15);

const UNANSWERED: &str = "did not confirm the ban yet; this host's snapshot repeats it";

/// What the jail's log says of it.
const FAILURE: &str = "banned by hand with f2bmqtt ban";

/// Bans, and shows who does.
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
        ask::confirm_bulk("Ban", &addresses, args.yes)?;
        let mut ban = Ban {
            acks: AckCollector::new(config.node.clone(), jail.clone(), now_millis()),
            jail,
            me: config.node.clone(),
            issued: Vec::new(),
            published: false,
            slow: BTreeSet::new(),
        };
        // Without the service, a child of notify tells of it, and no snapshot will.
        let alone = local::LocalService::look(paths).pid.is_none();
        // A host acknowledges so many at once.
        let mut batches = addresses.chunks(MAX_ACKS);
        let first = ban.make(&mut fail2ban, batches.next().unwrap_or_default(), paths);
        let (mut visit, mut made) = tokio::join!(FleetClient::begin(&config, paths), first);
        loop {
            if let (Ok(there), Ok(())) = (&mut visit, &made)
                && let Err(lost) = ban.collect(there, alone).await
            {
                visit = Err(lost);
            }
            let Some(batch) = batches.next().filter(|_| made.is_ok()) else { break };
            made = ban.make(&mut fail2ban, batch, paths).await;
        }
        let view = visit.as_mut().map(FleetClient::take_view).unwrap_or_default();
        if !ban.issued.is_empty() {
            ban.print_result(&view, args.json);
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

/// A ban that fail2ban on this host has now.
struct IssuedBan {
    address: Address,
    /// It was there before, and was not made again.
    already_banned: bool,
    /// How long it lasts, in seconds; below 0 is for ever.
    seconds: i64,
}

struct Ban {
    jail: Jail,
    me: HostName,
    issued: Vec<IssuedBan>,
    acks: AckCollector,
    /// This host's snapshot lists the new bans.
    published: bool,
    /// Online hosts that did not acknowledge a batch in time; the command does not wait for them again.
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
        let (mut notes, since) = (ManualBanLog::open(&paths.by_hand())?, now_secs());
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
            let already_banned = !new.contains(address) && !local.contains(address);
            if !already_banned {
                notes.seen(*address, since, seen, seconds)?;
            }
            self.issued.push(IssuedBan { address: *address, already_banned, seconds });
        }
        share::tell_now(jail, &local, &held, failures.len(), paths)?;
        if !shared {
            share::tell(fail2ban, jail, &new, &held, (since, failures.len()), paths).await?;
        }
        Ok(())
    }

    fn addresses(&self) -> Vec<Address> {
        self.issued.iter().map(|one| one.address).collect()
    }

    /// Requests acknowledgements of the last batch. Waits until this host's snapshot lists the new bans, if a daemon
    /// runs, and every online host has acknowledged all.
    async fn collect(&mut self, visit: &mut FleetClient, alone: bool) -> Result<(), Error> {
        let until = Instant::now() + ACKS;
        let batch = self.issued.chunks(MAX_ACKS).last().unwrap_or_default();
        let batch: Vec<Address> = batch.iter().map(|one| one.address).collect();
        let requests: Vec<_> = batch.iter().map(|address| self.acks.request(*address)).collect();
        visit.publish(&requests).await?;
        loop {
            let view = visit.view();
            self.acks.collect(view, &batch);
            self.published = alone || self.is_published(view);
            let results = self.acks.results(view, &batch);
            let mut unanswered = AckCollector::unanswered(&results);
            unanswered.retain(|host| view.hosts()[*host].is_online() && !self.slow.contains(*host));
            if self.published && unanswered.is_empty() {
                return Ok(());
            }
            let unanswered: Vec<HostName> = unanswered.into_iter().cloned().collect();
            if visit.next_update(until).await?.is_none() {
                self.slow.extend(unanswered);
                return Ok(());
            }
        }
    }

    fn is_published(&self, view: &FleetView) -> bool {
        let me = view.hosts().get(&self.me);
        let mut new = self.issued.iter().filter(|one| !one.already_banned);
        new.all(|one| me.is_some_and(|me| me.lists(&self.jail, one.address)))
    }

    fn print_result(&self, view: &FleetView, json: bool) {
        let Self { jail, me, issued, .. } = self;
        let results = self.acks.results(view, &self.addresses());
        if json {
            let bans = issued.iter().map(|one| {
                json!({
                    "ip": one.address.to_string(),
                    "already_banned": one.already_banned,
                    "seconds": (one.seconds >= 0).then_some(one.seconds),
                    "acks": self.acks.acks(one.address),
                })
            });
            let mut all = AckCollector::to_json(&results);
            all["jail"] = jail.as_str().into();
            all["host"] = me.as_str().into();
            all["bans"] = bans.collect();
            all["published"] = self.published.into();
            out::print_json(&all);
            return;
        }
        for IssuedBan { address, already_banned, seconds } in issued {
            let length = match *seconds {
                ..0 => "permanently".to_owned(),
                seconds => format!("for {}", format_duration(seconds)),
            };
            let line = if *already_banned {
                format!("{address} is already banned in {jail} on this host; its ban is unchanged")
            } else {
                format!("{address} is banned in {jail}, {length}")
            };
            say(sanitize(&line));
        }
        for line in self.acks.lines(&results) {
            say(sanitize(&line));
        }
    }

    /// An error unless this host has published the bans, and every other one has acknowledged all.
    fn result(&self, view: &FleetView) -> Result<(), Error> {
        if !self.published {
            let me = &self.me;
            return Err(Error::Undone(format!(
                "{me} has not published the bans yet; journalctl -u f2bmqttsub shows why"
            )));
        }
        let results = self.acks.results(view, &self.addresses());
        match AckCollector::unanswered(&results).len() {
            0 => Ok(()),
            1 => Err(Error::Undone(format!("1 host {UNANSWERED}"))),
            count => Err(Error::Undone(format!("{count} hosts {UNANSWERED}"))),
        }
    }
}
