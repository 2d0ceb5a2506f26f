//! Carries out on fail2ban what the fleet's words ask for: in small batches, so that fail2ban stays
//! usable, and in its own time. While fail2ban is away, everything waits.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::clock::{millis, now_millis};
use crate::fail2ban::table::AddressMap;
use crate::fail2ban::{Client, Fail2banError};
use crate::fleet::look::{Heartbeat, Observation, ServerInstance};
use crate::fleet::work::{Effect, Target};
use crate::guard::RejectReason;
use crate::ignored::{IgnoreList, IgnoreListResolver};
use crate::journal::{self, say};
use crate::memory::{DaemonState, SharedState};
use crate::paths::Paths;
use crate::wire::{Address, Jail};

/// How often fail2ban is asked whether there is anything to ask.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How often fail2ban is asked whom it is never to ban, although there is nobody to be banned.
const IGNORELIST_INTERVAL: Duration = Duration::from_secs(30);

/// The same while a name in an `ignoreip` is not resolved, and bans wait for that.
const UNRESOLVED_INTERVAL: Duration = Duration::from_secs(5);

/// A jail that refuses for less than this may be on its way down or up.
const REFUSAL_GRACE: Duration = Duration::from_secs(5);
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How many steps are taken between two tries while fail2ban is away.
const MAX_STEPS: usize = 1_000;

/// What the daemon's two halves wake each other with.
#[derive(Debug, Default)]
pub struct Wakeups {
    /// Something is to be told to fail2ban.
    pub work: Notify,
    /// Something may be to be told to the fleet.
    pub news: Notify,
}

/// Works until this process sees a directory that no longer exists in the place of fail2ban's; `exempt` says
/// whom no jail is to ban.
pub async fn run(
    memory: Arc<SharedState>,
    bell: Arc<Wakeups>,
    paths: Paths,
    mut exempt: IgnoreListResolver,
) {
    let mut absence = OfflineReader::default();
    loop {
        let error = match Client::connect(&paths.fail2ban).await {
            Ok(client) => {
                absence = OfflineReader::default();
                Driver::new(client, &memory, &bell, &paths.fail2ban, &mut exempt).serve().await
            }
            Err(error) => error,
        };
        {
            let mut known = memory.lock();
            known.fleet.on_failed();
            known
                .warn("fail2ban", &format!("{error}; bans and unbans wait until fail2ban answers"));
        }
        absence.look(&memory);
        bell.news.notify_one();
        // What is to be written down does not wait.
        save(&memory);
        if is_removed(&paths.fail2ban) {
            return;
        }
        sleep(RETRY_DELAY).await;
    }
}

/// Whether the socket's directory was removed. In the service's sandbox it is a bind mount, which goes on
/// showing the removed directory when fail2ban makes a new one: only a new sandbox shows that.
fn is_removed(socket: &Path) -> bool {
    socket.parent().is_some_and(|dir| dir.metadata().is_ok_and(|about| about.nlink() == 0))
}

/// Writes down what is not on disk yet, where nothing else can be done.
fn save(memory: &SharedState) {
    for _ in 0..MAX_STEPS {
        if !memory.lock().save_next() {
            return;
        }
    }
}

/// fail2ban is away: what its database has counts as held.
#[derive(Debug, Default)]
struct OfflineReader {
    version: Option<i64>,
    looked: Option<Instant>,
}

impl OfflineReader {
    /// Rows end without a write, so now and then they are looked at all the same.
    const NOW_AND_THEN: Duration = Duration::from_secs(5);

    fn look(&mut self, memory: &SharedState) {
        let mut known = memory.lock();
        known.fleet.start_cycle(now_millis());
        known.drain_spool();
        // Which database is its own only fail2ban says: the one at the default's place may be an old one.
        if !known.database.is_confirmed() {
            return known.fleet.on_fail2ban_down(false);
        }
        let version = known.database.data_version().unwrap_or_default();
        let lately = self.looked.is_some_and(|looked| looked.elapsed() < Self::NOW_AND_THEN);
        if !(lately && version == self.version) {
            (self.version, self.looked) = (version, Some(Instant::now()));
            let DaemonState { database, guard, .. } = &mut *known;
            let rows = database.jails().and_then(|jails| {
                let shared = jails.into_iter().filter(|jail| guard.sharing.includes(jail));
                shared.map(|jail| Ok((database.all(&jail)?, jail))).collect()
            });
            let rows: Vec<(AddressMap<_>, Jail)> = match rows {
                Ok(rows) => rows,
                Err(error) => {
                    let text = format!("cannot read fail2ban's database: {error}");
                    return known.warn("database", &text);
                }
            };
            known.fleet.clear_other_jails(rows.iter().map(|(_, jail)| jail), now_millis());
            for (rows, jail) in &rows {
                known.fleet.observe_offline_jail(jail, rows, now_millis());
            }
        }
        known.fleet.on_fail2ban_down(true);
    }
}

struct Driver<'a> {
    client: Client,
    memory: &'a SharedState,
    bell: &'a Wakeups,
    socket: &'a Path,
    jails: BTreeSet<Jail>,
    /// Jails that refuse, and since when.
    trouble: BTreeMap<Jail, Instant>,
    exempt: &'a mut IgnoreListResolver,
    /// Whom each jail is never to ban, as far as that was found out, and when all were last asked.
    ignored: BTreeMap<Jail, IgnoreList>,
    asked: Instant,
    /// The jails whose actions' names were read.
    named: BTreeSet<Jail>,
}

impl<'a> Driver<'a> {
    fn new(
        client: Client,
        memory: &'a SharedState,
        bell: &'a Wakeups,
        socket: &'a Path,
        exempt: &'a mut IgnoreListResolver,
    ) -> Self {
        let (jails, trouble, ignored) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        let (asked, named) = (Instant::now(), BTreeSet::new());
        Self { client, memory, bell, socket, jails, trouble, exempt, ignored, asked, named }
    }

    /// Serves until fail2ban goes away; answers with how it did.
    async fn serve(&mut self) -> Fail2banError {
        loop {
            if let Err(error) = self.round().await {
                return error;
            }
        }
    }

    /// Asks what there is to ask, then works until it is time to ask again.
    async fn round(&mut self) -> Result<(), Fail2banError> {
        let begun = Instant::now();
        self.pulse().await?;
        self.name_actions().await?;
        self.reconsider().await?;
        while begun.elapsed() < POLL_INTERVAL {
            let step = self.memory.lock().fleet.next_effect(now_millis());
            if step == Effect::Idle {
                self.bell.news.notify_one();
                let rest = POLL_INTERVAL.saturating_sub(begun.elapsed());
                let _ = timeout(rest, self.bell.work.notified()).await;
                self.memory.lock().drain_spool();
            } else if let Err(error) = self.take(step).await {
                self.memory.lock().fleet.on_failed();
                self.bear(error).await?;
                break;
            }
        }
        Ok(())
    }

    /// Looks whether fail2ban is the same as before, and has anything new.
    async fn pulse(&mut self) -> Result<(), Fail2banError> {
        {
            let mut known = self.memory.lock();
            known.fleet.start_cycle(now_millis());
            known.drain_spool();
        }
        let jails = self.client.jails().await?;
        let server = ServerInstance { pid: self.client.pid(), started: self.started() };
        if jails.is_empty() && self.memory.lock().fleet.is_starting(server, now_millis()) {
            sleep(RETRY_DELAY).await; // it is yet to make them
        } else if self.jails.is_empty() {
            // While it starts, it does not know of its database before it has jails.
            let path = self.client.database().await?;
            self.memory.lock().database.set_path(path);
        }
        if jails != self.jails {
            self.announce(&jails);
        }
        self.jails.clone_from(&jails);
        let jails = self.memory.lock().guard.sharing.filter(&jails);
        self.trouble.retain(|_, since| since.elapsed() < 4 * REFUSAL_GRACE);
        let mut known = self.memory.lock();
        if !known.database.is_confirmed() {
            return Ok(()); // of a server that has only started nothing is known
        }
        match absent(&mut known, &jails, server) {
            Ok(data_version) => {
                known.fleet.on_heartbeat(Heartbeat { server, data_version }, jails, now_millis());
            }
            // One that is busy now says nothing, and not that there is nothing.
            Err(error) => {
                let text = format!(
                    "cannot read fail2ban's database: {error}; bans wait until the database \
                                    can be read"
                );
                known.warn("database", &text);
            }
        }
        Ok(())
    }

    /// Says which jails fail2ban has, and which of them take part.
    fn announce(&self, jails: &BTreeSet<Jail>) {
        let mut known = self.memory.lock();
        let shared = known.guard.sharing.filter(jails);
        let names = |jails: &mut dyn Iterator<Item = &Jail>| {
            jails.map(Jail::as_str).collect::<Vec<_>>().join(", ")
        };
        let alone = names(&mut jails.difference(&shared));
        let alone = if alone.is_empty() { alone } else { format!("; not shared: {alone}") };
        say(format_args!("connected to fail2ban; jails: {}{alone}", names(&mut shared.iter())));
        let missing = names(&mut known.guard.sharing.unmatched(jails).into_iter());
        if !missing.is_empty() && !jails.is_empty() {
            known.warn(
                "jails",
                &format!("MQTT_JAILS names jails that fail2ban does not have: {missing}"),
            );
        }
    }

    /// Reads the names that the jails' actions have, when there are other jails, or when a ban came from an action of a
    /// name that nobody knows.
    async fn name_actions(&mut self) -> Result<(), Fail2banError> {
        if self.named == self.jails && !self.memory.lock().action_names.wants_actions() {
            return Ok(());
        }
        let mut pairs = Vec::new();
        for jail in &self.jails {
            match self.client.action_names(jail).await {
                Ok(names) => pairs.extend(names.into_iter().map(|name| (name, jail.clone()))),
                Err(error) if error.jail().is_some() => {} // it is on its way down
                Err(error) => return Err(error),
            }
        }
        self.named.clone_from(&self.jails);
        let mut known = self.memory.lock();
        known.action_names.set(pairs);
        known.drain_spool();
        Ok(())
    }

    /// Now and then, and not only when there is something to ban: a jail whose `ignoreip` changed, or this
    /// host's network, is looked at whole.
    async fn reconsider(&mut self) -> Result<(), Fail2banError> {
        let shared = self.memory.lock().guard.sharing.filter(&self.jails);
        let waits = |jail| self.ignored.get(jail).is_some_and(IgnoreList::is_incomplete);
        let pause =
            if shared.iter().any(waits) { UNRESOLVED_INTERVAL } else { IGNORELIST_INTERVAL };
        if self.asked.elapsed() < pause {
            return Ok(());
        }
        self.asked = Instant::now();
        for jail in shared {
            match self.ignored(&jail).await {
                Ok(_) => {}
                Err(error) if error.jail().is_some() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn take(&mut self, step: Effect) -> Result<(), Fail2banError> {
        let answer = match step {
            Effect::Persist(changes) => {
                self.memory.lock().save(&changes);
                return Ok(());
            }
            Effect::Observe(jail, of) => return self.look(&jail, of.as_deref()).await,
            Effect::Unban(jail, work) => {
                self.tell("UnBan", &jail, &work);
                self.client.unban(&jail, &addresses(&work)).await?
            }
            Effect::ApplyTombstone(jail, addresses) => {
                self.tell_fleet_unbans(&jail, &addresses);
                self.client.unban(&jail, &addresses).await?
            }
            Effect::Ban(jail, work) => {
                self.tell("Ban", &jail, &work);
                self.client.ban(&jail, &addresses(&work)).await?
            }
            Effect::Renew(jail, addresses) => self.client.ban(&jail, &addresses).await?,
            Effect::LogRefused(jail, Target { address, attributed_to: host }, because) => {
                let host = named(host.as_ref());
                let text = format!("rejected ban of {address} in {jail} from {host}: {because}");
                self.memory.lock().record_rejection_of(host, because.reject_reason(), &text);
                0
            }
            Effect::NoSuchJail(jail, Target { address, attributed_to: host }) => {
                let mut known = self.memory.lock();
                known.refused.count(RejectReason::UnknownJail);
                let host = named(host.as_ref());
                known.inbound.say(host, || journal::no_such_jail(&jail, address, host, 0));
                0
            }
            Effect::Continue | Effect::Idle => return Ok(()),
        };
        self.memory.lock().fleet.on_done(answer, now_millis());
        Ok(())
    }

    /// The lines that log watchers know.
    fn tell(&self, what: &str, jail: &Jail, work: &[Target]) {
        let mut known = self.memory.lock();
        for Target { address, attributed_to: host } in work {
            let host = named(host.as_ref());
            let line = || format!("{what} {address} for ipset {jail} reported by {host}");
            known.inbound.say(host, line);
        }
    }

    fn tell_fleet_unbans(&self, jail: &Jail, addresses: &[Address]) {
        let mut known = self.memory.lock();
        for address in addresses {
            let line = || format!("UnBan {address} for ipset {jail} in the whole fleet");
            known.inbound.say("", line);
        }
    }

    /// Looks at a jail: whole, or at a few addresses.
    async fn look(&mut self, jail: &Jail, of: Option<&[Address]>) -> Result<(), Fail2banError> {
        let begun = Instant::now();
        let held = if let Some(addresses) = of {
            let held = self.client.is_banned(jail, addresses).await?;
            held.into_iter().map(|address| (address, None)).collect()
        } else {
            self.client.bans(jail).await?
        };
        let total = if of.is_none() { Some(self.client.total_bans(jail).await?) } else { None };
        let bantime = self.client.bantime(jail).await?;
        let purge_age = self.client.purge_age().await?;
        let ignored = self.ignored(jail).await?;
        let took = i64::try_from(begun.elapsed().as_millis()).unwrap_or_default();
        let look = Observation {
            held,
            total,
            bantime,
            purge_age,
            ignored,
            took,
            ..Observation::default()
        };
        if let Err(error) = self.seen(jail, of, look) {
            let text = format!(
                "cannot read fail2ban's database: {error}; bans wait until the database can \
                                be read"
            );
            self.memory.lock().warn("database", &text);
            sleep(RETRY_DELAY).await;
        }
        Ok(())
    }

    /// Adds to a look what the database has of it, and hands it over.
    fn seen(
        &self,
        jail: &Jail,
        of: Option<&[Address]>,
        mut look: Observation,
    ) -> rusqlite::Result<()> {
        let mut known = self.memory.lock();
        look.rows = match of {
            Some(addresses) => known.database.rows(jail, addresses)?,
            None => known.database.all(jail)?,
        };
        look.database = known.database.created_at();
        // What notify told meanwhile is not an import's any more.
        known.drain_spool();
        known.fleet.on_observation(jail, of, look, now_millis());
        Ok(())
    }

    /// A jail refuses. For a while that may be a server that stops or starts; what comes of a batch
    /// that is refused for longer is given up, and said.
    async fn bear(&mut self, error: Fail2banError) -> Result<(), Fail2banError> {
        let Some(jail) = error.jail() else { return Err(error) };
        let since = *self.trouble.entry(jail.clone()).or_insert_with(Instant::now);
        if since.elapsed() >= REFUSAL_GRACE {
            self.trouble.remove(jail);
            let mut known = self.memory.lock();
            let rows = known.database.all(jail);
            if let Ok(rows) = &rows {
                known.fleet.observe_offline_jail(jail, rows, now_millis());
            }
            known.fleet.abandon_jail(jail, rows.is_ok(), now_millis());
            known.warn("refused", &error.to_string());
        }
        sleep(RETRY_DELAY).await;
        Ok(())
    }

    /// Whom a jail is never to ban, asked anew each time. If that changed, the jail is looked at whole: what
    /// was refused may be bannable now, and what was imported may not.
    async fn ignored(&mut self, jail: &Jail) -> Result<IgnoreList, Fail2banError> {
        let entries = self.client.ignored(jail).await?;
        let (ignored, wrong) = self.exempt.resolve(jail, &entries).await;
        let mut known = self.memory.lock();
        for what in wrong {
            known.warn("ignoreip", &what);
        }
        let before = self.ignored.insert(jail.clone(), ignored.clone());
        if before.is_some_and(|before| before != ignored) {
            known.fleet.invalidate(jail);
        }
        Ok(ignored)
    }

    /// When the server started, in seconds since 1970: it makes its socket then.
    fn started(&self) -> i64 {
        let made = std::fs::metadata(self.socket).and_then(|meta| meta.modified());
        made.map_or(i64::MAX, |at| millis(at).div_euclid(1000))
    }
}

/// Takes up the rows of jails that fail2ban does not have now, and answers its database's version.
fn absent(
    known: &mut DaemonState,
    jails: &BTreeSet<Jail>,
    server: ServerInstance,
) -> rusqlite::Result<Option<i64>> {
    let version = known.database.data_version()?;
    let starting = known.fleet.is_starting(server, now_millis());
    let written = if starting { known.database.jails()? } else { BTreeSet::new() };
    let written = known.guard.sharing.filter(&written);
    for jail in known.fleet.classify_missing_jails(jails, &written, server, now_millis()) {
        let rows = known.database.all(&jail)?;
        known.fleet.observe_offline_jail(&jail, &rows, now_millis());
    }
    Ok(version)
}

fn addresses(work: &[Target]) -> Vec<Address> {
    work.iter().map(|work| work.address).collect()
}

fn named(host: Option<&crate::wire::HostName>) -> &str {
    host.map_or("nobody", crate::wire::HostName::as_str)
}
