//! The lock, for threads, and its builder's target.

use std::fmt;
use std::time::Duration;

use crate::blocking::runtime::Runtime;
use crate::blocking::{Blocking, Enqueued, LeaseGuard};
use crate::client::{AsyncDistributedLock, Builder, BuilderParts, LockOptions, LockTarget, Target};
use crate::error::Result;
use crate::types::Key;

/// The async type of the same use, which a panic in async code names.
const ASYNC_COUNTERPART: &str = "AsyncDistributedLock";

/// A lock on one key: one holder at a time in the whole fleet, first in, first out. For threads; in async code, use
/// [`AsyncDistributedLock`].
///
/// The value itself holds nothing: it is cheap to clone, can be shared, and makes any number of acquires. It is
/// not reentrant. A program that uses many locks builds one
/// [`blocking::LockClient`](crate::blocking::LockClient), which makes them.
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::SyncDistributedLock;
/// # fn main() -> dflockd_client::Result<()> {
/// # let server = dflockd_client::test_util::TestServer::new();
/// let lock = SyncDistributedLock::builder("deploy-job")
///     .lease_ttl(Duration::from_secs(30))
/// #   .dial(server)
///     .build()?;
/// let guard = lock.acquire()?;
/// // One thread in the whole fleet gets here at a time.
/// guard.release()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SyncDistributedLock {
    pub(super) lock: AsyncDistributedLock,
    pub(super) runtime: Runtime,
}

impl SyncDistributedLock {
    /// Returns the builder of a lock on `key`: 1 to 256 bytes without whitespace.
    pub fn builder(key: impl Into<String>) -> Builder<Blocking<LockTarget>> {
        AsyncDistributedLock::builder(key).blocking()
    }

    /// Returns the key.
    pub fn key(&self) -> &Key {
        self.lock.key()
    }

    /// Returns the same lock with other settings for its leases.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), as in [`Builder::build`].
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// use dflockd_client::LockOptions;
    /// use std::time::Duration;
    /// let options = LockOptions::new().lease_ttl(Duration::from_secs(5));
    /// let lock = locks.lock("deploy-job")?.with_options(options)?;
    /// assert_eq!(lock.acquire()?.ttl(), Duration::from_secs(5));
    /// # Ok(()) }
    /// ```
    pub fn with_options(&self, options: LockOptions) -> Result<Self> {
        Ok(Self { lock: self.lock.with_options(options)?, runtime: self.runtime.clone() })
    }

    /// Returns the same lock with an exclusive connection for each lease; see
    /// [`AsyncDistributedLock::isolated`].
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let many = locks.lock("account:17")?.acquire()?;
    /// let leader = locks.lock("leader")?.isolated().acquire()?;
    /// assert_eq!(locks.metrics().connections, 2);
    /// # Ok(()) }
    /// ```
    pub fn isolated(&self) -> Self {
        Self { lock: self.lock.isolated(), runtime: self.runtime.clone() }
    }

    /// Acquires the lock, and waits for it up to the acquire timeout that was built in (`l`).
    ///
    /// # Errors
    /// As [`AsyncDistributedLock::acquire`].
    ///
    /// # Panics
    /// In async code, as the [module](crate::blocking#panics) says.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// assert!(guard.is_held());
    /// # Ok(()) }
    /// ```
    pub fn acquire(&self) -> Result<LeaseGuard> {
        let lock = self.lock.clone();
        LeaseGuard::block_on_acquire(&self.runtime, ASYNC_COUNTERPART, async move { lock.acquire().await })
    }

    /// Acquires the lock, and waits for it up to `timeout` (`l`). Returns within one more second, even if the
    /// server does not reply.
    ///
    /// # Errors
    /// As [`AsyncDistributedLock::acquire_within`].
    ///
    /// # Panics
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// use std::time::Duration;
    /// let lock = locks.lock("account:17")?;
    /// let guard = lock.acquire()?;
    /// let error = lock.acquire_within(Duration::from_secs(1)).unwrap_err();
    /// assert!(error.is_busy());
    /// # Ok(()) }
    /// ```
    pub fn acquire_within(&self, timeout: Duration) -> Result<LeaseGuard> {
        let lock = self.lock.clone();
        LeaseGuard::block_on_acquire(&self.runtime, ASYNC_COUNTERPART, async move {
            lock.acquire_within(timeout).await
        })
    }

    /// Acquires the lock if it is free. Returns `None` if it is busy (`l` with timeout 0).
    ///
    /// # Errors
    /// As [`AsyncDistributedLock::try_acquire`].
    ///
    /// # Panics
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let lock = locks.lock("account:17")?;
    /// let guard = lock.try_acquire()?.expect("it is free");
    /// assert!(lock.try_acquire()?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn try_acquire(&self) -> Result<Option<LeaseGuard>> {
        let lock = self.lock.clone();
        let guard = self.runtime.run(ASYNC_COUNTERPART, async move { lock.try_acquire().await })?;
        Ok(guard.map(|guard| LeaseGuard::new(guard, &self.runtime)))
    }

    /// Acquires the lock or a place in its queue, without waiting for the grant (`e`).
    ///
    /// # Errors
    /// As [`AsyncDistributedLock::enqueue`].
    ///
    /// # Panics
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// use dflockd_client::blocking::Enqueued;
    /// use std::time::Duration;
    /// let guard = match locks.lock("nightly-report")?.enqueue()? {
    ///     Enqueued::Acquired(guard) => guard,
    ///     Enqueued::Queued(ticket) => ticket.wait(Duration::from_secs(60))?,
    /// };
    /// # Ok(()) }
    /// ```
    pub fn enqueue(&self) -> Result<Enqueued> {
        let lock = self.lock.clone();
        let enqueued = self.runtime.run(ASYNC_COUNTERPART, async move { lock.enqueue().await })?;
        Ok(Enqueued::new(enqueued, &self.runtime))
    }
}

impl Target for Blocking<LockTarget> {
    type Output = SyncDistributedLock;

    fn build_from(self, parts: BuilderParts) -> Result<SyncDistributedLock> {
        Ok(SyncDistributedLock { lock: self.target.build_from(parts)?, runtime: self.runtime })
    }
}

impl fmt::Debug for SyncDistributedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncDistributedLock").field("key", self.key()).finish_non_exhaustive()
    }
}
