//! The loss of a lease as a future, which borrows nothing, can be cloned, and may be moved to any task.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, FutureExt};

use crate::lease::state_cell::StateCell;
use crate::lease::{LeaseState, LostReason};

/// Resolves when a lease is no longer held, with the reason: the lease was lost, or it was released
/// ([`LostReason::Released`]). Made by [`Lease::lost`](crate::Lease::lost).
///
/// Clone it into child tasks, like a cancellation token: each clone resolves by itself, and can be awaited
/// again after it has resolved. It keeps no lease alive.
///
/// # Cancel safety
/// Dropping it loses nothing. If the lease is lost or released by then, a later one resolves at once.
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
    pub(super) fn new(state: Arc<StateCell>) -> Self {
        Self(Watch::new(state, LeaseState::lost))
    }

    /// Returns the reason, if the lease is known to be lost, or was released. Unlike
    /// [`Lease::is_held`](crate::Lease::is_held) it reads no clock.
    pub fn reason(&self) -> Option<LostReason> {
        self.0.seen()
    }

    /// Runs `work` until the lease is lost or released, and drops the unfinished work then. Work that finishes
    /// in that instant counts as lost.
    ///
    /// # Errors
    /// The reason why the lease is no longer held.
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

/// Resolves once `select` returns a value for the state of the lease. Borrows nothing.
pub(super) struct Watch<T> {
    state: Arc<StateCell>,
    select: fn(LeaseState) -> Option<T>,
    waiting: Option<BoxFuture<'static, T>>,
}

impl<T> Watch<T> {
    pub(super) fn new(state: Arc<StateCell>, select: fn(LeaseState) -> Option<T>) -> Self {
        Self { state, select, waiting: None }
    }

    fn seen(&self) -> Option<T> {
        (self.select)(self.state.seen())
    }

    /// Leaves the list of watchers. A forked process must not take the lock of that list.
    fn stop_waiting(&mut self) {
        let waiting = self.waiting.take();
        if waiting.is_some() && !self.state.is_ours() {
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
        let (state, select) = (self.state.clone(), self.select);
        let waiting = async move { state.wait_for(select).await };
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
        Self::new(self.state.clone(), self.select)
    }
}
