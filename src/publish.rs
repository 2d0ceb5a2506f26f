//! `f2bmqtt publish`, which notify starts if no daemon runs. It publishes the spool, stays a few seconds for the rest
//! of a burst, and exits. Events that it could not publish wait for the next publisher or the daemon.

use std::cell::RefCell;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::setsid;
use tokio::time::timeout;

use crate::broker::{ClientOptions, LinkEvent, MqttLink};
use crate::clock::{now_millis, now_secs};
use crate::config::Config;
use crate::error::Error;
use crate::fail2ban::action_names::{ActionNames, Resolved};
use crate::fail2ban::database::{BipsRow, Database};
use crate::fail2ban::{self, Client as Fail2ban};
use crate::fleet::Record;
use crate::fleet::sequence::Sequencer;
use crate::fleet::tell::LocalEventFilter;
use crate::journal;
use crate::lock::{self, Lock, Role};
use crate::outbox::Outbox;
use crate::paths::Paths;
use crate::runtime;
use crate::store::Store;
use crate::wire::{Ban, Event as BanEvent, Jail, SpooledEvent};

/// The longest run of a publisher.
const MAX_RUNTIME: Duration = Duration::from_secs(30);

/// How long a publisher stays with an empty spool: a jail's second action, or the next ban, often follows.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the publisher reads the spool.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long fail2ban may take to name its jails' actions: it may wait for the action that called notify.
const NAMES_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes the event on standard input, if there is one, and the spool, unless another process holds the lock.
///
/// # Errors
/// Any [`Error`]. It also goes to syslog, because the standard error of this process is discarded.
pub fn run(paths: &Paths) -> Result<(), Error> {
    // fail2ban kills the process group of an action that takes too long: leave that group.
    let _ = setsid();
    let result = work(paths);
    if let Err(error) = &result {
        journal::syslog(format_args!("cannot publish bans: {error}"));
    }
    result
}

fn work(paths: &Paths) -> Result<(), Error> {
    let mut text = Vec::new();
    let _ = std::io::stdin().take(4096).read_to_end(&mut text);
    let spooled = SpooledEvent::parse(&text).ok();
    let config = Config::load()?;
    let paths = &paths.located(config.fail2ban_socket.as_deref());
    runtime::run(publish(&config, paths, spooled))
}

/// Continues the daemon's stamps, and reserves stamps for the longest run of this process. Without a store, the clock
/// provides the stamps. A full disk does not delay a ban.
fn sequencer(store: Option<&mut Store>) -> Sequencer {
    let Some(store) = store else { return Sequencer::new(0) };
    let mut sequencer = Sequencer::new(store.stamp().unwrap_or(0));
    if let Some(stamp) = sequencer.stamp_to_reserve(now_millis())
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

async fn publish(
    config: &Config,
    paths: &Paths,
    spooled: Option<SpooledEvent>,
) -> Result<(), Error> {
    let path = paths.lock();
    // An event from standard input is published in any case, the spool only by the holder of the lock.
    let mut lock = Lock::take(&path, Role::Child, Duration::ZERO).unwrap_or(None);
    if lock.is_none() && spooled.is_none() {
        return Ok(());
    }
    let mut database = Database::new(Some(paths.database.clone()));
    let spool = paths.spool();
    let mut outbox = Outbox::new(spool.clone(), config.topic.clone());
    // The daemon and the publisher share one sequence of stamps, which belongs to the holder of the lock.
    let mut store = lock.as_ref().and_then(|_| Store::open(&paths.store()).ok());
    let mut sequencer = sequencer(store.as_mut());
    let mut filter = LocalEventFilter::new(config.node.clone());
    let names = RefCell::new(ActionNames::default());
    let mut decide = |spooled: &SpooledEvent| {
        let is_same_ban =
            |row: &BipsRow| (spooled.time - 1..=spooled.time + 1).contains(&row.timeofban);
        let mut has_ban = |jail: &Jail| {
            let rows = database.rows(jail, &[spooled.address]).unwrap_or_default();
            rows.get(spooled.address).is_some_and(is_same_ban)
        };
        // A jail whose row has the ban exists; no need to ask fail2ban.
        let exists = has_ban(&spooled.jail);
        let jail = match names.borrow_mut().resolve(&spooled.jail, exists, has_ban) {
            Resolved::Jail(jail) => jail,
            Resolved::Ask => return Err(String::new()),
        };
        let spooled = &SpooledEvent { jail, ..spooled.clone() };
        if !config.sharing.includes(&spooled.jail) {
            return Ok(None);
        }
        let row = || -> rusqlite::Result<_> {
            let rows = database.rows(&spooled.jail, &[spooled.address])?;
            Ok(database.exists().then(|| rows.get(spooled.address).copied()))
        };
        let now = now_millis();
        let event = filter.event(spooled, sequencer.stamp(now), row, Vec::new(), now);
        event.map_err(|error| format!("cannot read fail2ban's database: {error}"))
    };
    // A ban in the second spool is on no disk: keep it for the daemon until the ban is over.
    let is_unwritten = |name: &str, event: &BanEvent| {
        let now = now_secs();
        spool.is_fallback(name) && Ban { start: event.time, bantime: event.bantime }.end() > now
    };
    let from_memory = spooled.is_some();
    let mut unread = spooled;
    let mut link = MqttLink::new(config, client_options(config));
    let (started, mut busy) = (Instant::now(), Instant::now());
    let mut lost = None;
    // A waiting daemon takes over the spool, but cannot take over an event in memory.
    let relieved = || !from_memory && lock::is_wanted(&path);
    while started.elapsed() < MAX_RUNTIME && !relieved() {
        if let Some(spooled) = unread.take()
            && outbox.take("from memory".to_owned(), &spooled, &mut decide).is_err()
        {
            unread = Some(spooled); // fail2ban's database was busy: retry in the next round
        }
        if lock.is_some() {
            let warnings = outbox.scan(&mut decide).map_err(Error::file("read", spool.dir()))?;
            // An empty warning means that the event waits for action names from fail2ban.
            warnings.iter().filter(|text| !text.is_empty()).for_each(journal::syslog);
        }
        if names.borrow().wants_actions() {
            let pairs = timeout(NAMES_TIMEOUT, action_names(&paths.fail2ban)).await;
            // If fail2ban does not answer, the events keep the names of the actions.
            names.borrow_mut().set(pairs.map(Result::unwrap_or_default).unwrap_or_default());
            continue;
        }
        outbox.release_persisted(is_unwritten);
        if !outbox.is_empty() || unread.is_some() {
            busy = Instant::now();
        } else if lock.is_none() || busy.elapsed() > IDLE_TIMEOUT {
            drop(lock.take());
            // Another process may have spooled an event while this one still held the lock.
            if !outbox.has_news() {
                break;
            }
            lock = Lock::take(&path, Role::Child, Duration::ZERO).unwrap_or(None);
            if lock.is_none() {
                break;
            }
        }
        outbox.send(&mut link);
        match timeout(POLL_INTERVAL, link.event()).await {
            Ok(LinkEvent::Published(name)) => drop(outbox.published(&name)),
            Ok(LinkEvent::Lost { broker, why }) => {
                outbox.lost();
                lost = Some(format!("{broker}: {why}"));
            }
            Ok(LinkEvent::Connected(_)) => lost = None,
            Ok(_) | Err(_) => {}
        }
    }
    end(&mut link, &mut outbox).await;
    outbox.release_persisted(is_unwritten);
    if let (false, Some(lost)) = (outbox.is_empty(), lost) {
        let what = if from_memory {
            "the ban is lost"
        } else {
            "bans wait in the spool for the next attempt"
        };
        journal::syslog(format_args!("no connection to the broker {lost}; {what}"));
    }
    Ok(())
}

/// Disconnects, and processes the last acknowledgements.
async fn end(link: &mut MqttLink, outbox: &mut Outbox) {
    if link.close() {
        let _ = timeout(Duration::from_secs(1), async {
            loop {
                match link.event().await {
                    LinkEvent::Lost { .. } => return,
                    LinkEvent::Published(name) => drop(outbox.published(&name)),
                    _ => {}
                }
            }
        })
        .await;
    }
}

/// The action names of all jails, each with its jail.
async fn action_names(socket: &Path) -> Result<Vec<(Jail, Jail)>, fail2ban::Fail2banError> {
    let mut client = Fail2ban::connect(socket).await?;
    let mut pairs = Vec::new();
    for jail in client.jails().await? {
        let names = client.action_names(&jail).await?;
        pairs.extend(names.into_iter().map(|name| (name, jail.clone())));
    }
    Ok(pairs)
}
