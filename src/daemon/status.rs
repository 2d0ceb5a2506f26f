//! The status file: the daemon's own state, for `f2bmqtt check` and for programs. Root alone may read it.
//!
//! ```json
//! {"version":"1.0.0","since":1795342588,"instance":"0b9e…",
//!  "link":{"state":"up","broker":"192.0.2.1:1883","error":null,"since":1795342590,
//!          "reconnects":0},
//!  "peers":3,"rejected":{"ahead":7},"ahead":[{"host":"web2","at":1795342600}],
//!  "own_duplicate":null,"duplicates":[{"host":"web3","at":1795342600}],
//!  "disks_full":[{"path":"/var/lib/f2bmqtt","at":1795342600}],
//!  "tables_full":[{"table":"claims","limit":100000,"peer":"web2","at":1795342600}]}
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fleet::limits::{Limit, ReachedLimits};
use crate::sys::clock::is_within;
use crate::sys::private_files;

/// The daemon writes the file at least this often, also if nothing changed. Presence has its own interval,
/// `Timing::status_interval`.
const WRITE_INTERVAL_MILLIS: i64 = 60_000;

const HOUR_MILLIS: i64 = 3_600_000;

/// The most reconnects within an hour that are counted. With the shortest pauses between attempts, some 400 are
/// possible.
const MAX_RECONNECTS: usize = 1_000;

/// The longest error text of the link. The text may come from the broker.
const MAX_ERROR_CHARS: usize = 300;

/// The state of the daemon. All times are in seconds since 1970. A field that a file lacks has its default, so
/// that versions can be mixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonStatus {
    /// The version of the daemon.
    pub version: String,
    /// When the daemon started.
    pub since: i64,
    /// The ID of this run of the daemon, as in its presence.
    pub instance: String,
    /// The link to the broker.
    pub link: LinkStatus,
    /// The number of other hosts in the fleet.
    pub peers: usize,
    /// The number of messages that the daemon rejected since its start, by [reason](crate::guard::RejectReason::name).
    pub rejected: BTreeMap<String, u64>,
    /// The hosts whose messages were rejected as `ahead` within the last 20 minutes, by name.
    pub ahead: Vec<AheadHost>,
    /// When another machine of this host's name was seen, if that was within the last 70 seconds.
    pub own_duplicate: Option<i64>,
    /// Other hosts' names that two machines have, if both were seen within the last 70 seconds.
    pub duplicates: Vec<Duplicate>,
    /// The full file systems that the daemon, fail2ban or the reporter write to.
    pub disks_full: Vec<DiskFull>,
    /// The limits that tables of the daemon reached within the last day.
    pub tables_full: Vec<FullTable>,
}

/// The link to the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkStatus {
    /// Whether the daemon is connected.
    pub state: LinkState,
    /// The broker that the daemon is connected to, or tried last.
    pub broker: String,
    /// The last error since the daemon started, even if the link is up again.
    pub error: Option<String>,
    /// When `state` changed last.
    pub since: i64,
    /// The number of reconnects within the last hour.
    pub reconnects: usize,
}

/// Whether the link to the broker works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// The broker accepted the login.
    Up,
    /// The daemon tries to connect.
    #[default]
    Down,
}

/// A host whose clock is more than a day ahead of this host's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AheadHost {
    /// The name of the host.
    pub host: String,
    /// When a message of the host was last rejected.
    pub at: i64,
}

/// A name that two machines have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Duplicate {
    /// The name.
    pub host: String,
    /// When both machines were last seen.
    pub at: i64,
}

/// A full file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskFull {
    /// A directory on the file system.
    pub path: String,
    /// When the daemon first found the file system full.
    pub at: i64,
}

/// A limit that a table reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FullTable {
    /// The [name](crate::fleet::limits::BoundedTable::name) of the table.
    pub table: String,
    /// The most entries of the table.
    pub limit: usize,
    /// The host that has most entries of the table.
    pub peer: Option<String>,
    /// When the table last reached the limit.
    pub at: i64,
}

impl From<&Limit> for FullTable {
    fn from(limit: &Limit) -> Self {
        let Limit { table, max, peer, at } = limit;
        let (table, at) = (table.name().to_owned(), at.div_euclid(1000));
        Self { table, limit: *max, peer: peer.clone(), at }
    }
}

impl DaemonStatus {
    /// Reads the file.
    ///
    /// # Errors
    /// The error of the system or of the JSON.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }
}

/// The limits that are shown at `now`, in milliseconds.
pub(super) fn tables_full(limits: &ReachedLimits, now: i64) -> Vec<FullTable> {
    limits.shown(now).map(FullTable::from).collect()
}

impl LinkStatus {
    /// The link changed to `state` at `now`, in milliseconds.
    pub(super) fn set_state(&mut self, state: LinkState, broker: &impl ToString, now: i64) {
        if self.state != state {
            self.since = now.div_euclid(1000);
        }
        (self.state, self.broker) = (state, broker.to_string());
    }

    /// Records why the link failed.
    pub(super) fn set_error(&mut self, error: &impl ToString) {
        self.error = Some(error.to_string().chars().take(MAX_ERROR_CHARS).collect());
    }
}

/// When the link came up again, in milliseconds since 1970, the latest first.
#[derive(Debug, Default)]
pub(super) struct Reconnects {
    has_been_up: bool,
    times: VecDeque<i64>,
}

impl Reconnects {
    /// The link came up at `now`.
    pub(super) fn record(&mut self, now: i64) {
        if self.has_been_up {
            self.times.truncate(MAX_RECONNECTS - 1);
            self.times.push_front(now);
        }
        self.has_been_up = true;
    }

    /// The number of reconnects within the hour before `now`.
    pub(super) fn within_hour(&self, now: i64) -> usize {
        self.times.iter().filter(|at| is_within(HOUR_MILLIS, **at, now)).count()
    }
}

/// The file, and its current content.
#[derive(Debug)]
pub(super) struct StatusFile {
    path: PathBuf,
    /// The status in the file, and when it was written, in milliseconds since 1970.
    written: Option<(DaemonStatus, i64)>,
}

impl StatusFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, written: None }
    }

    /// Writes the file if the status changed, or if the file is a minute old. `now` is in milliseconds.
    ///
    /// # Errors
    /// The log line.
    pub(super) fn update(&mut self, status: DaemonStatus, now: i64) -> Result<(), String> {
        if let Some((written, at)) = &self.written
            && *written == status
            && is_within(WRITE_INTERVAL_MILLIS, *at, now)
        {
            return Ok(());
        }
        let result = self.write(&status);
        result.map_err(|error| format!("cannot write {}: {error}", self.path.display()))?;
        self.written = Some((status, now));
        Ok(())
    }

    fn write(&self, status: &DaemonStatus) -> io::Result<()> {
        let text = serde_json::to_string(status)?;
        private_files::replace(&self.path, &format!("{text}\n"), 0o600)
    }

    /// Removes the file, so that no reader mistakes it for the state of a running daemon.
    pub(super) fn clear(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::fleet::limits::BoundedTable;

    const NOW: i64 = 1_795_342_600_123;

    fn status() -> DaemonStatus {
        let mut limits = ReachedLimits::default();
        limits.reached(BoundedTable::Claims, 100_000, Some("web2"), NOW);
        let mut link = LinkStatus::default();
        link.set_state(LinkState::Up, &"192.0.2.1:1883", NOW - 10_000);
        DaemonStatus {
            version: "1.0.0".to_owned(),
            since: 1_795_342_588,
            instance: "0b9e".to_owned(),
            link,
            peers: 3,
            rejected: [("ahead".to_owned(), 7)].into(),
            ahead: vec![AheadHost { host: "web2".to_owned(), at: 1_795_342_600 }],
            own_duplicate: None,
            duplicates: vec![Duplicate { host: "web3".to_owned(), at: 1_795_342_600 }],
            disks_full: vec![DiskFull { path: "/var/lib/f2bmqtt".to_owned(), at: 1_795_342_600 }],
            tables_full: tables_full(&limits, NOW),
        }
    }

    #[test]
    fn file_has_the_documented_fields_and_is_for_root_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("status.json");
        StatusFile::new(path.clone()).update(status(), NOW).unwrap();
        let expected = r#"{"version":"1.0.0","since":1795342588,"instance":"0b9e","link":{"state":"up","broker":"192.0.2.1:1883","error":null,"since":1795342590,"reconnects":0},"peers":3,"rejected":{"ahead":7},"ahead":[{"host":"web2","at":1795342600}],"own_duplicate":null,"duplicates":[{"host":"web3","at":1795342600}],"disks_full":[{"path":"/var/lib/f2bmqtt","at":1795342600}],"tables_full":[{"table":"claims","limit":100000,"peer":"web2","at":1795342600}]}"#;
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{expected}\n"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        assert_eq!(DaemonStatus::read(&path), Ok(status()));
        fs::write(&path, r#"{"version":"2.0.0","later":1,"link":{"state":"down"}}"#).unwrap();
        assert_eq!(DaemonStatus::read(&path).unwrap().version, "2.0.0", "another version's");
        assert!(DaemonStatus::read(&root.path().join("none")).is_err());
    }

    #[test]
    fn file_is_written_when_something_changed_and_every_minute() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("status.json");
        let mut file = StatusFile::new(path.clone());
        let changed = DaemonStatus { peers: 4, ..status() };
        // The state, the time, and whether the file is written.
        let table = [
            (status(), NOW, true),
            (status(), NOW + WRITE_INTERVAL_MILLIS - 1, false),
            (changed.clone(), NOW + WRITE_INTERVAL_MILLIS - 1, true),
            (changed.clone(), NOW + 2 * WRITE_INTERVAL_MILLIS - 1, true),
            (changed, NOW, true), // the clock was set back
        ];
        for (status, now, written) in table {
            let _ = fs::remove_file(&path);
            file.update(status, now).unwrap();
            assert_eq!(path.exists(), written, "{now}");
        }
        file.clear();
        assert!(!path.exists());
        let failed = StatusFile::new(root.path().join("no/status.json")).update(status(), NOW);
        assert!(failed.unwrap_err().starts_with("cannot write "));
    }

    /// Records a reconnect; returns the number of reconnects within the hour before.
    fn reconnect(reconnects: &mut Reconnects, at: i64) -> usize {
        reconnects.record(NOW + at);
        reconnects.within_hour(NOW + at)
    }

    #[test]
    fn reconnects_of_the_last_hour_are_counted_without_the_first_connection() {
        let mut reconnects = Reconnects::default();
        let table = [
            (0, 0),
            (1_000, 1),
            (3_000_000, 2),
            (HOUR_MILLIS, 3),
            (HOUR_MILLIS + 1_000, 3),
            (9 * HOUR_MILLIS, 1),
        ];
        for (at, expected) in table {
            assert_eq!(reconnect(&mut reconnects, at), expected, "{at}");
        }
        let counts = (0..2_000).map(|_| reconnect(&mut reconnects, 9 * HOUR_MILLIS));
        assert_eq!(counts.max(), Some(MAX_RECONNECTS));
    }

    #[test]
    fn link_keeps_the_time_of_its_last_change_and_its_last_error() {
        let mut link = LinkStatus::default();
        link.set_state(LinkState::Down, &"a:1", NOW);
        assert_eq!(link.since, 0, "it was down");
        link.set_state(LinkState::Up, &"b:1", NOW);
        link.set_error(&"x".repeat(999));
        link.set_state(LinkState::Down, &"b:1", NOW + 5_000);
        link.set_state(LinkState::Down, &"a:1", NOW + 9_000);
        link.set_state(LinkState::Up, &"a:1", NOW + 10_000);
        assert_eq!((link.broker.as_str(), link.since), ("a:1", 1_795_342_610));
        assert_eq!(link.error.map(|error| error.len()), Some(MAX_ERROR_CHARS));
    }
}
