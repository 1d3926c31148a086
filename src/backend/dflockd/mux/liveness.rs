//! How long a server that answers nothing may be taken for alive. Knows of no stream.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::failpoints::{Rule, is_broken};
use crate::suspend;

/// When the server last proved that it was listening: the instant before a request was sent that
/// it has answered since.
///
/// A server drops a connection on which it has read nothing for its read timeout, and frees what
/// the connection held. It read the answered request no earlier than that request was sent, so
/// for as long as two keepalive intervals stay below the read timeout, a connection given up two
/// intervals after its last proof is given up before the server does.
pub(super) struct Liveness {
    base: Instant,
    /// Nanoseconds after `base`.
    at: AtomicU64,
    /// Since when an answer is owed and none came, likewise; `NEVER` where none is owed.
    owed: AtomicU64,
    keepalive: Duration,
}

const NEVER: u64 = u64::MAX;
/// A server that owes an answer and gives none for so long may be gone.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);

impl Liveness {
    pub(super) fn new(keepalive: Duration, now: Instant) -> Self {
        Self { base: now, at: AtomicU64::new(0), owed: AtomicU64::new(NEVER), keepalive }
    }

    /// A request sent at `sent` was answered.
    pub(super) fn acked(&self, sent: Instant) {
        self.at.fetch_max(self.nanos(sent), Ordering::Relaxed);
    }

    /// From `since` on an answer is owed, or none is.
    pub(super) fn awaiting(&self, since: Option<Instant>) {
        self.owed.store(since.map_or(NEVER, |since| self.nanos(since)), Ordering::Relaxed);
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_nanos()).unwrap_or(NEVER - 1)
    }

    fn at(&self) -> Instant {
        self.base + Duration::from_nanos(self.at.load(Ordering::Relaxed))
    }

    /// When the server counts as gone, unless it answers.
    pub(super) fn expires_at(&self) -> Instant {
        if is_broken(Rule::Deadline) {
            return Instant::now() + self.keepalive;
        }
        // The server goes on while this machine is suspended.
        let ends = self.at() + 2 * self.keepalive;
        ends.checked_sub(suspend::since(self.at())).unwrap_or(self.base)
    }

    /// Whether an answer is overdue: the server may be gone, and new requests had better go by
    /// another connection.
    pub(super) fn is_suspect(&self, now: Instant) -> bool {
        let owed = self.owed.load(Ordering::Relaxed);
        let is_overdue = owed != NEVER && now >= self.base + Duration::from_nanos(owed) + SUSPECT_AFTER;
        is_overdue || now + suspend::since(self.at()) >= self.at() + self.keepalive + self.keepalive / 2
    }
}
