//! Local bans (R6): what this host itself detected and holds. Its snapshot lists these bans and no others.

use crate::model::BipsRow;
use crate::wire::Ban;

/// The facts about one address that decide whether it is a local ban.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalBanFacts {
    /// The length of the ban that fail2ban holds, in seconds from its start (`get JAIL banip --with-time`; further
    /// failures extend it); below 0 for a permanent ban.
    pub held: Option<i64>,
    /// fail2ban's row of the address.
    pub row: Option<BipsRow>,
    /// A detection that notify reported and fail2ban's database lacks, because fail2ban has yet to write it, the disk is
    /// full, or there is no database.
    pub pending: Option<Ban>,
    /// Whether it has an import record.
    pub imported: bool,
    /// Whether fail2ban may not have restored its bans yet (R7).
    pub restoring: bool,
    /// Whether fail2ban is down.
    pub away: bool,
    /// In seconds since 1970.
    pub now: i64,
}

/// Whether the operator removed a local ban that is no longer held (R15): its row is gone, and the ban had not expired,
/// or the row was seen and too young to be purged.
#[must_use]
pub fn was_removed_by_operator(
    last: Ban,
    in_database: bool,
    row: Option<BipsRow>,
    now: i64,
    purge_age: i64,
) -> bool {
    let purged_before = now.saturating_sub(purge_age);
    let is_kept = last.bantime < 0 || last.start.saturating_add(3 * last.bantime) > purged_before;
    row.is_none() && (now < last.end() || in_database && is_kept)
}

/// The local ban of the address, if there is one.
#[must_use]
pub fn effective_ban(facts: LocalBanFacts) -> Option<Ban> {
    let LocalBanFacts { held, row, pending, imported, restoring, away, now } = facts;
    // A detection that is newer than the row counts, unless an import came after it.
    let pending =
        pending.filter(|ban| !imported && row.is_none_or(|row| row.timeofban < ban.start));
    if let Some(row) = row.filter(|row| row.failures > 0) {
        // While fail2ban is down or restores bans, rows that have not expired count as held (R7): stopping
        // fail2ban releases nothing.
        let may_return = !row.is_over(now) && (restoring || away);
        let counts = if held.is_some() { !imported } else { may_return };
        if counts && pending.is_none() {
            return Some(Ban { start: row.timeofban, bantime: held.unwrap_or(row.bantime) });
        }
    }
    let ban = pending?;
    let is_over = ban.bantime > 0 && ban.end() < now;
    if held.is_some() || away && !is_over {
        return Some(Ban { start: ban.start, bantime: held.unwrap_or(ban.bantime) });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ban_that_ends_early_and_leaves_no_row_was_removed_by_the_operator() {
        let last = Ban { start: 1000, bantime: 600 };
        let row = Some(BipsRow { timeofban: 1000, bantime: 600, failures: 3 });
        let table = [
            (last, true, None, 1100, true),
            (last, false, None, 1100, true),
            (last, true, row, 1100, false),
            (last, true, None, 1700, true),
            (last, false, None, 1700, false), // a full disk: it never had a row
            (last, true, None, 1000 + 1800 + 86_400, false), // purged
            (Ban { bantime: -1, ..last }, true, None, 9_999_999, true),
        ];
        for (last, in_database, row, now, lifted) in table {
            assert_eq!(
                was_removed_by_operator(last, in_database, row, now, 86_400),
                lifted,
                "{last:?} {in_database} {row:?} {now}"
            );
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "most of the table are rows")]
    fn row(timeofban: i64, bantime: i64, failures: i64) -> Option<BipsRow> {
        Some(BipsRow { timeofban, bantime, failures })
    }

    #[expect(clippy::unnecessary_wraps, reason = "most of the table are bans")]
    fn ban(start: i64, bantime: i64) -> Option<Ban> {
        Some(Ban { start, bantime })
    }

    #[test]
    fn detected_and_held_ban_is_local() {
        let own = LocalBanFacts {
            held: Some(600),
            row: row(1000, 600, 3),
            now: 1100,
            ..LocalBanFacts::default()
        };
        let gone = LocalBanFacts { held: None, ..own };
        let detected = LocalBanFacts { row: None, pending: ban(1090, 600), ..own };
        let table = [
            (own, ban(1000, 600)),
            (LocalBanFacts { held: Some(900), ..own }, ban(1000, 900)), // fresh failures
            (LocalBanFacts { held: Some(900), now: 1800, ..own }, ban(1000, 900)), // the row never learns of them
            (LocalBanFacts { held: Some(-1), ..own }, ban(1000, -1)),
            (LocalBanFacts { row: row(1000, 600, 0), ..own }, None), // an import, or its operator's
            (LocalBanFacts { row: None, ..own }, None),
            (LocalBanFacts { row: row(400, 600, 3), imported: true, ..own }, None), // imported after an own ban
            (LocalBanFacts { imported: true, ..own }, None), // its row is still to be written
            (LocalBanFacts { imported: true, ..detected }, None),
            // Not held: expired, unbanned, or not restored yet.
            (gone, None),
            (LocalBanFacts { restoring: true, ..gone }, ban(1000, 600)),
            (LocalBanFacts { away: true, ..gone }, ban(1000, 600)),
            (LocalBanFacts { restoring: true, now: 1700, ..gone }, None),
            (LocalBanFacts { away: true, row: row(1000, 600, 0), ..gone }, None),
            (LocalBanFacts { away: true, row: None, ..gone }, None),
            // Reported by notify, and not in the database.
            (detected, ban(1090, 600)),
            (LocalBanFacts { row: row(400, 600, 3), ..detected }, ban(1090, 600)),
            (LocalBanFacts { row: row(1090, 600, 3), ..detected }, ban(1090, 600)),
            (LocalBanFacts { row: row(1095, 600, 0), ..detected }, None), // it ended, and the operator banned it
            (LocalBanFacts { held: None, ..detected }, None),
            (LocalBanFacts { held: None, away: true, ..detected }, ban(1090, 600)),
            (LocalBanFacts { held: None, away: true, now: 1700, ..detected }, None),
            (
                LocalBanFacts {
                    held: None,
                    away: true,
                    now: 9999,
                    pending: ban(1090, 0),
                    ..detected
                },
                ban(1090, 0),
            ),
        ];
        for (facts, expected) in table {
            assert_eq!(effective_ban(facts), expected, "{facts:?}");
        }
    }
}
