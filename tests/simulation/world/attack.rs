//! An attacker who may publish, and has no signing key. It has a chance of its own, so the rest of the world is
//! the same without it.

use std::collections::{BTreeMap, BTreeSet};

use f2bmqtt::fleet::claims::ClaimState;
use f2bmqtt::wire::seal::SigningKeys;
use f2bmqtt::wire::{Action, Address, Event, HostName as Name, Shard};

use super::{ACTIVE, BEGIN, QUIET, World};
use crate::broker::Message;
use crate::chance::Chance;
use crate::host::key;
use crate::inbound::whole;

mod forge;

/// The names that it speaks in: those of the hosts, of a script, and names that no host has.
const NAMES: [&str; 8] = ["a", "b", "c", "joiner", "script", "evil1", "evil2", "evil3"];

/// When an operator cleans up after it, and does so again, in seconds after the beginning of the quiet.
const CLEANED_UP: [i64; 2] = [6, 20];

/// What the fleet signs with.
pub(super) fn keys() -> SigningKeys {
    SigningKeys::new(["the fleet's own secret, which no attacker has"])
}

/// What the attacker can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attack {
    /// There is none.
    None,
    /// The fleet signs, and the broker is hostile: it hands single hosts what was forged, changed or moved to
    /// other topics. **Nothing changes by it**: the same world without it goes the same way, step by step.
    Broker,
    /// The fleet signs, and a client publishes, clears and replays, also retained. All rules hold while it does,
    /// and no address of its own is ever banned.
    Client,
    /// The fleet does not sign, and a client publishes what it likes, in anyone's name. When it has left and its
    /// hosts were forgotten, the fleet converges.
    Open,
}

pub(super) struct Attacker {
    pub(super) attack: Attack,
    /// Whether the fleet has a key, and which addresses nobody but the attacker names.
    pub(super) signed: bool,
    pub(super) addresses: Vec<Address>,
    chance: Chance,
    /// The greatest stamp that it used in each name, in milliseconds, and that each host then heard in its own.
    stamps: BTreeMap<String, i64>,
    heard: BTreeMap<String, i64>,
    /// What it published in a fleet without a key.
    pub(super) forged: BTreeSet<Message>,
    /// What the hostile broker handed out.
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
            heard: BTreeMap::new(),
            forged: BTreeSet::new(),
            log: Vec::new(),
        }
    }

    /// A host accepted a message in its own name.
    pub(super) fn is_heard(&mut self, host: &str, payload: &str, now: i64) {
        if let Some((name, stamp)) = stamp_of(payload)
            && name == host
            && stamp <= limit(now)
        {
            let heard = self.heard.entry(name).or_default();
            *heard = stamp.max(*heard);
        }
    }

    /// What a host heard and may not have written down is lost with its process.
    pub(super) fn forgets(&mut self, host: &str) {
        self.heard.remove(host);
    }
}

/// In whose name a message is, and its stamp. That of a fleet unban or of an `ack_request` orders nothing.
fn stamp_of(payload: &str) -> Option<(String, i64)> {
    let event = Event::parse(payload.as_bytes())
        .ok()
        .filter(|event| event.id.is_none() && matches!(event.action, Action::Ban | Action::Unban));
    let event = event.map(|event| (event.host, event.stamp));
    let part = || Shard::parse(payload.as_bytes()).ok().map(|part| (part.host, part.stamp));
    event.or_else(part).map(|(host, stamp)| (host.to_string(), stamp))
}

/// No host accepts a greater stamp: their clocks are ahead by 20 seconds at most. `now` is in seconds.
fn limit(now: i64) -> i64 {
    now * 1000 + forge::DAY + 20_000
}

impl World {
    /// The attacker's turn.
    pub(super) fn attack(&mut self) {
        let since = self.now - BEGIN;
        match self.attacker.attack {
            Attack::Broker if self.attacker.chance.often(300) => self.hand_out(),
            // It goes on in the quiet, but not while what is published is counted.
            Attack::Client if since < ACTIVE + QUIET - 45 && self.attacker.chance.often(300) => {
                let (topic, payload) = self.forged(true);
                let retain = self.attacker.chance.often(500);
                self.say(format_args!("ATTACK {retain} {topic} {payload}"));
                self.broker.inject(&topic, &payload, retain);
            }
            Attack::Open if (10..ACTIVE - 10).contains(&since) => {
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
            Attack::Open if CLEANED_UP.contains(&(since - ACTIVE)) => self.clean_up(),
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
        self.say(format_args!("ATTACK {retain} {topic} {payload}"));
        self.attacker.forged.insert((topic.to_owned(), payload.to_owned()));
        self.broker.publish(self.now, topic, payload, retain);
    }

    /// A message that the attacker made, or one of a host that it changed, moved or, if it `may_replay`, repeats.
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

    /// The hostile broker hands a host a message. In the host's own branch it would only be answered with what
    /// the host publishes anyway, but earlier.
    fn hand_out(&mut self) {
        let n = self.attacker.chance.index(self.hosts.len());
        let (topic, payload) = self.forged(false);
        let original = |(_, message): &(i64, Message)| *message == (topic.clone(), payload.clone());
        let is_replayed = !payload.is_empty() && self.broker.seen.iter().any(original);
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
        self.attacker.log.push(format!("{} {} {topic} {payload}", self.now - BEGIN, host.name));
        let result = host.hear_on(&topic, payload.as_bytes());
        assert!(result.is_err() || payload.is_empty(), "{topic} {payload}");
    }

    /// An operator forgets each host that is none or gone for good, and each that may not have heard a forged stamp of its own, as
    /// `f2bmqtt forget` does: an empty shard with a newer stamp, and then everything is cleared, shard 0 last.
    fn clean_up(&mut self) {
        let Attacker { stamps, heard, .. } = &self.attacker;
        let there = |name: &str| self.hosts.iter().any(|host| host.name == name && !host.gone);
        let is_known = |(name, stamp): &(&String, &i64)| {
            there(name) && heard.get(*name).is_some_and(|heard| heard >= *stamp)
        };
        let missed =
            stamps.iter().filter(|spoken| !is_known(spoken)).map(|(name, _)| name.as_str());
        let fakes = NAMES.into_iter().filter(|name| name.starts_with("evil"));
        let names: BTreeSet<String> = missed.chain(fakes).map(str::to_owned).collect();
        let retained = self.broker.retained_topics();
        let of = |name: &str| {
            let (host, state) = (format!("host/{name}"), format!("state/{name}/"));
            let mut topics: Vec<_> = retained
                .iter()
                .filter(|topic| **topic == host || topic.starts_with(&state))
                .cloned()
                .collect();
            topics.retain(|topic| !topic.ends_with("/0"));
            topics.extend([format!("state/{name}/0")]);
            topics
        };
        let mut published = Vec::new();
        for name in names {
            let stamp = self.attacker.stamps.get(&name).copied().unwrap_or_default();
            let part = forge::empty_shard(&name, (self.now * 1000).max(stamp + 1));
            published.push((format!("state/{name}/0"), part));
            published.extend(of(&name).into_iter().map(|topic| (topic, String::new())));
        }
        let events = retained.iter().filter(|topic| !topic.contains('/'));
        published.extend(events.map(|topic| (topic.clone(), String::new())));
        for (topic, payload) in published {
            self.say(format_args!("forget {topic} {payload}"));
            self.broker.publish(self.now, &topic, &payload, true);
        }
    }

    /// **No address of an attacker without the key is ever banned.**
    pub(super) fn check_attacker(&mut self) -> Result<(), String> {
        if !self.attacker.signed {
            return Ok(());
        }
        for n in 0..self.hosts.len() {
            let fail2ban = &self.hosts[n].fail2ban;
            let banned = |address: &Address| {
                fail2ban.tickets.contains_key(address) || fail2ban.rows.contains_key(address)
            };
            if let Some(address) = self.attacker.addresses.clone().into_iter().find(banned) {
                let name = self.hosts[n].name.clone();
                return Err(self.breaks("A1: an attacker without the key banned", &name, address));
            }
        }
        Ok(())
    }

    /// Everything that could have become another way.
    pub(super) fn account(&self) -> Vec<String> {
        let mut lines = self.log.clone();
        lines.extend(self.broker.seen.iter().map(|seen| format!("{seen:?}")));
        let addresses = self.addresses.iter().chain(&self.attacker.addresses).copied();
        let addresses: Vec<Address> = addresses.collect();
        for host in &self.hosts {
            lines.extend(addresses.iter().map(|address| host.known(*address)));
            lines.push(format!("{} {:?}", host.name, host.disk));
            let Some(fleet) = &host.fleet else { continue };
            for name in NAMES.map(|name| Name::new(name).unwrap()) {
                let words =
                    addresses.iter().map(|address| fleet.claim_state(&key(*address), &name));
                lines.push(format!(
                    "{} of {name} {:?}",
                    host.name,
                    words.collect::<Vec<ClaimState>>()
                ));
            }
            // Its hash maps print in any order: the same letters, then, in any order.
            let mut all: Vec<char> = format!("{fleet:?}").chars().collect();
            all.sort_unstable();
            lines.push(all.into_iter().collect());
        }
        lines
    }
}
