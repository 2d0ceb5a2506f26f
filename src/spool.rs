//! The outbox directory between fail2ban's actions and whoever publishes: one file an event, written
//! aside and renamed, so that a reader sees whole events only.
//!
//! Nothing is synced to disk: after a power cut fail2ban's database tells what was banned.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::wire::Told;

/// What is left of a write that was cut off is removed after this long.
const ABANDONED: Duration = Duration::from_hours(1);

/// One waiting event: the name of its file. Names sort in the order of the events.
pub type Name = String;

/// The outbox directory.
#[derive(Clone, Debug)]
pub struct Spool {
    dir: PathBuf,
}

impl Spool {
    /// The spool in `dir`, which need not exist yet.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The directory, to be watched.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory, for root alone, if it is not there.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    /// Adds an event.
    ///
    /// # Errors
    /// Whatever the system says; then nothing was added.
    pub fn write(&self, told: &Told, now: SystemTime) -> io::Result<()> {
        let nanos = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let name = format!("{nanos:020}-{:010}", std::process::id());
        let aside = self.dir.join(format!(".{name}"));
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create()?;
                open()
            }
            other => other,
        };
        let written = file?
            .write_all(told.encode().as_bytes())
            .and_then(|()| fs::rename(&aside, self.dir.join(format!("{name}.json"))));
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
        written
    }

    /// The waiting events, oldest first. A directory that is not there is an empty one.
    ///
    /// # Errors
    /// Whatever the system says of the directory.
    pub fn list(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !name.starts_with('.') {
                names.push(name);
            } else if entry.metadata().is_ok_and(|meta| {
                meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ABANDONED))
            }) {
                let _ = fs::remove_file(entry.path());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Reads an event.
    ///
    /// # Errors
    /// Whatever the system says, or [`io::ErrorKind::InvalidData`] where the file is no event.
    pub fn read(&self, name: &str) -> io::Result<Told> {
        let mut text = Vec::new();
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let file =
            OpenOptions::new().read(true).custom_flags(nofollow).open(self.dir.join(name))?;
        file.take(4096).read_to_end(&mut text)?;
        Told::parse(&text)
            .map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what.to_string()))
    }

    /// Takes an event away, once it has been published or is found to be none. Answers whether it
    /// is gone.
    #[must_use]
    pub fn remove(&self, name: &str) -> bool {
        let removed = fs::remove_file(self.dir.join(name));
        removed.map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::wire::{Action, Address, Jail};

    fn told(ip: &str) -> Told {
        Told {
            action: Action::Ban,
            jail: Jail::new("sshd").unwrap(),
            address: Address::new(ip).unwrap(),
            bantime: 600,
            restored: 0,
            failures: 3,
            time: 1,
        }
    }

    #[test]
    fn events_come_out_whole_and_in_order_from_a_directory_for_root_alone() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::new(root.path().join("state/spool"));
        assert_eq!(spool.list().unwrap(), [""; 0]);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        spool.write(&told("192.0.2.2"), at(2000)).unwrap();
        spool.write(&told("192.0.2.1"), at(999)).unwrap();
        let names = spool.list().unwrap();
        let read: Vec<_> = names.iter().map(|name| spool.read(name).unwrap()).collect();
        assert_eq!(read, [told("192.0.2.1"), told("192.0.2.2")]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(spool.dir()), 0o700);
        assert_eq!(mode(&spool.dir().join(&names[0])), 0o600);
        for name in &names {
            assert!(spool.remove(name));
        }
        assert_eq!(spool.list().unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_no_event_is_told_apart_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::new(root.path().to_owned());
        fs::write(root.path().join("1.json"), "{").unwrap();
        assert_eq!(spool.read("1.json").unwrap_err().kind(), io::ErrorKind::InvalidData);
        std::os::unix::fs::symlink("1.json", root.path().join("2.json")).unwrap();
        let followed = spool.read("2.json").unwrap_err();
        assert_eq!(followed.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
    }
}
