//! Runs the reporter: in the daemon while that runs, or else in a child that the action's command starts. A lock
//! allows one worker at a time on a host.

use std::cell::RefCell;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::{sleep, timeout};

use super::api::Https;
use super::queue::ReportQueue;
use super::redact::text::Private;
use super::report::Report;
use super::worker::{ReporterEnv, Wake, Worker};
use crate::config::{Config, Secret};
use crate::error::Error;
use crate::fail2ban;
use crate::fail2ban::database::Database;
use crate::spool::owner_lock::{Lock, Role};
use crate::spool::{Item as _, Spool, owner_lock};
use crate::sys::clock::now_secs;
use crate::sys::paths::Paths;
use crate::sys::{log, runtime};

/// The delay after a local failure, such as a full disk.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// How often a child checks whether a daemon has started, and a daemon whether a child has ended.
const LOCK_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How often the daemon's worker wakes up while idle: the administrator may have set a key.
const IDLE_POLL_INTERVAL: Duration = Duration::from_secs(30);

/// A child runs for reports that are due within this time: the second report of an address is due 15 minutes after
/// the first. Reports that are due later wait for the next call of the action, or the daemon.
const CHILD_LIFETIME_SECS: i64 = 20 * 60;

/// Runs the child that sends reports while no daemon runs. Its standard input has a report that could not be
/// queued, if any.
///
/// # Errors
/// Any [`Error`]; it is in the journal, too, because this process has no terminal.
pub fn run_child(paths: &Paths) -> Result<(), Error> {
    let mut text = Vec::new();
    let _ = std::io::stdin().take(Report::MAX_BYTES).read_to_end(&mut text);
    let unqueued = Report::parse(&text);
    // Reports need no broker, so invalid settings count as missing.
    let (socket, proxy) =
        Config::load().map_or((None, None), |config| (config.fail2ban_socket, config.https_proxy));
    let paths = &paths.located(socket.as_deref());
    let result = runtime::run(async {
        match unqueued {
            Ok(report) => report_from_memory(paths, proxy, report).await,
            Err(_) => run_until_idle(paths, proxy).await,
        }
    });
    if let Err(error) = &result {
        log::syslog(format_args!("cannot report to AbuseIPDB: {error}"));
    }
    result
}

/// Returns the path of fail2ban's database.
pub type FindDatabase = Arc<dyn Fn() -> Option<PathBuf> + Send + Sync>;

/// Sends reports while the daemon runs, which knows the path of fail2ban's database.
pub async fn run_in_daemon(paths: Paths, database: FindDatabase, proxy: Option<Secret>) {
    let assets =
        Assets { paths: &paths, database: &database, proxy: proxy.as_ref(), warn: journal_warn };
    loop {
        match Lock::take(&paths.report_lock(), Role::OneShot, Duration::ZERO) {
            Ok(Some(_lock)) => {
                let Err(error) = work(assets, IDLE_POLL_INTERVAL, |_| true).await else {
                    continue;
                };
                log::warn(format_args!(
                    "the AbuseIPDB reporter failed: {error}; retrying in {} s",
                    RETRY_INTERVAL.as_secs()
                ));
                sleep(RETRY_INTERVAL).await;
            }
            // A child holds the lock; it ends once it sees the daemon.
            Ok(None) => sleep(LOCK_POLL_INTERVAL).await,
            Err(error) => {
                let path = paths.report_lock();
                log::warn(format_args!("cannot lock {}: {error}", path.display()));
                sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// The parts of the host that a worker uses.
#[derive(Clone, Copy)]
struct Assets<'a> {
    paths: &'a Paths,
    database: &'a FindDatabase,
    proxy: Option<&'a Secret>,
    warn: fn(&str),
}

/// Asks fail2ban for the path of its database. An action must not do that, because fail2ban waits for it; this
/// process may.
async fn find_database(paths: &Paths) -> FindDatabase {
    let path = fail2ban::database_path(&paths.fail2ban).await;
    let path = path.unwrap_or_else(|_| Some(paths.database.clone()));
    Arc::new(move || path.clone())
}

async fn run_until_idle(paths: &Paths, proxy: Option<Secret>) -> Result<(), Error> {
    let database = find_database(paths).await;
    let assets = Assets { paths, database: &database, proxy: proxy.as_ref(), warn: syslog };
    loop {
        let path = paths.report_lock();
        let lock = Lock::take(&path, Role::OneShot, Duration::ZERO);
        let Some(lock) = lock.map_err(Error::file("lock", &path))? else { return Ok(()) };
        work(assets, LOCK_POLL_INTERVAL, |wake| child_continues(wake, paths)).await?;
        drop(lock);
        // A call that found the lock still held has started no child for its report.
        let remaining = Spool::<Report>::new(paths.reports()).list().unwrap_or_default();
        if remaining.is_empty() || is_daemon_running(paths) {
            return Ok(());
        }
    }
}

/// Whether a child waits for its worker's next step.
fn child_continues(wake: Wake, paths: &Paths) -> bool {
    let is_soon = match wake {
        Wake::Now => true,
        Wake::At(time) => time <= now_secs() + CHILD_LIFETIME_SECS,
        Wake::OnReport => false,
    };
    is_soon && !is_daemon_running(paths)
}

/// Sends one report without a queue, because the disk cannot be written.
async fn report_from_memory(
    paths: &Paths,
    proxy: Option<Secret>,
    report: Report,
) -> Result<(), Error> {
    let address = report.address;
    let mut queue = ReportQueue::in_memory()?;
    queue.add(vec![("from memory".to_owned(), report)])?;
    let empty_inbox = Spool::new(paths.state.join("none"));
    let database = find_database(paths).await;
    let assets = Assets { paths, database: &database, proxy: proxy.as_ref(), warn: syslog };
    let mut worker = make_worker(assets, empty_inbox, queue)?;
    let end = now_secs() + CHILD_LIFETIME_SECS;
    loop {
        match worker.step().await? {
            Wake::Now if now_secs() < end => {}
            Wake::At(time) if time < end => sleep(time_until(time)).await,
            Wake::Now | Wake::At(_) => {
                log::syslog(format_args!(
                    "lost the report of {address} to AbuseIPDB: neither queued nor sent within {} minutes",
                    CHILD_LIFETIME_SECS / 60
                ));
                return Ok(());
            }
            Wake::OnReport => return Ok(()),
        }
    }
}

/// Runs a worker while `continues` allows it, with a step at least every `poll_interval`.
async fn work(
    assets: Assets<'_>,
    poll_interval: Duration,
    continues: impl Fn(Wake) -> bool,
) -> Result<(), Error> {
    let inbox = Spool::new(assets.paths.reports());
    let mut new_reports = inbox.watch()?;
    let mut worker = make_worker(assets, inbox, ReportQueue::open(&assets.paths.report_queue())?)?;
    loop {
        let wake = worker.step().await?;
        if !continues(wake) {
            return Ok(());
        }
        let pause = match wake {
            Wake::Now => continue,
            Wake::At(time) => time_until(time),
            Wake::OnReport => Duration::MAX,
        };
        worker.release();
        let _ = timeout(pause.min(poll_interval), new_reports.next()).await;
    }
}

fn journal_warn(text: &str) {
    log::warn(text);
}

/// Warnings of a child go to the journal, because its standard error goes nowhere.
fn syslog(text: &str) {
    log::syslog(text);
}

fn make_worker(
    assets: Assets<'_>,
    inbox: Spool<Report>,
    queue: ReportQueue,
) -> Result<Worker<Https>, Error> {
    let find_path = Arc::clone(assets.database);
    let database = RefCell::new(Database::new(None));
    let env = ReporterEnv {
        private: Box::new(Private::of_this_host),
        clock: Box::new(now_secs),
        log_lines: Box::new(move |report| {
            let mut database = database.borrow_mut();
            // fail2ban may have been configured to use another database.
            database.set_path(find_path());
            database.log_lines(report.address, report.time)
        }),
        warn: assets.warn,
    };
    Worker::new(inbox, queue, &assets.paths.api_key, Https::with_proxy(assets.proxy.cloned()), env)
}

fn is_daemon_running(paths: &Paths) -> bool {
    owner_lock::owner(&paths.lock()).is_some_and(|owner| owner.role == Role::Daemon)
}

fn time_until(time: i64) -> Duration {
    Duration::from_secs(u64::try_from(time.saturating_sub(now_secs())).unwrap_or(0))
}
