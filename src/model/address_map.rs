//! A map from addresses to values as a sorted list, for the answers of fail2ban and its database about many addresses.
//! A list is one block of memory, which goes back to the system as a whole; the nodes of a tree would leave holes.

use crate::model::Address;

/// Values by address, in the order of the addresses, each address once.
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

    /// Whether the map has an address.
    #[must_use]
    pub fn has(&self, address: Address) -> bool {
        self.get(address).is_some()
    }

    /// All entries, in the order of the addresses.
    pub fn iter(&self) -> impl Iterator<Item = (Address, &V)> {
        self.0.iter().map(|(address, value)| (*address, value))
    }

    /// All addresses, in order.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        self.0.iter().map(|(address, _)| *address)
    }

    /// The number of entries.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}
