//! Addresses that wait for a decision, in turns between peers (R22). fail2ban makes about 130 bans a second, and a peer
//! may claim thousands of addresses. Each peer has its own line, so a peer that floods the fleet delays only itself.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;
use std::ops::Bound::{Excluded, Unbounded};

use super::BanKey;
use crate::model::{Address, HostName, Jail};

/// How many removed entries a line keeps at least before they are dropped.
const MAX_REMOVED: usize = 500;

/// Where an address waits: the number of its line in the upper 16 bits (there are at most as many lines as hosts,
/// 1,001), and its place in that line. With it the address leaves the queue, wherever it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(NonZeroU64);

impl Ticket {
    const PLACE_BITS: u32 = 48;
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

/// An address that waits. A line has up to 100,000: the place is split so that an entry takes 40 bytes.
#[derive(Debug)]
struct QueuedAddress {
    /// `None` once it was removed.
    jail: Option<Jail>,
    address: Address,
    place_low: u32,
    place_high: u16,
}

impl QueuedAddress {
    fn new(place: u64, (jail, address): BanKey) -> Self {
        let place_low = u32::try_from(place & u64::from(u32::MAX)).unwrap_or_default();
        let place_high = u16::try_from(place >> u32::BITS).unwrap_or_default();
        Self { jail: Some(jail), address, place_low, place_high }
    }

    fn place(&self) -> u64 {
        u64::from(self.place_high) << u32::BITS | u64::from(self.place_low)
    }
}

/// The addresses that wait on behalf of one host, in the order of arrival. Invariant: the first entry was not removed.
#[derive(Debug)]
struct PeerLine {
    number: u32,
    /// The last assigned place; the first is 1.
    last: u64,
    waiting: VecDeque<QueuedAddress>,
    removed: usize,
}

impl PeerLine {
    fn push(&mut self, key: BanKey) -> Ticket {
        self.last += 1;
        self.waiting.push_back(QueuedAddress::new(self.last, key));
        Ticket::new(self.number, self.last)
    }

    fn remove(&mut self, place: u64) {
        let Ok(index) = self.waiting.binary_search_by_key(&place, QueuedAddress::place) else {
            return;
        };
        let entry = self.waiting.get_mut(index);
        if entry.and_then(|entry| entry.jail.take()).is_some() {
            self.removed += 1;
        }
        self.drop_removed();
    }

    fn pop_of(&mut self, jail: &Jail) -> Option<Address> {
        let first = self.waiting.pop_front_if(|first| first.jail.as_ref() == Some(jail))?;
        self.drop_removed();
        Some(first.address)
    }

    /// Drops removed entries: those at the front, and all once they are most of the line. So a removal costs a constant
    /// time on average.
    fn drop_removed(&mut self) {
        while self.waiting.pop_front_if(|first| first.jail.is_none()).is_some() {
            self.removed -= 1;
        }
        if self.removed > MAX_REMOVED + self.waiting.len() / 2 {
            self.waiting.retain(|entry| entry.jail.is_some());
            self.removed = 0;
        }
    }

    fn forget(&mut self, jail: &Jail) {
        self.waiting.retain(|entry| entry.jail.as_ref().is_some_and(|of| of != jail));
        self.removed = 0;
    }

    fn first_jail(&self) -> Option<&Jail> {
        self.waiting.front()?.jail.as_ref()
    }
}

/// The lines, by the peer that claims the addresses; `None` for legacy peers, and for addresses without a claim.
/// Invariant: no line is empty, and each has a number of its own.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    lines: BTreeMap<Option<HostName>, PeerLine>,
    hosts: BTreeMap<u32, Option<HostName>>,
    /// The number of the next line, unless it is in use.
    next_number: u32,
    /// The host whose turn was last.
    last: Option<HostName>,
}

impl FairQueue {
    /// Appends an address to the line of its host.
    pub(super) fn push(&mut self, host: Option<HostName>, key: BanKey) -> Ticket {
        let (hosts, next_number) = (&mut self.hosts, &mut self.next_number);
        let line = self.lines.entry(host).or_insert_with_key(|host| {
            let number = loop {
                let number = *next_number;
                *next_number = (number + 1) % Ticket::LINES;
                if !hosts.contains_key(&number) {
                    break number;
                }
            };
            hosts.insert(number, host.clone());
            PeerLine { number, last: 0, waiting: VecDeque::new(), removed: 0 }
        });
        line.push(key)
    }

    /// Removes an address that has no state any more.
    pub(super) fn remove(&mut self, ticket: Ticket) {
        let Some(host) = self.hosts.get(&ticket.line()).cloned() else { return };
        if let Some(line) = self.lines.get_mut(&host) {
            line.remove(ticket.place());
        }
        self.close_if_empty(&host);
    }

    /// Drops an empty line, so that a burst does not leave its memory allocated.
    #[expect(clippy::ref_option, reason = "it is a key of the lines")]
    fn close_if_empty(&mut self, host: &Option<HostName>) {
        if self.lines.get(host).is_some_and(|line| line.waiting.is_empty())
            && let Some(line) = self.lines.remove(host)
        {
            self.hosts.remove(&line.number);
        }
    }

    /// At most `max` addresses of one jail, one of each host in turn, in the order of arrival.
    pub(super) fn batch(&mut self, max: usize) -> Option<(Jail, Vec<Address>)> {
        let after = (Excluded(self.last.clone()), Unbounded);
        let (later, earlier) = (self.lines.range(after), self.lines.iter());
        let hosts: Vec<_> = later.chain(earlier).map(|(host, _)| host.clone()).collect();
        let hosts = &hosts[..self.lines.len()];
        let jail = self.lines.get(hosts.first()?)?.first_jail()?.clone();
        let (mut addresses, mut skipped) = (Vec::new(), false);
        loop {
            let before = addresses.len();
            for host in hosts {
                if addresses.len() == max {
                    return Some((jail, addresses));
                }
                let Some(line) = self.lines.get_mut(host) else { continue };
                if let Some(address) = line.pop_of(&jail) {
                    addresses.push(address);
                    // The first host whose next address is in another jail has the next turn.
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

    /// Removes all addresses of a jail.
    pub(super) fn forget(&mut self, jail: &Jail) {
        self.lines.retain(|_, line| {
            line.forget(jail);
            if line.waiting.is_empty() {
                self.hosts.remove(&line.number);
            }
            !line.waiting.is_empty()
        });
    }

    /// Whether no address waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The addresses that wait, with their tickets.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (Ticket, BanKey)> {
        self.lines.values().flat_map(|line| {
            line.waiting.iter().filter_map(|entry| {
                let key = (entry.jail.clone()?, entry.address);
                Some((Ticket::new(line.number, entry.place()), key))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(jail: &str, number: u8) -> BanKey {
        (Jail::new(jail).unwrap(), Address::new(&format!("192.0.2.{number}")).unwrap())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the key of a line")]
    fn host(name: &str) -> Option<HostName> {
        Some(HostName::new(name).unwrap())
    }

    /// What comes in one batch: the jail, and the last number of each address.
    fn batch(queue: &mut FairQueue, most: usize) -> Option<(String, Vec<u8>)> {
        let (jail, addresses) = queue.batch(most)?;
        let texts = addresses.iter().map(Address::to_string);
        let numbers = texts.map(|text| text.rsplit('.').next().unwrap().parse().unwrap());
        Some((jail.to_string(), numbers.collect()))
    }

    fn queue(waiting: &[(Option<&str>, &str, u8)]) -> FairQueue {
        let mut queue = FairQueue::default();
        for (host, jail, number) in waiting {
            queue.push(host.map(|name| HostName::new(name).unwrap()), key(jail, *number));
        }
        queue
    }

    #[test]
    fn hosts_take_turns() {
        let flood = (1..=6).map(|number| (Some("flood"), "sshd", number));
        let honest = [(Some("a"), "sshd", 11), (Some("z"), "sshd", 21), (Some("z"), "sshd", 22)];
        let mut queue = queue(&flood.chain(honest).chain([(None, "sshd", 31)]).collect::<Vec<_>>());
        assert_eq!(queue.waiting().count(), 10);
        // The lines take turns, also the one without a host; each batch continues where the last ended.
        assert_eq!(batch(&mut queue, 3), Some(("sshd".to_owned(), vec![11, 1, 21])));
        assert_eq!(batch(&mut queue, 3), Some(("sshd".to_owned(), vec![31, 2, 22])));
        assert_eq!(batch(&mut queue, 9), Some(("sshd".to_owned(), vec![3, 4, 5, 6])));
        assert_eq!((batch(&mut queue, 3), queue.waiting().count()), (None, 0));
    }

    #[test]
    fn removed_addresses_leave_the_others_in_order() {
        let mut it = FairQueue::default();
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
        let far = Ticket::new(1_000, (1 << 48) - 1);
        assert_eq!((far.line(), far.place()), (1_000, (1 << 48) - 1));
        assert_eq!(QueuedAddress::new(far.place(), key("sshd", 1)).place(), far.place());
        assert_eq!(size_of::<QueuedAddress>(), 40);
    }

    #[test]
    fn removed_entries_take_little_memory_and_keep_the_places_of_others() {
        let mut it = FairQueue::default();
        let first = it.push(None, key("web", 1));
        let mut stay = vec![first];
        for _ in 0..20 {
            let tickets: Vec<_> = (0..400).map(|_| it.push(None, key("sshd", 2))).collect();
            stay.push(it.push(None, key("web", 3)));
            for ticket in tickets.into_iter().rev() {
                it.remove(ticket);
                it.remove(ticket);
            }
            let line = &it.lines[&None];
            assert!(line.waiting.len() <= 2 * stay.len() + 2 * MAX_REMOVED + 400);
            assert_eq!(line.waiting.len() - line.removed, stay.len());
        }
        assert!(it.waiting().map(|(ticket, _)| ticket).eq(stay.iter().copied()));
        it.remove(first);
        assert_eq!(it.waiting().next().map(|(ticket, _)| ticket), Some(stay[1]));
        assert_eq!(batch(&mut it, 99).map(|(jail, of)| (jail, of.len())), Some(("web".into(), 20)));
        assert!(it.is_empty());
    }

    #[test]
    fn batch_is_of_one_jail_and_a_jail_can_be_removed() {
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
