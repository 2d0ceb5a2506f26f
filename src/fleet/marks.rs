//! **Import**: what this host banned for others is marked, on disk before fail2ban is told, so that it can
//! be told from the host's own bans and its operator's, and be freed.

use smallvec::SmallVec;

use super::claims::SeenTombstones;
use crate::fail2ban::database::BipsRow;
use crate::wire::{Ban, HostName};

/// fail2ban kills an action after a minute, and a batch is a few of them: no answer comes later.
const ANSWER: i64 = 150;

/// fail2ban writes a ban into its database within so many seconds.
pub(super) const WRITTEN: i64 = 5;

/// Whose ban an import rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ImportSource {
    pub host: HostName,
    pub stamp: i64,
    pub ban: Ban,
    pub unbans: SeenTombstones,
}

/// Those of one import: most rest on one, which takes no memory of its own.
pub type ImportSources = SmallVec<[ImportSource; 1]>;

/// One import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// `false`: *intended*, fail2ban was about to be told. `true`: *done*, it was.
    pub is_applied: bool,
    /// When fail2ban was told, and when it had answered, in seconds since 1970: the ban began between.
    pub requested_at: i64,
    #[allow(missing_docs)]
    pub confirmed_at: i64,
    /// How long the jail banned then, in seconds; below 0 is for ever.
    pub bantime: i64,
    /// fail2ban's row of it was seen.
    pub row_seen: bool,
    /// Whose bans it rests on.
    pub sources: ImportSources,
    /// Which run of the jail was seen to hold it; not remembered.
    pub jail_epoch: Option<u32>,
}

/// What fail2ban shows of a marked address.
#[derive(Clone, Copy, Debug)]
pub struct ImportObservation {
    /// It bans the address.
    pub held: bool,
    /// Its row.
    pub row: Option<BipsRow>,
    /// When its database was made, in seconds since 1970; `None`: it keeps none.
    pub database: Option<i64>,
    /// Which run of the jail this is.
    pub jail_epoch: u32,
    /// When the ban was to end by itself, in seconds since 1970, by what was seen before.
    pub end: i64,
    /// Rows that are older may have been purged, in seconds.
    pub purge_age: i64,
    /// The time, in seconds since 1970.
    pub now: i64,
}

/// What a look at fail2ban says of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportStatus {
    /// It stands.
    Active,
    /// What is held is not what was imported: it is the host's own or its operator's.
    Superseded,
    /// It is not held: its time here is over, or fail2ban lost it.
    Expired,
    /// It is not held: this host's operator lifted it.
    RemovedByOperator,
}

impl Import {
    /// An import that fail2ban is about to be told of.
    #[must_use]
    pub fn intended(claims: ImportSources, bantime: i64, now: i64) -> Self {
        let answered = now.saturating_add(ANSWER);
        Self {
            is_applied: false,
            requested_at: now,
            confirmed_at: answered,
            bantime,
            row_seen: false,
            sources: claims,
            jail_epoch: None,
        }
    }

    /// **A mark counts only while the row's `timeofban` is the mark's.** An older row that lasts is
    /// another ban's, if fail2ban had time to write this one's.
    #[must_use]
    pub fn is_compatible_with(&self, row: BipsRow, now: i64) -> bool {
        let waits = row.is_over(now) || now <= self.confirmed_at.saturating_add(WRITTEN);
        self.owns_row(row) || row.timeofban < self.requested_at - 1 && waits
    }

    /// Whether a row is the import's.
    #[must_use]
    pub fn owns_row(&self, row: BipsRow) -> bool {
        let ours = self.requested_at - 1..=self.confirmed_at.saturating_add(1);
        row.failures == 0 && ours.contains(&row.timeofban)
    }

    /// It was seen to stand. Answers whether that is news to be remembered.
    pub fn confirm(&mut self, seen: ImportObservation) -> bool {
        let rowed = self.row_seen || seen.row.is_some_and(|row| self.owns_row(row));
        let news = !self.is_applied || rowed != self.row_seen;
        (self.is_applied, self.row_seen, self.jail_epoch) = (true, rowed, Some(seen.jail_epoch));
        news
    }

    /// What has become of the import.
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

    /// **The operator of this host wins.** A done import that is not held was lifted by hand if its row is
    /// gone, and either this fail2ban has run on since with the lease unfinished, or the row was too young
    /// to be purged. A row that was never seen cannot be gone, nor can one that was in another database:
    /// fail2ban makes a new one where it lost or could not repair it.
    fn is_removed_by_operator(&self, seen: ImportObservation) -> bool {
        let gone = seen.row.is_none();
        let ran_on = self.jail_epoch == Some(seen.jail_epoch) && seen.now < seen.end;
        let old = seen.now.saturating_sub(seen.purge_age);
        let young = self.bantime < 0 || self.requested_at.saturating_add(3 * self.bantime) > old;
        let had = self.row_seen && seen.database.is_some_and(|made| made <= self.requested_at);
        self.is_applied && gone && (ran_on || had && young)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Import {
        let mark = Import::intended(ImportSources::new(), 600, 1000);
        Import { is_applied: true, confirmed_at: 1003, row_seen: true, jail_epoch: Some(7), ..mark }
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
    fn what_is_held_is_ours_only_while_its_row_is() {
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
            assert_eq!(mark().classify(seen(true, row)), expected, "{row:?}");
        }
        let just = ImportObservation { now: 1008, ..seen(true, row(500, 700, 3)) };
        assert_eq!(mark().classify(just), Active, "fail2ban is still to write the new one");
        let intended = Import::intended(ImportSources::new(), 600, 1000);
        assert_eq!(
            intended.classify(seen(true, row(1090, 600, 0))),
            Active,
            "the answer never came"
        );
    }

    #[test]
    fn what_is_not_held_was_lifted_if_its_row_is_gone_and_nothing_else_explains_it() {
        use ImportStatus::{Expired, RemovedByOperator};
        let gone = seen(false, None);
        let restarted = ImportObservation { jail_epoch: 8, ..gone };
        let unrowed = Import { row_seen: false, ..mark() };
        let old = Import { requested_at: 1100 - 86_400 - 1800, ..mark() };
        let table = [
            (mark(), gone, RemovedByOperator),
            (mark(), seen(false, row(1001, 600, 0)), Expired),
            (mark(), ImportObservation { now: 1600, ..gone }, RemovedByOperator), // young: it would still have its row
            (mark(), restarted, RemovedByOperator),
            (unrowed.clone(), gone, RemovedByOperator), // this fail2ban has run on
            (unrowed.clone(), restarted, Expired),      // it was killed before it wrote the row
            (unrowed.clone(), ImportObservation { now: 1600, ..gone }, Expired),
            (old.clone(), restarted, Expired), // purged
            (old.clone(), gone, RemovedByOperator),
            (Import { bantime: -1, ..old.clone() }, restarted, RemovedByOperator), // these are never purged
            (mark(), ImportObservation { database: None, ..gone }, RemovedByOperator),
            (mark(), ImportObservation { database: None, ..restarted }, Expired),
            (mark(), ImportObservation { database: Some(1000), ..restarted }, RemovedByOperator),
            (mark(), ImportObservation { database: Some(1001), ..restarted }, Expired), // a new one
            (Import { is_applied: false, ..mark() }, gone, Expired),
        ];
        for (mark, seen, expected) in table {
            assert_eq!(mark.classify(seen), expected, "{mark:?} {seen:?}");
        }
    }
}
