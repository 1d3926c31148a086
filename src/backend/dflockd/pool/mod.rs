//! The connections to each server: shared ones, for the uncontended work of all tasks, and exclusive ones,
//! for one wait or one isolated lease. Connects, checks out, takes back and closes.

mod checkout;
mod server;

use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};

use crate::backend::dflockd::command;
use crate::backend::dflockd::conn::AsyncConn;
use crate::backend::dflockd::connect::{open_stream, within};
use crate::backend::dflockd::metrics::ConnMetrics;
use crate::backend::dflockd::mux::{ConnContext, ConnMonitor, MuxConnection, Rerouted, UnclaimedGrant};
use crate::backend::dflockd::options::{Dflockd, Options, Server};
use crate::backend::{CLOSE_TIMEOUT, Deadline, Gauges, client_closed, here};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoints::{Rule, is_broken};
use crate::lease::ReleaseCompletion;
use crate::process::Origin;
use crate::proto::{Request, StatsResult};

pub(crate) use checkout::PoolConnection;
use server::ServerPool;

pub(crate) struct Pool {
    pub(crate) options: Arc<Options>,
    metrics: Arc<ConnMetrics>,
    servers: Vec<Mutex<ServerPool>>,
    /// Per server, `true` once it has replied that it is shutting down.
    draining: Vec<Arc<AtomicBool>>,
    closed: AtomicBool,
    /// The number of releases in flight over another connection than their grant's.
    rerouted: Arc<watch::Sender<usize>>,
    origin: Origin,
}

/// A forked child neither closes what it finds here nor takes one of its locks.
impl Drop for Pool {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            mem::forget(mem::take(&mut self.servers));
            mem::forget(self.rerouted.clone());
        }
    }
}

impl Pool {
    pub(crate) fn new(options: Arc<Options>) -> Arc<Self> {
        let servers = options.servers.iter().map(|_| Mutex::new(ServerPool::new(&options))).collect();
        let draining = options.servers.iter().map(|_| Arc::default()).collect();
        Arc::new(Self {
            options,
            metrics: Arc::new(ConnMetrics::new()),
            servers,
            draining,
            closed: AtomicBool::new(false),
            rerouted: Arc::default(),
            origin: Origin::here(),
        })
    }

    /// Checks out a shared connection of this runtime, if one is open and has room at `now`. It is for
    /// requests that the server answers at once.
    pub(crate) fn try_checkout_shared(
        self: &Arc<Self>,
        shard: usize,
        now: Instant,
    ) -> Option<PoolConnection> {
        let mux = self.server(shard).least_loaded(here().ok()?, now)?;
        Some(PoolConnection::new(self, shard, mux, true))
    }

    /// Checks out a shared connection, and connects if there is none with room.
    pub(crate) async fn checkout_shared(self: &Arc<Self>, shard: usize) -> Result<PoolConnection> {
        let here = here()?;
        loop {
            self.check_open()?;
            let connecting = {
                let mut server = self.server(shard);
                match server.least_loaded(here, Instant::now()) {
                    Some(mux) => return Ok(PoolConnection::new(self, shard, mux, true)),
                    None => server.join_connect(self, shard, here),
                }
            };
            // If no caller takes a place on the connection, it may be surplus.
            let _tidy = ReleaseSurplusOnDrop { pool: self, shard, here };
            match connecting.await {
                Ok(mux) if self.server(shard).try_reserve_opened(&mux) => {
                    return Ok(PoolConnection::new(self, shard, mux, true));
                }
                Ok(_) => {}
                Err(error) => {
                    let fallback = self.server(shard).any(here);
                    return fallback.map(|mux| PoolConnection::new(self, shard, mux, true)).ok_or(error);
                }
            }
        }
    }

    /// Checks out an exclusive connection, for a request that may wait or an isolated lease: an idle one, or
    /// a new one.
    pub(crate) async fn checkout_exclusive(self: &Arc<Self>, shard: usize) -> Result<PoolConnection> {
        let here = here()?;
        self.check_open()?;
        let permit = self.exclusive_permit(shard).await?;
        let mux = self.idle_or_connect(shard, here, permit).await?;
        Ok(PoolConnection::new(self, shard, mux, false))
    }

    /// Opens the next shared connection.
    async fn open_shared(self: &Arc<Self>, shard: usize, here: runtime::Id) -> Result<MuxConnection> {
        let reserved = self.server(shard).reserved();
        let permit = match reserved {
            Some(permit) => permit,
            None => self.exclusive_permit(shard).await?,
        };
        let mux = self.idle_or_connect(shard, here, permit).await?;
        self.server(shard).share(&mux);
        Ok(mux)
    }

    async fn idle_or_connect(
        self: &Arc<Self>,
        shard: usize,
        here: runtime::Id,
        permit: OwnedSemaphorePermit,
    ) -> Result<MuxConnection> {
        let idle = self.server(shard).pop_idle(here, permit);
        match idle {
            Ok(mux) => Ok(mux),
            Err(permit) => self.open(shard, permit).await,
        }
    }

    /// Waits for the permit for one more connection, up to the connect timeout.
    async fn exclusive_permit(&self, shard: usize) -> Result<OwnedSemaphorePermit> {
        let permits = self.server(shard).exclusive_permits();
        if let Ok(permit) = permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let deadline = Instant::now() + self.options.settings.connect_timeout;
        let exhausted = || self.exhausted(shard);
        // The semaphore is never closed.
        timeout_at(deadline, permits.acquire_owned()).await.map_err(|_| exhausted())?.map_err(|_| exhausted())
    }

    fn exhausted(&self, shard: usize) -> Error {
        let (max, waited) = (self.options.settings.max_connections, self.options.settings.connect_timeout);
        let detail = format!("all {max} connections (max_connections) stayed in use for {waited:?}");
        Error::new(ErrorKind::Overloaded, detail).on_server(&self.options.servers[shard].name)
    }

    fn server(&self, shard: usize) -> MutexGuard<'_, ServerPool> {
        // Nothing panics while it is locked.
        self.servers[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(self: &Arc<Self>, shard: usize, permit: OwnedSemaphorePermit) -> Result<MuxConnection> {
        let server = &self.options.servers[shard];
        let conn = self.connect(server).await.map_err(|error| error.on_server(&server.name))?;
        let stream = conn.into_stream()?;
        tracing::debug!(server = %server.name, "connected");
        self.metrics.connected();
        self.draining[shard].store(false, Ordering::Relaxed);
        let (pool, options) = (Arc::downgrade(self), self.options.clone());
        let rerouted = self.rerouted.clone();
        let release_elsewhere = Arc::new(move |mut unclaimed: UnclaimedGrant, completion| {
            unclaimed.rerouted = Some(Rerouted::begin(&rerouted));
            // A release may outlive its client.
            let pool = pool.upgrade().filter(|pool| !pool.is_closed());
            let pool = pool.unwrap_or_else(|| Self::new(options.clone()));
            pool.release_elsewhere(shard, unclaimed, completion);
        });
        let context = ConnContext {
            server: server.name.clone(),
            keepalive: self.options.settings.keepalive_interval,
            max_unanswered: self.options.settings.max_unanswered_requests,
            draining: self.draining[shard].clone(),
            metrics: self.metrics.clone(),
            release_elsewhere,
        };
        let mux = MuxConnection::spawn(stream, context, permit);
        let is_open = self.server(shard).opened(&mux);
        if is_open { Ok(mux) } else { Err(client_closed()) }
    }

    /// Opens a connection and authenticates, within the connect timeout.
    async fn connect(&self, server: &Server) -> Result<AsyncConn> {
        let Dflockd { connect_timeout, auth_token, tls, dial, .. } = &self.options.settings;
        within(*connect_timeout, async {
            let stream = open_stream(&**dial, &server.host, server.port, tls.as_ref()).await?;
            let conn = AsyncConn::new(stream).request_timeout(Duration::MAX);
            if let Some(token) = auth_token {
                command::authenticate(&conn, token).await?;
            }
            Ok(conn)
        })
        .await
    }

    /// Releases a grant over another connection than its own.
    fn release_elsewhere(
        self: &Arc<Self>,
        shard: usize,
        unclaimed: UnclaimedGrant,
        mut completion: Option<ReleaseCompletion>,
    ) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return release_failed(
                &unclaimed,
                completion,
                Error::new(ErrorKind::ConnectionClosed, "there is no runtime"),
            );
        };
        let pool = self.clone();
        runtime.spawn(async move {
            let mut checkout = pin!(pool.checkout_shared(shard));
            let in_time = match completion.as_ref().and_then(ReleaseCompletion::deadline) {
                Some(deadline) => timeout_at(deadline, &mut checkout).await.ok(),
                None => None,
            };
            let checkout = match in_time {
                Some(checkout) => checkout,
                None => {
                    completion.iter_mut().for_each(ReleaseCompletion::time_out);
                    checkout.await
                }
            };
            match checkout {
                Ok(conn) => conn.mux().release(unclaimed, Instant::now(), completion),
                Err(error) => release_failed(&unclaimed, completion, error),
            }
        });
    }

    /// Returns what one server holds, within the request timeout.
    ///
    /// Asks over a connection that carries nothing else: the reply may be too long for any buffer, and if the
    /// server cannot write it in time, it frees what the connection holds.
    pub(crate) async fn stats(self: &Arc<Self>, shard: usize) -> Result<StatsResult> {
        here()?;
        if is_broken(Rule::StatsApart) {
            let deadline = Deadline::of_request(Instant::now(), self.options.request_timeout);
            drop(self.checkout_shared(shard).await?.mux().send_request(
                Request::Stats,
                Instant::now(),
                &deadline,
            ));
        }
        let Options { request_timeout, servers, settings } = &*self.options;
        let stats = async {
            self.check_open()?;
            let _permit = self.exclusive_permit(shard).await?;
            self.server(shard).evict_idle();
            let conn = self.connect(&servers[shard]).await?;
            let conn = conn.request_timeout(*request_timeout).max_stats_bytes(settings.max_stats_bytes);
            command::stats(&conn).await
        };
        Deadline::of_request(Instant::now(), *request_timeout).bounds("answer", stats).await
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed() { Err(client_closed()) } else { Ok(()) }
    }

    fn monitors(&self) -> Vec<ConnMonitor> {
        (0..self.servers.len()).flat_map(|shard| self.server(shard).monitors()).collect()
    }

    /// Refuses to connect from now on, at once. The future resolves when nothing is left: no connection, no
    /// caller that could bring back a grant, no release in flight.
    pub(crate) fn close(&self, deadline: Instant) -> impl Future<Output = Result<()>> + Send {
        self.closed.store(true, Ordering::Release);
        (0..self.servers.len()).for_each(|shard| self.server(shard).close());
        let monitors = self.monitors();
        async move {
            let here = here()?;
            timeout_at(deadline, self.settled(&monitors)).await.unwrap_or_else(|_| {
                let left = monitors.iter().filter(|monitor| !monitor.is_finished());
                let elsewhere = if left.clone().any(|monitor| monitor.runtime() != here) {
                    "; one closes on the runtime that opened it, once that runs"
                } else {
                    ""
                };
                let detail =
                    format!("not closed within {CLOSE_TIMEOUT:?}: {} connections{elsewhere}", left.count());
                monitors.iter().for_each(ConnMonitor::close);
                Err(Error::new(ErrorKind::Timeout, detail))
            })
        }
    }

    async fn settled(&self, monitors: &[ConnMonitor]) -> Result<()> {
        let settled = futures::future::join_all(monitors.iter().map(ConnMonitor::settled)).await;
        // The pool owns the sender.
        let _ = self.rerouted.subscribe().wait_for(|count| *count == 0).await;
        settled.into_iter().collect()
    }

    pub(crate) fn gauges(&self) -> Gauges {
        let monitors = self.monitors().into_iter().filter(ConnMonitor::is_open);
        let (connections, in_flight) =
            monitors.fold((0, 0), |(count, sum), mux| (count + 1, sum + mux.in_flight()));
        self.metrics.read(connections, in_flight)
    }
}

/// Moves a surplus connection to the idle ones when a caller stops waiting for it.
struct ReleaseSurplusOnDrop<'a> {
    pool: &'a Pool,
    shard: usize,
    here: runtime::Id,
}

impl Drop for ReleaseSurplusOnDrop<'_> {
    fn drop(&mut self) {
        self.pool.server(self.shard).release_surplus(self.here);
    }
}

/// Reports a grant that cannot be released. It stays held until it expires.
fn release_failed(unclaimed: &UnclaimedGrant, completion: Option<ReleaseCompletion>, error: Error) {
    match completion {
        Some(completion) => completion.complete(Err(error.during("release").for_key(&unclaimed.key))),
        None => {
            tracing::warn!(key = %unclaimed.key, %error, "an unclaimed grant stays held until it expires");
        }
    }
}
