//! Reports the events of one lease.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::Span;

use crate::error::{Error, ErrorKind, Result};
use crate::lease::LostReason;
use crate::lease::config::LeaseConfig;
use crate::lease::counters::LeaseCounters;
use crate::lease::event::{LeaseEvent, LeaseEventKind};
use crate::lease::event_handler::EventHandler;
use crate::lease::state_cell::StateCell;
use crate::types::{Fence, Key, printable};

/// Reports the events of one lease to the log, the counters and the event handler, and has its published state.
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
        let fence_number = fence.map(Fence::get);
        let server = printable(&endpoint);
        let span = tracing::info_span!(parent: None, "lease", %key, %server, fence = fence_number);
        if !span.is_disabled() {
            span.follows_from(Span::current());
        }
        let (handler, counters) = (config.handler.clone(), config.counters.clone());
        Self { key, fence, endpoint, handler, counters, span, state: Arc::new(StateCell::new()) }
    }

    pub(super) fn granted(&self, ttl: Duration) {
        tracing::debug!(parent: &self.span, ?ttl, "lease granted");
        self.report(LeaseEventKind::Granted { ttl });
    }

    pub(super) fn renewed(&self, ttl: Duration) {
        tracing::debug!(parent: &self.span, ?ttl, "lease renewed");
        self.report(LeaseEventKind::Renewed { ttl });
    }

    pub(super) fn renew_failed(&self, error: &Error) {
        tracing::debug!(parent: &self.span, %error, "renewal failed");
        self.report(LeaseEventKind::RenewFailed(error.clone()));
    }

    pub(super) fn at_risk(&self) {
        tracing::warn!(parent: &self.span, key = %self.key, "lease at risk: renewals are late");
        self.report(LeaseEventKind::AtRisk);
    }

    pub(super) fn lost(&self, reason: LostReason) {
        tracing::warn!(parent: &self.span, key = %self.key, %reason, "lease lost");
        self.report(LeaseEventKind::Lost(reason));
    }

    pub(super) fn released(&self, outcome: &Result<()>) {
        match outcome {
            Ok(()) => {
                tracing::debug!(parent: &self.span, "lease released");
                self.report(LeaseEventKind::Released);
            }
            Err(error) => {
                tracing::warn!(parent: &self.span, key = %self.key, %error, "release failed");
                self.report(LeaseEventKind::ReleaseFailed(error.clone()));
            }
        }
    }

    pub(super) fn forgotten(&self) {
        tracing::debug!(parent: &self.span, "lease forgotten");
        self.report(LeaseEventKind::Forgotten);
    }

    /// Makes an error that names the operation, the key and the endpoint.
    pub(super) fn error(&self, operation: &'static str, kind: ErrorKind, detail: impl Into<String>) -> Error {
        Error::new(kind, detail).during(operation).for_key(&self.key).on_server(&self.endpoint)
    }

    fn report(&self, kind: LeaseEventKind) {
        self.counters.count(&kind);
        let event = || {
            let (key, endpoint) = (self.key.clone(), self.endpoint.clone());
            LeaseEvent { key, fence: self.fence, endpoint, kind }
        };
        if !self.handler.send(event) {
            self.counters.dropped_events.fetch_add(1, Ordering::Relaxed);
        }
    }
}
