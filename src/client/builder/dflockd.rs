//! The settings of dflockd's servers, and of the connections to them.

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

/// Settings of dflockd. Other backends do not have them.
impl<T> Builder<T, Dflockd> {
    /// Sets the servers of the fleet, each host with its port, in the order that all clients share:
    /// the order decides which server a key lives on. A name may resolve to several addresses of one server: the
    /// client connects to them in parallel. Defaults to `127.0.0.1`, port 6388.
    pub fn servers<H: Into<String>>(mut self, servers: impl IntoIterator<Item = (H, u16)>) -> Self {
        self.backend.servers = servers.into_iter().map(|(host, port)| (host.into(), port)).collect();
        self
    }

    /// Sets the function that picks a key's server. Every client of the fleet must use the same one. Defaults
    /// to [`stable_hash_shard`].
    pub fn sharding_strategy(mut self, strategy: impl ShardingStrategy) -> Self {
        self.backend.sharding = Arc::new(strategy);
        self
    }

    /// Connects to every server over TLS. Defaults to plain TCP.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.backend.tls = Some(tls);
        self
    }

    /// Sets the token that authenticates every connection: 1 byte to 64 KiB, no line break. Without TLS, the
    /// token can be read on the network. Defaults to none.
    pub fn auth_token(mut self, token: impl Into<String>) -> Self {
        self.backend.auth_token = Some(token.into());
        self
    }

    /// Sets the timeout of connecting, TLS and authentication included; above 0. A shorter timeout of an
    /// acquire still holds. Defaults to 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.backend.connect_timeout = timeout;
        self
    }

    /// Sets the longest reply to `stats` that is read, in bytes; at least 1. A longer one is a
    /// [`Protocol`](crate::ErrorKind::Protocol) error. A key takes some 110 bytes, and twice that in memory
    /// while the reply is read. Defaults to 128 MiB, which a million keys fit into.
    pub fn max_stats_bytes(mut self, bytes: usize) -> Self {
        self.backend.max_stats_bytes = bytes;
        self
    }

    /// Sets how long a connection may be quiet before the client pings; above 0. It must be below half of the
    /// server's read timeout (23 s unless set), or the server may drop a quiet connection, and free what it
    /// holds, before the client knows. Defaults to 10 s.
    pub fn keepalive_interval(mut self, interval: Duration) -> Self {
        self.backend.keepalive_interval = interval;
        self
    }

    /// Sets the number of shared connections per server and runtime; at least 1. All tasks use them for what
    /// does not wait: tries, renewals, releases, and the leases of these tries. One carries a hundred thousand
    /// leases. With more, fewer leases are lost if one closes. Defaults to 1.
    pub fn shared_connections(mut self, connections: usize) -> Self {
        self.backend.shared_connections = connections;
        self
    }

    /// Sets the most connections per server, on all runtimes together; more than
    /// [`shared_connections`](Self::shared_connections), since the client waits for a busy key on an
    /// exclusive connection, which then carries the lease. An acquire that needs one more waits for it, up
    /// to the connect timeout, and then fails with [`Overloaded`](crate::ErrorKind::Overloaded). With too few,
    /// acquires wait for each other's keys. Defaults to 1000.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.backend.max_connections = connections;
        self
    }

    /// Sets how many leases and requests may share a connection before the client opens another one; at least
    /// 1. Defaults to no limit.
    pub fn max_leases_per_connection(mut self, leases: usize) -> Self {
        self.backend.max_leases_per_connection = leases;
        self
    }

    /// Sets the most requests in flight on one connection, at least 1, those of cancelled callers included. One
    /// more fails with [`Overloaded`](crate::ErrorKind::Overloaded), before anything of it is sent. Releases and
    /// pings have no limit. If the limit is too low, tasks that share a connection fail while the server is
    /// merely slow. Each request takes some hundred bytes until its reply. Defaults to 262,144.
    pub fn max_unanswered_requests(mut self, requests: usize) -> Self {
        self.backend.max_unanswered_requests = requests;
        self
    }

    /// Sets how long the client keeps, and pings, an idle exclusive connection; above 0. With a short timeout,
    /// acquires of busy keys connect more often. Defaults to 60 s.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.backend.idle_timeout = timeout;
        self
    }

    /// Sets how connections are opened: by a test network, or through a proxy. Defaults to
    /// [`TcpDial`], whose docs have the TCP keepalive.
    pub fn dial(mut self, dial: impl Dial) -> Self {
        self.backend.dial = Arc::new(dial);
        self
    }

    /// Sets what happens to a lease when its connection closes. Defaults to
    /// [`OnDisconnect::Lost`], which is right for servers with their default settings.
    pub fn on_disconnect(mut self, on_disconnect: OnDisconnect) -> Self {
        self.backend.on_disconnect = on_disconnect;
        self
    }
}
