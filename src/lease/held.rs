//! One held key, as the lease sees it: what a backend must do to keep it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::error::Result;
use crate::lease::LostReason;
use crate::lease::completion::ReleaseCompletion;

/// A change in what a lease depends on, such as its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The lease can no longer be held.
    Lost(LostReason),
    /// The lease may have survived the change. The next renewal decides.
    #[cfg(feature = "client")]
    InDoubt,
}

/// One held key. Its futures may be dropped at any await.
pub(crate) trait HeldLease: Send + Sync + 'static {
    /// Returns what granted the key: a server's `host:port`, or the path of a lock file.
    fn endpoint(&self) -> Arc<str>;

    /// Renews once and returns the new ttl. [`ErrorKind::NotHeld`](crate::ErrorKind::NotHeld)
    /// means that the lease is gone; any other error says nothing about it.
    fn renew(&self) -> BoxFuture<'_, Result<Duration>>;

    /// Starts a release, without waiting and without a runtime. Completes `completion` with its outcome.
    fn release(&self, now: Instant, completion: ReleaseCompletion);

    /// Gives up what a forgotten lease depends on, without a release.
    #[cfg(feature = "client")]
    fn cut(&self) {}

    /// Returns `true` if the backend times out a release that gets no reply. Otherwise the caller must.
    fn enforces_release_deadline(&self) -> bool;

    /// Returns the reason if the key can no longer be held at `now`.
    fn lost(&self, now: Instant) -> Option<LostReason>;

    /// Resolves at the next change. After [`Change::InDoubt`] the lease calls it again once a renewal has
    /// succeeded.
    fn changed(&self) -> impl Future<Output = Change> + Send
    where
        Self: Sized;
}
