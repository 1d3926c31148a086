//! A lock server inside a test, over pipes instead of sockets: paused time drives leases, no test needs a
//! free port, and the network fails when told to. For tests of services that hold leases, and for this
//! crate's own.
//!
//! A test of what a handler does when its lease is lost:
//!
//! ```rust,test_harness
//! use dflockd_client::{LockClient, Outcome, test_util::TestServer};
//!
//! /// The handler under test.
//! async fn export(locks: LockClient) -> dflockd_client::Result<&'static str> {
//!     let guard = locks.lock("export")?.acquire().await?;
//!     match guard.run(std::future::pending::<()>()).await {
//!         Outcome::Completed(()) => Ok("200 OK"),
//!         Outcome::Lost(_) => Ok("409 Conflict"),
//!     }
//! }
//!
//! #[tokio::test(start_paused = true)]
//! async fn an_export_that_loses_its_lease_is_a_conflict() {
//!     let server = TestServer::new();
//!     let handler = tokio::spawn(export(server.locks()));
//!     server.wait_until_held("export").await;
//!     server.expire_lease("export");
//!     assert_eq!(handler.await.unwrap().unwrap(), "409 Conflict");
//! }
//! ```
//!
//! With paused time (`start_paused`) a minute of renewals takes microseconds: tokio sets its clock
//! forward whenever every task waits.
//!
//! | The test calls | The client sees |
//! |---|---|
//! | [`expire_lease`](TestServer::expire_lease) | its next renewal rejected |
//! | [`cut`](TestServer::cut), [`reset`](TestServer::reset) | its connections closed, or failing, at once; new ones work |
//! | [`partition`](TestServer::partition), [`heal`](TestServer::heal) | silence, until its leases are given up; what was sent arrives late |
//! | [`drain`](TestServer::drain) | no more grants, time to release, refused connections |
//! | [`restart`](TestServer::restart) | its connections closed; the server has forgotten every lock |
//! | `tokio::time::advance` | leases that expire, renewals that come late |

mod network;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use self::network::Network;
use crate::backend::dflockd::AsyncConn;
#[cfg(feature = "blocking")]
use crate::blocking::SyncConn;
use crate::client::{Builder, ClientTarget, LockClient};
use crate::error::Result;
use crate::net::{BoxStream, Dial};
use crate::proto::StatsResult;
use crate::server::{Server, ServerConfig};
use crate::types::Key;

/// How long [`TestServer::wait_until_held`] waits before it fails the test.
const HELD_TIMEOUT: Duration = Duration::from_secs(60);
const CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// An embedded server, and a network to it that fails when told to. Cheap to clone; clones share the
/// server and the network.
///
/// ```
/// use dflockd_client::{LostReason, Outcome, test_util::TestServer};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
/// // In a test of yours: #[tokio::test(start_paused = true)]
/// let server = TestServer::new();
/// let guard = server.locks().lock("job")?.acquire().await?;
/// server.cut();
/// let outcome = guard.run(std::future::pending::<()>()).await;
/// assert_eq!(outcome, Outcome::Lost(LostReason::ConnectionClosed));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct TestServer {
    config: ServerConfig,
    instance: Arc<Mutex<Instance>>,
    network: Arc<Network>,
}

/// The part that a restart replaces.
struct Instance {
    server: Server,
    draining: bool,
}

impl TestServer {
    /// Creates a server with default settings.
    pub fn new() -> Self {
        Self::with(ServerConfig::default()).expect("the defaults are valid")
    }

    /// Creates a server with these settings; its address and TLS settings have no effect.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn with(config: ServerConfig) -> Result<Self> {
        let life = Instance { server: Server::new(config.clone())?, draining: false };
        Ok(Self { config, instance: Arc::new(Mutex::new(life)), network: Arc::new(Network::new()) })
    }

    /// Returns the same server over a new network: for the rival of a client that is partitioned.
    ///
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> dflockd_client::Result<()> {
    /// let server = TestServer::new();
    /// let rival = server.with_own_network().locks();
    /// let guard = server.locks().lock("job")?.acquire().await?;
    /// server.partition();
    /// // Before the rival gets the key, its first holder knows that it is lost.
    /// let taken = rival.lock("job")?.acquire_within(std::time::Duration::from_secs(60)).await?;
    /// assert!(taken.is_held() && !guard.is_held());
    /// # Ok(()) }
    /// ```
    pub fn with_own_network(&self) -> Self {
        Self { network: Arc::new(Network::new()), ..self.clone() }
    }

    /// Returns a client of this server with default settings.
    pub fn locks(&self) -> LockClient {
        self.builder().build().expect("the defaults are valid")
    }

    /// Returns the builder of a client of this server.
    pub fn builder(&self) -> Builder<ClientTarget> {
        LockClient::builder().dial(self.clone())
    }

    /// Returns a bare connection to this server, for the functions of [`command`](crate::command).
    pub fn conn(&self) -> AsyncConn {
        AsyncConn::new(self.network.connect(&self.server()))
    }

    /// Returns a bare connection to this server, for the functions of [`blocking`](crate::blocking).
    ///
    /// # Panics
    /// In async code, as [`blocking`](crate::blocking#panics) says.
    #[cfg(feature = "blocking")]
    pub fn sync_conn(&self) -> SyncConn {
        let server = self.clone();
        SyncConn::open(async move { Ok(server.conn()) }).expect("a pipe always opens")
    }

    /// Returns a snapshot of the server's table.
    pub fn stats(&self) -> StatsResult {
        self.server().stats()
    }

    /// Returns the server; a new one after a [`restart`](Self::restart).
    pub fn server(&self) -> Server {
        self.instance().server.clone()
    }

    /// Waits until a client holds `key`, a lock's or a semaphore's.
    ///
    /// # Panics
    /// If no client does for a minute, by tokio's clock.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn wait_until_held(&self, key: &str) {
        let since = Instant::now();
        while !self.is_held(key) {
            assert!(since.elapsed() < HELD_TIMEOUT, "no client took {key:?} within a minute");
            sleep(CHECK_INTERVAL).await;
        }
    }

    fn is_held(&self, key: &str) -> bool {
        let stats = self.stats();
        // Connections count from 1; a key that is only waited for has none.
        stats.locks.iter().any(|lock| lock.key == key && lock.owner_conn_id != 0)
            || stats.semaphores.iter().any(|semaphore| semaphore.key == key && semaphore.holders > 0)
    }

    /// Takes `key` from all holders, as if their leases had expired: the next waiters get it, and each
    /// holder learns of it by its next renewal, which is rejected.
    ///
    /// # Panics
    /// If there is no holder: a test that scripts a loss has one. See [`wait_until_held`](Self::wait_until_held).
    ///
    /// ```
    /// # use dflockd_client::{LostReason, test_util::TestServer};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> dflockd_client::Result<()> {
    /// let server = TestServer::new();
    /// let guard = server.locks().lock("job")?.acquire().await?;
    /// server.expire_lease("job");
    /// assert_eq!(guard.lost().await, LostReason::RenewalRejected);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn expire_lease(&self, key: &str) {
        let holders = Key::parse(key).map_or(0, |key| self.server().revoke(&key));
        assert!(holders > 0, "no client holds {key:?}");
    }

    /// Breaks every connection that is open now, as a proxy between both sides does when it restarts. The
    /// server sees each closed by its peer, and frees its keys at once; clients see theirs closed, unless
    /// a partition keeps the news from them. New connections work.
    pub fn cut(&self) {
        self.network.cut();
    }

    /// Resets every connection that is open now: it fails at the client's end, and the server learns of
    /// it when the client closes. New connections work.
    pub fn reset(&self) {
        self.network.reset();
    }

    /// Stops all delivery from now on: bytes that either side sends wait, and so does the news that it
    /// closed; new connections are not made. After [`heal`](Self::heal) all of it arrives, late, as with
    /// TCP.
    ///
    /// ```
    /// # use dflockd_client::{LostReason, test_util::TestServer};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> dflockd_client::Result<()> {
    /// let server = TestServer::new();
    /// let guard = server.locks().lock("job")?.acquire().await?;
    /// server.partition();
    /// assert_eq!(guard.lost().await, LostReason::KeepaliveTimeout);
    /// assert_eq!(server.stats().locks.len(), 1); // the server does not know of it yet
    /// # Ok(()) }
    /// ```
    pub fn partition(&self) {
        self.network.set_delivery(false, false);
    }

    /// Partitions one way: bytes that clients send wait.
    pub fn hold_requests(&self) {
        self.network.set_delivery(false, true);
    }

    /// Partitions one way: bytes that the server sends wait.
    pub fn hold_replies(&self) {
        self.network.set_delivery(true, false);
    }

    /// Ends a partition, of both ways or of one.
    pub fn heal(&self) {
        self.network.set_delivery(true, true);
    }

    /// Stops the server gracefully: it no longer grants ([`Draining`](crate::ErrorKind::Draining)),
    /// refuses new connections, and holders may release until the shutdown timeout closes their
    /// connections.
    ///
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> dflockd_client::Result<()> {
    /// let server = TestServer::new();
    /// let locks = server.locks();
    /// let guard = locks.lock("job")?.acquire().await?;
    /// server.drain();
    /// assert!(locks.lock("another")?.acquire().await.unwrap_err().is_unavailable());
    /// guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub fn drain(&self) {
        let mut life = self.instance();
        life.draining = true;
        life.server.drain();
    }

    /// Replaces the server by a new one with the same settings, as a crash and a restart do: every
    /// connection closes, and all locks are forgotten. Its fences keep growing.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn restart(&self) -> Result<()> {
        let server = Server::new(self.config.clone())?;
        std::mem::replace(&mut *self.instance(), Instance { server, draining: false }).server.crash();
        Ok(())
    }

    fn instance(&self) -> MutexGuard<'_, Instance> {
        // Nothing panics while it is locked.
        self.instance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for TestServer {
    fn default() -> Self {
        Self::new()
    }
}

/// Connects to this server, for every address.
impl Dial for TestServer {
    fn dial<'a>(&'a self, _host: &'a str, _port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async {
            self.network.reachable().await;
            let life = self.instance();
            if life.draining {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Ok(Box::new(self.network.connect(&life.server)) as BoxStream)
        })
    }
}

impl fmt::Debug for TestServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestServer").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
