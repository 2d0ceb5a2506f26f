//! `f2bmqtt subscribe`: the daemon. One loop serves the broker, the spool, the clock and the service manager. The driver
//! in [`driver`] runs beside it. `link` handles the link to the broker, `inbound` inbound messages; [`status`] writes the
//! status file.

mod ahead;
mod disks;
pub mod driver;
pub mod exporters;
pub(crate) mod former;
mod inbound;
mod instances;
mod link;
pub mod state;
pub mod status;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use self::ahead::AheadHosts;
use self::disks::Disks;
use self::instances::{Duplicates, OwnName};
use self::status::{DaemonStatus, LinkStatus, Reconnects, StatusFile};
use crate::abuseipdb;
use crate::broker::{self, ClientOptions, MqttLink};
use crate::config::{self, Config, Topic, bare};
use crate::daemon::driver::Wakeups;
use crate::daemon::exporters::Exporters;
use crate::daemon::state::{DaemonState, SharedState};
use crate::error::Error;
use crate::fail2ban::database::Database;
use crate::fleet::provenance::Provenance;
use crate::fleet::publisher::RetainedShard;
use crate::fleet::{Controller, PersistedState, Timing};
use crate::guard::{Guard, IgnoreListResolver, RateLimiter};
use crate::model::text::count;
use crate::model::{Fnv1a64, HostName};
use crate::spool::outbox::Outbox;
use crate::spool::owner_lock::{Lock, Role};
use crate::spool::{Spool, owner_lock};
use crate::store::{Identity, Store};
use crate::sys::clock::{is_within, now_millis};
use crate::sys::log::{info, warn};
use crate::sys::paths::Paths;
use crate::sys::private_files::room::full_disks;
use crate::sys::{jitter, runtime};
use crate::wire::{HostState, Presence};

/// How long a publisher may take to release the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the disconnect may take. The daemon must end within two seconds.
const DISCONNECT_TIMEOUT: Duration = Duration::from_millis(800);

/// The interval of the daemon's periodic work and of the watchdog; shorter if systemd's `WatchdogSec` requires it.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the status file shows another machine with this host's name.
const NAMESAKE_DISPLAY_MILLIS: i64 = 70_000;

/// The most messages that are handled in one turn of the loop, and the longest turn, so that the timer is served.
const MAX_EVENTS_PER_TURN: usize = 500;
const MAX_TURN: Duration = Duration::from_millis(50);

/// How often certificates are checked.
const CERTIFICATE_CHECK_MILLIS: i64 = 86_400_000;

/// The most batches of records that are persisted at the end.
const MAX_PERSIST_BATCHES: usize = 100;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Any [`Error`] that prevents the start.
pub fn run(paths: &Paths) -> Result<(), Error> {
    let config = Config::load()?;
    config.warnings.iter().for_each(warn);
    let paths = &paths.located(config.fail2ban_socket.as_deref());
    runtime::run(serve(&config, paths))
}

async fn serve(config: &Config, paths: &Paths) -> Result<(), Error> {
    let lock_path = paths.lock();
    let lock = Lock::take(&lock_path, Role::Daemon, LOCK_TIMEOUT)
        .map_err(Error::file("lock", &lock_path))?;
    let Some(_lock) = lock else {
        return Err(Error::AlreadyRunning(owner_lock::owner(&lock_path).map(|owner| owner.pid)));
    };
    let mut sigterm = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let mut sigint = signal(SignalKind::interrupt()).map_err(Error::Start)?;
    let mut daemon = Daemon::new(config, paths)?;
    let mut watch = daemon.spool.watch()?;
    daemon.memory.lock().reserve_stamps();
    daemon.drain_spool();
    let (memory, wakeups) = (Arc::clone(&daemon.memory), Arc::clone(&daemon.wakeups));
    let exempt = exempt(config).with_peers(daemon.link.peers());
    let mut driver = tokio::spawn(driver::run(memory, Arc::clone(&wakeups), paths.clone(), exempt));
    let clearing = tokio::spawn(former::clear_all(
        config.clone(),
        paths.clone(),
        Arc::clone(&daemon.memory),
        daemon.started_at * 1000,
    ));
    let memory = Arc::clone(&daemon.memory);
    let reporter = tokio::spawn(abuseipdb::service::run_in_daemon(
        paths.clone(),
        Arc::new(move || memory.lock().database.path().map(Path::to_owned)),
        config.https_proxy.clone(),
    ));
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let watchdog = sd_notify::watchdog_enabled();
    let mut tick = interval(watchdog.map_or(TICK_INTERVAL, |limit| TICK_INTERVAL.min(limit / 3)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let is_directory_removed = loop {
        tokio::select! {
            biased; // the timer and the signals come first, even in a flood of messages
            _ = sigterm.recv() => break false,
            _ = sigint.recv() => break false,
            _ = &mut driver => break true,
            _ = tick.tick() => daemon.tick(),
            Some(result) = watch.next() => {
                result.map_err(Error::file("watch", daemon.spool.dir()))?;
                daemon.drain_spool();
            }
            event = daemon.link.event() => daemon.on_link_event(event),
            () = wakeups.outbound.notified() => {}
        }
        if let Some(id) = daemon.former_client_id.take() {
            tokio::spawn(broker::purge(config.clone(), id));
        }
        daemon.flush_outbound();
    };
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    driver.abort();
    reporter.abort();
    clearing.abort();
    daemon.shutdown().await;
    if is_directory_removed {
        return Err(Error::Failed(
            "fail2ban replaced its directory in /run, and this process cannot see the new one; restarting"
                .to_owned(),
        ));
    }
    Ok(())
}

/// The state of the loop.
struct Daemon {
    host: HostName,
    topic: Topic,
    spool: Spool,
    link: MqttLink,
    memory: Arc<SharedState>,
    wakeups: Arc<Wakeups>,
    /// Shards of this host's snapshot that wait for capacity of the link.
    shards: VecDeque<RetainedShard>,
    /// A hash of the machine id.
    machine: String,
    /// The ID of this run of the daemon.
    instance: String,
    own_name: OwnName,
    duplicates: Duplicates,
    /// In seconds since 1970.
    started_at: i64,
    /// A former client ID, whose sessions must be purged.
    former_client_id: Option<String>,
    exporters: Exporters,
    /// Counts the messages of each host.
    limits: RateLimiter,
    ahead_hosts: AheadHosts,
    link_status: LinkStatus,
    reconnects: Reconnects,
    /// In milliseconds since 1970.
    certificates_checked_at: Option<i64>,
    /// When another machine with this name was last seen, in milliseconds since 1970.
    namesake_seen_at: Option<i64>,
    /// Whether the settings are the packaged sample, and no connection succeeded with them.
    is_sample: bool,
    /// The advice about sample settings, until it is printed.
    sample_advice: Option<String>,
    disks: Disks,
    paths: Paths,
    status: StatusFile,
}

impl Daemon {
    fn new(config: &Config, paths: &Paths) -> Result<Self, Error> {
        let spool = paths.spool();
        let database = Database::new(Some(paths.database.clone()));
        let mut store = Store::open(&paths.store())?;
        let mut persisted = store.load()?;
        persisted.clamp(now_millis());
        let (identity, former_client_id) = identify(config, &mut store, &mut persisted)?;
        persisted.pending_detections.retain(|(jail, _), _| config.sharing.includes(jail));
        let fleet = Controller::new(config.node.clone(), Timing::default(), persisted);
        let guard =
            Guard::new(config.node.clone(), config.signing.is_some(), config.sharing.clone());
        let outbox = Outbox::new(spool.clone(), config.topic.clone());
        let (machine, instance) = (machine(), jitter::token().map_err(Error::Start)?);
        // The controller subscribes to snapshots later, one peer at a time.
        let topics = vec![config.topic.events(), config.topic.presences()];
        let started_at = now_millis().div_euclid(1000);
        let exporters = Exporters::new(config, paths, started_at);
        let others = exporters.topic().into_iter().collect();
        let offline = offline_presence(&machine, &instance).encode();
        let will = Some((config.topic.presence(&config.node), offline));
        let id = identity.client_id();
        let broker = config.brokers[0].to_string();
        Ok(Self {
            host: config.node.clone(),
            topic: config.topic.clone(),
            spool,
            link: MqttLink::new(
                config,
                ClientOptions { id, persistent: true, topics, others, will },
            ),
            memory: Arc::new(SharedState::new(fleet, guard, outbox, database, store)),
            wakeups: Arc::new(Wakeups::default()),
            shards: VecDeque::new(),
            own_name: OwnName::new(machine.clone(), instance.clone()),
            duplicates: Duplicates::default(),
            machine,
            instance,
            started_at,
            former_client_id,
            exporters,
            limits: RateLimiter::default(),
            ahead_hosts: AheadHosts::default(),
            link_status: LinkStatus { broker, since: started_at, ..LinkStatus::default() },
            reconnects: Reconnects::default(),
            certificates_checked_at: None,
            namesake_seen_at: None,
            is_sample: config.is_sample(),
            sample_advice: config.is_sample().then(|| sample_advice(&config::path())),
            disks: Disks::default(),
            paths: paths.clone(),
            status: StatusFile::new(paths.status()),
        })
    }

    fn drain_spool(&mut self) {
        self.memory.lock().drain_spool();
        self.wakeups.effects.notify_one();
    }

    /// The periodic work: the watchdog, summaries of suppressed lines, the status file, and checks without an event.
    fn tick(&mut self) {
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        let mut state = self.memory.lock();
        state.flush_suppressed_warnings();
        state.reserve_stamps();
        state.drain_spool();
        for (topic, text) in self.exporters.export(&mut state, now_millis()) {
            self.link.publish_retained(topic, text.into_bytes());
        }
        let now = now_millis();
        if self.disks.is_due(now) {
            let changes = self.disks.update(&full_disks(&self.paths), now);
            changes.warnings.iter().for_each(|text| state.warn("disk", text));
            changes.recoveries.iter().for_each(info);
        }
        let status = self.status_of(&state, now);
        if let Err(error) = self.status.update(status, now) {
            state.warn("status", &error);
        }
        drop(state);
        self.check_certificates(now);
    }

    fn status_of(&self, state: &DaemonState, now: i64) -> DaemonStatus {
        let namesake_seen_at =
            self.namesake_seen_at.filter(|at| is_within(NAMESAKE_DISPLAY_MILLIS, *at, now));
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: self.started_at,
            instance: self.instance.clone(),
            link: LinkStatus {
                reconnects: self.reconnects.within_hour(now),
                ..self.link_status.clone()
            },
            peers: state.fleet.hosts().0,
            rejected: state.rejections.by_name(),
            ahead: self.ahead_hosts.recent(now),
            own_duplicate: namesake_seen_at.map(|at| at.div_euclid(1000)),
            duplicates: self.duplicates.recent(now),
            disks_full: self.disks.full(),
            tables_full: status::tables_full(state.fleet.limits(), now),
        }
    }

    /// Warns about certificates that expire soon: after each connection, and once a day.
    fn check_certificates(&mut self, now: i64) {
        let checked_at = self.certificates_checked_at;
        if checked_at.is_some_and(|at| is_within(CERTIFICATE_CHECK_MILLIS, at, now)) {
            return;
        }
        self.certificates_checked_at = Some(now);
        let certificates = self.exporters.certificates();
        for certificate in certificates.iter().filter(|one| one.ends_soon(now / 1000)) {
            let days = (certificate.ends - now / 1000).div_euclid(86_400);
            let state = match usize::try_from(days) {
                Ok(days) => format!("expires in {}", count(days, "day")),
                Err(_) => "has expired".to_owned(),
            };
            let text = format!("{} {state}; renew the certificate", certificate.title());
            self.warn(certificate.kind, &text);
        }
    }

    fn warn(&self, kind: &'static str, text: &str) {
        self.memory.lock().warn(kind, text);
    }
}

/// The identity of this host at its broker, and the former client ID, if the ID changed. Discards what was learned in
/// another fleet, or by laxer rules.
fn identify(
    config: &Config,
    store: &mut Store,
    persisted: &mut PersistedState,
) -> Result<(Identity, Option<String>), Error> {
    let (former, provenance) = (store.identity()?, Provenance::of(config));
    let doubt = provenance.doubt(former.as_ref().map(|former| &former.provenance));
    let changes = persisted.discard(doubt, &Timing::default(), now_millis().div_euclid(1000));
    let reusable = former.as_ref().filter(|former| provenance.keeps_session(&former.provenance));
    let identity = match reusable {
        Some(identity) => identity.clone().with(provenance),
        None => Identity::draw(provenance)?,
    };
    // If the disk is full, the next start repeats this.
    if former.as_ref() != Some(&identity)
        && let Err(error) = store.adopt(&identity, &changes)
    {
        warn(error);
    }
    for change in changes {
        persisted.apply(change);
    }
    let former_id = former.map(|former| former.client_id());
    let former_id = former_id.filter(|id| *id != identity.client_id());
    Ok((identity, former_id))
}

/// The advice about sample settings.
fn sample_advice(path: &Path) -> String {
    format!(
        "{} still has the sample settings: set MQTT_HOST, MQTT_USER, MQTT_PASSWORD and MQTT_TOPIC there, then: \
         systemctl restart f2bmqttsub",
        path.display()
    )
}

/// The resolver of exempt addresses for these settings (R1).
pub(crate) fn exempt(config: &Config) -> IgnoreListResolver {
    let brokers = config.brokers.iter().map(|broker| bare(&broker.host).to_owned()).collect();
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    IgnoreListResolver::new(config.never_ban.clone(), brokers, own)
}

/// The presence of a daemon that starts.
pub(crate) fn presence(machine: &str, instance: &str) -> Presence {
    let (version, machine) = (env!("CARGO_PKG_VERSION").to_owned(), machine.to_owned());
    Presence { version, machine, instance: instance.to_owned(), ..Presence::default() }
}

/// The presence of a daemon that ends.
fn offline_presence(machine: &str, instance: &str) -> Presence {
    Presence { state: HostState::Offline, ..presence(machine, instance) }
}

/// A hash of the machine id. machine-id(5) forbids publishing the ID itself.
pub(crate) fn machine() -> String {
    let mut hash = Fnv1a64::default();
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let _ = write!(hash, "f2bmqtt {}", id.trim());
    if id.is_empty() { String::new() } else { format!("{:016x}", hash.value()) }
}
