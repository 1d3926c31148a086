//! The published state of one lease, and the tasks that watch it. Small, because each lease has one.

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

    /// Returns `true` in the process that holds the lease. A process that was forked from it must take no
    /// lock, since it may not have the thread that would release the lock.
    pub(super) fn is_ours(&self) -> bool {
        self.origin.is_here()
    }

    /// Returns the state, in any process.
    pub(super) fn seen(&self) -> LeaseState {
        if self.is_ours() { self.get() } else { LeaseState::Lost(LostReason::Forked) }
    }

    /// Returns the state, in the process that holds the lease.
    pub(super) fn get(&self) -> LeaseState {
        // No panic under this lock leaves the state half changed.
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the state by the one that `next` makes of it, if any, and wakes all watchers. Concurrent
    /// updates run one after the other: the second receives the state that the first has set.
    pub(super) fn update(&self, next: impl FnOnce(LeaseState) -> Option<LeaseState>) -> Option<LeaseState> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let new_state = next(*state)?;
        *state = new_state;
        drop(state);
        self.state_changed.notify_waiters();
        Some(new_state)
    }

    #[cfg(test)]
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap()
    }

    /// Waits for a state for which `select` returns a value.
    pub(super) async fn wait_for<T>(&self, select: impl Fn(LeaseState) -> Option<T>) -> T {
        loop {
            // Registers before it reads the state, so that no change is missed between the two.
            let changed = self.state_changed.notified();
            if let Some(value) = select(self.seen()) {
                return value;
            }
            changed.await;
        }
    }
}
