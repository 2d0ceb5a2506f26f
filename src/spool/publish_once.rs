//! `f2bmqtt publish`, which notify starts if no daemon runs. It publishes the spool, stays a few seconds for the rest
//! of a burst, and exits. Events that it could not publish wait for the next publisher or the daemon.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::setsid;
use tokio::time::timeout;

use crate::broker::{ClientOptions, LinkEvent, MqttLink};
use crate::config::Config;
use crate::error::Error;
use crate::fail2ban::Client as Fail2ban;
use crate::fail2ban::action_names::{ActionNames, Resolved};
use crate::fail2ban::database::{Database, unreadable};
use crate::fleet::Record;
use crate::fleet::local_events::LocalEventFilter;
use crate::fleet::sequence::Sequencer;
use crate::model::Jail;
use crate::spool::outbox::Outbox;
use crate::spool::owner_lock::{Lock, Role};
use crate::spool::{Item as _, Spool, owner_lock};
use crate::store::Store;
use crate::sys::clock::{now_millis, now_secs};
use crate::sys::paths::Paths;
use crate::sys::{log, runtime};
use crate::wire::{Ban, Event, SpooledEvent};

/// The longest run of a publisher.
const MAX_RUNTIME: Duration = Duration::from_secs(30);

/// How long a publisher stays with an empty spool: a jail's second action, or the next ban, often follows.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the publisher reads the spool.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long fail2ban may take to name its jails' actions: it may wait for the action that called notify.
const NAMES_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last acknowledgements may take after the disconnect.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Publishes the event on standard input, if there is one, and the spool, unless another process holds the lock.
///
/// # Errors
/// Any [`Error`]. It also goes to syslog, because the standard error of this process is discarded.
pub fn run(paths: &Paths) -> Result<(), Error> {
    // fail2ban kills the process group of an action that takes too long: leave that group.
    let _ = setsid();
    let result = publish_spool(paths);
    if let Err(error) = &result {
        log::syslog(format_args!("cannot publish bans: {error}"));
    }
    result
}

fn publish_spool(paths: &Paths) -> Result<(), Error> {
    let mut text = Vec::new();
    let _ = std::io::stdin().take(SpooledEvent::MAX_BYTES).read_to_end(&mut text);
    let from_memory = SpooledEvent::parse(&text).ok();
    let config = Config::load()?;
    let paths = &paths.located(config.fail2ban_socket.as_deref());
    runtime::run(publish(&config, paths, from_memory))
}

async fn publish(
    config: &Config,
    paths: &Paths,
    from_memory: Option<SpooledEvent>,
) -> Result<(), Error> {
    // An event from standard input is published in any case, the spool only by the holder of the lock.
    let lock = Lock::take(&paths.lock(), Role::OneShot, Duration::ZERO).unwrap_or(None);
    if lock.is_none() && from_memory.is_none() {
        return Ok(());
    }
    let mut publisher = Publisher::new(config, paths, lock, from_memory);
    publisher.run(&paths.fail2ban).await?;
    publisher.finish().await;
    Ok(())
}

/// Decides which event is published for a spooled one.
struct Classifier<'a> {
    config: &'a Config,
    database: Database,
    action_names: ActionNames,
    sequencer: Sequencer,
    filter: LocalEventFilter,
}

impl Classifier<'_> {
    /// The event to publish, if any. The error is empty while the jails of an action are unknown.
    fn classify(&mut self, spooled: &SpooledEvent) -> Result<Option<Event>, String> {
        let Self { config, database, action_names, sequencer, filter } = self;
        // A jail whose row has the ban exists; no need to ask fail2ban.
        let exists = database.has_ban(&spooled.jail, spooled);
        let resolved =
            action_names.resolve(&spooled.jail, exists, |jail| database.has_ban(jail, spooled));
        let jail = match resolved {
            Resolved::Jail(jail) => jail,
            Resolved::ActionsNeeded => return Err(String::new()),
        };
        if !config.sharing.includes(&jail) {
            return Ok(None);
        }
        let spooled = &SpooledEvent { jail, ..spooled.clone() };
        let (now, row) = (now_millis(), || database.row_of(spooled));
        let event = filter.event(spooled, sequencer.stamp(now), row, Vec::new(), now);
        event.map_err(|error| unreadable(&error))
    }

    /// Reads the actions of all jails. If fail2ban does not answer, the events keep the names of the actions.
    async fn read_action_names(&mut self, socket: &Path) {
        let pairs = timeout(NAMES_TIMEOUT, action_names(socket)).await;
        self.action_names.set(pairs.map(Result::unwrap_or_default).unwrap_or_default());
    }
}

/// The state of a publisher.
struct Publisher<'a> {
    classifier: Classifier<'a>,
    spool: Spool,
    outbox: Outbox,
    link: MqttLink,
    lock_path: PathBuf,
    /// The lock on the spool. Without it, the publisher leaves the spool alone.
    lock: Option<Lock>,
    /// The event from standard input, until it is in the outbox.
    from_memory: Option<SpooledEvent>,
    /// Whether there was an event on standard input. No spool has that event.
    has_unspooled: bool,
    /// The broker and the cause of the last failure, until a connection succeeds.
    link_error: Option<String>,
}

impl<'a> Publisher<'a> {
    fn new(
        config: &'a Config,
        paths: &Paths,
        lock: Option<Lock>,
        from_memory: Option<SpooledEvent>,
    ) -> Self {
        let spool = paths.spool();
        let sequencer = sequencer(paths, lock.is_some());
        Self {
            classifier: Classifier {
                config,
                database: Database::new(Some(paths.database.clone())),
                action_names: ActionNames::default(),
                sequencer,
                filter: LocalEventFilter::new(config.node.clone()),
            },
            outbox: Outbox::new(spool.clone(), config.topic.clone()),
            spool,
            link: MqttLink::new(config, client_options(config)),
            lock_path: paths.lock(),
            lock,
            has_unspooled: from_memory.is_some(),
            from_memory,
            link_error: None,
        }
    }

    /// Publishes until the spool stays empty, a daemon wants the lock, or `MAX_RUNTIME` is over.
    async fn run(&mut self, fail2ban: &Path) -> Result<(), Error> {
        let (started, mut last_busy) = (Instant::now(), Instant::now());
        while started.elapsed() < MAX_RUNTIME && !self.is_handover_requested() {
            self.read_events()?;
            if self.classifier.action_names.should_read_actions() {
                self.classifier.read_action_names(fail2ban).await;
                continue;
            }
            self.release_persisted();
            if !self.outbox.is_empty() || self.from_memory.is_some() {
                last_busy = Instant::now();
            } else if (self.lock.is_none() || last_busy.elapsed() > IDLE_TIMEOUT)
                && !self.renew_lock()
            {
                break;
            }
            self.outbox.send(&mut self.link);
            if let Ok(event) = timeout(POLL_INTERVAL, self.link.event()).await {
                self.on_link_event(event);
            }
        }
        Ok(())
    }

    /// Whether a daemon waits for the lock. A daemon can take over the spool, but not an event in memory.
    fn is_handover_requested(&self) -> bool {
        !self.has_unspooled && owner_lock::is_handover_requested(&self.lock_path)
    }

    /// Moves the event from standard input and the events of the spool to the outbox.
    fn read_events(&mut self) -> Result<(), Error> {
        let Self { classifier, outbox, .. } = self;
        if let Some(spooled) = self.from_memory.take() {
            let name = "from memory".to_owned();
            if outbox.take(name, &spooled, &mut |event| classifier.classify(event)).is_err() {
                self.from_memory = Some(spooled); // fail2ban's database was busy: retry in the next round
            }
        }
        if self.lock.is_some() {
            let warnings = outbox
                .scan(&mut |event| classifier.classify(event))
                .map_err(Error::file("read", self.spool.dir()))?;
            // An empty warning means that the event waits for action names from fail2ban.
            warnings.iter().filter(|text| !text.is_empty()).for_each(log::syslog);
        }
        Ok(())
    }

    /// Removes published bans from the spool. A ban in the second spool is on no disk: keep it for the daemon until the
    /// ban is over.
    fn release_persisted(&mut self) {
        let (spool, now) = (&self.spool, now_secs());
        self.outbox.release_persisted(|name, event| {
            spool.is_fallback(name) && Ban { start: event.time, bantime: event.bantime }.end() > now
        });
    }

    /// Releases the lock, and takes it again if the spool has new events: another process may have spooled an event
    /// while this one held the lock, and started no publisher. Returns whether this process goes on.
    fn renew_lock(&mut self) -> bool {
        drop(self.lock.take());
        if !self.outbox.has_unread() {
            return false;
        }
        self.lock = Lock::take(&self.lock_path, Role::OneShot, Duration::ZERO).unwrap_or(None);
        self.lock.is_some()
    }

    fn on_link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Published(name) => drop(self.outbox.on_published(&name)),
            LinkEvent::Lost { broker, why, .. } => {
                self.outbox.on_lost();
                self.link_error = Some(format!("{broker}: {why}"));
            }
            LinkEvent::Connected(_) => self.link_error = None,
            _ => {}
        }
    }

    /// Disconnects, processes the last acknowledgements, and logs what was not published.
    async fn finish(&mut self) {
        if self.link.close() {
            let _ = timeout(DISCONNECT_TIMEOUT, async {
                loop {
                    match self.link.event().await {
                        LinkEvent::Lost { .. } => return,
                        LinkEvent::Published(name) => drop(self.outbox.on_published(&name)),
                        _ => {}
                    }
                }
            })
            .await;
        }
        self.release_persisted();
        if let (false, Some(error)) = (self.outbox.is_empty(), &self.link_error) {
            let consequence = if self.has_unspooled {
                "dropped the event, which is in no spool"
            } else {
                "events wait in the spool for the next attempt"
            };
            log::syslog(format_args!("no connection to the broker {error}; {consequence}"));
        }
    }
}

/// The daemon and the publisher share one sequence of stamps. Without access to it, the clock provides the stamp.
fn sequencer(paths: &Paths, has_lock: bool) -> Sequencer {
    let mut store = if has_lock { Store::open(&paths.store()).ok() } else { None };
    let stamp = store.as_ref().and_then(|store| store.stamp().ok()).unwrap_or(0);
    let mut sequencer = Sequencer::new(stamp);
    // Reserve stamps for the longest run of this process. A full disk does not delay a ban.
    if let Some(store) = &mut store
        && let Some(stamp) = sequencer.stamp_to_reserve(now_millis())
        && store.save(&[Record::Stamp(stamp)]).is_ok()
    {
        sequencer.on_reserved(stamp);
    }
    sequencer
}

fn client_options(config: &Config) -> ClientOptions {
    let id = format!("f2bmqtt-{}-{}", config.node, std::process::id());
    ClientOptions { id, persistent: false, topics: Vec::new(), others: Vec::new(), will: None }
}

/// The action names of all jails, each with its jail.
async fn action_names(socket: &Path) -> Result<Vec<(Jail, Jail)>, crate::error::Fail2banError> {
    let mut client = Fail2ban::connect(socket).await?;
    let mut pairs = Vec::new();
    for jail in client.jails().await? {
        let names = client.action_names(&jail).await?;
        pairs.extend(names.into_iter().map(|name| (name, jail.clone())));
    }
    Ok(pairs)
}
