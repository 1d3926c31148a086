//! One builder's worth of settings, checked once in `build`. Knows of no connection.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::client::check::{
    check_auth_token, check_count, check_server, check_share, check_time, lease_seconds, server_name,
};
use crate::client::retry::RetryPolicy;
use crate::client::tls::ClientTls;
use crate::error::{Error, Result};
use crate::lease::{LeaseEvent, Listener, Terms};
use crate::net::{Dial, TcpDial};
use crate::sharding::{DEFAULT_SERVERS, ShardingStrategy, stable_hash_shard};
use crate::types::{Key, Seconds};

/// Where the servers are and how to reach them.
pub(crate) struct Options {
    pub(crate) servers: Vec<Server>,
    sharding: Arc<dyn ShardingStrategy>,
    pub(crate) tls: Option<ClientTls>,
    pub(crate) auth_token: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) keepalive_interval: Duration,
    pub(crate) shared_connections: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_leases_per_connection: usize,
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
            let fault = format!("answered {shard} for key {:?}, there are {count} servers", key.to_text());
            return Err(Error::invalid("sharding_strategy", fault));
        }
        Ok(shard)
    }
}

/// How a lock is taken and kept.
#[derive(Clone, Debug)]
pub(crate) struct LeaseOptions {
    pub(crate) acquire_timeout: Seconds,
    pub(crate) ttl: Option<Seconds>,
    pub(crate) terms: Terms,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) on_disconnect: OnDisconnect,
}

/// What the end of a lease's connection means to the lease; see [`Builder::on_disconnect`].
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

/// What a [`Builder`] makes.
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

/// The settings of a client, a lock or a semaphore. Nothing is checked, and nothing connects,
/// before [`build`](Self::build).
///
/// ```
/// use std::time::Duration;
/// use dflockd_client::{AsyncDistributedLock, ErrorKind};
/// let lock = AsyncDistributedLock::builder("deploy-job")
///     .servers([("10.0.0.1", 6388), ("10.0.0.2", 6388)])
///     .acquire_timeout(Duration::from_secs(30))
///     .lease_ttl(Duration::from_secs(60))
///     .build()?;
/// let error = AsyncDistributedLock::builder("two words").build().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// # Ok::<(), dflockd_client::Error>(())
/// ```
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<T> {
    target: T,
    servers: Vec<(String, u16)>,
    sharding: Arc<dyn ShardingStrategy>,
    tls: Option<ClientTls>,
    auth_token: Option<String>,
    connect_timeout: Duration,
    keepalive_interval: Duration,
    shared_connections: usize,
    max_connections: usize,
    max_leases_per_connection: usize,
    idle_timeout: Duration,
    dial: Arc<dyn Dial>,
    acquire_timeout: Duration,
    lease_ttl: Option<Duration>,
    terms: Terms,
    retry: Option<RetryPolicy>,
    on_disconnect: OnDisconnect,
}

impl<T: Target> Builder<T> {
    pub(crate) fn new(target: T) -> Self {
        Self {
            target,
            servers: DEFAULT_SERVERS.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect(),
            sharding: Arc::new(stable_hash_shard),
            tls: None,
            auth_token: None,
            connect_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(10),
            shared_connections: 1,
            max_connections: 1000,
            max_leases_per_connection: usize::MAX,
            idle_timeout: Duration::from_secs(60),
            dial: Arc::new(TcpDial),
            acquire_timeout: Duration::from_secs(10),
            lease_ttl: None,
            terms: Terms::default(),
            retry: None,
            on_disconnect: OnDisconnect::default(),
        }
    }

    /// The servers of the fleet, each host with its port, in the order that all clients share:
    /// the order decides which key lives where. Defaults to `127.0.0.1`, port 6388.
    pub fn servers<H: Into<String>>(mut self, servers: impl IntoIterator<Item = (H, u16)>) -> Self {
        self.servers = servers.into_iter().map(|(host, port)| (host.into(), port)).collect();
        self
    }

    /// Picks a key's server; every client of the fleet must answer alike. Defaults to
    /// [`stable_hash_shard`].
    pub fn sharding_strategy(mut self, strategy: impl ShardingStrategy) -> Self {
        self.sharding = Arc::new(strategy);
        self
    }

    /// Speaks TLS to every server. Defaults to plain TCP.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Authenticates every connection: 1 byte to 64 KiB, no line break. Send it over TLS alone
    /// where others can listen. Defaults to none.
    pub fn auth_token(mut self, token: impl Into<String>) -> Self {
        self.auth_token = Some(token.into());
        self
    }

    /// How long connecting may take, TLS and authentication included; above 0. Defaults to 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a connection may be quiet before it pings; above 0. Must stay below the server's
    /// read timeout (23 s unless set), or the server drops quiet connections and frees what they
    /// hold. Defaults to 10 s.
    pub fn keepalive_interval(mut self, interval: Duration) -> Self {
        self.keepalive_interval = interval;
        self
    }

    /// Over how many connections per server the work of all tasks goes that need not wait: tries,
    /// renewals, releases, and the leases that come of it; at least 1. One carries a hundred
    /// thousand leases. With more, fewer leases share the fate of each. Defaults to 1.
    pub fn shared_connections(mut self, connections: usize) -> Self {
        self.shared_connections = connections;
        self
    }

    /// How many connections per server there may be; more than
    /// [`shared_connections`](Self::shared_connections), since a busy key is waited for on a
    /// connection of its own, which then carries the lease. Whoever needs one more waits for it, up
    /// to the connect timeout, and then fails with
    /// [`Overloaded`](crate::ErrorKind::Overloaded): too few, and acquires wait for each other's
    /// keys. Defaults to 1000.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// How many leases and requests may share a connection before another one is opened; at least 1.
    /// Defaults to no limit.
    pub fn max_leases_per_connection(mut self, leases: usize) -> Self {
        self.max_leases_per_connection = leases;
        self
    }

    /// How long a connection that is not one of the shared ones is kept, and pinged, without
    /// anything to do; above 0. Short ones make acquires of busy keys dial more often. Defaults to
    /// 60 s.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Opens connections by other means than TCP: in tests, or through a proxy. Defaults to
    /// [`TcpDial`].
    pub fn dial(mut self, dial: impl Dial) -> Self {
        self.dial = Arc::new(dial);
        self
    }

    /// How long an acquire waits in the queue, in whole seconds, rounded up; 0 is a try. Defaults
    /// to 10 s.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// The lease: how long the lock outlives a holder that falls silent, in whole seconds, rounded
    /// up, at least 1. Short ones renew often; long ones keep a crashed holder's key taken for
    /// long, where the server does not notice the crash. Defaults to the server's own (33 s unless
    /// set there).
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.lease_ttl = Some(ttl);
        self
    }

    /// The share of the remaining lease after which it is renewed, above 0 and below 1: low is
    /// careful and busy, high leaves little time for another try. Defaults to 0.5.
    pub fn renew_ratio(mut self, ratio: f64) -> Self {
        self.terms.pace.ratio = ratio;
        self
    }

    /// The share of each interval by which a renewal may come early at random, 0 to 1, so that
    /// many leases do not renew in step. Defaults to 0.1.
    pub fn renew_jitter(mut self, jitter: f64) -> Self {
        self.terms.pace.jitter = jitter;
        self
    }

    /// The share of the ttl that is left when [`Lease::at_risk`](crate::Lease::at_risk) fires, 0 to
    /// 1: more gives work more time to wind down, and more false alarms. Defaults to 0.25.
    pub fn at_risk_ratio(mut self, ratio: f64) -> Self {
        self.terms.pace.at_risk = ratio;
        self
    }

    /// Calls `listener` at everything that happens to a lease, for those who count. It is called
    /// on the task that causes the event, so it must not block. Defaults to none.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let server = TestServer::new();
    /// use dflockd_client::LeaseChange;
    /// use std::sync::{Arc, atomic::{AtomicUsize, Ordering::Relaxed}};
    /// let losses = Arc::new(AtomicUsize::new(0));
    /// let counted = losses.clone();
    /// let locks = server.builder().on_event(move |event| {
    ///     if let LeaseChange::Lost(_) = event.change {
    ///         counted.fetch_add(1, Relaxed);
    ///     }
    /// }).build()?;
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// server.cut();
    /// guard.lost().await;
    /// assert_eq!(losses.load(Relaxed), 1);
    /// # Ok(()) }
    /// ```
    pub fn on_event(mut self, listener: impl Fn(&LeaseEvent) + Send + Sync + 'static) -> Self {
        self.terms.listener = Listener::new(listener);
        self
    }

    /// Tries an acquire again, within its timeout, while the server cannot be reached or shuts
    /// down. Defaults to no retry.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// What the end of a lease's connection means to the lease. Defaults to
    /// [`OnDisconnect::Lost`], which is right for servers with their default settings.
    pub fn on_disconnect(mut self, on_disconnect: OnDisconnect) -> Self {
        self.on_disconnect = on_disconnect;
        self
    }

    /// The same settings for something else to build.
    #[cfg(feature = "blocking")]
    pub(crate) fn map_target<U>(self, to: impl FnOnce(T) -> U) -> Builder<U> {
        Builder {
            target: to(self.target),
            servers: self.servers,
            sharding: self.sharding,
            tls: self.tls,
            auth_token: self.auth_token,
            connect_timeout: self.connect_timeout,
            keepalive_interval: self.keepalive_interval,
            shared_connections: self.shared_connections,
            max_connections: self.max_connections,
            max_leases_per_connection: self.max_leases_per_connection,
            idle_timeout: self.idle_timeout,
            dial: self.dial,
            acquire_timeout: self.acquire_timeout,
            lease_ttl: self.lease_ttl,
            terms: self.terms,
            retry: self.retry,
            on_disconnect: self.on_disconnect,
        }
    }

    /// Checks every setting and makes the thing. Connects to nothing.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), naming the setting, its fault and the
    /// limit.
    pub fn build(self) -> Result<T::Output> {
        if self.servers.is_empty() {
            return Err(Error::invalid("servers", "is empty, at least one is needed"));
        }
        let mut servers = Vec::with_capacity(self.servers.len());
        for (host, port) in self.servers {
            check_server(&host, port)?;
            let name = server_name(&host, port).into();
            servers.push(Server { host, port, name });
        }
        if let Some(token) = &self.auth_token {
            check_auth_token(token)?;
        }
        check_time("connect_timeout", self.connect_timeout)?;
        check_time("keepalive_interval", self.keepalive_interval)?;
        check_time("idle_timeout", self.idle_timeout)?;
        check_count("shared_connections", self.shared_connections)?;
        check_count("max_leases_per_connection", self.max_leases_per_connection)?;
        if self.max_connections <= self.shared_connections {
            let (most, shared) = (self.max_connections, self.shared_connections);
            let fault = format!("is {most}, it must be more than shared_connections, which is {shared}");
            return Err(Error::invalid("max_connections", fault));
        }
        check_share("renew_jitter", self.terms.pace.jitter)?;
        check_share("at_risk_ratio", self.terms.pace.at_risk)?;
        let ratio = self.terms.pace.ratio;
        if !(ratio > 0.0 && ratio < 1.0) {
            return Err(Error::invalid("renew_ratio", format!("is {ratio}, it must be above 0 and below 1")));
        }
        if let Some(retry) = &self.retry {
            retry.check()?;
        }
        let lease = LeaseOptions {
            acquire_timeout: Seconds::ceil("acquire_timeout", self.acquire_timeout)?,
            ttl: lease_seconds("lease_ttl", self.lease_ttl)?,
            terms: self.terms,
            retry: self.retry,
            on_disconnect: self.on_disconnect,
        };
        let options = Options {
            servers,
            sharding: self.sharding,
            tls: self.tls,
            auth_token: self.auth_token,
            connect_timeout: self.connect_timeout,
            keepalive_interval: self.keepalive_interval,
            shared_connections: self.shared_connections,
            max_connections: self.max_connections,
            max_leases_per_connection: self.max_leases_per_connection,
            idle_timeout: self.idle_timeout,
            dial: self.dial,
        };
        self.target.finish(Parts { options, lease })
    }
}

impl<T> fmt::Debug for Builder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("servers", &self.servers)
            .field("tls", &self.tls.is_some())
            .field("auth_token", &self.auth_token.as_ref().map(|_| "set"))
            .field("connect_timeout", &self.connect_timeout)
            .field("keepalive_interval", &self.keepalive_interval)
            .field("shared_connections", &self.shared_connections)
            .field("max_connections", &self.max_connections)
            .field("max_leases_per_connection", &self.max_leases_per_connection)
            .field("idle_timeout", &self.idle_timeout)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("lease_ttl", &self.lease_ttl)
            .field("terms", &self.terms)
            .field("retry", &self.retry)
            .field("on_disconnect", &self.on_disconnect)
            .finish_non_exhaustive()
    }
}
