//! From what notify told to what the fleet is told: which events are sent, why, and in which order.

use std::collections::HashMap;

use super::BanKey;
use crate::clock::is_within;
use crate::fail2ban::database::BipsRow;
use crate::guard::{HORIZON, HORIZON_MARGIN};
use crate::wire::{Action, Event, HostName, Reason, SpooledEvent, UnbanId};

/// What is told again within this time is the same event, told by a second action of the jail; in
/// milliseconds.
const REPEAT: i64 = 10_000;

/// fail2ban tells of what this host itself frees within this time; in milliseconds.
const FREEING: i64 = 10_000;

/// Stamps that were beyond every host's horizon go on from so far below it, in milliseconds.
const BACK: i64 = 60_000;

/// Stamps are reserved on disk for so long ahead, in milliseconds: after a crash, they go on where the reserved
/// ones end.
const RESERVED: i64 = 60_000;

/// Puts what a host says in order.
#[derive(Debug)]
pub struct Sequencer {
    host: HostName,
    stamp: i64,
    /// The greatest stamp that is reserved on disk.
    reserved: i64,
    was_ahead: bool,
    /// The greatest stamp that is beyond the horizon; 0 for none.
    later: i64,
    /// What was told last of each address.
    recently_sent: HashMap<BanKey, (SpooledEvent, i64)>,
    /// What this host itself has freed lately.
    self_initiated: HashMap<BanKey, i64>,
}

impl Sequencer {
    /// What `host` says, after the reserved stamp that is on disk; 0 for none.
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
        }
    }

    /// **One growing stamp**: greater than the one before, whatever the clock does. It is taken before
    /// that is read which it is for.
    pub fn stamp(&mut self, now: i64) -> i64 {
        // The clock was far ahead once: no other host has accepted such a stamp.
        if self.stamp > now.saturating_add(HORIZON + HORIZON_MARGIN) {
            self.stamp = now.saturating_add(HORIZON - HORIZON_MARGIN - BACK);
            self.was_ahead = true;
        }
        self.stamp = now.max(self.stamp.saturating_add(1));
        self.stamp
    }

    /// The stamp that is to be on disk now, if that is another than before; then [`on_reserved`](Self::on_reserved).
    /// **It is persisted ahead**: so that no stamp after a crash is at or below one that other hosts remember,
    /// whatever the clock shows then and whatever the broker lost.
    #[must_use]
    pub fn stamp_to_reserve(&self, now: i64) -> Option<i64> {
        let next = now.max(self.stamp);
        let short = next.saturating_add(RESERVED / 2) > self.reserved;
        // The clock was far ahead once.
        let excessive = next.saturating_add(2 * RESERVED) < self.reserved;
        (short || excessive).then(|| next.saturating_add(RESERVED))
    }

    /// The stamp is on disk.
    pub fn on_reserved(&mut self, stamp: i64) {
        self.reserved = stamp;
    }

    /// Whether stamps were beyond the horizon and are smaller now, since this was asked last.
    pub fn take_was_ahead(&mut self) -> bool {
        std::mem::take(&mut self.was_ahead)
    }

    /// The stamp that was taken last.
    #[must_use]
    pub fn last(&self) -> i64 {
        self.stamp
    }

    /// This host said something with this stamp once, perhaps before its clock was set back: what it says
    /// from now on has a greater one. **Whatever stamp another host may have accepted in this host's name counts**:
    /// with smaller ones this host would be ignored there for a day. One that is beyond the horizon here, which
    /// only hosts whose clocks are ahead have accepted, counts as soon as all accept what is greater. Answers
    /// whether it was news.
    pub fn adopt(&mut self, stamp: i64, now: i64) -> bool {
        let horizon = now.saturating_add(HORIZON);
        if stamp > horizon && stamp <= horizon.saturating_add(HORIZON_MARGIN) {
            self.later = self.later.max(stamp);
        }
        let news = stamp > self.stamp && stamp <= horizon;
        if news {
            self.stamp = stamp;
        }
        news
    }

    /// A stamp that was beyond the horizon and counts from now on, if there is one.
    pub fn take_later(&mut self, now: i64) -> Option<i64> {
        let later = self.later;
        if later == 0 || later > now.saturating_add(HORIZON) {
            return None;
        }
        self.later = 0;
        self.adopt(later, now).then_some(later)
    }

    /// This host frees an address by itself: fail2ban will tell of that.
    pub fn expect_unban(&mut self, key: &BanKey, now: i64) {
        self.self_initiated.insert(key.clone(), now);
    }

    /// The event that the fleet is told of what notify told, if any. `row` is fail2ban's row of the ban:
    /// `None` where fail2ban keeps none at all. `unbans` are the fleet unbans that it carries.
    ///
    /// # Errors
    /// Whatever `row` fails with: then it is to be told again.
    pub fn event<E>(
        &mut self,
        told: &SpooledEvent,
        row: impl FnOnce() -> Result<Option<Option<BipsRow>>, E>,
        unbans: Vec<UnbanId>,
        now: i64,
    ) -> Result<Option<Event>, E> {
        self.recently_sent.retain(|_, (_, at)| is_within(REPEAT, *at, now));
        self.self_initiated.retain(|_, at| is_within(FREEING, *at, now));
        let stamp = self.stamp(now);
        let key = (told.jail.clone(), told.address);
        if self.recently_sent.get(&key).is_some_and(|(last, _)| told.repeats(last)) {
            return Ok(None);
        }
        // **An unban is sent only if the row is gone or over, and not if this host itself frees it.**
        if told.action == Action::Unban && self.self_initiated.contains_key(&key) {
            return Ok(None);
        }
        let Some(reason) = reason(told, row, now.div_euclid(1000))? else { return Ok(None) };
        self.recently_sent.insert(key, (told.clone(), now));
        let mut event = told.clone().event(&self.host, stamp, reason);
        if told.action == Action::Ban {
            event.unbans = unbans;
        }
        Ok(Some(event))
    }
}

/// Why the fleet is told; `None` where it is not. An unban counts if the ban is over, by what was told
/// or by fail2ban's row, or if the row is gone: then somebody lifted it. Otherwise fail2ban only
/// stops, and will restore the ban when it starts again. Without a database there is no telling a
/// lift from a stop (`row` is `None`).
fn reason<E>(
    told: &SpooledEvent,
    row: impl FnOnce() -> Result<Option<Option<BipsRow>>, E>,
    now: i64,
) -> Result<Option<Reason>, E> {
    if told.action == Action::Ban {
        return Ok(Some(Reason::Detected));
    }
    let over = BipsRow { timeofban: told.time, bantime: told.bantime, failures: told.failures };
    if told.time > 0 && told.bantime > 0 && over.is_over(now) {
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

    fn told(action: Action, time: i64) -> SpooledEvent {
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

    fn teller() -> Sequencer {
        Sequencer::new(HostName::new("web1").unwrap(), 0)
    }

    #[test]
    fn an_unban_is_told_if_it_was_lifted_or_is_over() {
        let row = |timeofban| BipsRow { timeofban, bantime: 600, failures: 3 };
        let unban = told(Action::Unban, 1000);
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
        let ban = told(Action::Ban, 1000);
        assert_eq!(reason(&ban, || Err(()), 9999), Ok(Some(Reason::Detected)), "it is not asked");
        assert_eq!(reason(&unban, || Err(()), 1200), Err(()), "it is busy");
    }

    #[test]
    fn what_a_jail_s_two_actions_tell_is_one_event() {
        let (mut teller, mut now) = (teller(), 5_000_000);
        let mut tells = |action, time, pause: i64| {
            now += pause * 1000;
            let event = teller.event(&told(action, time), || Ok::<_, ()>(None), Vec::new(), now);
            event.unwrap().is_some()
        };
        assert!(tells(Action::Ban, 1000, 0));
        assert!(!tells(Action::Ban, 1000, 1), "the second action");
        assert!(!tells(Action::Ban, 0, 1), "one that does not know the time");
        assert!(tells(Action::Unban, 1000, 1));
        assert!(!tells(Action::Unban, 1000, 1));
        assert!(tells(Action::Ban, 1003, 1), "a ban after its unban is another");
        assert!(tells(Action::Ban, 1009, 1), "a ban of another time, too");
        assert!(tells(Action::Ban, 0, 11), "and one that comes much later");
    }

    #[test]
    fn what_this_host_itself_frees_is_not_told() {
        let mut teller = teller();
        let unban = told(Action::Unban, 1000);
        teller.expect_unban(&(unban.jail.clone(), unban.address), 1_100_000);
        let mut tells = |now| teller.event(&unban, || Ok::<_, ()>(Some(None)), Vec::new(), now);
        assert_eq!(tells(1_101_000), Ok(None));
        assert_eq!(tells(1_120_000).unwrap().unwrap().reason, Some(Reason::Lifted));
    }

    #[test]
    fn a_ban_carries_fleet_unbans_and_an_unban_none() {
        let mut teller = teller();
        let id = UnbanId::new("web2-5").unwrap();
        let mut tells = |action, now| {
            let event =
                teller.event(&told(action, 1000), || Ok::<_, ()>(None), vec![id.clone()], now);
            event.unwrap().unwrap().unbans.len()
        };
        assert_eq!(tells(Action::Ban, 1_000_000), 1);
        assert_eq!(tells(Action::Unban, 1_000_001), 0);
    }

    #[test]
    fn stamps_grow_whatever_the_clock_does() {
        let mut teller = teller();
        let stamps = [100_000, 100_000, 50_000, 101_000].map(|now| teller.stamp(now));
        assert_eq!(stamps, [100_000, 100_001, 100_002, 101_000]);
        assert!(teller.adopt(110_000, 101_000));
        assert!(!teller.adopt(109_000, 101_000));
        assert!(!teller.adopt(i64::MAX, 101_000));
        assert_eq!(teller.stamp(102_000), 110_001, "what it said before; but nothing absurd");
    }

    #[test]
    fn stamps_are_reserved_ahead_and_a_crash_goes_on_after_them() {
        let mut teller = teller();
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
            assert_eq!(teller.stamp_to_reserve(now), written, "{now}");
            if let Some(stamp) = written {
                teller.on_reserved(stamp);
                disk = stamp;
            }
            assert!(teller.stamp(now) <= disk);
        }
        let last = teller.last();
        let mut next = Sequencer::new(HostName::new("web1").unwrap(), disk);
        assert!(next.stamp(881_000) > last, "after a crash");
        assert_eq!(next.stamp_to_reserve(881_000), Some(disk + 1 + RESERVED));
        // What a clock that was far ahead left is taken back.
        let next = Sequencer::new(HostName::new("web1").unwrap(), i64::MAX);
        assert_eq!(next.stamp_to_reserve(1), None, "before the next stamp");
        let mut next = Sequencer::new(HostName::new("web1").unwrap(), i64::MAX);
        let stamp = next.stamp(1_000_000);
        assert_eq!(next.stamp_to_reserve(1_000_000), Some(stamp + RESERVED));
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
            let mut teller = teller();
            assert_eq!(teller.adopt(NOW + ahead, NOW), adopted, "{ahead}");
            assert_eq!(teller.stamp(NOW + 1) == NOW + ahead + 1, adopted, "{ahead}");
            assert_eq!(teller.take_later(NOW), None);
            let then = NOW + HORIZON_MARGIN;
            assert_eq!(teller.take_later(then), later.then_some(NOW + ahead), "{ahead}");
            assert_eq!(teller.take_later(then), None);
            assert!(!teller.take_was_ahead());
        }
    }
}
