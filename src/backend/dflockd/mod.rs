//! The dflockd engine: leases granted by servers over the line protocol.

pub mod command;
mod conn;
mod connect;
mod held;
mod metrics;
mod mux;
mod options;
mod pool;
mod replies;
mod tls;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{BoxFuture, try_join_all};
use tokio::time::Instant;

use crate::backend::{
    AcquireRequest, Attempt, Backend, Capabilities, Deadline, Enqueue, Gauges, Grant, Unclaimed,
    client_closed,
};
use crate::error::{Error, ErrorKind, Result};
use crate::proto::{Family, Reply, Request, StatsResult};
use crate::suspend;
use crate::types::{Key, Seconds};

use held::DflockdLease;
use mux::Response;
use pool::{Pool, PoolConnection};

pub use conn::AsyncConn;
pub(crate) use options::Options;
pub use options::{Dflockd, OnDisconnect};
#[cfg(any(feature = "tls", feature = "blocking"))]
pub(crate) use tls::ClientTls;

/// The time that a server may take to close a connection after the reply that precedes the close.
const CLOSE_GRACE: Duration = Duration::from_millis(500);

/// A client's connections to its fleet of servers.
pub struct DflockdBackend {
    pool: Arc<Pool>,
}

impl DflockdBackend {
    pub(crate) fn new(options: Options) -> Self {
        Self { pool: Pool::new(Arc::new(options)) }
    }

    async fn checkout_shared(&self, shard: usize, deadline: &Deadline) -> Result<PoolConnection> {
        self.checked_out(shard, deadline, self.pool.checkout_shared(shard)).await
    }

    async fn checkout_exclusive(&self, shard: usize, deadline: &Deadline) -> Result<PoolConnection> {
        self.checked_out(shard, deadline, self.pool.checkout_exclusive(shard)).await
    }

    async fn checked_out(
        &self,
        shard: usize,
        deadline: &Deadline,
        checkout: impl Future<Output = Result<PoolConnection>>,
    ) -> Result<PoolConnection> {
        let checked_out = deadline.bounds("connection", checkout).await;
        checked_out
            .map_err(|error| if error.is_timeout() { error.on_server(self.endpoint(shard)) } else { error })
    }

    /// Sends a request whose grant may take long, and returns the grant.
    async fn wait_for_grant(
        &self,
        mut conn: PoolConnection,
        wire: Request,
        request: &AcquireRequest,
        deadline: &Deadline,
    ) -> Result<Grant<DflockdLease>> {
        let sent = suspend::now();
        let reply = conn.send(wire, sent, deadline);
        let response = conn.response(reply, deadline).await?;
        match self.grant(conn, response, request, sent, deadline) {
            Ok(grant) => Ok(grant),
            Err(refused) => Err(refused.await),
        }
    }

    /// Makes a held lease of a grant. If the reply is no grant, the error is a future that may take a moment.
    #[inline(always)]
    fn grant<'a>(
        &self,
        conn: PoolConnection,
        response: Response,
        request: &AcquireRequest,
        sent: Instant,
        deadline: &'a Deadline,
    ) -> Result<Grant<DflockdLease>, BoxFuture<'a, Error>> {
        let Some((token, ttl)) = response.grant() else {
            return Err(Box::pin(refused(conn, response, deadline)));
        };
        let fence = conn.mux().fence_of(&token);
        let lease = Unclaimed::new(DflockdLease {
            pool: self.pool.clone(),
            shard: conn.shard(),
            conn: Mutex::new(Some(conn)),
            key: request.key.clone(),
            token: token.clone(),
            family: Family::of(request.limit),
            ttl,
        });
        // The lease has the duty to release it from here on.
        response.into_reply();
        Ok(Grant { lease, token, fence, ttl: ttl.duration(), sent, received: suspend::now() })
    }
}

fn acquire_request(request: &AcquireRequest, timeout: Seconds) -> Request {
    Request::Acquire { key: request.key.clone(), timeout, limit: request.limit, lease: request.ttl }
}

fn enqueue_request(request: &AcquireRequest) -> Request {
    Request::Enqueue { key: request.key.clone(), limit: request.limit, lease: request.ttl }
}

fn wait_request(request: &AcquireRequest, timeout: Seconds) -> Request {
    Request::Wait { key: request.key.clone(), timeout, family: Family::of(request.limit) }
}

/// Returns the error of a reply that is no grant.
async fn refused(conn: PoolConnection, response: Response, deadline: &Deadline) -> Error {
    let server = conn.mux().server().clone();
    let error = replies::grant(response.into_reply()).err();
    let mut error = error.unwrap_or_else(|| Error::new(ErrorKind::Protocol, "a reply to another request"));
    // A sound request gets a bare `error` from a server that has read nothing for its read timeout, and that
    // then closes the connection. The request was lost, or sent too late.
    if error.raw() == Some("error") && conn.closed_by(deadline.at().min(Instant::now() + CLOSE_GRACE)).await {
        let detail = "the server had read nothing from it for too long";
        error = Error::new(ErrorKind::ConnectionClosed, detail);
    }
    match error.kind() {
        // The server closes the connection after this reply.
        ErrorKind::Auth | ErrorKind::Draining => conn.retire(),
        _ => drop(conn),
    }
    error.on_server(&server)
}

impl Backend for DflockdBackend {
    type Lease = DflockdLease;
    type Place = QueuePlace;

    fn capabilities(&self) -> Capabilities {
        Capabilities { semaphores: true, enqueue: true, fifo: true, fences: true }
    }

    fn endpoints(&self) -> Vec<Arc<str>> {
        self.pool.options.servers.iter().map(|server| server.name.clone()).collect()
    }

    fn locate(&self, key: &Key) -> Result<usize> {
        self.pool.options.shard(key)
    }

    fn endpoint(&self, index: usize) -> &Arc<str> {
        &self.pool.options.servers[index].name
    }

    fn confirm_after(&self) -> Duration {
        self.pool.options.settings.keepalive_interval
    }

    /// An isolated lease waits on its exclusive connection in any case.
    fn skips_try(&self, request: &AcquireRequest) -> bool {
        request.isolated
    }

    async fn try_acquire(
        &self,
        request: &AcquireRequest,
        shard: usize,
        now: Instant,
        deadline: &Deadline,
    ) -> Result<Attempt<DflockdLease>> {
        let (mut conn, now) = if request.isolated {
            (Box::pin(self.checkout_exclusive(shard, deadline)).await?, suspend::now())
        } else if let Some(conn) = self.pool.try_checkout_shared(shard, now) {
            (conn, now)
        } else {
            (Box::pin(self.checkout_shared(shard, deadline)).await?, suspend::now())
        };
        let reply = conn.send(acquire_request(request, Seconds::ZERO), now, deadline);
        let response = conn.response(reply, deadline).await?;
        let refused = match self.grant(conn, response, request, now, deadline) {
            Ok(grant) => return Ok(Attempt::Acquired(grant)),
            Err(refused) => refused,
        };
        let error = refused.await;
        if error.is_busy() { Ok(Attempt::Busy(error)) } else { Err(error) }
    }

    async fn acquire(
        &self,
        request: &AcquireRequest,
        shard: usize,
        deadline: &Deadline,
    ) -> Result<Grant<DflockdLease>> {
        let conn = self.checkout_exclusive(shard, deadline).await?;
        let left = deadline.wait_left(Instant::now())?;
        self.wait_for_grant(conn, acquire_request(request, left), request, deadline).await
    }

    async fn enqueue(
        &self,
        request: &AcquireRequest,
        shard: usize,
        deadline: &Deadline,
    ) -> Result<Enqueue<Self>> {
        let mut conn = self.checkout_exclusive(shard, deadline).await?;
        let sent = suspend::now();
        let reply = conn.send(enqueue_request(request), sent, deadline);
        let response = conn.response(reply, deadline).await?;
        if *response.reply() == Reply::Queued {
            // A wait of 0 s ends the registration. Its reply is `timeout`, or a grant that came meanwhile.
            conn.mux().queue(wait_request(request, Seconds::ZERO));
            return Ok(Enqueue::Queued(QueuePlace(Some(conn))));
        }
        match self.grant(conn, response, request, sent, deadline) {
            Ok(grant) => Ok(Enqueue::Acquired(grant)),
            Err(refused) => Err(refused.await),
        }
    }

    async fn wait(
        &self,
        mut place: QueuePlace,
        request: &AcquireRequest,
        timeout: Seconds,
        deadline: &Deadline,
    ) -> Result<Grant<DflockdLease>> {
        let conn = place.0.take().filter(|conn| conn.mux().unqueue()).ok_or_else(client_closed)?;
        self.wait_for_grant(conn, wait_request(request, timeout), request, deadline).await
    }

    async fn stats(&self) -> Result<Vec<StatsResult>> {
        let servers = self.pool.options.servers.iter().enumerate();
        let requests = servers.map(|(shard, server)| async move {
            let stats = self.pool.stats(shard).await;
            stats.map_err(|error| error.during("stats").on_server(&server.name))
        });
        try_join_all(requests).await
    }

    fn gauges(&self) -> Gauges {
        self.pool.gauges()
    }

    fn close(&self, deadline: Instant) -> impl Future<Output = Result<()>> + Send {
        self.pool.close(deadline)
    }
}

/// A place in a key's wait queue, bound to its connection.
pub(crate) struct QueuePlace(Option<PoolConnection>);

impl Drop for QueuePlace {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            if !conn.mux().is_ours() {
                return std::mem::forget(conn);
            }
            conn.mux().leave_queue();
        }
    }
}
