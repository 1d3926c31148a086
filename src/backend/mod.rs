//! What grants leases: the contract between the client and an engine, and a folder for each engine. A backend
//! does not depend on the client, nor on another backend.

mod deadline;
pub(crate) mod dflockd;
#[cfg(feature = "file")]
pub(crate) mod directory;
mod runtime;

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::failpoints::{Rule, is_broken};
use crate::latency::Latency;
use crate::lease::{HeldLease, ReleaseCompletion};
use crate::proto::StatsResult;
use crate::types::{Fence, Key, Limit, Seconds, Token};

pub(crate) use deadline::{Deadline, GRACE};
pub(crate) use runtime::here;

/// The timeout of closing a client, releases included.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The abilities of an engine, beyond locks with timeouts and leases. Returned by
/// [`LockClient::capabilities`](crate::LockClient::capabilities).
///
/// A missing one fails with [`Unsupported`](crate::ErrorKind::Unsupported) before any I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Counting semaphores, [`LockClient::semaphore`](crate::LockClient::semaphore).
    pub semaphores: bool,
    /// A place in the wait queue as a value,
    /// [`AsyncDistributedLock::enqueue`](crate::AsyncDistributedLock::enqueue).
    pub enqueue: bool,
    /// Waiters of different processes get the key first come, first served. Tasks of one client on one
    /// runtime do so on every engine.
    pub fifo: bool,
    /// Each grant of a key has a larger [`fence`](crate::Lease::fence) than the one before.
    pub fences: bool,
}

/// One engine, as one client uses it. The endpoint of a request is the one that [`locate`](Self::locate) returns.
///
/// Any future may be dropped at any await. The backend then leaves neither a waiter nor a holder behind,
/// including a grant that arrives late.
pub(crate) trait Backend: Send + Sync + Sized + 'static {
    /// A held key.
    type Lease: HeldLease;
    /// A place in a key's wait queue. Dropping it leaves the queue.
    type Place: Send + Sync + 'static;

    fn capabilities(&self) -> Capabilities;

    /// Returns the names of its endpoints, which `Debug` shows.
    fn endpoints(&self) -> Vec<Arc<str>>;

    /// Checks a request when a lock is made for it, before any I/O.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], or [`ErrorKind::InvalidInput`] for what the engine cannot carry.
    fn check(&self, _: &AcquireRequest) -> Result<()> {
        Ok(())
    }

    /// Returns which of the endpoints grants the key. Does no I/O.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the engine cannot carry the key.
    fn locate(&self, key: &Key) -> Result<usize>;

    /// Returns the name of an endpoint.
    fn endpoint(&self, index: usize) -> &Arc<str>;

    /// Returns how old a grant may be when it arrives, counted from its request, and still be used as it is.
    /// The client renews an older one once before it makes a guard.
    fn confirm_after(&self) -> Duration;

    /// Returns `true` if an acquire that may wait is to skip the try.
    fn skips_try(&self, request: &AcquireRequest) -> bool;

    /// Takes the key if it is free and has no waiters. `now` is the instant of the call.
    fn try_acquire(
        &self,
        request: &AcquireRequest,
        endpoint: usize,
        now: Instant,
        deadline: &Deadline,
    ) -> impl Future<Output = Result<Attempt<Self::Lease>>> + Send;

    /// Waits for the key in the engine's own queue. A key that stays busy is [`ErrorKind::Busy`].
    fn acquire(
        &self,
        request: &AcquireRequest,
        endpoint: usize,
        deadline: &Deadline,
    ) -> impl Future<Output = Result<Grant<Self::Lease>>> + Send;

    /// Takes the key, or a place in its wait queue.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], before any I/O, if the backend has no wait queue.
    fn enqueue(
        &self,
        _: &AcquireRequest,
        _endpoint: usize,
        _: &Deadline,
    ) -> impl Future<Output = Result<Enqueue<Self>>> + Send {
        ready(Err(unsupported("the backend has no wait queue, use acquire")))
    }

    /// Waits at a place for the grant, up to `timeout`.
    fn wait(
        &self,
        place: Self::Place,
        request: &AcquireRequest,
        timeout: Seconds,
        deadline: &Deadline,
    ) -> impl Future<Output = Result<Grant<Self::Lease>>> + Send;

    /// Returns what each server holds.
    fn stats(&self) -> impl Future<Output = Result<Vec<StatsResult>>> + Send;

    fn gauges(&self) -> Gauges;

    /// Refuses new requests and closes what is not in use: at once, not when the future is polled. The future
    /// resolves when nothing is left: no connection, no caller that could bring back a grant, no release in
    /// flight.
    fn close(&self, deadline: Instant) -> impl Future<Output = Result<()>> + Send;
}

/// A caller's request: a key, and how to hold it.
#[derive(Clone)]
pub(crate) struct AcquireRequest {
    pub(crate) key: Key,
    /// `None` for a lock.
    pub(crate) limit: Option<Limit>,
    /// `None` for the engine's default.
    pub(crate) ttl: Option<Seconds>,
    /// Shares no connection with other leases.
    pub(crate) isolated: bool,
}

/// The outcome of a try.
pub(crate) enum Attempt<L: HeldLease> {
    Acquired(Grant<L>),
    /// Another holder has the key, or another waiter waits for it.
    Busy(Error),
}

/// The outcome of an enqueue.
pub(crate) enum Enqueue<B: Backend> {
    Acquired(Grant<B::Lease>),
    Queued(B::Place),
}

/// A granted key.
pub(crate) struct Grant<L: HeldLease> {
    pub(crate) lease: Unclaimed<L>,
    pub(crate) token: Token,
    pub(crate) fence: Option<Fence>,
    pub(crate) ttl: Duration,
    /// The instant before the request was sent, from which the ttl counts.
    pub(crate) sent: Instant,
    /// The instant at which the reply was read.
    pub(crate) received: Instant,
}

/// A held lease that no guard has yet. Dropping it releases the lease.
pub(crate) struct Unclaimed<L: HeldLease>(Option<L>);

impl<L: HeldLease> Unclaimed<L> {
    // Inlined, as what it passes through up to the guard: a grant is some 300 bytes, and each call would copy it.
    #[inline(always)]
    pub(crate) fn new(lease: L) -> Self {
        Self(Some(lease))
    }

    pub(crate) fn lease(&self) -> &L {
        self.0.as_ref().expect("it has its lease until it is claimed")
    }

    /// Returns the lease, and with it the duty to release it.
    #[inline(always)]
    pub(crate) fn claim(mut self) -> L {
        self.0.take().expect("it has its lease until it is claimed")
    }
}

impl<L: HeldLease> Drop for Unclaimed<L> {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take()
            && !is_broken(Rule::ReleaseUnclaimed)
        {
            tracing::debug!(server = %lease.endpoint(), "releasing a grant that no caller took");
            lease.release(Instant::now(), ReleaseCompletion::ignored());
        }
    }
}

/// The open connections of a backend, and its counters since it was built.
pub(crate) struct Gauges {
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    pub(crate) connects: u64,
    pub(crate) round_trips: Latency,
}

/// The error of a key that stayed busy for as long as the caller waited.
pub(crate) fn busy() -> Error {
    Error::new(ErrorKind::Busy, "")
}

/// The engine cannot do this.
pub(crate) fn unsupported(detail: &str) -> Error {
    Error::new(ErrorKind::Unsupported, detail)
}

pub(crate) fn client_closed() -> Error {
    Error::new(ErrorKind::ClientClosed, "")
}
