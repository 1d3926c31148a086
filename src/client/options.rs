//! The settings of a client, as its parts rely on them: checked, and fixed. Knows of no connection.

use std::sync::Arc;
use std::time::Duration;

use crate::client::retry::RetryPolicy;
use crate::client::tls::ClientTls;
use crate::error::{Error, Result};
use crate::lease::Terms;
use crate::net::Dial;
use crate::sharding::ShardingStrategy;
use crate::types::{Key, Quoted, Seconds};

/// Where the servers are and how to reach them.
pub(crate) struct Options {
    pub(crate) servers: Vec<Server>,
    pub(crate) sharding: Arc<dyn ShardingStrategy>,
    pub(crate) tls: Option<ClientTls>,
    pub(crate) auth_token: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) max_stats_bytes: usize,
    pub(crate) keepalive_interval: Duration,
    pub(crate) shared_connections: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_leases_per_connection: usize,
    pub(crate) max_unanswered_requests: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) dial: Arc<dyn Dial>,
}

/// One server's address.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `host:port`, as errors and events name it.
    pub(crate) name: Arc<str>,
}

impl Options {
    /// The index of the key's server.
    pub(crate) fn shard(&self, key: &Key) -> Result<usize> {
        let count = self.servers.len();
        let shard = self.sharding.shard(&key.to_text(), count);
        if shard >= count {
            let fault =
                format!("answered {shard} for key {}, there are {count} servers", Quoted(&key.to_text()));
            return Err(Error::invalid("sharding_strategy", fault));
        }
        Ok(shard)
    }
}

/// How a lock is taken and kept.
#[derive(Clone, Debug)]
pub(crate) struct LeaseOptions {
    pub(crate) acquire_timeout: Duration,
    pub(crate) ttl: Option<Seconds>,
    pub(crate) terms: Terms,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) on_disconnect: OnDisconnect,
}

/// What the end of a lease's connection means to the lease; see [`Builder::on_disconnect`](crate::Builder::on_disconnect).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDisconnect {
    /// The lease is lost: the server frees what a connection held when it closes.
    #[default]
    Lost,
    /// The lease is at risk, and renewed by its token over a new connection while it lasts.
    ///
    /// Right for servers with `--auto-release-on-disconnect=false` alone. With any other, a lease
    /// is held here and free there, from when the connection ends until the renewal is refused.
    Reattach,
}

/// What a [`Builder`](crate::Builder) makes.
pub trait Target: Sized {
    /// The finished thing.
    type Output;

    #[doc(hidden)]
    fn finish(self, parts: Parts) -> Result<Self::Output>;
}

/// The checked settings on their way to a [`Target`].
#[doc(hidden)]
pub struct Parts {
    pub(crate) options: Options,
    pub(crate) lease: LeaseOptions,
}
