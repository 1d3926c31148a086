//! The state of a server, from serving to stopped, and the tasks that wait for a state.

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

/// A state that only advances.
///
/// Not a `watch`, which wakes its waiters in an order of its own. This wakes them in the order of their
/// arrival, so that a simulated run can be replayed.
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

    /// Resolves like [`reached`](Self::reached), but registers no waker: another event must have it polled.
    pub(super) fn poll_reached(&self, state: ServerState) -> impl Future<Output = ()> {
        poll_fn(move |_| if self.state() >= state { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Resolves once the server is in this state or a later one.
    pub(super) async fn reached(&self, state: ServerState) {
        loop {
            let mut moved_on = pin!(self.state_changed.notified());
            // Before the check, so that no change between the check and the wait is missed.
            moved_on.as_mut().enable();
            if self.state() >= state {
                return;
            }
            moved_on.await;
        }
    }
}
