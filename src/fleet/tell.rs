//! Turns events from notify into events for the fleet: assigns stamps, suppresses repetitions and the effects of this
//! daemon's own unbans, and finds the reason of an unban (R18).

use std::collections::HashMap;

use super::BanKey;
use crate::clock::is_within;
use crate::fail2ban::database::BipsRow;
use crate::guard::{HORIZON, HORIZON_MARGIN};
use crate::wire::{Action, Event, HostName, Reason, SpooledEvent, UnbanId};

/// A repetition within this time is the same event from a second action of the jail, in milliseconds.
const REPEAT_WINDOW: i64 = 10_000;

/// fail2ban reports a ban or unban by this daemon within this time, in milliseconds.
const OWN_CALL_WINDOW: i64 = 10_000;

/// The start of a ban is in whole seconds, so an extension may look longer by this, in seconds.
const EXTENSION_ROUNDING: i64 = 1;

/// Stamps that were beyond the horizon of all peers continue this far below it, in milliseconds.
const HORIZON_DISTANCE: i64 = 60_000;

/// How far ahead stamps are reserved on disk, in milliseconds: after a crash, they continue above the reserved ones.
const RESERVE_AHEAD: i64 = 60_000;

/// Assigns the stamps of a host: one increasing sequence number over all its events and shards.
#[derive(Debug)]
pub struct Sequencer {
    host: HostName,
    stamp: i64,
    /// The greatest stamp that is reserved on disk.
    reserved: i64,
    /// Stamps were beyond the horizon, and continue below it.
    was_ahead: bool,
    /// The greatest own stamp from the broker that is beyond the horizon; 0 for none.
    later: i64,
    /// The last event of each address, and when, in milliseconds.
    recently_sent: HashMap<BanKey, (SpooledEvent, i64)>,
    /// The addresses that this daemon unbanned, and when, in milliseconds.
    self_initiated: HashMap<BanKey, i64>,
    /// The addresses that this daemon banned, and when, in milliseconds.
    self_banned: HashMap<BanKey, i64>,
}

impl Sequencer {
    /// Continues after the reserved stamp that is on disk; 0 for none.
    #[must_use]
    pub fn new(host: HostName, stamp: i64) -> Self {
        Self {
            host,
            stamp,
            reserved: stamp,
            was_ahead: false,
            later: 0,
            recently_sent: HashMap::new(),
            self_initiated: HashMap::new(),
            self_banned: HashMap::new(),
        }
    }

    /// The next stamp: greater than the one before, whatever the clock does. Take the stamp before reading the state it
    /// describes, so that it never claims to be newer than the data.
    pub fn stamp(&mut self, now: i64) -> i64 {
        // The clock was far ahead once. Peers reject such stamps, so continue below their horizon.
        if self.stamp > now.saturating_add(HORIZON + HORIZON_MARGIN) {
            self.stamp = now.saturating_add(HORIZON - HORIZON_MARGIN - HORIZON_DISTANCE);
            self.was_ahead = true;
        }
        self.stamp = now.max(self.stamp.saturating_add(1));
        self.stamp
    }

    /// The stamp to persist now, if the reserved one is used up; then [`on_reserved`](Self::on_reserved). It is ahead of
    /// all stamps in use, so that after a crash no stamp is at or below one that peers know, whatever the clock shows
    /// then and whatever the broker lost.
    #[must_use]
    pub fn stamp_to_reserve(&self, now: i64) -> Option<i64> {
        let next = now.max(self.stamp);
        let short = next.saturating_add(RESERVE_AHEAD / 2) > self.reserved;
        // The clock was far ahead once.
        let excessive = next.saturating_add(2 * RESERVE_AHEAD) < self.reserved;
        (short || excessive).then(|| next.saturating_add(RESERVE_AHEAD))
    }

    /// The reserved stamp is on disk.
    pub fn on_reserved(&mut self, stamp: i64) {
        self.reserved = stamp;
    }

    /// Whether stamps went back below the horizon since the last call.
    pub fn take_was_ahead(&mut self) -> bool {
        std::mem::take(&mut self.was_ahead)
    }

    /// The last stamp.
    #[must_use]
    pub fn last(&self) -> i64 {
        self.stamp
    }

    /// Continues above a stamp that the broker has in this host's name, perhaps from before its clock was set back. Peers
    /// may have accepted that stamp, and would ignore smaller ones. A stamp beyond the horizon here, which only peers
    /// with clocks ahead accepted, counts as soon as all peers accept greater ones. Returns whether the stamp was
    /// greater than this host's.
    pub fn adopt(&mut self, stamp: i64, now: i64) -> bool {
        let horizon = now.saturating_add(HORIZON);
        if stamp > horizon && stamp <= horizon.saturating_add(HORIZON_MARGIN) {
            self.later = self.later.max(stamp);
        }
        let is_new = stamp > self.stamp && stamp <= horizon;
        if is_new {
            self.stamp = stamp;
        }
        is_new
    }

    /// A stamp that was beyond the horizon and counts from now on, if any.
    pub fn take_later(&mut self, now: i64) -> Option<i64> {
        let later = self.later;
        if later == 0 || later > now.saturating_add(HORIZON) {
            return None;
        }
        self.later = 0;
        self.adopt(later, now).then_some(later)
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

    /// The event to publish for an event from notify, if any (R18). `row` reads fail2ban's row of the ban: the outer
    /// `None` means that fail2ban has no database. A ban event carries `unbans` (R16).
    ///
    /// # Errors
    /// The error of `row`. The caller retries with the same event.
    pub fn event<E>(
        &mut self,
        spooled: &SpooledEvent,
        row: impl FnOnce() -> Result<Option<Option<BipsRow>>, E>,
        unbans: Vec<UnbanId>,
        now: i64,
    ) -> Result<Option<Event>, E> {
        self.recently_sent.retain(|_, (_, at)| is_within(REPEAT_WINDOW, *at, now));
        self.self_initiated.retain(|_, at| is_within(OWN_CALL_WINDOW, *at, now));
        self.self_banned.retain(|_, at| is_within(OWN_CALL_WINDOW, *at, now));
        let stamp = self.stamp(now);
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
    let over =
        BipsRow { timeofban: spooled.time, bantime: spooled.bantime, failures: spooled.failures };
    if spooled.time > 0 && spooled.bantime > 0 && over.is_over(now) {
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
    use crate::wire::{Address, Jail};

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

    fn sequencer() -> Sequencer {
        Sequencer::new(HostName::new("web1").unwrap(), 0)
    }

    #[test]
    fn unban_is_published_if_the_row_is_gone_or_expired() {
        let row = |timeofban| BipsRow { timeofban, bantime: 600, failures: 3 };
        let unban = spooled(Action::Unban, 1000);
        let table = [
            (Some(Some(row(1000))), 1600, Some(Reason::Expired)),
            (Some(Some(row(1000))), 1599, Some(Reason::Expired)),
            (Some(Some(row(1000))), 1200, None),
            // A bantime that was shortened: the row has the old one.
            (Some(Some(BipsRow { bantime: 9999, ..row(1000) })), 1600, Some(Reason::Expired)),
            // A ban that was told with another time: the row decides.
            (Some(Some(row(400))), 1200, Some(Reason::Expired)),
            (Some(None), 1200, Some(Reason::Lifted)),
            (None, 1600, Some(Reason::Expired)),
            (None, 1200, Some(Reason::Lifted)),
        ];
        for (row, now, expected) in table {
            let asked = || Ok::<_, ()>(row);
            assert_eq!(reason(&unban, asked, now), Ok(expected), "{row:?} at {now}");
        }
        let ban = spooled(Action::Ban, 1000);
        assert_eq!(reason(&ban, || Err(()), 9999), Ok(Some(Reason::Detected)), "it is not asked");
        assert_eq!(reason(&unban, || Err(()), 1200), Err(()), "it is busy");
    }

    #[test]
    fn events_of_two_actions_of_a_jail_are_one() {
        let (mut sequencer, mut now) = (sequencer(), 5_000_000);
        let mut sends = |action, time, pause: i64| {
            now += pause * 1000;
            let event =
                sequencer.event(&spooled(action, time), || Ok::<_, ()>(None), Vec::new(), now);
            event.unwrap().is_some()
        };
        assert!(sends(Action::Ban, 1000, 0));
        assert!(!sends(Action::Ban, 1000, 1), "the second action");
        assert!(!sends(Action::Ban, 0, 1), "one that does not know the time");
        assert!(sends(Action::Unban, 1000, 1));
        assert!(!sends(Action::Unban, 1000, 1));
        assert!(sends(Action::Ban, 1003, 1), "a ban after its unban is another");
        assert!(sends(Action::Ban, 1009, 1), "a ban of another time, too");
        assert!(sends(Action::Ban, 0, 11), "and one that comes much later");
    }

    #[test]
    fn unban_by_this_daemon_is_not_published() {
        let mut sequencer = sequencer();
        let unban = spooled(Action::Unban, 1000);
        sequencer.expect_unban(&(unban.jail.clone(), unban.address), 1_100_000);
        let mut sends = |now| sequencer.event(&unban, || Ok::<_, ()>(Some(None)), Vec::new(), now);
        assert_eq!(sends(1_101_000), Ok(None));
        assert_eq!(sends(1_120_000).unwrap().unwrap().reason, Some(Reason::Lifted));
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
            let mut sequencer = sequencer();
            let ban = spooled(Action::Ban, DETECTED / 1000);
            if bans {
                sequencer.expect_extension(&(ban.jail.clone(), ban.address), DETECTED);
            }
            let no_row = || Ok::<_, ()>(None);
            let first = sequencer.event(&ban, no_row, Vec::new(), DETECTED).unwrap();
            assert!(first.is_some(), "the detection itself");
            let extended = SpooledEvent { bantime, ..ban };
            let event = sequencer.event(&extended, no_row, Vec::new(), DETECTED + after).unwrap();
            assert_eq!(event.is_some(), is_published, "{bans} {bantime} {after}");
        }
    }

    #[test]
    fn ban_carries_fleet_unbans_and_unban_none() {
        let mut sequencer = sequencer();
        let id = UnbanId::new("web2-5").unwrap();
        let mut sends = |action, now| {
            let event = sequencer.event(
                &spooled(action, 1000),
                || Ok::<_, ()>(None),
                vec![id.clone()],
                now,
            );
            event.unwrap().unwrap().unbans.len()
        };
        assert_eq!(sends(Action::Ban, 1_000_000), 1);
        assert_eq!(sends(Action::Unban, 1_000_001), 0);
    }

    #[test]
    fn stamps_grow_whatever_the_clock_does() {
        let mut sequencer = sequencer();
        let stamps = [100_000, 100_000, 50_000, 101_000].map(|now| sequencer.stamp(now));
        assert_eq!(stamps, [100_000, 100_001, 100_002, 101_000]);
        assert!(sequencer.adopt(110_000, 101_000));
        assert!(!sequencer.adopt(109_000, 101_000));
        assert!(!sequencer.adopt(i64::MAX, 101_000));
        assert_eq!(sequencer.stamp(102_000), 110_001, "what it said before; but nothing absurd");
    }

    #[test]
    fn stamps_are_reserved_ahead_and_continue_above_them_after_a_crash() {
        let mut sequencer = sequencer();
        let mut disk = 0;
        // The clock -> what is written. It is set back by 150 s once.
        let table = [
            (1_000_000, Some(1_060_000)),
            (1_029_999, None),
            (1_030_001, Some(1_090_001)),
            (880_000, None),
            (881_000, None),
        ];
        for (now, written) in table {
            assert_eq!(sequencer.stamp_to_reserve(now), written, "{now}");
            if let Some(stamp) = written {
                sequencer.on_reserved(stamp);
                disk = stamp;
            }
            assert!(sequencer.stamp(now) <= disk);
        }
        let last = sequencer.last();
        let mut next = Sequencer::new(HostName::new("web1").unwrap(), disk);
        assert!(next.stamp(881_000) > last, "after a crash");
        assert_eq!(next.stamp_to_reserve(881_000), Some(disk + 1 + RESERVE_AHEAD));
        // What a clock that was far ahead left is taken back.
        let next = Sequencer::new(HostName::new("web1").unwrap(), i64::MAX);
        assert_eq!(next.stamp_to_reserve(1), None, "before the next stamp");
        let mut next = Sequencer::new(HostName::new("web1").unwrap(), i64::MAX);
        let stamp = next.stamp(1_000_000);
        assert_eq!(next.stamp_to_reserve(1_000_000), Some(stamp + RESERVE_AHEAD));
    }

    #[test]
    fn own_stamp_counts_if_another_host_may_have_accepted_it() {
        const NOW: i64 = 1_795_342_588_000;
        // How far the stamp is ahead -> it is adopted at once, or after a while.
        let table = [
            (HORIZON - HORIZON_MARGIN, true, false),
            (HORIZON, true, false),
            (HORIZON + 1, false, true),
            (HORIZON + HORIZON_MARGIN, false, true),
            (HORIZON + HORIZON_MARGIN + 1, false, false),
        ];
        for (ahead, adopted, later) in table {
            let mut sequencer = sequencer();
            assert_eq!(sequencer.adopt(NOW + ahead, NOW), adopted, "{ahead}");
            assert_eq!(sequencer.stamp(NOW + 1) == NOW + ahead + 1, adopted, "{ahead}");
            assert_eq!(sequencer.take_later(NOW), None);
            let then = NOW + HORIZON_MARGIN;
            assert_eq!(sequencer.take_later(then), later.then_some(NOW + ahead), "{ahead}");
            assert_eq!(sequencer.take_later(then), None);
            assert!(!sequencer.take_was_ahead());
        }
    }
}
