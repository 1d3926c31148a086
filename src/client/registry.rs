//! Which leases a client has out, so that closing it can release them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;

use slab::Slab;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::client::inner::ClientInner;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Change, HeldLease, Lease, LostReason, ReleaseCompletion, ReleaseWaiter, WeakLease};

/// The leases of one client that were not let go yet.
#[derive(Default)]
pub(crate) struct LeaseRegistry(Mutex<Registry>);

#[derive(Default)]
struct Registry {
    /// `None` for one that is about to begin.
    leases: Slab<Option<WeakLease>>,
    closed: bool,
}

impl LeaseRegistry {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.registry().leases.len()
    }

    /// Returns the number of a lease that is about to begin.
    fn reserve(&self) -> usize {
        self.registry().leases.insert(None)
    }

    /// Enters a lease. Returns `false` if the client was closed meanwhile.
    pub(crate) fn insert(&self, number: usize, lease: &Lease) -> bool {
        let mut registry = self.registry();
        let is_open = !registry.closed;
        if let Some(entry) = registry.leases.get_mut(number).filter(|_| is_open) {
            *entry = Some(lease.downgrade());
        }
        is_open
    }

    fn remove(&self, number: usize) {
        self.registry().leases.try_remove(number);
    }

    /// Ends every lease, lets go of what it held, and waits until that was answered; enters no more.
    ///
    /// # Errors
    /// The first release that failed, or [`ErrorKind::Timeout`].
    pub(crate) async fn release_all(&self, until: Instant) -> Result<()> {
        let leases = {
            let mut registry = self.registry();
            registry.closed = true;
            std::mem::take(&mut registry.leases)
        };
        let (mut answers, now) = (Vec::new(), Instant::now());
        for lease in leases.into_iter().filter_map(|(_, lease)| lease?.upgrade()) {
            let (tell, told) = oneshot::channel();
            lease.end(LostReason::ClientClosed, now, ReleaseWaiter { sender: tell, deadline: until });
            answers.push(told);
        }
        for answer in answers {
            match timeout_at(until, answer).await {
                // What was let go or forgotten before has no answer.
                Ok(answer) => answer.unwrap_or(Ok(()))?,
                Err(_) => return Err(Error::new(ErrorKind::Timeout, "not all leases were let go in time")),
            }
        }
        Ok(())
    }
}

/// A held lease that stands in its client's registry until it is released.
pub(crate) struct Registered<L: HeldLease> {
    lease: L,
    client: Arc<ClientInner>,
    number: usize,
    has_left: AtomicBool,
}

impl<L: HeldLease> Registered<L> {
    pub(crate) fn new(lease: L, client: &Arc<ClientInner>) -> Self {
        let number = client.registry.reserve();
        Self { lease, client: client.clone(), number, has_left: AtomicBool::new(false) }
    }

    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Leaves the registry once: the number may be another lease's after that.
    fn leave(&self) {
        if !self.has_left.swap(true, Ordering::AcqRel) {
            self.client.registry.remove(self.number);
        }
    }
}

impl<L: HeldLease> HeldLease for Registered<L> {
    fn endpoint(&self) -> Arc<str> {
        self.lease.endpoint()
    }

    fn renew(&self) -> BoxFuture<'_, Result<Duration>> {
        self.lease.renew()
    }

    fn enforces_release_deadline(&self) -> bool {
        self.lease.enforces_release_deadline()
    }

    fn release(&self, now: Instant, done: ReleaseCompletion) {
        self.leave();
        self.lease.release(now, done);
    }

    fn cut(&self) {
        self.leave();
        self.lease.cut();
    }

    fn lost(&self, now: Instant) -> Option<LostReason> {
        self.lease.lost(now)
    }

    fn changed(&self) -> impl Future<Output = Change> + Send {
        self.lease.changed()
    }
}

/// A lease may end without a release: forgotten, or with its runtime. A forked process takes no lock of the
/// registry.
impl<L: HeldLease> Drop for Registered<L> {
    fn drop(&mut self) {
        if self.client.is_ours() {
            self.leave();
        }
    }
}
