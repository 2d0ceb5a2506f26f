//! The invariants of [`Tombstones`], for the simulation and the fuzzers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::invariants::holds;
use super::{MAX_PER_ADDRESS, MAX_PER_MAKER, MAX_TOMBSTONES, Tombstones};

impl Tombstones {
    pub(in crate::fleet) fn check_invariants(&self) -> Result<(), String> {
        let mut by_maker: BTreeMap<Arc<str>, BTreeSet<_>> = BTreeMap::new();
        let mut count = 0;
        let waiting = self.waiting.values().flatten().chain(&self.in_flight).chain(&self.deferred);
        let waiting: BTreeSet<_> = waiting.collect();
        for (address, of_address) in &self.known {
            holds!(
                !of_address.is_empty() && of_address.len() <= MAX_PER_ADDRESS,
                "{} of {address}",
                of_address.len()
            );
            for one in of_address {
                count += 1;
                let maker = by_maker.entry(one.id.maker().into()).or_default();
                let is_new = maker.insert((one.id.created_at(), *address, one.scope.clone()));
                holds!(is_new, "{} of {address} twice", one.id);
                let is_done = one.applied && one.pending_jails.is_empty();
                holds!(is_done || waiting.contains(address), "{address} waits forever");
                holds!(!one.applied || one.applied_jails.is_empty(), "{address} is half applied");
            }
        }
        holds!(count == self.count && count <= MAX_TOMBSTONES, "{count} of {}", self.count);
        holds!(by_maker == self.by_maker, "{by_maker:?} {:?}", self.by_maker);
        let sizes =
            self.by_maker.iter().map(|(maker, of_maker)| (of_maker.len(), Arc::clone(maker)));
        let sizes: BTreeSet<_> = sizes.collect();
        holds!(sizes == self.by_size, "{sizes:?} {:?}", self.by_size);
        let largest = self.by_size.last().map_or(0, |(size, _)| *size);
        holds!(largest <= MAX_PER_MAKER, "{largest} of one maker");
        let makers = self.waiting.values().all(|line| !line.is_empty());
        holds!(makers, "a maker whose line is empty");
        Ok(())
    }
}
