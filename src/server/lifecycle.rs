//! Where a server stands in its life, and who waits for the next step. Knows of no connection.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;

use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ServerState {
    Serving,
    Draining,
    Stopped,
}

/// A state that only moves on.
///
/// Not a `watch`: that wakes those who wait in an order of its own, this in the order in which they
/// came, so that a simulated run replays.
#[derive(Default)]
pub(super) struct Lifecycle {
    state: AtomicU8,
    state_changed: Notify,
}

impl Lifecycle {
    pub(super) fn state(&self) -> ServerState {
        [ServerState::Serving, ServerState::Draining, ServerState::Stopped]
            [usize::from(self.state.load(Ordering::Acquire))]
    }

    pub(super) fn advance(&self, state: ServerState) {
        self.state.fetch_max(state as u8, Ordering::Release);
        self.state_changed.notify_waiters();
    }

    /// Resolves like [`reaches`](Self::reaches), but only where somebody else has it polled then.
    pub(super) fn poll_reached(&self, state: ServerState) -> impl Future<Output = ()> {
        poll_fn(move |_| if self.state() >= state { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Resolves in this state and in those after it.
    pub(super) async fn reached(&self, state: ServerState) {
        loop {
            let mut moved_on = pin!(self.state_changed.notified());
            // Before the look, so that no step between it and the wait is missed.
            moved_on.as_mut().enable();
            if self.state() >= state {
                return;
            }
            moved_on.await;
        }
    }
}
