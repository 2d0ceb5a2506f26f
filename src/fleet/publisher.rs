//! Publishes the snapshot of this host in shards: changed shards two seconds after a change, all shards on every
//! connection and every 5 to 10 minutes, and at a limited rate, so that a large snapshot delays no event.

use std::collections::{BTreeMap, BTreeSet};

use super::{BanKey, Timing, to_secs};
use crate::model::{Address, Fnv1a64, HostName};
use crate::wire::{Ban, FleetUnban, MAX_SHARDS, Shard, ShardEntry, ShardId};

/// The target size of a shard, in bytes. Brokers and their queues handle this size well.
pub(crate) const SHARD_BYTES: usize = 16 * 1024;
/// About how many bytes one ban or fleet unban takes in JSON, without its jail or id.
const ENTRY_BYTES: usize = 40;

/// A retained message to publish: a shard, or an empty message that clears an obsolete shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedShard {
    /// The last level of the topic.
    pub index: u32,
    /// `None` clears the retained message.
    pub content: Option<Shard>,
}

/// The publishing state of this host's snapshot.
#[derive(Debug)]
pub(super) struct SnapshotPublisher {
    shard_count: u32,
    /// The stamp with which each shard was published.
    published: BTreeMap<u32, i64>,
    /// Shards whose bans changed, by index, and when; in milliseconds.
    changed: BTreeMap<u32, i64>,
    /// Shards of which only fleet unbans changed, by index, and when; in milliseconds.
    changed_tombstones: BTreeMap<u32, i64>,
    /// Shards to publish again although they did not change.
    republish: BTreeSet<u32>,
    /// Indexes at which the broker retains a shard of a larger layout.
    obsolete: BTreeSet<u32>,
    /// When the whole snapshot is due again, in milliseconds.
    refresh: i64,
    /// When the connection came up, in milliseconds.
    connected: i64,
    /// The bytes that the rate limit allows, and the time in milliseconds at which this number was computed.
    budget: (usize, i64),
    /// When a stale echo last caused a republication, in milliseconds.
    last_republish: i64,
}

impl SnapshotPublisher {
    pub(super) fn new() -> Self {
        Self {
            shard_count: 1,
            published: BTreeMap::new(),
            changed: BTreeMap::new(),
            changed_tombstones: BTreeMap::new(),
            republish: BTreeSet::new(),
            obsolete: BTreeSet::new(),
            refresh: 0,
            connected: 0,
            budget: (0, 0),
            last_republish: 0,
        }
    }

    /// Schedules the shard of an address whose local ban changed.
    pub(super) fn mark_dirty(&mut self, address: Address, now: i64) {
        self.changed.entry(ShardId::of(address, self.shard_count).index()).or_insert(now);
    }

    /// Schedules the shard of an address whose tombstones changed, after shards with bans: a flood of fleet unbans must
    /// not delay a ban whose event was lost (R22).
    pub(super) fn mark_tombstone_dirty(&mut self, address: Address, now: i64) {
        self.changed_tombstones
            .entry(ShardId::of(address, self.shard_count).index())
            .or_insert(now);
    }

    /// Schedules all shards: the broker may have lost them while this host was disconnected.
    pub(super) fn on_connected(&mut self, host: &HostName, now: i64, timing: &Timing) {
        self.connected = now;
        self.refresh(host, now, timing);
    }

    fn refresh(&mut self, host: &HostName, now: i64, timing: &Timing) {
        self.republish.extend(0..self.shard_count);
        self.refresh = now + timing.refresh_after(host, now);
    }

    /// Moves deadlines closer after the clock was set back, so that nothing waits for a time far ahead.
    pub(super) fn on_clock_rollback(&mut self, now: i64) {
        (self.budget.1, self.connected, self.last_republish) = (now, 0, 0);
        self.refresh = now;
        for since in self.changed.values_mut().chain(self.changed_tombstones.values_mut()) {
            *since = now.min(*since);
        }
    }

    /// Whether the periodic republication is due.
    pub(super) fn is_refreshed(&self, now: i64) -> bool {
        now >= self.refresh
    }

    /// Handles an echo of an own shard; `None` if another client cleared it. Returns whether the echo is stale or
    /// missing, and so causes a republication of all shards.
    pub(super) fn on_echo(
        &mut self,
        number: u32,
        shard: Option<(ShardId, i64)>,
        now: i64,
        timing: &Timing,
    ) -> bool {
        if number >= self.shard_count {
            if shard.is_some() {
                self.obsolete.insert(number);
            }
            return false;
        }
        let last = self.published.get(&number).copied();
        let old = match shard {
            None => last.is_some(),
            Some((id, stamp)) => {
                id.count() != self.shard_count || last.is_some_and(|last| stamp < last)
            }
        };
        if !old {
            return false;
        }
        // Rate limit: a second stale echo within the cooldown causes a republication after it.
        let free = self.connected.max(self.last_republish) + timing.republish_cooldown;
        if now < free {
            self.refresh = self.refresh.min(free);
            return false;
        }
        self.last_republish = now;
        self.republish.extend(0..self.shard_count);
        true
    }

    /// Whether the broker may still deliver retained messages from before this connection.
    pub(super) fn is_in_replay_window(&self, now: i64, timing: &Timing) -> bool {
        now - self.connected < timing.republish_cooldown
    }

    /// Schedules all shards, because peers know a greater stamp of this host.
    pub(super) fn invalidate_all(&mut self) {
        self.republish.extend(0..self.shard_count);
    }

    /// Schedules all shards again, with smaller stamps than before, because the published stamps were in the future.
    pub(super) fn republish_all(&mut self) {
        self.published.clear();
        self.invalidate_all();
    }

    /// The shards to publish now. The stamp `as_of` was taken before `own` and `unbans` were read.
    pub(super) fn due_shards(
        &mut self,
        host: &HostName,
        own: impl Fn() -> Vec<(BanKey, Ban)>,
        unbans: impl Fn() -> Vec<FleetUnban>,
        as_of: i64,
        now: i64,
        timing: &Timing,
    ) -> Vec<RetainedShard> {
        if self.is_refreshed(now) {
            self.refresh(host, now, timing);
        }
        // If an index already has a published shard with this stamp, that index waits for the next scan.
        let has_republish = self.republish.iter().any(|index| !self.is_published(*index, as_of));
        let has_changed = ripe(&self.changed, now, timing)
            .chain(ripe(&self.changed_tombstones, now, timing))
            .next()
            .is_some();
        if !(has_changed || has_republish || !self.obsolete.is_empty())
            || !self.has_budget(now, timing)
        {
            return Vec::new();
        }
        let (own, unbans) = (own(), unbans());
        self.reshard(&own, &unbans);
        let mut due = Vec::new();
        let (mut bans, mut fleet_unbans) = self.partition(own, unbans);
        // Changed bans first, then shards with bans, then the rest, as far as the budget allows.
        let unbans = ripe(&self.changed_tombstones, now, timing);
        let rest = unbans.chain(self.republish.iter().copied());
        let (banning, others): (Vec<u32>, Vec<u32>) = rest.partition(|n| bans.contains_key(n));
        let changed = ripe(&self.changed, now, timing);
        let numbers: Vec<u32> = changed.chain(banning).chain(others).collect();
        for number in numbers {
            let Ok(id) = ShardId::new(number, self.shard_count) else { continue };
            if self.budget.0 == 0 {
                break;
            }
            if self.is_published(number, as_of) {
                continue; // no finished scan since: equal stamps would be ignored
            }
            let bans = bans.remove(&number).unwrap_or_default();
            let unbans = fleet_unbans.remove(&number).unwrap_or_default();
            let size = (bans.len() + unbans.len() + 3) * ENTRY_BYTES;
            self.budget.0 = self.budget.0.saturating_sub(size);
            self.changed.remove(&number);
            self.changed_tombstones.remove(&number);
            self.republish.remove(&number);
            self.published.insert(number, as_of);
            let time = to_secs(now);
            let shard = Shard { host: host.clone(), stamp: as_of, time, id, bans, unbans };
            due.push(RetainedShard { index: number, content: Some(shard) });
        }
        // Clear obsolete shards only after all new ones, so that receivers always have a full snapshot.
        if self.republish.is_empty() {
            let stale =
                std::mem::take(&mut self.obsolete).into_iter().filter(|n| *n >= self.shard_count);
            due.extend(stale.map(|number| RetainedShard { index: number, content: None }));
        }
        due
    }

    /// Whether a shard was published with a stamp, or with a greater one.
    fn is_published(&self, index: u32, stamp: i64) -> bool {
        self.published.get(&index).is_some_and(|last| *last >= stamp)
    }

    /// Bans and fleet unbans by the index of their shard.
    fn partition(&self, own: Vec<(BanKey, Ban)>, unbans: Vec<FleetUnban>) -> ShardContents {
        let mut contents = ShardContents::default();
        for ((jail, address), ban) in own {
            let listed = ShardEntry { jail, address, start: ban.start, bantime: ban.bantime };
            let index = ShardId::of(address, self.shard_count).index();
            contents.0.entry(index).or_default().push(listed);
        }
        for fleet_unban in unbans {
            let index = ShardId::of(fleet_unban.address, self.shard_count).index();
            contents.1.entry(index).or_default().push(fleet_unban);
        }
        contents
    }

    /// Whether the rate limit allows a shard now: a token bucket of `publish_rate` and `publish_burst`.
    fn has_budget(&mut self, now: i64, timing: &Timing) -> bool {
        let (budget, since) = self.budget;
        let earned = usize::try_from((now - since).max(0))
            .unwrap_or_default()
            .saturating_mul(timing.publish_rate)
            / 1000;
        self.budget = (budget.saturating_add(earned).min(timing.publish_burst), now);
        self.budget.0 >= timing.publish_burst.min(SHARD_BYTES)
    }

    /// Chooses the number of shards so that each stays below its size. The number falls only if the snapshot shrank to
    /// less than half, so that it does not alternate.
    fn reshard(&mut self, own: &[(BanKey, Ban)], unbans: &[FleetUnban]) {
        let bans: usize = own.iter().map(|(key, _)| key.0.as_str().len() + ENTRY_BYTES).sum();
        let size =
            bans + unbans.iter().map(|unban| unban.id.as_str().len() + ENTRY_BYTES).sum::<usize>();
        let shard_count =
            shard_count_for(size).max(self.shard_count.min(shard_count_for(size * 2)));
        if shard_count != self.shard_count {
            self.obsolete.extend(self.published.keys().filter(|number| **number >= shard_count));
            self.published.retain(|number, _| *number < shard_count);
            self.changed.clear();
            self.changed_tombstones.clear();
            self.republish = (0..shard_count).collect();
            self.shard_count = shard_count;
        }
    }
}

/// The bans and the fleet unbans of each shard, by its index.
type ShardContents = (BTreeMap<u32, Vec<ShardEntry>>, BTreeMap<u32, Vec<FleetUnban>>);

/// The shards whose change is old enough to be published.
fn ripe<'a>(
    changed: &'a BTreeMap<u32, i64>,
    now: i64,
    timing: &Timing,
) -> impl Iterator<Item = u32> + use<'a> {
    let delay = timing.publish_delay;
    changed.iter().filter(move |(_, since)| now - **since >= delay).map(|(index, _)| *index)
}

/// How many shards a snapshot of so many bytes needs. Addresses do not spread evenly, so a shard is three quarters full
/// on average.
fn shard_count_for(size: usize) -> u32 {
    let shard_count = size.div_ceil(SHARD_BYTES * 3 / 4).max(1).next_power_of_two();
    u32::try_from(shard_count).unwrap_or(MAX_SHARDS).min(MAX_SHARDS)
}

impl Timing {
    /// When the snapshot is due again, in milliseconds from now. A hash spreads it, so that the hosts of a fleet do not
    /// publish at the same moment.
    fn refresh_after(&self, host: &HostName, now: i64) -> i64 {
        use std::fmt::Write as _;
        let mut hash = Fnv1a64::default();
        let _ = write!(hash, "{host} {now}");
        let spread =
            i64::try_from(hash.value() >> 33).unwrap_or_default() % self.refresh_interval.max(1);
        self.refresh_interval + spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Jail;

    struct PublisherHarness {
        snapshots: SnapshotPublisher,
        own: Vec<(BanKey, Ban)>,
        timing: Timing,
    }

    impl PublisherHarness {
        fn new() -> Self {
            let mut it = Self {
                snapshots: SnapshotPublisher::new(),
                own: Vec::new(),
                timing: Timing::default(),
            };
            it.snapshots.on_connected(&me(), 0, &it.timing);
            it
        }

        fn bans(&mut self, count: u32, now: i64) {
            let jail = Jail::new("sshd").unwrap();
            self.own = (0..count)
                .map(|n| ((jail.clone(), address(FIRST + n)), Ban { start: 5, bantime: 600 }))
                .collect();
            self.snapshots.mark_dirty(address(FIRST + count), now);
        }

        /// The publications: index, number of shards and of bans; `None` for a cleared one.
        fn due(&mut self, now: i64) -> Vec<(u32, Option<(u32, usize)>)> {
            let Self { snapshots, own, timing } = self;
            let due = snapshots.due_shards(&me(), || own.clone(), Vec::new, now, now, timing);
            due.into_iter()
                .map(|due| {
                    (due.index, due.content.map(|shard| (shard.id.count(), shard.bans.len())))
                })
                .collect()
        }

        /// An echo of shard 0 arrives; returns whether it causes a republication.
        fn receive(&mut self, shard: Option<(ShardId, i64)>, now: i64) -> bool {
            self.snapshots.on_echo(0, shard, now, &self.timing)
        }
    }

    /// The first banned address, as a number: 198.18.0.0.
    const FIRST: u32 = 0xc612_0000;

    fn me() -> HostName {
        HostName::new("web1").unwrap()
    }

    fn address(number: u32) -> Address {
        Address::new(&std::net::Ipv4Addr::from(number).to_string()).unwrap()
    }

    #[test]
    fn snapshot_is_published_on_connection_after_a_change_and_periodically() {
        let mut it = PublisherHarness::new();
        assert_eq!(it.due(60_000), [(0, Some((1, 0)))], "on connection");
        assert_eq!(it.due(61_000), []);
        it.bans(3, 70_000);
        assert_eq!(it.due(71_999), []);
        assert_eq!(it.due(72_000), [(0, Some((1, 3)))], "two seconds after a change");
        let refresh = (80..1000).map(|second| second * 1000).find(|now| !it.due(*now).is_empty());
        assert!((300_000..=600_000).contains(&refresh.unwrap()), "{refresh:?}");
        it.snapshots.on_connected(&me(), 700_000, &it.timing);
        assert_eq!(it.due(700_000), [(0, Some((1, 3)))]);
    }

    #[test]
    fn many_bans_are_published_at_a_limited_rate_and_obsolete_shards_are_cleared() {
        let mut it = PublisherHarness::new();
        it.bans(5_000, 0);
        let mut seen = BTreeMap::new();
        seen.extend(it.due(20_000));
        assert!((5..=12).contains(&seen.len()), "{} at once", seen.len());
        seen.extend((21..26).flat_map(|second| it.due(second * 1000)));
        assert!((8..=17).contains(&seen.len()), "{} after five seconds", seen.len());
        seen.extend((26..200).flat_map(|second| it.due(second * 1000)));
        assert_eq!(seen.len(), 32);
        assert_eq!(seen.values().map(|shard| shard.unwrap().1).sum::<usize>(), 5_000);
        assert!(
            seen.values().all(|shard| shard.unwrap().0 == 32 && shard.unwrap().1 < 16_384 / 45)
        );
        // Somewhat fewer bans keep the layout; far fewer change it, and obsolete shards are cleared last.
        it.bans(3_000, 200_000);
        assert!(it.due(203_000).iter().all(|(_, shard)| shard.unwrap().0 == 32));
        it.bans(10, 210_000);
        let due = it.due(240_000);
        assert_eq!(due[0], (0, Some((1, 10))));
        assert_eq!(due.len(), 32);
        assert!(due[1..].iter().all(|(_, shard)| shard.is_none()));
    }

    #[test]
    fn shard_with_a_changed_ban_precedes_those_whose_fleet_unbans_changed() {
        let mut it = PublisherHarness::new();
        it.bans(5_000, 0);
        for second in 20..400 {
            it.due(second * 1000);
        }
        for n in 0x0b00_0000..0x0b00_2000 {
            it.snapshots.mark_tombstone_dirty(address(n), 400_000);
        }
        let first = it.due(402_000);
        assert!((5..=12).contains(&first.len()), "{} at once", first.len());
        let mine = address(FIRST);
        let id = ShardId::of(mine, it.snapshots.shard_count);
        it.snapshots.mark_dirty(mine, 402_000);
        let next = (404..420).map(|second| it.due(second * 1000)).find(|due| !due.is_empty());
        let numbers: Vec<u32> = next.unwrap().iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers[0], id.index(), "{numbers:?}");
        let all: BTreeSet<u32> =
            (420..600).flat_map(|s| it.due(s * 1000)).map(|(number, _)| number).collect();
        assert!(all.len() + first.len() + numbers.len() >= 32, "the others follow");
    }

    #[test]
    fn stale_echo_causes_a_rate_limited_republication() {
        let mut it = PublisherHarness::new();
        it.due(60_000);
        let id = ShardId::new(0, 1).unwrap();
        assert!(!it.receive(Some((id, 60_000)), 61_000), "the same");
        assert!(it.receive(Some((id, 59_000)), 62_000), "an older one");
        assert_eq!(it.due(63_000).len(), 1);
        assert!(!it.receive(Some((id, 59_000)), 64_000), "rate-limited");
        assert_eq!((it.due(66_000).len(), it.due(67_000).len()), (0, 1), "and answered later");
        assert!(it.receive(None, 68_000), "another client cleared it");
        assert_eq!(it.due(69_000).len(), 1);
        let larger = ShardId::new(3, 4).unwrap();
        assert!(!it.snapshots.on_echo(3, Some((larger, 1)), 70_000, &it.timing));
        assert_eq!(it.due(71_000), [(3, None)], "of a larger snapshot");
    }
}
