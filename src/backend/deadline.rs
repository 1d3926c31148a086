//! By when a caller has an answer, whatever the network and the server do. Knows of no connection.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::backend::here;
use crate::error::{Error, ErrorKind, Result};
use crate::types::Seconds;

/// How much longer than asked a wait for a key may take: an engine may count in whole seconds.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
/// Longer than anybody waits, and short enough to be added to any instant of a clock.
const AGES: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How long an operation may wait for a key, and how long it may take in all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    began: Instant,
    limit: Duration,
    waits: bool,
}

impl Deadline {
    /// For what waits for nothing but a reply.
    pub(crate) fn of_request(began: Instant, limit: Duration) -> Self {
        Self { began, limit, waits: false }
    }

    /// For what waits for a key for so long.
    pub(crate) fn of_wait(began: Instant, wait: Duration) -> Self {
        Self { began, limit: wait.saturating_add(GRACE), waits: true }
    }

    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Whether it may wait for a key at all.
    pub(crate) fn waits(&self) -> bool {
        self.waits
    }

    fn wait(&self) -> Duration {
        if self.waits { self.limit - GRACE } else { Duration::ZERO }
    }

    /// Until when it may wait for a key.
    pub(crate) fn wait_ends(&self) -> Instant {
        self.after(self.wait())
    }

    /// How long the server may let it wait from `now` on, in the wire's whole seconds, rounded up.
    pub(crate) fn wait_left(&self, now: Instant) -> Result<Seconds> {
        Ok(Seconds::ceil("timeout", self.wait().saturating_sub(now - self.began))?)
    }

    /// When it must have come to an end.
    pub(crate) fn at(&self) -> Instant {
        self.after(self.limit)
    }

    fn after(&self, time: Duration) -> Instant {
        self.began.checked_add(time).unwrap_or_else(|| self.began + AGES)
    }

    /// Does this within the deadline; else there was none of `what` in time.
    pub(crate) async fn bounds<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        here()?;
        timeout_at(self.at(), work).await.unwrap_or_else(|_| Err(self.passed(what)))
    }

    pub(crate) fn passed(&self, what: &str) -> Error {
        Error::new(ErrorKind::Timeout, format!("no {what} within {:?}", self.limit))
    }
}
