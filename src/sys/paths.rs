//! The paths of this program's files on a host, in one struct so that tests can pass others.

use std::path::PathBuf;

/// The script's database, unless an action names another.
pub const DEFAULT_LEDGER: &str = "/var/lib/fail2ban/abuseipdb/fail2ban_abuseipdb";
/// The script's log, unless an action names another.
pub const DEFAULT_LOG: &str = "/var/log/abuseipdb/abuseipdb.log";

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
