//! What holds of the controller's tables after every step, whatever came: their counts agree, their indexes name
//! each other's entries, and no limit is exceeded. The simulation and the fuzzers check it; the daemon does not.

use std::collections::{BTreeMap, BTreeSet};

use super::branches::MAX_BRANCHES;
use super::claims::{
    MAX_CARRIED, MAX_CLAIMS, MAX_CLAIMS_PER_KEY, MAX_CLAIMS_PER_PEER, MAX_JAILS, MAX_OTHER_JAILS,
    MAX_SCRIPT_CLAIMS,
};
use super::hear::MAX_ECHOES;
use super::queue::Ticket;
use super::{BanKey, Controller};
use crate::wire::HostName;

/// Fails with what does not hold.
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
        let (branches, _) = self.branches.count();
        holds!(branches <= MAX_BRANCHES + 1, "{branches} branches");
        let names = self.names.as_ref().map_or(0, BTreeSet::len);
        let absent = self.jails.iter().filter(|(_, local)| local.is_of_others()).count();
        holds!(absent <= MAX_JAILS.max(names + MAX_OTHER_JAILS), "{absent} jails of others");
        for key in self.unsaid.keys() {
            holds!(self.mark(key).is_some(), "{key:?} has a last releaser and no import");
        }
        Ok(())
    }

    /// The counts are those of the claims, and each peer's index names the keys of its claims.
    fn check_claims(&self) -> Result<(), String> {
        let (mut claims, mut scripts, mut carried) = (0, 0, 0);
        let mut by_host: BTreeMap<&HostName, BTreeSet<BanKey>> = BTreeMap::new();
        for (jail, local) in &self.jails {
            for (address, case) in &local.cases {
                let mut makers = BTreeSet::new();
                holds!(case.said.len() <= MAX_CLAIMS_PER_KEY, "too many claims on {address}");
                for said in &case.said {
                    let is_first = makers.insert((&said.host, said.is_script()));
                    holds!(is_first, "two claims of {} on {address}", said.host);
                    carried += said.unbans.as_deref().map_or(0, Vec::len);
                    if said.is_script() {
                        scripts += 1;
                    } else {
                        claims += 1;
                        by_host.entry(&said.host).or_default().insert((jail.clone(), *address));
                    }
                }
            }
        }
        let counts = (self.counts.claims, self.counts.scripts, self.counts.carried);
        holds!(counts == (claims, scripts, carried), "{counts:?} {claims} {scripts} {carried}");
        holds!(claims <= MAX_CLAIMS && scripts <= MAX_SCRIPT_CLAIMS, "{claims} {scripts} claims");
        holds!(carried <= MAX_CARRIED, "{carried} carried");
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
        for (jail, local) in &self.jails {
            for (address, _) in local.told.iter().filter(|(_, told)| told.echo.is_some()) {
                let is_counted = self.echoes.contains(&(jail.clone(), *address));
                holds!(is_counted, "an echo of {address} that is not counted");
            }
        }
        Ok(())
    }

    /// The queue is what waits for a decision, each address once.
    fn check_queue(&self) -> Result<(), String> {
        let waiting: BTreeMap<BanKey, Ticket> =
            self.queue.waiting().map(|(ticket, key)| (key, ticket)).collect();
        let mut live = 0;
        for (jail, local) in &self.jails {
            for (address, case) in local.cases.iter().filter(|(_, case)| case.queued.is_some()) {
                live += 1;
                let there = waiting.get(&(jail.clone(), *address)).copied();
                holds!(there == case.queued, "{address} waits at {:?}, not {there:?}", case.queued);
            }
        }
        let all = self.queue.waiting().count();
        holds!(all == live, "{all} in the queue for {live}");
        Ok(())
    }
}
