//! The semaphore, for threads, and its builder's target.

use std::fmt;
use std::time::Duration;

use crate::blocking::runtime::Runtime;
use crate::blocking::{Blocking, Enqueued, LeaseGuard};
use crate::client::{AsyncDistributedSemaphore, Builder, BuilderParts, LockOptions, SemaphoreTarget, Target};
use crate::error::Result;
use crate::types::Key;

/// The async type of the same use, which a panic in async code names.
const ASYNC_COUNTERPART: &str = "AsyncDistributedSemaphore";

/// A counting semaphore on one key: up to `limit` holders at a time in the whole fleet. For threads; in async
/// code, use [`AsyncDistributedSemaphore`].
///
/// All users of a key must pass the same limit: the first use fixes it until the key was idle for
/// a while. Otherwise it works like a [`SyncDistributedLock`](crate::SyncDistributedLock), which
/// is a semaphore with one slot.
///
/// ```
/// use dflockd_client::SyncDistributedSemaphore;
/// # fn main() -> dflockd_client::Result<()> {
/// # let server = dflockd_client::test_util::TestServer::new();
/// let exports = SyncDistributedSemaphore::builder("exports", 2)
/// #   .dial(server)
///     .build()?;
/// let first = exports.acquire()?;
/// let second = exports.acquire()?;
/// assert!(exports.try_acquire()?.is_none());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SyncDistributedSemaphore {
    pub(super) semaphore: AsyncDistributedSemaphore,
    pub(super) runtime: Runtime,
}

impl SyncDistributedSemaphore {
    /// Returns the builder of a semaphore on `key` (1 to 256 bytes without whitespace) with `limit` slots (1 to
    /// 2^63 - 1).
    pub fn builder(key: impl Into<String>, limit: u64) -> Builder<Blocking<SemaphoreTarget>> {
        AsyncDistributedSemaphore::builder(key, limit).blocking()
    }

    /// Returns the key.
    pub fn key(&self) -> &Key {
        self.semaphore.key()
    }

    /// Returns the number of slots: the most holders at a time.
    pub fn limit(&self) -> u64 {
        self.semaphore.limit()
    }

    /// Returns the same semaphore with other settings for its leases.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), as in [`Builder::build`].
    pub fn with_options(&self, options: LockOptions) -> Result<Self> {
        Ok(Self { semaphore: self.semaphore.with_options(options)?, runtime: self.runtime.clone() })
    }

    /// Returns the same semaphore with an exclusive connection for each lease; see
    /// [`AsyncDistributedSemaphore::isolated`].
    pub fn isolated(&self) -> Self {
        Self { semaphore: self.semaphore.isolated(), runtime: self.runtime.clone() }
    }

    /// Acquires a slot, and waits for it up to the acquire timeout that was built in (`sl`).
    ///
    /// # Errors
    /// As [`AsyncDistributedSemaphore::acquire`].
    ///
    /// # Panics
    /// In async code, as the [module](crate::blocking#panics) says.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let slot = locks.semaphore("exports", 3)?.acquire()?;
    /// // At most three get here at a time.
    /// slot.release()?;
    /// # Ok(()) }
    /// ```
    pub fn acquire(&self) -> Result<LeaseGuard> {
        let semaphore = self.semaphore.clone();
        LeaseGuard::block_on_acquire(
            &self.runtime,
            ASYNC_COUNTERPART,
            async move { semaphore.acquire().await },
        )
    }

    /// Acquires a slot, and waits for it up to `timeout` (`sl`). Returns within one more second, even if the
    /// server does not reply.
    ///
    /// # Errors
    /// As [`AsyncDistributedSemaphore::acquire_within`].
    ///
    /// # Panics
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// use std::time::Duration;
    /// let exports = locks.semaphore("exports", 1)?;
    /// let slot = exports.acquire()?;
    /// let error = exports.acquire_within(Duration::from_secs(1)).unwrap_err();
    /// assert!(error.is_busy());
    /// # Ok(()) }
    /// ```
    pub fn acquire_within(&self, timeout: Duration) -> Result<LeaseGuard> {
        let semaphore = self.semaphore.clone();
        LeaseGuard::block_on_acquire(&self.runtime, ASYNC_COUNTERPART, async move {
            semaphore.acquire_within(timeout).await
        })
    }

    /// Acquires a slot if one is free. Returns `None` if all are taken (`sl` with timeout 0).
    ///
    /// # Errors
    /// As [`AsyncDistributedSemaphore::try_acquire`].
    ///
    /// # Panics
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let exports = locks.semaphore("exports", 1)?;
    /// let slot = exports.try_acquire()?.expect("it is free");
    /// assert!(exports.try_acquire()?.is_none());
    /// # Ok(()) }
    /// ```
    pub fn try_acquire(&self) -> Result<Option<LeaseGuard>> {
        let semaphore = self.semaphore.clone();
        let guard = self.runtime.run(ASYNC_COUNTERPART, async move { semaphore.try_acquire().await })?;
        Ok(guard.map(|guard| LeaseGuard::new(guard, &self.runtime)))
    }

    /// Acquires a slot or a place in the queue, without waiting for the grant (`se`).
    ///
    /// # Errors
    /// As [`AsyncDistributedSemaphore::enqueue`].
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
    /// let slot = match locks.semaphore("exports", 3)?.enqueue()? {
    ///     Enqueued::Acquired(slot) => slot,
    ///     Enqueued::Queued(ticket) => ticket.wait(Duration::from_secs(60))?,
    /// };
    /// # Ok(()) }
    /// ```
    pub fn enqueue(&self) -> Result<Enqueued> {
        let semaphore = self.semaphore.clone();
        let enqueued = self.runtime.run(ASYNC_COUNTERPART, async move { semaphore.enqueue().await })?;
        Ok(Enqueued::new(enqueued, &self.runtime))
    }
}

impl Target for Blocking<SemaphoreTarget> {
    type Output = SyncDistributedSemaphore;

    fn build_from(self, parts: BuilderParts) -> Result<SyncDistributedSemaphore> {
        Ok(SyncDistributedSemaphore { semaphore: self.target.build_from(parts)?, runtime: self.runtime })
    }
}

impl fmt::Debug for SyncDistributedSemaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncDistributedSemaphore")
            .field("key", self.key())
            .field("limit", &self.limit())
            .finish_non_exhaustive()
    }
}
