//! Reads the state of this host without the broker: its service, its fail2ban, its queues.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags};
use tokio::time::timeout;

use crate::abuseipdb::queue_status::QueueStatus;
use crate::abuseipdb::report::Report;
use crate::config::Config;
use crate::daemon;
use crate::fail2ban::Client;
use crate::guard::ignorelist::IgnoreReason;
use crate::model::{Address, HostName, Jail};
use crate::spool::Spool;
use crate::spool::owner_lock;
use crate::spool::owner_lock::Role;
use crate::store::decode_sources;
use crate::sys::paths::Paths;
use crate::sys::private_files::room::{FullDisk, full_disks};

/// How long a command waits for fail2ban. A fail2ban that makes many bans is busy for seconds, and then counts as busy.
const QUERY_TIMEOUT: Duration = Duration::from_millis(700);

/// The service on this host, and its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalService {
    /// The daemon's process, if it runs.
    pub pid: Option<i32>,
    /// When the daemon was started, in seconds since 1970.
    pub since: Option<i64>,
    /// The number of unpublished events.
    pub events: usize,
    /// Unsent reports, and the calls that AbuseIPDB still accepts today.
    pub reports: QueueStatus,
    /// Full file systems.
    pub disks_full: Vec<FullDisk>,
}

impl LocalService {
    /// Reads the lock, the spools and the queues.
    #[must_use]
    pub fn read(paths: &Paths) -> Self {
        let daemon = owner_lock::owner(&paths.lock()).filter(|owner| owner.role == Role::Daemon);
        let pid = daemon.map(|owner| owner.pid);
        let since = pid.and_then(|pid| start_time(&PathBuf::from(format!("/proc/{pid}"))));
        let inbox = Spool::<Report>::new(paths.reports()).list().unwrap_or_default().len();
        let mut reports = QueueStatus::of(&paths.report_queue()).unwrap_or_default();
        reports.waiting += inbox;
        let events = paths.spool().list().unwrap_or_default().len();
        Self { pid, since, events, reports, disks_full: full_disks(paths) }
    }
}

fn start_time(process: &Path) -> Option<i64> {
    let at = std::fs::metadata(process).ok()?.modified().ok()?;
    i64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}

/// The jails of fail2ban on this host.
///
/// # Errors
/// Why fail2ban does not answer.
pub async fn query_jails(paths: &Paths) -> Result<BTreeSet<Jail>, String> {
    let query = async { Client::connect(&paths.fail2ban).await?.jails().await };
    with_timeout(QUERY_TIMEOUT, query).await
}

async fn with_timeout<T>(
    limit: Duration,
    query: impl Future<Output = Result<T, crate::fail2ban::Fail2banError>>,
) -> Result<T, String> {
    match timeout(limit, query).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("fail2ban is busy: no answer within {} s", limit.as_secs_f32())),
    }
}

/// What this host does with one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalDecision {
    /// All jails of fail2ban on this host.
    pub jails: BTreeSet<Jail>,
    /// Jails in which fail2ban bans the address.
    pub banned: BTreeSet<Jail>,
    /// Jails whose ignore list has the address, and why.
    pub exempt: BTreeMap<Jail, IgnoreReason>,
    /// Jails that the settings exclude.
    pub excluded: BTreeSet<Jail>,
    /// Jails in which the daemon imported the ban, with the origins of the claims.
    pub imported: BTreeSet<(Jail, HostName)>,
    /// Jails with an override (R14), and the origins whose bans it suppresses.
    pub lifted: BTreeSet<(Jail, HostName)>,
}

impl LocalDecision {
    /// Asks fail2ban, and reads the daemon's state database.
    ///
    /// # Errors
    /// Why fail2ban does not answer.
    pub async fn query(config: &Config, paths: &Paths, address: Address) -> Result<Self, String> {
        let mut exempt = daemon::exempt(config);
        let query = async {
            let mut client = Client::connect(&paths.fail2ban).await?;
            let mut decision = Self { jails: client.jails().await?, ..Self::default() };
            for jail in decision.jails.clone() {
                if !client.is_banned(&jail, &[address]).await?.is_empty() {
                    decision.banned.insert(jail.clone());
                }
                if !config.sharing.includes(&jail) {
                    decision.excluded.insert(jail.clone());
                }
                let (ignored, _) = exempt.resolve(&jail, &client.ignored(&jail).await?).await;
                decision.exempt.extend(ignored.lookup(address).map(|reason| (jail, reason)));
            }
            Ok(decision)
        };
        let mut decision = with_timeout(2 * QUERY_TIMEOUT, query).await?;
        decision.imported = imported(&paths.store(), address).unwrap_or_default();
        decision.lifted = lifted(&paths.store(), address).unwrap_or_default();
        Ok(decision)
    }
}

/// This host, and the origins of all imports.
#[must_use]
pub fn read_hosts(config: &Config, paths: &Paths) -> BTreeSet<HostName> {
    let mut hosts = origins(&paths.store()).unwrap_or_default();
    hosts.insert(config.node.clone());
    hosts
}

/// All imported addresses, and the last 1,000 addresses in fail2ban's database.
#[must_use]
pub fn read_addresses(paths: &Paths) -> BTreeSet<Address> {
    const IMPORTED_QUERY: &str = "SELECT DISTINCT ip FROM imports";
    const LAST_BANNED_QUERY: &str =
        "SELECT DISTINCT ip FROM bips ORDER BY timeofban DESC LIMIT 1000";
    let mut addresses = select_addresses(&paths.store(), IMPORTED_QUERY).unwrap_or_default();
    addresses.extend(select_addresses(&paths.database, LAST_BANNED_QUERY).unwrap_or_default());
    addresses
}

/// The valid addresses in the first column of a query.
fn select_addresses(database: &Path, query: &str) -> rusqlite::Result<BTreeSet<Address>> {
    let db = open(database)?;
    let mut query = db.prepare(query)?;
    let rows = query.query_map([], |row| row.get::<_, String>(0))?;
    Ok(rows.flatten().filter_map(|ip| Address::new(&ip).ok()).collect())
}

fn origins(store: &Path) -> rusqlite::Result<BTreeSet<HostName>> {
    let db = open(store)?;
    let mut hosts = BTreeSet::new();
    let mut query = db.prepare("SELECT claims FROM imports")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let claims = decode_sources(&row.get::<_, String>(0)?).unwrap_or_default();
        hosts.extend(claims.into_iter().map(|claim| claim.host));
    }
    Ok(hosts)
}

fn open(store: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(store, flags)
}

/// The jails in which an address is imported, with the origins of the claims.
fn imported(store: &Path, address: Address) -> rusqlite::Result<BTreeSet<(Jail, HostName)>> {
    let db = open(store)?;
    let mut query = db.prepare("SELECT jail, claims FROM imports WHERE ip = ?1")?;
    let mut rows = query.query([address.to_string()])?;
    let mut imported = BTreeSet::new();
    while let Some(row) = rows.next()? {
        let Ok(jail) = Jail::new(&row.get::<_, String>(0)?) else { continue };
        let claims = decode_sources(&row.get::<_, String>(1)?).unwrap_or_default();
        imported.extend(claims.into_iter().map(|claim| (jail.clone(), claim.host)));
    }
    Ok(imported)
}

/// The addresses among these that are imports in a jail. None is, if the daemon has never run.
///
/// # Errors
/// Any error of SQLite.
pub fn imports(
    store: &Path,
    jail: &Jail,
    addresses: &BTreeSet<Address>,
) -> rusqlite::Result<BTreeSet<Address>> {
    if !store.exists() {
        return Ok(BTreeSet::new());
    }
    let db = open(store)?;
    let mut query = db.prepare("SELECT 1 FROM imports WHERE jail = ?1 AND ip = ?2")?;
    let mut imports = BTreeSet::new();
    for address in addresses {
        if query.exists((jail.as_str(), address.to_string()))? {
            imports.insert(*address);
        }
    }
    Ok(imports)
}

/// The overrides of an address (R14): jail and origin.
fn lifted(store: &Path, address: Address) -> rusqlite::Result<BTreeSet<(Jail, HostName)>> {
    let db = open(store)?;
    let mut query = db.prepare("SELECT jail, host FROM overrides WHERE ip = ?1")?;
    let rows = query.query_map([address.to_string()], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
    })?;
    let mut lifted = BTreeSet::new();
    for row in rows {
        let (jail, host) = row?;
        lifted.extend(Jail::new(&jail).ok().zip(HostName::new(&host).ok()));
    }
    Ok(lifted)
}
