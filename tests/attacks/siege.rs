//! A fleet of real hosts under attack, and what has to hold during each attack and after it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Host, Rig, SOON, becomes, within};

/// Within this time a ban or an unban reaches the other host, whatever else is sent.
const CROSSING: Duration = Duration::from_secs(15);

/// What a message without effect or a forgery leaves behind is gone within this time.
const HEALING: Duration = Duration::from_secs(20);

/// Within this time fail2ban answers, in milliseconds: on a machine of its own, and on one that is busy.
const PING: u64 = 1_000;
const BUSY_PING: u64 = 10_000;

/// The most that the daemon's memory may grow, in KiB.
const MAX_GROWTH: u64 = 30 * 1024;

/// The most lines about messages that a daemon prints in ten seconds, and its warnings beside them.
const LINES: u64 = 3_000;
const WARNINGS: u64 = 1_000;

/// Addresses that a forgery has banned until it is found out.
pub(crate) const FORGED: &str = "198.18.5.";

/// An honest ban of the host `b` that stays.
pub(crate) const STAYS: &str = "192.0.2.1";

type Lines = BTreeSet<String>;

pub(crate) const KEY: &str = "7c7f0a5be0d5a2ffe8a2c5b1f0e4d3c2";
const WRONG_KEY: &str = "0123456789abcdef of somebody else";

/// The hub, the hosts `a` and `b`, and `c`, which joins later under another name.
pub(crate) struct Siege {
    pub(crate) rig: Rig,
    is_signed: bool,
    pub(crate) full: bool,
    /// What each daemon was like before the first attack.
    start: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Since when lines have been counted in their journals.
    counted: Instant,
    /// What is still to be checked of the attacks that were made.
    open: Open,
    /// The honest ban of `b` that attacks are aimed at.
    victim: String,
    drawn: u8,
}

/// Attacks that were made, the honest bans since the first of them, and what hosts remembered before it.
#[derive(Default)]
struct Open {
    what: Vec<String>,
    bans: Vec<String>,
    before: Vec<Lines>,
}

/// What a host bans and remembers, and numbers of its daemon.
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

    /// The lines that name none of these addresses.
    fn without(&self, addresses: &[&str]) -> Lines {
        let other = |line: &&String| !addresses.iter().any(|address| names(line, address));
        self.lines.iter().filter(other).cloned().collect()
    }
}

/// Whether a text has an address, not just one that begins with it.
fn names(text: &str, address: &str) -> bool {
    text.match_indices(address)
        .any(|(at, _)| !text[at + address.len()..].starts_with(|c: char| c.is_ascii_digit()))
}

impl Siege {
    /// A fleet that bans as one, with a signing key or without.
    pub(crate) fn lay(is_signed: bool, full: bool) -> Self {
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
        let mut it =
            Self { rig, is_signed, full, start, counted, open: Open::default(), victim, drawn: 2 };
        for name in ["a", "b"] {
            it.host(name).sh("systemctl restart f2bmqttsub");
        }
        for name in ["a", "b"] {
            it.host(name).ready();
        }
        it.host("a").sh("f2bmqtt forget --yes c");
        it.detects("b", &[STAYS, &it.victim]);
        for address in [STAYS, &it.victim] {
            it.crosses("a", address);
        }
        it.make("introduce", "");
        it.remember("a");
        it.remember("b");
        it
    }

    pub(crate) fn host<'a>(&'a self, name: &'a str) -> Host<'a> {
        self.rig.host(name)
    }

    /// Takes a daemon as it is now for what it was before the attacks: it was restarted on purpose.
    pub(crate) fn remember(&mut self, name: &'static str) {
        let numbers = State::of(self.host(name)).numbers;
        self.start.insert(name, numbers);
    }

    /// The memory of a daemon has not grown more than an attack may make it.
    pub(crate) fn is_small(&self, name: &str, max: u64) {
        let State { numbers, .. } = State::of(self.host(name));
        let grown = numbers["rss"].saturating_sub(self.start[name]["rss"]);
        assert!(grown <= max, "{name}: {grown} KiB more");
    }

    /// A daemon connected again on purpose.
    pub(crate) fn reconnected(&mut self, name: &str) {
        let connected = State::of(self.host(name)).numbers["connected"];
        self.start.get_mut(name).unwrap().insert("connected".to_owned(), connected);
    }

    /// An address that nobody has used.
    pub(crate) fn draw(&mut self) -> String {
        self.drawn += 1;
        format!("192.0.2.{}", self.drawn)
    }

    fn detects(&self, name: &str, addresses: &[&str]) {
        self.host(name).attack("auth", addresses);
    }

    /// A host bans what another one detected, in time.
    pub(crate) fn crosses(&self, to: &str, address: &str) {
        let to = self.host(to);
        self.soon(&format!("{} bans {address}", to.name), || to.bans("sshd", address));
    }

    /// Makes an attack, and waits until it is over.
    pub(crate) fn make(&self, attack: &str, next: &str) {
        self.make_with(attack, next, &format!("key={WRONG_KEY}' 'every=2"));
    }

    /// The same, where messages are signed with the fleet's own key.
    pub(crate) fn make_with(&self, attack: &str, next: &str, key: &str) {
        let begun = Instant::now();
        let full = if self.full { "1" } else { "" };
        let key = if self.is_signed { key } else { "key=" };
        let script = format!(
            "python3 -S /root/attacks.py {attack} full={full} victim={} next={next} '{key}' >>/root/out",
            self.victim
        );
        self.host("hub").sh(&script);
        println!("{attack}: {:?}", begun.elapsed());
    }

    /// The time that something may take, which the full forms measure: they run on a machine of their own.
    pub(crate) fn limit(&self, promised: Duration) -> Duration {
        if self.full { promised } else { SOON.max(promised) }
    }

    /// Within the time of a crossing something is so.
    pub(crate) fn soon(&self, what: &str, so: impl FnMut() -> bool) {
        within(self.limit(CROSSING), what, so);
    }

    /// Makes attacks, one after another; where the full forms are made, checks after each.
    pub(crate) fn rounds(&mut self, attacks: &[&str]) {
        if self.full {
            for attack in attacks {
                self.round(&[attack]);
            }
        } else {
            self.round(attacks);
        }
    }

    fn round(&mut self, attacks: &[&str]) {
        self.begin();
        let next = self.draw();
        let (first, rest): (Vec<&str>, Vec<&str>) =
            attacks.iter().partition(|one| **one == "crowd");
        for attack in first {
            self.make(attack, &next);
        }
        std::thread::scope(|scope| {
            let it = &*self;
            let attack = scope.spawn(|| rest.iter().for_each(|attack| it.make(attack, &next)));
            it.detects("b", &[&next]);
            it.crosses("a", &next);
            attack.join().unwrap();
        });
        self.withstands(&attacks.join(", "), &[&next]);
    }

    /// What `a` and `b` ban and remember.
    pub(crate) fn states(&self) -> Vec<Lines> {
        ["a", "b"].map(|name| State::of(self.host(name)).lines).into()
    }

    /// An attack is about to be made.
    pub(crate) fn begin(&mut self) {
        if self.open.before.is_empty() {
            self.open.before = self.states();
        }
    }

    /// An attack was made; `bans` are the honest ones since it began. The full forms check after each.
    pub(crate) fn withstands(&mut self, what: &str, bans: &[&str]) {
        self.open.what.push(what.to_owned());
        self.open.bans.extend(bans.iter().map(|ban| (*ban).to_owned()));
        if self.full {
            self.check();
        }
    }

    /// After attacks: honest bans and unbans reach the other host, the daemons are the same processes and
    /// have grown little, and nothing else is banned or was freed: with a signing key nothing has changed but
    /// the honest bans.
    pub(crate) fn check(&mut self) {
        if self.open.what.is_empty() {
            return;
        }
        let begun = Instant::now();
        let Open { what, bans, before } = std::mem::take(&mut self.open);
        let what = &what.join(", ");
        let bans: &[&str] = &bans.iter().map(String::as_str).collect::<Vec<_>>();
        let (victim, fresh) = (self.victim.clone(), self.draw());
        let (a, b) = (self.host("a"), self.host("b"));
        self.detects("b", &[&fresh]);
        self.crosses("a", &fresh);
        b.sh(&format!("fail2ban-client set sshd unbanip {victim}"));
        self.soon(&format!("a frees {victim} after {what}"), || !a.bans("sshd", &victim));
        // It waits for hosts that are online: their presence is published again where it was replaced.
        let unban = format!("f2bmqtt unban --yes {}", bans.join(" "));
        let mut last = Ok(String::new());
        let freed = bans.is_empty()
            || becomes(self.limit(HEALING), || {
                last = a.try_sh(&unban);
                last.is_ok()
            });
        assert!(freed, "after {what}: {last:?}");
        let banned = Lines::from([STAYS.to_owned(), fresh.clone()]);
        let honest = [&[victim.as_str(), fresh.as_str()], bans].concat();
        for (name, before) in ["a", "b"].into_iter().zip(before) {
            self.bans_just(name, &banned, what);
            let state = State::of(self.host(name));
            self.is_sound(name, &state, what);
            if self.is_signed {
                let before = State { lines: before, numbers: BTreeMap::new() };
                assert_eq!(before.without(&honest), state.without(&honest), "{name} after {what}");
            }
            let lines = state.numbers["journal"];
            self.start.get_mut(name).unwrap().insert("journal".to_owned(), lines);
        }
        self.counted = Instant::now();
        self.victim = fresh;
        println!("withstood {what} on the whole: {:?}", begun.elapsed());
    }

    /// A host bans these addresses and no other, in fail2ban and in its firewall.
    fn bans_just(&self, name: &str, banned: &Lines, what: &str) {
        let of = |kind: &str| banned.iter().map(|one| format!("{kind} {one}")).collect::<Vec<_>>();
        let expected: BTreeSet<_> =
            [of("banned sshd"), of("ipset f2b-sshd")].concat().into_iter().collect();
        let mut last = BTreeSet::new();
        let heals = becomes(self.limit(HEALING), || {
            last = State::of(self.host(name)).lines;
            last.retain(|line| line.starts_with("banned ") || line.starts_with("ipset "));
            last == expected
        });
        assert!(heals, "{name} after {what}: {last:?}, not {expected:?}");
    }

    /// The daemon is the same process, it kept its connection, and it needs and prints little more.
    fn is_sound(&self, name: &str, state: &State, what: &str) {
        let (was, is) = (&self.start[name], &state.numbers);
        println!("{name} after {what}: {was:?} {is:?}");
        for same in ["pid", "connected"] {
            assert_eq!(is[same], was[same], "{same} of {name} after {what}");
        }
        self.is_small(name, MAX_GROWTH);
        assert!(
            is["ping"] < if self.full { PING } else { BUSY_PING },
            "fail2ban on {name} after {what}: {} ms",
            is["ping"]
        );
        let lines = is["journal"] - was["journal"];
        // A span of time lies in one more span of ten seconds than it has of them, and in a part of another.
        let most = (self.counted.elapsed().as_secs() / 10 + 2) * LINES + WARNINGS;
        assert!(lines <= most, "{name} after {what}: {lines} lines, of {most} at most");
        // What is not to be banned never was.
        let wrong = |line: &&String| {
            let address = line.strip_prefix("ever ");
            address.is_some_and(|address| self.is_wrong(name, address))
        };
        let wrong: Vec<_> = state.lines.iter().filter(wrong).collect();
        assert!(wrong.is_empty(), "{name} after {what}: {wrong:?}");
    }

    /// Whether a host must never ban an address. Without a key, a client that may publish can have others
    /// banned: another host's own address, or one by a forgery that is found out later.
    fn is_wrong(&self, name: &str, address: &str) -> bool {
        let other =
            if name == "a" { ["77.13", "4d0d", "fd77::13"] } else { ["77.12", "4d0c", "fd77::12"] };
        let other = !self.is_signed && other.iter().any(|part| address.contains(part));
        !other && !address.starts_with("192.0.2.") && !address.starts_with(FORGED)
    }
}
