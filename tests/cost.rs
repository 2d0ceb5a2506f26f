//! What the most expensive messages that are known cost the daemon, beside a plain ban event. `tests/bench` runs it;
//! the ratios of one run can be compared, the times depend on the machine.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use f2bmqtt::fail2ban::database::BipsRow;
use f2bmqtt::fleet::look::{Heartbeat, Observation, ServerInstance};
use f2bmqtt::fleet::work::Effect;
use f2bmqtt::fleet::{Controller, PersistedState, Timing};
use f2bmqtt::wire::{
    Address, Event, FleetUnban, HostName, Jail, JailScope, Shard, ShardEntry, ShardId, UnbanId,
};

const NOW: i64 = 1_795_342_588_000;

/// The most fleet unbans that a shard may list.
const MAX_UNBANS: u32 = 1_000;

/// The largest shard that a host reads, in bytes.
const MAX_SHARD: usize = 192 * 1024;

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

/// A snapshot of so many permanent bans in 512 shards, of which the first is left out.
fn snapshot(host: &str, stamp: i64, bans: u32) -> Vec<String> {
    let mut shards: Vec<Vec<ShardEntry>> = (0..512).map(|_| Vec::new()).collect();
    for n in 0..bans {
        let (jail, address) = (Jail::new("sshd").unwrap(), address(n));
        let listed = ShardEntry { jail, address, start: NOW / 1000, bantime: -1 };
        shards[ShardId::of(address, 512).index() as usize].push(listed);
    }
    let encoded =
        |(number, bans)| shard(host, stamp, ShardId::new(number, 512).unwrap(), bans).encode();
    (0..).zip(shards).skip(1).map(encoded).collect()
}

fn event(n: u32) -> String {
    let (address, stamp) = (address(n), NOW + i64::from(n));
    format!(
        r#"{{"action":"ban","ipmset":"sshd","ip":"{address}","bantime":600,"host":"web2","restored":0,"failures":3,"time":1795342588,"stamp":{stamp},"reason":"detected"}}"#
    )
}

/// A shard with as many fleet unbans as it has room for.
fn unbans() -> String {
    let mut part = shard("evil", NOW + 5_000, ShardId::new(0, 1).unwrap(), Vec::new());
    let of = |n: u32| {
        let id = UnbanId::new(&format!("e-{}", NOW + i64::from(n))).unwrap();
        FleetUnban { scope: JailScope::All, address: address(n), id }
    };
    part.unbans.push(of(0));
    let size = part.encode().len();
    part.unbans.push(of(1));
    let each = part.encode().len() - size + 3;
    let room = u32::try_from((MAX_SHARD - size) / each).unwrap().min(MAX_UNBANS);
    part.unbans = (0..room).map(of).collect();
    part.encode()
}

/// The processor time of this thread: what else runs on the machine does not count.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap()
}

fn hear(fleet: &mut Controller, shard: &str) {
    black_box(fleet.apply_shard(&Shard::parse(shard.as_bytes()).unwrap(), NOW));
}

/// Works off what is to be done without fail2ban; answers the longest step.
fn work(fleet: &mut Controller) -> Duration {
    let mut longest = Duration::ZERO;
    loop {
        let begun = processor_time();
        let step = fleet.next_effect(NOW);
        longest = longest.max(processor_time().saturating_sub(begun));
        match step {
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
    let begun = processor_time();
    for shard in &mine {
        hear(&mut fleet, shard);
    }
    let filled = processor_time().saturating_sub(begun);

    let events: Vec<String> = (200_000..210_000).map(event).collect();
    let begun = processor_time();
    for event in &events {
        black_box(fleet.apply_event(&Event::parse(event.as_bytes()).unwrap(), NOW));
    }
    let costs =
        Costs { plain: (processor_time().saturating_sub(begun)).as_secs_f64() * 1e6 / 10_000.0 };
    println!(
        "Cost of one message: processor time, and times a plain ban event (99,000 bans are known)"
    );
    costs.print("a ban event", 1, Duration::from_secs_f64(costs.plain / 1e6));
    costs.print("one of 511 shards with 99,000 bans", 511, filled);

    let old: Vec<String> =
        (1..=300).map(|stamp| shard("evil", stamp, slice, Vec::new()).encode()).collect();
    let begun = processor_time();
    for shard in &old {
        hear(&mut fleet, shard);
    }
    costs.print("one of 300 old shards of 80 bytes", 300, processor_time().saturating_sub(begun));

    let last = shard("evil", NOW + 2_000, slice, Vec::new()).encode();
    let begun = processor_time();
    hear(&mut fleet, &last);
    costs.print("a shard that releases all 99,000", 1, processor_time().saturating_sub(begun));
    let longest = work(&mut fleet);
    costs.print("the same, until all are released", 1, processor_time().saturating_sub(begun));
    costs.print("the longest step on the way", 1, longest);

    let unbans = unbans();
    let begun = processor_time();
    hear(&mut fleet, &unbans);
    let count = unbans.matches("e-").count();
    costs.print(
        &format!("a shard with {count} fleet unbans"),
        1,
        processor_time().saturating_sub(begun),
    );
}

/// What fail2ban answers that holds the bans of [`snapshot`], as its own detections.
fn look(bans: u32) -> Observation {
    let addresses = || (0..bans).map(address);
    let row = BipsRow { timeofban: NOW / 1000, bantime: -1, failures: 3 };
    Observation {
        held: addresses().map(|address| (address, Some(-1))).collect(),
        rows: addresses().map(|address| (address, row)).collect(),
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
    let begun = processor_time();
    let mut fleet = Controller::new(
        HostName::new("web1").unwrap(),
        Timing::default(),
        PersistedState::default(),
    );
    for shard in snapshot("web2", NOW + 1_000, BANS) {
        hear(&mut fleet, &shard);
    }
    fleet.start_cycle(NOW);
    let server = ServerInstance { pid: 1, started: NOW / 1000 - 900 };
    let pulse = Heartbeat { server, data_version: Some(1) };
    fleet.on_heartbeat(pulse, BTreeSet::from([jail.clone()]), NOW);
    let (mut longest, mut banned) = (Duration::ZERO, 0);
    loop {
        let step_begun = processor_time();
        let step = fleet.next_effect(NOW);
        longest = longest.max(processor_time().saturating_sub(step_begun));
        match step {
            Effect::Persist(_) => fleet.on_persisted(true, NOW),
            Effect::Observe(jail, of) => {
                fleet.on_observation(&jail, of.as_deref(), look(BANS), NOW);
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
    assert_eq!(banned, 0, "fail2ban holds them all");
    let all = processor_time().saturating_sub(begun);
    println!("A restart with 100,000 bans of this host that another host claims, too, in one jail");
    println!("  in all {all:.1?}, the longest step {longest:.1?}");
}
