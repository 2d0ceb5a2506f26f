//! Carries out on fail2ban what the fleet's words ask for: in small batches, so that fail2ban stays
//! usable, and in its own time. While fail2ban is away, everything waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::fail2ban::database::{Database, Row};
use crate::fail2ban::{Client, Error};
use crate::fleet::lease::{self, Renewal};
use crate::fleet::reconcile::Origin;
use crate::fleet::{Here, Plan, Work};
use crate::ignored::{Ignored, Names, own_addresses};
use crate::journal::{self, say};
use crate::memory::Memory;
use crate::outbox::seconds;
use crate::paths::Paths;
use crate::wire::{Address, Jail};

/// fail2ban makes some 130 bans a second and answers nobody meanwhile.
const BATCH: usize = 20;

/// How often fail2ban is asked whether it is there, and for its jails.
const LOOK: Duration = Duration::from_secs(10);

/// How often all imports are looked at; those whose lease ends within [`LEASE_LEAD`] seconds, always.
const SWEEP: Duration = Duration::from_mins(1);
const LEASE_LEAD: i64 = 60;

/// How long after its start fail2ban may still be restoring bans: it makes some 130 a second.
const RESTORING: Duration = Duration::from_mins(10);

/// A jail that refuses for less than this may be on its way down or up.
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
    jails: BTreeSet<Jail>,
    /// Jails that refuse, and since when.
    trouble: BTreeMap<Jail, Instant>,
    names: Names,
}

impl<'a> Applier<'a> {
    fn new(client: Client, memory: &'a Memory, paths: &'a Paths) -> Self {
        let (jails, trouble, names) = (BTreeSet::new(), BTreeMap::new(), Names::default());
        Self { client, memory, paths, jails, trouble, names }
    }

    /// Serves until fail2ban goes away; answers with how it did.
    async fn serve(&mut self, wake: &Notify) -> Error {
        let mut swept = None;
        loop {
            if let Err(error) = self.turn(wake, &mut swept).await {
                return error;
            }
        }
    }

    /// Asks once what there is, then works off what comes until it is time to ask again.
    async fn turn(&mut self, wake: &Notify, swept: &mut Option<Instant>) -> Result<(), Error> {
        self.look().await?;
        if self.jails.is_empty() {
            sleep(RETRY).await; // it has only started
            return Ok(());
        }
        if swept.is_none_or(|swept| swept.elapsed() > SWEEP) {
            *swept = Some(Instant::now());
            self.renew(i64::MAX).await?;
        } else {
            self.renew(seconds(SystemTime::now()) + LEASE_LEAD).await?;
        }
        let looked = Instant::now();
        while looked.elapsed() < LOOK {
            let pause = if self.work(looked).await? { LOOK } else { RETRY };
            let _ =
                timeout(pause.min(LOOK.saturating_sub(looked.elapsed())), wake.notified()).await;
        }
        Ok(())
    }

    /// Asks fail2ban for its jails and its database. Before it has jails, it does not know of its
    /// database either.
    async fn look(&mut self) -> Result<(), Error> {
        self.ask_for_jails().await?;
        if !self.jails.is_empty() {
            let path = self.client.database().await?;
            self.memory.know().database = Database::new(path);
            self.trouble.retain(|_, since| since.elapsed() < 4 * TROUBLE);
        }
        Ok(())
    }

    /// fail2ban adds all jails at once, when it starts or reloads; before that, it has none.
    async fn ask_for_jails(&mut self) -> Result<(), Error> {
        let jails = self.client.jails().await?;
        if jails != self.jails {
            let names: Vec<&str> = jails.iter().map(Jail::as_str).collect();
            say(format_args!("fail2ban answers; jails: {}", names.join(", ")));
        }
        if !jails.is_empty() {
            self.memory.know().jails = Some((jails.clone(), Instant::now()));
        }
        self.jails = jails;
        Ok(())
    }

    /// Works off what waits, until it is time to [look](Self::look) again. Answers `false` if
    /// something is to be tried again soon.
    async fn work(&mut self, looked: Instant) -> Result<bool, Error> {
        let mut all = true;
        while looked.elapsed() < LOOK {
            let Some((jail, addresses)) = self.memory.know().fleet.next(BATCH) else {
                return Ok(all);
            };
            if !self.jails.contains(&jail) {
                self.look().await?;
            }
            let missing = !self.jails.contains(&jail);
            if missing && !self.jails.is_empty() {
                self.no_such_jail(&jail, &addresses);
                continue;
            }
            let result = if missing {
                Ok(addresses.clone()) // fail2ban has only started, and has no jails yet
            } else {
                self.batch(&jail, &addresses).await
            };
            match result {
                Ok(left) if left.is_empty() => drop(self.trouble.remove(&jail)),
                Ok(left) => {
                    self.memory.know().fleet.again(&jail, &left);
                    return Ok(false);
                }
                Err(why @ Error::Refused { .. }) => {
                    if !self.gives_up(&jail, &addresses, &why) {
                        return Ok(false);
                    }
                    all = false;
                }
                Err(error) => {
                    self.memory.know().fleet.again(&jail, &addresses);
                    return Err(error);
                }
            }
        }
        Ok(all)
    }

    /// Says so, and forgets the words.
    fn no_such_jail(&mut self, jail: &Jail, addresses: &[Address]) {
        for address in addresses {
            let host = self.memory.know().fleet.reporter(jail, *address);
            say(journal::no_such_jail(jail, *address, host, 0));
        }
        self.forget(jail, addresses);
    }

    /// Forgets words that come to nothing, but not what fail2ban will ban for them when the jail is
    /// back.
    fn forget(&self, jail: &Jail, addresses: &[Address]) {
        let lasting = self.rows(jail, addresses).unwrap_or_default();
        let mut known = self.memory.know();
        for address in addresses.iter().filter(|address| !lasting.contains_key(address)) {
            known.fleet.over(jail, *address);
        }
        known.write_down();
    }

    /// A jail refuses. For a while that may be a server that stops or starts.
    fn gives_up(&mut self, jail: &Jail, addresses: &[Address], why: &Error) -> bool {
        let since = *self.trouble.entry(jail.clone()).or_insert_with(Instant::now);
        let mut known = self.memory.know();
        if since.elapsed() < TROUBLE {
            known.fleet.again(jail, addresses);
            return false;
        }
        known.warn("refused", &why.to_string());
        drop(known);
        self.trouble.remove(jail);
        self.forget(jail, addresses);
        true
    }

    /// One batch: ask, decide, write down, tell, write down. Answers what is to be tried again: all
    /// where the database cannot be asked, or what fail2ban is still to restore.
    async fn batch(&mut self, jail: &Jail, addresses: &[Address]) -> Result<Vec<Address>, Error> {
        let held = self.client.held(jail, addresses).await?;
        let ignored = self.ignored(jail).await?.among(addresses);
        let Some(mut rows) = self.rows(jail, addresses) else { return Ok(addresses.to_vec()) };
        if self.server_is_older_than(RESTORING) {
            rows.retain(|address, origin| held.contains(address) || *origin == Origin::Own);
        }
        let plan = {
            let mut known = self.memory.know();
            let plan = known.fleet.plan(jail, addresses, &Here { held, ignored, rows });
            for Work { address, host } in &plan.refuse {
                known.warn("ignored", &format!(
                    "refused to ban {address} in {jail} for {host}: it is in ignoreip, or this host's own"
                ));
            }
            known.write_down();
            plan
        };
        tell(jail, &plan);
        let list = |work: &[Work]| work.iter().map(|work| work.address).collect();
        let (free, import): (Vec<_>, Vec<_>) = (list(&plan.free), list(&plan.import));
        if !free.is_empty() {
            self.client.unban(jail, &free).await?;
        }
        let mut until = None;
        if !import.is_empty() {
            let bantime = self.client.bantime(jail).await?;
            until = lease_end(seconds(SystemTime::now()), bantime);
            self.client.ban(jail, &import).await?;
        }
        let mut known = self.memory.know();
        known.fleet.done(jail, &plan, until);
        known.write_down();
        Ok(plan.wait)
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

    /// Looks at imports whose lease ends before `end`: prolongs them, makes those anew that ended too
    /// soon, forgets those that are over or were lifted here.
    async fn renew(&mut self, end: i64) -> Result<(), Error> {
        let imported = self.memory.know().fleet.imported(end);
        for (jail, addresses) in imported {
            if !self.jails.contains(&jail) {
                continue; // what its bans rest on is kept: it may come back
            }
            let held = self.client.held(&jail, &addresses).await?;
            let bantime = self.client.bantime(&jail).await?;
            let Some(rows) = self.all_rows(&jail, &addresses) else { continue };
            let restoring = !self.server_is_older_than(RESTORING);
            let ignored = self.ignored(&jail).await?.among(&addresses);
            let started = self.server_started();
            let (mut prolong, now) = (Vec::new(), seconds(SystemTime::now()));
            {
                let mut known = self.memory.know();
                for &address in &addresses {
                    let (mut until, wanted) = known.fleet.times(&jail, address);
                    let held = held.contains(&address);
                    let ran_on = until.is_none_or(|until| started < until - bantime.max(0));
                    let row = rows.get(&address);
                    if let (false, Some(end)) = (ran_on, row.and_then(Row::end)) {
                        // A ban that was restored ends as it was made.
                        until = until.map(|until| until.min(end));
                    }
                    let row = match row {
                        None => lease::Row::Gone,
                        Some(row) if row.is_over(now) => lease::Row::Over,
                        Some(_) => lease::Row::Lasting,
                    };
                    match lease::renewal(lease::Facts {
                        now,
                        held,
                        until,
                        wanted,
                        bantime,
                        row,
                        ran_on,
                        restoring,
                    }) {
                        Renewal::Leave => {}
                        Renewal::Prolong if ignored.contains(&address) => {}
                        Renewal::Prolong => prolong.push(address),
                        Renewal::Import => known.fleet.again(&jail, &[address]),
                        Renewal::Forget => known.fleet.over(&jail, address),
                    }
                }
                known.fleet.look_again(&jail, &addresses);
                known.write_down();
            }
            for batch in prolong.chunks(BATCH) {
                let now = seconds(SystemTime::now());
                self.client.ban(&jail, batch).await?;
                let mut known = self.memory.know();
                known.fleet.prolonged(&jail, batch, lease_end(now, bantime));
                known.write_down();
            }
        }
        Ok(())
    }

    /// What fail2ban's database says of bans that last.
    fn rows(&self, jail: &Jail, addresses: &[Address]) -> Option<BTreeMap<Address, Origin>> {
        let now = seconds(SystemTime::now());
        let rows = self.all_rows(jail, addresses)?.into_iter();
        Some(
            rows.filter(|(_, row)| !row.is_over(now)).map(|(ip, row)| (ip, row.origin())).collect(),
        )
    }

    /// What fail2ban's database says of addresses. `None`, with a warning, where it cannot be asked
    /// now.
    fn all_rows(&self, jail: &Jail, addresses: &[Address]) -> Option<BTreeMap<Address, Row>> {
        let database = self.memory.know().database.clone();
        match database.rows(jail, addresses) {
            Ok(rows) => {
                let rows = addresses.iter().zip(rows);
                Some(rows.filter_map(|(address, row)| Some((*address, row?))).collect())
            }
            Err(error) => {
                let text = format!("cannot read fail2ban's database: {error}; bans wait for it");
                self.memory.know().warn("database", &text);
                None
            }
        }
    }

    /// When the server started, in seconds since 1970: it makes its socket then.
    fn server_started(&self) -> i64 {
        let made = std::fs::metadata(&self.paths.fail2ban).and_then(|meta| meta.modified());
        made.map_or(i64::MAX, seconds)
    }

    fn server_is_older_than(&self, age: Duration) -> bool {
        let age = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        seconds(SystemTime::now()).saturating_sub(self.server_started()) > age
    }
}

/// When fail2ban ends what it bans now; `None`: never.
fn lease_end(now: i64, bantime: i64) -> Option<i64> {
    (bantime >= 0).then(|| now.saturating_add(bantime))
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
