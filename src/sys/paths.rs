//! The paths of this program's files on a host, in one struct so that tests can pass others.

use std::path::{Path, PathBuf};

use crate::fail2ban::settings::{self, Settings};
use crate::spool::Spool;

/// The directories and sockets that the program touches.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Persistent state, mode 0700: the spool and the databases.
    pub state: PathBuf,
    /// Runtime files, mode 0755: the lock, the status file, metrics, and the second spool (mode 0700).
    pub run: PathBuf,
    /// fail2ban's socket.
    pub fail2ban: PathBuf,
    /// fail2ban's database, until fail2ban reports another path.
    pub database: PathBuf,
    /// The API key for AbuseIPDB.
    pub api_key: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state: "/var/lib/f2bmqtt".into(),
            run: "/run/f2bmqtt".into(),
            fail2ban: "/run/fail2ban/fail2ban.sock".into(),
            database: "/var/lib/fail2ban/fail2ban.sqlite3".into(),
            api_key: "/etc/fail2ban/abuseipdb.apikey".into(),
        }
    }
}

impl Paths {
    /// These paths with the socket and the database that fail2ban's settings name. `socket` overrides fail2ban's
    /// setting, for a fail2ban whose settings are elsewhere (in a container, or from pip).
    #[must_use]
    pub fn located(&self, socket: Option<&Path>) -> Self {
        self.located_by(&Settings::read(Path::new(settings::SETTINGS_DIR)), socket)
    }

    fn located_by(&self, settings: &Settings, socket: Option<&Path>) -> Self {
        let mut paths = self.clone();
        if let Some(socket) = socket.or(settings.socket.as_deref()) {
            socket.clone_into(&mut paths.fail2ban);
        }
        if let Some(database) = &settings.database {
            database.clone_into(&mut paths.database);
        }
        paths
    }

    /// Events that wait to be published: on disk, or in memory if the disk is full.
    #[must_use]
    pub fn spool(&self) -> Spool {
        Spool::new(self.state.join("spool")).with_fallback(self.run.join("spool"))
    }

    /// The state database.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.state.join("fleet.sqlite3")
    }

    /// The lock of the process that publishes the spool.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// The spool of the reporter's calls.
    #[must_use]
    pub fn reports(&self) -> PathBuf {
        self.state.join("reports")
    }

    /// The database of pending reports.
    #[must_use]
    pub fn report_queue(&self) -> PathBuf {
        self.state.join("reports.sqlite3")
    }

    /// Metrics for Prometheus.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.run.join("f2bmqtt.prom")
    }

    /// The state of the daemon, for `f2bmqtt check`.
    #[must_use]
    pub fn status(&self) -> PathBuf {
        self.run.join("status.json")
    }

    /// The database of bans that an operator made.
    #[must_use]
    pub fn by_hand(&self) -> PathBuf {
        self.state.join("by-hand.sqlite3")
    }

    /// The lock of the process that sends reports.
    #[must_use]
    pub fn report_lock(&self) -> PathBuf {
        self.run.join("report.lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// fail2ban's settings with this socket; empty: without any.
    fn settings(socket: &str) -> Settings {
        Settings {
            socket: (!socket.is_empty()).then(|| socket.into()),
            database: (!socket.is_empty()).then(|| "/srv/db".into()),
        }
    }

    #[test]
    fn own_setting_overrides_fail2ban_s_which_overrides_the_default() {
        let table = [
            (
                settings(""),
                None,
                "/run/fail2ban/fail2ban.sock",
                "/var/lib/fail2ban/fail2ban.sqlite3",
            ),
            (settings("/srv/a"), None, "/srv/a", "/srv/db"),
            (settings("/srv/a"), Some("/srv/b"), "/srv/b", "/srv/db"),
        ];
        for (settings, own, socket, database) in table {
            let paths = Paths::default().located_by(&settings, own.map(Path::new));
            assert_eq!((paths.fail2ban, paths.database), (socket.into(), database.into()));
        }
    }
}
