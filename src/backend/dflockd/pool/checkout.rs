//! A connection that is checked out of the pool, for one request or one lease.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, timeout_at};

use crate::backend::Deadline;
use crate::backend::dflockd::mux::{MuxConnection, Response, ResponseFuture, TrySendError};
use crate::backend::dflockd::pool::Pool;
use crate::error::Result;
use crate::proto::Request;

/// The maximum number of times that an unsent request is made again on another connection.
const RESENDS: usize = 3;

/// One user's place on a connection, shared or exclusive. Once this drops, it holds nothing there and waits
/// for nothing.
pub(crate) struct PoolConnection {
    pool: Arc<Pool>,
    shard: usize,
    mux: MuxConnection,
    shared: bool,
}

impl PoolConnection {
    pub(super) fn new(pool: &Arc<Pool>, shard: usize, mux: MuxConnection, shared: bool) -> Self {
        Self { pool: pool.clone(), shard, mux, shared }
    }

    pub(crate) fn mux(&self) -> &MuxConnection {
        &self.mux
    }

    pub(crate) fn shard(&self) -> usize {
        self.shard
    }

    /// Sends a request at `now`.
    pub(crate) fn send(&self, request: Request, now: Instant, deadline: &Deadline) -> ResponseFuture {
        self.mux.send_request(request, now, deadline)
    }

    /// Waits for the response to a request sent here. If the request could not be sent, it may go by another
    /// connection.
    ///
    /// If the future is dropped, or fails, an exclusive connection is abandoned, and with it a place in a
    /// wait queue. On a shared connection the driver reads the reply all the same, and releases a grant in
    /// it.
    pub(crate) async fn response(
        &mut self,
        mut reply: ResponseFuture,
        deadline: &Deadline,
    ) -> Result<Response> {
        let failure = match self.wait(&mut reply).await {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        Box::pin(deadline.bounds("reply", self.resend(failure, deadline))).await
    }

    async fn wait(&self, reply: &mut ResponseFuture) -> Result<Response, TrySendError> {
        let mut guard = AbandonOnDrop((!self.shared).then_some(&self.mux));
        let response = reply.await?;
        guard.0 = None;
        Ok(response)
    }

    /// Makes an unsent request again on another connection. A `wait` is bound to the connection that
    /// enqueued.
    async fn resend(&mut self, mut failure: TrySendError, deadline: &Deadline) -> Result<Response> {
        for _ in 0..RESENDS {
            let may_move = |request: &mut Box<Request>| !matches!(**request, Request::Wait { .. });
            let Some(request) = failure.request.take_if(may_move).filter(|_| self.mux.is_closed()) else {
                break;
            };
            tracing::debug!(server = %self.mux.server(), error = %failure.error, "replacing a dead connection");
            *self = self.replacement().await?;
            let mut reply = self.send(*request, Instant::now(), deadline);
            match self.wait(&mut reply).await {
                Ok(response) => return Ok(response),
                Err(next) => failure = next,
            }
        }
        Err(failure.error.on_server(self.mux.server()))
    }

    /// Checks out another connection, shared or exclusive like this one.
    async fn replacement(&self) -> Result<Self> {
        if self.shared {
            self.pool.checkout_shared(self.shard).await
        } else {
            self.pool.checkout_exclusive(self.shard).await
        }
    }

    /// Returns `true` if the connection closes by then.
    pub(crate) async fn closed_by(&self, until: Instant) -> bool {
        timeout_at(until, self.mux.closed()).await.is_ok()
    }

    /// Gives the connection up, as the server may hold something by it that no request will release. A shared
    /// connection stays open: its other users do not mind. The next exclusive user would.
    pub(crate) fn discard(self) {
        if !self.shared {
            self.mux.close();
        }
    }

    /// Takes the connection out of use for new requests. Requests in flight and leases stay on it.
    pub(crate) fn retire(self) {
        self.pool.server(self.shard).retire(&self.mux);
        self.discard();
    }
}

impl Drop for PoolConnection {
    fn drop(&mut self) {
        let mux = &self.mux;
        if !self.shared {
            self.pool.server(self.shard).push_idle(mux.clone());
        } else if mux.users().fetch_sub(1, Ordering::Relaxed) == 1 {
            self.pool.server(self.shard).release_surplus(mux.runtime());
        }
    }
}

/// Abandons an exclusive connection, unless its request is answered before this drops.
struct AbandonOnDrop<'a>(Option<&'a MuxConnection>);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(mux) = self.0 {
            mux.abandon();
        }
    }
}
