//! Counts what is in flight in a directory: acquires, leases, and the removal of their files. Closing waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::backend::client_closed;
use crate::error::Result;
use crate::process::Origin;

#[derive(Default)]
pub(super) struct Activity {
    count: AtomicUsize,
    is_closed: AtomicBool,
    ended: Notify,
    origin: Origin,
}

/// One thing in flight, until it is dropped.
pub(super) struct InFlight(Arc<Activity>);

impl Activity {
    /// # Errors
    /// [`ErrorKind::ClientClosed`](crate::ErrorKind::ClientClosed) once it is closed.
    pub(super) fn begin(self: &Arc<Self>) -> Result<InFlight> {
        self.count.fetch_add(1, Ordering::SeqCst);
        let begun = InFlight(self.clone());
        // In this order: a caller that closes sees either what has begun or nothing.
        if self.is_closed.load(Ordering::SeqCst) { Err(client_closed()) } else { Ok(begun) }
    }

    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    /// Waits until nothing is in flight.
    pub(super) async fn ends(&self) {
        loop {
            let ended = self.ended.notified();
            if self.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl Clone for InFlight {
    fn clone(&self) -> Self {
        self.0.count.fetch_add(1, Ordering::SeqCst);
        Self(self.0.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let is_last = self.0.count.fetch_sub(1, Ordering::SeqCst) == 1;
        // A forked process takes no lock.
        if is_last && self.0.origin.is_here() {
            self.0.ended.notify_waiters();
        }
    }
}
