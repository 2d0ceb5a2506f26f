//! The errors that end a command. A text says what failed, on what object, why, and what to do; each kind has an
//! exit code.

mod config;
mod fail2ban;

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

pub use config::ConfigErrors;
pub use fail2ban::Fail2banError;

/// Why a command failed.
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
        /// The system's error.
        source: io::Error,
    },
    /// An argument is invalid. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// An operation on a file failed. Exit code 1.
    #[error("cannot {doing} {path}: {source}{hint}", path = path.display(), hint = hint(path, source))]
    File {
        /// The operation, as a verb: "write", "watch".
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The state database cannot be used. Exit code 1.
    #[error("cannot {doing} the state database {path}: {source}", path = path.display())]
    Store {
        /// The operation, as a verb: "open", "write".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The database of pending reports cannot be used. Exit code 1.
    #[error("cannot use the report queue {path}: {source}", path = path.display())]
    Queue {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The database of reported addresses cannot be used. Exit code 1.
    #[error("cannot use the database of reported addresses {path}: {source}", path = path.display())]
    Ledger {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// A report is incomplete. Exit code 1.
    #[error("{0}")]
    Report(String),
    /// A request to fail2ban failed. Exit code 1.
    #[error("{0}")]
    Fail2ban(#[from] Fail2banError),
    /// The operator's command did not succeed; the text has the cause. Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// `check` found faults, and printed them. Exit code 1, or 78 if the settings have faults.
    #[error("{summary}")]
    ChecksFailed {
        /// The number of findings of each kind.
        summary: String,
        /// Whether the settings are unusable.
        settings: bool,
    },
    /// A user other than root announces a ban. Exit code 1.
    #[error("cannot write to the spool {path}: {1}. Run the command as root", path = .0.display())]
    NotRoot(PathBuf, io::Error),
    /// Another daemon is running: its PID, if known. Exit code 1.
    #[error("another f2bmqtt daemon is already running{}", .0.map(|pid| format!(" (PID {pid})")).unwrap_or_default())]
    AlreadyRunning(Option<i32>),
    /// The runtime or its signals cannot be set up. Exit code 1.
    #[error("cannot start: {0}")]
    Start(io::Error),
}

impl Error {
    /// The exit code: 1 failed, 2 wrong usage, 78 (`EX_CONFIG` of sysexits.h) unusable settings.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Settings { .. } | Self::ChecksFailed { settings: true, .. } => {
                78
            }
            Self::Usage(_) => 2,
            _ => 1,
        }
    }

    /// For `map_err`: adds the operation and the path to the system's error.
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }

    /// For `map_err`: adds the operation and the path to an error of the state database.
    pub fn store(doing: &'static str, path: &Path) -> impl Fn(rusqlite::Error) -> Self + Copy {
        move |source| Self::Store { doing, path: path.to_owned(), source }
    }

    /// For `map_err`: adds the path to an error of the report queue.
    pub fn queue(path: &Path) -> impl Fn(rusqlite::Error) -> Self + Copy {
        move |source| Self::Queue { path: path.to_owned(), source }
    }

    /// For `map_err`: adds the path to an error of the record of reported addresses.
    pub fn ledger(path: &Path) -> impl Fn(rusqlite::Error) -> Self + Copy {
        move |source| Self::Ledger { path: path.to_owned(), source }
    }
}

/// The advice for unreadable settings.
fn next_step(source: &io::Error, is_root: bool) -> &'static str {
    match source.kind() {
        // The service runs as root without capabilities, so it can read only files that root owns.
        io::ErrorKind::PermissionDenied if is_root => {
            "Let root own the file: chown root: and chmod 600, then: systemctl restart f2bmqttsub"
        }
        // Only root may read the settings, which contain a password.
        io::ErrorKind::PermissionDenied => "Run the command as root: sudo f2bmqtt …",
        _ => "A template is /usr/share/f2bmqtt/mqtt.env",
    }
}

/// The advice for a failed operation, if any.
fn hint(path: &Path, source: &io::Error) -> String {
    if source.kind() == io::ErrorKind::ReadOnlyFilesystem {
        // The service's sandbox allows writing only to its own directories.
        let dir = path.parent().unwrap_or(path).display();
        return format!(
            ". Let the service write to that directory: systemctl edit f2bmqttsub, add the lines [Service] and \
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
    fn unreadable_settings_have_advice_for_root_and_for_users() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(next_step(&denied, true).starts_with("Let root own the file: chown"));
        assert_eq!(next_step(&denied, false), "Run the command as root: sudo f2bmqtt …");
    }

    #[test]
    fn read_only_directory_error_names_the_unit_line_to_add() {
        let source = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        let error = Error::file("open", "/srv/reports/db")(source).to_string();
        assert!(error.contains("ReadWritePaths=/srv/reports,"), "{error}");
        let source = io::Error::from(io::ErrorKind::NotFound);
        let error = Error::file("open", "/srv/db")(source).to_string();
        assert_eq!(error, "cannot open /srv/db: entity not found");
    }
}
