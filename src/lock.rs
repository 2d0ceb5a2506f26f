//! Who publishes this host's spool: the daemon, or for a moment the child that notify leaves when
//! there is no daemon. Whoever holds the lock does; it ends with its process.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

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

/// The lock, held until this is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or answers `None` if another process has it. A daemon asks a child to go
    /// and waits up to `patience` for it.
    ///
    /// # Errors
    /// Whatever the system says of the file.
    pub fn take(path: &Path, role: Role, patience: Duration) -> io::Result<Option<Self>> {
        if let Some(dir) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        }
        let mut file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        let started = Instant::now();
        let mut asked = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) => {}
            }
            if started.elapsed() > GLANCE && role == Role::Daemon && !asked {
                asked = true;
                if let Some(child) =
                    holder(path).and_then(|text| child_of(&text)).filter(|child| is_us(*child))
                {
                    let _ = kill_process(child, Signal::TERM);
                }
            }
            if started.elapsed() > patience.max(GLANCE) {
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

/// What the holder wrote of itself: `subscribe 4711`.
#[must_use]
pub fn holder(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn child_of(text: &str) -> Option<Pid> {
    let number: u32 = text.strip_prefix(Role::Child.as_str())?.trim().parse().ok()?;
    Pid::from_raw(number.try_into().ok()?)
}

/// Whether a process runs this same program, and did not get a number that was another's.
fn is_us(process: Pid) -> bool {
    let program = |name: &str| fs::read_link(format!("/proc/{name}/exe")).ok();
    let number = process.as_raw_nonzero().to_string();
    program(&number).is_some_and(|theirs| program("self") == Some(theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_its_end_frees_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/lock");
        assert!(!is_held(&path));
        let lock = Lock::take(&path, Role::Daemon, Duration::ZERO).unwrap().unwrap();
        assert!(is_held(&path));
        assert_eq!(holder(&path).unwrap(), format!("subscribe {}", std::process::id()));
        assert!(Lock::take(&path, Role::Child, Duration::ZERO).unwrap().is_none());
        drop(lock);
        assert!(!is_held(&path));
        assert!(Lock::take(&path, Role::Child, Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn only_a_child_is_asked_to_go() {
        assert_eq!(child_of("publish 4711"), Pid::from_raw(4711));
        for text in ["subscribe 4711", "publish", "publish x", "", "publish -1"] {
            assert_eq!(child_of(text), None, "{text}");
        }
    }
}
