//! Times for people: this host's time of day, and how long still.

use crate::abuseipdb::times::Times;
use crate::error::Error;
use crate::operator::view::Until;

/// This host's time.
#[derive(Debug)]
pub struct Clock {
    times: Times,
    /// Now, in seconds since 1970.
    pub now: i64,
}

impl Clock {
    /// Where it is `now`, in seconds since 1970.
    ///
    /// # Errors
    /// [`Error::Start`], without memory.
    pub fn new(now: i64) -> Result<Self, Error> {
        let times = Times::new().map_err(|error| Error::Start(std::io::Error::other(error)))?;
        Ok(Self { times, now })
    }

    /// The date and time of day here.
    #[must_use]
    pub fn local(&self, seconds: i64) -> String {
        let time = if seconds > 0 { self.times.local(seconds) } else { String::new() };
        // A time that no calendar has.
        if time.is_empty() { "unknown".to_owned() } else { time }
    }

    /// When a ban ends, and how long it still lasts.
    #[must_use]
    pub fn until(&self, until: Until) -> (String, String) {
        match until {
            Until::Never => ("never".to_owned(), "permanent".to_owned()),
            Until::Unknown => ("unknown".to_owned(), String::new()),
            Until::Time(end) if end <= self.now => (self.local(end), "expired".to_owned()),
            Until::Time(end) => (self.local(end), span(end - self.now)),
        }
    }
}

/// A length of time, in its two largest units.
#[must_use]
pub fn span(seconds: i64) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let seconds = seconds.max(0);
    let first = UNITS.iter().position(|(length, _)| seconds >= *length).unwrap_or(3);
    let part = |n: usize| {
        let (length, unit) = UNITS[n];
        let above = if n == 0 { i64::MAX } else { UNITS[n - 1].0 };
        (seconds % above / length, unit)
    };
    let (count, unit) = part(first);
    match (first < 3).then(|| part(first + 1)) {
        Some((rest, small)) if rest > 0 => format!("{count}{unit} {rest}{small}"),
        _ => format!("{count}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::range::{BANTIME_SECS, TIME_SECS};

    #[test]
    fn a_span_has_two_units() {
        let table = [
            (-5, "0s"),
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (483, "8m 3s"),
            (3600, "1h"),
            (3659, "1h"),
            (7500, "2h 5m"),
            (86_400 * 400 + 3600, "400d 1h"),
        ];
        for (seconds, text) in table {
            assert_eq!(span(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn the_end_of_a_ban_is_a_time_or_a_word() {
        let clock = Clock::new(1_795_342_600).unwrap();
        let left = |until| clock.until(until).1;
        assert_eq!(left(Until::Time(1_795_342_660)), "1m");
        assert_eq!(left(Until::Time(1_795_342_600)), "expired");
        assert_eq!(clock.until(Until::Never), ("never".to_owned(), "permanent".to_owned()));
        assert_eq!(clock.until(Until::Unknown), ("unknown".to_owned(), String::new()));
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
