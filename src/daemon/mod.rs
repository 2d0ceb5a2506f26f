//! `f2bmqtt subscribe`: the daemon. One loop serves the broker, the spool, the clock and the service manager. The driver
//! in [`apply`] runs beside it. `inbound` handles inbound messages; [`status`] writes the status file.

mod ahead;
mod disks;
pub(crate) mod former;
mod inbound;
mod instances;
pub mod status;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::ahead::AheadHosts;
use self::disks::Disks;
use self::instances::{Duplicates, OwnName};
use self::status::{DaemonStatus, LinkState, LinkStatus, Reconnects, StatusFile};
use crate::abuseipdb;
use crate::apply::{self, Wakeups};
use crate::broker::{self, ClientOptions, LinkEvent, MqttLink};
use crate::clock::{is_within, now_millis};
use crate::config::{self, Config, Topic, bare};
use crate::error::Error;
use crate::fail2ban::database::Database;
use crate::figures::Exporters;
use crate::files::room::full_disks;
use crate::fleet::provenance::Provenance;
use crate::fleet::snapshot::RetainedShard;
use crate::fleet::{Controller, PersistedState, Timing};
use crate::guard::{Guard, RateLimiter, RejectReason};
use crate::ignored::IgnoreListResolver;
use crate::journal::{say, warn};
use crate::lock::{self, Lock, Role};
use crate::memory::SharedState;
use crate::outbox::Outbox;
use crate::paths::Paths;
use crate::random;
use crate::runtime;
use crate::spool::Spool;
use crate::store::{Identity, Store};
use crate::wire::{Fnv1a64, HostName, HostState, Presence};

/// How long a publisher may take to release the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How long the disconnect may take. The daemon must end within two seconds.
const DISCONNECT_TIMEOUT: Duration = Duration::from_millis(800);

/// The interval of the daemon's periodic work and of the watchdog; shorter if systemd's `WatchdogSec` requires it.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the status file shows another machine with this host's name, in milliseconds.
const NAMESAKE_SHOWN: i64 = 70_000;

/// The warning about a broker with Mosquitto's `max_qos 0`.
const QOS_LOWERED: &str = "the broker grants only QoS 0, so it may lose messages or end the connection at \
                           the first event; allow QoS 1 (mosquitto: max_qos 1 or 2)";

/// The most messages that are handled in one turn of the loop, and the longest turn, so that the timer is served.
const MAX_EVENTS_PER_TURN: usize = 500;
const MAX_TURN: Duration = Duration::from_millis(50);

/// How often certificates are checked, in milliseconds.
const CERTIFICATE_CHECK_INTERVAL: i64 = 86_400_000;

/// The most batches of records that are persisted at the end.
const MAX_STEPS: usize = 100;

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
    let lock = Lock::take(&lock_path, Role::Daemon, LOCK_PATIENCE)
        .map_err(Error::file("lock", &lock_path))?;
    let Some(_lock) = lock else {
        let pid = lock::owner(&lock_path).map(|owner| owner.pid.to_string());
        return Err(Error::Running(pid.unwrap_or_default()));
    };
    let (mut term, mut int) = (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
    let mut daemon = Daemon::new(config, paths)?;
    let mut watch = daemon.spool.watch()?;
    daemon.memory.lock().reserve_stamps();
    daemon.drain_spool();
    let (memory, wakeups) = (Arc::clone(&daemon.memory), Arc::clone(&daemon.wakeups));
    let exempt = exempt(config).with_peers(daemon.link.peers());
    let mut applier = tokio::spawn(apply::run(memory, Arc::clone(&wakeups), paths.clone(), exempt));
    let memory = Arc::clone(&daemon.memory);
    let database = move || memory.lock().database.path().map(Path::to_owned);
    let clears = former::clear_all(
        config.clone(),
        paths.clone(),
        Arc::clone(&daemon.memory),
        daemon.since * 1000,
    );
    let clears = tokio::spawn(clears);
    let reporter = tokio::spawn(abuseipdb::service::run_in_daemon(
        paths.clone(),
        Arc::new(database),
        config.https_proxy.clone(),
    ));
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let watchdog = sd_notify::watchdog_enabled();
    let mut tick = interval(watchdog.map_or(TICK_INTERVAL, |limit| TICK_INTERVAL.min(limit / 3)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let removed = loop {
        tokio::select! {
            biased; // the timer and the signals come first, even in a flood of messages
            _ = term.recv() => break false,
            _ = int.recv() => break false,
            _ = &mut applier => break true,
            _ = tick.tick() => daemon.tick(),
            Some(changed) = watch.next() => {
                changed.map_err(Error::file("watch", daemon.spool.dir()))?;
                daemon.drain_spool();
            }
            event = daemon.link.event() => daemon.on_link_event(event),
            () = wakeups.news.notified() => {}
        }
        if let Some(id) = daemon.former.take() {
            tokio::spawn(broker::purge(config.clone(), id));
        }
        daemon.flush_outbound();
    };
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    applier.abort();
    reporter.abort();
    clears.abort();
    daemon.shutdown().await;
    if removed {
        return Err(Error::Undone(
            "fail2ban replaced its directory in /run, and this process cannot see the new one; restarting"
                .to_owned(),
        ));
    }
    Ok(())
}

fn stop(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Error> {
    signal(kind).map_err(Error::Start)
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
    /// When the daemon started, in seconds since 1970.
    since: i64,
    /// A former client ID, whose sessions must be purged.
    former: Option<String>,
    shown: Exporters,
    /// Counts the messages of each host.
    limits: RateLimiter,
    ahead: AheadHosts,
    link_status: LinkStatus,
    reconnects: Reconnects,
    certificates_checked: Option<i64>,
    /// When another machine with this name was last seen, in milliseconds since 1970.
    namesake: Option<i64>,
    /// Whether the settings are the packaged sample, and no connection succeeded with them.
    is_sample: bool,
    /// The advice about sample settings, until it is printed.
    sample: Option<String>,
    disks: Disks,
    paths: Paths,
    status: StatusFile,
}

impl Daemon {
    fn new(config: &Config, paths: &Paths) -> Result<Self, Error> {
        let spool = paths.spool();
        let database = Database::new(Some(paths.database.clone()));
        let mut store = Store::open(&paths.store())?;
        let mut remembered = store.load()?;
        remembered.clamp(now_millis());
        let (identity, former) = identify(config, &mut store, &mut remembered)?;
        remembered.pending_detections.retain(|(jail, _), _| config.sharing.includes(jail));
        let fleet = Controller::new(config.node.clone(), Timing::default(), remembered);
        let guard =
            Guard::new(config.node.clone(), config.signing.is_some(), config.sharing.clone());
        let outbox = Outbox::new(spool.clone(), config.topic.clone());
        let (machine, instance) = (machine(), random::token().map_err(Error::Start)?);
        // The controller subscribes to snapshots later, one peer at a time.
        let topics = vec![config.topic.events(), config.topic.presences()];
        let since = now_millis().div_euclid(1000);
        let shown = Exporters::new(config, paths, since);
        let others = shown.topic().into_iter().collect();
        let gone = Presence { state: HostState::Offline, ..presence(&machine, &instance) }.encode();
        let will = Some((config.topic.presence(&config.node), gone));
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
            since,
            former,
            shown,
            limits: RateLimiter::default(),
            ahead: AheadHosts::default(),
            link_status: LinkStatus { broker, since, ..LinkStatus::default() },
            reconnects: Reconnects::default(),
            certificates_checked: None,
            namesake: None,
            is_sample: config.is_sample(),
            sample: config.is_sample().then(|| sample_advice(&config::path())),
            disks: Disks::default(),
            paths: paths.clone(),
            status: StatusFile::new(paths.status()),
        })
    }

    /// Handles an event of the link, and further events that are available, for at most [`MAX_TURN`].
    fn on_link_event(&mut self, event: LinkEvent) {
        self.take(event);
        let started = Instant::now();
        for _ in 1..MAX_EVENTS_PER_TURN {
            if started.elapsed() >= MAX_TURN {
                break;
            }
            let Some(event) = self.link.try_event() else { break };
            self.take(event);
        }
        self.wakeups.work.notify_one();
    }

    fn take(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Connected(broker) => {
                let text = format!("connected to the broker {broker} as {}", self.host);
                show_status(&text);
                say(text);
                (self.sample, self.is_sample) = (None, false);
                self.shards.clear();
                self.link_status.turn(LinkState::Up, &broker, now_millis());
                self.reconnects.record(now_millis());
                self.shown.connected();
                self.own_name.connected(&broker, now_millis());
                self.memory.lock().fleet.on_connected(now_millis());
                self.certificates_checked = None;
            }
            LinkEvent::Message(message) => self.on_message(&message),
            LinkEvent::Published(name) => {
                let event = self.memory.lock().outbox.published(&name);
                if let Some((topic, word)) = event.and_then(|event| self.shown.published(&event)) {
                    self.link.publish_qos0(topic, word.into_bytes());
                }
            }
            LinkEvent::Refused(rejected) => {
                self.record_rejection(&rejected);
                self.on_unverified_own_shard(&rejected);
            }
            LinkEvent::SubscribeRefused(topics) => {
                let topics = topics.join(", ");
                let what = format!("the broker rejected the subscription to {topics}");
                self.warn("subscribe", &format!("{what}; check the access rules of the broker"));
            }
            LinkEvent::QosLowered => self.warn("qos", QOS_LOWERED),
            LinkEvent::Lost { broker, why } => {
                self.shown.connected = false;
                self.own_name.lost(now_millis());
                {
                    let mut known = self.memory.lock();
                    known.outbox.lost();
                    known.fleet.on_disconnected();
                }
                if self.link.was_too_large() {
                    self.memory.lock().rejections.count(RejectReason::TooLarge);
                }
                self.link_status.turn(LinkState::Down, &broker, now_millis());
                self.link_status.fail(&why);
                let text = format!("no connection to the broker {broker}: {why}");
                match self.sample.take() {
                    // Once. Later failures print the same line as with other settings.
                    Some(advice) => {
                        warn(&advice);
                        show_status(&advice);
                    }
                    None if !self.is_sample => show_status(&text),
                    None => {}
                }
                self.warn("broker", &text);
            }
        }
    }

    /// Publishes within the capacity of the link: events first, then subscriptions, presence and shards.
    fn flush_outbound(&mut self) {
        let mut known = self.memory.lock();
        let known = &mut *known;
        known.outbox.send(&mut self.link);
        if self.link.capacity() == 0 {
            return;
        }
        if let Some(topics) = known.fleet.next_subscription(now_millis()) {
            let topics: Vec<_> = topics.iter().map(|topic| self.topic.retained(topic)).collect();
            self.link.subscribe(&topics);
        }
        let rejections = &known.rejections;
        let itself = || {
            let rejected = rejections.by_name();
            Presence { since: self.since, rejected, ..presence(&self.machine, &self.instance) }
        };
        if let Some(presence) = known.fleet.presence(itself, now_millis()) {
            let topic = self.topic.presence(&self.host);
            self.link.publish_retained(topic, presence.encode().into_bytes());
        }
        if self.shards.is_empty() {
            self.shards.extend(known.fleet.publications(now_millis()));
        }
        while self.link.capacity() > 0 {
            let Some(RetainedShard { index: number, content: shard }) = self.shards.pop_front()
            else {
                break;
            };
            let topic = self.topic.shard(&self.host, number);
            self.link.publish_retained(
                topic,
                shard.map(|shard| shard.encode().into_bytes()).unwrap_or_default(),
            );
        }
    }

    /// Publishes the offline presence, disconnects, and handles the last acknowledgements.
    async fn shutdown(&mut self) {
        let topic = self.topic.presence(&self.host);
        let gone =
            Presence { state: HostState::Offline, ..presence(&self.machine, &self.instance) };
        self.link.publish_retained(topic, gone.encode().into_bytes());
        if self.link.close() {
            let _ = timeout(DISCONNECT_TIMEOUT, async {
                loop {
                    match self.link.event().await {
                        LinkEvent::Lost { .. } => return,
                        event => self.take(event),
                    }
                }
            })
            .await;
        }
        let mut known = self.memory.lock();
        for _ in 0..MAX_STEPS {
            if !known.save_next() {
                break;
            }
        }
        known.release_stamps();
        self.shown.end();
        self.status.clear();
    }

    fn drain_spool(&mut self) {
        self.memory.lock().drain_spool();
        self.wakeups.work.notify_one();
    }

    /// The periodic work: the watchdog, summaries of suppressed lines, the status file, and checks without an event.
    fn tick(&mut self) {
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        let mut known = self.memory.lock();
        known.flush_suppressed_warnings();
        known.reserve_stamps();
        known.drain_spool();
        for (topic, text) in self.shown.export(&mut known, now_millis()) {
            self.link.publish_retained(topic, text.into_bytes());
        }
        let now = now_millis();
        if self.disks.is_due(now) {
            let changes = self.disks.update(&full_disks(&self.paths), now);
            changes.warnings.iter().for_each(|text| known.warn("disk", text));
            changes.cured.iter().for_each(say);
        }
        let status = DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: self.since,
            instance: self.instance.clone(),
            link: LinkStatus {
                reconnects: self.reconnects.within_hour(now),
                ..self.link_status.clone()
            },
            peers: known.fleet.hosts().0,
            rejected: known.rejections.by_name(),
            ahead: self.ahead.shown(now),
            own_duplicate: self
                .namesake
                .filter(|at| is_within(NAMESAKE_SHOWN, *at, now))
                .map(|at| at.div_euclid(1000)),
            duplicates: self.duplicates.shown(now),
            disks_full: self.disks.shown(),
            tables_full: status::tables_full(known.fleet.limits(), now),
        };
        if let Err(what) = self.status.update(status, now) {
            known.warn("status", &what);
        }
        drop(known);
        self.check_certificates(now);
    }

    /// Warns about certificates that expire soon: after each connection, and once a day.
    fn check_certificates(&mut self, now: i64) {
        let checked = |at: i64| is_within(CERTIFICATE_CHECK_INTERVAL, at, now);
        if self.certificates_checked.is_some_and(checked) {
            return;
        }
        self.certificates_checked = Some(now);
        let soon = self.shown.certificates();
        for one in soon.iter().filter(|one| one.ends_soon(now / 1000)) {
            let days = (one.ends - now / 1000).div_euclid(86_400);
            let when =
                if days < 0 { "has expired".to_owned() } else { format!("expires in {days} days") };
            self.warn(one.kind, &format!("{} {when}; renew the certificate", one.title()));
        }
    }

    fn warn(&self, kind: &'static str, text: &str) {
        self.memory.lock().warn(kind, text);
    }
}

/// Who this host is at its broker, and the client ID that it had before, if that was another. What was
/// learned in another fleet, or by laxer rules, is discarded.
fn identify(
    config: &Config,
    store: &mut Store,
    remembered: &mut PersistedState,
) -> Result<(Identity, Option<String>), Error> {
    let (before, here) = (store.identity()?, Provenance::of(config));
    let doubt = here.doubt(before.as_ref().map(|before| &before.provenance));
    let changes = remembered.discard(doubt, &Timing::default(), now_millis().div_euclid(1000));
    let same = before.as_ref().filter(|before| here.keeps_session(&before.provenance));
    let identity = match same {
        Some(same) => same.clone().with(here),
        None => Identity::draw(here)?,
    };
    // On a full disk the next start does it again.
    if before.as_ref() != Some(&identity)
        && let Err(error) = store.adopt(&identity, &changes)
    {
        warn(error);
    }
    for change in changes {
        remembered.apply(change);
    }
    let former = before.map(|before| before.client_id());
    Ok((identity.clone(), former.filter(|former| *former != identity.client_id())))
}

/// The advice about sample settings.
fn sample_advice(path: &Path) -> String {
    format!(
        "{} still has the sample settings: set MQTT_HOST, MQTT_USER, MQTT_PASSWORD and MQTT_TOPIC there, then: \
         systemctl restart f2bmqttsub",
        path.display()
    )
}

/// Shows a line in `systemctl status`.
fn show_status(text: &str) {
    let _ = sd_notify::notify(&[NotifyState::Status(text)]);
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

/// A hash of the machine id. machine-id(5) forbids publishing the ID itself.
pub(crate) fn machine() -> String {
    let mut hash = Fnv1a64::default();
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let _ = write!(hash, "f2bmqtt {}", id.trim());
    if id.is_empty() { String::new() } else { format!("{:016x}", hash.value()) }
}
