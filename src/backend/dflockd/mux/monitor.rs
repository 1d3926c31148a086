//! Views of a connection that do not keep it open.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tokio::runtime;

use super::MuxConnection;
use super::shared::ConnShared;
use super::state::ConnState;
use crate::error::{ErrorKind, Result};

/// Keeps neither the connection open nor its memory.
pub(crate) struct WeakMuxConnection(Weak<ConnShared>);

impl WeakMuxConnection {
    /// Returns a view of the connection, unless its driver and all its handles are gone.
    pub(crate) fn upgrade(&self) -> Option<ConnMonitor> {
        self.0.upgrade().map(ConnMonitor)
    }
}

impl MuxConnection {
    pub(crate) fn downgrade(&self) -> WeakMuxConnection {
        WeakMuxConnection(Arc::downgrade(&self.0.0))
    }
}

/// A view of a connection that does not count as a handle.
pub(crate) struct ConnMonitor(Arc<ConnShared>);

impl ConnMonitor {
    /// Returns `true` if the connection takes requests.
    pub(crate) fn is_open(&self) -> bool {
        self.0.state() == ConnState::Open
    }

    /// Returns `true` if the connection is closed and no caller waits for a reply of it.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.state() == ConnState::Finished
    }

    /// Returns the runtime that the driver runs on.
    pub(crate) fn runtime(&self) -> runtime::Id {
        self.0.runtime
    }

    /// Returns how many requests have no reply yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.0.requests().len()
    }

    /// Takes no more requests, and closes once those in flight are answered.
    pub(crate) fn close(&self) {
        self.0.advance(ConnState::Closing);
    }

    /// Resolves when the connection is closed and no handle is left that could bring back a grant of it. Gives
    /// up a place in a wait queue at once, whichever handle has it.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if the server did not answer all requests.
    pub(crate) async fn settled(&self) -> Result<()> {
        if self.0.leave_queue() {
            self.close();
        } else {
            self.0.reached(|shared| shared.has_no_users.load(Ordering::Acquire)).await;
        }
        self.0.reached(|shared| shared.state() == ConnState::Finished).await;
        match self.0.close_reason.get() {
            Some(error) if error.kind() == ErrorKind::Timeout => Err(error.clone()),
            _ => Ok(()),
        }
    }
}
