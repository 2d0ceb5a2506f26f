//! One host: the real fleet code, on a model of fail2ban, with what outlives a crash kept apart. It is
//! driven as the daemon drives it, with a crash between any two steps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;

use f2bmqtt::fleet::look::{Heartbeat, Observation, ServerInstance};
use f2bmqtt::fleet::work::{Effect, Target};
use f2bmqtt::fleet::{BanKey, Controller, PersistedState, Record, Timing};
use f2bmqtt::guard::RejectReason;
use f2bmqtt::notify::NotifyCall;
use f2bmqtt::wire::seal::SigningKeys;
use f2bmqtt::wire::{
    Action as Word, Address, Event, HostName as Name, Jail, Presence, Reason, SpooledEvent,
};

use crate::broker::{Broker, Message};
use crate::chance::Chance;
use crate::fail2ban::{Action, Fail2ban};
use crate::inbound::{Inbound, whole};

/// What the model cannot do without, from one turn to the next.
pub(crate) struct Around<'a> {
    pub(crate) now: i64,
    pub(crate) faults: bool,
    pub(crate) chance: &'a mut Chance,
    pub(crate) broker: &'a mut Broker,
    pub(crate) log: &'a mut Vec<String>,
}

/// The daemon's process died.
pub(crate) struct Crash;

/// A rule was broken: which, and where.
pub(crate) type Broken = (&'static str, Address);

#[allow(clippy::struct_excessive_bools, reason = "each may be with any other")]
pub(crate) struct HostName {
    pub(crate) name: String,
    me: Name,
    pub(crate) fail2ban: Fail2ban,
    inbound: Inbound,
    /// What it signs with, in a fleet that has a key.
    keys: Option<SigningKeys>,
    /// The daemon, while it runs.
    pub(crate) fleet: Option<Controller>,
    pub(crate) connected: bool,
    /// What is on disk.
    pub(crate) disk: PersistedState,
    /// What notify told.
    spool: VecDeque<SpooledEvent>,
    /// Published, but written down nowhere else yet.
    unwritten: VecDeque<SpooledEvent>,
    /// The outbox of the daemon: it dies with it, and is read from the spool again.
    waiting: VecDeque<Event>,
    read: usize,
    asked: i64,
    /// fail2ban said which database is its own.
    told: bool,
    /// What this host's operator banned by hand, by the time of its ticket.
    pub(crate) manual: BTreeMap<Address, i64>,
    /// Banned by hand in place of an import that was lifted between two looks: documented.
    pub(crate) muddled: BTreeSet<Address>,
    /// What it frees, until that is written down; and what it had freed when it crashed.
    freeing: BTreeSet<Address>,
    pub(crate) torn: BTreeSet<Address>,
    /// It crashed while its jail was away, and forgot which fleet unbans that is still to obey.
    pub(crate) forgetful: bool,
    pub(crate) broken: Option<Broken>,
    pub(crate) gone: bool,
    /// Marks, lifts or fleet unbans could not be written: it does not crash now, which would lose them.
    pub(crate) unsaved: bool,
}

/// The simulation lives faster than servers do.
fn pace() -> Timing {
    Timing {
        expiry_slack: 40,
        restore_grace: 12,
        refresh_interval: 25_000,
        tombstone_idle: 60,
        ..Timing::default()
    }
}

pub(crate) fn jail() -> Jail {
    Jail::new("sshd").unwrap()
}

pub(crate) fn key(address: Address) -> BanKey {
    (jail(), address)
}

impl HostName {
    pub(crate) fn new(name: &str, fail2ban: Fail2ban, keys: Option<SigningKeys>) -> Self {
        let me = Name::new(name).unwrap();
        Self {
            name: name.to_owned(),
            inbound: Inbound::new(&me, keys.clone(), false),
            me,
            fail2ban,
            keys,
            fleet: None,
            connected: false,
            disk: PersistedState::default(),
            spool: VecDeque::new(),
            unwritten: VecDeque::new(),
            waiting: VecDeque::new(),
            read: 0,
            asked: 0,
            told: false,
            manual: BTreeMap::new(),
            muddled: BTreeSet::new(),
            freeing: BTreeSet::new(),
            torn: BTreeSet::new(),
            forgetful: false,
            broken: None,
            gone: false,
            unsaved: false,
        }
    }

    /// The time by this host's clock, in milliseconds.
    fn millis(&self) -> i64 {
        self.fail2ban.clock() * 1000
    }

    pub(crate) fn start(&mut self) {
        let fleet = Controller::new(self.me.clone(), pace(), self.disk.clone());
        (self.fleet, self.asked, self.told) = (Some(fleet), 0, false);
        // Of a jail that was removed while it did not run it knows nothing either.
        self.forgetful |= self.fail2ban.lacks_jail();
    }

    pub(crate) fn kill(&mut self, broker: &mut Broker) {
        self.fleet = None;
        self.forgetful |= self.fail2ban.lacks_jail();
        self.torn.append(&mut self.freeing);
        self.waiting.clear();
        self.read = 0;
        for told in self.unwritten.drain(..).rev() {
            self.spool.push_front(told);
        }
        self.cut(broker);
    }

    pub(crate) fn cut(&mut self, broker: &mut Broker) {
        self.connected = false;
        broker.disconnect(&self.name);
        if let Some(fleet) = &mut self.fleet {
            fleet.on_disconnected();
        }
    }

    pub(crate) fn connect(&mut self, resume: bool, broker: &mut Broker) {
        let now = self.millis();
        if let Some(fleet) = &mut self.fleet {
            self.connected = true;
            fleet.on_connected(now);
            broker.connect(&self.name, &["+", "host/+"], resume);
        }
    }

    /// What fail2ban's actions call: the real notifier decides what there is to tell.
    pub(crate) fn notified(&mut self, actions: Vec<Action>, around: &mut Around<'_>) {
        for (action, address, ticket) in actions {
            let text = |number: i64| number.to_string();
            let (address, bantime, restored) =
                (address.to_string(), text(ticket.bantime), text(i64::from(ticket.restored)));
            let (failures, time) = (text(ticket.failures), text(ticket.time));
            let call = NotifyCall {
                jail: "sshd",
                address: &address,
                bantime: &bantime,
                action,
                restored: &restored,
                failures: &failures,
                time: &time,
            };
            let Ok((Some(told), _)) = call.to_event() else { continue };
            around.log.push(format!("{} {action} {address} {ticket:?}", self.name));
            self.spool.push_back(told);
        }
    }

    /// A message comes from the broker, on a topic below the fleet's.
    pub(crate) fn hear(&mut self, (topic, payload): Message) -> Result<(), RejectReason> {
        let result = self.hear_on(&whole(&topic), payload.as_bytes());
        if self.fleet.is_some() && result.is_ok() {
            // Whatever comes in between two rounds is worked off at once.
            self.asked = self.asked.min(self.millis() - 1000);
        }
        result
    }

    /// A message comes, on its whole topic; answers why it was rejected.
    pub(crate) fn hear_on(&mut self, topic: &str, payload: &[u8]) -> Result<(), RejectReason> {
        let now = self.millis();
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        let result = self.inbound.take(fleet, topic, payload, now);
        if let Err(what) = fleet.check_invariants() {
            panic!("{}: {what}, after {topic} {}", self.name, String::from_utf8_lossy(payload));
        }
        result
    }

    /// What it publishes on a topic below the fleet's.
    pub(crate) fn signs(&self, topic: &str, payload: String) -> String {
        let Some(keys) = &self.keys else { return payload };
        let signed = keys.sign(&whole(topic), payload.into_bytes());
        String::from_utf8(signed).unwrap()
    }

    /// The daemon does what there is to do.
    pub(crate) fn turn(&mut self, around: &mut Around<'_>) -> Result<(), Crash> {
        self.reserve_stamps();
        self.scan();
        let now = self.millis();
        if self.fail2ban.up {
            if now - self.asked >= 2000
                || self.fail2ban.restore.is_empty() && now - self.asked >= 1000
            {
                self.asked = now;
                self.pulse();
            }
            self.work(around)?;
        } else if self.fail2ban.coming {
            self.coming();
            self.work(around)?;
        } else {
            self.absent(around)?;
        }
        if self.connected {
            self.speak(around)?;
        }
        Ok(())
    }

    fn reserve_stamps(&mut self) {
        let now = self.millis();
        let Some(fleet) = &mut self.fleet else { return };
        if let Some(stamp) = fleet.stamp_to_reserve(now)
            && !self.fail2ban.full
        {
            self.disk.apply(Record::Stamp(stamp));
            fleet.on_stamp_reserved(stamp);
        }
    }

    fn step(&mut self, around: &mut Around<'_>) -> Result<(), Crash> {
        if around.faults && !self.unsaved && around.chance.often(4) { Err(Crash) } else { Ok(()) }
    }

    fn scan(&mut self) {
        let now = self.millis();
        let Some(fleet) = &mut self.fleet else { return };
        while let Some(told) = self.spool.get(self.read).cloned() {
            let row = self.fail2ban.rows.get(&told.address).copied();
            match fleet.on_local_event(&told, || Ok::<_, Infallible>(Some(row)), now) {
                Ok(Some(event)) => {
                    self.waiting.push_back(event);
                    self.read += 1;
                }
                Ok(None) => drop(self.spool.remove(self.read)),
                Err(never) => match never {},
            }
        }
        self.unwritten.retain(|told| {
            fleet.is_unpersisted(&told.clone().event(&self.me, 0, Reason::Detected))
        });
    }

    /// A round begins.
    fn begin(&mut self) -> (i64, Heartbeat) {
        let now = self.millis();
        if let Some(fleet) = &mut self.fleet {
            fleet.start_cycle(now);
        }
        self.scan();
        let server = ServerInstance { pid: self.fail2ban.pid, started: self.fail2ban.started };
        (now, Heartbeat { server, data_version: Some(self.fail2ban.version) })
    }

    fn pulse(&mut self) {
        let (now, pulse) = self.begin();
        let Some(fleet) = &mut self.fleet else { return };
        self.told = true;
        fleet.on_heartbeat(pulse, BTreeSet::from([jail()]), now);
    }

    /// fail2ban has none of its jails yet or any more, or another only.
    fn coming(&mut self) {
        let (now, pulse) = self.begin();
        let other = (pulse.server.pid % 2 == 0).then(|| Jail::new("web").unwrap());
        let Some(fleet) = &mut self.fleet else { return };
        let starting = fleet.is_starting(pulse.server, now);
        self.told |= other.is_some() || !starting;
        if !self.told {
            return;
        }
        let jails = other.into_iter().collect();
        let written =
            self.fail2ban.rows.keys().map(|_| jail()).take(usize::from(starting)).collect();
        for jail in fleet.classify_missing_jails(&jails, &written, pulse.server, now) {
            let rows = self.fail2ban.rows.iter().map(|(address, row)| (*address, *row)).collect();
            fleet.observe_offline_jail(&jail, &rows, now);
        }
        fleet.on_heartbeat(pulse, jails, now);
    }

    fn absent(&mut self, around: &mut Around<'_>) -> Result<(), Crash> {
        let now = self.millis();
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        fleet.start_cycle(now);
        fleet.on_failed();
        let rows = self.fail2ban.rows.iter().map(|(address, row)| (*address, *row)).collect();
        if self.told {
            fleet.observe_offline_jail(&jail(), &rows, now);
        }
        fleet.on_fail2ban_down(self.told);
        if let Effect::Persist(changes) = fleet.next_effect(now) {
            for change in changes {
                self.disk.apply(change);
            }
            fleet.on_persisted(true, now);
        }
        self.step(around)
    }

    fn work(&mut self, around: &mut Around<'_>) -> Result<(), Crash> {
        for _ in 0..200 {
            let now = self.millis();
            let Some(fleet) = &mut self.fleet else { return Ok(()) };
            let step = fleet.next_effect(now);
            fleet.check_invariants().unwrap();
            match step {
                Effect::Idle => return Ok(()),
                Effect::Continue => continue,
                Effect::Persist(changes) => {
                    let well = !self.fail2ban.full;
                    // Of a detection the spool knows.
                    let lost = |change: &Record| {
                        !matches!(change, Record::Stamp(_) | Record::PendingDetection(..))
                    };
                    self.unsaved = !well && changes.iter().any(lost);
                    let news = changes.iter().filter(|change| !matches!(change, Record::Stamp(_)));
                    around
                        .log
                        .extend(news.map(|change| format!("{} {well} {change:?}", self.name)));
                    if well {
                        self.freeing.clear();
                        for change in changes {
                            self.disk.apply(change);
                        }
                    }
                    fleet.on_persisted(well, now);
                }
                Effect::Observe(jail, of) => {
                    let there = jail == self::jail();
                    let look =
                        if there { self.look(of.as_deref()) } else { Observation::default() };
                    self.scan();
                    let fleet = self.fleet.as_mut().unwrap();
                    fleet.on_observation(&jail, of.as_deref(), look, now);
                }
                order => self.obey(order, around)?,
            }
            self.step(around)?;
        }
        panic!("{}: there is no end to its work", self.name)
    }

    fn look(&self, of: Option<&[Address]>) -> Observation {
        let fail2ban = &self.fail2ban;
        let asked = |address: &Address| of.is_none_or(|of| of.contains(address));
        let tickets = fail2ban.tickets.iter().filter(|(address, _)| asked(address));
        let rows = fail2ban.rows.iter().filter(|(address, _)| asked(address));
        let length = |bantime| of.is_none().then_some(bantime);
        Observation {
            held: tickets.map(|(address, ticket)| (*address, length(ticket.bantime))).collect(),
            rows: rows.map(|(address, row)| (*address, *row)).collect(),
            database: Some(fail2ban.made),
            total: of.is_none().then_some(fail2ban.total),
            bantime: fail2ban.bantime,
            purge_age: fail2ban.purge,
            ..Observation::default()
        }
    }

    /// Does to fail2ban what the fleet asks for, and watches over what is freed.
    fn obey(&mut self, order: Effect, around: &mut Around<'_>) -> Result<(), Crash> {
        around.log.push(format!("{} {order:?}", self.name));
        // What is done while nothing can be written rests on what is not on disk.
        self.unsaved |= self.fail2ban.full;
        let mut answer = 0;
        match order {
            // The model has one jail; of another it does as it is told.
            Effect::Ban(jail, work) if jail != self::jail() => {
                answer = i64::try_from(work.len()).unwrap();
            }
            Effect::Unban(jail, _) | Effect::Renew(jail, _) if jail != self::jail() => {}
            Effect::Unban(_, work) => {
                for Target { address, .. } in work {
                    self.watch(address);
                    self.step(around)?;
                    self.fail2ban.unbanip(address);
                    self.freeing.insert(address);
                }
            }
            Effect::ApplyTombstone(jail, addresses) if jail == self::jail() => {
                for address in addresses {
                    self.manual.remove(&address);
                    self.step(around)?;
                    self.fail2ban.unbanip(address);
                }
            }
            Effect::Ban(_, work) => {
                for Target { address, .. } in work {
                    // In the second in which its operator banned it, and nobody hears that it was not new.
                    let by_hand = self.manual.get(&address).copied().unwrap_or(i64::MIN);
                    if by_hand >= self.fail2ban.clock() - 1 {
                        self.muddled.insert(address);
                    }
                    answer += self.fail2ban.banip(address, around.chance);
                    self.step(around)?;
                }
            }
            Effect::Renew(_, addresses) => {
                for address in addresses {
                    answer += self.fail2ban.banip(address, around.chance);
                }
            }
            _ => {}
        }
        self.step(around)?;
        let now = self.millis();
        self.fleet.as_mut().unwrap().on_done(answer, now);
        Ok(())
    }

    /// **P4, P5**: what the host detected and what its operator banned no other host frees.
    fn watch(&mut self, address: Address) {
        let Some(ticket) = self.fail2ban.tickets.get(&address) else { return };
        if ticket.failures > 0 {
            self.broken = Some(("P4: an own ban was freed", address));
        } else if self.is_manual(address) && !self.muddled.contains(&address) {
            self.broken = Some(("P5: the operator's ban was freed", address));
        }
    }

    /// What there is to know of an address here, for whoever looks for what went wrong.
    pub(crate) fn known(&self, address: Address) -> String {
        let Self { name, fail2ban, fleet, gone, .. } = self;
        let mark = fleet.as_ref().and_then(|fleet| fleet.import(&key(address)));
        let words = ["a", "b", "c", "joiner"].map(|other| {
            let word =
                |fleet: &Controller| fleet.claim_state(&key(address), &Name::new(other).unwrap());
            fleet.as_ref().map(word)
        });
        format!(
            "{name}: gone {gone}, clock {}, bantime {}, ticket {:?}, row {:?}, mark {mark:?}, words {words:?}, by hand {:?}",
            fail2ban.clock(),
            fail2ban.bantime,
            fail2ban.tickets.get(&address),
            fail2ban.rows.get(&address),
            self.manual.get(&address),
        )
    }

    /// Whether what is held was banned by hand.
    pub(crate) fn is_manual(&self, address: Address) -> bool {
        let ticket = self.fail2ban.tickets.get(&address);
        ticket.is_some_and(|t| t.failures == 0 && self.manual.get(&address) == Some(&t.time))
    }

    fn speak(&mut self, around: &mut Around<'_>) -> Result<(), Crash> {
        while let Some(event) = self.waiting.pop_front() {
            let topic = event.action.as_str();
            let payload = self.signs(topic, event.encode());
            around.broker.publish(around.now, topic, &payload, false);
            // It dies before the acknowledgement: the event is told again.
            self.step(around)?;
            if let Some(told) = self.spool.pop_front()
                && told.action == Word::Ban
            {
                self.unwritten.push_back(told);
            }
            self.read -= 1;
        }
        let now = self.millis();
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        for topic in fleet.next_subscription(now).into_iter().flatten() {
            around.broker.subscribe(&self.name, &topic);
        }
        let presence = fleet.presence(Presence::default, now);
        let mut published: Vec<_> = presence
            .map(|presence| (format!("host/{}", self.name), presence.encode()))
            .into_iter()
            .collect();
        for publication in fleet.publications(now) {
            let topic = format!("state/{}/{}", self.name, publication.index);
            published
                .push((topic, publication.content.map(|part| part.encode()).unwrap_or_default()));
        }
        for (topic, payload) in published {
            let payload = self.signs(&topic, payload);
            around.broker.publish(around.now, &topic, &payload, true);
        }
        self.step(around)
    }
}
