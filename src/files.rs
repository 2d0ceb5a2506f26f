//! Files for root alone. They are made so, with no moment in which another could open them, and a
//! symbolic link in the place of one is not followed. Where an admin chose the place, [`trust`] looks at it first.

pub mod mounts;
pub mod room;
pub mod trust;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use rustix::fs::OFlags;
use trust::Keeps;

use crate::error::Error;

/// Makes a directory, and those above it, where they are missing.
///
/// # Errors
/// Whatever the system says.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// How such a file is opened, without waiting for anything; for what, is still open.
#[must_use]
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.mode(0o600).custom_flags(flags.bits().cast_signed());
    options
}

/// Replaces a file at once: a reader gets the old text or the new one. `mode` is the new file's, whatever the
/// umask.
///
/// # Errors
/// Whatever the system says.
pub fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let aside = path.with_added_extension("new");
    let _ = fs::remove_file(&aside);
    let mut file = options().write(true).create_new(true).open(&aside)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(mode))?;
    fs::rename(&aside, path)
}

/// Opens a file to append lines, and makes it and its directory where they are missing.
///
/// # Errors
/// Why root may keep no file there, or whatever the system says.
pub fn log(path: &Path) -> io::Result<File> {
    let path = &trust::follow(path, Keeps::Log)?;
    trust::look(path, Keeps::Log)?;
    if let Some(dir) = path.parent().filter(|dir| *dir != Path::new("")) {
        make_dir(dir)?;
    }
    let file = options().create(true).append(true).open(path)?;
    // The directory may be a system group's.
    trust::is_regular(&file.metadata()?)?;
    Ok(file)
}

/// Opens a database of SQLite, and makes it and its directory where they are missing.
///
/// # Errors
/// [`Error::File`], or what `failed` makes of SQLite's.
pub fn database(
    path: &Path,
    failed: impl Fn(rusqlite::Error) -> Error,
) -> Result<Connection, Error> {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    trust::look(path, Keeps::Database).map_err(Error::file("open", path))?;
    make_dir(dir).map_err(Error::file("create", dir))?;
    // SQLite would create it for all to read.
    let made = options().create(true).write(true).open(path);
    made.map_err(Error::file("open", path))?;
    // It also follows no link on the way to a file, but that way is the admin's.
    let way = fs::canonicalize(dir).map_err(Error::file("open", path))?;
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let name = path.file_name().unwrap_or_default();
    Connection::open_with_flags(way.join(name), flags).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(path: &Path) -> Result<Connection, Error> {
        database(path, |source| Error::Ledger { path: path.to_owned(), source })
    }

    #[test]
    fn a_database_is_for_root_alone_with_all_that_belongs_to_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state/deep/x.sqlite3");
        let connection = open(&path).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(x)").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&root.path().join("state")), 0o700);
        for file in ["x.sqlite3", "x.sqlite3-wal", "x.sqlite3-shm"] {
            assert_eq!(mode(&path.with_file_name(file)), 0o600, "{file}");
        }
    }

    #[test]
    fn log_may_be_a_link_that_only_root_can_have_made() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("elsewhere")).unwrap();
        symlink("elsewhere/real.log", at("link.log")).unwrap();
        symlink(at("link.log"), at("second.log")).unwrap();
        writeln!(log(&at("second.log")).unwrap(), "one").unwrap();
        assert_eq!(fs::read_to_string(at("elsewhere/real.log")).unwrap(), "one\n");
        // Others may write where the link is, or where it leads.
        for (dir, fault) in
            [("elsewhere", "is writable by every user"), ("", "is writable by every user")]
        {
            let dir = root.path().join(dir);
            let before = fs::metadata(&dir).unwrap().permissions();
            fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
            let error = log(&at("second.log")).unwrap_err().to_string();
            assert!(error.contains(fault), "{error}");
            fs::set_permissions(&dir, before).unwrap();
        }
        symlink(at("round.log"), at("round.log")).unwrap();
        assert!(log(&at("round.log")).is_err());
    }

    #[test]
    fn a_link_in_its_place_is_refused_and_one_on_the_way_is_the_admin_s() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::write(at("target"), "").unwrap();
        symlink(at("target"), at("link")).unwrap();
        let shown = open(&at("link")).unwrap_err().to_string();
        assert!(
            shown.ends_with("; the path is a symbolic link, which f2bmqtt does not follow"),
            "{shown}"
        );
        assert!(options().append(true).create(true).open(at("link")).is_err());
        assert_eq!(fs::metadata(at("target")).unwrap().len(), 0);
        fs::create_dir(at("elsewhere")).unwrap();
        symlink(at("elsewhere"), at("way")).unwrap();
        open(&at("way/x.sqlite3")).unwrap();
    }
}
