//! **Snapshots**: which parts of what this host holds are to be published when. Changed parts a moment after
//! a change; all of them on every connection and every five to ten minutes; and never so many that they
//! crowd a link.

use std::collections::{BTreeMap, BTreeSet};

use super::{BanKey, Timing, secs};
use crate::wire::{
    Address, Ban, FleetUnban, Fnv1a64, HostName, MAX_SHARDS, Shard, ShardEntry, ShardId,
};

/// About how many bytes a part may have, and one ban or fleet unban takes with its names.
pub(crate) const SHARD_BYTES: usize = 16 * 1024;
const ENTRY: usize = 40;

/// What is to be published on a branch: a part, or nothing where a larger snapshot had one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedShard {
    /// The last level of the topic.
    pub number: u32,
    /// `None` clears what is retained there.
    pub part: Option<Shard>,
}

/// What this host has published.
#[derive(Debug)]
pub(super) struct SnapshotPublisher {
    parts: u32,
    /// The stamp of each part as it was published.
    published: BTreeMap<u32, i64>,
    /// Parts whose bans changed, by their number and when they did; in milliseconds.
    changed: BTreeMap<u32, i64>,
    /// Parts of which only fleet unbans changed, likewise.
    changed_unbans: BTreeMap<u32, i64>,
    /// Parts to be published again although they did not change.
    again: BTreeSet<u32>,
    /// Numbers that hold a part of a larger snapshot.
    stale: BTreeSet<u32>,
    refresh: i64,
    /// When the connection came up.
    connected: i64,
    /// How many bytes may be sent now, since when.
    budget: (usize, i64),
    /// When old parts of its own made this host publish anew.
    echoed: i64,
}

impl SnapshotPublisher {
    pub(super) fn new() -> Self {
        Self {
            parts: 1,
            published: BTreeMap::new(),
            changed: BTreeMap::new(),
            changed_unbans: BTreeMap::new(),
            again: BTreeSet::new(),
            stale: BTreeSet::new(),
            refresh: 0,
            connected: 0,
            budget: (0, 0),
            echoed: 0,
        }
    }

    /// This host's ban of an address changed.
    pub(super) fn touch(&mut self, address: Address, now: i64) {
        self.changed.entry(ShardId::of(address, self.parts).index()).or_insert(now);
    }

    /// A fleet unban of an address changed. Its part gives way to those with bans: a flood of fleet unbans must
    /// not hold up a ban whose event was lost.
    pub(super) fn touch_unban(&mut self, address: Address, now: i64) {
        self.changed_unbans.entry(ShardId::of(address, self.parts).index()).or_insert(now);
    }

    /// **All on every connection.** What the broker has, nobody knows.
    pub(super) fn connected(&mut self, host: &HostName, now: i64, pace: &Timing) {
        self.connected = now;
        self.refresh(host, now, pace);
    }

    fn refresh(&mut self, host: &HostName, now: i64, pace: &Timing) {
        self.again.extend(0..self.parts);
        self.refresh = now + pace.refresh_after(host, now);
    }

    /// The clock was set back: nothing waits for a time that lies far ahead now.
    pub(super) fn set_back(&mut self, now: i64) {
        (self.budget.1, self.connected, self.echoed) = (now, 0, 0);
        self.refresh = now;
        for since in self.changed.values_mut().chain(self.changed_unbans.values_mut()) {
            *since = now.min(*since);
        }
    }

    /// Whether it is time to publish all anew, whatever the broker still has.
    pub(super) fn is_refreshed(&self, now: i64) -> bool {
        now >= self.refresh
    }

    /// One of this host's own parts came back: `None` where somebody cleared it. Answers whether it was
    /// none that this host published last, and everything is published anew for it.
    pub(super) fn heard(
        &mut self,
        number: u32,
        part: Option<(ShardId, i64)>,
        now: i64,
        pace: &Timing,
    ) -> bool {
        if number >= self.parts {
            if part.is_some() {
                self.stale.insert(number);
            }
            return false;
        }
        let last = self.published.get(&number).copied();
        let old = match part {
            None => last.is_some(),
            Some((slice, stamp)) => {
                slice.count() != self.parts || last.is_some_and(|last| stamp < last)
            }
        };
        if !old {
            return false;
        }
        // Answered now or a little later: whoever comes back twice is not answered twice at once.
        let free = self.connected.max(self.echoed) + pace.echo;
        if now < free {
            self.refresh = self.refresh.min(free);
            return false;
        }
        self.echoed = now;
        self.again.extend(0..self.parts);
        true
    }

    /// Whether the broker still hands out what was there before, and all that is new is on its way.
    pub(super) fn just_connected(&self, now: i64, pace: &Timing) -> bool {
        now - self.connected < pace.echo
    }

    /// This host said greater stamps before: all that it says is said again with greater ones.
    pub(super) fn outdated(&mut self) {
        self.again.extend(0..self.parts);
    }

    /// What was published had stamps of the future: all is published again, with smaller ones.
    pub(super) fn republish_all(&mut self) {
        self.published.clear();
        self.outdated();
    }

    /// What is to be published now. `own` and `unbans` were read after the stamp `as_of` was taken.
    pub(super) fn due(
        &mut self,
        host: &HostName,
        own: impl Fn() -> Vec<(BanKey, Ban)>,
        unbans: impl Fn() -> Vec<FleetUnban>,
        as_of: i64,
        now: i64,
        pace: &Timing,
    ) -> Vec<RetainedShard> {
        if self.is_refreshed(now) {
            self.refresh(host, now, pace);
        }
        let ripe = |(_, since): &(&u32, &i64)| now - **since >= pace.change;
        let has_changed = self.changed.iter().chain(&self.changed_unbans).any(|one| ripe(&one));
        let fresh = |number: &u32| self.published.get(number).is_none_or(|last| *last < as_of);
        if !(has_changed || self.again.iter().any(fresh) || !self.stale.is_empty())
            || !self.has_budget(now, pace)
        {
            return Vec::new();
        }
        let (own, unbans) = (own(), unbans());
        self.resize(&own, &unbans);
        let mut due = Vec::new();
        let mut bans: BTreeMap<u32, Vec<ShardEntry>> = BTreeMap::new();
        for ((jail, address), ban) in own {
            let listed = ShardEntry { jail, address, start: ban.start, bantime: ban.bantime };
            bans.entry(ShardId::of(address, self.parts).index()).or_default().push(listed);
        }
        let mut pardons: BTreeMap<u32, Vec<FleetUnban>> = BTreeMap::new();
        for pardon in unbans {
            pardons
                .entry(ShardId::of(pardon.address, self.parts).index())
                .or_default()
                .push(pardon);
        }
        // Changed bans first, then parts with bans; the rest in its turn, as far as the budget goes.
        let changed = self.changed.iter().filter(ripe).map(|(number, _)| *number);
        let unbans = self.changed_unbans.iter().filter(ripe).map(|(number, _)| *number);
        let rest = unbans.chain(self.again.iter().copied());
        let (banning, others): (Vec<u32>, Vec<u32>) = rest.partition(|n| bans.contains_key(n));
        let numbers: Vec<u32> = changed.chain(banning).chain(others).collect();
        for number in numbers {
            let Ok(slice) = ShardId::new(number, self.parts) else { continue };
            if self.budget.0 == 0 {
                break;
            }
            if self.published.get(&number).is_some_and(|last| *last >= as_of) {
                continue; // fail2ban was not asked since
            }
            let bans = bans.remove(&number).unwrap_or_default();
            let unbans = pardons.remove(&number).unwrap_or_default();
            let size = (bans.len() + unbans.len() + 3) * ENTRY;
            self.budget.0 = self.budget.0.saturating_sub(size);
            self.changed.remove(&number);
            self.changed_unbans.remove(&number);
            self.again.remove(&number);
            self.published.insert(number, as_of);
            let time = secs(now);
            let part = Shard { host: host.clone(), stamp: as_of, time, id: slice, bans, unbans };
            due.push(RetainedShard { number, part: Some(part) });
        }
        // Only when all of the new ones are out do the old ones go.
        if self.again.is_empty() {
            let stale = std::mem::take(&mut self.stale).into_iter().filter(|n| *n >= self.parts);
            due.extend(stale.map(|number| RetainedShard { number, part: None }));
        }
        due
    }

    /// **Paced**: so many bytes a second, and a few seconds' worth at once.
    fn has_budget(&mut self, now: i64, pace: &Timing) -> bool {
        let (budget, since) = self.budget;
        let earned =
            usize::try_from((now - since).max(0)).unwrap_or_default().saturating_mul(pace.bytes)
                / 1000;
        self.budget = (budget.saturating_add(earned).min(pace.burst), now);
        self.budget.0 >= pace.burst.min(SHARD_BYTES)
    }

    /// As many parts as keep each below its size; they are made fewer only when far fewer will do.
    fn resize(&mut self, own: &[(BanKey, Ban)], unbans: &[FleetUnban]) {
        let bans: usize = own.iter().map(|(key, _)| key.0.as_str().len() + ENTRY).sum();
        let size = bans + unbans.iter().map(|unban| unban.id.as_str().len() + ENTRY).sum::<usize>();
        // Addresses do not spread evenly: three quarters on average.
        let needed = |size: usize| {
            let parts = size.div_ceil(SHARD_BYTES * 3 / 4).max(1).next_power_of_two();
            u32::try_from(parts).unwrap_or(MAX_SHARDS).min(MAX_SHARDS)
        };
        let parts =
            if needed(size) > self.parts { needed(size) } else { self.parts.min(needed(size * 2)) };
        if parts != self.parts {
            self.stale.extend(self.published.keys().filter(|number| **number >= parts));
            self.published.retain(|number, _| *number < parts);
            self.changed.clear();
            self.changed_unbans.clear();
            self.again = (0..parts).collect();
            self.parts = parts;
        }
    }
}

impl Timing {
    /// When a snapshot is published again, in milliseconds from now: spread, so that a fleet does not do
    /// it in step.
    fn refresh_after(&self, host: &HostName, now: i64) -> i64 {
        use std::fmt::Write as _;
        let mut hash = Fnv1a64::default();
        let _ = write!(hash, "{host} {now}");
        let spread = i64::try_from(hash.value() >> 33).unwrap_or_default() % self.refresh.max(1);
        self.refresh + spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Jail;

    struct Speaker {
        snapshots: SnapshotPublisher,
        own: Vec<(BanKey, Ban)>,
        pace: Timing,
    }

    impl Speaker {
        fn new() -> Self {
            let mut it = Self {
                snapshots: SnapshotPublisher::new(),
                own: Vec::new(),
                pace: Timing::default(),
            };
            it.snapshots.connected(&me(), 0, &it.pace);
            it
        }

        fn bans(&mut self, count: u32, now: i64) {
            let address =
                |n: u32| Address::new(&std::net::Ipv4Addr::from(0xc612_0000 + n).to_string());
            let jail = Jail::new("sshd").unwrap();
            self.own = (0..count)
                .map(|n| ((jail.clone(), address(n).unwrap()), Ban { start: 5, bantime: 600 }))
                .collect();
            self.snapshots.touch(address(count).unwrap(), now);
        }

        /// What is published: number, how many parts, how many bans; nothing where it is cleared.
        fn due(&mut self, now: i64) -> Vec<(u32, Option<(u32, usize)>)> {
            let own = || self.own.clone();
            let due = self.snapshots.due(&me(), own, Vec::new, now, now, &self.pace);
            let shown = |part: Shard| (part.id.count(), part.bans.len());
            due.into_iter().map(|due| (due.number, due.part.map(shown))).collect()
        }
    }

    fn me() -> HostName {
        HostName::new("web1").unwrap()
    }

    #[test]
    fn it_is_published_on_connection_after_a_change_and_now_and_then() {
        let mut it = Speaker::new();
        assert_eq!(it.due(60_000), [(0, Some((1, 0)))], "on connection");
        assert_eq!(it.due(61_000), []);
        it.bans(3, 70_000);
        assert_eq!(it.due(71_999), []);
        assert_eq!(it.due(72_000), [(0, Some((1, 3)))], "two seconds after a change");
        let refresh = (80..1000).map(|second| second * 1000).find(|now| !it.due(*now).is_empty());
        assert!((300_000..=600_000).contains(&refresh.unwrap()), "{refresh:?}");
        it.snapshots.connected(&me(), 700_000, &it.pace);
        assert_eq!(it.due(700_000), [(0, Some((1, 3)))]);
    }

    #[test]
    fn many_bans_are_many_parts_paced_and_what_is_too_many_is_cleared() {
        let mut it = Speaker::new();
        it.bans(5_000, 0);
        let mut seen = BTreeMap::new();
        seen.extend(it.due(20_000));
        assert!((5..=12).contains(&seen.len()), "{} at once", seen.len());
        seen.extend((21..26).flat_map(|second| it.due(second * 1000)));
        assert!((8..=17).contains(&seen.len()), "{} after five seconds", seen.len());
        seen.extend((26..200).flat_map(|second| it.due(second * 1000)));
        assert_eq!(seen.len(), 32);
        assert_eq!(seen.values().map(|part| part.unwrap().1).sum::<usize>(), 5_000);
        assert!(seen.values().all(|part| part.unwrap().0 == 32 && part.unwrap().1 < 16_384 / 45));
        // Twice fewer are no reason to have other parts; far fewer are, and the old ones go last.
        it.bans(3_000, 200_000);
        assert!(it.due(203_000).iter().all(|(_, part)| part.unwrap().0 == 32));
        it.bans(10, 210_000);
        let due = it.due(240_000);
        assert_eq!(due[0], (0, Some((1, 10))));
        assert_eq!(due.len(), 32);
        assert!(due[1..].iter().all(|(_, part)| part.is_none()));
    }

    #[test]
    fn part_with_a_changed_ban_precedes_those_whose_fleet_unbans_changed() {
        let mut it = Speaker::new();
        it.bans(5_000, 0);
        for second in 20..400 {
            it.due(second * 1000);
        }
        let changed = |n: u32| Address::new(&std::net::Ipv4Addr::from(n).to_string()).unwrap();
        for n in 0x0b00_0000..0x0b00_2000 {
            it.snapshots.touch_unban(changed(n), 400_000);
        }
        let first = it.due(402_000);
        assert!((5..=12).contains(&first.len()), "{} at once", first.len());
        let mine = changed(0xc612_0000);
        let slice = ShardId::of(mine, it.snapshots.parts);
        it.snapshots.touch(mine, 402_000);
        let next = (404..420).map(|second| it.due(second * 1000)).find(|due| !due.is_empty());
        let numbers: Vec<u32> = next.unwrap().iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers[0], slice.index(), "{numbers:?}");
        let all: BTreeSet<u32> =
            (420..600).flat_map(|s| it.due(s * 1000)).map(|(number, _)| number).collect();
        assert!(all.len() + first.len() + numbers.len() >= 32, "the others follow");
    }

    #[test]
    fn old_parts_of_its_own_are_answered_with_new_ones_but_not_endlessly() {
        let mut it = Speaker::new();
        it.due(60_000);
        let slice = ShardId::new(0, 1).unwrap();
        let hears = |it: &mut Speaker, part, now| it.snapshots.heard(0, part, now, &it.pace);
        assert!(!hears(&mut it, Some((slice, 60_000)), 61_000), "the same");
        assert!(hears(&mut it, Some((slice, 59_000)), 62_000), "an older one");
        assert_eq!(it.due(63_000).len(), 1);
        assert!(!hears(&mut it, Some((slice, 59_000)), 64_000), "rate-limited");
        assert_eq!((it.due(66_000).len(), it.due(67_000).len()), (0, 1), "and answered later");
        assert!(hears(&mut it, None, 68_000), "somebody cleared it");
        assert_eq!(it.due(69_000).len(), 1);
        let larger = ShardId::new(3, 4).unwrap();
        assert!(!it.snapshots.heard(3, Some((larger, 1)), 70_000, &it.pace));
        assert_eq!(it.due(71_000), [(3, None)], "of a larger snapshot");
    }
}
