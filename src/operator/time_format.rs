//! Formats local times and remaining durations for people.

use crate::broker::fleet_view::Expiry;
use crate::error::Error;
use crate::model::text::format_duration;
use crate::sys::calendar::Calendar;

/// The calendar of this host's time zone, and the current time.
#[derive(Debug)]
pub struct Clock {
    times: Calendar,
    /// Now, in seconds since 1970.
    pub now: i64,
}

impl Clock {
    /// A clock that shows `now`, in seconds since 1970.
    ///
    /// # Errors
    /// [`Error::Start`], without memory.
    pub fn new(now: i64) -> Result<Self, Error> {
        let times = Calendar::new().map_err(|error| Error::Start(std::io::Error::other(error)))?;
        Ok(Self { times, now })
    }

    /// The local date and time of a moment in seconds since 1970.
    #[must_use]
    pub fn local(&self, seconds: i64) -> String {
        let time = if seconds > 0 { self.times.local(seconds) } else { String::new() };
        // The calendar has no text for times outside its range.
        if time.is_empty() { "unknown".to_owned() } else { time }
    }

    /// When a ban ends, and how long it still lasts.
    #[must_use]
    pub fn until(&self, until: Expiry) -> (String, String) {
        match until {
            Expiry::Never => ("never".to_owned(), "permanent".to_owned()),
            Expiry::Unknown => ("unknown".to_owned(), String::new()),
            Expiry::Time(end) if end <= self.now => (self.local(end), "expired".to_owned()),
            Expiry::Time(end) => (self.local(end), format_duration(end - self.now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::range::{BANTIME_SECS, TIME_SECS};

    #[test]
    fn end_of_a_ban_is_a_time_or_never_or_unknown() {
        let clock = Clock::new(1_795_342_600).unwrap();
        assert_eq!(clock.until(Expiry::Time(1_795_342_660)).1, "1m");
        assert_eq!(clock.until(Expiry::Time(1_795_342_600)).1, "expired");
        assert_eq!(clock.until(Expiry::Never), ("never".to_owned(), "permanent".to_owned()));
        assert_eq!(clock.until(Expiry::Unknown), ("unknown".to_owned(), String::new()));
        for seconds in [i64::MIN, -1, 0, i64::MAX] {
            assert_eq!(clock.local(seconds), "unknown");
        }
        let last = TIME_SECS.end() + BANTIME_SECS.end();
        assert!(
            clock.local(last).starts_with("2299-12-3") || clock.local(last).starts_with("2300-0")
        );
        assert_eq!(clock.local(1_795_342_600).len(), 19);
    }
}
