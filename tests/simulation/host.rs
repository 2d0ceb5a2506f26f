//! A simulated host: the real controller on a model of fail2ban. State that survives a crash is kept apart. The host
//! calls the controller as the daemon does, and may crash between any two steps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;

use f2bmqtt::fleet::effects::{Effect, Target};
use f2bmqtt::fleet::jails::{Heartbeat, Observation, ServerInstance};
use f2bmqtt::fleet::{BanKey, Controller, PersistedState, Record, Timing};
use f2bmqtt::guard::RejectReason;
use f2bmqtt::model::{Address, HostName, Jail};
use f2bmqtt::spool::notify::NotifyCall;
use f2bmqtt::wire::signature::SigningKeys;
use f2bmqtt::wire::{Action as EventAction, Event, Presence, Reason, SpooledEvent};

use crate::broker::{Broker, Message};
use crate::chance::Chance;
use crate::fail2ban::{ActionCall, Fail2ban};
use crate::inbound::{Inbound, whole};

/// The parts of the world that a host uses during its turn.
pub(crate) struct Env<'a> {
    pub(crate) now: i64,
    pub(crate) faults: bool,
    pub(crate) chance: &'a mut Chance,
    pub(crate) broker: &'a mut Broker,
    pub(crate) log: &'a mut Vec<String>,
}

/// The daemon's process died.
pub(crate) struct Crash;

/// A broken rule, and the address for which it was broken.
pub(crate) type Violation = (&'static str, Address);

#[allow(clippy::struct_excessive_bools, reason = "each may be with any other")]
pub(crate) struct SimHost {
    pub(crate) name: String,
    me: HostName,
    pub(crate) fail2ban: Fail2ban,
    inbound: Inbound,
    /// `None` in a fleet that does not sign.
    keys: Option<SigningKeys>,
    /// `None` while the daemon does not run.
    pub(crate) fleet: Option<Controller>,
    pub(crate) connected: bool,
    pub(crate) disk: PersistedState,
    spool: VecDeque<SpooledEvent>,
    /// Published events that only the spool holds: fail2ban's database has no row of them.
    unpersisted: VecDeque<SpooledEvent>,
    /// Lost in a crash; the next daemon reads the spool again.
    outbox: VecDeque<Event>,
    /// How many events of the spool are in the outbox.
    spool_read: usize,
    polled_at: i64,
    /// Whether this daemon knows the path of fail2ban's database.
    database_confirmed: bool,
    /// The ticket's time of each address that this host's operator banned.
    pub(crate) manual: BTreeMap<Address, i64>,
    /// Banned by hand after a lift of the import, both between two observations: a documented limit.
    pub(crate) manual_after_lift: BTreeSet<Address>,
    /// Unbans that are not written to the disk.
    unpersisted_unbans: BTreeSet<Address>,
    /// The unwritten unbans of earlier crashes.
    pub(crate) crashed_mid_unban: BTreeSet<Address>,
    /// The daemon crashed while the jail was missing, and so lost the fleet unbans deferred for that jail.
    pub(crate) lost_deferred_tombstones: bool,
    pub(crate) violation: Option<Violation>,
    pub(crate) gone: bool,
    /// Imports, overrides or tombstones could not be written. A crash now would lose them, so none happens.
    pub(crate) has_unpersisted: bool,
}

/// Shorter than a server's, so that all timeouts pass within the world's few minutes.
fn timing() -> Timing {
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

impl SimHost {
    pub(crate) fn new(name: &str, fail2ban: Fail2ban, keys: Option<SigningKeys>) -> Self {
        let me = HostName::new(name).unwrap();
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
            unpersisted: VecDeque::new(),
            outbox: VecDeque::new(),
            spool_read: 0,
            polled_at: 0,
            database_confirmed: false,
            manual: BTreeMap::new(),
            manual_after_lift: BTreeSet::new(),
            unpersisted_unbans: BTreeSet::new(),
            crashed_mid_unban: BTreeSet::new(),
            lost_deferred_tombstones: false,
            violation: None,
            gone: false,
            has_unpersisted: false,
        }
    }

    /// The time of this host's own clock.
    fn millis(&self) -> i64 {
        self.fail2ban.clock() * 1000
    }

    pub(crate) fn start(&mut self) {
        let fleet = Controller::new(self.me.clone(), timing(), self.disk.clone());
        (self.fleet, self.polled_at, self.database_confirmed) = (Some(fleet), 0, false);
        // A daemon that did not run while its jail was removed knows no fleet unbans deferred for the jail either.
        self.lost_deferred_tombstones |= self.fail2ban.may_lack_jail();
    }

    pub(crate) fn kill(&mut self, broker: &mut Broker) {
        self.fleet = None;
        self.lost_deferred_tombstones |= self.fail2ban.may_lack_jail();
        self.crashed_mid_unban.append(&mut self.unpersisted_unbans);
        self.outbox.clear();
        self.spool_read = 0;
        for event in self.unpersisted.drain(..).rev() {
            self.spool.push_front(event);
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

    /// Passes fail2ban's action calls to the real notifier, which decides what goes into the spool.
    pub(crate) fn run_actions(&mut self, actions: Vec<ActionCall>, env: &mut Env<'_>) {
        for (action, address, ticket) in actions {
            let address = address.to_string();
            let numbers =
                [ticket.bantime, i64::from(ticket.restored), ticket.failures, ticket.time];
            let [bantime, restored, failures, time] = &numbers.map(|number| number.to_string());
            let call = NotifyCall {
                jail: "sshd",
                address: &address,
                bantime,
                action,
                restored,
                failures,
                time,
            };
            let Ok((Some(event), _)) = call.to_event() else { continue };
            env.log.push(format!("{} {action} {address} {ticket:?}", self.name));
            self.spool.push_back(event);
        }
    }

    /// Takes a message from the broker. The topic is relative to the fleet's.
    pub(crate) fn deliver(&mut self, (topic, payload): Message) -> Result<(), RejectReason> {
        let result = self.receive(&whole(&topic), payload.as_bytes());
        if self.fleet.is_some() && result.is_ok() {
            // The daemon handles a message between two cycles at once.
            self.polled_at = self.polled_at.min(self.millis() - 1000);
        }
        result
    }

    /// Takes a message on its whole topic. Returns why the message was rejected.
    pub(crate) fn receive(&mut self, topic: &str, payload: &[u8]) -> Result<(), RejectReason> {
        let now = self.millis();
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        let result = self.inbound.take(fleet, topic, payload, now);
        if let Err(what) = fleet.check_invariants() {
            panic!("{}: {what}, after {topic} {}", self.name, String::from_utf8_lossy(payload));
        }
        result
    }

    /// Signs a payload for a topic relative to the fleet's, if the fleet has a key.
    pub(crate) fn sign_message(&self, topic: &str, payload: String) -> String {
        let Some(keys) = &self.keys else { return payload };
        let signed = keys.sign(&whole(topic), payload.into_bytes());
        String::from_utf8(signed).unwrap()
    }

    /// Runs the daemon for a second.
    pub(crate) fn turn(&mut self, env: &mut Env<'_>) -> Result<(), Crash> {
        self.reserve_stamps();
        self.drain_spool();
        let now = self.millis();
        if self.fail2ban.up {
            if now - self.polled_at >= 2000
                || self.fail2ban.restore.is_empty() && now - self.polled_at >= 1000
            {
                self.polled_at = now;
                self.poll();
            }
            self.run_effects(env)?;
        } else if self.fail2ban.without_jail {
            self.poll_without_jail();
            self.run_effects(env)?;
        } else {
            self.poll_offline(env)?;
        }
        if self.connected {
            self.publish_pending(env)?;
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

    fn maybe_crash(&mut self, env: &mut Env<'_>) -> Result<(), Crash> {
        if env.faults && !self.has_unpersisted && env.chance.often(4) { Err(Crash) } else { Ok(()) }
    }

    fn drain_spool(&mut self) {
        let now = self.millis();
        let Some(fleet) = &mut self.fleet else { return };
        while let Some(spooled) = self.spool.get(self.spool_read).cloned() {
            let row = self.fail2ban.rows.get(&spooled.address).copied();
            match fleet.on_local_event(&spooled, || Ok::<_, Infallible>(Some(row)), now) {
                Ok(Some(event)) => {
                    self.outbox.push_back(event);
                    self.spool_read += 1;
                }
                Ok(None) => drop(self.spool.remove(self.spool_read)),
                Err(never) => match never {},
            }
        }
        self.unpersisted.retain(|spooled| {
            fleet.is_unpersisted(&spooled.clone().event(&self.me, 0, Reason::Detected))
        });
    }

    fn start_cycle(&mut self) -> (i64, Heartbeat) {
        let now = self.millis();
        if let Some(fleet) = &mut self.fleet {
            fleet.start_cycle(now);
        }
        self.drain_spool();
        let server = ServerInstance { pid: self.fail2ban.pid, started: self.fail2ban.started };
        (now, Heartbeat { server, data_version: Some(self.fail2ban.version) })
    }

    fn poll(&mut self) {
        let (now, heartbeat) = self.start_cycle();
        let Some(fleet) = &mut self.fleet else { return };
        self.database_confirmed = true;
        fleet.on_heartbeat(heartbeat, BTreeSet::from([jail()]), now);
    }

    /// A poll while fail2ban answers without the jail: it has no jails, or only another one.
    fn poll_without_jail(&mut self) {
        let (now, heartbeat) = self.start_cycle();
        let other = (heartbeat.server.pid % 2 == 0).then(|| Jail::new("web").unwrap());
        let Some(fleet) = &mut self.fleet else { return };
        let starting = fleet.is_starting(heartbeat.server, now);
        self.database_confirmed |= other.is_some() || !starting;
        if !self.database_confirmed {
            return;
        }
        let jails = other.into_iter().collect();
        let written =
            self.fail2ban.rows.keys().map(|_| jail()).take(usize::from(starting)).collect();
        for jail in fleet.classify_missing_jails(&jails, &written, heartbeat.server, now) {
            let rows = self.fail2ban.rows.iter().map(|(address, row)| (*address, *row)).collect();
            fleet.observe_offline_jail(&jail, &rows, now);
        }
        fleet.on_heartbeat(heartbeat, jails, now);
    }

    fn poll_offline(&mut self, env: &mut Env<'_>) -> Result<(), Crash> {
        let now = self.millis();
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        fleet.start_cycle(now);
        fleet.on_failed();
        let rows = self.fail2ban.rows.iter().map(|(address, row)| (*address, *row)).collect();
        if self.database_confirmed {
            fleet.observe_offline_jail(&jail(), &rows, now);
        }
        fleet.on_fail2ban_down(self.database_confirmed);
        if let Effect::Persist(changes) = fleet.next_effect(now) {
            for change in changes {
                self.disk.apply(change);
            }
            fleet.on_persisted(true, now);
        }
        self.maybe_crash(env)
    }

    fn run_effects(&mut self, env: &mut Env<'_>) -> Result<(), Crash> {
        for _ in 0..200 {
            let now = self.millis();
            let Some(fleet) = &mut self.fleet else { return Ok(()) };
            let effect = fleet.next_effect(now);
            fleet.check_invariants().unwrap();
            match effect {
                Effect::Idle => return Ok(()),
                Effect::Continue => continue,
                Effect::Persist(records) => self.persist(records, env),
                Effect::Observe(jail, of) => {
                    let observation = if jail == self::jail() {
                        self.observation(of.as_deref())
                    } else {
                        Observation::default()
                    };
                    self.drain_spool();
                    let fleet = self.fleet.as_mut().unwrap();
                    fleet.on_observation(&jail, of.as_deref(), observation, now);
                }
                effect => self.execute(effect, env)?,
            }
            self.maybe_crash(env)?;
        }
        panic!("{}: the effects do not end", self.name)
    }

    /// Writes records to the disk, unless it is full.
    fn persist(&mut self, records: Vec<Record>, env: &mut Env<'_>) {
        let now = self.millis();
        let Some(fleet) = &mut self.fleet else { return };
        let is_written = !self.fail2ban.full;
        // The spool still has the event of a pending detection, so a crash does not lose the detection.
        self.has_unpersisted = !is_written
            && !records
                .iter()
                .all(|record| matches!(record, Record::Stamp(_) | Record::PendingDetection(..)));
        for record in records.iter().filter(|record| !matches!(record, Record::Stamp(_))) {
            env.log.push(format!("{} {is_written} {record:?}", self.name));
        }
        if is_written {
            self.unpersisted_unbans.clear();
            for record in records {
                self.disk.apply(record);
            }
        }
        fleet.on_persisted(is_written, now);
    }

    /// What fail2ban and its database show of some addresses, or of all.
    fn observation(&self, of: Option<&[Address]>) -> Observation {
        let fail2ban = &self.fail2ban;
        let mut held: BTreeMap<_, _> = fail2ban
            .tickets
            .iter()
            .map(|(address, ticket)| (*address, of.is_none().then_some(ticket.bantime)))
            .collect();
        let mut rows = fail2ban.rows.clone();
        if let Some(of) = of {
            held.retain(|address, _| of.contains(address));
            rows.retain(|address, _| of.contains(address));
        }
        Observation {
            held: held.into_iter().collect(),
            rows: rows.into_iter().collect(),
            database: Some(fail2ban.created_at),
            total: of.is_none().then_some(fail2ban.total),
            bantime: fail2ban.bantime,
            purge_age: fail2ban.purge_age,
            ..Observation::default()
        }
    }

    /// Executes an effect on fail2ban, and checks each unban.
    fn execute(&mut self, effect: Effect, env: &mut Env<'_>) -> Result<(), Crash> {
        env.log.push(format!("{} {effect:?}", self.name));
        // An effect during a full disk may depend on records that are not written.
        self.has_unpersisted |= self.fail2ban.full;
        let mut changed = 0;
        match effect {
            // The model has one jail. Commands for another one succeed.
            Effect::Ban(jail, targets) if jail != self::jail() => {
                changed = i64::try_from(targets.len()).unwrap();
            }
            Effect::Unban(jail, _) | Effect::Renew(jail, _) if jail != self::jail() => {}
            Effect::Unban(_, targets) => {
                for Target { address, .. } in targets {
                    self.check_unban(address);
                    self.maybe_crash(env)?;
                    self.fail2ban.unbanip(address);
                    self.unpersisted_unbans.insert(address);
                }
            }
            Effect::ApplyTombstone(jail, addresses) if jail == self::jail() => {
                for address in addresses {
                    self.manual.remove(&address);
                    self.maybe_crash(env)?;
                    self.fail2ban.unbanip(address);
                }
            }
            Effect::Ban(_, targets) => {
                for Target { address, .. } in targets {
                    // The operator banned the address within the last second. A crash now loses fail2ban's reply that
                    // the ban was not new.
                    let by_hand = self.manual.get(&address).copied().unwrap_or(i64::MIN);
                    if by_hand >= self.fail2ban.clock() - 1 {
                        self.manual_after_lift.insert(address);
                    }
                    changed += self.fail2ban.banip(address, env.chance);
                    self.maybe_crash(env)?;
                }
            }
            Effect::Renew(_, addresses) => {
                for address in addresses {
                    changed += self.fail2ban.banip(address, env.chance);
                }
            }
            _ => {}
        }
        self.maybe_crash(env)?;
        let now = self.millis();
        self.fleet.as_mut().unwrap().on_done(changed, now);
        Ok(())
    }

    /// P4, P5: no peer releases a local ban or a ban by this host's operator.
    fn check_unban(&mut self, address: Address) {
        let Some(ticket) = self.fail2ban.tickets.get(&address) else { return };
        if ticket.failures > 0 {
            self.violation = Some(("P4: a local ban was released", address));
        } else if self.is_manual(address) && !self.manual_after_lift.contains(&address) {
            self.violation = Some(("P5: the operator's ban was released", address));
        }
    }

    /// The host's state of an address, for the log of a broken rule.
    pub(crate) fn describe(&self, address: Address) -> String {
        let Self { name, fail2ban, fleet, gone, .. } = self;
        let import = fleet.as_ref().and_then(|fleet| fleet.import(&key(address)));
        let states = ["a", "b", "c", "joiner"].map(|other| {
            let other = HostName::new(other).unwrap();
            fleet.as_ref().map(|fleet| fleet.claim_state(&key(address), &other))
        });
        format!(
            "{name}: gone {gone}, clock {}, bantime {}, ticket {:?}, row {:?}, import {import:?}, claims {states:?}, by hand {:?}",
            fail2ban.clock(),
            fail2ban.bantime,
            fail2ban.tickets.get(&address),
            fail2ban.rows.get(&address),
            self.manual.get(&address),
        )
    }

    /// Whether the host's ban of an address is its operator's.
    pub(crate) fn is_manual(&self, address: Address) -> bool {
        let ticket = self.fail2ban.tickets.get(&address);
        ticket.is_some_and(|t| t.failures == 0 && self.manual.get(&address) == Some(&t.time))
    }

    fn publish_pending(&mut self, env: &mut Env<'_>) -> Result<(), Crash> {
        while let Some(event) = self.outbox.pop_front() {
            let topic = event.action.as_str();
            let payload = self.sign_message(topic, event.encode());
            env.broker.publish(env.now, topic, &payload, false);
            // After a crash before the acknowledgement, the next daemon publishes the event again.
            self.maybe_crash(env)?;
            if let Some(event) = self.spool.pop_front()
                && event.action == EventAction::Ban
            {
                self.unpersisted.push_back(event);
            }
            self.spool_read -= 1;
        }
        let now = self.millis();
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        for topic in fleet.next_subscription(now).into_iter().flatten() {
            env.broker.subscribe(&self.name, &topic);
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
            let payload = self.sign_message(&topic, payload);
            env.broker.publish(env.now, &topic, &payload, true);
        }
        self.maybe_crash(env)
    }
}
