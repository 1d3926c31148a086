//! A place on a connection: what a request or a lease has of it, given back on drop.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, timeout_at};

use crate::backend::Deadline;
use crate::backend::dflockd::mux::{MuxConnection, Response, ResponseFuture, TrySendError};
use crate::backend::dflockd::pool::Pool;
use crate::error::Result;
use crate::proto::Request;

/// How often a request that was not sent is made again on another connection.
const RESENDS: usize = 3;

/// One user's place on a connection, shared with others or not. Dropped, nothing is held there and
/// nothing waits.
pub(crate) struct PoolConnection {
    pool: Arc<Pool>,
    shard: usize,
    conn: MuxConnection,
    shared: bool,
}

impl PoolConnection {
    pub(super) fn new(pool: &Arc<Pool>, shard: usize, session: MuxConnection, shared: bool) -> Self {
        Self { pool: pool.clone(), shard, conn: session, shared }
    }

    pub(crate) fn conn(&self) -> &MuxConnection {
        &self.conn
    }

    pub(crate) fn shard(&self) -> usize {
        self.shard
    }

    /// Sends a request, at `now`.
    pub(crate) fn send(&self, request: Request, now: Instant, deadline: &Deadline) -> ResponseFuture {
        self.conn.send_request(request, now, deadline)
    }

    /// Waits for the answer to what was asked here. A request that could not be sent may go by another
    /// connection.
    ///
    /// Dropped, or without an answer, it gives up a connection of its own, and with it the place in a
    /// queue. On a shared one the request is answered all the same, and a grant in it given back.
    pub(crate) async fn response(
        &mut self,
        mut reply: ResponseFuture,
        deadline: &Deadline,
    ) -> Result<Response> {
        let failure = match self.wait(&mut reply).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        Box::pin(deadline.bounds("reply", self.resend(failure, deadline))).await
    }

    async fn wait(&self, reply: &mut ResponseFuture) -> Result<Response, TrySendError> {
        let mut wait = AbandonOnDrop((!self.shared).then_some(&self.conn));
        let answer = reply.await?;
        wait.0 = None;
        Ok(answer)
    }

    /// A `wait` is bound to the connection that queued, any other request that was not sent is made
    /// again elsewhere.
    async fn resend(&mut self, mut failure: TrySendError, deadline: &Deadline) -> Result<Response> {
        for _ in 0..RESENDS {
            let may_go = |request: &mut Box<Request>| !matches!(**request, Request::Wait { .. });
            let Some(request) = failure.request.take_if(may_go).filter(|_| self.conn.is_closed()) else {
                break;
            };
            tracing::debug!(server = %self.conn.server(), error = %failure.error, "a dead connection is replaced");
            *self = self.replacement().await?;
            let mut reply = self.send(*request, Instant::now(), deadline);
            match self.wait(&mut reply).await {
                Ok(answer) => return Ok(answer),
                Err(again) => failure = again,
            }
        }
        Err(failure.error.on_server(self.conn.server()))
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
        timeout_at(until, self.conn.closed()).await.is_ok()
    }

    /// The server may yet hold something by this connection that nobody will release. Where others
    /// share it, they do not mind; the next to have it alone would.
    pub(crate) fn discard(self) {
        if !self.shared {
            self.conn.close();
        }
    }

    /// No new request goes by this connection; what is under way or held goes on.
    pub(crate) fn retire(self) {
        self.pool.server(self.shard).retire(&self.conn);
        self.discard();
    }
}

impl Drop for PoolConnection {
    fn drop(&mut self) {
        let session = &self.conn;
        if !self.shared {
            self.pool.server(self.shard).push_idle(session.clone());
        } else if session.users().fetch_sub(1, Ordering::Relaxed) == 1 {
            self.pool.server(self.shard).release_surplus(session.runtime());
        }
    }
}

/// A request that is under way on a connection of its own. Dropped before it is answered, the
/// connection is abandoned.
struct AbandonOnDrop<'a>(Option<&'a MuxConnection>);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.0 {
            session.abandon();
        }
    }
}
