//! What the handles of a connection and its driver share.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::runtime::{self, Handle};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use super::liveness::Liveness;
use super::requests::{InFlight, RequestQueue, Responder};
use super::response::{TrySendError, UnclaimedGrant, driver_stopped};
use super::state::{AtomicConnState, ConnState};
use crate::backend::dflockd::metrics::ConnMetrics;
use crate::error::{Error, ErrorKind};
use crate::failpoints::{Rule, is_broken};
use crate::lease::ReleaseCompletion;
use crate::process::Origin;
use crate::proto::Request;
use crate::types::{Fence, Token};

/// The things that a connection needs of its pool.
#[derive(Clone)]
pub(crate) struct ConnContext {
    pub(crate) server: Arc<str>,
    /// The time for which the connection may be quiet before it pings.
    pub(crate) keepalive: Duration,
    /// The number of requests that may be in flight before the next one fails.
    pub(crate) max_unanswered: usize,
    /// `true` once the server has replied that it is shutting down.
    pub(crate) draining: Arc<AtomicBool>,
    pub(crate) metrics: Arc<ConnMetrics>,
    /// Makes a release that this connection can no longer make, and marks it as rerouted.
    pub(crate) release_elsewhere: Arc<dyn Fn(UnclaimedGrant, Option<ReleaseCompletion>) + Send + Sync>,
}

pub(super) struct ConnShared {
    pub(super) context: ConnContext,
    /// Only the process that opened the connection changes its state.
    pub(super) origin: Origin,
    /// The runtime that the driver runs on.
    pub(super) runtime: runtime::Id,
    requests: Mutex<RequestQueue>,
    /// Wakes the driver if there is something to send or to do.
    pub(super) waker: AtomicWaker,
    state: AtomicConnState,
    pub(super) liveness: Liveness,
    /// Why the connection closed, once it has.
    pub(super) close_reason: OnceLock<Error>,
    /// Notified when the driver has finished, and when the last handle drops.
    pub(super) closed: Notify,
    /// `true` once all handles have dropped.
    pub(super) has_no_users: AtomicBool,
    /// `true` while the driver delivers replies, some of which may bring more to do.
    pub(super) delivering: AtomicBool,
    /// The request that gives up the place in a wait queue, while the connection has one.
    leave_request: Mutex<Option<Request>>,
    /// The number of leases and requests that share the connection.
    pub(super) users: AtomicUsize,
    occupancy: Mutex<Occupancy>,
    /// `true` if the driver must set its timer anew.
    pub(super) reset_timer: AtomicBool,
    /// `true` once the server has replied that it does not know `ping`: its tokens are random.
    pub(super) is_unfenced: AtomicBool,
}

/// The state of a connection in its pool.
pub(super) enum Occupancy {
    /// In use. Dropping this returns the permit.
    InUse(#[expect(dead_code, reason = "kept to be dropped")] Option<OwnedSemaphorePermit>),
    /// Not in use; it closes at this time.
    Idle(Instant),
}

impl ConnShared {
    pub(super) fn new(context: ConnContext, permit: OwnedSemaphorePermit, now: Instant) -> Self {
        Self {
            liveness: Liveness::new(context.keepalive, now),
            context,
            origin: Origin::here(),
            runtime: Handle::current().id(),
            requests: Mutex::new(RequestQueue::new(now)),
            waker: AtomicWaker::new(),
            state: AtomicConnState::new(),
            close_reason: OnceLock::new(),
            closed: Notify::new(),
            has_no_users: AtomicBool::new(false),
            delivering: AtomicBool::new(false),
            leave_request: Mutex::new(None),
            users: AtomicUsize::new(0),
            occupancy: Mutex::new(Occupancy::InUse(Some(permit))),
            reset_timer: AtomicBool::new(false),
            is_unfenced: AtomicBool::new(false),
        }
    }

    pub(super) fn state(&self) -> ConnState {
        self.state.load()
    }

    pub(super) fn advance(&self, state: ConnState) {
        if !self.origin.is_here() {
            return;
        }
        self.state.advance(state);
        self.waker.wake();
    }

    pub(super) fn fence_of(&self, token: &Token) -> Option<Fence> {
        if self.is_unfenced.load(Ordering::Relaxed) { None } else { token.fence() }
    }

    pub(super) fn requests(&self) -> MutexGuard<'_, RequestQueue> {
        // Nothing panics while it is locked.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn leave_request(&self) -> MutexGuard<'_, Option<Request>> {
        // Nothing panics while it is locked.
        self.leave_request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn occupancy(&self) -> MutexGuard<'_, Occupancy> {
        // Nothing panics while it is locked.
        self.occupancy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up the place in a wait queue. Returns `true` if the connection had one.
    pub(super) fn leave_queue(&self) -> bool {
        let Some(request) = self.leave_request().take() else { return false };
        self.send(InFlight { request, responder: Responder::None, sent: Instant::now() });
        true
    }

    /// Resolves when the predicate is true. Checks it when the driver has finished and when the last handle
    /// drops.
    pub(super) async fn reached(&self, predicate: impl Fn(&Self) -> bool) {
        loop {
            let mut closed = pin!(self.closed.notified());
            // Registers before the check, so that no notification falls between the two.
            closed.as_mut().enable();
            if predicate(self) {
                return;
            }
            closed.await;
        }
    }

    fn close_reason(&self) -> Error {
        self.close_reason.get().cloned().unwrap_or_else(driver_stopped)
    }

    /// Returns the request that a reply read at `now` answers, of those sent before this position.
    pub(super) fn next_answered(&self, position: u64, now: Instant) -> Option<InFlight> {
        let mut requests = self.requests();
        if is_broken(Rule::ReplyOrder) {
            requests.drop_cancelled();
        }
        let answered = requests.pop(position);
        self.liveness.awaiting((requests.len() > 0).then_some(now));
        answered
    }

    /// Takes a request. If the connection is closed or full, the request fails at once.
    pub(super) fn send(&self, request: InFlight) {
        let requests = self.requests();
        // Checked under the lock: the driver fails what is in the queue when it closes.
        if self.state() != ConnState::Open {
            drop(requests);
            return self.fail(request, &self.close_reason(), true);
        }
        let max = self.context.max_unanswered;
        if requests.len() >= max && matches!(request.responder, Responder::Caller { .. }) {
            drop(requests);
            let detail = format!("{max} requests are in flight on this connection already");
            return self.fail(request, &Error::new(ErrorKind::Overloaded, detail), true);
        }
        self.push(requests, request);
    }

    pub(super) fn push(&self, mut requests: MutexGuard<'_, RequestQueue>, request: InFlight) {
        if requests.len() == 0 {
            self.liveness.awaiting(Some(request.sent));
        }
        let deadline = requests.next_deadline();
        let is_first = requests.push(request);
        let is_sooner = requests.next_deadline() != deadline;
        if is_sooner {
            self.reset_timer.store(true, Ordering::Release);
        }
        drop(requests);
        if is_first || is_sooner {
            self.waker.wake();
        }
    }

    /// Fails a request that has no reply. A release that was not sent goes by another connection, once.
    pub(super) fn fail(&self, failed: InFlight, error: &Error, unsent: bool) {
        match (failed.responder, failed.request) {
            // The caller may have dropped its future.
            (Responder::Caller { sender, .. }, request) => {
                let unsent = unsent.then(|| Box::new(request));
                drop(sender.send(Err(TrySendError { error: error.clone(), request: unsent })));
            }
            (Responder::Release { completion, rerouted: None }, Request::Release { key, token, family })
                if unsent =>
            {
                let unclaimed = UnclaimedGrant { key, token, family, rerouted: None };
                (self.context.release_elsewhere)(unclaimed, completion);
            }
            (Responder::Release { completion: Some(completion), .. }, request) => {
                let error = name_release(error.clone(), &request);
                completion.complete(Err(error.on_server(&self.context.server)));
            }
            (Responder::Release { completion: None, .. }, Request::Release { key, token, .. }) => {
                let fence = self.fence_of(&token);
                tracing::warn!(%key, ?fence, %error, "release failed, the lease stays held until it expires");
            }
            (Responder::Release { .. } | Responder::None, _) => {}
        }
    }
}

/// Names the operation and the key in the error of a release.
pub(super) fn name_release(error: Error, request: &Request) -> Error {
    let error = error.during("release");
    request.key().map_or(error.clone(), |key| error.for_key(key))
}
