//! What happens to leases, told to whoever counts. Knows of no engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::Span;

use crate::error::{Error, ErrorKind, Result};
use crate::lease::LostReason;
use crate::lease::guard::Terms;
use crate::lease::listener::Listener;
use crate::lease::standing::Standing;
use crate::types::{Fence, Key, printable};

/// Something that happened to a lease; see [`Builder::on_event`](crate::Builder::on_event).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeaseEvent {
    /// The key that is, or was, held.
    pub key: Key,
    /// The grant's fence; none from a server too old to fence, and none for a lock file.
    pub fence: Option<Fence>,
    /// Who granted: the server's `host:port`, or the path of the lock file.
    pub grantor: Arc<str>,
    /// What happened.
    pub change: LeaseChange,
}

/// What happened to a lease.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LeaseChange {
    /// It began.
    Granted {
        /// Its length, unless renewed.
        ttl: Duration,
    },
    /// It was renewed.
    Renewed {
        /// Its length from when the renewal was sent.
        ttl: Duration,
    },
    /// A renewal failed in a way that says nothing about the lease; it is tried again.
    RenewFailed(Error),
    /// Little time is left because renewals are late, or its connection was lost and it may have
    /// outlived that. A renewal heals it.
    AtRisk,
    /// It was lost.
    Lost(LostReason),
    /// It was let go, and the server said so.
    Released,
    /// Letting go failed: the lease runs out by itself, or has.
    ReleaseFailed(Error),
    /// It is neither renewed nor released any more.
    Forgotten,
}

/// Counts what happens to many leases.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) granted: AtomicU64,
    pub(crate) renewed: AtomicU64,
    pub(crate) renew_failed: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) released: AtomicU64,
    pub(crate) release_failed: AtomicU64,
    pub(crate) untold: AtomicU64,
}

impl Tally {
    fn count(&self, change: &LeaseChange) {
        let counter = match change {
            LeaseChange::Granted { .. } => &self.granted,
            LeaseChange::Renewed { .. } => &self.renewed,
            LeaseChange::RenewFailed(_) => &self.renew_failed,
            LeaseChange::Lost(_) => &self.lost,
            LeaseChange::Released => &self.released,
            LeaseChange::ReleaseFailed(_) => &self.release_failed,
            LeaseChange::AtRisk | LeaseChange::Forgotten => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Tells the log and the listener what happens to one lease, and has where those look who wait for it.
pub(crate) struct Teller {
    pub(super) key: Key,
    pub(super) fence: Option<Fence>,
    pub(super) grantor: Arc<str>,
    listener: Listener,
    tally: Arc<Tally>,
    pub(super) span: Span,
    pub(super) standing: Arc<Standing>,
}

impl Teller {
    pub(super) fn new(key: Key, fence: Option<Fence>, grantor: Arc<str>, terms: &Terms) -> Self {
        // A lease outlives whoever acquired it, so its span is nobody's child.
        let number = fence.map(Fence::get);
        let span =
            tracing::info_span!(parent: None, "lease", %key, server = %printable(&grantor), fence = number);
        if !span.is_disabled() {
            span.follows_from(Span::current());
        }
        let (listener, tally) = (terms.listener.clone(), terms.tally.clone());
        Self { key, fence, grantor, listener, tally, span, standing: Arc::new(Standing::new()) }
    }

    pub(super) fn granted(&self, ttl: Duration) {
        tracing::debug!(parent: &self.span, ?ttl, "lease granted");
        self.tell(LeaseChange::Granted { ttl });
    }

    pub(super) fn renewed(&self, ttl: Duration) {
        tracing::debug!(parent: &self.span, ?ttl, "lease renewed");
        self.tell(LeaseChange::Renewed { ttl });
    }

    pub(super) fn renew_failed(&self, error: &Error) {
        tracing::debug!(parent: &self.span, %error, "renewal failed");
        self.tell(LeaseChange::RenewFailed(error.clone()));
    }

    pub(super) fn at_risk(&self) {
        tracing::warn!(parent: &self.span, key = %self.key, "lease at risk: renewals are late");
        self.tell(LeaseChange::AtRisk);
    }

    pub(super) fn lost(&self, reason: LostReason) {
        tracing::warn!(parent: &self.span, key = %self.key, %reason, "lease lost");
        self.tell(LeaseChange::Lost(reason));
    }

    pub(super) fn released(&self, outcome: &Result<()>) {
        match outcome {
            Ok(()) => {
                tracing::debug!(parent: &self.span, "lease released");
                self.tell(LeaseChange::Released);
            }
            Err(error) => {
                tracing::warn!(parent: &self.span, key = %self.key, %error, "release failed");
                self.tell(LeaseChange::ReleaseFailed(error.clone()));
            }
        }
    }

    pub(super) fn forgotten(&self) {
        tracing::debug!(parent: &self.span, "lease forgotten");
        self.tell(LeaseChange::Forgotten);
    }

    /// An error that names the operation, the key and who granted it.
    pub(super) fn error(&self, operation: &'static str, kind: ErrorKind, detail: impl Into<String>) -> Error {
        Error::new(kind, detail).during(operation).for_key(&self.key).on_server(&self.grantor)
    }

    fn tell(&self, change: LeaseChange) {
        self.tally.count(&change);
        let event = || {
            let (key, grantor) = (self.key.clone(), self.grantor.clone());
            LeaseEvent { key, fence: self.fence, grantor, change }
        };
        if !self.listener.tell(event) {
            self.tally.untold.fetch_add(1, Ordering::Relaxed);
        }
    }
}
