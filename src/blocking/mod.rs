//! The blocking API: all that async code has, for threads. Use it if your program has no async runtime, or a part
//! that must not await: a command-line tool, a thread pool, a build script. In async code, use the types at the
//! crate's root: a blocked thread is expensive, and a task that blocks keeps other tasks from running.
//!
//! Each method runs the async method of the same name and waits for it. So the docs of that method hold here too:
//! what a lease promises, [fences](crate::Fence), settings, errors.
//!
//! ```
//! use dflockd_client::{Outcome, SyncDistributedLock};
//! use std::time::Duration;
//!
//! # fn move_money(_fence: Option<dflockd_client::Fence>) -> u32 { 7 }
//! # fn main() -> dflockd_client::Result<()> {
//! # let server = dflockd_client::test_util::TestServer::new();
//! let lock = SyncDistributedLock::builder("account:17")
//!     .lease_ttl(Duration::from_secs(30))
//! #   .dial(server)
//!     .build()?;
//! let guard = lock.acquire()?;
//! match guard.run(|lease| move_money(lease.fence())) {
//!     Outcome::Completed(amount) => println!("moved {amount}"),
//!     Outcome::Lost(reason) => println!("check the transfer: {reason}"),
//! }
//! guard.release()?;
//! # Ok(()) }
//! ```
//!
//! | For | Use | In async code |
//! |---|---|---|
//! | locks and semaphores in a program | [`LockClient`] | [`LockClient`](crate::LockClient) |
//! | one lock or one semaphore | [`SyncDistributedLock`], [`SyncDistributedSemaphore`] | [`AsyncDistributedLock`](crate::AsyncDistributedLock), [`AsyncDistributedSemaphore`](crate::AsyncDistributedSemaphore) |
//! | what they return | [`LeaseGuard`], [`Lease`], [`Enqueued`], [`Ticket`] | the same names at the root |
//! | the commands of the protocol and nothing on top | [`SyncConn`] and the functions of this module | [`AsyncConn`](crate::AsyncConn) and [`command`](crate::command) |
//!
//! # Threads
//!
//! One hidden thread, `dflockd-blocking`, does the work of all blocking objects of the process:
//! connections, pings, renewals. It starts with the first call that needs it, and never ends. So a
//! lease is renewed while its holder computes or sleeps, and a thousand locks need one thread more.
//! A program with a runtime of its own can pass it to [`Builder::runtime`](crate::Builder::runtime).
//!
//! All types are `Send` and `Sync`. Any thread may use, release and drop a guard.
//!
//! # How a blocked call ends
//!
//! A blocked call cannot be dropped like a future. An acquire ends at its timeout, or when
//! another thread calls [`LockClient::close`]. A command on a [`SyncConn`] ends at its `read_timeout`,
//! or when another thread calls [`close`](SyncConn::close) or
//! [`shutdown_read`](SyncConn::shutdown_read).
//!
//! # Panics
//!
//! Every method works on a thread that may block: a thread of the program, `spawn_blocking`,
//! and the workers of a multi-threaded runtime, whose other tasks move to another thread
//! meanwhile. Everywhere else in async code (a current-thread runtime, a `LocalSet`, a callback on
//! the hidden thread) each method that waits panics before it does anything, and names the async
//! type to await instead. Dropping a guard does not wait there, and never panics.
//!
//! # When the process exits
//!
//! The drop of a guard waits up to a second for its release, so that a key whose guard is dropped at the end of
//! `main` is free when the process has exited. If a guard is never dropped (`process::exit`, a static), the server
//! frees its key when the connections close with the process, unless the server runs with
//! `--auto-release-on-disconnect=false`: then the lease expires.
//!
//! # After a fork
//!
//! A process that was forked, and did not `exec`, has no hidden thread. If its parent had made a call before,
//! every call in it fails with [`ConnectionClosed`](crate::ErrorKind::ConnectionClosed), and
//! a guard in it is not held and releases nothing: leases belong to the parent. That holds for a client made
//! in the child too, unless it is built with a [runtime](crate::Builder::runtime) made there. Fork first and
//! acquire locks then, or spawn a process instead.

mod command;
mod conn;
mod lease;
mod lock;
mod runtime;
mod semaphore;
mod target;
mod ticket;

use std::fmt;

use crate::client::{Builder, BuilderParts, ClientTarget, Metrics, Target};
use crate::error::Result;
use crate::proto::StatsResult;
use runtime::Runtime;

pub use command::{
    acquire, authenticate, enqueue, open_conn, ping, release, renew, sem_acquire, sem_enqueue, sem_release,
    sem_renew, sem_wait, stats, wait,
};
pub use conn::SyncConn;
pub use lease::{Lease, LeaseGuard};
pub use lock::SyncDistributedLock;
pub use semaphore::SyncDistributedSemaphore;
pub use target::Blocking;
pub use ticket::{Enqueued, Ticket};

/// The async type of the same use, which a panic in async code names.
const ASYNC_COUNTERPART: &str = "LockClient";

/// A client, which a program keeps: [`LockClient`](crate::LockClient) for threads. Makes locks and semaphores that
/// share its connections.
///
/// Cheap to clone; clones share everything, and any thread may use them.
///
/// ```
/// use dflockd_client::blocking::LockClient;
/// # fn main() -> dflockd_client::Result<()> {
/// # let server = dflockd_client::test_util::TestServer::new();
/// let locks = LockClient::builder()
/// #   .dial(server)
///     .build()?;
/// let account = locks.lock("account:17")?.acquire()?;
/// let export = locks.semaphore("exports", 3)?.acquire()?;
/// assert_eq!(locks.stats()?.len(), 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct LockClient {
    pub(in crate::blocking) client: crate::LockClient,
    pub(in crate::blocking) runtime: Runtime,
}

impl LockClient {
    /// Returns a builder. Its lease settings are the defaults of every lock that the client makes.
    pub fn builder() -> Builder<Blocking<ClientTarget>> {
        crate::LockClient::builder().blocking()
    }

    /// Makes a lock on `key`: 1 to 256 bytes without whitespace. Does no I/O.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a key that cannot be sent.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let server = dflockd_client::test_util::TestServer::new();
    /// # let locks = server.builder().blocking().build()?;
    /// assert_eq!(locks.lock("account:17")?.key().to_string(), "account:17");
    /// assert!(locks.lock("two words").unwrap_err().is_invalid_input());
    /// # Ok(()) }
    /// ```
    pub fn lock(&self, key: impl AsRef<str>) -> Result<SyncDistributedLock> {
        Ok(SyncDistributedLock { lock: self.client.lock(key)?, runtime: self.runtime.clone() })
    }

    /// Makes a semaphore on `key` with `limit` slots (1 to 2^63 - 1). Does no I/O.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a key or limit that cannot be sent.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let server = dflockd_client::test_util::TestServer::new();
    /// # let locks = server.builder().blocking().build()?;
    /// assert_eq!(locks.semaphore("exports", 3)?.limit(), 3);
    /// # Ok(()) }
    /// ```
    pub fn semaphore(&self, key: impl AsRef<str>, limit: u64) -> Result<SyncDistributedSemaphore> {
        let semaphore = self.client.semaphore(key, limit)?;
        Ok(SyncDistributedSemaphore { semaphore, runtime: self.runtime.clone() })
    }

    /// Returns what each server holds now (`stats`), in the order of the servers.
    ///
    /// # Errors
    /// As [`LockClient::stats`](crate::LockClient::stats).
    ///
    /// # Panics
    /// In async code, as the [module](self#panics) says.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let server = dflockd_client::test_util::TestServer::new();
    /// # let locks = server.builder().blocking().build()?;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// assert_eq!(locks.stats()?[0].locks[0].key, "account:17");
    /// # Ok(()) }
    /// ```
    pub fn stats(&self) -> Result<Vec<StatsResult>> {
        let client = self.client.clone();
        self.runtime.run(ASYNC_COUNTERPART, async move { client.stats().await })
    }

    /// Returns the client's gauges, counters and latencies; see
    /// [`LockClient::metrics`](crate::LockClient::metrics).
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// assert_eq!(locks.metrics().leases, 1);
    /// # Ok(()) }
    /// ```
    pub fn metrics(&self) -> Metrics {
        self.client.metrics()
    }

    /// Closes the client and all its clones: acquires in which other threads are blocked fail with
    /// [`ClientClosed`](crate::ErrorKind::ClientClosed), and so do later calls. Every lease is
    /// lost, and released. Takes 5 s at most.
    ///
    /// # Errors
    /// As [`LockClient::close`](crate::LockClient::close).
    ///
    /// # Panics
    /// In async code, as the [module](self#panics) says.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> dflockd_client::Result<()> {
    /// # let locks = dflockd_client::test_util::TestServer::new().builder().blocking().build()?;
    /// use dflockd_client::ErrorKind;
    /// let guard = locks.lock("account:17")?.acquire()?;
    /// std::thread::scope(|threads| {
    ///     let waits = threads.spawn(|| locks.lock("account:17")?.acquire());
    ///     locks.close()?;
    ///     let error = waits.join().expect("it does not panic").unwrap_err();
    ///     assert_eq!(error.kind(), ErrorKind::ClientClosed);
    ///     Ok(())
    /// })
    /// # }
    /// ```
    pub fn close(&self) -> Result<()> {
        let client = self.client.clone();
        self.runtime.run(ASYNC_COUNTERPART, async move { client.close().await })
    }
}

impl Target for Blocking<ClientTarget> {
    type Output = LockClient;

    fn build_from(self, parts: BuilderParts) -> Result<LockClient> {
        Ok(LockClient { client: self.target.build_from(parts)?, runtime: self.runtime })
    }
}

impl fmt::Debug for LockClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(f)
    }
}
