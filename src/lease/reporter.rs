//! Reports what happens to a lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::Span;

use crate::error::{Error, ErrorKind, Result};
use crate::lease::LostReason;
use crate::lease::config::LeaseConfig;
use crate::lease::event::{LeaseEvent, LeaseEventKind};
use crate::lease::event_handler::EventHandler;
use crate::lease::state_cell::StateCell;
use crate::types::{Fence, Key, printable};

/// Counts what happens to many leases.
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
    fn count(&self, change: &LeaseEventKind) {
        let counter = match change {
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

/// Reports what happens to one lease: to the log, the counters, the event handler, and the watchers of its state.
pub(crate) struct LeaseReporter {
    pub(super) key: Key,
    pub(super) fence: Option<Fence>,
    pub(super) endpoint: Arc<str>,
    handler: EventHandler,
    counters: Arc<LeaseCounters>,
    pub(super) span: Span,
    pub(super) state: Arc<StateCell>,
}

impl LeaseReporter {
    pub(super) fn new(key: Key, fence: Option<Fence>, endpoint: Arc<str>, config: &LeaseConfig) -> Self {
        // A lease may outlive the task that acquired it, so its span has no parent.
        let number = fence.map(Fence::get);
        let span =
            tracing::info_span!(parent: None, "lease", %key, server = %printable(&endpoint), fence = number);
        if !span.is_disabled() {
            span.follows_from(Span::current());
        }
        let (handler, counters) = (config.handler.clone(), config.counters.clone());
        Self { key, fence, endpoint, handler, counters, span, state: Arc::new(StateCell::new()) }
    }

    pub(super) fn granted(&self, ttl: Duration) {
        tracing::debug!(parent: &self.span, ?ttl, "lease granted");
        self.tell(LeaseEventKind::Granted { ttl });
    }

    pub(super) fn renewed(&self, ttl: Duration) {
        tracing::debug!(parent: &self.span, ?ttl, "lease renewed");
        self.tell(LeaseEventKind::Renewed { ttl });
    }

    pub(super) fn renew_failed(&self, error: &Error) {
        tracing::debug!(parent: &self.span, %error, "renewal failed");
        self.tell(LeaseEventKind::RenewFailed(error.clone()));
    }

    pub(super) fn at_risk(&self) {
        tracing::warn!(parent: &self.span, key = %self.key, "lease at risk: renewals are late");
        self.tell(LeaseEventKind::AtRisk);
    }

    pub(super) fn lost(&self, reason: LostReason) {
        tracing::warn!(parent: &self.span, key = %self.key, %reason, "lease lost");
        self.tell(LeaseEventKind::Lost(reason));
    }

    pub(super) fn released(&self, outcome: &Result<()>) {
        match outcome {
            Ok(()) => {
                tracing::debug!(parent: &self.span, "lease released");
                self.tell(LeaseEventKind::Released);
            }
            Err(error) => {
                tracing::warn!(parent: &self.span, key = %self.key, %error, "release failed");
                self.tell(LeaseEventKind::ReleaseFailed(error.clone()));
            }
        }
    }

    pub(super) fn forgotten(&self) {
        tracing::debug!(parent: &self.span, "lease forgotten");
        self.tell(LeaseEventKind::Forgotten);
    }

    /// An error that names the operation, the key and who granted it.
    pub(super) fn error(&self, operation: &'static str, kind: ErrorKind, detail: impl Into<String>) -> Error {
        Error::new(kind, detail).during(operation).for_key(&self.key).on_server(&self.endpoint)
    }

    fn tell(&self, kind: LeaseEventKind) {
        self.counters.count(&kind);
        let event = || {
            let (key, endpoint) = (self.key.clone(), self.endpoint.clone());
            LeaseEvent { key, fence: self.fence, endpoint, kind }
        };
        if !self.handler.tell(event) {
            self.counters.dropped_events.fetch_add(1, Ordering::Relaxed);
        }
    }
}
