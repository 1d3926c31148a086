//! The loss of a lease as something to wait for: a future that borrows nothing, can be cloned, and
//! may be handed to any task.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, FutureExt};

use crate::lease::state_cell::StateCell;
use crate::lease::{LeaseState, LostReason};

/// Resolves when a lease is not held any more, with the reason: it was lost, or let go
/// ([`LostReason::Released`]). Made by [`Lease::lost`](crate::Lease::lost).
///
/// Clone it into child tasks, as one would a cancellation token: each clone resolves by itself, and
/// can be awaited again after it has resolved. It keeps no lease alive.
///
/// # Cancel safety
/// Dropping it loses nothing; a later one resolves at once if the lease is over by then.
///
/// # Examples
/// ```
/// use dflockd_client::{LostReason, test_util::TestServer};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// # let server = TestServer::new();
/// # let locks = server.locks();
/// let guard = locks.lock("import")?.acquire().await?;
/// let lost = guard.lost();
/// let child = tokio::spawn({
///     let lost = lost.clone();
///     async move { lost.run_until(std::future::pending::<()>()).await }
/// });
/// assert_eq!(lost.reason(), None);
/// server.cut();
/// assert_eq!(child.await.expect("it does not panic"), Err(LostReason::ConnectionClosed));
/// assert_eq!(lost.await, LostReason::ConnectionClosed);
/// # Ok(()) }
/// ```
#[must_use = "futures do nothing unless awaited"]
#[derive(Clone)]
pub struct LostSignal(Watch<LostReason>);

impl LostSignal {
    pub(super) fn new(standing: Arc<StateCell>) -> Self {
        Self(Watch::new(standing, LeaseState::lost))
    }

    /// Returns the reason, if the lease is known to be lost, or was let go. Unlike
    /// [`Lease::is_held`](crate::Lease::is_held) it looks at no clock.
    pub fn reason(&self) -> Option<LostReason> {
        self.0.seen()
    }

    /// Runs `work` until the lease is lost or let go; drops it where it stands then. Work that is done in
    /// the same instant as that counts as lost.
    ///
    /// # Errors
    /// The reason.
    ///
    /// # Cancel safety
    /// Dropping the future drops `work`.
    pub async fn run_until<F: Future>(self, work: F) -> Result<F::Output, LostReason> {
        tokio::select! {
            biased;
            reason = self => Err(reason),
            value = work => Ok(value),
        }
    }
}

impl Future for LostSignal {
    type Output = LostReason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LostReason> {
        self.0.poll_unpin(cx)
    }
}

impl fmt::Debug for LostSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LostSignal").field(&self.reason()).finish()
    }
}

/// Resolves once the lease is in a state that something is made of; borrows nothing.
pub(super) struct Watch<T> {
    standing: Arc<StateCell>,
    found: fn(LeaseState) -> Option<T>,
    waiting: Option<BoxFuture<'static, T>>,
}

impl<T> Watch<T> {
    pub(super) fn new(standing: Arc<StateCell>, found: fn(LeaseState) -> Option<T>) -> Self {
        Self { standing, found, waiting: None }
    }

    fn seen(&self) -> Option<T> {
        (self.found)(self.standing.seen())
    }

    /// Leaves the list of those who wait; a forked process must not touch its lock.
    fn stop_waiting(&mut self) {
        let waiting = self.waiting.take();
        if waiting.is_some() && !self.standing.is_ours() {
            std::mem::forget(waiting);
        }
    }
}

impl<T: 'static> Future for Watch<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(value) = self.seen() {
            self.stop_waiting();
            return Poll::Ready(value);
        }
        let (standing, found) = (self.standing.clone(), self.found);
        let waiting = async move { standing.wait_for(found).await };
        self.waiting.get_or_insert_with(|| waiting.boxed()).poll_unpin(cx)
    }
}

impl<T> Drop for Watch<T> {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl<T> Clone for Watch<T> {
    fn clone(&self) -> Self {
        Self::new(self.standing.clone(), self.found)
    }
}
