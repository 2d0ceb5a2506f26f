//! The state of the fleet, from the retained messages of the broker. Pure.
//!
//! The view applies the rules of the daemons. The newest shard that covers an address wins. The fleet's bans are the
//! union of all snapshots (R2, R3). A ban that does not carry every fleet unban of its address is void (R17), unless
//! the ban started long after the unban. The view leaves out what daemons reject: snapshots with a stamp out of range,
//! fleet unbans from the future, and addresses that are not bannable (R1).

mod host;

use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::claims::is_held;
use crate::fleet::{Timing, is_outlived};
use crate::guard::gate::{Admitted, Source};
use crate::guard::{check_shard_stamp, is_ahead, is_bannable};
use crate::model::{Address, HostName, Jail, UnbanId};
use crate::wire::{Ban, FleetUnban, Shard, ShardEntry};
pub use host::HostView;

/// The most hosts and bans that the view stores (R21). Fleets are far smaller.
const MAX_HOSTS: usize = 1_000;
const MAX_BANS: usize = 500_000;

/// The fleet, as the broker shows it.
#[derive(Debug, Default)]
pub struct FleetView {
    hosts: BTreeMap<HostName, HostView>,
    /// Each jail once, so that bans share the names.
    jails: BTreeSet<Jail>,
    bans: usize,
    /// The view left out data beyond its limits.
    full: bool,
    /// The fleet has a signing key.
    signed: bool,
    /// Topics of snapshots, by their last level, whose payload the daemons reject.
    rejected: BTreeMap<HostName, BTreeSet<u32>>,
    timing: Timing,
}

/// The effect of a message on the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The host's presence changed.
    Presence(HostName),
    /// A shard of the host's snapshot arrived.
    Shard(HostName),
    /// A topic of a host was cleared.
    Cleared(HostName),
    /// The view did not change.
    Nothing,
}

/// When a ban ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expiry {
    /// At this time, in seconds since 1970 by the origin's clock.
    Time(i64),
    /// The origin did not know the bantime.
    Unknown,
    /// The ban is permanent.
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

/// The ban of an address in a jail, by all its origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanSummary {
    /// The banned address.
    pub address: Address,
    /// Its jail, on each origin.
    pub jail: Jail,
    /// The host that detected the ban first, among those that still hold the ban.
    pub origin: HostName,
    /// The start, in seconds since 1970; 0 is unknown.
    pub since: i64,
    /// The latest end among all origins.
    pub until: Expiry,
    /// The other hosts that detected the ban and still hold the ban, by name.
    pub also: Vec<HostName>,
}

/// A ban that a fleet unban voided, and that its host still lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoidedBan {
    /// The released address.
    pub address: Address,
    /// The jail of the ban.
    pub jail: Jail,
    /// The host that still lists the ban.
    pub host: HostName,
    /// The ID of the fleet unban.
    pub id: UnbanId,
}

impl FleetView {
    /// An empty view. `signed`: the fleet has a signing key.
    #[must_use]
    pub fn new(signed: bool) -> Self {
        Self { signed, ..Self::default() }
    }

    /// Applies a message that arrived at `now`, in milliseconds since 1970.
    pub fn apply(&mut self, message: &Admitted, now: i64) -> Update {
        match message.source() {
            Source::Presence { host } => self.apply_presence(message, host),
            Source::Shard { host, index } => self.apply_shard(message, host, *index, now),
            Source::Event | Source::Other(_) => Update::Nothing,
        }
    }

    fn apply_presence(&mut self, message: &Admitted, host: &HostName) -> Update {
        if message.payload().is_empty() {
            if let Some(host_view) = self.hosts.get_mut(host) {
                host_view.presence = None;
            }
            return self.cleared(host);
        }
        match (message.presence(), self.host_entry(host)) {
            (Ok(presence), Some(host_view)) => {
                host_view.presence = Some(presence);
                Update::Presence(host.clone())
            }
            _ => Update::Nothing,
        }
    }

    fn apply_shard(&mut self, message: &Admitted, host: &HostName, index: u32, now: i64) -> Update {
        if let Some(rejected) = self.rejected.get_mut(host)
            && rejected.remove(&index)
            && rejected.is_empty()
        {
            self.rejected.remove(host);
        }
        if message.payload().is_empty() {
            let removed =
                self.hosts.get_mut(host).and_then(|host_view| host_view.shards.remove(&index));
            self.bans -= removed.map_or(0, |shard| shard.bans.len());
            return self.cleared(host);
        }
        // Fleet unbans of an unsigned shard void no bans, but they count as carried by the shard's own bans.
        let shard = message.shard(|_| true).ok();
        let Some(mut shard) =
            shard.filter(|shard| check_shard_stamp(shard, self.signed, now).is_none())
        else {
            self.reject(host, index);
            return Update::Nothing;
        };
        shard.bans.retain(|listed| is_bannable(listed.address.ip()));
        shard.unbans.retain(|fleet_unban| !is_ahead(fleet_unban.id.created_at(), now));
        if self.bans + shard.bans.len() > MAX_BANS {
            self.full = true;
            return Update::Nothing;
        }
        let bans = shard.bans.len();
        for listed in &mut shard.bans {
            match self.jails.get(&listed.jail) {
                Some(jail) => listed.jail = jail.clone(),
                None => drop(self.jails.insert(listed.jail.clone())),
            }
        }
        let Some(host_view) = self.host_entry(host) else { return Update::Nothing };
        if message.is_trusted() {
            host_view.unsigned.remove(&index);
        } else {
            host_view.unsigned.insert(index);
        }
        let replaced = host_view.shards.insert(index, shard);
        self.bans = self.bans + bans - replaced.map_or(0, |shard| shard.bans.len());
        Update::Shard(host.clone())
    }

    /// Records that the broker keeps a message that daemons reject on a topic of a host's snapshot.
    pub fn reject(&mut self, host: &HostName, index: u32) {
        if self.rejected.len() < MAX_HOSTS || self.rejected.contains_key(host) {
            self.rejected.entry(host.clone()).or_default().insert(index);
        }
    }

    fn cleared(&mut self, host: &HostName) -> Update {
        self.hosts
            .retain(|_, host_view| host_view.presence.is_some() || !host_view.shards.is_empty());
        Update::Cleared(host.clone())
    }

    fn host_entry(&mut self, host: &HostName) -> Option<&mut HostView> {
        if self.hosts.len() >= MAX_HOSTS && !self.hosts.contains_key(host) {
            self.full = true;
            return None;
        }
        Some(self.hosts.entry(host.clone()).or_default())
    }

    /// All hosts of which the broker keeps a message.
    #[must_use]
    pub fn hosts(&self) -> &BTreeMap<HostName, HostView> {
        &self.hosts
    }

    /// All jails that hosts announce or list bans in.
    #[must_use]
    pub fn all_jails(&self) -> BTreeSet<&Jail> {
        let announced = self.hosts.values().flat_map(HostView::jails);
        announced
            .chain(self.hosts.values().flat_map(HostView::listed).map(|(listed, _)| &listed.jail))
            .collect()
    }

    /// The indices of all topics of a host's snapshot on which the broker keeps a message.
    #[must_use]
    pub fn topics_of(&self, host: &HostName) -> BTreeSet<u32> {
        let accepted = self.hosts.get(host).into_iter().flat_map(HostView::shard_indices);
        accepted.chain(self.rejected.get(host).into_iter().flatten().copied()).collect()
    }

    /// What the broker did not deliver: a text for each part.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (host, host_view) in
            self.hosts.iter().filter(|(_, host_view)| host_view.missing_shards() > 0)
        {
            let (absent, count) = (host_view.missing_shards(), host_view.count());
            missing.push(format!("{absent} of {count} parts of {host}'s snapshot"));
        }
        if self.hosts.is_empty() {
            // RabbitMQ keeps retained messages, but delivers none for a wildcard.
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

    /// All bans at `now`, in seconds since 1970: one for each address and jail, the newest last.
    #[must_use]
    pub fn banned(&self, now: i64) -> Vec<BanSummary> {
        let fleet_unbans = self.fleet_unbans();
        let mut all: Vec<BanSummary> = Vec::with_capacity(self.bans);
        for (host, host_view) in &self.hosts {
            for (listed, shard) in host_view.listed() {
                let ban = Ban { start: listed.start, bantime: listed.bantime };
                let is_held = is_held(ban, now, &self.timing);
                if !is_held || self.void(listed, shard, &fleet_unbans).is_some() {
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
        all.dedup_by(|other, first| first.merge(other));
        all.sort_by_key(|banned| banned.since);
        all
    }

    /// The bans of an address that are still listed, but void.
    #[must_use]
    pub fn voids(&self, address: Address) -> Vec<VoidedBan> {
        let fleet_unbans = self.fleet_unbans();
        let mut voids = Vec::new();
        for (host, host_view) in &self.hosts {
            for (listed, shard) in
                host_view.listed().filter(|(listed, _)| listed.address == address)
            {
                if let Some(fleet_unban) = self.void(listed, shard, &fleet_unbans) {
                    let (jail, id) = (listed.jail.clone(), fleet_unban.id.clone());
                    voids.push(VoidedBan { address, jail, host: host.clone(), id });
                }
            }
        }
        voids
    }

    /// The fleet unban that voids a ban, if one does (R17).
    fn void<'a>(
        &self,
        listed: &ShardEntry,
        shard: &Shard,
        fleet_unbans: &BTreeMap<Address, Vec<&'a FleetUnban>>,
    ) -> Option<&'a FleetUnban> {
        let of_address = fleet_unbans.get(&listed.address).into_iter().flatten().copied();
        let mut of_jail = of_address.filter(|fleet_unban| fleet_unban.scope.covers(&listed.jail));
        of_jail.find(|FleetUnban { id, .. }| {
            !repeats(shard, listed, id) && !is_outlived(id, listed.start, &self.timing)
        })
    }

    /// The fleet unbans in all trusted shards, by address.
    fn fleet_unbans(&self) -> BTreeMap<Address, Vec<&FleetUnban>> {
        let mut fleet_unbans: BTreeMap<Address, Vec<&FleetUnban>> = BTreeMap::new();
        let shards = self.hosts.values().flat_map(HostView::trusted);
        for fleet_unban in shards.flat_map(|shard| &shard.unbans) {
            fleet_unbans.entry(fleet_unban.address).or_default().push(fleet_unban);
        }
        fleet_unbans
    }
}

/// Whether the shard of a ban repeats a fleet unban of that ban: then the ban is newer than the unban.
fn repeats(shard: &Shard, listed: &ShardEntry, id: &UnbanId) -> bool {
    shard.unbans.iter().any(|fleet_unban| {
        fleet_unban.id == *id
            && fleet_unban.address == listed.address
            && fleet_unban.scope.covers(&listed.jail)
    })
}

impl BanSummary {
    /// All hosts that detected the ban and still hold it.
    pub fn origins(&self) -> impl Iterator<Item = &HostName> {
        [&self.origin].into_iter().chain(&self.also)
    }

    /// Whether a host detected the ban and still holds it.
    #[must_use]
    pub fn is_detected_by(&self, host: &HostName) -> bool {
        self.origins().any(|origin| origin == host)
    }

    /// The order that puts all origins of a ban together, the first one first.
    fn order(&self) -> (Address, &Jail, i64, &HostName) {
        (self.address, &self.jail, self.since, &self.origin)
    }

    /// Adds another origin's ban. Returns false if that ban is of another address or jail.
    fn merge(&mut self, other: &Self) -> bool {
        let is_same = (self.address, &self.jail) == (other.address, &other.jail);
        if is_same {
            self.until = self.until.max(other.until);
            self.also.push(other.origin.clone());
            self.also.sort();
        }
        is_same
    }
}

#[cfg(test)]
impl FleetView {
    /// Applies a message that arrives some seconds after the stamps in the tests.
    pub fn apply_raw(&mut self, name: &str, payload: &[u8]) -> Update {
        const NOW: i64 = 1_795_342_600_000;
        let admitted = crate::guard::gate::tests::admit(name, payload);
        admitted.map_or(Update::Nothing, |message| self.apply(&message, NOW))
    }
}

#[cfg(test)]
mod tests;
