//! A held lease that its client can release when the client closes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::client::inner::ClientInner;
use crate::error::Result;
use crate::lease::{Change, HeldLease, LostReason, ReleaseCompletion};

/// A held lease that is in its client's registry until it is released.
pub(crate) struct Registered<L: HeldLease> {
    lease: L,
    client: Arc<ClientInner>,
    number: usize,
    is_removed: AtomicBool,
}

impl<L: HeldLease> Registered<L> {
    #[inline(always)]
    pub(crate) fn new(lease: L, client: &Arc<ClientInner>) -> Self {
        let number = client.registry.reserve();
        Self { lease, client: client.clone(), number, is_removed: AtomicBool::new(false) }
    }

    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Removes the lease from the registry, once: after that the number may be another lease's.
    fn remove(&self) {
        if !self.is_removed.swap(true, Ordering::AcqRel) {
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

    fn release(&self, now: Instant, completion: ReleaseCompletion) {
        self.remove();
        self.lease.release(now, completion);
    }

    fn cut(&self) {
        self.remove();
        self.lease.cut();
    }

    fn lost(&self, now: Instant) -> Option<LostReason> {
        self.lease.lost(now)
    }

    fn changed(&self) -> impl Future<Output = Change> + Send {
        self.lease.changed()
    }
}

/// A lease may end without a release: forgotten, or with its runtime. A forked process must not take the lock of
/// the registry.
impl<L: HeldLease> Drop for Registered<L> {
    fn drop(&mut self) {
        if self.client.is_ours() {
            self.remove();
        }
    }
}
