//! How long to wait before the next try: soon at first, then ever longer, and each host at another
//! moment, so that a fleet does not fall upon a broker that has just come up.

use std::time::Duration;

use crate::random;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The next pause. With several `brokers` a round of tries counts as one.
    pub(super) fn next(&mut self, brokers: usize) -> Duration {
        let rounds = self.tries / u32::try_from(brokers.max(1)).unwrap_or(1);
        self.tries = self.tries.saturating_add(1);
        let pause = FIRST.saturating_mul(1 << rounds.min(10)).min(LONGEST);
        pause.mul_f64(0.5 + random::chance() / 2.0)
    }

    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_anew() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.next(1)).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST, "{pauses:?}");
        assert!(pauses[11] >= LONGEST / 2 && pauses[11] <= LONGEST, "{pauses:?}");
        backoff.reset();
        assert!(backoff.next(3) <= FIRST && backoff.next(3) <= FIRST && backoff.next(3) <= FIRST);
        assert!(backoff.next(3) > FIRST / 2);
    }
}
