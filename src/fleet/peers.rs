//! The state of each peer: the stamps of its shards, the keys of its claims, its clock lag and its last message (R21).
//! A message costs at most its size times the logarithm of the number of claims. Therefore the controller does not
//! search all claims of the peer at once for those that a shard released, but in small steps, in turns between peers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::claim_index::{ClaimIndex, Position};
use super::invariants::holds;
use super::{BanKey, to_secs};
use crate::model::{Address, HostName};
use crate::wire::{MAX_SHARDS, ShardId};

/// The most peers that are kept.
pub(super) const MAX_PEERS: usize = 1_000;

/// A peer without claims is dropped after this time without a message, in milliseconds. A daemon publishes
/// its snapshot at least every ten minutes.
const IDLE_TTL: i64 = 3_600_000;

/// A peer that is known for less than this time is dropped before others at the limit of peers; in milliseconds.
const ESTABLISHED_AGE: i64 = 600_000;

/// The state of one peer.
#[derive(Debug, Default)]
pub(super) struct PeerState {
    /// The newest stamp of each shard, without shards that newer ones cover wholly.
    shard_stamps: BTreeMap<ShardId, i64>,
    /// The addresses that the peer has claims on.
    pub(super) claims: ClaimIndex,
    /// Shards that may have released claims, and how far the first of them has been searched.
    releases: VecDeque<ShardId>,
    searched: Option<Position>,
    /// The upper bound of the peer's clock lag behind this host, by the peer's last shard, in seconds; 0 if the peer's
    /// clock is ahead.
    pub(super) clock_lag: i64,
    /// The stamp of that shard.
    clock_stamp: i64,
    /// Whether an operator removed the peer from the fleet. The peer is dropped once its claims are released.
    forgotten: bool,
    /// The greatest stamp of the peer.
    last_stamp: i64,
    /// When the first and the last message of the peer arrived, in milliseconds.
    first_seen: i64,
    last_seen: i64,
}

/// Claims that a shard may have released.
pub(super) struct Released {
    pub(super) host: HostName,
    pub(super) keys: Vec<BanKey>,
    /// The shard, once all of it has been searched.
    pub(super) finished: Option<ShardId>,
}

impl PeerState {
    /// The stamp of the newest shard that covers an address.
    pub(super) fn covering_stamp(&self, address: Address) -> Option<i64> {
        if self.shard_stamps.is_empty() {
            return None;
        }
        ShardId::all_of(address).filter_map(|id| self.shard_stamps.get(&id)).max().copied()
    }

    /// Records the stamp of a shard. Returns `false` if the shard is old.
    pub(super) fn record_shard(&mut self, id: ShardId, stamp: i64) -> bool {
        if self.shard_stamps.get(&id).is_some_and(|last| *last >= stamp) {
            return false;
        }
        self.shard_stamps.insert(id, stamp);
        // A shard that newer ones cover wholly has no effect any more.
        self.shard_stamps
            .retain(|other, last| *last >= stamp || *other == id || !id.contains(*other));
        if self.is_complete() {
            let (shard_count, oldest) = self.latest_layout();
            self.shard_stamps.retain(|other, last| other.count() == shard_count || *last > oldest);
        }
        self.forgotten = false;
        // The shard that is being searched is searched again, after the others.
        let started = usize::from(self.searched.is_some());
        if !self.releases.iter().skip(started).any(|waiting| *waiting == id) {
            self.releases.push_back(id);
        }
        true
    }

    /// Releases all current claims of the peer, because an operator removed it from the fleet.
    pub(super) fn forget(&mut self) {
        if let Ok(all) = ShardId::new(0, 1) {
            self.record_shard(all, self.last_stamp.saturating_add(1));
        }
        self.forgotten = true;
    }

    /// Whether every shard of the newest snapshot arrived.
    pub(super) fn is_complete(&self) -> bool {
        let (shard_count, _) = self.latest_layout();
        shard_count > 0 && self.stamps_of(shard_count).count() == shard_count as usize
    }

    /// The indexes of the shards to request: the shards of the newest snapshot that did not arrive. If all or none of
    /// them arrived, the result is all shards.
    pub(super) fn missing_shards(&self) -> Vec<u32> {
        let (shard_count, _) = self.latest_layout();
        let is_complete = self.is_complete();
        let indexes = (0..shard_count.max(1)).filter(|index| {
            let id = ShardId::new(*index, shard_count);
            is_complete || !id.is_ok_and(|id| self.shard_stamps.contains_key(&id))
        });
        indexes.collect()
    }

    /// The number of shards in the newest snapshot, and the stamp of the oldest of these.
    fn latest_layout(&self) -> (u32, i64) {
        let newest = self.shard_stamps.iter().max_by_key(|(_, stamp)| **stamp);
        let shard_count = newest.map_or(0, |(id, _)| id.count());
        (shard_count, self.stamps_of(shard_count).min().unwrap_or_default())
    }

    fn stamps_of(&self, shard_count: u32) -> impl Iterator<Item = i64> {
        let of_layout = self.shard_stamps.iter().filter(move |(id, _)| id.count() == shard_count);
        of_layout.map(|(_, stamp)| *stamp)
    }

    /// Derives the clock lag from the newest shard, which arrived at `now`, in milliseconds. The peer's clock showed
    /// `time` at publication, in seconds. A stamp cannot replace `time`: after a clock was set back, stamps are ahead
    /// of it.
    pub(super) fn record_clock(&mut self, stamp: i64, time: i64, now: i64) {
        if time > 0 && stamp >= self.clock_stamp {
            self.clock_stamp = stamp;
            self.clock_lag = to_secs(now).saturating_sub(time).max(0);
        }
    }

    /// Notes a message with this stamp, which arrived at `now`; both in milliseconds.
    pub(super) fn record_stamp(&mut self, stamp: i64, now: i64) {
        self.last_stamp = self.last_stamp.max(stamp);
        self.last_seen = now;
    }

    /// At most `max` claims that the next shard of the peer may have released.
    fn next_released(&mut self, host: &HostName, max: usize) -> Option<Released> {
        let id = *self.releases.front()?;
        let found = self.claims.after(id, self.searched.as_ref(), max);
        let (keys, last) = found.map_or_else(Default::default, |(keys, last)| (keys, Some(last)));
        let finished = (keys.len() < max).then_some(id);
        self.searched = if finished.is_some() { None } else { last };
        if finished.is_some() {
            self.releases.pop_front();
        }
        Some(Released { host: host.clone(), keys, finished })
    }

    /// The order in which peers are dropped at the limit, smallest first: new peers without a snapshot, then
    /// established ones, each by their last message; then peers without claims; then the others, the latest first.
    fn rank(&self, now: i64) -> (u8, i64) {
        let established = now.saturating_sub(self.first_seen) >= ESTABLISHED_AGE;
        match (self.shard_stamps.is_empty(), established, self.claims.is_empty()) {
            (true, false, _) => (0, self.last_seen),
            (true, true, _) => (1, self.last_seen),
            (false, _, true) => (2, self.last_seen),
            (false, _, false) => (3, self.first_seen.saturating_neg()),
        }
    }

    /// How much the claims of the peer count: more with a snapshot, and the longer the peer is known.
    pub(super) fn seniority(&self) -> (bool, i64) {
        (!self.shard_stamps.is_empty(), self.first_seen.saturating_neg())
    }

    fn is_idle(&self, now: i64) -> bool {
        let is_silent = now.saturating_sub(self.last_seen) >= IDLE_TTL;
        let is_empty = self.claims.is_empty() && self.releases.is_empty();
        is_empty && (is_silent || self.forgotten || self.shard_stamps.is_empty())
    }
}

/// All peers. At most [`MAX_PEERS`] are kept; a peer without state is dropped.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: BTreeMap<HostName, PeerState>,
    /// Peers with shards that have yet to be searched, each once.
    releasing: VecDeque<HostName>,
}

impl Peers {
    pub(super) fn get(&self, host: &HostName) -> Option<&PeerState> {
        self.known.get(host)
    }

    pub(super) fn get_mut(&mut self, host: &HostName) -> Option<&mut PeerState> {
        self.known.get_mut(host)
    }

    pub(super) fn contains(&self, host: &HostName) -> bool {
        self.known.contains_key(host)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&HostName, &PeerState)> {
        self.known.iter()
    }

    pub(super) fn check_invariants(&self) -> Result<(), String> {
        holds!(self.known.len() <= MAX_PEERS, "{} peers", self.known.len());
        for (host, peer) in &self.known {
            let layouts = 2 * MAX_SHARDS as usize;
            let sizes = (peer.shard_stamps.len(), peer.releases.len());
            holds!(sizes.0 < layouts && sizes.1 <= layouts, "{host}: {sizes:?} shards");
            let is_searched = peer.releases.is_empty() || self.releasing.contains(host);
            holds!(is_searched, "shards of {host} that are never searched");
        }
        let once: BTreeSet<_> = self.releasing.iter().collect();
        holds!(once.len() == self.releasing.len(), "a peer that is searched twice in turn");
        Ok(())
    }

    /// The stored copy of a host's name, so that many claims share one allocation.
    pub(super) fn intern(&self, host: &HostName) -> HostName {
        self.known.get_key_value(host).map_or(host, |(known, _)| known).clone()
    }

    /// Whether a new peer has to replace another.
    pub(super) fn is_full(&self) -> bool {
        self.known.len() >= MAX_PEERS
    }

    /// The peers to drop at the limit: at most `max` new peers without a snapshot, or else one peer.
    pub(super) fn least(&self, max: usize, now: i64) -> Vec<HostName> {
        let ranks = self.known.iter().map(|(host, peer)| (peer.rank(now), host));
        let mut ranks: Vec<_> = ranks.collect();
        ranks.sort_unstable();
        let new = ranks.iter().take(max).take_while(|((class, _), _)| *class == 0).count();
        ranks.into_iter().take(new.max(1)).map(|(_, host)| host.clone()).collect()
    }

    /// The state of a peer, new if the peer is new.
    pub(super) fn admit(&mut self, host: &HostName, now: i64) -> &mut PeerState {
        self.known.entry(host.clone()).or_insert_with(|| PeerState {
            first_seen: now,
            last_seen: now,
            ..PeerState::default()
        })
    }

    pub(super) fn remove(&mut self, host: &HostName) -> Option<PeerState> {
        self.releasing.retain(|other| other != host);
        self.known.remove(host)
    }

    /// The peer with the most claims.
    pub(super) fn largest(&self) -> Option<(&HostName, &PeerState)> {
        self.known.iter().max_by_key(|(_, peer)| peer.claims.len())
    }

    /// Queues a peer whose new shards may have released claims.
    pub(super) fn search(&mut self, host: &HostName) {
        if !self.releasing.contains(host) {
            self.releasing.push_back(host.clone());
        }
    }

    /// At most `max` claims of the next peer in turn that one of its shards may have released.
    pub(super) fn next_released(&mut self, max: usize) -> Option<Released> {
        loop {
            let host = self.releasing.pop_front()?;
            let Some(peer) = self.known.get_mut(&host) else { continue };
            let released = peer.next_released(&host, max);
            if !peer.releases.is_empty() {
                self.releasing.push_back(host);
            }
            if released.is_some() {
                return released;
            }
        }
    }

    /// Whether some shard has yet to be searched.
    pub(super) fn is_searching(&self) -> bool {
        !self.releasing.is_empty()
    }

    /// Drops peers without state.
    pub(super) fn gc(&mut self, now: i64) {
        self.known.retain(|_, peer| !peer.is_idle(now));
    }

    /// Lowers times in the future after the clock was set back.
    pub(super) fn on_clock_rollback(&mut self, now: i64) {
        for peer in self.known.values_mut() {
            peer.first_seen = peer.first_seen.min(now);
            peer.last_seen = peer.last_seen.min(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    fn shard_id(shard: u32, shard_count: u32) -> ShardId {
        ShardId::new(shard, shard_count).unwrap()
    }

    #[test]
    fn newest_shard_that_covers_an_address_counts() {
        let mut peer = PeerState::default();
        let address = Address::new("192.0.2.1").unwrap();
        let mine = ShardId::of(address, 2);
        let other = shard_id(1 - mine.index(), 2);
        assert_eq!(peer.covering_stamp(address), None);
        assert!(!peer.is_complete());
        assert_eq!(peer.missing_shards(), [0], "shard 0 has the number of shards");
        assert!(peer.record_shard(shard_id(0, 1), 10));
        assert!(!peer.record_shard(shard_id(0, 1), 10), "the same again");
        assert_eq!(peer.covering_stamp(address), Some(10));
        assert!(peer.record_shard(other, 20));
        assert_eq!(peer.covering_stamp(address), Some(10), "the other shard does not cover it");
        assert!(!peer.is_complete(), "the other half is missing");
        assert_eq!(peer.missing_shards(), [mine.index()]);
        assert!(peer.record_shard(mine, 21));
        assert_eq!(peer.covering_stamp(address), Some(21));
        assert!(peer.is_complete());
        assert_eq!(peer.missing_shards(), [0, 1], "they may have changed");
        assert_eq!(peer.shard_stamps.len(), 2, "covered shards are dropped");
        assert!(peer.record_shard(shard_id(0, 1), 30));
        assert_eq!(peer.shard_stamps.len(), 1);
    }

    #[test]
    fn clock_lag_is_that_of_the_last_shard() {
        let mut peer = PeerState::default();
        let table = [
            // stamp, the peer's clock and this host's in seconds -> lag
            (10, 100, 160, 60),
            (20, 200, 201, 1),
            (20, 201, 202, 1),
            (19, 90, 202, 1),   // an old one
            (30, 50, 203, 153), // set back
            (40, 0, 300, 153),  // not known
            (50, 310, 304, 0),  // ahead
        ];
        for (stamp, time, now, expected) in table {
            peer.record_clock(stamp, time, now * 1000);
            assert_eq!(peer.clock_lag, expected, "{stamp}");
        }
    }

    #[test]
    fn peers_without_state_give_way_before_others() {
        const NOW: i64 = 10_000_000;
        let mut peers = Peers::default();
        let key = (crate::model::Jail::new("sshd").unwrap(), Address::new("192.0.2.1").unwrap());
        // Name, first message, last message, it has a snapshot, it has a claim.
        let table = [
            ("new-silent", NOW - 5_000, NOW - 3_000, false, true),
            ("new-heard", NOW - 6_000, NOW - 1_000, false, false),
            ("old-silent", NOW - 900_000, NOW - 800_000, false, true),
            ("old-heard", NOW - 900_000, NOW - 1_000, false, true),
            ("empty", NOW - 900_000, NOW - 1_000, true, false),
            ("latest", NOW - 2_000, NOW - 1_000, true, true),
            ("first", NOW - 900_000, NOW - 500_000, true, true),
        ];
        for (name, first, last, snapshot, claim) in table {
            let peer = peers.admit(&host(name), first);
            peer.record_stamp(1, last);
            if snapshot {
                peer.record_shard(shard_id(0, 1), 1);
            }
            if claim {
                peer.claims.insert(&key);
            }
        }
        for (name, ..) in table {
            assert_eq!(peers.least(1, NOW), [host(name)]);
            peers.remove(&host(name));
        }
    }

    #[test]
    fn peers_without_state_are_dropped() {
        let key = (crate::model::Jail::new("sshd").unwrap(), Address::new("192.0.2.1").unwrap());
        // The peer has a snapshot, has a claim, milliseconds since its last message; whether the peer is kept.
        let table = [
            (false, false, 0, false),
            (false, true, 9 * IDLE_TTL, true),
            (true, false, IDLE_TTL - 1, true),
            (true, false, IDLE_TTL, false),
            (true, true, 9 * IDLE_TTL, true),
        ];
        for (snapshot, claim, silent, kept) in table {
            let mut peers = Peers::default();
            let peer = peers.admit(&host("web1"), 0);
            if claim {
                peer.claims.insert(&key);
            }
            if snapshot {
                peer.record_shard(shard_id(0, 1), 1);
                peers.search(&host("web1"));
                while peers.next_released(10).is_some() {}
            }
            peers.gc(silent);
            assert_eq!(peers.contains(&host("web1")), kept, "{snapshot} {claim} {silent}");
        }
    }
}
