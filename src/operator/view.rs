//! What the broker has of the fleet, folded into what it means. Pure.
//!
//! The rules are those of the daemons: the newest part that covers an address is right, the fleet's bans
//! are the union, and a ban whose host does not repeat every fleet unban of its address is void, unless it began
//! long after that. What daemons reject is not shown: snapshots of another time, fleet unbans of the future, and
//! addresses that no host may ban.

use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::claims::is_held;
use crate::fleet::{Timing, is_outlived};
use crate::guard::gate::{Admitted, Source};
use crate::guard::{check_shard_stamp, is_ahead, is_bannable};
use crate::wire::{
    Address, Ban, FleetUnban, HostName, HostState, Jail, Presence, Shard, ShardEntry, ShardId,
    UnbanId,
};

/// The most hosts and bans that are kept in mind; no honest fleet comes near.
const MAX_HOSTS: usize = 1_000;
const MAX_BANS: usize = 500_000;

/// The fleet, as the broker shows it.
#[derive(Debug, Default)]
pub struct FleetView {
    hosts: BTreeMap<HostName, HostView>,
    /// Each name once: there are many bans, and few jails.
    jails: BTreeSet<Jail>,
    bans: usize,
    /// Something was left out: there is too much of it.
    full: bool,
    /// The fleet has a key.
    signed: bool,
    /// Topics of snapshots, by their last level, whose payload the daemons reject.
    rejected: BTreeMap<HostName, BTreeSet<u32>>,
    pace: Timing,
}

/// What the broker has of one host.
#[derive(Debug, Default)]
pub struct HostView {
    presence: Option<Presence>,
    /// By the last level of their topics.
    parts: BTreeMap<u32, Shard>,
    /// Those of them that are not signed, in a fleet that has a key.
    unsigned: BTreeSet<u32>,
}

/// A message, as far as the view is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Of a host's state.
    Presence(HostName),
    /// A part of a host's snapshot.
    Shard(HostName),
    /// A topic of a host was cleared.
    Cleared(HostName),
    /// Nothing that the view shows.
    Nothing,
}

/// When a ban ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expiry {
    /// Then, in seconds since 1970 on its origin's clock.
    Time(i64),
    /// Its origin did not know.
    Unknown,
    /// Never.
    Never,
}

impl Expiry {
    fn of(start: i64, bantime: i64) -> Self {
        match bantime {
            0 => Self::Unknown,
            _ if bantime < 0 => Self::Never,
            _ => Self::Time(Ban { start, bantime }.end()),
        }
    }
}

/// An address that is banned in a jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanSummary {
    /// Which address.
    pub address: Address,
    /// In which jail.
    pub jail: Jail,
    /// The host that detected it first, of those that hold it.
    pub origin: HostName,
    /// Since when, in seconds since 1970; 0 is not known.
    pub since: i64,
    /// The last of its ends.
    pub until: Expiry,
    /// Who else detected it and holds it.
    pub also: Vec<HostName>,
}

/// A ban that counts for nobody, because its host has not heard of a fleet unban yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoidedBan {
    /// Which address.
    pub address: Address,
    /// In which jail.
    pub jail: Jail,
    /// The host that still lists it.
    pub host: HostName,
    /// The fleet unban.
    pub id: UnbanId,
}

impl FleetView {
    /// The view of a fleet whose messages are signed, or not.
    #[must_use]
    pub fn new(signed: bool) -> Self {
        Self { signed, ..Self::default() }
    }

    /// Takes a message that came at `now`, in milliseconds since 1970.
    pub fn hear(&mut self, message: &Admitted, now: i64) -> Update {
        match message.source() {
            Source::Presence { host } => self.presence(message, host),
            Source::Shard { host, index } => self.part(message, host, *index, now),
            Source::Event | Source::Other(_) => Update::Nothing,
        }
    }

    fn presence(&mut self, message: &Admitted, host: &HostName) -> Update {
        if message.payload().is_empty() {
            if let Some(member) = self.hosts.get_mut(host) {
                member.presence = None;
            }
            return self.cleared(host);
        }
        match (message.presence(), self.member(host)) {
            (Ok(presence), Some(member)) => {
                member.presence = Some(presence);
                Update::Presence(host.clone())
            }
            _ => Update::Nothing,
        }
    }

    fn part(&mut self, message: &Admitted, host: &HostName, number: u32, now: i64) -> Update {
        if let Some(rejected) = self.rejected.get_mut(host)
            && rejected.remove(&number)
            && rejected.is_empty()
        {
            self.rejected.remove(host);
        }
        if message.payload().is_empty() {
            let gone = self.hosts.get_mut(host).and_then(|member| member.parts.remove(&number));
            self.bans -= gone.map_or(0, |part| part.bans.len());
            return self.cleared(host);
        }
        // An unsigned part frees nobody, but its bans may carry what others freed.
        let part = message.shard(|_| true).ok();
        let Some(mut part) =
            part.filter(|part| check_shard_stamp(part, self.signed, now).is_none())
        else {
            self.reject(host, number);
            return Update::Nothing;
        };
        part.bans.retain(|listed| is_bannable(listed.address.ip()));
        part.unbans.retain(|pardon| !is_ahead(pardon.id.created_at(), now));
        if self.bans + part.bans.len() > MAX_BANS {
            self.full = true;
            return Update::Nothing;
        }
        let bans = part.bans.len();
        for listed in &mut part.bans {
            match self.jails.get(&listed.jail) {
                Some(jail) => listed.jail = jail.clone(),
                None => drop(self.jails.insert(listed.jail.clone())),
            }
        }
        let Some(member) = self.member(host) else { return Update::Nothing };
        if message.is_trusted() {
            member.unsigned.remove(&number);
        } else {
            member.unsigned.insert(number);
        }
        let before = member.parts.insert(number, part);
        self.bans = self.bans + bans - before.map_or(0, |part| part.bans.len());
        Update::Shard(host.clone())
    }

    /// The broker keeps something on a topic of a host's snapshot that daemons reject.
    pub fn reject(&mut self, host: &HostName, number: u32) {
        if self.rejected.len() < MAX_HOSTS || self.rejected.contains_key(host) {
            self.rejected.entry(host.clone()).or_default().insert(number);
        }
    }

    fn cleared(&mut self, host: &HostName) -> Update {
        self.hosts.retain(|_, member| member.presence.is_some() || !member.parts.is_empty());
        Update::Cleared(host.clone())
    }

    fn member(&mut self, host: &HostName) -> Option<&mut HostView> {
        if self.hosts.len() >= MAX_HOSTS && !self.hosts.contains_key(host) {
            self.full = true;
            return None;
        }
        Some(self.hosts.entry(host.clone()).or_default())
    }

    /// Its hosts.
    #[must_use]
    pub fn hosts(&self) -> &BTreeMap<HostName, HostView> {
        &self.hosts
    }

    /// The jails that hosts have, or ban in.
    #[must_use]
    pub fn all_jails(&self) -> BTreeSet<&Jail> {
        let had = self.hosts.values().flat_map(HostView::jails);
        had.chain(self.hosts.values().flat_map(HostView::listed).map(|(listed, _)| &listed.jail))
            .collect()
    }

    /// The last levels of the topics of a host's snapshot on which the broker keeps something.
    #[must_use]
    pub fn topics_of(&self, host: &HostName) -> BTreeSet<u32> {
        let shown = self.hosts.get(host).into_iter().flat_map(HostView::numbers);
        shown.chain(self.rejected.get(host).into_iter().flatten().copied()).collect()
    }

    /// What of the fleet is not in here, a line each.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let of = |(host, member): (&HostName, &HostView)| match (member.missing(), member.count()) {
            (0, _) => None,
            (missing, all) => Some(format!("{missing} of {all} parts of {host}'s snapshot")),
        };
        let mut missing: Vec<String> = self.hosts.iter().filter_map(of).collect();
        if self.hosts.is_empty() {
            // RabbitMQ keeps messages, and hands out none of them for a topic with a wildcard.
            missing.push(
                "all hosts (check MQTT_TOPIC, and that the broker delivers retained messages)"
                    .to_owned(),
            );
        }
        if self.full {
            missing.push(format!("data beyond the limit of {MAX_HOSTS} hosts or {MAX_BANS} bans"));
        }
        missing
    }

    /// What is banned at a time, in seconds since 1970: each address in each jail once, the newest ban
    /// last.
    #[must_use]
    pub fn banned(&self, now: i64) -> Vec<BanSummary> {
        let pardons = self.fleet_unbans();
        let mut all: Vec<BanSummary> = Vec::with_capacity(self.bans);
        for (host, member) in &self.hosts {
            for (listed, part) in member.listed() {
                let ban = Ban { start: listed.start, bantime: listed.bantime };
                let held = is_held(ban, now, &self.pace);
                if !held || self.void(listed, part, &pardons).is_some() {
                    continue;
                }
                all.push(BanSummary {
                    address: listed.address,
                    jail: listed.jail.clone(),
                    origin: host.clone(),
                    since: listed.start,
                    until: Expiry::of(listed.start, listed.bantime),
                    also: Vec::new(),
                });
            }
        }
        all.sort_unstable_by(|a, b| a.order().cmp(&b.order()));
        all.dedup_by(|other, first| first.join(other));
        all.sort_by_key(|banned| banned.since);
        all
    }

    /// What is still listed, and counts for nobody since a fleet unban.
    #[must_use]
    pub fn voids(&self, address: Address) -> Vec<VoidedBan> {
        let pardons = self.fleet_unbans();
        let mut voids = Vec::new();
        for (host, member) in &self.hosts {
            for (listed, part) in member.listed().filter(|(listed, _)| listed.address == address) {
                if let Some(pardon) = self.void(listed, part, &pardons) {
                    let (jail, id) = (listed.jail.clone(), pardon.id.clone());
                    voids.push(VoidedBan { address, jail, host: host.clone(), id });
                }
            }
        }
        voids
    }

    /// The fleet unban that a ban should carry and does not.
    fn void<'a>(
        &self,
        listed: &ShardEntry,
        part: &Shard,
        pardons: &BTreeMap<Address, Vec<&'a FleetUnban>>,
    ) -> Option<&'a FleetUnban> {
        let carried = |id: &UnbanId| {
            let covers =
                |one: &FleetUnban| one.address == listed.address && one.scope.covers(&listed.jail);
            part.unbans.iter().any(|one| covers(one) && one.id == *id)
        };
        let voids = |pardon: &&&FleetUnban| {
            pardon.scope.covers(&listed.jail)
                && !carried(&pardon.id)
                && !is_outlived(&pardon.id, listed.start, &self.pace)
        };
        pardons.get(&listed.address).into_iter().flatten().find(voids).copied()
    }

    /// The fleet unbans that hosts repeat.
    fn fleet_unbans(&self) -> BTreeMap<Address, Vec<&FleetUnban>> {
        let mut pardons: BTreeMap<Address, Vec<&FleetUnban>> = BTreeMap::new();
        let parts = self.hosts.values().flat_map(HostView::trusted);
        for pardon in parts.flat_map(|part| &part.unbans) {
            pardons.entry(pardon.address).or_default().push(pardon);
        }
        pardons
    }
}

impl BanSummary {
    /// What is banned, and then who detected it first.
    fn order(&self) -> (Address, &Jail, i64, &HostName) {
        (self.address, &self.jail, self.since, &self.origin)
    }

    /// Takes up that another host holds the same, too; answers whether it is the same.
    fn join(&mut self, other: &Self) -> bool {
        let same = (self.address, &self.jail) == (other.address, &other.jail);
        if same {
            self.until = self.until.max(other.until);
            self.also.push(other.origin.clone());
            self.also.sort();
        }
        same
    }
}

impl HostView {
    /// What it says of itself.
    #[must_use]
    pub fn presence(&self) -> Option<&Presence> {
        self.presence.as_ref()
    }

    /// Whether its daemon is connected.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.presence.as_ref().is_some_and(|presence| presence.state == HostState::Online)
    }

    /// The jails that it takes part in.
    #[must_use]
    pub fn jails(&self) -> &BTreeSet<Jail> {
        static NONE: BTreeSet<Jail> = BTreeSet::new();
        self.presence.as_ref().map_or(&NONE, |presence| &presence.jails)
    }

    /// The numbers of the parts that the broker has.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.parts.keys().copied()
    }

    /// When its snapshot was last published, in milliseconds since 1970 on its own clock.
    #[must_use]
    pub fn stamp(&self) -> Option<i64> {
        self.newest().map(|part| part.stamp)
    }

    /// How many parts its snapshot has; 0 where there is none.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.newest().map_or(0, |part| part.id.count())
    }

    /// How many of them are not here.
    #[must_use]
    pub fn missing(&self) -> u32 {
        let count = self.count();
        let there = self.parts.values().filter(|part| part.id.count() == count).count();
        count.saturating_sub(u32::try_from(there).unwrap_or(u32::MAX))
    }

    /// How many bans of its own it holds.
    #[must_use]
    pub fn bans(&self) -> usize {
        self.listed().count()
    }

    /// Whether it says that it has obeyed a fleet unban of an address.
    #[must_use]
    pub fn repeats(&self, address: Address, id: &UnbanId) -> bool {
        self.covering(address).is_some_and(|part| {
            part.unbans.iter().any(|pardon| pardon.address == address && pardon.id == *id)
        })
    }

    /// Whether it lists an address in a jail.
    #[must_use]
    pub fn lists(&self, jail: &Jail, address: Address) -> bool {
        let is = |listed: &ShardEntry| listed.address == address && listed.jail == *jail;
        self.covering(address).is_some_and(|part| part.bans.iter().any(is))
    }

    /// The jails in which it lists one of these addresses, and those in which it lists others.
    #[must_use]
    pub fn jails_of_bans(&self, addresses: &BTreeSet<Address>) -> (BTreeSet<Jail>, BTreeSet<Jail>) {
        let (mut of_these, mut of_others) = (BTreeSet::new(), BTreeSet::new());
        for (listed, _) in self.listed() {
            let jails =
                if addresses.contains(&listed.address) { &mut of_these } else { &mut of_others };
            if !jails.contains(&listed.jail) {
                jails.insert(listed.jail.clone());
            }
        }
        (of_these, of_others)
    }

    fn trusted(&self) -> impl Iterator<Item = &Shard> {
        let parts = self.parts.iter().filter(|(number, _)| !self.unsigned.contains(number));
        parts.map(|(_, part)| part)
    }

    fn newest(&self) -> Option<&Shard> {
        self.parts.values().max_by_key(|part| part.stamp)
    }

    /// **The newest part that covers an address is right.**
    fn covering(&self, address: Address) -> Option<&Shard> {
        let sizes: BTreeSet<u32> = self.parts.values().map(|part| part.id.count()).collect();
        let of = |parts: u32| self.parts.get(&ShardId::of(address, parts).index());
        let covers = |part: &&Shard| part.id.covers(address);
        sizes.into_iter().filter_map(of).filter(covers).max_by_key(|part| part.stamp)
    }

    /// What it detected and holds, with the part that says so.
    fn listed(&self) -> impl Iterator<Item = (&ShardEntry, &Shard)> {
        let size = self.count();
        let even = self.parts.values().all(|part| part.id.count() == size);
        let all = self.parts.values().flat_map(|part| part.bans.iter().map(move |ban| (ban, part)));
        all.filter(move |(listed, part)| {
            even || self.covering(listed.address).is_some_and(|right| right.id == part.id)
        })
    }
}

#[cfg(test)]
impl FleetView {
    /// Takes a message, some seconds after those of the tests were made.
    pub fn hear_on(&mut self, name: &str, payload: &[u8]) -> Update {
        const NOW: i64 = 1_795_342_600_000;
        let admitted = crate::guard::gate::tests::admit(name, payload);
        admitted.map_or(Update::Nothing, |message| self.hear(&message, NOW))
    }
}

#[cfg(test)]
mod tests;
