//! The settings of dflockd's servers and of the connections to them.

use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "tls")]
use crate::backend::dflockd::ClientTls;
use crate::backend::dflockd::{Dflockd, OnDisconnect};
use crate::client::builder::Builder;
use crate::net::Dial;
#[cfg(doc)]
use crate::net::TcpDial;
use crate::sharding::ShardingStrategy;
#[cfg(doc)]
use crate::sharding::stable_hash_shard;

/// These settings are dflockd's alone.
impl<T> Builder<T, Dflockd> {
    /// The servers of the fleet, each host with its port, in the order that all clients share:
    /// the order decides which key lives where. A name may have several addresses of one server: they
    /// are tried side by side. Defaults to `127.0.0.1`, port 6388.
    pub fn servers<H: Into<String>>(mut self, servers: impl IntoIterator<Item = (H, u16)>) -> Self {
        self.backend.servers = servers.into_iter().map(|(host, port)| (host.into(), port)).collect();
        self
    }

    /// Picks a key's server; every client of the fleet must answer alike. Defaults to
    /// [`stable_hash_shard`].
    pub fn sharding_strategy(mut self, strategy: impl ShardingStrategy) -> Self {
        self.backend.sharding = Arc::new(strategy);
        self
    }

    /// Speaks TLS to every server. Defaults to plain TCP.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.backend.tls = Some(tls);
        self
    }

    /// Authenticates every connection: 1 byte to 64 KiB, no line break. Send it over TLS alone
    /// where others can listen. Defaults to none.
    pub fn auth_token(mut self, token: impl Into<String>) -> Self {
        self.backend.auth_token = Some(token.into());
        self
    }

    /// How long connecting may take, TLS and authentication included; above 0. An acquire with less
    /// time than that ends all the same when its own is up. Defaults to 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.backend.connect_timeout = timeout;
        self
    }

    /// The longest answer to `stats` that is read, in bytes; at least 1. A longer one is a
    /// [`Protocol`](crate::ErrorKind::Protocol) error. A key takes some 110 bytes, and the memory for
    /// twice as many while the answer is read. Defaults to 128 MiB, which a million keys fit into.
    pub fn max_stats_bytes(mut self, bytes: usize) -> Self {
        self.backend.max_stats_bytes = bytes;
        self
    }

    /// How long a connection may be quiet before it pings; above 0. Must stay below the server's
    /// read timeout (23 s unless set), or the server drops quiet connections and frees what they
    /// hold. Defaults to 10 s.
    pub fn keepalive_interval(mut self, interval: Duration) -> Self {
        self.backend.keepalive_interval = interval;
        self
    }

    /// Over how many connections per server, and per runtime, the work of all tasks goes that need not wait: tries,
    /// renewals, releases, and the leases that come of it; at least 1. One carries a hundred
    /// thousand leases. With more, fewer leases share the fate of each. Defaults to 1.
    pub fn shared_connections(mut self, connections: usize) -> Self {
        self.backend.shared_connections = connections;
        self
    }

    /// How many connections per server there may be, on all runtimes together; more than
    /// [`shared_connections`](Self::shared_connections), since a busy key is waited for on a
    /// connection of its own, which then carries the lease. Whoever needs one more waits for it, up
    /// to the connect timeout, and then fails with
    /// [`Overloaded`](crate::ErrorKind::Overloaded): too few, and acquires wait for each other's
    /// keys. Defaults to 1000.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.backend.max_connections = connections;
        self
    }

    /// How many leases and requests may share a connection before another one is opened; at least 1.
    /// Defaults to no limit.
    pub fn max_leases_per_connection(mut self, leases: usize) -> Self {
        self.backend.max_leases_per_connection = leases;
        self
    }

    /// How many requests may wait for their answers on one connection, at least 1, those included whose
    /// callers have left. One more fails with [`Overloaded`](crate::ErrorKind::Overloaded), and nothing of
    /// it is sent. Releases and pings have no limit. With too few, tasks that share a connection fail while
    /// the server is merely slow; each takes some hundred bytes until it is answered. Defaults to 262,144.
    pub fn max_unanswered_requests(mut self, requests: usize) -> Self {
        self.backend.max_unanswered_requests = requests;
        self
    }

    /// How long a connection that is not one of the shared ones is kept, and pinged, without
    /// anything to do; above 0. Short ones make acquires of busy keys dial more often. Defaults to
    /// 60 s.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.backend.idle_timeout = timeout;
        self
    }

    /// Opens connections by other means than TCP: in tests, or through a proxy. Defaults to
    /// [`TcpDial`], whose docs have the TCP keepalive.
    pub fn dial(mut self, dial: impl Dial) -> Self {
        self.backend.dial = Arc::new(dial);
        self
    }

    /// What the end of a lease's connection means to the lease. Defaults to
    /// [`OnDisconnect::Lost`], which is right for servers with their default settings.
    pub fn on_disconnect(mut self, on_disconnect: OnDisconnect) -> Self {
        self.backend.on_disconnect = on_disconnect;
        self
    }
}
