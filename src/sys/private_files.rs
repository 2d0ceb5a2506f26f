//! Files that only root may read. This module creates a file with its final mode, so that no other user can ever open
//! the file, and follows no symbolic link at its path. [`trust`] checks paths that an administrator chose.

pub mod mounts;
pub mod room;
pub mod trust;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use rustix::fs::OFlags;
use trust::DirContent;

use crate::error::Error;

/// Creates a directory and its missing parents, for root only.
///
/// # Errors
/// The error of mkdir(2).
pub fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Options for such a file: mode 0600, no symbolic links, and no blocking on a FIFO. The caller adds the access mode.
#[must_use]
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.mode(0o600).custom_flags(flags.bits().cast_signed());
    options
}

/// Replaces a file atomically: a reader gets the old text or the new one. The new file has exactly `mode`, whatever
/// the umask.
///
/// # Errors
/// The new file cannot be written or renamed.
pub fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new_path = path.with_added_extension("new");
    let _ = fs::remove_file(&new_path);
    let mut file = options().write(true).create_new(true).open(&new_path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(mode))?;
    fs::rename(&new_path, path)
}

/// Opens a file to append lines; creates the file and its directory if they are missing.
///
/// # Errors
/// The path is not safe for root (see [`trust`]), or the file cannot be opened.
pub fn log(path: &Path) -> io::Result<File> {
    let path = &trust::follow(path, DirContent::Log)?;
    trust::check_path(path, DirContent::Log)?;
    if let Some(dir) = path.parent().filter(|dir| *dir != Path::new("")) {
        make_dir(dir)?;
    }
    let file = options().create(true).append(true).open(path)?;
    // A system group may have write access to the directory, and have put something else there.
    trust::is_regular(&file.metadata()?)?;
    Ok(file)
}

/// Opens an SQLite database; creates the database and its directory if they are missing.
///
/// # Errors
/// [`Error::File`], or SQLite's error as `failed` wraps it.
pub fn database(
    path: &Path,
    failed: impl Fn(rusqlite::Error) -> Error,
) -> Result<Connection, Error> {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    trust::check_path(path, DirContent::Database).map_err(Error::file("open", path))?;
    make_dir(dir).map_err(Error::file("create", dir))?;
    // SQLite would create the file readable by every user.
    let created = options().create(true).write(true).open(path);
    created.map_err(Error::file("open", path))?;
    // With NOFOLLOW, SQLite also rejects symbolic links among the directories, which the administrator may use.
    let dir = fs::canonicalize(dir).map_err(Error::file("open", path))?;
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let name = path.file_name().unwrap_or_default();
    Connection::open_with_flags(dir.join(name), flags).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(path: &Path) -> Result<Connection, Error> {
        database(path, Error::ledger(path))
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn database_and_its_journals_are_readable_by_root_only() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state/deep/x.sqlite3");
        let connection = open(&path).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(x)").unwrap();
        assert_eq!(mode(&root.path().join("state")), 0o700);
        for file in ["x.sqlite3", "x.sqlite3-wal", "x.sqlite3-shm"] {
            assert_eq!(mode(&path.with_file_name(file)), 0o600, "{file}");
        }
    }

    #[test]
    fn log_follows_only_links_that_root_made() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        let (link, second) = (root.join("link.log"), root.join("second.log"));
        fs::create_dir(root.join("elsewhere")).unwrap();
        symlink("elsewhere/real.log", &link).unwrap();
        symlink(&link, &second).unwrap();
        writeln!(log(&second).unwrap(), "one").unwrap();
        assert_eq!(fs::read_to_string(root.join("elsewhere/real.log")).unwrap(), "one\n");
        // Other users may write to the directory of the link, or of its target.
        for dir in [root.join("elsewhere"), root.to_owned()] {
            let before = fs::metadata(&dir).unwrap().permissions();
            fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
            let error = log(&second).unwrap_err().to_string();
            assert!(error.contains("is writable by every user"), "{error}");
            fs::set_permissions(&dir, before).unwrap();
        }
        let circular = root.join("circular.log");
        symlink(&circular, &circular).unwrap();
        assert!(log(&circular).is_err());
    }

    #[test]
    fn symbolic_link_at_the_path_is_rejected_and_one_in_its_directories_is_followed() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        let (target, link) = (root.join("target"), root.join("link"));
        fs::write(&target, "").unwrap();
        symlink(&target, &link).unwrap();
        let shown = open(&link).unwrap_err().to_string();
        assert!(
            shown.ends_with("; the path is a symbolic link, which f2bmqtt does not follow"),
            "{shown}"
        );
        assert!(options().append(true).create(true).open(&link).is_err());
        assert_eq!(fs::metadata(&target).unwrap().len(), 0);
        fs::create_dir(root.join("elsewhere")).unwrap();
        symlink(root.join("elsewhere"), root.join("dir-link")).unwrap();
        open(&root.join("dir-link/x.sqlite3")).unwrap();
    }
}
