//! Short scenarios: the messages that a host receives, and the effects that follow. The simulation has longer ones.

mod bounds;
mod own;
mod unresolved;

use std::collections::BTreeMap;
use std::convert::Infallible;

use super::claims::ClaimState;
use super::look::{Observation, ServerInstance};
use super::work::Effect;
use super::*;
use crate::fail2ban::database::BipsRow;
use crate::wire::{
    ACK_REQUEST, Action, Ban, Event, HostState, Shard, ShardEntry, ShardId, SpooledEvent, UnbanId,
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
    /// When fail2ban's database was made.
    made: i64,
    /// Somebody on this host is quicker than each import.
    raced: bool,
    now: i64,
}

impl Harness {
    fn new() -> Self {
        let fleet = Controller::new(host("me"), Timing::default(), PersistedState::default());
        let (held, rows) = (BTreeMap::new(), BTreeMap::new());
        let (disk, server) = (PersistedState::default(), ServerInstance { pid: 1, started: 0 });
        Self { fleet, held, rows, disk, server, made: 0, raced: false, now: NOW }
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
                    let (total, bantime, database) = (Some(9), 600, Some(self.made));
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
                    effects.push("free");
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
        let row = || Ok::<_, Infallible>(Some(None));
        self.fleet.on_local_event(&spooled, row, self.now).unwrap().unwrap()
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
    assert_eq!(it.run_cycle(), ["free"], "a newer shard does not list it");
    it.receive(&event(B, "web1", 15));
    it.receive(&event(B, "web1", 20));
    assert_eq!(it.run_cycle(), NOTHING, "older than the shard, or as old");
    assert_eq!(it.fleet.claim_state(&key(), &host("web1")), ClaimState::Released(20));
    it.fleet.apply_shard(&shard("web1", 30, &[IP]), NOW);
    assert_eq!(it.run_cycle(), ["ban"]);
    it.fleet.apply_cleared(&host("web1"), 0, NOW);
    assert_eq!(it.run_cycle(), ["free"], "it was forgotten");
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
        assert_eq!(it.run_cycle(), NOTHING, "somebody still claims it");
    }
    it.receive(&event(U, "old2", 0));
    assert_eq!(it.run_cycle(), ["free"]);
}

#[test]
fn unban_of_a_ban_that_the_sender_does_not_hold_is_recognised() {
    use Action::{Ban as B, Unban as U};
    let mut it = Harness::new();
    let frees_nothing = |it: &Harness, from: &str, stamp: i64| {
        it.fleet.is_unban_of_another_s_ban(&event(U, from, stamp))
    };
    assert!(!frees_nothing(&it, "button", 0), "nothing is banned");
    it.receive(&event(B, "web1", 10));
    it.receive(&event(B, "old1", 0));
    assert_eq!(it.run_cycle(), ["ban"]);
    assert!(frees_nothing(&it, "button", 0));
    assert!(!frees_nothing(&it, "old1", 0), "it frees its own");
    assert!(!frees_nothing(&it, "web2", 11), "a daemon knows what it does");
    for (from, stamp) in [("web1", 11), ("old1", 0)] {
        it.receive(&event(U, from, stamp));
    }
    assert_eq!(it.run_cycle(), ["free"]);
    assert!(!frees_nothing(&it, "button", 0), "it is free");
}

#[test]
fn script_ban_that_ends_by_its_time_is_imported_once_and_left_to_fail2ban() {
    // When the event comes, relative to a full second, and how late fail2ban bans.
    for (phase, late) in (0..2_000).step_by(250).flat_map(|phase| [(phase, 0), (phase, 20_000)]) {
        let mut it = Harness::new();
        it.now = NOW + phase;
        it.receive(&event(Action::Ban, "old1", 0));
        it.now += late - 2_000; // a round begins two seconds later
        let mut effects = Vec::new();
        for _ in 0..330 + late / 2_000 {
            let (rows, now) = (it.rows.clone(), it.now + 2_000);
            it.held.retain(|address, _| (rows[address].timeofban + 600) * 1_000 > now);
            effects.extend(it.run_cycle());
        }
        assert_eq!(effects, ["ban"], "{phase} {late}");
        it.receive(&event(Action::Ban, "old1", 0));
        assert_eq!(it.run_cycle(), ["ban"], "another ban of it");
        it.receive(&event(Action::Unban, "old1", 0));
        assert_eq!(it.run_cycle(), ["free"]);
    }
}

#[test]
fn import_that_ended_with_its_origin_s_ban_waits_for_the_origin_s_unban() {
    // After how many seconds the origin says that its ban is over, and when bans are made.
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
fn a_fleet_unban_frees_what_is_the_host_s_own_and_a_claim_has_to_carry_it() {
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
    assert_eq!(it.detect().unbans, [id], "and so does ours");
}

#[test]
fn a_clock_that_was_set_back_holds_nothing_up() {
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
        "and its stamps go on from there"
    );
}

#[test]
fn false_claim_in_this_host_s_name_is_corrected_within_seconds() {
    let mut it = Harness::new();
    it.fleet.on_connected(NOW);
    let banned = BipsRow { timeofban: NOW / 1000, bantime: 600, failures: 3 };
    it.held.insert(address(IP), Some(600));
    it.rows.insert(address(IP), banned);
    // What a message in its name claims, of which address, and whether the snapshot has to correct that.
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
                // Old parts are answered with all parts; these are not old.
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
fn what_was_read_before_a_greater_stamp_of_its_own_was_heard_is_not_published() {
    let mut it = Harness::new();
    it.fleet.on_connected(it.now);
    it.run_cycle();
    // An earlier process of this host spoke by a clock that was ahead.
    let before = it.now + 150_000;
    it.fleet.apply_shard(&shard("me", before, &[]), it.now);
    assert_eq!(it.fleet.publications(it.now), [], "the others would take it for old");
    it.run_cycle();
    let published = it.fleet.publications(it.now);
    assert!(published[0].content.as_ref().unwrap().stamp > before);
}

#[test]
fn a_full_disk_stops_no_ban_and_is_written_when_there_is_room() {
    let mut it = Harness::new();
    it.run_cycle();
    it.receive(&event(Action::Ban, "web1", 10));
    let mut effects = Vec::new();
    for _ in 0..9 {
        match it.fleet.next_effect(it.now) {
            Effect::Persist(_) => {
                effects.push("save");
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
    assert_eq!(effects, ["save", "ban"]);
    it.held.insert(address(IP), Some(600));
    it.run_cycle();
    assert!(it.disk.imports[&key()].is_applied());
}

#[test]
fn what_a_broker_does_not_hand_out_is_asked_for_by_its_exact_topics() {
    let mut it = Harness::new();
    it.fleet.on_connected(NOW);
    let mine = shard("me", NOW, &[]);
    it.fleet.apply_shard(&mine, NOW);
    it.fleet.apply_presence(&host("a"), HostState::Online, NOW);
    let asked = |it: &mut Harness, after| it.fleet.next_subscription(NOW + after);
    let all = |topics: &[&str]| Some(topics.iter().map(|topic| (*topic).to_owned()).collect());
    assert_eq!(asked(&mut it, 0), all(&["state/a/0"]));
    assert_eq!(asked(&mut it, 3_999), None);
    assert_eq!(asked(&mut it, 4_000), all(&["state/a/+"]));
    assert_eq!(asked(&mut it, 8_000), all(&["state/a/+", "state/a/0"]));
    // Its first part says that there are two.
    let first = Shard { id: ShardId::new(0, 2).unwrap(), ..shard("a", NOW, &[]) };
    it.fleet.apply_shard(&first, NOW + 9_000);
    assert_eq!(asked(&mut it, 16_000), all(&["state/a/+", "state/a/1"]));
    let second = Shard { id: ShardId::new(1, 2).unwrap(), ..shard("a", NOW, &[]) };
    it.fleet.apply_shard(&second, NOW + 17_000);
    assert_eq!(asked(&mut it, 600_000), None);
}

#[test]
fn another_broker_s_last_will_of_this_host_is_answered() {
    let mut it = Harness::new();
    it.fleet.on_connected(NOW);
    let mut is_published = |received: Option<HostState>, after| {
        if let Some(state) = received {
            it.fleet.apply_presence(&host("me"), state, NOW + after);
        }
        it.fleet.presence(Presence::default, NOW + after).is_some()
    };
    assert!(is_published(None, 0), "on connection");
    assert!(!is_published(Some(HostState::Offline), 100), "that was kept from before");
    assert!(!is_published(Some(HostState::Online), 20_000), "that is its own");
    assert!(is_published(Some(HostState::Offline), 20_000));
    assert!(!is_published(None, 20_001), "once");
}

#[test]
fn host_itself_is_no_other_host() {
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
    let mut is_published = |new: Option<&str>, after| {
        if let Some(name) = new {
            it.fleet.apply_presence(&host(name), HostState::Online, NOW + after);
        }
        it.fleet.presence(Presence::default, NOW + after).is_some()
    };
    assert!(is_published(None, 0), "on connection");
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
        assert_eq!(is_published(new, after), published, "{after}");
    }
}

#[test]
fn requested_ack_is_published_once_known_and_acks_alone_are_rate_limited() {
    let mut it = Harness::new();
    it.fleet.on_connected(NOW);
    it.run_cycle();
    let published = |it: &mut Harness, after| {
        let presence = it.fleet.presence(Presence::default, it.now + after)?;
        Some(presence.acks.into_iter().map(|ack| ack.outcome).collect::<Vec<_>>())
    };
    assert_eq!(published(&mut it, 0), Some(Vec::new()));
    let request = |stamp| event(Action::Other(ACK_REQUEST.to_owned()), "web1", stamp);
    it.fleet.request_ack(&request(NOW), None, it.now);
    it.now += 3_000;
    assert_eq!(published(&mut it, 0), None, "the request came before the ban");
    it.receive(&event(Action::Ban, "web2", it.now));
    assert_eq!(published(&mut it, 0), None, "fail2ban does not have the ban yet");
    assert_eq!(it.run_cycle(), ["ban"]);
    it.run_cycle();
    assert_eq!(published(&mut it, 0), Some(vec!["banned".to_owned()]));
    assert_eq!(published(&mut it, 50_000), None, "it was published");
    // Another one, of a jail that does not take part here.
    let gone = Event { jail: Jail::new("gone").unwrap(), ..request(NOW + 1) };
    it.fleet.request_ack(&gone, Some(crate::guard::RejectReason::NotShared), it.now);
    let both = vec!["banned".to_owned(), "not_shared".to_owned()];
    assert_eq!(published(&mut it, 2_999), None);
    assert_eq!(published(&mut it, 3_000), Some(both.clone()));
    // What the operator does here later changes no outcome.
    it.release_all();
    it.run_cycle();
    assert_eq!(published(&mut it, 6_000), None);
    // Without a stamp, no other host could read the acknowledgement.
    it.fleet.request_ack(&request(0), None, it.now);
    assert_eq!(published(&mut it, 20_000), None);
    assert_eq!(published(&mut it, 700_000), Some(Vec::new()), "they expire");
}
