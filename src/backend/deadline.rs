//! The deadline of an operation, which holds whatever the network and the server do.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::backend::here;
use crate::error::{Error, ErrorKind, Result};
use crate::types::Seconds;

/// The time that a wait for a key may take beyond its timeout, since an engine may count in whole seconds.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
/// Longer than any caller waits, and short enough to be added to any instant of a clock.
const AGES: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The limits of an operation: for waiting for a key, and in all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    began: Instant,
    limit: Duration,
    waits: bool,
}

impl Deadline {
    /// Returns the deadline of an operation that waits for a reply only.
    pub(crate) fn of_request(began: Instant, limit: Duration) -> Self {
        Self { began, limit, waits: false }
    }

    /// Returns the deadline of an operation that waits for a key, up to `wait`.
    pub(crate) fn of_wait(began: Instant, wait: Duration) -> Self {
        Self { began, limit: wait.saturating_add(GRACE), waits: true }
    }

    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Returns `true` if the operation may wait for a key.
    pub(crate) fn waits(&self) -> bool {
        self.waits
    }

    fn wait(&self) -> Duration {
        if self.waits { self.limit - GRACE } else { Duration::ZERO }
    }

    /// Returns the time until which it may wait for a key.
    pub(crate) fn wait_ends(&self) -> Instant {
        self.after(self.wait())
    }

    /// Returns how long the server may let it wait from `now` on, in whole seconds, rounded up.
    pub(crate) fn wait_left(&self, now: Instant) -> Result<Seconds> {
        Ok(Seconds::ceil("timeout", self.wait().saturating_sub(now - self.began))?)
    }

    /// Returns the time at which the operation must have ended.
    pub(crate) fn at(&self) -> Instant {
        self.after(self.limit)
    }

    fn after(&self, time: Duration) -> Instant {
        self.began.checked_add(time).unwrap_or_else(|| self.began + AGES)
    }

    /// Runs `work` within the deadline. If it takes longer, there was no `what` in time.
    pub(crate) async fn bounds<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        here()?;
        timeout_at(self.at(), work).await.unwrap_or_else(|_| Err(self.passed(what)))
    }

    pub(crate) fn passed(&self, what: &str) -> Error {
        Error::new(ErrorKind::Timeout, format!("no {what} within {:?}", self.limit))
    }
}
