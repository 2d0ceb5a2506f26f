//! The fleet under deterministic simulation: the real code of many hosts, on models of fail2ban and of a
//! broker, in virtual time, from a seed, under every fault that the design promises to survive.
//!
//! What must hold: **P1** after the faults every host bans the union, minus what its operator lifted and what
//! was freed for all; **P2** nothing echoes; **P3** a ban lasts as long as at its origin, with no gap; **P4** what a host detected no other frees; **P5** the operator wins.
//!
//! A seed is a world. `tests/simulate RUNS [SEED]` runs as many as one likes; one that fails is told, and
//! `tests/simulate 1 SEED` shows it line by line.

mod broker;
mod chance;
mod fail2ban;
mod host;
mod inbound;
#[cfg(test)]
mod keyless;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::World;

/// Runs worlds on all processors; answers the seeds that failed, and which rule was broken.
fn worlds(
    first: u64,
    count: u64,
    live: impl Fn(u64) -> Result<(), String> + Sync + std::panic::RefUnwindSafe,
) -> BTreeMap<u64, String> {
    let (next, failed) = (AtomicU64::new(first), Mutex::new(BTreeMap::new()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    // What panics is a broken rule, too.
                    let rule = match std::panic::catch_unwind(|| live(seed)) {
                        Ok(Ok(())) => continue,
                        Ok(Err(rule)) => rule,
                        Err(_) => "a panic".to_owned(),
                    };
                    failed.lock().unwrap().insert(seed, rule);
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn fleet_converges_after_faults() {
    let (first, count) = (number("SEED").unwrap_or(1), number("RUNS").unwrap_or(500));
    let failed = worlds(first, count, |seed| World::live(seed).1);
    let mut rules: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (seed, rule) in &failed {
        rules.entry(rule).or_default().push(*seed);
    }
    for (rule, seeds) in &rules {
        let first: Vec<_> = seeds.iter().take(8).collect();
        println!("{:6} of {count}: {rule}, seeds {first:?}", seeds.len());
    }
    if let (1, Some(seed)) = (count, failed.keys().next()) {
        let (world, _) = World::live(*seed);
        println!("{}", world.log.join("\n"));
    }
    println!("{count} worlds from {first} on, {} failed", failed.len());
    assert!(failed.is_empty(), "tests/simulate 1 SEED shows what happened");
}

#[test]
fn stamps_grow_despite_clock_crash_and_broker_faults() {
    let live = |seed| World::live_with_clock_set_back(seed).1;
    let failed = worlds(number("SEED").unwrap_or(1), number("RUNS").unwrap_or(60), live);
    if let Some(seed) = failed.keys().next() {
        let (world, _) = World::live_with_clock_set_back(*seed);
        println!("{}", world.log.join("\n"));
    }
    assert!(failed.is_empty(), "{failed:?}");
}
