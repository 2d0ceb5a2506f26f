//! Tombstones: which claims they void, how they are applied, and how many are kept.

use super::*;
use crate::model::HostName;
use crate::wire::Ban;

const NOW: i64 = 10_000_000_000;
const DAY: i64 = 86_400_000;

fn fleet_unban(scope: &str, made: i64) -> FleetUnban {
    fleet_unban_of("web2", "192.0.2.1", scope, made)
}

fn fleet_unban_of(maker: &str, address: &str, scope: &str, made: i64) -> FleetUnban {
    let host = HostName::new(maker).unwrap();
    let address = Address::new(address).unwrap();
    FleetUnban { scope: JailScope::new(scope).unwrap(), address, id: UnbanId::made_by(&host, made) }
}

fn key(jail: &str) -> BanKey {
    (Jail::new(jail).unwrap(), Address::new("192.0.2.1").unwrap())
}

fn claim(stamp: i64, carries: &[&FleetUnban]) -> Claim {
    let unbans: Vec<_> = carries.iter().map(|fleet_unban| fleet_unban.id.clone()).collect();
    let ban = Some(Ban { start: 1, bantime: 600 });
    Claim { host: HostName::new("web1").unwrap(), stamp, ban, unbans: Some(unbans.into()) }
}

/// A claim on a ban that started so many seconds after the fleet unban, and does not carry it.
fn claim_after_unban(seconds: i64) -> Claim {
    let ban = Some(Ban { start: NOW / 1000 + seconds, bantime: 600 });
    Claim { ban, ..claim(1, &[]) }
}

fn ip(number: u32) -> String {
    std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string()
}

/// Applies waiting tombstones in these jails; returns the unbans that fail2ban would execute, in order.
fn apply(tombstones: &mut Tombstones, jails: &BTreeSet<Jail>, max: usize) -> Vec<(Jail, Address)> {
    let batch = tombstones.next_batch(max);
    let mut keys = Vec::new();
    for jail in jails {
        for address in &batch {
            let key = (jail.clone(), *address);
            if tombstones.is_due(&key, None, &Timing::default()) {
                tombstones.mark_applied(&key);
                keys.push(key);
            }
        }
    }
    keys
}

fn none(_: Address, _: &JailScope) -> bool {
    false
}

#[test]
fn claim_without_a_known_tombstone_of_its_address_is_void() {
    let (timing, mut tombstones) = (Timing::default(), Tombstones::default());
    let (every, one) = (fleet_unban("*", NOW), fleet_unban("sshd", NOW + 1));
    assert!(!tombstones.voids(&key("sshd"), &claim(1, &[]), &timing));
    assert_eq!(tombstones.learn(&every, NOW, &timing).len(), 1);
    assert!(tombstones.learn(&every, NOW, &timing).is_empty(), "once is enough");
    assert_eq!(tombstones.learn(&one, NOW, &timing).len(), 1);
    let table = [
        ("sshd", claim(1, &[]), true),
        ("sshd", claim(1, &[&every]), true),
        ("sshd", claim(1, &[&every, &one]), false),
        ("web", claim(1, &[&every]), false),
        ("web", claim(1, &[&one]), true),
        ("sshd", claim(0, &[]), false), // a legacy claim is newer than the unban, or was removed with it
        ("sshd", claim_after_unban(3_600), true),
        ("sshd", claim_after_unban(3_601), false), // no clock is so far off: it was detected after the unban
    ];
    for (jail, claim, void) in table {
        assert_eq!(tombstones.voids(&key(jail), &claim, &timing), void, "{jail} {claim:?}");
    }
}

#[test]
fn tombstone_is_applied_once_in_every_jail_and_then_repeated() {
    let (timing, mut tombstones) = (Timing::default(), Tombstones::default());
    let jails = BTreeSet::from([key("sshd").0, key("web").0]);
    tombstones.learn(&fleet_unban("*", NOW), NOW, &timing);
    assert_eq!(tombstones.ids_of(&key("sshd")), []);
    assert_eq!(apply(&mut tombstones, &jails, 9), [key("sshd"), key("web")]);
    assert!(tombstones.is_applying() && !tombstones.has_unapplied());
    assert_eq!(tombstones.settle(&jails, |_, _| true), [], "another jail is to come");
    assert!(!tombstones.has_unapplied());
    tombstones.retry_deferred();
    assert_eq!(apply(&mut tombstones, &jails, 9), []);
    let record = Record::Tombstone(fleet_unban("*", NOW), Some(true));
    assert_eq!(tombstones.settle(&jails, none), [(key("web").1, record)]);
    assert_eq!(tombstones.settle(&jails, none), []);
    assert!(!tombstones.has_unapplied());
    assert_eq!(tombstones.ids_of(&key("web")), [fleet_unban("*", NOW).id]);
    assert_eq!(tombstones.applied().collect::<Vec<_>>(), [fleet_unban("*", NOW)]);
}

#[test]
fn tombstone_that_did_not_reach_fail2ban_is_retried() {
    let (timing, mut tombstones) = (Timing::default(), Tombstones::default());
    let jails = BTreeSet::from([key("sshd").0]);
    tombstones.learn(&fleet_unban("sshd", NOW), NOW, &timing);
    assert_eq!(tombstones.next_batch(9), [key("sshd").1]);
    tombstones.retry();
    assert_eq!(apply(&mut tombstones, &jails, 9), [key("sshd")]);
    // A jail was added meanwhile that it is for, too: nothing is settled before.
    tombstones.learn(&fleet_unban("*", NOW + 1), NOW, &timing);
    assert_eq!(apply(&mut tombstones, &jails, 9), [key("sshd")]);
    let both = BTreeSet::from([key("sshd").0, key("web").0]);
    assert_eq!(tombstones.settle(&both, none).len(), 1);
    tombstones.retry_deferred();
    assert_eq!(apply(&mut tombstones, &both, 9), [key("web")]);
    assert_eq!(tombstones.settle(&both, none).len(), 1);
}

#[test]
fn jail_that_was_missing_applies_tombstones_that_it_missed() {
    let (timing, mut tombstones) = (Timing::default(), Tombstones::default());
    let (sshd, web) = (BTreeSet::from([key("sshd").0]), BTreeSet::from([key("web").0]));
    tombstones.learn(&fleet_unban("*", NOW), NOW, &timing);
    assert_eq!(tombstones.applied_watermark(), 0);
    assert_eq!(apply(&mut tombstones, &sshd, 9), [key("sshd")]);
    let record = Record::Tombstone(fleet_unban("*", NOW), Some(true));
    assert_eq!(tombstones.settle(&sshd, none), [(key("web").1, record)]);
    tombstones.on_jail_added(&key("web").0, tombstones.applied_watermark());
    assert_eq!(apply(&mut tombstones, &web, 9), [], "it was there");
    tombstones.on_jail_added(&key("web").0, 0);
    assert_eq!(
        (tombstones.ids_of(&key("sshd")).len(), tombstones.ids_of(&key("web")).len()),
        (1, 0)
    );
    assert_eq!(apply(&mut tombstones, &web, 9), [key("web")]);
    tombstones.settle(&web, none);
    assert_eq!(apply(&mut tombstones, &web, 9), []);
    assert_eq!(tombstones.ids_of(&key("web")).len(), 1);
}

#[test]
fn newer_ban_is_not_released_by_an_old_tombstone() {
    let (timing, mut tombstones) = (Timing::default(), Tombstones::default());
    tombstones.learn(&fleet_unban("*", NOW), NOW, &timing);
    let table = [(None, true), (Some(3_600), true), (Some(3_601), false)];
    for (after, due) in table {
        let start = after.map(|after| NOW / 1000 + after);
        assert_eq!(tombstones.is_due(&key("sshd"), start, &timing), due, "{after:?}");
    }
}

/// Runs the garbage collection over the whole table; returns how many tombstones it dropped.
fn collect(tombstones: &mut Tombstones, now: i64, idle: bool, usage: Usage) -> usize {
    let mut dropped = 0;
    loop {
        let (gone, more) = tombstones.gc(now, idle, &Timing::default(), |_, _, _| usage);
        dropped += gone.len();
        if !more {
            return dropped;
        }
    }
}

#[test]
fn tombstone_is_kept_as_long_as_some_ban_needs_it() {
    use Usage::{Missing, Referenced, Unused};
    const HOUR: i64 = 3_600_000;
    // It is applied, so old, this host knows all snapshots, how it is used -> it is dropped.
    let table = [
        (true, HOUR, true, Unused, false),
        (true, HOUR + 1, true, Unused, true),
        (true, HOUR + 1, false, Unused, false),
        (false, HOUR + 1, true, Unused, false),
        (true, HOUR + 1, true, Referenced, false),
        (true, HOUR + 1, true, Missing, false),
        (true, 30 * DAY, true, Referenced, false),
        (true, 30 * DAY + 1, true, Referenced, true),
        (true, 30 * DAY + 1, false, Referenced, true),
        (true, 30 * DAY + 1, true, Missing, false),
        (false, 30 * DAY + 1, true, Unused, true),
    ];
    for (applied, age, idle, usage, dropped) in table {
        let mut tombstones = Tombstones::default();
        tombstones.restore(fleet_unban("*", NOW), applied);
        let gone = collect(&mut tombstones, NOW + age, idle, usage);
        assert_eq!(gone, usize::from(dropped), "{applied} {age} {idle} {usage:?}");
        assert_eq!(tombstones.known.len(), 1 - gone);
    }
    let (timing, mut tombstones) = (Timing::default(), Tombstones::default());
    assert!(
        tombstones.learn(&fleet_unban("*", NOW - 31 * DAY), NOW, &timing).is_empty(),
        "too old"
    );
    assert!(
        tombstones.learn(&fleet_unban("*", NOW + DAY + 1), NOW, &timing).is_empty(),
        "of the future"
    );
}

#[test]
fn oldest_tombstone_of_the_largest_maker_gives_way() {
    let (timing, mut tombstones) = (Timing::default(), Tombstones::default());
    let honest = fleet_unban_of("web2", "192.0.2.1", "*", NOW);
    tombstones.learn(&honest, NOW, &timing);
    // One maker is bounded,
    for n in 0..6_000 {
        let records = tombstones.learn(&fleet_unban_of("u0", &ip(n), "*", NOW + 1), NOW, &timing);
        assert_eq!(records.len(), if n < 5_000 { 1 } else { 2 });
    }
    assert_eq!(tombstones.count, MAX_PER_MAKER + 1);
    assert_eq!(tombstones.limit(), Some((MAX_PER_MAKER, "u0")));
    // all are,
    for n in 6_000..30_000 {
        let maker = format!("u{}", n % 7);
        tombstones.learn(&fleet_unban_of(&maker, &ip(n), "*", NOW + 2), NOW, &timing);
    }
    assert_eq!((tombstones.count, tombstones.known.len()), (MAX_TOMBSTONES, MAX_TOMBSTONES));
    assert!(tombstones.limit().is_some_and(|(max, _)| max == MAX_TOMBSTONES));
    // and the one of a maker that has few stays, and has its turn.
    assert!(tombstones.known.contains_key(&honest.address));
    let batch = tombstones.next_batch(16);
    assert!(batch.contains(&honest.address), "{batch:?}");
    // The limit of an address.
    for n in 0..60 {
        tombstones.learn(&fleet_unban("*", NOW + n), NOW, &timing);
    }
    assert_eq!(tombstones.known[&honest.address].len(), MAX_PER_ADDRESS);
    let of_makers: usize = tombstones.by_maker.values().map(BTreeSet::len).sum();
    assert_eq!(
        (of_makers, tombstones.by_size.len()),
        (tombstones.count, tombstones.by_maker.len())
    );
}

/// Fleet unbans of three makers, two in each millisecond.
fn numbered_unban(n: i64) -> FleetUnban {
    fleet_unban_of(&format!("evil{}", n % 3), "192.0.2.1", "*", NOW + n / 2)
}

/// The numbers of the fleet unbans that a host keeps of those that arrive in this order.
fn kept(order: impl Iterator<Item = i64>) -> Vec<i64> {
    let mut it = Tombstones::default();
    for n in order {
        it.learn_repeated(&numbered_unban(n), NOW, &Timing::default());
    }
    it.check_invariants().unwrap();
    (0..40).filter(|n| it.knows(&numbered_unban(*n))).collect()
}

#[test]
fn hosts_keep_the_same_tombstones_of_an_address_in_whatever_order_they_come() {
    let timing = Timing::default();
    let newest = kept(0..40);
    assert_eq!(newest, (24..40).collect::<Vec<_>>());
    assert_eq!(kept((0..40).rev()), newest);
    assert_eq!(kept((0..40).chain(0..40)), newest, "a dropped one does not come back");
    // This host's operator may make one although others have times of the future.
    let mut it = Tombstones::default();
    (20..40).for_each(|n| drop(it.learn_repeated(&numbered_unban(n), NOW, &timing)));
    it.learn(&numbered_unban(1), NOW, &timing);
    assert!(it.knows(&numbered_unban(1)));
}
