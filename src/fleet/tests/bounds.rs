//! Bounded state (R21) and turns (R22): no sequence of messages makes the tables grow without end, or lets one peer
//! delay others.

use super::*;

/// A legacy event of a jail with this number.
fn in_jail(number: usize, action: Action) -> Event {
    Event { jail: Jail::new(&format!("jail{number}")).unwrap(), ..event(action, "old1", 0) }
}

/// The address with this number after 11.0.0.0.
fn numbered_ip(number: u32) -> Address {
    address(&std::net::Ipv4Addr::from(0x0b00_0000 + number).to_string())
}

fn numbered_ban(from: &str, number: u32) -> Event {
    Event { address: numbered_ip(number), ..event(Action::Ban, from, 10) }
}

/// A ban of the host with this number.
fn ban_of_host(number: usize, bantime: i64, stamp: i64) -> Event {
    Event { bantime, ..event(Action::Ban, &format!("host{number}"), stamp) }
}

#[test]
fn events_without_effect_leave_no_state() {
    use Action::{Ban as B, Unban as U};
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    // Events of more and more jails, and unbans of addresses that no host bans.
    assert!((0..500).all(|n| fleet.apply_event(&in_jail(n, B), NOW)));
    assert!(!fleet.apply_event(&in_jail(500, B), NOW), "the limit of jails");
    assert_eq!(
        (fleet.jails.len(), fleet.dirty.len(), fleet.queue.waiting().count()),
        (500, 500, 500)
    );
    for n in 0..1_000 {
        assert!(fleet.apply_event(&in_jail(n, U), NOW));
    }
    fleet.last_gc = 0;
    fleet.gc(NOW);
    assert_eq!((fleet.jails.len(), fleet.counts.legacy, fleet.queue.waiting().count()), (0, 0, 0));
    for n in 0..999 {
        let address = address(&format!("198.18.{}.{}", n / 256, n % 256));
        assert!(fleet.apply_event(&Event { address, ..event(U, "web1", 10) }, NOW));
        assert!(fleet.apply_event(&Event { address, ..event(U, "old1", 0) }, NOW));
    }
    assert!(fleet.queue.is_empty(), "they need no decision");
    fleet.last_gc = 0;
    fleet.gc(NOW);
    assert_eq!(fleet.counts.claims, 0, "old releases are dropped");
}

#[test]
fn one_host_does_not_use_the_capacity_of_all() {
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    let peer = fleet.peers.admit(&host("web1"), NOW);
    (0..100_000).for_each(|n| peer.claims.insert(&(jail(), numbered_ip(n))));
    assert!(!fleet.apply_event(&numbered_ban("web1", 100_001), NOW));
    assert!(fleet.apply_event(&numbered_ban("web2", 100_001), NOW));
    assert_eq!(
        fleet.apply_shard(&shard("web1", 20, &["203.0.113.1"]), NOW),
        Some(ShardError::OverCapacity)
    );
}

#[test]
fn single_events_of_two_jails_cause_one_spot_check_each() {
    let jails = ["sshd", "web"].map(|name| Jail::new(name).unwrap());
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    let server = ServerInstance { pid: 1, started: 0 };
    let heartbeat = Heartbeat { server, data_version: Some(1) };
    // A scan observes both jails. Long after, when no jail needs an observation, an event of each arrives.
    for now in [NOW, NOW + 200_000] {
        fleet.start_cycle(now);
        fleet.on_heartbeat(heartbeat, BTreeSet::from(jails.clone()), now);
        if now > NOW {
            for jail in jails.clone() {
                fleet.apply_event(
                    &Event { jail, stamp: now, ..event(Action::Ban, "web1", now) },
                    now,
                );
            }
        }
        let (mut spot_checks, mut imports) = (0, 0);
        for _ in 0..30 {
            match fleet.next_effect(now) {
                Effect::Idle => break,
                Effect::Persist(_) => fleet.on_persisted(true, now),
                Effect::Observe(jail, of) => {
                    spot_checks += usize::from(of.is_some());
                    let (total, bantime, database) = (Some(0), 600, Some(0));
                    let observation =
                        Observation { database, total, bantime, ..Observation::default() };
                    fleet.on_observation(&jail, of.as_deref(), observation, now);
                }
                Effect::Ban(..) => {
                    imports += 1;
                    fleet.on_done(1, now);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((spot_checks, imports), if now > NOW { (2, 2) } else { (0, 0) });
    }
}

#[test]
fn slow_observations_and_messages_take_turns() {
    let jails = ["a", "b", "c", "d", "e"].map(|name| Jail::new(name).unwrap());
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    let server = ServerInstance { pid: 1, started: 0 };
    let (mut now, mut newest) = (NOW, 0);
    let (mut observations, mut imports) = (BTreeMap::new(), BTreeMap::new());
    fleet.on_connected(now);
    for n in 0..30 {
        // An observation of a jail takes longer than a cycle, and all jails always need one.
        let started = now;
        fleet.start_cycle(now);
        fleet.on_heartbeat(Heartbeat { server, data_version: Some(n) }, jails.clone().into(), now);
        for jail in jails.clone() {
            fleet.apply_event(&Event { jail, ..event(Action::Ban, "web1", now) }, now);
        }
        while now < started + 2_000 {
            match fleet.next_effect(now) {
                Effect::Idle => now = started + 2_000,
                Effect::Persist(_) => fleet.on_persisted(true, now),
                Effect::Observe(jail, of) => {
                    now += if of.is_some() { 10 } else { 2_500 };
                    *observations.entry(jail.clone()).or_insert(0) += 1;
                    let (total, bantime, database) = (Some(0), 600, Some(0));
                    let observation = Observation {
                        database,
                        total,
                        bantime,
                        took: 2_500,
                        ..Observation::default()
                    };
                    fleet.on_observation(&jail, of.as_deref(), observation, now);
                }
                Effect::Ban(jail, _) => {
                    now += 150;
                    *imports.entry(jail).or_insert(0) += 1;
                    fleet.on_done(1, now);
                }
                other => panic!("{other:?}"),
            }
        }
        let shards = fleet.publications(now).into_iter().filter_map(|shard| shard.content);
        newest = shards.map(|shard| shard.stamp).max().unwrap_or(newest);
    }
    assert_eq!(observations.len(), 5, "{observations:?}");
    assert!(observations.values().all(|observations| *observations > 1), "{observations:?}");
    assert_eq!(imports.len(), 5, "{imports:?}");
    assert!(newest >= NOW, "the snapshot is published");
}

#[test]
fn restart_with_100_000_bans_that_another_host_claims_ends_without_an_effect() {
    const BANS: u32 = 100_000;
    const SHARDS: u32 = 512;
    let ip = |n: u32| address(&std::net::Ipv4Addr::from(0x0b00_0000 + n).to_string());
    let mut shards: Vec<Shard> = (0..SHARDS)
        .map(|n| Shard { id: ShardId::new(n, SHARDS).unwrap(), ..shard("web1", NOW, &[]) })
        .collect();
    let (mut held, mut rows) = (Vec::new(), Vec::new());
    for address in (0..BANS).map(ip) {
        let listed = ShardEntry { jail: jail(), address, start: NOW / 1000, bantime: -1 };
        shards[ShardId::of(address, SHARDS).index() as usize].bans.push(listed);
        held.push((address, None));
        rows.push((address, BipsRow { timeofban: NOW / 1000, bantime: -1, failures: 3 }));
    }
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    assert!(shards.iter().all(|shard| fleet.apply_shard(shard, NOW).is_none()));
    fleet.start_cycle(NOW);
    let server = ServerInstance { pid: 1, started: 0 };
    let heartbeat = Heartbeat { server, data_version: Some(1) };
    fleet.on_heartbeat(heartbeat, BTreeSet::from([jail()]), NOW);
    loop {
        match fleet.next_effect(NOW) {
            Effect::Persist(_) => fleet.on_persisted(true, NOW),
            Effect::Observe(jail, of) => {
                let (held, rows) = (held.iter().copied().collect(), rows.iter().copied().collect());
                let (total, bantime, database) = (Some(9), 600, Some(0));
                let observation =
                    Observation { held, rows, database, total, bantime, ..Observation::default() };
                fleet.on_observation(&jail, of.as_deref(), observation, NOW);
            }
            Effect::Continue => {}
            Effect::Idle => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(fleet.queue.is_empty());
    assert_eq!(fleet.counts.claims, BANS as usize);
}

#[test]
fn expired_legacy_claim_is_removed() {
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    let other = Jail::new("web").unwrap();
    fleet.apply_event(&event(Action::Ban, "web1", 10), NOW);
    fleet.apply_event(&Event { jail: other.clone(), ..event(Action::Ban, "web1", 11) }, NOW);
    fleet.apply_event(&Event { jail: other, ..event(Action::Unban, "web1", 12) }, NOW);
    // Seconds after the events -> the number of addresses with a claim.
    for (secs, kept) in [(600, 1), (1_100, 1), (1_300, 0)] {
        fleet.last_gc = 0;
        fleet.gc(NOW + secs * 1_000);
        let claims = fleet.peers.get(&host("web1")).map_or(0, |peer| peer.claims.len());
        assert_eq!(claims, kept, "{secs}");
    }
}

#[test]
fn claims_on_one_address_are_limited() {
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    assert!((0..256).all(|n| fleet.apply_event(&ban_of_host(n, 600, 1), 0)));
    assert!(!fleet.apply_event(&ban_of_host(257, 600, 1), 0));
    assert!(fleet.apply_event(&ban_of_host(7, 600, 2), 0), "a later event of a known host");
    let ban = Ban { start: NOW / 1000, bantime: 600 };
    assert_eq!(fleet.claim_state(&key(), &host("host7")), ClaimState::Held(2, ban));
}

#[test]
fn claims_of_many_hosts_on_one_address_give_way_to_a_senior_peer() {
    // Expired and permanent bans, of hosts with a snapshot and without.
    for (bantime, snapshot) in [(1, false), (1, true), (-1, false), (-1, true)] {
        let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
        fleet.apply_shard(&shard("web1", NOW - 10_000, &[]), NOW - 10_000);
        for n in 0..300 {
            if snapshot {
                fleet.apply_shard(&shard(&format!("host{n}"), NOW - 5_000, &[]), NOW - 5_000);
            }
            fleet.apply_event(&ban_of_host(n, bantime, NOW), NOW + 2_000);
        }
        assert!(
            fleet.apply_event(&event(Action::Ban, "web1", NOW), NOW + 3_000),
            "{bantime} {snapshot}"
        );
        assert!(matches!(fleet.claim_state(&key(), &host("web1")), ClaimState::Held(..)));
        assert_eq!(fleet.counts.claims, 256);
        assert!(!fleet.apply_event(&ban_of_host(999, bantime, NOW), NOW + 3_000));
        assert!(
            matches!(fleet.claim_state(&key(), &host("web1")), ClaimState::Held(..)),
            "the senior peer's claim stays"
        );
    }
}

/// A snapshot of a peer with so many bans, in so many shards.
fn snapshot(from: &str, stamp: i64, bans: u32, shard_count: u32) -> Vec<Shard> {
    let mut shards: BTreeMap<u32, Vec<ShardEntry>> = BTreeMap::new();
    for n in 0..bans {
        let address = numbered_ip(n);
        let (start, bantime) = (NOW / 1000, -1);
        let listed = ShardEntry { jail: jail(), address, start, bantime };
        shards.entry(ShardId::of(address, shard_count).index()).or_default().push(listed);
    }
    let shards = shards.into_iter().map(|(index, bans)| {
        let id = ShardId::new(index, shard_count).unwrap();
        Shard { host: host(from), stamp, time: 0, id, bans, unbans: Vec::new() }
    });
    shards.collect()
}

#[test]
fn small_shard_costs_little_whatever_came_before() {
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    for shard in snapshot("evil", NOW + 1_000, 99_000, 512) {
        assert_eq!(fleet.apply_shard(&shard, NOW), None);
    }
    for n in 0..60 {
        let jail = Jail::new(&format!("q{n}")).unwrap();
        let address = address("12.0.0.1");
        fleet.apply_event(&Event { jail, address, ..event(Action::Ban, "evil", 5) }, NOW);
    }
    assert!(fleet.counts.claims > 98_000);
    // Old shards, and then one that releases all claims: not at its arrival, but in small steps.
    let started = std::time::Instant::now();
    for n in 1..=300 {
        fleet.apply_shard(&Shard { bans: Vec::new(), ..shard("evil", n, &[]) }, NOW);
    }
    fleet.apply_shard(&shard("evil", NOW + 2_000, &[]), NOW);
    let received = started.elapsed();
    assert!(fleet.counts.claims > 98_000, "its arrival releases no claim");
    let mut steps = 0;
    while fleet.release_claims() {
        steps += 1;
    }
    assert!((99..700).contains(&steps), "{steps}");
    assert_eq!(fleet.counts.claims, 0);
    let all = started.elapsed();
    assert!(received < all / 2, "{received:?} of {all:?}");
}

#[test]
fn largest_peer_gives_way_to_another() {
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    for (n, name) in ["x1", "x2"].into_iter().enumerate() {
        for mut shard in snapshot(name, NOW, 100_000, 512) {
            shard.stamp += i64::try_from(n).unwrap();
            fleet.apply_shard(&shard, NOW);
        }
    }
    assert_eq!(fleet.counts.claims, claims::MAX_CLAIMS);
    let honest = snapshot("web2", NOW, 5_000, 16);
    assert!(honest.iter().all(|shard| fleet.apply_shard(shard, NOW).is_none()));
    assert_eq!(fleet.peers.get(&host("web2")).unwrap().claims.len(), 5_000);
    assert!(fleet.counts.claims <= claims::MAX_CLAIMS);
    // The large peers do not take the capacity back.
    let again = snapshot("x1", NOW + 10, 100_000, 512);
    let refused = again.iter().filter(|shard| fleet.apply_shard(shard, NOW).is_some()).count();
    assert!(refused > 0);
    assert_eq!(fleet.peers.get(&host("web2")).unwrap().claims.len(), 5_000);
    let shown: Vec<_> = fleet.limits.shown(NOW).map(|limit| limit.table).collect();
    assert!(shown.contains(&limits::BoundedTable::Claims));
}

#[test]
fn invented_peers_replace_each_other_and_no_established_peer() {
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    fleet.apply_shard(&shard("web2", NOW, &["203.0.113.1"]), NOW - 700_000);
    fleet.apply_event(&event(Action::Ban, "script-less", NOW), NOW - 700_000);
    for n in 0..3_000u32 {
        let fake =
            Event { address: numbered_ip(n), ..event(Action::Ban, &format!("fake{n}"), NOW) };
        assert!(fleet.apply_event(&fake, NOW + i64::from(n)));
    }
    let newcomer = Event { address: numbered_ip(9_000), ..event(Action::Ban, "web3", NOW) };
    assert!(fleet.apply_event(&newcomer, NOW + 3_000));
    for known in ["web2", "script-less", "web3"] {
        assert!(fleet.peers.contains(&host(known)), "{known}");
    }
    assert!(fleet.counts.claims <= 1_002, "{}", fleet.counts.claims);
    // They are dropped with their claims.
    fleet.last_gc = 0;
    fleet.gc(NOW + 1_300_000);
    assert!(!fleet.peers.contains(&host("fake2999")));
}

#[test]
fn claims_that_come_and_go_do_not_fill_the_queue() {
    let mut fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
    let mut stamp = NOW;
    for n in 0..400 {
        let listed: Vec<String> = (0..50).map(|m| format!("198.51.100.{m}")).collect();
        let listed: Vec<&str> = listed.iter().map(String::as_str).collect();
        fleet.apply_shard(&shard("evil", stamp, &listed[n % 2..]), NOW);
        fleet.apply_shard(&shard("evil", stamp + 1, &[]), NOW);
        while fleet.release_claims() {}
        stamp += 2;
        fleet.check_invariants().unwrap();
    }
    fleet.apply_shard(&shard("web1", NOW, &[IP]), NOW);
    let waiting: Vec<_> = fleet.queue.waiting().map(|(_, waiting)| waiting).collect();
    assert_eq!(waiting, [key()], "only the new claim waits");
}

#[test]
fn dropped_import_leaves_no_last_releaser() {
    let mut it = Harness::new();
    it.receive(&event(Action::Ban, "web1", 10));
    assert_eq!(it.run_cycle(), ["ban"]);
    it.receive(&event(Action::Ban, "old1", 0));
    it.receive(&event(Action::Unban, "old1", 0));
    it.fleet.apply_cleared(&host("web1"), 0, NOW);
    while it.fleet.release_claims() {}
    assert!(it.fleet.last_releaser.contains_key(&key()));
    it.detect();
    it.fleet.check_invariants().unwrap();
    assert!(it.fleet.last_releaser.is_empty(), "notify reported a local ban");
}

#[test]
fn snapshot_of_an_imported_host_is_requested_after_a_restart() {
    let mut it = Harness::new();
    it.receive(&event(Action::Ban, "gone", 10));
    assert_eq!(it.run_cycle(), ["ban"]);
    it.restart();
    it.fleet.on_connected(NOW);
    it.fleet.apply_shard(&shard("me", NOW, &[]), NOW);
    let topics = it.next_subscription(1);
    assert!(topics.contains(&"state/gone/0".to_owned()), "{topics:?}");
}

#[test]
fn flood_of_fleet_unbans_and_bans_take_turns() {
    let mut it = Harness::new();
    it.run_cycle();
    for n in 0..2_000u32 {
        let ip = address(&std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string());
        let made = NOW + i64::from(n);
        let unban = Event {
            address: ip,
            reason: Some(crate::wire::Reason::Fleet),
            id: Some(UnbanId::made_by(&host("evil"), made)),
            all_jails: true,
            ..event(Action::Unban, "evil", made)
        };
        assert!(it.fleet.apply_event(&unban, it.now));
    }
    it.receive(&event(Action::Ban, "web1", NOW));
    let mut effects = Vec::new();
    while !effects.contains(&"ban") {
        match it.fleet.next_effect(it.now) {
            Effect::Persist(_) => it.fleet.on_persisted(true, it.now),
            Effect::Observe(jail, of) => {
                let observation =
                    Observation { database: Some(0), bantime: 600, ..Observation::default() };
                it.fleet.on_observation(&jail, of.as_deref(), observation, it.now);
            }
            Effect::ApplyTombstone(_, addresses) => {
                assert!(addresses.len() <= 100);
                effects.push("unban");
                it.fleet.on_done(0, it.now);
            }
            Effect::Ban(..) => effects.push("ban"),
            other => panic!("{other:?}"),
        }
    }
    assert!(effects.len() <= 4, "{effects:?}");
}

#[test]
fn own_stamps_far_ahead_return_below_the_horizon() {
    let stamp = NOW + 1_000 * 86_400_000;
    let persisted = PersistedState { stamp, ..PersistedState::default() };
    let mut it = Harness {
        fleet: Controller::new(host("me"), Timing::default(), persisted),
        ..Harness::new()
    };
    it.fleet.on_connected(it.now);
    it.run_cycle();
    let published = it.fleet.publications(it.now);
    let first = published[0].content.as_ref().unwrap().stamp;
    assert!(!crate::guard::is_ahead(first, it.now));
    it.run_cycle();
    it.fleet.on_connected(it.now);
    let again = it.fleet.publications(it.now)[0].content.as_ref().unwrap().stamp;
    assert!(again > first, "{again} {first}");
}
