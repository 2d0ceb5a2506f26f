//! What fail2ban or its database shows of many addresses at once: a sorted list. It is one piece of
//! memory, which goes back to the system as a whole, where the nodes of a map would leave holes.

use crate::wire::Address;

/// A value for each of some addresses, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressMap<V>(Vec<(Address, V)>);

impl<V> Default for AddressMap<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> FromIterator<(Address, V)> for AddressMap<V> {
    fn from_iter<I: IntoIterator<Item = (Address, V)>>(rows: I) -> Self {
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_unstable_by_key(|(address, _)| *address);
        rows.dedup_by_key(|(address, _)| *address);
        Self(rows)
    }
}

impl<V> AddressMap<V> {
    /// The value of an address.
    #[must_use]
    pub fn get(&self, address: Address) -> Option<&V> {
        let at = self.0.binary_search_by_key(&address, |(address, _)| *address).ok()?;
        Some(&self.0[at].1)
    }

    /// Whether an address is there.
    #[must_use]
    pub fn has(&self, address: Address) -> bool {
        self.get(address).is_some()
    }

    /// All, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (Address, &V)> {
        self.0.iter().map(|(address, value)| (*address, value))
    }

    /// The addresses.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        self.0.iter().map(|(address, _)| *address)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}
