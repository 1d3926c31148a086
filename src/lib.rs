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
//! # Which type
//!
//! | You want | Take |
//! |---|---|
//! | locks and semaphores in a service | [`LockClient`], in the service's state |
//! | one lock or one semaphore, with a client of its own | [`AsyncDistributedLock`], [`AsyncDistributedSemaphore`] |
//! | to join the queue now and wait later | [`enqueue`](AsyncDistributedLock::enqueue) and its [`Ticket`] |
//! | the commands of the protocol and nothing on top | [`AsyncConn`] and [`command`] |
//! | a server for tests, development or a single node | [`server::Server`], the `dflockd` binary |
//! | to test what your service does when a lease is lost | [`test_util::TestServer`] |
//! | to speak the wire yourself | [`proto`], without I/O |
//!
//! # What a lease is
//!
//! A server that gave a key away for good would never get it back from a holder that crashed. So
//! it gives it for a limited time, the *ttl*, which the holder extends again and again: it *renews*
//! its *lease*. A [`LeaseGuard`] does that in the background, after half of what remains (see
//! [`Builder::renew_ratio`]). Four instants matter:
//!
//! - **The deadline** ([`Lease::deadline`]): when the last successful acquire or renewal was
//!   *sent*, plus the ttl. The server counts from when it *received* that request, which is later,
//!   so the guard gives up no later than the server does.
//! - **At risk** ([`Lease::at_risk`]): a quarter of the ttl is left and no renewal got through.
//!   A later one heals it.
//! - **Lost** ([`Lease::lost`]): the connection closed, the server refused a renewal, or the
//!   deadline is a margin away (2 % of the ttl, at most 500 ms). A lost lease stays lost.
//! - **Released**: by [`LeaseGuard::release`], which reports, or by dropping the guard, which does
//!   it in the background. A release is attempted once.
//!
//! What no client can know is that it was suspended. A process that is stopped, or a virtual
//! machine that is moved, between looking at [`Lease::is_held`] and writing, writes late. For that
//! there is the [`Fence`]: a number that grows with every grant of a key, to be checked by whatever
//! the lease protects.
//!
//! # Cancel safety
//!
//! Any future of this crate may be dropped at any await.
//!
//! | Dropped | What happens |
//! |---|---|
//! | `acquire`, `acquire_within`, `try_acquire`, `enqueue`, [`Ticket::wait`] | the queue is left; a grant that crosses the drop is given back |
//! | [`Ticket`] | the queue is left |
//! | [`Lease::renew`] | a renewal that was sent may take effect; the deadline stays the earlier one |
//! | [`Lease::release`] | once polled, the release is on its way |
//! | [`Lease::run`] | the work is dropped; the lease is held |
//! | [`Lease::lost`], [`Lease::at_risk`] | nothing is lost; ask again |
//! | [`LeaseGuard`] | the lease is released in the background |
//! | [`LockClient::stats`] | nothing |
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
//! - **`tls`** (default): TLS by rustls with the ring provider, for the client and the server
//!   (module [`tls`]).
//! - **`server`**: the embedded server and the `dflockd` binary (module [`server`]).
//! - **`test-util`**: a server inside your tests that paused time drives (module [`test_util`]).
//!
//! Without any, the parts that do no I/O remain: the wire ([`proto`]), the schedule of a lease
//! ([`lease::renewal`]), and sharding.
// The tour names rooms that a feature may leave out.
#![cfg_attr(not(all(feature = "test-util", feature = "tls")), allow(rustdoc::broken_intra_doc_links))]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(feature = "client")]
mod client;
mod error;
pub mod lease;
#[cfg(any(feature = "client", feature = "server", feature = "tls"))]
pub mod net;
pub mod proto;
#[cfg(feature = "_sabotage")]
#[doc(hidden)]
pub mod sabotage;
#[cfg(not(feature = "_sabotage"))]
mod sabotage;
#[cfg(feature = "server")]
pub mod server;
mod sharding;
#[cfg(feature = "test-util")]
pub mod test_util;
#[cfg(feature = "tls")]
pub mod tls;
mod types;

#[cfg(feature = "client")]
pub use client::{
    AsyncConn, AsyncDistributedLock, AsyncDistributedSemaphore, Builder, ClientTarget, Enqueued, LockClient,
    LockTarget, OnDisconnect, RetryPolicy, SemaphoreTarget, Settings, Target, Ticket, command,
};
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "client")]
pub use lease::{Lease, LeaseChange, LeaseEvent, LeaseGuard, LostSignal, Outcome};
pub use lease::{LeaseState, LostReason};
pub use proto::StatsResult;
pub use sharding::{DEFAULT_SERVERS, ShardingStrategy, stable_hash_shard};
pub use types::{
    Fence, Invalid, Key, Limit, MAX_AUTH_TOKEN_BYTES, MAX_LINE_BYTES, MAX_SECONDS, MAX_TOKEN_BYTES, Seconds,
    Token, fence_from_token,
};

/// This crate's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(all(doctest, feature = "client", feature = "server", feature = "tls"))]
#[doc = include_str!("../README.md")]
struct Readme;
