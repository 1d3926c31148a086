//! The driver: one task owns one stream, writes the requests of many tasks and matches the replies
//! in order. Callers leave their requests in its outbox, so dropping a caller drops nothing but a
//! receiver. A grant that nobody reads is released. Knows the wire, but no pool and no lease.

mod buffered;
mod driver;
mod liveness;
mod requests;
mod response;
mod trace;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::runtime::{self, Handle};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::backend::Deadline;
use crate::backend::dflockd::metrics::ConnMetrics;
use crate::error::{Error, ErrorKind};
use crate::failpoints::{Rule, is_broken};
use crate::lease::{LostReason, ReleaseCompletion};
use crate::net::BoxStream;
use crate::process::Origin;
use crate::proto::Request;
use crate::suspend;
use crate::types::{Fence, Token};
use buffered::Buffered;
use driver::Driver;
use liveness::Liveness;
use requests::{InFlight, RequestQueue, Responder};
pub(crate) use response::{Response, ResponseFuture, TrySendError, UnclaimedGrant};
pub(crate) use trace::{Rerouted, Trace, WeakMuxConnection};

/// What a session needs of the pool that it belongs to.
#[derive(Clone)]
pub(crate) struct ConnContext {
    pub(crate) server: Arc<str>,
    /// How long the connection may be quiet before it pings.
    pub(crate) keepalive: Duration,
    /// How many requests may be under way before the session answers with an error.
    pub(crate) max_unanswered: usize,
    /// Whether the server has said that it is shutting down.
    pub(crate) draining: Arc<AtomicBool>,
    pub(crate) metrics: Arc<ConnMetrics>,
    /// Makes releases that this session can no longer make itself, and marks them as such.
    pub(crate) release_elsewhere: Arc<dyn Fn(UnclaimedGrant, Option<ReleaseCompletion>) + Send + Sync>,
}

/// A handle on a driver. Cheap to clone; when the last one drops, the driver finishes what is
/// under way and closes.
#[derive(Clone)]
pub(crate) struct MuxConnection(Arc<ConnRef>);

/// What all handles on one driver are together.
struct ConnRef(Arc<ConnShared>);

impl Drop for ConnRef {
    fn drop(&mut self) {
        if self.0.origin.is_here() {
            self.0.advance(CLOSING);
            self.0.has_no_users.store(true, Ordering::Release);
            self.0.closed.notify_waiters();
        }
    }
}

struct ConnShared {
    context: ConnContext,
    /// Only its process steers it, closes it or lets it end.
    origin: Origin,
    /// Where the driver runs.
    runtime: runtime::Id,
    requests: Mutex<RequestQueue>,
    /// Wakes the driver when there is something to send, or to do.
    waker: AtomicWaker,
    state: AtomicU8,
    liveness: Liveness,
    /// Why the session ended, once it has.
    end: OnceLock<Error>,
    /// Tells that the driver is done, or that the last handle has gone.
    closed: Notify,
    /// Whether all handles are gone.
    has_no_users: AtomicBool,
    /// Whether the driver is handing out replies, some of which may bring more to do.
    answers: AtomicBool,
    /// What to ask before it closes, while it has a place in a queue.
    leaves_queue: Mutex<Option<Request>>,
    /// Leases and requests that have a place on it, where places are shared.
    users: AtomicUsize,
    occupancy: Mutex<Occupancy>,
    /// Whether the driver has to set its alarm anew.
    reset_timer: AtomicBool,
    /// Whether the server has said that it does not know `ping`: its tokens are random.
    is_unfenced: AtomicBool,
}

/// It takes requests.
const OPEN: u8 = 0;
/// It takes nothing more, and ends once what is under way is answered.
const CLOSING: u8 = 1;
/// Its wait was given up: it takes nothing more, and only listens for a grant that crosses that.
const ABANDONED: u8 = 2;
/// Its connection is gone.
const ENDED: u8 = 3;
/// And everyone who waited for an answer has been told.
const FINISHED: u8 = 4;

/// What a connection is to its pool.
enum Occupancy {
    /// Somebody has it. The permit, where one was needed, is given back with it.
    InUse(#[allow(dead_code, reason = "kept to be dropped")] Option<OwnedSemaphorePermit>),
    /// Nobody does; it closes at this time.
    Idle(Instant),
}

impl std::fmt::Debug for MuxConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("server", self.server()).finish_non_exhaustive()
    }
}

impl MuxConnection {
    /// Spawns a driver over a stream on which the handshake is done. The permit is kept until the
    /// connection [rests](Self::rest), or has ended.
    pub(crate) fn spawn(stream: BoxStream, home: ConnContext, permit: OwnedSemaphorePermit) -> Self {
        let now = suspend::now();
        let shared = Arc::new(ConnShared {
            liveness: Liveness::new(home.keepalive, now),
            context: home,
            origin: Origin::here(),
            runtime: Handle::current().id(),
            requests: Mutex::new(RequestQueue::new(now)),
            waker: AtomicWaker::new(),
            state: AtomicU8::new(OPEN),
            end: OnceLock::new(),
            closed: Notify::new(),
            has_no_users: AtomicBool::new(false),
            answers: AtomicBool::new(false),
            leaves_queue: Mutex::new(None),
            users: AtomicUsize::new(0),
            occupancy: Mutex::new(Occupancy::InUse(Some(permit))),
            reset_timer: AtomicBool::new(false),
            is_unfenced: AtomicBool::new(false),
        });
        // Goes out with the first request, so that its answer is read before any grant is.
        shared.send(InFlight { request: Request::Ping, caller: Responder::None, sent: now });
        let handle = Arc::new(ConnRef(shared.clone()));
        tokio::spawn(Driver::new(stream, Arc::downgrade(&handle), shared).run());
        Self(handle)
    }

    fn shared(&self) -> &ConnShared {
        &self.0.0
    }

    /// Whether this process opened it. One that was forked from that leaves it alone.
    pub(crate) fn is_ours(&self) -> bool {
        self.shared().origin.is_here()
    }

    pub(crate) fn server(&self) -> &Arc<str> {
        &self.shared().context.server
    }

    /// Sends a request, at `now`, and waits for its reply until the deadline.
    ///
    /// A reply that comes later, or after the future was dropped, is read all the same.
    pub(crate) fn send_request(&self, request: Request, now: Instant, deadline: &Deadline) -> ResponseFuture {
        let (tell, reply) = oneshot::channel();
        self.shared().send(InFlight {
            request,
            caller: Responder::Caller { tell, deadline: *deadline },
            sent: now,
        });
        // The driver has a clock, but it may not be driven by whoever waits here.
        let awaited = ResponseFuture { reply, alarm: None };
        if self.is_driven_here() { awaited } else { awaited.by_itself(*deadline) }
    }

    /// Releases a grant without waiting, by another session where this one cannot any more.
    /// A caller who waits for the answer is sent away when his time is up.
    pub(crate) fn release(&self, orphan: UnclaimedGrant, now: Instant, done: Option<ReleaseCompletion>) {
        let UnclaimedGrant { key, token, family, rerouted: rescue } = orphan;
        let caller = Responder::Release { done, rescue };
        self.shared().send(InFlight { request: Request::Release { key, token, family }, caller, sent: now });
    }

    /// Gives up a wait that is under way: the server is told by a half-close, which takes the
    /// waiter out of its queue; a grant that crosses it is still read, and released.
    pub(crate) fn abandon(&self) {
        self.shared().advance(ABANDONED);
    }

    /// Takes nothing more, and ends once what is under way is answered.
    pub(crate) fn close(&self) {
        self.shared().advance(CLOSING);
    }

    /// It has a place in a queue from now on, which this request gives up.
    pub(crate) fn queue(&self, leave: Request) {
        *self.shared().leaves_queue() = Some(leave);
    }

    /// It is to wait for what it queued for, and has no place to be given up any more. `false` where that
    /// was given up already.
    pub(crate) fn unqueue(&self) -> bool {
        self.shared().leaves_queue().take().is_some()
    }

    /// Gives up the place in a queue, if it has one. Nobody waits for the reply; a grant in it is
    /// released.
    pub(crate) fn leave_queue(&self) {
        self.shared().leave_queue();
    }

    /// Somebody has it from now on, and the permit with it, which is given back when the connection
    /// has nothing to do any more, or has ended. One that has closed takes none.
    pub(crate) fn mark_in_use(&self, permit: OwnedSemaphorePermit) -> Result<(), OwnedSemaphorePermit> {
        let mut usage = self.shared().occupancy();
        // Looked at behind the lock, as the driver does that closes one that was idle for too long.
        if self.is_closed() {
            return Err(permit);
        }
        *usage = Occupancy::InUse(Some(permit));
        Ok(())
    }

    /// Nobody has it any more: it ends by itself at this time, unless it is taken before.
    pub(crate) fn mark_idle(&self, until: Instant) {
        *self.shared().occupancy() = Occupancy::Idle(until);
        self.shared().reset_timer.store(true, Ordering::Release);
        self.shared().waker.wake();
    }

    /// Where the driver runs.
    pub(crate) fn runtime(&self) -> runtime::Id {
        self.shared().runtime
    }

    /// Whether the driver runs where the caller does: then its clock is as good as one of his own.
    pub(crate) fn is_driven_here(&self) -> bool {
        Handle::try_current().is_ok_and(|here| here.id() == self.shared().runtime)
    }

    /// How many leases and requests share it.
    pub(crate) fn users(&self) -> &AtomicUsize {
        &self.shared().users
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the session takes no other request.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared().state() != OPEN
    }

    /// Whether a reply is overdue.
    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        self.shared().liveness.is_suspect(now)
    }

    /// The fence in a token that this server has granted by this connection, if it hands out fences.
    pub(crate) fn fence_of(&self, token: &Token) -> Option<Fence> {
        self.shared().fence_of(token)
    }

    /// Why nothing can be held by this connection any more, if so. The clock is asked as well as
    /// the driver, which may be starved. Not for a session on which a request waits in a queue.
    pub(crate) fn lost(&self, now: Instant) -> Option<LostReason> {
        let shared = self.shared();
        match shared.end.get().map(Error::kind) {
            Some(ErrorKind::Timeout) => Some(LostReason::KeepaliveTimeout),
            Some(_) if shared.context.draining.load(Ordering::Relaxed) => Some(LostReason::ServerDraining),
            Some(_) => Some(LostReason::ConnectionClosed),
            None if shared.state() != OPEN => Some(LostReason::ConnectionClosed),
            None if now >= shared.liveness.expires_at() => Some(LostReason::KeepaliveTimeout),
            None => None,
        }
    }

    /// Whether nothing is under way, nor about to be.
    pub(crate) fn is_quiet(&self) -> bool {
        let outbox = self.shared().requests();
        // Looked at behind the lock, behind which the driver takes what it answers, and puts what comes
        // of that.
        outbox.len() == 0 && !self.shared().answers.load(Ordering::Acquire)
    }

    /// Resolves when the connection has ended.
    pub(crate) async fn closed(&self) {
        self.shared().reached(|shared| shared.state() == FINISHED).await;
    }
}

fn shut_down() -> Error {
    Error::new(ErrorKind::ConnectionClosed, "its driver was shut down")
}

impl ConnShared {
    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    fn advance(&self, course: u8) {
        if !self.origin.is_here() {
            return;
        }
        self.state.fetch_max(course, Ordering::AcqRel);
        self.waker.wake();
    }

    fn fence_of(&self, token: &Token) -> Option<Fence> {
        if self.is_unfenced.load(Ordering::Relaxed) { None } else { token.fence() }
    }

    fn requests(&self) -> MutexGuard<'_, RequestQueue> {
        // Nothing panics while it is locked.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leaves_queue(&self) -> MutexGuard<'_, Option<Request>> {
        // Nothing panics while it is locked.
        self.leaves_queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers whether it had a place in a queue.
    fn leave_queue(&self) -> bool {
        let Some(request) = self.leaves_queue().take() else { return false };
        self.send(InFlight { request, caller: Responder::None, sent: Instant::now() });
        true
    }

    /// Resolves when the driver is done, or the last handle has gone, and this is so.
    async fn reached(&self, is_so: impl Fn(&Self) -> bool) {
        loop {
            let mut ended = pin!(self.closed.notified());
            // Listens before it looks, so that no end falls between.
            ended.as_mut().enable();
            if is_so(self) {
                return;
            }
            ended.await;
        }
    }

    fn occupancy(&self) -> MutexGuard<'_, Occupancy> {
        // Nothing panics while it is locked.
        self.occupancy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) -> Error {
        self.end.get().cloned().unwrap_or_else(shut_down)
    }

    /// The request that a reply read at `now` answers, of those that were sent before this position.
    fn next_call(&self, asked: u64, now: Instant) -> Option<InFlight> {
        let mut outbox = self.requests();
        if is_broken(Rule::ReplyOrder) {
            outbox.drop_cancelled();
        }
        let call = outbox.pop(asked);
        self.liveness.awaiting((outbox.len() > 0).then_some(now));
        call
    }

    fn send(&self, call: InFlight) {
        let outbox = self.requests();
        // Looked at behind the lock: what comes in before an end is found in there by it.
        if self.state() != OPEN {
            drop(outbox);
            return self.fail(call, &self.end(), true);
        }
        let most = self.context.max_unanswered;
        if outbox.len() >= most && matches!(call.caller, Responder::Caller { .. }) {
            drop(outbox);
            let detail = format!("{most} requests are under way on this connection already");
            return self.fail(call, &Error::new(ErrorKind::Overloaded, detail), true);
        }
        self.push(outbox, call);
    }

    fn push(&self, mut outbox: MutexGuard<'_, RequestQueue>, call: InFlight) {
        if outbox.len() == 0 {
            self.liveness.awaiting(Some(call.sent));
        }
        let late_at = outbox.next_deadline();
        let is_first = outbox.push(call);
        let is_sooner = outbox.next_deadline() != late_at;
        if is_sooner {
            self.reset_timer.store(true, Ordering::Release);
        }
        drop(outbox);
        if is_first || is_sooner {
            self.waker.wake();
        }
    }

    /// Tells that a call has no reply. A release that was not sent goes by another session, once.
    fn fail(&self, call: InFlight, error: &Error, unsent: bool) {
        match (call.caller, call.request) {
            // The caller may be gone; then nobody needs to know.
            (Responder::Caller { tell, .. }, request) => {
                let unsent = unsent.then(|| Box::new(request));
                drop(tell.send(Err(TrySendError { error: error.clone(), request: unsent })));
            }
            (Responder::Release { done, rescue: None }, Request::Release { key, token, family })
                if unsent =>
            {
                (self.context.release_elsewhere)(UnclaimedGrant { key, token, family, rerouted: None }, done);
            }
            (Responder::Release { done: Some(done), .. }, request) => {
                done.complete(Err(named(error.clone(), &request).on_server(&self.context.server)));
            }
            (Responder::Release { done: None, .. }, Request::Release { key, token, .. }) => {
                let fence = self.fence_of(&token);
                tracing::warn!(%key, ?fence, %error, "release failed; the lease runs out by itself");
            }
            (Responder::Release { .. } | Responder::None, _) => {}
        }
    }
}

/// Names the operation in what became of a release.
fn named(error: Error, request: &Request) -> Error {
    let error = error.during("release");
    request.key().map_or(error.clone(), |key| error.for_key(key))
}
