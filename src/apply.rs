//! Carries out on fail2ban what the fleet's words ask for: in small batches, so that fail2ban stays
//! usable, and in its own time. While fail2ban is away, everything waits.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::fail2ban::table::Table;
use crate::fail2ban::{Client, Error};
use crate::fleet::look::{Look, Pulse, Server};
use crate::fleet::work::{Step, Work};
use crate::ignored::{Ignored, Names, own_addresses};
use crate::journal::{self, say};
use crate::memory::Memory;
use crate::outbox::millis;
use crate::paths::Paths;
use crate::wire::{Address, Jail};

/// How often fail2ban is asked whether there is anything to ask.
const ASK: Duration = Duration::from_secs(2);

/// A jail that refuses for less than this may be on its way down or up.
const TROUBLE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);

/// What the daemon's two halves wake each other with.
#[derive(Debug, Default)]
pub struct Bell {
    /// Something is to be told to fail2ban.
    pub work: Notify,
    /// Something may be to be told to the fleet.
    pub news: Notify,
}

/// Works for ever.
pub async fn run(memory: Arc<Memory>, bell: Arc<Bell>, paths: Paths) {
    let mut absence = Absence::default();
    loop {
        let error = match Client::connect(&paths.fail2ban).await {
            Ok(client) => {
                absence = Absence::default();
                Applier::new(client, &memory, &bell, &paths.fail2ban).serve().await
            }
            Err(error) => error,
        };
        {
            let mut known = memory.know();
            known.fleet.failed();
            known.warn("fail2ban", &format!("{error}; bans and unbans wait for it"));
        }
        absence.look(&memory);
        bell.news.notify_one();
        // What is to be written down does not wait.
        save(&memory);
        sleep(RETRY).await;
    }
}

fn now() -> i64 {
    millis(SystemTime::now())
}

/// Writes down what is not on disk yet, where nothing else can be done.
fn save(memory: &Memory) {
    let mut known = memory.know();
    if let Step::Save(changes) = known.fleet.next(now()) {
        known.save(&changes);
    }
}

/// fail2ban is away: what its database has counts as held.
#[derive(Debug, Default)]
struct Absence {
    version: Option<i64>,
    looked: Option<Instant>,
}

impl Absence {
    /// Rows end without a write, so now and then they are looked at all the same.
    const NOW_AND_THEN: Duration = Duration::from_secs(5);

    fn look(&mut self, memory: &Memory) {
        let mut known = memory.know();
        known.fleet.begin(now());
        known.scan();
        let version = known.database.version().unwrap_or_default();
        let lately = self.looked.is_some_and(|looked| looked.elapsed() < Self::NOW_AND_THEN);
        if !(lately && version == self.version) {
            (self.version, self.looked) = (version, Some(Instant::now()));
            let rows = known.database.jails().and_then(|jails| {
                jails.into_iter().map(|jail| Ok((known.database.all(&jail)?, jail))).collect()
            });
            let rows: Vec<(Table<_>, Jail)> = match rows {
                Ok(rows) => rows,
                Err(error) => {
                    let text = format!("cannot read fail2ban's database: {error}");
                    return known.warn("database", &text);
                }
            };
            known.fleet.absent_but(rows.iter().map(|(_, jail)| jail), now());
            for (rows, jail) in &rows {
                known.fleet.absent(jail, rows, now());
            }
        }
        known.fleet.away();
    }
}

struct Applier<'a> {
    client: Client,
    memory: &'a Memory,
    bell: &'a Bell,
    socket: &'a Path,
    jails: BTreeSet<Jail>,
    /// Jails that refuse, and since when.
    trouble: BTreeMap<Jail, Instant>,
    names: Names,
}

impl<'a> Applier<'a> {
    fn new(client: Client, memory: &'a Memory, bell: &'a Bell, socket: &'a Path) -> Self {
        let (jails, trouble, names) = (BTreeSet::new(), BTreeMap::new(), Names::default());
        Self { client, memory, bell, socket, jails, trouble, names }
    }

    /// Serves until fail2ban goes away; answers with how it did.
    async fn serve(&mut self) -> Error {
        loop {
            if let Err(error) = self.round().await {
                return error;
            }
        }
    }

    /// Asks what there is to ask, then works until it is time to ask again.
    async fn round(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        self.pulse().await?;
        while begun.elapsed() < ASK {
            let step = self.memory.know().fleet.next(now());
            if step == Step::Rest {
                self.bell.news.notify_one();
                let rest = ASK.saturating_sub(begun.elapsed());
                let _ = timeout(rest, self.bell.work.notified()).await;
                self.memory.know().scan();
            } else if let Err(error) = self.take(step).await {
                self.memory.know().fleet.failed();
                self.bear(error).await?;
                break;
            }
        }
        Ok(())
    }

    /// Looks whether fail2ban is the same as before, and has anything new.
    async fn pulse(&mut self) -> Result<(), Error> {
        {
            let mut known = self.memory.know();
            known.fleet.begin(now());
            known.scan();
        }
        let jails = self.client.jails().await?;
        if jails.is_empty() {
            sleep(RETRY).await; // it has only started
        } else if self.jails.is_empty() {
            // Before it has jails, it does not know of its database either.
            let path = self.client.database().await?;
            self.memory.know().database.move_to(path);
        }
        if jails != self.jails {
            let names: Vec<&str> = jails.iter().map(Jail::as_str).collect();
            say(format_args!("fail2ban answers; jails: {}", names.join(", ")));
        }
        self.jails.clone_from(&jails);
        self.trouble.retain(|_, since| since.elapsed() < 4 * TROUBLE);
        let server = Server { pid: self.client.pid(), started: self.started() };
        let mut known = self.memory.know();
        let data_version = match known.database.version() {
            Ok(version) => version,
            Err(error) => {
                let text = format!("cannot read fail2ban's database: {error}; bans wait for it");
                known.warn("database", &text);
                return Ok(());
            }
        };
        for jail in known.fleet.missing(&jails) {
            // A database that is busy now says nothing, and not that there is nothing.
            if let Ok(rows) = known.database.all(&jail) {
                known.fleet.absent(&jail, &rows, now());
            }
        }
        known.fleet.pulse(Pulse { server, data_version }, jails, now());
        Ok(())
    }

    async fn take(&mut self, step: Step) -> Result<(), Error> {
        let answer = match step {
            Step::Save(changes) => {
                self.memory.know().save(&changes);
                return Ok(());
            }
            Step::Look(jail, of) => return self.look(&jail, of.as_deref()).await,
            Step::Free(jail, work) => {
                tell("UnBan", &jail, &work);
                self.client.unban(&jail, &addresses(&work)).await?
            }
            Step::Obey(jail, address) => {
                say(format_args!("UnBan {address} for ipset {jail} in the whole fleet"));
                self.client.unban(&jail, &[address]).await?
            }
            Step::Import(jail, work) => {
                tell("Ban", &jail, &work);
                self.client.ban(&jail, &addresses(&work)).await?
            }
            Step::Prolong(jail, addresses) => self.client.ban(&jail, &addresses).await?,
            Step::Refuse(jail, Work { address, host }) => {
                let host = named(host.as_ref());
                self.memory.know().warn("ignored", &format!(
                    "refused to ban {address} in {jail} for {host}: it is in ignoreip, or this host's own"
                ));
                0
            }
            Step::NoSuchJail(jail, Work { address, host }) => {
                say(journal::no_such_jail(&jail, address, named(host.as_ref()), 0));
                0
            }
            Step::Rest => return Ok(()),
        };
        self.memory.know().fleet.done(answer, now());
        Ok(())
    }

    /// Looks at a jail: whole, or at a few addresses.
    async fn look(&mut self, jail: &Jail, of: Option<&[Address]>) -> Result<(), Error> {
        let begun = Instant::now();
        let held = if let Some(addresses) = of {
            let held = self.client.held(jail, addresses).await?;
            held.into_iter().map(|address| (address, None)).collect()
        } else {
            self.client.all_held(jail).await?
        };
        let total = if of.is_none() { Some(self.client.total(jail).await?) } else { None };
        let bantime = self.client.bantime(jail).await?;
        let purge_age = self.client.purge_age().await?;
        let ignored = self.ignored(jail).await?;
        let took = i64::try_from(begun.elapsed().as_millis()).unwrap_or_default();
        let look = Look { held, total, bantime, purge_age, ignored, took, ..Look::default() };
        if let Err(error) = self.seen(jail, of, look) {
            let text = format!("cannot read fail2ban's database: {error}; bans wait for it");
            self.memory.know().warn("database", &text);
            sleep(RETRY).await;
        }
        Ok(())
    }

    /// Adds to a look what the database has of it, and hands it over.
    fn seen(&self, jail: &Jail, of: Option<&[Address]>, mut look: Look) -> rusqlite::Result<()> {
        let mut known = self.memory.know();
        look.rows = match of {
            Some(addresses) => known.database.rows(jail, addresses)?,
            None => known.database.all(jail)?,
        };
        look.database = known.database.is_kept();
        // What notify told meanwhile is not an import's any more.
        known.scan();
        known.fleet.seen(jail, of, look, now());
        Ok(())
    }

    /// A jail refuses. For a while that may be a server that stops or starts; what comes of a batch
    /// that is refused for longer is given up, and said.
    async fn bear(&mut self, error: Error) -> Result<(), Error> {
        let Error::Refused { jail: Some(jail), .. } = &error else { return Err(error) };
        let since = *self.trouble.entry(jail.clone()).or_insert_with(Instant::now);
        if since.elapsed() >= TROUBLE {
            self.trouble.remove(jail);
            let mut known = self.memory.know();
            known.fleet.give_up(jail);
            known.warn("refused", &error.to_string());
        }
        sleep(RETRY).await;
        Ok(())
    }

    /// Whom a jail is never to ban, asked anew each time: it may have been changed.
    async fn ignored(&mut self, jail: &Jail) -> Result<Ignored, Error> {
        let entries = self.client.ignored(jail).await?;
        let (mut ignored, names) = Ignored::read(entries.iter().map(String::as_str));
        for name in names {
            ignored.extend(self.names.addresses(name).await);
        }
        ignored.extend(own_addresses());
        Ok(ignored)
    }

    /// When the server started, in seconds since 1970: it makes its socket then.
    fn started(&self) -> i64 {
        let made = std::fs::metadata(self.socket).and_then(|meta| meta.modified());
        made.map_or(i64::MAX, |at| millis(at).div_euclid(1000))
    }
}

fn addresses(work: &[Work]) -> Vec<Address> {
    work.iter().map(|work| work.address).collect()
}

fn named(host: Option<&crate::wire::Host>) -> &str {
    host.map_or("nobody", crate::wire::Host::as_str)
}

/// The lines that log watchers know.
fn tell(what: &str, jail: &Jail, work: &[Work]) {
    for Work { address, host } in work {
        let host = named(host.as_ref());
        say(format_args!("{what} {address} for ipset {jail} reported by {host}"));
    }
}
