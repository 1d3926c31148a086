//! A connection that many tasks share. One task, the driver, owns the stream, sends the requests of its
//! queue and matches the replies in order. So a dropped caller drops a receiver and nothing else, and an
//! unclaimed grant is released.

mod buffered;
mod deliver;
mod driver;
mod liveness;
mod monitor;
mod requests;
mod response;
mod shared;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{self, Handle};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::backend::Deadline;
use crate::error::{Error, ErrorKind};
use crate::lease::{LostReason, ReleaseCompletion};
use crate::net::BoxStream;
use crate::proto::Request;
use crate::suspend;
use crate::types::{Fence, Token};
use driver::Driver;
pub(crate) use monitor::{ConnMonitor, WeakMuxConnection};
use requests::{InFlight, Responder};
pub(crate) use response::{Rerouted, Response, ResponseFuture, TrySendError, UnclaimedGrant};
pub(crate) use shared::ConnContext;
use shared::{ConnShared, Occupancy};
use state::ConnState;

/// A handle on a driver. Cheap to clone. When the last one drops, the driver finishes the requests in
/// flight and closes the connection.
#[derive(Clone)]
pub(crate) struct MuxConnection(Arc<ConnRef>);

/// Counts the handles on one driver: dropping it closes the connection.
struct ConnRef(Arc<ConnShared>);

impl Drop for ConnRef {
    fn drop(&mut self) {
        if self.0.origin.is_here() {
            self.0.advance(ConnState::Closing);
            self.0.has_no_users.store(true, Ordering::Release);
            self.0.closed.notify_waiters();
        }
    }
}

impl std::fmt::Debug for MuxConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MuxConnection").field("server", self.server()).finish_non_exhaustive()
    }
}

impl MuxConnection {
    /// Spawns a driver over a stream on which the handshake is done. The connection keeps the permit until
    /// it is [idle](Self::mark_idle) or closed.
    pub(crate) fn spawn(stream: BoxStream, context: ConnContext, permit: OwnedSemaphorePermit) -> Self {
        let now = suspend::now();
        let shared = Arc::new(ConnShared::new(context, permit, now));
        // Goes out with the first request, so that its reply is read before any grant is.
        shared.send(InFlight { request: Request::Ping, responder: Responder::None, sent: now });
        let handle = Arc::new(ConnRef(shared.clone()));
        tokio::spawn(Driver::new(stream, Arc::downgrade(&handle), shared).run());
        Self(handle)
    }

    fn shared(&self) -> &ConnShared {
        &self.0.0
    }

    /// Returns `true` if this process opened the connection. A forked child must leave it alone.
    pub(crate) fn is_ours(&self) -> bool {
        self.shared().origin.is_here()
    }

    pub(crate) fn server(&self) -> &Arc<str> {
        &self.shared().context.server
    }

    /// Sends a request at `now`. The future waits for its reply until the deadline.
    ///
    /// If the reply comes later, or the future is dropped, the driver reads the reply all the same.
    pub(crate) fn send_request(&self, request: Request, now: Instant, deadline: &Deadline) -> ResponseFuture {
        let (sender, reply) = oneshot::channel();
        let responder = Responder::Caller { sender, deadline: *deadline };
        self.shared().send(InFlight { request, responder, sent: now });
        let response = ResponseFuture { reply, timer: None };
        // The driver has a timer. If it runs elsewhere, that runtime may not be driven while the caller waits.
        if self.is_driven_here() { response } else { response.with_timer(*deadline) }
    }

    /// Releases a grant without waiting. If this connection is closed, the release goes by another one.
    /// The driver enforces the completion's deadline.
    pub(crate) fn release(
        &self,
        unclaimed: UnclaimedGrant,
        now: Instant,
        completion: Option<ReleaseCompletion>,
    ) {
        let UnclaimedGrant { key, token, family, rerouted } = unclaimed;
        let responder = Responder::Release { completion, rerouted };
        let request = Request::Release { key, token, family };
        self.shared().send(InFlight { request, responder, sent: now });
    }

    /// Abandons a wait in flight. The driver half-closes the stream, at which the server takes the waiter out
    /// of the wait queue; the driver still reads a late grant, and releases it.
    pub(crate) fn abandon(&self) {
        self.shared().advance(ConnState::Abandoned);
    }

    /// Takes no more requests, and closes once those in flight are answered.
    pub(crate) fn close(&self) {
        self.shared().advance(ConnState::Closing);
    }

    /// Notes a place in a wait queue, and the request that gives it up.
    pub(crate) fn queue(&self, leave: Request) {
        *self.shared().leave_request() = Some(leave);
    }

    /// Takes the place in a wait queue, for the caller to wait at. Returns `false` if it was given up before.
    pub(crate) fn unqueue(&self) -> bool {
        self.shared().leave_request().take().is_some()
    }

    /// Gives up the place in a wait queue, if the connection has one. If the reply has a grant, the grant is
    /// released.
    pub(crate) fn leave_queue(&self) {
        self.shared().leave_queue();
    }

    /// Marks the connection as in use. It keeps the permit until it is idle or closed.
    ///
    /// # Errors
    /// Returns the permit if the connection is closed.
    pub(crate) fn mark_in_use(&self, permit: OwnedSemaphorePermit) -> Result<(), OwnedSemaphorePermit> {
        let mut occupancy = self.shared().occupancy();
        // Checked under the lock that the driver holds when it closes an idle connection.
        if self.is_closed() {
            return Err(permit);
        }
        *occupancy = Occupancy::InUse(Some(permit));
        Ok(())
    }

    /// Marks the connection as idle. It closes at `until`, unless it is in use again before.
    pub(crate) fn mark_idle(&self, until: Instant) {
        *self.shared().occupancy() = Occupancy::Idle(until);
        self.shared().reset_timer.store(true, Ordering::Release);
        self.shared().waker.wake();
    }

    /// Returns the runtime that the driver runs on.
    pub(crate) fn runtime(&self) -> runtime::Id {
        self.shared().runtime
    }

    /// Returns `true` if the driver runs on the caller's runtime, and so has a timer that the caller can rely
    /// on.
    pub(crate) fn is_driven_here(&self) -> bool {
        Handle::try_current().is_ok_and(|here| here.id() == self.shared().runtime)
    }

    /// The count of leases and requests that share the connection.
    pub(crate) fn users(&self) -> &AtomicUsize {
        &self.shared().users
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns `true` if the connection takes no more requests.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared().state() != ConnState::Open
    }

    /// Returns `true` if a reply is overdue.
    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        self.shared().liveness.is_suspect(now)
    }

    /// Returns the fence in a token that came over this connection; `None` if the server has no fences.
    pub(crate) fn fence_of(&self, token: &Token) -> Option<Fence> {
        self.shared().fence_of(token)
    }

    /// Returns why nothing can be held by this connection any longer; `None` if it can. Checks the clock as
    /// well, since the driver may be starved. Does not apply while a request waits in a wait queue.
    pub(crate) fn lost(&self, now: Instant) -> Option<LostReason> {
        let shared = self.shared();
        match shared.close_reason.get().map(Error::kind) {
            Some(ErrorKind::Timeout) => Some(LostReason::KeepaliveTimeout),
            Some(_) if shared.context.draining.load(Ordering::Relaxed) => Some(LostReason::ServerDraining),
            Some(_) => Some(LostReason::ConnectionClosed),
            None if shared.state() != ConnState::Open => Some(LostReason::ConnectionClosed),
            None if now >= shared.liveness.expires_at() => Some(LostReason::KeepaliveTimeout),
            None => None,
        }
    }

    /// Returns `true` if no request is in flight, nor about to be.
    pub(crate) fn is_quiet(&self) -> bool {
        let requests = self.shared().requests();
        // Checked under the lock under which the driver pops a request, and pushes what its reply brings.
        requests.len() == 0 && !self.shared().delivering.load(Ordering::Acquire)
    }

    /// Resolves when the connection is closed.
    pub(crate) async fn closed(&self) {
        self.shared().reached(|shared| shared.state() == ConnState::Finished).await;
    }
}
