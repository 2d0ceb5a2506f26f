//! Overrides of the operator (R14, R15). An address that the operator unbanned here stays released although peers claim
//! it. An override names the ban of one origin; a newer ban of that origin counts again.

use std::collections::BTreeMap;

use super::claims::ClaimState;
use super::{BanKey, Record, Timing};
use crate::model::{HostName, Jail};
use crate::wire::Ban;

/// The ban of one origin that the operator overrode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Override {
    /// The start of the ban, in seconds since 1970 on its origin's clock.
    pub start: i64,
    /// The stamp of the origin's claim.
    pub stamp: i64,
}

impl Override {
    /// Whether a later claim of the origin ends the override: it has no such ban, or a newer start (R14).
    #[must_use]
    pub fn is_superseded(self, state: ClaimState, timing: &Timing) -> bool {
        match state {
            ClaimState::Unknown => false,
            ClaimState::Released(stamp) => stamp > self.stamp,
            ClaimState::Held(stamp, ban) => stamp > self.stamp && !self.matches(ban, timing),
        }
    }

    /// Whether this ban is the overridden one. Its start may differ by the tolerance, because messages round it.
    #[must_use]
    pub fn matches(self, ban: Ban, timing: &Timing) -> bool {
        ban.start <= self.start.saturating_add(timing.start_tolerance)
    }
}

/// All overrides, by origin.
#[derive(Debug, Default)]
pub(super) struct Overrides(BTreeMap<HostName, BTreeMap<BanKey, Override>>);

impl Overrides {
    /// Overrides a ban of an origin.
    pub(super) fn suppress(
        &mut self,
        key: &BanKey,
        host: &HostName,
        override_: Override,
    ) -> Record {
        let of_host = self.0.entry(host.clone()).or_default();
        let override_ = of_host.get(key).map_or(override_, |before| override_.max(*before));
        of_host.insert(key.clone(), override_);
        Record::Override(key.clone(), host.clone(), Some(override_))
    }

    /// Whether a ban of an origin is overridden.
    pub(super) fn suppresses(
        &self,
        key: &BanKey,
        host: &HostName,
        ban: Ban,
        timing: &Timing,
    ) -> bool {
        let override_ = self.0.get(host).and_then(|of_host| of_host.get(key));
        override_.is_some_and(|override_| override_.matches(ban, timing))
    }

    /// The overrides of one origin's bans.
    pub(super) fn of_peer(&self, host: &HostName) -> impl Iterator<Item = (&BanKey, Override)> {
        self.0.get(host).into_iter().flatten().map(|(key, override_)| (key, *override_))
    }

    /// How many bans of a jail are overridden.
    pub(super) fn count(&self, jail: &Jail) -> usize {
        self.0.values().flat_map(BTreeMap::keys).filter(|key| key.0 == *jail).count()
    }

    /// Removes an override that has ended.
    pub(super) fn clear(&mut self, key: &BanKey, host: &HostName) -> Option<Record> {
        let of_host = self.0.get_mut(host)?;
        of_host.remove(key)?;
        if of_host.is_empty() {
            self.0.remove(host);
        }
        Some(Record::Override(key.clone(), host.clone(), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(stamp: i64, start: i64) -> ClaimState {
        ClaimState::Held(stamp, Ban { start, bantime: 600 })
    }

    #[test]
    fn override_ends_with_a_later_claim_that_has_another_ban_or_none() {
        let override_ = Override { start: 1000, stamp: 50 };
        let table = [
            (ClaimState::Unknown, false),
            (ClaimState::Released(50), false),
            (ClaimState::Released(51), true),
            (held(51, 1000), false),
            (held(51, 1002), false),
            (held(51, 1003), true),
            (held(50, 1003), false),
            (held(49, 900), false),
        ];
        for (state, is_superseded) in table {
            assert_eq!(
                override_.is_superseded(state, &Timing::default()),
                is_superseded,
                "{state:?}"
            );
        }
    }
}
