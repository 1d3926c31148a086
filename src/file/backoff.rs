//! Computes how long to wait between two tries, without a clock.

use std::time::Duration;

/// The first pause after a lock is found busy.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Pauses that double up to a cap. Each is cut by up to a half at random, so that waiters do not poll at
/// the same time.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    cap: Duration,
}

impl Backoff {
    pub(super) fn new(cap: Duration) -> Self {
        Self { next: FIRST_PAUSE.min(cap), cap }
    }

    /// Returns the next pause; `jitter_sample` (0 to 1) picks the jitter.
    pub(super) fn pause(&mut self, jitter_sample: f64) -> Duration {
        let pause = self.next.mul_f64(1.0 - jitter_sample.clamp(0.0, 1.0) / 2.0);
        self.next = (self.next * 2).min(self.cap);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(6));
        let pauses: Vec<_> = (0..5).map(|_| backoff.pause(0.0).as_millis()).collect();
        assert_eq!(pauses, [1, 2, 4, 6, 6]);
    }

    #[test]
    fn jitter_takes_up_to_a_half() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        assert_eq!(backoff.pause(1.0), FIRST_PAUSE / 2);
        assert_eq!(backoff.pause(7.0), FIRST_PAUSE);
    }
}
