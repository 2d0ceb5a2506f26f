//! One host in the view of the fleet: its presence, its snapshot, and the questions that commands have about them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Address, Jail, UnbanId};
use crate::wire::{HostState, Presence, Shard, ShardEntry, ShardId};

/// The retained messages of one host.
#[derive(Debug, Default)]
pub struct HostView {
    pub(super) presence: Option<Presence>,
    /// By the last level of their topics.
    pub(super) shards: BTreeMap<u32, Shard>,
    /// The indices of shards without a signature, in a fleet that has a signing key.
    pub(super) unsigned: BTreeSet<u32>,
}

impl HostView {
    /// The last presence.
    #[must_use]
    pub fn presence(&self) -> Option<&Presence> {
        self.presence.as_ref()
    }

    /// Whether the host's daemon is connected.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.presence.as_ref().is_some_and(|presence| presence.state == HostState::Online)
    }

    /// The jails that the host shares.
    #[must_use]
    pub fn jails(&self) -> &BTreeSet<Jail> {
        static NONE: BTreeSet<Jail> = BTreeSet::new();
        self.presence.as_ref().map_or(&NONE, |presence| &presence.jails)
    }

    /// The indices of the shards that have arrived.
    pub fn shard_indices(&self) -> impl Iterator<Item = u32> {
        self.shards.keys().copied()
    }

    /// The stamp of the newest shard, in milliseconds since 1970 by the host's clock.
    #[must_use]
    pub fn stamp(&self) -> Option<i64> {
        self.newest().map(|shard| shard.stamp)
    }

    /// The number of shards of the snapshot; 0 without a snapshot.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.newest().map_or(0, |shard| shard.id.count())
    }

    /// The number of shards that have not arrived.
    #[must_use]
    pub fn missing_shards(&self) -> u32 {
        let count = self.count();
        let arrived = self.shards.values().filter(|shard| shard.id.count() == count).count();
        count.saturating_sub(u32::try_from(arrived).unwrap_or(u32::MAX))
    }

    /// The number of bans in the snapshot.
    #[must_use]
    pub fn bans(&self) -> usize {
        self.listed().count()
    }

    /// Whether the snapshot repeats a fleet unban of an address, which confirms that the host applied the unban.
    #[must_use]
    pub fn repeats(&self, address: Address, id: &UnbanId) -> bool {
        self.covering(address).is_some_and(|shard| {
            shard
                .unbans
                .iter()
                .any(|fleet_unban| fleet_unban.address == address && fleet_unban.id == *id)
        })
    }

    /// Whether the snapshot lists an address in a jail.
    #[must_use]
    pub fn lists(&self, jail: &Jail, address: Address) -> bool {
        self.covering(address).is_some_and(|shard| {
            shard.bans.iter().any(|listed| listed.address == address && listed.jail == *jail)
        })
    }

    /// The jails in which the snapshot lists one of these addresses, and those in which it lists others.
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

    pub(super) fn trusted(&self) -> impl Iterator<Item = &Shard> {
        let shards = self.shards.iter().filter(|(index, _)| !self.unsigned.contains(index));
        shards.map(|(_, shard)| shard)
    }

    fn newest(&self) -> Option<&Shard> {
        self.shards.values().max_by_key(|shard| shard.stamp)
    }

    /// The newest shard that covers an address: it wins over all others, also those of another layout.
    fn covering(&self, address: Address) -> Option<&Shard> {
        let counts: BTreeSet<u32> = self.shards.values().map(|shard| shard.id.count()).collect();
        counts
            .into_iter()
            .filter_map(|count| self.shards.get(&ShardId::of(address, count).index()))
            .filter(|shard| shard.id.covers(address))
            .max_by_key(|shard| shard.stamp)
    }

    /// All bans of the snapshot, each with its shard. Shards that a newer one supersedes do not count.
    pub(super) fn listed(&self) -> impl Iterator<Item = (&ShardEntry, &Shard)> {
        let count = self.count();
        let has_one_layout = self.shards.values().all(|shard| shard.id.count() == count);
        let all =
            self.shards.values().flat_map(|shard| shard.bans.iter().map(move |ban| (ban, shard)));
        all.filter(move |(listed, shard)| {
            has_one_layout
                || self.covering(listed.address).is_some_and(|newest| newest.id == shard.id)
        })
    }
}
