//! Tracks for how long a server that answers nothing may count as alive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::failpoints::{Rule, is_broken};
use crate::suspend;

/// The last proof that the server was reading: the instant before a request was sent that it has answered
/// since.
///
/// If a server has read nothing on a connection for its read timeout, it drops the connection and frees what
/// the connection held. It read the answered request no earlier than that request was sent. So if two
/// keepalive intervals are shorter than the read timeout, a connection closed two intervals after its last
/// proof is closed before the server drops it.
pub(super) struct Liveness {
    base: Instant,
    /// Nanoseconds after `base`.
    at: AtomicU64,
    /// The start of the time for which a reply is owed and none came, likewise; `NEVER` if none is owed.
    owed: AtomicU64,
    keepalive: Duration,
}

const NEVER: u64 = u64::MAX;
/// A server that owes a reply for this long may be gone.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);

impl Liveness {
    pub(super) fn new(keepalive: Duration, now: Instant) -> Self {
        Self { base: now, at: AtomicU64::new(0), owed: AtomicU64::new(NEVER), keepalive }
    }

    /// Notes that a request sent at `sent` was answered.
    pub(super) fn acked(&self, sent: Instant) {
        self.at.fetch_max(self.nanos(sent), Ordering::Relaxed);
    }

    /// Notes that a reply is owed from `since` on, or that none is.
    pub(super) fn awaiting(&self, since: Option<Instant>) {
        self.owed.store(since.map_or(NEVER, |since| self.nanos(since)), Ordering::Relaxed);
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_nanos()).unwrap_or(NEVER - 1)
    }

    fn at(&self) -> Instant {
        self.base + Duration::from_nanos(self.at.load(Ordering::Relaxed))
    }

    /// Returns when the server counts as gone, unless it answers.
    pub(super) fn expires_at(&self) -> Instant {
        if is_broken(Rule::Deadline) {
            return Instant::now() + self.keepalive;
        }
        // The server keeps running while this machine is suspended.
        let ends = self.at() + 2 * self.keepalive;
        ends.checked_sub(suspend::since(self.at())).unwrap_or(self.base)
    }

    /// Returns `true` if a reply is overdue. The server may be gone, and new requests should go by another
    /// connection.
    pub(super) fn is_suspect(&self, now: Instant) -> bool {
        let owed = self.owed.load(Ordering::Relaxed);
        let is_overdue = owed != NEVER && now >= self.base + Duration::from_nanos(owed) + SUSPECT_AFTER;
        is_overdue || now + suspend::since(self.at()) >= self.at() + self.keepalive + self.keepalive / 2
    }
}
