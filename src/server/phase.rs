//! Where a server stands in its life, and who waits for the next step. Knows of no connection.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;

use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serving,
    Draining,
    Stopped,
}

/// A phase that only moves on.
///
/// Not a `watch`: that wakes those who wait in an order of its own, this in the order in which they
/// came, so that a simulated run replays.
#[derive(Default)]
pub(super) struct Life {
    phase: AtomicU8,
    moved_on: Notify,
}

impl Life {
    pub(super) fn phase(&self) -> Phase {
        [Phase::Serving, Phase::Draining, Phase::Stopped][usize::from(self.phase.load(Ordering::Acquire))]
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Release);
        self.moved_on.notify_waiters();
    }

    /// Resolves like [`reaches`](Self::reaches), but only where somebody else has it polled then.
    pub(super) fn has_reached(&self, phase: Phase) -> impl Future<Output = ()> {
        poll_fn(move |_| if self.phase() >= phase { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Resolves in this phase and in those after it.
    pub(super) async fn reaches(&self, phase: Phase) {
        loop {
            let mut moved_on = pin!(self.moved_on.notified());
            // Before the look, so that no step between it and the wait is missed.
            moved_on.as_mut().enable();
            if self.phase() >= phase {
                return;
            }
            moved_on.await;
        }
    }
}
