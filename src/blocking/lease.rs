//! The guard of a lease and the handle on it, for threads.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::blocking::runtime::Runtime;
use crate::error::Result;
use crate::lease::{self, LeaseState, LostReason, Outcome};
use crate::types::{Fence, Key, Token};

/// The async type of the same use, which a panic in async code names.
const ASYNC_COUNTERPART: &str = "LeaseGuard";

/// A lease that is released when dropped: [`LeaseGuard`](crate::LeaseGuard) for threads. Its other methods are
/// those of [`Lease`].
///
/// Dropping it waits up to a second for the release. In async code it does not wait, and the release goes
/// on in the background. A release that fails then is logged. To receive the error, call
/// [`release`](Self::release).
#[must_use = "the lease is released as soon as the guard is dropped"]
pub struct LeaseGuard {
    lease: Lease,
    /// Taken when the guard is consumed.
    guard: Option<lease::LeaseGuard>,
}

impl LeaseGuard {
    pub(super) fn new(guard: lease::LeaseGuard, runtime: &Runtime) -> Self {
        let lease = Lease { lease: lease::Lease::clone(&guard), runtime: runtime.clone() };
        Self { lease, guard: Some(guard) }
    }

    /// Blocks until `acquire` is done.
    pub(super) fn block_on_acquire(
        runtime: &Runtime,
        async_counterpart: &str,
        acquire: impl Future<Output = Result<lease::LeaseGuard>> + Send + 'static,
    ) -> Result<Self> {
        runtime.run(async_counterpart, acquire).map(|guard| Self::new(guard, runtime))
    }

    /// Releases the lease (`r`, `sr`) and returns the outcome.
    ///
    /// # Errors
    /// As [`Lease::release`].
    ///
    /// # Panics
    /// In async code, as the [module](crate::blocking#panics) says. The lease is released all the
    /// same.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// guard.release()?;
    /// assert!(locks.stats()?[0].locks.is_empty());
    /// # Ok(()) }
    /// ```
    pub fn release(mut self) -> Result<()> {
        let guard = self.take();
        self.lease.runtime.run(ASYNC_COUNTERPART, guard.release())
    }

    /// Detaches the lease from this guard; see [`LeaseGuard::detach`](crate::LeaseGuard::detach).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let lease = locks.lock("account:17")?.acquire()?.detach();
    /// assert!(lease.is_held());
    /// lease.release()?;
    /// # Ok(()) }
    /// ```
    pub fn detach(mut self) -> Lease {
        let lease = self.take().detach();
        Lease { lease, runtime: self.lease.runtime.clone() }
    }

    /// Stops renewing and releases nothing: the key stays taken until the lease expires.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let lock = locks.lock("once-an-hour")?;
    /// lock.acquire()?.forget();
    /// assert!(lock.try_acquire()?.is_none()); // until the lease expires
    /// # Ok(()) }
    /// ```
    pub fn forget(mut self) {
        self.take().forget();
    }

    fn take(&mut self) -> lease::LeaseGuard {
        self.guard.take().expect("a guard has its lease until it is consumed")
    }
}

impl Deref for LeaseGuard {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            self.lease.runtime.release_on_drop(guard);
        }
    }
}

impl fmt::Debug for LeaseGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaseGuard").field(&self.lease).finish()
    }
}

/// A handle on a lease, which the hidden thread renews: [`Lease`](crate::Lease) for
/// threads. Cloning is cheap. Dropping a handle releases nothing (a [`LeaseGuard`] does that).
#[derive(Clone)]
pub struct Lease {
    lease: lease::Lease,
    runtime: Runtime,
}

impl Lease {
    /// Returns the key that is held.
    pub fn key(&self) -> &Key {
        self.lease.key()
    }

    /// Returns the grant's token, as the server sent it. Keep it out of logs.
    pub fn token(&self) -> &Token {
        self.lease.token()
    }

    /// Returns what granted the lease: the server's `host:port`.
    pub fn endpoint(&self) -> Arc<str> {
        self.lease.endpoint()
    }

    /// Returns the grant's fence, which the resource that the lease protects should check; see
    /// [`Lease::fence`](crate::Lease::fence).
    pub fn fence(&self) -> Option<Fence> {
        self.lease.fence()
    }

    /// Returns the length of the lease, as the server last set it.
    pub fn ttl(&self) -> Duration {
        self.lease.ttl()
    }

    /// Returns the instant up to which the lease is proven; see [`Lease::deadline`](crate::Lease::deadline).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// let left = guard.deadline() - std::time::Instant::now();
    /// assert!(left <= guard.ttl());
    /// # Ok(()) }
    /// ```
    pub fn deadline(&self) -> Instant {
        self.lease.deadline().into_std()
    }

    /// Returns the current state of the lease, by this process's clock.
    pub fn state(&self) -> LeaseState {
        self.runtime.enter(|| self.lease.state())
    }

    /// Returns `true` if the lease is held, and neither released nor forgotten. Never returns `true` past
    /// the [`deadline`](Self::deadline), even if the hidden thread was starved.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// for row in 0..1000 {
    ///     if !guard.is_held() {
    ///         break;
    ///     }
    ///     // write the row; check the fence there as well
    /// }
    /// # Ok(()) }
    /// ```
    pub fn is_held(&self) -> bool {
        self.runtime.enter(|| self.lease.is_held())
    }

    /// Blocks until the lease is no longer held, and returns the reason: it is lost, or another thread
    /// released it ([`LostReason::Released`]).
    ///
    /// # Panics
    /// In async code, as the [module](crate::blocking#panics) says.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let server = dflockd_client::test_util::TestServer::new();
    /// # let locks = server.builder().blocking().build()?;
    /// use dflockd_client::LostReason;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// let lost = std::thread::scope(|threads| {
    ///     let watch = threads.spawn(|| guard.lost());
    ///     server.cut();
    ///     watch.join().expect("it does not panic")
    /// });
    /// assert_eq!(lost, LostReason::ConnectionClosed);
    /// # Ok(()) }
    /// ```
    pub fn lost(&self) -> LostReason {
        // Only the shutdown of the runtime can end the wait while the lease is held.
        self.wait(is_over, None).lost().unwrap_or(LostReason::RuntimeShutdown)
    }

    /// Blocks like [`lost`](Self::lost), up to `timeout`. Returns `None` if the lease is still held then.
    ///
    /// # Panics
    /// As [`lost`](Self::lost).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// use std::time::Duration;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// // A pause in the work, which ends early if the lease is lost.
    /// assert_eq!(guard.lost_timeout(Duration::from_millis(20)), None);
    /// # Ok(()) }
    /// ```
    pub fn lost_timeout(&self, timeout: Duration) -> Option<LostReason> {
        self.wait(is_over, Some(timeout)).lost()
    }

    /// Calls `callback` once when the lease is lost, or at once if it is lost already. Drops it uncalled if the
    /// lease is released, since a released lease can no longer be lost. The callback runs on a thread of its own,
    /// and may block.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let server = dflockd_client::test_util::TestServer::new();
    /// # let locks = server.builder().blocking().build()?;
    /// use std::sync::mpsc;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// let (sender, reasons) = mpsc::channel();
    /// guard.on_lost(move |reason| sender.send(reason).unwrap_or_default());
    /// server.cut();
    /// println!("stop: {}", reasons.recv().expect("it is lost"));
    /// # Ok(()) }
    /// ```
    pub fn on_lost(&self, callback: impl FnOnce(LostReason) + Send + 'static) {
        let lease = self.lease.clone();
        self.runtime.spawn(async move {
            lease.clone().wait_until(is_over).await;
            if let LeaseState::Lost(reason) = lease.state() {
                tokio::task::spawn_blocking(move || callback(reason));
            }
        });
    }

    /// Blocks until renewals are late, the lease is in doubt, or it is lost or released, and returns its state
    /// then; see [`Lease::at_risk`](crate::Lease::at_risk).
    ///
    /// # Panics
    /// As [`lost`](Self::lost).
    pub fn at_risk(&self) -> LeaseState {
        self.wait(is_not_healthy, None)
    }

    /// Blocks like [`at_risk`](Self::at_risk), up to `timeout`. Returns [`LeaseState::Healthy`] if the lease
    /// still is healthy then.
    ///
    /// # Panics
    /// As [`lost`](Self::lost).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// use dflockd_client::LeaseState;
    /// use std::time::Duration;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// assert_eq!(guard.at_risk_timeout(Duration::from_millis(20)), LeaseState::Healthy);
    /// # Ok(()) }
    /// ```
    pub fn at_risk_timeout(&self, timeout: Duration) -> LeaseState {
        self.wait(is_not_healthy, Some(timeout))
    }

    /// Renews now (`n`, `sn`), ahead of the schedule, and returns the new ttl.
    ///
    /// # Errors
    /// As [`Lease::renew`](crate::Lease::renew).
    ///
    /// # Panics
    /// As [`lost`](Self::lost).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// let before = guard.deadline();
    /// assert_eq!(guard.renew()?, guard.ttl());
    /// assert!(guard.deadline() > before);
    /// # Ok(()) }
    /// ```
    pub fn renew(&self) -> Result<Duration> {
        let lease = self.lease.clone();
        self.runtime.run(ASYNC_COUNTERPART, async move { lease.renew().await })
    }

    /// Runs `work` on this thread, and returns its value if the lease was held until its end. Nothing stops
    /// work on a thread: check [`is_held`](Self::is_held) between its steps, and return early.
    ///
    /// Work that ends after the loss, or after another thread released the lease
    /// ([`LostReason::Released`]), counts as lost, even if it returned a value. If the lease is not held at the
    /// start, `work` does not run.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// use dflockd_client::Outcome;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// let rows = guard.run(|lease| (0..1000).take_while(|_| lease.is_held()).count());
    /// assert_eq!(rows, Outcome::Completed(1000));
    /// # Ok(()) }
    /// ```
    pub fn run<T>(&self, work: impl FnOnce(&Self) -> T) -> Outcome<T> {
        if let Some(reason) = self.state().lost() {
            return Outcome::Lost(reason);
        }
        let value = work(self);
        self.state().lost().map_or_else(|| Outcome::Completed(value), Outcome::Lost)
    }

    /// Releases the lease (`r`, `sr`) and returns the outcome. The release is attempted once, by the first caller
    /// on any handle.
    ///
    /// # Errors
    /// As [`Lease::release`](crate::Lease::release).
    ///
    /// # Panics
    /// As [`lost`](Self::lost).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// use dflockd_client::ErrorKind;
    /// let lease = locks.lock("account:17")?.acquire()?.detach();
    /// lease.release()?;
    /// assert_eq!(lease.release().unwrap_err().kind(), ErrorKind::NotHeld);
    /// # Ok(()) }
    /// ```
    pub fn release(&self) -> Result<()> {
        let lease = self.lease.clone();
        self.runtime.run(ASYNC_COUNTERPART, async move { lease.release().await })
    }

    /// Blocks until `predicate` returns `true` for the state of the lease, up to `timeout`. Returns the state.
    fn wait(&self, predicate: fn(LeaseState) -> bool, timeout: Option<Duration>) -> LeaseState {
        let reached = self.lease.clone().wait_until(predicate);
        // An error, such as the shutdown of the runtime, shows in the state.
        let _ = self.runtime.run(ASYNC_COUNTERPART, async move {
            match timeout {
                None => reached.await,
                Some(timeout) => tokio::time::timeout(timeout, reached).await.unwrap_or_default(),
            }
            Ok(())
        });
        self.state()
    }
}

fn is_over(state: LeaseState) -> bool {
    state.lost().is_some()
}

fn is_not_healthy(state: LeaseState) -> bool {
    state != LeaseState::Healthy
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.runtime.enter(|| self.lease.fmt(f))
    }
}
