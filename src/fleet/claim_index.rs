//! The addresses that one peer has claims on, ordered so that each shard, for every number of shards, is one range. So
//! finding the claims of a shard does not search the others (R21).

use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Included, Unbounded};

use super::BanKey;
use crate::model::{Address, Jail};
use crate::wire::ShardId;

/// The position of a key: the lowest 16 bits of its address's hash, reversed, so that addresses whose hashes
/// agree in the lowest bits are neighbours (a shard fixes at most 9 of them); then the key itself. The start
/// of a range has no key.
pub(super) type Position = (u16, Option<(Address, Jail)>);

/// The keys, in the order of their positions.
#[derive(Debug, Default)]
pub(super) struct ClaimIndex(BTreeSet<Position>);

impl ClaimIndex {
    pub(super) fn insert(&mut self, key: &BanKey) {
        self.0.insert(position(key));
    }

    pub(super) fn remove(&mut self, key: &BanKey) {
        self.0.remove(&position(key));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At most `max` keys, in the order of the index.
    pub(super) fn first(&self, max: usize) -> Vec<BanKey> {
        self.0.iter().take(max).filter_map(key).collect()
    }

    /// At most `max` keys of a shard that come after a position, and the position of the last of them.
    pub(super) fn after(
        &self,
        id: ShardId,
        last: Option<&Position>,
        max: usize,
    ) -> Option<(Vec<BanKey>, Position)> {
        let first = reversed(u64::from(id.index()));
        let size = u16::try_from(0x1_0000 / id.count() - 1).unwrap_or(u16::MAX);
        let begin = last.cloned().map_or(Included((first, None)), Excluded);
        let range = self.0.range((begin, Unbounded));
        let of_shard = range.take_while(|at| at.0 <= first.saturating_add(size)).take(max);
        let (mut keys, mut end) = (Vec::new(), None);
        for at in of_shard {
            keys.extend(key(at));
            end = Some(at);
        }
        end.map(|end| (keys, end.clone()))
    }
}

fn reversed(hash: u64) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "the lowest bits choose the shard")]
    let low = hash as u16;
    low.reverse_bits()
}

fn position(key: &BanKey) -> Position {
    (reversed(key.1.hash()), Some((key.1, key.0.clone())))
}

fn key(position: &Position) -> Option<BanKey> {
    position.1.clone().map(|(address, jail)| (jail, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_is_found_whatever_its_size() {
        let mut index = ClaimIndex::default();
        let keys: Vec<BanKey> = (0..3_000u32)
            .map(|n| {
                let ip = std::net::Ipv4Addr::from(0xc612_0000 + n / 2).to_string();
                let jail = if n % 2 == 0 { "sshd" } else { "web" };
                (Jail::new(jail).unwrap(), Address::new(&ip).unwrap())
            })
            .collect();
        for key in &keys {
            index.insert(key);
        }
        assert_eq!(index.len(), 3_000);
        for shard_count in [1, 2, 16, 512] {
            let mut found = 0;
            for shard in 0..shard_count {
                let id = ShardId::new(shard, shard_count).unwrap();
                let (mut last, mut of_shard) = (None, BTreeSet::new());
                while let Some((keys, end)) = index.after(id, last.as_ref(), 7) {
                    assert!(keys.len() <= 7);
                    of_shard.extend(keys);
                    last = Some(end);
                }
                let expected: BTreeSet<BanKey> =
                    keys.iter().filter(|key| id.covers(key.1)).cloned().collect();
                assert_eq!(of_shard, expected, "{shard} of {shard_count}");
                found += of_shard.len();
            }
            assert_eq!(found, 3_000);
        }
        for key in &keys {
            index.remove(key);
        }
        assert!(index.is_empty());
    }
}
