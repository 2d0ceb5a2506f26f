//! Import records (R9, R10, R14). The daemon persists a record before fail2ban makes the ban. The record is the only
//! proof that the ban is an import, and neither a local ban nor a ban by the operator.

use smallvec::SmallVec;

use super::claims::SeenTombstones;
use crate::model::{BipsRow, HostName};
use crate::wire::Ban;

/// The longest time until `banip` answers, in seconds: fail2ban kills an action after 60 s, and a batch runs a few.
const ANSWER_TIMEOUT: i64 = 150;

/// How long fail2ban takes at most to write a ban into its database, in seconds.
pub(super) const MAX_WRITE_DELAY: i64 = 5;

/// A claim that an import rests on, copied into its record (R11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportSource {
    /// The origin of the claim.
    pub host: HostName,
    /// The stamp of the claim; 0 for a legacy peer.
    pub stamp: i64,
    /// The ban that the origin holds.
    pub ban: Ban,
    /// The tombstones that the claim carries (R17).
    pub unbans: SeenTombstones,
}

/// The sources of one import. Most imports have one, which is stored inline.
pub type ImportSources = SmallVec<[ImportSource; 1]>;

/// The progress of an import (R9). After a crash between the two steps, fail2ban may or may not have the ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportState {
    /// `banip` is about to be called.
    Intended,
    /// `banip` was called.
    Applied,
}

/// The record of one import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Whether `banip` was called.
    pub state: ImportState,
    /// When `banip` was called, in seconds since 1970: the ban began no earlier.
    pub requested_at: i64,
    /// When `banip` had answered, in seconds since 1970: the ban began no later.
    pub confirmed_at: i64,
    /// The bantime of the jail at that time, in seconds; below 0 for a permanent ban.
    pub bantime: i64,
    /// Whether an observation had fail2ban's row of the ban.
    pub row_seen: bool,
    /// The claims that the import rests on (R11).
    pub sources: ImportSources,
    /// The run of the jail that held the ban last; not persisted.
    pub jail_epoch: Option<u32>,
}

/// An observation of an imported address.
#[derive(Clone, Copy, Debug)]
pub struct ImportObservation {
    /// Whether fail2ban bans the address.
    pub held: bool,
    /// fail2ban's row of the address.
    pub row: Option<BipsRow>,
    /// When fail2ban's database was created, in seconds since 1970; `None`: fail2ban has none.
    pub database: Option<i64>,
    /// The current run of the jail.
    pub jail_epoch: u32,
    /// When the ban ends by itself, in seconds since 1970, by the previous observation.
    pub end: i64,
    /// The age beyond which fail2ban may have purged a row, in seconds.
    pub purge_age: i64,
    /// In seconds since 1970.
    pub now: i64,
}

/// The status of an import after an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportStatus {
    /// The import is in effect.
    Active,
    /// Another ban holds the address: a local detection or one that the operator made (R10).
    Superseded,
    /// The address is not held: the ban expired, or fail2ban lost it.
    Expired,
    /// The address is not held, because this host's operator unbanned it (R14).
    RemovedByOperator,
}

impl Import {
    /// The record of a ban that is about to be made.
    #[must_use]
    pub fn intended(claims: ImportSources, bantime: i64, now: i64) -> Self {
        let answered = now.saturating_add(ANSWER_TIMEOUT);
        Self {
            state: ImportState::Intended,
            requested_at: now,
            confirmed_at: answered,
            bantime,
            row_seen: false,
            sources: claims,
            jail_epoch: None,
        }
    }

    /// Whether `banip` was called for this import.
    #[must_use]
    pub fn is_applied(&self) -> bool {
        self.state == ImportState::Applied
    }

    /// Whether the row leaves the record in force (R10): it is the import's own row, or an older one that fail2ban has
    /// not replaced yet. An older row that has not expired belongs to another ban once fail2ban had time to write.
    #[must_use]
    pub fn is_compatible_with(&self, row: BipsRow, now: i64) -> bool {
        let waits = row.is_over(now) || now <= self.confirmed_at.saturating_add(MAX_WRITE_DELAY);
        self.owns_row(row) || row.timeofban < self.requested_at - 1 && waits
    }

    /// Whether a row is the import's: its `timeofban` is within the call of `banip`.
    #[must_use]
    pub fn owns_row(&self, row: BipsRow) -> bool {
        let ours = self.requested_at - 1..=self.confirmed_at.saturating_add(1);
        row.failures == 0 && ours.contains(&row.timeofban)
    }

    /// Notes that an observation found the import in effect. Returns whether the record changed.
    pub fn confirm(&mut self, seen: ImportObservation) -> bool {
        let in_database = self.row_seen || seen.row.is_some_and(|row| self.owns_row(row));
        let is_new = !self.is_applied() || in_database != self.row_seen;
        (self.state, self.row_seen) = (ImportState::Applied, in_database);
        self.jail_epoch = Some(seen.jail_epoch);
        is_new
    }

    /// Classifies the import by an observation.
    #[must_use]
    pub fn classify(&self, seen: ImportObservation) -> ImportStatus {
        let ImportObservation { held, row, now, .. } = seen;
        if held {
            let fits = row.is_none_or(|row| self.is_compatible_with(row, now));
            return if fits { ImportStatus::Active } else { ImportStatus::Superseded };
        }
        if self.is_removed_by_operator(seen) {
            ImportStatus::RemovedByOperator
        } else {
            ImportStatus::Expired
        }
    }

    /// Whether the operator unbanned the import (R14): its row is gone, and either this fail2ban kept running and the
    /// lease has not ended, or the row was too young to be purged. Two kinds of rows never count as gone: a row that no
    /// observation had, and a row of an earlier database. fail2ban creates a new database if the old one is lost or
    /// damaged.
    fn is_removed_by_operator(&self, seen: ImportObservation) -> bool {
        let gone = seen.row.is_none();
        let ran_on = self.jail_epoch == Some(seen.jail_epoch) && seen.now < seen.end;
        let old = seen.now.saturating_sub(seen.purge_age);
        let young = self.bantime < 0 || self.requested_at.saturating_add(3 * self.bantime) > old;
        let had = self.row_seen && seen.database.is_some_and(|made| made <= self.requested_at);
        self.is_applied() && gone && (ran_on || had && young)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import() -> Import {
        let import = Import::intended(ImportSources::new(), 600, 1000);
        Import {
            state: ImportState::Applied,
            confirmed_at: 1003,
            row_seen: true,
            jail_epoch: Some(7),
            ..import
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "most of a table is rows")]
    fn row(timeofban: i64, bantime: i64, failures: i64) -> Option<BipsRow> {
        Some(BipsRow { timeofban, bantime, failures })
    }

    fn seen(held: bool, row: Option<BipsRow>) -> ImportObservation {
        ImportObservation {
            held,
            row,
            database: Some(i64::MIN),
            jail_epoch: 7,
            end: 1600,
            purge_age: 86_400,
            now: 1100,
        }
    }

    #[test]
    fn import_counts_only_while_the_row_is_its_own() {
        use ImportStatus::{Active, Superseded};
        let table = [
            (None, Active),
            (row(1001, 600, 0), Active),
            (row(999, 600, 0), Active),
            (row(1004, 600, 0), Active),
            (row(400, 600, 3), Active), // of an older ban; its own is not written yet
            (row(500, 700, 3), Superseded),
            (row(500, 700, 0), Superseded), // the operator's
            (row(1005, 600, 0), Superseded),
            (row(1001, 600, 3), Superseded), // detected
        ];
        for (row, expected) in table {
            assert_eq!(import().classify(seen(true, row)), expected, "{row:?}");
        }
        let just = ImportObservation { now: 1008, ..seen(true, row(500, 700, 3)) };
        assert_eq!(import().classify(just), Active, "fail2ban is still to write the new one");
        let intended = Import::intended(ImportSources::new(), 600, 1000);
        assert_eq!(
            intended.classify(seen(true, row(1090, 600, 0))),
            Active,
            "the answer never came"
        );
    }

    #[test]
    fn missing_ban_was_removed_by_the_operator_if_its_row_is_gone_and_nothing_else_explains_it() {
        use ImportStatus::{Expired, RemovedByOperator};
        let gone = seen(false, None);
        let restarted = ImportObservation { jail_epoch: 8, ..gone };
        let without_row = Import { row_seen: false, ..import() };
        let old = Import { requested_at: 1100 - 86_400 - 1800, ..import() };
        let table = [
            (import(), gone, RemovedByOperator),
            (import(), seen(false, row(1001, 600, 0)), Expired),
            (import(), ImportObservation { now: 1600, ..gone }, RemovedByOperator), // young: it would still have its row
            (import(), restarted, RemovedByOperator),
            (without_row.clone(), gone, RemovedByOperator), // this fail2ban has run on
            (without_row.clone(), restarted, Expired),      // it was killed before it wrote the row
            (without_row.clone(), ImportObservation { now: 1600, ..gone }, Expired),
            (old.clone(), restarted, Expired), // purged
            (old.clone(), gone, RemovedByOperator),
            (Import { bantime: -1, ..old.clone() }, restarted, RemovedByOperator), // these are never purged
            (import(), ImportObservation { database: None, ..gone }, RemovedByOperator),
            (import(), ImportObservation { database: None, ..restarted }, Expired),
            (import(), ImportObservation { database: Some(1000), ..restarted }, RemovedByOperator),
            (import(), ImportObservation { database: Some(1001), ..restarted }, Expired), // a new one
            (Import { state: ImportState::Intended, ..import() }, gone, Expired),
        ];
        for (import, seen, expected) in table {
            assert_eq!(import.classify(seen), expected, "{import:?} {seen:?}");
        }
    }
}
