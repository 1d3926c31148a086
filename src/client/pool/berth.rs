//! A place on a connection: what a request or a lease has of it, given back on drop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::client::pool::Pool;
use crate::client::session::{Answer, Failure, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::proto::Request;

/// How often a request that was not sent is made again on another connection.
const RESENDS: usize = 3;

/// One user's place on a connection, shared with others or not. Dropped, nothing is held there and
/// nothing waits.
pub(crate) struct Berth {
    pool: Arc<Pool>,
    shard: usize,
    session: Session,
    shared: bool,
}

impl Berth {
    pub(super) fn new(pool: &Arc<Pool>, shard: usize, session: Session, shared: bool) -> Self {
        Self { pool: pool.clone(), shard, session, shared }
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// A place of the same kind on another connection.
    pub(crate) async fn another(&self) -> Result<Self> {
        if self.shared { self.pool.board(self.shard).await } else { self.pool.board_alone(self.shard).await }
    }

    /// The server may yet hold something by this connection that nobody will release. Where others
    /// share it, they do not mind; the next to have it alone would.
    pub(crate) fn leave_behind(self) {
        if !self.shared {
            self.session.close();
        }
    }

    /// No new request goes by this connection; what is under way or held goes on.
    pub(crate) fn retire(self) {
        self.pool.shelf(self.shard).retire(&self.session);
        self.leave_behind();
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        let session = &self.session;
        if !self.shared {
            self.pool.shelf(self.shard).put_idle(session.clone());
        } else if session.users().fetch_sub(1, Ordering::Relaxed) == 1 {
            self.pool.shelf(self.shard).unused(session);
        }
    }
}

/// A place on which a request is made. Dropped while one that may wait is under way, the connection
/// is abandoned, and with it the place in the queue.
pub(crate) struct Waiting {
    /// Taken when it is passed on.
    berth: Option<Berth>,
    under_way: bool,
}

impl Waiting {
    pub(super) fn new(berth: Berth) -> Self {
        Self { berth: Some(berth), under_way: false }
    }

    /// Sends a request and waits for its answer. A `wait` is bound to the connection that queued,
    /// any other request that was not sent may go by another.
    pub(crate) async fn call(&mut self, request: &Request, limit: Duration) -> Result<Answer> {
        let bound = matches!(request, Request::Wait { .. });
        for attempt in 0.. {
            let Some(berth) = &self.berth else { break };
            self.under_way = true;
            let session = &berth.session;
            match session.call(request, Instant::now(), limit).await {
                Ok(answer) => {
                    self.under_way = false;
                    return Ok(answer);
                }
                Err(Failure { error, unsent: true })
                    if !bound && attempt < RESENDS && session.is_closed() =>
                {
                    tracing::debug!(server = %session.server(), %error, "a dead connection is replaced");
                    self.under_way = false;
                    self.berth = Some(Box::pin(berth.another()).await?);
                }
                Err(Failure { error, .. }) => return Err(error.on_server(session.server())),
            }
        }
        Err(Error::new(ErrorKind::ConnectionClosed, "the wait was over already"))
    }

    pub(crate) fn server(&self) -> Option<Arc<str>> {
        self.berth.as_ref().map(|berth| berth.session.server().clone())
    }

    /// Whether the connection ends, at once or soon.
    pub(crate) async fn ends_within(&self, limit: Duration) -> bool {
        let Some(berth) = &self.berth else { return true };
        tokio::time::timeout(limit, berth.session.closed()).await.is_ok()
    }

    /// Sends a request whose reply nobody waits for, and gives the place back.
    pub(crate) fn end_with(mut self, request: Request) {
        if let Some(berth) = self.berth.take() {
            berth.session.call_soon(request);
        }
    }

    /// The server is about to close the connection: it serves nobody any more.
    pub(crate) fn discard(mut self) {
        if let Some(berth) = self.berth.take() {
            berth.retire();
        }
    }

    /// A lease has the place now.
    pub(crate) fn carry(mut self) -> Option<Berth> {
        self.berth.take()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // A request on a shared connection is answered all the same, and a grant in it given back.
        if let Some(berth) = self.berth.take_if(|berth| self.under_way && !berth.shared) {
            berth.session.abandon();
        }
    }
}
