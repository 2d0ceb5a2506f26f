//! Where persisted state was learned, and what of it still counts elsewhere: under another topic, once
//! messages have to be signed, or once a key was withdrawn. Pure.

use std::collections::BTreeSet;

use super::marks::{Import, ImportSource, ImportSources};
use super::{PersistedState, Record, Timing};
use crate::fleet::lifts::Override;
use crate::wire::Ban;

/// How long a claim from before may last unless its origin repeats it, in seconds.
const GRACE: i64 = 60;

/// The stamp of a claim from before: any word of its origin is newer.
const BEFORE: i64 = 1;

/// Which messages count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// All: there is no key.
    Open,
    /// Signed ones, and unsigned ones with limits.
    Mixed,
    /// Signed ones.
    Strict,
}

impl Trust {
    /// All, in their order.
    pub const ALL: [Self; 3] = [Self::Open, Self::Mixed, Self::Strict];
}

/// Where persisted state was learned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Provenance {
    pub topic: String,
    pub brokers: String,
    pub node: String,
    pub trust: Trust,
    /// Fingerprints of the keys whose signatures count.
    pub keys: BTreeSet<String>,
}

/// Which persisted state is not to be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// None.
    Nothing,
    /// Fleet unbans, which this host would repeat in signed messages.
    Unbans,
    /// Other hosts' bans. Where unsigned messages counted beside a key, fleet unbans had to be signed.
    Claims,
    /// Everything that was learned from other hosts.
    All,
}

impl Provenance {
    /// Whether the broker may go on with the session from before.
    #[must_use]
    pub fn keeps_session(&self, before: &Self) -> bool {
        (&self.topic, &self.brokers, &self.node) == (&before.topic, &before.brokers, &before.node)
    }

    /// What not to rely on that was learned `before`, which is not known of a store of the first version.
    #[must_use]
    pub fn doubt(&self, before: Option<&Self>) -> Doubt {
        let trust = before.map_or(Trust::Open, |before| before.trust);
        if before.is_some_and(|before| before.topic != self.topic) {
            return Doubt::All;
        }
        // A key that was taken away may be known to somebody else: what it signed does not count any more.
        let withdrawn = before.is_some_and(|before| !before.keys.is_subset(&self.keys));
        if withdrawn && self.trust > Trust::Open {
            return Doubt::All;
        }
        match self.trust {
            _ if self.trust <= trust => Doubt::Nothing,
            Trust::Strict if trust == Trust::Mixed => Doubt::Claims,
            Trust::Strict => Doubt::All,
            Trust::Open | Trust::Mixed => Doubt::Unbans,
        }
    }
}

impl PersistedState {
    /// The changes that leave no doubtful state. Imports stay, because only this host knows that they are no
    /// bans of its own; what they rest on ends soon unless its origin repeats it. `now` is in
    /// seconds since 1970.
    #[must_use]
    pub fn discard(&self, doubt: Doubt, timing: &Timing, now: i64) -> Vec<Record> {
        if doubt == Doubt::Nothing {
            return Vec::new();
        }
        let unbans = self.tombstones.keys().filter(|_| doubt != Doubt::Claims);
        let unbans = unbans.map(|fleet_unban| Record::Tombstone(fleet_unban.clone(), None));
        let mut records: Vec<Record> = unbans.collect();
        if doubt == Doubt::Unbans {
            return records;
        }
        let scripts = self.legacy_claims.keys();
        records.extend(
            scripts.map(|(key, host)| Record::LegacyClaim(key.clone(), host.clone(), None)),
        );
        records.extend(self.imports.iter().map(|(key, import)| {
            let claims = import.sources.iter().filter(|claim| claim.stamp > 0);
            let claims: ImportSources =
                claims.map(|claim| provisional(claim, timing, now)).collect();
            Record::Import(key.clone(), Some(Import { sources: claims, ..import.clone() }))
        }));
        records.extend(self.overrides.iter().map(|((key, host), lift)| {
            let lift = Override { stamp: BEFORE, ..*lift };
            Record::Override(key.clone(), host.clone(), Some(lift))
        }));
        records
    }
}

/// A claim that ends soon, or earlier if it was to end earlier, and gives way to any word of its origin.
fn provisional(claim: &ImportSource, timing: &Timing, now: i64) -> ImportSource {
    let Ban { start, bantime } = claim.ban;
    let end = match bantime {
        0 => start.saturating_add(timing.default_bantime),
        _ => claim.ban.end(),
    };
    // After its end it lasts for `expiry_slack`.
    let end = end.min(now.saturating_add(GRACE).saturating_sub(timing.expiry_slack));
    // A bantime of 0 is not known, and a negative one is permanent.
    let start = start.min(end.saturating_sub(1));
    let ban = Ban { start, bantime: end.saturating_sub(start) };
    ImportSource { host: claim.host.clone(), stamp: BEFORE, ban, unbans: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::claims::{Claim, seen_tombstones};
    use crate::wire::{Address, FleetUnban, HostName, Jail, JailScope, UnbanId};

    const NOW: i64 = 1_795_342_600;

    fn provenance(topic: &str, brokers: &str, node: &str, trust: Trust) -> Provenance {
        let [topic, brokers, node] = [topic, brokers, node].map(str::to_owned);
        Provenance { topic, brokers, node, trust, keys: BTreeSet::new() }
    }

    #[test]
    fn another_fleet_or_stricter_rules_cast_doubt_and_another_place_ends_the_session() {
        use Doubt::{All, Claims, Nothing, Unbans};
        use Trust::{Mixed, Open, Strict};
        let now = |trust| provenance("t", "hub:1883", "web1", trust);
        let table = [
            (Some(now(Open)), Open, Nothing, true),
            (Some(now(Open)), Mixed, Unbans, true),
            (Some(now(Open)), Strict, All, true),
            (Some(now(Mixed)), Open, Nothing, true),
            (Some(now(Mixed)), Mixed, Nothing, true),
            (Some(now(Mixed)), Strict, Claims, true),
            (Some(now(Strict)), Strict, Nothing, true),
            (Some(now(Strict)), Mixed, Nothing, true),
            (Some(provenance("u", "hub:1883", "web1", Strict)), Strict, All, false),
            (Some(provenance("u", "hub:1883", "web1", Open)), Open, All, false),
            (Some(provenance("t", "old:1883", "web1", Strict)), Strict, Nothing, false),
            (Some(provenance("t", "hub:1883", "web2", Open)), Open, Nothing, false),
            (None, Open, Nothing, false),
            (None, Mixed, Unbans, false),
            (None, Strict, All, false),
        ];
        for (before, trust, doubt, keeps) in table {
            let now = now(trust);
            assert_eq!(now.doubt(before.as_ref()), doubt, "{before:?} {trust:?}");
            let kept = before.as_ref().is_some_and(|before| now.keeps_session(before));
            assert_eq!(kept, keeps, "{before:?}");
        }
    }

    #[test]
    fn what_a_withdrawn_key_signed_is_in_doubt() {
        use Doubt::{All, Nothing};
        use Trust::{Mixed, Open, Strict};
        let with = |keys: &str, trust| {
            let keys = keys.split_whitespace().map(str::to_owned).collect();
            Provenance { keys, ..provenance("t", "hub:1883", "web1", trust) }
        };
        let table = [
            ("old", "new old", Strict, Nothing),
            ("new old", "new", Strict, All),
            ("new old", "new", Mixed, All),
            ("old", "new", Strict, All),
            ("new", "new", Strict, Nothing),
            ("old", "", Open, Nothing), // without a key everything counts anyway
        ];
        for (before, now, trust, doubt) in table {
            let before = with(before, trust.max(Mixed));
            assert_eq!(with(now, trust).doubt(Some(&before)), doubt, "{before:?} {now}");
            assert!(with(now, trust).keeps_session(&before));
        }
    }

    fn persisted(bans: &[(i64, Ban)]) -> PersistedState {
        let key = (Jail::new("sshd").unwrap(), Address::new("192.0.2.1").unwrap());
        let (web2, id) = (HostName::new("web2").unwrap(), UnbanId::new("web2-5").unwrap());
        let claim = |(stamp, ban): &(i64, Ban)| {
            let unbans = seen_tombstones(vec![id.clone()]);
            ImportSource { host: web2.clone(), stamp: *stamp, ban: *ban, unbans }
        };
        let import = Import::intended(bans.iter().map(claim).collect(), 600, NOW - 9);
        let fleet_unban = FleetUnban { scope: JailScope::All, address: key.1, id: id.clone() };
        let mut persisted = PersistedState::default();
        for record in [
            Record::Import(key.clone(), Some(import)),
            Record::Override(key.clone(), web2.clone(), Some(Override { start: 7, stamp: 1_000 })),
            Record::Tombstone(fleet_unban, Some(true)),
            Record::LegacyClaim(key.clone(), HostName::new("old").unwrap(), Some(8)),
            Record::PendingDetection(key, Some(Ban { start: 9, bantime: 600 })),
            Record::Stamp(77),
        ] {
            persisted.apply(record);
        }
        persisted
    }

    fn after(persisted: &PersistedState, doubt: Doubt) -> PersistedState {
        let mut after = persisted.clone();
        let records = persisted.discard(doubt, &Timing::default(), NOW);
        for record in records {
            after.apply(record);
        }
        after
    }

    #[test]
    fn doubtful_state_is_deleted_except_what_this_host_has_to_undo_itself() {
        let before = persisted(&[
            (1_000, Ban { start: NOW, bantime: -1 }),
            (0, Ban { start: 1, bantime: 0 }),
        ]);
        assert_eq!(after(&before, Doubt::Nothing), before);
        let mixed = after(&before, Doubt::Unbans);
        assert!(mixed.tombstones.is_empty());
        assert_eq!(
            mixed,
            PersistedState { tombstones: mixed.tombstones.clone(), ..before.clone() }
        );
        let claims = after(&before, Doubt::Claims);
        let all = after(&before, Doubt::All);
        assert_eq!(claims, PersistedState { tombstones: before.tombstones.clone(), ..all.clone() });
        assert!(all.tombstones.is_empty() && all.legacy_claims.is_empty());
        assert_eq!(
            (all.pending_detections.clone(), all.stamp),
            (before.pending_detections.clone(), 77)
        );
        assert_eq!(all.overrides.values().collect::<Vec<_>>(), [&Override { start: 7, stamp: 1 }]);
        let (was, is) =
            (before.imports.values().next().unwrap(), all.imports.values().next().unwrap());
        assert_eq!(*is, Import { sources: is.sources.clone(), ..was.clone() });
        assert_eq!(is.sources.len(), 1, "the script's is gone");
        assert_eq!((is.sources[0].stamp, &is.sources[0].unbans), (1, &None));
        assert_eq!(after(&all, Doubt::All), all, "once more changes nothing");
    }

    #[test]
    fn a_claim_from_before_lasts_a_minute_at_most() {
        let timing = Timing::default();
        let lasts = |ban: Ban| {
            let host = HostName::new("web2").unwrap();
            Claim { host, stamp: 1_000, ban: Some(ban), unbans: None }.expires_at(None, &timing)
        };
        let table = [
            (NOW - 10, 600, NOW + 60),
            (NOW - 10, -1, NOW + 60),
            (NOW - 10, 0, NOW + 60),
            (NOW + 900, 600, NOW + 60),
            (NOW - 90_000, 0, NOW - 90_000 + 86_400 + 600),
            (NOW - 1_150, 600, NOW + 50),
            (NOW - 2_000, 600, NOW - 800),
            (0, 600, 1_200),
            (i64::MAX, -1, NOW + 60),
        ];
        for (start, bantime, until) in table {
            let before = persisted(&[(1_000, Ban { start, bantime })]);
            let after = after(&before, Doubt::All);
            let ban = after.imports.values().next().unwrap().sources[0].ban;
            assert!(ban.bantime > 0, "{ban:?}");
            assert_eq!(lasts(ban), until, "{start} {bantime}");
        }
    }
}
