//! The driver: observes fail2ban, and executes the effects of the controller on it, in batches sized by time so
//! that fail2ban stays responsive. While fail2ban is down, effects wait.

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

/// How often the driver asks fail2ban and its database for changes.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How often the driver reads each jail's `ignoreip` while no ban is pending.
const IGNORELIST_INTERVAL: Duration = Duration::from_secs(30);

/// The same while a name in an `ignoreip` is unresolved: imports into that jail wait for the name (R1).
const UNRESOLVED_INTERVAL: Duration = Duration::from_secs(5);

/// A jail that fails for less than this may be starting or stopping.
const JAIL_ERROR_GRACE: Duration = Duration::from_secs(5);
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The most effects that are persisted between two connection attempts.
const MAX_STEPS: usize = 1_000;

/// How the daemon's loop and the driver wake each other.
#[derive(Debug, Default)]
pub struct Wakeups {
    /// The controller may have effects for the driver.
    pub work: Notify,
    /// The controller may have messages to publish.
    pub news: Notify,
}

/// Runs until this process can no longer see fail2ban's directory (see `is_removed`). `exempt` resolves the
/// addresses that no jail may ban.
pub async fn run(
    memory: Arc<SharedState>,
    wakeups: Arc<Wakeups>,
    paths: Paths,
    mut exempt: IgnoreListResolver,
) {
    let mut offline = OfflineReader::default();
    loop {
        let error = match Client::connect(&paths.fail2ban).await {
            Ok(client) => {
                offline = OfflineReader::default();
                Driver::new(client, &memory, &wakeups, &paths.fail2ban, &mut exempt).serve().await
            }
            Err(error) => error,
        };
        {
            let mut known = memory.lock();
            known.fleet.on_failed();
            known
                .warn("fail2ban", &format!("{error}; bans and unbans wait until fail2ban answers"));
        }
        offline.read(&memory);
        wakeups.news.notify_one();
        // Records are persisted even while fail2ban is down (R20).
        save(&memory);
        if is_removed(&paths.fail2ban) {
            return;
        }
        sleep(RETRY_DELAY).await;
    }
}

/// Whether the directory of the socket was removed. The service's sandbox bind-mounts that directory, and keeps
/// showing the removed one after fail2ban created another. Only a restart of the service shows the new one.
fn is_removed(socket: &Path) -> bool {
    socket.parent().is_some_and(|dir| dir.metadata().is_ok_and(|about| about.nlink() == 0))
}

/// Persists records without executing other effects.
fn save(memory: &SharedState) {
    for _ in 0..MAX_STEPS {
        if !memory.lock().save_next() {
            return;
        }
    }
}

/// Reads fail2ban's database while fail2ban is down: its rows count as held until they expire (R7).
#[derive(Debug, Default)]
struct OfflineReader {
    version: Option<i64>,
    read_at: Option<Instant>,
}

impl OfflineReader {
    /// Rows expire without a write, so the database is read again after this even if its version is unchanged.
    const REREAD_INTERVAL: Duration = Duration::from_secs(5);

    fn read(&mut self, memory: &SharedState) {
        let mut known = memory.lock();
        known.fleet.start_cycle(now_millis());
        known.drain_spool();
        // Only fail2ban knows the path of its database. A file at the default path may be stale.
        if !known.database.is_confirmed() {
            return known.fleet.on_fail2ban_down(false);
        }
        let version = known.database.data_version().unwrap_or_default();
        let is_recent =
            self.read_at.is_some_and(|read_at| read_at.elapsed() < Self::REREAD_INTERVAL);
        if !(is_recent && version == self.version) {
            (self.version, self.read_at) = (version, Some(Instant::now()));
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
    wakeups: &'a Wakeups,
    socket: &'a Path,
    jails: BTreeSet<Jail>,
    /// Since when each failing jail has been failing.
    failing_since: BTreeMap<Jail, Instant>,
    exempt: &'a mut IgnoreListResolver,
    /// The exempt addresses of each jail, and when `ignoreip` was last read for all jails.
    ignored: BTreeMap<Jail, IgnoreList>,
    asked: Instant,
    /// The jails whose action names are known.
    named: BTreeSet<Jail>,
}

impl<'a> Driver<'a> {
    fn new(
        client: Client,
        memory: &'a SharedState,
        wakeups: &'a Wakeups,
        socket: &'a Path,
        exempt: &'a mut IgnoreListResolver,
    ) -> Self {
        let (jails, failing_since, ignored) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        let (asked, named) = (Instant::now(), BTreeSet::new());
        Self {
            client,
            memory,
            wakeups,
            socket,
            jails,
            failing_since,
            exempt,
            ignored,
            asked,
            named,
        }
    }

    /// Serves until the connection to fail2ban fails; returns the error.
    async fn serve(&mut self) -> Fail2banError {
        loop {
            if let Err(error) = self.run_cycle().await {
                return error;
            }
        }
    }

    /// Polls fail2ban once, then executes effects until the next poll is due.
    async fn run_cycle(&mut self) -> Result<(), Fail2banError> {
        let started = Instant::now();
        self.check_heartbeat().await?;
        self.read_action_names().await?;
        self.refresh_ignore_lists().await?;
        while started.elapsed() < POLL_INTERVAL {
            let effect = self.memory.lock().fleet.next_effect(now_millis());
            if effect == Effect::Idle {
                self.wakeups.news.notify_one();
                let rest = POLL_INTERVAL.saturating_sub(started.elapsed());
                let _ = timeout(rest, self.wakeups.work.notified()).await;
                self.memory.lock().drain_spool();
            } else if let Err(error) = self.execute(effect).await {
                self.memory.lock().fleet.on_failed();
                self.on_jail_error(error).await?;
                break;
            }
        }
        Ok(())
    }

    /// Detects a restart of fail2ban, new or missing jails, and changes of the database.
    async fn check_heartbeat(&mut self) -> Result<(), Fail2banError> {
        {
            let mut known = self.memory.lock();
            known.fleet.start_cycle(now_millis());
            known.drain_spool();
        }
        let jails = self.client.jails().await?;
        let server = ServerInstance { pid: self.client.pid(), started: self.started() };
        if jails.is_empty() && self.memory.lock().fleet.is_starting(server, now_millis()) {
            sleep(RETRY_DELAY).await; // fail2ban creates its jails after its socket
        } else if self.jails.is_empty() {
            // A starting fail2ban reports its database only once it has jails.
            let path = self.client.database().await?;
            self.memory.lock().database.set_path(path);
        }
        if jails != self.jails {
            self.announce(&jails);
        }
        self.jails.clone_from(&jails);
        let jails = self.memory.lock().guard.sharing.filter(&jails);
        self.failing_since.retain(|_, since| since.elapsed() < 4 * JAIL_ERROR_GRACE);
        let mut known = self.memory.lock();
        if !known.database.is_confirmed() {
            return Ok(()); // a server that has just started has reported nothing
        }
        match absent(&mut known, &jails, server) {
            Ok(data_version) => {
                known.fleet.on_heartbeat(Heartbeat { server, data_version }, jails, now_millis());
            }
            // A busy database is no evidence that bans are gone.
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

    /// Logs which jails fail2ban has, and which of them are shared.
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

    /// Reads the names of the jails' actions if the jails changed, or if an event came from an unknown action.
    async fn read_action_names(&mut self) -> Result<(), Fail2banError> {
        if self.named == self.jails && !self.memory.lock().action_names.wants_actions() {
            return Ok(());
        }
        let mut pairs = Vec::new();
        for jail in &self.jails {
            match self.client.action_names(jail).await {
                Ok(names) => pairs.extend(names.into_iter().map(|name| (name, jail.clone()))),
                Err(error) if error.jail().is_some() => {} // the jail is stopping
                Err(error) => return Err(error),
            }
        }
        self.named.clone_from(&self.jails);
        let mut known = self.memory.lock();
        known.action_names.set(pairs);
        known.drain_spool();
        Ok(())
    }

    /// Reads `ignoreip` periodically. A change of `ignoreip` or of this host's network makes the controller observe
    /// the whole jail, because existing imports may have become exempt.
    async fn refresh_ignore_lists(&mut self) -> Result<(), Fail2banError> {
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

    async fn execute(&mut self, effect: Effect) -> Result<(), Fail2banError> {
        let answer = match effect {
            Effect::Persist(changes) => {
                self.memory.lock().save(&changes);
                return Ok(());
            }
            Effect::Observe(jail, of) => return self.observe(&jail, of.as_deref()).await,
            Effect::Unban(jail, work) => {
                self.log_targets("UnBan", &jail, &work);
                self.client.unban(&jail, &addresses(&work)).await?
            }
            Effect::ApplyTombstone(jail, addresses) => {
                self.log_fleet_unbans(&jail, &addresses);
                self.client.unban(&jail, &addresses).await?
            }
            Effect::Ban(jail, work) => {
                self.log_targets("Ban", &jail, &work);
                self.client.ban(&jail, &addresses(&work)).await?
            }
            Effect::Renew(jail, addresses) => self.client.ban(&jail, &addresses).await?,
            Effect::LogRefused(jail, Target { address, attributed_to: host }, reason) => {
                let host = named(host.as_ref());
                let text = format!("rejected ban of {address} in {jail} from {host}: {reason}");
                self.memory.lock().record_rejection_of(host, reason.reject_reason(), &text);
                0
            }
            Effect::NoSuchJail(jail, Target { address, attributed_to: host }) => {
                let mut known = self.memory.lock();
                known.rejections.count(RejectReason::UnknownJail);
                let host = named(host.as_ref());
                known.inbound.say(host, || journal::no_such_jail(&jail, address, host, 0));
                0
            }
            Effect::Continue | Effect::Idle => return Ok(()),
        };
        self.memory.lock().fleet.on_done(answer, now_millis());
        Ok(())
    }

    /// Prints the scripts' log lines, which log watchers parse.
    fn log_targets(&self, what: &str, jail: &Jail, work: &[Target]) {
        let mut known = self.memory.lock();
        for Target { address, attributed_to: host } in work {
            let host = named(host.as_ref());
            let line = || format!("{what} {address} for ipset {jail} reported by {host}");
            known.inbound.say(host, line);
        }
    }

    fn log_fleet_unbans(&self, jail: &Jail, addresses: &[Address]) {
        let mut known = self.memory.lock();
        for address in addresses {
            let line = || format!("UnBan {address} for ipset {jail} in the whole fleet");
            known.inbound.say("", line);
        }
    }

    /// Observes a jail: all its bans, or only the addresses `of`.
    async fn observe(&mut self, jail: &Jail, of: Option<&[Address]>) -> Result<(), Fail2banError> {
        let started = Instant::now();
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
        let took = i64::try_from(started.elapsed().as_millis()).unwrap_or_default();
        let observation = Observation {
            held,
            total,
            bantime,
            purge_age,
            ignored,
            took,
            ..Observation::default()
        };
        if let Err(error) = self.record_observation(jail, of, observation) {
            let text = format!(
                "cannot read fail2ban's database: {error}; bans wait until the database can \
                                be read"
            );
            self.memory.lock().warn("database", &text);
            sleep(RETRY_DELAY).await;
        }
        Ok(())
    }

    /// Adds the rows of the database to an observation, and passes it to the controller.
    fn record_observation(
        &self,
        jail: &Jail,
        of: Option<&[Address]>,
        mut observation: Observation,
    ) -> rusqlite::Result<()> {
        let mut known = self.memory.lock();
        observation.rows = match of {
            Some(addresses) => known.database.rows(jail, addresses)?,
            None => known.database.all(jail)?,
        };
        observation.database = known.database.created_at();
        // A detection that notify reported since then turns an import into a local ban (R10): process it first.
        known.drain_spool();
        known.fleet.on_observation(jail, of, observation, now_millis());
        Ok(())
    }

    /// Handles an error of one jail. A starting or stopping server causes such errors for a short time; after
    /// [`JAIL_ERROR_GRACE`], the controller abandons the effects of the jail and the driver logs the error.
    async fn on_jail_error(&mut self, error: Fail2banError) -> Result<(), Fail2banError> {
        let Some(jail) = error.jail() else { return Err(error) };
        let since = *self.failing_since.entry(jail.clone()).or_insert_with(Instant::now);
        if since.elapsed() >= JAIL_ERROR_GRACE {
            self.failing_since.remove(jail);
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

    /// Reads the exempt addresses of a jail. After a change, the controller observes the whole jail: a rejected
    /// address may have become bannable, and an imported one exempt.
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

    /// When the server started, in seconds since 1970: the server creates its socket at its start.
    fn started(&self) -> i64 {
        let made = std::fs::metadata(self.socket).and_then(|meta| meta.modified());
        made.map_or(i64::MAX, |at| millis(at).div_euclid(1000))
    }
}

/// Passes the rows of jails that fail2ban currently lacks to the controller (R7, R8); returns the `data_version`
/// of the database.
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
    host.map_or("an unknown host", crate::wire::HostName::as_str)
}
