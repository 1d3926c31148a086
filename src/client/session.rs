//! The driver: one task owns one stream, writes the requests of many tasks and matches the replies
//! in order. Callers reach it by a channel, so dropping a caller drops nothing but a receiver. A
//! grant that nobody reads is released. Knows the wire, but no pool and no lease.

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::error::{Error, ErrorKind};
use crate::net::BoxStream;
use crate::proto::{Family, Reply, Request};
use crate::types::{Key, Token};
use driver::Driver;

/// How many requests may be under way on one session before it answers with an error.
const MAX_QUEUED: usize = 65_536;

/// A grant that nobody took: whoever gets it releases it.
#[derive(Clone, Debug)]
pub(crate) struct Orphan {
    pub(crate) key: Key,
    pub(crate) token: Token,
    pub(crate) family: Family,
}

impl Orphan {
    pub(crate) fn release(self) -> Request {
        Request::Release { key: self.key, token: self.token, family: self.family }
    }
}

/// Releases orphans of sessions that can no longer do it themselves.
pub(crate) type Rescue = Arc<dyn Fn(Orphan) + Send + Sync>;

/// Why a call has no reply.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Nothing of the request was sent: it may be made again elsewhere.
    pub(crate) unsent: bool,
}

struct Call {
    request: Request,
    /// Nobody waits for the answer of a release on drop.
    answer: Option<oneshot::Sender<Result<Answer, Failure>>>,
}

/// A reply on its way to its caller. Dropped with a grant inside, it releases the grant.
#[derive(Debug)]
pub(crate) struct Answer {
    reply: Option<Reply>,
    orphan: Option<(Orphan, Session)>,
}

impl Answer {
    /// The reply; a grant in it is now the caller's to release.
    pub(crate) fn claim(mut self) -> Reply {
        self.orphan = None;
        self.reply.take().unwrap_or(Reply::Timeout)
    }

    pub(crate) fn reply(&self) -> &Reply {
        self.reply.as_ref().unwrap_or(&Reply::Timeout)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some((orphan, session)) = self.orphan.take() {
            tracing::debug!(key = %orphan.key, fence = ?orphan.token.fence(), "a grant that nobody took is released");
            session.release_soon(orphan);
        }
    }
}

/// A handle on a driver. Cheap to clone; when the last one drops, the driver finishes what is
/// under way and closes.
#[derive(Clone)]
pub(crate) struct Session {
    calls: mpsc::UnboundedSender<Call>,
    shared: Arc<Shared>,
}

struct Shared {
    server: Arc<str>,
    /// Why the session ended, once it has.
    ended: watch::Sender<Option<Error>>,
    abandoned: AtomicBool,
    abandon: Notify,
    /// A ping went unanswered; cleared by any reply.
    suspect: AtomicBool,
    /// Requests that were made and have no reply yet.
    under_way: AtomicUsize,
    rescue: Rescue,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("server", &self.shared.server).finish_non_exhaustive()
    }
}

impl Session {
    /// Spawns a driver over a stream on which the handshake is done.
    pub(crate) fn spawn(stream: BoxStream, server: Arc<str>, keepalive: Duration, rescue: Rescue) -> Self {
        let (calls, queue) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            server,
            ended: watch::Sender::new(None),
            abandoned: AtomicBool::new(false),
            abandon: Notify::new(),
            suspect: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            rescue,
        });
        let driver = Driver::new(stream, queue, calls.downgrade(), shared.clone(), keepalive);
        tokio::spawn(driver.run());
        Self { calls, shared }
    }

    pub(crate) fn server(&self) -> &Arc<str> {
        &self.shared.server
    }

    /// Sends a request and waits up to `limit` for its reply. Sent at the first poll.
    ///
    /// A reply that comes after the limit, or after the future was dropped, is read all the same.
    pub(crate) async fn call(&self, request: Request, limit: Duration) -> Result<Answer, Failure> {
        let (answer, reply) = oneshot::channel();
        if self.shared.under_way.load(Ordering::Relaxed) >= MAX_QUEUED {
            let detail = format!("{MAX_QUEUED} requests are under way on this connection already");
            return Err(Failure { error: Error::new(ErrorKind::Overloaded, detail), unsent: true });
        }
        self.send(Call { request, answer: Some(answer) });
        match timeout(limit, reply).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Failure { error: self.end(), unsent: false }),
            Err(_) => {
                let error = Error::new(ErrorKind::Timeout, format!("no reply within {limit:?}"));
                Err(Failure { error, unsent: false })
            }
        }
    }

    /// Sends a request whose reply nobody waits for; a grant in it is released.
    pub(crate) fn call_soon(&self, request: Request) {
        self.send(Call { request, answer: None });
    }

    /// Releases a grant without waiting, by another session where this one cannot any more.
    pub(crate) fn release_soon(&self, orphan: Orphan) {
        if self.shared.abandoned.load(Ordering::Acquire) || self.is_closed() {
            (self.shared.rescue)(orphan);
        } else {
            self.call_soon(orphan.release());
        }
    }

    fn send(&self, call: Call) {
        self.shared.under_way.fetch_add(1, Ordering::Relaxed);
        if let Err(mpsc::error::SendError(call)) = self.calls.send(call) {
            self.shared.under_way.fetch_sub(1, Ordering::Relaxed);
            fail(call, &self.end(), true);
        }
    }

    /// Gives up a wait that is under way: the server is told by a half-close, which takes the
    /// waiter out of its queue; a grant that crosses it is still read, and released.
    pub(crate) fn abandon(&self) {
        self.shared.abandoned.store(true, Ordering::Release);
        self.shared.abandon.notify_one();
    }

    /// Whether the session can take another request.
    pub(crate) fn is_closed(&self) -> bool {
        self.calls.is_closed() || self.shared.ended.borrow().is_some()
    }

    /// Whether a reply is overdue.
    pub(crate) fn is_suspect(&self) -> bool {
        self.shared.suspect.load(Ordering::Relaxed)
    }

    /// Whether any request has no reply yet.
    pub(crate) fn is_busy(&self) -> bool {
        self.shared.under_way.load(Ordering::Relaxed) > 0
    }

    /// Resolves when the connection has ended.
    pub(crate) async fn closed(&self) {
        // An error here means that the driver is gone, which is an end as well.
        let _ = self.shared.ended.subscribe().wait_for(Option::is_some).await;
    }

    fn end(&self) -> Error {
        self.shared.ended.borrow().clone().unwrap_or_else(shut_down)
    }
}

fn shut_down() -> Error {
    Error::new(ErrorKind::ConnectionClosed, "its driver was shut down")
}

fn fail(call: Call, error: &Error, unsent: bool) {
    if let Some(answer) = call.answer {
        // The caller may be gone; then nobody needs to know.
        let _ = answer.send(Err(Failure { error: error.clone(), unsent }));
    } else if let Request::Release { key, token, .. } = call.request {
        tracing::warn!(%key, fence = ?token.fence(), %error, "release failed; the lease runs out by itself");
    }
}
