//! The registry of a client's leases, which closing the client releases.

use std::sync::{Mutex, MutexGuard, PoisonError};

use slab::Slab;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Lease, LostReason, ReleaseWaiter, WeakLease};

/// The leases of one client that were not released yet.
#[derive(Default)]
pub(crate) struct LeaseRegistry(Mutex<Registry>);

#[derive(Default)]
struct Registry {
    /// `None` for a lease that has no guard yet.
    leases: Slab<Option<WeakLease>>,
    closed: bool,
}

impl LeaseRegistry {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        // Nothing panics under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.registry().leases.len()
    }

    /// Reserves the number of a lease that has no guard yet.
    pub(super) fn reserve(&self) -> usize {
        self.registry().leases.insert(None)
    }

    /// Inserts a lease under its number. Returns `false` if the client was closed before.
    pub(crate) fn insert(&self, number: usize, lease: &Lease) -> bool {
        let mut registry = self.registry();
        let is_open = !registry.closed;
        if let Some(entry) = registry.leases.get_mut(number).filter(|_| is_open) {
            *entry = Some(lease.downgrade());
        }
        is_open
    }

    pub(super) fn remove(&self, number: usize) {
        self.registry().leases.try_remove(number);
    }

    /// Ends and releases every lease, and waits for the outcomes. Later leases are not inserted.
    ///
    /// # Errors
    /// The first release that failed, or [`ErrorKind::Timeout`].
    pub(crate) async fn release_all(&self, deadline: Instant) -> Result<()> {
        let leases = {
            let mut registry = self.registry();
            registry.closed = true;
            std::mem::take(&mut registry.leases)
        };
        let (mut outcomes, now) = (Vec::new(), Instant::now());
        for lease in leases.into_iter().filter_map(|(_, lease)| lease?.upgrade()) {
            let (sender, outcome) = oneshot::channel();
            lease.end(LostReason::ClientClosed, now, ReleaseWaiter { sender, deadline });
            outcomes.push(outcome);
        }
        for outcome in outcomes {
            match timeout_at(deadline, outcome).await {
                // A lease that was released or forgotten before sends no outcome.
                Ok(outcome) => outcome.unwrap_or(Ok(()))?,
                Err(_) => return Err(Error::new(ErrorKind::Timeout, "not all leases were released in time")),
            }
        }
        Ok(())
    }
}
