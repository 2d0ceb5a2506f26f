//! `f2bmqtt ban`: makes fail2ban on this host detect an address, so that the fleet imports the ban like any other, and
//! shows the result on each host. The ban is never reported to AbuseIPDB (R23), because there was no attack.

mod acks;
mod notify;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use acks::AckCollector;
use serde_json::json;
use tokio::time::sleep;

use super::confirm;
use super::local_host;
use super::render;
use crate::broker::fleet_client::FleetClient;
use crate::broker::fleet_view::FleetView;
use crate::cli::operator::BanArgs;
use crate::config::Config;
use crate::daemon;
use crate::error::Error;
use crate::fail2ban::Client;
use crate::guard::is_bannable;
use crate::model::text::{format_duration, sanitize};
use crate::model::{Address, HostName, Jail};
use crate::spool::manual_bans::ManualBanLog;
use crate::store::reader;
use crate::sys::clock::{now_millis, now_secs};
use crate::sys::log::info;
use crate::sys::paths::Paths;
use crate::sys::runtime;
use crate::wire::MAX_ACKS;

/// How long fail2ban may take: usually two seconds, longer if it has many bans to make.
const BAN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the command waits for acknowledgements. This host's snapshot lists the ban after two seconds.
const ACK_TIMEOUT: Duration = Duration::from_secs(15);

const UNCONFIRMED_TEXT: &str = "not confirmed the ban. An offline host applies the ban when it reconnects. Show the state: f2bmqtt status";

/// The log line that fail2ban counts as the failure.
const FAILURE_TEXT: &str = "banned by hand with f2bmqtt ban";

/// Bans the addresses here, and shows the result on each host.
///
/// # Errors
/// Any [`Error`]
pub fn run(args: &BanArgs, paths: &Paths) -> Result<(), Error> {
    let jail = Jail::new(&args.jail).map_err(|what| Error::Usage(format!("JAIL {what}")))?;
    let addresses = confirm::parse_addresses(&args.addresses)?;
    if let Some(address) = addresses.iter().find(|address| !is_bannable(address.ip())) {
        return Err(Error::Usage(format!("IP {address} is not an address of another machine")));
    }
    let config = Config::load()?;
    runtime::run(async {
        let mut fail2ban = Client::connect(&paths.fail2ban).await?;
        let jails = fail2ban.jails().await?;
        if !jails.contains(&jail) {
            let names: Vec<&str> = jails.iter().map(Jail::as_str).collect();
            let names = names.join(", ");
            return Err(Error::Failed(format!(
                "fail2ban on this host has no jail `{jail}`. Its jails: {names}"
            )));
        }
        if !config.sharing.includes(&jail) {
            return Err(Error::Failed(format!(
                "jail `{jail}` does not take part on this host: see MQTT_JAILS and MQTT_NOT_JAILS in \
                 /etc/fail2ban/mqtt.env"
            )));
        }
        if !args.yes {
            check_addresses(&config, &mut fail2ban, &jail, &addresses).await?;
        }
        confirm::confirm_bulk("Ban", &addresses, args.yes)?;
        let mut ban = BanRun {
            acks: AckCollector::new(config.node.clone(), jail.clone(), now_millis()),
            jail,
            me: config.node.clone(),
            issued: Vec::new(),
            published: false,
            slow: BTreeSet::new(),
        };
        // Without a daemon, a child of notify publishes the ban, and there is no snapshot to wait for.
        let has_no_daemon = local_host::LocalService::read(paths).pid.is_none();
        // A presence has room for MAX_ACKS acknowledgements.
        let mut batches = addresses.chunks(MAX_ACKS);
        let first = ban.issue(&mut fail2ban, batches.next().unwrap_or_default(), paths);
        let (mut client, mut issued_batch) =
            tokio::join!(FleetClient::connect(&config, || reader::origins(paths)), first);
        loop {
            if let (Ok(connected), Ok(())) = (&mut client, &issued_batch)
                && let Err(lost) = ban.collect(connected, has_no_daemon).await
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
async fn check_addresses(
    config: &Config,
    fail2ban: &mut Client,
    jail: &Jail,
    addresses: &[Address],
) -> Result<(), Error> {
    let (exempt, _) = daemon::exempt(config).resolve(jail, &fail2ban.ignored(jail).await?).await;
    let clients = confirm::ssh_client_addresses();
    for address in addresses {
        let why = if clients.contains(&address.ip()) {
            Some("you are connected from this address, and would lock yourself out".to_owned())
        } else {
            exempt.lookup(*address).map(|reason| reason.to_string())
        };
        if let Some(why) = why {
            return Err(Error::Failed(format!(
                "{address} was not banned: {why}. To ban the address anyway, use --yes"
            )));
        }
    }
    Ok(())
}

/// A ban in fail2ban on this host, after the command issued it.
struct IssuedBan {
    address: Address,
    /// Whether fail2ban had this ban before.
    already_banned: bool,
    /// The bantime in seconds; below 0 is permanent.
    seconds: i64,
}

struct BanRun {
    jail: Jail,
    me: HostName,
    issued: Vec<IssuedBan>,
    acks: AckCollector,
    /// Whether this host's snapshot lists the new bans.
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
        let shared = notify::is_shared(fail2ban, jail).await?;
        let before = fail2ban.bans(jail).await?;
        let (mut notes, since) = (ManualBanLog::open(&paths.by_hand())?, now_secs());
        let (existing, new): (BTreeSet<Address>, BTreeSet<Address>) =
            addresses.iter().partition(|address| before.has(**address));
        // A ban that the operator made with fail2ban-client is not shared; the command shares it now.
        let local = notify::banned_by_hand(fail2ban, jail, &existing, paths).await?;
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
                return Err(Error::Failed(format!(
                    "fail2ban did not ban the addresses in jail `{jail}` within {} s. Its log shows the reason: \
                     /var/log/fail2ban.log",
                    BAN_TIMEOUT.as_secs()
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
        notify::notify_fleet_now(jail, &local, &held, failures.len(), paths)?;
        if !shared {
            notify::notify_fleet(fail2ban, jail, &new, &held, (since, failures.len()), paths)
                .await?;
        }
        Ok(())
    }

    fn addresses(&self) -> Vec<Address> {
        self.issued.iter().map(|ban| ban.address).collect()
    }

    /// Requests acknowledgements of the last batch. Waits until this host's snapshot lists the new bans, if a daemon
    /// runs, and every online host has acknowledged all.
    async fn collect(
        &mut self,
        client: &mut FleetClient,
        has_no_daemon: bool,
    ) -> Result<(), Error> {
        let until = Instant::now() + ACK_TIMEOUT;
        let batch = self.issued.chunks(MAX_ACKS).last().unwrap_or_default();
        let batch: Vec<Address> = batch.iter().map(|ban| ban.address).collect();
        let requests: Vec<_> = batch.iter().map(|address| self.acks.request(*address)).collect();
        client.publish(&requests).await?;
        loop {
            let view = client.view();
            self.acks.collect(view, &batch);
            self.published = has_no_daemon || self.is_published(view);
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
        let mut new = self.issued.iter().filter(|ban| !ban.already_banned);
        new.all(|ban| me.is_some_and(|me| me.lists(&self.jail, ban.address)))
    }

    fn print_result(&self, view: &FleetView, json: bool) {
        let Self { jail, me, issued, .. } = self;
        let results = self.acks.results(view, &self.addresses());
        if json {
            let bans = issued.iter().map(|ban| {
                json!({
                    "ip": ban.address.to_string(),
                    "already_banned": ban.already_banned,
                    "seconds": (ban.seconds >= 0).then_some(ban.seconds),
                    "acks": self.acks.acks(ban.address),
                })
            });
            let mut all = AckCollector::to_json(&results);
            all["jail"] = jail.as_str().into();
            all["host"] = me.as_str().into();
            all["bans"] = bans.collect();
            all["published"] = self.published.into();
            render::print_json(&all);
            return;
        }
        for IssuedBan { address, already_banned, seconds } in issued {
            let duration = match *seconds {
                ..0 => "permanently".to_owned(),
                seconds => format!("for {}", format_duration(seconds)),
            };
            let line = if *already_banned {
                format!(
                    "{address} is already banned in jail `{jail}` on this host; the ban is unchanged"
                )
            } else {
                format!("{address} is banned in jail `{jail}` {duration}")
            };
            info(sanitize(&line));
        }
        for line in self.acks.lines(&results) {
            info(sanitize(&line));
        }
    }

    /// An error unless this host has published the bans, and every other one has acknowledged all.
    fn result(&self, view: &FleetView) -> Result<(), Error> {
        if !self.published {
            let me = &self.me;
            return Err(Error::Failed(format!(
                "this host ({me}) has not published the bans yet. Show the reason: journalctl -u f2bmqttsub -n 20"
            )));
        }
        let results = self.acks.results(view, &self.addresses());
        match AckCollector::unanswered(&results).len() {
            0 => Ok(()),
            1 => Err(Error::Failed(format!("1 host has {UNCONFIRMED_TEXT}"))),
            count => Err(Error::Failed(format!("{count} hosts have {UNCONFIRMED_TEXT}"))),
        }
    }
}
