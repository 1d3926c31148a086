//! How one lease stands, and who waits to hear that it has changed. Small, because there is one for
//! each lease. Knows of no schedule.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::lease::{LeaseState, LostReason};
use crate::process::Origin;

pub(super) struct StateCell {
    state: Mutex<LeaseState>,
    state_changed: Notify,
    origin: Origin,
}

impl StateCell {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(LeaseState::Healthy), state_changed: Notify::new(), origin: Origin::here() }
    }

    /// Whether this is the process that holds the lease. In one that was forked from it no lock may be
    /// taken, since the thread that would release it may not be there.
    pub(super) fn is_ours(&self) -> bool {
        self.origin.is_here()
    }

    /// How it stands, in whichever process asks.
    pub(super) fn seen(&self) -> LeaseState {
        if self.is_ours() { self.get() } else { LeaseState::Lost(LostReason::Forked) }
    }

    pub(super) fn get(&self) -> LeaseState {
        // Nothing panics while it is locked that leaves it half changed.
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the state that follows this one, if any does, and tells everyone who waits. Of two
    /// who do so at a time, the second is asked with what the first has answered.
    pub(super) fn update(&self, next: impl FnOnce(LeaseState) -> Option<LeaseState>) -> Option<LeaseState> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let news = next(*state)?;
        *state = news;
        drop(state);
        self.state_changed.notify_waiters();
        Some(news)
    }

    #[cfg(test)]
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap()
    }

    /// Waits for a state that this makes something of.
    pub(super) async fn wait_for<T>(&self, found: impl Fn(LeaseState) -> Option<T>) -> T {
        loop {
            // Listens before it looks, so that no change falls between.
            let changed = self.state_changed.notified();
            if let Some(value) = found(self.seen()) {
                return value;
            }
            changed.await;
        }
    }
}
