//! Five real servers under random bans, unbans and faults from a seed. After each round, fail2ban and the firewall of
//! each server must have exactly the expected bans. `tests/run` runs two short rounds; `tests/chaos ROUNDS [SEED]` runs
//! ROUNDS long ones.

#[path = "simulation/chance.rs"]
mod chance;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use chance::Chance;
use support::{Host, Rig, eventually};

const SERVERS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// How many random events a long and a short round have.
const EVENTS_PER_LONG_ROUND: i64 = 30;
const EVENTS_PER_SHORT_ROUND: i64 = 24;
/// The longest pause between two events.
const MAX_PAUSE_MILLIS: i64 = 1_000;

/// How long after the last fault the servers may take to converge.
const CONVERGENCE_LIMIT: Duration = Duration::from_secs(90);

/// An operator lifts only bans that are at least this old, on a server without a fault for at least as long.
const STEADY_TIME: Duration = Duration::from_secs(8);

type Set = BTreeSet<String>;

/// The events of a round, and how long the servers took to converge.
#[derive(Default)]
struct Round {
    faults: BTreeMap<&'static str, usize>,
    bans: usize,
    lifts: usize,
    /// Bans that a server lacked, and that a server had without a reason, at the end of the round.
    lost: Set,
    extra: Set,
    seconds: f64,
}

/// The missing and the unexpected bans of one server's fail2ban or firewall.
#[derive(Debug)]
struct Wrong {
    #[allow(dead_code, reason = "printed by Debug")]
    server: &'static str,
    #[allow(dead_code, reason = "printed by Debug")]
    what: &'static str,
    missing: Set,
    extra: Set,
}

struct Chaos<'a> {
    rig: &'a Rig,
    chance: Chance,
    events_per_round: i64,
    round: i64,
    next: i64,
    /// The local bans of each server that its operator did not lift.
    own: BTreeMap<&'static str, Set>,
    /// The imported bans that each server's operator lifted.
    lifted: BTreeMap<&'static str, Set>,
    /// When an address was first banned.
    since: BTreeMap<String, Instant>,
    /// When a server last had a fault.
    last_fault: BTreeMap<&'static str, Instant>,
    /// Servers without a connection.
    cut: BTreeSet<&'static str>,
    /// Servers with a full disk.
    full: BTreeSet<&'static str>,
    /// Servers that stay disconnected for the whole round.
    offline: BTreeSet<&'static str>,
    report: Round,
    /// The events of the round, printed if it fails.
    trace: Vec<String>,
}

/// Prepares a server: small file systems in /var/lib, and for some servers a clock that is wrong by `clock` seconds.
fn prepare(host: Host<'_>, clock: i64) {
    host.sh("systemctl stop f2bmqttsub fail2ban
        for d in f2bmqtt fail2ban; do
            mkdir -p /root/old && rm -rf /root/old/$d && cp -a /var/lib/$d /root/old/
            mount -t tmpfs -o size=6m,mode=$([ $d = f2bmqtt ] && echo 700 || echo 755) tmpfs /var/lib/$d
            cp -a /root/old/$d/. /var/lib/$d/
        done");
    if clock != 0 {
        // libfaketime breaks Python's timed waits for semaphores, so fail2ban gets another wrapper.
        host.sh(&format!(
            "cat >>/etc/python3.11/sitecustomize.py <<E\n
import os, time
if 'CLOCK' in os.environ:
    real, off = time.time, float(os.environ['CLOCK'])
    time.time = lambda: real() + off\nE
             lib=$(echo /usr/lib/*/faketime/libfaketime.so.1)
             for s in f2bmqttsub fail2ban; do
                 mkdir -p /etc/systemd/system/$s.service.d; c=/etc/systemd/system/$s.service.d/clock.conf
                 if [ $s = fail2ban ]; then e=CLOCK={clock}
                 else e=\"LD_PRELOAD=$lib FAKETIME={clock:+}s FAKETIME_DONT_FAKE_MONOTONIC=1\"; fi
                 printf '[Service]\\nEnvironment=%s\\n' \"$e\" >$c
             done; systemctl daemon-reload"
        ));
    }
    // One server has a much shorter bantime, so it has to renew imported bans.
    if host.name == "b" {
        host.sh("sed -i 's/^bantime = 600/bantime = 45/' /etc/fail2ban/jail.local");
    }
    host.sh("systemctl start fail2ban f2bmqttsub");
}

impl<'a> Chaos<'a> {
    fn new(rig: &'a Rig, seed: u64, events_per_round: i64) -> Self {
        let empty: BTreeMap<_, _> = SERVERS.iter().map(|server| (*server, Set::new())).collect();
        Self {
            rig,
            chance: Chance::new(seed),
            events_per_round,
            round: 0,
            next: 0,
            own: empty.clone(),
            lifted: empty,
            since: BTreeMap::new(),
            last_fault: BTreeMap::new(),
            cut: BTreeSet::new(),
            full: BTreeSet::new(),
            offline: BTreeSet::new(),
            report: Round::default(),
            trace: Vec::new(),
        }
    }

    fn log(&mut self, line: &str) {
        let at = self.rig.host("hub").sh("date +%H:%M:%S.%3N");
        self.trace.push(format!("{at} {line}"));
    }

    /// The trace of the round, and the logs and databases of some wrong bans.
    fn explain(&self, wrong: &[Wrong]) -> String {
        let addresses: Set =
            wrong.iter().flat_map(|wrong| wrong.missing.union(&wrong.extra)).cloned().collect();
        let mut lines = vec![format!("round {}: {wrong:#?}", self.round)];
        lines.extend(self.trace.iter().cloned());
        for address in addresses.iter().take(2) {
            for server in SERVERS {
                let host = self.host(server);
                lines.push(format!("--- {address} on {server}"));
                lines.push(host.try_sh(&format!(
                    "journalctl -o short-precise --no-pager | grep -F '{address} ' | cut -c1-150 | tail -20
                     grep -F '{address}' /var/log/fail2ban.log | tail -12
                     sqlite3 /var/lib/fail2ban/fail2ban.sqlite3 \"SELECT timeofban, bantime, substr(data, 1, 60) FROM bips WHERE ip = '\"'\"'{address}'\"'\"'\"
                     for t in imports overrides; do sqlite3 /var/lib/f2bmqtt/fleet.sqlite3 \"SELECT * FROM $t\" | grep -F '{address}|'; done"
                )).unwrap_or_else(|text| text));
            }
        }
        lines.join("\n")
    }

    fn host(&self, name: &'static str) -> Host<'a> {
        self.rig.host(name)
    }

    /// Runs one round: events and faults, then no faults, then the check.
    fn round(&mut self) -> Round {
        self.round += 1;
        self.trace.clear();
        self.report = Round::default();
        while self.offline.len() < 2 {
            let server = *self.chance.pick(&SERVERS);
            self.offline.insert(server);
            self.cut(server);
        }
        for _ in 0..self.events_per_round {
            self.inject_event();
            let pause = self.chance.within(0, MAX_PAUSE_MILLIS).unsigned_abs();
            sleep(Duration::from_millis(pause));
        }
        self.heal();
        self.log("no more faults");
        let healed = Instant::now();
        while !self.wrong().is_empty() && healed.elapsed() < CONVERGENCE_LIMIT {
            sleep(Duration::from_millis(200));
        }
        self.report.seconds = healed.elapsed().as_secs_f64();
        // No late message changes the result.
        sleep(Duration::from_secs(3));
        let wrong = self.wrong();
        if !wrong.is_empty() {
            println!("{}", self.explain(&wrong));
        }
        for Wrong { missing, extra, .. } in wrong {
            self.report.lost.extend(missing);
            self.report.extra.extend(extra);
        }
        self.clear();
        std::mem::take(&mut self.report)
    }

    fn inject_event(&mut self) {
        let server = *self.chance.pick(&SERVERS);
        match self.chance.within(0, 19) {
            0..=9 => self.detect(server),
            10..=12 => self.lift(server),
            13 => self.kill_broker(),
            14 | 15 => {
                if self.cut.contains(server) {
                    self.join(server);
                } else {
                    self.cut(server);
                }
            }
            16 | 17 => self.kill(server),
            18 => self.restart_fail2ban(server),
            _ => self.fill(server),
        }
    }

    fn count_fault(&mut self, what: &'static str) {
        self.log(what);
        *self.report.faults.entry(what).or_default() += 1;
    }

    fn mark_fault(&mut self, server: &'static str) {
        self.log(&format!("  ({server})"));
        self.last_fault.insert(server, Instant::now());
    }

    /// A few addresses attack one server or two.
    fn detect(&mut self, server: &'static str) {
        let other = *self.chance.pick(&SERVERS);
        for _ in 0..self.chance.within(1, 4) {
            self.next += 1;
            let address = format!("198.18.{}.{}", self.next / 200, self.next % 200 + 1);
            let both = self.chance.often(200);
            for server in [Some(server), both.then_some(other)].into_iter().flatten() {
                // A local ban of b would expire within the round.
                let server = if server == "b" { "a" } else { server };
                self.host(server).attack("auth", &[&address]);
                self.log(&format!("{server} detects {address}"));
                if self.own.get_mut(server).unwrap().insert(address.clone()) {
                    self.report.bans += 1;
                }
            }
            self.since.insert(address, Instant::now());
        }
    }

    /// An operator lifts a ban that is at least [`STEADY_TIME`] old.
    fn lift(&mut self, server: &'static str) {
        if !is_steady(self.last_fault.get(server)) || self.full.contains(server) {
            return;
        }
        let host = self.host(server);
        let expected = self.expected(server);
        let mut candidates: Vec<String> = banned(host).into_iter().collect();
        // Not a ban whose release is on its way. Not a ban of two servers either: one of them may be cut off, and its
        // own ban arrives later.
        candidates.retain(|address| {
            is_steady(self.since.get(address))
                && expected.contains(address)
                && self.own.values().filter(|own| own.contains(address)).count() == 1
        });
        if candidates.is_empty() {
            return;
        }
        let address = self.chance.pick(&candidates).clone();
        if host.try_sh(&format!("fail2ban-client set sshd unbanip {address}")).is_ok() {
            self.log(&format!("{server} lifts {address}"));
            self.own.get_mut(server).unwrap().remove(&address);
            self.lifted.get_mut(server).unwrap().insert(address);
            self.report.lifts += 1;
        }
    }

    fn kill_broker(&mut self) {
        let hub = self.rig.host("hub");
        let with_data = self.chance.often(500);
        self.count_fault(if with_data { "broker killed" } else { "broker killed, its data lost" });
        let lose = if with_data { "true" } else { "rm -f /var/lib/mosquitto/mosquitto.db" };
        hub.sh(&format!("systemctl kill -s KILL mosquitto; systemctl stop mosquitto; {lose}; systemctl start mosquitto"));
    }

    fn cut(&mut self, server: &'static str) {
        if self.cut.insert(server) {
            self.count_fault("link cut");
            self.host(server).rig("cut");
        }
        self.mark_fault(server);
    }

    fn join(&mut self, server: &'static str) {
        if !self.offline.contains(server) && self.cut.remove(server) {
            self.host(server).rig("join");
        }
        self.mark_fault(server);
    }

    fn kill(&mut self, server: &'static str) {
        // A crash during a full disk loses unwritten state: a documented limit.
        if self.full.contains(server) {
            return;
        }
        self.count_fault("daemon killed");
        let _ = self.host(server).try_sh("systemctl kill -s KILL f2bmqttsub");
        self.mark_fault(server);
    }

    fn restart_fail2ban(&mut self, server: &'static str) {
        if self.full.contains(server) {
            return;
        }
        // fail2ban writes a ban to its database within a moment.
        sleep(Duration::from_secs(2));
        self.count_fault("fail2ban restarted");
        self.host(server).sh("systemctl restart fail2ban");
        self.mark_fault(server);
    }

    fn fill(&mut self, server: &'static str) {
        if self.full.insert(server) {
            self.count_fault("disk full");
            let _ = self.host(server).try_sh("for d in f2bmqtt fail2ban; do dd if=/dev/zero of=/var/lib/$d/filler bs=64k; dd if=/dev/zero of=/var/lib/$d/filler2 bs=512; done 2>&1");
        } else {
            self.drain(server);
        }
        self.mark_fault(server);
    }

    fn drain(&mut self, server: &'static str) {
        if self.full.remove(server) {
            self.host(server).sh("rm -f /var/lib/f2bmqtt/filler* /var/lib/fail2ban/filler*");
            sleep(Duration::from_secs(3));
        }
    }

    /// Ends all faults.
    fn heal(&mut self) {
        self.offline.clear();
        for server in SERVERS {
            self.drain(server);
            self.join(server);
        }
        for server in SERVERS {
            let host = self.host(server);
            eventually("fail2ban answers", || host.ask("get sshd banip").is_ok());
            // fail2ban also detects the attacks that were logged while it was down.
            let own = self.own[server].clone();
            eventually(&format!("{server} has read its log"), || own.is_subset(&banned(host)));
        }
    }

    /// The union of all local bans, minus those that this server's operator lifted.
    fn expected(&self, server: &str) -> Set {
        let union: Set = self.own.values().flatten().cloned().collect();
        union.difference(&self.lifted[server]).cloned().collect()
    }

    /// The differences between the expected bans and those of fail2ban and the firewall.
    fn wrong(&self) -> Vec<Wrong> {
        let observed = scope(|scope| {
            let threads = SERVERS.map(|server| {
                let host = self.host(server);
                (server, scope.spawn(move || (banned(host), in_firewall(host))))
            });
            threads.map(|(server, thread)| (server, thread.join().unwrap()))
        });
        let mut wrong = Vec::new();
        for (server, (fail2ban, firewall)) in observed {
            let expected = self.expected(server);
            for (what, shown) in [("fail2ban", &fail2ban), ("ipset", &firewall)] {
                let missing: Set = expected.difference(shown).cloned().collect();
                let extra: Set = shown.difference(&expected).cloned().collect();
                if !(missing.is_empty() && extra.is_empty()) {
                    wrong.push(Wrong { server, what, missing, extra });
                }
            }
        }
        wrong
    }

    /// Unbans everything on all servers.
    fn clear(&mut self) {
        for server in SERVERS {
            self.host(server).sh("fail2ban-client unban --all");
            self.own.insert(server, Set::new());
            self.lifted.insert(server, Set::new());
        }
        self.since.clear();
        eventually("all bans are released", || {
            SERVERS.iter().all(|server| banned(self.host(server)).is_empty())
        });
    }
}

/// Whether an event is older than [`STEADY_TIME`], or never happened.
fn is_steady(at: Option<&Instant>) -> bool {
    at.is_none_or(|at| at.elapsed() > STEADY_TIME)
}

fn banned(host: Host<'_>) -> Set {
    let list = host.ask("get sshd banip").unwrap_or_default();
    list.split_whitespace().map(str::to_owned).collect()
}

fn in_firewall(host: Host<'_>) -> Set {
    let list = host.try_sh("ipset list f2b-sshd | grep '^198' | cut -d' ' -f1").unwrap_or_default();
    list.split_whitespace().map(str::to_owned).collect()
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn five_servers_converge_after_faults() {
    let (rounds, seed) = (number("ROUNDS", 2), number("SEED", 1));
    let events_per_round = if std::env::var_os("ROUNDS").is_some() {
        EVENTS_PER_LONG_ROUND
    } else {
        EVENTS_PER_SHORT_ROUND
    };
    let rig = Rig::fleet_with("bookworm", &["libfaketime"], &SERVERS);
    for (server, clock) in SERVERS.into_iter().zip([0, 0, 0, 150, -150]) {
        prepare(rig.host(server), clock);
    }
    for server in SERVERS {
        rig.host(server).ready();
    }
    let mut chaos = Chaos::new(&rig, seed, events_per_round);
    let mut all = Round::default();
    let mut seconds = Vec::new();
    println!("round  bans  lifts  faults  lost  too many  seconds to converge");
    for n in 1..=rounds {
        let round = chaos.round();
        let faults: usize = round.faults.values().sum();
        let Round { bans, lifts, lost, extra, seconds: took, .. } = &round;
        let (lost, extra) = (lost.len(), extra.len());
        println!("{n:5}  {bans:4}  {lifts:5}  {faults:6}  {lost:4}  {extra:8}  {took:.1}");
        for (what, count) in round.faults {
            *all.faults.entry(what).or_default() += count;
        }
        all.bans += round.bans;
        all.lifts += round.lifts;
        all.lost.extend(round.lost);
        all.extra.extend(round.extra);
        seconds.push(round.seconds);
    }
    seconds.sort_by(f64::total_cmp);
    println!("\nseed {seed}, {rounds} rounds, clocks wrong by up to 150 s");
    for (what, count) in &all.faults {
        println!("{what:32} {count:6}");
    }
    println!("{:32} {:6}", "bans", all.bans);
    println!("{:32} {:6}", "lifted by hand", all.lifts);
    println!("{:32} {:6}", "lost", all.lost.len());
    println!("{:32} {:6}", "too many", all.extra.len());
    let (median, max) = (seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
    println!("{:32} {median:.1} (median), {max:.1} (max)", "seconds to converge");
    assert!(all.lost.is_empty() && all.extra.is_empty(), "missing or unexpected bans: see above");
}
