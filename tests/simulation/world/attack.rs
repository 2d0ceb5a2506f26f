//! An attacker that may publish and has no signing key. Its random numbers are its own, so the rest of the world is the
//! same without the attacker.

use std::collections::{BTreeMap, BTreeSet};

use f2bmqtt::fleet::claims::ClaimState;
use f2bmqtt::model::{Address, HostName};
use f2bmqtt::wire::signature::SigningKeys;
use f2bmqtt::wire::{Action, Event, Shard};

use super::{FAULT_SECONDS, QUIET_SECONDS, START_TIME, World};
use crate::broker::Message;
use crate::chance::Chance;
use crate::host::key;
use crate::inbound::whole;

mod forge;

/// The host names in the attacker's messages: those of the hosts, of the script host, and names that no host has.
const NAMES: [&str; 8] = ["a", "b", "c", "joiner", "script", "evil1", "evil2", "evil3"];

/// How many seconds after the last fault an operator cleans up after the attacker, twice.
const CLEANUP_SECONDS: [i64; 2] = [6, 20];

/// The fleet's signing key.
pub(super) fn keys() -> SigningKeys {
    SigningKeys::new(["the fleet's own secret, which no attacker has"])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attack {
    /// There is no attacker.
    None,
    /// The fleet signs, and the broker is hostile: it sends single hosts forged, changed and moved messages. Each step
    /// of the world is the same as without the attacker.
    Broker,
    /// The fleet signs, and a client publishes, clears and replays messages, also retained ones. All rules hold
    /// meanwhile, and the attacker's addresses are never banned.
    Client,
    /// The fleet does not sign, and a client publishes any message in any name. The fleet converges after the attacker
    /// has left and an operator has removed its hosts (`f2bmqtt forget`).
    Open,
}

pub(super) struct Attacker {
    pub(super) attack: Attack,
    /// Whether the fleet has a key.
    pub(super) signed: bool,
    /// The addresses that only the attacker's messages contain.
    pub(super) addresses: Vec<Address>,
    chance: Chance,
    /// The greatest stamp that the attacker used in each name, in milliseconds.
    stamps: BTreeMap<String, i64>,
    /// The greatest stamp that each host has received in its own name, in milliseconds.
    delivered: BTreeMap<String, i64>,
    /// The messages that the attacker published in a fleet without a key.
    pub(super) forged: BTreeSet<Message>,
    /// The messages that the hostile broker sent.
    pub(super) log: Vec<String>,
}

impl Attacker {
    pub(super) fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed ^ 0x00a7_7ac4);
        let attack = match chance.within(0, 99) {
            0..50 => Attack::None,
            50..65 => Attack::Broker,
            65..80 => Attack::Client,
            _ => Attack::Open,
        };
        let signed = matches!(attack, Attack::Broker | Attack::Client);
        let ips = if attack == Attack::None { &[][..] } else { &forge::ADDRESSES };
        let addresses = ips.iter().map(|ip| Address::new(ip).unwrap()).collect();
        Self {
            attack,
            signed,
            addresses,
            chance,
            stamps: BTreeMap::new(),
            delivered: BTreeMap::new(),
            forged: BTreeSet::new(),
            log: Vec::new(),
        }
    }

    /// Records a message that a host accepted in its own name.
    pub(super) fn record_delivery(&mut self, host: &str, payload: &str, now: i64) {
        if let Some((name, stamp)) = stamp_of(payload)
            && name == host
            && stamp <= limit(now)
        {
            let delivered = self.delivered.entry(name).or_default();
            *delivered = stamp.max(*delivered);
        }
    }

    /// A host's process died, and may not have written the stamps that it received.
    pub(super) fn forget_deliveries(&mut self, host: &str) {
        self.delivered.remove(host);
    }
}

/// The host name and the stamp of a message. The stamp of a fleet unban or of an `ack_request`
/// orders no claims.
fn stamp_of(payload: &str) -> Option<(String, i64)> {
    let event = Event::parse(payload.as_bytes())
        .ok()
        .filter(|event| event.id.is_none() && matches!(event.action, Action::Ban | Action::Unban));
    let (host, stamp) = match event {
        Some(event) => (event.host, event.stamp),
        None => Shard::parse(payload.as_bytes()).ok().map(|shard| (shard.host, shard.stamp))?,
    };
    Some((host.to_string(), stamp))
}

/// The greatest stamp that any host accepts, as their clocks are at most 20 seconds ahead. `now` is in seconds.
fn limit(now: i64) -> i64 {
    now * 1000 + forge::DAY + 20_000
}

impl World {
    /// Runs the attacker for a second.
    pub(super) fn attack(&mut self) {
        let since = self.now - START_TIME;
        match self.attacker.attack {
            Attack::Broker if self.attacker.chance.often(300) => self.hand_out(),
            // The client attacks also without faults, but not while `check_chatter` counts messages.
            Attack::Client
                if since < FAULT_SECONDS + QUIET_SECONDS - 45
                    && self.attacker.chance.often(300) =>
            {
                let (topic, payload) = self.forged(true);
                let retain = self.attacker.chance.often(500);
                self.log_line(format_args!("ATTACK {retain} {topic} {payload}"));
                self.broker.inject(&topic, &payload, retain);
            }
            Attack::Open if (10..FAULT_SECONDS - 10).contains(&since) => {
                if self.attacker.chance.often(300) {
                    let (topic, payload) = self.forged(true);
                    let retain =
                        self.attacker.chance.often(if topic.contains('/') { 700 } else { 100 });
                    self.publish_forged(&topic, &payload, retain);
                } else if self.attacker.chance.often(15) {
                    let address = *self.attacker.chance.pick(&self.addresses);
                    for (topic, payload) in self.attacker.forge_flood(address, self.now) {
                        self.publish_forged(&topic, &payload, false);
                    }
                }
            }
            Attack::Open if CLEANUP_SECONDS.contains(&(since - FAULT_SECONDS)) => self.clean_up(),
            _ => {}
        }
    }

    fn publish_forged(&mut self, topic: &str, payload: &str, retain: bool) {
        if let Some((name, stamp)) =
            stamp_of(payload).filter(|(_, stamp)| *stamp <= limit(self.now))
        {
            let greatest = self.attacker.stamps.entry(name).or_default();
            *greatest = stamp.max(*greatest);
        }
        self.log_line(format_args!("ATTACK {retain} {topic} {payload}"));
        self.attacker.forged.insert((topic.to_owned(), payload.to_owned()));
        self.broker.publish(self.now, topic, payload, retain);
    }

    /// A message of the attacker, or a host's message that it changes, moves or, if it `may_replay`, repeats.
    fn forged(&mut self, may_replay: bool) -> Message {
        let attacker = &mut self.attacker;
        let old: Vec<&Message> = self.broker.seen.iter().map(|(_, message)| message).collect();
        let kind = attacker.chance.within(0, 99);
        if kind < 50 || old.is_empty() {
            return attacker.forge(&self.addresses, self.now);
        }
        let (topic, payload) = (*attacker.chance.pick(&old)).clone();
        match kind {
            50..60 => (attacker.topic(), payload),
            60..70 => (topic, attacker.change(&payload)),
            70..75 => {
                let (topic, payload) = attacker.forge(&self.addresses, self.now);
                let keys = SigningKeys::new(["a secret of the attacker's own"]);
                let signed = keys.sign(&whole(&topic), payload.into_bytes());
                (topic, String::from_utf8(signed).unwrap())
            }
            75..85 => (topic, String::new()),
            _ if may_replay => (topic, payload),
            _ => (attacker.topic(), payload),
        }
    }

    /// The hostile broker sends a host a message. It sends none in the host's own branch: the host would only publish
    /// its shard earlier.
    fn hand_out(&mut self) {
        let n = self.attacker.chance.index(self.hosts.len());
        let (topic, payload) = self.forged(false);
        let is_replayed = !payload.is_empty()
            && self
                .broker
                .seen
                .iter()
                .any(|(_, (old_topic, old))| *old_topic == topic && *old == payload);
        let host = &mut self.hosts[n];
        if is_replayed
            || !host.connected
            || host.fleet.is_none()
            || topic.starts_with(&format!("state/{}/", host.name))
        {
            return;
        }
        let elsewhere = [format!("x/{}", whole(&topic)), topic.clone(), format!("f2bmqtt/{topic}")];
        let topic = if self.attacker.chance.often(100) {
            self.attacker.chance.pick(&elsewhere).clone()
        } else {
            whole(&topic)
        };
        self.attacker.log.push(format!(
            "{} {} {topic} {payload}",
            self.now - START_TIME,
            host.name
        ));
        let result = host.receive(&topic, payload.as_bytes());
        assert!(result.is_err() || payload.is_empty(), "{topic} {payload}");
    }

    /// Whether a host exists and has received the greatest stamp that the attacker forged in its name.
    fn knows_forged_stamp(&self, name: &str, stamp: i64) -> bool {
        self.hosts.iter().any(|host| host.name == name && !host.gone)
            && self.attacker.delivered.get(name).is_some_and(|delivered| *delivered >= stamp)
    }

    /// An operator removes each invented host, each host that is gone, and each that may not know a forged stamp of
    /// itself, as `f2bmqtt forget` does: it publishes an empty shard with a newer stamp and clears all topics, shard 0
    /// last.
    fn clean_up(&mut self) {
        let mut names: BTreeSet<String> =
            NAMES.into_iter().filter(|name| name.starts_with("evil")).map(str::to_owned).collect();
        for (name, stamp) in &self.attacker.stamps {
            if !self.knows_forged_stamp(name, *stamp) {
                names.insert(name.clone());
            }
        }
        let retained = self.broker.retained_topics();
        let mut published = Vec::new();
        for name in names {
            let stamp = self.attacker.stamps.get(&name).copied().unwrap_or_default();
            let shard = forge::empty_shard(&name, (self.now * 1000).max(stamp + 1));
            let (host, state) = (format!("host/{name}"), format!("state/{name}/"));
            let first = format!("{state}0");
            published.push((first.clone(), shard));
            for topic in &retained {
                if (*topic == host || topic.starts_with(&state)) && !topic.ends_with("/0") {
                    published.push((topic.clone(), String::new()));
                }
            }
            published.push((first, String::new()));
        }
        let events = retained.iter().filter(|topic| !topic.contains('/'));
        published.extend(events.map(|topic| (topic.clone(), String::new())));
        for (topic, payload) in published {
            self.log_line(format_args!("forget {topic} {payload}"));
            self.broker.publish(self.now, &topic, &payload, true);
        }
    }

    /// A1: no address of an attacker without the key is ever banned.
    pub(super) fn check_attacker(&mut self) -> Result<(), String> {
        if !self.attacker.signed {
            return Ok(());
        }
        for n in 0..self.hosts.len() {
            let fail2ban = &self.hosts[n].fail2ban;
            let banned = self.attacker.addresses.iter().find(|address| {
                fail2ban.tickets.contains_key(*address) || fail2ban.rows.contains_key(*address)
            });
            if let Some(address) = banned.copied() {
                let name = self.hosts[n].name.clone();
                return Err(self.report_violation(
                    "A1: an attacker without the key banned",
                    &name,
                    address,
                ));
            }
        }
        Ok(())
    }

    /// All state in which two runs of a world could differ.
    pub(super) fn account(&self) -> Vec<String> {
        let mut lines = self.log.clone();
        lines.extend(self.broker.seen.iter().map(|seen| format!("{seen:?}")));
        let addresses = self.addresses.iter().chain(&self.attacker.addresses).copied();
        let addresses: Vec<Address> = addresses.collect();
        for host in &self.hosts {
            lines.extend(addresses.iter().map(|address| host.describe(*address)));
            lines.push(format!("{} {:?}", host.name, host.disk));
            let Some(fleet) = &host.fleet else { continue };
            for name in NAMES.map(|name| HostName::new(name).unwrap()) {
                let states =
                    addresses.iter().map(|address| fleet.claim_state(&key(*address), &name));
                lines.push(format!(
                    "{} of {name} {:?}",
                    host.name,
                    states.collect::<Vec<ClaimState>>()
                ));
            }
            // Hash maps print in any order, so only the sorted characters can be compared.
            let mut characters: Vec<char> = format!("{fleet:?}").chars().collect();
            characters.sort_unstable();
            lines.push(characters.into_iter().collect());
        }
        lines
    }
}
