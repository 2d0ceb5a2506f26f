//! A world from a seed: hosts, a broker and a network, first with faults and then without. Without faults the fleet must
//! converge.

mod attack;
mod clock;
mod happenings;
mod properties;

use std::collections::{BTreeMap, BTreeSet};

use attack::{Attack, Attacker};
use f2bmqtt::fleet::claims::ClaimState;
use f2bmqtt::guard::RejectReason;
use f2bmqtt::model::{Address, HostName};
use f2bmqtt::wire::{Action, Ban, Event, Shard};

use crate::broker::Broker;
use crate::chance::Chance;
use crate::fail2ban::{Fail2ban, Ticket};
use crate::host::{Env, SimHost, key};

/// The world's time at its start, in seconds.
const START_TIME: i64 = 1_000_000;
/// How long the world has faults, and then how long it has none.
const FAULT_SECONDS: i64 = 150;
const QUIET_SECONDS: i64 = 190;
/// How long after the last fault the fleet must have converged.
const SETTLE_SECONDS: i64 = 90;

/// A local ban: the number of its host, its address and its start.
type Origin = (usize, Address, i64);

pub(crate) struct World {
    chance: Chance,
    now: i64,
    faults: bool,
    hosts: Vec<SimHost>,
    broker: Broker,
    /// The fail2ban of a host that runs the scripts.
    script: Option<Fail2ban>,
    addresses: Vec<Address>,
    broker_down_until: i64,
    links_down_until: BTreeMap<usize, i64>,
    fail2ban_down_until: BTreeMap<usize, i64>,
    /// Until when a host's disk is full.
    full: BTreeMap<usize, i64>,
    /// Bans that a host's operator lifted, or may have lifted; and bans that a fleet unban released.
    lifted: BTreeSet<(usize, Origin)>,
    maybe_lifted: BTreeSet<(usize, Origin)>,
    unbanned: BTreeSet<Origin>,
    /// Hosts whose jail was removed for a while: their bans may have ended and started again unchanged.
    returned: BTreeSet<usize>,
    /// The host that made the last fleet unban.
    last_unbanner: Option<usize>,
    /// When an address was last released by a fleet unban.
    freed: BTreeMap<Address, i64>,
    /// When a host last received a script's ban.
    script_bans_seen: BTreeMap<(usize, Address), i64>,
    /// The ends of the bans of a host that is gone for good.
    held_until: BTreeMap<(usize, Address), i64>,
    /// For how many seconds a host's ban has been wrong; and the start of each import.
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
            let mut host = SimHost::new(name, Fail2ban::new(&mut chance, START_TIME), keys.clone());
            host.start();
            host
        });
        let mut broker = Broker::default();
        // The scripts do not sign.
        let has_script = chance.often(500) && keys.is_none();
        let script = has_script.then(|| {
            broker.connect("script", &["#"], false);
            let mut fail2ban = Fail2ban::new(&mut chance, START_TIME);
            (fail2ban.bantime, fail2ban.row_delay_max, fail2ban.skew, fail2ban.increment) =
                (60, 0, 0, false);
            fail2ban
        });
        let addresses = (1..=4).map(|n| Address::new(&format!("192.0.2.{n}")).unwrap()).collect();
        Self {
            chance,
            now: START_TIME,
            faults: true,
            hosts: hosts.into(),
            broker,
            script,
            addresses,
            broker_down_until: 0,
            links_down_until: BTreeMap::new(),
            fail2ban_down_until: BTreeMap::new(),
            full: BTreeMap::new(),
            lifted: BTreeSet::new(),
            maybe_lifted: BTreeSet::new(),
            unbanned: BTreeSet::new(),
            returned: BTreeSet::new(),
            last_unbanner: None,
            freed: BTreeMap::new(),
            script_bans_seen: BTreeMap::new(),
            held_until: BTreeMap::new(),
            wrong: BTreeMap::new(),
            attacker,
            log: Vec::new(),
        }
    }

    /// Runs the world of a seed, and runs it again without the attacker where the attacker must make no difference.
    /// Returns the broken rule.
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

    /// Runs the world. Returns the broken rule.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        for _ in 0..FAULT_SECONDS {
            if self.chance.often(250) {
                self.inject_event();
            }
            self.attack();
            self.tick()?;
        }
        self.become_quiet();
        let quiet = self.now;
        for _ in 0..QUIET_SECONDS {
            self.attack();
            self.tick()?;
            if [SETTLE_SECONDS, SETTLE_SECONDS + 20, SETTLE_SECONDS + 40]
                .contains(&(self.now - quiet))
            {
                self.replay("ban");
                self.replay("unban");
            }
            if self.now - quiet > SETTLE_SECONDS {
                self.check()?;
            }
        }
        self.check_chatter()
    }

    fn log_line(&mut self, line: impl std::fmt::Display) {
        self.log.push(format!("{} {line}", self.now - START_TIME));
    }

    /// Lets a second pass.
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
                && self.fail2ban_down_until.get(&n).is_none_or(|until| *until <= self.now)
            {
                if host.fail2ban.without_jail {
                    host.fail2ban.start(&mut self.chance);
                    self.log_line(format_args!("fail2ban has its jail on {n}"));
                } else {
                    host.fail2ban.start_server();
                    let jails = self.now + self.chance.within(0, 3);
                    self.fail2ban_down_until.insert(n, jails);
                    self.log_line(format_args!("fail2ban starts on {n}"));
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
        let away = self.broker_down_until > self.now
            || self.links_down_until.get(&n).is_some_and(|until| *until > self.now);
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
        let mut env = Env { now: *now, faults: *faults, chance, broker, log };
        if host.fleet.is_some() && host.turn(&mut env).is_err() {
            env.log.push(format!("{} crashes", host.name));
            host.kill(broker);
            attacker.forget_deliveries(&host.name);
        }
        let name = host.name.clone();
        let violation = host.violation.take();
        for line in &mut self.log[before..] {
            line.insert_str(0, &format!("{} ", self.now - START_TIME));
        }
        match violation {
            Some((rule, address)) => Err(self.report_violation(rule, &name, address)),
            None => Ok(()),
        }
    }

    fn report_violation(&mut self, rule: &str, host: &str, address: Address) -> String {
        self.log_line(format_args!("BROKEN {rule}: {host} {address}"));
        let [lifted, maybe] = [&self.lifted, &self.maybe_lifted].map(|lifts| {
            lifts.iter().filter(|(_, (_, lifted, _))| *lifted == address).collect::<Vec<_>>()
        });
        let line = format!("lifted {lifted:?}, maybe {maybe:?}, unbanned {:?}", self.unbanned);
        self.log_line(line);
        for n in 0..self.hosts.len() {
            let description = self.hosts[n].describe(address);
            self.log_line(description);
        }
        rule.to_owned()
    }

    /// Runs the action calls of all fail2bans.
    fn notify(&mut self) {
        let Self { hosts, chance, broker, now, faults, log, .. } = self;
        for host in hosts {
            let calls = std::mem::take(&mut host.fail2ban.action_calls);
            let before = log.len();
            host.run_actions(calls, &mut Env { now: *now, faults: *faults, chance, broker, log });
            for line in &mut log[before..] {
                line.insert_str(0, &format!("{} ", *now - START_TIME));
            }
        }
        let Some(script) = &mut self.script else { return };
        for (action, address, ticket) in std::mem::take(&mut script.action_calls) {
            let restored = action == "ban" && ticket.restored;
            if ticket.failures > 0 && !restored && self.broker_down_until <= self.now {
                let payload = format!(
                    r#"{{"action":"{action}","ipmset":"sshd","ip":"{address}","bantime":{},"host":"script","restored":0,"failures":3}}"#,
                    ticket.bantime
                );
                self.broker.publish(self.now, action, &payload, false);
            }
        }
    }

    fn deliver(&mut self) {
        if self.broker_down_until > self.now {
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
                    self.script_bans_seen.insert((n, event.address), self.now);
                }
                let shown = format!("{client} {topic} {payload}");
                let is_running = self.hosts[n].fleet.is_some();
                let result = self.hosts[n].deliver((topic, payload.clone()));
                if is_running && result.is_ok() {
                    self.attacker.record_delivery(&client, &payload, self.now);
                }
                // The gate admits all messages of honest hosts.
                let is_honest = !matches!(self.attacker.attack, Attack::Client | Attack::Open);
                let is_taken = matches!(result, Ok(()) | Err(RejectReason::UnknownJail));
                assert!(!is_honest || is_taken, "{result:?} {shown}");
            }
        }
    }

    /// Does what the script mqttsubscribebans does.
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

    /// Ends the faults. A host may join, and one may be gone for good.
    fn become_quiet(&mut self) {
        self.faults = false;
        self.broker_down_until = 0;
        self.links_down_until.clear();
        self.full.clear();
        self.log_line("QUIET");
        if self.chance.often(500) {
            let keys = self.attacker.signed.then(attack::keys);
            let fail2ban = Fail2ban::new(&mut self.chance, self.now);
            let mut host = SimHost::new("joiner", fail2ban, keys);
            host.start();
            self.hosts.push(host);
            self.log_line("a host joins");
        }
        if self.chance.often(300) {
            let n = self.chance.index(3);
            // A fleet unban is lost with its host if no peer received it: a documented limit.
            if self.last_unbanner == Some(n) {
                return;
            }
            let name = self.hosts[n].name.clone();
            self.log_line(format_args!("{name} is gone for good"));
            self.retire(n);
        }
    }

    /// Removes a host for good. The peers hold its bans until these expire.
    fn retire(&mut self, n: usize) {
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
        let name = HostName::new(&self.hosts[n].name).unwrap();
        for host in &self.hosts {
            for address in &self.addresses {
                let state =
                    host.fleet.as_ref().map(|fleet| fleet.claim_state(&key(*address), &name));
                if let Some(ClaimState::Held(_, ban)) = state {
                    let end = left.entry(*address).or_insert(i64::MIN);
                    *end = (*end).max(ban.end());
                }
            }
        }
        // A ban that the host once published may come back: no newer message of the host contradicts it. A permanent
        // ban then needs `forget`.
        for (address, ban) in self.published_bans(&name) {
            let end = left.entry(address).or_insert(i64::MIN);
            *end = (*end).max(ban.end());
        }
        for (address, end) in left {
            self.held_until.insert((n, address), end.saturating_sub(skew));
        }
        self.hosts[n].fail2ban.stop();
    }

    /// All bans that a host has published.
    fn published_bans(&self, name: &HostName) -> Vec<(Address, Ban)> {
        let mut bans = Vec::new();
        for (_, (topic, payload)) in &self.broker.seen {
            if topic.starts_with(&format!("state/{name}/"))
                && let Ok(shard) = Shard::parse(payload.as_bytes())
            {
                bans.extend(shard.bans.into_iter().map(|listed| {
                    (listed.address, Ban { start: listed.start, bantime: listed.bantime })
                }));
            } else if topic == "ban"
                && let Ok(event) = Event::parse(payload.as_bytes())
                && event.host == *name
            {
                bans.push((event.address, Ban { start: event.time, bantime: event.bantime }));
            }
        }
        bans
    }
}
