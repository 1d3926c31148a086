//! What is seen of a session by those who do not keep it open, and of the releases that left it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tokio::runtime;
use tokio::sync::watch;

use super::{CLOSING, ConnShared, FINISHED, MuxConnection, OPEN};
use crate::error::{ErrorKind, Result};

/// A session that this does not keep open.
pub(crate) struct WeakMuxConnection(Weak<ConnShared>);

impl WeakMuxConnection {
    /// The session, unless nothing is left of it.
    pub(crate) fn upgrade(&self) -> Option<Trace> {
        self.0.upgrade().map(Trace)
    }
}

impl MuxConnection {
    pub(crate) fn downgrade(&self) -> WeakMuxConnection {
        WeakMuxConnection(Arc::downgrade(&self.0.0))
    }
}

/// A session whose last handle this is not.
pub(crate) struct Trace(Arc<ConnShared>);

impl Trace {
    /// Whether it takes requests.
    pub(crate) fn is_open(&self) -> bool {
        self.0.state() == OPEN
    }

    /// Whether everyone who waited for an answer has been told.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.state() == FINISHED
    }

    /// Where its driver runs.
    pub(crate) fn runtime(&self) -> runtime::Id {
        self.0.runtime
    }

    /// How many requests have no reply yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.0.requests().len()
    }

    /// Takes nothing more, and ends once what is under way is answered.
    pub(crate) fn close(&self) {
        self.0.advance(CLOSING);
    }

    /// Resolves when it has ended, and nobody has it any more who could bring back a grant of it. A place in a
    /// queue is given up at once, whoever has it.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] where the server did not answer to the end.
    pub(crate) async fn settled(&self) -> Result<()> {
        if self.0.leave_queue() {
            self.close();
        } else {
            self.0.reached(|shared| shared.has_no_users.load(Ordering::Acquire)).await;
        }
        self.0.reached(|shared| shared.state() == FINISHED).await;
        match self.0.end.get() {
            Some(end) if end.kind() == ErrorKind::Timeout => Err(end.clone()),
            _ => Ok(()),
        }
    }
}

/// A release on its way over another connection than the one that brought its grant: counted until it
/// is answered, or failed.
pub(crate) struct Rerouted(Arc<watch::Sender<usize>>);

impl Rerouted {
    pub(crate) fn begin(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Rerouted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl std::fmt::Debug for Rerouted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rescue")
    }
}
