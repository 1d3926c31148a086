//! One builder's worth of settings, checked once in `build`. Knows of no connection.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::client::check::{
    check_auth_token, check_count, check_server, check_share, check_time, lease_seconds, server_name,
};
use crate::client::conn::{DEFAULT_MAX_STATS_BYTES, DEFAULT_REQUEST_TIMEOUT};
use crate::client::options::{LeaseOptions, OnDisconnect, Options, Parts, Server, Target};
use crate::client::retry::RetryPolicy;
use crate::client::tls::ClientTls;
use crate::error::{Error, Result};
use crate::lease::{LeaseEvent, Listener, Terms};
use crate::net::{Dial, TcpDial};
use crate::sharding::{DEFAULT_SERVERS, ShardingStrategy, stable_hash_shard};
use crate::types::Seconds;

/// How many requests may be under way on one connection, unless set.
const DEFAULT_MAX_UNANSWERED: usize = 1 << 18;

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
    given: Given,
}

/// What was set, and the defaults of what was not.
struct Given {
    servers: Vec<(String, u16)>,
    sharding: Arc<dyn ShardingStrategy>,
    tls: Option<ClientTls>,
    auth_token: Option<String>,
    connect_timeout: Duration,
    request_timeout: Duration,
    max_stats_bytes: usize,
    keepalive_interval: Duration,
    shared_connections: usize,
    max_connections: usize,
    max_leases_per_connection: usize,
    max_unanswered_requests: usize,
    idle_timeout: Duration,
    dial: Arc<dyn Dial>,
    acquire_timeout: Duration,
    lease_ttl: Option<Duration>,
    terms: Terms,
    retry: Option<RetryPolicy>,
    on_disconnect: OnDisconnect,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            servers: DEFAULT_SERVERS.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect(),
            sharding: Arc::new(stable_hash_shard),
            tls: None,
            auth_token: None,
            connect_timeout: Duration::from_secs(10),
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            max_stats_bytes: DEFAULT_MAX_STATS_BYTES,
            keepalive_interval: Duration::from_secs(10),
            shared_connections: 1,
            max_connections: 1000,
            max_leases_per_connection: usize::MAX,
            max_unanswered_requests: DEFAULT_MAX_UNANSWERED,
            idle_timeout: Duration::from_secs(60),
            dial: Arc::new(TcpDial::new()),
            acquire_timeout: Duration::from_secs(10),
            lease_ttl: None,
            terms: Terms::default(),
            retry: None,
            on_disconnect: OnDisconnect::default(),
        }
    }
}

impl<T: Target> Builder<T> {
    pub(crate) fn new(target: T) -> Self {
        Self { target, given: Given::default() }
    }

    /// The servers of the fleet, each host with its port, in the order that all clients share:
    /// the order decides which key lives where. A name may have several addresses of one server: they
    /// are tried side by side. Defaults to `127.0.0.1`, port 6388.
    pub fn servers<H: Into<String>>(mut self, servers: impl IntoIterator<Item = (H, u16)>) -> Self {
        self.given.servers = servers.into_iter().map(|(host, port)| (host.into(), port)).collect();
        self
    }

    /// Picks a key's server; every client of the fleet must answer alike. Defaults to
    /// [`stable_hash_shard`].
    pub fn sharding_strategy(mut self, strategy: impl ShardingStrategy) -> Self {
        self.given.sharding = Arc::new(strategy);
        self
    }

    /// Speaks TLS to every server. Defaults to plain TCP.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.given.tls = Some(tls);
        self
    }

    /// Authenticates every connection: 1 byte to 64 KiB, no line break. Send it over TLS alone
    /// where others can listen. Defaults to none.
    pub fn auth_token(mut self, token: impl Into<String>) -> Self {
        self.given.auth_token = Some(token.into());
        self
    }

    /// How long connecting may take, TLS and authentication included; above 0. An acquire with less
    /// time than that ends all the same when its own is up. Defaults to 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.given.connect_timeout = timeout;
        self
    }

    /// How long anything may take, connecting included, that waits for no key: `try_acquire`,
    /// `enqueue`, `stats`, and an acquire whose timeout is 0; above 0. An answer that comes later is
    /// still read, and a grant in it given back. A long table over a slow link needs more. Defaults to
    /// 5 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.given.request_timeout = timeout;
        self
    }

    /// The longest answer to `stats` that is read, in bytes; at least 1. A longer one is a
    /// [`Protocol`](crate::ErrorKind::Protocol) error. A key takes some 110 bytes, and the memory for
    /// twice as many while the answer is read. Defaults to 128 MiB, which a million keys fit into.
    pub fn max_stats_bytes(mut self, bytes: usize) -> Self {
        self.given.max_stats_bytes = bytes;
        self
    }

    /// How long a connection may be quiet before it pings; above 0. Must stay below the server's
    /// read timeout (23 s unless set), or the server drops quiet connections and frees what they
    /// hold. Defaults to 10 s.
    pub fn keepalive_interval(mut self, interval: Duration) -> Self {
        self.given.keepalive_interval = interval;
        self
    }

    /// Over how many connections per server, and per runtime, the work of all tasks goes that need not wait: tries,
    /// renewals, releases, and the leases that come of it; at least 1. One carries a hundred
    /// thousand leases. With more, fewer leases share the fate of each. Defaults to 1.
    pub fn shared_connections(mut self, connections: usize) -> Self {
        self.given.shared_connections = connections;
        self
    }

    /// How many connections per server there may be, on all runtimes together; more than
    /// [`shared_connections`](Self::shared_connections), since a busy key is waited for on a
    /// connection of its own, which then carries the lease. Whoever needs one more waits for it, up
    /// to the connect timeout, and then fails with
    /// [`Overloaded`](crate::ErrorKind::Overloaded): too few, and acquires wait for each other's
    /// keys. Defaults to 1000.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.given.max_connections = connections;
        self
    }

    /// How many leases and requests may share a connection before another one is opened; at least 1.
    /// Defaults to no limit.
    pub fn max_leases_per_connection(mut self, leases: usize) -> Self {
        self.given.max_leases_per_connection = leases;
        self
    }

    /// How many requests may wait for their answers on one connection, at least 1, those included whose
    /// callers have left. One more fails with [`Overloaded`](crate::ErrorKind::Overloaded), and nothing of
    /// it is sent. Releases and pings have no limit. With too few, tasks that share a connection fail while
    /// the server is merely slow; each takes some hundred bytes until it is answered. Defaults to 262,144.
    pub fn max_unanswered_requests(mut self, requests: usize) -> Self {
        self.given.max_unanswered_requests = requests;
        self
    }

    /// How long a connection that is not one of the shared ones is kept, and pinged, without
    /// anything to do; above 0. Short ones make acquires of busy keys dial more often. Defaults to
    /// 60 s.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.given.idle_timeout = timeout;
        self
    }

    /// Opens connections by other means than TCP: in tests, or through a proxy. Defaults to
    /// [`TcpDial`], whose docs have the TCP keepalive.
    pub fn dial(mut self, dial: impl Dial) -> Self {
        self.given.dial = Arc::new(dial);
        self
    }

    /// How long an acquire waits for the key. It ends within a second more, connecting included,
    /// whether or not the server answers: the server counts in whole seconds, rounded up. 0 is a try,
    /// which has the [request timeout](Self::request_timeout). Defaults to 10 s.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.given.acquire_timeout = timeout;
        self
    }

    /// The lease: how long the lock outlives a holder that falls silent, in whole seconds, rounded
    /// up, at least 1. Short ones renew often; long ones keep a crashed holder's key taken for
    /// long, where the server does not notice the crash. Defaults to the server's own (33 s unless
    /// set there).
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.given.lease_ttl = Some(ttl);
        self
    }

    /// The share of the remaining lease after which it is renewed, above 0 and below 1: low is
    /// careful and busy, high leaves little time for another try. Defaults to 0.5.
    pub fn renew_ratio(mut self, ratio: f64) -> Self {
        self.given.terms.pace.ratio = ratio;
        self
    }

    /// The share of each interval by which a renewal may come early at random, 0 to 1, so that
    /// many leases do not renew in step. Defaults to 0.1.
    pub fn renew_jitter(mut self, jitter: f64) -> Self {
        self.given.terms.pace.jitter = jitter;
        self
    }

    /// The share of the ttl that is left when [`Lease::at_risk`](crate::Lease::at_risk) fires, 0 to
    /// 1: more gives work more time to wind down, and more false alarms. Defaults to 0.25.
    pub fn at_risk_ratio(mut self, ratio: f64) -> Self {
        self.given.terms.pace.at_risk = ratio;
        self
    }

    /// Calls `listener` at everything that happens to a lease, for those who count. Defaults to none.
    ///
    /// It is called in order, on a thread that it has to itself, so it may block, and a panic in it is
    /// logged: no lease waits for it. Up to 65,536 events are kept for it; what comes beyond that is dropped,
    /// counted in [`Metrics::dropped_events`](crate::Metrics::dropped_events) and warned of. It is told of
    /// what happened a moment later, then: ask the lease how it stands. What is left when the client and its
    /// leases are gone is still told, but not what is left when the process ends.
    ///
    /// # Examples
    /// ```
    /// # use dflockd_client::test_util::TestServer;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> dflockd_client::Result<()> {
    /// # let server = TestServer::new();
    /// use dflockd_client::{LeaseChange, LostReason};
    /// let (tell, losses) = std::sync::mpsc::channel();
    /// let locks = server.builder().on_event(move |event| {
    ///     if let LeaseChange::Lost(reason) = event.change {
    ///         tell.send(reason).unwrap_or_default();
    ///     }
    /// }).build()?;
    /// let guard = locks.lock("account:17")?.acquire().await?;
    /// server.cut();
    /// guard.lost().await;
    /// assert_eq!(losses.recv(), Ok(LostReason::ConnectionClosed));
    /// # Ok(()) }
    /// ```
    pub fn on_event(mut self, listener: impl Fn(&LeaseEvent) + Send + Sync + 'static) -> Self {
        self.given.terms.listener = Listener::new(listener);
        self
    }

    /// Tries an acquire again, within its timeout, while the server cannot be reached or shuts
    /// down. Defaults to no retry.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.given.retry = Some(policy);
        self
    }

    /// What the end of a lease's connection means to the lease. Defaults to
    /// [`OnDisconnect::Lost`], which is right for servers with their default settings.
    pub fn on_disconnect(mut self, on_disconnect: OnDisconnect) -> Self {
        self.given.on_disconnect = on_disconnect;
        self
    }

    /// The same settings for something else to build.
    #[cfg(feature = "blocking")]
    pub(crate) fn map_target<U>(self, to: impl FnOnce(T) -> U) -> Builder<U> {
        Builder { target: to(self.target), given: self.given }
    }

    /// Checks every setting and makes the thing. Connects to nothing.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), naming the setting, its fault and the
    /// limit.
    pub fn build(self) -> Result<T::Output> {
        let Self { target, given } = self;
        if given.servers.is_empty() {
            return Err(Error::invalid("servers", "is empty, at least one is needed"));
        }
        let mut servers = Vec::with_capacity(given.servers.len());
        for (host, port) in given.servers {
            check_server(&host, port)?;
            let name = server_name(&host, port).into();
            servers.push(Server { host, port, name });
        }
        if let Some(token) = &given.auth_token {
            check_auth_token(token)?;
        }
        check_time("connect_timeout", given.connect_timeout)?;
        check_time("request_timeout", given.request_timeout)?;
        check_count("max_stats_bytes", given.max_stats_bytes)?;
        check_time("keepalive_interval", given.keepalive_interval)?;
        check_time("idle_timeout", given.idle_timeout)?;
        check_count("shared_connections", given.shared_connections)?;
        check_count("max_leases_per_connection", given.max_leases_per_connection)?;
        check_count("max_unanswered_requests", given.max_unanswered_requests)?;
        if given.max_connections <= given.shared_connections {
            let (most, shared) = (given.max_connections, given.shared_connections);
            let fault = format!("is {most}, it must be more than shared_connections, which is {shared}");
            return Err(Error::invalid("max_connections", fault));
        }
        check_share("renew_jitter", given.terms.pace.jitter)?;
        check_share("at_risk_ratio", given.terms.pace.at_risk)?;
        let ratio = given.terms.pace.ratio;
        if !(ratio > 0.0 && ratio < 1.0) {
            return Err(Error::invalid("renew_ratio", format!("is {ratio}, it must be above 0 and below 1")));
        }
        if let Some(retry) = &given.retry {
            retry.check()?;
        }
        Seconds::ceil("acquire_timeout", given.acquire_timeout)?;
        let lease = LeaseOptions {
            acquire_timeout: given.acquire_timeout,
            ttl: lease_seconds("lease_ttl", given.lease_ttl)?,
            terms: given.terms,
            retry: given.retry,
            on_disconnect: given.on_disconnect,
        };
        let options = Options {
            servers,
            sharding: given.sharding,
            tls: given.tls,
            auth_token: given.auth_token,
            connect_timeout: given.connect_timeout,
            request_timeout: given.request_timeout,
            max_stats_bytes: given.max_stats_bytes,
            keepalive_interval: given.keepalive_interval,
            shared_connections: given.shared_connections,
            max_connections: given.max_connections,
            max_leases_per_connection: given.max_leases_per_connection,
            max_unanswered_requests: given.max_unanswered_requests,
            idle_timeout: given.idle_timeout,
            dial: given.dial,
        };
        target.finish(Parts { options, lease })
    }
}

impl<T> fmt::Debug for Builder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = &self.given;
        f.debug_struct("Builder")
            .field("servers", &given.servers)
            .field("tls", &given.tls.is_some())
            .field("auth_token", &given.auth_token.as_ref().map(|_| "set"))
            .field("connect_timeout", &given.connect_timeout)
            .field("request_timeout", &given.request_timeout)
            .field("max_stats_bytes", &given.max_stats_bytes)
            .field("keepalive_interval", &given.keepalive_interval)
            .field("shared_connections", &given.shared_connections)
            .field("max_connections", &given.max_connections)
            .field("max_leases_per_connection", &given.max_leases_per_connection)
            .field("max_unanswered_requests", &given.max_unanswered_requests)
            .field("idle_timeout", &given.idle_timeout)
            .field("acquire_timeout", &given.acquire_timeout)
            .field("lease_ttl", &given.lease_ttl)
            .field("terms", &given.terms)
            .field("retry", &given.retry)
            .field("on_disconnect", &given.on_disconnect)
            .finish_non_exhaustive()
    }
}
