//! What keeps a lease alive, seen from the lease.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::lease::LostReason;
use crate::lease::event::LeaseReporter;

/// How long whoever lets go waits for the answer.
pub(super) const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Hears how a release went.
pub(crate) struct ReleaseCompletion {
    teller: Option<Arc<LeaseReporter>>,
    caller: Option<ReleaseWaiter>,
}

/// Whoever waits for the answer to a release, and until when.
pub(crate) struct ReleaseWaiter {
    pub(crate) sender: oneshot::Sender<Result<()>>,
    pub(crate) deadline: Instant,
}

impl ReleaseCompletion {
    /// Nobody wants to know.
    pub(crate) fn ignored() -> Self {
        Self { teller: None, caller: None }
    }

    /// Whoever counts hears of it, and a caller who waits, if any does.
    pub(super) fn new(teller: Arc<LeaseReporter>, caller: Option<ReleaseWaiter>) -> Self {
        Self { teller: Some(teller), caller }
    }

    pub(crate) fn complete(self, outcome: Result<()>) {
        if let Some(teller) = self.teller {
            teller.released(&outcome);
        }
        if let Some(caller) = self.caller {
            // The caller may have stopped waiting.
            let _ = caller.sender.send(outcome);
        }
    }

    /// Until when a caller waits, if one does.
    #[cfg_attr(not(feature = "client"), allow(dead_code))]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.caller.as_ref().map(|caller| caller.deadline)
    }

    /// Tells a caller who waits that there is no answer in time. Whoever counts still hears of it.
    #[cfg_attr(not(feature = "client"), allow(dead_code))]
    pub(crate) fn time_out(&mut self) {
        if let (Some(caller), Some(teller)) = (self.caller.take(), &self.teller) {
            // The caller may have stopped waiting.
            let _ = caller.sender.send(Err(release_timed_out(teller)));
        }
    }
}

/// A release that was not answered in time.
pub(super) fn release_timed_out(teller: &LeaseReporter) -> Error {
    let detail = format!("no answer within {} s", RELEASE_TIMEOUT.as_secs());
    teller.error("release", ErrorKind::Timeout, detail)
}

/// What happened to that which keeps a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing can be held by it any more.
    Lost(LostReason),
    /// The lease may have outlived it: a renewal tells.
    #[cfg_attr(not(feature = "client"), allow(dead_code))]
    InDoubt,
}

/// One grant of whatever grants it. Its futures may be dropped at any point.
pub(crate) trait HeldLease: Send + Sync + 'static {
    /// Who granted: a server's `host:port`, or the path of a lock file.
    fn endpoint(&self) -> Arc<str>;

    /// Renews once and answers the new ttl. [`ErrorKind::NotHeld`](crate::ErrorKind::NotHeld)
    /// means that the lease is gone; any other error says nothing about it.
    fn renew(&self) -> BoxFuture<'_, Result<Duration>>;

    /// Lets go, without waiting and without needing a runtime; tells `done` how it went.
    fn release(&self, now: Instant, done: ReleaseCompletion);

    /// Gives up what keeps a lease that was forgotten, whose grantor is not told.
    #[cfg_attr(not(feature = "client"), allow(dead_code))]
    fn cut(&self) {}

    /// Whether a caller who waits for a release is told in time that there is no answer. Else he must
    /// look at the clock himself.
    fn enforces_release_deadline(&self) -> bool;

    /// Why nothing can be held by this engine any more, if so.
    fn lost(&self, now: Instant) -> Option<LostReason>;

    /// Resolves when something happens to what keeps the lease. After [`Incident::Doubt`] it is
    /// asked again once a renewal has succeeded.
    fn changed(&self) -> impl Future<Output = Change> + Send
    where
        Self: Sized;
}
