//! Checks a path that an administrator chose for a file of root: no other user may be able to create, remove or
//! redirect the file. SQLite replays a journal that lies beside its database, and such a journal can name files to
//! delete. A FIFO blocks its writer.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf, absolute};

/// What a directory contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirContent {
    /// A database. SQLite trusts the journals beside it.
    Database,
    /// A log, which is only appended to.
    Log,
    /// Other directories: a parent directory of one of these.
    Directories,
}

/// Why a path is unsafe for a file of root.
#[derive(Debug, thiserror::Error)]
#[error("{what}. {cure}")]
pub struct Fault {
    /// The path, and what another user could do there.
    pub what: String,
    /// What the administrator can do, as a sentence without its full stop.
    pub cure: String,
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::other(fault)
    }
}

/// Whether a directory can be used.
#[derive(Debug, PartialEq, Eq)]
enum DirSafety {
    Safe,
    /// Usable, but others have more rights than they need.
    Questionable(String),
    Unsafe(String),
}

/// The most symbolic links in a path; the limit of Linux.
const MAX_LINKS: u32 = 40;

/// System groups have lower GIDs (`SYS_GID_MAX` of login.defs(5) on Debian), except `users`, which has people. In the
/// service's user namespace, every group but root's appears as `UNMAPPED_ID`.
const FIRST_GID_OF_PEOPLE: u32 = 1000;
const USERS_GID: u32 = 100;
const UNMAPPED_ID: u32 = 65_534;

/// Mode bits: write permission, and the sticky bit, with which only the owner of a file can remove or rename it.
const GROUP_WRITE_BIT: u32 = 0o020;
const OTHERS_WRITE_BIT: u32 = 0o002;
const STICKY_BIT: u32 = 0o1000;

/// The suffixes of the files beside a database that SQLite reads.
const JOURNAL_SUFFIXES: [&str; 3] = ["-journal", "-wal", "-shm"];

/// Judges one directory by its owner, group and mode, for a process of the user `me`.
fn judge((user, group, mode): (u32, u32, u32), me: u32, content: DirContent) -> DirSafety {
    let is_sticky = content == DirContent::Directories && mode & STICKY_BIT != 0;
    let is_system = (group < FIRST_GID_OF_PEOPLE && group != USERS_GID) || group == UNMAPPED_ID;
    if user != 0 && user != me {
        DirSafety::Unsafe(format!("belongs to the user with UID {user}"))
    } else if mode & OTHERS_WRITE_BIT != 0 {
        let what = "is writable by every user";
        if is_sticky {
            DirSafety::Questionable(what.to_owned())
        } else {
            DirSafety::Unsafe(what.to_owned())
        }
    } else if mode & GROUP_WRITE_BIT != 0 && group != 0 {
        let what = format!("is writable by the group with GID {group}");
        let may = is_sticky || (is_system && content != DirContent::Database);
        if may { DirSafety::Questionable(what) } else { DirSafety::Unsafe(what) }
    } else {
        DirSafety::Safe
    }
}

/// Checks the directory of a path, every directory above it (symbolic links resolved), and the file itself. The file
/// need not exist. Returns warnings.
///
/// # Errors
/// What another user could do, with the fix; or a system error.
pub fn check_path(path: &Path, content: DirContent) -> io::Result<Vec<String>> {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    let me = rustix::process::geteuid().as_raw();
    let (last, above) = resolve_dir(dir)?;
    let mut warnings = Vec::new();
    let above = above.iter().filter(|dir| **dir != last);
    for (dir, content) in above.map(|dir| (dir, DirContent::Directories)).chain([(&last, content)])
    {
        let metadata = fs::metadata(dir)?;
        match judge((metadata.uid(), metadata.gid(), metadata.mode()), me, content) {
            DirSafety::Safe => {}
            DirSafety::Questionable(what) => warnings.push(format!("{} {what}", dir.display())),
            DirSafety::Unsafe(what) => {
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
    check_file(path, me)?;
    if content == DirContent::Database {
        for suffix in JOURNAL_SUFFIXES {
            let mut journal = name.to_owned();
            journal.push(suffix);
            check_file(&path.with_file_name(journal), me)?;
        }
    }
    Ok(warnings)
}

/// Like [`check_path`], but resolves the symbolic links of a log first.
///
/// # Errors
/// Those of [`check_path`].
pub fn inspect(path: &Path, content: DirContent) -> io::Result<Vec<String>> {
    match content {
        DirContent::Log => check_path(&follow(path, content)?, content),
        DirContent::Database | DirContent::Directories => check_path(path, content),
    }
}

/// Resolves symbolic links that only root can have made: root owns the link, and only root may write to its
/// directory. Any other link stays unresolved, and opening the path fails.
///
/// # Errors
/// Those of [`check_path`].
pub(crate) fn follow(path: &Path, content: DirContent) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    let me = rustix::process::geteuid().as_raw();
    for _ in 0..MAX_LINKS {
        let Ok(metadata) = fs::symlink_metadata(&path) else { return Ok(path) };
        let dir = path.parent().unwrap_or(Path::new("/"));
        if !metadata.is_symlink() || metadata.uid() != 0 && metadata.uid() != me {
            return Ok(path);
        }
        // The link must be as safe as a file in its directory. The name does not matter.
        check_path(&dir.join("none such"), content)?;
        let metadata = fs::metadata(dir)?;
        let dir_mode = (metadata.uid(), metadata.gid(), metadata.mode());
        if judge(dir_mode, me, content) != DirSafety::Safe {
            return Ok(path);
        }
        path = dir.join(fs::read_link(&path)?);
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// Checks that a file, if it exists, is a regular file of root.
fn check_file(path: &Path, me: u32) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if metadata.is_symlink() {
        return Err(rustix::io::Errno::LOOP.into());
    }
    is_regular(&metadata)?;
    if metadata.uid() != 0 && metadata.uid() != me {
        let path = path.display();
        let what = format!("{path} belongs to the user with UID {}", metadata.uid());
        let cure = format!("Delete it, or run: chown root {path}");
        return Err(Fault { what, cure }.into());
    }
    Ok(())
}

/// Checks that a file is a regular one.
///
/// # Errors
/// The kind of the file, if it is another one.
pub(super) fn is_regular(metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
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

/// The directory that a path resolves to, as far as directories exist, and every directory in which the kernel looks
/// up a component of the path.
fn resolve_dir(dir: &Path) -> io::Result<(PathBuf, BTreeSet<PathBuf>)> {
    let mut pending: Vec<OsString> = components(&absolute(dir)?);
    let (mut at, mut above, mut links) = (PathBuf::from("/"), BTreeSet::new(), 0);
    while let Some(name) = pending.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        above.insert(at.clone());
        let next = at.join(name);
        match fs::symlink_metadata(&next) {
            Ok(metadata) if metadata.is_symlink() => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(rustix::io::Errno::LOOP.into());
                }
                let to = fs::read_link(&next)?;
                if to.is_absolute() {
                    at = PathBuf::from("/");
                }
                pending.extend(components(&to));
            }
            Ok(metadata) if metadata.is_dir() => at = next,
            // A later mkdir reports that this is no directory.
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok((at, above))
}

/// The components of a path in reverse order, so that `pop` returns them in order.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests;
