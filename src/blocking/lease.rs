//! What a holder keeps, for threads: the guard that releases on drop, and the handle on its lease.
//! Knows of no queue.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::blocking::runtime::Runtime;
use crate::error::Result;
use crate::lease::{LeaseState, LostReason, Outcome};
use crate::types::{Fence, Key, Token};

/// What async code uses in place of all this.
const TWIN: &str = "LeaseGuard";

/// A lease that is released when dropped: [`LeaseGuard`](crate::LeaseGuard) for threads. Everything
/// to ask of it stands on [`Lease`].
///
/// Dropping it waits up to a second for the release, but in async code for nothing; the release goes
/// on in the background then. A failure goes to the log. Call [`release`](Self::release) to hear of
/// it.
#[must_use = "the lease is released as soon as the guard is dropped"]
pub struct LeaseGuard {
    lease: Lease,
    /// Taken when the guard is consumed.
    guard: Option<crate::LeaseGuard>,
}

impl LeaseGuard {
    pub(super) fn new(guard: crate::LeaseGuard, runtime: &Runtime) -> Self {
        let lease = Lease { lease: crate::Lease::clone(&guard), runtime: runtime.clone() };
        Self { lease, guard: Some(guard) }
    }

    /// Blocks until `acquire` is done.
    pub(super) fn by(
        runtime: &Runtime,
        twin: &str,
        acquire: impl Future<Output = Result<crate::LeaseGuard>> + Send + 'static,
    ) -> Result<Self> {
        runtime.run(twin, acquire).map(|guard| Self::new(guard, runtime))
    }

    /// Lets go (`r`, `sr`) and reports.
    ///
    /// # Errors
    /// As [`Lease::release`].
    ///
    /// # Panics
    /// In async code, as the [module](crate::blocking#panics) says; the lease is released all the
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
        self.lease.runtime.run(TWIN, guard.release())
    }

    /// Lets the lease outlive this guard; see [`LeaseGuard::detach`](crate::LeaseGuard::detach).
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

    /// Stops renewing and releases nothing: the key stays taken until the lease runs out.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let lock = locks.lock("once-an-hour")?;
    /// lock.acquire()?.forget();
    /// assert!(lock.try_acquire()?.is_none()); // until the lease runs out
    /// # Ok(()) }
    /// ```
    pub fn forget(mut self) {
        self.take().forget();
    }

    fn take(&mut self) -> crate::LeaseGuard {
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
            self.lease.runtime.let_go(guard);
        }
    }
}

impl fmt::Debug for LeaseGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaseGuard").field(&self.lease).finish()
    }
}

/// A handle on a lease that is held, renewed by the hidden thread: [`Lease`](crate::Lease) for
/// threads. Cloning is cheap; dropping a handle releases nothing (a [`LeaseGuard`] does that).
#[derive(Clone)]
pub struct Lease {
    lease: crate::Lease,
    runtime: Runtime,
}

impl Lease {
    /// The key that is held.
    pub fn key(&self) -> &Key {
        self.lease.key()
    }

    /// The grant's token, as the server spelled it. Keep it out of logs.
    pub fn token(&self) -> &Token {
        self.lease.token()
    }

    /// Who granted: the server's `host:port`.
    pub fn grantor(&self) -> Arc<str> {
        self.lease.endpoint()
    }

    /// The grant's fence, to be checked by whatever the lease protects; see
    /// [`Lease::fence`](crate::Lease::fence).
    pub fn fence(&self) -> Option<Fence> {
        self.lease.fence()
    }

    /// The lease's length, as the server last set it.
    pub fn ttl(&self) -> Duration {
        self.lease.ttl()
    }

    /// The instant up to which the lease is proven; see [`Lease::deadline`](crate::Lease::deadline).
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

    /// How the lease stands right now, by this process's clock.
    pub fn state(&self) -> LeaseState {
        self.runtime.look(|| self.lease.state())
    }

    /// Whether the lease is held and neither released nor forgotten. Never true past the
    /// [`deadline`](Self::deadline), even if the hidden thread was starved.
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
        self.runtime.look(|| self.lease.is_held())
    }

    /// Blocks until the lease is not held any more, and returns why: it is lost, or another thread let
    /// go of it ([`LostReason::Released`]).
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
        // Nothing but the end of the runtime ends the wait before the lease.
        self.wait(is_over, None).lost().unwrap_or(LostReason::RuntimeShutdown)
    }

    /// [`lost`](Self::lost), but waits up to `limit`; `None` if the lease is still held then.
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
    /// // A pause in the work that ends early when there is nothing left to work on.
    /// assert_eq!(guard.lost_timeout(Duration::from_millis(20)), None);
    /// # Ok(()) }
    /// ```
    pub fn lost_timeout(&self, limit: Duration) -> Option<LostReason> {
        self.wait(is_over, Some(limit)).lost()
    }

    /// Calls `callback` once when the lease is lost, and at once if it is. A lease that is let go cannot
    /// be lost any more: the callback is dropped then, uncalled. It runs on a thread of its own, where it
    /// may block.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let server = dflockd_client::test_util::TestServer::new();
    /// # let locks = server.builder().blocking().build()?;
    /// use std::sync::mpsc;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// let (tell, told) = mpsc::channel();
    /// guard.on_lost(move |reason| tell.send(reason).unwrap_or_default());
    /// server.cut();
    /// println!("stop: {}", told.recv().expect("it is lost"));
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

    /// Blocks until renewals are late, the lease is in doubt, or it is lost or let go, and returns how it
    /// stands then; see [`Lease::at_risk`](crate::Lease::at_risk).
    ///
    /// # Panics
    /// As [`lost`](Self::lost).
    pub fn at_risk(&self) -> LeaseState {
        self.wait(is_shaky, None)
    }

    /// [`at_risk`](Self::at_risk), but waits up to `limit`; healthy if it still is then.
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
    pub fn at_risk_timeout(&self, limit: Duration) -> LeaseState {
        self.wait(is_shaky, Some(limit))
    }

    /// Renews now (`n`, `sn`), whatever the schedule says, and answers the new ttl.
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
        self.runtime.run(TWIN, async move { lease.renew().await })
    }

    /// Runs `work` on this thread, and tells whether the lease was held to its end. Nothing stops
    /// work on a thread: ask [`is_held`](Self::is_held) between its steps, and leave.
    ///
    /// Work that ends after the loss, or after another thread let go of the lease
    /// ([`LostReason::Released`]), counts as lost, whatever it came to; work is not begun on a lease that
    /// is over.
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

    /// Lets go (`r`, `sr`) and reports. Attempted once, whoever comes first.
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
        self.runtime.run(TWIN, async move { lease.release().await })
    }

    /// Blocks until the lease is in such a state, or the time is up; returns its state.
    fn wait(&self, is_such: fn(LeaseState) -> bool, limit: Option<Duration>) -> LeaseState {
        let reached = self.lease.clone().wait_until(is_such);
        // What ends the wait in another way, such as the end of the runtime, shows in the state.
        let _ = self.runtime.run(TWIN, async move {
            match limit {
                None => reached.await,
                Some(limit) => timeout(limit, reached).await.unwrap_or_default(),
            }
            Ok(())
        });
        self.state()
    }
}

fn is_over(state: LeaseState) -> bool {
    state.lost().is_some()
}

fn is_shaky(state: LeaseState) -> bool {
    state != LeaseState::Healthy
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.runtime.look(|| self.lease.fmt(f))
    }
}
