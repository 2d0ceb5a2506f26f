//! Tests that saved records are loaded unchanged, and that a database with another schema is moved aside.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::config::Topic;
use crate::fleet::imports::ImportState;
use crate::fleet::provenance::{Provenance, Trust};
use crate::store::Former;

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

fn source(name: &str, stamp: i64, unbans: &[UnbanId]) -> ImportSource {
    let unbans = seen_tombstones(unbans.to_vec());
    ImportSource { host: host(name), stamp, ban: Ban { start: 4, bantime: -1 }, unbans }
}

fn import(is_applied: bool) -> Import {
    let id = UnbanId::new("web2-5").unwrap();
    let sources = [source("w\"eb2", 6, &[]), source("web1", 5, &[id])].into_iter().collect();
    Import {
        state: if is_applied { ImportState::Applied } else { ImportState::Intended },
        requested_at: 1,
        confirmed_at: 2,
        bantime: 600,
        row_seen: is_applied,
        sources,
        jail_epoch: None,
    }
}

fn key(ip: &str) -> BanKey {
    (Jail::new("sshd").unwrap(), Address::new(ip).unwrap())
}

fn fleet_unban(scope: &str) -> FleetUnban {
    FleetUnban {
        scope: JailScope::new(scope).unwrap(),
        address: Address::new("192.0.2.1").unwrap(),
        id: UnbanId::new("web2-5").unwrap(),
    }
}

#[test]
fn saved_records_are_loaded_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/fleet.sqlite3");
    let (one, two) = (key("192.0.2.1"), key("2001:db8::1"));
    let changes = [
        Record::Import(one.clone(), Some(import(false))),
        Record::Import(two.clone(), Some(import(true))),
        Record::Import(one.clone(), Some(import(true))),
        Record::Override(one.clone(), host("web1"), Some(Override { start: 1, stamp: 2 })),
        Record::Override(two.clone(), host("web1"), Some(Override { start: 3, stamp: 4 })),
        Record::Tombstone(fleet_unban("*"), Some(false)),
        Record::Tombstone(fleet_unban("sshd"), Some(false)),
        Record::Tombstone(fleet_unban("*"), Some(true)),
        Record::LegacyClaim(one.clone(), host("old"), Some(7)),
        Record::LegacyClaim(two.clone(), host("old"), Some(8)),
        Record::PendingDetection(one.clone(), Some(Ban { start: 5, bantime: -1 })),
        Record::PendingDetection(two.clone(), Some(Ban { start: 5, bantime: 600 })),
        Record::Stamp(9),
        Record::Stamp(10),
    ];
    let gone = [
        Record::Import(two.clone(), None),
        Record::Override(two.clone(), host("web1"), None),
        Record::Tombstone(fleet_unban("sshd"), None),
        Record::LegacyClaim(two.clone(), host("old"), None),
        Record::PendingDetection(two, None),
    ];
    let mut expected = PersistedState::default();
    let mut store = Store::open(&path).unwrap();
    for changes in [&changes[..], &gone] {
        store.save(changes).unwrap();
        changes.iter().cloned().for_each(|change| expected.apply(change));
        drop(store);
        store = Store::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), expected);
    }
    assert_eq!(
        (expected.imports.len(), expected.pending_detections.len(), expected.stamp),
        (1, 1, 10)
    );
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn each_commit_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("fleet.sqlite3")).unwrap();
    let connection = &store.connection;
    let synchronous: i64 =
        connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
    let journal: String =
        connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    // 2 is FULL. With a write-ahead log, FULL syncs the log at each commit.
    assert_eq!((synchronous, journal.as_str()), (2, "wal"));
}

#[test]
fn row_of_another_type_is_skipped_and_the_others_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&dir.path().join("fleet.sqlite3")).unwrap();
    let changes = ["192.0.2.1", "192.0.2.2"].map(|ip| Record::Import(key(ip), Some(import(true))));
    store.save(&changes).unwrap();
    let odd = "UPDATE imports SET requested_at = 1.5 WHERE ip = '192.0.2.1';
               INSERT INTO tombstones VALUES(x'ff', x'ff', x'ff', 'x');
               INSERT INTO legacy_claims VALUES('sshd', '192.0.2.3', 'old', 'soon');";
    store.connection.execute_batch(odd).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.imports.keys().collect::<Vec<_>>(), [&key("192.0.2.2")]);
}

#[test]
fn broken_database_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fleet.sqlite3");
    std::fs::write(&path, "this is no database, and long enough to be looked at").unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.load().unwrap(), PersistedState::default());
    assert!(dir.path().join("fleet.broken").exists());
}

#[test]
fn database_with_another_schema_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fleet.sqlite3");
    let before = "CREATE TABLE marks(jail TEXT, ip TEXT)";
    let other = "CREATE TABLE imports(jail TEXT, ip TEXT)";
    let same_number = format!("{other}; PRAGMA user_version = {SCHEMA_VERSION}");
    let later = format!("PRAGMA user_version = {}", SCHEMA_VERSION + 1);
    for found in [before, other, &same_number, &later] {
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(found).unwrap();
        drop(connection);
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), PersistedState::default());
        assert!(dir.path().join("fleet.broken").exists(), "{found}");
        store.save(&[Record::Stamp(5)]).unwrap();
        drop(store);
        assert_eq!(Store::open(&path).unwrap().stamp().unwrap(), 5);
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(dir.path().join("fleet.broken")).unwrap();
    }
}

fn provenance(topic: &str, trust: Trust) -> Provenance {
    let [topic, brokers, node] = [topic, "hub:1883,hub2:1883", "web1"].map(str::to_owned);
    let keys = ["0a1b", "2c3d"].map(str::to_owned).into();
    Provenance { topic, brokers, node, trust, keys }
}

fn former(topic: &str) -> Former {
    Former { node: host("web1"), topic: Topic::of_fleet(topic).unwrap() }
}

#[test]
fn identity_is_kept_with_the_changes_that_it_brought() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fleet.sqlite3");
    let mut store = Store::open(&path).unwrap();
    store.save(&[Record::LegacyClaim(key("192.0.2.1"), host("old"), Some(7))]).unwrap();
    assert_eq!(store.identity().unwrap(), None);
    assert_eq!(store.load().unwrap().legacy_claims.len(), 1);
    let first = Identity::draw(provenance("t", Trust::Open)).unwrap();
    let second = Identity::draw(provenance("u", Trust::Strict)).unwrap();
    assert_ne!(first.client_id(), second.client_id());
    let digits = second.client_id().strip_prefix("f2bmqtt-web1-").unwrap().to_owned();
    assert!(digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digits}");
    store.adopt(&first, &[]).unwrap();
    store.adopt(&second, &[Record::LegacyClaim(key("192.0.2.1"), host("old"), None)]).unwrap();
    drop(store);
    let mut store = Store::open(&path).unwrap();
    assert_eq!(store.identity().unwrap(), Some(second.clone()));
    // The daemon still has to clear the former topic on the broker, unless the topic is the current one again.
    assert_eq!(store.former().unwrap(), [former("t")]);
    store.adopt(&first, &[]).unwrap();
    assert_eq!(store.former().unwrap(), [former("u")]);
    store.forget_former(&former("u")).unwrap();
    assert_eq!(store.former().unwrap(), []);
    assert!(store.load().unwrap().legacy_claims.is_empty());
    let laxer = second.clone().with(provenance("u", Trust::Mixed));
    assert_eq!(laxer.client_id(), second.client_id());
}
