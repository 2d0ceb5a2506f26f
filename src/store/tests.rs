//! What is saved, by this version and the first layout, is loaded.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::config::Topic;
use crate::daemon::former::Former;
use crate::fleet::provenance::{Provenance, Trust};

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

fn mark(done: bool) -> Import {
    let id = UnbanId::new("web2-5").unwrap();
    let claim = |name, stamp, unbans: &[UnbanId]| {
        let ban = Ban { start: 4, bantime: -1 };
        let unbans = seen_tombstones(unbans.to_vec());
        ImportSource { host: host(name), stamp, ban, unbans }
    };
    let claims = [claim("w\"eb2", 6, &[]), claim("web1", 5, &[id])].into_iter().collect();
    Import {
        is_applied: done,
        requested_at: 1,
        confirmed_at: 2,
        bantime: 600,
        row_seen: done,
        sources: claims,
        jail_epoch: None,
    }
}

fn key(ip: &str) -> BanKey {
    (Jail::new("sshd").unwrap(), Address::new(ip).unwrap())
}

#[test]
fn what_was_saved_is_loaded_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/fleet.sqlite3");
    let (one, two) = (key("192.0.2.1"), key("2001:db8::1"));
    let id = UnbanId::new("web2-5").unwrap();
    let pardon = |scope: &str| FleetUnban {
        scope: JailScope::new(scope).unwrap(),
        address: one.1,
        id: id.clone(),
    };
    let changes = [
        Record::Import(one.clone(), Some(mark(false))),
        Record::Import(two.clone(), Some(mark(true))),
        Record::Import(one.clone(), Some(mark(true))),
        Record::Override(one.clone(), host("web1"), Some(Override { start: 1, stamp: 2 })),
        Record::Override(two.clone(), host("web1"), Some(Override { start: 3, stamp: 4 })),
        Record::Tombstone(pardon("*"), Some(false)),
        Record::Tombstone(pardon("sshd"), Some(false)),
        Record::Tombstone(pardon("*"), Some(true)),
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
        Record::Tombstone(pardon("sshd"), None),
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
fn each_write_is_on_disk_before_it_is_relied_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("fleet.sqlite3")).unwrap();
    let asked = |pragma: &str| -> String {
        let value = |row: &rusqlite::Row<'_>| row.get::<_, rusqlite::types::Value>(0);
        format!("{:?}", store.connection.pragma_query_value(None, pragma, value).unwrap())
    };
    // With a log, FULL syncs it at each commit.
    assert_eq!(asked("synchronous"), "Integer(2)");
    assert_eq!(asked("journal_mode"), r#"Text("wal")"#);
}

#[test]
fn row_of_another_type_is_skipped_and_the_others_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&dir.path().join("fleet.sqlite3")).unwrap();
    let changes = ["192.0.2.1", "192.0.2.2"].map(|ip| Record::Import(key(ip), Some(mark(true))));
    store.save(&changes).unwrap();
    let odd = "UPDATE marks SET asked = 1.5 WHERE ip = '192.0.2.1';
               INSERT INTO unbans VALUES(x'ff', x'ff', x'ff', 'x');
               INSERT INTO scripts VALUES('sshd', '192.0.2.3', 'old', 'soon');";
    store.connection.execute_batch(odd).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.imports.keys().collect::<Vec<_>>(), [&key("192.0.2.2")]);
}

#[test]
fn a_broken_database_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fleet.sqlite3");
    std::fs::write(&path, "this is no database, and long enough to be looked at").unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.load().unwrap(), PersistedState::default());
    assert!(dir.path().join("fleet.broken").exists());
    drop(store);
    std::fs::remove_file(&path).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE marks(jail TEXT, ip TEXT)").unwrap();
    drop(other);
    assert_eq!(Store::open(&path).unwrap().load().unwrap(), PersistedState::default());
}

#[test]
fn what_the_first_version_kept_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fleet.sqlite3");
    let before = Connection::open(&path).unwrap();
    before
        .execute_batch(
            r#"CREATE TABLE imports(jail TEXT NOT NULL, ip TEXT NOT NULL, mark TEXT NOT NULL,
                until INTEGER, words TEXT NOT NULL, PRIMARY KEY(jail, ip)) WITHOUT ROWID;
            INSERT INTO imports VALUES
                ('sshd', '192.0.2.1', 'done', 9, '{"web1":[5,7,4,-1],"web2":[6,8]}'),
                ('sshd', '192.0.2.2', 'intended', NULL, '{"web1":[5,7,4,600]}'),
                ('sshd', '192.0.2.3', 'heard', NULL, '{"old":[0,7,0,600]}');"#,
        )
        .unwrap();
    drop(before);
    for _ in 0..2 {
        let remembered = Store::open(&path).unwrap().load().unwrap();
        let done = &remembered.imports[&key("192.0.2.1")];
        assert!(done.is_applied && !remembered.imports[&key("192.0.2.2")].is_applied);
        assert_eq!(done.sources.len(), 1);
        assert_eq!((done.sources[0].host.as_str(), done.sources[0].stamp), ("web1", 5));
        assert_eq!(done.sources[0].ban, Ban { start: 4, bantime: -1 });
        assert_eq!(remembered.imports.len(), 2);
        assert_eq!(remembered.legacy_claims[&(key("192.0.2.3"), host("old"))], 7);
    }
}

#[test]
fn an_identity_is_kept_with_the_changes_it_brought_and_a_store_of_before_has_none() {
    let provenance = |topic: &str, trust| {
        let [topic, brokers, node] = [topic, "hub:1883,hub2:1883", "web1"].map(str::to_owned);
        let keys = ["0a1b", "2c3d"].map(str::to_owned).into();
        Provenance { topic, brokers, node, trust, keys }
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fleet.sqlite3");
    let mut store = Store::open(&path).unwrap();
    store.save(&[Record::LegacyClaim(key("192.0.2.1"), host("old"), Some(7))]).unwrap();
    store.connection.execute_batch("DROP TABLE identity").unwrap();
    drop(store);
    let mut store = Store::open(&path).unwrap();
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
    // What the broker keeps on the former topic is still to be cleared, unless that is the topic again.
    let former = |topic| Former { node: host("web1"), topic: Topic::of_fleet(topic).unwrap() };
    assert_eq!(store.former().unwrap(), [former("t")]);
    store.adopt(&first, &[]).unwrap();
    assert_eq!(store.former().unwrap(), [former("u")]);
    store.forget_former(&former("u")).unwrap();
    assert_eq!(store.former().unwrap(), []);
    assert!(store.load().unwrap().legacy_claims.is_empty());
    let laxer = second.clone().with(provenance("u", Trust::Mixed));
    assert_eq!(laxer.client_id(), second.client_id());
}
