//! A world from a seed: hosts, a broker, a network, whatever may go wrong with them, and then quiet, in
//! which everything must come right.

use std::collections::{BTreeMap, BTreeSet};

use f2bmqtt::fleet::claims::Word;
use f2bmqtt::wire::{Action, Address, Ban, Event, Host as Name, Part, Reason, UnbanId};

use crate::broker::Broker;
use crate::chance::Chance;
use crate::fail2ban::{Fail2ban, Ticket};
use crate::host::{Around, Host, jail, key};

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
    hosts: Vec<Host>,
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
    /// When a host last heard a script's ban.
    scripts_heard: BTreeMap<(usize, Address), i64>,
    /// What a host that is gone for good held, and until when.
    left_behind: BTreeMap<(usize, Address), i64>,
    wrong: BTreeMap<(usize, Address, &'static str), i64>,
    pub(crate) log: Vec<String>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let hosts = ["a", "b", "c"].map(|name| {
            let mut host = Host::new(name, Fail2ban::new(&mut chance, BEGIN));
            host.start();
            host
        });
        let mut broker = Broker::default();
        let script = chance.often(500).then(|| {
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
            scripts_heard: BTreeMap::new(),
            left_behind: BTreeMap::new(),
            wrong: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    /// Lives through it; answers which rule was broken.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        for _ in 0..ACTIVE {
            if self.chance.often(250) {
                self.happen();
            }
            self.tick()?;
        }
        self.become_quiet();
        let quiet = self.now;
        for _ in 0..QUIET {
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
            host.cares = full + 10 > self.now;
            host.fail2ban.tick(self.now, &mut self.chance);
            if !host.fail2ban.up
                && self.fail2ban_away.get(&n).is_none_or(|until| *until <= self.now)
            {
                host.fail2ban.start(&mut self.chance);
                self.say(format_args!("fail2ban starts on {n}"));
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
        Ok(())
    }

    fn turn(&mut self, n: usize) -> Result<(), String> {
        let away = self.broker_away > self.now
            || self.links_away.get(&n).is_some_and(|until| *until > self.now);
        let Self { hosts, chance, broker, now, faults, log, .. } = self;
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
                {
                    self.scripts_heard.insert((n, event.address), self.now);
                }
                self.hosts[n].hear((topic, payload));
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

    /// Something happens.
    fn happen(&mut self) {
        const HAPPENINGS: [(&str, i64); 15] = [
            ("detect", 120),
            ("lift", 30),
            ("manual", 10),
            ("fleet", 20),
            ("stop", 20),
            ("unban all", 4),
            ("restart jail", 7),
            ("kill", 25),
            ("cut", 20),
            ("broker", 6),
            ("retained lost", 6),
            ("queue lost", 10),
            ("script detects", 20),
            ("full", 6),
            ("replay", 5),
        ];
        let sum = HAPPENINGS.iter().map(|(_, weight)| weight).sum::<i64>();
        let mut left = self.chance.within(0, sum - 1);
        let (what, _) = HAPPENINGS
            .iter()
            .find(|(_, weight)| {
                left -= weight;
                left < 0
            })
            .unwrap();
        let n = self.chance.index(self.hosts.len());
        let address = *self.chance.pick(&self.addresses);
        let name = self.hosts[n].name.clone();
        self.say(format_args!("{what} {name} {address}"));
        match *what {
            "detect" => self.detect(n, address),
            "lift" => self.lift(n, &[address], |fail2ban| fail2ban.unbanip(address)),
            "unban all" => {
                let all = self.addresses.clone();
                self.lift(n, &all, Fail2ban::unban_all);
            }
            "manual" => self.ban_by_hand(n, address),
            "fleet" => self.fleet_unban(n, address),
            "stop" => {
                self.hosts[n].fail2ban.stop();
                let away = self.now + self.chance.within(2, 15);
                self.fail2ban_away.insert(n, away);
            }
            "restart jail" => {
                // What a full disk kept out of the database a restart forgets: documented.
                if self.hosts[n].fail2ban.up && !self.hosts[n].cares {
                    self.hosts[n].fail2ban.restart_jail(&mut self.chance);
                }
            }
            "kill" => {
                if !self.hosts[n].cares {
                    self.hosts[n].kill(&mut self.broker);
                }
            }
            "cut" => {
                let away = self.now + self.chance.within(3, 60);
                self.links_away.insert(n, away);
            }
            "broker" => {
                self.broker_away = self.now + self.chance.within(2, 10);
                let with_data = self.chance.often(500);
                self.broker.restart(with_data);
                for host in &mut self.hosts {
                    host.cut(&mut self.broker);
                }
            }
            "retained lost" => self.broker.lose_retained(),
            "queue lost" => {
                let name = self.hosts[n].name.clone();
                self.broker.lose_queue(&name);
            }
            "script detects" => {
                if let Some(script) = &mut self.script {
                    script.detect(address, &mut self.chance);
                }
            }
            "full" => {
                let until = self.now + self.chance.within(3, 20);
                self.full.insert(n, until);
            }
            _ => self.replay("state/"),
        }
    }

    fn detect(&mut self, n: usize, address: Address) {
        let fail2ban = &mut self.hosts[n].fail2ban;
        let before = fail2ban.tickets.get(&address).map(|ticket| ticket.time);
        fail2ban.detect(address, &mut self.chance);
        let after = fail2ban.tickets.get(&address).map(|ticket| ticket.time);
        if before != after {
            self.doubt(n, address);
        }
    }

    /// A lift and a new ban between two looks are like nothing: documented.
    fn doubt(&mut self, n: usize, address: Address) {
        let lifted = |(host, (_, lifted, _)): &(usize, Origin)| *host == n && *lifted == address;
        let unsure: Vec<_> = self.lifted.extract_if(.., |lift| lifted(lift)).collect();
        self.perhaps_lifted.extend(unsure);
    }

    /// An operator lifts bans. It counts for sure where this host had seen what it lifts.
    fn lift(&mut self, n: usize, addresses: &[Address], how: impl FnOnce(&mut Fail2ban)) {
        if !self.hosts[n].fail2ban.up {
            return;
        }
        for &address in addresses {
            let host = &self.hosts[n];
            let fail2ban = &host.fail2ban;
            if !fail2ban.tickets.contains_key(&address) && !fail2ban.rows.contains_key(&address) {
                continue;
            }
            for other in (0..self.hosts.len()).filter(|other| *other != n) {
                let Some(start) = self.hosts[other].fail2ban.own().get(&address).copied() else {
                    continue;
                };
                let lift = (n, (other, address, start));
                if self.is_seen_through(n, other, address, start) {
                    self.lifted.insert(lift);
                } else {
                    self.perhaps_lifted.insert(lift);
                }
            }
        }
        how(&mut self.hosts[n].fail2ban);
    }

    /// Whether a host holds an import of another's ban, and knows so.
    fn is_seen_through(&self, n: usize, other: usize, address: Address, start: i64) -> bool {
        let host = &self.hosts[n];
        let fail2ban = &host.fail2ban;
        let (Some(ticket), Some(row)) =
            (fail2ban.tickets.get(&address), fail2ban.rows.get(&address))
        else {
            return false;
        };
        if ticket.failures > 0
            || host.is_manual(address)
            || fail2ban.pending.iter().any(|p| p.1 == address)
        {
            return false;
        }
        let origin = Name::new(&self.hosts[other].name).unwrap();
        let mark = match &host.fleet {
            Some(fleet) => fleet.mark(&key(address)).cloned(),
            None => host.disk.marks.get(&key(address)).cloned(),
        };
        let Some(mark) = mark.filter(|mark| mark.done && mark.rowed) else { return false };
        let claimed =
            mark.claims.iter().any(|claim| claim.host == origin && claim.ban.start == start);
        match &host.fleet {
            Some(fleet) => {
                claimed
                    && matches!(fleet.word(&key(address), &origin), Word::Held(_, ban) if ban.start == start)
            }
            // Its row must not be purged before somebody looks.
            None => {
                claimed && row.bantime >= 0 && row.timeofban + row.bantime > fail2ban.clock() - 15
            }
        }
    }

    fn ban_by_hand(&mut self, n: usize, address: Address) {
        let host = &mut self.hosts[n];
        if !host.fail2ban.up
            || host.fail2ban.tickets.contains_key(&address)
            || host.fail2ban.restore.contains(&address)
        {
            return;
        }
        let marked = match &host.fleet {
            Some(fleet) => fleet.mark(&key(address)).is_some(),
            None => host.disk.marks.contains_key(&key(address)),
        };
        host.fail2ban.banip(address, &mut self.chance);
        host.manual.insert(address, host.fail2ban.clock());
        // Lifted and banned between two looks: documented.
        if marked {
            host.muddled.insert(address);
            self.doubt(n, address);
        } else {
            host.muddled.remove(&address);
        }
    }

    /// `f2bmqtt unban`, which waits until its own daemon has heard.
    fn fleet_unban(&mut self, n: usize, address: Address) {
        if !self.hosts[n].connected || self.hosts[n].fleet.is_none() {
            return;
        }
        for (other, host) in self.hosts.iter_mut().enumerate() {
            if let Some(start) = host.fail2ban.own().get(&address) {
                self.unbanned.insert((other, address, *start));
            }
            host.manual.remove(&address);
        }
        self.scripts_heard.retain(|(_, heard), _| *heard != address);
        let host = Name::new(&self.hosts[n].name).unwrap();
        let millis = self.hosts[n].fail2ban.clock() * 1000 + self.now % 1000;
        let event = Event {
            action: Action::Unban,
            jail: jail(),
            address,
            bantime: 0,
            id: Some(UnbanId::made_by(&host, millis)),
            host,
            restored: 0,
            failures: 0,
            time: 0,
            stamp: millis,
            reason: Some(Reason::Fleet),
            every_jail: self.chance.often(500),
            unbans: Vec::new(),
        };
        self.broker.publish(self.now, "unban", &event.encode(), false);
        self.hosts[n].hear(("unban".to_owned(), event.encode()));
    }

    /// An old message of a daemon comes back from somewhere: a backup, a bridge.
    fn replay(&mut self, kind: &str) {
        let old = self.broker.seen.iter().map(|(_, message)| message);
        let old =
            old.filter(|(topic, payload)| topic.starts_with(kind) && payload.contains("stamp"));
        let old: Vec<_> = old.cloned().collect();
        if !old.is_empty() {
            let (topic, payload) = self.chance.pick(&old).clone();
            self.broker.publish(self.now, &topic, &payload, topic.starts_with("state/"));
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
            let mut host = Host::new("joiner", Fail2ban::new(&mut self.chance, self.now));
            host.start();
            self.hosts.push(host);
            self.say("a host joins");
        }
        if self.chance.often(300) {
            let n = self.chance.index(3);
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
                let word = host.fleet.as_ref().map(|fleet| fleet.word(&key(*address), &name));
                if let Some(Word::Held(_, ban)) = word {
                    let end = left.entry(*address).or_insert(i64::MIN);
                    *end = (*end).max(ban.end());
                }
            }
        }
        // What it told last may not be what it held last; and a permanent ban needs `forget`.
        let parts = self
            .broker
            .seen
            .iter()
            .filter(|(_, (topic, _))| topic.starts_with(&format!("state/{name}/")));
        for part in parts.filter_map(|(_, (_, payload))| Part::parse(payload.as_bytes()).ok()) {
            for ban in part.bans {
                let end = left.entry(ban.address).or_insert(i64::MIN);
                *end = (*end).max(Ban { start: ban.start, bantime: ban.bantime }.end());
            }
        }
        for (address, end) in left {
            self.left_behind.insert((n, address), end.saturating_sub(skew));
        }
        self.hosts[n].fail2ban.stop();
    }

    /// **P1**: every host bans the union, minus what its operator lifted and what was freed for all.
    fn check(&mut self) -> Result<(), String> {
        for n in 0..self.hosts.len() {
            if self.hosts[n].gone {
                continue;
            }
            for address in self.addresses.clone() {
                let (must, may) = self.expected(n, address);
                let held = self.hosts[n].fail2ban.tickets.contains_key(&address);
                let name = self.hosts[n].name.clone();
                if self.is_long(n, address, "missing", must && !held, 8) {
                    return Err(self.breaks("P1: a ban is missing", &name, address));
                }
                if self.is_long(n, address, "extra", held && !may, 8) {
                    let mut origins =
                        self.unbanned.iter().filter(|(_, unbanned, _)| *unbanned == address);
                    let back = origins.any(|(other, _, start)| {
                        self.hosts[*other].fail2ban.own().get(&address) == Some(start)
                    });
                    let rule = if back {
                        "P5: what was freed for all lives"
                    } else {
                        "P1: a ban too many"
                    };
                    return Err(self.breaks(rule, &name, address));
                }
            }
        }
        Ok(())
    }

    fn is_long(
        &mut self,
        n: usize,
        address: Address,
        what: &'static str,
        wrong: bool,
        limit: i64,
    ) -> bool {
        let count = self.wrong.entry((n, address, what)).or_default();
        *count = if wrong { *count + 1 } else { 0 };
        *count > limit
    }

    /// Whether a host must ban an address, and whether it may.
    fn expected(&self, n: usize, address: Address) -> (bool, bool) {
        let (mut must, mut may) = (false, false);
        for (other, host) in self.hosts.iter().enumerate() {
            if host.gone {
                let end = self.left_behind.get(&(other, address)).copied().unwrap_or(i64::MIN);
                may |= end.saturating_add(140) >= self.now;
                continue;
            }
            let Some(start) = host.fail2ban.own().get(&address).copied() else { continue };
            let origin = (other, address, start);
            if self.unbanned.contains(&origin) || self.lifted.contains(&(n, origin)) {
                continue;
            }
            if self.perhaps_lifted.contains(&(n, origin)) {
                may = true;
            } else {
                must = true;
            }
        }
        let host = &self.hosts[n];
        may |= host.is_manual(address);
        let heard = self.scripts_heard.get(&(n, address));
        may |= heard.is_some_and(|heard| {
            host.fail2ban.bantime < 0 || heard + host.fail2ban.bantime >= self.now - 8
        });
        may |= self.script.as_ref().is_some_and(|script| script.tickets.contains_key(&address));
        (must, may || must)
    }

    /// **P2**: nothing echoes. In the quiet nobody bans anew, and nobody talks more than it must.
    fn check_chatter(&mut self) -> Result<(), String> {
        let late: Vec<_> = self.broker.seen.iter().filter(|(at, _)| *at > self.now - 40).collect();
        let events = late.iter().filter(|(_, (topic, payload))| {
            ["ban", "unban"].contains(&topic.as_str()) && payload.contains("stamp")
        });
        let bans = events.clone().filter(|(_, (topic, _))| topic == "ban").count();
        if bans > 0 {
            return Err("P2: a ban was told in the quiet".to_owned());
        }
        if late.len() > events.count() * 24 + 36 {
            return Err("P2: chatter".to_owned());
        }
        Ok(())
    }
}
