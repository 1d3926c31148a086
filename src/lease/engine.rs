//! What keeps a lease alive, seen from the lease.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::error::Result;
use crate::lease::LostReason;

/// Hears how a release went.
pub(crate) type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// What happened to that which keeps a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incident {
    /// Nothing can be held by it any more.
    Lost(LostReason),
    /// The lease may have outlived it: a renewal tells.
    #[cfg_attr(not(feature = "client"), allow(dead_code))]
    Doubt,
}

/// One grant of whatever grants it. Its futures may be dropped at any point.
pub(crate) trait Engine: Send + Sync + 'static {
    /// Who granted: a server's `host:port`, or the path of a lock file.
    fn grantor(&self) -> Arc<str>;

    /// Renews once and answers the new ttl. [`ErrorKind::NotHeld`](crate::ErrorKind::NotHeld)
    /// means that the lease is gone; any other error says nothing about it.
    fn renew(&self) -> BoxFuture<'_, Result<Duration>>;

    /// Lets go, without waiting and without needing a runtime; tells `done` how it went.
    fn release(&self, done: Done);

    /// Why nothing can be held by this engine any more, if so.
    fn lost(&self) -> Option<LostReason>;

    /// Resolves when something happens to what keeps the lease. After [`Incident::Doubt`] it is
    /// asked again once a renewal has succeeded.
    fn incident(&self) -> BoxFuture<'_, Incident>;
}
