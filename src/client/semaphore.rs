//! The semaphore: the public handle, and its builder's target.

use std::fmt;
use std::time::Duration;

use crate::client::acquire::Resource;
use crate::client::builder::Builder;
use crate::client::target::{BuilderParts, Target, sealed::Sealed};
use crate::client::ticket::Enqueued;
use crate::client::{LockClient, LockOptions};
use crate::error::Result;
use crate::lease::LeaseGuard;
use crate::types::{Key, Limit};

/// A counting semaphore on one key: up to `limit` holders at a time in the whole fleet.
///
/// All users of a key must pass the same limit: the first use fixes it until the key was idle for
/// a while. Otherwise it works like an [`AsyncDistributedLock`](crate::AsyncDistributedLock),
/// which is a semaphore with one slot.
///
/// ```
/// use dflockd_client::AsyncDistributedSemaphore;
/// # use dflockd_client::server::{Server, ServerConfig};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = Server::bind(ServerConfig { port: 0, ..Default::default() }).await?;
/// # let port = server.local_addr().unwrap().port();
/// # tokio::spawn(server.run(std::future::pending()));
/// let exports = AsyncDistributedSemaphore::builder("exports", 2).servers([("127.0.0.1", port)]).build()?;
/// let first = exports.acquire().await?;
/// let second = exports.acquire().await?;
/// assert!(exports.try_acquire().await?.is_none());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct AsyncDistributedSemaphore(pub(super) Resource);

impl AsyncDistributedSemaphore {
    /// Returns the builder of a semaphore on `key` (1 to 256 bytes without whitespace) with `limit` slots (1 to
    /// 2^63 - 1).
    pub fn builder(key: impl Into<String>, limit: u64) -> Builder<SemaphoreTarget> {
        Builder::new(SemaphoreTarget { key: key.into(), limit })
    }

    /// Returns the key.
    pub fn key(&self) -> &Key {
        &self.0.request.key
    }

    /// Returns the number of slots: the most holders at a time.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// assert_eq!(locks.semaphore("exports", 3)?.limit(), 3);
    /// assert!(locks.semaphore("exports", 0).unwrap_err().is_invalid_input());
    /// # Ok(()) }
    /// ```
    pub fn limit(&self) -> u64 {
        self.0.request.limit.map_or(1, Limit::get)
    }

    /// Returns the same semaphore with other settings for its leases.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), as in [`Builder::build`].
    pub fn with_options(&self, options: LockOptions) -> Result<Self> {
        self.0.with_options(options).map(Self)
    }

    /// Returns the same semaphore with an exclusive connection for each lease, from the acquire to the release.
    ///
    /// Other leases share a connection. That costs nothing, but if the connection closes, all of them are lost.
    /// Use this for the few leases whose loss is expensive, and for servers whose administrators close
    /// connections by hand.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let many = locks.semaphore("exports", 3)?.acquire().await?;
    /// let slot = locks.semaphore("imports", 3)?.isolated().acquire().await?;
    /// assert_eq!(locks.metrics().connections, 2);
    /// # Ok(()) }
    /// ```
    pub fn isolated(&self) -> Self {
        Self(self.0.isolated())
    }

    /// Acquires a slot, and waits for it up to the acquire timeout that was built in (`sl`).
    ///
    /// # Errors
    /// As [`AsyncDistributedLock::acquire`](crate::AsyncDistributedLock::acquire);
    /// [`LimitMismatch`](crate::ErrorKind::LimitMismatch) if the key is in use with another
    /// limit, or was a minute ago: an idle key keeps its limit until the server collects it.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue. A late grant is released.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let exports = locks.semaphore("exports", 3)?;
    /// let slot = exports.acquire().await?;
    /// // At most three get here at a time.
    /// slot.release().await?;
    /// # Ok(()) }
    /// ```
    pub async fn acquire(&self) -> Result<LeaseGuard> {
        self.0.acquire().await
    }

    /// Acquires a slot, and waits for it up to `timeout` (`sl`). Returns within one more second, connecting
    /// included, even if the server does not reply: the server counts in whole seconds, rounded up. A timeout of
    /// 0 makes it a try, which has the [request timeout](crate::Builder::request_timeout).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire); [`InvalidInput`](crate::ErrorKind::InvalidInput) for a
    /// timeout over 9,223,372,036 s.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// use std::time::Duration;
    /// let exports = locks.semaphore("exports", 1)?;
    /// let slot = exports.acquire().await?;
    /// let error = exports.acquire_within(Duration::from_secs(1)).await.unwrap_err();
    /// assert!(error.is_busy());
    /// # Ok(()) }
    /// ```
    pub async fn acquire_within(&self, timeout: Duration) -> Result<LeaseGuard> {
        self.0.acquire_within(timeout).await
    }

    /// Acquires a slot if one is free. Returns `None` if all are taken (`sl` with timeout 0).
    /// Returns within the [request timeout](crate::Builder::request_timeout).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), except for a busy key.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let exports = locks.semaphore("exports", 1)?;
    /// let slot = exports.acquire().await?;
    /// assert!(exports.try_acquire().await?.is_none());
    /// # Ok(()) }
    /// ```
    pub async fn try_acquire(&self) -> Result<Option<LeaseGuard>> {
        self.0.try_acquire().await
    }

    /// Acquires a slot or a place in the queue, without waiting (`se`). Returns
    /// within the [request timeout](crate::Builder::request_timeout).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), except for a busy key.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// use dflockd_client::Enqueued;
    /// use std::time::Duration;
    /// let exports = locks.semaphore("exports", 3)?;
    /// let slot = match exports.enqueue().await? {
    ///     Enqueued::Acquired(slot) => slot,
    ///     Enqueued::Queued(ticket) => ticket.wait(Duration::from_secs(60)).await?,
    /// };
    /// # Ok(()) }
    /// ```
    pub async fn enqueue(&self) -> Result<Enqueued> {
        self.0.enqueue().await
    }
}

impl fmt::Debug for AsyncDistributedSemaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncDistributedSemaphore")
            .field("key", self.key())
            .field("limit", &self.limit())
            .finish_non_exhaustive()
    }
}

/// Builds an [`AsyncDistributedSemaphore`].
#[derive(Debug)]
pub struct SemaphoreTarget {
    key: String,
    limit: u64,
}

impl Sealed for SemaphoreTarget {}

impl Target for SemaphoreTarget {
    type Output = AsyncDistributedSemaphore;

    fn build_from(self, parts: BuilderParts) -> Result<AsyncDistributedSemaphore> {
        let (key, limit) = (Key::parse(&self.key)?, Limit::new(self.limit)?);
        LockClient::from_parts(parts).resource(key, Some(limit)).map(AsyncDistributedSemaphore)
    }
}
