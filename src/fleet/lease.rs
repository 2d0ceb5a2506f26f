//! A ban lasts here as long as at its origin. fail2ban ends each after its jail's own bantime; so it
//! is prolonged before that, as late as is safe, for as long as somebody wants it.
//!
//! What is no longer banned although its lease runs was ended here: by this host's operator, if
//! fail2ban's row is gone and fail2ban has run on since, and then it stays so; or by a restart of
//! fail2ban, which forgets the lease, and after a day the row.

/// All that counts for one import whose lease is looked at. Times are in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The time.
    pub now: i64,
    /// fail2ban bans it now.
    pub held: bool,
    /// When fail2ban will end it; `None`: never, or it is not known.
    pub until: Option<i64>,
    /// Until when somebody wants it; `None` where that is not known.
    pub wanted: Option<i64>,
    /// The jail's bantime; below 0 is for ever.
    pub bantime: i64,
    /// What fail2ban's database has of it.
    pub row: Row,
    /// fail2ban has run on since the lease was taken.
    pub ran_on: bool,
    /// fail2ban may still be restoring bans after its start.
    pub restoring: bool,
}

/// A row of fail2ban's database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// There is none: an operator lifted the ban, or it was long ago, or there is no database.
    Gone,
    /// Its time is over.
    Over,
    /// It lasts.
    Lasting,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing now.
    Leave,
    /// Ban it again while it is banned, which prolongs it.
    Prolong,
    /// It ended too soon: import it anew.
    Import,
    /// It is over, or was lifted here: forget it.
    Forget,
}

/// How long before its end a lease is due: daemon and fail2ban look every ten seconds.
fn lead(bantime: i64) -> i64 {
    (bantime / 4).clamp(15, 60)
}

/// Decides.
#[must_use]
pub fn renewal(facts: Facts) -> Renewal {
    let Facts { now, held, until, wanted, bantime, row, ran_on, restoring } = facts;
    if held {
        let due = until.is_some_and(|until| until - now <= lead(bantime));
        let longer = wanted > until;
        return if due && longer { Renewal::Prolong } else { Renewal::Leave };
    }
    match row {
        Row::Lasting if restoring => Renewal::Leave,
        Row::Gone if ran_on => Renewal::Forget,
        _ if wanted.is_some_and(|end| end > now) => Renewal::Import,
        _ => Renewal::Forget,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_late_and_only_while_it_is_wanted() {
        use Renewal::{Forget, Import, Leave, Prolong};
        use Row::{Gone, Lasting, Over};
        let held = Facts {
            now: 1000,
            held: true,
            until: Some(1600),
            wanted: Some(5000),
            bantime: 600,
            row: Lasting,
            ran_on: true,
            restoring: false,
        };
        let ended = Facts { held: false, until: Some(900), row: Over, ..held };
        let table = [
            (held, Leave),
            (Facts { now: 1539, ..held }, Leave),
            (Facts { now: 1540, ..held }, Prolong),
            (Facts { now: 1540, wanted: Some(i64::MAX), ..held }, Prolong),
            (Facts { now: 1540, wanted: Some(1600), ..held }, Leave),
            (Facts { now: 1540, wanted: None, ..held }, Leave),
            (Facts { now: 1540, until: None, bantime: -1, ..held }, Leave),
            (Facts { now: 1590, bantime: 12, ..held }, Prolong),
            (ended, Import),
            (Facts { row: Lasting, ..ended }, Import),
            (Facts { row: Lasting, restoring: true, ..ended }, Leave),
            (Facts { row: Gone, ..ended }, Forget),
            (Facts { row: Gone, ran_on: false, ..ended }, Import),
            (Facts { wanted: Some(999), ..ended }, Forget),
            (Facts { wanted: None, ..ended }, Forget),
            (Facts { wanted: None, row: Lasting, restoring: true, ..ended }, Leave),
        ];
        for (facts, expected) in table {
            assert_eq!(renewal(facts), expected, "{facts:?}");
        }
    }
}
