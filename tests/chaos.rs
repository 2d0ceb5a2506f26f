//! Five real servers under a random but seeded mix of bans, unbans and everything that may fail; and after
//! each round, within a moment of quiet, fail2ban and the firewall of every server show exactly what
//! they should. Two short rounds are run with all other tests; `tests/chaos ROUNDS [SEED]` runs as many long
//! ones as one likes.

#[path = "simulation/chance.rs"]
mod chance;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use chance::Chance;
use support::{Host, Rig, eventually};

const SERVERS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// How many things happen in a long round and in a short one, and how long at most from one to the next, in
/// milliseconds.
const LONG: i64 = 30;
const SHORT: i64 = 24;
const PAUSE: i64 = 1_000;

/// How long the quiet may take until all is right.
const QUIET: Duration = Duration::from_secs(90);

/// What is lifted by hand must have been there for a while, and nothing else have happened to its server.
const STEADY: Duration = Duration::from_secs(8);

type Set = BTreeSet<String>;

/// What a round did, and how long it took until all was right.
#[derive(Default)]
struct Round {
    faults: BTreeMap<&'static str, usize>,
    bans: usize,
    lifts: usize,
    /// Bans that some server had not, and that some server had too many, when the quiet was over.
    lost: Set,
    extra: Set,
    seconds: f64,
}

/// What one server's fail2ban or firewall has not, and has too many.
#[derive(Debug)]
struct Wrong {
    #[allow(dead_code, reason = "shown")]
    server: &'static str,
    #[allow(dead_code, reason = "shown")]
    what: &'static str,
    missing: Set,
    extra: Set,
}

struct Chaos<'a> {
    rig: &'a Rig,
    chance: Chance,
    /// How many things happen in a round.
    happenings: i64,
    round: i64,
    next: i64,
    /// What each server detected and nobody freed there.
    own: BTreeMap<&'static str, Set>,
    /// What its operator lifted.
    lifted: BTreeMap<&'static str, Set>,
    /// When an address was banned first, and when something last happened to a server.
    since: BTreeMap<String, Instant>,
    shaken: BTreeMap<&'static str, Instant>,
    /// Servers that are cut off, whose disk is full, and that stay away for the whole round.
    cut: BTreeSet<&'static str>,
    full: BTreeSet<&'static str>,
    away: BTreeSet<&'static str>,
    report: Round,
    /// What was done, for whoever looks for what went wrong.
    trace: Vec<String>,
}

/// Prepares a server: a small disk of its own for what is in /var/lib, and for some a clock that is off.
fn prepare(host: Host<'_>, clock: i64) {
    host.sh("systemctl stop f2bmqttsub fail2ban
        for d in f2bmqtt fail2ban; do
            mkdir -p /root/old && rm -rf /root/old/$d && cp -a /var/lib/$d /root/old/
            mount -t tmpfs -o size=6m,mode=$([ $d = f2bmqtt ] && echo 700 || echo 755) tmpfs /var/lib/$d
            cp -a /root/old/$d/. /var/lib/$d/
        done");
    if clock != 0 {
        // fail2ban's Python waits for semaphores by the clock, which libfaketime does not bear.
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
    // One bans for much shorter than all others: what it imports it has to prolong.
    if host.name == "b" {
        host.sh("sed -i 's/^bantime = 600/bantime = 45/' /etc/fail2ban/jail.local");
    }
    host.sh("systemctl start fail2ban f2bmqttsub");
}

impl<'a> Chaos<'a> {
    fn new(rig: &'a Rig, seed: u64, happenings: i64) -> Self {
        let empty = || SERVERS.iter().map(|server| (*server, Set::new())).collect();
        Self {
            rig,
            chance: Chance::new(seed),
            happenings,
            round: 0,
            next: 0,
            own: empty(),
            lifted: empty(),
            since: BTreeMap::new(),
            shaken: BTreeMap::new(),
            cut: BTreeSet::new(),
            full: BTreeSet::new(),
            away: BTreeSet::new(),
            report: Round::default(),
            trace: Vec::new(),
        }
    }

    fn say(&mut self, line: &str) {
        let at = self.rig.host("hub").sh("date +%H:%M:%S.%3N");
        self.trace.push(format!("{at} {line}"));
    }

    /// Everything that is known of what is wrong.
    fn explain(&self, wrong: &[Wrong]) -> String {
        let addresses: Set =
            wrong.iter().flat_map(|wrong| wrong.missing.union(&wrong.extra)).cloned().collect();
        let mut told = vec![format!("round {}: {wrong:#?}", self.round)];
        told.extend(self.trace.iter().cloned());
        for address in addresses.iter().take(2) {
            for server in SERVERS {
                let host = self.host(server);
                told.push(format!("--- {address} on {server}"));
                told.push(host.try_sh(&format!(
                    "journalctl -o short-precise --no-pager | grep -F '{address} ' | cut -c1-150 | tail -20
                     grep -F '{address}' /var/log/fail2ban.log | tail -12
                     sqlite3 /var/lib/fail2ban/fail2ban.sqlite3 \"SELECT timeofban, bantime, substr(data, 1, 60) FROM bips WHERE ip = '\"'\"'{address}'\"'\"'\"
                     for t in imports overrides; do sqlite3 /var/lib/f2bmqtt/fleet.sqlite3 \"SELECT * FROM $t\" | grep -F '{address}|'; done"
                )).unwrap_or_else(|text| text));
            }
        }
        told.join("\n")
    }

    fn host(&self, name: &'static str) -> Host<'a> {
        self.rig.host(name)
    }

    /// One round: trouble, quiet, and a look.
    fn round(&mut self) -> Round {
        self.round += 1;
        self.trace.clear();
        self.report = Round::default();
        // Two are away for long.
        while self.away.len() < 2 {
            let server = *self.chance.pick(&SERVERS);
            self.away.insert(server);
            self.cut(server);
        }
        for _ in 0..self.happenings {
            self.happen();
            let pause = self.chance.within(0, PAUSE).unsigned_abs();
            sleep(Duration::from_millis(pause));
        }
        self.heal();
        self.say("quiet");
        let quiet = Instant::now();
        while !self.wrong().is_empty() && quiet.elapsed() < QUIET {
            sleep(Duration::from_millis(200));
        }
        self.report.seconds = quiet.elapsed().as_secs_f64();
        // It stays so: nothing comes back late.
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

    fn happen(&mut self) {
        let server = *self.chance.pick(&SERVERS);
        match self.chance.within(0, 19) {
            0..=9 => self.detect(server),
            10..=12 => self.lift(server),
            13 => self.broker(),
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

    fn fault(&mut self, what: &'static str) {
        self.say(what);
        *self.report.faults.entry(what).or_default() += 1;
    }

    fn shake(&mut self, server: &'static str) {
        self.say(&format!("  ({server})"));
        self.shaken.insert(server, Instant::now());
    }

    /// A few addresses come to one server or two.
    fn detect(&mut self, server: &'static str) {
        let other = *self.chance.pick(&SERVERS);
        for _ in 0..self.chance.within(1, 4) {
            self.next += 1;
            let address = format!("198.18.{}.{}", self.next / 200, self.next % 200 + 1);
            let both = self.chance.often(200);
            for server in [Some(server), both.then_some(other)].into_iter().flatten() {
                // What b bans for itself ends within the round.
                let server = if server == "b" { "a" } else { server };
                self.host(server).attack("auth", &[&address]);
                self.say(&format!("{server} detects {address}"));
                if self.own.get_mut(server).unwrap().insert(address.clone()) {
                    self.report.bans += 1;
                }
            }
            self.since.insert(address, Instant::now());
        }
    }

    /// An operator frees something that has been there for a while.
    fn lift(&mut self, server: &'static str) {
        let steady = |at: Option<&Instant>| at.is_none_or(|at| at.elapsed() > STEADY);
        if !steady(self.shaken.get(server)) || self.full.contains(server) {
            return;
        }
        let host = self.host(server);
        let here: Vec<String> =
            banned(host).into_iter().filter(|address| steady(self.since.get(address))).collect();
        // Not what is on its way to be freed; and not what two detected, one of whom may be cut off: its
        // ban is another, and comes later.
        let expected = self.expected(server);
        let owners =
            |address: &String| self.own.values().filter(|own| own.contains(address)).count();
        let here: Vec<String> = here
            .into_iter()
            .filter(|address| expected.contains(address) && owners(address) == 1)
            .collect();
        if here.is_empty() {
            return;
        }
        let address = self.chance.pick(&here).clone();
        if host.try_sh(&format!("fail2ban-client set sshd unbanip {address}")).is_ok() {
            self.say(&format!("{server} lifts {address}"));
            self.own.get_mut(server).unwrap().remove(&address);
            self.lifted.get_mut(server).unwrap().insert(address);
            self.report.lifts += 1;
        }
    }

    fn broker(&mut self) {
        let hub = self.rig.host("hub");
        let with_data = self.chance.often(500);
        self.fault(if with_data { "broker killed" } else { "broker killed, its data lost" });
        let lose = if with_data { "true" } else { "rm -f /var/lib/mosquitto/mosquitto.db" };
        hub.sh(&format!("systemctl kill -s KILL mosquitto; systemctl stop mosquitto; {lose}; systemctl start mosquitto"));
    }

    fn cut(&mut self, server: &'static str) {
        if self.cut.insert(server) {
            self.fault("link cut");
            self.host(server).rig("cut");
        }
        self.shake(server);
    }

    fn join(&mut self, server: &'static str) {
        if !self.away.contains(server) && self.cut.remove(server) {
            self.host(server).rig("join");
        }
        self.shake(server);
    }

    fn kill(&mut self, server: &'static str) {
        // A full disk and a crash together lose what was not written: documented.
        if self.full.contains(server) {
            return;
        }
        self.fault("daemon killed");
        let _ = self.host(server).try_sh("systemctl kill -s KILL f2bmqttsub");
        self.shake(server);
    }

    fn restart_fail2ban(&mut self, server: &'static str) {
        if self.full.contains(server) {
            return;
        }
        // Its database has what it bans within a moment.
        sleep(Duration::from_secs(2));
        self.fault("fail2ban restarted");
        self.host(server).sh("systemctl restart fail2ban");
        self.shake(server);
    }

    fn fill(&mut self, server: &'static str) {
        if self.full.insert(server) {
            self.fault("disk full");
            let _ = self.host(server).try_sh("for d in f2bmqtt fail2ban; do dd if=/dev/zero of=/var/lib/$d/filler bs=64k; dd if=/dev/zero of=/var/lib/$d/filler2 bs=512; done 2>&1");
        } else {
            self.drain(server);
        }
        self.shake(server);
    }

    fn drain(&mut self, server: &'static str) {
        if self.full.remove(server) {
            self.host(server).sh("rm -f /var/lib/f2bmqtt/filler* /var/lib/fail2ban/filler*");
            sleep(Duration::from_secs(3));
        }
    }

    /// From now on nothing fails.
    fn heal(&mut self) {
        self.away.clear();
        for server in SERVERS {
            self.drain(server);
            self.join(server);
        }
        for server in SERVERS {
            let host = self.host(server);
            eventually("fail2ban is up", || host.ask("get sshd banip").is_ok());
            // It detects what was logged while it was away.
            let own = self.own[server].clone();
            eventually(&format!("{server} has read its log"), || own.is_subset(&banned(host)));
        }
    }

    /// The union, minus what this server's operator lifted.
    fn expected(&self, server: &str) -> Set {
        let union: Set = self.own.values().flatten().cloned().collect();
        union.difference(&self.lifted[server]).cloned().collect()
    }

    /// What fail2ban and the firewall show that they should not, or do not show that they should.
    fn wrong(&self) -> Vec<Wrong> {
        let looks = scope(|scope| {
            let looks = SERVERS.map(|server| {
                let host = self.host(server);
                (server, scope.spawn(move || (banned(host), in_firewall(host))))
            });
            looks.map(|(server, look)| (server, look.join().unwrap()))
        });
        let mut wrong = Vec::new();
        for (server, (fail2ban, firewall)) in looks {
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

    /// Everybody frees everything.
    fn clear(&mut self) {
        for server in SERVERS {
            self.host(server).sh("fail2ban-client unban --all");
            self.own.insert(server, Set::new());
            self.lifted.insert(server, Set::new());
        }
        self.since.clear();
        eventually("all is free", || {
            SERVERS.iter().all(|server| banned(self.host(server)).is_empty())
        });
    }
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
    let happenings = if std::env::var_os("ROUNDS").is_some() { LONG } else { SHORT };
    let rig = Rig::fleet_with("bookworm", &["libfaketime"], &SERVERS);
    for (server, clock) in SERVERS.into_iter().zip([0, 0, 0, 150, -150]) {
        prepare(rig.host(server), clock);
    }
    for server in SERVERS {
        rig.host(server).ready();
    }
    let mut chaos = Chaos::new(&rig, seed, happenings);
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
    println!("\nseed {seed}, {rounds} rounds, clocks off by up to 150 s");
    for (what, count) in &all.faults {
        println!("{what:32} {count:6}");
    }
    println!("{:32} {:6}", "bans", all.bans);
    println!("{:32} {:6}", "lifted by hand", all.lifts);
    println!("{:32} {:6}", "lost", all.lost.len());
    println!("{:32} {:6}", "too many", all.extra.len());
    let (median, max) = (seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
    println!("{:32} {median:.1} (median), {max:.1} (max)", "seconds to converge");
    assert!(all.lost.is_empty() && all.extra.is_empty(), "lost or too many: see above");
}
