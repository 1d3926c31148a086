//! A place on a connection: what a request or a lease has of it, given back on drop.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, timeout_at};

use crate::backend::Deadline;
use crate::backend::dflockd::mux::{Answer, Awaited, Failure, Session};
use crate::backend::dflockd::pool::Pool;
use crate::error::Result;
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

    pub(crate) fn shard(&self) -> usize {
        self.shard
    }

    /// Sends a request, at `now`.
    pub(crate) fn ask(&self, request: Request, now: Instant, deadline: &Deadline) -> Awaited {
        self.session.call(request, now, deadline)
    }

    /// Waits for the answer to what was asked here. A request that could not be sent may go by another
    /// connection.
    ///
    /// Dropped, or without an answer, it gives up a connection of its own, and with it the place in a
    /// queue. On a shared one the request is answered all the same, and a grant in it given back.
    pub(crate) async fn answer(&mut self, mut reply: Awaited, deadline: &Deadline) -> Result<Answer> {
        let failure = match self.wait(&mut reply).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        Box::pin(deadline.bounds("reply", self.ask_again(failure, deadline))).await
    }

    async fn wait(&self, reply: &mut Awaited) -> Result<Answer, Failure> {
        let mut wait = Wait((!self.shared).then_some(&self.session));
        let answer = reply.await?;
        wait.0 = None;
        Ok(answer)
    }

    /// A `wait` is bound to the connection that queued, any other request that was not sent is made
    /// again elsewhere.
    async fn ask_again(&mut self, mut failure: Failure, deadline: &Deadline) -> Result<Answer> {
        for _ in 0..RESENDS {
            let may_go = |request: &mut Box<Request>| !matches!(**request, Request::Wait { .. });
            let Some(request) = failure.unsent.take_if(may_go).filter(|_| self.session.is_closed()) else {
                break;
            };
            tracing::debug!(server = %self.session.server(), error = %failure.error, "a dead connection is replaced");
            *self = self.another().await?;
            let mut reply = self.ask(*request, Instant::now(), deadline);
            match self.wait(&mut reply).await {
                Ok(answer) => return Ok(answer),
                Err(again) => failure = again,
            }
        }
        Err(failure.error.on_server(self.session.server()))
    }

    /// A place of the same kind on another connection.
    async fn another(&self) -> Result<Self> {
        if self.shared { self.pool.board(self.shard).await } else { self.pool.board_alone(self.shard).await }
    }

    /// Whether the connection has ended by then.
    pub(crate) async fn ends_by(&self, until: Instant) -> bool {
        timeout_at(until, self.session.closed()).await.is_ok()
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
            self.pool.shelf(self.shard).tidy(session.runtime());
        }
    }
}

/// A request that is under way on a connection of its own. Dropped before it is answered, the
/// connection is abandoned.
struct Wait<'a>(Option<&'a Session>);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.0 {
            session.abandon();
        }
    }
}
