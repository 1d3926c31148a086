//! Lease locks for tokio services: one task of a whole fleet at a time.
//!
//! Several processes acquire a *key* by name from a [dflockd](https://github.com/mtingers/dflockd)
//! lock server, which grants it strictly first come, first served: to one process (a lock) or
//! to a few (a semaphore). A handler awaits a guard, works, and releases it. Meanwhile this crate
//! renews the lease, knows if it is still held, and signals at once when it is lost.
//!
//! ```
//! use dflockd_client::{LockClient, Outcome};
//! use dflockd_client::server::{Server, ServerConfig};
//! use std::time::Duration;
//!
//! # async fn transfer(_fence: Option<dflockd_client::Fence>) -> u32 { 7 }
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
//! // A server inside this process; in production, `dflockd` somewhere.
//! let server = Server::bind(ServerConfig { port: 0, ..Default::default() }).await?;
//! let port = server.local_addr().expect("it is bound").port();
//! tokio::spawn(server.run(std::future::pending()));
//!
//! let locks = LockClient::builder()
//!     .servers([("127.0.0.1", port)])
//!     .lease_ttl(Duration::from_secs(30))
//!     .build()?; // keep it: it is cheap to clone, and reuses its connections
//!
//! let guard = locks.lock("account:17")?.acquire().await?;
//! match guard.run(transfer(guard.fence())).await {
//!     Outcome::Completed(amount) => println!("moved {amount}"),
//!     Outcome::Lost(reason) => println!("stopped half-way: {reason}"),
//! }
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! That is the first lock. [Below](#what-a-lease-promises) is what it promises under every failure.
//!
//! # Which type
//!
//! | For | Use |
//! |---|---|
//! | locks and semaphores in a service | [`LockClient`], in the service's state |
//! | one lock or one semaphore, with a client of its own | [`AsyncDistributedLock`], [`AsyncDistributedSemaphore`] |
//! | any of these on threads, without async | the blocking API in [`blocking`]: [`SyncDistributedLock`] and so on |
//! | a place in the queue now, and the wait later | [`enqueue`](AsyncDistributedLock::enqueue) and its [`Ticket`] |
//! | a lock without a server, on a shared file system | [`FileLock`] |
//! | many such locks, in one directory | [`Directory`], as the [backend](Builder::backend) of a [`LockClient`] |
//! | the commands of the protocol and nothing on top | [`AsyncConn`] and [`command`] |
//! | a server for tests, development or a single node | [`server::Server`], the `dflockd` binary |
//! | a test of what your service does when a lease is lost | [`test_util::TestServer`] |
//! | your own code for the wire | [`proto`], without I/O |
//!
//! # The guide
//!
//! - [`guide::cookbook`]: twelve things to do with a lease, from one at a time to one leader.
//! - [`guide::questions`]: which ttl, what if the server restarts, how many connections, how to
//!   change the list of servers.
//! - [`guide::choosing`]: this, Redis, etcd, Postgres or a lock file; for efficiency or correctness.
//! - [`guide::services`]: leases in HTTP and gRPC handlers.
//!
//! # What a lease is
//!
//! If a server granted a key forever, a crashed holder would keep it forever. So
//! the server grants it for a limited time, the *ttl*, which the holder extends again and again: it *renews*
//! its *lease*. A [`LeaseGuard`] does that in the background, after half of the remaining time (see
//! [`Builder::renew_ratio`]). The lease has four states. A renewal makes a lease at risk healthy again; every other
//! change is final:
//!
//! - **Healthy**: held, with time to spare.
//! - **At risk** ([`Lease::at_risk`]): held, but no renewal succeeded and a quarter of the ttl is
//!   left (see [`Builder::at_risk_ratio`]): time to wind down.
//! - **Lost** ([`Lease::lost`]): no longer held, with a reason.
//! - **Released**: released while it was held. Every handle on the lease sees that at once: `lost`
//!   and `at_risk` resolve, and work that [`Lease::run`] runs under the lease stops, because from then on the
//!   next holder may be at work.
//!
//! # What a lease promises
//!
//! **While a guard says that it is held, the server has granted the key to no other holder**, as long as
//! this process's clock runs no slower than the server's, the server keeps its state, and nothing
//! between the two closes the server's end of the connection alone. A loss is known
//!
//! - at once, if the server closes or resets the connection and the client receives that;
//! - with the first renewal that the server rejects;
//! - if the network drops everything, at the latest at the *earlier* of two instants:
//!   1. the [deadline](Lease::deadline), less a margin of 2 % of the ttl (at most 500 ms). The
//!      deadline is when the last successful acquire or renewal was sent, plus the ttl;
//!   2. two [keepalive intervals](Builder::keepalive_interval) (20 s) after the client sent the last
//!      request that has a reply, on that lease's connection.
//!
//! A renewal that fails in any other way is tried again while the lease is held. [`Lease::is_held`]
//! reads the clock, so it is right even if the renewal task was starved.
//!
//! Why the first bound holds:
//!
//! 1. A request is sent at `s`, and reaches the server at `r`; it cannot arrive before it was sent,
//!    so `s ≤ r`.
//! 2. The server lets the lease run until `r + ttl`, or longer if a later renewal arrives.
//! 3. The guard counts as held until `s + ttl - margin` at most.
//! 4. `s + ttl - margin < r + ttl`: the guard gives up first.
//! 5. Only a reply moves `s` forward, and only to when its own request was sent. A grant that had
//!    to queue counts from the renewal that confirms it.
//!
//! The second bound is the same argument for the server's read timeout (23 s unless set): a server
//! drops a connection on which it reads nothing for that long, and frees what it held. Hence the
//! keepalive interval must stay below half of the read timeout.
//!
//! A server closes a connection for other reasons too. None of them frees a key earlier than that,
//! unless the client knows at once:
//!
//! | The server | Why the bounds hold |
//! |---|---|
//! | cannot write a reply for its write timeout (5 s) | on a lease's connection, no more replies are in flight than its send buffer holds, read or not; the long one, to [`stats`](LockClient::stats), has an exclusive connection. In addition, this crate's server keeps what was held until the read timeout |
//! | expires the lease | the first bound |
//! | reads a line over its cap, a wrong auth token, an unexpected `auth` | this client sends none |
//! | has too many connections | those that it refuses hold nothing |
//! | is stopped, and its shutdown timeout has passed | it grants nothing from the start of the stop on; the next one has forgotten the lease, see below |
//! | learns from its system that the peer is gone (keepalive, unacknowledged bytes) | that takes longer than the second bound, 50 s and more here; the original server has its own system settings |
//!
//! ## Clocks, and machines that stop
//!
//! Both sides count with clocks that no time service sets back or forward. A clock that runs slower
//! by more than the margin breaks the rule; real ones are off by a hundredth of that.
//!
//! A process that did not run learns of a loss when it wakes up, and not before:
//!
//! - *Stopped by a signal, starved, or in a long page fault*: its clock went on. The first call of
//!   [`is_held`](Lease::is_held) is right.
//! - *On a machine that was suspended* (a laptop that is closed): its clock stood still. On Linux and
//!   Android the crate also reads the clock that counts suspended time (`CLOCK_BOOTTIME`): the first call is
//!   right, and [`lost`](Lease::lost) resolves within a keepalive interval of waking. On other systems `is_held`
//!   is right once the next renewal has a reply, or has timed out.
//! - *In a virtual machine that was paused, or resumed from a snapshot*: perhaps none of its clocks counts that
//!   time. `is_held` may return `true` until the next renewal has a reply.
//!
//! In each case the process may have called `is_held` a moment before it stopped, and may write as soon as it wakes
//! up. A middlebox that resets only the server's end of a connection makes the server grant the key again up
//! to 20 s before the holder can know. For all of these there is the fence.
//!
//! ## Fences
//!
//! For those cases every grant carries a [`Fence`], a number that grows with each grant of a key.
//! Pass it to the resource that the lease protects, which rejects a fence lower than the highest one it has
//! seen. In SQL, in the statement that writes:
//!
//! ```sql
//! UPDATE account SET balance = $1, fence = $2 WHERE id = $3 AND fence <= $2
//! ```
//!
//! If no row changed, a later holder has written. In an object store, keep the fence in the object (or
//! its metadata), read it together with the object's version, stop if it is higher than yours, and
//! write on the condition that the version has not changed (`If-Match`); if the condition fails,
//! begin again. Fences are for locks: the holders of a semaphore have different ones at the same time.
//! They grow across a server's restarts if it has a `--fence-state-file`. If a lock's fence falls, the client
//! logs a warning, once per key. A 1.x server has no fences: [`Lease::fence`] is `None` there.
//!
//! ## When the connection closes
//!
//! A dflockd server frees what a connection held when it closes (*auto-release*): a crashed holder's
//! key is free at once, and when a connection closes here, its leases are lost. If a
//! server runs with `--auto-release-on-disconnect=false`, leases outlive their connections, and
//! [`OnDisconnect::Reattach`] makes the client renew them over another connection until they expire.
//!
//! The leases of a [`LockClient`] share a connection, and are lost together when it closes. They share nothing
//! else: a cancelled task, a lease that is lost or released, or a table too large to read does not affect
//! the other leases. A lock that is [`isolated`](AsyncDistributedLock::isolated) shares nothing.
//!
//! ## When a guard is dropped
//!
//! The drop releases the lease, once, in the background: on any thread, with or without a runtime, also while a
//! panic unwinds. A release that fails is logged and passed to [`Builder::on_event`], and the lease then
//! expires by itself. [`LeaseGuard::release`] waits for the reply and returns the outcome.
//! [`LeaseGuard::detach`] keeps the lease renewed without the release on drop, for handlers that a server
//! drops when their client disconnects. [`LeaseGuard::forget`] gives up both renewals and release.
//!
//! ## After a fork
//!
//! A process that was forked, and did not `exec`, has the memory of its parent and none of its threads.
//! Leases belong to the parent: in the child a guard is not held ([`LostReason::Forked`]), dropping guards,
//! tickets, connections and clients sends nothing, closes nothing and waits for nothing, and a call on
//! a client of the parent fails with [`ErrorKind::ConnectionClosed`]. Build a new client in the child, on a new
//! runtime, or fork first. The child's copies of the sockets stay open while it runs, so the server detects a
//! crash of the parent by its read timeout and not at once.
//! The crate detects a `fork` of the C library, but not a bare `clone` system call.
//!
//! # Cancel safety
//!
//! Any future of this crate may be dropped at any await.
//!
//! | Dropped | What happens |
//! |---|---|
//! | `acquire`, `acquire_within`, `try_acquire`, `enqueue`, [`Ticket::wait`] | the client leaves the queue, and releases a late grant |
//! | [`Ticket`] | the client leaves the queue |
//! | [`FileLock::acquire`], [`FileLock::lock_async`] | the claim is removed, and a lock that was just acquired is released |
//! | [`Lease::renew`] | a renewal that was sent may take effect; the deadline stays the earlier one |
//! | [`Lease::release`] | once polled, the release is sent |
//! | [`Lease::run`] | the work is dropped; the lease stays held |
//! | [`Lease::lost`], [`Lease::at_risk`] | nothing; a later call resolves as well |
//! | [`LeaseGuard`] | the lease is released in the background |
//! | [`LockClient::stats`] | nothing |
//! | [`LockClient::close`] | the client is closed; its connections may stay open until its guards are dropped |
//! | [`AsyncConn::command`] and the functions of [`command`] | the connection is closed, since its next reply could be taken for another's |
//!
//! # Errors
//!
//! There is one [`Error`]. Code branches on its [`kind`](Error::kind). Its text names the
//! operation, the key, the server and the cause. Bad input fails before anything is sent.
//!
//! # Features
//!
//! - **`client`** (default): [`LockClient`], locks, semaphores and guards; [`AsyncConn`] and the
//!   bare commands.
//! - **`blocking`**: the same locks, guards, connections and commands for threads (module
//!   [`blocking`]).
//! - **`tls`** (default): TLS by rustls with the ring provider, for the client and the server
//!   (module [`tls`]).
//! - **`server`**: the embedded server (module [`server`]).
//! - **`dflockd`**: the `dflockd` binary; adds nothing to the library.
//! - **`file`**: [`FileLock`], a lock file on a shared file system, for programs that have no server in
//!   common (module [`mod@file`]).
//! - **`cli`**: the `dflock` command line, on Unix; adds nothing to the library.
//! - **`test-util`**: a server inside your tests, driven by paused time, over a network that fails on command
//!   (module [`test_util`]).
//!
//! Without any, the parts that do no I/O remain: the wire ([`proto`]), the schedule of a lease
//! ([`lease::renewal`]), and sharding.
// The tour links to modules that a feature may leave out.
#![cfg_attr(
    not(all(feature = "blocking", feature = "test-util", feature = "tls", feature = "file")),
    allow(rustdoc::broken_intra_doc_links)
)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(feature = "client")]
mod backend;
#[cfg(feature = "blocking")]
pub mod blocking;
#[cfg(feature = "client")]
mod client;
mod error;
#[cfg(feature = "_failpoints")]
#[doc(hidden)]
pub mod failpoints;
#[cfg(not(feature = "_failpoints"))]
mod failpoints;
#[cfg(feature = "file")]
pub mod file;
// For the binaries of this package alone.
#[cfg(any(feature = "server", feature = "tls"))]
#[doc(hidden)]
pub mod files;
#[cfg(any(doc, doctest))]
pub mod guide;
#[cfg(feature = "client")]
mod latency;
pub mod lease;
#[cfg(any(feature = "client", feature = "server", feature = "tls"))]
pub mod net;
#[cfg(any(feature = "client", feature = "file"))]
mod process;
pub mod proto;
#[cfg(feature = "server")]
pub mod server;
mod sharding;
#[cfg(any(feature = "client", feature = "file"))]
mod suspend;
#[cfg(feature = "test-util")]
pub mod test_util;
#[cfg(feature = "tls")]
pub mod tls;
mod types;
#[cfg(feature = "client")]
mod validate;

#[cfg(all(feature = "client", feature = "file"))]
pub use backend::directory::Directory;
#[cfg(feature = "client")]
pub use backend::{
    Capabilities,
    dflockd::{AsyncConn, Dflockd, OnDisconnect, command},
};
#[cfg(feature = "blocking")]
pub use blocking::{SyncConn, SyncDistributedLock, SyncDistributedSemaphore};
#[cfg(feature = "client")]
pub use client::{
    AsyncDistributedLock, AsyncDistributedSemaphore, Builder, ClientTarget, Enqueued, IntoBackend,
    LockClient, LockOptions, LockTarget, Metrics, RetryPolicy, SemaphoreTarget, Target, Ticket,
};
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "file")]
pub use file::{FileLock, LockState};
#[cfg(feature = "client")]
pub use latency::Latency;
#[cfg(any(feature = "client", feature = "file"))]
pub use lease::{Lease, LeaseEvent, LeaseEventKind, LeaseGuard, LostSignal, Outcome};
pub use lease::{LeaseState, LostReason};
pub use proto::StatsResult;
pub use sharding::{DEFAULT_SERVERS, ShardingStrategy, stable_hash_shard};
pub use types::{
    Fence, Invalid, Key, Limit, MAX_AUTH_TOKEN_BYTES, MAX_LINE_BYTES, MAX_SECONDS, MAX_TOKEN_BYTES, Seconds,
    Token, fence_from_token, printable,
};

/// This crate's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(all(doctest, feature = "client", feature = "server", feature = "tls", feature = "file"))]
#[doc = include_str!("../README.md")]
struct Readme;
