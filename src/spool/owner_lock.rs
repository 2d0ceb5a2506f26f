//! The lock on the spool. The process that holds the lock publishes the spool: the daemon, or the publisher that notify
//! starts if no daemon runs. The kernel releases the lock when the process ends. A waiting daemon holds a second lock,
//! `lock.wanted`, because the service's sandbox lets it send no signal to other processes.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys::private_files;

/// The shortest time for which [`Lock::take`] retries: [`is_held`] takes the lock for an instant.
const MIN_TIMEOUT: Duration = Duration::from_millis(200);

/// The pause between two attempts to take the lock.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The kind of process that holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `f2bmqtt subscribe`
    Daemon,
    /// A process that does its work once, such as the publisher that notify starts
    OneShot,
}

impl Role {
    /// The role as the lock file has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Daemon => "subscribe",
            Self::OneShot => "publish",
        }
    }
}

/// A process that holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The role that the process took the lock in.
    pub role: Role,
    /// The process ID.
    pub pid: i32,
}

/// The lock, held until this is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or returns `None` if another process holds the lock. A daemon waits up to `timeout` for a
    /// publisher, which [notices](is_handover_requested) the daemon and ends. A daemon does not wait for another
    /// daemon.
    ///
    /// # Errors
    /// The lock file cannot be used.
    pub fn take(path: &Path, role: Role, timeout: Duration) -> io::Result<Option<Self>> {
        if let Some(dir) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        }
        let mut file = open(path)?;
        let started = Instant::now();
        let mut handover_request = None;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) => {}
            }
            if role == Role::Daemon && handover_request.is_none() {
                let file = open(&handover_path(path))?;
                // If another daemon waits, too, its lock is sufficient.
                let _ = file.try_lock();
                handover_request = Some(file);
            }
            let is_daemon = read(path).is_some_and(|owner| owner.role == Role::Daemon);
            let timeout = if is_daemon { MIN_TIMEOUT } else { timeout.max(MIN_TIMEOUT) };
            if started.elapsed() > timeout {
                return Ok(None);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        file.set_len(0)?;
        writeln!(file, "{} {}", role.as_str(), std::process::id())?;
        Ok(Some(Self { _file: file }))
    }
}

/// Whether some process holds the lock.
#[must_use]
pub fn is_held(path: &Path) -> bool {
    let attempt = File::open(path).map(|file| file.try_lock_shared());
    matches!(attempt, Ok(Err(TryLockError::WouldBlock)))
}

/// The process that holds the lock.
#[must_use]
pub fn owner(path: &Path) -> Option<Owner> {
    read(path).filter(|_| is_held(path))
}

/// The last owner, from the text of the lock file: `subscribe 4711`.
fn read(path: &Path) -> Option<Owner> {
    let text = fs::read_to_string(path).ok()?;
    let (name, pid) = text.trim().split_once(' ')?;
    let role = [Role::Daemon, Role::OneShot].into_iter().find(|role| role.as_str() == name)?;
    Some(Owner { role, pid: pid.parse().ok()? })
}

/// Whether a daemon waits for the lock.
#[must_use]
pub fn is_handover_requested(path: &Path) -> bool {
    is_held(&handover_path(path))
}

fn handover_path(path: &Path) -> PathBuf {
    path.with_extension("wanted")
}

fn open(path: &Path) -> io::Result<File> {
    private_files::options().create(true).truncate(false).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_daemon_does_not_wait_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        for (role, expected) in [(Role::Daemon, false), (Role::OneShot, true)] {
            let held = Lock::take(&path, role, Duration::ZERO).unwrap();
            assert!(held.is_some());
            let (started, timeout) = (Instant::now(), Duration::from_secs(3));
            assert!(Lock::take(&path, Role::Daemon, timeout).unwrap().is_none());
            assert_eq!(started.elapsed() > timeout, expected, "{role:?}");
        }
    }

    #[test]
    fn lock_has_one_holder_whose_end_releases_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/lock");
        assert!(!is_held(&path));
        let lock = Lock::take(&path, Role::Daemon, Duration::ZERO).unwrap().unwrap();
        assert!(is_held(&path));
        let pid = std::process::id().cast_signed();
        assert_eq!(owner(&path), Some(Owner { role: Role::Daemon, pid }));
        assert!(Lock::take(&path, Role::OneShot, Duration::ZERO).unwrap().is_none());
        drop(lock);
        assert!(!is_held(&path) && owner(&path).is_none());
        assert!(Lock::take(&path, Role::OneShot, Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn publisher_sees_a_waiting_daemon_which_takes_over() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let publisher = Lock::take(&path, Role::OneShot, Duration::ZERO).unwrap().unwrap();
        assert!(!is_handover_requested(&path));
        std::thread::scope(|scope| {
            let daemon = scope.spawn(|| Lock::take(&path, Role::Daemon, Duration::from_mins(1)));
            while !is_handover_requested(&path) {
                std::thread::sleep(POLL_INTERVAL);
            }
            drop(publisher);
            assert!(daemon.join().unwrap().unwrap().is_some());
        });
        assert!(!is_handover_requested(&path));
        // The second lock is released, too.
        assert!(Lock::take(&path, Role::OneShot, Duration::ZERO).unwrap().is_some());
    }
}
