//! Short scenarios: the messages that a host receives, and the effects that follow. The simulation has longer ones.

mod bounds;
mod own;
mod unresolved;

use std::collections::BTreeMap;
use std::convert::Infallible;

use super::claims::ClaimState;
use super::effects::Effect;
use super::jails::{Observation, ServerInstance};
use super::*;
use crate::model::{BipsRow, UnbanId};
use crate::wire::{
    ACK_REQUEST, Action, Ban, Event, HostState, Shard, ShardEntry, ShardId, SpooledEvent,
};

const IP: &str = "203.0.113.9";
const NOW: i64 = 1_795_342_588_000;

fn jail() -> Jail {
    Jail::new("sshd").unwrap()
}

fn address(ip: &str) -> Address {
    Address::new(ip).unwrap()
}

fn key() -> BanKey {
    (jail(), address(IP))
}

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

fn event(action: Action, from: &str, stamp: i64) -> Event {
    Event {
        action,
        jail: jail(),
        address: address(IP),
        bantime: 600,
        host: host(from),
        restored: 0,
        failures: 3,
        time: NOW / 1000,
        stamp,
        reason: None,
        id: None,
        all_jails: false,
        unbans: Vec::new(),
    }
}

fn shard(from: &str, stamp: i64, listed: &[&str]) -> Shard {
    let bans = listed.iter().map(|ip| ShardEntry {
        jail: jail(),
        address: address(ip),
        start: NOW / 1000,
        bantime: 600,
    });
    let id = ShardId::new(0, 1).unwrap();
    Shard { host: host(from), stamp, time: 0, id, bans: bans.collect(), unbans: Vec::new() }
}

/// A host with a simulated fail2ban.
struct Harness {
    fleet: Controller,
    held: BTreeMap<Address, Option<i64>>,
    rows: BTreeMap<Address, BipsRow>,
    disk: PersistedState,
    server: ServerInstance,
    /// When fail2ban's database was created, in seconds since 1970.
    database_created: i64,
    /// The operator bans each address just before its import.
    raced: bool,
    now: i64,
}

impl Harness {
    fn new() -> Self {
        let fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
        let (held, rows) = (BTreeMap::new(), BTreeMap::new());
        let (disk, server) = (PersistedState::default(), ServerInstance { pid: 1, started: 0 });
        Self { fleet, held, rows, disk, server, database_created: 0, raced: false, now: NOW }
    }

    fn receive(&mut self, event: &Event) {
        assert!(self.fleet.apply_event(event, self.now));
    }

    /// Runs one cycle; returns the names of the effects on fail2ban.
    fn run_cycle(&mut self) -> Vec<&'static str> {
        self.now += 2_000;
        let heartbeat = Heartbeat { server: self.server, data_version: None };
        self.fleet.start_cycle(self.now);
        self.fleet.on_heartbeat(heartbeat, BTreeSet::from([jail()]), self.now);
        let mut effects = Vec::new();
        loop {
            let secs = self.now / 1000;
            let answer = match self.fleet.next_effect(self.now) {
                Effect::Idle => return effects,
                Effect::Continue => continue,
                Effect::Persist(records) => {
                    for record in records {
                        self.disk.apply(record);
                    }
                    self.fleet.on_persisted(true, self.now);
                    continue;
                }
                Effect::Observe(jail, of) => {
                    let held = self.held.clone().into_iter().collect();
                    let rows = self.rows.clone().into_iter().collect();
                    let (total, bantime, database) = (Some(9), 600, Some(self.database_created));
                    let observation = Observation {
                        held,
                        rows,
                        database,
                        total,
                        bantime,
                        ..Observation::default()
                    };
                    self.fleet.on_observation(&jail, of.as_deref(), observation, self.now);
                    continue;
                }
                Effect::Ban(_, targets) => {
                    effects.push("ban");
                    for target in &targets {
                        let row = BipsRow { timeofban: secs, bantime: 600, failures: 0 };
                        self.held.insert(target.address, Some(600));
                        self.rows.insert(target.address, row);
                    }
                    if self.raced { 0 } else { targets.len() }
                }
                Effect::Unban(_, targets) => {
                    effects.push("unban");
                    self.release_all();
                    targets.len()
                }
                Effect::ApplyTombstone(..) => {
                    effects.push("apply");
                    self.release_all();
                    1
                }
                other => panic!("{other:?}"),
            };
            self.fleet.on_done(i64::try_from(answer).unwrap(), self.now);
        }
    }

    fn release_all(&mut self) {
        self.held.clear();
        self.rows.clear();
    }

    /// notify reports a ban that is not in the database yet.
    fn detect(&mut self) -> Event {
        let spooled = SpooledEvent {
            action: Action::Ban,
            jail: jail(),
            address: address(IP),
            bantime: 600,
            restored: 0,
            failures: 3,
            time: self.now / 1000,
        };
        let event =
            self.fleet.on_local_event(&spooled, || Ok::<_, Infallible>(Some(None)), self.now);
        event.unwrap().unwrap()
    }

    /// Whether an unban releases nothing, because only other hosts ban the address.
    fn releases_nothing(&self, from: &str, stamp: i64) -> bool {
        self.fleet.is_unban_of_another_s_ban(&event(Action::Unban, from, stamp))
    }

    /// The topics of the next subscription, so many milliseconds after the start.
    fn next_subscription(&mut self, after: i64) -> Vec<String> {
        self.fleet.next_subscription(NOW + after).unwrap_or_default()
    }

    /// Whether a presence is due, so many milliseconds after the start.
    fn has_presence(&mut self, after: i64) -> bool {
        self.fleet.presence(Presence::default, NOW + after).is_some()
    }

    /// The outcomes in the presence that is due so many milliseconds from now; `None` if none is due.
    fn published_acks(&mut self, after: i64) -> Option<Vec<String>> {
        let presence = self.fleet.presence(Presence::default, self.now + after)?;
        Some(presence.acks.into_iter().map(|ack| ack.outcome).collect())
    }

    fn restart(&mut self) {
        self.fleet = Controller::new(host("me"), Timing::default(), self.disk.clone());
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn of_two_messages_of_a_host_the_greater_stamp_counts() {
    use Action::{Ban as B, Unban as U};
    let mut it = Harness::new();
    it.receive(&event(B, "web1", 10));
    assert_eq!(it.run_cycle(), ["ban"]);
    it.receive(&event(U, "web1", 9));
    it.fleet.apply_shard(&shard("web1", 8, &[]), NOW);
    assert_eq!(it.run_cycle(), NOTHING, "older messages");
    it.fleet.apply_shard(&shard("web1", 20, &[]), NOW);
    assert_eq!(it.run_cycle(), ["unban"], "released by a newer shard");
    it.receive(&event(B, "web1", 15));
    it.receive(&event(B, "web1", 20));
    assert_eq!(it.run_cycle(), NOTHING, "not newer than the shard");
    assert_eq!(it.fleet.claim_state(&key(), &host("web1")), ClaimState::Released(20));
    it.fleet.apply_shard(&shard("web1", 30, &[IP]), NOW);
    assert_eq!(it.run_cycle(), ["ban"]);
    it.fleet.apply_cleared(&host("web1"), 0, NOW);
    assert_eq!(it.run_cycle(), ["unban"], "the peer was removed");
}

#[test]
fn unban_removes_only_its_sender_s_claim() {
    use Action::{Ban as B, Unban as U};
    let mut it = Harness::new();
    for from in ["web1", "web2"] {
        it.receive(&event(B, from, 10));
    }
    for from in ["old1", "old2"] {
        it.receive(&event(B, from, 0));
    }
    assert_eq!(it.run_cycle(), ["ban"]);
    for (from, stamp) in [("web1", 11), ("old1", 0), ("web2", 11)] {
        it.receive(&event(U, from, stamp));
        assert_eq!(it.run_cycle(), NOTHING, "other claims remain");
    }
    it.receive(&event(U, "old2", 0));
    assert_eq!(it.run_cycle(), ["unban"]);
}

#[test]
fn unban_of_a_ban_that_the_sender_does_not_hold_is_recognised() {
    use Action::{Ban as B, Unban as U};
    let mut it = Harness::new();
    assert!(!it.releases_nothing("button", 0), "nothing is banned");
    it.receive(&event(B, "web1", 10));
    it.receive(&event(B, "old1", 0));
    assert_eq!(it.run_cycle(), ["ban"]);
    assert!(it.releases_nothing("button", 0));
    assert!(!it.releases_nothing("old1", 0), "it releases its own ban");
    assert!(!it.releases_nothing("web2", 11), "a daemon publishes only unbans of its own bans");
    for (from, stamp) in [("web1", 11), ("old1", 0)] {
        it.receive(&event(U, from, stamp));
    }
    assert_eq!(it.run_cycle(), ["unban"]);
    assert!(!it.releases_nothing("button", 0), "the address is not banned any more");
}

#[test]
fn script_ban_that_ends_by_its_time_is_imported_once_and_left_to_fail2ban() {
    // When the event arrives, relative to a full second, and how late fail2ban bans, in milliseconds.
    for (phase, late) in (0..2_000).step_by(250).flat_map(|phase| [(phase, 0), (phase, 20_000)]) {
        let mut it = Harness::new();
        it.now = NOW + phase;
        it.receive(&event(Action::Ban, "old1", 0));
        it.now += late - 2_000; // a cycle starts two seconds later
        let mut effects = Vec::new();
        for _ in 0..330 + late / 2_000 {
            let (rows, now) = (it.rows.clone(), it.now + 2_000);
            it.held.retain(|address, _| (rows[address].timeofban + 600) * 1_000 > now);
            effects.extend(it.run_cycle());
        }
        assert_eq!(effects, ["ban"], "{phase} {late}");
        it.receive(&event(Action::Ban, "old1", 0));
        assert_eq!(it.run_cycle(), ["ban"], "another ban");
        it.receive(&event(Action::Unban, "old1", 0));
        assert_eq!(it.run_cycle(), ["unban"]);
    }
}

#[test]
fn import_that_ended_with_its_origin_s_ban_waits_for_the_origin_s_unban() {
    // When the origin releases its ban, and when this host makes bans, in seconds.
    for (released_after, expected) in [(606, vec![2]), (612, vec![2]), (900, vec![2, 616])] {
        let mut it = Harness::new();
        it.receive(&event(Action::Ban, "web1", 10));
        let mut banned = Vec::new();
        for second in (2..700).step_by(2) {
            if second == released_after {
                it.receive(&event(Action::Unban, "web1", 11));
            }
            let (rows, now) = (it.rows.clone(), it.now + 2_000);
            it.held.retain(|address, _| (rows[address].timeofban + 600) * 1_000 > now);
            if it.run_cycle().contains(&"ban") {
                banned.push(second);
            }
        }
        assert_eq!(banned, expected, "{released_after}");
    }
}

#[test]
fn overridden_ban_stays_released_until_its_origin_has_a_newer_ban() {
    let mut it = Harness::new();
    it.receive(&event(Action::Ban, "web1", 10));
    it.run_cycle();
    it.run_cycle();
    it.release_all();
    assert_eq!(it.run_cycle(), NOTHING);
    it.restart();
    it.fleet.apply_shard(&shard("web1", 20, &[IP]), NOW);
    assert_eq!(it.run_cycle(), NOTHING, "the same ban");
    let newer = Event { time: NOW / 1000 + 60, ..event(Action::Ban, "web1", 30) };
    it.receive(&newer);
    assert_eq!(it.run_cycle(), ["ban"]);
}

#[test]
fn fleet_unban_releases_local_bans_and_claims_must_carry_it() {
    let mut it = Harness::new();
    let row = BipsRow { timeofban: NOW / 1000, bantime: 600, failures: 3 };
    it.held.insert(address(IP), Some(600));
    it.rows.insert(address(IP), row);
    assert_eq!(it.run_cycle(), NOTHING);
    let id = UnbanId::made_by(&host("web2"), NOW);
    let unban = event(Action::Unban, "web2", 7);
    it.receive(&Event { reason: Some(crate::wire::Reason::Fleet), id: Some(id.clone()), ..unban });
    assert_eq!(it.run_cycle(), ["apply"]);
    it.receive(&event(Action::Ban, "web1", 10));
    assert_eq!(it.run_cycle(), NOTHING, "void");
    it.restart();
    it.receive(&Event { unbans: vec![id.clone()], ..event(Action::Ban, "web1", 20) });
    assert_eq!(it.run_cycle(), ["ban"]);
    assert_eq!(it.detect().unbans, [id], "this host's own event carries it");
}

#[test]
fn clock_that_was_set_back_delays_nothing() {
    let mut it = Harness::new();
    it.fleet.on_connected(it.now);
    it.run_cycle();
    assert_eq!(it.fleet.publications(it.now).len(), 1);
    let before = it.now;
    it.now -= 3_600_000;
    it.receive(&event(Action::Ban, "web1", 10));
    assert_eq!(it.run_cycle(), ["ban"]);
    it.run_cycle();
    let published = it.fleet.publications(it.now);
    assert!(
        published[0].content.as_ref().unwrap().stamp > before,
        "stamps continue above the earlier ones"
    );
}

#[test]
fn false_claim_in_this_host_s_name_is_corrected_within_seconds() {
    let mut it = Harness::new();
    it.fleet.on_connected(NOW);
    let banned = BipsRow { timeofban: NOW / 1000, bantime: 600, failures: 3 };
    it.held.insert(address(IP), Some(600));
    it.rows.insert(address(IP), banned);
    // The forged action, its address -> the snapshot has to correct it.
    let table = [
        (Action::Ban, IP, false),
        (Action::Ban, "203.0.113.77", true),
        (Action::Unban, IP, true),
        (Action::Unban, "203.0.113.77", false),
    ];
    for (action, ip, wrong) in table {
        for forged_shard in [false, true] {
            for _ in 0..9 {
                it.run_cycle();
                it.fleet.publications(it.now);
            }
            let forged = Event { address: address(ip), ..event(action.clone(), "me", 1) };
            if !forged_shard {
                it.fleet.apply_echo(&forged, it.now);
            } else if action == Action::Ban {
                // A stale shard causes a republication of all shards: this one is not stale.
                let shard = Shard { stamp: it.now, ..shard("me", it.now, &[ip]) };
                it.fleet.apply_shard(&shard, it.now);
            } else {
                continue;
            }
            it.run_cycle();
            let published = it.fleet.publications(it.now);
            assert_eq!(!published.is_empty(), wrong, "{action} {ip} {forged_shard}");
        }
    }
}

#[test]
fn observation_older_than_an_own_stamp_on_the_broker_is_not_published() {
    let mut it = Harness::new();
    it.fleet.on_connected(it.now);
    it.run_cycle();
    // An earlier process of this host had a clock that was ahead.
    let before = it.now + 150_000;
    it.fleet.apply_shard(&shard("me", before, &[]), it.now);
    assert_eq!(it.fleet.publications(it.now), [], "peers would reject it as old");
    it.run_cycle();
    let published = it.fleet.publications(it.now);
    assert!(published[0].content.as_ref().unwrap().stamp > before);
}

#[test]
fn full_disk_delays_no_ban_and_the_record_is_written_later() {
    let mut it = Harness::new();
    it.run_cycle();
    it.receive(&event(Action::Ban, "web1", 10));
    let mut effects = Vec::new();
    for _ in 0..9 {
        match it.fleet.next_effect(it.now) {
            Effect::Persist(_) => {
                effects.push("persist");
                it.fleet.on_persisted(false, it.now);
            }
            Effect::Ban(..) => {
                effects.push("ban");
                it.fleet.on_done(1, it.now);
            }
            Effect::Idle => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(effects, ["persist", "ban"]);
    it.held.insert(address(IP), Some(600));
    it.run_cycle();
    assert!(it.disk.imports[&key()].is_applied());
}

#[test]
fn unanswered_subscription_is_repeated_with_exact_topics() {
    let mut it = Harness::new();
    it.fleet.on_connected(NOW);
    let mine = shard("me", NOW, &[]);
    it.fleet.apply_shard(&mine, NOW);
    it.fleet.apply_presence(&host("a"), HostState::Online, NOW);
    assert_eq!(it.next_subscription(0), ["state/a/0"]);
    assert_eq!(it.next_subscription(3_999), NOTHING);
    assert_eq!(it.next_subscription(4_000), ["state/a/+"]);
    assert_eq!(it.next_subscription(8_000), ["state/a/+", "state/a/0"]);
    // The first shard announces two.
    let first = Shard { id: ShardId::new(0, 2).unwrap(), ..shard("a", NOW, &[]) };
    it.fleet.apply_shard(&first, NOW + 9_000);
    assert_eq!(it.next_subscription(16_000), ["state/a/+", "state/a/1"]);
    let second = Shard { id: ShardId::new(1, 2).unwrap(), ..shard("a", NOW, &[]) };
    it.fleet.apply_shard(&second, NOW + 17_000);
    assert_eq!(it.next_subscription(600_000), NOTHING);
}

#[test]
fn another_broker_s_last_will_of_this_host_is_answered() {
    let mut it = Harness::new();
    it.fleet.on_connected(NOW);
    // The presence that arrives, after so many milliseconds -> this host publishes its own.
    let table = [
        (None, 0, true),
        (Some(HostState::Offline), 100, false), // retained from before this connection
        (Some(HostState::Online), 20_000, false), // this host's own
        (Some(HostState::Offline), 20_000, true),
        (None, 20_001, false),
    ];
    for (received, after, published) in table {
        if let Some(state) = received {
            it.fleet.apply_presence(&host("me"), state, NOW + after);
        }
        assert_eq!(it.has_presence(after), published, "{received:?} {after}");
    }
}

#[test]
fn this_host_is_not_counted_as_a_peer() {
    let mut it = Harness::new();
    it.fleet.on_connected(NOW);
    for name in ["me", "web2"] {
        it.fleet.apply_presence(&host(name), HostState::Online, NOW);
    }
    assert_eq!(it.fleet.hosts().0, 1);
}

#[test]
fn own_presence_that_was_replaced_is_published_again() {
    let mut it = Harness::new();
    it.fleet.on_connected(NOW);
    let published = it.fleet.presence(Presence::default, NOW).unwrap();
    let forged = Presence { jails: [jail()].into(), ..published.clone() };
    // What the broker has, after so many milliseconds, and whether it is published then.
    let table = [
        (Some(&published), 6_000, false),
        (None, 6_000, true),
        (None, 7_000, false),
        (Some(&published), 11_000, true),
        (Some(&forged), 17_000, true),
        (Some(&published), 40_000, false),
    ];
    for (there, after, again) in table {
        it.fleet.apply_own_presence(there);
        let presence = it.fleet.presence(Presence::default, NOW + after);
        assert_eq!(presence, again.then(|| published.clone()), "{after}");
    }
}

#[test]
fn new_hosts_get_this_host_s_presence_however_soon_they_follow_each_other() {
    let mut it = Harness::new();
    it.fleet.on_connected(NOW);
    assert!(it.has_presence(0), "on connection");
    // A host that appears after so many milliseconds, and whether presence is published then.
    let table = [
        (Some("a"), 20_000, true),
        (Some("b"), 20_100, false),
        (None, 24_900, false),
        (None, 25_000, true),
        (Some("b"), 31_000, false),
        (None, 40_000, false),
    ];
    for (new, after, published) in table {
        if let Some(name) = new {
            it.fleet.apply_presence(&host(name), HostState::Online, NOW + after);
        }
        assert_eq!(it.has_presence(after), published, "{after}");
    }
}

fn request(stamp: i64) -> Event {
    event(Action::Other(ACK_REQUEST.to_owned()), "web1", stamp)
}

#[test]
fn requested_ack_is_published_once_known_and_acks_alone_are_rate_limited() {
    let mut it = Harness::new();
    it.fleet.on_connected(NOW);
    it.run_cycle();
    assert_eq!(it.published_acks(0), Some(Vec::new()));
    it.fleet.request_ack(&request(NOW), None, it.now);
    it.now += 3_000;
    assert_eq!(it.published_acks(0), None, "the request came before the ban");
    it.receive(&event(Action::Ban, "web2", it.now));
    assert_eq!(it.published_acks(0), None, "fail2ban does not have the ban yet");
    assert_eq!(it.run_cycle(), ["ban"]);
    it.run_cycle();
    assert_eq!(it.published_acks(0), Some(vec!["banned".to_owned()]));
    assert_eq!(it.published_acks(50_000), None, "it was published");
    // Another one, of a jail that does not take part here.
    let gone = Event { jail: Jail::new("gone").unwrap(), ..request(NOW + 1) };
    it.fleet.request_ack(&gone, Some(crate::guard::RejectReason::NotShared), it.now);
    let both = vec!["banned".to_owned(), "not_shared".to_owned()];
    assert_eq!(it.published_acks(2_999), None);
    assert_eq!(it.published_acks(3_000), Some(both.clone()));
    // What the operator does here later changes no outcome.
    it.release_all();
    it.run_cycle();
    assert_eq!(it.published_acks(6_000), None);
    // Without a stamp, no other host could read the acknowledgement.
    it.fleet.request_ack(&request(0), None, it.now);
    assert_eq!(it.published_acks(20_000), None);
    assert_eq!(it.published_acks(700_000), Some(Vec::new()), "they expire");
}
