//! Leases (R12): an import lasts as long as the ban at its origin. fail2ban ends each ban after the bantime of this
//! host's jail, and `banip` on a banned address extends the ban. So the receiver renews an import shortly before that
//! end, at most once per bantime. The receiver times the last renewal so that the import ends with its origin's ban.

/// How long before its end a lease is renewed at the latest, in seconds. The daemon polls fail2ban every two seconds,
/// and fail2ban may be busy.
#[must_use]
pub fn lead(bantime: i64) -> i64 {
    (bantime / 4).clamp(1, 60)
}

/// When to renew a ban that fail2ban ends at `end`, so that it lasts until `wanted`, in seconds since 1970; `None` if
/// the ban lasts long enough. A `banip` extends the ban to the jail's `bantime` from that moment on.
#[must_use]
pub fn due(end: i64, wanted: i64, bantime: i64) -> Option<i64> {
    if wanted <= end || end == i64::MAX {
        return None;
    }
    if bantime < 0 {
        return Some(end - lead(60)); // the jail bans permanently now, but its earlier bans still end
    }
    let (last, step) = (end - lead(bantime), (bantime - lead(bantime)).max(1));
    let missing = wanted.saturating_sub(end);
    // Each renewal adds at most `step`. The first one is early by the remainder, so that the last one ends with the
    // origin.
    let rest = missing % step;
    let early = if missing > 1_000 * step || rest == 0 { 0 } else { step - rest };
    Some(last - early)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_is_renewed_late_and_the_last_renewal_ends_with_the_origin() {
        const NEVER: i64 = i64::MAX;
        let table = [
            // fail2ban's end, the origin's end, the jail's bantime -> due
            (1600, 1600, 600, None),
            (1600, 900, 600, None),
            (NEVER, NEVER, -1, None),
            (1600, NEVER, 600, Some(1540)),
            (1600, 2140, 600, Some(1540)), // 540 more: at 1540, until 2140
            (1600, 1700, 600, Some(1100)), // 100 more: at 1100, until 1700
            (1600, 2141, 600, Some(1001)), // twice, 540 apart: at 1001 and 1541, until 2141
            (1060, NEVER, 60, Some(1045)),
            (1600, NEVER, -1, Some(1585)),
            (1002, NEVER, 2, Some(1001)),
            (1001, NEVER, 1, Some(1000)),
        ];
        for (end, wanted, bantime, expected) in table {
            assert_eq!(due(end, wanted, bantime), expected, "{end} {wanted} {bantime}");
        }
    }

    #[test]
    fn renewals_leave_no_gap_and_end_on_time() {
        for bantime in [4, 20, 60, 600, 3600] {
            for wanted in (1000 + bantime..1000 + 9 * bantime).step_by(7) {
                let (mut end, mut times) = (1000 + bantime, 0);
                while let Some(due) = due(end, wanted, bantime) {
                    assert!(
                        due < end && due >= end - bantime,
                        "{bantime} {wanted}: {due} for {end}"
                    );
                    end = due + bantime;
                    times += 1;
                }
                assert_eq!(end, wanted);
                let least = (wanted - 1000 - bantime)
                    .unsigned_abs()
                    .div_ceil((bantime - lead(bantime)).unsigned_abs());
                assert_eq!(times, least, "no more renewals than necessary");
            }
        }
    }
}
