//! Lease locks for tokio services, over a dflockd server.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(feature = "client")]
mod client;
mod error;
pub mod lease;
#[cfg(any(feature = "client", feature = "server", feature = "tls"))]
pub mod net;
pub mod proto;
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
    LockTarget, SemaphoreTarget, Settings, Target, Ticket, command,
};
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "client")]
pub use lease::{Lease, LeaseGuard, Outcome};
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
