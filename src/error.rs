//! Everything that can end a command: what was being done, to what, and what to do next. Each kind
//! has its exit code.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::config::ConfigErrors;

/// Why a command ended without having done its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings file has faults. Exit code 78.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// The settings file cannot be read. Exit code 78.
    #[error("cannot read the settings {path}: {source}. {}", next_step(source, geteuid().is_root()), path = path.display())]
    Settings {
        /// The settings file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An argument is not what it must be. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Something could not be done to a file. Exit code 1.
    #[error("cannot {doing} {path}: {source}{hint}", path = path.display(), hint = hint(path, source))]
    File {
        /// What was being done: "write", "watch".
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// This host's memory of its imports cannot be used. Exit code 1.
    #[error("cannot {doing} {path}, the record of imported bans: {source}",
        path = path.display())]
    Store {
        /// What was being done: "open", "write".
        doing: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The queue of reports cannot be used. Exit code 1.
    #[error("cannot use {path}, the queue of reports: {source}", path = path.display())]
    Queue {
        /// The database.
        path: PathBuf,
        /// What `SQLite` said.
        source: rusqlite::Error,
    },
    /// The database of what was reported cannot be used. Exit code 1.
    #[error("cannot use {path}, the record of reported addresses: {source}",
        path = path.display())]
    Ledger {
        /// The database.
        path: PathBuf,
        /// What `SQLite` said.
        source: rusqlite::Error,
    },
    /// A report has not what it needs. Exit code 1.
    #[error("{0}")]
    Report(String),
    /// fail2ban on this host did not do what it was asked to. Exit code 1.
    #[error("{0}")]
    Fail2ban(#[from] crate::fail2ban::Fail2banError),
    /// What the operator asked for is not so, or could not be done; what there is to say was said.
    /// Exit code 1.
    #[error("{0}")]
    Undone(String),
    /// A check found faults, and showed them. Exit code 1, or 78 where the settings have some.
    #[error("{summary}")]
    Faulty {
        /// How many of which kind.
        summary: String,
        /// The settings cannot be used.
        settings: bool,
    },
    /// A user other than root announces a ban. Exit code 1.
    #[error("cannot write to the spool {path}: {1}. Run the command as root", path = .0.display())]
    NotRoot(PathBuf, io::Error),
    /// Another daemon is running. Exit code 1.
    #[error("another f2bmqtt daemon is already running (PID {0})")]
    Running(String),
    /// The runtime or its signals cannot be set up. Exit code 1.
    #[error("cannot start: {0}")]
    Start(io::Error),
}

impl Error {
    /// The exit code: 1 failed, 2 wrong usage, 78 (`EX_CONFIG` of sysexits.h) unusable settings.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Settings { .. } | Self::Faulty { settings: true, .. } => 78,
            Self::Usage(_) => 2,
            _ => 1,
        }
    }

    /// For `map_err`: puts what was being done to which file in front of the system's word.
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }
}

/// What to do about settings that cannot be read.
fn next_step(source: &io::Error, root: bool) -> &'static str {
    match source.kind() {
        // The service is root without root's powers: it reads only what belongs to root.
        io::ErrorKind::PermissionDenied if root => {
            "Let root own the file: chown root: and chmod 600, then: systemctl restart f2bmqttsub"
        }
        // They hold a password.
        io::ErrorKind::PermissionDenied => "Run the command as root: sudo f2bmqtt …",
        _ => "A template is /usr/share/f2bmqtt/mqtt.env",
    }
}

/// What to do about it, where that is known.
fn hint(path: &Path, source: &io::Error) -> String {
    if source.kind() == io::ErrorKind::ReadOnlyFilesystem {
        // The service writes to its own directories alone.
        let dir = path.parent().unwrap_or(path).display();
        return format!(
            ". Let the service write there: systemctl edit f2bmqttsub, add the lines [Service] and \
             ReadWritePaths={dir}, then: systemctl restart f2bmqttsub"
        );
    }
    if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
        return "; the path is a symbolic link, which f2bmqtt does not follow".to_owned();
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_another_owner_are_named_as_such_to_root() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(next_step(&denied, true).starts_with("Let root own the file: chown"));
        assert_eq!(next_step(&denied, false), "Run the command as root: sudo f2bmqtt …");
    }

    #[test]
    fn where_the_service_may_not_write_the_line_to_add_is_named() {
        let source = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        let error = Error::file("open", "/srv/reports/db")(source).to_string();
        assert!(error.contains("ReadWritePaths=/srv/reports,"), "{error}");
        let source = io::Error::from(io::ErrorKind::NotFound);
        let error = Error::file("open", "/srv/db")(source).to_string();
        assert_eq!(error, "cannot open /srv/db: entity not found");
    }
}
