//! The invariants of the controller's tables after every step: their counts agree, their indexes name each other's
//! entries, and no limit is exceeded (R21). The simulation and the fuzzers check them; the daemon does not.

use std::collections::{BTreeMap, BTreeSet};

use super::claims::{
    MAX_CLAIM_TOMBSTONES, MAX_CLAIMS, MAX_CLAIMS_PER_KEY, MAX_CLAIMS_PER_PEER, MAX_JAILS,
    MAX_LEGACY_CLAIMS, MAX_OTHER_JAILS,
};
use super::fair_queue::Ticket;
use super::ingest::MAX_ECHOES;
use super::peer_sync::MAX_SUBSCRIPTIONS;
use super::{BanKey, Controller};
use crate::model::HostName;

/// Returns an error with this text unless the condition holds.
macro_rules! holds {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err(format!($($what)+));
        }
    };
}
pub(super) use holds;

impl Controller {
    /// Checks every invariant.
    ///
    /// # Errors
    /// The first one that does not hold.
    #[doc(hidden)]
    pub fn check_invariants(&self) -> Result<(), String> {
        self.check_claims()?;
        self.check_echoes()?;
        self.check_queue()?;
        self.peers.check_invariants()?;
        self.tombstones.check_invariants()?;
        let (branches, _) = self.peer_sync.count();
        holds!(branches <= MAX_SUBSCRIPTIONS + 1, "{branches} branches");
        let names = self.known_jails.as_ref().map_or(0, BTreeSet::len);
        let absent = self.jails.iter().filter(|(_, jail_state)| jail_state.is_of_others()).count();
        holds!(absent <= MAX_JAILS.max(names + MAX_OTHER_JAILS), "{absent} jails of others");
        for key in self.last_releaser.keys() {
            holds!(self.import(key).is_some(), "{key:?} has a last releaser and no import");
        }
        Ok(())
    }

    /// Checks that the counts are those of the claims, and that each peer's index names the keys of its claims.
    fn check_claims(&self) -> Result<(), String> {
        let (mut claims, mut legacy, mut tombstones) = (0, 0, 0);
        let mut by_host: BTreeMap<&HostName, BTreeSet<BanKey>> = BTreeMap::new();
        for (jail, jail_state) in &self.jails {
            for (address, entry) in &jail_state.entries {
                let mut makers = BTreeSet::new();
                holds!(entry.claims.len() <= MAX_CLAIMS_PER_KEY, "too many claims on {address}");
                for claim in &entry.claims {
                    let is_first = makers.insert((&claim.host, claim.is_legacy()));
                    holds!(is_first, "two claims of {} on {address}", claim.host);
                    tombstones += claim.unbans.as_deref().map_or(0, Vec::len);
                    if claim.is_legacy() {
                        legacy += 1;
                    } else {
                        claims += 1;
                        by_host.entry(&claim.host).or_default().insert((jail.clone(), *address));
                    }
                }
            }
        }
        let counts = (self.counts.claims, self.counts.legacy, self.counts.tombstones);
        holds!(counts == (claims, legacy, tombstones), "{counts:?} {claims} {legacy} {tombstones}");
        holds!(claims <= MAX_CLAIMS && legacy <= MAX_LEGACY_CLAIMS, "{claims} {legacy} claims");
        holds!(tombstones <= MAX_CLAIM_TOMBSTONES, "{tombstones} tombstones");
        for (host, peer) in self.peers.iter() {
            let indexed: BTreeSet<BanKey> = peer.claims.first(usize::MAX).into_iter().collect();
            holds!(indexed.len() <= MAX_CLAIMS_PER_PEER, "{} claims of {host}", indexed.len());
            let kept = by_host.remove(host).unwrap_or_default();
            holds!(indexed == kept, "{host}: {indexed:?} is indexed, {kept:?} is kept");
        }
        holds!(by_host.is_empty(), "claims of no peer: {by_host:?}");
        Ok(())
    }

    fn check_echoes(&self) -> Result<(), String> {
        holds!(self.echoes.len() <= MAX_ECHOES, "{} echoes", self.echoes.len());
        for (jail, jail_state) in &self.jails {
            for (address, _) in jail_state
                .pending_detections
                .iter()
                .filter(|(_, detection)| detection.echo.is_some())
            {
                let is_counted = self.echoes.contains(&(jail.clone(), *address));
                holds!(is_counted, "an echo of {address} that is not counted");
            }
        }
        Ok(())
    }

    /// Checks that the queue has each waiting address once.
    fn check_queue(&self) -> Result<(), String> {
        let waiting: BTreeMap<BanKey, Ticket> =
            self.queue.waiting().map(|(ticket, key)| (key, ticket)).collect();
        let mut live = 0;
        for (jail, jail_state) in &self.jails {
            for (address, entry) in
                jail_state.entries.iter().filter(|(_, entry)| entry.queued.is_some())
            {
                live += 1;
                let there = waiting.get(&(jail.clone(), *address)).copied();
                holds!(
                    there == entry.queued,
                    "{address} waits at {:?}, not {there:?}",
                    entry.queued
                );
            }
        }
        let all = self.queue.waiting().count();
        holds!(all == live, "{all} in the queue for {live}");
        Ok(())
    }
}
