//! Turns events from notify into events for the fleet: suppresses repetitions and the effects of this daemon's own
//! unbans, and finds the reason of an unban (R18).

use std::collections::HashMap;

use super::BanKey;
use crate::model::{BipsRow, HostName, UnbanId};
use crate::sys::clock::is_within;
use crate::wire::{Action, Event, Reason, SpooledEvent};

/// A repetition within this time is the same event from a second action of the jail, in milliseconds.
const REPEAT_WINDOW: i64 = 10_000;

/// fail2ban reports a ban or unban by this daemon within this time, in milliseconds.
const OWN_CALL_WINDOW: i64 = 10_000;

/// The start of a ban is in whole seconds, so an extension may look longer by this, in seconds.
const EXTENSION_ROUNDING: i64 = 1;

/// Decides which events from notify this host publishes (R18).
///
/// Invariants: of several events about one ban within `REPEAT_WINDOW`, it passes the first. It passes no unban, and no
/// extension of a local ban, that fail2ban reports within `OWN_CALL_WINDOW` after this daemon caused it. The tables
/// hold only entries of these windows, so that they stay small.
#[derive(Debug)]
pub struct LocalEventFilter {
    host: HostName,
    /// The last event of each address, and when, in milliseconds.
    recently_sent: HashMap<BanKey, (SpooledEvent, i64)>,
    /// The addresses that this daemon unbanned, and when, in milliseconds.
    self_initiated: HashMap<BanKey, i64>,
    /// The addresses that this daemon banned, and when, in milliseconds.
    self_banned: HashMap<BanKey, i64>,
}

impl LocalEventFilter {
    /// A filter without history. `host` is this host, which its events name.
    #[must_use]
    pub fn new(host: HostName) -> Self {
        let (recently_sent, self_initiated) = (HashMap::new(), HashMap::new());
        Self { host, recently_sent, self_initiated, self_banned: HashMap::new() }
    }

    /// Notes an unban by this daemon, which fail2ban will report (R18).
    pub fn expect_unban(&mut self, key: &BanKey, now: i64) {
        self.self_initiated.insert(key.clone(), now);
    }

    /// Notes a ban by this daemon. If this host detects the same attack in the same moment, fail2ban extends the local
    /// ban and reports the extension (R18).
    pub fn expect_extension(&mut self, key: &BanKey, now: i64) {
        self.self_banned.insert(key.clone(), now);
    }

    /// Whether the event reports a local ban that only this daemon's own `banip` extended. `banip` starts the bantime
    /// again, so the ban grows by the time since its start. `bantime.increment` extends a ban by more than that.
    fn is_own_extension(&self, spooled: &SpooledEvent, key: &BanKey, now: i64) -> bool {
        let since_start = now.div_euclid(1000).saturating_sub(spooled.time);
        spooled.action == Action::Ban
            && self.self_banned.contains_key(key)
            && self.recently_sent.get(key).is_some_and(|(last, _)| {
                let growth = spooled.bantime.saturating_sub(last.bantime);
                last.action == Action::Ban
                    && last.time == spooled.time
                    && last.bantime > 0
                    && (1..=since_start.saturating_add(EXTENSION_ROUNDING)).contains(&growth)
            })
    }

    /// The event to publish for an event from notify, if any (R18). Take `stamp` before this call, which reads the state
    /// that the event describes. `row` reads fail2ban's row of the ban: the outer `None` means that fail2ban has no
    /// database. A ban event carries `unbans` (R16).
    ///
    /// # Errors
    /// The error of `row`. The caller retries with the same event.
    pub fn event<E>(
        &mut self,
        spooled: &SpooledEvent,
        stamp: i64,
        row: impl FnOnce() -> Result<Option<Option<BipsRow>>, E>,
        unbans: Vec<UnbanId>,
        now: i64,
    ) -> Result<Option<Event>, E> {
        self.recently_sent.retain(|_, (_, at)| is_within(REPEAT_WINDOW, *at, now));
        self.self_initiated.retain(|_, at| is_within(OWN_CALL_WINDOW, *at, now));
        self.self_banned.retain(|_, at| is_within(OWN_CALL_WINDOW, *at, now));
        let key = (spooled.jail.clone(), spooled.address);
        if self.recently_sent.get(&key).is_some_and(|(last, _)| spooled.repeats(last)) {
            return Ok(None);
        }
        // An unban by this daemon is not published (R18).
        if spooled.action == Action::Unban && self.self_initiated.contains_key(&key) {
            return Ok(None);
        }
        if self.is_own_extension(spooled, &key, now) {
            return Ok(None);
        }
        let Some(reason) = reason(spooled, row, now.div_euclid(1000))? else { return Ok(None) };
        self.recently_sent.insert(key, (spooled.clone(), now));
        let mut event = spooled.clone().event(&self.host, stamp, reason);
        if spooled.action == Action::Ban {
            event.unbans = unbans;
        }
        Ok(Some(event))
    }
}

/// The reason of an event; `None` if the event is not published (R18). An unban counts if the ban expired, by the event
/// or by fail2ban's row, or if the row is gone: then the operator unbanned the address. Otherwise fail2ban is stopping,
/// and will restore the ban. Without a database, the two look alike, and the unban counts.
fn reason<E>(
    spooled: &SpooledEvent,
    row: impl FnOnce() -> Result<Option<Option<BipsRow>>, E>,
    now: i64,
) -> Result<Option<Reason>, E> {
    if spooled.action == Action::Ban {
        return Ok(Some(Reason::Detected));
    }
    let ban =
        BipsRow { timeofban: spooled.time, bantime: spooled.bantime, failures: spooled.failures };
    if spooled.time > 0 && spooled.bantime > 0 && ban.is_over(now) {
        return Ok(Some(Reason::Expired));
    }
    Ok(match row()? {
        Some(Some(row)) if row.is_over(now) => Some(Reason::Expired),
        Some(Some(_)) => None,
        Some(None) | None => Some(Reason::Lifted),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, Jail};

    fn spooled(action: Action, time: i64) -> SpooledEvent {
        SpooledEvent {
            action,
            jail: Jail::new("sshd").unwrap(),
            address: Address::new("203.0.113.9").unwrap(),
            bantime: 600,
            restored: 0,
            failures: 3,
            time,
        }
    }

    fn row(timeofban: i64) -> BipsRow {
        BipsRow { timeofban, bantime: 600, failures: 3 }
    }

    fn filter() -> LocalEventFilter {
        LocalEventFilter::new(HostName::new("web1").unwrap())
    }

    impl LocalEventFilter {
        /// The event that is published although fail2ban's database has no row.
        fn event_without_row(&mut self, spooled: &SpooledEvent, now: i64) -> Option<Event> {
            let unbans = vec![UnbanId::new("web2-5").unwrap()];
            self.event(spooled, now, || Ok::<_, ()>(Some(None)), unbans, now).unwrap()
        }
    }

    #[test]
    fn unban_is_published_if_the_row_is_gone_or_expired() {
        let unban = spooled(Action::Unban, 1000);
        let table = [
            (Some(Some(row(1000))), 1600, Some(Reason::Expired)),
            (Some(Some(row(1000))), 1599, Some(Reason::Expired)),
            (Some(Some(row(1000))), 1200, None),
            // A bantime that was shortened: the row has the old one.
            (Some(Some(BipsRow { bantime: 9999, ..row(1000) })), 1600, Some(Reason::Expired)),
            // An event with another time than the row's: the row decides.
            (Some(Some(row(400))), 1200, Some(Reason::Expired)),
            (Some(None), 1200, Some(Reason::Lifted)),
            (None, 1600, Some(Reason::Expired)),
            (None, 1200, Some(Reason::Lifted)),
        ];
        for (row, now, expected) in table {
            let reason = reason(&unban, || Ok::<_, ()>(row), now);
            assert_eq!(reason, Ok(expected), "{row:?} at {now}");
        }
        let ban = spooled(Action::Ban, 1000);
        assert_eq!(
            reason(&ban, || Err(()), 9999),
            Ok(Some(Reason::Detected)),
            "the row is not read"
        );
        assert_eq!(reason(&unban, || Err(()), 1200), Err(()), "the database is busy");
    }

    #[test]
    fn events_of_two_actions_of_a_jail_are_one() {
        use Action::{Ban, Unban};
        let (mut filter, mut now) = (filter(), 5_000_000);
        // Action, time of the ban, seconds since the event before -> the event is published.
        let table = [
            (Ban, 1000, 0, true),
            (Ban, 1000, 1, false), // the second action
            (Ban, 0, 1, false),    // an action that does not pass the time
            (Unban, 1000, 1, true),
            (Unban, 1000, 1, false),
            (Ban, 1003, 1, true), // a ban after its unban is another
            (Ban, 1009, 1, true), // a ban of another time, too
            (Ban, 0, 11, true),   // and one that comes much later
        ];
        for (row, (action, time, pause, published)) in table.into_iter().enumerate() {
            now += pause * 1000;
            let event = filter.event_without_row(&spooled(action, time), now);
            assert_eq!(event.is_some(), published, "row {row}");
        }
    }

    #[test]
    fn unban_by_this_daemon_is_not_published() {
        let mut filter = filter();
        let unban = spooled(Action::Unban, 1000);
        filter.expect_unban(&(unban.jail.clone(), unban.address), 1_100_000);
        assert_eq!(filter.event_without_row(&unban, 1_101_000), None);
        let event = filter.event_without_row(&unban, 1_120_000).unwrap();
        assert_eq!(event.reason, Some(Reason::Lifted));
    }

    #[test]
    fn local_ban_that_this_daemon_extended_is_not_published_again() {
        const DETECTED: i64 = 1_000_000;
        // This daemon bans the address, too -> the extended ban, published at, in milliseconds after the detection.
        let table = [
            (true, 601, 900, false),
            (true, 603, 2_100, false),
            (true, 604, 2_100, true), // longer than the time since its start
            (true, 1200, 2_100, true), // bantime.increment
            (true, -1, 2_100, true),
            (false, 601, 900, true), // the operator, or another program
            (true, 601, 11_000, true),
        ];
        for (bans, bantime, after, is_published) in table {
            let mut filter = filter();
            let ban = spooled(Action::Ban, DETECTED / 1000);
            if bans {
                filter.expect_extension(&(ban.jail.clone(), ban.address), DETECTED);
            }
            let first = filter.event_without_row(&ban, DETECTED);
            assert!(first.is_some(), "the detection itself");
            let extended = SpooledEvent { bantime, ..ban };
            let event = filter.event_without_row(&extended, DETECTED + after);
            assert_eq!(event.is_some(), is_published, "{bans} {bantime} {after}");
        }
    }

    #[test]
    fn ban_carries_fleet_unbans_and_unban_none() {
        let mut filter = filter();
        for (action, count, now) in [(Action::Ban, 1, 1_000_000), (Action::Unban, 0, 1_000_001)] {
            let event = filter.event_without_row(&spooled(action, 1000), now).unwrap();
            assert_eq!((event.unbans.len(), event.stamp), (count, now));
        }
    }
}
