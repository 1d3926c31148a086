//! What becomes of a request, from whoever waits for it to a grant that nobody took.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::MuxConnection;
use super::monitor::Rerouted;
use crate::backend::Deadline;
use crate::error::{Error, ErrorKind};
use crate::failpoints::{Rule, is_broken};
use crate::proto::{Family, Reply, Request};
use crate::types::{Key, Seconds, Token};

/// Why a call has no reply.
#[derive(Debug)]
pub(crate) struct TrySendError {
    pub(crate) error: Error,
    /// The request, where nothing of it was sent: it may be made again elsewhere.
    pub(crate) request: Option<Box<Request>>,
}

/// The reply to one request, which is not a part of this: it is moved about, and should be small.
pub(crate) struct ResponseFuture {
    pub(super) reply: oneshot::Receiver<Result<Response, TrySendError>>,
    /// Where nobody else sees to the deadline.
    pub(super) timer: Option<BoxFuture<'static, Error>>,
}

impl ResponseFuture {
    /// Looks at a clock of its own, and waits until the deadline at the most.
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

/// A reply on its way to its caller. Dropped with a grant inside, it releases the grant.
#[derive(Debug)]
pub(crate) struct Response {
    pub(super) reply: Option<Reply>,
    pub(super) unclaimed: Option<(UnclaimedGrant, MuxConnection)>,
}

impl Response {
    /// The grant in it, which stays the answer's to release.
    pub(crate) fn grant(&self) -> Option<(Token, Seconds)> {
        match self.reply() {
            Reply::Granted { token, lease } | Reply::Acquired { token, lease } => {
                Some((token.clone(), *lease))
            }
            _ => None,
        }
    }

    /// The reply; a grant in it is now the caller's to release.
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
            tracing::debug!(key = %unclaimed.key, ?fence, "a grant that nobody took is released");
            conn.release(unclaimed, Instant::now(), None);
        }
    }
}

/// A grant that nobody took: whoever gets it releases it.
#[derive(Debug)]
pub(crate) struct UnclaimedGrant {
    pub(crate) key: Key,
    pub(crate) token: Token,
    pub(crate) family: Family,
    /// That its release was passed on already, from a conn that had ended: it is once.
    pub(crate) rerouted: Option<Rerouted>,
}

/// The error of a request whose driver is gone.
pub(super) fn driver_stopped() -> Error {
    Error::new(ErrorKind::ConnectionClosed, "its driver was shut down")
}
