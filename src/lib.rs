//! Lease locks for tokio services, over a dflockd server.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod error;
#[cfg(any(feature = "client", feature = "server", feature = "tls"))]
pub mod net;
pub mod proto;
#[cfg(feature = "server")]
pub mod server;
mod sharding;
#[cfg(feature = "tls")]
pub mod tls;
mod types;

pub use error::{Error, ErrorKind, Result};
pub use proto::StatsResult;
pub use sharding::{DEFAULT_SERVERS, ShardingStrategy, stable_hash_shard};
pub use types::{
    Fence, Invalid, Key, Limit, MAX_AUTH_TOKEN_BYTES, MAX_LINE_BYTES, MAX_SECONDS, MAX_TOKEN_BYTES, Seconds,
    Token, fence_from_token,
};

/// This crate's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
