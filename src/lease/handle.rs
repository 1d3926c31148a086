//! The handle on a lease: everything there is to ask of it, without the duty to release it.

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

/// How [`Lease::run`] ended.
#[must_use = "the lease may have been lost before the work was done"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// The work finished while the lease was held.
    Completed(T),
    /// The lease was lost or released first, and the work was dropped where it stood.
    Lost(LostReason),
}

/// A handle on a lease that is held, renewed in the background. Cloning is cheap; dropping a
/// handle releases nothing (a [`LeaseGuard`](crate::LeaseGuard) does that).
///
/// All handles see the same lease. If one releases it, it is over for each of them, at once: it is
/// [`Released`](LeaseState::Released), [`lost`](Self::lost) and [`at_risk`](Self::at_risk) resolve, and
/// work that [runs](Self::run) under it stops.
#[derive(Clone)]
pub struct Lease(pub(super) Arc<LeaseInner>);

impl Lease {
    /// The key that is held.
    pub fn key(&self) -> &Key {
        &self.0.reporter.key
    }

    /// The grant's token, as the server spelled it. Keep it out of logs.
    pub fn token(&self) -> &Token {
        &self.0.token
    }

    /// Who granted: the server's `host:port`, or the path of the lock file.
    pub fn endpoint(&self) -> Arc<str> {
        self.0.reporter.endpoint.clone()
    }

    /// The grant's fence, to be checked by whatever the lease protects; `None` from servers too
    /// old to fence (1.x: they do not know `ping`), and for lock files.
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

    /// The lease's length, as the server last set it.
    pub fn ttl(&self) -> Duration {
        self.0.read(RenewalSchedule::ttl).unwrap_or_default()
    }

    /// The instant up to which the lease is proven: when the last successful acquire or renewal
    /// was *sent*, plus the ttl. Never later than the server's own deadline.
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

    /// How the lease stands right now, by this process's clock.
    pub fn state(&self) -> LeaseState {
        self.0.state()
    }

    /// Whether the lease is held and neither released nor forgotten. Never true past the
    /// [`deadline`](Self::deadline), even if the renewal task was starved.
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

    /// Resolves when the lease is not held any more, with the reason: it is lost, or it was let go
    /// ([`LostReason::Released`]). The future borrows nothing and can be cloned: hand it to other
    /// tasks.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing; a later call resolves at once if the lease is lost by then.
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
    /// [`Builder::on_disconnect`](crate::Builder::on_disconnect)), or when it is lost or let go: time to
    /// wind down. A renewal that gets through heals the lease, so [`state`](Self::state) may be healthy
    /// again afterwards.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing.
    pub fn at_risk(&self) -> impl Future<Output = ()> + Send + 'static {
        let standing = self.0.reporter.state.clone();
        Watch::new(standing, |state| (state != LeaseState::Healthy).then_some(()))
    }

    /// Waits until the lease is in such a state.
    #[cfg(feature = "blocking")]
    pub(crate) async fn wait_until(self, is_such: fn(LeaseState) -> bool) {
        self.0.reporter.state.wait_for(|state| is_such(state).then_some(())).await;
    }

    /// Renews now (`n`, `sn`), whatever the schedule says, and answers the new ttl.
    ///
    /// # Errors
    /// [`ErrorKind::LeaseLost`] when the lease was lost before the answer came;
    /// [`ErrorKind::NotHeld`] when it was released or forgotten, or when the server rejects the
    /// renewal, which loses the lease; otherwise what kept the answer away, which does not;
    /// [`ErrorKind::InvalidInput`] outside a tokio runtime, where it is a server's lease.
    ///
    /// # Cancel safety
    /// A renewal that was sent may still take effect; the deadline then stays the earlier one.
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

    /// Runs `work` while the lease is held; drops it where it stands when the lease is lost, or let go
    /// through another handle: from then on the next holder may be at work, and nothing protects this
    /// one.
    ///
    /// Work that ends after that counts as lost, whatever it came to; for a release the reason is
    /// [`LostReason::Released`]. Work that ended before the release is completed. Work that has started
    /// a blocking call or spawned a task goes on beyond the drop: the [`fence`](Self::fence) is for
    /// those.
    ///
    /// # Cancel safety
    /// Dropping the future drops `work`; the lease stays held.
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
                // Whatever took the work long, the clock tells whether the lease was held till now.
                let lost = self.state().lost();
                return Poll::Ready(lost.map_or_else(|| Outcome::Completed(value), Outcome::Lost));
            }
            lost.poll_unpin(cx).map(Outcome::Lost)
        })
        .await
    }

    /// Lets go (`r`, `sr`) and reports. Attempted once, whoever comes first; a second call is
    /// told [`ErrorKind::NotHeld`].
    ///
    /// # Errors
    /// [`ErrorKind::LeaseLost`] when the lease was lost before (the server is told all the same);
    /// [`ErrorKind::NotHeld`] when the server knows no such holder any more, or the lease was
    /// released before; otherwise what kept the answer away: the lease then runs out by itself;
    /// [`ErrorKind::InvalidInput`] outside a tokio runtime, where its answer cannot be waited for: it is
    /// sent all the same.
    ///
    /// # Cancel safety
    /// Once polled, the release is on its way even if the future is dropped.
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
        let (tell, told) = oneshot::channel();
        let waiter = ReleaseWaiter { sender: tell, deadline: now + RELEASE_TIMEOUT };
        let until = waiter.deadline;
        let minds_the_time = self.0.held.enforces_release_deadline();
        self.0.release(now, Some(waiter));
        if Handle::try_current().is_err() {
            let unheard = "it is on its way, but no tokio runtime runs this, so its answer is not waited for";
            return Err(self.0.reporter.error("release", ErrorKind::InvalidInput, unheard));
        }
        let outcome = if minds_the_time {
            told.await.ok()
        } else {
            Box::pin(timeout_at(until, told)).await.ok().and_then(std::result::Result::ok)
        };
        outcome.unwrap_or_else(|| {
            if Instant::now() >= until {
                return Err(release_timed_out(&self.0.reporter));
            }
            Err(self.0.reporter.error("release", ErrorKind::ConnectionClosed, "the runtime is shut down"))
        })
    }
}

/// A handle that keeps nothing alive.
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
    /// How the lease, which is new, stands at a `now` that was looked at a moment ago.
    pub(crate) fn state_at(&self, now: Instant) -> LeaseState {
        self.0.state_at(now)
    }

    pub(crate) fn downgrade(&self) -> WeakLease {
        WeakLease(Arc::downgrade(&self.0))
    }

    /// Ends the lease from this side: it is lost for this reason, and let go. `caller` is dropped
    /// where it was let go or forgotten before.
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
