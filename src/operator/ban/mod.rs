//! `f2bmqtt ban`: makes fail2ban on this host detect an address, so that the fleet imports the ban like any other, and
//! shows the result on each host. The ban is never reported to AbuseIPDB (R23), because there was no attack.

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

/// How long fail2ban may take: usually two seconds, longer if it has many bans to make.
const BAN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the command waits for acknowledgements. This host's snapshot lists the ban after two seconds.
const ACK_TIMEOUT: Duration = Duration::from_secs(15);

const UNANSWERED: &str = "did not confirm the ban yet; this host's snapshot repeats it";

/// The log line that fail2ban counts as the failure.
const FAILURE_TEXT: &str = "banned by hand with f2bmqtt ban";

/// Bans the addresses here, and shows the result on each host.
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
        let mut ban = BanRun {
            acks: AckCollector::new(config.node.clone(), jail.clone(), now_millis()),
            jail,
            me: config.node.clone(),
            issued: Vec::new(),
            published: false,
            slow: BTreeSet::new(),
        };
        // Without a daemon, a child of notify publishes the ban, and there is no snapshot to wait for.
        let alone = local::LocalService::read(paths).pid.is_none();
        // A presence has room for MAX_ACKS acknowledgements.
        let mut batches = addresses.chunks(MAX_ACKS);
        let first = ban.issue(&mut fail2ban, batches.next().unwrap_or_default(), paths);
        let (mut client, mut issued_batch) =
            tokio::join!(FleetClient::connect(&config, paths), first);
        loop {
            if let (Ok(there), Ok(())) = (&mut client, &issued_batch)
                && let Err(lost) = ban.collect(there, alone).await
            {
                client = Err(lost);
            }
            let Some(batch) = batches.next().filter(|_| issued_batch.is_ok()) else { break };
            issued_batch = ban.issue(&mut fail2ban, batch, paths).await;
        }
        let view = client.as_mut().map(FleetClient::take_view).unwrap_or_default();
        if !ban.issued.is_empty() {
            ban.print_result(&view, args.json);
        }
        issued_batch?;
        client?.end().await;
        ban.result(&view)
    })
}

/// Refuses addresses that are exempt, and the address that the operator is connected from.
async fn refuse(
    config: &Config,
    fail2ban: &mut Client,
    jail: &Jail,
    addresses: &[Address],
) -> Result<(), Error> {
    let (exempt, _) = daemon::exempt(config).resolve(jail, &fail2ban.ignored(jail).await?).await;
    let clients = ask::ssh_client_addresses();
    for address in addresses {
        let why = if clients.contains(&address.ip()) {
            Some("you are connected from it, and would lock yourself out".to_owned())
        } else {
            exempt.lookup(*address).map(|reason| reason.to_string())
        };
        if let Some(why) = why {
            return Err(Error::Undone(format!(
                "{address} was not banned: {why}. To ban it anyway, use --yes"
            )));
        }
    }
    Ok(())
}

/// A ban in fail2ban on this host, after the command issued it.
struct IssuedBan {
    address: Address,
    /// fail2ban had this ban before.
    already_banned: bool,
    /// The bantime in seconds; below 0 is permanent.
    seconds: i64,
}

struct BanRun {
    jail: Jail,
    me: HostName,
    issued: Vec<IssuedBan>,
    acks: AckCollector,
    /// This host's snapshot lists the new bans.
    published: bool,
    /// Online hosts that did not acknowledge a batch in time; the command does not wait for them again.
    slow: BTreeSet<HostName>,
}

impl BanRun {
    /// Lets fail2ban detect the addresses, and waits until it bans them.
    async fn issue(
        &mut self,
        fail2ban: &mut Client,
        addresses: &[Address],
        paths: &Paths,
    ) -> Result<(), Error> {
        let jail = &self.jail;
        let failures = fail2ban.max_retry(jail).await?.clamp(1, 100);
        let failures = vec![FAILURE_TEXT; usize::try_from(failures).unwrap_or(1)];
        let shared = share::is_shared(fail2ban, jail).await?;
        let before = fail2ban.bans(jail).await?;
        let (mut notes, since) = (ManualBanLog::open(&paths.by_hand())?, now_secs());
        let (there, new): (BTreeSet<Address>, BTreeSet<Address>) =
            addresses.iter().partition(|address| before.has(**address));
        // A ban that the operator made with fail2ban-client is not shared; the command shares it now.
        let local = share::banned_by_hand(fail2ban, jail, &there, paths).await?;
        // Write all notes before the first attempt, because the reporter reads the notes on the first ban.
        for address in new.iter().chain(&local) {
            notes.record(*address, since)?;
        }
        for address in &new {
            fail2ban.attempt(jail, *address, &failures).await?;
        }
        let until = Instant::now() + BAN_TIMEOUT;
        let held = loop {
            let held = fail2ban.bans(jail).await?;
            if new.iter().all(|address| held.has(*address)) {
                break held;
            }
            if Instant::now() > until {
                return Err(Error::Undone(format!(
                    "fail2ban was told of {FAILURE_TEXT:?}, and does not ban it in {jail}: \
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
                notes.confirm(*address, since, seen, seconds)?;
            }
            self.issued.push(IssuedBan { address: *address, already_banned, seconds });
        }
        share::notify_fleet_now(jail, &local, &held, failures.len(), paths)?;
        if !shared {
            share::notify_fleet(fail2ban, jail, &new, &held, (since, failures.len()), paths)
                .await?;
        }
        Ok(())
    }

    fn addresses(&self) -> Vec<Address> {
        self.issued.iter().map(|one| one.address).collect()
    }

    /// Requests acknowledgements of the last batch. Waits until this host's snapshot lists the new bans, if a daemon
    /// runs, and every online host has acknowledged all.
    async fn collect(&mut self, client: &mut FleetClient, alone: bool) -> Result<(), Error> {
        let until = Instant::now() + ACK_TIMEOUT;
        let batch = self.issued.chunks(MAX_ACKS).last().unwrap_or_default();
        let batch: Vec<Address> = batch.iter().map(|one| one.address).collect();
        let requests: Vec<_> = batch.iter().map(|address| self.acks.request(*address)).collect();
        client.publish(&requests).await?;
        loop {
            let view = client.view();
            self.acks.collect(view, &batch);
            self.published = alone || self.is_published(view);
            let results = self.acks.results(view, &batch);
            let mut unanswered = AckCollector::unanswered(&results);
            unanswered.retain(|host| view.hosts()[*host].is_online() && !self.slow.contains(*host));
            if self.published && unanswered.is_empty() {
                return Ok(());
            }
            let unanswered: Vec<HostName> = unanswered.into_iter().cloned().collect();
            if client.next_update(until).await?.is_none() {
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
