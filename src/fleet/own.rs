//! **Own**: what this host detected itself and holds. That, and nothing else, its snapshot tells the fleet.

use crate::fail2ban::database::BipsRow;
use crate::wire::Ban;

/// What is known here of one address.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalBanFacts {
    /// fail2ban bans it, for so many seconds from its start on (`get JAIL banip --with-time`; fresh
    /// failures prolong it), below 0 for ever.
    pub held: Option<i64>,
    /// fail2ban's row of it.
    pub row: Option<BipsRow>,
    /// A detection that notify told of and that is not in the database yet, or ever: a full disk, or none.
    pub pending: Option<Ban>,
    /// It is marked as an import.
    pub imported: bool,
    /// fail2ban is away, or has started so lately that it may not have restored its bans yet.
    pub restoring: bool,
    /// fail2ban is away.
    pub away: bool,
    /// The time, in seconds since 1970.
    pub now: i64,
}

/// **An own ban that is unbanned here is lifted for the others' claims, too**: whether an operator ended
/// one that is not held any more, and not its time. Its row is gone, and was seen, or its time was not over.
#[must_use]
pub fn was_removed_by_operator(
    last: Ban,
    rowed: bool,
    row: Option<BipsRow>,
    now: i64,
    purge_age: i64,
) -> bool {
    let old = now.saturating_sub(purge_age);
    let young = last.bantime < 0 || last.start.saturating_add(3 * last.bantime) > old;
    row.is_none() && (now < last.end() || rowed && young)
}

/// The host's own ban of the address, if there is one.
#[must_use]
pub fn effective_ban(facts: LocalBanFacts) -> Option<Ban> {
    let LocalBanFacts { held, row, pending: told, imported: marked, restoring, away, now } = facts;
    let length = |bantime| held.unwrap_or(bantime);
    // What was told since the row was written is the newer detection; an import came after it.
    let told = told.filter(|told| !marked && row.is_none_or(|row| row.timeofban < told.start));
    if let Some(row) = row.filter(|row| row.failures > 0) {
        // **While fail2ban is away or restores, rows whose end is to come count as held**: so its stop
        // frees nobody.
        let lasts = !row.is_over(now);
        let counts = if held.is_some() { !marked } else { lasts && (restoring || away) };
        if counts && told.is_none() {
            return Some(Ban { start: row.timeofban, bantime: length(row.bantime) });
        }
    }
    let told = told?;
    let over = told.bantime > 0 && told.end() < now;
    if held.is_some() || away && !over {
        return Some(Ban { start: told.start, bantime: length(told.bantime) });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_before_its_time_and_leaves_no_row_was_lifted() {
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
        for (last, rowed, row, now, lifted) in table {
            assert_eq!(
                was_removed_by_operator(last, rowed, row, now, 86_400),
                lifted,
                "{last:?} {rowed} {row:?} {now}"
            );
        }
    }

    #[test]
    fn what_was_detected_here_and_is_held_is_own() {
        let row = |timeofban, bantime, failures| Some(BipsRow { timeofban, bantime, failures });
        let ban = |start, bantime| Some(Ban { start, bantime });
        let own = LocalBanFacts {
            held: Some(600),
            row: row(1000, 600, 3),
            now: 1100,
            ..LocalBanFacts::default()
        };
        let gone = LocalBanFacts { held: None, ..own };
        let told = LocalBanFacts { row: None, pending: ban(1090, 600), ..own };
        let table = [
            (own, ban(1000, 600)),
            (LocalBanFacts { held: Some(900), ..own }, ban(1000, 900)), // fresh failures
            (LocalBanFacts { held: Some(900), now: 1800, ..own }, ban(1000, 900)), // the row never learns of them
            (LocalBanFacts { held: Some(-1), ..own }, ban(1000, -1)),
            (LocalBanFacts { row: row(1000, 600, 0), ..own }, None), // an import, or its operator's
            (LocalBanFacts { row: None, ..own }, None),
            (LocalBanFacts { row: row(400, 600, 3), imported: true, ..own }, None), // imported after an own ban
            (LocalBanFacts { imported: true, ..own }, None), // its row is still to be written
            (LocalBanFacts { imported: true, ..told }, None),
            // Not held: over, lifted, or not restored yet.
            (gone, None),
            (LocalBanFacts { restoring: true, ..gone }, ban(1000, 600)),
            (LocalBanFacts { away: true, ..gone }, ban(1000, 600)),
            (LocalBanFacts { restoring: true, now: 1700, ..gone }, None),
            (LocalBanFacts { away: true, row: row(1000, 600, 0), ..gone }, None),
            (LocalBanFacts { away: true, row: None, ..gone }, None),
            // Told, and not in the database.
            (told, ban(1090, 600)),
            (LocalBanFacts { row: row(400, 600, 3), ..told }, ban(1090, 600)),
            (LocalBanFacts { row: row(1090, 600, 3), ..told }, ban(1090, 600)),
            (LocalBanFacts { row: row(1095, 600, 0), ..told }, None), // it ended, and the operator banned it
            (LocalBanFacts { held: None, ..told }, None),
            (LocalBanFacts { held: None, away: true, ..told }, ban(1090, 600)),
            (LocalBanFacts { held: None, away: true, now: 1700, ..told }, None),
            (
                LocalBanFacts { held: None, away: true, now: 9999, pending: ban(1090, 0), ..told },
                ban(1090, 0),
            ),
        ];
        for (facts, expected) in table {
            assert_eq!(effective_ban(facts), expected, "{facts:?}");
        }
    }
}
