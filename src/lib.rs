//! Lease locks for tokio services: when one task in a fleet may do a thing at a time.
//!
//! Several processes take a *key* by name from a [dflockd](https://github.com/mtingers/dflockd)
//! lock server, which hands it out strictly first come, first served: to one of them (a lock) or
//! to a few (a semaphore). A handler awaits a guard, works, and lets go; behind it this crate
//! renews the lease, knows whether it is still held, and says at once when it is not.
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
//!     .build()?; // keep it: it is cheap to clone, and its connections are used again
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
//! That is the first lock. What it promises, whatever goes wrong, is
//! [below](#what-a-lease-promises).
//!
//! # Which type
//!
//! | You want | Take |
//! |---|---|
//! | locks and semaphores in a service | [`LockClient`], in the service's state |
//! | one lock or one semaphore, with a client of its own | [`AsyncDistributedLock`], [`AsyncDistributedSemaphore`] |
//! | any of these on threads, without async | their twins in [`blocking`]: [`SyncDistributedLock`] and the rest |
//! | to join the queue now and wait later | [`enqueue`](AsyncDistributedLock::enqueue) and its [`Ticket`] |
//! | a lock without a server, on a shared file system | [`FileLock`] |
//! | the commands of the protocol and nothing on top | [`AsyncConn`] and [`command`] |
//! | a server for tests, development or a single node | [`server::Server`], the `dflockd` binary |
//! | to test what your service does when a lease is lost | [`test_util::TestServer`] |
//! | to speak the wire yourself | [`proto`], without I/O |
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
//! A server that gave a key away for good would never get it back from a holder that crashed. So
//! it gives it for a limited time, the *ttl*, which the holder extends again and again: it *renews*
//! its *lease*. A [`LeaseGuard`] does that in the background, after half of what remains (see
//! [`Builder::renew_ratio`]). Its state only goes forward, but that a renewal heals the first step:
//!
//! - **Healthy**: held, with time to spare.
//! - **At risk** ([`Lease::at_risk`]): held, but no renewal got through and a quarter of the ttl is
//!   left (see [`Builder::at_risk_ratio`]): wind down, or hope.
//! - **Lost** ([`Lease::lost`]): not held any more, for good, and the reason says why.
//! - **Released**: let go while it was held. That is the same for every handle on it, at once: `lost`
//!   and `at_risk` resolve, and work that [`Lease::run`] keeps under it stops, because from then on the
//!   next holder may be at work.
//!
//! # What a lease promises
//!
//! **While a guard says that it is held, the server has given the key to nobody else**, as long as
//! this process's clock runs no slower than the server's, the server keeps its state, and nothing
//! between the two tells the server alone that the connection has ended. A loss is known
//!
//! - at once, when the server closes or resets the connection and that gets through;
//! - with the first renewal that the server rejects;
//! - whatever the network swallows, at the latest at the *earlier* of two instants:
//!   1. the [deadline](Lease::deadline), less a margin of 2 % of the ttl (at most 500 ms). The
//!      deadline is when the last successful acquire or renewal was sent, plus the ttl;
//!   2. two [keepalive intervals](Builder::keepalive_interval) (20 s) after the last request was
//!      sent that the server has answered, on that lease's connection.
//!
//! A renewal that fails in any other way is tried again while the lease lives. [`Lease::is_held`]
//! asks the clock, so it is right even where the renewal task was starved of its turn.
//!
//! Why the first bound holds:
//!
//! 1. A request is sent at `s`, and reaches the server at `r`; it cannot arrive before it was sent,
//!    so `s ≤ r`.
//! 2. The server lets the lease run until `r + ttl`, or longer if a later renewal arrives.
//! 3. The guard counts as held until `s + ttl - margin` at most.
//! 4. `s + ttl - margin < r + ttl`: the guard gives up first.
//! 5. Only an answer moves `s` forward, and only to when its own request was sent. A grant that had
//!    to queue counts from the renewal that confirms it.
//!
//! The second bound is the same argument for the server's read timeout (23 s unless set): a server
//! drops a connection on which it reads nothing for that long, and frees what it held. Hence the
//! keepalive interval must stay below half of the read timeout.
//!
//! A server ends a connection for other reasons too; none of them frees a key earlier than that,
//! unless the client is told at once:
//!
//! | The server | Why the bounds hold |
//! |---|---|
//! | cannot write a reply for its write timeout (5 s) | no more replies are owed on a lease's connection than its send buffer holds, read or not; the long one, to [`stats`](LockClient::stats), has a connection of its own. This crate's server keeps what was held until the read timeout besides |
//! | lets the lease run out | the first bound |
//! | reads a line over its cap, a wrong auth token, an auth where none is due | this client sends none |
//! | has too many connections | those that it refuses hold nothing |
//! | is stopped, and its shutdown timeout has passed | it grants nothing from the start of the stop on; the next one has forgotten the lease, see below |
//! | hears from its system that the peer is gone (keepalive, unacknowledged bytes) | that takes longer than the second bound, 50 s and more here; the original's system settings are its own |
//!
//! ## Clocks, and machines that stop
//!
//! Both sides count with clocks that no time service sets back or forward. A clock that runs slower
//! by more than the margin breaks the rule; real ones are off by a hundredth of that.
//!
//! A process that did not run finds out when it wakes up, and not before:
//!
//! - *Stopped by a signal, starved, or in a long page fault*: its clock went on. The first look at
//!   [`is_held`](Lease::is_held) is right.
//! - *On a machine that was suspended* (a laptop that is closed): its clock stood still. On Linux and
//!   Android the crate also asks the clock that counts suspended time (`CLOCK_BOOTTIME`): the first look is
//!   right, and whoever only waits for [`lost`](Lease::lost) hears of it within a keepalive interval of
//!   waking. On other systems it is right once the next renewal is answered, or is not.
//! - *In a virtual machine that was paused, or went on from a snapshot*: none of its clocks may know. The
//!   first look may say that the lease is held, until the next renewal is answered.
//!
//! And in each case it may have looked at `is_held` a moment before it stopped, and write as soon as it wakes
//! up. A middlebox that resets the server's end of a connection alone makes the server hand the key on up
//! to 20 s before the holder can know. All that is left to the fence.
//!
//! ## Fences
//!
//! For those cases every grant carries a [`Fence`], a number that grows with each grant of a key.
//! Hand it to whatever the lease protects, and have that refuse a lower one than it has seen. In
//! SQL, in the statement that writes:
//!
//! ```sql
//! UPDATE account SET balance = $1, fence = $2 WHERE id = $3 AND fence <= $2
//! ```
//!
//! No row changed: a later holder was there. In an object store, keep the fence in the object (or
//! its metadata), read it together with the object's version, stop if it is higher than yours, and
//! write on the condition that the version has not changed (`If-Match`); if the condition fails,
//! begin again. Fences are for locks: the holders of a semaphore have different ones at one time.
//! They grow over a server's restarts where it has a `--fence-state-file`. A lock's fence that falls
//! is logged as a warning, once per key. A 1.x server has no fences: [`Lease::fence`] is `None` there.
//!
//! ## When the connection ends
//!
//! A dflockd server frees what a connection held when it closes (*auto-release*): a crashed holder's
//! key is free at once, and so the end of a connection is the end of its leases here. Where a
//! server runs with `--auto-release-on-disconnect=false`, leases outlive their connections, and
//! [`OnDisconnect::Reattach`] makes the client renew them over another one while they last.
//!
//! The leases of a [`LockClient`] share a connection, and so its end. What is shared is no more than
//! that: a task that is cancelled, a lease that is lost or released, a table too large to read leave
//! the others alone. A lock that is [`isolated`](AsyncDistributedLock::isolated) shares nothing.
//!
//! ## When a guard is dropped
//!
//! It lets go, once, in the background: on any thread, with or without a runtime, while a panic
//! unwinds too. A release that fails is logged, and told to [`Builder::on_event`]; the lease then
//! runs out by itself. [`LeaseGuard::release`] waits for the answer and returns it.
//! [`LeaseGuard::detach`] gives up the duty and keeps the lease renewed, for handlers that a server
//! drops when their client goes away; [`LeaseGuard::forget`] gives up both.
//!
//! ## After a fork
//!
//! A process that was forked, and did not `exec`, has the memory of its parent and none of its threads.
//! Leases are the parent's: in the child a guard is not held ([`LostReason::Forked`]), dropping guards,
//! tickets, connections and clients sends nothing, closes nothing and waits for nothing, and a call on
//! a client of the parent's fails with [`ErrorKind::ConnectionClosed`]. Make a new client there, on a new runtime, or fork
//! first. The child's copies of the sockets stay open while it lives, so a parent that crashes is then
//! noticed by the server's read timeout and not at once.
//! A `fork` of the C library is noticed; a bare `clone` system call is not.
//!
//! # Cancel safety
//!
//! Any future of this crate may be dropped at any await.
//!
//! | Dropped | What happens |
//! |---|---|
//! | `acquire`, `acquire_within`, `try_acquire`, `enqueue`, [`Ticket::wait`] | the queue is left; a grant that crosses the drop is given back |
//! | [`Ticket`] | the queue is left |
//! | [`FileLock::acquire`], [`FileLock::lock_async`] | the claim is taken away, and a lock that was just taken is left |
//! | [`Lease::renew`] | a renewal that was sent may take effect; the deadline stays the earlier one |
//! | [`Lease::release`] | once polled, the release is on its way |
//! | [`Lease::run`] | the work is dropped; the lease is held |
//! | [`Lease::lost`], [`Lease::at_risk`] | nothing is lost; ask again |
//! | [`LeaseGuard`] | the lease is released in the background |
//! | [`LockClient::stats`] | nothing |
//! | [`LockClient::close`] | the client is closed; its connections may stay open until its guards are gone |
//! | [`AsyncConn::command`] and the functions of [`command`] | the connection is closed, since its next reply could be taken for another's |
//!
//! # Errors
//!
//! There is one [`Error`]. Branch on its [`kind`](Error::kind), print it for people: it names the
//! operation, the key, the server and the cause. Bad input is refused before anything is sent.
//!
//! # Features
//!
//! - **`client`** (default): [`LockClient`], locks, semaphores and guards; [`AsyncConn`] and the
//!   bare commands.
//! - **`blocking`**: the same locks, guards, connections and commands for threads (module
//!   [`blocking`]).
//! - **`tls`** (default): TLS by rustls with the ring provider, for the client and the server
//!   (module [`tls`]).
//! - **`server`**: the embedded server and the `dflockd` binary (module [`server`]).
//! - **`file`**: [`FileLock`], a lock file on a shared file system, for programs that have no server in
//!   common (module [`mod@file`]).
//! - **`cli`**: the `dflock` command line, on Unix; adds nothing to the library.
//! - **`test-util`**: a server inside your tests that paused time drives, and that fails when told
//!   to (module [`test_util`]).
//!
//! Without any, the parts that do no I/O remain: the wire ([`proto`]), the schedule of a lease
//! ([`lease::renewal`]), and sharding.
// The tour names rooms that a feature may leave out.
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
pub use blocking::{
    Blocking, SyncConn, SyncDistributedLock, SyncDistributedSemaphore, acquire, authenticate, enqueue,
    open_conn, ping, release, renew, sem_acquire, sem_enqueue, sem_release, sem_renew, sem_wait, stats, wait,
};
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
