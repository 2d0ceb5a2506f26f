//! Addresses that wait for a decision. fail2ban makes some 130 bans a second, and a host may claim thousands:
//! **each host's words wait in a line of their own**, and the lines are served in turn. So whoever floods the
//! fleet, or has been away, delays little but itself.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use super::Key;
use crate::wire::{Address, Host, Jail};

/// How many entries without a case may be left before they are dropped.
pub(super) const MAX_STALE: usize = 1_000;

/// The lines, by the host whose word it is; `None` for hosts that run the scripts, and where nobody claims the
/// address.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: BTreeMap<Option<Host>, VecDeque<Key>>,
    /// Whose turn it was last.
    last: Option<Host>,
    /// How many entries there are, and at most how many of them nothing is known of any more.
    count: usize,
    stale: usize,
}

impl Queue {
    /// An address waits behind what the same host said before.
    pub(super) fn push(&mut self, host: Option<Host>, key: Key) {
        self.count += 1;
        self.lines.entry(host).or_default().push_back(key);
    }

    /// At most so many addresses of one jail, one of each host in turn, in the order in which its words
    /// came.
    pub(super) fn batch(&mut self, most: usize) -> Option<(Jail, Vec<Address>)> {
        let after = (Excluded(self.last.clone()), Unbounded);
        let (later, earlier) = (self.lines.range(after), self.lines.iter());
        let hosts: Vec<_> = later.chain(earlier).map(|(host, _)| host.clone()).collect();
        if hosts.is_empty() {
            self.stale = 0;
        }
        let hosts = &hosts[..self.lines.len()];
        let (jail, _) = self.lines.get(hosts.first()?)?.front()?.clone();
        let (mut addresses, mut skipped) = (Vec::new(), false);
        loop {
            let before = addresses.len();
            for host in hosts {
                if addresses.len() == most {
                    return Some((jail, addresses));
                }
                let Some(line) = self.lines.get_mut(host) else { continue };
                if let Some(key) = line.pop_front_if(|key| key.0 == jail) {
                    addresses.push(key.1);
                    self.count -= 1;
                    // Whose word is of another jail is the next to have its turn.
                    if !skipped {
                        self.last.clone_from(host);
                    }
                } else {
                    skipped = true;
                }
                // After a burst it would go on taking the room for one.
                if line.is_empty() {
                    self.lines.remove(host);
                }
            }
            if addresses.len() == before {
                return Some((jail, addresses));
            }
        }
    }

    /// Nothing of this jail waits any more.
    pub(super) fn forget(&mut self, jail: &Jail) {
        self.retain(|key| key.0 != *jail);
    }

    /// Nothing is known any more of an address that waits: its entry is left where it is.
    pub(super) fn abandon(&mut self) {
        self.stale += 1;
    }

    /// Whether most of the queue may be entries that were abandoned. While fail2ban is away nothing is taken
    /// from the queue, and a peer can claim and release addresses without end.
    pub(super) fn is_mostly_stale(&self) -> bool {
        self.stale > MAX_STALE / 2 + self.count / 2
    }

    /// Drops all other entries.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Key) -> bool) {
        self.lines.retain(|_, line| {
            line.retain(&mut keep);
            !line.is_empty()
        });
        (self.count, self.stale) = (self.keys().count(), 0);
    }

    /// What waits, in no order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.lines.values().flatten()
    }

    /// Nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(jail: &str, number: u8) -> Key {
        (Jail::new(jail).unwrap(), Address::new(&format!("192.0.2.{number}")).unwrap())
    }

    /// What comes in one batch: the jail, and the last number of each address.
    fn batch(queue: &mut Queue, most: usize) -> Option<(String, Vec<u8>)> {
        let (jail, addresses) = queue.batch(most)?;
        let number = |address: &Address| address.to_string().rsplit('.').next()?.parse().ok();
        Some((jail.to_string(), addresses.iter().filter_map(number).collect()))
    }

    fn queue(waiting: &[(Option<&str>, &str, u8)]) -> Queue {
        let mut queue = Queue::default();
        for (host, jail, number) in waiting {
            queue.push(host.map(|host| Host::new(host).unwrap()), key(jail, *number));
        }
        queue
    }

    #[test]
    fn each_host_has_its_turn() {
        let flood = (1..=6).map(|number| (Some("flood"), "sshd", number));
        let honest = [(Some("a"), "sshd", 11), (Some("z"), "sshd", 21), (Some("z"), "sshd", 22)];
        let mut queue = queue(&flood.chain(honest).chain([(None, "sshd", 31)]).collect::<Vec<_>>());
        assert_eq!(queue.len(), 10);
        // a, the flood, z and nobody's in turn; each batch goes on where the last ended.
        assert_eq!(batch(&mut queue, 3), Some(("sshd".to_owned(), vec![11, 1, 21])));
        assert_eq!(batch(&mut queue, 3), Some(("sshd".to_owned(), vec![31, 2, 22])));
        assert_eq!(batch(&mut queue, 9), Some(("sshd".to_owned(), vec![3, 4, 5, 6])));
        assert_eq!((batch(&mut queue, 3), queue.len()), (None, 0));
    }

    #[test]
    fn a_batch_is_of_one_jail_and_a_jail_can_be_forgotten() {
        let waiting = [
            (Some("a"), "sshd", 1),
            (Some("a"), "web", 2),
            (Some("a"), "sshd", 3),
            (Some("b"), "web", 4),
        ];
        let mut it = queue(&waiting);
        assert_eq!(batch(&mut it, 9), Some(("sshd".to_owned(), vec![1])));
        assert_eq!(batch(&mut it, 9), Some(("web".to_owned(), vec![4, 2])));
        assert_eq!(batch(&mut it, 9), Some(("sshd".to_owned(), vec![3])));
        let many = (1..=9).flat_map(|n| [(Some("a"), "sshd", n), (Some("c"), "sshd", n + 100)]);
        let mut it = queue(&many.chain([(Some("b"), "web", 4)]).collect::<Vec<_>>());
        assert_eq!(batch(&mut it, 4), Some(("sshd".to_owned(), vec![1, 101, 2, 102])));
        assert_eq!(
            batch(&mut it, 4),
            Some(("web".to_owned(), vec![4])),
            "between two that have many"
        );
        let mut it = queue(&waiting);
        it.forget(&key("sshd", 1).0);
        assert_eq!(batch(&mut it, 9), Some(("web".to_owned(), vec![2, 4])));
        assert_eq!(batch(&mut it, 9), None);
    }
}
