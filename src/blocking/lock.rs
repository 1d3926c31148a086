//! The lock, for threads.

use std::fmt;
use std::time::Duration;

use crate::blocking::runtime::Runtime;
use crate::blocking::{Blocking, Enqueued, LeaseGuard};
use crate::client::{AsyncDistributedLock, Builder, LockOptions, LockTarget};
use crate::error::Result;
use crate::types::Key;

/// What async code uses in place of it.
const TWIN: &str = "AsyncDistributedLock";

/// A lock on one key: one holder at a time in the whole fleet, first in, first out. You want this
/// if a thread is to hold it; a task takes [`AsyncDistributedLock`].
///
/// It is a recipe, not a holding: cheap to clone, safe to share, good for any number of acquires,
/// and not reentrant. A program that takes many locks makes one
/// [`blocking::LockClient`](crate::blocking::LockClient) and asks that for locks.
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
    /// Starts a lock on `key`: 1 to 256 bytes without white space.
    pub fn builder(key: impl Into<String>) -> Builder<Blocking<LockTarget>> {
        AsyncDistributedLock::builder(key).blocking()
    }

    /// The key.
    pub fn key(&self) -> &Key {
        self.lock.key()
    }

    /// The same lock with other settings for its leases.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), as in [`Builder::build`].
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// use dflockd_client::Settings;
    /// use std::time::Duration;
    /// let lock = locks.lock("deploy-job")?.with(Settings::new().lease_ttl(Duration::from_secs(5)))?;
    /// assert_eq!(lock.acquire()?.ttl(), Duration::from_secs(5));
    /// # Ok(()) }
    /// ```
    pub fn with(&self, settings: LockOptions) -> Result<Self> {
        Ok(Self { lock: self.lock.with_options(settings)?, runtime: self.runtime.clone() })
    }

    /// The same lock with a connection of its own for each lease; see
    /// [`AsyncDistributedLock::isolated`].
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let many = locks.lock("account:17")?.acquire()?;
    /// let dear = locks.lock("leader")?.isolated().acquire()?;
    /// assert_eq!(locks.metrics().connections, 2);
    /// # Ok(()) }
    /// ```
    pub fn isolated(&self) -> Self {
        Self { lock: self.lock.isolated(), runtime: self.runtime.clone() }
    }

    /// Waits for the lock, up to the acquire timeout that was built in (`l`).
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
        LeaseGuard::by(&self.runtime, TWIN, async move { lock.acquire().await })
    }

    /// Waits for the lock, up to `timeout` (`l`), and ends within a second more, whether or not
    /// the server answers.
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
    /// assert!(error.is_timeout());
    /// # Ok(()) }
    /// ```
    pub fn acquire_within(&self, timeout: Duration) -> Result<LeaseGuard> {
        let lock = self.lock.clone();
        LeaseGuard::by(&self.runtime, TWIN, async move { lock.acquire_within(timeout).await })
    }

    /// Takes the lock if it is free; `None` when it is not (`l` with timeout 0).
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
        let guard = self.runtime.run(TWIN, async move { lock.try_acquire().await })?;
        Ok(guard.map(|guard| LeaseGuard::new(guard, &self.runtime)))
    }

    /// Takes the lock or a place in its queue, without waiting for the grant (`e`).
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
        let enqueued = self.runtime.run(TWIN, async move { lock.enqueue().await })?;
        Ok(Enqueued::new(enqueued, &self.runtime))
    }
}

impl fmt::Debug for SyncDistributedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncDistributedLock").field("key", self.key()).finish_non_exhaustive()
    }
}
