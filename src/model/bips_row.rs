//! A row of `bips`, the table of fail2ban's database that lists all bans.

/// A row of table `bips`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BipsRow {
    /// The start of the ban, in seconds since 1970.
    pub timeofban: i64,
    /// Bantime in seconds; -1: permanent.
    pub bantime: i64,
    /// The number of failures; 0 if this host did not detect the attack.
    pub failures: i64,
}

impl BipsRow {
    /// When the ban ends, in seconds since 1970; `None` for a permanent ban.
    #[must_use]
    pub fn end(&self) -> Option<i64> {
        (self.bantime >= 0).then(|| self.timeofban.saturating_add(self.bantime))
    }

    /// Whether the ban has ended by `now`. fail2ban rounds times to the second, so the last second of a ban counts as
    /// over.
    #[must_use]
    pub fn is_over(&self, now: i64) -> bool {
        self.end().is_some_and(|end| end <= now.saturating_add(1))
    }
}
