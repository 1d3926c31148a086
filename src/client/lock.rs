//! The lock as a user has it.

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
/// It is a recipe, not a holding: cheap to clone, safe to share, good for any number of acquires.
/// Each [`LeaseGuard`] that it gives is a lease of its own, renewed in the background, released on
/// drop. Locks are not reentrant: a second acquire waits for the first to let go.
///
/// Made alone it is a [`LockClient`] with one lock in it; a service that takes many locks makes
/// one client and asks that for locks.
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
    /// Starts a lock on `key`: 1 to 256 bytes without white space.
    pub fn builder(key: impl Into<String>) -> Builder<LockTarget> {
        Builder::new(LockTarget { key: key.into() })
    }

    /// The key.
    pub fn key(&self) -> &Key {
        &self.0.request.key
    }

    /// The same lock with other settings for its leases.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), as in [`Builder::build`].
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// use dflockd_client::Settings;
    /// use std::time::Duration;
    /// let lock = locks.lock("deploy-job")?.with(Settings::new().lease_ttl(Duration::from_secs(5)))?;
    /// assert_eq!(lock.acquire().await?.ttl(), Duration::from_secs(5));
    /// # Ok(()) }
    /// ```
    pub fn with_options(&self, settings: LockOptions) -> Result<Self> {
        self.0.with(settings).map(Self)
    }

    /// The same lock with a connection of its own for each lease, which is taken for the acquire
    /// and kept until the release.
    ///
    /// Other leases share a connection: it costs them nothing but that they share its fate, so that
    /// one connection's end loses all of them. For the few whose loss is dear, and for servers whose
    /// administrators end connections by hand, this parts them from the rest.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let many = locks.lock("account:17")?.acquire().await?;
    /// let dear = locks.lock("leader")?.isolated().acquire().await?;
    /// assert_eq!(locks.metrics().connections, 2);
    /// # Ok(()) }
    /// ```
    pub fn isolated(&self) -> Self {
        Self(self.0.isolated())
    }

    /// Waits for the lock, up to the acquire timeout that was built in (`l`).
    ///
    /// # Errors
    /// [`Timeout`](crate::ErrorKind::Timeout) when the key stays busy
    /// ([`is_busy`](crate::Error::is_busy)), or the server cannot be reached or does not answer in that
    /// time;
    /// [`MaxLocks`](crate::ErrorKind::MaxLocks), [`MaxWaiters`](crate::ErrorKind::MaxWaiters),
    /// [`LimitMismatch`](crate::ErrorKind::LimitMismatch) (the key is a semaphore's),
    /// [`Draining`](crate::ErrorKind::Draining),
    /// [`PermissionDenied`](crate::ErrorKind::PermissionDenied) or
    /// [`Auth`](crate::ErrorKind::Auth); [`Io`](crate::ErrorKind::Io),
    /// [`Tls`](crate::ErrorKind::Tls), [`ConnectionClosed`](crate::ErrorKind::ConnectionClosed)
    /// or [`Protocol`](crate::ErrorKind::Protocol) from the connection.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue; a grant that crosses the drop is released.
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

    /// Waits for the lock, up to `timeout` (`l`), and ends within a second more, connecting
    /// included, whether or not the server answers: it counts in whole seconds, rounded up. With no
    /// time it is a try, which has the [request timeout](crate::Builder::request_timeout).
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
    /// assert!(error.is_timeout());
    /// # Ok(()) }
    /// ```
    pub async fn acquire_within(&self, timeout: Duration) -> Result<LeaseGuard> {
        self.0.acquire_within(timeout).await
    }

    /// Takes the lock if it is free; `None` when it is busy (`l` with timeout 0).
    /// Ends within the [request timeout](crate::Builder::request_timeout).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without the key that stays busy.
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

    /// Takes the lock or a place in its queue, without waiting (`e`). Ends
    /// within the [request timeout](crate::Builder::request_timeout).
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), without the key that stays busy;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where the engine has no such places.
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
