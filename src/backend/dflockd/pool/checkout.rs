//! A place on a connection: what a request or a lease has of it, given back on drop.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, timeout_at};

use crate::backend::Deadline;
use crate::backend::dflockd::mux::{MuxConnection, Response, ResponseFuture, TrySendError};
use crate::backend::dflockd::pool::Pool;
use crate::error::Result;
use crate::proto::Request;

/// How often a request that was not sent is made next on another connection.
const RESENDS: usize = 3;

/// One user's place on a connection, shared with others or not. Dropped, nothing is held there and
/// nothing waits.
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

    /// Sends a request, at `now`.
    pub(crate) fn send(&self, request: Request, now: Instant, deadline: &Deadline) -> ResponseFuture {
        self.mux.send_request(request, now, deadline)
    }

    /// Waits for the response to what was asked here. A request that could not be sent may go by another
    /// connection.
    ///
    /// Dropped, or without an response, it gives up a connection of its own, and with it the place in a
    /// queue. On a shared one the request is answered all the same, and a grant in it given back.
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

    /// A `wait` is bound to the connection that queued, any other request that was not sent is made
    /// next elsewhere.
    async fn resend(&mut self, mut failure: TrySendError, deadline: &Deadline) -> Result<Response> {
        for _ in 0..RESENDS {
            let may_move = |request: &mut Box<Request>| !matches!(**request, Request::Wait { .. });
            let Some(request) = failure.request.take_if(may_move).filter(|_| self.mux.is_closed()) else {
                break;
            };
            tracing::debug!(server = %self.mux.server(), error = %failure.error, "a dead connection is replaced");
            *self = self.replacement().await?;
            let mut reply = self.send(*request, Instant::now(), deadline);
            match self.wait(&mut reply).await {
                Ok(response) => return Ok(response),
                Err(next) => failure = next,
            }
        }
        Err(failure.error.on_server(self.mux.server()))
    }

    /// A place of the same kind on another connection.
    async fn replacement(&self) -> Result<Self> {
        if self.shared {
            self.pool.checkout_shared(self.shard).await
        } else {
            self.pool.checkout_exclusive(self.shard).await
        }
    }

    /// Whether the connection has ended by then.
    pub(crate) async fn closed_by(&self, until: Instant) -> bool {
        timeout_at(until, self.mux.closed()).await.is_ok()
    }

    /// The server may yet hold something by this connection that nobody will release. Where others
    /// share it, they do not mind; the next to have it alone would.
    pub(crate) fn discard(self) {
        if !self.shared {
            self.mux.close();
        }
    }

    /// No new request goes by this connection; what is under way or held goes on.
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

/// A request that is under way on a connection of its own. Dropped before it is answered, the
/// connection is abandoned.
struct AbandonOnDrop<'a>(Option<&'a MuxConnection>);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(mux) = self.0 {
            mux.abandon();
        }
    }
}
