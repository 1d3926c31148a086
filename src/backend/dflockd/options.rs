//! The settings of the dflockd engine: first as the caller gives them, then checked.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::dflockd::conn::DEFAULT_MAX_STATS_BYTES;
use crate::backend::dflockd::tls::ClientTls;
use crate::error::{Error, Result, is_host, quoted};
use crate::net::{Dial, TcpDial};
use crate::sharding::{DEFAULT_SERVERS, ShardingStrategy, stable_hash_shard};
use crate::types::{Key, MAX_AUTH_TOKEN_BYTES, Quoted};
use crate::validate::{check_count, check_time};

/// The maximum number of requests in flight on one connection, unless set.
const DEFAULT_MAX_UNANSWERED: usize = 1 << 18;

/// The engine of a [`Builder`](crate::Builder) that names no other: a fleet of dflockd servers, over TCP or
/// TLS. Its settings are methods of the builder.
pub struct Dflockd {
    pub(crate) servers: Vec<(String, u16)>,
    pub(crate) sharding: Arc<dyn ShardingStrategy>,
    pub(crate) tls: Option<ClientTls>,
    pub(crate) auth_token: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_stats_bytes: usize,
    pub(crate) keepalive_interval: Duration,
    pub(crate) shared_connections: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_leases_per_connection: usize,
    pub(crate) max_unanswered_requests: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) dial: Arc<dyn Dial>,
    pub(crate) on_disconnect: OnDisconnect,
}

impl Default for Dflockd {
    fn default() -> Self {
        Self {
            servers: DEFAULT_SERVERS.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect(),
            sharding: Arc::new(stable_hash_shard),
            tls: None,
            auth_token: None,
            connect_timeout: Duration::from_secs(10),
            max_stats_bytes: DEFAULT_MAX_STATS_BYTES,
            keepalive_interval: Duration::from_secs(10),
            shared_connections: 1,
            max_connections: 1000,
            max_leases_per_connection: usize::MAX,
            max_unanswered_requests: DEFAULT_MAX_UNANSWERED,
            idle_timeout: Duration::from_secs(60),
            dial: Arc::new(TcpDial::new()),
            on_disconnect: OnDisconnect::default(),
        }
    }
}

impl fmt::Debug for Dflockd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dflockd")
            .field("servers", &self.servers)
            .field("tls", &self.tls.is_some())
            .field("auth_token", &self.auth_token.as_ref().map(|_| "set"))
            .field("connect_timeout", &self.connect_timeout)
            .field("max_stats_bytes", &self.max_stats_bytes)
            .field("keepalive_interval", &self.keepalive_interval)
            .field("shared_connections", &self.shared_connections)
            .field("max_connections", &self.max_connections)
            .field("max_leases_per_connection", &self.max_leases_per_connection)
            .field("max_unanswered_requests", &self.max_unanswered_requests)
            .field("idle_timeout", &self.idle_timeout)
            .field("on_disconnect", &self.on_disconnect)
            .finish_non_exhaustive()
    }
}

/// The effect of a closed connection on its leases; see
/// [`Builder::on_disconnect`](crate::Builder::on_disconnect).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDisconnect {
    /// The lease is lost: the server frees what a connection held when it closes.
    #[default]
    Lost,
    /// The lease is at risk, and renewed by its token over a new connection until it expires.
    ///
    /// Only for servers with `--auto-release-on-disconnect=false`. With any other server, the lease counts as
    /// held here but is free there, from when the connection closes until the renewal is refused.
    Reattach,
}

/// The checked settings.
pub(crate) struct Options {
    /// The servers of the settings, with their names.
    pub(crate) servers: Vec<Server>,
    pub(crate) request_timeout: Duration,
    pub(crate) settings: Dflockd,
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
    /// Checks the settings.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::error::ErrorKind::InvalidInput), naming the setting, its fault and
    /// the limit.
    pub(crate) fn check(given: Dflockd, request_timeout: Duration) -> Result<Self> {
        if given.servers.is_empty() {
            return Err(Error::invalid("servers", "is empty, the minimum is 1"));
        }
        let mut servers = Vec::with_capacity(given.servers.len());
        for (host, port) in &given.servers {
            check_server(host, *port)?;
            let name = server_name(host, *port).into();
            servers.push(Server { host: host.clone(), port: *port, name });
        }
        if let Some(token) = &given.auth_token {
            check_auth_token(token)?;
        }
        check_time("connect_timeout", given.connect_timeout)?;
        check_count("max_stats_bytes", given.max_stats_bytes)?;
        check_time("keepalive_interval", given.keepalive_interval)?;
        check_time("idle_timeout", given.idle_timeout)?;
        check_count("shared_connections", given.shared_connections)?;
        check_count("max_leases_per_connection", given.max_leases_per_connection)?;
        check_count("max_unanswered_requests", given.max_unanswered_requests)?;
        if given.max_connections <= given.shared_connections {
            let (max, shared) = (given.max_connections, given.shared_connections);
            let fault = format!("is {max}, it must be more than shared_connections, which is {shared}");
            return Err(Error::invalid("max_connections", fault));
        }
        Ok(Self { servers, request_timeout, settings: given })
    }

    /// Returns the index of the key's server.
    pub(crate) fn shard(&self, key: &Key) -> Result<usize> {
        let count = self.servers.len();
        let shard = self.settings.sharding.shard(&key.to_text(), count);
        if shard >= count {
            let fault =
                format!("returned {shard} for key {}, there are {count} servers", Quoted(&key.to_text()));
            return Err(Error::invalid("sharding_strategy", fault));
        }
        Ok(shard)
    }
}

/// Returns `host:port`, with an IPv6 host in brackets.
pub(super) fn server_name(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

pub(super) fn check_server(host: &str, port: u16) -> Result<()> {
    if host.is_empty() {
        return Err(Error::invalid("host", "is empty"));
    }
    if !is_host(host) {
        let fault =
            format!("is {}, not a valid host name: at most 253 bytes, and 63 per label", quoted(host));
        return Err(Error::invalid("host", fault));
    }
    if host.contains(char::is_whitespace) {
        return Err(Error::invalid("host", format!("{} has whitespace", quoted(host))));
    }
    if host.contains(['[', ']']) {
        let fault = format!("{} has brackets, give the address without them", quoted(host));
        return Err(Error::invalid("host", fault));
    }
    if port == 0 {
        return Err(Error::invalid("port", "is 0, the range is 1 to 65535"));
    }
    Ok(())
}

pub(super) fn check_auth_token(token: &str) -> Result<()> {
    if token.is_empty() {
        return Err(Error::invalid("auth_token", "is empty"));
    }
    if token.contains(['\n', '\r']) {
        return Err(Error::invalid("auth_token", "has a line break"));
    }
    if token.len() > MAX_AUTH_TOKEN_BYTES {
        let fault = format!("is {} bytes long, the limit is {MAX_AUTH_TOKEN_BYTES}", token.len());
        return Err(Error::invalid("auth_token", fault));
    }
    Ok(())
}
