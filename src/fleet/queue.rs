//! Addresses that wait for a decision. fail2ban makes some 130 bans a second, and a host may claim thousands:
//! **each host's words wait in a line of their own**, and the lines are served in turn. So whoever floods the
//! fleet, or has been away, delays little but itself.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::Bound::{Excluded, Unbounded};

use super::Key;
use crate::wire::{Address, Host, Jail};

/// Where an address waits: the number of its line in the upper 20 bits (there are at most as many lines as hosts,
/// 1,001), and its place in that line. With it the address leaves the queue at once, wherever it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(NonZeroU64);

impl Ticket {
    const PLACE_BITS: u32 = 44;
    const LINES: u32 = 1 << (u64::BITS - Self::PLACE_BITS);

    fn new(line: u32, place: u64) -> Self {
        let number = u64::from(line) << Self::PLACE_BITS | place;
        Self(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }

    fn line(self) -> u32 {
        u32::try_from(self.0.get() >> Self::PLACE_BITS).unwrap_or(u32::MAX)
    }

    fn place(self) -> u64 {
        self.0.get() & ((1 << Self::PLACE_BITS) - 1)
    }
}

/// The addresses that wait for one host's sake, in the order in which its words came.
#[derive(Debug)]
struct Line {
    number: u32,
    /// The last place that was given; the first is 1.
    last: u64,
    waiting: BTreeMap<u64, Key>,
}

/// The lines, by the host whose word it is; `None` for hosts that run the scripts, and where nobody claims the
/// address. **No line is empty**, and each has a number of its own.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: BTreeMap<Option<Host>, Line>,
    hosts: BTreeMap<u32, Option<Host>>,
    /// The number that the next line gets, unless another one has it.
    next_number: u32,
    /// Whose turn it was last.
    last: Option<Host>,
}

impl Queue {
    /// An address waits behind what the same host said before.
    pub(super) fn push(&mut self, host: Option<Host>, key: Key) -> Ticket {
        let (hosts, given) = (&mut self.hosts, &mut self.next_number);
        let line = self.lines.entry(host).or_insert_with_key(|host| {
            let number = loop {
                let number = *given;
                *given = (number + 1) % Ticket::LINES;
                if !hosts.contains_key(&number) {
                    break number;
                }
            };
            hosts.insert(number, host.clone());
            Line { number, last: 0, waiting: BTreeMap::new() }
        });
        line.last += 1;
        line.waiting.insert(line.last, key);
        Ticket::new(line.number, line.last)
    }

    /// Nothing is known any more of an address that waits.
    pub(super) fn remove(&mut self, ticket: Ticket) {
        let Some(host) = self.hosts.get(&ticket.line()).cloned() else { return };
        if let Some(line) = self.lines.get_mut(&host) {
            line.waiting.remove(&ticket.place());
        }
        self.close_if_empty(&host);
    }

    #[expect(clippy::ref_option, reason = "it is a key of the lines")]
    fn close_if_empty(&mut self, host: &Option<Host>) {
        if self.lines.get(host).is_some_and(|line| line.waiting.is_empty())
            && let Some(line) = self.lines.remove(host)
        {
            self.hosts.remove(&line.number);
        }
    }

    /// At most so many addresses of one jail, one of each host in turn, in the order in which its words
    /// came.
    pub(super) fn batch(&mut self, most: usize) -> Option<(Jail, Vec<Address>)> {
        let after = (Excluded(self.last.clone()), Unbounded);
        let (later, earlier) = (self.lines.range(after), self.lines.iter());
        let hosts: Vec<_> = later.chain(earlier).map(|(host, _)| host.clone()).collect();
        let hosts = &hosts[..self.lines.len()];
        let (_, (jail, _)) = self.lines.get(hosts.first()?)?.waiting.first_key_value()?;
        let jail = jail.clone();
        let (mut addresses, mut skipped) = (Vec::new(), false);
        loop {
            let before = addresses.len();
            for host in hosts {
                if addresses.len() == most {
                    return Some((jail, addresses));
                }
                let Some(line) = self.lines.get_mut(host) else { continue };
                let first = line.waiting.first_entry().filter(|first| first.get().0 == jail);
                if let Some(first) = first {
                    addresses.push(first.remove().1);
                    // Whose word is of another jail is the next to have its turn.
                    if !skipped {
                        self.last.clone_from(host);
                    }
                } else {
                    skipped = true;
                }
                self.close_if_empty(host);
            }
            if addresses.len() == before {
                return Some((jail, addresses));
            }
        }
    }

    /// Nothing of this jail waits any more.
    pub(super) fn forget(&mut self, jail: &Jail) {
        self.lines.retain(|_, line| {
            line.waiting.retain(|_, key| key.0 != *jail);
            if line.waiting.is_empty() {
                self.hosts.remove(&line.number);
            }
            !line.waiting.is_empty()
        });
    }

    /// Nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// What waits, with its ticket.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (Ticket, &Key)> {
        self.lines.values().flat_map(|line| {
            line.waiting.iter().map(|(place, key)| (Ticket::new(line.number, *place), key))
        })
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
        assert_eq!(queue.waiting().count(), 10);
        // a, the flood, z and nobody's in turn; each batch goes on where the last ended.
        assert_eq!(batch(&mut queue, 3), Some(("sshd".to_owned(), vec![11, 1, 21])));
        assert_eq!(batch(&mut queue, 3), Some(("sshd".to_owned(), vec![31, 2, 22])));
        assert_eq!(batch(&mut queue, 9), Some(("sshd".to_owned(), vec![3, 4, 5, 6])));
        assert_eq!((batch(&mut queue, 3), queue.waiting().count()), (None, 0));
    }

    #[test]
    fn what_is_removed_leaves_the_rest_in_its_order() {
        let mut it = Queue::default();
        let host = |name: &str| Some(Host::new(name).unwrap());
        let mut tickets = Vec::new();
        for n in 1..=4 {
            tickets.push(it.push(host("a"), key("sshd", n)));
            tickets.push(it.push(None, key("sshd", n + 10)));
        }
        for ticket in [2, 3, 0] {
            it.remove(tickets[ticket]);
        }
        it.remove(tickets[0]);
        assert_eq!(it.waiting().count(), 5);
        assert_eq!(batch(&mut it, 2), Some(("sshd".to_owned(), vec![3, 11])));
        for ticket in &tickets {
            it.remove(*ticket);
        }
        assert!(it.is_empty() && it.hosts.is_empty());
        // Lines that are closed leave their numbers to others.
        let again = it.push(host("b"), key("sshd", 9));
        assert_eq!((again.line(), again.place(), it.hosts.len()), (2, 1, 1));
        it.next_number = Ticket::LINES - 1;
        let other = ["c", "d", "e", "f"].map(|name| it.push(host(name), key("sshd", 9)).line());
        assert_eq!(other, [Ticket::LINES - 1, 0, 1, 3], "2 is taken");
        let far = Ticket::new(1_000, (1 << 44) - 1);
        assert_eq!((far.line(), far.place()), (1_000, (1 << 44) - 1));
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
