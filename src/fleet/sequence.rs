//! Stamps: one increasing sequence number over all events and shards of a host. Peers keep the greatest stamp per
//! origin and address, so a smaller one is lost on them.

use crate::guard::{HORIZON, HORIZON_MARGIN};

/// Stamps that were beyond the horizon of all peers continue this far below it, in milliseconds.
const HORIZON_DISTANCE: i64 = 60_000;

/// How far ahead stamps are reserved on disk, in milliseconds: after a crash, they continue above the reserved ones.
const RESERVE_AHEAD: i64 = 60_000;

/// How many stamps are reserved while the last stamp is ahead of the clock: each message then takes the next stamp. A
/// crash skips the reserved stamps, at most 1 s of them. The service manager restarts the daemon only after 2 s, in
/// which the peers' horizon moves by 2 s. So repeated crashes cannot move the stamps beyond the horizon.
const RESERVE_COUNT: i64 = 1_000;

/// Assigns the stamps of a host: a hybrid logical clock, which is `max(clock in ms, last + 1)`.
///
/// Invariants: each stamp is greater than all stamps before, also if the clock is set back. The owner reserves stamps
/// on disk ahead of their use, so that this holds after a crash, too. The exception is a stamp beyond the horizon of
/// all peers, which no peer accepted: the next stamps are below the horizon.
#[derive(Debug)]
pub struct Sequencer {
    /// The last stamp.
    stamp: i64,
    /// The greatest stamp that is reserved on disk.
    reserved: i64,
    /// Stamps were beyond the horizon, and continue below it.
    was_ahead: bool,
    /// The greatest own stamp from the broker that is beyond the horizon; 0 for none.
    later: i64,
}

impl Sequencer {
    /// Continues after the reserved stamp that is on disk; 0 for none.
    #[must_use]
    pub fn new(stamp: i64) -> Self {
        Self { stamp, reserved: stamp, was_ahead: false, later: 0 }
    }

    /// The next stamp. Take the stamp before reading the state that the message describes, so that the stamp never
    /// claims to be newer than the data.
    pub fn stamp(&mut self, now: i64) -> i64 {
        // The clock was far ahead once. Peers reject such stamps, so continue below their horizon.
        if self.stamp > now.saturating_add(HORIZON + HORIZON_MARGIN) {
            self.stamp = now.saturating_add(HORIZON - HORIZON_MARGIN - HORIZON_DISTANCE);
            self.was_ahead = true;
        }
        self.stamp = now.max(self.stamp.saturating_add(1));
        self.stamp
    }

    /// The stamp to persist now, if the reserved stamps are used up. Call [`on_reserved`](Self::on_reserved) when the
    /// stamp is on disk. This stamp is ahead of all stamps in use. So after a crash, new stamps are greater than those
    /// that peers know, even with a wrong clock and a broker that lost its retained messages.
    #[must_use]
    pub fn stamp_to_reserve(&self, now: i64) -> Option<i64> {
        let next = now.max(self.stamp);
        let reserve = if self.stamp > now { RESERVE_COUNT } else { RESERVE_AHEAD };
        let short = next.saturating_add(reserve / 2) > self.reserved;
        // The clock was far ahead once.
        let excessive = next.saturating_add(2 * RESERVE_AHEAD) < self.reserved;
        (short || excessive).then(|| next.saturating_add(reserve))
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

    /// Continues above a stamp that the broker has in this host's name, perhaps from before its clock was set back.
    /// Peers may have accepted that stamp, and would ignore smaller ones. A stamp beyond the horizon here, which only
    /// peers with clocks ahead accepted, counts as soon as all peers accept greater ones. Returns whether the stamp was
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_whatever_the_clock_does() {
        let mut sequencer = Sequencer::new(0);
        let stamps = [100_000, 100_000, 50_000, 101_000].map(|now| sequencer.stamp(now));
        assert_eq!(stamps, [100_000, 100_001, 100_002, 101_000]);
        assert!(sequencer.adopt(110_000, 101_000));
        assert!(!sequencer.adopt(109_000, 101_000));
        assert!(!sequencer.adopt(i64::MAX, 101_000));
        assert_eq!(sequencer.stamp(102_000), 110_001, "the adopted stamp, and not the absurd one");
    }

    #[test]
    fn stamps_are_reserved_ahead_and_continue_above_them_after_a_crash() {
        let mut sequencer = Sequencer::new(0);
        let mut disk = 0;
        // The clock -> the stamp that is written. The clock is set back by 150 s once.
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
        let mut next = Sequencer::new(disk);
        assert!(next.stamp(881_000) > last, "after a crash");
        assert_eq!(next.stamp_to_reserve(881_000), Some(disk + 1 + RESERVE_COUNT));
        // A clock that was far ahead left a reserved stamp: the next one is smaller.
        let next = Sequencer::new(i64::MAX);
        assert_eq!(next.stamp_to_reserve(1), None, "before the next stamp");
        let mut next = Sequencer::new(i64::MAX);
        let stamp = next.stamp(1_000_000);
        assert_eq!(next.stamp_to_reserve(1_000_000), Some(stamp + RESERVE_COUNT));
    }

    #[test]
    fn crashes_carry_no_stamp_beyond_the_horizon_of_the_peers() {
        const NOW: i64 = 1_795_342_588_000;
        // How far the adopted stamp is below the horizon.
        for below in [0, 1_000, 30_000, HORIZON_MARGIN] {
            let mut sequencer = Sequencer::new(0);
            assert!(sequencer.adopt(NOW + HORIZON - below, NOW));
            let (mut disk, mut last) = (0, sequencer.last());
            for crash in 1..=30 {
                let now = NOW + crash * 2_000;
                if let Some(reserved) = sequencer.stamp_to_reserve(now) {
                    sequencer.on_reserved(reserved);
                    disk = reserved;
                }
                let stamp = sequencer.stamp(now);
                assert!(stamp > last, "{below}, crash {crash}");
                assert!(stamp <= now + HORIZON, "{below}, crash {crash}");
                last = stamp;
                sequencer = Sequencer::new(disk);
            }
        }
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
            let mut sequencer = Sequencer::new(0);
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
