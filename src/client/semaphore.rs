//! The semaphore as a user has it.

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
/// All users of a key must name the same limit: the first use fixes it until the key was idle for
/// a while. In everything else it is as an [`AsyncDistributedLock`](crate::AsyncDistributedLock),
/// which is a semaphore of one.
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
    /// Starts a semaphore on `key` (1 to 256 bytes without white space) with `limit` slots (1 to
    /// 2^63 - 1).
    pub fn builder(key: impl Into<String>, limit: u64) -> Builder<SemaphoreTarget> {
        Builder::new(SemaphoreTarget { key: key.into(), limit })
    }

    /// The key.
    pub fn key(&self) -> &Key {
        &self.0.request.key
    }

    /// How many may hold it at once.
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

    /// The same semaphore with other settings for its leases.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), as in [`Builder::build`].
    pub fn with_options(&self, settings: LockOptions) -> Result<Self> {
        self.0.with(settings).map(Self)
    }

    /// The same semaphore with a connection of its own for each lease, which is taken for the acquire
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
    /// let many = locks.semaphore("exports", 3)?.acquire().await?;
    /// let dear = locks.semaphore("imports", 3)?.isolated().acquire().await?;
    /// assert_eq!(locks.metrics().connections, 2);
    /// # Ok(()) }
    /// ```
    pub fn isolated(&self) -> Self {
        Self(self.0.isolated())
    }

    /// Waits for a slot, up to the acquire timeout that was built in (`sl`).
    ///
    /// # Errors
    /// As [`AsyncDistributedLock::acquire`](crate::AsyncDistributedLock::acquire);
    /// [`LimitMismatch`](crate::ErrorKind::LimitMismatch) when the key is in use with another
    /// limit, or was a minute ago: an idle key keeps its limit until the server collects it.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue; a grant that crosses the drop is released.
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

    /// Waits for a slot, up to `timeout` (`sl`), and ends within a second more, connecting
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
    /// let exports = locks.semaphore("exports", 1)?;
    /// let slot = exports.acquire().await?;
    /// let error = exports.acquire_within(Duration::from_secs(1)).await.unwrap_err();
    /// assert!(error.is_timeout());
    /// # Ok(()) }
    /// ```
    pub async fn acquire_within(&self, timeout: Duration) -> Result<LeaseGuard> {
        self.0.acquire_within(timeout).await
    }

    /// Takes a slot if one is free; `None` when all are taken (`sl` with timeout 0).
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
    /// let exports = locks.semaphore("exports", 1)?;
    /// let slot = exports.acquire().await?;
    /// assert!(exports.try_acquire().await?.is_none());
    /// # Ok(()) }
    /// ```
    pub async fn try_acquire(&self) -> Result<Option<LeaseGuard>> {
        self.0.try_acquire().await
    }

    /// Takes a slot or a place in the queue, without waiting (`se`). Ends
    /// within the [request timeout](crate::Builder::request_timeout).
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
