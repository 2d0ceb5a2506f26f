//! `f2bmqtt ban`: makes fail2ban on this host detect an address, so that every host bans it as it bans what
//! was attacked for; and says who does. It is never reported to AbuseIPDB: nobody detected anything.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use super::ask;
use super::clock::span;
use super::local;
use super::out;
use super::view::View;
use super::visit::Visit;
use crate::abuseipdb::by_hand::Notes;
use crate::abuseipdb::service::now;
use crate::cli::operator::BanArgs;
use crate::config::Config;
use crate::daemon;
use crate::error::Error;
use crate::fail2ban::Client;
use crate::guard::is_bannable;
use crate::journal::say;
use crate::paths::Paths;
use crate::runtime;
use crate::wire::{Address, Host, Jail};

/// fail2ban makes a ban within a second or two; longer where it has many to make.
const BANS: Duration = Duration::from_secs(30);

/// A snapshot tells of a ban two seconds later.
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
        if !config.sharing.has(&jail) {
            return Err(Error::Undone(format!("{jail} does not take part here: see MQTT_JAILS")));
        }
        if !args.yes {
            refuse(&config, &mut fail2ban, &jail, &addresses).await?;
        }
        ask::about_many("Ban", &addresses, args.yes)?;
        let ban = Ban { jail, me: config.node.clone() };
        let made = ban.make(&mut fail2ban, &addresses, paths).await?;
        let mut visit = match Visit::begin(&config).await {
            Ok(visit) => visit,
            Err(error) => {
                ban.conclude(&View::default(), &made, false, args.json);
                return Err(error);
            }
        };
        // Without the service, a child of notify has told of it, and no snapshot will.
        let told = local::Service::look(paths).pid.is_none() || ban.told(&mut visit, &made).await?;
        ban.conclude(visit.view(), &made, told, args.json);
        visit.end().await;
        if told { Ok(()) } else { Err(not_told(&config.node)) }
    })
}

fn not_told(me: &Host) -> Error {
    Error::Undone(format!("{me} has not told the fleet yet: journalctl -u f2bmqttsub says why"))
}

/// Refuses whom to ban would do more harm than good.
async fn refuse(
    config: &Config,
    fail2ban: &mut Client,
    jail: &Jail,
    addresses: &[Address],
) -> Result<(), Error> {
    let (exempt, _) = daemon::exempt(config).of(&fail2ban.ignored(jail).await?).await;
    let clients = ask::clients();
    for address in addresses {
        let why = if clients.contains(&address.ip()) {
            Some("you are connected from it, and would lock yourself out".to_owned())
        } else {
            exempt.covers(*address).map(|because| because.to_string())
        };
        if let Some(why) = why {
            return Err(Error::Undone(format!(
                "{address} is not to be banned: {why}. Nothing was done: say so with --yes"
            )));
        }
    }
    Ok(())
}

/// What fail2ban made of one address.
struct Made {
    address: Address,
    /// It was banned before.
    already: bool,
    /// How long it is banned, in seconds; below 0 is for ever.
    seconds: i64,
}

struct Ban {
    jail: Jail,
    me: Host,
}

impl Ban {
    /// Lets fail2ban detect the addresses, and waits until it bans them.
    async fn make(
        &self,
        fail2ban: &mut Client,
        addresses: &[Address],
        paths: &Paths,
    ) -> Result<Vec<Made>, Error> {
        let jail = &self.jail;
        let failures = fail2ban.max_retry(jail).await?.clamp(1, 100);
        let failures = vec![FAILURE; usize::try_from(failures).unwrap_or(1)];
        let before = fail2ban.all_held(jail).await?;
        let (mut notes, since) = (Notes::open(&paths.by_hand())?, now());
        let new: BTreeSet<Address> =
            addresses.iter().filter(|address| !before.contains_key(address)).copied().collect();
        for address in &new {
            notes.note(*address, since)?;
            fail2ban.attempt(jail, *address, &failures).await?;
        }
        let until = Instant::now() + BANS;
        let held = loop {
            let held = fail2ban.all_held(jail).await?;
            if new.iter().all(|address| held.contains_key(address)) {
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
        let seen = now();
        let mut made = Vec::new();
        for address in addresses {
            let seconds = held.get(address).copied().unwrap_or(0);
            let already = !new.contains(address);
            if !already {
                notes.seen(*address, since, seen, seconds)?;
            }
            made.push(Made { address: *address, already, seconds });
        }
        Ok(made)
    }

    /// Waits until this host's snapshot tells of what was made; answers whether it does.
    async fn told(&self, visit: &mut Visit, made: &[Made]) -> Result<bool, Error> {
        let until = Instant::now() + TELLS;
        let lists = |view: &View| {
            let me = view.hosts().get(&self.me);
            let mut new = made.iter().filter(|one| !one.already);
            new.all(|one| me.is_some_and(|me| me.lists(&self.jail, one.address)))
        };
        while !lists(visit.view()) {
            if visit.listen(until).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn conclude(&self, view: &View, made: &[Made], told: bool, json: bool) {
        let Self { jail, me } = self;
        let others = || view.hosts().iter().filter(|(host, _)| *host != me);
        let (mut bans, mut no_jail, mut offline) = (Vec::new(), Vec::new(), Vec::new());
        for (host, member) in others() {
            let to = match (member.is_online(), member.jails().contains(jail)) {
                (false, _) => &mut offline,
                (true, true) => &mut bans,
                (true, false) => &mut no_jail,
            };
            to.push(host.as_str());
        }
        if json {
            let made = made.iter().map(|one| {
                json!({
                    "ip": one.address.to_string(),
                    "already": one.already,
                    "seconds": (one.seconds >= 0).then_some(one.seconds),
                })
            });
            out::print_json(&json!({
                "jail": jail.as_str(), "host": me.as_str(), "bans": made.collect::<Vec<_>>(), "told": told,
                "hosts": bans, "without_jail": no_jail, "offline": offline,
            }));
            return;
        }
        for one in made {
            let length = match one.seconds {
                ..0 => "for ever".to_owned(),
                seconds => format!("for {}", span(seconds)),
            };
            let Made { address, already, .. } = one;
            let words = if *already {
                format!("{address} was banned in {jail} here before: nothing was done")
            } else {
                format!("{address} is banned in {jail}, {length}")
            };
            say(out::shown(&words));
        }
        for host in bans {
            say(out::shown(&format!("{host}: bans it, too (it has the jail {jail})")));
        }
        for host in no_jail {
            say(out::shown(&format!("{host}: does not (it has no jail {jail})")));
        }
        for host in offline {
            say(out::shown(&format!("{host}: not connected")));
        }
    }
}
