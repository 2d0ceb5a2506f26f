//! The driver: observes fail2ban, and executes the controller's effects on fail2ban. The driver sizes batches by their
//! duration, so that fail2ban stays responsive. While fail2ban is down, effects wait.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::daemon::state::{DaemonState, SharedState};
use crate::error::Fail2banError;
use crate::fail2ban::Client;
use crate::fail2ban::database::unreadable;
use crate::fleet::effects::{Effect, Target};
use crate::fleet::jails::{Heartbeat, Observation, ServerInstance};
use crate::guard::ignorelist::IgnoreList;
use crate::guard::{IgnoreListResolver, RejectReason};
use crate::model::address_map::AddressMap;
use crate::model::{Address, HostName, Jail};
use crate::sys::clock::{millis, now_millis};
use crate::sys::log;
use crate::sys::log::info;
use crate::sys::paths::Paths;

/// How often the driver asks fail2ban and its database for changes.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How often the driver reads each jail's `ignoreip` while no ban is pending.
const IGNORELIST_INTERVAL: Duration = Duration::from_secs(30);

/// How often the driver reads `ignoreip` while one of its names is unresolved: imports into that jail wait for the name
/// (R1).
const UNRESOLVED_INTERVAL: Duration = Duration::from_secs(5);

/// A jail that fails for less than this may be starting or stopping.
const JAIL_ERROR_GRACE: Duration = Duration::from_secs(5);

/// The pause after an error, before the next request to fail2ban.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The most batches of records that are persisted between two connection attempts.
const MAX_PERSIST_BATCHES: usize = 1_000;

/// How the daemon's loop and the driver wake each other.
#[derive(Debug, Default)]
pub struct Wakeups {
    /// The controller may have effects for the driver.
    pub effects: Notify,
    /// The controller may have messages to publish.
    pub outbound: Notify,
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
            let mut state = memory.lock();
            state.fleet.on_failed();
            state
                .warn("fail2ban", &format!("{error}; bans and unbans wait until fail2ban answers"));
        }
        offline.poll(&memory);
        wakeups.outbound.notify_one();
        // Records are persisted even while fail2ban is down (R20).
        persist_records(&memory);
        if is_removed(&paths.fail2ban) {
            return;
        }
        sleep(RETRY_DELAY).await;
    }
}

/// Whether the directory of the socket was removed. The service's sandbox bind-mounts that directory. After fail2ban
/// creates a new directory, the sandbox still shows the removed one, until the service restarts.
fn is_removed(socket: &Path) -> bool {
    socket.parent().is_some_and(|dir| dir.metadata().is_ok_and(|meta| meta.nlink() == 0))
}

/// Persists records without executing other effects.
fn persist_records(memory: &SharedState) {
    for _ in 0..MAX_PERSIST_BATCHES {
        if !memory.lock().save_next() {
            return;
        }
    }
}

/// Reads fail2ban's database while fail2ban is down: its rows count as held until they expire (R7).
#[derive(Debug, Default)]
struct OfflineReader {
    /// The `data_version` of the database when it was last read.
    version: Option<i64>,
    read_at: Option<Instant>,
}

impl OfflineReader {
    /// Rows expire without a write, so the database is read again after this even if its version is unchanged.
    const REREAD_INTERVAL: Duration = Duration::from_secs(5);

    fn poll(&mut self, memory: &SharedState) {
        let mut state = memory.lock();
        state.fleet.start_cycle(now_millis());
        state.drain_spool();
        // Only fail2ban knows the path of its database. A file at the default path may be stale.
        if !state.database.is_confirmed() {
            return state.fleet.on_fail2ban_down(false);
        }
        let version = state.database.data_version().unwrap_or_default();
        let is_recent =
            self.read_at.is_some_and(|read_at| read_at.elapsed() < Self::REREAD_INTERVAL);
        if !(is_recent && version == self.version) {
            (self.version, self.read_at) = (version, Some(Instant::now()));
            let DaemonState { database, guard, .. } = &mut *state;
            let result = database.jails().and_then(|jails| {
                let shared = jails.into_iter().filter(|jail| guard.sharing.includes(jail));
                shared.map(|jail| Ok((database.all(&jail)?, jail))).collect()
            });
            let rows_by_jail: Vec<(AddressMap<_>, Jail)> = match result {
                Ok(rows_by_jail) => rows_by_jail,
                Err(error) => {
                    return state.warn("database", &unreadable(&error));
                }
            };
            let jails = rows_by_jail.iter().map(|(_, jail)| jail);
            state.fleet.clear_other_jails(jails, now_millis());
            for (rows, jail) in &rows_by_jail {
                state.fleet.observe_offline_jail(jail, rows, now_millis());
            }
        }
        state.fleet.on_fail2ban_down(true);
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
    ignore_lists: BTreeMap<Jail, IgnoreList>,
    ignore_lists_read_at: Instant,
    /// The jails whose action names are known.
    jails_with_action_names: BTreeSet<Jail>,
}

impl<'a> Driver<'a> {
    fn new(
        client: Client,
        memory: &'a SharedState,
        wakeups: &'a Wakeups,
        socket: &'a Path,
        exempt: &'a mut IgnoreListResolver,
    ) -> Self {
        Self {
            client,
            memory,
            wakeups,
            socket,
            jails: BTreeSet::new(),
            failing_since: BTreeMap::new(),
            exempt,
            ignore_lists: BTreeMap::new(),
            ignore_lists_read_at: Instant::now(),
            jails_with_action_names: BTreeSet::new(),
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
                self.wakeups.outbound.notify_one();
                let remaining = POLL_INTERVAL.saturating_sub(started.elapsed());
                let _ = timeout(remaining, self.wakeups.effects.notified()).await;
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
            let mut state = self.memory.lock();
            state.fleet.start_cycle(now_millis());
            state.drain_spool();
        }
        let jails = self.client.jails().await?;
        let server = ServerInstance { pid: self.client.pid(), started: self.server_started_at() };
        if jails.is_empty() && self.memory.lock().fleet.is_starting(server, now_millis()) {
            sleep(RETRY_DELAY).await; // fail2ban creates its jails after its socket
        } else if self.jails.is_empty() {
            // A starting fail2ban reports its database only once it has jails.
            let path = self.client.database().await?;
            self.memory.lock().database.set_path(path);
        }
        if jails != self.jails {
            self.log_jails(&jails);
        }
        self.jails.clone_from(&jails);
        let jails = self.memory.lock().guard.sharing.filter(&jails);
        self.failing_since.retain(|_, since| since.elapsed() < 4 * JAIL_ERROR_GRACE);
        let mut state = self.memory.lock();
        if !state.database.is_confirmed() {
            return Ok(()); // a server that has just started has reported nothing
        }
        match observe_missing_jails(&mut state, &jails, server) {
            Ok(data_version) => {
                state.fleet.on_heartbeat(Heartbeat { server, data_version }, jails, now_millis());
            }
            // A busy database is no evidence that bans are gone.
            Err(error) => {
                state.warn("database", &unreadable(&error));
            }
        }
        Ok(())
    }

    /// Logs which jails fail2ban has, and which of them are shared.
    fn log_jails(&self, jails: &BTreeSet<Jail>) {
        let mut state = self.memory.lock();
        let shared = state.guard.sharing.filter(jails);
        let mut line = format!("connected to fail2ban; jails: {}", join_names(&shared));
        let unshared = join_names(jails.difference(&shared));
        if !unshared.is_empty() {
            line.push_str("; not shared: ");
            line.push_str(&unshared);
        }
        info(line);
        let missing = join_names(state.guard.sharing.unmatched(jails));
        if !missing.is_empty() && !jails.is_empty() {
            let text = format!("MQTT_JAILS names jails that fail2ban does not have: {missing}");
            state.warn("jails", &text);
        }
    }

    /// Reads the names of the jails' actions if the jails changed, or if an event came from an unknown action.
    async fn read_action_names(&mut self) -> Result<(), Fail2banError> {
        if self.jails_with_action_names == self.jails
            && !self.memory.lock().action_names.should_read_actions()
        {
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
        self.jails_with_action_names.clone_from(&self.jails);
        let mut state = self.memory.lock();
        state.action_names.set(pairs);
        state.drain_spool();
        Ok(())
    }

    /// Reads `ignoreip` periodically. A change of `ignoreip` or of this host's network makes the controller observe
    /// the whole jail, because existing imports may have become exempt.
    async fn refresh_ignore_lists(&mut self) -> Result<(), Fail2banError> {
        let shared = self.memory.lock().guard.sharing.filter(&self.jails);
        let mut ignore_lists = shared.iter().filter_map(|jail| self.ignore_lists.get(jail));
        let is_any_unresolved = ignore_lists.any(IgnoreList::is_incomplete);
        let interval = if is_any_unresolved { UNRESOLVED_INTERVAL } else { IGNORELIST_INTERVAL };
        if self.ignore_lists_read_at.elapsed() < interval {
            return Ok(());
        }
        self.ignore_lists_read_at = Instant::now();
        for jail in shared {
            match self.read_ignore_list(&jail).await {
                Ok(_) => {}
                Err(error) if error.jail().is_some() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn execute(&mut self, effect: Effect) -> Result<(), Fail2banError> {
        let changed_bans = match effect {
            Effect::Persist(changes) => {
                self.memory.lock().save(&changes);
                return Ok(());
            }
            Effect::Observe(jail, addresses) => {
                return self.observe(&jail, addresses.as_deref()).await;
            }
            Effect::Unban(jail, targets) => {
                self.log_targets("UnBan", &jail, &targets);
                self.client.unban(&jail, &addresses_of(&targets)).await?
            }
            Effect::ApplyTombstone(jail, addresses) => {
                self.log_fleet_unbans(&jail, &addresses);
                self.client.unban(&jail, &addresses).await?
            }
            Effect::Ban(jail, targets) => {
                self.log_targets("Ban", &jail, &targets);
                self.client.ban(&jail, &addresses_of(&targets)).await?
            }
            Effect::Renew(jail, addresses) => self.client.ban(&jail, &addresses).await?,
            Effect::LogRefused(jail, Target { address, attributed_to: host }, reason) => {
                let host = host_name(host.as_ref());
                let text = format!("rejected ban of {address} in {jail} from {host}: {reason}");
                self.memory.lock().record_rejection_of(host, reason.reject_reason(), &text);
                0
            }
            Effect::NoSuchJail(jail, Target { address, attributed_to: host }) => {
                let mut state = self.memory.lock();
                state.rejections.count(RejectReason::UnknownJail);
                let host = host_name(host.as_ref());
                state.inbound.info(host, || log::no_such_jail(&jail, address, host, 0));
                0
            }
            Effect::Continue | Effect::Idle => return Ok(()),
        };
        self.memory.lock().fleet.on_done(changed_bans, now_millis());
        Ok(())
    }

    /// Prints the scripts' log lines, which log watchers parse.
    fn log_targets(&self, action: &str, jail: &Jail, targets: &[Target]) {
        let mut state = self.memory.lock();
        for Target { address, attributed_to: host } in targets {
            let host = host_name(host.as_ref());
            state
                .inbound
                .info(host, || format!("{action} {address} for ipset {jail} reported by {host}"));
        }
    }

    fn log_fleet_unbans(&self, jail: &Jail, addresses: &[Address]) {
        let mut state = self.memory.lock();
        for address in addresses {
            state
                .inbound
                .info("", || format!("UnBan {address} for ipset {jail} in the whole fleet"));
        }
    }

    /// Observes a jail: the given addresses, or all bans of the jail for `None`.
    async fn observe(
        &mut self,
        jail: &Jail,
        addresses: Option<&[Address]>,
    ) -> Result<(), Fail2banError> {
        let started = Instant::now();
        let (held, total) = if let Some(addresses) = addresses {
            let banned = self.client.is_banned(jail, addresses).await?;
            (banned.into_iter().map(|address| (address, None)).collect(), None)
        } else {
            (self.client.bans(jail).await?, Some(self.client.total_bans(jail).await?))
        };
        let bantime = self.client.bantime(jail).await?;
        let purge_age = self.client.purge_age().await?;
        let ignored = self.read_ignore_list(jail).await?;
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
        if let Err(error) = self.record_observation(jail, addresses, observation) {
            self.memory.lock().warn("database", &unreadable(&error));
            sleep(RETRY_DELAY).await;
        }
        Ok(())
    }

    /// Adds the rows of the database to an observation, and passes it to the controller.
    fn record_observation(
        &self,
        jail: &Jail,
        addresses: Option<&[Address]>,
        mut observation: Observation,
    ) -> rusqlite::Result<()> {
        let mut state = self.memory.lock();
        observation.rows = match addresses {
            Some(addresses) => state.database.rows(jail, addresses)?,
            None => state.database.all(jail)?,
        };
        observation.database = state.database.created_at();
        // A detection that notify reported since then turns an import into a local ban (R10): process it first.
        state.drain_spool();
        state.fleet.on_observation(jail, addresses, observation, now_millis());
        Ok(())
    }

    /// Handles an error of one jail. A starting or stopping server causes such errors for a short time; after
    /// [`JAIL_ERROR_GRACE`], the controller abandons the effects of the jail and the driver logs the error.
    async fn on_jail_error(&mut self, error: Fail2banError) -> Result<(), Fail2banError> {
        let Some(jail) = error.jail() else { return Err(error) };
        let since = *self.failing_since.entry(jail.clone()).or_insert_with(Instant::now);
        if since.elapsed() >= JAIL_ERROR_GRACE {
            self.failing_since.remove(jail);
            let mut state = self.memory.lock();
            let rows = state.database.all(jail);
            if let Ok(rows) = &rows {
                state.fleet.observe_offline_jail(jail, rows, now_millis());
            }
            state.fleet.abandon_jail(jail, rows.is_ok(), now_millis());
            state.warn("rejected", &error.to_string());
        }
        sleep(RETRY_DELAY).await;
        Ok(())
    }

    /// Reads the exempt addresses of a jail. After a change, the controller observes the whole jail: a rejected
    /// address may have become bannable, and an imported one exempt.
    async fn read_ignore_list(&mut self, jail: &Jail) -> Result<IgnoreList, Fail2banError> {
        let entries = self.client.ignored(jail).await?;
        let (ignore_list, warnings) = self.exempt.resolve(jail, &entries).await;
        let mut state = self.memory.lock();
        for warning in warnings {
            state.warn("ignoreip", &warning);
        }
        let former = self.ignore_lists.insert(jail.clone(), ignore_list.clone());
        if former.is_some_and(|former| former != ignore_list) {
            state.fleet.invalidate(jail);
        }
        Ok(ignore_list)
    }

    /// When the server started, in seconds since 1970: the server creates its socket at its start.
    fn server_started_at(&self) -> i64 {
        let created_at = std::fs::metadata(self.socket).and_then(|meta| meta.modified());
        created_at.map_or(i64::MAX, |time| millis(time).div_euclid(1000))
    }
}

/// Passes the rows of jails that fail2ban currently lacks to the controller (R7, R8); returns the `data_version`
/// of the database.
fn observe_missing_jails(
    state: &mut DaemonState,
    jails: &BTreeSet<Jail>,
    server: ServerInstance,
) -> rusqlite::Result<Option<i64>> {
    let version = state.database.data_version()?;
    let is_starting = state.fleet.is_starting(server, now_millis());
    let jails_with_rows = if is_starting { state.database.jails()? } else { BTreeSet::new() };
    let jails_with_rows = state.guard.sharing.filter(&jails_with_rows);
    for jail in state.fleet.classify_missing_jails(jails, &jails_with_rows, server, now_millis()) {
        let rows = state.database.all(&jail)?;
        state.fleet.observe_offline_jail(&jail, &rows, now_millis());
    }
    Ok(version)
}

fn addresses_of(targets: &[Target]) -> Vec<Address> {
    targets.iter().map(|target| target.address).collect()
}

fn join_names<'a>(jails: impl IntoIterator<Item = &'a Jail>) -> String {
    jails.into_iter().map(Jail::as_str).collect::<Vec<_>>().join(", ")
}

fn host_name(host: Option<&HostName>) -> &str {
    host.map_or("an unknown host", HostName::as_str)
}
