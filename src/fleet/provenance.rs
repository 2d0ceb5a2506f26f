//! The settings under which persisted state was learned, and which state still counts after a change of settings:
//! another topic, a new signing key, or a withdrawn key. Pure.

use std::collections::BTreeSet;

use super::imports::{Import, ImportSource, ImportSources};
use super::{PersistedState, Record, Timing};
use crate::fleet::overrides::Override;
use crate::wire::Ban;

/// How long a claim that was learned under other settings may last unless its origin repeats it, in seconds.
const PROVISIONAL_TTL: i64 = 60;

/// The stamp of such a claim: any message of its origin is newer.
const PROVISIONAL_STAMP: i64 = 1;

/// Which messages count, the most permissive first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// All messages: there is no key.
    Open,
    /// Signed messages, and unsigned ones with limits.
    Mixed,
    /// Signed messages only.
    Strict,
}

impl Trust {
    /// All values, in their order.
    pub const ALL: [Self; 3] = [Self::Open, Self::Mixed, Self::Strict];
}

/// Where persisted state was learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// `MQTT_TOPIC`: the fleet.
    pub topic: String,
    /// `MQTT_HOST`, as it is written.
    pub brokers: String,
    /// This host's name in the fleet.
    pub node: String,
    /// Which messages counted.
    pub trust: Trust,
    /// Fingerprints of the keys whose signatures count.
    pub keys: BTreeSet<String>,
}

/// Which persisted state is doubtful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// None.
    Nothing,
    /// Fleet unbans, which this host would repeat in signed messages.
    Unbans,
    /// Other hosts' bans. Their fleet unbans stay: with a key, these had to be signed even if unsigned bans counted.
    Claims,
    /// Everything that was learned from other hosts.
    All,
}

impl Provenance {
    /// Whether the broker may resume the session of the earlier settings.
    #[must_use]
    pub fn keeps_session(&self, before: &Self) -> bool {
        (&self.topic, &self.brokers, &self.node) == (&before.topic, &before.brokers, &before.node)
    }

    /// Which state that was learned `before` is doubtful now. `before` is `None` for a store of the first version,
    /// which did not record it.
    #[must_use]
    pub fn doubt(&self, before: Option<&Self>) -> Doubt {
        let trust = before.map_or(Trust::Open, |before| before.trust);
        if before.is_some_and(|before| before.topic != self.topic) {
            return Doubt::All;
        }
        // An attacker may know a withdrawn key, so state that was signed with that key does not count any more.
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
    /// The changes that leave no doubtful state. Imports stay, because only this host can tell them from its local
    /// bans. Their sources end soon, unless the origin repeats them. `now` is in seconds since 1970.
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
        records.extend(self.overrides.iter().map(|((key, host), override_)| {
            let override_ = Override { stamp: PROVISIONAL_STAMP, ..*override_ };
            Record::Override(key.clone(), host.clone(), Some(override_))
        }));
        records
    }
}

/// A copy of a source that ends within [`PROVISIONAL_TTL`]. Any message of its origin replaces the copy.
fn provisional(claim: &ImportSource, timing: &Timing, now: i64) -> ImportSource {
    let Ban { start, bantime } = claim.ban;
    let end = match bantime {
        0 => start.saturating_add(timing.default_bantime),
        _ => claim.ban.end(),
    };
    // A claim lasts for `expiry_slack` after its end (R3).
    let end = end.min(now.saturating_add(PROVISIONAL_TTL).saturating_sub(timing.expiry_slack));
    // Keep the bantime above 0: 0 is unknown, and negative is permanent.
    let start = start.min(end.saturating_sub(1));
    let ban = Ban { start, bantime: end.saturating_sub(start) };
    ImportSource { host: claim.host.clone(), stamp: PROVISIONAL_STAMP, ban, unbans: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::claims::{Claim, seen_tombstones};
    use crate::model::{Address, HostName, Jail, JailScope, UnbanId};
    use crate::wire::FleetUnban;

    const NOW: i64 = 1_795_342_600;

    fn provenance(topic: &str, brokers: &str, node: &str, trust: Trust) -> Provenance {
        let [topic, brokers, node] = [topic, brokers, node].map(str::to_owned);
        Provenance { topic, brokers, node, trust, keys: BTreeSet::new() }
    }

    fn trusting(trust: Trust) -> Provenance {
        provenance("t", "hub:1883", "web1", trust)
    }

    /// Keys are separated by blanks.
    fn with_keys(keys: &str, trust: Trust) -> Provenance {
        let keys = keys.split_whitespace().map(str::to_owned).collect();
        Provenance { keys, ..trusting(trust) }
    }

    #[test]
    fn other_topic_or_stricter_trust_makes_state_doubtful_and_other_broker_ends_the_session() {
        use Doubt::{All, Claims, Nothing, Unbans};
        use Trust::{Mixed, Open, Strict};
        let table = [
            (Some(trusting(Open)), Open, Nothing, true),
            (Some(trusting(Open)), Mixed, Unbans, true),
            (Some(trusting(Open)), Strict, All, true),
            (Some(trusting(Mixed)), Open, Nothing, true),
            (Some(trusting(Mixed)), Mixed, Nothing, true),
            (Some(trusting(Mixed)), Strict, Claims, true),
            (Some(trusting(Strict)), Strict, Nothing, true),
            (Some(trusting(Strict)), Mixed, Nothing, true),
            (Some(provenance("u", "hub:1883", "web1", Strict)), Strict, All, false),
            (Some(provenance("u", "hub:1883", "web1", Open)), Open, All, false),
            (Some(provenance("t", "old:1883", "web1", Strict)), Strict, Nothing, false),
            (Some(provenance("t", "hub:1883", "web2", Open)), Open, Nothing, false),
            (None, Open, Nothing, false),
            (None, Mixed, Unbans, false),
            (None, Strict, All, false),
        ];
        for (before, trust, doubt, keeps) in table {
            let now = trusting(trust);
            assert_eq!(now.doubt(before.as_ref()), doubt, "{before:?} {trust:?}");
            let kept = before.as_ref().is_some_and(|before| now.keeps_session(before));
            assert_eq!(kept, keeps, "{before:?}");
        }
    }

    #[test]
    fn state_signed_with_a_withdrawn_key_is_doubtful() {
        use Doubt::{All, Nothing};
        use Trust::{Mixed, Open, Strict};
        let table = [
            ("old", "new old", Strict, Nothing),
            ("new old", "new", Strict, All),
            ("new old", "new", Mixed, All),
            ("old", "new", Strict, All),
            ("new", "new", Strict, Nothing),
            ("old", "", Open, Nothing), // without a key everything counts anyway
        ];
        for (before, now, trust, doubt) in table {
            let before = with_keys(before, trust.max(Mixed));
            assert_eq!(with_keys(now, trust).doubt(Some(&before)), doubt, "{before:?} {now}");
            assert!(with_keys(now, trust).keeps_session(&before));
        }
    }

    fn persisted(bans: &[(i64, Ban)]) -> PersistedState {
        let key = (Jail::new("sshd").unwrap(), Address::new("192.0.2.1").unwrap());
        let (web2, id) = (HostName::new("web2").unwrap(), UnbanId::new("web2-5").unwrap());
        let unbans = seen_tombstones(vec![id.clone()]);
        let sources = bans.iter().map(|&(stamp, ban)| {
            let (host, unbans) = (web2.clone(), unbans.clone());
            ImportSource { host, stamp, ban, unbans }
        });
        let import = Import::intended(sources.collect(), 600, NOW - 9);
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
    fn doubtful_state_is_deleted_except_imports_and_overrides() {
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
    fn claim_of_an_earlier_trust_lasts_at_most_a_minute() {
        let timing = Timing::default();
        let host = HostName::new("web2").unwrap();
        let restored = Claim { host, stamp: 1_000, ban: None, unbans: None };
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
            let claim = Claim { ban: Some(ban), ..restored.clone() };
            assert_eq!(claim.expires_at(None, &timing), until, "{start} {bantime}");
        }
    }
}
