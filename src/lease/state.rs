//! What the guard, its handles and the renewal task share: one lease and how it stands.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::lease::engine::Engine;
use crate::lease::renewal::{LeaseState, LostReason, Renewal, Step};
use crate::types::{Key, Token};

/// What the guard, its handles and the renewal task share.
pub(super) struct Shared {
    pub(super) key: Key,
    pub(super) engine: Box<dyn Engine>,
    pub(super) token: Token,
    renewal: Mutex<Renewal>,
    state: watch::Sender<LeaseState>,
    phase: AtomicU8,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The lease is renewed and will be released.
const KEPT: u8 = 0;
/// The lease is neither renewed nor released: it runs out by itself.
const FORGOTTEN: u8 = 1;
/// The one release was attempted.
const RELEASED: u8 = 2;

impl Shared {
    pub(super) fn new(engine: Box<dyn Engine>, key: Key, token: Token, renewal: Renewal) -> Self {
        Self {
            key,
            engine,
            token,
            renewal: Mutex::new(renewal),
            state: watch::Sender::new(LeaseState::Healthy),
            phase: AtomicU8::new(KEPT),
            task: Mutex::new(None),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<LeaseState> {
        self.state.subscribe()
    }

    pub(super) fn set_task(&self, task: JoinHandle<()>) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Gives up renewing and releasing.
    pub(super) fn forget(&self) {
        self.phase.store(FORGOTTEN, Ordering::Release);
    }

    pub(super) fn renewal(&self) -> MutexGuard<'_, Renewal> {
        // Nothing panics while the schedule is locked; if it did, its numbers are still whole.
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wants_renewal(&self) -> bool {
        self.phase.load(Ordering::Acquire) == KEPT
    }

    /// Asks the schedule and publishes how the lease stands.
    pub(super) fn poll(&self, now: Instant, no_renewal: bool) -> Step {
        let (step, state) = {
            let mut renewal = self.renewal();
            (renewal.poll(now.into_std(), no_renewal), renewal.state(now.into_std()))
        };
        self.publish(state);
        step
    }

    /// Books the outcome of a renewal sent at `sent`.
    pub(super) fn settle(&self, sent: Instant, outcome: Result<Duration>) {
        let now = Instant::now();
        match outcome {
            Ok(ttl) => {
                let mut renewal = self.renewal();
                renewal.renewed(sent.into_std(), ttl, now.into_std(), fastrand::f64());
                let state = renewal.state(now.into_std());
                drop(renewal);
                tracing::debug!(key = %self.key, fence = ?self.token.fence(), ?ttl, "lease renewed");
                self.publish(state);
            }
            Err(error) if error.kind() == ErrorKind::NotHeld => self.lose(LostReason::RenewalRejected),
            Err(error) => {
                tracing::debug!(key = %self.key, fence = ?self.token.fence(), %error, "renewal failed");
                self.renewal().failed(now.into_std(), fastrand::f64());
            }
        }
    }

    fn publish(&self, state: LeaseState) {
        self.state.send_if_modified(|current| {
            let news = *current != state && current.lost().is_none();
            if news {
                *current = state;
            }
            news
        });
    }

    /// The lease is lost, unless it was let go before.
    pub(super) fn lose(&self, reason: LostReason) {
        if self.phase.load(Ordering::Acquire) == RELEASED {
            return;
        }
        let first = {
            let mut renewal = self.renewal();
            renewal.lose(reason);
            self.state.borrow().lost().is_none()
        };
        self.publish(LeaseState::Lost(reason));
        if first && self.wants_renewal() {
            tracing::warn!(key = %self.key, fence = ?self.token.fence(), %reason, "lease lost");
        }
    }

    pub(super) fn state(&self) -> LeaseState {
        let state = self.renewal().state(Instant::now().into_std());
        match (state.lost(), self.engine.lost()) {
            (None, Some(reason)) => LeaseState::Lost(reason),
            _ => state,
        }
    }

    fn stop_task(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Claims the one release; `false` where it was claimed before or given up.
    pub(super) fn claim_release(&self) -> bool {
        let claimed = self.phase.compare_exchange(KEPT, RELEASED, Ordering::AcqRel, Ordering::Acquire);
        if claimed.is_ok() {
            self.stop_task();
        }
        claimed.is_ok()
    }

    pub(super) fn lost_error(&self, operation: &'static str, reason: LostReason) -> Error {
        let error = Error::new(ErrorKind::LeaseLost, reason.to_string());
        self.engine.name(error.during(operation).for_key(&self.key))
    }
}
