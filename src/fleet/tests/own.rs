//! What this host detected, and its operator banned, before fail2ban's database has it.

use super::*;

/// The addresses that its snapshot lists.
fn listed(it: &mut Harness) -> Vec<Address> {
    it.fleet.on_connected(it.now);
    it.run_cycle();
    let published = it.fleet.publications(it.now);
    published[0].content.as_ref().unwrap().bans.iter().map(|ban| ban.address).collect()
}

#[test]
fn a_detection_that_only_its_event_tells_of_is_learned_from_it() {
    // The spool cannot be written: notify's child publishes, and the event comes back.
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
fn a_detection_that_has_no_row_is_remembered_until_it_has_one() {
    let mut it = Harness::new();
    it.held.insert(address(IP), Some(600));
    it.detect();
    let start = it.now / 1000;
    for _ in 0..4 {
        it.run_cycle();
    }
    assert_eq!(it.disk.pending_detections.len(), 1, "the row should have been there by now");
    it.restart();
    assert_eq!(listed(&mut it), [address(IP)]);
    it.rows.insert(address(IP), BipsRow { timeofban: start, bantime: 600, failures: 3 });
    it.run_cycle();
    it.run_cycle();
    assert_eq!(it.disk.pending_detections.len(), 0);
    assert_eq!(listed(&mut it), [address(IP)]);
}

#[test]
fn what_an_operator_banned_a_moment_before_the_import_stays_his() {
    for raced in [false, true] {
        let mut it = Harness::new();
        it.raced = raced;
        it.receive(&event(Action::Ban, "web1", 10));
        assert_eq!(it.run_cycle(), ["ban"]);
        it.receive(&event(Action::Unban, "web1", 20));
        assert_eq!(it.run_cycle().is_empty(), raced, "banip said that it was not new: {raced}");
    }
}

#[test]
fn a_detection_makes_an_import_this_host_s_own() {
    for detected in [false, true] {
        let mut it = Harness::new();
        it.receive(&event(Action::Ban, "web1", 10));
        assert_eq!(it.run_cycle(), ["ban"]);
        it.run_cycle();
        // fail2ban lost the import and detected the address itself; the row is still the import's.
        it.now += 300_000;
        if detected {
            it.detect();
        }
        it.receive(&event(Action::Unban, "web1", 20));
        assert_eq!(it.run_cycle().is_empty(), detected, "{detected}");
    }
}

#[test]
fn what_is_not_in_a_new_database_nobody_lifted() {
    // It was detected here, too; fail2ban has a new database -> what was lost is banned for the other host.
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
            it.made = it.server.started;
        }
        assert_eq!(it.run_cycle().is_empty(), !new, "{own} {new}");
    }
}

#[test]
fn a_jail_that_was_gone_restores_its_imports() {
    let mut it = Harness::new();
    it.receive(&event(Action::Ban, "web1", 10));
    assert_eq!(it.run_cycle(), ["ban"]);
    it.run_cycle();
    it.restart();
    let held = std::mem::take(&mut it.held);
    assert_eq!(it.run_cycle(), NOTHING, "it restores");
    // fail2ban stops the jail for longer than one restores; the claim ends meanwhile.
    let (none, heartbeat) = (BTreeSet::new(), Heartbeat { server: it.server, data_version: None });
    it.fleet.classify_missing_jails(&none, &none, it.server, it.now);
    it.fleet.on_heartbeat(heartbeat, none, it.now);
    it.receive(&event(Action::Unban, "web1", 20));
    it.now += 100_000;
    assert_eq!(it.run_cycle(), NOTHING, "it restores again");
    it.held = held;
    assert_eq!(it.run_cycle(), ["free"]);
}

#[test]
fn forged_event_of_this_host_makes_no_ban_its_own() {
    let own = |jail: &str, time| {
        let reason = Some(crate::wire::Reason::Detected);
        let jail = Jail::new(jail).unwrap();
        Event { jail, time, reason, ..event(Action::Ban, "me", NOW) }
    };
    // What is imported stays an import.
    let mut it = Harness::new();
    it.receive(&event(Action::Ban, "web1", 10));
    assert_eq!(it.run_cycle(), ["ban"]);
    it.fleet.apply_echo(&own("sshd", NOW / 1000), it.now);
    assert_eq!(listed(&mut it), []);
    it.receive(&event(Action::Unban, "web1", 20));
    assert_eq!(it.run_cycle(), ["free"]);
    // What fail2ban does not ban is none, nor while fail2ban is away.
    let mut it = Harness::new();
    it.run_cycle();
    it.fleet.apply_echo(&own("sshd", NOW / 1000), it.now);
    it.fleet.observe_offline_jail(&jail(), &std::iter::empty().collect(), it.now);
    assert_eq!(listed(&mut it), []);
    // Of jails that are not here nothing is kept, and of others so much.
    for n in 0..3_000 {
        let ip = address(&std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string());
        it.fleet.apply_echo(&Event { address: ip, ..own(&format!("x{n}"), NOW / 1000) }, it.now);
        it.fleet.apply_echo(&Event { address: ip, ..own("sshd", NOW / 1000) }, it.now);
    }
    assert_eq!(
        (it.fleet.jails.len(), it.fleet.jails[&jail()].pending_detections.len()),
        (1, 1_000)
    );
    let limits: Vec<_> = it.fleet.limits.shown(it.now).map(|limit| limit.max).collect();
    assert_eq!(limits, [1_000]);
    // While fail2ban is away, a minute ends them.
    it.now += 61_000;
    it.fleet.last_gc = 0;
    it.fleet.gc(it.now);
    assert_eq!(it.fleet.jails.get(&jail()).map_or(0, |local| local.pending_detections.len()), 0);
}

#[test]
fn ban_that_fail2ban_is_about_to_restore_is_freed_once_it_is_back() {
    let mut it = Harness::new();
    it.rows.insert(address(IP), BipsRow { timeofban: NOW / 1000, bantime: 600, failures: 3 });
    assert_eq!(it.run_cycle(), NOTHING);
    let id = Some(UnbanId::made_by(&host("web2"), NOW));
    let reason = Some(crate::wire::Reason::Fleet);
    it.receive(&Event { reason, id, ..event(Action::Unban, "web2", 7) });
    assert_eq!(it.run_cycle(), NOTHING, "fail2ban would restore it all the same");
    assert_eq!(listed(&mut it), [address(IP)]);
    it.held.insert(address(IP), Some(600));
    it.run_cycle();
    assert_eq!(listed(&mut it), []);
    assert!(it.held.is_empty());
}
