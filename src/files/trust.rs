//! Whether root may keep a file at a path that an admin chose: nobody else can put a file there, take it
//! away, or lead the path elsewhere. SQLite obeys a journal that lies beside its database, and that may name
//! files to delete; an open FIFO hangs whoever writes to it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf, absolute};

/// What a directory keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// A database, which trusts what lies beside it.
    Database,
    /// A file to which lines are appended.
    Log,
    /// Other directories, on the way to one of these.
    Directories,
}

/// Why root may keep no file at a path, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}. {cure}")]
#[allow(missing_docs)]
pub struct Fault {
    pub what: String,
    pub cure: String,
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::other(fault)
    }
}

/// Whether a directory can be used.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Safe,
    /// It can, but others have more rights than they need.
    Odd(String),
    Refused(String),
}

/// The most symbolic links on the way; as in Linux.
const MAX_LINKS: u32 = 40;

/// Groups of the system are below (`SYS_GID_MAX` of login.defs(5) on Debian), but `users` is one of people.
/// In the service's user namespace, each group but root's is the last of these: only the number is unknown.
const FIRST_GROUP_OF_PEOPLE: u32 = 1000;
const USERS: u32 = 100;
const UNMAPPED: u32 = 65_534;

/// The right to write, and the sticky bit: only a file's owner can remove or rename it.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// What SQLite may find beside a database, and read.
const BESIDE: [&str; 3] = ["-journal", "-wal", "-shm"];

/// Decides about one directory of a user and a group, for a process of the user `me`.
fn judge((user, group, mode): (u32, u32, u32), me: u32, keeps: Keeps) -> Verdict {
    let is_sticky = keeps == Keeps::Directories && mode & STICKY != 0;
    let is_system = (group < FIRST_GROUP_OF_PEOPLE && group != USERS) || group == UNMAPPED;
    if user != 0 && user != me {
        Verdict::Refused(format!("belongs to the user with UID {user}"))
    } else if mode & OTHERS_WRITE != 0 {
        let what = "is writable by every user";
        if is_sticky { Verdict::Odd(what.to_owned()) } else { Verdict::Refused(what.to_owned()) }
    } else if mode & GROUP_WRITES != 0 && group != 0 {
        let what = format!("is writable by the group with GID {group}");
        let may = is_sticky || (is_system && keeps != Keeps::Database);
        if may { Verdict::Odd(what) } else { Verdict::Refused(what) }
    } else {
        Verdict::Safe
    }
}

/// Looks at the directory of a path, at each directory on the way there, also by symbolic links, and at what
/// is at the path. Nothing needs to be there. Answers what is odd about it.
///
/// # Errors
/// What another user could do, and what to do about it; or whatever the system says.
pub fn look(path: &Path, keeps: Keeps) -> io::Result<Vec<String>> {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    let me = rustix::process::geteuid().as_raw();
    let (last, above) = way(dir)?;
    let mut odd = Vec::new();
    let above = above.iter().filter(|dir| **dir != last);
    for (dir, keeps) in above.map(|dir| (dir, Keeps::Directories)).chain([(&last, keeps)]) {
        let about = fs::metadata(dir)?;
        match judge((about.uid(), about.gid(), about.mode()), me, keeps) {
            Verdict::Safe => {}
            Verdict::Odd(what) => odd.push(format!("{} {what}", dir.display())),
            Verdict::Refused(what) => {
                let dir = dir.display();
                let what = format!("{dir} {what}, who could replace files in the directory");
                let cure = format!(
                    "Choose another directory, or delete the files of other users there and run: chown \
                     root:root {dir}; chmod go-w {dir}"
                );
                return Err(Fault { what, cure }.into());
            }
        }
    }
    let name = path.file_name().unwrap_or_default();
    is_usable(path, me)?;
    if keeps == Keeps::Database {
        for suffix in BESIDE {
            let mut beside = name.to_owned();
            beside.push(suffix);
            is_usable(&path.with_file_name(beside), me)?;
        }
    }
    Ok(odd)
}

/// [Looks](look) at a path, or for a log at where its links lead.
///
/// # Errors
/// Those of [`look`].
pub fn inspect(path: &Path, keeps: Keeps) -> io::Result<Vec<String>> {
    match keeps {
        Keeps::Log => look(&follow(path, keeps)?, keeps),
        Keeps::Database | Keeps::Directories => look(path, keeps),
    }
}

/// Where symbolic links at a path lead that only root can have made: they are root's, in a directory that is
/// root's alone. Any other link is left for the opening to fail on.
///
/// # Errors
/// Those of [`look`].
pub(crate) fn follow(path: &Path, keeps: Keeps) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    let me = rustix::process::geteuid().as_raw();
    for _ in 0..MAX_LINKS {
        let Ok(about) = fs::symlink_metadata(&path) else { return Ok(path) };
        let dir = path.parent().unwrap_or(Path::new("/"));
        if !about.is_symlink() || about.uid() != 0 && about.uid() != me {
            return Ok(path);
        }
        // As a file of that directory would be.
        look(&dir.join("none such"), keeps)?;
        let of = fs::metadata(dir)?;
        if judge((of.uid(), of.gid(), of.mode()), me, keeps) != Verdict::Safe {
            return Ok(path);
        }
        path = dir.join(fs::read_link(&path)?);
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// Whether what is at a path, if anything, is a regular file of root's. A symbolic link fails when opened.
fn is_usable(path: &Path, me: u32) -> io::Result<()> {
    let Ok(about) = fs::symlink_metadata(path) else { return Ok(()) };
    if about.is_symlink() {
        return Err(rustix::io::Errno::LOOP.into());
    }
    is_regular(&about)?;
    if about.uid() != 0 && about.uid() != me {
        let path = path.display();
        let what = format!("{path} belongs to the user with UID {}", about.uid());
        let cure = format!("Delete it, or run: chown root {path}");
        return Err(Fault { what, cure }.into());
    }
    Ok(())
}

/// # Errors
/// What it is, where it is no regular file.
pub(super) fn is_regular(about: &Metadata) -> io::Result<()> {
    let kind = about.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    let what = format!("not a regular file but {what}");
    Err(Fault { what, cure: "Choose another name".to_owned() }.into())
}

/// Where a path leads, as far as there are directories, and each directory in which the system looks up a
/// part of it.
fn way(dir: &Path) -> io::Result<(PathBuf, BTreeSet<PathBuf>)> {
    let mut pending: Vec<OsString> = parts(&absolute(dir)?);
    let (mut at, mut above, mut links) = (PathBuf::from("/"), BTreeSet::new(), 0);
    while let Some(name) = pending.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        above.insert(at.clone());
        let next = at.join(name);
        match fs::symlink_metadata(&next) {
            Ok(about) if about.is_symlink() => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(rustix::io::Errno::LOOP.into());
                }
                let to = fs::read_link(&next)?;
                if to.is_absolute() {
                    at = PathBuf::from("/");
                }
                pending.extend(parts(&to));
            }
            Ok(about) if about.is_dir() => at = next,
            // Whoever makes a directory here finds out.
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok((at, above))
}

/// The parts of a path, the first one last.
fn parts(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests;
