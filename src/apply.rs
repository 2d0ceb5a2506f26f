//! Carries out on fail2ban what the fleet's words ask for: in small batches, so that fail2ban stays
//! usable, and in its own time. While fail2ban is away, everything waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::fail2ban::database::{Database, Row};
use crate::fail2ban::{Client, Error};
use crate::fleet::{Plan, Work};
use crate::journal::say;
use crate::memory::Memory;
use crate::outbox::seconds;
use crate::paths::Paths;
use crate::wire::{Address, Jail};

/// fail2ban makes some 130 bans a second and answers nobody meanwhile.
const BATCH: usize = 20;

/// How often fail2ban is asked whether it is there, and for its jails.
const LOOK: Duration = Duration::from_secs(10);

/// How often imports whose time is over are forgotten.
const SWEEP: Duration = Duration::from_mins(1);

/// How long after its start fail2ban may still be adding jails, and restoring bans.
const ADDING: Duration = Duration::from_secs(15);
const RESTORING: Duration = Duration::from_mins(1);

/// A jail that is missing, or refuses, for less than this may be on its way down or up.
const TROUBLE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);

/// Works for ever.
pub async fn run(memory: Arc<Memory>, wake: Arc<Notify>, paths: Paths) {
    loop {
        let error = match Client::connect(&paths.fail2ban).await {
            Ok(client) => Applier::new(client, &memory, &paths).serve(&wake).await,
            Err(error) => error,
        };
        {
            let mut known = memory.know();
            let waiting = known.fleet.waiting();
            known.warn("fail2ban", &format!("{error}; {waiting} bans and unbans wait for it"));
        }
        sleep(RETRY).await;
    }
}

struct Applier<'a> {
    client: Client,
    memory: &'a Memory,
    paths: &'a Paths,
    database: Database,
    jails: BTreeSet<Jail>,
    /// Jails that are missing or refuse, and since when.
    trouble: BTreeMap<Jail, Instant>,
}

impl<'a> Applier<'a> {
    fn new(client: Client, memory: &'a Memory, paths: &'a Paths) -> Self {
        let database = Database::new(&paths.database);
        let (jails, trouble) = (BTreeSet::new(), BTreeMap::new());
        Self { client, memory, paths, database, jails, trouble }
    }

    /// Serves until fail2ban goes away; answers with how it did.
    async fn serve(&mut self, wake: &Notify) -> Error {
        let mut swept = Instant::now();
        loop {
            if let Err(error) = self.turn(wake, &mut swept).await {
                return error;
            }
        }
    }

    /// Asks once what there is, then works off what comes until it is time to ask again.
    async fn turn(&mut self, wake: &Notify, swept: &mut Instant) -> Result<(), Error> {
        self.look().await?;
        if swept.elapsed() > SWEEP && self.server_is_older_than(RESTORING) {
            *swept = Instant::now();
            self.sweep().await?;
        }
        let looked = Instant::now();
        while looked.elapsed() < LOOK {
            let pause = if self.work().await? { LOOK } else { RETRY };
            let _ = timeout(pause, wake.notified()).await;
        }
        Ok(())
    }

    /// Asks fail2ban for its jails and its database.
    async fn look(&mut self) -> Result<(), Error> {
        if let Some(path) = self.client.database().await? {
            self.database = Database::new(&path);
        }
        self.ask_for_jails().await
    }

    async fn ask_for_jails(&mut self) -> Result<(), Error> {
        let jails = self.client.jails().await?;
        if jails != self.jails {
            let names: Vec<&str> = jails.iter().map(Jail::as_str).collect();
            say(format_args!("fail2ban answers; jails: {}", names.join(", ")));
            self.jails = jails;
        }
        // While it starts it adds one jail after another: nobody is told yet that one is missing.
        if self.server_is_older_than(ADDING) {
            self.memory.know().jails = Some(self.jails.clone());
        }
        Ok(())
    }

    /// Works off what waits. Answers `false` if something is to be tried again soon.
    async fn work(&mut self) -> Result<bool, Error> {
        loop {
            let Some((jail, addresses)) = self.memory.know().fleet.next(BATCH) else {
                return Ok(true);
            };
            let result = if self.jails.contains(&jail) {
                self.batch(&jail, &addresses).await
            } else {
                Err(Error::Refused {
                    command: format!("set {jail} …"),
                    why: "there is no such jail".to_owned(),
                })
            };
            match result {
                Ok(()) => drop(self.trouble.remove(&jail)),
                Err(why @ Error::Refused { .. }) => {
                    let given_up = self.gives_up(&jail, &addresses, &why);
                    self.ask_for_jails().await?;
                    if !given_up {
                        return Ok(false);
                    }
                }
                Err(error) => {
                    self.memory.know().fleet.again(&jail, &addresses);
                    return Err(error);
                }
            }
        }
    }

    /// A jail is missing or refuses. For a while that may be a server that stops or starts.
    fn gives_up(&mut self, jail: &Jail, addresses: &[Address], why: &Error) -> bool {
        let since = *self.trouble.entry(jail.clone()).or_insert_with(Instant::now);
        let mut known = self.memory.know();
        if since.elapsed() < TROUBLE || !self.server_is_older_than(ADDING) {
            known.fleet.again(jail, addresses);
            return false;
        }
        if self.jails.contains(jail) {
            known.warn("refused", &why.to_string());
        }
        for address in addresses {
            if !self.jails.contains(jail) {
                let host = known.fleet.reporter(jail, *address);
                say(format_args!(
                    "Jail {jail} not found for IP {address} reported by {host} (Restored=0)"
                ));
            }
            known.fleet.over(jail, *address);
        }
        known.write_down();
        true
    }

    /// One batch: ask, decide, write down, tell, write down.
    async fn batch(&mut self, jail: &Jail, addresses: &[Address]) -> Result<(), Error> {
        let held = self.client.held(jail, addresses).await?;
        let own = self.own(jail, addresses);
        let plan = {
            let mut known = self.memory.know();
            let plan = known.fleet.plan(jail, addresses, &held, &own);
            known.write_down();
            plan
        };
        tell(jail, &plan);
        let list = |work: &[Work]| work.iter().map(|work| work.address).collect();
        let (free, import): (Vec<_>, Vec<_>) = (list(&plan.free), list(&plan.import));
        if !free.is_empty() {
            self.client.unban(jail, &free).await?;
        }
        if !import.is_empty() {
            self.client.ban(jail, &import).await?;
        }
        let mut known = self.memory.know();
        known.fleet.done(jail, &plan);
        known.write_down();
        Ok(())
    }

    /// Which addresses fail2ban's database says were detected here and are still to be banned.
    fn own(&self, jail: &Jail, addresses: &[Address]) -> BTreeSet<Address> {
        let now = seconds(SystemTime::now());
        self.rows(jail, addresses).filter(|(_, row)| row.is_own(now)).map(|(ip, _)| ip).collect()
    }

    /// Forgets imports that fail2ban neither bans nor will restore.
    async fn sweep(&mut self) -> Result<(), Error> {
        let imported = self.memory.know().fleet.imported();
        let now = seconds(SystemTime::now());
        for (jail, mut addresses) in imported {
            if self.jails.contains(&jail) {
                let mut banned = self.client.all_held(&jail).await?;
                let lasting = self.rows(&jail, &addresses).filter(|(_, row)| !row.is_over(now));
                banned.extend(lasting.map(|(address, _)| address));
                addresses.retain(|address| !banned.contains(address));
            }
            let mut known = self.memory.know();
            for address in addresses {
                known.fleet.over(&jail, address);
            }
            known.write_down();
        }
        Ok(())
    }

    /// What fail2ban's database says of addresses, where it says anything. Without a database
    /// (`dbfile = None`) it says nothing.
    fn rows(&self, jail: &Jail, addresses: &[Address]) -> impl Iterator<Item = (Address, Row)> {
        let rows = self.database.rows(jail, addresses).unwrap_or_default();
        let pairs: Vec<_> = addresses.iter().copied().zip(rows).collect();
        pairs.into_iter().filter_map(|(address, row)| Some((address, row?)))
    }

    /// The server makes its socket when it starts.
    fn server_is_older_than(&self, age: Duration) -> bool {
        let made = std::fs::metadata(&self.paths.fail2ban).and_then(|meta| meta.modified());
        made.is_ok_and(|made| made.elapsed().is_ok_and(|elapsed| elapsed > age))
    }
}

/// The lines that log watchers know.
fn tell(jail: &Jail, plan: &Plan) {
    for work in &plan.free {
        let (address, host) = (work.address, &work.host);
        say(format_args!("UnBan {address} for ipset {jail} reported by {host}"));
    }
    for work in &plan.import {
        let (address, host) = (work.address, &work.host);
        say(format_args!("Ban {address} for ipset {jail} reported by {host}"));
    }
}
