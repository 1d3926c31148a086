//! The async client: [`LockClient`], the locks and semaphores that it makes, and the acquires and leases of these.
//! Does not depend on the embedded server, and names a backend in two places alone, `any` and `builder`.

mod acquire;
mod any;
mod builder;
mod fence_monitor;
mod inner;
mod lease_options;
mod local_queue;
mod lock;
mod metrics;
mod registered;
mod registry;
mod retry;
mod semaphore;
mod target;
mod ticket;

use std::fmt;
use std::sync::Arc;

use acquire::Resource;
use any::with_backend;
use inner::ClientInner;
use lease_options::LeaseOptions;
use target::sealed::Sealed;

use crate::backend::{Backend, Capabilities};
use crate::error::Result;
use crate::proto::StatsResult;
use crate::types::{Key, Limit};

pub use any::IntoBackend;
pub use builder::Builder;
pub use lease_options::LockOptions;
pub use lock::{AsyncDistributedLock, LockTarget};
pub use metrics::Metrics;
pub use retry::RetryPolicy;
pub use semaphore::{AsyncDistributedSemaphore, SemaphoreTarget};
pub(crate) use target::BuilderParts;
pub use target::Target;
#[cfg(feature = "blocking")]
pub(crate) use target::sealed;
pub use ticket::{Enqueued, Ticket};

/// A client, which a service keeps in its state. Makes locks and semaphores that share its connections.
///
/// Cheap to clone; clones share everything. The client keeps connections that carry no lease for the next
/// acquire, and pings them meanwhile.
///
/// # Runtimes
/// Each operation needs a tokio runtime with time and I/O enabled, and fails with
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) outside a runtime. One client serves any number of runtimes:
/// in a static, for example, for many `#[tokio::test]` functions. Each runtime uses connections of its own, which
/// close with it; [`max_connections`](Builder::max_connections) counts them all.
///
/// A lease belongs to the runtime that acquired it. That runtime sends its renewals and its release, on behalf of
/// callers on any runtime or thread. A current-thread runtime does so only while it is driven. If it is not
/// driven, `renew` and `release` fail with [`Timeout`](crate::ErrorKind::Timeout) after 5 s, a guard that is
/// dropped queues its release, and the lease is lost at its deadline. If that runtime is shut down, its leases are
/// lost at once. [`close`](Self::close) closes the connections of all runtimes, and fails with `Timeout` if
/// one of them is not driven.
///
/// Tasks of one runtime that wait for the same key acquire it in order. Between runtimes, as between processes,
/// the server keeps the order. If a runtime is not driven, a wait on it may be granted although no task takes
/// the grant: the key is then held until the server's ttl has passed.
///
/// # Examples
/// ```
/// use dflockd_client::LockClient;
/// # use dflockd_client::server::{Server, ServerConfig};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = Server::bind(ServerConfig { port: 0, ..Default::default() }).await?;
/// # let port = server.local_addr().unwrap().port();
/// # tokio::spawn(server.run(std::future::pending()));
/// let locks = LockClient::builder().servers([("127.0.0.1", port)]).build()?;
/// let account = locks.lock("account:17")?.acquire().await?;
/// let export = locks.semaphore("exports", 3)?.acquire().await?;
/// assert_eq!(locks.stats().await?.len(), 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct LockClient {
    inner: Arc<ClientInner>,
    lease: LeaseOptions,
}

impl LockClient {
    /// Returns a builder. Its lease settings are the defaults of every lock that the client makes.
    pub fn builder() -> Builder<ClientTarget> {
        Builder::new(ClientTarget(()))
    }

    /// Makes a lock on `key`: 1 to 256 bytes without whitespace. Does no I/O.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a key that cannot be sent.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// assert_eq!(locks.lock("account:17")?.key().to_string(), "account:17");
    /// let error = locks.lock("two words").unwrap_err();
    /// assert!(error.is_invalid_input());
    /// # Ok(()) }
    /// ```
    pub fn lock(&self, key: impl AsRef<str>) -> Result<AsyncDistributedLock> {
        self.resource(Key::parse(key.as_ref())?, None).map(AsyncDistributedLock)
    }

    /// Makes a semaphore on `key` with `limit` slots (1 to 2^63 - 1). Does no I/O.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a key or limit that cannot be sent;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the backend has no semaphores.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let exports = locks.semaphore("exports", 3)?;
    /// assert_eq!(exports.limit(), 3);
    /// # Ok(()) }
    /// ```
    pub fn semaphore(&self, key: impl AsRef<str>, limit: u64) -> Result<AsyncDistributedSemaphore> {
        let (key, limit) = (Key::parse(key.as_ref())?, Limit::new(limit)?);
        self.resource(key, Some(limit)).map(AsyncDistributedSemaphore)
    }

    /// Returns what the client's backend can do.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let locks = TestServer::new().locks();
    /// assert!(locks.capabilities().fences);
    /// # }
    /// ```
    pub fn capabilities(&self) -> Capabilities {
        with_backend!(&self.inner.backend, backend => backend.capabilities())
    }

    /// Returns what each server holds now (`stats`), in the order of the servers, within the
    /// [request timeout](Builder::request_timeout).
    ///
    /// Sends each request over a new connection, and closes that afterwards: a table can be so long that a server
    /// drops the connection before the client has read it, and frees every lease on that connection.
    ///
    /// # Errors
    /// The first failure, which names its server. [`Protocol`](crate::ErrorKind::Protocol) if a reply is longer
    /// than [`max_stats_bytes`](Builder::max_stats_bytes) or not the expected JSON.
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the backend has no servers.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// let stats = locks.stats().await?;
    /// assert_eq!(stats[0].locks[0].key, "account:17");
    /// # Ok(()) }
    /// ```
    pub async fn stats(&self) -> Result<Vec<StatsResult>> {
        self.inner.stats().await
    }

    /// Returns the client's gauges, counters and latencies, for a metrics endpoint.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// let _one = locks.lock("account:17")?.acquire().await?;
    /// let _two = locks.lock("account:18")?.acquire().await?;
    /// let metrics = locks.metrics();
    /// assert_eq!((metrics.leases, metrics.acquires, metrics.connections), (2, 2, 1));
    /// println!("p99 of an acquire: {:?}", metrics.acquire_latency.quantile(0.99));
    /// # Ok(()) }
    /// ```
    pub fn metrics(&self) -> Metrics {
        self.inner.metrics()
    }

    /// Closes the client and all its clones, in this order. Takes 5 s at most.
    ///
    /// 1. Every wait, and every later operation, fails with [`ClientClosed`](crate::ErrorKind::ClientClosed).
    /// 2. Every lease is lost, for the reason [`ClientClosed`](crate::LostReason::ClientClosed), and released. So
    ///    is each late grant. Each place in a queue is given up.
    /// 3. The connections close.
    ///
    /// Calling it is optional: connections also close once the client, its locks and their guards are dropped.
    ///
    /// # Errors
    /// - The first release that failed.
    /// - [`Timeout`](crate::ErrorKind::Timeout) if the server did not reply in time, if the runtime of a
    ///   connection is not driven, or if a future that has been granted a lease is neither polled nor dropped.
    /// - [`InvalidInput`](crate::ErrorKind::InvalidInput) outside a tokio runtime, with nothing closed.
    ///
    /// After every other error the client is closed. A lease whose release failed expires by itself.
    ///
    /// # Cancel safety
    /// Once the future was polled, the client is closed. Dropping the future leaves connections open until the
    /// guards on them are dropped; a second call closes them.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let locks = TestServer::new().locks();
    /// use dflockd_client::{ErrorKind, LostReason};
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// locks.close().await?;
    /// assert_eq!(guard.lost().await, LostReason::ClientClosed);
    /// let error = locks.lock("account:17")?.acquire().await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::ClientClosed);
    /// # Ok(()) }
    /// ```
    pub async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn from_parts(parts: BuilderParts) -> Self {
        let BuilderParts { backend, lease } = parts;
        Self { inner: ClientInner::new(backend, lease.config.counters.clone()), lease }
    }

    fn resource(&self, key: Key, limit: Option<Limit>) -> Result<Resource> {
        Resource::new(self.inner.clone(), key, limit, self.lease.clone())
    }
}

impl fmt::Debug for LockClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = with_backend!(&self.inner.backend, backend => backend.endpoints());
        f.debug_struct("LockClient").field("servers", &servers).finish_non_exhaustive()
    }
}

/// Builds a [`LockClient`].
#[derive(Debug)]
pub struct ClientTarget(());

impl Sealed for ClientTarget {}

impl Target for ClientTarget {
    type Output = LockClient;

    fn build_from(self, parts: BuilderParts) -> Result<LockClient> {
        Ok(LockClient::from_parts(parts))
    }
}

#[cfg(all(test, feature = "test-util"))]
mod tests {
    use std::time::Duration;

    use crate::process::in_a_fork;
    use crate::test_util::TestServer;
    use crate::{AsyncConn, Enqueued, ErrorKind};

    #[tokio::test(start_paused = true)]
    async fn a_drop_in_a_forked_process_sends_and_closes_nothing() {
        let server = TestServer::new();
        let locks = server.locks();
        let lock = |key| locks.lock(key).unwrap();
        let shared = lock("shared").acquire().await.unwrap();
        let isolated = lock("isolated").isolated().acquire().await.unwrap();
        let Enqueued::Queued(ticket) = lock("shared").enqueue().await.unwrap() else { panic!("it is free") };
        let (conn, far) = tokio::io::duplex(64);
        let conn = AsyncConn::new(conn);
        let before = server.stats();
        let (again, client) = (lock("again"), locks.clone());
        let errors = in_a_fork(|| {
            drop((shared, isolated, ticket, conn, locks));
            use futures::FutureExt;
            [
                again.acquire().now_or_never().map(|outcome| outcome.map(drop)),
                again.try_acquire().now_or_never().map(|outcome| outcome.map(drop)),
                again.enqueue().now_or_never().map(|outcome| outcome.map(drop)),
                client.stats().now_or_never().map(|outcome| outcome.map(drop)),
                client.close().now_or_never(),
            ]
        });
        for outcome in errors {
            let error = outcome.expect("it does not wait").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionClosed, "{error}");
            assert!(error.to_string().contains("forked"), "{error}");
        }
        in_a_fork(|| drop((again, client)));
        // Longer than any lease, so the parent's tasks must still renew.
        tokio::time::sleep(Duration::from_secs(100)).await;
        let after = server.stats();
        assert_eq!(after.connections, before.connections);
        let waiters = |stats: &crate::StatsResult| stats.locks.iter().map(|lock| lock.waiters).sum::<u64>();
        assert_eq!((after.locks.len(), waiters(&after)), (2, 1), "{after:?}");
        assert_eq!((before.locks.len(), waiters(&before)), (2, 1));
        let mut far = far;
        let mut byte = [0];
        let read = tokio::io::AsyncReadExt::read(&mut far, &mut byte);
        assert!(tokio::time::timeout(Duration::from_secs(1), read).await.is_err(), "the stream is closed");
    }
}
