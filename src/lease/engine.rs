//! What keeps a lease alive, seen from the lease.

use std::time::Duration;

use futures::future::BoxFuture;

use crate::error::{Error, Result};
use crate::lease::LostReason;

/// One grant of whatever grants it. Its futures may be dropped at any point.
pub(crate) trait Engine: Send + Sync + 'static {
    /// Renews once and answers the new ttl. [`ErrorKind::NotHeld`](crate::ErrorKind::NotHeld)
    /// means that the lease is gone; any other error says nothing about it.
    fn renew(&self) -> BoxFuture<'_, Result<Duration>>;

    /// Lets go and reports. The attempt is made even if the future is dropped after its first poll.
    fn release(&self) -> BoxFuture<'_, Result<()>>;

    /// Lets go without waiting; needs no runtime.
    fn release_soon(&self);

    /// Why nothing can be held by this engine any more, if so.
    fn lost(&self) -> Option<LostReason>;

    /// Resolves once [`lost`](Self::lost) is some.
    fn closed(&self) -> BoxFuture<'_, LostReason>;

    /// Adds to an error what only the engine knows, such as where the grant comes from.
    fn name(&self, error: Error) -> Error {
        error
    }
}
