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

use held::ServerLease;
use mux::Answer;
use pool::{Berth, Pool};

pub use conn::AsyncConn;
pub(crate) use options::Options;
pub use options::{Dflockd, OnDisconnect};
#[cfg(any(feature = "tls", feature = "blocking"))]
pub(crate) use tls::ClientTls;

/// How long a connection may take to close after the server said so.
const CLOSE_GRACE: Duration = Duration::from_millis(500);

/// A client's connections to its fleet of servers.
pub struct DflockdBackend {
    pool: Arc<Pool>,
}

impl DflockdBackend {
    pub(crate) fn new(options: Options) -> Self {
        Self { pool: Pool::new(Arc::new(options)) }
    }

    async fn board(&self, shard: usize, deadline: &Deadline) -> Result<Berth> {
        self.boarded(shard, deadline, self.pool.board(shard)).await
    }

    async fn board_alone(&self, shard: usize, deadline: &Deadline) -> Result<Berth> {
        self.boarded(shard, deadline, self.pool.board_alone(shard)).await
    }

    async fn boarded(
        &self,
        shard: usize,
        deadline: &Deadline,
        boarding: impl Future<Output = Result<Berth>>,
    ) -> Result<Berth> {
        let boarded = deadline.bounds("connection", boarding).await;
        boarded
            .map_err(|error| if error.is_timeout() { error.on_server(self.endpoint(shard)) } else { error })
    }

    /// Sends a request that may be granted late, and returns its grant.
    async fn wait_for_grant(
        &self,
        mut berth: Berth,
        wire: Request,
        request: &AcquireRequest,
        deadline: &Deadline,
    ) -> Result<Grant<ServerLease>> {
        let sent = suspend::now();
        let reply = berth.ask(wire, sent, deadline);
        let answer = berth.answer(reply, deadline).await?;
        match self.grant(berth, answer, request, sent, deadline) {
            Ok(grant) => Ok(grant),
            Err(refused) => Err(refused.await),
        }
    }

    /// Makes a held lease of a grant. The error of a refusal may take a moment to tell.
    fn grant<'a>(
        &self,
        berth: Berth,
        answer: Answer,
        request: &AcquireRequest,
        sent: Instant,
        deadline: &'a Deadline,
    ) -> Result<Grant<ServerLease>, BoxFuture<'a, Error>> {
        let Some((token, ttl)) = answer.grant() else {
            return Err(Box::pin(refused(berth, answer, deadline)));
        };
        let fence = berth.session().fence_of(&token);
        let lease = Unclaimed::new(ServerLease {
            pool: self.pool.clone(),
            shard: berth.shard(),
            berth: Mutex::new(Some(berth)),
            key: request.key.clone(),
            token: token.clone(),
            family: Family::of(request.limit),
            ttl,
        });
        // The duty to release it has moved.
        answer.claim();
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

/// The error of a reply that is no grant.
async fn refused(berth: Berth, answer: Answer, deadline: &Deadline) -> Error {
    let server = berth.session().server().clone();
    let error = replies::grant(answer.claim()).err();
    let mut error = error.unwrap_or_else(|| Error::new(ErrorKind::Protocol, "a reply to another request"));
    // A sound request gets a bare `error` from a server that had read nothing for too long, and
    // closes: the request was lost, or crossed that.
    if error.raw() == Some("error") && berth.ends_by(deadline.at().min(Instant::now() + CLOSE_GRACE)).await {
        let detail = "the server had read nothing from it for too long";
        error = Error::new(ErrorKind::ConnectionClosed, detail);
    }
    match error.kind() {
        // The server closes a connection to which it says this.
        ErrorKind::Auth | ErrorKind::Draining => berth.retire(),
        _ => drop(berth),
    }
    error.on_server(&server)
}

impl Backend for DflockdBackend {
    type Lease = ServerLease;
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
        self.pool.options.keepalive_interval
    }

    /// An isolated lease waits on its own connection in any case.
    fn skips_try(&self, request: &AcquireRequest) -> bool {
        request.isolated
    }

    async fn try_acquire(
        &self,
        request: &AcquireRequest,
        shard: usize,
        now: Instant,
        deadline: &Deadline,
    ) -> Result<Attempt<ServerLease>> {
        let (mut berth, now) = if request.isolated {
            (Box::pin(self.board_alone(shard, deadline)).await?, suspend::now())
        } else if let Some(berth) = self.pool.board_open(shard, now) {
            (berth, now)
        } else {
            (Box::pin(self.board(shard, deadline)).await?, suspend::now())
        };
        let reply = berth.ask(acquire_request(request, Seconds::ZERO), now, deadline);
        let answer = berth.answer(reply, deadline).await?;
        let refused = match self.grant(berth, answer, request, now, deadline) {
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
    ) -> Result<Grant<ServerLease>> {
        let berth = self.board_alone(shard, deadline).await?;
        let left = deadline.wait_left(Instant::now())?;
        self.wait_for_grant(berth, acquire_request(request, left), request, deadline).await
    }

    async fn enqueue(
        &self,
        request: &AcquireRequest,
        shard: usize,
        deadline: &Deadline,
    ) -> Result<Enqueue<Self>> {
        let mut berth = self.board_alone(shard, deadline).await?;
        let sent = suspend::now();
        let reply = berth.ask(enqueue_request(request), sent, deadline);
        let answer = berth.answer(reply, deadline).await?;
        if *answer.reply() == Reply::Queued {
            // A wait of no time ends the registration: it answers `timeout`, or a grant that came meanwhile.
            berth.session().queue(wait_request(request, Seconds::ZERO));
            return Ok(Enqueue::Queued(QueuePlace(Some(berth))));
        }
        match self.grant(berth, answer, request, sent, deadline) {
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
    ) -> Result<Grant<ServerLease>> {
        let berth = place.0.take().filter(|berth| berth.session().unqueue()).ok_or_else(client_closed)?;
        self.wait_for_grant(berth, wait_request(request, timeout), request, deadline).await
    }

    async fn stats(&self) -> Result<Vec<StatsResult>> {
        let servers = self.pool.options.servers.iter().enumerate();
        let asking = servers.map(|(shard, server)| async move {
            let stats = self.pool.stats(shard).await;
            stats.map_err(|error| error.during("stats").on_server(&server.name))
        });
        try_join_all(asking).await
    }

    fn gauges(&self) -> Gauges {
        self.pool.gauges()
    }

    fn close(&self, deadline: Instant) -> impl Future<Output = Result<()>> + Send {
        self.pool.close(deadline)
    }
}

/// A place in a key's wait queue, which its connection has.
pub(crate) struct QueuePlace(Option<Berth>);

impl Drop for QueuePlace {
    fn drop(&mut self) {
        if let Some(berth) = self.0.take() {
            if !berth.session().is_ours() {
                return std::mem::forget(berth);
            }
            berth.session().leave_queue();
        }
    }
}
