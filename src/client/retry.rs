//! The retry policy of an acquire: which errors are retried, and after which pause.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::validate::{check_share, check_time};

/// Retries a failed acquire, after pauses that double, within the acquire timeout. Given to
/// [`Builder::retry`](crate::Builder::retry).
///
/// The client retries if a server cannot be reached, or not within the connect timeout, if a connection closes
/// before the reply came, and after `error_draining` and `error_not_leader`. Every other error is final: a key
/// that stays busy, a rejected token, another limit, bad input. `try_acquire` does not retry.
///
/// If a connection closes before the reply, the request loses its place in the queue, and the next attempt waits
/// behind the waiters that came meanwhile. If the server keeps what a closed connection held
/// (`--auto-release-on-disconnect=false`), a grant whose reply was lost expires by itself, and the next attempt
/// waits for that.
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::{LockClient, RetryPolicy};
/// let locks = LockClient::builder()
///     .acquire_timeout(Duration::from_secs(60))
///     .retry(RetryPolicy::new().longest_pause(Duration::from_secs(2)))
///     .build()?;
/// # Ok::<(), dflockd_client::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "a policy does nothing until it is given to a builder"]
pub struct RetryPolicy {
    first: Duration,
    longest: Duration,
    jitter: f64,
}

impl RetryPolicy {
    /// Makes a policy with pauses of 100 ms, 200 ms and so on up to 5 s, each shortened by up to half at random.
    pub fn new() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(5), jitter: 0.5 }
    }

    /// Sets the first pause; above 0. Defaults to 100 ms.
    pub fn first_pause(mut self, pause: Duration) -> Self {
        self.first = pause;
        self
    }

    /// Sets the longest pause; above 0. Defaults to 5 s.
    pub fn longest_pause(mut self, pause: Duration) -> Self {
        self.longest = pause;
        self
    }

    /// Sets the share by which each pause may be shortened at random, 0 to 1, so that many clients
    /// do not retry at the same time. Defaults to 0.5.
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = share;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_time("first_pause", self.first)?;
        check_time("longest_pause", self.longest)?;
        check_share("jitter", self.jitter)
    }

    /// Returns the pause after the attempt with this number, which counts from 0. `jitter_sample` (0 to 1)
    /// picks the jitter.
    pub(crate) fn pause(&self, attempt: u32, jitter_sample: f64) -> Duration {
        let doubled = 2_u32.checked_pow(attempt).and_then(|factor| self.first.checked_mul(factor));
        let pause = doubled.map_or(self.longest, |pause| pause.min(self.longest));
        pause.mul_f64(1.0 - self.jitter * jitter_sample.clamp(0.0, 1.0))
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns `true` if the same acquire may succeed later.
pub(crate) fn is_retryable(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::ConnectionClosed
        | ErrorKind::Draining
        | ErrorKind::Io
        | ErrorKind::NotLeader
        | ErrorKind::Timeout => true,
        // A key that stays busy is a final outcome.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let policy = RetryPolicy::new();
        let pauses = [0, 1, 2, 5, 6, 31, 32, u32::MAX].map(|attempt| policy.pause(attempt, 0.0).as_millis());
        assert_eq!(pauses, [100, 200, 400, 3_200, 5_000, 5_000, 5_000, 5_000]);
    }

    #[test]
    fn jitter_only_shortens() {
        let policy = RetryPolicy::new();
        assert_eq!(policy.pause(1, 1.0), Duration::from_millis(100));
        assert_eq!(policy.pause(1, 7.0), Duration::from_millis(100));
        assert_eq!(policy.jitter(0.0).pause(1, 1.0), Duration::from_millis(200));
    }
}
