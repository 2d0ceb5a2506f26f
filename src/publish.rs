//! `f2bmqtt publish`: what notify leaves behind where no daemon runs. It publishes the spool, stays
//! a moment for what else a burst brings, and goes. What it could not publish waits for the next.

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
use crate::fleet::tell::Sequencer;
use crate::journal;
use crate::lock::{self, Lock, Role};
use crate::outbox::Outbox;
use crate::paths::Paths;
use crate::runtime;
use crate::store::Store;
use crate::wire::{Ban, Event as BanEvent, Jail, SpooledEvent};

/// The longest that it runs.
const LONGEST: Duration = Duration::from_secs(30);

/// How long it stays when nothing is left: a jail's second action, or the next ban, comes soon.
const STAY: Duration = Duration::from_secs(3);

/// How often it looks into the spool.
const LOOK: Duration = Duration::from_millis(100);

/// How long fail2ban may take to name its jails' actions: it may wait for the action that called notify.
const NAMES_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes the event on standard input, if there is one, and the spool, if nobody else does.
///
/// # Errors
/// Any [`Error`]; it is in the system's log, too, because nobody sees this process.
pub fn run(paths: &Paths) -> Result<(), Error> {
    // Away from fail2ban's process group, which fail2ban kills when an action takes too long.
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
    let told = SpooledEvent::parse(&text).ok();
    let config = Config::load()?;
    let paths = &paths.located(config.fail2ban_socket.as_deref());
    runtime::run(publish(&config, paths, told))
}

/// Reserves stamps for as long as this process may run. A disk that is full is no reason to keep a ban back.
fn reserve(store: &mut Store, teller: &mut Sequencer) {
    if let Some(stamp) = teller.stamp_to_reserve(now_millis())
        && store.save(&[Record::Stamp(stamp)]).is_ok()
    {
        teller.on_reserved(stamp);
    }
}

fn client_options(config: &Config) -> ClientOptions {
    let id = format!("f2bmqtt-{}-{}", config.node, std::process::id());
    ClientOptions { id, persistent: false, topics: Vec::new(), others: Vec::new(), will: None }
}

async fn publish(config: &Config, paths: &Paths, told: Option<SpooledEvent>) -> Result<(), Error> {
    let path = paths.lock();
    // An event from memory goes out in any case; the spool is for whoever holds the lock.
    let mut lock = Lock::take(&path, Role::Child, Duration::ZERO).unwrap_or(None);
    if lock.is_none() && told.is_none() {
        return Ok(());
    }
    let mut database = Database::new(Some(paths.database.clone()));
    let spool = paths.spool();
    let mut outbox = Outbox::new(spool.clone(), config.topic.clone());
    // The daemon's stamps and these are one sequence. Where it cannot be read, or a daemon runs, the clock must do.
    let mut store = lock.as_ref().and_then(|_| Store::open(&paths.store()).ok());
    let stamp = store.as_ref().and_then(|store| store.stamp().ok()).unwrap_or(0);
    let mut teller = Sequencer::new(config.node.clone(), stamp);
    if let Some(store) = &mut store {
        reserve(store, &mut teller);
    }
    let names = RefCell::new(ActionNames::default());
    let mut decide = |told: &SpooledEvent| {
        let begun = |row: &BipsRow| (told.time - 1..=told.time + 1).contains(&row.timeofban);
        let mut has_ban = |jail: &Jail| {
            let rows = database.rows(jail, &[told.address]).unwrap_or_default();
            rows.get(told.address).is_some_and(begun)
        };
        // A jail that has the ban exists: fail2ban need not be asked.
        let exists = has_ban(&told.jail);
        let jail = match names.borrow_mut().resolve(&told.jail, exists, has_ban) {
            Resolved::Jail(jail) => jail,
            Resolved::Ask => return Err(String::new()),
        };
        let told = &SpooledEvent { jail, ..told.clone() };
        if !config.sharing.includes(&told.jail) {
            return Ok(None);
        }
        let row = || -> rusqlite::Result<_> {
            let rows = database.rows(&told.jail, &[told.address])?;
            Ok(database.exists().then(|| rows.get(told.address).copied()))
        };
        let event = teller.event(told, row, Vec::new(), now_millis());
        event.map_err(|error| format!("cannot read fail2ban's database: {error}"))
    };
    // What no disk has is left to the daemon, for as long as it matters.
    let is_unwritten = |name: &str, event: &BanEvent| {
        let now = now_secs();
        spool.is_fallback(name) && Ban { start: event.time, bantime: event.bantime }.end() > now
    };
    let from_memory = told.is_some();
    let mut unread = told;
    let mut link = MqttLink::new(config, client_options(config));
    let (started, mut busy) = (Instant::now(), Instant::now());
    let mut lost = None;
    // A daemon that waits takes over the spool, but not what is only in memory here.
    let relieved = || !from_memory && lock::is_wanted(&path);
    while started.elapsed() < LONGEST && !relieved() {
        if let Some(told) = unread.take()
            && outbox.take("from memory".to_owned(), &told, &mut decide).is_err()
        {
            unread = Some(told); // fail2ban's database was busy: with the next look
        }
        if lock.is_some() {
            let warnings = outbox.scan(&mut decide).map_err(Error::file("read", spool.dir()))?;
            // What only waits for an answer of fail2ban is no fault.
            warnings.iter().filter(|text| !text.is_empty()).for_each(journal::syslog);
        }
        if names.borrow().wants_actions() {
            let pairs = timeout(NAMES_TIMEOUT, action_names(&paths.fail2ban)).await;
            // A fail2ban that does not answer: the names go out as they are.
            names.borrow_mut().set(pairs.map(Result::unwrap_or_default).unwrap_or_default());
            continue;
        }
        outbox.release_persisted(is_unwritten);
        if !outbox.is_empty() || unread.is_some() {
            busy = Instant::now();
        } else if lock.is_none() || busy.elapsed() > STAY {
            drop(lock.take());
            // Whoever came while the lock was still held has left its event to us.
            if !outbox.has_news() {
                break;
            }
            lock = Lock::take(&path, Role::Child, Duration::ZERO).unwrap_or(None);
            if lock.is_none() {
                break;
            }
        }
        outbox.send(&mut link);
        match timeout(LOOK, link.event()).await {
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

/// Takes in what the broker acknowledges until it hangs up.
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

/// The names of the actions of all jails, each with its jail.
async fn action_names(socket: &Path) -> Result<Vec<(Jail, Jail)>, fail2ban::Fail2banError> {
    let mut client = Fail2ban::connect(socket).await?;
    let mut pairs = Vec::new();
    for jail in client.jails().await? {
        let names = client.action_names(&jail).await?;
        pairs.extend(names.into_iter().map(|name| (name, jail.clone())));
    }
    Ok(pairs)
}
