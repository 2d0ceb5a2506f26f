//! Reads the state of this host without the broker: its service, its fail2ban, its queues.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::timeout;

use crate::abuseipdb::queue_status::QueueStatus;
use crate::abuseipdb::report::Report;
use crate::config::Config;
use crate::daemon;
use crate::fail2ban::Client;
use crate::guard::ignorelist::IgnoreReason;
use crate::model::{Address, HostName, Jail};
use crate::spool::owner_lock::Role;
use crate::spool::{Spool, owner_lock};
use crate::store::reader;
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
    query: impl Future<Output = Result<T, crate::error::Fail2banError>>,
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
        decision.imported = reader::imported(&paths.store(), address).unwrap_or_default();
        decision.lifted = reader::overridden(&paths.store(), address).unwrap_or_default();
        Ok(decision)
    }
}

/// All imported addresses, and the last 1,000 addresses in fail2ban's database.
#[must_use]
pub fn read_addresses(paths: &Paths) -> BTreeSet<Address> {
    const LAST_BANNED_QUERY: &str =
        "SELECT DISTINCT ip FROM bips ORDER BY timeofban DESC LIMIT 1000";
    let mut addresses = reader::imported_addresses(&paths.store()).unwrap_or_default();
    addresses
        .extend(reader::select_addresses(&paths.database, LAST_BANNED_QUERY).unwrap_or_default());
    addresses
}
