//! The handle on a lease: its state, renewal and release, without the duty to release it.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
#[cfg(feature = "client")]
use std::sync::Weak;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::error::{ErrorKind, Result};
use crate::lease::completion::{RELEASE_TIMEOUT, ReleaseWaiter, release_timed_out};
use crate::lease::inner::LeaseInner;
use crate::lease::lost::{LostSignal, Watch};
use crate::lease::renewal::RenewalSchedule;
use crate::lease::{LeaseState, LostReason};
use crate::suspend;
use crate::types::{Fence, Key, Token};

/// The outcome of [`Lease::run`].
#[must_use = "the lease may have been lost before the work was done"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// The work finished while the lease was held.
    Completed(T),
    /// The lease was lost or released first, and the unfinished work was dropped.
    Lost(LostReason),
}

/// A handle on a lease, which is renewed in the background. Cloning is cheap. Dropping a handle releases nothing
/// (a [`LeaseGuard`](crate::LeaseGuard) does that).
///
/// All handles share one lease. If one handle releases it, it is released for all of them at once: the state is
/// [`Released`](LeaseState::Released), [`lost`](Self::lost) and [`at_risk`](Self::at_risk) resolve, and
/// work that [runs](Self::run) under the lease stops.
#[derive(Clone)]
pub struct Lease(pub(super) Arc<LeaseInner>);

impl Lease {
    /// Returns the key that is held.
    pub fn key(&self) -> &Key {
        &self.0.reporter.key
    }

    /// Returns the grant's token, as the server sent it. Keep it out of logs.
    pub fn token(&self) -> &Token {
        &self.0.token
    }

    /// Returns what granted the lease: the server's `host:port`, or the path of the lock file.
    pub fn endpoint(&self) -> Arc<str> {
        self.0.reporter.endpoint.clone()
    }

    /// Returns the grant's fence, which the resource that the lease protects should check. Returns `None` for
    /// servers too old to fence (1.x, which do not know `ping`), and for lock files.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let lock = locks.lock("account:17")?;
    /// let first = lock.acquire().await?;
    /// let fence = first.fence();
    /// first.release().await?;
    /// let second = lock.acquire().await?;
    /// assert!(second.fence() > fence);
    /// # Ok(()) }
    /// ```
    pub fn fence(&self) -> Option<Fence> {
        self.0.reporter.fence
    }

    /// Returns the length of the lease, as the server last set it.
    pub fn ttl(&self) -> Duration {
        self.0.read(RenewalSchedule::ttl).unwrap_or_default()
    }

    /// Returns the instant up to which the lease is proven: when the last successful acquire or renewal
    /// was *sent*, plus the ttl. It is never later than the server's own deadline.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// let left = guard.deadline() - tokio::time::Instant::now();
    /// assert!(left <= guard.ttl());
    /// # Ok(()) }
    /// ```
    pub fn deadline(&self) -> Instant {
        self.0.deadline().unwrap_or_else(Instant::now)
    }

    /// Returns the current state of the lease, by this process's clock.
    pub fn state(&self) -> LeaseState {
        self.0.state()
    }

    /// Returns `true` if the lease is held, and neither released nor forgotten. Never returns `true` past
    /// the [`deadline`](Self::deadline), even if the renewal task was starved.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// if guard.is_held() {
    ///     // the write that the lease guards; check the fence there as well
    /// }
    /// let lease = guard.detach();
    /// lease.release().await?;
    /// assert!(!lease.is_held());
    /// # Ok(()) }
    /// ```
    pub fn is_held(&self) -> bool {
        self.state().lost().is_none()
    }

    /// Resolves when the lease is no longer held, with the reason: it is lost, or it was released
    /// ([`LostReason::Released`]). The future borrows nothing and can be cloned, so that other tasks can
    /// await it.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing. If the lease is lost by then, a later call resolves at once.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let server = TestServer::new();
    /// # let locks = server.locks();
    /// use dflockd_client::LostReason;
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// let watch = tokio::spawn(guard.lost());
    /// server.cut();
    /// assert_eq!(watch.await.expect("it does not panic"), LostReason::ConnectionClosed);
    /// assert!(!guard.is_held());
    /// # Ok(()) }
    /// ```
    pub fn lost(&self) -> LostSignal {
        LostSignal::new(self.0.reporter.state.clone())
    }

    /// Resolves when little time is left because renewals are late (a quarter of the ttl, see
    /// [`Builder::at_risk_ratio`](crate::Builder::at_risk_ratio)), when the lease is in doubt (see
    /// [`Builder::on_disconnect`](crate::Builder::on_disconnect)), or when it is lost or released: time to
    /// wind down. A renewal that succeeds makes the lease healthy again, and [`state`](Self::state) returns
    /// that then.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing.
    pub fn at_risk(&self) -> impl Future<Output = ()> + Send + 'static {
        let state = self.0.reporter.state.clone();
        Watch::new(state, |state| (state != LeaseState::Healthy).then_some(()))
    }

    /// Waits until `predicate` returns `true` for the state of the lease.
    #[cfg(feature = "blocking")]
    pub(crate) async fn wait_until(self, predicate: fn(LeaseState) -> bool) {
        self.0.reporter.state.wait_for(|state| predicate(state).then_some(())).await;
    }

    /// Renews now (`n`, `sn`), ahead of the schedule, and returns the new ttl.
    ///
    /// # Errors
    /// - [`ErrorKind::LeaseLost`] if the lease was lost before the reply came.
    /// - [`ErrorKind::NotHeld`] if it was released or forgotten, or if the server rejects the renewal, which
    ///   loses the lease.
    /// - [`ErrorKind::InvalidInput`] outside a tokio runtime, for a server's lease.
    /// - Otherwise the error of the request, which does not lose the lease.
    ///
    /// # Cancel safety
    /// A renewal that was sent may still take effect. The deadline then stays the earlier one.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// let before = guard.deadline();
    /// let ttl = guard.renew().await?;
    /// assert_eq!(ttl, guard.ttl());
    /// assert!(guard.deadline() > before);
    /// # Ok(()) }
    /// ```
    pub async fn renew(&self) -> Result<Duration> {
        if let Some(reason) = self.state().lost() {
            return Err(self.0.over_error("renew", reason));
        }
        let sent = suspend::now();
        let outcome = self.0.held.renew().await;
        self.0.apply_renewal(sent, &outcome);
        match (&outcome, self.state().lost()) {
            (Ok(_), Some(reason)) => Err(self.0.over_error("renew", reason)),
            _ => outcome,
        }
    }

    /// Runs `work` while the lease is held. Drops the unfinished work when the lease is lost, or released
    /// through another handle, because the next holder may be at work from then on.
    ///
    /// Work that ends after that counts as lost, even if it returned a value; for a release the reason is
    /// [`LostReason::Released`]. Work that ended before the release is completed. A blocking call or a spawned
    /// task that `work` has started goes on after the drop: the [`fence`](Self::fence) is for those.
    ///
    /// # Cancel safety
    /// Dropping the future drops `work`. The lease stays held.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// use dflockd_client::Outcome;
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// match guard.run(async { 6 * 7 }).await {
    ///     Outcome::Completed(answer) => assert_eq!(answer, 42),
    ///     Outcome::Lost(reason) => println!("stopped: {reason}"),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn run<F: Future>(&self, work: F) -> Outcome<F::Output> {
        let (mut lost, mut work) = (self.lost(), pin!(work));
        poll_fn(|cx| {
            if let Some(reason) = self.state().lost() {
                return Poll::Ready(Outcome::Lost(reason));
            }
            if let Poll::Ready(value) = work.as_mut().poll(cx) {
                // The work may have blocked this task, so the clock decides whether the lease is still held.
                let lost = self.state().lost();
                return Poll::Ready(lost.map_or_else(|| Outcome::Completed(value), Outcome::Lost));
            }
            lost.poll_unpin(cx).map(Outcome::Lost)
        })
        .await
    }

    /// Releases the lease (`r`, `sr`) and returns the outcome. The release is attempted once, by the first
    /// caller on any handle. A second call fails with [`ErrorKind::NotHeld`].
    ///
    /// # Errors
    /// - [`ErrorKind::LeaseLost`] if the lease was lost before. The release is sent all the same.
    /// - [`ErrorKind::NotHeld`] if the server no longer knows the holder, or the lease was released before.
    /// - [`ErrorKind::InvalidInput`] outside a tokio runtime, where the reply cannot be awaited. The release is
    ///   sent all the same.
    /// - Otherwise the error of the request: the lease then expires by itself.
    ///
    /// # Cancel safety
    /// Once the future was polled, the release is sent even if the future is dropped.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// guard.release().await?;
    /// assert!(locks.stats().await?[0].locks.is_empty());
    /// # Ok(()) }
    /// ```
    pub async fn release(&self) -> Result<()> {
        if !self.0.is_ours() {
            return Err(self.0.over_error("release", LostReason::Forked));
        }
        let now = suspend::now();
        let lost = self.0.state_at(now).lost();
        if !self.0.claim_release() {
            return Err(self.0.over_error("release", LostReason::Released));
        }
        if let Some(reason) = lost {
            self.0.release_lost(now);
            return Err(self.0.over_error("release", reason));
        }
        let (sender, outcome) = oneshot::channel();
        let deadline = now + RELEASE_TIMEOUT;
        let backend_times_out = self.0.held.enforces_release_deadline();
        let waiter = ReleaseWaiter {
            sender,
            #[cfg(feature = "client")]
            deadline,
        };
        self.0.release(now, Some(waiter));
        if Handle::try_current().is_err() {
            let detail = "no tokio runtime runs this: the release is sent, but its reply is not awaited";
            return Err(self.0.reporter.error("release", ErrorKind::InvalidInput, detail));
        }
        let outcome = if backend_times_out {
            outcome.await.ok()
        } else {
            Box::pin(timeout_at(deadline, outcome)).await.ok().and_then(std::result::Result::ok)
        };
        outcome.unwrap_or_else(|| {
            if Instant::now() >= deadline {
                return Err(release_timed_out(&self.0.reporter));
            }
            Err(self.0.reporter.error("release", ErrorKind::ConnectionClosed, "the runtime is shut down"))
        })
    }
}

/// A handle that does not keep the lease alive.
#[cfg(feature = "client")]
pub(crate) struct WeakLease(Weak<LeaseInner>);

#[cfg(feature = "client")]
impl WeakLease {
    pub(crate) fn upgrade(&self) -> Option<Lease> {
        self.0.upgrade().map(Lease)
    }
}

#[cfg(feature = "client")]
impl Lease {
    /// Returns the state of a new lease at `now`, which was read a moment ago.
    pub(crate) fn state_at(&self, now: Instant) -> LeaseState {
        self.0.state_at(now)
    }

    pub(crate) fn downgrade(&self) -> WeakLease {
        WeakLease(Arc::downgrade(&self.0))
    }

    /// Marks the lease as lost for this reason, and releases it. Drops `caller` if the lease was released or
    /// forgotten before.
    pub(crate) fn end(&self, reason: LostReason, now: Instant, caller: ReleaseWaiter) {
        self.0.lose(reason);
        if self.0.claim_release() {
            self.0.release(now, Some(caller));
        } else {
            self.0.held.cut();
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", self.key())
            .field("token", &self.0.token)
            .field("state", &self.state())
            .finish()
    }
}
