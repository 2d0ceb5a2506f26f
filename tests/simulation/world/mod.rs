//! A world from a seed: hosts, a broker, a network, whatever may go wrong with them, and then quiet, in
//! which everything must come right.

mod attack;
mod clock;
mod happenings;
mod properties;

use std::collections::{BTreeMap, BTreeSet};

use attack::{Attack, Attacker};
use f2bmqtt::fleet::claims::ClaimState;
use f2bmqtt::guard::RejectReason;
use f2bmqtt::wire::{Action, Address, Ban, Event, HostName as Name, Shard};

use crate::broker::Broker;
use crate::chance::Chance;
use crate::fail2ban::{Fail2ban, Ticket};
use crate::host::{Around, HostName, key};

/// When the world begins, in seconds.
const BEGIN: i64 = 1_000_000;
/// For how long things go wrong, and for how long nothing does, in seconds.
const ACTIVE: i64 = 150;
const QUIET: i64 = 190;
/// When all must have come right, after the beginning of the quiet.
const SETTLED: i64 = 90;

/// A ban that one host holds: where it was detected, and when it began there.
type Origin = (usize, Address, i64);

pub(crate) struct World {
    chance: Chance,
    now: i64,
    faults: bool,
    hosts: Vec<HostName>,
    broker: Broker,
    /// A host that runs the scripts.
    script: Option<Fail2ban>,
    addresses: Vec<Address>,
    /// Until when something is away: the broker, a host's link, its fail2ban; and whose disk is full.
    broker_away: i64,
    links_away: BTreeMap<usize, i64>,
    fail2ban_away: BTreeMap<usize, i64>,
    full: BTreeMap<usize, i64>,
    /// What a host's operator lifted for sure, or may have; what a fleet unban freed for sure.
    lifted: BTreeSet<(usize, Origin)>,
    perhaps_lifted: BTreeSet<(usize, Origin)>,
    unbanned: BTreeSet<Origin>,
    /// Hosts whose jail was away for a while: their bans may have ended, and come back as they were.
    returned: BTreeSet<usize>,
    /// Who freed something for all last; and when what was.
    unbanner: Option<usize>,
    freed: BTreeMap<Address, i64>,
    /// When a host last heard a script's ban.
    scripts_heard: BTreeMap<(usize, Address), i64>,
    /// What a host that is gone for good held, and until when.
    left_behind: BTreeMap<(usize, Address), i64>,
    wrong: BTreeMap<(usize, Address, &'static str), i64>,
    attacker: Attacker,
    pub(crate) log: Vec<String>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let attacker = Attacker::new(seed);
        let keys = attacker.signed.then(attack::keys);
        let hosts = ["a", "b", "c"].map(|name| {
            let mut host = HostName::new(name, Fail2ban::new(&mut chance, BEGIN), keys.clone());
            host.start();
            host
        });
        let mut broker = Broker::default();
        // Scripts sign nothing.
        let has_script = chance.often(500) && keys.is_none();
        let script = has_script.then(|| {
            broker.connect("script", &["#"], false);
            let mut fail2ban = Fail2ban::new(&mut chance, BEGIN);
            (fail2ban.bantime, fail2ban.lag, fail2ban.skew, fail2ban.increment) = (60, 0, 0, false);
            fail2ban
        });
        let addresses = (1..=4).map(|n| Address::new(&format!("192.0.2.{n}")).unwrap()).collect();
        Self {
            chance,
            now: BEGIN,
            faults: true,
            hosts: hosts.into(),
            broker,
            script,
            addresses,
            broker_away: 0,
            links_away: BTreeMap::new(),
            fail2ban_away: BTreeMap::new(),
            full: BTreeMap::new(),
            lifted: BTreeSet::new(),
            perhaps_lifted: BTreeSet::new(),
            unbanned: BTreeSet::new(),
            returned: BTreeSet::new(),
            unbanner: None,
            freed: BTreeMap::new(),
            scripts_heard: BTreeMap::new(),
            left_behind: BTreeMap::new(),
            wrong: BTreeMap::new(),
            attacker,
            log: Vec::new(),
        }
    }

    /// Lives through the world of a seed, and through the same without the attacker where that must make no
    /// difference. Answers which rule was broken.
    pub(crate) fn live(seed: u64) -> (Self, Result<(), String>) {
        let mut world = Self::new(seed);
        let mut result = world.run();
        if world.attacker.attack == Attack::Broker && result.is_ok() {
            let mut twin = Self::new(seed);
            twin.attacker.attack = Attack::None;
            result = twin.run().and_then(|()| world.compare(&twin));
        }
        let attack = world.attacker.attack;
        (world, result.map_err(|rule| format!("{rule} ({attack:?})")))
    }

    fn compare(&mut self, twin: &Self) -> Result<(), String> {
        let (account, other) = (self.account(), twin.account());
        let same = account.iter().zip(&other).take_while(|(this, that)| this == that).count();
        if same == account.len() && same == other.len() {
            return Ok(());
        }
        let handed = std::mem::take(&mut self.attacker.log).join("\n");
        let (this, that) = (account.get(same), other.get(same));
        self.log.push(format!("HANDED OUT\n{handed}\nWITH {this:?}\nWITHOUT {that:?}"));
        Err("A1: an attacker without the key made a difference".to_owned())
    }

    /// Lives through it; answers which rule was broken.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        for _ in 0..ACTIVE {
            if self.chance.often(250) {
                self.happen();
            }
            self.attack();
            self.tick()?;
        }
        self.become_quiet();
        let quiet = self.now;
        for _ in 0..QUIET {
            self.attack();
            self.tick()?;
            if [SETTLED, SETTLED + 20, SETTLED + 40].contains(&(self.now - quiet)) {
                self.replay("ban");
                self.replay("unban");
            }
            if self.now - quiet > SETTLED {
                self.check()?;
            }
        }
        self.check_chatter()
    }

    fn say(&mut self, line: impl std::fmt::Display) {
        self.log.push(format!("{} {line}", self.now - BEGIN));
    }

    /// A second passes.
    fn tick(&mut self) -> Result<(), String> {
        self.now += 1;
        for n in 0..self.hosts.len() {
            if self.hosts[n].gone {
                continue;
            }
            let full = self.full.get(&n).copied().unwrap_or(0);
            let host = &mut self.hosts[n];
            host.fail2ban.full = full > self.now;
            host.fail2ban.tick(self.now, &mut self.chance);
            if !host.fail2ban.up
                && self.fail2ban_away.get(&n).is_none_or(|until| *until <= self.now)
            {
                if host.fail2ban.coming {
                    host.fail2ban.start(&mut self.chance);
                    self.say(format_args!("fail2ban has its jail on {n}"));
                } else {
                    host.fail2ban.come();
                    let jails = self.now + self.chance.within(0, 3);
                    self.fail2ban_away.insert(n, jails);
                    self.say(format_args!("fail2ban starts on {n}"));
                }
            }
        }
        if let Some(script) = &mut self.script {
            script.tick(self.now, &mut self.chance);
        }
        self.notify();
        self.deliver();
        let mut order: Vec<_> = (0..self.hosts.len()).collect();
        self.chance.shuffle(&mut order);
        for n in order {
            self.turn(n)?;
        }
        self.notify();
        self.check_attacker()
    }

    fn turn(&mut self, n: usize) -> Result<(), String> {
        let away = self.broker_away > self.now
            || self.links_away.get(&n).is_some_and(|until| *until > self.now);
        let Self { hosts, chance, broker, now, faults, log, attacker, .. } = self;
        let host = &mut hosts[n];
        if host.gone {
            return Ok(());
        }
        let before = log.len();
        if host.fleet.is_none() && (!*faults || chance.often(150)) {
            host.start();
            log.push(format!("{} starts", host.name));
        }
        if away && host.connected {
            host.cut(broker);
        } else if !away && !host.connected && host.fleet.is_some() {
            let resume = !*faults || chance.often(600);
            host.connect(resume, broker);
            log.push(format!("{} connects", host.name));
        }
        let mut around = Around { now: *now, faults: *faults, chance, broker, log };
        if host.fleet.is_some() && host.turn(&mut around).is_err() {
            around.log.push(format!("{} crashes", host.name));
            host.kill(broker);
            attacker.forgets(&host.name);
        }
        let name = host.name.clone();
        let broken = host.broken.take();
        for line in &mut self.log[before..] {
            line.insert_str(0, &format!("{} ", self.now - BEGIN));
        }
        match broken {
            Some((rule, address)) => Err(self.breaks(rule, &name, address)),
            None => Ok(()),
        }
    }

    fn breaks(&mut self, rule: &str, host: &str, address: Address) -> String {
        self.say(format_args!("BROKEN {rule}: {host} {address}"));
        let of = |(_, (_, lifted, _)): &&(usize, Origin)| *lifted == address;
        let lifts: Vec<_> = self.lifted.iter().filter(of).collect();
        let perhaps: Vec<_> = self.perhaps_lifted.iter().filter(of).collect();
        let line = format!("lifted {lifts:?}, perhaps {perhaps:?}, unbanned {:?}", self.unbanned);
        self.say(line);
        for n in 0..self.hosts.len() {
            let known = self.hosts[n].known(address);
            self.say(known);
        }
        rule.to_owned()
    }

    /// What fail2ban's actions told.
    fn notify(&mut self) {
        let Self { hosts, chance, broker, now, faults, log, .. } = self;
        for host in hosts {
            let told = std::mem::take(&mut host.fail2ban.told);
            let before = log.len();
            host.notified(told, &mut Around { now: *now, faults: *faults, chance, broker, log });
            for line in &mut log[before..] {
                line.insert_str(0, &format!("{} ", *now - BEGIN));
            }
        }
        let Some(script) = &mut self.script else { return };
        for (action, address, ticket) in std::mem::take(&mut script.told) {
            let restored = action == "ban" && ticket.restored;
            if ticket.failures > 0 && !restored && self.broker_away <= self.now {
                let payload = format!(
                    r#"{{"action":"{action}","ipmset":"sshd","ip":"{address}","bantime":{},"host":"script","restored":0,"failures":3}}"#,
                    ticket.bantime
                );
                self.broker.publish(self.now, action, &payload, false);
            }
        }
    }

    fn deliver(&mut self) {
        if self.broker_away > self.now {
            return;
        }
        if self.script.is_some() {
            self.broker.connect("script", &[], true);
        }
        for (client, (topic, payload)) in self.broker.deliver(&mut self.chance, self.faults) {
            if client == "script" {
                self.deliver_to_script(&payload);
            } else if let Some(n) = self.hosts.iter().position(|host| host.name == client) {
                if let Ok(event) = Event::parse(payload.as_bytes())
                    && (event.stamp, event.action == Action::Ban) == (0, true)
                    && !self.attacker.signed
                {
                    self.scripts_heard.insert((n, event.address), self.now);
                }
                let shown = format!("{client} {topic} {payload}");
                let is_running = self.hosts[n].fleet.is_some();
                let result = self.hosts[n].hear((topic, payload.clone()));
                if is_running && result.is_ok() {
                    self.attacker.is_heard(&client, &payload, self.now);
                }
                // What honest hosts publish, no gate keeps out.
                let is_honest = !matches!(self.attacker.attack, Attack::Client | Attack::Open);
                let is_taken = matches!(result, Ok(()) | Err(RejectReason::UnknownJail));
                assert!(!is_honest || is_taken, "{result:?} {shown}");
            }
        }
    }

    /// As mqttsubscribebans does.
    fn deliver_to_script(&mut self, payload: &str) {
        let Some(script) = &mut self.script else { return };
        match Event::parse(payload.as_bytes()) {
            Ok(event) if event.host.as_str() == "script" => {}
            Ok(event) if event.action == Action::Ban => {
                script.banip(event.address, &mut self.chance);
            }
            Ok(event) if script.tickets.contains_key(&event.address) => {
                script.unbanip(event.address);
            }
            _ => {}
        }
    }

    /// From now on nothing goes wrong; but a host may join, and one may be gone for good.
    fn become_quiet(&mut self) {
        self.faults = false;
        self.broker_away = 0;
        self.links_away.clear();
        self.full.clear();
        self.say("QUIET");
        if self.chance.often(500) {
            let keys = self.attacker.signed.then(attack::keys);
            let fail2ban = Fail2ban::new(&mut self.chance, self.now);
            let mut host = HostName::new("joiner", fail2ban, keys);
            host.start();
            self.hosts.push(host);
            self.say("a host joins");
        }
        if self.chance.often(300) {
            let n = self.chance.index(3);
            // One that is gone before anybody heard it is not heard: documented.
            if self.unbanner == Some(n) {
                return;
            }
            let name = self.hosts[n].name.clone();
            self.say(format_args!("{name} is gone for good"));
            self.bury(n);
        }
    }

    /// What others know of a host that is gone they hold until its end.
    fn bury(&mut self, n: usize) {
        self.hosts[n].kill(&mut self.broker);
        self.hosts[n].gone = true;
        let fail2ban = &self.hosts[n].fail2ban;
        let skew = fail2ban.skew;
        let mut left: BTreeMap<Address, i64> = BTreeMap::new();
        for (address, row) in fail2ban.rows.iter().filter(|(_, row)| row.failures > 0) {
            left.insert(*address, row.end().unwrap_or(i64::MAX));
        }
        for (address, ticket) in fail2ban.tickets.iter().filter(|(_, ticket)| ticket.failures > 0) {
            let end = left.entry(*address).or_insert(i64::MIN);
            *end = (*end).max(Ticket::end(ticket));
        }
        let name = Name::new(&self.hosts[n].name).unwrap();
        for host in &self.hosts {
            for address in &self.addresses {
                let word =
                    host.fleet.as_ref().map(|fleet| fleet.claim_state(&key(*address), &name));
                if let Some(ClaimState::Held(_, ban)) = word {
                    let end = left.entry(*address).or_insert(i64::MIN);
                    *end = (*end).max(ban.end());
                }
            }
        }
        // What it told once may come back when nobody is left to say otherwise, and a permanent ban then
        // needs `forget`.
        let mut told = |address, ban: Ban| {
            let end = left.entry(address).or_insert(i64::MIN);
            *end = (*end).max(ban.end());
        };
        for (_, (topic, payload)) in &self.broker.seen {
            if topic.starts_with(&format!("state/{name}/"))
                && let Ok(part) = Shard::parse(payload.as_bytes())
            {
                for ban in part.bans {
                    told(ban.address, Ban { start: ban.start, bantime: ban.bantime });
                }
            } else if topic == "ban"
                && let Ok(event) = Event::parse(payload.as_bytes())
                && event.host == name
            {
                told(event.address, Ban { start: event.time, bantime: event.bantime });
            }
        }
        for (address, end) in left {
            self.left_behind.insert((n, address), end.saturating_sub(skew));
        }
        self.hosts[n].fail2ban.stop();
    }
}
