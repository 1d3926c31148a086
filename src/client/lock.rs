//! The lock: the public handle, and its builder's target.

use std::fmt;
use std::time::Duration;

use crate::client::acquire::Resource;
use crate::client::builder::Builder;
use crate::client::target::{BuilderParts, Target, sealed::Sealed};
use crate::client::ticket::Enqueued;
use crate::client::{LockClient, LockOptions};
use crate::error::Result;
use crate::lease::LeaseGuard;
use crate::types::Key;

/// A lock on one key: one holder at a time in the whole fleet, first in, first out.
///
/// The value itself holds nothing: it is cheap to clone, can be shared, and makes any number of acquires.
/// Each [`LeaseGuard`] that it returns is a lease of its own, renewed in the background, released on
/// drop. Locks are not reentrant: a second acquire waits until the first lease is released.
///
/// Built alone it is a [`LockClient`] with one lock in it. A service that uses many locks builds
/// one client, which makes them.
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::AsyncDistributedLock;
/// # use dflockd_client::server::{Server, ServerConfig};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = Server::bind(ServerConfig { port: 0, ..Default::default() }).await?;
/// # let port = server.local_addr().unwrap().port();
/// # tokio::spawn(server.run(std::future::pending()));
/// let lock = AsyncDistributedLock::builder("deploy-job")
///     .servers([("127.0.0.1", port)])
///     .lease_ttl(Duration::from_secs(30))
///     .build()?;
/// let guard = lock.acquire().await?;
/// // One task in the whole fleet gets here at a time.
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct AsyncDistributedLock(pub(super) Resource);

impl AsyncDistributedLock {
    /// Returns the builder of a lock on `key`: 1 to 256 bytes without whitespace.
    pub fn builder(key: impl Into<String>) -> Builder<LockTarget> {
        Builder::new(LockTarget { key: key.into() })
    }

    /// Returns the key.
    pub fn key(&self) -> &Key {
        &self.0.request.key
    }

    /// Returns the same lock with other settings for its leases.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), as in [`Builder::build`].
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// use dflockd_client::LockOptions;
    /// use std::time::Duration;
    /// let options = LockOptions::new().lease_ttl(Duration::from_secs(5));
    /// let lock = locks.lock("deploy-job")?.with_options(options)?;
    /// assert_eq!(lock.acquire().await?.ttl(), Duration::from_secs(5));
    /// # Ok(()) }
    /// ```
    pub fn with_options(&self, options: LockOptions) -> Result<Self> {
        self.0.with_options(options).map(Self)
    }

    /// Returns the same lock with an exclusive connection for each lease, from the acquire to the release.
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
    /// let many = locks.lock("account:17")?.acquire().await?;
    /// let leader = locks.lock("leader")?.isolated().acquire().await?;
    /// assert_eq!(locks.metrics().connections, 2);
    /// # Ok(()) }
    /// ```
    pub fn isolated(&self) -> Self {
        Self(self.0.isolated())
    }

    /// Acquires the lock, and waits for it up to the acquire timeout that was built in (`l`).
    ///
    /// # Errors
    /// - [`Busy`](crate::ErrorKind::Busy) if the key stays held.
    /// - [`Timeout`](crate::ErrorKind::Timeout) if the server cannot be reached or does not reply in that time.
    /// - [`MaxLocks`](crate::ErrorKind::MaxLocks), [`MaxWaiters`](crate::ErrorKind::MaxWaiters),
    ///   [`LimitMismatch`](crate::ErrorKind::LimitMismatch) (the key is a semaphore's),
    ///   [`Draining`](crate::ErrorKind::Draining),
    ///   [`PermissionDenied`](crate::ErrorKind::PermissionDenied) or
    ///   [`Auth`](crate::ErrorKind::Auth) from the server.
    /// - [`Io`](crate::ErrorKind::Io), [`Tls`](crate::ErrorKind::Tls),
    ///   [`ConnectionClosed`](crate::ErrorKind::ConnectionClosed) or [`Protocol`](crate::ErrorKind::Protocol)
    ///   from the connection.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue. A late grant is released.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let guard = locks.lock("deploy-job")?.acquire().await?;
    /// assert!(guard.is_held());
    /// guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub async fn acquire(&self) -> Result<LeaseGuard> {
        self.0.acquire().await
    }

    /// Acquires the lock, and waits for it up to `timeout` (`l`). Returns within one more second, connecting
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
    /// let lock = locks.lock("deploy-job")?;
    /// let guard = lock.acquire().await?;
    /// let error = lock.acquire_within(Duration::from_secs(1)).await.unwrap_err();
    /// assert!(error.is_busy());
    /// # Ok(()) }
    /// ```
    pub async fn acquire_within(&self, timeout: Duration) -> Result<LeaseGuard> {
        self.0.acquire_within(timeout).await
    }

    /// Acquires the lock if it is free. Returns `None` if it is busy (`l` with timeout 0).
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
    /// let lock = locks.lock("deploy-job")?;
    /// let guard = lock.acquire().await?;
    /// assert!(lock.try_acquire().await?.is_none());
    /// # Ok(()) }
    /// ```
    pub async fn try_acquire(&self) -> Result<Option<LeaseGuard>> {
        self.0.try_acquire().await
    }

    /// Acquires the lock or a place in its queue, without waiting (`e`). Returns
    /// within the [request timeout](crate::Builder::request_timeout).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), except for a busy key;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the backend has no wait queue.
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
    /// let lock = locks.lock("nightly-report")?;
    /// let guard = match lock.enqueue().await? {
    ///     Enqueued::Acquired(guard) => guard,
    ///     Enqueued::Queued(ticket) => ticket.wait(Duration::from_secs(60)).await?,
    /// };
    /// # Ok(()) }
    /// ```
    pub async fn enqueue(&self) -> Result<Enqueued> {
        self.0.enqueue().await
    }
}

impl fmt::Debug for AsyncDistributedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncDistributedLock").field("key", self.key()).finish_non_exhaustive()
    }
}

/// Builds an [`AsyncDistributedLock`].
#[derive(Debug)]
pub struct LockTarget {
    key: String,
}

impl Sealed for LockTarget {}

impl Target for LockTarget {
    type Output = AsyncDistributedLock;

    fn build_from(self, parts: BuilderParts) -> Result<AsyncDistributedLock> {
        let key = Key::parse(&self.key)?;
        LockClient::from_parts(parts).resource(key, None).map(AsyncDistributedLock)
    }
}
