//! Measures what the most expensive known messages cost the daemon, compared with a plain ban event. `tests/bench` runs
//! these tests. The ratios of one run are comparable; the times depend on the machine.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use f2bmqtt::fleet::effects::Effect;
use f2bmqtt::fleet::jails::{Heartbeat, Observation, ServerInstance};
use f2bmqtt::fleet::{Controller, PersistedState, Timing};
use f2bmqtt::model::{Address, BipsRow, HostName, Jail, JailScope, UnbanId};
use f2bmqtt::wire::{Event, FleetUnban, Shard, ShardEntry, ShardId};

const NOW: i64 = 1_795_342_588_000;

/// How many fleet unbans a shard may list.
const MAX_UNBANS: u32 = 1_000;

/// The size limit of a shard.
const MAX_SHARD_BYTES: usize = 192 * 1024;

fn address(n: u32) -> Address {
    Address::new(&Ipv4Addr::from(0x0b00_0000 + n).to_string()).unwrap()
}

fn shard(host: &str, stamp: i64, slice: ShardId, bans: Vec<ShardEntry>) -> Shard {
    Shard {
        host: HostName::new(host).unwrap(),
        stamp,
        time: 0,
        id: slice,
        bans,
        unbans: Vec::new(),
    }
}

/// A snapshot with this number of permanent bans in 512 shards, without the first shard.
fn snapshot(host: &str, stamp: i64, bans: u32) -> Vec<String> {
    let mut shards: Vec<Vec<ShardEntry>> = (0..512).map(|_| Vec::new()).collect();
    for n in 0..bans {
        let (jail, address) = (Jail::new("sshd").unwrap(), address(n));
        let listed = ShardEntry { jail, address, start: NOW / 1000, bantime: -1 };
        shards[ShardId::of(address, 512).index() as usize].push(listed);
    }
    let mut encoded = Vec::new();
    for (index, bans) in (0..).zip(shards).skip(1) {
        encoded.push(shard(host, stamp, ShardId::new(index, 512).unwrap(), bans).encode());
    }
    encoded
}

fn event(n: u32) -> String {
    let (address, stamp) = (address(n), NOW + i64::from(n));
    format!(
        r#"{{"action":"ban","ipmset":"sshd","ip":"{address}","bantime":600,"host":"web2","restored":0,"failures":3,"time":1795342588,"stamp":{stamp},"reason":"detected"}}"#
    )
}

fn fleet_unban(n: u32) -> FleetUnban {
    let id = UnbanId::new(&format!("e-{}", NOW + i64::from(n))).unwrap();
    FleetUnban { scope: JailScope::All, address: address(n), id }
}

/// A shard with as many fleet unbans as fit.
fn unbans() -> String {
    let mut shard = shard("evil", NOW + 5_000, ShardId::new(0, 1).unwrap(), Vec::new());
    shard.unbans.push(fleet_unban(0));
    let size = shard.encode().len();
    shard.unbans.push(fleet_unban(1));
    let each = shard.encode().len() - size + 3;
    let count = u32::try_from((MAX_SHARD_BYTES - size) / each).unwrap().min(MAX_UNBANS);
    shard.unbans = (0..count).map(fleet_unban).collect();
    shard.encode()
}

/// The processor time of this thread, which other load on the machine does not change.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap()
}

fn apply_shard(fleet: &mut Controller, shard: &str) {
    black_box(fleet.apply_shard(&Shard::parse(shard.as_bytes()).unwrap(), NOW));
}

/// Runs all effects that need no fail2ban. Returns the time of the longest one.
fn work(fleet: &mut Controller) -> Duration {
    let mut longest = Duration::ZERO;
    loop {
        let started = processor_time();
        let effect = fleet.next_effect(NOW);
        longest = longest.max(processor_time().saturating_sub(started));
        match effect {
            Effect::Persist(_) => fleet.on_persisted(true, NOW),
            Effect::Idle => return longest,
            _ => {}
        }
    }
}

struct Costs {
    /// A plain ban event, in microseconds.
    plain: f64,
}

impl Costs {
    fn print(&self, name: &str, messages: u32, took: Duration) {
        let each = took.as_secs_f64() * 1e6 / f64::from(messages);
        println!("  {name:<46} {each:>10.1} us {:>9.1}", each / self.plain);
    }
}

#[test]
#[ignore = "a measurement, which tests/bench makes"]
fn worst_messages_cost_little_more_than_their_size() {
    let mut fleet = Controller::new(
        HostName::new("web1").unwrap(),
        Timing::default(),
        PersistedState::default(),
    );
    let (mine, slice) = (snapshot("evil", NOW + 1_000, 99_000), ShardId::new(0, 1).unwrap());
    let started = processor_time();
    for shard in &mine {
        apply_shard(&mut fleet, shard);
    }
    let filled = processor_time().saturating_sub(started);

    let events: Vec<String> = (200_000..210_000).map(event).collect();
    let started = processor_time();
    for event in &events {
        black_box(fleet.apply_event(&Event::parse(event.as_bytes()).unwrap(), NOW));
    }
    let costs =
        Costs { plain: (processor_time().saturating_sub(started)).as_secs_f64() * 1e6 / 10_000.0 };
    println!(
        "Cost of one message: processor time, and times a plain ban event (99,000 bans are known)"
    );
    costs.print("a ban event", 1, Duration::from_secs_f64(costs.plain / 1e6));
    costs.print("one of 511 shards with 99,000 bans", 511, filled);

    let old: Vec<String> =
        (1..=300).map(|stamp| shard("evil", stamp, slice, Vec::new()).encode()).collect();
    let started = processor_time();
    for shard in &old {
        apply_shard(&mut fleet, shard);
    }
    costs.print("one of 300 old shards of 80 bytes", 300, processor_time().saturating_sub(started));

    let last = shard("evil", NOW + 2_000, slice, Vec::new()).encode();
    let started = processor_time();
    apply_shard(&mut fleet, &last);
    costs.print("a shard that releases all 99,000", 1, processor_time().saturating_sub(started));
    let longest = work(&mut fleet);
    costs.print("the same, until all are released", 1, processor_time().saturating_sub(started));
    costs.print("the longest effect of these", 1, longest);

    let unbans = unbans();
    let started = processor_time();
    apply_shard(&mut fleet, &unbans);
    let count = unbans.matches("e-").count();
    costs.print(
        &format!("a shard with {count} fleet unbans"),
        1,
        processor_time().saturating_sub(started),
    );
}

/// The observation of a fail2ban that has detected the bans of [`snapshot`] itself.
fn observation(bans: u32) -> Observation {
    let row = BipsRow { timeofban: NOW / 1000, bantime: -1, failures: 3 };
    Observation {
        held: (0..bans).map(|n| (address(n), Some(-1))).collect(),
        rows: (0..bans).map(|n| (address(n), row)).collect(),
        database: Some(0),
        total: Some(bans.into()),
        bantime: 600,
        ..Observation::default()
    }
}

#[test]
#[ignore = "a measurement, which tests/bench makes"]
fn restart_with_100_000_shared_local_bans_takes_seconds() {
    const BANS: u32 = 100_000;
    let jail = Jail::new("sshd").unwrap();
    let started = processor_time();
    let mut fleet = Controller::new(
        HostName::new("web1").unwrap(),
        Timing::default(),
        PersistedState::default(),
    );
    for shard in snapshot("web2", NOW + 1_000, BANS) {
        apply_shard(&mut fleet, &shard);
    }
    fleet.start_cycle(NOW);
    let server = ServerInstance { pid: 1, started: NOW / 1000 - 900 };
    let pulse = Heartbeat { server, data_version: Some(1) };
    fleet.on_heartbeat(pulse, BTreeSet::from([jail.clone()]), NOW);
    let (mut longest, mut banned) = (Duration::ZERO, 0);
    loop {
        let effect_started = processor_time();
        let effect = fleet.next_effect(NOW);
        longest = longest.max(processor_time().saturating_sub(effect_started));
        match effect {
            Effect::Persist(_) => fleet.on_persisted(true, NOW),
            Effect::Observe(jail, of) => {
                fleet.on_observation(&jail, of.as_deref(), observation(BANS), NOW);
            }
            Effect::Ban(_, work) => {
                banned += work.len();
                fleet.on_done(i64::try_from(work.len()).unwrap(), NOW);
            }
            Effect::Continue => {}
            Effect::Idle => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(banned, 0, "fail2ban holds all bans");
    let all = processor_time().saturating_sub(started);
    println!("A restart with 100,000 local bans that another host also claims, in one jail");
    println!("  in all {all:.1?}, the longest effect {longest:.1?}");
}
