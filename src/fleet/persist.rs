//! The state that survives a restart (R11): imports, overrides, tombstones, legacy claims, detections that fail2ban's
//! database does not have, and the reserved stamp. All other state is on the broker or in fail2ban's database.

use std::collections::BTreeMap;

use super::BanKey;
use super::imports::Import;
use super::overrides::Override;
use crate::guard::is_ahead;
use crate::model::HostName;
use crate::wire::{Ban, FleetUnban};

/// A change of one record; `None` deletes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An import.
    Import(BanKey, Option<Import>),
    /// An override of one origin's ban.
    Override(BanKey, HostName, Option<Override>),
    /// A fleet unban, and whether it was applied here.
    Tombstone(FleetUnban, Option<bool>),
    /// The claim of a legacy peer, and when it arrived, in seconds since 1970.
    LegacyClaim(BanKey, HostName, Option<i64>),
    /// A detection that is not in fail2ban's database.
    PendingDetection(BanKey, Option<Ban>),
    /// The greatest stamp that this host may have taken.
    Stamp(i64),
}

/// The identity of a record: a later change of the same record replaces an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RecordKey {
    Import(BanKey),
    Override(BanKey, HostName),
    Tombstone(FleetUnban),
    LegacyClaim(BanKey, HostName),
    PendingDetection(BanKey),
    Stamp,
}

impl Record {
    pub(super) fn key(&self) -> RecordKey {
        match self {
            Self::Import(key, _) => RecordKey::Import(key.clone()),
            Self::Override(key, host, _) => RecordKey::Override(key.clone(), host.clone()),
            Self::Tombstone(fleet_unban, _) => RecordKey::Tombstone(fleet_unban.clone()),
            Self::LegacyClaim(key, host, _) => RecordKey::LegacyClaim(key.clone(), host.clone()),
            Self::PendingDetection(key, _) => RecordKey::PendingDetection(key.clone()),
            Self::Stamp(_) => RecordKey::Stamp,
        }
    }
}

/// All records, as they are on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersistedState {
    /// Imports, also those that were only intended (R9).
    pub imports: BTreeMap<BanKey, Import>,
    /// Overrides, by address and origin.
    pub overrides: BTreeMap<(BanKey, HostName), Override>,
    /// Fleet unbans, and whether each was applied here.
    pub tombstones: BTreeMap<FleetUnban, bool>,
    /// Claims of legacy peers, and when they arrived, in seconds since 1970.
    pub legacy_claims: BTreeMap<(BanKey, HostName), i64>,
    /// Detections that fail2ban's database does not have.
    pub pending_detections: BTreeMap<BanKey, Ban>,
    /// The greatest stamp that this host may have used.
    pub stamp: i64,
}

impl PersistedState {
    /// Lowers stamps in the future to `now`, in milliseconds, and drops tombstones from the future. An earlier version,
    /// or a clock that was far behind, may have accepted them.
    pub fn clamp(&mut self, now: i64) {
        let sources = self.imports.values_mut().flat_map(|import| &mut import.sources);
        let stamps = sources.map(|source| &mut source.stamp);
        for stamp in stamps.chain(self.overrides.values_mut().map(|override_| &mut override_.stamp))
        {
            if is_ahead(*stamp, now) {
                *stamp = now;
            }
        }
        self.tombstones.retain(|fleet_unban, _| !is_ahead(fleet_unban.id.created_at(), now));
    }

    /// Applies one change.
    pub fn apply(&mut self, record: Record) {
        fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        match record {
            Record::Import(key, import) => put(&mut self.imports, key, import),
            Record::Override(key, host, override_) => {
                put(&mut self.overrides, (key, host), override_);
            }
            Record::Tombstone(fleet_unban, applied) => {
                put(&mut self.tombstones, fleet_unban, applied);
            }
            Record::LegacyClaim(key, host, since) => {
                put(&mut self.legacy_claims, (key, host), since);
            }
            Record::PendingDetection(key, ban) => put(&mut self.pending_detections, key, ban),
            Record::Stamp(stamp) => self.stamp = stamp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::imports::{ImportSource, ImportSources};
    use crate::guard::HORIZON;
    use crate::model::{Address, Jail, JailScope, UnbanId};

    #[test]
    fn stamps_of_the_future_are_clamped() {
        const NOW: i64 = 1_795_342_588_000;
        let key: BanKey = (Jail::new("sshd").unwrap(), Address::new("192.0.2.1").unwrap());
        let host = HostName::new("web2").unwrap();
        let table =
            [(5, 5), (NOW + HORIZON, NOW + HORIZON), (NOW + HORIZON + 1, NOW), (i64::MAX, NOW)];
        for (stamp, expected) in table {
            let mut persisted = PersistedState::default();
            let ban = Ban { start: 1, bantime: -1 };
            let claim = ImportSource { host: host.clone(), stamp, ban, unbans: None };
            let claims: ImportSources = [claim].into_iter().collect();
            persisted.imports.insert(key.clone(), Import::intended(claims, 600, 1));
            let override_ = Override { start: 1, stamp };
            persisted.overrides.insert((key.clone(), host.clone()), override_);
            let id = UnbanId::made_by(&host, stamp);
            let fleet_unban = FleetUnban { scope: JailScope::All, address: key.1, id };
            persisted.tombstones.insert(fleet_unban, true);
            persisted.clamp(NOW);
            assert_eq!(persisted.imports[&key].sources[0].stamp, expected);
            assert_eq!(persisted.overrides[&(key.clone(), host.clone())].stamp, expected);
            assert_eq!(persisted.tombstones.len(), usize::from(stamp == expected));
        }
    }
}
