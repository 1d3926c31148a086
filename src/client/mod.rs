//! The async client: [`LockClient`], the locks and semaphores that it makes, and the plumbing
//! below them. Knows nothing of the embedded server.

pub mod command;
mod conn;
mod lock;
mod options;
mod outcome;
mod pool;
mod resource;
mod semaphore;
mod session;
pub(crate) mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use options::{LeaseOptions, Parts};
use pool::Pool;
use resource::Resource;

use crate::error::{Error, Result};
use crate::proto::{Request, StatsResult};
use crate::types::{Key, Limit};

pub use conn::AsyncConn;
pub use lock::{AsyncDistributedLock, LockTarget};
pub use options::{Builder, Target};
pub use resource::{Enqueued, Ticket};
pub use semaphore::{AsyncDistributedSemaphore, SemaphoreTarget};

/// What a service keeps in its state: makes locks and semaphores that share its connections.
///
/// Cheap to clone; clones share everything. Connections that carry no lease are kept for the next
/// acquire, and pinged while they wait for it.
///
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
    pool: Arc<Pool>,
    lease: LeaseOptions,
}

impl LockClient {
    /// Starts a client. Its lease settings are the defaults of every lock that it makes.
    pub fn builder() -> Builder<ClientTarget> {
        Builder::new(ClientTarget(()))
    }

    /// A lock on `key`: 1 to 256 bytes without white space. Connects to nothing yet.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a key that cannot be sent.
    pub fn lock(&self, key: impl AsRef<str>) -> Result<AsyncDistributedLock> {
        Ok(AsyncDistributedLock(self.resource(Key::parse(key.as_ref())?, None)))
    }

    /// A semaphore on `key` with `limit` slots (1 to 2^63 - 1). Connects to nothing yet.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a key or limit that cannot be sent.
    pub fn semaphore(&self, key: impl AsRef<str>, limit: u64) -> Result<AsyncDistributedSemaphore> {
        let (key, limit) = (Key::parse(key.as_ref())?, Limit::new(limit)?);
        Ok(AsyncDistributedSemaphore(self.resource(key, Some(limit))))
    }

    /// What each server holds right now (`stats`), in the order of the servers.
    ///
    /// # Errors
    /// The first failure; it names its server. [`Protocol`](crate::ErrorKind::Protocol) when an
    /// answer is over 1 MiB or not the JSON that it should be.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn stats(&self) -> Result<Vec<StatsResult>> {
        let servers = self.pool.options.servers.iter().enumerate();
        let asking = servers.map(|(shard, server)| async move {
            let reply = self.pool.ask(shard, Request::Stats).await;
            let stats = reply.and_then(outcome::stats);
            stats.map_err(|error| error.during("stats").on_server(&server.name))
        });
        futures::future::try_join_all(asking).await
    }

    fn from_parts(parts: Parts) -> Self {
        Self { pool: Pool::new(parts.options), lease: parts.lease }
    }

    fn resource(&self, key: Key, limit: Option<Limit>) -> Resource {
        Resource { pool: self.pool.clone(), key, limit, lease: self.lease }
    }
}

impl fmt::Debug for LockClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.pool.options.servers.iter().map(|server| &server.name).collect();
        f.debug_struct("LockClient").field("servers", &servers).finish_non_exhaustive()
    }
}

/// Builds a [`LockClient`].
#[derive(Debug)]
pub struct ClientTarget(());

impl Target for ClientTarget {
    type Output = LockClient;

    fn finish(self, parts: Parts) -> Result<LockClient> {
        Ok(LockClient::from_parts(parts))
    }
}

/// Settings of one lock that differ from its client's; what is not set stays as it is.
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::{LockClient, Settings};
/// let locks = LockClient::builder().build()?;
/// let quick = Settings::new().lease_ttl(Duration::from_secs(5)).acquire_timeout(Duration::ZERO);
/// let lock = locks.lock("cache:rebuild")?.with(quick)?;
/// # Ok::<(), dflockd_client::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "settings do nothing until a lock is made with them"]
pub struct Settings {
    acquire_timeout: Option<Duration>,
    lease_ttl: Option<Duration>,
}

impl Settings {
    /// No setting changed.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`Builder::acquire_timeout`].
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = Some(timeout);
        self
    }

    /// See [`Builder::lease_ttl`].
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.lease_ttl = Some(ttl);
        self
    }
}

impl Resource {
    fn with(&self, settings: Settings) -> Result<Self> {
        let mut changed = self.clone();
        changed.lease.change(settings)?;
        Ok(changed)
    }
}

impl LeaseOptions {
    fn change(&mut self, settings: Settings) -> Result<()> {
        if let Some(timeout) = settings.acquire_timeout {
            self.acquire_timeout = crate::types::Seconds::ceil("acquire_timeout", timeout)?;
        }
        if settings.lease_ttl.is_some() {
            self.ttl = command::lease_seconds("lease_ttl", settings.lease_ttl)?;
        }
        Ok::<(), Error>(())
    }
}
