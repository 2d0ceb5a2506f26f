//! Who publishes this host's spool: the daemon, or for a moment the child that notify leaves when
//! there is no daemon. Whoever holds the lock does; it ends with its process. A daemon that waits for
//! it says so by another lock: the service may send no signal to a process outside of its sandbox.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::files;

/// A process that only looks whether the lock is held has it for an instant.
const GLANCE: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(20);

/// What the holder does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `f2bmqtt subscribe`
    Daemon,
    /// notify's child
    Child,
}

impl Role {
    /// As it is written into the lock.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Daemon => "subscribe",
            Self::Child => "publish",
        }
    }
}

/// A process that holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What it does.
    pub role: Role,
    /// As the system numbers it.
    pub pid: i32,
}

/// The lock, held until this is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or answers `None` if another process has it. A daemon waits up to `patience`
    /// for a child to go, which [sees](is_wanted) it; another daemon stays.
    ///
    /// # Errors
    /// Whatever the system says of the file.
    pub fn take(path: &Path, role: Role, patience: Duration) -> io::Result<Option<Self>> {
        if let Some(dir) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        }
        let mut file = open(path)?;
        let started = Instant::now();
        let mut asks = None;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) => {}
            }
            if role == Role::Daemon && asks.is_none() {
                let wanted = open(&wanted(path))?;
                // Another daemon that waits has it: then that one asks.
                let _ = wanted.try_lock();
                asks = Some(wanted);
            }
            let stays = read(path).is_some_and(|owner| owner.role == Role::Daemon);
            let patience = if stays { GLANCE } else { patience.max(GLANCE) };
            if started.elapsed() > patience {
                return Ok(None);
            }
            std::thread::sleep(PAUSE);
        }
        file.set_len(0)?;
        writeln!(file, "{} {}", role.as_str(), std::process::id())?;
        Ok(Some(Self { _file: file }))
    }
}

/// Whether some process holds the lock.
#[must_use]
pub fn is_held(path: &Path) -> bool {
    let shared = File::open(path).map(|file| file.try_lock_shared());
    matches!(shared, Ok(Err(TryLockError::WouldBlock)))
}

/// The process that holds the lock.
#[must_use]
pub fn owner(path: &Path) -> Option<Owner> {
    read(path).filter(|_| is_held(path))
}

/// What the last owner wrote: `subscribe 4711`.
fn read(path: &Path) -> Option<Owner> {
    let text = fs::read_to_string(path).ok()?;
    let (name, pid) = text.trim().split_once(' ')?;
    let role = [Role::Daemon, Role::Child].into_iter().find(|role| role.as_str() == name)?;
    Some(Owner { role, pid: pid.parse().ok()? })
}

/// Whether a daemon waits for the lock.
#[must_use]
pub fn is_wanted(path: &Path) -> bool {
    is_held(&wanted(path))
}

fn wanted(path: &Path) -> PathBuf {
    path.with_extension("wanted")
}

fn open(path: &Path) -> io::Result<File> {
    files::options().create(true).truncate(false).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_daemon_does_not_wait_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        for (role, waits) in [(Role::Daemon, false), (Role::Child, true)] {
            let held = Lock::take(&path, role, Duration::ZERO).unwrap();
            assert!(held.is_some());
            let (begun, patience) = (Instant::now(), Duration::from_secs(3));
            assert!(Lock::take(&path, Role::Daemon, patience).unwrap().is_none());
            assert_eq!(begun.elapsed() > patience, waits, "{role:?}");
        }
    }

    #[test]
    fn one_holder_at_a_time_and_its_end_frees_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/lock");
        assert!(!is_held(&path));
        let lock = Lock::take(&path, Role::Daemon, Duration::ZERO).unwrap().unwrap();
        assert!(is_held(&path));
        let pid = std::process::id().cast_signed();
        assert_eq!(owner(&path), Some(Owner { role: Role::Daemon, pid }));
        assert!(Lock::take(&path, Role::Child, Duration::ZERO).unwrap().is_none());
        drop(lock);
        assert!(!is_held(&path) && owner(&path).is_none());
        assert!(Lock::take(&path, Role::Child, Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn a_child_sees_that_a_daemon_waits_and_the_daemon_takes_over() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let child = Lock::take(&path, Role::Child, Duration::ZERO).unwrap().unwrap();
        assert!(!is_wanted(&path));
        std::thread::scope(|scope| {
            let daemon = scope.spawn(|| Lock::take(&path, Role::Daemon, Duration::from_mins(1)));
            while !is_wanted(&path) {
                std::thread::sleep(PAUSE);
            }
            drop(child);
            assert!(daemon.join().unwrap().unwrap().is_some());
        });
        assert!(!is_wanted(&path));
        // Another child is not waited for.
        assert!(Lock::take(&path, Role::Child, Duration::ZERO).unwrap().is_some());
    }
}
