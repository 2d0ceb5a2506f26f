//! `f2bmqtt subscribe`: the daemon. One loop listens to the broker, the spool, the clock and the
//! service manager; [`apply`] beside it talks to fail2ban.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt as _;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::abuseipdb;
use crate::apply;
use crate::broker::{Client, Event as LinkEvent, Link};
use crate::config::{Config, Topic};
use crate::error::Error;
use crate::fail2ban::database::Database;
use crate::guard::{self, Verdict};
use crate::journal::{self, say, warn};
use crate::lock::{self, Lock, Role};
use crate::memory::Memory;
use crate::outbox::{Outbox, seconds};
use crate::paths::Paths;
use crate::runtime;
use crate::spool::Spool;
use crate::store::Store;
use crate::wire::{Event, Host};

/// How long a child of notify has to let go of the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How long the good-bye to the broker may take; systemd is promised an end within two seconds.
const GOODBYE: Duration = Duration::from_millis(800);

/// How often it looks around, and tells systemd that it lives; more often if systemd wants it so.
const TICK: Duration = Duration::from_secs(5);

/// The most messages that are looked at before what they ask for is written down.
const AT_ONCE: usize = 500;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Any [`Error`] that does not let it start.
pub fn run(paths: &Paths) -> Result<(), Error> {
    let config = Config::load()?;
    config.warnings.iter().for_each(warn);
    runtime::run(serve(&config, paths))
}

async fn serve(config: &Config, paths: &Paths) -> Result<(), Error> {
    let lock_path = paths.lock();
    let lock = Lock::take(&lock_path, Role::Daemon, LOCK_PATIENCE)
        .map_err(Error::file("lock", &lock_path))?;
    let Some(_lock) = lock else {
        return Err(Error::Running(lock::holder(&lock_path).unwrap_or_default()));
    };
    let (mut term, mut int) = (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
    let mut daemon = Daemon::new(config, paths)?;
    let mut watch = daemon.spool.watch()?;
    daemon.scan();
    let applier = tokio::spawn(apply::run(
        Arc::clone(&daemon.memory),
        Arc::clone(&daemon.wake),
        paths.clone(),
    ));
    let reporter = tokio::spawn(abuseipdb::service::forever(paths.clone()));
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let watchdog = sd_notify::watchdog_enabled();
    let mut tick = interval(watchdog.map_or(TICK, |limit| TICK.min(limit / 3)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = daemon.link.event() => daemon.heard(event),
            Some(changed) = watch.next() => {
                changed.map_err(Error::file("watch", daemon.spool.dir()))?;
                daemon.scan();
            }
            _ = tick.tick() => daemon.tick(),
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
        daemon.outbox.send(&mut daemon.link);
    }
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    applier.abort();
    reporter.abort();
    daemon.end().await;
    Ok(())
}

fn stop(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Error> {
    signal(kind).map_err(Error::Start)
}

/// What the loop works on.
struct Daemon {
    host: Host,
    topic: Topic,
    spool: Spool,
    outbox: Outbox,
    link: Link,
    memory: Arc<Memory>,
    wake: Arc<Notify>,
    tidied: Instant,
}

impl Daemon {
    fn new(config: &Config, paths: &Paths) -> Result<Self, Error> {
        let spool = Spool::new(paths.spool());
        let database = Database::new(Some(paths.database.clone()));
        let memory = Memory::load(Store::open(&paths.store())?, database)?;
        // The scripts publish on any topic below the fleet's; what lies deeper is the fleet's own.
        let topics = vec![config.topic.below("+"), config.topic.below("+/+")];
        let id = format!("f2bmqtt-{}", config.node);
        Ok(Self {
            host: config.node.clone(),
            topic: config.topic.clone(),
            outbox: Outbox::new(spool.clone(), config),
            spool,
            link: Link::new(config, Client { id, persistent: true, topics }),
            memory: Arc::new(memory),
            wake: Arc::new(Notify::new()),
            tidied: Instant::now(),
        })
    }

    /// Takes what happened to the link, and what has happened since.
    fn heard(&mut self, event: LinkEvent) {
        self.take(event);
        for _ in 1..AT_ONCE {
            let Some(event) = self.link.ready() else { break };
            self.take(event);
        }
        self.memory.know().write_down();
        self.wake.notify_one();
    }

    fn take(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Connected(broker) => {
                say(format_args!("connected to the broker {broker} as {}", self.host));
            }
            LinkEvent::Message { topic, payload } => self.message(&topic, &payload),
            LinkEvent::Published(name) => self.outbox.published(&name),
            LinkEvent::SubscribeRefused => {
                let topic = self.topic.below("#");
                let what = format!("the broker refuses the subscription to {topic}");
                self.warn("subscribe", &format!("{what}: check its access rules"));
            }
            LinkEvent::Lost { broker, why } => {
                self.outbox.lost();
                self.warn("broker", &format!("no connection to the broker {broker}: {why}"));
            }
        }
    }

    /// Takes in what the broker considers delivered, until it hangs up.
    async fn end(&mut self) {
        if self.link.close() {
            let _ = timeout(GOODBYE, async {
                loop {
                    match self.link.event().await {
                        LinkEvent::Lost { .. } => return,
                        event => self.take(event),
                    }
                }
            })
            .await;
        }
        self.memory.know().write_down();
    }

    fn message(&mut self, topic: &str, payload: &[u8]) {
        let below = topic.strip_prefix(&self.topic.below("")).unwrap_or(topic);
        // What the fleet's hosts keep there are no events.
        if below.starts_with("state/") || below.starts_with("host/") {
            return;
        }
        let event = match Event::parse(payload) {
            Ok(event) => event,
            Err(why) => {
                let topic: String = topic.escape_debug().take(100).collect();
                return self.warn("message", &format!("no event on the topic {topic}: {why}"));
            }
        };
        say(format_args!(
            "Inbound: {} {} - ipset {} from {} (Rest:={}, Fails:={})",
            event.action, event.address, event.jail, event.host, event.restored, event.failures
        ));
        self.judge(&event);
    }

    fn judge(&mut self, event: &Event) {
        let now = SystemTime::now();
        let mut known = self.memory.know();
        let jails = known.jails.as_ref().map(|(jails, _)| jails);
        match guard::judge(event, &self.host, jails) {
            Verdict::Own => self.outbox.said_before(event.stamp, now),
            Verdict::Restored => {}
            // A jail may just have been added: fail2ban is asked before that is said.
            Verdict::UnknownJail if known.jails_are_fresh() || !event.is_news() => {
                say(journal::no_such_jail(&event.jail, event.address, &event.host, event.restored));
            }
            Verdict::UnknownAction => say(format_args!("Unrecognised action {}", event.action)),
            Verdict::Unbannable => {
                let (address, host) = (event.address, &event.host);
                known.warn(
                    "unbannable",
                    &format!(
                        "refused to ban {address} for {host}: it is no address of another machine"
                    ),
                );
            }
            Verdict::Accept | Verdict::UnknownJail => {
                if !known.fleet.hear(event, seconds(now)) {
                    known.warn("room", "no room for more bans of other hosts: one was not taken");
                }
            }
        }
    }

    /// Reads the spool: first of all, so that what was detected here is known before the words of
    /// others are acted upon.
    fn scan(&mut self) {
        let database = self.memory.know().database.clone();
        match self.outbox.scan(&database, SystemTime::now()) {
            Ok(found) => {
                let mut known = self.memory.know();
                for warning in found.warnings {
                    known.warn("spool", &warning);
                }
                for key in &found.detected {
                    known.fleet.detected(key);
                }
                for key in &found.expired {
                    known.fleet.expired(key);
                }
                known.write_down();
            }
            Err(error) => {
                let dir = self.spool.dir().display().to_string();
                self.warn("spool", &format!("cannot read the spool {dir}: {error}"));
            }
        }
    }

    /// Every few seconds: tells systemd that all is well, and looks where no event told it to.
    fn tick(&mut self) {
        const TIDY: Duration = Duration::from_mins(1);
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        self.scan();
        if self.tidied.elapsed() > TIDY {
            self.tidied = Instant::now();
            self.memory.know().fleet.tidy(seconds(SystemTime::now()));
        }
    }

    fn warn(&self, kind: &'static str, text: &str) {
        self.memory.know().warn(kind, text);
    }
}
