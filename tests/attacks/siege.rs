//! A fleet of real hosts under attack, and the conditions that hold during and after each attack.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{CONDITION_LIMIT, Host, Rig, becomes, within};

/// Within this time a ban or an unban reaches the other host during an attack.
const CROSSING_LIMIT: Duration = Duration::from_secs(15);

/// Within this time the effects of an attack are gone.
const HEALING_LIMIT: Duration = Duration::from_secs(20);

/// Within this time fail2ban answers a ping.
const MAX_PING_MILLIS: u64 = 1_000;
/// The same, where other tests run on the machine.
const MAX_PING_MILLIS_BUSY: u64 = 10_000;

/// How much the daemon's memory may grow.
const MAX_GROWTH_KIB: u64 = 30 * 1024;

/// How many lines about messages a daemon prints in ten seconds, at most.
const MAX_LINES_PER_TEN_SECONDS: u64 = 3_000;
/// How many other lines a daemon prints during an attack, at most.
const MAX_WARNINGS: u64 = 1_000;

/// The prefix of addresses that an attack may have banned until the daemon detects the forgery.
pub(crate) const FORGED_PREFIX: &str = "198.18.5.";

/// A local ban of the host `b` that lasts through all attacks.
pub(crate) const LASTING_BAN: &str = "192.0.2.1";

type Lines = BTreeSet<String>;

pub(crate) const KEY: &str = "7c7f0a5be0d5a2ffe8a2c5b1f0e4d3c2";
const WRONG_KEY: &str = "0123456789abcdef of somebody else";

/// The hub, the hosts `a` and `b`, and `c`, which joins later under another name.
pub(crate) struct Siege {
    pub(crate) rig: Rig,
    is_signed: bool,
    pub(crate) full: bool,
    /// The numbers of each daemon before the first attack.
    start: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// When the lines of the journals were last counted.
    counted: Instant,
    /// Attacks whose effects are not checked yet.
    pending: PendingCheck,
    /// The local ban of `b` that the attacks target.
    victim: String,
    addresses_used: u8,
}

/// Attacks, the honest bans since the first of them, and the hosts' states before it.
#[derive(Default)]
struct PendingCheck {
    what: Vec<String>,
    bans: Vec<String>,
    before: Vec<Lines>,
}

/// A host's bans and stored records, and numbers of its daemon.
struct State {
    lines: Lines,
    numbers: BTreeMap<String, u64>,
}

impl State {
    fn of(host: Host<'_>) -> Self {
        let (mut lines, mut numbers) = (BTreeSet::new(), BTreeMap::new());
        for line in host.sh("python3 -S /root/attacks.py state").lines() {
            match line.split_once(' ').map(|(name, number)| (name, number.parse())) {
                Some((name, Ok(number))) => drop(numbers.insert(name.to_owned(), number)),
                _ => drop(lines.insert(line.to_owned())),
            }
        }
        Self { lines, numbers }
    }

    /// The lines that contain none of these addresses.
    fn without(&self, addresses: &[&str]) -> Lines {
        let mut lines = self.lines.clone();
        lines.retain(|line| !addresses.iter().any(|address| contains_address(line, address)));
        lines
    }
}

/// Whether a text contains an address, not only a longer one that starts with it.
fn contains_address(text: &str, address: &str) -> bool {
    text.match_indices(address)
        .any(|(at, _)| !text[at + address.len()..].starts_with(|c: char| c.is_ascii_digit()))
}

impl Siege {
    /// Boots a fleet with or without a signing key.
    pub(crate) fn set_up(is_signed: bool, full: bool) -> Self {
        let rig = Rig::fleet(&["a", "b", "c"]);
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
        for host in rig.hosts(&["hub", "a", "b", "c"]) {
            for file in ["attacks.py", "hostile.py"] {
                host.push(&tests.join(file), &format!("/root/{file}"));
            }
        }
        let mut more = "MQTT_HA_PREFIX=homeassistant\nMQTT_NEVER_BAN=198.51.100.7\n".to_owned();
        if is_signed {
            let _ = writeln!(more, "MQTT_SIGNING_KEY={KEY}");
        }
        rig.host("c")
            .sh("systemctl stop f2bmqttsub; echo MQTT_NODE=newcomer >>/etc/fail2ban/mqtt.env");
        for host in rig.hosts(&["a", "b", "c"]) {
            host.sh(&format!("printf '%s' '{more}' >>/etc/fail2ban/mqtt.env"));
        }
        let victim = "192.0.2.2".to_owned();
        let start = BTreeMap::new();
        let counted = Instant::now();
        let mut it = Self {
            rig,
            is_signed,
            full,
            start,
            counted,
            pending: PendingCheck::default(),
            victim,
            addresses_used: 2,
        };
        for name in ["a", "b"] {
            it.host(name).sh("systemctl restart f2bmqttsub");
        }
        for name in ["a", "b"] {
            it.host(name).ready();
        }
        it.host("a").sh("f2bmqtt forget --yes c");
        it.detect("b", &[LASTING_BAN, &it.victim]);
        for address in [LASTING_BAN, &it.victim] {
            it.assert_crosses("a", address);
        }
        it.run_attack("introduce", "");
        it.record_state("a");
        it.record_state("b");
        it
    }

    pub(crate) fn host<'a>(&'a self, name: &'a str) -> Host<'a> {
        self.rig.host(name)
    }

    /// Records the numbers of a daemon that the test restarted, as those before the attacks.
    pub(crate) fn record_state(&mut self, name: &'static str) {
        let numbers = State::of(self.host(name)).numbers;
        self.start.insert(name, numbers);
    }

    /// Asserts that the memory of a daemon has grown at most by `max` KiB.
    pub(crate) fn assert_memory_growth(&self, name: &str, max: u64) {
        let State { numbers, .. } = State::of(self.host(name));
        let grown = numbers["rss"].saturating_sub(self.start[name]["rss"]);
        assert!(grown <= max, "{name}: {grown} KiB more");
    }

    /// Records that a daemon reconnected, as the test expected.
    pub(crate) fn accept_reconnect(&mut self, name: &str) {
        let connected = State::of(self.host(name)).numbers["connected"];
        self.start.get_mut(name).unwrap().insert("connected".to_owned(), connected);
    }

    /// An address that no host has banned before.
    pub(crate) fn next_address(&mut self) -> String {
        self.addresses_used += 1;
        format!("192.0.2.{}", self.addresses_used)
    }

    fn detect(&self, name: &str, addresses: &[&str]) {
        self.host(name).attack("auth", addresses);
    }

    /// Asserts that a host imports a ban in time.
    pub(crate) fn assert_crosses(&self, to: &str, address: &str) {
        let to = self.host(to);
        self.assert_soon(&format!("{} bans {address}", to.name), || to.bans("sshd", address));
    }

    /// Runs an attack to its end.
    pub(crate) fn run_attack(&self, attack: &str, next: &str) {
        self.run_attack_with_key(attack, next, &format!("key={WRONG_KEY}' 'every=2"));
    }

    /// Runs an attack to its end; in a fleet with a key, messages are signed with this `key` argument.
    pub(crate) fn run_attack_with_key(&self, attack: &str, next: &str, key: &str) {
        let started = Instant::now();
        let full = if self.full { "1" } else { "" };
        let key = if self.is_signed { key } else { "key=" };
        let script = format!(
            "python3 -S /root/attacks.py {attack} full={full} victim={} next={next} '{key}' >>/root/out",
            self.victim
        );
        self.host("hub").sh(&script);
        println!("{attack}: {:?}", started.elapsed());
    }

    /// The time limit of a promise. Only the full forms measure it: they run on a machine of their own.
    pub(crate) fn limit(&self, promised: Duration) -> Duration {
        if self.full { promised } else { CONDITION_LIMIT.max(promised) }
    }

    /// Asserts a condition within the time of a crossing.
    pub(crate) fn assert_soon(&self, what: &str, so: impl FnMut() -> bool) {
        within(self.limit(CROSSING_LIMIT), what, so);
    }

    /// Runs attacks one after another; with the full forms, checks after each.
    pub(crate) fn run_attacks(&mut self, attacks: &[&str]) {
        if self.full {
            for attack in attacks {
                self.run_round(&[attack]);
            }
        } else {
            self.run_round(attacks);
        }
    }

    fn run_round(&mut self, attacks: &[&str]) {
        self.start_attack();
        let next = self.next_address();
        let (first, rest): (Vec<&str>, Vec<&str>) =
            attacks.iter().partition(|one| **one == "crowd");
        for attack in first {
            self.run_attack(attack, &next);
        }
        std::thread::scope(|scope| {
            let it = &*self;
            let attack =
                scope.spawn(|| rest.iter().for_each(|attack| it.run_attack(attack, &next)));
            it.detect("b", &[&next]);
            it.assert_crosses("a", &next);
            attack.join().unwrap();
        });
        self.finish_attack(&attacks.join(", "), &[&next]);
    }

    /// The bans and stored records of `a` and `b`.
    pub(crate) fn states(&self) -> Vec<Lines> {
        ["a", "b"].map(|name| State::of(self.host(name)).lines).into()
    }

    /// Records the state before an attack.
    pub(crate) fn start_attack(&mut self) {
        if self.pending.before.is_empty() {
            self.pending.before = self.states();
        }
    }

    /// Ends an attack; `bans` are the honest ones since its start. The full forms check after each.
    pub(crate) fn finish_attack(&mut self, what: &str, bans: &[&str]) {
        self.pending.what.push(what.to_owned());
        self.pending.bans.extend(bans.iter().map(|ban| (*ban).to_owned()));
        if self.full {
            self.check();
        }
    }

    /// Checks the fleet after attacks: honest bans and unbans reach the other host, the daemons are the same processes
    /// and have grown little, and no other address was banned or released. With a signing key, only the honest bans
    /// have changed.
    pub(crate) fn check(&mut self) {
        if self.pending.what.is_empty() {
            return;
        }
        let started = Instant::now();
        let PendingCheck { what, bans, before } = std::mem::take(&mut self.pending);
        let what = &what.join(", ");
        let bans: &[&str] = &bans.iter().map(String::as_str).collect::<Vec<_>>();
        let (victim, fresh) = (self.victim.clone(), self.next_address());
        let (a, b) = (self.host("a"), self.host("b"));
        self.detect("b", &[&fresh]);
        self.assert_crosses("a", &fresh);
        b.sh(&format!("fail2ban-client set sshd unbanip {victim}"));
        self.assert_soon(&format!("a releases {victim} after {what}"), || !a.bans("sshd", &victim));
        // The command waits for the online hosts, which publish their presence again if an attack replaced it.
        let unban = format!("f2bmqtt unban --yes {}", bans.join(" "));
        let mut last = Ok(String::new());
        let freed = bans.is_empty()
            || becomes(self.limit(HEALING_LIMIT), || {
                last = a.try_sh(&unban);
                last.is_ok()
            });
        assert!(freed, "after {what}: {last:?}");
        let banned = Lines::from([LASTING_BAN.to_owned(), fresh.clone()]);
        let honest = [&[victim.as_str(), fresh.as_str()], bans].concat();
        for (name, before) in ["a", "b"].into_iter().zip(before) {
            self.assert_bans(name, &banned, what);
            let state = State::of(self.host(name));
            self.assert_sound(name, &state, what);
            if self.is_signed {
                let before = State { lines: before, numbers: BTreeMap::new() };
                assert_eq!(before.without(&honest), state.without(&honest), "{name} after {what}");
            }
            let lines = state.numbers["journal"];
            self.start.get_mut(name).unwrap().insert("journal".to_owned(), lines);
        }
        self.counted = Instant::now();
        self.victim = fresh;
        println!("withstood {what}, in all: {:?}", started.elapsed());
    }

    /// Asserts that a host bans these addresses and no other, in fail2ban and in its firewall.
    fn assert_bans(&self, name: &str, banned: &Lines, what: &str) {
        let expected: BTreeSet<_> = banned
            .iter()
            .flat_map(|address| {
                [format!("banned sshd {address}"), format!("ipset f2b-sshd {address}")]
            })
            .collect();
        let mut last = BTreeSet::new();
        let heals = becomes(self.limit(HEALING_LIMIT), || {
            last = State::of(self.host(name)).lines;
            last.retain(|line| line.starts_with("banned ") || line.starts_with("ipset "));
            last == expected
        });
        assert!(heals, "{name} after {what}: {last:?}, not {expected:?}");
    }

    /// Asserts that the daemon is the same process, kept its connection, and needs and prints little more.
    fn assert_sound(&self, name: &str, state: &State, what: &str) {
        let (was, is) = (&self.start[name], &state.numbers);
        println!("{name} after {what}: {was:?} {is:?}");
        for same in ["pid", "connected"] {
            assert_eq!(is[same], was[same], "{same} of {name} after {what}");
        }
        self.assert_memory_growth(name, MAX_GROWTH_KIB);
        assert!(
            is["ping"] < if self.full { MAX_PING_MILLIS } else { MAX_PING_MILLIS_BUSY },
            "fail2ban on {name} after {what}: {} ms",
            is["ping"]
        );
        let lines = is["journal"] - was["journal"];
        // A time span overlaps up to two more ten-second windows than it is long.
        let most =
            (self.counted.elapsed().as_secs() / 10 + 2) * MAX_LINES_PER_TEN_SECONDS + MAX_WARNINGS;
        assert!(lines <= most, "{name} after {what}: {lines} lines, of {most} at most");
        let mut banned = state.lines.iter().filter_map(|line| line.strip_prefix("ever "));
        let wrong = banned.find(|address| self.is_never_allowed(name, address));
        assert_eq!(wrong, None, "{name} after {what}");
    }

    /// Whether a host must never ban an address. Without a key, an attacker can make it ban another host's address, or
    /// an address by a forgery that the daemon detects later.
    fn is_never_allowed(&self, name: &str, address: &str) -> bool {
        let other =
            if name == "a" { ["77.13", "4d0d", "fd77::13"] } else { ["77.12", "4d0c", "fd77::12"] };
        let other = !self.is_signed && other.iter().any(|part| address.contains(part));
        !other && !address.starts_with("192.0.2.") && !address.starts_with(FORGED_PREFIX)
    }
}
