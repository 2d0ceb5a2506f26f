//! A spool: a directory between fail2ban's actions and the process that handles their calls. Each item is one file,
//! written under another name and renamed, so that a reader sees whole items only. One spool has events to publish,
//! another has reports. A spool may have a second directory in memory (`/run`) for the case of a full disk.
//!
//! Files are not synced: after a power failure, fail2ban's database still has the bans.

pub mod manual_bans;
pub mod notify;
pub mod outbox;
pub mod owner_lock;
pub mod publish_once;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{Stream, StreamExt as _};
use inotify::{Inotify, WatchMask};

use crate::error::Error;
use crate::sys::paths::Paths;
use crate::sys::private_files;
use crate::wire::SpooledEvent;

/// An item of a spool.
pub trait Item: Sized {
    /// The largest encoded item, in bytes.
    const MAX_BYTES: u64;

    /// The text of the item's file.
    fn encode(&self) -> String;

    /// Parses an encoded item.
    ///
    /// # Errors
    /// The fault of the text.
    fn parse(text: &[u8]) -> Result<Self, String>;
}

impl Item for SpooledEvent {
    const MAX_BYTES: u64 = 4096;

    fn encode(&self) -> String {
        self.encode()
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        Self::parse(text).map_err(|fault| fault.to_string())
    }
}

/// The most new items that the stream reports as one.
const MAX_BATCH: usize = 500;

/// A temporary file of an interrupted write is removed after this time.
const TEMPORARY_MAX_AGE: Duration = Duration::from_hours(1);

/// The file name of an item. Names sort by the time of writing.
pub type Name = String;

/// A spool of items of one type.
#[derive(Clone, Debug)]
pub struct Spool<T = SpooledEvent> {
    dir: PathBuf,
    /// The directory to use if `dir` cannot be written.
    fallback: Option<PathBuf>,
    items: PhantomData<T>,
}

/// Where an item was written.
#[derive(Debug)]
pub enum Written {
    /// In the first directory.
    Primary,
    /// In the second directory, because of this error.
    Fallback(io::Error),
}

impl<T: Item> Spool<T> {
    /// The spool in `dir`, which the first write creates.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, fallback: None, items: PhantomData }
    }

    /// Adds a second directory.
    #[must_use]
    pub fn with_fallback(self, dir: PathBuf) -> Self {
        Self { fallback: Some(dir), ..self }
    }

    /// The first directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.dir].into_iter().chain(&self.fallback)
    }

    /// A stream that reports new items, and combines several that arrive together into one report. Creates missing
    /// directories for root only.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn watch(
        &self,
    ) -> Result<impl Stream<Item = io::Result<()>> + Unpin + Send + use<T>, Error> {
        let inotify = Inotify::init().map_err(Error::file("watch", &self.dir))?;
        for dir in self.dirs() {
            private_files::make_dir(dir).map_err(Error::file("create", dir))?;
            let added = inotify.watches().add(dir, WatchMask::MOVED_TO);
            added.map_err(Error::file("watch", dir))?;
        }
        let events =
            inotify.into_event_stream([0; 4096]).map_err(Error::file("watch", &self.dir))?;
        Ok(events
            .ready_chunks(MAX_BATCH)
            .map(|chunk| chunk.into_iter().try_for_each(|event| event.map(drop))))
    }

    /// Adds an item.
    ///
    /// # Errors
    /// The error of the first directory, if no directory could be written.
    pub fn write(&self, item: &T, now: SystemTime) -> io::Result<Written> {
        let nanos = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let name = format!("{nanos:020}-{:010}", std::process::id());
        let text = item.encode();
        let Err(error) = write(&self.dir, &name, &text) else { return Ok(Written::Primary) };
        match &self.fallback {
            Some(dir) if write(dir, &name, &text).is_ok() => Ok(Written::Fallback(error)),
            _ => Err(error),
        }
    }

    /// The items of both directories, oldest first. A missing directory counts as empty.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for dir in self.dirs() {
            list(dir, &mut names)?;
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Whether an item is in the second directory.
    #[must_use]
    pub fn is_fallback(&self, name: &str) -> bool {
        self.fallback.as_ref().is_some_and(|dir| dir.join(name).exists())
    }

    /// Reads an item.
    ///
    /// # Errors
    /// The file cannot be read, or is malformed ([`io::ErrorKind::InvalidData`]).
    pub fn read(&self, name: &str) -> io::Result<T> {
        let mut text = Vec::new();
        let file = match (open(&self.dir.join(name)), &self.fallback) {
            (Err(error), Some(dir)) if error.kind() == io::ErrorKind::NotFound => {
                open(&dir.join(name))
            }
            (result, _) => result,
        };
        file?.take(T::MAX_BYTES).read_to_end(&mut text)?;
        T::parse(&text).map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))
    }

    /// Removes an item that was handled or is malformed. Returns whether it is gone.
    #[must_use]
    pub fn remove(&self, name: &str) -> bool {
        self.dirs().all(|dir| match fs::remove_file(dir.join(name)) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        })
    }
}

fn open(path: &Path) -> io::Result<fs::File> {
    private_files::options().read(true).open(path)
}

fn create_new(path: &Path) -> io::Result<fs::File> {
    private_files::options().write(true).create_new(true).open(path)
}

/// Writes a file under a temporary name and renames it; creates a missing directory for root only.
fn write(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}"));
    let file = match create_new(&temporary) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            private_files::make_dir(dir)?;
            create_new(&temporary)
        }
        result => result,
    };
    let result = file?
        .write_all(text.as_bytes())
        .and_then(|()| fs::rename(&temporary, dir.join(format!("{name}.json"))));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Adds the names of the items in a directory, and removes old temporary files.
fn list(dir: &Path, names: &mut Vec<Name>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !name.starts_with('.') {
            names.push(name);
        } else if entry.metadata().is_ok_and(|meta| {
            meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > TEMPORARY_MAX_AGE))
        }) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

impl Paths {
    /// Events that wait to be published: on disk, or in memory if the disk is full.
    #[must_use]
    pub fn spool(&self) -> Spool {
        Spool::new(self.state.join("spool")).with_fallback(self.run.join("spool"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::model::{Address, Jail};
    use crate::wire::Action;

    fn event(ip: &str) -> SpooledEvent {
        SpooledEvent {
            action: Action::Ban,
            jail: Jail::new("sshd").unwrap(),
            address: Address::new(ip).unwrap(),
            bantime: 600,
            restored: 0,
            failures: 3,
            time: 1,
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn items_are_read_whole_and_in_order_from_a_directory_for_root_only() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::new(root.path().join("state/spool"));
        assert_eq!(spool.list().unwrap(), [""; 0]);
        spool.write(&event("192.0.2.2"), at(2000)).unwrap();
        spool.write(&event("192.0.2.1"), at(999)).unwrap();
        let names = spool.list().unwrap();
        let read: Vec<_> = names.iter().map(|name| spool.read(name).unwrap()).collect();
        assert_eq!(read, [event("192.0.2.1"), event("192.0.2.2")]);
        assert_eq!(mode(spool.dir()), 0o700);
        assert_eq!(mode(&spool.dir().join(&names[0])), 0o600);
        for name in &names {
            assert!(spool.remove(name));
        }
        assert_eq!(spool.list().unwrap(), [""; 0]);
    }

    #[test]
    fn malformed_item_is_invalid_data_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::<SpooledEvent>::new(root.path().to_owned());
        fs::write(root.path().join("1.json"), "{").unwrap();
        assert_eq!(spool.read("1.json").unwrap_err().kind(), io::ErrorKind::InvalidData);
        std::os::unix::fs::symlink("1.json", root.path().join("2.json")).unwrap();
        let followed = spool.read("2.json").unwrap_err();
        assert_eq!(followed.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
    }

    #[test]
    fn item_goes_to_the_second_directory_if_the_first_cannot_be_written() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("state/spool"), root.path().join("run/spool"));
        let spool = Spool::new(first.clone()).with_fallback(second.clone());
        assert!(matches!(spool.write(&event("192.0.2.1"), at(1)), Ok(Written::Primary)));
        fs::rename(&first, root.path().join("aside")).unwrap();
        fs::write(&first, "no directory").unwrap();
        let Ok(Written::Fallback(why)) = spool.write(&event("192.0.2.2"), at(2)) else { panic!() };
        assert_eq!(why.kind(), io::ErrorKind::NotADirectory);
        assert_eq!(mode(&second), 0o700);
        fs::remove_file(&first).unwrap();
        fs::rename(root.path().join("aside"), &first).unwrap();
        spool.write(&event("192.0.2.3"), at(3)).unwrap();
        let names = spool.list().unwrap();
        let read: Vec<_> = names.iter().map(|name| spool.read(name).unwrap()).collect();
        assert_eq!(read, ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(event));
        let fallbacks: Vec<_> = names.iter().map(|name| spool.is_fallback(name)).collect();
        assert_eq!(fallbacks, [false, true, false]);
        assert!(names.iter().all(|name| spool.remove(name)));
        assert_eq!(spool.list().unwrap(), [""; 0]);
        let nowhere = Spool::new(root.path().join("aside/x")).with_fallback("/dev/null/x".into());
        fs::write(root.path().join("aside"), "").unwrap();
        assert!(nowhere.write(&event("192.0.2.4"), at(4)).is_err());
    }
}
