//! When the reporter works: in the daemon for as long as that runs, or in a child that a call leaves
//! where no daemon does. One worker at a time on a host.

use std::cell::RefCell;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::{sleep, timeout};

use super::api::Https;
use super::comment::Private;
use super::queue::ReportQueue;
use super::report::Report;
use super::worker::{ReporterEnv, Wake, Worker};
use crate::clock::now_secs;
use crate::config::{Config, Secret};
use crate::error::Error;
use crate::fail2ban;
use crate::fail2ban::database::Database;
use crate::journal;
use crate::lock::{self, Lock, Role};
use crate::paths::Paths;
use crate::runtime;
use crate::spool::{Item as _, Spool};

/// After something failed on this host, such as a full disk.
const AGAIN: Duration = Duration::from_secs(30);

/// How often a child looks for a daemon that came, and a daemon for a child that went.
const LOOK: Duration = Duration::from_secs(2);

/// How often the daemon's worker looks around while it waits: the admin may have written a key.
const LOOK_AROUND: Duration = Duration::from_secs(30);

/// A child stays for what is due within so many seconds: the second report of an address is due 15
/// minutes after the first. What is due later waits for the next call, or the daemon.
const STAY: i64 = 20 * 60;

/// Where no daemon works, the child that a call leaves; `report` on its standard input is one that
/// could not be queued.
///
/// # Errors
/// Any [`Error`]; it is in the system's log, too, because nobody sees this process.
pub fn child(paths: &Paths) -> Result<(), Error> {
    let mut text = Vec::new();
    let _ = std::io::stdin().take(Report::MAX).read_to_end(&mut text);
    let unqueued = Report::parse(&text);
    // Reports need no broker: settings that cannot be used say nothing.
    let (socket, proxy) =
        Config::load().map_or((None, None), |config| (config.fail2ban_socket, config.https_proxy));
    let paths = &paths.located(socket.as_deref());
    let result = runtime::run(async {
        match unqueued {
            Ok(report) => from_memory(paths, proxy, report).await,
            Err(_) => until_idle(paths, proxy).await,
        }
    });
    if let Err(error) = &result {
        journal::syslog(format_args!("cannot report to AbuseIPDB: {error}"));
    }
    result
}

/// Answers where fail2ban's database is.
pub type FindDatabase = Arc<dyn Fn() -> Option<PathBuf> + Send + Sync>;

/// Works for as long as the daemon runs, which knows where fail2ban's database is.
pub async fn forever(paths: Paths, database: FindDatabase, proxy: Option<Secret>) {
    let assets =
        Assets { paths: &paths, database: &database, proxy: proxy.as_ref(), warn: journal_warn };
    loop {
        match Lock::take(&paths.report_lock(), Role::Child, Duration::ZERO) {
            Ok(Some(_lock)) => {
                let Err(error) = work(assets, LOOK_AROUND, |_| true).await else {
                    continue;
                };
                journal::warn(format_args!(
                    "the AbuseIPDB reporter failed: {error}; retrying in {} s",
                    AGAIN.as_secs()
                ));
                sleep(AGAIN).await;
            }
            // A child is at work; it goes when it sees the daemon.
            Ok(None) => sleep(LOOK).await,
            Err(error) => {
                let path = paths.report_lock();
                journal::warn(format_args!("cannot lock {}: {error}", path.display()));
                sleep(AGAIN).await;
            }
        }
    }
}

/// What a worker needs of the host.
#[derive(Clone, Copy)]
struct Assets<'a> {
    paths: &'a Paths,
    database: &'a FindDatabase,
    proxy: Option<&'a Secret>,
    warn: fn(&str),
}

/// Where fail2ban says that its database is. This process is no action of fail2ban's: it may ask.
async fn find_database(paths: &Paths) -> FindDatabase {
    let path = fail2ban::database_path(&paths.fail2ban).await;
    let path = path.unwrap_or_else(|_| Some(paths.database.clone()));
    Arc::new(move || path.clone())
}

async fn until_idle(paths: &Paths, proxy: Option<Secret>) -> Result<(), Error> {
    let database = find_database(paths).await;
    let assets = Assets { paths, database: &database, proxy: proxy.as_ref(), warn: syslog };
    loop {
        let path = paths.report_lock();
        let lock = Lock::take(&path, Role::Child, Duration::ZERO);
        let Some(lock) = lock.map_err(Error::file("lock", &path))? else { return Ok(()) };
        let stays = |wake| {
            !daemon_runs(paths)
                && match wake {
                    Wake::Now => true,
                    Wake::At(time) => time <= now_secs() + STAY,
                    Wake::Called => false,
                }
        };
        work(assets, LOOK, stays).await?;
        drop(lock);
        // Whoever came while the lock was still held has left its report to us.
        let left = Spool::<Report>::new(paths.reports()).list().unwrap_or_default();
        if left.is_empty() || daemon_runs(paths) {
            return Ok(());
        }
    }
}

/// The disk cannot be written: tries with what there is in memory.
async fn from_memory(paths: &Paths, proxy: Option<Secret>, report: Report) -> Result<(), Error> {
    let address = report.address;
    let mut queue = ReportQueue::in_memory()?;
    queue.add(vec![("from memory".to_owned(), report)])?;
    let nowhere = Spool::new(paths.state.join("none"));
    let database = find_database(paths).await;
    let assets = Assets { paths, database: &database, proxy: proxy.as_ref(), warn: syslog };
    let mut worker = worker(assets, nowhere, queue)?;
    let end = now_secs() + STAY;
    loop {
        match worker.step().await? {
            Wake::Now if now_secs() < end => {}
            Wake::At(time) if time < end => sleep(until(time)).await,
            Wake::Now | Wake::At(_) => {
                journal::syslog(format_args!(
                    "lost the report of {address} to AbuseIPDB: neither queued nor sent within {} minutes",
                    STAY / 60
                ));
                return Ok(());
            }
            Wake::Called => return Ok(()),
        }
    }
}

/// Works for as long as it `stays`, and looks around at least this often.
async fn work(
    assets: Assets<'_>,
    look: Duration,
    stays: impl Fn(Wake) -> bool,
) -> Result<(), Error> {
    let inbox = Spool::new(assets.paths.reports());
    let mut came = inbox.watch()?;
    let mut worker = worker(assets, inbox, ReportQueue::open(&assets.paths.report_queue())?)?;
    loop {
        let wake = worker.step().await?;
        if !stays(wake) {
            return Ok(());
        }
        let pause = match wake {
            Wake::Now => continue,
            Wake::At(time) => until(time),
            Wake::Called => Duration::MAX,
        };
        worker.rest();
        let _ = timeout(pause.min(look), came.next()).await;
    }
}

fn journal_warn(text: &str) {
    journal::warn(text);
}

/// Nobody reads a child's standard error.
fn syslog(text: &str) {
    journal::syslog(text);
}

fn worker(
    assets: Assets<'_>,
    inbox: Spool<Report>,
    queue: ReportQueue,
) -> Result<Worker<Https>, Error> {
    let find = Arc::clone(assets.database);
    let database = RefCell::new(Database::new(None));
    let log_lines = move |report: &Report| {
        let mut database = database.borrow_mut();
        database.set_path(find());
        database.log_lines(report.address, report.time)
    };
    let surroundings = ReporterEnv {
        private: Box::new(Private::of_this_host),
        clock: Box::new(now_secs),
        log_lines: Box::new(log_lines),
        warn: assets.warn,
    };
    Worker::new(inbox, queue, &assets.paths.api_key, Https::by(assets.proxy.cloned()), surroundings)
}

fn daemon_runs(paths: &Paths) -> bool {
    lock::owner(&paths.lock()).is_some_and(|owner| owner.role == Role::Daemon)
}

fn until(time: i64) -> Duration {
    Duration::from_secs(u64::try_from(time.saturating_sub(now_secs())).unwrap_or(0))
}
