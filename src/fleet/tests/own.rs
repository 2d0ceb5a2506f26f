//! Local and manual bans (R6, R9), also before fail2ban's database has them.

use super::*;

/// The addresses that this host's snapshot lists.
fn listed(it: &mut Harness) -> Vec<Address> {
    it.fleet.on_connected(it.now);
    it.run_cycle();
    let published = it.fleet.publications(it.now);
    published[0].content.as_ref().unwrap().bans.iter().map(|ban| ban.address).collect()
}

#[test]
fn detection_without_a_spool_file_is_learned_from_its_echo() {
    // The spool is not writable: notify's detached process publishes, and the broker returns the event.
    let mut it = Harness::new();
    it.held.insert(address(IP), Some(600));
    let reason = Some(crate::wire::Reason::Detected);
    it.fleet.apply_echo(&Event { reason, ..event(Action::Ban, "me", NOW) }, NOW);
    it.run_cycle();
    it.fleet.on_connected(it.now);
    it.run_cycle();
    let published = it.fleet.publications(it.now);
    let bans = &published[0].content.as_ref().unwrap().bans;
    assert_eq!((bans.len(), bans[0].start), (1, NOW / 1000));
}

#[test]
fn detection_without_a_row_is_persisted_until_it_has_one() {
    let mut it = Harness::new();
    it.held.insert(address(IP), Some(600));
    it.detect();
    let start = it.now / 1000;
    for _ in 0..4 {
        it.run_cycle();
    }
    assert_eq!(it.disk.pending_detections.len(), 1, "fail2ban had time to write the row");
    it.restart();
    assert_eq!(listed(&mut it), [address(IP)]);
    it.rows.insert(address(IP), BipsRow { timeofban: start, bantime: 600, failures: 3 });
    it.run_cycle();
    it.run_cycle();
    assert_eq!(it.disk.pending_detections.len(), 0);
    assert_eq!(listed(&mut it), [address(IP)]);
}

#[test]
fn manual_ban_just_before_the_import_is_not_an_import() {
    for raced in [false, true] {
        let mut it = Harness::new();
        it.raced = raced;
        it.receive(&event(Action::Ban, "web1", 10));
        assert_eq!(it.run_cycle(), ["ban"]);
        it.receive(&event(Action::Unban, "web1", 20));
        assert_eq!(it.run_cycle().is_empty(), raced, "banip counted no new ban: {raced}");
    }
}

#[test]
fn detection_turns_an_import_into_a_local_ban() {
    for detected in [false, true] {
        let mut it = Harness::new();
        it.receive(&event(Action::Ban, "web1", 10));
        assert_eq!(it.run_cycle(), ["ban"]);
        it.run_cycle();
        // fail2ban lost the import and detected the address itself. The row is still the import's.
        it.now += 300_000;
        if detected {
            it.detect();
        }
        it.receive(&event(Action::Unban, "web1", 20));
        assert_eq!(it.run_cycle().is_empty(), detected, "{detected}");
    }
}

#[test]
fn ban_missing_from_a_new_database_is_not_overridden() {
    // This host detected the address, too; fail2ban has a new database -> the lost ban is imported again.
    for (own, new) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut it = Harness::new();
        if own {
            it.held.insert(address(IP), Some(600));
            let timeofban = it.now / 1000;
            it.rows.insert(address(IP), BipsRow { timeofban, bantime: 600, failures: 3 });
        }
        it.receive(&event(Action::Ban, "web1", 10));
        assert_eq!(it.run_cycle().is_empty(), own);
        it.run_cycle();
        it.release_all();
        it.server = ServerInstance { pid: 2, started: it.now / 1000 };
        if new {
            it.database_created = it.server.started;
        }
        assert_eq!(it.run_cycle().is_empty(), !new, "{own} {new}");
    }
}

#[test]
fn jail_that_was_missing_restores_its_imports() {
    let mut it = Harness::new();
    it.receive(&event(Action::Ban, "web1", 10));
    assert_eq!(it.run_cycle(), ["ban"]);
    it.run_cycle();
    it.restart();
    let held = std::mem::take(&mut it.held);
    assert_eq!(it.run_cycle(), NOTHING, "the jail may be restoring");
    // fail2ban stops the jail for longer than the restore grace. The claim ends meanwhile.
    let (none, heartbeat) = (BTreeSet::new(), Heartbeat { server: it.server, data_version: None });
    it.fleet.classify_missing_jails(&none, &none, it.server, it.now);
    it.fleet.on_heartbeat(heartbeat, none, it.now);
    it.receive(&event(Action::Unban, "web1", 20));
    it.now += 100_000;
    assert_eq!(it.run_cycle(), NOTHING, "the jail may be restoring again");
    it.held = held;
    assert_eq!(it.run_cycle(), ["unban"]);
}

/// A detection in a jail, which this host published.
fn own_event(jail: &str) -> Event {
    let reason = Some(crate::wire::Reason::Detected);
    Event { jail: Jail::new(jail).unwrap(), reason, ..event(Action::Ban, "me", NOW) }
}

#[test]
fn forged_event_of_this_host_makes_no_local_ban() {
    // An import stays an import.
    let mut it = Harness::new();
    it.receive(&event(Action::Ban, "web1", 10));
    assert_eq!(it.run_cycle(), ["ban"]);
    it.fleet.apply_echo(&own_event("sshd"), it.now);
    assert_eq!(listed(&mut it), []);
    it.receive(&event(Action::Unban, "web1", 20));
    assert_eq!(it.run_cycle(), ["unban"]);
    // A ban that the operator made by hand stays manual.
    let mut it = Harness::new();
    let manual = BipsRow { timeofban: NOW / 1000 - 100, bantime: 600, failures: 0 };
    it.rows.insert(address(IP), manual);
    it.held.insert(address(IP), Some(600));
    it.run_cycle();
    it.fleet.apply_echo(&own_event("sshd"), it.now);
    it.run_cycle();
    assert_eq!(listed(&mut it), []);
    // An address that fail2ban does not ban is no local ban, also while fail2ban is down.
    let mut it = Harness::new();
    it.run_cycle();
    it.fleet.apply_echo(&own_event("sshd"), it.now);
    it.fleet.observe_offline_jail(&jail(), &std::iter::empty().collect(), it.now);
    assert_eq!(listed(&mut it), []);
    // Events of unknown jails leave no state. The number of echoes is limited.
    for n in 0..3_000 {
        let ip = address(&std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string());
        it.fleet.apply_echo(&Event { address: ip, ..own_event(&format!("x{n}")) }, it.now);
        it.fleet.apply_echo(&Event { address: ip, ..own_event("sshd") }, it.now);
    }
    assert_eq!(
        (it.fleet.jails.len(), it.fleet.jails[&jail()].pending_detections.len()),
        (1, 1_000)
    );
    let limits: Vec<_> = it.fleet.limits.shown(it.now).map(|limit| limit.max).collect();
    assert_eq!(limits, [1_000]);
    // While fail2ban is down, they expire after a minute.
    it.now += 61_000;
    it.fleet.last_gc = 0;
    it.fleet.gc(it.now);
    assert_eq!(
        it.fleet.jails.get(&jail()).map_or(0, |jail_state| jail_state.pending_detections.len()),
        0
    );
}

#[test]
fn ban_that_fail2ban_is_about_to_restore_is_unbanned_once_restored() {
    let mut it = Harness::new();
    it.rows.insert(address(IP), BipsRow { timeofban: NOW / 1000, bantime: 600, failures: 3 });
    assert_eq!(it.run_cycle(), NOTHING);
    let id = Some(UnbanId::made_by(&host("web2"), NOW));
    let reason = Some(crate::wire::Reason::Fleet);
    it.receive(&Event { reason, id, ..event(Action::Unban, "web2", 7) });
    assert_eq!(it.run_cycle(), NOTHING, "an unban does not stop the restore");
    assert_eq!(listed(&mut it), [address(IP)]);
    it.held.insert(address(IP), Some(600));
    it.run_cycle();
    assert_eq!(listed(&mut it), []);
    assert!(it.held.is_empty());
}
