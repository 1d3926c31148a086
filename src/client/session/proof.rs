//! How long a server that answers nothing may be taken for alive. Knows of no stream.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::sabotage::{Rule, is_broken};

/// When the server last proved that it was listening: the instant before a request was sent that
/// it has answered since.
///
/// A server drops a connection on which it has read nothing for its read timeout, and frees what
/// the connection held. It read the answered request no earlier than that request was sent, so
/// for as long as two keepalive intervals stay below the read timeout, a connection given up two
/// intervals after its last proof is given up before the server does.
pub(super) struct Proof {
    base: Instant,
    /// Nanoseconds after `base`.
    at: AtomicU64,
    keepalive: Duration,
}

impl Proof {
    pub(super) fn new(keepalive: Duration) -> Self {
        Self { base: Instant::now(), at: AtomicU64::new(0), keepalive }
    }

    /// A request sent at `sent` was answered.
    pub(super) fn answered(&self, sent: Instant) {
        let at = sent.saturating_duration_since(self.base).as_nanos();
        self.at.fetch_max(u64::try_from(at).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn at(&self) -> Instant {
        self.base + Duration::from_nanos(self.at.load(Ordering::Relaxed))
    }

    /// When the server counts as gone, unless it answers.
    pub(super) fn ends(&self) -> Instant {
        if is_broken(Rule::Deadline) {
            return Instant::now() + self.keepalive;
        }
        self.at() + 2 * self.keepalive
    }

    /// Whether a ping has gone unanswered for a while.
    pub(super) fn is_shaky(&self) -> bool {
        Instant::now() >= self.at() + self.keepalive + self.keepalive / 2
    }
}
