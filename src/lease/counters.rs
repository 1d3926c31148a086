//! Counts what happens to many leases.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::lease::event::LeaseEventKind;

/// The counters of all leases of one client or lock file.
#[derive(Debug, Default)]
pub(crate) struct LeaseCounters {
    pub(crate) granted: AtomicU64,
    pub(crate) renewed: AtomicU64,
    pub(crate) renew_failed: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) released: AtomicU64,
    pub(crate) release_failed: AtomicU64,
    pub(crate) dropped_events: AtomicU64,
}

impl LeaseCounters {
    pub(super) fn count(&self, kind: &LeaseEventKind) {
        let counter = match kind {
            LeaseEventKind::Granted { .. } => &self.granted,
            LeaseEventKind::Renewed { .. } => &self.renewed,
            LeaseEventKind::RenewFailed(_) => &self.renew_failed,
            LeaseEventKind::Lost(_) => &self.lost,
            LeaseEventKind::Released => &self.released,
            LeaseEventKind::ReleaseFailed(_) => &self.release_failed,
            LeaseEventKind::AtRisk | LeaseEventKind::Forgotten => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
