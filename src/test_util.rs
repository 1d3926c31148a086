//! A lock server inside a test: reached by pipes instead of sockets, so that paused time drives
//! leases and nothing needs a free port; and it fails when told to. For the tests of services that
//! hold leases, and for this crate's own. The one room that joins the client and the server.
//!
//! What does a handler do when its lease is lost? Five lines tell:
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
//!     server.held("export").await;
//!     server.lose_lease("export");
//!     assert_eq!(handler.await.unwrap().unwrap(), "409 Conflict");
//! }
//! ```
//!
//! With paused time (`start_paused`) a minute of renewals takes microseconds: tokio sets its clock
//! forward whenever every task waits.
//!
//! | The test does | The client sees |
//! |---|---|
//! | [`lose_lease`](TestServer::lose_lease) | its next renewal rejected |
//! | [`cut`](TestServer::cut), [`reset`](TestServer::reset) | its connections closed, or failing, at once; new ones work |
//! | [`partition`](TestServer::partition), [`heal`](TestServer::heal) | silence, until its leases are given up; what was sent arrives late |
//! | [`drain`](TestServer::drain) | no more grants, time to let go, refused connections |
//! | [`restart`](TestServer::restart) | its connections closed; the server has forgotten every lock |
//! | `tokio::time::advance` | leases that run out, renewals that come late |

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

/// How long [`TestServer::held`] waits before it takes the test for broken.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(1);

/// An embedded server, and a network to it that fails when told to. Cheap to clone; clones are the
/// same server over the same network.
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
    life: Arc<Mutex<Life>>,
    network: Arc<Network>,
}

/// What a restart replaces.
struct Life {
    server: Server,
    draining: bool,
}

impl TestServer {
    /// A server with default settings.
    pub fn new() -> Self {
        Self::with(ServerConfig::default()).expect("the defaults are valid")
    }

    /// A server with these settings; its address and TLS are of no concern here.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn with(config: ServerConfig) -> Result<Self> {
        let life = Life { server: Server::new(config.clone())?, draining: false };
        Ok(Self { config, life: Arc::new(Mutex::new(life)), network: Arc::new(Network::new()) })
    }

    /// The same server over a network of its own: for the rival of a client that is partitioned.
    ///
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> dflockd_client::Result<()> {
    /// let server = TestServer::new();
    /// let rival = server.elsewhere().locks();
    /// let guard = server.locks().lock("job")?.acquire().await?;
    /// server.partition();
    /// // Whenever the rival gets the key, its first holder knows already that it is lost.
    /// let taken = rival.lock("job")?.acquire_within(std::time::Duration::from_secs(60)).await?;
    /// assert!(taken.is_held() && !guard.is_held());
    /// # Ok(()) }
    /// ```
    pub fn elsewhere(&self) -> Self {
        Self { network: Arc::new(Network::new()), ..self.clone() }
    }

    /// A client of this server with default settings.
    pub fn locks(&self) -> LockClient {
        self.builder().build().expect("the defaults are valid")
    }

    /// The builder of a client of this server.
    pub fn builder(&self) -> Builder<ClientTarget> {
        LockClient::builder().dial(self.clone())
    }

    /// A bare connection to this server, for the functions of [`command`](crate::command).
    pub fn conn(&self) -> AsyncConn {
        AsyncConn::new(self.network.connect(&self.server()))
    }

    /// A bare connection to this server, for the functions of [`blocking`](crate::blocking).
    ///
    /// # Panics
    /// In async code, as [`blocking`](crate::blocking#panics) says.
    #[cfg(feature = "blocking")]
    pub fn sync_conn(&self) -> SyncConn {
        let server = self.clone();
        SyncConn::open(async move { Ok(server.conn()) }).expect("a pipe always opens")
    }

    /// What the server holds right now.
    pub fn stats(&self) -> StatsResult {
        self.server().stats()
    }

    /// The server itself; another one after a [`restart`](Self::restart).
    pub fn server(&self) -> Server {
        self.life().server.clone()
    }

    /// Waits until somebody holds `key`, a lock's or a semaphore's.
    ///
    /// # Panics
    /// When nobody does for a minute, by tokio's clock.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn held(&self, key: &str) {
        let since = Instant::now();
        while !self.is_held(key) {
            assert!(since.elapsed() < PATIENCE, "nobody took {key:?} within a minute");
            sleep(LOOK).await;
        }
    }

    fn is_held(&self, key: &str) -> bool {
        let stats = self.stats();
        // Connections count from 1; a key that is only waited for has none.
        stats.locks.iter().any(|lock| lock.key == key && lock.owner_conn_id != 0)
            || stats.semaphores.iter().any(|semaphore| semaphore.key == key && semaphore.holders > 0)
    }

    /// Takes `key` from everyone who holds it, as if their leases had run out: whoever waits is
    /// next, and the holders hear of it by their next renewal, which is rejected.
    ///
    /// # Panics
    /// When nobody holds it: a test that scripts a loss has one. See [`held`](Self::held).
    ///
    /// ```
    /// # use dflockd_client::{LostReason, test_util::TestServer};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> dflockd_client::Result<()> {
    /// let server = TestServer::new();
    /// let guard = server.locks().lock("job")?.acquire().await?;
    /// server.lose_lease("job");
    /// assert_eq!(guard.lost().await, LostReason::RenewalRejected);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn lose_lease(&self, key: &str) {
        let holders = Key::parse(key).map_or(0, |key| self.server().revoke(&key));
        assert!(holders > 0, "nobody holds {key:?}");
    }

    /// Breaks every connection that is open now, as a proxy between both sides does that restarts.
    /// The server sees each closed by its peer, and frees at once what it held; clients see theirs
    /// closed, unless nothing gets through to them. New ones work.
    pub fn cut(&self) {
        self.network.cut();
    }

    /// Resets every connection that is open now: it fails at the client's end, and the server hears
    /// of it when the client closes. New ones work.
    pub fn reset(&self) {
        self.network.reset();
    }

    /// Lets nothing through from now on: what either side sends waits, and so does the news that it
    /// closed; new connections are not made. [`heal`](Self::heal) lets all of it arrive, late, as
    /// TCP does.
    ///
    /// ```
    /// # use dflockd_client::{LostReason, test_util::TestServer};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> dflockd_client::Result<()> {
    /// let server = TestServer::new();
    /// let guard = server.locks().lock("job")?.acquire().await?;
    /// server.partition();
    /// assert_eq!(guard.lost().await, LostReason::ServerSilent);
    /// assert_eq!(server.stats().locks.len(), 1); // the server has not heard of it yet
    /// # Ok(()) }
    /// ```
    pub fn partition(&self) {
        self.network.carry(false, false);
    }

    /// A partition of one way: what clients send waits.
    pub fn hold_requests(&self) {
        self.network.carry(false, true);
    }

    /// A partition of one way: what the server sends waits.
    pub fn hold_replies(&self) {
        self.network.carry(true, false);
    }

    /// Ends a partition, of both ways or of one.
    pub fn heal(&self) {
        self.network.carry(true, true);
    }

    /// Stops the server gracefully: nothing more is granted ([`Draining`](crate::ErrorKind::Draining)),
    /// new connections are refused, and holders may let go until the shutdown timeout closes theirs.
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
        let mut life = self.life();
        life.draining = true;
        life.server.drain();
    }

    /// Replaces the server by a fresh one with the same settings, as a crash and a restart do: every
    /// connection closes, and all locks are forgotten. Its fences go on growing.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn restart(&self) -> Result<()> {
        let server = Server::new(self.config.clone())?;
        std::mem::replace(&mut *self.life(), Life { server, draining: false }).server.crash();
        Ok(())
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        // Nothing panics while it is locked.
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for TestServer {
    fn default() -> Self {
        Self::new()
    }
}

/// Dials this server, whatever the address.
impl Dial for TestServer {
    fn dial<'a>(&'a self, _host: &'a str, _port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async {
            self.network.reachable().await;
            let life = self.life();
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
