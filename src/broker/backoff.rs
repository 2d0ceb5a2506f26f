//! The pause before the next connection attempt: exponential with jitter, so that a fleet does not reconnect to a
//! restarted broker all at once.

use std::time::Duration;

use crate::sys::jitter;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next pause. An attempt at each of several `brokers` counts as one round.
    pub(super) fn next(&mut self, brokers: usize) -> Duration {
        let rounds = self.attempts / u32::try_from(brokers.max(1)).unwrap_or(1);
        self.attempts = self.attempts.saturating_add(1);
        let pause = FIRST_PAUSE.saturating_mul(1 << rounds.min(10)).min(MAX_PAUSE);
        pause.mul_f64(0.5 + jitter::chance() / 2.0)
    }

    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_until_reset() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.next(1)).collect();
        assert!(pauses[0] >= FIRST_PAUSE / 2 && pauses[0] <= FIRST_PAUSE, "{pauses:?}");
        assert!(pauses[11] >= MAX_PAUSE / 2 && pauses[11] <= MAX_PAUSE, "{pauses:?}");
        backoff.reset();
        assert!(
            backoff.next(3) <= FIRST_PAUSE
                && backoff.next(3) <= FIRST_PAUSE
                && backoff.next(3) <= FIRST_PAUSE
        );
        assert!(backoff.next(3) > FIRST_PAUSE / 2);
    }
}
