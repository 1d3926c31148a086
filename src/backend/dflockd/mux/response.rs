//! What a caller receives for a request: a reply, an error, or a grant with the duty to release it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::MuxConnection;
use crate::backend::Deadline;
use crate::error::{Error, ErrorKind};
use crate::failpoints::{Rule, is_broken};
use crate::proto::{Family, Reply, Request};
use crate::types::{Key, Seconds, Token};

/// Why a request has no reply.
#[derive(Debug)]
pub(crate) struct TrySendError {
    pub(crate) error: Error,
    /// The request, if none of it was sent: it may go by another connection.
    pub(crate) request: Option<Box<Request>>,
}

/// Resolves to the response of one request. The response is not part of this, which is moved often and stays
/// small.
pub(crate) struct ResponseFuture {
    pub(super) reply: oneshot::Receiver<Result<Response, TrySendError>>,
    /// Enforces the deadline, if no driver on this runtime does.
    pub(super) timer: Option<BoxFuture<'static, Error>>,
}

impl ResponseFuture {
    /// Adds a timer that enforces the deadline.
    pub(super) fn with_timer(mut self, deadline: Deadline) -> Self {
        self.timer = Some(Box::pin(async move {
            sleep_until(deadline.at()).await;
            deadline.passed("reply")
        }));
        self
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response, TrySendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let error = match self.reply.poll_unpin(cx) {
            Poll::Ready(Ok(outcome)) => return Poll::Ready(outcome),
            Poll::Ready(Err(_)) => driver_stopped(),
            Poll::Pending => {
                let Some(timer) = &mut self.timer else { return Poll::Pending };
                ready!(timer.as_mut().poll(cx))
            }
        };
        Poll::Ready(Err(TrySendError { error, request: None }))
    }
}

/// A reply on its way to its caller. If it has a grant, dropping it releases the grant.
#[derive(Debug)]
pub(crate) struct Response {
    pub(super) reply: Option<Reply>,
    pub(super) unclaimed: Option<(UnclaimedGrant, MuxConnection)>,
}

impl Response {
    /// Returns the grant. The duty to release it stays with the response.
    pub(crate) fn grant(&self) -> Option<(Token, Seconds)> {
        match self.reply() {
            Reply::Granted { token, lease } | Reply::Acquired { token, lease } => {
                Some((token.clone(), *lease))
            }
            _ => None,
        }
    }

    /// Returns the reply, and with it the duty to release a grant.
    pub(crate) fn into_reply(mut self) -> Reply {
        self.unclaimed = None;
        self.reply.take().unwrap_or(Reply::Timeout)
    }

    pub(crate) fn reply(&self) -> &Reply {
        self.reply.as_ref().unwrap_or(&Reply::Timeout)
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        if let Some((unclaimed, conn)) = self.unclaimed.take()
            && conn.is_ours()
            && !is_broken(Rule::ReleaseUnclaimed)
        {
            let fence = conn.fence_of(&unclaimed.token);
            tracing::debug!(key = %unclaimed.key, ?fence, "releasing a grant that no caller took");
            conn.release(unclaimed, Instant::now(), None);
        }
    }
}

/// A grant that no caller took. The receiver must release it.
#[derive(Debug)]
pub(crate) struct UnclaimedGrant {
    pub(crate) key: Key,
    pub(crate) token: Token,
    pub(crate) family: Family,
    /// Set if the release was rerouted from a closed connection already. It is rerouted once only.
    pub(crate) rerouted: Option<Rerouted>,
}

/// Counts a release that goes over another connection than its grant came over, until it is answered or
/// has failed.
pub(crate) struct Rerouted(Arc<watch::Sender<usize>>);

impl Rerouted {
    pub(crate) fn begin(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Rerouted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl std::fmt::Debug for Rerouted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rerouted")
    }
}

/// The error of a request whose driver is gone.
pub(super) fn driver_stopped() -> Error {
    Error::new(ErrorKind::ConnectionClosed, "its driver was shut down")
}
